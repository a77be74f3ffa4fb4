//! How data is copied up on the filesystems that people have: what is shared, what stays a hole, what must not be changed.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD as HERE, AtFlags};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::sys::statvfs::statvfs;
use nix::sys::time::TimeSpec;

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::find_program;
use crate::common::mount::run;
use crate::common::others::{KernelOverlay, OtherMount};
use crate::common::sys;
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(blocks_are_shared_on_xfs).root().needs(no_xfs),
        t!(blocks_are_shared_on_btrfs).root().needs(no_btrfs),
        t!(blocks_are_shared_between_subvolumes).root().needs(no_btrfs),
        t!(the_kernel_copies_on_ext4).root().needs(no_ext4),
        t!(between_filesystems_data_is_read_and_written).root().needs(no_ext4),
        t!(holes_of_every_form_stay_on_xfs).root().needs(no_xfs),
        t!(holes_of_every_form_stay_on_btrfs).root().needs(no_btrfs),
        t!(holes_of_every_form_stay_on_ext4).root().needs(no_ext4),
        t!(one_file_that_cannot_be_shared_is_copied).root().needs(no_btrfs),
        t!(what_nobody_may_change_stays_as_it_is).root().needs(no_ext4),
    ]
}

fn no_xfs() -> Option<String> {
    no_disk("mkfs.xfs")
}

fn no_btrfs() -> Option<String> {
    no_disk("mkfs.btrfs")
}

fn no_ext4() -> Option<String> {
    no_disk("mkfs.ext4")
}

fn no_disk(mkfs: &str) -> Option<String> {
    let there = find_program(mkfs).is_some() && fs::metadata("/dev/loop-control").is_ok();
    (!there).then(|| format!("needs {mkfs} and loop devices"))
}

/// A filesystem of its own.
struct Disk {
    /// The filesystem goes before the directory that its image lies in.
    _mount: OtherMount,
    _holder: Union,
    root: PathBuf,
}

impl Disk {
    fn new(kind: &str) -> Disk {
        let holder = Union::new(0);
        let (image, root) = (holder.root().join("disk"), holder.root().join("now"));
        File::create(&image).and_then(|file| file.set_len(512 << 20)).expect("an image file");
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image)).success();
        make_dir(&root);
        let mount = OtherMount::image(&image, &root);
        Disk { _mount: mount, _holder: holder, root }
    }

    /// A union whose upper and only lower, `lower`, are here.
    fn union(&self, lower: &Path) -> Union {
        Union::new(0).upper_in(&self.root).lower_in(lower)
    }

    fn lower(&self) -> PathBuf {
        let lower = self.root.join("lower");
        make_dir(&lower);
        lower
    }

    /// How many bytes are in use, once everything has its place.
    fn used(&self) -> u64 {
        let root = File::open(&self.root).expect("the filesystem's root");
        nix::unistd::syncfs(&root).expect("syncfs");
        let stat = statvfs(&self.root).expect("statvfs");
        (stat.blocks() - stat.blocks_free()) * stat.fragment_size()
    }
}

const LARGE: u64 = 64 << 20;

/// Bytes that no filesystem makes smaller.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..size).map(|_| next()).collect()
}

/// Copies 64 MiB up by a write of one byte; returns how much more of the disk is in use after it.
fn grown_by_a_large_copy(disk: &Disk, lower: &Path, way: &str) -> u64 {
    let mut content = noise(LARGE as usize);
    put(lower.join("large"), &content);
    let mut union = disk.union(lower);
    union.mount();
    assert_eq!(union.stats()["options"]["copy"], way, "what was probed");
    let before = disk.used();
    let file = edit(union.at("large"));
    file.write_all_at(b"x", LARGE / 2).expect("write");
    file.sync_all().expect("fsync");
    drop(file);
    assert_eq!(union.stats()["copy_up_bytes"], serde_json::json!({ way: LARGE }));
    union.umount();
    let grown = disk.used().saturating_sub(before);
    assert!(fs::read(lower.join("large")).expect("read") == content, "the lower file is what it was");
    content[LARGE as usize / 2] = b'x';
    assert!(fs::read(union.upper("large")).expect("read") == content, "the copy is the lower file and one byte");
    grown
}

fn blocks_are_shared_on_xfs() {
    let disk = Disk::new("xfs");
    let grown = grown_by_a_large_copy(&disk, &disk.lower(), "reflink");
    assert!(grown < 4 << 20, "{grown} bytes more are in use");
}

fn blocks_are_shared_on_btrfs() {
    let disk = Disk::new("btrfs");
    let grown = grown_by_a_large_copy(&disk, &disk.lower(), "reflink");
    assert!(grown < 4 << 20, "{grown} bytes more are in use");
}

/// A subvolume has a device number of its own, and is the same filesystem.
fn blocks_are_shared_between_subvolumes() {
    let disk = Disk::new("btrfs");
    let lower = disk.root.join("lower");
    run(Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(&lower)).success();
    assert_ne!(stat(&lower).dev(), stat(&disk.root).dev());
    let grown = grown_by_a_large_copy(&disk, &lower, "reflink");
    assert!(grown < 4 << 20, "{grown} bytes more are in use");
}

fn the_kernel_copies_on_ext4() {
    let disk = Disk::new("ext4");
    let grown = grown_by_a_large_copy(&disk, &disk.lower(), "copy_file_range");
    assert!(grown >= LARGE, "{grown} bytes more are in use");
}

fn between_filesystems_data_is_read_and_written() {
    let disk = Disk::new("ext4");
    let elsewhere = Union::new(1);
    let grown = grown_by_a_large_copy(&disk, &elsewhere.lower(0, ""), "read_write");
    assert!(grown >= LARGE, "{grown} bytes more are in use");
}

fn holes_of_every_form_stay_on_xfs() {
    holes_of_every_form_stay("xfs");
}

fn holes_of_every_form_stay_on_btrfs() {
    holes_of_every_form_stay("btrfs");
}

fn holes_of_every_form_stay_on_ext4() {
    holes_of_every_form_stay("ext4");
}

/// The size of a file, and where in it there is data.
type Form = (&'static str, u64, &'static [(u64, usize)]);

fn holes_of_every_form_stay(kind: &str) {
    const MB: u64 = 1 << 20;
    let forms: [Form; 8] = [
        ("nothing", 0, &[]),
        ("small-hole", 4096, &[]),
        ("odd-hole", 3 * MB + 5, &[]),
        ("small", 3000, &[(0, 3000)]),
        ("before", 4 * MB, &[(3 * MB, 4096)]),
        ("after", 4 * MB, &[(0, 4096)]),
        ("odd-after", 4 * MB + 77, &[(MB, 10)]),
        ("between", 8 * MB, &[(0, 100), (2 * MB, 65536), (7 * MB, 1 << 20)]),
    ];
    let disk = Disk::new(kind);
    let lower = disk.lower();
    for (name, size, data) in forms {
        let file = create_new(lower.join(name), 0o644);
        file.set_len(size).expect("size");
        for (at, length) in data {
            file.write_all_at(&noise(*length), *at).expect("write");
        }
        file.sync_all().expect("fsync");
    }
    let mut union = disk.union(&lower);
    union.mount();
    for (name, size, _) in forms {
        // Nothing of the data changes, and all of it is wanted.
        edit(union.at(name)).set_len(size + 1).expect("truncate");
        edit(union.at(name)).set_len(size).expect("truncate");
    }
    union.umount();
    disk.used();
    for (name, size, _) in forms {
        let (was, is) = (stat(lower.join(name)), stat(union.upper(name)));
        assert_eq!(is.size(), size, "{name}");
        assert!(is.blocks() <= was.blocks() + 16, "{name} has {} blocks, had {}", is.blocks(), was.blocks());
        let same = fs::read(union.upper(name)).expect("read") == fs::read(lower.join(name)).expect("read");
        assert!(same, "{name}");
    }
}

/// A file without checksums can't share blocks with one that has them: that says nothing about other files.
fn one_file_that_cannot_be_shared_is_copied() {
    let disk = Disk::new("btrfs");
    let lower = disk.lower();
    create_new(lower.join("nocow"), 0o644);
    run(Command::new("chattr").arg("+C").arg(lower.join("nocow"))).success();
    let content = noise(1 << 20);
    for name in ["nocow", "plain"] {
        edit_or_create(&lower.join(name)).write_all_at(&content, 0).expect("write");
    }
    let mut union = disk.union(&lower);
    union.mount();
    for name in ["nocow", "plain"] {
        let file = edit(union.at(name));
        file.write_all_at(b"x", 0).expect("write");
        file.sync_all().expect("fsync");
        assert!(fs::read(union.at(name)).expect("read")[1..] == content[1..], "{name}");
    }
    let stats = union.stats();
    assert_eq!(stats["options"]["copy"], "reflink");
    assert_eq!(stats["copy_up_bytes"]["reflink"], 1 << 20, "{stats}");
    assert_eq!(stats["copy_up_bytes"].as_object().map(serde_json::Map::len), Some(2), "{stats}");
    union.umount();
}

fn edit_or_create(path: &Path) -> File {
    File::options().write(true).create(true).truncate(false).open(path).expect("open")
}

/// Takes the flags off again, or nothing could be removed.
struct Protected(Vec<PathBuf>);

impl Protected {
    fn new(flag: &str, paths: Vec<PathBuf>) -> Protected {
        run(Command::new("chattr").arg(flag).args(&paths)).success();
        Protected(paths)
    }
}

impl Drop for Protected {
    fn drop(&mut self) {
        run(Command::new("chattr").arg("-ai").args(&self.0)).success();
    }
}

/// What is tried on the protected file `file` and, below `dir`, in a directory that is immutable.
type Attempt = (&'static str, fn(&Path) -> Result<(), Errno>);

const MODE: Mode = Mode::S_IRUSR;

fn what_nobody_may_change_stays_as_it_is() {
    let io = |e: std::io::Error| Errno::from_raw(e.raw_os_error().expect("an errno"));
    let attempts: [Attempt; 10] = [
        ("chmod", |at| fchmodat(HERE, &at.join("file"), MODE, FchmodatFlags::FollowSymlink)),
        ("chown", |at| nix::unistd::chown(&at.join("file"), Some(1.into()), None)),
        ("utimens", |at| try_set_times(&at.join("file"), TimeSpec::new(5, 5), TimeSpec::new(6, 6))),
        ("truncate", |at| nix::unistd::truncate(&at.join("file"), 1)),
        ("setxattr", |at| sys::set_xattr(&at.join("file"), "user.new", b"y", 0)),
        ("link", |at| nix::unistd::linkat(HERE, &at.join("file"), HERE, &at.join("new"), AtFlags::empty())),
        ("unlink", |at| nix::unistd::unlink(&at.join("file"))),
        ("rename", |at| sys::rename2(&at.join("file"), &at.join("new"), 0)),
        ("rename over", |at| sys::rename2(&at.join("other"), &at.join("file"), 0)),
        ("create", |at| nix::unistd::mkfifo(&at.join("dir/new"), MODE)),
    ];
    for flag in ["+i", "+a"] {
        let disk = Disk::new("ext4");
        let lower = disk.lower();
        put(lower.join("file"), "content");
        put(lower.join("other"), "other");
        make_dir(lower.join("dir"));
        let _protected = Protected::new(flag, vec![lower.join("file"), lower.join("dir")]);
        let mut union = disk.union(&lower);
        let before = union.lower_trees();
        let try_all = |union: &Union| -> Vec<_> {
            attempts.iter().map(|(name, attempt)| (*name, attempt(&union.at("")))).collect()
        };
        union.mount();
        let ours = try_all(&union);
        if flag == "+i" {
            assert!(ours.iter().all(|(_, result)| *result == Err(Errno::EPERM)), "{ours:?}");
            let opened = File::options().write(true).open(union.at("file"));
            let written = opened.and_then(|file| file.write_all_at(b"x", 0).and_then(|()| file.sync_all())).map_err(io);
            assert_eq!(written, Err(Errno::EPERM), "at the latest when it is synced");
        }
        union.umount();
        assert!(!exists(union.upper("file")), "nothing came up");
        assert_eq!(names(union.work("layerfs/stage")), [""; 0], "nothing half made is left");
        union.assert_lowers(&before);
        drop(union);
        let fresh = disk.root.join("fresh");
        let (upper, work, point) = (fresh.join("upper"), fresh.join("work"), fresh.join("mnt"));
        for dir in [&upper, &work, &point] {
            make_dir(dir);
        }
        let kernel = KernelOverlay::start(std::slice::from_ref(&lower), &upper, &work, "", &point)
            .expect("the kernel's overlay");
        let theirs: Vec<_> = attempts.iter().map(|(name, attempt)| (*name, attempt(&point))).collect();
        kernel.umount();
        assert_eq!(ours, theirs, "{flag}: as the kernel's overlay");
    }
}
