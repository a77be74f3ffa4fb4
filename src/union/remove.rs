//! unlink and rmdir: a name goes, and a whiteout hides what the lowers still have under it.

use std::sync::Arc;

use parking_lot::RwLockWriteGuard;

use crate::error::{Errno, Result};
use crate::layer::LayerId;
use crate::layer::stage::Over;
use crate::name::Name;
use crate::sys;
use crate::union::hard_links::Losing;
use crate::union::held::Held;
use crate::union::inode::{DirNode, Inode, Node};
use crate::union::stats::Op;
use crate::union::{FileKind, Union};

impl Union {
    /// Removes a name that is no directory.
    ///
    /// # Errors
    /// As unlink(2).
    pub fn unlink(&self, parent: u64, name: &Name) -> Result<()> {
        self.counters.count(Op::Unlink);
        self.stack.upper()?;
        let dir = self.dir(parent)?;
        let held = self.hold(&dir, name)?.ok_or(Errno::ENOENT)?;
        if held.kind == FileKind::Directory {
            return Err(Errno::EISDIR);
        }
        self.ensure_upper_dir(&dir)?;
        let node = dir.as_dir().ok_or(Errno::ENOTDIR)?;
        let _names = node.names.write();
        let layer = held.layer_at(&dir, name).ok_or(Errno::ENOENT)?;
        self.pin_if_last(&held, &dir, name)?;
        let before = self.before_losing(&held)?;
        self.remove_from_upper(&dir, name, layer, false)?;
        self.lost_name(&held, &dir, name, before);
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// As rmdir(2).
    pub fn rmdir(&self, parent: u64, name: &Name) -> Result<()> {
        self.counters.count(Op::Rmdir);
        self.stack.upper()?;
        let dir = self.dir(parent)?;
        let held = self.hold(&dir, name)?.ok_or(Errno::ENOENT)?;
        let victim = held.as_dir().ok_or(Errno::ENOTDIR)?;
        let node = dir.as_dir().ok_or(Errno::ENOTDIR)?;
        // Nothing comes up for a removal that fails; what counts is the second look.
        if node.view().upper.is_none() && !self.is_empty(&held)? {
            return Err(Errno::ENOTEMPTY);
        }
        self.ensure_upper_dir(&dir)?;
        // A directory's own copy-up publishes in its parent: nobody may be about to while it goes.
        let _one = held.copy_up.lock();
        let _names = lock_two((dir.number, node), (held.number, victim));
        let layer = held.layer_at(&dir, name).ok_or(Errno::ENOENT)?;
        if !self.is_empty(&held)? {
            return Err(Errno::ENOTEMPTY);
        }
        let mut last = self.attr_of(&held)?;
        self.table.remove_keys(&held);
        self.remove_from_upper(&dir, name, layer, true).inspect_err(|_| self.table.add_keys(&held))?;
        last.nlink = 0;
        self.dir_removed(&held, last);
        self.name_changed(&dir, name, None);
        Ok(())
    }

    /// Takes a name, which the layer `shown` shows, away in upper, leaving a whiteout if the lowers have it too.
    fn remove_from_upper(&self, dir: &Inode, name: &Name, shown: LayerId, is_dir: bool) -> Result<()> {
        let view = dir.as_dir().ok_or(Errno::ENOTDIR)?.view();
        let real = view.upper.as_ref().ok_or(Errno::ENOENT)?;
        if !shown.is_upper() {
            let shows = view.lowers.iter().find(|lower| lower.layer == shown).ok_or(Errno::ENOENT)?;
            let stat = self.stack.stat_at(shows, name)?.ok_or(Errno::ENOENT)?;
            return if stat.is_protected() {
                Err(Errno::EPERM)
            } else {
                self.stack.whiteout(real, name, Over::Nothing)
            };
        }
        if self.is_below(dir, &view, name)? {
            return self.stack.whiteout(real, name, if is_dir { Over::Other } else { Over::NonDirectory });
        }
        let (upper, fd) = (self.stack.upper()?, self.stack.open_upper(real)?);
        if is_dir { upper.rmdir(&fd, name) } else { upper.unlink(&fd, name) }
    }

    /// Refuses to replace a lower object that nobody may change (`chattr +i` or `+a`); in upper the filesystem itself does.
    pub(super) fn check_replaceable(&self, inode: &Inode) -> Result<()> {
        let stat = match &inode.node {
            Node::Other(file) if file.read().layer.is_upper() => return Ok(()),
            Node::Other(_) => self.stat_file(inode)?,
            Node::Dir(dir) => match dir.view().top() {
                Some(top) if !top.layer.is_upper() && !top.is_void() => sys::file::stat(&*self.stack.open_dir(top)?)?,
                _ => return Ok(()),
            },
        };
        if stat.is_protected() { Err(Errno::EPERM) } else { Ok(()) }
    }

    /// Keeps an inode reachable if this is the last of its names that is known.
    pub(super) fn pin_if_last(&self, inode: &Inode, dir: &Inode, name: &Name) -> Result<()> {
        let Node::Other(file) = &inode.node else { return Ok(()) };
        let others = {
            let file = file.read();
            file.links.as_slice().iter().any(|l| !l.uncovered && !l.is(dir, name))
        };
        if others { Ok(()) } else { self.pin(inode) }
    }

    /// Keeps account of a name that an inode lost.
    pub(super) fn lost_name(&self, held: &Held<'_>, dir: &Arc<Inode>, name: &Name, before: Option<Losing>) {
        let link = held.remove_link(dir, name);
        self.name_changed(dir, name, None);
        self.account_lost_name(held, link.is_some_and(|l| l.uncovered), before);
    }

    /// Keeps what a removed directory showed: who is in it can still look at it.
    pub(super) fn dir_removed(&self, dir: &Inode, last: crate::union::Attr) {
        let Some(node) = dir.as_dir() else { return };
        let upper = {
            let mut state = node.state.write();
            state.removed = Some(last);
            state.upper.clone()
        };
        if let Some(upper) = upper {
            self.stack.forget_dir(&upper);
        }
        self.listings.remove_dir(dir.id);
    }
}

/// Locks the names of two directories, which may be one, the smaller number first.
pub(super) fn lock_two<'a>(
    a: (u64, &'a DirNode),
    b: (u64, &'a DirNode),
) -> (RwLockWriteGuard<'a, ()>, Option<RwLockWriteGuard<'a, ()>>) {
    match a.0.cmp(&b.0) {
        std::cmp::Ordering::Less => {
            let first = a.1.names.write();
            (first, Some(b.1.names.write()))
        }
        std::cmp::Ordering::Equal => (a.1.names.write(), None),
        std::cmp::Ordering::Greater => {
            let first = b.1.names.write();
            (first, Some(a.1.names.write()))
        }
    }
}
