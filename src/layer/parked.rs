//! Parking: a name out of sight, in the work directory, for an unlinked file that is still in use.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;

use crate::error::{Errno, Result};
use crate::layer::real::ObjKey;
use crate::layer::upper::{Upper, UpperObject};
use crate::sys;

impl Upper {
    /// Gives a file a private name, when there are too many to hold each open.
    pub fn park(&self, object: &UpperObject, number: u64) -> Result<()> {
        let name = parked_name(number)?;
        sys::file::link_fd(object.as_fd(), self.work.parked.as_fd(), &name)
    }

    /// Opens a parked file.
    pub fn open_parked(&self, number: u64, key: ObjKey, flags: OFlag) -> Result<UpperObject> {
        let name = parked_name(number)?;
        let fd = sys::posix::openat(
            &self.work.parked,
            name.as_c_str(),
            flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        if ObjKey::from(&sys::file::stat(&fd)?) != key {
            return Err(Errno::ESTALE);
        }
        Ok(UpperObject(Arc::new(fd)))
    }

    /// Lets a parked file go.
    pub fn unpark(&self, number: u64) -> Result<()> {
        sys::posix::unlinkat(&self.work.parked, parked_name(number)?.as_c_str(), UnlinkatFlags::NoRemoveDir)
    }
}

fn parked_name(number: u64) -> Result<CString> {
    CString::new(format!("{number:x}")).map_err(|_| Errno::EINVAL)
}
