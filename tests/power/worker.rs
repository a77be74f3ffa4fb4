//! One of those that change things in a directory of their own, and write down what may be seen of it after a power cut.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::history::{Event, History, Id, Origin, Step};
use crate::common::dice::Dice;

/// So many names are enough.
const MANY: usize = 80;

/// One that changes things.
pub struct Worker<'a> {
    root: PathBuf,
    history: &'a Mutex<History>,
    dice: Dice,
    /// What is there now.
    names: Vec<(String, Id)>,
    contents: Vec<Option<Arc<Vec<u8>>>>,
    /// The names that lowers show.
    lower: Vec<String>,
}

/// A worker's history, whatever became of the worker.
pub fn locked(history: &Mutex<History>) -> MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Content that tells at each byte which object it is of, in which version, and where.
pub fn pattern(id: Id, version: usize, length: usize) -> Vec<u8> {
    let start = id * 31 + version * 101;
    (0..length).map(|at| b'!' + ((start + at / 3 + at / 4096 * 7) % 200) as u8).collect()
}

/// What lowers have for one worker: objects with their names, the first of them in each case in a directory.
pub fn beginning() -> History {
    let mut history = History::default();
    for (number, directory) in ["sub", "other"].into_iter().enumerate() {
        history.names.insert(directory.to_owned(), number);
        history.origins.insert(number, Origin { content: None, mode: 0o755 });
    }
    let sizes = [10, 900, 5000, 40_000, 300_000, 20, 4096];
    let places =
        ["", "sub/", "other/"].into_iter().flat_map(|place| ('a'..='l').map(move |name| format!("{place}{name}")));
    for (number, name) in places.enumerate() {
        let id = number + 2;
        let content = Some(Arc::new(pattern(id, 0, sizes[number % sizes.len()])));
        history.names.insert(name, id);
        history.origins.insert(id, Origin { content, mode: 0o644 });
    }
    // One file with two names.
    history.names.insert("sub/linked".to_owned(), 2);
    history
}

/// Puts what a history begins with below `root`.
pub fn lay_out(history: &History, root: &Path) {
    let mut made: Vec<(Id, PathBuf)> = Vec::new();
    for directory in ["sub", "other"] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    for (name, id) in &history.names {
        let path = root.join(name);
        let Some(content) = &history.origins[id].content else { continue };
        match made.iter().find(|(other, _)| other == id) {
            Some((_, first)) => fs::hard_link(first, &path).expect("link"),
            None => fs::write(&path, &**content).expect("a file"),
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(history.origins[id].mode)).expect("a mode");
        made.push((*id, path));
    }
}

impl<'a> Worker<'a> {
    pub fn new(root: PathBuf, history: &'a Mutex<History>, dice: Dice) -> Worker<'a> {
        let known = locked(history);
        let names: Vec<_> = known.names.iter().map(|(name, id)| (name.clone(), *id)).collect();
        let contents = known.origins.values().map(|origin| origin.content.clone()).collect();
        drop(known);
        let lower = names.iter().map(|(name, _)| name.clone()).collect();
        Worker { root, history, dice, names, contents, lower }
    }

    /// Makes one change.
    pub fn change(&mut self) -> io::Result<()> {
        match self.dice.below(24) {
            0..=3 => self.overwrite(),
            4 | 5 => self.rewrite(),
            6 | 7 => self.append(),
            8 => self.cut_off(),
            9 | 10 => self.chmod(),
            11..=13 => self.sync(),
            14 => self.sync_names(),
            15 | 16 => self.create(),
            17 => self.replace(),
            18 => self.rename_over(),
            19 => self.rename(),
            20 => self.link(),
            21 | 22 => self.unlink(),
            _ => self.mkdir(),
        }
    }

    /// Writes a step down, makes it, and writes down that it was answered.
    fn step(&mut self, said: String, events: Vec<Event>, act: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        locked(self.history).steps.push(Step { said: said.clone(), events: events.clone() });
        act(&self.root).map_err(|error| io::Error::new(error.kind(), format!("{said}: {error}")))?;
        locked(self.history).answered += 1;
        for event in events {
            match event {
                Event::Content(id, content) => self.contents[id] = Some(content),
                Event::Name(name, id) => {
                    self.names.retain(|(other, _)| *other != name);
                    self.names.extend(id.map(|id| (name, id)));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn is_file(&self, id: Id) -> bool {
        self.contents[id].is_some()
    }

    fn file(&mut self) -> Option<(String, Id)> {
        let files: Vec<_> = self.names.iter().filter(|(_, id)| self.is_file(*id)).cloned().collect();
        let at = self.dice.below(files.len());
        files.into_iter().nth(at)
    }

    fn content(&self, id: Id) -> Vec<u8> {
        self.contents[id].as_deref().cloned().unwrap_or_default()
    }

    /// Another object, with a name that nothing has.
    fn fresh(&mut self) -> (String, Id) {
        let id = self.contents.len();
        self.contents.push(None);
        let mut directories: Vec<&str> =
            self.names.iter().filter(|(_, id)| !self.is_file(*id)).map(|(name, _)| name.as_str()).collect();
        directories.retain(|directory| !directory.contains("dir") || id.is_multiple_of(3));
        let directory = directories.get(self.dice.below(directories.len() + 1)).copied();
        (directory.map_or(format!("n{id}"), |directory| format!("{directory}/n{id}")), id)
    }

    /// Bytes that no file has had.
    fn data(&mut self, id: Id, length: usize) -> Vec<u8> {
        let version = locked(self.history).steps.len() + 1;
        pattern(id, version, length)
    }

    fn length(&mut self) -> usize {
        [30, 700, 5000, 60_000][self.dice.below(4)]
    }

    fn overwrite(&mut self) -> io::Result<()> {
        let Some((name, id)) = self.file() else { return Ok(()) };
        let mut content = self.content(id);
        let length = [1, 50, 5000][self.dice.below(3)].min(content.len());
        let (at, data) = (self.dice.below(content.len() - length + 1), self.data(id, length));
        content[at..at + length].copy_from_slice(&data);
        let said = format!("write {length} bytes at {at} of {name}");
        self.step(said, vec![Event::Content(id, Arc::new(content))], |root| {
            OpenOptions::new().write(true).open(root.join(&name))?.write_all_at(&data, at as u64)
        })
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let Some((name, id)) = self.file() else { return Ok(()) };
        let length = self.length();
        let data = self.data(id, length);
        let events = vec![Event::Content(id, Arc::default()), Event::Content(id, Arc::new(data.clone()))];
        self.step(format!("rewrite {name} with {length} bytes"), events, |root| fs::write(root.join(&name), &data))
    }

    fn append(&mut self) -> io::Result<()> {
        let Some((name, id)) = self.file().filter(|(_, id)| self.content(*id).len() < 600_000) else { return Ok(()) };
        let length = self.length();
        let data = self.data(id, length);
        let content = [self.content(id), data.clone()].concat();
        let said = format!("append {length} bytes to {name}");
        self.step(said, vec![Event::Content(id, Arc::new(content))], |root| {
            OpenOptions::new().append(true).open(root.join(&name))?.write_all(&data)
        })
    }

    fn cut_off(&mut self) -> io::Result<()> {
        let Some((name, id)) = self.file() else { return Ok(()) };
        let mut content = self.content(id);
        content.truncate(content.len() / 2);
        let size = content.len() as i64;
        self.step(format!("truncate {name} to {size} bytes"), vec![Event::Content(id, Arc::new(content))], |root| {
            nix::unistd::truncate(&root.join(&name), size).map_err(io::Error::from)
        })
    }

    fn chmod(&mut self) -> io::Result<()> {
        let Some((name, id)) = self.file() else { return Ok(()) };
        let mode = 0o600 + self.dice.below(64) as u32;
        self.step(format!("chmod {mode:o} {name}"), vec![Event::Mode(id, mode)], |root| {
            fs::set_permissions(root.join(&name), fs::Permissions::from_mode(mode))
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        let Some((name, id)) = self.file() else { return Ok(()) };
        self.step(format!("fsync {name}"), vec![Event::Sync(id)], |root| File::open(root.join(&name))?.sync_all())
    }

    fn sync_names(&mut self) -> io::Result<()> {
        let directories = self.names.iter().filter(|(_, id)| !self.is_file(*id)).map(|(name, _)| name.clone());
        let directories: Vec<String> = directories.chain([String::new()]).collect();
        let name = directories[self.dice.below(directories.len())].clone();
        self.step(format!("fsync the directory {name}"), vec![Event::SyncNames(name.clone())], |root| {
            File::open(root.join(&name))?.sync_all()
        })
    }

    fn create(&mut self) -> io::Result<()> {
        if self.names.len() > MANY {
            return self.unlink();
        }
        let (name, id) = self.fresh();
        self.create_as(&name, id)
    }

    fn create_as(&mut self, name: &str, id: Id) -> io::Result<()> {
        let length = self.length();
        let data = self.data(id, length);
        let events = vec![
            Event::Content(id, Arc::default()),
            Event::Mode(id, 0o640),
            Event::Name(name.to_owned(), Some(id)),
            Event::Content(id, Arc::new(data.clone())),
        ];
        self.step(format!("create {name} with {length} bytes"), events, |root| {
            OpenOptions::new().write(true).create_new(true).mode(0o640).open(root.join(name))?.write_all(&data)
        })
    }

    /// As editors and package managers do: a new file, perhaps synced, over one that is there.
    fn replace(&mut self) -> io::Result<()> {
        let Some((target, _)) = self.file() else { return Ok(()) };
        let id = self.contents.len();
        self.contents.push(None);
        let name = format!("{target}.new{id}");
        self.create_as(&name, id)?;
        if self.dice.below(3) == 0 {
            let open = |root: &Path| File::open(root.join(&name))?.sync_all();
            self.step(format!("fsync {name}"), vec![Event::Sync(id)], open)?;
        }
        self.rename_to(&name, id, &target)
    }

    fn rename_over(&mut self) -> io::Result<()> {
        let (Some((from, id)), Some((to, other))) = (self.file(), self.file()) else { return Ok(()) };
        if id == other {
            return Ok(());
        }
        self.rename_to(&from, id, &to)
    }

    fn rename(&mut self) -> io::Result<()> {
        let Some((from, id)) = self.file() else { return Ok(()) };
        let (to, _) = self.fresh();
        self.rename_to(&from, id, &to)
    }

    fn rename_to(&mut self, from: &str, id: Id, to: &str) -> io::Result<()> {
        let mut events = vec![Event::Name(from.to_owned(), None), Event::Name(to.to_owned(), Some(id))];
        if self.lower.iter().any(|name| name == to) {
            events.push(Event::Replaces(to.to_owned(), id));
        }
        self.step(format!("rename {from} to {to}"), events, |root| fs::rename(root.join(from), root.join(to)))
    }

    fn link(&mut self) -> io::Result<()> {
        let Some((from, id)) = self.file().filter(|_| self.names.len() < MANY) else { return Ok(()) };
        let (to, _) = self.fresh();
        self.step(format!("link {from} to {to}"), vec![Event::Name(to.clone(), Some(id))], |root| {
            fs::hard_link(root.join(&from), root.join(&to))
        })
    }

    fn unlink(&mut self) -> io::Result<()> {
        let Some((name, _)) = self.file().filter(|_| self.names.len() > 12) else { return Ok(()) };
        self.step(format!("unlink {name}"), vec![Event::Name(name.clone(), None)], |root| {
            fs::remove_file(root.join(&name))
        })
    }

    fn mkdir(&mut self) -> io::Result<()> {
        if self.names.iter().filter(|(_, id)| !self.is_file(*id)).count() > 6 {
            return Ok(());
        }
        let id = self.contents.len();
        self.contents.push(None);
        let name = format!("dir{id}");
        let events = vec![Event::Mode(id, 0o755), Event::Name(name.clone(), Some(id))];
        self.step(format!("mkdir {name}"), events, |root| fs::create_dir(root.join(&name)))
    }
}
