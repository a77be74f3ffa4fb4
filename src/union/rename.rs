//! rename, with every flag, of everything: lower and merged directories get a redirect mark instead of EXDEV.

use std::os::fd::AsFd;
use std::sync::Arc;

use nix::fcntl::RenameFlags as SysFlags;

use crate::error::{Errno, Result};
use crate::layer::marks::{Mark, Namespace, Redirect};
use crate::layer::stage::Over;
use crate::layer::upper::AsUpper;
use crate::layer::{LayerId, ObjKey, RealDir, UpperDir};
use crate::name::Name;
use crate::sys::file::Stat;
use crate::union::held::Held;
use crate::union::inode::{DirView, Inode, Node};
use crate::union::lookup::InLowers;
use crate::union::remove::lock_two;
use crate::union::stats::Op;
use crate::union::{Attr, Durability, FileKind, Union};

/// The flags of renameat2(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RenameFlags {
    /// Fail if the new name exists.
    pub noreplace: bool,
    /// Let the two names change places.
    pub exchange: bool,
    /// Leave a whiteout (a character device 0:0) at the old name.
    pub whiteout: bool,
}

/// One side of a rename; its directory's names are locked.
struct Side<'a> {
    dir: &'a Arc<Inode>,
    name: &'a Name,
    view: DirView,
    real: UpperDir,
    /// Whether the lowers have the name too.
    below: bool,
}

impl Union {
    /// Renames, or exchanges, two names.
    ///
    /// # Errors
    /// As renameat2(2); `EXDEV` for a merged directory only if redirects are off or can't be stored.
    pub fn rename(&self, parent: u64, name: &Name, newparent: u64, newname: &Name, flags: RenameFlags) -> Result<()> {
        self.counters.count(Op::Rename);
        if flags.exchange && (flags.noreplace || flags.whiteout) {
            return Err(Errno::EINVAL);
        }
        self.stack.upper()?;
        let (from_dir, to_dir) = (self.dir(parent)?, self.dir(newparent)?);
        let source = self.hold(&from_dir, name)?.ok_or(Errno::ENOENT)?;
        Self::check_new_name(newname)?;
        let target = self.hold(&to_dir, newname)?;
        if !self.check_rename(&source, target.as_ref(), (&from_dir, &to_dir), flags)? {
            return Ok(());
        }
        self.bring_up(&source)?;
        if let Some(target) = target.as_ref().filter(|_| flags.exchange) {
            self.bring_up(target)?;
        }
        self.ensure_upper_dir(&from_dir)?;
        self.ensure_upper_dir(&to_dir)?;

        let moves_dir =
            source.kind == FileKind::Directory || target.as_ref().is_some_and(|t| t.kind == FileKind::Directory);
        let (mut exclusive, mut shared) = (None, None);
        if moves_dir {
            exclusive = Some(self.renames.write());
        } else {
            shared = Some(self.renames.read_recursive());
        }
        let (from_node, to_node) = (from_dir.as_dir().ok_or(Errno::ENOTDIR)?, to_dir.as_dir().ok_or(Errno::ENOTDIR)?);
        let names = lock_two((from_dir.number, from_node), (to_dir.number, to_node));
        let still = source.has_link(&from_dir, name) && target.as_ref().is_none_or(|t| t.has_link(&to_dir, newname));
        if !still {
            return Err(Errno::ENOENT);
        }
        let from = self.side(&from_dir, name)?;
        let to = self.side(&to_dir, newname)?;
        let done = if let Some(target) = target.as_ref().filter(|_| flags.exchange) {
            self.exchange(&source, target, &from, &to)
        } else {
            self.replace(&source, target.as_ref(), &from, &to, flags)
        };
        drop((names, exclusive.take(), shared.take()));
        done
    }

    /// The conditions that need no lock. False if there is nothing to do.
    fn check_rename(
        &self,
        source: &Held<'_>,
        target: Option<&Held<'_>>,
        (from_dir, to_dir): (&Arc<Inode>, &Arc<Inode>),
        flags: RenameFlags,
    ) -> Result<bool> {
        let Some(target) = target else {
            if flags.exchange {
                return Err(Errno::ENOENT);
            }
            return if is_within(to_dir, source) { Err(Errno::EINVAL) } else { Ok(true) };
        };
        if flags.noreplace {
            return Err(Errno::EEXIST);
        }
        if is_within(to_dir, source) {
            return Err(Errno::EINVAL);
        }
        if is_within(from_dir, target) {
            return Err(if flags.exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        if source.id == target.id {
            return Ok(false);
        }
        if flags.exchange {
            return Ok(true);
        }
        self.check_replaceable(target)?;
        match (source.kind == FileKind::Directory, target.kind == FileKind::Directory) {
            (true, false) => Err(Errno::ENOTDIR),
            (false, true) => Err(Errno::EISDIR),
            (true, true) if !self.is_empty(target)? => Err(Errno::ENOTEMPTY),
            _ => Ok(true),
        }
    }

    /// Copies up what is to be moved.
    fn bring_up(&self, inode: &Arc<Inode>) -> Result<()> {
        let Node::Dir(dir) = &inode.node else { return self.bring_up_to_move(inode) };
        if !dir.view().lowers.is_empty() && !self.options.redirect_dir {
            return Err(Errno::EXDEV);
        }
        self.ensure_upper_dir(inode).map(|_| ())
    }

    fn side<'a>(&self, dir: &'a Arc<Inode>, name: &'a Name) -> Result<Side<'a>> {
        let node = dir.as_dir().ok_or(Errno::ENOTDIR)?;
        if node.state.read().removed.is_some() {
            return Err(Errno::ENOENT);
        }
        let view = node.view();
        let real = view.upper.clone().ok_or(Errno::ENOENT)?;
        let below = self.is_below(dir, &view, name)? || self.stack.has_dot_whiteout(&real, name)?;
        Ok(Side { dir, name, view, real, below })
    }

    /// Renames over nothing, a whiteout, or an object that goes.
    fn replace(
        &self,
        source: &Held<'_>,
        target: Option<&Held<'_>>,
        from: &Side<'_>,
        to: &Side<'_>,
        flags: RenameFlags,
    ) -> Result<()> {
        self.mark_moved(source, from, to)?;
        self.start_writeback(source, to);
        let (mut last, mut losing) = (None, None);
        match target {
            Some(target) if target.kind == FileKind::Directory => {
                self.clear_empty(target, to)?;
                last = Some(Attr { nlink: 0, ..self.attr_of(target)? });
            }
            Some(target) => {
                self.pin_if_last(target, to.dir, to.name)?;
                losing = self.before_losing(target)?;
            }
            None => {}
        }
        let gone = target.filter(|t| t.kind == FileKind::Directory);
        if let Some(gone) = gone {
            self.table.remove_keys(gone);
        }
        announce(source, to);
        let moved = if flags.whiteout {
            self.move_leaving_device(source, from, to)
        } else {
            self.move_in_upper(source, gone.is_some(), from, to)
        };
        if moved.is_err() {
            source.remove_link(to.dir, to.name);
        }
        if let (Err(e), Some(still)) = (&moved, gone) {
            self.table.add_keys(still);
            return Err(*e);
        }
        let device = moved?;
        self.stack.drop_dot_whiteout(&to.real, to.name);
        if let Some(target) = target {
            match last {
                Some(last) => self.dir_removed(target, last),
                None => self.lost_name(target, to.dir, to.name, losing),
            }
        }
        self.moved(source, from, to);
        match device {
            Some(stat) => self.show_device(from, &stat),
            None => Ok(()),
        }
    }

    /// A file that takes the name of a lower one begins its way to disk before: else a power loss leaves an empty file there
    /// where a whole one was.
    fn start_writeback(&self, source: &Held<'_>, to: &Side<'_>) {
        let durable = self.options.durability != Durability::Volatile;
        if !durable || !to.below || source.kind != FileKind::Regular || source.has_data_in_lower() {
            return;
        }
        let started = self.writable_file(source).and_then(|file| self.stack.upper()?.start_writeback(&file));
        if let Err(e) = started {
            log::debug!("{} was not written back before its rename: {e}", to.name);
        }
    }

    /// The one call that moves the name, with a whiteout left behind where the lowers have the old one. What comes after it
    /// only tidies up, and can't fail the rename any more.
    fn move_in_upper(&self, source: &Held<'_>, over_dir: bool, from: &Side<'_>, to: &Side<'_>) -> Result<Option<Stat>> {
        let upper = self.stack.upper()?;
        let from_fd = self.stack.open_upper(&from.real)?;
        let dir = source.as_dir().and_then(|d| d.view().upper);
        let moved = (dir.as_ref(), None);
        let places = ((&from.real, from.name), (&to.real, to.name));
        let mut stands = self.stack.stat_at(&to.real, to.name)?;
        if dir.is_some() && !over_dir && stands.is_some() {
            // A directory can't replace a whiteout, but it can change places with it: in the form that means the same anywhere.
            if !stands.as_ref().is_some_and(|stands| self.stack.is_own_form(stands)) {
                self.stack.whiteout(&to.real, to.name, Over::NonDirectory)?;
                stands = self.stack.stat_at(&to.real, to.name)?;
            }
            if stands.is_some() {
                self.stack.rename_in_upper(places.0, places.1, SysFlags::RENAME_EXCHANGE, moved)?;
                if !from.below
                    && let Err(e) = upper.unlink(&from_fd, from.name)
                {
                    log::warn!("the whiteout {} stays and hides nothing: {e}", from.name);
                }
                return Ok(None);
            }
        }
        let rename = || self.stack.rename_in_upper(places.0, places.1, SysFlags::empty(), moved);
        if from.below && self.stack.behind_dot_whiteout(&from.real, from.name, rename)?.is_some() {
            return Ok(None);
        }
        let whiteout = if from.below { SysFlags::RENAME_WHITEOUT } else { SysFlags::empty() };
        match self.stack.rename_in_upper(places.0, places.1, whiteout, moved) {
            // This filesystem can't do both at once.
            Err(Errno::EINVAL) if from.below => {
                let whiteout = upper.stage_whiteout()?;
                rename()?;
                upper.publish(whiteout, &from_fd, from.name, Over::Nothing)?;
            }
            done => done?,
        }
        Ok(None)
    }

    /// Moves the name and leaves a device 0:0 at the old one (the RENAME_WHITEOUT of a union on top of this one), whose status
    /// it returns: the device comes to the new name first, then the two change places. If something stands there, that
    /// changes places with the source, and the device then takes its new place.
    fn move_leaving_device(&self, source: &Held<'_>, from: &Side<'_>, to: &Side<'_>) -> Result<Option<Stat>> {
        let upper = self.stack.upper()?;
        let (device, stat) = self.stage_own_device()?;
        let (from_fd, to_fd) = (self.stack.open_upper(&from.real)?, self.stack.open_upper(&to.real)?);
        let dir = source.as_dir().and_then(|d| d.view().upper);
        let moved = (dir.as_ref(), None);
        let places = ((&from.real, from.name), (&to.real, to.name));
        let swap = || self.stack.rename_in_upper(places.0, places.1, SysFlags::RENAME_EXCHANGE, moved);
        self.stack.set_impure(&from.real)?;
        if self.stack.stat_at(&to.real, to.name)?.is_some() {
            swap()?;
            if let Err(e) = upper.publish(device, &from_fd, from.name, Over::Other) {
                let back = (dir.as_ref(), None);
                self.stack.rename_in_upper(places.1, places.0, SysFlags::RENAME_EXCHANGE, back)?;
                return Err(e);
            }
        } else {
            upper.publish(device, &to_fd, to.name, Over::Nothing)?;
            swap().inspect_err(|_| {
                if let Err(e) = upper.unlink(&to_fd, to.name) {
                    log::warn!("the device {} can't be taken back: {e}", to.name);
                }
            })?;
        }
        Ok(Some(stat))
    }

    /// Shows the device that took the old name.
    fn show_device(&self, from: &Side<'_>, stat: &Stat) -> Result<()> {
        let inode = self.intern_new(from.dir, from.name, &from.real, stat, FileKind::CharDevice)?;
        self.forget(inode.number, 1);
        Ok(())
    }

    fn exchange(&self, a: &Held<'_>, b: &Held<'_>, from: &Side<'_>, to: &Side<'_>) -> Result<()> {
        self.mark_moved(a, from, to)?;
        self.mark_moved(b, to, from)?;
        self.start_writeback(a, to);
        self.start_writeback(b, from);
        let dirs = (a.as_dir().and_then(|d| d.view().upper), b.as_dir().and_then(|d| d.view().upper));
        let moved = (dirs.0.as_ref(), dirs.1.as_ref());
        let places = ((&from.real, from.name), (&to.real, to.name));
        announce(a, to);
        announce(b, from);
        self.stack.rename_in_upper(places.0, places.1, SysFlags::RENAME_EXCHANGE, moved).inspect_err(|_| {
            a.remove_link(to.dir, to.name);
            b.remove_link(from.dir, from.name);
        })?;
        self.stack.drop_dot_whiteout(&from.real, from.name);
        self.stack.drop_dot_whiteout(&to.real, to.name);
        self.relink(a, from, to);
        self.relink(b, to, from);
        self.name_changed(from.dir, from.name, Some((b.kind, b.number)));
        self.name_changed(to.dir, to.name, Some((a.kind, a.number)));
        Ok(())
    }

    /// Keeps account of a moved name.
    fn moved(&self, inode: &Held<'_>, from: &Side<'_>, to: &Side<'_>) {
        self.relink(inode, from, to);
        self.name_changed(from.dir, from.name, None);
        self.name_changed(to.dir, to.name, Some((inode.kind, inode.number)));
    }

    fn relink(&self, inode: &Held<'_>, from: &Side<'_>, to: &Side<'_>) {
        match &inode.node {
            Node::Dir(_) => inode.move_dir(to.dir, to.name),
            Node::Other(_) => {
                inode.remove_link(from.dir, from.name);
            }
        }
    }

    /// Puts the marks on an object that make it the same one at its new place.
    fn mark_moved(&self, inode: &Held<'_>, from: &Side<'_>, to: &Side<'_>) -> Result<()> {
        let Node::Dir(dir) = &inode.node else { return self.mark_moved_file(inode, from, to) };
        let view = dir.view();
        let real = view.upper.as_ref().ok_or(Errno::EIO)?;
        let fd = self.stack.open_upper(real)?;
        let upper = self.stack.upper()?;
        upper.begin()?;
        if let Some(lower) = view.lowers.first() {
            let redirect = redirect_to(inode, lower, [&from.view, &to.view]);
            match upper.set_mark(&fd, Mark::Redirect, &redirect.encode()) {
                Err(Errno::ENOSPC | Errno::E2BIG | Errno::ERANGE | Errno::EOPNOTSUPP) => return Err(Errno::EXDEV),
                done => done?,
            }
            dir.state.write().redirect = Some(redirect);
            self.stack.set_impure(&to.real)
        } else if to.below {
            self.drop_xattr_whiteouts(real)?;
            upper.make_opaque(&fd)
        } else {
            Ok(())
        }
    }

    /// Takes whiteouts in xattr form out of a directory of upper that becomes opaque: the mark that makes them whiteouts
    /// is the same one, and nothing is left for them to hide.
    fn drop_xattr_whiteouts(&self, real: &UpperDir) -> Result<()> {
        if !self.stack.has_xattr_whiteouts(real)? {
            return Ok(());
        }
        let mut names = Vec::new();
        crate::sys::dir::for_each(self.stack.open_dir_readable(real)?.as_fd(), |entry| {
            names.push(entry.name.to_vec());
            true
        })?;
        let fd = self.stack.open_upper(real)?;
        for name in names {
            let name = Name::new(&name).map_err(|_| Errno::EIO)?;
            if let Some(stat) = self.stack.stat_at(real, &name)?
                && self.stack.is_whiteout(real, &name, &stat)?
            {
                self.keeping_times(real, || self.stack.upper()?.unlink(&fd, &name))?;
            }
        }
        self.stack.note_no_xattr_whiteouts(real);
        Ok(())
    }

    /// A file keeps its number by its origin mark; that, and the marks of a device 0:0 and of a metadata copy, are looked for in
    /// an impure directory only.
    fn mark_moved_file(&self, inode: &Held<'_>, from: &Side<'_>, to: &Side<'_>) -> Result<()> {
        let is_copy = self.keep_origin(inode, from.dir, &from.view, &from.real, from.name)?;
        if is_copy || inode.kind == FileKind::CharDevice || inode.has_data_in_lower() {
            self.stack.set_impure(&to.real)?;
        }
        Ok(())
    }

    /// Makes sure that a file of upper is still known as the copy that it is when it has another name than its origin.
    /// Who can't open a file by handle finds the origin by a redirect. False if it is no copy.
    pub(super) fn keep_origin(
        &self,
        inode: &Inode,
        parent: &Arc<Inode>,
        view: &DirView,
        dir: &UpperDir,
        name: &Name,
    ) -> Result<bool> {
        let Node::Other(file) = &inode.node else { return Ok(false) };
        let key = file.read().key;
        let stat = self.stack.stat_at(dir, name)?.filter(|st| ObjKey::from(st) == key).ok_or(Errno::ESTALE)?;
        let Some(origin) = self.stack.file_mark(dir, name, &stat, Mark::Origin)? else { return Ok(false) };
        if self.stack.namespace() == Namespace::Trusted {
            return Ok(true);
        }
        let InLowers::Other(lower, _) = self.find_in_lowers(&view.lowers, name, false)? else { return Ok(true) };
        let same = self.stack.origin_of(&lower, name)?.and_then(|o| o.encode()).is_some_and(|o| o == origin);
        if !same {
            return Ok(true);
        }
        let mut path = parent.lower_path();
        path.push(name.clone());
        let object = self.upper_object(inode)?;
        match self.stack.upper()?.set_mark(&object, Mark::Redirect, &Redirect::Path(path).encode()) {
            // Then it gets a new number at the next mount.
            Err(Errno::ENOSPC | Errno::E2BIG | Errno::ERANGE) => Ok(true),
            done => done.map(|()| true),
        }
    }

    /// Makes a merged directory that shows nothing empty for the filesystem too, so that a rename can replace it.
    fn clear_empty(&self, target: &Held<'_>, to: &Side<'_>) -> Result<()> {
        let Some(dir) = target.as_dir() else { return Ok(()) };
        let Some(real) = dir.view().upper else { return Ok(()) };
        let upper = self.stack.upper()?;
        let old = self.stack.open_upper(&real)?;
        if is_bare(&self.stack.open_dir_readable(&real)?)? {
            return Ok(());
        }
        let stat = self.stack.overridden(old.as_target(), crate::sys::file::stat(&old)?)?;
        let staged = upper.stage_dir(0o700)?;
        upper.copy_metadata(old.as_target(), &stat, &staged)?;
        upper.set_mark(&staged, Mark::Opaque, b"y")?;
        let stat = crate::sys::file::stat(staged.fd())?;
        let fresh = UpperDir::new(&to.real, to.name, &stat);
        self.table.remove_keys(target);
        upper
            .publish(staged, &self.stack.open_upper(&to.real)?, to.name, Over::Other)
            .inspect_err(|_| self.table.add_keys(target))?;
        self.stack.forget_dir(&real);
        {
            let mut state = dir.state.write();
            state.upper = Some(fresh);
            state.lowers = [].into();
            state.redirect = None;
        }
        self.table.add_key(ObjKey::from(&stat).seen_in(LayerId::UPPER), target);
        Ok(())
    }
}

/// Tells the new name of a file before it has it: requests that are about the inode alone go on, see `reach`.
fn announce(inode: &Inode, to: &Side<'_>) {
    inode.add_link(to.dir, to.name, LayerId::UPPER, false);
}

/// Where a moved directory finds its lower part: by that one's own name if they stay side by side, which always fits into
/// a mark, else by its path. Either is right at the old place too, in case the move fails.
fn redirect_to(inode: &Arc<Inode>, lower: &Arc<RealDir>, parents: [&DirView; 2]) -> Redirect {
    let in_both =
        |dir: &RealDir| parents.iter().all(|p| p.lowers.iter().any(|l| l.layer == dir.layer && l.key == dir.key));
    match lower.place() {
        Some((dir, name)) if in_both(&dir) => Redirect::Sibling(name),
        _ => Redirect::Path(inode.lower_path()),
    }
}

/// Whether a directory has no entry at all, whiteouts included.
fn is_bare(fd: &std::os::fd::OwnedFd) -> Result<bool> {
    let mut bare = true;
    crate::sys::dir::for_each(fd.as_fd(), |_| {
        bare = false;
        false
    })?;
    Ok(bare)
}

/// Whether `dir` is `ancestor` or below it.
fn is_within(dir: &Arc<Inode>, ancestor: &Inode) -> bool {
    if ancestor.kind != FileKind::Directory {
        return false;
    }
    let mut at = dir.clone();
    loop {
        if at.id == ancestor.id {
            return true;
        }
        let above = at.as_dir().and_then(|d| d.state.read().place.as_ref().map(|(parent, _)| parent.clone()));
        let Some(above) = above else { return false };
        at = above;
    }
}
