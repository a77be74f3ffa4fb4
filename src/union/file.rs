//! Data: every read and write goes to the inode's current real file, so descriptors from before a copy-up see it.

use std::os::fd::AsFd;
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::unistd::Whence;

use crate::error::{Errno, Result};
use crate::layer::ObjKey;
use crate::layer::upper::UpperObject;
use crate::sys;
use crate::sys::file::TimeChange;
use crate::sys::xattr::{CAPABILITY, Target};
use crate::union::copy_up::CopyUp;
use crate::union::handles::OpenFile;
use crate::union::inode::{Inode, Node};
use crate::union::reach::Reached;
use crate::union::stats::Op;
use crate::union::{Caller, Durability, FileKind, SetAttr, StatFs, Time, Union};

impl Union {
    /// Opens a file where the kernel asks for each opening: for writing it is copied up now, as the kernel's overlay does, and
    /// emptied first if `truncate` says so.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL` for what has no data; `EROFS` without an upper; whatever the copy fails with.
    pub fn open_file(&self, caller: &Caller, ino: u64, write: bool, truncate: bool) -> Result<()> {
        self.counters.count(Op::Open);
        let inode = self.regular(ino)?;
        if truncate {
            self.setattr(caller, ino, &SetAttr { size: Some(0), ..SetAttr::default() })?;
        }
        if write { self.ensure_upper(&inode, CopyUp::Whole) } else { Ok(()) }
    }

    /// Reads from an offset until the buffer is full or the file ends; returns how many bytes.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL` for what has no data.
    pub fn read(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.counters.count(Op::Read);
        let inode = self.regular(ino)?;
        let file = self.readable_file(&inode)?;
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = i64::try_from(offset + done as u64).map_err(|_| Errno::EINVAL)?;
            match sys::posix::pread(file.as_fd(), rest, at) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::EINTR) => {}
                // Less than asked for means the end of the file to the kernel, which would show zeros for the rest.
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Writes at an offset, copying the file up first; returns how many bytes.
    ///
    /// # Errors
    /// As write(2); `EROFS` without an upper.
    pub fn write(&self, ino: u64, offset: u64, data: &[u8]) -> Result<usize> {
        self.write_now(ino, |_, file| self.write_all(file, offset, data))
    }

    /// As [`Union::write`], for pages of the kernel's cache. The kernel keeps the file's time of modification, and tells it
    /// by setattr, before the pages or after them: they must not change it.
    ///
    /// # Errors
    /// As write.
    pub fn write_back(&self, ino: u64, offset: u64, data: &[u8]) -> Result<usize> {
        self.counters.count(Op::Write);
        let inode = self.regular(ino)?;
        let file = self.writable_file(&inode)?;
        let Node::Other(state) = &inode.node else { return Err(Errno::EISDIR) };
        if state.read().rare().and_then(|rare| rare.kernel_mtime).is_none() {
            let (sec, nsec) = sys::file::stat(&file)?.mtime;
            state.write().rare_mut().kernel_mtime.get_or_insert(Time { sec, nsec });
        }
        let written = self.write_pages(&inode, &file, offset, data);
        self.content_changed(&inode);
        let written = written?;
        // Read after the write: the kernel may have told another one meanwhile.
        let told = state.read().rare().and_then(|rare| rare.kernel_mtime);
        if let Some(time) = told {
            self.stack.upper()?.set_times(&file, TimeChange::Omit, TimeChange::At(time.sec, time.nsec))?;
        }
        Ok(written)
    }

    /// As [`Union::write_back`], where the kernel keeps no time of modification: these are pages that a mapping changed.
    ///
    /// # Errors
    /// As write.
    pub fn write_mapped(&self, ino: u64, offset: u64, data: &[u8]) -> Result<usize> {
        self.write_now(ino, |inode, file| self.write_pages(inode, file, offset, data))
    }

    /// Runs a write that dates the file.
    fn write_now(&self, ino: u64, write: impl FnOnce(&Inode, &UpperObject) -> Result<usize>) -> Result<usize> {
        self.counters.count(Op::Write);
        let inode = self.regular(ino)?;
        let file = self.writable_file(&inode)?;
        self.mtime_moves(&inode);
        let written = write(&inode, &file);
        self.content_changed(&inode);
        written
    }

    /// Writes pages of the kernel's cache. It has asked to drop the file's capabilities when they were written to, and not at
    /// all when a mapping was; those that the file has by now are to stay.
    fn write_pages(&self, inode: &Inode, file: &UpperObject, offset: u64, data: &[u8]) -> Result<usize> {
        if sys::xattr::get(Target::Fd(file.as_fd()), CAPABILITY).is_err() {
            return self.write_all(file, offset, data);
        }
        // None may be dropped meanwhile.
        let _one = inode.copy_up.lock();
        self.keeping_capabilities(file, || self.write_all(file, offset, data))
    }

    /// Writes to a file, with which its filesystem drops the capabilities, and gives them back.
    pub(super) fn keeping_capabilities<T>(&self, file: &UpperObject, write: impl FnOnce() -> Result<T>) -> Result<T> {
        let kept = sys::xattr::get(Target::Fd(file.as_fd()), CAPABILITY).ok();
        let written = write()?;
        if let Some(value) = kept
            && let Err(e) = self.stack.upper()?.set_xattr(file, CAPABILITY, &value, 0)
        {
            log::debug!("a file's capabilities are lost: {e}");
        }
        Ok(written)
    }

    fn write_all(&self, file: &UpperObject, offset: u64, data: &[u8]) -> Result<usize> {
        let upper = self.stack.upper()?;
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            match upper.write(file, rest, offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::EINTR) => {}
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Makes a file's data (and unless `datasync` its attributes) durable.
    ///
    /// # Errors
    /// As fsync(2).
    pub fn fsync(&self, ino: u64, datasync: bool) -> Result<()> {
        self.counters.count(Op::Fsync);
        let inode = self.inode(ino)?;
        let Node::Other(file) = &inode.node else { return self.sync_dir(&inode) };
        if !self.syncs() || !file.read().layer.is_upper() || inode.kind != FileKind::Regular {
            return Ok(());
        }
        if self.commits.holds(&inode) {
            return self.commit_one(&inode);
        }
        // A metadata copy's data is the lower's: what is to be synced is the copy.
        let metadata_only = file.read().data().is_some();
        let file = if metadata_only {
            OpenFile::Write(self.stack.upper()?.reopen(&self.upper_object(&inode)?, OFlag::O_RDONLY)?)
        } else {
            self.readable_file(&inode)?
        };
        if datasync { sys::posix::fdatasync(file.as_fd()) } else { sys::posix::fsync(file.as_fd()) }
    }

    /// Makes a directory's entries durable.
    ///
    /// # Errors
    /// As fsync(2).
    pub fn fsyncdir(&self, ino: u64, _datasync: bool) -> Result<()> {
        self.counters.count(Op::Fsync);
        self.sync_dir(&*self.dir(ino)?)
    }

    fn syncs(&self) -> bool {
        self.options.fsync && self.options.durability != Durability::Volatile
    }

    fn sync_dir(&self, dir: &Inode) -> Result<()> {
        let node = dir.as_dir().ok_or(Errno::ENOTDIR)?;
        let gone = node.state.read().removed.is_some();
        match node.view().upper {
            Some(upper) if self.syncs() && !gone => {
                self.commit_in(dir)?;
                sys::posix::fsync(self.stack.open_dir_readable(&upper)?)
            }
            _ => Ok(()),
        }
    }

    /// fallocate(2).
    ///
    /// # Errors
    /// As fallocate(2); `EOPNOTSUPP` where upper's filesystem can't.
    pub fn fallocate(&self, ino: u64, mode: i32, offset: u64, length: u64) -> Result<()> {
        self.counters.count(Op::Fallocate);
        let inode = self.regular(ino)?;
        let file = self.writable_file(&inode)?;
        let number = |n: u64| i64::try_from(n).map_err(|_| Errno::EFBIG);
        self.mtime_moves(&inode);
        let done = self.stack.upper()?.allocate(&file, mode, number(offset)?, number(length)?);
        self.content_changed(&inode);
        done
    }

    /// lseek(2) with `SEEK_DATA` or `SEEK_HOLE`.
    ///
    /// # Errors
    /// `ENXIO` past the end, `EINVAL` for another `whence`.
    pub fn lseek(&self, ino: u64, offset: i64, whence: i32) -> Result<i64> {
        self.counters.count(Op::Lseek);
        let whence = match whence {
            libc::SEEK_DATA => Whence::SeekData,
            libc::SEEK_HOLE => Whence::SeekHole,
            _ => return Err(Errno::EINVAL),
        };
        let inode = self.regular(ino)?;
        sys::posix::lseek(self.readable_file(&inode)?.as_fd(), offset, whence)
    }

    /// copy_file_range(2).
    ///
    /// # Errors
    /// As copy_file_range(2); `EXDEV` and `EOPNOTSUPP` make the kernel copy by itself.
    pub fn copy_file_range(&self, ino_in: u64, off_in: u64, ino_out: u64, off_out: u64, len: u64) -> Result<usize> {
        self.counters.count(Op::CopyFileRange);
        let (from, to) = (self.regular(ino_in)?, self.regular(ino_out)?);
        self.mtime_moves(&to);
        let file = self.writable_file(&to)?;
        let from = self.readable_file(&from)?;
        // The answer is a 32-bit number.
        let len = usize::try_from(len.min(1 << 30)).map_err(|_| Errno::EINVAL)?;
        let copied = self.stack.upper()?.copy_range(from.as_fd(), off_in, &file, off_out, len);
        self.content_changed(&to);
        copied
    }

    /// statfs(2): of upper's filesystem, else the top lower's.
    ///
    /// # Errors
    /// As statfs(2).
    pub fn statfs(&self) -> Result<StatFs> {
        self.counters.count(Op::Statfs);
        self.stack.fs_stat()
    }

    /// The target of a symlink.
    ///
    /// # Errors
    /// `EINVAL` for anything else.
    pub fn readlink(&self, ino: u64) -> Result<Vec<u8>> {
        self.counters.count(Op::Readlink);
        let inode = self.inode(ino)?;
        if inode.kind != FileKind::Symlink {
            return Err(Errno::EINVAL);
        }
        self.with_object(&inode, sys::file::read_link)
    }

    /// The time of modification is the filesystem's again: something else than cached pages changed the file.
    pub(super) fn mtime_moves(&self, inode: &Inode) {
        let Node::Other(file) = &inode.node else { return };
        if file.read().rare().is_some_and(|rare| rare.kernel_mtime.is_some()) {
            file.write().rare_mut().kernel_mtime = None;
        }
    }

    pub(super) fn regular(&self, ino: u64) -> Result<Arc<Inode>> {
        let inode = self.inode(ino)?;
        match inode.kind {
            FileKind::Regular => Ok(inode),
            FileKind::Directory => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The real file behind an inode, for reading.
    pub(super) fn readable_file(&self, inode: &Inode) -> Result<OpenFile> {
        let Node::Other(file) = &inode.node else { return Err(Errno::EISDIR) };
        let keys = || {
            let file = file.read();
            (file.key, file.data_key())
        };
        // A copy-up in between makes another object of it, perhaps with its data where it was: then the next round opens that.
        for _ in 0..16 {
            let before = keys();
            let key = before.1;
            if let Some(open) = self.files.get(inode.id, key) {
                return Ok(open);
            }
            match self.open_for_reading(inode, key) {
                Err(Errno::ESTALE | Errno::ENOENT) if keys() != before => {}
                opened => {
                    let opened = opened?;
                    self.files.put(inode.id, key, opened.clone());
                    return Ok(opened);
                }
            }
        }
        Err(Errno::ESTALE)
    }

    /// The real file behind an inode that has its data, open and kept open; `None` for anything else and where it can't be read.
    pub(super) fn kept_for_reading(&self, inode: &Inode) -> Option<OpenFile> {
        own_data(inode).and_then(|_| self.readable_file(inode).ok())
    }

    /// As [`Union::kept_for_reading`], for whoever asks for a file's capabilities. The kernel does before a first write: what it
    /// will want to read or copy next is opened for that now. So do those who look through whole trees and want nothing next:
    /// for them none but open ones are told.
    pub(super) fn opened_ahead(&self, inode: &Inode) -> Option<OpenFile> {
        let open = self.files.get(inode.id, own_data(inode)?);
        open.or_else(|| self.files.opening_ahead_pays().then(|| self.readable_file(inode).ok()).flatten())
    }

    fn open_for_reading(&self, inode: &Inode, key: ObjKey) -> Result<OpenFile> {
        let Node::Other(file) = &inode.node else { return Err(Errno::EISDIR) };
        let lower_data = file.read().data().cloned();
        if let Some(data) = lower_data {
            let fd = self.stack.open_data(&data.dir, &data.name, data.key)?;
            return Ok(OpenFile::Read(Arc::new(fd)));
        }
        let fd = self.reach(inode, |way| match way {
            Reached::Object(object) => object.reopen(OFlag::O_RDONLY).map(UpperObject::into_fd),
            Reached::Named(dir, name, _) => match self.stack.as_upper(dir) {
                // Upper's own access time is its user's.
                Some(dir) => self.stack.open_upper_object(&dir, name, key, OFlag::O_RDONLY).map(UpperObject::into_fd),
                None => self.stack.open_data(dir, name, key).map(Arc::new),
            },
        })?;
        Ok(OpenFile::Read(fd))
    }

    /// The file of upper behind an inode, copied up if need be, for reading and writing.
    pub(super) fn writable_file(&self, inode: &Arc<Inode>) -> Result<UpperObject> {
        let Node::Other(file) = &inode.node else { return Err(Errno::EISDIR) };
        self.ensure_upper(inode, CopyUp::Whole)?;
        let key = file.read().key;
        if let Some(object) = self.files.upper_object(inode.id, key) {
            return Ok(object);
        }
        let object = self.open_for_writing(inode)?;
        self.files.put(inode.id, key, OpenFile::Write(object.clone()));
        Ok(object)
    }

    /// Opens the file of upper behind an inode that was copied up.
    pub(super) fn open_for_writing(&self, inode: &Inode) -> Result<UpperObject> {
        self.reach(inode, |way| match way {
            Reached::Object(object) => object.reopen(OFlag::O_RDWR),
            Reached::Named(dir, name, key) => {
                let dir = self.stack.as_upper(dir).ok_or(Errno::EROFS)?;
                self.stack.open_upper_object(&dir, name, key, OFlag::O_RDWR)
            }
        })
    }
}

/// The real object of a file whose data is where its metadata is.
fn own_data(inode: &Inode) -> Option<ObjKey> {
    let Node::Other(file) = &inode.node else { return None };
    let file = file.read();
    (inode.kind == FileKind::Regular && file.data().is_none()).then_some(file.key)
}
