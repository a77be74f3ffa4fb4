//! Ids: an owner as the layers store it is another one in the mount, with `uidmapping`, `gidmapping` and the squash options.

mod values;

use std::cmp::Ordering;

use crate::error::{Errno, Result};
use crate::sys::file::Stat;

/// What stands for an id without a mapping: the kernel shows its overflow id then, and nobody is the owner.
pub const NOBODY: u32 = u32::MAX;

/// The superuser, and the root of every user namespace as it is numbered within.
const ROOT: u32 = 0;

/// Ranges of ids that are other ones in the mount; without any, every id is itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// By the first id that is stored.
    stored: Vec<Range>,
    /// The same the other way round, by the first id that is shown.
    shown: Vec<Range>,
}

/// The ids from `first` stand for those from `other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u32,
    other: u32,
    len: u32,
}

impl Range {
    fn turned(self) -> Self {
        Self { first: self.other, other: self.first, len: self.len }
    }

    fn last(self) -> u32 {
        self.first + (self.len - 1)
    }
}

impl IdMap {
    /// Reads triples `INSIDE:OUTSIDE:LENGTH`, between colons; there may be one before the first, too. Inside is what the layers
    /// store, outside what the mount shows.
    ///
    /// # Errors
    /// What is wrong, to be put after the option's name.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let numbers = text.strip_prefix(':').unwrap_or(text).split(':').map(|number| {
            let is_plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
            let parsed = if is_plain { number.parse::<u32>().ok() } else { None };
            parsed.ok_or_else(|| format!("\"{number}\" is no id or number of ids"))
        });
        let numbers = numbers.collect::<std::result::Result<Vec<_>, _>>()?;
        let (triples, []) = numbers.as_chunks::<3>() else {
            return Err(format!("it is made of triples INSIDE:OUTSIDE:LENGTH, and {} numbers are none", numbers.len()));
        };
        let mut stored = Vec::with_capacity(triples.len());
        for [first, other, len] in triples.iter().copied() {
            // The last of all numbers is no id: it says "none".
            if len == 0 || [first, other].iter().any(|id| id.checked_add(len).is_none()) {
                return Err(format!("{first}:{other}:{len} is no range of ids"));
            }
            stored.push(Range { first, other, len });
        }
        let shown = stored.iter().map(|range| range.turned()).collect();
        Ok(Self { stored: in_order(stored, "inside")?, shown: in_order(shown, "outside")? })
    }

    /// The id that the mount shows for a stored one; `None` for one without a mapping.
    pub fn shown(&self, stored: u32) -> Option<u32> {
        other(&self.stored, stored)
    }

    /// The id that is stored for one of the mount; `None` for one without a mapping.
    pub fn stored(&self, shown: u32) -> Option<u32> {
        other(&self.shown, shown)
    }

    fn is_identity(&self) -> bool {
        self.stored.is_empty()
    }
}

fn in_order(mut ranges: Vec<Range>, side: &str) -> std::result::Result<Vec<Range>, String> {
    ranges.sort_unstable_by_key(|range| range.first);
    match ranges.windows(2).find(|pair| matches!(pair, [one, next] if next.first <= one.last())) {
        Some([_, next]) => Err(format!("the id {} is in it twice, {side}", next.first)),
        _ => Ok(ranges),
    }
}

fn other(ranges: &[Range], id: u32) -> Option<u32> {
    if ranges.is_empty() {
        return Some(id);
    }
    let at = ranges.binary_search_by(|range| match id.cmp(&range.first) {
        Ordering::Less => Ordering::Greater,
        _ if id > range.last() => Ordering::Less,
        _ => Ordering::Equal,
    });
    ranges.get(at.ok()?).map(|range| range.other + (id - range.first))
}

/// How owners and groups of the layers are shown, and stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// Users.
    pub uids: IdMap,
    /// Groups.
    pub gids: IdMap,
    /// Everything shows user and group 0, unless one of the next two says otherwise.
    pub squash_to_root: bool,
    /// Everything shows this user.
    pub squash_to_uid: Option<u32>,
    /// Everything shows this group.
    pub squash_to_gid: Option<u32>,
}

impl Ids {
    /// The user that the mount shows for one of the layers.
    pub fn shown_uid(&self, uid: u32) -> u32 {
        let squash = self.squash_to_uid.or(self.squash_to_root.then_some(ROOT));
        squash.or_else(|| self.uids.shown(uid)).unwrap_or(NOBODY)
    }

    /// The group that the mount shows for one of the layers.
    pub fn shown_gid(&self, gid: u32) -> u32 {
        let squash = self.squash_to_gid.or(self.squash_to_root.then_some(ROOT));
        squash.or_else(|| self.gids.shown(gid)).unwrap_or(NOBODY)
    }

    /// What is stored for the owner that somebody gives an object.
    ///
    /// # Errors
    /// `EINVAL` for one without a mapping.
    pub fn new_uid(&self, uid: u32) -> Result<u32> {
        self.uids.stored(uid).ok_or(Errno::EINVAL)
    }

    /// The same for a group.
    ///
    /// # Errors
    /// `EINVAL` for one without a mapping.
    pub fn new_gid(&self, gid: u32) -> Result<u32> {
        self.gids.stored(gid).ok_or(Errno::EINVAL)
    }

    /// The user who owns what a caller makes. The superuser without a mapping, who sets containers up from outside, makes things
    /// that are their root's.
    ///
    /// # Errors
    /// `EOVERFLOW`, as mounts that the kernel maps have it, for any other caller without a mapping.
    pub fn creator_uid(&self, uid: u32) -> Result<u32> {
        creator(&self.uids, uid)
    }

    /// The same for the group.
    ///
    /// # Errors
    /// `EOVERFLOW` likewise.
    pub fn creator_gid(&self, gid: u32) -> Result<u32> {
        creator(&self.gids, gid)
    }

    /// Whether a stored owner need not be the one that was asked for, since another is shown anyway.
    pub fn is_squashed(&self) -> bool {
        self.squash_to_root || self.squash_to_uid.is_some() || self.squash_to_gid.is_some()
    }

    /// Whether the ids in the values of attributes are what they are in the layers.
    pub(super) fn maps_nothing(&self) -> bool {
        self.uids.is_identity() && self.gids.is_identity()
    }

    /// Owner and group of a real status, as they are shown.
    pub(super) fn shown_owner(&self, stat: &Stat) -> (u32, u32) {
        (self.shown_uid(stat.uid), self.shown_gid(stat.gid))
    }
}

fn creator(map: &IdMap, id: u32) -> Result<u32> {
    match map.stored(id) {
        Some(stored) => Ok(stored),
        None if id == ROOT => Ok(ROOT),
        None => Err(Errno::EOVERFLOW),
    }
}

#[cfg(test)]
mod tests;
