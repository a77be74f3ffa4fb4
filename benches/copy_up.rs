//! Copy-up of a lower file by the first write to it, beside the same work done with plain system calls.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use criterion::{BatchSize, Bencher, Criterion, Throughput};
use layerfs::sys::xattr::{self, Target};
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, fchmod, futimens};
use nix::sys::time::TimeSpec;

#[path = "../tests/union/fixture.rs"]
mod fixture;

use fixture::{Layers, View, mark, xname};

/// How many files are copied up before there are new layers.
const BATCH: usize = 64;

/// A union over fresh lower files, and which of them comes next.
struct Fresh {
    layers: Layers,
    view: View,
    /// The number of each file; they stay looked up.
    numbers: Vec<u64>,
    next: usize,
}

impl Fresh {
    fn new(content: &str) -> Self {
        let layers = Layers::new(1);
        for index in 0..BATCH {
            layers.file(0, &format!("d/{index}"), content);
        }
        let view = layers.open();
        // The directory itself is in upper before the measurement, as in a container that has run for a while.
        view.chmod("d", 0o755).unwrap();
        let numbers = (0..BATCH).map(|index| view.hold(&format!("d/{index}")).unwrap().keep()).collect();
        Self { layers, view, numbers, next: 0 }
    }

    /// Moves on to the next lower file, in new layers when these are used up.
    fn advance(&mut self, content: &str) -> usize {
        if self.next == BATCH {
            *self = Self::new(content);
        }
        self.next += 1;
        self.next - 1
    }
}

fn measure(bencher: &mut Bencher<'_>, content: &str, copy_up: fn(&Fresh, usize)) {
    let fresh = RefCell::new(Fresh::new(content));
    let next = || fresh.borrow_mut().advance(content);
    bencher.iter_batched(next, |index| copy_up(&fresh.borrow(), index), BatchSize::PerIteration);
}

fn through_union(fresh: &Fresh, index: usize) {
    fresh.view.union.write(fresh.numbers[index], 0, b"x").unwrap();
}

/// What no copy-up can do without: content, owner, mode, times and one mark onto a file that then gets its name.
fn with_system_calls(fresh: &Fresh, index: usize) {
    let mut lower = File::open(fresh.layers.lowers[0].join(format!("d/{index}"))).unwrap();
    let meta = lower.metadata().unwrap();
    let dir = File::open(fresh.layers.upper("d")).unwrap();
    let mut copy = unnamed_in(&fresh.layers.upper("d"));
    // The standard library asks the kernel to copy, too.
    std::io::copy(&mut lower, &mut copy).unwrap();
    nix::unistd::fchown(&copy, Some(meta.uid().into()), Some(meta.gid().into())).unwrap();
    fchmod(&copy, Mode::from_bits_truncate(meta.mode())).unwrap();
    xattr::set(Target::Fd(copy.as_fd()), &xname(&mark("origin")), &[0; 29], 0).unwrap();
    let mtime = TimeSpec::new(meta.mtime(), meta.mtime_nsec());
    futimens(&copy, &TimeSpec::new(meta.atime(), meta.atime_nsec()), &mtime).unwrap();
    let unnamed = format!("/proc/self/fd/{}", copy.as_raw_fd());
    let (here, follow) = (nix::fcntl::AT_FDCWD, AtFlags::AT_SYMLINK_FOLLOW);
    nix::unistd::linkat(here, &*unnamed, &dir, &*format!("plain-{index}"), follow).unwrap();
    copy.write_all_at(b"x", 0).unwrap();
}

fn unnamed_in(dir: &Path) -> File {
    std::fs::OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_TMPFILE).open(dir).unwrap()
}

fn copy_up(criterion: &mut Criterion) {
    for (label, size) in [("4 KiB", 4 << 10), ("1 MiB", 1 << 20)] {
        let content = "x".repeat(size);
        let mut group = criterion.benchmark_group(format!("copy-up {label}"));
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function("union", |bencher| measure(bencher, &content, through_union));
        group.bench_function("system calls", |bencher| measure(bencher, &content, with_system_calls));
        group.finish();
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    copy_up(&mut criterion);
    criterion.final_summary();
}
