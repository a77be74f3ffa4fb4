//! lseek(2) for data and holes beside pages that are written in the kernel only.
//!
//! The kernel (seen on 6.18) asks for them without writing dirty pages back first: what was just written, under writeback or
//! in a mapping, would be a hole, or past the end. So the file's pages are written back before it is answered, by a notification
//! that has the kernel drop them. Those pages come as requests of their own, so nobody who takes requests may wait for them: a
//! thread does.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};

use fuser::{INodeNo, Notifier, ReplyLseek};

use crate::error::{Errno, Result};
use crate::fuse::call::call;
use crate::union::Union;

/// A request that waits for its file's pages.
#[derive(Debug)]
pub(super) struct Seek {
    pub ino: INodeNo,
    pub offset: i64,
    pub whence: i32,
    pub reply: ReplyLseek,
}

impl Seek {
    /// Where it leads if that is so whatever a mapping has written: such pages fill holes, and never move the end.
    fn without_holes(&self, union: &Union) -> Result<Option<i64>> {
        let at = match union.lseek(self.ino.0, self.offset, self.whence) {
            Ok(at) => at,
            Err(Errno::ENXIO) => return Ok(None),
            Err(e) => return Err(e),
        };
        let is_settled = match self.whence {
            libc::SEEK_DATA => at == self.offset,
            // Beyond the end there is not even a hole.
            _ => matches!(union.lseek(self.ino.0, at, self.whence), Err(Errno::ENXIO)),
        };
        Ok(is_settled.then_some(at))
    }

    /// Answers it from what the file is on disk now.
    pub(super) fn answer(self, union: &Union) {
        match call("lseek", || union.lseek(self.ino.0, self.offset, self.whence)) {
            Ok(at) => self.reply.offset(at),
            Err(e) => self.reply.error(e),
        }
    }
}

/// The thread that waits.
#[derive(Debug)]
pub(super) struct Seeker(Sender<Seek>);

impl Seeker {
    /// Starts the thread; it ends when this is dropped. `notifier` is there once the mount is served.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(union: Arc<Union>, notifier: Arc<OnceLock<Notifier>>) -> io::Result<Self> {
        let (sender, receiver) = channel();
        std::thread::Builder::new().name("seek".to_owned()).spawn(move || serve(&union, &notifier, &receiver))?;
        Ok(Self(sender))
    }

    /// Answers a request where writes pass through the cache: at once, if no mapping can change the answer.
    pub(super) fn answer_or_leave(&self, seek: Seek, union: &Union) {
        match call("lseek", || seek.without_holes(union)) {
            Ok(Some(at)) => seek.reply.offset(at),
            Ok(None) => self.leave(seek),
            Err(e) => seek.reply.error(e),
        }
    }

    /// Leaves a request to the thread.
    pub(super) fn leave(&self, seek: Seek) {
        if let Err(unsent) = self.0.send(seek) {
            unsent.0.reply.error(fuser::Errno::EIO);
        }
    }
}

fn serve(union: &Union, notifier: &OnceLock<Notifier>, requests: &Receiver<Seek>) {
    for seek in requests {
        // From the first byte to the end. An inode that the kernel has dropped meanwhile has no pages.
        if let Some(Err(e)) = notifier.get().map(|n| n.inval_inode(seek.ino, 0, 0)) {
            log::debug!("inode {}: its pages were not written back before a seek: {e}", seek.ino);
        }
        seek.answer(union);
    }
}
