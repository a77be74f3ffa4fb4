//! Renames, of every kind of object, with every flag.

use layerfs::error::Errno;
use nix::libc::{S_IFCHR, S_IFMT};

use super::fixture::{EXCHANGE, Layers, NOREPLACE, PLAIN, View, WHITEOUT, get_xattr, is_whiteout, mark, privileged};

/// A lower file, a lower directory, a merged directory, an upper file and an upper directory.
fn mixed() -> (Layers, View) {
    let layers = Layers::new(2);
    layers.file(1, "lf", "lf");
    layers.file(1, "ld/in", "ld");
    layers.file(0, "md/top", "md");
    layers.file(1, "md/in", "md");
    layers.directory(1, "to");
    let view = layers.open();
    view.put("uf", "uf");
    view.mkdir("ud", 0o755).unwrap();
    view.put("ud/in", "ud");
    (layers, view)
}

#[test]
fn every_kind_of_object_moves_within_and_between_directories() {
    for object in ["lf", "ld", "md", "uf", "ud"] {
        for target in ["new", "to/new", "ud/new"] {
            if object == "ud" && target == "ud/new" {
                continue;
            }
            let (layers, view) = mixed();
            let before = view.stat(object).unwrap();
            view.rename(object, target, PLAIN).unwrap();
            let check = |view: &View| {
                assert!(!view.exists(object), "{object} -> {target}");
                let after = view.stat(target).unwrap();
                assert_eq!(after.ino, before.ino, "{object} -> {target}");
                assert_eq!(after.mode, before.mode);
                assert_eq!(after.mtime, before.mtime);
                let content = if object.ends_with('d') { format!("{target}/in") } else { target.to_owned() };
                assert_eq!(view.text(&content), object);
            };
            check(&view);
            assert_eq!(layers.staged(), [""; 0]);
            view.close();
            check(&layers.open());
        }
    }
}

#[test]
fn a_moved_directory_keeps_what_each_layer_put_into_it() {
    let (layers, view) = mixed();
    view.put("md/upper", "md");
    view.rename("md", "to/md2", PLAIN).unwrap();
    view.put("to/md2/later", "md");
    assert_eq!(view.names("to/md2").unwrap(), ["in", "later", "top", "upper"]);
    view.rename("to", "from", PLAIN).unwrap();
    view.unlink("from/md2/in").unwrap();
    view.mkdir("md", 0o755).unwrap();
    let check = |view: &View| {
        assert_eq!(view.names("from/md2").unwrap(), ["later", "top", "upper"]);
        assert_eq!(view.names("md").unwrap(), [""; 0], "the new one has nothing of the old one's");
    };
    check(&view);
    view.close();
    check(&layers.open());
}

#[test]
fn directories_below_a_moved_one_move_on_their_own() {
    let layers = Layers::new(2);
    layers.file(0, "a/b/c/top", "");
    layers.file(1, "a/b/c/bottom", "");
    let view = layers.open();
    view.rename("a", "x", PLAIN).unwrap();
    view.rename("x/b/c", "c", PLAIN).unwrap();
    view.rename("x/b", "c/b", PLAIN).unwrap();
    view.rename("c/b", "c/b2", PLAIN).unwrap();
    let check = |view: &View| {
        assert_eq!(view.names("c").unwrap(), ["b2", "bottom", "top"]);
        assert_eq!(view.names("c/b2").unwrap(), [""; 0]);
        assert_eq!(view.names("x").unwrap(), [""; 0]);
        assert_eq!(view.names("").unwrap(), ["c", "x"]);
    };
    check(&view);
    view.close();
    check(&layers.open());
}

#[test]
fn a_moved_lower_directory_is_left_on_disk_as_the_kernel_would() {
    if !privileged() {
        eprintln!("left out: without the superuser's rights redirects are kept elsewhere");
        return;
    }
    let (layers, view) = mixed();
    view.rename("ld", "near", PLAIN).unwrap();
    view.rename("md", "to/far", PLAIN).unwrap();
    let redirect = |path: &str| String::from_utf8(get_xattr(&layers.upper(path), &mark("redirect")).unwrap()).unwrap();
    assert!(["ld", "/ld"].contains(&&*redirect("near")), "{}", redirect("near"));
    assert_eq!(redirect("to/far"), "/md");
    assert!(is_whiteout(&layers.upper("ld")) && is_whiteout(&layers.upper("md")));
    for path in ["near", "to/far"] {
        assert!(get_xattr(&layers.upper(path), &mark("origin")).is_some());
        assert_eq!(get_xattr(&layers.upper(path), &mark("opaque")), None);
    }
}

#[test]
fn files_replace_files_and_directories_replace_empty_directories() {
    for target in ["lf", "uf"] {
        for source in ["lf", "uf"] {
            let (layers, view) = mixed();
            view.rename(source, target, PLAIN).unwrap();
            assert_eq!(view.text(target), source);
            assert_eq!(view.exists(source), source == target);
            view.close();
            assert_eq!(layers.open().text(target), source);
        }
    }
    for source in ["ld", "md", "ud"] {
        for kind in ["lower", "upper", "moved"] {
            let (layers, view) = mixed();
            let target = if kind == "lower" { "to" } else { "empty" };
            match kind {
                "upper" => assert!(view.mkdir(target, 0o755).is_ok()),
                "moved" => view.rename("to", target, PLAIN).unwrap(),
                _ => {}
            }
            view.rename(source, target, PLAIN).unwrap();
            assert_eq!(view.text(&format!("{target}/in")), source);
            assert_eq!(layers.staged(), [""; 0]);
            view.close();
            let view = layers.open();
            assert_eq!(view.text(&format!("{target}/in")), source, "{source} over {kind}");
            assert!(!view.exists(source));
        }
    }
}

#[test]
fn what_lower_has_under_the_target_does_not_shine_through() {
    let layers = Layers::new(2);
    layers.file(0, "source/s", "");
    layers.file(1, "target/t", "");
    let view = layers.open();
    view.unlink("target/t").unwrap();
    view.rename("source", "target", PLAIN).unwrap();
    assert_eq!(view.names("target").unwrap(), ["s"]);
    view.rmdir("target").unwrap_err();
    view.mkdir("pure", 0o755).unwrap();
    view.unlink("target/s").unwrap();
    view.rename("pure", "target", PLAIN).unwrap();
    assert_eq!(view.names("target").unwrap(), [""; 0]);
    view.close();
    let view = layers.open();
    assert_eq!(view.names("target").unwrap(), [""; 0]);
    assert_eq!(view.names("").unwrap(), ["target"]);
}

#[test]
fn noreplace_leaves_what_is_there() {
    let (_layers, view) = mixed();
    for target in ["lf", "ld", "md", "uf", "ud"] {
        for source in ["lf", "ld", "md", "uf", "ud"] {
            assert_eq!(view.rename(source, target, NOREPLACE).unwrap_err(), Errno::EEXIST);
        }
    }
    assert_eq!(view.names("").unwrap(), ["ld", "lf", "md", "to", "ud", "uf"]);
    view.rename("ld", "new", NOREPLACE).unwrap();
    view.rename("lf", "ld", NOREPLACE).unwrap();
    assert_eq!(view.text("ld"), "lf");
}

#[test]
fn exchange_swaps_objects_of_any_kind() {
    let all = ["lf", "ld", "md", "uf", "ud"];
    for (left, right) in all.iter().flat_map(|left| all.map(|right| (*left, right))) {
        let (layers, view) = mixed();
        let (left_ino, right_ino) = (view.stat(left).unwrap().ino, view.stat(right).unwrap().ino);
        view.rename(left, right, EXCHANGE).unwrap();
        let check = |view: &View| {
            assert_eq!(view.stat(left).unwrap().ino, right_ino, "{left} <-> {right}");
            assert_eq!(view.stat(right).unwrap().ino, left_ino, "{left} <-> {right}");
            for (path, object) in [(left, right), (right, left)] {
                let content = if object.ends_with('d') { format!("{path}/in") } else { path.to_owned() };
                assert_eq!(view.text(&content), object, "{left} <-> {right}");
            }
            assert_eq!(view.names("").unwrap(), ["ld", "lf", "md", "to", "ud", "uf"]);
        };
        check(&view);
        assert_eq!(layers.staged(), [""; 0]);
        view.close();
        check(&layers.open());
    }
}

/// A kernel overlay whose upper is this union makes its whiteouts so.
#[test]
fn whiteout_leaves_a_whiteout_behind() {
    for source in ["lf", "uf"] {
        let (_layers, view) = mixed();
        view.rename(source, "to/new", WHITEOUT).unwrap();
        assert_eq!(view.text("to/new"), source);
        match view.stat(source) {
            Ok(attr) => assert_eq!((attr.mode & S_IFMT, attr.rdev), (S_IFCHR, 0)),
            Err(error) => assert_eq!(error, Errno::ENOENT),
        }
    }
}

#[test]
fn wrong_renames_have_their_errors_and_change_nothing() {
    let (_layers, view) = mixed();
    view.mkdir("ud/deep", 0o755).unwrap();
    for (source, target, flags, error) in [
        ("none", "new", PLAIN, Errno::ENOENT),
        ("none", "lf", NOREPLACE, Errno::ENOENT),
        ("lf", "none", EXCHANGE, Errno::ENOENT),
        ("lf", "ld", PLAIN, Errno::EISDIR),
        ("lf", "ud", PLAIN, Errno::EISDIR),
        ("ld", "lf", PLAIN, Errno::ENOTDIR),
        ("ud", "uf", PLAIN, Errno::ENOTDIR),
        ("ld", "md", PLAIN, Errno::ENOTEMPTY),
        ("md", "ud", PLAIN, Errno::ENOTEMPTY),
        ("ud", "ld", PLAIN, Errno::ENOTEMPTY),
        ("ud", "ud/deep/new", PLAIN, Errno::EINVAL),
        ("ud", "ud/deep", PLAIN, Errno::EINVAL),
        ("ld", "ld/new", PLAIN, Errno::EINVAL),
        ("ud", "ud/deep", EXCHANGE, Errno::EINVAL),
        ("ud/deep", "ud", EXCHANGE, Errno::EINVAL),
        ("ud/deep", "ud", PLAIN, Errno::ENOTEMPTY),
        ("lf", "uf/new", PLAIN, Errno::ENOTDIR),
        ("lf/x", "new", PLAIN, Errno::ENOTDIR),
    ] {
        assert_eq!(view.rename(source, target, flags).unwrap_err(), error, "{source} -> {target}");
    }
    assert_eq!(view.names("").unwrap(), ["ld", "lf", "md", "to", "ud", "uf"]);
    assert_eq!(view.names("ud").unwrap(), ["deep", "in"]);
    let both = layerfs::union::RenameFlags { noreplace: true, exchange: true, whiteout: false };
    assert_eq!(view.rename("lf", "uf", both).unwrap_err(), Errno::EINVAL);
}

#[test]
fn onto_itself_is_nothing() {
    let (layers, view) = mixed();
    for object in ["lf", "ld", "md", "uf", "ud"] {
        view.rename(object, object, PLAIN).unwrap();
        assert_eq!(view.rename(object, object, NOREPLACE).unwrap_err(), Errno::EEXIST);
    }
    view.link("uf", "uf2").unwrap();
    view.rename("uf", "uf2", PLAIN).unwrap();
    assert_eq!(view.stat("uf").unwrap().nlink, 2, "two names of one file both stay");
    assert!(layers.upper("lf").symlink_metadata().is_err(), "nothing was copied up");
}

#[test]
fn redirects_can_be_turned_off() {
    let layers = Layers::new(1);
    layers.file(0, "d/f", "lower");
    let options = layerfs::union::Options { redirect_dir: false, ..Default::default() };
    let view = layers.open_with(options);
    assert_eq!(view.rename("d", "e", PLAIN).unwrap_err(), Errno::EXDEV);
    view.mkdir("u", 0o755).unwrap();
    view.rename("u", "v", PLAIN).unwrap();
    view.rename("d/f", "v/f", PLAIN).unwrap();
    assert_eq!(view.text("v/f"), "lower");
    assert_eq!(view.names("").unwrap(), ["d", "v"]);
}
