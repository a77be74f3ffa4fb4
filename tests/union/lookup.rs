//! Which layer's object a name shows, and what the cache of lookups does.

use layerfs::error::Errno;
use layerfs::union::{Options, Union};

use super::fixture::{Layers, name};

#[test]
fn the_topmost_layer_with_a_name_wins_over_any_number_of_layers() {
    for count in [1, 2, 64, 300] {
        let layers = Layers::new(count);
        for index in 0..count {
            layers.file(index, &format!("only{index}"), &format!("{index}"));
            layers.file(index, "all", &format!("{index}"));
            layers.file(index, &format!("merged/{index}"), &format!("{index}"));
            if index > 0 {
                layers.file(index, "not-in-the-first", &format!("{index}"));
            }
        }
        let view = layers.open();
        for index in 0..count {
            assert_eq!(view.text(&format!("only{index}")), index.to_string());
            assert_eq!(view.text(&format!("merged/{index}")), index.to_string());
        }
        assert_eq!(view.text("all"), "0");
        if count > 1 {
            assert_eq!(view.text("not-in-the-first"), "1");
        }
        assert_eq!(view.names("merged").unwrap().len(), count);
        assert_eq!(view.stats().layers.len(), count + 1);
        for missing in ["none", "merged/none"] {
            assert_eq!(view.stat(missing).unwrap_err(), Errno::ENOENT);
        }
        view.put("merged/new", "upper");
        view.write("all", 0, b"changed").unwrap();
        assert_eq!(view.text("merged/new"), "upper");
        assert_eq!(view.text("all"), "changed");
    }
}

#[test]
fn upper_shows_before_every_lower() {
    let layers = Layers::new(1);
    layers.file(0, "f", "lower");
    std::fs::write(layers.upper("f"), "upper").unwrap();
    assert_eq!(layers.open().text("f"), "upper");
}

#[test]
fn only_directories_merge() {
    let layers = Layers::new(3);
    layers.file(0, "file-over-directory", "file");
    layers.file(1, "file-over-directory/below", "hidden");
    layers.file(0, "directory-over-file/in", "shown");
    layers.file(1, "directory-over-file", "hidden");
    layers.file(2, "directory-over-file/below", "hidden by the file between");
    std::os::unix::fs::symlink("directory-over-file", layers.lower(0, "link")).unwrap();
    layers.file(1, "link/below", "hidden");
    let view = layers.open();
    assert_eq!(view.text("file-over-directory"), "file");
    assert_eq!(view.stat("file-over-directory/below").unwrap_err(), Errno::ENOTDIR);
    assert_eq!(view.names("directory-over-file").unwrap(), ["in"]);
    assert_eq!(view.stat("link/below").unwrap_err(), Errno::ENOTDIR);
    assert_eq!(view.union.readlink(view.hold("link").unwrap().ino).unwrap(), b"directory-over-file");
}

#[test]
fn a_merged_directory_shows_the_topmost_attributes() {
    let layers = Layers::new(2);
    super::fixture::set_mode(&layers.directory(0, "d"), 0o700);
    super::fixture::set_mode(&layers.directory(1, "d"), 0o755);
    super::fixture::set_times(&layers.lower(0, "d"), 1234, 5678);
    let attr = layers.open().stat("d").unwrap();
    assert_eq!(attr.mode & 0o7777, 0o700);
    assert_eq!((attr.mtime.sec, attr.mtime.nsec), (1234, 5678));
}

#[test]
fn names_are_bytes() {
    use std::os::unix::ffi::OsStrExt;
    let layers = Layers::new(1);
    let odd = b"\xff\xfe \n\t\x01";
    std::fs::write(layers.lowers[0].join(std::ffi::OsStr::from_bytes(odd)), "odd").unwrap();
    let view = layers.open();
    let odd = layerfs::name::Name::new(odd).unwrap();
    let attr = view.union.lookup(Union::ROOT, &odd).unwrap();
    assert_eq!(attr.size, 3);
    view.union.unlink(Union::ROOT, &odd).unwrap();
    assert_eq!(view.union.lookup(Union::ROOT, &odd).unwrap_err(), Errno::ENOENT);
    view.union.forget(attr.ino, 1);
}

#[test]
fn a_name_of_the_longest_length_works_in_every_operation() {
    let layers = Layers::new(1);
    let (long, other) = ("n".repeat(255), "m".repeat(255));
    layers.file(0, &long, "long");
    let view = layers.open();
    assert_eq!(view.text(&long), "long");
    view.write(&long, 0, b"LONG").unwrap();
    view.rename(&long, &other, super::fixture::PLAIN).unwrap();
    assert!(!view.exists(&long));
    assert_eq!(view.text(&other), "LONG");
    view.mkdir(&long, 0o755).unwrap();
    view.rmdir(&long).unwrap();
    view.unlink(&other).unwrap();
    assert_eq!(layerfs::name::Name::new("n".repeat(256).as_bytes()).unwrap_err(), Errno::ENAMETOOLONG);
}

#[test]
fn a_path_longer_than_path_max_works() {
    use nix::fcntl::OFlag;
    use nix::sys::stat::Mode;
    use std::os::fd::OwnedFd;
    let layers = Layers::new(1);
    let component = "d".repeat(200);
    let depth = 30;
    let mut dir = OwnedFd::from(std::fs::File::open(&layers.lowers[0]).unwrap());
    for _ in 0..depth {
        nix::sys::stat::mkdirat(&dir, &*component, Mode::S_IRWXU).unwrap();
        dir = nix::fcntl::openat(&dir, &*component, OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    }
    nix::unistd::symlinkat("target", &dir, "link").unwrap();
    let view = layers.open();
    let deepest = vec![component; depth].join("/");
    view.chmod(&deepest, 0o711).unwrap();
    view.put(&format!("{deepest}/file"), "deep");
    view.rename(&format!("{deepest}/file"), &format!("{deepest}/link"), super::fixture::PLAIN).unwrap();
    assert_eq!(view.text(&format!("{deepest}/link")), "deep");
    assert_eq!(view.names(&deepest).unwrap(), ["link"]);
    view.close();
    let view = layers.open();
    assert_eq!(view.text(&format!("{deepest}/link")), "deep");
    assert_eq!(view.stat(&deepest).unwrap().mode & 0o7777, 0o711);
}

#[test]
fn lookups_are_counted_as_hits_and_misses() {
    let layers = Layers::new(2);
    layers.file(1, "f", "");
    let view = layers.open();
    let look = |file: &str| view.union.lookup(Union::ROOT, &name(file)).map(|attr| view.union.forget(attr.ino, 1));
    let before = view.stats().cache;
    look("f").unwrap();
    look("none").unwrap_err();
    let cold = view.stats().cache;
    assert_eq!(cold.misses, before.misses + 2);
    assert_eq!(cold.hits, before.hits);
    look("f").unwrap();
    look("none").unwrap_err();
    let warm = view.stats().cache;
    assert_eq!(warm.misses, cold.misses);
    assert_eq!(warm.hits, cold.hits + 2);
    assert!(warm.entries >= 2 && warm.entries <= warm.capacity);
}

#[test]
fn the_cache_is_bounded_and_can_be_turned_off() {
    let layers = Layers::new(1);
    for index in 0..100 {
        layers.file(0, &format!("f{index}"), "");
    }
    for capacity in [0, 10] {
        let view = layers.open_with(Options { cache_entries: capacity, ..Options::default() });
        for _ in 0..2 {
            for index in 0..100 {
                view.stat(&format!("f{index}")).unwrap();
                view.stat(&format!("none{index}")).unwrap_err();
            }
        }
        assert!(view.stats().cache.entries <= capacity as u64);
        view.create("new", 0o644).unwrap();
        view.stat("new").unwrap();
        view.unlink("new").unwrap();
        assert!(!view.exists("new"));
        view.close();
    }
}

/// Each step asks for every name before and after a change, so that the cache holds the old answers.
#[test]
fn the_cache_is_right_after_every_mutation() {
    let layers = Layers::new(2);
    layers.file(1, "file", "lower");
    layers.file(1, "dir/inner", "lower");
    let view = layers.open();
    let shown = || -> Vec<&str> {
        let all = ["file", "dir", "dir/inner", "a", "b", "b/inner", "c"];
        all.into_iter().filter(|path| view.hold(path).is_ok()).collect()
    };
    assert_eq!(shown(), ["file", "dir", "dir/inner"]);
    view.create("a", 0o644).unwrap();
    assert_eq!(shown(), ["file", "dir", "dir/inner", "a"]);
    view.unlink("a").unwrap();
    assert_eq!(shown(), ["file", "dir", "dir/inner"]);
    view.rename("dir", "b", super::fixture::PLAIN).unwrap();
    assert_eq!(shown(), ["file", "b", "b/inner"]);
    view.rename("file", "b", super::fixture::EXCHANGE).unwrap();
    assert_eq!(shown(), ["file", "b"]);
    assert_eq!(view.text("file/inner"), "lower");
    view.rename("file", "b", super::fixture::EXCHANGE).unwrap();
    assert_eq!(shown(), ["file", "b", "b/inner"]);
    view.link("file", "c").unwrap();
    assert_eq!(shown(), ["file", "b", "b/inner", "c"]);
    view.unlink("b/inner").unwrap();
    view.rmdir("b").unwrap();
    assert_eq!(shown(), ["file", "c"]);
    view.mkdir("dir", 0o755).unwrap();
    assert_eq!(shown(), ["file", "dir", "c"]);
    view.symlink("a", "x").unwrap();
    view.mknod("b", nix::libc::S_IFIFO | 0o644, 0).unwrap();
    assert_eq!(shown(), ["file", "dir", "a", "b", "c"]);
}
