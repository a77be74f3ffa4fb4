//! What a union of layers has to show: the reference for lookups, and for what upper says at the end.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::layers::{Attrs, Below, Dir, Entry, Layer, Leaf, N, Way, What};
use super::reference::{Id, Kind, Object, ROOT, Tree};

/// A merged tree, with where each of its objects comes from.
pub struct Merged {
    pub tree: Tree,
    pub sources: HashMap<Id, Source>,
    /// Which object it is in the tree by layer and leaf.
    pub leaves: HashMap<(usize, usize), Id>,
    /// For marked copies of what is below, and metadata of it: what that is, by layer and leaf.
    pub origins: HashMap<(usize, usize), (usize, usize)>,
}

/// The topmost real object behind one of the tree.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Its inode number.
    pub ino: u64,
    /// It is in a lower and has several names: what is known of them beyond upper is in the work directory.
    pub several_lower_names: bool,
    /// It has marks that would make it another object if its layer was trusted.
    pub distrusted: bool,
}

/// Why layers make no sense together.
#[derive(Debug)]
pub enum Nonsense {
    /// A directory shows at two places.
    TwoPlaces,
    /// A metadata copy has no data below: the leaf of the layer.
    NoData(usize, usize),
}

/// The layers that merge in a directory, the top one first: each with its number.
type Levels<'l> = Vec<(usize, &'l BTreeMap<N, Entry>)>;

struct Merge<'l> {
    layers: &'l [Layer],
    trusted: bool,
    merged: Merged,
    seen: HashSet<*const BTreeMap<N, Entry>>,
}

/// Merges layers, upper first. `trusted`: the marks of files in lowers count.
///
/// # Errors
/// For generated layers that no filesystem could have made.
pub fn merge(layers: &[Layer], trusted: bool) -> Result<Merged, Nonsense> {
    let tree = Tree::new(object(Kind::Dir(BTreeMap::new()), &layers[0].root));
    let merged = Merged { tree, sources: HashMap::new(), leaves: HashMap::new(), origins: HashMap::new() };
    let mut merge = Merge { layers, trusted, merged, seen: HashSet::new() };
    let roots = merge.roots_below(None);
    let entries = merge.entries(&roots)?;
    merge.merged.tree.objects[ROOT].kind = Kind::Dir(entries);
    Ok(merge.merged)
}

/// Merges generated layers; what of them makes no sense is made plain first.
pub fn merge_generated(make: impl Fn(bool) -> Vec<Layer>, trusted: bool) -> (Vec<Layer>, Merged) {
    let mut layers = make(true);
    loop {
        match merge(&layers, trusted) {
            Ok(merged) => return (layers, merged),
            Err(Nonsense::TwoPlaces) => layers = make(false),
            Err(Nonsense::NoData(layer, leaf)) => layers[layer].leaves[leaf].what = What::File(vec![b'?'; 30]),
        }
    }
}

fn object(kind: Kind, attrs: &Attrs) -> Object {
    let mut object = Object::new(kind, attrs.mode, attrs.owner);
    object.mtime = attrs.mtime;
    object.xattrs = attrs.xattrs.clone();
    object
}

impl<'l> Merge<'l> {
    /// The roots of the layers below one, or of all.
    fn roots_below(&self, layer: Option<usize>) -> Levels<'l> {
        let first = layer.map_or(0, |layer| layer + 1);
        self.layers.iter().enumerate().skip(first).map(|(index, layer)| (index, &layer.entries)).collect()
    }

    /// The entries of the directories that merge.
    fn entries(&mut self, levels: &Levels<'l>) -> Result<BTreeMap<&'static str, Id>, Nonsense> {
        if !levels.iter().all(|(_, entries)| self.seen.insert(*entries)) {
            return Err(Nonsense::TwoPlaces);
        }
        let mut names: Vec<N> = levels.iter().flat_map(|(_, entries)| entries.keys().copied()).collect();
        names.sort_unstable();
        names.dedup();
        let mut merged = BTreeMap::new();
        for name in names {
            let Some((at, layer, entry)) = first(levels, name) else { continue };
            let id = match entry {
                Entry::Whiteout(_) => continue,
                Entry::Leaf(leaf) => self.leaf(levels, at, name, (layer, *leaf))?,
                Entry::Dir(dir) => self.directory(levels, at, name, dir)?,
            };
            merged.insert(name.text(), id);
        }
        Ok(merged)
    }

    fn directory(&mut self, levels: &Levels<'l>, at: usize, name: N, dir: &Dir) -> Result<Id, Nonsense> {
        let id = self.merged.tree.add(object(Kind::Dir(BTreeMap::new()), &dir.attrs));
        let source = Source { ino: dir.ino, several_lower_names: false, distrusted: false };
        self.merged.sources.insert(id, source);
        let inner = self.merging(&levels[at..], name);
        let entries = self.entries(&inner)?;
        self.merged.tree.objects[id].kind = Kind::Dir(entries);
        Ok(id)
    }

    /// The directories that merge under a name, the first of which is a directory.
    fn merging(&self, levels: &[(usize, &'l BTreeMap<N, Entry>)], name: N) -> Levels<'l> {
        let mut inner = Vec::new();
        for (at, (layer, entries)) in levels.iter().enumerate() {
            let Some(entry) = entries.get(&name) else { continue };
            let Entry::Dir(dir) = entry else { break };
            inner.push((*layer, &dir.entries));
            match &dir.below {
                Below::Shows => continue,
                Below::Hidden(_) => {}
                Below::Moved(Way::Sibling(source)) => inner.extend(self.merging(&levels[at + 1..], *source)),
                Below::Moved(Way::Path(path)) => {
                    if let Some((levels, last)) = self.walk(*layer, path) {
                        inner.extend(self.merging(&levels, last));
                    }
                }
            }
            break;
        }
        inner
    }

    /// The directories in which the last name of a path is looked for, in the layers below one.
    fn walk(&self, layer: usize, path: &[N]) -> Option<(Levels<'l>, N)> {
        let (last, dirs) = path.split_last()?;
        let mut levels = self.roots_below(Some(layer));
        for name in dirs {
            levels = self.merging(&levels, *name);
        }
        Some((levels, *last))
    }

    fn leaf(&mut self, levels: &Levels<'l>, at: usize, name: N, key: (usize, usize)) -> Result<Id, Nonsense> {
        let layers = self.layers;
        let Leaf { what, attrs, links, ino } = &layers[key.0].leaves[key.1];
        let believed = key.0 == 0 || self.trusted;
        let kind = match what {
            What::File(content) | What::Copy(content) => Kind::File(content.clone()),
            What::Metacopy(way, _) if believed => {
                let (data, file) = self.data(&levels[at..], name, way).ok_or(Nonsense::NoData(key.0, key.1))?;
                self.merged.origins.insert(key, data);
                file
            }
            What::Metacopy(_, size) => Kind::Withheld(*size),
            What::NullDevice if believed => Kind::NullDevice,
            What::NullDevice => Kind::File(Vec::new()),
            What::Symlink(target) => Kind::Symlink(target.clone()),
            What::Fifo => Kind::Fifo,
        };
        if matches!(what, What::Copy(_))
            && let Some((data, _)) = self.data(&levels[at..], name, &None)
        {
            self.merged.origins.insert(key, data);
        }
        if let Some(id) = self.merged.leaves.get(&key) {
            return Ok(*id);
        }
        let id = self.merged.tree.add(object(kind, attrs));
        self.merged.tree.objects[id].nlink = *links;
        let distrusted = !believed && matches!(what, What::Metacopy(..) | What::NullDevice);
        let source = Source { ino: *ino, several_lower_names: key.0 > 0 && *links > 1, distrusted };
        self.merged.sources.insert(id, source);
        self.merged.leaves.insert(key, id);
        Ok(id)
    }

    /// The file that has the data of a metadata copy, the first of `levels`, and what it makes of that.
    fn data(
        &self,
        levels: &[(usize, &'l BTreeMap<N, Entry>)],
        name: N,
        way: &Option<Way>,
    ) -> Option<((usize, usize), Kind)> {
        let ((layer, _), below) = levels.split_first()?;
        let (levels, name) = match way {
            None => (below.to_vec(), name),
            Some(Way::Sibling(name)) => (below.to_vec(), *name),
            Some(Way::Path(path)) => self.walk(*layer, path)?,
        };
        let (at, layer, entry) = first(&levels, name)?;
        let Entry::Leaf(leaf) = entry else { return None };
        match &self.layers[layer].leaves[*leaf].what {
            What::File(content) | What::Copy(content) => Some(((layer, *leaf), Kind::File(content.clone()))),
            What::Metacopy(way, _) if self.trusted => self.data(&levels[at..], name, way),
            What::Metacopy(_, size) => Some(((layer, *leaf), Kind::Withheld(*size))),
            What::NullDevice | What::Symlink(_) | What::Fifo => None,
        }
    }
}

/// The topmost of the levels that has a name: its place among them, its layer, and what it has.
fn first<'l>(levels: &Levels<'l>, name: N) -> Option<(usize, usize, &'l Entry)> {
    levels.iter().enumerate().find_map(|(at, (layer, entries))| Some((at, *layer, entries.get(&name)?)))
}
