//! Making, linking, renaming and removing names, with their errors.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, mknod};

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::as_user;
use crate::common::union::{Union, everywhere};
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(making_directories),
        t!(removing),
        t!(nodes).root(),
        t!(devices_zero_zero).root(),
        t!(links),
        t!(link_counts),
        t!(renaming_files),
        t!(renaming_directories),
        t!(renaming_without_rights).root(),
        t!(sticky_directories).root(),
        t!(long_names),
        t!(names_with_trailing_slashes),
    ]
}

/// A file, an empty directory, a full one and a symlink to the file.
fn some_names(dir: &Path) {
    put(dir.join("file"), "content");
    make_dir(dir.join("empty"));
    put(dir.join("full/inside"), "x");
    symlink("file", dir.join("symlink")).expect("symlink");
}

fn making_directories() {
    everywhere(some_names, |dir| {
        for name in ["file", "empty", "symlink"] {
            fails(fs::create_dir(dir.join(name)), Errno::EEXIST);
        }
        fails(fs::create_dir(dir.join("missing/new")), Errno::ENOENT);
        fails(fs::create_dir(dir.join("file/new")), Errno::ENOTDIR);
        fs::create_dir(dir.join("empty/new")).expect("mkdir");
        assert_eq!(mode(dir.join("empty/new")), 0o755);
        assert_eq!(names(dir.join("empty/new")), Vec::<String>::new());
        assert_eq!(stat(dir.join("empty/new")).uid(), nix::unistd::geteuid().as_raw());
    });
}

fn removing() {
    everywhere(some_names, |dir| {
        fails(fs::remove_dir(dir.join("full")), Errno::ENOTEMPTY);
        fails(fs::remove_dir(dir.join("file")), Errno::ENOTDIR);
        fails(fs::remove_dir(dir.join("symlink")), Errno::ENOTDIR);
        fails(fs::remove_dir(dir.join("missing")), Errno::ENOENT);
        fails(fs::remove_dir(dir.join("empty/.")), Errno::EINVAL);
        fails(fs::remove_dir(dir.join("full/..")), Errno::ENOTEMPTY);
        fails(nix::unistd::unlink(&dir.join("empty")), Errno::EISDIR);
        fails(nix::unistd::unlink(&dir.join("missing")), Errno::ENOENT);
        fails(nix::unistd::unlink(&dir.join("file/x")), Errno::ENOTDIR);
        fs::remove_file(dir.join("symlink")).expect("the symlink, not its target");
        assert_eq!(read(dir.join("file")), "content");
        fs::remove_dir(dir.join("empty")).expect("rmdir");
        fs::remove_dir_all(dir.join("full")).expect("rm -r");
        fs::remove_file(dir.join("file")).expect("unlink");
        assert_eq!(names(dir), Vec::<String>::new());
        fails(fs::remove_file(dir.join("file")), Errno::ENOENT);
    });
}

fn nodes() {
    everywhere(some_names, |dir| {
        let make = |name: &str, kind, device| mknod(&dir.join(name), kind, Mode::from_bits_truncate(0o640), device);
        let device = nix::sys::stat::makedev(251, 200_001);
        make("fifo", SFlag::S_IFIFO, 0).expect("fifo");
        make("socket", SFlag::S_IFSOCK, 0).expect("socket");
        make("char", SFlag::S_IFCHR, device).expect("character device");
        make("block", SFlag::S_IFBLK, device).expect("block device");
        make("regular", SFlag::S_IFREG, 0).expect("regular file");
        let found = |name: &str| stat(dir.join(name));
        assert!(found("fifo").file_type().is_fifo());
        assert!(found("socket").file_type().is_socket());
        assert!(found("char").file_type().is_char_device());
        assert!(found("block").file_type().is_block_device());
        assert!(found("regular").is_file());
        assert_eq!((found("char").rdev(), found("block").rdev()), (device, device));
        for name in ["fifo", "socket", "char", "block", "regular"] {
            assert_eq!(mode(dir.join(name)), 0o640, "{name}");
            fails(make(name, SFlag::S_IFIFO, 0), Errno::EEXIST);
        }
        fails(make("missing/x", SFlag::S_IFIFO, 0), Errno::ENOENT);
        as_user(1000, 1000, || fails(make("other", SFlag::S_IFCHR, device), Errno::EACCES));
        chmod(dir, 0o777);
        as_user(1000, 1000, || {
            fails(make("other", SFlag::S_IFCHR, device), Errno::EPERM);
            make("own", SFlag::S_IFIFO, 0).expect("a fifo is for everybody");
        });
        assert_eq!(found("own").uid(), 1000);
    });
}

/// What stands for a deleted name on disk is an ordinary device in the mount.
fn devices_zero_zero() {
    let mut union = Union::new(1);
    put(union.lower(0, "d/file"), "x");
    put(union.lower(0, "d/other"), "x");
    union.mount();
    node(union.at("d/device"), SFlag::S_IFCHR, (0, 0));
    fs::remove_file(union.at("d/file")).expect("remove");
    node(union.at("d/file"), SFlag::S_IFCHR, (0, 0));
    for _ in 0..2 {
        assert_eq!(names(union.at("d")), ["device", "file", "other"]);
        for name in ["d/device", "d/file"] {
            let found = stat(union.at(name));
            assert!(found.file_type().is_char_device() && found.rdev() == 0, "{name}");
        }
        union.remount();
    }
    fs::remove_file(union.at("d/device")).expect("remove");
    fs::remove_file(union.at("d/file")).expect("remove");
    assert_eq!(names(union.at("d")), ["other"]);
    union.umount();
}

fn links() {
    everywhere(some_names, |dir| {
        fails(fs::hard_link(dir.join("file"), dir.join("empty")), Errno::EEXIST);
        fails(fs::hard_link(dir.join("file"), dir.join("symlink")), Errno::EEXIST);
        fails(fs::hard_link(dir.join("missing"), dir.join("new")), Errno::ENOENT);
        fails(fs::hard_link(dir.join("file"), dir.join("missing/new")), Errno::ENOENT);
        fails(fs::hard_link(dir.join("file"), dir.join("file/new")), Errno::ENOTDIR);
        fails(fs::hard_link(dir.join("empty"), dir.join("new")), Errno::EPERM);
        fs::hard_link(dir.join("file"), dir.join("full/link")).expect("link");
        fs::hard_link(dir.join("symlink"), dir.join("symlink2")).expect("link of a symlink");
        assert_eq!(ino(dir.join("symlink")), ino(dir.join("symlink2")));
        append(dir.join("full/link"), "!");
        assert_eq!(read(dir.join("file")), "content!");
    });
}

fn link_counts() {
    everywhere(some_names, |dir| {
        let count = |name: &str| stat(dir.join(name)).nlink();
        assert_eq!(count("file"), 1);
        for i in 0..5 {
            fs::hard_link(dir.join("file"), dir.join(format!("link{i}"))).expect("link");
            assert_eq!((count("file"), count(&format!("link{i}"))), (i + 2, i + 2));
        }
        let held = open(dir.join("file"));
        for i in 0..5 {
            fs::remove_file(dir.join(format!("link{i}"))).expect("unlink");
            assert_eq!(count("file"), 5 - i);
        }
        put(dir.join("another"), "x");
        fs::rename(dir.join("another"), dir.join("file")).expect("rename over it");
        assert_eq!(held.metadata().expect("fstat").nlink(), 0);
        assert_eq!(count("file"), 1);
    });
}

fn renaming_files() {
    everywhere(some_names, |dir| {
        let rename = |from: &str, to: &str| fs::rename(dir.join(from), dir.join(to));
        fails(rename("missing", "new"), Errno::ENOENT);
        fails(rename("file", "missing/new"), Errno::ENOENT);
        fails(rename("file", "empty"), Errno::EISDIR);
        fails(rename("file/x", "new"), Errno::ENOTDIR);
        fails(rename("file", "symlink/x"), Errno::ENOTDIR);
        rename("file", "file").expect("to itself");
        assert_eq!(read(dir.join("file")), "content");
        rename("file", "full/inside").expect("over a file");
        assert_eq!(read(dir.join("full/inside")), "content");
        rename("full/inside", "symlink").expect("over a symlink");
        assert!(stat(dir.join("symlink")).is_file());
        rename("symlink", "file").expect("back");
        assert_eq!(names(dir), ["empty", "file", "full"]);
        assert_eq!(read(dir.join("file")), "content");
    });
}

fn renaming_directories() {
    everywhere(some_names, |dir| {
        let rename = |from: &str, to: &str| fs::rename(dir.join(from), dir.join(to));
        fails(rename("full", "file"), Errno::ENOTDIR);
        // rename(2) leaves the choice, and xfs takes the other one.
        let full = rename("empty", "full").map_err(|error| match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
            Errno::EEXIST => Errno::ENOTEMPTY.into(),
            _ => error,
        });
        fails(full, Errno::ENOTEMPTY);
        fails(rename("full", "full/sub"), Errno::EINVAL);
        fails(rename("full", "full/sub/deeper"), Errno::ENOENT);
        fails(rename("empty/.", "new"), Errno::EBUSY);
        fails(rename("full/inside", "full"), Errno::ENOTEMPTY);
        rename("full", "full").expect("to itself");
        rename("full", "empty").expect("over an empty directory");
        assert_eq!(names(dir.join("empty")), ["inside"]);
        rename("empty", "new").expect("to a new name");
        make_dir(dir.join("other/sub"));
        rename("new", "other/sub/new").expect("to another directory");
        assert_eq!(names(dir), ["file", "other", "symlink"]);
        assert_eq!(read(dir.join("other/sub/new/inside")), "x");
        // `..` follows.
        assert_eq!(ino(dir.join("other/sub/new/..")), ino(dir.join("other/sub")));
    });
}

fn renaming_without_rights() {
    everywhere(
        |dir| {
            put(dir.join("closed/file"), "x");
            make_dir(dir.join("closed/dir"));
            make_dir(dir.join("open"));
            chmod(dir.join("open"), 0o777);
            put(dir.join("open/file"), "x");
            make_dir(dir.join("open/roots"));
            make_dir(dir.join("open/into"));
            chmod(dir.join("open/into"), 0o777);
        },
        |dir| {
            as_user(1000, 1000, || {
                let rename = |from: &str, to: &str| fs::rename(dir.join(from), dir.join(to));
                fails(rename("closed/file", "closed/new"), Errno::EACCES);
                fails(rename("closed/file", "open/new"), Errno::EACCES);
                fails(rename("open/file", "closed/new"), Errno::EACCES);
                fails(rename("open/roots", "open/into/roots"), Errno::EACCES);
                rename("open/roots", "open/new").expect("within one directory");
                rename("open/file", "open/into/file").expect("whoever owns it");
            });
        },
    );
}

fn sticky_directories() {
    everywhere(
        |dir| {
            make_dir(dir.join("tmp"));
            chmod(dir.join("tmp"), 0o1777);
            for (name, uid) in [("one", 1001), ("two", 1002)] {
                for kind in ["a", "b"] {
                    put(dir.join(format!("tmp/{name}-{kind}")), "x");
                    chown(dir.join(format!("tmp/{name}-{kind}")), uid, uid);
                    chmod(dir.join(format!("tmp/{name}-{kind}")), 0o666);
                }
                make_dir(dir.join(format!("tmp/{name}-dir")));
                chown(dir.join(format!("tmp/{name}-dir")), uid, uid);
            }
        },
        |dir| {
            let at = |name: &str| dir.join("tmp").join(name);
            as_user(1001, 1001, || {
                fails(fs::remove_file(at("two-a")), Errno::EPERM);
                fails(fs::remove_dir(at("two-dir")), Errno::EPERM);
                fails(fs::rename(at("two-a"), at("new")), Errno::EPERM);
                fails(fs::rename(at("one-a"), at("two-a")), Errno::EPERM);
                append(at("two-a"), "writing is another matter");
                fs::rename(at("one-a"), at("one-b")).expect("one's own");
                fs::remove_file(at("one-b")).expect("one's own");
                fs::remove_dir(at("one-dir")).expect("one's own");
            });
            fs::remove_file(at("two-a")).expect("root removes anything");
        },
    );
}

fn long_names() {
    let longest = "n".repeat(255);
    everywhere(
        |dir| put(dir.join(&longest), "x"),
        |dir| {
            let other = "m".repeat(255);
            let long = "n".repeat(256);
            assert_eq!(names(dir), [longest.as_str()]);
            fs::rename(dir.join(&longest), dir.join(&other)).expect("rename");
            append(dir.join(&other), "y");
            fs::hard_link(dir.join(&other), dir.join(&longest)).expect("link");
            make_dir(dir.join("d".repeat(255)));
            fs::remove_file(dir.join(&longest)).expect("remove");
            fails(fs::create_dir(dir.join(&long)), Errno::ENAMETOOLONG);
            fails(fs::rename(dir.join(&other), dir.join(&long)), Errno::ENAMETOOLONG);
            fails(fs::hard_link(dir.join(&other), dir.join(&long)), Errno::ENAMETOOLONG);
            fails(symlink("x", dir.join(&long)), Errno::ENAMETOOLONG);
            fails(fs::remove_file(dir.join(&long)), Errno::ENAMETOOLONG);
            fails(fs::symlink_metadata(dir.join(&long)), Errno::ENAMETOOLONG);
        },
    );
}

fn names_with_trailing_slashes() {
    everywhere(some_names, |dir| {
        fails(fs::metadata(dir.join("file/")), Errno::ENOTDIR);
        fails(fs::remove_file(dir.join("file/")), Errno::ENOTDIR);
        fails(fs::rename(dir.join("file"), dir.join("new/")), Errno::ENOTDIR);
        fs::create_dir(dir.join("new/")).expect("mkdir");
        fs::rename(dir.join("new/"), dir.join("newer/")).expect("rename");
        assert!(stat(dir.join("newer/")).is_dir());
        fs::remove_dir(dir.join("newer/")).expect("rmdir");
    });
}
