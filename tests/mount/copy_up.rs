//! Copy-up: what triggers it, what it carries, and that lowers never change.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::SFlag;
use nix::sys::time::TimeSpec;

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::find_program;
use crate::common::mount::run;
use crate::common::others::OtherMount;
use crate::common::sys;
use crate::common::tree::Tree;
use crate::common::union::Union;
use crate::common::values::CAPABILITY;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(writing_copies_up),
        t!(opening_for_writing_copies_up_without_caches),
        t!(reading_leaves_no_trace).root(),
        t!(copy_up_carries_everything).root(),
        t!(parents_are_copied_up_as_they_are).root(),
        t!(every_change_of_a_lower_object_lands_in_upper).root(),
        t!(holes_stay_holes),
        t!(large_files_are_copied_whole),
        t!(an_overwritten_file_keeps_its_metadata),
        t!(copy_up_without_space_changes_nothing).root(),
        t!(copy_up_across_filesystems).root(),
        t!(programs_run),
        t!(many_threads_at_once).seconds(240),
        t!(one_file_copied_up_by_many),
        t!(nothing_is_left_in_work),
    ]
}

fn writing_copies_up() {
    let mut union = Union::new(2);
    put(union.lower(1, "a/b/file"), "lower");
    let before = union.lower_trees();
    union.mount();
    append(union.at("a/b/file"), " and upper");
    assert_eq!(read(union.at("a/b/file")), "lower and upper");
    let file = edit(union.at("a/b/file"));
    file.write_all_at(b"L", 0).expect("write");
    drop(file);
    assert_eq!(read(union.at("a/b/file")), "Lower and upper");
    union.umount();
    assert_eq!(read(union.upper("a/b/file")), "Lower and upper");
    union.assert_lowers(&before);
    union.mount();
    assert_eq!(read(union.at("a/b/file")), "Lower and upper");
    union.umount();
}

/// With `timeout=0` each opening is a request, and that one copies up, as it does in the kernel's overlay. What is emptied by it
/// isn't copied first.
fn opening_for_writing_copies_up_without_caches() {
    let mut union = Union::new(1).arguments(&["-o", "timeout=0"]);
    for name in ["read", "write", "both", "append", "empty", "read-and-empty"] {
        put(union.lower(0, name), "0123456789");
    }
    let before = union.lower_trees();
    union.mount();
    let open = |name: &str, flags| sys::open(&union.at(name), flags, 0).unwrap_or_else(|e| panic!("{name}: {e}"));
    drop(open("read", libc::O_RDONLY));
    assert!(!exists(union.upper("read")));
    for (name, flags) in
        [("write", libc::O_WRONLY), ("both", libc::O_RDWR), ("append", libc::O_WRONLY | libc::O_APPEND)]
    {
        let (number, file) = (ino(union.at(name)), open(name, flags));
        assert_eq!(read(union.upper(name)), "0123456789", "{name}");
        drop(file);
        assert_eq!(ino(union.at(name)), number, "{name}");
    }
    let copied = copied_bytes(&union);
    for (name, flags) in [("empty", libc::O_WRONLY), ("read-and-empty", libc::O_RDONLY)] {
        drop(open(name, flags | libc::O_TRUNC));
        assert_eq!(read(union.upper(name)), "", "{name}");
        assert_eq!(read(union.at(name)), "", "{name}");
    }
    assert_eq!(copied_bytes(&union), copied, "nothing is copied to be cut off");
    union.umount();
    union.assert_lowers(&before);
}

/// How many bytes of data were copied up.
fn copied_bytes(union: &Union) -> u64 {
    union.stats()["copy_up_bytes"].as_object().expect("bytes").values().filter_map(serde_json::Value::as_u64).sum()
}

/// Not even the access time of a lower object changes, though filesystems update one that is older than the last change.
fn reading_leaves_no_trace() {
    let mut union = Union::new(2);
    put(union.lower(1, "d/file"), "lower");
    put(union.lower(0, "d/other"), "lower");
    symlink("file", union.lower(1, "d/link")).expect("symlink");
    let objects: Vec<PathBuf> =
        ["d/file", "d/link", "d", ""].iter().map(|path| union.lower(1, path)).chain([union.lower(0, "d")]).collect();
    for object in &objects {
        set_times(object, (1, 1), (2, 2));
    }
    union.mount();
    for _ in 0..2 {
        assert_eq!(names(union.at("d")), ["file", "link", "other"]);
        assert_eq!(read(union.at("d/file")), "lower");
        assert_eq!(read(union.at("d/link")), "lower");
        fs::read_link(union.at("d/link")).expect("readlink");
        union.remount();
    }
    append(union.at("d/file"), " and upper");
    union.umount();
    for object in &objects {
        let found = stat(object);
        assert_eq!((found.atime(), found.mtime()), (1, 2), "{object:?}");
    }
}

/// Objects of every kind with all the metadata that they can have.
fn furnish(root: &Path) {
    put(root.join("file"), "content");
    chmod(root.join("file"), 0o4751);
    put(root.join("empty"), "");
    put(root.join("dir/inside"), "x");
    chmod(root.join("dir"), 0o3770);
    symlink("nowhere/at/all", root.join("symlink")).expect("symlink");
    node(root.join("fifo"), SFlag::S_IFIFO, (0, 0));
    node(root.join("null"), SFlag::S_IFCHR, (1, 3));
    node(root.join("block"), SFlag::S_IFBLK, (7, 200));
    drop(UnixListener::bind(root.join("socket")).expect("socket"));
    for name in ["file", "empty", "dir", "dir/inside", "symlink", "fifo", "null", "block", "socket"] {
        let path = root.join(name);
        let mode = stat(&path).mode();
        chown(&path, 1234, 4321);
        if !stat(&path).is_symlink() {
            chmod(&path, mode & 0o7777);
        }
        mark(&path, "trusted.note", "for root");
        mark(&path, "security.note", "for the kernel");
        if stat(&path).is_file() || stat(&path).is_dir() {
            mark(&path, "user.note", "for everybody");
            mark(&path, "user.empty", "");
        }
    }
    sys::set_xattr(&root.join("file"), "security.capability", &CAPABILITY, 0).expect("capability");
    set_times(root.join("file"), (1, 1), (-2, 500_000_000));
    set_times(root.join("empty"), (1, 1), (1_000_000_000, 123_456_789));
    set_times(root.join("symlink"), (1, 1), (1_000_000_000, 1));
    set_times(root.join("dir/inside"), (1, 1), (0, 999_999_999));
    set_times(root.join("fifo"), (1, 1), (7, 7));
    set_times(root.join("dir"), (1, 1), (1_000_000_000, 2));
}

fn copy_up_carries_everything() {
    let mut union = Union::new(2);
    make_dir(union.lower(1, "l"));
    furnish(&union.lower(1, "l"));
    let before = union.lower_trees();
    union.mount();
    let shown = Tree::of(&union.at("l"));
    shown.clone().portable().assert_same(&Tree::of(&union.lower(1, "l")).portable(), "lower shown");
    // A new atime copies up and changes nothing else that the tree compares.
    for name in names(union.at("l")).iter().map(String::as_str).chain(["dir/inside"]) {
        let now = TimeSpec::new(1_700_000_000, 42);
        try_set_times(&union.at("l").join(name), now, TimeSpec::UTIME_OMIT).unwrap_or_else(|e| panic!("{name}: {e}"));
        let found = stat(union.at("l").join(name));
        assert_eq!((found.atime(), found.atime_nsec()), (1_700_000_000, 42), "{name}");
    }
    shown.clone().across_mounts().assert_same(&Tree::of(&union.at("l")).across_mounts(), "copied up");
    union.umount();
    for name in names(union.lower(1, "l")) {
        assert!(exists(union.upper("l").join(&name)), "{name} is in upper");
    }
    union.mount();
    shown.across_mounts().assert_same(&Tree::of(&union.at("l")).across_mounts(), "mounted again");
    union.assert_lasting();
    union.assert_lowers(&before);
}

fn parents_are_copied_up_as_they_are() {
    let mut union = Union::new(1);
    put(union.lower(0, "a/b/c/file"), "x");
    let directories = [("a/b/c", 0o700, 10), ("a/b", 0o2775, 20), ("a", 0o1777, 30)];
    for (path, mode, id) in directories {
        let path = union.lower(0, path);
        chown(&path, id, id + 1);
        chmod(&path, mode);
        mark(&path, "user.note", "kept");
        set_times(&path, (1, 2), (i64::from(id), 5));
    }
    union.mount();
    let shown = Tree::of(&union.at("")).across_mounts();
    append(union.at("a/b/c/file"), "");
    chmod(union.at("a/b/c/file"), 0o600);
    chmod(union.at("a/b/c/file"), 0o644);
    shown.assert_same(&Tree::of(&union.at("")).across_mounts(), "after the copy-up");
    for (path, mode_was, id) in directories {
        let found = stat(union.upper(path));
        assert_eq!((found.uid(), found.gid()), (id, id + 1), "{path}");
        assert_eq!(mode(union.upper(path)), mode_was, "{path}");
        assert_eq!(mtime(union.upper(path)), (i64::from(id), 5), "{path}");
        assert_eq!(marked(union.upper(path), "user.note").as_deref(), Some("kept"), "{path}");
    }
    union.umount();
}

/// A change by its name, to be made to the file of that name.
type Change = (&'static str, fn(&Path));

fn every_change_of_a_lower_object_lands_in_upper() {
    let changes: [Change; 10] = [
        ("chmod", |path| chmod(path, 0o600)),
        ("chown", |path| chown(path, 5, 6)),
        ("mtime", |path| set_times(path, (1, 2), (3, 4))),
        ("xattr", |path| mark(path, "user.new", "y")),
        ("no-xattr", |path| sys::remove_xattr(path, "user.old").expect("remove xattr")),
        ("truncate", |path| edit(path).set_len(3).expect("truncate")),
        ("extend", |path| edit(path).set_len(30).expect("extend")),
        ("write", |path| edit(path).write_all_at(b"W", 1).expect("write")),
        ("link", |path| fs::hard_link(path, path.with_extension("link")).expect("link")),
        ("rename", |path| {
            fs::rename(path, path.with_extension("new")).expect("rename");
        }),
    ];
    let mut union = Union::new(1);
    for (name, _) in changes {
        put(union.lower(0, name), "content");
        mark(union.lower(0, name), "user.old", "x");
    }
    let before = union.lower_trees();
    union.mount();
    for (name, change) in changes {
        change(&union.at(name));
    }
    let check = |union: &Union| {
        let at = |name: &str| union.at(name);
        assert_eq!(mode(at("chmod")), 0o600);
        assert_eq!((stat(at("chown")).uid(), stat(at("chown")).gid()), (5, 6));
        assert_eq!(mtime(at("mtime")), (3, 4));
        assert_eq!(marked(at("xattr"), "user.new").as_deref(), Some("y"));
        assert_eq!(marked(at("no-xattr"), "user.old"), None);
        assert_eq!(read(at("truncate")), "con");
        assert_eq!(read(at("extend")), format!("content{}", "\0".repeat(23)));
        assert_eq!(read(at("write")), "cWntent");
        assert_eq!(stat(at("link")).nlink(), 2);
        assert_eq!(ino(at("link")), ino(at("link.link")));
        assert_eq!(read(at("rename.new")), "content");
        assert!(!exists(at("rename")));
        for (name, _) in changes.iter().filter(|(name, _)| !["truncate", "extend", "write", "rename"].contains(name)) {
            assert_eq!(read(at(name)), "content", "{name}");
        }
    };
    check(&union);
    union.remount();
    check(&union);
    for (name, _) in changes.iter().filter(|(name, _)| *name != "rename") {
        assert!(exists(union.upper(name)), "{name}");
    }
    union.assert_lasting();
    union.assert_lowers(&before);
}

fn holes_stay_holes() {
    let mut union = Union::new(1);
    let size = 64 << 20;
    let mut file = create_new(union.lower(0, "sparse"), 0o644);
    file.seek(SeekFrom::Start(size / 2)).expect("seek");
    file.write_all(&[7; 4096]).expect("write");
    file.set_len(size).expect("size");
    drop(file);
    union.mount();
    let file = edit(union.at("sparse"));
    file.write_all_at(b"x", 0).expect("write");
    drop(file);
    union.umount();
    let copied = stat(union.upper("sparse"));
    assert_eq!(copied.size(), size);
    assert!(copied.blocks() * 512 < 1 << 20, "{} blocks are in use", copied.blocks());
    union.mount();
    let mut middle = [0; 4098];
    open(union.at("sparse")).read_exact_at(&mut middle, size / 2 - 1).expect("read");
    assert_eq!((middle[0], middle[1], middle[4096], middle[4097]), (0, 7, 7, 0));
    union.umount();
}

fn large_files_are_copied_whole() {
    let mut union = Union::new(1);
    let content: Vec<u8> = (0..9_000_001u32).map(|i| (i / 251 + i) as u8).collect();
    put(union.lower(0, "large"), &content);
    let before = union.lower_trees();
    union.mount();
    let file = edit(union.at("large"));
    file.write_all_at(b"changed", 4_500_000).expect("write");
    let mut expected = content;
    expected[4_500_000..4_500_007].copy_from_slice(b"changed");
    assert!(fs::read(union.at("large")).expect("read") == expected);
    drop(file);
    union.umount();
    assert!(fs::read(union.upper("large")).expect("read") == expected);
    union.assert_lowers(&before);
}

fn an_overwritten_file_keeps_its_metadata() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "a long old content");
    chmod(union.lower(0, "file"), 0o640);
    mark(union.lower(0, "file"), "user.note", "kept");
    union.mount();
    let number = ino(union.at("file"));
    fs::write(union.at("file"), "new").expect("write with O_TRUNC");
    assert_eq!(read(union.at("file")), "new");
    assert_eq!(mode(union.at("file")), 0o640);
    assert_eq!(marked(union.at("file"), "user.note").as_deref(), Some("kept"));
    assert_eq!(ino(union.at("file")), number);
    union.umount();
}

fn copy_up_without_space_changes_nothing() {
    let outer = Union::new(0);
    let small = outer.root().join("small");
    make_dir(&small);
    let full = OtherMount::memory("tmpfs", "size=2m", &small);
    let mut union = Union::new(1).upper_in(&small);
    let content = vec![b'x'; 4 << 20];
    put(union.lower(0, "d/large"), &content);
    put(union.lower(0, "d/small"), "small");
    union.mount();
    let result = fs::OpenOptions::new().write(true).open(union.at("d/large")).and_then(|file| {
        file.write_all_at(b"y", 0)?;
        file.sync_all()
    });
    fails(result, Errno::ENOSPC);
    append(union.at("d/small"), " fits");
    assert_eq!(read(union.at("d/small")), "small fits");
    assert_eq!(names(union.at("d")), ["large", "small"]);
    union.remount();
    assert!(fs::read(union.at("d/large")).expect("read") == content, "the lower content is shown");
    assert_eq!(read(union.at("d/small")), "small fits");
    union.umount();
    // The kernel has told the time of the write before its data.
    let left = if exists(union.upper("d/large")) { stat(union.upper("d/large")).blocks() } else { 0 };
    assert_eq!(left, 0, "nothing half-copied is left");
    drop(union);
    drop(full);
}

fn copy_up_across_filesystems() {
    let outer = Union::new(0);
    let elsewhere = outer.root().join("elsewhere");
    make_dir(&elsewhere);
    let other = OtherMount::memory("tmpfs", "size=32m", &elsewhere);
    let mut union = Union::new(1).lower_in(&elsewhere);
    make_dir(elsewhere.join("l"));
    furnish(&elsewhere.join("l"));
    put(elsewhere.join("shared"), "bottom");
    put(union.lower(0, "shared"), "top");
    put(union.lower(0, "l/own"), "x");
    let before = union.lower_trees();
    union.mount();
    let device = stat(union.at("")).dev();
    for path in ["l", "l/file", "l/own", "l/symlink", "shared", "l/dir/inside"] {
        assert_eq!(stat(union.at(path)).dev(), device, "one st_dev for the mount: {path}");
    }
    let shown = Tree::of(&union.at("")).across_mounts();
    for path in ["l/file", "l/dir/inside", "l/dir", "l/fifo", "l/null", "l/socket", "l/symlink"] {
        try_set_times(&union.at(path), TimeSpec::new(5, 5), TimeSpec::UTIME_OMIT)
            .unwrap_or_else(|e| panic!("{path}: {e}"));
    }
    shown.assert_same(&Tree::of(&union.at("")).across_mounts(), "copied up");
    append(union.at("shared"), "!");
    assert_eq!(read(union.at("shared")), "top!");
    union.assert_lasting();
    union.assert_lowers(&before);
    drop(union);
    drop(other);
}

fn programs_run() {
    let mut union = Union::new(1);
    let program = find_program("true").expect("true");
    fs::copy(program, union.lower(0, "program")).expect("copy");
    union.mount();
    run(&mut Command::new(union.at("program"))).success();
    fs::copy(union.at("program"), union.at("copy")).expect("copy");
    run(&mut Command::new(union.at("copy"))).success();
    chmod(union.at("program"), 0o700);
    run(&mut Command::new(union.at("program"))).success();
    fs::rename(union.at("program"), union.at("renamed")).expect("rename");
    run(&mut Command::new(union.at("renamed"))).success();
    union.remount();
    run(&mut Command::new(union.at("renamed"))).success();
    run(&mut Command::new(union.at("copy"))).success();
    union.umount();
}

/// Everything at once, in directories of each thread and in one that all share.
fn many_threads_at_once() {
    const THREADS: usize = 6;
    const ROUNDS: usize = 60;
    let mut union = Union::new(3);
    for thread in 0..THREADS {
        for round in 0..ROUNDS {
            put(union.lower(thread % 3, &format!("own{thread}/dir{round}/file")), "lower");
            put(union.lower(round % 3, &format!("shared/{thread}-{round}")), "lower");
        }
    }
    let before = union.lower_trees();
    union.mount();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let union = &union;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    busy_round(union, thread, round);
                }
            });
        }
    });
    for thread in 0..THREADS {
        assert_eq!(names(union.at(&format!("own{thread}"))).len(), ROUNDS);
    }
    assert_eq!(names(union.at("shared")).len(), THREADS * ROUNDS);
    assert!(names(union.at("shared")).iter().all(|name| name.starts_with("new-")));
    union.assert_lasting();
    union.assert_lowers(&before);
}

fn busy_round(union: &Union, thread: usize, round: usize) {
    let own = union.at(&format!("own{thread}"));
    let (old, new) = (own.join(format!("dir{round}")), own.join(format!("moved{round}")));
    append(old.join("file"), " changed");
    fs::rename(&old, &new).expect("rename a directory");
    assert_eq!(read(new.join("file")), "lower changed");
    put(new.join("other"), "new");
    fs::remove_file(new.join("file")).expect("remove");
    assert_eq!(names(&new), ["other"]);

    let shared = union.at("shared");
    let (old, new) = (format!("{thread}-{round}"), format!("new-{thread}-{round}"));
    append(shared.join(&old), "!");
    fs::rename(shared.join(&old), shared.join(&new)).expect("rename a file");
    assert_eq!(read(shared.join(&new)), "lower!");
    if round.is_multiple_of(10) {
        assert!(names(&shared).contains(&new));
    }
}

fn one_file_copied_up_by_many() {
    let mut union = Union::new(1);
    let content = vec![b'-'; 1 << 20];
    put(union.lower(0, "file"), &content);
    let before = union.lower_trees();
    union.mount();
    thread::scope(|scope| {
        for i in 0..8u64 {
            let path = union.at("file");
            scope.spawn(move || {
                edit(&path).write_all_at(&[b'0' + i as u8], i * 100_000).expect("write");
            });
        }
    });
    let mut expected = content;
    for i in 0..8 {
        expected[i * 100_000] = b'0' + i as u8;
    }
    assert!(fs::read(union.at("file")).expect("read") == expected);
    union.umount();
    assert!(fs::read(union.upper("file")).expect("read") == expected);
    union.assert_lowers(&before);
}

fn nothing_is_left_in_work() {
    let mut union = Union::new(1);
    for i in 0..20 {
        put(union.lower(0, &format!("d{}/file{i}", i % 3)), "x");
    }
    union.mount();
    for i in 0..20 {
        append(union.at(&format!("d{}/file{i}", i % 3)), "y");
    }
    assert!(exists(union.work("work/incompat/layerfs")), "the mark of a mount that changes upper");
    fs::remove_dir_all(union.at("d0")).expect("remove");
    make_dir(union.at("d0"));
    fs::rename(union.at("d1"), union.at("d9")).expect("rename");
    fs::remove_dir_all(union.at("d2")).expect("remove");
    union.umount();
    assert!(!exists(union.work("work/incompat/layerfs")), "the mark after a clean end");
    let left = match exists(union.work("work")) {
        true => names(union.work("work")),
        false => Vec::new(),
    };
    assert!(
        left.iter().all(|name| name.starts_with('#') || name == "incompat"),
        "only whiteouts for later use may stay: {left:?}"
    );
}
