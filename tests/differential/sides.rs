//! The two unions of the same layers, each with an upper of its own, and who of the two mounts which.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::PathBuf;

use super::generators::Features;
use super::shown::Shown;
use crate::common::files::make_dir;
use crate::common::mount::Mount;
use crate::common::others::KernelOverlay;

/// Who serves a side.
pub enum Server {
    Layerfs(Mount),
    Kernel(KernelOverlay),
}

/// Layers of one's own, and where they are seen.
pub struct Side {
    /// What it is called in a message.
    pub name: &'static str,
    server: Option<Server>,
    root: PathBuf,
    /// First = top.
    lowers: Vec<PathBuf>,
    upper: PathBuf,
    work: PathBuf,
    /// How many uppers have become lowers.
    sealed: usize,
    /// The objects that are kept open.
    pub held: Vec<File>,
}

impl Side {
    /// An empty upper in `root` above `lowers`.
    pub fn new(root: PathBuf, lowers: &[PathBuf]) -> Side {
        let mut side = Side {
            name: "nobody",
            server: None,
            lowers: lowers.to_owned(),
            upper: PathBuf::new(),
            work: PathBuf::new(),
            sealed: 0,
            held: Vec::new(),
            root,
        };
        side.fresh_upper();
        make_dir(side.point());
        side
    }

    fn fresh_upper(&mut self) {
        self.upper = self.root.join(format!("upper{}", self.sealed));
        self.work = self.root.join(format!("work{}", self.sealed));
        make_dir(&self.upper);
        make_dir(&self.work);
    }

    /// Makes upper the top lower of a new one. The work directory, and the index in it, is nothing that comes with a layer.
    pub fn seal(&mut self) {
        fs::remove_dir_all(&self.work).expect("remove the work directory");
        self.lowers.insert(0, self.upper.clone());
        self.sealed += 1;
        self.fresh_upper();
    }

    /// Everything that it shows.
    pub fn shown(&self) -> Shown {
        Shown::of(&self.point(), self.name, self.is_layerfs(), &self.upper)
    }

    pub fn point(&self) -> PathBuf {
        self.root.join("mnt")
    }

    fn is_layerfs(&self) -> bool {
        matches!(self.server, Some(Server::Layerfs(_)))
    }

    pub fn mount_layerfs(&mut self, features: Features) {
        let mut arguments: Vec<OsString> = Vec::new();
        for lower in &self.lowers {
            arguments.extend(["--lower".into(), lower.into()]);
        }
        arguments.extend(["--upper".into(), self.upper.clone().into(), "--work".into(), self.work.clone().into()]);
        arguments.extend(["--redirect-dir".into(), on(features.redirect_dir).into()]);
        arguments.extend(["--metacopy".into(), on(features.metacopy).into()]);
        if features.userxattr {
            arguments.push("--userxattr".into());
        } else if features.metacopy {
            // Where the kernel has metadata copies, it follows those of lowers too.
            arguments.push("--trusted-lowers".into());
        }
        self.server = Some(Server::Layerfs(Mount::start(&arguments, &self.point())));
        self.name = "layerfs";
    }

    pub fn mount_kernel(&mut self, features: Features) -> Result<(), String> {
        let mut options = format!("index={}", on(features.index));
        options += &match features.userxattr {
            // The kernel takes neither of the others with it.
            true => ",userxattr".to_owned(),
            false => {
                format!(",redirect_dir={},metacopy={}", on(features.redirect_dir), on(features.metacopy))
            }
        };
        let kernel = KernelOverlay::start(&self.lowers, &self.upper, &self.work, &options, &self.point())
            .map_err(|error| format!("the kernel refuses to mount {:?} with {options}: {error}", self.upper))?;
        self.server = Some(Server::Kernel(kernel));
        self.name = "the kernel";
        Ok(())
    }

    /// Unmounts, with nothing kept open.
    pub fn umount(&mut self) {
        self.held.clear();
        match self.server.take() {
            Some(Server::Layerfs(mount)) => mount.umount(),
            Some(Server::Kernel(kernel)) => kernel.umount(),
            None => {}
        }
    }
}

fn on(feature: bool) -> &'static str {
    if feature { "on" } else { "off" }
}
