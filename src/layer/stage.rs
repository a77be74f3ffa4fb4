//! Objects in the making: built in the work directory, out of sight, and published in upper with one call.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::fcntl::{OFlag, RenameFlags};
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;

use crate::error::{Errno, Result};
use crate::layer::marks::Namespace;
use crate::layer::override_stat::{Form, OverrideStat};
use crate::layer::real::ObjKey;
use crate::layer::stack::BTRFS;
use crate::layer::work;
use crate::name::Name;
use crate::sys;
use crate::sys::file::{Stat, TimeChange};
use crate::sys::xattr::{ACCESS_ACL, CAPABILITY, Target, is_acl};

/// Names and abilities of the staging directory.
#[derive(Debug)]
pub(super) struct Stager {
    serial: AtomicU64,
    no_unnamed: AtomicBool,
}

impl Stager {
    /// For a staging directory.
    pub(super) fn new(dir: BorrowedFd<'_>) -> Self {
        // What O_TMPFILE made and linkat(2) put into a directory that is not on disk yet is gone after a power loss on btrfs
        // (seen on 6.18), although it was synced; what has always had a name is there.
        let loses_unnamed = sys::file::fs_stat(dir).is_ok_and(|st| st.magic == BTRFS);
        Self { serial: AtomicU64::new(0), no_unnamed: AtomicBool::new(loses_unnamed) }
    }

    /// A name that is unused in the staging directory.
    pub(super) fn fresh_name(&self) -> Result<Name> {
        Name::new(format!("#{:x}", self.serial.fetch_add(1, Ordering::Relaxed)).as_bytes())
    }

    /// A new empty file: unnamed where the filesystem has O_TMPFILE and can be trusted with it, so that a crash leaves nothing.
    pub(super) fn file<'a>(&self, dir: BorrowedFd<'a>, mode: u32) -> Result<Staged<'a>> {
        if !self.no_unnamed.load(Ordering::Relaxed) {
            match sys::file::open_unnamed(dir, mode) {
                Ok(fd) => return Ok(Staged::new(dir, None, fd)),
                Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT) => {
                    self.no_unnamed.store(true, Ordering::Relaxed);
                }
                Err(e) => return Err(e),
            }
        }
        let name = self.fresh_name()?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = sys::posix::openat(dir, name.as_cstr(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok(Staged::new(dir, Some(name), fd))
    }

    /// A new object that `make` makes under the name it is given.
    pub(super) fn named<'a>(&self, dir: BorrowedFd<'a>, make: impl FnOnce(&CStr) -> Result<()>) -> Result<Staged<'a>> {
        self.named_open(dir, OFlag::O_PATH, make)
    }

    /// A new directory, which has to be readable for us: its xattrs are set without a way through procfs then.
    pub(super) fn dir<'a>(&self, dir: BorrowedFd<'a>, mode: Mode) -> Result<Staged<'a>> {
        self.named_open(dir, OFlag::O_RDONLY | OFlag::O_DIRECTORY, |name| sys::posix::mkdirat(dir, name, mode))
    }

    fn named_open<'a>(
        &self,
        dir: BorrowedFd<'a>,
        flags: OFlag,
        make: impl FnOnce(&CStr) -> Result<()>,
    ) -> Result<Staged<'a>> {
        let name = self.fresh_name()?;
        make(name.as_cstr())?;
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = sys::posix::openat(dir, name.as_cstr(), flags, Mode::empty());
        match opened {
            Ok(fd) => Ok(Staged::new(dir, Some(name), fd)),
            Err(e) => {
                remove(dir, &name);
                Err(e)
            }
        }
    }
}

/// What stands at the place where an object is published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Over {
    /// Nothing.
    Nothing,
    /// A whiteout or another object that is no directory, when what comes is none either.
    NonDirectory,
    /// Something of the other kind, or a directory that is not empty to the filesystem: the two change places, and what was there is removed.
    Other,
}

/// A name in the staging directory, if it has one; removed again unless it is given up.
#[derive(Debug)]
struct Temporary<'a> {
    dir: BorrowedFd<'a>,
    name: Option<Name>,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            remove(self.dir, &name);
        }
    }
}

/// An object in the staging directory; removed again unless it is published.
#[derive(Debug)]
pub struct Staged<'a> {
    temporary: Temporary<'a>,
    fd: OwnedFd,
}

impl<'a> Staged<'a> {
    fn new(dir: BorrowedFd<'a>, name: Option<Name>, fd: OwnedFd) -> Self {
        Self { temporary: Temporary { dir, name }, fd }
    }

    /// The object's descriptor: readable and writable for a regular file made empty, readable for a directory, else `O_PATH`.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The object without a name.
    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Gives the object its place, and returns its descriptor.
    pub(super) fn publish(mut self, stager: &Stager, dir: BorrowedFd<'_>, name: &Name, over: Over) -> Result<OwnedFd> {
        let stage = self.temporary.dir;
        let temporary = match &self.temporary.name {
            Some(temporary) => temporary.clone(),
            None if over == Over::Nothing => {
                despite_modes(&[(dir, c".")], || sys::file::link_fd(self.fd(), dir, name.as_cstr()))?;
                return Ok(self.fd);
            }
            None => {
                let temporary = stager.fresh_name()?;
                sys::file::link_fd(self.fd(), stage, temporary.as_cstr())?;
                self.temporary.name = Some(temporary.clone());
                temporary
            }
        };
        let flags = match over {
            Over::Nothing => RenameFlags::RENAME_NOREPLACE,
            Over::NonDirectory => RenameFlags::empty(),
            Over::Other => RenameFlags::RENAME_EXCHANGE,
        };
        rename_across((stage, temporary.as_cstr()), (dir, name.as_cstr()), flags)?;
        if over != Over::Other {
            // Nothing of ours is left under the temporary name. After an exchange the old object is: dropping removes it.
            self.temporary.name = None;
        }
        Ok(self.fd)
    }
}

/// Removes a staged object; what can't be removed now is swept at the next mount.
pub(super) fn remove(dir: BorrowedFd<'_>, name: &Name) {
    let removed = match sys::posix::unlinkat(dir, name.as_cstr(), UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR | Errno::EPERM) => work::remove_tree(dir, name.as_cstr()),
        done => done,
    };
    if let Err(e) = removed {
        log::warn!("a staged object stays in the work directory until the next mount: {name}: {e}");
    }
}

/// A rename between upper and the staging directory, where also what moves has to be writable if it is a directory.
pub(super) fn rename_across(
    from: (BorrowedFd<'_>, &CStr),
    to: (BorrowedFd<'_>, &CStr),
    flags: RenameFlags,
) -> Result<()> {
    despite_modes(&[from, to, (to.0, c".")], || rename_from(from, to, flags))
}

/// Does what needs the right to write directories. Without privilege we are bound by their modes, as their owner, though who
/// may ask for it is the kernel's to decide, and it has.
fn despite_modes(dirs: &[(BorrowedFd<'_>, &CStr)], call: impl Fn() -> Result<()>) -> Result<()> {
    match call() {
        Err(Errno::EACCES) => {}
        done => return done,
    }
    let closed: Vec<_> = dirs.iter().filter_map(|(at, name)| make_writable(*at, name)).collect();
    let done = call();
    for (dir, mode) in closed {
        if let Err(e) = sys::file::chmod_fd(dir.as_fd(), mode) {
            log::warn!("a directory that something was moved to or from should have the mode {mode:o}: {e}");
        }
    }
    done
}

/// Lets the owner of a directory write it and look into it; tells which it is and the mode it had, if it has another now.
fn make_writable(at: BorrowedFd<'_>, name: &CStr) -> Option<(OwnedFd, u32)> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let dir = sys::posix::openat(at, name, flags, Mode::empty()).ok()?;
    let mode = sys::file::stat(&dir).ok()?.mode & 0o7777;
    let closed = mode & 0o300 != 0o300 && sys::file::chmod_fd(dir.as_fd(), mode | 0o300).is_ok();
    closed.then_some((dir, mode))
}

/// A rename that does without flags on filesystems that know none, where that is the same.
fn rename_from(from: (BorrowedFd<'_>, &CStr), to: (BorrowedFd<'_>, &CStr), flags: RenameFlags) -> Result<()> {
    match sys::file::rename_at(from, to, flags) {
        // The place is free: the caller holds the lock on its directory.
        Err(Errno::EINVAL) if flags == RenameFlags::RENAME_NOREPLACE => {
            sys::file::rename_at(from, to, RenameFlags::empty())
        }
        done => done,
    }
}

/// Copies every xattr but the marks and, where they are kept in one, owner and permissions; ACLs and capabilities are among
/// them. True if there was an ACL, which sets the mode.
fn copy_xattrs(from: Target<'_>, to: Target<'_>, namespace: Namespace, permissions: bool) -> Result<bool> {
    let names = match sys::xattr::list(from) {
        Err(Errno::EOPNOTSUPP) => return Ok(false),
        names => names?,
    };
    let mut acl = false;
    for name in names.split_inclusive(|b| *b == 0) {
        let Ok(attr) = CStr::from_bytes_with_nul(name) else { continue };
        let is_permission = || Form::hides(attr.to_bytes()) || is_acl(attr.to_bytes());
        if namespace.to_shown(attr.to_bytes()).is_none() || permissions && is_permission() {
            continue;
        }
        let value = match sys::xattr::get(from, attr) {
            Err(Errno::ENODATA) => continue,
            value => value?,
        };
        match sys::xattr::set(to, attr, &value, 0) {
            Err(e) if may_be_lost(attr.to_bytes(), e) => {
                log::debug!("copy-up leaves out {}: {e}", attr.to_bytes().escape_ascii());
            }
            done => done?,
        }
        acl |= attr == ACCESS_ACL;
    }
    Ok(acl)
}

/// As the kernel's overlay: what upper's filesystem has no place for is left out, but never an ACL or a capability.
fn may_be_lost(attr: &[u8], error: Errno) -> bool {
    let must = is_acl(attr) || attr == CAPABILITY.to_bytes();
    let others = attr.starts_with(b"security.") || attr.starts_with(b"trusted.");
    match error {
        Errno::EOPNOTSUPP => !must,
        // Without privilege nobody may set these.
        Errno::EPERM => others,
        _ => false,
    }
}

/// Gives a staged object the owner of another, and then what a change of owner would take away: its xattrs and its mode. Last the
/// times. With `permissions`, what `st` says of them is only kept in that attribute. Where the owner can't be set (no privilege,
/// no mapping) it stays ours and loses the set-id bits. Returns which object it is.
pub(super) fn copy_metadata(
    from: Target<'_>,
    st: &Stat,
    to: BorrowedFd<'_>,
    namespace: Namespace,
    permissions: Option<Form>,
) -> Result<ObjKey> {
    let mut mode = st.mode & 0o7777;
    let own = sys::file::stat(to)?;
    let kept_in = permissions.filter(|_| Form::is_for(&own));
    if kept_in.is_none() && (own.uid, own.gid) != (st.uid, st.gid) {
        match sys::file::chown_fd(to, Some(st.uid), Some(st.gid)) {
            Err(Errno::EPERM | Errno::EINVAL) => {
                log::warn!("copy-up keeps our own owner instead of {}:{}", st.uid, st.gid);
                mode &= !0o6000;
            }
            done => done?,
        }
    }
    // Of ours, so that we may set its xattrs, until it has them; an ACL among them sets the mode too.
    let acl = copy_xattrs(from, Target::Fd(to), namespace, permissions.is_some())?;
    if let Some(form) = kept_in {
        sys::xattr::set(Target::Fd(to), form.name(), &OverrideStat::of(st).encode(), 0)?;
    } else if st.format() != libc::S_IFLNK && (own.mode & 0o7777 != mode || acl) {
        sys::file::chmod_fd(to, mode)?;
    }
    sys::file::set_times(to, TimeChange::At(st.atime.0, st.atime.1), TimeChange::At(st.mtime.0, st.mtime.1))?;
    Ok(ObjKey::from(&own))
}
