//! The bounded set of open data files. There are no handles in the protocol (NO_OPEN): a read names an inode only.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use crate::error::Result;
use crate::layer::ObjKey;
use crate::layer::upper::UpperObject;
use crate::sys;
use crate::sys::file::Stat;

/// How many data files stay open.
const OPEN_FILES: NonZeroUsize = NonZeroUsize::new(128).unwrap();

/// An open file, for reading or, if it is upper's, for writing too.
#[derive(Clone, Debug)]
pub(super) enum OpenFile {
    /// A file that is only read.
    Read(Arc<OwnedFd>),
    /// A file of upper, readable and writable.
    Write(UpperObject),
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Read(fd) => fd.as_fd(),
            Self::Write(object) => object.as_fd(),
        }
    }
}

/// Open files by inode id. Each entry tells its real object, so that one from before a copy-up is never taken.
#[derive(Debug)]
pub(super) struct OpenFiles(Mutex<LruCache<u64, (ObjKey, OpenFile)>>);

impl Default for OpenFiles {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(OPEN_FILES)))
    }
}

impl OpenFiles {
    /// The open file of an inode whose real object is `key`.
    pub(super) fn get(&self, id: u64, key: ObjKey) -> Option<OpenFile> {
        let mut files = self.0.lock();
        let (of, file) = files.get(&id)?;
        (*of == key).then(|| file.clone())
    }

    pub(super) fn put(&self, id: u64, key: ObjKey, file: OpenFile) {
        let evicted = self.0.lock().push(id, (key, file));
        drop(evicted);
    }

    pub(super) fn remove(&self, id: u64) {
        let removed = self.0.lock().pop(&id);
        drop(removed);
    }

    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }

    /// The status of an open file, without looking for it by name.
    pub(super) fn stat(&self, id: u64, key: ObjKey) -> Option<Result<Stat>> {
        self.get(id, key).map(|file| sys::file::stat(file.as_fd()))
    }

    /// An open file of upper.
    pub(super) fn upper_object(&self, id: u64, key: ObjKey) -> Option<UpperObject> {
        match self.get(id, key)? {
            OpenFile::Write(object) => Some(object),
            OpenFile::Read(_) => None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }
}
