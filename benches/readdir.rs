//! Listings of directories of one layer, and of merged ones. `LAYERFS_BENCH_DIR` names the directory to work in, by default
//! one in memory.

use std::path::PathBuf;
use std::time::Duration;

use criterion::{Bencher, Criterion, Throughput};
use layerfs::union::{Attr, DirEntry, Options};

#[path = "../tests/union/fixture.rs"]
mod fixture;
#[path = "common/settings.rs"]
mod settings;

use fixture::{Layers, View};

/// Where the entries of a directory are.
#[derive(Clone, Copy)]
enum Place {
    Upper,
    /// Spread over so many lowers.
    Lowers(usize),
}

const PLACES: [(&str, Place); 5] = [
    ("upper", Place::Upper),
    ("1 lower", Place::Lowers(1)),
    ("2 lowers", Place::Lowers(2)),
    ("10 lowers", Place::Lowers(10)),
    ("50 lowers", Place::Lowers(50)),
];

/// A directory `d` with so many empty files.
fn layers(place: Place, entries: usize) -> Layers {
    let layers = Layers::new(if let Place::Lowers(count) = place { count } else { 1 });
    let path = |entry: usize| -> PathBuf {
        let name = format!("d/entry-{entry}");
        match place {
            Place::Upper => layers.upper(&name),
            Place::Lowers(count) => layers.lower(entry % count, &name),
        }
    };
    for entry in 0..entries {
        std::fs::write(path(entry), "").unwrap();
    }
    layers
}

fn names(bencher: &mut Bencher<'_>, view: &View, entries: usize) {
    let dir = view.hold("d").unwrap();
    bencher.iter(|| {
        let mut seen = 0;
        let mut sink = |_: &DirEntry<'_>| {
            seen += 1;
            true
        };
        view.union.readdir(dir.ino, 0, &mut sink).unwrap();
        // With `.` and `..`.
        assert_eq!(seen, entries + 2);
    });
}

/// As a walk of a tree reads it: each entry is looked up, and forgotten at the end.
fn attributes(bencher: &mut Bencher<'_>, view: &View, entries: usize) {
    let dir = view.hold("d").unwrap();
    let mut known = Vec::with_capacity(entries);
    bencher.iter(|| {
        let mut offset = 0;
        loop {
            let before = offset;
            let mut sink = |entry: &DirEntry<'_>, attr: &Attr| {
                offset = entry.next;
                if entry.name != b"." && entry.name != b".." {
                    known.push(attr.ino);
                }
                true
            };
            view.union.readdirplus(dir.ino, before, &mut sink).unwrap();
            if offset == before {
                break;
            }
        }
        assert_eq!(known.len(), entries);
        for ino in known.drain(..) {
            view.union.forget(ino, 1);
        }
    });
}

fn readdir(criterion: &mut Criterion) {
    // Layers that change underneath are read each time.
    let read_anew = Options { timeout: Some(Duration::ZERO), ..Options::default() };
    for entries in [100, 10_000] {
        let mut group = criterion.benchmark_group(format!("readdir, {entries} entries"));
        group.throughput(Throughput::Elements(entries as u64));
        for (label, place) in PLACES {
            let layers = layers(place, entries);
            let view = layers.open_with(read_anew.clone());
            group.bench_function(format!("{label}, merge"), |bencher| names(bencher, &view, entries));
            view.close();
            let view = layers.open();
            group.bench_function(format!("{label}, kept"), |bencher| names(bencher, &view, entries));
            group.bench_function(format!("{label}, kept, with attributes"), |bencher| {
                attributes(bencher, &view, entries)
            });
            view.close();
        }
        group.finish();
    }
}

fn main() {
    let mut criterion = settings::few_samples();
    readdir(&mut criterion);
    criterion.final_summary();
}
