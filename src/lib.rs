//! layerfs: a union filesystem for Linux as a FUSE daemon.
//!
//! It stacks read-only lower directories under one writable upper directory and shows the merged tree. A write to a
//! lower file copies it up, a delete leaves a whiteout, and no lower layer is ever modified. `docs/ARCHITECTURE.md`
//! has the map of the modules and the way of a request through them.
//!
//! # Lock order
//! Outermost first; a lock may be taken while those above it are held, never the other way round. No lock but the
//! inode's own `copy_up` is held while file data is copied.
//!
//! 1. `Inode::copy_up`: one copy-up of an inode at a time; held by nobody who holds another inode's.
//! 2. `Union::renames`: shared by every publication of a copy-up, exclusive for a rename of a directory.
//! 3. `Inode::names` of a directory: shared by lookups, exclusive for changes of its names; of two directories the
//!    one with the smaller number first.
//! 4. `Inode::state`: short, no system call but a directory's own opening under it.
//! 5. Leaves, none held while another is taken: the inode table's shards (a key's shard before a number's), the lookup
//!    cache, the listings, the open files, the list of copies to commit, a layer's `places` and descriptors.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod error;
pub mod fuse;
pub mod layer;
pub mod name;
pub mod sys;
pub mod union;
