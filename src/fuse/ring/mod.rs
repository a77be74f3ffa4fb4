//! FUSE over io_uring: each core has a queue, whose requests are answered on that core, so that no other one has to wake up.
//!
//! `/dev/fuse` stays beside it for the handshake, for what the kernel forgets, and for notifications. `worker` takes requests
//! and gives answers; `requests` runs one; `abi` has the protocol's bytes.

mod abi;
mod requests;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::channel;

use crate::fuse::governor::Governor;
use crate::fuse::operations::Operations;
use crate::sys::uring;
use worker::Queue;

/// With more cores than this a mount would need too many threads to have them unasked.
pub(super) const CORES_MAX: usize = 64;

/// The number of queues that a mount has to have.
///
/// # Errors
/// Why this process may have none.
pub(super) fn queues() -> io::Result<usize> {
    uring::probe()?;
    uring::possible_cores()
}

/// The queues of all cores.
#[derive(Debug)]
pub(super) struct Rings(Vec<Arc<Queue>>);

impl Rings {
    /// Starts the workers, after the handshake. The kernel sends nothing else before each core has one.
    ///
    /// # Errors
    /// When a thread or a ring can't be made.
    pub(super) fn start(
        operations: &Arc<Operations>,
        device: &Arc<OwnedFd>,
        governor: &Arc<Governor>,
    ) -> io::Result<Self> {
        let cores = 0..uring::possible_cores()?;
        let queue = |core| Queue::new(core, operations.clone(), device.clone(), governor.clone());
        let queues: Vec<_> = cores.map(queue).collect();
        let (registered, outcomes) = channel();
        queues.iter().try_for_each(|queue| queue.start(queues.len(), registered.clone()))?;
        // Heard of all when each has dropped its end, and we ours.
        drop(registered);
        outcomes.iter().try_for_each(|outcome| outcome)?;
        Ok(Self(queues))
    }

    /// Waits until no request is being answered; those that come later are not.
    pub(super) fn finish(self) {
        self.0.iter().for_each(|queue| queue.finish());
    }
}
