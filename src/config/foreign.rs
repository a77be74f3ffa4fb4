//! Options that other programs of this kind have and their callers give, and that mean nothing here.

use std::ffi::OsStr;

/// The options, with or without a value.
const FOREIGN: [&str; 13] = [
    // The kernel's cache is kept for as long as timeout= says.
    "kernel_cache",
    // How data comes and goes is not for the user to choose, and requests are as large as the kernel allows.
    "splice_read",
    "splice_write",
    "splice_move",
    "max_write",
    "max_read",
    // Each thread has its own way to the kernel, and their number is fixed.
    "clone_fd",
    "max_idle_threads",
    // Any directory can be mounted on.
    "nonempty",
    // The type is always fuse.layerfs.
    "subtype",
    // Inode numbers cost nothing extra.
    "fast_ino",
    // A mount gets its propagation from the one that it lies in.
    "private",
    // All files have the label that the policy gives to FUSE.
    "context",
];

/// Whether an option is one of them.
pub fn is_known(name: &OsStr) -> bool {
    FOREIGN.iter().any(|known| OsStr::new(known) == name)
}
