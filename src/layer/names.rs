//! Which names a small directory of a lower holds: read once, so that a lookup asks no layer that has nothing.
//!
//! Only where reading tells all that a lookup could find: on filesystems that list every name, where none stands for another
//! one of different case, and in layers that don't change underneath.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::error::{Errno, Result};
use crate::layer::real::RealDir;
use crate::layer::stack::Stack;
use crate::layer::whiteout::DOT_PREFIX;
use crate::name::Name;
use crate::sys;

/// How many entries of a directory are looked through, once; of a larger one each name is asked for.
const SCAN_LIMIT: usize = 2000;

/// The names of a directory, as hashes: one that it holds is always among them, one that it doesn't hold hardly ever.
#[derive(Debug)]
pub(super) struct Names(Box<[u32]>);

impl Names {
    pub(super) fn may_hold(&self, name: &Name) -> bool {
        self.0.binary_search(&hash(name.as_bytes())).is_ok()
    }
}

fn hash(name: &[u8]) -> u32 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish() as u32
}

/// What a look through a directory gathers.
#[derive(Default)]
struct Look {
    /// There are `.wh.` entries.
    dotted: bool,
    hashes: Vec<u32>,
    /// A name that is there, but for the case of one letter.
    other_case: Option<Vec<u8>>,
    /// There are names of more than ASCII, which case can't be tried on.
    beyond_ascii: bool,
}

impl Look {
    fn add(&mut self, name: &[u8]) {
        self.dotted |= name.starts_with(DOT_PREFIX);
        self.beyond_ascii |= !name.is_ascii();
        self.hashes.push(hash(name));
        if self.other_case.is_none()
            && let Some(letter) = name.iter().position(u8::is_ascii_alphabetic)
        {
            let flip = |(at, byte): (usize, &u8)| if at == letter { byte ^ 0x20 } else { *byte };
            self.other_case = Some(name.iter().enumerate().map(flip).collect());
        }
    }

    fn is_whole(&self) -> bool {
        self.hashes.len() < SCAN_LIMIT
    }
}

impl Stack {
    /// Looks through a small directory once for AUFS whiteouts, and remembers the names of a lower's: a large one is asked for
    /// each name. Whether there may be such whiteouts.
    pub(super) fn may_have_dot_whiteouts(&self, dir: &Arc<RealDir>) -> Result<bool> {
        let keep = self.keeps_names(dir)?;
        match dir.dot_whiteouts.get() {
            Some(known) if !keep || dir.names.get().is_some() => return Ok(known),
            _ => {}
        }
        if dir.is_void() {
            return Ok(false);
        }
        let fd = match self.open_dir_readable(dir) {
            // Whoever may search it may still ask for single names.
            Err(Errno::EACCES) => return Ok(true),
            fd => fd?,
        };
        let mut look = Look::default();
        sys::dir::for_each(fd.as_fd(), |entry| {
            look.add(entry.name);
            look.is_whole() && (keep || !look.dotted)
        })?;
        let may = look.dotted || !look.is_whole();
        self.note_dot_whiteouts(dir, may);
        if keep {
            let names = self.tells_all(dir, &look)?.then(|| {
                look.hashes.sort_unstable();
                Names(look.hashes.into())
            });
            // Whoever was first read the same.
            dir.names.get_or_init(|| names);
        }
        Ok(may)
    }

    /// Whether what was read is all that lookups could find: the end was reached, and case matters here.
    fn tells_all(&self, dir: &Arc<RealDir>, look: &Look) -> Result<bool> {
        match &look.other_case {
            _ if !look.is_whole() => Ok(false),
            None => Ok(!look.beyond_ascii),
            Some(other) => Ok(self.stat_at(dir, &Name::new(other)?)?.is_none()),
        }
    }

    fn keeps_names(&self, dir: &RealDir) -> Result<bool> {
        Ok(self.remember_names && !dir.layer.is_upper() && self.layer(dir.layer)?.lists_all())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::stack::Layer;
    use crate::layer::{Handling, StackSpec};

    fn look(names: &[&str]) -> Look {
        let mut look = Look::default();
        names.iter().for_each(|name| look.add(name.as_bytes()));
        look
    }

    #[test]
    fn every_name_that_is_there_may_be_there() {
        let mut hashes: Vec<u32> = (0..1000).map(|n| hash(format!("name{n}").as_bytes())).collect();
        hashes.sort_unstable();
        let names = Names(hashes.into());
        let may = |n: u32| names.may_hold(&Name::new(format!("name{n}").as_bytes()).unwrap());
        assert!((0..1000).all(may));
        assert!(!(1000..2000).any(may));
    }

    #[test]
    fn the_first_letter_is_tried_in_the_other_case() {
        assert_eq!(look(&["12", "3Ab", "c"]).other_case.as_deref(), Some(&b"3ab"[..]));
        assert_eq!(look(&["12", "\u{e9}a"]).other_case.as_deref(), Some("\u{e9}A".as_bytes()));
        assert_eq!(look(&["12", "_"]).other_case, None);
        assert!(look(&["12", "\u{e9}"]).beyond_ascii);
    }

    /// What `/proc` lists is not all that can be looked up there, and it changes by itself.
    #[test]
    fn only_known_filesystems_list_all() {
        let lowers = vec![std::env::temp_dir(), "/proc".into()];
        let stack = Stack::open(&StackSpec { lowers, ..StackSpec::default() }, Handling::default()).unwrap();
        let known: Vec<bool> = stack.layers().iter().map(Layer::lists_all).collect();
        assert_eq!(known, [true, false]);
    }

    #[test]
    fn whiteouts_are_seen_in_what_is_looked_through() {
        assert!(look(&["a", ".wh.b"]).dotted && !look(&["a", ".whb"]).dotted);
        let many: Vec<String> = (0..SCAN_LIMIT).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(!look(&many).is_whole() && look(&many[1..]).is_whole());
    }
}
