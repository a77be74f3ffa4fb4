//! One upper, two unions: the kernel's overlay reads what layerfs wrote, and the reverse.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};

use nix::sys::signal::Signal;

use crate::common::Test;
use crate::common::files::*;
use crate::common::others::KernelOverlay;
use crate::common::sys::{EXCHANGE, rename2};
use crate::common::tree::Tree;
use crate::common::union::Union;
use crate::t;

const OPTIONS: &str = "redirect_dir=on,metacopy=on,index=on";

pub fn tests() -> Vec<Test> {
    vec![
        t!(the_kernel_reads_what_we_wrote).root(),
        t!(we_read_what_the_kernel_wrote).root(),
        t!(turns_are_taken).root(),
        t!(the_kernel_refuses_an_unclean_upper).root(),
        t!(a_metacopy_of_the_kernel_is_written).root(),
    ]
}

fn layers() -> Union {
    let union = Union::new(3);
    for (layer, path) in [
        (2, "a/one"),
        (2, "a/sub/two"),
        (1, "a/three"),
        (0, "b/four"),
        (2, "b/five"),
        (1, "b/gone/six"),
        (2, "c/deep/er/seven"),
        (0, "file"),
        (1, "other"),
        (2, "copied"),
        (2, "x/y/z/eight"),
        (1, "x/y/nine"),
        (1, "meta"),
    ] {
        put(union.lower(layer, path), path);
        mark(union.lower(layer, path), "user.path", path);
    }
    for name in ["h1", "h2", "c/h3"] {
        fs::hard_link(union.lower(2, "copied"), union.lower(2, name)).expect("link");
    }
    symlink("file", union.lower(1, "link")).expect("symlink");
    whiteout(union.lower(0, "other"));
    union
}

/// Changes of every kind, for either of the two to make.
fn change(union: &Union) {
    let at = |path: &str| union.at(path);
    append(at("a/one"), " changed");
    chmod(at("meta"), 0o600);
    fs::remove_file(at("a/three")).expect("remove");
    fs::rename(at("a"), at("b/a")).expect("rename a merged directory");
    fs::rename(at("b/five"), at("b/a/five")).expect("rename a file");
    fs::remove_dir_all(at("b/gone")).expect("remove a directory");
    make_dir(at("b/gone"));
    put(at("b/gone/new"), "new");
    fs::rename(at("c/deep"), at("d")).expect("rename a lower directory");
    append(at("d/er/seven"), " changed");
    append(at("h1"), " through a link");
    fs::remove_file(at("h2")).expect("remove a link");
    fs::hard_link(at("file"), at("file2")).expect("link");
    put(at("other"), "over a whiteout");
    fs::rename(at("link"), at("link2")).expect("rename a symlink");
    rename2(&at("x/y"), &at("b/a"), EXCHANGE).expect("exchange directories");
    put(at("x/y/made"), "made");
    mark(at("b/a"), "user.note", "exchanged");
    set_times(at("b/four"), (1, 1), (2, 3));
    fs::remove_file(at("b/four")).expect("remove");
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRUSR).expect("mkfifo");
}

fn assert_changed(union: &Union) {
    let at = |path: &str| union.at(path);
    assert_eq!(names(at("")), ["b", "c", "copied", "d", "fifo", "file", "file2", "h1", "link2", "meta", "other", "x"]);
    assert_eq!(names(at("b")), ["a", "gone"]);
    assert_eq!(names(at("b/a")), ["nine", "z"]);
    assert_eq!(names(at("b/a/z")), ["eight"]);
    assert_eq!(names(at("b/gone")), ["new"]);
    assert_eq!(names(at("x/y")), ["five", "made", "one", "sub"]);
    assert_eq!(names(at("x/y/sub")), ["two"]);
    assert_eq!(read(at("x/y/one")), "a/one changed");
    assert_eq!(read(at("d/er/seven")), "c/deep/er/seven changed");
    for name in ["h1", "copied", "c/h3"] {
        assert_eq!(read(at(name)), "copied through a link", "{name}");
        assert_eq!(stat(at(name)).nlink(), 3, "{name}");
    }
    assert_eq!(read(at("other")), "over a whiteout");
    assert_eq!((mode(at("meta")), read(at("meta"))), (0o600, "meta".to_owned()));
}

fn the_kernel_reads_what_we_wrote() {
    let mut union = layers();
    let before = union.lower_trees();
    union.mount();
    change(&union);
    assert_changed(&union);
    union.assert_lasting();
    let kernel = union.kernel(OPTIONS);
    assert_changed(&union);
    kernel.umount();
    union.assert_lowers(&before);
}

fn we_read_what_the_kernel_wrote() {
    let mut union = layers();
    let before = union.lower_trees();
    let kernel = union.kernel(OPTIONS);
    change(&union);
    assert_changed(&union);
    let shown = Tree::of(&union.at("")).portable();
    kernel.umount();
    union.mount();
    assert_changed(&union);
    shown.assert_same(&Tree::of(&union.at("")).portable(), "the kernel's upper");
    union.assert_lasting();
    union.assert_lowers(&before);
}

fn turns_are_taken() {
    let mut union = layers();
    let before = union.lower_trees();
    let kernel = union.kernel(OPTIONS);
    change(&union);
    kernel.umount();
    for round in 0..3 {
        let step = |union: &Union, who: &str| {
            append(union.at("x/y/one"), who);
            append(union.at("copied"), who);
            assert_eq!(read(union.at("c/h3")), read(union.at("copied")));
            let (from, to) = (format!("d{}", "x".repeat(round)), format!("d{}{who}", "x".repeat(round)));
            fs::rename(union.at(&from), union.at(&to)).expect("rename");
            append(union.at(&format!("{to}/er/seven")), who);
            fs::rename(union.at(&to), union.at(&from)).expect("rename back");
            chmod(union.at("x/y/sub/two"), if who == "k" { 0o600 } else { 0o644 });
        };
        union.mount();
        step(&union, "l");
        union.umount();
        let kernel = union.kernel(OPTIONS);
        step(&union, "k");
        fs::rename(union.at(&format!("d{}", "x".repeat(round))), union.at(&format!("d{}", "x".repeat(round + 1))))
            .expect("rename");
        kernel.umount();
    }
    union.mount();
    assert_eq!(read(union.at("x/y/one")), "a/one changedlklklk");
    assert_eq!(read(union.at("copied")), "copied through a linklklklk");
    assert_eq!(read(union.at("dxxx/er/seven")), "c/deep/er/seven changedlklklk");
    union.assert_lasting();
    union.assert_lowers(&before);
}

/// A daemon that was killed has left state that only layerfs understands.
fn the_kernel_refuses_an_unclean_upper() {
    let mut union = Union::new(1);
    put(union.lower(0, "file"), "x");
    union.mount();
    append(union.at("file"), "y");
    union.mounted().signal(Signal::SIGKILL);
    union.umount_dead();
    let refused = KernelOverlay::start(union.lowers(), &union.upper(""), &union.work(""), OPTIONS, &union.point());
    assert!(refused.is_err(), "the kernel's overlay has to be kept away");
    union.mount();
    assert_eq!(read(union.at("file")), "xy");
    union.assert_lasting();
}

fn a_metacopy_of_the_kernel_is_written() {
    let mut union = Union::new(2);
    for name in ["read", "written", "renamed", "linked", "removed", "truncated"] {
        put(union.lower(1, &format!("d/{name}")), name);
    }
    let before = union.lower_trees();
    let kernel = union.kernel(OPTIONS);
    for name in names(union.at("d")) {
        chmod(union.at("d").join(&name), 0o600);
    }
    kernel.umount();
    assert!(marked(union.upper("d/read"), "trusted.overlay.metacopy").is_some());
    union.mount();
    let at = |name: &str| union.at(&format!("d/{name}"));
    assert_eq!((read(at("read")), mode(at("read"))), ("read".to_owned(), 0o600));
    edit(at("written")).write_all_at(b"W", 0).expect("write");
    fs::rename(at("renamed"), union.at("elsewhere")).expect("rename");
    fs::hard_link(at("linked"), union.at("link")).expect("link");
    fs::remove_file(at("removed")).expect("remove");
    edit(at("truncated")).set_len(2).expect("truncate");
    fs::rename(union.at("d"), union.at("e")).expect("rename the directory");
    assert_eq!(read(union.at("e/written")), "Written");
    assert_eq!(read(union.at("elsewhere")), "renamed");
    assert_eq!(read(union.at("link")), "linked");
    assert_eq!(read(union.at("e/truncated")), "tr");
    assert_eq!(names(union.at("e")), ["linked", "read", "truncated", "written"]);
    union.assert_lasting();
    union.assert_lowers(&before);
}
