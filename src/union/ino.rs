//! Inode numbers: the real one where all layers are on one filesystem, else told apart by high bits (xino).

use std::sync::atomic::{AtomicU64, Ordering};

use crate::layer::ObjKey;
use crate::union::Xino;

/// Where a filesystem's index begins in a number.
const INDEX_SHIFT: u32 = 48;
/// Numbers from here on are given out one by one: for objects whose own number is taken or doesn't fit.
const RESERVED: u64 = 1 << 62;
/// The same where numbers have to do with 32 bits; there are as many, and then they come again.
const RESERVED_OF_32_BITS: u64 = 1 << 31;

/// The rule by which real objects get their numbers.
#[derive(Debug)]
pub(super) struct Numbers {
    /// Devices of the layers' roots, without repetition: the index of each is what tells its numbers apart.
    devices: Vec<u64>,
    xino: Xino,
    /// The first number that is given out.
    reserved: u64,
    given: AtomicU64,
}

impl Numbers {
    pub(super) fn new(layers: impl Iterator<Item = u64>, xino: Xino, ino32: bool) -> Self {
        let mut devices = Vec::new();
        for dev in layers {
            if !devices.contains(&dev) {
                devices.push(dev);
            }
        }
        let reserved = if ino32 { RESERVED_OF_32_BITS } else { RESERVED };
        Self { devices, xino, reserved, given: AtomicU64::new(0) }
    }

    /// The number that an object should show, for as long as the layers exist; `None` where it has none that lasts.
    pub(super) fn lasting(&self, key: ObjKey) -> Option<u64> {
        let index = self.devices.iter().position(|dev| *dev == key.dev)? as u64;
        if key.ino <= 1 {
            return None;
        }
        if self.devices.len() == 1 {
            return (key.ino < self.reserved).then_some(key.ino);
        }
        let fits = key.ino >> INDEX_SHIFT == 0 && index < (RESERVED >> INDEX_SHIFT);
        let apart = index == 0 || self.xino != Xino::Off;
        (fits && apart).then_some(index << INDEX_SHIFT | key.ino).filter(|number| *number < self.reserved)
    }

    /// A number that no object had before in this mount, or not for long.
    pub(super) fn reserve(&self) -> u64 {
        self.reserved + self.given.fetch_add(1, Ordering::Relaxed) % self.reserved
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
        let numbers = Numbers::new([7, 7, 7].into_iter(), Xino::Auto, false);
        assert_eq!(numbers.lasting(key(7, 4711)), Some(4711));
        assert_eq!(numbers.lasting(key(7, 1 << 50)), Some(1 << 50));
        for taken in [0, 1, RESERVED] {
            assert_eq!(numbers.lasting(key(7, taken)), None);
        }
        assert_eq!(numbers.lasting(key(8, 4711)), None);
    }

    #[test]
    fn several_filesystems_are_told_apart() {
        let numbers = Numbers::new([7, 9, 7].into_iter(), Xino::Auto, false);
        assert_eq!(numbers.lasting(key(7, 5)), Some(5));
        assert_eq!(numbers.lasting(key(9, 5)), Some(1 << 48 | 5));
        assert_eq!(numbers.lasting(key(9, 1 << 48)), None);
        assert_eq!(Numbers::new([7, 9].into_iter(), Xino::Off, false).lasting(key(9, 5)), None);
    }

    #[test]
    fn numbers_of_32_bits() {
        let numbers = Numbers::new([7, 9].into_iter(), Xino::Auto, true);
        assert_eq!(numbers.lasting(key(7, 5)), Some(5));
        assert_eq!(numbers.lasting(key(9, 5)), None);
        assert_eq!(numbers.lasting(key(7, 1 << 31)), None);
        assert_eq!(Numbers::new([7].into_iter(), Xino::Auto, true).lasting(key(7, 1 << 31)), None);
        numbers.given.store((1 << 31) - 1, Ordering::Relaxed);
        assert_eq!((numbers.reserve(), numbers.reserve()), (u64::from(u32::MAX), 1 << 31));
    }

    #[test]
    fn reserved_numbers_never_repeat() {
        let numbers = Numbers::new([7].into_iter(), Xino::Auto, false);
        assert_ne!(numbers.reserve(), numbers.reserve());
    }
}
