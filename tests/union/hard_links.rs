//! Names of one file, in lower and in upper.

use super::fixture::{EXCHANGE, Layers, PLAIN, View, name};

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
