//! A machine with a disk, on which a mounted union is worked in until the power goes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::unistd::syncfs;

use super::check::{Layers, seen_in};
use super::disk::{Disk, Host, Kind};
use super::fixture::View;
use super::history::{Cut, History, Seen};
use super::worker::{Worker, beginning, lay_out, locked};
use crate::common::dice::Dice;
use crate::common::files::make_dir;
use crate::common::tree::Tree;
use crate::common::union::Union;

const WORKERS: usize = 3;
/// How long a worker rests between two changes.
const REST: Duration = Duration::from_millis(2);

/// One machine is worked in at a time: with others beside it less is done between the cuts.
static ONE: Mutex<()> = Mutex::new(());

/// A host with a disk that has lowers.
pub struct Machine {
    host: Host,
    kind: Kind,
    lowers: Vec<Tree>,
    /// Given back last.
    _one: MutexGuard<'static, ()>,
}

impl Machine {
    pub fn new(kind: Kind) -> Machine {
        // A test that failed leaves nothing that the next one could be hurt by.
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let host = Host::new();
        let mut lowers = Vec::new();
        host.make("base", kind, |root| {
            for worker in 0..WORKERS {
                let place = root.join(format!("lower1/w{worker}"));
                lay_out(&beginning(), &place);
                // Some are in the other lower.
                let other = root.join(format!("lower0/w{worker}"));
                make_dir(other.join("sub"));
                for name in ["b", "sub/b", "d"] {
                    fs::rename(place.join(name), other.join(name)).expect("rename");
                }
            }
            make_dir(root.join("upper"));
            lowers = Layers::new(root).lower_trees();
        });
        Machine { host, kind, lowers, _one: one }
    }

    /// Mounts a union on a disk of its own.
    pub fn prepare(&self, arguments: &[&str]) -> Run<'_> {
        self.host.cut("base", "now");
        let disk = self.host.turn_on("now", self.kind);
        let layers = Layers::new(disk.root()).lowers();
        let mut union = Union::new(0).upper_in(disk.root()).arguments(arguments);
        for lower in &layers {
            union = union.lower_in(lower);
        }
        union.mount();
        let histories = Arc::new((0..WORKERS).map(|_| Mutex::new(beginning())).collect());
        Run { union, disk: Some(disk), machine: self, histories, workers: Workers::default(), cuts: Vec::new() }
    }

    /// Mounts a union, and has workers change what is in it.
    pub fn start(&self, arguments: &[&str], dice: &mut Dice) -> Run<'_> {
        let mut run = self.prepare(arguments);
        for worker in 0..WORKERS {
            let (histories, stop, dice) = (run.histories.clone(), run.workers.stop.clone(), dice.fork());
            let root = run.union.at(&format!("w{worker}"));
            run.workers.threads.push(thread::spawn(move || {
                let mut worker = Worker::new(root, &histories[worker], dice);
                while !stop.load(Ordering::Relaxed) {
                    worker.change()?;
                    thread::sleep(REST);
                }
                Ok(())
            }));
        }
        run
    }

    /// Throws away the disk of a run that has ended, and what a cut left.
    pub fn forget(&self, cut: &str) {
        self.host.remove(cut);
        self.host.remove("now");
    }

    /// Turns on what a disk held, recovers the union on it, looks at that, and ends it cleanly.
    pub fn recovered(&self, disk: &str, look: impl FnOnce(&View)) {
        let disk = self.host.turn_on_again(disk, self.kind);
        let view = Layers::new(disk.root()).open();
        look(&view);
        view.close();
        disk.turn_off();
    }
}

/// The threads that change things. Dropping it stops them.
#[derive(Default)]
struct Workers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A union in use.
pub struct Run<'a> {
    workers: Workers,
    /// Unmounted before the disk that it is on.
    pub union: Union,
    disk: Option<Disk>,
    machine: &'a Machine,
    histories: Arc<Vec<Mutex<History>>>,
    /// The disks that the cuts left, with where each worker was then.
    cuts: Vec<(String, Vec<Cut>)>,
}

impl Run<'_> {
    /// Lets the workers work for a while.
    pub fn wait(&self, dice: &mut Dice) {
        // Mostly not long; now and then longer than the kernel waits with what it writes by itself.
        let longest = [40, 300, 300, 2500][dice.below(4)];
        thread::sleep(Duration::from_micros(dice.below(longest * 1000) as u64));
    }

    fn all(&self) -> impl Iterator<Item = std::sync::MutexGuard<'_, History>> {
        self.histories.iter().map(locked)
    }

    /// Brings everything so far to the disk.
    pub fn write_out(&self) {
        let disk = self.disk.as_ref().expect("a disk");
        syncfs(File::open(disk.root()).expect("the disk")).expect("syncfs");
    }

    /// The power goes. What went on is on another disk than what the disk held.
    pub fn cut(&mut self, name: &str) {
        let answered: Vec<usize> = self.all().map(|history| history.answered).collect();
        self.machine.host.cut("now", name);
        let begun = self.all().map(|history| history.steps.len());
        // By itself, without a union on it, btrfs (6.18) had lost names that were synced in 3 of 210 cuts of this work.
        let loose = self.machine.kind == Kind::Btrfs;
        let cuts = answered.into_iter().zip(begun);
        let cuts = cuts.map(|(answered, begun)| Cut { answered, begun, nothing_lost: false, loose }).collect();
        self.cuts.push((name.to_owned(), cuts));
    }

    /// Stops the workers, ends the union, and turns the disk off.
    pub fn end(&mut self, end: impl FnOnce(&mut Union)) {
        self.workers.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.threads.drain(..) {
            worker.join().expect("a worker's thread").unwrap_or_else(|error| panic!("{error}"));
        }
        end(&mut self.union);
        self.disk.take().expect("a disk").turn_off();
    }

    /// What the disk holds now that it is off: everything.
    pub fn cut_after_the_end(&mut self, name: &str) {
        self.machine.host.cut("now", name);
        let cuts = self.all().map(|history| history.steps.len());
        let cuts = cuts.map(|steps| Cut { answered: steps, begun: steps, nothing_lost: true, loose: false }).collect();
        self.cuts.push((name.to_owned(), cuts));
    }

    /// Looks at what each of the cuts left.
    pub fn check_all(self) {
        for (name, cuts) in &self.cuts {
            self.check(name, cuts).unwrap_or_else(|fault| panic!("{:?}, {name}: {fault}", self.machine.kind));
            self.machine.host.remove(name);
        }
        self.machine.host.remove("now");
    }

    fn check(&self, name: &str, cuts: &[Cut]) -> Result<(), String> {
        let disk = self.machine.host.turn_on_again(name, self.machine.kind);
        let layers = Layers::new(disk.root());
        let uncommitted = layers.uncommitted();
        let answered: Vec<usize> = cuts.iter().map(|cut| cut.answered).collect();
        eprintln!("    {name}: {answered:?} changes were answered, {} copies not committed", uncommitted.len());
        if cuts.iter().all(|cut| cut.nothing_lost) && !uncommitted.is_empty() {
            return Err(format!("not committed: {:?}", uncommitted.keys()));
        }
        let view = layers.open();
        layers.check_recovered(&uncommitted)?;
        for (worker, (history, cut)) in self.all().zip(cuts).enumerate() {
            let seen = seen_in(&view, &format!("w{worker}"));
            history.after(*cut).check(&seen).map_err(|fault| format!("worker {worker}: {fault}"))?;
        }
        let seen = seen_in(&view, "");
        view.close();
        // Where btrfs has lost the whiteout of a rename, a lower file and its copy are both there: the kernel's overlay takes
        // them for one (ESTALE), we don't.
        if self.machine.kind != Kind::Btrfs {
            let by_the_kernel = layers.seen_by_the_kernel(&self.union.point());
            same(&seen, &by_the_kernel).map_err(|fault| format!("the kernel's overlay: {fault}"))?;
        }
        for (before, now) in self.machine.lowers.iter().zip(layers.lower_trees()) {
            before.assert_same(&now, "a lower after the cut");
        }
        disk.turn_off();
        Ok(())
    }
}

/// Whether two trees show the same.
fn same(ours: &BTreeMap<String, Seen>, its: &BTreeMap<String, Seen>) -> Result<(), String> {
    let mut paths = ours.keys().chain(its.keys());
    let Some(path) = paths.find(|path| ours.get(*path) != its.get(*path)) else { return Ok(()) };
    let short = |seen: Option<&Seen>| seen.map(|seen| (seen.mode, seen.content.as_ref().map(Vec::len)));
    Err(format!("{path} is {:?} there and {:?} here", short(its.get(path)), short(ours.get(path))))
}
