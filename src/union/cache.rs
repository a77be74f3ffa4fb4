//! The lookup cache: where a name was found, or that it is nowhere, so that a repeated lookup asks one layer or none.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::Mutex;

use crate::layer::LayerId;
use crate::name::Name;
use crate::union::CacheStats;

const SHARDS: usize = 8;

/// What is remembered of a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Known {
    /// No layer shows it.
    Absent,
    /// It is not above this layer.
    At(LayerId),
}

type Key = (u64, Name);

/// All that is remembered of a name.
#[derive(Clone, Copy, Default, Debug)]
struct Entry {
    known: Option<Known>,
    /// The lowers show nothing of it, whatever becomes of it in upper.
    not_below: bool,
}

/// A bounded map from (directory's id, name).
#[derive(Debug)]
pub(super) struct LookupCache {
    shards: Vec<Mutex<LruCache<Key, Entry>>>,
    hasher: RandomState,
    capacity: usize,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl LookupCache {
    /// A cache for `capacity` names; 0 turns it off.
    pub(super) fn new(capacity: usize) -> Self {
        let shards = capacity.min(SHARDS);
        let shard = capacity.checked_div(shards).and_then(NonZeroUsize::new);
        Self {
            shards: shard.map_or_else(Vec::new, |n| (0..shards).map(|_| Mutex::new(LruCache::new(n))).collect()),
            hasher: RandomState::new(),
            capacity,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    fn shard(&self, key: &Key) -> Option<&Mutex<LruCache<Key, Entry>>> {
        let at = (self.hasher.hash_one(key) as usize).checked_rem(self.shards.len())?;
        self.shards.get(at)
    }

    pub(super) fn get(&self, dir: u64, name: &Name) -> Option<Known> {
        let key = (dir, name.clone());
        let known = self.shard(&key)?.lock().get(&key).and_then(|entry| entry.known);
        let counter = if known.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        known
    }

    pub(super) fn put(&self, dir: u64, name: &Name, known: Known) {
        self.note(dir, name, |entry| entry.known = Some(known));
    }

    /// Remembers that the lowers of a directory show nothing of a name, which a change of the name does not change.
    pub(super) fn put_not_below(&self, dir: u64, name: &Name) {
        self.note(dir, name, |entry| entry.not_below = true);
    }

    /// Whether the lowers are known to show nothing of a name.
    pub(super) fn is_not_below(&self, dir: u64, name: &Name) -> bool {
        let key = (dir, name.clone());
        self.shard(&key).is_some_and(|shard| shard.lock().get(&key).is_some_and(|entry| entry.not_below))
    }

    fn note(&self, dir: u64, name: &Name, note: impl FnOnce(&mut Entry)) {
        let key = (dir, name.clone());
        if let Some(shard) = self.shard(&key) {
            note(shard.lock().get_or_insert_mut(key, Entry::default));
        }
    }

    /// Forgets where a name was found: it changed.
    pub(super) fn remove(&self, dir: u64, name: &Name) {
        let key = (dir, name.clone());
        let Some(shard) = self.shard(&key) else { return };
        let mut shard = shard.lock();
        match shard.get_mut(&key) {
            Some(entry) if entry.not_below => entry.known = None,
            Some(_) => drop(shard.pop(&key)),
            None => {}
        }
    }

    pub(super) fn stats(&self) -> CacheStats {
        CacheStats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            entries: self.shards.iter().map(|s| s.lock().len() as u64).sum(),
            capacity: self.capacity as u64,
        }
    }
}
