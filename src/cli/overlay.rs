//! The form of fuse-overlayfs and of mount(8)'s helpers: `[-f] [-d] [-o OPT[,OPT...]]... [SOURCE] MOUNTPOINT`.
//!
//! It is meant by the program's name, or by options before or without a subcommand: mount.fuse3, the helper for all of FUSE,
//! runs `layerfs SOURCE MOUNTPOINT -o OPTIONS`. Here an option that is unknown costs a warning, not the mount.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{anyhow, bail};

use crate::config::{Config, ConfigError, Settings};
use crate::daemon;

/// The names under which mount(8) looks for us, and that of the program that we stand in for.
pub const HELPER_NAMES: [&str; 2] = ["mount.fuse.layerfs", "mount.layerfs"];
pub const COMPATIBLE_NAME: &str = "fuse-overlayfs";

/// This variable, whatever its value, means whiteouts of the form `.wh.NAME`.
const DOT_WHITEOUTS: &str = "FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT";

/// What mount(8) says of an exit: wrongly called, and not mounted.
const USAGE: u8 = 1;
const NOT_MOUNTED: u8 = 32;

const HELP: &str = "Shows a stack of directories as one, called in the form of fuse-overlayfs or of mount(8)

Usage: PROGRAM [-f] [-d] [-o OPT[,OPT...]]... [SOURCE] MOUNTPOINT

Options:
  -o OPT[,OPT...]  lowerdir=A:B (the first is the top), upperdir=DIR, workdir=DIR, and what layerfs mount --help lists
  -f               Stay in the foreground (as a helper of mount(8): do everything but mount)
  -d, --debug      Likewise
  -h, --help       Print help
  -V, --version    Print the version

Options of mount(8) for its helpers:
  -s               Ignore options that are unknown without a warning
  -n, -v           Mean nothing
  -N NS, -t TYPE   Mean nothing
";

/// What the words ask for.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Mount(Words),
    Help,
    Version,
}

/// The words of a mount, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Words {
    /// Each the value of a -o.
    lists: Vec<OsString>,
    source: Option<OsString>,
    mountpoint: PathBuf,
    foreground: bool,
    /// Do everything but mount.
    fake: bool,
    sloppy: bool,
    dot_whiteouts: bool,
    warnings: Vec<String>,
}

/// Whether these arguments, the program's name the first, are of this form.
pub fn is_meant(arguments: &[OsString], is_subcommand: impl Fn(&OsStr) -> bool) -> bool {
    let Some((program, rest)) = arguments.split_first() else { return false };
    if is_helper(program) || is_named(program, &[COMPATIBLE_NAME]) {
        return true;
    }
    let has_options = || rest.iter().any(|word| word.as_bytes().starts_with(b"-o"));
    rest.first().is_some_and(|first| !is_subcommand(first)) && has_options()
}

fn is_helper(program: &OsStr) -> bool {
    is_named(program, &HELPER_NAMES)
}

fn is_named(program: &OsStr, names: &[&str]) -> bool {
    Path::new(program).file_name().is_some_and(|name| names.iter().any(|known| name == OsStr::new(known)))
}

/// Mounts, and exits as mount(8) wants its helpers to. Nothing but help and version goes to stdout.
pub fn run(arguments: &[OsString]) -> ExitCode {
    let words = match parse(arguments) {
        Ok(Request::Mount(words)) => Words { dot_whiteouts: std::env::var_os(DOT_WHITEOUTS).is_some(), ..words },
        Ok(Request::Help) => return say(HELP),
        Ok(Request::Version) => return say(concat!("layerfs ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(e) => return complain(&e, USAGE),
    };
    let (config, warnings) = match words.config() {
        Ok(done) => done,
        Err(e) => return complain(&e.into(), USAGE),
    };
    for warning in warnings {
        eprintln!("layerfs: {warning}");
    }
    if words.fake {
        return ExitCode::SUCCESS;
    }
    daemon::start(config).unwrap_or_else(|e| complain(&e, NOT_MOUNTED))
}

fn say(text: &str) -> ExitCode {
    // When the output is closed there is nobody to tell.
    let _unheard = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn complain(e: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("layerfs: {e:#}");
    code.into()
}

fn parse(arguments: &[OsString]) -> anyhow::Result<Request> {
    let Some((program, rest)) = arguments.split_first() else { bail!("no mountpoint is named") };
    let as_helper = is_helper(program);
    let mut words = Words::default();
    let mut places: Vec<&OsString> = Vec::new();
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        match word.as_bytes() {
            b"-o" => words.lists.push(rest.next().ok_or_else(|| anyhow!("-o needs a list of options"))?.clone()),
            [b'-', b'o', list @ ..] => words.lists.push(OsStr::from_bytes(list).to_owned()),
            b"-h" | b"--help" => return Ok(Request::Help),
            b"-V" | b"--version" => return Ok(Request::Version),
            b"--debug" => words.foreground = true,
            b"--" => places.extend(rest.by_ref()),
            b"-t" | b"-N" if as_helper => drop(rest.next()),
            [b'-', flags @ ..] if as_helper && words.take_helper_flags(flags) => {}
            b"-f" | b"-d" => words.foreground = true,
            [b'-', _, ..] => words.warnings.push(format!("unknown argument {} ignored", word.display())),
            _ => places.push(word),
        }
    }
    (words.source, words.mountpoint) = match places[..] {
        [] => bail!("no mountpoint is named"),
        [mountpoint] => (None, mountpoint.into()),
        [source, mountpoint] => (Some(source.clone()), mountpoint.into()),
        [_, _, more, ..] => bail!("{} is one argument too many: at most SOURCE MOUNTPOINT", more.display()),
    };
    Ok(Request::Mount(words))
}

impl Words {
    /// The flags that mount(8) gives, alone or together; false if there is another among them.
    fn take_helper_flags(&mut self, flags: &[u8]) -> bool {
        if flags.is_empty() || !flags.iter().all(|flag| b"sfnv".contains(flag)) {
            return false;
        }
        self.sloppy |= flags.contains(&b's');
        self.fake |= flags.contains(&b'f');
        true
    }

    /// The configuration, and what was ignored.
    fn config(&self) -> Result<(Config, Vec<String>), ConfigError> {
        let mut settings = Settings::compatible();
        if self.sloppy {
            settings.ignore_unknown();
        }
        if self.dot_whiteouts {
            settings.set(OsStr::new("whiteouts"), Some(OsStr::new("dot")))?;
        }
        if let Some(source) = &self.source {
            settings.set(OsStr::new("source"), Some(source))?;
        }
        for list in &self.lists {
            settings.set_list(list)?;
        }
        let warnings = [&self.warnings, settings.warnings()].concat();
        Ok((settings.into_config(&self.mountpoint, self.foreground)?, warnings))
    }
}

#[cfg(test)]
mod tests;
