//! What was measured, as a table and as JSON.

use std::time::Duration;

use serde_json::json;

use crate::workloads::{Group, Workload};

/// The measured times.
#[derive(Debug)]
pub struct Report {
    /// The mounts; with the first of them all are compared.
    pub mounts: Vec<String>,
    /// One for each workload.
    pub rows: Vec<Row>,
}

/// The times of one workload.
#[derive(Debug)]
pub struct Row {
    /// What it is called.
    pub workload: String,
    /// What it belongs to.
    pub group: Group,
    /// For each mount those of all rounds.
    times: Vec<Vec<Duration>>,
}

impl Report {
    /// An empty report.
    pub fn new(workloads: &[Workload], mounts: Vec<String>) -> Self {
        let times = vec![Vec::new(); mounts.len()];
        let row =
            |workload: &Workload| Row { workload: workload.name.clone(), group: workload.group, times: times.clone() };
        Self { rows: workloads.iter().map(row).collect(), mounts }
    }

    /// Adds one measurement.
    pub fn add(&mut self, workload: usize, mount: usize, time: Duration) {
        self.rows[workload].times[mount].push(time);
    }

    /// For each mount the geometric mean of the ratios of whole programs; of those that ran in all mounts.
    pub fn programs(&self) -> Option<Vec<f64>> {
        let complete: Vec<Vec<f64>> = self
            .rows
            .iter()
            .filter(|row| row.group == Group::Programs)
            .filter_map(|row| (0..self.mounts.len()).map(|mount| row.ratio(mount)).collect())
            .collect();
        let mean = |mount: usize| {
            let logarithms = complete.iter().map(|ratios| ratios[mount].ln());
            (logarithms.sum::<f64>() / complete.len() as f64).exp()
        };
        (!complete.is_empty()).then(|| (0..self.mounts.len()).map(mean).collect())
    }

    /// Every time in seconds, with the medians and their ratios to the first mount.
    pub fn json(&self) -> serde_json::Result<String> {
        let rows = self.rows.iter().flat_map(|row| {
            self.mounts.iter().enumerate().map(|(mount, name)| {
                json!({
                    "workload": row.workload,
                    "group": row.group.title(),
                    "mount": name,
                    "seconds": row.times[mount].iter().map(Duration::as_secs_f64).collect::<Vec<_>>(),
                    "median": row.median(mount).map(|time| time.as_secs_f64()),
                    "ratio": row.ratio(mount),
                })
            })
        });
        let means = self.programs().unwrap_or_default();
        let means = self.mounts.iter().zip(means).map(|(mount, mean)| (mount.clone(), json!(mean)));
        let machine = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
        let report = json!({
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
            "kernel": machine.unwrap_or_default(),
            "rows": rows.collect::<Vec<_>>(),
            "programs": means.collect::<serde_json::Map<_, _>>(),
        });
        Ok(serde_json::to_string_pretty(&report)? + "\n")
    }

    /// Medians, with the ratio to the first mount.
    pub fn table(&self, markdown: bool) -> String {
        let mut lines = vec![vec!["workload".to_owned()]];
        lines[0].extend(self.mounts.iter().cloned());
        for row in &self.rows {
            let cell = |mount| match (row.median(mount), row.ratio(mount)) {
                (None, _) => "-".to_owned(),
                (Some(time), Some(ratio)) if mount > 0 => format!("{} ({ratio:.2})", human(time)),
                (Some(time), _) => human(time),
            };
            let mut line = vec![row.workload.clone()];
            line.extend((0..self.mounts.len()).map(cell));
            lines.push(line);
        }
        if let Some(means) = self.programs() {
            let mut line = vec![format!("{}, geometric mean", Group::Programs.title())];
            line.extend(means.iter().map(|mean| format!("({mean:.2})")));
            lines.push(line);
        }
        if markdown { to_markdown(&lines) } else { to_columns(&lines) }
    }
}

impl Row {
    /// The median of a mount's times, if it has any.
    fn median(&self, mount: usize) -> Option<Duration> {
        (!self.times[mount].is_empty()).then(|| median(&self.times[mount]))
    }

    /// A mount's time as a multiple of that of the first.
    pub fn ratio(&self, mount: usize) -> Option<f64> {
        let ratio = self.median(mount)?.as_secs_f64() / self.median(0)?.as_secs_f64();
        (ratio.is_finite() && ratio > 0.0).then_some(ratio)
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
        us if us < 10.0 => format!("{us:.2} us"),
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

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Of two workloads in two mounts, where one could not do the second.
    pub fn example() -> Report {
        let workload = |name: &str| Workload {
            name: name.into(),
            group: Group::Programs,
            needs: &[],
            measure: |_| Ok(Duration::ZERO),
        };
        let workloads = [workload("a < b"), workload("twice"), workload("failed")];
        let mut report = Report::new(&workloads, vec!["kernel".into(), "layerfs".into()]);
        for (workload, mount, us) in [(0, 0, 10), (0, 1, 80), (0, 0, 30), (0, 0, 20), (1, 0, 10), (1, 1, 10), (2, 0, 1)]
        {
            report.add(workload, mount, Duration::from_micros(us));
        }
        report
    }

    #[test]
    fn medians_ratios_and_their_mean() {
        let table = example().table(true);
        assert!(table.contains("| a < b | 20.0 us | 80.0 us (4.00) |"), "{table}");
        assert!(table.contains("| failed | 1.00 us | - |"), "{table}");
        assert!(table.contains("| whole programs, geometric mean | (1.00) | (2.00) |"), "{table}");
    }

    #[test]
    fn json_has_every_time() {
        let json: serde_json::Value = serde_json::from_str(&example().json().expect("JSON")).expect("JSON");
        assert_eq!(json["rows"][0]["seconds"].as_array().map(Vec::len), Some(3));
        assert_eq!(json["rows"][1]["ratio"], 4.0);
        assert!(json["rows"][5]["median"].is_null());
        assert_eq!(json["programs"]["layerfs"].as_f64().map(f64::round), Some(2.0));
    }
}
