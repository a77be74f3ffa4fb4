//! Listings of directories that were read lately, kept right while names come and go.
//!
//! An offset is a hash of the name, so that it means the same in every listing of the directory, however often it was
//! made anew in between. Names whose hashes collide follow each other by rank.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::ops::Bound;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use crate::layer::LayerId;
use crate::name::Name;
use crate::union::FileKind;

/// Offsets below this stand for `.` and `..`.
pub(super) const FIRST_OFFSET: u64 = 16;

/// How many listings are kept.
const LISTINGS: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// How many entries all kept listings may have, beyond the one that is read now.
const ENTRIES: usize = 50_000;

/// One name of a merged directory.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The name.
    pub name: Box<[u8]>,
    /// Its type.
    pub kind: FileKind,
    /// The number that readdir shows for it.
    pub number: u64,
    /// The layer that shows it, while that is sure.
    pub layer: Option<LayerId>,
}

/// All names of one directory, by offset.
#[derive(Debug, Default)]
pub(super) struct Listing {
    entries: BTreeMap<u64, Entry>,
}

/// The offset that a name has if no other one collides with it.
fn offset_of(hasher: &RandomState, name: &[u8]) -> u64 {
    // The largest offsets stay free for ranks.
    (hasher.hash_one(name) >> 1).clamp(FIRST_OFFSET, i64::MAX as u64 - 1024)
}

impl Listing {
    fn position(&self, hasher: &RandomState, name: &[u8]) -> Result<u64, u64> {
        let mut at = offset_of(hasher, name);
        while let Some(entry) = self.entries.get(&at) {
            if *entry.name == *name {
                return Ok(at);
            }
            at += 1;
        }
        Err(at)
    }

    fn insert(&mut self, hasher: &RandomState, entry: Entry) {
        let at = self.position(hasher, &entry.name).unwrap_or_else(|free| free);
        self.entries.insert(at, entry);
    }

    /// The entries after an offset.
    pub(super) fn after(&self, offset: u64) -> impl Iterator<Item = (u64, &Entry)> {
        self.entries.range((Bound::Excluded(offset), Bound::Unbounded)).map(|(at, entry)| (*at, entry))
    }
}

/// The listings that are kept, by directory id.
#[derive(Debug)]
pub(super) struct Listings {
    hasher: RandomState,
    kept: Mutex<LruCache<u64, Arc<Mutex<Listing>>>>,
}

impl Default for Listings {
    fn default() -> Self {
        Self { hasher: RandomState::new(), kept: Mutex::new(LruCache::new(LISTINGS)) }
    }
}

impl Listings {
    /// A directory's listing, if it is kept.
    pub(super) fn get(&self, dir: u64) -> Option<Arc<Mutex<Listing>>> {
        self.kept.lock().get(&dir).cloned()
    }

    /// Keeps a new listing; others go when there are too many entries.
    pub(super) fn keep(&self, dir: u64, names: HashMap<Box<[u8]>, Entry>) -> Arc<Mutex<Listing>> {
        let mut listing = Listing::default();
        // Ranks of colliding names must not depend on the order of a hash map.
        let mut entries: Vec<Entry> = names.into_values().collect();
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for entry in entries {
            listing.insert(&self.hasher, entry);
        }
        let listing = Arc::new(Mutex::new(listing));
        let mut kept = self.kept.lock();
        kept.put(dir, listing.clone());
        let mut total: usize = kept.iter().map(|(_, l)| l.lock().entries.len()).sum();
        while total > ENTRIES && kept.len() > 1 {
            let Some((_, oldest)) = kept.pop_lru() else { break };
            total -= oldest.lock().entries.len();
        }
        listing
    }

    /// Keeps a listing right after a name came (`now`), went or changed.
    pub(super) fn change(&self, dir: u64, name: &Name, now: Option<(FileKind, u64)>) {
        let Some(listing) = self.kept.lock().peek(&dir).cloned() else { return };
        let mut listing = listing.lock();
        match (now, listing.position(&self.hasher, name.as_bytes())) {
            (Some((kind, number)), Ok(at) | Err(at)) => {
                listing.entries.insert(at, Entry { name: name.as_bytes().into(), kind, number, layer: None });
            }
            (None, Ok(at)) => {
                listing.entries.remove(&at);
            }
            (None, Err(_)) => {}
        }
    }

    pub(super) fn remove_dir(&self, dir: u64) {
        self.kept.lock().pop(&dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> HashMap<Box<[u8]>, Entry> {
        let entry =
            |name: &str| Entry { name: name.as_bytes().into(), kind: FileKind::Regular, number: 2, layer: None };
        names.iter().map(|n| (n.as_bytes().into(), entry(n))).collect()
    }

    #[test]
    fn offsets_do_not_depend_on_the_other_names() {
        let listings = Listings::default();
        let all = listings.keep(1, names(&["a", "b", "c"]));
        let some = listings.keep(2, names(&["b"]));
        let offset = |l: &Arc<Mutex<Listing>>, name: &str| {
            l.lock().after(0).find(|(_, e)| *e.name == *name.as_bytes()).map(|(at, _)| at)
        };
        assert_eq!(offset(&all, "b"), offset(&some, "b"));
        assert!(offset(&all, "b").unwrap() >= FIRST_OFFSET);
    }

    #[test]
    fn changes_show_in_a_kept_listing() {
        let listings = Listings::default();
        let listing = listings.keep(1, names(&["a", "b"]));
        listings.change(1, &Name::new(b"a").unwrap(), None);
        listings.change(1, &Name::new(b"z").unwrap(), Some((FileKind::Directory, 9)));
        let mut seen: Vec<_> = listing.lock().after(0).map(|(_, e)| e.name.to_vec()).collect();
        seen.sort();
        assert_eq!(seen, [b"b".to_vec(), b"z".to_vec()]);
    }
}
