//! Idle priority of threads (SCHED_IDLE, sched(7)), and how long they had to wait for a core.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::check;

/// Whether a thread of this process runs as threads do that nobody has said anything about.
pub fn is_ordinary(thread: Pid) -> bool {
    // SAFETY: a plain number.
    unsafe { libc::sched_getscheduler(thread.as_raw()) == libc::SCHED_OTHER }
}

/// Gives a thread of this process idle priority, or takes it away; its children are as it is.
///
/// # Errors
/// `EPERM` if it is to be taken away without CAP_SYS_NICE and with an RLIMIT_NICE below 20; `ESRCH` if the thread has ended.
pub fn set_idle(thread: Pid, idle: bool) -> Result<(), Errno> {
    let policy = if idle { libc::SCHED_IDLE } else { libc::SCHED_OTHER };
    // SAFETY: both policies have the priority 0, and further fields, which some C libraries have, are of no meaning to them.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: the parameters are read while the call lasts.
    check(unsafe { libc::sched_setscheduler(thread.as_raw(), policy, &raw const parameters) }.into()).map(drop)
}

/// Keeps the priority that the calling thread's I/O has now: it would be idle, too, otherwise, as long as the thread is
/// (ioprio_set(2)), and behind everybody else's on a busy disk.
///
/// # Errors
/// As ioprio_set(2).
pub fn keep_io_priority() -> Result<(), Errno> {
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_SHIFT: u32 = 13;
    const BEST_EFFORT: libc::c_long = 2 << CLASS_SHIFT;
    // SAFETY: plain numbers.
    let now = check(unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0) })?;
    let kept = if now >> CLASS_SHIFT == 0 { BEST_EFFORT | level_of(niceness()) } else { now };
    // SAFETY: plain numbers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, kept) }).map(drop)
}

/// The level within its class that the I/O of a thread has if none is said.
fn level_of(niceness: libc::c_int) -> libc::c_long {
    (libc::c_long::from(niceness) + 20) / 5
}

fn niceness() -> libc::c_int {
    // SAFETY: plain numbers. An error can't be told from -1, and there is none for the calling thread.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// The core on which a thread, of whatever process, runs or ran last; `None` if there is none, or it can't be seen.
pub fn core_of(thread: u32) -> Option<usize> {
    let stat = std::fs::read_to_string(format!("/proc/{thread}/stat")).ok()?;
    // The second field is the thread's name, in parentheses; the core is the 39th (proc(5)).
    stat.rsplit_once(") ")?.1.split(' ').nth(39 - 3)?.parse().ok()
}

/// The account of how long a thread waited.
#[derive(Debug)]
pub struct Waits(File);

impl Waits {
    /// Of a thread of this process.
    ///
    /// # Errors
    /// When the kernel keeps no such account, or procfs is not there.
    pub fn of(thread: Pid) -> std::io::Result<Self> {
        let waits = Self(File::open(format!("/proc/self/task/{thread}/schedstat"))?);
        waits.total().map(|_| waits).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
    }

    /// How long it could have run and had no core, up to when it last got one; `None` if it has ended.
    pub fn total(&self) -> Option<Duration> {
        let mut text = [0; 96];
        let len = self.0.read_at(&mut text, 0).ok()?;
        // Three numbers: the time it ran and the time it waited, in nanoseconds, and how often it ran.
        let text = std::str::from_utf8(text.get(..len)?).ok()?;
        text.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::gettid;

    use super::*;

    #[test]
    fn who_gets_idle_priority_is_not_ordinary() {
        let idle = || set_idle(gettid(), true).map(|()| is_ordinary(gettid()));
        // In a thread that ends with it: not everybody may take it away again.
        assert_eq!(std::thread::spawn(idle).join().unwrap(), Ok(false));
    }

    #[test]
    fn a_thread_is_on_one_core() {
        let core = core_of(std::process::id()).unwrap();
        assert!(nix::sched::sched_getaffinity(gettid()).unwrap().is_set(core).unwrap());
        assert_eq!(core_of(u32::MAX), None);
    }

    #[test]
    fn io_keeps_its_priority() {
        let io_priority = || {
            // SAFETY: plain numbers.
            unsafe { libc::syscall(libc::SYS_ioprio_get, 1, 0) }
        };
        let kept = move || {
            keep_io_priority().unwrap();
            let before = io_priority();
            set_idle(gettid(), true).unwrap();
            (before, io_priority())
        };
        let (before, after) = std::thread::spawn(kept).join().unwrap();
        assert_eq!(before >> 13, 2, "best effort");
        assert_eq!(before & 7, level_of(niceness()));
        assert_eq!(after, before);
    }

    #[test]
    fn a_thread_has_an_account_of_its_waits() {
        let waits = Waits::of(gettid()).unwrap();
        assert!(waits.total().unwrap() < Duration::from_secs(3600));
        assert!(Waits::of(Pid::from_raw(1)).is_err(), "no thread of ours");
    }
}
