//! Records in a file that a crash may tear: length, checksum, body. What follows the last sound record is ignored.

use std::os::fd::BorrowedFd;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Errno, Result};
use crate::sys;

/// Length and checksum before each record, in bytes.
const HEADER: usize = 12;
/// The longest record that is believed.
const MAX_RECORD: usize = 64 * 1024;

/// Encodes a record.
pub(super) fn encode(record: &impl Serialize) -> Result<Vec<u8>> {
    let body = bincode::serde::encode_to_vec(record, bincode::config::standard()).map_err(|_| Errno::EIO)?;
    frame(&body)
}

/// Puts length and checksum before a record.
pub(super) fn frame(body: &[u8]) -> Result<Vec<u8>> {
    let len = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_RECORD).ok_or(Errno::E2BIG)?;
    Ok([&len.to_le_bytes()[..], &checksum(body).to_le_bytes(), body].concat())
}

/// The record at the start of `bytes`, and how many bytes it takes; `None` where there is no sound one.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<(T, usize)> {
    let len = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let sum = u64::from_le_bytes(bytes.get(4..HEADER)?.try_into().ok()?);
    let body = bytes.get(HEADER..HEADER.checked_add(len).filter(|_| len <= MAX_RECORD)?)?;
    if checksum(body) != sum {
        return None;
    }
    let config = bincode::config::standard().with_limit::<MAX_RECORD>();
    let (record, _): (T, usize) = bincode::serde::decode_from_slice(body, config).ok()?;
    Some((record, HEADER + len))
}

/// FNV-1a: tells a torn record from a whole one.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// Everything that a file of records holds.
pub(super) fn read(log: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; MAX_RECORD];
    loop {
        let n = sys::posix::pread(log, &mut buffer, bytes.len() as i64)?;
        match buffer.get(..n).unwrap_or_default() {
            [] => return Ok(bytes),
            read => bytes.extend_from_slice(read),
        }
    }
}

/// Writes records at an offset; returns where they end.
pub(super) fn write(log: BorrowedFd<'_>, mut records: &[u8], mut at: usize) -> Result<usize> {
    while !records.is_empty() {
        let n = sys::posix::pwrite(log, records, at as i64)?;
        at += n;
        records = records.get(n..).unwrap_or_default();
    }
    Ok(at)
}
