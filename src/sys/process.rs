//! This process and others: fork, standard streams, limits, signals, waiting for a lock or the end of a stranger.

use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{ForkResult, Pid};

use super::check;
use crate::error::Errno;

/// How often a lock is asked for again while it is waited for.
pub const LOCK_INTERVAL: Duration = Duration::from_millis(2);

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Fork {
    /// The one that called, with the child's number.
    Parent(Pid),
    /// The new one.
    Child,
}

/// fork(2) of a process with one thread.
///
/// # Errors
/// `EDEADLK` if there are more threads: those would be missing in the child, with the locks they held.
pub fn fork() -> Result<Fork, Errno> {
    // Without procfs nobody can tell; the daemon forks before it starts its first thread.
    if std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() > 1) {
        return Err(Errno::EDEADLK);
    }
    // SAFETY: this is the only thread, so the child has everything that the parent has.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Fork::Parent(child)),
        ForkResult::Child => Ok(Fork::Child),
    }
}

/// Descriptors that were open before this program opened any.
#[derive(Debug, Default)]
pub struct Inherited(Vec<RawFd>);

impl Inherited {
    /// Lists them, the three standard streams left out; to be called before anything is opened. Empty without procfs.
    pub fn find() -> Self {
        let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return Self::default() };
        let open: Vec<RawFd> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|fd| *fd > libc::STDERR_FILENO)
            .collect();
        // By now the listing's own descriptor is closed, and no longer belongs to the list.
        Self(open.into_iter().filter(|fd| is_open(*fd)).collect())
    }

    /// Closes them: a caller that waits for the end of a pipe would otherwise wait for the daemon.
    pub fn close(self) {
        for fd in self.0 {
            // SAFETY: it was open before this program opened anything, so nothing in it owns the descriptor.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD only asks; a closed descriptor answers EBADF.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Points the three standard streams to /dev/null.
pub fn silence_standard_streams() -> std::io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}

/// Raises the limit of open descriptors as far as it goes and returns it.
pub fn raise_descriptor_limit() -> Result<u64, Errno> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// The signals that end, question or could disturb the daemon, blocked in this thread and in those that it starts.
#[derive(Debug)]
pub struct Signals(SigSet);

impl Signals {
    /// Blocks SIGTERM, SIGINT, SIGHUP and SIGUSR1; to be called before the first thread is started.
    pub fn block() -> Result<Self, Errno> {
        let set: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1].into_iter().collect();
        set.thread_block()?;
        Ok(Self(set))
    }

    /// Waits until one of them arrives.
    pub fn wait(&self) -> Result<Signal, Errno> {
        loop {
            match self.0.wait() {
                Err(Errno::EINTR) => {}
                done => return done,
            }
        }
    }
}

/// A process that is not our child, held so that its number can't come to mean another.
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// Opens the process with that number.
    ///
    /// # Errors
    /// `ESRCH` if there is none, `ENOSYS` before Linux 5.3.
    pub fn open(pid: u32) -> Result<Self, Errno> {
        // SAFETY: the call takes plain numbers.
        let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) })?;
        // SAFETY: the kernel just returned this descriptor to us, and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Waits until it has ended; false if it hasn't within `limit`.
    pub fn wait_for_end(&self, limit: Duration) -> Result<bool, Errno> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut asked = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut asked, timeout) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(e) => return Err(e),
            }
        }
    }
}

/// Locks a file for this process alone, and waits until the deadline for whoever has it.
///
/// # Errors
/// `EWOULDBLOCK` if they have it still; else as flock(2).
pub fn lock_until(mut file: File, deadline: Instant) -> Result<Flock<File>, Errno> {
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) if Instant::now() < deadline => file = back,
            Err((_, e)) => return Err(e),
        }
        std::thread::sleep(LOCK_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_stranger_is_waited_for() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(!process.wait_for_end(Duration::from_millis(30)).unwrap());
        drop(child.stdin.take());
        assert!(process.wait_for_end(Duration::from_secs(10)).unwrap());
        child.wait().unwrap();
        assert!(matches!(Process::open(child.id()), Err(Errno::ESRCH | Errno::EINVAL)));
    }

    #[test]
    fn a_process_with_threads_does_not_fork() {
        std::thread::spawn(|| assert_eq!(fork().unwrap_err(), Errno::EDEADLK)).join().unwrap();
    }
}
