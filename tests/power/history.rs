//! What a worker did to its directory, and what may be seen of it after a power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A number for each object that ever was.
pub type Id = usize;

/// What an object is, with the content or the mode that it has had.
#[derive(Clone, Debug)]
pub enum Event {
    /// A file gets this content; a change that goes through several has an event for each.
    Content(Id, Arc<Vec<u8>>),
    Mode(Id, u32),
    /// A name names an object, or nothing.
    Name(String, Option<Id>),
    /// A file is renamed over a name that a lower shows: its writeback has been started.
    Replaces(String, Id),
    /// A file is durable.
    Sync(Id),
    /// The names in a directory are durable.
    SyncNames(String),
}

/// One operation: what it was, and what it does in this order.
#[derive(Clone, Debug)]
pub struct Step {
    pub said: String,
    pub events: Vec<Event>,
}

/// An object at the beginning.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Nothing for a directory.
    pub content: Option<Arc<Vec<u8>>>,
    pub mode: u32,
}

/// What a worker's directory was before it began, and everything that it has done since.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub names: BTreeMap<String, Id>,
    pub origins: BTreeMap<Id, Origin>,
    pub steps: Vec<Step>,
    /// How many of the steps were answered.
    pub answered: usize,
}

/// Where a history was when the power went.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// So many steps had been answered before.
    pub answered: usize,
    /// No more than these had begun.
    pub begun: usize,
    /// Everything that had been done is on the disk.
    pub nothing_lost: bool,
    /// Names may be those from before any change, and a change of names may be half there, synced or not. A file that was
    /// written to, and not synced since it got its last name, may be empty, or hold zeros.
    pub loose: bool,
}

/// What may be seen of an object.
#[derive(Clone, Debug, Default)]
struct Possible {
    /// The contents that it has had since it was durable, the first one among them, the latest last.
    contents: Vec<Arc<Vec<u8>>>,
    modes: Vec<u32>,
    directory: bool,
    /// Its content is not what it was at the beginning.
    written: bool,
    /// It was durable once, and has got no name since.
    synced: bool,
}

/// What may be seen after a cut.
pub struct Expected<'a> {
    history: &'a History,
    cut: Cut,
    names: BTreeMap<String, Vec<Option<Id>>>,
    objects: BTreeMap<Id, Possible>,
    /// How many contents an object had when it replaced a lower name.
    replaced: BTreeMap<(String, Id), usize>,
}

/// What is seen under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Nothing for a directory.
    pub content: Option<Vec<u8>>,
    pub mode: u32,
}

impl History {
    /// What may be seen after a cut.
    pub fn after(&self, cut: Cut) -> Expected<'_> {
        let objects = self.origins.iter().map(|(id, origin)| {
            let contents: Vec<_> = origin.content.iter().cloned().collect();
            (
                *id,
                Possible { directory: contents.is_empty(), contents, modes: vec![origin.mode], ..Possible::default() },
            )
        });
        let names = self.names.iter().map(|(name, id)| (name.clone(), vec![Some(*id)])).collect();
        let mut expected =
            Expected { history: self, cut, names, objects: objects.collect(), replaced: BTreeMap::new() };
        for (number, step) in self.steps.iter().take(cut.begun).enumerate() {
            for event in &step.events {
                expected.apply(event, number < cut.answered);
            }
        }
        if cut.nothing_lost {
            expected.keep_the_latest();
        }
        expected
    }
}

impl Expected<'_> {
    fn apply(&mut self, event: &Event, answered: bool) {
        match event {
            Event::Content(id, content) => {
                let object = self.objects.entry(*id).or_default();
                object.contents.push(content.clone());
                object.written = true;
            }
            Event::Mode(id, mode) => self.objects.entry(*id).or_default().modes.push(*mode),
            Event::Name(name, id) => {
                self.names.entry(name.clone()).or_insert_with(|| vec![None]).push(*id);
                let Some(id) = id else { return };
                let object = self.objects.entry(*id).or_default();
                object.directory = object.contents.is_empty();
                object.synced = false;
            }
            Event::Replaces(name, id) => {
                let had = self.objects.get(id).map_or(0, |object| object.contents.len());
                self.replaced.insert((name.clone(), *id), had);
            }
            Event::Sync(id) if answered => {
                let object = self.objects.entry(*id).or_default();
                object.keep_the_latest();
                object.synced = true;
                self.replaced.retain(|(_, other), _| other != id);
            }
            Event::SyncNames(directory) if answered && !self.cut.loose => {
                for (name, ids) in &mut self.names {
                    if parent(name) == directory {
                        ids.drain(..ids.len() - 1);
                    }
                }
            }
            Event::Sync(_) | Event::SyncNames(_) => {}
        }
    }

    fn keep_the_latest(&mut self) {
        for ids in self.names.values_mut() {
            ids.drain(..ids.len() - 1);
        }
        for object in self.objects.values_mut() {
            object.keep_the_latest();
        }
        self.replaced.clear();
    }

    /// Whether what is seen under all names can be.
    pub fn check(&self, seen: &BTreeMap<String, Seen>) -> Result<(), String> {
        let all: BTreeSet<&String> = self.names.keys().chain(seen.keys()).collect();
        for name in all {
            self.check_name(name, seen.get(name)).map_err(|fault| format!("{name}: {fault}\n{}", self.story(name)))?;
        }
        Ok(())
    }

    fn check_name(&self, name: &str, seen: Option<&Seen>) -> Result<(), String> {
        let Some(possible) = self.names.get(name) else { return Err("was never made".to_owned()) };
        if self.cut.loose && possible.len() > 1 && self.shows_what_is_below(name, seen) {
            return Ok(());
        }
        let Some(seen) = seen else {
            return possible.contains(&None).then_some(()).ok_or_else(|| "is missing".to_owned());
        };
        let mut faults = Vec::new();
        for id in possible.iter().rev().flatten() {
            match self.check_object(name, *id, seen) {
                Ok(()) => return Ok(()),
                Err(fault) => faults.push(format!("is not object {id}: {fault}")),
            }
        }
        Err(if faults.is_empty() { "is there".to_owned() } else { faults.join("; ") })
    }

    /// Whether a name shows what it shows when upper has nothing there: what a lower has, or if that had other names at the
    /// beginning, what became of it under those.
    fn shows_what_is_below(&self, name: &str, seen: Option<&Seen>) -> bool {
        let names = &self.history.names;
        match (names.get(name), seen) {
            (Some(id), Some(seen)) => {
                let origin = &self.history.origins[id];
                let untouched = seen.mode == origin.mode && seen.content.as_ref() == origin.content.as_deref();
                let linked = names.values().filter(|other| *other == id).count() > 1;
                untouched || linked && self.check_object(name, *id, seen).is_ok()
            }
            (None, None) => true,
            _ => false,
        }
    }

    fn check_object(&self, name: &str, id: Id, seen: &Seen) -> Result<(), String> {
        let object = &self.objects[&id];
        if object.directory != seen.content.is_none() {
            return Err("another type".to_owned());
        }
        if !object.modes.contains(&seen.mode) {
            return Err(format!("mode {:o}, could be {:?}", seen.mode, object.modes));
        }
        let Some(content) = &seen.content else { return Ok(()) };
        if self.cut.loose && object.written && !object.synced && content.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        object.check_content(content)?;
        if let Some(had) = self.replaced.get(&(name.to_owned(), id)).filter(|_| !self.cut.loose) {
            let never_empty = object.contents.iter().skip(had - 1).all(|content| !content.is_empty());
            if never_empty && content.is_empty() {
                return Err("empty, over a name of a lower".to_owned());
            }
        }
        Ok(())
    }

    /// What was done to a name, for whoever has to find out.
    fn story(&self, name: &str) -> String {
        let ids: BTreeSet<Id> = self.names.get(name).into_iter().flatten().flatten().copied().collect();
        let about = |event: &Event| match event {
            Event::Content(id, _) | Event::Mode(id, _) | Event::Sync(id) => ids.contains(id),
            Event::Name(other, id) => other == name || id.is_some_and(|id| ids.contains(&id)),
            Event::Replaces(other, _) => other == name,
            Event::SyncNames(directory) => directory == parent(name),
        };
        let steps = self.history.steps.iter().take(self.cut.begun).enumerate();
        let told = steps.filter(|(_, step)| step.events.iter().any(about)).map(|(number, step)| {
            let answered = if number < self.cut.answered { "" } else { " (not answered)" };
            format!("    step {number}: {}{answered}", step.said)
        });
        told.collect::<Vec<_>>().join("\n")
    }
}

impl Possible {
    fn keep_the_latest(&mut self) {
        self.contents.drain(..self.contents.len().saturating_sub(1));
        self.modes.drain(..self.modes.len().saturating_sub(1));
    }

    /// One of the contents, or of each byte one or the other: what was not synced may have got to the disk in part.
    fn check_content(&self, seen: &[u8]) -> Result<(), String> {
        if self.contents.iter().rev().any(|content| **content == seen) {
            return Ok(());
        }
        let lengths = || self.contents.iter().map(|content| content.len());
        let (shortest, longest) = (lengths().min().unwrap_or(0), lengths().max().unwrap_or(0));
        if !(shortest..=longest).contains(&seen.len()) {
            return Err(format!("{} bytes long, could be {shortest} to {longest}", seen.len()));
        }
        for (at, byte) in seen.iter().enumerate() {
            // What is beyond the end of one content is 0 until the other comes.
            let hole = *byte == 0 && at >= shortest;
            if !hole && !self.contents.iter().rev().any(|content| content.get(at) == Some(byte)) {
                return Err(format!("byte {at} of {} is {byte}, of {} contents", seen.len(), self.contents.len()));
            }
        }
        Ok(())
    }
}

/// The directory of a name.
pub fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(directory, _)| directory)
}
