//! Files that change while their directory is listed and the kernel forgets them: their size has to be the last one.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::Test;
use crate::common::files::*;
use crate::common::mount::eventually;
use crate::common::union::Union;
use crate::{setting, t};

pub fn tests() -> Vec<Test> {
    vec![
        t!(sizes_of_forgotten_files_are_current).root(),
        t!(sizes_of_forgotten_files_written_late_are_current).root(),
        t!(sizes_of_forgotten_files_that_pass_through_are_current).root(),
    ]
}

const WRITERS: usize = 3;
const FILES: usize = 100;

fn sizes_of_forgotten_files_are_current() {
    exercise(&[]);
}

fn sizes_of_forgotten_files_written_late_are_current() {
    exercise(&["-o", "io=cached"]);
}

fn sizes_of_forgotten_files_that_pass_through_are_current() {
    exercise(&["-o", "io=passthrough"]);
}

fn exercise(options: &[&str]) {
    let mut union = Union::new(1).arguments(options);
    for writer in 0..WRITERS {
        for file in 0..FILES {
            put(union.lower(0, &format!("shared/{writer}-{file}-0")), "");
        }
    }
    union.mount();
    let deadline = Instant::now() + Duration::from_secs(setting("LAYERFS_STRESS_SECONDS", 5));
    let done = AtomicBool::new(false);
    // Whoever waits for a current size has to get it from the daemon: by forgetting, the kernel would find it by chance.
    let waiting = AtomicUsize::new(0);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                scope.spawn({
                    let (union, waiting) = (&union, &waiting);
                    move || append_until(union, writer, deadline, waiting)
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                names(union.at("shared"));
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if waiting.load(Ordering::Relaxed) == 0 {
                    fs::write("/proc/sys/vm/drop_caches", "2").expect("drop_caches");
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        let ended: Vec<_> = writers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|ended| ended.expect("a writer"));
    });
    union.umount();
}

fn append_until(union: &Union, writer: usize, deadline: Instant, waiting: &AtomicUsize) {
    for round in 0.. {
        for file in 0..FILES {
            if Instant::now() >= deadline {
                return;
            }
            let path = |round: usize| union.at(&format!("shared/{writer}-{file}-{round}"));
            append(path(round), "!");
            // A directory that changed is listed anew.
            fs::rename(path(round), path(round + 1)).expect("rename");
            // From an answer that was under way the kernel may have an old size until it is told to ask again.
            let is_current =
                || read(path(round + 1)).len() == round + 1 && stat(path(round + 1)).len() == round as u64 + 1;
            let current = is_current() || {
                waiting.fetch_add(1, Ordering::Relaxed);
                let current = eventually(5, is_current);
                waiting.fetch_sub(1, Ordering::Relaxed);
                current
            };
            assert!(current, "{}", path(round + 1).display());
        }
    }
}
