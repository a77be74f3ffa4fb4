//! Devices and set-user-id programs of a layer, and the mount's flags against them.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::{find_program, without_rights};
use crate::common::mount::{Ended, mounted_on, run};
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(devices_work_unless_nodev).root(),
        t!(set_user_id_works_unless_nosuid).root(),
        t!(noexec_runs_nothing).root(),
        t!(sockets_and_fifos_of_layers_reach_nobody_else).root(),
    ]
}

fn devices(options: &[&str]) -> Union {
    let mut union = Union::new(1).arguments(options);
    for path in [union.lower(0, "low"), union.upper("up")] {
        make_dir(&path);
        node(path.join("null"), SFlag::S_IFCHR, (1, 3));
        node(path.join("zero"), SFlag::S_IFCHR, (1, 5));
        chmod(path.join("null"), 0o666);
        chmod(path.join("zero"), 0o600);
    }
    union.mount();
    union
}

fn devices_work_unless_nodev() {
    let mut union = devices(&[]);
    for place in ["low", "up"] {
        let null = union.at(place).join("null");
        let zero = union.at(place).join("zero");
        assert_eq!(fs::read(&null).expect("read the null device"), b"");
        without_rights(1000, 1000, || {
            fs::write(&null, "x").expect("its mode lets everybody write");
            fails(fs::File::open(&zero), Errno::EACCES);
        });
        chmod(&null, 0o600);
        without_rights(1000, 1000, || fails(fs::File::open(&null), Errno::EACCES));
    }
    union.umount();
    let mut union = devices(&["-o", "nodev"]);
    let mount = mounted_on(&union.point()).expect("mounted");
    assert!(mount.options.split(',').any(|option| option == "nodev"), "{}", mount.options);
    for place in ["low", "up"] {
        fails(fs::File::open(union.at(place).join("null")), Errno::EACCES);
    }
    node(union.at("new"), SFlag::S_IFCHR, (1, 3));
    fails(fs::File::open(union.at("new")), Errno::EACCES);
    union.umount();
}

/// Runs a set-user-id copy of id(1) as another user: what it says it is.
fn effective_user(program: &Path) -> String {
    let mut command = Command::new(program);
    let ended: Ended = run(command.args(["-u"]).current_dir("/").uid(1000).gid(1000));
    ended.success().stdout.trim().to_owned()
}

fn set_user_id_works_unless_nosuid() {
    let id = find_program("id").expect("id");
    for (options, expected) in [(&[][..], "0"), (&["-o", "nosuid"], "1000")] {
        let mut union = Union::new(1).arguments(options);
        for path in [union.lower(0, "low"), union.upper("up")] {
            fs::copy(&id, &path).expect("copy");
            chmod(&path, 0o4755);
        }
        union.mount();
        fs::copy(&id, union.at("made")).expect("copy");
        chmod(union.at("made"), 0o4755);
        for place in ["low", "up", "made"] {
            assert_eq!(effective_user(&union.at(place)), expected, "{place} with {options:?}");
        }
        set_times(union.at("low"), (1, 1), (2, 2));
        assert_eq!(effective_user(&union.at("low")), expected, "copied up, with {options:?}");
        // Whoever writes into one takes the bit off it.
        chmod(union.at("low"), 0o4777);
        without_rights(1000, 1000, || append(union.at("low"), "x"));
        assert_eq!(effective_user(&union.at("low")), "1000");
        union.umount();
    }
}

fn noexec_runs_nothing() {
    let mut union = Union::new(1).arguments(&["-o", "noexec"]);
    fs::copy(find_program("true").expect("true"), union.lower(0, "program")).expect("copy");
    union.mount();
    fails(Command::new(union.at("program")).status(), Errno::EACCES);
    union.umount();
}

/// A socket or fifo of a layer is another one than its own in the layer: who talks into the mount is not heard outside.
fn sockets_and_fifos_of_layers_reach_nobody_else() {
    use std::os::unix::fs::OpenOptionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};
    let mut union = Union::new(1);
    // Names of sockets are short.
    let short = tempfile::Builder::new().prefix("l").tempdir_in("/tmp").expect("a short path");
    symlink(union.root(), short.path().join("u")).expect("symlink");
    let socket = short.path().join("u/lower0/socket");
    let listener = UnixListener::bind(&socket).expect("bind");
    node(union.lower(0, "fifo"), SFlag::S_IFIFO, (0, 0));
    let reader = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(union.lower(0, "fifo"))
        .expect("the lower's fifo");
    union.mount();
    fails(UnixStream::connect(short.path().join("u/mnt/socket")), Errno::ECONNREFUSED);
    UnixStream::connect(&socket).expect("the lower's own is served");
    let writer = fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(union.at("fifo"));
    fails(writer, Errno::ENXIO);
    drop((listener, reader));
    union.umount();
}
