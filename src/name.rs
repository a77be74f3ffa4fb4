//! One directory entry's name, validated once.

use std::ffi::{CStr, CString};
use std::fmt;

use crate::error::{Errno, Result};

/// The longest name that Linux filesystems take, in bytes.
pub const NAME_MAX: usize = 255;

/// A single path component: not empty, not `.` or `..`, without `/` and NUL, at most [`NAME_MAX`] bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<CStr>);

impl Name {
    /// Validates `bytes` as a name.
    ///
    /// # Errors
    /// `ENAMETOOLONG` for more than [`NAME_MAX`] bytes, `EINVAL` for anything else that is not a name.
    pub fn new(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
            return Err(Errno::EINVAL);
        }
        let name = CString::new(bytes).map_err(|_| Errno::EINVAL)?;
        Ok(Self(name.into_boxed_c_str()))
    }

    /// The name's bytes, without the closing NUL.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.to_bytes()
    }

    /// The name as system calls want it.
    pub fn as_cstr(&self) -> &CStr {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_bytes().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_single_components_are_names() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b"] {
            assert_eq!(Name::new(bad).unwrap_err(), Errno::EINVAL, "{bad:?}");
        }
        for good in [&b"a"[..], b"...", b".wh.x", b"\xff\xfe", &[b'n'; NAME_MAX]] {
            assert_eq!(Name::new(good).unwrap().as_bytes(), good);
        }
        assert_eq!(Name::new(&[b'n'; NAME_MAX + 1]).unwrap_err(), Errno::ENAMETOOLONG);
    }
}
