//! The program `layerfs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    layerfs::cli::run(std::env::args_os())
}
