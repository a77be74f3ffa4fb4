//! Marks in layers: whiteouts and opaque directories in every form, bad redirects, nested unions.

use std::fs;

use nix::errno::Errno;

use crate::common::Test;
use crate::common::files::*;
use crate::common::sys;
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(whiteouts_in_every_form).root(),
        t!(whiteouts_in_upper),
        t!(opaque_directories_in_every_form).root(),
        t!(a_bad_redirect_spoils_only_itself).root(),
        t!(names_that_look_like_marks_hide_nothing).root(),
        t!(unions_nest).root(),
    ]
}

fn whiteouts_in_every_form() {
    let mut union = Union::new(3);
    for name in ["device", "aufs", "trusted", "user", "kept"] {
        put(union.lower(1, &format!("d/{name}")), "below");
        put(union.lower(2, &format!("d/dir-{name}/inside")), "below");
    }
    let top = |name: &str| union.lower(0, &format!("d/{name}"));
    for prefix in ["", "dir-"] {
        whiteout(top(&format!("{prefix}device")));
        put(top(&format!(".wh.{prefix}aufs")), "");
        put(top(&format!("{prefix}trusted")), "");
        mark(top(&format!("{prefix}trusted")), "trusted.overlay.whiteout", "y");
        put(top(&format!("{prefix}user")), "");
        mark(top(&format!("{prefix}user")), "user.overlay.whiteout", "y");
    }
    // "There are whiteouts in here", and not: "it hides what is below".
    mark(union.lower(0, "d"), "trusted.overlay.opaque", "x");
    mark(union.lower(0, "d"), "user.overlay.opaque", "x");
    let before = union.lower_trees();
    union.mount();

    assert_eq!(names(union.at("d")), ["dir-kept", "kept"]);
    for name in ["device", "aufs", "trusted", "user", ".wh.aufs"] {
        fails(fs::symlink_metadata(union.at(&format!("d/{name}"))), Errno::ENOENT);
        fails(fs::symlink_metadata(union.at(&format!("d/dir-{name}/inside"))), Errno::ENOENT);
    }
    for name in ["device", "aufs", "trusted", "user"] {
        put(union.at(&format!("d/{name}")), "again");
        make_dir(union.at(&format!("d/dir-{name}")));
    }
    assert_eq!(names(union.at("d/dir-aufs")), Vec::<String>::new());
    assert_eq!(read(union.at("d/aufs")), "again");
    assert_eq!(names(union.at("d")).len(), 10);
    union.remount();
    assert_eq!(names(union.at("d/dir-user")), Vec::<String>::new());
    assert_eq!(read(union.at("d/device")), "again");
    union.umount();
    union.assert_lowers(&before);
}

fn whiteouts_in_upper() {
    let mut union = Union::new(1);
    for name in ["device", "aufs", "kept"] {
        put(union.lower(0, &format!("d/{name}")), "below");
    }
    whiteout(union.upper("d/device"));
    put(union.upper("d/.wh.aufs"), "");
    union.mount();
    assert_eq!(names(union.at("d")), ["kept"]);
    fails(fs::symlink_metadata(union.at("d/.wh.aufs")), Errno::ENOENT);
    put(union.at("d/aufs"), "again");
    put(union.at("d/device"), "again");
    union.remount();
    assert_eq!(names(union.at("d")), ["aufs", "device", "kept"]);
    assert_eq!(read(union.at("d/aufs")), "again");
    fs::remove_file(union.at("d/aufs")).expect("remove");
    union.remount();
    assert_eq!(names(union.at("d")), ["device", "kept"]);
    union.umount();
}

fn opaque_directories_in_every_form() {
    let mut union = Union::new(3);
    let forms = [
        ("trusted", Some("trusted.overlay.opaque")),
        ("user", Some("user.overlay.opaque")),
        ("fuse-overlayfs", Some("user.fuseoverlayfs.opaque")),
        ("aufs", None),
    ];
    for (name, form) in forms {
        for place in ["lower", "upper"] {
            let path = format!("{place}/{name}");
            put(union.lower(2, &format!("{path}/bottom")), "hidden");
            put(union.lower(1, &format!("{path}/middle")), "hidden");
            let opaque = match place {
                "lower" => union.lower(0, &path),
                _ => union.upper(&path),
            };
            put(opaque.join("top"), "shown");
            match form {
                Some(xattr) => mark(&opaque, xattr, "y"),
                None => put(opaque.join(".wh..wh..opq"), ""),
            }
        }
    }
    put(union.upper("lower/trusted/above"), "shown");
    put(union.lower(0, "no/top"), "shown");
    put(union.lower(1, "no/middle"), "shown");
    mark(union.lower(0, "no"), "trusted.overlay.opaque", "n");
    union.mount();
    for (name, _) in forms {
        let mut expected = vec!["top"];
        assert_eq!(names(union.at(&format!("upper/{name}"))), expected, "{name} in upper");
        if name == "trusted" {
            expected.insert(0, "above");
        }
        assert_eq!(names(union.at(&format!("lower/{name}"))), expected, "{name} in a lower");
        fails(fs::metadata(union.at(&format!("lower/{name}/bottom"))), Errno::ENOENT);
    }
    assert_eq!(names(union.at("no")), ["middle", "top"]);
    union.umount();
}

fn a_bad_redirect_spoils_only_itself() {
    let mut union = Union::new(1);
    put(union.lower(0, "secret/file"), "x");
    for (i, bad) in ["../secret", "/../secret", "/secret/../..", "a/b", "", "/", "//secret"].into_iter().enumerate() {
        put(union.upper(&format!("bad{i}/own")), "x");
        mark(union.upper(&format!("bad{i}")), "trusted.overlay.redirect", bad);
    }
    put(union.lower(0, "good/file"), "x");
    union.mount();
    assert_eq!(names(union.at("good")), ["file"]);
    assert_eq!(names(union.at("")).len(), 9, "bad marks stop no listing");
    for i in 0..7 {
        let path = union.at(&format!("bad{i}"));
        // Either refused, or the mark counts for nothing; it never leads anywhere.
        match fs::read_dir(&path) {
            Ok(_) => assert_eq!(names(&path), ["own"], "bad{i}"),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "bad{i}"),
        }
    }
    put(union.at("good/new"), "the mount works on");
    union.umount();
}

/// Users can't make whiteouts or opaque directories by writing what stands for them in a layer.
fn names_that_look_like_marks_hide_nothing() {
    let mut union = Union::new(1);
    for directory in ["a", "b", "c", "d", "e"] {
        put(union.lower(0, &format!("{directory}/kept")), "x");
    }
    union.mount();
    let marks = [("a", "trusted.overlay.opaque"), ("b", "user.overlay.opaque"), ("c", "user.fuseoverlayfs.opaque")];
    for (directory, name) in marks {
        // Stored under another name, or refused.
        if sys::set_xattr(&union.at(directory), name, b"y", 0).is_ok() {
            assert_eq!(marked(union.at(directory), name).as_deref(), Some("y"), "{name}");
        }
    }
    let accepted: Vec<bool> =
        ["d/.wh.kept", "e/.wh..wh..opq"].iter().map(|name| fs::write(union.at(name), "").is_ok()).collect();
    for round in ["at once", "mounted again"] {
        for directory in ["a", "b", "c", "d", "e"] {
            let shown = names(union.at(directory));
            assert!(shown.contains(&"kept".to_owned()), "{round}: {directory} shows {shown:?}");
        }
        for (directory, accepted) in ["d", "e"].iter().zip(&accepted) {
            let count = 1 + usize::from(*accepted);
            assert_eq!(names(union.at(directory)).len(), count, "{round}: {directory}");
        }
        union.remount();
    }
    union.umount();
}

fn unions_nest() {
    let mut outer = Union::new(1);
    put(outer.lower(0, "d/low"), "low");
    put(outer.lower(0, "d/gone"), "low");
    make_dir(outer.lower(0, "u/upper"));
    make_dir(outer.lower(0, "u/work"));
    outer.mount();
    let mut inner = Union::new(0).lower_in(&outer.at("d")).upper_in(&outer.at("u"));
    inner.mount();
    assert_eq!(names(inner.at("")), ["gone", "low"]);
    append(inner.at("low"), ", changed");
    fs::remove_file(inner.at("gone")).expect("remove");
    put(inner.at("dir/new"), "new");
    fs::rename(inner.at("dir"), inner.at("moved")).expect("rename");
    assert_eq!(names(inner.at("")), ["low", "moved"]);
    inner.umount();
    outer.remount();
    inner.mount();
    assert_eq!(names(inner.at("")), ["low", "moved"]);
    assert_eq!(read(inner.at("low")), "low, changed");
    assert_eq!(read(inner.at("moved/new")), "new");
    assert_eq!(names(outer.at("d")), ["gone", "low"]);
    inner.umount();
    outer.umount();
}
