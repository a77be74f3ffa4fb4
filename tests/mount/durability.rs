//! What is on the disk at a power cut: a copy of the disk's image at that moment.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::find_program;
use crate::common::mount::run;
use crate::common::others::OtherMount;
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(a_copy_is_whole_after_a_power_cut).root().needs(no_ext4),
        t!(a_metadata_copy_is_one_after_a_power_cut).root().needs(no_ext4),
        t!(what_was_synced_is_there_after_a_power_cut).root().needs(no_ext4),
    ]
}

fn no_ext4() -> Option<String> {
    let there = find_program("mkfs.ext4").is_some() && fs::metadata("/dev/loop-control").is_ok();
    (!there).then(|| "needs mkfs.ext4 and loop devices".to_owned())
}

/// A disk of its own for upper and work.
struct Disk {
    holder: Union,
    mount: Option<OtherMount>,
}

impl Disk {
    fn new() -> Disk {
        let holder = Union::new(0);
        let image = holder.root().join("disk");
        File::create(&image).and_then(|file| file.set_len(128 << 20)).expect("an image file");
        run(Command::new("mkfs.ext4").args(["-q", "-I", "256"]).arg(&image)).success();
        make_dir(holder.root().join("now"));
        make_dir(holder.root().join("later"));
        let mount = Some(OtherMount::image(&image, &holder.root().join("now")));
        Disk { holder, mount }
    }

    fn root(&self) -> PathBuf {
        self.holder.root().join("now")
    }

    /// The power goes: what the disk holds then, mounted.
    fn cut(&self) -> (OtherMount, PathBuf) {
        let (image, point) = (self.holder.root().join("cut"), self.holder.root().join("later"));
        fs::copy(self.holder.root().join("disk"), &image).expect("copy the image");
        (OtherMount::image(&image, &point), point.join("upper"))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Before the directory that it lies in.
        self.mount = None;
    }
}

/// Nobody synced the file. Its name got to the disk with the directory, and its data has to be there then.
fn a_copy_is_whole_after_a_power_cut() {
    let disk = Disk::new();
    let mut union = Union::new(1).upper_in(&disk.root()).arguments(&["--metacopy", "off"]);
    let content = "0123456789abcdef".repeat(1 << 18);
    for name in ["moded", "moved", "linked", "opened"] {
        put(union.lower(0, &format!("d/{name}")), &content);
    }
    union.mount();
    put(union.at("d/before"), "x");
    nix::unistd::syncfs(open(disk.root())).expect("syncfs");
    chmod(union.at("d/moded"), 0o640);
    fs::rename(union.at("d/moved"), union.at("d/target")).expect("rename");
    fs::hard_link(union.at("d/linked"), union.at("d/link")).expect("link");
    mark(union.at("d/opened"), "user.x", "y");
    open(union.at("d")).sync_all().expect("fsync of the directory");
    let (later, upper) = disk.cut();
    for name in ["moded", "target", "linked", "link", "opened"] {
        assert!(fs::read(upper.join("d").join(name)).expect("read") == content.as_bytes(), "{name}");
    }
    assert_eq!(mode(upper.join("d/moded")), 0o640);
    assert!(is_whiteout(upper.join("d/moved")));
    drop(later);
    union.umount();
    drop(union);
}

/// It has no data to wait for: its name is never there without its size and marks.
fn a_metadata_copy_is_one_after_a_power_cut() {
    let disk = Disk::new();
    let mut union = Union::new(1).upper_in(&disk.root()).arguments(&["--metacopy", "on"]);
    let content = "0123456789abcdef".repeat(1 << 18);
    for name in ["moded", "moved", "linked"] {
        put(union.lower(0, &format!("d/{name}")), &content);
    }
    union.mount();
    put(union.at("d/before"), "x");
    nix::unistd::syncfs(open(disk.root())).expect("syncfs");
    chmod(union.at("d/moded"), 0o640);
    fs::rename(union.at("d/moved"), union.at("d/target")).expect("rename");
    fs::hard_link(union.at("d/linked"), union.at("d/link")).expect("link");
    open(union.at("d")).sync_all().expect("fsync of the directory");
    let (later, upper) = disk.cut();
    for (name, redirect) in
        [("moded", None), ("target", Some("/d/moved")), ("linked", Some("/d/linked")), ("link", Some("/d/linked"))]
    {
        let file = upper.join("d").join(name);
        assert_eq!(marked(&file, "trusted.overlay.metacopy").as_deref(), Some(""), "{name}");
        assert_eq!(marked(&file, "trusted.overlay.redirect").as_deref(), redirect, "{name}");
        assert_eq!(stat(&file).len(), content.len() as u64, "{name}");
    }
    assert_eq!(mode(upper.join("d/moded")), 0o640);
    drop(later);
    union.umount();
    drop(union);
}

fn what_was_synced_is_there_after_a_power_cut() {
    let disk = Disk::new();
    let mut union = Union::new(1).upper_in(&disk.root());
    put(union.lower(0, "d/lower"), "lower");
    union.mount();
    let mut file = create_new(union.at("d/new"), 0o644);
    file.write_all(b"new").expect("write");
    file.sync_all().expect("fsync");
    drop(file);
    let mut file = fs::OpenOptions::new().append(true).open(union.at("d/lower")).expect("open");
    file.write_all(b", changed").expect("write");
    file.sync_data().expect("fdatasync");
    open(union.at("d")).sync_all().expect("fsync of the directory");
    drop(file);
    let (later, upper) = disk.cut();
    assert_eq!(read(upper.join("d/new")), "new");
    assert_eq!(read(upper.join("d/lower")), "lower, changed");
    drop(later);
    union.umount();
    drop(union);
}
