//! A process that does at random whatever can be done to a tree, beside others that do the same. It knows nothing of what the
//! tree holds: it checks that no operation fails but for a reason that it may have.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, fchown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, fallocate};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::linkat;

use crate::common::sys;
use crate::random::Random;

const ROOT: &str = "LAYERFS_STRESS_WORKER_ROOT";
const SEED: &str = "LAYERFS_STRESS_WORKER_SEED";
const MILLISECONDS: &str = "LAYERFS_STRESS_WORKER_MILLISECONDS";

/// The names of everything: few, so that workers meet.
pub const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// How many files a worker keeps open, most of them nameless after a while.
const HELD: usize = 24;
/// The longest file.
const SIZE: usize = 300_000;

/// A command that runs this program as a worker.
pub fn command(root: &Path, seed: u64, time: Duration) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.env(ROOT, root).env(SEED, seed.to_string()).env(MILLISECONDS, time.as_millis().to_string());
    command
}

/// Where this process is to work, if it is a worker.
pub fn asked_for() -> Option<PathBuf> {
    std::env::var_os(ROOT).map(PathBuf::from)
}

/// Works, and ends the process.
pub fn work(root: &Path) -> ! {
    let (seed, time) = (crate::setting(SEED, 0), crate::setting(MILLISECONDS, 0));
    let end = Instant::now() + Duration::from_millis(time);
    let mut worker = Worker { root: root.to_owned(), random: Random::new(seed), held: Vec::new() };
    let mut operations = 0u64;
    let mut achieved = 0u64;
    while Instant::now() < end {
        let (what, paths, result, expected) = worker.step();
        operations += 1;
        match result.map_err(|e| e.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)) {
            Ok(()) => achieved += 1,
            // Every path may lead nowhere: the other worker takes its parts away.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) if !paths.is_empty() => {}
            Err(e) if expected.contains(&e) => {}
            Err(e) => {
                eprintln!("{what} {paths:?}: {e} after {operations} operations, seed {seed}");
                std::process::exit(1);
            }
        }
    }
    println!("{achieved} of {operations} operations did something");
    std::process::exit(0);
}

struct Worker {
    root: PathBuf,
    random: Random,
    held: Vec<File>,
}

/// What was done to which paths, what came of it, and which errors it may have beside those of the paths.
type Done = (&'static str, Vec<PathBuf>, io::Result<()>, &'static [Errno]);

impl Worker {
    fn path(&mut self) -> PathBuf {
        let depth = 1 + self.random.below(4);
        let mut path = self.root.clone();
        path.extend((0..depth).map(|_| *self.random.choose(&NAMES)));
        path
    }

    fn step(&mut self) -> Done {
        match self.random.below(100) {
            0..16 => self.open(),
            16..34 => self.use_held(),
            34..44 => self.rename(),
            44..50 => self.link(),
            50..58 => self.unlink(),
            58..64 => self.mkdir(),
            64..68 => self.rmdir(),
            68..71 => self.symlink(),
            71..77 => self.xattr(),
            77..80 => self.truncate(),
            80..85 => self.change_metadata(),
            85..89 => self.list(),
            89..91 => self.node(),
            91..94 => self.copy_range(),
            94..99 => self.look(),
            _ => self.remove_tree(),
        }
    }

    /// Opens, perhaps makes, perhaps empties, and keeps the file.
    fn open(&mut self) -> Done {
        let path = self.path();
        let (create, truncate, append) = (self.random.one_in(2), self.random.one_in(6), self.random.one_in(6));
        let mut options = OpenOptions::new();
        // A fifo must not wait for its other end.
        options.read(true).write(true).append(append).create(create).custom_flags(libc::O_NONBLOCK);
        options.truncate(truncate && !append).mode(0o600 | (self.random.next() & 0o77) as u32);
        if create && self.random.one_in(2) {
            options.create_new(true);
        }
        let result = options.open(&path).and_then(|file| {
            if file.metadata()?.is_file() {
                if self.held.len() == HELD {
                    self.held.swap_remove(self.random.below(HELD));
                }
                self.held.push(file);
            }
            Ok(())
        });
        // The device 0:0 has no driver.
        ("open", vec![path], result, &[Errno::EEXIST, Errno::EISDIR, Errno::ENXIO, Errno::ENODEV])
    }

    /// What can be done to an open file always succeeds, whatever became of its names.
    fn use_held(&mut self) -> Done {
        let Some(at) = self.held.len().checked_sub(1).map(|last| self.random.below(last + 1)) else {
            return ("nothing", Vec::new(), Ok(()), &[]);
        };
        let (offset, length) = (self.random.below(SIZE) as u64, self.random.below(20_000));
        let data = self.random.bytes(length);
        let file = &self.held[at];
        let what = self.random.below(12);
        let (name, result) = match what {
            0..4 => ("write", file.write_all_at(&data, offset)),
            4..7 => ("read", file.read_at(&mut vec![0; length], offset).map(drop)),
            7 => ("fstat", file.metadata().map(drop)),
            8 => ("ftruncate", file.set_len(offset)),
            9 => ("fsync", file.sync_all()),
            10 => {
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                ("punch", fallocate(file, flags, offset as i64, 1 + length as i64).map_err(io::Error::from))
            }
            _ => ("fchown", fchown(file, Some(self.random.below(3) as u32), None)),
        };
        (name, Vec::new(), result, &[])
    }

    fn rename(&mut self) -> Done {
        let (from, to) = (self.path(), self.path());
        let flags = *self.random.choose(&[0, 0, 0, sys::NOREPLACE, sys::EXCHANGE]);
        let result = sys::rename2(&from, &to, flags).map_err(io::Error::from);
        let expected = &[Errno::EEXIST, Errno::ENOTEMPTY, Errno::EISDIR, Errno::EINVAL];
        ("rename", vec![from, to], result, expected)
    }

    fn link(&mut self) -> Done {
        let (from, to) = (self.path(), self.path());
        let result = linkat(AT_FDCWD, &from, AT_FDCWD, &to, AtFlags::empty()).map_err(io::Error::from);
        ("link", vec![from, to], result, &[Errno::EEXIST, Errno::EPERM])
    }

    fn unlink(&mut self) -> Done {
        let path = self.path();
        let result = fs::remove_file(&path);
        ("unlink", vec![path], result, &[Errno::EISDIR])
    }

    fn mkdir(&mut self) -> Done {
        let path = self.path();
        let result = fs::create_dir(&path);
        ("mkdir", vec![path], result, &[Errno::EEXIST])
    }

    fn rmdir(&mut self) -> Done {
        let path = self.path();
        let result = fs::remove_dir(&path);
        ("rmdir", vec![path], result, &[Errno::ENOTEMPTY])
    }

    /// Only downwards, so that no path leads out of the tree.
    fn symlink(&mut self) -> Done {
        let path = self.path();
        let depth = 1 + self.random.below(2);
        let target: PathBuf = (0..depth).map(|_| *self.random.choose(&NAMES)).collect();
        let result = symlink(target, &path);
        ("symlink", vec![path], result, &[Errno::EEXIST])
    }

    fn xattr(&mut self) -> Done {
        let path = self.path();
        let name = *self.random.choose(&["user.one", "user.two", "trusted.three"]);
        let length = self.random.below(60);
        let value = self.random.bytes(length);
        let (what, result) = match self.random.below(4) {
            0..2 => ("setxattr", sys::set_xattr(&path, name, &value, 0)),
            2 => ("getxattr", sys::get_xattr(&path, name).map(drop)),
            _ => ("removexattr", sys::remove_xattr(&path, name)),
        };
        // user.* is for files and directories only; trusted.* for root only.
        (what, vec![path], result.map_err(io::Error::from), &[Errno::EPERM, Errno::ENODATA])
    }

    fn truncate(&mut self) -> Done {
        let path = self.path();
        let result = nix::unistd::truncate(&path, self.random.below(SIZE) as i64).map_err(io::Error::from);
        ("truncate", vec![path], result, &[Errno::EISDIR, Errno::EINVAL])
    }

    fn change_metadata(&mut self) -> Done {
        let path = self.path();
        let (what, result) = match self.random.below(3) {
            0 => (
                "chmod",
                fs::set_permissions(&path, fs::Permissions::from_mode(0o700 | self.random.below(0o100) as u32)),
            ),
            1 => ("lchown", lchown(&path, None, Some(self.random.below(3) as u32))),
            _ => {
                let time = TimeSpec::new(self.random.below(1 << 30) as i64, self.random.below(1_000_000_000) as i64);
                let follow = UtimensatFlags::NoFollowSymlink;
                ("utimensat", utimensat(AT_FDCWD, &path, &time, &time, follow).map_err(io::Error::from))
            }
        };
        (what, vec![path], result, &[])
    }

    fn list(&mut self) -> Done {
        let path = self.path();
        let result = listed(&path).and_then(|mut names| {
            let count = names.len();
            names.sort();
            names.dedup();
            if names.len() == count { Ok(()) } else { Err(io::Error::other("a name was listed twice")) }
        });
        ("list", vec![path], result, &[])
    }

    fn node(&mut self) -> Done {
        let path = self.path();
        let kind = *self.random.choose(&[SFlag::S_IFIFO, SFlag::S_IFSOCK, SFlag::S_IFCHR]);
        let result = mknod(&path, kind, Mode::from_bits_truncate(0o600), 0).map_err(io::Error::from);
        // Only root may make a device.
        ("mknod", vec![path], result, &[Errno::EEXIST, Errno::EPERM])
    }

    fn copy_range(&mut self) -> Done {
        if self.held.len() < 2 {
            return ("nothing", Vec::new(), Ok(()), &[]);
        }
        let (from, to) = (self.random.below(self.held.len()), self.random.below(self.held.len()));
        let (at, to_at) = (self.random.below(SIZE) as i64, self.random.below(SIZE) as i64);
        let length = self.random.below(50_000);
        let result = sys::copy_range(&self.held[from], at, &self.held[to], to_at, length).map(drop);
        // Overlapping ranges of one file; a file that is only appended to.
        ("copy_file_range", Vec::new(), result.map_err(io::Error::from), &[Errno::EINVAL, Errno::EBADF])
    }

    fn look(&mut self) -> Done {
        let path = self.path();
        let (what, result, expected): (_, _, &[Errno]) = match self.random.below(5) {
            0..2 => ("lstat", fs::symlink_metadata(&path).map(drop), &[]),
            2 => ("stat", fs::metadata(&path).map(drop), &[]),
            3 => ("statfs", nix::sys::statfs::statfs(&path).map(drop).map_err(io::Error::from), &[]),
            _ => ("readlink", fs::read_link(&path).map(drop), &[Errno::EINVAL]),
        };
        (what, vec![path], result, expected)
    }

    fn remove_tree(&mut self) -> Done {
        let path = self.path();
        let result = fs::remove_dir_all(&path);
        // What was listed as a file may be a directory by now.
        ("remove all", vec![path], result, &[Errno::ENOTEMPTY, Errno::EISDIR])
    }
}

fn listed(path: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.file_name())).collect()
}
