//! Lower files that come up. Where nothing else is said they were looked at before, and their directories are in upper.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use super::{Group, Workload, each, make_known, sample, total};
use crate::ground::Stage;
use crate::layers;
use crate::scale::Scale;

/// How many files of a directory come up when there are many.
const EACH: usize = 10;

pub fn all(scale: &Scale) -> Vec<Workload> {
    let row = |name: &str, measure| super::row(Group::CopyUp, name, measure);
    let many = format!("{} small files, 1 byte written to each, in {} directories", scale.many * EACH, scale.many);
    let large = format!("copy-up of {} MiB, 4 KiB written", scale.large);
    vec![
        row("copy-up of a small file, 1 byte written", |stage| known(stage, write_byte)),
        row("the same, its directory and name never seen before", |stage| {
            stage.settle()?;
            each(&sample(stage), write_byte)
        }),
        row("the same, with fsync", |stage| known(stage, write_byte_and_sync)),
        row("copy-up by chmod", |stage| known(stage, |file| fs::set_permissions(file, Permissions::from_mode(0o600)))),
        row("copy-up by chown", |stage| {
            let owner = stage.ground.other_owner();
            known(stage, |file| chown(file, Some(owner), Some(owner)))
        }),
        row(&many, |stage| {
            let files = stage.at(layers::files(stage.ground.scale.many, EACH));
            stage.settle()?;
            total(|| Ok(files.iter().try_for_each(|file| write_byte(file))?))
        }),
        row(&large, |stage| {
            let large = stage.mount.point.join(layers::LARGE);
            large.symlink_metadata()?;
            stage.settle()?;
            total(|| Ok(OpenOptions::new().write(true).open(large)?.write_all_at(&[b'x'; 4096], 0)?))
        }),
    ]
}

fn known(stage: &mut Stage, operation: impl Fn(&Path) -> io::Result<()>) -> anyhow::Result<Duration> {
    let files = sample(stage);
    make_known(&files)?;
    stage.settle()?;
    each(&files, operation)
}

fn write_byte(file: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all_at(b"x", 0)
}

fn write_byte_and_sync(file: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(file)?;
    file.write_all_at(b"x", 0)?;
    file.sync_all()
}
