//! Where the log goes: to stderr while somebody watches, afterwards to the system's log.

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;

/// The socket of the system's log.
const SYSTEM_LOG: &str = "/dev/log";
/// The facility "daemon" of syslog(3).
const FACILITY: u8 = 3 << 3;
/// How many lines a window takes; a layer full of bad marks must not fill a disk.
const LINES: u32 = 20;
/// How long a window is.
const WINDOW: Duration = Duration::from_secs(1);

static LOGGER: Logger = Logger(Mutex::new(None));

/// Starts the log, on stderr. Only the first call counts.
pub fn install() {
    let mut state = LOGGER.0.lock();
    if state.is_none() && log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
        *state = Some(State { sink: Sink::Stderr, throttle: Throttle::new(Instant::now()) });
    }
}

/// Sends the log to the system's log from now on; to be called before the mount covers anything.
pub fn connect_system_log() -> SystemLog {
    SystemLog(connect().ok())
}

/// A connection to the system's log; none where there is no such log.
#[derive(Debug)]
pub struct SystemLog(Option<UnixDatagram>);

impl SystemLog {
    /// Sends everything from now on to it.
    pub fn take_over(self) {
        if let Some(state) = LOGGER.0.lock().as_mut() {
            state.sink = Sink::System(self.0);
        }
    }
}

fn connect() -> std::io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    // A log that doesn't keep up must not hold requests up.
    socket.set_nonblocking(true)?;
    socket.connect(SYSTEM_LOG)?;
    Ok(socket)
}

#[derive(Debug)]
enum Sink {
    Stderr,
    System(Option<UnixDatagram>),
}

#[derive(Debug)]
struct State {
    sink: Sink,
    throttle: Throttle,
}

#[derive(Debug)]
struct Logger(Mutex<Option<State>>);

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        if is_of_no_matter(record.target(), &text) {
            return;
        }
        let mut state = self.0.lock();
        let Some(state) = state.as_mut() else { return };
        match state.throttle.admit(Instant::now()) {
            Verdict::Drop => {}
            Verdict::Pass { suppressed } => {
                if suppressed > 0 {
                    state.sink.write(Level::Warn, &format!("{suppressed} lines suppressed"));
                }
                state.sink.write(record.level(), &text);
            }
        }
    }

    fn flush(&self) {}
}

/// fuser 0.18 tells as an error that nobody waits for an answer any more, which is usual when a mount is taken off: the kernel
/// answers that write with ENOENT.
fn is_of_no_matter(target: &str, text: &str) -> bool {
    target.starts_with("fuser") && text.starts_with("Failed to send FUSE reply") && text.ends_with("(os error 2)")
}

impl Sink {
    /// A line that can't be written is lost: there is nobody left to tell.
    fn write(&mut self, level: Level, text: &str) {
        match self {
            Self::Stderr => {
                let line = format!("layerfs: {}: {text}\n", level.as_str().to_lowercase());
                let _lost = std::io::stderr().write_all(line.as_bytes());
            }
            Self::System(socket) => {
                let line = format!("<{}>layerfs[{}]: {text}", FACILITY | severity(level), std::process::id());
                let full = |e: &std::io::Error| e.kind() == std::io::ErrorKind::WouldBlock;
                let sent = socket.as_ref().map(|socket| socket.send(line.as_bytes()));
                if sent.is_none_or(|sent| sent.is_err_and(|e| !full(&e))) {
                    // The log has been started anew, or only now.
                    *socket = connect().ok();
                    let _lost = socket.as_ref().map(|socket| socket.send(line.as_bytes()));
                }
            }
        }
    }
}

/// The severities of syslog(3).
fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Lets [`LINES`] lines through in a [`WINDOW`] and counts the others.
#[derive(Debug)]
struct Throttle {
    start: Instant,
    passed: u32,
    suppressed: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Drop,
    Pass { suppressed: u64 },
}

impl Throttle {
    fn new(now: Instant) -> Self {
        Self { start: now, passed: 0, suppressed: 0 }
    }

    fn admit(&mut self, now: Instant) -> Verdict {
        if now.saturating_duration_since(self.start) >= WINDOW {
            let suppressed = self.suppressed;
            *self = Self { start: now, passed: 1, suppressed: 0 };
            return Verdict::Pass { suppressed };
        }
        if self.passed < LINES {
            self.passed += 1;
            return Verdict::Pass { suppressed: 0 };
        }
        self.suppressed += 1;
        Verdict::Drop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_nobody_waits_for_are_not_told() {
        let told = |target, error| {
            !is_of_no_matter(
                target,
                &format!("Failed to send FUSE reply: {}", std::io::Error::from_raw_os_error(error)),
            )
        };
        assert!(!told("fuser::reply", libc::ENOENT));
        assert!(told("fuser::reply", libc::EINVAL) && told("layerfs::fuse", libc::ENOENT));
    }

    #[test]
    fn a_flood_is_cut_and_counted() {
        let start = Instant::now();
        let mut throttle = Throttle::new(start);
        for _ in 0..LINES {
            assert_eq!(throttle.admit(start), Verdict::Pass { suppressed: 0 });
        }
        for _ in 0..5 {
            assert_eq!(throttle.admit(start), Verdict::Drop);
        }
        assert_eq!(throttle.admit(start + WINDOW), Verdict::Pass { suppressed: 5 });
        assert_eq!(throttle.admit(start + WINDOW), Verdict::Pass { suppressed: 0 });
        assert_eq!(throttle.admit(start + WINDOW * 2), Verdict::Pass { suppressed: 0 });
    }
}
