//! Who is compared, and how each is mounted on a fresh upper.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::layers::Layers;

/// One way to mount the layers.
#[derive(Debug)]
pub struct Contestant {
    /// What the table calls it.
    pub name: String,
    options: &'static str,
    /// The layerfs binary; the kernel's overlay without one.
    binary: Option<PathBuf>,
}

/// The kernel's overlay; the first is what all others are compared with.
pub fn kernel() -> Vec<Contestant> {
    let ways =
        [("kernel", ""), ("kernel volatile", "volatile"), ("kernel metacopy", "metacopy=on,redirect_dir=on,index=on")];
    ways.map(|(name, options)| Contestant { name: name.to_owned(), options, binary: None }).into()
}

/// The ways in which a layerfs binary can mount.
pub fn layerfs(binary: &Path, name: &str) -> anyhow::Result<Vec<Contestant>> {
    let help = Command::new(binary).args(["mount", "--help"]).output();
    let help = help.with_context(|| format!("{} can't be run", binary.display()))?.stdout;
    let ways = [("", ""), (" strict", "durability=strict"), (" volatile", "volatile")];
    // A build from before an option existed is measured without it.
    let known = |options: &str| {
        let (option, _) = options.split_once('=').unwrap_or((options, ""));
        String::from_utf8_lossy(&help).contains(&format!("--{option}"))
    };
    let contestant =
        |(suffix, options)| Contestant { name: format!("{name}{suffix}"), options, binary: Some(binary.to_owned()) };
    Ok(ways.into_iter().filter(|(_, options)| known(options)).map(contestant).collect())
}

impl Contestant {
    /// Mounts the layers under an empty upper.
    pub fn mount(&self, layers: &Layers) -> anyhow::Result<Mount> {
        let place = layers.place.join("run");
        if place.exists() {
            fs::remove_dir_all(&place)?;
        }
        for name in ["upper", "work", "mount"] {
            fs::create_dir_all(place.join(name))?;
        }
        let point = place.join("mount");
        let mut options = OsString::from("lowerdir=");
        let lowers: Vec<_> = layers.lowers.iter().map(|lower| lower.as_os_str()).collect();
        options.push(lowers.join(":".as_ref()));
        for (name, dir) in [("upperdir", "upper"), ("workdir", "work")] {
            options.push(format!(",{name}="));
            options.push(place.join(dir));
        }
        if !self.options.is_empty() {
            options.push(format!(",{}", self.options));
        }
        match &self.binary {
            None => mount(Some("overlay"), &point, Some("overlay"), MsFlags::MS_NOATIME, Some(options.as_os_str()))?,
            Some(binary) => run(Command::new(binary).args(["mount", "-o"]).arg(options).arg(&point))?,
        }
        Ok(Mount { place, point, binary: self.binary.clone() })
    }
}

/// A mount that is being measured.
#[derive(Debug)]
pub struct Mount {
    place: PathBuf,
    point: PathBuf,
    binary: Option<PathBuf>,
}

impl Mount {
    /// A path of the layers as it is seen in the mount.
    pub fn at(&self, path: &Path) -> PathBuf {
        self.point.join(path)
    }

    /// Waits until what was written before has reached the disk, so that nobody pays for the one before.
    pub fn settle(&self) -> anyhow::Result<()> {
        Ok(nix::unistd::syncfs(File::open(&self.place)?)?)
    }

    /// Unmounts; the daemon, if there is one, has ended then. Upper is removed.
    pub fn end(self) -> anyhow::Result<()> {
        match &self.binary {
            None => umount2(&self.point, MntFlags::empty())?,
            Some(binary) => run(Command::new(binary).arg("umount").arg(&self.point))?,
        }
        fs::remove_dir_all(&self.place)?;
        Ok(())
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
