//! The merged view: which layer wins, and what whiteouts and opaque directories hide.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::namespace;
use crate::common::sys;
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(layers_are_merged),
        t!(listed_types_and_numbers_are_those_of_stat),
        t!(without_upper_nothing_can_be_written),
        t!(deleting_leaves_whiteouts),
        t!(names_come_back_over_whiteouts),
        t!(a_directory_made_again_is_empty),
        t!(merged_directories_are_removed_when_empty),
        t!(symlinks_in_layers_are_never_followed),
        t!(odd_names),
        t!(changes_are_seen_at_once),
    ]
}

fn layers_are_merged() {
    let mut union = Union::new(3);
    put(union.lower(2, "a/one"), "from 2");
    put(union.lower(1, "a/one"), "from 1");
    put(union.lower(1, "a/two"), "two");
    put(union.lower(0, "a/three"), "three");
    put(union.upper("a/four"), "four");
    put(union.lower(1, "file-below"), "hidden");
    put(union.lower(0, "file-below/inside"), "a directory covers a file");
    put(union.lower(2, "dir-below/inside"), "hidden");
    put(union.lower(1, "dir-below"), "a file covers a directory");
    put(union.lower(2, "cut/bottom"), "hidden");
    put(union.lower(1, "cut"), "hidden, and cuts the directory below off");
    put(union.lower(0, "cut/top"), "top");
    union.mount();

    assert_eq!(names(union.at("a")), ["four", "one", "three", "two"]);
    assert_eq!(read(union.at("a/one")), "from 1");
    assert_eq!(read(union.at("a/four")), "four");
    assert_eq!(names(union.at("file-below")), ["inside"]);
    assert_eq!(read(union.at("dir-below")), "a file covers a directory");
    assert_eq!(names(union.at("cut")), ["top"]);
    assert_eq!(names(union.at("")), ["a", "cut", "dir-below", "file-below"]);
    fails(fs::metadata(union.at("cut/bottom")), Errno::ENOENT);
    fails(fs::metadata(union.at("dir-below/inside")), Errno::ENOTDIR);
    union.umount();
}

fn listed_types_and_numbers_are_those_of_stat() {
    let mut union = Union::new(2);
    let fill = |directory: std::path::PathBuf, prefix: &str| {
        make_dir(&directory);
        let at = |name: &str| directory.join(format!("{prefix}{name}"));
        put(at("file"), "");
        make_dir(at("dir"));
        symlink("target", at("symlink")).expect("symlink");
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRUSR).expect("mkfifo");
        drop(UnixListener::bind(at("socket")).expect("socket"));
    };
    fill(union.lower(1, "merged"), "low-");
    fill(union.lower(0, "merged"), "mid-");
    fill(union.upper("merged"), "up-");
    fill(union.lower(1, "single"), "");
    union.mount();

    for (directory, count) in [("merged", 15), ("single", 5)] {
        let open = open(union.at(directory));
        let mut seen = Vec::new();
        loop {
            let batch = sys::getdents(&open, 4096).expect("getdents");
            if batch.is_empty() {
                break;
            }
            seen.extend(batch);
        }
        let dots = |name: &str| seen.iter().filter(|entry| entry.name == name).count();
        assert_eq!((dots("."), dots("..")), (1, 1), "in {directory}");
        assert_eq!(seen.len(), count + 2, "in {directory}");
        for entry in seen.iter().filter(|entry| entry.name != "." && entry.name != "..") {
            let found = stat(union.at(directory).join(&entry.name));
            assert_eq!(u32::from(entry.kind) << 12, found.mode() & libc::S_IFMT, "{entry:?}");
            assert_eq!(entry.ino, found.ino(), "{entry:?}");
        }
        assert_eq!(seen.iter().find(|entry| entry.name == ".").map(|entry| entry.ino), Some(ino(union.at(directory))));
    }
    union.umount();
}

fn without_upper_nothing_can_be_written() {
    let mut union = Union::new(2).read_only();
    put(union.lower(1, "d/file"), "content");
    put(union.lower(0, "d/other"), "content");
    let before = union.lower_trees();
    union.mount();
    let file = union.at("d/file");
    assert_eq!(read(&file), "content");
    assert_eq!(names(union.at("d")), ["file", "other"]);
    fails(fs::OpenOptions::new().write(true).open(&file), Errno::EROFS);
    fails(fs::remove_file(&file), Errno::EROFS);
    fails(fs::create_dir(union.at("d/new")), Errno::EROFS);
    fails(fs::write(union.at("d/new"), "x"), Errno::EROFS);
    fails(fs::rename(&file, union.at("d/new")), Errno::EROFS);
    fails(fs::set_permissions(&file, stat(&file).permissions()), Errno::EROFS);
    fails(sys::set_xattr(&file, "user.x", b"y", 0), Errno::EROFS);
    union.umount();
    union.assert_lowers(&before);
}

fn deleting_leaves_whiteouts() {
    let mut union = Union::new(2);
    put(union.lower(1, "d/file"), "x");
    put(union.lower(1, "d/dir/inside"), "x");
    symlink("file", union.lower(0, "link")).expect("symlink");
    put(union.upper("d/upper-only"), "x");
    let before = union.lower_trees();
    union.mount();
    fs::remove_file(union.at("d/file")).expect("file");
    fs::remove_dir_all(union.at("d/dir")).expect("dir");
    fs::remove_file(union.at("link")).expect("link");
    fs::remove_file(union.at("d/upper-only")).expect("upper-only");
    for name in ["d/file", "d/dir", "link", "d/upper-only"] {
        fails(fs::symlink_metadata(union.at(name)), Errno::ENOENT);
    }
    assert_eq!(names(union.at("d")), Vec::<String>::new());
    fails(fs::remove_file(union.at("d/file")), Errno::ENOENT);
    union.umount();
    assert!(is_whiteout(union.upper("d/file")));
    assert!(is_whiteout(union.upper("d/dir")));
    assert!(is_whiteout(union.upper("link")));
    assert!(!exists(union.upper("d/upper-only")), "nothing below needs a whiteout");
    union.mount();
    assert_eq!(names(union.at("d")), Vec::<String>::new());
    union.assert_lasting();
    union.assert_lowers(&before);
}

fn names_come_back_over_whiteouts() {
    let mut union = Union::new(1);
    let kinds = ["file", "dir", "symlink", "fifo", "link", "renamed"];
    for kind in kinds {
        put(union.lower(0, &format!("was-file/{kind}")), "old");
        put(union.lower(0, &format!("was-dir/{kind}/old")), "old");
    }
    put(union.lower(0, "source"), "linked");
    let before = union.lower_trees();
    union.mount();
    for was in ["was-file", "was-dir"] {
        let at = |kind: &str| union.at(&format!("{was}/{kind}"));
        for kind in kinds {
            match was {
                "was-file" => fs::remove_file(at(kind)).expect("remove"),
                _ => fs::remove_dir_all(at(kind)).expect("remove"),
            }
        }
        put(at("file"), "new");
        make_dir(at("dir"));
        symlink("elsewhere", at("symlink")).expect("symlink");
        node(at("fifo"), SFlag::S_IFIFO, (0, 0));
        fs::hard_link(union.at("source"), at("link")).expect("link");
        put(union.at("temporary"), "moved");
        fs::rename(union.at("temporary"), at("renamed")).expect("rename");
    }
    for was in ["was-file", "was-dir"] {
        let at = |kind: &str| union.at(&format!("{was}/{kind}"));
        assert_eq!(names(union.at(was)).len(), kinds.len());
        assert_eq!(read(at("file")), "new");
        assert_eq!(names(at("dir")), Vec::<String>::new());
        assert!(stat(at("fifo")).file_type().is_fifo());
        assert_eq!(ino(at("link")), ino(union.at("source")));
        assert_eq!(read(at("renamed")), "moved");
    }
    assert_eq!(stat(union.at("source")).nlink(), 3);
    union.assert_lasting();
    union.assert_lowers(&before);
}

fn a_directory_made_again_is_empty() {
    let mut union = Union::new(2);
    put(union.lower(1, "d/a"), "x");
    put(union.lower(0, "d/b"), "x");
    put(union.lower(0, "d/sub/c"), "x");
    union.mount();
    let number = ino(union.at("d"));
    fs::remove_dir_all(union.at("d")).expect("remove");
    fs::create_dir(union.at("d")).expect("mkdir");
    assert_ne!(ino(union.at("d")), number, "another directory");
    assert_eq!(names(union.at("d")), Vec::<String>::new());
    fails(fs::metadata(union.at("d/a")), Errno::ENOENT);
    fails(fs::metadata(union.at("d/sub")), Errno::ENOENT);
    put(union.at("d/b"), "new");
    assert_eq!(names(union.at("d")), ["b"]);
    union.umount();
    let opaque = marked(union.upper("d"), &format!("{}.overlay.opaque", namespace()));
    assert_eq!(opaque.as_deref(), Some("y"));
    union.mount();
    assert_eq!(names(union.at("d")), ["b"]);
    union.assert_lasting();
}

fn merged_directories_are_removed_when_empty() {
    let mut union = Union::new(2);
    put(union.lower(1, "d/a"), "x");
    put(union.lower(0, "d/b"), "x");
    put(union.upper("d/c"), "x");
    make_dir(union.lower(1, "empty"));
    put(union.lower(1, "cleared/a"), "x");
    whiteout(union.lower(0, "cleared/a"));
    whiteout(union.upper("whiteouts-only/a"));
    whiteout(union.upper("whiteouts-only/b"));
    let before = union.lower_trees();
    union.mount();
    for name in ["a", "b", "c"] {
        fails(fs::remove_dir(union.at("d")), Errno::ENOTEMPTY);
        fs::remove_file(union.at("d").join(name)).expect("remove");
    }
    for directory in ["d", "empty", "cleared", "whiteouts-only"] {
        assert_eq!(names(union.at(directory)), Vec::<String>::new(), "{directory}");
        fs::remove_dir(union.at(directory)).unwrap_or_else(|e| panic!("rmdir {directory}: {e}"));
        fails(fs::metadata(union.at(directory)), Errno::ENOENT);
    }
    assert_eq!(names(union.at("")), Vec::<String>::new());
    union.umount();
    for directory in ["d", "empty", "cleared"] {
        assert!(is_whiteout(union.upper(directory)), "{directory}");
    }
    union.mount();
    assert_eq!(names(union.at("")), Vec::<String>::new());
    union.assert_lasting();
    union.assert_lowers(&before);
}

fn symlinks_in_layers_are_never_followed() {
    let mut union = Union::new(2);
    let outside = union.root().join("outside");
    put(outside.join("file"), "outside");
    put(union.lower(1, "d/inside"), "inside");
    put(union.lower(1, "e/inside"), "inside");
    symlink(&outside, union.lower(0, "d")).expect("symlink");
    symlink(&outside, union.upper("e")).expect("symlink");
    union.mount();
    for name in ["d", "e"] {
        assert!(stat(union.at(name)).is_symlink(), "{name} is the symlink, not a merged directory");
        assert_eq!(fs::read_link(union.at(name)).expect("readlink"), outside);
        fs::remove_file(union.at(name)).expect("remove the symlink");
        make_dir(union.at(name));
        put(union.at(name).join("new"), "x");
        assert_eq!(names(union.at(name)), ["new"]);
    }
    union.umount();
    assert_eq!(names(&outside), ["file"], "nothing reached what the symlinks show to");
}

fn odd_names() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let mut union = Union::new(1);
    let long = "x".repeat(255);
    let odd: [&[u8]; 8] = [
        b"new\nline",
        b"\xff\xfe not utf-8",
        b" ",
        b"...",
        b"-f",
        b"a:b,c\\d=e",
        long.as_bytes(),
        "\u{fc}ml\u{e4}ut".as_bytes(),
    ];
    for name in odd {
        put(union.lower(0, "low").join(OsStr::from_bytes(name)), name);
    }
    make_dir(union.upper("up"));
    union.mount();
    for name in odd {
        let name = OsStr::from_bytes(name);
        append(union.at("low").join(name), "!");
        put(union.at("up").join(name), "fresh");
        fs::rename(union.at("low").join(name), union.at("moved")).expect("rename");
        fs::rename(union.at("moved"), union.at("low").join(name)).expect("rename back");
    }
    assert_eq!(names(union.at("up")).len(), odd.len());
    union.remount();
    assert_eq!(names(union.at("low")).len(), odd.len());
    for name in odd {
        let shown = fs::read(union.at("low").join(OsStr::from_bytes(name))).expect("read");
        assert_eq!(shown, [name, b"!"].concat());
        fs::remove_file(union.at("low").join(OsStr::from_bytes(name))).expect("remove");
    }
    assert_eq!(names(union.at("low")), Vec::<String>::new());
    fails(fs::metadata(union.at(&"x".repeat(256))), Errno::ENAMETOOLONG);
    fails(fs::write(union.at(&"x".repeat(256)), ""), Errno::ENAMETOOLONG);
    union.umount();
}

/// Names known as missing, present or listed must not survive a change.
fn changes_are_seen_at_once() {
    let mut union = Union::new(2);
    for i in 0..20 {
        put(union.lower(1, &format!("d/{i}")), "old");
    }
    union.mount();
    for i in 0..20 {
        let (old, new) = (union.at(&format!("d/{i}")), union.at(&format!("d/new-{i}")));
        fails(fs::metadata(&new), Errno::ENOENT);
        assert_eq!(read(&old), "old");
        fs::rename(&old, &new).expect("rename");
        fails(fs::metadata(&old), Errno::ENOENT);
        assert_eq!(read(&new), "old");
        assert_eq!(names(union.at("d")).len(), 20);
        put(&old, "newer");
        assert_eq!(names(union.at("d")).len(), 21);
        fs::remove_file(&new).expect("remove");
        fails(fs::metadata(&new), Errno::ENOENT);
        assert_eq!(names(union.at("d")).len(), 20);
        assert_eq!(read(&old), "newer");
    }
    union.umount();
}
