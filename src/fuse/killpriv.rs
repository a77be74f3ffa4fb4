//! What a write takes off a file with capabilities, where writes are not gathered.
//!
//! Before the first write to it the kernel (seen on 6.18) asks to remove the capabilities, and then to change nothing: which also
//! is how it asks for a chown to nobody, which takes the set-id bits off for root, too, where a write does not. So it is
//! remembered which file has just lost its capabilities. If that has been forgotten, because another file has lost its own
//! meanwhile, the bits go.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::xattr::CAPABILITY;

/// No file has this number.
const NONE: u64 = 0;

/// The last file that has lost its capabilities.
#[derive(Debug, Default)]
pub(super) struct LostCapabilities(AtomicU64);

impl LostCapabilities {
    /// An attribute of a file has been removed.
    pub(super) fn put(&self, ino: u64, name: &[u8]) {
        if name == CAPABILITY.to_bytes() {
            self.0.store(ino, Ordering::Relaxed);
        }
    }

    /// Whether this file was the last that lost them. Asked once, it is forgotten.
    pub(super) fn take(&self, ino: u64) -> bool {
        self.0.compare_exchange(ino, NONE, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}
