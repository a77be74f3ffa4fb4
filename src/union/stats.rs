//! Counters, and what `layerfs stats` shows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::layer::copy::CopyKind;
use crate::sys;
use crate::union::{Union, Xino};

/// The xattr of the root whose value is the JSON of [`Stats`], without the layers.
pub const STATS_XATTR: &str = "user.layerfs.stats";
/// Followed by an index: the xattr of the root whose value is the JSON of that layer's [`LayerInfo`].
pub(super) const LAYER_XATTR: &str = "user.layerfs.layer.";

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// `upper` or `lower`.
    pub role: String,
    /// Where it is, as the user named it.
    pub path: String,
    /// Its filesystem's type.
    pub filesystem: String,
}

/// The lookup cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStats {
    /// Lookups that it answered or shortened.
    pub hits: u64,
    /// Lookups that it knew nothing of.
    pub misses: u64,
    /// Names that it knows.
    pub entries: u64,
    /// Names that it can know.
    pub capacity: u64,
}

/// The state of a union.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The daemon's version.
    pub version: String,
    /// The layers, the top one first.
    #[serde(default)]
    pub layers: Vec<LayerInfo>,
    /// The options in force.
    pub options: BTreeMap<String, String>,
    /// How often each operation was asked for.
    pub operations: BTreeMap<String, u64>,
    /// The lookup cache.
    pub cache: CacheStats,
    /// Copy-ups by kind.
    pub copy_ups: BTreeMap<String, u64>,
    /// Bytes of data copied up, by how.
    pub copy_up_bytes: BTreeMap<String, u64>,
    /// Copies whose data may not be on disk yet.
    #[serde(default)]
    pub uncommitted: u64,
    /// Inodes that the kernel, or a child of theirs, knows.
    pub inodes: u64,
    /// Descriptors held for layers, directories, data files and unlinked files.
    pub descriptors: u64,
    /// The daemon's resident memory in bytes.
    pub resident_bytes: u64,
}

/// What is counted of operations.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Lookup,
    Forget,
    Getattr,
    Setattr,
    Readlink,
    Mknod,
    Mkdir,
    Create,
    Symlink,
    Link,
    Unlink,
    Rmdir,
    Rename,
    Open,
    Read,
    Write,
    Fsync,
    Fallocate,
    Lseek,
    CopyFileRange,
    Opendir,
    Readdir,
    Readdirplus,
    Statfs,
    Getxattr,
    Listxattr,
    Setxattr,
    Removexattr,
}

const OP_NAMES: [&str; 28] = [
    "lookup",
    "forget",
    "getattr",
    "setattr",
    "readlink",
    "mknod",
    "mkdir",
    "create",
    "symlink",
    "link",
    "unlink",
    "rmdir",
    "rename",
    "open",
    "read",
    "write",
    "fsync",
    "fallocate",
    "lseek",
    "copy_file_range",
    "opendir",
    "readdir",
    "readdirplus",
    "statfs",
    "getxattr",
    "listxattr",
    "setxattr",
    "removexattr",
];

/// What was copied up.
#[derive(Clone, Copy, Debug)]
pub(super) enum CopyUpKind {
    /// A regular file with its data.
    Data,
    /// A regular file without its data, for a change of its metadata alone.
    Metadata,
    /// A regular file that was truncated to nothing next: no data.
    Truncated,
    /// The data of a file of which upper had the metadata.
    Completed,
    Directory,
    Symlink,
    /// A fifo, socket or device.
    Special,
}

const COPY_UP_NAMES: [&str; 7] = ["data", "metadata", "truncated", "completed", "directory", "symlink", "special"];
const COPY_KINDS: [CopyKind; 3] = [CopyKind::Reflink, CopyKind::CopyFileRange, CopyKind::ReadWrite];

/// The counters of a union.
#[derive(Debug, Default)]
pub(super) struct Counters {
    operations: [AtomicU64; OP_NAMES.len()],
    copy_ups: [AtomicU64; COPY_UP_NAMES.len()],
    bytes: [AtomicU64; COPY_KINDS.len()],
}

#[expect(
    clippy::indexing_slicing,
    reason = "each array has a place for each variant of the enum that it is indexed with"
)]
impl Counters {
    pub(super) fn count(&self, op: Op) {
        self.operations[op as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn copied_up(&self, kind: CopyUpKind) {
        self.copy_ups[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn copied_bytes(&self, kind: CopyKind, bytes: u64) {
        self.bytes[kind as usize].fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The counters that are not zero, by name.
fn named<'a>(names: impl Iterator<Item = &'a str>, counters: &[AtomicU64]) -> BTreeMap<String, u64> {
    names
        .zip(counters)
        .map(|(name, counter)| (name.to_owned(), counter.load(Ordering::Relaxed)))
        .filter(|(_, n)| *n > 0)
        .collect()
}

impl Union {
    /// Everything that there is to know of this union's work so far.
    pub fn stats(&self) -> Stats {
        let layers = self.stack.layers().iter().map(|layer| LayerInfo {
            role: if layer.root.layer.is_upper() { "upper" } else { "lower" }.to_owned(),
            path: layer.path.display().to_string(),
            filesystem: layer.filesystem(),
        });
        Stats {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            layers: layers.collect(),
            options: self.options_in_force(),
            operations: named(OP_NAMES.into_iter(), &self.counters.operations),
            cache: self.cache.stats(),
            copy_ups: named(COPY_UP_NAMES.into_iter(), &self.counters.copy_ups),
            copy_up_bytes: named(COPY_KINDS.map(<&'static str>::from).into_iter(), &self.counters.bytes),
            uncommitted: self.commits.len() as u64,
            inodes: self.table.len(),
            descriptors: (self.stack.descriptors() + self.files.len() + self.pins.len()) as u64,
            resident_bytes: sys::memory::resident(),
        }
    }

    fn options_in_force(&self) -> BTreeMap<String, String> {
        let options = &self.options;
        let on = |yes: bool| if yes { "on" } else { "off" }.to_owned();
        let mut force = BTreeMap::from([
            ("acl".to_owned(), on(options.acl)),
            ("cache_entries".to_owned(), options.cache_entries.to_string()),
            ("io".to_owned(), format!("{:?}", options.io).to_lowercase()),
            ("marks".to_owned(), format!("{:?}", self.stack.namespace()).to_lowercase()),
            ("metacopy".to_owned(), on(options.metacopy)),
            ("pid".to_owned(), std::process::id().to_string()),
            ("redirect_dir".to_owned(), on(options.redirect_dir)),
            ("timeout".to_owned(), options.timeout.map_or("infinite".to_owned(), |t| t.as_secs_f64().to_string())),
            ("durability".to_owned(), format!("{:?}", options.durability).to_lowercase()),
            ("writable".to_owned(), on(self.stack.is_writable())),
            ("xino".to_owned(), on(options.xino != Xino::Off)),
        ]);
        if let Ok(upper) = self.stack.upper() {
            force.insert("copy".to_owned(), <&str>::from(upper.way_of_copying()).to_owned());
        }
        force
    }
}
