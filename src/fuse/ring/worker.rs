//! The workers of a core's queue.
//!
//! The kernel (seen on 6.18) hands a request to an entry that stands in the queue, and what finds none to the next one that
//! *answers*: an entry that comes later does not take it. So there are more entries than are busy, before they are needed.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::error::Errno;
use crate::fuse::capabilities::MAX_WRITE;
use crate::fuse::governor::{Governor, Report};
use crate::fuse::operations::Operations;
use crate::fuse::ring::requests;
use crate::sys::uring::Entry;

/// How many workers the queues of a mount start with, together; each has at least one, and none more than that.
const FIRST_WORKERS: usize = 16;
const FIRST_WORKERS_MAX: usize = SPARE + 1;
/// The most that a queue has for requests that wait for nothing but the disk.
const WORKERS_MAX: usize = 16;
/// With fewer than this without a request there is one more.
const SPARE: usize = 2;
/// How often it is looked whether the last request is done.
const INTERVAL: Duration = Duration::from_millis(1);

/// Hears whether a worker's entry stands in the queue.
pub(super) type Registered = Sender<Result<(), Errno>>;

/// Whether an entry ends because its mount has.
fn is_unmounted(e: Errno) -> bool {
    matches!(e, Errno::ENOTCONN | Errno::ECONNABORTED)
}

/// A core's queue.
#[derive(Debug)]
pub(super) struct Queue {
    core: usize,
    operations: Arc<Operations>,
    device: Arc<OwnedFd>,
    governor: Arc<Governor>,
    /// All workers, and those of them that have no request, or don't stand in the queue yet.
    workers: AtomicUsize,
    idle: AtomicUsize,
    /// The latter.
    starting: AtomicUsize,
    /// Nothing more is to be done for anybody.
    over: AtomicBool,
}

impl Queue {
    pub(super) fn new(
        core: usize,
        operations: Arc<Operations>,
        device: Arc<OwnedFd>,
        governor: Arc<Governor>,
    ) -> Arc<Self> {
        let [workers, idle, starting] = [const { AtomicUsize::new(0) }; 3];
        Arc::new(Self { core, operations, device, governor, workers, idle, starting, over: AtomicBool::new(false) })
    }

    /// Starts the first workers of one of so many queues; `registered` hears when the entry of one stands in the queue, or why
    /// not. The kernel waits for no more.
    pub(super) fn start(self: &Arc<Self>, queues: usize, registered: Registered) -> io::Result<()> {
        self.start_worker(registered)?;
        (1..FIRST_WORKERS_MAX.min(FIRST_WORKERS / queues)).for_each(|_| drop(self.add_worker()));
        Ok(())
    }

    /// Waits until no request is being answered; those that come later are not. Workers without one are left to the end of the
    /// process: the kernel may have missed an entry that came into the queue while it let go of the others.
    pub(super) fn finish(&self) {
        self.over.store(true, Ordering::SeqCst);
        while self.idle.load(Ordering::SeqCst) < self.workers.load(Ordering::SeqCst) {
            thread::sleep(INTERVAL);
        }
    }

    fn start_worker(self: &Arc<Self>, registered: Registered) -> io::Result<()> {
        let queue = self.clone();
        self.idle.fetch_add(1, Ordering::SeqCst);
        self.starting.fetch_add(1, Ordering::SeqCst);
        let name = format!("ring-{}-{}", self.core, self.workers.fetch_add(1, Ordering::SeqCst));
        let started = thread::Builder::new().name(name).spawn(move || queue.work(registered));
        if started.is_err() {
            self.starting.fetch_sub(1, Ordering::SeqCst);
            self.leave();
        }
        started.map(drop)
    }

    /// A worker less, which had no request.
    fn leave(&self) {
        self.workers.fetch_sub(1, Ordering::SeqCst);
        self.idle.fetch_sub(1, Ordering::SeqCst);
    }

    fn work(self: &Arc<Self>, registered: Registered) {
        let report = self.governor.watch(true);
        self.stay_on_core();
        let entry = self.entry();
        self.starting.fetch_sub(1, Ordering::SeqCst);
        let outcome = entry.as_ref().map(drop).map_err(|e| *e);
        if let Err(e) = outcome
            && !is_unmounted(e)
        {
            log::warn!("core {} has a worker less: {e}", self.core);
        }
        // Only who can't do without a further worker waits for this.
        if registered.send(outcome).is_err() {
            log::trace!("core {} has one more worker", self.core);
        }
        // Who starts several hears of the last one so.
        drop(registered);
        if let Ok(entry) = entry {
            self.serve(entry, &report);
        }
        self.leave();
    }

    fn entry(&self) -> Result<Entry, Errno> {
        let mut entry = Entry::open(self.device.clone(), self.core as u16, MAX_WRITE as usize)?;
        entry.register()?;
        Ok(entry)
    }

    fn serve(self: &Arc<Self>, mut entry: Entry, report: &Report) {
        loop {
            match entry.wait() {
                Ok(()) => {}
                Err(e) if is_unmounted(e) => return,
                Err(e) => return log::error!("core {}: a worker ends: {e}", self.core),
            }
            let others = self.idle.fetch_sub(1, Ordering::SeqCst) - 1;
            if self.over.load(Ordering::SeqCst) {
                self.idle.fetch_add(1, Ordering::SeqCst);
                return;
            }
            if others < SPARE && self.workers.load(Ordering::SeqCst) < WORKERS_MAX {
                self.add_worker();
            }
            let answer = requests::serve(&self.operations, entry.request(), || self.have_others_ready());
            entry.answer(answer);
            report.answered();
            self.idle.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Starts one more worker, and has the way to hear when its entry stands in the queue.
    fn add_worker(self: &Arc<Self>) -> Receiver<Result<(), Errno>> {
        let (registered, outcome) = channel();
        if let Err(e) = self.start_worker(registered) {
            log::warn!("core {} has no further worker: {e}", self.core);
        }
        outcome
    }

    /// Before a worker waits for requests: there must be another one for them.
    fn have_others_ready(self: &Arc<Self>) {
        let ready = self.idle.load(Ordering::SeqCst).saturating_sub(self.starting.load(Ordering::SeqCst));
        if ready == 0 && self.add_worker().recv().is_err() {
            log::warn!("core {} may wait for itself", self.core);
        }
    }

    /// Keeps this thread on its core, if that is there and allowed: the kernel hands a request over on the core it comes from.
    fn stay_on_core(&self) {
        let mut core = CpuSet::new();
        let kept = core.set(self.core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &core));
        if let Err(e) = kept {
            log::debug!("a worker of core {} runs anywhere: {e}", self.core);
        }
    }
}
