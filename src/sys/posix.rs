//! The calls of nix that the layers are read and changed with, each behind the place where a test can have it fail.

use std::os::fd::{AsFd, OwnedFd};

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, FallocateFlags, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, Whence};

use super::fault;

/// open(2).
pub fn open(path: &(impl NixPath + ?Sized), flags: OFlag, mode: Mode) -> Result<OwnedFd, Errno> {
    fault::point("open")?;
    nix::fcntl::open(path, flags, mode)
}

/// openat(2).
pub fn openat(dir: impl AsFd, path: &(impl NixPath + ?Sized), flags: OFlag, mode: Mode) -> Result<OwnedFd, Errno> {
    fault::point("openat")?;
    nix::fcntl::openat(dir, path, flags, mode)
}

/// mkdirat(2).
pub fn mkdirat(dir: impl AsFd, path: &(impl NixPath + ?Sized), mode: Mode) -> Result<(), Errno> {
    fault::point("mkdirat")?;
    nix::sys::stat::mkdirat(dir, path, mode)
}

/// unlinkat(2).
pub fn unlinkat(dir: impl AsFd, path: &(impl NixPath + ?Sized), flag: UnlinkatFlags) -> Result<(), Errno> {
    fault::point("unlinkat")?;
    nix::unistd::unlinkat(dir, path, flag)
}

/// linkat(2).
pub fn linkat<P: NixPath + ?Sized>(
    old_dir: impl AsFd,
    old: &P,
    new_dir: impl AsFd,
    new: &P,
    flags: AtFlags,
) -> Result<(), Errno> {
    fault::point("linkat")?;
    nix::unistd::linkat(old_dir, old, new_dir, new, flags)
}

/// ftruncate(2).
pub fn ftruncate(fd: impl AsFd, size: i64) -> Result<(), Errno> {
    fault::point("ftruncate")?;
    nix::unistd::ftruncate(fd, size)
}

/// fallocate(2).
pub fn fallocate(fd: impl AsFd, flags: FallocateFlags, offset: i64, length: i64) -> Result<(), Errno> {
    fault::point("fallocate")?;
    nix::fcntl::fallocate(fd, flags, offset, length)
}

/// pread(2).
pub fn pread(fd: impl AsFd, buffer: &mut [u8], offset: i64) -> Result<usize, Errno> {
    fault::point("pread")?;
    nix::sys::uio::pread(fd, buffer, offset)
}

/// pwrite(2).
pub fn pwrite(fd: impl AsFd, data: &[u8], offset: i64) -> Result<usize, Errno> {
    fault::point("pwrite")?;
    nix::sys::uio::pwrite(fd, data, offset)
}

/// write(2).
pub fn write(fd: impl AsFd, data: &[u8]) -> Result<usize, Errno> {
    fault::point("write")?;
    nix::unistd::write(fd, data)
}

/// lseek(2).
pub fn lseek(fd: impl AsFd, offset: i64, whence: Whence) -> Result<i64, Errno> {
    fault::point("lseek")?;
    nix::unistd::lseek(fd, offset, whence)
}

/// fsync(2).
pub fn fsync(fd: impl AsFd) -> Result<(), Errno> {
    fault::point("fsync")?;
    nix::unistd::fsync(fd)
}

/// fdatasync(2).
pub fn fdatasync(fd: impl AsFd) -> Result<(), Errno> {
    fault::point("fdatasync")?;
    nix::unistd::fdatasync(fd)
}

/// syncfs(2).
pub fn syncfs(fd: impl AsFd) -> Result<(), Errno> {
    fault::point("syncfs")?;
    nix::unistd::syncfs(fd)
}
