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

/// A bounded map from (directory's id, name).
#[derive(Debug)]
pub(super) struct LookupCache {
    shards: Vec<Mutex<LruCache<Key, Known>>>,
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

    fn shard(&self, key: &Key) -> Option<&Mutex<LruCache<Key, Known>>> {
        let at = (self.hasher.hash_one(key) as usize).checked_rem(self.shards.len())?;
        self.shards.get(at)
    }

    pub(super) fn get(&self, dir: u64, name: &Name) -> Option<Known> {
        let key = (dir, name.clone());
        let known = self.shard(&key)?.lock().get(&key).copied();
        let counter = if known.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        known
    }

    pub(super) fn put(&self, dir: u64, name: &Name, known: Known) {
        let key = (dir, name.clone());
        if let Some(shard) = self.shard(&key) {
            shard.lock().put(key, known);
        }
    }

    pub(super) fn remove(&self, dir: u64, name: &Name) {
        let key = (dir, name.clone());
        if let Some(shard) = self.shard(&key) {
            shard.lock().pop(&key);
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
