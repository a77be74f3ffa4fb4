//! Extended attributes: every call, its errors, and the names that are layerfs's own.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::SFlag;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, statfs};

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::{as_user, without_rights};
use crate::common::sys::{get_xattr, get_xattr_into, list_xattr, list_xattr_into, remove_xattr, set_xattr};
use crate::common::union::{Union, everywhere};
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(values_of_every_kind).root(),
        t!(create_and_replace),
        t!(buffers_that_are_too_small),
        t!(what_can_not_be_set).root(),
        t!(who_may_set_what).root(),
        t!(removing_one_keeps_the_others),
        t!(private_marks_are_not_shown).root(),
        t!(names_like_private_marks_are_stored_apart).root(),
        t!(statistics_are_no_attribute),
    ]
}

fn some_objects(dir: &Path) {
    put(dir.join("file"), "x");
    make_dir(dir.join("dir"));
    for name in ["file", "dir"] {
        mark(dir.join(name), "user.old", "old value");
    }
}

fn values_of_every_kind() {
    everywhere(
        |dir| {
            some_objects(dir);
            symlink("file", dir.join("symlink")).expect("symlink");
        },
        |dir| {
            let values: [&[u8]; 4] = [b"", b"text", &[0, 1, 255, 0], &[b'x'; 2000]];
            for name in ["file", "dir", "symlink"] {
                let path = dir.join(name);
                for namespace in ["user", "trusted", "security"] {
                    if (name, namespace) == ("symlink", "user") {
                        continue;
                    }
                    let key = format!("{namespace}.test");
                    for value in values {
                        set_xattr(&path, &key, value, 0).unwrap_or_else(|e| panic!("{name} {key}: {e}"));
                        assert_eq!(get_xattr(&path, &key).as_deref(), Ok(value), "{name} {key}");
                    }
                    assert!(list_xattr(&path).expect("list").contains(&OsString::from(&key)));
                    remove_xattr(&path, &key).expect("remove");
                    fails(get_xattr(&path, &key), Errno::ENODATA);
                    assert!(!list_xattr(&path).expect("list").contains(&OsString::from(&key)));
                }
            }
            assert_eq!(get_xattr(&dir.join("file"), "user.old").as_deref(), Ok(&b"old value"[..]));
        },
    );
}

fn create_and_replace() {
    everywhere(some_objects, |dir| {
        for name in ["file", "dir"] {
            let path = dir.join(name);
            fails(set_xattr(&path, "user.old", b"x", libc::XATTR_CREATE), Errno::EEXIST);
            fails(set_xattr(&path, "user.new", b"x", libc::XATTR_REPLACE), Errno::ENODATA);
            fails(remove_xattr(&path, "user.new"), Errno::ENODATA);
            fails(get_xattr(&path, "user.new"), Errno::ENODATA);
            assert_eq!(marked(&path, "user.old").as_deref(), Some("old value"));
            set_xattr(&path, "user.new", b"1", libc::XATTR_CREATE).expect("create");
            set_xattr(&path, "user.new", b"2", libc::XATTR_REPLACE).expect("replace");
            assert_eq!(marked(&path, "user.new").as_deref(), Some("2"));
            fails(set_xattr(&path, "user.x", b"x", 4), Errno::EINVAL);
        }
        fails(set_xattr(&dir.join("missing"), "user.x", b"x", 0), Errno::ENOENT);
        fails(list_xattr(&dir.join("missing")), Errno::ENOENT);
    });
}

fn buffers_that_are_too_small() {
    everywhere(some_objects, |dir| {
        for name in ["file", "dir"] {
            let path = dir.join(name);
            assert_eq!(get_xattr_into(&path, "user.old", &mut []), Ok(9), "the length alone");
            assert_eq!(get_xattr_into(&path, "user.old", &mut [0; 9]), Ok(9));
            fails(get_xattr_into(&path, "user.old", &mut [0; 8]), Errno::ERANGE);
            let length = list_xattr_into(&path, &mut []).expect("the length alone");
            assert!(length >= "user.old\0".len());
            let mut buffer = vec![0; length];
            assert_eq!(list_xattr_into(&path, &mut buffer), Ok(length));
            fails(list_xattr_into(&path, &mut buffer[..length - 1]), Errno::ERANGE);
        }
    });
}

fn what_can_not_be_set() {
    everywhere(
        |dir| {
            some_objects(dir);
            symlink("file", dir.join("symlink")).expect("symlink");
            node(dir.join("fifo"), SFlag::S_IFIFO, (0, 0));
        },
        |dir| {
            for name in ["symlink", "fifo"] {
                fails(set_xattr(&dir.join(name), "user.x", b"x", 0), Errno::EPERM);
            }
            let file = dir.join("file");
            fails(set_xattr(&file, "unknown.x", b"x", 0), Errno::EOPNOTSUPP);
            fails(set_xattr(&file, "user.", b"x", 0), Errno::EINVAL);
            fails(set_xattr(&file, "", b"x", 0), Errno::ERANGE);
            let long = format!("user.{}", "x".repeat(251));
            fails(set_xattr(&file, &long, b"x", 0), Errno::ERANGE);
            set_xattr(&file, &long[..255], b"x", 0).expect("the longest name");
            fails(set_xattr(&file, "user.x", &[0; 65_537], 0), Errno::E2BIG);
        },
    );
}

fn who_may_set_what() {
    everywhere(
        |dir| {
            some_objects(dir);
            mark(dir.join("file"), "trusted.hidden", "x");
            put(dir.join("own"), "x");
            chown(dir.join("own"), 1000, 1000);
            put(dir.join("closed"), "x");
            mark(dir.join("closed"), "user.x", "x");
            chmod(dir.join("closed"), 0o600);
        },
        |dir| {
            as_user(1000, 1000, || {
                fails(set_xattr(&dir.join("file"), "user.x", b"x", 0), Errno::EACCES);
                fails(get_xattr(&dir.join("closed"), "user.x"), Errno::EACCES);
                assert_eq!(marked(dir.join("file"), "user.old").as_deref(), Some("old value"));
                mark(dir.join("own"), "user.x", "mine");
                fails(remove_xattr(&dir.join("file"), "user.old"), Errno::EACCES);
            });
            without_rights(1000, 1000, || {
                let listed = list_xattr(&dir.join("file")).expect("list");
                let hidden = listed == ["user.old"];
                // A plain btrfs lists the names of trusted attributes to everybody.
                assert!(hidden || BTRFS_SUPER_MAGIC == statfs(dir).expect("statfs").filesystem_type(), "{listed:?}");
                fails(get_xattr(&dir.join("file"), "trusted.hidden"), Errno::ENODATA);
                fails(set_xattr(&dir.join("own"), "trusted.hidden", b"x", 0), Errno::EPERM);
            });
            assert!(list_xattr(&dir.join("file")).expect("list").contains(&"trusted.hidden".into()));
            assert_eq!(marked(dir.join("own"), "user.x").as_deref(), Some("mine"));
        },
    );
}

fn removing_one_keeps_the_others() {
    everywhere(
        |dir| {
            put(dir.join("file"), "x");
            for i in 0..10 {
                mark(dir.join("file"), &format!("user.{i}"), &i.to_string());
            }
        },
        |dir| {
            remove_xattr(&dir.join("file"), "user.4").expect("remove");
            for i in 0..10 {
                let value = marked(dir.join("file"), &format!("user.{i}"));
                assert_eq!(value, (i != 4).then(|| i.to_string()), "{i}");
            }
        },
    );
}

/// Objects with every kind of mark that layerfs leaves in upper.
fn marked_union() -> Union {
    let mut union = Union::new(2);
    put(union.lower(1, "renamed/file"), "x");
    put(union.lower(1, "again/file"), "x");
    put(union.lower(1, "copied"), "x");
    fs::hard_link(union.lower(1, "copied"), union.lower(1, "linked")).expect("link");
    put(union.lower(0, "merged/file"), "x");
    union.mount();
    fs::rename(union.at("renamed"), union.at("new")).expect("rename");
    fs::remove_dir_all(union.at("again")).expect("remove");
    make_dir(union.at("again"));
    append(union.at("copied"), "y");
    append(union.at("merged/file"), "y");
    union
}

fn private_marks_are_not_shown() {
    let mut union = marked_union();
    for _ in 0..2 {
        for path in ["", "new", "new/file", "again", "copied", "linked", "merged", "merged/file"] {
            let shown = list_xattr(&union.at(path)).expect("list");
            let private = |name: &&OsString| {
                let name = name.to_string_lossy();
                name.contains("overlay") || name.contains("layerfs")
            };
            assert_eq!(shown.iter().find(private), None, "on {path:?}");
            for mark in ["redirect", "opaque", "origin", "impure", "metacopy", "nlink", "upper"] {
                let name = format!("trusted.overlay.{mark}");
                fails(get_xattr(&union.at(path), &name), Errno::ENODATA);
                fails(remove_xattr(&union.at(path), &name), Errno::ENODATA);
            }
        }
        union.remount();
    }
    assert_eq!(names(union.at("again")), Vec::<String>::new(), "the marks are still in force");
    assert_eq!(names(union.at("new")), ["file"]);
    union.umount();
}

/// A union within the union, the kernel's for example, keeps its marks in ours.
fn names_like_private_marks_are_stored_apart() {
    let mut union = marked_union();
    let all = [
        ("new", "trusted.overlay.redirect", "/merged"),
        ("merged", "trusted.overlay.opaque", "y"),
        ("copied", "trusted.overlay.metacopy", ""),
        ("linked", "trusted.overlay.origin", "nonsense"),
        ("merged/file", "trusted.overlay.whiteout", "y"),
        ("again", "trusted.overlay.overlay.opaque", "y"),
    ];
    for (path, name, value) in all {
        set_xattr(&union.at(path), name, value.as_bytes(), 0).unwrap_or_else(|e| panic!("{name} on {path}: {e}"));
    }
    for round in 0..2 {
        for (path, name, value) in all {
            assert_eq!(marked(union.at(path), name).as_deref(), Some(value), "{name} on {path}");
            let listed = list_xattr(&union.at(path)).expect("list");
            assert!(listed.contains(&name.into()), "{name} on {path} in {listed:?}");
        }
        assert_eq!(names(union.at("new")), ["file"], "round {round}");
        assert_eq!(names(union.at("merged")), ["file"], "round {round}");
        assert_eq!(read(union.at("copied")), "xy", "round {round}");
        assert_eq!(names(union.at("again")), Vec::<String>::new(), "round {round}");
        union.remount();
    }
    for (path, name, _) in all {
        remove_xattr(&union.at(path), name).unwrap_or_else(|e| panic!("{name} on {path}: {e}"));
        fails(get_xattr(&union.at(path), name), Errno::ENODATA);
    }
    union.remount();
    assert_eq!(names(union.at("new")), ["file"]);
    assert_eq!(names(union.at("again")), Vec::<String>::new());
    union.umount();
}

fn statistics_are_no_attribute() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "x");
    union.mount();
    let stats = get_xattr(&union.at(""), "user.layerfs.stats").expect("on the root");
    serde_json::from_slice::<serde_json::Value>(&stats).expect("JSON");
    let layer = get_xattr(&union.at(""), "user.layerfs.layer.0").expect("the first layer");
    serde_json::from_slice::<serde_json::Value>(&layer).expect("JSON");
    fails(get_xattr(&union.at(""), "user.layerfs.layer.2"), Errno::ENODATA);
    fails(get_xattr(&union.at("file"), "user.layerfs.stats"), Errno::ENODATA);
    assert_eq!(list_xattr(&union.at("")).expect("list"), Vec::<OsString>::new());
    union.umount();
}
