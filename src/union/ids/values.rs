//! Ids inside the values of attributes: those of POSIX ACLs, and the user in whose namespaces a file's capabilities count.

use std::borrow::Cow;
use std::convert::Infallible;
use std::ffi::CStr;

use crate::error::{Errno, Result};
use crate::sys::xattr::{CAPABILITY, is_acl};
use crate::union::acl;
use crate::union::ids::{Ids, NOBODY, ROOT};

/// `struct vfs_ns_cap_data` of linux/capability.h: a word with version and flags, two of 64 bits, and since version 3 the root.
const CAPABILITY_V2: usize = 20;
const VERSION_2: u8 = 2;
const VERSION_3: u8 = 3;
/// Where the version is, in the highest byte of the first word.
const VERSION_AT: usize = 3;

impl Ids {
    /// The value of an attribute as the mount shows it. Entries of an ACL for ids without a mapping are left out: nobody is meant
    /// by them, and the kernel would take the whole ACL for a bad one.
    pub fn shown_value(&self, name: &CStr, value: Vec<u8>) -> Vec<u8> {
        if self.maps_nothing() {
            return value;
        }
        if is_acl(name.to_bytes()) {
            let Ok(shown) =
                acl::with_ids::<Infallible>(&value, |uid| Ok(self.uids.shown(uid)), |gid| Ok(self.gids.shown(gid)));
            return shown.unwrap_or(value);
        }
        match root_of(&value) {
            Some(root) if name == CAPABILITY => with_root(value, self.uids.shown(root).unwrap_or(NOBODY)),
            _ => value,
        }
    }

    /// The value that is stored for one that somebody sets.
    ///
    /// # Errors
    /// `EINVAL` for an id without a mapping in it.
    pub fn stored_value<'a>(&self, name: &CStr, value: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        if self.maps_nothing() {
            return Ok(Cow::Borrowed(value));
        }
        if is_acl(name.to_bytes()) {
            let stored = acl::with_ids(value, |uid| self.new_uid(uid).map(Some), |gid| self.new_gid(gid).map(Some));
            return Ok(stored?.map_or(Cow::Borrowed(value), Cow::Owned));
        }
        let Some(root) = root_of(value).filter(|_| name == CAPABILITY) else { return Ok(Cow::Borrowed(value)) };
        let stored = match self.uids.stored(root) {
            // Version 2 comes from who may act for the whole machine: for the tree's root, as what the superuser makes.
            None if value.len() == CAPABILITY_V2 => ROOT,
            stored => stored.ok_or(Errno::EINVAL)?,
        };
        Ok(Cow::Owned(with_root(value.to_vec(), stored)))
    }
}

/// The user in whose namespaces a capability's value counts: version 2 has none in it and means user 0. `None` if it is no such value.
fn root_of(value: &[u8]) -> Option<u32> {
    match (value.get(VERSION_AT)?, value.get(CAPABILITY_V2..)?) {
        (&VERSION_2, []) => Some(ROOT),
        (&VERSION_3, &[a, b, c, d]) => Some(u32::from_le_bytes([a, b, c, d])),
        _ => None,
    }
}

/// The same value for another root; version 2 becomes version 3 for any but user 0.
fn with_root(mut value: Vec<u8>, root: u32) -> Vec<u8> {
    if value.len() == CAPABILITY_V2 && root == ROOT {
        return value;
    }
    if let Some(version) = value.get_mut(VERSION_AT) {
        *version = VERSION_3;
    }
    value.truncate(CAPABILITY_V2);
    value.extend_from_slice(&root.to_le_bytes());
    value
}
