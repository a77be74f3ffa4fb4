//! Ids inside the values of attributes: those of POSIX ACLs, and the user in whose namespaces a file's capabilities count.

use std::borrow::Cow;
use std::ffi::CStr;

use crate::error::Result;
use crate::sys::xattr::CAPABILITY;
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
        if acl::is_acl(name.to_bytes()) {
            let shown = acl::with_ids(&value, |uid| Ok(self.uids.shown(uid)), |gid| Ok(self.gids.shown(gid)));
            return shown.ok().flatten().unwrap_or(value);
        }
        if name == CAPABILITY {
            return with_root(value, |root| self.uids.shown(root).unwrap_or(NOBODY));
        }
        value
    }

    /// The value that is stored for one that somebody sets.
    ///
    /// # Errors
    /// `EINVAL` for an id without a mapping in it.
    pub fn stored_value<'a>(&self, name: &CStr, value: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        if self.maps_nothing() {
            return Ok(Cow::Borrowed(value));
        }
        if acl::is_acl(name.to_bytes()) {
            let stored = acl::with_ids(value, |uid| self.new_uid(uid).map(Some), |gid| self.new_gid(gid).map(Some));
            return Ok(stored?.map_or(Cow::Borrowed(value), Cow::Owned));
        }
        if name != CAPABILITY {
            return Ok(Cow::Borrowed(value));
        }
        let mut known = Ok(());
        let stored = with_root(value.to_vec(), |root| {
            let stored = self.uids.stored(root);
            // Version 2 comes from who may act for the whole machine: for the tree's root, as what the superuser makes.
            let stored = if value.len() == CAPABILITY_V2 { stored.or(Some(ROOT)) } else { stored };
            stored.unwrap_or_else(|| {
                known = self.new_uid(root).map(|_| ());
                NOBODY
            })
        });
        known.map(|()| Cow::Owned(stored))
    }
}

/// A capability's value for another root. Version 2 has none: it means user 0, and becomes version 3 for any other.
fn with_root(mut value: Vec<u8>, map: impl FnOnce(u32) -> u32) -> Vec<u8> {
    let version = value.get(VERSION_AT).copied();
    let root = match (version, value.get(CAPABILITY_V2..)) {
        (Some(VERSION_2), Some([])) => ROOT,
        (Some(VERSION_3), Some(&[a, b, c, d])) => u32::from_le_bytes([a, b, c, d]),
        _ => return value,
    };
    let root = map(root);
    if version == Some(VERSION_2) && root == ROOT {
        return value;
    }
    if let Some(version) = value.get_mut(VERSION_AT) {
        *version = VERSION_3;
    }
    value.truncate(CAPABILITY_V2);
    value.extend_from_slice(&root.to_le_bytes());
    value
}
