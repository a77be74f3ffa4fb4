//! Sequences that failed once, each under the name of what was wrong.

use super::generators::Op::*;
use super::generators::Place::{Existing, In};
use super::generators::Subject::{Dir, File};
use super::generators::{Case, Op};
use super::harness::run;
use super::layers::N::{A, B};
use super::layers::{Entries, Node, Opaque, PLAIN_META};
use super::reference::RenameKind;

/// The sequence on lowers alone, with and without a cache, with and without a memory.
fn holds(lowers: &[Entries], ops: &[Op]) {
    for (remember, cache) in [(false, 0), (true, 0), (false, 1000), (true, 1000)] {
        let case = Case { upper: Vec::new(), lowers: lowers.to_vec(), remember, cache, ops: ops.to_vec() };
        run(&case).unwrap_or_else(|e| panic!("remember {remember}, cache {cache}: {e}"));
    }
}

fn file() -> Node {
    Node::File(PLAIN_META, 10)
}

fn dir(entries: Entries) -> Node {
    Node::Dir(PLAIN_META, Opaque::No, entries)
}

/// No failure, but the shortest way through every part of the harness.
#[test]
fn a_sequence_of_everything() {
    let lowers = [vec![(A, dir(vec![(A, file()), (B, file())]))], vec![(A, dir(vec![(B, dir(vec![]))])), (B, file())]];
    let ops = [
        Hold { of: File(0) },
        Rename { from: Existing(0), to: In(Dir(0), B), kind: RenameKind::Exchange },
        Write { to: File(0), offset: 5, length: 20 },
        Unlink { at: Existing(0) },
        Remount,
        Release { which: 0 },
    ];
    holds(&lowers, &ops);
}
