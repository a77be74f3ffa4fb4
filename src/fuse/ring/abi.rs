//! The protocol's bytes (include/uapi/linux/fuse.h): fields out of requests, structures into answers.

use std::time::Duration;

use crate::error::{Errno, Result};
use crate::fuse::convert;
use crate::sys::uring::IN_HEADER;
use crate::union::{Attr, Caller, DirEntry, SetAttr, SetTime, StatFs, Time};

/// The numbers of the operations (`enum fuse_opcode`).
pub(super) mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const IOCTL: u32 = 39;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
}

/// Flags of an answer to OPEN, OPENDIR and CREATE.
pub(super) const KEEP_CACHE: u32 = 1 << 1;
pub(super) const CACHE_DIR: u32 = 1 << 3;
/// Flags of WRITE.
pub(super) const WRITE_CACHE: u32 = 1 << 0;
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// Flag of FSYNC.
pub(super) const FSYNC_FDATASYNC: u32 = 1 << 0;

/// Flags of SETATTR.
const FATTR_MODE: u32 = 1 << 0;
const FATTR_UID: u32 = 1 << 1;
const FATTR_GID: u32 = 1 << 2;
const FATTR_SIZE: u32 = 1 << 3;
const FATTR_ATIME: u32 = 1 << 4;
const FATTR_MTIME: u32 = 1 << 5;
const FATTR_ATIME_NOW: u32 = 1 << 7;
const FATTR_MTIME_NOW: u32 = 1 << 8;
const FATTR_CTIME: u32 = 1 << 10;

/// An entry's type in a listing is that of its mode, without the bits below.
const D_TYPE_SHIFT: u32 = 12;

/// The fields of a structure, in their order.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Errno::EIO)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32> {
        self.take().map(i32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64> {
        self.take().map(i64::from_ne_bytes)
    }

    /// Passes over so many bytes.
    pub(super) fn skip(&mut self, bytes: usize) -> Result<()> {
        self.0 = self.0.get(bytes..).ok_or(Errno::EIO)?;
        Ok(())
    }

    /// Bytes up to a NUL, which is passed over.
    pub(super) fn name(&mut self) -> Result<&'a [u8]> {
        let end = self.0.iter().position(|b| *b == 0).ok_or(Errno::EIO)?;
        let name = self.0.get(..end).ok_or(Errno::EIO)?;
        self.skip(end + 1)?;
        Ok(name)
    }

    /// So many bytes.
    pub(super) fn bytes(&mut self, len: u32) -> Result<&'a [u8]> {
        let bytes = self.0.get(..len as usize).ok_or(Errno::EIO)?;
        self.skip(bytes.len())?;
        Ok(bytes)
    }
}

/// `struct fuse_in_header`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub opcode: u32,
    pub node: u64,
    caller: Caller,
}

impl Header {
    pub(super) fn decode(bytes: &[u8; IN_HEADER]) -> Result<Self> {
        let mut fields = Fields::of(bytes);
        let _len = fields.u32()?;
        let opcode = fields.u32()?;
        let _unique = fields.u64()?;
        let node = fields.u64()?;
        let caller = Caller { uid: fields.u32()?, gid: fields.u32()?, pid: fields.u32()?, umask: 0 };
        Ok(Self { opcode, node, caller })
    }

    pub(super) fn caller(&self, umask: u32) -> Caller {
        Caller { umask, ..self.caller }
    }
}

/// What `struct fuse_setattr_in` changes, and whether it tells a ctime.
pub(super) fn setattr(fields: &mut Fields<'_>) -> Result<(SetAttr, bool)> {
    let valid = fields.u32()?;
    let has = |flag| valid & flag != 0;
    let _padding = fields.u32()?;
    let _handle = fields.u64()?;
    let size = fields.u64()?;
    let _lock_owner = fields.u64()?;
    let (atime, mtime, _ctime) = (fields.i64()?, fields.i64()?, fields.i64()?);
    let (atime_nsec, mtime_nsec, _ctime_nsec) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let mode = fields.u32()?;
    let _unused = fields.u32()?;
    let (uid, gid) = (fields.u32()?, fields.u32()?);
    let time = |given, now, sec, nsec| match (has(given), has(now)) {
        (false, _) => None,
        (true, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::At(Time { sec, nsec })),
    };
    let change = SetAttr {
        mode: has(FATTR_MODE).then_some(mode),
        uid: has(FATTR_UID).then_some(uid),
        gid: has(FATTR_GID).then_some(gid),
        size: has(FATTR_SIZE).then_some(size),
        atime: time(FATTR_ATIME, FATTR_ATIME_NOW, atime, atime_nsec),
        mtime: time(FATTR_MTIME, FATTR_MTIME_NOW, mtime, mtime_nsec),
        before_write: false,
    };
    Ok((change, has(FATTR_CTIME)))
}

/// An answer, written from the front of its room.
pub(super) struct Answer<'a> {
    room: &'a mut [u8],
    len: usize,
}

impl<'a> Answer<'a> {
    pub(super) fn into(room: &'a mut [u8]) -> Self {
        Self { room, len: 0 }
    }

    /// How long it is, in bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let end = self.len.checked_add(bytes.len()).ok_or(Errno::EIO)?;
        self.room.get_mut(self.len..end).ok_or(Errno::EIO)?.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    pub(super) fn u32(&mut self, value: u32) -> Result<()> {
        self.bytes(&value.to_ne_bytes())
    }

    pub(super) fn u64(&mut self, value: u64) -> Result<()> {
        self.bytes(&value.to_ne_bytes())
    }

    fn i64(&mut self, value: i64) -> Result<()> {
        self.bytes(&value.to_ne_bytes())
    }

    /// `struct fuse_attr`.
    fn attr(&mut self, attr: &Attr) -> Result<()> {
        self.u64(attr.ino)?;
        self.u64(attr.size)?;
        self.u64(attr.blocks)?;
        self.i64(attr.atime.sec)?;
        self.i64(attr.mtime.sec)?;
        self.i64(attr.ctime.sec)?;
        self.u32(attr.atime.nsec)?;
        self.u32(attr.mtime.nsec)?;
        self.u32(attr.ctime.nsec)?;
        self.u32(attr.mode)?;
        self.u32(attr.nlink)?;
        self.u32(attr.uid)?;
        self.u32(attr.gid)?;
        self.u32(convert::encode_dev(attr.rdev))?;
        self.u32(attr.blksize)?;
        self.u32(0)
    }

    /// `struct fuse_attr_out`.
    pub(super) fn attr_out(&mut self, attr: &Attr, ttl: Duration) -> Result<()> {
        self.u64(ttl.as_secs())?;
        self.u32(ttl.subsec_nanos())?;
        self.u32(0)?;
        self.attr(attr)
    }

    /// `struct fuse_entry_out`. Node numbers are never used for another object while the kernel knows them: there is one
    /// generation.
    pub(super) fn entry_out(&mut self, node: u64, attr: &Attr, ttl: Duration) -> Result<()> {
        self.u64(node)?;
        self.u64(0)?;
        self.u64(ttl.as_secs())?;
        self.u64(ttl.as_secs())?;
        self.u32(ttl.subsec_nanos())?;
        self.u32(ttl.subsec_nanos())?;
        self.attr(attr)
    }

    /// `struct fuse_open_out`.
    pub(super) fn open_out(&mut self, flags: u32) -> Result<()> {
        self.u64(0)?;
        self.u32(flags)?;
        self.u32(0)
    }

    /// `struct fuse_statfs_out`.
    pub(super) fn statfs_out(&mut self, st: &StatFs) -> Result<()> {
        let (blocks, free, available) = st.blocks;
        let (files, files_free) = st.files;
        for number in [blocks, free, available, files, files_free] {
            self.u64(number)?;
        }
        for number in [st.bsize, st.namelen, st.frsize] {
            self.u32(number)?;
        }
        self.bytes(&[0; 28])
    }

    /// `struct fuse_dirent`. False, and nothing written, if it has no room.
    pub(super) fn dirent(&mut self, entry: &DirEntry<'_>) -> bool {
        self.record(|answer| answer.dirent_fields(entry))
    }

    /// `struct fuse_direntplus`. False, and nothing written, if it has no room.
    pub(super) fn direntplus(&mut self, entry: &DirEntry<'_>, attr: &Attr, ttl: Duration) -> bool {
        self.record(|answer| {
            answer.entry_out(attr.ino, attr, ttl)?;
            answer.dirent_fields(entry)
        })
    }

    fn dirent_fields(&mut self, entry: &DirEntry<'_>) -> Result<()> {
        self.u64(entry.ino)?;
        self.u64(entry.next)?;
        self.u32(entry.name.len() as u32)?;
        self.u32(entry.kind.to_mode() >> D_TYPE_SHIFT)?;
        self.bytes(entry.name)
    }

    /// Writes a record of a listing, up to a multiple of eight bytes, or nothing of it.
    fn record(&mut self, write: impl FnOnce(&mut Self) -> Result<()>) -> bool {
        let before = self.len;
        let padded = write(self).and_then(|()| {
            let padding = self.len.next_multiple_of(8) - self.len;
            self.bytes([0; 8].get(..padding).unwrap_or_default())
        });
        if padded.is_err() {
            self.len = before;
        }
        padded.is_ok()
    }
}
