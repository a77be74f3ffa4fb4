//! File handles (inode and generation) and filesystem uuids: the identity of an object beyond its inode number.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use super::{check, fault};

/// The longest handle that the kernel hands out, in bytes (`MAX_HANDLE_SZ`).
const MAX_HANDLE: usize = 128;

/// A file handle as name_to_handle_at(2) gives it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileHandle {
    /// The filesystem's handle type.
    pub kind: i32,
    /// The handle's bytes.
    pub bytes: Vec<u8>,
}

/// `struct file_handle` of fcntl.h with room for the longest handle.
#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    handle: [u8; MAX_HANDLE],
}

/// The handle of `name` in `dir`, or of `dir` itself for an empty name.
///
/// # Errors
/// `EOPNOTSUPP` on a filesystem without handles.
pub fn of(dir: BorrowedFd<'_>, name: &CStr) -> Result<FileHandle, Errno> {
    fault::point("name_to_handle_at")?;
    let mut raw = RawHandle { bytes: MAX_HANDLE as u32, kind: 0, handle: [0; MAX_HANDLE] };
    let mut mount_id = 0_i32;
    let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    // SAFETY: `raw` has the layout and the room that its first field promises.
    check(unsafe {
        libc::syscall(libc::SYS_name_to_handle_at, dir.as_raw_fd(), name.as_ptr(), &mut raw, &mut mount_id, flags)
    })?;
    let bytes = raw.handle.get(..raw.bytes as usize).ok_or(Errno::EOVERFLOW)?;
    Ok(FileHandle { kind: raw.kind, bytes: bytes.to_vec() })
}

/// Opens an object by its handle, as an `O_PATH` descriptor; needs CAP_DAC_READ_SEARCH.
///
/// # Errors
/// `ESTALE` when the object is gone, `EPERM` without the privilege.
pub fn open(mount: BorrowedFd<'_>, handle: &FileHandle) -> Result<OwnedFd, Errno> {
    fault::point("open_by_handle_at")?;
    if handle.bytes.len() > MAX_HANDLE {
        return Err(Errno::EINVAL);
    }
    let mut raw = RawHandle { bytes: handle.bytes.len() as u32, kind: handle.kind, handle: [0; MAX_HANDLE] };
    for (to, from) in raw.handle.iter_mut().zip(&handle.bytes) {
        *to = *from;
    }
    // SAFETY: `raw` has the layout and the length that its first field promises.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw,
            libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC,
        )
    })?;
    // SAFETY: the kernel just returned this descriptor to us, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The uuid of the filesystem that a directory is on, all zero where the kernel (before 6.9) or the filesystem tells none.
pub fn fs_uuid(dir: BorrowedFd<'_>) -> [u8; 16] {
    /// `struct fsuuid2` of linux/fs.h.
    #[repr(C)]
    struct FsUuid2 {
        len: u8,
        uuid: [u8; 16],
    }
    const FS_IOC_GETFSUUID: libc::c_ulong = 0x8011_1500;
    let mut answer = FsUuid2 { len: 0, uuid: [0; 16] };
    let Ok(readable) = nix::fcntl::openat(
        dir,
        c".",
        nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    ) else {
        return [0; 16];
    };
    // SAFETY: the ioctl writes one `struct fsuuid2`, which `answer` is.
    let ret = unsafe { libc::ioctl(readable.as_raw_fd(), FS_IOC_GETFSUUID, &mut answer) };
    if ret == 0 && answer.len == 16 { answer.uuid } else { btrfs_uuid(readable.as_fd()) }
}

/// btrfs answers its own question only.
fn btrfs_uuid(dir: BorrowedFd<'_>) -> [u8; 16] {
    /// `struct btrfs_ioctl_fs_info_args` of linux/btrfs.h.
    #[repr(C)]
    struct FsInfo {
        max_id: u64,
        num_devices: u64,
        fsid: [u8; 16],
        rest: [u8; 992],
    }
    const BTRFS_IOC_FS_INFO: libc::c_ulong = 0x8400_941f;
    let mut info = FsInfo { max_id: 0, num_devices: 0, fsid: [0; 16], rest: [0; 992] };
    // SAFETY: the ioctl reads and writes one `struct btrfs_ioctl_fs_info_args`, whose 1024 bytes `info` has.
    let ret = unsafe { libc::ioctl(dir.as_raw_fd(), BTRFS_IOC_FS_INFO, &mut info) };
    if ret == 0 { info.fsid } else { [0; 16] }
}
