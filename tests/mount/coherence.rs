//! One file has one content: whoever opened or mapped it before it was copied up sees what is written afterwards.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::find_program;
use crate::common::mount::try_run;
use crate::common::sys::{self, SharedMap};
use crate::common::union::{Union, io_modes};
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(readers_from_before_see_every_change),
        t!(readers_see_what_another_process_writes),
        t!(readers_of_another_name_see_it_too),
        t!(databases_survive_readers).needs(no_python).seconds(600),
    ]
}

const SIZE: usize = 5 * 4096 + 100;

/// Who had a file open before it was copied up.
struct Readers {
    descriptor: File,
    map: SharedMap,
    /// Pages that nobody has looked at before the change are read only then.
    untouched: SharedMap,
}

impl Readers {
    fn new(path: &Path) -> Readers {
        let descriptor = open(path);
        let map = SharedMap::new(&descriptor, SIZE, false).expect("mmap");
        let untouched = SharedMap::new(&open(path), SIZE, false).expect("mmap");
        assert!(map.read() == content(), "{path:?}");
        let mut start = [0; 10];
        descriptor.read_exact_at(&mut start, 0).expect("read");
        Readers { descriptor, map, untouched }
    }

    /// All of them see this, as a new one does.
    #[track_caller]
    fn see(&self, path: &Path, expected: &[u8], what: &str) {
        let fresh = ok(path, fs::read(path));
        assert_eq!(fresh.len(), expected.len(), "{what}: the length of {path:?}");
        assert!(fresh == expected, "{what}: a new reader of {path:?}");
        let mut bytes = vec![0; SIZE * 2];
        let length = self.descriptor.read_at(&mut bytes, 0).expect("read");
        assert!(bytes[..length] == *expected, "{what}: the descriptor of {path:?}");
        assert_eq!(self.descriptor.metadata().expect("fstat").len(), expected.len() as u64, "{what}: {path:?}");
        // Beyond the end of a file is nothing that could be mapped.
        let mapped = expected.len().min(SIZE);
        for map in [&self.map, &self.untouched] {
            assert!(map.read_at(0, mapped) == expected[..mapped], "{what}: a mapping of {path:?}");
        }
    }
}

fn content() -> Vec<u8> {
    (0..SIZE).map(|at| b'a' + (at / 100 % 26) as u8).collect()
}

/// A way to change a file, and what it makes of its content.
type Change = (&'static str, fn(&Path, &mut Vec<u8>));

const CHANGES: [Change; 10] = [
    ("write", |path, content| {
        edit(path).write_all_at(b"WRITTEN", 4090).expect("write");
        content[4090..4097].copy_from_slice(b"WRITTEN");
    }),
    ("write-only", |path, content| {
        let file = OpenOptions::new().write(true).open(path).expect("open");
        file.write_all_at(&[b'#'; 4096], 4096).expect("write");
        content[4096..8192].fill(b'#');
    }),
    ("append", |path, content| {
        append(path, "APPENDED");
        content.extend_from_slice(b"APPENDED");
    }),
    ("cut", |path, content| {
        edit(path).set_len(5000).expect("truncate");
        content.truncate(5000);
    }),
    ("extend", |path, content| {
        edit(path).set_len(SIZE as u64 + 5000).expect("truncate");
        content.resize(SIZE + 5000, 0);
    }),
    ("rewrite", |path, content| {
        *content = vec![b'R'; SIZE];
        fs::write(path, &content).expect("write");
    }),
    ("empty-and-write", |path, content| {
        let mut file = File::create(path).expect("open");
        file.write_all(b"new").expect("write");
        *content = b"new".to_vec();
    }),
    ("map", |path, content| {
        let map = SharedMap::new(&edit(path), SIZE, true).expect("mmap");
        map.write(9000, b"MAPPED");
        content[9000..9006].copy_from_slice(b"MAPPED");
    }),
    ("punch", |path, content| {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(edit(path), flags, 4096, 4096).expect("punch a hole");
        content[4096..8192].fill(0);
    }),
    ("copy-range", |path, content| {
        let file = edit(path);
        sys::copy_range(&file, 0, &file, 12288, 100).expect("copy a range");
        content.copy_within(0..100, 12288);
    }),
];

fn readers_from_before_see_every_change() {
    for arguments in io_modes() {
        let mut union = Union::new(2).arguments(arguments);
        for (name, _) in CHANGES {
            put(union.lower(1, &format!("d/{name}")), content());
        }
        let before = union.lower_trees();
        union.mount();
        for (name, change) in CHANGES {
            let path = union.at("d").join(name);
            let readers = Readers::new(&path);
            let mut expected = content();
            change(&path, &mut expected);
            readers.see(&path, &expected, name);
            // Once copied up, the next change goes the usual way.
            edit(&path).write_all_at(b"AGAIN", 1).expect("write");
            expected.resize(expected.len().max(6), 0);
            expected[1..6].copy_from_slice(b"AGAIN");
            readers.see(&path, &expected, name);
            let lower = fs::read(union.lower(1, &format!("d/{name}"))).expect("read");
            assert!(lower == content(), "{name}: the lower file");
        }
        union.umount();
        union.assert_lowers(&before);
    }
}

fn readers_see_what_another_process_writes() {
    for arguments in io_modes() {
        let mut union = Union::new(1).arguments(arguments);
        put(union.lower(0, "file"), content());
        let before = union.lower_trees();
        union.mount();
        let path = union.at("file");
        let readers = Readers::new(&path);
        let mut expected = content();
        for at in [0, 4096, 20_000] {
            let script = format!("printf CHANGED | dd of=\"$0\" bs=1 seek={at} conv=notrunc status=none");
            let mut shell = Command::new("sh");
            try_run(shell.args(["-c", &script]).arg(&path), Duration::from_secs(20)).expect("sh").success();
            expected[at..at + 7].copy_from_slice(b"CHANGED");
            readers.see(&path, &expected, "written by dd");
        }
        drop(readers);
        union.umount();
        union.assert_lowers(&before);
    }
}

fn readers_of_another_name_see_it_too() {
    for arguments in io_modes() {
        let mut union = Union::new(1).arguments(arguments);
        put(union.lower(0, "a"), content());
        make_dir(union.lower(0, "d"));
        fs::hard_link(union.lower(0, "a"), union.lower(0, "d/b")).expect("link");
        let before = union.lower_trees();
        union.mount();
        let (a, b) = (union.at("a"), union.at("d/b"));
        let readers = [(Readers::new(&a), &a), (Readers::new(&b), &b)];
        let mut expected = content();
        edit(&b).write_all_at(b"LINKED", 8190).expect("write");
        expected[8190..8196].copy_from_slice(b"LINKED");
        for (reader, path) in &readers {
            reader.see(path, &expected, "written by the other name");
        }
        fs::remove_file(&b).expect("remove");
        edit(&a).write_all_at(b"ALONE", 100).expect("write");
        expected[100..105].copy_from_slice(b"ALONE");
        for (reader, _) in &readers {
            reader.see(&a, &expected, "written when one name is gone");
        }
        drop(readers);
        union.umount();
        union.assert_lowers(&before);
    }
}

fn no_python() -> Option<String> {
    let there = find_program("python3")
        .is_some_and(|python| Command::new(python).args(["-c", "import sqlite3"]).status().is_ok_and(|s| s.success()));
    (!there).then(|| "needs python3 with its module sqlite3".to_owned())
}

/// Fifty databases of a lower are rewritten, page by page, while other processes hold them open and read.
fn databases_survive_readers() {
    const DATABASES: &str = "50";
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mount/databases.py");
    let python = |step: &str, directory: &Path| {
        let mut command = Command::new("python3");
        command.arg("-B").arg(&script).args([step, DATABASES]).arg(directory);
        try_run(&mut command, Duration::from_secs(280)).unwrap_or_else(|fault| panic!("{fault}")).success();
    };
    for arguments in io_modes() {
        let mut union = Union::new(1).arguments(arguments);
        make_dir(union.lower(0, "d"));
        python("make", &union.lower(0, "d"));
        let before = union.lower_trees();
        union.mount();
        python("rewrite", &union.at("d"));
        python("check", &union.at("d"));
        union.remount();
        python("check", &union.at("d"));
        union.umount();
        union.assert_lowers(&before);
    }
}
