//! Extended attributes: the user's own; marks are neither shown nor settable, and what looks like one is stored escaped.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::error::{Errno, Result};
use crate::layer::ObjKey;
use crate::layer::override_stat::Form;
use crate::sys;
use crate::sys::xattr::{ACCESS_ACL, CAPABILITY, Target, is_acl};
use crate::union::copy_up::CopyUp;
use crate::union::inode::{Inode, Node};
use crate::union::reach::Reached;
use crate::union::stats::{LAYER_XATTR, Op, STATS_XATTR};
use crate::union::{Caller, FileKind, Union};

impl Union {
    /// The value of an attribute.
    ///
    /// # Errors
    /// `ENODATA` if there is none.
    pub fn getxattr(&self, ino: u64, name: &CStr) -> Result<Vec<u8>> {
        self.counters.count(Op::Getxattr);
        if ino == Union::ROOT
            && let Some(answer) = self.virtual_xattr(name)
        {
            return answer;
        }
        if self.hides(name.to_bytes()) {
            // For ACLs the kernel asks whenever it checks permissions, and fails with whatever else is answered.
            return Err(if self.options.xattrs || is_acl(name.to_bytes()) {
                Errno::ENODATA
            } else {
                Errno::EOPNOTSUPP
            });
        }
        let stored = self.stored_name(name)?;
        let inode = self.inode(ino)?;
        if name == CAPABILITY
            && let Some(file) = self.opened_ahead(&inode)
        {
            let value = sys::xattr::get(Target::Fd(file.as_fd()), &stored)?;
            return Ok(self.options.ids.shown_value(name, value));
        }
        let value = self.with_target(&inode, |target| sys::xattr::get(target, &stored))?;
        Ok(self.options.ids.shown_value(name, value))
    }

    /// The names of all attributes, each closed by a NUL.
    ///
    /// # Errors
    /// As listxattr(2).
    pub fn listxattr(&self, ino: u64) -> Result<Vec<u8>> {
        self.counters.count(Op::Listxattr);
        let inode = self.inode(ino)?;
        let stored = match self.with_target(&inode, sys::xattr::list) {
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => return Ok(Vec::new()),
            stored => stored?,
        };
        let mut shown = Vec::with_capacity(stored.len());
        for name in stored.split(|b| *b == 0).filter(|name| !name.is_empty()) {
            if let Some(name) = self.stack.namespace().to_shown(name).filter(|_| !self.hides(name)) {
                shown.extend_from_slice(&name);
                shown.push(0);
            }
        }
        Ok(shown)
    }

    /// As [`Union::listxattr`], without the names that this caller must not know of: other filesystems, too, list
    /// `trusted.*` for the privileged only.
    ///
    /// # Errors
    /// As listxattr(2).
    pub fn listxattr_for(&self, caller: &Caller, ino: u64) -> Result<Vec<u8>> {
        let all = self.listxattr(ino)?;
        let is_trusted = |name: &[u8]| name.starts_with(b"trusted.");
        if !all.split(|b| *b == 0).any(is_trusted) || sys::privilege::may_see_trusted(caller.uid, caller.pid) {
            return Ok(all);
        }
        Ok(all.split_inclusive(|b| *b == 0).filter(|name| !is_trusted(name)).flatten().copied().collect())
    }

    /// Sets an attribute; `flags` as for setxattr(2).
    ///
    /// # Errors
    /// As setxattr(2).
    pub fn setxattr(&self, caller: &Caller, ino: u64, name: &CStr, value: &[u8], flags: i32) -> Result<()> {
        self.counters.count(Op::Setxattr);
        self.check_settable(name)?;
        if self.keeps_permissions_in(name.to_bytes()) {
            return Err(Errno::EPERM);
        }
        let stored = self.stored_name(name)?;
        let value = &*self.options.ids.stored_value(name, value)?;
        let inode = self.inode(ino)?;
        if self.is_special_as_file(&inode) && name.to_bytes().starts_with(b"user.") {
            // As what it stands for.
            return Err(Errno::EPERM);
        }
        let upper = self.stack.upper()?;
        match &inode.node {
            Node::Dir(dir) => {
                let real = self.ensure_upper_dir(&inode)?;
                upper.set_xattr(&self.stack.open_upper(&real)?, &stored, value, flags)?;
                dir.state.write().default_acl = None;
            }
            Node::Other(_) => {
                self.ensure_upper(&inode, CopyUp::Metadata)?;
                let object = self.upper_object(&inode)?;
                // A capability that is kept for a file meanwhile must not be an old one.
                let _one = inode.copy_up.lock();
                upper.set_xattr(&object, &stored, value, flags)?;
            }
        }
        if name == ACCESS_ACL { self.after_acl(caller, &inode) } else { Ok(()) }
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// `ENODATA` if there is none.
    pub fn removexattr(&self, ino: u64, name: &CStr) -> Result<()> {
        self.counters.count(Op::Removexattr);
        self.check_settable(name)?;
        if self.keeps_permissions_in(name.to_bytes()) {
            return Err(Errno::ENODATA);
        }
        let stored = self.stored_name(name)?;
        let inode = self.inode(ino)?;
        let upper = self.stack.upper()?;
        // What isn't there is no reason to copy anything up.
        self.with_target(&inode, |target| sys::xattr::get(target, &stored))?;
        match &inode.node {
            Node::Dir(dir) => {
                let real = self.ensure_upper_dir(&inode)?;
                upper.remove_xattr(&self.stack.open_upper(&real)?, &stored)?;
                dir.state.write().default_acl = None;
                Ok(())
            }
            Node::Other(_) => {
                self.ensure_upper(&inode, CopyUp::Metadata)?;
                let object = self.upper_object(&inode)?;
                let _one = inode.copy_up.lock();
                upper.remove_xattr(&object, &stored)
            }
        }
    }

    /// Runs `call`, which only reads, on the real object behind an inode. A lower's is not opened for that.
    pub(super) fn with_target<T>(&self, inode: &Inode, call: impl FnOnce(Target<'_>) -> Result<T>) -> Result<T> {
        if inode.as_dir().is_some() {
            return self.with_object(inode, |dir| call(Target::Dir(dir)));
        }
        let (fd, name) = self.reach(inode, |way| match way {
            Reached::Named(dir, name, key) if !dir.layer.is_upper() => {
                self.stack.stat_at(dir, name)?.filter(|st| ObjKey::from(st) == key).ok_or(Errno::ESTALE)?;
                Ok((self.stack.open_dir(dir)?, Some(name.clone())))
            }
            // In upper, what has its name by now may be another one when it is read.
            way => Ok((self.open_reached(way)?, None)),
        })?;
        call(name.as_ref().map_or(Target::Fd(fd.as_fd()), |name| Target::At(fd.as_fd(), name.as_cstr())))
    }

    /// Runs `call` on the real object behind an inode.
    pub(super) fn with_object<T>(&self, inode: &Inode, call: impl FnOnce(BorrowedFd<'_>) -> Result<T>) -> Result<T> {
        match &inode.node {
            Node::Dir(dir) => {
                let view = dir.view();
                let top = view.top().ok_or(Errno::EIO)?;
                if dir.state.read().removed.is_some() || top.is_void() {
                    return Err(Errno::ENODATA);
                }
                let fd = self.stack.open_dir(top)?;
                call(fd.as_fd())
            }
            Node::Other(_) => {
                let object = self.reach(inode, |way| self.open_reached(way))?;
                call(object.as_fd())
            }
        }
    }

    fn open_reached(&self, way: Reached<'_>) -> Result<Arc<OwnedFd>> {
        match way {
            Reached::Object(object) => Ok(object.into_fd()),
            Reached::Named(dir, name, key) => self.stack.open_path(dir, name, key).map(Arc::new),
        }
    }

    /// Whether a file has a file capability.
    pub(super) fn has_capability(&self, inode: &Arc<Inode>) -> Result<bool> {
        match self.with_target(inode, |target| sys::xattr::get(target, CAPABILITY)) {
            Ok(_) => Ok(true),
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Setting an ACL takes the set-group-id bit off a file whose group the caller is not in, as chmod does.
    fn after_acl(&self, caller: &Caller, inode: &Arc<Inode>) -> Result<()> {
        let attr = self.attr_of(inode)?;
        if attr.mode & libc::S_ISGID == 0 || caller.may_keep_group(attr.gid) {
            return Ok(());
        }
        let upper = self.stack.upper()?;
        let mode = attr.mode & 0o7777 & !libc::S_ISGID;
        match &inode.node {
            Node::Dir(_) => upper.chmod(&self.stack.open_upper(&self.ensure_upper_dir(inode)?)?, mode),
            Node::Other(_) => upper.chmod(&self.upper_object(inode)?, mode),
        }
    }

    /// Whether an attribute is one of those that this mount is to be without, or nobody's to see or set.
    fn hides(&self, name: &[u8]) -> bool {
        self.is_without(name) || self.keeps_permissions_in(name)
    }

    fn is_without(&self, name: &[u8]) -> bool {
        !self.options.xattrs || !self.options.acl && is_acl(name)
    }

    /// Whether an attribute has owner and permissions.
    fn keeps_permissions_in(&self, name: &[u8]) -> bool {
        self.stack.xattr_permissions().is_some() && Form::hides(name)
    }

    /// Whether what is no file may be stored as one.
    fn is_special_as_file(&self, inode: &Inode) -> bool {
        self.stack.xattr_permissions().is_some() && !matches!(inode.kind, FileKind::Regular | FileKind::Directory)
    }

    fn check_settable(&self, name: &CStr) -> Result<()> {
        if self.is_without(name.to_bytes()) { Err(Errno::EOPNOTSUPP) } else { Ok(()) }
    }

    fn stored_name(&self, name: &CStr) -> Result<CString> {
        CString::new(self.stack.namespace().to_stored(name.to_bytes())).map_err(|_| Errno::EINVAL)
    }

    /// Attributes of the root that tell of the union itself; they are not listed.
    fn virtual_xattr(&self, name: &CStr) -> Option<Result<Vec<u8>>> {
        let json = |value: serde_json::Result<Vec<u8>>| value.map_err(|_| Errno::EIO);
        if name.to_bytes() == STATS_XATTR.as_bytes() {
            let mut stats = self.stats();
            stats.layers.clear();
            return Some(json(serde_json::to_vec(&stats)));
        }
        let index = name.to_bytes().strip_prefix(LAYER_XATTR.as_bytes())?;
        let index: usize = std::str::from_utf8(index).ok()?.parse().ok()?;
        Some(match self.stats().layers.get(index) {
            Some(layer) => json(serde_json::to_vec(layer)),
            None => Err(Errno::ENODATA),
        })
    }
}
