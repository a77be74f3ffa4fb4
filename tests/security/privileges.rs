//! Set-id bits and file capabilities: they go, and stay, exactly when they do on a plain filesystem.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{FallocateFlags, fallocate};

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::{as_user, find_program};
use crate::common::mount::run;
use crate::common::sys::{Page, copy_range, get_xattr, set_xattr};
use crate::common::union::Union;
use crate::common::values::CAPABILITY;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(every_change_drops_what_a_plain_filesystem_drops).root(),
        t!(every_change_without_a_cache).root(),
        t!(every_change_with_gathered_writes).root(),
        t!(root_without_the_right_to_keep_them_loses_them).root().needs(no_setpriv),
        t!(copy_up_alone_keeps_them).root(),
    ]
}

const CAPABILITY_NAME: &str = "security.capability";
const USER: u32 = 1000;

/// Permission bits, and whether the file has a capability.
const KINDS: [(&str, u32, bool); 7] = [
    ("plain", 0o777, false),
    ("suid", 0o4777, false),
    ("sgid", 0o2777, false),
    ("locking", 0o2767, false),
    ("both", 0o6777, false),
    ("capable", 0o777, true),
    ("capable-suid", 0o4777, true),
];

/// A change of one file that its user may make.
type Change = (&'static str, fn(&Path));

const CHANGES: [Change; 14] = [
    ("write", |path| append(path, "x")),
    ("write-nothing", |path| append(path, "")),
    ("write-in-place", |path| edit(path).write_all_at(b"x", 1).expect("write")),
    ("write-direct", |path| {
        let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path);
        // Not every filesystem has it; then the plain directory has no change either.
        if let Ok(file) = file {
            file.write_all_at(&Page([b'x'; 4096]).0, 0).expect("write");
        }
    }),
    ("truncate", |path| nix::unistd::truncate(path, 2).expect("truncate")),
    ("truncate-to-nothing", |path| nix::unistd::truncate(path, 0).expect("truncate")),
    ("ftruncate", |path| edit(path).set_len(3).expect("ftruncate")),
    ("extend", |path| edit(path).set_len(30).expect("ftruncate")),
    ("open-truncate", |path| drop(OpenOptions::new().write(true).truncate(true).open(path).expect("O_TRUNC"))),
    ("allocate", |path| fallocate(edit(path), FallocateFlags::empty(), 0, 100).expect("fallocate")),
    ("punch", |path| {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(edit(path), flags, 0, 4).expect("fallocate");
    }),
    ("copy-range", |path| {
        let file = edit(path);
        copy_range(&file, 0, &file, 4, 2).expect("copy_file_range");
    }),
    ("read", |path| drop(fs::read(path).expect("read"))),
    ("touch", |path| {
        let now = nix::sys::time::TimeSpec::UTIME_NOW;
        try_set_times(path, now, now).expect("touch");
    }),
];

/// Changes that only an owner may make, or root.
const OWNERS: [Change; 6] = [
    ("chown-to-same", |path| {
        let found = stat(path);
        chown(path, std::os::unix::fs::MetadataExt::uid(&found), std::os::unix::fs::MetadataExt::gid(&found));
    }),
    ("chgrp", |path| std::os::unix::fs::chown(path, None, Some(USER)).expect("chgrp")),
    ("chown-nothing", |path| std::os::unix::fs::chown(path, None, None).expect("chown")),
    ("chmod", |path| chmod(path, 0o6755)),
    ("xattr", |path| mark(path, "user.x", "y")),
    ("acl", |path| {
        // Version 2; owner rwx, group rwx, others nothing. Not every filesystem has ACLs; then the plain one has none either.
        let acl = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x04\0\x07\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
        let _without_acls = set_xattr(path, "system.posix_acl_access", acl, 0);
    }),
];

/// Every kind of file for every change; `owned`: by the user, in a group that the user is not in.
fn prepare(dir: &Path, changes: &[Change], owned: bool) {
    for (change, _) in changes {
        for (kind, bits, capable) in KINDS {
            let path = dir.join(change).join(kind);
            put(&path, "content of 20 bytes");
            chown(&path, if owned { USER } else { 0 }, if owned { 3000 } else { 0 });
            chmod(&path, bits);
            if capable {
                set_xattr(&path, CAPABILITY_NAME, &CAPABILITY, 0).expect("capability");
            }
        }
    }
}

/// What is left: mode and capability by change and kind.
fn outcome(dir: &Path, changes: &[Change]) -> BTreeMap<PathBuf, (String, bool)> {
    let each = changes.iter().flat_map(|(change, _)| KINDS.map(|(kind, _, _)| Path::new(change).join(kind)));
    each.map(|path| {
        let mode = format!("{:o}", mode(dir.join(&path)));
        let capable = get_xattr(&dir.join(&path), CAPABILITY_NAME).is_ok();
        (path, (mode, capable))
    })
    .collect()
}

fn act(dir: &Path, changes: &[Change]) {
    for (change, act) in changes {
        for (kind, _, _) in KINDS {
            act(&dir.join(change).join(kind));
        }
    }
}

/// Where writes are not gathered, the kernel asks for this as for a write, which would leave root the set-id bits.
fn is_allowed(options: &[&str], case: &str, path: &Path) -> bool {
    // The options of the whole run come after these.
    let of_the_run = std::env::var("LAYERFS_TEST_OPTIONS").ok();
    let gathered = options.contains(&"io=cached") && of_the_run.is_none_or(|options| options == "io=cached");
    case == "root-owner" && path == Path::new("chown-nothing/capable-suid") && !gathered
}

/// The same files and changes in a plain directory, on lower files, on upper files and on files made through the mount:
/// what is left has to be the same.
fn compare(options: &[&str]) {
    let cases: [(&str, &[Change], bool, bool); 4] = [
        ("user", &CHANGES, false, true),
        ("root", &CHANGES, false, false),
        ("owner", &OWNERS, true, true),
        ("root-owner", &OWNERS, true, false),
    ];
    let mut union = Union::new(2).arguments(options);
    let plain = union.root().join("plain");
    for (case, changes, owned, _) in cases {
        for place in [plain.clone(), union.lower(1, "low"), union.upper("up")] {
            prepare(&place.join(case), changes, owned);
        }
    }
    let before = union.lower_trees();
    union.mount();
    let places = [("lower", union.at("low")), ("upper", union.at("up")), ("fresh", union.at("fresh"))];
    for (case, changes, owned, by_user) in cases {
        prepare(&union.at("fresh").join(case), changes, owned);
        let run = |dir: &Path| match by_user {
            true => as_user(USER, USER, || act(&dir.join(case), changes)),
            false => act(&dir.join(case), changes),
        };
        run(&plain);
        let expected = outcome(&plain.join(case), changes);
        for (place, dir) in &places {
            run(dir);
            let found = outcome(&dir.join(case), changes);
            let wrong: Vec<String> = expected
                .iter()
                .filter(|(path, due)| found[*path] != **due && !is_allowed(options, case, path))
                .map(|(path, due)| format!("{}: {:?}, where {due:?} is due", path.display(), found[path]))
                .collect();
            assert!(wrong.is_empty(), "{case} on {place} files:\n{}", wrong.join("\n"));
        }
    }
    union.assert_lowers(&before);
    union.umount();
}

fn every_change_drops_what_a_plain_filesystem_drops() {
    compare(&[]);
}

/// Writes then come to the daemon one by one, and say by a flag that the bits have to go.
fn every_change_without_a_cache() {
    compare(&["-o", "timeout=0"]);
}

fn every_change_with_gathered_writes() {
    compare(&["-o", "io=cached"]);
}

fn no_setpriv() -> Option<String> {
    find_program("setpriv").is_none().then(|| "needs setpriv".to_owned())
}

/// As a container's root often is.
fn root_without_the_right_to_keep_them_loses_them() {
    let mut union = Union::new(1);
    let plain = union.root().join("plain");
    for place in [plain.clone(), union.lower(0, "low"), union.upper("up")] {
        for name in ["written", "truncated", "emptied"] {
            put(place.join(name), "content");
            chmod(place.join(name), 0o6777);
        }
    }
    union.mount();
    for place in [plain, union.at("low"), union.at("up")] {
        let script = "printf x >> written && truncate -s 3 truncated && : > emptied";
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-fsetid", "--inh-caps=-fsetid", "sh", "-c", script]).current_dir(&place);
        run(&mut command).success();
        for name in ["written", "truncated", "emptied"] {
            assert_eq!(format!("{:o}", mode(place.join(name))), "777", "{:?}", place.join(name));
        }
    }
    union.umount();
}

/// A copy made for a reason that drops nothing has everything.
fn copy_up_alone_keeps_them() {
    let mut union = Union::new(1);
    for (kind, bits, capable) in KINDS {
        for change in ["linked", "renamed", "dated"] {
            let path = union.lower(0, &format!("{change}-{kind}"));
            put(&path, "content");
            chown(&path, 7, 8);
            chmod(&path, bits);
            if capable {
                set_xattr(&path, CAPABILITY_NAME, &CAPABILITY, 0).expect("capability");
            }
        }
    }
    union.mount();
    for (kind, bits, capable) in KINDS {
        let at = |change: &str| union.at(&format!("{change}-{kind}"));
        fs::hard_link(at("linked"), at("second")).expect("link");
        fs::rename(at("renamed"), at("moved")).expect("rename");
        set_times(at("dated"), (1, 2), (3, 4));
        for name in ["linked", "second", "moved", "dated"] {
            assert_eq!(mode(at(name)), bits, "{name} {kind}");
            assert_eq!(get_xattr(&at(name), CAPABILITY_NAME).is_ok(), capable, "{name} {kind}");
            assert!(exists(union.upper(&format!("{name}-{kind}"))), "{name} {kind}");
        }
    }
    union.umount();
}
