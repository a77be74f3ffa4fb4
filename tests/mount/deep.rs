//! Many layers, deep paths, and mountpoints that lie inside a layer.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fchmodat, fstatat, mkdirat};

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::may_mount;
use crate::common::mount::{Mount, run};
use crate::common::others::OtherMount;
use crate::common::sys::names_at;
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(one_lower),
        t!(two_lowers),
        t!(sixty_four_lowers),
        t!(three_hundred_lowers).seconds(240),
        t!(deep_paths_in_lower),
        t!(deep_paths_in_upper),
        t!(deep_paths_after_a_rename),
        t!(a_mountpoint_inside_a_lower),
        t!(a_mountpoint_inside_upper).root(),
        t!(a_mountpoint_that_is_a_layer).root(),
        t!(the_root_directory_as_lower).root(),
        t!(an_upper_inside_a_lower),
        t!(mounts_inside_a_layer_are_not_entered).root(),
        t!(layers_given_through_symlinks),
    ]
}

fn one_lower() {
    many(1);
}

fn two_lowers() {
    many(2);
}

fn sixty_four_lowers() {
    many(64);
}

fn three_hundred_lowers() {
    many(300);
}

fn many(count: usize) {
    let mut union = Union::new(count);
    for i in 0..count {
        put(union.lower(i, &format!("d/own{i}")), i.to_string());
        put(union.lower(i, "d/everywhere"), i.to_string());
        put(union.lower(i, &format!("only{i}/sub/file")), i.to_string());
        put(union.lower(i, &format!("pair{}/{i}", i / 2)), "x");
        if i % 3 == 0 && i + 1 < count {
            whiteout(union.lower(i, &format!("d/own{}", i + 1)));
        }
    }
    let before = union.lower_trees();
    union.mount();
    let hidden = |i: usize| i > 0 && (i - 1).is_multiple_of(3);
    let shown = (0..count).filter(|i| !hidden(*i)).count();
    assert_eq!(names(union.at("d")).len(), shown + 1);
    assert_eq!(read(union.at("d/everywhere")), "0");
    for i in 0..count {
        assert_eq!(exists(union.at(&format!("d/own{i}"))), !hidden(i), "{i}");
        assert_eq!(read(union.at(&format!("only{i}/sub/file"))), i.to_string());
        append(union.at(&format!("only{i}/sub/file")), "!");
    }
    fs::rename(union.at("d"), union.at("e")).expect("rename a directory of all layers");
    assert_eq!(names(union.at("e")).len(), shown + 1);
    fs::remove_file(union.at("e/everywhere")).expect("remove");
    union.remount();
    assert_eq!(names(union.at("e")).len(), shown);
    let last = count - 1;
    assert_eq!(read(union.at(&format!("only{last}/sub/file"))), format!("{last}!"));
    fs::remove_dir_all(union.at("e")).expect("remove all");
    union.umount();
    union.assert_lowers(&before);
}

const DEPTH: usize = 40;

fn part() -> String {
    "d".repeat(200)
}

/// Goes `depth` directories down from `top`, making them on the way if `make`.
fn descend(top: &Path, depth: usize, make: bool) -> File {
    let mut here = open(top);
    let name = part();
    for level in 0..depth {
        if make {
            mkdirat(&here, name.as_str(), Mode::from_bits_truncate(0o755))
                .unwrap_or_else(|e| panic!("mkdir at level {level}: {e}"));
        }
        let next = openat(&here, name.as_str(), OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())
            .unwrap_or_else(|e| panic!("level {level}: {e}"));
        here = File::from(next);
    }
    here
}

fn file_at(directory: &File, name: &str, flags: OFlag) -> File {
    let mode = Mode::from_bits_truncate(0o644);
    File::from(openat(directory, name, flags, mode).unwrap_or_else(|e| panic!("{name}: {e}")))
}

fn write_at(directory: &File, name: &str, content: &str) {
    let mut file = file_at(directory, name, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_APPEND);
    file.write_all(content.as_bytes()).expect("write");
}

fn read_at(directory: &File, name: &str) -> String {
    let mut text = String::new();
    file_at(directory, name, OFlag::O_RDONLY).read_to_string(&mut text).expect("read");
    text
}

fn deep_paths_in_lower() {
    let mut union = Union::new(2);
    write_at(&descend(&union.lower(1, ""), DEPTH, true), "file", "deep");
    write_at(&descend(&union.lower(0, ""), DEPTH, true), "other", "deep");
    union.mount();
    let deep = descend(&union.at(""), DEPTH, false);
    let expected: [OsString; 2] = ["file".into(), "other".into()];
    assert_eq!(names_at(deep.as_fd()).expect("list"), expected);
    assert_eq!(read_at(&deep, "file"), "deep");
    let number = fstatat(&deep, "file", AtFlags::empty()).expect("stat").st_ino;
    write_at(&deep, "file", ", copied up");
    write_at(&deep, "new", "made");
    assert_eq!(read_at(&deep, "file"), "deep, copied up");
    nix::unistd::unlinkat(&deep, "other", nix::unistd::UnlinkatFlags::NoRemoveDir).expect("unlink");
    drop(deep);
    union.remount();
    let deep = descend(&union.at(""), DEPTH, false);
    assert_eq!(read_at(&deep, "file"), "deep, copied up");
    assert_eq!(fstatat(&deep, "file", AtFlags::empty()).expect("stat").st_ino, number);
    let expected: [OsString; 2] = ["file".into(), "new".into()];
    assert_eq!(names_at(deep.as_fd()).expect("list"), expected);
    drop(deep);
    assert_eq!(read_at(&descend(&union.lower(1, ""), DEPTH, false), "file"), "deep");
    fs::remove_dir_all(union.at(&part())).expect("remove all");
    assert_eq!(names(union.at("")), Vec::<String>::new());
    union.umount();
}

fn deep_paths_in_upper() {
    let mut union = Union::new(1);
    union.mount();
    write_at(&descend(&union.at(""), DEPTH, true), "file", "deep");
    union.remount();
    let deep = descend(&union.at(""), DEPTH, false);
    write_at(&deep, "file", "er");
    assert_eq!(read_at(&deep, "file"), "deeper");
    fchmodat(&deep, "file", Mode::S_IRUSR, nix::sys::stat::FchmodatFlags::FollowSymlink).expect("chmod");
    drop(deep);
    fs::remove_dir_all(union.at(&part())).expect("remove all");
    assert_eq!(names(union.at("")), Vec::<String>::new());
    union.umount();
}

fn deep_paths_after_a_rename() {
    let mut union = Union::new(1);
    let bottom = descend(&union.lower(0, ""), DEPTH, true);
    write_at(&bottom, "file", "deep");
    mkdirat(&bottom, "dir", Mode::S_IRWXU).expect("mkdir");
    union.mount();
    fs::rename(union.at(&part()), union.at("top")).expect("rename the top");
    let deep = descend(&union.at("top"), DEPTH - 1, false);
    assert_eq!(read_at(&deep, "file"), "deep");
    write_at(&deep, "file", "er");
    nix::fcntl::renameat(&deep, "dir", &deep, "renamed").expect("rename at the bottom");
    drop(deep);
    union.remount();
    let deep = descend(&union.at("top"), DEPTH - 1, false);
    assert_eq!(read_at(&deep, "file"), "deeper");
    let expected: [OsString; 2] = ["file".into(), "renamed".into()];
    assert_eq!(names_at(deep.as_fd()).expect("list"), expected);
    drop(deep);
    union.umount();
}

fn a_mountpoint_inside_a_lower() {
    let union = Union::new(2);
    let point = union.lower(0, "a/point");
    make_dir(&point);
    put(union.lower(0, "a/file"), "top");
    put(union.lower(1, "a/point/covered"), "below");
    put(union.lower(1, "b"), "below");
    let mount = Mount::start(&union.command_line(), &point);
    assert_eq!(names(&point), ["a", "b"]);
    assert_eq!(names(point.join("a")), ["file", "point"]);
    // The lower's own directory is there, never the mount in it.
    assert!(names(point.join("a/point")).iter().all(|name| name == "covered"));
    append(point.join("a/file"), "!");
    put(point.join("new"), "x");
    if may_mount() {
        put(point.join("a/point/new"), "x");
    }
    assert_eq!(read(point.join("a/file")), "top!");
    run(Command::new("find").arg(&point)).success();
    mount.umount();
    assert_eq!(read(union.upper("a/file")), "top!");
    assert_eq!(names(&point), Vec::<String>::new());
}

fn a_mountpoint_inside_upper() {
    let union = Union::new(1);
    let point = union.upper("point");
    make_dir(&point);
    put(union.lower(0, "file"), "x");
    let mount = Mount::start(&union.command_line(), &point);
    assert_eq!(names(&point), ["file", "point"]);
    put(point.join("point/inside"), "x");
    append(point.join("file"), "y");
    run(Command::new("find").arg(&point)).success();
    mount.umount();
    assert_eq!(read(union.upper("file")), "xy");
}

fn a_mountpoint_that_is_a_layer() {
    let union = Union::new(2);
    put(union.lower(0, "top"), "x");
    put(union.lower(1, "bottom"), "x");
    put(union.upper("own"), "x");
    for point in [union.lower(0, ""), union.lower(1, ""), union.upper("")] {
        let mount = Mount::start(&union.command_line(), &point);
        assert_eq!(names(&point), ["bottom", "own", "top"], "on {point:?}");
        append(point.join("own"), "y");
        put(point.join("new"), "x");
        fs::remove_file(point.join("new")).expect("remove");
        mount.umount();
    }
    assert_eq!(names(union.lower(0, "")), ["top"]);
    assert_eq!(read(union.upper("own")), "xyyy");
}

/// Upper and mountpoint lie on another filesystem than `/`, or this would be a layer in a layer.
fn the_root_directory_as_lower() {
    let holder = Union::new(0);
    let elsewhere = holder.root().join("elsewhere");
    make_dir(&elsewhere);
    let other = OtherMount::memory("tmpfs", "size=16m", &elsewhere);
    let mut union = Union::new(0).lower_in(Path::new("/")).upper_in(&elsewhere);
    union.mount();
    let expected = names("/");
    assert_eq!(names(union.at("")), expected);
    for directory in ["proc", "sys"] {
        assert_eq!(names(union.at(directory)), Vec::<String>::new(), "a crossed mountpoint");
    }
    assert!(!names(union.at("etc")).is_empty());
    let marker = format!("etc/layerfs-test-{}", std::process::id());
    put(union.at(&marker), "x");
    assert!(!exists(Path::new("/").join(&marker)), "nothing reaches the lower");
    assert_eq!(read(union.upper(&marker)), "x");
    let own = union.point();
    let inside = own.strip_prefix("/").expect("an absolute path");
    if let Ok(found) = fs::metadata(own.join(inside)) {
        assert!(found.is_dir());
        assert_eq!(names(own.join(inside)), Vec::<String>::new());
    }
    run(Command::new("find").arg(union.at("")).args(["-maxdepth", "2"])).success();
    union.umount();
    drop(union);
    drop(other);
}

/// As with `--lower /`: all layers lie in it.
fn an_upper_inside_a_lower() {
    let mut union = Union::new(1);
    let inside = union.lower(0, "var/layers");
    make_dir(&inside);
    put(union.lower(0, "file"), "x");
    union = union.upper_in(&inside);
    union.mount();
    append(union.at("file"), "y");
    put(union.at("var/new"), "new");
    run(Command::new("find").arg(union.at(""))).success();
    assert_eq!(names(union.at("")), ["file", "var"]);
    assert_eq!(read(union.at("file")), "xy");
    union.remount();
    assert_eq!(read(union.at("file")), "xy");
    assert_eq!(read(union.at("var/new")), "new");
    union.umount();
    assert_eq!(read(union.lower(0, "file")), "x");
}

fn mounts_inside_a_layer_are_not_entered() {
    let mut union = Union::new(1);
    make_dir(union.lower(0, "d/crossed"));
    make_dir(union.upper("u/crossed"));
    let mounts = [
        OtherMount::memory("tmpfs", "size=1m", &union.lower(0, "d/crossed")),
        OtherMount::memory("tmpfs", "size=1m", &union.upper("u/crossed")),
    ];
    put(union.lower(0, "d/crossed/inside"), "x");
    put(union.upper("u/crossed/inside"), "x");
    union.mount();
    assert_eq!(names(union.at("d/crossed")), Vec::<String>::new());
    assert_eq!(names(union.at("u/crossed")), Vec::<String>::new());
    assert_eq!(stat(union.at("d/crossed")).dev(), stat(union.at("")).dev());
    put(union.at("d/crossed/new"), "y");
    assert_eq!(names(union.at("d/crossed")), ["new"]);
    union.umount();
    drop(mounts);
}

/// As container engines name them: `l/XXXX`, relative to the working directory.
fn layers_given_through_symlinks() {
    let union = Union::new(2);
    put(union.lower(0, "top"), "x");
    put(union.lower(1, "bottom"), "x");
    make_dir(union.root().join("l"));
    for i in 0..2 {
        let link = union.root().join(format!("l/LAYER{i}"));
        std::os::unix::fs::symlink(format!("../lower{i}"), link).expect("symlink");
    }
    let arguments: Vec<OsString> =
        ["-o", "lowerdir=l/LAYER0:l/LAYER1,upperdir=upper,workdir=work"].map(OsString::from).into();
    let mount = Mount::start_in(union.root(), &arguments, &union.point());
    assert_eq!(names(union.at("")), ["bottom", "top"]);
    append(union.at("top"), "y");
    mount.umount();
    assert_eq!(read(union.upper("top")), "xy");
}
