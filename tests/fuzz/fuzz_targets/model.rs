//! Sequences of operations on layers, against the reference model.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../draw.rs"]
mod draw;
#[path = "../../union/fixture.rs"]
mod fixture;

#[path = "../../model"]
mod model {
    pub mod case;
    pub mod compare;
    pub mod harness;
    pub mod layers;
    pub mod merge;
    pub mod on_disk;
    pub mod operate;
    pub mod read;
    pub mod reference;
    pub mod write;
}

fuzz_target!(|bytes: &[u8]| {
    let case = draw::case(bytes);
    if let Err(reason) = model::harness::run(&case) {
        panic!("{reason}\n{case:?}");
    }
});
