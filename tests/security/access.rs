//! Who may not do something does not do it: neither in the mount nor in what lies below it.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, mknod};

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::{as_user, without_rights};
use crate::common::sys::{EXCHANGE, rename2, set_xattr};
use crate::common::tree::Tree;
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(what_is_refused_changes_nothing).root(),
        t!(the_work_directory_is_closed).root(),
        t!(copies_are_no_more_open_than_what_they_copy).root(),
        t!(unlinked_files_are_out_of_reach).root(),
        t!(protections_of_sticky_directories_hold).root(),
    ]
}

/// One attempt by its name.
type Attempt = (&'static str, fn(&Path) -> io::Result<()>);

/// All in a directory of somebody else's that everybody may search and read, and on objects there.
const ATTEMPTS: [Attempt; 22] = [
    ("read", |dir| fs::read(dir.join("secret")).map(drop)),
    ("write", |dir| fs::OpenOptions::new().write(true).open(dir.join("public")).map(drop)),
    ("append", |dir| fs::OpenOptions::new().append(true).open(dir.join("public")).map(drop)),
    ("truncate on open", |dir| fs::File::create(dir.join("public")).map(drop)),
    ("truncate", |dir| nix::unistd::truncate(&dir.join("public"), 0).map_err(Into::into)),
    ("chmod", |dir| fs::set_permissions(dir.join("public"), stat(dir).permissions())),
    ("chown", |dir| std::os::unix::fs::lchown(dir.join("public"), Some(1000), Some(1000))),
    ("times", |dir| {
        let time = nix::sys::time::TimeSpec::new(1, 1);
        try_set_times(&dir.join("public"), time, time).map_err(Into::into)
    }),
    ("times to now", |dir| {
        let now = nix::sys::time::TimeSpec::UTIME_NOW;
        try_set_times(&dir.join("public"), now, now).map_err(Into::into)
    }),
    ("xattr", |dir| set_xattr(&dir.join("public"), "user.x", b"y", 0).map_err(Into::into)),
    ("xattr of the directory", |dir| set_xattr(dir, "user.x", b"y", 0).map_err(Into::into)),
    ("create", |dir| try_create_new(&dir.join("new"), 0o600).map(drop)),
    ("mkdir", |dir| fs::create_dir(dir.join("new"))),
    ("symlink", |dir| symlink("x", dir.join("new"))),
    ("mkfifo", |dir| nix::unistd::mkfifo(&dir.join("new"), Mode::S_IRWXU).map_err(Into::into)),
    ("mknod", |dir| mknod(&dir.join("new"), SFlag::S_IFCHR, Mode::S_IRWXU, 0).map_err(Into::into)),
    ("link", |dir| fs::hard_link(dir.join("public"), dir.join("new"))),
    ("unlink", |dir| fs::remove_file(dir.join("public"))),
    ("rmdir", |dir| fs::remove_dir(dir.join("empty"))),
    ("rename", |dir| fs::rename(dir.join("public"), dir.join("new"))),
    ("rename a directory", |dir| fs::rename(dir.join("empty"), dir.join("new"))),
    ("exchange", |dir| rename2(&dir.join("public"), &dir.join("empty"), EXCHANGE).map_err(Into::into)),
];

fn what_is_refused_changes_nothing() {
    let mut union = Union::new(2);
    for dir in [union.lower(1, "low"), union.lower(1, "merged"), union.upper("merged"), union.upper("up")] {
        put(dir.join("public"), "public");
        put(dir.join("secret"), "secret");
        chmod(dir.join("secret"), 0o600);
        make_dir(dir.join("empty"));
        put(dir.join("closed/public"), "public");
        chmod(dir.join("closed"), 0o700);
    }
    put(union.lower(0, "merged/more"), "x");
    let before = union.lower_trees();
    let upper = Tree::of(&union.upper(""));
    union.mount();
    let shown = Tree::of(&union.at(""));
    for place in ["low", "merged", "up"] {
        let dir = union.at(place);
        without_rights(1000, 1000, || {
            for (name, attempt) in ATTEMPTS {
                let error = attempt(&dir).expect_err(name);
                let code = error.raw_os_error().map(Errno::from_raw);
                assert!([Some(Errno::EACCES), Some(Errno::EPERM)].contains(&code), "{name} in {place}: {error}");
                // Through a directory that can't be searched nothing is even seen.
                let error = attempt(&dir.join("closed")).err().map(|error| error.kind());
                assert_eq!(error, Some(io::ErrorKind::PermissionDenied), "{name} in {place}/closed");
            }
            assert_eq!(read(dir.join("public")), "public");
        });
    }
    shown.assert_same(&Tree::of(&union.at("")), "the mount");
    union.umount();
    upper.assert_same(&Tree::of(&union.upper("")), "upper");
    union.assert_lowers(&before);
}

/// Whatever the mode of W itself: what is staged, parked or indexed there is nobody else's to see.
fn the_work_directory_is_closed() {
    let mut union = Union::new(1);
    put(union.lower(0, "a"), "x");
    fs::hard_link(union.lower(0, "a"), union.lower(0, "b")).expect("link");
    put(union.lower(0, "gone"), "x");
    chmod(union.work(""), 0o777);
    union.mount();
    append(union.at("a"), "y");
    fs::remove_file(union.at("gone")).expect("remove");
    for path in ["layerfs", "layerfs/stage", "layerfs/parked", "work", "work/incompat", "index"] {
        assert_eq!(mode(union.work(path)), 0o700, "{path}");
    }
    let work = union.work("");
    without_rights(1000, 1000, || {
        for path in ["layerfs", "work", "index"] {
            fails(fs::read_dir(work.join(path)).map(drop), Errno::EACCES);
            fails(fs::metadata(work.join(path).join("stage")), Errno::EACCES);
        }
    });
    union.umount();
}

/// In upper a file is as closed as in the lower, and so are the directories on the way to it.
fn copies_are_no_more_open_than_what_they_copy() {
    let mut union = Union::new(1);
    put(union.lower(0, "home/user/.ssh/key"), "secret");
    let objects = [("home", 0o711, 0), ("home/user", 0o750, 7), ("home/user/.ssh", 0o700, 7)];
    for (path, bits, owner) in objects.into_iter().chain([("home/user/.ssh/key", 0o600, 7)]) {
        chown(union.lower(0, path), owner, owner);
        chmod(union.lower(0, path), bits);
    }
    union.mount();
    append(union.at("home/user/.ssh/key"), "!");
    union.umount();
    for (path, bits, owner) in objects.into_iter().chain([("home/user/.ssh/key", 0o600, 7)]) {
        assert_eq!(mode(union.upper(path)), bits, "{path}");
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&stat(union.upper(path))), owner, "{path}");
    }
    let upper = union.upper("");
    without_rights(1000, 1000, || fails(fs::read(upper.join("home/user/.ssh/key")), Errno::EACCES));
}

/// Who has one open has it; nobody gets at it by a name, in the mount or on disk.
fn unlinked_files_are_out_of_reach() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "secret");
    union.mount();
    let file = edit(union.at("file"));
    file.write_all_at(b"S", 0).expect("write");
    fs::remove_file(union.at("file")).expect("remove");
    assert_eq!(read_all(&file), "Secret");
    let seen = Tree::of(&union.upper("")).len() + Tree::of(&union.at("")).len();
    assert_eq!(seen, 3, "upper and its whiteout, and the mount's root");
    let work = union.work("layerfs/parked");
    without_rights(1000, 1000, || fails(fs::read_dir(&work).map(drop), Errno::EACCES));
    drop(file);
    union.umount();
    assert_eq!(names(union.work("layerfs/parked")), Vec::<String>::new());
}

/// fs.protected_hardlinks, _symlinks, _fifos and _regular are the kernel's, and it goes by the owners and modes that the union
/// shows: the same is refused here as in a plain directory.
fn protections_of_sticky_directories_hold() {
    let mut union = Union::new(1);
    let plain = union.root().join("plain");
    for dir in [&plain, &union.lower(0, "low"), &union.upper("up")] {
        make_dir(dir);
        chmod(dir, 0o1777);
        put(dir.join("target"), "x");
        chmod(dir.join("target"), 0o666);
        put(dir.join("unreadable"), "x");
        chmod(dir.join("unreadable"), 0o600);
        put(dir.join("suid"), "x");
        chmod(dir.join("suid"), 0o4777);
        for (kind, owner) in [("own", 1000), ("others", 1001)] {
            symlink("target", dir.join(format!("link-{kind}"))).expect("symlink");
            node(dir.join(format!("fifo-{kind}")), SFlag::S_IFIFO, (0, 0));
            put(dir.join(format!("file-{kind}")), "x");
            for name in ["link", "fifo", "file"] {
                chown(dir.join(format!("{name}-{kind}")), owner, owner);
                if name != "link" {
                    chmod(dir.join(format!("{name}-{kind}")), 0o666);
                }
            }
        }
    }
    union.mount();
    let outcomes = |dir: &Path| -> Vec<(String, Option<i32>)> {
        let create = |name: &str| {
            let flags = libc::O_CREAT | libc::O_NONBLOCK;
            fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(dir.join(name)).map(drop)
        };
        let link = |name: &str| fs::hard_link(dir.join(name), dir.join(format!("new-{name}")));
        let mut all: Vec<(String, io::Result<()>)> = Vec::new();
        for name in ["file-own", "file-others", "fifo-own", "fifo-others"] {
            all.push((format!("O_CREAT of {name}"), create(name)));
        }
        for name in ["link-own", "link-others"] {
            all.push((format!("following {name}"), fs::read(dir.join(name)).map(drop)));
        }
        for name in ["target", "unreadable", "suid", "file-own", "file-others", "fifo-others", "link-others"] {
            all.push((format!("linking {name}"), link(name)));
        }
        all.into_iter().map(|(what, result)| (what, result.err().and_then(|e| e.raw_os_error()))).collect()
    };
    let expected = as_user(1000, 1000, || outcomes(&plain));
    for place in ["low", "up"] {
        let dir = union.at(place);
        assert_eq!(as_user(1000, 1000, || outcomes(&dir)), expected, "{place}");
    }
    union.umount();
}
