//! Extended attributes.

use layerfs::error::Errno;
use layerfs::union::{Options, Union};
use nix::libc::{XATTR_CREATE, XATTR_REPLACE};

use super::fixture::{Layers, me, privileged, set_xattr, xname};

#[test]
fn they_come_and_go() {
    let layers = Layers::new(1);
    let file = layers.file(0, "lower", "");
    set_xattr(&file, "user.one", b"1").unwrap();
    set_xattr(&file, "user.two", b"2").unwrap();
    layers.directory(0, "dir");
    let view = layers.open();
    view.create("upper", 0o644).unwrap();
    assert_eq!(view.xattrs("lower").unwrap(), ["user.one", "user.two"]);
    assert_eq!(view.get_xattr("lower", "user.one").unwrap(), b"1");
    for path in ["lower", "upper", "dir", ""] {
        view.set_xattr(path, "user.three", b"\0binary\xff").unwrap();
        assert_eq!(view.get_xattr(path, "user.three").unwrap(), b"\0binary\xff");
        view.set_xattr(path, "user.three", b"").unwrap();
        assert_eq!(view.get_xattr(path, "user.three").unwrap(), b"");
    }
    view.union.removexattr(view.hold("lower").unwrap().ino, &xname("user.one")).unwrap();
    assert_eq!(view.xattrs("lower").unwrap(), ["user.three", "user.two"]);
    view.close();
    let view = layers.open();
    assert_eq!(view.xattrs("lower").unwrap(), ["user.three", "user.two"]);
    assert_eq!(view.xattrs("").unwrap(), ["user.three"]);
}

#[test]
fn flags_and_missing_names_have_their_errors() {
    let layers = Layers::new(1);
    let file = layers.file(0, "f", "");
    set_xattr(&file, "user.there", b"1").unwrap();
    let view = layers.open();
    let held = view.hold("f").unwrap();
    let set = |name: &str, flags| view.union.setxattr(&me(), held.ino, &xname(name), b"v", flags);
    assert_eq!(set("user.there", XATTR_CREATE).unwrap_err(), Errno::EEXIST);
    assert_eq!(set("user.none", XATTR_REPLACE).unwrap_err(), Errno::ENODATA);
    assert_eq!(view.get_xattr("f", "user.none").unwrap_err(), Errno::ENODATA);
    assert_eq!(view.union.removexattr(held.ino, c"user.none").unwrap_err(), Errno::ENODATA);
    assert_eq!(set("nonamespace", 0).unwrap_err(), Errno::EOPNOTSUPP);
    set("user.there", XATTR_REPLACE).unwrap();
    set("user.none", XATTR_CREATE).unwrap();
    assert_eq!(view.get_xattr("f", "user.there").unwrap(), b"v");
}

#[test]
fn symlinks_and_fifos_take_no_user_attributes() {
    let layers = Layers::new(1);
    std::os::unix::fs::symlink("x", layers.lower(0, "link")).unwrap();
    nix::unistd::mkfifo(&layers.lower(0, "fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let view = layers.open();
    for path in ["link", "fifo"] {
        assert_eq!(view.set_xattr(path, "user.x", b"v").unwrap_err(), Errno::EPERM);
        assert_eq!(view.get_xattr(path, "user.x").unwrap_err(), Errno::ENODATA);
        assert_eq!(view.xattrs(path).unwrap(), [""; 0]);
        if privileged() {
            view.set_xattr(path, "trusted.x", b"v").unwrap();
            assert_eq!(view.xattrs(path).unwrap(), ["trusted.x"]);
        }
    }
}

#[test]
fn a_directorys_attributes_are_those_of_the_topmost_layer() {
    let layers = Layers::new(2);
    set_xattr(&layers.directory(0, "d"), "user.top", b"1").unwrap();
    set_xattr(&layers.directory(1, "d"), "user.bottom", b"1").unwrap();
    let view = layers.open();
    assert_eq!(view.xattrs("d").unwrap(), ["user.top"]);
    view.chmod("d", 0o700).unwrap();
    assert_eq!(view.xattrs("d").unwrap(), ["user.top"]);
}

#[test]
fn a_large_value_survives_copy_up() {
    let layers = Layers::new(1);
    let file = layers.file(0, "f", "");
    let large = vec![b'x'; 3000];
    if set_xattr(&file, "user.large", &large).is_err() {
        eprintln!("left out: this filesystem has only small attributes");
        return;
    }
    let view = layers.open();
    view.chmod("f", 0o600).unwrap();
    assert_eq!(view.get_xattr("f", "user.large").unwrap(), large);
}

#[test]
fn the_statistics_are_not_part_of_the_tree() {
    let layers = Layers::new(1);
    let view = layers.open();
    let listed = view.union.listxattr(Union::ROOT).unwrap();
    assert!(listed.is_empty(), "{}", listed.escape_ascii());
}

/// What they hold is kept for a mount that shows them.
#[test]
fn a_union_can_be_without_them() {
    let layers = Layers::new(1);
    let file = layers.file(0, "f", "");
    set_xattr(&file, "user.x", b"v").unwrap();
    let view = layers.open_with(Options { xattrs: false, acl: false, ..Options::default() });
    let held = view.hold("f").unwrap();
    assert_eq!(view.get_xattr("f", "user.x"), Err(Errno::EOPNOTSUPP));
    assert_eq!(view.get_xattr("f", "system.posix_acl_access"), Err(Errno::ENODATA));
    assert_eq!(view.set_xattr("f", "user.y", b"v"), Err(Errno::EOPNOTSUPP));
    assert_eq!(view.union.removexattr(held.ino, &xname("user.x")), Err(Errno::EOPNOTSUPP));
    assert!(view.xattrs("f").unwrap().is_empty());
    assert!(view.get_xattr("", "user.layerfs.stats").is_ok());
    view.write("f", 0, b"x").unwrap();
    drop(held);
    view.close();
    assert_eq!(layers.open().get_xattr("f", "user.x").unwrap(), b"v");
}
