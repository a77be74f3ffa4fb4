//! Commits of copies, and what recovery makes of those that were not committed.

use std::fs;
use std::path::Path;

use layerfs::union::{Durability, Options, Union};

use crate::union::fixture::*;

fn options(boot: &str) -> Options {
    Options { boot_id: Some(boot.to_owned()), ..Options::default() }
}

fn is_marked(path: &Path) -> bool {
    get_xattr(path, &mark("layerfs.uncommitted")).is_some()
}

/// A union whose lower has a file `d/f`, which was copied up and changed, and not committed.
fn uncommitted() -> (Layers, View) {
    let layers = Layers::new(2);
    layers.file(1, "d/f", "lower content");
    let view = layers.open_with(options("first"));
    view.write("d/f", 0, b"UPPER").unwrap();
    assert!(is_marked(&layers.upper("d/f")));
    assert_eq!(view.stats().uncommitted, 1);
    (layers, view)
}

#[test]
fn fsync_commits_the_file() {
    let (layers, view) = uncommitted();
    view.union.fsync(view.stat("d/f").unwrap().ino, true).unwrap();
    assert!(!is_marked(&layers.upper("d/f")));
    assert_eq!(view.stats().uncommitted, 0);
}

#[test]
fn fsyncdir_commits_what_the_directory_names() {
    let (layers, view) = uncommitted();
    view.union.fsyncdir(Union::ROOT, false).unwrap();
    assert!(is_marked(&layers.upper("d/f")), "another directory's");
    view.union.fsyncdir(view.stat("d").unwrap().ino, false).unwrap();
    assert!(!is_marked(&layers.upper("d/f")));
}

#[test]
fn a_clean_end_commits() {
    let (layers, view) = uncommitted();
    view.union.close().unwrap();
    assert!(!is_marked(&layers.upper("d/f")));
    assert!(!layers.work("layerfs/uncommitted.0").exists());
    drop(view);
    assert_eq!(layers.open_with(options("second")).text("d/f"), "UPPER content");
}

#[test]
fn a_large_batch_is_committed_whole() {
    let layers = Layers::new(1);
    for i in 0..40 {
        layers.file(0, &format!("{i}"), "lower");
    }
    let view = layers.open_with(options("first"));
    for i in 0..40 {
        view.write(&format!("{i}"), 0, b"U").unwrap();
    }
    // What is gone by then is no hindrance.
    view.unlink("7").unwrap();
    view.rename("8", "9", PLAIN).unwrap();
    view.union.commit().unwrap();
    assert_eq!(view.stats().uncommitted, 0);
    assert!((0..40).filter(|i| ![7, 8].contains(i)).all(|i| !is_marked(&layers.upper(&format!("{i}")))));
}

#[test]
fn the_modes() {
    for durability in [Durability::Strict, Durability::Volatile] {
        let layers = Layers::new(1);
        layers.file(0, "f", "lower");
        let view = layers.open_with(Options { durability, ..options("first") });
        view.write("f", 0, b"U").unwrap();
        assert!(!is_marked(&layers.upper("f")), "{durability:?}");
        assert_eq!(view.stats().uncommitted, 0);
    }
}

#[test]
fn fsync_can_be_left_to_the_batches() {
    let layers = Layers::new(1);
    layers.file(0, "f", "lower");
    let view = layers.open_with(Options { fsync: false, ..options("first") });
    view.write("f", 0, b"U").unwrap();
    view.union.fsync(view.stat("f").unwrap().ino, false).unwrap();
    view.union.fsyncdir(Union::ROOT, false).unwrap();
    assert!(is_marked(&layers.upper("f")));
    view.union.commit().unwrap();
    assert!(!is_marked(&layers.upper("f")));
}

#[test]
fn nothing_needs_a_commit_without_data() {
    let layers = Layers::new(1);
    layers.file(0, "empty", "");
    let view = layers.open_with(options("first"));
    view.write("empty", 0, b"U").unwrap();
    view.create("new", 0o644).unwrap();
    assert!(!is_marked(&layers.upper("empty")) && !is_marked(&layers.upper("new")));
}

#[test]
fn a_crash_of_the_daemon_alone_loses_nothing() {
    let (layers, view) = uncommitted();
    drop(view);
    let view = layers.open_with(options("first"));
    assert_eq!(view.text("d/f"), "UPPER content");
    assert!(!is_marked(&layers.upper("d/f")));
    assert!(!layers.work("layerfs/recovered").exists());
}

#[test]
fn after_a_power_loss_the_lower_content_is_back() {
    let (layers, view) = uncommitted();
    view.chmod("d/f", 0o600).unwrap();
    view.rename("d/f", "moved", PLAIN).unwrap();
    view.put("d/f", "another file");
    drop(view);
    let view = layers.open_with(options("second"));
    assert_eq!(view.text("moved"), "lower content");
    assert_eq!(view.stat("moved").unwrap().mode & 0o777, 0o600);
    assert_eq!(view.text("d/f"), "another file");
    assert!(!is_marked(&layers.upper("moved")));
    assert_eq!(fs::read_to_string(layers.work("layerfs/recovered/1")).unwrap(), "UPPER content");
}

#[test]
fn what_is_whole_is_not_kept_aside() {
    let layers = Layers::new(1);
    layers.file(0, "f", "lower");
    let view = layers.open_with(options("first"));
    view.write("f", 0, b"l").unwrap();
    drop(view);
    assert_eq!(layers.open_with(options("second")).text("f"), "lower");
    assert!(!is_marked(&layers.upper("f")));
    assert!(!layers.work("layerfs/recovered").exists());
}

#[test]
fn without_its_lower_file_a_copy_is_not_mounted() {
    let (layers, view) = uncommitted();
    drop(view);
    let elsewhere = layers.lowers[1].with_extension("elsewhere");
    fs::rename(layers.lowers[1].join("d/f"), &elsewhere).unwrap();
    let refused = Union::open(&layers.spec(), options("second")).unwrap_err();
    assert!(refused.to_string().contains("lower layers that it had"), "{refused}");
    assert_eq!(fs::read_to_string(layers.upper("d/f")).unwrap(), "UPPER content");
    fs::rename(&elsewhere, layers.lowers[1].join("d/f")).unwrap();
    assert_eq!(layers.open_with(options("third")).text("d/f"), "lower content");
}
