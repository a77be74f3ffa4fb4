//! A countdown that has one system call of this thread fail, so that tests can try every failure there is.
//!
//! Builds without debug assertions have none of it.

use nix::errno::Errno;

/// The place before a system call: an error where a test wants that call to fail.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(super) fn point(_call: &'static str) -> Result<(), Errno> {
    Ok(())
}

#[cfg(debug_assertions)]
pub use countdown::*;

#[cfg(debug_assertions)]
mod countdown {
    use std::cell::Cell;

    use super::Errno;
    use crate::sys::trace;

    /// Which calls fail once the countdown has run out.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Calls {
        /// That one.
        One,
        /// That one and all that follow, the ones that clean up among them.
        AllFromThere,
    }

    #[derive(Clone, Copy)]
    struct Countdown {
        left: u64,
        error: Errno,
        calls: Calls,
        hit: bool,
    }

    thread_local! {
        static COUNTDOWN: Cell<Option<Countdown>> = const { Cell::new(None) };
    }

    /// Lets `calls_before` system calls of this thread pass, then has `calls` fail with `error`.
    pub fn arm(calls_before: u64, error: Errno, calls: Calls) {
        COUNTDOWN.set(Some(Countdown { left: calls_before, error, calls, hit: false }));
    }

    /// Ends the countdown; whether a call was made to fail.
    pub fn disarm() -> bool {
        COUNTDOWN.take().is_some_and(|countdown| countdown.hit)
    }

    /// The place before a system call: an error where a test wants that call to fail.
    pub(in crate::sys) fn point(call: &'static str) -> Result<(), Errno> {
        trace::note(call);
        let Some(mut countdown) = COUNTDOWN.get() else { return Ok(()) };
        if countdown.left > 0 {
            countdown.left -= 1;
            COUNTDOWN.set(Some(countdown));
            return Ok(());
        }
        if countdown.hit && countdown.calls == Calls::One {
            return Ok(());
        }
        countdown.hit = true;
        COUNTDOWN.set(Some(countdown));
        Err(countdown.error)
    }
}
