//! Runs a case on a union and on the reference, and compares the whole tree after every step.

use layerfs::union::{Options, Union};

use super::compare::Known;
use super::generators::{Case, Op, Place, Subject};
use super::layers::{Layer, merge};
use super::reference::{Id, Kind, ROOT, Tree};
use crate::fixture::{Held, Layers, View, snapshot};

/// What went wrong, in words.
pub type Checked<T = ()> = Result<T, String>;

/// An object that is kept open.
struct Kept {
    id: Id,
    ino: u64,
}

/// A union beside the reference.
pub struct Run {
    layers: Layers,
    cache: usize,
    view: Option<View>,
    pub tree: Tree,
    known: Known,
    kept: Vec<Kept>,
    /// How many inodes were known when the union was opened.
    inodes: u64,
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
    let layers = Layers::new(case.lowers.len());
    let generated: Vec<_> = std::iter::once(&case.upper)
        .chain(&case.lowers)
        .enumerate()
        .map(|(index, entries)| Layer::new(index, entries))
        .collect();
    generated[0].write(&layers.upper(""));
    for (layer, root) in generated[1..].iter().zip(&layers.lowers) {
        layer.write(root);
    }
    let before: Vec<_> = layers.lowers.iter().map(|lower| snapshot(lower)).collect();
    let tree = merge(&generated);
    let known = Known::new(case.remember);
    let mut run = Run { layers, cache: case.cache, view: None, tree, known, kept: Vec::new(), inodes: 0 };
    run.mount();
    run.compare().map_err(|e| format!("before the first step: {e}"))?;
    for (step, op) in case.ops.iter().enumerate() {
        run.apply(step, op).and_then(|()| run.compare()).map_err(|e| format!("step {step}, {op:?}: {e}"))?;
    }
    run.finish().map_err(|e| format!("at the end: {e}"))?;
    for (lower, before) in run.layers.lowers.iter().zip(before) {
        if snapshot(lower) != before {
            return Err(format!("{} has changed", lower.display()));
        }
    }
    Ok(())
}

impl Run {
    fn mount(&mut self) {
        let options = Options { cache_entries: self.cache, ..Options::default() };
        let view = self.layers.open_with(options);
        self.inodes = view.stats().inodes;
        self.view = Some(view);
    }

    /// Forgets everything and closes; nothing may be left in memory or in the work directory.
    fn unmount(&mut self) -> Checked {
        let Some(view) = self.view.take() else { return Err("it is not mounted".to_owned()) };
        for kept in std::mem::take(&mut self.kept) {
            view.union.forget(kept.ino, 1);
        }
        self.known.forget_all(&view);
        let left = view.stats().inodes;
        if left != self.inodes {
            return Err(format!("{left} inodes are known after everything was forgotten, {} at first", self.inodes));
        }
        view.close();
        match self.layers.staged() {
            staged if staged.is_empty() => Ok(()),
            staged => Err(format!("left in the work directory: {staged:?}")),
        }
    }

    fn remount(&mut self) -> Checked {
        self.unmount()?;
        self.mount();
        Ok(())
    }

    fn finish(&mut self) -> Checked {
        self.remount()?;
        self.compare()?;
        self.unmount()
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
            Op::Remount => self.remount(),
            _ => self.operate(step, op),
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
                paths.retain(|(_, id)| matches!(self.tree.object(*id).kind, Kind::File(_)));
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
