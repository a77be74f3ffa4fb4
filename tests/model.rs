//! Random sequences of operations on random layers, against a reference model.
//!
//! `PROPTEST_CASES` sets how many sequences each test runs. A failure is printed as a [`Case`] that can be pasted below,
//! as a test with a name.

#[path = "union/fixture.rs"]
mod fixture;

mod model {
    pub mod case;
    pub mod compare;
    pub mod generators;
    pub mod harness;
    pub mod layers;
    pub mod merge;
    pub mod on_disk;
    pub mod operate;
    pub mod read;
    pub mod reference;
    pub mod write;

    mod regressions;
}

use layerfs::layer::override_stat::Form;
use layerfs::layer::whiteout::Whiteouts;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};

use model::case::Case;
use model::generators::case;
use model::harness::{Manner, run_in};

/// The sequences are the same at each run, unless `LAYERFS_TEST_RANDOM` is set.
const SEED: u64 = 1;

/// Runs `cases` sequences of up to `length` operations, fewer where only the marks are others; `PROPTEST_CASES` has the
/// last word on how many.
fn sequences(cases: u32, length: usize, manner: Manner) {
    let mut config = Config { failure_persistence: None, max_shrink_iters: 5000, ..Config::default() };
    if std::env::var_os("LAYERFS_TEST_RANDOM").is_none() {
        config.rng_seed = RngSeed::Fixed(SEED);
    }
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = if fixture::privileged() { cases } else { cases / 5 };
    }
    let mut runner = TestRunner::new(config);
    match runner.run(&case(length), |case: Case| run_in(&case, manner).map_err(TestCaseError::fail)) {
        Ok(()) => {}
        Err(TestError::Fail(reason, case)) => panic!("{reason}\n{case:?}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

// The numbers are what a debug build does in half a minute.

#[test]
fn short_sequences_on_many_layers() {
    sequences(700, 12, Manner::default());
}

#[test]
fn long_sequences() {
    sequences(200, 60, Manner::default());
}

#[test]
fn sequences_with_permissions_in_attributes() {
    sequences(200, 30, Manner { permissions: Some(Form::User), ..Manner::default() });
}

#[test]
fn sequences_with_whiteouts_as_aufs_has_them() {
    sequences(400, 30, Manner { whiteouts: Whiteouts::Dot, ..Manner::default() });
}

#[test]
fn as_an_ordinary_user() {
    assert!(fixture::passes_as_ordinary_user("sequences"));
}
