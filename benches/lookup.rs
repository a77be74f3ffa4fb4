//! Lookup of a name that is there, in the lowest layer, and of one that is not.

use std::hint::black_box;

use criterion::{Bencher, Criterion};
use layerfs::union::Options;

#[path = "../tests/union/fixture.rs"]
mod fixture;

use fixture::{Layers, View, name};

/// A directory that every one of `count` layers has; only the lowest holds `there`.
fn layers(count: usize) -> Layers {
    let layers = Layers::new(count);
    for index in 0..count {
        layers.file(index, &format!("d/other{index}"), "");
    }
    layers.file(count - 1, "d/there", "");
    layers
}

fn hit(bencher: &mut Bencher<'_>, view: &View) {
    let (dir, there) = (view.hold("d").unwrap(), name("there"));
    bencher.iter(|| {
        let attr = view.union.lookup(dir.ino, black_box(&there)).unwrap();
        view.union.forget(attr.ino, 1);
    });
}

fn miss(bencher: &mut Bencher<'_>, view: &View) {
    let (dir, missing) = (view.hold("d").unwrap(), name("missing"));
    bencher.iter(|| view.union.lookup(dir.ino, black_box(&missing)).unwrap_err());
}

fn lookup(criterion: &mut Criterion) {
    for count in [1, 20] {
        let layers = layers(count);
        let mut group = criterion.benchmark_group(format!("lookup, {count} lower"));
        for (label, cache_entries) in [("cached", Options::default().cache_entries), ("uncached", 0)] {
            let view = layers.open_with(Options { cache_entries, ..Options::default() });
            group.bench_function(format!("hit, {label}"), |bencher| hit(bencher, &view));
            group.bench_function(format!("miss, {label}"), |bencher| miss(bencher, &view));
            view.close();
        }
        group.finish();
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    lookup(&mut criterion);
    criterion.final_summary();
}
