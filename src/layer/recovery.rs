//! After an unclean end: copies that were not committed are committed now, or, when the machine itself stopped meanwhile, get
//! their origin's content again. Metadata copies that lost their size then are found; whose they get is the union's to say.
//!
//! An uncommitted copy is known by its mark, never by its name: it may have been renamed, linked or renamed over since. Each
//! step can be interrupted and done again: the mark goes last.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::error::{Errno, Result, SetupError, is_passing};
use crate::layer::marks::Mark;
use crate::layer::origin::Origin;
use crate::layer::real::{ObjKey, RealDir};
use crate::layer::stack::{Layer, Stack, walk};
use crate::layer::stage::Over;
use crate::layer::uncommitted::{self, Uncommitted};
use crate::layer::upper::{Upper, UpperDir, UpperObject};
use crate::layer::work::open_sub;
use crate::name::Name;
use crate::sys;
use crate::sys::file::{Stat, TimeChange};
use crate::sys::xattr::{CAPABILITY, Target};

/// How much of two files is compared at a time, in bytes.
const COMPARED: usize = 1 << 20;

/// Where a copy was found.
#[derive(Debug)]
pub enum Place {
    /// A name in upper.
    Upper(UpperDir, Name),
    /// A name in the index.
    Index(Name),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Upper(dir, name) => {
                dir.path().iter().try_for_each(|part| write!(f, "{part}/"))?;
                write!(f, "{name}")
            }
            Place::Index(name) => write!(f, "{name} in the index"),
        }
    }
}

/// An uncommitted copy.
#[derive(Debug)]
struct Found {
    place: Place,
    mark: Uncommitted,
}

/// What a search of upper and of the index found.
#[derive(Debug, Default)]
struct Search {
    uncommitted: Vec<Found>,
    /// Metadata copies without a size. None is made like that, but btrfs, asked for the names of a directory to be durable, keeps
    /// all but the size of a new file there.
    sizeless: Vec<Place>,
}

impl Stack {
    /// Puts right what a mount before this one left unfinished. `boot` is this run of the machine. Returns the metadata copies
    /// that want their size, for [`Stack::resize`].
    ///
    /// # Errors
    /// What keeps upper from being put right; the mount must not come about then, and a later one tries again.
    pub fn recover(&self, boot: &str) -> std::result::Result<Vec<Place>, SetupError> {
        if !self.is_writable() {
            return Ok(Vec::new());
        }
        self.recover_uncommitted(boot).map_err(|e| self.not_recovered(e))
    }

    /// What to tell when upper can't be put right.
    pub fn not_recovered(&self, e: Errno) -> SetupError {
        let what = format!("the upper layer can't be recovered after an unclean end ({e})");
        let path = self.layers().first().map(|layer| layer.path.clone()).unwrap_or_default();
        SetupError::new(what, &path, "mount it with the lower layers that it had, readable and writable")
    }

    fn recover_uncommitted(&self, boot: &str) -> Result<Vec<Place>> {
        let upper = self.upper()?;
        if !upper.work.is_unclean() {
            return Ok(Vec::new());
        }
        let noted = match uncommitted::read_lists(upper.work.private.as_fd(), boot)? {
            Some(paths) => self.all_at(&paths)?,
            None => None,
        };
        let Search { uncommitted, sizeless } = match noted {
            Some(uncommitted) => Search { uncommitted, sizeless: Vec::new() },
            None => self.search()?,
        };
        let (ours, cut): (Vec<_>, Vec<_>) =
            uncommitted.into_iter().partition(|found| found.mark.boot == boot && !boot.is_empty());
        upper.begin()?;
        self.commit(&ours)?;
        for found in &cut {
            self.restore(found)?;
        }
        uncommitted::remove_lists(upper.work.private.as_fd())?;
        Ok(sizeless)
    }

    /// Gives a metadata copy the size that its lower file has.
    ///
    /// # Errors
    /// As ftruncate(2).
    pub fn resize(&self, copy: &Place, size: u64) -> Result<()> {
        let object = self.open_place(copy)?;
        let own = sys::file::stat(&object)?;
        if own.size != size {
            self.upper()?.give_size(&object, &own, size)?;
            log::warn!("{copy} has the size of its lower file again, which it lost when the machine stopped");
        }
        Ok(())
    }

    /// The copies at the paths where they were published; `None` if one of them is not there any more.
    fn all_at(&self, paths: &[Vec<Name>]) -> Result<Option<Vec<Found>>> {
        let mut all = Vec::new();
        for path in paths {
            match self.at_path(path)? {
                Some(found) => all.push(found),
                None => return Ok(None),
            }
        }
        Ok(Some(all))
    }

    fn at_path(&self, path: &[Name]) -> Result<Option<Found>> {
        let Some((last, parents)) = path.split_last() else { return Ok(None) };
        let mut dir = self.upper_root().ok_or(Errno::EROFS)?;
        for name in parents {
            let Some(stat) = self.stat_at(&dir, name)?.filter(Stat::is_dir) else { return Ok(None) };
            let child = self.child_dir(&dir, name, &stat)?;
            dir = self.as_upper(&child).ok_or(Errno::EIO)?;
        }
        match self.stat_at(&dir, last)? {
            Some(stat) if stat.is_file() => self.marked(&dir, last),
            _ => Ok(None),
        }
    }

    /// Looks at everything in upper and in the index.
    fn search(&self) -> Result<Search> {
        let mut search = Search::default();
        self.each_below(&*self.upper_root().ok_or(Errno::EROFS)?, |dir, name, stat| {
            let dir = self.as_upper(dir).ok_or(Errno::EIO)?;
            self.look_at(&dir, name, stat, &mut search).map(|()| true)
        })?;
        let upper = self.upper()?;
        for name in upper.indexed_names()? {
            let value = upper.indexed_mark(&name, Mark::Uncommitted)?;
            if let Some(mark) = value.and_then(|value| parse(&value, &name)) {
                search.uncommitted.push(Found { place: Place::Index(name), mark });
            } else if upper.indexed(&name)?.is_some_and(|stat| stat.is_file() && stat.size == 0 && stat.nlink == 1)
                && upper.indexed_mark(&name, Mark::Metacopy)?.is_some()
            {
                // What has other names was found by those, which lead to its lower file without a search.
                search.sizeless.push(Place::Index(name));
            }
        }
        Ok(search)
    }

    /// Visits everything but directories below a directory of one layer, until it has seen enough and says so with false.
    fn each_below(
        &self,
        root: &Arc<RealDir>,
        mut visit: impl FnMut(&Arc<RealDir>, &Name, &Stat) -> Result<bool>,
    ) -> Result<()> {
        let mut dirs = vec![root.clone()];
        while let Some(dir) = dirs.pop() {
            for name in names(self.open_dir_readable(&dir)?.as_fd())? {
                let Some(stat) = self.stat_at(&dir, &name)? else { continue };
                if stat.is_dir() {
                    dirs.extend(Some(self.child_dir(&dir, &name, &stat)?).filter(|child| !child.is_void()));
                } else if !visit(&dir, &name, &stat)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The lower file with several names that an origin is of, wherever it is: who may not open it by its handle has to look.
    ///
    /// # Errors
    /// From reading the lowers.
    pub fn search_origin(&self, origin: &Origin) -> Result<Option<Stat>> {
        let mut found = None;
        for layer in self.layers().iter().filter(|layer| !layer.root.layer.is_upper()) {
            self.each_below(&layer.root, |dir, name, stat| {
                if stat.is_file() && stat.nlink > 1 && self.origin_of(dir, name)?.as_ref() == Some(origin) {
                    found = Some(*stat);
                }
                Ok(found.is_none())
            })?;
            if found.is_some() {
                break;
            }
        }
        Ok(found)
    }

    fn look_at(&self, dir: &UpperDir, name: &Name, stat: &Stat, search: &mut Search) -> Result<()> {
        // The sign that a directory has copies comes before them, but on btrfs it may be lost alone.
        if !self.is_impure(dir)? && self.has_marks(dir, name, stat)? {
            self.set_impure(dir)?;
        }
        if !stat.is_file() {
            return Ok(());
        }
        if let Some(found) = self.marked(dir, name)? {
            search.uncommitted.push(found);
        } else if stat.size == 0 && self.xattr_at(dir, name, self.namespace().name(Mark::Metacopy))?.is_some() {
            search.sizeless.push(Place::Upper(dir.clone(), name.clone()));
        }
        Ok(())
    }

    fn marked(&self, dir: &UpperDir, name: &Name) -> Result<Option<Found>> {
        let value = self.xattr_at(dir, name, self.namespace().name(Mark::Uncommitted))?;
        let mark = value.and_then(|value| parse(&value, name));
        Ok(mark.map(|mark| Found { place: Place::Upper(dir.clone(), name.clone()), mark }))
    }

    /// The machine did not stop: all data is there, and has to reach the disk only.
    fn commit(&self, found: &[Found]) -> Result<()> {
        if found.is_empty() {
            return Ok(());
        }
        let upper = self.upper()?;
        upper.sync_all()?;
        for found in found {
            let object = self.open_place(&found.place)?;
            if upper.is_metacopy(&object)? {
                self.undo_completion(found, &object)?;
            }
            upper.remove_mark(&object, Mark::Uncommitted)?;
        }
        upper.sync_all()
    }

    fn open_place(&self, place: &Place) -> Result<UpperObject> {
        match place {
            Place::Upper(dir, name) => {
                let key = self.stat_at(dir, name)?.map(|stat| ObjKey::from(&stat)).ok_or(Errno::ESTALE)?;
                self.open_upper_object(dir, name, key, OFlag::O_RDWR)
            }
            Place::Index(name) => {
                let upper = self.upper()?;
                let key = upper.indexed(name)?.map(|stat| ObjKey::from(&stat)).ok_or(Errno::ESTALE)?;
                upper.reopen(&upper.open_indexed(name, key, OFlag::O_PATH)?, OFlag::O_RDWR)
            }
        }
    }

    /// Gives a copy its origin's content again, unless it has it. What it has instead is kept aside.
    fn restore(&self, found: &Found) -> Result<()> {
        let upper = self.upper()?;
        let object = self.open_place(&found.place)?;
        if upper.is_metacopy(&object)? {
            self.undo_completion(found, &object)?;
        } else if let Some((origin, stat)) = self.origin_file(&found.mark)? {
            let own = sys::file::stat(&object)?;
            if own.size != stat.size || !same_content(object.as_fd(), origin.as_fd())? {
                let kept = if own.size > 0 { Some(upper.keep_aside(&object, &own)?) } else { None };
                upper.rewrite(&object, &own, origin.as_fd(), &stat)?;
                log::warn!(
                    "{} has the content of its lower file again: the machine stopped before its copy was on disk{}",
                    found.place,
                    kept.map_or(String::new(), |kept| format!(
                        "; what it held is layerfs/recovered/{kept} in the work directory"
                    ))
                );
            }
        } else {
            log::error!(
                "{} may be damaged: the machine stopped before its copy was on disk, and no layer has the lower file {} now",
                found.place,
                found.mark
            );
            return Err(Errno::ENOENT);
        }
        sys::posix::fsync(&object)?;
        upper.remove_mark(&object, Mark::Uncommitted)?;
        sys::posix::fsync(&object)
    }

    /// A metadata copy whose data was on its way: the data is the lower's still, so that its size is to be, too.
    fn undo_completion(&self, found: &Found, object: &UpperObject) -> Result<()> {
        let Some((_, stat)) = self.origin_file(&found.mark)? else { return Ok(()) };
        let own = sys::file::stat(object)?;
        if own.size == stat.size { Ok(()) } else { self.upper()?.give_size(object, &own, stat.size) }
    }

    /// The lower file that a copy's data came from: in the layer where it was, or, if others were added since, in another.
    fn origin_file(&self, mark: &Uncommitted) -> Result<Option<(OwnedFd, Stat)>> {
        let Ok(path) = mark.path() else { return Ok(None) };
        let lowers = || self.layers().iter().filter(|layer| !layer.root.layer.is_upper());
        let first = lowers().filter(|layer| layer.root.layer.0 == mark.layer);
        let others = lowers().filter(|layer| layer.root.layer.0 != mark.layer);
        for layer in first.chain(others) {
            let file = match open_file(layer, &path) {
                Ok(file) => file,
                Err(e) if is_passing(e) => return Err(e),
                Err(_) => continue,
            };
            let stat = sys::file::stat(&file)?;
            if mark.is_of(&stat) {
                return Ok(Some((file, stat)));
            }
        }
        Ok(None)
    }
}

impl Upper {
    fn is_metacopy(&self, object: &UpperObject) -> Result<bool> {
        match sys::xattr::get(Target::Fd(object.as_fd()), self.namespace.name(Mark::Metacopy)) {
            Ok(_) => Ok(true),
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Copies what a file holds into `W/layerfs/recovered`, durably; returns its name there.
    fn keep_aside(&self, object: &UpperObject, stat: &Stat) -> Result<Name> {
        let dir = open_sub(self.work.private.as_fd(), "recovered")?;
        let mut number = 1_u64;
        let name = loop {
            let name = Name::new(number.to_string().as_bytes())?;
            match sys::file::stat_at(dir.as_fd(), name.as_cstr()) {
                Err(Errno::ENOENT) => break name,
                taken => taken.map(|_| number += 1)?,
            }
        };
        let staged = self.stage_file()?;
        self.copier.copy(object.as_fd(), stat, staged.fd())?;
        sys::posix::fsync(staged.fd())?;
        self.publish_in(staged, dir.as_fd(), &name, Over::Nothing)?;
        let readable = sys::posix::openat(&dir, c".", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        sys::posix::fsync(readable)?;
        Ok(name)
    }

    /// Gives a file another content, and the time of it; `own` is what else stays as it is.
    fn rewrite(&self, object: &UpperObject, own: &Stat, content: BorrowedFd<'_>, stat: &Stat) -> Result<()> {
        self.replace(object, own, stat.mtime, || {
            self.truncate(object, 0)?;
            self.copier.copy(content, stat, object.as_fd()).map(drop)
        })
    }

    /// Gives a file another size and changes nothing else of it.
    fn give_size(&self, object: &UpperObject, own: &Stat, size: u64) -> Result<()> {
        self.replace(object, own, own.mtime, || self.truncate(object, size))
    }

    /// Runs a change of a file's content, which takes its privileges off, and gives it those and another time.
    fn replace(
        &self,
        object: &UpperObject,
        own: &Stat,
        (sec, nsec): (i64, u32),
        change: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let capability = sys::xattr::get(Target::Fd(object.as_fd()), CAPABILITY).ok();
        change()?;
        if let Some(value) = capability {
            self.set_xattr(object, CAPABILITY, &value, 0)?;
        }
        if sys::file::stat(object)?.mode != own.mode {
            self.chmod(object, own.mode & 0o7777)?;
        }
        self.set_times(object, TimeChange::Omit, TimeChange::At(sec, nsec))
    }
}

fn parse(value: &[u8], name: &Name) -> Option<Uncommitted> {
    let mark = Uncommitted::parse(value);
    if mark.is_none() {
        log::error!("the mark of an uncommitted copy on {name} makes no sense: \"{}\"", value.escape_ascii());
    }
    mark
}

fn names(dir: BorrowedFd<'_>) -> Result<Vec<Name>> {
    let mut names = Vec::new();
    sys::dir::for_each(dir, |entry| {
        names.extend(Name::new(entry.name));
        true
    })?;
    Ok(names)
}

/// Opens the file that a path leads to in one layer.
fn open_file(layer: &Layer, path: &[Name]) -> Result<OwnedFd> {
    let (last, parents) = path.split_last().ok_or(Errno::ENOENT)?;
    let dir = if parents.is_empty() { None } else { Some(walk(&layer.root_fd, parents.iter(), layer.reach)?) };
    let dir = dir.as_ref().unwrap_or(&*layer.root_fd).as_fd();
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    sys::file::open_beneath(dir, last.as_cstr(), flags, 0, layer.reach)
}

fn same_content(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> Result<bool> {
    let (mut one, mut other) = (vec![0; COMPARED], vec![0; COMPARED]);
    let mut at = 0;
    loop {
        let (from_a, from_b) = (read_full(a, &mut one, at)?, read_full(b, &mut other, at)?);
        if from_a != from_b {
            return Ok(false);
        }
        if from_a.is_empty() {
            return Ok(true);
        }
        at += from_a.len() as u64;
    }
}

/// Reads until the buffer is full or the file ends.
fn read_full<'a>(fd: BorrowedFd<'_>, buf: &'a mut [u8], at: u64) -> Result<&'a [u8]> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match sys::posix::pread(fd, rest, (at + done as u64) as i64)? {
            0 => break,
            n => done += n,
        }
    }
    Ok(buf.get(..done).unwrap_or_default())
}
