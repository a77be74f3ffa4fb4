//! The countdown: the first system call of an operation fails, then the second, until none is left.

use std::collections::BTreeMap;

use layerfs::error::Errno;
use layerfs::layer::whiteout::Whiteouts;
use layerfs::sys::fault::{self, Calls};
use layerfs::union::{Options, Union};

use super::operations::{self, Operation};
use super::seen::{Object, tree};
use crate::fixture::*;

type Tree = BTreeMap<String, Object>;

/// No operation makes this many system calls.
const MOST_CALLS: u64 = 1000;

/// One way of failing.
#[derive(Clone, Copy, Debug)]
struct Failure {
    error: Errno,
    calls: Calls,
    /// Whether the union knows all of its objects already.
    warm: bool,
}

/// The first always, the others with `LAYERFS_TEST_ALL_FAULTS`.
const FAILURES: &[Failure] = &[
    Failure { error: Errno::EIO, calls: Calls::One, warm: false },
    Failure { error: Errno::ENOSPC, calls: Calls::AllFromThere, warm: true },
    Failure { error: Errno::EIO, calls: Calls::One, warm: true },
    Failure { error: Errno::ENOSPC, calls: Calls::One, warm: true },
    Failure { error: Errno::EDQUOT, calls: Calls::One, warm: false },
    Failure { error: Errno::EMFILE, calls: Calls::One, warm: false },
];

/// When nothing works any more, not even a removal: a device that was put at the new name before it and the old one change
/// places stays there, a link in the work directory is counted until the next mount sweeps it, and so does a new object that
/// can't be given to its owner. A metadata copy whose data was to follow shows another time or size until that is tried
/// again; its content is the lower's still.
const CANT_BE_UNDONE: &[&str] = &[
    "rename that leaves a whiteout",
    "link over a whiteout",
    "create for somebody",
    "mkdir for somebody",
    "mknod for somebody",
    "symlink for somebody",
    "write to a metadata copy",
    "empty a metadata copy",
    "shorten a metadata copy",
    "fallocate of a metadata copy",
];

/// An operation with what is seen before it and after it.
struct Case<'l> {
    lowers: &'l Layers,
    operation: Operation,
    whiteouts: Whiteouts,
    before: Tree,
    after: Tree,
}

impl<'l> Case<'l> {
    fn new(lowers: &'l Layers, operation: Operation, whiteouts: Whiteouts) -> Self {
        let layers = operations::over(lowers);
        let view = open(&layers, whiteouts);
        let before = tree(&view).unwrap();
        (operation.1)(&view).unwrap_or_else(|e| panic!("{}: {e} without a fault", operation.0));
        let after = tree(&view).unwrap();
        Self { lowers, operation, whiteouts, before, after }
    }

    /// Lets the `n`-th call fail; whether there is one.
    fn fail(&self, failure: Failure, n: u64) -> Result<bool, String> {
        let layers = operations::over(self.lowers);
        let view = open(&layers, self.whiteouts);
        if failure.warm {
            tree(&view).unwrap();
        }
        fault::arm(n, failure.error, failure.calls);
        let result = (self.operation.1)(&view);
        let hit = fault::disarm();
        let seen = tree(&view).map_err(|e| format!("{result:?}: then the tree can't be read: {e}"))?;
        match result {
            Ok(()) => same(&seen, &self.after)?,
            Err(e) if !tells(e, failure.error) => return Err(format!("it told {e}")),
            Err(_) if seen == self.after => {}
            Err(_) => {
                same(&seen, &self.before)?;
                (self.operation.1)(&view).map_err(|e| format!("tried again: {e}"))?;
                same(&tree(&view).unwrap(), &self.after).map_err(|e| format!("tried again: {e}"))?;
            }
        }
        // The daemon dies here every other time, unless there is something that it can only make good by and by.
        let dies = result.is_err() && failure.calls == Calls::One && !n.is_multiple_of(2);
        if dies {
            drop(view)
        } else {
            view.close()
        }
        let again = open(&layers, self.whiteouts);
        same(&tree(&again).unwrap(), &self.after).map_err(|e| format!("{result:?}, after a remount: {e}"))?;
        let staged = layers.staged();
        again.close();
        if staged.is_empty() { Ok(hit) } else { Err(format!("not swept: {staged:?}")) }
    }

    /// Lets the daemon die before the `n`-th call; whether there is one. What is there then is what was before or what comes
    /// after: names, and what files hold.
    fn die(&self, n: u64) -> Result<bool, String> {
        let layers = operations::over(self.lowers);
        let view = open(&layers, self.whiteouts);
        fault::arm(n, Errno::EIO, Calls::AllFromThere);
        let result = (self.operation.1)(&view);
        let hit = fault::disarm();
        drop(view);
        let again = open(&layers, self.whiteouts);
        let seen = tree(&again).map_err(|e| format!("{result:?}: then the tree can't be read: {e}"))?;
        again.close();
        let seen = contents(&seen);
        if seen == contents(&self.after) || result.is_err() && seen == contents(&self.before) {
            return Ok(hit);
        }
        let names = |all: &BTreeMap<&str, &[u8]>| all.keys().map(|name| name.to_string()).collect::<Vec<_>>();
        Err(format!("{result:?}: {:?}", names(&seen)))
    }

    /// Lets every call fail in turn, and collects what went wrong then.
    fn fail_every_call(&self, failure: Failure, wrong: &mut Vec<String>) {
        // Without LAYERFS_TEST_ALL_FAULTS every third call, not the same for each operation.
        let (start, step) = if thorough() { (0, 1) } else { (self.operation.0.len() as u64 % 3, 3) };
        for n in (start..MOST_CALLS).step_by(step) {
            match self.fail(failure, n) {
                Ok(true) => {}
                Ok(false) => return assert!(n > 0, "{}: no call was counted", self.operation.0),
                Err(_) if failure.calls == Calls::AllFromThere && CANT_BE_UNDONE.contains(&self.operation.0) => {}
                Err(e) => wrong.push(format!("{}, call {n}, {failure:?}: {e}", self.operation.0)),
            }
        }
        panic!("{}: {failure:?} again and again: {}", self.operation.0, wrong.last().unwrap());
    }
}

/// Whether an operation that met one error may tell the other. A mark of a directory that finds no room is EXDEV:
/// ext4 says ENOSPC of one that is too long, and the caller can copy then.
fn tells(told: Errno, met: Errno) -> bool {
    told == met || (told, met) == (Errno::EXDEV, Errno::ENOSPC)
}

fn open(layers: &Layers, whiteouts: Whiteouts) -> View {
    layers.open_with(Options { whiteouts, ..Options::default() })
}

/// What every file holds, by path.
fn contents(tree: &Tree) -> BTreeMap<&str, &[u8]> {
    tree.iter().map(|(path, object)| (path.as_str(), object.content())).collect()
}

fn same(seen: &Tree, expected: &Tree) -> Result<(), String> {
    let all: std::collections::BTreeSet<_> = seen.keys().chain(expected.keys()).collect();
    match all.into_iter().find(|path| seen.get(*path) != expected.get(*path)) {
        None => Ok(()),
        Some(path) => Err(format!("{path}: {} instead of {}", brief(seen.get(path)), brief(expected.get(path)))),
    }
}

fn brief(object: Option<&Object>) -> String {
    object.map_or("nothing".to_owned(), |object| format!("{object:?}").chars().take(400).collect())
}

fn thorough() -> bool {
    std::env::var_os("LAYERFS_TEST_ALL_FAULTS").is_some()
}

fn every_call_fails(operations: &[Operation], whiteouts: Whiteouts, failures: &[Failure]) {
    // Opening a union sets it: the layers of the first one must not differ.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let lowers = operations::lowers();
    let snapshots = || lowers.lowers.iter().map(|lower| snapshot(lower)).collect::<Vec<_>>();
    let unchanged = snapshots();
    let mut wrong = Vec::new();
    for operation in operations {
        let case = Case::new(&lowers, *operation, whiteouts);
        for failure in failures.iter().take(if thorough() { FAILURES.len() } else { 1 }) {
            case.fail_every_call(*failure, &mut wrong);
        }
        assert_eq!(snapshots(), unchanged, "{}: a lower changed", operation.0);
    }
    assert!(wrong.is_empty(), "{} failures were not survived:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn of_a_read() {
    every_call_fails(operations::READS, Whiteouts::Overlay, FAILURES);
}

#[test]
fn of_a_creation() {
    every_call_fails(operations::CREATIONS, Whiteouts::Overlay, FAILURES);
}

#[test]
fn of_a_change() {
    every_call_fails(operations::CHANGES, Whiteouts::Overlay, FAILURES);
}

#[test]
fn of_a_removal() {
    every_call_fails(operations::REMOVALS, Whiteouts::Overlay, FAILURES);
}

#[test]
fn of_a_rename() {
    every_call_fails(operations::RENAMES, Whiteouts::Overlay, FAILURES);
}

#[test]
fn where_whiteouts_are_those_of_aufs() {
    for operations in [operations::CREATIONS, operations::REMOVALS, operations::RENAMES] {
        every_call_fails(operations, Whiteouts::Dot, &FAILURES[..2]);
    }
}

/// With whiteouts that take more than one step; with `LAYERFS_TEST_ALL_FAULTS` the others, too.
#[test]
fn a_death_at_any_call_leaves_what_was_or_what_comes() {
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let lowers = operations::lowers();
    let mut wrong = Vec::new();
    let modes: &[_] = if thorough() { &[Whiteouts::Dot, Whiteouts::Overlay] } else { &[Whiteouts::Dot] };
    for whiteouts in modes.iter().copied() {
        let all = [operations::CREATIONS, operations::REMOVALS, operations::RENAMES].concat();
        // A device that a union on top of this one asks for comes first.
        for operation in all.into_iter().filter(|(name, _)| *name != "rename that leaves a whiteout") {
            let case = Case::new(&lowers, operation, whiteouts);
            let mut n = 0;
            loop {
                match case.die(n) {
                    Ok(false) => break,
                    Ok(true) => {}
                    Err(e) => wrong.push(format!("{whiteouts:?}, {}, call {n}: {e}", operation.0)),
                }
                n += 1;
                assert!(n < MOST_CALLS, "{}: {:?}", operation.0, wrong.last());
            }
        }
    }
    assert!(wrong.is_empty(), "{} deaths were not survived:\n{}", wrong.len(), wrong.join("\n"));
}

/// Of a file with three names in a lower, all are the copy's or all are the lower's, and they are three.
#[test]
fn a_death_at_any_call_leaves_the_names_of_a_file_together() {
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let lowers = operations::lowers();
    let mut wrong = Vec::new();
    for (name, change) in operations::CHANGES.iter().filter(|(name, _)| name.ends_with("with names")) {
        for n in 0.. {
            let layers = operations::over(&lowers);
            let view = open(&layers, Whiteouts::Overlay);
            fault::arm(n, Errno::EIO, Calls::AllFromThere);
            let result = change(&view);
            let hit = fault::disarm();
            drop(view);
            let again = open(&layers, Whiteouts::Overlay);
            let names = ["merged/one", "merged/two", "merged/three"].map(|path| again.stat(path).unwrap());
            let seen = names.map(|attr| (attr.ino, attr.mode, attr.nlink));
            if seen.iter().any(|other| *other != seen[0]) || seen[0].2 != 3 {
                wrong.push(format!("{name}, call {n}, {result:?}: {seen:?}"));
            }
            again.close();
            if !hit {
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{} deaths parted them:\n{}", wrong.len(), wrong.join("\n"));
}

/// Names without room for the other form aside.
#[test]
fn dot_whiteouts_need_no_devices() {
    let complaints = |whiteouts| {
        let mut count = 0;
        for n in 0..MOST_CALLS {
            let layers = Layers::new(1);
            fault::arm(n, Errno::EPERM, Calls::One);
            let opened = Union::open(&layers.spec(), Options { whiteouts, ..Options::default() });
            if !fault::disarm() {
                return count;
            }
            count += usize::from(opened.is_err_and(|e| e.to_string().contains("a character device 0:0")));
        }
        panic!("it opens a union with more than {MOST_CALLS} calls");
    };
    assert_eq!((complaints(Whiteouts::Overlay), complaints(Whiteouts::Dot)), (1, 0));
}
