//! Status and opening of single objects, by descriptor and one name, never through a symlink.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

use super::{check, fault, trace};

/// What stat(2) tells of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Device of the filesystem (or subvolume) that the object is on.
    pub dev: u64,
    /// Inode number there.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, for device nodes.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Allocated 512-byte blocks.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// Access time: seconds since the epoch and nanoseconds.
    pub atime: (i64, u32),
    /// Modification time.
    pub mtime: (i64, u32),
    /// Status change time.
    pub ctime: (i64, u32),
    /// Nobody may change it (`chattr +i`).
    pub immutable: bool,
    /// It may only grow (`chattr +a`).
    pub append_only: bool,
}

impl Stat {
    /// The type bits of the mode.
    pub fn format(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.format() == libc::S_IFDIR
    }

    /// Whether its name and attributes are not to be changed.
    pub fn is_protected(&self) -> bool {
        self.immutable || self.append_only
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.format() == libc::S_IFREG
    }
}

impl From<libc::statx> for Stat {
    fn from(st: libc::statx) -> Self {
        let time = |time: libc::statx_timestamp| (time.tv_sec, time.tv_nsec);
        let has = |attribute: i32| st.stx_attributes & attribute as u64 != 0;
        Self {
            dev: libc::makedev(st.stx_dev_major, st.stx_dev_minor),
            ino: st.stx_ino,
            mode: st.stx_mode.into(),
            nlink: st.stx_nlink,
            uid: st.stx_uid,
            gid: st.stx_gid,
            rdev: libc::makedev(st.stx_rdev_major, st.stx_rdev_minor),
            size: st.stx_size,
            blocks: st.stx_blocks,
            blksize: st.stx_blksize,
            atime: time(st.stx_atime),
            mtime: time(st.stx_mtime),
            ctime: time(st.stx_ctime),
            immutable: has(libc::STATX_ATTR_IMMUTABLE),
            append_only: has(libc::STATX_ATTR_APPEND),
        }
    }
}

/// The status of `name` in `dir`, not following a symlink nor triggering an automount.
pub fn stat_at(dir: BorrowedFd<'_>, name: &CStr) -> Result<Stat, Errno> {
    fault::point("statx")?;
    statx(dir, name, libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT)
}

/// The status of the object behind a descriptor.
pub fn stat(fd: impl AsFd) -> Result<Stat, Errno> {
    fault::point("statx")?;
    statx(fd.as_fd(), c"", libc::AT_EMPTY_PATH)
}

fn statx(dir: BorrowedFd<'_>, name: &CStr, flags: i32) -> Result<Stat, Errno> {
    // SAFETY: an all-zero statx is a valid value of that plain C struct.
    let mut st: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: `name` is NUL-terminated and `st` is valid for the write.
    let ret = unsafe { libc::statx(dir.as_raw_fd(), name.as_ptr(), flags, libc::STATX_BASIC_STATS, &mut st) };
    check(ret.into()).map(|_| Stat::from(st))
}

/// How far an open may reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Anywhere beneath the directory.
    Beneath,
    /// Beneath the directory and on its own mount only.
    SameMount,
}

/// openat2(2) of a relative path whose components are no symlinks (a final one only with `O_PATH|O_NOFOLLOW`) and
/// which stays beneath `dir`.
pub fn open_beneath(dir: BorrowedFd<'_>, path: &CStr, flags: OFlag, mode: u32, reach: Reach) -> Result<OwnedFd, Errno> {
    fault::point("openat2")?;
    let mut resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    if reach == Reach::SameMount {
        resolve |= ResolveFlag::RESOLVE_NO_XDEV;
    }
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .mode(Mode::from_bits_truncate(mode))
        .resolve(resolve);
    // The kernel answers EAGAIN when a rename somewhere raced with the check of RESOLVE_BENEATH.
    for _ in 0..64 {
        match openat2(dir, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            done => return done,
        }
    }
    Err(Errno::EAGAIN)
}

/// A second descriptor, with `flags`, of the object behind an `O_PATH` descriptor.
pub fn reopen(fd: BorrowedFd<'_>, flags: OFlag) -> Result<OwnedFd, Errno> {
    fault::point("open")?;
    let path = proc_path(fd);
    nix::fcntl::open(path.as_c_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
}

/// The path under which procfs shows a descriptor of this process.
pub fn proc_path(fd: BorrowedFd<'_>) -> std::ffi::CString {
    let mut path = format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes();
    path.push(0);
    // A decimal number has no NUL, so this can't fail; the fallback resolves to nothing.
    std::ffi::CString::from_vec_with_nul(path).unwrap_or_default()
}

/// fchmodat2(2) with `AT_EMPTY_PATH`, or chmod(2) through procfs before Linux 6.6.
pub fn chmod_fd(fd: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    fault::point("fchmodat2")?;
    const SYS_FCHMODAT2: libc::c_long = 452;
    // SAFETY: the empty path is a NUL-terminated constant and the descriptor is borrowed for the call.
    let ret = check(unsafe {
        libc::syscall(SYS_FCHMODAT2, fd.as_raw_fd(), c"".as_ptr(), mode & 0o7777, libc::AT_EMPTY_PATH)
    });
    match ret {
        Err(Errno::ENOSYS) => nix::sys::stat::fchmodat(
            nix::fcntl::AT_FDCWD,
            proc_path(fd).as_c_str(),
            Mode::from_bits_truncate(mode & 0o7777),
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        ),
        other => other.map(|_| ()),
    }
}

/// fchownat(2) with `AT_EMPTY_PATH`; `None` leaves an id as it is.
pub fn chown_fd(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    fault::point("fchownat")?;
    let keep = u32::MAX;
    // SAFETY: the empty path is a NUL-terminated constant and the descriptor is borrowed for the call.
    let ret = unsafe {
        libc::fchownat(fd.as_raw_fd(), c"".as_ptr(), uid.unwrap_or(keep), gid.unwrap_or(keep), libc::AT_EMPTY_PATH)
    };
    check(ret.into()).map(|_| ())
}

/// One of the two times that utimensat(2) sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeChange {
    /// Leave it.
    Omit,
    /// The time of the call.
    Now,
    /// Seconds since the epoch (negative before it) and nanoseconds.
    At(i64, u32),
}

impl TimeChange {
    fn timespec(self) -> libc::timespec {
        let (tv_sec, tv_nsec) = match self {
            Self::Omit => (0, libc::UTIME_OMIT),
            Self::Now => (0, libc::UTIME_NOW),
            Self::At(sec, nsec) => (sec, i64::from(nsec)),
        };
        libc::timespec { tv_sec, tv_nsec }
    }
}

/// utimensat(2) on the object behind a descriptor, of any kind.
pub fn set_times(fd: BorrowedFd<'_>, atime: TimeChange, mtime: TimeChange) -> Result<(), Errno> {
    fault::point("utimensat")?;
    let times = [atime.timespec(), mtime.timespec()];
    // SAFETY: `times` holds the two values that the call reads; the empty path is a NUL-terminated constant.
    let ret = unsafe { libc::utimensat(fd.as_raw_fd(), c"".as_ptr(), times.as_ptr(), libc::AT_EMPTY_PATH) };
    check(ret.into()).map(|_| ())
}

/// linkat(2) of an unnamed (`O_TMPFILE`) or opened file to `name` in `dir`.
pub fn link_fd(fd: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    fault::point("linkat")?;
    // Without CAP_DAC_READ_SEARCH the kernel refuses AT_EMPTY_PATH with ENOENT; procfs works for everybody.
    match nix::unistd::linkat(fd, c"", dir, name, AtFlags::AT_EMPTY_PATH) {
        Err(Errno::ENOENT | Errno::EPERM | Errno::EINVAL) => {
            trace::note("linkat");
            nix::unistd::linkat(nix::fcntl::AT_FDCWD, proc_path(fd).as_c_str(), dir, name, AtFlags::AT_SYMLINK_FOLLOW)
        }
        done => done,
    }
}

/// symlinkat(2) of any bytes.
pub fn symlink_at(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    fault::point("symlinkat")?;
    nix::unistd::symlinkat(target, dir, name)
}

/// readlinkat(2) of the symlink behind an `O_PATH` descriptor; targets of any length.
pub fn read_link(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    fault::point("readlinkat")?;
    let mut target = vec![0_u8; 256];
    loop {
        // SAFETY: the buffer is valid for the length given.
        let n = check(unsafe {
            libc::readlinkat(fd.as_raw_fd(), c"".as_ptr(), target.as_mut_ptr().cast(), target.len()) as libc::c_long
        })? as usize;
        if n < target.len() {
            target.truncate(n);
            return Ok(target);
        }
        target.resize(target.len() * 4, 0);
    }
}

/// renameat2(2).
pub fn rename_at(
    from: (BorrowedFd<'_>, &CStr),
    to: (BorrowedFd<'_>, &CStr),
    flags: nix::fcntl::RenameFlags,
) -> Result<(), Errno> {
    fault::point("renameat2")?;
    nix::fcntl::renameat2(from.0, from.1, to.0, to.1, flags)
}

/// mknodat(2): fifos, sockets and devices.
pub fn mknod_at(dir: BorrowedFd<'_>, name: &CStr, mode: u32, rdev: u64) -> Result<(), Errno> {
    fault::point("mknodat")?;
    // SAFETY: `name` is NUL-terminated and the descriptor is borrowed for the call.
    let ret = unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, rdev) };
    check(ret.into()).map(|_| ())
}

/// An unnamed file in `dir`'s filesystem.
pub fn open_unnamed(dir: BorrowedFd<'_>, mode: u32) -> Result<OwnedFd, Errno> {
    fault::point("openat")?;
    // SAFETY: the path is a NUL-terminated constant.
    let fd = check(
        unsafe { libc::openat(dir.as_raw_fd(), c".".as_ptr(), libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC, mode) }
            .into(),
    )?;
    // SAFETY: the kernel just returned this descriptor to us, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// What statfs(2) tells of a filesystem.
#[derive(Clone, Copy, Debug)]
pub struct FsStat {
    /// The filesystem's magic number.
    pub magic: i64,
    /// Total, free and available blocks of `frsize` bytes.
    pub blocks: (u64, u64, u64),
    /// Total and free inodes.
    pub files: (u64, u64),
    /// Preferred I/O size in bytes.
    pub bsize: u32,
    /// Fragment size in bytes: the unit of `blocks`.
    pub frsize: u32,
    /// Longest name in bytes.
    pub namelen: u32,
}

/// fstatfs(2).
pub fn fs_stat(fd: BorrowedFd<'_>) -> Result<FsStat, Errno> {
    fault::point("fstatfs")?;
    // SAFETY: an all-zero statfs is a valid value of that plain C struct.
    let mut st: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `st` is valid for the write.
    check(unsafe { libc::fstatfs(fd.as_raw_fd(), &mut st) }.into())?;
    Ok(FsStat {
        magic: st.f_type,
        blocks: (st.f_blocks, st.f_bfree, st.f_bavail),
        files: (st.f_files, st.f_ffree),
        bsize: st.f_bsize as u32,
        frsize: if st.f_frsize > 0 { st.f_frsize as u32 } else { st.f_bsize as u32 },
        namelen: st.f_namelen as u32,
    })
}

/// Has the kernel begin to write a file's data to disk, without waiting for it (sync_file_range(2)).
pub fn start_writeback(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    fault::point("sync_file_range")?;
    // SAFETY: the call takes a descriptor and numbers.
    check(unsafe { libc::sync_file_range(fd.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) }.into()).map(|_| ())
}
