//! Files that the kernel's FUSE reads and writes by itself, in place of a daemon ("passthrough", Linux 6.9).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// `struct fuse_backing_map` of linux/fuse.h.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

mod request {
    nix::ioctl_write_ptr!(backing_open, 229, 1, super::BackingMap);
    nix::ioctl_write_ptr!(backing_close, 229, 2, u32);
}

/// Whether the kernel takes files from us, by one that is given back at once: what it says when a connection starts, it says to
/// those as well who lack the privilege.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN in the initial user namespace, `EOPNOTSUPP` or `ENOTTY` where the kernel has no passthrough.
pub fn probe(device: BorrowedFd<'_>) -> Result<(), Errno> {
    let file = nix::sys::memfd::memfd_create(c"probe", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let map = BackingMap { fd: file.as_fd().as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the device is an open /dev/fuse, and `map` what this request takes.
    let id = unsafe { request::backing_open(device.as_raw_fd(), &map) }?;
    // SAFETY: as above; the number is the one that the kernel gave for the file.
    unsafe { request::backing_close(device.as_raw_fd(), &id.cast_unsigned()) }.map(drop)
}
