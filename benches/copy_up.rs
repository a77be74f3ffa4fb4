//! Copy-up of lower files through a union in this process, beside the same work done with plain system calls: the floor.
//!
//! `LAYERFS_BENCH_DIR` names the directory to work in, by default one in memory. At the end there is a table of medians.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, Criterion, measurement::WallTime};

#[path = "../tests/union/fixture.rs"]
mod fixture;
#[path = "copy_up/floor.rs"]
mod floor;

use fixture::{Layers, View};
use floor::Floor;

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

/// The layers of a case, and which of its files comes next.
struct Fresh {
    case: Case,
    layers: Layers,
    view: Option<View>,
    /// The number of each file; they stay looked up.
    numbers: Vec<u64>,
    next: usize,
    /// Whether the filesystem can share blocks.
    shares: bool,
}

impl Fresh {
    fn new(case: Case) -> Self {
        let layers = Layers::new(case.lowers);
        let content: Vec<u8> = (0..case.size).map(|at| (at / 7 + at) as u8).collect();
        for lower in 0..case.lowers {
            layers.directory(lower, "d");
        }
        for index in 0..case.files {
            std::fs::write(layers.lower(case.lowers - 1, &case.path(index)), &content).unwrap();
        }
        let mut fresh = Self { case, layers, view: None, numbers: Vec::new(), next: 0, shares: false };
        fresh.renew();
        fresh
    }

    /// Starts again with an empty upper.
    fn renew(&mut self) {
        if let Some(view) = self.view.take() {
            view.close();
        }
        for dir in [self.layers.upper(""), self.layers.work("")] {
            std::fs::remove_dir_all(&dir).unwrap();
            std::fs::create_dir(&dir).unwrap();
        }
        let view = self.layers.open();
        // The first directory is in upper before the measurement, as in a container that has run for a while.
        view.chmod("d", 0o755).unwrap();
        self.numbers = (0..self.case.files).map(|index| view.hold(&self.case.path(index)).unwrap().keep()).collect();
        self.next = 0;
        self.shares = view.stats().options["copy"] == "reflink";
        self.view = Some(view);
    }

    /// Brings up the next files; returns how long that took.
    fn measure(&mut self, bring_up: fn(&Fresh, usize)) -> Duration {
        if self.next + self.case.batch > self.case.files {
            self.renew();
        }
        let first = self.next;
        self.next += self.case.batch;
        let start = Instant::now();
        for index in first..self.next {
            bring_up(self, index);
        }
        start.elapsed()
    }
}

fn through_union(fresh: &Fresh, index: usize) {
    let union = &fresh.view.as_ref().unwrap().union;
    let number = fresh.numbers[index];
    match fresh.case.change {
        Change::Write => assert_eq!(union.write(number, 0, b"x").unwrap(), 1),
        Change::Chmod => {
            let change = layerfs::union::SetAttr { mode: Some(0o600), ..Default::default() };
            union.setattr(&fixture::me(), number, &change).unwrap();
        }
    }
}

fn with_system_calls(fresh: &Fresh, index: usize) {
    let case = &fresh.case;
    let floor = Floor {
        lower: fresh.layers.lowers[case.lowers - 1].join("d"),
        upper: fresh.layers.upper("d"),
        data: case.change == Change::Write,
        shares: fresh.shares,
    };
    let path = case.path(index);
    floor.bring_up(path.strip_prefix("d/").unwrap());
}

/// Measures one way of a case; returns the median.
fn run(group: &mut BenchmarkGroup<'_, WallTime>, case: Case, way: &str, bring_up: fn(&Fresh, usize)) -> Duration {
    let fresh = RefCell::new(Fresh::new(case));
    let times = RefCell::new(Vec::new());
    group.bench_function(way, |bencher| {
        bencher.iter_custom(|iterations| {
            let measured = (0..iterations).map(|_| fresh.borrow_mut().measure(bring_up));
            measured.inspect(|time| times.borrow_mut().push(*time)).sum()
        });
    });
    let mut times = times.into_inner();
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let mut rows = Vec::new();
    for case in CASES {
        let mut group = criterion.benchmark_group(format!("copy-up: {}", case.name));
        let union = run(&mut group, case, "union", through_union);
        let floor = run(&mut group, case, "system calls", with_system_calls);
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
