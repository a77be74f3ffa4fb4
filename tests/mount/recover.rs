//! The mount of a daemon that was killed: what it says, and how the same layers come back in its place.

use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::statfs;
use nix::unistd::Pid;

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::{layerfs_binary, no_right_to_mount};
use crate::common::mount::{Ended, MARK, detach, eventually, layerfs, mounted_on, processes_of, run};
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(a_dead_mount_says_what_to_do),
        t!(recovered_in_the_middle_of_writes),
        t!(recovered_while_programs_still_hold_it),
        t!(recovered_by_its_relative_name_and_by_a_symlink),
        // fusermount3 mounts on no directory that root may not enter.
        t!(several_dead_mounts_on_one_directory).needs(no_right_to_mount),
        t!(a_mount_that_answers_is_left_alone),
        t!(recovered_by_several_at_once),
        t!(without_a_dead_mount_it_only_mounts),
        t!(a_dead_mount_of_another_type_is_left_alone).root(),
    ]
}

/// `layerfs mount` that is to be refused, and leaves what is mounted as it is.
#[track_caller]
fn refused(union: &Union, more: &[&str]) -> String {
    let before = mounted_on(&union.point()).map(|mount| mount.minor);
    let more = more.iter().map(OsString::from);
    let words =
        [OsString::from("mount")].into_iter().chain(union.command_line()).chain(more).chain([union.point().into()]);
    let Ended { status, stderr, .. } = layerfs(words);
    assert!(!status.success(), "mounted");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    assert_eq!(mounted_on(&union.point()).map(|mount| mount.minor), before, "the mount is the same");
    stderr
}

fn a_dead_mount_says_what_to_do() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "x");
    union.mount();
    // What the kernel remembers of the root must not make the mount look alive.
    stat(union.point());
    union.kill_daemon();
    assert!(eventually(10, || statfs(&union.point()).err() == Some(Errno::ENOTCONN)), "dead");
    let said = refused(&union, &[]);
    assert!(said.contains("whose daemon has died"), "{said}");
    assert!(said.contains("--recover") && said.contains("layerfs umount"), "{said}");
    let said = layerfs([OsString::from("stats"), union.point().into()]).stderr;
    assert!(said.contains("has died") && said.contains("--recover"), "{said}");
    union.recover();
    assert_eq!(read(union.at("file")), "x");
    union.umount();
}

/// Each line that is in a file by an fsync is there again, and so is the rest of upper.
fn recovered_in_the_middle_of_writes() {
    const WRITERS: usize = 3;
    let mut union = Union::new(2);
    for n in 0..WRITERS {
        put(union.lower(n % 2, &format!("d/file{n}")), "lower\n");
        put(union.lower(1, &format!("d/gone{n}")), "lower\n");
    }
    let before = union.lower_trees();
    let mut synced = [0; WRITERS];
    union.mount();
    for round in 0..6 {
        let done = write_until_killed(&mut union, synced);
        union.recover();
        for (n, done) in done.into_iter().enumerate() {
            let content = read(union.at(&format!("d/file{n}")));
            let expected: String = (0..).map(|line| format!("line {line}\n")).take(content.lines().count()).collect();
            let lines = content.strip_prefix("lower\n").expect("what it was copied from");
            assert!(expected.starts_with(lines), "round {round}: {lines}");
            synced[n] = lines.bytes().filter(|byte| *byte == b'\n').count() as u64;
            assert!(synced[n] >= done, "round {round}: {} of {done} lines", synced[n]);
            assert!(!exists(union.at(&format!("d/gone{n}"))), "round {round}: removed before");
            // The end of a write that nobody was told of.
            edit(union.at(&format!("d/file{n}"))).set_len(whole_lines(&content)).expect("truncate");
        }
    }
    union.umount();
    assert!(!exists(union.work("work/incompat/layerfs")), "a clean end");
    union.assert_lowers(&before);
}

fn whole_lines(content: &str) -> u64 {
    content.rfind('\n').map_or(0, |end| end as u64 + 1)
}

/// Has each file written line by line, with an fsync after each, until the daemon is killed; tells how many lines are certain.
fn write_until_killed<const N: usize>(union: &mut Union, from: [u64; N]) -> [u64; N] {
    let certain = from.map(AtomicU64::new);
    thread::scope(|scope| {
        for (n, certain) in certain.iter().enumerate() {
            let (path, gone) = (union.at(&format!("d/file{n}")), union.at(&format!("d/gone{n}")));
            scope.spawn(move || {
                if let Err(error) = fs::remove_file(gone) {
                    assert_eq!(error.kind(), ErrorKind::NotFound);
                }
                let mut file = fs::OpenOptions::new().append(true).open(path).expect("open");
                loop {
                    let line = certain.load(Ordering::Relaxed);
                    match file.write_all(format!("line {line}\n").as_bytes()).and_then(|()| file.sync_data()) {
                        Ok(()) => certain.store(line + 1, Ordering::Relaxed),
                        Err(_) => return,
                    }
                }
            });
        }
        thread::sleep(Duration::from_millis(60));
        union.kill_daemon();
    });
    certain.map(AtomicU64::into_inner)
}

fn recovered_while_programs_still_hold_it() {
    let mut union = Union::new(1);
    put(union.lower(0, "d/file"), "x");
    union.mount();
    append(union.at("d/file"), "y");
    let (file, directory) = (edit(union.at("d/file")), open(union.at("d")));
    let mut inside = Command::new("sleep").arg("60").current_dir(union.at("d")).spawn().expect("sleep");
    union.kill_daemon();
    union.recover();
    assert_eq!(read(union.at("d/file")), "xy");
    append(union.at("d/file"), "z");
    fails(file.sync_all(), Errno::ENOTCONN);
    drop((file, directory));
    inside.kill().expect("end it");
    inside.wait().expect("its end");
    union.umount();
    assert_eq!(read(union.upper("d/file")), "xyz");
}

fn recovered_by_its_relative_name_and_by_a_symlink() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "x");
    let name = union.point().file_name().expect("a name").to_owned();
    symlink(&name, union.root().join("link")).expect("symlink");
    union.mount();
    for by in [name.as_os_str(), "link".as_ref(), "./link/".as_ref()] {
        append(union.at("file"), "y");
        union.kill_daemon();
        let mut command = Command::new(layerfs_binary());
        command.arg("mount").args(union.command_line()).arg("--recover").arg(by);
        run(command.current_dir(union.root()).env(MARK, union.point())).success();
    }
    assert_eq!(read(union.at("file")), "xyyy");
    union.umount();
}

fn several_dead_mounts_on_one_directory() {
    let (mut union, over) = (Union::new(1), Union::new(1));
    put(union.lower(0, "file"), "x");
    union.mount();
    let mut words = over.command_line();
    words.insert(0, "mount".into());
    run(Command::new(layerfs_binary()).args(words).arg(union.point()).env(MARK, union.point())).success();
    for daemon in processes_of(union.point().as_os_str()) {
        kill(Pid::from_raw(daemon), Signal::SIGKILL).expect("kill");
    }
    assert!(eventually(10, || processes_of(union.point().as_os_str()).is_empty()), "killed");
    union.recover();
    assert_eq!(read(union.at("file")), "x");
    union.umount();
    assert_eq!(names(union.point()), [""; 0], "nothing is below");
}

fn a_mount_that_answers_is_left_alone() {
    let (mut union, other) = (Union::new(1), Union::new(1));
    put(union.lower(0, "file"), "x");
    union.mount();
    append(union.at("file"), "y");
    for stack in [union.command_line(), other.command_line()] {
        let words =
            [OsString::from("mount"), "--recover".into()].into_iter().chain(stack).chain([union.point().into()]);
        let said = layerfs(words).stderr;
        assert!(said.contains("nothing to recover"), "{said}");
        assert_eq!(read(union.at("file")), "xy");
    }
    union.umount();
}

/// One of them mounts; the others may not take that off again.
fn recovered_by_several_at_once() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "x");
    union.mount();
    for round in 1..=8 {
        append(union.at("file"), "y");
        union.kill_daemon();
        let words = union.command_line();
        let recover = || {
            let mut command = Command::new(layerfs_binary());
            command.args(["mount", "--recover"]).args(&words).arg(union.point()).env(MARK, union.point());
            run(&mut command).status.success()
        };
        let mounted = thread::scope(|scope| {
            let asked: Vec<_> = (0..4).map(|_| scope.spawn(recover)).collect();
            asked.into_iter().filter_map(|thread| thread.join().expect("no panic").then_some(())).count()
        });
        assert_eq!(mounted, 1, "round {round}");
        assert_eq!(read(union.at("file")).len(), 1 + round);
        assert_eq!(processes_of(union.point().as_os_str()).len(), 1, "round {round}");
    }
    union.umount();
}

fn without_a_dead_mount_it_only_mounts() {
    let mut union = Union::new(1).arguments(&["--recover"]);
    put(union.lower(0, "file"), "x");
    union.mount();
    append(union.at("file"), "y");
    union.remount();
    assert_eq!(read(union.at("file")), "xy");
    union.umount();
    fs::remove_dir(union.point()).expect("rmdir");
    let said = refused(&union, &[]);
    assert!(said.contains("does not exist"), "{said}");
}

fn a_dead_mount_of_another_type_is_left_alone() {
    let union = Union::new(1);
    put(union.lower(0, "file"), "x");
    let device = edit("/dev/fuse");
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    mount(Some("none"), &union.point(), Some("fuse.other"), MsFlags::empty(), Some(data.as_str())).expect("mount");
    drop(device);
    assert!(eventually(10, || statfs(&union.point()).err() == Some(Errno::ENOTCONN)), "dead");
    let said = refused(&union, &["-o", "recover"]);
    detach(&union.point());
    assert!(said.contains("fuse.other") && said.contains("umount -l"), "{said}");
}
