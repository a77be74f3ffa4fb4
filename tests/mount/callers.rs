//! How podman, buildah, containerd and Apptainer start a mount and end it: each one's command line, word for word, and what
//! it counts on.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::signal::Signal;

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::{as_user, find_program, layerfs_binary, may_mount};
use crate::common::mount::{Ended, Mount, mounted_on, once_free, run};
use crate::common::sys::hand_over;
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(podman_mounts_and_unmounts_at_once),
        t!(podman_has_500_layers),
        t!(podman_reads_only),
        t!(buildah_mounts_a_volume),
        t!(containerd_probes),
        t!(containerd_mounts).root(),
        t!(containerd_asks_the_fuse_helper).root().needs(no_fuse_helper),
        t!(without_any_standard_stream),
        t!(apptainer_polls),
        t!(sigusr1_prints_statistics),
        t!(apptainer_hands_its_mount_over).root(),
        t!(apptainer_starts_it_as_the_user).root(),
        t!(apptainer_ends_with_a_signal).root(),
        t!(a_handed_mount_in_the_background).root(),
        t!(what_is_no_fuse_device_is_refused),
        t!(a_bare_command_mounts),
        t!(what_is_ignored_is_told_on_stderr),
        t!(a_variable_asks_for_whiteouts_as_files),
        t!(why_it_fails_is_told_on_stderr),
        t!(help_and_version_of_the_form),
        t!(links_are_installed),
    ]
}

/// The program under the name that these callers ask for.
fn fuse_overlayfs(union: &Union) -> PathBuf {
    let program = union.root().join("fuse-overlayfs");
    if !exists(&program) {
        symlink(layerfs_binary(), &program).expect("symlink");
    }
    program
}

/// `lowerdir=...,upperdir=...,workdir=...`
fn option_list(union: &Union) -> String {
    format!("{},upperdir={},workdir={}", lowerdir(union), union.upper("").display(), union.work("").display())
}

fn lowerdir(union: &Union) -> String {
    let lowers: Vec<String> = union.lowers().iter().map(|lower| lower.display().to_string()).collect();
    format!("lowerdir={}", lowers.join(":"))
}

/// As containers/storage does: by fusermount3, else out of the tree by umount(2).
fn unmount_as_podman(point: &Path) {
    if find_program("fusermount3").is_some() {
        let done = once_free(|| run(Command::new("fusermount3").arg("-u").arg(point)).status.success());
        assert!(done, "{point:?} stays busy");
    } else {
        umount2(point, MntFlags::MNT_DETACH).expect("umount");
    }
    assert!(mounted_on(point).is_none());
}

/// By umount(2), as those do who mount by themselves.
fn unmount_directly(point: &Path) {
    assert!(once_free(|| umount2(point, MntFlags::empty()).is_ok()), "{point:?} stays busy");
}

/// Layers as these tools unpack them for a mount program: with whiteouts in AUFS form.
fn container() -> Union {
    let union = Union::new(2);
    put(union.lower(1, "bin/sh"), "shell");
    put(union.lower(1, "log"), "log");
    put(union.lower(1, "etc/old"), "old");
    put(union.lower(1, "var/cache/x"), "x");
    put(union.lower(0, "etc/.wh.old"), "");
    put(union.lower(0, "etc/new"), "new");
    put(union.lower(0, "var/cache/.wh..wh..opq"), "");
    union
}

fn assert_container(union: &Union) {
    assert_eq!(names(union.at("etc")), ["new"]);
    assert_eq!(read(union.at("bin/sh")), "shell");
    assert!(names(union.at("var/cache")).is_empty());
}

/// Lowers are short symlinks relative to the working directory; what was written is there when the unmount has returned, and
/// the same directories are mounted again at once.
fn podman_mounts_and_unmounts_at_once() {
    let union = container();
    make_dir(union.root().join("l"));
    for (link, i) in [("AAAA", 0), ("BBBB", 1)] {
        symlink(union.lower(i, ""), union.root().join("l").join(link)).expect("symlink");
    }
    let list = "lowerdir=l/AAAA:l/BBBB,upperdir=upper,workdir=work,,volatile";
    let mut daemons = Vec::new();
    for round in 0..3 {
        let mut command = Command::new(fuse_overlayfs(&union));
        command.arg("-o").arg(list).arg(union.point()).current_dir(union.root());
        let mount = Mount::attempt_by(command, &union.point()).expect("mounted");
        let shown = mounted_on(&union.point()).expect("mounted");
        assert_eq!((shown.kind.as_str(), shown.source.as_str()), ("fuse.layerfs", "layerfs"));
        assert_container(&union);
        append(union.at("log"), &round.to_string());
        put(union.at(&format!("file{round}")), vec![b'x'; 3_000_000]);
        unmount_as_podman(&union.point());
        assert_eq!(stat(union.upper(&format!("file{round}"))).len(), 3_000_000);
        assert!(read(union.upper("log")).ends_with(&round.to_string()));
        daemons.push(mount);
    }
    daemons.into_iter().for_each(Mount::umount);
    assert_eq!(read(union.upper("log")), "log012");
}

fn podman_has_500_layers() {
    const COUNT: usize = 500;
    let union = Union::new(1);
    make_dir(union.root().join("overlay/l"));
    let mut lowers = Vec::new();
    for i in 0..COUNT {
        let link = format!("l/{i:026}");
        put(union.root().join(format!("overlay/{i}/diff/file{i}")), "x");
        put(union.root().join(format!("overlay/{i}/diff/shared")), i.to_string());
        symlink(format!("../{i}/diff"), union.root().join("overlay").join(&link)).expect("symlink");
        lowers.push(link);
    }
    let mut command = Command::new(fuse_overlayfs(&union));
    let list = format!("lowerdir={},upperdir=../upper,workdir=../work", lowers.join(":"));
    command.arg("-o").arg(list).arg("../mnt").current_dir(union.root().join("overlay"));
    let mount = Mount::attempt_by(command, &union.point()).expect("mounted");
    assert_eq!(names(union.point()).len(), COUNT + 1);
    assert_eq!(read(union.at("shared")), "0");
    append(union.at(&format!("file{}", COUNT - 1)), "y");
    mount.umount();
    assert_eq!(read(union.upper(&format!("file{}", COUNT - 1))), "xy");
}

/// `--read-only`, and an image that is mounted: the container's own layer is the topmost lower.
fn podman_reads_only() {
    let union = container();
    let mut command = Command::new(fuse_overlayfs(&union));
    command.arg("-o").arg(lowerdir(&union)).arg(union.point());
    let mount = Mount::attempt_by(command, &union.point()).expect("mounted");
    assert_container(&union);
    fails(fs::write(union.at("x"), ""), Errno::EROFS);
    unmount_as_podman(&union.point());
    mount.umount();
}

/// `-v DIR:/mnt:O`; it unmounts by umount(2).
fn buildah_mounts_a_volume() {
    let union = Union::new(0);
    for name in ["a:b", "up:per", "wo:rk"] {
        make_dir(union.root().join(name));
    }
    put(union.root().join("a:b/file"), "x");
    let root = union.root().display().to_string();
    let list = format!(r"lowerdir={root}/a\:b,upperdir={root}/up\:per,workdir={root}/wo\:rk,private");
    let mut command = Command::new(fuse_overlayfs(&union));
    command.arg("-o").arg(list).arg(union.point());
    let mount = Mount::attempt_by(command, &union.point()).expect("mounted");
    append(union.at("file"), "y");
    if may_mount() {
        unmount_directly(&union.point());
    } else {
        unmount_as_podman(&union.point());
    }
    assert_eq!(read(union.root().join("up:per/file")), "xy");
    assert_eq!(read(union.root().join("a:b/file")), "x");
    mount.umount();
}

/// The words in which mount.fuse3 passes a mount of the type fuse3.fuse-overlayfs on.
fn through_a_shell(union: &Union, list: &str) -> Command {
    let program = fuse_overlayfs(union);
    let directory = program.parent().expect("a directory").to_owned();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("/bin/sh");
    let line = format!("'fuse-overlayfs' 'overlay' '{}' -o '{list},dev,suid' \"$@\"", union.point().display());
    command.arg("-c").arg(line).arg("sh").env("PATH", format!("{}:{path}", directory.display()));
    command
}

/// Two lowers without an upper: whether it works at all.
fn containerd_probes() {
    let union = Union::new(2);
    put(union.lower(0, "lower1"), "");
    put(union.lower(1, "lower2"), "");
    let mount = Mount::attempt_by(through_a_shell(&union, &lowerdir(&union)), &union.point()).expect("mounted");
    let shown = mounted_on(&union.point()).expect("mounted");
    assert_eq!((shown.kind.as_str(), shown.source.as_str()), ("fuse.layerfs", "overlay"));
    assert_eq!(names(union.point()), ["lower1", "lower2"]);
    assert!(shown.options.starts_with("ro"), "{}", shown.options);
    mount.umount();
}

fn containerd_mounts() {
    let union = container();
    let list =
        format!("workdir={},upperdir={},{}", union.work("").display(), union.upper("").display(), lowerdir(&union));
    let mount = Mount::attempt_by(through_a_shell(&union, &list), &union.point()).expect("mounted");
    assert_container(&union);
    let shown = mounted_on(&union.point()).expect("mounted");
    assert!(!shown.options.contains("nodev") && !shown.options.contains("nosuid"), "{}", shown.options);
    append(union.at("bin/sh"), "!");
    mount.umount();
    assert_eq!(read(union.upper("bin/sh")), "shell!");
}

/// What containerd runs; the helper for all of FUSE makes the words above of it.
fn containerd_asks_the_fuse_helper() {
    let union = container();
    let directory = fuse_overlayfs(&union).parent().expect("a directory").display().to_string();
    let mut command = Command::new(find_program("mount.fuse3").expect("mount.fuse3"));
    command.arg("overlay").arg(union.point()).args(["-t", "fuse-overlayfs"]);
    for option in option_list(&union).split(',').rev() {
        command.args(["-o", option]);
    }
    command.env("PATH", format!("{directory}:{}", std::env::var("PATH").unwrap_or_default()));
    let mount = Mount::attempt_by(command, &union.point()).expect("mounted");
    assert_container(&union);
    append(union.at("bin/sh"), "!");
    unmount_directly(&union.point());
    assert_eq!(read(union.upper("bin/sh")), "shell!");
    mount.umount();
}

fn no_fuse_helper() -> Option<String> {
    find_program("mount.fuse3").is_none().then(|| "no mount.fuse3 (package fuse3)".to_owned())
}

/// As a service may be started.
fn without_any_standard_stream() {
    let union = container();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", r#"exec "$0" "$@" <&- >&- 2>&-"#]).arg(fuse_overlayfs(&union)).arg(union.point());
    command.arg("-o").arg(option_list(&union));
    let mount = Mount::attempt_by(command, &union.point()).expect("mounted");
    assert_container(&union);
    append(union.at("bin/sh"), "!");
    mount.umount();
    assert_eq!(read(union.upper("bin/sh")), "shell!");
}

/// `-f` and the mount table, where it looks again and again; what is printed is shown to users.
fn apptainer_polls() {
    let union = container();
    let mut command = Command::new(fuse_overlayfs(&union));
    let list = if may_mount() { "allow_other," } else { "" };
    command.args(["-f", "-o"]).arg(format!("{list}{},noacl", option_list(&union))).arg(union.point());
    let mut mount = start_heard(command, &union);
    assert_container(&union);
    append(union.at("bin/sh"), "!");
    unmount_as_podman(&union.point());
    assert_eq!(read(union.upper("bin/sh")), "shell!");
    assert_eq!(printed(&mut mount), ["", ""]);
}

/// Starts a daemon in the foreground, whose output goes to whoever started it.
fn start_heard(mut command: Command, union: &Union) -> Mount {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Mount::start_foreground_by(command, &union.point())
}

/// What it has written to stdout and stderr, once it has ended well.
fn printed(mount: &mut Mount) -> [String; 2] {
    assert!(mount.foreground_status().expect("ended").success());
    let mut texts = [String::new(), String::new()];
    let child = mount.foreground();
    child.stdout.take().expect("a pipe").read_to_string(&mut texts[0]).expect("read");
    child.stderr.take().expect("a pipe").read_to_string(&mut texts[1]).expect("read");
    texts
}

/// A mount as Apptainer's setuid part makes it for a user, without default_permissions: its /dev/fuse.
fn mount_for_another(point: &Path, user: u32) -> OwnedFd {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
    let device = OwnedFd::from(device);
    let number = std::os::fd::AsRawFd::as_raw_fd(&device);
    let data = format!("fd={number},rootmode=40000,user_id={user},group_id={user},allow_other");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some("fuse-overlayfs"), point, Some("fuse"), flags, Some(data.as_str())).expect("mount");
    device
}

fn handed_over(union: &Union, words: &[&str], more: &str) -> Command {
    let device = mount_for_another(&union.point(), 0);
    let mut command = Command::new(fuse_overlayfs(union));
    command.args(words).arg("-o").arg(format!("allow_other,{},noacl{more}", option_list(union))).arg("/dev/fd/3");
    hand_over(&mut command, device, 3);
    command
}

fn sigusr1_prints_statistics() {
    let union = container();
    let mut command = Command::new(fuse_overlayfs(&union));
    command.args(["-f", "-o"]).arg(option_list(&union)).arg(union.point());
    let mut mount = start_heard(command, &union);
    append(union.at("bin/sh"), "!");
    mount.signal(Signal::SIGUSR1);
    assert_eq!(read(union.at("bin/sh")), "shell!");
    unmount_as_podman(&union.point());
    let [out, log] = printed(&mut mount);
    assert!(out.is_empty(), "{out}");
    let operations = log.lines().find_map(|line| line.split_once("operations: ")).expect("operations").1;
    assert!(operations.split(", ").any(|operation| operation.starts_with("lookup ")), "{operations}");
}

/// Whoever made the mount did not ask the kernel to check permissions: we see to it.
fn apptainer_hands_its_mount_over() {
    let union = container();
    put(union.lower(1, "secret"), "secret");
    put(union.lower(1, "public"), "public");
    chmod(union.lower(1, "secret"), 0o600);
    chmod(union.lower(1, "public"), 0o644);
    let mut mount = start_heard(handed_over(&union, &["-f"], ""), &union);
    assert_container(&union);
    assert_eq!(read(union.at("secret")), "secret");
    as_user(65534, 65534, || {
        fails(fs::read(union.at("secret")), Errno::EACCES);
        fails(OpenOptions::new().write(true).open(union.at("secret")).map(drop), Errno::EACCES);
        fails(OpenOptions::new().write(true).open(union.at("public")).map(drop), Errno::EACCES);
        assert_eq!(read(union.at("public")), "public");
    });
    append(union.at("bin/sh"), "!");
    unmount_directly(&union.point());
    assert_eq!(printed(&mut mount), ["", ""]);
    assert_eq!(read(union.upper("bin/sh")), "shell!");
    assert!(!exists(union.work("work/incompat/layerfs")), "a clean end");
}

/// The user has no right to mount, and needs none.
fn apptainer_starts_it_as_the_user() {
    let union = container();
    run(Command::new("chown").arg("-R").arg("65534:65534").arg(union.root())).success();
    let device = mount_for_another(&union.point(), 65534);
    // Without the options of this run of tests: some are for root.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", r#"exec "$0" -f -o "$1" /dev/fd/3"#]).arg(fuse_overlayfs(&union)).arg(option_list(&union));
    hand_over(&mut command, device, 3);
    command.uid(65534).gid(65534);
    let mut mount = Mount::start_foreground_by(command, &union.point());
    as_user(65534, 65534, || {
        assert_container(&union);
        append(union.at("bin/sh"), "!");
        put(union.at("new"), "new");
    });
    assert_eq!(stat(union.at("new")).uid(), 65534);
    unmount_directly(&union.point());
    assert!(mount.foreground_status().expect("ended").success());
    assert_eq!(read(union.upper("bin/sh")), "shell!");
}

/// A signal while the mount is there: that is not ours to take off, but what was closed is kept.
fn apptainer_ends_with_a_signal() {
    let mut union = container();
    let mut mount = Mount::start_foreground_by(handed_over(&union, &["-f"], ""), &union.point());
    append(union.at("bin/sh"), "!");
    mount.signal(Signal::SIGTERM);
    assert!(mount.foreground_status().expect("ended").success());
    assert!(mounted_on(&union.point()).is_some());
    umount2(&union.point(), MntFlags::MNT_DETACH).expect("umount");
    mount.umount();
    union.mount();
    assert_eq!(read(union.at("bin/sh")), "shell!");
    union.umount();
}

fn a_handed_mount_in_the_background() {
    let union = container();
    let command = handed_over(&union, &[], ",timeout=1");
    let mount = Mount::attempt_by(command, &union.point()).expect("mounted");
    assert_container(&union);
    unmount_directly(&union.point());
    mount.umount();
}

fn what_is_no_fuse_device_is_refused() {
    let union = container();
    for (target, part) in [("/dev/fd/0", "not a FUSE device"), ("/dev/fd/4711", "can't be used")] {
        let mut command = Command::new(fuse_overlayfs(&union));
        let ended = run(command.arg("-o").arg(option_list(&union)).arg(target));
        assert_refused(&ended, part);
    }
    let idle = OpenOptions::new().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
    let mut command = Command::new(fuse_overlayfs(&union));
    command.arg("-o").arg(option_list(&union)).arg("/dev/fd/3");
    hand_over(&mut command, idle.into(), 3);
    assert_refused(&run(&mut command), "does not answer");
}

#[track_caller]
fn assert_refused(ended: &Ended, part: &str) {
    assert!(!ended.status.success() && ended.stdout.is_empty(), "{ended:?}");
    assert!(ended.stderr.contains(part) && ended.stderr.lines().count() == 1, "{ended:?}");
}

fn a_bare_command_mounts() {
    let union = container();
    let (list, point) = (option_list(&union), union.point().display().to_string());
    for words in [["-o", &list, &point].as_slice(), &["any", &point, "-o", &list], &[&point, &format!("-o{list}")]] {
        let mut command = Command::new(layerfs_binary());
        command.args(words);
        let mount = Mount::attempt_by(command, &union.point()).expect("mounted");
        assert_container(&union);
        mount.umount();
    }
}

fn what_is_ignored_is_told_on_stderr() {
    let union = container();
    let mut command = Command::new(fuse_overlayfs(&union));
    command.args(["--strange", "-o"]).arg(format!("{},,odd=1,fast_ino=1,kernel_cache", option_list(&union)));
    command.arg("-f").arg(union.point());
    let mut mount = start_heard(command, &union);
    assert_container(&union);
    unmount_as_podman(&union.point());
    let [out, complaints] = printed(&mut mount);
    assert_eq!((out.as_str(), complaints.lines().count()), ("", 2), "{complaints}");
    for part in ["--strange", "\"odd\""] {
        assert!(complaints.contains(part), "{complaints}");
    }
}

fn a_variable_asks_for_whiteouts_as_files() {
    let union = container();
    let mounted = |variable: Option<&str>| {
        let mut command = Command::new(fuse_overlayfs(&union));
        command.arg("-o").arg(option_list(&union)).arg(union.point());
        command.envs(variable.map(|value| ("FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT", value)));
        Mount::attempt_by(command, &union.point()).expect("mounted")
    };
    // fuse-overlayfs does not look at its value.
    let mount = mounted(Some("0"));
    assert_container(&union);
    fs::remove_file(union.at("log")).expect("unlink");
    fs::rename(union.at("bin"), union.at("usr")).expect("rename");
    fs::remove_file(union.at("usr/sh")).expect("unlink");
    fs::create_dir(union.at("bin")).expect("mkdir");
    mount.umount();
    assert_eq!(names(union.upper("")), [".wh.log", "bin", "usr"]);
    assert_eq!(names(union.upper("bin")), [".wh..wh..opq"]);
    assert_eq!(names(union.upper("usr")), [".wh.sh"]);
    for variable in [None, Some("y")] {
        let mount = mounted(variable);
        assert_eq!(names(union.point()), ["bin", "etc", "usr", "var"]);
        assert!(names(union.at("bin")).is_empty() && names(union.at("usr")).is_empty());
        mount.umount();
    }
}

fn why_it_fails_is_told_on_stderr() {
    let union = container();
    let program = fuse_overlayfs(&union);
    let missing = union.root().join("missing").display().to_string();
    let point = union.point().display().to_string();
    for (list, target, part) in [
        (format!("lowerdir={missing}"), &point, "missing"),
        (format!("{},timeout=soon", lowerdir(&union)), &point, "number of seconds"),
        (lowerdir(&union), &missing, "mountpoint does not exist"),
        ("ro".to_owned(), &point, "no lower directory"),
        (format!("{},redirect_dir=nofollow", lowerdir(&union)), &point, "on, off, follow"),
    ] {
        assert_refused(&run(Command::new(&program).args(["-o", &list, target])), part);
    }
    assert_refused(&run(Command::new(&program).arg("-f")), "no mountpoint");
}

/// podman's `info` shows what `--version` prints.
fn help_and_version_of_the_form() {
    let union = Union::new(0);
    let program = fuse_overlayfs(&union);
    for word in ["--version", "-V"] {
        let version = run(Command::new(&program).arg(word)).success().stdout;
        assert_eq!(version, concat!("layerfs ", env!("CARGO_PKG_VERSION"), "\n"));
    }
    for word in ["--help", "-h"] {
        let help = run(Command::new(&program).arg(word)).success().stdout;
        assert!(help.contains("lowerdir=") && help.contains("-f"), "{help}");
    }
}

fn links_are_installed() {
    let union = container();
    let prefix = union.root().join("prefix");
    let install = |more: &[&str]| {
        run(Command::new(layerfs_binary()).arg("install-links").arg("--prefix").arg(&prefix).args(more))
    };
    let program = prefix.join("bin/fuse-overlayfs");
    let links = [program.clone(), prefix.join("sbin/mount.fuse.layerfs"), prefix.join("sbin/mount.layerfs")];
    let said = install(&[]).success().stdout;
    assert_eq!(said.lines().count(), links.len(), "{said}");
    for link in &links {
        assert_eq!(fs::canonicalize(link).expect("a link"), fs::canonicalize(layerfs_binary()).expect("the program"));
        assert!(said.contains(&link.display().to_string()), "{said}");
    }
    assert_eq!(install(&[]).success().stdout.matches("is there already").count(), links.len());

    fs::remove_file(&links[1]).expect("remove");
    fs::remove_file(&program).expect("remove");
    put(&program, "another program");
    assert_refused(&install(&[]), "--force");
    assert!(read(&program) == "another program" && !exists(&links[1]), "nothing was changed");
    install(&["--force"]).success();

    let mut command = Command::new(&program);
    command.arg("-o").arg(option_list(&union)).arg(union.point());
    let mount = Mount::attempt_by(command, &union.point()).expect("mounted");
    assert_container(&union);
    mount.umount();
}
