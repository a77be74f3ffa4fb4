//! Nothing in a layer leads out of it, whatever stands there and whatever it is replaced by meanwhile.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::common::Test;
use crate::common::files::*;
use crate::common::mount::Mount;
use crate::common::sys::set_xattr;
use crate::common::tree::Tree;
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(a_directory_of_a_lower_that_becomes_a_symlink).root(),
        t!(a_directory_of_upper_that_becomes_a_symlink).root(),
        t!(objects_that_become_others_are_not_taken_for_them).root(),
        t!(redirects_through_symlinks).root(),
        t!(symlinks_lead_where_their_user_goes).root(),
        t!(links_planted_in_the_work_directory).root(),
    ]
}

/// A directory beside the layers that nobody may reach through the mount, and what is in it.
fn outside(union: &Union) -> (PathBuf, Tree) {
    let outside = union.root().join("outside");
    for name in ["file", "other", "sub/file", "sub/other", "only-outside"] {
        put(outside.join(name), "secret");
    }
    let before = Tree::of(&outside);
    (outside, before)
}

/// A path in the mount, unless a symlink is on the way: that is shown as one, and its user, not the daemon, would follow it.
fn within(top: &Path, path: &str) -> Option<PathBuf> {
    let mut at = top.to_owned();
    for part in Path::new(path).components() {
        if fs::symlink_metadata(&at).is_ok_and(|found| found.is_symlink()) {
            return None;
        }
        at.push(part);
    }
    Some(at)
}

/// Asks for everything in a directory; an error is a good answer, the secret is not.
fn look(top: &Path) {
    for name in ["file", "other", "sub/file", "sub/other", "only-outside"] {
        let Some(path) = within(top, name) else { continue };
        if let Ok(content) = fs::read(&path) {
            assert_ne!(content, b"secret", "{path:?}");
        }
        assert!(name != "only-outside" || !exists(&path));
    }
    for name in ["x", "sub/x"] {
        let Some(path) = within(top, name) else { continue };
        if let Ok(entries) = fs::read_dir(path.parent().expect("a parent")) {
            let names: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
            assert!(!names.contains(&"only-outside".into()), "{path:?}: {names:?}");
        }
    }
}

/// Changes everything in a directory: refused, or done within the layers.
fn change(top: &Path) {
    for name in ["file", "other", "sub/file", "sub/other", "new", "sub/new"] {
        let Some(path) = within(top, name) else { continue };
        drop(fs::OpenOptions::new().append(true).create(true).open(&path).and_then(|mut f| f.write_all(b"changed")));
        drop(fs::set_permissions(&path, fs::Permissions::from_mode(0o640)));
        drop(fs::rename(&path, top.join("renamed")));
        drop(fs::remove_file(&path));
        drop(fs::create_dir(&path));
        drop(symlink("x", path.with_extension("link")));
    }
}

fn a_directory_of_a_lower_that_becomes_a_symlink() {
    for options in [&[][..], &["-o", "timeout=0"]] {
        let mut union = Union::new(2).arguments(options);
        let (outside, before) = outside(&union);
        for name in ["listed", "known"] {
            for file in ["file", "other", "sub/file", "sub/other"] {
                put(union.lower(1, &format!("{name}/{file}")), "lower");
            }
            put(union.lower(0, &format!("{name}/top")), "top");
        }
        union.mount();
        assert_eq!(names(union.at("listed")), ["file", "other", "sub", "top"]);
        assert_eq!(read(union.at("listed/sub/file")), "lower");
        assert!(stat(union.at("known/sub")).is_dir());
        for path in ["listed/sub", "known/sub", "listed", "known"] {
            fs::rename(union.lower(1, path), union.root().join(path.replace('/', "-"))).expect("move it out");
            let sub = path.split_once('/').map_or("", |(_, sub)| sub);
            symlink(outside.join(sub), union.lower(1, path)).expect("symlink");
        }
        for name in ["listed", "known"] {
            look(&union.at(name));
            change(&union.at(name));
            look(&union.at(name));
        }
        union.umount();
        before.assert_same(&Tree::of(&outside), "outside");
        for name in ["listed", "known"] {
            look(&union.upper(name));
        }
    }
}

fn a_directory_of_upper_that_becomes_a_symlink() {
    for options in [&[][..], &["-o", "timeout=0"]] {
        let mut union = Union::new(1).arguments(options);
        let (outside, before) = outside(&union);
        for name in ["listed", "known"] {
            put(union.upper(&format!("{name}/sub/file")), "upper");
            put(union.upper(&format!("{name}/file")), "upper");
            put(union.lower(0, &format!("{name}/other")), "lower");
        }
        union.mount();
        assert_eq!(names(union.at("listed")), ["file", "other", "sub"]);
        assert!(stat(union.at("known/sub")).is_dir());
        for name in ["listed", "known"] {
            fs::rename(union.upper(name), union.root().join(format!("{name}-moved"))).expect("move it out");
            symlink(&outside, union.upper(name)).expect("symlink");
        }
        for name in ["listed", "known"] {
            look(&union.at(name));
            change(&union.at(name));
            look(&union.at(name));
        }
        union.umount();
        before.assert_same(&Tree::of(&outside), "outside");
    }
}

/// What stands under a name is used only if it is the object that was looked up.
fn objects_that_become_others_are_not_taken_for_them() {
    // With a timeout of 0, and where each opening is a request, the others are seen, as what they are.
    let mut union = Union::new(1).arguments(&["--timeout", "3600", "--io", "cached"]);
    let secret = union.root().join("secret");
    put(&secret, "secret");
    chmod(&secret, 0o600);
    for name in ["linked", "symlinked", "fifo", "replaced"] {
        put(union.lower(0, name), "lower");
    }
    union.mount();
    // Kept, so that what comes does not get their inode numbers.
    let mut gone = Vec::new();
    for name in ["linked", "symlinked", "fifo", "replaced"] {
        // Known to the kernel, with a mode that lets everybody read, and never opened.
        assert_eq!(mode(union.at(name)), 0o644);
        gone.push(open(union.lower(0, name)));
        fs::remove_file(union.lower(0, name)).expect("remove");
    }
    fs::hard_link(&secret, union.lower(0, "linked")).expect("link");
    symlink(&secret, union.lower(0, "symlinked")).expect("symlink");
    node(union.lower(0, "fifo"), nix::sys::stat::SFlag::S_IFIFO, (0, 0));
    put(union.lower(0, "replaced"), "secret");
    for name in ["linked", "symlinked", "fifo", "replaced"] {
        let read = fs::read(union.at(name));
        assert!(read.is_err(), "{name}: {read:?}");
        let written = fs::OpenOptions::new().append(true).open(union.at(name)).and_then(|file| {
            (&file).write_all(b"x")?;
            file.sync_all()
        });
        assert!(written.is_err(), "{name}");
        assert!(!exists(union.upper(name)), "{name}: nothing is copied up");
    }
    assert_eq!(fs::read(&secret).expect("read"), b"secret");
    union.umount();
}

/// A redirect is a path of names in the layers below; a symlink on it is no directory.
fn redirects_through_symlinks() {
    let mut union = Union::new(1);
    let (outside, before) = outside(&union);
    symlink(&outside, union.lower(0, "way")).expect("symlink");
    symlink("/", union.lower(0, "root")).expect("symlink");
    put(union.lower(0, "inside/file"), "lower");
    let absolute = outside.to_str().expect("a path in UTF-8").to_owned();
    let targets = ["/way", "/way/sub", "way", "/root/etc", "/root", &absolute];
    for (i, target) in targets.iter().enumerate() {
        put(union.upper(&format!("dir{i}/own")), "own");
        mark(union.upper(&format!("dir{i}")), "trusted.overlay.redirect", target);
        let file = union.upper(&format!("file{i}"));
        put(&file, "123456");
        mark(&file, "trusted.overlay.metacopy", "");
        mark(&file, "trusted.overlay.redirect", &format!("{target}/file"));
    }
    union.mount();
    for (i, target) in targets.iter().enumerate() {
        match fs::read_dir(union.at(&format!("dir{i}"))) {
            Ok(_) => assert_eq!(names(union.at(&format!("dir{i}"))), ["own"], "{target}"),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "{target}"),
        }
        fails(fs::read(union.at(&format!("file{i}"))), Errno::EIO);
        fails(fs::OpenOptions::new().append(true).open(union.at(&format!("file{i}"))), Errno::EIO);
    }
    assert_eq!(read(union.at("inside/file")), "lower");
    union.umount();
    before.assert_same(&Tree::of(&outside), "outside");
}

/// A symlink of a layer is the kernel's to follow, from where its user is: in a chroot it leads to the chroot's files.
fn symlinks_lead_where_their_user_goes() {
    let mut union = Union::new(1);
    symlink("/etc/hostname", union.lower(0, "absolute")).expect("symlink");
    symlink("../../../../../../../../etc/hostname", union.lower(0, "climbing")).expect("symlink");
    put(union.lower(0, "etc/hostname"), "the union's");
    let marker = union.root().join("marker");
    put(&marker, "the host's");
    union.mount();
    for name in ["absolute", "climbing"] {
        let target = fs::read_link(union.at(name)).expect("readlink");
        assert_eq!(target, fs::read_link(union.lower(0, name)).expect("readlink"), "as it is in the layer");
    }
    append(union.at("etc/hostname"), "!");
    set_times(union.at("absolute"), (1, 1), (2, 2));
    assert_eq!(read(&marker), "the host's");
    assert!(stat(union.upper("absolute")).is_symlink(), "the symlink is copied up, not what it names");
    union.umount();
}

/// Whoever could write into the work directory before must not turn the daemon's own writing elsewhere.
fn links_planted_in_the_work_directory() {
    for planted in ["layerfs", "layerfs/stage", "layerfs/parked", "layerfs/marks", "layerfs/lock", "work", "index"] {
        let mut union = Union::new(1);
        let (outside, before) = outside(&union);
        put(union.lower(0, "a"), "lower");
        fs::hard_link(union.lower(0, "a"), union.lower(0, "b")).expect("link");
        put(union.lower(0, "d/file"), "lower");
        let place = union.work(planted);
        make_dir(place.parent().expect("a parent"));
        let target = if ["layerfs/marks", "layerfs/lock"].contains(&planted) { "file" } else { "" };
        symlink(outside.join(target), &place).expect("symlink");
        // Refused, or every change fails, or it is done elsewhere.
        if Mount::attempt(&union.command_line(), &union.point()).map(Mount::umount).is_ok() {
            union.mount();
            drop(fs::write(union.at("a"), "changed"));
            drop(fs::remove_dir_all(union.at("d")));
            drop(fs::create_dir(union.at("d")));
            let _refused = set_xattr(&union.at("b"), "user.x", b"y", 0);
            let file = fs::File::open(union.at("b"));
            drop(fs::remove_file(union.at("b")));
            drop(file);
            union.umount();
        }
        before.assert_same(&Tree::of(&outside), planted);
        fails(fs::symlink_metadata(outside.join("layerfs")), Errno::ENOENT);
    }
}
