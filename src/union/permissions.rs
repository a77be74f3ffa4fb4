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
use crate::union::{FileKind, SetAttr, Union};

/// What the topmost lower root that says something does, for the root of an upper that says nothing.
pub(super) fn said_of_lower_root(stack: &Stack) -> Option<OverrideStat> {
    stack.xattr_permissions().filter(|_| stack.is_writable())?;
    stack.layers().iter().map(|layer| &layer.root).filter(|root| !root.layer.is_upper()).find_map(|root| {
        let fd = stack.open_dir(root).ok()?;
        stack.override_stat(Target::Dir(fd.as_fd()), &sys::file::stat(&*fd).ok()?).ok()?
    })
}

impl Union {
    /// What the attribute says of an inode whose real status is `stat`. The root of an upper that says nothing has what the
    /// lower roots say, as in fuse-overlayfs.
    pub(super) fn override_of(&self, inode: &Inode, stat: &Stat) -> Result<Option<OverrideStat>> {
        if self.stack.xattr_permissions().is_none() {
            return Ok(None);
        }
        let said = match self.with_target(inode, |target| self.stack.override_stat(target, stat)) {
            // What another mount covers, or a directory that is gone.
            Err(Errno::ENODATA) => return Ok(None),
            said => said?,
        };
        let of_root = self.lower_root_said.filter(|_| inode.number == Self::ROOT);
        Ok(said.or(of_root))
    }

    /// The type of an object that is no directory, which for a regular file an attribute may say.
    pub(super) fn kind_at(&self, dir: &Arc<RealDir>, name: &Name, stat: Stat) -> Result<FileKind> {
        if self.stack.xattr_permissions().is_none() {
            return FileKind::from_mode(stat.mode);
        }
        let fd = self.stack.open_dir(dir)?;
        let stat = self.stack.overridden(Target::At(fd.as_fd(), name.as_cstr()), stat)?;
        FileKind::from_mode(stat.mode)
    }

    /// The status of an inode's real object, with owner, permissions and type as they are kept.
    pub(super) fn kept_stat(&self, inode: &Inode, stat: Stat) -> Result<Stat> {
        Ok(self.override_of(inode, &stat)?.map_or(stat, |said| said.apply(&stat)))
    }

    /// Changes owner and permissions in the attribute. False if the object itself has them.
    pub(super) fn change_override(
        &self,
        upper: &Upper,
        inode: &Inode,
        object: &impl AsUpper,
        change: &SetAttr,
    ) -> Result<bool> {
        if self.stack.xattr_permissions().is_none() {
            return Ok(false);
        }
        let stat = sys::file::stat(object.as_upper_fd())?;
        if !Form::is_for(&stat) {
            return Ok(false);
        }
        let before = self.override_of(inode, &stat)?.unwrap_or_else(|| OverrideStat::of(&stat));
        let mut said = before;
        if (change.uid.is_some() || change.gid.is_some()) && !stat.is_dir() {
            // As every filesystem does with a new owner.
            said.mode = without_set_id(said.mode, true);
            drop_capabilities(upper, object)?;
        }
        said.uid = change.uid.unwrap_or(said.uid);
        said.gid = change.gid.unwrap_or(said.gid);
        said.mode = change.mode.map_or(said.mode, |mode| mode & 0o7777);
        if change.uid.is_some() || change.gid.is_some() || change.mode.is_some() {
            let needed = if stat.is_dir() { 0o700 } else { 0o600 };
            if stat.mode & needed != needed {
                // Closed to the mounter, it could not be read.
                upper.chmod(object, stat.mode & 0o7777 | needed)?;
            }
            upper.set_override(object, &said)?;
        }
        Ok(true)
    }
}
