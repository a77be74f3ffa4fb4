//! What is not there, and how far what is there reaches.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::as_user;
use crate::common::mount::eventually;
use crate::common::others::OtherMount;
use crate::common::sys::{clone_file, get_xattr, inode_flags, list_xattr, set_xattr};
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(no_time_of_birth),
        t!(locks_are_within_the_mount),
        t!(syncfs_does_not_reach_the_daemon),
        t!(ioctls_are_refused),
        t!(without_acls).root(),
        t!(without_acls_modes_decide).root(),
        t!(a_full_upper_is_told_at_fsync_at_the_latest).root(),
        t!(merged_directories_have_one_link),
    ]
}

fn no_time_of_birth() {
    let mut union = Union::new(1);
    put(union.lower(0, "low"), "x");
    union.mount();
    put(union.at("new"), "x");
    for name in ["low", "new"] {
        let created = stat(union.at(name)).created();
        assert!(created.is_err(), "{name}: {created:?}");
    }
    union.umount();
}

/// The kernel keeps them for the mount: who locks a file in a layer excludes nobody in the mount.
fn locks_are_within_the_mount() {
    let mut union = Union::new(1);
    put(union.upper("file"), "x");
    union.mount();
    let inside = edit(union.at("file"));
    inside.try_lock().expect("lock");
    let other = edit(union.at("file"));
    assert!(other.try_lock().is_err(), "held in the mount");
    edit(union.upper("file")).try_lock().expect("not held in upper");
    drop((inside, other));
    union.umount();
}

fn syncfs_does_not_reach_the_daemon() {
    let mut union = Union::new(1);
    union.mount();
    put(union.at("file"), "x");
    let count = |union: &Union| union.stats()["operations"]["fsync"].as_u64().unwrap_or(0);
    let before = count(&union);
    nix::unistd::syncfs(open(union.at("file"))).expect("syncfs");
    assert_eq!(count(&union), before);
    open(union.at("file")).sync_all().expect("fsync");
    assert_eq!(count(&union), before + 1);
    union.umount();
}

/// No attributes of chattr, and no reflinks from one file of the mount to another.
fn ioctls_are_refused() {
    let mut union = Union::new(1);
    put(union.lower(0, "low"), "x");
    union.mount();
    put(union.at("new"), "x");
    for name in ["low", "new"] {
        fails(inode_flags(&open(union.at(name))), Errno::ENOTTY);
        fails(clone_file(&open(union.at(name)), &edit(union.at("new"))), Errno::EOPNOTSUPP);
    }
    union.umount();
}

fn without_acls() {
    const ACCESS: &str = "system.posix_acl_access";
    // Version 2; owner rw, user 1000 rw, group nothing, mask rw, others nothing.
    let acl: Vec<u8> = [
        &b"\x02\0\0\0"[..],
        b"\x01\0\x06\0\xff\xff\xff\xff\x02\0\x06\0\xe8\x03\0\0\x04\0\0\0\xff\xff\xff\xff",
        b"\x10\0\x06\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff",
    ]
    .concat();
    let mut union = Union::new(1).arguments(&["--noacl"]);
    put(union.lower(0, "file"), "x");
    if set_xattr(&union.lower(0, "file"), ACCESS, &acl, 0).is_err() {
        eprintln!("left out: the filesystem of the test trees has no ACLs");
        return;
    }
    union.mount();
    fails(get_xattr(&union.at("file"), ACCESS), Errno::ENODATA);
    fails(set_xattr(&union.at("file"), ACCESS, &acl, 0), Errno::EOPNOTSUPP);
    let listed = list_xattr(&union.at("file")).expect("list");
    assert!(!listed.contains(&ACCESS.into()), "{listed:?}");
    chmod(union.at("file"), 0o600);
    union.umount();
}

/// The kernel asks for ACLs all the same, before it lets anybody but the owner in.
fn without_acls_modes_decide() {
    for without in ["noacl", "noxattrs=1"] {
        let mut union = Union::new(1).arguments(&["-o", without]);
        put(union.lower(0, "dir/open"), "x");
        put(union.lower(0, "dir/closed"), "x");
        chmod(union.lower(0, "dir/open"), 0o664);
        chmod(union.lower(0, "dir/closed"), 0o640);
        union.mount();
        as_user(65534, 65534, || {
            assert_eq!(read(union.at("dir/open")), "x");
            fails(fs::read(union.at("dir/closed")), Errno::EACCES);
            fails(fs::write(union.at("dir/open"), "y"), Errno::EACCES);
        });
        append(union.at("dir/closed"), "y");
        union.umount();
        assert_eq!(read(union.upper("dir/closed")), "xy");
    }
}

/// With `timeout=0` each write says it itself; by default pages are gathered first, as on filesystems that allocate late.
fn a_full_upper_is_told_at_fsync_at_the_latest() {
    for options in ["io=cached", "io=writethrough", "timeout=0"] {
        let outer = Union::new(0);
        let small = outer.root().join("small");
        make_dir(&small);
        let full = OtherMount::memory("tmpfs", "size=1m", &small);
        let mut union = Union::new(1).upper_in(&small).arguments(&["-o", options]);
        union.mount();
        let mut file = create_new(union.at("file"), 0o644);
        let written = file.write_all(&vec![b'x'; 4 << 20]);
        // The options of the whole run come after these.
        let late = std::env::var("LAYERFS_TEST_OPTIONS").as_deref().unwrap_or(options) == "io=cached";
        let told = if late { written.and_then(|()| file.sync_all()) } else { written };
        fails(told, Errno::ENOSPC);
        drop(file);
        fs::remove_file(union.at("file")).expect("room again");
        let file = OpenOptions::new().create_new(true).write(true).open(union.at("small")).expect("create");
        // The space comes back when the kernel has told the daemon that it forgot the file, some moments later.
        assert!(eventually(10, || file.write_all_at(b"fits", 0).and_then(|()| file.sync_all()).is_ok()), "it fits");
        drop(file);
        union.umount();
        drop(union);
        drop(full);
    }
}

/// As the kernel's overlay says: their subdirectories are not counted.
fn merged_directories_have_one_link() {
    use std::os::unix::fs::MetadataExt;
    let mut union = Union::new(2);
    make_dir(union.lower(0, "merged/a"));
    make_dir(union.lower(1, "merged/b"));
    make_dir(union.lower(1, "single/c"));
    union.mount();
    assert_eq!(stat(union.at("merged")).nlink(), 1);
    assert_eq!(stat(union.at("single")).nlink(), stat(union.lower(1, "single")).nlink());
    union.umount();
}
