//! Which workers have idle priority: those that answer one request after the other.
//!
//! An answer wakes its caller while the worker still has the core. So the kernel looks for an idle one, and the caller moves
//! there: another core has to be woken, and with the next request, which comes from there, the first one again. That is most
//! of what a request costs. But a core with nothing on it that has more than idle priority counts as idle (seen on 6.18), and
//! the caller stays. A worker that has its requests from anywhere is bound to the core of its last caller for that.
//!
//! Such a worker gets next to nothing of a core that others of its scheduling group want. So each is looked at in short
//! intervals: one that answered nothing is raised again, be it that nobody asked or that it did not get its turn, and who had
//! to wait for long is spared for a while.

mod watched;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use nix::unistd::{Pid, gettid};
use parking_lot::Mutex;

use crate::error::Errno;
use crate::sys::priority;
use watched::{Round, Watched};

/// How often the workers are looked at, while there are requests.
const INTERVAL: Duration = Duration::from_millis(2);
/// With so many answers of a mount in an interval its workers get idle priority.
const BUSY: u32 = 8;
/// After so many intervals without a request nobody is looked at until there are some again.
const QUIET: u32 = 8;
/// After so many answers the governor is woken. (A power of two: the count may wrap.)
const WAKING: u32 = 16;

/// Looks at the workers of a mount.
#[derive(Debug)]
pub(super) struct Governor {
    thread: Option<Thread>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Those that the governor has not seen yet.
    new: Mutex<Vec<Arc<Worker>>>,
    /// Whether this process may take idle priority from a thread, so that there are some that have it.
    governs: AtomicBool,
    /// Whether the governor sleeps until somebody is busy.
    asleep: AtomicBool,
}

/// What the governor knows of a worker.
#[derive(Debug)]
struct Worker {
    thread: Pid,
    answers: AtomicU32,
    /// Whether it runs on its callers' core anyway.
    bound: bool,
    /// The last one's number.
    caller: AtomicU32,
    /// How often it was another one than before.
    changes: AtomicU32,
    over: AtomicBool,
}

/// A worker's word to the governor; the last one is that it is dropped.
#[derive(Debug)]
pub(super) struct Report {
    governor: Arc<Governor>,
    worker: Arc<Worker>,
}

impl Governor {
    /// Starts it. It ends by itself where this process may not do what it does, and else with the process.
    pub(super) fn start() -> Arc<Self> {
        let shared = Arc::<Shared>::default();
        let governed = shared.clone();
        let started = thread::Builder::new().name("governor".to_owned()).spawn(move || run(&governed));
        if let Err(e) = &started {
            log::warn!("busy workers keep their priority: {e}");
        }
        Arc::new(Self { thread: started.ok().map(|started| started.thread().clone()), shared })
    }

    /// Looks at the calling thread, too, from now on. `bound`: it has no requests but those from the core that it is bound to.
    pub(super) fn watch(self: &Arc<Self>, bound: bool) -> Report {
        let [answers, caller, changes] = [const { AtomicU32::new(0) }; 3];
        let worker =
            Arc::new(Worker { thread: gettid(), answers, bound, caller, changes, over: AtomicBool::new(false) });
        if self.shared.governs.load(Ordering::Relaxed) {
            // A busy worker may have started this one.
            worker.set_idle(false);
        }
        if let Err(e) = priority::keep_io_priority() {
            log::debug!("thread {}: its I/O has the priority that it has: {e}", worker.thread);
        }
        self.shared.new.lock().push(worker.clone());
        Report { governor: self.clone(), worker }
    }
}

impl Report {
    /// The worker has a request from a thread with that number.
    pub(super) fn is_asked_by(&self, caller: u32) {
        if self.worker.caller.swap(caller, Ordering::Relaxed) != caller {
            self.worker.changes.fetch_add(1, Ordering::Relaxed);
        }
        self.answered();
    }

    /// The worker, which is bound to its callers' core, has answered a request.
    pub(super) fn answered(&self) {
        let answers = self.worker.answers.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if answers.is_multiple_of(WAKING) && self.governor.shared.asleep.load(Ordering::Relaxed) {
            self.governor.thread.iter().for_each(Thread::unpark);
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.worker.over.store(true, Ordering::Release);
    }
}

impl Worker {
    fn set_idle(&self, idle: bool) {
        match priority::set_idle(self.thread, idle) {
            // Gone, or just going.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => log::warn!("thread {}: idle priority ({idle}): {e}", self.thread),
        }
    }
}

fn run(shared: &Shared) {
    match try_on_itself() {
        Ok(()) => {
            shared.governs.store(true, Ordering::Relaxed);
            govern(shared)
        }
        Err(e) => log::debug!("busy workers keep their priority: {e}"),
    }
}

/// Whether a thread of this process, which is of no special priority, can have idle priority for a while.
fn try_on_itself() -> io::Result<()> {
    if !priority::is_ordinary(gettid()) {
        return Err(io::Error::other("it is not the ordinary one"));
    }
    priority::set_idle(gettid(), true)?;
    Ok(priority::set_idle(gettid(), false)?)
}

fn govern(shared: &Shared) -> ! {
    let mut watched = Vec::new();
    let mut quiet = 0;
    loop {
        if quiet == QUIET {
            watched.iter_mut().for_each(Watched::close_account);
            shared.asleep.store(true, Ordering::Relaxed);
            thread::park();
            shared.asleep.store(false, Ordering::Relaxed);
            quiet = 0;
            // They may have taken long for what they have answered by now.
            watched.iter_mut().for_each(|watched: &mut Watched| _ = watched.count());
        }
        thread::sleep(INTERVAL);
        watched.extend(shared.new.lock().drain(..).map(Watched::new));
        watched.retain(|watched| !watched.worker.over.load(Ordering::Acquire));
        let given: u32 = watched.iter_mut().map(Watched::count).sum();
        let round = Round::new(given >= BUSY);
        watched.iter_mut().for_each(|watched| watched.look(&round));
        quiet = if given > 0 { 0 } else { quiet + 1 };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};

    use super::watched::one_of;
    use super::*;

    /// The longest that is waited for anything.
    const LIMIT: Duration = Duration::from_secs(30);

    /// Threads on the first core that this process may use, until it is dropped.
    struct OnOneCore(Arc<AtomicBool>, Vec<thread::JoinHandle<()>>);

    impl OnOneCore {
        fn new() -> Self {
            Self(Arc::new(AtomicBool::new(true)), Vec::new())
        }

        fn start(&mut self, mut again: impl FnMut() + Send + 'static) {
            let on = self.0.clone();
            self.1.push(thread::spawn(move || {
                let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
                sched_setaffinity(Pid::from_raw(0), &one_of(&allowed, first(&allowed)).unwrap()).unwrap();
                while on.load(Ordering::Relaxed) {
                    again();
                }
            }));
        }
    }

    impl Drop for OnOneCore {
        fn drop(&mut self) {
            self.0.store(false, Ordering::Relaxed);
            self.1.drain(..).for_each(|thread| thread.join().unwrap());
        }
    }

    fn first(cores: &CpuSet) -> usize {
        (0..CpuSet::count()).find(|core| cores.is_set(*core).unwrap()).unwrap()
    }

    /// A worker that answers every now and then if it is `asked`; returns its thread.
    fn worker(threads: &mut OnOneCore, governor: &Arc<Governor>, asked: &Arc<AtomicBool>) -> Pid {
        let (thread, number) = std::sync::mpsc::channel();
        let (governor, asked, mut report) = (governor.clone(), asked.clone(), None);
        threads.start(move || {
            let report = report.get_or_insert_with(|| {
                thread.send(gettid()).unwrap();
                governor.watch(true)
            });
            if asked.load(Ordering::Relaxed) {
                spin(Duration::from_micros(20));
                report.answered();
            }
            thread::sleep(Duration::from_micros(50));
        });
        number.recv().unwrap()
    }

    fn spin(time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    fn wait_until(what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < LIMIT, "{what}: not after {LIMIT:?}");
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// Whether threads of this process can be governed; the same for all tests.
    fn can_govern() -> bool {
        thread::spawn(|| try_on_itself().is_ok()).join().unwrap()
    }

    #[test]
    fn who_is_busy_has_idle_priority_and_loses_it_when_nobody_asks() {
        let (governor, asked) = (Governor::start(), Arc::new(AtomicBool::new(true)));
        let mut threads = OnOneCore::new();
        let worker = worker(&mut threads, &governor, &asked);
        for _ in 0..2 {
            if can_govern() {
                wait_until("the busy one is lowered", || !priority::is_ordinary(worker));
            }
            asked.store(false, Ordering::Relaxed);
            wait_until("the unasked one is ordinary", || priority::is_ordinary(worker));
            // Until the governor sleeps, which the next answers end.
            if can_govern() {
                wait_until("the governor sleeps", || governor.shared.asleep.load(Ordering::Relaxed));
            }
            asked.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_does_not_get_its_turn_is_raised() {
        let (governor, asked) = (Governor::start(), Arc::new(AtomicBool::new(true)));
        let mut threads = OnOneCore::new();
        let worker = worker(&mut threads, &governor, &asked);
        if can_govern() {
            wait_until("the busy one is lowered", || !priority::is_ordinary(worker));
        }
        // In the same scheduling group, which others of this machine need not be.
        let mut others = OnOneCore::new();
        (0..2).for_each(|_| others.start(|| spin(Duration::from_millis(1))));
        wait_until("the starved one is raised", || priority::is_ordinary(worker));
        drop(others);
        if can_govern() {
            wait_until("it is lowered again", || !priority::is_ordinary(worker));
        }
    }

    #[test]
    fn who_may_run_anywhere_goes_where_its_only_caller_is() {
        let (governor, on) = (Governor::start(), AtomicBool::new(true));
        let anywhere = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let caller = one_of(&anywhere, first(&anywhere)).unwrap();
        let (numbers, number) = std::sync::mpsc::channel();
        thread::scope(|threads| {
            let [calls, works] = [numbers.clone(), numbers.clone()];
            let on = &on;
            threads.spawn(move || {
                sched_setaffinity(Pid::from_raw(0), &caller).unwrap();
                calls.send(gettid()).unwrap();
                while on.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(1));
                }
            });
            let caller_thread = number.recv().unwrap();
            let asked = Arc::new(AtomicU32::new(caller_thread.as_raw().cast_unsigned()));
            let by = asked.clone();
            threads.spawn(move || {
                let report = governor.watch(false);
                works.send(gettid()).unwrap();
                while on.load(Ordering::Relaxed) {
                    match by.load(Ordering::Relaxed) {
                        // Nobody.
                        0 => {}
                        // Two by turns.
                        1 => [1, caller_thread.as_raw().cast_unsigned()].iter().for_each(|by| report.is_asked_by(*by)),
                        one => report.is_asked_by(one),
                    }
                    thread::sleep(Duration::from_micros(50));
                }
            });
            let worker = number.recv().unwrap();
            let cores = || sched_getaffinity(worker).unwrap();
            if can_govern() {
                wait_until("it is on its caller's core", || cores() == caller && !priority::is_ordinary(worker));
            }
            asked.store(1, Ordering::Relaxed);
            wait_until("two ask it", || cores() == anywhere && priority::is_ordinary(worker));
            asked.store(caller_thread.as_raw().cast_unsigned(), Ordering::Relaxed);
            if can_govern() {
                wait_until("one asks it", || cores() == caller && !priority::is_ordinary(worker));
            }
            asked.store(0, Ordering::Relaxed);
            wait_until("nobody asks it", || cores() == anywhere && priority::is_ordinary(worker));
            on.store(false, Ordering::Relaxed);
        });
    }

    #[test]
    fn who_is_started_by_a_lowered_thread_is_not_lowered() {
        let governor = Governor::start();
        if can_govern() {
            wait_until("it governs", || governor.shared.governs.load(Ordering::Relaxed));
        }
        let start = move || {
            if can_govern() {
                priority::set_idle(gettid(), true).unwrap();
            }
            let watched = thread::spawn(move || {
                let report = governor.watch(true);
                (report, priority::is_ordinary(gettid()))
            });
            watched.join().unwrap().1
        };
        assert!(thread::spawn(start).join().unwrap());
    }
}
