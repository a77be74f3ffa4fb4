//! Hard links.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Errno, Result};
use crate::layer::LayerId;
use crate::layer::stage::Over;
use crate::name::Name;
use crate::union::inode::{Inode, Node};
use crate::union::stats::Op;
use crate::union::{Attr, FileKind, Union};

impl Union {
    /// Gives an inode another name.
    ///
    /// # Errors
    /// As link(2): `EPERM` for a directory, `ENOENT` for a file without a name, `EEXIST`.
    pub fn link(&self, ino: u64, newparent: u64, newname: &Name) -> Result<Attr> {
        self.counters.count(Op::Link);
        Self::check_new_name(newname)?;
        let inode = self.inode(ino)?;
        let parent = self.dir(newparent)?;
        let Node::Other(file) = &inode.node else { return Err(Errno::EPERM) };
        self.stack.upper()?;
        if self.hold(&parent, newname)?.is_some() {
            return Err(Errno::EEXIST);
        }
        let nameless = file.read().links.as_slice().is_empty();
        // It may have names that nobody has looked up.
        if nameless && self.attr_of(&inode)?.nlink == 0 {
            return Err(Errno::ENOENT);
        }
        self.bring_up_to_move(&inode)?;
        self.ensure_upper_dir(&parent)?;
        self.link_in_upper(&inode, &parent, newname)?;
        self.attr_of(&inode)
    }

    fn link_in_upper(&self, inode: &Arc<Inode>, parent: &Arc<Inode>, name: &Name) -> Result<()> {
        let node = parent.as_dir().ok_or(Errno::ENOTDIR)?;
        let _names = node.names.write();
        if self.find(parent, name, None)?.is_some() {
            return Err(Errno::EEXIST);
        }
        if node.state.read().removed.is_some() {
            return Err(Errno::ENOENT);
        }
        let upper = self.stack.upper()?;
        let dir = node.view().upper.ok_or(Errno::ENOENT)?;
        let fd = self.stack.open_upper(&dir)?;
        let object = self.upper_object(inode)?;
        let hidden = self.stack.has_dot_whiteout(&dir, name)?;
        let is_copy = self.keep_origin_of_linked(inode)? || is_indexed(inode);
        if is_copy || inode.kind == FileKind::CharDevice || inode.has_data_in_lower() {
            self.stack.set_impure(&dir)?;
        }
        match upper.link(&object, &fd, name) {
            // The union shows nothing here, so it is a whiteout.
            Err(Errno::EEXIST) => {
                let staged = upper.stage_link(&object)?;
                upper.publish(staged, &fd, name, Over::NonDirectory)?;
            }
            done => done?,
        }
        if hidden {
            self.stack.drop_dot_whiteout(&dir, name);
        }
        inode.add_link(parent, name, LayerId::UPPER, false);
        inode.lookups.fetch_add(1, Ordering::Relaxed);
        self.unpin(inode);
        self.name_changed(parent, name, Some((inode.kind, inode.number)));
        self.save_links(inode);
        Ok(())
    }

    /// As [`Union::keep_origin`], by whichever name in upper the inode has; true if it is a copy.
    fn keep_origin_of_linked(&self, inode: &Inode) -> Result<bool> {
        let Node::Other(file) = &inode.node else { return Ok(false) };
        let link = file.read().links.as_slice().iter().find(|l| !l.uncovered).cloned();
        let Some(link) = link else { return Ok(false) };
        let view = link.parent.as_dir().ok_or(Errno::ENOTDIR)?.view();
        let Some(dir) = &view.upper else { return Ok(false) };
        self.keep_origin(inode, &link.parent, &view, dir, &link.name)
    }
}

fn is_indexed(inode: &Inode) -> bool {
    matches!(&inode.node, Node::Other(file) if file.read().index().is_some())
}
