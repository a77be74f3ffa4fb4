//! Which files the kernel may read and write by itself, past the daemon.

use std::os::fd::{AsFd, BorrowedFd};

use crate::error::{Errno, Result};
use crate::union::Union;
use crate::union::inode::Node;

impl Union {
    /// Runs `call` with the real file that may be read and written in place of an inode; `None` if there is none.
    ///
    /// A lower file is none on a mount with an upper: it would be read still after its copy was written to, or be written
    /// itself. Nor is a metadata copy, whose data is the lower's; nor a lower whose access times we can't keep from changing.
    ///
    /// # Errors
    /// As open(2); `EISDIR`, `EINVAL` for what has no data.
    pub fn with_passing_file<T>(&self, ino: u64, call: impl FnOnce(BorrowedFd<'_>) -> T) -> Result<Option<T>> {
        let inode = self.regular(ino)?;
        let Node::Other(file) = &inode.node else { return Err(Errno::EISDIR) };
        let (layer, metadata_only) = {
            let file = file.read();
            (file.layer, file.data().is_some())
        };
        let passes = if self.is_writable() { layer.is_upper() } else { self.stack.is_sealed(layer) };
        if metadata_only || !passes {
            return Ok(None);
        }
        Ok(Some(call(self.readable_file(&inode)?.as_fd())))
    }

    /// Notes that the kernel may have written to a file by itself.
    pub fn may_have_changed(&self, ino: u64) {
        if let Ok(inode) = self.inode(ino) {
            self.content_changed(&inode);
        }
    }
}
