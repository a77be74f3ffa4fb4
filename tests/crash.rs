//! The daemon dies by SIGKILL at random moments under load, and everything that a caller was told is there afterwards.
//!
//! `LAYERFS_CRASH_ROUNDS` sets how often each test kills.

mod common;
#[path = "crash/journal.rs"]
mod journal;
#[path = "crash/worker.rs"]
mod worker;

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use common::dice::{Dice, fresh_seed};
use common::files::{exists, make_dir, names, put, stat};
use common::sys;
use common::tree::Tree;
use common::union::Union;
use worker::Worker;

const WORKERS: usize = 3;
/// The longest that a daemon lives, in milliseconds.
const LIFE: u64 = 120;
/// The most changes that one worker makes before it kills.
const CHANGES: usize = 60;

fn main() {
    common::main(vec![
        t!(killed_with_cached_writes).root().seconds(1200),
        t!(killed_with_writes_through).root().seconds(1200),
        t!(killed_without_caches).root().seconds(1200),
        t!(killed_with_files_that_pass_through).root().seconds(1200),
        t!(killed_with_marks_of_users).root().seconds(1200),
        t!(killed_with_whiteouts_in_two_steps).root().seconds(1200),
    ]);
}

fn killed_with_cached_writes() {
    rounds(&["--io", "cached"], true);
}

/// Without writeback also what was written to a file that is still open outlives the daemon.
fn killed_with_writes_through() {
    rounds(&[], false);
}

fn killed_without_caches() {
    rounds(&["--timeout", "0"], false);
}

fn killed_with_files_that_pass_through() {
    rounds(&["--io", "passthrough"], false);
}

/// The marks of symlinks are in the work directory.
fn killed_with_marks_of_users() {
    rounds(&["--userxattr"], false);
}

fn killed_with_whiteouts_in_two_steps() {
    rounds(&["-o", "whiteouts=dot"], false);
}

fn rounds(arguments: &[&str], cached: bool) {
    let rounds = std::env::var("LAYERFS_CRASH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    let mut dice = Dice::new(fresh_seed());
    let mut union = Union::new(2).arguments(arguments);
    for worker in 0..WORKERS {
        make_lower(&union, &format!("w{worker}"));
    }
    let before = union.lower_trees();
    let mut workers: Vec<Worker> = Vec::new();
    union.mount();
    for number in 0..WORKERS {
        let place = format!("w{number}");
        workers.push(Worker::new(union.at(&place), dice.fork(), cached));
    }
    for round in 0..rounds {
        load_and_kill(&mut union, &mut workers, &mut dice, round % 3 == 0);
        union.umount_dead();
        union.mount();
        assert!(names(union.work("layerfs/stage")).is_empty(), "round {round}: left in the making");
        assert!(names(union.work("layerfs/parked")).is_empty(), "round {round}: left without a name");
        assert_eq!(uncommitted(&union), Vec::<PathBuf>::new(), "round {round}: left for a power loss to take");
        for (number, worker) in workers.iter_mut().enumerate() {
            worker.check().unwrap_or_else(|fault| panic!("round {round}, worker {number}: {fault}"));
        }
        union.assert_lowers(&before);
    }
    let shown = Tree::of(&union.at("")).across_mounts();
    union.umount();
    assert_eq!(uncommitted(&union), Vec::<PathBuf>::new(), "a clean end commits");
    assert!(!exists(union.work("work/incompat/layerfs")), "a clean end takes back what keeps the kernel away");
    union.mount();
    shown.assert_same(&Tree::of(&union.at("")).across_mounts(), "mounted again");
    union.umount();
    union.assert_lowers(&before);
}

/// The files of upper with the mark of a copy whose data may not be on the disk.
fn uncommitted(union: &Union) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![union.upper(""), union.work("index"), union.work("layerfs/index")];
    while let Some(directory) = todo.pop().filter(|directory| exists(directory)) {
        for name in names(&directory) {
            let path = directory.join(name);
            let status = stat(&path);
            if status.is_dir() {
                todo.push(path);
            } else if status.is_file() {
                let marks = sys::list_xattr(&path).expect("listxattr");
                let marked = marks.iter().any(|mark| mark.as_encoded_bytes().ends_with(b".layerfs.uncommitted"));
                found.extend(marked.then_some(path));
            }
        }
    }
    found
}

/// Lets all workers change what they can until the daemon is killed: by the first of them between two of its changes, or
/// at a random moment.
fn load_and_kill(union: &mut Union, workers: &mut [Worker], dice: &mut Dice, between: bool) {
    let daemon = Pid::from_raw(union.mounted().daemon());
    let end = || kill(daemon, Signal::SIGKILL).expect("kill the daemon");
    let limit = if between { 1 + dice.below(CHANGES) } else { usize::MAX };
    let life = Duration::from_micros(dice.below(LIFE as usize * 1000) as u64);
    thread::scope(|scope| {
        for (number, worker) in workers.iter_mut().enumerate() {
            scope.spawn(move || {
                let mut changes = 0;
                while worker.change() {
                    changes += 1;
                    if number == 0 && changes == limit {
                        end();
                    }
                }
            });
        }
        if !between {
            thread::sleep(life);
            end();
        }
    });
    for worker in workers {
        worker.let_go();
    }
}

/// What a worker finds: files, some with two names, and directories of one layer and of both.
fn make_lower(union: &Union, place: &str) {
    for n in 0..6 {
        put(union.lower(n % 2, &format!("{place}/f{n}")), vec![b'0' + n as u8; [10, 5000, 200_000][n % 3]]);
        put(union.lower(0, &format!("{place}/both/top{n}")), format!("top {n}"));
        put(union.lower(1, &format!("{place}/both/bottom{n}")), format!("bottom {n}"));
        put(union.lower(1, &format!("{place}/one/in{n}")), format!("in {n}"));
    }
    make_dir(union.lower(1, &format!("{place}/empty")));
    for n in 0..3 {
        let linked = union.lower(1, &format!("{place}/h{n}"));
        put(&linked, format!("linked {n}"));
        fs::hard_link(&linked, union.lower(1, &format!("{place}/one/h{n}"))).expect("link");
    }
}
