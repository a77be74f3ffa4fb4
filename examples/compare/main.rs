//! Measures layerfs beside the kernel's overlay and fuse-overlayfs: the same lowers, the same system calls and programs, in
//! turn within one run.
//!
//! `tools/compare` runs this on a filesystem in memory, and cleans up after it.

mod chart;
mod ground;
mod growth;
mod layers;
mod mounts;
mod report;
mod scale;
mod sources;
mod tools;
mod workloads;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;

use ground::{Ground, Stage};
use mounts::Contestant;
use report::Report;
use tools::Tools;
use workloads::{Group, Workload};

/// Measure layerfs beside the kernel's overlay and fuse-overlayfs, on the same lowers, in turn within one run
///
/// FUSE_OVERLAYFS names binaries of fuse-overlayfs, with a colon between them, instead of the one that is installed; LAYERFS_BIN
/// a binary of layerfs instead of the release build.
#[derive(Debug, Parser)]
#[command(name = "tools/compare")]
struct Args {
    /// How often everything is measured; the median counts
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: usize,

    /// Only the workloads whose name or group contains this; may be given several times
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,

    /// Only the mount with this name or, if there is none, those whose name contains it, beside the kernel's default; may be given several times
    #[arg(long, value_name = "TEXT")]
    mounts: Vec<String>,

    /// Measure another build of layerfs, too
    #[arg(long, value_name = "BINARY")]
    other: Option<PathBuf>,

    /// In a user namespace, as users without root mount
    #[arg(long)]
    rootless: bool,

    /// Less of everything: shows that it works, the numbers say little
    #[arg(long)]
    quick: bool,

    /// Print the names of the workloads, and end
    #[arg(long)]
    list: bool,

    /// Also write every measured time to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Also draw a bar chart of the ratios
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Print the table in Markdown
    #[arg(long)]
    markdown: bool,

    /// The layerfs binary
    #[arg(long, hide = true, required_unless_present = "list")]
    binary: Option<PathBuf>,

    /// An empty directory on the filesystem to measure on
    #[arg(long, hide = true, required_unless_present = "list")]
    place: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let scale = if args.quick { &scale::QUICK } else { &scale::FULL };
    let all = workloads::all(scale);
    if args.list {
        list(&all);
        return Ok(());
    }
    let (Some(binary), Some(place)) = (&args.binary, &args.place) else { bail!("tools/compare is what runs this") };
    let tools = Tools::find();
    let workloads = chosen(all, &args, &tools)?;
    let groups: Vec<Group> = workloads.iter().map(|workload| workload.group).collect();

    progress("making the layers");
    mounts::adopt_daemons()?;
    let ground = Ground::make(place, scale, tools, args.rootless, &groups)?;
    let contestants = mountable(contestants(&args, binary)?, &ground)?;
    let mut report = Report::new(&workloads, contestants.iter().map(|contestant| contestant.name.clone()).collect());
    let failed = measure(&args, &ground, &workloads, &contestants, &mut report);
    progress("");
    write(args.json.as_deref(), &report.json()?)?;
    write(args.svg.as_deref(), &chart::svg(&report))?;
    print!("{}", report.table(args.markdown));
    if failed {
        bail!("layerfs failed");
    }
    Ok(())
}

fn list(workloads: &[Workload]) {
    for group in Group::ALL {
        println!("{}:", group.title());
        workloads
            .iter()
            .filter(|workload| workload.group == group)
            .for_each(|workload| println!("  {}", workload.name));
    }
}

/// The workloads that are wanted and can be run.
fn chosen(mut all: Vec<Workload>, args: &Args, tools: &Tools) -> anyhow::Result<Vec<Workload>> {
    let wanted = |workload: &Workload| {
        let is =
            |text: &String| workload.name.contains(text.as_str()) || workload.group.title().contains(text.as_str());
        args.only.is_empty() || args.only.iter().any(is)
    };
    all.retain(wanted);
    if all.is_empty() {
        bail!("there is no such workload; --list shows those that there are");
    }
    all.retain(|workload| {
        let missing = workload.needs.iter().find(|program| !tools.has(program));
        if let Some(program) = missing {
            say(&format!("left out: {}: {program} is not installed", workload.name));
        }
        missing.is_none()
    });
    Ok(all)
}

fn contestants(args: &Args, binary: &Path) -> anyhow::Result<Vec<Contestant>> {
    let mut all = mounts::kernel(args.rootless);
    let peers = mounts::fuse_overlayfs();
    if peers.is_empty() {
        say("left out: fuse-overlayfs is not installed");
    }
    all.extend(peers);
    all.extend(mounts::layerfs(binary, "layerfs")?);
    if let Some(other) = &args.other {
        all.extend(mounts::layerfs(other, "other")?);
    }
    let names: Vec<String> = all.iter().map(|contestant| contestant.name.clone()).collect();
    let means = |text: &String, name: &str| if names.contains(text) { text == name } else { name.contains(text) };
    let wanted = |name: &str| args.mounts.is_empty() || args.mounts.iter().any(|text| means(text, name));
    // What all others are compared with is the first.
    let mut index = 0..;
    all.retain(|contestant| index.next() == Some(0) || wanted(&contestant.name));
    Ok(all)
}

/// Those that can be mounted here.
fn mountable(mut all: Vec<Contestant>, ground: &Ground) -> anyhow::Result<Vec<Contestant>> {
    let has_layerfs = |all: &[Contestant]| all.iter().any(Contestant::is_layerfs);
    let wants_layerfs = has_layerfs(&all);
    all.retain(|contestant| {
        let tried = ground.try_mount(contestant);
        if let Err(error) = &tried {
            say(&format!("left out: {} can't be mounted: {error:#}", contestant.name));
        }
        tried.is_ok()
    });
    if all.is_empty() || wants_layerfs && !has_layerfs(&all) {
        bail!("there is nothing to compare");
    }
    Ok(all)
}

/// Measures everything, and returns whether layerfs failed anywhere.
fn measure(
    args: &Args,
    ground: &Ground,
    workloads: &[Workload],
    contestants: &[Contestant],
    report: &mut Report,
) -> bool {
    let mut failed = false;
    for round in 1..=args.rounds {
        if !std::io::stderr().is_terminal() {
            say(&format!("round {round} of {}", args.rounds));
        }
        for (row, workload) in workloads.iter().enumerate() {
            // There and back again: no mount is always the one after the same other.
            let mut order: Vec<_> = contestants.iter().enumerate().collect();
            if round % 2 == 0 {
                order.reverse();
            }
            if let (1, Some(first)) = (round, contestants.first()) {
                // Once for nothing: nobody pays for what comes into memory with the first.
                progress(&format!("warming up: {}", workload.name));
                drop(measure_one(ground, workload, first));
            }
            for (column, contestant) in order {
                progress(&format!("round {round} of {}: {}: {}", args.rounds, workload.name, contestant.name));
                match measure_one(ground, workload, contestant) {
                    Ok(time) => report.add(row, column, time),
                    Err(error) => {
                        say(&format!("failed: {}: {}: {error:#}", contestant.name, workload.name));
                        failed |= contestant.is_layerfs();
                    }
                }
            }
        }
    }
    failed
}

fn measure_one(ground: &Ground, workload: &Workload, contestant: &Contestant) -> anyhow::Result<Duration> {
    let mut stage = Stage::mount(ground, contestant, workload.group).context("it can't be mounted")?;
    let time = (workload.measure)(&mut stage);
    // Also after a failure: the next one needs the place.
    let ended = stage.mount.end();
    let time = time?;
    ended?;
    Ok(time)
}

fn write(path: Option<&Path>, text: &str) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, text).with_context(|| format!("{} can't be written", path.display()))
}

/// One line that is written over by the next, where that can be.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
        // Nobody may be looking.
        drop(std::io::stderr().flush());
    }
}

/// One line that stays.
fn say(text: &str) {
    progress("");
    eprintln!("compare: {text}");
}
