//! Files that are opened, mapped, copied up, renamed and deleted by several threads at once: each file has one content, whoever
//! looks at it by which descriptor or mapping, and no operation fails.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::common::Test;
use crate::common::files::*;
use crate::common::sys::SharedMap;
use crate::common::union::Union;
use crate::random::Random;
use crate::{seed, setting, t};

pub fn tests() -> Vec<Test> {
    vec![
        t!(opens_of_all_kinds),
        t!(opens_of_all_kinds_written_late),
        t!(opens_of_all_kinds_without_caches),
        t!(opens_of_all_kinds_that_pass_through).root(),
    ]
}

const THREADS: usize = 4;
/// How many files are open to be used at a time.
const SUBJECTS: usize = 6;
/// The most files that a thread has open.
const HANDLES: usize = 8;
/// How many lower files there are; those that come after them are new.
const LOWER: usize = 3000;
const PAGE: usize = 4096;
const PAGES: usize = 5;

fn opens_of_all_kinds() {
    stress(&[]);
}

fn opens_of_all_kinds_written_late() {
    stress(&["-o", "io=cached"]);
}

fn opens_of_all_kinds_without_caches() {
    stress(&["-o", "timeout=0"]);
}

fn opens_of_all_kinds_that_pass_through() {
    stress(&["-o", "io=passthrough"]);
}

/// A file, and the number that each of its pages starts with.
struct Subject {
    path: RwLock<PathBuf>,
    pages: Mutex<[u64; PAGES]>,
}

struct Handle {
    subject: Arc<Subject>,
    file: File,
    reads: bool,
    writes: bool,
    map: Option<SharedMap>,
}

struct Scene {
    union: Union,
    subjects: [RwLock<Arc<Subject>>; SUBJECTS],
    next: AtomicUsize,
}

fn stress(options: &[&str]) {
    let seed = seed();
    println!("seed {seed}");
    let mut union = Union::new(2).arguments(options);
    for number in 0..LOWER {
        put(union.lower(number % 2, &name_of(number)), page_bytes(number as u64).repeat(PAGES));
    }
    let before = union.lower_trees();
    union.mount();
    let first = |number: usize| RwLock::new(Arc::new(subject(&union, number)));
    let subjects = std::array::from_fn(first);
    let mut scene = Scene { union, subjects, next: AtomicUsize::new(SUBJECTS) };
    let deadline = Instant::now() + Duration::from_secs(setting("LAYERFS_STRESS_SECONDS", 5));
    thread::scope(|scope| {
        for thread in 0..THREADS as u64 {
            let scene = &scene;
            scope.spawn(move || scene.run(Random::new(seed.wrapping_add(thread)), deadline));
        }
    });
    println!("{} files were used", scene.next.load(Ordering::Relaxed));
    for subject in &scene.subjects {
        let subject = subject.read().clone();
        let expected: Vec<u8> = subject.pages.lock().iter().flat_map(|number| page_bytes(*number)).collect();
        assert!(fs::read(&*subject.path.read()).expect("read") == expected, "{:?}", subject.path.read());
    }
    scene.union.umount();
    scene.union.assert_lowers(&before);
}

fn name_of(number: usize) -> String {
    format!("dir{}/{number}", number % 7)
}

fn subject(union: &Union, number: usize) -> Subject {
    Subject { path: RwLock::new(union.at(&name_of(number))), pages: Mutex::new([number as u64; PAGES]) }
}

/// A page that tells its number at both ends.
fn page_bytes(number: u64) -> Vec<u8> {
    let mut page = vec![b'.'; PAGE];
    page[..8].copy_from_slice(&number.to_ne_bytes());
    page[PAGE - 8..].copy_from_slice(&number.to_ne_bytes());
    page
}

impl Scene {
    fn run(&self, mut random: Random, deadline: Instant) {
        let mut handles: Vec<Handle> = Vec::new();
        while Instant::now() < deadline {
            match random.below(20) {
                0..5 if handles.len() < HANDLES => handles.extend(self.open(&mut random)),
                5..8 if !handles.is_empty() => drop(handles.swap_remove(random.below(handles.len()))),
                8 if random.one_in(4) => self.replace(&mut random),
                9 if random.one_in(2) => self.rename(&mut random),
                10 => self.change_mode(&mut random),
                _ if !handles.is_empty() => {
                    let handle = &handles[random.below(handles.len())];
                    handle.step(&mut random);
                }
                _ => {}
            }
        }
    }

    fn choose(&self, random: &mut Random) -> Arc<Subject> {
        self.subjects[random.below(SUBJECTS)].read().clone()
    }

    /// Opens a file in some way; `None` if it has just got another name or been deleted.
    fn open(&self, random: &mut Random) -> Option<Handle> {
        let subject = self.choose(random);
        let (reads, writes) = *random.choose(&[(true, false), (true, false), (true, true), (false, true)]);
        let path = subject.path.read().clone();
        let file = found(OpenOptions::new().read(reads).write(writes).open(&path), "open")?;
        let map = (reads && random.one_in(2)).then(|| SharedMap::new(&file, PAGES * PAGE, writes).expect("mmap"));
        Some(Handle { subject, file, reads, writes, map })
    }

    /// Deletes a file that may be open, and goes on with the next one.
    fn replace(&self, random: &mut Random) {
        let mut place = self.subjects[random.below(SUBJECTS)].write();
        fs::remove_file(&*place.path.read()).expect("remove");
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let next = subject(&self.union, number);
        if number >= LOWER {
            put(&*next.path.read(), page_bytes(number as u64).repeat(PAGES));
        }
        *place = Arc::new(next);
    }

    fn rename(&self, random: &mut Random) {
        // Nobody deletes it meanwhile.
        let place = self.subjects[random.below(SUBJECTS)].read();
        let mut path = place.path.write();
        let to = self.union.at(&format!("dir{}/renamed-{}", random.below(7), random.next()));
        fs::rename(&*path, &to).expect("rename");
        *path = to;
    }

    fn change_mode(&self, random: &mut Random) {
        let subject = self.choose(random);
        let path = subject.path.read();
        found(fs::set_permissions(&*path, Permissions::from_mode(0o600 + random.below(8) as u32)), "chmod");
    }
}

/// What came of an operation by name, unless the name was gone.
fn found<T>(result: Result<T, Error>, what: &str) -> Option<T> {
    match result {
        Ok(done) => Some(done),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => panic!("{what}: {e}"),
    }
}

impl Handle {
    fn step(&self, random: &mut Random) {
        let mut pages = self.subject.pages.lock();
        let page = random.below(PAGES);
        match random.below(12) {
            0 => assert_eq!(self.file.metadata().expect("fstat").len(), (PAGE * PAGES) as u64),
            1 => self.file.sync_data().expect("fdatasync"),
            2 if self.writes => {
                self.file.set_len(0).expect("truncate");
                self.file.write_all_at(&page_bytes(1).repeat(PAGES), 0).expect("write");
                *pages = [1; PAGES];
            }
            3..7 if self.writes => {
                pages[page] = random.next();
                self.write(page, pages[page], random);
            }
            _ => self.read(page, pages[page]),
        }
    }

    fn write(&self, page: usize, number: u64, random: &mut Random) {
        let bytes = page_bytes(number);
        match &self.map {
            Some(map) if random.one_in(2) => map.write(page * PAGE, &bytes),
            _ => self.file.write_all_at(&bytes, (page * PAGE) as u64).expect("write"),
        }
    }

    fn read(&self, page: usize, number: u64) {
        let expected = page_bytes(number);
        if let Some(map) = &self.map {
            assert!(map.read_at(page * PAGE, PAGE) == expected, "page {page} by a mapping");
        }
        if self.reads {
            let mut bytes = vec![0; PAGE];
            self.file.read_exact_at(&mut bytes, (page * PAGE) as u64).expect("read");
            assert!(bytes == expected, "page {page} by a descriptor");
        }
    }
}
