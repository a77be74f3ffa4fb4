//! Compares what the layers on disk say, read by the rules of the formats, with the reference.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::harness::Checked;
use super::merge::{Merged, Source};
use super::reference::{Id, Kind, Object, ROOT, Tree};

/// Compares every name, and what it names as far as the layers alone can tell.
///
/// Two things they can't. What became of a lower object with several names is written down in the work directory: names
/// that no lookup found before it was copied are still the lower's and lead to the copy by the index, and how many names
/// are left is counted there. And in a layer that isn't trusted a device 0:0 is the regular file that it is stored as, and the
/// data of a metadata copy can't be read. `sources` tells where the reference's objects came from.
pub fn compare(tree: &Tree, sources: &HashMap<Id, Source>, merged: &Merged) -> Checked {
    let (before, after) = (by_path(tree), by_path(&merged.tree));
    if !before.keys().eq(after.keys()) {
        let (before, after): (Vec<_>, Vec<_>) = (before.keys().collect(), after.keys().collect());
        return Err(format!("on disk: expected {before:?}, got {after:?}"));
    }
    let pairs: Vec<_> = before.iter().map(|(path, id)| (path, *id, after[path])).collect();
    let source = |id| merged.sources.get(&id);
    let is_loose = |id| source(id).is_some_and(|source: &Source| source.several_lower_names || source.distrusted);
    let loose: HashSet<Id> =
        pairs.iter().filter(|(_, _, after)| is_loose(*after)).map(|(_, before, _)| *before).collect();
    let mut same: BTreeMap<Id, Id> = BTreeMap::new();
    for (path, before, after) in pairs {
        let (old, new) = (tree.object(before), merged.tree.object(after));
        if source(after).is_some_and(|source| source.distrusted) {
            check(path, "a regular file", &true, &matches!(new.kind, Kind::File(_) | Kind::Withheld(_)))?;
        } else if loose.contains(&before) {
            check(path, "kind", &std::mem::discriminant(&old.kind), &std::mem::discriminant(&new.kind))?;
        } else {
            check(path, "its object", &after, same.entry(before).or_insert(after))?;
            let counted = !sources.get(&before).is_some_and(|source| source.several_lower_names);
            compare_objects(path, before, old, new)?;
            if counted && !old.is_dir() {
                check(path, "nlink", &old.nlink, &new.nlink)?;
            }
        }
    }
    Ok(())
}

fn by_path(tree: &Tree) -> BTreeMap<String, Id> {
    tree.paths().into_iter().collect()
}

fn compare_objects(path: &str, id: Id, old: &Object, new: &Object) -> Checked {
    match (&old.kind, &new.kind) {
        (Kind::Dir(_), Kind::Dir(_)) => {}
        (old, new) => check(path, "kind and content", old, new)?,
    }
    check(path, "mode", &format!("{:o}", old.mode), &format!("{:o}", new.mode))?;
    check(path, "owner", &(old.uid, old.gid), &(new.uid, new.gid))?;
    check(path, "extended attributes", &old.xattrs, &new.xattrs)?;
    if old.mtime.is_some() && id != ROOT { check(path, "mtime", &old.mtime, &new.mtime) } else { Ok(()) }
}

fn check<T: PartialEq + std::fmt::Debug>(path: &str, what: &str, expected: &T, real: &T) -> Checked {
    if expected == real {
        return Ok(());
    }
    Err(format!("on disk: {path}: {what}: expected {expected:?}, got {real:?}"))
}
