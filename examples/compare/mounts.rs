//! Who is compared, and how each is mounted on a fresh upper.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::tools::{in_path, run};

/// How long a daemon that has lost its mount may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// One way to mount the layers.
#[derive(Debug)]
pub struct Contestant {
    /// What the table calls it.
    pub name: String,
    options: &'static str,
    program: Program,
}

/// What mounts.
#[derive(Clone, Debug)]
enum Program {
    /// mount(8), for the kernel's overlay.
    Kernel,
    FuseOverlayfs(PathBuf),
    Layerfs(PathBuf),
}

/// The kernel's overlay; the first is what all others are compared with.
pub fn kernel(rootless: bool) -> Vec<Contestant> {
    // A user namespace has no trusted.*, and what needs redirects or an index is refused there.
    let ways: &[_] = match rootless {
        true => &[("kernel", "userxattr"), ("kernel volatile", "userxattr,volatile")],
        false => &[
            ("kernel", ""),
            ("kernel volatile", "volatile"),
            ("kernel metacopy", "metacopy=on,redirect_dir=on,index=on"),
        ],
    };
    let contestant = |&(name, options): &(&str, _)| Contestant { name: name.into(), options, program: Program::Kernel };
    ways.iter().map(contestant).collect()
}

/// The builds of fuse-overlayfs that FUSE_OVERLAYFS names, with a colon between them, or the one that is installed.
pub fn fuse_overlayfs() -> Vec<Contestant> {
    let binaries: Vec<PathBuf> = match std::env::var_os("FUSE_OVERLAYFS") {
        Some(named) => std::env::split_paths(&named).collect(),
        None => in_path("fuse-overlayfs").into_iter().collect(),
    };
    let contestant = |binary: PathBuf| {
        let output = Command::new(&binary).arg("--version").output();
        let said = output.map(|output| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned());
        let version = said.ok().as_deref().and_then(version_of).unwrap_or_default();
        let name = format!("fuse-overlayfs {version}").trim_end().to_owned();
        Contestant { name, options: "", program: Program::FuseOverlayfs(binary) }
    };
    binaries.into_iter().map(contestant).collect()
}

/// The version of fuse-overlayfs in what it says about itself, which is not all about itself.
fn version_of(said: &str) -> Option<String> {
    let line = said.lines().find(|line| line.starts_with("fuse-overlayfs"))?;
    line.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit())).map(str::to_owned)
}

/// The ways in which a layerfs binary can mount.
pub fn layerfs(binary: &Path, name: &str) -> anyhow::Result<Vec<Contestant>> {
    let help = Command::new(binary).args(["mount", "--help"]).output();
    let help = help.with_context(|| format!("{} can't be run", binary.display()))?.stdout;
    let ways = [
        ("", ""),
        (" strict", "durability=strict"),
        (" volatile", "volatile"),
        (" cached", "io=cached"),
        (" passthrough", "io=passthrough"),
        (" /dev/fuse", "io_uring=off"),
    ];
    let has_ring = fs::read_to_string("/sys/module/fuse/parameters/enable_uring").is_ok_and(|on| on.starts_with('Y'));
    // A build from before an option existed is measured without it.
    let known = |options: &str| {
        let (option, _) = options.split_once('=').unwrap_or((options, ""));
        if option == "io_uring" && !has_ring {
            return false;
        }
        String::from_utf8_lossy(&help).contains(&format!("--{}", option.replace('_', "-")))
    };
    let program = Program::Layerfs(binary.to_owned());
    let contestant =
        |(suffix, options)| Contestant { name: format!("{name}{suffix}"), options, program: program.clone() };
    Ok(ways.into_iter().filter(|(_, options)| known(options)).map(contestant).collect())
}

impl Contestant {
    /// Whether it is one of ours: it may not fail.
    pub fn is_layerfs(&self) -> bool {
        matches!(self.program, Program::Layerfs(_))
    }

    /// Mounts lowers under an empty upper, in a directory that is the mount's alone.
    pub fn mount(&self, place: &Path, lowers: &[PathBuf]) -> anyhow::Result<Mount> {
        self.mount_from(Path::new("/"), place, lowers)
    }

    /// The same with lowers that are named from a directory on.
    pub fn mount_from(&self, directory: &Path, place: &Path, lowers: &[PathBuf]) -> anyhow::Result<Mount> {
        if place.exists() {
            fs::remove_dir_all(place)?;
        }
        for name in ["upper", "work", "mount"] {
            fs::create_dir_all(place.join(name))?;
        }
        let point = place.join("mount");
        let mut options = OsString::from("lowerdir=");
        let lowers: Vec<_> = lowers.iter().map(|lower| lower.as_os_str()).collect();
        options.push(lowers.join(":".as_ref()));
        for (name, dir) in [("upperdir", "upper"), ("workdir", "work")] {
            options.push(format!(",{name}="));
            options.push(place.join(dir));
        }
        if !self.options.is_empty() {
            options.push(format!(",{}", self.options));
        }
        let mut command = match &self.program {
            Program::Kernel => Command::new("mount"),
            Program::FuseOverlayfs(binary) | Program::Layerfs(binary) => Command::new(binary),
        };
        match &self.program {
            Program::Kernel => command.args(["-t", "overlay", "overlay", "-o"]),
            Program::FuseOverlayfs(_) => command.arg("-o"),
            Program::Layerfs(_) => command.args(["mount", "-o"]),
        };
        command.arg(options).arg(&point).current_dir(directory);
        let start = Instant::now();
        run(&mut command)?;
        Ok(Mount { took: start.elapsed(), place: place.to_owned(), point })
    }
}

/// A mount that is being measured.
#[derive(Debug)]
pub struct Mount {
    /// How long it took until it could be used.
    pub took: Duration,
    /// Where it is.
    pub point: PathBuf,
    place: PathBuf,
}

impl Mount {
    /// Unmounts. The daemon, if there is one, has ended then. Upper is removed.
    pub fn end(&self) -> anyhow::Result<()> {
        let unmounted = umount2(&self.point, MntFlags::empty());
        if unmounted.is_err() {
            // The next one needs the place.
            umount2(&self.point, MntFlags::MNT_DETACH)?;
        }
        unmounted.context("it can't be unmounted")?;
        wait_for_daemons()?;
        Ok(fs::remove_dir_all(&self.place)?)
    }
}

/// Daemons become children of this process when those that started them have ended.
pub fn adopt_daemons() -> anyhow::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// Waits until no child is left.
fn wait_for_daemons() -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return Ok(()),
            Ok(WaitStatus::StillAlive) if start.elapsed() > PATIENCE => bail!("its daemon does not end"),
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(1)),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::version_of;

    #[test]
    fn version_among_those_of_libraries() {
        let said = "fusermount3 version: 3.14.0\nfuse-overlayfs: version 1.10\nFUSE library version 3.14.0\n";
        assert_eq!(version_of(said).as_deref(), Some("1.10"));
        assert_eq!(version_of("fuse-overlayfs 2.0.0\n").as_deref(), Some("2.0.0"));
    }
}
