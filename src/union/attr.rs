//! Attributes: what stat(2) shows, and setattr.

use std::os::fd::AsFd;
use std::sync::Arc;

use nix::fcntl::OFlag;

use crate::error::{Errno, Result};
use crate::layer::override_stat::{Form, OverrideStat};
use crate::layer::upper::{AsUpper, UpperObject};
use crate::layer::{ObjKey, Upper};
use crate::sys;
use crate::sys::file::{Stat, TimeChange};
use crate::sys::xattr::CAPABILITY;
use crate::union::Union;
use crate::union::copy_up::CopyUp;
use crate::union::ids::NOBODY;
use crate::union::inode::{Inode, Node};
use crate::union::reach::Reached;
use crate::union::stats::Op;

/// A point in time: seconds since the epoch, negative before it, and nanoseconds forward from there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, PartialOrd, Ord)]
pub struct Time {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nsec: u32,
}

/// The type of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum FileKind {
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice,
    /// A directory.
    Directory,
    /// A block device.
    BlockDevice,
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink,
    /// A Unix domain socket.
    Socket,
}

impl FileKind {
    /// The type of a mode.
    ///
    /// # Errors
    /// `EIO` for type bits that Linux doesn't know.
    pub fn from_mode(mode: u32) -> Result<Self> {
        Ok(match mode & libc::S_IFMT {
            libc::S_IFIFO => Self::Fifo,
            libc::S_IFCHR => Self::CharDevice,
            libc::S_IFDIR => Self::Directory,
            libc::S_IFBLK => Self::BlockDevice,
            libc::S_IFREG => Self::Regular,
            libc::S_IFLNK => Self::Symlink,
            libc::S_IFSOCK => Self::Socket,
            _ => return Err(Errno::EIO),
        })
    }

    /// The type bits of a mode.
    pub fn to_mode(self) -> u32 {
        match self {
            Self::Fifo => libc::S_IFIFO,
            Self::CharDevice => libc::S_IFCHR,
            Self::Directory => libc::S_IFDIR,
            Self::BlockDevice => libc::S_IFBLK,
            Self::Regular => libc::S_IFREG,
            Self::Symlink => libc::S_IFLNK,
            Self::Socket => libc::S_IFSOCK,
        }
    }
}

/// The attributes of an object of the union.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attr {
    /// Inode number in the union.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Number of names; 1 for a merged directory, as the kernel's overlay says, and with `static_nlink` for any.
    pub nlink: u32,
    /// Owner; `u32::MAX` for one without a number in our user namespace, or in the mount's mapping.
    pub uid: u32,
    /// Group; likewise.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Allocated 512-byte blocks.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of data.
    pub mtime: Time,
    /// Last change of status.
    pub ctime: Time,
}

impl Attr {
    /// The object's type.
    pub fn kind(&self) -> Result<FileKind> {
        FileKind::from_mode(self.mode)
    }
}

/// Who asks: the ids of the calling process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process, as the daemon's pid namespace numbers it; 0 if it has no number there.
    pub pid: u32,
    /// The bits that new objects don't get.
    pub umask: u32,
}

impl Caller {
    /// Whether the caller may leave the set-group-id bit on a file of that group: as a member, or by CAP_FSETID. What can't be
    /// known counts as no.
    pub(super) fn may_keep_group(&self, gid: u32) -> bool {
        self.gid == gid || sys::privilege::in_group(self.pid, gid) || sys::privilege::may_keep_setid(self.uid, self.pid)
    }
}

/// A new value for a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// The time of the operation.
    Now,
    /// This time.
    At(Time),
}

impl SetTime {
    fn change(self) -> TimeChange {
        match self {
            Self::Now => TimeChange::Now,
            Self::At(t) => TimeChange::At(t.sec, t.nsec),
        }
    }
}

/// What setattr changes. All `None` is the kernel's wish, before a write or for a chown to nobody, that set-id bits and
/// capabilities go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// With nothing else to change: it is only what a write takes off that the kernel asks for, so that who may keep set-id
    /// bits loses just the file's capabilities.
    pub before_write: bool,
}

impl SetAttr {
    fn of_mode(mode: u32) -> Self {
        Self { mode: Some(mode), ..Self::default() }
    }
}

/// The set-id bits.
const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;

/// What is left of a mode when somebody without privilege changes the file. As on Linux since 6.2: set-group-id without x
/// for the group, once mandatory locking, stays for a member of the group only.
pub(super) fn without_set_id(mode: u32, may_keep_group: bool) -> u32 {
    let keeps_set_gid = mode & 0o010 == 0 && may_keep_group;
    mode & !(libc::S_ISUID | if keeps_set_gid { 0 } else { libc::S_ISGID })
}

impl Union {
    /// stat(2) of an inode.
    ///
    /// # Errors
    /// `ESTALE` for a number that was forgotten.
    pub fn getattr(&self, ino: u64) -> Result<Attr> {
        self.counters.count(Op::Getattr);
        self.attr_of(&*self.inode(ino)?)
    }

    pub(super) fn attr_of(&self, inode: &Inode) -> Result<Attr> {
        match &inode.node {
            Node::Dir(dir) => {
                let removed = dir.state.read().removed;
                if let Some(attr) = removed {
                    return Ok(attr);
                }
                let view = dir.view();
                let top = view.top().ok_or(Errno::EIO)?;
                if top.is_void() {
                    let place = dir.state.read().place.clone();
                    let (_, name) = place.ok_or(Errno::EIO)?;
                    return self.attr_from(inode, &crate::layer::real::void_stat(top.key, &name));
                }
                let fd = self.stack.open_dir(top)?;
                self.attr_from(inode, &sys::file::stat(&*fd)?)
            }
            Node::Other(_) => self.attr_from(inode, &self.stat_file(inode)?),
        }
    }

    /// The status of the real object behind an inode that is no directory.
    pub(super) fn stat_file(&self, inode: &Inode) -> Result<Stat> {
        self.reach(inode, |way| match way {
            Reached::Object(object) => sys::file::stat(object.as_fd()),
            Reached::Named(dir, name, key) => match self.files.stat(inode.id, key) {
                Some(st) => st,
                None => self.stack.stat_at(dir, name)?.filter(|st| ObjKey::from(st) == key).ok_or(Errno::ESTALE),
            },
        })
    }

    /// The attributes that a real status means for an inode.
    pub(super) fn attr_from(&self, inode: &Inode, st: &Stat) -> Result<Attr> {
        Ok(self.attr_as_said(inode, st, self.override_of(inode, st)?))
    }

    /// The same where it is known what an attribute says of owner and permissions.
    pub(super) fn attr_as_said(&self, inode: &Inode, st: &Stat, said: Option<OverrideStat>) -> Attr {
        let nlink = match &inode.node {
            Node::Dir(dir) if self.options.static_nlink || dir.view().layers() > 1 => 1,
            Node::Dir(_) => st.nlink,
            Node::Other(_) => self.link_count(inode, st),
        };
        let blocks = match &inode.node {
            Node::Dir(_) => st.blocks,
            Node::Other(file) => file.read().data().map_or(st.blocks, |data| data.blocks),
        };
        let time = |(sec, nsec)| Time { sec, nsec };
        let kept = said.map(|said| said.apply(st));
        let (uid, gid) = kept.map_or_else(|| self.owner(inode, st), |kept| self.options.ids.shown_owner(&kept));
        let st = kept.as_ref().unwrap_or(st);
        Attr {
            ino: inode.number,
            // A device 0:0 is stored as an empty regular file.
            mode: st.mode & !libc::S_IFMT | inode.kind.to_mode(),
            nlink,
            uid,
            gid,
            rdev: st.rdev,
            size: st.size,
            blocks,
            blksize: st.blksize,
            atime: time(st.atime),
            mtime: time(st.mtime),
            ctime: time(st.ctime),
        }
    }

    /// Owner and group. A user without a number in our user namespace must not be taken for the one who has the number that
    /// stat shows then, so it is sent as none. Only a file or directory can be asked: without a new access time it opens for
    /// who may act as its owner, and that we may, having every capability over those who have a number.
    fn owner(&self, inode: &Inode, st: &Stat) -> (u32, u32) {
        let ids = &self.options.ids;
        let Some((_, gid)) = self.ambiguous_ids.filter(|(uid, _)| *uid == st.uid) else { return ids.shown_owner(st) };
        if !st.is_file() && !st.is_dir() {
            return ids.shown_owner(st);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOATIME | OFlag::O_NONBLOCK;
        match self.with_object(inode, |object| sys::file::reopen(object, flags)) {
            Ok(_) => ids.shown_owner(st),
            Err(_) => {
                let owner = Stat { uid: NOBODY, gid: if st.gid == gid { NOBODY } else { st.gid }, ..*st };
                ids.shown_owner(&owner)
            }
        }
    }

    /// Changes attributes.
    ///
    /// # Errors
    /// As chmod(2), chown(2), truncate(2) and utimensat(2); `EROFS` without an upper.
    pub fn setattr(&self, caller: &Caller, ino: u64, change: &SetAttr) -> Result<Attr> {
        self.counters.count(Op::Setattr);
        let inode = self.inode(ino)?;
        let upper = self.stack.upper()?;
        let ids = &self.options.ids;
        let stored = SetAttr {
            uid: change.uid.map(|uid| ids.new_uid(uid)).transpose()?,
            gid: change.gid.map(|gid| ids.new_gid(gid)).transpose()?,
            ..*change
        };
        match &inode.node {
            Node::Dir(dir) => {
                if change.size.is_some() {
                    return Err(Errno::EISDIR);
                }
                if let Some(attr) = &mut dir.state.write().removed {
                    let uid = stored.uid.map(|uid| ids.shown_uid(uid));
                    let gid = stored.gid.map(|gid| ids.shown_gid(gid));
                    change_removed(attr, &SetAttr { uid, gid, ..*change });
                    return Ok(*attr);
                }
                let real = self.ensure_upper_dir(&inode)?;
                self.apply(upper, &inode, &self.stack.open_upper(&real)?, &stored)?;
            }
            Node::Other(_) => {
                if change.size.is_some() && inode.kind != FileKind::Regular {
                    return Err(Errno::EINVAL);
                }
                if self.changes_nothing(&inode, &stored)? {
                    return self.attr_of(&inode);
                }
                let copy = match change.size {
                    Some(0) => CopyUp::WithoutData,
                    Some(_) => CopyUp::Whole,
                    None if change.before_write => CopyUp::Whole,
                    None => CopyUp::Metadata,
                };
                self.ensure_upper(&inode, copy)?;
                let done = self.set_file_attr(upper, caller, &inode, &stored);
                self.content_changed(&inode);
                done?;
            }
        }
        self.attr_of(&inode)
    }

    /// Under writeback the kernel tells its own times after any change of the inode, an unlink for instance, also when the
    /// time of modification is what it was. That is no reason to copy a lower file up, nor is a drop of what it doesn't have.
    fn changes_nothing(&self, inode: &Arc<Inode>, change: &SetAttr) -> Result<bool> {
        let Node::Other(file) = &inode.node else { return Ok(false) };
        let time_alone = SetAttr { mtime: change.mtime, before_write: change.before_write, ..SetAttr::default() };
        if file.read().layer.is_upper() || *change != time_alone {
            return Ok(false);
        }
        match change.mtime {
            Some(SetTime::At(mtime)) => Ok(self.stat_file(inode)?.mtime == (mtime.sec, mtime.nsec)),
            Some(SetTime::Now) => Ok(false),
            None => {
                let stat = self.stat_file(inode)?;
                let mode = self.override_of(inode, &stat)?.map_or(stat.mode, |said| said.mode);
                Ok(mode & SET_ID == 0 && !self.has_capability(inode)?)
            }
        }
    }

    fn set_file_attr(&self, upper: &Upper, caller: &Caller, inode: &Arc<Inode>, change: &SetAttr) -> Result<()> {
        if let Some(size) = change.size {
            self.mtime_moves(inode);
            let file = self.writable_file(inode)?;
            let before = sys::file::stat(&file)?;
            upper.truncate(&file, size)?;
            if before.size == size && change.mtime.is_none() {
                // Under writeback the kernel shows no other time for this, and a remount must not either.
                upper.set_times(&file, TimeChange::Omit, TimeChange::At(before.mtime.0, before.mtime.1))?;
            }
            if !sys::privilege::may_keep_setid(caller.uid, caller.pid) {
                self.drop_privileges(upper, caller, inode, &file)?;
            }
        }
        if *change == (SetAttr { before_write: change.before_write, ..SetAttr::default() }) {
            let object = self.upper_object(inode)?;
            let _one = inode.copy_up.lock();
            return if change.before_write && sys::privilege::may_keep_setid(caller.uid, caller.pid) {
                drop_capabilities(upper, &object)
            } else {
                self.drop_privileges(upper, caller, inode, &object)
            };
        }
        if let (Some(time), Node::Other(file)) = (change.mtime, &inode.node) {
            let time = if let SetTime::At(time) = time { Some(time) } else { None };
            file.write().rare_mut().kernel_mtime = time;
        }
        let rest = SetAttr { size: None, before_write: false, ..*change };
        if rest == SetAttr::default() {
            return Ok(());
        }
        let object = self.upper_object(inode)?;
        // The data of a metadata copy comes without its old attributes.
        let _one = inode.copy_up.lock();
        let chown = change.uid.is_some() || change.gid.is_some();
        let before = if chown { Some(self.kept_stat(inode, &object)?) } else { None };
        self.apply(upper, inode, &object, &rest)?;
        // The filesystem decides by our rights whether this bit stays, which are not the caller's.
        if before.is_some_and(|st| st.mode & libc::S_ISGID != 0 && !self.may_keep_group(caller, &st)) {
            let mode = self.kept_stat(inode, &object)?.mode & 0o7777;
            self.apply(upper, inode, &object, &SetAttr::of_mode(mode & !libc::S_ISGID))?;
        }
        Ok(())
    }

    /// Takes set-id bits and capabilities off a file, as a write by somebody without privilege does, and a chown.
    fn drop_privileges(&self, upper: &Upper, caller: &Caller, inode: &Inode, object: &UpperObject) -> Result<()> {
        let stat = self.kept_stat(inode, object)?;
        let mode = stat.mode & 0o7777;
        if mode & SET_ID != 0 {
            let mode = without_set_id(mode, self.may_keep_group(caller, &stat));
            self.apply(upper, inode, object, &SetAttr::of_mode(mode))?;
        }
        drop_capabilities(upper, object)
    }

    /// Owner first: changing it drops set-id bits that the new mode may want.
    fn apply(&self, upper: &Upper, inode: &Inode, object: &impl AsUpper, change: &SetAttr) -> Result<()> {
        if !self.change_override(upper, inode, object, change)? {
            self.chown_object(upper, object, change.uid, change.gid)?;
            if let Some(mode) = change.mode {
                upper.chmod(object, mode & 0o7777)?;
            }
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let time = |t: Option<SetTime>| t.map_or(TimeChange::Omit, SetTime::change);
            upper.set_times(object, time(change.atime), time(change.mtime))?;
        }
        Ok(())
    }

    /// Gives an object to stored ids. Where another owner is shown anyway, one that it can't get doesn't matter, nor for what
    /// takes no attribute where owners are kept in one.
    pub(super) fn chown_object(
        &self,
        upper: &Upper,
        object: &impl AsUpper,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<()> {
        if uid.is_none() && gid.is_none() {
            return Ok(());
        }
        match upper.chown(object, uid, gid) {
            Err(Errno::EPERM | Errno::EINVAL)
                if self.options.ids.is_squashed() || self.stack.xattr_permissions() == Some(Form::User) =>
            {
                Ok(())
            }
            done => done,
        }
    }

    /// [`Caller::may_keep_group`] for the group of a real status.
    fn may_keep_group(&self, caller: &Caller, stat: &Stat) -> bool {
        caller.may_keep_group(self.options.ids.shown_gid(stat.gid))
    }

    /// The upper object behind an inode that was copied up, open for changes of anything but its data.
    pub(super) fn upper_object(&self, inode: &Inode) -> Result<UpperObject> {
        self.reach(inode, |way| match way {
            Reached::Object(object) => Ok(object),
            Reached::Named(dir, name, key) => match self.files.upper_object(inode.id, key) {
                Some(object) => Ok(object),
                None => {
                    let dir = self.stack.as_upper(dir).ok_or(Errno::EROFS)?;
                    self.stack.open_upper_object(&dir, name, key, OFlag::O_PATH)
                }
            },
        })
    }
}

pub(super) fn drop_capabilities(upper: &Upper, object: &impl AsUpper) -> Result<()> {
    match upper.remove_xattr(object, CAPABILITY) {
        Err(Errno::ENODATA | Errno::EOPNOTSUPP | Errno::EPERM) => Ok(()),
        done => done,
    }
}

/// A directory without a name lives on in memory only.
fn change_removed(attr: &mut Attr, change: &SetAttr) {
    let now = || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Time { sec: since.as_secs() as i64, nsec: since.subsec_nanos() }
    };
    let time = |t: SetTime| match t {
        SetTime::Now => now(),
        SetTime::At(t) => t,
    };
    if let Some(mode) = change.mode {
        attr.mode = attr.mode & libc::S_IFMT | mode & 0o7777;
    }
    attr.uid = change.uid.unwrap_or(attr.uid);
    attr.gid = change.gid.unwrap_or(attr.gid);
    attr.atime = change.atime.map_or(attr.atime, time);
    attr.mtime = change.mtime.map_or(attr.mtime, time);
    attr.ctime = now();
}
