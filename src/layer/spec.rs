//! Which directories make up a stack, and how they are dealt with.

use std::path::PathBuf;

use crate::layer::override_stat::Form;
use crate::layer::whiteout::Whiteouts;

/// The directories of a union, as its user names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StackSpec {
    /// The lower layers, the top one first.
    pub lowers: Vec<PathBuf>,
    /// The writable layer; without one the union is read-only.
    pub upper: Option<PathBuf>,
    /// The work directory, on the same filesystem as `upper`.
    pub work: Option<PathBuf>,
    /// Keep marks in `user.overlay.*` although `trusted.overlay.*` would be possible.
    pub userxattr: bool,
    /// Believe metacopy and device marks on files of the lower layers.
    pub trusted_lowers: bool,
    /// Keep owner and permissions in an attribute.
    pub xattr_permissions: Option<Form>,
}

/// How the layers of a stack are dealt with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handling {
    /// What is written may be lost when the machine stops, and a sign on disk says so.
    pub volatile: bool,
    /// How deletions are written.
    pub whiteouts: Whiteouts,
    /// Which names the lowers hold may be remembered: nobody changes them.
    pub remember_names: bool,
}
