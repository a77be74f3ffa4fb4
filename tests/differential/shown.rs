//! What a side shows: a whole tree, with all that a program can see of each object and that two filesystems can agree on.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::differences::{Listed, Sight};
use crate::common::sys;

/// A tree by paths below its root, which is the empty path.
pub struct Shown {
    /// The name of who shows it.
    by: String,
    pub is_layerfs: bool,
    objects: BTreeMap<String, Object>,
    /// The numbers of the inodes.
    numbers: HashMap<String, u64>,
    /// What has no copy in upper.
    lower_only: HashSet<String>,
}

/// One object, as text by what it is.
pub type Object = BTreeMap<&'static str, String>;

/// How exact times have to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// What both set to the present is the same; it is what is later than this, in seconds.
    PresentSince(i64),
    /// Of one upper.
    Exact,
    /// Of one upper that is a lower now.
    Sealed,
}

/// Far more than a test takes.
const LATER: i64 = 100_000;

impl Shown {
    /// Everything below `root`.
    pub fn of(root: &Path, by: &str, is_layerfs: bool, upper: &Path) -> Shown {
        let mut shown = Shown {
            by: by.to_owned(),
            is_layerfs,
            objects: BTreeMap::new(),
            numbers: HashMap::new(),
            lower_only: HashSet::new(),
        };
        let mut first_names = HashMap::new();
        let mut todo = vec![(String::new(), None)];
        while let Some((path, listed)) = todo.pop() {
            let full = root.join(&path);
            let mut inside = Vec::new();
            let object = object(&path, &full, listed, &mut first_names, &mut inside);
            let object = object.unwrap_or_else(|error| [("error", error.to_string())].into());
            // In the order of paths, for what the first name of a file is.
            inside.sort_by(|one: &(String, _), other| other.0.cmp(&one.0));
            let within = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            todo.extend(inside.into_iter().map(|(name, kind)| (within(&name), Some(kind))));
            if fs::symlink_metadata(upper.join(&path)).is_err() {
                shown.lower_only.insert(path.clone());
            }
            if let Ok(found) = fs::symlink_metadata(&full) {
                shown.numbers.insert(path.clone(), found.ino());
            }
            if shown.objects.insert(path.clone(), object).is_some() {
                shown.objects.insert(path, [("error", "listed twice".to_owned())].into());
            }
        }
        shown
    }

    /// The number of an inode.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.numbers.get(path).copied()
    }

    /// Whether an object has no copy in upper.
    pub fn is_lower_only(&self, path: &str) -> bool {
        self.lower_only.contains(path)
    }

    /// Fails with what is different in `other` and not on the list of differences.
    pub fn compare(&self, other: &Shown, times: Times, listed: &mut Listed) -> Result<(), String> {
        let mut found = Vec::new();
        let paths = self.objects.keys().chain(other.objects.keys().filter(|path| !self.objects.contains_key(*path)));
        for path in paths {
            let (one, two) = (self.objects.get(path), other.objects.get(path));
            let (Some(one), Some(two)) = (one, two) else {
                let (who, what) = if one.is_some() { (self, one) } else { (other, two) };
                if !what.is_some_and(|object| listed.has_extra(who.is_layerfs, object)) {
                    found.push(format!("{path:?} is shown by {} only: {what:?}", who.by));
                }
                continue;
            };
            let (layerfs, kernel) = if self.is_layerfs { (self, other) } else { (other, self) };
            for what in one.keys().chain(two.keys().filter(|what| !one.contains_key(*what))) {
                let (a, b) = (text(layerfs, path, what, times), text(kernel, path, what, times));
                if a != b && !listed.has(&Sight { kernel, path, what, values: (&a, &b), times }) {
                    found.push(format!("{path:?}: {what}: {} shows {a}, {} shows {b}", layerfs.by, kernel.by));
                }
            }
        }
        if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
    }
}

/// What both show as the present.
pub const PRESENT: &str = "the present";

fn text(shown: &Shown, path: &str, what: &str, times: Times) -> String {
    let Some(value) = shown.objects.get(path).and_then(|object| object.get(what)) else { return "nothing".to_owned() };
    let seconds = value.split('.').next().and_then(|seconds| seconds.parse::<i64>().ok());
    match (times, seconds) {
        (Times::PresentSince(start), Some(seconds)) if what == "mtime" && (start..start + LATER).contains(&seconds) => {
            PRESENT.to_owned()
        }
        _ => value.clone(),
    }
}

/// Everything about an object; the names in a directory are added to `inside`, with their types.
fn object(
    path: &str,
    full: &PathBuf,
    listed: Option<u32>,
    first_names: &mut HashMap<(u64, u64), String>,
    inside: &mut Vec<(String, u32)>,
) -> io::Result<Object> {
    let found = fs::symlink_metadata(full)?;
    let kind = found.mode() & libc::S_IFMT;
    let mut object = Object::new();
    object.insert("mode", format!("{:o}", found.mode()));
    object.insert("owner", format!("{}:{}", found.uid(), found.gid()));
    object.insert("mtime", format!("{}.{:09}", found.mtime(), found.mtime_nsec()));
    if listed.is_some_and(|listed| listed != kind) {
        object.insert("type in the listing", format!("{listed:?}"));
    }
    if found.is_dir() {
        for entry in fs::read_dir(full)? {
            let entry = entry?;
            let name = entry.file_name().into_string().expect("a name in ASCII");
            inside.push((name, type_of(entry.file_type()?)));
        }
    } else {
        object.insert("size", found.size().to_string());
        object.insert("links", found.nlink().to_string());
        object.insert("device", found.rdev().to_string());
        let first = first_names.entry((found.dev(), found.ino())).or_insert_with(|| path.to_owned());
        object.insert("first name", first.clone());
    }
    if found.is_symlink() {
        object.insert("target", fs::read_link(full)?.as_os_str().as_bytes().escape_ascii().to_string());
    }
    if found.is_file() {
        object.insert("content", fs::read(full)?.escape_ascii().to_string());
    }
    let mut xattrs = Vec::new();
    for name in sys::list_xattr(full)? {
        let name = name.into_string().expect("an xattr's name in ASCII");
        xattrs.push(format!("{name}={}", sys::get_xattr(full, &name)?.escape_ascii()));
    }
    object.insert("xattrs", xattrs.join(" "));
    Ok(object)
}

fn type_of(kind: fs::FileType) -> u32 {
    match kind {
        kind if kind.is_dir() => libc::S_IFDIR,
        kind if kind.is_symlink() => libc::S_IFLNK,
        kind if kind.is_fifo() => libc::S_IFIFO,
        kind if kind.is_socket() => libc::S_IFSOCK,
        kind if kind.is_char_device() => libc::S_IFCHR,
        kind if kind.is_block_device() => libc::S_IFBLK,
        _ => libc::S_IFREG,
    }
}
