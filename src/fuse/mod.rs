//! The FUSE protocol, without policy: a request is decoded, the union is asked, the answer is encoded.
//!
//! The only module that names the `fuser` crate. `call` runs an operation so that a panic costs one EIO; `convert` holds
//! every conversion between the protocol's types and ours; `capabilities` says what is asked of the kernel and why; `seek`
//! has the one operation that waits for others; `stale` has the kernel ask again for what it may know wrongly; `opens` says
//! which files the kernel reads and writes by itself.

// What a layer or a caller supplies must never end the daemon.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

mod adapter;
mod call;
mod capabilities;
mod convert;
mod killpriv;
mod opens;
mod seek;
mod stale;
#[cfg(test)]
mod survival;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::sys;
use crate::union::{Io, Union};
use adapter::Adapter;

/// How a mount is served.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Number of threads that take requests; at least one.
    pub threads: usize,
    /// How long the kernel may keep names and attributes; `None`: for good.
    pub timeout: Option<Duration>,
}

/// A mount that is ready to be served.
#[derive(Debug)]
pub struct Server {
    session: fuser::Session<Adapter>,
}

impl Server {
    /// Shakes hands with the kernel over an open `/dev/fuse` that a mount was made with.
    ///
    /// # Errors
    /// When the kernel's protocol is too old, the mount is gone already, or passthrough is asked for where it can't be.
    pub fn start(union: Arc<Union>, dev_fuse: OwnedFd, options: ServeOptions) -> io::Result<Self> {
        let mut config = fuser::Config::default();
        config.n_threads = Some(options.threads.max(1));
        config.clone_fd = options.threads > 1;
        let notifier = Arc::new(OnceLock::new());
        let passthrough = (union.options().io == Io::Passthrough).then(|| dev_fuse.try_clone()).transpose()?;
        let adapter = Adapter::new(union, options.timeout, &notifier)?;
        // Who may do what is the kernel's to decide (default_permissions, allow_other), not the session's.
        let session = fuser::Session::from_fd(adapter, dev_fuse, fuser::SessionACL::All, config)?;
        if let Some(device) = passthrough {
            sys::backing::probe(device.as_fd()).map_err(no_passthrough)?;
        }
        // Nothing is asked for before `run`.
        notifier.get_or_init(|| session.notifier());
        Ok(Self { session })
    }

    /// Serves until the mount is gone.
    ///
    /// # Errors
    /// When the device fails otherwise.
    pub fn run(self) -> io::Result<()> {
        self.session.run()
    }
}

fn no_passthrough(refused: nix::errno::Errno) -> io::Error {
    io::Error::other(format!("io=passthrough needs root and Linux 6.9 ({refused}); leave it out"))
}
