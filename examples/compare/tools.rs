//! The programs that whole-program workloads run.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// What workloads need that nothing else is known for under its own name.
pub const SQLITE: &str = "sqlite3, or python3 with its sqlite3,";

/// What is installed.
#[derive(Debug)]
pub struct Tools {
    /// The interpreter itself: what PATH has under its name may be a script that starts it.
    pub python: Option<PathBuf>,
    /// What executes SQL from its standard input, with the database as the last argument.
    pub sqlite: Option<Vec<PathBuf>>,
}

/// As `sqlite3 FILE` does: one statement after the other, each a transaction.
const SQLITE_IN_PYTHON: &str = "import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
for line in sys.stdin:
    database.execute(line)";

impl Tools {
    /// Looks for them.
    pub fn find() -> Self {
        let python = || {
            let output = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().ok()?;
            let path = output.stdout.trim_ascii_end().to_vec();
            (output.status.success() && !path.is_empty()).then(|| PathBuf::from(std::ffi::OsString::from_vec(path)))
        };
        let python = python();
        let has_sqlite = |python: &&PathBuf| {
            let status = Command::new(python).args(["-c", "import sqlite3"]).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        let in_python = |python: &PathBuf| vec![python.clone(), "-c".into(), SQLITE_IN_PYTHON.into()];
        let sqlite = in_path("sqlite3").map(|program| vec![program]);
        let sqlite = sqlite.or_else(|| python.as_ref().filter(has_sqlite).map(in_python));
        Self { python, sqlite }
    }

    /// Whether it can be run.
    pub fn has(&self, program: &str) -> bool {
        match program {
            SQLITE => self.sqlite.is_some(),
            "python3" => self.python.is_some(),
            _ => in_path(program).is_some(),
        }
    }
}

/// The program that a shell would run.
pub fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|program| program.is_file())
}

/// A program that sees neither the user's configuration nor what is typed.
pub fn program(name: impl AsRef<OsStr>, directory: &Path) -> Command {
    let mut command = Command::new(name);
    command.current_dir(directory).stdin(Stdio::null());
    command.env("LC_ALL", "C").env("HOME", "/nonexistent").env("GIT_CONFIG_NOSYSTEM", "1");
    for variable in ["GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "PYTHONSAFEPATH", "XDG_CONFIG_HOME"] {
        command.env_remove(variable);
    }
    command
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    run_or(command, |_| false)
}

/// Runs a program for which some other exit status is a success, too.
pub fn run_or(command: &mut Command, is_success: fn(i32) -> bool) -> anyhow::Result<()> {
    let name = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("{name} can't be run"))?;
    if !output.status.success() && !output.status.code().is_some_and(is_success) {
        let said = String::from_utf8_lossy(&output.stderr).trim().lines().take(3).collect::<Vec<_>>().join("; ");
        bail!("{name}: {}: {said}", output.status);
    }
    Ok(())
}
