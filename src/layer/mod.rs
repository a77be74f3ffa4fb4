//! What lies on disk: the stack of layers, real objects in them, the marks, and the one type that can change a layer.

// What a layer or a caller supplies must never end the daemon.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

pub mod busy;
pub mod copy;
pub mod index;
pub mod marks;
mod names;
pub mod object_marks;
pub mod origin;
pub mod override_stat;
pub mod parked;
pub mod preflight;
pub mod private;
pub mod real;
mod records;
pub mod recovery;
pub mod spec;
pub mod stack;
pub mod stage;
pub mod uncommitted;
pub mod upper;
pub mod whiteout;
pub mod work;

pub use real::{LayerId, ObjKey, RealDir, SeenKey};
pub use spec::{Handling, StackSpec};
pub use stack::Stack;
pub use upper::{Upper, UpperDir};
