//! Random layers and operations.

use proptest::collection::vec;
use proptest::prelude::*;

use super::case::{Case, Op, Place, Subject, X};
use super::layers::{Below, Entries, Meta, N, Node, Opaque, Way, Whiteout};
use super::reference::RenameKind;

/// Random cases with up to `length` operations.
pub fn case(length: usize) -> impl Strategy<Value = Case> {
    let upper = prop_oneof![3 => Just(Entries::new()), 1 => layer()];
    let cache = prop_oneof![Just(0), Just(5), Just(10_000)];
    (upper, vec(layer(), 1..4), any::<(bool, bool)>(), cache, vec(op(), 1..length)).prop_map(
        |(upper, lowers, (trusted, remember), cache, ops)| Case { upper, lowers, trusted, remember, cache, ops },
    )
}

fn layer() -> impl Strategy<Value = Entries> {
    vec((name(), node()), 0..5)
}

fn name() -> impl Strategy<Value = N> {
    prop::sample::select(vec![N::A, N::B, N::C, N::D])
}

fn mode() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![0o644, 0o755, 0o600, 0o750, 0o777])
}

fn owner() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![0, 1000, 65534])
}

fn seconds() -> impl Strategy<Value = i64> {
    prop::sample::select(vec![0, 1, 1_000_000_000, -1, -1_000_000, 4_000_000_000])
}

fn meta() -> impl Strategy<Value = Meta> {
    (mode(), owner(), seconds(), any::<bool>()).prop_map(|(mode, owner, mtime, xattr)| Meta {
        mode,
        owner,
        mtime,
        xattr,
    })
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![2 => name().prop_map(Way::Sibling), 3 => vec(name(), 1..3).prop_map(Way::Path)]
}

fn below() -> impl Strategy<Value = Below> {
    let forms = [Opaque::Trusted, Opaque::User, Opaque::FuseOverlayfs, Opaque::DotFile, Opaque::Beside];
    prop_oneof![
        7 => Just(Below::Shows),
        3 => prop::sample::select(forms.to_vec()).prop_map(Below::Hidden),
        2 => way().prop_map(Below::Moved),
    ]
}

fn whiteout() -> impl Strategy<Value = Whiteout> {
    prop::sample::select(vec![Whiteout::Device, Whiteout::DotFile, Whiteout::Trusted, Whiteout::User])
}

fn node() -> impl Strategy<Value = Node> {
    let length = || prop_oneof![4 => 0..40_usize, 1 => 0..10_000_usize];
    let leaf = prop_oneof![
        6 => (meta(), length()).prop_map(|(meta, length)| Node::File(meta, length)),
        1 => (meta(), length()).prop_map(|(meta, length)| Node::Copy(meta, length)),
        2 => (meta(), prop::option::of(way())).prop_map(|(meta, way)| Node::Metacopy(meta, way)),
        2 => (0..8_usize).prop_map(Node::Link),
        1 => any::<u8>().prop_map(Node::Symlink),
        1 => Just(Node::Fifo),
        1 => Just(Node::NullDevice),
        3 => whiteout().prop_map(Node::Whiteout),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        (meta(), below(), vec((name(), inner), 0..5)).prop_map(|(meta, below, inner)| Node::Dir(meta, below, inner))
    })
}

fn subject() -> impl Strategy<Value = Subject> {
    prop_oneof![
        2 => (0..64_usize).prop_map(Subject::Any),
        3 => (0..64_usize).prop_map(Subject::File),
        1 => (0..64_usize).prop_map(Subject::Dir),
        3 => (0..64_usize).prop_map(Subject::Held),
    ]
}

fn directory() -> impl Strategy<Value = Subject> {
    prop_oneof![
        20 => (0..64_usize).prop_map(Subject::Dir),
        1 => (0..64_usize).prop_map(Subject::Any),
        1 => (0..64_usize).prop_map(Subject::Held),
    ]
}

fn free_place() -> impl Strategy<Value = Place> {
    prop_oneof![
        8 => (directory(), name()).prop_map(|(dir, name)| Place::In(dir, name)),
        1 => (0..64_usize).prop_map(Place::Existing),
    ]
}

fn taken_place() -> impl Strategy<Value = Place> {
    prop_oneof![
        1 => (directory(), name()).prop_map(|(dir, name)| Place::In(dir, name)),
        8 => (0..64_usize).prop_map(Place::Existing),
    ]
}

fn xattr() -> impl Strategy<Value = X> {
    prop::sample::select(vec![X::A, X::B, X::Trusted, X::Mark, X::ForeignMark])
}

fn extent() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0..50_usize, 1 => 0..20_000_usize]
}

fn names_op() -> impl Strategy<Value = Op> {
    let kinds = vec![RenameKind::NoReplace, RenameKind::Exchange, RenameKind::Whiteout];
    let kind = prop_oneof![2 => Just(RenameKind::Plain), 1 => prop::sample::select(kinds)];
    let place = prop_oneof![free_place(), taken_place()];
    prop_oneof![
        3 => (free_place(), mode()).prop_map(|(at, mode)| Op::Create { at, mode }),
        3 => (free_place(), mode()).prop_map(|(at, mode)| Op::Mkdir { at, mode }),
        1 => free_place().prop_map(|at| Op::Fifo { at }),
        1 => free_place().prop_map(|at| Op::Device { at }),
        1 => (free_place(), any::<u8>()).prop_map(|(at, target)| Op::Symlink { at, target }),
        3 => (subject(), free_place()).prop_map(|(of, at)| Op::Link { of, at }),
        4 => taken_place().prop_map(|at| Op::Unlink { at }),
        3 => taken_place().prop_map(|at| Op::Rmdir { at }),
        8 => (taken_place(), place, kind).prop_map(|(from, to, kind)| Op::Rename { from, to, kind }),
    ]
}

fn content_op() -> impl Strategy<Value = Op> {
    let flags = prop::sample::select(vec![0, nix::libc::XATTR_CREATE, nix::libc::XATTR_REPLACE]);
    let flags = prop_oneof![3 => Just(0), 1 => flags];
    prop_oneof![
        3 => (subject(), extent(), 1..50_usize).prop_map(|(to, offset, length)| Op::Write { to, offset, length }),
        2 => (subject(), extent()).prop_map(|(of, size)| Op::Resize { of, size }),
        1 => (subject(), extent(), 1..100_usize).prop_map(|(of, offset, length)| Op::Punch { of, offset, length }),
        1 => (subject(), extent(), 1..100_usize).prop_map(|(of, offset, length)| Op::Allocate { of, offset, length }),
        1 => (subject(), subject(), extent(), 1..100_usize)
            .prop_map(|(from, to, offset, length)| Op::CopyRange { from, to, offset, length }),
        2 => (subject(), mode()).prop_map(|(of, mode)| Op::Chmod { of, mode }),
        1 => (subject(), owner(), owner()).prop_map(|(of, uid, gid)| Op::Chown { of, uid, gid }),
        2 => (subject(), seconds()).prop_map(|(of, sec)| Op::Times { of, sec }),
        2 => (subject(), xattr(), any::<u8>(), flags)
            .prop_map(|(of, name, value, flags)| Op::SetXattr { of, name, value, flags }),
        1 => (subject(), xattr()).prop_map(|(of, name)| Op::RemoveXattr { of, name }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => names_op(),
        14 => content_op(),
        4 => subject().prop_map(|of| Op::Hold { of }),
        2 => (0..8_usize).prop_map(|which| Op::Release { which }),
        1 => Just(Op::Commit),
        1 => Just(Op::Remount),
        1 => any::<bool>().prop_map(|midway| Op::Crash { midway }),
        1 => Just(Op::AddLayer),
    ]
}
