//! Whiteouts written in the form of AUFS: what upper looks like then, and that every mode sees the same in it.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use layerfs::error::Errno;
use layerfs::layer::stage::Over;
use layerfs::layer::whiteout::Whiteouts;
use layerfs::layer::{Handling, Stack};
use layerfs::union::{FileKind, Options};

use super::fixture::{EXCHANGE, Layers, PLAIN, View, WHITEOUT, get_xattr, is_whiteout, make_whiteout, mark};
use super::fixture::{name, set_xattr};

fn open(layers: &Layers, whiteouts: Whiteouts) -> View {
    layers.open_with(Options { whiteouts, ..Options::default() })
}

fn open_dot(layers: &Layers) -> View {
    open(layers, Whiteouts::Dot)
}

/// Every name that a union shows, with what it holds.
fn shown(view: &View) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut pending = vec![String::new()];
    while let Some(path) = pending.pop() {
        let kind = view.stat(&path).unwrap().kind().unwrap();
        let content = match kind {
            FileKind::Directory => {
                pending.extend(view.names(&path).unwrap().into_iter().map(|name| format!("{path}/{name}")));
                String::new()
            }
            FileKind::Regular => view.text(&path),
            _ => String::new(),
        };
        all.insert(path, format!("{kind:?} {content}"));
    }
    all
}

/// The paths in a layer, from its root.
fn paths(root: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut pending: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in dir.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                pending.push(path.clone());
            }
            all.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        }
    }
    all.sort();
    all
}

/// Lowers with something under every name that the operations take away or put something at.
fn layers() -> Layers {
    let layers = Layers::new(2);
    for path in ["f", "g", "h", "d/f", "d/sub/f", "e/f", "one", "empty/x", "merged/low", "merged/sub/low"] {
        layers.file(1, path, path);
    }
    layers.file(0, "merged/top", "top");
    layers.file(0, "f", "top");
    std::fs::hard_link(layers.lower(1, "one"), layers.lower(1, "other")).unwrap();
    layers
}

type Step = (&'static str, fn(&View));

/// Each leaves another state that a whiteout is part of.
const STEPS: &[Step] = &[
    ("unlink of a lower file", |v| v.unlink("f").unwrap()),
    ("unlink of a changed file", |v| {
        v.write("g", 0, b"changed").unwrap();
        v.unlink("g").unwrap();
    }),
    ("unlink of one of two names", |v| v.unlink("one").unwrap()),
    ("rmdir of a merged directory", |v| {
        v.unlink("empty/x").unwrap();
        v.rmdir("empty").unwrap();
    }),
    ("create over a whiteout", |v| v.put("f", "new")),
    ("unlink of that", |v| v.unlink("f").unwrap()),
    ("mkdir over a whiteout", |v| _ = v.mkdir("empty", 0o755).unwrap()),
    ("mkdir over the whiteout of a file", |v| _ = v.mkdir("f", 0o755).unwrap()),
    ("symlink over a whiteout", |v| _ = v.symlink("g", "f").unwrap()),
    ("rename of a lower file", |v| v.rename("h", "d/h", PLAIN).unwrap()),
    ("rename of a merged directory", |v| v.rename("merged", "moved", PLAIN).unwrap()),
    ("and back over its whiteout", |v| v.rename("moved", "merged", PLAIN).unwrap()),
    ("and away again", |v| v.rename("merged", "d/merged", PLAIN).unwrap()),
    ("rename of a new directory over a whiteout", |v| {
        v.mkdir("new", 0o755).unwrap();
        v.put("new/in", "in");
        v.rename("new", "merged", PLAIN).unwrap();
    }),
    ("rename of a merged directory over a whiteout", |v| {
        v.unlink("e/f").unwrap();
        v.rmdir("e").unwrap();
        v.rename("d", "e", PLAIN).unwrap();
    }),
    ("rename over a directory that shows nothing", |v| {
        v.mkdir("d", 0o755).unwrap();
        v.rename("e", "d", PLAIN).unwrap();
    }),
    ("exchange", |v| v.rename("d", "merged", EXCHANGE).unwrap()),
    ("link over a whiteout", |v| _ = v.link("other", "one").unwrap()),
    ("rename over a whiteout", |v| v.rename("other", "h", PLAIN).unwrap()),
    ("rename that leaves a device", |v| v.rename("h", "other", WHITEOUT).unwrap()),
    ("mknod over a whiteout", |v| {
        v.unlink("h").unwrap();
        v.unlink("one").unwrap();
        v.mknod("one", libc::S_IFIFO | 0o600, 0).unwrap();
    }),
];

/// Whoever opens the layers next, and in whichever mode, sees the same.
#[test]
fn both_forms_show_the_same_at_every_step() {
    let (expected, whole) = (layers(), layers());
    let (reference, dots) = (open(&expected, Whiteouts::Overlay), open_dot(&whole));
    let mut again = layers();
    for (at, (step, perform)) in STEPS.iter().enumerate() {
        perform(&reference);
        perform(&dots);
        let seen = shown(&reference);
        assert_eq!(shown(&dots), seen, "{step}");
        // In turns, over what the other mode has left.
        let modes = [Whiteouts::Dot, Whiteouts::Dot, Whiteouts::Overlay];
        let view = open(&again, modes[at % modes.len()]);
        perform(&view);
        assert_eq!(shown(&view), seen, "{step}, opened again");
        view.close();
        for whiteouts in modes {
            let view = open(&again, whiteouts);
            assert_eq!(shown(&view), seen, "{step}, read with {whiteouts:?}");
            view.close();
        }
    }
    let seen = shown(&reference);
    dots.close();
    for mut layers in [whole, std::mem::replace(&mut again, Layers::new(0))] {
        layers.add_layer();
        let spec = layerfs::layer::StackSpec { trusted_lowers: true, ..layers.spec() };
        assert_eq!(shown(&View::open(&spec, Options::default())), seen, "as a lower");
    }
}

#[test]
fn upper_has_empty_files_and_no_devices() {
    let layers = layers();
    let view = open_dot(&layers);
    for (_, perform) in STEPS {
        perform(&view);
    }
    view.close();
    let paths = paths(&layers.upper(""));
    for path in &paths {
        let meta = layers.upper("").join(path).symlink_metadata().unwrap();
        assert!(!meta.file_type().is_char_device(), "{path}");
        let Some(hidden) = Path::new(path).file_name().unwrap().to_str().unwrap().strip_prefix(".wh.") else {
            continue;
        };
        assert!(meta.is_file() && meta.len() == 0 && meta.permissions().mode() & 0o7777 == 0o700, "{path}");
        let beside = Path::new(path).with_file_name(hidden);
        assert!(hidden == ".wh..opq" || !layers.upper("").join(&beside).exists(), "{path} beside its name");
    }
    let whiteouts: Vec<_> = paths.iter().filter(|path| path.contains(".wh.")).map(String::as_str).collect();
    assert_eq!(whiteouts, [".wh.e", ".wh.h", "d/.wh..wh..opq", "empty/.wh..wh..opq", "f/.wh..wh..opq"]);
}

#[test]
fn a_directory_over_a_whiteout_is_opaque_in_both_ways_and_keeps_its_times() {
    let layers = layers();
    let view = open_dot(&layers);
    view.unlink("d/f").unwrap();
    view.unlink("d/sub/f").unwrap();
    view.rmdir("d/sub").unwrap();
    view.rmdir("d").unwrap();
    view.mkdir("new", 0o755).unwrap();
    view.put("new/f", "new");
    view.chmod("new", 0o500).unwrap();
    view.touch("new", 1_000_000_000, 7).unwrap();
    view.rename("new", "d", PLAIN).unwrap();
    let times = view.stat("d").unwrap().mtime;
    assert_eq!((times.sec, times.nsec), (1_000_000_000, 7));
    assert_eq!(view.names("d").unwrap(), ["f"]);
    view.close();
    assert!(layers.upper("d/.wh..wh..opq").is_file());
    assert_eq!(get_xattr(&layers.upper("d"), &mark("opaque")).unwrap(), b"y");
    assert_eq!(layers.upper("d").metadata().unwrap().permissions().mode() & 0o7777, 0o500);
    let view = open_dot(&layers);
    view.chmod("d", 0o700).unwrap();
    view.unlink("d/f").unwrap();
    view.rmdir("d").unwrap();
    assert!(!view.exists("d"));
}

/// What a crash leaves: a whiteout beside a name that was about to go, or that has just come.
#[test]
fn a_whiteout_beside_its_name_changes_nothing_that_is_shown() {
    let layers = layers();
    let view = open_dot(&layers);
    view.write("f", 0, b"upper").unwrap();
    view.rename("merged", "moved", PLAIN).unwrap();
    view.unlink("moved/low").unwrap();
    view.unlink("empty/x").unwrap();
    view.rmdir("empty").unwrap();
    view.mkdir("empty", 0o755).unwrap();
    let seen = shown(&view);
    view.close();
    for name in ["f", "moved", "empty"] {
        std::fs::write(layers.upper(&format!(".wh.{name}")), "").unwrap();
    }
    for whiteouts in [Whiteouts::Dot, Whiteouts::Overlay] {
        assert_eq!(shown(&open(&layers, whiteouts)), seen, "{whiteouts:?}");
    }
    let view = open_dot(&layers);
    view.rename("moved", "empty", EXCHANGE).unwrap();
    view.rename("empty", "merged", PLAIN).unwrap();
    assert_eq!(view.names("merged").unwrap(), ["sub", "top"]);
    view.unlink("f").unwrap();
    view.rmdir("moved").unwrap();
    view.close();
    let view = open_dot(&layers);
    assert_eq!(view.names("merged").unwrap(), ["sub", "top"]);
    assert!(!view.exists("f") && !view.exists("moved") && !view.exists("empty"));
}

#[test]
fn a_directory_replaces_whiteouts_of_the_other_forms() {
    let layers = layers();
    make_whiteout(&layers.upper("f"));
    std::fs::write(layers.upper("g"), "").unwrap();
    set_xattr(&layers.upper("g"), &mark("whiteout"), b"").unwrap();
    set_xattr(&layers.upper(""), &mark("opaque"), b"x").unwrap();
    let view = open_dot(&layers);
    view.rename("merged", "f", PLAIN).unwrap();
    view.mkdir("new", 0o755).unwrap();
    view.rename("new", "g", PLAIN).unwrap();
    let seen = shown(&view);
    assert!(seen.contains_key("/f/sub/low") && seen.contains_key("/g") && !seen.contains_key("/merged"), "{seen:?}");
    view.close();
    assert_eq!(paths(&layers.upper("")), [".wh.merged", "f", "g", "g/.wh..wh..opq"].map(str::to_owned));
    assert_eq!(shown(&open(&layers, Whiteouts::Overlay)), seen);
}

/// `.wh.` and the name have to be a name together.
#[test]
fn a_name_without_room_gets_a_device() {
    let layers = layers();
    let (fits, long) = ("x".repeat(251), "y".repeat(252));
    for name in [&fits, &long] {
        layers.file(1, name, "lower");
        layers.file(1, &format!("deep/{name}/f"), "lower");
    }
    let view = open_dot(&layers);
    view.unlink(&fits).unwrap();
    view.unlink(&long).unwrap();
    view.rename(&format!("deep/{fits}"), "a", PLAIN).unwrap();
    view.rename(&format!("deep/{long}"), "b", PLAIN).unwrap();
    let seen = shown(&view);
    assert!(
        seen.contains_key("/a/f")
            && seen.contains_key("/b/f")
            && seen.len() == shown(&layers.open_read_only()).len() - 2
    );
    view.close();
    for dir in ["", "deep/"] {
        assert!(layers.upper(&format!("{dir}.wh.{fits}")).is_file());
        assert!(is_whiteout(&layers.upper(&format!("{dir}{long}"))));
    }
    let view = open_dot(&layers);
    assert_eq!(shown(&view), seen);
    view.rename("b", &format!("deep/{long}"), PLAIN).unwrap();
    view.put(&long, "new");
    view.close();
    let view = open_dot(&layers);
    assert_eq!((view.text(&long), view.text(&format!("deep/{long}/f"))), ("new".to_owned(), "lower".to_owned()));
}

#[test]
fn names_like_whiteouts_are_refused_as_ever() {
    let layers = layers();
    let view = open_dot(&layers);
    for name in [".wh.new", ".wh..wh..opq", ".wh."] {
        assert_eq!(view.create(name, 0o644).unwrap_err(), Errno::EINVAL, "{name}");
        assert_eq!(view.mkdir(name, 0o755).unwrap_err(), Errno::EINVAL, "{name}");
        assert_eq!(view.rename("f", name, PLAIN).unwrap_err(), Errno::EINVAL, "{name}");
    }
    view.unlink("f").unwrap();
    assert_eq!(view.unlink(".wh.f").unwrap_err(), Errno::ENOENT);
}

/// Whether a directory holds such whiteouts is remembered; who has read it just before the first one came must not say no.
#[test]
fn a_look_at_the_same_time_forgets_no_whiteout() {
    let layers = layers();
    let handling = Handling { whiteouts: Whiteouts::Dot, ..Handling::default() };
    let stack = Stack::open(&layers.spec(), handling).unwrap();
    let root = stack.upper_root().unwrap();
    stack.note_dot_whiteouts(&root, false);
    stack.whiteout(&root, &name("f"), Over::Nothing).unwrap();
    stack.note_dot_whiteouts(&root, false);
    assert!(stack.has_dot_whiteout(&root, &name("f")).unwrap());
}
