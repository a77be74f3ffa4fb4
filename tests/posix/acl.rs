//! POSIX ACLs, as the raw xattrs that setfacl writes.

use std::fs;
use std::io::Write;
use std::path::Path;

use nix::errno::Errno;

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::{as_user, scratch};
use crate::common::sys::{get_xattr, set_xattr};
use crate::common::union::{Union, everywhere};
use crate::common::values::{NO_ID, acl};
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(acls_decide).root().needs(no_acl),
        t!(acls_and_modes_are_one).root().needs(no_acl),
        t!(default_acls_are_inherited).root().needs(no_acl),
        t!(default_acls_replace_the_umask).root().needs(no_acl),
        t!(acls_last).root().needs(no_acl),
        t!(acls_that_can_not_be).root().needs(no_acl),
    ]
}

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHER: u16 = 32;

/// What the owner, user 1000, the group, group 2000, the mask and others may.
fn usual(owner: u16, user: u16, group: u16, named: u16, mask: u16, other: u16) -> Vec<u8> {
    acl(&[
        (USER_OBJ, owner, NO_ID),
        (USER, user, 1000),
        (GROUP_OBJ, group, NO_ID),
        (GROUP, named, 2000),
        (MASK, mask, NO_ID),
        (OTHER, other, NO_ID),
    ])
}

fn no_acl() -> Option<String> {
    let place = scratch();
    let error = set_xattr(place.path(), ACCESS, &usual(7, 5, 5, 5, 7, 5), 0).err()?;
    Some(format!("the filesystem of the test trees has no ACLs: {error}"))
}

fn set(path: &Path, name: &str, value: &[u8]) {
    set_xattr(path, name, value, 0).unwrap_or_else(|e| panic!("{path:?} {name}: {e}"));
}

fn acls_decide() {
    everywhere(
        |dir| {
            put(dir.join("file"), "secret");
            chmod(dir.join("file"), 0o600);
            set(&dir.join("file"), ACCESS, &usual(6, 6, 0, 4, 6, 0));
            put(dir.join("refused"), "open to others");
            set(&dir.join("refused"), ACCESS, &usual(6, 0, 4, 4, 6, 4));
            put(dir.join("dir/inside"), "x");
            set(&dir.join("dir"), ACCESS, &usual(7, 7, 0, 5, 7, 0));
        },
        |dir| {
            as_user(1000, 1000, || {
                assert_eq!(read(dir.join("file")), "secret");
                append(dir.join("file"), ", written");
                fails(fs::read(dir.join("refused")), Errno::EACCES);
                put(dir.join("dir/new"), "x");
            });
            as_user(1001, 2000, || {
                assert_eq!(read(dir.join("file")), "secret, written");
                fails(fs::OpenOptions::new().append(true).open(dir.join("file")), Errno::EACCES);
                assert_eq!(names(dir.join("dir")), ["inside", "new"]);
                fails(fs::write(dir.join("dir/other"), "x"), Errno::EACCES);
            });
            as_user(1002, 1002, || {
                fails(fs::read(dir.join("file")), Errno::EACCES);
                fails(fs::read_dir(dir.join("dir")).map(drop), Errno::EACCES);
                assert_eq!(read(dir.join("refused")), "open to others");
            });
        },
    );
}

fn acls_and_modes_are_one() {
    everywhere(
        |dir| {
            put(dir.join("file"), "x");
            chmod(dir.join("file"), 0o600);
        },
        |dir| {
            let path = dir.join("file");
            set(&path, ACCESS, &usual(6, 6, 4, 4, 6, 0));
            assert_eq!(mode(&path), 0o660, "the group's bits show the mask");
            chmod(&path, 0o640);
            assert_eq!(get_xattr(&path, ACCESS), Ok(usual(6, 6, 4, 4, 4, 0)));
            as_user(1000, 1000, || {
                assert_eq!(read(&path), "x");
                fails(fs::OpenOptions::new().append(true).open(&path), Errno::EACCES);
            });
            let plain = acl(&[(USER_OBJ, 7, NO_ID), (GROUP_OBJ, 5, NO_ID), (OTHER, 1, NO_ID)]);
            set(&path, ACCESS, &plain);
            assert_eq!(mode(&path), 0o751);
            fails(get_xattr(&path, ACCESS), Errno::ENODATA);
        },
    );
}

fn default_acls_are_inherited() {
    everywhere(
        |dir| {
            make_dir(dir.join("dir"));
            set(&dir.join("dir"), DEFAULT, &usual(7, 7, 5, 5, 7, 0));
        },
        |dir| {
            create_new(dir.join("dir/file"), 0o666);
            assert_eq!(get_xattr(&dir.join("dir/file"), ACCESS), Ok(usual(6, 7, 5, 5, 6, 0)));
            assert_eq!(mode(dir.join("dir/file")), 0o660);
            fails(get_xattr(&dir.join("dir/file"), DEFAULT), Errno::ENODATA);
            fs::create_dir(dir.join("dir/sub")).expect("mkdir");
            assert_eq!(get_xattr(&dir.join("dir/sub"), DEFAULT), Ok(usual(7, 7, 5, 5, 7, 0)));
            assert_eq!(get_xattr(&dir.join("dir/sub"), ACCESS), Ok(usual(7, 7, 5, 5, 7, 0)));
            assert_eq!(mode(dir.join("dir/sub")), 0o770);
            create_new(dir.join("dir/sub/deeper"), 0o640);
            assert_eq!(mode(dir.join("dir/sub/deeper")), 0o640);
            let expected = Ok(usual(6, 7, 5, 5, 4, 0));
            assert_eq!(get_xattr(&dir.join("dir/sub/deeper"), ACCESS), expected);
            nix::unistd::mkfifo(&dir.join("dir/fifo"), nix::sys::stat::Mode::from_bits_truncate(0o666))
                .expect("mkfifo");
            assert_eq!(mode(dir.join("dir/fifo")), 0o660);
            std::os::unix::fs::symlink("file", dir.join("dir/link")).expect("symlink");
            assert_eq!(mode(dir.join("dir/link")), 0o777);
            // Moving something in changes nothing about it.
            put(dir.join("moved"), "x");
            fs::rename(dir.join("moved"), dir.join("dir/moved")).expect("rename");
            fails(get_xattr(&dir.join("dir/moved"), ACCESS), Errno::ENODATA);
            as_user(1000, 1000, || append(dir.join("dir/file"), "allowed"));
        },
    );
}

/// The umask of the tests is 022: without a default ACL it would take the group's right to write.
fn default_acls_replace_the_umask() {
    everywhere(
        |dir| {
            make_dir(dir.join("dir"));
            let minimal = acl(&[(USER_OBJ, 7, NO_ID), (GROUP_OBJ, 7, NO_ID), (OTHER, 7, NO_ID)]);
            set(&dir.join("dir"), DEFAULT, &minimal);
        },
        |dir| {
            let mut file = create_new(dir.join("dir/file"), 0o666);
            file.write_all(b"x").expect("write");
            assert_eq!(mode(dir.join("dir/file")), 0o666);
            fs::create_dir(dir.join("dir/sub")).expect("mkdir");
            assert_eq!(mode(dir.join("dir/sub")), 0o777);
            create_new(dir.join("plain"), 0o666);
            assert_eq!(mode(dir.join("plain")), 0o644);
        },
    );
}

fn acls_last() {
    let mut union = Union::new(1);
    for directory in [union.lower(0, "low"), union.upper("up")] {
        put(directory.join("file"), "x");
        set(&directory.join("file"), ACCESS, &usual(6, 6, 4, 4, 6, 0));
        set(&directory, DEFAULT, &usual(7, 7, 5, 5, 7, 0));
    }
    union.mount();
    let check = |union: &Union| {
        for directory in ["low", "up"] {
            let path = union.at(directory);
            assert_eq!(get_xattr(&path, DEFAULT), Ok(usual(7, 7, 5, 5, 7, 0)), "{directory}");
            assert_eq!(get_xattr(&path.join("file"), ACCESS), Ok(usual(6, 6, 4, 4, 6, 0)));
        }
    };
    check(&union);
    for directory in ["low", "up"] {
        append(union.at(directory).join("file"), "y");
        create_new(union.at(directory).join("new"), 0o666);
    }
    check(&union);
    union.assert_lasting();
    union.mount();
    check(&union);
    let inherited = get_xattr(&union.at("low/new"), ACCESS);
    assert_eq!(inherited, Ok(usual(6, 7, 5, 5, 6, 0)));
    union.umount();
}

fn acls_that_can_not_be() {
    everywhere(
        |dir| {
            put(dir.join("file"), "x");
            put(dir.join("own"), "x");
            chown(dir.join("own"), 1000, 1000);
        },
        |dir| {
            let good = usual(6, 6, 4, 4, 6, 0);
            fails(set_xattr(&dir.join("file"), DEFAULT, &good, 0), Errno::EACCES);
            fails(set_xattr(&dir.join("file"), ACCESS, &good[..9], 0), Errno::EINVAL);
            let no_mask = acl(&[(USER_OBJ, 6, NO_ID), (USER, 6, 1000), (GROUP_OBJ, 4, NO_ID), (OTHER, 0, NO_ID)]);
            fails(set_xattr(&dir.join("file"), ACCESS, &no_mask, 0), Errno::EINVAL);
            as_user(1000, 1000, || {
                fails(set_xattr(&dir.join("file"), ACCESS, &good, 0), Errno::EPERM);
                set(&dir.join("own"), ACCESS, &good);
            });
        },
    );
}
