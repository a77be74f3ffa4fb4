//! The harness of the mounted tests: a list of named functions, each run under a time limit, and
//! each checked for mounts that it left behind.
//!
//! A test program has `harness = false` and a `main` that calls [`main`] with its list. Where the
//! machine can't mount, the tests are counted as ignored and the reason is printed.
#![allow(dead_code, reason = "each test program uses its own part of the harness")]

pub mod dice;
pub mod files;
pub mod machine;
pub mod mount;
pub mod others;
pub mod sys;
pub mod tree;
pub mod union;
pub mod values;

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};

/// How long a test may take unless it says otherwise.
const LIMIT: Duration = Duration::from_secs(120);
/// How long an aborted test has to come to its end.
const LAST_MOMENTS: Duration = Duration::from_secs(20);

/// One test of a list.
pub struct Test {
    name: &'static str,
    run: fn(),
    needs: Vec<Need>,
    limit: Duration,
}

/// What a test asks of the machine: the reason why it can't run here, if there is one.
pub type Need = fn() -> Option<String>;

/// A test that needs a mount; see [`t!`], which takes the name from the function.
pub fn test(name: &'static str, run: fn()) -> Test {
    Test { name, run, needs: vec![machine::no_mount], limit: LIMIT }
}

impl Test {
    /// Also needs to be root in the initial user namespace.
    pub fn root(self) -> Test {
        self.needs(machine::not_root)
    }

    /// Also needs what `need` looks for.
    pub fn needs(mut self, need: Need) -> Test {
        self.needs.push(need);
        self
    }

    /// May take this long.
    pub fn seconds(mut self, limit: u64) -> Test {
        self.limit = Duration::from_secs(limit);
        self
    }
}

/// A [`Test`] named as its function.
#[macro_export]
macro_rules! t {
    ($run:path) => {
        $crate::common::test(stringify!($run), $run)
    };
}

/// Runs a list of tests and ends the process.
pub fn main(tests: Vec<Test>) -> ! {
    let arguments = Arguments::from_args();
    machine::prepare();
    let trials = tests.into_iter().map(trial).collect();
    libtest_mimic::run(&arguments, trials).exit()
}

fn trial(test: Test) -> Trial {
    let obstacle = test.needs.iter().find_map(|need| need());
    let required = std::env::var_os("LAYERFS_TEST_REQUIRED").is_some();
    if let Some(reason) = obstacle.filter(|_| !required) {
        eprintln!("!!! NOT TESTED on this machine: {}: {reason}", test.name);
        return Trial::test(test.name, || Ok(())).with_ignored_flag(true);
    }
    Trial::test(test.name, move || supervise(test.name, test.run, test.limit))
}

thread_local! {
    static TEST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// The name of the test that runs on this thread.
pub fn current() -> String {
    TEST.with_borrow(Clone::clone)
}

/// Runs a test on a thread of its own. One that takes too long has its mounts aborted, which makes
/// every system call that waits for them fail.
fn supervise(name: &str, run: fn(), limit: Duration) -> Result<(), Failed> {
    let (send, ended) = mpsc::channel();
    let owner = name.to_owned();
    thread::Builder::new()
        .name(owner.clone())
        .spawn(move || {
            TEST.set(owner);
            // The receiver is gone only if the program is ending.
            drop(send.send(catch_unwind(AssertUnwindSafe(run))));
        })
        .map_err(|e| format!("no thread for the test: {e}"))?;
    let result = match ended.recv_timeout(limit) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(panic)) => Err(message(&*panic)),
        Err(_) => {
            mount::abort_all(name);
            drop(ended.recv_timeout(LAST_MOMENTS));
            Err(format!("no end within {limit:?}: its mounts were aborted"))
        }
    };
    let faults = mount::leaks(name);
    match (result, faults.is_empty()) {
        (Ok(()), true) => Ok(()),
        (Ok(()), false) => Err(faults.join("\n").into()),
        (Err(failure), true) => Err(failure.into()),
        (Err(failure), false) => Err(format!("{failure}\n{}", faults.join("\n")).into()),
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    match panic.downcast_ref::<String>() {
        Some(text) => text.clone(),
        None => panic.downcast_ref::<&str>().map_or_else(|| "a panic without words".to_owned(), |t| (*t).to_owned()),
    }
}
