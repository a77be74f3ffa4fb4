//! What is asked of the kernel at the start, bit by bit, and why.

use fuser::{InitFlags, KernelConfig};

/// When a capability is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum When {
    /// On every mount.
    Always,
    /// Only when nobody but us changes the layers, so that the kernel may keep what it knows.
    LayersAreOurs,
    /// Only when there is no upper either.
    NothingChanges,
    /// Only when layers may change underneath.
    LayersChange,
}

/// The table. Left out on purpose, because fuser 0.18 does not honour them: SETXATTR_EXT, SECURITY_CTX, CREATE_SUPP_GROUP,
/// ALLOW_IDMAP, HAS_INODE_DAX, SUBMOUNTS, OVER_IO_URING, HAS_RESEND, REQUEST_TIMEOUT. Locks are left to the
/// kernel: no POSIX_LOCKS, no FLOCK_LOCKS.
const WANTED: &[(InitFlags, When)] = &[
    // Requests of one file and lookups in one directory run side by side.
    (InitFlags::FUSE_ASYNC_DIO, When::Always),
    (InitFlags::FUSE_PARALLEL_DIROPS, When::Always),
    // Directories come with the attributes of their entries. Not "auto": who reads a whole directory before the first
    // stat (find, rm) would pay a round trip for each entry.
    (InitFlags::FUSE_DO_READDIRPLUS, When::Always),
    // Always: it also switches permission checks on for a mount that somebody else made.
    (InitFlags::FUSE_POSIX_ACL, When::Always),
    // A default ACL replaces the umask, so the umask is ours to apply.
    (InitFlags::FUSE_DONT_MASK, When::Always),
    // No GETXATTR before each write; we clear set-id bits and capabilities.
    (InitFlags::FUSE_HANDLE_KILLPRIV_V2, When::Always),
    // No OPEN, RELEASE: there are no handles, and pages are kept.
    (InitFlags::FUSE_NO_OPEN_SUPPORT, When::LayersAreOurs),
    // No OPENDIR, RELEASEDIR where no directory ever changes; elsewhere see `Union::opendir`.
    (InitFlags::FUSE_NO_OPENDIR_SUPPORT, When::NothingChanges),
    (InitFlags::FUSE_CACHE_SYMLINKS, When::LayersAreOurs),
    // Small writes are gathered in the page cache.
    (InitFlags::FUSE_WRITEBACK_CACHE, When::LayersAreOurs),
    // An OPEN says that it truncates, so that nothing is copied up first. Under NO_OPEN truncation has to be a SETATTR.
    (InitFlags::FUSE_ATOMIC_O_TRUNC, When::LayersChange),
    // A changed size or time drops cached pages.
    (InitFlags::FUSE_AUTO_INVAL_DATA, When::LayersChange),
];

/// The most a single write may carry, in bytes: the kernel's ceiling of 256 pages.
const MAX_WRITE: u32 = 1 << 20;
/// How many requests the kernel may have waiting in the background (read-ahead, writeback).
const MAX_BACKGROUND: u16 = 64;

/// What came of it that requests are answered by.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Granted {
    /// ENOSYS to OPEN means: never ask again.
    pub no_open: bool,
    /// The same for OPENDIR.
    pub no_opendir: bool,
    /// Written pages may be in the kernel only.
    pub writeback: bool,
}

/// Asks for everything that this mount wants and this kernel has.
pub(super) fn negotiate(config: &mut KernelConfig, layers_change: bool, writable: bool) -> Granted {
    let mut granted = InitFlags::empty();
    for (capability, when) in WANTED {
        let wanted = match when {
            When::Always => true,
            When::LayersAreOurs => !layers_change,
            When::NothingChanges => !layers_change && !writable,
            When::LayersChange => layers_change,
        };
        // All or nothing a call: one by one, what an old kernel lacks costs only itself.
        if !wanted {
            continue;
        }
        match config.add_capabilities(*capability) {
            Ok(()) => granted |= *capability,
            Err(_) => log::info!("this kernel lacks {capability:?}"),
        }
    }
    if let Err(most) = config.set_max_write(MAX_WRITE) {
        log::info!("writes carry at most {most} bytes");
    }
    if let Err(most) = config.set_max_background(MAX_BACKGROUND) {
        log::info!("at most {most} requests in the background");
    }
    Granted {
        no_open: granted.contains(InitFlags::FUSE_NO_OPEN_SUPPORT),
        no_opendir: granted.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT),
        writeback: writable && granted.contains(InitFlags::FUSE_WRITEBACK_CACHE),
    }
}
