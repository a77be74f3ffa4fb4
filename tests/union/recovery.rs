//! Recovery after a power loss, wherever an uncommitted copy has got to by then. The loss is made by hand: the union is dropped
//! as it is, its copies are damaged as a disk would have them, and the next one is told of another boot.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use layerfs::union::Options;

use super::fixture::*;

/// What was copied is several pages long.
const LONG: usize = 20_000;

pub(super) fn content(name: &str) -> String {
    format!("lower {name} ").repeat(LONG / (7 + name.len()))
}

pub(super) fn booted(boot: &str) -> Options {
    Options { boot_id: Some(boot.to_owned()), ..Options::default() }
}

/// What the disk has of a copy's data.
#[derive(Clone, Copy, Debug)]
pub(super) enum Damage {
    /// All of it, and what was written to it.
    None,
    Empty,
    /// The length, and the first of its pages.
    HalfFilled,
    /// The first of its pages.
    Cut,
}

const DAMAGES: [Damage; 4] = [Damage::None, Damage::Empty, Damage::HalfFilled, Damage::Cut];

impl Damage {
    pub(super) fn on(self, path: &Path) {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        let length = file.metadata().unwrap().len();
        match self {
            Damage::None => {}
            Damage::Empty => file.set_len(0).unwrap(),
            Damage::HalfFilled => {
                file.set_len(length.min(4096)).unwrap();
                file.set_len(length).unwrap();
            }
            Damage::Cut => file.set_len(length.min(4096)).unwrap(),
        }
    }
}

/// What brings a file up.
pub(super) type Change = fn(&View, &str);

/// What is done before the power goes, and what has to be there then, by path: `Lower` is a whole lower file.
pub(super) struct Case {
    pub(super) what: &'static str,
    pub(super) act: fn(&View, Change),
    pub(super) shown: &'static [(&'static str, Shown)],
    pub(super) gone: &'static [&'static str],
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Shown {
    /// The content of the lower file of this name, and after a crash of the daemon alone that with a change in it.
    Lower(&'static str),
    /// A file that no copy-up made.
    New(&'static str),
}
use Shown::{Lower, New};

fn change(view: &View, path: &str) {
    view.write(path, 6000, b"CHANGED").unwrap();
}

pub(super) const CASES: &[Case] = &[
    Case { what: "as it is", act: |view, change| change(view, "d/f"), shown: &[("d/f", Lower("f"))], gone: &[] },
    Case {
        what: "renamed",
        act: |view, change| {
            change(view, "d/f");
            view.rename("d/f", "moved", PLAIN).unwrap();
        },
        shown: &[("moved", Lower("f"))],
        gone: &["d/f"],
    },
    Case {
        what: "renamed, the old name another file's",
        act: |view, change| {
            change(view, "d/f");
            view.rename("d/f", "d/moved", PLAIN).unwrap();
            view.put("d/f", "new");
        },
        shown: &[("d/moved", Lower("f")), ("d/f", New("new"))],
        gone: &[],
    },
    Case {
        what: "linked",
        act: |view, change| {
            change(view, "d/f");
            view.link("d/f", "link").unwrap();
        },
        shown: &[("d/f", Lower("f")), ("link", Lower("f"))],
        gone: &[],
    },
    Case {
        what: "linked, the first name deleted and another file's",
        act: |view, change| {
            change(view, "d/f");
            view.link("d/f", "link").unwrap();
            view.unlink("d/f").unwrap();
            view.put("d/f", "new");
        },
        shown: &[("link", Lower("f")), ("d/f", New("new"))],
        gone: &[],
    },
    Case {
        what: "renamed over a lower file",
        act: |view, change| {
            change(view, "d/f");
            view.rename("d/f", "g", PLAIN).unwrap();
        },
        shown: &[("g", Lower("f"))],
        gone: &["d/f"],
    },
    Case {
        what: "renamed over another copy",
        act: |view, change| {
            change(view, "d/f");
            change(view, "g");
            view.rename("d/f", "g", PLAIN).unwrap();
        },
        shown: &[("g", Lower("f"))],
        gone: &["d/f"],
    },
    Case {
        what: "exchanged with another copy",
        act: |view, change| {
            change(view, "d/f");
            change(view, "g");
            view.rename("d/f", "g", EXCHANGE).unwrap();
        },
        shown: &[("g", Lower("f")), ("d/f", Lower("g"))],
        gone: &[],
    },
    Case {
        what: "replaced by a new file",
        act: |view, change| {
            change(view, "d/f");
            view.put("new", "new");
            view.rename("new", "d/f", PLAIN).unwrap();
        },
        shown: &[("d/f", New("new"))],
        gone: &["new"],
    },
    Case {
        what: "deleted",
        act: |view, change| {
            change(view, "d/f");
            view.unlink("d/f").unwrap();
        },
        shown: &[],
        gone: &["d/f"],
    },
    Case {
        what: "in a directory that was renamed after",
        act: |view, change| {
            change(view, "d/f");
            view.rename("d", "moved", PLAIN).unwrap();
        },
        shown: &[("moved/f", Lower("f"))],
        gone: &["d"],
    },
    Case {
        what: "in a directory that was renamed before",
        act: |view, change| {
            view.rename("d", "moved", PLAIN).unwrap();
            change(view, "moved/f");
        },
        shown: &[("moved/f", Lower("f"))],
        gone: &["d"],
    },
    Case {
        what: "moved out of a renamed directory, which is another now",
        act: |view, change| {
            view.rename("d", "moved", PLAIN).unwrap();
            change(view, "moved/f");
            view.rename("moved/f", "f", PLAIN).unwrap();
            view.mkdir("d", 0o755).unwrap();
            view.put("d/f", "new");
        },
        shown: &[("f", Lower("f")), ("d/f", New("new"))],
        gone: &["moved/f"],
    },
    Case {
        what: "one of several names",
        act: |view, change| change(view, "linked"),
        shown: &[("linked", Lower("linked")), ("d/linked", Lower("linked"))],
        gone: &[],
    },
    Case {
        what: "several names, of which that of the copy is deleted",
        act: |view, change| {
            change(view, "linked");
            view.unlink("linked").unwrap();
        },
        shown: &[("d/linked", Lower("linked"))],
        gone: &["linked"],
    },
    Case {
        what: "several names, all of them elsewhere",
        act: |view, change| {
            change(view, "d/linked");
            view.rename("d/linked", "one", PLAIN).unwrap();
            view.rename("linked", "d/two", PLAIN).unwrap();
        },
        shown: &[("one", Lower("linked")), ("d/two", Lower("linked"))],
        gone: &["linked", "d/linked"],
    },
    Case {
        what: "of the top lower, over one of another",
        act: |view, change| change(view, "both"),
        shown: &[("both", Lower("both"))],
        gone: &[],
    },
];

pub(super) fn lowers() -> Layers {
    let layers = Layers::new(3);
    layers.file(2, "d/f", &content("f"));
    layers.file(1, "g", &content("g"));
    layers.file(1, "linked", &content("linked"));
    fs::hard_link(layers.lower(1, "linked"), layers.lower(1, "d/linked")).unwrap();
    layers.file(0, "both", &content("both"));
    layers.file(2, "both", "another");
    // Recovery has to give the times back, too.
    for path in [layers.lower(2, "d/f"), layers.lower(1, "g"), layers.lower(1, "linked"), layers.lower(0, "both")] {
        set_times(&path, 1_000_000, 5);
    }
    layers
}

/// The uncommitted copies.
fn marked(layers: &Layers) -> Vec<PathBuf> {
    with_mark(layers, "layerfs.uncommitted")
}

/// The files of upper and of the index that have a mark, each once.
pub(super) fn with_mark(layers: &Layers, wanted: &str) -> Vec<PathBuf> {
    let index = if privileged() { "index" } else { "layerfs/index" };
    let mut found = BTreeMap::new();
    let mut todo = vec![layers.upper(""), layers.work(index)];
    // The index is made when something is put there.
    todo.retain(|dir| dir.exists());
    while let Some(dir) = todo.pop() {
        for entry in dir.read_dir().unwrap() {
            let path = entry.unwrap().path();
            let status = path.symlink_metadata().unwrap();
            if status.is_dir() {
                todo.push(path);
            } else if status.is_file() && get_xattr(&path, &mark(wanted)).is_some() {
                found.insert(status.ino(), path);
            }
        }
    }
    found.into_values().collect()
}

fn kept_aside(layers: &Layers) -> Vec<Vec<u8>> {
    let dir = layers.work("layerfs/recovered");
    let entries = dir.read_dir().into_iter().flatten();
    entries.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
}

/// The layers after a case, with the copies damaged; and what these hold.
fn after_the_cut(case: &Case, damage: Damage) -> (Layers, Vec<Vec<u8>>) {
    let layers = lowers();
    let view = layers.open_with(booted("first"));
    (case.act)(&view, change);
    drop(view);
    let marked = marked(&layers);
    let held = marked.iter().map(|path| {
        damage.on(path);
        fs::read(path).unwrap()
    });
    let held = held.collect();
    (layers, held)
}

/// Everything that a case shows is the whole lower file, and the same after another mount.
fn check_recovered(case: &Case, layers: &Layers, held: &[Vec<u8>], said: &str) {
    check_content(case, layers, held, said, true);
}

/// As [`check_recovered`], and the times too, if a recovery came to its end at once.
fn check_content(case: &Case, layers: &Layers, held: &[Vec<u8>], said: &str, times: bool) {
    for boot in ["second", "second", "third"] {
        let view = layers.open_with(booted(boot));
        for (path, shown) in case.shown {
            let expected = match shown {
                Lower(name) => content(name),
                New(new) => (*new).to_owned(),
            };
            assert!(view.text(path) == expected, "{}, {said}: {path}", case.what);
            if let (Lower(_), true) = (shown, times) {
                assert_eq!(view.stat(path).unwrap().mtime.sec, 1_000_000, "{}, {said}: {path}", case.what);
            }
        }
        for path in case.gone {
            assert!(!view.exists(path), "{}, {said}: {path}", case.what);
        }
        assert_eq!(marked(layers), Vec::<PathBuf>::new(), "{}, {said}", case.what);
        let aside = kept_aside(layers);
        let lowers = ["f", "g", "linked", "both"].map(content);
        for bytes in held.iter().filter(|bytes| !bytes.is_empty()) {
            let whole = lowers.iter().any(|lower| lower.as_bytes() == *bytes);
            assert!(whole || aside.contains(bytes), "{}, {said}: what was held is kept", case.what);
        }
        view.close();
    }
}

#[test]
fn a_copy_has_its_lower_content_again_wherever_it_is() {
    for case in CASES {
        for damage in DAMAGES {
            let (layers, held) = after_the_cut(case, damage);
            let before = [0, 1, 2].map(|n| snapshot(&layers.lowers[n]));
            check_recovered(case, &layers, &held, &format!("{damage:?}"));
            assert!(before == [0, 1, 2].map(|n| snapshot(&layers.lowers[n])), "{}: the lowers", case.what);
        }
    }
}

/// Nothing is lost when only the daemon has crashed, and later it is safe.
#[test]
fn under_the_same_boot_everything_is_kept() {
    for case in CASES {
        let (layers, _) = after_the_cut(case, Damage::None);
        for boot in ["first", "first", "second"] {
            let view = layers.open_with(booted(boot));
            for (path, shown) in case.shown {
                let expected = match shown {
                    Lower(name) => {
                        let mut changed = content(name);
                        changed.replace_range(6000..6007, "CHANGED");
                        changed
                    }
                    New(new) => (*new).to_owned(),
                };
                assert!(view.text(path) == expected, "{}, {boot}: {path}", case.what);
            }
            match boot {
                "first" => view.union.commit().unwrap(),
                _ => view.close(),
            }
            assert_eq!(marked(&layers), Vec::<PathBuf>::new(), "{}, {boot}", case.what);
        }
        assert!(kept_aside(&layers).is_empty(), "{}", case.what);
    }
}

#[test]
fn metadata_that_was_given_after_the_copy_stays() {
    let layers = lowers();
    let view = layers.open_with(booted("first"));
    change(&view, "d/f");
    view.chmod("d/f", 0o710).unwrap();
    view.set_xattr("d/f", "user.note", b"kept").unwrap();
    drop(view);
    Damage::Empty.on(&layers.upper("d/f"));
    let view = layers.open_with(booted("second"));
    assert_eq!(view.text("d/f"), content("f"));
    assert_eq!(view.stat("d/f").unwrap().mode & 0o7777, 0o710);
    assert_eq!(view.get_xattr("d/f", "user.note").unwrap(), b"kept");
}

/// A list that is missing, torn, or of something else costs time and nothing more.
#[test]
fn lists_are_hints() {
    type Spoil = fn(&Path);
    let spoils: [(&str, Spoil); 6] = [
        ("missing", |list| fs::remove_file(list).unwrap()),
        ("empty", |list| Damage::Empty.on(list)),
        ("torn", |list| {
            let length = list.metadata().unwrap().len();
            fs::OpenOptions::new().write(true).open(list).unwrap().set_len(length - 3).unwrap();
        }),
        ("garbage", |list| fs::write(list, b"garbage".repeat(1000)).unwrap()),
        ("garbage at its end", |list| {
            let bytes = fs::read(list).unwrap();
            fs::write(list, [&bytes[..], &[0xff; 500]].concat()).unwrap();
        }),
        ("a bit flipped", |list| {
            let mut bytes = fs::read(list).unwrap();
            let last = bytes.len() - 2;
            bytes[last] ^= 4;
            fs::write(list, bytes).unwrap();
        }),
    ];
    for (spoiled, spoil) in spoils {
        for case in CASES.iter().filter(|case| case.what.contains("renamed") || case.what.contains("several")) {
            for boot in ["first", "second"] {
                let damage = if boot == "first" { Damage::None } else { Damage::HalfFilled };
                let (layers, held) = after_the_cut(case, damage);
                let list = layers.work("layerfs/uncommitted.0");
                spoil(&list);
                if boot == "second" {
                    check_recovered(case, &layers, &held, spoiled);
                    continue;
                }
                // The daemon alone: all copies have to be found, or a later power loss takes what was written.
                layers.open_with(booted("first")).close();
                assert_eq!(marked(&layers), Vec::<PathBuf>::new(), "{}, {spoiled}", case.what);
            }
        }
    }
}

/// A list of paths at which other files are by now.
#[test]
fn stale_lists_hide_no_copy() {
    let layers = lowers();
    let view = layers.open_with(booted("first"));
    change(&view, "g");
    let list = fs::read(layers.work("layerfs/uncommitted.0")).unwrap();
    view.close();
    let view = layers.open_with(booted("first"));
    change(&view, "d/f");
    view.unlink("g").unwrap();
    view.put("g", "new");
    drop(view);
    fs::write(layers.work("layerfs/uncommitted.0"), list).unwrap();
    layers.open_with(booted("first")).close();
    assert_eq!(marked(&layers), Vec::<PathBuf>::new());
    let view = layers.open_with(booted("second"));
    assert_eq!(view.text("g"), "new");
    assert!(view.text("d/f").contains("CHANGED"));
}

/// Recovery stops at each of its system calls in turn, as when the power goes once more, and is done again.
#[cfg(debug_assertions)]
#[test]
fn recovery_can_be_interrupted_anywhere() {
    use layerfs::sys::fault::Calls;
    let chosen = ["renamed", "several names, of which that of the copy is deleted"];
    let ways = [("first", Calls::AllFromThere), ("second", Calls::One), ("second", Calls::AllFromThere)];
    for case in CASES.iter().filter(|case| chosen.contains(&case.what)) {
        for (boot, calls) in ways {
            let mut n = 0;
            while interrupt(case, boot, calls, n) {
                n += 1;
                assert!(n < 1000, "recovery comes to its end");
            }
        }
    }
}

/// Interrupts recovery under a boot at its `n`-th call; whether there is one.
#[cfg(debug_assertions)]
fn interrupt(case: &Case, boot: &str, calls: layerfs::sys::fault::Calls, n: u64) -> bool {
    use layerfs::sys::fault;
    let damage = if boot == "first" { Damage::None } else { Damage::HalfFilled };
    let (layers, held) = after_the_cut(case, damage);
    fault::arm(n, layerfs::error::Errno::EIO, calls);
    let opened = layerfs::union::Union::open(&layers.spec(), booted(boot));
    let hit = fault::disarm();
    let said = format!("call {n}, {calls:?}, it failed: {}", opened.is_err());
    drop(opened);
    if boot == "second" {
        check_content(case, &layers, &held, &said, !hit);
        return hit;
    }
    let view = layers.open_with(booted("first"));
    for (path, _) in case.shown {
        assert!(view.text(path).contains("CHANGED"), "{}, {said}: {path}", case.what);
    }
    view.close();
    assert_eq!(marked(&layers), Vec::<PathBuf>::new(), "{}, {said}", case.what);
    hit
}
