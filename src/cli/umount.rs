//! `layerfs umount`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

use super::stats::read_stats;
use crate::sys::mount::{DEV_FUSE, FILESYSTEM_TYPE, UnmountError, mounts, top_at, unmount};
use crate::sys::process::Process;

/// How long a daemon that has lost its mount is given to finish.
const PATIENCE: Duration = Duration::from_secs(10);

/// Unmount a union and wait until its daemon has finished
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Take a mount that is in use out of the tree at once, and don't wait: it ends with its last user
    #[arg(short, long)]
    lazy: bool,

    /// The directory that it is mounted on
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
}

/// Unmounts.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mountpoint = find(&args.mountpoint)?;
    // Held from before: when the daemon has ended its number may be another's.
    let daemon = if args.lazy { None } else { daemon_of(&mountpoint) };
    match unmount(&mountpoint, args.lazy) {
        Ok(()) => {}
        Err(UnmountError::Busy) => bail!(
            "{} is in use: end the programs that work in it (fuser -vm {0} lists them), or add --lazy",
            mountpoint.display()
        ),
        Err(UnmountError::Failed(why)) => bail!("{} can't be unmounted: {why}", mountpoint.display()),
    }
    let Some((pid, daemon)) = daemon else { return Ok(()) };
    if !daemon.wait_for_end(PATIENCE).context("the daemon's end can't be waited for")? {
        bail!(
            "{} is unmounted, but its daemon (process {pid}) has not ended: it is still writing, or another mount \
             namespace or bind mount still shows the union",
            mountpoint.display()
        );
    }
    Ok(())
}

/// The mountpoint as the kernel knows it. A mount whose daemon has died is found as well: nothing in it is looked at.
fn find(typed: &Path) -> anyhow::Result<PathBuf> {
    let mounts = mounts().context("/proc/self/mountinfo can't be read")?;
    let inside = typed.file_name().and_then(|name| {
        let parent = typed.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(std::fs::canonicalize(parent).ok()?.join(name))
    });
    let candidates = inside.into_iter().chain(std::fs::canonicalize(typed));
    let found = candidates.filter_map(|path| top_at(&mounts, &path)).next();
    match found {
        Some(mount) if mount.kind.as_encoded_bytes() == FILESYSTEM_TYPE.to_bytes() => Ok(mount.mountpoint.clone()),
        Some(mount) => {
            bail!("{} is a mount of the type {}, not of layerfs: use umount(8)", typed.display(), mount.kind.display())
        }
        None => bail!("{} is not a mountpoint: layerfs mounts are listed by findmnt -t fuse.layerfs", typed.display()),
    }
}

/// The daemon that serves a mount, as the mount itself tells; None if that can't be had: it is then not waited for.
fn daemon_of(mountpoint: &Path) -> Option<(u32, Process)> {
    let pid = read_stats(mountpoint).ok()?.options.get("pid")?.parse().ok()?;
    let process = Process::open(pid).ok()?;
    // In a container the number may be of another namespace, and mean another process here.
    let mut descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let serves = descriptors.any(|fd| std::fs::read_link(fd.path()).is_ok_and(|file| file == Path::new(DEV_FUSE)));
    serves.then_some((pid, process))
}
