//! Owners that are others in the layers: in what is shown, made and changed, and in the values of attributes.

use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;

use layerfs::error::Errno;
use layerfs::union::{Attr, Caller, IdMap, Ids, Options, SetAttr};
use nix::libc::{S_IFIFO, S_ISGID};

use super::fixture::{Layers, View, get_xattr, me, name, privileged, set_mode, set_xattr, xname};
use super::values::{acl_of_readers, capability};

const NOBODY: u32 = u32::MAX;
const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const CAPABILITY: &str = "security.capability";

/// Users from 100,000 on and groups from 200,000 on are those from 0 on in the layers.
fn mapped() -> Options {
    let map = |text| IdMap::parse(text).unwrap();
    Options {
        ids: Ids { uids: map("0:100000:1000"), gids: map("0:200000:1000"), ..Ids::default() },
        ..Options::default()
    }
}

fn squashed(ids: Ids) -> Options {
    Options { ids, ..Options::default() }
}

fn skip() -> bool {
    if !privileged() {
        eprintln!("left out without the superuser's rights");
    }
    !privileged()
}

fn owner(attr: &Attr) -> (u32, u32) {
    (attr.uid, attr.gid)
}

fn on_disk(path: &Path) -> (u32, u32) {
    let meta = path.symlink_metadata().unwrap();
    (meta.uid(), meta.gid())
}

fn owned(path: &Path, uid: u32, gid: u32) {
    chown(path, Some(uid), Some(gid)).unwrap();
}

fn give(view: &View, path: &str, uid: Option<u32>, gid: Option<u32>) -> Result<Attr, Errno> {
    view.set(path, SetAttr { uid, gid, ..SetAttr::default() })
}

#[test]
fn owners_are_shown_and_given_through_the_mapping() {
    if skip() {
        return;
    }
    let layers = Layers::new(1);
    owned(&layers.file(0, "lower", "x"), 5, 6);
    owned(&layers.file(0, "strange", "x"), 1000, 1_000_000);
    layers.directory(0, "dir");
    owned(&layers.file(0, "dir/upper", "x"), 7, 8);
    let view = layers.open_with(mapped());
    assert_eq!(owner(&view.stat("lower").unwrap()), (100_005, 200_006));
    assert_eq!(owner(&view.stat("strange").unwrap()), (NOBODY, NOBODY));
    assert_eq!(owner(&view.stat("dir").unwrap()), (100_000, 200_000));
    view.chmod("dir/upper", 0o600).unwrap();
    assert_eq!(on_disk(&layers.upper("dir/upper")), (7, 8), "copies keep their owner");
    assert_eq!(owner(&view.stat("dir/upper").unwrap()), (100_007, 200_008));
    for path in ["lower", "dir"] {
        let attr = give(&view, path, Some(100_009), None).unwrap();
        assert_eq!(attr.uid, 100_009);
        give(&view, path, None, Some(200_009)).unwrap();
        assert_eq!(on_disk(&layers.upper(path)), (9, 9), "{path}");
        for id in [0, 9, 99_999, 101_000, 201_000] {
            assert_eq!(give(&view, path, Some(id), None).unwrap_err(), Errno::EINVAL);
            assert_eq!(give(&view, path, Some(100_001), Some(id)).unwrap_err(), Errno::EINVAL);
        }
        assert_eq!(on_disk(&layers.upper(path)), (9, 9), "nothing of it was done");
    }
    assert!(give(&view, "strange", Some(0), None).is_err());
    assert!(!layers.upper("strange").exists(), "nor copied up");
    // Copied by another change, it still belongs to whom nobody is.
    view.chmod("strange", 0o600).unwrap();
    assert_eq!(on_disk(&layers.upper("strange")), (1000, 1_000_000));
    view.close();
    assert_eq!(owner(&layers.open_with(mapped()).stat("lower").unwrap()), (100_009, 200_009));
}

#[test]
fn what_is_made_belongs_to_its_maker_in_the_layers() {
    if skip() {
        return;
    }
    let layers = Layers::new(1);
    layers.directory(0, "d");
    let shared = layers.directory(0, "shared");
    owned(&shared, 3, 4);
    set_mode(&shared, 0o2777);
    layers.file(0, "d/gone", "x");
    let view = layers.open_with(mapped());
    view.unlink("d/gone").unwrap();
    let make = |dir: &str, caller: &Caller| -> Result<Vec<Attr>, Errno> {
        let dir = view.hold(dir)?;
        let at = |path: &str| name(path);
        Ok(vec![
            view.union.create(caller, dir.ino, &at("file"), 0o644)?,
            view.union.mkdir(caller, dir.ino, &at("dir"), 0o755)?,
            view.union.symlink(caller, dir.ino, &at("link"), b"x")?,
            view.union.mknod(caller, dir.ino, &at("fifo"), S_IFIFO | 0o644, 0)?,
            view.union.create(caller, dir.ino, &at("gone"), 0o644)?,
        ])
    };
    let kinds = ["file", "dir", "link", "fifo", "gone"];
    let caller = Caller { uid: 100_005, gid: 200_006, ..me() };
    assert!(make("d", &caller).unwrap().iter().all(|attr| owner(attr) == (100_005, 200_006)));
    for kind in kinds {
        assert_eq!(on_disk(&layers.upper(&format!("d/{kind}"))), (5, 6), "{kind}");
    }
    let made = make("shared", &caller).unwrap();
    assert!(made.iter().all(|attr| owner(attr) == (100_005, 200_004)), "the directory's group");
    assert_ne!(made[1].mode & S_ISGID, 0, "and its bit");
    assert!(kinds.iter().all(|kind| on_disk(&layers.upper(&format!("shared/{kind}"))) == (5, 4)));
    // Who has no mapping makes nothing, but for the superuser, who makes what is the root's.
    for (uid, gid) in [(1000, 200_000), (100_000, 1000), (NOBODY, NOBODY)] {
        view.mkdir("other", 0o777).unwrap();
        assert_eq!(make("other", &Caller { uid, gid, ..me() }).unwrap_err(), Errno::EOVERFLOW);
        assert_eq!(layers.upper("other").read_dir().unwrap().count(), 0);
        view.rmdir("other").unwrap();
    }
    assert_eq!(owner(&view.mkdir("root", 0o755).unwrap()), (100_000, 200_000));
    assert_eq!(on_disk(&layers.upper("root")), (0, 0));
}

/// The group that decides whether the bit stays is the one that is shown, as the caller's are.
#[test]
fn set_group_id_stays_for_members_of_the_shown_group() {
    if skip() {
        return;
    }
    let layers = Layers::new(1);
    for path in ["member", "stranger"] {
        let file = layers.file(0, path, "x");
        owned(&file, 5, 6);
        set_mode(&file, 0o2664);
    }
    let view = layers.open_with(mapped());
    for (path, gid, stays) in [("member", 200_006, true), ("stranger", 6, false)] {
        let caller = Caller { uid: 100_005, gid, pid: 0, umask: 0 };
        let held = view.hold(path).unwrap();
        let chown = SetAttr { uid: Some(100_005), ..SetAttr::default() };
        view.union.setattr(&caller, held.ino, &chown).unwrap();
        assert_eq!(view.stat(path).unwrap().mode & S_ISGID != 0, stays, "{path}");
    }
}

#[test]
fn squashing_shows_one_owner_of_everything() {
    let layers = Layers::new(2);
    layers.file(0, "top/file", "x");
    layers.file(1, "top/below", "x");
    symlink("x", layers.lower(1, "link")).unwrap();
    if privileged() {
        owned(&layers.lower(0, "top"), 5, 6);
        owned(&layers.lower(1, "top/below"), 7, 8);
    }
    let (mine, group) = (me().uid, me().gid);
    let root = Ids { squash_to_root: true, ..Ids::default() };
    let user = Ids { squash_to_uid: Some(1234), ..root.clone() };
    let both = Ids { squash_to_gid: Some(NOBODY - 1), ..user.clone() };
    for (ids, expected) in [(root, (0, 0)), (user, (1234, 0)), (both, (1234, NOBODY - 1))] {
        let view = layers.open_with(squashed(ids));
        for path in ["", "top", "top/file", "top/below", "link"] {
            assert_eq!(owner(&view.stat(path).unwrap()), expected, "{path}");
        }
        let made = view.create("new", 0o600).unwrap();
        assert_eq!(owner(&made), expected);
        assert_eq!(on_disk(&layers.upper("new")), (mine, group), "stored is who it was");
        // Who may not give files away is told that it was done: it shows as it did.
        assert_eq!(owner(&give(&view, "new", Some(4321), Some(4321)).unwrap()), expected);
        assert_eq!(on_disk(&layers.upper("new")), if privileged() { (4321, 4321) } else { (mine, group) });
        view.unlink("new").unwrap();
        view.mkdir("removed", 0o755).unwrap();
        let held = view.hold("removed").unwrap();
        view.rmdir("removed").unwrap();
        let chown = SetAttr { uid: Some(4321), gid: Some(4321), ..SetAttr::default() };
        assert_eq!(owner(&view.union.setattr(&me(), held.ino, &chown).unwrap()), expected, "without a name, too");
    }
}

#[test]
fn directories_have_one_link_if_asked_for() {
    let layers = Layers::new(1);
    layers.directory(0, "d/a");
    layers.directory(0, "d/b");
    let links = |view: &View| ["", "d", "d/a", "new"].map(|path| view.stat(path).unwrap().nlink);
    let view = layers.open();
    view.mkdir("new", 0o755).unwrap();
    view.mkdir("new/sub", 0o755).unwrap();
    view.put("file", "x");
    view.link("file", "other").unwrap();
    assert!(links(&view)[3] == 3 || links(&view)[3] == 1, "what upper's filesystem says");
    view.close();
    let view = layers.open_with(Options { static_nlink: true, ..Options::default() });
    assert_eq!(links(&view), [1; 4]);
    assert_eq!(view.mkdir("again", 0o755).unwrap().nlink, 1);
    assert_eq!(view.stat("file").unwrap().nlink, 2);
}

#[test]
fn ids_in_acls_are_mapped_both_ways() {
    let layers = Layers::new(1);
    layers.file(0, "lower", "x");
    layers.directory(0, "dir");
    if skip() || set_xattr(&layers.lower(0, "lower"), ACCESS, &acl_of_readers(&[5, 3000], &[6, 7, 3000])).is_err() {
        return;
    }
    let view = layers.open_with(mapped());
    assert_eq!(
        view.get_xattr("lower", ACCESS).unwrap(),
        acl_of_readers(&[100_005], &[200_006, 200_007]),
        "nobody is left out"
    );
    for (path, attribute) in [("lower", ACCESS), ("dir", ACCESS), ("dir", DEFAULT)] {
        let shown = acl_of_readers(&[100_008, 100_009], &[200_010]);
        view.set_xattr(path, attribute, &shown).unwrap();
        assert_eq!(view.get_xattr(path, attribute).unwrap(), shown);
        let stored = get_xattr(&layers.upper(path), attribute).unwrap();
        assert_eq!(stored, acl_of_readers(&[8, 9], &[10]), "{path} {attribute}");
        for bad in [acl_of_readers(&[8], &[]), acl_of_readers(&[100_008], &[10])] {
            assert_eq!(view.set_xattr(path, attribute, &bad).unwrap_err(), Errno::EINVAL);
        }
        assert_eq!(get_xattr(&layers.upper(path), attribute).unwrap(), stored);
    }
    // What is inherited is inherited as it is stored.
    view.create("dir/file", 0o666).unwrap();
    assert_eq!(get_xattr(&layers.upper("dir/file"), ACCESS).unwrap()[12..20], [2, 0, 4, 0, 8, 0, 0, 0]);
    // Another copy, whose entries without a mapping stay.
    view.close();
    set_xattr(&layers.file(0, "strange", "x"), ACCESS, &acl_of_readers(&[5, 3000], &[])).unwrap();
    let view = layers.open_with(mapped());
    view.touch("strange", 1, 2).unwrap();
    assert_eq!(get_xattr(&layers.upper("strange"), ACCESS).unwrap(), acl_of_readers(&[5, 3000], &[]));
}

#[test]
fn roots_in_capabilities_are_mapped_both_ways() {
    let layers = Layers::new(1);
    let stored = [("for-all", None), ("for-5", Some(5)), ("for-strange", Some(3000)), ("for-zero", Some(0))];
    for (path, root) in stored {
        layers.file(0, path, "x");
        if skip() || set_xattr(&layers.lower(0, path), CAPABILITY, &capability(root)).is_err() {
            return;
        }
    }
    let view = layers.open_with(mapped());
    let shown = |path: &str| view.get_xattr(path, CAPABILITY).unwrap();
    assert_eq!(shown("for-5"), capability(Some(100_005)));
    assert_eq!(shown("for-all"), capability(Some(100_000)), "the tree's root is no other tree's");
    assert_eq!(shown("for-zero"), capability(Some(100_000)));
    assert_eq!(shown("for-strange"), capability(Some(NOBODY)), "counts nowhere");
    view.put("new", "x");
    let set = |root| view.set_xattr("new", CAPABILITY, &capability(root));
    let kept = || get_xattr(&layers.upper("new"), CAPABILITY).unwrap();
    set(Some(100_007)).unwrap();
    assert_eq!((kept(), shown("new")), (capability(Some(7)), capability(Some(100_007))));
    assert_eq!(set(Some(7)).unwrap_err(), Errno::EINVAL);
    set(None).unwrap();
    assert_eq!((kept(), shown("new")), (capability(None), capability(Some(100_000))), "from the machine's root");
    assert_eq!(view.set_xattr("new", CAPABILITY, b"nonsense").unwrap_err(), Errno::EINVAL);
    // A copy has what the lower has.
    view.touch("for-5", 1, 2).unwrap();
    assert_eq!(get_xattr(&layers.upper("for-5"), CAPABILITY).unwrap(), capability(Some(5)));
}

#[test]
fn other_attributes_are_left_as_they_are() {
    let layers = Layers::new(1);
    layers.file(0, "file", "x");
    let view = layers.open_with(mapped());
    let value = acl_of_readers(&[5], &[6]);
    view.set_xattr("file", "user.acl", &value).unwrap();
    assert_eq!(view.get_xattr("file", "user.acl").unwrap(), value);
    assert_eq!(view.union.getxattr(view.hold("file").unwrap().ino, &xname("user.none")).unwrap_err(), Errno::ENODATA);
}
