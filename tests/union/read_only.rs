//! A union without upper.

use layerfs::error::Errno;
use layerfs::union::{SetAttr, Union};

use super::fixture::{EXCHANGE, Layers, PLAIN, me, snapshot, xname};

#[test]
fn everything_is_read_and_nothing_written() {
    let layers = Layers::new(2);
    layers.file(0, "f", "top");
    layers.file(1, "d/g", "bottom");
    let before: Vec<_> = layers.lowers.iter().map(|lower| snapshot(lower)).collect();
    let view = layers.open_read_only();
    assert_eq!(view.text("f"), "top");
    assert_eq!(view.names("").unwrap(), ["d", "f"]);
    assert_eq!(view.text("d/g"), "bottom");
    for result in [
        view.create("new", 0o644).map(drop),
        view.mkdir("new", 0o755).map(drop),
        view.symlink("new", "x").map(drop),
        view.mknod("new", nix::libc::S_IFIFO | 0o600, 0).map(drop),
        view.link("f", "new").map(drop),
        view.unlink("f"),
        view.rmdir("d"),
        view.rename("f", "new", PLAIN),
        view.rename("f", "d", EXCHANGE),
        view.write("f", 0, b"x"),
        view.chmod("f", 0o600).map(drop),
        view.truncate("f", 0).map(drop),
        view.touch("d", 0, 0).map(drop),
        view.set("f", SetAttr { uid: Some(1), ..SetAttr::default() }).map(drop),
        view.set_xattr("f", "user.x", b"v"),
        view.union.removexattr(view.hold("f").unwrap().ino, &xname("user.x")),
        view.union.fallocate(view.hold("f").unwrap().ino, 0, 0, 10),
        view.union.setattr(&me(), Union::ROOT, &SetAttr { mode: Some(0o700), ..SetAttr::default() }).map(drop),
    ] {
        assert_eq!(result.unwrap_err(), Errno::EROFS);
    }
    view.union.fsync(view.hold("f").unwrap().ino, false).unwrap();
    view.union.fsyncdir(view.hold("d").unwrap().ino, false).unwrap();
    view.close();
    let after: Vec<_> = layers.lowers.iter().map(|lower| snapshot(lower)).collect();
    assert_eq!(after, before);
}

#[test]
fn a_single_lower_is_enough() {
    let layers = Layers::new(1);
    layers.file(0, "d/f", "only");
    let view = layers.open_read_only();
    assert_eq!(view.text("d/f"), "only");
    assert_eq!(view.stat("none").unwrap_err(), Errno::ENOENT);
}
