//! Notes of which system calls a thread makes, so that tests can pin how many an operation needs. What closes a descriptor is
//! not among them.
//!
//! Builds without debug assertions have none of it.

/// Notes a system call that is about to be made.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(super) fn note(_call: &'static str) {}

#[cfg(debug_assertions)]
pub use noting::*;

#[cfg(debug_assertions)]
mod noting {
    use std::cell::RefCell;

    thread_local! {
        static NOTED: RefCell<Option<Vec<&'static str>>> = const { RefCell::new(None) };
    }

    /// Runs `work`; with what it returns come the names of the system calls that this thread made for it, in their order.
    pub fn calls_of<T>(work: impl FnOnce() -> T) -> (T, Vec<&'static str>) {
        NOTED.set(Some(Vec::new()));
        let done = work();
        (done, NOTED.take().unwrap_or_default())
    }

    /// Notes a system call that is about to be made.
    pub(in crate::sys) fn note(call: &'static str) {
        NOTED.with_borrow_mut(|noted| noted.as_mut().into_iter().for_each(|calls| calls.push(call)));
    }
}
