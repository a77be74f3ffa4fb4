//! Mounting by mount(8): the form in which it calls its helpers, and where it finds them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::layerfs_binary;
use crate::common::mount::{Mount, mounted_on, run};
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(the_names_of_a_mount_helper),
        t!(the_words_of_a_mount_helper),
        t!(a_mount_helper_says_why_it_fails),
        t!(mount_finds_its_helper).root().needs(an_installed_helper),
        t!(flags_change_without_the_helper).root(),
    ]
}

/// A union with a file, and its layers as options for mount(8).
fn for_mount() -> (Union, OsString) {
    let union = Union::new(1);
    put(union.lower(0, "file"), "x");
    let mut options = OsString::from("rw,nosuid,user=me,x-some.note,lowerdir=");
    options.push(union.lower(0, ""));
    options.push(",upperdir=");
    options.push(union.upper(""));
    options.push(",workdir=");
    options.push(union.work(""));
    (union, options)
}

#[track_caller]
fn assert_mounted_by_helper(union: &Union, command: Command, source: &str) {
    let mount = Mount::attempt_by(command, &union.point()).unwrap_or_else(|refused| panic!("{refused:?}"));
    let shown = mounted_on(&union.point()).expect("mounted");
    assert_eq!((shown.kind.as_str(), shown.source.as_str()), ("fuse.layerfs", source));
    assert!(shown.options.contains("nosuid"), "{}", shown.options);
    append(union.at("file"), "y");
    mount.umount();
    assert_eq!(read(union.upper("file")), "xy");
    fs::remove_file(union.upper("file")).expect("remove");
}

fn the_names_of_a_mount_helper() {
    let (union, options) = for_mount();
    for name in ["mount.fuse.layerfs", "mount.layerfs"] {
        let link = union.root().join(name);
        symlink(layerfs_binary(), &link).expect("symlink");
        let mut command = Command::new(&link);
        command.args(["a source".into(), union.point().into_os_string(), "-n".into(), "-v".into()]);
        command.args(["-t", "fuse.layerfs", "-o"]).arg(&options);
        assert_mounted_by_helper(&union, command, "a source");
        let mut fake = Command::new(&link);
        run(fake.arg("any").arg(union.point()).args(["-sf", "-o", "lowerdir=/missing,strange"])).success();
        assert!(mounted_on(&union.point()).is_none());
    }
}

/// As mount.fuse3 passes them on.
fn the_words_of_a_mount_helper() {
    let (union, options) = for_mount();
    let mut command = Command::new(layerfs_binary());
    command.arg("any").arg(union.point()).arg("-o").arg(&options);
    assert_mounted_by_helper(&union, command, "any");
}

/// With the exit codes of mount(8): 1 for how it was called, 32 for a mount that failed.
fn a_mount_helper_says_why_it_fails() {
    let (union, _) = for_mount();
    let missing = format!("lowerdir={}", union.root().join("missing").display());
    let words = |options: &str| {
        let words = ["any".into(), union.point().into_os_string(), "-o".into(), options.into()];
        run(Command::new(layerfs_binary()).args(words))
    };
    for (options, code, part) in [
        (missing.as_str(), 32, "missing"),
        ("lowerdir=/x,timeout=soon", 1, "number of seconds"),
        ("ro", 1, "no lower directory"),
        ("remount,rw", 1, "mount -i -o remount"),
    ] {
        let ended = words(options);
        assert_eq!(ended.status.code(), Some(code), "{options}");
        assert!(ended.stderr.contains(part) && ended.stderr.lines().count() == 1, "{options}: {}", ended.stderr);
    }
    assert!(mounted_on(&union.point()).is_none());
}

/// Where mount(8) looks for its helper for this type, and only there.
const HELPER: &str = "/sbin/mount.fuse.layerfs";

fn an_installed_helper() -> Option<String> {
    fs::symlink_metadata(HELPER).is_ok().then(|| format!("there is a {HELPER} already, which stays as it is"))
}

/// The link that `layerfs install-links` makes.
fn mount_finds_its_helper() {
    struct Installed(&'static str);
    impl Drop for Installed {
        fn drop(&mut self) {
            fs::remove_file(self.0).expect("remove the helper");
        }
    }
    let (union, options) = for_mount();
    symlink(layerfs_binary(), HELPER).expect("symlink");
    let _installed = Installed(HELPER);
    let mut command = Command::new("mount");
    command.args(["-t", "fuse.layerfs", "any"]).arg(union.point()).arg("-o").arg(&options);
    assert_mounted_by_helper(&union, command, "any");

    let table = union.root().join("fstab");
    let line = format!("any {} fuse.layerfs {},noauto 0 0\n", union.point().display(), options.display());
    put(&table, &line);
    let mut command = Command::new("mount");
    command.arg("-T").arg(&table).arg(union.point());
    assert_mounted_by_helper(&union, command, "any");
}

/// As the refusal of a remount says.
fn flags_change_without_the_helper() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "x");
    union.mount();
    for (flag, writable) in [("ro", false), ("rw", true)] {
        run(Command::new("mount").args(["-i", "-o", &format!("remount,{flag}")]).arg(union.point())).success();
        assert_eq!(fs::write(union.at("file"), "y").is_ok(), writable, "{flag}");
    }
    union.umount();
}
