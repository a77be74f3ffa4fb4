//! Removing names: what lower shows is covered, what only upper has is gone.

use layerfs::error::Errno;

use super::fixture::{Layers, is_whiteout, privileged};

#[test]
fn a_lower_name_gets_a_whiteout_and_an_upper_one_leaves_nothing() {
    let layers = Layers::new(1);
    layers.file(0, "d/lower", "lower");
    let view = layers.open();
    view.put("d/upper", "upper");
    view.write("d/lower", 0, b"copied up").unwrap();
    view.unlink("d/lower").unwrap();
    view.unlink("d/upper").unwrap();
    assert_eq!(view.names("d").unwrap(), [""; 0]);
    assert!(layers.upper("d/upper").symlink_metadata().is_err());
    if privileged() {
        assert!(is_whiteout(&layers.upper("d/lower")));
    }
    assert_eq!(layers.staged(), [""; 0]);
    view.close();
    assert_eq!(layers.open().names("d").unwrap(), [""; 0]);
}

#[test]
fn a_name_that_no_lower_shows_any_more_needs_no_whiteout() {
    let layers = Layers::new(2);
    layers.file(1, "d/f", "lower");
    super::fixture::make_whiteout(&layers.lower(0, "d/f"));
    let view = layers.open();
    view.put("d/f", "upper");
    view.unlink("d/f").unwrap();
    assert!(!view.exists("d/f"));
    assert!(layers.upper("d/f").symlink_metadata().is_err(), "the lower whiteout is enough");
}

#[test]
fn nothing_is_whited_out_in_a_directory_that_is_opaque_or_only_in_upper() {
    let layers = Layers::new(1);
    layers.file(0, "d/f", "lower");
    let view = layers.open();
    view.unlink("d/f").unwrap();
    view.rmdir("d").unwrap();
    view.mkdir("d", 0o755).unwrap();
    view.put("d/f", "upper");
    view.unlink("d/f").unwrap();
    assert_eq!(layers.upper("d").read_dir().unwrap().count(), 0);
}

#[test]
fn a_merged_directory_goes_with_the_whiteouts_in_it() {
    let layers = Layers::new(2);
    layers.file(0, "d/a", "");
    layers.file(1, "d/b", "");
    layers.file(1, "d/sub/c", "");
    let view = layers.open();
    assert_eq!(view.rmdir("d").unwrap_err(), Errno::ENOTEMPTY);
    view.unlink("d/a").unwrap();
    view.unlink("d/b").unwrap();
    assert_eq!(view.rmdir("d").unwrap_err(), Errno::ENOTEMPTY);
    assert_eq!(view.rmdir("d/sub").unwrap_err(), Errno::ENOTEMPTY);
    view.unlink("d/sub/c").unwrap();
    view.rmdir("d/sub").unwrap();
    view.rmdir("d").unwrap();
    assert!(!view.exists("d"));
    assert_eq!(layers.staged(), [""; 0]);
    view.close();
    let view = layers.open();
    assert!(!view.exists("d"));
    view.mkdir("d", 0o755).unwrap();
    assert_eq!(view.names("d").unwrap(), [""; 0]);
}

#[test]
fn a_lower_directory_that_was_always_empty_can_go() {
    let layers = Layers::new(1);
    layers.directory(0, "d");
    let view = layers.open();
    view.rmdir("d").unwrap();
    assert!(!view.exists("d"));
    view.close();
    assert!(!layers.open().exists("d"));
}

#[test]
fn a_directory_with_nothing_but_lower_whiteouts_is_empty() {
    let layers = Layers::new(2);
    layers.file(1, "d/f", "");
    layers.file(1, "e/f", "");
    super::fixture::make_whiteout(&layers.lower(0, "d/f"));
    layers.file(0, "e/.wh.f", "");
    let view = layers.open();
    view.rmdir("d").unwrap();
    view.rmdir("e").unwrap();
    assert_eq!(view.names("").unwrap(), [""; 0]);
}

#[test]
fn unlink_and_rmdir_tell_files_from_directories() {
    let layers = Layers::new(1);
    layers.file(0, "f", "");
    layers.directory(0, "d");
    let view = layers.open();
    view.create("uf", 0o644).unwrap();
    view.mkdir("ud", 0o755).unwrap();
    for dir in ["d", "ud"] {
        assert_eq!(view.unlink(dir).unwrap_err(), Errno::EISDIR);
    }
    for file in ["f", "uf"] {
        assert_eq!(view.rmdir(file).unwrap_err(), Errno::ENOTDIR);
    }
    assert_eq!(view.unlink("none").unwrap_err(), Errno::ENOENT);
    assert_eq!(view.rmdir("none").unwrap_err(), Errno::ENOENT);
    assert_eq!(view.names("").unwrap(), ["d", "f", "ud", "uf"]);
}
