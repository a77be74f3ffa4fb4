//! Owners and permissions that are kept in an attribute, for who can't give files away: all of it works without a right.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use layerfs::error::Errno;
use layerfs::layer::StackSpec;
use layerfs::layer::override_stat::Form;
use layerfs::union::{Attr, Caller, FileKind, IdMap, Ids, Options, SetAttr, Union};
use nix::libc::{S_IFBLK, S_IFCHR, S_IFIFO, S_IFSOCK, S_ISGID, makedev};

use super::fixture::{Layers, View, get_xattr, me, name, privileged, set_mode, set_xattr};

const KEPT: &str = "user.containers.override_stat";
const OLD: &str = "user.fuseoverlayfs.override_stat";
const ROOTS: &str = "security.fuseoverlayfs.override_stat";

fn open(layers: &Layers, form: Form) -> View {
    open_with(layers, form, Options::default())
}

fn open_with(layers: &Layers, form: Form, options: Options) -> View {
    View::open(&StackSpec { xattr_permissions: Some(form), ..layers.spec() }, options)
}

fn kept(path: &Path, attribute: &str) -> Option<String> {
    get_xattr(path, attribute).map(|value| String::from_utf8(value).unwrap())
}

fn shown(attr: &Attr) -> (u32, u32, u32) {
    (attr.uid, attr.gid, attr.mode & 0o7777)
}

/// The real object is the mounter's, and closed to everybody else.
#[track_caller]
fn assert_private(path: &Path) {
    let meta = path.symlink_metadata().unwrap();
    assert_eq!((meta.uid(), meta.gid()), (me().uid, me().gid), "{path:?}");
    let expected = if meta.is_dir() { 0o700 } else { 0o600 };
    assert_eq!(meta.mode() & 0o7777, expected, "{path:?}");
}

fn give(view: &View, path: &str, uid: u32, gid: u32) -> Attr {
    view.set(path, SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() }).unwrap()
}

#[test]
fn what_is_made_and_changed_is_kept_in_the_attribute() {
    let layers = Layers::new(1);
    layers.file(0, "gone", "x");
    let view = open(&layers, Form::User);
    view.unlink("gone").unwrap();
    let caller = Caller { uid: 1000, gid: 2000, umask: 0o022, ..me() };
    let root = view.hold("").unwrap();
    let made = [
        ("file", view.union.create(&caller, root.ino, &name("file"), 0o4666).unwrap()),
        ("gone", view.union.create(&caller, root.ino, &name("gone"), 0o666).unwrap()),
        ("dir", view.union.mkdir(&caller, root.ino, &name("dir"), 0o1777).unwrap()),
    ];
    for ((path, attr), mode) in made.iter().zip([0o4644, 0o644, 0o1755]) {
        assert_eq!(shown(attr), (1000, 2000, mode), "{path}");
        assert_eq!(kept(&layers.upper(path), KEPT), Some(format!("1000:2000:{mode:o}")), "{path}");
        assert_private(&layers.upper(path));
        let attr = give(&view, path, 5, 6);
        let mode = if *path == "file" { 0o644 } else { mode };
        assert_eq!(shown(&attr), (5, 6, mode), "a new owner gets no set-user-id bit");
        assert_eq!(shown(&view.chmod(path, 0o2070).unwrap()), (5, 6, 0o2070));
        assert_eq!(kept(&layers.upper(path), KEPT), Some("5:6:2070".to_owned()), "{path}");
        assert_private(&layers.upper(path));
        assert_eq!(view.get_xattr(path, KEPT).unwrap_err(), Errno::ENODATA);
        assert!(view.xattrs(path).unwrap().is_empty());
        assert_eq!(view.set_xattr(path, KEPT, b"0:0:4755").unwrap_err(), Errno::EPERM);
        assert_eq!(view.set_xattr(path, OLD, b"0:0:4755").unwrap_err(), Errno::EPERM);
    }
    assert_eq!(view.set_xattr("file", "system.posix_acl_access", b"").unwrap_err(), Errno::EOPNOTSUPP);
    view.write("file", 0, b"content").unwrap();
    view.symlink("link", "target").unwrap();
    give(&view, "link", me().uid, me().gid);
    drop(root);
    view.close();
    let view = open(&layers, Form::User);
    assert_eq!((shown(&view.stat("file").unwrap()), view.text("file")), ((5, 6, 0o2070), "content".to_owned()));
    assert_eq!(shown(&view.stat("dir").unwrap()), (5, 6, 0o2070));
}

#[test]
fn special_files_are_files_with_a_type() {
    let layers = Layers::new(1);
    nix::unistd::mkfifo(&layers.lower(0, "low"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let view = open(&layers, Form::User);
    let cases = [
        ("fifo", S_IFIFO, 0, FileKind::Fifo, "pipe"),
        ("socket", S_IFSOCK, 0, FileKind::Socket, "socket"),
        ("block", S_IFBLK, makedev(8, 1), FileKind::BlockDevice, "block-8-1"),
        ("char", S_IFCHR, makedev(1, 3), FileKind::CharDevice, "char-1-3"),
    ];
    for (path, format, rdev, kind, _) in cases {
        let attr = view.mknod(path, format | 0o640, rdev).unwrap();
        assert_eq!((attr.kind().unwrap(), attr.rdev, attr.mode & 0o7777), (kind, rdev, 0o640), "{path}");
        give(&view, path, 7, 8);
    }
    view.mknod("null", S_IFCHR | 0o600, 0).unwrap();
    give(&view, "null", 7, 8);
    give(&view, "low", 7, 8);
    let check = |view: &View| {
        for (path, _, rdev, kind, written) in cases {
            let attr = view.stat(path).unwrap();
            assert_eq!((attr.kind().unwrap(), attr.rdev, shown(&attr)), (kind, rdev, (7, 8, 0o640)), "{path}");
            assert_eq!(kept(&layers.upper(path), KEPT), Some(format!("7:8:640:{written}")));
            assert_private(&layers.upper(path));
        }
        let null = view.stat("null").unwrap();
        assert_eq!((null.kind().unwrap(), null.rdev, shown(&null)), (FileKind::CharDevice, 0, (7, 8, 0o600)));
        let low = view.stat("low").unwrap();
        assert_eq!((low.kind().unwrap(), shown(&low)), (FileKind::Fifo, (7, 8, 0o400)));
        let mut kinds = Vec::new();
        view.union
            .readdir(Union::ROOT, 0, &mut |entry| {
                kinds.push((String::from_utf8_lossy(entry.name).into_owned(), entry.kind));
                true
            })
            .unwrap();
        for (path, _, _, kind, _) in cases {
            assert!(kinds.contains(&(path.to_owned(), kind)), "{path}: {kinds:?}");
        }
        assert!(kinds.contains(&("low".to_owned(), FileKind::Fifo)), "{kinds:?}");
    };
    check(&view);
    let number = view.stat("low").unwrap().ino;
    view.close();
    let view = open(&layers, Form::User);
    check(&view);
    assert_eq!(view.stat("low").unwrap().ino, number, "it still is the lower's");
    assert_eq!(view.set_xattr("fifo", "user.x", b"y").unwrap_err(), Errno::EPERM, "as a fifo");
    view.link("char", "linked").unwrap();
    view.rename("block", "moved", super::fixture::PLAIN).unwrap();
    assert_eq!(view.stat("linked").unwrap().kind(), Ok(FileKind::CharDevice));
    assert_eq!(view.stat("moved").unwrap().rdev, makedev(8, 1));
    view.close();
}

/// As containers/storage unpacks images with `force_mask`, and older versions of fuse-overlayfs.
#[test]
fn what_layers_say_is_shown_and_copied_up() {
    for metacopy in [false, true] {
        let layers = Layers::new(2);
        let said = [("new", KEPT, "5:6:4755:file"), ("old", OLD, "5:6:0640"), ("dir", KEPT, "5:6:2755:dir")];
        for (path, attribute, value) in said {
            let place = if path == "dir" { layers.directory(1, path) } else { layers.file(1, path, "content") };
            set_xattr(&place, attribute, value.as_bytes()).unwrap();
        }
        set_xattr(&layers.lower(1, "new"), OLD, b"1:1:1").unwrap();
        set_xattr(&layers.lower(1, "new"), "user.own", b"kept").unwrap();
        set_xattr(&layers.file(1, "device", ""), KEPT, b"0:0:666:char-1-3").unwrap();
        layers.file(1, "dir/plain", "x");
        set_mode(&layers.lower(1, "dir/plain"), 0o604);
        let options = Options { metacopy, ..Options::default() };
        let view = open_with(&layers, Form::User, options);
        let expected = [("new", 0o4755), ("old", 0o640), ("dir", 0o2755)];
        for (path, mode) in expected {
            assert_eq!(shown(&view.stat(path).unwrap()), (5, 6, mode), "{path}");
        }
        assert_eq!(shown(&view.stat("dir/plain").unwrap()), (me().uid, me().gid, 0o604));
        assert_eq!(view.xattrs("new").unwrap(), ["user.own"]);
        let device = view.stat("device").unwrap();
        assert_eq!((device.kind().unwrap(), device.rdev), (FileKind::CharDevice, makedev(1, 3)));
        for path in ["new", "old", "dir", "device", "dir/plain"] {
            view.touch(path, 1, 2).unwrap();
            assert_private(&layers.upper(path));
        }
        assert_eq!(kept(&layers.upper("new"), KEPT), Some("5:6:4755".to_owned()));
        assert_eq!(kept(&layers.upper("new"), OLD), None, "one says it all");
        assert_eq!(kept(&layers.upper("old"), KEPT), Some("5:6:640".to_owned()));
        assert_eq!(kept(&layers.upper("dir"), KEPT), Some("5:6:2755".to_owned()));
        assert_eq!(kept(&layers.upper("device"), KEPT), Some("0:0:666:char-1-3".to_owned()));
        assert_eq!(kept(&layers.upper("dir/plain"), KEPT), Some(format!("{}:{}:604", me().uid, me().gid)));
        for (path, mode) in expected {
            assert_eq!(shown(&view.stat(path).unwrap()), (5, 6, mode), "{path}");
        }
        assert_eq!((view.text("new"), view.text("old")), ("content".to_owned(), "content".to_owned()));
        assert_eq!(view.get_xattr("new", "user.own").unwrap(), b"kept");
        // Its group goes on to what is made in it.
        let made = view.mkdir("dir/sub", 0o755).unwrap();
        assert_eq!((made.gid, made.mode & S_ISGID), (6, S_ISGID));
        view.close();
        let view = open(&layers, Form::User);
        assert_eq!(shown(&view.stat("dir").unwrap()), (5, 6, 0o2755));
        assert_eq!(shown(&view.stat("new").unwrap()), (5, 6, 0o4755));
    }
}

/// What has no attribute yet, and is closed to its owner, as a device that RENAME_WHITEOUT left.
#[test]
fn closed_objects_get_it_too() {
    let layers = Layers::new(1);
    layers.file(0, "file", "x");
    let view = open(&layers, Form::User);
    view.rename("file", "moved", super::fixture::WHITEOUT).unwrap();
    assert_eq!(view.stat("file").unwrap().mode & 0o7777, 0);
    assert_eq!(shown(&give(&view, "file", 5, 6)), (5, 6, 0));
    assert_eq!(shown(&view.chmod("file", 0o640).unwrap()), (5, 6, 0o640));
    view.close();
    let view = open(&layers, Form::User);
    let attr = view.stat("file").unwrap();
    assert_eq!((attr.kind(), shown(&attr)), (Ok(FileKind::CharDevice), (5, 6, 0o640)));
}

#[test]
fn a_write_by_somebody_takes_set_id_bits_off_the_attribute() {
    let layers = Layers::new(1);
    set_xattr(&layers.file(0, "f", "content"), KEPT, b"5:6:6755").unwrap();
    let view = open(&layers, Form::User);
    let held = view.hold("f").unwrap();
    let somebody = Caller { uid: 1000, gid: 1000, pid: 0, umask: 0 };
    view.union.setattr(&somebody, held.ino, &SetAttr { before_write: true, ..SetAttr::default() }).unwrap();
    assert_eq!(shown(&view.stat("f").unwrap()), (5, 6, 0o755));
    assert_eq!(kept(&layers.upper("f"), KEPT), Some("5:6:755".to_owned()));
    view.chmod("f", 0o4755).unwrap();
    view.union.setattr(&somebody, held.ino, &SetAttr { size: Some(1), ..SetAttr::default() }).unwrap();
    assert_eq!(shown(&view.stat("f").unwrap()), (5, 6, 0o755));
}

#[test]
fn a_bad_value_spoils_only_its_object() {
    let layers = Layers::new(1);
    layers.file(0, "good", "x");
    set_xattr(&layers.file(0, "bad", "x"), KEPT, b"root:root:644").unwrap();
    let view = open(&layers, Form::User);
    assert_eq!(view.stat("bad").unwrap_err(), Errno::EIO);
    assert_eq!(view.names("").unwrap(), ["bad", "good"]);
    assert_eq!(view.text("good"), "x");
    view.close();
    // Without the option it is an attribute as any other.
    let view = layers.open();
    assert_eq!(view.get_xattr("bad", KEPT).unwrap(), b"root:root:644");
    view.set_xattr("good", KEPT, b"0:0:4755").unwrap();
    assert_eq!(view.stat("good").unwrap().mode & 0o7777, 0o644);
}

#[test]
fn the_root_has_what_the_lower_root_says() {
    let layers = Layers::new(3);
    set_xattr(&layers.lower(2, ""), OLD, b"1:1:1").unwrap();
    set_xattr(&layers.lower(1, ""), KEPT, b"5:6:711").unwrap();
    let view = open(&layers, Form::User);
    assert_eq!(shown(&view.stat("").unwrap()), (5, 6, 0o711));
    view.chmod("", 0o750).unwrap();
    assert_eq!(kept(&layers.upper(""), KEPT), Some("5:6:750".to_owned()));
    assert_eq!(shown(&view.stat("").unwrap()), (5, 6, 0o750));
}

#[test]
fn a_bad_value_of_the_lower_root_is_the_roots() {
    let layers = Layers::new(2);
    set_xattr(&layers.lower(1, ""), KEPT, b"5:6:711").unwrap();
    set_xattr(&layers.lower(0, ""), KEPT, b"5:6:rwx").unwrap();
    layers.file(0, "file", "x");
    let view = open(&layers, Form::User);
    assert_eq!(view.stat("").unwrap_err(), Errno::EIO);
    let attr = view.union.lookup(Union::ROOT, &name("file")).unwrap();
    assert_eq!(attr.uid, me().uid, "and nothing else's");
    view.union.forget(attr.ino, 1);
}

#[test]
fn kept_owners_are_mapped_too() {
    let layers = Layers::new(1);
    set_xattr(&layers.file(0, "f", "x"), KEPT, b"5:6:644").unwrap();
    let map = |text| IdMap::parse(text).unwrap();
    let ids = Ids { uids: map("0:100000:100"), gids: map("0:200000:100"), ..Ids::default() };
    let view = open_with(&layers, Form::User, Options { ids, ..Options::default() });
    assert_eq!(shown(&view.stat("f").unwrap()), (100_005, 200_006, 0o644));
    give(&view, "f", 100_007, 200_008);
    assert_eq!(kept(&layers.upper("f"), KEPT), Some("7:8:644".to_owned()));
}

/// Root's form; what is no file or directory has its owner itself.
#[test]
fn root_keeps_them_in_a_security_attribute() {
    if !privileged() {
        let layers = Layers::new(1);
        let spec = StackSpec { xattr_permissions: Some(Form::Security), ..layers.spec() };
        assert!(Union::open(&spec, Options::default()).is_err());
        return;
    }
    let layers = Layers::new(1);
    if set_xattr(&layers.file(0, "f", "content"), ROOTS, b"5:6:4755").is_err() {
        return;
    }
    set_xattr(&layers.lower(0, "f"), KEPT, b"1:1:1").unwrap();
    symlink("x", layers.lower(0, "link")).unwrap();
    let view = open(&layers, Form::Security);
    assert_eq!(shown(&view.stat("f").unwrap()), (5, 6, 0o4755));
    give(&view, "f", 7, 8);
    assert_eq!(kept(&layers.upper("f"), ROOTS), Some("7:8:755".to_owned()));
    assert_private(&layers.upper("f"));
    view.mknod("null", S_IFCHR | 0o666, makedev(1, 3)).unwrap();
    for path in ["link", "null"] {
        give(&view, path, 7, 8);
        let meta = layers.upper(path).symlink_metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid()), (7, 8), "{path}");
    }
    assert_eq!(view.chmod("null", 0o600).unwrap().mode & 0o7777, 0o600);
    assert!(view.xattrs("f").unwrap().is_empty());
}
