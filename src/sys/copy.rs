//! Copying data between files, cheapest way first.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::{check, fault};

/// Shares all blocks of `from` with `to` (FICLONE).
///
/// # Errors
/// `EOPNOTSUPP`, `EXDEV` or `EINVAL` where the filesystem can't.
pub fn clone_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    fault::point("ioctl(FICLONE)")?;
    // SAFETY: FICLONE takes a descriptor by value.
    check(unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) }.into()).map(|_| ())
}

/// copy_file_range(2) between two positions; returns how many bytes it copied, 0 at the end of `from`.
pub fn copy_range(
    from: BorrowedFd<'_>,
    from_offset: u64,
    to: BorrowedFd<'_>,
    to_offset: u64,
    len: usize,
) -> Result<usize, Errno> {
    fault::point("copy_file_range")?;
    let (mut off_in, mut off_out) = (from_offset as i64, to_offset as i64);
    // SAFETY: both offsets are valid for the call's reads and writes.
    check(unsafe { libc::copy_file_range(from.as_raw_fd(), &mut off_in, to.as_raw_fd(), &mut off_out, len, 0) } as _)
        .map(|n| n as usize)
}
