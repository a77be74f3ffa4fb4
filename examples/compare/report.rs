//! What was measured, as a table and as JSON.

use std::time::Duration;

use serde_json::json;

use crate::mounts::Contestant;

/// The measured times.
#[derive(Debug)]
pub struct Report {
    mounts: Vec<String>,
    rows: Vec<Row>,
}

/// The times of one workload, for each mount those of all rounds.
#[derive(Debug)]
struct Row {
    workload: &'static str,
    times: Vec<Vec<Duration>>,
}

impl Report {
    /// An empty report.
    pub fn new(workloads: impl Iterator<Item = &'static str>, contestants: &[Contestant]) -> Self {
        let times = vec![Vec::new(); contestants.len()];
        Self {
            mounts: contestants.iter().map(|contestant| contestant.name.clone()).collect(),
            rows: workloads.map(|workload| Row { workload, times: times.clone() }).collect(),
        }
    }

    /// Adds one measurement.
    pub fn add(&mut self, workload: &str, mount: &str, time: Duration) {
        let Some(column) = self.mounts.iter().position(|name| name == mount) else { return };
        if let Some(row) = self.rows.iter_mut().find(|row| row.workload == workload) {
            row.times[column].push(time);
        }
    }

    /// Every time in seconds, with the medians and their ratios to the first mount.
    pub fn json(&self) -> serde_json::Result<String> {
        let rows = self.rows.iter().flat_map(|row| {
            row.times.iter().zip(&self.mounts).map(|(times, mount)| {
                json!({
                    "workload": row.workload,
                    "mount": mount,
                    "seconds": times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>(),
                    "median": median(times).as_secs_f64(),
                    "ratio": row.ratio(times),
                })
            })
        });
        let machine = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
        let report = json!({
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
            "kernel": machine.unwrap_or_default(),
            "rows": rows.collect::<Vec<_>>(),
        });
        Ok(serde_json::to_string_pretty(&report)? + "\n")
    }

    /// Medians, with the ratio to the first mount.
    pub fn table(&self, markdown: bool) -> String {
        let mut lines = vec![vec!["workload".to_owned()]];
        lines[0].extend(self.mounts.iter().cloned());
        for row in &self.rows {
            let cell = |times: &Vec<Duration>| format!("{} ({:.2})", human(median(times)), row.ratio(times));
            let mut line = vec![row.workload.to_owned()];
            line.push(human(median(&row.times[0])));
            line.extend(row.times.iter().skip(1).map(cell));
            lines.push(line);
        }
        if markdown { to_markdown(&lines) } else { to_columns(&lines) }
    }
}

impl Row {
    fn ratio(&self, times: &[Duration]) -> f64 {
        median(times).as_secs_f64() / median(&self.times[0]).as_secs_f64()
    }
}

/// The middle one, or zero of none.
pub fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn human(time: Duration) -> String {
    let us = time.as_secs_f64() * 1e6;
    match us {
        us if us < 100.0 => format!("{us:.1} us"),
        us if us < 10_000.0 => format!("{us:.0} us"),
        us => format!("{:.1} ms", us / 1e3),
    }
}

fn to_markdown(lines: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        text += &format!("| {} |\n", line.join(" | "));
        if index == 0 {
            text += &format!("|---{}|\n", "|---:".repeat(line.len() - 1));
        }
    }
    text
}

fn to_columns(lines: &[Vec<String>]) -> String {
    let columns = lines[0].len();
    let widths: Vec<usize> =
        (0..columns).map(|column| lines.iter().map(|line| line[column].len()).max().unwrap_or_default()).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        text += &cells.collect::<Vec<_>>().join("  ");
        text.push('\n');
    }
    text
}
