//! Many layers and many files: how long a mount takes, and what the daemon needs.
//!
//! `LAYERFS_SCALE_FILES` sets the number of files; limits of time are wide for a debug build.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::files::*;
use common::machine::debug_build;
use common::mount::{eventually, open_descriptors};
use common::union::Union;

const MIB: usize = 1 << 20;
/// Below this, an allocator's slack hides what an inode costs.
const MANY: usize = 100_000;

fn main() {
    common::main(vec![
        t!(three_hundred_lowers_mount_at_once),
        t!(a_walk_needs_little_and_gives_it_back).root().seconds(3600),
    ]);
}

fn three_hundred_lowers_mount_at_once() {
    let mut union = Union::new(300);
    for i in 0..300 {
        put(union.lower(i, &format!("d/{i}")), "x");
    }
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        union.mount();
        best = best.min(start.elapsed());
        assert_eq!(names(union.at("d")).len(), 300);
        union.umount();
    }
    let limit = Duration::from_millis(if debug_build() { 1000 } else { 100 });
    println!("300 lowers: mounted after {best:?}");
    assert!(best < limit, "{best:?}");
}

fn files() -> usize {
    std::env::var("LAYERFS_SCALE_FILES").map_or(20_000, |text| text.parse().expect("a number in LAYERFS_SCALE_FILES"))
}

/// A line of /proc/PID/status in bytes.
fn status(daemon: i32, key: &str) -> usize {
    let text = fs::read_to_string(format!("/proc/{daemon}/status")).expect("status");
    let line = text.lines().find_map(|line| line.strip_prefix(key)).expect("a line of status");
    let number: String = line.chars().filter(char::is_ascii_digit).collect();
    number.parse::<usize>().expect("a number") * 1024
}

fn fill(layer: &Path, first: usize, step: usize, count: usize) {
    for i in (first..count).step_by(step) {
        let directory = layer.join(format!("dir{}/sub{}", i / 5000, i / 100));
        make_dir(&directory);
        create_new(directory.join(format!("a-file-with-a-name-{i}")), 0o644);
    }
}

fn a_walk_needs_little_and_gives_it_back() {
    let count = files();
    let mut union = Union::new(10);
    for i in 0..10 {
        fill(&union.lower(i, ""), i, 10, count);
    }
    union.mount();
    let daemon = union.mounted().daemon();
    let before = status(daemon, "VmRSS:");
    let done = AtomicBool::new(false);
    let most = AtomicUsize::new(0);
    let start = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(open_descriptors(daemon), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
        });
        let walked = Command::new("find").arg(union.point()).arg("-ls").stdout(Stdio::null()).status();
        done.store(true, Ordering::Relaxed);
        assert!(walked.expect("find").success());
    });
    let (took, peak, after) = (start.elapsed(), status(daemon, "VmHWM:"), status(daemon, "VmRSS:"));
    let most = most.into_inner();
    println!(
        "{count} files: find -ls took {took:?}; memory {} KiB before, {} KiB at its peak, {} KiB after; \
         at most {most} descriptors",
        before / 1024,
        peak / 1024,
        after / 1024
    );
    assert!(most < 400, "{most} descriptors");
    if count <= 200_000 {
        assert!(peak < 100 * MIB, "{peak} bytes");
    }
    if count >= MANY {
        let each = after.saturating_sub(before) / count;
        assert!(each < 300, "{each} bytes for each inode");
    }
    fs::write("/proc/sys/vm/drop_caches", "2").expect("drop_caches");
    let given_back = || after.saturating_sub(status(daemon, "VmRSS:"));
    let grown = after.saturating_sub(before);
    let enough = || count < MANY || given_back() * 2 > grown;
    let in_time = eventually(20, || {
        fs::write("/proc/sys/vm/drop_caches", "2").expect("drop_caches");
        enough()
    });
    println!("given back: {} of {} KiB", given_back() / 1024, grown / 1024);
    assert!(in_time, "{} of {grown} bytes given back", given_back());
    assert!(open_descriptors(daemon) < 400);
    union.umount();
}
