//! Layers that somebody changes or moves about: underneath a mount, and between one mount and the next.

use std::fs;
use std::path::Path;

use nix::errno::Errno;

use crate::common::Test;
use crate::common::files::*;
use crate::common::tree::Tree;
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(with_timeout_0_changes_of_a_lower_are_seen_at_once),
        t!(otherwise_they_are_seen_after_a_remount),
        t!(an_upper_that_became_a_lower_shows_the_same_tree),
        t!(a_layer_added_below_or_above_changes_no_other_number),
    ]
}

/// Changes a lower behind the union's back.
fn change(lower: &Path) {
    fs::remove_file(lower.join("d/gone")).expect("remove");
    fs::write(lower.join("d/written"), "written behind its back").expect("write");
    fs::remove_file(lower.join("d/replaced")).expect("remove");
    put(lower.join("d/replaced"), "another file");
    put(lower.join("d/new"), "new");
    put(lower.join("dir/new"), "new");
    chmod(lower.join("d/mode"), 0o640);
    fs::remove_file(lower.join("d/link")).expect("remove");
    std::os::unix::fs::symlink("another", lower.join("d/link")).expect("symlink");
}

fn assert_changed(union: &Union) {
    let at = |name: &str| union.at(&format!("d/{name}"));
    assert_eq!(names(at("")), ["link", "mode", "new", "replaced", "written"]);
    fails(fs::metadata(at("gone")), Errno::ENOENT);
    assert_eq!(read(at("written")), "written behind its back");
    assert_eq!(stat(at("written")).len(), 23);
    assert_eq!(read(at("replaced")), "another file");
    assert_eq!(read(at("new")), "new");
    assert_eq!(read(union.at("dir/new")), "new");
    assert_eq!(mode(at("mode")), 0o640);
    assert_eq!(fs::read_link(at("link")).expect("readlink"), Path::new("another"));
}

fn lower_to_change() -> Union {
    let union = Union::new(2);
    for name in ["gone", "written", "replaced", "mode"] {
        put(union.lower(1, &format!("d/{name}")), name);
    }
    std::os::unix::fs::symlink("one", union.lower(1, "d/link")).expect("symlink");
    make_dir(union.lower(0, "d"));
    union
}

/// The kernel knows all of it before, missing names included.
fn look_at_everything(union: &Union) {
    for name in ["gone", "written", "replaced", "mode"] {
        assert_eq!(read(union.at(&format!("d/{name}"))), name);
    }
    fails(fs::metadata(union.at("d/new")), Errno::ENOENT);
    fails(fs::metadata(union.at("dir")), Errno::ENOENT);
    assert_eq!(fs::read_link(union.at("d/link")).expect("readlink"), Path::new("one"));
    assert_eq!(names(union.at("d")).len(), 5);
}

fn with_timeout_0_changes_of_a_lower_are_seen_at_once() {
    let mut union = lower_to_change().arguments(&["--timeout", "0"]);
    union.mount();
    look_at_everything(&union);
    change(&union.lower(1, ""));
    assert_changed(&union);
    append(union.at("d/written"), "!");
    assert_eq!(read(union.at("d/written")), "written behind its back!");
    union.umount();
}

/// In between what was known may be shown on, or be an error; it is never another object's.
fn otherwise_they_are_seen_after_a_remount() {
    // As by default, also where all tests run with timeout=0.
    let mut union = lower_to_change().arguments(&["--timeout", "3600"]);
    union.mount();
    look_at_everything(&union);
    change(&union.lower(1, ""));
    for name in ["gone", "replaced"] {
        if let Ok(content) = fs::read(union.at(&format!("d/{name}"))) {
            assert_eq!(content, name.as_bytes(), "pages that were read before");
        }
    }
    union.remount();
    assert_changed(&union);
    union.umount();
}

/// As an image is built: what was the upper is the top lower of the next mount, with all data in it or with marks that are
/// believed there.
fn an_upper_that_became_a_lower_shows_the_same_tree() {
    an_upper_becomes_a_lower(&["--metacopy", "off"], &[]);
    an_upper_becomes_a_lower(&[], &["--trusted-lowers"]);
}

fn an_upper_becomes_a_lower(first: &[&str], second: &[&str]) {
    let mut union = Union::new(2).arguments(first);
    for name in ["a/changed", "a/gone", "b/sub/file", "again/old", "moved", "merged/one", "kept"] {
        put(union.lower(1, name), name);
    }
    put(union.lower(0, "merged/two"), "two");
    union.mount();
    append(union.at("a/changed"), "!");
    fs::remove_file(union.at("a/gone")).expect("remove");
    fs::rename(union.at("b"), union.at("c")).expect("rename a directory");
    fs::remove_dir_all(union.at("again")).expect("remove");
    put(union.at("again/new"), "new");
    fs::rename(union.at("moved"), union.at("merged/moved")).expect("rename a file");
    fs::rename(union.at("merged"), union.at("a/merged")).expect("rename a merged directory");
    put(union.at("new"), "new");
    std::os::unix::fs::symlink("x", union.at("link")).expect("symlink");
    let (shown, new) = (Tree::of(&union.at("")).portable(), [ino(union.at("new")), ino(union.at("kept"))]);
    union.umount();
    let mut next = Union::new(0).lower_in(&union.upper("")).arguments(second);
    for lower in union.lowers() {
        next = next.lower_in(lower);
    }
    let before = next.lower_trees();
    // A union's root is upper's, where there is one.
    let time = mtime(union.upper(""));
    set_times(next.upper(""), time, time);
    next.mount();
    shown.assert_same(&Tree::of(&next.at("")).portable(), "with a new upper");
    // What was made in that upper, or never copied, keeps its number; a copy in a lower has its own.
    assert_eq!([ino(next.at("new")), ino(next.at("kept"))], new);
    append(next.at("a/changed"), "?");
    assert_eq!(read(next.at("a/changed")), "a/changed!?");
    fs::remove_dir_all(next.at("a/merged")).expect("remove");
    assert_eq!(names(next.at("a")), ["changed"]);
    next.assert_lasting();
    next.assert_lowers(&before);
}

fn a_layer_added_below_or_above_changes_no_other_number() {
    let mut union = Union::new(2);
    put(union.lower(0, "d/top"), "x");
    put(union.lower(1, "d/bottom"), "x");
    put(union.upper("own"), "x");
    union.mount();
    append(union.at("d/bottom"), "y");
    let paths = ["d/top", "d/bottom", "own"];
    let numbers = paths.map(|path| ino(union.at(path)));
    union.umount();
    let [more, below] = ["more", "below"].map(|name| union.root().join(name));
    put(more.join("other"), "x");
    put(below.join("d/top"), "hidden");
    let mut lowers = vec!["--lower".into(), more.into_os_string()];
    let command_line = union.command_line();
    lowers.extend(command_line[..4].iter().cloned());
    lowers.extend(["--lower".into(), below.into_os_string()]);
    lowers.extend(command_line[4..].iter().cloned());
    let mount = crate::common::mount::Mount::start(&lowers, &union.point());
    assert_eq!(names(union.at("")), ["d", "other", "own"]);
    assert_eq!(paths.map(|path| ino(union.at(path))), numbers);
    assert_eq!(read(union.at("d/top")), "x");
    mount.umount();
}
