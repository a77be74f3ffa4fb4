//! Rename: of files and directories from any layer, with and without flags.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::errno::Errno;

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::{may_mount, not_root};
use crate::common::sys::{EXCHANGE, NOREPLACE, WHITEOUT, rename2};
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(files_move),
        t!(lower_directories_move),
        t!(merged_directories_move),
        t!(directories_move_again_and_again),
        t!(a_moved_directory_covers_what_was_there),
        t!(noreplace),
        t!(exchange_files),
        t!(exchange_directories),
        t!(exchange_a_file_and_a_directory),
        t!(whiteout_flag).needs(no_mknod),
        t!(impossible_flags),
        t!(links_of_one_file_do_not_move),
        t!(ancestors_move_beside_everything_else),
    ]
}

/// renameat2(2): RENAME_WHITEOUT asks for the right to make devices.
fn no_mknod() -> Option<String> {
    (!may_mount()).then(|| "RENAME_WHITEOUT needs CAP_MKNOD".to_owned())
}

fn files_move() {
    let mut union = Union::new(2);
    for name in ["a", "b", "c", "over", "d/under", "d/e/deep"] {
        put(union.lower(1, name), name);
    }
    symlink("a", union.lower(0, "link")).expect("symlink");
    put(union.upper("own"), "own");
    let before = union.lower_trees();
    union.mount();
    let numbers: Vec<u64> = ["a", "b", "c", "link", "own"].map(|name| ino(union.at(name))).into();
    let move_to = |from: &str, to: &str| {
        fs::rename(union.at(from), union.at(to)).unwrap_or_else(|e| panic!("{from} to {to}: {e}"));
        fails(fs::symlink_metadata(union.at(from)), Errno::ENOENT);
    };
    move_to("a", "new");
    move_to("b", "d/e/new");
    move_to("c", "over");
    move_to("link", "d/under");
    move_to("own", "d/e/deep");
    let moved = ["new", "d/e/new", "over", "d/under", "d/e/deep"].map(|name| ino(union.at(name)));
    assert_eq!(numbers, moved);
    assert_eq!(read(union.at("new")), "a");
    assert_eq!(read(union.at("d/e/new")), "b");
    assert_eq!(read(union.at("over")), "c");
    assert_eq!(fs::read_link(union.at("d/under")).expect("readlink"), PathBuf::from("a"));
    assert_eq!(read(union.at("d/e/deep")), "own");
    assert_eq!(names(union.at("")), ["d", "new", "over"]);
    // A renamed file is written like any other.
    append(union.at("new"), "!");
    assert_eq!(read(union.at("new")), "a!");
    union.assert_lasting();
    assert!(is_whiteout(union.upper("a")));
    assert!(!exists(union.upper("own")));
    union.assert_lowers(&before);
}

fn lower_directories_move() {
    let mut union = Union::new(2);
    put(union.lower(1, "d/a"), "a");
    put(union.lower(1, "d/sub/b"), "b");
    put(union.lower(1, "other/c"), "c");
    let before = union.lower_trees();
    union.mount();
    let numbers = ["d", "d/a", "d/sub", "d/sub/b"].map(|name| ino(union.at(name)));
    fs::rename(union.at("d"), union.at("e")).expect("rename");
    fails(fs::metadata(union.at("d")), Errno::ENOENT);
    assert_eq!(numbers, ["e", "e/a", "e/sub", "e/sub/b"].map(|name| ino(union.at(name))));
    assert_eq!(names(union.at("e")), ["a", "sub"]);
    assert_eq!(read(union.at("e/sub/b")), "b");
    append(union.at("e/sub/b"), "!");
    put(union.at("e/new"), "new");
    fs::remove_file(union.at("e/a")).expect("remove");
    // What is made under the old name has nothing of the old directory.
    make_dir(union.at("d"));
    assert_eq!(names(union.at("d")), Vec::<String>::new());
    put(union.at("d/a"), "another");
    // Into another directory, and what lies in it out of it.
    fs::rename(union.at("e"), union.at("other/e")).expect("rename");
    fs::rename(union.at("other/e/sub"), union.at("sub")).expect("rename");
    assert_eq!(names(union.at("")), ["d", "other", "sub"]);
    assert_eq!(names(union.at("other/e")), ["new"]);
    assert_eq!(read(union.at("sub/b")), "b!");
    union.assert_lasting();
    union.mount();
    assert_eq!(names(union.at("d")), ["a"]);
    assert_eq!(read(union.at("d/a")), "another");
    union.umount();
    union.assert_lowers(&before);
}

fn merged_directories_move() {
    let mut union = Union::new(3);
    put(union.lower(2, "d/bottom"), "2");
    put(union.lower(1, "d/middle"), "1");
    put(union.lower(0, "d/top"), "0");
    put(union.upper("d/upper"), "u");
    put(union.lower(2, "d/sub/one"), "2");
    put(union.lower(1, "d/sub/two"), "1");
    put(union.lower(2, "d/hidden"), "2");
    whiteout(union.lower(0, "d/hidden"));
    let before = union.lower_trees();
    union.mount();
    let all = ["bottom", "middle", "sub", "top", "upper"];
    assert_eq!(names(union.at("d")), all);
    let number = ino(union.at("d"));
    fs::rename(union.at("d"), union.at("e")).expect("rename");
    assert_eq!(names(union.at("e")), all);
    assert_eq!(names(union.at("e/sub")), ["one", "two"]);
    assert_eq!(ino(union.at("e")), number);
    fs::rename(union.at("e/sub"), union.at("e/sub2")).expect("rename");
    fs::rename(union.at("e/bottom"), union.at("e/sub2/bottom")).expect("rename");
    put(union.at("e/hidden"), "back");
    assert_eq!(names(union.at("e/sub2")), ["bottom", "one", "two"]);
    union.assert_lasting();
    let redirect = marked(union.upper("e"), "trusted.overlay.redirect");
    let due = not_root().is_none();
    assert!(redirect.is_some() || !due, "a mark that the kernel's overlay understands");
    union.assert_lowers(&before);
}

fn directories_move_again_and_again() {
    let mut union = Union::new(2);
    put(union.lower(1, "a/b/c/file"), "x");
    put(union.lower(0, "a/b/other"), "y");
    union.mount();
    let number = ino(union.at("a/b/c"));
    fs::rename(union.at("a/b/c"), union.at("c")).expect("out");
    fs::rename(union.at("a/b"), union.at("c/b")).expect("the old parent into it");
    fs::rename(union.at("c"), union.at("a/c")).expect("all of it into the grandparent");
    fs::rename(union.at("a"), union.at("z")).expect("the grandparent");
    for i in 0..5 {
        fs::rename(union.at("z/c"), union.at(&format!("z/c{i}"))).expect("there");
        fs::rename(union.at(&format!("z/c{i}")), union.at("z/c")).expect("and back");
    }
    assert_eq!(names(union.at("z/c")), ["b", "file"]);
    assert_eq!(names(union.at("z/c/b")), ["other"]);
    assert_eq!(ino(union.at("z/c")), number);
    append(union.at("z/c/file"), "!");
    union.remount();
    assert_eq!(ino(union.at("z/c")), number);
    fs::rename(union.at("z/c"), union.at("top")).expect("after a remount");
    assert_eq!(read(union.at("top/file")), "x!");
    fails(fs::rename(union.at("top"), union.at("top/b/inside")), Errno::EINVAL);
    union.assert_lasting();
}

fn a_moved_directory_covers_what_was_there() {
    let mut union = Union::new(2);
    for target in ["t1", "t2", "t3"] {
        put(union.lower(1, &format!("{target}/hidden")), "x");
        put(union.lower(0, &format!("{target}/sub/hidden")), "x");
    }
    put(union.lower(1, "lower/a"), "a");
    put(union.lower(0, "merged/b"), "b");
    put(union.upper("merged/c"), "c");
    put(union.upper("pure/d"), "d");
    union.mount();
    for (from, to, shown) in [("lower", "t1", vec!["a"]), ("merged", "t2", vec!["b", "c"]), ("pure", "t3", vec!["d"])] {
        fails(fs::rename(union.at(from), union.at(to)), Errno::ENOTEMPTY);
        fs::remove_file(union.at(to).join("hidden")).expect("remove");
        fs::remove_dir_all(union.at(to).join("sub")).expect("remove");
        fs::rename(union.at(from), union.at(to)).expect("over an empty directory");
        assert_eq!(names(union.at(to)), shown);
    }
    assert_eq!(names(union.at("")), ["t1", "t2", "t3"]);
    union.assert_lasting();
}

fn noreplace() {
    let mut union = Union::new(1);
    for name in ["a", "b", "dir/x"] {
        put(union.lower(0, name), name);
    }
    put(union.upper("own"), "own");
    union.mount();
    for target in ["b", "own", "dir"] {
        fails(rename2(&union.at("a"), &union.at(target), NOREPLACE), Errno::EEXIST);
    }
    rename2(&union.at("a"), &union.at("new"), NOREPLACE).expect("nothing there");
    rename2(&union.at("dir"), &union.at("a"), NOREPLACE).expect("over a whiteout");
    assert_eq!(names(union.at("a")), ["x"]);
    assert_eq!(read(union.at("new")), "a");
    assert_eq!(names(union.at("")), ["a", "b", "new", "own"]);
    union.assert_lasting();
}

fn exchange_files() {
    let mut union = Union::new(1);
    put(union.lower(0, "low1"), "low1");
    put(union.lower(0, "d/low2"), "low2");
    put(union.upper("up1"), "up1");
    put(union.upper("d/up2"), "up2");
    let before = union.lower_trees();
    union.mount();
    let pairs = [("low1", "d/low2"), ("up1", "d/up2"), ("low1", "up1"), ("d/up2", "d/low2")];
    for (a, b) in pairs {
        let was = (read(union.at(a)), read(union.at(b)), ino(union.at(a)), ino(union.at(b)));
        rename2(&union.at(a), &union.at(b), EXCHANGE).unwrap_or_else(|e| panic!("{a}, {b}: {e}"));
        let is = (read(union.at(b)), read(union.at(a)), ino(union.at(b)), ino(union.at(a)));
        assert_eq!(was, is, "{a}, {b}");
    }
    fails(rename2(&union.at("low1"), &union.at("missing"), EXCHANGE), Errno::ENOENT);
    fails(rename2(&union.at("missing"), &union.at("low1"), EXCHANGE), Errno::ENOENT);
    assert_eq!(names(union.at("")), ["d", "low1", "up1"]);
    assert_eq!(names(union.at("d")), ["low2", "up2"]);
    union.assert_lasting();
    union.assert_lowers(&before);
}

fn exchange_directories() {
    let mut union = Union::new(2);
    put(union.lower(1, "low/a"), "a");
    put(union.lower(1, "merged/b"), "b");
    put(union.lower(0, "merged/c"), "c");
    put(union.upper("pure/d"), "d");
    let before = union.lower_trees();
    union.mount();
    let swap = |a: &str, b: &str| {
        let was = (names(union.at(a)), names(union.at(b)), ino(union.at(a)), ino(union.at(b)));
        rename2(&union.at(a), &union.at(b), EXCHANGE).unwrap_or_else(|e| panic!("{a}, {b}: {e}"));
        let is = (names(union.at(b)), names(union.at(a)), ino(union.at(b)), ino(union.at(a)));
        assert_eq!(was, is, "{a}, {b}");
    };
    swap("low", "merged");
    swap("low", "pure");
    swap("merged", "pure");
    union.assert_lasting();
    union.assert_lowers(&before);
}

fn exchange_a_file_and_a_directory() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "file");
    put(union.lower(0, "dir/inside"), "inside");
    put(union.upper("up-file"), "up-file");
    put(union.upper("up-dir/inside"), "up-inside");
    union.mount();
    rename2(&union.at("file"), &union.at("dir"), EXCHANGE).expect("both lower");
    rename2(&union.at("up-file"), &union.at("file"), EXCHANGE).expect("a lower directory");
    rename2(&union.at("dir"), &union.at("up-dir"), EXCHANGE).expect("a lower file");
    assert_eq!(read(union.at("file")), "up-file");
    assert_eq!(read(union.at("up-file/inside")), "inside");
    assert_eq!(read(union.at("dir/inside")), "up-inside");
    assert_eq!(read(union.at("up-dir")), "file");
    assert_eq!(names(union.at("dir")), ["inside"]);
    union.assert_lasting();
}

/// The caller, another overlay for example, asks for a whiteout under the old name: it has to see
/// it, and nothing below may shine through.
fn whiteout_flag() {
    let mut union = Union::new(1);
    put(union.lower(0, "low"), "low");
    put(union.upper("up"), "up");
    put(union.lower(0, "dir/x"), "x");
    union.mount();
    for (from, to) in [("low", "low2"), ("up", "up2"), ("dir", "dir2")] {
        rename2(&union.at(from), &union.at(to), WHITEOUT).unwrap_or_else(|e| panic!("{from}: {e}"));
        let left = stat(union.at(from));
        assert!(left.file_type().is_char_device(), "{from}");
        assert_eq!(left.rdev(), 0, "{from}");
    }
    assert_eq!(read(union.at("low2")), "low");
    assert_eq!(read(union.at("up2")), "up");
    assert_eq!(names(union.at("dir2")), ["x"]);
    assert_eq!(names(union.at("")), ["dir", "dir2", "low", "low2", "up", "up2"]);
    union.remount();
    assert_eq!(names(union.at("")), ["dir", "dir2", "low", "low2", "up", "up2"]);
    for name in ["dir", "low", "up"] {
        assert_eq!(stat(union.at(name)).rdev(), 0);
        fs::remove_file(union.at(name)).expect("a whiteout of the caller's is removed");
    }
    assert_eq!(names(union.at("")), ["dir2", "low2", "up2"]);
    union.umount();
}

fn impossible_flags() {
    let mut union = Union::new(1);
    put(union.lower(0, "a"), "a");
    put(union.lower(0, "b"), "b");
    union.mount();
    let (a, b) = (union.at("a"), union.at("b"));
    fails(rename2(&a, &b, NOREPLACE | EXCHANGE), Errno::EINVAL);
    fails(rename2(&a, &b, EXCHANGE | WHITEOUT), Errno::EINVAL);
    fails(rename2(&a, &b, 1 << 10), Errno::EINVAL);
    assert_eq!((read(&a), read(&b)), ("a".to_owned(), "b".to_owned()));
    union.umount();
}

/// rename(2): if both names are links of one file, nothing happens.
fn links_of_one_file_do_not_move() {
    let mut union = Union::new(1);
    put(union.lower(0, "a"), "a");
    fs::hard_link(union.lower(0, "a"), union.lower(0, "b")).expect("link");
    put(union.upper("c"), "c");
    fs::hard_link(union.upper("c"), union.upper("d")).expect("link");
    union.mount();
    for (from, to) in [("a", "b"), ("c", "d")] {
        fs::rename(union.at(from), union.at(to)).expect("rename");
        assert_eq!(ino(union.at(from)), ino(union.at(to)));
        assert_eq!(stat(union.at(from)).nlink(), 2);
    }
    assert_eq!(names(union.at("")), ["a", "b", "c", "d"]);
    union.umount();
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn ancestors_move_beside_everything_else() {
    let mut union = Union::new(2);
    for i in 0..200 {
        put(union.lower(i % 2, &format!("top/sub/{i}")), "x");
    }
    make_dir(union.lower(0, "top/sub/dirs"));
    union.mount();
    // Paths go through whichever name the ancestor has: a descriptor stays valid throughout.
    let inside = open(union.at("top/sub"));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (a, b) = (union.at("top"), union.at("other"));
            while !done.load(Ordering::Relaxed) {
                fs::rename(&a, &b).expect("rename");
                fs::rename(&b, &a).expect("rename back");
            }
        });
        // Also when an assertion fails: the other thread has to end.
        let _stop = Stop(&done);
        let through = |name: String| PathBuf::from(format!("/proc/self/fd/{}/{name}", inside.as_raw_fd()));
        for i in 0..200 {
            append(through(i.to_string()), "y");
            assert_eq!(read(through(i.to_string())), "xy");
            fs::rename(through(i.to_string()), through(format!("dirs/{i}"))).expect("rename");
        }
    });
    drop(inside);
    assert_eq!(names(union.at("top/sub")), ["dirs"]);
    assert_eq!(names(union.at("top/sub/dirs")).len(), 200);
    union.remount();
    assert_eq!(names(union.at("top/sub/dirs")).len(), 200);
    assert_eq!(read(union.at("top/sub/dirs/77")), "xy");
    union.umount();
}
