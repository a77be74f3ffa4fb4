//! Which files are open to be run. Where an OPEN truncates, the kernel asks for that first and looks afterwards whether it may
//! (seen on 6.18, with O_RDONLY only; for writing it looks first): a program that runs would lose its pages.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::fuse::operations::is_for_writing;

/// The flag of an open for execve(2), in OPEN and in the RELEASE of it (`__FMODE_EXEC` in include/linux/fs.h).
const FMODE_EXEC: i32 = 0x20;

/// How often each node is open to be run.
#[derive(Debug, Default)]
pub(super) struct Running(Mutex<HashMap<u64, u32>>);

impl Running {
    /// Whether opening a file with these flags would truncate a program that runs. An open for writing does not: the kernel
    /// has looked already, and the RELEASE of one that ran may be on its way.
    pub(super) fn forbids(&self, ino: u64, flags: i32) -> bool {
        flags & libc::O_TRUNC != 0 && !is_for_writing(flags) && self.0.lock().contains_key(&ino)
    }

    /// A file was opened with these flags.
    pub(super) fn opened(&self, ino: u64, flags: i32) {
        if flags & FMODE_EXEC != 0 {
            *self.0.lock().entry(ino).or_default() += 1;
        }
    }

    /// What was opened with these flags is no longer.
    pub(super) fn released(&self, ino: u64, flags: i32) {
        if flags & FMODE_EXEC == 0 {
            return;
        }
        let mut running = self.0.lock();
        if let Some(times) = running.get_mut(&ino) {
            *times -= 1;
            if *times == 0 {
                running.remove(&ino);
            }
        }
    }
}
