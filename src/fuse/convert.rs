//! Between the protocol's types and ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, Request, TimeOrNow};

use crate::error::{Errno, Result};
use crate::union::{Attr, Caller, FileKind, SetTime, Time};

pub(super) fn errno(e: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(e as i32)
}

pub(super) fn caller(req: &Request, umask: u32) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid(), umask }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::Directory => FileType::Directory,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Regular => FileType::RegularFile,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Socket => FileType::Socket,
    }
}

pub(super) fn attr(attr: &Attr) -> Result<FileAttr> {
    Ok(FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind()?),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: encode_dev(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    })
}

/// What stands for "no such name": node 0, which the kernel remembers for as long as the answer says.
pub(super) fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// The kernel's 32-bit form of a device number (new_encode_dev).
pub(super) fn encode_dev(dev: u64) -> u32 {
    let (major, minor) = (libc::major(dev), libc::minor(dev));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// A device number from the kernel's 32-bit form (new_decode_dev).
pub(super) fn decode_dev(dev: u32) -> u64 {
    libc::makedev((dev & 0xfff00) >> 8, dev & 0xff | dev >> 12 & 0xfff00)
}

fn system_time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(time.nsec.into());
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let whole = if time.sec >= 0 { UNIX_EPOCH.checked_add(seconds) } else { UNIX_EPOCH.checked_sub(seconds) };
    whole.and_then(|t| t.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// fuser 0.18 decodes a time before the epoch as epoch - (-sec + nsec), where the protocol means epoch + sec + nsec; both
/// parts can be told apart again.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    let at = match time {
        TimeOrNow::Now => return SetTime::Now,
        TimeOrNow::SpecificTime(at) => at,
    };
    SetTime::At(match at.duration_since(UNIX_EPOCH) {
        Ok(after) => Time { sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nsec: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            let sec = i64::try_from(before.as_secs()).map_or(i64::MIN, |sec| -sec);
            Time { sec, nsec: before.subsec_nanos() }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_keep_their_nanoseconds() {
        // What fuser makes of sec -2, nsec 500,000,000, which is 1.5 seconds before the epoch.
        let decoded = UNIX_EPOCH - Duration::new(2, 500_000_000);
        let time = Time { sec: -2, nsec: 500_000_000 };
        assert_eq!(set_time(TimeOrNow::SpecificTime(decoded)), SetTime::At(time));
        assert_eq!(system_time(time), UNIX_EPOCH - Duration::from_millis(1500));
    }

    #[test]
    fn device_numbers_survive_both_ways() {
        for (major, minor) in [(1, 3), (8, 0), (254, 1000), (4095, 0xfffff), (0, 0)] {
            let dev = libc::makedev(major, minor);
            assert_eq!(decode_dev(encode_dev(dev)), dev, "{major}:{minor}");
        }
    }
}
