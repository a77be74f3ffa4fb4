//! What btrfs loses of copies at a power loss, and recovery gives back: their size, and the mark of the directory that they are in.
//! The loss is made by hand, as in `recovery`, in the same cases.

use std::fs;
use std::os::unix::fs::MetadataExt;

use layerfs::error::Errno;
use layerfs::union::Union;

use super::fixture::*;
use super::recovery::{CASES, Case, Damage, Shown, booted, content, lowers, with_mark};

/// Gives a file other attributes, with which its data does not come up.
fn dress(view: &View, path: &str) {
    view.chmod(path, 0o6711).unwrap();
    if privileged() {
        view.set_xattr(path, "security.capability", &CAPABILITY).unwrap();
    }
}

/// `cap_net_raw+ep`.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The layers after a case in which metadata alone came up and lost its size, as btrfs leaves it.
fn without_sizes(case: &Case) -> Layers {
    let layers = lowers();
    let view = layers.open_with(booted("first"));
    (case.act)(&view, dress);
    drop(view);
    let copies = with_mark(&layers, "metacopy");
    assert_eq!(copies.is_empty(), case.shown.iter().all(|(_, shown)| matches!(shown, Shown::New(_))), "{}", case.what);
    for copy in copies {
        let before = copy.metadata().unwrap();
        assert!(before.len() > 0, "{}: a metadata copy has its size", case.what);
        let value = get_xattr(&copy, "security.capability");
        Damage::Empty.on(&copy);
        set_times(&copy, before.mtime(), before.mtime_nsec());
        fs::set_permissions(&copy, before.permissions()).unwrap();
        if let Some(value) = value {
            set_xattr(&copy, "security.capability", &value).unwrap();
        }
    }
    layers
}

/// Each file has its content, and if a recovery came to its end at once what else it had.
fn check_sizes(case: &Case, layers: &Layers, said: &str, whole: bool) {
    for boot in ["second", "second", "third"] {
        let view = layers.open_with(booted(boot));
        for (path, shown) in case.shown {
            let Shown::Lower(name) = shown else { continue };
            let what = format!("{}, {said}, {boot}: {path}", case.what);
            assert!(view.text(path) == content(name), "{what}");
            if !whole {
                continue;
            }
            let status = view.stat(path).unwrap();
            assert_eq!((status.mode & 0o7777, status.mtime.sec), (0o6711, 1_000_000), "{what}");
            let capability = view.get_xattr(path, "security.capability").ok();
            assert_eq!(capability, privileged().then(|| CAPABILITY.to_vec()), "{what}");
        }
        for path in case.gone {
            assert!(!view.exists(path), "{}, {said}, {boot}: {path}", case.what);
        }
        view.close();
    }
}

#[test]
fn a_metadata_copy_has_its_size_again_wherever_it_is() {
    for case in CASES {
        check_sizes(case, &without_sizes(case), "at once", true);
    }
}

#[cfg(debug_assertions)]
#[test]
fn sizes_come_back_if_that_is_interrupted_anywhere() {
    use layerfs::sys::fault::{self, Calls};
    let chosen = ["renamed", "several names, of which that of the copy is deleted"];
    for case in CASES.iter().filter(|case| chosen.contains(&case.what)) {
        for n in 0..1000 {
            let layers = without_sizes(case);
            fault::arm(n, Errno::EIO, Calls::AllFromThere);
            let opened = Union::open(&layers.spec(), booted("second"));
            let hit = fault::disarm();
            drop(opened);
            check_sizes(case, &layers, &format!("interrupted at call {n}"), !hit);
            if !hit {
                break;
            }
        }
    }
}

/// With other lowers than it had, it would be shown empty from now on.
#[test]
fn a_size_without_a_lower_file_waits_for_the_right_lowers() {
    let chosen = ["as it is", "renamed", "linked", "in a directory that was renamed after"];
    for case in CASES.iter().filter(|case| chosen.contains(&case.what)) {
        let layers = without_sizes(case);
        let mut others = layers.spec();
        others.lowers.truncate(2);
        assert!(Union::open(&others, booted("second")).is_err(), "{}", case.what);
        check_sizes(case, &layers, "after it was refused", true);
    }
}

/// The mark of a directory that holds copies is set before them. Btrfs keeps a copy that was synced, but perhaps not that.
#[test]
fn copies_are_known_in_a_directory_that_lost_the_mark_of_them() {
    let layers = lowers();
    let view = layers.open_with(booted("first"));
    view.mkdir("new", 0o755).unwrap();
    view.mkdir("plain", 0o755).unwrap();
    view.put("plain/file", "x");
    view.link("d/f", "new/f").unwrap();
    view.rename("g", "new/g", PLAIN).unwrap();
    let number = view.stat("new/g").unwrap().ino;
    drop(view);
    remove_xattr(&layers.upper("new"), &mark("impure"));
    let view = layers.open_with(booted("second"));
    assert!(view.text("new/f") == content("f") && view.text("new/g") == content("g"));
    assert_eq!(view.stat("new/g").unwrap().ino, number);
    assert_eq!(get_xattr(&layers.upper("new"), &mark("impure")).as_deref(), Some(&b"y"[..]));
    assert_eq!(get_xattr(&layers.upper("plain"), &mark("impure")), None);
}
