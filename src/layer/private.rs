//! Marks that an object can't carry itself: symlinks, fifos, sockets and devices take no `user.*` attribute.
//!
//! `W/layerfs/marks` is a log of records, appended to and read whole at mount: length, checksum, bincode. A torn tail is
//! what a crash left: it is cut off. The object is named by its file handle, so a number used again is another object.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::error::{Errno, Result};
use crate::layer::marks::Mark;
use crate::name::Name;
use crate::sys::handle::{self, FileHandle};

/// Changes whenever `Record` or its encoding does.
const VERSION: u8 = 1;
/// Length and checksum before each record, in bytes.
const HEADER: usize = 12;
/// The longest record that is believed.
const MAX_RECORD: usize = 64 * 1024;

#[derive(Serialize, Deserialize, Debug, PartialEq, Eq)]
struct Record {
    version: u8,
    handle_kind: i32,
    handle: Vec<u8>,
    mark: u8,
    value: Vec<u8>,
}

type Key = (FileHandle, u8);

/// The marks of one work directory.
#[derive(Debug)]
pub(super) struct PrivateMarks(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    log: Option<File>,
    marks: HashMap<Key, Vec<u8>>,
}

impl PrivateMarks {
    /// Reads the log in `dir`; it is made at the first mark.
    pub(super) fn open(dir: BorrowedFd<'_>) -> Result<Self> {
        let mut inner = Inner { log: None, marks: HashMap::new() };
        match open_log(dir, OFlag::empty()) {
            Ok(mut log) => {
                let mut bytes = Vec::new();
                log.read_to_end(&mut bytes).map_err(errno)?;
                let sound = replay(&bytes, &mut inner.marks);
                if sound < bytes.len() {
                    log::warn!("marks: {} bytes at the end of the log were torn by a crash", bytes.len() - sound);
                    log.set_len(sound as u64).map_err(errno)?;
                }
                inner.log = Some(log);
            }
            Err(Errno::ENOENT) => {}
            Err(e) => return Err(e),
        }
        Ok(Self(Mutex::new(inner)))
    }

    /// A mark of `name` in a directory of upper.
    pub(super) fn get(&self, dir: BorrowedFd<'_>, name: &Name, mark: Mark) -> Option<Vec<u8>> {
        if self.0.lock().marks.is_empty() {
            return None;
        }
        self.get_handle(&handle::of(dir, name.as_cstr()).ok()?, mark)
    }

    /// A mark of the object with a handle.
    pub(super) fn get_handle(&self, handle: &FileHandle, mark: Mark) -> Option<Vec<u8>> {
        self.0.lock().marks.get(&(handle.clone(), code(mark)?)).cloned()
    }

    /// Whether any object has a mark.
    pub(super) fn has(&self, mark: Mark) -> bool {
        self.0.lock().marks.keys().any(|(_, m)| Some(*m) == code(mark))
    }

    /// Sets a mark of the object behind a descriptor.
    pub(super) fn set(&self, dir: BorrowedFd<'_>, object: BorrowedFd<'_>, mark: Mark, value: &[u8]) -> Result<()> {
        self.set_handle(dir, &handle::of(object, c"")?, mark, value)
    }

    /// Sets a mark of the object with a handle.
    pub(super) fn set_handle(&self, dir: BorrowedFd<'_>, handle: &FileHandle, mark: Mark, value: &[u8]) -> Result<()> {
        let mark = code(mark).ok_or(Errno::EOPNOTSUPP)?;
        let record = Record {
            version: VERSION,
            handle_kind: handle.kind,
            handle: handle.bytes.clone(),
            mark,
            value: value.to_vec(),
        };
        let mut inner = self.0.lock();
        if inner.log.is_none() {
            inner.log = Some(open_log(dir, OFlag::O_CREAT)?);
        }
        let log = inner.log.as_mut().ok_or(Errno::EIO)?;
        log.write_all(&encode(&record)?).map_err(errno)?;
        inner.marks.insert((handle.clone(), mark), value.to_vec());
        Ok(())
    }
}

/// The marks that stand here, and how.
fn code(mark: Mark) -> Option<u8> {
    match mark {
        Mark::Origin => Some(1),
        Mark::Redirect => Some(2),
        Mark::Nlink => Some(3),
        Mark::Covered => Some(4),
        _ => None,
    }
}

fn open_log(dir: BorrowedFd<'_>, flags: OFlag) -> Result<File> {
    let flags = flags | OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let dir = nix::fcntl::openat(dir, c".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    nix::fcntl::openat(dir.as_fd(), c"marks", flags, Mode::S_IRUSR | Mode::S_IWUSR).map(File::from)
}

fn errno(e: std::io::Error) -> Errno {
    e.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// FNV-1a: tells a torn record from a whole one.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

fn encode(record: &Record) -> Result<Vec<u8>> {
    let body = bincode::serde::encode_to_vec(record, bincode::config::standard()).map_err(|_| Errno::EIO)?;
    let len = u32::try_from(body.len()).map_err(|_| Errno::E2BIG)?;
    Ok([&len.to_le_bytes()[..], &checksum(&body).to_le_bytes(), &body].concat())
}

/// Applies the sound records of a log and returns how many bytes they take.
fn replay(bytes: &[u8], marks: &mut HashMap<Key, Vec<u8>>) -> usize {
    let mut at = 0;
    while let Some((record, len)) = decode(bytes.get(at..).unwrap_or_default()) {
        let handle = FileHandle { kind: record.handle_kind, bytes: record.handle };
        marks.insert((handle, record.mark), record.value);
        at += len;
    }
    at
}

fn decode(bytes: &[u8]) -> Option<(Record, usize)> {
    let len = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let sum = u64::from_le_bytes(bytes.get(4..HEADER)?.try_into().ok()?);
    let body = bytes.get(HEADER..HEADER.checked_add(len).filter(|_| len <= MAX_RECORD)?)?;
    if checksum(body) != sum {
        return None;
    }
    let config = bincode::config::standard().with_limit::<MAX_RECORD>();
    let (record, _): (Record, usize) = bincode::serde::decode_from_slice(body, config).ok()?;
    (record.version == VERSION).then_some((record, HEADER + len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u8) -> Record {
        Record { version: VERSION, handle_kind: 1, handle: vec![n; 8], mark: 1, value: vec![n; 30] }
    }

    #[test]
    fn a_torn_tail_is_ignored() {
        let mut log = encode(&record(1)).unwrap();
        let whole = log.len();
        log.extend(encode(&record(2)).unwrap());
        for cut in 0..log.len() {
            let mut marks = HashMap::new();
            let sound = replay(&log[..cut], &mut marks);
            assert_eq!(sound, if cut < whole { 0 } else { whole });
            assert_eq!(marks.len(), usize::from(cut >= whole));
        }
    }

    #[test]
    fn a_flipped_bit_ends_the_log() {
        let good = encode(&record(1)).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert_eq!(replay(&bad, &mut HashMap::new()), 0, "byte {at}");
        }
    }
}
