//! What a union has to show, as a plain tree in memory: objects, names, and what POSIX says an operation does to them.

use std::collections::BTreeMap;

use layerfs::error::Errno;

/// An object's place in [`Tree::objects`]; it is never used again.
pub type Id = usize;

/// The root directory.
pub const ROOT: Id = 0;

/// The errors that are right for an operation: one, but where a caller can't tell which check came first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(pub Vec<Errno>);

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self(vec![errno])
    }
}

/// What an operation has to answer.
pub type Outcome<T> = Result<T, Fault>;

/// Two checks that may be made in either order.
fn both(one: Outcome<()>, other: Outcome<()>) -> Outcome<()> {
    match (one, other) {
        (Err(one), Err(other)) => Err(Fault([one.0, other.0].concat())),
        (one, other) => one.and(other),
    }
}

/// A file, directory, symlink, fifo or device.
#[derive(Clone, Debug)]
pub struct Object {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// `None` once something set it to a time that the model can't know.
    pub mtime: Option<i64>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Names, those that upper layers hide included; a directory has 1 or, removed, 0.
    pub nlink: u32,
}

/// What an object is, with what only that kind has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File(Vec<u8>),
    /// A file of that size whose data is elsewhere, by the word of a layer that isn't trusted: it can't be read.
    Withheld(usize),
    Symlink(String),
    Fifo,
    /// A character device 0:0.
    NullDevice,
    Dir(BTreeMap<&'static str, Id>),
}

/// How a name changes in a rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameKind {
    Plain,
    NoReplace,
    Exchange,
    /// Leaves a device 0:0 at the old name.
    Whiteout,
}

impl Object {
    /// A new object that nobody has changed.
    pub fn new(kind: Kind, mode: u32, (uid, gid): (u32, u32)) -> Self {
        Self { kind, mode, uid, gid, mtime: None, xattrs: BTreeMap::new(), nlink: 1 }
    }

    pub fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir(_))
    }

    /// A removed directory has attributes as long as it is known, but nothing in it, extended attributes included.
    pub fn is_removed_dir(&self) -> bool {
        self.is_dir() && self.nlink == 0
    }

    fn takes_user_xattrs(&self) -> bool {
        matches!(self.kind, Kind::Dir(_) | Kind::File(_) | Kind::Withheld(_))
    }
}

/// The merged tree, and the objects that lost their last name.
#[derive(Clone, Debug)]
pub struct Tree {
    pub objects: Vec<Object>,
    /// Who owns what the union makes on its own account.
    daemon: (u32, u32),
}

impl Tree {
    /// A tree with a root only, which the user has that runs the union.
    pub fn new(root: Object) -> Self {
        Self { daemon: (root.uid, root.gid), objects: vec![root] }
    }

    pub fn object(&self, id: Id) -> &Object {
        &self.objects[id]
    }

    pub fn add(&mut self, object: Object) -> Id {
        self.objects.push(object);
        self.objects.len() - 1
    }

    /// Every name with what it names, each directory before what is in it; the root is "".
    pub fn paths(&self) -> Vec<(String, Id)> {
        let mut all = vec![(String::new(), ROOT)];
        let mut next = 0;
        while next < all.len() {
            let (path, id) = all[next].clone();
            if let Kind::Dir(entries) = &self.object(id).kind {
                all.extend(entries.iter().map(|(name, id)| (format!("{path}/{name}"), *id)));
            }
            next += 1;
        }
        all
    }

    /// Whether `id` is `above` or lies below it.
    fn is_within(&self, id: Id, above: Id) -> bool {
        id == above
            || match &self.object(above).kind {
                Kind::Dir(entries) => entries.values().any(|child| self.is_within(id, *child)),
                _ => false,
            }
    }

    fn entries(&self, dir: Id) -> Outcome<&BTreeMap<&'static str, Id>> {
        match &self.object(dir).kind {
            Kind::Dir(entries) => Ok(entries),
            _ => Err(Errno::ENOTDIR.into()),
        }
    }

    /// The entries of a directory that changes.
    fn change(&mut self, dir: Id) -> &mut BTreeMap<&'static str, Id> {
        let object = &mut self.objects[dir];
        object.mtime = None;
        match &mut object.kind {
            Kind::Dir(entries) => entries,
            _ => unreachable!("only directories have names in them"),
        }
    }

    pub fn lookup(&self, dir: Id, name: &str) -> Outcome<Id> {
        self.entries(dir)?.get(name).copied().ok_or_else(|| Errno::ENOENT.into())
    }

    /// Whether a name may come into a directory.
    fn free(&self, dir: Id, name: &str) -> Outcome<()> {
        if self.entries(dir)?.contains_key(name) {
            return Err(Errno::EEXIST.into());
        }
        if self.object(dir).nlink == 0 {
            return Err(Errno::ENOENT.into());
        }
        Ok(())
    }

    pub fn make(&mut self, dir: Id, name: &'static str, object: Object) -> Outcome<Id> {
        self.free(dir, name)?;
        let id = self.add(object);
        self.change(dir).insert(name, id);
        Ok(id)
    }

    pub fn link(&mut self, id: Id, dir: Id, name: &'static str) -> Outcome<Id> {
        let source = match self.object(id) {
            object if object.is_dir() => Err(Errno::EPERM.into()),
            object if object.nlink == 0 => Err(Errno::ENOENT.into()),
            _ => Ok(()),
        };
        both(self.free(dir, name), source)?;
        self.objects[id].nlink += 1;
        self.change(dir).insert(name, id);
        Ok(id)
    }

    pub fn unlink(&mut self, dir: Id, name: &str) -> Outcome<()> {
        let id = self.lookup(dir, name)?;
        if self.object(id).is_dir() {
            return Err(Errno::EISDIR.into());
        }
        self.change(dir).remove(name);
        self.objects[id].nlink -= 1;
        Ok(())
    }

    pub fn rmdir(&mut self, dir: Id, name: &str) -> Outcome<()> {
        let id = self.lookup(dir, name)?;
        if !self.entries(id)?.is_empty() {
            return Err(Errno::ENOTEMPTY.into());
        }
        self.change(dir).remove(name);
        self.objects[id].nlink -= 1;
        Ok(())
    }

    /// The checks of `rename(2)` in the order of Linux.
    pub fn rename(&mut self, from: (Id, &'static str), to: (Id, &'static str), kind: RenameKind) -> Outcome<()> {
        let source = self.lookup(from.0, from.1);
        both(self.entries(to.0).map(drop), source.clone().map(drop))?;
        let source = source?;
        let target = self.entries(to.0)?.get(to.1).copied();
        match (kind, target) {
            (RenameKind::NoReplace, Some(_)) => return Err(Errno::EEXIST.into()),
            (RenameKind::Exchange, None) => return Err(Errno::ENOENT.into()),
            _ => {}
        }
        if self.is_within(to.0, source) {
            return Err(Errno::EINVAL.into());
        }
        if let Some(target) = target {
            if self.is_within(from.0, target) {
                // Linux answers so before it looks at the kinds; a filesystem that is asked sees those first.
                return Err(match kind {
                    RenameKind::Exchange => Errno::EINVAL.into(),
                    _ if self.object(source).is_dir() => Errno::ENOTEMPTY.into(),
                    _ => Fault(vec![Errno::ENOTEMPTY, Errno::EISDIR]),
                });
            }
            if source == target {
                return Ok(());
            }
            if kind != RenameKind::Exchange {
                self.may_replace(source, target)?;
                self.objects[target].nlink -= 1;
            }
        } else if self.object(to.0).nlink == 0 {
            return Err(Errno::ENOENT.into());
        }
        self.change(from.0).remove(from.1);
        self.change(to.0).insert(to.1, source);
        match (kind, target) {
            (RenameKind::Exchange, Some(target)) => {
                self.change(from.0).insert(from.1, target);
            }
            (RenameKind::Whiteout, _) => {
                let device = self.add(Object::new(Kind::NullDevice, 0, self.daemon));
                self.change(from.0).insert(from.1, device);
            }
            _ => {}
        }
        Ok(())
    }

    fn may_replace(&self, source: Id, target: Id) -> Outcome<()> {
        match (self.object(source).is_dir(), &self.object(target).kind) {
            (true, Kind::Dir(entries)) if entries.is_empty() => Ok(()),
            (true, Kind::Dir(_)) => Err(Errno::ENOTEMPTY.into()),
            (true, _) => Err(Errno::ENOTDIR.into()),
            (false, Kind::Dir(_)) => Err(Errno::EISDIR.into()),
            (false, _) => Ok(()),
        }
    }

    /// The content of a file that changes.
    fn content(&mut self, id: Id) -> Outcome<&mut Vec<u8>> {
        match &mut self.objects[id].kind {
            Kind::File(content) => Ok(content),
            Kind::Withheld(_) => Err(Errno::EIO.into()),
            Kind::Dir(_) => Err(Errno::EISDIR.into()),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    pub fn write(&mut self, id: Id, offset: usize, data: &[u8]) -> Outcome<()> {
        let content = self.content(id)?;
        let end = offset + data.len();
        content.resize(content.len().max(end), 0);
        content[offset..end].copy_from_slice(data);
        self.objects[id].mtime = None;
        Ok(())
    }

    pub fn resize(&mut self, id: Id, size: usize) -> Outcome<()> {
        if size == 0 && matches!(self.object(id).kind, Kind::Withheld(_)) {
            self.objects[id].kind = Kind::File(Vec::new());
        }
        self.content(id)?.resize(size, 0);
        self.objects[id].mtime = None;
        Ok(())
    }

    /// `fallocate` that makes a hole and keeps the size.
    pub fn punch(&mut self, id: Id, offset: usize, length: usize) -> Outcome<()> {
        let content = self.content(id)?;
        let end = content.len().min(offset + length);
        if offset < end {
            content[offset..end].fill(0);
        }
        self.objects[id].mtime = None;
        Ok(())
    }

    /// `fallocate` as it is by default.
    pub fn allocate(&mut self, id: Id, offset: usize, length: usize) -> Outcome<()> {
        let content = self.content(id)?;
        content.resize(content.len().max(offset + length), 0);
        self.objects[id].mtime = None;
        Ok(())
    }

    pub fn set_xattr(&mut self, id: Id, name: &str, value: &[u8], flags: i32) -> Outcome<()> {
        self.check_xattr(id, name)?;
        let xattrs = &mut self.objects[id].xattrs;
        match (xattrs.contains_key(name), flags) {
            (true, nix::libc::XATTR_CREATE) => Err(Errno::EEXIST.into()),
            (false, nix::libc::XATTR_REPLACE) => Err(Errno::ENODATA.into()),
            _ => {
                xattrs.insert(name.to_owned(), value.to_owned());
                Ok(())
            }
        }
    }

    pub fn remove_xattr(&mut self, id: Id, name: &str) -> Outcome<()> {
        // The kernel sees that this kind of object has none, before it asks; who is asked sees that it is missing.
        self.check_xattr(id, name).map_err(|fault| Fault([fault.0, vec![Errno::ENODATA]].concat()))?;
        self.objects[id].xattrs.remove(name).map(drop).ok_or_else(|| Errno::ENODATA.into())
    }

    fn check_xattr(&self, id: Id, name: &str) -> Outcome<()> {
        if name.starts_with("user.") && !self.object(id).takes_user_xattrs() {
            return Err(Errno::EPERM.into());
        }
        Ok(())
    }
}
