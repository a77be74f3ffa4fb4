//! Reading directories: one merge pass over the layers, served from a kept listing.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::{Errno, Result};
use crate::layer::whiteout::DOT_PREFIX;
use crate::layer::{LayerId, ObjKey, RealDir};
use crate::name::Name;
use crate::sys;
use crate::union::held::Held;
use crate::union::inode::{DirView, Inode};
use crate::union::listing::{Entry, FIRST_OFFSET, Listing};
use crate::union::lookup::{Found, Hint};
use crate::union::stats::Op;
use crate::union::{Attr, FileKind, Union};

/// Offsets after `.` and after `..`.
const AFTER_DOT: u64 = 1;
const AFTER_DOT_DOT: u64 = 2;

/// How many entries are taken from a listing at a time, so that it is not locked while they are looked up; about as many
/// as a caller with a buffer of 32 KiB, as the C library has, gets with their attributes in one answer.
const BATCH: usize = 192;

/// What the layers down to some point make of each name; `None`: hidden.
type Merged = HashMap<Box<[u8]>, Option<Entry>>;

/// The names that AUFS whiteouts in one layer's directory hide.
type Hidden = Vec<Box<[u8]>>;

/// An entry as one layer's directory tells it.
struct RawName {
    name: Box<[u8]>,
    ino: u64,
    kind: u8,
}

/// One entry of a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirEntry<'a> {
    /// The name.
    pub name: &'a [u8],
    /// The inode number.
    pub ino: u64,
    /// The type.
    pub kind: FileKind,
    /// The offset at which reading goes on after this entry; never 0.
    pub next: u64,
    /// False for an entry that can't be looked up (a bad mark): it is listed, but what readdirplus tells of it beyond
    /// name and type is made up, its number is nobody's, and no lookup is counted.
    pub resolved: bool,
}

impl Union {
    /// Opens a directory for reading; true if the kernel may keep its listing, and may use the one that it has kept.
    ///
    /// The kernel (seen on 6.18) checks a kept listing's age at its start only: a reader that begins after a change can be
    /// led on into what another one, from before the change, kept meanwhile. So none is kept while such a one may be there.
    ///
    /// # Errors
    /// `ENOTDIR`.
    pub fn opendir(&self, ino: u64) -> Result<bool> {
        self.counters.count(Op::Opendir);
        let dir = self.dir(ino)?;
        let mut state = dir.as_dir().ok_or(Errno::ENOTDIR)?.state.write();
        state.opens += 1;
        Ok(!state.changed_while_open)
    }

    /// Closes a directory that was opened for reading.
    ///
    /// # Errors
    /// `ENOTDIR`.
    pub fn releasedir(&self, ino: u64) -> Result<()> {
        let dir = self.dir(ino)?;
        let mut state = dir.as_dir().ok_or(Errno::ENOTDIR)?.state.write();
        state.opens = state.opens.saturating_sub(1);
        if state.opens == 0 {
            state.changed_while_open = false;
        }
        Ok(())
    }

    /// Notes that a name in a directory changed, for those who have it open.
    pub(super) fn note_change(&self, dir: &Inode) {
        let Some(node) = dir.as_dir() else { return };
        let news = {
            let state = node.state.read();
            state.opens > 0 && !state.changed_while_open
        };
        if news {
            node.state.write().changed_while_open = true;
        }
    }

    /// Gives the entries after `offset` (0: from the start) to `sink` until it returns false: then the entry was not taken.
    ///
    /// Entries that neither come nor go between calls appear exactly once.
    ///
    /// # Errors
    /// `ENOTDIR`, or what reading a layer fails with.
    pub fn readdir(&self, ino: u64, offset: u64, sink: &mut dyn FnMut(&DirEntry<'_>) -> bool) -> Result<()> {
        self.counters.count(Op::Readdir);
        let dir = self.dir(ino)?;
        if !self.dots(&dir, offset, sink) {
            return Ok(());
        }
        let listing = self.listing(&dir, offset <= AFTER_DOT_DOT)?;
        for (at, entry) in listing.lock().after(offset.max(FIRST_OFFSET - 1)) {
            if !sink(&DirEntry { name: &entry.name, ino: entry.number, kind: entry.kind, next: at, resolved: true }) {
                break;
            }
        }
        Ok(())
    }

    /// As [`Union::readdir`] with the attributes of each entry, whose lookup count grows by one for each entry taken but
    /// `.` and `..`. May end before the sink is full.
    ///
    /// Attributes must not be older than the answer: from a listing the kernel (seen on 6.18) makes an inode that it has
    /// forgotten since it asked, and under writeback takes its size and time of modification for good. Those that changed
    /// while the others were looked up are read again, and an answer is one batch, so that it is not old when it is sent.
    ///
    /// # Errors
    /// As readdir.
    pub fn readdirplus(&self, ino: u64, offset: u64, sink: &mut dyn FnMut(&DirEntry<'_>, &Attr) -> bool) -> Result<()> {
        self.counters.count(Op::Readdirplus);
        let dir = self.dir(ino)?;
        let own = self.attr_of(&dir)?;
        let mut dots = |entry: &DirEntry<'_>| sink(entry, &Attr { ino: entry.ino, ..own });
        if !self.dots(&dir, offset, &mut dots) {
            return Ok(());
        }
        // Before the listing, which is kept right no longer when others take its place.
        let name_changes = dir.as_dir().ok_or(Errno::ENOTDIR)?.name_changes.load(Ordering::Acquire);
        let listing = self.listing(&dir, offset <= AFTER_DOT_DOT)?;
        let mut after = offset.max(FIRST_OFFSET - 1);
        let mut given = false;
        while !given {
            let batch: Vec<(u64, Entry)> =
                listing.lock().after(after).take(BATCH).map(|(at, entry)| (at, entry.clone())).collect();
            if batch.is_empty() {
                return Ok(());
            }
            after = batch.last().map_or(after, |(at, _)| *at);
            let changes = self.changes.load(Ordering::Acquire);
            let found: Vec<_> =
                batch.into_iter().map(|(at, entry)| (at, self.look_up(&dir, &entry, name_changes), entry)).collect();
            for (at, found, entry) in found {
                let (held, attr) = match found {
                    Ok(Some(held)) => held,
                    // It is gone since it was listed.
                    Ok(None) | Err(Errno::ENOENT | Errno::ESTALE) => continue,
                    Err(_) => {
                        if !self.unresolved(&entry, at, &own, sink) {
                            return Ok(());
                        }
                        continue;
                    }
                };
                let attr = if self.has_changed_since(&held, changes) { self.attr_of(&held)? } else { attr };
                let shown = DirEntry { name: &entry.name, ino: attr.ino, kind: held.kind, next: at, resolved: true };
                if !sink(&shown, &attr) {
                    return Ok(());
                }
                held.keep();
                given = true;
            }
        }
        Ok(())
    }

    fn look_up(&self, dir: &Arc<Inode>, entry: &Entry, name_changes: u32) -> Result<Option<(Held<'_>, Attr)>> {
        let name = Name::new(&entry.name).map_err(|_| Errno::EIO)?;
        self.hold_with_attr(dir, &name, entry.layer.map(|layer| Hint { layer, name_changes }))
    }

    /// Gives a sink an entry that can't be looked up.
    fn unresolved(
        &self,
        entry: &Entry,
        next: u64,
        like: &Attr,
        sink: &mut dyn FnMut(&DirEntry<'_>, &Attr) -> bool,
    ) -> bool {
        let ino = self.numbers.reserve();
        let attr = Attr { ino, mode: entry.kind.to_mode(), nlink: 1, rdev: 0, size: 0, blocks: 0, ..*like };
        sink(&DirEntry { name: &entry.name, ino, kind: entry.kind, next, resolved: false }, &attr)
    }

    /// Gives `.` and `..` to a sink; false if it is full.
    fn dots(&self, dir: &Inode, offset: u64, sink: &mut dyn FnMut(&DirEntry<'_>) -> bool) -> bool {
        let parent = dir.as_dir().and_then(|d| d.state.read().place.as_ref().map(|(p, _)| p.number));
        let dots: [(&[u8], u64, u64); 2] =
            [(b".", dir.number, AFTER_DOT), (b"..", parent.unwrap_or(dir.number), AFTER_DOT_DOT)];
        dots.iter().filter(|(_, _, next)| offset < *next).all(|(name, ino, next)| {
            sink(&DirEntry { name, ino: *ino, kind: FileKind::Directory, next: *next, resolved: true })
        })
    }

    /// Whether a merged directory shows no entry.
    pub(super) fn is_empty(&self, dir: &Arc<Inode>) -> Result<bool> {
        let node = dir.as_dir().ok_or(Errno::ENOTDIR)?;
        Ok(self.merge(&node.view())?.is_empty())
    }

    /// The listing of a directory, the kept one unless layers change underneath and reading starts anew.
    fn listing(&self, dir: &Arc<Inode>, from_start: bool) -> Result<Arc<Mutex<Listing>>> {
        let layers_change = self.options.timeout == Some(Duration::ZERO);
        match self.listings.get(dir.id) {
            Some(listing) if !(from_start && layers_change) => return Ok(listing),
            _ => {}
        }
        let node = dir.as_dir().ok_or(Errno::ENOTDIR)?;
        // Shared: no name changes between the merge and the moment from which changes reach the listing.
        let _names = node.names.read();
        let names = if node.state.read().removed.is_some() { HashMap::new() } else { self.merge(&node.view())? };
        Ok(self.listings.keep(dir.id, names))
    }

    /// Merges the layers of a directory.
    fn merge(&self, view: &DirView) -> Result<HashMap<Box<[u8]>, Entry>> {
        let mut names = Merged::new();
        let parts: Vec<_> = view.parts().collect();
        for (at, part) in parts.iter().enumerate() {
            self.merge_layer(view, part, at + 1 == parts.len(), &mut names)?;
        }
        Ok(names.into_iter().filter_map(|(name, entry)| entry.map(|entry| (name, entry))).collect())
    }

    /// Adds what one layer says of names that no layer above it has spoken of.
    fn merge_layer(&self, view: &DirView, dir: &Arc<RealDir>, last: bool, names: &mut Merged) -> Result<()> {
        let (here, whiteouts) = self.read_layer(dir)?;
        for raw in here {
            match names.get_mut(&raw.name) {
                None => {
                    let entry = self.listed(view, dir, &raw)?;
                    names.insert(raw.name, entry);
                }
                // A merged directory shows the number of its topmost lower.
                Some(Some(above)) if above.kind == FileKind::Directory && above.layer == Some(LayerId::UPPER) => {
                    let name = Name::new(&raw.name).map_err(|_| Errno::EIO)?;
                    self.resolve_entry(view, &name, above)?;
                    above.layer = None;
                }
                Some(_) => {}
            }
        }
        if !last {
            for hidden in whiteouts {
                names.entry(hidden).or_insert(None);
            }
        }
        Ok(())
    }

    /// The raw entries of one layer's directory, and the names that AUFS whiteouts in it hide.
    fn read_layer(&self, dir: &Arc<RealDir>) -> Result<(Vec<RawName>, Hidden)> {
        let (mut here, mut whiteouts) = (Vec::new(), Vec::new());
        if dir.is_void() {
            return Ok((here, whiteouts));
        }
        let fd = self.stack.open_dir_readable(dir)?;
        let mut dotted = false;
        sys::dir::for_each(fd.as_fd(), |entry| {
            match entry.name.strip_prefix(DOT_PREFIX) {
                Some(hidden) => {
                    dotted = true;
                    whiteouts.push(hidden.into());
                }
                None => here.push(RawName { name: entry.name.into(), ino: entry.ino, kind: entry.kind }),
            }
            true
        })?;
        self.stack.note_dot_whiteouts(dir, dotted);
        Ok((here, whiteouts))
    }

    /// One layer's entry, `None` for a whiteout.
    fn listed(&self, view: &DirView, dir: &Arc<RealDir>, raw: &RawName) -> Result<Option<Entry>> {
        let name = Name::new(&raw.name).map_err(|_| Errno::EIO)?;
        let maybe_whiteout =
            raw.kind == libc::DT_CHR || raw.kind == libc::DT_REG && self.stack.has_xattr_whiteouts(dir)?;
        let mut kind = kind_of(raw.kind);
        let mut key = ObjKey { dev: dir.key.dev, ino: raw.ino };
        if maybe_whiteout || kind.is_none() {
            let Some(stat) = self.stack.stat_at(dir, &name)? else { return Ok(None) };
            if self.stack.is_whiteout(dir, &name, &stat)? {
                return Ok(None);
            }
            kind = Some(FileKind::from_mode(stat.mode)?);
            key = ObjKey::from(&stat);
        }
        let mut entry = Entry {
            name: name.as_bytes().into(),
            kind: kind.unwrap_or(FileKind::Regular),
            number: self.number_for(dir.layer, key, key).unwrap_or(raw.ino),
            layer: Some(dir.layer),
        };
        // Where copies are, an entry may show its origin's number, or be a device 0:0; and a file what an attribute says.
        let typed = self.stack.xattr_permissions().is_some() && entry.kind == FileKind::Regular;
        if typed || self.stack.is_impure(dir)? {
            self.resolve_entry(view, &name, &mut entry)?;
        }
        Ok(Some(entry))
    }

    /// Gives an entry the type and number that a lookup would tell. What can't be looked up is listed all the same.
    fn resolve_entry(&self, view: &DirView, name: &Name, entry: &mut Entry) -> Result<()> {
        let found = self.find_in_layers(None, view, name, None);
        let layer = found.as_ref().ok().and_then(|f| f.as_ref()).map_or(LayerId::UPPER, Found::layer);
        let (own, lasting) = match found {
            Ok(Some(Found::Dir(dir))) => {
                let lower = dir.lowers.first().map(|l| l.key);
                let Some(own) = dir.upper.as_ref().map(|u| u.key).or(lower) else { return Ok(()) };
                (own, lower.unwrap_or(own))
            }
            Ok(Some(Found::Other(file))) => {
                entry.kind = file.kind;
                let own = ObjKey::from(&file.stat);
                (own, file.origin.unwrap_or(own))
            }
            Ok(None) | Err(Errno::EIO | Errno::ESTALE) => return Ok(()),
            Err(e) => return Err(e),
        };
        entry.number = self.number_for(layer, own, lasting).unwrap_or(entry.number);
        Ok(())
    }

    /// The number of an object: the one that it has if it is known, else the one that it should get.
    fn number_for(&self, layer: LayerId, own: ObjKey, lasting: ObjKey) -> Option<u64> {
        self.table.number_of(own.seen_in(layer)).or_else(|| self.numbers.lasting(lasting))
    }
}

fn kind_of(raw: u8) -> Option<FileKind> {
    Some(match raw {
        libc::DT_FIFO => FileKind::Fifo,
        libc::DT_CHR => FileKind::CharDevice,
        libc::DT_DIR => FileKind::Directory,
        libc::DT_BLK => FileKind::BlockDevice,
        libc::DT_REG => FileKind::Regular,
        libc::DT_LNK => FileKind::Symlink,
        libc::DT_SOCK => FileKind::Socket,
        _ => return None,
    })
}
