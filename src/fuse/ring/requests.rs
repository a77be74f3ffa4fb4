//! A request's bytes in, its operation run, the answer's bytes out.

use std::time::Duration;

use crate::error::{Errno, Result};
use crate::fuse::convert;
use crate::fuse::operations::{Operations, Value, Write};
use crate::fuse::ring::abi::{self, Answer, Fields, Header, opcode};
use crate::fuse::seek::Seek;
use crate::sys::uring::Request;
use crate::union::{Attr, Caller};

/// What stands for "no such name": node 0, which the kernel remembers for as long as the answer says.
const ABSENT: u64 = 0;

/// Runs a request's operation and has the answer in its payload; returns how long that is. `before_waiting` is called before
/// it waits for other requests.
pub(super) fn serve(operations: &Operations, request: Request<'_>, before_waiting: impl FnOnce()) -> Result<usize> {
    let Request { header, arguments, payload, len } = request;
    let header = Header::decode(header)?;
    let mut given = Fields::of(arguments);
    let (ino, caller) = (header.node, header.caller(0));
    let mut rest = Fields::of(payload.get(..len).ok_or(Errno::EIO)?);
    match header.opcode {
        opcode::LOOKUP => match operations.lookup(ino, rest.name()?)? {
            Some(attr) => entry(operations, payload, &attr),
            None => absent(operations, payload),
        },
        opcode::GETATTR => attributes(operations, payload, &operations.getattr(ino)?),
        opcode::READ | opcode::READDIR | opcode::READDIRPLUS => read(operations, &header, &mut given, payload),
        opcode::WRITE => {
            let written = write(operations, &caller, ino, &mut given, &mut rest)?;
            number(payload, written)
        }
        opcode::SETATTR => {
            let (change, tells_ctime) = abi::setattr(&mut given)?;
            let attr = operations.setattr(&caller, ino, change, tells_ctime)?;
            attributes(operations, payload, &attr)
        }
        opcode::READLINK => {
            let target = operations.readlink(ino)?;
            answered(payload, |answer| answer.bytes(&target))
        }
        opcode::CREATE => {
            let _flags = given.u32()?;
            let (mode, umask) = (given.u32()?, given.u32()?);
            let attr = operations.create(&header.caller(umask), ino, rest.name()?, mode)?;
            created(operations, payload, &attr)
        }
        opcode::MKNOD => {
            let (mode, rdev, umask) = (given.u32()?, given.u32()?, given.u32()?);
            let (caller, rdev) = (header.caller(umask), convert::decode_dev(rdev));
            let attr = operations.mknod(&caller, ino, rest.name()?, mode, rdev)?;
            entry(operations, payload, &attr)
        }
        opcode::MKDIR => {
            let (mode, umask) = (given.u32()?, given.u32()?);
            let attr = operations.mkdir(&header.caller(umask), ino, rest.name()?, mode)?;
            entry(operations, payload, &attr)
        }
        opcode::SYMLINK => {
            let (name, target) = (rest.name()?, rest.name()?);
            let attr = operations.symlink(&caller, ino, name, target)?;
            entry(operations, payload, &attr)
        }
        opcode::LINK => {
            let attr = operations.link(given.u64()?, ino, rest.name()?)?;
            entry(operations, payload, &attr)
        }
        opcode::UNLINK => operations.unlink(ino, rest.name()?).map(empty),
        opcode::RMDIR => operations.rmdir(ino, rest.name()?).map(empty),
        opcode::RENAME | opcode::RENAME2 => {
            let to = given.u64()?;
            let flags = if header.opcode == opcode::RENAME2 { given.u32()? } else { 0 };
            let (old, new) = (rest.name()?, rest.name()?);
            operations.rename((ino, old), (to, new), flags).map(empty)
        }
        opcode::OPEN => {
            operations.open(&caller, ino, given.i32()?)?;
            answered(payload, |answer| answer.open_out(0))
        }
        opcode::OPENDIR => {
            let keep = operations.opendir(ino)?;
            let flags = if keep { abi::CACHE_DIR | abi::KEEP_CACHE } else { 0 };
            answered(payload, |answer| answer.open_out(flags))
        }
        opcode::RELEASE => {
            given.skip(8)?;
            operations.release(ino, given.i32()?);
            Ok(0)
        }
        opcode::RELEASEDIR => operations.releasedir(ino).map(empty),
        opcode::FSYNC | opcode::FSYNCDIR => {
            given.skip(8)?;
            let datasync = given.u32()? & abi::FSYNC_FDATASYNC != 0;
            let sync = if header.opcode == opcode::FSYNC { Operations::fsync } else { Operations::fsyncdir };
            sync(operations, ino, datasync).map(empty)
        }
        opcode::STATFS => {
            let st = operations.statfs()?;
            answered(payload, |answer| answer.statfs_out(&st))
        }
        opcode::SETXATTR => {
            let (size, flags) = (given.u32()?, given.i32()?);
            let (name, value) = (rest.name()?, rest.bytes(size)?);
            operations.setxattr(&caller, ino, name, value, flags).map(empty)
        }
        opcode::GETXATTR => {
            let value = operations.getxattr(ino, rest.name()?, given.u32()?)?;
            value_out(payload, &value)
        }
        opcode::LISTXATTR => value_out(payload, &operations.listxattr(&caller, ino, given.u32()?)?),
        opcode::REMOVEXATTR => operations.removexattr(ino, rest.name()?).map(empty),
        opcode::FALLOCATE => {
            given.skip(8)?;
            let (offset, length, mode) = (given.u64()?, given.u64()?, given.i32()?);
            operations.fallocate(ino, mode, offset, length).map(empty)
        }
        opcode::LSEEK => {
            given.skip(8)?;
            let seek = Seek { ino, offset: given.i64()?, whence: given.i32()? };
            let at = lseek(operations, seek, before_waiting)?;
            answered(payload, |answer| answer.u64(at.cast_unsigned()))
        }
        opcode::COPY_FILE_RANGE => {
            given.skip(8)?;
            let (from, out) = (given.u64()?, given.u64()?);
            given.skip(8)?;
            let (to, length) = (given.u64()?, given.u64()?);
            let copied = operations.copy_file_range((ino, from), (out, to), length)?;
            number(payload, copied)
        }
        opcode::IOCTL => Err(Errno::ENOTTY),
        // FLUSH, because nothing is held back by us; ACCESS and POLL, which the kernel answers by itself; and what is newer.
        _ => Err(Errno::ENOSYS),
    }
}

fn empty(_done: ()) -> usize {
    0
}

/// Writes an answer; returns how long it is.
fn answered(payload: &mut [u8], write: impl FnOnce(&mut Answer<'_>) -> Result<()>) -> Result<usize> {
    let mut answer = Answer::into(payload);
    write(&mut answer)?;
    Ok(answer.len())
}

fn entry(operations: &Operations, payload: &mut [u8], attr: &Attr) -> Result<usize> {
    answered(payload, |answer| answer.entry_out(attr.ino, attr, operations.ttl()))
}

fn absent(operations: &Operations, payload: &mut [u8]) -> Result<usize> {
    answered(payload, |answer| answer.entry_out(ABSENT, &Attr::default(), operations.ttl()))
}

fn attributes(operations: &Operations, payload: &mut [u8], attr: &Attr) -> Result<usize> {
    answered(payload, |answer| answer.attr_out(attr, operations.ttl()))
}

fn created(operations: &Operations, payload: &mut [u8], attr: &Attr) -> Result<usize> {
    answered(payload, |answer| {
        answer.entry_out(attr.ino, attr, operations.ttl())?;
        answer.open_out(abi::KEEP_CACHE)
    })
}

/// A number of bytes, with its padding.
fn number(payload: &mut [u8], bytes: usize) -> Result<usize> {
    answered(payload, |answer| {
        answer.u32(bytes as u32)?;
        answer.u32(0)
    })
}

fn value_out(payload: &mut [u8], value: &Value) -> Result<usize> {
    match value {
        Value::Size(size) => number(payload, *size as usize),
        Value::Bytes(bytes) => answered(payload, |answer| answer.bytes(bytes)),
    }
}

/// Data, or a listing.
fn read(operations: &Operations, header: &Header, given: &mut Fields<'_>, payload: &mut [u8]) -> Result<usize> {
    given.skip(8)?;
    let (offset, size) = (given.u64()?, given.u32()?);
    let room = payload.get_mut(..size as usize).ok_or(Errno::EIO)?;
    match header.opcode {
        opcode::READ => operations.read(header.node, offset, room),
        opcode::READDIR => readdir(operations, header.node, offset, room),
        _ => readdirplus(operations, header.node, offset, room),
    }
}

fn lseek(operations: &Operations, seek: Seek, before_waiting: impl FnOnce()) -> Result<i64> {
    if let Some(at) = operations.lseek(seek)? {
        return Ok(at);
    }
    before_waiting();
    operations.lseek_after_pages(seek)
}

fn write(
    operations: &Operations,
    caller: &Caller,
    ino: u64,
    given: &mut Fields<'_>,
    rest: &mut Fields<'_>,
) -> Result<usize> {
    given.skip(8)?;
    let (offset, size, flags) = (given.u64()?, given.u32()?, given.u32()?);
    let write = Write { cached: flags & abi::WRITE_CACHE != 0, kill_setid: flags & abi::WRITE_KILL_SUIDGID != 0 };
    operations.write(caller, ino, offset, rest.bytes(size)?, write)
}

fn readdir(operations: &Operations, ino: u64, offset: u64, room: &mut [u8]) -> Result<usize> {
    answered(room, |answer| operations.readdir(ino, offset, &mut |entry| answer.dirent(entry)))
}

fn readdirplus(operations: &Operations, ino: u64, offset: u64, room: &mut [u8]) -> Result<usize> {
    answered(room, |answer| {
        operations.readdirplus(ino, offset, &mut |entry, attr| {
            // What can't be looked up is asked for again, and then fails.
            let ttl = if entry.resolved { operations.ttl() } else { Duration::ZERO };
            answer.direntplus(entry, attr, ttl)
        })
    })
}
