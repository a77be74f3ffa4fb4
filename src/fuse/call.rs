//! Running one operation: a panic in it is one EIO and one line in the log, never the end of the mount.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Errno, Result};

/// Runs an operation of the union.
///
/// Locks are not poisoned, and each operation leaves its tables whole at every step, so that the next one can go on.
pub(super) fn call<T>(operation: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let run = || {
        #[cfg(test)]
        crate::fuse::survival::panic_on_demand(operation);
        run()
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        log::error!("{operation} panicked; its caller gets EIO");
        Err(Errno::EIO)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_one_eio() {
        let result: Result<()> = call("test", || panic!("on purpose"));
        assert_eq!(result, Err(Errno::EIO));
    }

    #[test]
    fn errors_pass_as_they_are() {
        let result: Result<()> = call("test", || Err(Errno::ENOTEMPTY));
        assert_eq!(result, Err(Errno::ENOTEMPTY));
    }
}
