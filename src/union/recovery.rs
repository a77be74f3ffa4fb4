//! After a power loss: metadata copies that the disk has without their size get that of the lower file with their data.

use std::sync::Arc;

use crate::error::{Errno, Result};
use crate::layer::recovery::Place;
use crate::layer::{UpperDir, index};
use crate::name::Name;
use crate::union::Union;
use crate::union::lookup::Found;

impl Union {
    /// Gives metadata copies their size.
    ///
    /// # Errors
    /// What keeps one from getting it, also that its lower file is not found: it would be taken for empty for good.
    pub(super) fn give_sizes(&self, copies: &[Place]) -> Result<()> {
        for copy in copies {
            let size = match copy {
                Place::Upper(dir, name) => self.size_below(dir, name),
                Place::Index(name) => self.size_of_origin(name),
            };
            let Some(size) = size? else {
                log::error!("{copy} lost its size when the machine stopped, and no layer has its lower file now");
                return Err(Errno::ENOENT);
            };
            self.stack.resize(copy, size)?;
        }
        Ok(())
    }

    /// The size of the data of a metadata copy in upper, by its name.
    fn size_below(&self, dir: &UpperDir, name: &Name) -> Result<Option<u64>> {
        let mut held = Vec::new();
        let mut at = self.inode(Self::ROOT)?;
        for part in dir.path() {
            let Some(next) = self.hold(&at, &part)? else { return Ok(None) };
            at = Arc::clone(&next);
            held.push(next);
        }
        let Some(Found::Other(file)) = self.find(&at, name, None)? else { return Ok(None) };
        let Some(data) = file.data else { return Ok(None) };
        Ok(self.stack.stat_at(&data.dir, &data.name)?.map(|stat| stat.size))
    }

    /// The same of one in the index, which may have no name in upper.
    fn size_of_origin(&self, name: &Name) -> Result<Option<u64>> {
        let Some(origin) = index::origin_of(name) else { return Ok(None) };
        let lower = match self.stack.resolve_origin(&origin)? {
            None => self.stack.search_origin(&origin)?,
            lower => lower,
        };
        Ok(lower.map(|stat| stat.size))
    }
}
