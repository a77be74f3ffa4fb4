//! The command line.

mod links;
mod mount;
mod overlay;
mod stats;
mod umount;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Shows a stack of directories as one: read-only lower layers under a writable upper one.
///
/// The top layer that has a name decides what it is. A write to a file of a lower layer copies it up first, a delete
/// leaves a mark in the upper layer; the lower layers are never changed.
#[derive(Debug, Parser)]
#[command(name = "layerfs", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  layerfs mount --lower base --upper changes merged
  layerfs stats merged
  layerfs umount merged

As mount(8) and callers of fuse-overlayfs write it:
  layerfs [SOURCE] MOUNTPOINT -o lowerdir=base,upperdir=changes,workdir=work";

#[derive(Debug, Subcommand)]
enum Command {
    Mount(Box<mount::Args>),
    #[command(alias = "unmount")]
    Umount(umount::Args),
    Stats(stats::Args),
    InstallLinks(links::Args),
}

/// Runs the program with its arguments, its name the first, and returns its exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if overlay::is_meant(&arguments, |word| Cli::command().find_subcommand(word).is_some()) {
        return overlay::run(&arguments);
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(e) => {
            print(&e);
            return u8::try_from(e.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
    };
    let result = match cli.command {
        Command::Mount(args) => mount::run(&args),
        Command::Umount(args) => umount::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Stats(args) => stats::run(&args).map(|()| ExitCode::SUCCESS),
        Command::InstallLinks(args) => links::run(&args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|e| {
        eprintln!("layerfs: {e:#}");
        ExitCode::FAILURE
    })
}

/// Prints what clap has to say: help and version to stdout, complaints to stderr.
fn print(e: &clap::Error) {
    // When the output is closed there is nobody to tell.
    let _unheard = e.print();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_version_is_one_line() {
        assert_eq!(Cli::command().render_version(), format!("layerfs {}\n", env!("CARGO_PKG_VERSION")));
    }
}
