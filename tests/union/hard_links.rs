//! Names of one file, in lower and in upper.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use layerfs::error::Errno;

use super::fixture::{EXCHANGE, Layers, PLAIN, View, name, privileged, read_all, set_mode, snapshot, write_all};

/// A lower file with the names `a`, `b` and `d/c`.
fn linked() -> (Layers, View) {
    let layers = Layers::new(1);
    let a = layers.file(0, "a", "lower");
    std::fs::hard_link(&a, layers.lower(0, "b")).unwrap();
    std::fs::hard_link(&a, layers.lower(0, "d/c")).unwrap();
    let view = layers.open();
    (layers, view)
}

fn check(view: &View, names: &[&str], content: &str, nlink: u32) {
    let numbers: Vec<_> = names.iter().map(|name| view.stat(name).unwrap().ino).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] == pair[1]), "{names:?}: {numbers:?}");
    for name in names {
        assert_eq!(view.text(name), content, "{name}");
        assert_eq!(view.stat(name).unwrap().nlink, nlink, "{name}");
    }
}

#[test]
fn names_of_one_lower_file_are_one_inode_before_and_after_copy_up() {
    let (_layers, view) = linked();
    check(&view, &["a", "b", "d/c"], "lower", 3);
    let ino = view.stat("a").unwrap().ino;
    view.write("b", 0, b"UPPER").unwrap();
    check(&view, &["a", "b", "d/c"], "UPPER", 3);
    assert_eq!(view.stat("d/c").unwrap().ino, ino);
    view.write("d/c", 0, b"again").unwrap();
    check(&view, &["a", "b", "d/c"], "again", 3);
    view.chmod("a", 0o640).unwrap();
    assert_eq!(view.stat("d/c").unwrap().mode & 0o7777, 0o640);
}

#[test]
fn the_number_of_names_follows_links_and_unlinks() {
    let (_layers, view) = linked();
    let held = view.hold("a").unwrap();
    view.unlink("a").unwrap();
    check(&view, &["b", "d/c"], "lower", 2);
    view.link("b", "e").unwrap();
    check(&view, &["b", "d/c", "e"], "lower", 3);
    view.rename("b", "d/b", PLAIN).unwrap();
    check(&view, &["d/b", "d/c", "e"], "lower", 3);
    view.rename("d/b", "d/c", PLAIN).unwrap();
    check(&view, &["d/b", "d/c", "e"], "lower", 3);
    view.put("other", "other");
    view.rename("other", "d/b", PLAIN).unwrap();
    check(&view, &["d/c", "e"], "lower", 2);
    view.rename("d/b", "e", EXCHANGE).unwrap();
    check(&view, &["d/c", "d/b"], "lower", 2);
    view.unlink("d/b").unwrap();
    view.write("d/c", 0, b"UPPER").unwrap();
    check(&view, &["d/c"], "UPPER", 1);
    view.unlink("d/c").unwrap();
    assert_eq!(view.union.getattr(held.ino).unwrap().nlink, 0);
}

#[test]
fn a_name_that_was_unlinked_does_not_come_back() {
    let (layers, view) = linked();
    view.write("a", 0, b"UPPER").unwrap();
    view.unlink("b").unwrap();
    view.unlink("a").unwrap();
    check(&view, &["d/c"], "UPPER", 1);
    view.put("a", "new");
    assert_ne!(view.stat("a").unwrap().ino, view.stat("d/c").unwrap().ino);
    assert_eq!(view.names("").unwrap(), ["a", "d"]);
    view.close();
    let view = layers.open();
    assert_eq!(view.names("").unwrap(), ["a", "d"]);
    assert_eq!(view.text("a"), "new");
}

/// The other name, which nobody has looked up yet, is the only one left that leads to the copy.
#[test]
fn a_copy_outlives_the_name_that_it_was_made_under() {
    for remove in ["unlink", "replace"] {
        let layers = Layers::new(1);
        let a = layers.file(0, "a", "lower");
        std::fs::hard_link(&a, layers.lower(0, "d/b")).unwrap();
        let view = layers.open();
        view.write("a", 0, b"UPPER").unwrap();
        view.put("other", "other");
        match remove {
            "unlink" => view.unlink("a").unwrap(),
            _ => view.rename("other", "a", PLAIN).unwrap(),
        }
        check(&view, &["d/b"], "UPPER", 1);
        view.chmod("d/b", 0o600).unwrap();
        view.link("d/b", "c").unwrap();
        check(&view, &["d/b", "c"], "UPPER", 2);
        view.rename("d/b", "e", PLAIN).unwrap();
        check(&view, &["e", "c"], "UPPER", 2);
        assert_eq!(view.stat("c").unwrap().mode & 0o777, 0o600);
    }
}

/// Nothing but a descriptor leads to it then, which has to outlive more open files than are kept.
#[cfg(debug_assertions)]
#[test]
fn a_copy_without_a_name_or_a_place_in_the_index_is_not_lost() {
    use layerfs::sys::fault::{self, Calls};
    let others: Vec<String> = (0..150).map(|n| format!("others/{n}")).collect();
    let mut without_a_place = 0;
    for call in 0.. {
        let layers = Layers::new(1);
        let a = layers.file(0, "a", "lower");
        std::fs::hard_link(&a, layers.lower(0, "d/b")).unwrap();
        others.iter().for_each(|other| drop(layers.file(0, other, other)));
        let view = layers.open();
        let held = view.hold("a").unwrap();
        view.unlink("a").unwrap();
        fault::arm(call, Errno::EMLINK, Calls::One);
        let written = write_all(&view.union, held.ino, 0, b"UPPER");
        if !fault::disarm() {
            break;
        }
        if written.is_err() {
            continue;
        }
        let held_others: Vec<_> = others.iter().map(|other| view.hold(other).unwrap()).collect();
        held_others.iter().for_each(|other| drop(read_all(&view.union, other.ino).unwrap()));
        assert_eq!(read_all(&view.union, held.ino).unwrap(), b"UPPER", "after call {call} failed");
        let index = layers.work(if privileged() { "index" } else { "layerfs/index" });
        without_a_place += usize::from(index.read_dir().map_or(0, Iterator::count) == 0);
    }
    assert!(without_a_place > 0, "the index has refused it once");
}

#[test]
fn links_made_through_the_union_stay_links() {
    let layers = Layers::new(1);
    layers.file(0, "lower", "lower");
    layers.directory(0, "d");
    let view = layers.open();
    view.put("upper", "upper");
    for file in ["lower", "upper"] {
        view.link(file, &format!("d/{file}2")).unwrap();
        check(&view, &[file, &format!("d/{file}2")], file, 2);
    }
    view.close();
    let view = layers.open();
    for file in ["lower", "upper"] {
        check(&view, &[file, &format!("d/{file}2")], file, 2);
        view.unlink(file).unwrap();
        check(&view, &[&format!("d/{file}2")], file, 1);
    }
}

#[test]
fn symlinks_and_fifos_have_links_too() {
    let layers = Layers::new(1);
    std::os::unix::fs::symlink("target", layers.lower(0, "link")).unwrap();
    nix::unistd::mkfifo(&layers.lower(0, "fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let view = layers.open();
    for path in ["link", "fifo"] {
        let second = format!("{path}2");
        view.link(path, &second).unwrap();
        assert_eq!(view.stat(path).unwrap().ino, view.stat(&second).unwrap().ino);
        assert_eq!(view.stat(path).unwrap().nlink, 2);
    }
    assert_eq!(view.union.readlink(view.hold("link2").unwrap().ino).unwrap(), b"target");
}

/// Files in different layers are different files, whatever numbers they have.
#[test]
fn a_link_across_layers_is_one_file_only_where_both_names_show_it() {
    let layers = Layers::new(2);
    let a = layers.file(1, "a", "shared");
    std::fs::hard_link(&a, layers.lower(0, "b")).unwrap();
    let view = layers.open();
    view.write("a", 0, b"SHARED").unwrap();
    assert_eq!(view.text("a"), "SHARED");
    assert_eq!(std::fs::read(layers.lower(1, "a")).unwrap(), b"shared");
    let b = view.text("b");
    let same = view.stat("a").unwrap().ino == view.stat("b").unwrap().ino;
    assert_eq!(b == "SHARED", same, "one inode shows one content");
}

#[test]
fn names_in_several_layers_are_each_found_in_their_own() {
    let layers = Layers::new(2);
    let one = layers.file(0, "x/one", "lower");
    layers.directory(1, "y");
    std::fs::hard_link(&one, layers.lower(1, "y/two")).unwrap();
    let view = layers.open();
    let (_one, _two) = (view.hold("x/one").unwrap(), view.hold("y/two").unwrap());
    check(&view, &["x/one", "y/two"], "lower", 2);
    view.unlink("x/one").unwrap();
    check(&view, &["y/two"], "lower", 1);
    view.write("y/two", 0, b"UPPER").unwrap();
    check(&view, &["y/two"], "UPPER", 1);
    assert_eq!(std::fs::read(&one).unwrap(), b"lower");
}

#[test]
fn a_file_gets_a_name_although_only_names_that_nobody_looked_up_are_left() {
    let (_layers, view) = linked();
    let held = view.hold("a").unwrap();
    view.unlink("a").unwrap();
    view.union.link(held.ino, layerfs::union::Union::ROOT, &name("new")).unwrap();
    check(&view, &["new", "b", "d/c"], "lower", 3);
    view.write("d/c", 0, b"UPPER").unwrap();
    check(&view, &["new", "b", "d/c"], "UPPER", 3);
}

/// One change of names or of content, done to a union and to a plain directory.
#[derive(Clone, Copy, Debug)]
enum Step {
    Link(&'static str, &'static str),
    Unlink(&'static str),
    Rename(&'static str, &'static str),
    Exchange(&'static str, &'static str),
    Write(&'static str, &'static str),
    Chmod(&'static str),
    Empty(&'static str),
    New(&'static str),
}

impl Step {
    fn on_union(self, view: &View) {
        match self {
            Step::Link(old, new) => drop(view.link(old, new).unwrap()),
            Step::Unlink(path) => view.unlink(path).unwrap(),
            Step::Rename(old, new) => view.rename(old, new, PLAIN).unwrap(),
            Step::Exchange(old, new) => view.rename(old, new, EXCHANGE).unwrap(),
            Step::Write(path, content) => view.write(path, 0, content.as_bytes()).unwrap(),
            Step::Chmod(path) => drop(view.chmod(path, 0o640).unwrap()),
            Step::Empty(path) => drop(view.truncate(path, 0).unwrap()),
            Step::New(path) => view.put(path, "new"),
        }
    }

    fn on_disk(self, root: &Path) {
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        use std::os::unix::fs::FileExt;
        let edit = |path| std::fs::OpenOptions::new().write(true).open(root.join(path)).unwrap();
        match self {
            Step::Link(old, new) => std::fs::hard_link(root.join(old), root.join(new)).unwrap(),
            Step::Unlink(path) => std::fs::remove_file(root.join(path)).unwrap(),
            Step::Rename(old, new) => std::fs::rename(root.join(old), root.join(new)).unwrap(),
            Step::Exchange(old, new) => {
                let flags = RenameFlags::RENAME_EXCHANGE;
                renameat2(AT_FDCWD, &root.join(old), AT_FDCWD, &root.join(new), flags).unwrap();
            }
            Step::Write(path, content) => edit(path).write_all_at(content.as_bytes(), 0).unwrap(),
            Step::Chmod(path) => set_mode(&root.join(path), 0o640),
            Step::Empty(path) => edit(path).set_len(0).unwrap(),
            Step::New(path) => {
                std::fs::write(root.join(path), "new").unwrap();
                set_mode(&root.join(path), 0o644);
            }
        }
    }
}

/// Every kind of step that changes the number of names of a file, or brings it up under one of them.
const STEPS: [Step; 19] = [
    Step::Link("a", "e"),
    Step::Unlink("b"),
    Step::Rename("e", "d/e"),
    Step::Link("d/c", "b"),
    // Both are names of one file: nothing happens.
    Step::Rename("a", "d/c"),
    Step::New("n"),
    Step::Rename("n", "b"),
    Step::Rename("d/e", "other"),
    Step::Exchange("other", "b"),
    Step::Link("b", "d/new"),
    Step::Chmod("d/c"),
    Step::Unlink("a"),
    Step::Link("d/c", "a"),
    Step::Exchange("twin", "d/c"),
    Step::Unlink("twin"),
    Step::Rename("d/twin", "a"),
    Step::Empty("a"),
    Step::Unlink("d/c"),
    Step::Link("a", "last"),
];

/// For each path: its content, mode, number of names, and which paths are names of the same file.
type Names = BTreeMap<String, (String, u32, u64, BTreeSet<String>)>;

fn names_of(paths: &[String], look: impl Fn(&str) -> (String, u32, u64, u64)) -> Names {
    let found: Vec<_> = paths.iter().map(|path| (path, look(path))).collect();
    let same = |ino| found.iter().filter(|(_, f)| f.3 == ino).map(|(path, _)| (*path).clone()).collect();
    found.iter().map(|(path, f)| ((*path).clone(), (f.0.clone(), f.1, f.2, same(f.3)))).collect()
}

fn names_in_union(view: &View) -> Names {
    let mut paths = view.names("").unwrap();
    paths.retain(|path| path != "d");
    paths.extend(view.names("d").unwrap().into_iter().map(|path| format!("d/{path}")));
    names_of(&paths, |path| {
        let attr = view.stat(path).unwrap();
        (view.text(path), attr.mode & 0o7777, attr.nlink.into(), attr.ino)
    })
}

fn names_on_disk(root: &Path) -> Names {
    let list = |dir: &Path, prefix: &str| -> Vec<String> {
        let entries = dir.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        entries.map(|path| format!("{prefix}{path}")).collect()
    };
    let mut paths = list(root, "");
    paths.retain(|path| path != "d");
    paths.extend(list(&root.join("d"), "d/"));
    names_of(&paths, |path| {
        use std::os::unix::fs::MetadataExt;
        let found = root.join(path).symlink_metadata().unwrap();
        let content = String::from_utf8(std::fs::read(root.join(path)).unwrap()).unwrap();
        (content, found.mode() & 0o7777, found.nlink(), found.ino())
    })
}

/// Two files with several names and one with a single one.
fn make_linked(root: &Path) {
    std::fs::create_dir_all(root.join("d")).unwrap();
    for (first, others) in [("a", &["b", "d/c"][..]), ("twin", &["d/twin"]), ("other", &[])] {
        std::fs::write(root.join(first), format!("lower {first}")).unwrap();
        set_mode(&root.join(first), 0o644);
        for other in others {
            std::fs::hard_link(root.join(first), root.join(other)).unwrap();
        }
    }
}

/// The file is copied up before each of the steps in turn, by each of its names, or never; and the union is opened again
/// after each step, or never.
#[test]
fn names_are_counted_as_in_a_plain_directory_at_every_step() {
    for copied in 0..=STEPS.len() {
        for again in [false, true] {
            let layers = Layers::new(1);
            let plain = layers.beside("plain");
            make_linked(&layers.lower(0, ""));
            make_linked(&plain);
            let before = snapshot(&layers.lower(0, ""));
            let mut view = layers.open();
            for (number, step) in STEPS.into_iter().enumerate() {
                let name = ["a", "d/c", "b"][copied % 3];
                let write = (number == copied && plain.join(name).exists()).then_some(Step::Write(name, "UPPER"));
                for step in write.into_iter().chain([step]) {
                    step.on_disk(&plain);
                    step.on_union(&view);
                    if again {
                        view.close();
                        view = layers.open();
                    }
                    let (is, should) = (names_in_union(&view), names_on_disk(&plain));
                    assert_eq!(is, should, "after {step:?} ({number}), copied at {copied}, opened again: {again}");
                }
            }
            view.close();
            assert!(before == snapshot(&layers.lower(0, "")), "the lower");
        }
    }
}
