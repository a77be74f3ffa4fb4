//! While a large file is copied up, and what is not copied at all. The moment is told by the daemon's own counters: a write is
//! counted when it comes in, a copy when it is complete.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;

use crate::common::Test;
use crate::common::files::*;
use crate::common::mount::{eventually, wait_until};
use crate::common::others::OtherMount;
use crate::common::sys;
use crate::common::union::{Union, io_modes};
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(a_large_copy_blocks_nothing_else).root(),
        t!(writers_of_one_file_wait_for_one_copy).root(),
        t!(a_killed_writer_leaves_the_whole_copy_or_none).root(),
        t!(unlink_copies_nothing),
        t!(emptying_copies_no_data),
    ]
}

/// Read and written, not cloned, this takes a good part of a second.
const LARGE: usize = 1 << 30;
/// Repeated, but with no page like its neighbours.
const PATTERN: usize = (1 << 20) + 4097;
/// A union with the file `large` in a lower on a filesystem of its own, from which nothing can be cloned. Its upper is in memory
/// too: what goes on beside the copy has to wait for us only, not for a disk.
struct Large {
    union: Union,
    /// Dropped before the directory that they lie in.
    _mounts: [OtherMount; 2],
    _holder: Union,
    pattern: Vec<u8>,
    size: usize,
}

impl Large {
    fn new(size: usize, arguments: &[&str]) -> Large {
        let holder = Union::new(0);
        let [elsewhere, upper] = ["elsewhere", "upper"].map(|name| holder.root().join(name));
        let mounts = [&elsewhere, &upper].map(|place| {
            make_dir(place);
            OtherMount::memory("tmpfs", &format!("size={}", size + (64 << 20)), place)
        });
        let pattern: Vec<u8> = (0..PATTERN as u32).map(|i| (i / 249 + i) as u8 | 1).collect();
        let file = create_new(elsewhere.join("large"), 0o644);
        for at in (0..size).step_by(PATTERN) {
            file.write_all_at(&pattern[..PATTERN.min(size - at)], at as u64).expect("write the lower file");
        }
        let mut union = Union::new(1).upper_in(&upper).lower_in(&elsewhere).arguments(arguments);
        for n in 0..100 {
            put(union.lower(0, &format!("d/low{n}")), "low");
        }
        union.mount();
        Large { union, _mounts: mounts, _holder: holder, pattern, size }
    }

    /// Whether a file has the content of the lower one, but for a few bytes at its start.
    fn is_whole(&self, path: &Path, start: usize) -> bool {
        let file = open(path);
        let mut buffer = vec![0; PATTERN];
        file.metadata().expect("fstat").len() == self.size as u64
            && (0..self.size).step_by(PATTERN).all(|at| {
                let part = &mut buffer[..PATTERN.min(self.size - at)];
                file.read_exact_at(part, at as u64).expect("read");
                let skipped = if at == 0 { start } else { 0 };
                part[skipped..] == self.pattern[skipped..part.len()]
            })
    }

    /// How often each thing was done.
    fn counted(&self, group: &str, name: &str) -> u64 {
        counted(&self.union, group, name)
    }

    /// Waits until the daemon has got `n` requests that copy up.
    fn wait_for_requests(&self, n: u64) {
        let come = eventually(20, || self.counted("operations", "write") + self.counted("operations", "open") >= n);
        assert!(come, "{n} requests have come");
    }

    fn is_copied(&self) -> bool {
        self.counted("copy_ups", "data") > 0
    }
}

fn counted(union: &Union, group: &str, name: &str) -> u64 {
    let text = sys::get_xattr(&union.point(), "user.layerfs.stats").expect("the statistics");
    let stats: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    stats[group].get(name).and_then(serde_json::Value::as_u64).unwrap_or(0)
}

/// Writes one byte and waits until the daemon has it.
fn change(path: &PathBuf, at: u64) {
    let file = ok(path, OpenOptions::new().write(true).open(path));
    file.write_all_at(b"!", at).and_then(|()| file.sync_data()).expect("write");
}

/// On a machine with other work to do, what goes on beside the copy may take longer than that by chance, but not every time.
const TRIES: usize = 3;

fn a_large_copy_blocks_nothing_else() {
    for arguments in io_modes() {
        let before_it = (0..TRIES).any(|_| is_done_before_the_copy(arguments));
        assert!(before_it, "all of it is done before the copy is, {arguments:?}");
    }
}

/// Whether a hundred lookups and creations beside a large file that is being copied up are done before its copy is.
fn is_done_before_the_copy(arguments: &[&str]) -> bool {
    let large = Large::new(LARGE, arguments);
    let union = &large.union;
    let before_it = thread::scope(|scope| {
        let copier = scope.spawn(|| change(&union.at("large"), 0));
        large.wait_for_requests(1);
        for n in 0..100 {
            assert_eq!(stat(union.at(&format!("d/low{n}"))).len(), 3);
            assert!(!exists(union.at(&format!("d/missing{n}"))));
            put(union.at(&format!("d/new{n}")), "new");
            // Beside the file, in its directory.
            put(union.at(&format!("new{n}")), "new");
        }
        append(union.at("d/low7"), "er");
        assert_eq!(read(union.at("d/low7")), "lower");
        // The file itself is looked at and read too; closing it waits for what was written to it.
        assert_eq!(stat(union.at("large")).len(), LARGE as u64);
        let (reader, mut last) = (open(union.at("large")), [0]);
        reader.read_exact_at(&mut last, LARGE as u64 - 1).expect("read");
        assert_eq!(last[0], large.pattern[(LARGE - 1) % PATTERN]);
        // d/low7 alone is copied by then.
        let before_it = large.counted("copy_ups", "data") <= 1 && !copier.is_finished();
        copier.join().expect("the writer");
        before_it
    });
    assert!(large.is_whole(&union.at("large"), 1));
    before_it
}

fn writers_of_one_file_wait_for_one_copy() {
    const WRITERS: u64 = 4;
    for arguments in io_modes() {
        let large = Large::new(LARGE / 4, arguments);
        let path = large.union.at("large");
        thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|n| {
                    scope.spawn({
                        let path = &path;
                        move || change(path, n)
                    })
                })
                .collect();
            for writer in writers {
                writer.join().expect("a writer");
            }
        });
        assert_eq!(large.counted("copy_ups", "data"), 1, "{arguments:?}");
        assert_eq!(large.counted("copy_up_bytes", "read_write"), large.size as u64, "{arguments:?}");
        assert_eq!(&read_start(&path), b"!!!!");
        assert!(large.is_whole(&path, WRITERS as usize));
    }
}

fn read_start(path: &Path) -> [u8; 4] {
    let mut start = [0; 4];
    open(path).read_exact_at(&mut start, 0).expect("read");
    start
}

fn a_killed_writer_leaves_the_whole_copy_or_none() {
    for arguments in io_modes() {
        let mut large = Large::new(LARGE / 2, arguments);
        let path = large.union.at("large");
        let mut writer = Command::new("dd")
            .args(["if=/dev/zero", "bs=1", "count=1", "conv=notrunc,fsync"])
            .arg(format!("of={}", path.display()))
            .stderr(Stdio::null())
            .spawn()
            .expect("dd");
        large.wait_for_requests(1);
        let copied = large.is_copied();
        writer.kill().expect("kill");
        assert!(!copied, "it is killed while the file is copied, {arguments:?}");
        let ended = wait_until(&mut writer, Instant::now() + Duration::from_secs(60));
        assert!(ended.is_some(), "it ends, {arguments:?}");
        let upper = large.union.upper("large");
        assert!(!exists(&upper) || large.is_whole(&upper, 1), "{arguments:?}");
        assert!(large.is_whole(&path, 1), "the union shows it whole, {arguments:?}");
        change(&path, 1);
        assert!(large.is_whole(&path, 2), "and others can change it, {arguments:?}");
        large.union.umount();
        assert!(names(large.union.work("layerfs/stage")).is_empty());
        assert!(large.is_whole(&upper, 2), "{arguments:?}");
    }
}

/// Names of a file, of one among several, and of a large one that would show in the time it takes.
fn unlink_copies_nothing() {
    for arguments in io_modes() {
        let mut union = Union::new(1).arguments(arguments);
        put(union.lower(0, "d/one"), "content");
        put(union.lower(0, "d/linked"), "content");
        fs::hard_link(union.lower(0, "d/linked"), union.lower(0, "d/link")).expect("link");
        put(union.lower(0, "d/open"), "content");
        put(union.lower(0, "d/target"), "content");
        let before = union.lower_trees();
        union.mount();
        let held = open(union.at("d/open"));
        for name in ["one", "linked", "open"] {
            fs::remove_file(union.at("d").join(name)).expect("remove");
        }
        put(union.at("new"), "new");
        fs::rename(union.at("new"), union.at("d/target")).expect("rename over it");
        assert_eq!(read_all(&held), "content");
        drop(held);
        for kind in ["data", "completed", "truncated"] {
            assert_eq!(counted(&union, "copy_ups", kind), 0, "{kind}, {arguments:?}");
        }
        assert_eq!(copied_bytes(&union), 0, "{arguments:?}");
        union.umount();
        assert_eq!(names(union.upper("d")), ["linked", "one", "open", "target"]);
        for name in ["one", "linked", "open"] {
            assert!(is_whiteout(union.upper("d").join(name)), "{name}, {arguments:?}");
        }
        union.assert_lowers(&before);
    }
}

fn emptying_copies_no_data() {
    for arguments in io_modes() {
        let mut union = Union::new(1).arguments(arguments);
        for name in ["emptied", "rewritten", "truncated", "read-and-emptied"] {
            put(union.lower(0, name), vec![b'x'; 1 << 20]);
            mark(union.lower(0, name), "user.note", "kept");
        }
        let before = union.lower_trees();
        union.mount();
        drop(sys::open(&union.at("emptied"), libc::O_WRONLY | libc::O_TRUNC, 0).expect("open"));
        drop(sys::open(&union.at("read-and-emptied"), libc::O_RDONLY | libc::O_TRUNC, 0).expect("open"));
        put(union.at("rewritten"), "new content");
        nix::unistd::truncate(&union.at("truncated"), 0).expect("truncate");
        assert_eq!(copied_bytes(&union), 0, "{arguments:?}");
        assert_eq!(counted(&union, "copy_ups", "data"), 0, "{arguments:?}");
        for (name, content) in
            [("emptied", ""), ("read-and-emptied", ""), ("truncated", ""), ("rewritten", "new content")]
        {
            assert_eq!(read(union.at(name)), content, "{name}, {arguments:?}");
            assert_eq!(marked(union.at(name), "user.note").as_deref(), Some("kept"), "{name}, {arguments:?}");
        }
        union.umount();
        union.assert_lowers(&before);
    }
}

fn copied_bytes(union: &Union) -> u64 {
    ["reflink", "copy_file_range", "read_write"].iter().map(|how| counted(union, "copy_up_bytes", how)).sum()
}
