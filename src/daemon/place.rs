//! Where the mount goes: on a directory, or into the hands of whoever has made it already.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::error::SetupError;
use crate::sys::mount::{MountOptions, Mounter, Target, handed_device};

/// A place for a mount, open and checked.
#[derive(Debug)]
pub enum Place {
    /// We mount.
    Directory(Mounter, Target),
    /// It is mounted, and this is its /dev/fuse.
    Handed(OwnedFd),
}

impl Place {
    /// Opens the place; changes nothing.
    ///
    /// # Errors
    /// Whatever can be known to be wrong with it.
    pub fn find(mountpoint: &Path, options: &MountOptions) -> Result<Self, SetupError> {
        if let Some(device) = handed_device(mountpoint) {
            return device.map(Self::Handed);
        }
        let mounter = Mounter::find()?;
        let target = Target::open(mountpoint)?;
        mounter.check(&target, options)?;
        Ok(Self::Directory(mounter, target))
    }

    /// Mounts: the /dev/fuse to serve, and where the mount is if we made it. The directory is no longer held open: that would
    /// keep the filesystem under it from being unmounted.
    ///
    /// # Errors
    /// Why the kernel or its helper refuses.
    pub fn mount(self, options: &MountOptions) -> Result<(OwnedFd, Option<PathBuf>), SetupError> {
        match self {
            Self::Directory(mounter, target) => {
                let device = mounter.mount(&target, options)?;
                Ok((device, Some(target.path().to_owned())))
            }
            Self::Handed(device) => Ok((device, None)),
        }
    }
}
