//! One worker, as the governor sees it: when it is lowered, where to, and when it is raised.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::Worker;
use crate::error::Errno;
use crate::sys::priority::{self, Waits};

/// Who is asked by another one more often than once in so many requests is not bound to anybody's core.
const CALLER_STAYS: u32 = 4;
/// Who had to wait for its core for so long before an answer, on the average, shares it with others than its caller.
const CROWDED: Duration = Duration::from_micros(250);
/// Who had to wait for so long and gave no answer did not get its turn.
const STARVED: Duration = Duration::from_micros(1500);
/// How long such a worker does not get idle priority again.
const RESPITE: Duration = Duration::from_millis(50);

/// What is the same for all workers that are looked at.
#[derive(Debug)]
pub(super) struct Round {
    now: Instant,
    /// Whether the mount is.
    busy: bool,
    /// The last caller that was looked for, and its core: most often it is that of the next worker, too.
    caller: Cell<Option<(u32, Option<usize>)>>,
}

impl Round {
    pub(super) fn new(busy: bool) -> Self {
        Self { now: Instant::now(), busy, caller: Cell::new(None) }
    }

    fn core_of(&self, caller: u32) -> Option<usize> {
        if let Some((known, core)) = self.caller.get()
            && known == caller
        {
            return core;
        }
        let core = priority::core_of(caller);
        self.caller.set(Some((caller, core)));
        core
    }
}

/// A worker as it was when it was last looked at.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) worker: Arc<Worker>,
    answers: u32,
    changes: u32,
    /// How many of them are new.
    given: u32,
    changed: u32,
    lowered: Option<Lowered>,
    /// It was raised, and has not answered since: it is not known whether it waits for a request or for others on its core.
    raised: Option<Account>,
    spared_until: Option<Instant>,
}

/// A worker has idle priority.
#[derive(Debug)]
struct Lowered {
    /// Where its callers are, to which it is bound; `None` if it was before.
    core: Option<usize>,
    /// Where it may run otherwise.
    cores: CpuSet,
    account: Account,
}

/// How long a worker waits for its core.
#[derive(Debug)]
struct Account {
    waits: Waits,
    waited: Duration,
}

impl Account {
    /// From now on; `None` where the kernel keeps none, or for a thread that has ended.
    fn of(thread: Pid) -> Option<Self> {
        let waits = Waits::of(thread).ok()?;
        Some(Self { waited: waits.total()?, waits })
    }

    /// How long it had to wait since this was last asked.
    fn waited(&mut self) -> Duration {
        let total = self.waits.total().unwrap_or(self.waited);
        total.saturating_sub(std::mem::replace(&mut self.waited, total))
    }
}

impl Watched {
    pub(super) fn new(worker: Arc<Worker>) -> Self {
        let (answers, changes) = (worker.answers.load(Ordering::Relaxed), worker.changes.load(Ordering::Relaxed));
        Self { worker, answers, changes, given: 0, changed: 0, lowered: None, raised: None, spared_until: None }
    }

    /// Counts what it has done since the last time; returns how many answers it has given.
    pub(super) fn count(&mut self) -> u32 {
        let all = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        let (answers, changes) = (all(&self.worker.answers), all(&self.worker.changes));
        self.given = answers.wrapping_sub(std::mem::replace(&mut self.answers, answers));
        self.changed = changes.wrapping_sub(std::mem::replace(&mut self.changes, changes));
        self.given
    }

    /// Raises or lowers it.
    pub(super) fn look(&mut self, round: &Round) {
        let has_one_caller = self.changed <= self.given / CALLER_STAYS;
        // Workers that take turns wait for each other, too, which is no harm while the mount gets on.
        let waits_for_others = self.worker.bound || !round.busy;
        if let Some(lowered) = &mut self.lowered {
            if self.given == 0 {
                self.raised = self.raise().filter(|_| waits_for_others);
            } else if !has_one_caller || lowered.account.waited() / self.given >= CROWDED && waits_for_others {
                self.raise();
                self.spare(round);
            } else {
                self.follow(round);
            }
        } else if self.given > 0 {
            if self.raised.take().is_some_and(|mut account| account.waited() >= STARVED) {
                self.spare(round);
            } else if round.busy
                && self.given > 1
                && has_one_caller
                && self.spared_until.is_none_or(|until| until <= round.now)
            {
                self.lower(round);
            }
        }
    }

    /// Gives it idle priority, on the core of its last caller, unless somebody else has said how it is to run.
    fn lower(&mut self, round: &Round) {
        let thread = self.worker.thread;
        if !priority::is_ordinary(thread) {
            return;
        }
        let (Ok(cores), Some(account)) = (sched_getaffinity(thread), Account::of(thread)) else { return };
        self.lowered = Some(Lowered { core: None, cores, account });
        if self.follow(round) {
            self.worker.set_idle(true);
        } else {
            self.lowered = None;
        }
    }

    /// Has it go along with its callers; returns whether it is on their core.
    fn follow(&mut self, round: &Round) -> bool {
        if self.worker.bound {
            return true;
        }
        let Some(lowered) = &mut self.lowered else { return false };
        let Some(core) = round.core_of(self.worker.caller.load(Ordering::Relaxed)) else { return false };
        if lowered.core == Some(core) {
            return true;
        }
        let moved = one_of(&lowered.cores, core).and_then(|core| sched_setaffinity(self.worker.thread, &core));
        match moved {
            Ok(()) => lowered.core = Some(core),
            Err(e) => log::debug!("thread {} does not go to core {core}: {e}", self.worker.thread),
        }
        moved.is_ok()
    }

    /// Takes idle priority from it; returns the account of how long it waited.
    fn raise(&mut self) -> Option<Account> {
        let lowered = self.lowered.take()?;
        self.worker.set_idle(false);
        if lowered.core.is_some() {
            match sched_setaffinity(self.worker.thread, &lowered.cores) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => log::warn!("thread {} stays on its core: {e}", self.worker.thread),
            }
        }
        Some(lowered.account)
    }

    /// Before a long pause: why it was raised no longer matters.
    pub(super) fn close_account(&mut self) {
        self.raised = None;
    }

    fn spare(&mut self, round: &Round) {
        self.spared_until = Some(round.now + RESPITE);
    }
}

/// The one core alone, if it is among those.
pub(super) fn one_of(cores: &CpuSet, core: usize) -> Result<CpuSet, Errno> {
    let mut one = CpuSet::new();
    if !cores.is_set(core)? {
        return Err(Errno::EINVAL);
    }
    one.set(core)?;
    Ok(one)
}
