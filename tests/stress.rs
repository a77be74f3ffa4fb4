//! Random load on a mount, for a while: one file against a copy in memory, files that the kernel forgets, files that are open in
//! many ways, and one tree under two processes.
//!
//! `LAYERFS_STRESS_SECONDS` says how long each tree is under load, `LAYERFS_STRESS_OPERATIONS` how often each file is changed,
//! and `LAYERFS_STRESS_SEED` repeats a run: a failure tells its seed.

mod common;
#[path = "stress/file.rs"]
mod file;
#[path = "stress/forgotten.rs"]
mod forgotten;
#[path = "stress/opens.rs"]
mod opens;
#[path = "stress/random.rs"]
mod random;
#[path = "stress/tree.rs"]
mod tree;
#[path = "stress/worker.rs"]
mod worker;

/// The most that one test may take, in seconds: the long forms are bounded by their own settings.
const LIMIT: u64 = 3600;

fn main() {
    if let Some(root) = worker::asked_for() {
        worker::work(&root);
    }
    let lists = [file::tests(), forgotten::tests(), opens::tests(), tree::tests()];
    common::main(lists.into_iter().flatten().map(|test| test.seconds(LIMIT)).collect());
}

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("a number in {name}")))
}

/// The seed of a run: chosen, or as random as the time is.
fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time after 1970");
    setting("LAYERFS_STRESS_SEED", now.as_nanos() as u64)
}
