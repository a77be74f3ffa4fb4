//! Owner and permissions that are kept in an attribute (`xattr_permissions`): what is read and changed there, and not on the
//! object itself.

use std::os::fd::AsFd;
use std::sync::Arc;

use crate::error::{Errno, Result};
use crate::layer::override_stat::{Form, OverrideStat};
use crate::layer::upper::AsUpper;
use crate::layer::{RealDir, Stack, Upper};
use crate::name::Name;
use crate::sys;
use crate::sys::file::Stat;
use crate::sys::xattr::Target;
use crate::union::attr::{drop_capabilities, without_set_id};
use crate::union::inode::Inode;
use crate::union::{SetAttr, Union};

/// What the topmost lower root that says something does, for the root of an upper that says nothing.
///
/// # Errors
/// Those of that root: as on any object they are told when it is asked for.
pub(super) fn said_of_lower_root(stack: &Stack) -> Result<Option<OverrideStat>> {
    if stack.xattr_permissions().is_none() || !stack.is_writable() {
        return Ok(None);
    }
    for root in stack.layers().iter().map(|layer| &layer.root).filter(|root| !root.layer.is_upper()) {
        let fd = stack.open_dir(root)?;
        let said = stack.override_stat(Target::Dir(fd.as_fd()), &sys::file::stat(&*fd)?)?;
        if said.is_some() {
            return Ok(said);
        }
    }
    Ok(None)
}

impl Union {
    /// What the attribute says of an inode whose real object, of that status, is open. The root of an upper that says nothing has
    /// what the lower roots say, as in fuse-overlayfs.
    fn said(&self, inode: &Inode, object: Target<'_>, stat: &Stat) -> Result<Option<OverrideStat>> {
        match self.stack.override_stat(object, stat)? {
            None if inode.number == Self::ROOT => self.lower_root_said,
            said => Ok(said),
        }
    }

    /// The same for an inode that is to be opened for it.
    pub(super) fn override_of(&self, inode: &Inode, stat: &Stat) -> Result<Option<OverrideStat>> {
        if self.stack.xattr_permissions().is_none() {
            return Ok(None);
        }
        match self.with_target(inode, |target| self.said(inode, target, stat)) {
            // What another mount covers, or a directory that is gone.
            Err(Errno::ENODATA) => Ok(None),
            said => said,
        }
    }

    /// The status of an inode's object in upper, with owner, permissions and type as they are kept.
    pub(super) fn kept_stat(&self, inode: &Inode, object: &impl AsUpper) -> Result<Stat> {
        let stat = sys::file::stat(object.as_upper_fd())?;
        Ok(self.said(inode, object.as_target(), &stat)?.map_or(stat, |said| said.apply(&stat)))
    }

    /// What the attribute says of an object that is no directory; `None` if no such attributes count.
    pub(super) fn said_at(&self, dir: &Arc<RealDir>, name: &Name, stat: &Stat) -> Result<Option<Option<OverrideStat>>> {
        if self.stack.xattr_permissions().is_none() {
            return Ok(None);
        }
        let fd = self.stack.open_dir(dir)?;
        self.stack.override_stat(Target::At(fd.as_fd(), name.as_cstr()), stat).map(Some)
    }

    /// Changes owner and permissions in the attribute. False if there is nothing of it to change, or the object itself has them.
    pub(super) fn change_override(
        &self,
        upper: &Upper,
        inode: &Inode,
        object: &impl AsUpper,
        change: &SetAttr,
    ) -> Result<bool> {
        let SetAttr { mode, uid, gid, .. } = *change;
        let chown = uid.is_some() || gid.is_some();
        if self.stack.xattr_permissions().is_none() || !chown && mode.is_none() {
            return Ok(false);
        }
        let stat = sys::file::stat(object.as_upper_fd())?;
        if !Form::is_for(&stat) {
            return Ok(false);
        }
        let mut said = self.said(inode, object.as_target(), &stat)?.unwrap_or_else(|| OverrideStat::of(&stat));
        if chown && !stat.is_dir() {
            // As every filesystem does with a new owner.
            said.mode = without_set_id(said.mode, true);
            drop_capabilities(upper, object)?;
        }
        said.uid = uid.unwrap_or(said.uid);
        said.gid = gid.unwrap_or(said.gid);
        said.mode = mode.map_or(said.mode, |mode| mode & 0o7777);
        let needed = if stat.is_dir() { 0o700 } else { 0o600 };
        if stat.mode & needed != needed {
            // Closed to the mounter, it could not be read.
            upper.chmod(object, stat.mode & 0o7777 | needed)?;
        }
        upper.set_override(object, &said)?;
        Ok(true)
    }
}
