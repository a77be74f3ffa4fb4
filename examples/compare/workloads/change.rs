//! New files, those of upper, and names. The directories are merged, and in upper already.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Context;

use super::{Group, Workload, each, make_known, sample, total};
use crate::ground::Stage;

/// How many threads create files at the same time.
const THREADS: usize = 4;

pub fn all() -> Vec<Workload> {
    let row = |name: &str, measure| super::row(Group::Change, name, measure);
    vec![
        row("append of 4 KiB", append),
        row("create, 4 KiB written", |stage| {
            let files = new_files(stage)?;
            stage.settle()?;
            each(&files, create)
        }),
        row("create, 4 KiB written, 4 threads", create_in_threads),
        row("rename of an upper file", |stage| upper(stage, |file| fs::rename(file, file.with_extension("renamed")))),
        row("unlink of an upper file", |stage| upper(stage, |file| fs::remove_file(file))),
        row("rename of a lower file", |stage| lower(stage, |file| fs::rename(file, file.with_extension("renamed")))),
        row("unlink of a lower file", |stage| lower(stage, |file| fs::remove_file(file))),
    ]
}

fn append(stage: &mut Stage) -> anyhow::Result<Duration> {
    let name = new_files(stage)?.swap_remove(0);
    let mut file = File::options().append(true).create(true).open(name)?;
    let blocks = stage.ground.scale.blocks;
    stage.settle()?;
    let time = total(|| Ok((0..blocks).try_for_each(|_| file.write_all(&[b'x'; 4096]))?))?;
    Ok(time / blocks as u32)
}

/// Each in a directory of its own, as many files as the others.
fn create_in_threads(stage: &mut Stage) -> anyhow::Result<Duration> {
    let files = sample(stage).len();
    let mut shares: Vec<Vec<PathBuf>> = Vec::new();
    for thread in 0..THREADS {
        let directory = stage.mount.point.join(format!("thread{thread}"));
        fs::create_dir(&directory)?;
        shares.push((0..files).map(|n| directory.join(format!("new{n}"))).collect());
    }
    stage.settle()?;
    let create_share = |share: &Vec<PathBuf>| share.iter().try_for_each(|file| create(file));
    let time = total(|| {
        thread::scope(|scope| {
            let threads: Vec<_> = shares.iter().map(|share| scope.spawn(move || create_share(share))).collect();
            threads.into_iter().try_for_each(|thread| Ok(thread.join().ok().context("a thread panicked")??))
        })
    })?;
    Ok(time / (THREADS * files) as u32)
}

fn upper(stage: &mut Stage, operation: impl Fn(&Path) -> io::Result<()>) -> anyhow::Result<Duration> {
    let files = new_files(stage)?;
    files.iter().try_for_each(|file| create(file))?;
    stage.settle()?;
    each(&files, operation)
}

fn lower(stage: &mut Stage, operation: impl Fn(&Path) -> io::Result<()>) -> anyhow::Result<Duration> {
    let files = sample(stage);
    make_known(&files)?;
    stage.settle()?;
    each(&files, operation)
}

/// Names that nobody has, beside lower files that are known.
fn new_files(stage: &Stage) -> anyhow::Result<Vec<PathBuf>> {
    let files = sample(stage);
    make_known(&files)?;
    Ok(files.iter().map(|file| file.with_extension("new")).collect())
}

fn create(file: &Path) -> io::Result<()> {
    File::create_new(file)?.write_all(&[b'x'; 4096])
}
