//! Mounting and unmounting through fusermount3, for those who may not mount themselves.

use std::ffi::{OsStr, OsString};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::MsFlags;
use nix::sys::socket::{AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair};
use nix::unistd::{AccessFlags, eaccess};

use super::{MountOptions, UnmountError};
use crate::error::{Errno, SetupError};

/// The helper's name.
pub const PROGRAM: &str = "fusermount3";
/// Its name before FUSE 3.
const OLD_PROGRAM: &str = "fusermount";
/// Where it is looked for besides PATH, which daemons' callers often cut short.
const PLACES: &str = "/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin";
/// The variable that tells it which descriptor to answer through.
const COMM_VARIABLE: &str = "_FUSE_COMMFD";
/// What root allows ordinary users.
const CONFIGURATION: &str = "/etc/fuse.conf";

const ALLOW_OTHER: &str = "add the line user_allow_other to /etc/fuse.conf, or leave allow_other out";
const OWN_DIRECTORY: &str = "mount on a directory that you own";

/// The flags that it takes, and what it calls them.
const FLAGS: [(MsFlags, &str); 7] = [
    (MsFlags::MS_RDONLY, "ro"),
    (MsFlags::MS_NOSUID, "nosuid"),
    (MsFlags::MS_NODEV, "nodev"),
    (MsFlags::MS_NOEXEC, "noexec"),
    (MsFlags::MS_NOATIME, "noatime"),
    (MsFlags::MS_NODIRATIME, "nodiratime"),
    (MsFlags::MS_SYNCHRONOUS, "sync"),
];

/// The helper's path, if it is installed.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> = std::env::split_paths(&path).chain(std::env::split_paths(PLACES)).collect();
    [PROGRAM, OLD_PROGRAM]
        .iter()
        .flat_map(|name| places.iter().map(move |place| place.join(name)))
        .find(|file| file.is_absolute() && is_program(file))
}

fn is_program(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Finds what the helper would refuse.
pub fn check(mountpoint: &Path, options: &MountOptions) -> Result<(), SetupError> {
    if let Err(e) = eaccess(mountpoint, AccessFlags::W_OK) {
        let what =
            format!("an ordinary user can't mount on a directory without the right to write there ({})", e.desc());
        return Err(SetupError::new(what, mountpoint, OWN_DIRECTORY));
    }
    if options.allow_root && !options.allow_other {
        let what = "an ordinary user can't open a mount to root alone (allow_root)";
        return Err(SetupError::new(what, mountpoint, "leave allow_root out, or say allow_other"));
    }
    // Who may not read the configuration leaves it to the helper.
    if options.allow_other && std::fs::read_to_string(CONFIGURATION).is_ok_and(|text| !permits_allow_other(&text)) {
        let what = "an ordinary user can't open a mount to others (allow_other)";
        return Err(SetupError::new(what, Path::new(CONFIGURATION), ALLOW_OTHER));
    }
    Ok(())
}

fn permits_allow_other(configuration: &str) -> bool {
    configuration.lines().any(|line| line.trim() == "user_allow_other")
}

/// Mounts on `mountpoint` and returns the /dev/fuse that the helper opened.
pub fn mount(program: &Path, mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd, SetupError> {
    let failed = |e: Errno| {
        let what = format!("{} can't be used ({})", program.display(), e.desc());
        SetupError::new(what, mountpoint, "check the installation of the package fuse3")
    };
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).map_err(failed)?;
    // The child inherits this end alone; no other thread starts programs while we mount.
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).map_err(failed)?;
    let child = Command::new(program)
        .arg("-o")
        .arg(option_list(options))
        .arg("--")
        .arg(mountpoint)
        .env(COMM_VARIABLE, theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(errno_of(&e)))?;
    drop(theirs);
    let received = receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(|e| failed(errno_of(&e)))?;
    match received {
        Ok(Some(device)) => Ok(device),
        Ok(None) => Err(explain(&output, program, mountpoint)),
        Err(e) => Err(failed(e)),
    }
}

/// The sentence for a helper that refused, from what it said.
fn explain(output: &Output, program: &Path, mountpoint: &Path) -> SetupError {
    let said = complaint(output);
    let advice = if said.contains("user_allow_other") {
        ALLOW_OTHER
    } else if said.contains("/dev/fuse") || said.contains("fuse device") {
        "load the module with modprobe fuse, and let everybody use /dev/fuse (chmod 666 /dev/fuse)"
    } else if said.contains("write access") || said.contains("ermission denied") {
        OWN_DIRECTORY
    } else {
        "see fusermount3(1), or mount in a user namespace (unshare -Urm)"
    };
    SetupError::new(format!("{} refuses the mount ({said})", program.display()), mountpoint, advice)
}

/// What the helper wrote to stderr, on one line and without its own name.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text
        .lines()
        .map(|line| line.split_once(": ").map_or(line, |(name, said)| if name.contains(' ') { line } else { said }))
        .filter(|line| !line.is_empty())
        .collect();
    if lines.is_empty() { output.status.to_string() } else { lines.join("; ") }
}

/// The `-o` argument. The helper splits at commas and takes a backslash as their escape.
fn option_list(options: &MountOptions) -> OsString {
    let mut list = b"fsname=".to_vec();
    for byte in options.source.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            list.push(b'\\');
        }
        list.push(*byte);
    }
    let mut add = |option: &str| {
        list.push(b',');
        list.extend_from_slice(option.as_bytes());
    };
    add("subtype=layerfs");
    add("default_permissions");
    if options.allow_other {
        add("allow_other");
    }
    for (flag, name) in FLAGS {
        if options.flags.contains(flag) {
            add(name);
        }
    }
    OsString::from_vec(list)
}

/// Waits for the descriptor that the helper sends; `None` if it ends without sending one.
fn receive_descriptor(socket: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    let mut byte = [0_u8; 1];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut control = nix::cmsg_space!(RawFd);
    let message = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut control), flags) {
            Err(Errno::EINTR) => {}
            done => break done?,
        }
    };
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part
            && let Some(fd) = descriptors.first().filter(|fd| **fd >= 0)
        {
            // SAFETY: the kernel just installed this descriptor for us, and nobody else owns it.
            return Ok(Some(unsafe { OwnedFd::from_raw_fd(*fd) }));
        }
    }
    Ok(None)
}

/// Unmounts `mountpoint`.
pub fn unmount(program: &Path, mountpoint: &Path, lazy: bool) -> Result<(), UnmountError> {
    let mut command = Command::new(program);
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command
        .args([OsStr::new("--"), mountpoint.as_os_str()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|e| UnmountError::Failed(format!("{} can't be started ({e})", program.display())))?;
    if output.status.success() {
        return Ok(());
    }
    let said = complaint(&output);
    if said.contains(Errno::EBUSY.desc()) {
        return Err(UnmountError::Busy);
    }
    if said.contains("not found in") {
        return Err(UnmountError::Failed("another user has mounted it, so only they and root can".to_owned()));
    }
    Err(UnmountError::Failed(said))
}

fn errno_of(e: &std::io::Error) -> Errno {
    e.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn output(stderr: &str) -> Output {
        Output { status: ExitStatus::from_raw(256), stdout: Vec::new(), stderr: stderr.into() }
    }

    fn options(allow_other: bool, allow_root: bool) -> MountOptions {
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC;
        MountOptions { source: OsString::from("a,suid\\"), flags, allow_other, allow_root }
    }

    #[test]
    fn nobody_but_root_lets_root_alone_in() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check(dir.path(), &options(false, true)).unwrap_err().to_string().contains("allow_root"));
        assert!(check(dir.path(), &options(false, false)).is_ok());
    }

    #[test]
    fn a_comma_in_the_source_stays_in_the_source() {
        let list = option_list(&options(true, false));
        assert_eq!(list, r"fsname=a\,suid\\,subtype=layerfs,default_permissions,allow_other,ro,noexec");
    }

    #[test]
    fn complaints_are_one_line_without_the_program() {
        assert_eq!(complaint(&output("fusermount3: mount failed: Bad\n")), "mount failed: Bad");
        assert_eq!(complaint(&output("a: b\n\nc d: e\n")), "b; c d: e");
        assert_eq!(complaint(&output("")), "exit status: 1");
    }

    #[test]
    fn the_configuration_is_read() {
        assert!(permits_allow_other("# x\n user_allow_other \nmount_max = 3\n"));
        assert!(!permits_allow_other("#user_allow_other\n"));
    }

    #[test]
    fn advice_fits_the_complaint() {
        let said = "fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf\n";
        let error = explain(&output(said), Path::new("/usr/bin/fusermount3"), Path::new("/m"));
        assert!(error.advice.contains("/etc/fuse.conf"), "{error}");
    }
}
