//! What is asked of the kernel at the start, bit by bit, and why.

use fuser::{InitFlags, KernelConfig};

use crate::union::Io;

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
    /// Only when nobody but us changes the layers, and data comes from the kernel's cache.
    NothingToOpen,
    /// Only when every opening of a file is asked for.
    OpensAreAsked,
    /// Only when nobody but us changes the layers, and writes are to be gathered.
    WritesAreKept,
    /// Only when the kernel is to read and write files by itself.
    Passthrough,
    /// Only when requests are to be taken from io_uring.
    Ring,
}

/// What decides which capabilities a mount wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mount {
    /// Layers may change underneath.
    pub layers_change: bool,
    /// There is an upper.
    pub writable: bool,
    /// Who is to read and write file data.
    pub io: Io,
    /// Requests are taken from io_uring if the kernel offers it.
    pub ring: bool,
}

impl Mount {
    fn wants(self, when: When) -> bool {
        let opens_are_asked = self.layers_change || self.io == Io::Passthrough;
        match when {
            When::Always => true,
            When::LayersAreOurs => !self.layers_change,
            When::NothingChanges => !self.layers_change && !self.writable,
            When::LayersChange => self.layers_change,
            When::NothingToOpen => !opens_are_asked,
            When::OpensAreAsked => opens_are_asked,
            When::WritesAreKept => !self.layers_change && self.io == Io::Cached,
            When::Passthrough => self.io == Io::Passthrough,
            When::Ring => self.ring,
        }
    }
}

/// The table. Left out on purpose, because fuser 0.18 does not honour them: SETXATTR_EXT, SECURITY_CTX, CREATE_SUPP_GROUP,
/// ALLOW_IDMAP, HAS_INODE_DAX, SUBMOUNTS, HAS_RESEND, REQUEST_TIMEOUT. Locks are left to the
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
    (InitFlags::FUSE_NO_OPEN_SUPPORT, When::NothingToOpen),
    // No OPENDIR, RELEASEDIR where no directory ever changes; elsewhere see `Union::opendir`.
    (InitFlags::FUSE_NO_OPENDIR_SUPPORT, When::NothingChanges),
    (InitFlags::FUSE_CACHE_SYMLINKS, When::LayersAreOurs),
    // Small writes are gathered in the page cache.
    (InitFlags::FUSE_WRITEBACK_CACHE, When::WritesAreKept),
    // An OPEN says that it truncates, so that nothing is copied up first. Under NO_OPEN truncation has to be a SETATTR.
    (InitFlags::FUSE_ATOMIC_O_TRUNC, When::OpensAreAsked),
    // A changed size or time drops cached pages.
    (InitFlags::FUSE_AUTO_INVAL_DATA, When::LayersChange),
    // Excludes the writeback cache and goes by handles.
    (InitFlags::FUSE_PASSTHROUGH, When::Passthrough),
    // Requests are served on the core that they come from. fuser passes the wish on and knows nothing else of it: see `ring`.
    (InitFlags::FUSE_OVER_IO_URING, When::Ring),
];

/// The most a single write may carry, in bytes: the kernel's ceiling of 256 pages.
pub(super) const MAX_WRITE: u32 = 1 << 20;
/// How many filesystems may be stacked below, the layers' own included: none of them is an overlay then, and we can be a layer
/// of one.
const BACKING_DEPTH: u32 = 1;
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
    /// The kernel reads and writes files by itself if it is given them.
    pub passthrough: bool,
    /// Requests come from io_uring once it is set up.
    pub ring: bool,
}

/// Asks for everything that this mount wants and this kernel has.
pub(super) fn negotiate(config: &mut KernelConfig, mount: Mount) -> Granted {
    let mut granted = InitFlags::empty();
    for (capability, _) in WANTED.iter().filter(|(_, when)| mount.wants(*when)) {
        // All or nothing a call: one by one, what an old kernel lacks costs only itself.
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
        writeback: mount.writable && granted.contains(InitFlags::FUSE_WRITEBACK_CACHE),
        passthrough: granted.contains(InitFlags::FUSE_PASSTHROUGH) && config.set_max_stack_depth(BACKING_DEPTH).is_ok(),
        ring: granted.contains(InitFlags::FUSE_OVER_IO_URING),
    }
}
