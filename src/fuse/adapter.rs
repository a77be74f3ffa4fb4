//! fuser's trait: each method converts, calls the union once, and answers.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BackingId, BsdFileFlags, CopyFileRangeFlags, Errno as FuseErrno, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

use crate::error::Errno;
use crate::fuse::call::call;
use crate::fuse::capabilities::{Granted, Mount, negotiate};
use crate::fuse::convert;
use crate::fuse::killpriv::LostCapabilities;
use crate::fuse::no_passthrough;
use crate::fuse::opens::{Opens, Way};
use crate::fuse::seek::{Seek, Seeker};
use crate::fuse::stale::Dropper;
use crate::union::{Attr, Caller, Io, SetAttr, Union};

/// "For good", as far as the kernel can count it.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Node numbers are never used for another object while the kernel knows them.
const GENERATION: Generation = Generation(0);
/// Where opens are not told apart.
const NO_HANDLE: FileHandle = FileHandle(0);

thread_local! {
    /// Each worker's buffer for reads.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The union behind fuser's trait.
#[derive(Debug)]
pub(super) struct Adapter {
    union: Arc<Union>,
    ttl: Duration,
    layers_change: bool,
    granted: Granted,
    seeker: Seeker,
    dropper: Dropper,
    opens: Opens,
    lost_capabilities: LostCapabilities,
    notifier: Arc<OnceLock<Notifier>>,
}

impl Adapter {
    pub(super) fn new(
        union: Arc<Union>,
        timeout: Option<Duration>,
        notifier: &Arc<OnceLock<Notifier>>,
    ) -> io::Result<Self> {
        Ok(Self {
            seeker: Seeker::start(union.clone(), notifier.clone())?,
            dropper: Dropper::start(notifier.clone())?,
            union,
            ttl: timeout.unwrap_or(FOREVER),
            layers_change: timeout == Some(Duration::ZERO),
            granted: Granted::default(),
            opens: Opens::default(),
            lost_capabilities: LostCapabilities::default(),
            notifier: notifier.clone(),
        })
    }

    /// How long the kernel may keep a file's attributes: not at all while it writes to the file by itself.
    fn ttl_of(&self, attr: &Attr) -> &Duration {
        if self.granted.passthrough && self.opens.is_written(attr.ino) { &Duration::ZERO } else { &self.ttl }
    }

    /// Has the kernel ask for a file's attributes again.
    fn attributes_change(&self, ino: INodeNo) {
        // No range of its pages, which would wait for others: its attributes only.
        if let Some(Err(e)) = self.notifier.get().map(|notifier| notifier.inval_inode(ino, -1, 0)) {
            log::debug!("the attributes of inode {ino} stay known: {e}");
        }
    }

    /// Counts an open in, and says how it goes on.
    fn way_of<F>(&self, ino: u64, write: bool, register: F) -> Way
    where
        F: FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    {
        self.opens.open(ino, write, || {
            let registered = call("open", || self.union.with_passing_file(ino, register))?;
            registered.transpose().map_err(|e| {
                log::debug!("inode {ino} does not pass through: {e}");
                FuseErrno::from(e)
            })
        })
    }

    fn entry(&self, reply: ReplyEntry, result: std::result::Result<Attr, FuseErrno>) {
        match result.and_then(|attr| Ok((self.ttl_of(&attr), fuse_attr(&attr)?))) {
            Ok((ttl, attr)) => reply.entry(ttl, &attr, GENERATION),
            Err(e) => reply.error(e),
        }
    }

    fn attr(&self, reply: ReplyAttr, result: std::result::Result<Attr, FuseErrno>) {
        match result.and_then(|attr| Ok((self.ttl_of(&attr), fuse_attr(&attr)?))) {
            Ok((ttl, attr)) => reply.attr(ttl, &attr),
            Err(e) => reply.error(e),
        }
    }
}

fn fuse_attr(attr: &Attr) -> std::result::Result<fuser::FileAttr, FuseErrno> {
    convert::attr(attr).map_err(|e| FuseErrno::from_i32(e as i32))
}

fn empty(reply: ReplyEmpty, result: std::result::Result<(), FuseErrno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(e),
    }
}

/// Answers a request for an xattr by its size, or by its value if there is room.
fn xattr(reply: ReplyXattr, size: u32, result: std::result::Result<Vec<u8>, FuseErrno>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(FuseErrno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(e),
    }
}

fn written(reply: ReplyWrite, result: std::result::Result<usize, FuseErrno>) {
    match result {
        Ok(n) => reply.written(n as u32),
        Err(e) => reply.error(e),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let io = self.union.options().io;
        let mount = Mount { layers_change: self.layers_change, writable: self.union.is_writable(), io };
        self.granted = negotiate(config, mount);
        if io == Io::Passthrough && !self.granted.passthrough {
            return Err(no_passthrough(Errno::EOPNOTSUPP));
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let result = call("lookup", || self.union.lookup(parent.0, &convert::name(name)?));
        match result {
            // A name that is known to be missing: the kernel need not ask again.
            Err(e) if e.code() == libc::ENOENT && !self.layers_change => {
                reply.entry(&self.ttl, &convert::absent(), GENERATION);
            }
            other => self.entry(reply, other),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        match call("forget", || Ok(self.union.forget(ino.0, nlookup))) {
            Ok(stale) if !self.layers_change => {
                stale.into_iter().for_each(|(dir, name)| self.dropper.drop_name(dir, name));
            }
            Ok(_) => {}
            Err(_) => log::error!("inode {ino} stays known"),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.attr(reply, call("getattr", || self.union.getattr(ino.0)));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // Under writeback the kernel tells its own ctime, with mtime or (for a chown to nobody) alone. It can't be set: a
        // change sets it. Without writeback both look the same, and so does what a write takes off a file with capabilities.
        let change = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
            before_write: false,
        };
        let before_write = match self.granted.writeback {
            true => ctime.is_none(),
            false => change == SetAttr::default() && self.lost_capabilities.take(ino),
        };
        let change = SetAttr { before_write, ..change };
        self.attr(reply, call("setattr", || self.union.setattr(&convert::caller(req, 0), ino.0, &change)));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match call("readlink", || self.union.readlink(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(e),
        }
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let caller = convert::caller(req, umask);
        let rdev = convert::decode_dev(rdev);
        self.entry(reply, call("mknod", || self.union.mknod(&caller, parent.0, &convert::name(name)?, mode, rdev)));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let caller = convert::caller(req, umask);
        self.entry(reply, call("mkdir", || self.union.mkdir(&caller, parent.0, &convert::name(name)?, mode)));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, call("unlink", || self.union.unlink(parent.0, &convert::name(name)?)));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, call("rmdir", || self.union.rmdir(parent.0, &convert::name(name)?)));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let caller = convert::caller(req, 0);
        let target = target.as_os_str().as_bytes();
        self.entry(reply, call("symlink", || self.union.symlink(&caller, parent.0, &convert::name(name)?, target)));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let flags = crate::union::RenameFlags {
            noreplace: flags.contains(RenameFlags::RENAME_NOREPLACE),
            exchange: flags.contains(RenameFlags::RENAME_EXCHANGE),
            whiteout: flags.contains(RenameFlags::RENAME_WHITEOUT),
        };
        let result = call("rename", || {
            self.union.rename(parent.0, &convert::name(name)?, newparent.0, &convert::name(newname)?, flags)
        });
        empty(reply, result);
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.entry(reply, call("link", || self.union.link(ino.0, newparent.0, &convert::name(newname)?)));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.granted.no_open {
            return reply.error(FuseErrno::ENOSYS);
        }
        let (write, truncate) = convert::opened_for(flags);
        match call("open", || self.union.open_file(&convert::caller(req, 0), ino.0, write, truncate)) {
            Ok(()) if !self.granted.passthrough => reply.opened(NO_HANDLE, FopenFlags::empty()),
            Ok(()) => match self.way_of(ino.0, write, |file| reply.open_backing(file)) {
                Way::Passing(handle, backing) => {
                    if write {
                        self.attributes_change(ino);
                    }
                    reply.opened_passthrough(handle, FopenFlags::empty(), &backing);
                }
                Way::Known(handle) if !self.layers_change => reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE),
                Way::Known(handle) | Way::Anew(handle) => reply.opened(handle, FopenFlags::empty()),
            },
            Err(e) => reply.error(e),
        }
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if self.granted.passthrough && self.opens.release(ino.0, handle) {
            self.union.may_have_changed(ino.0);
        }
        reply.ok();
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let result = call("read", || {
                let room = buffer.get_mut(..size).ok_or(Errno::EIO)?;
                self.union.read(ino.0, offset, room)
            });
            match result {
                Ok(n) => reply.data(buffer.get(..n).unwrap_or_default()),
                Err(e) => reply.error(e),
            }
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Pages of the kernel's cache: under writeback their time is the kernel's to tell.
        let cached = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let result = call("write", || {
            if kill {
                // Whoever it is, the kernel has found that they may not keep them.
                let caller = Caller { uid: u32::MAX, ..convert::caller(req, 0) };
                self.union.setattr(&caller, ino.0, &SetAttr::default())?;
            }
            match (cached, self.granted.writeback) {
                (true, true) => self.union.write_back(ino.0, offset, data),
                (true, false) => self.union.write_mapped(ino.0, offset, data),
                (false, _) => self.union.write(ino.0, offset, data),
            }
        });
        written(reply, result);
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        // Nothing is held back by us: the kernel need not ask again.
        reply.error(FuseErrno::ENOSYS);
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        empty(reply, call("fsync", || self.union.fsync(ino.0, datasync)));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.granted.no_opendir {
            return reply.error(FuseErrno::ENOSYS);
        }
        match call("opendir", || self.union.opendir(ino.0)) {
            Ok(true) if !self.layers_change => {
                reply.opened(NO_HANDLE, FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
            }
            Ok(_) => reply.opened(NO_HANDLE, FopenFlags::empty()),
            Err(e) => reply.error(e),
        }
    }

    fn releasedir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        empty(reply, call("releasedir", || self.union.releasedir(ino.0)));
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let result = call("readdir", || {
            self.union.readdir(ino.0, offset, &mut |entry| {
                let name = OsStr::from_bytes(entry.name);
                !reply.add(INodeNo(entry.ino), entry.next, convert::file_type(entry.kind), name)
            })
        });
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let result = call("readdirplus", || {
            self.union.readdirplus(ino.0, offset, &mut |entry, attr| {
                let ttl = self.ttl_of(attr);
                let Ok(attr) = convert::attr(attr) else { return false };
                let name = OsStr::from_bytes(entry.name);
                // What can't be looked up is asked for again, and then fails.
                let ttl = if entry.resolved { ttl } else { &Duration::ZERO };
                !reply.add(INodeNo(entry.ino), entry.next, name, ttl, &attr, GENERATION)
            })
        });
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        empty(reply, call("fsyncdir", || self.union.fsyncdir(ino.0, datasync)));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match call("statfs", || self.union.statfs()) {
            Ok(st) => {
                let (blocks, free, available) = st.blocks;
                let (files, files_free) = st.files;
                reply.statfs(blocks, free, available, files, files_free, st.bsize, st.namelen, st.frsize);
            }
            Err(e) => reply.error(e),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let caller = convert::caller(req, 0);
        let result =
            call("setxattr", || self.union.setxattr(&caller, ino.0, &convert::xattr_name(name)?, value, flags));
        empty(reply, result);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        xattr(reply, size, call("getxattr", || self.union.getxattr(ino.0, &convert::xattr_name(name)?)));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let caller = convert::caller(req, 0);
        xattr(reply, size, call("listxattr", || self.union.listxattr_for(&caller, ino.0)));
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result = call("removexattr", || self.union.removexattr(ino.0, &convert::xattr_name(name)?));
        if result.is_ok() {
            self.lost_capabilities.put(ino, name);
        }
        empty(reply, result);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions by itself.
        reply.error(FuseErrno::ENOSYS);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let caller = convert::caller(req, umask);
        let result = call("create", || self.union.create(&caller, parent.0, &convert::name(name)?, mode & 0o7777));
        let attr = match result.and_then(|attr| fuse_attr(&attr)) {
            Ok(attr) => attr,
            Err(e) => return reply.error(e),
        };
        if !self.granted.passthrough {
            return reply.created(&self.ttl, &attr, GENERATION, NO_HANDLE, FopenFlags::FOPEN_KEEP_CACHE);
        }
        match self.way_of(attr.ino.0, true, |file| reply.open_backing(file)) {
            Way::Passing(handle, backing) => {
                reply.created_passthrough(&self.ttl, &attr, GENERATION, handle, FopenFlags::empty(), &backing);
            }
            Way::Known(handle) | Way::Anew(handle) => {
                reply.created(&self.ttl, &attr, GENERATION, handle, FopenFlags::empty());
            }
        }
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(FuseErrno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(FuseErrno::ENOTTY);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // Regular files are always ready, which is what the kernel says then.
        reply.error(FuseErrno::ENOSYS);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        empty(reply, call("fallocate", || self.union.fallocate(ino.0, mode, offset, length)));
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let seek = Seek { ino, offset, whence, reply };
        if self.granted.writeback {
            self.seeker.leave(seek);
        } else {
            self.seeker.answer_or_leave(seek, &self.union);
        }
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let result =
            call("copy_file_range", || self.union.copy_file_range(ino_in.0, offset_in, ino_out.0, offset_out, len));
        written(reply, result);
    }
}
