//! One file under random changes, every read compared with a copy of it in memory. As fsx does, but from what a lower file
//! holds, and also through a descriptor from before the copy-up.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::unistd::{Whence, fdatasync, lseek};

use crate::common::Test;
use crate::common::files::*;
use crate::common::sys::{SharedMap, copy_range};
use crate::common::union::Union;
use crate::random::Random;
use crate::{seed, setting, t};

pub fn tests() -> Vec<Test> {
    vec![
        t!(a_lower_file),
        t!(a_lower_file_written_late),
        t!(a_lower_file_without_caches),
        t!(a_lower_file_passed_through).root(),
        t!(a_new_file),
        t!(a_new_file_written_late),
        t!(a_new_file_without_caches),
        t!(a_new_file_passed_through).root(),
    ]
}

/// What a lower file holds at first.
const LOWER: usize = 10 << 20;
/// The longest that a file becomes.
const LONGEST: usize = LOWER + (1 << 20);
/// The most that one operation moves.
const STEP: usize = 64 << 10;
/// After so many operations on one file the next one starts: what the lower one held would all be overwritten.
const ROUND: usize = 5000;
/// How many operations a failure tells.
const TOLD: usize = 60;

fn a_lower_file() {
    exercise(&[], true);
}

fn a_lower_file_written_late() {
    exercise(&["-o", "io=cached"], true);
}

fn a_lower_file_without_caches() {
    exercise(&["-o", "timeout=0"], true);
}

fn a_lower_file_passed_through() {
    exercise(&["-o", "io=passthrough"], true);
}

fn a_new_file() {
    exercise(&[], false);
}

fn a_new_file_written_late() {
    exercise(&["-o", "io=cached"], false);
}

fn a_new_file_without_caches() {
    exercise(&["-o", "timeout=0"], false);
}

fn a_new_file_passed_through() {
    exercise(&["-o", "io=passthrough"], false);
}

fn exercise(options: &[&str], lower: bool) {
    let operations = setting("LAYERFS_STRESS_OPERATIONS", 2000) as usize;
    let rounds = operations.div_ceil(ROUND);
    let seed = seed();
    let mut random = Random::new(seed);
    for round in 0..rounds {
        let mut union = Union::new(1).arguments(options);
        let content = if lower { random.bytes(LOWER) } else { Vec::new() };
        let other = random.bytes(1 << 20);
        put(union.lower(0, "d/other"), &other);
        if lower {
            put(union.lower(0, "d/file"), &content);
        }
        let before = union.lower_trees();
        union.mount();
        if !lower {
            create_new(union.at("d/file"), 0o644);
        }
        let mut exerciser = Exerciser::new(union.at("d/file"), content, (union.at("d/other"), other), &mut random);
        for _ in 0..operations / rounds {
            if let Err(what) = exerciser.step() {
                exerciser.tell(seed, round);
                panic!("{what}");
            }
        }
        let content = exerciser.content.clone();
        drop(exerciser);
        union.remount();
        assert!(fs::read(union.at("d/file")).expect("read") == content, "another content after a remount, seed {seed}");
        union.umount();
        assert!(fs::read(union.upper("d/file")).expect("read") == content, "another content in upper, seed {seed}");
        union.assert_lowers(&before);
    }
}

struct Exerciser<'a> {
    random: &'a mut Random,
    path: PathBuf,
    file: File,
    /// Opened before the first change.
    early: File,
    /// What the file must hold.
    content: Vec<u8>,
    /// A lower file that is only read, and what it holds.
    other: (File, Vec<u8>),
    done: VecDeque<String>,
}

type Outcome = Result<(), String>;

impl<'a> Exerciser<'a> {
    fn new(path: PathBuf, content: Vec<u8>, other: (PathBuf, Vec<u8>), random: &'a mut Random) -> Exerciser<'a> {
        let (early, file) = (open(&path), edit(&path));
        Exerciser { random, path, file, early, content, other: (open(other.0), other.1), done: VecDeque::new() }
    }

    fn tell(&self, seed: u64, round: usize) {
        for line in &self.done {
            eprintln!("    {line}");
        }
        eprintln!("the operations above led to the failure; LAYERFS_STRESS_SEED={seed}, round {round}");
    }

    fn note(&mut self, line: String) {
        if self.done.len() == TOLD {
            self.done.pop_front();
        }
        self.done.push_back(line);
    }

    fn step(&mut self) -> Outcome {
        match self.random.below(100) {
            0..18 => self.read(),
            18..38 => self.write(),
            38..46 => self.read_mapped(),
            46..58 => self.write_mapped(),
            58..64 => self.truncate(),
            64..72 => self.punch(),
            72..76 => self.allocate(),
            76..84 => self.copy_within(),
            84..87 => self.copy_from_other(),
            87..92 => self.seek(),
            92..95 => self.sync(),
            95..97 => self.reopen(),
            97..99 => self.forget_pages(),
            _ => self.change_metadata(),
        }?;
        let size = done("fstat", self.file.metadata())?.size() as usize;
        expect(size == self.content.len(), || format!("the size is {size}, not {}", self.content.len()))
    }

    /// A part of the file as it is.
    fn part(&mut self) -> (usize, usize) {
        let at = self.random.below(self.content.len() + 1);
        (at, self.random.below(STEP.min(self.content.len() - at) + 1))
    }

    /// A part of the file as it may become.
    fn place(&mut self) -> (usize, usize) {
        // Often at the end, which it moves.
        let at = match self.random.one_in(8) {
            true => self.content.len().min(LONGEST - 1),
            false => self.random.below(LONGEST.min(self.content.len() + STEP)),
        };
        (at, 1 + self.random.below(STEP.min(LONGEST - at)))
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        self.grow(at + data.len());
        self.content[at..at + data.len()].copy_from_slice(data);
    }

    fn grow(&mut self, size: usize) {
        if size > self.content.len() {
            self.content.resize(size, 0);
        }
    }

    fn compare(&self, what: &str, at: usize, got: &[u8]) -> Outcome {
        let wanted = &self.content[at..at + got.len()];
        match got.iter().zip(wanted).position(|(got, wanted)| got != wanted) {
            None => Ok(()),
            Some(first) => {
                let wrong = got.iter().zip(wanted).filter(|(got, wanted)| got != wanted).count();
                Err(format!("{what} at {at}: {wrong} of {} bytes are wrong, first {}", got.len(), at + first))
            }
        }
    }

    fn read(&mut self) -> Outcome {
        let (at, length) = self.part();
        let early = self.random.one_in(3);
        self.note(format!("read {length} at {at}{}", if early { " by the early descriptor" } else { "" }));
        let mut got = vec![0; length];
        done("read", if early { &self.early } else { &self.file }.read_exact_at(&mut got, at as u64))?;
        self.compare("read", at, &got)
    }

    fn write(&mut self) -> Outcome {
        let (at, length) = self.place();
        self.note(format!("write {length} at {at}"));
        let data = self.random.bytes(length);
        done("write", self.file.write_all_at(&data, at as u64))?;
        self.put(at, &data);
        Ok(())
    }

    fn read_mapped(&mut self) -> Outcome {
        let (at, length) = self.part();
        if length == 0 {
            return Ok(());
        }
        self.note(format!("read {length} at {at} by a mapping"));
        let map = done("mmap", SharedMap::new(&self.early, at + length, false))?;
        self.compare("mapping", at, &map.read_at(at, length))
    }

    fn write_mapped(&mut self) -> Outcome {
        let (at, length) = self.part();
        if length == 0 {
            return Ok(());
        }
        let sync = self.random.one_in(2);
        self.note(format!("write {length} at {at} by a mapping{}", if sync { ", msync" } else { "" }));
        let map = done("mmap", SharedMap::new(&self.file, at + length, true))?;
        let data = self.random.bytes(length);
        map.write(at, &data);
        if sync {
            done("msync", map.sync())?;
        }
        self.put(at, &data);
        Ok(())
    }

    fn truncate(&mut self) -> Outcome {
        let near = self.content.len().saturating_sub(STEP) + self.random.below(2 * STEP);
        let size = if self.random.one_in(20) { self.random.below(LONGEST) } else { near.min(LONGEST) };
        let by_name = self.random.one_in(2);
        self.note(format!("truncate to {size}{}", if by_name { " by name" } else { "" }));
        match by_name {
            true => done("truncate", nix::unistd::truncate(&self.path, size as i64))?,
            false => done("ftruncate", self.file.set_len(size as u64))?,
        }
        self.content.resize(size, 0);
        Ok(())
    }

    /// Makes zeros, by a hole or, where upper's filesystem can, without one.
    fn punch(&mut self) -> Outcome {
        let (at, length) = self.place();
        let hole = self.random.below(4) > 0;
        let keep = hole || self.random.one_in(2);
        self.note(format!("{} {length} at {at}, keep size: {keep}", if hole { "punch" } else { "zero" }));
        let mut flags = if hole { FallocateFlags::FALLOC_FL_PUNCH_HOLE } else { FallocateFlags::FALLOC_FL_ZERO_RANGE };
        flags.set(FallocateFlags::FALLOC_FL_KEEP_SIZE, keep);
        match fallocate(&self.file, flags, at as i64, length as i64) {
            Err(Errno::EOPNOTSUPP) if !hole => return Ok(()),
            result => done("fallocate", result)?,
        }
        if !keep {
            self.grow(at + length);
        }
        let end = (at + length).min(self.content.len());
        if at < end {
            self.content[at..end].fill(0);
        }
        Ok(())
    }

    fn allocate(&mut self) -> Outcome {
        let (at, length) = self.place();
        let keep = self.random.one_in(2);
        self.note(format!("allocate {length} at {at}, keep size: {keep}"));
        let flags = if keep { FallocateFlags::FALLOC_FL_KEEP_SIZE } else { FallocateFlags::empty() };
        done("fallocate", fallocate(&self.file, flags, at as i64, length as i64))?;
        if !keep {
            self.grow(at + length);
        }
        Ok(())
    }

    fn copy_within(&mut self) -> Outcome {
        let (from, length) = self.part();
        let (to, most) = self.place();
        let length = length.min(most);
        if length == 0 || from < to + length && to < from + length {
            return Ok(());
        }
        self.note(format!("copy {length} from {from} to {to}"));
        let copied = done("copy_file_range", copy_range(&self.file, from as i64, &self.file, to as i64, length))?;
        expect(copied > 0, || "nothing was copied".to_owned())?;
        let data = self.content[from..from + copied].to_vec();
        self.put(to, &data);
        Ok(())
    }

    fn copy_from_other(&mut self) -> Outcome {
        let (to, length) = self.place();
        let from = self.random.below(self.other.1.len());
        self.note(format!("copy {length} from {from} of the other file to {to}"));
        let copied = done("copy_file_range", copy_range(&self.other.0, from as i64, &self.file, to as i64, length))?;
        expect(copied > 0, || "nothing was copied".to_owned())?;
        let data = self.other.1[from..from + copied].to_vec();
        self.put(to, &data);
        Ok(())
    }

    /// What is told to be a hole reads as zeros.
    fn seek(&mut self) -> Outcome {
        let (at, _) = self.part();
        self.note(format!("seek data and hole from {at}"));
        let size = self.content.len();
        if at == size {
            return Ok(());
        }
        let hole = done("SEEK_HOLE", lseek(&self.file, at as i64, Whence::SeekHole))? as usize;
        expect((at..=size).contains(&hole), || format!("a hole at {hole}"))?;
        for start in [at, hole] {
            let data = match lseek(&self.file, start as i64, Whence::SeekData) {
                Err(Errno::ENXIO) => size,
                result => done("SEEK_DATA", result)? as usize,
            };
            expect((start..=size).contains(&data), || format!("data from {start} at {data}"))?;
            let written = self.content[start..data].iter().position(|byte| *byte != 0);
            expect(written.is_none(), || format!("no data from {start} to {data}, but at {written:?} after {start}"))?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Outcome {
        let data_only = self.random.one_in(2);
        self.note(format!("sync, data only: {data_only}"));
        match data_only {
            true => done("fdatasync", fdatasync(&self.file)),
            false => done("fsync", self.file.sync_all()),
        }
    }

    fn reopen(&mut self) -> Outcome {
        self.note("close and open".to_owned());
        self.file = done("open", OpenOptions::new().read(true).write(true).open(&self.path))?;
        let mut got = Vec::new();
        if self.random.one_in(20) {
            self.note("read it all".to_owned());
            got = done("read", fs::read(&self.path))?;
            expect(got.len() == self.content.len(), || format!("{} bytes were read", got.len()))?;
        }
        self.compare("the whole file", 0, &got)
    }

    fn forget_pages(&mut self) -> Outcome {
        self.note("drop the cached pages".to_owned());
        done("posix_fadvise", posix_fadvise(&self.early, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED))
    }

    fn change_metadata(&mut self) -> Outcome {
        self.note("chmod, and rename back and forth".to_owned());
        chmod(&self.path, *self.random.choose(&[0o600, 0o644, 0o755]));
        let aside = Path::new(&self.path).with_extension("aside");
        done("rename", fs::rename(&self.path, &aside))?;
        done("rename", fs::rename(&aside, &self.path))
    }
}

fn done<T, E: Debug>(what: &str, result: Result<T, E>) -> Result<T, String> {
    result.map_err(|e| format!("{what}: {e:?}"))
}

fn expect(holds: bool, what: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(what()) }
}
