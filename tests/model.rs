//! Random sequences of operations on random layers, against a reference model.
//!
//! `PROPTEST_CASES` sets how many sequences each test runs. A failure is printed as a [`Case`] that can be pasted below,
//! as a test with a name.

#[path = "union/fixture.rs"]
mod fixture;

mod model {
    pub mod compare;
    pub mod generators;
    pub mod harness;
    pub mod layers;
    pub mod operate;
    pub mod reference;

    mod regressions;
}

use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

use model::generators::{Case, case};
use model::harness::{Mode, run};

/// The sequences of one test, unless `PROPTEST_CASES` says otherwise: what a debug build does in half a minute.
const CASES: u32 = 100;
/// The longest sequence.
const LENGTH: usize = 40;

fn sequences(mode: Mode) {
    let mut config = Config { failure_persistence: None, max_shrink_iters: 5000, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    let mut runner = TestRunner::new(config);
    match runner.run(&case(LENGTH), |case: Case| run(&case, mode).map_err(TestCaseError::fail)) {
        Ok(()) => {}
        Err(TestError::Fail(reason, case)) => panic!("{mode:?}: {reason}\n{case:?}"),
        Err(TestError::Abort(reason)) => panic!("{mode:?}: {reason}"),
    }
}

#[test]
fn sequences_with_remounts() {
    sequences(Mode::Remounts);
}

#[test]
fn sequences_with_hard_links_in_lowers() {
    sequences(Mode::HardLinks);
}
