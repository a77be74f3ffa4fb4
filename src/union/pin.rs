//! Objects without a name that the kernel still knows: open files that were unlinked keep working.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit};

use crate::error::Result;
use crate::layer::RealDir;
use crate::layer::upper::UpperObject;
use crate::name::Name;
use crate::union::Union;
use crate::union::inode::{Inode, Node};

/// How an object is reached without a name.
#[derive(Debug)]
pub(super) enum Pin {
    /// It is in lower, which never changes: its name there still leads to it.
    Lower(Arc<RealDir>, Name),
    /// Held open.
    Open(UpperObject),
    /// Under a private name in the work directory.
    Parked,
}

/// The budget of descriptors for pinned objects.
#[derive(Debug)]
pub(super) struct Pins {
    open: AtomicUsize,
    budget: usize,
}

impl Default for Pins {
    fn default() -> Self {
        // A quarter of what the process may open: the layers and caches need the rest.
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        Self { open: AtomicUsize::new(0), budget: usize::try_from(limit / 4).unwrap_or(usize::MAX).min(16 * 1024) }
    }
}

impl Pins {
    /// How many descriptors are held.
    pub(super) fn len(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl Union {
    /// Makes an inode reachable without the name that it is about to lose.
    pub(super) fn pin(&self, inode: &Inode) -> Result<()> {
        let Node::Other(file) = &inode.node else { return Ok(()) };
        if file.read().pin().is_some() || file.read().index().is_some() {
            // What is in the index is found by it, until `leave_index_if_nameless`.
            return Ok(());
        }
        let (dir, name) = inode.location().ok_or(crate::error::Errno::ESTALE)?;
        let pin = if self.stack.as_upper(&dir).is_none() {
            Pin::Lower(dir, name)
        } else {
            let object = self.upper_object(inode)?;
            // Names of it that are still the lower's may become links of this: that takes a name.
            let wanted_again = self.has_uncovered_names(inode);
            if !wanted_again && self.pins.len() < self.pins.budget {
                self.pins.open.fetch_add(1, Ordering::Relaxed);
                Pin::Open(object)
            } else {
                self.stack.upper()?.park(&object, inode.number)?;
                Pin::Parked
            }
        };
        file.write().rare_mut().pin = Some(pin);
        Ok(())
    }

    /// Keeps a copy that was made of an unlinked lower file.
    pub(super) fn pin_object(&self, inode: &Inode, object: UpperObject) {
        let Node::Other(file) = &inode.node else { return };
        self.pins.open.fetch_add(1, Ordering::Relaxed);
        file.write().rare_mut().pin = Some(Pin::Open(object));
    }

    /// Lets go of what kept an inode reachable.
    pub(super) fn unpin(&self, inode: &Inode) {
        let Node::Other(file) = &inode.node else { return };
        if file.read().pin().is_none() {
            return;
        }
        let Some(pin) = file.write().rare_mut().pin.take() else { return };
        match pin {
            Pin::Lower(..) => {}
            Pin::Open(_) => {
                self.pins.open.fetch_sub(1, Ordering::Relaxed);
            }
            Pin::Parked => {
                let removed = self.stack.upper().and_then(|upper| upper.unpark(inode.number));
                if let Err(e) = removed {
                    log::warn!("a parked file stays until the next mount: {e}");
                }
            }
        }
    }

    /// The pinned object of upper behind an inode, if it is one.
    pub(super) fn pinned_object(&self, inode: &Inode) -> Result<Option<UpperObject>> {
        let Node::Other(file) = &inode.node else { return Ok(None) };
        let key = {
            let file = file.read();
            match file.pin() {
                Some(Pin::Open(object)) => return Ok(Some(object.clone())),
                Some(Pin::Parked) => file.key,
                Some(Pin::Lower(..)) => return Ok(None),
                None => {
                    // Known by names only that are still the lower's.
                    let covered = file.links.as_slice().iter().any(|l| !l.uncovered);
                    let Some(index) = file.index().filter(|_| !covered) else { return Ok(None) };
                    let (name, key) = (index.clone(), file.key);
                    drop(file);
                    return self.stack.upper()?.open_indexed(&name, key, OFlag::O_PATH).map(Some);
                }
            }
        };
        self.stack.upper()?.open_parked(inode.number, key, OFlag::O_PATH).map(Some)
    }
}
