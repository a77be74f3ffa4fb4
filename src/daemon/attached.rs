//! A mount in the tree, to be taken off again, and never somebody else's in its place.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys::mount::{DEV_FUSE, MountEntry, UnmountError, mounts, top_at, unmount};

/// Our mount.
#[derive(Clone, Debug)]
pub struct Attached {
    /// Where we mounted it; None: somebody else has mounted it, and takes it off.
    mountpoint: Option<PathBuf>,
    /// The device number that tells it from others; None where procfs can't be read.
    dev: Option<u64>,
    /// Its /dev/fuse: tells whether it still exists. Device numbers are given to the next mount at once.
    device: Arc<OwnedFd>,
}

impl Attached {
    /// What has just been mounted on `mountpoint`, with this /dev/fuse.
    pub fn find(mountpoint: PathBuf, device: &OwnedFd) -> anyhow::Result<Self> {
        let mut attached = Self::handed(device)?;
        attached.dev = match mounts() {
            Ok(mounts) => top_at(&mounts, &mountpoint).map(|mount| mount.dev),
            Err(e) => {
                log::warn!("/proc/self/mountinfo can't be read ({e}): the mount can't be told from others");
                None
            }
        };
        attached.mountpoint = Some(mountpoint);
        Ok(attached)
    }

    /// A mount of somebody else's, with its /dev/fuse: it can't be told from others.
    pub fn handed(device: &OwnedFd) -> anyhow::Result<Self> {
        let device = Arc::new(device.try_clone().context("the FUSE device can't be kept")?);
        Ok(Self { mountpoint: None, dev: None, device })
    }

    /// Whether we mounted it.
    pub fn is_ours(&self) -> bool {
        self.mountpoint.is_some()
    }

    /// Its device number, as st_dev tells it.
    pub fn dev(&self) -> Option<u64> {
        self.dev
    }

    /// Waits until the mount answers requests; where it is not ours, the kernel's first question has been answered at least.
    pub fn answers(&self) -> anyhow::Result<()> {
        let Some(mountpoint) = &self.mountpoint else { return Ok(()) };
        std::fs::metadata(mountpoint)
            .with_context(|| format!("the mount on {} does not answer", mountpoint.display()))
            .map(drop)
    }

    /// Takes it off; while it is in use, out of the tree at least: it then ends with its last user.
    pub fn take_off(&self) {
        match self.try_unmount(false) {
            Ok(()) => {}
            Err(UnmountError::Busy) => {
                log::warn!("{} is in use: it is detached and served until its last user has gone", self.name());
                self.detach();
            }
            Err(UnmountError::Failed(why)) => log::error!("{} can't be unmounted: {why}", self.name()),
        }
    }

    /// Takes it out of the tree at once.
    pub fn detach(&self) {
        if let Err(e) = self.try_unmount(true) {
            log::error!("{} can't be detached: {e}", self.name());
        }
    }

    fn try_unmount(&self, lazy: bool) -> Result<(), UnmountError> {
        if !self.exists() {
            return Ok(());
        }
        let Some(ours) = &self.mountpoint else { return Ok(()) };
        let Some(dev) = self.dev else { return unmount(ours, lazy) };
        let mounts = mounts().map_err(|e| UnmountError::Failed(format!("/proc/self/mountinfo can't be read ({e})")))?;
        match place(&mounts, dev, ours) {
            Place::Gone => Ok(()),
            Place::Covered => Err(UnmountError::Failed("something else is mounted over it".to_owned())),
            Place::At(mountpoint) => unmount(&mountpoint, lazy),
        }
    }

    /// Whether the kernel still has it, in whatever place.
    pub fn exists(&self) -> bool {
        let mut asked = [PollFd::new(self.device.as_fd(), PollFlags::empty())];
        match poll(&mut asked, PollTimeout::ZERO) {
            Ok(1) => !asked.iter().any(|fd| fd.revents().is_some_and(|events| events.contains(PollFlags::POLLERR))),
            _ => true,
        }
    }

    /// Where it was mounted, for messages.
    pub fn name(&self) -> std::path::Display<'_> {
        self.mountpoint.as_deref().unwrap_or(Path::new(DEV_FUSE)).display()
    }
}

/// Where it is by now: where we mounted it, or where somebody has moved it to.
fn place(mounts: &[MountEntry], dev: u64, first: &Path) -> Place {
    let ours: Vec<&MountEntry> = mounts.iter().filter(|mount| mount.dev == dev).collect();
    let free = |mount: &&&MountEntry| top_at(mounts, &mount.mountpoint).is_some_and(|top| top.id == mount.id);
    let here = ours.iter().filter(|mount| mount.mountpoint == first).find(free);
    match here.or_else(|| ours.iter().find(free)) {
        Some(mount) => Place::At(mount.mountpoint.clone()),
        None if ours.is_empty() => Place::Gone,
        None => Place::Covered,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    At(PathBuf),
    Covered,
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u64, parent: u64, dev: u64, mountpoint: &str) -> MountEntry {
        MountEntry { id, parent, dev, mountpoint: mountpoint.into(), kind: "fuse.layerfs".into() }
    }

    #[test]
    fn a_strangers_mount_is_left_alone() {
        let place = |mounts: &[MountEntry]| place(mounts, 7, Path::new("/m"));
        let root = entry(1, 0, 1, "/");
        assert_eq!(place(&[root.clone(), entry(2, 1, 7, "/m")]), Place::At("/m".into()));
        assert_eq!(place(&[root.clone(), entry(2, 1, 8, "/m")]), Place::Gone);
        assert_eq!(place(&[root.clone(), entry(2, 1, 7, "/m"), entry(3, 2, 8, "/m")]), Place::Covered);
        assert_eq!(place(&[root.clone(), entry(2, 1, 8, "/m"), entry(3, 2, 7, "/m")]), Place::At("/m".into()));
        assert_eq!(place(&[root, entry(2, 1, 7, "/moved"), entry(3, 1, 8, "/m")]), Place::At("/moved".into()));
    }
}
