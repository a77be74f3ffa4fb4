//! One worker, as the governor sees it: when it is lowered, where to, and when it is raised.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};

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
    /// Where it may run when it is not lowered.
    cores: CpuSet,
    waits: Waits,
    waited: Duration,
    answers: u32,
    changes: u32,
    /// How many of them are new.
    given: u32,
    changed: u32,
    lowered: Option<Lowered>,
    /// It was raised, and has not answered since: it is not known whether it waited for a request or for others on its core.
    raised: bool,
    spared_until: Option<Instant>,
}

/// A worker has idle priority.
#[derive(PartialEq, Eq, Debug)]
struct Lowered {
    /// Where its callers are, to which it is bound; `None` if it was before.
    core: Option<usize>,
}

impl Watched {
    /// `None` if it has ended.
    pub(super) fn new(worker: Arc<Worker>) -> Option<Self> {
        let waits = Waits::of(worker.thread).ok()?;
        let (answers, changes) = (worker.answers.load(Ordering::Relaxed), worker.changes.load(Ordering::Relaxed));
        Some(Self {
            waited: waits.total()?,
            cores: sched_getaffinity(worker.thread).ok()?,
            worker,
            waits,
            answers,
            changes,
            given: 0,
            changed: 0,
            lowered: None,
            raised: false,
            spared_until: None,
        })
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
        if self.lowered.is_some() {
            if self.given == 0 {
                self.raise();
                self.raised = waits_for_others;
            } else if !has_one_caller || self.waited() / self.given >= CROWDED && waits_for_others {
                self.spare(round);
            } else {
                self.lower(round);
            }
        } else if self.given > 0 {
            let waited = self.waited();
            if std::mem::take(&mut self.raised) && waited >= STARVED {
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

    /// Gives it idle priority, on the core of its last caller; if it has that, it goes along with the caller.
    fn lower(&mut self, round: &Round) {
        if self.lowered.is_none() && !self.can_be_lowered() {
            return;
        }
        let core = if self.worker.bound {
            None
        } else {
            let Some(core) = round.core_of(self.worker.caller.load(Ordering::Relaxed)) else { return };
            Some(core)
        };
        let lowered = Lowered { core };
        if self.lowered.as_ref() == Some(&lowered) {
            return;
        }
        if let Some(core) = core
            && let Err(e) = one_of(&self.cores, core).and_then(|core| sched_setaffinity(self.worker.thread, &core))
        {
            return log::debug!("thread {} does not go to core {core}: {e}", self.worker.thread);
        }
        if self.lowered.is_none() {
            self.worker.set_idle(true);
        }
        self.lowered = Some(lowered);
    }

    /// Whether nobody else has said how it is to run; notes where it may.
    fn can_be_lowered(&mut self) -> bool {
        let thread = self.worker.thread;
        sched_getaffinity(thread).map(|cores| self.cores = cores).is_ok() && priority::is_ordinary(thread)
    }

    fn raise(&mut self) {
        let Some(lowered) = self.lowered.take() else { return };
        self.worker.set_idle(false);
        if lowered.core.is_none() {
            return;
        }
        match sched_setaffinity(self.worker.thread, &self.cores) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => log::warn!("thread {} stays on its core: {e}", self.worker.thread),
        }
    }

    /// How long it had to wait for its core since this was last asked.
    fn waited(&mut self) -> Duration {
        let total = self.waits.total().unwrap_or(self.waited);
        total.saturating_sub(std::mem::replace(&mut self.waited, total))
    }

    fn spare(&mut self, round: &Round) {
        self.raise();
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
