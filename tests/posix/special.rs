//! Locks, sockets, fifos, and what programs expect of a filesystem beyond single calls.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::SFlag;

use crate::common::Test;
use crate::common::files::*;
use crate::common::mount::eventually;
use crate::common::sys::open as open_raw;
use crate::common::union::everywhere;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(flock_excludes),
        t!(record_locks_exclude),
        t!(locks_survive_a_copy_up),
        t!(fifos_carry_data),
        t!(sockets_connect),
        t!(replacing_by_rename),
        t!(a_lock_file_protocol),
        t!(a_journal_protocol),
    ]
}

fn flock_excludes() {
    everywhere(
        |dir| put(dir.join("file"), "x"),
        |dir| {
            let (a, b) = (open(dir.join("file")), edit(dir.join("file")));
            a.try_lock().expect("an exclusive lock");
            assert!(b.try_lock().is_err(), "held by another");
            assert!(b.try_lock_shared().is_err(), "held by another");
            a.unlock().expect("unlock");
            b.try_lock_shared().expect("a shared lock");
            a.try_lock_shared().expect("another shared lock");
            drop(a);
            // A program that another test is starting may hold copies of our descriptors until it runs.
            assert!(eventually(10, || b.try_lock().is_ok()), "alone again");
        },
    );
}

fn record(kind: i32, start: i64, length: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: length, l_pid: 0 }
}

/// Open file description locks, so that one process can be two parties.
fn lock(file: &File, kind: i32, start: i64, length: i64) -> Result<i32, Errno> {
    fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&record(kind, start, length)))
}

fn record_locks_exclude() {
    everywhere(
        |dir| put(dir.join("file"), "0123456789"),
        |dir| {
            let (a, b) = (edit(dir.join("file")), edit(dir.join("file")));
            lock(&a, libc::F_WRLCK, 0, 5).expect("lock");
            assert_eq!(lock(&b, libc::F_WRLCK, 4, 2), Err(Errno::EAGAIN));
            assert_eq!(lock(&b, libc::F_RDLCK, 4, 2), Err(Errno::EAGAIN));
            lock(&b, libc::F_WRLCK, 5, 5).expect("the other half");
            lock(&a, libc::F_UNLCK, 0, 0).expect("unlock");
            lock(&b, libc::F_WRLCK, 0, 0).expect("everything");
            let mut question = record(libc::F_WRLCK, 0, 1);
            fcntl(a.as_fd(), FcntlArg::F_OFD_GETLK(&mut question)).expect("ask");
            assert_eq!(i32::from(question.l_type), libc::F_WRLCK);
        },
    );
}

fn locks_survive_a_copy_up() {
    everywhere(
        |dir| put(dir.join("file"), "content"),
        |dir| {
            let (a, b) = (open(dir.join("file")), open(dir.join("file")));
            a.try_lock().expect("lock");
            append(dir.join("file"), "!");
            chmod(dir.join("file"), 0o600);
            assert!(b.try_lock().is_err(), "still held");
            let fresh = edit(dir.join("file"));
            assert!(fresh.try_lock().is_err(), "still held, for those who come later too");
            drop(a);
            // As above.
            assert!(eventually(10, || fresh.try_lock().is_ok()), "given back");
        },
    );
}

fn fifos_carry_data() {
    everywhere(
        |dir| node(dir.join("fifo"), SFlag::S_IFIFO, (0, 0)),
        |dir| {
            let path = dir.join("fifo");
            let writer = {
                let path = path.clone();
                thread::spawn(move || {
                    let mut fifo = OpenOptions::new().write(true).open(path).expect("open");
                    fifo.write_all(b"through the fifo").expect("write");
                })
            };
            let mut text = String::new();
            open(&path).read_to_string(&mut text).expect("read");
            writer.join().expect("the writer");
            assert_eq!(text, "through the fifo");
            assert_eq!(stat(&path).len(), 0);
            chmod(&path, 0o600);
            let both = open_raw(&path, libc::O_RDWR, 0).expect("open");
            (&both).write_all(b"x").expect("write");
            (&both).read_exact(&mut [0]).expect("read");
        },
    );
}

fn sockets_connect() {
    everywhere(
        |_| (),
        |dir| {
            // Names of sockets are short: go through a descriptor of the directory.
            let here = open(dir);
            let at = |name: &str| {
                use std::os::fd::AsRawFd;
                format!("/proc/self/fd/{}/{name}", here.as_raw_fd())
            };
            let listener = UnixListener::bind(at("stream")).expect("bind");
            let server = thread::spawn(move || {
                let (mut peer, _) = listener.accept().expect("accept");
                peer.write_all(b"hello").expect("write");
            });
            let mut text = String::new();
            let mut client = UnixStream::connect(at("stream")).expect("connect");
            client.read_to_string(&mut text).expect("read");
            server.join().expect("the server");
            assert_eq!(text, "hello");
            assert_eq!(stat(dir.join("stream")).mode() & libc::S_IFMT, libc::S_IFSOCK);
            fails(UnixListener::bind(at("stream")), Errno::EADDRINUSE);
            let receiver = UnixDatagram::bind(at("datagram")).expect("bind");
            fs::rename(dir.join("datagram"), dir.join("renamed")).expect("rename");
            let sender = UnixDatagram::unbound().expect("socket");
            sender.send_to(b"x", at("renamed")).expect("send");
            assert_eq!(receiver.recv(&mut [0; 8]).expect("receive"), 1);
            fails(UnixStream::connect(at("missing")).map(drop), Errno::ENOENT);
        },
    );
}

/// What every careful program does to a file: write a new one, sync, rename over the old one.
fn replacing_by_rename() {
    everywhere(
        |dir| put(dir.join("settings"), "old"),
        |dir| {
            for round in 0..20 {
                let mut file = create_new(dir.join("settings.tmp"), 0o644);
                file.write_all(format!("new {round}").as_bytes()).expect("write");
                file.sync_all().expect("fsync");
                drop(file);
                fs::rename(dir.join("settings.tmp"), dir.join("settings")).expect("rename");
                open(dir).sync_all().expect("fsync of the directory");
                assert_eq!(read(dir.join("settings")), format!("new {round}"));
            }
            assert_eq!(names(dir), ["settings"]);
        },
    );
}

/// O_EXCL as a lock: of many, one wins, every time.
fn a_lock_file_protocol() {
    everywhere(
        |dir| put(dir.join("counter"), "0"),
        |dir| {
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..25 {
                            while try_create_new(&dir.join("lock"), 0o600).is_err() {
                                thread::yield_now();
                            }
                            let count: u32 = read(dir.join("counter")).parse().expect("a number");
                            fs::write(dir.join("counter"), (count + 1).to_string()).expect("write");
                            fs::remove_file(dir.join("lock")).expect("unlock");
                        }
                    });
                }
            });
            assert_eq!(read(dir.join("counter")), "100");
        },
    );
}

/// As a database commits: a journal beside the file, pages in place, the journal removed.
fn a_journal_protocol() {
    everywhere(
        |dir| put(dir.join("base"), vec![b'0'; 40_960]),
        |dir| {
            let base = edit(dir.join("base"));
            let reader = open(dir.join("base"));
            for round in 1..=9u8 {
                let mut journal = create_new(dir.join("base-journal"), 0o600);
                let mut page = [0; 4096];
                base.read_exact_at(&mut page, u64::from(round) * 4096).expect("read");
                journal.write_all(&page).expect("write");
                journal.sync_data().expect("fdatasync");
                base.write_all_at(&[b'0' + round; 4096], u64::from(round) * 4096).expect("write");
                base.sync_data().expect("fdatasync");
                fs::remove_file(dir.join("base-journal")).expect("remove");
                reader.read_exact_at(&mut page, u64::from(round) * 4096).expect("read");
                assert!(page.iter().all(|byte| *byte == b'0' + round), "round {round}");
            }
            assert_eq!(names(dir), ["base"]);
            assert_eq!(stat(dir.join("base")).len(), 40_960);
        },
    );
}
