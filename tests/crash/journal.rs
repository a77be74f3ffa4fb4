//! What a worker was told of its directory, and whether that is what the directory shows.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::common::sys;

/// The attribute that workers set.
pub const ATTRIBUTE: &str = "user.note";

/// What an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Dir,
    Symlink(String),
    File,
}

/// One object.
#[derive(Clone, Debug)]
pub struct Object {
    pub kind: Kind,
    pub mode: u32,
    pub note: Option<Vec<u8>>,
    /// The content that has to be there.
    pub content: Vec<u8>,
    /// What was written after it and needn't be there, the latest last: of each byte, one or the other.
    pub unsure: Vec<Vec<u8>>,
}

/// Everything below a directory: names, and the objects that they name.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    pub names: BTreeMap<String, usize>,
    pub objects: BTreeMap<usize, Object>,
    next: usize,
}

impl Journal {
    /// What a directory shows.
    pub fn of(root: &Path) -> io::Result<Journal> {
        let mut journal = Journal::default();
        let mut numbers = HashMap::new();
        let mut todo = vec![String::new()];
        while let Some(directory) = todo.pop() {
            for entry in fs::read_dir(root.join(&directory))? {
                let name = entry?.file_name().into_string().expect("a name in ASCII");
                let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
                let full = root.join(&path);
                let found = fs::symlink_metadata(&full)?;
                if found.is_dir() {
                    todo.push(path.clone());
                }
                match numbers.get(&found.ino()) {
                    Some(id) => drop(journal.names.insert(path, *id)),
                    None => drop(numbers.insert(found.ino(), journal.add(path, read(&full, &found)?))),
                }
            }
        }
        Ok(journal)
    }

    /// A new object under a new name.
    pub fn add(&mut self, path: String, object: Object) -> usize {
        self.next += 1;
        self.objects.insert(self.next, object);
        self.names.insert(path, self.next);
        self.next
    }

    pub fn object(&mut self, path: &str) -> &mut Object {
        self.objects.get_mut(&self.names[path]).expect("an object")
    }

    /// Takes a name away, with its object if that was the last one.
    pub fn remove(&mut self, path: &str) -> Option<usize> {
        let id = self.names.remove(path)?;
        if !self.names.values().any(|other| *other == id) {
            self.objects.remove(&id);
        }
        Some(id)
    }

    /// Moves a name, with all that is below it, over what is there.
    pub fn rename(&mut self, from: &str, to: &str) {
        if self.names[from] == *self.names.get(to).unwrap_or(&0) {
            return;
        }
        self.remove(to);
        let below = format!("{from}/");
        let moved: Vec<String> =
            self.names.keys().filter(|path| *path == from || path.starts_with(&below)).cloned().collect();
        for path in moved {
            let id = self.names.remove(&path).expect("a name");
            self.names.insert(format!("{to}{}", &path[from.len()..]), id);
        }
    }

    /// Whether a directory that shows `real` keeps what this promises.
    pub fn holds(&self, real: &Journal) -> Result<(), String> {
        if let Some(path) = self.names.keys().find(|path| !real.names.contains_key(*path)) {
            return Err(format!("{path} is missing"));
        }
        if let Some(path) = real.names.keys().find(|path| !self.names.contains_key(*path)) {
            return Err(format!("{path} is there"));
        }
        let mut same: HashMap<usize, usize> = HashMap::new();
        for (path, id) in &self.names {
            let (object, shown) = (&self.objects[id], &real.objects[&real.names[path]]);
            if *same.entry(*id).or_insert(real.names[path]) != real.names[path] {
                return Err(format!("{path} is no longer the same file as its other names"));
            }
            if (&object.kind, object.mode, &object.note) != (&shown.kind, shown.mode, &shown.note) {
                return Err(format!(
                    "{path} is {:?} {:o} {:?}, should be {:?} {:o} {:?}",
                    shown.kind, shown.mode, shown.note, object.kind, object.mode, object.note
                ));
            }
            object.has(&shown.content).map_err(|fault| format!("{path}: {fault}"))?;
        }
        Ok(())
    }
}

impl Object {
    /// The content that a reader sees now.
    pub fn latest(&self) -> &Vec<u8> {
        self.unsure.last().unwrap_or(&self.content)
    }

    /// What was written last lasts.
    pub fn settle(&mut self) {
        if let Some(latest) = self.unsure.pop() {
            self.content = latest;
            self.unsure.clear();
        }
    }

    /// Whether content is what was promised.
    fn has(&self, shown: &[u8]) -> Result<(), String> {
        let versions = || self.unsure.iter().chain([&self.content]);
        if versions().any(|version| version == shown) {
            return Ok(());
        }
        let shortest = versions().map(Vec::len).min().unwrap_or(0);
        let longest = versions().map(Vec::len).max().unwrap_or(0);
        if !(shortest..=longest).contains(&shown.len()) {
            return Err(format!("{} bytes long, should be {shortest} to {longest}", shown.len()));
        }
        for (at, byte) in shown.iter().enumerate() {
            // What is beyond the end of one version is 0 until the other comes.
            let hole = *byte == 0 && at >= shortest;
            if !hole && !versions().any(|version| version.get(at) == Some(byte)) {
                return Err(format!("byte {at} is {byte}"));
            }
        }
        Ok(())
    }
}

fn read(path: &Path, found: &fs::Metadata) -> io::Result<Object> {
    let mut object =
        Object { kind: Kind::File, mode: found.mode() & 0o7777, note: None, content: Vec::new(), unsure: Vec::new() };
    if found.is_symlink() {
        let target = fs::read_link(path)?;
        return Ok(Object { kind: Kind::Symlink(target.to_string_lossy().into_owned()), ..object });
    }
    object.note = sys::get_xattr(path, ATTRIBUTE).ok();
    match found.is_dir() {
        true => object.kind = Kind::Dir,
        false => object.content = fs::read(path)?,
    }
    Ok(object)
}
