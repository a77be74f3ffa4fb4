//! Many callers at once: nothing is lost, nothing is torn, nobody waits for ever.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use layerfs::error::Errno;

use super::fixture::{EXCHANGE, Layers, PLAIN, read_all, write_all};

#[test]
fn one_file_is_copied_up_once() {
    let layers = Layers::new(1);
    let content = "0123456789abcdef".repeat(1 << 14);
    layers.file(0, "a/b/f", &content);
    let view = layers.open();
    let held = view.hold("a/b/f").unwrap();
    thread::scope(|scope| {
        for thread in 0..8u64 {
            let (union, ino) = (&view.union, held.ino);
            scope.spawn(move || write_all(union, ino, thread * 8, &[b'A' + thread as u8; 8]).unwrap());
        }
    });
    let mut expected = content.into_bytes();
    for thread in 0..8 {
        expected[thread * 8..thread * 8 + 8].fill(b'A' + thread as u8);
    }
    assert_eq!(read_all(&view.union, held.ino).unwrap(), expected);
    assert_eq!(view.stats().copy_ups.get("data"), Some(&1));
    assert_eq!(layers.staged(), [""; 0]);
}

#[test]
fn a_reader_sees_the_old_or_the_new_content_during_copy_up() {
    let layers = Layers::new(1);
    for index in 0..20 {
        layers.file(0, &format!("f{index}"), &"x".repeat(200_000));
    }
    let view = layers.open();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for index in 0..20 {
                    let content = view.read(&format!("f{index}")).unwrap();
                    assert_eq!(content.len(), 200_000);
                    assert!(content.iter().all(|byte| *byte == b'x'));
                }
            }
        });
        for index in 0..20 {
            view.chmod(&format!("f{index}"), 0o600).unwrap();
            view.rename(&format!("f{index}"), &format!("f{index}"), PLAIN).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn of_many_creations_of_one_name_one_succeeds() {
    let layers = Layers::new(1);
    layers.file(0, "d/gone", "");
    let view = layers.open();
    for round in 0..30 {
        if view.exists("d/gone") {
            view.unlink("d/gone").unwrap();
        }
        let made: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| view.create("d/gone", 0o644))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(made.iter().filter(|result| result.is_ok()).count(), 1, "{round}");
        assert!(made.iter().all(|result| result.is_ok() || *result.as_ref().unwrap_err() == Errno::EEXIST));
    }
    assert_eq!(layers.staged(), [""; 0]);
}

/// Every thread has files of its own; they share the directories, which move about meanwhile.
#[test]
fn trees_that_move_while_they_are_worked_in() {
    let layers = Layers::new(2);
    for dir in ["a", "b"] {
        for index in 0..40 {
            layers.file(index % 2, &format!("{dir}/sub/{index}"), "lower");
        }
    }
    let view = layers.open();
    let inodes = view.stats().inodes;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|thread| {
                let view = &view;
                scope.spawn(move || {
                    for index in (0..40).filter(|index| index % 4 == thread) {
                        let path = format!("a/sub/{index}");
                        let held = view.hold(&path).unwrap();
                        write_all(&view.union, held.ino, 0, b"UPPER").unwrap();
                        let dir = view.hold("b/sub").unwrap();
                        let name = super::fixture::name(&format!("new{index}"));
                        let made = view.union.create(&super::fixture::me(), dir.ino, &name, 0o644).unwrap();
                        write_all(&view.union, made.ino, 0, b"new").unwrap();
                        view.union.unlink(dir.ino, &name).unwrap();
                        assert_eq!(read_all(&view.union, made.ino).unwrap(), b"new");
                        view.union.forget(made.ino, 1);
                        assert_eq!(read_all(&view.union, held.ino).unwrap(), b"UPPER");
                    }
                })
            })
            .collect();
        let done = &done;
        let mover = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) || rounds < 2 {
                view.rename("a", "b", EXCHANGE).unwrap();
                rounds += 1;
            }
            rounds
        });
        for worker in workers {
            worker.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        if mover.join().unwrap() % 2 == 1 {
            view.rename("a", "b", EXCHANGE).unwrap();
        }
    });
    for dir in ["a", "b"] {
        assert_eq!(view.names(&format!("{dir}/sub")).unwrap().len(), 40);
    }
    let upper = ["a", "b"].iter().flat_map(|dir| (0..40).map(move |index| format!("{dir}/sub/{index}")));
    let changed = upper.filter(|path| view.text(path) == "UPPER").count();
    assert_eq!(changed, 40, "each number was written once, in one of the two");
    view.union.commit().unwrap();
    assert_eq!(view.stats().inodes, inodes);
    assert_eq!(layers.staged(), [""; 0]);
}

#[test]
fn renames_in_opposite_directions_do_not_wait_for_each_other() {
    let layers = Layers::new(1);
    for dir in ["a/x", "b/y"] {
        layers.directory(0, dir);
    }
    let view = layers.open();
    thread::scope(|scope| {
        for (from, to) in [("a/x", "b/x"), ("b/y", "a/y"), ("b/x", "a/x"), ("a/y", "b/y")] {
            let view = &view;
            scope.spawn(move || {
                for _ in 0..200 {
                    match view.rename(from, to, PLAIN) {
                        Ok(()) | Err(Errno::ENOENT) => {}
                        Err(other) => panic!("{from} -> {to}: {other}"),
                    }
                }
            });
        }
    });
    let mut names = view.names("a").unwrap();
    names.extend(view.names("b").unwrap());
    names.sort();
    assert_eq!(names, ["x", "y"]);
}
