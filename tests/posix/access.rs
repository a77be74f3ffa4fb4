//! Who may do what: the kernel decides by owner, group, mode and ACL, as on any filesystem.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag};
use nix::unistd::{AccessFlags, mkfifo};

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::as_user;
use crate::common::sys::{get_xattr, set_xattr};
use crate::common::union::{Union, everywhere};
use crate::common::values::CAPABILITY;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(modes_decide).root(),
        t!(searching_directories).root(),
        t!(new_objects_belong_to_their_maker).root(),
        t!(sgid_directories_pass_their_group_on).root(),
        t!(writing_drops_suid).root(),
        t!(truncating_drops_suid).root(),
        t!(root_keeps_suid_when_writing).root(),
        t!(capabilities_are_dropped_on_change).root(),
        t!(other_processes_of_other_users).root(),
        t!(copy_up_on_behalf_of_a_user).root(),
    ]
}

fn modes_decide() {
    everywhere(
        |dir| {
            for (name, bits, uid, gid) in [
                ("secret", 0o600, 0, 0),
                ("public", 0o644, 0, 0),
                ("group", 0o660, 0, 1000),
                ("own", 0o600, 1000, 0),
                ("denied-owner", 0o066, 1000, 1000),
                ("shared", 0o666, 0, 0),
            ] {
                put(dir.join(name), "x");
                chown(dir.join(name), uid, gid);
                chmod(dir.join(name), bits);
            }
        },
        |dir| {
            as_user(1000, 1000, || {
                let write = |name: &str| fs::OpenOptions::new().write(true).open(dir.join(name));
                fails(fs::read(dir.join("secret")), Errno::EACCES);
                fails(write("secret"), Errno::EACCES);
                assert_eq!(read(dir.join("public")), "x");
                fails(write("public"), Errno::EACCES);
                fails(fs::File::create(dir.join("public")), Errno::EACCES);
                fails(nix::unistd::truncate(&dir.join("public"), 0), Errno::EACCES);
                append(dir.join("group"), "y");
                append(dir.join("own"), "y");
                append(dir.join("shared"), "y");
                fails(fs::read(dir.join("denied-owner")), Errno::EACCES);
                fails(fs::remove_file(dir.join("shared")), Errno::EACCES);
                fails(fs::write(dir.join("new"), "x"), Errno::EACCES);
                fails(fs::create_dir(dir.join("new")), Errno::EACCES);
                // link(2) here depends on fs.protected_hardlinks as well; either way it is refused.
                assert!(fs::hard_link(dir.join("secret"), dir.join("link")).is_err());
            });
            for name in ["group", "own", "shared"] {
                assert_eq!(read(dir.join(name)), "xy");
            }
            let can = AccessFlags::R_OK | AccessFlags::W_OK;
            nix::unistd::access(&dir.join("secret"), can).expect("root may");
            fails(nix::unistd::access(&dir.join("secret"), AccessFlags::X_OK), Errno::EACCES);
        },
    );
}

fn searching_directories() {
    everywhere(
        |dir| {
            for (name, bits) in [("closed", 0o700), ("search", 0o711), ("list", 0o744)] {
                put(dir.join(name).join("file"), "x");
                chmod(dir.join(name), bits);
            }
        },
        |dir| {
            as_user(1000, 1000, || {
                fails(fs::metadata(dir.join("closed/file")), Errno::EACCES);
                fails(fs::read_dir(dir.join("closed")).map(drop), Errno::EACCES);
                assert_eq!(read(dir.join("search/file")), "x");
                fails(fs::read_dir(dir.join("search")).map(drop), Errno::EACCES);
                fails(fs::metadata(dir.join("list/file")), Errno::EACCES);
                assert_eq!(names(dir.join("list")), ["file"]);
            });
        },
    );
}

fn new_objects_belong_to_their_maker() {
    everywhere(
        |dir| {
            make_dir(dir.join("open"));
            chmod(dir.join("open"), 0o777);
            put(dir.join("open/old"), "x");
        },
        |dir| {
            let at = |name: &str| dir.join("open").join(name);
            as_user(1000, 1001, || {
                put(at("file"), "x");
                make_dir(at("dir/sub"));
                std::os::unix::fs::symlink("x", at("symlink")).expect("symlink");
                mkfifo(&at("fifo"), Mode::from_bits_truncate(0o600)).expect("mkfifo");
                fs::remove_file(at("old")).expect("remove");
                put(at("old"), "over a whiteout");
            });
            for name in ["file", "dir", "dir/sub", "symlink", "fifo", "old"] {
                let found = stat(at(name));
                assert_eq!((found.uid(), found.gid()), (1000, 1001), "{name}");
            }
        },
    );
}

fn sgid_directories_pass_their_group_on() {
    everywhere(
        |dir| {
            make_dir(dir.join("shared"));
            chown(dir.join("shared"), 0, 3000);
            chmod(dir.join("shared"), 0o2777);
        },
        |dir| {
            let at = |name: &str| dir.join("shared").join(name);
            as_user(1000, 1000, || {
                put(at("file"), "x");
                make_dir(at("dir/sub"));
                node(at("fifo"), SFlag::S_IFIFO, (0, 0));
                create_new(at("executable"), 0o2755);
            });
            for name in ["file", "dir", "dir/sub", "fifo"] {
                let found = stat(at(name));
                assert_eq!((found.uid(), found.gid()), (1000, 3000), "{name}");
            }
            assert_eq!(mode(at("dir")), 0o2755);
            assert_eq!(mode(at("dir/sub")), 0o2755);
            assert_eq!(mode(at("file")), 0o644);
            assert_eq!(mode(at("executable")), 0o755, "no sgid for a group one is not in");
        },
    );
}

fn privileged_files(dir: &std::path::Path) {
    for (name, bits) in [("suid", 0o4777), ("sgid", 0o2777), ("both", 0o6777), ("lock", 0o2767)] {
        put(dir.join(name), "content");
        chmod(dir.join(name), bits);
    }
}

fn writing_drops_suid() {
    everywhere(privileged_files, |dir| {
        as_user(1000, 1000, || {
            for name in ["suid", "sgid", "both", "lock"] {
                append(dir.join(name), "x");
            }
        });
        for name in ["suid", "sgid", "both"] {
            assert_eq!(mode(dir.join(name)), 0o777, "{name}");
        }
        for name in ["suid", "sgid", "both", "lock"] {
            assert_eq!(read(dir.join(name)), "contentx");
        }
    });
}

fn truncating_drops_suid() {
    everywhere(privileged_files, |dir| {
        as_user(1000, 1000, || {
            nix::unistd::truncate(&dir.join("suid"), 3).expect("truncate");
            edit(dir.join("both")).set_len(3).expect("ftruncate");
            drop(fs::File::create(dir.join("sgid")).expect("O_TRUNC"));
        });
        for name in ["suid", "sgid", "both"] {
            assert_eq!(mode(dir.join(name)), 0o777, "{name}");
        }
    });
}

fn root_keeps_suid_when_writing() {
    everywhere(privileged_files, |dir| {
        append(dir.join("both"), "x");
        assert_eq!(mode(dir.join("both")), 0o6777);
    });
}

fn capabilities_are_dropped_on_change() {
    let name = "security.capability";
    everywhere(
        |dir| {
            for file in ["read", "chmod", "written", "truncated", "chowned"] {
                put(dir.join(file), "content");
                chmod(dir.join(file), 0o777);
                set_xattr(&dir.join(file), name, &CAPABILITY, 0).expect("capability");
            }
        },
        |dir| {
            let has = |file: &str| get_xattr(&dir.join(file), name).is_ok();
            assert_eq!(read(dir.join("read")), "content");
            chmod(dir.join("chmod"), 0o755);
            assert!(has("read") && has("chmod"));
            as_user(1000, 1000, || {
                append(dir.join("written"), "x");
                edit(dir.join("truncated")).set_len(1).expect("truncate");
            });
            chown(dir.join("chowned"), 5, 5);
            for file in ["written", "truncated", "chowned"] {
                assert!(!has(file), "{file}");
            }
        },
    );
}

/// Real processes, not only this thread under other names.
fn other_processes_of_other_users() {
    use std::os::unix::process::CommandExt;
    let mut union = Union::new(1);
    put(union.lower(0, "secret"), "x");
    chmod(union.lower(0, "secret"), 0o600);
    put(union.lower(0, "public"), "x");
    make_dir(union.lower(0, "tmp"));
    chmod(union.lower(0, "tmp"), 0o1777);
    union.mount();
    let script = "! cat secret 2>/dev/null && cat public >/dev/null && echo mine > tmp/mine \
                  && ! rm -f public 2>/dev/null && ! chmod 777 public 2>/dev/null";
    let status =
        Command::new("sh").args(["-c", script]).current_dir(union.point()).uid(1000).gid(1000).status().expect("sh");
    assert!(status.success(), "{status}");
    assert_eq!(stat(union.at("tmp/mine")).uid(), 1000);
    union.umount();
}

/// The copy belongs to whom the lower file belongs, in directories that the user can't write.
fn copy_up_on_behalf_of_a_user() {
    let mut union = Union::new(1);
    put(union.lower(0, "a/b/file"), "x");
    chown(union.lower(0, "a/b/file"), 7, 8);
    chmod(union.lower(0, "a/b/file"), 0o666);
    put(union.lower(0, "a/b/own"), "x");
    chown(union.lower(0, "a/b/own"), 1000, 1000);
    let before = union.lower_trees();
    union.mount();
    as_user(1000, 1000, || {
        let mut file = fs::OpenOptions::new().append(true).open(union.at("a/b/file")).expect("open");
        file.write_all(b"y").expect("write");
        file.write_all_at(b"z", 0).expect("write");
        chmod(union.at("a/b/own"), 0o600);
    });
    let found = stat(union.at("a/b/file"));
    assert_eq!((found.uid(), found.gid(), mode(union.at("a/b/file"))), (7, 8, 0o666));
    assert_eq!(read(union.at("a/b/file")), "xyz");
    assert_eq!(mode(union.at("a/b/own")), 0o600);
    assert_eq!(stat(union.at("a/b")).uid(), 0);
    union.umount();
    union.assert_lowers(&before);
}
