//! Extended attributes of any object, symlinks included, by directory descriptor and name or by descriptor.
//!
//! Linux 6.13 has `getxattrat` and its siblings; before it the same is reached through `/proc/self/fd`. So are the attributes
//! behind an `O_PATH` descriptor, which the calls for descriptors refuse with `EBADF`: asking them first costs a tenth of that.
//! A directory behind one can name itself, and needs neither.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;

use super::{check, fault, trace};

/// The attribute that holds a file's capabilities.
pub const CAPABILITY: &CStr = c"security.capability";
/// The attribute that holds an object's own POSIX ACL.
pub const ACCESS_ACL: &CStr = c"system.posix_acl_access";
/// The attribute that holds the POSIX ACL that new objects in a directory inherit.
pub const DEFAULT_ACL: &CStr = c"system.posix_acl_default";

/// Whether an attribute holds a POSIX ACL.
pub fn is_acl(name: &[u8]) -> bool {
    name == ACCESS_ACL.to_bytes() || name == DEFAULT_ACL.to_bytes()
}

const SYS_SETXATTRAT: libc::c_long = 463;
const SYS_GETXATTRAT: libc::c_long = 464;
const SYS_LISTXATTRAT: libc::c_long = 465;
const SYS_REMOVEXATTRAT: libc::c_long = 466;

/// Whether this kernel lacks the *xattrat calls; found out by the first one.
static NO_XATTRAT: AtomicBool = AtomicBool::new(false);

/// `struct xattr_args` of linux/xattr.h.
#[repr(C)]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// The object whose attributes are meant.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// `name` in a directory; a symlink itself, not what it points to.
    At(BorrowedFd<'a>, &'a CStr),
    /// The object behind a descriptor, `O_PATH` ones included.
    Fd(BorrowedFd<'a>),
    /// The directory behind a descriptor, which mostly is an `O_PATH` one.
    Dir(BorrowedFd<'a>),
}

impl Target<'_> {
    /// A path that leads to the object without another lookup of its directory, and whether its last step is followed.
    fn proc_path(&self) -> (CString, bool) {
        match self {
            Target::Fd(fd) | Target::Dir(fd) => (super::file::proc_path(*fd), true),
            Target::At(dir, name) => {
                let mut path = super::file::proc_path(*dir).into_bytes();
                path.push(b'/');
                path.extend_from_slice(name.to_bytes());
                (CString::new(path).unwrap_or_default(), false)
            }
        }
    }

    fn at(&self) -> Option<(i32, *const libc::c_char)> {
        match self {
            _ if NO_XATTRAT.load(Ordering::Relaxed) => None,
            Target::At(dir, name) => Some((dir.as_raw_fd(), name.as_ptr())),
            Target::Dir(dir) => Some((dir.as_raw_fd(), c".".as_ptr())),
            Target::Fd(_) => None,
        }
    }
}

/// Whether one of the *xattrat calls could not do it and the way through procfs may; remembers that the kernel lacks them.
fn needs_procfs<T>(result: &Result<T, Errno>, target: Target<'_>) -> bool {
    let Err(e) = result else { return false };
    if *e == Errno::ENOSYS {
        NO_XATTRAT.store(true, Ordering::Relaxed);
    }
    // Who may not search a directory can't name it from within.
    *e == Errno::ENOSYS || *e == Errno::EACCES && matches!(target, Target::Dir(_))
}

/// Fills a buffer with a call that tells the size it needs by ERANGE.
fn read_all(mut call: impl FnMut(&mut [u8]) -> Result<libc::c_long, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buf = vec![0_u8; 256];
    loop {
        match call(&mut buf) {
            Ok(n) => {
                buf.truncate(n as usize);
                return Ok(buf);
            }
            // The kernel's ceiling for a value and for a list is 64 KiB.
            Err(Errno::ERANGE) if buf.len() < 64 * 1024 => buf.resize(64 * 1024, 0),
            Err(Errno::ERANGE) => return Err(Errno::E2BIG),
            Err(e) => return Err(e),
        }
    }
}

/// The value of one attribute.
///
/// # Errors
/// `ENODATA` if there is none, `EOPNOTSUPP` if the filesystem has no attributes of that kind.
pub fn get(target: Target<'_>, attr: &CStr) -> Result<Vec<u8>, Errno> {
    fault::point("getxattr")?;
    if let Some((dir, name)) = target.at() {
        let result = read_all(|buf| {
            let args = XattrArgs { value: buf.as_mut_ptr() as u64, size: buf.len() as u32, flags: 0 };
            // SAFETY: names are NUL-terminated, `args` points to a buffer valid for its size.
            check(unsafe {
                libc::syscall(
                    SYS_GETXATTRAT,
                    dir,
                    name,
                    libc::AT_SYMLINK_NOFOLLOW,
                    attr.as_ptr(),
                    &args,
                    size_of::<XattrArgs>(),
                )
            })
        });
        if !needs_procfs(&result, target) {
            return result;
        }
    }
    if let Target::Fd(fd) = target {
        // SAFETY: the name is NUL-terminated and the buffer is valid for its length.
        let call = |buf: &mut [u8]| unsafe {
            libc::fgetxattr(fd.as_raw_fd(), attr.as_ptr(), buf.as_mut_ptr().cast(), buf.len())
        };
        match read_all(|buf| check(call(buf) as _)) {
            Err(Errno::EBADF) => trace::note("getxattr"),
            done => return done,
        }
    }
    let (path, follow) = target.proc_path();
    let call = if follow { libc::getxattr } else { libc::lgetxattr };
    // SAFETY: names are NUL-terminated and the buffer is valid for its length.
    read_all(|buf| check(unsafe { call(path.as_ptr(), attr.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) } as _))
}

/// The names of all attributes, each closed by a NUL.
pub fn list(target: Target<'_>) -> Result<Vec<u8>, Errno> {
    fault::point("listxattr")?;
    if let Some((dir, name)) = target.at() {
        let result = read_all(|buf| {
            // SAFETY: the name is NUL-terminated and the buffer is valid for its length.
            check(unsafe {
                libc::syscall(SYS_LISTXATTRAT, dir, name, libc::AT_SYMLINK_NOFOLLOW, buf.as_mut_ptr(), buf.len())
            })
        });
        if !needs_procfs(&result, target) {
            return result;
        }
    }
    if let Target::Fd(fd) = target {
        // SAFETY: the buffer is valid for its length.
        let call = |buf: &mut [u8]| unsafe { libc::flistxattr(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) };
        match read_all(|buf| check(call(buf) as _)) {
            Err(Errno::EBADF) => trace::note("listxattr"),
            done => return done,
        }
    }
    let (path, follow) = target.proc_path();
    let call = if follow { libc::listxattr } else { libc::llistxattr };
    // SAFETY: the path is NUL-terminated and the buffer is valid for its length.
    read_all(|buf| check(unsafe { call(path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) } as _))
}

/// Sets one attribute; `flags` as for setxattr(2).
pub fn set(target: Target<'_>, attr: &CStr, value: &[u8], flags: i32) -> Result<(), Errno> {
    fault::point("setxattr")?;
    if let Some((dir, name)) = target.at() {
        let args = XattrArgs { value: value.as_ptr() as u64, size: value.len() as u32, flags: flags as u32 };
        // SAFETY: names are NUL-terminated, `args` points to the value, which is valid for its size.
        let result = check(unsafe {
            libc::syscall(
                SYS_SETXATTRAT,
                dir,
                name,
                libc::AT_SYMLINK_NOFOLLOW,
                attr.as_ptr(),
                &args,
                size_of::<XattrArgs>(),
            )
        });
        if !needs_procfs(&result, target) {
            return result.map(|_| ());
        }
    }
    if let Target::Fd(fd) = target {
        // SAFETY: the name is NUL-terminated and the value is valid for its length.
        let ret = unsafe { libc::fsetxattr(fd.as_raw_fd(), attr.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
        match check(ret.into()) {
            Err(Errno::EBADF) => trace::note("setxattr"),
            done => return done.map(|_| ()),
        }
    }
    let (path, follow) = target.proc_path();
    let call = if follow { libc::setxattr } else { libc::lsetxattr };
    // SAFETY: names are NUL-terminated and the value is valid for its length.
    let ret = unsafe { call(path.as_ptr(), attr.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    check(ret.into()).map(|_| ())
}

/// Removes one attribute.
pub fn remove(target: Target<'_>, attr: &CStr) -> Result<(), Errno> {
    fault::point("removexattr")?;
    if let Some((dir, name)) = target.at() {
        // SAFETY: names are NUL-terminated.
        let result =
            check(unsafe { libc::syscall(SYS_REMOVEXATTRAT, dir, name, libc::AT_SYMLINK_NOFOLLOW, attr.as_ptr()) });
        if !needs_procfs(&result, target) {
            return result.map(|_| ());
        }
    }
    if let Target::Fd(fd) = target {
        // SAFETY: the name is NUL-terminated.
        match check(unsafe { libc::fremovexattr(fd.as_raw_fd(), attr.as_ptr()) }.into()) {
            Err(Errno::EBADF) => trace::note("removexattr"),
            done => return done.map(|_| ()),
        }
    }
    let (path, follow) = target.proc_path();
    let call = if follow { libc::removexattr } else { libc::lremovexattr };
    // SAFETY: names are NUL-terminated.
    check(unsafe { call(path.as_ptr(), attr.as_ptr()) }.into()).map(|_| ())
}
