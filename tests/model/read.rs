//! Reads layers back from disk, by the rules of the formats and not by the code under test.

use std::collections::{BTreeMap, HashMap};
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::harness::Checked;
use super::layers::{Attrs, Below, Dir, Entry, Layer, Leaf, N, NSEC, Opaque, Way, What, Whiteout};
use crate::fixture::{all_xattrs, is_whiteout, mark};

type Xattrs = BTreeMap<String, Vec<u8>>;

const OPAQUE: [(&str, Opaque); 3] = [
    ("trusted.overlay.opaque", Opaque::Trusted),
    ("user.overlay.opaque", Opaque::User),
    ("user.fuseoverlayfs.opaque", Opaque::FuseOverlayfs),
];
const WHITEOUT: [(&str, Whiteout); 2] =
    [("trusted.overlay.whiteout", Whiteout::Trusted), ("user.overlay.whiteout", Whiteout::User)];
/// The namespaces of marks; in each a user's own name that looks like a mark has `overlay.` before its rest.
const NAMESPACES: [&str; 3] = ["trusted.overlay.", "user.overlay.", "user.fuseoverlayfs."];

/// Where a union keeps owners and permissions, if it is asked to.
pub const KEPT: &str = "user.containers.override_stat";

/// Reads the layer in a directory.
///
/// # Errors
/// For a name or a redirect that no test can have made.
pub fn read(root: &Path) -> Checked<Layer> {
    let mut reader = Reader { leaves: Vec::new(), numbers: HashMap::new() };
    let entries = reader.entries(root)?;
    let attrs = attrs(&root.symlink_metadata().unwrap(), &all_xattrs(root));
    Ok(Layer { root: attrs, entries, leaves: reader.leaves })
}

struct Reader {
    leaves: Vec<Leaf>,
    /// The leaf of an inode.
    numbers: HashMap<u64, usize>,
}

impl Reader {
    fn entries(&mut self, dir: &Path) -> Checked<BTreeMap<N, Entry>> {
        let own = all_xattrs(dir);
        let mut entries = BTreeMap::new();
        let mut hidden = Vec::new();
        for found in dir.read_dir().unwrap() {
            let path = found.unwrap().path();
            let text = path.file_name().unwrap().as_bytes();
            let unknown = || format!("{} is on disk", path.display());
            if text == b".wh..wh..opq" {
                continue;
            }
            if let Some(name) = text.strip_prefix(b".wh.") {
                hidden.push(N::of(name).ok_or_else(unknown)?);
                continue;
            }
            let name = N::of(text).ok_or_else(unknown)?;
            entries.insert(name, self.entry(&path, &own)?);
        }
        for name in hidden {
            match entries.get_mut(&name) {
                None => drop(entries.insert(name, Entry::Whiteout(Whiteout::DotFile))),
                // What a redirect leads to is at another place.
                Some(Entry::Dir(dir)) if matches!(dir.below, Below::Moved(_)) => {}
                Some(Entry::Dir(dir)) => dir.below = Below::Hidden(Opaque::Beside),
                Some(Entry::Leaf(_) | Entry::Whiteout(_)) => {}
            }
        }
        Ok(entries)
    }

    fn entry(&mut self, path: &Path, parent: &Xattrs) -> Checked<Entry> {
        if is_whiteout(path) {
            return Ok(Entry::Whiteout(Whiteout::Device));
        }
        let (meta, xattrs) = (path.symlink_metadata().unwrap(), all_xattrs(path));
        if meta.is_dir() {
            let below = below(path, &xattrs)?;
            let entries = self.entries(path)?;
            return Ok(Entry::Dir(Box::new(Dir { attrs: attrs(&meta, &xattrs), below, entries, ino: meta.ino() })));
        }
        let announced = OPAQUE.iter().any(|(name, _)| parent.get(*name).is_some_and(|value| value == b"x"));
        let form = WHITEOUT.iter().find(|(name, _)| xattrs.contains_key(*name));
        if let (true, Some((_, form))) = (announced && meta.is_file() && meta.len() == 0, form) {
            return Ok(Entry::Whiteout(*form));
        }
        if let Some(number) = self.numbers.get(&meta.ino()) {
            self.leaves[*number].links += 1;
            return Ok(Entry::Leaf(*number));
        }
        let what = what(path, &meta, &xattrs)?;
        self.numbers.insert(meta.ino(), self.leaves.len());
        self.leaves.push(Leaf { what, attrs: attrs(&meta, &xattrs), links: 1, ino: meta.ino() });
        Ok(Entry::Leaf(self.leaves.len() - 1))
    }
}

fn what(path: &Path, meta: &Metadata, xattrs: &Xattrs) -> Checked<What> {
    let kind = meta.file_type();
    if kind.is_symlink() {
        return Ok(What::Symlink(path.read_link().unwrap().to_string_lossy().into_owned()));
    }
    if kind.is_fifo() {
        return Ok(What::Fifo);
    }
    if !kind.is_file() {
        return Err(format!("{} is of a kind that no test makes", path.display()));
    }
    if xattrs.contains_key(&mark("layerfs.device")) {
        return Ok(What::NullDevice);
    }
    if xattrs.contains_key(&mark("metacopy")) && meta.len() > 0 {
        return Ok(What::Metacopy(redirect(path, xattrs)?, meta.len() as usize));
    }
    if xattrs.get(KEPT).is_some_and(|value| value.ends_with(b":pipe")) {
        return Ok(What::Fifo);
    }
    Ok(What::File(std::fs::read(path).unwrap()))
}

/// What the marks of a directory say.
fn below(path: &Path, xattrs: &Xattrs) -> Checked<Below> {
    let by_mark = OPAQUE.iter().find(|(name, _)| xattrs.get(*name).is_some_and(|value| value == b"y"));
    if let Some((_, form)) = by_mark {
        return Ok(Below::Hidden(*form));
    }
    if path.join(".wh..wh..opq").exists() {
        return Ok(Below::Hidden(Opaque::DotFile));
    }
    Ok(redirect(path, xattrs)?.map_or(Below::Shows, Below::Moved))
}

fn redirect(path: &Path, xattrs: &Xattrs) -> Checked<Option<Way>> {
    let Some(value) = xattrs.get(&mark("redirect")) else { return Ok(None) };
    let bad = || format!("{}: the redirect leads to {}", path.display(), value.escape_ascii());
    let way = match value.strip_prefix(b"/") {
        None => Way::Sibling(N::of(value).ok_or_else(bad)?),
        Some(names) => Way::Path(names.split(|byte| *byte == b'/').map(N::of).collect::<Option<_>>().ok_or_else(bad)?),
    };
    Ok(Some(way))
}

fn attrs(meta: &Metadata, xattrs: &Xattrs) -> Attrs {
    let known = u32::try_from(meta.mtime_nsec()) == Ok(NSEC);
    let shown = xattrs.iter().filter_map(|(name, value)| Some((shown(name)?, value.clone())));
    let (mode, owner) = kept(xattrs).unwrap_or((meta.mode() & 0o7777, (meta.uid(), meta.gid())));
    Attrs { mode, owner, mtime: known.then(|| meta.mtime()), xattrs: shown.collect() }
}

/// Permissions and owner that an attribute says.
fn kept(xattrs: &Xattrs) -> Option<(u32, (u32, u32))> {
    let text = String::from_utf8(xattrs.get(KEPT)?.clone()).ok()?;
    let mut fields = text.split(':');
    let owner = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((u32::from_str_radix(fields.next()?, 8).ok()?, owner))
}

/// The name that a union shows of an attribute; none of marks, nor of what is not the user's.
fn shown(stored: &str) -> Option<String> {
    if stored.starts_with("security.") || stored.starts_with("system.") || stored == KEPT {
        return None;
    }
    for prefix in NAMESPACES {
        if let Some(rest) = stored.strip_prefix(prefix) {
            let is_mark = mark("").starts_with(prefix)
                || OPAQUE.iter().any(|(name, _)| *name == stored)
                || WHITEOUT.iter().any(|(name, _)| *name == stored);
            return match rest.strip_prefix("overlay.") {
                Some(rest) => Some(format!("{prefix}{rest}")),
                None => (!is_mark).then(|| stored.to_owned()),
            };
        }
    }
    Some(stored.to_owned())
}
