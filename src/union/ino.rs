//! Inode numbers: the real one where all layers are on one filesystem, else told apart by high bits (xino).

use std::sync::atomic::{AtomicU64, Ordering};

use crate::layer::ObjKey;
use crate::union::Xino;

/// Where a filesystem's index begins in a number.
const INDEX_SHIFT: u32 = 48;
/// Numbers from here on are given out one by one: for objects whose own number is taken or doesn't fit.
const RESERVED: u64 = 1 << 62;

/// The rule by which real objects get their numbers.
#[derive(Debug)]
pub(super) struct Numbers {
    /// Devices of the layers' roots, without repetition: the index of each is what tells its numbers apart.
    devices: Vec<u64>,
    xino: Xino,
    next_reserved: AtomicU64,
}

impl Numbers {
    pub(super) fn new(layers: impl Iterator<Item = u64>, xino: Xino) -> Self {
        let mut devices = Vec::new();
        for dev in layers {
            if !devices.contains(&dev) {
                devices.push(dev);
            }
        }
        Self { devices, xino, next_reserved: AtomicU64::new(RESERVED) }
    }

    /// The number that an object should show, for as long as the layers exist; `None` where it has none that lasts.
    pub(super) fn lasting(&self, key: ObjKey) -> Option<u64> {
        let index = self.devices.iter().position(|dev| *dev == key.dev)? as u64;
        if key.ino <= 1 {
            return None;
        }
        if self.devices.len() == 1 {
            return (key.ino < RESERVED).then_some(key.ino);
        }
        let fits = key.ino >> INDEX_SHIFT == 0 && index < (RESERVED >> INDEX_SHIFT);
        let apart = index == 0 || self.xino != Xino::Off;
        (fits && apart).then_some(index << INDEX_SHIFT | key.ino)
    }

    /// A number that no object had before in this mount.
    pub(super) fn reserve(&self) -> u64 {
        self.next_reserved.fetch_add(1, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(dev: u64, ino: u64) -> ObjKey {
        ObjKey { dev, ino }
    }

    #[test]
    fn one_filesystem_shows_its_own_numbers() {
        let numbers = Numbers::new([7, 7, 7].into_iter(), Xino::Auto);
        assert_eq!(numbers.lasting(key(7, 4711)), Some(4711));
        assert_eq!(numbers.lasting(key(7, 1 << 50)), Some(1 << 50));
        for taken in [0, 1, RESERVED] {
            assert_eq!(numbers.lasting(key(7, taken)), None);
        }
        assert_eq!(numbers.lasting(key(8, 4711)), None);
    }

    #[test]
    fn several_filesystems_are_told_apart() {
        let numbers = Numbers::new([7, 9, 7].into_iter(), Xino::Auto);
        assert_eq!(numbers.lasting(key(7, 5)), Some(5));
        assert_eq!(numbers.lasting(key(9, 5)), Some(1 << 48 | 5));
        assert_eq!(numbers.lasting(key(9, 1 << 48)), None);
        assert_eq!(Numbers::new([7, 9].into_iter(), Xino::Off).lasting(key(9, 5)), None);
    }

    #[test]
    fn reserved_numbers_never_repeat() {
        let numbers = Numbers::new([7].into_iter(), Xino::Auto);
        assert_ne!(numbers.reserve(), numbers.reserve());
    }
}
