//! Sequences that failed once, each under the name of what was wrong.

use super::case::Op::*;
use super::case::Place::{Existing, In};
use super::case::Subject::{Any, Dir, File};
use super::case::{Case, Op};
use super::harness::run;
use super::layers::N::{A, B, C, D};
use super::layers::{Below, Entries, Meta, Node, Opaque, PLAIN_META, Way, Whiteout};
use super::reference::RenameKind;

/// The sequence with and without a cache, with and without a memory.
fn holds(upper: Entries, lowers: Vec<Entries>, ops: &[Op]) {
    holds_with(false, upper, lowers, ops);
}

/// As [`holds`], where the marks of files in lowers count.
fn holds_trusted(upper: Entries, lowers: Vec<Entries>, ops: &[Op]) {
    holds_with(true, upper, lowers, ops);
}

fn holds_with(trusted: bool, upper: Entries, lowers: Vec<Entries>, ops: &[Op]) {
    for (remember, cache) in [(false, 0), (true, 0), (false, 1000), (true, 1000)] {
        let (upper, lowers, ops) = (upper.clone(), lowers.clone(), ops.to_vec());
        let case = Case { upper, lowers, trusted, remember, cache, ops };
        run(&case).unwrap_or_else(|e| panic!("remember {remember}, cache {cache}: {e}"));
    }
}

fn file() -> Node {
    Node::File(PLAIN_META, 10)
}

fn dir(entries: Entries) -> Node {
    Node::Dir(Meta { mode: 0o755, ..PLAIN_META }, Below::Shows, entries)
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
        Device { at: In(Dir(0), C) },
        Crash { midway: true },
        AddLayer,
        Rename { from: Existing(0), to: In(Dir(0), A), kind: RenameKind::Whiteout },
        Release { which: 0 },
    ];
    holds(vec![], lowers.clone(), &ops);
    holds_trusted(vec![], lowers, &ops);
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

#[test]
fn a_device_of_a_trusted_layer_was_listed_and_copied_as_a_file() {
    let ops = [Chmod { of: Any(2), mode: 0o600 }, Remount];
    holds_trusted(vec![], vec![vec![(A, dir(vec![(A, Node::NullDevice)]))]], &ops);
}

#[test]
fn a_device_at_a_new_name_was_listed_as_a_file() {
    let ops = [
        Mkdir { at: In(Dir(0), A), mode: 0o755 },
        Device { at: In(Dir(0), B) },
        Link { of: Any(2), at: In(Dir(1), A) },
        Rename { from: Existing(1), to: In(Dir(1), B), kind: RenameKind::Plain },
        Remount,
    ];
    holds(vec![], vec![vec![(C, file())]], &ops);
}

#[test]
fn a_metadata_copy_in_a_trusted_layer_lost_its_data_at_copy_up() {
    let lowers = vec![vec![(A, dir(vec![(A, Node::Metacopy(PLAIN_META, None))]))], vec![(A, dir(vec![(A, file())]))]];
    holds_trusted(vec![], lowers, &[Chmod { of: File(0), mode: 0o600 }, Remount]);
}

#[test]
fn a_redirect_of_a_lower_was_ignored_where_no_layer_below_has_its_directory() {
    let moved = |way, entries| Node::Dir(Meta { mode: 0o755, ..PLAIN_META }, Below::Moved(way), entries);
    let lowers = vec![vec![(A, dir(vec![(A, moved(Way::Path(vec![B]), vec![]))]))], vec![(B, dir(vec![(A, file())]))]];
    holds(vec![], lowers, &[Chmod { of: File(0), mode: 0o600 }, Remount]);
}

#[test]
fn a_layer_in_which_a_directory_was_moved_showed_it_empty() {
    let lowers = vec![vec![(B, dir(vec![(A, dir(vec![(B, file())]))]))]];
    let ops = [
        Mkdir { at: In(Dir(0), A), mode: 0o755 },
        Rename { from: Existing(2), to: In(Dir(1), A), kind: RenameKind::Plain },
        AddLayer,
    ];
    holds(vec![], lowers, &ops);
}

#[test]
fn a_directory_was_exchanged_to_where_a_dot_whiteout_hides_what_is_below() {
    let hidden = Node::Dir(Meta { mode: 0o755, ..PLAIN_META }, Below::Hidden(Opaque::Beside), vec![(A, file())]);
    let lowers = vec![vec![(A, dir(vec![(B, file())])), (D, dir(vec![(C, file())]))]];
    let ops = [Rename { from: Existing(0), to: Existing(1), kind: RenameKind::Exchange }, Remount];
    holds(vec![(D, hidden)], lowers, &ops);
}

#[test]
fn the_data_of_a_moved_metadata_copy_was_looked_for_beside_it_and_not_where_it_was() {
    let metacopy = |way| Node::Metacopy(PLAIN_META, way);
    let upper = vec![(A, metacopy(Some(Way::Path(vec![B, C])))), (B, dir(vec![(C, Node::Whiteout(Whiteout::Device))]))];
    let lowers = vec![
        vec![(B, dir(vec![(C, metacopy(None))]))],
        vec![(B, dir(vec![(C, file())])), (C, Node::File(PLAIN_META, 11))],
    ];
    holds_trusted(upper, lowers, &[Chmod { of: File(0), mode: 0o600 }, Remount]);
}
