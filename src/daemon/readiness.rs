//! How the process that stays in the background tells the one that started it how the start went.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use anyhow::{Context, anyhow, bail};
use nix::fcntl::OFlag;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};
use parking_lot::Mutex;

/// What is sent when the mount answers. Anything else is the reason for which it doesn't.
const READY: &[u8] = &[0];

/// The pipe between them.
pub fn pipe() -> anyhow::Result<(Verdict, Readiness)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).context("no pipe can be made")?;
    Ok((Verdict(read.into()), Readiness::to(write)))
}

/// The end that waits.
#[derive(Debug)]
pub struct Verdict(File);

impl Verdict {
    /// Waits until the mount answers.
    ///
    /// # Errors
    /// What the daemon `child` says, or how it ended if it didn't say anything.
    pub fn wait(mut self, child: Pid) -> anyhow::Result<()> {
        let mut said = Vec::new();
        self.0.read_to_end(&mut said).context("the daemon can't be heard")?;
        if said == READY {
            return Ok(());
        }
        if said.is_empty() {
            match waitpid(child, None)? {
                WaitStatus::Signaled(_, signal, _) => bail!("the daemon was killed while it started ({signal})"),
                status => bail!("the daemon ended while it started ({status:?})"),
            }
        }
        Err(anyhow!(String::from_utf8_lossy(&said).into_owned()))
    }
}

/// The end that tells, once.
#[derive(Debug)]
pub struct Readiness(Mutex<Option<File>>);

impl Readiness {
    /// Nobody waits.
    pub fn unheard() -> Self {
        Self(Mutex::new(None))
    }

    fn to(pipe: OwnedFd) -> Self {
        Self(Mutex::new(Some(pipe.into())))
    }

    /// The mount answers.
    ///
    /// # Errors
    /// Who waited has gone.
    pub fn ready(&self) -> std::io::Result<()> {
        self.tell(READY).map(drop)
    }

    /// The mount failed; false if nobody waits for that any more.
    pub fn failed(&self, error: &anyhow::Error) -> bool {
        let text = format!("{error:#}");
        // Who can't be told has gone as well.
        self.tell(text.as_bytes()).unwrap_or(false)
    }

    fn tell(&self, text: &[u8]) -> std::io::Result<bool> {
        match self.0.lock().take() {
            Some(mut pipe) => pipe.write_all(text).map(|()| true),
            None => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_counts() {
        let (verdict, readiness) = pipe().unwrap();
        readiness.ready().unwrap();
        assert!(!readiness.failed(&anyhow!("late")));
        verdict.wait(Pid::this()).unwrap();
    }

    #[test]
    fn a_failure_comes_over_with_its_causes() {
        let (verdict, readiness) = pipe().unwrap();
        assert!(readiness.failed(&anyhow!("cause").context("effect")));
        assert_eq!(verdict.wait(Pid::this()).unwrap_err().to_string(), "effect: cause");
    }

    #[test]
    fn nobody_to_tell_is_an_error() {
        let (verdict, readiness) = pipe().unwrap();
        drop(verdict);
        assert!(readiness.ready().is_err());
    }
}
