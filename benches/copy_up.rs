//! Copy-up of lower files through a union in this process, beside the same work done with plain system calls: the floor.
//!
//! `LAYERFS_BENCH_DIR` names the directory to work in, by default one in memory. At the end there is a table of medians.

use std::time::Duration;

use criterion::{BenchmarkGroup, measurement::WallTime};

#[path = "../tests/union/fixture.rs"]
mod fixture;
#[path = "copy_up/floor.rs"]
mod floor;
#[path = "common/settings.rs"]
mod settings;
#[path = "common/supply.rs"]
mod supply;

use fixture::{Layers, View};
use floor::Floor;
use supply::Supply;

/// What is done to a lower file that brings it up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    /// One byte of it is written.
    Write,
    /// Its mode is changed: no data is needed.
    Chmod,
}

/// One row of the table.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    change: Change,
    /// The size of each file.
    size: usize,
    /// How many lowers there are; the lowest has the files, and all have the first directory.
    lowers: usize,
    /// How many directories of their own the files lie in, which come up too.
    depth: usize,
    /// How many files are brought up before the upper is a fresh one.
    files: usize,
    /// How many of them are one measurement.
    batch: usize,
}

const ONE: Case =
    Case { name: "write, 4 KiB", change: Change::Write, size: 4 << 10, lowers: 1, depth: 0, files: 64, batch: 1 };

const CASES: [Case; 11] = [
    ONE,
    Case { name: "write, 4 KiB, 10 lowers", lowers: 10, ..ONE },
    Case { name: "write, 4 KiB, 50 lowers", lowers: 50, ..ONE },
    Case { name: "write, 4 KiB, 1 directory comes up too", depth: 1, ..ONE },
    Case { name: "write, 4 KiB, 20 directories come up too", depth: 20, ..ONE },
    Case { name: "write, 4 KiB, 1,000 files", files: 1000, batch: 1000, ..ONE },
    Case { name: "write, 1 MiB", size: 1 << 20, ..ONE },
    Case { name: "write, 256 MiB", size: 256 << 20, files: 1, ..ONE },
    Case { name: "chmod, 4 KiB", change: Change::Chmod, ..ONE },
    Case { name: "chmod, 1 MiB", change: Change::Chmod, size: 1 << 20, ..ONE },
    Case { name: "chmod, 256 MiB", change: Change::Chmod, size: 256 << 20, files: 1, ..ONE },
];

impl Case {
    /// The path of a file in the layers.
    fn path(&self, index: usize) -> String {
        let own: String = (0..self.depth).map(|level| format!("{index}-{level}/")).collect();
        format!("d/{own}{index}")
    }
}

/// The files of a case. The first directory is in upper already, as in a container that has run for a while.
fn files(case: &Case) -> Supply<impl Fn(&View) -> Vec<u64>> {
    let layers = Layers::new(case.lowers);
    let content: Vec<u8> = (0..case.size).map(|at| (at / 7 + at) as u8).collect();
    for lower in 0..case.lowers {
        layers.directory(lower, "d");
    }
    for index in 0..case.files {
        std::fs::write(layers.lower(case.lowers - 1, &case.path(index)), &content).unwrap();
    }
    Supply::new(layers, case.batch, |view| {
        view.chmod("d", 0o755).unwrap();
        (0..case.files).map(|index| view.hold(&case.path(index)).unwrap().keep()).collect()
    })
}

fn through_union(group: &mut BenchmarkGroup<'_, WallTime>, case: &Case) -> Duration {
    files(case).bench(group, "union", |files, index| {
        let (union, number) = (&files.view().union, files.number(index));
        match case.change {
            Change::Write => assert_eq!(union.write(number, 0, b"x").unwrap(), 1),
            Change::Chmod => {
                let change = layerfs::union::SetAttr { mode: Some(0o600), ..Default::default() };
                union.setattr(&fixture::me(), number, &change).unwrap();
            }
        }
    })
}

fn with_system_calls(group: &mut BenchmarkGroup<'_, WallTime>, case: &Case) -> Duration {
    let files = files(case);
    let floor = Floor {
        lower: files.layers.lowers[case.lowers - 1].join("d"),
        upper: files.layers.upper("d"),
        data: case.change == Change::Write,
        shares: files.view().stats().options["copy"] == "reflink",
    };
    files.bench(group, "system calls", |_, index| {
        let path = case.path(index);
        floor.bring_up(path.strip_prefix("d/").unwrap());
    })
}

fn main() {
    let mut criterion = settings::few_samples();
    let mut rows = Vec::new();
    for case in CASES {
        let mut group = criterion.benchmark_group(format!("copy-up: {}", case.name));
        let union = through_union(&mut group, &case);
        let floor = with_system_calls(&mut group, &case);
        group.finish();
        if !union.is_zero() && !floor.is_zero() {
            rows.push((case.name, floor, union));
        }
    }
    criterion.final_summary();
    println!("\n| copy-up | system calls | union | ratio |\n|---|---:|---:|---:|");
    for (name, floor, union) in rows {
        let [floor_us, union_us] = [floor, union].map(|time| time.as_secs_f64() * 1e6);
        println!("| {name} | {floor_us:.1} us | {union_us:.1} us | {:.2} |", union_us / floor_us);
    }
}
