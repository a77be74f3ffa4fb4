//! What says "deleted" and "hides what is below" in a layer, in every form of this ecosystem.
//!
//! Forms: a character device 0:0 and the xattr marks of the kernel's overlay; `.wh.NAME` and `.wh..wh..opq` of AUFS, which
//! unpackers of OCI layers write.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::error::{Errno, Result};
use crate::layer::marks::{Mark, WHITEOUT_FORMS};
use crate::layer::real::RealDir;
use crate::layer::stack::Stack;
use crate::layer::stage::Over;
use crate::layer::upper::{AsUpper, Upper, UpperDir};
use crate::name::Name;
use crate::sys;
use crate::sys::file::{Stat, TimeChange};

/// What an AUFS whiteout's name begins with.
pub const DOT_PREFIX: &[u8] = b".wh.";
/// The entry that makes its directory opaque, in AUFS form.
pub const DOT_OPAQUE: &CStr = c".wh..wh..opq";
/// The mode of what we make in AUFS form; as fuse-overlayfs has it.
const DOT_MODE: Mode = Mode::S_IRWXU;

/// In which form deletions are written into upper. All forms are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Whiteouts {
    /// As the kernel's overlay has it.
    #[default]
    Overlay,
    /// As AUFS has it, for names that leave room for it.
    Dot,
}

/// The name of the AUFS whiteout of a name.
fn dot_name(name: &Name) -> Result<Name> {
    Name::new(&[DOT_PREFIX, name.as_bytes()].concat())
}

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
        match dot_name(name) {
            Ok(whiteout) => Ok(self.stat_at(dir, &whiteout)?.is_some()),
            Err(_) => Ok(false),
        }
    }

    /// Remembers, from a full listing of a directory, whether it holds `.wh.` entries.
    pub fn note_dot_whiteouts(&self, dir: &Arc<RealDir>, seen: bool) {
        match dir.layer.is_upper() && self.whiteouts() == Whiteouts::Dot {
            // One may have been made meanwhile.
            true => dir.dot_whiteouts.learn(seen),
            false => dir.dot_whiteouts.set(seen),
        }
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

    /// In which form deletions are written.
    fn whiteouts(&self) -> Whiteouts {
        self.upper().map_or(Whiteouts::Overlay, |upper| upper.whiteouts)
    }

    /// Whether what stands at a name is a whiteout of the form that is written there; one of another form may be taken for a
    /// file by who does not know its directory.
    pub fn is_own_form(&self, stands: &Stat) -> bool {
        is_device_form(stands) && self.whiteouts() == Whiteouts::Overlay
    }

    /// Puts a whiteout at a name, over whatever stands there.
    pub fn whiteout(&self, dir: &UpperDir, name: &Name, over: Over) -> Result<()> {
        let (upper, fd) = (self.upper()?, self.open_upper(dir)?);
        let remove = || match over {
            Over::Nothing => Ok(()),
            Over::NonDirectory => upper.unlink(&fd, name),
            Over::Other => upper.rmdir(&fd, name),
        };
        match self.behind_dot_whiteout(dir, name, remove)? {
            Some(()) => Ok(()),
            None => upper.overlay_whiteout(&fd, name, over),
        }
    }

    /// Has `remove` take a name away when a whiteout in AUFS form is beside it, if that is the form to write; `None`, with
    /// nothing done, if not.
    ///
    /// While both are there the name shows what it did: the whiteout is for the layers below, so what goes must be no
    /// directory, one that a redirect leads on, or one of which the lowers show nothing.
    pub fn behind_dot_whiteout(
        &self,
        dir: &UpperDir,
        name: &Name,
        remove: impl FnOnce() -> Result<()>,
    ) -> Result<Option<()>> {
        if self.whiteouts() == Whiteouts::Overlay {
            return Ok(None);
        }
        let (upper, fd) = (self.upper()?, self.open_upper(dir)?);
        // Before it is there: a lookup must not miss it.
        dir.dot_whiteouts.set(true);
        let new = match dot_name(name).and_then(|whiteout| upper.make_dot(fd.as_fd(), whiteout.as_cstr())) {
            Err(Errno::ENAMETOOLONG) => {
                log::warn!("{name} is too long for a whiteout in AUFS form: it gets one in the overlay's");
                return Ok(None);
            }
            made => made?,
        };
        remove().inspect_err(|_| {
            if new {
                self.drop_dot_whiteout(dir, name);
            }
        })?;
        Ok(Some(()))
    }

    /// Takes an AUFS whiteout away from beside a name, if one is there, where what has the name hides by itself what is below.
    pub fn drop_dot_whiteout(&self, dir: &UpperDir, name: &Name) {
        let dropped = self.has_dot_whiteout(dir, name).and_then(|stands| match stands {
            true => self.upper()?.unlink(&self.open_upper(dir)?, &dot_name(name)?),
            false => Ok(()),
        });
        if let Err(e) = dropped {
            log::warn!("a whiteout in AUFS form stays beside {name}: {e}");
        }
    }
}

impl Upper {
    /// Has a directory hide what is below it: by the mark, and where whiteouts are written as AUFS has them, by its entry too.
    /// Its times stay.
    pub fn make_opaque(&self, dir: &impl AsUpper) -> Result<()> {
        self.set_mark(dir, Mark::Opaque, b"y")?;
        if self.whiteouts == Whiteouts::Overlay {
            return Ok(());
        }
        let fd = dir.as_upper_fd();
        let before = sys::file::stat(fd)?;
        match self.make_dot(fd, DOT_OPAQUE) {
            Err(Errno::EACCES) => self.despite_mode(fd, || self.make_dot(fd, DOT_OPAQUE)),
            made => made,
        }?;
        let at = |(sec, nsec)| TimeChange::At(sec, nsec);
        if let Err(e) = self.set_times(dir, at(before.atime), at(before.mtime)) {
            log::debug!("the times of a directory that is opaque now are not what they were: {e}");
        }
        Ok(())
    }

    /// Makes an entry in AUFS form; false if it is there.
    fn make_dot(&self, dir: BorrowedFd<'_>, name: &CStr) -> Result<bool> {
        self.begin()?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match sys::posix::openat(dir, name, flags, DOT_MODE) {
            Ok(_) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(e) => Err(e),
        }
    }
}
