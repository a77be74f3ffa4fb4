//! A mount's life: starting, being asked how it is, and ending.

use std::ffi::OsString;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::layerfs_binary;
use crate::common::mount::{Mount, eventually, layerfs, mounted_on, open_descriptors, processes_of, run, try_run};
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(help_and_version),
        t!(the_mount_table_names_it),
        t!(options_as_one_string),
        t!(colons_in_paths),
        t!(a_work_directory_is_made),
        t!(foreground),
        t!(sigterm_unmounts),
        t!(sigint_unmounts_in_the_foreground),
        t!(sigterm_while_busy),
        t!(unmounted_behind_its_back).root(),
        t!(unmounting_and_mounting_at_once),
        t!(a_killed_daemon_loses_nothing_that_was_closed),
        t!(a_mount_in_use_stays),
        t!(one_upper_one_mount),
        t!(two_unions_share_lowers),
        t!(statistics),
        t!(descriptors_are_not_kept),
        t!(the_working_directory_is_not_held),
        t!(an_idle_mount_ends_at_once),
        t!(a_mount_that_another_namespace_holds).root(),
    ]
}

fn help_and_version() {
    let version = layerfs(["--version"]).success().stdout;
    assert_eq!(version.lines().count(), 1, "{version}");
    assert!(version.starts_with("layerfs "), "{version}");
    let help = layerfs(["--help"]).success().stdout;
    for word in ["mount", "umount", "stats"] {
        assert!(help.contains(word), "no {word} in {help}");
    }
    let help = layerfs(["mount", "--help"]).success().stdout;
    for word in ["--lower", "--upper", "--work"] {
        assert!(help.contains(word), "no {word} in {help}");
    }
    assert!(!layerfs(["no-such-command"]).status.success());
}

fn the_mount_table_names_it() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "x");
    union.mount();
    let mount = mounted_on(&union.point()).expect("mounted");
    assert_eq!((mount.kind.as_str(), mount.source.as_str()), ("fuse.layerfs", "layerfs"));
    assert!(mount.options.starts_with("rw"), "{}", mount.options);
    union.umount();
    let mut union = union.read_only();
    union.mount();
    let mount = mounted_on(&union.point()).expect("mounted");
    assert!(mount.options.starts_with("ro"), "{}", mount.options);
    union.umount();
}

fn options_as_one_string() {
    let union = Union::new(2);
    put(union.lower(0, "a"), "top");
    put(union.lower(1, "a"), "bottom");
    let mut option = OsString::from("lowerdir=");
    option.push(union.lower(0, ""));
    option.push(":");
    option.push(union.lower(1, ""));
    let read_only = Mount::start(&["-o".into(), option.clone()], &union.point());
    assert_eq!(read(union.at("a")), "top");
    assert!(fs::write(union.at("b"), "x").is_err());
    read_only.umount();
    option.push(",upperdir=");
    option.push(union.upper(""));
    option.push(",workdir=");
    option.push(union.work(""));
    let mount = Mount::start(&["-o".into(), option], &union.point());
    append(union.at("a"), "!");
    assert_eq!(read(union.at("a")), "top!");
    mount.umount();
    assert_eq!(read(union.upper("a")), "top!");
}

fn colons_in_paths() {
    let union = Union::new(1);
    let odd = union.root().join("a:b, c");
    put(odd.join("file"), "x");
    put(union.lower(0, "other"), "x");
    let mut option = OsString::from("lowerdir=");
    option.push(union.root());
    option.push("/a\\:b\\, c:");
    option.push(union.lower(0, ""));
    for arguments in [
        vec!["-o".into(), option],
        vec!["--lower".into(), odd.clone().into(), "--lower".into(), union.lower(0, "").into()],
    ] {
        let mount = Mount::start(&arguments, &union.point());
        assert_eq!(names(union.at("")), ["file", "other"]);
        mount.umount();
    }
    let point = union.root().join("mount:point, too");
    make_dir(&point);
    let mount = Mount::start(&["--lower".into(), odd.into()], &point);
    assert_eq!(names(&point), ["file"]);
    mount.umount();
}

fn a_work_directory_is_made() {
    let union = Union::new(1);
    put(union.lower(0, "file"), "x");
    fs::remove_dir(union.work("")).expect("rmdir");
    let before = names(union.root());
    let arguments: Vec<OsString> =
        vec!["--lower".into(), union.lower(0, "").into(), "--upper".into(), union.upper("").into()];
    for _ in 0..2 {
        let mount = Mount::start(&arguments, &union.point());
        append(union.at("file"), "y");
        mount.umount();
    }
    assert_eq!(read(union.upper("file")), "xyy");
    let after = names(union.root());
    assert_eq!(after.len(), before.len() + 1, "one work directory beside upper: {after:?}");
}

fn foreground() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "x");
    union.mount_foreground();
    assert!(eventually(10, || exists(union.at("file"))));
    append(union.at("file"), "y");
    layerfs([OsString::from("umount"), union.point().into()]).success();
    let status = union.mounted().foreground_status().expect("it ends");
    assert!(status.success(), "{status}");
    union.umount();
    assert_eq!(read(union.upper("file")), "xy");
}

fn sigterm_unmounts() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "x");
    union.mount();
    append(union.at("file"), "y");
    put(union.at("new"), "new");
    union.mounted().signal(Signal::SIGTERM);
    assert!(eventually(10, || mounted_on(&union.point()).is_none()), "unmounted");
    let mark = union.point().into_os_string();
    assert!(eventually(10, || processes_of(&mark).is_empty()), "the daemon ends");
    union.umount();
    assert_eq!(read(union.upper("file")), "xy");
    assert_eq!(read(union.upper("new")), "new");
    assert!(!exists(union.work("work/incompat/layerfs")), "a clean end");
}

fn sigint_unmounts_in_the_foreground() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "x");
    union.mount_foreground();
    append(union.at("file"), "y");
    union.mounted().signal(Signal::SIGINT);
    let status = union.mounted().foreground_status().expect("it ends");
    assert!(status.success(), "{status}");
    assert!(mounted_on(&union.point()).is_none());
    union.umount();
    assert_eq!(read(union.upper("file")), "xy");
}

/// The mount goes away from the tree, and the daemon serves on to the last user.
fn sigterm_while_busy() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "content");
    union.mount();
    let file = edit(union.at("file"));
    assert_eq!(read_all(&file), "content");
    union.mounted().signal(Signal::SIGTERM);
    assert!(eventually(10, || mounted_on(&union.point()).is_none()), "detached");
    assert_eq!(read_all(&file), "content");
    file.set_len(3).expect("a change");
    assert_eq!(read_all(&file), "con");
    let mark = union.point().into_os_string();
    assert_eq!(processes_of(&mark).len(), 1, "the daemon serves on");
    drop(file);
    assert!(eventually(10, || processes_of(&mark).is_empty()), "the daemon ends");
    union.umount();
    assert_eq!(read(union.upper("file")), "con");
}

/// As container engines do it: a lazy umount(2), and at once a mount of the same upper again.
fn unmounted_behind_its_back() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "x");
    for round in 1..=5 {
        union.mount();
        append(union.at("file"), "y");
        let flags = if round % 2 == 0 { MntFlags::empty() } else { MntFlags::MNT_DETACH };
        assert!(eventually(1, || umount2(&union.point(), flags).is_ok()), "umount");
        let again = Mount::start(&union.command_line(), &union.root().join("mnt"));
        assert_eq!(read(union.at("file")).len(), 1 + round);
        again.umount();
        union.umount();
    }
}

fn unmounting_and_mounting_at_once() {
    let mut union = Union::new(2);
    put(union.lower(1, "file"), "x");
    for round in 0..15 {
        union.mount();
        assert_eq!(read(union.at("file")).len(), 1 + round);
        append(union.at("file"), "y");
        union.umount();
    }
}

fn a_killed_daemon_loses_nothing_that_was_closed() {
    let mut union = Union::new(1);
    for i in 0..10 {
        put(union.lower(0, &format!("d/file{i}")), "lower");
    }
    union.mount();
    for i in 0..10 {
        append(union.at(&format!("d/file{i}")), " and upper");
        put(union.at(&format!("new{i}")), "new");
    }
    fs::remove_file(union.at("d/file9")).expect("remove");
    union.mounted().signal(Signal::SIGKILL);
    union.umount_dead();
    union.mount();
    for i in 0..9 {
        assert_eq!(read(union.at(&format!("d/file{i}"))), "lower and upper");
        assert_eq!(read(union.at(&format!("new{i}"))), "new");
    }
    assert!(!exists(union.at("d/file9")));
    union.remount();
    assert_eq!(names(union.at("d")).len(), 9);
    union.umount();
}

fn a_mount_in_use_stays() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "content");
    union.mount();
    let file = edit(union.at("file"));
    let point = union.point().into_os_string();
    let refused = layerfs(["umount".into(), point.clone()]);
    assert!(!refused.status.success());
    assert_eq!(refused.stderr.trim_end().lines().count(), 1, "{refused:?}");
    assert!(refused.stderr.contains(point.to_str().expect("a path in ASCII")), "{refused:?}");
    assert_eq!(read(union.at("file")), "content", "nothing has happened");
    layerfs(["umount".into(), "--lazy".into(), point.clone()]).success();
    assert!(mounted_on(&union.point()).is_none());
    assert_eq!(read_all(&file), "content");
    drop(file);
    assert!(eventually(10, || processes_of(&point).is_empty()), "the daemon ends");
    union.umount();
}

fn one_upper_one_mount() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "x");
    union.mount();
    append(union.at("file"), "y");
    let second = union.root().join("second");
    make_dir(&second);
    let refused = Mount::attempt(&union.command_line(), &second);
    let refused = refused.err().expect("an upper that a live mount uses");
    assert_eq!(refused.stderr.trim_end().lines().count(), 1, "{refused:?}");
    let upper = union.upper("").into_os_string().into_string().expect("a path in ASCII");
    assert!(refused.stderr.contains(&upper), "{refused:?}");
    append(union.at("file"), "z");
    assert_eq!(read(union.at("file")), "xyz", "the first mount works on");
    union.umount();
    let mount = Mount::start(&union.command_line(), &second);
    assert_eq!(read(second.join("file")), "xyz");
    mount.umount();
}

fn two_unions_share_lowers() {
    let mut one = Union::new(1);
    put(one.lower(0, "file"), "x");
    let mut two = Union::new(0).lower_in(&one.lower(0, ""));
    let before = one.lower_trees();
    one.mount();
    two.mount();
    append(one.at("file"), "1");
    append(two.at("file"), "2");
    assert_eq!((read(one.at("file")), read(two.at("file"))), ("x1".into(), "x2".into()));
    two.umount();
    one.umount();
    one.assert_lowers(&before);
}

fn statistics() {
    let mut union = Union::new(2);
    for i in 0..50 {
        put(union.lower(i % 2, &format!("d/{i}")), "0123456789");
    }
    union.mount();
    let first = union.stats();
    for i in 0..50 {
        assert_eq!(read(union.at(&format!("d/{i}"))).len(), 10);
    }
    append(union.at("d/1"), "x");
    fs::rename(union.at("d"), union.at("e")).expect("rename");
    let second = union.stats();
    let number = |value: &Value, path: &str| {
        value.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} in {value:#}"))
    };
    let layers = second["layers"].as_array().expect("layers");
    let roles: Vec<&str> = layers.iter().filter_map(|layer| layer["role"].as_str()).collect();
    assert_eq!(roles, ["upper", "lower", "lower"]);
    let paths: Vec<&str> = layers.iter().filter_map(|layer| layer["path"].as_str()).collect();
    let expected: Vec<String> = [union.upper(""), union.lower(0, ""), union.lower(1, "")]
        .map(|path| path.to_string_lossy().into_owned())
        .into();
    assert_eq!(paths, expected);
    assert!(layers.iter().all(|layer| layer["filesystem"].is_string()));
    assert!(second["version"].is_string());
    assert!(second["options"].is_object());
    assert!(second["operations"].as_object().is_some_and(|all| !all.is_empty()), "{second:#}");
    for path in ["/cache/hits", "/cache/misses", "/cache/entries", "/cache/capacity", "/descriptors"] {
        number(&second, path);
    }
    assert!(number(&second, "/inodes") >= number(&first, "/inodes") + 50, "{second:#}");
    assert!(number(&second, "/resident_bytes") > 100_000);
    let sum = |value: &Value, path: &str| -> u64 {
        let counts = value.pointer(path).and_then(Value::as_object).expect("counters");
        counts.values().filter_map(Value::as_u64).sum()
    };
    assert!(sum(&second, "/copy_ups") > sum(&first, "/copy_ups"), "{second:#}");
    assert!(sum(&second, "/copy_up_bytes") >= 10, "{second:#}");
    let text = layerfs(["stats".into(), union.point().into_os_string()]).success().stdout;
    assert!(expected.iter().all(|path| text.contains(path)), "{text}");
    union.umount();
}

fn descriptors_are_not_kept() {
    let mut union = Union::new(2);
    for i in 0..3000 {
        put(union.lower(i % 2, &format!("d{}/sub{}/{i}", i % 7, i % 300)), "x");
    }
    union.mount();
    let daemon = union.mounted().daemon();
    let count = || open_descriptors(daemon);
    run(Command::new("find").arg(union.point()).arg("-ls")).success();
    assert!(count() < 400, "{} descriptors after a walk", count());
    for i in (0..3000).step_by(3) {
        append(union.at(&format!("d{}/sub{}/{i}", i % 7, i % 300)), "y");
    }
    assert!(count() < 400, "{} descriptors after writing", count());
    union.umount();
}

/// The daemon must not keep its caller's directory or terminal in use.
fn the_working_directory_is_not_held() {
    let union = Union::new(1);
    put(union.lower(0, "file"), "x");
    let place = union.root().join("place");
    make_dir(&place);
    let mount = Mount::start_in(&place, &union.command_line(), &union.point());
    let daemon = mount.daemon();
    let link = |what: &str| fs::read_link(format!("/proc/{daemon}/{what}")).expect("readlink");
    assert_eq!(link("cwd"), std::path::PathBuf::from("/"));
    for fd in 0..3 {
        assert_eq!(link(&format!("fd/{fd}")), std::path::PathBuf::from("/dev/null"), "{fd}");
    }
    mount.umount();
}

fn an_idle_mount_ends_at_once() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "x");
    union.mount();
    assert_eq!(read(union.at("file")), "x");
    let start = Instant::now();
    layerfs([OsString::from("umount"), union.point().into()]).success();
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    union.umount();
}

/// A mount namespace made meanwhile, by a container for example, has a copy of the mount: the daemon serves that on, and
/// who unmounts must not wait for it without end.
fn a_mount_that_another_namespace_holds() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "x");
    union.mount();
    // It holds copies of other tests' mounts too, whose daemons have to end: it lets go of those.
    let script = "grep -F ' fuse.layerfs ' /proc/self/mountinfo | cut -d' ' -f5 | grep -vFx \"$0\" | xargs -r umount -l; \
                  exec sleep 60";
    let mut holder =
        Command::new("unshare").args(["-m", "sh", "-c", script]).arg(union.point()).spawn().expect("unshare");
    let own = fs::read_link("/proc/self/ns/mnt").expect("our namespace");
    let other = format!("/proc/{}/ns/mnt", holder.id());
    let entered = eventually(10, || fs::read_link(&other).is_ok_and(|namespace| namespace != own));
    let point = union.point();
    let ended = try_run(Command::new(layerfs_binary()).arg("umount").arg(&point), Duration::from_secs(20));
    holder.kill().expect("end the holder");
    holder.wait().expect("the holder");
    assert!(entered, "another namespace");
    ended.unwrap_or_else(|fault| panic!("{fault}"));
    assert!(mounted_on(&point).is_none());
    union.umount();
}
