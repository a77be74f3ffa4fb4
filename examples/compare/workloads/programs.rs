//! Whole programs, on a tree of sources.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use super::{Group, Measure, Workload, total};
use crate::ground::Stage;
use crate::report::median;
use crate::scale::Scale;
use crate::sources::{ARCHIVE, DATABASE, LIBRARY, NEEDLE, PACKAGE, PROGRAM, unit_name, updates};
use crate::tools::{SQLITE, program, run, run_or};

pub fn all(scale: &Scale) -> Vec<Workload> {
    let row =
        |name: &str, needs, measure: Measure| Workload { name: name.into(), group: Group::Programs, needs, measure };
    vec![
        row("untar", &["tar"], |stage| {
            let mut command = untar(stage)?;
            total(|| run(&mut command))
        }),
        row("rm -rf of new files", &["tar", "rm"], |stage| {
            run(&mut untar(stage)?)?;
            stage.settle()?;
            total(|| run(within(stage, "rm").args(["-rf", "new"])))
        }),
        row("rm -rf of lower files", &["rm"], |stage| total(|| run(within(stage, "rm").args(["-rf", LIBRARY])))),
        row("cp -a", &["cp"], |stage| total(|| run(within(stage, "cp").args(["-a", LIBRARY, "new"])))),
        row("grep -r, cold", &["grep"], |stage| total(|| grep(stage))),
        row("grep -r, warm", &["grep"], |stage| again(stage, grep)),
        row("git status, first", &["git"], |stage| total(|| git_status(stage))),
        row("git status, again", &["git"], |stage| again(stage, git_status)),
        row("sed -i over all headers", &["sed"], sed),
        row("chown -R", &["chown"], |stage| {
            let owner = stage.ground.other_owner();
            total(|| run(within(stage, "chown").arg("-R").arg(format!("{owner}:{owner}")).arg(LIBRARY)))
        }),
        row(&format!("sqlite, {} updates", scale.updates), &[SQLITE], update_database),
        row(&format!("cc, {} files", scale.units + 1), &["cc"], compile),
        row(&format!("python3, {} imports", scale.imports), &["python3"], |stage| total(|| import(stage))),
    ]
}

/// A program that works in the root of the mount.
fn within(stage: &Stage, name: &str) -> Command {
    program(name, &stage.mount.point)
}

/// What is done once more, by a program that is short: the median of three.
fn again(stage: &Stage, operation: fn(&Stage) -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    operation(stage)?;
    stage.settle()?;
    let times = (0..3).map(|_| total(|| operation(stage))).collect::<Result<Vec<_>, _>>()?;
    Ok(median(&times))
}

fn untar(stage: &Stage) -> anyhow::Result<Command> {
    fs::create_dir(stage.mount.point.join("new"))?;
    let mut command = within(stage, "tar");
    command.arg("--extract").arg("--file").arg(stage.ground.place.join(ARCHIVE)).args(["--directory", "new"]);
    Ok(command)
}

fn grep(stage: &Stage) -> anyhow::Result<()> {
    // It has to print what it finds: with /dev/null it would stop at the first file. To find nothing is no failure.
    run_or(within(stage, "grep").args(["-r", NEEDLE, LIBRARY]), |status| status == 1)
}

fn git_status(stage: &Stage) -> anyhow::Result<()> {
    run(within(stage, "git").args(["-c", "safe.directory=*", "status", "--short"]))
}

fn sed(stage: &mut Stage) -> anyhow::Result<Duration> {
    let mut files = Vec::new();
    let library = stage.mount.point.join(LIBRARY);
    for part in fs::read_dir(library)? {
        for module in fs::read_dir(part?.path())? {
            for file in fs::read_dir(module?.path())? {
                files.push(file?.path());
            }
        }
    }
    files.retain(|file| file.extension().is_some_and(|extension| extension == "h"));
    files.sort();
    total(|| run(within(stage, "sed").args(["-i", "s/colour/color/g"]).args(files)))
}

fn update_database(stage: &mut Stage) -> anyhow::Result<Duration> {
    let sqlite = stage.ground.tools.sqlite.as_ref().context("there is no SQLite")?;
    let script = stage.ground.place.join("updates.sql");
    fs::write(&script, updates(stage.ground.scale.updates))?;
    let script = Stdio::from(File::open(script)?);
    let mut command = program(&sqlite[0], &stage.mount.point);
    command.args(&sqlite[1..]).arg(DATABASE).stdin(script);
    total(|| run(&mut command))
}

fn compile(stage: &mut Stage) -> anyhow::Result<Duration> {
    let directory = stage.mount.point.join("build");
    fs::create_dir(&directory)?;
    let source = |name: &str| Path::new("..").join(PROGRAM).join(name);
    let units = (0..stage.ground.scale.units).map(|unit| source(&unit_name(unit)));
    let mut command = program("cc", &directory);
    command.arg("-I").arg(source("include")).args(units).arg(source("main.c")).args(["-o", "program"]);
    total(|| run(&mut command))
}

fn import(stage: &Stage) -> anyhow::Result<()> {
    let python = stage.ground.tools.python.as_ref().context("there is no Python")?;
    run(program(python, &stage.mount.point).args(["-c", &format!("import {PACKAGE}")]))
}
