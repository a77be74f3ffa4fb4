//! The lowers of most workloads: small files in many directories, and a large one. They are the same in every run.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::scale::Scale;

/// How many lowers there are.
const LOWERS: usize = 10;
/// How many files each lower has in each directory.
const FILES: usize = 5;
/// The name of the large file, which the lowest layer has.
pub const LARGE: &str = "large";

/// Makes the lowers, the top one first. Every one of them has all directories.
pub fn make(place: &Path, scale: &Scale) -> anyhow::Result<Vec<PathBuf>> {
    let lowers: Vec<PathBuf> = (0..LOWERS).map(|layer| place.join(format!("lower{layer}"))).collect();
    for (layer, root) in lowers.iter().enumerate() {
        for directory in 0..scale.directories {
            let directory = root.join(directory_name(directory));
            fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
            for file in 0..FILES {
                let size = 1024 * (1 + (layer + 3 * file) % 8) + 100;
                fs::write(directory.join(file_name(layer, file)), content(size, layer + file))?;
            }
        }
    }
    let mut large = File::create(lowers[LOWERS - 1].join(LARGE))?;
    let block = content(1 << 20, 1);
    for _ in 0..scale.large {
        large.write_all(&block)?;
    }
    large.sync_all()?;
    Ok(lowers)
}

/// So many files of each of so many directories, from all lowers in turn.
pub fn files(directories: usize, each: usize) -> Vec<PathBuf> {
    assert!(each <= LOWERS * FILES, "there are not so many files");
    let paths = |directory: usize| {
        (0..each).map(move |n| Path::new(&directory_name(directory)).join(file_name(n % LOWERS, n / LOWERS)))
    };
    (0..directories).flat_map(paths).collect()
}

fn directory_name(directory: usize) -> String {
    format!("d{directory:03}")
}

fn file_name(layer: usize, file: usize) -> String {
    format!("layer{layer}-{file}")
}

/// Bytes that neither repeat soon nor change from run to run.
pub fn content(size: usize, seed: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..size).map(|_| random.below(256) as u8).collect()
}

/// Numbers that look random, and are the same in every run.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Other numbers for another seed.
    pub fn new(seed: usize) -> Self {
        Self(seed as u64 + 1)
    }

    /// The next number, less than `end`, which is at most 2^32.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (((self.0 >> 32) * end as u64) >> 32) as usize
    }
}
