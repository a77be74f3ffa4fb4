//! Whiteouts and opaque directories in every form, and marks that somebody planted.

use layerfs::error::Errno;

use super::fixture::{Layers, get_xattr, make_whiteout, mark, privileged, set_xattr, snapshot};

/// Leaves a whiteout of `name` in the directory `dir` of the top lower, in one of the forms.
type MakeWhiteout = fn(&Layers, dir: &str, name: &str);

fn whiteout_forms() -> Vec<(&'static str, MakeWhiteout)> {
    let mut forms: Vec<(&'static str, MakeWhiteout)> = vec![
        ("device", |layers, dir, name| make_whiteout(&layers.lower(0, &format!("{dir}/{name}")))),
        ("file", |layers, dir, name| {
            layers.file(0, &format!("{dir}/.wh.{name}"), "");
        }),
        ("user xattr", |layers, dir, name| xattr_whiteout(layers, dir, name, "user")),
    ];
    if privileged() {
        forms.push(("trusted xattr", |layers, dir, name| xattr_whiteout(layers, dir, name, "trusted")));
    }
    forms
}

fn xattr_whiteout(layers: &Layers, dir: &str, name: &str, namespace: &str) {
    let file = layers.file(0, &format!("{dir}/{name}"), "");
    set_xattr(&file, &format!("{namespace}.overlay.whiteout"), b"y").unwrap();
    set_xattr(&layers.lower(0, dir), &format!("{namespace}.overlay.opaque"), b"x").unwrap();
}

#[test]
fn every_form_of_whiteout_hides_what_is_below_and_itself() {
    for (form, make) in whiteout_forms() {
        let layers = Layers::new(2);
        for path in ["d/file", "d/dir/inner", "d/kept"] {
            layers.file(1, path, "lower");
        }
        make(&layers, "d", "file");
        make(&layers, "d", "dir");
        make(&layers, "d", "nothing-below");
        let before = snapshot(&layers.lowers[0]);
        let view = layers.open();
        for hidden in ["d/file", "d/dir", "d/nothing-below", "d/.wh.file"] {
            assert_eq!(view.stat(hidden).unwrap_err(), Errno::ENOENT, "{form}: {hidden}");
        }
        assert_eq!(view.names("d").unwrap(), ["kept"], "{form}");
        view.put("d/file", "new");
        view.mkdir("d/dir", 0o755).unwrap();
        assert_eq!(view.names("d").unwrap(), ["dir", "file", "kept"], "{form}");
        assert_eq!(view.names("d/dir").unwrap(), [""; 0], "{form}: made over a whiteout, it is empty");
        assert_eq!(view.text("d/file"), "new");
        view.close();
        let view = layers.open();
        assert_eq!(view.names("d/dir").unwrap(), [""; 0], "{form}: and stays it");
        view.rmdir("d/dir").unwrap();
        view.unlink("d/file").unwrap();
        assert_eq!(view.names("d").unwrap(), ["kept"], "{form}");
        view.close();
        assert_eq!(snapshot(&layers.lowers[0]), before, "{form}");
    }
}

#[test]
fn a_file_form_whiteout_in_upper_goes_when_its_name_comes() {
    let layers = Layers::new(1);
    layers.file(0, "f", "lower");
    layers.file(0, "d/inner", "lower");
    std::fs::write(layers.upper(".wh.f"), "").unwrap();
    std::fs::write(layers.upper(".wh.d"), "").unwrap();
    let view = layers.open();
    assert!(!view.exists("f") && !view.exists("d"));
    view.put("f", "new");
    view.mkdir("d", 0o755).unwrap();
    assert_eq!(view.names("").unwrap(), ["d", "f"]);
    assert_eq!(view.names("d").unwrap(), [""; 0]);
    view.close();
    let view = layers.open();
    assert_eq!(view.text("f"), "new");
    assert_eq!(view.names("d").unwrap(), [""; 0]);
    view.unlink("f").unwrap();
    assert!(!view.exists("f"));
}

/// Elsewhere than in the directory that announces it, such a whiteout is an empty file.
#[test]
fn an_xattr_whiteout_in_upper_is_replaced_not_moved() {
    for source in ["low", "made", "file"] {
        let layers = Layers::new(1);
        layers.file(0, "low/in", "lower");
        layers.file(0, "file", "lower");
        layers.file(0, "d/gone", "lower");
        std::fs::write(layers.upper("d/gone"), "").unwrap();
        set_xattr(&layers.upper("d/gone"), &mark("whiteout"), b"y").unwrap();
        set_xattr(&layers.upper("d"), &mark("opaque"), b"x").unwrap();
        let view = layers.open();
        assert_eq!(view.names("d").unwrap(), [""; 0]);
        view.mkdir("made", 0o755).unwrap();
        view.rename(source, "d/gone", super::fixture::PLAIN).unwrap();
        assert!(!view.exists(source), "{source}");
        assert_eq!(view.names("d").unwrap(), ["gone"], "{source}");
        view.rename("d/gone", "back", super::fixture::PLAIN).unwrap();
        assert_eq!(view.names("d").unwrap(), [""; 0], "{source}");
        view.close();
        let view = layers.open();
        assert!(!view.exists(source) && !view.exists("d/gone"), "{source}");
    }
}

/// The attribute that makes a directory opaque is the one that announces whiteouts in it.
#[test]
fn an_upper_directory_with_xattr_whiteouts_can_become_opaque() {
    for flags in [super::fixture::PLAIN, super::fixture::EXCHANGE] {
        let layers = Layers::new(1);
        layers.file(0, "target/in", "lower");
        std::fs::write(layers.upper("d/gone"), "").unwrap();
        set_xattr(&layers.upper("d/gone"), &mark("whiteout"), b"y").unwrap();
        set_xattr(&layers.upper("d"), &mark("opaque"), b"x").unwrap();
        std::fs::write(layers.upper("d/kept"), "kept").unwrap();
        super::fixture::set_times(&layers.upper("d"), 77, 88);
        let view = layers.open();
        if flags == super::fixture::PLAIN {
            view.unlink("target/in").unwrap();
        }
        view.rename("d", "target", flags).unwrap();
        assert_eq!(view.names("target").unwrap(), ["kept"]);
        let mtime = view.stat("target").unwrap().mtime;
        assert_eq!((mtime.sec, mtime.nsec), (77, 88), "moving it is no change of what it holds");
        view.close();
        assert_eq!(layers.open().names("target").unwrap(), ["kept"]);
    }
}

/// The image specification: a whiteout applies to the layers below, never to what its own layer holds.
#[test]
fn a_file_form_whiteout_beside_its_name_hides_only_what_is_below() {
    let layers = Layers::new(2);
    layers.file(0, "d/new", "top");
    layers.file(0, ".wh.d", "");
    layers.file(1, "d/old", "lower");
    let view = layers.open();
    assert_eq!(view.names("").unwrap(), ["d"]);
    assert_eq!(view.names("d").unwrap(), ["new"]);
    assert!(!view.exists("d/old"));
}

#[test]
fn an_xattr_whiteout_counts_only_in_a_directory_that_announces_it_and_on_an_empty_file() {
    let layers = Layers::new(2);
    layers.file(1, "plain/f", "lower");
    layers.file(1, "announced/full", "lower");
    let unannounced = layers.file(0, "plain/f", "");
    set_xattr(&unannounced, &mark("whiteout"), b"y").unwrap();
    let full = layers.file(0, "announced/full", "not empty");
    set_xattr(&full, &mark("whiteout"), b"y").unwrap();
    set_xattr(&layers.lower(0, "announced"), &mark("opaque"), b"x").unwrap();
    let view = layers.open();
    assert_eq!(view.text("plain/f"), "");
    assert_eq!(view.text("announced/full"), "not empty");
}

type MakeOpaque = fn(&Layers, dir: &str);

fn opaque_forms() -> Vec<(&'static str, MakeOpaque)> {
    let mut forms: Vec<(&'static str, MakeOpaque)> = vec![
        ("user.overlay", |layers, dir| set_xattr(&layers.lower(0, dir), "user.overlay.opaque", b"y").unwrap()),
        ("user.fuseoverlayfs", |layers, dir| {
            set_xattr(&layers.lower(0, dir), "user.fuseoverlayfs.opaque", b"y").unwrap();
        }),
        ("file", |layers, dir| {
            layers.file(0, &format!("{dir}/.wh..wh..opq"), "");
        }),
    ];
    if privileged() {
        forms.push(("trusted.overlay", |layers, dir| {
            set_xattr(&layers.lower(0, dir), "trusted.overlay.opaque", b"y").unwrap();
        }));
    }
    forms
}

#[test]
fn every_form_of_opaque_hides_what_is_below_the_directory() {
    for (form, make) in opaque_forms() {
        let layers = Layers::new(2);
        layers.file(0, "d/sub/shown", "top");
        layers.file(1, "d/sub/hidden", "lower");
        layers.file(1, "d/hidden", "lower");
        make(&layers, "d");
        let view = layers.open();
        assert_eq!(view.names("d").unwrap(), ["sub"], "{form}");
        assert_eq!(view.names("d/sub").unwrap(), ["shown"], "{form}: the whole tree below is hidden");
        assert!(!view.exists("d/hidden") && !view.exists("d/sub/hidden"), "{form}");
        assert!(!view.exists("d/.wh..wh..opq"), "{form}");
        view.put("d/hidden", "new");
        assert_eq!(view.names("d").unwrap(), ["hidden", "sub"], "{form}");
        view.unlink("d/hidden").unwrap();
        assert!(!view.exists("d/hidden"), "{form}");
        view.unlink("d/sub/shown").unwrap();
        view.rmdir("d/sub").unwrap();
        view.rmdir("d").unwrap();
        view.mkdir("d", 0o755).unwrap();
        assert_eq!(view.names("d").unwrap(), [""; 0], "{form}");
    }
}

#[test]
fn copy_up_of_an_opaque_directory_does_not_hide_its_own_layer() {
    for (form, make) in opaque_forms() {
        let layers = Layers::new(2);
        layers.file(0, "d/sub/shown", "top");
        layers.file(1, "d/hidden", "lower");
        make(&layers, "d");
        let view = layers.open();
        view.chmod("d", 0o750).unwrap();
        view.put("d/new", "");
        assert_eq!(view.names("d").unwrap(), ["new", "sub"], "{form}");
        view.close();
        let view = layers.open();
        assert_eq!(view.names("d").unwrap(), ["new", "sub"], "{form}, opened again");
        assert_eq!(view.text("d/sub/shown"), "top", "{form}");
        assert!(!view.exists("d/hidden"), "{form}");
    }
}

#[test]
fn an_opaque_directory_in_the_middle_cuts_there() {
    let layers = Layers::new(3);
    layers.file(0, "d/top", "");
    layers.file(1, "d/middle", "");
    layers.file(2, "d/bottom", "");
    set_xattr(&layers.lower(1, "d"), &mark("opaque"), b"y").unwrap();
    assert_eq!(layers.open().names("d").unwrap(), ["middle", "top"]);
}

/// A name that begins with `.wh.` is a whiteout on disk, so no object can have it: creating one is `EINVAL`.
#[test]
fn names_that_are_whiteouts_on_disk_cannot_be_made() {
    let layers = Layers::new(1);
    layers.file(0, "f", "lower");
    let view = layers.open();
    for name in [".wh.x", ".wh.f", ".wh..wh..opq", ".wh."] {
        assert_eq!(view.stat(name).unwrap_err(), Errno::ENOENT);
        assert_eq!(view.create(name, 0o644).unwrap_err(), Errno::EINVAL);
        assert_eq!(view.mkdir(name, 0o755).unwrap_err(), Errno::EINVAL);
        assert_eq!(view.symlink(name, "x").unwrap_err(), Errno::EINVAL);
        assert_eq!(view.mknod(name, nix::libc::S_IFIFO | 0o644, 0).unwrap_err(), Errno::EINVAL);
        assert_eq!(view.link("f", name).unwrap_err(), Errno::EINVAL);
        assert_eq!(view.rename("f", name, super::fixture::PLAIN).unwrap_err(), Errno::EINVAL);
    }
    assert_eq!(view.names("").unwrap(), ["f"]);
    view.put(".whx", "no whiteout");
    assert_eq!(view.text(".whx"), "no whiteout");
}

#[test]
fn a_bad_redirect_is_an_error_of_that_object_alone() {
    for redirect in ["../outside", "/../outside", "a/b", "/a//b", "..", "", "/"] {
        let layers = Layers::new(1);
        layers.file(0, "a/b/f", "lower");
        layers.file(0, "good", "lower");
        std::fs::create_dir(layers.beside("outside")).unwrap();
        std::fs::create_dir(layers.upper("bad")).unwrap();
        set_xattr(&layers.upper("bad"), &mark("redirect"), redirect.as_bytes()).unwrap();
        let view = layers.open();
        assert_eq!(view.stat("bad").unwrap_err(), Errno::EIO, "{redirect:?}");
        assert_eq!(view.text("good"), "lower");
        assert_eq!(view.text("a/b/f"), "lower");
    }
}

/// A layer that was the upper of another mount needs its directories' redirects; they lead to the layers below only. A file
/// could otherwise show another one under a name of an image's choice.
#[test]
fn redirects_count_in_a_lower_for_directories_only() {
    let layers = Layers::new(2);
    layers.file(1, "secret/f", "secret");
    layers.file(1, "secret-file", "secret");
    let dir = layers.directory(0, "d");
    set_xattr(&dir, &mark("redirect"), b"/secret").unwrap();
    let file = layers.file(0, "f", "");
    set_xattr(&file, &mark("redirect"), b"/secret-file").unwrap();
    set_xattr(&file, &mark("metacopy"), b"").unwrap();
    let view = layers.open();
    assert_eq!(view.names("d").unwrap(), ["f"]);
    assert_eq!(view.text("f"), "");
}

#[test]
fn marks_of_the_other_namespace_are_plain_attributes_in_upper() {
    if !privileged() {
        eprintln!("left out without the superuser's rights");
        return;
    }
    let layers = Layers::new(1);
    layers.file(0, "secret/f", "secret");
    std::fs::create_dir(layers.upper("d")).unwrap();
    set_xattr(&layers.upper("d"), "user.overlay.redirect", b"/secret").unwrap();
    let view = layers.open();
    assert_eq!(view.names("d").unwrap(), [""; 0]);
    assert_eq!(view.get_xattr("d", "user.overlay.redirect").unwrap(), b"/secret");
}

#[test]
fn private_marks_cannot_be_seen_or_set_through_the_union() {
    let layers = Layers::new(1);
    layers.file(0, "d/f", "lower");
    let view = layers.open();
    view.rename("d", "e", super::fixture::PLAIN).unwrap();
    view.chmod("e/f", 0o600).unwrap();
    for path in ["e", "e/f"] {
        let shown = view.xattrs(path).unwrap();
        assert!(!shown.iter().any(|name| name.contains("overlay.")), "{path}: {shown:?}");
        for private in ["redirect", "origin", "opaque", "impure", "metacopy"] {
            let seen = view.get_xattr(path, &mark(private));
            assert_eq!(seen.unwrap_err(), Errno::ENODATA, "{path} {private}");
        }
    }
    // A union inside this one sets its own marks: they are kept apart from ours.
    view.set_xattr("e", &mark("opaque"), b"y").unwrap();
    assert_eq!(view.get_xattr("e", &mark("opaque")).unwrap(), b"y");
    assert_eq!(view.xattrs("e").unwrap(), [mark("opaque")]);
    assert_eq!(view.names("e").unwrap(), ["f"], "it is not our mark");
    assert_eq!(get_xattr(&layers.upper("e"), &mark("overlay.opaque")).unwrap(), b"y");
    view.close();
    let view = layers.open();
    assert_eq!(view.names("e").unwrap(), ["f"]);
    assert_eq!(view.get_xattr("e", &mark("opaque")).unwrap(), b"y");
    view.union.removexattr(view.hold("e").unwrap().ino, &super::fixture::xname(&mark("opaque"))).unwrap();
    assert_eq!(view.xattrs("e").unwrap(), [""; 0]);
}
