//! readdir of large directories: offsets, and what comes and goes meanwhile.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::common::Test;
use crate::common::files::*;
use crate::common::sys::{Dirent, getdents};
use crate::common::union::{Union, everywhere};
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(a_hundred_thousand_entries_that_change).seconds(400),
        t!(offsets_lead_back),
        t!(offsets_stay_valid_through_changes),
        t!(rewinding_shows_what_is_new),
        t!(deleting_while_listing).seconds(300),
        t!(deleting_every_second_of_twenty_thousand).seconds(300),
        t!(small_buffers),
        t!(two_readers_at_once),
        t!(listings_beside_renames),
        t!(empty_and_removed_directories),
    ]
}

/// Every entry from where the descriptor stands, but `.` and `..`.
fn rest(directory: &File, buffer: usize) -> Vec<Dirent> {
    let mut all = Vec::new();
    loop {
        let batch = getdents(directory, buffer).expect("getdents");
        if batch.is_empty() {
            break;
        }
        all.extend(batch);
    }
    all.retain(|entry| entry.name != "." && entry.name != "..");
    all
}

/// How often each name came.
fn counts(entries: &[Dirent]) -> HashMap<&OsString, usize> {
    let mut counts = HashMap::new();
    for entry in entries {
        *counts.entry(&entry.name).or_insert(0) += 1;
    }
    counts
}

fn a_hundred_thousand_entries_that_change() {
    const COUNT: usize = 100_000;
    let mut union = Union::new(2);
    for directory in ["merged", "low", "up"] {
        for place in [union.lower(0, ""), union.lower(1, ""), union.upper("")] {
            make_dir(place.join(directory));
        }
    }
    fs::remove_dir(union.lower(0, "low")).expect("rmdir");
    fs::remove_dir(union.upper("low")).expect("rmdir");
    for i in 0..2 {
        fs::remove_dir(union.lower(i, "up")).expect("rmdir");
    }
    for i in 0..COUNT {
        let place = [union.lower(0, "merged"), union.lower(1, "merged"), union.upper("merged")];
        create_new(place[i % 3].join(format!("stays{i}")), 0o644);
        if i % 10 == 0 {
            create_new(place[i % 3].join(format!("goes{i}")), 0o644);
            create_new(union.lower(1, "low").join(format!("stays{i}")), 0o644);
            create_new(union.lower(1, "low").join(format!("goes{i}")), 0o644);
            create_new(union.upper("up").join(format!("stays{i}")), 0o644);
            create_new(union.upper("up").join(format!("goes{i}")), 0o644);
        }
    }
    union.mount();
    for (directory, expected) in [("merged", COUNT), ("low", COUNT / 10), ("up", COUNT / 10)] {
        let path = union.at(directory);
        let reader = open(&path);
        let mut seen = Vec::new();
        for round in 0.. {
            let batch = getdents(&reader, 1 << 15).expect("getdents");
            if batch.is_empty() {
                break;
            }
            seen.extend(batch);
            create_new(path.join(format!("comes{round}")), 0o644);
            for i in 0..10 {
                let gone = path.join(format!("goes{}", (round * 10 + i) * 10));
                if exists(&gone) {
                    fs::remove_file(gone).expect("remove");
                }
            }
            if round % 7 == 0 {
                let goes = path.join(format!("goes{}", expected / 2 + round * 10));
                if exists(&goes) {
                    fs::rename(goes, path.join(format!("moved{round}"))).expect("rename");
                }
            }
        }
        let counts = counts(&seen);
        let stays = |name: &&OsString| name.to_str().is_some_and(|name| name.starts_with("stays"));
        let stayed = counts.keys().copied().filter(|name| stays(name)).count();
        assert_eq!(stayed, expected, "in {directory}: each that stays is there");
        let twice: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "in {directory}: {twice:?}");
    }
    union.umount();
}

fn fill(dir: &Path, count: usize) {
    for i in 0..count {
        put(dir.join(format!("entry-with-a-name-{i}")), "");
    }
}

fn offsets_lead_back() {
    everywhere(
        |dir| fill(dir, 500),
        |dir| {
            let directory = open(dir);
            let all = rest(&directory, 2048);
            assert_eq!(all.len(), 500);
            let mut seek = &directory;
            for i in (0..500).step_by(37).chain([0, 498, 250]) {
                let offset = u64::try_from(all[i].next).expect("an offset that is not negative");
                seek.seek(SeekFrom::Start(offset)).expect("seekdir");
                let after: Vec<OsString> = rest(&directory, 4096).into_iter().map(|entry| entry.name).collect();
                let expected: Vec<OsString> = all[i + 1..].iter().map(|entry| entry.name.clone()).collect();
                assert_eq!(after, expected, "from entry {i}");
            }
            seek.seek(SeekFrom::Start(0)).expect("rewinddir");
            assert_eq!(rest(&directory, 4096).len(), 500);
        },
    );
}

/// An offset is a function of the entry, so it leads on though others came and went, and though
/// the entry itself went.
fn offsets_stay_valid_through_changes() {
    let mut union = Union::new(2);
    for i in 0..300 {
        let places = [union.lower(0, "d"), union.lower(1, "d"), union.upper("d")];
        put(places[i % 3].join(format!("name{i}")), "");
    }
    union.mount();
    let directory = open(union.at("d"));
    let all = rest(&directory, 4096);
    let (first, second) = all.split_at(150);
    for (i, entry) in first.iter().enumerate() {
        if i % 2 == 1 {
            fs::remove_file(union.at("d").join(&entry.name)).expect("remove");
        }
        put(union.at(&format!("d/new{i}")), "");
    }
    fs::remove_file(union.at("d").join(&first[149].name)).unwrap_or_default();
    let offset = u64::try_from(first[149].next).expect("an offset");
    (&directory).seek(SeekFrom::Start(offset)).expect("seekdir");
    let after = rest(&directory, 4096);
    let counts = counts(&after);
    for entry in second {
        assert_eq!(counts.get(&entry.name), Some(&1), "{:?}", entry.name);
    }
    for entry in first {
        assert_eq!(counts.get(&entry.name), None, "{:?} came before", entry.name);
    }
    drop(directory);
    union.umount();
}

fn rewinding_shows_what_is_new() {
    everywhere(
        |dir| fill(dir, 20),
        |dir| {
            let directory = open(dir);
            assert_eq!(rest(&directory, 4096).len(), 20);
            put(dir.join("new"), "");
            fs::remove_file(dir.join("entry-with-a-name-3")).expect("remove");
            fs::rename(dir.join("entry-with-a-name-4"), dir.join("renamed")).expect("rename");
            (&directory).seek(SeekFrom::Start(0)).expect("rewinddir");
            let names: Vec<OsString> = rest(&directory, 4096).into_iter().map(|entry| entry.name).collect();
            assert_eq!(names.len(), 20);
            for name in ["new", "renamed"] {
                assert!(names.contains(&name.into()), "{name}");
            }
            for name in ["entry-with-a-name-3", "entry-with-a-name-4"] {
                assert!(!names.contains(&name.into()), "{name}");
            }
        },
    );
}

fn deleting_while_listing() {
    everywhere(
        |dir| fill(dir, 3000),
        |dir| {
            let directory = open(dir);
            let mut removed = 0;
            loop {
                let batch = getdents(&directory, 2048).expect("getdents");
                if batch.is_empty() {
                    break;
                }
                for entry in batch.iter().filter(|entry| entry.name != "." && entry.name != "..") {
                    fs::remove_file(dir.join(&entry.name)).expect("each name comes once");
                    removed += 1;
                }
            }
            assert_eq!(removed, 3000, "as rm -r relies on");
            assert_eq!(names(dir), Vec::<String>::new());
        },
    );
}

/// fuse-overlayfs 2.0 needs more than a minute for it.
fn deleting_every_second_of_twenty_thousand() {
    const COUNT: usize = 20_000;
    let mut union = Union::new(2);
    for i in 0..COUNT {
        let places = [union.lower(0, "d"), union.lower(1, "d"), union.upper("d")];
        if i < 3 {
            make_dir(&places[i]);
        }
        create_new(places[i % 3].join(format!("name{i}")), 0o644);
    }
    union.mount();
    let start = Instant::now();
    let directory = open(union.at("d"));
    let mut seen = Vec::new();
    loop {
        let batch = getdents(&directory, 1 << 15).expect("getdents");
        if batch.is_empty() {
            break;
        }
        for entry in batch.into_iter().filter(|entry| entry.name != "." && entry.name != "..") {
            if seen.len() % 2 == 0 {
                fs::remove_file(union.at("d").join(&entry.name)).expect("remove");
            }
            seen.push(entry);
        }
    }
    assert_eq!(seen.len(), COUNT);
    assert_eq!(counts(&seen).len(), COUNT);
    assert_eq!(names(union.at("d")).len(), COUNT / 2);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
    drop(directory);
    fs::remove_dir_all(union.at("d")).expect("remove the rest");
    union.umount();
}

fn small_buffers() {
    everywhere(
        |dir| fill(dir, 100),
        |dir| {
            let directory = open(dir);
            // Room for one entry of these names, or two.
            assert_eq!(rest(&directory, 96).len(), 100);
            (&directory).seek(SeekFrom::Start(0)).expect("rewinddir");
            assert_eq!(getdents(&directory, 16).map(drop), Err(Errno::EINVAL));
        },
    );
}

fn two_readers_at_once() {
    everywhere(
        |dir| fill(dir, 400),
        |dir| {
            let (a, b) = (open(dir), open(dir));
            let mut seen = (Vec::new(), Vec::new());
            loop {
                let batch = getdents(&a, 1024).expect("getdents");
                seen.1.extend(getdents(&b, 3000).expect("getdents"));
                if batch.is_empty() {
                    break;
                }
                seen.0.extend(batch);
            }
            assert_eq!(counts(&seen.0).len(), 402);
            assert_eq!((seen.0.len(), seen.1.len()), (402, 402));
        },
    );
}

/// Whoever has made a name finds it in a listing, whatever others do in that directory.
fn listings_beside_renames() {
    everywhere(
        |dir| fill(dir, 400),
        |dir| {
            thread::scope(|scope| {
                for worker in 0..4 {
                    scope.spawn(move || {
                        for i in (worker..400).step_by(4) {
                            let new = format!("renamed-{i}");
                            fs::rename(dir.join(format!("entry-with-a-name-{i}")), dir.join(&new)).expect("rename");
                            if i % 20 == worker {
                                assert!(names(dir).contains(&new), "{new} is there");
                            }
                        }
                    });
                }
            });
            assert_eq!(names(dir).len(), 400);
        },
    );
}

fn empty_and_removed_directories() {
    everywhere(
        |dir| make_dir(dir.join("empty")),
        |dir| {
            let directory = open(dir.join("empty"));
            assert_eq!(rest(&directory, 4096).len(), 0);
            fs::remove_dir(dir.join("empty")).expect("rmdir");
            (&directory).seek(SeekFrom::Start(0)).expect("rewinddir");
            assert_eq!(getdents(&directory, 4096).map(drop), Err(Errno::ENOENT));
        },
    );
}
