//! Layers as data: made on disk in every form there is, and merged into the tree that a union of them has to show.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::reference::{Id, Kind, Object, ROOT, Tree};
use crate::fixture::{make_whiteout, me, privileged, set_mode, set_times, set_xattr};

/// A name; there are few, so that they collide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum N {
    A,
    B,
    C,
    D,
}

impl N {
    pub const ALL: [&'static str; 4] = ["a", "b", "c", "d"];

    pub fn text(self) -> &'static str {
        Self::ALL[self as usize]
    }
}

/// The fraction of every time that is set.
pub const NSEC: u32 = 987_654_321;

/// What a generated file or directory carries.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    pub mode: u32,
    pub owner: u32,
    pub mtime: i64,
    pub xattr: bool,
}

/// A directory's mode: its owner can use it, so that the tests run without the superuser's rights too.
pub fn dir_mode(mode: u32) -> u32 {
    mode | 0o700
}

/// What a generated file carries when nobody cares.
pub const PLAIN_META: Meta = Meta { mode: 0o644, owner: 0, mtime: 1, xattr: false };

/// How a directory hides what is below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opaque {
    No,
    Trusted,
    User,
    FuseOverlayfs,
    DotFile,
}

/// How a layer says that a name is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteout {
    Device,
    DotFile,
    Trusted,
    User,
}

/// One entry of a generated layer.
#[derive(Clone, Debug)]
pub enum Node {
    /// A file with that many bytes; the bytes tell which file it is.
    File(Meta, usize),
    /// Another name of an earlier file in this layer.
    Link(usize),
    Symlink(u8),
    Fifo,
    Dir(Meta, Opaque, Entries),
    Whiteout(Whiteout),
}

/// The entries of a directory; of several with one name the first counts.
pub type Entries = Vec<(N, Node)>;

/// A layer with its links resolved.
pub struct Layer {
    entries: BTreeMap<N, Entry>,
    /// The number of names of each file.
    links: Vec<u32>,
}

#[derive(Clone)]
enum Entry {
    File { number: usize, meta: Meta, content: Vec<u8> },
    Symlink(String),
    Fifo,
    Dir { meta: Meta, opaque: Opaque, entries: BTreeMap<N, Entry> },
    Whiteout(Whiteout),
}

impl Layer {
    /// Resolves a generated layer.
    pub fn new(index: usize, generated: &Entries) -> Self {
        let mut resolver = Resolver { index, files: Vec::new(), links: Vec::new() };
        let entries = resolver.resolve(generated);
        Self { entries, links: resolver.links }
    }

    /// Makes the layer in an empty directory.
    pub fn write(&self, root: &Path) {
        write_entries(root, &self.entries, Opaque::No, &mut HashMap::new());
    }
}

/// Numbers the files of a layer.
struct Resolver {
    index: usize,
    files: Vec<Entry>,
    links: Vec<u32>,
}

impl Resolver {
    fn resolve(&mut self, generated: &Entries) -> BTreeMap<N, Entry> {
        let mut entries = BTreeMap::new();
        for (name, node) in generated {
            if entries.contains_key(name) {
                continue;
            }
            let entry = match node {
                Node::File(meta, length) => self.file(*meta, *length),
                Node::Link(_) if self.files.is_empty() => self.file(PLAIN_META, 20),
                Node::Link(which) => {
                    let number = which % self.files.len();
                    self.links[number] += 1;
                    self.files[number].clone()
                }
                Node::Symlink(target) => Entry::Symlink(format!("target-{target}")),
                Node::Fifo => Entry::Fifo,
                Node::Dir(meta, opaque, inner) => {
                    let meta = Meta { mode: dir_mode(meta.mode), ..*meta };
                    Entry::Dir { meta, opaque: *opaque, entries: self.resolve(inner) }
                }
                Node::Whiteout(form) => Entry::Whiteout(*form),
            };
            entries.insert(*name, entry);
        }
        entries
    }

    fn file(&mut self, meta: Meta, length: usize) -> Entry {
        let number = self.files.len();
        let content = format!("layer {} file {number};", self.index).into_bytes();
        let content = content.into_iter().cycle().take(length).collect();
        self.files.push(Entry::File { number, meta, content });
        self.links.push(1);
        self.files[number].clone()
    }
}

fn write_entries(dir: &Path, entries: &BTreeMap<N, Entry>, opaque: Opaque, files: &mut HashMap<usize, PathBuf>) {
    for (name, entry) in entries {
        let path = dir.join(name.text());
        match entry {
            Entry::File { number, meta, content } => match files.get(number) {
                Some(first) => std::fs::hard_link(first, &path).unwrap(),
                None => {
                    std::fs::write(&path, content).unwrap();
                    write_meta(&path, meta);
                    files.insert(*number, path);
                }
            },
            Entry::Symlink(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
            Entry::Fifo => {
                nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
                set_mode(&path, 0o640);
            }
            Entry::Dir { meta, opaque, entries } => {
                std::fs::create_dir(&path).unwrap();
                write_entries(&path, entries, *opaque, files);
                write_opaque(&path, *opaque);
                write_meta(&path, meta);
            }
            Entry::Whiteout(form) => write_whiteout(dir, name.text(), *form, opaque),
        }
    }
}

fn write_meta(path: &Path, meta: &Meta) {
    if privileged() {
        std::os::unix::fs::chown(path, Some(meta.owner), Some(meta.owner)).unwrap();
    }
    set_mode(path, meta.mode);
    if meta.xattr {
        set_xattr(path, "user.a", b"lower").unwrap();
    }
    set_times(path, meta.mtime, NSEC.into());
}

fn write_opaque(dir: &Path, opaque: Opaque) {
    let name = match opaque {
        Opaque::No => return,
        Opaque::Trusted if privileged() => "trusted.overlay.opaque",
        Opaque::Trusted | Opaque::User => "user.overlay.opaque",
        Opaque::FuseOverlayfs => "user.fuseoverlayfs.opaque",
        Opaque::DotFile => return std::fs::write(dir.join(".wh..wh..opq"), "").unwrap(),
    };
    set_xattr(dir, name, b"y").unwrap();
}

fn write_whiteout(dir: &Path, name: &str, form: Whiteout, opaque: Opaque) {
    let namespace = match form {
        Whiteout::Device => return make_whiteout(&dir.join(name)),
        Whiteout::DotFile => return std::fs::write(dir.join(format!(".wh.{name}")), "").unwrap(),
        // The attribute that announces them can't also say that the directory is opaque.
        _ if [Opaque::Trusted, Opaque::User].contains(&opaque) => return make_whiteout(&dir.join(name)),
        Whiteout::Trusted if privileged() => "trusted",
        Whiteout::Trusted | Whiteout::User => "user",
    };
    std::fs::write(dir.join(name), "").unwrap();
    set_xattr(&dir.join(name), &format!("{namespace}.overlay.whiteout"), b"y").unwrap();
    set_xattr(dir, &format!("{namespace}.overlay.opaque"), b"x").unwrap();
}

/// The tree that a union of the layers shows, the top one first.
pub fn merge(layers: &[Layer]) -> Tree {
    let owner = (me().uid, me().gid);
    let root = Object::new(Kind::Dir(BTreeMap::new()), 0o755, owner);
    let mut merge = Merge { tree: Tree::new(root), layers, files: HashMap::new(), owner };
    let roots = layers.iter().enumerate().map(|(index, layer)| (index, &layer.entries)).collect();
    let entries = merge.entries(roots);
    merge.tree.objects[ROOT].kind = Kind::Dir(entries);
    merge.tree
}

struct Merge<'l> {
    tree: Tree,
    layers: &'l [Layer],
    files: HashMap<(usize, usize), Id>,
    owner: (u32, u32),
}

impl<'l> Merge<'l> {
    /// The entries of the directories that merge, the top one first.
    fn entries(&mut self, stack: Vec<(usize, &'l BTreeMap<N, Entry>)>) -> BTreeMap<&'static str, Id> {
        let mut names: Vec<N> = stack.iter().flat_map(|(_, entries)| entries.keys().copied()).collect();
        names.sort_unstable();
        names.dedup();
        let mut merged = BTreeMap::new();
        for name in names {
            let mut below = stack.iter().filter_map(|(layer, entries)| Some((*layer, entries.get(&name)?)));
            let Some((layer, top)) = below.next() else { continue };
            let id = match top {
                Entry::Whiteout(_) => continue,
                Entry::File { number, meta, content } => self.file(layer, *number, meta, content),
                Entry::Symlink(target) => self.tree.add(Object::new(Kind::Symlink(target.clone()), 0o777, self.owner)),
                Entry::Fifo => self.tree.add(Object::new(Kind::Fifo, 0o640, self.owner)),
                Entry::Dir { meta, opaque, entries } => {
                    let mut inner = vec![(layer, entries)];
                    let mut cut = *opaque != Opaque::No;
                    while let (false, Some((layer, Entry::Dir { opaque, entries, .. }))) = (cut, below.next()) {
                        inner.push((layer, entries));
                        cut = *opaque != Opaque::No;
                    }
                    let id = self.add(Kind::Dir(BTreeMap::new()), meta);
                    let entries = self.entries(inner);
                    self.tree.objects[id].kind = Kind::Dir(entries);
                    id
                }
            };
            merged.insert(name.text(), id);
        }
        merged
    }

    fn file(&mut self, layer: usize, number: usize, meta: &Meta, content: &[u8]) -> Id {
        if let Some(id) = self.files.get(&(layer, number)) {
            return *id;
        }
        let id = self.add(Kind::File(content.to_owned()), meta);
        self.tree.objects[id].nlink = self.layers[layer].links[number];
        self.files.insert((layer, number), id);
        id
    }

    fn add(&mut self, kind: Kind, meta: &Meta) -> Id {
        let owner = if privileged() { (meta.owner, meta.owner) } else { self.owner };
        let mut object = Object::new(kind, meta.mode, owner);
        object.mtime = Some(meta.mtime);
        if meta.xattr {
            object.xattrs.insert("user.a".to_owned(), b"lower".to_vec());
        }
        self.tree.add(object)
    }
}
