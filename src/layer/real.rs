//! A directory of one layer, found again by its place when no descriptor of it is open.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use lru::LruCache;
use parking_lot::Mutex;

use crate::layer::names::Names;
use crate::name::Name;
use crate::sys::file::Stat;

/// A layer's position: the upper is 0, the lowers follow from the top, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LayerId(pub u16);

impl LayerId {
    /// The upper layer.
    pub const UPPER: LayerId = LayerId(0);

    /// Whether this is the upper layer.
    pub fn is_upper(self) -> bool {
        self == Self::UPPER
    }
}

/// A real object's identity: its own device and inode number, not its layer's (subvolumes and nested unions change the
/// device within one layer).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct ObjKey {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

impl ObjKey {
    /// The object as a layer shows it. Upper may lie inside a lower: then one object is two in the union, which change apart.
    pub fn seen_in(self, layer: LayerId) -> SeenKey {
        SeenKey { dev: self.dev | if layer.is_upper() { UPPER_BIT } else { 0 }, ino: self.ino }
    }
}

/// An object as upper or as the lowers show it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SeenKey {
    dev: u64,
    ino: u64,
}

/// No device number is that large.
const UPPER_BIT: u64 = 1 << 63;

impl From<&Stat> for ObjKey {
    fn from(st: &Stat) -> Self {
        Self { dev: st.dev, ino: st.ino }
    }
}

/// The device that stands for what another mount covers in a layer; no filesystem has it.
const VOID_DEV: u64 = u64::MAX >> 1;

/// The status of a name in a layer that is covered by another mount: an empty directory that nobody may write.
pub fn void_stat(parent: ObjKey, name: &Name) -> Stat {
    use std::hash::{Hash, Hasher};
    let mut hasher = std::hash::DefaultHasher::new();
    (parent, name).hash(&mut hasher);
    Stat {
        dev: VOID_DEV,
        ino: hasher.finish() >> 16,
        mode: libc::S_IFDIR | 0o555,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        blksize: 4096,
        atime: (0, 0),
        mtime: (0, 0),
        ctime: (0, 0),
        immutable: false,
        append_only: false,
    }
}

/// What a directory is known to hold, so that a lookup in it can leave out a question.
#[derive(Debug, Default)]
pub struct Hint(AtomicU8);

impl Hint {
    /// Some(true) and Some(false) once known.
    pub fn get(&self) -> Option<bool> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            n => Some(n == 2),
        }
    }

    /// Remembers an answer.
    pub fn set(&self, yes: bool) {
        self.0.store(Self::known(yes), Ordering::Relaxed);
    }

    /// Remembers what was read, unless a change set it meanwhile.
    pub fn learn(&self, yes: bool) {
        // Whoever was first knows at least as much.
        let _ = self.0.compare_exchange(0, Self::known(yes), Ordering::Relaxed, Ordering::Relaxed);
    }

    fn known(yes: bool) -> u8 {
        if yes { 2 } else { 1 }
    }
}

/// A directory of one layer.
#[derive(Debug)]
pub struct RealDir {
    /// The layer that it is in.
    pub layer: LayerId,
    /// Which object it is; whatever is opened at its place must be this.
    pub key: ObjKey,
    /// Unique in this process: the key of its cached descriptor.
    pub(super) serial: u64,
    /// Parent and name; `None` for a layer's root. Changed by a rename in upper only, under `Stack::places`.
    pub(super) place: Mutex<Option<(Arc<RealDir>, Name)>>,
    /// Whether it holds `.wh.` entries. The one that makes it opaque need not count where the mark does so too.
    pub(super) dot_whiteouts: Hint,
    /// Whether its opaque mark says that it holds whiteouts in xattr form.
    pub(super) xattr_whiteouts: Hint,
    /// Whether it is marked as holding entries with an origin.
    pub(super) impure: Hint,
    /// The names in it, if it is a lower's and was looked through; `None` inside where that doesn't tell all.
    pub(super) names: OnceLock<Option<Names>>,
    /// Where its descriptor is cached.
    fds: Arc<DirFds>,
}

impl RealDir {
    /// A layer's root.
    pub(super) fn root(layer: LayerId, key: ObjKey, fds: Arc<DirFds>) -> Arc<Self> {
        Self::make(layer, key, None, fds)
    }

    /// The directory `name` in `parent`, whose status is `st`.
    pub fn child(parent: &Arc<RealDir>, name: &Name, st: &Stat) -> Arc<Self> {
        Self::make(parent.layer, st.into(), Some((parent.clone(), name.clone())), parent.fds.clone())
    }

    fn make(layer: LayerId, key: ObjKey, place: Option<(Arc<RealDir>, Name)>, fds: Arc<DirFds>) -> Arc<Self> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            layer,
            key,
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            place: Mutex::new(place),
            dot_whiteouts: Hint::default(),
            xattr_whiteouts: Hint::default(),
            impure: Hint::default(),
            names: OnceLock::new(),
            fds,
        })
    }

    /// Whether another mount covers it: then it shows as empty.
    pub fn is_void(&self) -> bool {
        self.key.dev == VOID_DEV
    }

    /// Its parent and name; `None` for a layer's root.
    pub fn place(&self) -> Option<(Arc<RealDir>, Name)> {
        self.place.lock().clone()
    }

    /// Whether a name is known not to be in it.
    pub(super) fn lacks(&self, name: &Name) -> bool {
        matches!(self.names.get(), Some(Some(names)) if !names.may_hold(name))
    }

    /// The names from its layer's root down to it.
    pub fn path(self: &Arc<Self>) -> Vec<Name> {
        let mut names = Vec::new();
        let mut dir = self.clone();
        loop {
            let place = dir.place.lock().clone();
            let Some((parent, name)) = place else { break };
            names.push(name);
            dir = parent;
        }
        names.reverse();
        names
    }
}

impl Drop for RealDir {
    /// Closes its descriptor, which nobody would find again, and drops a chain of parents in a loop: a path can be deeper than
    /// the stack.
    fn drop(&mut self) {
        self.fds.remove(self);
        let mut next = self.place.get_mut().take();
        while let Some((parent, _)) = next {
            next = Arc::into_inner(parent).and_then(|mut dir| dir.place.get_mut().take());
        }
    }
}

/// The bounded set of open directory descriptors.
#[derive(Debug)]
pub(super) struct DirFds(Mutex<LruCache<u64, Arc<OwnedFd>>>);

impl DirFds {
    pub(super) fn new(capacity: std::num::NonZeroUsize) -> Self {
        Self(Mutex::new(LruCache::new(capacity)))
    }

    pub(super) fn get(&self, dir: &RealDir) -> Option<Arc<OwnedFd>> {
        self.0.lock().get(&dir.serial).cloned()
    }

    pub(super) fn put(&self, dir: &RealDir, fd: Arc<OwnedFd>) {
        let evicted = self.0.lock().push(dir.serial, fd);
        drop(evicted);
    }

    pub(super) fn remove(&self, dir: &RealDir) {
        let removed = self.0.lock().pop(&dir.serial);
        drop(removed);
    }

    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }
}
