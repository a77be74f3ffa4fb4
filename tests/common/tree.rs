//! Whole trees as values: what a directory shows, to be compared with what it shows later.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::sys;

/// Everything about one object that a test can compare.
#[derive(Clone, PartialEq, Eq)]
pub struct Object {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    rdev: u64,
    /// 0 for a directory, where filesystems differ.
    size: u64,
    /// The file's content, the symlink's target; 0 for others.
    content: u64,
    xattrs: Vec<(OsString, Vec<u8>)>,
    /// 0 for a directory, where filesystems differ.
    links: u64,
    ino: u64,
    ctime: (i64, i64),
}

impl fmt::Debug for Object {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "mode {:o} owner {:?} mtime {:?} rdev {:x} size {} content {:x} links {} ino {} ctime {:?}",
            self.mode, self.owner, self.mtime, self.rdev, self.size, self.content, self.links, self.ino, self.ctime
        )?;
        for (name, value) in &self.xattrs {
            write!(out, " {name:?}={:?}", value.escape_ascii().to_string())?;
        }
        Ok(())
    }
}

/// A tree by paths relative to its root, which is the empty path.
#[derive(Clone, PartialEq, Eq)]
pub struct Tree(BTreeMap<PathBuf, Object>);

impl Tree {
    /// Everything that is below `root`, and the root itself.
    pub fn of(root: &Path) -> Tree {
        let mut objects = BTreeMap::new();
        let mut todo = vec![PathBuf::new()];
        while let Some(path) = todo.pop() {
            let full = root.join(&path);
            let object = Object::of(&full);
            if object.mode & libc::S_IFMT == libc::S_IFDIR {
                let entries = fs::read_dir(&full).unwrap_or_else(|e| panic!("{full:?}: {e}"));
                for entry in entries {
                    let name = entry.unwrap_or_else(|e| panic!("{full:?}: {e}")).file_name();
                    todo.push(path.join(name));
                }
            }
            let twice = objects.insert(path, object).is_some();
            assert!(!twice, "{full:?} is listed twice");
        }
        Tree(objects)
    }

    /// What another filesystem with the same content shows too: no inode numbers, no ctime.
    pub fn portable(mut self) -> Tree {
        for object in self.0.values_mut() {
            object.ino = 0;
            object.ctime = (0, 0);
        }
        self
    }

    /// What one mount and the next of the same layers show: everything but the root's number.
    pub fn across_mounts(mut self) -> Tree {
        for object in self.0.values_mut() {
            object.ctime = (0, 0);
        }
        self
    }

    /// Without what is below these paths, and without them.
    pub fn without(mut self, paths: &[&str]) -> Tree {
        self.0.retain(|path, _| !paths.iter().any(|gone| path.starts_with(gone)));
        self
    }

    /// How many objects it has, the root included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Fails with the first differences, if there are any.
    #[track_caller]
    pub fn assert_same(&self, other: &Tree, what: &str) {
        let paths = self.0.keys().chain(other.0.keys().filter(|p| !self.0.contains_key(*p)));
        let differences: Vec<String> = paths
            .filter(|path| self.0.get(*path) != other.0.get(*path))
            .map(|path| {
                let side = |tree: &Tree| match tree.0.get(path) {
                    Some(object) => format!("{object:?}"),
                    None => "nothing".to_owned(),
                };
                format!("{path:?}\n  was: {}\n  is:  {}", side(self), side(other))
            })
            .collect();
        assert!(
            differences.is_empty(),
            "{what}: {} differences\n{}",
            differences.len(),
            differences[..differences.len().min(12)].join("\n")
        );
    }
}

impl Object {
    fn of(path: &Path) -> Object {
        let found = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let kind = found.file_type();
        Object {
            mode: found.mode(),
            owner: (found.uid(), found.gid()),
            mtime: (found.mtime(), found.mtime_nsec()),
            rdev: match kind.is_char_device() || kind.is_block_device() {
                true => found.rdev(),
                false => 0,
            },
            size: if kind.is_dir() { 0 } else { found.size() },
            content: content(path, &found),
            xattrs: xattrs(path),
            links: if kind.is_dir() { 0 } else { found.nlink() },
            ino: found.ino(),
            ctime: (found.ctime(), found.ctime_nsec()),
        }
    }
}

fn content(path: &Path, found: &fs::Metadata) -> u64 {
    let mut hasher = DefaultHasher::new();
    if found.is_symlink() {
        let target = fs::read_link(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        hasher.write(target.as_os_str().as_bytes());
    } else if found.is_file() {
        let mut file = File::open(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer).unwrap_or_else(|e| panic!("{path:?}: {e}")) {
                0 => break,
                length => hasher.write(&buffer[..length]),
            }
        }
    } else {
        return 0;
    }
    hasher.finish()
}

fn xattrs(path: &Path) -> Vec<(OsString, Vec<u8>)> {
    let names = match sys::list_xattr(path) {
        Ok(names) => names,
        Err(Errno::EOPNOTSUPP) => Vec::new(),
        Err(error) => panic!("{path:?}: {error}"),
    };
    names
        .into_iter()
        .map(|name| {
            let text = name.to_str().expect("an xattr's name in ASCII").to_owned();
            let value = sys::get_xattr(path, &text).unwrap_or_else(|error| panic!("{path:?} {text}: {error}"));
            (name, value)
        })
        .collect()
}
