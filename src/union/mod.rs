//! The merged namespace: one file for each kind of operation, all of it testable without a mount.

// What a layer or a caller supplies must never end the daemon.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

mod acl;
mod attr;
mod cache;
mod commit;
mod copy_up;
mod create;
mod file;
mod handles;
mod hard_links;
mod held;
mod ids;
mod ino;
mod inode;
mod inode_table;
mod link;
mod listing;
mod lookup;
mod metacopy;
mod passthrough;
mod permissions;
mod pin;
mod reach;
mod readdir;
mod recovery;
mod remove;
mod rename;
mod stats;
mod xattr;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use crate::error::{Errno, Result, SetupError};
use crate::layer::override_stat::OverrideStat;
use crate::layer::whiteout::Whiteouts;
use crate::layer::{Handling, Stack, StackSpec};
use crate::name::Name;

#[cfg(fuzzing)]
pub use acl::inherit as inherit_acl;
pub use attr::{Attr, Caller, FileKind, SetAttr, SetTime, Time};
pub use commit::Durability;
pub use ids::{IdMap, Ids};
pub use readdir::DirEntry;
pub use rename::RenameFlags;
pub use stats::{CacheStats, LayerInfo, STATS_XATTR, Stats};

use inode::Inode;
use stats::Op;

pub use crate::sys::file::FsStat as StatFs;

/// Whether inode numbers of several filesystems are told apart by high bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Xino {
    /// Where the numbers leave room.
    #[default]
    Auto,
    /// Never: objects of other filesystems than the first get numbers that last for the mount.
    Off,
    /// As `Auto`.
    On,
}

/// Who reads and writes file data. The names are the option's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Io {
    /// The kernel keeps what it has read or written, and passes each write on at once.
    #[default]
    WriteThrough,
    /// The kernel gathers what is written, and passes it on at the close, at fsync, or when it is a lot.
    Cached,
    /// The kernel alone, where it may.
    Passthrough,
}

/// How a union behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long the kernel may keep names and attributes; `None`: for good, since only we change the layers. Otherwise no
    /// names of lowers are remembered either, and zero also turns the lookup cache off.
    pub timeout: Option<Duration>,
    /// When the data of copies reaches the disk.
    pub durability: Durability,
    /// fsync waits for the disk; else only batches reach it.
    pub fsync: bool,
    /// Who reads and writes file data.
    pub io: Io,
    /// Which run of the machine this is; `None`: the one that the kernel says.
    pub boot_id: Option<String>,
    /// Store redirects, so that merged directories can be renamed.
    pub redirect_dir: bool,
    /// Copy no data up for a change of a file's metadata alone.
    pub metacopy: bool,
    /// How deletions are written.
    pub whiteouts: Whiteouts,
    /// POSIX ACLs; without them none is shown, and setting one is answered with EOPNOTSUPP.
    pub acl: bool,
    /// Extended attributes; without them none is shown, and setting one is answered with EOPNOTSUPP.
    pub xattrs: bool,
    /// Inode numbers over several filesystems.
    pub xino: Xino,
    /// Owners and groups that are others in the layers.
    pub ids: Ids,
    /// Every directory shows one link, instead of how many directories it holds.
    pub static_nlink: bool,
    /// Inode numbers have to do with 32 bits.
    pub ino32: bool,
    /// Bound of the lookup cache, in names; 0 turns it off.
    pub cache_entries: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: None,
            durability: Durability::default(),
            fsync: true,
            io: Io::default(),
            boot_id: None,
            redirect_dir: true,
            metacopy: true,
            whiteouts: Whiteouts::default(),
            acl: true,
            xattrs: true,
            xino: Xino::Auto,
            ids: Ids::default(),
            static_nlink: false,
            ino32: false,
            cache_entries: 16 * 1024,
        }
    }
}

/// A union of layers.
#[derive(Debug)]
pub struct Union {
    stack: Stack,
    options: Options,
    table: inode_table::InodeTable,
    numbers: ino::Numbers,
    cache: cache::LookupCache,
    listings: listing::Listings,
    files: handles::OpenFiles,
    pins: pin::Pins,
    hard_links: hard_links::HardLinks,
    counters: stats::Counters,
    commits: commit::Commits,
    /// How often the content of any file changed.
    changes: AtomicU32,
    /// This run of the machine.
    boot: String,
    /// See [`crate::sys::privilege::ambiguous_ids`].
    ambiguous_ids: Option<(u32, u32)>,
    /// See [`permissions::said_of_lower_root`].
    lower_root_said: Result<Option<OverrideStat>>,
    /// Shared by publications of copy-ups, exclusive for the rename of a directory.
    renames: RwLock<()>,
}

impl Union {
    /// The inode number of the root.
    pub const ROOT: u64 = 1;

    /// Opens the layers.
    ///
    /// # Errors
    /// What is wrong with the layers, in one sentence; nothing on disk was changed then.
    pub fn open(spec: &StackSpec, mut options: Options) -> std::result::Result<Self, SetupError> {
        let boot = options.boot_id.take().unwrap_or_else(crate::sys::boot::id);
        if boot.is_empty() && options.durability == Durability::Batched {
            log::warn!("which run of the machine this is can't be told: each copy-up waits for the disk");
            options.durability = Durability::Strict;
        }
        let handling = Handling {
            volatile: options.durability == Durability::Volatile,
            whiteouts: options.whiteouts,
            remember_names: options.timeout.is_none(),
        };
        let stack = Stack::open(spec, handling)?;
        let sizeless = stack.recover(&boot)?;
        // An ACL would count for real, and beside what the attribute says.
        options.acl &= stack.xattr_permissions().is_none();
        let cache_entries = if options.timeout == Some(Duration::ZERO) { 0 } else { options.cache_entries };
        let numbers = ino::Numbers::new(stack.layers().iter().map(|l| l.root.key.dev), options.xino, options.ino32);
        let union = Self {
            table: inode_table::InodeTable::new(Arc::new(Inode::root(&stack))),
            numbers,
            cache: cache::LookupCache::new(cache_entries),
            listings: listing::Listings::default(),
            files: handles::OpenFiles::default(),
            pins: pin::Pins::default(),
            hard_links: hard_links::HardLinks::default(),
            counters: stats::Counters::default(),
            commits: commit::Commits::default(),
            changes: AtomicU32::new(1),
            boot,
            ambiguous_ids: crate::sys::privilege::ambiguous_ids(),
            lower_root_said: permissions::said_of_lower_root(&stack),
            renames: RwLock::new(()),
            stack,
            options,
        };
        union.give_sizes(&sizeless).map_err(|e| union.stack.not_recovered(e))?;
        Ok(union)
    }

    /// The clean end: what was changed is on disk in a form that every tool of this ecosystem reads.
    ///
    /// # Errors
    /// What the work directory could not be cleaned up for; a next mount does it then.
    pub fn close(&self) -> Result<()> {
        self.end_batches();
        self.commit()?;
        self.files.clear();
        self.save_unsaved_links();
        match self.stack.upper() {
            Ok(upper) => upper.finish(),
            Err(_) => Ok(()),
        }
    }

    /// The end of a union that was never mounted: what opening it made on disk is removed again.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn abandon(&self) -> Result<()> {
        match self.stack.upper() {
            Ok(upper) => upper.abandon(),
            Err(_) => Ok(()),
        }
    }

    /// Tells other daemons the device number of the mount that this union is seen through; `None` once that has gone.
    ///
    /// # Errors
    /// From writing it down beside the lock in the work directory.
    pub fn published(&self, dev: Option<u64>) -> std::io::Result<()> {
        match self.stack.upper() {
            Ok(upper) => upper.publish_mount(dev),
            Err(_) => Ok(()),
        }
    }

    /// Whether there is an upper layer.
    pub fn is_writable(&self) -> bool {
        self.stack.is_writable()
    }

    /// The options in force.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Drops `n` lookup counts of an inode; at none left it is forgotten. True for a file that changed and still is known: by an
    /// answer that may have been under way while it changed.
    pub fn forget(&self, ino: u64, n: u64) -> bool {
        self.counters.count(Op::Forget);
        if let Some(gone) = self.table.forget(ino, n) {
            self.release(&gone);
            return false;
        }
        let known = self.table.get(ino).filter(|inode| inode.lookups.load(Ordering::Relaxed) > 0);
        known.is_some_and(|inode| inode.changed_at.load(Ordering::Relaxed) > 0)
    }

    /// The names of a file, as directory and name; none of what is not known, or of a directory.
    pub fn names_of(&self, ino: u64) -> Vec<(u64, Name)> {
        self.table.get(ino).map(|inode| inode.names()).unwrap_or_default()
    }

    /// Lets go of what a forgotten inode held, and of parents that were only kept for it.
    fn release(&self, gone: &Arc<Inode>) {
        let mut gone = vec![gone.clone()];
        while let Some(inode) = gone.pop() {
            self.files.remove(inode.id);
            self.listings.remove_dir(inode.id);
            self.unpin(&inode);
            for parent in inode.take_parents() {
                gone.extend(self.table.unpin(&parent));
            }
        }
        self.table.trim();
    }

    fn inode(&self, ino: u64) -> Result<Arc<Inode>> {
        self.table.get(ino).ok_or(Errno::ESTALE)
    }

    fn dir(&self, ino: u64) -> Result<Arc<Inode>> {
        let inode = self.inode(ino)?;
        if inode.kind == FileKind::Directory { Ok(inode) } else { Err(Errno::ENOTDIR) }
    }

    /// Notes that a file's content has changed, before the caller hears of it.
    fn content_changed(&self, inode: &Inode) {
        inode.changed_at.store(self.changes.fetch_add(1, Ordering::AcqRel), Ordering::Release);
    }

    /// Whether a file's content has changed since `changes` had that value; it wraps around.
    fn has_changed_since(&self, inode: &Inode, changes: u32) -> bool {
        let age = self.changes.load(Ordering::Acquire).wrapping_sub(changes);
        inode.changed_at.load(Ordering::Acquire).wrapping_sub(changes) < age
    }

    /// Names that users can't have: AUFS whiteouts would be read back as deletions.
    fn check_new_name(name: &Name) -> Result<()> {
        if is_reserved(name) { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// Keeps caches right after a name in a directory came, went or changed its layer.
    fn name_changed(&self, dir: &Inode, name: &Name, now: Option<(FileKind, u64)>) {
        dir.as_dir().inspect(|node| _ = node.name_changes.fetch_add(1, Ordering::Release));
        self.cache.remove(dir.id, name);
        self.listings.change(dir.id, name, now);
        self.note_change(dir);
    }
}

/// Whether a name is an AUFS whiteout's.
fn is_reserved(name: &Name) -> bool {
    name.as_bytes().starts_with(crate::layer::whiteout::DOT_PREFIX)
}
