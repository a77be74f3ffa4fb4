//! The mounted tests once more as an ordinary user: in a user namespace, where that user may
//! mount, and through fusermount3.
//!
//! Run by root it needs a user called `tester` (or the one that `LAYERFS_TEST_USER` names); run by
//! an ordinary user it is that user. The program runs itself again on the other side.

mod common;
#[path = "mount/copy_up.rs"]
mod copy_up;
#[path = "mount/cycles.rs"]
mod cycles;
#[path = "mount/deep.rs"]
mod deep;
#[path = "mount/identity.rs"]
mod identity;
#[path = "mount/life.rs"]
mod life;
#[path = "mount/marks.rs"]
mod marks;
#[path = "mount/open_files.rs"]
mod open_files;
#[path = "mount/permissions.rs"]
mod permissions;
#[path = "mount/recover.rs"]
mod recover;
#[path = "mount/rename.rs"]
mod rename;
#[path = "mount/trust.rs"]
mod trust;
#[path = "rootless/unmapped.rs"]
mod unmapped;
#[path = "mount/view.rs"]
mod view;

#[path = "posix/attributes.rs"]
mod attributes;
#[path = "posix/data.rs"]
mod data;
#[path = "posix/listing.rs"]
mod listing;
#[path = "posix/namespace.rs"]
mod namespace;
#[path = "posix/opening.rs"]
mod opening;
#[path = "posix/special.rs"]
mod special;
#[path = "posix/xattrs.rs"]
mod xattrs;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use nix::unistd::geteuid;

use common::files::*;
use common::machine::{find_program, layerfs_binary, not_root, scratch, user_ids};
use common::mount::try_run;
use common::others::KernelOverlay;
use common::tree::Tree;
use common::union::Union;

/// Set on the other side.
const INSIDE: &str = "LAYERFS_TEST_INSIDE";
const LIMIT: u64 = 900;

fn main() {
    trust::be_a_client_if_asked();
    if std::env::var_os(INSIDE).is_none() {
        let whole = vec![
            t!(in_a_user_namespace).needs(no_user).needs(no_namespace).seconds(2 * LIMIT + 60),
            t!(through_fusermount3).needs(no_user).needs(no_fusermount).seconds(2 * LIMIT + 60),
        ];
        common::main([unmapped::tests(), whole].into_iter().flatten().collect());
    }
    let lists = [
        view::tests(),
        marks::tests(),
        copy_up::tests(),
        rename::tests(),
        identity::tests(),
        open_files::tests(),
        deep::tests(),
        life::tests(),
        permissions::tests(),
        recover::tests(),
        cycles::tests(),
        trust::tests(),
        attributes::tests(),
        opening::tests(),
        data::tests(),
        namespace::tests(),
        listing::tests(),
        xattrs::tests(),
        special::tests(),
        vec![t!(the_kernel_reads_an_upper_with_user_marks).needs(not_in_namespace), t!(passthrough_is_refused)],
    ];
    common::main(lists.into_iter().flatten().collect());
}

/// The kernel takes files from root alone: whoever asks for it hears that.
fn passthrough_is_refused() {
    let mut union = Union::new(1).arguments(&["--io", "passthrough"]);
    let refused = union.try_mount().expect_err("refused").stderr;
    assert!(refused.contains("io=passthrough needs root and Linux 6.9"), "{refused}");
}

/// Who to be: the ordinary user's ids for root, nobody else for an ordinary user.
///
/// Asked for once, before the tests: a process that is started while another test writes the program that it is going to run
/// has that file open for a moment, and it can't be run then.
fn user() -> Option<(u32, u32)> {
    static USER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *USER.get_or_init(|| {
        let name = std::env::var("LAYERFS_TEST_USER").unwrap_or_else(|_| "tester".to_owned());
        user_ids(&name)
    })
}

fn no_user() -> Option<String> {
    (geteuid().is_root() && user().is_none()).then(|| "there is no user `tester`: useradd -m tester".to_owned())
}

fn no_namespace() -> Option<String> {
    let mut probe = Command::new("unshare");
    probe.args(["-Urm", "true"]);
    become_user(&mut probe);
    match try_run(&mut probe, Duration::from_secs(10)) {
        Ok(ended) if ended.status.success() => None,
        Ok(ended) => Some(format!("no user namespaces for ordinary users: {}", ended.stderr)),
        Err(fault) => Some(fault),
    }
}

fn no_fusermount() -> Option<String> {
    if find_program("fusermount3").is_none() {
        return Some("there is no fusermount3: install fuse3".to_owned());
    }
    let mode = fs::metadata("/dev/fuse").ok()?.permissions().mode();
    (mode & 0o6 != 0o6).then(|| "/dev/fuse is not open to everybody".to_owned())
}

fn not_in_namespace() -> Option<String> {
    (!geteuid().is_root()).then(|| "only where we may mount".to_owned())
}

fn become_user(command: &mut Command) {
    if let Some((uid, gid)) = user().filter(|_| geteuid().is_root()) {
        command.uid(uid).gid(gid).env("HOME", "/");
    }
}

fn in_a_user_namespace() {
    inside(&["unshare", "-Urm"]);
}

fn through_fusermount3() {
    inside(&[]);
}

/// One at a time: a new mount namespace holds a copy of each mount that there is, and a copy keeps its daemon alive.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs this program, and the binary under test, from where the user can reach both.
fn inside(through: &[&str]) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let place = scratch();
    let copy = |from: &Path, name: &str| {
        let to = place.path().join(name);
        fs::copy(from, &to).expect("copy a program");
        chmod(&to, 0o755);
        to
    };
    let program = copy(&std::env::current_exe().expect("this program"), "tests");
    let binary = copy(&layerfs_binary(), "layerfs");
    let trees = place.path().join("trees");
    make_dir(&trees);
    if let Some((uid, gid)) = user().filter(|_| geteuid().is_root()) {
        chown(&trees, Some(uid), Some(gid)).expect("chown");
    }
    let mut words = through.iter().map(|word| (*word).into()).chain([program.into_os_string()]);
    let mut command = Command::new::<std::ffi::OsString>(words.next().expect("a program"));
    command
        .args(words)
        .env(INSIDE, "1")
        .env("LAYERFS_BIN", binary)
        .env("LAYERFS_TEST_DIR", &trees)
        .env_remove("LAYERFS_TEST_REQUIRED")
        .current_dir(&trees);
    become_user(&mut command);
    let ended = try_run(&mut command, Duration::from_secs(LIMIT)).unwrap_or_else(|f| panic!("{f}"));
    assert!(ended.status.success(), "{}\n{}", ended.stdout, ended.stderr);
    let summary = ended.stdout.lines().rev().find(|line| line.starts_with("test result"));
    let summary = summary.expect("a summary");
    eprintln!("as an ordinary user: {summary}");
    assert!(!summary.contains(" 0 passed"), "nothing was tested: {}", ended.stderr);
}

/// What was changed without renaming a directory, the kernel's overlay reads with `userxattr`.
fn the_kernel_reads_an_upper_with_user_marks() {
    assert!(not_root().is_some(), "not inside a user namespace");
    let mut union = Union::new(2).arguments(&["--metacopy", "off"]);
    put(union.lower(1, "d/file"), "x");
    put(union.lower(1, "d/gone"), "x");
    put(union.lower(0, "again/old"), "x");
    put(union.lower(0, "moved"), "x");
    union.mount();
    append(union.at("d/file"), "y");
    fs::remove_file(union.at("d/gone")).expect("remove");
    fs::remove_dir_all(union.at("again")).expect("remove");
    make_dir(union.at("again"));
    put(union.at("again/new"), "x");
    fs::rename(union.at("moved"), union.at("d/moved")).expect("rename");
    let shown = Tree::of(&union.at("")).portable();
    union.umount();
    let kernel = KernelOverlay::start(union.lowers(), &union.upper(""), &union.work(""), "userxattr", &union.point())
        .unwrap_or_else(|error| panic!("the kernel's overlay refuses: {error}"));
    let theirs = Tree::of(&union.point()).portable();
    kernel.umount();
    shown.assert_same(&theirs, "the kernel's overlay with userxattr");
}
