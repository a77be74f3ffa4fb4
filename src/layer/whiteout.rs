//! What says "deleted" and "hides what is below" in a layer, in every form of this ecosystem.
//!
//! Forms: a character device 0:0 and the xattr marks of the kernel's overlay; `.wh.NAME` and `.wh..wh..opq` of AUFS, which
//! unpackers of OCI layers write.

use std::sync::Arc;

use crate::error::{Errno, Result};
use crate::layer::marks::WHITEOUT_FORMS;
use crate::layer::real::RealDir;
use crate::layer::stack::Stack;
use crate::layer::upper::UpperDir;
use crate::name::Name;
use crate::sys;
use crate::sys::file::Stat;

/// What an AUFS whiteout's name begins with.
pub const DOT_PREFIX: &[u8] = b".wh.";
/// The entry that makes its directory opaque, in AUFS form.
pub const DOT_OPAQUE: &[u8] = b".wh..wh..opq";

/// How many entries of a directory are looked through, once, for AUFS whiteouts before each lookup asks for its own.
const SCAN_LIMIT: usize = 2000;

/// Whether a status is that of a whiteout device.
pub fn is_device_form(st: &Stat) -> bool {
    st.format() == libc::S_IFCHR && st.rdev == 0
}

impl Stack {
    /// Whether the object `name`, whose status is `st`, is a whiteout.
    pub fn is_whiteout(&self, dir: &Arc<RealDir>, name: &Name, st: &Stat) -> Result<bool> {
        if is_device_form(st) {
            return Ok(true);
        }
        if !st.is_file() || st.size != 0 || !self.has_xattr_whiteouts(dir)? {
            return Ok(false);
        }
        for form in WHITEOUT_FORMS {
            if self.xattr_at(dir, name, form)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether `.wh.NAME` stands beside a name that this layer does not have itself.
    pub fn has_dot_whiteout(&self, dir: &Arc<RealDir>, name: &Name) -> Result<bool> {
        if dir.is_void() || !self.may_have_dot_whiteouts(dir)? {
            return Ok(false);
        }
        match Name::new(&[DOT_PREFIX, name.as_bytes()].concat()) {
            Ok(whiteout) => Ok(self.stat_at(dir, &whiteout)?.is_some()),
            Err(_) => Ok(false),
        }
    }

    /// Remembers, from a full listing of a directory, whether it holds `.wh.` entries.
    pub fn note_dot_whiteouts(&self, dir: &Arc<RealDir>, seen: bool) {
        dir.dot_whiteouts.set(seen);
    }

    /// Remembers that a directory holds no whiteouts in xattr form any more.
    pub fn note_no_xattr_whiteouts(&self, dir: &UpperDir) {
        dir.xattr_whiteouts.set(false);
    }

    /// Whether a directory is marked as holding whiteouts in xattr form (`opaque` is "x").
    pub fn has_xattr_whiteouts(&self, dir: &Arc<RealDir>) -> Result<bool> {
        if let Some(known) = dir.xattr_whiteouts.get() {
            return Ok(known);
        }
        self.learn_marks(dir)?;
        Ok(dir.xattr_whiteouts.get() == Some(true))
    }

    /// Looks through a small directory once; a large one is asked for each name.
    pub(super) fn may_have_dot_whiteouts(&self, dir: &Arc<RealDir>) -> Result<bool> {
        if let Some(known) = dir.dot_whiteouts.get() {
            return Ok(known);
        }
        if dir.is_void() {
            return Ok(false);
        }
        let fd = match self.open_dir_readable(dir) {
            // Whoever may search it may still ask for single names.
            Err(Errno::EACCES) => return Ok(true),
            fd => fd?,
        };
        let (mut seen, mut count) = (false, 0);
        sys::dir::for_each(std::os::fd::AsFd::as_fd(&fd), |entry| {
            seen |= entry.name.starts_with(DOT_PREFIX);
            count += 1;
            !seen && count < SCAN_LIMIT
        })?;
        let may = seen || count >= SCAN_LIMIT;
        dir.dot_whiteouts.set(may);
        Ok(may)
    }
}
