//! Compares all that a union shows with the reference.

use std::collections::{BTreeMap, HashMap, HashSet};

use layerfs::error::Errno;
use layerfs::union::{Attr, FileKind, Union};
use nix::libc::S_IFMT;

use super::harness::Checked;
use super::layers::{N, NSEC};
use super::reference::{Id, Kind, Object, ROOT, Tree};
use crate::fixture::{View, name, read_all, xattr_names, xname};

/// How many entries one call of readdir takes: few, so that reading goes on in the middle.
const BATCH: usize = 3;

/// What a caller of the union remembers of it.
pub struct Known {
    /// Every object's number as it was first seen; it has to stay.
    numbers: HashMap<Id, u64>,
    /// Lookups that are not forgotten at once; `None` to forget each.
    remembered: Option<HashMap<u64, u64>>,
}

/// One comparison.
struct Walk<'w> {
    view: &'w View,
    tree: &'w Tree,
    known: &'w mut Known,
    /// Which object has a number.
    owners: HashMap<u64, Id>,
}

/// A directory's entries as readdir gives them.
type Listing = BTreeMap<String, (u64, FileKind)>;

impl Known {
    pub fn new(remember: bool) -> Self {
        Self { numbers: HashMap::new(), remembered: remember.then(HashMap::new) }
    }

    /// Compares everything below the root, and the objects that are kept open.
    pub fn compare(&mut self, view: &View, tree: &Tree, kept: &[(Id, u64)]) -> Checked {
        self.drop_the_dead(view, tree, kept);
        let mut walk = Walk { view, tree, known: self, owners: HashMap::new() };
        walk.number("/", ROOT, Union::ROOT)?;
        walk.object("/", ROOT, Union::ROOT)?;
        walk.directory("", ROOT, Union::ROOT, Union::ROOT)?;
        for (id, ino) in kept {
            walk.number("a kept object", *id, *ino)?;
            walk.object(&format!("kept object {ino}"), *id, *ino)?;
        }
        Ok(())
    }

    /// Forgets what is remembered of objects without a name, as a kernel does; numbers of those that nobody keeps open
    /// may be used again.
    fn drop_the_dead(&mut self, view: &View, tree: &Tree, kept: &[(Id, u64)]) {
        let alive: HashSet<Id> = tree.paths().into_iter().map(|(_, id)| id).collect();
        let kept: HashSet<Id> = kept.iter().map(|(id, _)| *id).collect();
        let remembered = &mut self.remembered;
        self.numbers.retain(|id, ino| {
            if alive.contains(id) {
                return true;
            }
            if let Some(count) = remembered.as_mut().and_then(|remembered| remembered.remove(ino)) {
                view.union.forget(*ino, count);
            }
            kept.contains(id)
        });
    }

    /// Nothing is remembered by whoever asked a union that has crashed.
    pub fn crashed(&mut self) {
        self.remembered.iter_mut().for_each(HashMap::clear);
    }

    /// From now on these are the numbers.
    pub fn renumber(&mut self, numbers: HashMap<Id, u64>) {
        self.numbers = numbers;
    }

    pub fn number(&self, id: Id) -> Option<u64> {
        self.numbers.get(&id).copied()
    }

    /// Forgets whatever is remembered.
    pub fn forget_all(&mut self, view: &View) {
        for (ino, count) in self.remembered.iter_mut().flat_map(HashMap::drain) {
            view.union.forget(ino, count);
        }
    }

    fn forget(&mut self, view: &View, ino: u64, count: u64) {
        match &mut self.remembered {
            Some(remembered) => *remembered.entry(ino).or_insert(0) += count,
            None => {
                view.union.forget(ino, count);
            }
        }
    }
}

impl Walk<'_> {
    /// Each object has one number, always the same, and no two have the same.
    fn number(&mut self, path: &str, id: Id, ino: u64) -> Checked {
        let first = *self.known.numbers.entry(id).or_insert(ino);
        if first != ino {
            return Err(format!("{path}: inode {ino}, it was {first}"));
        }
        match self.owners.insert(ino, id) {
            Some(other) if other != id => Err(format!("{path}: inode {ino} is another object's too")),
            _ => Ok(()),
        }
    }

    /// The object behind a number: attributes, content, extended attributes.
    fn object(&self, path: &str, id: Id, ino: u64) -> Checked {
        let object = self.tree.object(id);
        let union = &self.view.union;
        let failed = |what: &str, e: Errno| format!("{path}: {what} fails with {e}");
        check_attr(path, object, &union.getattr(ino).map_err(|e| failed("getattr", e))?)?;
        match &object.kind {
            Kind::File(content) => {
                let real = read_all(union, ino).map_err(|e| failed("read", e))?;
                check(path, "content", &String::from_utf8_lossy(content), &String::from_utf8_lossy(&real))?;
            }
            Kind::Withheld(_) => {
                check(path, "content", &Err(Errno::EIO), &read_all(union, ino))?;
            }
            Kind::Symlink(target) => {
                let real = union.readlink(ino).map_err(|e| failed("readlink", e))?;
                check(path, "target", target.as_str(), &String::from_utf8_lossy(&real))?;
            }
            Kind::Fifo | Kind::NullDevice | Kind::Dir(_) => {}
        }
        if object.is_removed_dir() {
            return Ok(());
        }
        let mut real = BTreeMap::new();
        for attribute in xattr_names(&union.listxattr(ino).map_err(|e| failed("listxattr", e))?) {
            if attribute.starts_with("security.") || attribute.starts_with("system.") {
                continue;
            }
            let value = union.getxattr(ino, &xname(&attribute)).map_err(|e| failed(&attribute, e))?;
            real.insert(attribute, value);
        }
        check(path, "extended attributes", &object.xattrs, &real)
    }

    fn directory(&mut self, path: &str, id: Id, ino: u64, parent: u64) -> Checked {
        let Kind::Dir(entries) = &self.tree.object(id).kind else { return Err(format!("{path}: no directory")) };
        let mut listed = self.read(path, ino)?;
        check(path, ".", &Some(ino), &listed.remove(".").map(|dot| dot.0))?;
        check(path, "..", &Some(parent), &listed.remove("..").map(|dots| dots.0))?;
        let names: Vec<_> = listed.keys().map(String::as_str).collect();
        check(path, "names", &entries.keys().copied().collect::<Vec<_>>(), &names)?;
        let mut plus = self.read_plus(path, ino)?;
        for (entry, child) in entries {
            let path = format!("{path}/{entry}");
            let attr =
                self.view.union.lookup(ino, &name(entry)).map_err(|e| format!("{path}: lookup fails with {e}"))?;
            let Some(plus) = plus.remove(*entry) else { return Err(format!("{path}: readdirplus doesn't show it")) };
            check(&path, "readdirplus", &essence(&attr), &essence(&plus))?;
            check(&path, "readdir", &(attr.ino, kind_of(self.tree.object(*child))), &listed[*entry])?;
            check_attr(&path, self.tree.object(*child), &attr)?;
            self.number(&path, *child, attr.ino)?;
            self.object(&path, *child, attr.ino)?;
            if self.tree.object(*child).is_dir() {
                self.directory(&path, *child, attr.ino, ino)?;
            }
            self.known.forget(self.view, attr.ino, 2);
        }
        if let Some(entry) = plus.keys().next() {
            return Err(format!("{path}: readdirplus shows {entry}"));
        }
        for missing in N::ALL.iter().filter(|entry| !entries.contains_key(*entry)) {
            let found = self.view.union.lookup(ino, &name(missing)).map(|attr| attr.ino);
            check(&format!("{path}/{missing}"), "lookup", &Err(Errno::ENOENT), &found)?;
        }
        Ok(())
    }

    /// All entries, in many calls.
    fn read(&self, path: &str, ino: u64) -> Checked<Listing> {
        let mut listing = Listing::new();
        let mut offset = 0;
        loop {
            let (mut taken, mut twice) = (0, None);
            let read = self.view.union.readdir(ino, offset, &mut |entry| {
                if taken == BATCH {
                    return false;
                }
                taken += 1;
                offset = entry.next;
                let name = String::from_utf8_lossy(entry.name).into_owned();
                if listing.insert(name.clone(), (entry.ino, entry.kind)).is_some() {
                    twice = Some(name);
                }
                true
            });
            read.map_err(|e| format!("{path}: readdir fails with {e}"))?;
            if let Some(name) = twice {
                return Err(format!("{path}: readdir shows {name} twice"));
            }
            if taken == 0 {
                return Ok(listing);
            }
        }
    }

    fn read_plus(&self, path: &str, ino: u64) -> Checked<BTreeMap<String, Attr>> {
        let mut listing = BTreeMap::new();
        let read = self.view.union.readdirplus(ino, 0, &mut |entry, attr| {
            if entry.name != b"." && entry.name != b".." {
                listing.insert(String::from_utf8_lossy(entry.name).into_owned(), *attr);
            }
            true
        });
        read.map_err(|e| format!("{path}: readdirplus fails with {e}"))?;
        Ok(listing)
    }
}

/// What is the same in two answers about one object.
fn essence(attr: &Attr) -> (u64, u32, u32, u64, (i64, u32)) {
    (attr.ino, attr.mode, attr.nlink, attr.size, (attr.mtime.sec, attr.mtime.nsec))
}

fn kind_of(object: &Object) -> FileKind {
    match object.kind {
        Kind::File(_) | Kind::Withheld(_) => FileKind::Regular,
        Kind::Symlink(_) => FileKind::Symlink,
        Kind::Fifo => FileKind::Fifo,
        Kind::NullDevice => FileKind::CharDevice,
        Kind::Dir(_) => FileKind::Directory,
    }
}

/// Compares attributes with those of the reference, as far as it knows them.
pub fn check_attr(path: &str, object: &Object, attr: &Attr) -> Checked {
    let mode = kind_of(object).to_mode() | object.mode;
    check(path, "mode", &format!("{mode:o}"), &format!("{:o}", attr.mode & (S_IFMT | 0o7777)))?;
    check(path, "owner", &(object.uid, object.gid), &(attr.uid, attr.gid))?;
    if let Some(mtime) = object.mtime {
        check(path, "mtime", &(mtime, NSEC), &(attr.mtime.sec, attr.mtime.nsec))?;
    }
    if !object.is_dir() {
        check(path, "nlink", &object.nlink, &attr.nlink)?;
    }
    match &object.kind {
        Kind::File(content) => check(path, "size", &(content.len() as u64), &attr.size),
        Kind::Withheld(size) => check(path, "size", &(*size as u64), &attr.size),
        Kind::Symlink(target) => check(path, "size", &(target.len() as u64), &attr.size),
        Kind::NullDevice => check(path, "device", &0, &attr.rdev),
        Kind::Fifo | Kind::Dir(_) => Ok(()),
    }
}

fn check<T: PartialEq + std::fmt::Debug + ?Sized>(path: &str, what: &str, expected: &T, real: &T) -> Checked {
    if expected == real {
        return Ok(());
    }
    Err(format!("{path}: {what}: expected {expected:?}, got {real:?}"))
}
