//! Mounting and unmounting again and again: as fast as container engines do, and without leaving anything behind.
//!
//! `LAYERFS_CYCLES` sets how often.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::{find_program, no_right_to_mount};
use crate::common::mount::{
    eventually, mounted_on, once_free, open_descriptors, processes_of, state_and_parent, try_run,
};
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(started_after_umount).needs(no_right_to_mount).seconds(LIMIT),
        t!(started_after_a_lazy_umount).needs(no_right_to_mount).seconds(LIMIT),
        t!(started_after_fusermount).needs(no_fusermount).seconds(LIMIT),
        t!(started_after_a_lazy_fusermount).needs(no_fusermount).seconds(LIMIT),
        t!(nothing_is_left_behind).seconds(LIMIT),
    ]
}

const LIMIT: u64 = 900;

fn cycles(usual: usize) -> usize {
    std::env::var("LAYERFS_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

fn no_fusermount() -> Option<String> {
    find_program("fusermount3").is_none().then(|| "fusermount3".to_owned())
}

fn started_after_umount() {
    stop_and_start(|point| umount2(point, MntFlags::empty()).map_err(|e| e.to_string()));
}

fn started_after_a_lazy_umount() {
    stop_and_start(|point| umount2(point, MntFlags::MNT_DETACH).map_err(|e| e.to_string()));
}

fn started_after_fusermount() {
    stop_and_start(|point| fusermount("-u", point));
}

fn started_after_a_lazy_fusermount() {
    stop_and_start(|point| fusermount("-uz", point));
}

fn fusermount(flag: &str, point: &Path) -> Result<(), String> {
    let ended = try_run(Command::new("fusermount3").arg(flag).arg(point), crate::common::mount::COMMAND_LIMIT)?;
    ended.status.success().then_some(()).ok_or(ended.stderr)
}

/// Engines don't wait for the daemon: the same upper is mounted again as soon as the unmount has returned.
fn stop_and_start(stop: impl Fn(&Path) -> Result<(), String>) {
    let cycles = cycles(200);
    let mut union = Union::new(2);
    put(union.lower(1, "file"), "");
    put(union.lower(1, "d/old"), "old");
    union.mount();
    for round in 0..cycles {
        assert_eq!(read(union.at("file")).len(), round);
        append(union.at("file"), "x");
        fs::rename(union.at("d/old"), union.at("d/new")).expect("rename");
        fs::rename(union.at("d/new"), union.at("d/old")).expect("rename back");
        let mut said = Ok(());
        let stopped = once_free(|| {
            said = stop(&union.point());
            said.is_ok()
        });
        assert!(stopped, "round {round}: {said:?}");
        let arguments = union.command_line();
        union.mounted().again(&arguments);
    }
    assert_eq!(read(union.at("file")).len(), cycles);
    assert_eq!(names(union.at("d")), ["old"]);
    union.umount();
}

/// Each cycle does what leaves something in the work directory while it lasts.
fn nothing_is_left_behind() {
    let mut union = Union::new(2);
    put(union.lower(1, "file"), "lower");
    put(union.lower(0, "d/top"), "lower");
    put(union.lower(1, "d/bottom"), "lower");
    fs::hard_link(union.lower(1, "file"), union.lower(1, "second")).expect("link");
    let (mut first, mut daemons) = (None, Vec::new());
    for round in 0..cycles(100) {
        union.mount();
        let daemon = union.mounted().daemon();
        daemons.push(daemon);
        let descriptors = open_descriptors(daemon);
        work_in(&union);
        union.umount();
        assert!(mounted_on(&union.point()).is_none(), "round {round}: still mounted");
        assert_eq!(processes_of(union.point().as_os_str()), [0; 0], "round {round}");
        let left = (descriptors, everything_in(&union.work("")), everything_in(&union.upper("")));
        // The first mount finds an empty upper.
        if round > 0 {
            assert_eq!(&left, first.get_or_insert_with(|| left.clone()), "round {round}");
        }
    }
    // Whoever is the parent of orphans may take its time.
    let zombies = || daemons.iter().filter_map(|daemon| parent_of_zombie(*daemon)).collect::<Vec<_>>();
    assert!(eventually(20, || zombies().is_empty()), "zombies, by their parents: {:?}", zombies());
}

/// Ends with the same content as before.
fn work_in(union: &Union) {
    append(union.at("second"), "x");
    assert!(read(union.at("file")).ends_with('x'));
    put(union.at("d/new"), "new");
    let open = edit(union.at("d/new"));
    fs::remove_file(union.at("d/new")).expect("remove an open file");
    assert_eq!(read_all(&open), "new");
    fs::rename(union.at("d"), union.at("e")).expect("rename a directory");
    fs::rename(union.at("e"), union.at("d")).expect("rename it back");
    put(union.at("d/bottom"), "new");
    fs::remove_file(union.at("d/bottom")).expect("remove a lower file");
    make_dir(union.at("made"));
    fs::remove_dir(union.at("made")).expect("rmdir");
}

/// Every path below a directory, sorted.
fn everything_in(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(next) = todo.pop() {
        for name in names(&next) {
            let path = next.join(name);
            if stat(&path).is_dir() {
                todo.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Whose child this process is, if it has ended and nobody has asked how.
fn parent_of_zombie(pid: i32) -> Option<String> {
    state_and_parent(pid).filter(|(state, _)| state == "Z").map(|(_, parent)| parent)
}
