//! A mount that was made by whoever started us, who hands over its /dev/fuse as the mountpoint `/dev/fd/N`.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::stat::{SFlag, fstat, major, minor};

use crate::error::{Errno, SetupError};

/// The device number of /dev/fuse.
const FUSE_DEVICE: (u64, u64) = (10, 229);

/// The device that a mountpoint of the form `/dev/fd/N` stands for; `None`: it is of another form.
///
/// # Errors
/// There is no such descriptor, or it is not a /dev/fuse.
pub fn handed_device(mountpoint: &Path) -> Option<Result<OwnedFd, SetupError>> {
    let number = number(mountpoint)?;
    Some(take(number).map_err(|why| {
        SetupError::new(why, mountpoint, "hand over a /dev/fuse that is mounted, or name a directory to mount on")
    }))
}

fn number(mountpoint: &Path) -> Option<RawFd> {
    let digits = mountpoint.as_os_str().as_bytes().strip_prefix(b"/dev/fd/")?;
    let number = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
    number.parse().ok()
}

/// A descriptor of our own for it: the one that was inherited is closed with all others in the background.
fn take(number: RawFd) -> Result<OwnedFd, String> {
    // SAFETY: the call takes plain numbers, and a closed descriptor answers EBADF.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, libc::STDERR_FILENO + 1) };
    let copy = Errno::result(copy).map_err(|e| format!("the descriptor can't be used ({})", e.desc()))?;
    // SAFETY: the kernel just returned this descriptor to us, and nobody else owns it.
    let device = unsafe { OwnedFd::from_raw_fd(copy) };
    let status = fstat(&device).map_err(|e| format!("the descriptor can't be used ({})", e.desc()))?;
    let is_device = SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
    match is_device && (major(status.st_rdev), minor(status.st_rdev)) == FUSE_DEVICE {
        true => Ok(device),
        false => Err("the descriptor is not a FUSE device".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_called_by_its_number() {
        for (path, expected) in [
            ("/dev/fd/3", Some(3)),
            ("/dev/fd/0", Some(0)),
            ("/dev/fd/", None),
            ("/dev/fd/3/x", None),
            ("/dev/fd/-3", None),
            ("/dev/fd/+3", None),
            ("/dev/fd/99999999999", None),
            ("dev/fd/3", None),
        ] {
            assert_eq!(number(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn another_descriptor_is_refused() {
        use std::os::fd::AsRawFd;
        let null = std::fs::File::open("/dev/null").unwrap();
        let said =
            |number: RawFd| handed_device(Path::new(&format!("/dev/fd/{number}"))).unwrap().unwrap_err().to_string();
        assert!(said(null.as_raw_fd()).contains("not a FUSE device"));
        assert!(said(19_999).contains("can't be used"));
        assert!(handed_device(Path::new("/mnt")).is_none());
    }
}
