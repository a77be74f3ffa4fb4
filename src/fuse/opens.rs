//! The opens of files that pass through: the kernel reads and writes the real file by itself.
//!
//! Its rules (fs/fuse/iomode.c), whose breach is an EIO for the user: an inode's opens all pass through, to the same file
//! registered once, or none does. So the first open decides, and holds until the last one is gone. The kernel counts an open out
//! before it sends RELEASE, so that here are never fewer than there.

use std::collections::HashMap;
use std::sync::Arc;

use fuser::{BackingId, FileHandle};
use parking_lot::Mutex;

/// An open that does not pass through.
const CACHED: FileHandle = FileHandle(0);
/// One for reading that does.
const PASSING: FileHandle = FileHandle(1);
/// One for writing that does.
const WRITING: FileHandle = FileHandle(2);

/// The open files by node.
#[derive(Debug, Default)]
pub(super) struct Opens(Mutex<HashMap<u64, Open>>);

/// How a file is open.
#[derive(Debug, Default)]
struct Open {
    cached: u32,
    passing: u32,
    /// Those of `passing` that are for writing.
    writing: u32,
    /// While any is passing.
    backing: Option<Arc<BackingId>>,
}

/// How an open is answered.
#[derive(Debug)]
pub(super) enum Way {
    /// The kernel reads and writes this file by itself.
    Passing(FileHandle, Arc<BackingId>),
    /// It asks, and what it knows of the content is still right.
    Known(FileHandle),
    /// It asks for everything anew.
    Anew(FileHandle),
}

impl Opens {
    /// Counts an open in. `register` registers the file that may pass through, and has `None` where none may.
    pub(super) fn open<E>(
        &self,
        ino: u64,
        write: bool,
        register: impl FnOnce() -> Result<Option<BackingId>, E>,
    ) -> Way {
        let mut files = self.0.lock();
        let open = files.entry(ino).or_default();
        if open.cached > 0 {
            open.cached += 1;
            return Way::Known(CACHED);
        }
        if open.backing.is_none() {
            match register() {
                Ok(Some(backing)) => open.backing = Some(Arc::new(backing)),
                Ok(None) => {
                    open.cached = 1;
                    return Way::Known(CACHED);
                }
                Err(_) => {}
            }
        }
        let Some(backing) = open.backing.clone() else {
            open.cached = 1;
            return Way::Anew(CACHED);
        };
        open.passing += 1;
        open.writing += u32::from(write);
        Way::Passing(if write { WRITING } else { PASSING }, backing)
    }

    /// Counts an open out. True if the kernel wrote by itself until now, and does so no longer.
    pub(super) fn release(&self, ino: u64, handle: FileHandle) -> bool {
        let mut files = self.0.lock();
        let Some(open) = files.get_mut(&ino) else { return false };
        let one_less = |count: &mut u32| *count = count.saturating_sub(1);
        match handle {
            PASSING => one_less(&mut open.passing),
            WRITING => {
                one_less(&mut open.passing);
                one_less(&mut open.writing);
            }
            _ => one_less(&mut open.cached),
        }
        let written = handle == WRITING && open.writing == 0;
        let unregistered = if open.passing == 0 { open.backing.take() } else { None };
        if open.passing == 0 && open.cached == 0 {
            files.remove(&ino);
        }
        drop(files);
        drop(unregistered);
        written
    }

    /// Whether the kernel may be writing to a file by itself: then its size and times may change at any moment.
    pub(super) fn is_written(&self, ino: u64) -> bool {
        self.0.lock().get(&ino).is_some_and(|open| open.writing > 0)
    }
}
