//! The only code that can change a layer: every mutator is a method of [`Upper`] and takes what only upper can give.

use std::ffi::CStr;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use nix::fcntl::{OFlag, RenameFlags};
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;
use parking_lot::Mutex;

use crate::error::{Errno, Result, SetupError};
use crate::layer::copy::{Copier, CopyKind};
use crate::layer::marks::{Mark, Namespace};
use crate::layer::override_stat::Form;
use crate::layer::private::PrivateMarks;
use crate::layer::real::{ObjKey, RealDir};
use crate::layer::stack::Stack;
use crate::layer::stage::{self, Over, Staged, Stager};
use crate::layer::uncommitted::Lists;
use crate::layer::whiteout::Whiteouts;
use crate::layer::work::WorkDir;
use crate::name::Name;
use crate::sys;
use crate::sys::file::{Stat, TimeChange};
use crate::sys::xattr::Target;

/// The whiteout that all others are hard links of.
const SHARED_WHITEOUT: &CStr = c"whiteout";

/// A directory of the upper layer.
#[derive(Clone, Debug)]
pub struct UpperDir(Arc<RealDir>);

impl UpperDir {
    /// The directory with status `st` that is about to be, or was, published as `name`.
    pub fn new(parent: &UpperDir, name: &Name, st: &Stat) -> Self {
        Self(RealDir::child(parent, name, st))
    }
}

impl Deref for UpperDir {
    type Target = Arc<RealDir>;
    fn deref(&self) -> &Arc<RealDir> {
        &self.0
    }
}

/// An open directory of the upper layer.
#[derive(Clone, Debug)]
pub struct UpperFd(Arc<OwnedFd>);

impl AsFd for UpperFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An open object of the upper layer, of any kind, perhaps without a name.
#[derive(Clone, Debug)]
pub struct UpperObject(pub(super) Arc<OwnedFd>);

impl AsFd for UpperObject {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl UpperObject {
    /// A second descriptor, with `flags`, of the same object.
    pub fn reopen(&self, flags: OFlag) -> Result<Self> {
        sys::file::reopen(self.as_fd(), flags).map(|fd| Self(Arc::new(fd)))
    }

    /// The plain descriptor, for who only reads.
    pub fn into_fd(self) -> Arc<OwnedFd> {
        self.0
    }
}

/// The writable layer with its work directory.
#[derive(Debug)]
pub struct Upper {
    pub(super) work: WorkDir,
    pub(super) namespace: Namespace,
    /// Where owner and permissions are kept, if not on the objects themselves.
    pub(super) xattr_permissions: Option<Form>,
    pub(super) private: PrivateMarks,
    /// The directory of the index, once it exists.
    pub(super) index: OnceLock<OwnedFd>,
    /// Whether it was looked for in vain; only we make it.
    pub(super) no_index: AtomicBool,
    pub(super) lists: Lists,
    stager: Stager,
    pub(super) copier: Copier,
    pub(super) whiteouts: Whiteouts,
    /// Whether the shared whiteout exists; held while it is renewed.
    whiteout: Mutex<bool>,
}

impl Stack {
    /// A directory of upper as such; `None` for one of a lower layer.
    pub fn as_upper(&self, dir: &Arc<RealDir>) -> Option<UpperDir> {
        dir.layer.is_upper().then(|| UpperDir(dir.clone()))
    }

    /// Upper's root directory.
    pub fn upper_root(&self) -> Option<UpperDir> {
        self.layers().first().and_then(|layer| self.as_upper(&layer.root))
    }

    /// Opens a directory of upper for changes.
    pub fn open_upper(&self, dir: &UpperDir) -> Result<UpperFd> {
        self.open_dir(dir).map(UpperFd)
    }

    /// Keeps the descriptor of a directory of upper that was published just now.
    pub fn keep_open(&self, dir: &UpperDir, object: UpperObject) {
        self.fds.put(dir, object.into_fd());
    }

    /// The same, of one that is new: it holds nothing.
    pub fn keep_new(&self, dir: &UpperDir, object: UpperObject) {
        for hint in [&dir.dot_whiteouts, &dir.xattr_whiteouts, &dir.impure] {
            hint.learn(false);
        }
        self.keep_open(dir, object);
    }

    /// Opens (`O_PATH`) what we have just made in a directory whose names are locked.
    pub fn open_new(&self, dir: &UpperDir, name: &Name) -> Result<UpperObject> {
        self.open_unverified(dir, name, OFlag::O_PATH).map(|fd| UpperObject(Arc::new(fd)))
    }

    /// Opens an object of upper, by default (`O_PATH`) for changes of what is not its data.
    pub fn open_upper_object(&self, dir: &UpperDir, name: &Name, key: ObjKey, flags: OFlag) -> Result<UpperObject> {
        match self.open_at(dir, name, key, flags) {
            Err(Errno::EACCES) => {
                let object = self.open_path(dir, name, key)?;
                self.upper()?.despite_mode(object.as_fd(), || self.open_at(dir, name, key, flags))
            }
            opened => opened,
        }
        .map(|fd| UpperObject(Arc::new(fd)))
    }

    /// Renames within upper. A directory's place changes under `places`, so that nobody looks for it halfway.
    pub fn rename_in_upper(
        &self,
        from: (&UpperDir, &Name),
        to: (&UpperDir, &Name),
        flags: RenameFlags,
        moved: (Option<&UpperDir>, Option<&UpperDir>),
    ) -> Result<()> {
        self.upper()?.work.begin()?;
        let (from_fd, to_fd) = (self.open_upper(from.0)?, self.open_upper(to.0)?);
        let _places = self.places.write();
        sys::file::rename_at((from_fd.as_fd(), from.1.as_cstr()), (to_fd.as_fd(), to.1.as_cstr()), flags)?;
        if let Some(dir) = moved.0 {
            *dir.place.lock() = Some((to.0.0.clone(), to.1.clone()));
        }
        if let Some(dir) = moved.1 {
            *dir.place.lock() = Some((from.0.0.clone(), from.1.clone()));
        }
        Ok(())
    }

    /// Marks a directory of upper as holding entries with an origin.
    pub fn set_impure(&self, dir: &UpperDir) -> Result<()> {
        if self.is_impure(dir)? {
            return Ok(());
        }
        self.upper()?.set_mark(&self.open_upper(dir)?, Mark::Impure, b"y")?;
        dir.impure.set(true);
        Ok(())
    }

    /// Forgets the descriptor of a directory that is no more.
    pub fn forget_dir(&self, dir: &Arc<RealDir>) {
        self.fds.remove(dir);
    }
}

impl Upper {
    pub(super) fn new(
        work: WorkDir,
        namespace: Namespace,
        xattr_permissions: Option<Form>,
        copier: Copier,
        whiteouts: Whiteouts,
    ) -> std::result::Result<Self, SetupError> {
        let private = PrivateMarks::open(work.private.as_fd()).map_err(|e| {
            let path = std::path::Path::new("layerfs/marks in the work directory");
            SetupError::new(format!("can't read the private marks ({e})"), path, "check its owner and mode")
        })?;
        Ok(Self {
            stager: Stager::new(work.stage.as_fd()),
            work,
            namespace,
            xattr_permissions,
            private,
            lists: Lists::default(),
            copier,
            whiteouts,
            index: OnceLock::new(),
            no_index: AtomicBool::new(false),
            whiteout: Mutex::new(false),
        })
    }

    /// Puts the sign of unfinished changes on disk; every change does so first.
    pub fn begin(&self) -> Result<()> {
        self.work.begin()
    }

    /// The clean end: nothing is left that a kernel overlay would stumble over.
    pub fn finish(&self) -> Result<()> {
        let mut exists = self.whiteout.lock();
        match sys::posix::unlinkat(&self.work.private, SHARED_WHITEOUT, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => *exists = false,
            Err(e) => return Err(e),
        }
        self.private.finish(self.work.private.as_fd())?;
        self.work.finish()
    }

    /// Removes again what was made for a mount that did not come about.
    pub fn abandon(&self) -> Result<()> {
        self.work.abandon()
    }

    /// Tells other daemons the device number of the mount that this upper serves, or that there is none any more.
    pub fn publish_mount(&self, dev: Option<u64>) -> std::io::Result<()> {
        self.work.publish_mount(dev)
    }

    pub(super) fn private_mark(&self, dir: BorrowedFd<'_>, name: &Name, mark: Mark) -> Option<Vec<u8>> {
        self.private.get(dir, name, mark)
    }

    // -- straight into upper, where nothing stands at the name

    /// Makes a regular file and opens it.
    pub fn create_file(&self, dir: &UpperFd, name: &Name, mode: u32) -> Result<UpperObject> {
        self.work.begin()?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = sys::posix::openat(dir, name.as_cstr(), flags, Mode::from_bits_truncate(mode & 0o1777))?;
        Ok(UpperObject(Arc::new(fd)))
    }

    /// Makes a directory.
    pub fn create_dir(&self, dir: &UpperFd, name: &Name, mode: u32) -> Result<()> {
        self.work.begin()?;
        sys::posix::mkdirat(dir, name.as_cstr(), Mode::from_bits_truncate(mode & 0o1777))
    }

    /// Makes a symlink.
    pub fn create_symlink(&self, dir: &UpperFd, name: &Name, target: &CStr) -> Result<()> {
        self.work.begin()?;
        sys::file::symlink_at(target, dir.as_fd(), name.as_cstr())
    }

    /// Makes a fifo, socket or device.
    pub fn create_node(&self, dir: &UpperFd, name: &Name, mode: u32, rdev: u64) -> Result<()> {
        self.work.begin()?;
        sys::file::mknod_at(dir.as_fd(), name.as_cstr(), mode & !0o6000, rdev)
    }

    /// Gives an object another name, where nothing stands.
    pub fn link(&self, object: &UpperObject, dir: &UpperFd, name: &Name) -> Result<()> {
        self.work.begin()?;
        sys::file::link_fd(object.as_fd(), dir.as_fd(), name.as_cstr())
    }

    // -- staged in the work directory

    /// An empty file in the making.
    pub fn stage_file(&self) -> Result<Staged<'_>> {
        self.work.begin()?;
        self.stager.file(self.work.stage.as_fd(), 0o600)
    }

    /// The same with the mode that it is going to have, if the umask lets it.
    pub fn stage_file_as(&self, mode: u32) -> Result<Staged<'_>> {
        self.work.begin()?;
        let mode = if self.xattr_permissions.is_some() { 0 } else { mode & 0o777 };
        self.stager.file(self.work.stage.as_fd(), mode | 0o600)
    }

    /// An empty directory in the making.
    pub fn stage_dir(&self, mode: u32) -> Result<Staged<'_>> {
        self.work.begin()?;
        let stage = self.work.stage.as_fd();
        self.stager.dir(stage, Mode::from_bits_truncate(mode & 0o1777 | 0o700))
    }

    /// A symlink in the making.
    pub fn stage_symlink(&self, target: &CStr) -> Result<Staged<'_>> {
        self.work.begin()?;
        let stage = self.work.stage.as_fd();
        self.stager.named(stage, |name| sys::file::symlink_at(target, stage, name))
    }

    /// A fifo, socket or device in the making.
    pub fn stage_node(&self, mode: u32, rdev: u64) -> Result<Staged<'_>> {
        self.work.begin()?;
        let stage = self.work.stage.as_fd();
        self.stager.named(stage, |name| sys::file::mknod_at(stage, name, mode & !0o6000, rdev))
    }

    /// Another name for an object, in the making.
    pub fn stage_link(&self, object: &UpperObject) -> Result<Staged<'_>> {
        self.work.begin()?;
        let stage = self.work.stage.as_fd();
        self.stager.named(stage, |name| sys::file::link_fd(object.as_fd(), stage, name))
    }

    /// A whiteout in the staging directory.
    pub fn stage_whiteout(&self) -> Result<Staged<'_>> {
        let stage = self.work.stage.as_fd();
        self.stager.named(stage, |name| self.link_whiteout(stage, name))
    }

    /// Gives a staged object its place in upper.
    pub fn publish(&self, staged: Staged<'_>, dir: &UpperFd, name: &Name, over: Over) -> Result<UpperObject> {
        self.publish_in(staged, dir.as_fd(), name, over)
    }

    /// Gives a staged object its place in a directory of upper, or of ours in the work directory.
    pub(super) fn publish_in(
        &self,
        staged: Staged<'_>,
        dir: BorrowedFd<'_>,
        name: &Name,
        over: Over,
    ) -> Result<UpperObject> {
        staged.publish(&self.stager, dir, name, over).map(|fd| UpperObject(Arc::new(fd)))
    }

    /// Keeps a staged file without ever giving it a name.
    pub fn keep_unnamed(&self, staged: Staged<'_>) -> UpperObject {
        UpperObject(Arc::new(staged.into_fd()))
    }

    /// The way in which data is mostly copied from the lowers.
    pub fn way_of_copying(&self) -> CopyKind {
        self.copier.way()
    }

    /// Copies a lower file's data into a staged one.
    pub fn copy_data(&self, from: BorrowedFd<'_>, st: &Stat, to: &Staged<'_>) -> Result<CopyKind> {
        self.copier.copy(from, st, to.fd())
    }

    /// Gives a staged file a size without data.
    pub fn stage_hole(&self, file: &Staged<'_>, size: u64) -> Result<()> {
        sys::posix::ftruncate(file.fd(), i64::try_from(size).map_err(|_| Errno::EFBIG)?)
    }

    /// Copies the data of a lower file into the metadata copy of it that is in upper already.
    pub fn fill_data(&self, from: BorrowedFd<'_>, st: &Stat, to: &UpperObject) -> Result<CopyKind> {
        self.work.begin()?;
        self.copier.copy(from, st, to.as_fd())
    }

    /// Copies xattrs, then owner, mode and times of a lower object onto a staged one; returns which object that is.
    pub fn copy_metadata(&self, from: Target<'_>, st: &Stat, to: &Staged<'_>) -> Result<ObjKey> {
        stage::copy_metadata(from, st, to.fd(), self.namespace, self.xattr_permissions)
    }

    /// A second descriptor of an object, for its data.
    pub fn reopen(&self, object: &UpperObject, flags: OFlag) -> Result<UpperObject> {
        match object.reopen(flags) {
            Err(Errno::EACCES) => self.despite_mode(object.as_fd(), || object.reopen(flags)),
            opened => opened,
        }
    }

    /// Makes a file's data and attributes durable.
    pub fn sync(&self, file: &impl AsUpper) -> Result<()> {
        sys::posix::fsync(file.as_upper_fd())
    }

    /// Has a file's data be written to disk soon.
    pub fn start_writeback(&self, file: &UpperObject) -> Result<()> {
        sys::file::start_writeback(file.as_fd())
    }

    // -- removal

    /// Removes a name that is no directory.
    pub fn unlink(&self, dir: &UpperFd, name: &Name) -> Result<()> {
        self.work.begin()?;
        sys::posix::unlinkat(dir, name.as_cstr(), UnlinkatFlags::NoRemoveDir)
    }

    /// Removes a directory that is empty, or holds whiteouts only.
    pub fn rmdir(&self, dir: &UpperFd, name: &Name) -> Result<()> {
        self.work.begin()?;
        match sys::posix::unlinkat(dir, name.as_cstr(), UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOTEMPTY) => {}
            done => return done,
        }
        // Out of sight with one rename, then piece by piece.
        let stage = self.work.stage.as_fd();
        let away = self.stager.fresh_name()?;
        stage::rename_across((dir.as_fd(), name.as_cstr()), (stage, away.as_cstr()), RenameFlags::empty())?;
        stage::remove(stage, &away);
        Ok(())
    }

    /// Puts a whiteout in the overlay's form at a name, over whatever stands there.
    pub(super) fn overlay_whiteout(&self, dir: &UpperFd, name: &Name, over: Over) -> Result<()> {
        self.work.begin()?;
        if over == Over::Nothing {
            return self.link_whiteout(dir.as_fd(), name.as_cstr());
        }
        let staged = self.stage_whiteout()?;
        self.publish(staged, dir, name, over).map(|_| ())
    }

    /// Links the shared whiteout, one inode for all; a new one when it has as many links as the filesystem allows.
    fn link_whiteout(&self, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let mut exists = self.whiteout.lock();
        let private = self.work.private.as_fd();
        if *exists {
            match sys::posix::linkat(private, SHARED_WHITEOUT, dir, name, nix::fcntl::AtFlags::empty()) {
                Err(Errno::EMLINK | Errno::ENOENT | Errno::EPERM | Errno::EOPNOTSUPP) => {}
                done => return done,
            }
        }
        match sys::posix::unlinkat(private, SHARED_WHITEOUT, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(e) => return Err(e),
        }
        sys::file::mknod_at(private, SHARED_WHITEOUT, libc::S_IFCHR, 0)?;
        *exists = true;
        match sys::posix::linkat(private, SHARED_WHITEOUT, dir, name, nix::fcntl::AtFlags::empty()) {
            // A filesystem without hard links: each whiteout is its own.
            Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::EMLINK) => sys::file::mknod_at(dir, name, libc::S_IFCHR, 0),
            done => done,
        }
    }

    // -- attributes and data

    /// Sets permission bits.
    pub fn chmod(&self, object: &impl AsUpper, mode: u32) -> Result<()> {
        self.work.begin()?;
        sys::file::chmod_fd(object.as_upper_fd(), mode)
    }

    /// Sets owner and group; `None` leaves one.
    pub fn chown(&self, object: &impl AsUpper, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        self.work.begin()?;
        sys::file::chown_fd(object.as_upper_fd(), uid, gid)
    }

    /// Sets times.
    pub fn set_times(&self, object: &impl AsUpper, atime: TimeChange, mtime: TimeChange) -> Result<()> {
        self.work.begin()?;
        sys::file::set_times(object.as_upper_fd(), atime, mtime)
    }

    /// Sets a stored xattr.
    pub fn set_xattr(&self, object: &impl AsUpper, attr: &CStr, value: &[u8], flags: i32) -> Result<()> {
        self.work.begin()?;
        let set = || sys::xattr::set(object.as_target(), attr, value, flags);
        match set() {
            Err(Errno::EACCES) => self.despite_mode(object.as_upper_fd(), set),
            done => done,
        }
    }

    /// Does to an object what its mode keeps its owner from: without privilege we are bound by that, though who may ask
    /// for it is the kernel's to decide, and it has.
    pub(super) fn despite_mode<T>(&self, object: BorrowedFd<'_>, call: impl FnOnce() -> Result<T>) -> Result<T> {
        let stat = sys::file::stat(object)?;
        let needed = if stat.is_dir() { 0o700 } else { 0o600 };
        if stat.mode & needed == needed || stat.format() == libc::S_IFLNK {
            return Err(Errno::EACCES);
        }
        sys::file::chmod_fd(object, stat.mode & 0o7777 | needed).map_err(|_| Errno::EACCES)?;
        let done = call();
        sys::file::chmod_fd(object, stat.mode & 0o7777)?;
        done
    }

    /// Removes a stored xattr.
    pub fn remove_xattr(&self, object: &impl AsUpper, attr: &CStr) -> Result<()> {
        self.work.begin()?;
        let remove = || sys::xattr::remove(object.as_target(), attr);
        match remove() {
            Err(Errno::EACCES) => self.despite_mode(object.as_upper_fd(), remove),
            done => done,
        }
    }

    /// Sets a mark; on an object that can't carry it, in the work directory.
    pub fn set_mark(&self, object: &impl AsUpper, mark: Mark, value: &[u8]) -> Result<()> {
        match self.set_xattr(object, self.namespace.name(mark), value, 0) {
            Err(Errno::EPERM | Errno::EOPNOTSUPP) => {
                self.private.set(self.work.private.as_fd(), object.as_upper_fd(), mark, value)
            }
            done => done,
        }
    }

    /// Sets a mark that counts on regular files only. False where it can't be stored on the file itself.
    pub fn mark_file(&self, file: &impl AsUpper, mark: Mark, value: &[u8]) -> Result<bool> {
        use Errno::{E2BIG, EDQUOT, ENOSPC, EOPNOTSUPP, EPERM, ERANGE};
        match self.set_xattr(file, self.namespace.name(mark), value, 0) {
            // ext4 says so, too, of what doesn't fit into the one block that a file's attributes have.
            Err(ENOSPC | EDQUOT | E2BIG | ERANGE | EOPNOTSUPP | EPERM) => Ok(false),
            done => done.map(|()| true),
        }
    }

    /// Removes a mark, if there is one.
    pub fn remove_mark(&self, object: &impl AsUpper, mark: Mark) -> Result<()> {
        match self.remove_xattr(object, self.namespace.name(mark)) {
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(()),
            done => done,
        }
    }

    /// Sets a file's size.
    pub fn truncate(&self, file: &UpperObject, size: u64) -> Result<()> {
        self.work.begin()?;
        sys::posix::ftruncate(file, i64::try_from(size).map_err(|_| Errno::EFBIG)?)
    }

    /// Writes at an offset; returns how much was written.
    pub fn write(&self, file: &UpperObject, data: &[u8], offset: u64) -> Result<usize> {
        self.work.begin()?;
        sys::posix::pwrite(file, data, i64::try_from(offset).map_err(|_| Errno::EFBIG)?)
    }

    /// fallocate(2).
    pub fn allocate(&self, file: &UpperObject, mode: i32, offset: i64, len: i64) -> Result<()> {
        self.work.begin()?;
        let flags = nix::fcntl::FallocateFlags::from_bits(mode).ok_or(Errno::EOPNOTSUPP)?;
        sys::posix::fallocate(file, flags, offset, len)
    }

    /// copy_file_range(2) into a file of upper.
    pub fn copy_range(&self, from: BorrowedFd<'_>, at: u64, to: &UpperObject, to_at: u64, len: usize) -> Result<usize> {
        self.work.begin()?;
        sys::copy::copy_range(from, at, to.as_fd(), to_at, len)
    }
}

/// What only upper gives out, so that nothing else can be changed.
pub trait AsUpper {
    /// The object's descriptor.
    fn as_upper_fd(&self) -> BorrowedFd<'_>;

    /// The object, for its attributes.
    fn as_target(&self) -> Target<'_> {
        Target::Fd(self.as_upper_fd())
    }
}

impl AsUpper for UpperObject {
    fn as_upper_fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

impl AsUpper for UpperFd {
    fn as_upper_fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn as_target(&self) -> Target<'_> {
        Target::Dir(self.as_fd())
    }
}

impl AsUpper for Staged<'_> {
    fn as_upper_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}
