//! Inode numbers and hard links: who is the same file, through copy-up, rename and remount.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::as_user;
use crate::common::others::OtherMount;
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(numbers_stay_through_everything),
        t!(numbers_are_unique_across_filesystems).root(),
        t!(numbers_of_new_objects_stay),
        t!(links_of_a_lower_file_are_one_file),
        t!(links_are_removed_one_by_one),
        t!(links_are_removed_without_a_copy),
        t!(links_last_over_a_remount),
        t!(links_to_lower_objects_are_made),
        t!(links_across_directories_and_renames),
        t!(links_are_counted_at_every_step),
        t!(a_stale_origin_makes_no_two_files_one).root(),
    ]
}

fn numbers(union: &Union, paths: &[&str]) -> Vec<u64> {
    paths.iter().map(|path| ino(union.at(path))).collect()
}

fn numbers_stay_through_everything() {
    let mut union = Union::new(2);
    put(union.lower(1, "file"), "x");
    put(union.lower(1, "d/inside"), "x");
    put(union.lower(0, "d/other"), "x");
    symlink("file", union.lower(1, "symlink")).expect("symlink");
    node(union.lower(1, "fifo"), SFlag::S_IFIFO, (0, 0));
    put(union.upper("own"), "x");
    union.mount();
    let before = ["file", "d", "d/inside", "d/other", "symlink", "fifo", "own", ""];
    let first = numbers(&union, &before);
    append(union.at("file"), "y");
    chmod(union.at("d"), 0o700);
    chmod(union.at("fifo"), 0o600);
    set_times(union.at("symlink"), (1, 1), (2, 2));
    append(union.at("d/inside"), "y");
    assert_eq!(numbers(&union, &before), first, "after copy-up");
    for name in ["file", "d", "symlink", "fifo", "own"] {
        fs::rename(union.at(name), union.at(&format!("{name}2"))).expect("rename");
    }
    let after = ["file2", "d2", "d2/inside", "d2/other", "symlink2", "fifo2", "own2", ""];
    assert_eq!(numbers(&union, &after), first, "after rename");
    union.remount();
    assert_eq!(numbers(&union, &after), first, "after a remount");
    append(union.at("d2/other"), "y");
    union.remount();
    assert_eq!(numbers(&union, &after), first, "after another");
    union.umount();
}

fn numbers_are_unique_across_filesystems() {
    let outer = Union::new(0);
    let mut places: Vec<PathBuf> = Vec::new();
    let mut mounts = Vec::new();
    for i in 0..3 {
        let place = outer.root().join(format!("fs{i}"));
        make_dir(&place);
        // Fresh filesystems count their inodes from the same number on.
        mounts.push(OtherMount::memory("tmpfs", "size=4m,inode64", &place));
        for j in 0..20 {
            put(place.join(format!("layer/d/{i}-{j}")), "x");
        }
        places.push(place);
    }
    let mut union = Union::new(1).upper_in(&places[0]);
    for place in &places {
        union = union.lower_in(&place.join("layer"));
    }
    put(union.lower(0, "d/here"), "x");
    union.mount();
    let collect = |union: &Union| {
        let mut seen = BTreeMap::new();
        for name in names(union.at("d")) {
            let number = ino(union.at("d").join(&name));
            if let Some(other) = seen.insert(number, name.clone()) {
                panic!("{name} and {other} both have the number {number}");
            }
        }
        seen
    };
    let first = collect(&union);
    assert_eq!(first.len(), 61);
    for name in first.values() {
        append(union.at("d").join(name), "y");
    }
    for i in 0..20 {
        put(union.at(&format!("d/new{i}")), "new");
    }
    let all = collect(&union);
    assert_eq!(all.len(), 81);
    for (number, name) in &first {
        assert_eq!(all.get(number), Some(name));
    }
    union.remount();
    assert_eq!(collect(&union), all);
    union.umount();
    drop(union);
}

fn numbers_of_new_objects_stay() {
    let mut union = Union::new(1);
    put(union.lower(0, "d/low"), "x");
    union.mount();
    put(union.at("d/file"), "x");
    make_dir(union.at("new/dir"));
    symlink("x", union.at("new/symlink")).expect("symlink");
    let paths = ["d", "d/file", "new", "new/dir", "new/symlink"];
    let first = numbers(&union, &paths);
    union.remount();
    assert_eq!(numbers(&union, &paths), first);
    union.umount();
}

fn assert_links(union: &Union, paths: &[&str], content: &str) {
    let first = ino(union.at(paths[0]));
    for path in paths {
        let found = stat(union.at(path));
        assert_eq!(found.ino(), first, "{path}");
        assert_eq!(found.nlink(), paths.len() as u64, "{path}");
        assert_eq!(read(union.at(path)), content, "{path}");
    }
}

fn links_of_a_lower_file_are_one_file() {
    let mut union = Union::new(2);
    put(union.lower(1, "a"), "x");
    make_dir(union.lower(1, "d"));
    fs::hard_link(union.lower(1, "a"), union.lower(1, "b")).expect("link");
    fs::hard_link(union.lower(1, "a"), union.lower(1, "d/c")).expect("link");
    let before = union.lower_trees();
    union.mount();
    let all = ["a", "b", "d/c"];
    assert_links(&union, &all, "x");
    let held = open(union.at("d/c"));
    append(union.at("b"), "y");
    assert_links(&union, &all, "xy");
    assert_eq!(read_all(&held), "xy");
    drop(held);
    edit(union.at("a")).write_all_at(b"X", 0).expect("write");
    assert_links(&union, &all, "Xy");
    chmod(union.at("d/c"), 0o600);
    assert_eq!(mode(union.at("a")), 0o600);
    mark(union.at("a"), "user.note", "shared");
    assert_eq!(marked(union.at("b"), "user.note").as_deref(), Some("shared"));
    assert_links(&union, &all, "Xy");
    union.assert_lasting();
    union.assert_lowers(&before);
}

fn links_are_removed_one_by_one() {
    let mut union = Union::new(1);
    for set in ["before", "after"] {
        put(union.lower(0, &format!("{set}/a")), "x");
        for name in ["b", "c"] {
            let path = format!("{set}/{name}");
            fs::hard_link(union.lower(0, &format!("{set}/a")), union.lower(0, &path)).expect("link");
        }
    }
    let before = union.lower_trees();
    union.mount();
    append(union.at("before/a"), "y");
    for (set, content) in [("before", "xy"), ("after", "x")] {
        fs::remove_file(union.at(&format!("{set}/a"))).expect("remove");
        let left = [format!("{set}/b"), format!("{set}/c")];
        assert_links(&union, &[&left[0], &left[1]], content);
    }
    append(union.at("after/c"), "z");
    assert_links(&union, &["after/b", "after/c"], "xz");
    union.assert_lasting();
    union.mount();
    assert_links(&union, &["before/b", "before/c"], "xy");
    fs::remove_file(union.at("before/b")).expect("remove");
    assert_links(&union, &["before/c"], "xy");
    fs::remove_file(union.at("before/c")).expect("remove the last");
    assert_eq!(names(union.at("before")), Vec::<String>::new());
    union.assert_lasting();
    union.assert_lowers(&before);
}

/// The kernel's overlay would count the names of a lower file that was never copied up by the lower alone.
fn links_are_removed_without_a_copy() {
    let mut union = Union::new(1);
    put(union.lower(0, "a"), "x");
    for name in ["b", "c"] {
        fs::hard_link(union.lower(0, "a"), union.lower(0, name)).expect("link");
    }
    let before = union.lower_trees();
    union.mount();
    fs::remove_file(union.at("a")).expect("remove");
    assert_links(&union, &["b", "c"], "x");
    union.remount();
    assert_links(&union, &["b", "c"], "x");
    assert!(!union.upper("b").exists() && !union.upper("c").exists(), "nothing was copied");
    append(union.at("b"), "y");
    assert_links(&union, &["b", "c"], "xy");
    union.remount();
    assert_links(&union, &["b", "c"], "xy");
    union.assert_lowers(&before);
}

fn links_last_over_a_remount() {
    let mut union = Union::new(1);
    put(union.lower(0, "a"), "x");
    fs::hard_link(union.lower(0, "a"), union.lower(0, "b")).expect("link");
    fs::hard_link(union.lower(0, "a"), union.lower(0, "c")).expect("link");
    union.mount();
    append(union.at("a"), "y");
    let number = ino(union.at("a"));
    union.remount();
    assert_links(&union, &["a", "b", "c"], "xy");
    assert_eq!(ino(union.at("b")), number);
    append(union.at("b"), "z");
    assert_links(&union, &["a", "b", "c"], "xyz");
    union.remount();
    assert_links(&union, &["a", "b", "c"], "xyz");
    union.assert_lasting();
}

fn links_to_lower_objects_are_made() {
    let mut union = Union::new(2);
    put(union.lower(1, "file"), "x");
    symlink("target", union.lower(1, "symlink")).expect("symlink");
    node(union.lower(1, "fifo"), SFlag::S_IFIFO, (0, 0));
    put(union.lower(0, "d/over"), "old");
    put(union.upper("own"), "own");
    let before = union.lower_trees();
    union.mount();
    for name in ["file", "symlink", "fifo", "own"] {
        let new = union.at(&format!("d/{name}"));
        let number = ino(union.at(name));
        fs::hard_link(union.at(name), &new).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(ino(&new), number, "{name}");
        assert_eq!(ino(union.at(name)), number, "{name}");
        assert_eq!(stat(&new).nlink(), 2, "{name}");
        fails(fs::hard_link(union.at(name), union.at("d/over")), Errno::EEXIST);
    }
    fails(fs::hard_link(union.at("d"), union.at("d2")), Errno::EPERM);
    append(union.at("d/file"), "y");
    assert_links(&union, &["file", "d/file"], "xy");
    fs::remove_file(union.at("file")).expect("remove");
    assert_links(&union, &["d/file"], "xy");
    fs::hard_link(union.at("d/file"), union.at("file")).expect("over a whiteout");
    assert_links(&union, &["file", "d/file"], "xy");
    union.assert_lasting();
    union.assert_lowers(&before);
}

fn links_across_directories_and_renames() {
    let mut union = Union::new(1);
    put(union.lower(0, "d/a"), "x");
    make_dir(union.lower(0, "e"));
    fs::hard_link(union.lower(0, "d/a"), union.lower(0, "e/b")).expect("link");
    put(union.lower(0, "victim"), "v");
    union.mount();
    let number = ino(union.at("d/a"));
    fs::rename(union.at("d"), union.at("moved")).expect("rename a directory");
    fs::rename(union.at("e/b"), union.at("victim")).expect("rename a link");
    assert_links(&union, &["moved/a", "victim"], "x");
    append(union.at("moved/a"), "y");
    assert_links(&union, &["moved/a", "victim"], "xy");
    assert_eq!(ino(union.at("victim")), number);
    union.remount();
    assert_links(&union, &["moved/a", "victim"], "xy");
    assert_eq!(ino(union.at("victim")), number);
    union.assert_lasting();
}

/// A change of names in a directory.
type NameChange = fn(&Path) -> std::io::Result<()>;

/// After each step a later mount, and the kernel's overlay, show what this one did.
fn links_are_counted_at_every_step() {
    let steps: [(NameChange, &[&str]); 8] = [
        (|_| Ok(()), &["a", "b", "d/c"]),
        (|root| fs::hard_link(root.join("b"), root.join("e")), &["a", "b", "d/c", "e"]),
        (|root| fs::remove_file(root.join("a")), &["b", "d/c", "e"]),
        (|root| fs::rename(root.join("d/c"), root.join("other")), &["b", "e", "other"]),
        (|root| fs::rename(root.join("b"), root.join("e")), &["b", "e", "other"]),
        (
            |root| fs::write(root.join("new"), "n").and_then(|()| fs::rename(root.join("new"), root.join("e"))),
            &["b", "other"],
        ),
        (|root| fs::hard_link(root.join("other"), root.join("a")), &["a", "b", "other"]),
        (|root| fs::remove_file(root.join("b")).and_then(|()| fs::remove_file(root.join("a"))), &["other"]),
    ];
    let mut union = Union::new(1);
    put(union.lower(0, "a"), "x");
    put(union.lower(0, "other"), "other");
    make_dir(union.lower(0, "d"));
    fs::hard_link(union.lower(0, "a"), union.lower(0, "b")).expect("link");
    fs::hard_link(union.lower(0, "a"), union.lower(0, "d/c")).expect("link");
    let before = union.lower_trees();
    union.mount();
    append(union.at("d/c"), "y");
    for (number, (step, left)) in steps.into_iter().enumerate() {
        step(&union.at("")).unwrap_or_else(|error| panic!("step {number}: {error}"));
        assert_links(&union, left, "xy");
        union.assert_lasting();
        union.mount();
        assert_links(&union, left, "xy");
    }
    union.umount();
    union.assert_lowers(&before);
}

/// An upper copied together with its marks to other layers: the marks mean nothing there.
fn a_stale_origin_makes_no_two_files_one() {
    let mut union = Union::new(1);
    put(union.lower(0, "a"), "a");
    put(union.lower(0, "b"), "b");
    union.mount();
    append(union.at("a"), "!");
    union.umount();
    let origin = crate::common::sys::get_xattr(&union.upper("a"), "trusted.overlay.origin");
    let origin = origin.expect("a copied-up file carries its origin");
    // Two files that both claim to come from the same lower one.
    for name in ["forged1", "forged2"] {
        put(union.upper(name), name);
        crate::common::sys::set_xattr(&union.upper(name), "trusted.overlay.origin", &origin, 0).expect("set");
    }
    union.mount();
    let all = numbers(&union, &["a", "b", "forged1", "forged2"]);
    for (i, one) in all.iter().enumerate() {
        assert!(!all[..i].contains(one), "{all:?}");
    }
    for name in ["forged1", "forged2"] {
        assert_eq!(read(union.at(name)), name);
        append(union.at(name), "!");
        assert_eq!(read(union.at(name)), format!("{name}!"));
    }
    assert_eq!(read(union.at("a")), "a!");
    as_user(1000, 1000, || assert_eq!(read(union.at("b")), "b"));
    union.umount();
}
