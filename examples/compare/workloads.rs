//! What is measured: a table of workloads.

mod change;
mod copy_up;
mod grow;
mod look;
mod programs;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::ground::Stage;
use crate::layers;
use crate::report::median;
use crate::scale::Scale;

/// One row of the table.
#[derive(Debug)]
pub struct Workload {
    /// What the table calls it.
    pub name: String,
    /// What it belongs to.
    pub group: Group,
    /// The programs that it runs.
    pub needs: &'static [&'static str],
    /// Does it in a fresh mount.
    pub measure: Measure,
}

/// Returns the time of one operation, or of all where the name says so.
pub type Measure = fn(&mut Stage) -> anyhow::Result<Duration>;

/// What belongs together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// Nothing changes.
    Look,
    /// Files of upper, and names.
    Change,
    /// Lower files.
    CopyUp,
    /// More and more of the same.
    Growth,
    /// Whole programs, on a tree of sources.
    Programs,
}

impl Group {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 5] = [Self::Look, Self::Change, Self::CopyUp, Self::Growth, Self::Programs];

    /// What it is called.
    pub fn title(self) -> &'static str {
        match self {
            Self::Look => "looking and reading",
            Self::Change => "changing",
            Self::CopyUp => "copying up",
            Self::Growth => "growing",
            Self::Programs => "whole programs",
        }
    }
}

/// All workloads, in the order in which they run and are shown.
pub fn all(scale: &Scale) -> Vec<Workload> {
    let groups = [look::all(scale), change::all(), copy_up::all(scale), grow::all(scale), programs::all(scale)];
    groups.into_iter().flatten().collect()
}

/// A row that needs no program.
fn row(group: Group, name: impl Into<String>, measure: Measure) -> Workload {
    Workload { name: name.into(), group, needs: &[], measure }
}

/// The lower files of a workload that measures one operation.
fn sample(stage: &Stage) -> Vec<PathBuf> {
    stage.at(layers::files(stage.ground.scale.sample, 20))
}

/// The time of everything.
fn total(operation: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let start = Instant::now();
    operation()?;
    Ok(start.elapsed())
}

/// The median time of an operation that is done to each of these once.
fn each(files: &[PathBuf], operation: impl Fn(&Path) -> io::Result<()>) -> anyhow::Result<Duration> {
    let mut times = Vec::with_capacity(files.len());
    for file in files {
        let start = Instant::now();
        operation(file)?;
        times.push(start.elapsed());
    }
    Ok(median(&times))
}

/// The time of an operation that was done to these files before. It may be too short for the clock: in each of several
/// passes the mean counts, and of these the median.
fn again(stage: &Stage, files: &[PathBuf], operation: impl Fn(&Path) -> io::Result<()>) -> anyhow::Result<Duration> {
    files.iter().try_for_each(|file| operation(file))?;
    let pass = || total(|| Ok(files.iter().try_for_each(|file| operation(file))?));
    let times = (0..stage.ground.scale.passes).map(|_| pass()).collect::<Result<Vec<_>, _>>()?;
    Ok(median(&times) / files.len() as u32)
}

/// Looks at each file, and brings their directories into upper.
fn make_known(files: &[PathBuf]) -> io::Result<()> {
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
