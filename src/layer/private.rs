//! Marks that an object can't carry itself: symlinks, fifos, sockets and devices take no `user.*` attribute.
//!
//! `W/layerfs/marks` is a log of records, appended to and read whole at mount: length, checksum, bincode. A torn tail is
//! what a crash left: the next record is written over it. The object is named by its file handle, so a number used again is another object.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::error::{Errno, Result};
use crate::layer::marks::Mark;
use crate::layer::records;
use crate::name::Name;
use crate::sys;
use crate::sys::handle::{self, FileHandle};

/// Changes whenever `Record` or its encoding does.
const VERSION: u8 = 1;

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
    log: Option<OwnedFd>,
    /// The length of the log's sound records: the next one goes there, over what is left of one that failed.
    end: usize,
    /// Records that could not be written yet.
    pending: Vec<u8>,
    marks: HashMap<Key, Vec<u8>>,
}

impl PrivateMarks {
    /// Reads the log in `dir`; it is made at the first mark.
    pub(super) fn open(dir: BorrowedFd<'_>) -> Result<Self> {
        let mut inner = Inner { log: None, end: 0, pending: Vec::new(), marks: HashMap::new() };
        match open_log(dir, OFlag::empty()) {
            Ok(log) => {
                let bytes = records::read(log.as_fd())?;
                inner.end = replay(&bytes, &mut inner.marks);
                if inner.end < bytes.len() {
                    log::warn!("marks: {} bytes at the end of the log were torn by a crash", bytes.len() - inner.end);
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
        let record = encode(handle, mark, value)?;
        let mut inner = self.0.lock();
        inner.write_pending(dir)?;
        inner.write(dir, &record)?;
        inner.marks.insert((handle.clone(), mark), value.to_vec());
        Ok(())
    }

    /// Sets a mark that tells of something that has happened already. What can't be written now is written with the next
    /// mark, or at the end.
    pub(super) fn set_by_and_by(&self, dir: BorrowedFd<'_>, handle: &FileHandle, mark: Mark, value: &[u8]) {
        let Some(mark) = code(mark) else { return };
        let Ok(record) = encode(handle, mark, value) else { return };
        let mut inner = self.0.lock();
        inner.marks.insert((handle.clone(), mark), value.to_vec());
        inner.pending.extend_from_slice(&record);
        if let Err(e) = inner.write_pending(dir) {
            log::warn!("a mark can't be written down yet: {e}");
        }
    }

    /// Writes down what could not be written before.
    pub(super) fn finish(&self, dir: BorrowedFd<'_>) -> Result<()> {
        self.0.lock().write_pending(dir)
    }
}

impl Inner {
    fn write_pending(&mut self, dir: BorrowedFd<'_>) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        self.write(dir, &pending).inspect_err(|_| self.pending = pending)
    }

    fn write(&mut self, dir: BorrowedFd<'_>, marks: &[u8]) -> Result<()> {
        if self.log.is_none() {
            self.log = Some(open_log(dir, OFlag::O_CREAT)?);
        }
        let log = self.log.as_ref().ok_or(Errno::EIO)?;
        self.end = records::write(log.as_fd(), marks, self.end)?;
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

fn open_log(dir: BorrowedFd<'_>, flags: OFlag) -> Result<OwnedFd> {
    let flags = flags | OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let dir = sys::posix::openat(dir, c".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    sys::posix::openat(dir.as_fd(), c"marks", flags, Mode::S_IRUSR | Mode::S_IWUSR)
}

fn encode(handle: &FileHandle, mark: u8, value: &[u8]) -> Result<Vec<u8>> {
    let (handle_kind, handle) = (handle.kind, handle.bytes.clone());
    let record = Record { version: VERSION, handle_kind, handle, mark, value: value.to_vec() };
    records::encode(&record)
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

/// How many bytes of a log are sound, for `tests/fuzz`.
#[cfg(fuzzing)]
pub fn sound_bytes(log: &[u8]) -> usize {
    replay(log, &mut HashMap::new())
}

/// A log of one record, for `tests/fuzz`.
#[cfg(fuzzing)]
pub fn framed(record: &[u8]) -> Vec<u8> {
    records::frame(record).unwrap_or_default()
}

fn decode(bytes: &[u8]) -> Option<(Record, usize)> {
    records::decode(bytes).filter(|(record, _): &(Record, usize)| record.version == VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u8) -> Vec<u8> {
        encode(&FileHandle { kind: 1, bytes: vec![n; 8] }, 1, &[n; 30]).unwrap()
    }

    #[test]
    fn a_torn_tail_is_ignored() {
        let mut log = record(1);
        let whole = log.len();
        log.extend(record(2));
        for cut in 0..log.len() {
            let mut marks = HashMap::new();
            let sound = replay(&log[..cut], &mut marks);
            assert_eq!(sound, if cut < whole { 0 } else { whole });
            assert_eq!(marks.len(), usize::from(cut >= whole));
        }
    }

    #[test]
    fn a_flipped_bit_ends_the_log() {
        let good = record(1);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert_eq!(replay(&bad, &mut HashMap::new()), 0, "byte {at}");
        }
    }
}
