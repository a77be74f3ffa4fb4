//! Private clones of a layer's mount: what is mounted below a layer's root, our own mount included, is not seen in them.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use super::check;

const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOATIME: u64 = 0x10;
const MOUNT_ATTR_ATIME_MASK: u64 = 0x70;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// Clones the mount of the directory behind `fd`, rooted there, without what is mounted below it.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `EINVAL` where mounts below are locked, `ENOSYS` before Linux 5.2.
pub fn clone(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as u32 | libc::AT_EMPTY_PATH as u32;
    // SAFETY: the path is a NUL-terminated constant.
    let tree = check(unsafe { libc::syscall(libc::SYS_open_tree, fd.as_raw_fd(), c"".as_ptr(), flags) })?;
    // SAFETY: the kernel just returned this descriptor to us, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(tree as i32) })
}

/// Makes a cloned tree read-only and free of access time updates: the kernel itself then keeps a lower layer unwritten.
pub fn make_read_only(tree: BorrowedFd<'_>) -> Result<(), Errno> {
    let attr = MountAttr {
        set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOATIME,
        clear: MOUNT_ATTR_ATIME_MASK,
        propagation: 0,
        userns: 0,
    };
    let empty: &CStr = c"";
    // SAFETY: `attr` has the layout and size that the call is told.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH,
            &attr,
            size_of::<MountAttr>(),
        )
    })
    .map(|_| ())
}
