//! The bounded set of open data files. There are no handles in the protocol (NO_OPEN): a read names an inode only.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// How many files in a row are opened ahead of a use that doesn't come.
const AHEAD_IN_VAIN: usize = 16;

/// Open files by inode id. Each entry tells its real object, so that one from before a copy-up is never taken.
#[derive(Debug)]
pub(super) struct OpenFiles {
    files: Mutex<LruCache<u64, (ObjKey, OpenFile)>>,
    /// How many were opened ahead since one was wanted last.
    in_vain: AtomicUsize,
}

impl Default for OpenFiles {
    fn default() -> Self {
        Self { files: Mutex::new(LruCache::new(OPEN_FILES)), in_vain: AtomicUsize::new(0) }
    }
}

impl OpenFiles {
    /// The open file of an inode whose real object is `key`.
    pub(super) fn get(&self, id: u64, key: ObjKey) -> Option<OpenFile> {
        let mut files = self.files.lock();
        let (of, file) = files.get(&id)?;
        (*of == key).then(|| file.clone())
    }

    pub(super) fn put(&self, id: u64, key: ObjKey, file: OpenFile) {
        let evicted = self.files.lock().push(id, (key, file));
        drop(evicted);
    }

    pub(super) fn remove(&self, id: u64) {
        let removed = self.files.lock().pop(&id);
        drop(removed);
    }

    pub(super) fn clear(&self) {
        self.files.lock().clear();
    }

    /// Whether a file is to be opened ahead; counted as in vain until [`OpenFiles::wanted`].
    pub(super) fn opening_ahead_pays(&self) -> bool {
        self.in_vain.load(Ordering::Relaxed) < AHEAD_IN_VAIN && {
            self.in_vain.fetch_add(1, Ordering::Relaxed);
            true
        }
    }

    /// A file was wanted that may have been opened ahead.
    pub(super) fn wanted(&self) {
        self.in_vain.store(0, Ordering::Relaxed);
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
        self.files.lock().len()
    }
}
