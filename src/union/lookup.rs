//! Finding a name: through upper, then down the lowers, by their whiteouts, opaque marks and redirects.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RwLock;

use crate::error::{Errno, Result};
use crate::layer::marks::{Mark, Redirect};
use crate::layer::object_marks::{DirMarks, FileMarks};
use crate::layer::origin::Origin;
use crate::layer::override_stat::OverrideStat;
use crate::layer::{LayerId, ObjKey, RealDir, UpperDir};
use crate::name::Name;
use crate::sys::file::Stat;
use crate::union::cache::Known;
use crate::union::hard_links::Indexed;
use crate::union::held::Held;
use crate::union::inode::{DirNode, DirState, DirView, FileState, Inode, Links, LowerData, Node, Rare};
use crate::union::stats::Op;
use crate::union::{Attr, FileKind, Union, is_reserved};

/// What a name in a directory of the union is.
#[derive(Debug)]
pub(super) enum Found {
    /// A directory, with its layers.
    Dir(FoundDir),
    /// Anything else.
    Other(FoundFile),
}

/// A directory with its layers.
#[derive(Debug)]
pub(super) struct FoundDir {
    /// Its part in upper.
    pub upper: Option<UpperDir>,
    /// Its parts in the lowers.
    pub lowers: Vec<Arc<RealDir>>,
    /// The status of the topmost part.
    pub stat: Stat,
    /// What the part in upper says of where the lowers are.
    pub redirect: Option<Redirect>,
}

/// A real object that is no directory.
#[derive(Debug)]
pub(super) struct FoundFile {
    /// The real directory that it is in.
    pub dir: Arc<RealDir>,
    /// Its status.
    pub stat: Stat,
    /// The type that the union shows.
    pub kind: FileKind,
    /// What an attribute says of owner and permissions, if it was asked.
    pub said: Option<Option<OverrideStat>>,
    /// The lower object that it was copied from, verified to exist.
    pub origin: Option<ObjKey>,
    /// Where its data is, if it is a metadata copy.
    pub data: Option<LowerData>,
    /// The copy of a lower object with several names that this is, or stands for.
    pub indexed: Option<Box<Indexed>>,
}

impl Found {
    /// The layer that shows.
    pub(super) fn layer(&self) -> LayerId {
        match self {
            Found::Dir(FoundDir { upper: Some(_), .. }) => LayerId::UPPER,
            Found::Dir(dir) => dir.lowers.first().map_or(LayerId::UPPER, |l| l.layer),
            Found::Other(file) => file.dir.layer,
        }
    }
}

/// Where a name was once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hint {
    /// A layer above which it was not.
    pub layer: LayerId,
    /// How often names of its directory had changed then.
    pub name_changes: u32,
}

/// What the lower layers make of a name.
#[derive(Debug)]
pub(super) enum InLowers {
    /// Nothing.
    Absent,
    /// An object that is no directory.
    Other(Arc<RealDir>, Stat),
    /// A directory: its parts from the top, and the top one's status.
    Dirs(Vec<Arc<RealDir>>, Stat),
}

/// The directories in which the last name of a path is to be found, and that name.
type Last<'p> = (Vec<Arc<RealDir>>, &'p Name);

/// The topmost object of a name in a stack of lower directories.
struct First<'p> {
    /// The directory that it is in.
    parent: &'p Arc<RealDir>,
    /// Those below.
    below: &'p [Arc<RealDir>],
    stat: Stat,
}

/// What one layer makes of a name.
enum Probe {
    Absent,
    Whiteout,
    Object(Stat),
}

impl Union {
    /// Looks a name up; the inode that it finds counts as known once more, until [`Union::forget`].
    ///
    /// # Errors
    /// `ENOENT` if there is no such name, `ENOTDIR` if `parent` is no directory.
    pub fn lookup(&self, parent: u64, name: &Name) -> Result<Attr> {
        self.counters.count(Op::Lookup);
        let dir = self.dir(parent)?;
        let (held, attr) = self.hold_with_attr(&dir, name, None)?.ok_or(Errno::ENOENT)?;
        held.keep();
        Ok(attr)
    }

    /// Finds a name and holds its inode.
    pub(super) fn hold(&self, dir: &Arc<Inode>, name: &Name) -> Result<Option<Held<'_>>> {
        let _names = dir.as_dir().ok_or(Errno::ENOTDIR)?.names.read();
        self.hold_locked(dir, name)
    }

    /// As [`Union::hold`], for who holds the directory's names already.
    pub(super) fn hold_locked(&self, dir: &Arc<Inode>, name: &Name) -> Result<Option<Held<'_>>> {
        match self.find(dir, name, None)? {
            Some(found) => self.intern(dir, name, found).map(|(held, _)| Some(held)),
            None => Ok(None),
        }
    }

    /// Finds a name, holds its inode and tells its attributes, from one status where possible. A `hint` that is not from now
    /// is none.
    pub(super) fn hold_with_attr(
        &self,
        dir: &Arc<Inode>,
        name: &Name,
        hint: Option<Hint>,
    ) -> Result<Option<(Held<'_>, Attr)>> {
        let node = dir.as_dir().ok_or(Errno::ENOTDIR)?;
        let _names = node.names.read();
        let hint = hint.filter(|hint| node.name_changes.load(Ordering::Acquire) == hint.name_changes);
        let hint = hint.map(|hint| hint.layer);
        let Some(found) = self.find(dir, name, hint)? else { return Ok(None) };
        let (stat, said) = match &found {
            Found::Dir(d) => (d.stat, None),
            Found::Other(f) => (f.stat, f.said),
        };
        let (held, current) = self.intern(dir, name, found)?;
        let attr = match said {
            Some(said) if current => self.attr_as_said(&held, &stat, said),
            _ if current => self.attr_from(&held, &stat)?,
            _ => self.attr_of(&held)?,
        };
        Ok(Some((held, attr)))
    }

    /// Finds a name in a directory, by the cache or in the layers. `hint` is a layer above which it is known not to be.
    pub(super) fn find(&self, dir: &Inode, name: &Name, hint: Option<LayerId>) -> Result<Option<Found>> {
        let node = dir.as_dir().ok_or(Errno::ENOTDIR)?;
        if node.state.read().removed.is_some() || is_reserved(name) {
            return Ok(None);
        }
        let view = node.view();
        if hint.is_some() {
            return self.find_in_layers(Some(dir), &view, name, hint);
        }
        let from = match self.cache.get(dir.id, name) {
            Some(Known::Absent) => return Ok(None),
            Some(Known::At(layer)) => Some(layer),
            None => None,
        };
        let found = self.find_in_layers(Some(dir), &view, name, from)?;
        if from.is_none() {
            let known = found.as_ref().map_or(Known::Absent, |found| Known::At(found.layer()));
            self.cache.put(dir.id, name, known);
        }
        Ok(found)
    }

    /// Finds a name in the layers of a directory, from the layer `from` on. In the directory `dir` one that is known already
    /// is what it was.
    pub(super) fn find_in_layers(
        &self,
        dir: Option<&Inode>,
        view: &DirView,
        name: &Name,
        from: Option<LayerId>,
    ) -> Result<Option<Found>> {
        let known = |layer: LayerId, stat: &Stat| self.known_dir(dir?, name, layer, stat).map(Found::Dir);
        let skip = |layer: LayerId| from.is_some_and(|from| layer < from);
        let mut upper_dir = None;
        let mut redirect = None;
        if let Some(parent) = view.upper.as_ref().filter(|u| !skip(u.layer)) {
            match self.probe(parent, name, !view.lowers.is_empty())? {
                Probe::Absent => {}
                Probe::Whiteout => return Ok(None),
                Probe::Object(stat) if !stat.is_dir() => {
                    return self.found_file(view, parent, name, stat).map(Some);
                }
                Probe::Object(stat) => {
                    if let Some(found) = known(parent.layer, &stat) {
                        return Ok(Some(found));
                    }
                    let real = self.stack.child_dir(parent, name, &stat)?;
                    let upper = self.stack.as_upper(&real).ok_or(Errno::EIO)?;
                    let marks = self.stack.dir_marks(&real)?;
                    if self.hides_below(&marks, parent, name, !view.lowers.is_empty())? {
                        let alone = FoundDir { upper: Some(upper), lowers: Vec::new(), stat, redirect: None };
                        return Ok(Some(Found::Dir(alone)));
                    }
                    redirect = marks.redirect;
                    upper_dir = Some((upper, stat));
                }
            }
        }
        let parents: Vec<_> = view.lowers.iter().filter(|l| !skip(l.layer)).cloned().collect();
        let below = match &redirect {
            None if upper_dir.is_none() => match self.first_in_lowers(&parents, name)? {
                None => {
                    if let (Some(dir), None) = (dir, from) {
                        self.cache.put_not_below(dir.id, name);
                    }
                    InLowers::Absent
                }
                Some(first) => match known(first.parent.layer, &first.stat) {
                    None => self.all_in_lowers(first, name)?,
                    found => return Ok(found),
                },
            },
            None => self.find_in_lowers(&parents, name, true)?,
            Some(Redirect::Sibling(name)) => self.find_in_lowers(&parents, name, true)?,
            Some(Redirect::Path(path)) => self.find_path(&self.lower_roots(LayerId::UPPER), path, true)?,
        };
        Ok(match (upper_dir, below) {
            (Some((upper, stat)), below) => {
                let lowers = if let InLowers::Dirs(lowers, _) = below { lowers } else { Vec::new() };
                Some(Found::Dir(FoundDir { upper: Some(upper), lowers, stat, redirect }))
            }
            (None, InLowers::Dirs(lowers, stat)) => {
                Some(Found::Dir(FoundDir { upper: None, lowers, stat, redirect: None }))
            }
            (None, InLowers::Other(dir, stat)) => Some(self.found_file(view, &dir, name, stat)?),
            (None, InLowers::Absent) => None,
        })
    }

    /// A directory that is known already, by its topmost part: the others need not be looked for again.
    fn known_dir(&self, parent: &Inode, name: &Name, layer: LayerId, stat: &Stat) -> Option<FoundDir> {
        if !stat.is_dir() {
            return None;
        }
        let inode =
            self.table.number_of(ObjKey::from(stat).seen_in(layer)).and_then(|number| self.table.get(number))?;
        let state = inode.as_dir()?.state.read();
        let here = state.place.as_ref().is_some_and(|(dir, at)| dir.id == parent.id && at == name);
        let top = state.upper.as_deref().or(state.lowers.first())?;
        if !here || top.layer != layer || state.removed.is_some() {
            return None;
        }
        let (upper, lowers) = (state.upper.clone(), state.lowers.to_vec());
        Some(FoundDir { upper, lowers, stat: *stat, redirect: state.redirect.clone() })
    }

    /// An object that is no directory, with what its marks say.
    fn found_file(&self, view: &DirView, dir: &Arc<RealDir>, name: &Name, stat: Stat) -> Result<Found> {
        let plain = match self.stack.as_upper(dir) {
            // Nothing in here was copied up.
            Some(upper) => view.lowers.is_empty() && !self.stack.is_impure(&upper)?,
            None => false,
        };
        let marks = if plain { FileMarks::default() } else { self.stack.file_marks(dir, name, &stat)? };
        let said = if marks.device { None } else { self.said_at(dir, name, &stat)? };
        let kind = match said.flatten() {
            _ if marks.device => FileKind::CharDevice,
            Some(said) => FileKind::from_mode(said.apply(&stat).mode)?,
            None => FileKind::from_mode(stat.mode)?,
        };
        let mut data =
            if marks.metacopy { Some(self.find_data(view, dir, name, marks.redirect.as_ref())?) } else { None };
        let (mut origin, mut indexed) = (None, None);
        if dir.layer.is_upper() {
            let lower = self.verified_origin(view, name, &stat, &marks)?;
            if let (Some(lower), Some(mark)) = (lower.filter(|l| l.nlink > 1), &marks.origin) {
                let copy = self.find_indexed(mark, &lower)?;
                indexed = copy.filter(|copy| ObjKey::from(&copy.stat) == ObjKey::from(&stat)).map(Box::new);
            }
            // Of an origin with several names each could claim the number, but for the one in the index.
            origin = lower.filter(|l| l.nlink == 1 || indexed.is_some()).map(|l| ObjKey::from(&l));
        } else if stat.nlink > 1 {
            indexed = self.find_copy(dir, name, &stat)?.map(Box::new);
            origin = indexed.as_ref().map(|copy| copy.lower);
            if let Some(copy) = &indexed {
                let has_data = self.stack.upper()?.indexed_mark(&copy.name, Mark::Metacopy)?.is_none();
                data = if has_data { None } else { Some(Self::data_of(dir, name, &stat, data)) };
            }
        }
        let (stat, said) = indexed.as_ref().map_or((stat, said), |copy| (copy.stat, None));
        Ok(Found::Other(FoundFile { dir: dir.clone(), stat, kind, said, origin, data, indexed }))
    }

    /// The lower file that has the data of a metadata copy, which is in `dir`.
    fn find_data(
        &self,
        view: &DirView,
        dir: &Arc<RealDir>,
        name: &Name,
        redirect: Option<&Redirect>,
    ) -> Result<LowerData> {
        self.look_for_data(&view.lowers, dir.layer, name, redirect)?.ok_or_else(|| {
            log::error!("the data of {name}, which {:?} has the metadata of, is in no layer", dir.path());
            Errno::EIO
        })
    }

    /// The lower file that has the data of a metadata copy in the layer `above`: of the directories that merge with the
    /// copy's, in the first of `parents` below it, unless a redirect says otherwise.
    pub(super) fn look_for_data(
        &self,
        parents: &[Arc<RealDir>],
        above: LayerId,
        name: &Name,
        redirect: Option<&Redirect>,
    ) -> Result<Option<LowerData>> {
        let below = || parents.iter().filter(|l| l.layer > above).cloned().collect();
        let (parents, name): Last<'_> = match redirect {
            None => (below(), name),
            Some(Redirect::Sibling(name)) => (below(), name),
            Some(Redirect::Path(path)) => {
                self.walk_to(&self.lower_roots(above), path)?.unwrap_or_else(|| (Vec::new(), name))
            }
        };
        let InLowers::Other(dir, stat) = self.find_in_lowers(&parents, name, false)? else { return Ok(None) };
        let marks = self.stack.file_marks(&dir, name, &stat)?;
        if marks.metacopy && stat.size > 0 {
            return self.look_for_data(&parents, dir.layer, name, marks.redirect.as_ref());
        }
        Ok(stat.is_file().then(|| Self::data_of(&dir, name, &stat, None)))
    }

    /// Whether a directory with such marks hides what is below it: it is opaque, or has an AUFS whiteout beside it, which is for
    /// the layers below, but not for what a redirect leads to. One that is about to be renamed has both.
    fn hides_below(&self, marks: &DirMarks, parent: &Arc<RealDir>, name: &Name, more_below: bool) -> Result<bool> {
        Ok(marks.opaque || marks.redirect.is_none() && more_below && self.stack.has_dot_whiteout(parent, name)?)
    }

    /// What one layer says of a name.
    fn probe(&self, dir: &Arc<RealDir>, name: &Name, more_below: bool) -> Result<Probe> {
        match self.stack.stat_at(dir, name)? {
            Some(stat) if self.stack.is_whiteout(dir, name, &stat)? => Ok(Probe::Whiteout),
            Some(stat) => Ok(Probe::Object(stat)),
            None if more_below && self.stack.has_dot_whiteout(dir, name)? => Ok(Probe::Whiteout),
            None => Ok(Probe::Absent),
        }
    }

    /// Finds a name in a stack of lower directories. `dirs_only`: a directory above merges with it.
    pub(super) fn find_in_lowers(&self, parents: &[Arc<RealDir>], name: &Name, dirs_only: bool) -> Result<InLowers> {
        match self.first_in_lowers(parents, name)? {
            Some(first) if first.stat.is_dir() || !dirs_only => self.all_in_lowers(first, name),
            _ => Ok(InLowers::Absent),
        }
    }

    /// The topmost object of a name in a stack of lower directories.
    fn first_in_lowers<'p>(&self, parents: &'p [Arc<RealDir>], name: &Name) -> Result<Option<First<'p>>> {
        let mut left = parents;
        while let Some((parent, below)) = left.split_first() {
            match self.probe(parent, name, !below.is_empty())? {
                Probe::Absent => left = below,
                Probe::Whiteout => break,
                Probe::Object(stat) => return Ok(Some(First { parent, below, stat })),
            }
        }
        Ok(None)
    }

    /// Whether the lowers of a directory, whose layers are `view`, show anything of a name; remembers if they don't.
    pub(super) fn is_below(&self, dir: &Inode, view: &DirView, name: &Name) -> Result<bool> {
        if self.cache.is_not_below(dir.id, name) {
            return Ok(false);
        }
        let is_below = self.first_in_lowers(&view.lowers, name)?.is_some();
        if !is_below {
            self.cache.put_not_below(dir.id, name);
        }
        Ok(is_below)
    }

    /// What the topmost object of a name is, with what it merges with.
    fn all_in_lowers(&self, first: First<'_>, name: &Name) -> Result<InLowers> {
        let top = first.stat;
        if !top.is_dir() {
            return Ok(InLowers::Other(first.parent.clone(), top));
        }
        let mut found: Vec<Arc<RealDir>> = Vec::new();
        let mut next = Some(first);
        while let Some(First { parent, below, stat }) = next.take_if(|next| next.stat.is_dir()) {
            let dir = self.stack.child_dir(parent, name, &stat)?;
            found.push(dir.clone());
            // A redirect may lead to a layer that has nothing at this place.
            if below.is_empty() && self.stack.is_lowest(dir.layer) {
                break;
            }
            let marks = self.stack.dir_marks(&dir)?;
            if self.hides_below(&marks, parent, name, !below.is_empty())? {
                break;
            }
            if let Some(redirect) = marks.redirect {
                found.extend(self.follow(redirect, below, dir.layer)?);
                break;
            }
            next = self.first_in_lowers(below, name)?;
        }
        Ok(InLowers::Dirs(found, top))
    }

    /// The directories that a redirect in a lower layer merges with, below it.
    fn follow(&self, redirect: Redirect, rest: &[Arc<RealDir>], layer: LayerId) -> Result<Vec<Arc<RealDir>>> {
        let below = match redirect {
            Redirect::Sibling(name) => self.find_in_lowers(rest, &name, true)?,
            Redirect::Path(path) => self.find_path(&self.lower_roots(layer), &path, true)?,
        };
        Ok(if let InLowers::Dirs(dirs, _) = below { dirs } else { Vec::new() })
    }

    /// The roots of the lower layers below a layer.
    pub(super) fn lower_roots(&self, above: LayerId) -> Vec<Arc<RealDir>> {
        self.stack.layers().iter().map(|l| &l.root).filter(|r| r.layer > above).cloned().collect()
    }

    /// Finds a path in the lower layers.
    pub(super) fn find_path(&self, roots: &[Arc<RealDir>], path: &[Name], dirs_only: bool) -> Result<InLowers> {
        match self.walk_to(roots, path)? {
            Some((parents, last)) => self.find_in_lowers(&parents, last, dirs_only),
            None => Ok(InLowers::Absent),
        }
    }

    /// The lower directories in which the last name of a path is to be found, if there are any.
    fn walk_to<'p>(&self, roots: &[Arc<RealDir>], path: &'p [Name]) -> Result<Option<Last<'p>>> {
        let Some((last, dirs)) = path.split_last() else { return Ok(None) };
        let mut parents = roots.to_vec();
        for name in dirs {
            match self.find_in_lowers(&parents, name, true)? {
                InLowers::Dirs(dirs, _) => parents = dirs,
                InLowers::Absent | InLowers::Other(..) => return Ok(None),
            }
        }
        Ok(Some((parents, last)))
    }

    /// The lower object that an object of upper was copied from, if its mark holds: it exists and is of the same type.
    /// Stale and forged marks count for nothing.
    fn verified_origin(&self, view: &DirView, name: &Name, st: &Stat, marks: &FileMarks) -> Result<Option<Stat>> {
        let Some(origin) = &marks.origin else { return Ok(None) };
        let lower = match self.stack.resolve_origin(origin)? {
            Some(lower) => Some(lower),
            None => self.find_origin(view, name, origin, marks.redirect.as_ref())?,
        };
        // Of what an attribute has the type of, another form of the same may be further down.
        let any = self.stack.xattr_permissions().is_some() && st.is_file();
        Ok(lower.filter(|l| l.format() == st.format() || any && !l.is_dir()))
    }

    /// Without the privilege to open by handle: the origin is where the name, or the redirect, says, or it doesn't count.
    fn find_origin(
        &self,
        view: &DirView,
        name: &Name,
        origin: &Origin,
        redirect: Option<&Redirect>,
    ) -> Result<Option<Stat>> {
        let same = |found: InLowers, name: &Name| -> Result<Option<Stat>> {
            let InLowers::Other(dir, stat) = found else { return Ok(None) };
            Ok((self.stack.origin_of(&dir, name)?.as_ref() == Some(origin)).then_some(stat))
        };
        if let Some(stat) = same(self.find_in_lowers(&view.lowers, name, false)?, name)? {
            return Ok(Some(stat));
        }
        let Some(Redirect::Path(path)) = redirect else { return Ok(None) };
        let Some(last) = path.last() else { return Ok(None) };
        same(self.find_path(&self.lower_roots(LayerId::UPPER), path, false)?, last)
    }

    /// The inode of what was found, made if it is not known. True if the status found is its current one.
    pub(super) fn intern(&self, dir: &Arc<Inode>, name: &Name, found: Found) -> Result<(Held<'_>, bool)> {
        match found {
            Found::Dir(found) => self.intern_dir(dir, name, found),
            Found::Other(found) => Ok(self.intern_file(dir, name, &found)),
        }
    }

    fn intern_dir(&self, parent: &Arc<Inode>, name: &Name, found: FoundDir) -> Result<(Held<'_>, bool)> {
        let lower = found.lowers.first().map(|l| l.key);
        let top = found.upper.as_deref().or(found.lowers.first()).ok_or(Errno::EIO)?;
        let key = top.key.seen_in(top.layer);
        let wanted = self.numbers.lasting(lower.unwrap_or(top.key));
        let (inode, _) = self.table.intern(
            key,
            wanted,
            || self.numbers.reserve(),
            |number| {
                parent.pins.fetch_add(1, Ordering::Relaxed);
                let place = Some((parent.clone(), name.clone()));
                let mut state = DirState::new(found.upper, found.lowers.into(), place);
                state.redirect = found.redirect;
                let node = Node::Dir(Box::new(DirNode::new(state)));
                Inode::new(number, FileKind::Directory, node)
            },
        );
        let held = Held::new(self, inode);
        if !held.has_link(parent, name) {
            // Two places for one directory: layers that lie inside each other, or marks that lie.
            log::error!("{name} is a directory that another place shows already");
            return Err(Errno::EIO);
        }
        Ok((held, true))
    }

    fn intern_file(&self, parent: &Arc<Inode>, name: &Name, found: &FoundFile) -> (Held<'_>, bool) {
        let key = ObjKey::from(&found.stat);
        let layer = if found.indexed.is_some() { LayerId::UPPER } else { found.dir.layer };
        let wanted = self.numbers.lasting(found.origin.unwrap_or(key));
        let (inode, new) = self.table.intern(
            key.seen_in(layer),
            wanted,
            || self.numbers.reserve(),
            |number| Inode::new(number, found.kind, Node::Other(RwLock::new(new_file(layer, key, found)))),
        );
        let mut current = true;
        if let Node::Other(file) = &inode.node {
            let uncovered = file.read().layer.is_upper() && !found.dir.layer.is_upper();
            current = file.read().key == key;
            inode.add_link(parent, name, found.dir.layer, uncovered);
            if new && found.data.is_some() && layer.is_upper() {
                self.check_data_in_lower(&inode);
            }
            if !new && !uncovered {
                // A name leads to it again: whatever kept it reachable without one may go.
                self.unpin(&inode);
            }
        }
        (Held::new(self, inode), current)
    }

    /// Makes an inode of an object that was just made in upper; it counts as known once.
    pub(super) fn intern_new(
        &self,
        parent: &Arc<Inode>,
        name: &Name,
        dir: &UpperDir,
        st: &Stat,
        kind: FileKind,
    ) -> Result<Arc<Inode>> {
        let found = if kind == FileKind::Directory {
            let real = RealDir::child(dir, name, st);
            Found::Dir(FoundDir { upper: self.stack.as_upper(&real), lowers: Vec::new(), stat: *st, redirect: None })
        } else {
            let (dir, stat) = ((**dir).clone(), *st);
            Found::Other(FoundFile { dir, stat, kind, said: None, origin: None, data: None, indexed: None })
        };
        let (held, _) = self.intern(parent, name, found)?;
        self.name_changed(parent, name, Some((kind, held.number)));
        self.cache.put(parent.id, name, Known::At(LayerId::UPPER));
        Ok(held.keep())
    }
}

fn new_file(layer: LayerId, key: ObjKey, found: &FoundFile) -> FileState {
    let mut rare = Rare { data: found.data.clone(), ..Rare::default() };
    if let Some(copy) = &found.indexed {
        rare.lower_key = Some(copy.lower);
        rare.index = Some(copy.name.clone());
    }
    let is_rare = rare.data.is_some() || rare.index.is_some();
    FileState {
        layer,
        key,
        hard_linked: found.indexed.is_some() || found.stat.nlink > 1 && !layer.is_upper(),
        links: Links::None,
        rare: is_rare.then(|| Box::new(rare)),
    }
}
