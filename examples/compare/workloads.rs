//! What is measured: a table of workloads, each an operation that is done to lower files.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::layers::Files;

/// One row of the table.
#[derive(Debug)]
pub struct Workload {
    /// What the table calls it.
    pub name: &'static str,
    /// The files that the operation is done to, once each.
    pub files: Files,
    /// What is known and in upper before the measurement.
    pub before: Before,
    /// The operation.
    pub operation: fn(&Path) -> io::Result<()>,
    /// The time of all operations together counts, not that of one.
    pub in_total: bool,
}

/// What a workload finds when it starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Before {
    /// A fresh mount.
    Nothing,
    /// The files were looked at before, and their directories are in upper.
    Known,
}

/// The files of a workload that measures one operation.
const SMALL: Files = Files::Small { directories: 10, each: 20 };

/// All workloads, in the order in which they run and are shown.
pub fn all() -> Vec<Workload> {
    let one = |name, before, operation| Workload { name, files: SMALL, before, operation, in_total: false };
    vec![
        one("copy-up of a small file, 1 byte written", Before::Known, write_byte),
        one("the same, its directory and name never seen before", Before::Nothing, write_byte),
        one("the same, with fsync", Before::Known, write_byte_and_sync),
        one("copy-up by chmod", Before::Known, |file| fs::set_permissions(file, Permissions::from_mode(0o600))),
        one("copy-up by chown", Before::Known, |file| chown(file, Some(1000), Some(1000))),
        one("unlink of a lower file", Before::Known, |file| fs::remove_file(file)),
        one("rename of a lower file", Before::Known, |file| fs::rename(file, file.with_extension("new"))),
        Workload {
            name: "1,000 small files, 1 byte written to each, in 100 directories",
            files: Files::Small { directories: 100, each: 10 },
            before: Before::Nothing,
            operation: write_byte,
            in_total: true,
        },
        Workload {
            name: "copy-up of 256 MiB, 4 KiB written",
            files: Files::Large,
            before: Before::Known,
            operation: write_block,
            in_total: true,
        },
    ]
}

impl Workload {
    /// Makes things as the workload wants to find them.
    pub fn prepare(&self, files: &[PathBuf]) -> io::Result<()> {
        if self.before == Before::Nothing {
            return Ok(());
        }
        let mut last = None;
        for file in files {
            let directory = file.parent();
            if last != directory {
                last = directory;
                if let Some(directory) = directory {
                    let made = directory.join("made");
                    File::create(&made)?;
                    fs::remove_file(made)?;
                }
            }
            file.symlink_metadata()?;
        }
        Ok(())
    }
}

fn write_byte(file: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all_at(b"x", 0)
}

fn write_byte_and_sync(file: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(file)?;
    file.write_all_at(b"x", 0)?;
    file.sync_all()
}

fn write_block(file: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all_at(&[b'x'; 4096], 0)
}
