//! The form in which mount(8) calls a helper: `/sbin/mount.fuse.layerfs SOURCE MOUNTPOINT [-sfnv] [-o OPTIONS] [-t TYPE]`.
//!
//! The same words come as `layerfs SOURCE MOUNTPOINT -o OPTIONS` from mount.fuse3, mount(8)'s helper for all of FUSE.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use crate::config::{Config, ConfigError, Settings};
use crate::daemon;

/// The names under which mount(8) looks for us.
const NAMES: [&str; 2] = ["mount.fuse.layerfs", "mount.layerfs"];

/// What mount(8) says of an exit: wrongly called, and not mounted.
const USAGE: u8 = 1;
const NOT_MOUNTED: u8 = 32;

/// Mount a union of directories, on behalf of mount(8)
#[derive(Debug, Parser)]
#[command(name = "mount.fuse.layerfs", version, max_term_width = 100)]
struct Args {
    /// What /proc/mounts shows as the source; it means nothing else
    #[arg(value_name = "SOURCE")]
    source: OsString,

    /// The directory to mount on
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,

    /// The options of layerfs mount, and those that mount(8) has for every filesystem
    #[arg(short, value_name = "OPT[,OPT...]")]
    options: Vec<OsString>,

    /// Ignore options that are unknown
    #[arg(short)]
    sloppy: bool,

    /// Do everything but mount
    #[arg(short)]
    fake: bool,

    /// Don't write to /etc/mtab, as is the rule
    #[arg(short)]
    no_mtab: bool,

    /// Say nothing more than usual
    #[arg(short)]
    verbose: bool,

    /// The type that was asked for
    #[arg(short, value_name = "TYPE")]
    type_name: Option<OsString>,
}

/// Whether these arguments, the program's name the first, are a helper's and not those of a subcommand.
pub fn is_meant(arguments: &[OsString], is_subcommand: impl Fn(&OsStr) -> bool) -> bool {
    let Some((program, rest)) = arguments.split_first() else { return false };
    if Path::new(program).file_name().is_some_and(|name| NAMES.iter().any(|known| name == OsStr::new(known))) {
        return true;
    }
    let is_option = |word: &OsString| word.as_bytes().starts_with(b"-");
    match rest {
        [source, mountpoint, next, ..] => {
            !is_option(source) && !is_option(mountpoint) && next == "-o" && !is_subcommand(source)
        }
        _ => false,
    }
}

/// Mounts, and exits as mount(8) wants its helpers to.
pub fn run(arguments: &[OsString]) -> ExitCode {
    let args = match Args::try_parse_from(arguments) {
        Ok(args) => args,
        Err(e) => {
            super::print(&e);
            return if e.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    let config = match args.config() {
        Ok(config) => config,
        Err(e) => return complain(&e.into(), USAGE),
    };
    if args.fake {
        return ExitCode::SUCCESS;
    }
    daemon::start(config).unwrap_or_else(|e| complain(&e, NOT_MOUNTED))
}

fn complain(e: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("layerfs: {e:#}");
    code.into()
}

impl Args {
    fn config(&self) -> Result<Config, ConfigError> {
        let mut settings = Settings::default();
        if self.sloppy {
            settings.ignore_unknown();
        }
        settings.set(OsStr::new("source"), Some(&self.source))?;
        for list in &self.options {
            settings.set_list(list)?;
        }
        settings.into_config(&self.mountpoint, false)
    }
}

#[cfg(test)]
mod tests {
    use nix::mount::MsFlags;

    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    fn config(line: &str) -> Result<Config, ConfigError> {
        Args::try_parse_from(words(line)).unwrap().config()
    }

    #[test]
    fn a_helper_is_known_by_its_name_or_its_words() {
        let helpers = |line: &str| is_meant(&words(line), |word| word == "mount");
        for meant in ["/sbin/mount.fuse.layerfs", "mount.layerfs mount /mnt", "layerfs any /mnt -o ro"] {
            assert!(helpers(meant), "{meant}");
        }
        for other in ["layerfs", "layerfs mount -o ro /mnt", "layerfs mount /mnt -o ro", "layerfs -o ro", "layerfs a b"]
        {
            assert!(!helpers(other), "{other}");
        }
    }

    #[test]
    fn the_words_of_mount() {
        let config = config(
            "mount.fuse.layerfs any /mnt -sfnv -o rw,nosuid,lowerdir=/a:/b,upperdir=/u -o user=me,exec,x-y \
             -t fuse.layerfs",
        )
        .unwrap();
        assert_eq!(config.mount.source, "any");
        assert_eq!(config.mountpoint, Path::new("/mnt"));
        assert_eq!(config.mount.flags, MsFlags::MS_NOSUID);
        assert_eq!(config.stack.lowers, [Path::new("/a"), Path::new("/b")]);
        assert!(!config.foreground);
    }

    #[test]
    fn an_option_names_another_source() {
        assert_eq!(config("h any /mnt -o lowerdir=/a,fsname=other").unwrap().mount.source, "other");
    }

    #[test]
    fn unknown_options_are_ignored_on_demand() {
        assert!(config("h any /mnt -o lowerdir=/a,strange=1,odd").is_err());
        assert!(config("h any /mnt -s -o lowerdir=/a,strange=1,odd").is_ok());
        assert!(config("h any /mnt -s -o lowerdir=/a,timeout=soon").is_err());
    }

    #[test]
    fn a_remount_is_told_what_to_do() {
        let said = config("h any /mnt -o remount,ro,lowerdir=/a").unwrap_err().to_string();
        assert!(said.contains("mount -i -o remount"), "{said}");
    }
}
