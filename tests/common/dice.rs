//! Numbers by which a test chooses: the same ones for the same seed.

use std::time::{SystemTime, UNIX_EPOCH};

/// Pseudo-random numbers (splitmix64).
pub struct Dice(u64);

impl Dice {
    /// Begins with a seed.
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// One of the numbers from 0, below a limit.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit.max(1) as u64) as usize
    }

    /// Another one, whose numbers are its own.
    pub fn fork(&mut self) -> Dice {
        Dice(self.below(usize::MAX) as u64)
    }
}

/// A seed that no run had before.
pub fn fresh_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
