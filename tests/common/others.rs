//! Mounts that are not layerfs's: the kernel's overlay for comparison, and other filesystems.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::current;
use super::mount::{detach, eventually, faults, run};

/// The kernel's own overlay, mounted for comparison. Dropping it unmounts.
pub struct KernelOverlay {
    point: PathBuf,
}

impl KernelOverlay {
    /// Mounts `lowers` (first = top) under `upper`, with more `options` such as `index=on`.
    pub fn start(
        lowers: &[PathBuf],
        upper: &Path,
        work: &Path,
        options: &str,
        point: &Path,
    ) -> nix::Result<KernelOverlay> {
        let lowers: Vec<&OsStr> = lowers.iter().map(|lower| lower.as_os_str()).collect();
        let mut data = OsString::from("lowerdir=");
        data.push(lowers.join(OsStr::new(":")));
        for (key, value) in [(",upperdir=", upper), (",workdir=", work)] {
            data.push(key);
            data.push(value);
        }
        if !options.is_empty() {
            data.push(",");
            data.push(options);
        }
        mount(Some("overlay"), point, Some("overlay"), MsFlags::empty(), Some(data.as_os_str()))?;
        Ok(KernelOverlay { point: point.to_owned() })
    }

    /// Unmounts it.
    #[track_caller]
    pub fn umount(self) {
        drop(self);
    }
}

impl Drop for KernelOverlay {
    fn drop(&mut self) {
        // Busy for a moment, if another test is starting a process just now.
        if !eventually(1, || umount2(&self.point, MntFlags::empty()).is_ok()) {
            faults().push((current(), format!("{:?} stays busy", self.point)));
            detach(&self.point);
        }
    }
}

/// Another filesystem on a directory of a test. Dropping it unmounts.
pub struct OtherMount {
    point: PathBuf,
}

impl OtherMount {
    /// A small filesystem in memory (`tmpfs`, `ramfs`) on `point`.
    pub fn memory(kind: &str, options: &str, point: &Path) -> OtherMount {
        mount(Some(kind), point, Some(kind), MsFlags::empty(), Some(options))
            .unwrap_or_else(|error| panic!("{kind} on {point:?}: {error}"));
        OtherMount { point: point.to_owned() }
    }

    /// The filesystem in an image file.
    pub fn image(image: &Path, point: &Path) -> OtherMount {
        OtherMount::image_with("noatime", image, point)
    }

    /// The filesystem in an image file, with mount options.
    pub fn image_with(options: &str, image: &Path, point: &Path) -> OtherMount {
        let options = format!("loop,{options}");
        run(Command::new("mount").args(["-o", &options]).arg(image).arg(point)).success();
        OtherMount { point: point.to_owned() }
    }

    /// Shows `from` at `point` too.
    pub fn bind(from: &Path, point: &Path) -> OtherMount {
        let none: Option<&str> = None;
        mount(Some(from), point, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
            .unwrap_or_else(|error| panic!("bind {from:?} on {point:?}: {error}"));
        // Unmounting it must not reach the original.
        mount(none, point, none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)
            .unwrap_or_else(|error| panic!("private {point:?}: {error}"));
        OtherMount { point: point.to_owned() }
    }

    /// Says that it was unmounted by other means.
    pub fn gone(self) {
        std::mem::forget(self);
    }

    /// Makes a bind mount read-only.
    pub fn read_only(self) -> OtherMount {
        let none: Option<&str> = None;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, &self.point, none, flags, none)
            .unwrap_or_else(|error| panic!("read-only {:?}: {error}", self.point));
        self
    }
}

impl Drop for OtherMount {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.point, MntFlags::MNT_DETACH) {
            faults().push((current(), format!("umount {:?}: {error}", self.point)));
        }
    }
}
