//! Short words for what tests do with files; each fails the test with the path in its message.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;

use super::sys;

/// Makes a file with its parent directories.
#[track_caller]
pub fn put(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    let path = path.as_ref();
    if let Some(parent) = path.parent() {
        make_dir(parent);
    }
    ok(path, fs::write(path, content));
}

/// Makes a directory with its parents.
#[track_caller]
pub fn make_dir(path: impl AsRef<Path>) {
    let path = path.as_ref();
    ok(path, fs::create_dir_all(path));
}

/// A file's content as text.
#[track_caller]
pub fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    String::from_utf8_lossy(&ok(path, fs::read(path))).into_owned()
}

/// Everything from offset 0 of an open file, as text.
#[track_caller]
pub fn read_all(file: &File) -> String {
    let mut bytes = vec![0; 1 << 16];
    let length = file.read_at(&mut bytes, 0).expect("read an open file");
    bytes.truncate(length);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Appends to an existing file.
#[track_caller]
pub fn append(path: impl AsRef<Path>, content: &str) {
    let path = path.as_ref();
    let mut file = ok(path, OpenOptions::new().append(true).open(path));
    ok(path, file.write_all(content.as_bytes()));
}

/// The names in a directory, sorted.
#[track_caller]
pub fn names(path: impl AsRef<Path>) -> Vec<String> {
    let path = path.as_ref();
    let mut names: Vec<String> =
        ok(path, fs::read_dir(path)).map(|entry| ok(path, entry).file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// `lstat`.
#[track_caller]
pub fn stat(path: impl AsRef<Path>) -> fs::Metadata {
    let path = path.as_ref();
    ok(path, fs::symlink_metadata(path))
}

/// The inode number.
#[track_caller]
pub fn ino(path: impl AsRef<Path>) -> u64 {
    stat(path).ino()
}

/// The permission bits with suid, sgid and sticky.
#[track_caller]
pub fn mode(path: impl AsRef<Path>) -> u32 {
    stat(path).mode() & 0o7777
}

/// `chmod`.
#[track_caller]
pub fn chmod(path: impl AsRef<Path>, mode: u32) {
    let path = path.as_ref();
    ok(path, fs::set_permissions(path, fs::Permissions::from_mode(mode)));
}

/// `lchown`.
#[track_caller]
pub fn chown(path: impl AsRef<Path>, uid: u32, gid: u32) {
    let path = path.as_ref();
    ok(path, std::os::unix::fs::lchown(path, Some(uid), Some(gid)));
}

/// Whether a name is there.
pub fn exists(path: impl AsRef<Path>) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// `mknod` with a device number made of two.
#[track_caller]
pub fn node(path: impl AsRef<Path>, kind: SFlag, device: (u64, u64)) {
    let path = path.as_ref();
    let device = nix::sys::stat::makedev(device.0, device.1);
    ok(path, mknod(path, kind, Mode::from_bits_truncate(0o644), device));
}

/// A whiteout as the kernel's overlay leaves it.
#[track_caller]
pub fn whiteout(path: impl AsRef<Path>) {
    if let Some(parent) = path.as_ref().parent() {
        make_dir(parent);
    }
    node(path, SFlag::S_IFCHR, (0, 0));
}

/// Whether there is a whiteout: a character device 0:0.
pub fn is_whiteout(path: impl AsRef<Path>) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.mode() & libc::S_IFMT == libc::S_IFCHR && found.rdev() == 0)
}

/// Sets an xattr.
#[track_caller]
pub fn mark(path: impl AsRef<Path>, name: &str, value: &str) {
    let path = path.as_ref();
    ok(path, sys::set_xattr(path, name, value.as_bytes(), 0));
}

/// An xattr's value as text, if it is there.
pub fn marked(path: impl AsRef<Path>, name: &str) -> Option<String> {
    let value = sys::get_xattr(path.as_ref(), name).ok()?;
    Some(String::from_utf8_lossy(&value).into_owned())
}

/// Sets both times of the object itself, in whole seconds and nanoseconds.
#[track_caller]
pub fn set_times(path: impl AsRef<Path>, atime: (i64, i64), mtime: (i64, i64)) {
    let path = path.as_ref();
    ok(path, try_set_times(path, TimeSpec::new(atime.0, atime.1), TimeSpec::new(mtime.0, mtime.1)));
}

/// `utimensat` with `AT_SYMLINK_NOFOLLOW`.
pub fn try_set_times(path: &Path, atime: TimeSpec, mtime: TimeSpec) -> nix::Result<()> {
    utimensat(AT_FDCWD, path, &atime, &mtime, UtimensatFlags::NoFollowSymlink)
}

/// The modification time.
#[track_caller]
pub fn mtime(path: impl AsRef<Path>) -> (i64, i64) {
    let found = stat(path);
    (found.mtime(), found.mtime_nsec())
}

/// Creates a file that isn't there, open for reading and writing.
#[track_caller]
pub fn create_new(path: impl AsRef<Path>, mode: u32) -> File {
    let path = path.as_ref();
    ok(path, try_create_new(path, mode))
}

/// `open(O_RDWR | O_CREAT | O_EXCL)`.
pub fn try_create_new(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path)
}

/// Opens a file for reading and writing.
#[track_caller]
pub fn edit(path: impl AsRef<Path>) -> File {
    let path = path.as_ref();
    ok(path, OpenOptions::new().read(true).write(true).open(path))
}

/// Opens a file or directory for reading.
#[track_caller]
pub fn open(path: impl AsRef<Path>) -> File {
    let path = path.as_ref();
    ok(path, File::open(path))
}

/// The value, or the end of the test with the path in its message.
#[track_caller]
pub fn ok<T, E: Into<io::Error>>(path: &Path, result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("{path:?}: {}", error.into()))
}

/// Asserts that something fails with this error and no other.
#[track_caller]
pub fn fails<T, E: Into<io::Error>>(result: Result<T, E>, expected: Errno) {
    match result {
        Ok(_) => panic!("succeeds, where {expected} is due"),
        Err(error) => {
            let error = error.into();
            let code = error.raw_os_error().map(Errno::from_raw);
            assert_eq!(code, Some(expected), "{error}");
        }
    }
}
