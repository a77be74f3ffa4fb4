//! Attaching a FUSE filesystem to a directory, and taking it off again.
//!
//! A process that may mount does it itself, through the descriptor-based calls or, where those are missing, mount(2):
//! every parameter is then a value of its own and none can smuggle in another. Everybody else goes through fusermount3.

mod handed;
mod helper;
mod info;

use std::ffi::{CStr, CString, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{getegid, geteuid};

use super::{check, privilege};
use crate::error::{Errno, SetupError};

pub use handed::handed_device;
pub use info::{MountEntry, mounts, mounts_of, top_at};

/// The type that /proc/mounts shows.
pub const FILESYSTEM_TYPE: &CStr = c"fuse.layerfs";
/// The part of it that is ours.
const SUBTYPE: &CStr = c"layerfs";
/// The device that a FUSE filesystem is served through.
pub const DEV_FUSE: &str = "/dev/fuse";

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;

/// The flags of mount(2) that belong to the mount, and what fsmount(2) calls them.
const ATTRIBUTES: [(MsFlags, libc::c_uint); 7] = [
    (MsFlags::MS_RDONLY, 0x1),
    (MsFlags::MS_NOSUID, 0x2),
    (MsFlags::MS_NODEV, 0x4),
    (MsFlags::MS_NOEXEC, 0x8),
    (MsFlags::MS_NOATIME, 0x10),
    (MsFlags::MS_STRICTATIME, 0x20),
    (MsFlags::MS_NODIRATIME, 0x80),
];

/// The flags of mount(2) that belong to the filesystem, and what fsconfig(2) calls them.
const FILESYSTEM_FLAGS: [(MsFlags, &CStr); 4] = [
    (MsFlags::MS_RDONLY, c"ro"),
    (MsFlags::MS_SYNCHRONOUS, c"sync"),
    (MsFlags::MS_DIRSYNC, c"dirsync"),
    (MsFlags::MS_LAZYTIME, c"lazytime"),
];

/// What a mount is to look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// The source that /proc/mounts shows.
    pub source: OsString,
    /// Read-only, nosuid and the like.
    pub flags: MsFlags,
    /// Whether a mount made through fusermount3 is open to other users; one that we make ourselves always is, because
    /// the kernel checks permissions either way.
    pub allow_other: bool,
    /// Whether root at least is to get into such a mount.
    pub allow_root: bool,
}

/// A directory to mount on, opened before anything changes.
#[derive(Debug)]
pub struct Target {
    fd: OwnedFd,
    path: PathBuf,
}

impl Target {
    /// Opens the mountpoint.
    ///
    /// # Errors
    /// It is missing, not a directory or the mount of a dead daemon.
    pub fn open(mountpoint: &Path) -> Result<Self, SetupError> {
        let failed = |e: Errno| match e {
            Errno::ENOENT => SetupError::new(
                "the mountpoint does not exist",
                mountpoint,
                "create it with mkdir, or name another directory",
            ),
            Errno::ENOTDIR => {
                SetupError::new("the mountpoint is not a directory", mountpoint, "name a directory to mount on")
            }
            Errno::ENOTCONN => SetupError::new(
                "the mountpoint holds a mount whose daemon has died",
                mountpoint,
                "mount again with --recover (-o recover), which takes that mount off, or do so by layerfs umount",
            ),
            e => SetupError::new(
                format!("the mountpoint can't be opened ({})", e.desc()),
                mountpoint,
                "name a directory that you can reach",
            ),
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(mountpoint, flags, Mode::empty()).map_err(failed)?;
        nix::sys::stat::fstat(&fd).map_err(failed)?;
        if is_dead(fd.as_fd()) {
            return Err(failed(Errno::ENOTCONN));
        }
        let path = std::fs::canonicalize(mountpoint)
            .map_err(|e| failed(e.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))?;
        Ok(Self { fd, path })
    }

    /// The mountpoint's absolute path without symlinks, as /proc/mounts shows it.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The way in which this process can mount.
#[derive(Debug)]
pub enum Mounter {
    /// By itself, through this /dev/fuse.
    Direct(OwnedFd),
    /// Through fusermount3, which lies here.
    Helper(PathBuf),
}

impl Mounter {
    /// Finds out how this process can mount; changes nothing.
    ///
    /// # Errors
    /// There is no /dev/fuse, it can't be opened, or an unprivileged user has no fusermount3.
    pub fn find() -> Result<Self, SetupError> {
        let device = Path::new(DEV_FUSE);
        if !device.exists() {
            return Err(no_device(device));
        }
        if !may_mount() {
            // The helper opens the device with its caller's rights.
            open_device(device)?;
            return helper::find().map(Self::Helper).ok_or_else(|| {
                SetupError::new(
                    "mounting as an ordinary user needs fusermount3, which is in no directory of PATH",
                    Path::new(helper::PROGRAM),
                    "install the package fuse3, or mount as root or in a user namespace (unshare -Urm)",
                )
            });
        }
        open_device(device).map(Self::Direct)
    }

    /// Finds what the helper would refuse, before anything changes; a kernel asked by root itself refuses little.
    ///
    /// # Errors
    /// The ordinary user may not mount there, or not for others.
    pub fn check(&self, target: &Target, options: &MountOptions) -> Result<(), SetupError> {
        match self {
            Self::Direct(_) => Ok(()),
            Self::Helper(_) => helper::check(&target.path, options),
        }
    }

    /// Mounts; the descriptor returned is the /dev/fuse that the kernel's requests come through. No request is
    /// answered yet: until a server runs on it, whoever looks into the mount waits.
    pub fn mount(self, target: &Target, options: &MountOptions) -> Result<OwnedFd, SetupError> {
        match self {
            Self::Helper(program) => helper::mount(&program, &target.path, options),
            Self::Direct(device) => {
                let mounted = match open_context() {
                    Ok(context) => mount_context(&context, &device, target, options),
                    // Before Linux 5.2, and under filters that only know the old call.
                    Err(Errno::ENOSYS | Errno::EPERM) => mount_old(&device, target, options),
                    Err(e) => Err(e),
                };
                mounted.map(|()| device).map_err(|e| refused(e, target))
            }
        }
    }
}

/// The sentence for a kernel that refuses a mount.
fn refused(e: Errno, target: &Target) -> SetupError {
    let (what, advice) = match e {
        Errno::ENODEV => ("this kernel has no FUSE", "load the module with modprobe fuse"),
        Errno::EPERM | Errno::EACCES => (
            "mounting is not permitted here",
            "run as root, as a user with fusermount3, or in a mount namespace of your own (unshare -Urm)",
        ),
        _ => ("the kernel refuses the mount", "see the kernel's log (dmesg) for the reason"),
    };
    SetupError::new(format!("{what} ({})", e.desc()), &target.path, advice)
}

/// The sentence for a machine without the device.
fn no_device(device: &Path) -> SetupError {
    SetupError::new(
        "there is no FUSE device",
        device,
        "load the module with modprobe fuse, or pass the device into the container (--device /dev/fuse)",
    )
}

/// Opens the FUSE device.
fn open_device(device: &Path) -> Result<OwnedFd, SetupError> {
    nix::fcntl::open(device, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(|e| match e {
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => no_device(device),
        e => SetupError::new(
            format!("the FUSE device can't be opened ({})", e.desc()),
            device,
            "let everybody use it (chmod 666 /dev/fuse, as distributions do) and allow it in the device cgroup",
        ),
    })
}

/// Whether this process may mount in its mount namespace.
fn may_mount() -> bool {
    match open_context() {
        Ok(_) => true,
        // The call is missing or filtered: the capability has to speak for mount(2).
        Err(Errno::ENOSYS | Errno::EPERM) => privilege::has_sys_admin(),
        // What else goes wrong is told when mounting.
        Err(_) => true,
    }
}

/// A new filesystem context for FUSE.
fn open_context() -> Result<OwnedFd, Errno> {
    // SAFETY: the name is a NUL-terminated constant.
    let fd = check(unsafe { libc::syscall(libc::SYS_fsopen, c"fuse".as_ptr(), FSOPEN_CLOEXEC) })?;
    // SAFETY: the kernel just returned this descriptor to us, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sets a parameter of a filesystem context, or a flag if it has no value.
fn configure(context: &OwnedFd, key: &CStr, value: Option<&CStr>) -> Result<(), Errno> {
    let command = if value.is_some() { FSCONFIG_SET_STRING } else { FSCONFIG_SET_FLAG };
    let value = value.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: `key` is NUL-terminated, `value` is NUL-terminated or null as the command asks.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key.as_ptr(), value, 0) }).map(drop)
}

/// fsconfig, fsmount and move_mount.
fn mount_context(context: &OwnedFd, device: &OwnedFd, target: &Target, options: &MountOptions) -> Result<(), Errno> {
    let source = c_string(options.source.as_bytes())?;
    configure(context, c"source", Some(&source))?;
    configure(context, c"subtype", Some(SUBTYPE))?;
    for (key, value) in parameters(device) {
        let value = value.map(|v| c_string(v.as_bytes())).transpose()?;
        configure(context, &c_string(key.as_bytes())?, value.as_deref())?;
    }
    for (flag, key) in FILESYSTEM_FLAGS {
        if options.flags.contains(flag) {
            configure(context, key, None)?;
        }
    }
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes neither key nor value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, null, null, 0) })?;
    let attributes = ATTRIBUTES
        .iter()
        .filter(|(flag, _)| options.flags.contains(*flag))
        .fold(0, |all, (_, attribute)| all | attribute);
    // SAFETY: the call takes plain numbers.
    let fd = check(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) })?;
    // SAFETY: the kernel just returned this descriptor to us, and nobody else owns it.
    let mount = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    // SAFETY: both paths are NUL-terminated constants.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.fd.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// mount(2), whose data carries nothing that a user typed.
fn mount_old(device: &OwnedFd, target: &Target, options: &MountOptions) -> Result<(), Errno> {
    let data = parameters(device)
        .into_iter()
        .map(|(key, value)| value.map_or_else(|| key.to_owned(), |v| format!("{key}={v}")))
        .collect::<Vec<_>>()
        .join(",");
    let source = options.source.as_os_str();
    nix::mount::mount(Some(source), &target.path, Some(FILESYSTEM_TYPE), options.flags, Some(data.as_str()))
}

/// The parameters of the kernel's FUSE, other than the source.
fn parameters(device: &OwnedFd) -> [(&'static str, Option<String>); 6] {
    [
        ("fd", Some(device.as_raw_fd().to_string())),
        ("rootmode", Some(format!("{:o}", libc::S_IFDIR))),
        ("user_id", Some(geteuid().to_string())),
        ("group_id", Some(getegid().to_string())),
        ("default_permissions", None),
        ("allow_other", None),
    ]
}

fn c_string(bytes: &[u8]) -> Result<CString, Errno> {
    CString::new(bytes).map_err(|_| Errno::EINVAL)
}

/// Why a mount could not be taken off.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnmountError {
    /// Somebody has a file open in it or works in it.
    #[error("it is in use")]
    Busy,
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// Unmounts what is mounted on top of `mountpoint`, by umount(2) or, for those who may not, through fusermount3.
///
/// `lazy` takes a busy mount out of the tree at once; it ends when its last user has gone.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), UnmountError> {
    let detach = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match umount2(mountpoint, MntFlags::UMOUNT_NOFOLLOW | detach) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) => Err(UnmountError::Busy),
        Err(Errno::EPERM) => match helper::find() {
            Some(program) => helper::unmount(&program, mountpoint, lazy),
            None => Err(UnmountError::Failed("it takes root's rights, or fusermount3 (package fuse3)".to_owned())),
        },
        Err(Errno::EINVAL) => Err(UnmountError::Failed("nothing is mounted there".to_owned())),
        Err(e) => Err(UnmountError::Failed(e.desc().to_owned())),
    }
}

/// Takes this mount out of the tree, however many users it has; `path` is where it is, for fusermount3.
///
/// # Errors
/// The user may not, or nothing is mounted there.
pub fn detach_opened(mount: BorrowedFd<'_>, path: &Path) -> Result<(), UnmountError> {
    let opened = format!("/proc/self/fd/{}", mount.as_raw_fd());
    match umount2(opened.as_str(), MntFlags::MNT_DETACH) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => unmount(path, true),
        Err(e) => Err(UnmountError::Failed(e.desc().to_owned())),
    }
}

/// How often a dying daemon's requests may be interrupted: more often than it has workers.
const INTERRUPTIONS_MAX: usize = 1000;

/// Whether the FUSE mount that an object was opened through has lost its daemon. Its status doesn't tell: the kernel may
/// remember that.
pub fn is_dead(opened: BorrowedFd<'_>) -> bool {
    // Interrupted by the daemon's end, which each of its workers on io_uring may notice by itself, and then the connection: from
    // then on it is ENOTCONN.
    let interrupted = [Errno::ECANCELED, Errno::ECONNABORTED];
    let mut answers = std::iter::repeat_with(|| nix::sys::statfs::fstatfs(opened).err()).take(INTERRUPTIONS_MAX);
    let settled = answers.find(|answer| answer.is_none_or(|e| !interrupted.contains(&e)));
    settled == Some(Some(Errno::ENOTCONN))
}

/// The number of the mount that an object was opened through; `None` before Linux 5.8.
pub fn mount_id(fd: BorrowedFd<'_>) -> Result<Option<u64>, Errno> {
    // SAFETY: an all-zero statx is a valid value of that plain C struct.
    let mut st: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    // SAFETY: the path is a NUL-terminated constant and `st` is valid for the write.
    check(unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), flags, libc::STATX_MNT_ID, &mut st) }.into())?;
    Ok((st.stx_mask & libc::STATX_MNT_ID != 0).then_some(st.stx_mnt_id))
}
