//! Files that the kernel may know by a status from before their last change.
//!
//! It makes inodes from a listing, and if it has forgotten one since it asked for the listing, it makes it anew with the size and
//! time of modification of then, which under writeback it takes for good (seen on 6.18), and elsewhere as long as attributes last.
//! When it forgets a file that it then still knows, this may have happened: the file's names are dropped, so that it asks again.
//! That takes the lock of their directory, which somebody may hold who waits for us: a thread of its own waits for it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};

use fuser::{INodeNo, Notifier};

use crate::union::Union;

/// How often the names of one file are dropped while others rename it.
const TIMES_MAX: usize = 100;

/// The thread that has names dropped.
#[derive(Debug)]
pub(super) struct Dropper(Sender<u64>);

impl Dropper {
    /// Starts the thread; it ends when this is dropped. `notifier` is there once the mount is served.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(union: Arc<Union>, notifier: Arc<OnceLock<Notifier>>) -> io::Result<Self> {
        let (sender, receiver) = channel();
        std::thread::Builder::new().name("stale".to_owned()).spawn(move || serve(&union, &notifier, &receiver))?;
        Ok(Self(sender))
    }

    /// Has all names of a file be looked up again.
    pub(super) fn drop_names(&self, ino: u64) {
        if self.0.send(ino).is_err() {
            log::error!("the thread that has names dropped is gone");
        }
    }
}

fn serve(union: &Union, notifier: &OnceLock<Notifier>, files: &Receiver<u64>) {
    for ino in files {
        until_still(
            || union.names_of(ino),
            |(dir, name)| {
                // What the kernel does not know is as good as dropped.
                let dropped = notifier.get().map(|n| n.inval_entry(INodeNo(*dir), OsStr::from_bytes(name.as_bytes())));
                if let Some(Err(e)) = dropped {
                    log::debug!("{name} was not dropped: {e}");
                }
            },
        );
    }
}

/// Drops all names of a file. A rename that has the directory's lock before a drop moves a name on, with what the kernel knows:
/// so they are dropped again until they are the same afterwards.
fn until_still<T: PartialEq>(mut names: impl FnMut() -> Vec<T>, drop: impl Fn(&T)) {
    let mut known = names();
    for _ in 0..TIMES_MAX {
        known.iter().for_each(&drop);
        let by_now = names();
        if by_now == known {
            return;
        }
        known = by_now;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn a_name_that_is_renamed_before_its_drop_is_dropped_by_the_new_one() {
        let file = RefCell::new(vec!["old", "second"]);
        let dropped = RefCell::new(Vec::new());
        until_still(
            || file.borrow().clone(),
            |name| {
                if *name == "old" {
                    // Whoever renames had the lock.
                    file.borrow_mut()[0] = "new";
                }
                if file.borrow().contains(name) {
                    dropped.borrow_mut().push(*name);
                }
            },
        );
        assert!(dropped.borrow().contains(&"new") && dropped.borrow().contains(&"second"), "{dropped:?}");
    }

    #[test]
    fn a_file_that_is_always_renamed_holds_nobody_up_forever() {
        let mut round = 0;
        until_still(
            || {
                round += 1;
                vec![round]
            },
            |_| {},
        );
        assert_eq!(round, TIMES_MAX + 1);
    }
}
