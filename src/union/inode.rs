//! An inode of the union: what the kernel knows by a number.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::layer::marks::Redirect;
use crate::layer::{LayerId, ObjKey, RealDir, SeenKey, Stack, UpperDir};
use crate::name::Name;
use crate::union::pin::Pin;
use crate::union::{Attr, FileKind, Time, Union};

/// An object of the union that the kernel, or a child of it, knows.
#[derive(Debug)]
pub(super) struct Inode {
    /// Its number, and its node id.
    pub number: u64,
    /// Unique in this union's life, unlike the number: the key of everything that caches.
    pub id: u64,
    /// Its type.
    pub kind: FileKind,
    /// How often the kernel was told of it; changes under its shard of the table.
    pub lookups: AtomicU64,
    /// How many children hold it as their parent.
    pub pins: AtomicU32,
    /// When its content changed last, by [`Union::content_changed`].
    pub changed_at: AtomicU32,
    /// Held by the one copy-up of it at a time.
    pub copy_up: Mutex<()>,
    /// What it is made of.
    pub node: Node,
}

/// The two shapes of an inode.
#[derive(Debug)]
pub(super) enum Node {
    /// A directory.
    Dir(Box<DirNode>),
    /// Anything else.
    Other(RwLock<FileState>),
}

/// A directory.
#[derive(Debug)]
pub(super) struct DirNode {
    /// Shared by lookups of its names, exclusive for changes of them.
    pub names: RwLock<()>,
    /// How often one of them came, went or changed its layer; it wraps around.
    pub name_changes: AtomicU32,
    /// What it is made of.
    pub state: RwLock<DirState>,
}

/// The layers of a directory and its place.
#[derive(Debug)]
pub(super) struct DirState {
    /// Its part in upper.
    pub upper: Option<UpperDir>,
    /// Its parts in the lowers, the top one first.
    pub lowers: Arc<[Arc<RealDir>]>,
    /// What its part in upper says of where its lowers are.
    pub redirect: Option<Redirect>,
    /// Parent and name; `None` for the root.
    pub place: Option<(Arc<Inode>, Name)>,
    /// What it showed when it lost its name.
    pub removed: Option<Attr>,
    /// Whether it has a default ACL, once known.
    pub default_acl: Option<bool>,
    /// How often it is open now.
    pub opens: u32,
    /// Whether a name in it changed since it was not open last.
    pub changed_while_open: bool,
}

impl DirState {
    /// A directory at a place.
    pub fn new(upper: Option<UpperDir>, lowers: Arc<[Arc<RealDir>]>, place: Option<(Arc<Inode>, Name)>) -> Self {
        Self {
            upper,
            lowers,
            redirect: None,
            place,
            removed: None,
            default_acl: None,
            opens: 0,
            changed_while_open: false,
        }
    }
}

/// The layers of a directory at one moment.
#[derive(Clone, Debug)]
pub(super) struct DirView {
    /// Its part in upper.
    pub upper: Option<UpperDir>,
    /// Its parts in the lowers, the top one first.
    pub lowers: Arc<[Arc<RealDir>]>,
}

impl DirView {
    /// The topmost real directory.
    pub fn top(&self) -> Option<&Arc<RealDir>> {
        self.upper.as_deref().or_else(|| self.lowers.first())
    }

    /// How many layers it has.
    pub fn layers(&self) -> usize {
        self.lowers.len() + usize::from(self.upper.is_some())
    }

    /// All parts, from the top.
    pub fn parts(&self) -> impl Iterator<Item = &Arc<RealDir>> {
        self.upper.as_deref().into_iter().chain(self.lowers.iter())
    }
}

impl DirNode {
    pub(super) fn new(state: DirState) -> Self {
        Self { names: RwLock::new(()), name_changes: AtomicU32::new(0), state: RwLock::new(state) }
    }

    /// Its layers now.
    pub fn view(&self) -> DirView {
        let state = self.state.read();
        DirView { upper: state.upper.clone(), lowers: state.lowers.clone() }
    }
}

/// One name of an inode that is no directory.
#[derive(Clone, Debug)]
pub(super) struct Link {
    /// The directory.
    pub parent: Arc<Inode>,
    /// The name in it.
    pub name: Name,
    /// The layer in which the name is. One lower object may have names in several.
    pub layer: LayerId,
    /// The inode is in upper by now, but this name of it still is the lower's: a change gives it the name in upper first.
    pub uncovered: bool,
}

impl Link {
    /// Whether it is this name.
    pub fn is(&self, parent: &Inode, name: &Name) -> bool {
        self.parent.id == parent.id && self.name == *name
    }
}

/// The names of an inode: one but for hard links, none when it was removed. There are many inodes: one name needs no
/// allocation of its own.
#[derive(Debug, Default)]
pub(super) enum Links {
    /// No name.
    #[default]
    None,
    /// One name.
    One(Link),
    /// Several names.
    Many(Vec<Link>),
}

impl Links {
    pub fn as_slice(&self) -> &[Link] {
        match self {
            Self::None => &[],
            Self::One(link) => std::slice::from_ref(link),
            Self::Many(links) => links,
        }
    }

    pub fn as_mut_slice(&mut self) -> &mut [Link] {
        match self {
            Self::None => &mut [],
            Self::One(link) => std::slice::from_mut(link),
            Self::Many(links) => links,
        }
    }

    /// Takes all names out.
    pub fn take(&mut self) -> Vec<Link> {
        match std::mem::take(self) {
            Self::None => Vec::new(),
            Self::One(link) => vec![link],
            Self::Many(links) => links,
        }
    }

    fn put(&mut self, mut links: Vec<Link>) {
        *self = match links.len() {
            0 => Self::None,
            1 => links.pop().map_or(Self::None, Self::One),
            _ => Self::Many(links),
        };
    }

    fn push(&mut self, link: Link) {
        if matches!(self, Self::None) {
            *self = Self::One(link);
            return;
        }
        let mut links = self.take();
        links.push(link);
        self.put(links);
    }

    fn remove(&mut self, parent: &Inode, name: &Name) -> Option<Link> {
        let mut links = self.take();
        let at = links.iter().position(|l| l.is(parent, name));
        let removed = at.map(|at| links.remove(at));
        self.put(links);
        removed
    }
}

/// A file, symlink, device, fifo or socket.
#[derive(Debug)]
pub(super) struct FileState {
    /// The layer that its real object is in.
    pub layer: LayerId,
    /// The real object.
    pub key: ObjKey,
    /// Whether the lower object that it is, or was copied from, has several names.
    pub hard_linked: bool,
    /// The names that it is known by.
    pub links: Links,
    /// What most files don't have.
    pub rare: Option<Box<Rare>>,
}

/// What only a file that was changed has.
#[derive(Debug, Default)]
pub(super) struct Rare {
    /// The lower object that it was in this mount, before its copy-up.
    pub lower_key: Option<ObjKey>,
    /// Its name in the index, if it is a copy of a lower object with several names.
    pub index: Option<Name>,
    /// What keeps it reachable without a name.
    pub pin: Option<Pin>,
    /// Where its data is, while upper has its metadata only (metacopy).
    pub data: Option<LowerData>,
    /// The modification time that the kernel told last, for pages that it writes back later.
    pub kernel_mtime: Option<Time>,
}

/// The lower file that has the data of a metadata copy.
#[derive(Clone, Debug)]
pub(super) struct LowerData {
    /// Its directory.
    pub dir: Arc<RealDir>,
    /// Its name there.
    pub name: Name,
    /// Which object it is.
    pub key: ObjKey,
    /// Its allocated 512-byte blocks, which show as the copy's: that is a hole, and looks empty to some programs.
    pub blocks: u64,
}

/// Where the real object of an inode is, by all names that are known.
pub(super) struct Places {
    /// Which object it is.
    pub key: ObjKey,
    /// Directories and names.
    pub at: Vec<(Arc<RealDir>, Name)>,
}

impl PartialEq for Places {
    fn eq(&self, other: &Self) -> bool {
        let mut pairs = self.at.iter().zip(&other.at);
        self.key == other.key
            && self.at.len() == other.at.len()
            && pairs.all(|((dir, name), (other_dir, other_name))| Arc::ptr_eq(dir, other_dir) && name == other_name)
    }
}

impl FileState {
    /// What few files have, if this one does.
    pub fn rare(&self) -> Option<&Rare> {
        self.rare.as_deref()
    }

    /// What few files have, made if need be.
    pub fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// What keeps it reachable without a name.
    pub fn pin(&self) -> Option<&Pin> {
        self.rare().and_then(|rare| rare.pin.as_ref())
    }

    /// Its name in the index.
    pub fn index(&self) -> Option<&Name> {
        self.rare().and_then(|rare| rare.index.as_ref())
    }

    /// The lower object that it was before its copy-up.
    pub fn lower_key(&self) -> Option<ObjKey> {
        self.rare().and_then(|rare| rare.lower_key)
    }

    /// Where its data is, if not in its real object.
    pub fn data(&self) -> Option<&LowerData> {
        self.rare().and_then(|rare| rare.data.as_ref())
    }

    /// The object that its data is read from.
    pub fn data_key(&self) -> ObjKey {
        self.data().map_or(self.key, |data| data.key)
    }
}

impl Inode {
    pub(super) fn new(number: u64, kind: FileKind, node: Node) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        Self {
            number,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            kind,
            lookups: AtomicU64::new(1),
            pins: AtomicU32::new(0),
            changed_at: AtomicU32::new(0),
            copy_up: Mutex::new(()),
            node,
        }
    }

    /// The root of a stack.
    pub(super) fn root(stack: &Stack) -> Self {
        let lowers = stack.layers().iter().map(|l| &l.root).filter(|root| !root.layer.is_upper()).cloned().collect();
        let state = DirState::new(stack.upper_root(), lowers, None);
        let node = Node::Dir(Box::new(DirNode::new(state)));
        Self::new(Union::ROOT, FileKind::Directory, node)
    }

    /// The directory in it, if it is one.
    pub(super) fn as_dir(&self) -> Option<&DirNode> {
        match &self.node {
            Node::Dir(dir) => Some(dir),
            Node::Other(_) => None,
        }
    }

    /// The real object's directory and name, from whichever name it has; `None` when it lost the last one.
    pub(super) fn location(&self) -> Option<(Arc<RealDir>, Name)> {
        self.places()?.at.into_iter().next()
    }

    /// The real object, and where it is to be found unless it is pinned in upper; `None` for a directory.
    pub(super) fn places(&self) -> Option<Places> {
        let Node::Other(file) = &self.node else { return None };
        let (key, links) = {
            let file = file.read();
            if let Some(Pin::Lower(dir, name)) = file.pin() {
                return Some(Places { key: file.key, at: vec![(dir.clone(), name.clone())] });
            }
            let links: Vec<_> = file.links.as_slice().iter().filter(|l| !l.uncovered).cloned().collect();
            (file.key, links)
        };
        let dir_of = |link: &Link| {
            let view = link.parent.as_dir()?.view();
            view.parts().find(|part| part.layer == link.layer).cloned()
        };
        Some(Places { key, at: links.into_iter().filter_map(|link| Some((dir_of(&link)?, link.name))).collect() })
    }

    /// The path under which the layers below upper show a directory that has a part in them.
    pub(super) fn lower_path(self: &Arc<Self>) -> Vec<Name> {
        let mut names = Vec::new();
        let mut next = Some(self.clone());
        while let Some(at) = next {
            let Node::Dir(dir) = &at.node else { break };
            let (redirect, place) = {
                let state = dir.state.read();
                (state.redirect.clone(), state.place.clone())
            };
            match redirect {
                Some(Redirect::Path(path)) => {
                    names.extend(path.into_iter().rev());
                    break;
                }
                Some(Redirect::Sibling(name)) => names.push(name),
                None => names.extend(place.as_ref().map(|(_, name)| name.clone())),
            }
            next = place.map(|(parent, _)| parent);
        }
        names.reverse();
        names
    }

    /// The path of its first name, from the root; empty when it has none.
    pub(super) fn path(&self) -> Vec<Name> {
        let place = |inode: &Inode| match &inode.node {
            Node::Dir(dir) => dir.state.read().place.clone(),
            Node::Other(file) => file.read().links.as_slice().first().map(|l| (l.parent.clone(), l.name.clone())),
        };
        let mut names = Vec::new();
        let mut next = place(self);
        while let Some((parent, name)) = next {
            names.push(name);
            next = place(&parent);
        }
        names.reverse();
        names
    }

    /// The names of a file: each directory's number, and the name in it.
    pub(super) fn names(&self) -> Vec<(u64, Name)> {
        match &self.node {
            Node::Dir(_) => Vec::new(),
            Node::Other(file) => {
                file.read().links.as_slice().iter().map(|link| (link.parent.number, link.name.clone())).collect()
            }
        }
    }

    /// Whether upper has its metadata only.
    pub(super) fn has_data_in_lower(&self) -> bool {
        matches!(&self.node, Node::Other(file) if file.read().data().is_some())
    }

    /// Whether it has this name.
    pub(super) fn has_link(&self, parent: &Inode, name: &Name) -> bool {
        match &self.node {
            Node::Dir(dir) => dir.state.read().place.as_ref().is_some_and(|(p, n)| p.id == parent.id && n == name),
            Node::Other(file) => file.read().links.as_slice().iter().any(|l| l.is(parent, name)),
        }
    }

    /// The layer that shows a name of it; `None` if it does not have this name, or was removed.
    pub(super) fn layer_at(&self, parent: &Inode, name: &Name) -> Option<LayerId> {
        match &self.node {
            Node::Dir(dir) => {
                let here = self.has_link(parent, name) && dir.state.read().removed.is_none();
                dir.view().top().filter(|_| here).map(|top| top.layer)
            }
            Node::Other(file) => file.read().links.as_slice().iter().find(|l| l.is(parent, name)).map(|l| l.layer),
        }
    }

    /// Adds a name, unless it is known already.
    pub(super) fn add_link(&self, parent: &Arc<Inode>, name: &Name, layer: LayerId, uncovered: bool) {
        let Node::Other(file) = &self.node else { return };
        let mut file = file.write();
        if file.links.as_slice().iter().any(|l| l.is(parent, name)) {
            return;
        }
        parent.pins.fetch_add(1, Ordering::Relaxed);
        file.links.push(Link { parent: parent.clone(), name: name.clone(), layer, uncovered });
    }

    /// Takes a name away; returns it.
    pub(super) fn remove_link(&self, parent: &Inode, name: &Name) -> Option<Link> {
        let Node::Other(file) = &self.node else { return None };
        let link = file.write().links.remove(parent, name)?;
        link.parent.pins.fetch_sub(1, Ordering::Relaxed);
        Some(link)
    }

    /// Gives a directory another place.
    pub(super) fn move_dir(&self, parent: &Arc<Inode>, name: &Name) {
        let Node::Dir(dir) = &self.node else { return };
        parent.pins.fetch_add(1, Ordering::Relaxed);
        let old = dir.state.write().place.replace((parent.clone(), name.clone()));
        if let Some((old, _)) = old {
            old.pins.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Empties it of its parents, when it is forgotten; they stay pinned until the table unpins them.
    pub(super) fn take_parents(&self) -> Vec<Arc<Inode>> {
        match &self.node {
            Node::Dir(dir) => dir.state.write().place.take().map(|(parent, _)| parent).into_iter().collect(),
            Node::Other(file) => file.write().links.take().into_iter().map(|l| l.parent).collect(),
        }
    }

    /// The real objects that it is found by.
    pub(super) fn keys(&self) -> Vec<SeenKey> {
        match &self.node {
            Node::Dir(dir) => {
                let view = dir.view();
                view.upper.as_deref().into_iter().chain(view.lowers.first()).map(|d| d.key.seen_in(d.layer)).collect()
            }
            Node::Other(file) => {
                let file = file.read();
                let lower = file.lower_key().map(|key| key.seen_in(LayerId(1)));
                lower.into_iter().chain([file.key.seen_in(file.layer)]).collect()
            }
        }
    }
}

impl Drop for Inode {
    /// Drops a chain of parents in a loop: a path can be deeper than the stack.
    fn drop(&mut self) {
        fn take(inode: &mut Inode) -> Option<Arc<Inode>> {
            match &mut inode.node {
                Node::Dir(dir) => dir.state.get_mut().place.take().map(|(parent, _)| parent),
                // Several names have several parents: the rest is dropped as it is.
                Node::Other(file) => file.get_mut().links.take().pop().map(|link| link.parent),
            }
        }
        let mut next = take(self);
        while let Some(parent) = next {
            next = Arc::into_inner(parent).and_then(|mut inode| take(&mut inode));
        }
    }
}
