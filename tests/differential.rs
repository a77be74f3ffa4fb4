//! layerfs and the kernel's own overlay side by side: random sequences of system calls on both, then each mounts what the
//! other has left, and goes on.
//!
//! `PROPTEST_CASES` sets how many sequences each test runs. A failure is printed as a `Case` that can be pasted into
//! `differential/regressions.rs`. What differs and may is in `differential/differences.rs`, and nowhere else.

mod common;
#[path = "differential/differences.rs"]
mod differences;
#[path = "differential/generators.rs"]
mod generators;
#[path = "differential/harness.rs"]
mod harness;
#[path = "differential/layers.rs"]
mod layers;
#[path = "differential/perform.rs"]
mod perform;
#[path = "differential/regressions.rs"]
mod regressions;
#[path = "differential/sequences.rs"]
mod sequences;
#[path = "differential/shown.rs"]
mod shown;
#[path = "differential/sides.rs"]
mod sides;

fn main() {
    let lists = [sequences::tests(), differences::tests(), regressions::tests()];
    common::main(lists.into_iter().flatten().collect());
}
