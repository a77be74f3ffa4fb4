//! Tests: requests as bytes, without a kernel.

use std::fs;
use std::sync::{Arc, OnceLock};

use proptest::prelude::*;

use crate::error::{Errno, Result};
use crate::fuse::capabilities::Granted;
use crate::fuse::operations::Operations;
use crate::fuse::ring::abi::opcode;
use crate::fuse::ring::requests;
use crate::fuse::survival;
use crate::sys::uring::{ARGUMENTS, IN_HEADER, Request};
use crate::union::{Options, Union};

/// The root's number.
const ROOT: u64 = 1;

/// A union of one lower and an upper in a directory of its own, asked as the kernel asks.
struct Asked {
    operations: Operations,
    place: tempfile::TempDir,
}

impl Asked {
    fn new() -> Self {
        survival::spare_this_thread();
        let place = tempfile::tempdir().unwrap();
        let spec = survival::layers_in(place.path());
        fs::create_dir(spec.lowers[0].join("dir")).unwrap();
        fs::write(spec.lowers[0].join("file"), "content").unwrap();
        let union = Arc::new(Union::open(&spec, Options::default()).unwrap());
        let operations = Operations::new(union, None, &Arc::new(OnceLock::new())).unwrap();
        operations.agree(Granted { no_open: true, ..Granted::default() });
        Self { operations, place }
    }

    /// The answer's bytes.
    fn ask(&self, opcode: u32, node: u64, arguments: &[u8], rest: &[u8]) -> Result<Vec<u8>> {
        let mut header = [0; IN_HEADER];
        header[4..8].copy_from_slice(&opcode.to_ne_bytes());
        header[16..24].copy_from_slice(&node.to_ne_bytes());
        let mut fixed = [0; ARGUMENTS];
        fixed[..arguments.len()].copy_from_slice(arguments);
        let mut payload = vec![0; 8192];
        payload[..rest.len()].copy_from_slice(rest);
        let request = Request { header: &header, arguments: &fixed, payload: &mut payload, len: rest.len() };
        let len = requests::serve(&self.operations, request, || panic!("it waits"))?;
        payload.truncate(len);
        Ok(payload)
    }

    /// The number of a name in the root.
    fn node(&self, name: &str) -> u64 {
        let entry = self.ask(opcode::LOOKUP, ROOT, &[], &[name.as_bytes(), b"\0"].concat()).unwrap();
        u64_at(&entry, 0)
    }
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_ne_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Offsets as in include/uapi/linux/fuse.h: an entry is 40 bytes before its attributes, those are 88.
const SIZE_IN_ENTRY: usize = 40 + 8;
const MODE_IN_ENTRY: usize = 40 + 60;

#[test]
fn a_name_is_found_with_its_attributes() {
    let asked = Asked::new();
    let entry = asked.ask(opcode::LOOKUP, ROOT, &[], b"file\0").unwrap();
    assert_eq!(entry.len(), 128);
    assert_eq!(u64_at(&entry, 0), u64_at(&entry, 40), "a node's number is its inode's");
    assert_eq!(u64_at(&entry, SIZE_IN_ENTRY), 7);
    assert_eq!(u32_at(&entry, MODE_IN_ENTRY) & libc::S_IFMT, libc::S_IFREG);
    let missing = asked.ask(opcode::LOOKUP, ROOT, &[], b"none\0").unwrap();
    assert_eq!((missing.len(), u64_at(&missing, 0)), (128, 0), "remembered as missing");
    assert!(u64_at(&missing, 16) > 0, "for a while");
}

#[test]
fn data_goes_both_ways() {
    let asked = Asked::new();
    let file = asked.node("file");
    let (handle, offset) = (words(&[0, 0]), words(&[3, 0]));
    let size = words(&[100, 0]);
    let read = asked.ask(opcode::READ, file, &[&handle[..], &offset, &size].concat(), b"").unwrap();
    assert_eq!(read, b"tent");
    let size = words(&[2, 0]);
    let written = asked.ask(opcode::WRITE, file, &[&handle[..], &offset, &size].concat(), b"XYZ").unwrap();
    assert_eq!((written.len(), u32_at(&written, 0)), (8, 2), "not more than it says");
    assert_eq!(fs::read(asked.place.path().join("upper/file")).unwrap(), b"conXYnt");
}

#[test]
fn a_listing_fits_its_room() {
    let asked = Asked::new();
    let mut names = Vec::new();
    let mut offset = 0;
    loop {
        let arguments = [words(&[0, 0]), u64::to_ne_bytes(offset).to_vec(), words(&[64, 0])].concat();
        let records = asked.ask(opcode::READDIR, ROOT, &arguments, b"").unwrap();
        assert!(records.len() <= 64 && records.len().is_multiple_of(8));
        let mut rest = &records[..];
        while !rest.is_empty() {
            offset = u64_at(rest, 8);
            let len = u32_at(rest, 16) as usize;
            names.push(String::from_utf8(rest[24..24 + len].to_vec()).unwrap());
            rest = &rest[(24 + len).next_multiple_of(8)..];
        }
        if records.is_empty() {
            break;
        }
    }
    names.sort();
    assert_eq!(names, [".", "..", "dir", "file"]);
}

#[test]
fn what_an_attribute_has_room_for() {
    let asked = Asked::new();
    let file = asked.node("file");
    asked.ask(opcode::SETXATTR, file, &words(&[5, 0]), b"user.x\0value").unwrap();
    let get = |room: u32| asked.ask(opcode::GETXATTR, file, &words(&[room, 0]), b"user.x\0");
    assert_eq!(get(5), Ok(b"value".to_vec()));
    assert_eq!(get(4), Err(Errno::ERANGE));
    assert_eq!(get(0), Ok(words(&[5, 0])));
    let list = asked.ask(opcode::LISTXATTR, file, &words(&[100, 0]), b"");
    assert_eq!(list, Ok(b"user.x\0".to_vec()));
}

/// What is known without the file's pages is answered at once: here nobody could write them.
#[test]
fn seeks_that_wait_for_nothing() {
    let asked = Asked::new();
    let file = asked.node("file");
    let seek = |offset: i64, whence: i32| {
        let arguments = [words(&[0, 0]), offset.to_ne_bytes().to_vec(), words(&[whence.cast_unsigned(), 0])].concat();
        asked.ask(opcode::LSEEK, file, &arguments, b"").map(|at| u64_at(&at, 0))
    };
    assert_eq!(seek(3, libc::SEEK_DATA), Ok(3));
    assert_eq!(seek(3, libc::SEEK_HOLE), Ok(7));
    for whence in [libc::SEEK_DATA, libc::SEEK_HOLE] {
        assert_eq!(seek(7, whence), Err(Errno::ENXIO));
        assert_eq!(seek(100, whence), Err(Errno::ENXIO));
    }
    assert_eq!(seek(0, libc::SEEK_SET), Err(Errno::EINVAL));
}

#[test]
fn the_kernel_need_not_ask_again() {
    let asked = Asked::new();
    let (flush, access, poll) = (25, 34, 40);
    for opcode in [opcode::OPEN, flush, access, poll, 4096] {
        assert_eq!(asked.ask(opcode, asked.node("file"), &[], b""), Err(Errno::ENOSYS), "{opcode}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// The kernel sends none of this: whatever came would be an answer or an error, and the daemon lives on.
    #[test]
    fn any_bytes_have_an_answer(
        opcode in 0..64_u32,
        node in 0..4_u64,
        arguments in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), any::<u8>()], 0..=ARGUMENTS),
        rest in prop::collection::vec(prop_oneof![Just(0_u8), Just(b'f'), any::<u8>()], 0..300),
    ) {
        thread_local!(static ASKED: Asked = Asked::new());
        ASKED.with(|asked| {
            let node = if node == 3 { asked.node("file") } else { node };
            // There is nobody to wait for.
            let opcode = if opcode == self::opcode::LSEEK { self::opcode::LOOKUP } else { opcode };
            if let Ok(answer) = asked.ask(opcode, node, &arguments, &rest) {
                assert!(answer.len() <= 8192);
            }
        });
    }
}
