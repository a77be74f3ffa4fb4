//! Tests: a panic in any operation costs its caller an EIO, and the mount works on.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::Mode;
use nix::unistd::Whence;
use parking_lot::Mutex;

use crate::fuse::{Ring, ServeOptions, Server};
use crate::layer::StackSpec;
use crate::sys::copy::copy_range;
use crate::sys::file::{Reach, open_beneath};
use crate::sys::mount::{MountOptions, Mounter, Target};
use crate::sys::xattr;
use crate::union::{Options, Union};

/// The operation that is to panic, once.
static VICTIM: Mutex<Option<&'static str>> = Mutex::new(None);

thread_local! {
    /// Other tests run operations at the same time, by themselves.
    static SPARED: Cell<bool> = const { Cell::new(false) };
}

/// The empty directories of a lower, an upper and its work directory, in one that is there.
pub(super) fn layers_in(place: &Path) -> StackSpec {
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| place.join(name));
    for dir in [&lower, &upper, &work] {
        fs::create_dir(dir).unwrap();
    }
    StackSpec {
        lowers: vec![lower],
        upper: Some(upper),
        work: Some(work),
        userxattr: false,
        trusted_lowers: false,
        xattr_permissions: None,
    }
}

/// Has no operation panic that this thread runs.
pub(super) fn spare_this_thread() {
    SPARED.set(true);
}

/// Panics if this operation was chosen.
pub(super) fn panic_on_demand(operation: &str) {
    if !SPARED.get() && VICTIM.lock().take_if(|victim| *victim == operation).is_some() {
        panic!("{ON_PURPOSE}, in {operation}");
    }
}

const ON_PURPOSE: &str = "on purpose";

/// Leaves those panics out of what the tests print.
fn be_quiet() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.to_string().contains(ON_PURPOSE) {
            usual(panic);
        }
    }));
}

/// Takes a mount off at the end, and by force when a test takes too long.
struct Guard {
    point: PathBuf,
    over: Arc<AtomicBool>,
}

impl Guard {
    fn new(point: &Path) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (watched, by) = (point.to_owned(), over.clone());
        thread::spawn(move || {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !by.load(Ordering::Relaxed) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(50));
            }
            if !by.load(Ordering::Relaxed)
                && let Err(e) = umount2(&watched, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH)
            {
                eprintln!("the mount stays: {e}");
            }
        });
        Self { point: point.to_owned(), over }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let taken_off = umount2(&self.point, MntFlags::MNT_DETACH);
        assert!(taken_off.is_ok() || thread::panicking(), "{taken_off:?}");
    }
}

fn edit(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn attribute<T>(path: &Path, call: impl FnOnce(xattr::Target<'_>) -> Result<T, nix::Error>) -> io::Result<T> {
    let flags = nix::fcntl::OFlag::O_PATH;
    let file = nix::fcntl::open(path, flags, Mode::empty())?;
    Ok(call(xattr::Target::Fd(file.as_fd()))?)
}

/// What makes the kernel ask for an operation, in a directory with a file `f`, a symlink `l` and an empty directory `d`; each
/// can be done any number of times.
type Request = fn(&Path) -> io::Result<()>;

const REQUESTS: [(&str, Request); 25] = [
    // Of a name that the kernel knows it would ask a second time.
    ("lookup", |dir| match fs::symlink_metadata(dir.join("none")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        found => found.map(drop),
    }),
    ("getattr", |dir| fs::metadata(dir).map(drop)),
    ("setattr", |dir| fs::set_permissions(dir.join("f"), fs::Permissions::from_mode(0o600))),
    ("readlink", |dir| fs::read_link(dir.join("l")).map(drop)),
    ("mknod", |dir| {
        nix::unistd::mkfifo(&dir.join("new"), Mode::S_IRWXU)?;
        fs::remove_file(dir.join("new"))
    }),
    ("mkdir", |dir| {
        fs::create_dir(dir.join("new"))?;
        fs::remove_dir(dir.join("new"))
    }),
    ("unlink", |dir| {
        drop(OpenOptions::new().create(true).truncate(true).write(true).open(dir.join("new"))?);
        fs::remove_file(dir.join("new"))
    }),
    ("rmdir", |dir| {
        fs::create_dir_all(dir.join("dir"))?;
        fs::remove_dir(dir.join("dir"))
    }),
    ("symlink", |dir| {
        symlink("x", dir.join("s"))?;
        fs::remove_file(dir.join("s"))
    }),
    ("rename", |dir| {
        fs::rename(dir.join("f"), dir.join("g"))?;
        fs::rename(dir.join("g"), dir.join("f"))
    }),
    ("link", |dir| {
        fs::hard_link(dir.join("f"), dir.join("h"))?;
        fs::remove_file(dir.join("h"))
    }),
    // Through the cache the kernel would ask a second time.
    ("read", |dir| {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(dir.join("f"))?;
        file.read_at(&mut [0; 8], 0).map(drop)
    }),
    ("write", |dir| edit(&dir.join("f"))?.write_all_at(b"x", 0)),
    ("fsync", |dir| edit(&dir.join("f"))?.sync_all()),
    ("fsyncdir", |dir| File::open(dir)?.sync_all()),
    ("opendir", |dir| File::open(dir).map(drop)),
    ("readdirplus", |dir| fs::read_dir(dir)?.try_for_each(|entry| entry.map(drop))),
    ("statfs", |dir| nix::sys::statfs::statfs(dir).map(drop).map_err(Into::into)),
    ("setxattr", |dir| attribute(&dir.join("f"), |f| xattr::set(f, c"user.x", b"y", 0))),
    ("getxattr", |dir| attribute(&dir.join("f"), |f| xattr::get(f, c"user.kept")).map(drop)),
    ("listxattr", |dir| attribute(&dir.join("f"), xattr::list).map(drop)),
    ("removexattr", |dir| {
        attribute(&dir.join("f"), |f| xattr::set(f, c"user.z", b"y", 0))?;
        attribute(&dir.join("f"), |f| xattr::remove(f, c"user.z"))
    }),
    ("create", |dir| {
        drop(File::create_new(dir.join("c"))?);
        fs::remove_file(dir.join("c"))
    }),
    ("fallocate", |dir| Ok(fallocate(edit(&dir.join("f"))?, FallocateFlags::empty(), 0, 100)?)),
    ("copy_file_range", |dir| {
        let (from, to) = (File::open(dir.join("f"))?, edit(&dir.join("t"))?);
        Ok(copy_range(from.as_fd(), 0, to.as_fd(), 0, 4).map(drop)?)
    }),
];

/// Its own request: the thread that answers it is another one.
fn seek(dir: &Path) -> io::Result<()> {
    Ok(nix::unistd::lseek(File::open(dir.join("f"))?, 0, Whence::SeekData).map(drop)?)
}

#[test]
fn a_panic_in_any_operation_is_one_eio() {
    if !crate::sys::privilege::is_privileged() || !Path::new("/dev/fuse").exists() {
        eprintln!("left out: it needs the right to mount");
        return;
    }
    be_quiet();
    survives(Ring::Off);
    // From io_uring where that is offered.
    survives(Ring::Auto);
}

fn survives(ring: Ring) {
    let place = tempfile::tempdir().unwrap();
    let spec = layers_in(place.path());
    let (lower, point) = (spec.lowers[0].clone(), place.path().join("mnt"));
    fs::create_dir(&point).unwrap();
    fs::write(lower.join("f"), "content").unwrap();
    fs::write(lower.join("t"), "content").unwrap();
    symlink("f", lower.join("l")).unwrap();
    let lower_fd = nix::fcntl::open(&lower, nix::fcntl::OFlag::O_PATH, Mode::empty()).unwrap();
    let file = open_beneath(lower_fd.as_fd(), c"f", nix::fcntl::OFlag::O_RDONLY, 0, Reach::Beneath);
    xattr::set(xattr::Target::Fd(file.unwrap().as_fd()), c"user.kept", b"y", 0).unwrap();

    let mounter = Mounter::find().unwrap();
    let target = Target::open(&point).unwrap();
    // Nothing is remembered: every request reaches the daemon.
    let timeout = Some(Duration::ZERO);
    let union = Arc::new(Union::open(&spec, Options { timeout, ..Options::default() }).unwrap());
    let flags =
        MountOptions { source: "layerfs".into(), flags: MsFlags::empty(), allow_other: false, allow_root: false };
    let device = mounter.mount(&target, &flags).unwrap();
    drop(target);
    let guard = Guard::new(&point);
    // A panic that ended a worker would leave none after two.
    let server = Server::start(union.clone(), device, ServeOptions { threads: 2, timeout, ring }).unwrap();
    let served = thread::spawn(move || server.run());

    for (operation, request) in REQUESTS.into_iter().chain([("lseek", seek as Request)]) {
        request(&point).unwrap_or_else(|e| panic!("{operation}: {e}"));
        *VICTIM.lock() = Some(operation);
        let error = request(&point).expect_err(operation);
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{operation}: {error}");
        assert_eq!(*VICTIM.lock(), None, "{operation} was asked for");
        request(&point).unwrap_or_else(|e| panic!("{operation}, after the panic: {e}"));
    }
    assert_eq!(fs::read_to_string(point.join("t")).unwrap(), "xontent", "what was asked for was done");
    drop(guard);
    served.join().unwrap().unwrap();
    union.close().unwrap();
}
