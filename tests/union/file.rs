//! What is in a file: reads, writes, space, holes, ranges.

use layerfs::error::Errno;
use layerfs::union::{Caller, Union};
use nix::libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, SEEK_DATA, SEEK_HOLE};

use super::fixture::Layers;

#[test]
fn reads_end_at_the_end() {
    let layers = Layers::new(1);
    layers.file(0, "f", "0123456789");
    let view = layers.open();
    let held = view.hold("f").unwrap();
    let read = |offset, length| {
        let mut buffer = vec![0xee; length];
        let n = view.union.read(held.ino, offset, &mut buffer).unwrap();
        buffer.truncate(n);
        String::from_utf8(buffer).unwrap()
    };
    for _ in ["lower", "upper"] {
        assert_eq!(read(0, 100), "0123456789");
        assert_eq!(read(3, 4), "3456");
        assert_eq!(read(8, 100), "89");
        assert_eq!(read(10, 100), "");
        assert_eq!(read(1 << 40, 100), "");
        assert_eq!(read(0, 0), "");
        view.write("f", 0, b"0").unwrap();
    }
}

#[test]
fn writes_behind_the_end_leave_a_hole() {
    let layers = Layers::new(1);
    layers.file(0, "f", "lower");
    let view = layers.open();
    view.write("f", 8, b"end").unwrap();
    assert_eq!(view.read("f").unwrap(), b"lower\0\0\0end");
    assert_eq!(view.stat("f").unwrap().size, 11);
    view.write("f", 1 << 33, b"far").unwrap();
    assert_eq!(view.stat("f").unwrap().size, (1 << 33) + 3);
}

#[test]
fn opening_for_writing_copies_up() {
    let layers = Layers::new(1);
    layers.file(0, "f", "lower");
    layers.file(0, "g", "lower");
    let view = layers.open();
    let (f, g) = (view.hold("f").unwrap(), view.hold("g").unwrap());
    let caller = Caller::default();
    view.union.open_file(&caller, f.ino, false, false).unwrap();
    assert_eq!(view.stats().copy_ups.values().sum::<u64>(), 0);
    view.union.open_file(&caller, f.ino, true, false).unwrap();
    view.union.open_file(&caller, g.ino, true, true).unwrap();
    assert_eq!(view.read("f").unwrap(), b"lower");
    assert_eq!(view.read("g").unwrap(), b"");
    let copies = view.stats().copy_ups;
    assert_eq!((copies.get("data"), copies.get("truncated")), (Some(&1), Some(&1)), "{copies:?}");
    assert_eq!(view.union.open_file(&caller, 1, false, false), Err(Errno::EISDIR));
}

/// A descriptor opened before copy-up knows the file by its number alone.
#[test]
fn the_number_from_before_copy_up_reads_what_was_written_after() {
    let layers = Layers::new(1);
    layers.file(0, "f", "lower");
    let view = layers.open();
    let before = view.hold("f").unwrap();
    let mut buffer = [0; 8];
    assert_eq!(view.union.read(before.ino, 0, &mut buffer).unwrap(), 5);
    view.write("f", 0, b"UPPER!").unwrap();
    assert_eq!(view.union.read(before.ino, 0, &mut buffer).unwrap(), 6);
    assert_eq!(&buffer[..6], b"UPPER!");
    assert_eq!(view.union.getattr(before.ino).unwrap().size, 6);
}

#[test]
fn directories_are_not_read_or_written() {
    let layers = Layers::new(1);
    layers.directory(0, "d");
    let view = layers.open();
    let held = view.hold("d").unwrap();
    for ino in [held.ino, Union::ROOT] {
        assert_eq!(view.union.read(ino, 0, &mut [0; 8]).unwrap_err(), Errno::EISDIR);
        assert_eq!(view.union.write(ino, 0, b"x").unwrap_err(), Errno::EISDIR);
    }
    assert!(layers.upper("d").symlink_metadata().is_err(), "it was not copied up for that");
}

#[test]
fn space_is_allocated_and_given_back() {
    let layers = Layers::new(1);
    layers.file(0, "f", "0123456789");
    let view = layers.open();
    let held = view.hold("f").unwrap();
    let allocate = |mode, offset, length| view.union.fallocate(held.ino, mode, offset, length);
    allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2, 3).unwrap();
    assert_eq!(view.read("f").unwrap(), b"01\0\0\x0056789");
    allocate(0, 0, 20).unwrap();
    assert_eq!(view.stat("f").unwrap().size, 20);
    allocate(FALLOC_FL_KEEP_SIZE, 0, 1 << 20).unwrap();
    assert_eq!(view.stat("f").unwrap().size, 20);
    assert_eq!(allocate(0, 0, 0).unwrap_err(), Errno::EINVAL);
}

#[test]
fn data_and_holes_are_found() {
    let layers = Layers::new(1);
    layers.file(0, "lower", "data");
    let view = layers.open();
    view.create("upper", 0o644).unwrap();
    view.write("upper", 1 << 20, b"data").unwrap();
    let seek = |path: &str, offset, whence| view.union.lseek(view.hold(path).unwrap().ino, offset, whence);
    assert_eq!(seek("lower", 0, SEEK_DATA).unwrap(), 0);
    assert_eq!(seek("lower", 0, SEEK_HOLE).unwrap(), 4);
    assert_eq!(seek("lower", 4, SEEK_DATA).unwrap_err(), Errno::ENXIO);
    assert_eq!(seek("upper", 0, SEEK_HOLE).unwrap(), 0);
    assert_eq!(seek("upper", 0, SEEK_DATA).unwrap(), 1 << 20);
}

#[test]
fn ranges_are_copied_between_and_within_files() {
    let layers = Layers::new(1);
    layers.file(0, "from", "0123456789");
    layers.file(0, "to", "abcdefghij");
    let view = layers.open();
    let (from, to) = (view.hold("from").unwrap(), view.hold("to").unwrap());
    let copy = |a, at, b, to, length| view.union.copy_file_range(a, at, b, to, length);
    assert_eq!(copy(from.ino, 2, to.ino, 8, 4).unwrap(), 4);
    assert_eq!(view.text("to"), "abcdefgh2345");
    assert_eq!(copy(from.ino, 8, to.ino, 0, 100).unwrap(), 2, "up to the end");
    assert_eq!(view.text("to"), "89cdefgh2345");
    assert_eq!(copy(from.ino, 100, to.ino, 0, 1).unwrap(), 0);
    assert_eq!(copy(to.ino, 0, to.ino, 10, 2).unwrap(), 2);
    assert_eq!(view.text("to"), "89cdefgh2389");
    assert_eq!(copy(to.ino, 0, to.ino, 1, 5).unwrap_err(), Errno::EINVAL, "overlapping");
    assert!(layers.upper("from").symlink_metadata().is_err(), "reading from it brings nothing up");
}

/// To the kernel a short answer is the end of the file, and what it has asked for beyond that becomes zeros.
#[cfg(debug_assertions)]
#[test]
fn a_read_that_fails_half_way_fails() {
    use layerfs::sys::fault;
    let layers = Layers::new(1);
    layers.file(0, "f", "0123456789");
    let view = layers.open();
    let held = view.hold("f").unwrap();
    let read = || view.union.read(held.ino, 0, &mut [0; 20]);
    assert_eq!(read().unwrap(), 10);
    // The first call reads all that there is, the second looks for more.
    fault::arm(1, Errno::EIO, fault::Calls::One);
    let failed = read();
    assert!(fault::disarm());
    assert_eq!(failed.unwrap_err(), Errno::EIO);
    assert_eq!(read().unwrap(), 10);
}
