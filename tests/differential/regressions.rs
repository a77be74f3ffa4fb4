//! Sequences that failed once, each under the name of what was wrong.

use std::os::unix::fs::FileExt;

use super::generators::N::{A, B};
use super::generators::Op::*;
use super::generators::Place::In;
use super::generators::Subject::File;
use super::generators::{Case, Features, Op, Round, Who};
use super::harness::run;
use super::layers::{Entries, Meta, Node};
use super::sequences::EVERYTHING;
use crate::common::Test;
use crate::common::files::{append, create_new, edit, mark, marked, put};
use crate::common::sys::SharedMap;
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(a_metadata_copy_with_other_names_below).root(),
        t!(a_metadata_copy_in_a_lower_is_copied_up).root(),
        t!(sticky_files_are_made).root(),
        t!(root_writes_to_a_file_with_capabilities).root(),
        t!(a_completed_metadata_copy_keeps_its_capabilities).root(),
        t!(capabilities_outlive_pages_written_back).root(),
        t!(an_empty_metadata_copy_is_written).root(),
        t!(a_file_is_truncated_to_its_size).root(),
    ]
}

fn holds(features: Features, lowers: Vec<Entries>, rounds: &[(&[Op], bool)]) {
    let rounds = rounds.iter().map(|(ops, seal)| Round { ops: ops.to_vec(), seal: *seal }).collect();
    run(&Case { features, lowers, rounds }).unwrap_or_else(|e| panic!("{e}"));
}

const CAPABILITY: &str = "security.capability";
/// `cap_net_raw=ep`, as setcap(8) stores it.
const CAPABILITIES: &str = "\u{1}\0\0\u{2}\0\u{20}\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

const META: Meta = Meta { mode: 0o644, owner: 0, mtime: 0, xattr: false };

fn file() -> Node {
    Node::File(META, 10)
}

fn dir(entries: Entries) -> Node {
    Node::Dir(Meta { mode: 0o755, ..META }, false, entries)
}

/// A name that was not copied up found the copy by the index, and not that the copy has no data.
fn a_metadata_copy_with_other_names_below() {
    let lower = vec![(A, dir(vec![(A, file())])), (B, Node::Link(0))];
    holds(EVERYTHING, vec![lower], &[(&[Times { of: File(1), sec: 0 }], false)]);
}

/// The copy got the data of the lower's own, empty, object.
fn a_metadata_copy_in_a_lower_is_copied_up() {
    let touch = Times { of: File(0), sec: 5 };
    holds(EVERYTHING, vec![vec![(A, file())]], &[(&[touch], true), (&[touch], false)]);
    holds(EVERYTHING, vec![vec![(A, file())]], &[(&[], false), (&[touch], true), (&[touch], false)]);
}

/// open(2) with O_CREAT lost the sticky bit.
fn sticky_files_are_made() {
    let make = Open { at: In(0, A), how: super::generators::How::Exclusive, mode: 0o1777, who: Who::Root };
    holds(EVERYTHING, vec![vec![]], &[(&[make], false)]);
}

/// The kernel asks to drop the capabilities, and the set-user-id bit went with them.
fn root_writes_to_a_file_with_capabilities() {
    let set = SetXattr { of: File(0), name: super::generators::X::Capability, value: 0, flags: 0, who: Who::Root };
    let write = Write { to: File(0), offset: 3, length: 3, who: Who::Root };
    let lower = vec![(A, Node::File(Meta { mode: 0o4755, ..META }, 10))];
    holds(EVERYTHING, vec![lower], &[(&[set, write], false)]);
}

/// A metadata copy without data kept its mark when it got some.
fn an_empty_metadata_copy_is_written() {
    let lower = vec![(A, dir(vec![(A, Node::File(META, 0))]))];
    let write = Write { to: File(0), offset: 0, length: 1, who: Who::Root };
    let touch = Times { of: File(0), sec: 5 };
    holds(EVERYTHING, vec![lower], &[(&[touch], false), (&[write], false)]);
}

/// It took until a remount to show the time that was set.
fn a_file_is_truncated_to_its_size() {
    let times = Times { of: File(0), sec: 5 };
    let truncate = Resize { of: File(0), size: 10, who: Who::Root };
    holds(EVERYTHING, vec![vec![(A, file())]], &[(&[times, truncate], false)]);
}

/// The data that came took the capabilities off.
fn a_completed_metadata_copy_keeps_its_capabilities() {
    let set = SetXattr { of: File(0), name: super::generators::X::Capability, value: 0, flags: 0, who: Who::Root };
    let link = Link { of: File(0), at: In(0, B), who: Who::Root };
    let hold = Hold { of: File(0), writable: true };
    for op in [link, hold] {
        holds(EVERYTHING, vec![vec![(A, file())]], &[(&[set], false), (&[op], false)]);
    }
}

/// Pages that were written back after it took the capabilities off again.
fn capabilities_outlive_pages_written_back() {
    let union = &mut Union::new(1);
    put(union.lower(0, "mapped"), "mapped");
    mark(union.lower(0, "mapped"), CAPABILITY, CAPABILITIES);
    union.mount();
    let written = create_new(union.at("written"), 0o755);
    written.write_all_at(b"written", 0).expect("write");
    mark(union.at("written"), CAPABILITY, CAPABILITIES);
    written.sync_all().expect("fsync");
    let mapped = edit(union.at("mapped"));
    let map = SharedMap::new(&mapped, 6, true).expect("mmap");
    map.write(0, b"M");
    map.sync().expect("msync");
    drop((written, mapped, map));
    for name in ["written", "mapped"] {
        assert!(marked(union.at(name), CAPABILITY).is_some(), "{name}");
    }
    append(union.at("written"), "more");
    assert_eq!(marked(union.at("written"), CAPABILITY), None, "a write takes them off");
    union.assert_lasting();
}
