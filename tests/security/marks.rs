//! Marks that an image or a user planted: they count for what they may, and are plain attributes otherwise.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::{as_user, without_rights};
use crate::common::sys::{get_xattr, list_xattr, remove_xattr, set_xattr};
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(user_marks_in_a_lower_are_plain_attributes).root(),
        t!(trusted_marks_of_files_in_a_lower_count_for_nothing).root(),
        t!(trusted_lowers_are_believed).root(),
        t!(marks_do_not_come_up_with_a_file).root(),
        t!(forged_origins_make_no_two_files_one).root(),
        t!(bad_marks_spoil_only_their_object).root(),
        t!(marks_that_a_user_sets_are_that_users_own).root(),
        t!(marks_that_are_set_with_userxattr).root(),
    ]
}

/// What must not be read through a mark.
const SECRET: &str = "secret";

/// A file of as many zeros as the secret has bytes, which names the secret's as its data.
fn plant(path: PathBuf, namespace: &str, target: &str) {
    put(&path, "\0".repeat(SECRET.len()));
    mark(&path, &format!("{namespace}.overlay.metacopy"), "");
    mark(&path, &format!("{namespace}.overlay.redirect"), target);
}

/// A local user's tree that root mounts over the system's: the marks are in the namespace that every user can write.
fn user_marks_in_a_lower_are_plain_attributes() {
    let mut union = Union::new(2);
    put(union.lower(1, "etc/shadow"), SECRET);
    chmod(union.lower(1, "etc/shadow"), 0o600);
    put(union.lower(1, "etc/private/key"), SECRET);
    put(union.lower(1, "covered"), SECRET);
    plant(union.lower(0, "copy"), "user", "/etc/shadow");
    put(union.lower(0, "covered"), "\0".repeat(SECRET.len()));
    mark(union.lower(0, "covered"), "user.overlay.metacopy", "");
    make_dir(union.lower(0, "dir"));
    mark(union.lower(0, "dir"), "user.overlay.redirect", "/etc/private");
    plant(union.upper("in-upper"), "user", "/etc/shadow");
    make_dir(union.upper("dir-in-upper"));
    mark(union.upper("dir-in-upper"), "user.overlay.redirect", "/etc/private");
    let before = union.lower_trees();
    union.mount();
    let zeros = "\0".repeat(SECRET.len());
    for round in ["as it is", "copied up", "mounted again"] {
        for name in ["copy", "in-upper", "covered"] {
            assert_eq!(read(union.at(name)), zeros, "{name} {round}");
            assert_eq!(marked(union.at(name), "user.overlay.metacopy").as_deref(), Some(""), "{name} {round}");
        }
        for name in ["dir", "dir-in-upper"] {
            assert_eq!(names(union.at(name)), Vec::<String>::new(), "{name} {round}");
            assert_eq!(marked(union.at(name), "user.overlay.redirect").as_deref(), Some("/etc/private"), "{round}");
        }
        match round {
            "as it is" => ["copy", "in-upper", "covered", "dir"].iter().for_each(|name| chmod(union.at(name), 0o711)),
            _ => union.remount(),
        }
    }
    as_user(1000, 1000, || fails(fs::read(union.at("etc/shadow")), Errno::EACCES));
    union.umount();
    union.assert_lowers(&before);
}

/// They lead nowhere. Nor are the zeros shown that stand where the data should be: who has such a layer with good reason
/// would take them for it.
fn trusted_marks_of_files_in_a_lower_count_for_nothing() {
    let mut union = trusted_layers(&["--metacopy", "on"]);
    union.mount();
    for round in 0..3 {
        for name in ["copy", "covered"] {
            fails(fs::read(union.at(name)), Errno::EIO);
            assert_eq!(stat(union.at(name)).len(), SECRET.len() as u64, "{name}, round {round}");
            let shown = list_xattr(&union.at(name)).expect("list");
            assert_eq!(shown, Vec::<OsString>::new(), "{name}: marks are not shown");
            fails(get_xattr(&union.at(name), "trusted.overlay.metacopy"), Errno::ENODATA);
        }
        match round {
            0 => ["copy", "covered"].iter().for_each(|name| chmod(union.at(name), 0o600)),
            _ => union.remount(),
        }
    }
    fs::rename(union.at("copy"), union.at("moved")).expect("rename");
    union.remount();
    fails(fs::read(union.at("moved")), Errno::EIO);
    for name in ["moved", "covered"] {
        put(union.at(name), "new");
        assert_eq!(read(union.at(name)), "new");
    }
    union.remount();
    assert_eq!((read(union.at("moved")), read(union.at("covered"))), ("new".to_owned(), "new".to_owned()));
    union.umount();
}

fn trusted_layers(arguments: &[&str]) -> Union {
    let union = Union::new(2).arguments(arguments);
    put(union.lower(1, "etc/shadow"), SECRET);
    put(union.lower(1, "covered"), SECRET);
    plant(union.lower(0, "copy"), "trusted", "/etc/shadow");
    put(union.lower(0, "covered"), "\0".repeat(SECRET.len()));
    mark(union.lower(0, "covered"), "trusted.overlay.metacopy", "");
    union
}

/// The other side of the option: an upper that became a lower has such marks with good reason.
fn trusted_lowers_are_believed() {
    let mut union = trusted_layers(&["--trusted-lowers"]);
    let before = union.lower_trees();
    union.mount();
    for name in ["copy", "covered"] {
        assert_eq!(read(union.at(name)), SECRET, "{name}");
        append(union.at(name), "!");
    }
    union.remount();
    for name in ["copy", "covered"] {
        assert_eq!(read(union.at(name)), format!("{SECRET}!"), "{name}");
    }
    union.umount();
    union.assert_lowers(&before);
}

/// In upper they would count.
fn marks_do_not_come_up_with_a_file() {
    let mut union = trusted_layers(&["--metacopy", "on"]);
    put(union.lower(1, "elsewhere/file"), SECRET);
    make_dir(union.lower(0, "dir"));
    for (name, value) in [("opaque", "n"), ("redirect", "/elsewhere"), ("impure", "y"), ("nlink", "U+7")] {
        mark(union.lower(0, "dir"), &format!("trusted.overlay.{name}"), value);
    }
    for (name, value) in [("origin", "x"), ("nlink", "U+7"), ("layerfs.device", "y"), ("whiteout", "y")] {
        mark(union.lower(0, "copy"), &format!("trusted.overlay.{name}"), value);
    }
    union.mount();
    assert!(stat(union.at("copy")).is_file(), "no device");
    chmod(union.at("copy"), 0o600);
    chmod(union.at("dir"), 0o700);
    let names_of = |path: PathBuf| list_xattr(&path).expect("list");
    union.umount();
    // A change of metadata makes a metadata copy; where its data is, it is not told.
    let ours: [OsString; 3] = ["origin", "impure", "metacopy"].map(|name| format!("trusted.overlay.{name}").into());
    for name in ["copy", "dir"] {
        for mark in names_of(union.upper(name)) {
            assert!(ours.contains(&mark), "{name} has {mark:?}");
        }
    }
    assert_ne!(marked(union.upper("copy"), "trusted.overlay.origin").as_deref(), Some("x"));
}

/// Origins of files with one name, with several and of directories, in upper and in a lower, in every order of lookups.
fn forged_origins_make_no_two_files_one() {
    let mut union = Union::new(2);
    for name in ["single", "first", "dir/in", "other"] {
        put(union.lower(1, name), name);
    }
    fs::hard_link(union.lower(1, "first"), union.lower(1, "second")).expect("link");
    union.mount();
    for name in ["single", "first", "dir/in"] {
        append(union.at(name), "!");
    }
    union.umount();
    let origin = |name: &str| get_xattr(&union.upper(name), "trusted.overlay.origin").expect("an origin");
    let origins = [origin("single"), origin("first"), origin("dir")];
    let mut forged = Vec::new();
    for (i, origin) in origins.iter().enumerate() {
        for (layer, kind) in [("upper", "file"), ("upper", "dir"), ("lower", "file"), ("lower", "dir")] {
            let name = format!("forged-{layer}-{kind}-{i}");
            let path = if layer == "upper" { union.upper(&name) } else { union.lower(0, &name) };
            match kind {
                "file" => put(&path, &name),
                _ => put(path.join("own"), &name),
            }
            set_xattr(&path, "trusted.overlay.origin", origin, 0).expect("forge");
            forged.push(name);
        }
    }
    let honest = ["single", "first", "dir", "dir/in", "other"].map(str::to_owned);
    for reverse in [false, true] {
        union.mount();
        let mut all: Vec<String> = honest.iter().chain(&forged).cloned().collect();
        if reverse {
            all.reverse();
        }
        let mut numbers: Vec<u64> = all.iter().map(|name| ino(union.at(name))).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), all.len(), "reverse: {reverse}");
        assert_eq!(ino(union.at("second")), ino(union.at("first")), "those are one file");
        assert_eq!(read(union.at("second")), "first!");
        assert_eq!(names(union.at("dir")), ["in"]);
        for name in forged.iter().filter(|name| name.contains("file")) {
            assert_eq!(&read(union.at(name)), name);
            append(union.at(name), "+");
            assert_eq!(read(union.at(name)), format!("{name}+"));
            nix::unistd::truncate(&union.at(name), name.len() as i64).expect("truncate");
        }
        for name in forged.iter().filter(|name| name.contains("dir")) {
            assert_eq!(names(union.at(name)), ["own"]);
        }
        for name in ["single", "first", "dir/in"] {
            assert_eq!(read(union.at(name)), format!("{name}!"));
        }
        union.umount();
    }
}

/// Values that no overlay writes, for every mark there is, in upper and in a lower.
fn bad_marks_spoil_only_their_object() {
    let bad: [&[u8]; 7] = [b"", b"\0", b"\xff\xff\xff\xff", b"../..", b"/", b"U+99999999999999999999", &[0; 300]];
    let kinds = ["opaque", "redirect", "origin", "impure", "metacopy", "nlink", "whiteout", "layerfs.device"];
    let mut union = Union::new(2);
    put(union.lower(1, "below/file"), "x");
    let mut spoilt = Vec::new();
    for (i, value) in bad.iter().enumerate() {
        for kind in kinds {
            for (place, root) in [("up", union.upper("")), ("low", union.lower(0, ""))] {
                let name = format!("{place}-{kind}-{i}");
                put(root.join(format!("f-{name}")), "content");
                put(root.join(format!("d-{name}/in")), "content");
                for object in [format!("f-{name}"), format!("d-{name}")] {
                    let key = format!("trusted.overlay.{kind}");
                    set_xattr(&root.join(&object), &key, value, 0).unwrap_or_else(|e| panic!("{object}: {e}"));
                    spoilt.push(object);
                }
            }
        }
    }
    let before = union.lower_trees();
    union.mount();
    for _ in 0..2 {
        assert_eq!(names(union.at("")).len(), spoilt.len() + 1, "bad marks stop no listing");
        for name in &spoilt {
            let path = union.at(name);
            let read = if name.starts_with("d-") { fs::read(path.join("in")) } else { fs::read(&path) };
            match read {
                // Its presence is the mark.
                Err(error) if name.starts_with("f-up-layerfs.device") => {
                    assert_eq!(error.raw_os_error(), Some(libc::ENXIO), "{name}: {error}");
                }
                Ok(content) => assert_eq!(content, b"content", "{name}"),
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}: {error}"),
            }
            // Whatever a user does to it: done, or EIO.
            for result in [
                fs::set_permissions(&path, stat(union.at("below")).permissions()),
                fs::rename(&path, union.at("moved")),
                fs::rename(union.at("moved"), &path),
            ] {
                if let Err(error) = result {
                    let code = error.raw_os_error();
                    assert!([Some(libc::EIO), Some(libc::ENOENT)].contains(&code), "{name}: {error}");
                }
            }
        }
        append(union.at("below/file"), "y");
        put(union.at("new"), "the mount works on");
        fs::remove_file(union.at("new")).expect("remove");
        union.remount();
    }
    assert_eq!(read(union.at("below/file")), "xyy");
    union.umount();
    union.assert_lowers(&before);
}

const MARKS: [(&str, &str); 9] = [
    ("opaque", "y"),
    ("redirect", "/secret"),
    ("origin", "x"),
    ("impure", "y"),
    ("metacopy", ""),
    ("nlink", "U+7"),
    ("whiteout", "y"),
    ("layerfs.device", "y"),
    ("overlay.opaque", "y"),
];

/// An ordinary user sets every name that is a mark somewhere, on objects of each layer. They come back as they were set, they
/// change nothing of what the union shows, and they can be removed again.
fn marks_that_a_user_sets_are_that_users_own() {
    users_marks(&[]);
}

/// There the users' own names are in the namespace of the mount's marks.
fn marks_that_are_set_with_userxattr() {
    users_marks(&["--userxattr"]);
}

fn users_marks(arguments: &[&str]) {
    let mut union = Union::new(2).arguments(arguments);
    put(union.lower(1, "secret"), SECRET);
    for object in ["low", "merged"] {
        put(union.lower(1, &format!("{object}-dir/in")), "in");
        put(union.lower(1, &format!("{object}-file")), "lower");
    }
    put(union.lower(0, "merged-dir/top"), "top");
    put(union.upper("up-dir/in"), "in");
    put(union.upper("up-file"), "upper");
    for object in ["low-dir", "low-file", "merged-dir", "merged-file"] {
        chown(union.lower(1, object), 1000, 1000);
    }
    chown(union.lower(0, "merged-dir"), 1000, 1000);
    for object in ["up-dir", "up-file"] {
        chown(union.upper(object), 1000, 1000);
    }
    // Whiteouts in xattr form count on empty files.
    put(union.lower(1, "low-dir/empty"), "");
    chown(union.lower(1, "low-dir/empty"), 1000, 1000);
    let objects = ["low-dir", "merged-dir", "up-dir", "low-file", "merged-file", "up-file", "low-dir/empty"];
    union.mount();
    let all: Vec<(String, &str)> = ["user.overlay.", "user.fuseoverlayfs.", "user.layerfs."]
        .iter()
        .flat_map(|prefix| MARKS.map(|(mark, value)| (format!("{prefix}{mark}"), value)))
        .chain([("user.overlay.opaque".to_owned(), "x")])
        .collect();
    without_rights(1000, 1000, || {
        for object in objects {
            all.iter().for_each(|(name, _)| fails(get_xattr(&union.at(object), name), Errno::ENODATA));
            for (name, value) in &all {
                set_xattr(&union.at(object), name, value.as_bytes(), 0).unwrap_or_else(|e| panic!("{name}: {e}"));
            }
            fails(set_xattr(&union.at(object), "trusted.overlay.opaque", b"y", 0), Errno::EPERM);
            fails(get_xattr(&union.at(object), "trusted.overlay.origin"), Errno::ENODATA);
        }
    });
    for round in ["set", "mounted again", "once more"] {
        assert_eq!(names(union.at("low-dir")), ["empty", "in"], "{round}");
        assert_eq!(names(union.at("merged-dir")), ["in", "top"], "{round}");
        assert_eq!(names(union.at("up-dir")), ["in"], "{round}");
        assert_eq!(read(union.at("low-file")), "lower", "{round}");
        assert_eq!(read(union.at("up-file")), "upper", "{round}");
        for object in objects {
            let mut expected: Vec<OsString> = all[..all.len() - 1].iter().map(|(name, _)| name.into()).collect();
            expected.sort();
            assert_eq!(list_xattr(&union.at(object)).expect("list"), expected, "{object} {round}");
            assert_eq!(marked(union.at(object), "user.overlay.redirect").as_deref(), Some("/secret"), "{round}");
            assert_eq!(marked(union.at(object), "user.overlay.opaque").as_deref(), Some("x"), "{round}");
        }
        union.remount();
    }
    for object in objects {
        for (name, _) in &all[..all.len() - 1] {
            remove_xattr(&union.at(object), name).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        assert_eq!(list_xattr(&union.at(object)).expect("list"), Vec::<OsString>::new(), "{object}");
    }
    union.remount();
    assert_eq!(names(union.at("merged-dir")), ["in", "top"]);
    union.umount();
}
