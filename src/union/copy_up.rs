//! Copy-up: bringing a lower object into upper, staged out of sight and published with one call.

use std::os::fd::AsFd;
use std::sync::Arc;

use crate::error::{Errno, Result};
use crate::layer::marks::Mark;
use crate::layer::origin::Origin;
use crate::layer::stage::{Over, Staged};
use crate::layer::uncommitted::Noted;
use crate::layer::upper::UpperObject;
use crate::layer::{LayerId, ObjKey, RealDir, UpperDir};
use crate::name::Name;
use crate::sys;
use crate::sys::file::{Stat, TimeChange};
use crate::sys::xattr::Target;
use crate::union::handles::OpenFile;
use crate::union::inode::{Inode, LowerData, Node};
use crate::union::stats::CopyUpKind;
use crate::union::{FileKind, Union};

/// How much of a lower file is brought up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CopyUp {
    /// Metadata and data.
    Whole,
    /// Metadata; the data may stay where it is.
    Metadata,
    /// Metadata only, because the file is truncated to nothing next.
    WithoutData,
}

/// A copy in the making.
struct StagedCopy<'a> {
    staged: Staged<'a>,
    /// Which object the copy is.
    key: ObjKey,
    /// The status of the lower object.
    stat: Stat,
    /// Where the data is, if the copy has none.
    data: Option<LowerData>,
    /// There if it has to be committed once it is published.
    noted: Option<Noted>,
}

impl Union {
    /// Makes sure that a directory, and every directory above it, is in upper.
    ///
    /// # Errors
    /// `ENOENT` if it was removed, `EROFS` without an upper, whatever the copy fails with.
    pub(super) fn ensure_upper_dir(&self, dir: &Arc<Inode>) -> Result<UpperDir> {
        self.stack.upper()?;
        let mut missing = Vec::new();
        let mut at = dir.clone();
        loop {
            let place = {
                let state = at.as_dir().ok_or(Errno::ENOTDIR)?.state.read();
                if state.removed.is_some() {
                    return Err(Errno::ENOENT);
                }
                if state.upper.is_some() {
                    break;
                }
                state.place.clone()
            };
            missing.push(at);
            at = place.ok_or(Errno::EIO)?.0;
        }
        for dir in missing.iter().rev() {
            self.copy_up_dir(dir)?;
        }
        dir.as_dir().and_then(|d| d.view().upper).ok_or(Errno::ENOENT)
    }

    /// Copies one directory up; its parent is in upper already.
    fn copy_up_dir(&self, dir: &Arc<Inode>) -> Result<()> {
        let node = dir.as_dir().ok_or(Errno::ENOTDIR)?;
        let _one = dir.copy_up.lock();
        if node.state.read().upper.is_some() {
            return Ok(());
        }
        let upper = self.stack.upper()?;
        let lower = node.view().lowers.first().ok_or(Errno::EIO)?.clone();
        let staged = upper.stage_dir(0o700)?;
        if lower.is_void() {
            upper.chmod(&staged, 0o755)?;
        } else {
            let fd = self.stack.open_dir(&lower)?;
            let stat = self.stack.overridden(Target::Dir(fd.as_fd()), sys::file::stat(&*fd)?)?;
            if stat.immutable {
                return Err(Errno::EPERM);
            }
            upper.copy_metadata(Target::Dir(fd.as_fd()), &stat, &staged)?;
            if let Some(origin) = self.stack.origin_of_dir(&lower)?.and_then(|o| o.encode()) {
                upper.set_mark(&staged, Mark::Origin, &origin)?;
            }
        }
        let stat = sys::file::stat(staged.fd())?;
        let mut staged = Some(staged);
        loop {
            let (parent, name) = self.place_of(dir)?;
            let real = parent.as_dir().and_then(|p| p.view().upper).ok_or(Errno::ENOENT)?;
            let _renames = self.renames.read_recursive();
            let _names = parent.as_dir().ok_or(Errno::ENOTDIR)?.names.write();
            if !dir.has_link(&parent, &name) {
                continue;
            }
            let staged = staged.take().ok_or(Errno::EIO)?;
            let object = self.publish_copy(staged, &real, &name)?;
            let copy = UpperDir::new(&real, &name, &stat);
            self.stack.keep_open(&copy, object);
            node.state.write().upper = Some(copy);
            self.table.add_key(ObjKey::from(&stat).seen_in(LayerId::UPPER), dir);
            self.name_changed(&parent, &name, Some((FileKind::Directory, dir.number)));
            self.counters.copied_up(CopyUpKind::Directory);
            return Ok(());
        }
    }

    fn place_of(&self, dir: &Inode) -> Result<(Arc<Inode>, Name)> {
        let state = dir.as_dir().ok_or(Errno::ENOTDIR)?.state.read();
        if state.removed.is_some() {
            return Err(Errno::ENOENT);
        }
        state.place.clone().ok_or(Errno::EIO)
    }

    /// Publishes a copy where only a lower object was: its directory's times stay what they were.
    fn publish_copy(&self, staged: Staged<'_>, dir: &UpperDir, name: &Name) -> Result<UpperObject> {
        let upper = self.stack.upper()?;
        let fd = self.stack.open_upper(dir)?;
        self.stack.set_impure(dir)?;
        self.keeping_times(dir, || upper.publish(staged, &fd, name, Over::Nothing))
    }

    /// Does something to a directory of upper that its users must not see in its times.
    pub(super) fn keeping_times<T>(&self, dir: &UpperDir, change: impl FnOnce() -> Result<T>) -> Result<T> {
        let fd = self.stack.open_upper(dir)?;
        let before = sys::file::stat(&fd)?;
        let done = change()?;
        let at = |(sec, nsec)| TimeChange::At(sec, nsec);
        if let Err(e) = self.stack.upper()?.set_times(&fd, at(before.atime), at(before.mtime)) {
            // What was to be done is done: a directory that isn't ours to date is no reason to say it failed.
            log::debug!("the times of {:?} are not what they were: {e}", dir.path());
        }
        Ok(done)
    }

    /// Makes sure that an inode which is no directory is in upper, under every name of it that is known.
    pub(super) fn ensure_upper(&self, inode: &Arc<Inode>, copy: CopyUp) -> Result<()> {
        let Node::Other(file) = &inode.node else { return Err(Errno::EISDIR) };
        self.stack.upper()?;
        if !file.read().layer.is_upper() {
            let _one = inode.copy_up.lock();
            if !file.read().layer.is_upper() {
                self.copy_up_file(inode, copy)?;
            }
        }
        if copy != CopyUp::Metadata && file.read().data().is_some() {
            self.complete(inode, copy)?;
        }
        let uncovered = file.read().links.as_slice().iter().any(|l| l.uncovered);
        if uncovered { self.cover_links(inode) } else { Ok(()) }
    }

    /// Copies a lower object up. Nothing but the inode's own lock is held while its data is copied.
    fn copy_up_file(&self, inode: &Arc<Inode>, copy: CopyUp) -> Result<()> {
        let Node::Other(file) = &inode.node else { return Err(Errno::EISDIR) };
        let (dir, name) = inode.location().ok_or(Errno::ESTALE)?;
        let lower_key = file.read().key;
        let origin = self.stack.origin_of(&dir, &name)?;
        let mut staged = Some(self.stage_copy(inode, &dir, &name, origin.as_ref(), copy)?);
        loop {
            let link = file.read().links.as_slice().first().cloned();
            let Some(link) = link else {
                let staged = staged.take().ok_or(Errno::EIO)?;
                return self.keep_copy_unnamed(inode, staged, lower_key, origin.as_ref());
            };
            let real = self.ensure_upper_dir(&link.parent)?;
            let _renames = self.renames.read_recursive();
            let _names = link.parent.as_dir().ok_or(Errno::ENOTDIR)?.names.write();
            if !inode.has_link(&link.parent, &link.name) {
                continue;
            }
            let StagedCopy { staged, key, stat, data, noted } = staged.take().ok_or(Errno::EIO)?;
            let indexed = self.index_staged(inode, &staged, key, &stat, origin.as_ref())?;
            let object = self.publish_copy(staged, &real, &link.name).inspect_err(|_| {
                indexed.iter().for_each(|name| self.unindex_staged(inode, key, name));
            })?;
            self.switch_to_copy(inode, &object, (key, lower_key), &stat, data);
            self.commit_later(inode, noted);
            if stat.nlink > 1 {
                self.account_copy(inode, &stat, indexed);
            }
            self.name_changed(&link.parent, &link.name, Some((inode.kind, inode.number)));
            return Ok(());
        }
    }

    /// The copy of a file that is unlinked, but still open somewhere, needs no name. Other names of the lower object find it
    /// in the index.
    fn keep_copy_unnamed(
        &self,
        inode: &Arc<Inode>,
        copy: StagedCopy<'_>,
        lower: ObjKey,
        origin: Option<&Origin>,
    ) -> Result<()> {
        let StagedCopy { staged, key, stat, data, noted } = copy;
        let others = stat.nlink > 1 && self.has_names_left(lower);
        let indexed = if others { self.index_staged(inode, &staged, key, &stat, origin)? } else { None };
        let object = self.stack.upper()?.keep_unnamed(staged);
        self.switch_to_copy(inode, &object, (key, lower), &stat, data);
        if indexed.is_some() {
            self.unpin(inode);
        } else {
            self.pin_object(inode, object);
        }
        if others {
            self.commit_later(inode, noted);
            self.account_copy(inode, &stat, indexed);
        }
        Ok(())
    }

    /// Brings up the data of a file whose metadata is in upper already, in place: the mark goes when the data
    /// is durable, or marked as not being that yet.
    fn complete(&self, inode: &Arc<Inode>, copy: CopyUp) -> Result<()> {
        let Node::Other(file) = &inode.node else { return Err(Errno::EISDIR) };
        let _one = inode.copy_up.lock();
        let Some(data) = file.read().data().cloned() else { return Ok(()) };
        let object = self.open_for_writing(inode)?;
        if self.stack.open_file_mark(&object, Mark::Metacopy)?.is_none() {
            // Never over data that is there.
            file.write().rare_mut().data = None;
            return Ok(());
        }
        let before = sys::file::stat(&object)?;
        let noted = self
            .bring_data(inode, &data, &object, &before, copy)
            .inspect_err(|_| self.empty_again(&object, &before))?;
        self.counters.copied_up(CopyUpKind::Completed);
        file.write().rare_mut().data = None;
        self.commit_later(inode, noted);
        self.files.put(inode.id, ObjKey::from(&before), OpenFile::Write(object));
        Ok(())
    }

    /// Puts the lower's data, if it is wanted, into a metadata copy, and takes the mark off. What comes back has to be
    /// committed later.
    fn bring_data(
        &self,
        inode: &Inode,
        data: &LowerData,
        object: &UpperObject,
        before: &Stat,
        copy: CopyUp,
    ) -> Result<Option<Noted>> {
        let upper = self.stack.upper()?;
        let noted = if copy == CopyUp::WithoutData {
            let stat = self.stack.stat_at(&data.dir, &data.name)?.ok_or(Errno::ESTALE)?;
            // Marked first: recovery gives the size back as long as the data is the lower's.
            let noted = self.guard_copy(inode, object, data, &stat)?;
            upper.truncate(object, 0)?;
            noted
        } else {
            let lower = self.stack.open_data(&data.dir, &data.name, data.key)?;
            let stat = sys::file::stat(&lower)?;
            let kind = self.keeping_privileges(object, before, || upper.fill_data(lower.as_fd(), &stat, object))?;
            self.counters.copied_bytes(kind, stat.size);
            upper.set_times(object, TimeChange::Omit, TimeChange::At(before.mtime.0, before.mtime.1))?;
            self.guard_copy(inode, object, data, &stat)?
        };
        upper.remove_mark(object, Mark::Metacopy).map(|()| noted)
    }

    /// From now on the inode is its copy; other names that are known still are the lower's.
    fn switch_to_copy(
        &self,
        inode: &Arc<Inode>,
        object: &UpperObject,
        (key, lower): (ObjKey, ObjKey),
        lower_stat: &Stat,
        data: Option<LowerData>,
    ) {
        let Node::Other(file) = &inode.node else { return };
        self.table.add_key(key.seen_in(LayerId::UPPER), inode);
        {
            let mut file = file.write();
            file.layer = LayerId::UPPER;
            file.key = key;
            let rare = file.rare_mut();
            rare.lower_key = Some(lower);
            rare.data = data;
            let mut links = file.links.as_mut_slice().iter_mut();
            if let Some(first) = links.next() {
                first.layer = LayerId::UPPER;
            }
            links.for_each(|link| link.uncovered = true);
            if lower_stat.nlink == 1 {
                file.hard_linked = false;
            }
        }
        self.files.remove(inode.id);
        if inode.kind == FileKind::Regular {
            self.files.put(inode.id, key, OpenFile::Write(object.clone()));
        }
    }

    /// Makes a copy of a lower object in the work directory. With it come that one's status, and where the data is if the copy
    /// has none.
    fn stage_copy(
        &self,
        inode: &Inode,
        dir: &Arc<RealDir>,
        name: &Name,
        origin: Option<&Origin>,
        copy: CopyUp,
    ) -> Result<StagedCopy<'_>> {
        let Node::Other(file) = &inode.node else { return Err(Errno::EISDIR) };
        let (key, data) = {
            let file = file.read();
            (file.key, file.data().cloned())
        };
        let upper = self.stack.upper()?;
        self.files.wanted();
        // A file with its data in place is opened once for everything; perhaps it was for what the kernel read before.
        let kept = if copy == CopyUp::WithoutData { None } else { self.kept_for_reading(inode) };
        let lower = match &kept {
            Some(OpenFile::Read(file)) => file.clone(),
            _ => Arc::new(self.stack.open_path(dir, name, key)?),
        };
        let stat = self.stack.overridden(Target::Fd(lower.as_fd()), sys::file::stat(&lower)?)?;
        let null_device = inode.kind == FileKind::CharDevice && stat.is_file();
        if !null_device && FileKind::from_mode(stat.mode)? != inode.kind {
            // Another object got the number of the one that was here.
            return Err(Errno::ESTALE);
        }
        if stat.is_protected() {
            return Err(Errno::EPERM);
        }
        let staged = match inode.kind {
            FileKind::Regular => upper.stage_file_as(stat.mode)?,
            FileKind::CharDevice if null_device => upper.stage_file()?,
            FileKind::Symlink => {
                let target = std::ffi::CString::new(sys::file::read_link(lower.as_fd())?).map_err(|_| Errno::EIO)?;
                upper.stage_symlink(&target)?
            }
            _ => upper.stage_special(stat.mode, stat.rdev)?,
        };
        // The metadata of a lower file may be in another layer than its data.
        let data = Self::data_of(dir, name, &stat, data);
        let mut data_stat = stat;
        let metadata_only = inode.kind == FileKind::Regular && self.stage_without_data(&staged, &stat, copy)?;
        if inode.kind == FileKind::Regular && copy != CopyUp::WithoutData && stat.size > 0 && !metadata_only {
            let kind = if kept.is_some() {
                upper.copy_data(lower.as_fd(), &stat, &staged)?
            } else {
                let file = self.stack.open_data(&data.dir, &data.name, data.key)?;
                data_stat = sys::file::stat(&file)?;
                upper.copy_data(file.as_fd(), &data_stat, &staged)?
            };
            self.counters.copied_bytes(kind, stat.size);
        } else if data.key != key {
            data_stat = self.stack.stat_at(&data.dir, &data.name)?.ok_or(Errno::ESTALE)?;
        }
        let copy_key = upper.copy_metadata(Target::Fd(lower.as_fd()), &stat, &staged)?;
        if copy == CopyUp::WithoutData && stat.size > 0 {
            // The name shows the truncated file from the moment of its publication.
            upper.set_times(&staged, TimeChange::Omit, TimeChange::Now)?;
        }
        if let Some(origin) = origin.and_then(Origin::encode) {
            upper.set_mark(&staged, Mark::Origin, &origin)?;
        }
        if null_device {
            upper.set_mark(&staged, Mark::Device, b"0:0")?;
        }
        let guarded = inode.kind == FileKind::Regular && stat.size > 0 && !metadata_only;
        let noted = if guarded { self.guard_copy(inode, &staged, &data, &data_stat)? } else { None };
        self.counters.copied_up(match (inode.kind, copy) {
            (FileKind::Regular, _) if metadata_only => CopyUpKind::Metadata,
            (FileKind::Regular, CopyUp::WithoutData) => CopyUpKind::Truncated,
            (FileKind::Regular, _) => CopyUpKind::Data,
            (FileKind::Symlink, _) => CopyUpKind::Symlink,
            _ => CopyUpKind::Special,
        });
        Ok(StagedCopy { staged, key: copy_key, stat, data: metadata_only.then_some(data), noted })
    }
}
