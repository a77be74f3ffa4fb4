//! Reading and writing: offsets, holes, allocation, copying within the kernel.

use std::fs;
use std::io::{IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

use crate::common::Test;
use crate::common::files::*;
use crate::common::sys::{SharedMap, copy_range as copy};
use crate::common::union::everywhere;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(offsets_and_holes),
        t!(large_blocks),
        t!(vectors),
        t!(allocation),
        t!(allocation_errors),
        t!(punched_holes),
        t!(data_and_holes_are_found),
        t!(what_was_just_written_is_no_hole),
        t!(what_a_mapping_has_written_is_no_hole),
        t!(ranges_are_copied),
        t!(files_are_copied_by_std),
        t!(mappings_are_written_back),
        t!(writes_of_many_sizes),
    ]
}

fn offsets_and_holes() {
    everywhere(
        |dir| put(dir.join("file"), "0123456789"),
        |dir| {
            let mut file = edit(dir.join("file"));
            file.write_all_at(b"far", 1 << 33).expect("write");
            assert_eq!(stat(dir.join("file")).len(), (1 << 33) + 3);
            assert!(stat(dir.join("file")).blocks() < 1000, "a sparse file");
            let mut bytes = [1; 20];
            file.read_exact_at(&mut bytes, 5).expect("read");
            assert_eq!(&bytes[..6], b"56789\0");
            assert_eq!(bytes[6..], [0; 14]);
            assert_eq!(file.seek(SeekFrom::End(-3)).expect("seek"), 1 << 33);
            let mut end = String::new();
            file.read_to_string(&mut end).expect("read");
            assert_eq!(end, "far");
            fails(file.seek(SeekFrom::Current(-(1 << 40))), Errno::EINVAL);
            file.write_all_at(b"", 1 << 40).expect("an empty write");
            assert_eq!(stat(dir.join("file")).len(), (1 << 33) + 3);
        },
    );
}

fn large_blocks() {
    let content: Vec<u8> = (0..5_000_000u32).map(|i| (i ^ (i >> 9)) as u8).collect();
    everywhere(
        |dir| put(dir.join("file"), &content),
        |dir| {
            assert!(fs::read(dir.join("file")).expect("read") == content);
            fs::write(dir.join("copy"), &content).expect("write");
            assert!(fs::read(dir.join("copy")).expect("read") == content);
            let file = edit(dir.join("file"));
            file.write_all_at(&content[..3_000_000], 1_234_567).expect("write");
            let mut middle = vec![0; 3_000_000];
            file.read_exact_at(&mut middle, 1_234_567).expect("read");
            assert!(middle == content[..3_000_000]);
            drop(file);
            let shown = fs::read(dir.join("file")).expect("read");
            assert!(shown[..1_234_567] == content[..1_234_567]);
            assert!(shown[4_234_567..] == content[4_234_567..]);
        },
    );
}

fn vectors() {
    everywhere(
        |dir| put(dir.join("file"), "0123456789"),
        |dir| {
            let mut file = edit(dir.join("file"));
            let parts = [IoSlice::new(b"ab"), IoSlice::new(b"cde")];
            assert_eq!(file.write_vectored(&parts).expect("writev"), 5);
            file.seek(SeekFrom::Start(1)).expect("seek");
            let (mut a, mut b) = ([0; 3], [0; 4]);
            let mut parts = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)];
            assert_eq!(file.read_vectored(&mut parts).expect("readv"), 7);
            assert_eq!((&a, &b), (b"bcd", b"e567"));
        },
    );
}

fn allocation() {
    everywhere(
        |dir| put(dir.join("file"), "0123456789"),
        |dir| {
            let file = edit(dir.join("file"));
            fallocate(&file, FallocateFlags::empty(), 0, 100_000).expect("allocate");
            let found = stat(dir.join("file"));
            assert_eq!(found.len(), 100_000);
            assert!(found.blocks() * 512 >= 100_000, "{} blocks", found.blocks());
            assert!(read(dir.join("file")).starts_with("0123456789\0\0"));
            let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&file, keep, 100_000, 100_000).expect("allocate beyond the end");
            assert_eq!(stat(dir.join("file")).len(), 100_000);
        },
    );
}

fn allocation_errors() {
    everywhere(
        |dir| put(dir.join("file"), "0123456789"),
        |dir| {
            let file = edit(dir.join("file"));
            let none = FallocateFlags::empty();
            fails(fallocate(&file, none, 0, 0), Errno::EINVAL);
            fails(fallocate(&file, none, -1, 10), Errno::EINVAL);
            fails(fallocate(open(dir.join("file")), none, 0, 10), Errno::EBADF);
            fails(fallocate(&file, FallocateFlags::FALLOC_FL_PUNCH_HOLE, 0, 10), Errno::EOPNOTSUPP);
            assert_eq!(read(dir.join("file")), "0123456789");
        },
    );
}

fn punched_holes() {
    everywhere(
        |dir| put(dir.join("file"), "x".repeat(64 << 10)),
        |dir| {
            let file = edit(dir.join("file"));
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&file, punch, 8192, 32 << 10).expect("punch");
            let content = fs::read(dir.join("file")).expect("read");
            assert_eq!(content.len(), 64 << 10);
            assert!(content[..8192].iter().all(|byte| *byte == b'x'));
            assert!(content[8192..8192 + (32 << 10)].iter().all(|byte| *byte == 0));
            assert!(content[8192 + (32 << 10)..].iter().all(|byte| *byte == b'x'));
            file.sync_all().expect("fsync");
            assert!(stat(dir.join("file")).blocks() * 512 <= 36 << 10, "space is given back");
        },
    );
}

fn data_and_holes_are_found() {
    const MIB: i64 = 1 << 20;
    everywhere(
        |dir| {
            let file = create_new(dir.join("file"), 0o644);
            file.write_all_at(&[1; 4096], 0).expect("write");
            file.write_all_at(&[1; 4096], 2 * MIB as u64).expect("write");
            file.set_len(4 * MIB as u64).expect("size");
            file.sync_all().expect("fsync");
            put(dir.join("empty"), "");
        },
        |dir| {
            let check = |file: &fs::File| {
                let seek = |offset, whence| lseek(file, offset, whence);
                assert_eq!(seek(0, Whence::SeekData), Ok(0));
                let hole = seek(0, Whence::SeekHole).expect("a hole");
                assert!((4096..=2 * MIB).contains(&hole), "{hole}");
                let data = seek(hole, Whence::SeekData).expect("data");
                assert!(data > hole && data <= 2 * MIB, "{data}");
                let hole = seek(2 * MIB, Whence::SeekHole).expect("a hole");
                assert!(hole > 2 * MIB && hole < 4 * MIB, "{hole}");
                fails(seek(hole, Whence::SeekData), Errno::ENXIO);
                fails(seek(4 * MIB, Whence::SeekHole), Errno::ENXIO);
                fails(seek(5 * MIB, Whence::SeekData), Errno::ENXIO);
            };
            check(&open(dir.join("file")));
            let file = edit(dir.join("file"));
            file.write_all_at(b"changed", 100).expect("write");
            file.sync_all().expect("fsync");
            check(&file);
            fails(lseek(open(dir.join("empty")), 0, Whence::SeekData), Errno::ENXIO);
        },
    );
}

/// Pages that the kernel has not written back yet are data all the same.
fn what_was_just_written_is_no_hole() {
    everywhere(
        |dir| put(dir.join("file"), "0123456789"),
        |dir| {
            let file = edit(dir.join("file"));
            file.write_all_at(&vec![b'x'; 100_000], 0).expect("write");
            assert_eq!(lseek(&file, 50_000, Whence::SeekData), Ok(50_000));
            assert_eq!(lseek(&file, 0, Whence::SeekHole), Ok(100_000));
            file.set_len(3 << 20).expect("truncate");
            file.write_all_at(b"far", 2 << 20).expect("write");
            let data = lseek(&file, 1 << 20, Whence::SeekData).expect("data");
            assert!(data > 1 << 20 && data <= 2 << 20, "data at {data}");
            assert_eq!(lseek(&file, 5 << 19, Whence::SeekData), Err(Errno::ENXIO));
        },
    );
}

fn what_a_mapping_has_written_is_no_hole() {
    const PAGES: usize = 1 << 20;
    everywhere(
        |dir| create_new(dir.join("file"), 0o644).set_len(PAGES as u64).expect("size"),
        |dir| {
            let file = edit(dir.join("file"));
            let map = SharedMap::new(&file, PAGES, true).expect("mmap");
            map.write(PAGES / 2, b"data");
            let data = lseek(&file, 0, Whence::SeekData).expect("data");
            assert!(data > 0 && data <= PAGES as i64 / 2, "data at {data}");
            let hole = lseek(&file, PAGES as i64 / 2, Whence::SeekHole).expect("a hole");
            assert!(hole > PAGES as i64 / 2 && hole < PAGES as i64, "a hole at {hole}");
        },
    );
}

fn ranges_are_copied() {
    everywhere(
        |dir| {
            put(dir.join("from"), "0123456789".repeat(1000));
            put(dir.join("to"), "----------".repeat(1000));
        },
        |dir| {
            let (from, to) = (open(dir.join("from")), edit(dir.join("to")));
            assert_eq!(copy(&from, 5, &to, 3, 20), Ok(20));
            let expected = "---56789012345678901234-------";
            assert_eq!(&read(dir.join("to"))[..30], expected);
            assert_eq!(copy(&from, 9_990, &to, 0, 100), Ok(10), "cut off at the end");
            assert_eq!(copy(&from, 20_000, &to, 0, 100), Ok(0), "beyond the end");
            assert_eq!(copy(&to, 0, &to, 5_000, 10), Ok(10), "within one file");
            assert_eq!(&read(dir.join("to"))[5_000..5_010], "0123456789");
            fails(copy(&to, 0, &to, 5, 10), Errno::EINVAL);
            fails(copy(&from, 0, &from, 5_000, 10), Errno::EBADF);
            let append = fs::OpenOptions::new().append(true).open(dir.join("to")).expect("open");
            fails(copy(&from, 0, &append, 0, 10), Errno::EBADF);
            // Written a moment ago, and possibly not yet known to the daemon.
            let fresh = create_new(dir.join("fresh"), 0o644);
            fresh.write_all_at(b"just written", 0).expect("write");
            assert_eq!(copy(&fresh, 5, &to, 0, 100), Ok(7));
            assert_eq!(&read(dir.join("to"))[..8], "written7");
        },
    );
}

fn files_are_copied_by_std() {
    everywhere(
        |dir| {
            put(dir.join("file"), "content".repeat(10_000));
            chmod(dir.join("file"), 0o751);
        },
        |dir| {
            let length = fs::copy(dir.join("file"), dir.join("copy")).expect("copy");
            assert_eq!(length, 70_000);
            assert_eq!(read(dir.join("copy")), "content".repeat(10_000));
            assert_eq!(mode(dir.join("copy")), 0o751);
        },
    );
}

fn mappings_are_written_back() {
    everywhere(
        |dir| put(dir.join("file"), "-".repeat(10_000)),
        |dir| {
            let file = edit(dir.join("file"));
            let map = SharedMap::new(&file, 10_000, true).expect("mmap");
            set_times(dir.join("file"), (5, 6), (7, 8));
            map.write(0, b"mapped");
            map.sync().expect("msync");
            assert!(mtime(dir.join("file")).0 > 7, "a mapping changes the time");
            map.write(4_094, b"mapped");
            file.write_all_at(b"written", 0).expect("write");
            assert_eq!(&map.read()[..8], b"written-");
            map.sync().expect("msync");
            drop((map, file));
            let shown = read(dir.join("file"));
            assert_eq!(&shown[4_092..4_102], "--mapped--");
            assert_eq!(shown.len(), 10_000);
        },
    );
}

/// Sizes around the limits of pages and requests, at offsets around them.
fn writes_of_many_sizes() {
    everywhere(
        |dir| put(dir.join("file"), vec![b'.'; 300_000]),
        |dir| {
            let mut expected = vec![b'.'; 300_000];
            let file = edit(dir.join("file"));
            let sizes = [1, 511, 4095, 4096, 4097, 65_535, 131_072, 131_073];
            for (i, size) in sizes.into_iter().enumerate() {
                let offset = [0, 1, 4095, 4096, 70_001, 131_071, 100, 160_000][i];
                let data = vec![b'a' + i as u8; size];
                file.write_all_at(&data, offset as u64).expect("write");
                expected[offset..offset + size].copy_from_slice(&data);
                let mut back = vec![0; size];
                file.read_exact_at(&mut back, offset as u64).expect("read");
                assert!(back == data, "{size} bytes at {offset}");
            }
            assert!(fs::read(dir.join("file")).expect("read") == expected);
        },
    );
}
