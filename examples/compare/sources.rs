//! The lowers of whole-program workloads: a tree of sources, whose files lie in several layers as those of an image do.
//! Apart from what programs write into files of their own (git, Python, SQLite) it is the same in every run.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::layers::Random;
use crate::scale::Scale;
use crate::tools::{Tools, program, run};

/// How many lowers there are.
const LOWERS: usize = 8;
/// How many files are in a directory of the library.
const FILES: usize = 30;
/// How many headers the program has, and how many of them each of its files includes.
const HEADERS: usize = 200;
const INCLUDES: usize = 25;
/// The rows of the database.
const ROWS: usize = 20_000;

/// Files of many kinds, in directories of two levels.
pub const LIBRARY: &str = "library";
/// C files, and the directory of their headers.
pub const PROGRAM: &str = "program";
/// A Python package whose import imports all its modules.
pub const PACKAGE: &str = "package";
/// An SQLite database with a table of `id, value`.
pub const DATABASE: &str = "data.db";
/// An archive of the library, beside the layers.
pub const ARCHIVE: &str = "library.tar";
/// What a few files of the library contain.
pub const NEEDLE: &str = "needle_in_the_haystack";

/// Makes the lowers, the top one first.
pub fn make(place: &Path, scale: &Scale, tools: &Tools) -> anyhow::Result<Vec<PathBuf>> {
    let tree = place.join("tree");
    write_library(&tree.join(LIBRARY), scale)?;
    write_program(&tree.join(PROGRAM), scale)?;
    write_package(&tree.join(PACKAGE), scale)?;
    fs::write(tree.join(".gitignore"), format!("__pycache__\n{DATABASE}\n"))?;
    if tools.has("git") {
        for arguments in [
            &["init", "--quiet"][..],
            &["add", "--all"],
            &["-c", "user.name=compare", "-c", "user.email=compare@localhost", "commit", "--quiet", "--message=all"],
        ] {
            run(program("git", &tree).args(["-c", "gc.auto=0", "-c", "core.fsync=none"]).args(arguments))?;
        }
    }
    if let Some(python) = &tools.python {
        run(program(python, &tree).args(["-m", "compileall", "-q", PACKAGE]))?;
    }
    if let Some(sqlite) = &tools.sqlite {
        fill_database(sqlite, &tree)?;
    }
    if tools.has("tar") {
        run(program("tar", &tree).arg("--create").arg("--file").arg(place.join(ARCHIVE)).arg(LIBRARY))?;
    }
    let lowers: Vec<PathBuf> = (0..LOWERS).map(|layer| place.join(format!("source{layer}"))).collect();
    distribute(&tree, &lowers)?;
    Ok(lowers)
}

fn write_library(root: &Path, scale: &Scale) -> anyhow::Result<()> {
    let mut random = Random::new(1);
    for module in 0..scale.modules {
        let directory = root.join(format!("part{}", module / 10)).join(format!("module{module:03}"));
        fs::create_dir_all(&directory)?;
        for n in 0..FILES {
            let most = 1 << random.below(9);
            let lines = 10 + random.below(most);
            let mut text = text(&mut random, lines);
            if (module * FILES + n).is_multiple_of(97) {
                writeln!(text, "int {NEEDLE};")?;
            }
            let extension = ["c", "h", "txt"][n % 3];
            fs::write(directory.join(format!("file{n:02}.{extension}")), text)?;
        }
    }
    Ok(())
}

/// Lines as those of a program, with the word `colour` in some.
fn text(random: &mut Random, lines: usize) -> String {
    const WORDS: [&str; 8] = ["static", "colour", "return", "struct", "offset", "while", "buffer", "length"];
    let mut text = String::new();
    for _ in 0..lines {
        for _ in 0..4 {
            text += WORDS[random.below(WORDS.len())];
            text.push(' ');
        }
        text += &format!("{:08x};\n", random.below(1 << 32));
    }
    text
}

fn write_program(root: &Path, scale: &Scale) -> anyhow::Result<()> {
    let include = root.join("include");
    fs::create_dir_all(&include)?;
    for header in 0..HEADERS {
        let text = format!(
            "#ifndef H{header}\n#define H{header}\nstruct s{header} {{ int a, b; struct s{header} *next; }};\n\
             static inline int f{header}(struct s{header} *s) {{ return s->a * {header} + s->b; }}\n#endif\n"
        );
        fs::write(include.join(format!("h{header}.h")), text)?;
    }
    let mut random = Random::new(2);
    for unit in 0..scale.units {
        let mut used: Vec<usize> = (0..INCLUDES).map(|_| random.below(HEADERS)).collect();
        used.sort_unstable();
        used.dedup();
        let mut text = String::new();
        for header in &used {
            writeln!(text, "#include \"h{header}.h\"")?;
        }
        writeln!(text, "int unit{unit}(int n)\n{{\n    int sum = n;")?;
        for header in &used {
            writeln!(text, "    struct s{header} v{header} = {{ n, sum, 0 }};\n    sum += f{header}(&v{header});")?;
        }
        writeln!(text, "    return sum;\n}}")?;
        fs::write(root.join(unit_name(unit)), text)?;
    }
    let mut main = String::new();
    for unit in 0..scale.units {
        writeln!(main, "int unit{unit}(int n);")?;
    }
    writeln!(main, "int main(void)\n{{\n    int sum = 0;")?;
    for unit in 0..scale.units {
        writeln!(main, "    sum += unit{unit}({unit});")?;
    }
    writeln!(main, "    return sum == 0;\n}}")?;
    Ok(fs::write(root.join("main.c"), main)?)
}

/// The name of a C file of the program.
pub fn unit_name(unit: usize) -> String {
    format!("unit{unit}.c")
}

fn write_package(root: &Path, scale: &Scale) -> anyhow::Result<()> {
    let mut all = String::new();
    for module in 0..scale.imports {
        let name = format!("part{}", module % 10);
        let directory = root.join(&name);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("__init__.py"), "")?;
        let mut text = String::new();
        for function in 0..10 {
            writeln!(
                text,
                "def f{function}(n):\n    \"\"\"Adds {module}.\"\"\"\n    return n + {module} * {function}\n"
            )?;
        }
        fs::write(directory.join(format!("module{module}.py")), text)?;
        writeln!(all, "from {PACKAGE}.{name} import module{module}")?;
    }
    Ok(fs::write(root.join("__init__.py"), all)?)
}

fn fill_database(sqlite: &[PathBuf], tree: &Path) -> anyhow::Result<()> {
    let mut script = String::from("CREATE TABLE numbers (id INTEGER PRIMARY KEY, value TEXT);\nBEGIN;\n");
    let mut random = Random::new(3);
    for id in 0..ROWS {
        let value = random.below(1 << 32);
        writeln!(script, "INSERT INTO numbers VALUES ({id}, 'value {value:010} of the row {id}');")?;
    }
    script += "COMMIT;\n";
    let path = tree.with_extension("sql");
    fs::write(&path, script)?;
    run(program(&sqlite[0], tree).args(&sqlite[1..]).arg(DATABASE).stdin(Stdio::from(File::open(path)?)))
}

/// Updates of single rows, each a transaction of its own.
pub fn updates(count: usize) -> String {
    let mut random = Random::new(4);
    let update = |_| format!("UPDATE numbers SET value = 'new' WHERE id = {};\n", random.below(ROWS));
    (0..count).map(update).collect()
}

/// Moves each file to one of the lowers, and git's to the lowest.
fn distribute(tree: &Path, lowers: &[PathBuf]) -> anyhow::Result<()> {
    let mut random = Random::new(5);
    let mut todo = vec![PathBuf::new()];
    lowers.iter().try_for_each(fs::create_dir_all)?;
    while let Some(directory) = todo.pop() {
        let mut entries: Vec<_> = fs::read_dir(tree.join(&directory))?.collect::<Result<_, _>>()?;
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let path = directory.join(entry.file_name());
            if path == Path::new(".git") {
                fs::rename(entry.path(), lowers[LOWERS - 1].join(path))?;
            } else if entry.file_type()?.is_dir() {
                todo.push(path);
            } else {
                let lower = &lowers[random.below(LOWERS)];
                fs::create_dir_all(lower.join(&directory))?;
                fs::rename(entry.path(), lower.join(path))?;
            }
        }
    }
    Ok(fs::remove_dir_all(tree)?)
}
