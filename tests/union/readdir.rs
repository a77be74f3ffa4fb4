//! Reading directories: everything once, whatever happens meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use layerfs::error::Errno;
use layerfs::union::Union;

use super::fixture::{Layers, PLAIN, View};

/// Entries of one call, at most `most` of them: (name, inode number, offset to go on from).
fn batch(view: &View, ino: u64, offset: u64, most: usize) -> Vec<(String, u64, u64)> {
    let mut taken = Vec::new();
    view.union
        .readdir(ino, offset, &mut |entry| {
            if taken.len() == most {
                return false;
            }
            taken.push((String::from_utf8(entry.name.to_vec()).unwrap(), entry.ino, entry.next));
            true
        })
        .unwrap();
    taken
}

#[test]
fn dots_and_kinds_and_numbers() {
    let layers = Layers::new(2);
    layers.file(0, "d/file", "");
    layers.file(1, "d/sub/f", "");
    std::os::unix::fs::symlink("x", layers.lower(1, "d/link")).unwrap();
    let view = layers.open();
    view.mknod("d/fifo", nix::libc::S_IFIFO | 0o600, 0).unwrap();
    let dir = view.hold("d").unwrap();
    let mut seen = BTreeMap::new();
    view.union
        .readdir(dir.ino, 0, &mut |entry| {
            assert!(seen.insert(entry.name.to_vec(), (entry.ino, entry.kind)).is_none());
            true
        })
        .unwrap();
    assert_eq!(seen.remove(&b"."[..]).unwrap().0, dir.ino);
    assert_eq!(seen.remove(&b".."[..]).unwrap().0, Union::ROOT);
    let names: Vec<_> = seen.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    assert_eq!(names, ["fifo", "file", "link", "sub"]);
    for (name, (ino, kind)) in &seen {
        let attr = view.stat(&format!("d/{}", String::from_utf8_lossy(name))).unwrap();
        assert_eq!((attr.ino, attr.kind().unwrap()), (*ino, *kind));
    }
}

#[test]
fn readdirplus_shows_what_lookup_shows_and_counts() {
    let layers = Layers::new(2);
    for index in 0..20 {
        layers.file(index % 2, &format!("d/f{index}"), &"x".repeat(index));
    }
    let view = layers.open();
    let dir = view.hold("d").unwrap();
    let before = view.stats().inodes;
    let mut counted = Vec::new();
    view.union
        .readdirplus(dir.ino, 0, &mut |entry, attr| {
            if entry.name != b"." && entry.name != b".." {
                assert_eq!(entry.ino, attr.ino);
                counted.push((String::from_utf8(entry.name.to_vec()).unwrap(), *attr));
            }
            true
        })
        .unwrap();
    assert_eq!(counted.len(), 20);
    assert_eq!(view.stats().inodes, before + 20, "each is known now");
    for (name, attr) in &counted {
        let looked = view.stat(&format!("d/{name}")).unwrap();
        assert_eq!((looked.ino, looked.size, looked.mode), (attr.ino, attr.size, attr.mode));
    }
    for (_, attr) in &counted {
        view.union.forget(attr.ino, 1);
    }
    assert_eq!(view.stats().inodes, before);
}

#[test]
fn an_entry_that_was_not_taken_is_not_counted() {
    let layers = Layers::new(1);
    layers.file(0, "d/f", "");
    let view = layers.open();
    let dir = view.hold("d").unwrap();
    let before = view.stats().inodes;
    view.union.readdirplus(dir.ino, 0, &mut |entry, _| entry.name.starts_with(b".")).unwrap();
    assert_eq!(view.stats().inodes, before);
}

/// A directory of each kind, with 300 names that stay: `s000` to `s299`.
fn populated(kind: &str) -> (Layers, View) {
    let layers = Layers::new(2);
    for index in 0..300 {
        match kind {
            "one lower" => layers.file(0, &format!("d/s{index:03}"), ""),
            "merged" => layers.file(index % 2, &format!("d/s{index:03}"), ""),
            _ => continue,
        };
    }
    let view = layers.open();
    if kind == "upper" {
        view.mkdir("d", 0o755).unwrap();
        for index in 0..300 {
            view.create(&format!("d/s{index:03}"), 0o644).unwrap();
        }
    }
    (layers, view)
}

#[test]
fn what_stays_is_seen_exactly_once_while_other_names_come_and_go() {
    for kind in ["one lower", "merged", "upper"] {
        let (layers, view) = populated(kind);
        let mut seen = BTreeMap::new();
        let (mut offset, mut round) = (0, 0);
        loop {
            // Nothing of the directory is kept between two reads: there is no handle that could hold a snapshot.
            let entries = batch(&view, view.hold("d").unwrap().ino, offset, 7);
            let Some(last) = entries.last() else { break };
            offset = last.2;
            for (name, ..) in entries {
                *seen.entry(name).or_insert(0) += 1;
            }
            view.create(&format!("d/a{round}"), 0o644).unwrap();
            view.create(&format!("d/z{round}"), 0o644).unwrap();
            if round > 2 {
                view.unlink(&format!("d/a{}", round - 3)).unwrap();
                view.rename(&format!("d/z{}", round - 3), &format!("d/m{round}"), super::fixture::PLAIN).unwrap();
            }
            round += 1;
            assert!(round < 1000, "{kind}: no end");
        }
        for index in 0..300 {
            assert_eq!(seen.get(&format!("s{index:03}")), Some(&1), "{kind}: s{index:03}");
        }
        assert_eq!(seen.get("."), Some(&1), "{kind}");
        assert_eq!(seen.get(".."), Some(&1), "{kind}");
        drop(layers);
    }
}

#[test]
fn removing_everything_while_reading_it_empties_the_directory() {
    for kind in ["one lower", "merged", "upper"] {
        let (_layers, view) = populated(kind);
        let dir = view.hold("d").unwrap();
        let mut offset = 0;
        loop {
            let entries = batch(&view, dir.ino, offset, 10);
            let Some(last) = entries.last() else { break };
            offset = last.2;
            for (name, ..) in entries.iter().filter(|(name, ..)| !name.starts_with('.')) {
                view.unlink(&format!("d/{name}")).unwrap();
            }
        }
        assert_eq!(view.names("d").unwrap(), [""; 0], "{kind}");
        view.rmdir("d").unwrap();
    }
}

#[test]
fn reading_can_go_on_from_any_entry() {
    for kind in ["one lower", "merged", "upper"] {
        let (_layers, view) = populated(kind);
        let dir = view.hold("d").unwrap();
        let all = batch(&view, dir.ino, 0, 1000);
        assert_eq!(all.len(), 302, "{kind}");
        let offsets: BTreeSet<_> = all.iter().map(|entry| entry.2).collect();
        assert_eq!(offsets.len(), 302, "{kind}");
        assert!(offsets.iter().all(|offset| (1..=i64::MAX as u64).contains(offset)), "{kind}");
        for (index, (.., next)) in all.iter().enumerate() {
            assert_eq!(batch(&view, dir.ino, *next, 3), all[index + 1..(index + 4).min(302)], "{kind}");
        }
    }
}

/// A directory that only one layer has becomes a merged one when something in it is copied up.
#[test]
fn copy_up_of_the_directory_while_it_is_read_loses_nothing() {
    let (_layers, view) = populated("one lower");
    let dir = view.hold("d").unwrap();
    let first = batch(&view, dir.ino, 0, 100);
    view.chmod("d/s007", 0o600).unwrap();
    view.create("d/new", 0o644).unwrap();
    let rest = batch(&view, dir.ino, first.last().unwrap().2, 1000);
    let mut names: Vec<_> =
        first.iter().chain(&rest).map(|entry| &*entry.0).filter(|name| name.starts_with('s')).collect();
    names.sort_unstable();
    let expected: Vec<_> = (0..300).map(|index| format!("s{index:03}")).collect();
    assert_eq!(names, expected);
}

#[test]
fn a_large_merged_directory_is_read_in_pieces() {
    let layers = Layers::new(4);
    for index in 0..4000 {
        layers.file(index % 4, &format!("d/file-{index}"), "");
        if index % 10 == 0 {
            layers.file((index + 1) % 4, &format!("d/file-{index}"), "again");
        }
    }
    let view = layers.open();
    let dir = view.hold("d").unwrap();
    let (mut offset, mut names) = (0, BTreeSet::new());
    loop {
        let entries = batch(&view, dir.ino, offset, 100);
        let Some(last) = entries.last() else { break };
        offset = last.2;
        names.extend(entries.into_iter().map(|entry| entry.0));
    }
    assert_eq!(names.len(), 4002);
}

#[test]
fn files_are_no_directories() {
    let layers = Layers::new(1);
    layers.file(0, "f", "");
    let view = layers.open();
    let held = view.hold("f").unwrap();
    assert_eq!(view.union.readdir(held.ino, 0, &mut |_| true).unwrap_err(), Errno::ENOTDIR);
    assert_eq!(view.union.readdirplus(held.ino, 0, &mut |_, _| true).unwrap_err(), Errno::ENOTDIR);
}

/// A file comes up and is forgotten while its directory is read: what the listing then tells of must be the copy.
#[test]
fn a_listing_shows_copies_that_were_made_meanwhile() {
    const FILES: usize = 400;
    let path = |n: usize| format!("d/{n}");
    let layers = Layers::new(1);
    (0..FILES).for_each(|n| drop(layers.file(0, &path(n), "")));
    let view = layers.open();
    let dir = view.hold("d").unwrap();
    let copied = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..FILES {
                view.write(&path(n), 0, b"x").unwrap();
                copied.store(n + 1, Ordering::Release);
            }
        });
        while copied.load(Ordering::Acquire) < FILES {
            for (n, ino) in listed_and_kept(&view, dir.ino) {
                let is_copied = n < copied.load(Ordering::Acquire);
                let size = view.union.getattr(ino).unwrap().size;
                view.union.forget(ino, 1);
                assert!(size == 1 || !is_copied, "{} is shown without what was written to it", path(n));
            }
        }
    });
    view.names("d").unwrap();
    (0..FILES).for_each(|n| view.rename(&path(n), &format!("d/{n}.new"), PLAIN).unwrap());
}

/// What a directory of numbers has: the names with the inodes, which are known from now on.
fn listed_and_kept(view: &View, dir: u64) -> Vec<(usize, u64)> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let before = after;
        view.union
            .readdirplus(dir, after, &mut |entry, attr| {
                after = entry.next;
                let name = std::str::from_utf8(entry.name).unwrap();
                all.extend(name.parse().ok().map(|n| (n, attr.ino)));
                true
            })
            .unwrap();
        if after == before {
            return all;
        }
    }
}
