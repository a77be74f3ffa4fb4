//! Layers as data: as they are generated, and with every name, link and attribute resolved.

use std::collections::BTreeMap;

use crate::fixture::{me, privileged};

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

    /// The name that is written so.
    pub fn of(text: &[u8]) -> Option<Self> {
        [Self::A, Self::B, Self::C, Self::D].into_iter().find(|name| name.text().as_bytes() == text)
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
    Trusted,
    User,
    FuseOverlayfs,
    DotFile,
    /// By `.wh.NAME` beside it.
    Beside,
}

/// Where a redirect leads, in the layers below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    Sibling(N),
    Path(Vec<N>),
}

/// What a directory does with the layers below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Below {
    /// It merges with what has its name.
    Shows,
    Hidden(Opaque),
    /// It merges with what a redirect says.
    Moved(Way),
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
    /// A file that is marked as a copy of what is below it.
    Copy(Meta, usize),
    /// A file with metadata only; its data is below, by its name or by a redirect.
    Metacopy(Meta, Option<Way>),
    /// Another name of an earlier file in this layer.
    Link(usize),
    Symlink(u8),
    Fifo,
    /// A device 0:0, in the form that is no whiteout.
    NullDevice,
    Dir(Meta, Below, Entries),
    Whiteout(Whiteout),
}

/// The entries of a directory; of several with one name the first counts.
pub type Entries = Vec<(N, Node)>;

/// A layer with its links resolved.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The attributes of its root.
    pub root: Attrs,
    pub entries: BTreeMap<N, Entry>,
    /// What is no directory; several names may lead to one.
    pub leaves: Vec<Leaf>,
}

/// What an object carries, as a union shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attrs {
    pub mode: u32,
    pub owner: (u32, u32),
    /// `None` for a time that no test has set.
    pub mtime: Option<i64>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// An object that is no directory.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub what: What,
    pub attrs: Attrs,
    /// How many names it has in its layer.
    pub links: u32,
    /// Its inode number, 0 before it is on disk.
    pub ino: u64,
}

/// What there is of it in its layer.
#[derive(Clone, Debug)]
pub enum What {
    File(Vec<u8>),
    /// With the mark that tells what it was copied from.
    Copy(Vec<u8>),
    /// With as many bytes as the file has that it is the metadata of, none of them its own.
    Metacopy(Option<Way>, usize),
    NullDevice,
    Symlink(String),
    Fifo,
}

#[derive(Clone, Debug)]
pub enum Entry {
    Leaf(usize),
    Dir(Box<Dir>),
    Whiteout(Whiteout),
}

/// A directory of one layer.
#[derive(Clone, Debug)]
pub struct Dir {
    pub attrs: Attrs,
    pub below: Below,
    pub entries: BTreeMap<N, Entry>,
    pub ino: u64,
}

impl Attrs {
    /// What the superuser, or whoever runs the tests, gets.
    pub fn mine(mode: u32) -> Self {
        Self { mode, owner: (me().uid, me().gid), mtime: None, xattrs: BTreeMap::new() }
    }

    fn new(meta: &Meta) -> Self {
        let mut attrs = Self::mine(meta.mode);
        if privileged() {
            attrs.owner = (meta.owner, meta.owner);
        }
        attrs.mtime = Some(meta.mtime);
        if meta.xattr {
            attrs.xattrs.insert("user.a".to_owned(), b"lower".to_vec());
        }
        attrs
    }
}

impl Layer {
    /// Resolves a generated layer; `redirects`: with those of directories.
    pub fn new(index: usize, generated: &Entries, redirects: bool) -> Self {
        let layer = Self { root: Attrs::mine(0o755), entries: BTreeMap::new(), leaves: Vec::new() };
        let mut resolver = Resolver { index, redirects, layer };
        let mut entries = resolver.resolve(generated);
        hide_sources(&mut entries);
        Self { entries, ..resolver.layer }
    }
}

/// Numbers the leaves of a layer.
struct Resolver {
    index: usize,
    redirects: bool,
    layer: Layer,
}

impl Resolver {
    fn resolve(&mut self, generated: &Entries) -> BTreeMap<N, Entry> {
        let mut entries = BTreeMap::new();
        for (name, node) in generated {
            if entries.contains_key(name) {
                continue;
            }
            let entry = match node {
                Node::Link(which) => self.link(*which),
                Node::Whiteout(form) => Entry::Whiteout(*form),
                Node::Dir(meta, below, inner) => {
                    let attrs = Attrs::new(&Meta { mode: dir_mode(meta.mode), ..*meta });
                    let below = match below {
                        Below::Moved(_) if !self.redirects => Below::Shows,
                        below => below.clone(),
                    };
                    Entry::Dir(Box::new(Dir { attrs, below, entries: self.resolve(inner), ino: 0 }))
                }
                Node::File(meta, length) => self.leaf(Attrs::new(meta), What::File(self.content(*length))),
                Node::Copy(meta, length) => self.leaf(Attrs::new(meta), What::Copy(self.content(*length))),
                Node::Metacopy(meta, way) => self.leaf(Attrs::new(meta), What::Metacopy(way.clone(), 30)),
                Node::Symlink(target) => self.leaf(Attrs::mine(0o777), What::Symlink(format!("target-{target}"))),
                Node::Fifo => self.leaf(Attrs::mine(0o640), What::Fifo),
                Node::NullDevice => self.leaf(Attrs::mine(0o600), What::NullDevice),
            };
            entries.insert(*name, entry);
        }
        entries
    }

    fn leaf(&mut self, attrs: Attrs, what: What) -> Entry {
        self.layer.leaves.push(Leaf { what, attrs, links: 1, ino: 0 });
        Entry::Leaf(self.layer.leaves.len() - 1)
    }

    fn link(&mut self, which: usize) -> Entry {
        let is_file = |leaf: &Leaf| matches!(leaf.what, What::File(_));
        let files: Vec<_> = (0..self.layer.leaves.len()).filter(|n| is_file(&self.layer.leaves[*n])).collect();
        if files.is_empty() {
            return self.leaf(Attrs::new(&PLAIN_META), What::File(self.content(20)));
        }
        let number = files[which % files.len()];
        self.layer.leaves[number].links += 1;
        Entry::Leaf(number)
    }

    fn content(&self, length: usize) -> Vec<u8> {
        let text = format!("layer {} file {};", self.index, self.layer.leaves.len());
        text.into_bytes().into_iter().cycle().take(length).collect()
    }
}

/// What a directory was moved from does not show at its old place too: as a rename leaves it, a whiteout is there.
fn hide_sources(root: &mut BTreeMap<N, Entry>) {
    let mut elsewhere = Vec::new();
    hide_siblings(root, &mut elsewhere);
    elsewhere.iter().for_each(|path| hide(root, path));
}

fn hide(entries: &mut BTreeMap<N, Entry>, path: &[N]) {
    let Some((name, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        entries.entry(*name).or_insert(Entry::Whiteout(Whiteout::Device));
    } else if let Some(Entry::Dir(dir)) = entries.get_mut(name) {
        hide(&mut dir.entries, rest);
    }
}

/// Hides what was renamed within its directory, and collects the paths of what came from elsewhere.
fn hide_siblings(entries: &mut BTreeMap<N, Entry>, elsewhere: &mut Vec<Vec<N>>) {
    let mut here = Vec::new();
    for entry in entries.values_mut() {
        let Entry::Dir(dir) = entry else { continue };
        match &dir.below {
            Below::Moved(Way::Sibling(source)) => here.push(*source),
            Below::Moved(Way::Path(path)) => elsewhere.push(path.clone()),
            Below::Shows | Below::Hidden(_) => {}
        }
        hide_siblings(&mut dir.entries, elsewhere);
    }
    for source in here {
        entries.entry(source).or_insert(Entry::Whiteout(Whiteout::Device));
    }
}
