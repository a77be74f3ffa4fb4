//! Reading directories with getdents64(2).

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::{check, fault};

/// The buffer for one getdents64 call, in bytes.
const BUFFER: usize = 64 * 1024;
/// The fixed part of `struct linux_dirent64`: d_ino, d_off, d_reclen, d_type.
const HEADER: usize = 19;

/// One raw entry; `.` and `..` are left out.
#[derive(Debug)]
pub struct RawEntry<'a> {
    /// The entry's name.
    pub name: &'a [u8],
    /// The inode number that the directory tells.
    pub ino: u64,
    /// The type (`DT_*`) that the directory tells, perhaps `DT_UNKNOWN`.
    pub kind: u8,
}

/// Calls `each` for every entry of the directory, from its start, until it returns false.
///
/// The descriptor must be a freshly opened, readable one.
pub fn for_each(fd: BorrowedFd<'_>, mut each: impl FnMut(RawEntry<'_>) -> bool) -> Result<(), Errno> {
    let mut buf = vec![0_u8; BUFFER];
    loop {
        fault::point("getdents64")?;
        // SAFETY: the buffer is valid for the length given.
        let filled = check(unsafe { libc::syscall(libc::SYS_getdents64, fd.as_raw_fd(), buf.as_mut_ptr(), buf.len()) })?
            as usize;
        if filled == 0 {
            return Ok(());
        }
        let mut rest = buf.get(..filled).ok_or(Errno::EIO)?;
        while !rest.is_empty() {
            let (entry, len) = parse(rest).ok_or(Errno::EIO)?;
            if entry.name != b"." && entry.name != b".." && !each(entry) {
                return Ok(());
            }
            rest = rest.get(len..).ok_or(Errno::EIO)?;
        }
    }
}

/// The first `struct linux_dirent64` of a buffer and its length.
fn parse(buf: &[u8]) -> Option<(RawEntry<'_>, usize)> {
    let ino = u64::from_ne_bytes(buf.get(..8)?.try_into().ok()?);
    let len = usize::from(u16::from_ne_bytes(buf.get(16..18)?.try_into().ok()?));
    let kind = *buf.get(18)?;
    let name = buf.get(HEADER..len)?;
    let name = name.get(..name.iter().position(|b| *b == 0)?)?;
    Some((RawEntry { name, ino, kind }, len))
}
