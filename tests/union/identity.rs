//! Inode numbers: one object keeps one, two objects never share one.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use super::fixture::{EXCHANGE, Layers, PLAIN, View, get_xattr, mark, privileged, set_xattr};

#[test]
fn a_number_stays_through_copy_up_rename_and_opening_again() {
    let layers = Layers::new(2);
    layers.file(1, "f", "");
    layers.file(0, "merged/top", "");
    layers.file(1, "merged/in/f", "");
    layers.file(1, "low/in/f", "");
    std::os::unix::fs::symlink("x", layers.lower(1, "link")).unwrap();
    let mut at: BTreeMap<&str, String> = ["f", "merged", "merged/in", "merged/in/f", "low", "low/in/f", "link"]
        .into_iter()
        .map(|path| (path, path.to_owned()))
        .collect();
    let mut view = layers.open();
    let numbers: BTreeMap<_, _> = at.keys().map(|path| (*path, view.stat(path).unwrap().ino)).collect();
    let check = |view: &View, at: &BTreeMap<&str, String>, step: &str| {
        for (object, path) in at {
            assert_eq!(view.stat(path).unwrap().ino, numbers[object], "{object} at {path}, {step}");
        }
    };
    let reopen = |view: View, at: &BTreeMap<&str, String>, step: &str| {
        check(&view, at, step);
        view.close();
        let view = layers.open();
        check(&view, at, &format!("{step}, opened again"));
        view
    };
    view = reopen(view, &at, "unchanged");
    for path in ["f", "merged", "merged/in/f", "low/in/f"] {
        view.chmod(path, 0o755).unwrap();
    }
    view.touch("link", 1, 2).unwrap();
    view = reopen(view, &at, "copied up");
    for (object, to) in [("f", "f2"), ("merged", "m2"), ("low", "m2/l2"), ("link", "m2/link2")] {
        view.rename(&at[object], to, PLAIN).unwrap();
        at.insert(object, to.to_owned());
    }
    for (object, path) in [("merged/in", "m2/in"), ("merged/in/f", "m2/in/f"), ("low/in/f", "m2/l2/in/f")] {
        at.insert(object, path.to_owned());
    }
    view = reopen(view, &at, "renamed");
    view.rename("m2/l2/in/f", "f2", EXCHANGE).unwrap();
    at.insert("f", "m2/l2/in/f".to_owned());
    at.insert("low/in/f", "f2".to_owned());
    reopen(view, &at, "exchanged").close();
}

#[test]
fn on_one_filesystem_the_numbers_are_the_real_ones() {
    let layers = Layers::new(2);
    let file = layers.file(1, "d/f", "");
    let view = layers.open();
    let shown = view.stat("d/f").unwrap();
    assert_eq!(shown.ino, file.metadata().unwrap().ino());
    view.create("new", 0o644).unwrap();
    assert_eq!(view.stat("new").unwrap().ino, layers.upper("new").metadata().unwrap().ino());
}

#[test]
fn a_copied_origin_mark_does_not_make_two_files_one() {
    let layers = Layers::new(1);
    layers.file(0, "f", "lower");
    layers.file(0, "d/in", "lower");
    let view = layers.open();
    view.write("f", 0, b"upper").unwrap();
    view.chmod("d", 0o711).unwrap();
    view.close();
    let Some(of_file) = get_xattr(&layers.upper("f"), &mark("origin")) else {
        assert!(!privileged(), "copy-up left no origin mark");
        return;
    };
    let of_dir = get_xattr(&layers.upper("d"), &mark("origin")).unwrap();
    for path in ["forged", "forged2"] {
        std::fs::write(layers.upper(path), path).unwrap();
        set_xattr(&layers.upper(path), &mark("origin"), &of_file).unwrap();
    }
    std::fs::create_dir(layers.upper("forged-dir")).unwrap();
    set_xattr(&layers.upper("forged-dir"), &mark("origin"), &of_dir).unwrap();
    for order in [["f", "forged", "forged2", "d", "forged-dir"], ["forged-dir", "forged2", "d", "forged", "f"]] {
        let view = layers.open();
        let held: Vec<_> = order.iter().map(|path| view.hold(path).unwrap()).collect();
        let mut numbers: Vec<_> = held.iter().map(|held| held.ino).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), order.len());
        assert_eq!(view.text("f"), "upper");
        assert_eq!(view.text("forged"), "forged");
        assert_eq!(view.text("forged2"), "forged2");
        assert_eq!(view.names("forged-dir").unwrap(), [""; 0]);
        assert_eq!(view.names("d").unwrap(), ["in"]);
        view.write("forged", 0, b"FORGED").unwrap();
        assert_eq!(view.text("f"), "upper");
        view.write("forged", 0, b"forged").unwrap();
        drop(held);
        view.close();
    }
}

/// The mark of a lower object that is still shown under its own name.
#[test]
fn an_origin_that_is_itself_visible_is_not_taken_over() {
    let layers = Layers::new(1);
    layers.file(0, "f", "lower");
    let view = layers.open();
    view.chmod("f", 0o600).unwrap();
    view.close();
    let Some(origin) = get_xattr(&layers.upper("f"), &mark("origin")) else { return };
    // Upper loses the file, so that lower's shows again, and another one has its mark.
    std::fs::remove_file(layers.upper("f")).unwrap();
    std::fs::write(layers.upper("other"), "other").unwrap();
    set_xattr(&layers.upper("other"), &mark("origin"), &origin).unwrap();
    for order in [["f", "other"], ["other", "f"]] {
        let view = layers.open();
        let held: Vec<_> = order.iter().map(|path| view.hold(path).unwrap()).collect();
        assert_ne!(held[0].ino, held[1].ino, "{order:?}");
        assert_eq!(view.text("f"), "lower");
        assert_eq!(view.text("other"), "other");
    }
}

#[test]
fn an_origin_mark_without_sense_is_no_obstacle() {
    for origin in [&b""[..], b"x", b"\0\xfb\x1d\0\x01", &[0xff; 200]] {
        let layers = Layers::new(1);
        layers.file(0, "f", "lower");
        std::fs::write(layers.upper("bad"), "bad").unwrap();
        set_xattr(&layers.upper("bad"), &mark("origin"), origin).unwrap();
        let view = layers.open();
        assert_eq!(view.text("bad"), "bad", "{}", origin.escape_ascii());
        assert_ne!(view.stat("bad").unwrap().ino, view.stat("f").unwrap().ino);
    }
}

/// An image that was pulled again: the same bytes in files with other numbers.
#[test]
fn an_upper_over_a_copy_of_its_lower_works() {
    let layers = Layers::new(1);
    for file in ["a", "b", "d/c"] {
        layers.file(0, file, file);
    }
    let view = layers.open();
    for file in ["a", "b", "d/c"] {
        view.chmod(file, 0o600).unwrap();
    }
    view.close();
    std::fs::remove_dir_all(&layers.lowers[0]).unwrap();
    std::fs::create_dir(&layers.lowers[0]).unwrap();
    for file in ["d/c", "b", "a", "new"] {
        layers.file(0, file, file);
    }
    let view = layers.open();
    let held: Vec<_> = ["a", "b", "d", "d/c", "new"].map(|path| view.hold(path).unwrap()).into();
    let mut numbers: Vec<_> = held.iter().map(|held| held.ino).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 5);
    assert_eq!(view.names("d").unwrap(), ["c"]);
    assert_eq!(view.stat("a").unwrap().mode & 0o777, 0o600);
}
