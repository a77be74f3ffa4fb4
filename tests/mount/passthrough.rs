//! `io=passthrough`: the kernel reads and writes real files by itself where it may. The other tests of this directory run in
//! that mode, too (`tools/test-all`); here is what only it has.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime};

use crate::common::Test;
use crate::common::files::*;
use crate::common::mount::{Mount, eventually};
use crate::common::sys::SharedMap;
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(the_daemon_is_not_asked).root(),
        t!(a_new_file_passes_through).root(),
        t!(lower_files_pass_through_where_nothing_is_written).root(),
        t!(the_first_open_decides).root(),
        t!(mapped_writes_show_in_the_status).root(),
        t!(a_metadata_copy_is_read_from_the_lower).root(),
        t!(over_a_stacked_filesystem_it_is_done_without).root(),
    ]
}

const PASSTHROUGH: [&str; 2] = ["--io", "passthrough"];

/// How often an operation was asked for.
fn count(union: &Union, operation: &str) -> u64 {
    union.stats()["operations"][operation].as_u64().unwrap_or_default()
}

fn reads_and_writes(union: &Union) -> u64 {
    count(union, "read") + count(union, "write")
}

/// A lower file is copied up when it is opened for writing; from then on the copy is the kernel's to read and write.
fn the_daemon_is_not_asked() {
    let mut union = Union::new(1).arguments(&PASSTHROUGH);
    put(union.lower(0, "file"), "lower".repeat(1000));
    let before = union.lower_trees();
    union.mount();
    let file = edit(union.at("file"));
    assert_eq!(read(union.upper("file")).len(), 5000);
    for round in 0..100 {
        file.write_all_at(b"UPPER", round * 10).expect("write");
        assert_eq!(&read(union.at("file"))[..5], "UPPER");
    }
    file.sync_all().expect("fsync");
    assert_eq!(reads_and_writes(&union), 0);
    assert_eq!(&read(union.upper("file"))[990..996], "UPPERl");
    drop(file);
    union.umount();
    union.assert_lowers(&before);
}

fn a_new_file_passes_through() {
    let mut union = Union::new(1).arguments(&PASSTHROUGH);
    union.mount();
    put(union.at("new"), "content");
    append(union.at("new"), " and more");
    assert_eq!(stat(union.at("new")).len(), 16);
    assert_eq!(read(union.at("new")), "content and more");
    assert_eq!(reads_and_writes(&union), 0);
    union.umount();
    assert_eq!(read(union.upper("new")), "content and more");
}

/// Without an upper there is no copy that a reader could miss. Even the access time of the lower file stays.
fn lower_files_pass_through_where_nothing_is_written() {
    let mut union = Union::new(2).read_only().arguments(&PASSTHROUGH);
    put(union.lower(1, "file"), "lower");
    set_times(union.lower(1, "file"), (1, 1), (2, 2));
    union.mount();
    assert_eq!(read(union.at("file")), "lower");
    let file = open(union.at("file"));
    assert_eq!(SharedMap::new(&file, 5, false).expect("mmap").read(), b"lower");
    assert_eq!(count(&union, "read"), 0);
    drop(file);
    union.umount();
    assert_eq!((stat(union.lower(1, "file")).atime(), stat(union.lower(1, "file")).mtime()), (1, 2));
}

/// While somebody reads the lower file, its copy is read and written by the daemon, so that both are one; and the other way
/// round. After the last one has closed it, it passes through again.
fn the_first_open_decides() {
    let mut union = Union::new(1).arguments(&PASSTHROUGH);
    put(union.lower(0, "file"), "lower");
    let before = union.lower_trees();
    union.mount();
    let early = open(union.at("file"));
    let map = SharedMap::new(&early, 5, false).expect("mmap");
    assert_eq!(map.read(), b"lower");
    drop(early);
    let writer = edit(union.at("file"));
    writer.write_all_at(b"UPPER", 0).expect("write");
    assert_eq!(map.read(), b"UPPER");
    assert_eq!(read(union.at("file")), "UPPER");
    assert!(reads_and_writes(&union) > 0);
    drop((map, writer));
    let asked = || reads_and_writes(&union);
    // The last close is told to the daemon after it has returned.
    let passes = eventually(10, || {
        let before = asked();
        let writer = edit(union.at("file"));
        writer.write_all_at(b"again", 0).expect("write");
        let map = SharedMap::new(&writer, 5, true).expect("mmap");
        map.write(0, b"A");
        assert_eq!(read(union.at("file")), "Again");
        asked() == before
    });
    assert!(passes, "it does not pass through again");
    union.umount();
    union.assert_lowers(&before);
    assert_eq!(read(union.upper("file")), "Again");
}

/// The kernel tells nobody of what a mapping writes past the daemon.
fn mapped_writes_show_in_the_status() {
    let mut union = Union::new(1).arguments(&PASSTHROUGH);
    put(union.lower(0, "file"), "lower");
    set_times(union.lower(0, "file"), (1, 0), (1, 0));
    union.mount();
    for looks_before in [false, true] {
        let start = SystemTime::now() - Duration::from_secs(1);
        set_times(union.at("file"), (1, 0), (1, 0));
        let file = edit(union.at("file"));
        if looks_before {
            assert_eq!(stat(union.at("file")).mtime(), 1);
            assert_eq!(names(union.at("")), ["file"]);
        }
        let map = SharedMap::new(&file, 5, true).expect("mmap");
        map.write(0, b"UPPER");
        map.sync().expect("msync");
        assert!(stat(union.at("file")).modified().expect("mtime") >= start);
        drop((map, file));
        assert!(stat(union.at("file")).modified().expect("mtime") >= start);
    }
    union.umount();
}

fn a_metadata_copy_is_read_from_the_lower() {
    let mut union = Union::new(1).arguments(&PASSTHROUGH);
    put(union.lower(0, "file"), "lower");
    let before = union.lower_trees();
    union.mount();
    chmod(union.at("file"), 0o640);
    let reader = open(union.at("file"));
    assert_eq!(read_all(&reader), "lower");
    edit(union.at("file")).write_all_at(b"U", 0).expect("write");
    assert_eq!(read_all(&reader), "Uower");
    drop(reader);
    assert_eq!(read(union.at("file")), "Uower");
    union.umount();
    union.assert_lowers(&before);
    assert_eq!(read(union.upper("file")), "Uower");
}

/// The kernel takes no file of a filesystem that is stacked itself; then the daemon reads it.
fn over_a_stacked_filesystem_it_is_done_without() {
    let below = Union::new(1);
    put(below.lower(0, "lower/file"), "lower");
    let kernel = below.kernel("");
    let point = below.root().join("stacked");
    fs::create_dir(&point).expect("mkdir");
    let mut arguments: Vec<OsString> = PASSTHROUGH.map(OsString::from).into();
    arguments.extend(["--lower".into(), below.at("lower").into()]);
    let mount = Mount::start(&arguments, &point);
    for _ in 0..2 {
        assert_eq!(read(point.join("file")), "lower");
    }
    mount.umount();
    kernel.umount();
}
