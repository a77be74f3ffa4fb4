//! Taking off the mount of a daemon that has died, so that the same layers can be mounted there again.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, OFlag};
use nix::sys::stat::Mode;

use crate::error::Errno;
use crate::sys::mount::{FILESYSTEM_TYPE, detach_opened, is_dead, mounts, top_at};
use crate::sys::process::lock_until;

/// More dead mounts on one directory than this are not taken off at once.
const MOST: usize = 100;
/// How long others are given to finish.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes every dead layerfs mount off `mountpoint`; none is no error, so that the same command mounts and recovers.
///
/// # Errors
/// A layerfs mount there answers, or what is dead is of another type, or may not be taken off.
pub fn take_off(mountpoint: &Path) -> anyhow::Result<()> {
    let Some((_, path)) = open(mountpoint)? else { return Ok(()) };
    let _turn = turn(&path);
    for _ in 0..MOST {
        if !take_one_off(mountpoint)? {
            return Ok(());
        }
    }
    bail!("too many dead mounts on {}: unmount them (umount -l)", mountpoint.display())
}

/// Opens what is on a directory, dead or alive, and finds its path. None if the directory is missing, for which there is another
/// sentence.
fn open(mountpoint: &Path) -> anyhow::Result<Option<(OwnedFd, PathBuf)>> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let opened = match nix::fcntl::open(mountpoint, flags, Mode::empty()) {
        Ok(opened) => opened,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(e) => bail!("{} can't be opened: {}", mountpoint.display(), e.desc()),
    };
    // No path is walked: that would ask the dead mount.
    let path = std::fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd()))
        .with_context(|| format!("the path of {} can't be found", mountpoint.display()))?;
    Ok(Some((opened, path)))
}

/// Waits until nobody else takes dead mounts off in the directory that `path` is in: fusermount3 unmounts by path, and that may lead
/// to the mount that somebody has just made anew. None where the directory can't be locked, or
/// somebody has it for too long: who has waited goes on.
fn turn(path: &Path) -> Option<Flock<File>> {
    lock_until(File::open(path.parent()?).ok()?, Instant::now() + PATIENCE).ok()
}

/// False if there is none.
fn take_one_off(mountpoint: &Path) -> anyhow::Result<bool> {
    // What is opened here stays the same mount, whatever others do to the directory meanwhile.
    let Some((opened, path)) = open(mountpoint)? else { return Ok(false) };
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
