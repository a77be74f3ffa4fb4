//! The lowers of the workloads that show how the cost grows with the work: directories of more and more names, and more and
//! more layers.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::scale::Scale;

/// How many names there are in a directory, or how many layers, step by step.
pub const NAMES: [usize; 4] = [100, 1_000, 10_000, 100_000];
/// How many layers, step by step. An overlay of the kernel's takes 500 at most.
pub const LAYERS: [usize; 3] = [5, 50, 500];
/// The files of each thread, in a directory of its own.
pub const OF_A_THREAD: usize = 100;
/// How many threads there are, step by step.
pub const THREADS: [usize; 4] = [1, 4, 16, 64];
/// How many names the lowest of many layers has.
pub const LOWEST: usize = 100;

/// The directory with so many names.
pub fn directory_of(names: usize) -> PathBuf {
    format!("names{names}").into()
}

/// The directory of a thread.
pub fn directory_of_thread(thread: usize) -> PathBuf {
    format!("thread{thread}").into()
}

/// A name in any of them.
pub fn name(n: usize) -> String {
    format!("name{n}")
}

/// Makes two lowers, each of which has every other name.
pub fn make(place: &Path, scale: &Scale) -> anyhow::Result<Vec<PathBuf>> {
    let lowers = [place.join("above"), place.join("below")];
    for (layer, lower) in lowers.iter().enumerate() {
        for names in NAMES.into_iter().filter(|names| *names <= scale.names) {
            fill(&lower.join(directory_of(names)), (layer..names).step_by(lowers.len()))?;
        }
        for thread in 0..THREADS.into_iter().max().unwrap_or(0) {
            fill(&lower.join(directory_of_thread(thread)), (layer..OF_A_THREAD).step_by(lowers.len()))?;
        }
    }
    Ok(lowers.into())
}

/// Makes many lowers in a directory of their own, whose names are numbers. The lowest one has what is looked for; all have the
/// directory in which it is.
pub fn make_many(place: &Path) -> anyhow::Result<()> {
    let count = LAYERS.into_iter().max().unwrap_or(0);
    for layer in 0..count {
        let own = layer..layer + 1;
        fill(&place.join(layer.to_string()).join("d"), own.map(|n| n + LOWEST))?;
    }
    fill(&place.join("lowest/d"), 0..LOWEST)
}

fn fill(directory: &Path, names: impl IntoIterator<Item = usize>) -> anyhow::Result<()> {
    fs::create_dir_all(directory)?;
    for n in names {
        File::create(directory.join(name(n)))?;
    }
    Ok(())
}
