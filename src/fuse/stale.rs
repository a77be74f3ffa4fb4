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

use crate::name::Name;

/// The thread that has names dropped.
#[derive(Debug)]
pub(super) struct Dropper(Sender<(u64, Name)>);

impl Dropper {
    /// Starts the thread; it ends when this is dropped. `notifier` is there once the mount is served.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(notifier: Arc<OnceLock<Notifier>>) -> io::Result<Self> {
        let (sender, receiver) = channel();
        std::thread::Builder::new().name("stale".to_owned()).spawn(move || serve(&notifier, &receiver))?;
        Ok(Self(sender))
    }

    /// Has a name in a directory be looked up again.
    pub(super) fn drop_name(&self, dir: u64, name: Name) {
        if self.0.send((dir, name)).is_err() {
            log::error!("the thread that has names dropped is gone");
        }
    }
}

fn serve(notifier: &OnceLock<Notifier>, names: &Receiver<(u64, Name)>) {
    for (dir, name) in names {
        // What the kernel does not know is as good as dropped.
        if let Some(Err(e)) = notifier.get().map(|n| n.inval_entry(INodeNo(dir), OsStr::from_bytes(name.as_bytes()))) {
            log::debug!("{name} was not dropped: {e}");
        }
    }
}
