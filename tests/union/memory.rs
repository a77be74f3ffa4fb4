//! What is kept in memory: nothing that the kernel has forgotten, and few descriptors.

use super::fixture::{Layers, View, name};
use layerfs::union::Union;

/// Looks everything below the root up, as `find` does, and returns what has to be forgotten.
fn look_at_everything(view: &View) -> Vec<u64> {
    let (mut known, mut pending) = (Vec::new(), vec![Union::ROOT]);
    while let Some(dir) = pending.pop() {
        let mut names = Vec::new();
        view.union
            .readdir(dir, 0, &mut |entry| {
                names.push(entry.name.to_vec());
                true
            })
            .unwrap();
        for entry in names.iter().filter(|name| !name.starts_with(b".")) {
            let attr = view.union.lookup(dir, &layerfs::name::Name::new(entry).unwrap()).unwrap();
            known.push(attr.ino);
            if attr.mode & nix::libc::S_IFMT == nix::libc::S_IFDIR {
                pending.push(attr.ino);
            }
        }
    }
    known
}

fn many() -> Layers {
    let layers = Layers::new(3);
    for dir in 0..600 {
        layers.file(dir % 3, &format!("d{dir}/f"), "");
        layers.file((dir + 1) % 3, &format!("d{dir}/g"), "");
        std::os::unix::fs::symlink("x", layers.lower(dir % 3, &format!("d{dir}/l"))).unwrap();
    }
    layers
}

#[test]
fn what_the_kernel_forgets_is_forgotten() {
    let layers = many();
    let view = layers.open();
    let before = view.stats().inodes;
    for _ in 0..2 {
        let known = look_at_everything(&view);
        assert_eq!(known.len(), 2400);
        assert_eq!(view.stats().inodes, before + 2400);
        for ino in known {
            view.union.forget(ino, 1);
        }
        assert_eq!(view.stats().inodes, before);
    }
}

/// The descriptor of a directory that is known no more would never be found again.
#[test]
fn a_forgotten_directory_is_not_held_open() {
    let layers = many();
    let view = layers.open();
    let before = view.stats().descriptors;
    let known = look_at_everything(&view);
    assert!(view.stats().descriptors > before + 100);
    for ino in known {
        view.union.forget(ino, 1);
    }
    assert_eq!(view.stats().descriptors, before);
}

#[test]
fn parents_may_be_forgotten_before_their_children() {
    let layers = many();
    let view = layers.open();
    let before = view.stats().inodes;
    let known = look_at_everything(&view);
    for ino in &known {
        view.union.forget(*ino, 1);
    }
    for ino in known {
        assert!(view.union.getattr(ino).is_err(), "{ino} was forgotten");
    }
    let dir = view.union.lookup(Union::ROOT, &name("d1")).unwrap();
    let file = view.union.lookup(dir.ino, &name("f")).unwrap();
    view.union.forget(dir.ino, 1);
    assert_eq!(view.union.getattr(file.ino).unwrap().ino, file.ino);
    view.union.write(file.ino, 0, b"x").unwrap();
    view.union.forget(file.ino, 1);
    assert_eq!(view.text("d1/f"), "x");
    assert_eq!(view.stats().inodes, before);
}

#[test]
fn counts_are_honoured() {
    let layers = Layers::new(1);
    layers.file(0, "f", "lower");
    let view = layers.open();
    let before = view.stats().inodes;
    let attr = view.union.lookup(Union::ROOT, &name("f")).unwrap();
    for _ in 0..4 {
        view.union.lookup(Union::ROOT, &name("f")).unwrap();
    }
    let linked = view.union.link(attr.ino, Union::ROOT, &name("g")).unwrap();
    assert_eq!(linked.ino, attr.ino);
    view.union.forget(attr.ino, 5);
    assert_eq!(view.stats().inodes, before + 1, "the link counts too");
    view.union.forget(attr.ino, 1);
    view.union.commit().unwrap();
    assert_eq!(view.stats().inodes, before, "nothing waits for its commit any more");
}

#[test]
fn a_number_nobody_knows_is_an_error_and_no_more() {
    let layers = Layers::new(1);
    let view = layers.open();
    assert!(view.union.getattr(0xdead_beef).is_err());
    assert!(view.union.lookup(0xdead_beef, &name("x")).is_err());
    assert!(view.union.readdir(0xdead_beef, 0, &mut |_| true).is_err());
    assert!(view.union.read(0xdead_beef, 0, &mut [0; 8]).is_err());
    view.union.forget(0xdead_beef, 3);
    view.union.forget(Union::ROOT, 1000);
    assert_eq!(view.names("").unwrap(), [""; 0], "the root stays");
}

#[test]
fn descriptors_are_few_however_much_is_known() {
    let layers = many();
    let view = layers.open();
    let known = look_at_everything(&view);
    assert!(view.stats().descriptors < 400, "{} known", view.stats().descriptors);
    for dir in 0..600 {
        view.put(&format!("d{dir}/new"), "new");
        view.write(&format!("d{dir}/f"), 0, b"upper").unwrap();
    }
    assert!(view.stats().descriptors < 400, "{} written", view.stats().descriptors);
    for ino in known {
        view.union.forget(ino, 1);
    }
    assert!(view.stats().descriptors < 400, "{} forgotten", view.stats().descriptors);
}

#[test]
fn closing_gives_every_descriptor_back() {
    let open = || {
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| {
            let target = std::fs::read_link(fd.unwrap().path()).ok()?;
            Some(target.to_string_lossy().into_owned())
        })
    };
    let layers = many();
    let mine = layers.beside("").to_string_lossy().into_owned();
    let view = layers.open();
    for ino in look_at_everything(&view) {
        view.union.forget(ino, 1);
    }
    view.put("d1/new", "");
    view.close();
    let left: Vec<_> = open().filter(|target| target.starts_with(&*mine)).collect();
    assert!(left.is_empty(), "{left:?}");
}
