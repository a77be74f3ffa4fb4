//! Sequences that failed once, each under the name of what was wrong.

use super::generators::Op::*;
use super::generators::Place::{Existing, In};
use super::generators::Subject::{Dir, File};
use super::generators::{Case, Op};
use super::harness::run;
use super::layers::N::{A, B, C};
use super::layers::{Entries, Meta, Node, Opaque, PLAIN_META, Whiteout};
use super::reference::RenameKind;

/// The sequence with and without a cache, with and without a memory.
fn holds(upper: Entries, lowers: Vec<Entries>, ops: &[Op]) {
    for (remember, cache) in [(false, 0), (true, 0), (false, 1000), (true, 1000)] {
        let case = Case { upper: upper.clone(), lowers: lowers.clone(), remember, cache, ops: ops.to_vec() };
        run(&case).unwrap_or_else(|e| panic!("remember {remember}, cache {cache}: {e}"));
    }
}

fn file() -> Node {
    Node::File(PLAIN_META, 10)
}

fn dir(entries: Entries) -> Node {
    Node::Dir(Meta { mode: 0o755, ..PLAIN_META }, Opaque::No, entries)
}

/// No failure, but the shortest way through every part of the harness.
#[test]
fn a_sequence_of_everything() {
    let lowers =
        vec![vec![(A, dir(vec![(A, file()), (B, file())]))], vec![(A, dir(vec![(B, dir(vec![]))])), (B, file())]];
    let ops = [
        Hold { of: File(0) },
        Rename { from: Existing(0), to: In(Dir(0), B), kind: RenameKind::Exchange },
        Write { to: File(0), offset: 5, length: 20 },
        Unlink { at: Existing(0) },
        Remount,
        Release { which: 0 },
    ];
    holds(vec![], lowers, &ops);
}

#[test]
fn a_link_of_a_copied_file_had_a_number_of_its_own() {
    let lowers = vec![vec![(A, dir(vec![(A, file())]))]];
    holds(vec![], lowers, &[Link { of: File(0), at: In(Dir(0), B) }, Remount]);
}

#[test]
fn a_copy_was_lost_with_the_first_name_of_its_lower_file() {
    let lowers = vec![vec![(A, dir(vec![(A, file())])), (B, dir(vec![(A, Node::Link(0))]))]];
    let ops = [
        Chmod { of: File(0), mode: 0o600 },
        Unlink { at: Existing(2) },
        Chmod { of: File(0), mode: 0o640 },
        Remount,
        Write { to: File(0), offset: 0, length: 3 },
    ];
    holds(vec![], lowers, &ops);
}

#[test]
fn an_xattr_whiteout_was_moved_where_it_is_an_empty_file() {
    let upper = vec![(B, dir(vec![(A, Node::Whiteout(Whiteout::Trusted))]))];
    let ops = [Rename { from: Existing(1), to: In(Dir(1), A), kind: RenameKind::Plain }, Remount];
    holds(upper, vec![vec![(C, dir(vec![]))]], &ops);
}

#[test]
fn a_directory_that_became_opaque_showed_its_xattr_whiteouts() {
    let upper = vec![(B, dir(vec![(A, Node::Whiteout(Whiteout::Trusted))]))];
    let ops =
        [Unlink { at: Existing(1) }, Rename { from: Existing(0), to: In(Dir(0), C), kind: RenameKind::Plain }, Remount];
    holds(upper, vec![vec![(C, file())]], &ops);
}
