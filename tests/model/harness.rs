//! Runs a case on a union and on the reference, and compares the whole tree after every step.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::PathBuf;

use layerfs::layer::StackSpec;
use layerfs::layer::override_stat::Form;
use layerfs::layer::whiteout::Whiteouts;
use layerfs::union::{Options, Union};

use super::case::{Case, Op, Place, Subject};
use super::compare::Known;
use super::layers::Layer;
use super::merge::{Merged, Source, merge, merge_generated};
use super::on_disk;
use super::read::{KEPT, read};
use super::reference::{Id, Kind, Object, ROOT, Tree};
use super::write::write;
use crate::fixture::{Held, Layers, OnDisk, View, make_whiteout, me, set_xattr, snapshot};

/// What went wrong, in words.
pub type Checked<T = ()> = Result<T, String>;

/// An object that is kept open.
struct Kept {
    id: Id,
    ino: u64,
}

/// How a union keeps things in upper.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// Where owners and permissions are, if not on the objects.
    pub permissions: Option<Form>,
    pub whiteouts: Whiteouts,
}

/// A union beside the reference.
pub struct Run {
    layers: Layers,
    trusted: bool,
    cache: usize,
    manner: Manner,
    view: Option<View>,
    pub tree: Tree,
    /// Where the objects came from that upper had or found when it was new.
    sources: HashMap<Id, Source>,
    known: Known,
    kept: Vec<Kept>,
    /// How many inodes were known when the union was opened.
    inodes: u64,
    /// The lowers as they have to stay.
    lowers: Vec<(PathBuf, BTreeMap<PathBuf, OnDisk>)>,
}

/// Something that an operation is about, and how to get there.
pub struct Target {
    pub id: Id,
    route: Route,
}

enum Route {
    Path(String),
    Kept(u64),
}

/// A name in a directory.
pub struct Spot {
    pub dir: Target,
    pub name: &'static str,
}

/// A target, looked up while this lives.
pub struct Reached<'u> {
    pub ino: u64,
    _held: Option<Held<'u>>,
}

/// Runs a case to its end.
///
/// # Errors
/// The first difference between the union and the reference.
pub fn run(case: &Case) -> Checked {
    run_in(case, Manner::default())
}

/// The same with another manner of keeping things in upper.
///
/// # Errors
/// As [`run`].
pub fn run_in(case: &Case, manner: Manner) -> Checked {
    let mut run = Run::new(case);
    run.manner = manner;
    run.on_disk().map_err(|e| format!("the layers are not what was asked for: {e}"))?;
    run.mount().and_then(|()| run.compare()).map_err(|e| format!("before the first step: {e}"))?;
    for (step, op) in case.ops.iter().enumerate() {
        run.apply(step, op).and_then(|()| run.compare()).map_err(|e| format!("step {step}, {op:?}: {e}"))?;
    }
    run.finish().map_err(|e| format!("at the end: {e}"))
}

impl Run {
    /// Makes the layers of a case.
    fn new(case: &Case) -> Self {
        let layers = Layers::new(case.lowers.len());
        let make = |redirects| {
            let generated = std::iter::once(&case.upper).chain(&case.lowers).enumerate();
            generated.map(|(index, entries)| Layer::new(index, entries, redirects)).collect()
        };
        let (generated, merged) = merge_generated(make, case.trusted);
        let roots: Vec<_> = std::iter::once(layers.upper("")).chain(layers.lowers.iter().cloned()).collect();
        write(&generated, &roots, &merged);
        Self {
            lowers: layers.lowers.iter().map(|lower| (lower.clone(), snapshot(lower))).collect(),
            layers,
            trusted: case.trusted,
            cache: case.cache,
            manner: Manner::default(),
            view: None,
            sources: merged.sources,
            tree: merged.tree,
            known: Known::new(case.remember),
            kept: Vec::new(),
            inodes: 0,
        }
    }

    fn mount(&mut self) -> Checked {
        let options = Options { cache_entries: self.cache, whiteouts: self.manner.whiteouts, ..Options::default() };
        let (trusted_lowers, xattr_permissions) = (self.trusted, self.manner.permissions);
        let spec = StackSpec { trusted_lowers, xattr_permissions, ..self.layers.spec() };
        let view = View::open(&spec, options);
        self.inodes = view.stats().inodes;
        self.view = Some(view);
        self.nothing_staged()
    }

    /// Forgets everything and closes; nothing may be left in memory or in the work directory.
    fn unmount(&mut self) -> Checked {
        let Some(view) = self.view.take() else { return Err("it is not mounted".to_owned()) };
        for kept in std::mem::take(&mut self.kept) {
            view.union.forget(kept.ino, 1);
        }
        self.known.forget_all(&view);
        view.union.commit().map_err(|e| format!("the last commit fails: {e}"))?;
        let left = view.stats().inodes;
        if left != self.inodes {
            return Err(format!("{left} inodes are known after everything was forgotten, {} at first", self.inodes));
        }
        view.close();
        if self.layers.work("work/incompat").exists() {
            return Err("a clean end leaves the sign of unfinished changes".to_owned());
        }
        self.nothing_staged()
    }

    fn nothing_staged(&self) -> Checked {
        let parked = self.layers.work("layerfs/parked").read_dir().map_or(0, Iterator::count);
        match self.layers.staged() {
            staged if staged.is_empty() && parked == 0 => Ok(()),
            staged => Err(format!("left in the work directory: {staged:?} and {parked} parked files")),
        }
    }

    fn remount(&mut self) -> Checked {
        self.unmount()?;
        self.mount()
    }

    /// Drops all that a process has: memory, descriptors, locks. Nothing of the union writes when it is dropped, so
    /// afterwards the disk is as after SIGKILL between two operations.
    fn crash(&mut self, midway: bool) -> Checked {
        drop(self.view.take());
        self.kept.clear();
        self.known.crashed();
        if midway {
            self.leave_unfinished();
        }
        self.mount()
    }

    /// What may lie in the work directory when operations were under way: objects in the making, a merged directory that
    /// is being removed, parked files, and a record of which only the beginning was written.
    fn leave_unfinished(&self) {
        let stage = self.layers.work("layerfs/stage");
        std::fs::create_dir_all(stage.join("1/directory")).unwrap();
        std::fs::write(stage.join("1/file"), "half").unwrap();
        make_whiteout(&stage.join("1/directory/whiteout"));
        std::fs::write(stage.join("2"), "half").unwrap();
        std::fs::write(self.layers.work("layerfs/parked/1000"), "unlinked").unwrap();
        if let Ok(mut marks) = std::fs::OpenOptions::new().append(true).open(self.layers.work("layerfs/marks")) {
            marks.write_all(&[40, 0, 0, 0, 1, 2, 3]).unwrap();
        }
    }

    /// Upper becomes a lower. What is then seen of the layers is the new reference, after a comparison with the old one.
    fn add_layer(&mut self) -> Checked {
        self.unmount()?;
        self.layers.add_layer();
        let added = self.layers.lowers[0].clone();
        self.lowers.push((added.clone(), snapshot(&added)));
        // The root is that of the new upper.
        let root = Object { kind: self.tree.object(ROOT).kind.clone(), ..fresh_root() };
        if self.manner.permissions.is_some() {
            // Else it would show what the added layer's root says.
            let value = format!("{}:{}:{:o}", root.uid, root.gid, root.mode);
            set_xattr(&self.layers.upper(""), KEPT, value.as_bytes()).unwrap();
        }
        self.tree.objects[ROOT] = root;
        let merged = self.on_disk()?;
        let mut numbers: HashMap<_, _> = merged.sources.iter().map(|(id, source)| (*id, source.ino)).collect();
        numbers.insert(ROOT, Union::ROOT);
        // Only upper says what was copied from where: copies have numbers of their own now. What was never one keeps its.
        let after: HashMap<_, _> = merged.tree.paths().into_iter().collect();
        for (path, id) in self.tree.paths().into_iter().filter(|(_, id)| *id != ROOT && !self.sources.contains_key(id))
        {
            let (first, now) = (self.known.number(id), numbers.get(&after[&path]).copied());
            if first != now {
                return Err(format!("{path}: inode {now:?} in the added layer, it was {first:?}"));
            }
        }
        self.known.renumber(numbers);
        self.sources = merged.sources;
        self.tree = merged.tree;
        self.mount()
    }

    /// What the layers on disk say, which has to be what the reference says.
    fn on_disk(&self) -> Checked<Merged> {
        let roots = std::iter::once(self.layers.upper("")).chain(self.layers.lowers.iter().cloned());
        let layers: Vec<_> = roots.map(|root| read(&root)).collect::<Checked<_>>()?;
        let merged = merge(&layers, self.trusted).map_err(|e| format!("on disk: {e:?}"))?;
        on_disk::compare(&self.tree, &self.sources, &merged)?;
        Ok(merged)
    }

    fn finish(&mut self) -> Checked {
        self.remount()?;
        self.compare()?;
        self.unmount()?;
        self.on_disk()?;
        for (lower, before) in &self.lowers {
            if snapshot(lower) != *before {
                return Err(format!("{} has changed", lower.display()));
            }
        }
        Ok(())
    }

    fn compare(&mut self) -> Checked {
        let Some(view) = &self.view else { return Err("it is not mounted".to_owned()) };
        let kept: Vec<_> = self.kept.iter().map(|kept| (kept.id, kept.ino)).collect();
        self.known.compare(view, &self.tree, &kept)
    }

    fn apply(&mut self, step: usize, op: &Op) -> Checked {
        match *op {
            Op::Hold { of } => self.hold(of),
            Op::Release { which } => {
                if let (Some(view), false) = (&self.view, self.kept.is_empty()) {
                    let kept = self.kept.swap_remove(which % self.kept.len());
                    view.union.forget(kept.ino, 1);
                }
                Ok(())
            }
            Op::Commit => self.commit(),
            Op::Remount => self.remount(),
            Op::Crash { midway } => self.crash(midway),
            Op::AddLayer => self.add_layer(),
            _ => self.operate(step, op),
        }
    }

    fn commit(&self) -> Checked {
        let Some(view) = &self.view else { return Ok(()) };
        view.union.commit().map_err(|e| format!("a commit fails: {e}"))?;
        match view.stats().uncommitted {
            0 => Ok(()),
            left => Err(format!("{left} copies are uncommitted after a commit")),
        }
    }

    fn hold(&mut self, of: Subject) -> Checked {
        let target = self.target(of);
        let (Some(view), Route::Path(path)) = (&self.view, &target.route) else { return Ok(()) };
        if target.id != ROOT {
            let ino = view.hold(path).map_err(|e| format!("{path}: lookup fails with {e}"))?.keep();
            self.kept.push(Kept { id: target.id, ino });
        }
        Ok(())
    }

    /// The union and the reference, to do the same with both.
    pub fn both(&mut self) -> Checked<(&Union, &View, &mut Tree)> {
        let Some(view) = &self.view else { return Err("it is not mounted".to_owned()) };
        Ok((&view.union, view, &mut self.tree))
    }

    /// Picks an object that is there; the root if there is none of the kind.
    pub fn target(&self, subject: Subject) -> Target {
        let mut paths = self.tree.paths();
        let wanted = match subject {
            Subject::Held(n) if !self.kept.is_empty() => {
                let kept = &self.kept[n % self.kept.len()];
                return Target { id: kept.id, route: Route::Kept(kept.ino) };
            }
            Subject::Dir(n) => {
                paths.retain(|(_, id)| self.tree.object(*id).is_dir());
                n
            }
            Subject::File(n) => {
                let root = paths[0].clone();
                paths.retain(|(_, id)| matches!(self.tree.object(*id).kind, Kind::File(_) | Kind::Withheld(_)));
                if paths.is_empty() {
                    paths.push(root);
                }
                n
            }
            Subject::Any(n) | Subject::Held(n) => n,
        };
        let (path, id) = paths.swap_remove(wanted % paths.len());
        Target { id, route: Route::Path(path) }
    }

    /// Picks a name.
    pub fn spot(&self, place: Place) -> Spot {
        let taken = match place {
            Place::In(dir, name) => return Spot { dir: self.target(dir), name: name.text() },
            Place::Existing(n) => n,
        };
        let mut all = Vec::new();
        for (path, id) in self.tree.paths() {
            if let Kind::Dir(entries) = &self.tree.object(id).kind {
                all.extend(entries.keys().map(|name| (path.clone(), id, *name)));
            }
        }
        if all.is_empty() {
            all.push((String::new(), ROOT, "a"));
        }
        let (path, id, name) = all.swap_remove(taken % all.len());
        Spot { dir: Target { id, route: Route::Path(path) }, name }
    }
}

/// The root of a new upper directory.
fn fresh_root() -> Object {
    Object::new(Kind::Dir(BTreeMap::new()), 0o755, (me().uid, me().gid))
}

impl Target {
    /// Looks the target up.
    pub fn reach<'u>(&self, view: &'u View) -> Checked<Reached<'u>> {
        match &self.route {
            Route::Kept(ino) => Ok(Reached { ino: *ino, _held: None }),
            Route::Path(path) => {
                let held = view.hold(path).map_err(|e| format!("{path}: lookup fails with {e}"))?;
                Ok(Reached { ino: held.ino, _held: Some(held) })
            }
        }
    }
}
