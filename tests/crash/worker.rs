//! One of those that change things in a directory of their own until nothing answers any more.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::journal::{ATTRIBUTE, Journal, Kind, Object};
use crate::common::dice::Dice;
use crate::common::sys;

/// So many names are enough.
const MANY: usize = 70;

/// One that changes things.
pub struct Worker {
    root: PathBuf,
    dice: Dice,
    /// Whether what is written to an open file needs a close or an fsync to last.
    cached: bool,
    /// What holds, and what holds if the change that got no answer was made.
    sure: Journal,
    unanswered: Option<(String, Journal)>,
    /// A file that is kept open, with the id of its object.
    open: Option<(File, usize)>,
    count: usize,
    /// What was done since the last check.
    log: Vec<String>,
}

impl Worker {
    pub fn new(root: PathBuf, dice: Dice, cached: bool) -> Worker {
        let sure = Journal::of(&root).expect("the worker's directory");
        Worker { root, dice, cached, sure, unanswered: None, open: None, count: 0, log: Vec::new() }
    }

    /// Makes one change; false if nothing answers any more.
    pub fn change(&mut self) -> bool {
        self.count += 1;
        let mut after = self.sure.clone();
        let what = match self.sure.names.len() {
            // Unlink and rmdir, so that looking at all of it doesn't take ever longer.
            MANY.. => 15 + 2 * self.dice.below(2),
            _ => self.dice.below(22),
        };
        let (said, done) = self.attempt(what, &mut after);
        self.log.push(format!("{said}: {done:?}"));
        match done {
            Ok(()) => self.sure = after,
            Err(error) if is_refusal(&error) => {}
            Err(_) => {
                self.unanswered = Some((said, after));
                return false;
            }
        }
        true
    }

    /// Forgets open files of a mount that is gone.
    pub fn let_go(&mut self) {
        self.open = None;
    }

    /// Whether everything is there that was answered, and a change without an answer made wholly or not at all.
    pub fn check(&mut self) -> Result<(), String> {
        let real = Journal::of(&self.root).map_err(|error| format!("it can't be read: {error}"))?;
        let before = self.sure.holds(&real);
        let (said, after) = match self.unanswered.take() {
            Some((said, after)) => (said, after.holds(&real)),
            None => ("nothing".to_owned(), Err("the same".to_owned())),
        };
        if let (Err(before), Err(after)) = (before, after) {
            let log = self.log.join("\n");
            return Err(format!("{before}; with the last change, which was {said}: {after}\n{log}"));
        }
        self.log.clear();
        self.sure = real;
        Ok(())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn pick(&mut self, wanted: impl Fn(&Object) -> bool) -> Option<String> {
        let found: Vec<&String> =
            self.sure.names.iter().filter(|(_, id)| wanted(&self.sure.objects[*id])).map(|(path, _)| path).collect();
        let at = self.dice.below(found.len());
        found.get(at).map(|path| (*path).clone())
    }

    fn file(&mut self) -> Option<String> {
        self.pick(|object| object.kind == Kind::File)
    }

    fn directory(&mut self) -> Option<String> {
        self.pick(|object| object.kind == Kind::Dir)
    }

    /// A name that is not taken, in a directory that is there.
    fn fresh(&mut self) -> String {
        let name = format!("n{}", self.count);
        match self.directory().filter(|_| self.dice.below(3) > 0) {
            Some(directory) => format!("{directory}/{name}"),
            None => name,
        }
    }

    fn data(&mut self) -> Vec<u8> {
        let length = [20, 3000, 70_000][self.dice.below(3)];
        vec![b'a' + (self.count % 26) as u8; length]
    }

    /// Makes a change, here and in the journal.
    fn attempt(&mut self, what: usize, after: &mut Journal) -> (String, io::Result<()>) {
        match what {
            0..=2 => self.create(after),
            3..=9 => self.change_file(what, after),
            10..=12 => self.write_open(what, after),
            _ => self.change_names(what, after),
        }
    }

    fn create(&mut self, after: &mut Journal) -> (String, io::Result<()>) {
        let (path, data) = (self.fresh(), self.data());
        let object =
            Object { kind: Kind::File, mode: 0o640, note: None, content: Vec::new(), unsure: vec![data.clone()] };
        after.add(path.clone(), object);
        let make = |full: &Path| {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(full)?;
            file.write_all(&data)?;
            close(file, &self.root)
        };
        let done = make(&self.path(&path));
        if done.is_ok() {
            after.object(&path).settle();
        }
        (format!("create {path}"), done)
    }

    fn change_file(&mut self, what: usize, after: &mut Journal) -> (String, io::Result<()>) {
        let Some(path) = self.file() else { return ("nothing".to_owned(), Ok(())) };
        let full = self.path(&path);
        let data = self.data();
        let object = after.object(&path);
        let mut content = object.latest().clone();
        let done = match what {
            3 | 4 => {
                content.extend_from_slice(&data);
                object.unsure.push(content);
                append(&full, &data, &self.root)
            }
            5 => {
                let length = content.len().min(data.len());
                content[..length].copy_from_slice(&data[..length]);
                object.unsure.push(content);
                map_write(&full, &data)
            }
            6 => {
                let size = content.len() / 2;
                object.content.resize(size, 0);
                object.unsure.iter_mut().for_each(|unsure| unsure.resize(size, 0));
                nix::unistd::truncate(&full, size as i64).map_err(io::Error::from)
            }
            7 => {
                object.mode = 0o600 | (self.count % 64) as u32;
                fs::set_permissions(&full, fs::Permissions::from_mode(object.mode))
            }
            _ => {
                object.note = Some(self.count.to_string().into_bytes());
                sys::set_xattr(&full, ATTRIBUTE, self.count.to_string().as_bytes(), 0).map_err(io::Error::from)
            }
        };
        if (3..=5).contains(&what) && done.is_ok() {
            after.object(&path).settle();
        }
        (format!("change {what} of {path}"), done)
    }

    /// Writes to a file that stays open, or ends that.
    fn write_open(&mut self, what: usize, after: &mut Journal) -> (String, io::Result<()>) {
        let Some((file, id)) = self.open.take() else {
            let Some(path) = self.file() else { return ("nothing".to_owned(), Ok(())) };
            let opened = OpenOptions::new().read(true).write(true).open(self.path(&path));
            let id = self.sure.names[&path];
            let done = opened.map(|file| self.open = Some((file, id)));
            return (format!("open {path}"), done);
        };
        let Some(object) = after.objects.get_mut(&id) else { return ("nothing".to_owned(), Ok(())) };
        let mut content = object.latest().clone();
        if what == 10 {
            let synced = file.sync_all();
            if synced.is_ok() {
                object.settle();
            }
            return ("fsync and close".to_owned(), synced);
        }
        let data = vec![b'A' + (self.count % 26) as u8; 6000];
        content.resize(content.len().max(data.len()), 0);
        content[..data.len()].copy_from_slice(&data);
        object.unsure.push(content);
        let done = file.write_all_at(&data, 0);
        if done.is_ok() && !self.cached {
            object.settle();
        }
        self.open = Some((file, id));
        ("write to an open file".to_owned(), done)
    }

    fn change_names(&mut self, what: usize, after: &mut Journal) -> (String, io::Result<()>) {
        let fresh = self.fresh();
        let new = self.path(&fresh);
        let mut made = |kind, mode| {
            after.add(fresh.clone(), Object { kind, mode, note: None, content: Vec::new(), unsure: Vec::new() });
        };
        match what {
            13 => {
                made(Kind::Dir, 0o755);
                (format!("mkdir {fresh}"), fs::create_dir(&new))
            }
            14 => {
                made(Kind::Symlink(format!("to{}", self.count)), 0o777);
                (format!("symlink {fresh}"), symlink(format!("to{}", self.count), &new))
            }
            15 | 16 => {
                let Some(path) = self.pick(|object| object.kind != Kind::Dir) else { return nothing() };
                after.remove(&path);
                (format!("unlink {path}"), fs::remove_file(self.path(&path)))
            }
            17 => {
                let empty = |journal: &Journal, path: &str| {
                    !journal.names.keys().any(|name| name.starts_with(&format!("{path}/")))
                };
                let Some(path) = self.directory().filter(|path| empty(&self.sure, path)) else { return nothing() };
                after.remove(&path);
                (format!("rmdir {path}"), fs::remove_dir(self.path(&path)))
            }
            18 => {
                let Some(path) = self.file() else { return nothing() };
                let id = after.names[&path];
                after.names.insert(fresh.clone(), id);
                (format!("link {path} to {fresh}"), fs::hard_link(self.path(&path), &new))
            }
            19 => {
                let (Some(from), Some(to)) = (self.file(), self.file()) else { return nothing() };
                after.rename(&from, &to);
                (format!("rename {from} over {to}"), fs::rename(self.path(&from), self.path(&to)))
            }
            _ => {
                let any = self.pick(|_| true).filter(|path| !fresh.starts_with(&format!("{path}/")));
                let Some(from) = any else { return nothing() };
                after.rename(&from, &fresh);
                (format!("rename {from} to {fresh}"), fs::rename(self.path(&from), &new))
            }
        }
    }
}

fn nothing() -> (String, io::Result<()>) {
    ("nothing".to_owned(), Ok(()))
}

/// Whether an error is an answer: then nothing was changed.
fn is_refusal(error: &io::Error) -> bool {
    !matches!(
        error.raw_os_error(),
        Some(libc::ENOTCONN | libc::ECONNABORTED | libc::ECANCELED | libc::EIO | libc::EINTR)
    )
}

fn append(path: &Path, data: &[u8], root: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    file.write_all(data)?;
    close(file, root)
}

/// Closes a file and makes sure that the daemon has lived to see it: once it is dead, FUSE drops cached pages without a word
/// and close(2) succeeds.
fn close(file: File, root: &Path) -> io::Result<()> {
    nix::unistd::close(file)?;
    nix::sys::statvfs::statvfs(root)?;
    Ok(())
}

/// Writes from the start of a file, as far as it goes, through a mapping.
fn map_write(path: &Path, data: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    // Once its pages are there, the mapping needs nobody's answer.
    let length = fs::read(path)?.len().min(data.len());
    if length == 0 {
        return Ok(());
    }
    let map = sys::SharedMap::new(&file, length, true)?;
    map.write(0, &data[..length]);
    Ok(map.sync()?)
}
