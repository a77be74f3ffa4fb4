//! Changes of metadata alone leave a file's data in its lower, for us and for the kernel's overlay.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::Command;

use crate::common::Test;
use crate::common::files::*;
use crate::common::mount::run;
use crate::common::sys::{self, EXCHANGE, rename2};
use crate::common::tree::Tree;
use crate::common::union::Union;
use crate::common::values::{CAPABILITY, NO_ID, acl};
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(chown_of_many_files_reads_no_data).root(),
        t!(the_kernel_finds_the_data).root(),
        t!(the_kernel_finds_the_data_of_links).root(),
        t!(turns_are_taken_with_metadata_copies).root(),
        t!(data_follows_its_metadata),
        t!(everything_but_data_comes_up).root(),
        t!(privileges_go_with_the_owner).root(),
        t!(programs_see_no_holes),
        t!(without_metadata_copies).root(),
    ]
}

const METACOPY: &str = "trusted.overlay.metacopy";

/// How many copies of each kind were made, and how many bytes were copied.
fn copied(union: &Union, kinds: &[&str]) -> (Vec<u64>, u64) {
    let stats = union.stats();
    let count = |group: &str, name: &str| stats[group][name].as_u64().unwrap_or(0);
    let bytes = stats["copy_up_bytes"].as_object().expect("bytes").keys().map(|how| count("copy_up_bytes", how));
    (kinds.iter().map(|kind| count("copy_ups", kind)).collect(), bytes.sum())
}

/// A content that no two files share, of 64 KiB.
fn content(seed: &str) -> String {
    let line = format!("{seed}\n");
    line.repeat((64 << 10) / line.len() + 1)[..64 << 10].to_owned()
}

fn chown_of_many_files_reads_no_data() {
    const DIRS: usize = 10;
    const FILES: usize = 1000;
    let mut union = Union::new(1).arguments(&["--metacopy", "on"]);
    let path = |dir: usize, file: usize| format!("tree/d{dir}/f{file}");
    for (dir, file) in (0..DIRS).flat_map(|dir| (0..FILES).map(move |file| (dir, file))) {
        put(union.lower(0, &path(dir, file)), content(&path(dir, file)));
    }
    union.mount();
    run(Command::new("chown").args(["-R", "1234:5678"]).arg(union.at("tree"))).success();
    let (counts, bytes) = copied(&union, &["metadata", "data", "completed"]);
    assert_eq!((counts.as_slice(), bytes), (&[(DIRS * FILES) as u64, 0, 0][..], 0));
    for (dir, file) in (0..DIRS).flat_map(|dir| (0..FILES).map(move |file| (dir, file))) {
        let copy = stat(union.upper(&path(dir, file)));
        assert_eq!((copy.len(), copy.uid(), copy.gid()), (64 << 10, 1234, 5678));
        assert!(copy.blocks() <= 8, "at most a block of attributes, not {}", copy.blocks());
    }
    let samples = [path(0, 0), path(DIRS - 1, FILES - 1), path(3, 500)];
    let check = |union: &Union, who: &str| {
        for path in &samples {
            let meta = stat(union.at(path));
            assert_eq!((meta.uid(), meta.gid()), (1234, 5678), "{path}, {who}");
            assert_eq!(read(union.at(path)), content(path), "{path}, {who}");
        }
    };
    check(&union, "we");
    union.remount();
    check(&union, "we, later");
    union.umount();
    let kernel = union.kernel("redirect_dir=on,metacopy=on,index=on");
    check(&union, "the kernel");
    kernel.umount();
}

/// Files whose place in the lowers is covered by others after a rename.
fn traps() -> Union {
    let union = Union::new(2);
    for (layer, path) in [
        (1, "f"),
        (1, "g"),
        (0, "d/f"),
        (1, "d/f"),
        (1, "d/g"),
        (1, "d/h"),
        (1, "e/f"),
        (0, "e/sub/f"),
        (1, "e/sub/deep/f"),
        (1, "e/g"),
        (1, "gone/f"),
    ] {
        put(union.lower(layer, path), content(&format!("{layer} {path}")));
    }
    union
}

/// Renames and links of lower files and of files that have a metadata copy, in directories that move too.
fn shuffle(union: &Union) {
    let at = |path: &str| union.at(path);
    for path in ["f", "e/g", "d/h", "gone/f"] {
        chmod(at(path), 0o604);
    }
    fs::rename(at("f"), at("g")).expect("over another");
    fs::hard_link(at("g"), at("e/f2")).expect("link a renamed one");
    fs::rename(at("d/f"), at("e/g")).expect("over a metadata copy");
    fs::hard_link(at("e/sub/f"), at("d/g2")).expect("link a lower file");
    rename2(&at("d/g"), &at("e/f"), EXCHANGE).expect("exchange");
    make_dir(at("new"));
    fs::hard_link(at("g"), at("new/f")).expect("link into a new directory");
    fs::rename(at("e/sub"), at("d/inner")).expect("move a merged directory");
    fs::rename(at("d/inner/f"), at("new/g")).expect("out of a moved directory");
    fs::rename(at("e"), at("moved")).expect("move a directory");
    make_dir(at("e"));
    fs::rename(at("d/inner/deep/f"), at("e/f")).expect("into a directory made again");
    fs::remove_dir_all(at("gone")).expect("remove");
    make_dir(at("gone"));
    fs::rename(at("d/h"), at("gone/f")).expect("to the place of one that is gone");
    fs::rename(at("d"), at("gone/d")).expect("and its directory");
}

fn assert_shuffled(union: &Union) {
    for (path, from, links) in [
        ("g", "1 f", 3),
        ("moved/f2", "1 f", 3),
        ("new/f", "1 f", 3),
        ("moved/g", "0 d/f", 1),
        ("gone/d/g2", "0 e/sub/f", 2),
        ("new/g", "0 e/sub/f", 2),
        ("gone/d/g", "1 e/f", 1),
        ("moved/f", "1 d/g", 1),
        ("e/f", "1 e/sub/deep/f", 1),
        ("gone/f", "1 d/h", 1),
    ] {
        assert_eq!(read(union.at(path)), content(from), "{path}");
        assert_eq!(stat(union.at(path)).nlink(), links, "{path}");
    }
    assert_eq!(names(union.at("")), ["e", "g", "gone", "moved", "new"]);
    assert_eq!(names(union.at("gone/d")), ["g", "g2", "inner"]);
    assert_eq!((mode(union.at("g")), mode(union.at("gone/f"))), (0o604, 0o604));
}

fn the_kernel_finds_the_data() {
    let mut union = traps().arguments(&["--metacopy", "on"]);
    let before = union.lower_trees();
    union.mount();
    shuffle(&union);
    assert_shuffled(&union);
    let (counts, bytes) = copied(&union, &["data", "completed"]);
    assert_eq!((counts, bytes), (vec![0, 0], 0), "all of it without data");
    for path in ["g", "moved/g", "new/g", "gone/d/g", "e/f", "gone/f"] {
        assert!(marked(union.upper(path), METACOPY).is_some(), "{path}");
    }
    union.assert_lasting();
    let kernel = union.kernel("redirect_dir=on,metacopy=on,index=on");
    assert_shuffled(&union);
    kernel.umount();
    union.assert_lowers(&before);
}

fn the_kernel_finds_the_data_of_links() {
    let mut union = Union::new(1).arguments(&["--metacopy", "on"]);
    put(union.lower(0, "a"), content("links"));
    put(union.lower(0, "d/x"), content("another"));
    for name in ["b", "c", "d/e"] {
        fs::hard_link(union.lower(0, "a"), union.lower(0, name)).expect("link");
    }
    union.mount();
    let check = |union: &Union, names: &[&str], content: &str| {
        for name in names {
            assert_eq!(read(union.at(name)), content, "{name}");
            assert_eq!((mode(union.at(name)), stat(union.at(name)).nlink()), (0o604, names.len() as u64), "{name}");
        }
    };
    chmod(union.at("b"), 0o604);
    check(&union, &["a", "b", "c", "d/e"], &content("links"));
    assert!(marked(union.upper("b"), METACOPY).is_some());
    union.assert_lasting();
    union.mount();
    fs::rename(union.at("c"), union.at("d/x")).expect("rename");
    fs::hard_link(union.at("a"), union.at("d/y")).expect("link");
    fs::remove_file(union.at("b")).expect("remove");
    check(&union, &["a", "d/e", "d/x", "d/y"], &content("links"));
    union.assert_lasting();
    let kernel = union.kernel("redirect_dir=on,metacopy=on,index=on");
    check(&union, &["d/y", "d/e", "d/x", "a"], &content("links"));
    append(union.at("d/e"), "!");
    check(&union, &["d/y", "d/e", "d/x", "a"], &(content("links") + "!"));
    kernel.umount();
    union.mount();
    check(&union, &["d/y", "a", "d/e", "d/x"], &(content("links") + "!"));
    union.assert_lasting();
}

/// What one of the two left without data, the other moves, links and writes.
fn turns_are_taken_with_metadata_copies() {
    for kernel_first in [true, false] {
        let mut union = traps();
        let before = union.lower_trees();
        let turn = |union: &mut Union, kernel: bool, act: &dyn Fn(&Union)| {
            if kernel {
                let kernel = union.kernel("redirect_dir=on,metacopy=on,index=on");
                act(union);
                kernel.umount();
            } else {
                union.mount();
                act(union);
                union.umount();
            }
        };
        turn(&mut union, kernel_first, &|union| {
            for path in ["f", "d/f", "d/g", "e/f", "e/sub/f", "e/g"] {
                chmod(union.at(path), 0o604);
            }
            fs::rename(union.at("d/g"), union.at("d/k")).expect("within a directory");
            fs::hard_link(union.at("e/g"), union.at("e/l")).expect("link");
        });
        turn(&mut union, !kernel_first, &|union| {
            fs::rename(union.at("d/k"), union.at("e/k")).expect("to another directory");
            fs::rename(union.at("f"), union.at("d/g")).expect("rename");
            fs::rename(union.at("e/sub"), union.at("sub")).expect("a directory");
            fs::hard_link(union.at("e/l"), union.at("l")).expect("link");
            append(union.at("d/f"), "!");
        });
        turn(&mut union, kernel_first, &|union| {
            fs::rename(union.at("e"), union.at("d/e")).expect("a directory");
            append(union.at("sub/f"), "!");
            append(union.at("d/e/l"), "!");
        });
        union.mount();
        for (path, expected) in [
            ("d/e/k", content("1 d/g")),
            ("d/g", content("1 f")),
            ("sub/f", content("0 e/sub/f") + "!"),
            ("d/f", content("0 d/f") + "!"),
            ("d/e/f", content("1 e/f")),
            ("d/e/g", content("1 e/g") + "!"),
            ("l", content("1 e/g") + "!"),
        ] {
            assert_eq!(read(union.at(path)), expected, "{path}");
            assert_eq!(mode(union.at(path)), 0o604, "{path}");
        }
        union.assert_lasting();
        union.assert_lowers(&before);
    }
}

/// Through the page cache, mappings and direct calls, and with descriptors from before.
fn data_follows_its_metadata() {
    let mut union = Union::new(1).arguments(&["--metacopy", "on"]);
    let names = ["written", "appended", "mapped", "shorter", "longer", "emptied", "allocated", "times"];
    for name in names {
        put(union.lower(0, name), content(name));
    }
    let before = union.lower_trees();
    union.mount();
    let early = open(union.at("written"));
    for name in names {
        chmod(union.at(name), 0o604);
        set_times(union.at(name), (5, 6), (7, 8));
    }
    edit(union.at("written")).write_all_at(b"#", 100).expect("write");
    append(union.at("appended"), "#");
    let mapped = edit(union.at("mapped"));
    let map = sys::SharedMap::new(&mapped, 64 << 10, true).expect("map");
    map.write(100, b"#");
    map.sync().expect("msync");
    edit(union.at("shorter")).set_len(100).expect("truncate");
    edit(union.at("longer")).set_len(70_000).expect("truncate");
    edit(union.at("emptied")).set_len(0).expect("truncate");
    let allocated = edit(union.at("allocated"));
    nix::fcntl::fallocate(&allocated, nix::fcntl::FallocateFlags::empty(), 0, 70_000).expect("fallocate");
    edit(union.at("times")).write_all_at(b"#", 100).expect("write");
    set_times(union.at("times"), (5, 6), (9, 10));
    drop((map, mapped, allocated));
    let changed = |name: &str| format!("{}#{}", &content(name)[..100], &content(name)[101..]);
    let zeros = "\0".repeat(70_000 - (64 << 10));
    let check = |union: &Union| {
        assert_eq!(read(union.at("written")), changed("written"));
        assert_eq!(read(union.at("appended")), content("appended") + "#");
        assert_eq!(read(union.at("mapped")), changed("mapped"));
        assert_eq!(read(union.at("shorter")), content("shorter")[..100]);
        assert_eq!(read(union.at("longer")), content("longer") + &zeros);
        assert_eq!(read(union.at("emptied")), "");
        assert_eq!(read(union.at("allocated")), content("allocated") + &zeros);
        assert_eq!(read(union.at("times")), changed("times"));
        assert_eq!(mtime(union.at("times")), (9, 10));
        for name in names {
            assert_eq!(mode(union.at(name)), 0o604, "{name}");
            assert!(name == "times" || mtime(union.at(name)).0 > 10, "{name}");
        }
    };
    check(&union);
    assert_eq!(read_all(&early), changed("written"));
    drop(early);
    union.remount();
    check(&union);
    union.umount();
    union.assert_lowers(&before);
}

const ACL_NAME: &str = "system.posix_acl_access";

/// An ACL for user 1234, with a mask.
fn acl_masked(mask: u16) -> Vec<u8> {
    acl(&[(1, 6, NO_ID), (2, 7, 1234), (4, 4, NO_ID), (16, mask, NO_ID), (32, 0, NO_ID)])
}

fn everything_but_data_comes_up() {
    let mut union = Union::new(1).arguments(&["--metacopy", "on"]);
    for name in ["capable", "acl", "attributes", "set-id", "times"] {
        put(union.lower(0, name), content(name));
        set_times(union.lower(0, name), (11, 12), (13, 14));
    }
    sys::set_xattr(&union.lower(0, "capable"), "security.capability", &CAPABILITY, 0).expect("capability");
    sys::set_xattr(&union.lower(0, "acl"), ACL_NAME, &acl_masked(0o7), 0).expect("acl");
    mark(union.lower(0, "attributes"), "user.kept", "kept");
    mark(union.lower(0, "attributes"), "trusted.kept", "kept");
    chmod(union.lower(0, "set-id"), 0o6755);
    union.mount();
    for name in ["capable", "acl", "attributes", "set-id", "times"] {
        mark(union.at(name), "user.new", "new");
        assert!(marked(union.upper(name), METACOPY).is_some(), "{name}");
    }
    chmod(union.at("acl"), 0o640);
    let check = |union: &Union| {
        let get = |name: &str, attribute: &str| sys::get_xattr(&union.at(name), attribute);
        assert_eq!(get("capable", "security.capability").as_deref(), Ok(&CAPABILITY[..]));
        assert_eq!(get("acl", ACL_NAME), Ok(acl_masked(0o4)), "the mask is the group's mode");
        assert_eq!(mode(union.at("acl")), 0o640);
        assert_eq!((get("attributes", "user.kept"), get("attributes", "trusted.kept")), {
            let kept = || Ok(b"kept".to_vec());
            (kept(), kept())
        });
        assert_eq!(mode(union.at("set-id")), 0o6755);
        for name in ["capable", "acl", "attributes", "set-id", "times"] {
            assert_eq!(mtime(union.at(name)), (13, 14), "{name}");
            assert_eq!(read(union.at(name)), content(name));
        }
    };
    check(&union);
    union.remount();
    check(&union);
    // The data comes without taking anything away.
    for name in ["capable", "set-id"] {
        let file = edit(union.at(name));
        file.set_len(64 << 10).expect("to the length that it has");
    }
    assert_eq!(mode(union.at("set-id")), 0o6755, "root may keep them");
    union.assert_lasting();
}

fn privileges_go_with_the_owner() {
    let mut union = Union::new(1).arguments(&["--metacopy", "on"]);
    put(union.lower(0, "set-id"), content("set-id"));
    put(union.lower(0, "capable"), content("capable"));
    chmod(union.lower(0, "set-id"), 0o6755);
    sys::set_xattr(&union.lower(0, "capable"), "security.capability", &CAPABILITY, 0).expect("capability");
    union.mount();
    for name in ["set-id", "capable"] {
        chown(union.at(name), 1234, 5678);
        assert!(marked(union.upper(name), METACOPY).is_some(), "{name}");
    }
    let check = |union: &Union| {
        assert_eq!(mode(union.at("set-id")), 0o755);
        assert!(sys::get_xattr(&union.at("capable"), "security.capability").is_err());
        assert_eq!(read(union.at("set-id")), content("set-id"));
    };
    check(&union);
    union.remount();
    check(&union);
    union.assert_lasting();
}

/// Programs that look for holes, or at the number of blocks, copy the data.
fn programs_see_no_holes() {
    let mut union = Union::new(1).arguments(&["--metacopy", "on"]);
    put(union.lower(0, "file"), content("file"));
    let blocks = stat(union.lower(0, "file")).blocks();
    union.mount();
    chmod(union.at("file"), 0o604);
    union.remount();
    assert_eq!(stat(union.at("file")).blocks(), blocks);
    let copies: PathBuf = union.root().join("copies");
    make_dir(&copies);
    let cp = |sparse: &str, to: &str| {
        run(Command::new("cp").arg(format!("--sparse={sparse}")).arg(union.at("file")).arg(copies.join(to))).success();
        assert_eq!(read(copies.join(to)), content("file"), "{sparse}");
    };
    cp("auto", "a");
    cp("always", "b");
    let archive = copies.join("tar");
    let tar = |arguments: &[&OsStr]| run(Command::new("tar").args(arguments)).success();
    let [sparse, directory] = ["-Scf", "-C"].map(OsStr::new);
    tar(&[sparse, archive.as_os_str(), directory, union.point().as_os_str(), OsStr::new("file")]);
    tar(&[OsStr::new("-xf"), archive.as_os_str(), directory, copies.as_os_str()]);
    assert_eq!(read(copies.join("file")), content("file"));
    let digest = |path: &PathBuf| run(Command::new("sha256sum").arg(path)).success().stdout[..64].to_owned();
    assert_eq!(digest(&union.at("file")), digest(&union.lower(0, "file")));
    union.umount();
}

/// For an upper that is read elsewhere.
fn without_metadata_copies() {
    for (arguments, redirects) in
        [(&["--metacopy", "off"][..], true), (&["--timeout", "0"][..], true), (&["--redirect-dir", "off"][..], false)]
    {
        let mut union = traps().arguments(arguments);
        union.mount();
        chmod(union.at("f"), 0o604);
        fs::rename(union.at("d/f"), union.at("d/f2")).expect("rename");
        fs::hard_link(union.at("d/g"), union.at("link")).expect("link");
        let shown = Tree::of(&union.at("")).portable();
        for path in ["f", "d/f2", "d/g", "link"] {
            assert_eq!(marked(union.upper(path), METACOPY), None, "{path} {arguments:?}");
            assert_eq!(marked(union.upper(path), "trusted.overlay.redirect"), None, "{path} {arguments:?}");
            assert_eq!(read(union.upper(path)), read(union.at(path)), "{path} {arguments:?}");
        }
        union.umount();
        let redirects = if redirects { "on" } else { "off" };
        let kernel = union.kernel(&format!("redirect_dir={redirects},metacopy=off,index=on"));
        shown.assert_same(&Tree::of(&union.at("")).portable(), "the kernel without metacopy");
        kernel.umount();
    }
}
