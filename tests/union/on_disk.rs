//! What the upper directory looks like afterwards: as the kernel's overlay would have left it.

use super::fixture::{Layers, PLAIN, get_xattr, is_whiteout, make_whiteout, mark, privileged, snapshot};

#[test]
fn nothing_but_the_change_is_in_upper() {
    let layers = Layers::new(2);
    for file in ["a/b/f", "a/g", "x/y"] {
        layers.file(1, file, "lower");
    }
    let before = layers.lowers.iter().map(|lower| snapshot(lower)).collect::<Vec<_>>();
    let view = layers.open();
    view.names("a/b").unwrap();
    view.write("a/b/f", 0, b"upper").unwrap();
    view.close();
    let upper = layers.upper("");
    let paths: Vec<_> = snapshot(&upper).into_keys().collect();
    let expected: Vec<_> = ["", "a", "a/b", "a/b/f"]
        .iter()
        .map(|path| if path.is_empty() { upper.clone() } else { upper.join(path) })
        .collect();
    assert_eq!(paths, expected);
    assert_eq!(std::fs::read(layers.upper("a/b/f")).unwrap(), b"upper");
    let after = layers.lowers.iter().map(|lower| snapshot(lower)).collect::<Vec<_>>();
    assert_eq!(after, before);
}

#[test]
fn looking_changes_nothing_in_any_layer() {
    let layers = Layers::new(2);
    layers.file(0, "d/f", "lower");
    layers.file(1, "d/g", "lower");
    std::fs::write(layers.upper("h"), "upper").unwrap();
    let before = snapshot(&layers.upper(""));
    let view = layers.open();
    for path in ["d/f", "d/g", "h"] {
        view.read(path).unwrap();
        view.xattrs(path).unwrap();
    }
    view.names("d").unwrap();
    assert!(!view.exists("none"));
    view.close();
    assert_eq!(snapshot(&layers.upper("")), before);
}

#[test]
fn directories_made_over_lower_ones_are_opaque() {
    let layers = Layers::new(1);
    layers.file(0, "d/f", "lower");
    layers.file(0, "other/f", "lower");
    let view = layers.open();
    view.unlink("d/f").unwrap();
    view.rmdir("d").unwrap();
    view.mkdir("d", 0o755).unwrap();
    view.mkdir("fresh", 0o755).unwrap();
    view.rename("other", "moved", PLAIN).unwrap();
    view.mkdir("other", 0o755).unwrap();
    view.close();
    for path in ["d", "other"] {
        assert_eq!(get_xattr(&layers.upper(path), &mark("opaque")).unwrap(), b"y", "{path}");
    }
    if privileged() {
        assert_eq!(get_xattr(&layers.upper("moved"), &mark("opaque")), None);
    }
}

#[test]
fn copies_name_their_origin() {
    if !privileged() {
        eprintln!("left out without the superuser's rights");
        return;
    }
    let layers = Layers::new(1);
    layers.file(0, "d/f", "lower");
    let view = layers.open();
    view.chmod("d/f", 0o600).unwrap();
    view.put("d/new", "");
    view.close();
    for path in ["d", "d/f"] {
        let origin = get_xattr(&layers.upper(path), &mark("origin")).unwrap();
        // The kernel's form: version 0, magic, length, flags, type of the handle, uuid, handle.
        assert_eq!((origin[0], origin[1]), (0, 0xfb), "{path}");
        assert_eq!(usize::from(origin[2]), origin.len(), "{path}");
        assert!(origin.len() > 21, "{path}");
    }
    assert_eq!(get_xattr(&layers.upper("d/new"), &mark("origin")), None);
}

/// One inode is enough for all whiteouts, as the kernel has it.
#[test]
fn whiteouts_are_devices() {
    if !privileged() {
        eprintln!("left out without the superuser's rights");
        return;
    }
    let layers = Layers::new(1);
    for index in 0..20 {
        layers.file(0, &format!("d/f{index}"), "");
    }
    layers.file(0, "moved", "");
    let view = layers.open();
    for index in 0..20 {
        view.unlink(&format!("d/f{index}")).unwrap();
    }
    view.rename("moved", "d/f0", PLAIN).unwrap();
    view.close();
    for index in 1..20 {
        assert!(is_whiteout(&layers.upper(&format!("d/f{index}"))));
        assert_eq!(get_xattr(&layers.upper(&format!("d/f{index}")), &mark("origin")), None);
    }
    assert!(is_whiteout(&layers.upper("moved")));
    assert!(layers.upper("d/f0").is_file());
}

#[test]
fn what_a_crash_left_in_the_work_directory_is_swept() {
    let layers = Layers::new(1);
    layers.file(0, "f", "lower");
    let view = layers.open();
    view.chmod("f", 0o600).unwrap();
    view.close();
    std::fs::create_dir_all(layers.work("layerfs/stage/7/deep")).unwrap();
    std::fs::write(layers.work("layerfs/stage/8"), "half a file").unwrap();
    make_whiteout(&layers.work("layerfs/stage/9"));
    let view = layers.open();
    assert_eq!(view.stat("f").unwrap().mode & 0o777, 0o600);
    assert_eq!(layers.staged(), [""; 0]);
    view.close();
}

#[test]
fn volatile_says_so_on_disk() {
    let layers = Layers::new(1);
    layers.file(0, "f", "lower");
    let options = layerfs::union::Options { durability: layerfs::union::Durability::Volatile, ..Default::default() };
    let view = layers.open_with(options);
    view.write("f", 0, b"UPPER").unwrap();
    assert!(layers.work("work/incompat/volatile/dirty").exists());
    view.union.fsync(view.hold("f").unwrap().ino, false).unwrap();
    assert_eq!(view.text("f"), "UPPER");
}

#[test]
fn a_clean_end_leaves_private_state_small_and_the_kernels_names_alone() {
    let layers = Layers::new(1);
    layers.file(0, "f", "lower");
    let view = layers.open();
    view.write("f", 0, b"x").unwrap();
    view.unlink("f").unwrap();
    view.close();
    assert!(!layers.work("work/incompat/layerfs").exists());
    let names: Vec<_> = layers.work("").read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| ["work", "index", "layerfs"].iter().any(|known| name == known)), "{names:?}");
}
