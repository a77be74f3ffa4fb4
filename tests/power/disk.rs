//! Disks in memory whose power can be cut: an image file on a filesystem that clones files. A clone is what the disk holds at one
//! moment, with every write that it has taken and none that came later.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};

use crate::common::files::{create_new, make_dir, ok, open};
use crate::common::machine::find_program;
use crate::common::mount::{eventually, run};
use crate::common::others::OtherMount;
use crate::common::sys;
use crate::common::union::Union;

/// What a disk is formatted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    Xfs,
    Btrfs,
}

impl Kind {
    fn mkfs(self) -> &'static [&'static str] {
        match self {
            Kind::Ext4 => &["mkfs.ext4", "-q", "-I", "256"],
            Kind::Xfs => &["mkfs.xfs", "-q"],
            Kind::Btrfs => &["mkfs.btrfs", "-q"],
        }
    }

    /// Disks go on with what the kernel writes by itself now and then, so it writes often.
    fn options(self) -> &'static str {
        match self {
            Kind::Ext4 | Kind::Btrfs => "noatime,commit=1",
            // Two disks of one origin have one number.
            Kind::Xfs => "noatime,nouuid",
        }
    }
}

/// Why no disks can be made, if so.
pub fn no_disks() -> Option<String> {
    let missing = ["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "btrfs"].iter().find(|name| find_program(name).is_none());
    if let Some(name) = missing {
        return Some(format!("needs {name}"));
    }
    (!Path::new("/dev/loop-control").exists()).then(|| "needs loop devices".to_owned())
}

/// The filesystem that the images lie on.
pub struct Host {
    mount: Option<OtherMount>,
    holder: Union,
}

impl Host {
    pub fn new() -> Host {
        let holder = Union::new(0);
        let image = holder.root().join("host.image");
        make_image(&image, 12 << 30, Kind::Xfs);
        let place = holder.root().join("host");
        make_dir(&place);
        make_dir(holder.root().join("disk"));
        Host { mount: Some(OtherMount::image(&image, &place)), holder }
    }

    /// An image in the host.
    fn image(&self, name: &str) -> PathBuf {
        self.holder.root().join("host").join(name)
    }

    /// Makes a disk with something on it, and turns it off properly.
    pub fn make(&self, name: &str, kind: Kind, fill: impl FnOnce(&Path)) {
        make_image(&self.image(name), 640 << 20, kind);
        let disk = self.turn_on(name, kind);
        fill(disk.root());
        disk.turn_off();
    }

    /// What a disk holds at this moment, as another disk.
    pub fn cut(&self, from: &str, to: &str) {
        let (from, to) = (open(self.image(from)), create_new(self.image(to), 0o600));
        sys::clone_file(&from, &to).expect("clone an image");
    }

    /// Mounts a disk; there is one at a time.
    pub fn turn_on(&self, name: &str, kind: Kind) -> Disk {
        if kind == Kind::Btrfs {
            // The kernel knows the disks that it has seen by their number, which is that of the disk they come from.
            run(Command::new("btrfs").args(["device", "scan", "--forget"])).success();
        }
        let root = self.holder.root().join("disk");
        Disk { mount: Some(OtherMount::image_with(kind.options(), &self.image(name), &root)), root }
    }

    /// Mounts a disk whose power went. Btrfs doesn't list all names in the mount that has just replayed its log, though it finds
    /// them, so that one is done with first.
    pub fn turn_on_again(&self, name: &str, kind: Kind) -> Disk {
        if kind == Kind::Btrfs {
            self.turn_on(name, kind).turn_off();
        }
        self.turn_on(name, kind)
    }

    /// Throws a disk away.
    pub fn remove(&self, name: &str) {
        let image = self.image(name);
        ok(&image, std::fs::remove_file(&image));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Before the directory that it lies in.
        self.mount = None;
    }
}

fn make_image(image: &Path, size: u64, kind: Kind) {
    ok(image, File::create(image).and_then(|file| file.set_len(size)));
    let [program, arguments @ ..] = kind.mkfs() else { return };
    run(Command::new(program).args(arguments).arg(image)).success();
}

/// A mounted disk. Dropping it turns it off.
pub struct Disk {
    mount: Option<OtherMount>,
    root: PathBuf,
}

impl Disk {
    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Unmounts it, after which nothing of it is under way.
    pub fn turn_off(mut self) {
        let quiet = eventually(10, || umount2(&self.root, MntFlags::empty()).is_ok());
        assert!(quiet, "{:?} is in use", self.root);
        if let Some(mount) = self.mount.take() {
            mount.gone();
        }
    }
}
