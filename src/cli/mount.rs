//! `layerfs mount`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::{self, Config, ConfigError, Settings};
use crate::daemon;

const USAGE: &str = "layerfs mount [OPTIONS] --lower DIR... [--upper DIR [--work DIR]] MOUNTPOINT
       layerfs mount [OPTIONS] -o lowerdir=DIR:DIR...[,upperdir=DIR[,workdir=DIR]] MOUNTPOINT";

/// Mount a union of directories
///
/// Returns when the mount can be used; a daemon then serves it in the background until it is unmounted (layerfs umount,
/// umount, fusermount3 -u, or SIGTERM to the daemon). Root mounts by itself, other users through fusermount3 or inside
/// a user namespace.
#[derive(Debug, clap::Args)]
#[command(override_usage = USAGE, after_long_help = config::help())]
pub struct Args {
    /// A read-only layer; the first one is the top [-o lowerdir=A:B, with \: for a colon in a path]
    #[arg(short, long, value_name = "DIR")]
    lower: Vec<PathBuf>,

    /// The layer that takes all changes; without one the mount is read-only [-o upperdir=DIR]
    #[arg(short, long, value_name = "DIR")]
    upper: Option<PathBuf>,

    /// A directory on the same filesystem as the upper one, made if it is missing [default: .NAME.work beside an upper
    /// NAME]
    #[arg(short, long, value_name = "DIR")]
    work: Option<PathBuf>,

    /// Options as mount(8) takes them, all of which --help lists: ro, noatime, allow_other and the like, and each flag below
    /// as name or name=value
    #[arg(short = 'o', long = "options", value_name = "OPT[,OPT...]")]
    options: Vec<OsString>,

    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,

    /// Take a mount off first whose daemon has died ("Transport endpoint is not connected"), never one that answers [-o recover]
    #[arg(long)]
    recover: bool,

    /// Keep marks in user.overlay.* even as root [-o userxattr]
    #[arg(long)]
    userxattr: bool,

    /// Believe lower layers where the data of a file of theirs is (metacopy): only for layers that you made [-o trusted_lowers]
    #[arg(long)]
    trusted_lowers: bool,

    /// Never wait for the disk: fast, and lost with a power cut [-o volatile]
    #[arg(long)]
    volatile: bool,

    /// When the data of copies reaches the disk: batched (within seconds; until then a power cut brings the lower file back),
    /// strict (before the copy shows) or volatile [default: batched]
    #[arg(long, value_name = "WHEN")]
    durability: Option<OsString>,

    /// How long the kernel may remember names and attributes; 0 for layers that others change [default: forever]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<OsString>,

    /// Who reads and writes file data: the kernel's cache, which passes each write on (writethrough) or gathers them (cached),
    /// or the kernel alone where it may (passthrough: needs root and Linux 6.9) [default: auto, which is writethrough]
    #[arg(long, value_name = "auto|writethrough|cached|passthrough")]
    io: Option<OsString>,

    /// How many threads answer requests [default: one for each core, 2 to 8]
    #[arg(long, value_name = "N")]
    threads: Option<OsString>,

    /// Take requests from io_uring, on the core that they come from (Linux 6.14, switched on by root) [default: auto]
    #[arg(long, value_name = "auto|on|off")]
    io_uring: Option<OsString>,

    /// How many lookups the union remembers; 0 for none
    #[arg(long, value_name = "N")]
    cache_entries: Option<OsString>,

    /// Leave POSIX ACLs out [-o noacl]
    #[arg(long)]
    noacl: bool,

    /// Rename directories of lower layers by a redirect mark: on or off [default: on]
    #[arg(long, value_name = "on|off")]
    redirect_dir: Option<OsString>,

    /// Copy no data up for a change of a file's metadata alone: on or off [default: on; off with a timeout of 0 or without
    /// redirects]
    #[arg(long, value_name = "on|off")]
    metacopy: Option<OsString>,

    /// Unique inode numbers over layers on several filesystems: auto, on or off [default: auto]
    #[arg(long, value_name = "auto|on|off")]
    xino: Option<OsString>,

    /// The source that /proc/mounts shows [default: layerfs]
    #[arg(long, value_name = "NAME")]
    source: Option<OsString>,

    /// The directory to mount on
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
}

/// Mounts.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    daemon::start(args.config()?)
}

impl Args {
    fn config(&self) -> Result<Config, ConfigError> {
        let mut settings = Settings::default();
        for lower in &self.lower {
            settings.add_lower(lower);
        }
        if let Some(upper) = &self.upper {
            settings.set_upper(upper)?;
        }
        if let Some(work) = &self.work {
            settings.set_work(work)?;
        }
        for list in &self.options {
            settings.set_list(list)?;
        }
        let switches = [
            ("recover", self.recover),
            ("userxattr", self.userxattr),
            ("trusted_lowers", self.trusted_lowers),
            ("volatile", self.volatile),
            ("noacl", self.noacl),
        ];
        for (name, _) in switches.iter().filter(|(_, given)| *given) {
            settings.set(OsStr::new(name), None)?;
        }
        let values = [
            ("durability", &self.durability),
            ("timeout", &self.timeout),
            ("io", &self.io),
            ("threads", &self.threads),
            ("io_uring", &self.io_uring),
            ("cache_entries", &self.cache_entries),
            ("redirect_dir", &self.redirect_dir),
            ("metacopy", &self.metacopy),
            ("xino", &self.xino),
            ("source", &self.source),
        ];
        for (name, value) in values {
            if let Some(value) = value {
                settings.set(OsStr::new(name), Some(value))?;
            }
        }
        settings.into_config(&self.mountpoint, self.foreground)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn config(line: &str) -> Config {
        let words = std::iter::once("mount").chain(line.split_whitespace());
        Command::parse_from(words).args.config().unwrap()
    }

    #[test]
    fn flags_and_lists_say_the_same() {
        let flags = config(
            "--lower A --lower B --upper U --work W --recover --userxattr --trusted-lowers --volatile --timeout 3 --io passthrough \
             --threads 2 --cache-entries 9 --noacl --redirect-dir off --metacopy on --xino on --source S MNT",
        );
        let list = config(
            "-o lowerdir=A:B,upperdir=U,workdir=W,recover,userxattr,trusted_lowers,volatile -o timeout=3,io=passthrough \
             -othreads=2,cache_entries=9,noacl,redirect_dir=off,metacopy=on,xino=on,source=S MNT",
        );
        assert_eq!(format!("{flags:?}"), format!("{list:?}"));
        assert_eq!(flags.mountpoint, Path::new("MNT"));
        assert!(!flags.foreground && config("-f -l A MNT").foreground);
    }

    /// The table's first two columns: flags, and options between backticks, with values and without.
    #[test]
    fn the_help_lists_what_the_readme_documents() {
        let readme = include_str!("../../README.md");
        let (_, section) = readme.split_once("## Options of `layerfs mount`").unwrap();
        let (table, _) = section.split_once("\n## ").unwrap();
        let help = Command::command().render_long_help().to_string();
        let listed: Vec<&str> = help.split(|c: char| c.is_whitespace() || "=,[]".contains(c)).collect();
        let rows = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| flag"));
        let cells = rows.flat_map(|row| row.split(" | ").take(2));
        let documented: Vec<&str> = cells
            .flat_map(|cell| cell.split('`').skip(1).step_by(2))
            .filter_map(|word| word.split(['=', ' ']).next())
            .filter(|word| !word.starts_with("x-"))
            .collect();
        assert!(documented.len() > 50 && documented.contains(&"--io") && documented.contains(&"squash_to_gid"));
        let missing: Vec<_> = documented.iter().filter(|word| !listed.contains(*word)).collect();
        assert!(missing.is_empty(), "{missing:?} in\n{help}");
    }

    #[test]
    fn a_colon_in_a_flag_is_a_colon() {
        assert_eq!(config(r"--lower a:b\:c MNT").stack.lowers, [Path::new(r"a:b\:c")]);
    }
}
