//! An inode that was looked up, until it is handed to the kernel or let go of.

use std::ops::Deref;
use std::sync::Arc;

use crate::union::Union;
use crate::union::inode::Inode;

/// An inode that stays known while this is held.
#[derive(Debug)]
pub(super) struct Held<'a> {
    union: &'a Union,
    inode: Arc<Inode>,
    kept: bool,
}

impl<'a> Held<'a> {
    /// Of an inode that has just been counted as known once more.
    pub(super) fn new(union: &'a Union, inode: Arc<Inode>) -> Self {
        Self { union, inode, kept: false }
    }

    /// Hands the reference to the kernel: it stays until FORGET.
    pub(super) fn keep(mut self) -> Arc<Inode> {
        self.kept = true;
        self.inode.clone()
    }
}

impl Deref for Held<'_> {
    type Target = Arc<Inode>;
    fn deref(&self) -> &Arc<Inode> {
        &self.inode
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Some(gone) = self.union.table.forget(self.inode.number, 1) {
            self.union.release(&gone);
        }
    }
}
