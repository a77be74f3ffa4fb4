//! Open files: they stay what they were, through copy-up, unlink and rename.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::{Child, Command};
use std::time::{Duration, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::find_program;
use crate::common::mount::eventually;
use crate::common::sys::{self, SharedMap};
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(open_before_a_copy_up_and_still_current),
        t!(mappings_see_what_is_written_later),
        t!(unlinked_files_work_on),
        t!(unlinked_files_are_copied_up_too),
        t!(replaced_files_work_on),
        t!(removed_directories_stay_open),
        t!(many_open_unlinked_files),
        t!(a_link_of_an_unlinked_name_lives),
        t!(holes_and_truncation_through_two_descriptors),
        t!(programs_that_run_are_not_changed),
        t!(programs_that_run_are_not_changed_where_opens_are_asked_for),
        t!(programs_that_run_are_not_changed_where_they_pass_through).root(),
    ]
}

/// fuse-overlayfs 2.0 modified the lower layer here; the kernel's overlay reads stale data.
fn open_before_a_copy_up_and_still_current() {
    let mut union = Union::new(2);
    put(union.lower(1, "file"), "lower content");
    let before = union.lower_trees();
    union.mount();
    let mut reader = open(union.at("file"));
    let mut first = [0; 5];
    reader.read_exact(&mut first).expect("read");
    assert_eq!(&first, b"lower");
    let writer = edit(union.at("file"));
    writer.write_all_at(b"UPPER", 0).expect("write");
    assert_eq!(read_all(&reader), "UPPER content", "the descriptor from before sees it");
    reader.seek(SeekFrom::Start(0)).expect("seek");
    assert_eq!(reader.metadata().expect("fstat").ino(), ino(union.at("file")));
    writer.set_len(5).expect("truncate");
    assert_eq!(read_all(&reader), "UPPER");
    fs::write(union.at("file"), "replaced in place").expect("write");
    assert_eq!(read_all(&reader), "replaced in place");
    assert_eq!(reader.metadata().expect("fstat").len(), 17);
    drop((reader, writer));
    union.umount();
    assert_eq!(read(union.upper("file")), "replaced in place");
    union.assert_lowers(&before);
}

fn mappings_see_what_is_written_later() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "0123456789".repeat(1000));
    let before = union.lower_trees();
    union.mount();
    let reader = open(union.at("file"));
    let shown = SharedMap::new(&reader, 10_000, false).expect("mmap");
    assert_eq!(&shown.read()[..10], b"0123456789");
    edit(union.at("file")).write_all_at(b"written", 5000).expect("write");
    assert_eq!(&shown.read()[5000..5007], b"written", "a mapping made before the copy-up");
    let writer = edit(union.at("file"));
    let changing = SharedMap::new(&writer, 10_000, true).expect("mmap");
    changing.write(9000, b"mapped");
    assert_eq!(&shown.read()[9000..9006], b"mapped");
    changing.sync().expect("msync");
    let mut bytes = [0; 6];
    reader.read_exact_at(&mut bytes, 9000).expect("read");
    assert_eq!(&bytes, b"mapped");
    drop((shown, changing, reader, writer));
    union.remount();
    assert_eq!(&fs::read(union.at("file")).expect("read")[9000..9006], b"mapped");
    union.umount();
    union.assert_lowers(&before);
}

/// Everything that an open file without a name still does.
fn use_nameless(file: &File, content: &str) {
    assert_eq!(read_all(file), content);
    assert_eq!(file.metadata().expect("fstat").nlink(), 0);
    file.write_all_at(b"W", 0).expect("write");
    let mut expected = content.to_owned();
    expected.replace_range(..1, "W");
    assert_eq!(read_all(file), expected);
    file.set_len(3).expect("ftruncate");
    assert_eq!(read_all(file), &expected[..3]);
    assert_eq!(file.metadata().expect("fstat").len(), 3);
    file.set_permissions(fs::Permissions::from_mode(0o601)).expect("fchmod");
    assert_eq!(file.metadata().expect("fstat").mode() & 0o7777, 0o601);
    let time = UNIX_EPOCH + Duration::from_nanos(1_000_000_001);
    file.set_modified(time).expect("futimens");
    let found = file.metadata().expect("fstat");
    assert_eq!((found.mtime(), found.mtime_nsec()), (1, 1));
    sys::fset_xattr(file, "user.note", b"nameless").expect("fsetxattr");
    assert_eq!(sys::fget_xattr(file, "user.note").expect("fgetxattr"), b"nameless");
    file.sync_all().expect("fsync");
    file.write_all_at(b"end", 100_000).expect("write");
    assert_eq!(file.metadata().expect("fstat").len(), 100_003);
}

fn unlinked_files_work_on() {
    let mut union = Union::new(1);
    put(union.lower(0, "low"), "content");
    put(union.lower(0, "changed"), "content");
    put(union.upper("up"), "content");
    let before = union.lower_trees();
    union.mount();
    put(union.at("new"), "content");
    append(union.at("changed"), "");
    chmod(union.at("changed"), 0o640);
    for name in ["low", "changed", "up", "new"] {
        let file = edit(union.at(name));
        let second = edit(union.at(name));
        fs::remove_file(union.at(name)).expect("remove");
        fails(fs::metadata(union.at(name)), Errno::ENOENT);
        use_nameless(&file, "content");
        assert_eq!(second.metadata().expect("fstat").len(), 100_003, "{name}");
        // Another file may have the name meanwhile.
        put(union.at(name), "another");
        assert_eq!(read(union.at(name)), "another");
        let mut start = [0; 3];
        second.read_exact_at(&mut start, 0).expect("read");
        assert_eq!(&start, b"Won", "{name}");
    }
    union.umount();
    union.assert_lowers(&before);
}

/// Open for reading only, unlinked, and then changed through the descriptor: fchmod and the like
/// need no descriptor for writing.
fn unlinked_files_are_copied_up_too() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "content");
    let before = union.lower_trees();
    union.mount();
    let file = open(union.at("file"));
    fs::remove_file(union.at("file")).expect("remove");
    file.set_permissions(fs::Permissions::from_mode(0o600)).expect("fchmod");
    let found = file.metadata().expect("fstat");
    assert_eq!((found.mode() & 0o7777, found.nlink()), (0o600, 0));
    assert_eq!(read_all(&file), "content");
    assert_eq!(names(union.at("")), Vec::<String>::new());
    drop(file);
    union.umount();
    union.assert_lowers(&before);
}

fn replaced_files_work_on() {
    let mut union = Union::new(1);
    put(union.lower(0, "target"), "content");
    put(union.lower(0, "target2"), "content");
    put(union.lower(0, "source"), "source");
    let before = union.lower_trees();
    union.mount();
    put(union.at("new"), "new");
    for (from, to) in [("new", "target"), ("source", "target2")] {
        let file = edit(union.at(to));
        let number = file.metadata().expect("fstat").ino();
        fs::rename(union.at(from), union.at(to)).expect("rename over it");
        use_nameless(&file, "content");
        assert_eq!(file.metadata().expect("fstat").ino(), number);
        assert_eq!(read(union.at(to)), from);
        assert_ne!(ino(union.at(to)), number);
    }
    union.umount();
    union.assert_lowers(&before);
}

fn removed_directories_stay_open() {
    let mut union = Union::new(2);
    put(union.lower(1, "merged/x"), "x");
    put(union.lower(0, "merged/y"), "x");
    make_dir(union.upper("pure"));
    make_dir(union.lower(0, "low"));
    union.mount();
    for name in ["merged", "pure", "low"] {
        let directory = open(union.at(name));
        fs::remove_dir_all(union.at(name)).expect("remove");
        directory.metadata().unwrap_or_else(|e| panic!("{name}: fstat: {e}"));
        let create = OFlag::O_CREAT | OFlag::O_WRONLY;
        fails(openat(&directory, "new", create, Mode::S_IRUSR), Errno::ENOENT);
        make_dir(union.at(name));
        put(union.at(name).join("later"), "x");
        match sys::getdents(&directory, 4096) {
            Ok(entries) => assert!(entries.iter().all(|entry| entry.name != "later"), "{name}"),
            Err(error) => assert_eq!(error, Errno::ENOENT, "{name}"),
        }
    }
    union.umount();
}

fn many_open_unlinked_files() {
    const COUNT: usize = 700;
    let mut union = Union::new(1);
    for i in 0..COUNT {
        put(union.lower(0, &format!("low{i}")), i.to_string());
    }
    union.mount();
    let files: Vec<File> = (0..COUNT)
        .map(|i| {
            if i % 2 == 0 {
                append(union.at(&format!("low{i}")), "!");
            }
            let file = open(union.at(&format!("low{i}")));
            fs::remove_file(union.at(&format!("low{i}"))).expect("remove");
            file
        })
        .collect();
    for (i, file) in files.iter().enumerate() {
        let mark = if i % 2 == 0 { "!" } else { "" };
        assert_eq!(read_all(file), format!("{i}{mark}"));
        assert_eq!(file.metadata().expect("fstat").nlink(), 0);
    }
    drop(files);
    assert_eq!(names(union.at("")), Vec::<String>::new());
    union.umount();
}

fn a_link_of_an_unlinked_name_lives() {
    let mut union = Union::new(1);
    put(union.lower(0, "a"), "content");
    union.mount();
    let file = edit(union.at("a"));
    fs::hard_link(union.at("a"), union.at("b")).expect("link");
    fs::remove_file(union.at("a")).expect("remove");
    (&file).write_all(b"C").expect("write");
    assert_eq!(read(union.at("b")), "Content");
    assert_eq!(file.metadata().expect("fstat").nlink(), 1);
    fs::remove_file(union.at("b")).expect("remove");
    assert_eq!(file.metadata().expect("fstat").nlink(), 0);
    assert_eq!(read_all(&file), "Content");
    drop(file);
    union.umount();
}

fn holes_and_truncation_through_two_descriptors() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "x".repeat(10_000));
    union.mount();
    let (a, b) = (edit(union.at("file")), edit(union.at("file")));
    a.set_len(100).expect("truncate");
    b.write_all_at(b"y", 5000).expect("write");
    let mut bytes = vec![0; 5001];
    a.read_exact_at(&mut bytes, 0).expect("read");
    assert!(bytes[..100].iter().all(|byte| *byte == b'x'));
    assert!(bytes[100..5000].iter().all(|byte| *byte == 0), "cut off data must not come back");
    assert_eq!(bytes[5000], b'y');
    drop((a, b));
    union.remount();
    assert_eq!(fs::read(union.at("file")).expect("read"), bytes);
    union.umount();
}

fn programs_that_run_are_not_changed() {
    programs_are_not_changed(&[]);
}

fn programs_that_run_are_not_changed_where_opens_are_asked_for() {
    programs_are_not_changed(&["--timeout", "0"]);
}

fn programs_that_run_are_not_changed_where_they_pass_through() {
    programs_are_not_changed(&["--io", "passthrough"]);
}

/// A process that is ended when it is dropped.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The kernel asks for an O_RDONLY|O_TRUNC before it finds that the file is run.
fn programs_are_not_changed(options: &[&str]) {
    let sleep = find_program("sleep").expect("sleep");
    let mut union = Union::new(1).arguments(options);
    fs::copy(&sleep, union.lower(0, "low")).expect("copy");
    let before = union.lower_trees();
    union.mount();
    fs::copy(&sleep, union.at("new")).expect("copy");
    for name in ["low", "new"] {
        let (path, content) = (union.at(name), fs::read(union.at(name)).expect("read"));
        let mut program = Program(Command::new(&path).arg("600").spawn().expect("spawn"));
        for flags in [OFlag::O_WRONLY, OFlag::O_RDWR, OFlag::O_WRONLY | OFlag::O_TRUNC, OFlag::O_TRUNC] {
            fails(sys::open(&path, flags.bits(), 0), Errno::ETXTBSY);
        }
        assert!(fs::read(&path).expect("read") == content, "{name} has changed");
        assert_eq!(program.0.try_wait().expect("wait"), None, "{name} runs on");
        drop(program);
        let truncate = || sys::open(&path, OFlag::O_TRUNC.bits(), 0).is_ok();
        // The kernel tells a little later that it is not run any more, but no open for writing has to wait for that.
        drop(sys::open(&path, OFlag::O_WRONLY.bits(), 0).expect("open"));
        assert!(eventually(10, truncate), "{name} is free again");
        assert_eq!(stat(&path).len(), 0);
    }
    union.umount();
    union.assert_lowers(&before);
}
