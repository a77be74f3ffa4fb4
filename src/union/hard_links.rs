//! Names of one lower inode with several links stay one inode of the union, also after a remount.
//!
//! Its copy is found by the index (`layer::index`) from names that are still the lower's: "uncovered" ones. How many of
//! them are left is counted here, and kept on disk with the copy, or in the work directory while there is no copy.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Result, is_passing};
use crate::layer::marks::Mark;
use crate::layer::origin::Origin;
use crate::layer::stage::Staged;
use crate::layer::{LayerId, ObjKey, RealDir, index};
use crate::name::Name;
use crate::sys;
use crate::sys::file::Stat;
use crate::union::Union;
use crate::union::inode::{Inode, Node};
use crate::union::pin::Pin;

/// What became of a lower inode with several names.
#[derive(Debug)]
struct Record {
    /// How many of its names still show it, or stand for its copy without being names of that.
    uncovered: u32,
    /// Its copy, kept known where there is no index to find it by.
    copy: Option<Arc<Inode>>,
}

/// The lower inodes with several names of which at least one changed.
#[derive(Debug, Default)]
pub(super) struct HardLinks {
    /// By real object.
    records: Mutex<HashMap<ObjKey, Record>>,
    /// The copies whose number of names is still to be written down.
    unsaved: Mutex<Vec<Arc<Inode>>>,
}

/// What has to be known of a lower inode with several names before it loses one.
#[derive(Debug)]
pub(super) struct Losing {
    links: u32,
    origin: Option<Origin>,
}

impl HardLinks {
    /// A name of a lower inode is covered: by a whiteout, or by a link to its copy. Returns how many are left.
    fn cover(&self, lower: ObjKey, lower_links: u32) -> u32 {
        let mut records = self.records.lock();
        let record = records.entry(lower).or_insert(Record { uncovered: lower_links, copy: None });
        record.uncovered = record.uncovered.saturating_sub(1);
        record.uncovered
    }

    /// What the disk says of a lower inode that nothing is known of yet.
    fn restore(&self, lower: ObjKey, uncovered: u32) {
        self.records.lock().entry(lower).or_insert(Record { uncovered, copy: None });
    }

    fn keep(&self, lower: ObjKey, copy: &Arc<Inode>) {
        if let Some(record) = self.records.lock().get_mut(&lower).filter(|r| r.copy.is_none()) {
            copy.pins.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            record.copy = Some(copy.clone());
        }
    }

    fn uncovered(&self, lower: ObjKey) -> Option<u32> {
        self.records.lock().get(&lower).map(|r| r.uncovered)
    }
}

/// The copy of a lower object with several names, as the index has it.
#[derive(Clone, Debug)]
pub(super) struct Indexed {
    /// Its name in the index.
    pub name: Name,
    /// The copy's status.
    pub stat: Stat,
    /// The lower object.
    pub lower: ObjKey,
}

impl Union {
    /// The copy that the index has of a lower object, whose status is `lower`.
    pub(super) fn find_indexed(&self, origin: &Origin, lower: &Stat) -> Result<Option<Indexed>> {
        let (Ok(upper), Some(name)) = (self.stack.upper(), index::name_of(origin)) else { return Ok(None) };
        let Some(stat) = upper.indexed(&name)?.filter(|stat| stat.format() == lower.format()) else { return Ok(None) };
        let lower_key = ObjKey::from(lower);
        if self.hard_links.uncovered(lower_key).is_none() {
            let own = stat.nlink.saturating_sub(1);
            let value = upper.indexed_mark(&name, Mark::Nlink)?;
            let links = value.and_then(|v| index::parse_links(&v, stat.nlink, lower.nlink));
            self.hard_links.restore(lower_key, links.unwrap_or(own).saturating_sub(own));
        }
        Ok(Some(Indexed { name, stat, lower: lower_key }))
    }

    /// As [`Union::find_indexed`], of a lower object with several names; recalls which of them are gone.
    pub(super) fn find_copy(&self, dir: &Arc<RealDir>, name: &Name, stat: &Stat) -> Result<Option<Indexed>> {
        let Ok(upper) = self.stack.upper() else { return Ok(None) };
        if !upper.knows_hard_links()? {
            return Ok(None);
        }
        let Some(origin) = self.stack.origin_of(dir, name)? else { return Ok(None) };
        let copy = self.find_indexed(&origin, stat)?;
        if copy.is_none()
            && let Some(covered) = upper.covered(&origin)
        {
            self.hard_links.restore(stat.into(), stat.nlink.saturating_sub(covered));
        }
        Ok(copy)
    }

    /// Puts a copy of a lower object with several names into the index before it has a name in upper, with how many names
    /// there are: whoever dies then leaves names that all show the copy, and not one of them alone. From then on the copy
    /// is found by the others' lookups, as this inode.
    ///
    /// Returns its name there; `None` if it can have none.
    pub(super) fn index_staged(
        &self,
        inode: &Inode,
        staged: &Staged<'_>,
        key: ObjKey,
        lower: &Stat,
        origin: Option<&Origin>,
    ) -> Result<Option<Name>> {
        let Some(name) = origin.and_then(index::name_of).filter(|_| lower.nlink > 1) else { return Ok(None) };
        let upper = self.stack.upper()?;
        let left = self.hard_links.uncovered(lower.into()).unwrap_or(lower.nlink);
        let gone = i64::from(left) - i64::from(lower.nlink);
        // Noted before others can find the copy: they would count from what upper has by then.
        self.hard_links.restore(lower.into(), left);
        self.table.add_key(key.seen_in(LayerId::UPPER), inode);
        let marked = upper.set_mark(staged, Mark::Nlink, format!("L{gone:+}").as_bytes());
        match marked.and_then(|()| upper.add_to_index(staged, &name)) {
            Ok(()) => Ok(Some(name)),
            Err(e) => {
                self.table.remove_key(key.seen_in(LayerId::UPPER), inode);
                if is_passing(e) {
                    return Err(e);
                }
                let what = "has no place in the index: its names are one file until unmount";
                log::warn!("inode {} {what}: {e}", inode.number);
                Ok(None)
            }
        }
    }

    /// Takes a copy that could not be published out of the index again.
    pub(super) fn unindex_staged(&self, inode: &Inode, key: ObjKey, name: &Name) {
        if let Err(e) = self.stack.upper().and_then(|upper| upper.remove_from_index(name)) {
            // Its content is the lower's.
            log::warn!("the copy of inode {} stays in the index: {e}", inode.number);
            return;
        }
        self.table.remove_key(key.seen_in(LayerId::UPPER), inode);
    }

    /// Keeps account of a fresh copy of a lower object with several names; `indexed`: its name in the index. Without one its
    /// names are one file as long as it is known.
    pub(super) fn account_copy(&self, inode: &Arc<Inode>, lower: &Stat, indexed: Option<Name>) {
        let Node::Other(file) = &inode.node else { return };
        let named = !file.read().links.as_slice().is_empty();
        if named {
            self.hard_links.cover(lower.into(), lower.nlink);
        }
        match indexed {
            Some(name) => {
                file.write().rare_mut().index = Some(name);
                self.save_links(inode);
            }
            None => self.hard_links.keep(lower.into(), inode),
        }
    }

    /// Writes down how many names an inode has, for the next mount. The names themselves have changed by now, so a failure
    /// is not the caller's: it is made good with the next change, at the latest at the end.
    pub(super) fn save_links(&self, inode: &Arc<Inode>) {
        let is_indexed = matches!(&inode.node, Node::Other(file) if file.read().index().is_some());
        if is_indexed {
            self.hard_links.unsaved.lock().push(inode.clone());
        }
        self.save_unsaved_links();
    }

    /// Writes down what could not be written before.
    pub(super) fn save_unsaved_links(&self) {
        let unsaved = std::mem::take(&mut *self.hard_links.unsaved.lock());
        for inode in unsaved {
            if let Err(e) = self.store_links(&inode) {
                log::warn!("the names of inode {} can't be written down yet: {e}", inode.number);
                self.hard_links.unsaved.lock().push(inode);
            }
        }
    }

    fn store_links(&self, inode: &Inode) -> Result<()> {
        let Node::Other(file) = &inode.node else { return Ok(()) };
        self.leave_index_if_nameless(inode)?;
        if file.read().index().is_none() {
            return Ok(());
        }
        let object = self.upper_object(inode)?;
        let stat = sys::file::stat(object.as_fd())?;
        let diff = i64::from(self.link_count(inode, &stat)) - i64::from(stat.nlink);
        self.stack.upper()?.set_mark(&object, Mark::Nlink, format!("U{diff:+}").as_bytes())
    }

    /// To be asked before an inode loses a name, for [`Union::account_lost_name`].
    pub(super) fn before_losing(&self, inode: &Inode) -> Result<Option<Losing>> {
        let Node::Other(file) = &inode.node else { return Ok(None) };
        let in_lower = {
            let file = file.read();
            file.hard_linked && !file.layer.is_upper()
        };
        if !in_lower {
            return Ok(None);
        }
        let origin = match inode.location() {
            Some((dir, name)) => self.stack.origin_of(&dir, &name)?,
            None => None,
        };
        Ok(Some(Losing { links: self.stat_file(inode)?.nlink, origin }))
    }

    /// Keeps account of a name that an inode lost; `uncovered`: it was still the lower's.
    pub(super) fn account_lost_name(&self, inode: &Arc<Inode>, uncovered: bool, before: Option<Losing>) {
        let Node::Other(file) = &inode.node else { return };
        let (layer, key, lower_key, hard_linked) = {
            let file = file.read();
            (file.layer, file.key, file.lower_key(), file.hard_linked)
        };
        if !hard_linked {
            return;
        }
        if layer.is_upper() {
            if let Some(lower) = lower_key.filter(|_| uncovered) {
                self.hard_links.cover(lower, 0);
            }
            self.save_links(inode);
        } else if let Some(Losing { links, origin }) = before {
            let left = self.hard_links.cover(key, links);
            if let (Some(origin), Ok(upper)) = (origin, self.stack.upper()) {
                upper.set_covered(&origin, links.saturating_sub(left));
            }
        }
    }

    /// Takes an inode that lost its last name out of the index; who has it open keeps it.
    fn leave_index_if_nameless(&self, inode: &Inode) -> Result<()> {
        let Node::Other(file) = &inode.node else { return Ok(()) };
        let Some(name) = file.read().index().cloned() else { return Ok(()) };
        let stat = self.stat_file(inode)?;
        if self.link_count(inode, &stat) > 0 {
            return Ok(());
        }
        let object = self.upper_object(inode)?;
        if file.read().pin().is_none() {
            self.pin_object(inode, object);
        }
        self.stack.upper()?.remove_from_index(&name)?;
        file.write().rare_mut().index = None;
        Ok(())
    }

    /// Whether a lower object has names, known or not, that still show it.
    pub(super) fn has_names_left(&self, lower: ObjKey) -> bool {
        self.hard_links.uncovered(lower).is_some_and(|left| left > 0)
    }

    /// Whether a copied-up inode has names, known or not, that are still the lower's.
    pub(super) fn has_uncovered_names(&self, inode: &Inode) -> bool {
        let Node::Other(file) = &inode.node else { return false };
        let lower = {
            let file = file.read();
            file.lower_key().filter(|_| file.hard_linked)
        };
        lower.is_some_and(|lower| self.has_names_left(lower))
    }

    /// The number of names of an inode that is no directory.
    pub(super) fn link_count(&self, inode: &Inode, st: &Stat) -> u32 {
        let Node::Other(file) = &inode.node else { return st.nlink };
        let file = file.read();
        if file.layer.is_upper() {
            let aliases = file.lower_key().filter(|_| file.hard_linked).and_then(|key| self.hard_links.uncovered(key));
            let ours = u32::from(matches!(file.pin(), Some(Pin::Parked))) + u32::from(file.index().is_some());
            return st.nlink.saturating_sub(ours) + aliases.unwrap_or(0);
        }
        match self.hard_links.uncovered(file.key) {
            Some(left) => left,
            None if file.links.as_slice().is_empty() => 0,
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
            let still = file.read().links.as_slice().iter().any(|l| l.uncovered && l.is(&link.parent, &link.name));
            if !still {
                continue;
            }
            self.stack.set_impure(&dir)?;
            self.keeping_times(&dir, || upper.link(&object, &dir_fd, &link.name))?;
            if let Some(lower) = lower_key {
                self.hard_links.cover(lower, 0);
            }
            let mut state = file.write();
            if let Some(l) = state.links.as_mut_slice().iter_mut().find(|l| l.is(&link.parent, &link.name)) {
                l.uncovered = false;
                l.layer = LayerId::UPPER;
            }
            drop(state);
            self.unpin(inode);
            self.name_changed(&link.parent, &link.name, Some((inode.kind, inode.number)));
            self.save_links(inode);
        }
    }
}
