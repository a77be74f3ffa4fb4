//! What all workloads share, and the stage of each: a fresh mount.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::growth;
use crate::layers;
use crate::mounts::{Contestant, Mount};
use crate::scale::Scale;
use crate::sources;
use crate::tools::Tools;
use crate::workloads::Group;

/// The layers, and what is known about the machine.
#[derive(Debug)]
pub struct Ground {
    /// An empty directory on the filesystem that is measured on.
    pub place: PathBuf,
    /// How much there is to do.
    pub scale: &'static Scale,
    /// The programs.
    pub tools: Tools,
    rootless: bool,
    small: Vec<PathBuf>,
    growing: Vec<PathBuf>,
    sources: Vec<PathBuf>,
}

impl Ground {
    /// Makes the layers that these groups need.
    pub fn make(
        place: &Path,
        scale: &'static Scale,
        tools: Tools,
        rootless: bool,
        groups: &[Group],
    ) -> anyhow::Result<Self> {
        let place = std::path::absolute(place)?;
        let none = Vec::new;
        let mut ground = Self { place, scale, tools, rootless, small: none(), growing: none(), sources: none() };
        if groups.iter().any(|group| !matches!(group, Group::Growth | Group::Programs)) {
            ground.small = layers::make(&ground.place.join("small"), scale)?;
        }
        if groups.contains(&Group::Growth) {
            ground.growing = growth::make(&ground.place.join("growing"), scale)?;
            growth::make_many(&ground.many())?;
        }
        if groups.contains(&Group::Programs) {
            ground.sources = sources::make(&ground.place, scale, &ground.tools).context("the sources can't be made")?;
        }
        Ok(ground)
    }

    fn lowers(&self, group: Group) -> &[PathBuf] {
        match group {
            Group::Look | Group::Change | Group::CopyUp => &self.small,
            Group::Growth => &self.growing,
            Group::Programs => &self.sources,
        }
    }

    /// Where lowers are whose names are short, because the kernel takes options of a page at most.
    fn many(&self) -> PathBuf {
        self.place.join("many")
    }

    /// Who may become the owner of a file: another one than now, where there is another one.
    pub fn other_owner(&self) -> u32 {
        if self.rootless { 0 } else { 1000 }
    }

    /// Whether layers of any kind can be mounted.
    pub fn try_mount(&self, contestant: &Contestant) -> anyhow::Result<()> {
        let lowers = [&self.small, &self.growing, &self.sources].into_iter().find(|lowers| !lowers.is_empty());
        let lowers = lowers.context("there are no layers")?;
        let mount = contestant.mount(&self.run(), lowers)?;
        let seen = mount.point.read_dir().map(|_| ());
        mount.end()?;
        Ok(seen?)
    }

    /// Where the mount, its upper and its work are: tools/compare unmounts what is left there.
    fn run(&self) -> PathBuf {
        self.place.join("run")
    }
}

/// A fresh mount for one workload.
#[derive(Debug)]
pub struct Stage<'a> {
    /// What all share.
    pub ground: &'a Ground,
    /// The mount.
    pub mount: Mount,
    contestant: &'a Contestant,
    lowers: &'a [PathBuf],
}

impl<'a> Stage<'a> {
    /// Mounts the layers of this group under an empty upper.
    pub fn mount(ground: &'a Ground, contestant: &'a Contestant, group: Group) -> anyhow::Result<Self> {
        let lowers = ground.lowers(group);
        // Nobody pays for what was written before.
        settle(&ground.place)?;
        Ok(Self { ground, mount: contestant.mount(&ground.run(), lowers)?, contestant, lowers })
    }

    /// Ends the mount and makes another one.
    pub fn mount_again(&mut self) -> anyhow::Result<()> {
        self.mount.end()?;
        self.mount = self.contestant.mount(&self.ground.run(), self.lowers)?;
        Ok(())
    }

    /// Ends the mount and makes one with so many layers.
    pub fn mount_many(&mut self, layers: usize) -> anyhow::Result<()> {
        self.mount.end()?;
        let names = (1..layers).map(|layer| PathBuf::from(layer.to_string())).chain(["lowest".into()]);
        self.mount = self.contestant.mount_from(&self.ground.many(), &self.ground.run(), &names.collect::<Vec<_>>())?;
        Ok(())
    }

    /// Where files of the layers are in the mount.
    pub fn at(&self, files: Vec<PathBuf>) -> Vec<PathBuf> {
        files.iter().map(|file| self.mount.point.join(file)).collect()
    }

    /// Waits until what was written before has reached the disk, so that nobody pays for the preparations.
    pub fn settle(&self) -> anyhow::Result<()> {
        settle(&self.ground.place)
    }

    /// Brings the lower's own pages of the large file into memory.
    pub fn warm_large(&self) -> anyhow::Result<()> {
        for lower in self.lowers {
            let large = lower.join(layers::LARGE);
            if large.exists() {
                io::copy(&mut File::open(large)?, &mut io::sink())?;
            }
        }
        Ok(())
    }
}

fn settle(place: &Path) -> anyhow::Result<()> {
    Ok(nix::unistd::syncfs(File::open(place)?)?)
}
