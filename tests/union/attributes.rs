//! Attributes: each on its own, times to the nanosecond, and what the kernel drops with a change.

use layerfs::error::Errno;
use layerfs::union::{Caller, SetAttr, SetTime, Time, Union};
use nix::libc::S_ISUID;

use super::fixture::{Layers, me, privileged, set_mode, set_times, set_xattr};
use super::values::CAPABILITY;

#[test]
fn each_attribute_changes_alone() {
    let layers = Layers::new(1);
    for file in ["lower", "dir/lower"] {
        layers.file(0, file, "content");
        set_times(&layers.lower(0, file), 11, 22);
    }
    let view = layers.open();
    view.put("upper", "content");
    view.touch("upper", 11, 22).unwrap();
    for path in ["lower", "dir/lower", "upper"] {
        let at = |sec, nsec| Some(SetTime::At(Time { sec, nsec }));
        let before = view.stat(path).unwrap();
        let attr = view.set(path, SetAttr { atime: at(33, 44), ..SetAttr::default() }).unwrap();
        assert_eq!((attr.atime.sec, attr.atime.nsec, attr.mtime), (33, 44, before.mtime));
        let attr = view.set(path, SetAttr { mtime: at(55, 66), ..SetAttr::default() }).unwrap();
        assert_eq!((attr.mtime.sec, attr.mtime.nsec), (55, 66));
        assert_eq!((attr.atime.sec, attr.atime.nsec), (33, 44));
        let attr = view.chmod(path, 0o604).unwrap();
        assert_eq!((attr.mode & 0o7777, attr.mtime.sec, attr.size), (0o604, 55, 7));
        let attr = view.truncate(path, 3).unwrap();
        assert_eq!((attr.size, attr.mode & 0o7777), (3, 0o604));
        assert_eq!(view.text(path), "con");
        view.truncate(path, 5).unwrap();
        assert_eq!(view.read(path).unwrap(), b"con\0\0");
        assert_eq!(view.stat(path).unwrap().ino, before.ino);
    }
}

#[test]
fn owners_change_alone_and_together() {
    if !privileged() {
        eprintln!("left out without the superuser's rights");
        return;
    }
    let layers = Layers::new(1);
    layers.file(0, "f", "");
    layers.directory(0, "d");
    std::os::unix::fs::symlink("x", layers.lower(0, "l")).unwrap();
    let view = layers.open();
    for path in ["f", "d", "l"] {
        let attr = view.set(path, SetAttr { uid: Some(7), ..SetAttr::default() }).unwrap();
        assert_eq!((attr.uid, attr.gid), (7, 0), "{path}");
        let attr = view.set(path, SetAttr { gid: Some(8), ..SetAttr::default() }).unwrap();
        assert_eq!((attr.uid, attr.gid), (7, 8), "{path}");
        let attr = view.set(path, SetAttr { uid: Some(1), gid: Some(2), mode: Some(0o600), ..SetAttr::default() });
        if path != "l" {
            let attr = attr.unwrap();
            assert_eq!((attr.uid, attr.gid, attr.mode & 0o7777), (1, 2, 0o600), "{path}");
        }
    }
}

#[test]
fn times_before_1970_and_now() {
    let layers = Layers::new(1);
    set_times(&layers.file(0, "lower", ""), -7, 250_000_000);
    layers.file(0, "other", "");
    let view = layers.open();
    let attr = view.stat("lower").unwrap();
    assert_eq!((attr.mtime.sec, attr.mtime.nsec), (-7, 250_000_000));
    view.chmod("lower", 0o600).unwrap();
    let attr = view.stat("lower").unwrap();
    assert_eq!((attr.mtime.sec, attr.mtime.nsec), (-7, 250_000_000), "copied up as it was");
    let attr = view.touch("other", -2, 999_999_999).unwrap();
    assert_eq!((attr.mtime.sec, attr.mtime.nsec), (-2, 999_999_999));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let attr = view.set("other", SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() }).unwrap();
    assert!((attr.mtime.sec - now).abs() < 60);
    assert_eq!((attr.atime.sec, attr.atime.nsec), (-2, 999_999_999));
}

#[test]
fn the_size_belongs_to_files_only() {
    let layers = Layers::new(1);
    layers.directory(0, "d");
    std::os::unix::fs::symlink("x", layers.lower(0, "l")).unwrap();
    nix::unistd::mkfifo(&layers.lower(0, "p"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let view = layers.open();
    assert_eq!(view.truncate("d", 0).unwrap_err(), Errno::EISDIR);
    assert_eq!(view.truncate("l", 0).unwrap_err(), Errno::EINVAL);
    assert_eq!(view.truncate("p", 0).unwrap_err(), Errno::EINVAL);
}

/// The kernel announces a write by somebody without the right to keep them with a change of nothing.
#[test]
fn a_change_of_nothing_drops_the_privileges_of_a_file() {
    for upper in [false, true] {
        let layers = Layers::new(1);
        let file = layers.file(0, "f", "lower");
        set_mode(&file, 0o6775);
        let capabilities = privileged() && set_xattr(&file, "security.capability", &CAPABILITY).is_ok();
        set_mode(&layers.file(0, "no-group-x", ""), 0o2664);
        let view = layers.open();
        if upper {
            view.touch("f", 1, 2).unwrap();
        }
        let ask = |caller: &Caller, path: &str| {
            let held = view.hold(path).unwrap();
            view.union.setattr(caller, held.ino, &SetAttr { before_write: true, ..SetAttr::default() }).unwrap()
        };
        let somebody = Caller { uid: 1000, ..me() };
        if capabilities {
            let attr = ask(&me(), "f");
            assert_eq!(attr.mode & 0o7777, 0o6775, "who may keep set-id bits is asked for the capabilities only");
            assert_eq!(view.get_xattr("f", "security.capability").unwrap_err(), Errno::ENODATA);
        }
        assert_eq!(ask(&somebody, "f").mode & 0o7777, 0o775);
        let attr = ask(&somebody, "no-group-x");
        assert_eq!(attr.mode & 0o7777, 0o2664, "without x for the group it means mandatory locking");
    }
}

#[test]
fn a_new_owner_gets_no_set_user_bit() {
    if !privileged() {
        eprintln!("left out without the superuser's rights");
        return;
    }
    let layers = Layers::new(1);
    let file = layers.file(0, "f", "");
    set_mode(&file, 0o4755);
    let view = layers.open();
    let attr = view.set("f", SetAttr { uid: Some(1000), ..SetAttr::default() }).unwrap();
    assert_eq!(attr.mode & S_ISUID, 0);
}

#[test]
fn the_root_has_attributes_too() {
    let layers = Layers::new(1);
    let view = layers.open();
    let root = view.union.getattr(Union::ROOT).unwrap();
    assert_eq!(root.ino, Union::ROOT);
    assert_eq!(root.mode & 0o7777, 0o755);
    view.union.setattr(&me(), Union::ROOT, &SetAttr { mode: Some(0o711), ..SetAttr::default() }).unwrap();
    view.union.setxattr(&me(), Union::ROOT, c"user.root", b"yes", 0).unwrap();
    view.close();
    let view = layers.open();
    assert_eq!(view.union.getattr(Union::ROOT).unwrap().mode & 0o7777, 0o711);
    assert_eq!(view.get_xattr("", "user.root").unwrap(), b"yes");
}

#[test]
fn the_filesystem_has_numbers() {
    let layers = Layers::new(1);
    layers.open().union.statfs().unwrap();
    layers.open_read_only().union.statfs().unwrap();
}
