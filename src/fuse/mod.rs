//! The FUSE protocol, without policy: a request is decoded, the union is asked, the answer is encoded.
//!
//! The only module that names the `fuser` crate. `operations` has each operation once; two transports convert for it: `adapter`
//! from fuser's types, over `/dev/fuse`, and `ring` from bytes, over io_uring. `call` runs an operation so that a panic costs
//! one EIO; `convert` holds the conversions between fuser's types and ours; `capabilities` says what is asked of the kernel and why; `seek`
//! has the one operation that waits for others; `stale` has the kernel ask again for what it may know wrongly; `opens` says
//! which files the kernel reads and writes by itself; `governor` gives busy workers idle priority.

// What a layer or a caller supplies must never end the daemon.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

mod adapter;
mod call;
mod capabilities;
mod convert;
mod governor;
mod killpriv;
mod opens;
mod operations;
mod ring;
mod running;
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
use governor::Governor;
use operations::Operations;
use ring::Rings;

/// How a mount is served.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Number of threads that take requests; at least one.
    pub threads: usize,
    /// How long the kernel may keep names and attributes; `None`: for good.
    pub timeout: Option<Duration>,
    /// Whether requests are taken from io_uring.
    pub ring: Ring,
}

/// Whether requests are taken from io_uring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Ring {
    /// Where the kernel offers it and the machine has not too many cores, unless files pass through.
    #[default]
    Auto,
    /// Or there is no mount.
    On,
    /// Never.
    Off,
}

impl Ring {
    /// Whether a mount takes requests from io_uring. `offered`: the kernel can; `queues`: how many it has to have then, or why
    /// this process can't.
    fn is_taken(self, io: Io, offered: bool, queues: impl FnOnce() -> io::Result<usize>) -> io::Result<bool> {
        let refused = match self {
            Self::Off => return Ok(false),
            // What passes through is registered by fuser, for its own answers.
            _ if io == Io::Passthrough => "not with io=passthrough".to_owned(),
            _ if !offered => "the kernel does not offer it".to_owned(),
            _ => match queues() {
                Ok(cores) if self == Self::Auto && cores > ring::CORES_MAX => format!("{cores} cores"),
                Ok(_) => return Ok(true),
                Err(e) => e.to_string(),
            },
        };
        if self == Self::On {
            return Err(no_ring(&refused));
        }
        log::debug!("requests come from /dev/fuse: {refused}");
        Ok(false)
    }
}

/// A mount that is ready to be served.
#[derive(Debug)]
pub struct Server {
    session: fuser::Session<Adapter>,
    rings: Option<Rings>,
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
        let device = Arc::new(dev_fuse.try_clone()?);
        let io = union.options().io;
        let operations = Arc::new(Operations::new(union, options.timeout, &notifier)?);
        let governor = Governor::start();
        let adapter = Adapter::new(operations.clone(), options.ring, governor.clone())?;
        // Who may do what is the kernel's to decide (default_permissions, allow_other), not the session's.
        let session = fuser::Session::from_fd(adapter, dev_fuse, fuser::SessionACL::All, config)?;
        if io == Io::Passthrough {
            sys::backing::probe(device.as_fd()).map_err(no_passthrough)?;
        }
        // Nothing is asked for before `run`.
        notifier.get_or_init(|| session.notifier());
        let rings = operations.granted().ring.then(|| Rings::start(&operations, &device, &governor)).transpose();
        let rings = rings.map_err(|e| io::Error::other(format!("io_uring fails ({e}): mount with io_uring=off")))?;
        Ok(Self { session, rings })
    }

    /// Serves until the mount is gone.
    ///
    /// # Errors
    /// When the device fails otherwise.
    pub fn run(self) -> io::Result<()> {
        let served = self.session.run();
        if let Some(rings) = self.rings {
            rings.finish();
        }
        served
    }
}

fn no_passthrough(refused: nix::errno::Errno) -> io::Error {
    io::Error::other(format!("io=passthrough needs root and Linux 6.9 ({refused}); leave it out"))
}

fn no_ring(why: &str) -> io::Error {
    io::Error::other(format!(
        "io_uring=on needs Linux 6.14 with 1 in /sys/module/fuse/parameters/enable_uring ({why}); leave it out"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_uring_is_taken_where_it_can_be() {
        let taken = |ring: Ring, io, offered, queues: Result<usize, io::ErrorKind>| {
            ring.is_taken(io, offered, || queues.map_err(Into::into)).map_err(|e| e.to_string())
        };
        let few = Ok(ring::CORES_MAX);
        for io in [Io::WriteThrough, Io::Cached] {
            assert_eq!(taken(Ring::Auto, io, true, few), Ok(true));
            assert_eq!(taken(Ring::On, io, true, Ok(1000)), Ok(true));
        }
        let refusals = [
            (Io::WriteThrough, false, few, "does not offer it"),
            (Io::Passthrough, true, few, "not with io=passthrough"),
            (Io::WriteThrough, true, Err(io::ErrorKind::PermissionDenied), "permission denied"),
        ];
        for (io, offered, queues, why) in refusals {
            assert_eq!(taken(Ring::Auto, io, offered, queues), Ok(false), "{why}");
            let refused = taken(Ring::On, io, offered, queues).unwrap_err();
            assert!(refused.contains(why) && refused.contains("io_uring=on needs"), "{refused}");
        }
        assert_eq!(taken(Ring::Auto, Io::WriteThrough, true, Ok(ring::CORES_MAX + 1)), Ok(false));
        assert_eq!(taken(Ring::Off, Io::WriteThrough, true, few), Ok(false));
    }
}
