//! Lower layers as data, made on disk with the marks that the kernel's overlay reads.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::sys::stat::SFlag;

use super::generators::N;
use super::perform::TARGETS;
use crate::common::files::{chmod, chown, make_dir, mark, node, put, set_times, whiteout};

/// The fraction of every time that is set.
pub const NSEC: i64 = 987_654_321;
/// A device that can be opened and does nothing: `/dev/null`.
pub const DEVICE: (u64, u64) = (1, 3);

/// What a generated file or directory carries.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    pub mode: u32,
    pub owner: u32,
    pub mtime: i64,
    pub xattr: bool,
}

/// One entry of a generated layer.
#[derive(Clone, Debug)]
pub enum Node {
    /// A file with that many bytes; the bytes tell which file it is.
    File(Meta, usize),
    /// Another name of an earlier file in this layer.
    Link(usize),
    Symlink(usize),
    Fifo,
    Device,
    /// Opaque or not.
    Dir(Meta, bool, Entries),
    /// In the form of an xattr or not.
    Whiteout(bool),
}

/// The entries of a directory; of several with one name the first counts.
pub type Entries = Vec<(N, Node)>;

/// Writes one layer.
pub struct Writer<'a> {
    /// Which layer it is.
    pub index: usize,
    /// Where marks are: `trusted` or `user`.
    pub namespace: &'a str,
    /// Whether no layer is below it.
    pub lowest: bool,
    root: &'a Path,
    files: Vec<PathBuf>,
}

impl<'a> Writer<'a> {
    pub fn new(index: usize, root: &'a Path, namespace: &'a str, lowest: bool) -> Self {
        Writer { index, namespace, lowest, root, files: Vec::new() }
    }

    /// Writes the whole layer.
    pub fn layer(&mut self, entries: &Entries) {
        self.write(self.root, entries);
    }

    fn write(&mut self, dir: &Path, entries: &Entries) {
        let mut seen = BTreeSet::new();
        for (name, entry) in entries {
            if seen.insert(*name) {
                self.entry(dir, &dir.join(name.text()), entry);
            }
        }
    }

    fn entry(&mut self, dir: &Path, path: &Path, entry: &Node) {
        match entry {
            Node::File(meta, length) => self.file(path, meta, *length),
            Node::Link(_) if self.files.is_empty() => {
                self.file(path, &Meta { mode: 0o644, owner: 0, mtime: 1, xattr: false }, 20);
            }
            Node::Link(which) => fs::hard_link(&self.files[which % self.files.len()], path).expect("link"),
            Node::Symlink(target) => symlink(TARGETS[target % TARGETS.len()], path).expect("symlink"),
            Node::Fifo => node(path, SFlag::S_IFIFO, (0, 0)),
            Node::Device => node(path, SFlag::S_IFCHR, DEVICE),
            Node::Dir(meta, opaque, inner) => {
                make_dir(path);
                self.write(path, inner);
                if *opaque {
                    mark(path, &format!("{}.overlay.opaque", self.namespace), "y");
                }
                write_meta(path, meta);
            }
            // The kernel sees no others in this form, or doesn't remove the directory that they are in.
            Node::Whiteout(true) if dir == self.root && !self.lowest => {
                put(path, "");
                mark(path, &format!("{}.overlay.whiteout", self.namespace), "y");
                mark(dir, &format!("{}.overlay.opaque", self.namespace), "x");
            }
            Node::Whiteout(_) => whiteout(path),
        }
    }

    fn file(&mut self, path: &Path, meta: &Meta, length: usize) {
        let text = format!("layer {} file {};", self.index, self.files.len());
        let content: Vec<u8> = text.bytes().cycle().take(length).collect();
        put(path, content);
        write_meta(path, meta);
        self.files.push(path.to_owned());
    }
}

fn write_meta(path: &Path, meta: &Meta) {
    chown(path, meta.owner, meta.owner);
    chmod(path, meta.mode);
    if meta.xattr {
        mark(path, "user.a", "lower");
    }
    set_times(path, (meta.mtime, NSEC), (meta.mtime, NSEC));
}
