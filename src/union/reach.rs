//! The way to the real object behind an inode that is no directory. It is found by name, and names come and go beside
//! requests that are about the inode alone: written pages, for instance, arrive while the file is renamed.

use std::sync::Arc;

use crate::error::{Errno, Result};
use crate::layer::upper::UpperObject;
use crate::layer::{ObjKey, RealDir};
use crate::name::Name;
use crate::union::Union;
use crate::union::inode::Inode;

/// A way to a real object.
pub(super) enum Reached<'a> {
    /// It is held, without a name.
    Object(UpperObject),
    /// Its directory, its name there, and which object that has to be.
    Named(&'a Arc<RealDir>, &'a Name, ObjKey),
}

impl Union {
    /// Runs `call` with a way to an inode's real object; with another one if that leads to it no longer.
    pub(super) fn reach<T>(&self, inode: &Inode, mut call: impl FnMut(Reached<'_>) -> Result<T>) -> Result<T> {
        loop {
            if let Some(object) = self.pinned_object(inode)? {
                return call(Reached::Object(object));
            }
            let places = inode.places().ok_or(Errno::EISDIR)?;
            let mut failed = None;
            for (dir, name) in &places.at {
                match call(Reached::Named(dir, name, places.key)) {
                    Err(e) => {
                        failed.get_or_insert(e);
                    }
                    done => return done,
                }
            }
            // Who moves a name tells the new one before and takes the old one back afterwards.
            if self.pinned_object(inode)?.is_none() && inode.places().as_ref() == Some(&places) {
                return Err(failed.unwrap_or(Errno::ESTALE));
            }
        }
    }
}
