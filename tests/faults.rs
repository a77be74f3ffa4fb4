//! Every system call of every operation fails once, with each error a disk can give; and a disk that is really full.
//!
//! After a failure the caller has that error, the union shows exactly what was before or what should come after, no lower
//! has changed, the same operation works when it is tried again, and the next mount finds nothing left to sweep.
#![cfg(debug_assertions)]

#[path = "union/fixture.rs"]
mod fixture;

mod faults {
    mod countdown;
    mod full_disk;
    mod operations;
    mod seen;
}
