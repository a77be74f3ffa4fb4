//! What operations and set-up fail with.

use std::path::{Path, PathBuf};

pub use nix::errno::Errno;

/// The result of an operation on the union or on a layer.
pub type Result<T> = std::result::Result<T, Errno>;

/// Whether an error tells of the machine at this moment, not of the object: the same call may have another answer later.
pub fn is_passing(error: Errno) -> bool {
    use Errno::{EAGAIN, EDQUOT, EINTR, EIO, EMFILE, ENFILE, ENOMEM, ENOSPC};
    matches!(error, EAGAIN | EDQUOT | EINTR | EIO | EMFILE | ENFILE | ENOMEM | ENOSPC)
}

/// Why a mount can't be set up: one sentence, the path it is about, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {}: {advice}", path.display())]
pub struct SetupError {
    /// What is wrong, as a clause.
    pub what: String,
    /// The path that it is about.
    pub path: PathBuf,
    /// What the user can do.
    pub advice: String,
}

impl SetupError {
    /// A set-up error about `path`.
    pub fn new(what: impl Into<String>, path: &Path, advice: impl Into<String>) -> Self {
        Self { what: what.into(), path: path.to_owned(), advice: advice.into() }
    }
}
