//! More and more of the same, in steps of ten: what it costs in all, right after mounting.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Context;

use super::{Group, Workload, total};
use crate::ground::Stage;
use crate::growth::{LAYERS, LOWEST, NAMES, OF_A_THREAD, THREADS, directory_of, directory_of_thread, name};
use crate::scale::Scale;

pub fn all(scale: &Scale) -> Vec<Workload> {
    let row = |name: String, measure| super::row(Group::Growth, name, measure);
    let names: [(_, super::Measure, super::Measure); 4] = [
        (NAMES[0], |stage| list(stage, NAMES[0]), |stage| remove(stage, NAMES[0])),
        (NAMES[1], |stage| list(stage, NAMES[1]), |stage| remove(stage, NAMES[1])),
        (NAMES[2], |stage| list(stage, NAMES[2]), |stage| remove(stage, NAMES[2])),
        (NAMES[3], |stage| list(stage, NAMES[3]), |stage| remove(stage, NAMES[3])),
    ];
    let layers: [(_, super::Measure); 3] = [
        (LAYERS[0], |stage| look(stage, LAYERS[0])),
        (LAYERS[1], |stage| look(stage, LAYERS[1])),
        (LAYERS[2], |stage| look(stage, LAYERS[2])),
    ];
    let threads: [(_, super::Measure); 4] = [
        (THREADS[0], |stage| share(stage, THREADS[0])),
        (THREADS[1], |stage| share(stage, THREADS[1])),
        (THREADS[2], |stage| share(stage, THREADS[2])),
        (THREADS[3], |stage| share(stage, THREADS[3])),
    ];
    let names: Vec<_> = names.into_iter().filter(|(names, ..)| *names <= scale.names).collect();
    let mut rows = Vec::new();
    rows.extend(names.iter().map(|(names, list, _)| row(format!("listing of {names} names, with lstat"), *list)));
    rows.extend(names.iter().map(|(names, _, remove)| row(format!("rm -r of {names} names"), *remove)));
    rows.extend(
        layers.iter().map(|(layers, look)| row(format!("{LOWEST} files in the lowest of {layers} layers"), *look)),
    );
    rows.extend(
        threads
            .iter()
            .map(|(threads, share)| row(format!("{OF_A_THREAD} files written by each of {threads} threads"), *share)),
    );
    rows
}

fn list(stage: &mut Stage, names: usize) -> anyhow::Result<Duration> {
    let directory = stage.mount.point.join(directory_of(names));
    let mut seen = 0;
    let time = total(|| {
        for entry in fs::read_dir(&directory)? {
            entry?.metadata()?;
            seen += 1;
        }
        Ok(())
    })?;
    anyhow::ensure!(seen == names, "{seen} names are listed");
    Ok(time)
}

fn remove(stage: &mut Stage, names: usize) -> anyhow::Result<Duration> {
    let directory = stage.mount.point.join(directory_of(names));
    total(|| Ok(fs::remove_dir_all(directory)?))
}

fn look(stage: &mut Stage, layers: usize) -> anyhow::Result<Duration> {
    stage.mount_many(layers)?;
    let directory = stage.mount.point.join("d");
    total(|| Ok((0..LOWEST).try_for_each(|n| directory.join(name(n)).symlink_metadata().map(drop))?))
}

/// Each thread copies files of its own up.
fn share(stage: &mut Stage, threads: usize) -> anyhow::Result<Duration> {
    let of_thread = |thread| {
        let directory = stage.mount.point.join(directory_of_thread(thread));
        (0..OF_A_THREAD).map(|n| directory.join(name(n))).collect()
    };
    let shares: Vec<Vec<PathBuf>> = (0..threads).map(of_thread).collect();
    total(|| {
        thread::scope(|scope| {
            let write = |files: &Vec<PathBuf>| files.iter().try_for_each(|file| fs::write(file, "written"));
            let threads: Vec<_> = shares.iter().map(|share| scope.spawn(move || write(share))).collect();
            threads.into_iter().try_for_each(|thread| Ok(thread.join().ok().context("a thread panicked")??))
        })
    })
}
