//! Mounting, looking and reading: nothing changes. What comes first comes right after mounting.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Group, Workload, again, each, sample, total};
use crate::ground::Stage;
use crate::layers::{self, Random};
use crate::report::median;
use crate::scale::Scale;

pub fn all(scale: &Scale) -> Vec<Workload> {
    let row = |name: &str, measure| super::row(Group::Look, name, measure);
    let large = |when| format!("sequential read of {} MiB, {when}", scale.large);
    vec![
        row("mount", mount),
        row("walk, cold: lstat of all files", |stage| total(|| Ok(walk(&stage.mount.point)?))),
        row("walk, warm", |stage| {
            walk(&stage.mount.point)?;
            repeat(stage, |stage| Ok(walk(&stage.mount.point)?))
        }),
        row("stat, warm", |stage| again(stage, &sample(stage), |file| file.symlink_metadata().map(drop))),
        row("missing name, first", |stage| each(&missing(stage), look_for_missing)),
        row("missing name, again", |stage| again(stage, &missing(stage), look_for_missing)),
        row("open, read, close of a small file, first", |stage| each(&sample(stage), read_file)),
        row("open, read, close of a small file, again", |stage| again(stage, &sample(stage), read_file)),
        row("open, close, warm", |stage| again(stage, &sample(stage), |file| File::open(file).map(drop))),
        row(&large("first"), |stage| {
            stage.warm_large()?;
            total(|| read_large(stage))
        }),
        row(&large("again"), |stage| {
            stage.warm_large()?;
            read_large(stage)?;
            repeat(stage, read_large)
        }),
        row("random read of 4 KiB, first", |stage| {
            stage.warm_large()?;
            let file = open_large(stage)?;
            let offsets = random_offsets(stage);
            Ok(total(|| read_blocks(&file, &offsets))? / offsets.len() as u32)
        }),
        row("random read of 4 KiB, again", |stage| {
            stage.warm_large()?;
            let file = open_large(stage)?;
            let offsets = random_offsets(stage);
            read_blocks(&file, &offsets)?;
            Ok(repeat(stage, |_| read_blocks(&file, &offsets))? / offsets.len() as u32)
        }),
    ]
}

/// The median of several times.
fn repeat(stage: &Stage, operation: impl Fn(&Stage) -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let times = (0..stage.ground.scale.passes.min(5)).map(|_| total(|| operation(stage)));
    Ok(median(&times.collect::<Result<Vec<_>, _>>()?))
}

fn mount(stage: &mut Stage) -> anyhow::Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..stage.ground.scale.passes.min(10) {
        stage.mount_again()?;
        times.push(stage.mount.took);
    }
    Ok(median(&times))
}

fn walk(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.metadata()?.is_dir() {
            walk(&entry.path())?;
        }
    }
    Ok(())
}

fn missing(stage: &Stage) -> Vec<PathBuf> {
    sample(stage).into_iter().map(|file| file.with_extension("missing")).collect()
}

fn look_for_missing(file: &Path) -> io::Result<()> {
    match file.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

fn read_file(file: &Path) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    let mut file = File::open(file)?;
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

fn open_large(stage: &Stage) -> io::Result<File> {
    File::open(stage.mount.point.join(layers::LARGE))
}

fn read_large(stage: &Stage) -> anyhow::Result<()> {
    let mut file = open_large(stage)?;
    let mut buffer = vec![0; 128 << 10];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

/// Blocks of the large file, each at most once.
fn random_offsets(stage: &Stage) -> Vec<u64> {
    let scale = stage.ground.scale;
    let mut blocks: Vec<usize> = (0..scale.large << 8).collect();
    let mut random = Random::new(7);
    for n in 0..scale.blocks {
        let other = n + random.below(blocks.len() - n);
        blocks.swap(n, other);
    }
    blocks.into_iter().take(scale.blocks).map(|block| block as u64 * 4096).collect()
}

fn read_blocks(file: &File, offsets: &[u64]) -> anyhow::Result<()> {
    let mut buffer = [0; 4096];
    Ok(offsets.iter().try_for_each(|offset| file.read_exact_at(&mut buffer, *offset))?)
}
