//! One operation on the union and on the reference: both succeed, or both fail with the same error.

use layerfs::error::Result as OpResult;
use layerfs::union::{Attr, Caller, RenameFlags, SetAttr, SetTime, Time, Union};
use nix::libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, S_IFCHR, S_IFIFO};

use super::case::{Op, Place, Subject, X};
use super::compare::check_attr;
use super::harness::{Checked, Run};
use super::layers::{NSEC, dir_mode};
use super::reference::{Id, Kind, Object, Outcome, RenameKind, Tree};
use crate::fixture::{EXCHANGE, NOREPLACE, PLAIN, WHITEOUT, mark, me, name, privileged, write_all, xname};

impl Run {
    /// Does what `op` says, the `step`-th of its sequence.
    pub fn operate(&mut self, step: usize, op: &Op) -> Checked {
        match *op {
            Op::Create { at, mode } => {
                let make = |union: &Union, dir, name: &_| union.create(&me(), dir, name, mode);
                self.make(at, made(Kind::File(Vec::new()), mode), make)
            }
            Op::Mkdir { at, mode } => {
                let mode = dir_mode(mode);
                let make = |union: &Union, dir, name: &_| union.mkdir(&me(), dir, name, mode);
                self.make(at, made(Kind::Dir([].into()), mode), make)
            }
            Op::Fifo { at } => {
                let make = |union: &Union, dir, name: &_| union.mknod(&me(), dir, name, S_IFIFO | 0o640, 0);
                self.make(at, made(Kind::Fifo, 0o640), make)
            }
            Op::Device { at } => {
                let make = |union: &Union, dir, name: &_| union.mknod(&me(), dir, name, S_IFCHR | 0o640, 0);
                self.make(at, made(Kind::NullDevice, 0o640), make)
            }
            Op::Symlink { at, target } => {
                let target = format!("new-{target}");
                let object = Object { mode: 0o777, ..made(Kind::Symlink(target.clone()), 0o777) };
                self.make(at, object, |union, dir, name| union.symlink(&me(), dir, name, target.as_bytes()))
            }
            Op::Link { of, at } => self.link(of, at),
            Op::Unlink { at } => self.remove(at, Tree::unlink, Union::unlink),
            Op::Rmdir { at } => self.remove(at, Tree::rmdir, Union::rmdir),
            Op::Rename { from, to, kind } => self.rename(from, to, kind),
            Op::Write { .. } | Op::Resize { .. } => self.change_content(step, op),
            Op::Punch { .. } | Op::Allocate { .. } => self.change_blocks(op),
            Op::CopyRange { from, to, offset, length } => self.copy_range(from, to, offset, length),
            Op::Chmod { .. } | Op::Chown { .. } | Op::Times { .. } => self.change_attributes(op),
            Op::SetXattr { .. } | Op::RemoveXattr { .. } => self.change_xattrs(op),
            Op::Hold { .. } | Op::Release { .. } | Op::Commit | Op::Remount | Op::Crash { .. } | Op::AddLayer => Ok(()),
        }
    }

    fn make<F>(&mut self, at: Place, object: Object, make: F) -> Checked
    where
        F: FnOnce(&Union, u64, &layerfs::name::Name) -> OpResult<Attr>,
    {
        let spot = self.spot(at);
        let (union, view, tree) = self.both()?;
        let dir = spot.dir.reach(view)?;
        let real = make(union, dir.ino, &name(spot.name));
        let model = tree.make(spot.dir.id, spot.name, object);
        check_made(union, tree, agree(model, real)?)
    }

    fn link(&mut self, of: Subject, at: Place) -> Checked {
        let (target, spot) = (self.target(of), self.spot(at));
        let (union, view, tree) = self.both()?;
        let (object, dir) = (target.reach(view)?, spot.dir.reach(view)?);
        let real = union.link(object.ino, dir.ino, &name(spot.name));
        let model = tree.link(target.id, spot.dir.id, spot.name);
        check_made(union, tree, agree(model, real)?)
    }

    fn remove(
        &mut self,
        at: Place,
        model: fn(&mut Tree, Id, &str) -> Outcome<()>,
        real: fn(&Union, u64, &layerfs::name::Name) -> OpResult<()>,
    ) -> Checked {
        let spot = self.spot(at);
        let (union, view, tree) = self.both()?;
        let dir = spot.dir.reach(view)?;
        let real = real(union, dir.ino, &name(spot.name));
        agree(model(tree, spot.dir.id, spot.name), real).map(drop)
    }

    fn rename(&mut self, from: Place, to: Place, kind: RenameKind) -> Checked {
        let (from, to) = (self.spot(from), self.spot(to));
        let (union, view, tree) = self.both()?;
        let (from_dir, to_dir) = (from.dir.reach(view)?, to.dir.reach(view)?);
        let flags: RenameFlags = match kind {
            RenameKind::Plain => PLAIN,
            RenameKind::NoReplace => NOREPLACE,
            RenameKind::Exchange => EXCHANGE,
            RenameKind::Whiteout => WHITEOUT,
        };
        let real = union.rename(from_dir.ino, &name(from.name), to_dir.ino, &name(to.name), flags);
        let made = tree.objects.len();
        let model = tree.rename((from.dir.id, from.name), (to.dir.id, to.name), kind);
        agree(model, real)?;
        if tree.objects.len() > made && !privileged() {
            // It has mode 0: whoever isn't privileged could not look at it on disk.
            let attr = union.lookup(from_dir.ino, &name(from.name)).map_err(|e| format!("lookup fails with {e}"))?;
            let change = SetAttr { mode: Some(0o600), ..SetAttr::default() };
            union.setattr(&me(), attr.ino, &change).map_err(|e| format!("chmod fails with {e}"))?;
            union.forget(attr.ino, 1);
            tree.objects[made].mode = 0o600;
        }
        Ok(())
    }

    fn change_content(&mut self, step: usize, op: &Op) -> Checked {
        let (Op::Write { to: of, .. } | Op::Resize { of, .. }) = op else { return Ok(()) };
        let target = self.target(*of);
        let (union, view, tree) = self.both()?;
        let reached = target.reach(view)?;
        let is_file = matches!(tree.object(target.id).kind, Kind::File(_) | Kind::Withheld(_));
        let is_dir = tree.object(target.id).is_dir();
        match *op {
            // The kernel itself writes to pipes, and never asks for the others.
            Op::Write { offset, length, .. } if is_file || is_dir => {
                let data = vec![b'a' + (step % 26) as u8; length];
                let real = write_all(union, reached.ino, offset as u64, &data);
                agree(tree.write(target.id, offset, &data), real).map(drop)
            }
            Op::Resize { size, .. } => {
                let change = SetAttr { size: Some(size as u64), ..SetAttr::default() };
                let real = union.setattr(&me(), reached.ino, &change);
                agree(tree.resize(target.id, size), real).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// `fallocate`; the kernel asks for files only.
    fn change_blocks(&mut self, op: &Op) -> Checked {
        let (Op::Punch { of, offset, length } | Op::Allocate { of, offset, length }) = *op else { return Ok(()) };
        let target = self.target(of);
        let (union, view, tree) = self.both()?;
        if !matches!(tree.object(target.id).kind, Kind::File(_)) {
            return Ok(());
        }
        let reached = target.reach(view)?;
        let (mode, model) = match op {
            Op::Punch { .. } => (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, tree.punch(target.id, offset, length)),
            _ => (0, tree.allocate(target.id, offset, length)),
        };
        agree(model, union.fallocate(reached.ino, mode, offset as u64, length as u64)).map(drop)
    }

    /// Between two files, from the middle of the one to `offset` of the other.
    fn copy_range(&mut self, from: Subject, to: Subject, offset: usize, length: usize) -> Checked {
        let (from, to) = (self.target(from), self.target(to));
        let (union, view, tree) = self.both()?;
        let (Kind::File(source), Kind::File(_)) = (&tree.object(from.id).kind, &tree.object(to.id).kind) else {
            return Ok(());
        };
        let start = source.len() / 2;
        let data = source[start..source.len().min(start + length)].to_owned();
        if from.id == to.id || data.is_empty() {
            return Ok(());
        }
        let (source, sink) = (from.reach(view)?, to.reach(view)?);
        let mut done = 0;
        while done < data.len() {
            let (at, left) = ((start + done) as u64, (data.len() - done) as u64);
            match union.copy_file_range(source.ino, at, sink.ino, (offset + done) as u64, left) {
                Ok(0) => return Err(format!("copy_file_range ends after {done} of {} bytes", data.len())),
                Ok(n) => done += n,
                Err(e) => return Err(format!("copy_file_range fails with {e}")),
            }
        }
        agree(tree.write(to.id, offset, &data), Ok(())).map(drop)
    }

    fn change_attributes(&mut self, op: &Op) -> Checked {
        let (Op::Chmod { of, .. } | Op::Chown { of, .. } | Op::Times { of, .. }) = op else { return Ok(()) };
        let target = self.target(*of);
        let (union, view, tree) = self.both()?;
        let object = &mut tree.objects[target.id];
        let change = match *op {
            // A symlink's mode can't be changed.
            Op::Chmod { mode, .. } if !matches!(object.kind, Kind::Symlink(_)) => {
                object.mode = if object.is_dir() { dir_mode(mode) } else { mode };
                SetAttr { mode: Some(object.mode), ..SetAttr::default() }
            }
            Op::Chown { uid, gid, .. } if privileged() => {
                (object.uid, object.gid) = (uid, gid);
                SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() }
            }
            Op::Times { sec, .. } => {
                object.mtime = Some(sec);
                SetAttr { mtime: Some(SetTime::At(Time { sec, nsec: NSEC })), ..SetAttr::default() }
            }
            _ => return Ok(()),
        };
        let reached = target.reach(view)?;
        let attr = union.setattr(&me(), reached.ino, &change).map_err(|e| format!("setattr fails with {e}"))?;
        check_attr("answer of setattr", tree.object(target.id), &attr)
    }

    fn change_xattrs(&mut self, op: &Op) -> Checked {
        let (Op::SetXattr { of, name, .. } | Op::RemoveXattr { of, name }) = op else { return Ok(()) };
        let attribute = match name {
            X::A => "user.a".to_owned(),
            X::B => "user.b".to_owned(),
            X::Trusted if privileged() => "trusted.x".to_owned(),
            X::Trusted => return Ok(()),
            X::Mark => mark("redirect"),
            X::ForeignMark => "user.fuseoverlayfs.opaque".to_owned(),
        };
        let target = self.target(*of);
        let (union, view, tree) = self.both()?;
        let object = tree.object(target.id);
        // The kernel itself refuses an attribute of the user's on a device; it is stored as a file that could have one.
        let refused = object.kind == Kind::NullDevice && attribute.starts_with("user.");
        if object.is_removed_dir() || refused {
            return Ok(());
        }
        let reached = target.reach(view)?;
        let (model, real) = match *op {
            Op::SetXattr { value, flags, .. } => {
                let value = [value; 3];
                let real = union.setxattr(&me(), reached.ino, &xname(&attribute), &value, flags);
                (tree.set_xattr(target.id, &attribute, &value, flags), real)
            }
            _ => {
                let real = union.removexattr(reached.ino, &xname(&attribute));
                (tree.remove_xattr(target.id, &attribute), real)
            }
        };
        agree(model, real).map(drop)
    }
}

/// An object that one of the calls here has made.
fn made(kind: Kind, mode: u32) -> Object {
    let Caller { uid, gid, umask, .. } = me();
    Object::new(kind, mode & !umask, (uid, gid))
}

/// Compares the two answers, and returns them if there are two.
fn agree<M, R: std::fmt::Debug>(model: Outcome<M>, real: OpResult<R>) -> Checked<Option<(M, R)>> {
    match (model, real) {
        (Ok(model), Ok(real)) => Ok(Some((model, real))),
        (Err(fault), Err(errno)) if fault.0.contains(&errno) => Ok(None),
        (Ok(_), Err(errno)) => Err(format!("fails with {errno}")),
        (Err(fault), real) => Err(format!("should fail with one of {:?}, but {real:?}", fault.0)),
    }
}

/// Checks what an operation said of the object that got a new name, and forgets that it was told.
fn check_made(union: &Union, tree: &Tree, made: Option<(Id, Attr)>) -> Checked {
    let Some((id, attr)) = made else { return Ok(()) };
    union.forget(attr.ino, 1);
    check_attr("answer", tree.object(id), &attr)
}
