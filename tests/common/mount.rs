//! Mounts that always end: started as a user would, unmounted as a user would, and if that fails
//! detached, aborted and their daemon killed, which fails the test.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::machine::{layerfs_binary, may_mount, not_root};

/// How long one command may take.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// The variable by which a mount's daemon is recognised among the processes.
pub const MARK: &str = "LAYERFS_TEST_MARK";
/// Mount options to run every test with.
const OPTIONS: &str = "LAYERFS_TEST_OPTIONS";
const FUSE_CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// What a command that came to its end left.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// Everything it printed.
    pub stdout: String,
    /// Everything it complained.
    pub stderr: String,
}

impl Ended {
    /// Passes the output on if the command succeeded.
    #[track_caller]
    pub fn success(self) -> Ended {
        assert!(self.status.success(), "{}\nstdout: {}\nstderr: {}", self.status, self.stdout, self.stderr);
        self
    }
}

/// Runs a command until it and every holder of its output have ended.
pub fn try_run(command: &mut Command, limit: Duration) -> Result<Ended, String> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{shown} can't be run: {error}"))?;
    let deadline = Instant::now() + limit;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait_until(&mut child, deadline).ok_or_else(|| {
        end_child(&mut child);
        format!("{shown} did not end within {limit:?}")
    })?;
    let left = || deadline.saturating_duration_since(Instant::now()) + Duration::from_secs(1);
    let held = |_| format!("{shown} ended, but its output is still held open");
    Ok(Ended {
        status,
        stdout: stdout.recv_timeout(left()).map_err(held)?,
        stderr: stderr.recv_timeout(left()).map_err(held)?,
    })
}

/// Like [`try_run`] within [`COMMAND_LIMIT`]; a command that doesn't end fails the test.
#[track_caller]
pub fn run(command: &mut Command) -> Ended {
    try_run(command, COMMAND_LIMIT).unwrap_or_else(|fault| panic!("{fault}"))
}

/// Runs `layerfs` with these arguments.
#[track_caller]
pub fn layerfs<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ended {
    run(Command::new(layerfs_binary()).args(arguments))
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is still worth showing.
            drop(pipe.read_to_end(&mut bytes));
        }
        drop(send.send(String::from_utf8_lossy(&bytes).into_owned()));
    });
    receive
}

/// Waits for a child; `None` if it still runs at the deadline.
pub fn wait_until(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn end_child(child: &mut Child) {
    // Both fail only if the child is gone already.
    drop(child.kill());
    drop(child.wait());
}

/// Waits up to `seconds` for something to become true.
pub fn eventually(seconds: u64, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Tries to unmount for a while: a process that another test is starting holds our descriptors too, until its exec, and on a busy
/// machine that takes its time.
pub fn once_free(unmount: impl FnMut() -> bool) -> bool {
    eventually(10, unmount)
}

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone)]
pub struct MountInfo {
    /// The minor number of its `st_dev`.
    pub minor: u64,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Per-mount options, such as `ro,nosuid`.
    pub options: String,
    /// The type, such as `fuse.layerfs`.
    pub kind: String,
    /// What it calls its source.
    pub source: String,
}

/// Every mount that this process sees.
pub fn mounts() -> Vec<MountInfo> {
    let table = fs::read("/proc/self/mountinfo").expect("/proc/self/mountinfo");
    table.split(|byte| *byte == b'\n').filter_map(parse_mount).collect()
}

fn parse_mount(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = String::from_utf8_lossy(fields.nth(2)?).into_owned();
    let point = unescape(fields.nth(1)?);
    let options = String::from_utf8_lossy(fields.next()?).into_owned();
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    Some(MountInfo {
        minor: device.split(':').nth(1)?.parse().ok()?,
        point: PathBuf::from(OsString::from_vec(point)),
        options,
        kind: String::from_utf8_lossy(rest.next()?).into_owned(),
        source: String::from_utf8_lossy(&unescape(rest.next()?)).into_owned(),
    })
}

/// Undoes the octal escapes of the mount table.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| first == b'\\');
        let value = octal
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match value {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

/// The topmost mount on `point`, if there is one.
pub fn mounted_on(point: &Path) -> Option<MountInfo> {
    mounts().into_iter().rev().find(|mount| mount.point == point)
}

/// The processes that carry a mount's mark.
pub fn processes_of(mark: &OsStr) -> Vec<i32> {
    let wanted = [MARK.as_bytes(), b"=", mark.as_bytes()].concat();
    let carries = |pid: &i32| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|v| v == wanted))
    };
    numbered_processes().filter(carries).collect()
}

/// The state of a process, as procfs calls it, and its parent; `None` if there is no such process.
pub fn state_and_parent(pid: i32) -> Option<(String, String)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Before it stands the program's name, in which anything may be.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned);
    fields.next().zip(fields.next())
}

/// How many descriptors a daemon has, without those of its workers on io_uring, of which there are as many as were needed.
pub fn open_descriptors(daemon: i32) -> usize {
    let all = fs::read_dir(format!("/proc/{daemon}/fd")).expect("its descriptors");
    let is_ring = |path: &Path| fs::read_link(path).is_ok_and(|to| to.as_os_str() == "anon_inode:[io_uring]");
    all.filter(|descriptor| !is_ring(&descriptor.as_ref().expect("a descriptor").path())).count()
}

/// A `layerfs` mount on a directory. Dropping it unmounts.
pub struct Mount {
    point: PathBuf,
    mark: OsString,
    owner: String,
    foreground: Option<Child>,
}

impl Mount {
    /// Starts `layerfs mount` with `arguments` and the mountpoint, in the background as callers
    /// do: it has to be mounted when the command returns.
    #[track_caller]
    pub fn start(arguments: &[OsString], point: &Path) -> Mount {
        Mount::attempt(arguments, point).unwrap_or_else(|refused| panic!("no mount on {point:?}: {refused:?}"))
    }

    /// Like [`Mount::start`], where a refusal is an answer.
    #[track_caller]
    pub fn attempt(arguments: &[OsString], point: &Path) -> Result<Mount, Ended> {
        Mount::attempt_in(Path::new("."), arguments, point)
    }

    /// Like [`Mount::start`] in another working directory.
    #[track_caller]
    pub fn start_in(directory: &Path, arguments: &[OsString], point: &Path) -> Mount {
        Mount::attempt_in(directory, arguments, point)
            .unwrap_or_else(|refused| panic!("no mount on {point:?}: {refused:?}"))
    }

    #[track_caller]
    fn attempt_in(directory: &Path, arguments: &[OsString], point: &Path) -> Result<Mount, Ended> {
        let mut command = Command::new(layerfs_binary());
        command.arg("mount").args(arguments).arg(point).current_dir(directory);
        Mount::attempt_by(command, point)
    }

    /// Like [`Mount::attempt`] by another command, which takes `-o OPTIONS` as its last words.
    #[track_caller]
    pub fn attempt_by(mut command: Command, point: &Path) -> Result<Mount, Ended> {
        let mut mount = Mount::announce(point);
        mount.mark(&mut command);
        match try_run(&mut command, COMMAND_LIMIT) {
            Err(fault) => panic!("{fault}; then: {:?}", mount.end()),
            Ok(ended) if ended.status.success() => {
                let quiet = ended.stdout.is_empty() && ended.stderr.is_empty();
                assert!(quiet, "a mount prints nothing: {ended:?}");
                assert!(mounted_on(point).is_some(), "nothing is mounted on {point:?}");
                Ok(mount)
            }
            Ok(refused) => {
                let ended = mount.end();
                assert_eq!(ended, Ok(()), "a refused mount leaves nothing behind");
                Err(refused)
            }
        }
    }

    /// Starts `layerfs mount -f` and waits until it is mounted.
    #[track_caller]
    pub fn start_foreground(arguments: &[OsString], point: &Path) -> Mount {
        let mut command = Command::new(layerfs_binary());
        command.arg("mount").args(arguments).args([OsStr::new("-f"), point.as_os_str()]);
        Mount::start_foreground_by(command, point)
    }

    /// Like [`Mount::start_foreground`] by another command, as for [`Mount::attempt_by`].
    #[track_caller]
    pub fn start_foreground_by(mut command: Command, point: &Path) -> Mount {
        let mut mount = Mount::announce(point);
        command.stdin(Stdio::null());
        mount.mark(&mut command);
        mount.foreground = Some(command.spawn().expect("layerfs"));
        assert!(
            eventually(20, || mounted_on(point).is_some_and(|m| m.kind.starts_with("fuse"))),
            "not mounted after 20 s"
        );
        mount
    }

    fn announce(point: &Path) -> Mount {
        let mount = Mount {
            point: point.to_owned(),
            mark: point.as_os_str().to_owned(),
            owner: super::current(),
            foreground: None,
        };
        live().push(Live { owner: mount.owner.clone(), point: mount.point.clone(), mark: mount.mark.clone() });
        mount
    }

    /// Adds what every mount of the tests has: the mark of its daemon, and the options of this run.
    fn mark(&self, command: &mut Command) {
        command.env(MARK, &self.mark);
        if let Some(options) = std::env::var_os(OPTIONS) {
            command.arg("-o").arg(options);
        }
    }

    /// The process that serves the mount.
    pub fn daemon(&self) -> i32 {
        let found = processes_of(&self.mark);
        assert_eq!(found.len(), 1, "one process serves {:?}: {found:?}", self.point);
        found[0]
    }

    /// Whether every process of the mount is gone.
    pub fn has_ended(&mut self) -> bool {
        if let Some(child) = &mut self.foreground {
            return child.try_wait().expect("wait for layerfs").is_some();
        }
        processes_of(&self.mark).is_empty()
    }

    /// How a mount in the foreground ended, within ten seconds.
    pub fn foreground_status(&mut self) -> Option<ExitStatus> {
        let child = self.foreground.as_mut()?;
        wait_until(child, Instant::now() + Duration::from_secs(10))
    }

    /// The process in the foreground, to read from its pipes.
    pub fn foreground(&mut self) -> &mut Child {
        self.foreground.as_mut().expect("a mount in the foreground")
    }

    /// Detaches the mount of a daemon that was killed.
    pub fn clear_dead(&mut self) {
        detach(&self.point);
    }

    /// Mounts once more, after somebody has taken the mount off; the daemon before may still be ending.
    #[track_caller]
    pub fn again(&self, arguments: &[OsString]) {
        let mut command = Command::new(layerfs_binary());
        command.arg("mount").args(arguments).arg(&self.point);
        self.mark(&mut command);
        run(&mut command).success();
    }

    /// Leaves the mount of a daemon that was killed to somebody else.
    pub fn leave_dead(self) {
        live().retain(|known| known.mark != self.mark);
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.daemon()), signal).expect("signal the daemon");
    }

    /// Unmounts as a user does; both the mount and its daemon are gone afterwards.
    #[track_caller]
    pub fn umount(mut self) {
        if let Err(fault) = self.end() {
            panic!("{fault}");
        }
    }

    fn end(&mut self) -> Result<(), String> {
        let result = self.end_politely();
        if result.is_err() {
            force_end(&self.point, &self.mark);
            if let Some(child) = &mut self.foreground {
                end_child(child);
            }
        }
        live().retain(|known| known.mark != self.mark);
        result
    }

    /// A mount namespace that was made meanwhile, by another run of tests for instance, keeps the daemon: then it has to end with
    /// that. Who it is, is told.
    fn end_with_its_holders(&self) -> Result<(), String> {
        let holders = holders(&self.point);
        let held = !holders.is_empty() && mounted_on(&self.point).is_none();
        if held && eventually(60, || processes_of(&self.mark).is_empty()) {
            return Ok(());
        }
        Err(format!("; it shows in the mount namespaces of {holders:?}"))
    }

    fn end_politely(&mut self) -> Result<(), String> {
        if mounted_on(&self.point).is_some() {
            let mut command = Command::new(layerfs_binary());
            command.arg("umount").arg(&self.point);
            let mut ended = Err(String::new());
            once_free(|| {
                ended = try_run(&mut command, Duration::from_secs(30));
                !ended.as_ref().is_ok_and(|ended| ended.stderr.contains("in use"))
            });
            let ended = ended?;
            if !ended.status.success() {
                self.end_with_its_holders().map_err(|holders| format!("layerfs umount failed: {ended:?}{holders}"))?;
            }
            if let Some(mount) = mounted_on(&self.point) {
                return Err(format!("still mounted after layerfs umount: {mount:?}"));
            }
        } else if !eventually(10, || processes_of(&self.mark).is_empty() || self.foreground.is_some()) {
            return Err(format!("{:?} is unmounted, but its daemon lives on", self.point));
        }
        if let Some(child) = &mut self.foreground {
            let deadline = Instant::now() + Duration::from_secs(10);
            return match wait_until(child, deadline) {
                Some(_) => Ok(()),
                None => Err("layerfs -f lives on after its mount".to_owned()),
            };
        }
        match processes_of(&self.mark).is_empty() {
            true => Ok(()),
            false => Err("layerfs umount returned before the daemon had ended".to_owned()),
        }
    }
}

/// The processes in other mount namespaces that show a mount, which lives as long as they do.
fn holders(point: &Path) -> Vec<i32> {
    let mut shown = point.as_os_str().as_bytes().to_vec();
    shown.insert(0, b' ');
    shown.push(b' ');
    let holds = |pid: &i32| {
        fs::read(format!("/proc/{pid}/mountinfo"))
            .is_ok_and(|table| table.windows(shown.len()).any(|part| part == shown))
    };
    numbered_processes().filter(holds).collect()
}

fn numbered_processes() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").expect("/proc").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

impl Drop for Mount {
    fn drop(&mut self) {
        let known = live().iter().any(|known| known.mark == self.mark);
        if !known {
            return;
        }
        let owner = self.owner.clone();
        if let Err(fault) = self.end() {
            faults().push((owner, fault));
        }
    }
}

/// Ends a mount that can't be ended politely.
fn force_end(point: &Path, mark: &OsStr) {
    abort(point);
    for pid in processes_of(mark) {
        if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGKILL) {
            eprintln!("process {pid} of {point:?} can't be killed: {error}");
        }
    }
    detach(point);
}

/// Takes a mount out of the tree.
pub fn detach(point: &Path) {
    while mounted_on(point).is_some() {
        let done = match may_mount() {
            true => umount2(point, MntFlags::MNT_DETACH).map_err(|error| error.to_string()),
            false => try_run(Command::new("fusermount3").arg("-uz").arg(point), Duration::from_secs(10))
                .and_then(|ended| ended.status.success().then_some(()).ok_or(ended.stderr)),
        };
        if let Err(error) = done {
            eprintln!("{point:?} can't be detached: {error}");
            return;
        }
    }
}

/// Aborts the FUSE connection of a mount, so that nothing waits for it any more. The number of the
/// connection comes from the mount table: a stat of a hanging mount would hang as well.
fn abort(point: &Path) {
    let Some(mount) = mounted_on(point).filter(|mount| mount.kind.starts_with("fuse")) else {
        return;
    };
    let control = format!("{FUSE_CONNECTIONS}/{}/abort", mount.minor);
    if !Path::new(&control).exists() && not_root().is_none() {
        let none: Option<&str> = None;
        let mounted = nix::mount::mount(Some("none"), FUSE_CONNECTIONS, Some("fusectl"), MsFlags::empty(), none);
        if let Err(error) = mounted {
            eprintln!("fusectl can't be mounted: {error}");
        }
    }
    if let Err(error) = fs::write(&control, "1") {
        eprintln!("{point:?} can't be aborted: {error}");
    }
}

struct Live {
    owner: String,
    point: PathBuf,
    mark: OsString,
}

static LIVE: Mutex<Vec<Live>> = Mutex::new(Vec::new());
static FAULTS: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

fn live() -> std::sync::MutexGuard<'static, Vec<Live>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Faults found where a test can't fail at once: in a drop.
pub fn faults() -> std::sync::MutexGuard<'static, Vec<(String, String)>> {
    FAULTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Aborts every mount of a test that takes too long.
pub fn abort_all(owner: &str) {
    let mine: Vec<(PathBuf, OsString)> = live()
        .iter()
        .filter(|known| known.owner == owner)
        .map(|known| (known.point.clone(), known.mark.clone()))
        .collect();
    for (point, mark) in mine {
        force_end(&point, &mark);
    }
}

/// What a test that has ended left behind, or couldn't end; all of it is gone afterwards.
pub fn leaks(owner: &str) -> Vec<String> {
    abort_all(owner);
    let mut found: Vec<String> = Vec::new();
    live().retain(|known| {
        let mine = known.owner == owner;
        if mine {
            found.push(format!("a mount was left on {:?}", known.point));
        }
        !mine
    });
    faults().retain(|(who, fault)| {
        let mine = who == owner;
        if mine {
            found.push(fault.clone());
        }
        !mine
    });
    found
}
