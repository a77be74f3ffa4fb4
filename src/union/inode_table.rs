//! The inodes that are known, by number and by real object. Live numbers are unique, whatever the layers say.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::layer::SeenKey;
use crate::sys;
use crate::union::Union;
use crate::union::inode::Inode;

const SHARDS: usize = 32;

/// Memory is given back to the system when, since the last time, at least this many inodes were forgotten, and half as
/// many as are still known.
const TRIM_AFTER: u64 = 1000;

type Shards<T> = [Mutex<T>; SHARDS];

/// An inode in the set of numbers, which needs no number beside the one that the inode has.
#[derive(Debug)]
struct ByNumber(Arc<Inode>);

impl Borrow<u64> for ByNumber {
    fn borrow(&self) -> &u64 {
        &self.0.number
    }
}

impl Hash for ByNumber {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.number.hash(state);
    }
}

impl PartialEq for ByNumber {
    fn eq(&self, other: &Self) -> bool {
        self.0.number == other.0.number
    }
}

impl Eq for ByNumber {}

/// The table. A key's shard is locked before a number's; whether an inode stays is decided under its number's.
#[derive(Debug)]
pub(super) struct InodeTable {
    numbers: Shards<HashSet<ByNumber>>,
    keys: Shards<HashMap<SeenKey, u64>>,
    hasher: RandomState,
    count: AtomicU64,
    forgotten: AtomicU64,
}

impl InodeTable {
    pub(super) fn new(root: Arc<Inode>) -> Self {
        let table = Self {
            numbers: std::array::from_fn(|_| Mutex::new(HashSet::new())),
            keys: std::array::from_fn(|_| Mutex::new(HashMap::new())),
            hasher: RandomState::new(),
            count: AtomicU64::new(1),
            forgotten: AtomicU64::new(0),
        };
        table.shard(&table.numbers, &Union::ROOT).lock().insert(ByNumber(root));
        table
    }

    #[expect(clippy::indexing_slicing, reason = "a remainder by the number of shards")]
    fn shard<'a, T>(&self, shards: &'a Shards<T>, key: &impl Hash) -> &'a Mutex<T> {
        &shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// The inode with a number.
    pub(super) fn get(&self, number: u64) -> Option<Arc<Inode>> {
        self.shard(&self.numbers, &number).lock().get(&number).map(|found| found.0.clone())
    }

    /// How many inodes are known, the root included.
    pub(super) fn len(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The number of the inode that a real object belongs to.
    pub(super) fn number_of(&self, key: SeenKey) -> Option<u64> {
        self.shard(&self.keys, &key).lock().get(&key).copied()
    }

    /// The inode of a real object, made by `make` with a unique number if there is none; its lookup count is one more.
    /// True if it is new.
    pub(super) fn intern(
        &self,
        key: SeenKey,
        wanted: Option<u64>,
        reserve: impl Fn() -> u64,
        make: impl FnOnce(u64) -> Inode,
    ) -> (Arc<Inode>, bool) {
        let mut keys = self.shard(&self.keys, &key).lock();
        if let Some(number) = keys.get(&key)
            && let Some(ByNumber(inode)) = self.shard(&self.numbers, number).lock().get(number)
        {
            inode.lookups.fetch_add(1, Ordering::Relaxed);
            return (inode.clone(), false);
        }
        let mut number = wanted.unwrap_or_else(&reserve);
        loop {
            let mut numbers = self.shard(&self.numbers, &number).lock();
            if number > Union::ROOT && !numbers.contains(&number) {
                let inode = Arc::new(make(number));
                numbers.insert(ByNumber(inode.clone()));
                keys.insert(key, number);
                self.count.fetch_add(1, Ordering::Relaxed);
                return (inode, true);
            }
            drop(numbers);
            number = reserve();
        }
    }

    /// Lets an inode be found by another real object as well: its copy in upper.
    pub(super) fn add_key(&self, key: SeenKey, inode: &Inode) {
        self.shard(&self.keys, &key).lock().insert(key, inode.number);
    }

    /// Lets an inode be found by its real objects no longer: they are about to go, and their numbers to be used again.
    pub(super) fn remove_keys(&self, inode: &Inode) {
        inode.keys().into_iter().for_each(|key| self.remove_key(key, inode));
    }

    /// Lets an inode be found by one real object no longer.
    pub(super) fn remove_key(&self, key: SeenKey, inode: &Inode) {
        let mut keys = self.shard(&self.keys, &key).lock();
        if keys.get(&key) == Some(&inode.number) {
            keys.remove(&key);
        }
    }

    /// Lets an inode be found by its real objects again.
    pub(super) fn add_keys(&self, inode: &Inode) {
        for key in inode.keys() {
            self.add_key(key, inode);
        }
    }

    /// Drops lookup counts; returns the inode if it is known no longer.
    pub(super) fn forget(&self, number: u64, n: u64) -> Option<Arc<Inode>> {
        if number == Union::ROOT {
            return None;
        }
        let inode = self.get(number)?;
        {
            let _shard = self.shard(&self.numbers, &number).lock();
            let left = inode.lookups.load(Ordering::Relaxed).saturating_sub(n);
            inode.lookups.store(left, Ordering::Relaxed);
        }
        self.remove_unused(inode)
    }

    /// A child let go of its parent; returns the parent if it was known for that child only.
    pub(super) fn unpin(&self, parent: &Arc<Inode>) -> Option<Arc<Inode>> {
        parent.pins.fetch_sub(1, Ordering::Relaxed);
        self.remove_unused(parent.clone())
    }

    fn remove_unused(&self, inode: Arc<Inode>) -> Option<Arc<Inode>> {
        if inode.number == Union::ROOT {
            return None;
        }
        {
            let mut numbers = self.shard(&self.numbers, &inode.number).lock();
            let unused = inode.lookups.load(Ordering::Relaxed) == 0 && inode.pins.load(Ordering::Relaxed) == 0;
            let here = numbers.get(&inode.number).is_some_and(|found| Arc::ptr_eq(&found.0, &inode));
            if !unused || !here {
                return None;
            }
            numbers.remove(&inode.number);
            if numbers.capacity() > 4 * numbers.len() + 64 {
                numbers.shrink_to_fit();
            }
        }
        for key in inode.keys() {
            let mut keys = self.shard(&self.keys, &key).lock();
            if keys.get(&key) == Some(&inode.number) && self.get(inode.number).is_none() {
                keys.remove(&key);
            }
            if keys.capacity() > 4 * keys.len() + 64 {
                keys.shrink_to_fit();
            }
        }
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.forgotten.fetch_add(1, Ordering::Relaxed);
        Some(inode)
    }

    /// Gives memory back to the system after many inodes were forgotten.
    pub(super) fn trim(&self) {
        let forgotten = self.forgotten.load(Ordering::Relaxed);
        if forgotten >= TRIM_AFTER.max(self.len() / 2)
            && self.forgotten.compare_exchange(forgotten, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            sys::memory::trim();
        }
    }
}
