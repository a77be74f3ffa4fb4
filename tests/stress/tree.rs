//! One tree over populated lowers, under two processes at once.

use std::fs;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::Duration;

use crate::common::Test;
use crate::common::files::*;
use crate::common::mount::{Ended, eventually, open_descriptors, try_run};
use crate::common::sys;
use crate::common::tree::Tree;
use crate::common::union::Union;
use crate::random::Random;
use crate::worker::{self, NAMES};
use crate::{seed, setting, t};

pub fn tests() -> Vec<Test> {
    vec![
        t!(two_processes).root(),
        t!(two_processes_written_late).root(),
        t!(two_processes_without_caches).root(),
        t!(two_processes_passed_through).root(),
    ]
}

/// How much longer than its time a worker may take: one operation, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Descriptors that are opened when first needed, and kept: the layers' for handles, the index, the private marks.
const OPENED_ONCE: usize = 5;
/// Rounds with a fresh tree are so long at most: an old one is mostly upper's.
const ROUND: u64 = 60;

fn two_processes() {
    stress(&[]);
}

fn two_processes_written_late() {
    stress(&["-o", "io=cached"]);
}

fn two_processes_without_caches() {
    stress(&["-o", "timeout=0"]);
}

fn two_processes_passed_through() {
    stress(&["-o", "io=passthrough"]);
}

fn stress(options: &[&str]) {
    let seconds = setting("LAYERFS_STRESS_SECONDS", 5);
    let rounds = seconds.div_ceil(ROUND).max(1);
    let seed = seed();
    println!("seed {seed}");
    for round in 0..rounds {
        stress_once(options, seed.wrapping_add(round), Duration::from_secs(seconds) / rounds as u32);
    }
}

fn stress_once(options: &[&str], seed: u64, time: Duration) {
    let mut union = Union::new(2).arguments(options);
    let mut random = Random::new(seed);
    for lower in 0..2 {
        populate(&union, lower, &mut random);
    }
    let before = union.lower_trees();
    union.mount();
    let daemon = union.mounted().daemon();
    let descriptors = || open_descriptors(daemon);
    let (descriptors_before, inodes_before) = (descriptors(), inodes(&union));

    let ended = thread::scope(|scope| {
        let root = union.point();
        let start = |number| {
            let mut command = worker::command(&root, seed.wrapping_mul(2) + number, time);
            scope.spawn(move || try_run(&mut command, time + PATIENCE))
        };
        [start(0), start(1)].map(|worker| worker.join().expect("a worker's thread"))
    });
    for worker in ended {
        let Ended { status, stdout, stderr } = worker.unwrap_or_else(|fault| panic!("{fault}, seed {seed}"));
        assert!(status.success(), "{stderr}");
        print!("{stdout}");
    }

    let tree = Tree::of(&union.point()).across_mounts();
    let forgotten = eventually(20, || {
        fs::write("/proc/sys/vm/drop_caches", "3").expect("drop_caches");
        inodes(&union) <= inodes_before && descriptors() <= descriptors_before + OPENED_ONCE
    });
    let (left, open) = (inodes(&union), descriptors());
    assert!(forgotten, "{left} inodes after {inodes_before}, {open} descriptors after {descriptors_before}");
    tree.assert_same(&Tree::of(&union.point()).across_mounts(), &format!("without the kernel's memory, seed {seed}"));
    union.remount();
    tree.assert_same(&Tree::of(&union.point()).across_mounts(), &format!("mounted again, seed {seed}"));
    union.umount();
    union.assert_lowers(&before);
    for place in ["layerfs/stage", "layerfs/parked"] {
        let left = fs::read_dir(union.work(place)).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{place}, seed {seed}");
    }
}

/// What the daemon knows.
fn inodes(union: &Union) -> u64 {
    union.stats()["inodes"].as_u64().expect("inodes")
}

/// A tree with everything in it that a lower may have, under the names that workers use.
fn populate(union: &Union, lower: usize, random: &mut Random) {
    let mut files = Vec::new();
    for _ in 0..150 {
        let depth = 1 + random.below(4);
        let path = (0..depth).map(|_| *random.choose(&NAMES)).collect::<Vec<_>>().join("/");
        let full = union.lower(lower, &path);
        // Something else is there, or on the way there.
        if fs::symlink_metadata(&full).is_ok() || fs::create_dir_all(full.parent().expect("a parent")).is_err() {
            continue;
        }
        match random.below(12) {
            0..5 => {
                let length = random.below(200_000);
                put(&full, random.bytes(length));
                files.push(full);
            }
            5 if !files.is_empty() => ok(&full, fs::hard_link(random.choose(&files), &full)),
            6 => ok(&full, symlink(random.choose(&NAMES), &full)),
            7 if lower == 0 => whiteout(&full),
            8 if lower == 0 => {
                make_dir(&full);
                mark(&full, "trusted.overlay.opaque", "y");
            }
            9 => {
                put(&full, "with an attribute");
                ok(&full, sys::set_xattr(&full, "user.one", b"1", 0));
            }
            _ => make_dir(&full),
        }
    }
}
