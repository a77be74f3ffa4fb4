//! How many system calls each operation makes: exactly these, so that none creeps in.
//!
//! They are those of a daemon with root's rights: without them a name of a layer is opened before its status is read.

use std::fmt::Write;
use std::path::PathBuf;

use layerfs::error::Result;
use layerfs::layer::StackSpec;
use layerfs::layer::override_stat::Form;
use layerfs::sys::trace::calls_of;
use layerfs::union::{Attr, Options, SetAttr, SetTime};

use super::fixture::*;

/// How many lowers the layers have.
const LOWERS: usize = 10;
/// How many entries the directories that are read have.
const ENTRIES: usize = 100;

/// Compares what operations call with what they should. All differences are told together.
#[derive(Default)]
struct Pins {
    wrong: String,
}

impl Pins {
    /// Runs an operation, whose system calls are `expected`: each name with how often it comes.
    fn pin<T>(&mut self, operation: &str, expected: &str, work: impl FnOnce() -> T) -> T {
        let (done, calls) = calls_of(work);
        let called = summary(&calls);
        if called != expected {
            writeln!(self.wrong, "{operation}:\n  expected {expected}\n  called   {called}\n  in order {calls:?}")
                .unwrap();
        }
        done
    }

    fn check(self) {
        assert!(self.wrong.is_empty(), "\n{}", self.wrong);
    }
}

/// `["a", "b", "a"]` as "2 a, 1 b".
fn summary(calls: &[&str]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for call in calls {
        match counts.iter_mut().find(|(name, _)| name == call) {
            Some((_, count)) => *count += 1,
            None => counts.push((call, 1)),
        }
    }
    let words: Vec<_> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    words.join(", ")
}

/// Whether the test has the rights, and the filesystem, that its numbers are about.
fn numbers_hold() -> bool {
    if !privileged() {
        eprintln!("left out: the numbers are those of root's daemon");
        return false;
    }
    let root = Layers::new(1).open_read_only().stats().layers[0].filesystem.clone();
    if root == "btrfs" {
        eprintln!("left out: on btrfs a staged file has a name");
    }
    root != "btrfs"
}

/// Ten lowers, each with a directory `d`; the lowest has small files `d/0` to `d/9`. Upper has `d` and `pure`.
fn layers() -> Layers {
    let layers = Layers::new(LOWERS);
    for lower in 0..LOWERS {
        layers.file(lower, &format!("d/of-lower{lower}"), "x");
    }
    for file in 0..10 {
        layers.file(LOWERS - 1, &format!("d/{file}"), "content");
    }
    std::fs::write(layers.upper("d/of-upper"), "x").unwrap();
    std::fs::write(layers.upper("pure/of-upper"), "x").unwrap();
    layers
}

/// A union of these layers, after its first change.
fn changed(layers: &Layers) -> View {
    let view = layers.open();
    view.chmod("d/of-upper", 0o600).unwrap();
    view.chmod("pure/of-upper", 0o600).unwrap();
    view
}

/// What the kernel does before it changes names; they stay looked up.
fn look_up(view: &View, paths: &[&str]) {
    for path in paths {
        view.hold(path).unwrap().keep();
    }
}

fn chmod(view: &View, ino: u64) -> Result<Attr> {
    view.union.setattr(&me(), ino, &SetAttr { mode: Some(0o640), ..SetAttr::default() })
}

#[test]
fn of_a_lookup() {
    if !numbers_hold() {
        return;
    }
    let layers = layers();
    let view = layers.open();
    let mut pins = Pins::default();
    let look_up = |dir: u64, what: &str| {
        // Forgotten at once: what is told again comes from the layers, and from what is remembered of the name.
        view.union.lookup(dir, &name(what)).map(|attr| view.union.forget(attr.ino, 1))
    };
    let mut twice = |operation: &str, [first, again]: [&str; 2], dir: u64, what: &str| {
        for (when, expected) in [("first", first), ("again", again)] {
            let _found = pins.pin(&format!("{operation}, {when}"), expected, || look_up(dir, what));
        }
    };
    twice(
        "a directory of upper alone",
        ["22 statx, 1 openat2, 1 listxattr, 10 openat, 20 getdents64, 9 fstatfs", "4 statx, 1 openat2, 1 listxattr"],
        1,
        "pure",
    );
    twice(
        "a directory of upper and ten lowers",
        ["32 statx, 11 openat2, 10 listxattr", "32 statx, 11 openat2, 10 listxattr"],
        1,
        "d",
    );
    let (pure, d) = (view.hold("pure").unwrap(), view.hold("d").unwrap());
    twice("a known directory of upper and ten lowers", ["1 statx", "1 statx"], 1, "d");
    twice("in a pure upper directory", ["1 statx, 1 listxattr", "1 statx"], pure.ino, "of-upper");
    twice("missing in a pure upper directory", ["1 statx", ""], pure.ino, "none");
    twice("in upper", ["1 statx, 1 listxattr", "1 statx, 1 listxattr"], d.ino, "of-upper");
    twice("in the first of ten lowers", ["2 statx, 1 openat, 2 getdents64", "1 statx"], d.ino, "of-lower0");
    twice("in the last of ten lowers", ["20 statx, 9 openat, 18 getdents64", "1 statx"], d.ino, "of-lower9");
    // Of the lowers but the last, the names are known by now.
    twice("another one of the last of ten lowers", ["2 statx", "1 statx"], d.ino, "9");
    twice("missing in upper and ten lowers", ["2 statx", ""], d.ino, "none");
    pins.check();
}

/// A lower is asked for a name that it doesn't hold only where what was read of it can't tell.
#[test]
fn of_a_lookup_where_names_are_remembered() {
    if !numbers_hold() {
        return;
    }
    let layers = Layers::new(2);
    let dirs: [(&str, &[&str]); 5] = [
        ("plain", &["a", "1", "\u{e9}"]),
        ("digits", &["1", "2"]),
        ("empty", &[]),
        ("cases", &["ab", "Ab"]),
        ("accents", &["\u{e9}"]),
    ];
    for (dir, names) in dirs {
        layers.file(1, &format!("{dir}/below"), "x");
        layers.directory(0, dir);
        for name in names {
            layers.file(0, &format!("{dir}/{name}"), "x");
        }
    }
    layers.file(1, "large/below", "x");
    for n in 0..2000 {
        layers.file(0, &format!("large/{n}"), "x");
    }

    let mut pins = Pins::default();
    let asks = |pins: &mut Pins, view: &View, dir: &str, expected: &str| {
        let ino = view.hold(dir).unwrap().keep();
        let missing = |what: &str| view.union.lookup(ino, &name(what)).unwrap_err();
        missing("first");
        pins.pin(&format!("another one that is missing in `{dir}`"), expected, || missing("another"));
    };
    let view = layers.open();
    for dir in ["plain", "digits", "empty"] {
        asks(&mut pins, &view, dir, "1 statx");
    }
    for dir in ["cases", "accents"] {
        asks(&mut pins, &view, dir, "2 statx");
    }
    // And for its whiteout.
    asks(&mut pins, &view, "large", "3 statx");
    drop(view);
    let timeout = Some(std::time::Duration::from_secs(1));
    let view = View::open(&layers.spec(), Options { timeout, ..Options::default() });
    asks(&mut pins, &view, "plain", "2 statx");
    pins.check();
}

#[test]
fn of_attributes() {
    if !numbers_hold() {
        return;
    }
    let layers = layers();
    let view = changed(&layers);
    let mut pins = Pins::default();
    for path in ["d", "d/of-upper", "d/0"] {
        let ino = view.hold(path).unwrap().keep();
        pins.pin(&format!("getattr of {path}"), "1 statx", || view.union.getattr(ino)).unwrap();
    }
    let lower = view.hold("d/0").unwrap();
    let ask = |attribute: &str| view.union.getxattr(lower.ino, &xname(attribute)).unwrap_err();
    pins.pin("getxattr of a lower file", "1 statx, 1 getxattr", || ask("user.none"));
    pins.pin("the capabilities of a lower file", "1 openat2, 1 statx, 2 getxattr", || ask("security.capability"));
    pins.pin("the capabilities of a lower file, again", "1 getxattr", || ask("security.capability"));
    let upper = view.hold("d/of-upper").unwrap();
    pins.pin("chmod of an upper file", "1 openat2, 2 statx, 1 fchmodat2", || chmod(&view, upper.ino)).unwrap();
    pins.check();
}

/// What a write would want next is opened when the kernel asks for a file's capabilities, as long as writes follow.
#[test]
fn of_the_capabilities_of_many_files() {
    if !numbers_hold() {
        return;
    }
    let layers = layers();
    for n in 0..19 {
        layers.file(0, &format!("many/{n}"), "x");
    }
    let view = changed(&layers);
    let files: Vec<u64> = (0..19).map(|n| view.hold(&format!("many/{n}")).unwrap().keep()).collect();
    let ask = |ino| view.union.getxattr(ino, &xname("security.capability"));
    let mut pins = Pins::default();
    for &file in &files[..16] {
        pins.pin("of a file", "1 openat2, 1 statx, 2 getxattr", || ask(file)).unwrap_err();
    }
    pins.pin("of one of many", "1 statx, 1 getxattr", || ask(files[16])).unwrap_err();
    pins.pin("of one that is open", "1 getxattr", || ask(files[0])).unwrap_err();
    chmod(&view, files[17]).unwrap();
    pins.pin("of a file after a copy-up", "1 openat2, 1 statx, 2 getxattr", || ask(files[18])).unwrap_err();
    pins.check();
}

/// The attribute is read once for each name, under each of its two names.
#[test]
fn of_permissions_in_an_attribute() {
    if !numbers_hold() {
        return;
    }
    let layers = layers();
    let spec = StackSpec { xattr_permissions: Some(Form::User), ..layers.spec() };
    let view = View::open(&spec, Options::default());
    let mut pins = Pins::default();
    let d = view.hold("d").unwrap();
    let look_up = |what: &str| view.union.lookup(d.ino, &name(what)).map(|attr| view.union.forget(attr.ino, 1));
    look_up("0").unwrap();
    let _found = pins.pin("lookup of a lower file, again", "1 statx, 2 getxattr", || look_up("0"));
    let file = view.hold("d/0").unwrap();
    let touch = SetAttr { atime: Some(SetTime::Now), ..SetAttr::default() };
    view.union.setattr(&me(), file.ino, &touch).unwrap();
    pins.pin("getattr of a directory", "1 statx, 2 getxattr", || view.union.getattr(d.ino)).unwrap();
    pins.pin("chmod of an upper file", "3 statx, 3 getxattr, 1 setxattr, 1 openat2", || chmod(&view, file.ino))
        .unwrap();
    pins.check();
}

fn fill(path: impl Fn(usize) -> PathBuf) {
    for entry in 0..ENTRIES {
        std::fs::write(path(entry), "x").unwrap();
    }
}

#[test]
fn of_reading_a_directory() {
    if !numbers_hold() {
        return;
    }
    let layers = Layers::new(LOWERS);
    fill(|entry| layers.upper(&format!("upper/{entry}")));
    fill(|entry| layers.lower(0, &format!("lower/{entry}")));
    fill(|entry| layers.lower(entry % LOWERS, &format!("merged/{entry}")));
    let mut pins = Pins::default();
    for (dir, first, entry) in [
        ("upper", "1 openat, 2 getdents64, 1 listxattr", "101 statx"),
        ("lower", "1 openat, 2 getdents64", "101 statx"),
        ("merged", "10 openat, 20 getdents64, 1 listxattr", "101 statx"),
    ] {
        let view = layers.open();
        let ino = view.hold(dir).unwrap().keep();
        let list = || view.union.readdir(ino, 0, &mut |_| true).unwrap();
        pins.pin(&format!("readdir of {dir}, first"), first, list);
        pins.pin(&format!("readdir of {dir}, again"), "", list);
        // One status for each entry, and the directory's own.
        let list = || view.union.readdirplus(ino, 0, &mut |_, _| true).unwrap();
        pins.pin(&format!("readdirplus of {dir}, after readdir"), entry, list);
        view.close();
    }
    pins.check();
}

#[test]
fn of_reading_and_writing() {
    if !numbers_hold() {
        return;
    }
    let layers = layers();
    let view = changed(&layers);
    let mut pins = Pins::default();
    let [lower, upper] = ["d/0", "d/of-upper"].map(|path| view.hold(path).unwrap().keep());
    let read = |ino| assert_ne!(view.union.read(ino, 0, &mut [0; 4096]).unwrap(), 0);
    pins.pin("a small lower file, first", "1 openat2, 1 statx, 1 getxattr, 2 pread", || read(lower));
    pins.pin("a small lower file, again", "2 pread", || read(lower));
    pins.pin("a small upper file, first", "1 openat2, 1 statx, 2 pread", || read(upper));
    pins.pin("a small upper file, again", "2 pread", || read(upper));
    let write = || view.union.write(upper, 0, b"x").unwrap();
    pins.pin("write to an upper file, first", "1 openat2, 1 statx, 1 pwrite", write);
    pins.pin("write to an upper file, again", "1 pwrite", write);
    let write_back = || view.union.write_back(upper, 0, b"x").unwrap();
    pins.pin("pages of an upper file, first", "1 statx, 1 getxattr, 1 pwrite, 1 utimensat", write_back);
    pins.pin("pages of an upper file, again", "1 getxattr, 1 pwrite, 1 utimensat", write_back);
    pins.check();
}

#[test]
fn of_a_copy_up() {
    if !numbers_hold() {
        return;
    }
    let layers = layers();
    let view = changed(&layers);
    let mut pins = Pins::default();
    let files: Vec<u64> = (0..4).map(|file| view.hold(&format!("d/{file}")).unwrap().keep()).collect();
    let write = |file: usize| view.union.write(files[file], 0, b"x").unwrap();
    // The first in a directory marks that, and begins the list of copies that are not committed.
    write(0);
    pins.pin(
        "a byte written to a small lower file",
        "1 name_to_handle_at, 1 openat2, 4 statx, 1 getxattr, 1 openat, 1 pread, 3 pwrite, 1 listxattr, \
         2 utimensat, 2 setxattr, 1 linkat",
        || write(1),
    );
    view.union.getxattr(files[2], &xname("security.capability")).unwrap_err();
    pins.pin(
        "the same after the kernel asked for its capabilities",
        "1 name_to_handle_at, 3 statx, 1 openat, 1 pread, 3 pwrite, 1 listxattr, 2 utimensat, 2 setxattr, 1 linkat",
        || write(2),
    );
    pins.pin(
        "chmod of a lower file",
        "1 name_to_handle_at, 1 openat2, 5 statx, 1 getxattr, 1 openat, 2 setxattr, 1 ftruncate, \
         1 listxattr, 2 utimensat, 1 linkat, 1 fchmodat2",
        || chmod(&view, files[3]).unwrap(),
    );
    pins.pin(
        "a byte written to it then",
        "2 openat2, 4 statx, 3 getxattr, 1 pread, 3 pwrite, 1 utimensat, 1 setxattr, 1 removexattr",
        || write(3),
    );
    pins.check();
}

#[test]
fn of_a_creation() {
    if !numbers_hold() {
        return;
    }
    let layers = layers();
    let view = layers.open();
    let [pure, merged] = ["pure", "d"].map(|dir| view.hold(dir).unwrap().keep());
    for path in ["pure/first", "pure/file", "pure/made", "d/first", "d/file", "d/made"] {
        assert!(!view.exists(path));
    }
    let mut pins = Pins::default();
    let create = |dir, what: &str| view.union.create(&me(), dir, &name(what), 0o644).unwrap();
    pins.pin("the first change", "8 openat, 2 getdents64, 2 statx, 1 getxattr, 3 mkdirat, 3 fsync", || {
        create(pure, "first")
    });
    create(merged, "first");
    pins.pin("create in a pure upper directory", "2 statx, 1 openat", || create(pure, "file"));
    pins.pin("create in a directory of ten lowers", "2 statx, 1 openat", || create(merged, "file"));
    let mkdir = |dir, what: &str| view.union.mkdir(&me(), dir, &name(what), 0o755).unwrap();
    let made = pins.pin("mkdir in a pure upper directory", "2 statx, 1 mkdirat, 1 openat2", || mkdir(pure, "made")).ino;
    pins.pin("mkdir in a directory of ten lowers", "2 statx, 1 mkdirat, 1 openat2", || mkdir(merged, "made"));
    pins.pin("create in a directory just made", "3 statx, 1 openat", || create(made, "file"));
    view.unlink("d/0").unwrap();
    pins.pin("create over a whiteout", "5 statx, 2 openat, 1 fchmodat2, 1 linkat, 1 renameat2", || create(merged, "0"));
    pins.check();
}

#[test]
fn of_a_removal() {
    if !numbers_hold() {
        return;
    }
    let layers = layers();
    let view = changed(&layers);
    let [pure, merged] = ["pure", "d"].map(|dir| view.hold(dir).unwrap().keep());
    for dir in ["pure", "d"] {
        view.mkdir(&format!("{dir}/made"), 0o755).unwrap();
    }
    // The first makes the whiteout that the others are links of.
    view.unlink("d/0").unwrap();
    view.put("d/new", "");
    look_up(&view, &["pure/of-upper", "d/of-upper", "d/new", "d/1", "d/of-lower0", "pure/made", "d/made"]);
    let mut pins = Pins::default();
    let unlink = |dir, what: &str| view.union.unlink(dir, &name(what)).unwrap();
    pins.pin("unlink in a pure upper directory", "2 statx, 1 openat2, 1 unlinkat", || unlink(pure, "of-upper"));
    pins.pin(
        "unlink of a new file in a directory of ten lowers",
        "2 statx, 1 listxattr, 1 openat2, 1 unlinkat",
        || unlink(merged, "new"),
    );
    pins.pin("unlink of upper's in a directory of ten lowers", "3 statx, 1 listxattr, 1 openat2, 1 unlinkat", || {
        unlink(merged, "of-upper")
    });
    pins.pin("unlink of the first lower's", "2 statx, 1 linkat", || unlink(merged, "of-lower0"));
    pins.pin("unlink of the last lower's", "2 statx, 1 linkat", || unlink(merged, "1"));
    let rmdir = |dir, what: &str| view.union.rmdir(dir, &name(what)).unwrap();
    pins.pin("rmdir in a pure upper directory", "2 statx, 1 openat, 2 getdents64, 1 unlinkat", || rmdir(pure, "made"));
    pins.pin("rmdir of upper's in a directory of ten lowers", "2 statx, 1 openat, 2 getdents64, 1 unlinkat", || {
        rmdir(merged, "made")
    });
    pins.check();
}

#[test]
fn of_a_rename() {
    if !numbers_hold() {
        return;
    }
    let layers = layers();
    layers.file(LOWERS - 1, "pure-lower/in", "x");
    let view = changed(&layers);
    let [pure, merged] = ["pure", "d"].map(|dir| view.hold(dir).unwrap().keep());
    view.mkdir("pure/made", 0o755).unwrap();
    view.chmod("d/0", 0o600).unwrap();
    let objects = ["pure/of-upper", "d/of-upper", "d/0", "d/1", "pure/made", "pure-lower"];
    look_up(&view, &objects);
    for path in objects {
        assert!(!view.exists(&format!("{path}-new")));
    }
    let mut pins = Pins::default();
    let rename =
        |dir, what: &str| view.union.rename(dir, &name(what), dir, &name(&format!("{what}-new")), PLAIN).unwrap();
    pins.pin("of a file in a pure upper directory", "3 statx, 1 getxattr, 1 renameat2", || rename(pure, "of-upper"));
    pins.pin("of upper's file in a directory of ten lowers", "4 statx, 1 listxattr, 1 getxattr, 1 renameat2", || {
        rename(merged, "of-upper")
    });
    pins.pin(
        "of a metadata copy",
        "55 statx, 10 listxattr, 4 getxattr, 1 open_by_handle_at, 11 openat2, 9 openat, 18 getdents64, \
         2 setxattr, 1 renameat2",
        || rename(merged, "0"),
    );
    pins.pin(
        "of a lower file",
        "56 statx, 1 name_to_handle_at, 11 openat2, 3 getxattr, 10 openat, 3 setxattr, 1 ftruncate, \
         10 listxattr, 2 utimensat, 1 linkat, 18 getdents64, 1 renameat2",
        || rename(merged, "1"),
    );
    pins.pin("of a directory of upper alone", "2 statx, 1 renameat2", || rename(pure, "made"));
    pins.pin(
        "of a directory of the last lower",
        "7 statx, 1 mkdirat, 1 openat, 2 listxattr, 1 fchmodat2, 2 utimensat, 1 name_to_handle_at, \
         3 setxattr, 2 renameat2",
        || rename(1, "pure-lower"),
    );
    pins.check();
}
