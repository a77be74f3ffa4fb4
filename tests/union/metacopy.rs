//! A change of metadata alone copies no data: upper has a hole with a mark, and the data follows with its first change.

use std::os::unix::fs::MetadataExt;

use layerfs::error::Errno;
use layerfs::union::{Attr, Options, SetAttr, SetTime, Time};

use super::fixture::*;

/// A content that no two files share, of 64 KiB.
fn content(seed: &str) -> String {
    seed.chars().cycle().take(64 << 10).collect()
}

/// A lower file `d/f` of 64 KiB.
fn one_file() -> Layers {
    let layers = Layers::new(2);
    layers.file(1, "d/f", &content("lower"));
    layers
}

fn metacopy(on: bool) -> Options {
    Options { metacopy: on, ..Options::default() }
}

/// Whether upper has a file without its data.
fn is_metadata_copy(layers: &Layers, path: &str) -> bool {
    let file = layers.upper(path);
    let marked = get_xattr(&file, &mark("metacopy"));
    assert!(marked.as_ref().is_none_or(Vec::is_empty), "as the kernel writes it: {marked:?}");
    if marked.is_some() {
        let meta = file.metadata().unwrap();
        assert!(meta.blocks() * 512 < meta.len().min(32 << 10), "{path}: {} blocks", meta.blocks());
    }
    marked.is_some()
}

/// How many copies of a kind were made, and how much data was copied in all.
fn copied(view: &View, kind: &str) -> (u64, u64) {
    let stats = view.stats();
    (stats.copy_ups.get(kind).copied().unwrap_or(0), stats.copy_up_bytes.values().sum())
}

type Change = fn(&View, &str);

const CHANGES: [(&str, Change); 6] = [
    ("chmod", |view, path| _ = view.chmod(path, 0o604).unwrap()),
    ("chown", |view, path| {
        let (uid, gid) = (Some(me().uid), Some(me().gid));
        view.set(path, SetAttr { uid, gid, ..SetAttr::default() }).unwrap();
    }),
    ("times", |view, path| _ = view.touch(path, 77, 88).unwrap()),
    ("time of access", |view, path| {
        view.set(path, SetAttr { atime: Some(SetTime::Now), ..SetAttr::default() }).unwrap();
    }),
    ("setxattr", |view, path| view.set_xattr(path, "user.new", b"value").unwrap()),
    ("removexattr", |view, path| {
        view.union.removexattr(view.hold(path).unwrap().ino, &xname("user.kept")).unwrap();
    }),
];

#[test]
fn a_change_of_metadata_copies_no_data() {
    for (change, make) in CHANGES {
        let layers = one_file();
        let file = layers.lower(1, "d/f");
        set_xattr(&file, "user.kept", b"kept").unwrap();
        set_mode(&file, 0o4711);
        set_times(&file, 1_000_000_007, 123_456_789);
        let before = snapshot(&layers.lowers[1]);
        let blocks = file.metadata().unwrap().blocks();
        let view = layers.open();
        let ino = view.stat("d/f").unwrap().ino;
        make(&view, "d/f");
        assert!(is_metadata_copy(&layers, "d/f"), "{change}");
        assert_eq!(copied(&view, "metadata"), (1, 0), "{change}");
        let shown = view.stat("d/f").unwrap();
        let check = |view: &View| {
            let attr = view.stat("d/f").unwrap();
            assert_eq!(attr, shown, "{change}");
            assert_eq!((attr.ino, attr.size, attr.blocks), (ino, 64 << 10, blocks), "{change}");
            assert_eq!(view.text("d/f"), content("lower"), "{change}");
            match change {
                "chmod" => assert_eq!(attr.mode & 0o7777, 0o604),
                "chown" => assert_eq!(attr.mode & 0o7777, 0o711, "as on any filesystem"),
                _ => assert_eq!(attr.mode & 0o7777, 0o4711, "{change}"),
            }
            let mtime = if change == "times" { (77, 88) } else { (1_000_000_007, 123_456_789) };
            assert_eq!((attr.mtime.sec, attr.mtime.nsec), mtime, "{change}");
            let expected: &[&str] = match change {
                "setxattr" => &["user.kept", "user.new"],
                "removexattr" => &[],
                _ => &["user.kept"],
            };
            assert_eq!(view.xattrs("d/f").unwrap(), expected, "{change}");
            assert_eq!(copied(view, "data"), (0, 0), "{change}: reading brings nothing up");
        };
        check(&view);
        view.union.fsync(view.hold("d/f").unwrap().ino, false).unwrap();
        view.close();
        check(&layers.open());
        check(&layers.open_with(metacopy(false)));
        assert!(is_metadata_copy(&layers, "d/f"), "{change}");
        assert_eq!(snapshot(&layers.lowers[1]), before, "{change}");
    }
}

const DATA_CHANGES: [(&str, Change); 6] = [
    ("write", |view, path| view.write(path, 3, b"###").unwrap()),
    ("append", |view, path| view.write(path, 64 << 10, b"###").unwrap()),
    ("shorter", |view, path| _ = view.truncate(path, 5).unwrap()),
    ("longer", |view, path| _ = view.truncate(path, 70_000).unwrap()),
    ("fallocate", |view, path| {
        view.union.fallocate(view.hold(path).unwrap().ino, 0, 0, 70_000).unwrap();
    }),
    ("emptied", |view, path| _ = view.truncate(path, 0).unwrap()),
];

#[test]
fn data_follows_with_its_first_change() {
    for (change, make) in DATA_CHANGES {
        for remounted in [false, true] {
            let layers = one_file();
            set_xattr(&layers.lower(1, "d/f"), "user.kept", b"kept").unwrap();
            let before = snapshot(&layers.lowers[1]);
            let mut expected = content("lower").into_bytes();
            match change {
                "write" => expected[3..6].copy_from_slice(b"###"),
                "append" => expected.extend_from_slice(b"###"),
                "shorter" => expected.truncate(5),
                "emptied" => expected.clear(),
                _ => expected.resize(70_000, 0),
            }
            let mut view = layers.open();
            view.chmod("d/f", 0o601).unwrap();
            view.touch("d/f", 77, 88).unwrap();
            if remounted {
                view.close();
                view = layers.open();
            }
            let ino = view.stat("d/f").unwrap().ino;
            make(&view, "d/f");
            assert!(!is_metadata_copy(&layers, "d/f"), "{change}");
            let bytes = if change == "emptied" { 0 } else { 64 << 10 };
            assert_eq!(copied(&view, "completed"), (1, bytes), "{change}");
            let Attr { atime, mtime, .. } = view.stat("d/f").unwrap();
            assert!(atime == Time { sec: 77, nsec: 88 } && mtime != atime, "{change}");
            let check = |view: &View| {
                assert_eq!(view.read("d/f").unwrap(), expected, "{change}");
                let attr = view.stat("d/f").unwrap();
                assert_eq!((attr.ino, attr.mode & 0o7777, attr.mtime), (ino, 0o601, mtime), "{change}");
                assert_eq!(view.xattrs("d/f").unwrap(), ["user.kept"], "{change}");
            };
            check(&view);
            view.chmod("d/f", 0o601).unwrap();
            assert_eq!(copied(&view, "completed"), (1, bytes), "{change}: once");
            view.close();
            check(&layers.open());
            assert_eq!(snapshot(&layers.lowers[1]), before, "{change}");
        }
    }
}

/// Nothing tells a time of modification that is set before the write from one that is set after it.
#[test]
fn times_that_are_set_stay_what_they_are() {
    let layers = one_file();
    let view = layers.open();
    view.touch("d/f", 1, 2).unwrap();
    view.write("d/f", 0, b"x").unwrap();
    view.touch("d/f", 3, 4).unwrap();
    view.close();
    let attr = layers.open().stat("d/f").unwrap();
    assert_eq!((attr.mtime.sec, attr.mtime.nsec), (3, 4));
}

#[test]
fn an_empty_file_needs_no_mark() {
    let layers = Layers::new(1);
    layers.file(0, "empty", "");
    let view = layers.open();
    view.chmod("empty", 0o600).unwrap();
    assert_eq!(get_xattr(&layers.upper("empty"), &mark("metacopy")), None);
    assert_eq!(copied(&view, "data"), (1, 0));
}

#[test]
fn turned_off_it_copies_all() {
    let layers = one_file();
    let view = layers.open_with(metacopy(false));
    view.chmod("d/f", 0o600).unwrap();
    assert!(!is_metadata_copy(&layers, "d/f"));
    assert_eq!(copied(&view, "data"), (1, 64 << 10));
}

/// Lower files at every name that a metadata copy comes to would show their data if it looked there.
fn traps() -> Layers {
    let layers = Layers::new(2);
    for (layer, path) in
        [(1, "f"), (1, "g"), (0, "d/f"), (1, "d/f"), (1, "d/g"), (1, "e/f"), (0, "e/sub/f"), (1, "e/g")]
    {
        layers.file(layer, path, &content(&format!("{layer}{path}.")));
    }
    layers
}

#[test]
fn a_metadata_copy_takes_its_data_with_it() {
    let layers = traps();
    let before: Vec<_> = layers.lowers.iter().map(|lower| snapshot(lower)).collect();
    let view = layers.open();
    let (in_root, in_dir, in_sub) = (content("1f."), content("0d/f."), content("0e/sub/f."));
    view.chmod("f", 0o600).unwrap();
    view.rename("f", "g", PLAIN).unwrap();
    view.link("g", "e/f2").unwrap();
    view.rename("d/f", "e/g", PLAIN).unwrap();
    view.link("e/sub/f", "d/g2").unwrap();
    view.rename("d/g", "e/f", EXCHANGE).unwrap();
    view.mkdir("new", 0o755).unwrap();
    view.link("g", "new/f").unwrap();
    view.rename("e/sub/f", "new/g", PLAIN).unwrap();
    assert_eq!(copied(&view, "metadata"), (5, 0), "no data in all this");
    let check = |view: &View, e: &str| {
        for path in ["g", &format!("{e}/f2"), "new/f"] {
            assert_eq!(view.text(path), in_root, "{path}");
            assert_eq!(view.stat(path).unwrap().nlink, 3, "{path}");
        }
        assert_eq!(view.text(&format!("{e}/g")), in_dir);
        for path in ["d/g2", "new/g"] {
            assert_eq!(view.text(path), in_sub, "{path}");
        }
        assert_eq!(view.text("d/g"), content("1e/f."));
        assert_eq!(view.text(&format!("{e}/f")), content("1d/g."));
        assert!(!view.exists("f") && !view.exists("d/f") && !view.exists(&format!("{e}/sub/f")));
    };
    check(&view, "e");
    // The directories move with what was marked before and what is marked later.
    view.rename("e", "moved", PLAIN).unwrap();
    view.mkdir("e", 0o755).unwrap();
    view.rename("moved/g", "e/again", PLAIN).unwrap();
    view.rename("e/again", "moved/g", PLAIN).unwrap();
    check(&view, "moved");
    assert_eq!(copied(&view, "metadata"), (5, 0));
    view.close();
    let view = layers.open();
    check(&view, "moved");
    view.write("moved/f2", 0, b"#").unwrap();
    view.write("new/g", 0, b"#").unwrap();
    assert_eq!(view.text("new/f"), format!("#{}", &in_root[1..]));
    assert_eq!(view.text("d/g2"), format!("#{}", &in_sub[1..]));
    let after: Vec<_> = layers.lowers.iter().map(|lower| snapshot(lower)).collect();
    assert_eq!(after, before);
}

/// The path in the mark is that in the lowers, whatever the directories above are called by then.
#[test]
fn a_metadata_copy_leaves_a_directory_that_was_renamed() {
    let layers = traps();
    let view = layers.open();
    view.rename("d", "dd", PLAIN).unwrap();
    view.rename("e", "d", PLAIN).unwrap();
    view.rename("dd", "d/inner", PLAIN).unwrap();
    view.chmod("d/inner/f", 0o600).unwrap();
    view.rename("d/inner/f", "out", PLAIN).unwrap();
    view.rename("d/sub/f", "out2", PLAIN).unwrap();
    view.mkdir("e", 0o755).unwrap();
    view.rename("d/inner", "e/d", PLAIN).unwrap();
    view.rename("e/d/g", "e/f", PLAIN).unwrap();
    assert_eq!(get_xattr(&layers.upper("out"), &mark("redirect")).unwrap(), b"/d/f");
    assert_eq!(get_xattr(&layers.upper("out2"), &mark("redirect")).unwrap(), b"/e/sub/f");
    assert_eq!(get_xattr(&layers.upper("e/f"), &mark("redirect")).unwrap(), b"/d/g");
    let check = |view: &View| {
        for (path, from) in [("out", "0d/f."), ("out2", "0e/sub/f."), ("e/f", "1d/g.")] {
            assert_eq!(view.text(path), content(from), "{path}");
        }
        assert_eq!(copied(view, "completed"), (0, 0));
    };
    check(&view);
    view.close();
    check(&layers.open());
}

#[test]
fn without_redirects_the_data_comes_before_another_name() {
    let layers = traps();
    let view = layers.open_with(Options { redirect_dir: false, ..Options::default() });
    view.chmod("f", 0o600).unwrap();
    assert!(is_metadata_copy(&layers, "f"));
    view.rename("f", "g", PLAIN).unwrap();
    view.link("d/f", "d/f2").unwrap();
    for path in ["g", "d/f", "d/f2"] {
        assert!(!is_metadata_copy(&layers, path), "{path}");
        assert!(get_xattr(&layers.upper(path), &mark("redirect")).is_none() || !privileged(), "{path}");
    }
    view.close();
    let view = layers.open();
    assert_eq!(view.text("g"), content("1f."));
    assert_eq!(view.text("d/f2"), content("0d/f."));
}

/// As the kernel's overlay leaves it where a file moved within its directory.
#[test]
fn a_mark_with_a_name_alone_becomes_one_with_a_path() {
    let layers = traps();
    for path in ["d/first", "e/second"] {
        let file = layers.upper(path);
        std::fs::File::create(&file).unwrap().set_len(64 << 10).unwrap();
        set_mode(&file, 0o600);
        set_xattr(&file, &mark("metacopy"), b"").unwrap();
        set_xattr(&file, &mark("redirect"), b"f").unwrap();
    }
    set_xattr(&layers.upper("d"), &mark("impure"), b"y").unwrap();
    let view = layers.open();
    assert_eq!(view.text("d/first"), content("0d/f."));
    view.rename("d/first", "e/first", PLAIN).unwrap();
    view.link("e/second", "link").unwrap();
    view.close();
    let view = layers.open();
    assert_eq!(view.text("e/first"), content("0d/f."));
    assert_eq!(view.text("e/second"), content("1e/f."));
    assert_eq!(view.text("link"), content("1e/f."));
}

#[test]
fn names_of_one_lower_file_share_one_metadata_copy() {
    let layers = Layers::new(1);
    let file = layers.file(0, "a", &content("lower"));
    for name in ["b", "d/c", "d/e"] {
        std::fs::hard_link(&file, layers.lower(0, name)).unwrap();
    }
    layers.file(0, "d/x", &content("another"));
    let view = layers.open();
    let check = |view: &View, names: &[&str], content: &str, mode: u32| {
        let ino = view.stat(names[0]).unwrap().ino;
        for name in names {
            let attr = view.stat(name).unwrap();
            assert_eq!((attr.ino, attr.mode & 0o7777, attr.nlink), (ino, mode, names.len() as u32), "{name}");
            assert_eq!(view.text(name), content, "{name}");
        }
    };
    view.chmod("a", 0o600).unwrap();
    assert!(is_metadata_copy(&layers, "a"));
    check(&view, &["a", "b", "d/c", "d/e"], &content("lower"), 0o600);
    view.close();
    let view = layers.open();
    check(&view, &["d/e", "b", "a", "d/c"], &content("lower"), 0o600);
    view.rename("b", "d/x", PLAIN).unwrap();
    view.link("d/c", "f").unwrap();
    view.unlink("a").unwrap();
    check(&view, &["d/e", "d/x", "d/c", "f"], &content("lower"), 0o600);
    view.close();
    let view = layers.open();
    check(&view, &["f", "d/e", "d/x", "d/c"], &content("lower"), 0o600);
    assert_eq!(copied(&view, "completed"), (0, 0));
    view.write("d/c", 0, b"#").unwrap();
    let changed = format!("#{}", &content("lower")[1..]);
    check(&view, &["f", "d/e", "d/x", "d/c"], &changed, 0o600);
    view.close();
    check(&layers.open(), &["f", "d/e", "d/x", "d/c"], &changed, 0o600);
}

#[test]
fn a_file_without_a_name_gets_its_data_too() {
    for copied_before in [true, false] {
        let layers = one_file();
        let view = layers.open();
        let held = view.hold("d/f").unwrap();
        if copied_before {
            view.chmod("d/f", 0o600).unwrap();
        }
        view.unlink("d/f").unwrap();
        view.union.setattr(&me(), held.ino, &SetAttr { mode: Some(0o640), ..SetAttr::default() }).unwrap();
        assert_eq!(copied(&view, "metadata"), (1, 0));
        assert_eq!(read_all(&view.union, held.ino).unwrap(), content("lower").into_bytes());
        write_all(&view.union, held.ino, 0, b"#").unwrap();
        assert_eq!(read_all(&view.union, held.ino).unwrap(), format!("#{}", &content("lower")[1..]).into_bytes());
        assert_eq!(view.union.getattr(held.ino).unwrap().mode & 0o7777, 0o640);
        drop(held);
        assert!(!view.exists("d/f"));
    }
}

#[test]
fn one_is_replaced_and_removed_as_any_file() {
    let layers = traps();
    let view = layers.open();
    view.chmod("f", 0o600).unwrap();
    view.chmod("d/f", 0o600).unwrap();
    view.put("new", "new");
    view.rename("new", "f", PLAIN).unwrap();
    view.unlink("d/f").unwrap();
    view.close();
    let view = layers.open();
    assert_eq!(view.text("f"), "new");
    assert!(!view.exists("d/f") && is_whiteout(&layers.upper("d/f")));
    view.put("d/f", "again");
    view.close();
    assert_eq!(layers.open().text("d/f"), "again");
}

#[test]
fn an_upper_that_became_a_lower_has_its_data_further_down() {
    let mut layers = traps();
    let view = layers.open();
    view.chmod("f", 0o600).unwrap();
    view.rename("d/f", "e/moved", PLAIN).unwrap();
    view.close();
    layers.add_layer();
    let spec = layerfs::layer::StackSpec { trusted_lowers: true, ..layers.spec() };
    let open = || View::open(&spec, Options::default());
    let view = open();
    let check = |view: &View, f: &str, moved: &str| {
        assert_eq!(view.text(f), content("1f."));
        assert_eq!(view.text(moved), content("0d/f."));
        assert_eq!(copied(view, "completed"), (0, 0));
    };
    check(&view, "f", "e/moved");
    view.touch("f", 5, 6).unwrap();
    view.touch("e/moved", 5, 6).unwrap();
    assert!(is_metadata_copy(&layers, "f") && is_metadata_copy(&layers, "e/moved"));
    check(&view, "f", "e/moved");
    view.close();
    let view = open();
    check(&view, "f", "e/moved");
    view.rename("f", "e/f2", PLAIN).unwrap();
    view.rename("e/moved", "g", PLAIN).unwrap();
    view.rename("e", "h", PLAIN).unwrap();
    check(&view, "h/f2", "g");
    view.close();
    let view = open();
    check(&view, "h/f2", "g");
    view.write("g", 0, b"#").unwrap();
    view.write("h/f2", 0, b"#").unwrap();
    view.close();
    let view = open();
    assert_eq!(view.text("g"), format!("#{}", &content("0d/f.")[1..]));
    assert_eq!(view.text("h/f2"), format!("#{}", &content("1f.")[1..]));
}

/// Who makes a layer of an upper and doesn't say that it can be trusted must not take the holes for the files.
#[test]
fn without_trust_its_data_is_an_error_and_no_zeros() {
    let mut layers = traps();
    let view = layers.open();
    view.chmod("f", 0o600).unwrap();
    view.rename("d/f", "e/moved", PLAIN).unwrap();
    view.close();
    layers.add_layer();
    for view in [layers.open_read_only(), layers.open()] {
        for path in ["f", "e/moved"] {
            assert_eq!(view.stat(path).unwrap().size, 64 << 10);
            assert_eq!(view.read(path), Err(Errno::EIO), "{path}");
        }
        assert_eq!(view.text("d/g"), content("1d/g."));
    }
    let view = layers.open();
    view.chmod("f", 0o640).unwrap();
    assert_eq!(view.write("f", 0, b"#"), Err(Errno::EIO));
    assert_eq!(view.truncate("e/moved", 5), Err(Errno::EIO));
    view.close();
    let view = layers.open();
    assert_eq!(view.read("f"), Err(Errno::EIO), "a copy of it is no better");
    view.truncate("f", 0).unwrap();
    view.write("f", 0, b"new").unwrap();
    view.rename("e/moved", "e/again", PLAIN).unwrap();
    view.unlink("e/again").unwrap();
    assert_eq!(view.text("f"), "new");
}

#[test]
fn modes_that_keep_their_owner_out_are_no_hindrance() {
    let layers = one_file();
    let view = layers.open();
    view.chmod("d/f", 0o000).unwrap();
    view.set_xattr("d/f", "user.x", b"y").unwrap();
    view.rename("d/f", "g", PLAIN).unwrap();
    view.close();
    let view = layers.open();
    assert_eq!(view.text("g"), content("lower"));
    view.write("g", 0, b"#").unwrap();
    view.close();
    let view = layers.open();
    assert_eq!(view.stat("g").unwrap().mode & 0o7777, 0);
    assert_eq!(view.text("g"), format!("#{}", &content("lower")[1..]));
}

#[test]
fn data_that_is_gone_is_an_error_and_no_zeros() {
    let layers = one_file();
    let view = layers.open();
    view.chmod("d/f", 0o600).unwrap();
    view.close();
    std::fs::remove_file(layers.lower(1, "d/f")).unwrap();
    let view = layers.open();
    assert_eq!(view.stat("d/f").unwrap_err(), Errno::EIO);
}

/// A change of metadata and one of data at the same time, while others look and move it.
#[test]
fn metadata_and_data_change_side_by_side() {
    const FILES: usize = 400;
    let layers = Layers::new(2);
    let path = |n: usize| format!("d{}/f{n}", n % 4);
    for n in 0..FILES {
        layers.file(n % 2, &path(n), "lower");
    }
    let view = layers.open();
    for n in 0..FILES {
        let (old, new) = (path(n), format!("d0/moved{n}"));
        let held = view.hold(&old).unwrap();
        let barrier = std::sync::Barrier::new(5);
        let together = |act: &dyn Fn()| {
            barrier.wait();
            act();
        };
        let moved = std::thread::scope(|scope| {
            scope.spawn(|| {
                together(&|| {
                    let time = Some(SetTime::At(Time { sec: 5, nsec: 6 }));
                    view.union.setattr(&me(), held.ino, &SetAttr { mtime: time, ..SetAttr::default() }).unwrap();
                });
            });
            scope.spawn(|| {
                together(&|| {
                    view.union.setattr(&me(), held.ino, &SetAttr { mode: Some(0o601), ..SetAttr::default() }).unwrap();
                });
            });
            scope.spawn(|| together(&|| assert_eq!(view.union.write_back(held.ino, 5, b"!").unwrap(), 1)));
            scope.spawn(|| {
                together(&|| {
                    let read = read_all(&view.union, held.ino).unwrap();
                    assert!(read == b"lower" || read == b"lower!", "{n}: {}", read.escape_ascii());
                });
            });
            barrier.wait();
            view.rename(&old, &new, PLAIN)
        });
        moved.unwrap();
        let attr = view.stat(&new).unwrap();
        assert_eq!((attr.ino, attr.size, attr.mode & 0o7777), (held.ino, 6, 0o601), "{n}");
        assert_eq!(view.text(&new), "lower!", "{n}");
        assert_eq!((attr.mtime.sec, attr.mtime.nsec), (5, 6), "{n}");
    }
    view.close();
    let view = layers.open();
    for n in 0..FILES {
        assert_eq!(view.text(&format!("d0/moved{n}")), "lower!");
    }
}
