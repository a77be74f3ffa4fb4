//! One live daemon for an upper and its work directory.
//!
//! The lock file tells who holds it: the daemon's process number and, once it has mounted, the device number of the
//! mount. With them a mount that is in use is told from a daemon that is only finishing: FUSE lets an unmount return
//! before the daemon has ended, and callers mount the same upper again at once.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::{Mode, major, makedev, minor};

use crate::error::{Errno, SetupError};
use crate::sys;
use crate::sys::mount::mounts_of;
use crate::sys::process::{LOCK_INTERVAL, lock_until};

/// The lock's name in `W/layerfs`.
const LOCK: &str = "lock";
/// How long a mount is looked at before it is believed to be the holder's: the kernel gives the device number of a mount that is
/// gone to the next one at once, and the daemon takes a moment to find out and to tell.
const DOUBT: Duration = Duration::from_secs(1);
/// More than the longest content of a lock file.
const CONTENT_MAX: usize = 64;

/// The right to change an upper and its work directory, until it is dropped.
#[derive(Debug)]
pub struct BusyLock {
    work: Flock<File>,
    /// None where the filesystem can't lock a directory.
    _upper: Option<Flock<File>>,
}

impl BusyLock {
    /// Tells others where this daemon's mount is: the device number that it shows; `None` once it has gone.
    pub fn publish(&self, dev: Option<u64>) -> io::Result<()> {
        write_holder(&self.work, Holder { pid: std::process::id(), dev })
    }
}

/// Takes the lock on the work directory (`work` is `W/layerfs`) and on the upper directory, whose path is `upper`.
///
/// # Errors
/// A live mount holds it: that is told soon. A daemon that is starting, or whose mount is gone already, is waited
/// for as long as `wait`.
pub fn acquire(work: BorrowedFd<'_>, upper: &Path, wait: Duration) -> Result<BusyLock, SetupError> {
    let deadline = Instant::now() + wait;
    let work = lock_work(work, upper, deadline)?;
    let held = lock_upper(upper, deadline)?;
    let holder = Holder { pid: std::process::id(), dev: None };
    write_holder(&work, holder).map_err(|e| cannot_lock(&e.to_string(), upper))?;
    Ok(BusyLock { work, _upper: held })
}

/// Waits, as [`acquire`] does, until nobody uses the upper directory; for a work directory that does not exist yet and
/// shall not be made in vain.
pub fn wait_for_upper(upper: &Path, wait: Duration) -> Result<(), SetupError> {
    lock_upper(upper, Instant::now() + wait).map(drop)
}

fn lock_work(work: BorrowedFd<'_>, upper: &Path, deadline: Instant) -> Result<Flock<File>, SetupError> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = sys::posix::openat(work, LOCK, flags, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(|e| cannot_lock(e.desc(), upper))?;
    let mut file = File::from(file);
    let certain = deadline.min(Instant::now() + DOUBT);
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => file = back,
            Err((_, e)) => return Err(cannot_lock(e.desc(), upper)),
        }
        let holder = read_holder(&file).map_err(|e| cannot_lock(&e.to_string(), upper))?;
        let late = Instant::now() >= deadline;
        match holder {
            Some(Holder { pid, dev: Some(dev) }) if Instant::now() >= certain && is_attached(pid, dev) => {
                return Err(in_use(format!("the upper directory is in use by a live mount (process {pid})"), upper));
            }
            Some(Holder { pid, .. }) if late => {
                let what = format!("the upper directory is in use by a daemon that has not ended (process {pid})");
                return Err(in_use(what, upper));
            }
            None if late => {
                return Err(in_use("the upper directory is in use by a daemon that has not ended".to_owned(), upper));
            }
            _ => sleep(LOCK_INTERVAL),
        }
    }
}

/// Locks the upper directory itself: two mounts may not share it through different work directories either.
fn lock_upper(upper: &Path, deadline: Instant) -> Result<Option<Flock<File>>, SetupError> {
    let dir = File::open(upper).map_err(|e| cannot_lock(&e.to_string(), upper))?;
    match lock_until(dir, deadline) {
        Ok(locked) => Ok(Some(locked)),
        Err(Errno::EWOULDBLOCK) => {
            Err(in_use("the upper directory is in use by a mount with another work directory".to_owned(), upper))
        }
        // Network filesystems lock no directory; the work directory's lock has to do there.
        Err(Errno::EBADF | Errno::EINVAL | Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(None),
        Err(e) => Err(cannot_lock(e.desc(), upper)),
    }
}

fn in_use(what: String, upper: &Path) -> SetupError {
    SetupError::new(what, upper, "unmount that first (layerfs umount), or give this mount an upper of its own")
}

fn cannot_lock(why: &str, upper: &Path) -> SetupError {
    SetupError::new(
        format!("the upper directory can't be locked ({why})"),
        upper,
        "check the owner and the mode of it and of its work directory",
    )
}

/// What a lock file tells of who holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holder {
    pid: u32,
    dev: Option<u64>,
}

impl Holder {
    /// `PID` or `PID MAJOR:MINOR`.
    fn encode(self) -> String {
        let dev = self.dev.map(|dev| format!(" {}:{}", major(dev), minor(dev))).unwrap_or_default();
        format!("{}{dev}\n", self.pid)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split_whitespace();
        let pid = fields.next()?.parse().ok()?;
        let dev = fields.next().and_then(|field| field.split_once(':')).and_then(|(major, minor)| {
            Some(makedev(major.parse::<u32>().ok()?.into(), minor.parse::<u32>().ok()?.into()))
        });
        Some(Self { pid, dev })
    }
}

/// Reads a lock file's content, for `tests/fuzz`.
#[cfg(fuzzing)]
pub fn parse_holder(text: &str) -> Option<(u32, Option<u64>)> {
    Holder::parse(text).map(|holder| (holder.pid, holder.dev))
}

fn write_holder(file: &File, holder: Holder) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all_at(holder.encode().as_bytes(), 0)
}

/// None while the holder is about to write, or for a content that is none of ours.
fn read_holder(file: &File) -> io::Result<Option<Holder>> {
    let mut content = [0_u8; CONTENT_MAX];
    let len = file.read_at(&mut content, 0)?;
    let text = content.get(..len).and_then(|content| std::str::from_utf8(content).ok());
    Ok(text.and_then(Holder::parse))
}

/// Whether the daemon still sees its mount; no, if it can't be asked.
fn is_attached(pid: u32, dev: u64) -> bool {
    mounts_of(pid).is_ok_and(|mounts| mounts.iter().any(|mount| mount.dev == dev))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    /// An upper and a work directory, the latter opened.
    fn directories() -> (tempfile::TempDir, std::path::PathBuf, File) {
        let dir = tempfile::tempdir().unwrap();
        let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
        std::fs::create_dir(&upper).unwrap();
        std::fs::create_dir(&work).unwrap();
        (dir, upper, File::open(work).unwrap())
    }

    #[test]
    fn a_lock_is_free_again_after_its_drop() {
        let (_dir, upper, work) = directories();
        for _ in 0..2 {
            let lock = acquire(work.as_fd(), &upper, Duration::ZERO).unwrap();
            lock.publish(Some(makedev(0, 1))).unwrap();
        }
        wait_for_upper(&upper, Duration::ZERO).unwrap();
    }

    #[test]
    fn a_live_mount_is_refused_soon() {
        let (_dir, upper, work) = directories();
        let lock = acquire(work.as_fd(), &upper, Duration::ZERO).unwrap();
        let root = crate::sys::mount::mounts().unwrap().into_iter().find(|m| m.mountpoint == Path::new("/")).unwrap();
        lock.publish(Some(root.dev)).unwrap();
        let start = Instant::now();
        let error = acquire(work.as_fd(), &upper, Duration::from_secs(60)).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(30));
        assert!(error.what.contains(&format!("live mount (process {})", std::process::id())), "{error}");
    }

    #[test]
    fn a_daemon_without_a_mount_is_waited_for() {
        let (_dir, upper, work) = directories();
        for dev in [None, Some(makedev(4095, 77))] {
            let lock = acquire(work.as_fd(), &upper, Duration::ZERO).unwrap();
            lock.publish(dev).unwrap();
            let start = Instant::now();
            let error = acquire(work.as_fd(), &upper, SHORT).unwrap_err();
            assert!(start.elapsed() >= SHORT);
            assert!(error.what.contains("has not ended"), "{error}");
            let end = std::thread::spawn(move || {
                sleep(SHORT);
                drop(lock);
            });
            drop(acquire(work.as_fd(), &upper, Duration::from_secs(60)).unwrap());
            end.join().unwrap();
        }
    }

    /// Another mount has got its device number.
    #[test]
    fn a_daemon_whose_mount_has_just_gone_is_waited_for() {
        let (_dir, upper, work) = directories();
        let lock = acquire(work.as_fd(), &upper, Duration::ZERO).unwrap();
        let other = crate::sys::mount::mounts().unwrap().into_iter().find(|m| m.mountpoint == Path::new("/")).unwrap();
        lock.publish(Some(other.dev)).unwrap();
        let end = std::thread::spawn(move || {
            sleep(SHORT);
            lock.publish(None).unwrap();
            sleep(2 * DOUBT);
            drop(lock);
        });
        drop(acquire(work.as_fd(), &upper, Duration::from_secs(60)).unwrap());
        end.join().unwrap();
    }

    #[test]
    fn an_upper_is_not_shared_through_two_work_directories() {
        let (dir, upper, work) = directories();
        let other = dir.path().join("other");
        std::fs::create_dir(&other).unwrap();
        let _lock = acquire(work.as_fd(), &upper, Duration::ZERO).unwrap();
        let other = File::open(other).unwrap();
        let error = acquire(other.as_fd(), &upper, SHORT).unwrap_err();
        assert!(error.what.contains("another work directory"), "{error}");
        assert!(wait_for_upper(&upper, Duration::ZERO).is_err());
    }

    #[test]
    fn what_a_lock_file_tells_is_read_back() {
        for holder in [Holder { pid: 7, dev: None }, Holder { pid: u32::MAX, dev: Some(makedev(4095, 1_048_575)) }] {
            assert!(holder.encode().len() < CONTENT_MAX);
            assert_eq!(Holder::parse(&holder.encode()), Some(holder));
        }
        for nonsense in ["", "x", "-1", "99999999999", "\u{0}"] {
            assert_eq!(Holder::parse(nonsense), None, "{nonsense:?}");
        }
        assert_eq!(Holder::parse("7 x:y"), Some(Holder { pid: 7, dev: None }));
    }
}
