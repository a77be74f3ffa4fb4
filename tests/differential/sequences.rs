//! Random sequences, for each set of features that both have.

use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};

use super::generators::{Case, Features, case};
use super::harness::run;
use crate::common::Test;
use crate::t;

/// How long a test may take beside what its sequences do: shrinking a failure.
const LIMIT: u64 = 3600;

pub fn tests() -> Vec<Test> {
    vec![
        t!(everything_on).root().seconds(LIMIT),
        t!(no_metadata_copies).root().seconds(LIMIT),
        t!(no_redirects).root().seconds(LIMIT),
        t!(no_index).root().seconds(LIMIT),
        t!(marks_of_users).root().seconds(LIMIT),
    ]
}

pub const EVERYTHING: Features = Features { userxattr: false, redirect_dir: true, metacopy: true, index: true };

/// The sequences are the same at each run, unless `LAYERFS_TEST_RANDOM` is set.
const SEED: u64 = 1;

/// Runs `cases` sequences; `PROPTEST_CASES` has the last word on how many.
fn sequences(features: Features, cases: u32) {
    let mut config = Config { failure_persistence: None, max_shrink_iters: 400, ..Config::default() };
    if std::env::var_os("LAYERFS_TEST_RANDOM").is_none() {
        config.rng_seed = RngSeed::Fixed(SEED);
    }
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    let mut runner = TestRunner::new(config);
    let run = |case: Case| run(&case).map_err(TestCaseError::fail);
    match runner.run(&case(features, 40), run) {
        Ok(()) => {}
        Err(TestError::Fail(reason, case)) => panic!("{reason}\n{case:?}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

fn everything_on() {
    sequences(EVERYTHING, 50);
}

fn no_metadata_copies() {
    sequences(Features { metacopy: false, ..EVERYTHING }, 25);
}

fn no_redirects() {
    sequences(Features { metacopy: false, redirect_dir: false, ..EVERYTHING }, 25);
}

fn no_index() {
    sequences(Features { index: false, ..EVERYTHING }, 25);
}

fn marks_of_users() {
    sequences(Features { userxattr: true, redirect_dir: false, metacopy: false, index: false }, 25);
}
