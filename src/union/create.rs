//! New objects: straight into upper where nothing stands, staged and swapped in where a whiteout does.

use std::ffi::CString;
use std::sync::Arc;

use crate::error::{Errno, Result};
use crate::layer::marks::Mark;
use crate::layer::override_stat::{Form, OverrideStat};
use crate::layer::stage::{Over, Staged};
use crate::layer::upper::{AsUpper, UpperFd, UpperObject};
use crate::layer::{ObjKey, Upper, UpperDir};
use crate::name::Name;
use crate::sys;
use crate::sys::file::Stat;
use crate::sys::xattr::{ACCESS_ACL, DEFAULT_ACL};
use crate::union::acl::{self, Inherited};
use crate::union::handles::OpenFile;
use crate::union::inode::Inode;
use crate::union::stats::Op;
use crate::union::{Attr, Caller, FileKind, Union};

/// A place in upper where an object is being made; the directory's names are locked.
struct Place<'a> {
    upper: &'a Upper,
    parent: &'a Arc<Inode>,
    name: &'a Name,
    dir: UpperDir,
    fd: UpperFd,
    /// Whether a whiteout in AUFS form is beside it.
    hidden: bool,
}

/// Owner and permissions of a new object.
struct Birth {
    uid: u32,
    gid: u32,
    mode: u32,
    /// The type and number of what may have to be stored as a regular file.
    special: Option<(u32, u64)>,
    /// Whether its directory hands its set-group-id bit down to directories.
    inherits_group: bool,
    /// Its directory's default ACL, for who can't let the filesystem apply it.
    default_acl: Option<Vec<u8>>,
    inherited: Option<Inherited>,
}

impl Union {
    /// Makes a regular file.
    ///
    /// # Errors
    /// As open(2) with `O_CREAT|O_EXCL`.
    pub fn create(&self, caller: &Caller, parent: u64, name: &Name, mode: u32) -> Result<Attr> {
        self.counters.count(Op::Create);
        let dir = self.dir(parent)?;
        self.with_place(&dir, name, |place| self.create_at(place, caller, mode))
    }

    fn create_at(&self, place: &Place<'_>, caller: &Caller, mode: u32) -> Result<Attr> {
        let birth = self.birth(place, caller, mode)?;
        let created = if self.must_stage() {
            Err(Errno::EEXIST)
        } else {
            place.upper.create_file(&place.fd, place.name, birth.mode)
        };
        let (object, stat) = match created {
            // The union shows nothing here, so it is a whiteout.
            Err(Errno::EEXIST) => {
                let staged = place.upper.stage_file()?;
                birth.apply(self, &staged, FileKind::Regular)?;
                place.publish(staged, Over::NonDirectory)?
            }
            created => {
                let object = created?;
                let finished = birth.finish(self, &object);
                (object, place.or_take_back(FileKind::Regular, finished)?)
            }
        };
        let inode = self.finish_new(place, &stat, FileKind::Regular)?;
        self.files.put(inode.id, ObjKey::from(&stat), OpenFile::Write(object));
        self.attr_from(&inode, &stat)
    }

    /// Makes a fifo, socket, device or regular file.
    ///
    /// # Errors
    /// As mknod(2).
    pub fn mknod(&self, caller: &Caller, parent: u64, name: &Name, mode: u32, rdev: u64) -> Result<Attr> {
        let kind = match mode & libc::S_IFMT {
            0 | libc::S_IFREG => return self.create(caller, parent, name, mode & 0o7777),
            libc::S_IFDIR | libc::S_IFLNK => return Err(Errno::EINVAL),
            _ => FileKind::from_mode(mode).map_err(|_| Errno::EINVAL)?,
        };
        self.counters.count(Op::Mknod);
        let dir = self.dir(parent)?;
        self.with_place(&dir, name, |place| {
            if kind == FileKind::CharDevice && rdev == 0 {
                return self.null_device_at(place, caller, mode & 0o7777);
            }
            let mut birth = self.birth(place, caller, mode & 0o7777)?;
            birth.special = Some((kind.to_mode(), rdev));
            let full = kind.to_mode() | birth.mode;
            let created = if self.must_stage() {
                Err(Errno::EEXIST)
            } else {
                place.upper.create_node(&place.fd, place.name, full, rdev)
            };
            let stat = match created {
                Err(Errno::EEXIST) => {
                    let staged = place.upper.stage_special(full, rdev)?;
                    birth.apply(self, &staged, kind)?;
                    place.publish(staged, Over::NonDirectory)?.1
                }
                created => {
                    created?;
                    self.finish_in_place(place, kind, |object| birth.finish(self, object))?.1
                }
            };
            self.new_attr(place, &stat, kind)
        })
    }

    fn null_device_at(&self, place: &Place<'_>, caller: &Caller, mode: u32) -> Result<Attr> {
        let birth = self.birth(place, caller, mode)?;
        let staged = stage_null_device(place.upper, |staged| birth.apply(self, staged, FileKind::CharDevice))?;
        let over = self.over(place)?;
        // Then a listing looks twice at what is in here.
        self.stack.set_impure(&place.dir)?;
        let (_, stat) = place.publish(staged, over)?;
        self.new_attr(place, &stat, FileKind::CharDevice)
    }

    /// A device 0:0 of our own, for a rename that leaves one (RENAME_WHITEOUT of a union on top of this one).
    pub(super) fn stage_own_device(&self) -> Result<(Staged<'_>, Stat)> {
        let upper = self.stack.upper()?;
        let staged = stage_null_device(upper, |staged| upper.chmod(staged, 0))?;
        let stat = sys::file::stat(staged.fd())?;
        Ok((staged, stat))
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As mkdir(2).
    pub fn mkdir(&self, caller: &Caller, parent: u64, name: &Name, mode: u32) -> Result<Attr> {
        self.counters.count(Op::Mkdir);
        let dir = self.dir(parent)?;
        self.with_place(&dir, name, |place| self.mkdir_at(place, caller, mode))
    }

    fn mkdir_at(&self, place: &Place<'_>, caller: &Caller, mode: u32) -> Result<Attr> {
        let birth = self.birth(place, caller, mode & 0o1777)?;
        let created = if place.hidden || self.must_stage() {
            Err(Errno::EEXIST)
        } else {
            place.upper.create_dir(&place.fd, place.name, birth.mode)
        };
        let (object, stat) = match created {
            Err(Errno::EEXIST) => {
                let staged = place.upper.stage_dir(0o700)?;
                birth.apply(self, &staged, FileKind::Directory)?;
                let over = if self.over(place)? == Over::Nothing { Over::Nothing } else { Over::Other };
                if place.hidden || over != Over::Nothing {
                    // What the whiteout hid stays hidden.
                    place.upper.make_opaque(&staged)?;
                }
                place.publish(staged, over)?
            }
            created => {
                created?;
                self.finish_in_place(place, FileKind::Directory, |object| birth.finish(self, object))?
            }
        };
        let inode = self.finish_new(place, &stat, FileKind::Directory)?;
        if let Some(node) = inode.as_dir()
            && let Some(real) = node.view().upper
        {
            // What is made in it next need not ask for what is known now.
            self.stack.keep_new(&real, object);
            node.state.write().default_acl = Some(birth.default_acl.is_some());
        }
        self.attr_from(&inode, &stat)
    }

    /// Makes a symlink.
    ///
    /// # Errors
    /// As symlink(2).
    pub fn symlink(&self, caller: &Caller, parent: u64, name: &Name, target: &[u8]) -> Result<Attr> {
        self.counters.count(Op::Symlink);
        let target = CString::new(target).map_err(|_| Errno::EINVAL)?;
        let dir = self.dir(parent)?;
        self.with_place(&dir, name, |place| {
            let mut birth = self.birth(place, caller, 0o777)?;
            birth.inherited = None;
            let stat = match place.upper.create_symlink(&place.fd, place.name, &target) {
                Err(Errno::EEXIST) => {
                    let staged = place.upper.stage_symlink(&target)?;
                    birth.own(self, &staged)?;
                    place.publish(staged, Over::NonDirectory)?.1
                }
                created => {
                    created?;
                    self.finish_in_place(place, FileKind::Symlink, |object| birth.own(self, object))?.1
                }
            };
            self.new_attr(place, &stat, FileKind::Symlink)
        })
    }

    /// Runs `make` with a free place in upper.
    fn with_place<T>(&self, dir: &Arc<Inode>, name: &Name, make: impl FnOnce(&Place<'_>) -> Result<T>) -> Result<T> {
        Self::check_new_name(name)?;
        self.stack.upper()?;
        if self.hold(dir, name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        self.ensure_upper_dir(dir)?;
        let _names = dir.as_dir().ok_or(Errno::ENOTDIR)?.names.write();
        if self.find(dir, name, None)?.is_some() {
            return Err(Errno::EEXIST);
        }
        let node = dir.as_dir().ok_or(Errno::ENOTDIR)?;
        if node.state.read().removed.is_some() {
            return Err(Errno::ENOENT);
        }
        let real = node.view().upper.ok_or(Errno::EROFS)?;
        let fd = self.stack.open_upper(&real)?;
        let hidden = self.stack.has_dot_whiteout(&real, name)?;
        make(&Place { upper: self.stack.upper()?, parent: dir, name, dir: real, fd, hidden })
    }

    /// Whether a new object has to have an attribute before it has its name.
    fn must_stage(&self) -> bool {
        self.stack.xattr_permissions().is_some()
    }

    /// What stands in upper where the union shows nothing.
    fn over(&self, place: &Place<'_>) -> Result<Over> {
        let occupied = self.stack.stat_at(&place.dir, place.name)?.is_some();
        Ok(if occupied { Over::NonDirectory } else { Over::Nothing })
    }

    /// Finishes an object that was just made in its place, or takes it away again.
    fn finish_in_place(
        &self,
        place: &Place<'_>,
        kind: FileKind,
        finish: impl FnOnce(&UpperObject) -> Result<Stat>,
    ) -> Result<(UpperObject, Stat)> {
        let finished = self.stack.open_new(&place.dir, place.name).and_then(|object| {
            let stat = finish(&object)?;
            Ok((object, stat))
        });
        place.or_take_back(kind, finished)
    }

    /// Owner and permissions that a new object gets from its creator and its directory.
    fn birth(&self, place: &Place<'_>, caller: &Caller, mode: u32) -> Result<Birth> {
        let parent = self.kept_stat(place.parent, &place.fd)?;
        let set_gid = parent.mode & libc::S_ISGID != 0;
        let default_acl = self.default_acl(place)?;
        let inherited = default_acl.as_ref().and_then(|acl| acl::inherit(acl, mode));
        Ok(Birth {
            uid: self.options.ids.creator_uid(caller.uid)?,
            gid: if set_gid { parent.gid } else { self.options.ids.creator_gid(caller.gid)? },
            mode: match &inherited {
                Some(inherited) => inherited.mode,
                None => mode & !caller.umask,
            },
            special: None,
            inherits_group: set_gid,
            default_acl,
            inherited,
        })
    }

    /// The default ACL of a directory; that it has none is remembered.
    fn default_acl(&self, place: &Place<'_>) -> Result<Option<Vec<u8>>> {
        let Some(node) = place.parent.as_dir().filter(|_| self.options.acl) else { return Ok(None) };
        if node.state.read().default_acl == Some(false) {
            return Ok(None);
        }
        let value = self.stack.dir_xattr(&place.dir, DEFAULT_ACL)?;
        node.state.write().default_acl = Some(value.is_some());
        Ok(value)
    }

    fn new_attr(&self, place: &Place<'_>, stat: &Stat, kind: FileKind) -> Result<Attr> {
        let inode = self.finish_new(place, stat, kind)?;
        self.attr_from(&inode, stat)
    }

    fn finish_new(&self, place: &Place<'_>, stat: &Stat, kind: FileKind) -> Result<Arc<Inode>> {
        if place.hidden {
            self.stack.drop_dot_whiteout(&place.dir, place.name);
        }
        self.intern_new(place.parent, place.name, &place.dir, stat, kind)
    }
}

impl Place<'_> {
    /// Gives a staged object this place. It is there then, whatever else goes wrong.
    fn publish(&self, staged: Staged<'_>, over: Over) -> Result<(UpperObject, Stat)> {
        let before = sys::file::stat(staged.fd())?;
        let object = self.upper.publish(staged, &self.fd, self.name, over)?;
        let stat = sys::file::stat(&object).unwrap_or(Stat { nlink: before.nlink.max(1), ..before });
        Ok((object, stat))
    }

    /// Takes a new object away again when it could not be finished.
    fn or_take_back<T>(&self, kind: FileKind, finished: Result<T>) -> Result<T> {
        finished.inspect_err(|_| {
            let is_dir = kind == FileKind::Directory;
            let removed =
                if is_dir { self.upper.rmdir(&self.fd, self.name) } else { self.upper.unlink(&self.fd, self.name) };
            if let Err(e) = removed {
                log::warn!("{} can't be taken back: {e}", self.name);
            }
        })
    }
}

impl Birth {
    /// For an object that was made in its directory: the filesystem has applied the directory's set-group-id bit and ACL.
    /// Returns the status that it has then.
    fn finish(&self, union: &Union, object: &impl AsUpper) -> Result<Stat> {
        let stat = self.own(union, object)?;
        let set_id = self.mode & 0o6000;
        if set_id == 0 {
            return Ok(stat);
        }
        union.stack.upper()?.chmod(object, stat.mode & 0o7777 | set_id)?;
        sys::file::stat(object.as_upper_fd())
    }

    /// For a staged object: nothing of its directory was applied yet.
    fn apply(&self, union: &Union, object: &impl AsUpper, kind: FileKind) -> Result<()> {
        let upper = union.stack.upper()?;
        let set_gid = if self.inherits_group && kind == FileKind::Directory { libc::S_ISGID } else { 0 };
        if union.must_stage() && Form::is_for(&sys::file::stat(object.as_upper_fd())?) {
            let mode = self.mode & 0o7777 | set_gid;
            let said = OverrideStat { uid: self.uid, gid: self.gid, mode, special: self.special };
            return upper.set_override(object, &said);
        }
        self.own(union, object)?;
        upper.chmod(object, self.mode & 0o7777 | set_gid)?;
        if let Some(access) = self.inherited.as_ref().and_then(|i| i.access.as_ref()) {
            upper.set_xattr(object, ACCESS_ACL, access, 0)?;
        }
        match &self.default_acl {
            Some(default) if kind == FileKind::Directory => upper.set_xattr(object, DEFAULT_ACL, default, 0),
            _ => Ok(()),
        }
    }

    /// Gives an object to its creator; returns the status that it has then.
    fn own(&self, union: &Union, object: &impl AsUpper) -> Result<Stat> {
        let stat = sys::file::stat(object.as_upper_fd())?;
        let uid = (stat.uid != self.uid).then_some(self.uid);
        let gid = (stat.gid != self.gid).then_some(self.gid);
        if uid.is_none() && gid.is_none() {
            return Ok(stat);
        }
        union.chown_object(union.stack.upper()?, object, uid, gid)?;
        sys::file::stat(object.as_upper_fd())
    }
}

/// A device 0:0 as itself would be a whiteout: it is stored as an empty regular file with a mark.
fn stage_null_device<'u>(upper: &'u Upper, own: impl FnOnce(&Staged<'u>) -> Result<()>) -> Result<Staged<'u>> {
    let staged = upper.stage_file()?;
    own(&staged)?;
    upper.set_mark(&staged, Mark::Device, b"0:0")?;
    Ok(staged)
}
