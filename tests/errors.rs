//! What a person reads when a mount can't be set up: one line with the path in it, and nothing on
//! disk has changed.

mod common;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::files::*;
use common::machine::layerfs_binary;
use common::mount::{Ended, Mount, layerfs, run};
use common::others::OtherMount;
use common::tree::Tree;
use common::union::Union;

/// An id that owns nothing on any machine.
const NOBODY: u32 = 64_321;

fn main() {
    common::main(vec![
        t!(a_missing_lower),
        t!(a_lower_that_is_a_file),
        t!(a_missing_upper),
        t!(an_upper_that_is_a_file),
        t!(a_work_that_is_a_file),
        t!(work_on_another_filesystem).root(),
        t!(layers_in_each_other),
        t!(a_read_only_upper).root(),
        t!(an_upper_without_xattrs).root(),
        t!(a_missing_mountpoint),
        t!(a_mountpoint_that_is_a_file),
        t!(no_lower_at_all),
        t!(a_work_without_an_upper),
        t!(unknown_options),
        t!(bad_values),
        t!(no_device).root(),
        t!(no_fusermount).root().needs(closed_device),
        t!(a_directory_that_is_no_mount),
        t!(unmounting_what_is_not_there),
    ]);
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a test path in UTF-8")
}

/// The arguments for a lower, an upper and a work directory.
fn layers(lower: &Path, upper: &Path, work: &Path) -> Vec<OsString> {
    let pairs = [("--lower", lower), ("--upper", upper), ("--work", work)];
    pairs.into_iter().flat_map(|(flag, path)| [flag.into(), path.into()]).collect()
}

fn usual(union: &Union) -> [PathBuf; 3] {
    [union.lower(0, ""), union.upper(""), union.work("")]
}

/// One line that names each of `words`.
#[track_caller]
fn assert_message(ended: &Ended, words: &[&str]) {
    assert!(!ended.status.success(), "{ended:?}");
    assert!(ended.stdout.is_empty(), "{ended:?}");
    assert_eq!(ended.stderr.trim_end().lines().count(), 1, "{}", ended.stderr);
    for word in words {
        assert!(ended.stderr.contains(word), "no {word:?} in: {}", ended.stderr);
    }
}

/// A mount that is refused with a message that names each of `words`.
#[track_caller]
fn refused(union: &Union, arguments: &[OsString], point: &Path, words: &[&str]) {
    let before = Tree::of(union.root());
    match Mount::attempt(arguments, point) {
        Ok(_) => panic!("mounted, where a refusal that names {words:?} is due"),
        Err(ended) => assert_message(&ended, words),
    }
    before.assert_same(&Tree::of(union.root()), "after a refusal");
}

fn a_missing_lower() {
    let union = Union::new(1);
    let [lower, upper, work] = usual(&union);
    let missing = union.root().join("missing");
    let arguments = layers(&missing, &upper, &work);
    refused(&union, &arguments, &union.point(), &[text(&missing)]);
    let mut two = layers(&lower, &upper, &work);
    two.extend(["--lower".into(), missing.clone().into()]);
    refused(&union, &two, &union.point(), &[text(&missing)]);
    let option = format!("lowerdir={}:{}", text(&lower), text(&missing));
    refused(&union, &["-o".into(), option.into()], &union.point(), &[text(&missing)]);
}

fn a_lower_that_is_a_file() {
    let union = Union::new(1);
    let [_, upper, work] = usual(&union);
    let file = union.root().join("file");
    put(&file, "x");
    refused(&union, &layers(&file, &upper, &work), &union.point(), &[text(&file)]);
}

fn a_missing_upper() {
    let union = Union::new(1);
    let [lower, _, work] = usual(&union);
    let missing = union.root().join("missing");
    refused(&union, &layers(&lower, &missing, &work), &union.point(), &[text(&missing)]);
    let arguments: Vec<OsString> = ["--lower".into(), lower.into(), "--upper".into(), missing.clone().into()].into();
    refused(&union, &arguments, &union.point(), &[text(&missing)]);
}

fn an_upper_that_is_a_file() {
    let union = Union::new(1);
    let [lower, _, work] = usual(&union);
    let file = union.root().join("file");
    put(&file, "x");
    refused(&union, &layers(&lower, &file, &work), &union.point(), &[text(&file)]);
}

fn a_work_that_is_a_file() {
    let union = Union::new(1);
    let [lower, upper, _] = usual(&union);
    let file = union.root().join("file");
    put(&file, "x");
    refused(&union, &layers(&lower, &upper, &file), &union.point(), &[text(&file)]);
}

fn work_on_another_filesystem() {
    let union = Union::new(1);
    let [lower, upper, _] = usual(&union);
    let elsewhere = union.root().join("elsewhere");
    make_dir(&elsewhere);
    let other = OtherMount::memory("tmpfs", "size=1m", &elsewhere);
    let work = elsewhere.join("work");
    make_dir(&work);
    refused(&union, &layers(&lower, &upper, &work), &union.point(), &[text(&work)]);
    drop(other);
}

fn layers_in_each_other() {
    let union = Union::new(1);
    let [lower, upper, work] = usual(&union);
    let [in_upper, in_work] = [&upper, &work].map(|path| path.join("inside"));
    for path in [&in_upper, &in_work] {
        make_dir(path);
    }
    for (lower, upper, work) in [
        (&lower, &lower, &work),
        (&lower, &upper, &upper),
        (&lower, &upper, &lower),
        (&lower, &upper, &in_upper),
        (&lower, &in_work, &work),
        (&in_upper, &upper, &work),
        (&in_work, &upper, &work),
    ] {
        let arguments = layers(lower, upper, work);
        let named = [lower, upper, work].map(|path| text(path));
        let before = Tree::of(union.root());
        let ended =
            Mount::attempt(&arguments, &union.point()).err().unwrap_or_else(|| panic!("mounted with {arguments:?}"));
        assert_message(&ended, &[]);
        assert!(named.iter().any(|path| ended.stderr.contains(path)), "{}", ended.stderr);
        before.assert_same(&Tree::of(union.root()), "after a refusal");
    }
}

fn a_read_only_upper() {
    let union = Union::new(1);
    let [lower, upper, work] = usual(&union);
    for bound in [&upper, &work] {
        let mount = OtherMount::bind(bound, bound).read_only();
        let arguments = layers(&lower, &upper, &work);
        refused(&union, &arguments, &union.point(), &[text(bound)]);
        drop(mount);
    }
}

fn an_upper_without_xattrs() {
    let union = Union::new(1);
    let elsewhere = union.root().join("elsewhere");
    make_dir(&elsewhere);
    let other = OtherMount::memory("ramfs", "mode=755", &elsewhere);
    let (upper, work) = (elsewhere.join("upper"), elsewhere.join("work"));
    make_dir(&upper);
    make_dir(&work);
    // Trying out what a filesystem can do may touch the work directory, never upper.
    let lower = union.lower(0, "");
    let ended = Mount::attempt(&layers(&lower, &upper, &work), &union.point()).err();
    assert_message(&ended.expect("a refusal"), &[text(&elsewhere)]);
    assert_eq!(names(&upper), Vec::<String>::new());
    assert_eq!(names(&work), Vec::<String>::new());
    drop(other);
}

fn a_missing_mountpoint() {
    let union = Union::new(1);
    let missing = union.root().join("missing");
    refused(&union, &union.command_line(), &missing, &[text(&missing)]);
}

fn a_mountpoint_that_is_a_file() {
    let union = Union::new(1);
    let file = union.root().join("file");
    put(&file, "x");
    refused(&union, &union.command_line(), &file, &[text(&file)]);
}

fn no_lower_at_all() {
    let union = Union::new(0);
    let ended = Mount::attempt(&[], &union.point()).err().expect("a refusal");
    assert!(ended.stderr.contains("--lower"), "{}", ended.stderr);
    refused(&union, &["-o".into(), "ro".into()], &union.point(), &["lower"]);
}

fn a_work_without_an_upper() {
    let union = Union::new(1);
    let [lower, _, work] = usual(&union);
    let arguments: Vec<OsString> = ["--lower".into(), lower.into(), "--work".into(), work.into()].into();
    let ended = Mount::attempt(&arguments, &union.point()).err().expect("a refusal");
    assert!(ended.stderr.contains("--upper"), "{}", ended.stderr);
}

/// An error names the nearest option that there is.
fn unknown_options() {
    let union = Union::new(1);
    for (wrong, right) in [
        ("uperdir=/x", "upperdir"),
        ("lowrdir=/x", "lowerdir"),
        ("wokdir=/x", "workdir"),
        ("redirectdir=on", "redirect_dir"),
        ("volatil", "volatile"),
    ] {
        let mut arguments = union.command_line();
        arguments.extend(["-o".into(), wrong.into()]);
        let name = wrong.split('=').next().expect("a name");
        refused(&union, &arguments, &union.point(), &[name, right]);
    }
    let mut arguments = union.command_line();
    arguments.extend(["--uper".into(), "x".into()]);
    let ended = Mount::attempt(&arguments, &union.point()).err().expect("a refusal");
    assert!(ended.stderr.contains("--upper"), "{}", ended.stderr);
}

fn bad_values() {
    let union = Union::new(1);
    let ids = ["uidmapping=0:1", "gidmapping=0:0:9:5:20:1", "squash_to_uid=4294967295"];
    for bad in ["timeout=soon", "timeout=-1", "xino=perhaps", "redirect_dir=maybe", "lowerdir="].into_iter().chain(ids)
    {
        let mut arguments = union.command_line();
        arguments.extend(["-o".into(), bad.into()]);
        let name = bad.split('=').next().expect("a name");
        refused(&union, &arguments, &union.point(), &[name]);
    }
}

fn no_device() {
    let union = Union::new(1);
    let before = Tree::of(union.root());
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", "mount -t tmpfs none /dev && exec \"$@\"", "sh"])
        .arg(layerfs_binary())
        .arg("mount")
        .args(union.command_line())
        .arg(union.point());
    assert_message(&run(&mut command), &["/dev/fuse"]);
    before.assert_same(&Tree::of(union.root()), "after a refusal");
}

fn closed_device() -> Option<String> {
    let mode = fs::metadata("/dev/fuse").ok()?.permissions().mode();
    (mode & 0o6 != 0o6).then(|| "/dev/fuse is not open to everybody".to_owned())
}

fn no_fusermount() {
    let union = Union::new(1);
    let binary = union.root().join("layerfs");
    fs::copy(layerfs_binary(), &binary).expect("copy the binary");
    for path in [union.lower(0, ""), union.upper(""), union.work(""), union.point()] {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("chown");
    }
    let before = Tree::of(union.root());
    // Where it is installed, it is hidden from this one command.
    let hide = "for p in /usr/bin /bin /usr/sbin /sbin /usr/local/bin; do for f in $p/fusermount3 $p/fusermount; do \
                test ! -e $f || mount --bind /dev/null $f || exit; done; done; \
                exec setpriv --reuid=$0 --regid=$0 --clear-groups env PATH=/nonexistent \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", hide, &NOBODY.to_string()])
        .arg(binary)
        .arg("mount")
        .args(union.command_line())
        .arg(union.point());
    assert_message(&run(&mut command), &["fusermount3"]);
    before.assert_same(&Tree::of(union.root()), "after a refusal");
}

fn a_directory_that_is_no_mount() {
    let union = Union::new(1);
    for path in [union.root().to_owned(), union.root().join("missing")] {
        let ended = layerfs(["stats".into(), path.clone().into_os_string()]);
        assert_message(&ended, &[text(&path)]);
    }
}

fn unmounting_what_is_not_there() {
    let union = Union::new(1);
    for path in [union.point(), union.root().join("missing")] {
        let ended = layerfs(["umount".into(), path.clone().into_os_string()]);
        assert_message(&ended, &[text(&path)]);
    }
    assert!(exists(union.point()));
}
