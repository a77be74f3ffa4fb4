//! Commits: copies are published before their data is on disk, marked so, and made durable in batches.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use parking_lot::{Condvar, Mutex};

use crate::error::{Errno, Result, is_passing};
use crate::layer::marks::Mark;
use crate::layer::uncommitted::{Noted, Uncommitted};
use crate::layer::upper::{AsUpper, UpperObject};
use crate::sys::file::Stat;
use crate::union::inode::{Inode, LowerData, Node};
use crate::union::{FileKind, Union};

/// When the data of copies reaches the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// In batches, a few seconds later; until then a power loss brings the lower file's content back.
    #[default]
    Batched,
    /// Before the copy is published, as the kernel's overlay does.
    Strict,
    /// Nobody cares: nothing is ever synced.
    Volatile,
}

/// How old the first copy of a batch gets before the batch is committed. The commit itself takes time, too: what was
/// copied up is durable after 5 seconds at most on a disk that keeps up.
const BATCH_AGE: Duration = Duration::from_secs(3);
/// A batch with so many copies is committed at once.
const BATCH_LARGE: usize = 4096;
/// Up to so many files are synced each by itself, more with their whole filesystem.
const BATCH_SMALL: usize = 16;

/// The copies that are not committed yet.
#[derive(Debug, Default)]
pub(super) struct Commits {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// By inode id. Each is kept known as a parent is.
    pending: HashMap<u64, Arc<Inode>>,
    /// When the first of them came.
    since: Option<Instant>,
    /// The last batch could not be committed: the next one waits, however many copies there are.
    failed: bool,
    ended: bool,
}

impl Commits {
    /// How many copies are not committed.
    pub(super) fn len(&self) -> usize {
        self.state.lock().pending.len()
    }

    fn add(&self, inode: &Arc<Inode>) {
        let mut state = self.state.lock();
        if state.pending.insert(inode.id, inode.clone()).is_none() {
            inode.pins.fetch_add(1, Ordering::Relaxed);
        }
        let first = state.since.is_none();
        state.since.get_or_insert_with(Instant::now);
        if first || state.pending.len() == BATCH_LARGE {
            self.changed.notify_all();
        }
    }

    /// Whether an inode's copy waits for its commit.
    pub(super) fn holds(&self, inode: &Inode) -> bool {
        self.state.lock().pending.contains_key(&inode.id)
    }

    fn remove(&self, inode: &Inode) -> bool {
        self.state.lock().pending.remove(&inode.id).is_some()
    }

    fn all(&self) -> Vec<Arc<Inode>> {
        let mut state = self.state.lock();
        state.since = None;
        state.failed = false;
        state.pending.values().cloned().collect()
    }

    /// Some are left that could not be committed: they are tried again with the next batch.
    fn again(&self) {
        let mut state = self.state.lock();
        state.failed = true;
        state.since.get_or_insert_with(Instant::now);
    }
}

impl Union {
    /// Sees to it that a copy of the lower file `data`, with status `stat`, never shows half of its content after a power
    /// loss: it is synced now, or marked as uncommitted. Then it has to be committed later, once it is the inode's.
    pub(super) fn guard_copy(
        &self,
        inode: &Inode,
        copy: &impl AsUpper,
        data: &LowerData,
        stat: &Stat,
    ) -> Result<Option<Noted>> {
        let upper = self.stack.upper()?;
        match self.options.durability {
            Durability::Volatile => return Ok(None),
            Durability::Strict => return upper.sync(copy).map(|()| None),
            Durability::Batched => {}
        }
        let mut origin = data.dir.path();
        origin.push(data.name.clone());
        let mark = Uncommitted::new(&self.boot, data.dir.layer, &origin, stat);
        match upper.mark_uncommitted(copy, &mark, &inode.path()) {
            Ok(noted) => Ok(Some(noted)),
            Err(e) if is_passing(e) && !matches!(e, Errno::ENOSPC | Errno::EDQUOT) => Err(e),
            // No room for the mark, or no place on this filesystem.
            Err(e) => {
                log::debug!("a copy is synced by itself: {e}");
                upper.sync(copy)?;
                upper.remove_mark(copy, Mark::Uncommitted)?;
                upper.sync(copy).map(|()| None)
            }
        }
    }

    /// From now on an inode's copy, if it was noted, waits for its commit.
    pub(super) fn commit_later(&self, inode: &Arc<Inode>, noted: Option<Noted>) {
        if noted.is_some() {
            self.commits.add(inode);
        }
        // Only now a batch may take the list that it is in for done.
        drop(noted);
    }

    /// Waits until a batch is to be committed; false when the union has ended.
    pub fn wait_for_batch(&self) -> bool {
        let mut state = self.commits.state.lock();
        loop {
            if state.ended {
                return false;
            }
            match state.since {
                None => self.commits.changed.wait(&mut state),
                Some(since) if since.elapsed() >= BATCH_AGE => return true,
                Some(_) if state.pending.len() >= BATCH_LARGE && !state.failed => return true,
                Some(since) => {
                    self.commits.changed.wait_until(&mut state, since + BATCH_AGE);
                }
            }
        }
    }

    /// Ends the waiting in [`Union::wait_for_batch`].
    pub fn end_batches(&self) {
        self.commits.state.lock().ended = true;
        self.commits.changed.notify_all();
    }

    /// Commits all copies that were made so far: their data becomes durable, then the mark goes, durably.
    ///
    /// # Errors
    /// The first of them; what could not be committed is tried again with the next batch.
    pub fn commit(&self) -> Result<()> {
        let Ok(upper) = self.stack.upper() else { return Ok(()) };
        let all_known = upper.begin_batch();
        let batch = self.commits.all();
        let done = match batch.len() {
            0 => Ok(()),
            1..=BATCH_SMALL => batch.iter().map(|inode| self.commit_one(inode)).fold(Ok(()), Result::and),
            _ => self.commit_many(&batch),
        };
        match done {
            Ok(()) if all_known => upper.end_batch(),
            Ok(()) => Ok(()),
            Err(e) => {
                self.commits.again();
                Err(e)
            }
        }
    }

    fn commit_many(&self, batch: &[Arc<Inode>]) -> Result<()> {
        let upper = self.stack.upper()?;
        upper.sync_all()?;
        let unmarked = batch.iter().map(|inode| self.unmark(inode)).fold(Ok(()), Result::and);
        upper.sync_all()?;
        unmarked?;
        batch.iter().for_each(|inode| self.committed(inode));
        Ok(())
    }

    /// Commits one copy.
    pub(super) fn commit_one(&self, inode: &Arc<Inode>) -> Result<()> {
        if let Some(object) = self.copy_of(inode)? {
            let upper = self.stack.upper()?;
            let file = upper.reopen(&object, OFlag::O_RDONLY)?;
            upper.sync(&file)?;
            upper.remove_mark(&object, Mark::Uncommitted)?;
            upper.sync(&file)?;
        }
        self.committed(inode);
        Ok(())
    }

    /// Commits the copies that have a name in a directory.
    pub(super) fn commit_in(&self, dir: &Inode) -> Result<()> {
        let pending: Vec<Arc<Inode>> = self.commits.state.lock().pending.values().cloned().collect();
        let is_in = |inode: &&Arc<Inode>| match &inode.node {
            Node::Other(file) => file.read().links.as_slice().iter().any(|link| link.parent.id == dir.id),
            Node::Dir(_) => false,
        };
        pending.iter().filter(is_in).try_for_each(|inode| self.commit_one(inode))
    }

    fn unmark(&self, inode: &Inode) -> Result<()> {
        match self.copy_of(inode)? {
            Some(object) => self.stack.upper()?.remove_mark(&object, Mark::Uncommitted),
            None => Ok(()),
        }
    }

    /// The copy itself; `None` when it was deleted meanwhile.
    fn copy_of(&self, inode: &Inode) -> Result<Option<UpperObject>> {
        match self.upper_object(inode) {
            Err(Errno::ENOENT | Errno::ESTALE) if inode.kind == FileKind::Regular && inode.location().is_none() => {
                Ok(None)
            }
            object => object.map(Some),
        }
    }

    fn committed(&self, inode: &Arc<Inode>) {
        if self.commits.remove(inode)
            && let Some(gone) = self.table.unpin(inode)
        {
            self.release(&gone);
        }
    }
}
