//! Each operation of the protocol, once: what the union is asked for, and what the answer is, in our own types. The transports
//! (`adapter` over `/dev/fuse`, `ring` over io_uring) only convert.

use std::ffi::CString;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::Notifier;

use crate::error::{Errno, Result};
use crate::fuse::call::call;
use crate::fuse::capabilities::Granted;
use crate::fuse::killpriv::LostCapabilities;
use crate::fuse::running::Running;
use crate::fuse::seek::Seek;
use crate::fuse::stale::Dropper;
use crate::name::Name;
use crate::union::{Attr, Caller, DirEntry, RenameFlags, SetAttr, StatFs, Union};

/// "For good", as far as the kernel can count it.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The union as the protocol sees it. Names are bytes without a NUL.
#[derive(Debug)]
pub(super) struct Operations {
    union: Arc<Union>,
    ttl: Duration,
    layers_change: bool,
    granted: OnceLock<Granted>,
    dropper: Dropper,
    lost_capabilities: LostCapabilities,
    running: Running,
    notifier: Arc<OnceLock<Notifier>>,
}

/// The answer to a request for an extended attribute, or for the list of them.
#[derive(Debug)]
pub(super) enum Value {
    /// How long it is.
    Size(u32),
    /// What it is.
    Bytes(Vec<u8>),
}

/// What a write comes with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    /// Pages of the kernel's cache: under writeback their time is the kernel's to tell.
    pub cached: bool,
    /// The writer may keep neither set-id bits nor capabilities, as the kernel has found.
    pub kill_setid: bool,
}

impl Operations {
    pub(super) fn new(
        union: Arc<Union>,
        timeout: Option<Duration>,
        notifier: &Arc<OnceLock<Notifier>>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            dropper: Dropper::start(union.clone(), notifier.clone())?,
            union,
            ttl: timeout.unwrap_or(FOREVER),
            layers_change: timeout == Some(Duration::ZERO),
            granted: OnceLock::new(),
            lost_capabilities: LostCapabilities::default(),
            running: Running::default(),
            notifier: notifier.clone(),
        })
    }

    pub(super) fn union(&self) -> &Arc<Union> {
        &self.union
    }

    pub(super) fn notifier(&self) -> Option<&Notifier> {
        self.notifier.get()
    }

    /// Layers may change underneath.
    pub(super) fn layers_change(&self) -> bool {
        self.layers_change
    }

    /// What the kernel has agreed to; before that, nothing.
    pub(super) fn granted(&self) -> Granted {
        self.granted.get().copied().unwrap_or_default()
    }

    /// Sets what the kernel has agreed to, once, before any request.
    pub(super) fn agree(&self, granted: Granted) {
        self.granted.get_or_init(|| granted);
    }

    /// How long the kernel may keep a name, or the attributes of a file that only we change.
    pub(super) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// `None`: a name that is known to be missing, so that the kernel need not ask again.
    pub(super) fn lookup(&self, parent: u64, name: &[u8]) -> Result<Option<Attr>> {
        match call("lookup", || self.union.lookup(parent, &Name::new(name)?)) {
            Ok(attr) => Ok(Some(attr)),
            Err(Errno::ENOENT) if !self.layers_change => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(super) fn forget(&self, ino: u64, lookups: u64) {
        match call("forget", || Ok(self.union.forget(ino, lookups))) {
            Ok(may_be_stale) if may_be_stale && !self.layers_change => self.dropper.drop_names(ino),
            Ok(_) => {}
            Err(_) => log::error!("inode {ino} stays known"),
        }
    }

    pub(super) fn getattr(&self, ino: u64) -> Result<Attr> {
        call("getattr", || self.union.getattr(ino))
    }

    /// `tells_ctime`: the kernel tells its own ctime, which it does under writeback only, with mtime or (for a chown to nobody)
    /// alone. It can't be set: a change sets it. Without writeback a chown to nobody looks the same as what a write takes off a
    /// file with capabilities.
    pub(super) fn setattr(&self, caller: &Caller, ino: u64, change: SetAttr, tells_ctime: bool) -> Result<Attr> {
        let before_write = match self.granted().writeback {
            true => !tells_ctime,
            false => change == SetAttr::default() && self.lost_capabilities.take(ino),
        };
        let change = SetAttr { before_write, ..change };
        call("setattr", || self.union.setattr(caller, ino, &change))
    }

    pub(super) fn readlink(&self, ino: u64) -> Result<Vec<u8>> {
        call("readlink", || self.union.readlink(ino))
    }

    pub(super) fn mknod(&self, caller: &Caller, parent: u64, name: &[u8], mode: u32, rdev: u64) -> Result<Attr> {
        call("mknod", || self.union.mknod(caller, parent, &Name::new(name)?, mode, rdev))
    }

    pub(super) fn mkdir(&self, caller: &Caller, parent: u64, name: &[u8], mode: u32) -> Result<Attr> {
        call("mkdir", || self.union.mkdir(caller, parent, &Name::new(name)?, mode))
    }

    pub(super) fn unlink(&self, parent: u64, name: &[u8]) -> Result<()> {
        call("unlink", || self.union.unlink(parent, &Name::new(name)?))
    }

    pub(super) fn rmdir(&self, parent: u64, name: &[u8]) -> Result<()> {
        call("rmdir", || self.union.rmdir(parent, &Name::new(name)?))
    }

    pub(super) fn symlink(&self, caller: &Caller, parent: u64, name: &[u8], target: &[u8]) -> Result<Attr> {
        call("symlink", || self.union.symlink(caller, parent, &Name::new(name)?, target))
    }

    /// `flags`: those of renameat2(2).
    pub(super) fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32) -> Result<()> {
        let flags = RenameFlags {
            noreplace: flags & libc::RENAME_NOREPLACE != 0,
            exchange: flags & libc::RENAME_EXCHANGE != 0,
            whiteout: flags & libc::RENAME_WHITEOUT != 0,
        };
        call("rename", || self.union.rename(from.0, &Name::new(from.1)?, to.0, &Name::new(to.1)?, flags))
    }

    pub(super) fn link(&self, ino: u64, parent: u64, name: &[u8]) -> Result<Attr> {
        call("link", || self.union.link(ino, parent, &Name::new(name)?))
    }

    /// `flags`: those of open(2).
    ///
    /// # Errors
    /// `ENOSYS` if opens are not told apart: the kernel then asks for none. `ETXTBSY` for truncating a program that runs.
    pub(super) fn open(&self, caller: &Caller, ino: u64, flags: i32) -> Result<()> {
        if self.granted().no_open {
            return Err(Errno::ENOSYS);
        }
        if self.running.forbids(ino, flags) {
            return Err(Errno::ETXTBSY);
        }
        call("open", || self.union.open_file(caller, ino, is_for_writing(flags), flags & libc::O_TRUNC != 0))?;
        self.running.opened(ino, flags);
        Ok(())
    }

    /// `flags`: those of the open that ends.
    pub(super) fn release(&self, ino: u64, flags: i32) {
        self.running.released(ino, flags);
    }

    pub(super) fn read(&self, ino: u64, offset: u64, room: &mut [u8]) -> Result<usize> {
        call("read", || self.union.read(ino, offset, room))
    }

    pub(super) fn write(&self, caller: &Caller, ino: u64, offset: u64, data: &[u8], write: Write) -> Result<usize> {
        call("write", || {
            if write.kill_setid {
                // Whoever it is, they may not keep them.
                let caller = Caller { uid: u32::MAX, ..*caller };
                self.union.setattr(&caller, ino, &SetAttr::default())?;
            }
            match (write.cached, self.granted().writeback) {
                (true, true) => self.union.write_back(ino, offset, data),
                (true, false) => self.union.write_mapped(ino, offset, data),
                (false, _) => self.union.write(ino, offset, data),
            }
        })
    }

    pub(super) fn fsync(&self, ino: u64, datasync: bool) -> Result<()> {
        call("fsync", || self.union.fsync(ino, datasync))
    }

    /// True if the kernel may keep the listing.
    ///
    /// # Errors
    /// `ENOSYS` if opens are not told apart: the kernel then asks for none.
    pub(super) fn opendir(&self, ino: u64) -> Result<bool> {
        if self.granted().no_opendir {
            return Err(Errno::ENOSYS);
        }
        Ok(call("opendir", || self.union.opendir(ino))? && !self.layers_change)
    }

    pub(super) fn releasedir(&self, ino: u64) -> Result<()> {
        call("releasedir", || self.union.releasedir(ino))
    }

    /// Gives entries to `sink` until it has no more room.
    pub(super) fn readdir(&self, ino: u64, offset: u64, sink: &mut dyn FnMut(&DirEntry<'_>) -> bool) -> Result<()> {
        call("readdir", || self.union.readdir(ino, offset, sink))
    }

    /// Gives entries to `sink` until it has no more room; each one that it takes is a lookup.
    pub(super) fn readdirplus(
        &self,
        ino: u64,
        offset: u64,
        sink: &mut dyn FnMut(&DirEntry<'_>, &Attr) -> bool,
    ) -> Result<()> {
        call("readdirplus", || self.union.readdirplus(ino, offset, sink))
    }

    pub(super) fn fsyncdir(&self, ino: u64, datasync: bool) -> Result<()> {
        call("fsyncdir", || self.union.fsyncdir(ino, datasync))
    }

    pub(super) fn statfs(&self) -> Result<StatFs> {
        call("statfs", || self.union.statfs())
    }

    pub(super) fn setxattr(&self, caller: &Caller, ino: u64, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        call("setxattr", || self.union.setxattr(caller, ino, &xattr_name(name)?, value, flags))
    }

    /// `room`: what the caller has for the value, in bytes; 0 asks for its size.
    pub(super) fn getxattr(&self, ino: u64, name: &[u8], room: u32) -> Result<Value> {
        fit(call("getxattr", || self.union.getxattr(ino, &xattr_name(name)?))?, room)
    }

    /// `room`: as for a value.
    pub(super) fn listxattr(&self, caller: &Caller, ino: u64, room: u32) -> Result<Value> {
        fit(call("listxattr", || self.union.listxattr_for(caller, ino))?, room)
    }

    pub(super) fn removexattr(&self, ino: u64, name: &[u8]) -> Result<()> {
        call("removexattr", || self.union.removexattr(ino, &xattr_name(name)?))?;
        self.lost_capabilities.put(ino, name);
        Ok(())
    }

    pub(super) fn create(&self, caller: &Caller, parent: u64, name: &[u8], mode: u32) -> Result<Attr> {
        call("create", || self.union.create(caller, parent, &Name::new(name)?, mode & 0o7777))
    }

    pub(super) fn fallocate(&self, ino: u64, mode: i32, offset: u64, length: u64) -> Result<()> {
        call("fallocate", || self.union.fallocate(ino, mode, offset, length))
    }

    /// Where it leads if that is known without waiting for the file's dirty pages.
    pub(super) fn lseek(&self, seek: Seek) -> Result<Option<i64>> {
        match self.granted().writeback {
            true => Ok(None),
            false => call("lseek", || seek.without_holes(&self.union)),
        }
    }

    /// Has the file's dirty pages written first, which come as requests of their own: others have to take those meanwhile.
    pub(super) fn lseek_after_pages(&self, seek: Seek) -> Result<i64> {
        seek.write_pages(self.notifier());
        call("lseek", || self.union.lseek(seek.ino, seek.offset, seek.whence))
    }

    pub(super) fn copy_file_range(&self, from: (u64, u64), to: (u64, u64), len: u64) -> Result<usize> {
        call("copy_file_range", || self.union.copy_file_range(from.0, from.1, to.0, to.1, len))
    }
}

/// Whether the flags of open(2) are for writing.
pub(super) fn is_for_writing(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

fn xattr_name(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| Errno::EINVAL)
}

fn fit(value: Vec<u8>, room: u32) -> Result<Value> {
    match room as usize {
        0 => Ok(Value::Size(value.len() as u32)),
        room if value.len() > room => Err(Errno::ERANGE),
        _ => Ok(Value::Bytes(value)),
    }
}
