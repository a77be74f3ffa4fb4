//! Random layers, options and operations. Operations name their targets by an index modulo what is there, so that they
//! keep a meaning whatever came before, and while a failure shrinks.

use proptest::collection::vec;
use proptest::prelude::*;

use super::layers::{Entries, Meta, Node};

/// A name; there are few, so that they collide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum N {
    A,
    B,
    C,
    D,
}

impl N {
    pub fn text(self) -> &'static str {
        ["a", "b", "c", "d"][self as usize]
    }
}

/// Something that is there: the n-th of its kind, by path.
#[derive(Clone, Copy, Debug)]
pub enum Subject {
    Dir(usize),
    File(usize),
    Any(usize),
}

/// A name in a directory, taken or not.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// A name in the n-th directory.
    In(usize, N),
    /// A name in what need not be a directory: through a symlink, below a file.
    Under(usize, N),
    /// A name in the n-th object that is kept open.
    InHeld(usize, N),
    /// The n-th name that is there.
    Existing(usize),
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Root,
    /// An ordinary user.
    User,
}

/// The ways to open a name.
#[derive(Clone, Copy, Debug)]
pub enum How {
    Exclusive,
    Create,
    CreateTruncate,
    Truncate,
    Read,
    Write,
}

#[derive(Clone, Copy, Debug)]
pub enum Special {
    Fifo,
    Socket,
    Device,
}

#[derive(Clone, Copy, Debug)]
pub enum Moved {
    Plain,
    NoReplace,
    Exchange,
}

/// What fallocate(2) does.
#[derive(Clone, Copy, Debug)]
pub enum Space {
    Punch,
    Zero,
    Extend,
}

/// The names of extended attributes.
#[derive(Clone, Copy, Debug)]
pub enum X {
    /// The one that lower objects may have.
    A,
    B,
    Trusted,
    /// Marks, where they stand unescaped.
    TrustedMark,
    UserMark,
    UserOpaque,
    Capability,
}

/// What is done with an object that is kept open.
#[derive(Clone, Copy, Debug)]
pub enum Open {
    Stat,
    Read,
    Write(usize, usize),
    Resize(usize),
    Chmod(u32),
    SetXattr(u8),
    List,
    Sync,
}

/// One step of a sequence.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    Open {
        at: Place,
        how: How,
        mode: u32,
        who: Who,
    },
    Mkdir {
        at: Place,
        mode: u32,
        who: Who,
    },
    Special {
        at: Place,
        kind: Special,
        mode: u32,
    },
    Symlink {
        at: Place,
        target: usize,
    },
    Link {
        of: Subject,
        at: Place,
        who: Who,
    },
    Unlink {
        at: Place,
        who: Who,
    },
    Rmdir {
        at: Place,
        who: Who,
    },
    Rename {
        from: Place,
        to: Place,
        kind: Moved,
        who: Who,
    },
    Write {
        to: Subject,
        offset: usize,
        length: usize,
        who: Who,
    },
    Append {
        to: Subject,
        length: usize,
    },
    MapWrite {
        to: Subject,
        offset: usize,
    },
    Resize {
        of: Subject,
        size: usize,
        who: Who,
    },
    Allocate {
        of: Subject,
        space: Space,
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
        who: Who,
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
        who: Who,
    },
    RemoveXattr {
        of: Subject,
        name: X,
    },
    /// Sets an access ACL, or the default one of a directory.
    Acl {
        of: Subject,
        default: bool,
        bits: u16,
    },
    /// Keeps an object open across what follows.
    Hold {
        of: Subject,
        writable: bool,
    },
    Held {
        which: usize,
        action: Open,
    },
    Release {
        which: usize,
    },
    Remount,
}

/// How both are mounted.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// Marks in `user.overlay.*`; the kernel then has neither redirects nor metadata copies.
    pub userxattr: bool,
    pub redirect_dir: bool,
    /// The kernel's alone.
    pub metacopy: bool,
    /// The kernel's alone: layerfs always keeps hard links.
    pub index: bool,
}

/// What is done between two swaps.
#[derive(Clone, Debug)]
pub struct Round {
    pub ops: Vec<Op>,
    /// Whether the upper then becomes the top lower of a new, empty one.
    pub seal: bool,
}

/// A whole test: layers, and what is done with both unions of them.
#[derive(Clone, Debug)]
pub struct Case {
    pub features: Features,
    /// The lowers, the top one first.
    pub lowers: Vec<Entries>,
    pub rounds: Vec<Round>,
}

/// Random cases with these features and up to `length` operations a round.
pub fn case(features: Features, length: usize) -> impl Strategy<Value = Case> {
    // Without an index the kernel's overlay parts the names of a lower file.
    let links = features.index;
    // In a lower, too, a renamed directory is followed only where redirects are on.
    let seals = features.redirect_dir && features.index;
    let op = move || op().prop_map(move |op| fit(op, features));
    let round = (vec(op(), 1..length), prop::bool::weighted(if seals { 0.2 } else { 0.0 }))
        .prop_map(|(ops, seal)| Round { ops, seal });
    (vec(layer(links), 1..4), vec(round, 1..4)).prop_map(move |(lowers, rounds)| Case { features, lowers, rounds })
}

/// Leaves out what means something else with these features.
fn fit(op: Op, features: Features) -> Op {
    match op {
        // layerfs escapes opaque marks of both namespaces, since it reads both; the kernel only its own.
        Op::SetXattr { of, name: X::UserOpaque, value, flags, who } if !features.userxattr => {
            Op::SetXattr { of, name: X::UserMark, value, flags, who }
        }
        Op::SetXattr { of, name: X::TrustedMark, value, flags, who } if features.userxattr => {
            Op::SetXattr { of, name: X::UserMark, value, flags, who }
        }
        op => op,
    }
}

fn layer(links: bool) -> impl Strategy<Value = Entries> {
    vec((name(), node(links)), 0..5)
}

fn name() -> impl Strategy<Value = N> {
    prop::sample::select(vec![N::A, N::B, N::C, N::D])
}

fn mode() -> impl Strategy<Value = u32> {
    prop_oneof![
        6 => prop::sample::select(vec![0o644, 0o755, 0o600, 0o750, 0o777]),
        1 => prop::sample::select(vec![0o4755, 0o2755, 0o2777, 0o1777, 0o2644, 0o000]),
    ]
}

fn who() -> impl Strategy<Value = Who> {
    prop_oneof![4 => Just(Who::Root), 1 => Just(Who::User)]
}

fn owner() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![0, 0, 1000, 65534])
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

fn node(links: bool) -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        6 => (meta(), prop_oneof![4 => 0..40_usize, 1 => 0..10_000_usize]).prop_map(|(m, length)| Node::File(m, length)),
        2 => (0..8_usize).prop_map(move |which| if links { Node::Link(which) } else { Node::Symlink(which) }),
        1 => (0..8_usize).prop_map(Node::Symlink),
        1 => Just(Node::Fifo),
        1 => Just(Node::Device),
        3 => any::<bool>().prop_map(Node::Whiteout),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        let opaque = prop::bool::weighted(0.3);
        (meta(), opaque, vec((name(), inner), 0..5)).prop_map(|(meta, opaque, inner)| Node::Dir(meta, opaque, inner))
    })
}

fn subject() -> impl Strategy<Value = Subject> {
    prop_oneof![
        2 => (0..64_usize).prop_map(Subject::Any),
        4 => (0..64_usize).prop_map(Subject::File),
        1 => (0..64_usize).prop_map(Subject::Dir),
    ]
}

fn free_place() -> impl Strategy<Value = Place> {
    prop_oneof![
        20 => (0..64_usize, name()).prop_map(|(dir, name)| Place::In(dir, name)),
        1 => (0..64_usize, name()).prop_map(|(any, name)| Place::Under(any, name)),
        2 => (0..64_usize, name()).prop_map(|(held, name)| Place::InHeld(held, name)),
        2 => (0..64_usize).prop_map(Place::Existing),
    ]
}

fn taken_place() -> impl Strategy<Value = Place> {
    prop_oneof![
        1 => free_place(),
        8 => (0..64_usize).prop_map(Place::Existing),
    ]
}

fn xattr() -> impl Strategy<Value = X> {
    prop::sample::select(vec![
        X::A,
        X::A,
        X::B,
        X::B,
        X::Trusted,
        X::TrustedMark,
        X::UserMark,
        X::UserOpaque,
        X::Capability,
    ])
}

fn extent() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0..50_usize, 1 => 0..20_000_usize]
}

fn names_op() -> impl Strategy<Value = Op> {
    let how = prop::sample::select(vec![
        How::Exclusive,
        How::Create,
        How::CreateTruncate,
        How::Truncate,
        How::Read,
        How::Write,
    ]);
    let special = prop::sample::select(vec![Special::Fifo, Special::Socket, Special::Device]);
    let kind = prop_oneof![4 => Just(Moved::Plain), 1 => Just(Moved::NoReplace), 2 => Just(Moved::Exchange)];
    let place = prop_oneof![free_place(), taken_place()];
    prop_oneof![
        4 => (free_place(), how, mode(), who()).prop_map(|(at, how, mode, who)| Op::Open { at, how, mode, who }),
        4 => (free_place(), mode(), who()).prop_map(|(at, mode, who)| Op::Mkdir { at, mode, who }),
        1 => (free_place(), special, mode()).prop_map(|(at, kind, mode)| Op::Special { at, kind, mode }),
        1 => (free_place(), 0..8_usize).prop_map(|(at, target)| Op::Symlink { at, target }),
        3 => (subject(), free_place(), who()).prop_map(|(of, at, who)| Op::Link { of, at, who }),
        4 => (taken_place(), who()).prop_map(|(at, who)| Op::Unlink { at, who }),
        3 => (taken_place(), who()).prop_map(|(at, who)| Op::Rmdir { at, who }),
        9 => (taken_place(), place, kind, who()).prop_map(|(from, to, kind, who)| Op::Rename { from, to, kind, who }),
    ]
}

fn content_op() -> impl Strategy<Value = Op> {
    let space = prop::sample::select(vec![Space::Punch, Space::Zero, Space::Extend]);
    prop_oneof![
        4 => (subject(), extent(), 1..50_usize, who())
            .prop_map(|(to, offset, length, who)| Op::Write { to, offset, length, who }),
        1 => (subject(), 1..50_usize).prop_map(|(to, length)| Op::Append { to, length }),
        1 => (subject(), extent()).prop_map(|(to, offset)| Op::MapWrite { to, offset }),
        2 => (subject(), extent(), who()).prop_map(|(of, size, who)| Op::Resize { of, size, who }),
        1 => (subject(), space, extent(), 1..100_usize)
            .prop_map(|(of, space, offset, length)| Op::Allocate { of, space, offset, length }),
        1 => (subject(), subject(), extent(), 1..100_usize)
            .prop_map(|(from, to, offset, length)| Op::CopyRange { from, to, offset, length }),
    ]
}

fn attribute_op() -> impl Strategy<Value = Op> {
    let flags = prop::sample::select(vec![0, libc::XATTR_CREATE, libc::XATTR_REPLACE]);
    let flags = prop_oneof![3 => Just(0), 1 => flags];
    prop_oneof![
        3 => (subject(), mode(), who()).prop_map(|(of, mode, who)| Op::Chmod { of, mode, who }),
        2 => (subject(), owner(), owner()).prop_map(|(of, uid, gid)| Op::Chown { of, uid, gid }),
        2 => (subject(), seconds()).prop_map(|(of, sec)| Op::Times { of, sec }),
        2 => (subject(), xattr(), any::<u8>(), flags, who())
            .prop_map(|(of, name, value, flags, who)| Op::SetXattr { of, name, value, flags, who }),
        1 => (subject(), xattr()).prop_map(|(of, name)| Op::RemoveXattr { of, name }),
        1 => (subject(), any::<bool>(), 0..8_u16).prop_map(|(of, default, bits)| Op::Acl { of, default, bits }),
    ]
}

fn held_op() -> impl Strategy<Value = Op> {
    let action = prop_oneof![
        2 => Just(Open::Stat),
        3 => Just(Open::Read),
        2 => (extent(), 1..50_usize).prop_map(|(offset, length)| Open::Write(offset, length)),
        1 => extent().prop_map(Open::Resize),
        1 => mode().prop_map(Open::Chmod),
        1 => any::<u8>().prop_map(Open::SetXattr),
        1 => Just(Open::List),
        1 => Just(Open::Sync),
    ];
    prop_oneof![
        4 => (subject(), any::<bool>()).prop_map(|(of, writable)| Op::Hold { of, writable }),
        6 => (0..8_usize, action).prop_map(|(which, action)| Op::Held { which, action }),
        1 => (0..8_usize).prop_map(|which| Op::Release { which }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => names_op(),
        8 => content_op(),
        8 => attribute_op(),
        6 => held_op(),
        1 => Just(Op::Remount),
    ]
}
