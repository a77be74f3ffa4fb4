//! Taking off the mount of a daemon that has died, so that the same layers can be mounted there again.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use anyhow::{Context, bail};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::error::Errno;
use crate::sys::mount::{FILESYSTEM_TYPE, detach_opened, is_dead, mounts, top_at};

/// More dead mounts on one directory than this are not taken off at once.
const MOST: usize = 100;

/// Takes every dead layerfs mount off `mountpoint`; none is no error, so that the same command mounts and recovers.
///
/// # Errors
/// A layerfs mount there answers, or what is dead is of another type, or may not be taken off.
pub fn take_off(mountpoint: &Path) -> anyhow::Result<()> {
    for _ in 0..MOST {
        if !take_one_off(mountpoint)? {
            return Ok(());
        }
    }
    bail!("too many dead mounts on {}: unmount them (umount -l)", mountpoint.display())
}

/// False if there is none.
fn take_one_off(mountpoint: &Path) -> anyhow::Result<bool> {
    // What is opened here stays the same mount, whatever others do to the directory meanwhile.
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let opened = match nix::fcntl::open(mountpoint, flags, Mode::empty()) {
        Ok(opened) => opened,
        // A missing mountpoint has its own sentence.
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(false),
        Err(e) => bail!("{} can't be opened: {}", mountpoint.display(), e.desc()),
    };
    // No path is walked: that would ask the dead mount.
    let path = std::fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd()))
        .with_context(|| format!("the path of {} can't be found", mountpoint.display()))?;
    let mounts = mounts().context("/proc/self/mountinfo can't be read")?;
    let Some(mount) = top_at(&mounts, &path) else { return Ok(false) };
    let ours = mount.kind.as_encoded_bytes() == FILESYSTEM_TYPE.to_bytes();
    match (is_dead(opened.as_fd()), ours) {
        (false, false) => Ok(false),
        (false, true) => bail!(
            "{} holds a mount that answers, so that there is nothing to recover: unmount it (layerfs umount), or leave \
             --recover out",
            path.display()
        ),
        (true, false) => bail!(
            "{} holds a dead mount of the type {}, which is not layerfs's: unmount it (umount -l)",
            path.display(),
            mount.kind.display()
        ),
        (true, true) => {
            detach_opened(opened.as_fd(), &path)
                .with_context(|| format!("the dead mount on {} can't be taken off", path.display()))?;
            Ok(true)
        }
    }
}
