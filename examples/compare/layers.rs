//! The lowers: the same for every mount and in every run.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// How many lowers there are.
const LOWERS: usize = 10;
/// How many directories; every lower has them all.
const DIRECTORIES: usize = 200;
/// How many files each lower has in each directory.
const FILES: usize = 5;
/// The size of the large file, which the lowest layer has.
const LARGE: usize = 256 << 20;

/// The name of the large file.
const LARGE_NAME: &str = "large";

/// Which files a workload works on.
#[derive(Clone, Copy, Debug)]
pub enum Files {
    /// Small ones: so many of each of so many directories, from all lowers in turn.
    Small {
        /// How many directories.
        directories: usize,
        /// How many files in each of them.
        each: usize,
    },
    /// The large one.
    Large,
}

/// The lowers on disk, and the place for uppers.
#[derive(Debug)]
pub struct Layers {
    /// Where everything is.
    pub place: PathBuf,
    /// The lowers, the top one first.
    pub lowers: Vec<PathBuf>,
}

impl Layers {
    /// Makes the lowers in an empty directory.
    pub fn make(place: &Path) -> anyhow::Result<Self> {
        let lowers: Vec<PathBuf> = (0..LOWERS).map(|layer| place.join(format!("lower{layer}"))).collect();
        for (layer, root) in lowers.iter().enumerate() {
            for directory in 0..DIRECTORIES {
                let directory = root.join(directory_name(directory));
                fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
                for file in 0..FILES {
                    let size = 1024 * (1 + (layer + 3 * file) % 8) + 100;
                    fs::write(directory.join(file_name(layer, file)), content(size, layer + file))?;
                }
            }
        }
        let mut large = File::create(place.join(format!("lower{}", LOWERS - 1)).join(LARGE_NAME))?;
        let block = content(1 << 20, 1);
        for _ in 0..LARGE / block.len() {
            large.write_all(&block)?;
        }
        large.sync_all()?;
        Ok(Self { place: place.to_owned(), lowers })
    }

    /// The files of the lowers, to be handed out to workloads.
    pub fn targets(&self) -> Targets {
        Targets { directory: 0 }
    }
}

/// Hands out each file once.
#[derive(Debug)]
pub struct Targets {
    directory: usize,
}

impl Targets {
    /// The paths, in the mount, of files that nobody had before.
    pub fn take(&mut self, files: Files) -> Vec<PathBuf> {
        let Files::Small { directories, each } = files else { return vec![PathBuf::from(LARGE_NAME)] };
        let first = self.directory;
        self.directory += directories;
        assert!(self.directory <= DIRECTORIES && each <= LOWERS * FILES, "there are not so many files");
        let paths = |directory: usize| {
            (0..each).map(move |n| Path::new(&directory_name(directory)).join(file_name(n % LOWERS, n / LOWERS)))
        };
        (first..self.directory).flat_map(paths).collect()
    }
}

fn directory_name(directory: usize) -> String {
    format!("d{directory:03}")
}

fn file_name(layer: usize, file: usize) -> String {
    format!("layer{layer}-{file}")
}

/// Bytes that neither repeat soon nor change from run to run.
fn content(size: usize, seed: usize) -> Vec<u8> {
    let mut state = seed as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..size).map(|_| next()).collect()
}
