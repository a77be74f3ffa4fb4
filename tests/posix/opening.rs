//! open(2) with its flags and errors.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::find_program;
use crate::common::sys::{self, Page, open as open_raw};
use crate::common::union::{Union, everywhere};
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(exclusive_creation),
        t!(truncation),
        t!(appending),
        t!(directories_are_not_files),
        t!(symlinks_are_followed_or_not),
        t!(paths_that_lead_nowhere),
        t!(special_files),
        t!(devices_open).root(),
        t!(path_descriptors),
        t!(synchronous_writing),
        t!(direct_io),
        t!(access_modes),
        t!(umask_and_modes),
        t!(no_access_time),
        t!(temporary_files_without_a_name_are_refused),
        t!(a_file_created_without_rights_is_writable),
    ]
}

fn exclusive_creation() {
    everywhere(
        |dir| {
            put(dir.join("file"), "x");
            make_dir(dir.join("dir"));
            symlink("nowhere", dir.join("dangling")).expect("symlink");
            put(dir.join("deleted"), "old");
        },
        |dir| {
            for name in ["file", "dir", "dangling"] {
                fails(try_create_new(&dir.join(name), 0o644), Errno::EEXIST);
            }
            fs::remove_file(dir.join("deleted")).expect("remove");
            let mut file = create_new(dir.join("deleted"), 0o640);
            file.write_all(b"new").expect("write");
            assert_eq!(mode(dir.join("deleted")), 0o640);
            assert_eq!(read(dir.join("deleted")), "new");
            // Without O_EXCL an existing file is opened as it is.
            let flags = libc::O_CREAT | libc::O_RDWR;
            let file = open_raw(&dir.join("file"), flags, 0o600).expect("open");
            assert_eq!(read_all(&file), "x");
            assert_eq!(mode(dir.join("file")), 0o644);
            open_raw(&dir.join("dangling"), flags, 0o600).expect("through a dangling symlink");
            assert!(exists(dir.join("nowhere")));
        },
    );
}

fn truncation() {
    everywhere(
        |dir| {
            for name in ["a", "b", "c"] {
                put(dir.join(name), "a long content");
                set_times(dir.join(name), (1, 1), (1, 1));
            }
        },
        |dir| {
            drop(open_raw(&dir.join("a"), libc::O_WRONLY | libc::O_TRUNC, 0).expect("open"));
            assert_eq!(stat(dir.join("a")).len(), 0);
            assert!(mtime(dir.join("a")).0 > 1);
            let held = open(dir.join("b"));
            let flags = libc::O_RDWR | libc::O_TRUNC | libc::O_CREAT;
            let file = open_raw(&dir.join("b"), flags, 0o644).expect("open");
            file.write_all_at(b"new", 0).expect("write");
            assert_eq!(read_all(&held), "new");
            fs::write(dir.join("c"), "").expect("empty it");
            assert_eq!(read(dir.join("c")), "");
            fs::write(dir.join("c"), "again").expect("fill it");
            assert_eq!(read(dir.join("c")), "again");
        },
    );
}

fn appending() {
    everywhere(
        |dir| put(dir.join("file"), "start"),
        |dir| {
            let open = || OpenOptions::new().append(true).open(dir.join("file")).expect("open");
            let (mut a, mut b) = (open(), open());
            for i in 0..5 {
                a.write_all(format!(" a{i}").as_bytes()).expect("write");
                b.write_all(format!(" b{i}").as_bytes()).expect("write");
            }
            assert_eq!(read(dir.join("file")), "start a0 b0 a1 b1 a2 b2 a3 b3 a4 b4");
            // open(2), BUGS: Linux appends, whatever offset pwrite names.
            a.write_all_at(b"!", 0).expect("pwrite");
            assert!(read(dir.join("file")).ends_with("b4!"));
            edit(dir.join("file")).set_len(5).expect("truncate");
            b.write_all(b" end").expect("write");
            assert_eq!(read(dir.join("file")), "start end");
        },
    );
}

fn directories_are_not_files() {
    everywhere(
        |dir| {
            make_dir(dir.join("dir"));
            put(dir.join("file"), "x");
        },
        |dir| {
            let path = dir.join("dir");
            fails(open_raw(&path, libc::O_WRONLY, 0), Errno::EISDIR);
            fails(open_raw(&path, libc::O_RDWR, 0), Errno::EISDIR);
            fails(open_raw(&path, libc::O_RDONLY | libc::O_CREAT, 0o644), Errno::EISDIR);
            fails(open_raw(&path, libc::O_RDONLY | libc::O_TRUNC, 0), Errno::EISDIR);
            let directory = open_raw(&path, libc::O_RDONLY | libc::O_DIRECTORY, 0).expect("open");
            fails((&directory).read(&mut [0; 8]), Errno::EISDIR);
            directory.sync_all().expect("fsync of a directory");
            directory.sync_data().expect("fdatasync of a directory");
            fails(open_raw(&dir.join("file"), libc::O_DIRECTORY, 0), Errno::ENOTDIR);
            fails(open_raw(&dir.join("file/below"), libc::O_RDONLY, 0), Errno::ENOTDIR);
            fails(fs::read_dir(dir.join("file")).map(drop), Errno::ENOTDIR);
        },
    );
}

fn symlinks_are_followed_or_not() {
    everywhere(
        |dir| {
            put(dir.join("file"), "x");
            make_dir(dir.join("dir"));
            put(dir.join("dir/inside"), "inside");
            symlink("file", dir.join("to-file")).expect("symlink");
            symlink("dir", dir.join("to-dir")).expect("symlink");
            symlink("loop2", dir.join("loop1")).expect("symlink");
            symlink("loop1", dir.join("loop2")).expect("symlink");
            // xfs takes no longer ones.
            symlink("x".repeat(1023), dir.join("long")).expect("symlink");
            symlink("../escape/../dir/./inside", dir.join("dir/odd")).expect("symlink");
        },
        |dir| {
            fails(open_raw(&dir.join("to-file"), libc::O_NOFOLLOW, 0), Errno::ELOOP);
            let both = libc::O_NOFOLLOW | libc::O_DIRECTORY;
            fails(open_raw(&dir.join("to-dir"), both, 0), Errno::ENOTDIR);
            fails(open_raw(&dir.join("loop1"), libc::O_RDONLY, 0), Errno::ELOOP);
            fails(fs::metadata(dir.join("loop1/x")), Errno::ELOOP);
            assert_eq!(read(dir.join("to-file")), "x");
            assert_eq!(read(dir.join("to-dir/inside")), "inside");
            append(dir.join("to-file"), "y");
            assert_eq!(read(dir.join("file")), "xy");
            let long = fs::read_link(dir.join("long")).expect("readlink");
            assert_eq!(long.as_os_str().len(), 1023);
            assert_eq!(stat(dir.join("long")).len(), 1023);
            let odd = fs::read_link(dir.join("dir/odd")).expect("readlink");
            assert_eq!(odd, Path::new("../escape/../dir/./inside"));
            fails(fs::read_link(dir.join("file")), Errno::EINVAL);
            fails(fs::read_link(dir.join("dir")), Errno::EINVAL);
            fails(symlink("x".repeat(4096), dir.join("longer")), Errno::ENAMETOOLONG);
            fails(symlink("", dir.join("empty")), Errno::ENOENT);
            fails(symlink("x", dir.join("file")), Errno::EEXIST);
        },
    );
}

fn paths_that_lead_nowhere() {
    everywhere(
        |dir| put(dir.join("file"), "x"),
        |dir| {
            let long = "n".repeat(256);
            fails(open_raw(&dir.join("missing"), libc::O_RDONLY, 0), Errno::ENOENT);
            fails(open_raw(&dir.join("missing/x"), libc::O_CREAT, 0o644), Errno::ENOENT);
            fails(open_raw(&dir.join("file/x"), libc::O_CREAT, 0o644), Errno::ENOTDIR);
            fails(open_raw(&dir.join(&long), libc::O_CREAT, 0o644), Errno::ENAMETOOLONG);
            fails(open_raw(&dir.join(&long[1..]), libc::O_RDONLY, 0), Errno::ENOENT);
            fails(open_raw(Path::new(""), libc::O_RDONLY, 0), Errno::ENOENT);
            fails(open_raw(&dir.join("file/"), libc::O_RDONLY, 0), Errno::ENOTDIR);
        },
    );
}

fn special_files() {
    everywhere(
        |dir| {
            node(dir.join("fifo"), SFlag::S_IFIFO, (0, 0));
            drop(UnixListener::bind(dir.join("socket")).expect("socket"));
        },
        |dir| {
            let nonblock = libc::O_WRONLY | libc::O_NONBLOCK;
            fails(open_raw(&dir.join("fifo"), nonblock, 0), Errno::ENXIO);
            open_raw(&dir.join("fifo"), libc::O_RDONLY | libc::O_NONBLOCK, 0).expect("to read");
            fails(open_raw(&dir.join("socket"), libc::O_RDONLY, 0), Errno::ENXIO);
        },
    );
}

/// Only through the mount: a plain directory may lie on a filesystem that is mounted nodev.
fn devices_open() {
    let mut union = Union::new(1);
    node(union.lower(0, "null"), SFlag::S_IFCHR, (1, 3));
    node(union.upper("zero"), SFlag::S_IFCHR, (1, 5));
    union.mount();
    node(union.at("full"), SFlag::S_IFCHR, (1, 7));
    fs::write(union.at("null"), "swallowed").expect("write to null");
    assert_eq!(read(union.at("null")), "");
    let mut bytes = [1; 8];
    open(union.at("zero")).read_exact(&mut bytes).expect("read zeros");
    assert_eq!(bytes, [0; 8]);
    fails(edit(union.at("full")).write(b"x"), Errno::ENOSPC);
    union.umount();
}

fn path_descriptors() {
    everywhere(
        |dir| put(dir.join("file"), "x"),
        |dir| {
            let file = open_raw(&dir.join("file"), libc::O_PATH, 0).expect("open");
            assert_eq!(file.metadata().expect("fstat").len(), 1);
            fails((&file).read(&mut [0; 1]), Errno::EBADF);
            let flags = libc::O_PATH | libc::O_NOFOLLOW;
            symlink("file", dir.join("link")).expect("symlink");
            let link = open_raw(&dir.join("link"), flags, 0).expect("a symlink itself");
            assert!(link.metadata().expect("fstat").is_symlink());
        },
    );
}

fn synchronous_writing() {
    everywhere(
        |dir| put(dir.join("file"), "x"),
        |dir| {
            for flag in [libc::O_SYNC, libc::O_DSYNC] {
                let file = open_raw(&dir.join("file"), libc::O_WRONLY | flag, 0).expect("open");
                file.write_all_at(b"synchronous", 0).expect("write");
                file.sync_all().expect("fsync");
                file.sync_data().expect("fdatasync");
            }
            assert_eq!(read(dir.join("file")), "synchronous");
            open(dir.join("file")).sync_all().expect("fsync of a file open for reading");
        },
    );
}

fn direct_io() {
    let mut union = Union::new(1);
    let content = [b'x'; 8192];
    put(union.lower(0, "low"), content);
    put(union.upper("up"), content);
    union.mount();
    for name in ["low", "up"] {
        let path = union.at(name);
        let flags = libc::O_RDWR | libc::O_DIRECT;
        let direct = open_raw(&path, flags, 0).expect("O_DIRECT");
        let mut page = Box::new(Page([0; 4096]));
        assert_eq!(sys::pread(&direct, &mut page.0, 4096).expect("read"), 4096);
        assert_eq!(page.0, [b'x'; 4096]);
        page.0.fill(b'y');
        direct.write_all_at(&page.0, 4096).expect("write");
        let plain = open(&path);
        let mut both = [0; 8192];
        plain.read_exact_at(&mut both, 0).expect("read");
        assert_eq!((both[4095], both[4096], both[8191]), (b'x', b'y', b'y'), "{name}");
        edit(&path).write_all_at(b"cached", 0).expect("write");
        sys::pread(&direct, &mut page.0, 0).expect("read");
        assert_eq!(&page.0[..6], b"cached", "{name}");
    }
    union.remount();
    assert_eq!(fs::read(union.at("low")).expect("read")[8191], b'y');
    union.umount();
}

fn access_modes() {
    everywhere(
        |dir| put(dir.join("file"), "content"),
        |dir| {
            let path = dir.join("file");
            let mut reader = open(&path);
            fails(reader.write(b"x"), Errno::EBADF);
            let mut writer = open_raw(&path, libc::O_WRONLY, 0).expect("open");
            fails(writer.read(&mut [0; 1]), Errno::EBADF);
            writer.write_all(b"C").expect("write");
            let mut all = String::new();
            reader.read_to_string(&mut all).expect("read");
            assert_eq!(all, "Content");
            assert_eq!(reader.read(&mut [0; 1]).expect("at the end"), 0);
            assert_eq!(reader.read_at(&mut [0; 1], 1 << 40).expect("beyond the end"), 0);
        },
    );
}

/// The umask belongs to the process, so another process sets it.
fn umask_and_modes() {
    let mut union = Union::new(1);
    make_dir(union.lower(0, "low"));
    let plain = union.root().join("plain");
    make_dir(&plain);
    union.mount();
    let sh = find_program("sh").expect("sh");
    for place in [plain, union.at("low")] {
        let script = "umask 027; : > file; mkdir dir; mkfifo fifo; ln -s x link; umask 0; : > all";
        let ended = std::process::Command::new(&sh).args(["-c", script]).current_dir(&place).status().expect("sh");
        assert!(ended.success());
        assert_eq!(mode(place.join("file")), 0o640);
        assert_eq!(mode(place.join("dir")), 0o750);
        assert_eq!(mode(place.join("fifo")), 0o640);
        assert_eq!(mode(place.join("link")), 0o777);
        assert_eq!(mode(place.join("all")), 0o666);
    }
    union.umount();
}

fn no_access_time() {
    everywhere(
        |dir| put(dir.join("file"), "content"),
        |dir| {
            let file =
                OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(dir.join("file")).expect("open");
            assert_eq!(read_all(&file), "content");
        },
    );
}

/// The one thing missing: see the README's limits.
fn temporary_files_without_a_name_are_refused() {
    let mut union = Union::new(1);
    make_dir(union.lower(0, "d"));
    union.mount();
    let flags = libc::O_TMPFILE | libc::O_RDWR;
    fails(open_raw(&union.at("d"), flags, 0o600), Errno::EOPNOTSUPP);
    tempfile::tempfile_in(union.at("d")).expect("libraries fall back to a name");
    assert_eq!(names(union.at("d")), Vec::<String>::new());
    union.umount();
}

fn a_file_created_without_rights_is_writable() {
    everywhere(
        |_| (),
        |dir| {
            let mut file = create_new(dir.join("closed"), 0o000);
            file.write_all(b"by its creator").expect("write");
            assert_eq!(read_all(&file), "by its creator");
            assert_eq!(mode(dir.join("closed")), 0);
            let mut file = create_new(dir.join("readonly"), 0o444);
            file.write_all(b"x").expect("write");
            file.set_len(100).expect("truncate");
            file.sync_all().expect("fsync");
            assert_eq!(stat(dir.join("readonly")).len(), 100);
        },
    );
}
