//! Running one operation: a panic in it is one EIO and one line in the log, never the end of the mount.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Errno, Result};

/// Runs an operation of the union.
///
/// Locks are not poisoned, and each operation leaves its tables whole at every step, so that the next one can go on.
pub(super) fn call<T>(operation: &str, run: impl FnOnce() -> Result<T>) -> std::result::Result<T, fuser::Errno> {
    let run = || {
        #[cfg(test)]
        crate::fuse::survival::panic_on_demand(operation);
        run()
    };
    let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        log::error!("{operation} panicked; its caller gets EIO");
        Err(Errno::EIO)
    });
    result.map_err(|e| fuser::Errno::from_i32(e as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_one_eio() {
        let result: std::result::Result<(), _> = call("test", || panic!("on purpose"));
        assert_eq!(result.unwrap_err().code(), libc::EIO);
    }

    #[test]
    fn errors_pass_as_they_are() {
        let result: std::result::Result<(), _> = call("test", || Err(Errno::ENOTEMPTY));
        assert_eq!(result.unwrap_err().code(), libc::ENOTEMPTY);
    }
}
