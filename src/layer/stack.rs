//! The opened layers, and everything that only reads them.

use std::ffi::{CStr, CString};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit};
use parking_lot::RwLock;

use crate::error::{Errno, Result, SetupError, is_passing};
use crate::layer::copy::Copier;
use crate::layer::marks::{Mark, Namespace};
use crate::layer::origin::Origin;
use crate::layer::override_stat::Form;
use crate::layer::real::{DirFds, LayerId, ObjKey, RealDir, void_stat};
use crate::layer::upper::UpperObject;
use crate::layer::{Handling, StackSpec, Upper, preflight, work};
use crate::name::Name;
use crate::sys;
use crate::sys::file::{FsStat, Reach, Stat};
use crate::sys::xattr::Target;

/// How many descriptors of directories stay open, beside those of two directories that all lowers have: a walk through more
/// layers than are remembered would find none of them open.
const OPEN_DIRS: usize = 160;

/// The longest relative path given to one system call when a directory is reopened, in bytes (`PATH_MAX` is 4096).
const REOPEN_CHUNK: usize = 4000;

/// The number of btrfs in statfs(2).
pub(super) const BTRFS: i64 = 0x9123_683e;

/// Filesystems by their numbers in statfs(2): what they are called, and whether their directories list whatever can be looked
/// up in them. Others may have names that only a lookup finds (snapshots), or be changed from elsewhere.
const FILESYSTEMS: [(i64, &str, bool); 11] = [
    (0xef53, "ext4", true),
    (0x5846_5342, "xfs", true),
    (BTRFS, "btrfs", true),
    (0xf2f5_2010, "f2fs", true),
    (0x0102_1994, "tmpfs", true),
    (0x794c_7630, "overlay", true),
    (0x7371_7368, "squashfs", true),
    (0xe0f5_e1e2, "erofs", true),
    (0x6573_5546, "fuse", false),
    (0x2fc1_2fc1, "zfs", false),
    (0x6969, "nfs", false),
];

/// One opened layer.
#[derive(Debug)]
pub struct Layer {
    /// Where the user said it is.
    pub path: PathBuf,
    pub(super) root_fd: Arc<OwnedFd>,
    /// Its root directory.
    pub root: Arc<RealDir>,
    /// `Beneath` if its mount is a private clone with nothing mounted in it.
    pub(super) reach: Reach,
    /// Its mount keeps even access times as they are.
    sealed: bool,
    /// The uuid of its filesystem, zero if unknown.
    uuid: [u8; 16],
    /// A readable descriptor of the root, which opening by handle asks for; one layer of each filesystem has it.
    handles: OnceLock<OwnedFd>,
    /// Whether its directories list whatever can be looked up in them.
    lists_all: OnceLock<bool>,
}

/// The opened layers of a union.
#[derive(Debug)]
pub struct Stack {
    layers: Vec<Layer>,
    upper: Option<Upper>,
    namespace: Namespace,
    privileged: bool,
    trusted_lowers: bool,
    xattr_permissions: Option<Form>,
    /// Which names the lowers hold may be remembered.
    pub(super) remember_names: bool,
    pub(super) fds: Arc<DirFds>,
    /// Held exclusively while a directory of upper moves, shared while one is found again by its place.
    pub(super) places: RwLock<()>,
}

/// At most a quarter of what the process may open: the layers, files and pinned objects need the rest.
fn open_dirs(lowers: usize) -> NonZeroUsize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    let most = usize::try_from(limit / 4).unwrap_or(usize::MAX).max(OPEN_DIRS);
    NonZeroUsize::MIN.saturating_add((OPEN_DIRS + 2 * lowers).min(most))
}

impl Stack {
    /// Opens the layers, and makes the work directory when there is an upper one.
    ///
    /// # Errors
    /// Whatever is wrong with a directory, before anything on disk is changed.
    pub fn open(spec: &StackSpec, handling: Handling) -> std::result::Result<Self, SetupError> {
        let Handling { volatile, whiteouts, remember_names } = handling;
        preflight::check(spec, whiteouts)?;
        let privileged = sys::privilege::is_privileged();
        let namespace = if privileged && !spec.userxattr { Namespace::Trusted } else { Namespace::User };
        let fds = Arc::new(DirFds::new(open_dirs(spec.lowers.len())));
        let mut layers = Vec::with_capacity(spec.lowers.len() + 1);
        let mut opened_work = None;
        if let (Some(dir), Some(work_path)) = (&spec.upper, &spec.work) {
            let opened = work::open(dir, work_path, volatile)?;
            layers.push(Layer::new(LayerId::UPPER, dir, opened.upper, opened.reach, &fds)?);
            opened_work = Some(opened.work);
        }
        for (path, id) in spec.lowers.iter().zip(1..) {
            layers.push(Layer::open_lower(LayerId(id), path, &fds)?);
        }
        let upper = opened_work.map(|work| {
            let copier = Copier::probe(work.stage.as_fd(), &sources(&layers));
            Upper::new(work, namespace, spec.xattr_permissions, copier, whiteouts)
        });
        Ok(Self {
            layers,
            upper: upper.transpose()?,
            namespace,
            privileged,
            trusted_lowers: spec.trusted_lowers,
            xattr_permissions: spec.xattr_permissions,
            remember_names,
            fds,
            places: RwLock::new(()),
        })
    }

    /// All layers, the upper one first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The only way to change a layer; `EROFS` on a union without upper.
    pub fn upper(&self) -> Result<&Upper> {
        self.upper.as_ref().ok_or(Errno::EROFS)
    }

    /// Whether a layer has none below it.
    pub fn is_lowest(&self, layer: LayerId) -> bool {
        self.layers.last().is_some_and(|lowest| lowest.root.layer == layer)
    }

    /// Whether there is an upper layer.
    pub fn is_writable(&self) -> bool {
        self.upper.is_some()
    }

    /// The namespace that the marks are kept in.
    pub fn namespace(&self) -> Namespace {
        self.namespace
    }

    /// Whether the marks of files in a layer count.
    pub fn trusts(&self, layer: LayerId) -> bool {
        layer.is_upper() || self.trusted_lowers
    }

    /// Where owner and permissions are kept, if not on the objects themselves.
    pub fn xattr_permissions(&self) -> Option<Form> {
        self.xattr_permissions
    }

    /// The number of open directory descriptors, the layers' roots included.
    pub fn descriptors(&self) -> usize {
        self.layers.len() + self.fds.len()
    }

    /// Whether a layer can't be changed by us, not even its access times.
    pub fn is_sealed(&self, id: LayerId) -> bool {
        self.layer(id).is_ok_and(|layer| layer.sealed)
    }

    pub(super) fn layer(&self, id: LayerId) -> Result<&Layer> {
        let first = if self.upper.is_some() { 0 } else { 1 };
        let index = usize::from(id.0).checked_sub(first).ok_or(Errno::EIO)?;
        self.layers.get(index).ok_or(Errno::EIO)
    }

    /// An `O_PATH` descriptor of a directory.
    ///
    /// # Errors
    /// `ESTALE` if another object stands at its place by now.
    pub fn open_dir(&self, dir: &Arc<RealDir>) -> Result<Arc<OwnedFd>> {
        if dir.place.lock().is_none() {
            return self.layer(dir.layer).map(|layer| layer.root_fd.clone());
        }
        if let Some(fd) = self.fds.get(dir) {
            return Ok(fd);
        }
        let fd = Arc::new(self.reopen_dir(dir)?);
        self.fds.put(dir, fd.clone());
        Ok(fd)
    }

    /// Finds a directory again from its nearest ancestor that is open.
    fn reopen_dir(&self, dir: &Arc<RealDir>) -> Result<OwnedFd> {
        let _still = self.places.read();
        let layer = self.layer(dir.layer)?;
        let mut names = Vec::new();
        let mut at = dir.clone();
        let base = loop {
            let place = at.place.lock().clone();
            let Some((parent, name)) = place else { break layer.root_fd.clone() };
            names.push(name);
            if let Some(fd) = self.fds.get(&parent) {
                break fd;
            }
            at = parent;
        };
        let fd = walk(&base, names.iter().rev(), layer.reach)?;
        if ObjKey::from(&sys::file::stat(&fd)?) != dir.key {
            return Err(Errno::ESTALE);
        }
        Ok(fd)
    }

    /// Remembers a descriptor that was opened for `dir` already.
    fn keep_dir_fd(&self, dir: &Arc<RealDir>, fd: OwnedFd) {
        self.fds.put(dir, Arc::new(fd));
    }

    /// The status of `name` in a directory of one layer.
    pub fn stat_at(&self, dir: &Arc<RealDir>, name: &Name) -> Result<Option<Stat>> {
        if dir.is_void() || dir.lacks(name) {
            return Ok(None);
        }
        let fd = self.open_dir(dir)?;
        let stat = match self.layer(dir.layer)?.reach {
            Reach::Beneath => sys::file::stat_at(fd.as_fd(), name.as_cstr()),
            Reach::SameMount => sys::file::open_beneath(fd.as_fd(), name.as_cstr(), OFlag::O_PATH, 0, Reach::SameMount)
                .and_then(sys::file::stat),
        };
        match stat {
            Ok(st) => Ok(Some(st)),
            Err(Errno::EXDEV) => Ok(Some(void_stat(dir.key, name))),
            // The filesystem of a layer may take shorter names than the others: it just has none that long.
            Err(Errno::ENOENT | Errno::ENAMETOOLONG) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Opens `name`, which must be the object `key`.
    ///
    /// # Errors
    /// `ESTALE` if it is another one by now.
    pub fn open_at(&self, dir: &Arc<RealDir>, name: &Name, key: ObjKey, flags: OFlag) -> Result<OwnedFd> {
        let fd = self.open_unverified(dir, name, flags)?;
        if ObjKey::from(&sys::file::stat(&fd)?) != key {
            return Err(Errno::ESTALE);
        }
        Ok(fd)
    }

    /// Opens `name`, whichever object it is.
    pub(super) fn open_unverified(&self, dir: &Arc<RealDir>, name: &Name, flags: OFlag) -> Result<OwnedFd> {
        let dir_fd = self.open_dir(dir)?;
        let reach = self.layer(dir.layer)?.reach;
        // A fifo or terminal in its place must not hold us up; openat2 takes these flags only where they mean something.
        let plain = !flags.contains(OFlag::O_PATH);
        let flags = if plain { flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY } else { flags };
        match sys::file::open_beneath(dir_fd.as_fd(), name.as_cstr(), flags, 0, reach) {
            // O_NOATIME is for the owner only.
            Err(Errno::EPERM) if flags.contains(OFlag::O_NOATIME) => {
                let flags = flags - OFlag::O_NOATIME;
                sys::file::open_beneath(dir_fd.as_fd(), name.as_cstr(), flags, 0, reach)
            }
            opened => opened,
        }
    }

    /// An `O_PATH` descriptor of an object in a directory.
    pub fn open_path(&self, dir: &Arc<RealDir>, name: &Name, key: ObjKey) -> Result<OwnedFd> {
        self.open_at(dir, name, key, OFlag::O_PATH)
    }

    /// The child directory `name`, opened once and its descriptor kept.
    pub fn child_dir(&self, parent: &Arc<RealDir>, name: &Name, st: &Stat) -> Result<Arc<RealDir>> {
        let dir = RealDir::child(parent, name, st);
        if !dir.is_void() {
            let fd = self.open_path(parent, name, dir.key)?;
            self.keep_dir_fd(&dir, fd);
        }
        Ok(dir)
    }

    /// A descriptor of a directory that can be read (getdents) or synced.
    pub fn open_dir_readable(&self, dir: &Arc<RealDir>) -> Result<OwnedFd> {
        let fd = self.open_dir(dir)?;
        // Most of this reading is our own: it leaves no trace in the directory's times.
        let open = |extra| {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | extra;
            sys::posix::openat(&fd, c".", flags, nix::sys::stat::Mode::empty())
        };
        let either = || match open(OFlag::O_NOATIME) {
            Err(Errno::EPERM) => open(OFlag::empty()),
            opened => opened,
        };
        match either() {
            Err(Errno::EACCES) if dir.layer.is_upper() => self.upper()?.despite_mode(fd.as_fd(), either),
            opened => opened,
        }
    }

    /// The value of a stored xattr of `name` in a directory, `None` if it has none.
    pub fn xattr_at(&self, dir: &Arc<RealDir>, name: &Name, attr: &CStr) -> Result<Option<Vec<u8>>> {
        let fd = self.open_dir(dir)?;
        match none_if_absent(sys::xattr::get(Target::At(fd.as_fd(), name.as_cstr()), attr)) {
            Err(Errno::EACCES) => {
                let stat = self.stat_at(dir, name)?.ok_or(Errno::ENOENT)?;
                self.unreadable_xattr(dir.layer, self.open_path(dir, name, ObjKey::from(&stat))?.as_fd(), attr)
            }
            value => value,
        }
    }

    /// Reads a mark of an object whose mode keeps its owner, us without privilege, from reading it. In a lower it counts
    /// for nothing then.
    fn unreadable_xattr(&self, layer: LayerId, object: BorrowedFd<'_>, attr: &CStr) -> Result<Option<Vec<u8>>> {
        if !layer.is_upper() {
            return Ok(None);
        }
        self.upper()?.despite_mode(object, || none_if_absent(sys::xattr::get(Target::Fd(object), attr)))
    }

    /// The value of a stored xattr of a directory.
    pub fn dir_xattr(&self, dir: &Arc<RealDir>, attr: &CStr) -> Result<Option<Vec<u8>>> {
        let fd = self.open_dir(dir)?;
        match none_if_absent(sys::xattr::get(Target::Dir(fd.as_fd()), attr)) {
            Err(Errno::EACCES) => self.unreadable_xattr(dir.layer, fd.as_fd(), attr),
            value => value,
        }
    }

    /// The stored names of all xattrs of a directory.
    pub fn dir_xattr_names(&self, dir: &Arc<RealDir>) -> Result<Vec<u8>> {
        if dir.is_void() {
            return Ok(Vec::new());
        }
        let fd = self.open_dir(dir)?;
        Ok(none_if_absent(sys::xattr::list(Target::Dir(fd.as_fd())))?.unwrap_or_default())
    }

    /// The stored names of all xattrs of `name` in a directory.
    pub(super) fn xattr_names_at(&self, dir: &Arc<RealDir>, name: &Name) -> Result<Vec<u8>> {
        let fd = self.open_dir(dir)?;
        Ok(none_if_absent(sys::xattr::list(Target::At(fd.as_fd(), name.as_cstr())))?.unwrap_or_default())
    }

    /// A mark of an object that is no directory.
    pub fn file_mark(&self, dir: &Arc<RealDir>, name: &Name, st: &Stat, mark: Mark) -> Result<Option<Vec<u8>>> {
        let value = self.xattr_at(dir, name, self.namespace.name(mark))?;
        if value.is_some() || st.is_dir() || st.is_file() || self.namespace == Namespace::Trusted {
            return Ok(value);
        }
        let fd = self.open_dir(dir)?;
        Ok(self.upper()?.private_mark(fd.as_fd(), name, mark))
    }

    /// A mark of an open file of upper.
    pub fn open_file_mark(&self, file: &UpperObject, mark: Mark) -> Result<Option<Vec<u8>>> {
        let attr = self.namespace.name(mark);
        match none_if_absent(sys::xattr::get(Target::Fd(file.as_fd()), attr)) {
            Err(Errno::EACCES) => self.unreadable_xattr(LayerId::UPPER, file.as_fd(), attr),
            value => value,
        }
    }

    /// Whether a directory is marked as holding entries with an origin, or devices 0:0; in a layer whose marks count.
    pub fn is_impure(&self, dir: &Arc<RealDir>) -> Result<bool> {
        if !self.trusts(dir.layer) || dir.is_void() {
            return Ok(false);
        }
        if let Some(known) = dir.impure.get() {
            return Ok(known);
        }
        self.learn_marks(dir)?;
        Ok(dir.impure.get() == Some(true))
    }

    /// The origin mark that a copy of `name` gets; `None` where the filesystem has no handles.
    pub fn origin_of(&self, dir: &Arc<RealDir>, name: &Name) -> Result<Option<Origin>> {
        if dir.is_void() {
            return Ok(None);
        }
        let fd = self.open_dir(dir)?;
        self.origin(dir.layer, fd.as_fd(), name.as_cstr())
    }

    /// As [`Stack::origin_of`], of a directory itself.
    pub fn origin_of_dir(&self, dir: &Arc<RealDir>) -> Result<Option<Origin>> {
        if dir.is_void() {
            return Ok(None);
        }
        let fd = self.open_dir(dir)?;
        self.origin(dir.layer, fd.as_fd(), c"")
    }

    fn origin(&self, layer: LayerId, dir: BorrowedFd<'_>, name: &CStr) -> Result<Option<Origin>> {
        match sys::handle::of(dir, name) {
            Ok(handle) => Ok(Some(Origin { uuid: self.layer(layer)?.uuid, handle })),
            Err(e) if is_passing(e) => Err(e),
            Err(_) => Ok(None),
        }
    }

    /// The status of the object that an origin mark names, if it is still there: by its handle alone, so for the privileged only.
    pub fn resolve_origin(&self, origin: &Origin) -> Result<Option<Stat>> {
        if !self.privileged {
            return Ok(None);
        }
        let lowers = self.layers.iter().filter(|l| !l.root.layer.is_upper());
        let mut tried = Vec::new();
        for layer in lowers.filter(|l| l.uuid == origin.uuid) {
            if tried.contains(&layer.root.key.dev) {
                continue;
            }
            tried.push(layer.root.key.dev);
            let opened = layer.handle_fd().and_then(|fd| sys::handle::open(fd, &origin.handle));
            match opened.and_then(sys::file::stat) {
                Ok(stat) => return Ok(Some(stat)),
                Err(e) if is_passing(e) => return Err(e),
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// statfs(2) of the layer that is written to, else of the top one.
    pub fn fs_stat(&self) -> Result<FsStat> {
        let layer = self.layers.first().ok_or(Errno::EIO)?;
        sys::file::fs_stat(layer.root_fd.as_fd())
    }
}

impl Layer {
    fn new(
        id: LayerId,
        path: &Path,
        root_fd: OwnedFd,
        reach: Reach,
        fds: &Arc<DirFds>,
    ) -> std::result::Result<Self, SetupError> {
        let st = sys::file::stat(&root_fd)
            .map_err(|e| SetupError::new(format!("can't read the layer ({e})"), path, "check the directory"))?;
        Ok(Self {
            path: path.to_owned(),
            uuid: sys::handle::fs_uuid(root_fd.as_fd()),
            root: RealDir::root(id, ObjKey::from(&st), fds.clone()),
            root_fd: Arc::new(root_fd),
            reach,
            sealed: false,
            handles: OnceLock::new(),
            lists_all: OnceLock::new(),
        })
    }

    fn open_lower(id: LayerId, path: &Path, fds: &Arc<DirFds>) -> std::result::Result<Self, SetupError> {
        let plain = open_root(path)?;
        // In a private clone our own mount, and whatever else is mounted below the layer, does not exist.
        let Ok(tree) = sys::tree::clone(plain.as_fd()) else {
            return Self::new(id, path, plain, Reach::SameMount, fds);
        };
        let sealed = sys::tree::make_read_only(tree.as_fd());
        if let Err(e) = sealed {
            log::debug!("{}: the layer's clone stays writable to us: {e}", path.display());
        }
        Ok(Self { sealed: sealed.is_ok(), ..Self::new(id, path, tree, Reach::Beneath, fds)? })
    }

    /// What open_by_handle_at takes for "this filesystem": an `O_PATH` descriptor won't do.
    fn handle_fd(&self) -> Result<BorrowedFd<'_>> {
        if self.handles.get().is_none() {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let fd = sys::posix::openat(&*self.root_fd, c".", flags, nix::sys::stat::Mode::empty())?;
            // Whoever was first, both are the same.
            self.handles.get_or_init(|| fd);
        }
        self.handles.get().map(AsFd::as_fd).ok_or(Errno::EBADF)
    }

    /// Name of the filesystem type, as far as statfs tells.
    pub fn filesystem(&self) -> String {
        let magic = self.magic().unwrap_or(0);
        let known = FILESYSTEMS.iter().find(|(known, ..)| *known == magic);
        known.map_or_else(|| format!("0x{magic:x}"), |(_, name, _)| (*name).to_owned())
    }

    /// Whether its directories list whatever can be looked up in them.
    pub(super) fn lists_all(&self) -> bool {
        *self.lists_all.get_or_init(|| {
            let magic = self.magic();
            FILESYSTEMS.iter().any(|(known, _, lists_all)| *lists_all && magic == Ok(*known))
        })
    }

    fn magic(&self) -> Result<i64> {
        sys::file::fs_stat(self.root_fd.as_fd()).map(|st| st.magic)
    }
}

/// The devices that data is copied up from, and whether they are of upper's filesystem; upper is the first of the layers.
fn sources(layers: &[Layer]) -> Vec<(u64, bool)> {
    let Some((upper, lowers)) = layers.split_first() else { return Vec::new() };
    // Subvolumes of one filesystem have device numbers of their own.
    let same =
        |lower: &Layer| lower.root.key.dev == upper.root.key.dev || lower.uuid == upper.uuid && lower.uuid != [0; 16];
    lowers.iter().map(|lower| (lower.root.key.dev, same(lower))).collect()
}

/// Opens a layer's root directory as the user named it.
pub(super) fn open_root(path: &Path) -> std::result::Result<OwnedFd, SetupError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    sys::posix::open(path, flags, nix::sys::stat::Mode::empty()).map_err(|e| {
        SetupError::new(format!("can't open the directory ({e})"), path, "check that it exists and is readable")
    })
}

/// Opens the directory that a sequence of names leads to, in as few calls as PATH_MAX allows.
pub(super) fn walk<'a>(base: &OwnedFd, names: impl Iterator<Item = &'a Name>, reach: Reach) -> Result<OwnedFd> {
    let mut at: Option<OwnedFd> = None;
    let mut path: Vec<u8> = Vec::new();
    let step = |at: &Option<OwnedFd>, path: &[u8]| {
        let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
        let from = at.as_ref().unwrap_or(base).as_fd();
        sys::file::open_beneath(from, &path, OFlag::O_PATH | OFlag::O_DIRECTORY, 0, reach)
    };
    for name in names {
        if path.len() + name.as_bytes().len() > REOPEN_CHUNK {
            at = Some(step(&at, &path)?);
            path.clear();
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
    }
    step(&at, &path)
}

/// An absent attribute, or a filesystem without attributes, is no error to who looks for a mark.
fn none_if_absent(value: Result<Vec<u8>>) -> Result<Option<Vec<u8>>> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(Errno::ENODATA | Errno::EOPNOTSUPP | Errno::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}
