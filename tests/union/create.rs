//! Making files, directories, symlinks and special files.

use layerfs::error::Errno;
use layerfs::union::{Caller, Union};
use nix::libc::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK};

use super::fixture::{Layers, is_whiteout, me, name, privileged, set_mode};
use super::values::{NO_ID, acl};

#[test]
fn what_is_made_is_there_now_and_after_opening_again() {
    let layers = Layers::new(1);
    layers.directory(0, "d");
    let view = layers.open();
    for dir in ["", "d/"] {
        view.put(&format!("{dir}file"), "content");
        view.mkdir(&format!("{dir}dir"), 0o755).unwrap();
        view.symlink(&format!("{dir}link"), "some/where").unwrap();
        view.mknod(&format!("{dir}fifo"), S_IFIFO | 0o640, 0).unwrap();
        view.mknod(&format!("{dir}sock"), S_IFSOCK | 0o600, 0).unwrap();
        view.mknod(&format!("{dir}regular"), S_IFREG | 0o600, 0).unwrap();
    }
    let check = |view: &super::fixture::View| {
        for dir in ["", "d/"] {
            let kind = |name: &str| view.stat(&format!("{dir}{name}")).unwrap().mode & S_IFMT;
            assert_eq!(view.text(&format!("{dir}file")), "content");
            assert_eq!(kind("dir"), S_IFDIR);
            assert_eq!(kind("link"), S_IFLNK);
            assert_eq!(kind("fifo"), S_IFIFO);
            assert_eq!(kind("sock"), S_IFSOCK);
            assert_eq!(kind("regular"), S_IFREG);
            let link = view.hold(&format!("{dir}link")).unwrap();
            assert_eq!(view.union.readlink(link.ino).unwrap(), b"some/where");
            assert_eq!(link.size, 10);
        }
    };
    check(&view);
    assert_eq!(layers.staged(), [""; 0]);
    view.close();
    check(&layers.open());
}

#[test]
fn devices_carry_their_numbers() {
    if !privileged() {
        eprintln!("left out without the superuser's rights");
        return;
    }
    let layers = Layers::new(1);
    let view = layers.open();
    let null = nix::sys::stat::makedev(1, 3);
    view.mknod("char", S_IFCHR | 0o666, null).unwrap();
    view.mknod("block", S_IFBLK | 0o600, nix::sys::stat::makedev(7, 300)).unwrap();
    assert_eq!(view.stat("char").unwrap().rdev, null);
    assert_eq!(view.stat("block").unwrap().rdev, nix::sys::stat::makedev(7, 300));
    assert_eq!(view.stat("char").unwrap().mode, S_IFCHR | 0o644);
}

/// As such it would be a whiteout on disk: it has to be stored as something else.
#[test]
fn a_device_with_the_numbers_of_a_whiteout_is_a_device() {
    let layers = Layers::new(1);
    layers.file(0, "over", "lower");
    let view = layers.open();
    view.mknod("new", S_IFCHR | 0o600, 0).unwrap();
    view.unlink("over").unwrap();
    view.mknod("over", S_IFCHR | 0o600, 0).unwrap();
    view.chmod("new", 0o640).unwrap();
    view.rename("new", "moved", super::fixture::PLAIN).unwrap();
    let check = |view: &super::fixture::View| {
        assert_eq!(view.names("").unwrap(), ["moved", "over"]);
        for (path, mode) in [("over", 0o600), ("moved", 0o640)] {
            let attr = view.stat(path).unwrap();
            assert_eq!((attr.mode, attr.rdev, attr.nlink), (S_IFCHR | mode, 0, 1), "{path}");
        }
    };
    check(&view);
    view.close();
    let view = layers.open();
    check(&view);
    view.unlink("over").unwrap();
    view.unlink("moved").unwrap();
    assert_eq!(view.names("").unwrap(), [""; 0]);
}

#[test]
fn the_umask_is_applied() {
    let layers = Layers::new(1);
    let view = layers.open();
    let caller = Caller { umask: 0o027, ..me() };
    let mode = |attr: layerfs::union::Attr| {
        view.union.forget(attr.ino, 1);
        attr.mode & 0o7777
    };
    assert_eq!(mode(view.union.create(&caller, Union::ROOT, &name("f"), 0o666).unwrap()), 0o640);
    assert_eq!(mode(view.union.mkdir(&caller, Union::ROOT, &name("d"), 0o777).unwrap()), 0o750);
    assert_eq!(mode(view.union.mknod(&caller, Union::ROOT, &name("p"), S_IFIFO | 0o666, 0).unwrap()), 0o640);
    let sticky = Caller { umask: 0, ..me() };
    assert_eq!(mode(view.union.mkdir(&sticky, Union::ROOT, &name("t"), 0o1777).unwrap()), 0o1777);
    assert_eq!(mode(view.union.create(&sticky, Union::ROOT, &name("s"), 0o4755).unwrap()), 0o4755);
}

#[test]
fn new_objects_belong_to_the_caller() {
    if !privileged() {
        eprintln!("left out without the superuser's rights");
        return;
    }
    let layers = Layers::new(1);
    layers.directory(0, "d");
    let view = layers.open();
    let caller = Caller { uid: 1000, gid: 1001, ..me() };
    let dir = view.hold("d").unwrap();
    let made = [
        view.union.create(&caller, dir.ino, &name("f"), 0o644).unwrap(),
        view.union.mkdir(&caller, dir.ino, &name("d"), 0o755).unwrap(),
        view.union.symlink(&caller, dir.ino, &name("l"), b"x").unwrap(),
        view.union.mknod(&caller, dir.ino, &name("p"), S_IFIFO | 0o644, 0).unwrap(),
    ];
    for attr in made {
        assert_eq!((attr.uid, attr.gid), (1000, 1001));
        view.union.forget(attr.ino, 1);
    }
    assert_eq!(view.stat("d").unwrap().uid, me().uid, "the parent was copied up as it was");
}

#[test]
fn a_set_group_directory_gives_its_group_on() {
    if !privileged() {
        eprintln!("left out without the superuser's rights");
        return;
    }
    let layers = Layers::new(1);
    let dir = layers.directory(0, "d");
    std::os::unix::fs::chown(&dir, Some(0), Some(2000)).unwrap();
    set_mode(&dir, 0o2775);
    let view = layers.open();
    assert_eq!(view.create("d/f", 0o644).unwrap().gid, 2000);
    assert_eq!(view.stat("d/f").unwrap().mode & 0o7777, 0o644);
    let sub = view.mkdir("d/sub", 0o755).unwrap();
    assert_eq!((sub.gid, sub.mode & 0o7777), (2000, 0o2755));
    assert_eq!(view.symlink("d/link", "x").unwrap().gid, 2000);
    assert_eq!(view.create("d/sub/f", 0o644).unwrap().gid, 2000);
}

#[test]
fn making_over_a_whiteout_leaves_nothing_staged() {
    let layers = Layers::new(1);
    for path in ["file", "dir/inner", "link", "fifo", "moved"] {
        layers.file(0, path, "lower");
    }
    let view = layers.open();
    view.unlink("dir/inner").unwrap();
    view.rmdir("dir").unwrap();
    for path in ["file", "link", "fifo", "moved"] {
        view.unlink(path).unwrap();
        assert!(is_whiteout(&layers.upper(path)));
    }
    view.put("file", "new");
    view.mkdir("dir", 0o755).unwrap();
    view.symlink("link", "x").unwrap();
    view.mknod("fifo", S_IFIFO | 0o644, 0).unwrap();
    view.link("file", "moved").unwrap();
    assert_eq!(view.names("").unwrap(), ["dir", "fifo", "file", "link", "moved"]);
    assert_eq!(view.names("dir").unwrap(), [""; 0]);
    assert_eq!(layers.staged(), [""; 0]);
    view.close();
    let view = layers.open();
    assert_eq!(view.names("dir").unwrap(), [""; 0]);
    assert_eq!(view.text("moved"), "new");
}

#[test]
fn a_name_that_is_taken_is_eexist_whatever_has_it() {
    let layers = Layers::new(1);
    layers.file(0, "lower", "");
    layers.directory(0, "dir");
    let view = layers.open();
    view.create("upper", 0o644).unwrap();
    for taken in ["lower", "dir", "upper"] {
        assert_eq!(view.create(taken, 0o644).unwrap_err(), Errno::EEXIST);
        assert_eq!(view.mkdir(taken, 0o755).unwrap_err(), Errno::EEXIST);
        assert_eq!(view.symlink(taken, "x").unwrap_err(), Errno::EEXIST);
        assert_eq!(view.mknod(taken, S_IFIFO | 0o644, 0).unwrap_err(), Errno::EEXIST);
        assert_eq!(view.link("upper", taken).unwrap_err(), Errno::EEXIST);
    }
}

#[test]
fn a_parent_that_is_no_directory_is_enotdir() {
    let layers = Layers::new(1);
    layers.file(0, "f", "");
    std::os::unix::fs::symlink("x", layers.lower(0, "l")).unwrap();
    let view = layers.open();
    for parent in ["f", "l"] {
        let below = format!("{parent}/x");
        assert_eq!(view.create(&below, 0o644).unwrap_err(), Errno::ENOTDIR);
        assert_eq!(view.mkdir(&below, 0o755).unwrap_err(), Errno::ENOTDIR);
        assert_eq!(view.symlink(&below, "x").unwrap_err(), Errno::ENOTDIR);
        assert_eq!(view.mknod(&below, S_IFIFO | 0o644, 0).unwrap_err(), Errno::ENOTDIR);
        assert_eq!(view.link("f", &below).unwrap_err(), Errno::ENOTDIR);
        assert_eq!(view.unlink(&below).unwrap_err(), Errno::ENOTDIR);
        assert_eq!(view.rmdir(&below).unwrap_err(), Errno::ENOTDIR);
        assert_eq!(view.stat(&below).unwrap_err(), Errno::ENOTDIR);
        assert_eq!(view.names(parent).unwrap_err(), Errno::ENOTDIR);
    }
}

#[test]
fn nothing_can_be_made_in_a_removed_directory() {
    let layers = Layers::new(1);
    layers.directory(0, "lower");
    let view = layers.open();
    view.mkdir("upper", 0o755).unwrap();
    for dir in ["lower", "upper"] {
        let held = view.hold(dir).unwrap();
        view.rmdir(dir).unwrap();
        let (union, x) = (&view.union, name("x"));
        assert_eq!(union.create(&me(), held.ino, &x, 0o644).unwrap_err(), Errno::ENOENT);
        assert_eq!(union.mkdir(&me(), held.ino, &x, 0o755).unwrap_err(), Errno::ENOENT);
        assert_eq!(union.symlink(&me(), held.ino, &x, b"x").unwrap_err(), Errno::ENOENT);
        assert_eq!(union.lookup(held.ino, &x).unwrap_err(), Errno::ENOENT);
        assert!(!view.exists(dir));
        view.mkdir(dir, 0o755).unwrap();
        assert_eq!(view.names(dir).unwrap(), [""; 0]);
        assert_ne!(view.stat(dir).unwrap().ino, held.ino, "the removed one still has its number");
    }
}

#[test]
fn hard_links_of_directories_are_refused() {
    let layers = Layers::new(1);
    layers.directory(0, "d");
    assert_eq!(layers.open().link("d", "e").unwrap_err(), Errno::EPERM);
}

#[test]
fn the_longest_symlink_target_survives() {
    let layers = Layers::new(1);
    let target = "t".repeat(4095);
    std::os::unix::fs::symlink(&target, layers.lower(0, "lower")).unwrap();
    let view = layers.open();
    view.symlink("upper", &target).unwrap();
    view.touch("lower", 5, 6).unwrap();
    for link in ["lower", "upper"] {
        let held = view.hold(link).unwrap();
        assert_eq!(view.union.readlink(held.ino).unwrap(), target.as_bytes());
    }
    assert_eq!(view.union.readlink(Union::ROOT).unwrap_err(), Errno::EINVAL);
}

#[test]
fn default_acls_are_inherited_and_stand_in_for_the_umask() {
    const USER_OBJ: u16 = 1;
    const USER: u16 = 2;
    const GROUP_OBJ: u16 = 4;
    const MASK: u16 = 16;
    const OTHER: u16 = 32;
    let layers = Layers::new(1);
    let dir = layers.directory(0, "d");
    let default =
        acl(&[(USER_OBJ, 7, NO_ID), (USER, 7, 1234), (GROUP_OBJ, 7, NO_ID), (MASK, 7, NO_ID), (OTHER, 0, NO_ID)]);
    if super::fixture::set_xattr(&dir, "system.posix_acl_default", &default).is_err() {
        eprintln!("left out: this filesystem has no ACLs");
        return;
    }
    let view = layers.open();
    assert_eq!(view.get_xattr("d", "system.posix_acl_default").unwrap(), default);
    assert_eq!(view.create("d/f", 0o666).unwrap().mode & 0o7777, 0o660);
    let access =
        acl(&[(USER_OBJ, 6, NO_ID), (USER, 7, 1234), (GROUP_OBJ, 7, NO_ID), (MASK, 6, NO_ID), (OTHER, 0, NO_ID)]);
    assert_eq!(view.get_xattr("d/f", "system.posix_acl_access").unwrap(), access);
    assert_eq!(view.mkdir("d/sub", 0o777).unwrap().mode & 0o7777, 0o770);
    assert_eq!(view.get_xattr("d/sub", "system.posix_acl_default").unwrap(), default);
    assert_eq!(view.create("d/sub/g", 0o600).unwrap().mode & 0o7777, 0o600);
}
