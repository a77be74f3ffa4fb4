//! `layerfs stats`.

use std::ffi::CString;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};

use crate::error::Errno;
use crate::sys::xattr::{self, Target};
use crate::union::{LayerInfo, STATS_XATTR, Stats};

/// Show what a mounted union consists of and what it has done
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,

    /// The directory that it is mounted on
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
}

/// Prints the statistics.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut stats = read_stats(&args.mountpoint)?;
    stats.layers = read_layers(&args.mountpoint)?;
    let text = if args.json { serde_json::to_string_pretty(&stats)? + "\n" } else { table(&stats, &args.mountpoint)? };
    match io::stdout().write_all(text.as_bytes()) {
        // `| head` has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("the output can't be written"),
    }
}

/// The statistics of a mount, without its layers.
pub(super) fn read_stats(mountpoint: &Path) -> anyhow::Result<Stats> {
    let root = open(mountpoint)?;
    match read_attribute(&root, STATS_XATTR) {
        Ok(value) => parse(&value, mountpoint),
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => {
            bail!(
                "{} is not the mountpoint of a layerfs mount: findmnt -t fuse.layerfs lists them",
                mountpoint.display()
            )
        }
        Err(e) => Err(unreadable(e, mountpoint)),
    }
}

/// The layers of a mount, the top one first.
fn read_layers(mountpoint: &Path) -> anyhow::Result<Vec<LayerInfo>> {
    let root = open(mountpoint)?;
    let mut layers = Vec::new();
    loop {
        match read_attribute(&root, &format!("user.layerfs.layer.{}", layers.len())) {
            Ok(value) => layers.push(parse(&value, mountpoint)?),
            Err(Errno::ENODATA) => return Ok(layers),
            Err(e) => return Err(unreadable(e, mountpoint)),
        }
    }
}

fn open(mountpoint: &Path) -> anyhow::Result<File> {
    File::open(mountpoint).map_err(|e| unreadable(e.raw_os_error().map_or(Errno::EIO, Errno::from_raw), mountpoint))
}

fn read_attribute(root: &File, name: &str) -> Result<Vec<u8>, Errno> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    xattr::get(Target::Fd(root.as_fd()), &name)
}

fn unreadable(e: Errno, mountpoint: &Path) -> anyhow::Error {
    match e {
        Errno::ENOTCONN => anyhow!(
            "the daemon of {} has died: mount again with --recover, or unmount it (layerfs umount)",
            mountpoint.display()
        ),
        e => anyhow!("the statistics of {} can't be read: {}", mountpoint.display(), e.desc()),
    }
}

fn parse<T: serde::de::DeserializeOwned>(value: &[u8], mountpoint: &Path) -> anyhow::Result<T> {
    serde_json::from_slice(value)
        .with_context(|| format!("the daemon of {} is of another version of layerfs", mountpoint.display()))
}

/// The statistics for people.
fn table(stats: &Stats, mountpoint: &Path) -> Result<String, fmt::Error> {
    let mut out = String::new();
    writeln!(out, "layerfs {} on {}", stats.version, mountpoint.display())?;
    writeln!(out, "\nLayers, the top one first")?;
    let width = stats.layers.iter().map(|layer| layer.filesystem.len()).max().unwrap_or_default();
    for layer in &stats.layers {
        writeln!(out, "  {:<5}  {:<width$}  {}", layer.role, layer.filesystem, layer.path)?;
    }
    section(&mut out, "Options in force", stats.options.iter())?;
    section(&mut out, "Operations", stats.operations.iter().filter(|(_, count)| **count > 0))?;
    let cache = &stats.cache;
    let asked = cache.hits.saturating_add(cache.misses);
    let rate =
        if asked == 0 { String::new() } else { format!(" ({:.1} % hits)", cache.hits as f64 * 100.0 / asked as f64) };
    section(
        &mut out,
        "Lookup cache",
        [
            ("hits", cache.hits.to_string()),
            ("misses", format!("{}{rate}", cache.misses)),
            ("entries", format!("{} of {}", cache.entries, cache.capacity)),
        ]
        .iter()
        .map(|(name, value)| (name, value)),
    )?;
    section(&mut out, "Copy-ups by kind", stats.copy_ups.iter())?;
    let bytes = stats.copy_up_bytes.iter().map(|(how, bytes)| (how, size(*bytes))).collect::<Vec<_>>();
    section(&mut out, "Bytes copied up by way", bytes.iter().map(|(how, bytes)| (how, bytes)))?;
    section(
        &mut out,
        "Daemon",
        [
            ("inodes known", stats.inodes.to_string()),
            ("descriptors", stats.descriptors.to_string()),
            ("memory", size(stats.resident_bytes)),
        ]
        .iter()
        .map(|(name, value)| (name, value)),
    )?;
    Ok(out)
}

/// A heading with names and values in two columns; nothing if there are none.
fn section<N: fmt::Display, V: fmt::Display>(
    out: &mut String,
    heading: &str,
    rows: impl Iterator<Item = (N, V)>,
) -> fmt::Result {
    let rows: Vec<(String, V)> = rows.map(|(name, value)| (name.to_string(), value)).collect();
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{heading}")?;
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    for (name, value) in rows {
        writeln!(out, "  {name:<width$}  {value}")?;
    }
    Ok(())
}

/// A number of bytes in the largest unit that it fills.
fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        for (bytes, text) in [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (1_572_864, "1.5 MiB")] {
            assert_eq!(size(bytes), text);
        }
        assert!(size(u64::MAX).ends_with("TiB"));
    }

    #[test]
    fn columns_are_aligned_and_empty_sections_left_out() {
        let mut out = String::new();
        section(&mut out, "None", std::iter::empty::<(&str, u64)>()).unwrap();
        section(&mut out, "Some", [("a", 1), ("long", 2)].into_iter()).unwrap();
        assert_eq!(out, "\nSome\n  a     1\n  long  2\n");
    }
}
