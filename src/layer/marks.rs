//! The marks of the kernel's overlay (Documentation/filesystems/overlayfs.rst): xattr names and values, pure functions.

use std::borrow::Cow;
use std::ffi::CStr;

use crate::error::{Errno, Result};
use crate::name::Name;

/// The namespace that a mount keeps its marks in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Namespace {
    /// `trusted.overlay.*`, for the privileged.
    Trusted,
    /// `user.overlay.*`, as the kernel's overlay with `userxattr`.
    User,
}

/// One mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Mark {
    /// `y`: the directory hides what is below. `x`: it holds whiteouts in xattr form.
    Opaque,
    /// The path, in the layers below, of what a directory merges with.
    Redirect,
    /// The file handle of the lower object that this was copied from.
    Origin,
    /// `y`: the directory holds entries with an origin.
    Impure,
    /// The file has metadata only, its data is in lower.
    Metacopy,
    /// How many names a copy has whose lower object has several.
    Nlink,
    /// How many names of a lower object without a copy are gone; in the work directory only.
    Covered,
    /// The regular file stands for a device 0:0, which as itself would be a whiteout.
    Device,
    /// The copy's data may not be on disk yet.
    Uncommitted,
}

impl Namespace {
    /// The xattr name of a mark.
    pub fn name(self, mark: Mark) -> &'static CStr {
        match (self, mark) {
            (Self::Trusted, Mark::Opaque) => c"trusted.overlay.opaque",
            (Self::Trusted, Mark::Redirect) => c"trusted.overlay.redirect",
            (Self::Trusted, Mark::Origin) => c"trusted.overlay.origin",
            (Self::Trusted, Mark::Impure) => c"trusted.overlay.impure",
            (Self::Trusted, Mark::Metacopy) => c"trusted.overlay.metacopy",
            (Self::Trusted, Mark::Nlink) => c"trusted.overlay.nlink",
            (Self::Trusted, Mark::Covered) => c"trusted.overlay.layerfs.covered",
            (Self::Trusted, Mark::Device) => c"trusted.overlay.layerfs.device",
            (Self::Trusted, Mark::Uncommitted) => c"trusted.overlay.layerfs.uncommitted",
            (Self::User, Mark::Opaque) => c"user.overlay.opaque",
            (Self::User, Mark::Redirect) => c"user.overlay.redirect",
            (Self::User, Mark::Origin) => c"user.overlay.origin",
            (Self::User, Mark::Impure) => c"user.overlay.impure",
            (Self::User, Mark::Metacopy) => c"user.overlay.metacopy",
            (Self::User, Mark::Nlink) => c"user.overlay.nlink",
            (Self::User, Mark::Covered) => c"user.overlay.layerfs.covered",
            (Self::User, Mark::Device) => c"user.overlay.layerfs.device",
            (Self::User, Mark::Uncommitted) => c"user.overlay.layerfs.uncommitted",
        }
    }

    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.overlay.",
            Self::User => b"user.overlay.",
        }
    }

    /// Whether an xattr name, as it is stored, is ours and not the user's.
    ///
    /// The whole prefix of the mount's own namespace is, and of every namespace the names that are read in all forms.
    pub fn is_private(self, stored: &[u8]) -> bool {
        if stored.starts_with(self.prefix()) {
            return true;
        }
        let mut plain = Cow::Borrowed(stored);
        while let Some(inner) = unescape_once(&plain) {
            plain = Cow::Owned(inner);
        }
        FOREIGN_FORMS.iter().any(|form| form.to_bytes() == plain.as_ref())
    }

    /// The name under which an xattr that a user sets is stored: escaped as the kernel does where it would be taken for a mark.
    pub fn to_stored<'a>(self, name: &'a [u8]) -> Cow<'a, [u8]> {
        if !self.is_private(name) {
            return Cow::Borrowed(name);
        }
        match PREFIXES.iter().find_map(|p| name.strip_prefix(*p).map(|rest| (p, rest))) {
            Some((prefix, rest)) => Cow::Owned([*prefix, ESCAPE, rest].concat()),
            None => Cow::Borrowed(name),
        }
    }

    /// The name under which a stored xattr is shown, `None` for a mark.
    pub fn to_shown<'a>(self, stored: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        if !self.is_private(stored) {
            return Some(Cow::Borrowed(stored));
        }
        unescape_once(stored).map(Cow::Owned)
    }
}

/// The namespaces in which marks may stand.
const PREFIXES: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs."];

/// What the kernel puts after the prefix of a user's own `overlay.` attribute.
const ESCAPE: &[u8] = b"overlay.";

/// Opaque marks and whiteouts are read in all of these forms, whatever the mount's own namespace is.
pub const OPAQUE_FORMS: [&CStr; 3] = [c"trusted.overlay.opaque", c"user.overlay.opaque", c"user.fuseoverlayfs.opaque"];

/// The xattr forms of a whiteout, on an empty regular file.
pub const WHITEOUT_FORMS: [&CStr; 2] = [c"trusted.overlay.whiteout", c"user.overlay.whiteout"];

const FOREIGN_FORMS: [&CStr; 5] =
    [OPAQUE_FORMS[0], OPAQUE_FORMS[1], OPAQUE_FORMS[2], WHITEOUT_FORMS[0], WHITEOUT_FORMS[1]];

/// Takes one level of escape off a name.
fn unescape_once(name: &[u8]) -> Option<Vec<u8>> {
    PREFIXES.iter().find_map(|prefix| {
        let inner = name.strip_prefix(*prefix)?.strip_prefix(ESCAPE)?;
        Some([*prefix, inner].concat())
    })
}

/// Where a redirect leads, in the layers below.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Redirect {
    /// Another name in the same directory.
    Sibling(Name),
    /// A path from the layers' roots.
    Path(Vec<Name>),
}

impl Redirect {
    /// Reads a redirect mark.
    ///
    /// # Errors
    /// `EIO` for a value that could lead anywhere but to a place in the layer.
    pub fn parse(value: &[u8]) -> Result<Self> {
        let name = |part: &[u8]| Name::new(part).map_err(|_| Errno::EIO);
        match value.strip_prefix(b"/") {
            None => name(value).map(Self::Sibling),
            Some(path) => path.split(|b| *b == b'/').map(name).collect::<Result<_>>().map(Self::Path),
        }
    }

    /// The mark's value.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Sibling(name) => name.as_bytes().to_vec(),
            Self::Path(names) => names.iter().flat_map(|n| [b"/", n.as_bytes()].concat()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_in_their_layer() {
        for bad in [&b""[..], b"/", b"..", b"a/b", b"/a//b", b"/a/../b", b"/.", b"/a/", b"a\0"] {
            assert_eq!(Redirect::parse(bad), Err(Errno::EIO), "{}", bad.escape_ascii());
        }
        for good in [&b"a"[..], b"/a", b"/a/b/c", b"\xff"] {
            assert_eq!(Redirect::parse(good).unwrap().encode(), good);
        }
    }

    #[test]
    fn users_names_come_back_as_they_were_set() {
        for ns in [Namespace::Trusted, Namespace::User] {
            for name in [
                &b"user.x"[..],
                b"trusted.overlay.opaque",
                b"trusted.overlay.overlay.opaque",
                b"user.overlay.opaque",
                b"user.overlay.overlay.overlay.opaque",
                b"user.overlay.whiteout",
                b"user.overlay.metacopy",
                b"user.overlay.overlay.metacopy",
                b"user.fuseoverlayfs.opaque",
                b"security.capability",
            ] {
                let stored = ns.to_stored(name);
                assert_eq!(ns.to_shown(&stored).as_deref(), Some(name), "{}", name.escape_ascii());
            }
        }
    }

    #[test]
    fn marks_are_not_shown() {
        let marks = [Mark::Opaque, Mark::Redirect, Mark::Origin, Mark::Impure, Mark::Metacopy, Mark::Device];
        for ns in [Namespace::Trusted, Namespace::User] {
            for mark in marks {
                assert_eq!(ns.to_shown(ns.name(mark).to_bytes()), None);
            }
            for form in FOREIGN_FORMS {
                assert_eq!(ns.to_shown(form.to_bytes()), None);
            }
        }
    }

    #[test]
    fn user_marks_are_plain_attributes_to_the_privileged() {
        let name = b"user.overlay.metacopy";
        assert_eq!(Namespace::Trusted.to_shown(name).as_deref(), Some(&name[..]));
        assert_eq!(Namespace::Trusted.to_stored(name).as_ref(), name);
    }
}
