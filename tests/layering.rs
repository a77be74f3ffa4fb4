//! The rules of the house: which module may use which, and what is confined to one of them.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules from the top to the bottom; a module may use those further down.
const FLOORS: [&str; 8] = ["main", "cli", "daemon", "config", "fuse", "union", "layer", "sys"];
/// Modules that all may use and that use none of the floors.
const LEAVES: [&str; 2] = ["error", "name"];
const LONGEST: usize = 600;

struct Source {
    /// Relative to `src`.
    path: PathBuf,
    /// Without comments, strings and characters.
    code: String,
    lines: usize,
}

impl Source {
    /// The module of the top level that the file belongs to.
    fn floor(&self) -> String {
        let first = self.path.components().next().expect("a path");
        Path::new(first.as_os_str()).with_extension("").to_string_lossy().into_owned()
    }

    /// How many `super` lead from the file's module to the crate's root.
    fn depth(&self) -> usize {
        let parts = self.path.components().count();
        match self.path.file_name().is_some_and(|name| name == "mod.rs") {
            true => parts - 1,
            false => parts,
        }
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut todo = vec![root.clone()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).expect("src") {
            let path = entry.expect("an entry of src").path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                found.push(Source {
                    path: path.strip_prefix(&root).expect("below src").to_owned(),
                    code: code_of(&text),
                    lines: text.lines().count(),
                });
            }
        }
    }
    assert!(found.len() > 10, "the sources are where they are expected");
    found
}

/// The text without comments and without what literals contain.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            '"' => string_length(rest),
            'r' if !code.ends_with(is_word) => raw_string_length(rest),
            '\'' => character_length(rest),
            _ => 0,
        };
        match skipped {
            0 => {
                code.push(first);
                rest = &rest[first.len_utf8()..];
            }
            length => {
                code.push(' ');
                rest = &rest[length..];
            }
        }
    }
    code
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// 0 if there is no raw string here.
fn raw_string_length(text: &str) -> usize {
    let hashes = text[1..].chars().take_while(|c| *c == '#').count();
    if !text[1 + hashes..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let start = hashes + 2;
    text[start..].find(&end).map_or(text.len(), |at| start + at + end.len())
}

/// 0 if this is a lifetime.
fn character_length(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => text[2..].find('\'').map_or(0, |end| end + 3),
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 0,
        },
        None => 0,
    }
}

/// What a path may go on with: the first names of `{a::b, c}` or of `a::b`.
fn first_names(rest: &str) -> Vec<String> {
    let rest = rest.trim_start();
    let Some(group) = rest.strip_prefix('{') else {
        return vec![rest.chars().take_while(|c| is_word(*c)).collect()];
    };
    let mut names = vec![String::new()];
    let (mut depth, mut naming) = (0, true);
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(String::new());
                naming = true;
            }
            c if is_word(c) && naming => names.last_mut().expect("one at least").push(c),
            c if c.is_whitespace() => {}
            _ => naming = false,
        }
    }
    names
}

/// The modules of the top level that a file uses.
fn uses(source: &Source) -> Vec<String> {
    let up = "super::".repeat(source.depth());
    ["crate::", "layerfs::", &up]
        .into_iter()
        .flat_map(|root| {
            source.code.match_indices(root).flat_map(move |(at, found)| {
                let before = &source.code[..at];
                match before.ends_with(is_word) || before.ends_with("::") {
                    true => Vec::new(),
                    false => first_names(&source.code[at + found.len()..]),
                }
            })
        })
        .filter(|name| FLOORS.contains(&name.as_str()) || LEAVES.contains(&name.as_str()))
        .collect()
}

/// Whether a word stands in the code.
fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(is_word) && !code[at + word.len()..].starts_with(is_word))
}

fn files_with(word: &str) -> Vec<PathBuf> {
    sources().into_iter().filter(|source| has_word(&source.code, word)).map(|source| source.path).collect()
}

#[test]
fn imports_point_downward() {
    let rank = |name: &str| FLOORS.iter().position(|floor| *floor == name);
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.path != Path::new("lib.rs")) {
        let own = source.floor();
        let known = rank(&own).is_some() || LEAVES.contains(&own.as_str());
        assert!(known, "{} is in no known module", source.path.display());
        for used in uses(source) {
            let allowed = match (rank(&own), rank(&used)) {
                (_, None) => true,
                (None, Some(_)) => false,
                (Some(own), Some(used)) => own <= used,
            };
            if !allowed {
                wrong.push(format!("{} uses {used}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn only_fuse_knows_the_transport() {
    let outside: Vec<PathBuf> = files_with("fuser").into_iter().filter(|path| !path.starts_with("fuse")).collect();
    assert!(outside.is_empty(), "{outside:?}");
}

#[test]
fn only_sys_is_unsafe() {
    let outside: Vec<PathBuf> = files_with("unsafe").into_iter().filter(|path| !path.starts_with("sys")).collect();
    assert!(outside.is_empty(), "{outside:?}");
}

/// Else a test could not have the call fail.
#[test]
fn layers_are_reached_through_sys() {
    let call = ["nix::unistd::", "nix::sys::stat::", "nix::sys::uio::", "nix::fcntl::open"];
    let direct = |code: &str| {
        call.iter().any(|call| {
            code.match_indices(call).any(|(at, found)| {
                let rest = code[at + found.len()..].trim_start_matches(is_word);
                rest.starts_with('(') && !code[at + found.len()..].starts_with("get")
            })
        })
    };
    let of_layers = |path: &Path| path.starts_with("layer") || path.starts_with("union");
    let found: Vec<PathBuf> = sources()
        .into_iter()
        .filter(|source| of_layers(&source.path) && direct(&source.code))
        .map(|source| source.path)
        .collect();
    assert!(found.is_empty(), "{found:?}");
    assert!(direct("nix::unistd::fsync(fd)") && !direct("nix::unistd::geteuid()"));
}

#[test]
fn one_module_knows_the_private_format() {
    let files = files_with("bincode");
    assert!(files.len() <= 1, "{files:?}");
}

#[test]
fn files_stay_readable() {
    let long: Vec<String> = sources()
        .iter()
        .filter(|source| source.lines > LONGEST)
        .map(|source| format!("{}: {} lines", source.path.display(), source.lines))
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn the_checks_see_what_they_look_for() {
    let source = Source {
        path: PathBuf::from("union/mod.rs"),
        code: code_of(
            "use crate::{fuse::Server, layer::{Stack, sys}, error};\n// crate::cli\n\
             fn f<'a>(c: char) -> &'a str { let _ = ('\"', '\\''); \"crate::main\" }\n\
             use super::sys::Fd; r#\"unsafe \"#; other::crate::daemon",
        ),
        lines: 3,
    };
    let mut found = uses(&source);
    found.sort();
    assert_eq!(found, ["error", "fuse", "layer", "sys"]);
    assert!(!has_word(&source.code, "unsafe"));
    assert!(has_word(&source.code, "str") && !has_word(&source.code, "rv"));
}
