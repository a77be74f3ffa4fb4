//! lseek(2) for data and holes beside pages that are written in the kernel only.
//!
//! The kernel (seen on 6.18) asks for them without writing dirty pages back first: what was just written, under writeback or
//! in a mapping, would be a hole, or past the end. So the file's pages are written back before it is answered, by a notification
//! that has the kernel drop them. Those pages come as requests of their own, so whoever waits must not be the last to take
//! requests.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use fuser::{INodeNo, Notifier, ReplyLseek};

use crate::error::{Errno, Result};
use crate::fuse::convert;
use crate::fuse::operations::Operations;
use crate::union::Union;

/// Where a caller wants to go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seek {
    pub ino: u64,
    pub offset: i64,
    pub whence: i32,
}

impl Seek {
    /// Where it leads if that is so whatever a mapping has written: such pages fill holes, and never move the end.
    pub(super) fn without_holes(self, union: &Union) -> Result<Option<i64>> {
        let at = match union.lseek(self.ino, self.offset, self.whence) {
            Ok(at) => at,
            // Unless it begins beyond the end, a mapping may have brought data that the file does not show yet.
            Err(Errno::ENXIO) if self.whence == libc::SEEK_DATA => {
                return union.lseek(self.ino, self.offset, libc::SEEK_HOLE).and(Ok(None));
            }
            Err(e) => return Err(e),
        };
        let is_settled = match self.whence {
            libc::SEEK_DATA => at == self.offset,
            // Beyond the end there is not even a hole.
            _ => matches!(union.lseek(self.ino, at, self.whence), Err(Errno::ENXIO)),
        };
        Ok(is_settled.then_some(at))
    }

    /// Has the kernel write the file's dirty pages, and waits for that.
    pub(super) fn write_pages(self, notifier: Option<&Notifier>) {
        // From the first byte to the end. An inode that the kernel has dropped meanwhile has no pages.
        if let Some(Err(e)) = notifier.map(|n| n.inval_inode(INodeNo(self.ino), 0, 0)) {
            log::debug!("inode {}: its pages were not written back before a seek: {e}", self.ino);
        }
    }
}

/// The thread that waits for those who take requests from `/dev/fuse`.
#[derive(Debug)]
pub(super) struct Seeker(Sender<(Seek, ReplyLseek)>);

impl Seeker {
    /// Starts the thread; it ends when this is dropped.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(operations: Arc<Operations>) -> io::Result<Self> {
        let (sender, receiver) = channel();
        std::thread::Builder::new().name("seek".to_owned()).spawn(move || serve(&operations, &receiver))?;
        Ok(Self(sender))
    }

    /// Leaves a request to the thread.
    pub(super) fn leave(&self, seek: Seek, reply: ReplyLseek) {
        if let Err(unsent) = self.0.send((seek, reply)) {
            unsent.0.1.error(fuser::Errno::EIO);
        }
    }
}

fn serve(operations: &Operations, requests: &Receiver<(Seek, ReplyLseek)>) {
    for (seek, reply) in requests {
        match operations.lseek_after_pages(seek) {
            Ok(at) => reply.offset(at),
            Err(e) => reply.error(convert::errno(e)),
        }
    }
}
