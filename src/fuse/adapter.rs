//! fuser's trait: each method converts, has its operation run, and answers.

use std::cell::{OnceCell, RefCell};
use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BackingId, BsdFileFlags, CopyFileRangeFlags, Errno as FuseErrno, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};

use crate::error::{Errno, Result};
use crate::fuse::call::call;
use crate::fuse::capabilities::{Mount, negotiate};
use crate::fuse::convert;
use crate::fuse::governor::{Governor, Report};
use crate::fuse::opens::{Opens, Way};
use crate::fuse::operations::{Operations, Value, Write, is_for_writing};
use crate::fuse::seek::{Seek, Seeker};
use crate::fuse::{Ring, no_passthrough, ring};
use crate::union::{Attr, Io, SetAttr};

/// Node numbers are never used for another object while the kernel knows them.
const GENERATION: Generation = Generation(0);
/// Where opens are not told apart.
const NO_HANDLE: FileHandle = FileHandle(0);

thread_local! {
    /// Each worker's buffer for reads.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Each worker's word to the governor.
    static REPORT: OnceCell<Report> = const { OnceCell::new() };
}

/// The operations behind fuser's trait.
#[derive(Debug)]
pub(super) struct Adapter {
    operations: Arc<Operations>,
    seeker: Seeker,
    opens: Opens,
    ring: Ring,
    governor: Arc<Governor>,
}

impl Adapter {
    pub(super) fn new(operations: Arc<Operations>, ring: Ring, governor: Arc<Governor>) -> io::Result<Self> {
        Ok(Self { seeker: Seeker::start(operations.clone())?, operations, opens: Opens::default(), ring, governor })
    }

    /// What comes in numbers begins with this: who asks is of interest to the governor.
    fn is_asked_by(&self, req: &Request) {
        REPORT.with(|report| report.get_or_init(|| self.governor.watch(false)).is_asked_by(req.pid()));
    }

    /// How long the kernel may keep a file's attributes: not at all while it writes to the file by itself.
    fn ttl_of(&self, attr: &Attr) -> Duration {
        let writes_itself = self.operations.granted().passthrough && self.opens.is_written(attr.ino);
        if writes_itself { Duration::ZERO } else { self.operations.ttl() }
    }

    /// Has the kernel ask for a file's attributes again.
    fn attributes_change(&self, ino: INodeNo) {
        // No range of its pages, which would wait for others: its attributes only.
        if let Some(Err(e)) = self.operations.notifier().map(|notifier| notifier.inval_inode(ino, -1, 0)) {
            log::debug!("the attributes of inode {ino} stay known: {e}");
        }
    }

    /// Counts an open in, and says how it goes on.
    fn way_of<F>(&self, ino: u64, write: bool, register: F) -> Way
    where
        F: FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    {
        self.opens.open(ino, write, || {
            let registered = call("open", || self.operations.union().with_passing_file(ino, register))?;
            registered.transpose().map_err(|e| {
                log::debug!("inode {ino} does not pass through: {e}");
                Errno::EIO
            })
        })
    }

    fn entry(&self, reply: ReplyEntry, result: Result<Attr>) {
        match result.and_then(|attr| Ok((self.ttl_of(&attr), convert::attr(&attr)?))) {
            Ok((ttl, attr)) => reply.entry(&ttl, &attr, GENERATION),
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    fn attr(&self, reply: ReplyAttr, result: Result<Attr>) {
        match result.and_then(|attr| Ok((self.ttl_of(&attr), convert::attr(&attr)?))) {
            Ok((ttl, attr)) => reply.attr(&ttl, &attr),
            Err(e) => reply.error(convert::errno(e)),
        }
    }
}

fn empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(convert::errno(e)),
    }
}

fn xattr(reply: ReplyXattr, result: Result<Value>) {
    match result {
        Ok(Value::Size(size)) => reply.size(size),
        Ok(Value::Bytes(value)) => reply.data(&value),
        Err(e) => reply.error(convert::errno(e)),
    }
}

fn written(reply: ReplyWrite, result: Result<usize>) {
    match result {
        Ok(n) => reply.written(n as u32),
        Err(e) => reply.error(convert::errno(e)),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let union = self.operations.union();
        let io = union.options().io;
        let offered = config.capabilities().contains(InitFlags::FUSE_OVER_IO_URING);
        let ring = self.ring.is_taken(io, offered, ring::queues)?;
        let mount = Mount { layers_change: self.operations.layers_change(), writable: union.is_writable(), io, ring };
        let granted = negotiate(config, mount);
        if io == Io::Passthrough && !granted.passthrough {
            return Err(no_passthrough(Errno::EOPNOTSUPP));
        }
        self.operations.agree(granted);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.is_asked_by(req);
        match self.operations.lookup(parent.0, name.as_bytes()).transpose() {
            Some(found) => self.entry(reply, found),
            None => reply.entry(&self.operations.ttl(), &convert::absent(), GENERATION),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.operations.forget(ino.0, nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.is_asked_by(req);
        self.attr(reply, self.operations.getattr(ino.0));
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
        self.is_asked_by(req);
        let change = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
            before_write: false,
        };
        self.attr(reply, self.operations.setattr(&convert::caller(req, 0), ino.0, change, ctime.is_some()));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        self.is_asked_by(req);
        match self.operations.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        self.is_asked_by(req);
        let caller = convert::caller(req, umask);
        let rdev = convert::decode_dev(rdev);
        self.entry(reply, self.operations.mknod(&caller, parent.0, name.as_bytes(), mode, rdev));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.is_asked_by(req);
        let caller = convert::caller(req, umask);
        self.entry(reply, self.operations.mkdir(&caller, parent.0, name.as_bytes(), mode));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.is_asked_by(req);
        empty(reply, self.operations.unlink(parent.0, name.as_bytes()));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.is_asked_by(req);
        empty(reply, self.operations.rmdir(parent.0, name.as_bytes()));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.is_asked_by(req);
        let caller = convert::caller(req, 0);
        let target = target.as_os_str().as_bytes();
        self.entry(reply, self.operations.symlink(&caller, parent.0, name.as_bytes(), target));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.is_asked_by(req);
        let (from, to) = ((parent.0, name.as_bytes()), (newparent.0, newname.as_bytes()));
        empty(reply, self.operations.rename(from, to, flags.bits()));
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.is_asked_by(req);
        self.entry(reply, self.operations.link(ino.0, newparent.0, newname.as_bytes()));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.is_asked_by(req);
        let write = is_for_writing(flags.0);
        match self.operations.open(&convert::caller(req, 0), ino.0, flags.0) {
            Ok(()) if !self.operations.granted().passthrough => reply.opened(NO_HANDLE, FopenFlags::empty()),
            Ok(()) => match self.way_of(ino.0, write, |file| reply.open_backing(file)) {
                Way::Passing(handle, backing) => {
                    if write {
                        self.attributes_change(ino);
                    }
                    reply.opened_passthrough(handle, FopenFlags::empty(), &backing);
                }
                Way::Known(handle) if !self.operations.layers_change() => {
                    reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE)
                }
                Way::Known(handle) | Way::Anew(handle) => reply.opened(handle, FopenFlags::empty()),
            },
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        handle: FileHandle,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.operations.release(ino.0, flags.0);
        if self.operations.granted().passthrough && self.opens.release(ino.0, handle) {
            self.operations.union().may_have_changed(ino.0);
        }
        reply.ok();
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.is_asked_by(req);
        BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let room = buffer.get_mut(..size).unwrap_or_default();
            match self.operations.read(ino.0, offset, room) {
                Ok(n) => reply.data(room.get(..n).unwrap_or_default()),
                Err(e) => reply.error(convert::errno(e)),
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
        self.is_asked_by(req);
        let write = Write {
            cached: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            kill_setid: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        written(reply, self.operations.write(&convert::caller(req, 0), ino.0, offset, data, write));
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        // Nothing is held back by us: the kernel need not ask again.
        reply.error(FuseErrno::ENOSYS);
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        empty(reply, self.operations.fsync(ino.0, datasync));
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.is_asked_by(req);
        match self.operations.opendir(ino.0) {
            Ok(true) => reply.opened(NO_HANDLE, FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE),
            Ok(false) => reply.opened(NO_HANDLE, FopenFlags::empty()),
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    fn releasedir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        empty(reply, self.operations.releasedir(ino.0));
    }

    fn readdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.is_asked_by(req);
        let result = self.operations.readdir(ino.0, offset, &mut |entry| {
            let name = OsStr::from_bytes(entry.name);
            !reply.add(INodeNo(entry.ino), entry.next, convert::file_type(entry.kind), name)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    fn readdirplus(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.is_asked_by(req);
        let result = self.operations.readdirplus(ino.0, offset, &mut |entry, attr| {
            // What can't be looked up is asked for again, and then fails.
            let ttl = if entry.resolved { self.ttl_of(attr) } else { Duration::ZERO };
            let Ok(attr) = convert::attr(attr) else { return false };
            let name = OsStr::from_bytes(entry.name);
            !reply.add(INodeNo(entry.ino), entry.next, name, &ttl, &attr, GENERATION)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(convert::errno(e)),
        }
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        empty(reply, self.operations.fsyncdir(ino.0, datasync));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.operations.statfs() {
            Ok(st) => {
                let (blocks, free, available) = st.blocks;
                let (files, files_free) = st.files;
                reply.statfs(blocks, free, available, files, files_free, st.bsize, st.namelen, st.frsize);
            }
            Err(e) => reply.error(convert::errno(e)),
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
        self.is_asked_by(req);
        let caller = convert::caller(req, 0);
        empty(reply, self.operations.setxattr(&caller, ino.0, name.as_bytes(), value, flags));
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.is_asked_by(req);
        xattr(reply, self.operations.getxattr(ino.0, name.as_bytes(), size));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.is_asked_by(req);
        xattr(reply, self.operations.listxattr(&convert::caller(req, 0), ino.0, size));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.is_asked_by(req);
        empty(reply, self.operations.removexattr(ino.0, name.as_bytes()));
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
        self.is_asked_by(req);
        let caller = convert::caller(req, umask);
        let result = self.operations.create(&caller, parent.0, name.as_bytes(), mode);
        let attr = match result.and_then(|attr| convert::attr(&attr)) {
            Ok(attr) => attr,
            Err(e) => return reply.error(convert::errno(e)),
        };
        let ttl = self.operations.ttl();
        if !self.operations.granted().passthrough {
            return reply.created(&ttl, &attr, GENERATION, NO_HANDLE, FopenFlags::FOPEN_KEEP_CACHE);
        }
        match self.way_of(attr.ino.0, true, |file| reply.open_backing(file)) {
            Way::Passing(handle, backing) => {
                reply.created_passthrough(&ttl, &attr, GENERATION, handle, FopenFlags::empty(), &backing);
            }
            Way::Known(handle) | Way::Anew(handle) => {
                reply.created(&ttl, &attr, GENERATION, handle, FopenFlags::empty());
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
        empty(reply, self.operations.fallocate(ino.0, mode, offset, length));
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let seek = Seek { ino: ino.0, offset, whence };
        match self.operations.lseek(seek) {
            Ok(Some(at)) => reply.offset(at),
            Ok(None) => self.seeker.leave(seek, reply),
            Err(e) => reply.error(convert::errno(e)),
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
        written(reply, self.operations.copy_file_range((ino_in.0, offset_in), (ino_out.0, offset_out), len));
    }
}
