//! What no copy-up can do without, as plain system calls.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use layerfs::sys::copy::{clone_file, copy_range};
use layerfs::sys::xattr::{self, Target};
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::libc;
use nix::sys::stat::{Mode, fchmod, futimens};
use nix::sys::time::TimeSpec;

use super::fixture::{mark, xname};

/// The same directory in a lower and in upper, and what is to be done for a file below it.
pub struct Floor {
    pub lower: PathBuf,
    pub upper: PathBuf,
    /// The file's data is needed.
    pub data: bool,
    /// The filesystem can share blocks.
    pub shares: bool,
}

impl Floor {
    /// Makes the directories of `path` and the file, and the change that it was brought up for.
    pub fn bring_up(&self, path: &str) {
        for (end, _) in path.match_indices('/') {
            let dir = &path[..end];
            std::fs::create_dir(self.upper.join(dir)).unwrap();
            let made = File::open(self.upper.join(dir)).unwrap();
            dress(&made, &File::open(self.lower.join(dir)).unwrap());
        }
        let lower = File::open(self.lower.join(path)).unwrap();
        let place = self.upper.join(path);
        let copy = unnamed_in(place.parent().unwrap());
        let size = lower.metadata().unwrap().len();
        if self.data {
            self.copy_data(&lower, &copy, size);
        } else {
            copy.set_len(size).unwrap();
            xattr::set(Target::Fd(copy.as_fd()), &xname(&mark("metacopy")), b"", 0).unwrap();
        }
        dress(&copy, &lower);
        let unnamed = format!("/proc/self/fd/{}", copy.as_raw_fd());
        nix::unistd::linkat(AT_FDCWD, &*unnamed, AT_FDCWD, &place, AtFlags::AT_SYMLINK_FOLLOW).unwrap();
        match self.data {
            true => copy.write_all_at(b"x", 0).unwrap(),
            false => fchmod(&copy, Mode::S_IRUSR | Mode::S_IWUSR).unwrap(),
        }
    }

    fn copy_data(&self, from: &File, to: &File, size: u64) {
        if self.shares {
            return clone_file(from.as_fd(), to.as_fd()).unwrap();
        }
        let mut at = 0;
        while at < size {
            at += copy_range(from.as_fd(), at, to.as_fd(), at, (size - at) as usize).unwrap() as u64;
        }
    }
}

/// Owner, mode, the mark of its origin and times.
fn dress(copy: &File, lower: &File) {
    let meta = lower.metadata().unwrap();
    nix::unistd::fchown(copy, Some(meta.uid().into()), Some(meta.gid().into())).unwrap();
    xattr::set(Target::Fd(copy.as_fd()), &xname(&mark("origin")), &[0; 29], 0).unwrap();
    fchmod(copy, Mode::from_bits_truncate(meta.mode())).unwrap();
    let mtime = TimeSpec::new(meta.mtime(), meta.mtime_nsec());
    futimens(copy, &TimeSpec::new(meta.atime(), meta.atime_nsec()), &mtime).unwrap();
}

fn unnamed_in(dir: &Path) -> File {
    std::fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(dir).unwrap()
}
