//! A daemon that containers can trust: what it lives through, what it tells, and what it takes.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::Test;
use crate::common::dice::{Dice, fresh_seed};
use crate::common::files::*;
use crate::common::machine::{layerfs_binary, release_build};
use crate::common::mount::{MARK, Mount, eventually, mounted_on, processes_of, state_and_parent};
use crate::common::sys::SharedMap;
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(signals_that_mean_nothing),
        t!(stopped_and_continued),
        t!(clients_that_are_killed).seconds(300),
        t!(sigterm_under_load),
        t!(the_oom_killer_goes_elsewhere_first),
        t!(as_many_descriptors_as_allowed),
        t!(an_idle_daemon_is_small),
        t!(statistics_in_the_log),
        t!(the_system_log).root(),
    ]
}

fn signals_that_mean_nothing() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "x");
    union.mount();
    for signal in [Signal::SIGHUP, Signal::SIGPIPE, Signal::SIGUSR1, Signal::SIGCHLD, Signal::SIGWINCH, Signal::SIGURG]
    {
        union.mounted().signal(signal);
        append(union.at("file"), "y");
    }
    assert_eq!(read(union.at("file")), "xyyyyyy");
    union.umount();
}

/// As the suspend of a machine does it: whoever asks meanwhile waits, and nothing is lost.
fn stopped_and_continued() {
    let mut union = Union::new(1);
    for n in 0..20 {
        put(union.lower(0, &format!("file{n}")), "lower");
    }
    union.mount();
    let daemon = union.mounted().daemon();
    for round in 0..4 {
        // Not by this process: a program that another test starts meanwhile has our open files until its exec, which closes them
        // and so waits for the daemon, and whoever looks at that process waits, too.
        let script = format!("kill -STOP {daemon}; sleep 0.5; kill -CONT {daemon}");
        let mut other = Command::new("sh").args(["-c", &script]).spawn().expect("sh");
        assert!(eventually(10, || is_stopped(daemon)), "it is stopped");
        thread::scope(|scope| {
            let asked: Vec<_> = (0..5)
                .map(|n| {
                    let path = union.at(&format!("file{}", round * 5 + n));
                    scope.spawn(move || append(path, " and upper"))
                })
                .collect();
            thread::sleep(Duration::from_millis(50));
            let answered = asked.iter().any(|thread| thread.is_finished());
            assert!(!answered || !is_stopped(daemon), "nobody answers");
        });
        assert!(other.wait().expect("sh").success());
    }
    for n in 0..20 {
        assert_eq!(read(union.at(&format!("file{n}"))), "lower and upper");
    }
    union.umount();
}

fn is_stopped(pid: i32) -> bool {
    state_and_parent(pid).expect("a process").0 == "T"
}

/// Set for a process that is to work in a mount until it is killed: `WHAT PATH`.
const CLIENT: &str = "LAYERFS_TEST_CLIENT";

/// What clients do when they are killed.
const CLIENTS: [&str; 5] = ["read", "write", "copy-up", "map", "names"];

/// Runs as such a client if this process was started as one.
pub fn be_a_client_if_asked() {
    let Ok(asked) = std::env::var(CLIENT) else { return };
    let (what, path) = asked.split_once(' ').expect("WHAT PATH");
    let (path, mut buffer) = (Path::new(path), vec![7; 1 << 20]);
    println!("ready");
    for n in 0_u64.. {
        let lower = path.join(format!("lower{}", n % 200));
        match what {
            "read" => open(path.join("big")).read_exact(&mut buffer).expect("read"),
            "write" => {
                let file = File::options().create(true).truncate(n % 8 == 0).write(true).open(path.join("new"));
                file.expect("open").write_all_at(&buffer, (n % 8) << 20).expect("write");
            }
            "copy-up" => edit(lower).write_all_at(b"x", n).expect("write"),
            "map" => {
                let map = SharedMap::new(&edit(lower), 1 << 16, true).expect("map");
                map.write(usize::try_from(n % 65536).expect("small"), b"y");
                drop(map.read());
            }
            _ => {
                put(path.join("d/one"), "x");
                fs::rename(path.join("d/one"), path.join("two")).expect("rename");
                fs::remove_file(path.join("two")).expect("remove");
            }
        }
    }
}

fn client(what: &str, union: &Union, place: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .env(CLIENT, format!("{what} {}", union.at(place).display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a client");
    let mut line = [0; 6];
    child.stdout.as_mut().expect("its output").read_exact(&mut line).expect("it starts");
    child
}

/// As the OOM killer does it, in the middle of whatever they do.
fn clients_that_are_killed() {
    const ROUNDS: usize = 6;
    let mut dice = Dice::new(fresh_seed());
    let mut union = Union::new(1);
    for round in 0..ROUNDS {
        for what in CLIENTS {
            make_dir(union.lower(0, &format!("{round}/{what}/d")));
        }
        put(union.lower(0, &format!("{round}/read/big")), vec![b'b'; 3 << 20]);
        for n in 0..200 {
            put(union.lower(0, &format!("{round}/copy-up/lower{n}")), vec![b'c'; 100_000]);
            put(union.lower(0, &format!("{round}/map/lower{n}")), vec![b'm'; 1 << 16]);
        }
    }
    let before = union.lower_trees();
    union.mount();
    let descriptors = union.stats()["descriptors"].as_u64().expect("a number");
    for round in 0..ROUNDS {
        let mut clients: Vec<Child> =
            CLIENTS.iter().map(|what| client(what, &union, &format!("{round}/{what}"))).collect();
        thread::sleep(Duration::from_millis(20 + dice.below(60) as u64));
        for child in &mut clients {
            assert_eq!(child.try_wait().expect("its state"), None, "a client has failed");
            child.kill().expect("kill it");
            child.wait().expect("its end");
        }
        // Whole, before and after: a copy never shows in part.
        for n in 0..200 {
            let size = |what: &str| stat(union.at(&format!("{round}/{what}/lower{n}"))).len();
            assert_eq!((size("copy-up"), size("map")), (100_000, 1 << 16), "{n}");
        }
    }
    let left = union.stats()["descriptors"].as_u64().expect("a number");
    assert!(left < descriptors + 300, "{left} descriptors, {descriptors} before");
    // Nothing holds it any more.
    union.umount();
    assert_eq!(names(union.work("layerfs/stage")), [""; 0]);
    assert_eq!(names(union.work("layerfs/parked")), [""; 0]);
    union.assert_lowers(&before);
}

/// It disappears from the tree at once, and whoever writes there goes on to the end of his file.
fn sigterm_under_load() {
    const WRITERS: usize = 4;
    const LINES: usize = 400;
    let mut union = Union::new(1);
    for n in 0..WRITERS {
        put(union.lower(0, &format!("file{n}")), "");
    }
    union.mount();
    thread::scope(|scope| {
        for n in 0..WRITERS {
            let mut file = edit(union.at(&format!("file{n}")));
            scope.spawn(move || {
                for line in 0..LINES {
                    writeln!(file, "line {line}").expect("write");
                    if line % 100 == 0 {
                        file.sync_data().expect("fsync");
                    }
                    thread::sleep(Duration::from_micros(500));
                }
            });
        }
        thread::sleep(Duration::from_millis(50));
        union.mounted().signal(Signal::SIGTERM);
        assert!(eventually(10, || mounted_on(&union.point()).is_none()), "detached");
        // Once more means nothing.
        if let Some(daemon) = processes_of(union.point().as_os_str()).first() {
            kill(Pid::from_raw(*daemon), Signal::SIGTERM).unwrap_or_default();
        }
    });
    union.umount();
    let whole: String = (0..LINES).map(|line| format!("line {line}\n")).collect();
    for n in 0..WRITERS {
        assert_eq!(read(union.upper(&format!("file{n}"))), whole);
    }
    assert!(!exists(union.work("work/incompat/layerfs")), "a clean end");
}

/// Mounts by a shell that does something to itself before.
fn mount_after(before: &str, union: &Union) -> Mount {
    let mut command = Command::new("sh");
    let script = format!("{before} && exec \"$0\" mount \"$@\"");
    command.args(["-c", &script]).arg(layerfs_binary()).args(union.command_line()).arg(union.point());
    Mount::attempt_by(command, &union.point()).unwrap_or_else(|refused| panic!("{refused:?}"))
}

fn oom_score_adjustment(pid: &str) -> i32 {
    read(format!("/proc/{pid}/oom_score_adj")).trim().parse().expect("a number")
}

/// Whatever it inherits, it is no worse off, and as well off as the kernel lets it.
fn the_oom_killer_goes_elsewhere_first() {
    let own = oom_score_adjustment("self");
    let privileged = fs::write("/proc/self/oom_score_adj", format!("{}", own - 1)).is_ok();
    fs::write("/proc/self/oom_score_adj", format!("{own}")).expect("raise it again");
    let union = Union::new(1);
    put(union.lower(0, "file"), "x");
    for inherited in [own, own + 300, 1000] {
        let mount = mount_after(&format!("echo {inherited} > /proc/self/oom_score_adj"), &union);
        let found = oom_score_adjustment(&mount.daemon().to_string());
        assert!(found <= own, "{found}, where {inherited} was inherited and {own} may be had");
        assert!(found <= -998 || !privileged, "{found}");
        assert!(found > -1000 || own == -1000, "the machine comes first");
        mount.umount();
    }
}

fn as_many_descriptors_as_allowed() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    let union = Union::new(1);
    put(union.lower(0, "file"), "x");
    let mount = mount_after("ulimit -S -n 100", &union);
    let limits = read(format!("/proc/{}/limits", mount.daemon()));
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("the line");
    let limits: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
    assert_eq!(limits, [hard.to_string(), hard.to_string()]);
    mount.umount();
}

/// The memory that a process alone has, in KiB: all of it, and what no file stands behind.
fn private_memory(pid: i32) -> (u64, u64) {
    let table = read(format!("/proc/{pid}/smaps_rollup"));
    let sum = |name: &str| -> u64 {
        let lines = table.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
    };
    (sum("Private_Clean:") + sum("Private_Dirty:"), sum("Anonymous:"))
}

/// Also with more threads than this machine would give it.
fn an_idle_daemon_is_small() {
    for threads in ["1", "2", "8"] {
        let mut union = Union::new(2).arguments(&["--threads", threads]);
        for n in 0..100 {
            put(union.lower(n % 2, &format!("d/{n}")), "x");
        }
        union.mount();
        assert_eq!(names(union.at("d")).len(), 100);
        append(union.at("d/1"), "y");
        let (private, anonymous) = private_memory(union.mounted().daemon());
        eprintln!("{threads} threads: {private} KiB of private memory, {anonymous} KiB of it not of files");
        assert!(anonymous < 2048, "{anonymous} KiB with {threads} threads");
        // A debug build's program itself is larger.
        assert!(private < 6 * 1024 || !release_build(), "{private} KiB with {threads} threads");
        union.umount();
    }
}

fn statistics_in_the_log() {
    let union = Union::new(1);
    put(union.lower(0, "file"), "x");
    let log = union.root().join("log");
    let mut command = Command::new(layerfs_binary());
    command.args(["mount", "-f"]).args(union.command_line()).arg(union.point()).stderr(create_new(&log, 0o600));
    let mount = Mount::start_foreground_by(command, &union.point());
    append(union.at("file"), "y");
    mount.signal(Signal::SIGUSR1);
    assert!(eventually(10, || read(&log).contains("bytes copied up")), "{}", read(&log));
    let text = read(&log);
    for part in
        [union.point().to_str().expect("ASCII"), "inodes", "operations: ", "lookup cache: ", "copied up: data 1"]
    {
        assert!(text.contains(part), "no {part} in {text}");
    }
    assert!(text.lines().all(|line| line.starts_with("layerfs: info: ")), "{text}");
    // However often it is asked: not more than the log takes in a second.
    for _ in 0..200 {
        mount.signal(Signal::SIGUSR1);
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_millis(1100));
    mount.signal(Signal::SIGUSR1);
    assert!(eventually(10, || read(&log).contains("lines suppressed")), "{}", read(&log));
    assert!(read(&log).lines().count() < 150, "{}", read(&log).lines().count());
    mount.umount();
}

/// A daemon in a mount namespace of its own, with a /dev/log of its own.
struct Apart {
    mark: OsString,
    pid: i32,
}

impl Apart {
    /// `dev` becomes its /dev, with a `log` that leads to `socket`.
    fn start(union: &Union, dev: &Path, socket: &Path) -> Apart {
        // It holds copies of other tests' mounts too, which have to end when they are taken off: it lets go of those.
        let script = "set -e; dev=$1 socket=$2 others=$3; shift 3
            cut -d' ' -f5 /proc/self/mountinfo | grep -F \"$others\" | sort -r | xargs -r umount -l
            mount -t tmpfs none \"$dev\"; mknod \"$dev/null\" c 1 3; mknod \"$dev/fuse\" c 10 229
            mkdir \"$dev/shm\"; mount --rbind /dev/shm \"$dev/shm\"; ln -s \"$socket\" \"$dev/log\"
            mount --rbind \"$dev\" /dev; exec \"$0\" mount \"$@\"";
        let mark = union.point().into_os_string();
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", script]).arg(layerfs_binary());
        let others = union.root().parent().expect("a parent").join("layerfs-");
        command.args([dev, socket, &others]).args(union.command_line()).arg(union.point()).env(MARK, &mark);
        crate::common::mount::run(&mut command).success();
        Apart { pid: processes_of(&mark)[0], mark }
    }

    /// A path as it sees it.
    fn sees(&self, path: &Path) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.pid)).join(path.strip_prefix("/").expect("absolute"))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).expect("signal the daemon");
    }

    fn has_ended(&self) -> bool {
        processes_of(&self.mark).is_empty()
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        if !self.has_ended() {
            self.signal(Signal::SIGKILL);
        }
    }
}

/// In the background it tells the system's log; one that nobody reads, or that is gone, stops no request.
fn the_system_log() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "x");
    let (dev, socket) = (union.root().join("dev"), union.root().join("socket"));
    make_dir(&dev);
    let listen = || {
        let log = UnixDatagram::bind(&socket).expect("a socket");
        log.set_read_timeout(Some(Duration::from_secs(10))).expect("a time limit");
        log
    };
    let hear = |log: &UnixDatagram| {
        let mut line = [0; 4096];
        let length = log.recv(&mut line).expect("a line in the log");
        String::from_utf8_lossy(&line[..length]).into_owned()
    };
    let log = listen();
    let daemon = Apart::start(&union, &dev, &socket);
    let file = daemon.sees(&union.at("file"));
    append(&file, "y");
    daemon.signal(Signal::SIGUSR1);
    let line = hear(&log);
    // The facility "daemon", the severity "information".
    assert!(line.starts_with(&format!("<30>layerfs[{}]: ", daemon.pid)), "{line}");
    // Nobody reads any more.
    for _ in 0..100 {
        daemon.signal(Signal::SIGUSR1);
        append(&file, "y");
    }
    drop(log);
    fs::remove_file(&socket).expect("remove the socket");
    daemon.signal(Signal::SIGUSR1);
    append(&file, "y");
    // The log is started anew.
    let log = listen();
    thread::sleep(Duration::from_millis(1100));
    daemon.signal(Signal::SIGUSR1);
    assert!(hear(&log).contains("layerfs["));
    assert_eq!(read(&file).len(), 103);
    daemon.signal(Signal::SIGTERM);
    assert!(eventually(10, || daemon.has_ended()), "it ends");
    assert_eq!(read(union.upper("file")).len(), 103);
    drop(daemon);
    union.mount();
    union.umount();
}
