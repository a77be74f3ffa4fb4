//! Measures layerfs beside the kernel's overlay: the same lowers, the same system calls, in turn within one run.
//!
//! `tools/compare` runs this on a filesystem in memory, and cleans up after it.

mod layers;
mod mounts;
mod report;
mod workloads;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;

use layers::Layers;
use mounts::Contestant;
use report::Report;
use workloads::Workload;

/// Measure layerfs beside the kernel's overlay, on the same lowers, in turn within one run
#[derive(Debug, Parser)]
#[command(name = "tools/compare")]
struct Args {
    /// How often everything is measured; the median counts
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: usize,

    /// Only the workloads whose name contains this; may be given several times
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,

    /// Only the mounts whose name contains this, beside the kernel's default; may be given several times
    #[arg(long, value_name = "TEXT")]
    mounts: Vec<String>,

    /// Measure another build of layerfs, too
    #[arg(long, value_name = "BINARY")]
    other: Option<PathBuf>,

    /// Also write every measured time to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Print the table in Markdown
    #[arg(long)]
    markdown: bool,

    /// The layerfs binary
    #[arg(long, hide = true)]
    binary: PathBuf,

    /// An empty directory on the filesystem to measure on
    #[arg(long, hide = true)]
    place: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let contestants = contestants(&args)?;
    let all = workloads::all();
    let chosen = |w: &Workload| args.only.is_empty() || args.only.iter().any(|text| w.name.contains(text.as_str()));
    if !all.iter().any(chosen) {
        let names: Vec<_> = all.iter().map(|w| w.name).collect();
        bail!("there is no such workload; there are: {}", names.join(", "));
    }
    let layers = Layers::make(&args.place)?;
    let mut report = Report::new(all.iter().filter(|w| chosen(w)).map(|w| w.name), &contestants);
    for round in 1..=args.rounds {
        // There and back again: no mount is always the one after the same other.
        let mut order: Vec<_> = contestants.iter().collect();
        if round % 2 == 0 {
            order.reverse();
        }
        for contestant in order {
            progress(&format!("round {round} of {}: {}", args.rounds, contestant.name));
            let mount = contestant.mount(&layers).with_context(|| format!("{} can't be mounted", contestant.name))?;
            let mut targets = layers.targets();
            for workload in &all {
                // Each workload has its own files, whether those before it run or not.
                let files = targets.take(workload.files);
                if chosen(workload) {
                    let time = measure(workload, &mount, &files)
                        .with_context(|| format!("{}: {}", contestant.name, workload.name))?;
                    report.add(workload.name, &contestant.name, time);
                }
            }
            mount.end()?;
        }
    }
    progress("");
    if let Some(path) = &args.json {
        std::fs::write(path, report.json()?).with_context(|| format!("{} can't be written", path.display()))?;
    }
    print!("{}", report.table(args.markdown));
    Ok(())
}

/// The time that one operation of a workload takes, which is the median of all, or that all of them take.
fn measure(workload: &Workload, mount: &mounts::Mount, files: &[PathBuf]) -> anyhow::Result<Duration> {
    let files: Vec<PathBuf> = files.iter().map(|file| mount.at(file)).collect();
    workload.prepare(&files)?;
    mount.settle()?;
    let mut times = Vec::with_capacity(files.len());
    for file in &files {
        let start = Instant::now();
        (workload.operation)(file)?;
        times.push(start.elapsed());
    }
    Ok(if workload.in_total { times.iter().sum() } else { report::median(&times) })
}

fn contestants(args: &Args) -> anyhow::Result<Vec<Contestant>> {
    let mut all = mounts::kernel();
    all.extend(mounts::layerfs(&args.binary, "layerfs")?);
    if let Some(other) = &args.other {
        all.extend(mounts::layerfs(other, "other")?);
    }
    let wanted = |name: &str| args.mounts.is_empty() || args.mounts.iter().any(|text| name.contains(text.as_str()));
    // What all others are compared with is the first.
    let mut index = 0..;
    all.retain(|contestant| index.next() == Some(0) || wanted(&contestant.name));
    Ok(all)
}

/// One line that is written over by the next.
fn progress(text: &str) {
    eprint!("\r\x1b[K{text}");
    // Nobody may be looking.
    drop(std::io::stderr().flush());
}
