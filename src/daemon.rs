//! From a configuration to a served mount, and to its clean end.

mod attached;
mod dead_mount;
mod logger;
mod place;
mod readiness;
mod statistics;

use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use anyhow::Context;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};

use crate::config::Config;
use crate::fuse::{ServeOptions, Server};
use crate::sys::process::{self, Fork, Inherited, Signals};
use crate::union::Union;

use attached::Attached;
use logger::SystemLog;
use place::Place;
use readiness::Readiness;

/// With fewer descriptors than this a union with many layers fails early.
const FEW_DESCRIPTORS: u64 = 1024;

/// Mounts. In the background it returns when the mount answers, in the foreground when the mount has ended.
///
/// To be called by a process with one thread, which returns the exit code to its caller without doing anything else.
///
/// # Errors
/// Why the mount can't be made, or how serving it failed.
pub fn start(config: Config) -> anyhow::Result<ExitCode> {
    let inherited = Inherited::find();
    if config.foreground {
        let leave = Leave { inherited: Inherited::default(), system_log: None };
        return serve(config, &Arc::new(Readiness::unheard()), leave).map(|()| ExitCode::SUCCESS);
    }
    let (verdict, readiness) = readiness::pipe()?;
    match process::fork().context("the daemon can't be started")? {
        Fork::Parent(child) => {
            drop(readiness);
            verdict.wait(child).map(|()| ExitCode::SUCCESS)
        }
        Fork::Child => {
            drop(verdict);
            let leave = Leave { inherited, system_log: Some(logger::connect_system_log()) };
            Ok(serve_unseen(config, Arc::new(readiness), leave))
        }
    }
}

/// Serves in the background, where errors go through the pipe or, later, to the log.
fn serve_unseen(config: Config, readiness: Arc<Readiness>, leave: Leave) -> ExitCode {
    match serve(config, &readiness, leave) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            if !readiness.failed(&e) {
                log::error!("{e:#}");
            }
            ExitCode::FAILURE
        }
    }
}

/// What the daemon leaves behind when it goes into the background.
#[derive(Debug)]
struct Leave {
    inherited: Inherited,
    /// None: it stays in the foreground.
    system_log: Option<SystemLog>,
}

impl Leave {
    /// Lets go of the caller's directory, session and descriptors. All paths have been opened by then.
    fn go(self) -> anyhow::Result<()> {
        nix::unistd::chdir("/").context("can't change to the root directory")?;
        let Some(system_log) = self.system_log else { return Ok(()) };
        nix::unistd::setsid().context("can't start a session")?;
        system_log.take_over();
        process::silence_standard_streams().context("can't open /dev/null")?;
        self.inherited.close();
        Ok(())
    }
}

/// Makes the process fit to be a daemon; before the first thread, because threads inherit what is set here.
fn prepare() -> anyhow::Result<Signals> {
    logger::install();
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    crate::sys::memory::be_sparing();
    umask(Mode::empty());
    match process::raise_descriptor_limit() {
        Ok(limit) if limit < FEW_DESCRIPTORS => {
            log::warn!("only {limit} files can be open at a time: raise the limit (ulimit -n)");
        }
        Ok(_) => {}
        Err(e) => log::warn!("the limit of open files can't be raised: {e}"),
    }
    // Nothing depends on it, and who may not lower it can do nothing about that.
    if let Err(e) = crate::sys::memory::spare_from_oom_killer() {
        log::debug!("the OOM killer is not told to spare this daemon: {e}");
    }
    Signals::block().context("signals can't be blocked")
}

/// Serves a mount until it has ended, and tells by `readiness` when it answers.
fn serve(config: Config, readiness: &Arc<Readiness>, leave: Leave) -> anyhow::Result<()> {
    let signals = prepare()?;
    // Whatever can be wrong with the mount is found before the union changes anything on disk.
    if config.recover {
        dead_mount::take_off(&config.mountpoint)?;
    }
    let place = Place::find(&config.mountpoint, &config.mount)?;
    let options = ServeOptions { threads: config.threads, timeout: config.union.timeout, ring: config.ring };
    let union = Arc::new(Union::open(&config.stack, config.union)?);
    let (device, mountpoint) = match place.mount(&config.mount) {
        Ok(mounted) => mounted,
        Err(refused) => {
            if let Err(e) = union.abandon() {
                log::warn!("the work directory can't be left as it was: {e}");
            }
            return Err(refused.into());
        }
    };
    let attached = match mountpoint {
        Some(mountpoint) => Attached::find(mountpoint, &device),
        None => Attached::handed(&device),
    };
    let served = attached.and_then(|attached| {
        let result = Server::start(union.clone(), device, options)
            .context("the kernel's FUSE does not answer")
            .and_then(|server| run(server, &union, &attached, signals, readiness, leave));
        if result.is_err() {
            // Nobody answers in there any more.
            attached.detach();
        }
        result
    });
    let closed = union.close().context("the upper layer could not be left in a clean state");
    served.and(closed)
}

/// Answers requests until the mount has gone.
fn run(
    server: Server,
    union: &Arc<Union>,
    attached: &Attached,
    signals: Signals,
    readiness: &Arc<Readiness>,
    leave: Leave,
) -> anyhow::Result<()> {
    tell_where(union, attached.dev());
    let (on_signal, asked) = (attached.clone(), union.clone());
    spawn("signals", move || obey(&signals, &on_signal, &asked))?;
    if union.is_writable() {
        let committed = union.clone();
        spawn("commit", move || commit_batches(&committed))?;
    }
    let (first, told) = (attached.clone(), readiness.clone());
    spawn("readiness", move || announce(&first, &told, leave))?;
    let served = server.run().context("serving the mount failed");
    // Whoever mounts this upper next is waiting already.
    tell_where(union, None);
    served
}

/// Tells other daemons where the union is mounted, by its device number, or that it is no longer.
fn tell_where(union: &Union, dev: Option<u64>) {
    if let Err(e) = union.published(dev) {
        log::warn!("the work directory's lock can't tell of this mount: {e}");
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).context("no thread can be started").map(drop)
}

/// Waits until the mount answers, then tells whoever started us.
fn announce(attached: &Attached, readiness: &Readiness, leave: Leave) {
    let heard = attached
        .answers()
        .and_then(|()| leave.go())
        .and_then(|()| readiness.ready().context("who started this mount did not wait for it"));
    if let Err(e) = heard {
        if !readiness.failed(&e) {
            log::error!("{e:#}");
        }
        attached.take_off();
    }
}

/// Has copies reach the disk until the union has ended. What fails is tried again with the next batch.
fn commit_batches(union: &Union) {
    while union.wait_for_batch() {
        if let Err(e) = union.commit() {
            log::warn!("copies can't be made durable yet: {e}");
        }
    }
}

/// Unmounts at SIGTERM and SIGINT; the server then ends by itself. SIGUSR1 asks for the statistics. SIGHUP means nothing to a
/// daemon without a terminal.
fn obey(signals: &Signals, attached: &Attached, union: &Union) {
    loop {
        match signals.wait() {
            Ok(Signal::SIGTERM | Signal::SIGINT) if attached.is_ours() => attached.take_off(),
            Ok(Signal::SIGTERM | Signal::SIGINT) if attached.exists() => leave_to_its_maker(union),
            Ok(Signal::SIGUSR1) => {
                for line in statistics::lines(&union.stats(), attached.name()) {
                    log::info!("{line}");
                }
            }
            Ok(_) => {}
            Err(e) => {
                log::error!("signals can't be waited for any more: {e}");
                return;
            }
        }
    }
}

/// The mount is not ours to take off: it is left without a daemon. What was written is made durable; the rest is as after a
/// daemon's crash, and the next mount's to clean up.
fn leave_to_its_maker(union: &Union) -> ! {
    if let Err(e) = union.commit() {
        log::warn!("copies can't be made durable: {e}");
    }
    std::process::exit(0)
}
