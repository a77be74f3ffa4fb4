//! Names of one lower inode with several links stay one inode of the union, for the life of the mount.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::Result;
use crate::layer::ObjKey;
use crate::sys::file::Stat;
use crate::union::Union;
use crate::union::inode::{Inode, Node};
use crate::union::pin::Pin;

/// What became of a lower inode with several names.
#[derive(Debug, Default)]
struct Record {
    /// How many of its names no longer show it: removed, or names of its copy in upper.
    covered: u32,
    /// Its number of names in lower.
    lower_links: u32,
    /// Its copy; kept known, so that a name that is looked up later finds it.
    copy: Option<Arc<Inode>>,
}

/// The lower inodes with several names of which at least one changed, by real object.
#[derive(Debug, Default)]
pub(super) struct HardLinks(Mutex<HashMap<ObjKey, Record>>);

impl HardLinks {
    /// A name of a lower inode is covered: by a whiteout, or by a link to its copy.
    pub(super) fn cover(&self, lower: ObjKey, lower_links: u32) {
        let mut records = self.0.lock();
        let record = records.entry(lower).or_default();
        record.lower_links = lower_links.max(record.lower_links);
        record.covered += 1;
    }

    /// Remembers the copy of a lower inode; it counts as known once more from then on.
    pub(super) fn copied(&self, lower: ObjKey, copy: &Arc<Inode>) {
        let mut records = self.0.lock();
        let record = records.entry(lower).or_default();
        if record.copy.is_none() {
            copy.pins.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            record.copy = Some(copy.clone());
        }
    }

    /// How many names still show the lower inode itself.
    fn uncovered(&self, lower: ObjKey) -> Option<u32> {
        self.0.lock().get(&lower).map(|r| r.lower_links.saturating_sub(r.covered))
    }
}

impl Union {
    /// Whether a copied-up inode has names, known or not, that are still the lower's.
    pub(super) fn has_uncovered_names(&self, inode: &Inode) -> bool {
        let Node::Other(file) = &inode.node else { return false };
        let lower = {
            let file = file.read();
            file.lower_key().filter(|_| file.hard_linked)
        };
        lower.and_then(|lower| self.hard_links.uncovered(lower)).is_some_and(|n| n > 0)
    }

    /// The number of names of an inode that is no directory.
    pub(super) fn link_count(&self, inode: &Inode, st: &Stat) -> u32 {
        let Node::Other(file) = &inode.node else { return st.nlink };
        let (layer, key, lower_key, hard_linked, no_name, parked) = {
            let file = file.read();
            let parked = matches!(file.pin(), Some(Pin::Parked));
            (file.layer, file.key, file.lower_key(), file.hard_linked, file.links.as_slice().is_empty(), parked)
        };
        if layer.is_upper() {
            let aliases = lower_key.filter(|_| hard_linked).and_then(|key| self.hard_links.uncovered(key));
            return st.nlink.saturating_sub(u32::from(parked)) + aliases.unwrap_or(0);
        }
        match self.hard_links.uncovered(key) {
            Some(left) => left,
            None if no_name => 0,
            None => st.nlink,
        }
    }

    /// Gives a copied-up inode, in upper, every name of it that is known and still the lower's.
    pub(super) fn cover_links(&self, inode: &Arc<Inode>) -> Result<()> {
        let Node::Other(file) = &inode.node else { return Ok(()) };
        loop {
            let (link, lower_key) = {
                let file = file.read();
                let Some(link) = file.links.as_slice().iter().find(|l| l.uncovered) else { return Ok(()) };
                (link.clone(), file.lower_key())
            };
            let upper = self.stack.upper()?;
            let dir = self.ensure_upper_dir(&link.parent)?;
            let object = self.upper_object(inode)?;
            let dir_fd = self.stack.open_upper(&dir)?;
            let Some(parent) = link.parent.as_dir() else { return Ok(()) };
            let _renames = self.renames.read_recursive();
            let _names = parent.names.write();
            if !inode.has_link(&link.parent, &link.name) {
                continue;
            }
            self.keeping_times(&dir, || upper.link(&object, &dir_fd, &link.name))?;
            if let Some(lower) = lower_key {
                self.hard_links.cover(lower, 0);
            }
            if let Some(l) = file.write().links.as_mut_slice().iter_mut().find(|l| l.is(&link.parent, &link.name)) {
                l.uncovered = false;
            }
            self.unpin(inode);
            self.name_changed(&link.parent, &link.name, Some((inode.kind, inode.number)));
        }
    }
}
