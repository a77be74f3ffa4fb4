//! Metadata copies (metacopy): a change of attributes alone brings no data up. The copy is a hole of the lower file's size
//! with a mark, reads go on to the lower's data, and that follows with the first change of it.

use std::sync::Arc;

use crate::error::Result;
use crate::layer::marks::{Mark, Redirect};
use crate::layer::stage::Staged;
use crate::layer::upper::UpperObject;
use crate::layer::{LayerId, RealDir};
use crate::name::Name;
use crate::sys::file::{Stat, TimeChange};
use crate::union::copy_up::CopyUp;
use crate::union::inode::{Inode, LowerData, Node};
use crate::union::{FileKind, Union};

impl Union {
    /// Makes a staged file a metadata copy of a lower one, if that is asked for and can be. False where the data has to be
    /// copied.
    pub(super) fn stage_without_data(&self, staged: &Staged<'_>, lower: &Stat, copy: CopyUp) -> Result<bool> {
        if copy != CopyUp::Metadata || !self.options.metacopy || lower.size == 0 {
            return Ok(false);
        }
        let upper = self.stack.upper()?;
        if !upper.mark_file(staged, Mark::Metacopy, b"")? {
            return Ok(false);
        }
        upper.stage_hole(staged, lower.size)?;
        Ok(true)
    }

    /// Where the data of a file of `dir` is: in itself, unless it is a metadata copy of what `known` says.
    pub(super) fn data_of(dir: &Arc<RealDir>, name: &Name, stat: &Stat, known: Option<LowerData>) -> LowerData {
        known.unwrap_or_else(|| LowerData {
            dir: dir.clone(),
            name: name.clone(),
            key: stat.into(),
            blocks: stat.blocks,
        })
    }

    /// As [`Union::keeping_capabilities`], and gives the set-id bits back, which our writing drops where we are not privileged.
    pub(super) fn keeping_privileges<T>(
        &self,
        file: &UpperObject,
        before: &Stat,
        write: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let written = self.keeping_capabilities(file, write)?;
        if before.mode & 0o6000 != 0 {
            self.stack.upper()?.chmod(file, before.mode & 0o7777)?;
        }
        Ok(written)
    }

    /// Makes a metadata copy what it was before its data was to follow, which failed.
    pub(super) fn empty_again(&self, file: &UpperObject, before: &Stat) {
        let Ok(upper) = self.stack.upper() else { return };
        if !matches!(self.stack.open_file_mark(file, Mark::Metacopy), Ok(Some(_))) {
            // It may have all its data, and only that was not known.
            return;
        }
        let size = |size| upper.truncate(file, size);
        let emptied = self.keeping_privileges(file, before, || size(0).and_then(|()| size(before.size)));
        let at = |(sec, nsec)| TimeChange::At(sec, nsec);
        let unmarked = emptied.and_then(|()| upper.remove_mark(file, Mark::Uncommitted));
        if let Err(e) = unmarked.and_then(|()| upper.set_times(file, at(before.atime), at(before.mtime))) {
            log::warn!("a metadata copy whose data could not follow keeps space or another time: {e}");
        }
    }

    /// What a lookup found may be old: between its look at the marks and the making of the inode the data can have followed,
    /// if another inode for the file was forgotten meanwhile. A change from now on is this inode's.
    pub(super) fn check_data_in_lower(&self, inode: &Inode) {
        let Node::Other(file) = &inode.node else { return };
        let mark = self.upper_object(inode).and_then(|object| self.stack.open_file_mark(&object, Mark::Metacopy));
        if matches!(mark, Ok(None)) {
            file.write().rare_mut().data = None;
        }
    }

    /// Brings a file up that is about to have another name. A metadata copy finds its data by its name, so it gets a mark
    /// that leads there from everywhere, or its data at once if it can't have one.
    pub(super) fn bring_up_to_move(&self, inode: &Arc<Inode>) -> Result<()> {
        if !self.options.redirect_dir {
            return self.ensure_upper(inode, CopyUp::Whole);
        }
        self.ensure_upper(inode, CopyUp::Metadata)?;
        if self.redirect_to_data(inode)? { Ok(()) } else { self.ensure_upper(inode, CopyUp::Whole) }
    }

    /// Makes sure that a metadata copy finds its data under any name. False if the mark for it can't be stored.
    fn redirect_to_data(&self, inode: &Arc<Inode>) -> Result<bool> {
        let Node::Other(file) = &inode.node else { return Ok(true) };
        if inode.kind != FileKind::Regular || file.read().data().is_none() {
            return Ok(true);
        }
        // Whoever moves it comes here first: without the mark, each name of it in upper still is the lower's.
        let _one = inode.copy_up.lock();
        let Some(data) = file.read().data().cloned() else { return Ok(true) };
        let object = self.upper_object(inode)?;
        let redirect = self.stack.open_file_mark(&object, Mark::Redirect)?;
        let redirect = redirect.map(|value| Redirect::parse(&value)).transpose()?;
        if matches!(redirect, Some(Redirect::Path(_))) {
            return Ok(true);
        }
        let link = file.read().links.as_slice().iter().find(|link| !link.uncovered).cloned();
        let Some(link) = link else { return Ok(false) };
        let mut path = link.parent.lower_path();
        path.push(if let Some(Redirect::Sibling(name)) = redirect { name } else { link.name.clone() });
        let redirect = Redirect::Path(path);
        let found = self.look_for_data(&[], LayerId::UPPER, &link.name, Some(&redirect))?;
        if found.is_none_or(|found| found.key != data.key) {
            return Ok(false);
        }
        self.stack.upper()?.mark_file(&object, Mark::Redirect, &redirect.encode())
    }
}
