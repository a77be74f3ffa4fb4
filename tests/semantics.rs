//! docs/SEMANTICS.md promises nothing without a test: each paragraph names some, and each that is named is there.

use std::fs;
use std::path::{Path, PathBuf};

const PROOF: &str = "Proved by:";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(root().join(path)).ok()
}

/// The paragraphs below the first heading of the second level; what stands before it introduces them.
fn paragraphs(document: &str) -> Vec<&str> {
    let start = document.find("\n## ").expect("a heading");
    document[start..]
        .split("\n\n")
        .map(str::trim)
        .filter(|block| !block.is_empty() && !block.starts_with('#'))
        .collect()
}

/// The names in backticks after the word that announces them.
fn proofs(paragraph: &str) -> Vec<&str> {
    let Some((_, names)) = paragraph.split_once(PROOF) else { return Vec::new() };
    names.split('`').skip(1).step_by(2).collect()
}

/// Where a test's module may be written: `mount::view` is tests/mount/view.rs, and `src::union::ino` is src/union/ino.rs.
fn sources(module: &[&str]) -> Vec<PathBuf> {
    let (top, rest) = module.split_first().expect("a module");
    let top = if *top == "src" { PathBuf::from("src") } else { Path::new("tests").join(top) };
    let path: PathBuf = rest.iter().fold(top, |path, part| path.join(part));
    vec![path.with_extension("rs"), path.join("mod.rs")]
}

/// Why a name is no test that runs, if so.
fn fault(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split("::").collect();
    let (function, module) = parts.split_last()?;
    if module.is_empty() {
        return Some(format!("{name}: which file?"));
    }
    let Some(code) = sources(module).iter().find_map(|path| text(path)) else {
        return Some(format!("{name}: none of {:?} is there", sources(module)));
    };
    let plain =
        code.contains(&format!("#[test]\nfn {function}()")) || code.contains(&format!("#[test]\n    fn {function}()"));
    let listed = code.contains(&format!("t!({function})")) && code.contains(&format!("fn {function}()"));
    if !plain && !listed {
        return Some(format!("{name}: no such test in {:?}", sources(module)));
    }
    // A module of a test program has to be one of its modules.
    if let [program, inner] = module
        && *program != "src"
    {
        let main = text(&Path::new("tests").join(program).with_extension("rs")).unwrap_or_default();
        let runs = main.contains(&format!("mod {inner};")) && (plain || main.contains(&format!("{inner}::tests()")));
        return (!runs).then(|| format!("{name}: tests/{program}.rs does not run {inner}"));
    }
    None
}

#[test]
fn every_promise_names_tests_that_exist() {
    let document = text(Path::new("docs/SEMANTICS.md")).expect("docs/SEMANTICS.md");
    let paragraphs = paragraphs(&document);
    assert!(paragraphs.len() > 20, "the document is read as it is written");
    let unproved: Vec<&&str> = paragraphs.iter().filter(|paragraph| proofs(paragraph).is_empty()).collect();
    assert!(unproved.is_empty(), "{unproved:#?}");
    let faults: Vec<String> = paragraphs.iter().flat_map(|paragraph| proofs(paragraph)).filter_map(fault).collect();
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn the_check_sees_what_it_looks_for() {
    let document = "# Title\n\nWords.\n\n## One\n\nA promise.\nProved by: `a::b`,\n`c::d`.\n\n## Two\n\nAnother.\n";
    let paragraphs = paragraphs(document);
    assert_eq!(paragraphs.len(), 2);
    assert_eq!(proofs(paragraphs[0]), ["a::b", "c::d"]);
    assert!(proofs(paragraphs[1]).is_empty());
    assert!(fault("mount::view::layers_are_merged").is_none());
    assert!(fault("semantics::the_check_sees_what_it_looks_for").is_none());
    for wrong in
        ["nonsense", "mount::view::no_such_test", "mount::view::tests", "mount::nowhere::x", "semantics::fault"]
    {
        assert!(fault(wrong).is_some(), "{wrong}");
    }
}
