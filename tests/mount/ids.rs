//! Owners that are others in the layers, as programs and the kernel's checks see them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, mkfifo};

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::without_rights;
use crate::common::sys::{get_xattr, set_xattr};
use crate::common::union::Union;
use crate::common::values::{acl_of_readers, capability};
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(owners_through_a_mapping).root(),
        t!(what_users_make_through_a_mapping).root(),
        t!(unmapped_owners_are_nobody).root(),
        t!(acls_through_a_mapping).root(),
        t!(capabilities_through_a_mapping).root(),
        t!(thousands_of_ranges).root(),
        t!(squashed_owners).root(),
        t!(static_nlink),
    ]
}

const ACCESS: &str = "system.posix_acl_access";
const CAPABILITY: &str = "security.capability";
/// What the kernel shows for an owner who is nobody.
const OVERFLOW: (u32, u32) = (65_534, 65_534);

fn mapped() -> Union {
    Union::new(1).arguments(&["-o", "uidmapping=:0:100000:65536,gidmapping=:0:200000:65536"])
}

fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let stat = stat(path);
    (stat.uid(), stat.gid())
}

fn give(path: &Path, uid: Option<u32>, gid: Option<u32>) -> nix::Result<()> {
    nix::unistd::chown(path, uid.map(Uid::from_raw), gid.map(Gid::from_raw))
}

fn owners_through_a_mapping() {
    let mut union = mapped();
    put(union.lower(0, "dir/file"), "x");
    chown(union.lower(0, "dir/file"), 5, 6);
    let before = union.lower_trees();
    union.mount();
    assert_eq!(owner(union.at("dir")), (100_000, 200_000));
    assert_eq!(owner(union.at("dir/file")), (100_005, 200_006));
    chown(union.at("dir/file"), 100_007, 200_008);
    assert_eq!((owner(union.at("dir/file")), owner(union.upper("dir/file"))), ((100_007, 200_008), (7, 8)));
    for (uid, gid) in [(Some(0), None), (Some(165_536), None), (None, Some(7)), (Some(100_000), Some(0))] {
        fails(give(&union.at("dir/file"), uid, gid), Errno::EINVAL);
    }
    assert_eq!(owner(union.upper("dir/file")), (7, 8));
    union.remount();
    assert_eq!(owner(union.at("dir/file")), (100_007, 200_008));
    union.umount();
    union.assert_lowers(&before);
}

fn what_users_make_through_a_mapping() {
    let mut union = mapped();
    for name in ["open", "shared"] {
        make_dir(union.lower(0, name));
        chmod(union.lower(0, name), 0o777);
    }
    chown(union.lower(0, "shared"), 3, 4);
    chmod(union.lower(0, "shared"), 0o2777);
    put(union.lower(0, "open/file"), "x");
    union.mount();
    fs::remove_file(union.at("open/file")).expect("remove");
    for (dir, group) in [("open", 6), ("shared", 4)] {
        let at = |name: &str| union.at(&format!("{dir}/{name}"));
        without_rights(100_005, 200_006, || {
            put(at("file"), "x");
            make_dir(at("dir"));
            symlink("x", at("link")).expect("symlink");
            mkfifo(&at("fifo"), Mode::S_IRUSR).expect("mkfifo");
            chmod(at("file"), 0o640);
        });
        for name in ["file", "dir", "link", "fifo"] {
            let shown = at(name).symlink_metadata().expect("stat");
            assert_eq!((shown.uid(), shown.gid()), (100_005, 200_000 + group), "{dir}/{name}");
            let stored = union.upper(&format!("{dir}/{name}")).symlink_metadata().expect("stat");
            assert_eq!((stored.uid(), stored.gid()), (5, group), "{dir}/{name}");
        }
        // Who has that number in the layers only is somebody else here.
        without_rights(5, 6, || {
            fails(fs::set_permissions(at("file"), Permissions::from_mode(0o777)), Errno::EPERM);
            fails(fs::read(at("file")), Errno::EACCES);
            fails(try_create_new(&at("by-nobody"), 0o600), Errno::EOVERFLOW);
        });
    }
    put(union.at("by-root"), "x");
    assert_eq!((owner(union.at("by-root")), owner(union.upper("by-root"))), ((100_000, 200_000), (0, 0)));
    union.umount();
}

/// Neither the one whose number the kernel shows for nobody, nor anybody else.
fn unmapped_owners_are_nobody() {
    let mut union = mapped();
    for (name, bits) in [("closed", 0o660), ("open", 0o666)] {
        put(union.lower(0, name), "content");
        chown(union.lower(0, name), 70_000, 70_000);
        chmod(union.lower(0, name), bits);
    }
    union.mount();
    for name in ["closed", "open"] {
        let path = union.at(name);
        assert_eq!(owner(&path), OVERFLOW);
        for id in [65_534, 70_000, 165_534, 100_000] {
            without_rights(id, id, || {
                assert_eq!(fs::read(&path).is_ok(), name == "open");
                fails(fs::OpenOptions::new().write(true).open(&path), Errno::EACCES);
                fails(fs::set_permissions(&path, Permissions::from_mode(0o777)), Errno::EOVERFLOW);
            });
        }
        assert!(!exists(union.upper(name)));
    }
    // The superuser can give it to somebody.
    chown(union.at("closed"), 100_001, 200_001);
    assert_eq!(owner(union.upper("closed")), (1, 1));
    union.umount();
}

fn acls_through_a_mapping() {
    let mut union = mapped();
    put(union.lower(0, "file"), "content");
    if set_xattr(&union.lower(0, "file"), ACCESS, &acl_of_readers(&[5, 70_000], &[6, 70_000]), 0).is_err() {
        eprintln!("left out: no ACLs here");
        return;
    }
    union.mount();
    let readers = |file: &str| {
        let path = union.at(file);
        let ids = [(5, 1), (1, 6), (70_000, 1), (100_005, 1), (1, 200_006), (100_008, 1), (65_534, 65_534)];
        ids.map(|(uid, gid)| without_rights(uid, gid, || fs::read(&path).is_ok()))
    };
    assert_eq!(readers("file"), [false, false, false, true, true, false, false]);
    assert_eq!(get_xattr(&union.at("file"), ACCESS).expect("get"), acl_of_readers(&[100_005], &[200_006]));
    set_xattr(&union.at("file"), ACCESS, &acl_of_readers(&[100_008], &[]), 0).expect("set");
    assert_eq!(readers("file"), [false, false, false, false, false, true, false]);
    assert_eq!(get_xattr(&union.upper("file"), ACCESS).expect("get"), acl_of_readers(&[8], &[]));
    assert_eq!(set_xattr(&union.at("file"), ACCESS, &acl_of_readers(&[8], &[]), 0), Err(Errno::EINVAL));
    union.umount();
}

fn capabilities_through_a_mapping() {
    let mut union = mapped();
    for (name, root) in [("all", None), ("some", Some(5))] {
        put(union.lower(0, name), "x");
        set_xattr(&union.lower(0, name), CAPABILITY, &capability(root), 0).expect("set");
    }
    union.mount();
    let shown = |name: &str| get_xattr(&union.at(name), CAPABILITY).expect("get");
    assert_eq!((shown("all"), shown("some")), (capability(Some(100_000)), capability(Some(100_005))));
    put(union.at("new"), "x");
    set_xattr(&union.at("new"), CAPABILITY, &capability(Some(100_009)), 0).expect("set");
    assert_eq!(get_xattr(&union.upper("new"), CAPABILITY).expect("get"), capability(Some(9)));
    assert_eq!(shown("new"), capability(Some(100_009)));
    append(union.at("new"), "y");
    assert_eq!(get_xattr(&union.at("new"), CAPABILITY), Err(Errno::ENODATA), "gone with the write");
    chown(union.at("some"), 100_001, 200_001);
    assert_eq!(get_xattr(&union.upper("some"), CAPABILITY), Err(Errno::ENODATA), "and with a new owner");
    union.umount();
}

fn thousands_of_ranges() {
    let ranges: Vec<String> = (0..5_000).map(|i| format!("{}:{}:2", i * 3, 1_000_000 - i * 2)).collect();
    // Together they would be longer than one argument can be.
    let [users, groups] = ["uidmapping", "gidmapping"].map(|name| format!("{name}={}", ranges.join(":")));
    let mut union = Union::new(1).arguments(&["-o", &users, "-o", &groups]);
    let files = [0, 2_500, 4_999].map(|i| (format!("file{i}"), i * 3 + 1, 1_000_001 - i * 2));
    for (name, stored, _) in &files {
        put(union.lower(0, name), "x");
        chown(union.lower(0, name), *stored, *stored);
    }
    put(union.lower(0, "between"), "x");
    chown(union.lower(0, "between"), 2, 2);
    union.mount();
    for (name, stored, shown) in &files {
        assert_eq!(owner(union.at(name)), (*shown, *shown));
        chown(union.at(name), *shown - 1, *shown);
        assert_eq!(owner(union.upper(name)), (*stored - 1, *stored));
    }
    assert_eq!(owner(union.at("between")), OVERFLOW);
    union.umount();
}

fn squashed_owners() {
    for (options, expected) in [
        ("squash_to_root", (0, 0)),
        ("squash_to_root,squash_to_uid=1234", (1234, 0)),
        ("squash_to_uid=1234,squash_to_gid=4321,uidmapping=0:7:1", (1234, 4321)),
    ] {
        let mut union = Union::new(1).arguments(&["-o", options]);
        put(union.lower(0, "dir/file"), "x");
        chown(union.lower(0, "dir"), 5, 6);
        chown(union.lower(0, "dir/file"), 70_000, 70_000);
        union.mount();
        for path in ["", "dir", "dir/file"] {
            assert_eq!(owner(union.at(path)), expected, "{options}: {path:?}");
        }
        without_rights(expected.0, expected.1, || chmod(union.at("dir/file"), 0o600));
        assert_eq!(owner(union.upper("dir/file")), (70_000, 70_000), "a copy is the lower file's owner's");
        put(union.at("dir/new"), "x");
        assert_eq!((owner(union.at("dir/new")), owner(union.upper("dir/new"))), (expected, (0, 0)));
        union.umount();
    }
}

fn static_nlink() {
    let mut union = Union::new(1).arguments(&["-o", "static_nlink"]);
    make_dir(union.lower(0, "d/sub"));
    put(union.lower(0, "file"), "x");
    union.mount();
    make_dir(union.at("new/sub"));
    fs::hard_link(union.at("file"), union.at("other")).expect("link");
    for path in ["", "d", "d/sub", "new", "new/sub"] {
        assert_eq!(stat(union.at(path)).nlink(), 1, "{path:?}");
    }
    assert_eq!(stat(union.at("file")).nlink(), 2);
    union.umount();
}
