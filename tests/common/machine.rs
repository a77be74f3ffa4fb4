//! What the machine offers: where test trees can lie, whether it mounts, who we are.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::sys::stat::{Mode, SFlag, mknod, umask};
use nix::unistd::{Gid, Uid, geteuid, setfsgid, setfsuid, setgroups};
use tempfile::TempDir;

use super::sys;

/// Settings that the whole test program shares: a known umask, and no supplementary groups, so
/// that [`as_user`] has only the rights of that user.
pub fn prepare() {
    umask(Mode::from_bits_truncate(0o022));
    if not_root().is_none()
        && let Err(error) = setgroups(&[])
    {
        eprintln!("supplementary groups are kept: {error}");
    }
}

/// The binary under test: `$LAYERFS_BIN`, else the one cargo built beside the tests.
pub fn layerfs_binary() -> PathBuf {
    std::env::var_os("LAYERFS_BIN").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_layerfs")), PathBuf::from)
}

/// Whether the binary under test was built without optimisation: limits are wider then.
pub fn debug_build() -> bool {
    layerfs_binary().components().any(|part| part.as_os_str() == "debug")
}

/// Whether the binary under test is certainly one that users have.
pub fn release_build() -> bool {
    layerfs_binary().components().any(|part| part.as_os_str() == "release")
}

/// Why no FUSE filesystem can be mounted here, if so.
pub fn no_mount() -> Option<String> {
    static ANSWER: OnceLock<Option<String>> = OnceLock::new();
    ANSWER
        .get_or_init(|| {
            if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/fuse") {
                return Some(format!("/dev/fuse can't be opened: {error}"));
            }
            (!may_mount() && find_program("fusermount3").is_none())
                .then(|| "neither the right to mount nor fusermount3".to_owned())
        })
        .clone()
}

/// Why a test for root can't run, if so.
pub fn not_root() -> Option<String> {
    (!geteuid().is_root() || !initial_user_namespace() || !may_mount())
        .then(|| "needs root with the right to mount".to_owned())
}

/// Whether our ids mean what they say: user namespaces map others.
pub fn initial_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether we may call mount(2): as root, or in a user namespace of our own.
pub fn may_mount() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|caps| u64::from_str_radix(caps.trim(), 16).ok())
        .is_some_and(|caps| caps & (1 << CAP_SYS_ADMIN) != 0)
}

/// Why a test that calls mount(2) or umount(2) by itself can't run, if so.
pub fn no_right_to_mount() -> Option<String> {
    (!may_mount()).then(|| "needs the right to mount".to_owned())
}

/// The path of a program in `PATH` or the usual directories for administrators.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// A fresh directory for one test, on a filesystem that can be an upper.
pub fn scratch() -> TempDir {
    let directory = tempfile::Builder::new().prefix("layerfs-").tempdir_in(base()).expect("a directory for the test");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("a mode for the test's directory");
    directory
}

/// Where test trees lie: `$LAYERFS_TEST_DIR`, else the first place that can hold an upper.
fn base() -> &'static Path {
    static BASE: OnceLock<PathBuf> = OnceLock::new();
    BASE.get_or_init(|| {
        if let Some(chosen) = std::env::var_os("LAYERFS_TEST_DIR") {
            return chosen.into();
        }
        [PathBuf::from("/dev/shm"), std::env::temp_dir(), PathBuf::from(env!("CARGO_TARGET_TMPDIR"))]
            .into_iter()
            .find(|place| can_hold_upper(place))
            .expect("a directory with xattrs and whiteouts; name one in LAYERFS_TEST_DIR")
    })
}

fn can_hold_upper(place: &Path) -> bool {
    let Ok(probe) = tempfile::tempdir_in(place) else {
        return false;
    };
    let whiteout = mknod(&probe.path().join("whiteout"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), 0);
    whiteout.is_ok() && sys::set_xattr(probe.path(), &format!("{}.probe", namespace()), b"y", 0).is_ok()
}

/// The namespace of xattrs that the marks of our mounts are in.
pub fn namespace() -> &'static str {
    match not_root() {
        None => "trusted",
        Some(_) => "user",
    }
}

/// Does something as another user, with that user's rights to files, on this thread alone.
pub fn as_user<T>(uid: u32, gid: u32, action: impl FnOnce() -> T) -> T {
    struct Back;
    impl Drop for Back {
        fn drop(&mut self) {
            setfsuid(Uid::from_raw(0));
            setfsgid(Gid::from_raw(0));
        }
    }
    let _back = Back;
    setfsgid(Gid::from_raw(gid));
    setfsuid(Uid::from_raw(uid));
    // An impossible id changes nothing and tells the present one.
    assert_eq!(setfsuid(Uid::from_raw(u32::MAX)).as_raw(), uid, "setfsuid");
    assert_eq!(setfsgid(Gid::from_raw(u32::MAX)).as_raw(), gid, "setfsgid");
    action()
}

/// Does something as another user who has no capability at all; [`as_user`] keeps those that are not about files' modes.
pub fn without_rights<T: Send>(uid: u32, gid: u32, action: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            sys::become_user(uid, gid).expect("another user's ids");
            action()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The ordinary user of the rootless tests, by `id`: (uid, gid).
pub fn user_ids(name: &str) -> Option<(u32, u32)> {
    let ask = |flag: &str| -> Option<u32> {
        let output = Command::new("id").args([flag, name]).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    Some((ask("-u")?, ask("-g")?))
}
