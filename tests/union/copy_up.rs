//! Copy-up: everything that the lower object carries arrives, and nothing is left in the work directory.

use std::os::unix::fs::{FileExt, MetadataExt};

use layerfs::union::{SetAttr, SetTime};
use nix::libc::{SEEK_DATA, SEEK_HOLE};

use super::fixture::{
    Layers, View, get_xattr, mark, me, privileged, read_all, set_mode, set_times, set_xattr, snapshot,
};
use super::values::{CAPABILITY, NO_ID, acl};

type Trigger = fn(&View, &str);

/// What brings a file up; each leaves `lower` in it.
const TRIGGERS: [(&str, Trigger); 9] = [
    ("chmod", |view, path| {
        view.chmod(path, 0o640).unwrap();
    }),
    ("times", |view, path| {
        view.touch(path, 77, 88).unwrap();
    }),
    ("xattr", |view, path| view.set_xattr(path, "user.new", b"v").unwrap()),
    ("write", |view, path| view.write(path, 0, b"l").unwrap()),
    ("truncate", |view, path| {
        view.truncate(path, 5).unwrap();
    }),
    ("link", |view, path| {
        view.link(path, &format!("{path}-2")).unwrap();
    }),
    ("rename", |view, path| {
        view.rename(path, "aside", super::fixture::PLAIN).unwrap();
        view.rename("aside", path, super::fixture::PLAIN).unwrap();
    }),
    ("fallocate", |view, path| view.union.fallocate(view.hold(path).unwrap().ino, 0, 0, 5).unwrap()),
    ("copy_file_range", |view, path| {
        let file = view.hold(path).unwrap();
        assert_eq!(view.union.copy_file_range(file.ino, 0, file.ino, 4, 1).unwrap(), 1);
        view.write(path, 4, b"r").unwrap();
    }),
];

#[test]
fn every_change_of_a_lower_file_brings_all_of_it_up() {
    for (change, trigger) in TRIGGERS {
        let layers = Layers::new(2);
        let file = layers.file(1, "p/q/file", "lower");
        set_mode(&file, 0o711);
        set_xattr(&file, "user.kept", b"value").unwrap();
        set_xattr(&file, "user.empty", b"").unwrap();
        if privileged() {
            std::os::unix::fs::chown(&file, Some(1234), Some(5678)).unwrap();
        }
        set_times(&file, 1_000_000_007, 123_456_789);
        set_mode(&layers.lower(1, "p"), 0o751);
        set_xattr(&layers.lower(1, "p"), "user.dir", b"d").unwrap();
        set_times(&layers.lower(1, "p/q"), 44, 55);
        set_times(&layers.lower(1, "p"), 33, 44);
        let before = snapshot(&layers.lowers[1]);
        let view = layers.open();
        let shown = view.stat("p/q/file").unwrap();
        trigger(&view, "p/q/file");
        let check = |view: &View| {
            let attr = view.stat("p/q/file").unwrap();
            assert_eq!(attr.ino, shown.ino, "{change}");
            assert_eq!((attr.uid, attr.gid), (shown.uid, shown.gid), "{change}");
            assert_eq!(view.text("p/q/file"), "lower", "{change}");
            assert_eq!(view.get_xattr("p/q/file", "user.kept").unwrap(), b"value", "{change}");
            assert_eq!(view.get_xattr("p/q/file", "user.empty").unwrap(), b"", "{change}");
            if ["link", "rename", "xattr"].contains(&change) {
                assert_eq!(attr.mode, shown.mode, "{change}");
                assert_eq!(attr.mtime, shown.mtime, "{change}");
            }
            if ["chmod", "times", "xattr", "write", "truncate"].contains(&change) {
                let dir = view.stat("p/q").unwrap();
                assert_eq!((dir.mtime.sec, dir.mtime.nsec), (44, 55), "{change}: the directory did not change");
            }
            let dir = view.stat("p").unwrap();
            assert_eq!(dir.mode & 0o7777, 0o751, "{change}");
            assert_eq!((dir.mtime.sec, dir.mtime.nsec), (33, 44), "{change}");
            assert_eq!(view.get_xattr("p", "user.dir").unwrap(), b"d", "{change}");
        };
        check(&view);
        assert!(layers.upper("p/q/file").is_file(), "{change}");
        assert_eq!(layers.staged(), [""; 0], "{change}");
        view.close();
        check(&layers.open());
        assert_eq!(snapshot(&layers.lowers[1]), before, "{change}");
    }
}

#[test]
fn directories_symlinks_and_fifos_come_up_as_they_are() {
    let layers = Layers::new(1);
    layers.file(0, "dir/in", "in");
    std::os::unix::fs::symlink("target", layers.lower(0, "link")).unwrap();
    nix::unistd::mkfifo(&layers.lower(0, "fifo"), nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
    for path in ["dir", "link", "fifo"] {
        set_times(&layers.lower(0, path), 123, 456);
    }
    let before = snapshot(&layers.lowers[0]);
    let view = layers.open();
    for path in ["dir", "link", "fifo"] {
        let shown = view.stat(path).unwrap();
        let mtime_only = SetAttr { atime: Some(SetTime::Now), ..SetAttr::default() };
        view.set(path, mtime_only).unwrap();
        let attr = view.stat(path).unwrap();
        assert_eq!((attr.ino, attr.mode, attr.mtime), (shown.ino, shown.mode, shown.mtime), "{path}");
        assert!(layers.upper(path).symlink_metadata().is_ok());
    }
    assert_eq!(view.union.readlink(view.hold("link").unwrap().ino).unwrap(), b"target");
    assert_eq!(view.names("dir").unwrap(), ["in"]);
    let ups = view.stats().copy_ups;
    for kind in ["directory", "symlink", "special"] {
        assert_eq!(ups.get(kind), Some(&1), "{ups:?}");
    }
    view.close();
    assert_eq!(snapshot(&layers.lowers[0]), before);
}

#[test]
fn a_write_in_the_middle_keeps_the_rest_and_is_counted() {
    let layers = Layers::new(1);
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(layers.lower(0, "big"), &content).unwrap();
    let view = layers.open();
    view.write("big", 1_500_000, b"CHANGED").unwrap();
    let mut expected = content.clone();
    expected[1_500_000..1_500_007].copy_from_slice(b"CHANGED");
    assert_eq!(view.read("big").unwrap(), expected);
    assert_eq!(std::fs::read(layers.lower(0, "big")).unwrap(), content);
    let stats = view.stats();
    assert_eq!(stats.copy_ups.get("data"), Some(&1));
    assert_eq!(stats.copy_up_bytes.values().sum::<u64>(), 3_000_000);
    view.write("big", 0, b"x").unwrap();
    assert_eq!(view.stats().copy_ups, stats.copy_ups, "once is enough");
}

#[test]
fn holes_stay_holes() {
    let layers = Layers::new(1);
    let file = std::fs::File::create(layers.lower(0, "sparse")).unwrap();
    file.set_len(8 << 20).unwrap();
    file.write_all_at(b"middle", 4 << 20).unwrap();
    let lower_blocks = file.metadata().unwrap().blocks();
    let view = layers.open();
    view.chmod("sparse", 0o600).unwrap();
    let upper = layers.upper("sparse").metadata().unwrap();
    assert_eq!(upper.size(), 8 << 20);
    assert!(upper.blocks() <= lower_blocks + 16, "{} blocks of {lower_blocks}", upper.blocks());
    let held = view.hold("sparse").unwrap();
    let data = view.union.lseek(held.ino, 0, SEEK_DATA).unwrap();
    assert!((1 << 20..=4 << 20).contains(&data), "{data}");
    assert!(view.union.lseek(held.ino, 4 << 20, SEEK_HOLE).unwrap() < 8 << 20);
    let content = read_all(&view.union, held.ino).unwrap();
    assert_eq!(&content[4 << 20..(4 << 20) + 6], b"middle");
    assert_eq!(content.iter().filter(|byte| **byte != 0).count(), 6);
}

#[test]
fn acls_and_capabilities_come_up() {
    let layers = Layers::new(1);
    let file = layers.file(0, "f", "lower");
    let access = acl(&[(1, 6, NO_ID), (2, 7, 1234), (4, 4, NO_ID), (16, 7, NO_ID), (32, 0, NO_ID)]);
    let acls = set_xattr(&file, "system.posix_acl_access", &access).is_ok();
    let capabilities = privileged() && set_xattr(&file, "security.capability", &CAPABILITY).is_ok();
    let view = layers.open();
    let shown = view.stat("f").unwrap();
    view.set_xattr("f", "user.x", b"y").unwrap();
    assert!(layers.upper("f").is_file());
    assert_eq!(view.stat("f").unwrap().mode, shown.mode);
    if acls {
        assert_eq!(view.get_xattr("f", "system.posix_acl_access").unwrap(), access);
    }
    if capabilities {
        assert_eq!(get_xattr(&layers.upper("f"), "security.capability").unwrap(), CAPABILITY);
        assert_eq!(view.get_xattr("f", "security.capability").unwrap(), CAPABILITY);
    }
}

#[test]
fn the_mark_of_a_copy_not_yet_durable_goes_at_the_clean_end() {
    let layers = Layers::new(1);
    layers.file(0, "f", "lower");
    let view = layers.open();
    view.write("f", 0, b"upper").unwrap();
    assert!(layers.work("work/incompat/layerfs").exists());
    view.close();
    assert!(!layers.work("work/incompat/layerfs").exists());
    let marks = super::fixture::marks(&layers.upper("f"));
    assert!(marks.iter().all(|name| *name == mark("origin")), "{marks:?}");
}

#[test]
fn an_fsync_makes_a_copy_durable() {
    let layers = Layers::new(1);
    layers.file(0, "d/f", "lower");
    let view = layers.open();
    let file = view.hold("d/f").unwrap();
    view.union.fsync(file.ino, false).unwrap();
    assert!(layers.upper("d").symlink_metadata().is_err(), "nothing to do for a lower file");
    view.write("d/f", 0, b"upper").unwrap();
    view.union.fsync(file.ino, true).unwrap();
    let marks = super::fixture::marks(&layers.upper("d/f"));
    assert!(marks.iter().all(|name| *name == mark("origin")), "{marks:?}");
    view.union.fsyncdir(view.hold("d").unwrap().ino, false).unwrap();
}

#[test]
fn a_lower_file_that_is_only_read_stays_where_it_is() {
    let layers = Layers::new(1);
    layers.file(0, "d/f", "lower");
    let view = layers.open();
    let file = view.hold("d/f").unwrap();
    assert_eq!(view.text("d/f"), "lower");
    view.xattrs("d/f").unwrap();
    view.union.lseek(file.ino, 0, SEEK_DATA).unwrap();
    view.union.statfs().unwrap();
    view.union.getattr(file.ino).unwrap();
    view.put("copy", "x");
    let copy = view.hold("copy").unwrap();
    assert_eq!(view.union.copy_file_range(file.ino, 0, copy.ino, 0, 5).unwrap(), 5);
    assert_eq!(view.text("copy"), "lower");
    assert!(layers.upper("d").symlink_metadata().is_err());
}

#[test]
fn a_change_that_fails_leaves_a_lower_file_shown() {
    let layers = Layers::new(1);
    layers.file(0, "f", "lower");
    let view = layers.open();
    let held = view.hold("f").unwrap();
    let missing = view.union.removexattr(held.ino, &super::fixture::xname("user.none"));
    assert_eq!(missing.unwrap_err(), layerfs::error::Errno::ENODATA);
    view.union.setattr(&me(), held.ino, &SetAttr { size: Some(u64::MAX), ..SetAttr::default() }).unwrap_err();
    assert_eq!(view.text("f"), "lower");
}
