//! System calls that neither std nor nix offers, as safe functions for tests.
#![allow(unsafe_code, reason = "the product's own wrappers are what is under test, so the tests bring theirs")]

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::ptr::NonNull;

use nix::errno::Errno;

/// `RENAME_NOREPLACE`, `RENAME_EXCHANGE` and `RENAME_WHITEOUT` as [`rename2`] takes them.
pub const NOREPLACE: u32 = libc::RENAME_NOREPLACE;
/// See [`NOREPLACE`].
pub const EXCHANGE: u32 = libc::RENAME_EXCHANGE;
/// See [`NOREPLACE`].
pub const WHITEOUT: u32 = libc::RENAME_WHITEOUT;

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path without NUL")
}

fn c_name(name: &str) -> CString {
    CString::new(name).expect("a name without NUL")
}

/// `getxattr` of the object itself, never of a symlink's target.
pub fn get_xattr(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 1 << 16];
    let length = get_xattr_into(path, name, &mut value)?;
    value.truncate(length);
    Ok(value)
}

/// `lgetxattr` into a buffer of the caller's size; an empty one asks for the length.
pub fn get_xattr_into(path: &Path, name: &str, buffer: &mut [u8]) -> Result<usize, Errno> {
    let (path, name) = (c_path(path), c_name(name));
    // SAFETY: both strings end in NUL, and the kernel writes at most `buffer.len()` bytes.
    let got = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    Errno::result(got).map(|n| n as usize)
}

/// `lsetxattr` with `flags` (0, `XATTR_CREATE`, `XATTR_REPLACE`).
pub fn set_xattr(path: &Path, name: &str, value: &[u8], flags: i32) -> Result<(), Errno> {
    let (path, name) = (c_path(path), c_name(name));
    // SAFETY: both strings end in NUL, and `value` is readable for its length.
    let done = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    Errno::result(done).map(drop)
}

/// `lremovexattr`.
pub fn remove_xattr(path: &Path, name: &str) -> Result<(), Errno> {
    let (path, name) = (c_path(path), c_name(name));
    // SAFETY: both strings end in NUL.
    let done = unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) };
    Errno::result(done).map(drop)
}

/// The names that `llistxattr` gives, sorted.
pub fn list_xattr(path: &Path) -> Result<Vec<OsString>, Errno> {
    let mut buffer = vec![0; 1 << 16];
    let length = list_xattr_into(path, &mut buffer)?;
    let mut names: Vec<OsString> = buffer[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| OsString::from_vec(name.to_vec()))
        .collect();
    names.sort();
    Ok(names)
}

/// `llistxattr` into a buffer of the caller's size; an empty one asks for the length.
pub fn list_xattr_into(path: &Path, buffer: &mut [u8]) -> Result<usize, Errno> {
    let path = c_path(path);
    // SAFETY: the path ends in NUL, and the kernel writes at most `buffer.len()` bytes.
    let got = unsafe { libc::llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    Errno::result(got).map(|n| n as usize)
}

/// `fsetxattr` on an open file.
pub fn fset_xattr(file: &File, name: &str, value: &[u8]) -> Result<(), Errno> {
    let name = c_name(name);
    // SAFETY: the name ends in NUL, and `value` is readable for its length.
    let done = unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(done).map(drop)
}

/// `fgetxattr` on an open file.
pub fn fget_xattr(file: &File, name: &str) -> Result<Vec<u8>, Errno> {
    let name = c_name(name);
    let mut value = vec![0; 1 << 16];
    // SAFETY: the name ends in NUL, and the kernel writes at most `value.len()` bytes.
    let got = unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(Errno::result(got)? as usize);
    Ok(value)
}

/// `renameat2` on whole paths.
pub fn rename2(from: &Path, to: &Path, flags: u32) -> Result<(), Errno> {
    let (from, to) = (c_path(from), c_path(to));
    // SAFETY: both strings end in NUL.
    let done = unsafe {
        libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags)
    };
    Errno::result(done).map(drop)
}

/// Makes the calling thread, and no other, one of another user's: without capabilities, and for good.
pub fn become_user(uid: u32, gid: u32) -> Result<(), Errno> {
    // SAFETY: plain numbers; libc's own functions would change every thread of the process.
    unsafe {
        Errno::result(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        Errno::result(libc::syscall(libc::SYS_setresuid, uid, uid, uid)).map(drop)
    }
}

/// Has a program that is to be started inherit a descriptor under this number.
pub fn hand_over(command: &mut Command, descriptor: OwnedFd, number: RawFd) {
    let give = move || {
        let from = descriptor.as_raw_fd();
        let done = if from == number {
            // SAFETY: plain numbers; the descriptor is open.
            unsafe { libc::fcntl(from, libc::F_SETFD, 0) }
        } else {
            // SAFETY: plain numbers; nothing in a program that is being started uses the one that is replaced.
            unsafe { libc::dup2(from, number) }
        };
        Errno::result(done).map(drop).map_err(Into::into)
    };
    // SAFETY: what runs between fork and exec is a single system call.
    unsafe { command.pre_exec(give) };
}

/// One entry as `getdents64` gives it.
#[derive(Debug, Clone)]
pub struct Dirent {
    /// `d_ino`
    pub ino: u64,
    /// `d_off`: where the entry after this one starts.
    pub next: i64,
    /// `d_type`
    pub kind: u8,
    /// `d_name`
    pub name: OsString,
}

/// One `getdents64` call with a buffer of `size` bytes; an empty answer is the end.
pub fn getdents(directory: &File, size: usize) -> Result<Vec<Dirent>, Errno> {
    let mut buffer = vec![0u64; size.div_ceil(8)];
    // SAFETY: the kernel writes at most `size` bytes into a buffer that holds them.
    let got = unsafe { libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), buffer.as_mut_ptr(), size) };
    let length = Errno::result(got)? as usize;
    let bytes: Vec<u8> = buffer.iter().flat_map(|word| word.to_ne_bytes()).collect();
    Ok(parse_dirents(&bytes[..length]))
}

fn parse_dirents(mut bytes: &[u8]) -> Vec<Dirent> {
    let mut entries = Vec::new();
    while bytes.len() > 19 {
        let word = |at: usize| -> [u8; 8] { bytes[at..at + 8].try_into().expect("8 bytes") };
        let length = usize::from(u16::from_ne_bytes([bytes[16], bytes[17]]));
        let name = CStr::from_bytes_until_nul(&bytes[19..length]).expect("a name with its NUL");
        entries.push(Dirent {
            ino: u64::from_ne_bytes(word(0)),
            next: i64::from_ne_bytes(word(8)),
            kind: bytes[18],
            name: OsStr::from_bytes(name.to_bytes()).to_owned(),
        });
        bytes = &bytes[length..];
    }
    entries
}

/// A `MAP_SHARED` mapping of the first bytes of a file.
pub struct SharedMap {
    address: NonNull<libc::c_void>,
    length: usize,
}

impl SharedMap {
    /// Maps `length` bytes of `file`, writable if `write`.
    pub fn new(file: &File, length: usize, write: bool) -> Result<SharedMap, Errno> {
        let protection = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
        // SAFETY: a fresh mapping at an address of the kernel's choice; nothing else refers to it.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let address = NonNull::new(address).expect("a mapping is never at address 0");
        Ok(SharedMap { address, length })
    }

    /// What the mapping shows right now.
    pub fn read(&self) -> Vec<u8> {
        self.read_at(0, self.length)
    }

    /// What a part of the mapping shows right now.
    pub fn read_at(&self, at: usize, length: usize) -> Vec<u8> {
        assert!(at + length <= self.length, "inside the mapping");
        (at..at + length)
            // SAFETY: inside the mapping; volatile, since other descriptors change it.
            .map(|at| unsafe { self.address.as_ptr().cast::<u8>().add(at).read_volatile() })
            .collect()
    }

    /// Writes through a mapping that was made writable.
    pub fn write(&self, at: usize, data: &[u8]) {
        assert!(at + data.len() <= self.length, "inside the mapping");
        for (i, byte) in data.iter().enumerate() {
            // SAFETY: inside the mapping, as asserted above.
            unsafe {
                let target = self.address.as_ptr().cast::<u8>().add(at + i);
                target.write_volatile(*byte);
            }
        }
    }

    /// `msync(MS_SYNC)`.
    pub fn sync(&self) -> Result<(), Errno> {
        // SAFETY: the whole of our own mapping.
        let done = unsafe { libc::msync(self.address.as_ptr(), self.length, libc::MS_SYNC) };
        Errno::result(done).map(drop)
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing uses any more.
        unsafe { libc::munmap(self.address.as_ptr(), self.length) };
    }
}

/// Fills `buffer` (aligned by the caller) by one `pread`.
pub fn pread(file: &File, buffer: &mut [u8], offset: i64) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes.
    let got = unsafe { libc::pread(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), offset) };
    Errno::result(got).map(|n| n as usize)
}

/// `copy_file_range` from one offset to another.
pub fn copy_range(from: &File, at: i64, to: &File, to_at: i64, length: usize) -> Result<usize, Errno> {
    let (mut at, mut to_at) = (at, to_at);
    // SAFETY: both offsets live until the call returns.
    let done = unsafe { libc::copy_file_range(from.as_raw_fd(), &mut at, to.as_raw_fd(), &mut to_at, length, 0) };
    Errno::result(done).map(|n| n as usize)
}

/// `ioctl(FICLONE)`: all of `from` becomes the content of `to`.
pub fn clone_file(from: &File, to: &File) -> Result<(), Errno> {
    // SAFETY: FICLONE takes a descriptor by value.
    Errno::result(unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) }).map(drop)
}

/// `ioctl(FS_IOC_GETFLAGS)`, as lsattr calls it.
pub fn inode_flags(file: &File) -> Result<libc::c_long, Errno> {
    let mut flags = 0;
    // SAFETY: the kernel writes an int, for which there is room.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &mut flags) }).map(|_| flags)
}

/// A buffer whose address is a multiple of 4096, as `O_DIRECT` asks for.
#[repr(C, align(4096))]
pub struct Page(pub [u8; 4096]);

/// `open` with raw flags, for those that std and nix keep to themselves.
pub fn open(path: &Path, flags: i32, mode: u32) -> Result<File, Errno> {
    let path = c_path(path);
    // SAFETY: the path ends in NUL; the answer, if not negative, is a descriptor of our own.
    unsafe {
        let fd = Errno::result(libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, mode))?;
        Ok(File::from(OwnedFd::from_raw_fd(fd)))
    }
}

/// The names of one directory given by descriptor, without `.` and `..`, sorted.
pub fn names_at(directory: BorrowedFd<'_>) -> Result<Vec<OsString>, Errno> {
    let here = nix::fcntl::openat(
        directory,
        ".",
        nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_DIRECTORY,
        nix::sys::stat::Mode::empty(),
    )?;
    let here = File::from(here);
    let mut names = Vec::new();
    loop {
        let entries = getdents(&here, 1 << 15)?;
        if entries.is_empty() {
            break;
        }
        names.extend(entries.into_iter().map(|entry| entry.name));
    }
    names.retain(|name| name != "." && name != "..");
    names.sort();
    Ok(names)
}
