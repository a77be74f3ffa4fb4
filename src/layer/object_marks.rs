//! The marks that real objects carry, read for a lookup.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::OFlag;

use crate::error::{Errno, Result};
use crate::layer::marks::{Mark, OPAQUE_FORMS, Redirect};
use crate::layer::origin::Origin;
use crate::layer::real::{ObjKey, RealDir};
use crate::layer::stack::Stack;
use crate::layer::whiteout::DOT_OPAQUE;
use crate::name::Name;
use crate::sys;
use crate::sys::file::Stat;
use crate::sys::xattr::Target;

/// The marks of a directory that lookups go by.
#[derive(Debug, Default)]
pub struct DirMarks {
    /// Nothing below it shows through.
    pub opaque: bool,
    /// It merges with something else below than its own name.
    pub redirect: Option<Redirect>,
}

/// The marks of a file that lookups go by.
#[derive(Debug, Default)]
pub struct FileMarks {
    /// What it was copied from.
    pub origin: Option<Origin>,
    /// Where that was, or where its data is.
    pub redirect: Option<Redirect>,
    /// Its data is in a layer below.
    pub metacopy: bool,
    /// It stands for a device 0:0.
    pub device: bool,
}

impl Stack {
    /// Reads the marks of a directory. A redirect counts in every layer: it can lead to other names of the layers only, and a
    /// layer that was the upper of another mount needs it.
    ///
    /// # Errors
    /// `EIO`, and a line in the log, for a mark that makes no sense.
    pub fn dir_marks(&self, dir: &Arc<RealDir>) -> Result<DirMarks> {
        let names = self.dir_xattr_names(dir)?;
        let mut marks = DirMarks::default();
        let mut xattr_whiteouts = false;
        for name in names.split(|b| *b == 0) {
            if let Some(form) = OPAQUE_FORMS.iter().find(|f| f.to_bytes() == name) {
                let value = self.dir_xattr(dir, form)?.unwrap_or_default();
                marks.opaque |= value == b"y";
                xattr_whiteouts |= value == b"x";
            } else if name == self.namespace().name(Mark::Redirect).to_bytes() {
                let value = self.dir_xattr(dir, self.namespace().name(Mark::Redirect))?.unwrap_or_default();
                marks.redirect = Some(Redirect::parse(&value).inspect_err(|_| {
                    log::error!(
                        "bad redirect mark \"{}\" on {:?} in layer {}",
                        value.escape_ascii(),
                        dir.path(),
                        dir.layer.0
                    );
                })?);
            }
        }
        dir.xattr_whiteouts.learn(xattr_whiteouts);
        marks.opaque = marks.opaque || self.has_dot_opaque(dir)?;
        Ok(marks)
    }

    /// Whether a directory is opaque in AUFS form.
    fn has_dot_opaque(&self, dir: &Arc<RealDir>) -> Result<bool> {
        if dir.dot_whiteouts.get() == Some(false) {
            return Ok(false);
        }
        // One status instead of a look through all its entries, which a listing of it takes anyway.
        match self.stat_at(dir, &Name::new(DOT_OPAQUE.to_bytes())?) {
            // Who may not search it sees nothing in it anyway.
            Err(Errno::EACCES) => Ok(false),
            found => Ok(found?.is_some()),
        }
    }

    /// Reads what the marks of a directory say of its entries.
    pub(super) fn learn_marks(&self, dir: &Arc<RealDir>) -> Result<()> {
        let names = self.dir_xattr_names(dir)?;
        let (mut impure, mut xattr_whiteouts) = (false, false);
        for name in names.split(|b| *b == 0) {
            if let Some(form) = OPAQUE_FORMS.iter().find(|f| f.to_bytes() == name) {
                xattr_whiteouts |= self.dir_xattr(dir, form)?.is_some_and(|value| value == b"x");
            }
            impure |= name == self.namespace().name(Mark::Impure).to_bytes();
        }
        dir.xattr_whiteouts.learn(xattr_whiteouts);
        dir.impure.learn(impure);
        Ok(())
    }

    /// Opens a file of a lower for its data.
    ///
    /// # Errors
    /// `EIO`, and a line in the log, for a metadata copy in a layer whose marks don't count: it has no data, and zeros would
    /// pass for some.
    pub fn open_data(&self, dir: &Arc<RealDir>, name: &Name, key: ObjKey) -> Result<OwnedFd> {
        let fd = self.open_at(dir, name, key, OFlag::O_RDONLY | OFlag::O_NOATIME)?;
        if self.trusts(dir.layer)
            || sys::xattr::get(Target::Fd(fd.as_fd()), self.namespace().name(Mark::Metacopy)).is_err()
        {
            return Ok(fd);
        }
        if sys::file::stat(&fd)?.size == 0 {
            return Ok(fd);
        }
        log::error!(
            "{name} in {:?} in layer {} is a metadata copy, whose data is looked for in trusted lowers only",
            dir.path(),
            dir.layer.0
        );
        Err(Errno::EIO)
    }

    /// Whether an object that is no directory has marks that are looked for in impure directories only.
    ///
    /// # Errors
    /// As listxattr(2).
    pub fn has_marks(&self, dir: &Arc<RealDir>, name: &Name, st: &Stat) -> Result<bool> {
        if !st.is_file() {
            return Ok(self.file_mark(dir, name, st, Mark::Origin)?.is_some());
        }
        let names = self.xattr_names_at(dir, name)?;
        let marks = [Mark::Origin, Mark::Metacopy, Mark::Device].map(|mark| self.namespace().name(mark).to_bytes());
        Ok(names.split(|b| *b == 0).any(|name| marks.contains(&name)))
    }

    /// Reads the marks of an object that is no directory; of a layer whose marks don't count, none.
    ///
    /// # Errors
    /// `EIO`, and a line in the log, for a mark that makes no sense.
    pub fn file_marks(&self, dir: &Arc<RealDir>, name: &Name, st: &Stat) -> Result<FileMarks> {
        let mut marks = FileMarks::default();
        if !self.trusts(dir.layer) {
            return Ok(marks);
        }
        if !st.is_file() {
            // What can't carry marks in this namespace has them in the work directory.
            marks.origin = self.file_mark(dir, name, st, Mark::Origin)?.and_then(|v| Origin::parse(&v));
            marks.redirect = self.file_mark(dir, name, st, Mark::Redirect)?.and_then(|v| Redirect::parse(&v).ok());
            return Ok(marks);
        }
        let names = self.xattr_names_at(dir, name)?;
        let has = |mark| names.split(|b| *b == 0).any(|n| n == self.namespace().name(mark).to_bytes());
        if has(Mark::Origin) {
            marks.origin = self.file_mark(dir, name, st, Mark::Origin)?.and_then(|v| Origin::parse(&v));
        }
        if has(Mark::Redirect) {
            let value = self.file_mark(dir, name, st, Mark::Redirect)?.unwrap_or_default();
            marks.redirect = Some(Redirect::parse(&value).inspect_err(|_| {
                log::error!("bad redirect mark \"{}\" on {name} in {:?}", value.escape_ascii(), dir.path());
            })?);
        }
        marks.metacopy = has(Mark::Metacopy);
        marks.device = has(Mark::Device);
        Ok(marks)
    }
}
