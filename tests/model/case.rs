//! A test as data: layers and operations. Operations name their targets by an index modulo what is there, so that they
//! keep a meaning whatever came before, and while a failure shrinks.

use super::layers::{Entries, N};
use super::reference::RenameKind;

/// Something that is there.
#[derive(Clone, Copy, Debug)]
pub enum Subject {
    /// The n-th directory, the root first.
    Dir(usize),
    /// The n-th file.
    File(usize),
    /// The n-th name of any kind, the root first.
    Any(usize),
    /// The n-th object that is kept open, whether it still has a name or not.
    Held(usize),
}

/// A name in a directory, taken or not.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// A name in what should be a directory.
    In(Subject, N),
    /// The n-th name that is there.
    Existing(usize),
}

/// The names of extended attributes.
#[derive(Clone, Copy, Debug)]
pub enum X {
    /// The one that lower objects may have.
    A,
    B,
    /// Not one of the user's, so that every kind of object can have it; left out without the rights to set it.
    Trusted,
    /// One that is a mark where it stands unescaped.
    Mark,
    /// One that is a mark in any mount.
    ForeignMark,
}

/// One step of a sequence.
#[derive(Clone, Debug)]
pub enum Op {
    Create {
        at: Place,
        mode: u32,
    },
    Mkdir {
        at: Place,
        mode: u32,
    },
    Fifo {
        at: Place,
    },
    /// A device 0:0.
    Device {
        at: Place,
    },
    Symlink {
        at: Place,
        target: u8,
    },
    Link {
        of: Subject,
        at: Place,
    },
    Unlink {
        at: Place,
    },
    Rmdir {
        at: Place,
    },
    Rename {
        from: Place,
        to: Place,
        kind: RenameKind,
    },
    Write {
        to: Subject,
        offset: usize,
        length: usize,
    },
    Resize {
        of: Subject,
        size: usize,
    },
    Punch {
        of: Subject,
        offset: usize,
        length: usize,
    },
    Allocate {
        of: Subject,
        offset: usize,
        length: usize,
    },
    CopyRange {
        from: Subject,
        to: Subject,
        offset: usize,
        length: usize,
    },
    Chmod {
        of: Subject,
        mode: u32,
    },
    Chown {
        of: Subject,
        uid: u32,
        gid: u32,
    },
    Times {
        of: Subject,
        sec: i64,
    },
    SetXattr {
        of: Subject,
        name: X,
        value: u8,
        flags: i32,
    },
    RemoveXattr {
        of: Subject,
        name: X,
    },
    /// Keeps an object open across what follows.
    Hold {
        of: Subject,
    },
    /// Closes the n-th object that is kept open.
    Release {
        which: usize,
    },
    /// Has all copies reach the disk.
    Commit,
    /// Ends the union cleanly and opens it again.
    Remount,
    /// Ends it as a killed process does, and opens it again. `midway`: with what an operation leaves that was under way.
    Crash {
        midway: bool,
    },
    /// Makes upper the top lower, with a new upper on it.
    AddLayer,
}

/// A whole test: layers, and what is done with their union.
#[derive(Clone, Debug)]
pub struct Case {
    /// What upper holds already, left by another program.
    pub upper: Entries,
    /// The lowers, the top one first.
    pub lowers: Vec<Entries>,
    /// Whether the marks of files in lowers count.
    pub trusted: bool,
    /// Whether everything that was looked up stays known, as with a kernel that has memory enough.
    pub remember: bool,
    /// The capacity of the lookup cache.
    pub cache: usize,
    pub ops: Vec<Op>,
}
