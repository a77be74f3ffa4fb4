//! Copying a file's data into upper, the cheapest way that the two filesystems have: sharing blocks (FICLONE), else
//! copy_file_range, else reading and writing. Holes stay holes.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};

use nix::unistd::Whence;
use parking_lot::RwLock;

use crate::error::{Errno, Result};
use crate::sys;
use crate::sys::file::Stat;

/// How much one copy_file_range or read moves, in bytes.
const CHUNK: usize = 8 << 20;
/// The buffer of a copy by read and write, in bytes.
const BUFFER: usize = 1 << 20;
/// Files up to this size, a block, are read and written at once: that is cheaper than to share the block (measured: 4 us instead
/// of 10 on xfs, 5 instead of 9 on btrfs), which the first write would undo anyway.
const SMALL: usize = 4096;

/// How the bytes of a file are copied; the cheapest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum CopyKind {
    /// The blocks are shared (FICLONE).
    Reflink,
    /// By copy_file_range(2).
    CopyFileRange,
    /// By read(2) and write(2).
    ReadWrite,
}

impl From<CopyKind> for &'static str {
    fn from(kind: CopyKind) -> Self {
        match kind {
            CopyKind::Reflink => "reflink",
            CopyKind::CopyFileRange => "copy_file_range",
            CopyKind::ReadWrite => "read_write",
        }
    }
}

/// Knows which way of copying works from which filesystem.
#[derive(Debug)]
pub struct Copier {
    /// What upper's filesystem can do with files of its own.
    own: CopyKind,
    /// Where data is mostly copied from.
    main: u64,
    /// The devices from which another way than `own` has to be taken.
    others: RwLock<HashMap<u64, CopyKind>>,
}

impl Copier {
    /// Tries with two empty unnamed files in `stage`, a directory of ours on upper's filesystem, whether that can share blocks.
    /// `lowers` are the devices of the lowers, the top one first, each with whether it is of upper's filesystem: only there can
    /// blocks be shared, and almost only there can the kernel copy by itself.
    pub(super) fn probe(stage: BorrowedFd<'_>, lowers: &[(u64, bool)]) -> Self {
        let share = || {
            let [from, to] = [sys::file::open_unnamed(stage, 0o600)?, sys::file::open_unnamed(stage, 0o600)?];
            sys::copy::clone_file(from.as_fd(), to.as_fd())
        };
        let own = if share().is_ok() { CopyKind::Reflink } else { CopyKind::CopyFileRange };
        let main = lowers.iter().find(|(_, same)| *same).or(lowers.first()).map_or(0, |(dev, _)| *dev);
        let foreign = lowers.iter().filter(|(_, same)| !same).map(|(dev, _)| (*dev, CopyKind::ReadWrite)).collect();
        Self { own, main, others: RwLock::new(foreign) }
    }

    /// The way in which data is mostly copied.
    pub fn way(&self) -> CopyKind {
        self.way_from(self.main)
    }

    fn way_from(&self, dev: u64) -> CopyKind {
        self.others.read().get(&dev).copied().unwrap_or(self.own)
    }

    /// Remembers what an error says of all files of a device, if it does: others are about that one file.
    fn learn(&self, dev: u64, failed: CopyKind, error: Errno) {
        let next = match failed {
            CopyKind::Reflink => CopyKind::CopyFileRange,
            CopyKind::CopyFileRange | CopyKind::ReadWrite => CopyKind::ReadWrite,
        };
        if matches!(error, Errno::EXDEV | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENOTTY) {
            self.others.write().insert(dev, next);
        }
    }

    /// Copies the data of the file `from`, whose status is `st`, into the empty file `to`; returns how.
    pub(super) fn copy(&self, from: BorrowedFd<'_>, st: &Stat, to: BorrowedFd<'_>) -> Result<CopyKind> {
        let way = self.way_from(st.dev);
        if st.size == 0 {
            return Ok(way);
        }
        // One without any block may be nothing but a hole.
        if st.size <= SMALL as u64 && st.blocks > 0 {
            return read_write(from, to, (0, st.size), &mut [0; SMALL]).map(|()| CopyKind::ReadWrite);
        }
        if way == CopyKind::Reflink {
            match sys::copy::clone_file(from, to) {
                Ok(()) => return Ok(CopyKind::Reflink),
                Err(e) => self.learn(st.dev, CopyKind::Reflink, e),
            }
        }
        let mut kind = way.max(CopyKind::CopyFileRange);
        let size = i64::try_from(st.size).map_err(|_| Errno::EFBIG)?;
        let mut at = 0;
        while let Some((start, end)) = next_data(from, at, size)? {
            self.copy_extent((from, st.dev), to, start as u64, end as u64, &mut kind)?;
            at = end;
        }
        if at < size {
            sys::posix::ftruncate(to, size)?;
        }
        Ok(kind)
    }

    /// Copies one stretch; `kind` falls back to read and write for good where copy_file_range can't.
    fn copy_extent(
        &self,
        (from, dev): (BorrowedFd<'_>, u64),
        to: BorrowedFd<'_>,
        mut at: u64,
        end: u64,
        kind: &mut CopyKind,
    ) -> Result<()> {
        while at < end && *kind == CopyKind::CopyFileRange {
            let len = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            match sys::copy::copy_range(from, at, to, at, len) {
                // The file got shorter underneath, or this filesystem claims so: read and write find out.
                Ok(0) => *kind = CopyKind::ReadWrite,
                Err(e @ (Errno::EXDEV | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS | Errno::EBADF)) => {
                    self.learn(dev, CopyKind::CopyFileRange, e);
                    *kind = CopyKind::ReadWrite;
                }
                Ok(n) => at += n as u64,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
        if at == end {
            return Ok(());
        }
        let mut buf = vec![0; BUFFER.min(usize::try_from(end - at).unwrap_or(BUFFER))];
        read_write(from, to, (at, end), &mut buf)
    }
}

/// The next stretch of data at or after `at`.
fn next_data(fd: BorrowedFd<'_>, at: i64, size: i64) -> Result<Option<(i64, i64)>> {
    if at >= size {
        return Ok(None);
    }
    let start = match sys::posix::lseek(fd, at, Whence::SeekData) {
        Ok(start) => start,
        Err(Errno::ENXIO) => return Ok(None),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(Some((at, size))),
        Err(e) => return Err(e),
    };
    let end = sys::posix::lseek(fd, start, Whence::SeekHole)?;
    Ok((start < size).then_some((start, end.min(size))))
}

/// Copies a stretch through a buffer; less of it if the file has become shorter.
fn read_write(from: BorrowedFd<'_>, to: BorrowedFd<'_>, (mut at, end): (u64, u64), buf: &mut [u8]) -> Result<()> {
    while at < end {
        let room = buf.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let room = buf.get_mut(..room).ok_or(Errno::EIO)?;
        let n = sys::posix::pread(from, room, at as i64)?;
        let Some(mut data) = room.get(..n).filter(|data| !data.is_empty()) else { break };
        while !data.is_empty() {
            let n = sys::posix::pwrite(to, data, at as i64)?;
            data = data.get(n..).unwrap_or_default();
            at += n as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_filesystem_cannot_do_is_remembered_and_what_a_file_cannot_is_not() {
        let copier = Copier { own: CopyKind::Reflink, main: 1, others: RwLock::default() };
        copier.learn(1, CopyKind::Reflink, Errno::EINVAL);
        assert_eq!(copier.way(), CopyKind::Reflink);
        copier.learn(1, CopyKind::Reflink, Errno::EOPNOTSUPP);
        assert_eq!(copier.way(), CopyKind::CopyFileRange);
        copier.learn(1, CopyKind::CopyFileRange, Errno::EXDEV);
        assert_eq!(copier.way(), CopyKind::ReadWrite);
        assert_eq!(copier.way_from(2), CopyKind::Reflink, "another filesystem");
    }

    #[test]
    fn a_lower_of_uppers_filesystem_tells_the_way_and_others_are_read_and_written() {
        let dir = tempfile::tempdir().unwrap();
        let dir = std::fs::File::open(dir.path()).unwrap();
        let copier = Copier::probe(dir.as_fd(), &[(1, false), (2, true)]);
        assert_eq!(copier.way(), copier.own);
        assert_eq!(copier.way_from(1), CopyKind::ReadWrite);
        assert_eq!(Copier::probe(dir.as_fd(), &[(1, false)]).way(), CopyKind::ReadWrite);
    }
}
