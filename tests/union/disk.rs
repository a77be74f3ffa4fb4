//! Objects on disk as tests make them and look at them, beside the code under test.
#![allow(dead_code, reason = "every test program and bench uses its own part of it")]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use layerfs::error::Result;
use layerfs::sys::xattr::{self, Target};
use nix::fcntl::OFlag;

use super::{xattr_names, xname};

fn object(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())
}

/// Sets an extended attribute of `path` itself, never of what a symlink names.
pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> Result<()> {
    xattr::set(Target::Fd(object(path)?.as_fd()), &xname(name), value, 0)
}

/// An extended attribute of `path` itself, `None` if there is none.
pub fn get_xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    xattr::get(Target::Fd(object(path).unwrap().as_fd()), &xname(name)).ok()
}

/// Removes an extended attribute of `path` itself.
pub fn remove_xattr(path: &Path, name: &str) {
    xattr::remove(Target::Fd(object(path).unwrap().as_fd()), &xname(name)).unwrap();
}

/// Every extended attribute of `path` itself.
pub fn all_xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let list = xattr::list(Target::Fd(object(path).unwrap().as_fd())).unwrap();
    let names = xattr_names(&list).into_iter();
    names.map(|name| (name.clone(), get_xattr(path, &name).unwrap())).collect()
}

/// The attributes of `path` itself that could be marks.
pub fn marks(path: &Path) -> Vec<String> {
    let names = all_xattrs(path).into_keys();
    names.filter(|name| name.starts_with("trusted.") || name.starts_with("user.")).collect()
}

/// Makes a character device 0:0, the kernel overlay's whiteout.
pub fn make_whiteout(path: &Path) {
    use nix::sys::stat::{Mode, SFlag, mknod};
    mknod(path, SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
}

/// Whether a character device 0:0 is at `path`.
pub fn is_whiteout(path: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    path.symlink_metadata().is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

/// Sets both times of `path` itself.
pub fn set_times(path: &Path, sec: i64, nsec: i64) {
    use nix::sys::stat::{UtimensatFlags, utimensat};
    use nix::sys::time::TimeSpec;
    let time = TimeSpec::new(sec, nsec);
    utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
}

/// Sets the permission bits of `path`.
pub fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// One object below a directory as it is on disk; the time of last access is left out.
#[derive(Debug, PartialEq, Eq)]
pub struct OnDisk {
    /// Inode number, type and permissions, links, owner, group, device, size.
    pub stat: [u64; 7],
    /// Times of change of the content and of the inode, with nanoseconds.
    pub times: [i64; 4],
    /// What a file holds, or where a symlink points.
    pub content: Vec<u8>,
    /// All extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// Everything below `dir` and `dir` itself, to compare with later.
pub fn snapshot(dir: &Path) -> BTreeMap<PathBuf, OnDisk> {
    let mut all = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        let object = on_disk(&path);
        if path.symlink_metadata().unwrap().is_dir() {
            pending.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
        }
        all.insert(path, object);
    }
    all
}

fn on_disk(path: &Path) -> OnDisk {
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::MetadataExt;
    let meta = path.symlink_metadata().unwrap();
    let content = if meta.is_file() {
        std::fs::read(path).unwrap()
    } else if meta.is_symlink() {
        path.read_link().unwrap().into_os_string().into_vec()
    } else {
        Vec::new()
    };
    let (uid, gid) = (meta.uid().into(), meta.gid().into());
    OnDisk {
        stat: [meta.ino(), meta.mode().into(), meta.nlink(), uid, gid, meta.rdev(), meta.size()],
        times: [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()],
        content,
        xattrs: all_xattrs(path),
    }
}
