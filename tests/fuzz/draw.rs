//! Cases of the reference model, drawn from a fuzzer's bytes: one choice takes one byte or two, so that a change of the
//! input is a small change of the case.

use arbitrary::Unstructured;

use crate::model::case::{Case, Op, Place, Subject, X};
use crate::model::layers::{Below, Entries, Meta, N, Node, Opaque, Way, Whiteout};
use crate::model::reference::RenameKind;

const OPS: usize = 30;
const DEPTH: usize = 3;
const NAMES: [N; 4] = [N::A, N::B, N::C, N::D];
const OPAQUE: [Opaque; 5] = [Opaque::Trusted, Opaque::User, Opaque::FuseOverlayfs, Opaque::DotFile, Opaque::Beside];
const WHITEOUT: [Whiteout; 4] = [Whiteout::Device, Whiteout::DotFile, Whiteout::Trusted, Whiteout::User];
const RENAME: [RenameKind; 4] = [RenameKind::Plain, RenameKind::NoReplace, RenameKind::Exchange, RenameKind::Whiteout];
const XATTRS: [X; 5] = [X::A, X::B, X::Trusted, X::Mark, X::ForeignMark];
const MODES: [u32; 5] = [0o644, 0o755, 0o600, 0o750, 0o777];
const OWNERS: [u32; 3] = [0, 1000, 65534];
const SECONDS: [i64; 4] = [0, 1_000_000_000, -1, 4_000_000_000];

/// The case that a fuzzer's input means.
pub fn case(bytes: &[u8]) -> Case {
    let mut draw = Draw(Unstructured::new(bytes));
    let upper = if draw.below(4) == 0 { draw.layer() } else { Entries::new() };
    let lowers = (0..=draw.below(3)).map(|_| draw.layer()).collect();
    let (trusted, remember) = (draw.below(2) == 1, draw.below(2) == 1);
    let cache = [0, 5, 10_000][draw.below(3)];
    let mut ops = Vec::new();
    while !draw.0.is_empty() && ops.len() < OPS {
        ops.push(draw.op());
    }
    Case { upper, lowers, trusted, remember, cache, ops }
}

/// Zeros follow the end of the input.
struct Draw<'b>(Unstructured<'b>);

impl Draw<'_> {
    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        self.0.int_in_range(0..=end - 1).unwrap_or_default()
    }

    fn pick<T: Copy, const COUNT: usize>(&mut self, from: [T; COUNT]) -> T {
        from[self.below(COUNT)]
    }

    fn layer(&mut self) -> Entries {
        self.entries(0)
    }

    fn entries(&mut self, depth: usize) -> Entries {
        (0..self.below(5)).map(|_| (self.pick(NAMES), self.node(depth))).collect()
    }

    fn node(&mut self, depth: usize) -> Node {
        match self.below(12) {
            0 | 1 => {
                let meta = self.meta();
                Node::File(meta, self.below(40))
            }
            2 => {
                let meta = self.meta();
                Node::Copy(meta, self.below(40))
            }
            3 => {
                let meta = self.meta();
                let way = (self.below(2) == 1).then(|| self.way());
                Node::Metacopy(meta, way)
            }
            4 => Node::Link(self.below(8)),
            5 => Node::Symlink(self.below(4) as u8),
            6 => Node::Fifo,
            7 => Node::NullDevice,
            8 => Node::Whiteout(self.pick(WHITEOUT)),
            _ if depth == DEPTH => Node::Fifo,
            _ => {
                let meta = self.meta();
                let below = match self.below(4) {
                    0 | 1 => Below::Shows,
                    2 => Below::Hidden(self.pick(OPAQUE)),
                    _ => Below::Moved(self.way()),
                };
                Node::Dir(meta, below, self.entries(depth + 1))
            }
        }
    }

    fn meta(&mut self) -> Meta {
        let (mode, owner) = (self.pick(MODES), self.pick(OWNERS));
        Meta { mode, owner, mtime: self.pick(SECONDS), xattr: self.below(2) == 1 }
    }

    fn way(&mut self) -> Way {
        match self.below(3) {
            0 => Way::Sibling(self.pick(NAMES)),
            names => Way::Path((0..names).map(|_| self.pick(NAMES)).collect()),
        }
    }

    fn subject(&mut self) -> Subject {
        let n = self.below(64);
        [Subject::Any, Subject::File, Subject::Dir, Subject::Held][self.below(4)](n)
    }

    fn place(&mut self) -> Place {
        match self.below(3) {
            0 => Place::Existing(self.below(64)),
            1 => {
                let dir = Subject::Dir(self.below(64));
                Place::In(dir, self.pick(NAMES))
            }
            _ => {
                let dir = self.subject();
                Place::In(dir, self.pick(NAMES))
            }
        }
    }

    fn op(&mut self) -> Op {
        match self.below(29) {
            0 => Op::Create { at: self.place(), mode: self.pick(MODES) },
            1 => Op::Mkdir { at: self.place(), mode: self.pick(MODES) },
            2 => Op::Fifo { at: self.place() },
            3 => Op::Device { at: self.place() },
            4 => Op::Symlink { at: self.place(), target: self.below(4) as u8 },
            5 | 6 => Op::Link { of: self.subject(), at: self.place() },
            7 | 8 => Op::Unlink { at: self.place() },
            9 => Op::Rmdir { at: self.place() },
            10..=14 => Op::Rename { from: self.place(), to: self.place(), kind: self.pick(RENAME) },
            15 => Op::Write { to: self.subject(), offset: self.below(50), length: 1 + self.below(49) },
            16 => Op::Resize { of: self.subject(), size: self.below(50) },
            17 => Op::Punch { of: self.subject(), offset: self.below(50), length: 1 + self.below(99) },
            18 => Op::Allocate { of: self.subject(), offset: self.below(50), length: 1 + self.below(99) },
            19 => {
                let (from, to) = (self.subject(), self.subject());
                Op::CopyRange { from, to, offset: self.below(50), length: 1 + self.below(99) }
            }
            20 => Op::Chmod { of: self.subject(), mode: self.pick(MODES) },
            21 => Op::Chown { of: self.subject(), uid: self.pick(OWNERS), gid: self.pick(OWNERS) },
            22 => Op::Times { of: self.subject(), sec: self.pick(SECONDS) },
            23 => {
                let flags = self.pick([0, nix::libc::XATTR_CREATE, nix::libc::XATTR_REPLACE]);
                Op::SetXattr { of: self.subject(), name: self.pick(XATTRS), value: self.below(256) as u8, flags }
            }
            24 => Op::RemoveXattr { of: self.subject(), name: self.pick(XATTRS) },
            25 => Op::Hold { of: self.subject() },
            26 => Op::Release { which: self.below(8) },
            27 => [Op::Remount, Op::Crash { midway: true }, Op::Crash { midway: false }, Op::Commit][self.below(4)]
                .clone(),
            _ => Op::AddLayer,
        }
    }
}
