//! The work directory W: what is in it, how it is opened together with upper, and what a clean end leaves.
//!
//! - `W/layerfs/`: everything of ours. `lock` (the live daemon), `stage/` (objects in the making), `parked/` (unlinked files
//!   still in use), `marks` (marks that an object can't carry), `uncommitted.0` and `.1` (where copies are that may not be on
//!   disk yet), `recovered/` (what such copies held when the machine stopped).
//! - `W/work/incompat/layerfs`: while changes may be unfinished, so that a kernel overlay refuses the work directory.
//! - `W/work/incompat/volatile/dirty`: what was written may not be on disk; holds the boot id. It outlives the mount, as the
//!   kernel's does: while the machine runs nothing is lost, and after that the layer is refused.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;

use crate::error::{Errno, Result, SetupError};
use crate::layer::busy::{self, BusyLock};
use crate::layer::stack::open_root;
use crate::layer::uncommitted;
use crate::sys;
use crate::sys::file::Reach;

/// How long a daemon whose mount is already gone is waited for.
const BUSY_WAIT: Duration = Duration::from_secs(10);

/// The opened work directory.
#[derive(Debug)]
pub struct WorkDir {
    root: OwnedFd,
    /// `W/layerfs/stage`, on the same mount as upper.
    pub stage: OwnedFd,
    /// `W/layerfs/parked`.
    pub parked: OwnedFd,
    /// `W/layerfs`.
    pub private: OwnedFd,
    lock: BusyLock,
    volatile: bool,
    begun: AtomicBool,
    /// Whether a mount before this one has left changes unfinished.
    unclean: bool,
    /// Whether `W/layerfs` was made for this mount.
    made_private: bool,
    /// W's path, if it was made for this mount.
    made_work: Option<PathBuf>,
}

/// Upper and work, opened so that renames between them stay within one mount.
#[derive(Debug)]
pub struct Opened {
    /// Upper's root.
    pub upper: OwnedFd,
    /// The work directory.
    pub work: WorkDir,
    /// `Beneath` if both are in a private clone of their mount.
    pub reach: Reach,
}

/// Opens upper and its work directory, makes what is missing in the latter, and takes the lock on it.
pub fn open(upper: &Path, work: &Path, volatile: bool) -> std::result::Result<Opened, SetupError> {
    check_volatile(work)?;
    let made_work = make_dir(work)?;
    let failed =
        |e: Errno| SetupError::new(format!("can't prepare the work directory ({e})"), work, "check its owner and mode");
    let (upper_fd, root, reach) = open_pair(upper, work)?;
    let made_private = sys::file::stat_at(root.as_fd(), c"layerfs").is_err();
    let private = open_sub(root.as_fd(), "layerfs").map_err(failed)?;
    let lock = busy::acquire(private.as_fd(), upper, BUSY_WAIT)?;
    let unclean = sys::file::stat_at(root.as_fd(), c"work/incompat/layerfs").is_ok();
    let stage = open_sub(private.as_fd(), "stage").map_err(failed)?;
    let parked = open_sub(private.as_fd(), "parked").map_err(failed)?;
    let work = WorkDir {
        root,
        stage,
        parked,
        private,
        lock,
        volatile,
        begun: AtomicBool::new(false),
        unclean,
        made_private,
        made_work,
    };
    for dir in [&work.stage, &work.parked] {
        sweep(dir.as_fd()).map_err(failed)?;
    }
    Ok(Opened { upper: upper_fd, work, reach })
}

/// Clones the mount of the directory that upper and work share, and opens both in the clone: then nothing mounted below
/// is seen, our own mount included. Without the privilege both are opened as they are.
fn open_pair(upper: &Path, work: &Path) -> std::result::Result<(OwnedFd, OwnedFd, Reach), SetupError> {
    let plain = (open_root(upper)?, open_root(work)?);
    if let Some((upper_fd, work_fd)) = open_in_clone(upper, work, &plain) {
        return Ok((upper_fd, work_fd, Reach::Beneath));
    }
    Ok((plain.0, plain.1, Reach::SameMount))
}

fn open_in_clone(upper: &Path, work: &Path, plain: &(OwnedFd, OwnedFd)) -> Option<(OwnedFd, OwnedFd)> {
    let (upper, work) = (fs::canonicalize(upper).ok()?, fs::canonicalize(work).ok()?);
    let common: PathBuf =
        upper.components().zip(work.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
    let tree = sys::tree::clone(open_root(&common).ok()?.as_fd()).ok()?;
    let open = |path: &Path, same: &OwnedFd| {
        let relative = path.strip_prefix(&common).ok()?;
        let mut at = sys::posix::openat(&tree, c".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
        for part in relative.components() {
            let name = std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(part.as_os_str())).ok()?;
            at = sys::file::open_beneath(at.as_fd(), &name, OFlag::O_PATH, 0, Reach::SameMount).ok()?;
        }
        // A mount between the common directory and this one hides it from the clone.
        let (here, there) = (sys::file::stat(&at).ok()?, sys::file::stat(same).ok()?);
        ((here.dev, here.ino) == (there.dev, there.ino)).then_some(at)
    };
    Some((open(&upper, &plain.0)?, open(&work, &plain.1)?))
}

impl WorkDir {
    /// W itself.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Whether a mount before this one has left changes unfinished.
    pub(super) fn is_unclean(&self) -> bool {
        self.unclean
    }

    /// Puts the sign of unfinished changes on disk, before the first change of a mount.
    pub fn begin(&self) -> Result<()> {
        if self.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let work = open_sub(self.root.as_fd(), "work")?;
        let incompat = open_sub(work.as_fd(), "incompat")?;
        open_sub(incompat.as_fd(), "layerfs")?;
        if self.volatile {
            let dir = open_sub(incompat.as_fd(), "volatile")?;
            let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let dirty = sys::posix::openat(&dir, c"dirty", flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
            sys::posix::write(dirty, sys::boot::id().as_bytes())?;
        }
        for dir in [&incompat, &work, &self.root] {
            let readable = sys::posix::openat(dir, c".", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
            sys::posix::fsync(readable)?;
        }
        self.begun.store(true, Ordering::Release);
        Ok(())
    }

    /// Takes the sign away again: everything is finished, and a kernel overlay may use the directories.
    pub fn finish(&self) -> Result<()> {
        sweep(self.stage.as_fd())?;
        sweep(self.parked.as_fd())?;
        // A mount that changed nothing cleans up as well what one before it left behind.
        uncommitted::remove_lists(self.private.as_fd())?;
        match remove_dir(self.root.as_fd(), "work/incompat/layerfs") {
            Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(e) => return Err(e),
        }
        match remove_dir(self.root.as_fd(), "work/incompat") {
            Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ENOTEMPTY) => {}
            Err(e) => return Err(e),
        }
        self.begun.store(false, Ordering::Release);
        Ok(())
    }

    /// Removes again what was made for a mount that did not come about.
    pub fn abandon(&self) -> Result<()> {
        if !self.made_private {
            return Ok(());
        }
        for dir in ["stage", "parked"] {
            remove_dir(self.private.as_fd(), dir)?;
        }
        sys::posix::unlinkat(&self.private, "lock", UnlinkatFlags::NoRemoveDir)?;
        remove_dir(self.root.as_fd(), "layerfs")?;
        match &self.made_work {
            Some(path) => fs::remove_dir(path).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))),
            None => Ok(()),
        }
    }

    /// Tells other daemons where this upper is mounted, or that it is no longer.
    pub fn publish_mount(&self, dev: Option<u64>) -> io::Result<()> {
        self.lock.publish(dev)
    }
}

fn remove_dir(at: BorrowedFd<'_>, path: &str) -> Result<()> {
    sys::posix::unlinkat(at, path, UnlinkatFlags::RemoveDir)
}

/// Refuses what a volatile mount left behind when the machine stopped since: nobody knows what of it reached the disk.
fn check_volatile(work: &Path) -> std::result::Result<(), SetupError> {
    let dirty = work.join("work/incompat/volatile/dirty");
    match fs::read_to_string(&dirty) {
        Ok(boot) if boot == sys::boot::id() => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::NotADirectory => Ok(()),
        _ => {
            let what = "the upper layer was written by a volatile mount, and the machine has stopped since";
            Err(SetupError::new(what, &dirty, "throw the layer away, or remove this file to use what there is of it"))
        }
    }
}

/// Makes the work directory, for its owner alone; tells its path if it was not there.
fn make_dir(path: &Path) -> std::result::Result<Option<PathBuf>, SetupError> {
    use std::os::unix::fs::DirBuilderExt;
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(Some(path.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        Err(e) => {
            let what = format!("can't make the work directory ({e})");
            Err(SetupError::new(what, path, "name another one with --work"))
        }
    }
}

/// Opens a directory of ours, making it when it is missing.
pub(super) fn open_sub(at: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    match sys::posix::mkdirat(at, name, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(e) => return Err(e),
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    sys::posix::openat(at, name, flags, Mode::empty())
}

/// Removes everything in a directory of ours, staged trees included.
pub(super) fn sweep(dir: BorrowedFd<'_>) -> Result<()> {
    let readable =
        sys::posix::openat(dir, c".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    sys::dir::for_each(readable.as_fd(), |entry| {
        names.push((entry.name.to_vec(), entry.kind));
        true
    })?;
    for (name, kind) in names {
        let name = std::ffi::CString::new(name).map_err(|_| Errno::EINVAL)?;
        if kind != libc::DT_DIR && sys::posix::unlinkat(dir, name.as_c_str(), UnlinkatFlags::NoRemoveDir).is_ok() {
            continue;
        }
        remove_tree(dir, &name)?;
    }
    Ok(())
}

/// Removes a directory of ours with what is in it: whiteouts, or a staged object that a crash left.
pub(super) fn remove_tree(at: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<()> {
    let removed = sys::posix::unlinkat(at, name, UnlinkatFlags::RemoveDir);
    if removed != Err(Errno::ENOTEMPTY) {
        return removed;
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let dir = sys::posix::openat(at, name, flags, Mode::empty())?;
    match sweep(dir.as_fd()) {
        // Its mode is for its users; what we remove needs none.
        Err(Errno::EACCES) => {
            sys::file::chmod_fd(dir.as_fd(), 0o700)?;
            sweep(dir.as_fd())?;
        }
        done => done?,
    }
    sys::posix::unlinkat(at, name, UnlinkatFlags::RemoveDir)
}
