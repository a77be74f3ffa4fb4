//! Everything that a union shows, to compare with later.

use std::collections::BTreeMap;

use layerfs::error::{Errno, Result};
use layerfs::union::FileKind;

use crate::fixture::View;

/// Times after this are those of the test's own changes: told as "now". Seconds since the epoch.
const NOW: i64 = 1_500_000_000;

/// One object as the union shows it.
#[derive(Debug, PartialEq, Eq)]
pub struct Object {
    stat: String,
    content: Vec<u8>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

impl Object {
    /// What a file holds, or where a symlink leads.
    pub fn content(&self) -> &[u8] {
        &self.content
    }
}

/// The whole tree by path.
pub fn tree(view: &View) -> Result<BTreeMap<String, Object>> {
    let mut all = BTreeMap::new();
    let mut pending = vec![String::new()];
    while let Some(path) = pending.pop() {
        let object = object(view, &path)?;
        if object.stat.starts_with("Directory") {
            pending.extend(view.names(&path)?.into_iter().map(|name| format!("{path}/{name}")));
        }
        all.insert(path, object);
    }
    Ok(all)
}

fn object(view: &View, path: &str) -> Result<Object> {
    let attr = view.stat(path)?;
    let kind = attr.kind()?;
    let content = match kind {
        FileKind::Regular => view.read(path)?,
        FileKind::Symlink => view.union.readlink(view.hold(path)?.ino)?,
        _ => Vec::new(),
    };
    let mut xattrs = BTreeMap::new();
    for name in view.xattrs(path)? {
        match view.get_xattr(path, &name) {
            Ok(value) => {
                xattrs.insert(name, value);
            }
            Err(Errno::ENODATA) => {}
            Err(e) => return Err(e),
        }
    }
    // The number of links of a directory is 1 or that of the real one below: no promise.
    let nlink = if kind == FileKind::Directory { 0 } else { attr.nlink };
    // A directory that can't be dated back after a copy-up in it is no reason to fail that.
    let mtime = if attr.mtime.sec > NOW || kind == FileKind::Directory {
        "now".to_owned()
    } else {
        format!("{}.{}", attr.mtime.sec, attr.mtime.nsec)
    };
    let stat = format!(
        "{kind:?} {:o} {}:{} links {nlink} size {} device {:x} changed {mtime}",
        attr.mode & 0o7777,
        attr.uid,
        attr.gid,
        if kind == FileKind::Directory { 0 } else { attr.size },
        attr.rdev,
    );
    Ok(Object { stat, content, xattrs })
}
