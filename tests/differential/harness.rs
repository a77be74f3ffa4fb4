//! Runs a case on both sides.

use std::fs;
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::time::{SystemTime, UNIX_EPOCH};

use super::differences::{Answers, Listed};
use super::generators::{Case, Features, Op, Round};
use super::layers::Writer;
use super::perform::{Step, There};
use super::shown::Times;
use super::sides::Side;
use crate::common::files::{make_dir, set_times};
use crate::common::machine::scratch;
use crate::common::tree::Tree;

/// What went wrong, in words.
pub type Checked<T = ()> = Result<T, String>;

/// After how many steps the trees are compared.
const OFTEN: usize = 4;

/// Two unions of the same layers.
pub struct Pair {
    features: Features,
    listed: Listed,
    /// The one that layerfs serves now, and the one that the kernel serves.
    layerfs: Side,
    kernel: Side,
    /// When it began, in seconds.
    start: i64,
    steps: usize,
}

/// Runs a case to its end.
///
/// # Errors
/// The first difference that isn't listed.
pub fn run(case: &Case) -> Checked {
    let directory = scratch();
    let namespace = if case.features.userxattr { "user" } else { "trusted" };
    let lowers: Vec<_> = (0..case.lowers.len()).map(|i| directory.path().join(format!("lower{i}"))).collect();
    for (index, entries) in case.lowers.iter().enumerate() {
        make_dir(&lowers[index]);
        Writer::new(index, &lowers[index], namespace, index + 1 == lowers.len()).layer(entries);
        set_times(&lowers[index], (1, 0), (index as i64, 0));
    }
    let before: Vec<Tree> = lowers.iter().map(|lower| Tree::of(lower)).collect();
    let mut pair = Pair {
        features: case.features,
        listed: Listed::new(case.features),
        layerfs: Side::new(directory.path().join("one"), &lowers),
        kernel: Side::new(directory.path().join("two"), &lowers),
        start: now() - 1,
        steps: 0,
    };
    let result = pair.rounds(&case.rounds);
    pair.umount();
    result?;
    for (lower, before) in lowers.iter().zip(before) {
        // Reading may set times of access, and those only.
        before.assert_same(&Tree::of(lower), &format!("{} has changed", lower.display()));
    }
    Ok(())
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

impl Pair {
    fn rounds(&mut self, rounds: &[Round]) -> Checked {
        self.mount()?;
        for (number, round) in rounds.iter().enumerate() {
            let place = format!("round {number}");
            self.compare().map_err(|e| format!("{place}, before the first step: {e}"))?;
            for (step, op) in round.ops.iter().enumerate() {
                self.step(op).map_err(|e| format!("{place}, step {step}, {op:?}: {e}"))?;
            }
            self.swap(round.seal).map_err(|e| format!("{place}, after the swap: {e}"))?;
        }
        Ok(())
    }

    fn mount(&mut self) -> Checked {
        self.layerfs.mount_layerfs(self.features);
        self.kernel.mount_kernel(self.features)
    }

    fn umount(&mut self) {
        self.layerfs.umount();
        self.kernel.umount();
    }

    fn compare(&mut self) -> Checked {
        self.layerfs.shown().compare(&self.kernel.shown(), Times::PresentSince(self.start), &mut self.listed)
    }

    fn step(&mut self, op: &Op) -> Checked {
        self.steps += 1;
        if matches!(op, Op::Remount) {
            self.umount();
            self.mount()?;
        } else {
            let there = There::of(&self.kernel)?;
            let step = Step { there: &there, op: *op, number: self.steps };
            let (ours, theirs) = (step.perform(&mut self.layerfs), step.perform(&mut self.kernel));
            if ours != theirs {
                if !self.listed.has_answers(&Answers { op, layerfs: &ours, kernel: &theirs }) {
                    return Err(format!("layerfs answers {ours:?}, the kernel {theirs:?}"));
                }
                self.part_with(op);
            }
        }
        if self.steps.is_multiple_of(OFTEN) { self.compare() } else { Ok(()) }
    }

    /// Closes an open file that is no longer the same on both sides.
    fn part_with(&mut self, op: &Op) {
        for side in [&mut self.layerfs, &mut self.kernel] {
            if let (Op::Held { which, .. }, count @ 1..) = (op, side.held.len()) {
                drop(side.held.swap_remove(which % count));
            }
        }
    }

    /// Each mounts what the other had, and shows the same; perhaps under a new upper.
    fn swap(&mut self, seal: bool) -> Checked {
        if seal {
            self.cover_links()?;
        }
        self.compare().map_err(|e| format!("just before: {e}"))?;
        let (by_layerfs, by_kernel) = (self.layerfs.shown(), self.kernel.shown());
        self.umount();
        if seal {
            self.layerfs.seal();
            self.kernel.seal();
        }
        mem::swap(&mut self.layerfs, &mut self.kernel);
        self.mount()?;
        let (sealed, times) = if seal { (" as a lower", Times::Sealed) } else { ("", Times::Exact) };
        by_layerfs
            .compare(&self.kernel.shown(), times, &mut self.listed)
            .map_err(|e| format!("what layerfs left{sealed}: {e}"))?;
        self.layerfs
            .shown()
            .compare(&by_kernel, times, &mut self.listed)
            .map_err(|e| format!("what the kernel left{sealed}: {e}"))?;
        self.compare()
    }

    /// Brings every file into upper: without the index, names of copied files that are left out would be files of their own.
    fn cover_links(&mut self) -> Checked {
        let there = There::of(&self.kernel)?;
        for side in [&self.layerfs, &self.kernel] {
            for path in there.files() {
                let path = side.point().join(path);
                let found = fs::symlink_metadata(&path).map_err(|e| format!("{}: {path:?}: {e}", side.name))?;
                set_times(&path, (found.atime(), found.atime_nsec()), (found.mtime(), found.mtime_nsec()));
            }
        }
        Ok(())
    }
}
