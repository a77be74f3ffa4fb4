//! Objects that lost their last name while somebody still has them open.

use layerfs::error::Errno;
use layerfs::union::{SetAttr, SetTime, Time};

use super::fixture::{EXCHANGE, Layers, PLAIN, View, me, read_all, write_all, xname};

type Unlink = fn(&View, &str);

const WAYS: [(&str, Unlink); 2] = [
    ("unlinked", |view, path| view.unlink(path).unwrap()),
    ("replaced", |view, path| {
        view.put("other", "other");
        view.rename("other", path, PLAIN).unwrap();
    }),
];

fn fresh() -> (Layers, View) {
    let layers = Layers::new(1);
    for file in ["lower", "up", "d/lower"] {
        layers.file(0, file, "content");
    }
    let view = layers.open();
    view.write("up", 0, b"c").unwrap();
    view.put("new", "content");
    (layers, view)
}

#[test]
fn it_is_read_written_and_changed_as_before() {
    for (how, unlink) in WAYS {
        for path in ["lower", "up", "new", "d/lower"] {
            let (_layers, view) = fresh();
            let held = view.hold(path).unwrap();
            unlink(&view, path);
            let union = &view.union;
            let attr = union.getattr(held.ino).unwrap();
            assert_eq!((attr.ino, attr.nlink, attr.size), (held.ino, 0, 7), "{path} {how}");
            assert_eq!(read_all(union, held.ino).unwrap(), b"content", "{path} {how}");
            write_all(union, held.ino, 4, b"ENDED").unwrap();
            assert_eq!(read_all(union, held.ino).unwrap(), b"contENDED", "{path} {how}");
            let at = Some(SetTime::At(Time { sec: 5, nsec: 6 }));
            let change = SetAttr { mode: Some(0o600), size: Some(6), ..SetAttr::default() };
            union.setattr(&me(), held.ino, &change).unwrap();
            union.setattr(&me(), held.ino, &SetAttr { mtime: at, ..SetAttr::default() }).unwrap();
            let attr = union.getattr(held.ino).unwrap();
            assert_eq!((attr.mode & 0o777, attr.size, attr.mtime.sec, attr.nlink), (0o600, 6, 5, 0), "{path} {how}");
            union.setxattr(&me(), held.ino, &xname("user.x"), b"v", 0).unwrap();
            assert_eq!(union.getxattr(held.ino, &xname("user.x")).unwrap(), b"v");
            union.fsync(held.ino, false).unwrap();
            union.fallocate(held.ino, 0, 0, 10).unwrap();
            assert_eq!(read_all(union, held.ino).unwrap(), b"contEN\0\0\0\0", "{path} {how}");
            match how {
                "unlinked" => assert!(!view.exists(path)),
                _ => assert_eq!(view.text(path), "other"),
            }
        }
    }
}

#[test]
fn it_has_a_number_of_its_own_while_it_lives() {
    for path in ["lower", "up", "new"] {
        let (_layers, view) = fresh();
        let held = view.hold(path).unwrap();
        view.unlink(path).unwrap();
        for round in 0..20 {
            view.put(path, "again");
            assert_ne!(view.stat(path).unwrap().ino, held.ino, "{path} {round}");
            view.unlink(path).unwrap();
        }
        assert_eq!(read_all(&view.union, held.ino).unwrap(), b"content");
    }
}

#[test]
fn it_gets_no_new_name() {
    let (_layers, view) = fresh();
    let held = view.hold("lower").unwrap();
    view.unlink("lower").unwrap();
    let root = layerfs::union::Union::ROOT;
    let error = view.union.link(held.ino, root, &super::fixture::name("back")).unwrap_err();
    assert_eq!(error, Errno::ENOENT);
}

#[test]
fn it_is_gone_with_the_last_forget() {
    let (layers, view) = fresh();
    let before = view.stats().inodes;
    for path in ["lower", "up", "new"] {
        let held = view.hold(path).unwrap();
        view.unlink(path).unwrap();
        view.union.write(held.ino, 0, b"x").unwrap();
    }
    let after = view.stats();
    assert_eq!(after.inodes, before);
    assert_eq!(layers.staged(), [""; 0]);
    view.close();
    assert_eq!(layers.staged(), [""; 0]);
}

/// There may be more of them than descriptors: the next test in a process that has few.
#[test]
fn they_need_no_descriptor_each() {
    let test = "union::unlinked::hundreds_of_them_are_kept";
    let program = std::env::current_exe().unwrap();
    if program.metadata().is_err() {
        eprintln!("left out: this user can't reach {}", program.display());
        return;
    }
    let output = std::process::Command::new("sh")
        .args(["-c", r#"ulimit -n 512 && exec "$0" --exact "$1" --nocapture"#])
        .arg(program)
        .arg(test)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn hundreds_of_them_are_kept() {
    let layers = Layers::new(1);
    for index in 0..1500 {
        layers.file(0, &format!("d/f{index}"), &index.to_string());
    }
    let view = layers.open();
    for index in 0..1500 {
        view.put(&format!("d/u{index}"), &index.to_string());
    }
    let inodes = view.stats().inodes;
    let mut held = Vec::new();
    for index in 0..1500 {
        for prefix in ["f", "u"] {
            let path = format!("d/{prefix}{index}");
            held.push((index, view.hold(&path).unwrap()));
            view.unlink(&path).unwrap();
        }
    }
    let (limit, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    assert!(view.stats().descriptors < limit * 3 / 4, "{} of {limit}", view.stats().descriptors);
    assert_eq!(view.names("d").unwrap(), [""; 0]);
    for (index, held) in &held {
        assert_eq!(read_all(&view.union, held.ino).unwrap(), index.to_string().as_bytes());
        assert_eq!(view.union.getattr(held.ino).unwrap().nlink, 0);
    }
    drop(held);
    assert_eq!(view.stats().inodes, inodes);
    view.rmdir("d").unwrap();
    view.close();
    let private = layers.work("layerfs");
    let left = super::fixture::snapshot(&private);
    assert!(left.len() < 50, "{:?}", left.keys());
}

#[test]
fn a_removed_directory_still_has_attributes() {
    for upper in [false, true] {
        let layers = Layers::new(1);
        layers.directory(0, "d");
        let view = layers.open();
        if upper {
            view.rmdir("d").unwrap();
            view.mkdir("d", 0o755).unwrap();
        }
        let held = view.hold("d").unwrap();
        view.rmdir("d").unwrap();
        let attr = view.union.getattr(held.ino).unwrap();
        assert_eq!((attr.ino, attr.mode), (held.ino, held.mode));
        view.union.setattr(&me(), held.ino, &SetAttr { mode: Some(0o700), ..SetAttr::default() }).unwrap();
        assert_eq!(view.union.getattr(held.ino).unwrap().mode & 0o777, 0o700);
        assert!(!view.exists("d"));
    }
}

#[test]
fn what_moves_while_it_is_open_stays_the_same() {
    let (_layers, view) = fresh();
    let held = view.hold("lower").unwrap();
    let below = view.hold("d/lower").unwrap();
    view.rename("d", "lower", EXCHANGE).unwrap();
    view.rename("lower", "moved", PLAIN).unwrap();
    write_all(&view.union, held.ino, 0, b"FILE").unwrap();
    write_all(&view.union, below.ino, 0, b"BELOW").unwrap();
    assert_eq!(view.text("d"), "FILEent");
    assert_eq!(view.text("moved/lower"), "BELOWnt");
}
