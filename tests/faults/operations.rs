//! The layers that operations fail on, and the operations.

use layerfs::error::Result;
use layerfs::name::Name;
use layerfs::union::{Attr, Caller, SetAttr, Union};

use crate::fixture::*;

/// The time of last change of everything in the layers, in seconds since the epoch.
const OLD: i64 = 1_000_000_000;

/// The content of lower files of which upper has the metadata.
const META: &str = "data in lower, metadata in upper";

/// An operation by its name.
pub type Operation = (&'static str, fn(&View) -> Result<()>);

/// Layers over lowers that are there already, with something of every kind in upper; all of it is dated back.
pub fn over(lowers: &Layers) -> Layers {
    let mut layers = Layers::new(0);
    layers.lowers.clone_from(&lowers.lowers);
    layers.upper("merged/upper-only");
    std::fs::write(layers.upper("merged/in-upper"), "upper").unwrap();
    std::fs::write(layers.upper("merged/over-lower"), "upper over lower").unwrap();
    std::fs::write(layers.upper("pure/file"), "pure").unwrap();
    std::fs::create_dir(layers.upper("pure/empty")).unwrap();
    std::fs::create_dir(layers.upper("emptied")).unwrap();
    for name in ["meta", "meta-too"] {
        std::fs::File::create(layers.upper(&format!("merged/{name}"))).unwrap().set_len(META.len() as u64).unwrap();
        set_xattr(&layers.upper(&format!("merged/{name}")), &mark("metacopy"), b"").unwrap();
    }
    layers.hide_in_upper("emptied/child");
    layers.hide_in_upper("merged/deleted");
    date_back(&layers.upper(""));
    layers
}

/// Lowers with an object of every kind, dated back.
pub fn lowers() -> Layers {
    let layers = Layers::new(2);
    fill_lowers(&layers);
    layers.lowers.iter().for_each(|lower| date_back(lower));
    layers
}

fn fill_lowers(layers: &Layers) {
    layers.file(1, "merged/file", &"lower ".repeat(4000));
    set_xattr(&layers.lower(1, "merged/file"), "user.key", b"value").unwrap();
    layers.file(1, "merged/over-lower", "lower");
    layers.file(1, "merged/meta", META);
    layers.file(1, "merged/meta-too", META);
    layers.file(1, "merged/deleted", "deleted");
    layers.file(1, "merged/one", "three names");
    for name in ["two", "three"] {
        std::fs::hard_link(layers.lower(1, "merged/one"), layers.lower(1, &format!("merged/{name}"))).unwrap();
    }
    std::os::unix::fs::symlink("file", layers.lower(1, "merged/symlink")).unwrap();
    layers.file(1, "merged/below/deeper/file", "deep");
    layers.directory(1, "merged/empty");
    layers.file(1, "emptied/child", "child");
    layers.file(1, "plain/file", "plain");
    layers.file(0, "merged/top", "from the top lower");
    let sparse = std::fs::File::create(layers.lower(0, "merged/sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 1 << 16).unwrap();
    sparse.set_len(1 << 17).unwrap();
}

impl Layers {
    fn hide_in_upper(&self, path: &str) {
        let place = self.upper(path);
        if privileged() {
            make_whiteout(&place);
        } else {
            std::fs::write(&place, "").unwrap();
            set_xattr(&place, &mark("whiteout"), b"").unwrap();
            set_xattr(place.parent().unwrap(), &mark("opaque"), b"x").unwrap();
        }
    }
}

fn date_back(path: &std::path::Path) {
    if path.symlink_metadata().unwrap().is_dir() {
        path.read_dir().unwrap().for_each(|entry| date_back(&entry.unwrap().path()));
    }
    set_times(path, OLD, 5);
}

const FIFO: u32 = libc::S_IFIFO | 0o600;

/// Makes an object that belongs to another user than the one who mounts, if that one may give it away.
fn for_somebody(view: &View, path: &str, make: impl FnOnce(&Union, &Caller, u64, &Name) -> Result<Attr>) -> Result<()> {
    let (dir, name) = view.parent(path)?;
    let somebody = if privileged() { Caller { uid: 1000, gid: 1000, ..me() } } else { me() };
    let made = make(&view.union, &somebody, dir.ino, &name)?;
    view.union.forget(made.ino, 1);
    Ok(())
}

fn set(view: &View, path: &str, change: SetAttr) -> Result<()> {
    view.set(path, change).map(drop)
}

fn write(view: &View, path: &str) -> Result<()> {
    view.write(path, 3, b"written")
}

fn remove_xattr(view: &View, path: &str) -> Result<()> {
    view.union.removexattr(view.hold(path)?.ino, &xname("user.key"))
}

fn fallocate(view: &View, path: &str) -> Result<()> {
    view.union.fallocate(view.hold(path)?.ino, 0, 0, 1 << 17)
}

fn copy_range(view: &View, from: &str, to: &str) -> Result<()> {
    let (from, to) = (view.hold(from)?, view.hold(to)?);
    view.union.copy_file_range(from.ino, 0, to.ino, 0, 3).map(drop)
}

/// What reads and changes no tree.
pub const READS: &[Operation] = &[
    ("lookup", |v| v.stat("merged/below/deeper/file").map(drop)),
    ("lookup of what is missing", |v| v.parent("merged/none").map(drop)),
    ("read", |v| v.read("merged/file").map(drop)),
    ("read of a metadata copy", |v| v.read("merged/meta").map(drop)),
    ("fsync of a metadata copy", |v| v.union.fsync(v.hold("merged/meta")?.ino, false)),
    ("readlink", |v| v.union.readlink(v.hold("merged/symlink")?.ino).map(drop)),
    ("readdir", |v| v.names("merged").map(drop)),
    ("listxattr", |v| v.xattrs("merged/file").map(drop)),
    ("fsync", |v| v.union.fsync(v.hold("merged/in-upper")?.ino, false)),
    ("statfs", |v| v.union.statfs().map(drop)),
];

/// What makes new objects.
pub const CREATIONS: &[Operation] = &[
    ("create", |v| v.create("merged/new", 0o640).map(drop)),
    ("create in a lower directory", |v| v.create("merged/below/deeper/new", 0o640).map(drop)),
    ("create in a directory of upper", |v| v.create("pure/new", 0o640).map(drop)),
    ("create over a whiteout", |v| v.create("merged/deleted", 0o640).map(drop)),
    ("mkdir", |v| v.mkdir("merged/new", 0o750).map(drop)),
    ("mkdir over a whiteout", |v| v.mkdir("merged/deleted", 0o750).map(drop)),
    ("mkdir in a lower directory", |v| v.mkdir("merged/below/new", 0o750).map(drop)),
    ("symlink", |v| v.symlink("plain/new", "target").map(drop)),
    ("symlink over a whiteout", |v| v.symlink("merged/deleted", "target").map(drop)),
    ("mknod", |v| v.mknod("merged/new", libc::S_IFIFO | 0o600, 0).map(drop)),
    ("mknod over a whiteout", |v| v.mknod("merged/deleted", libc::S_IFIFO | 0o600, 0).map(drop)),
    ("link of a lower file", |v| v.link("merged/file", "plain/new").map(drop)),
    ("link of a lower file with names", |v| v.link("merged/one", "plain/new").map(drop)),
    ("link of a metadata copy", |v| v.link("merged/meta", "plain/new").map(drop)),
    ("link of an upper file", |v| v.link("merged/in-upper", "plain/new").map(drop)),
    ("link of a symlink", |v| v.link("merged/symlink", "plain/new").map(drop)),
    ("create for somebody", |v| for_somebody(v, "plain/new", |u, who, dir, name| u.create(who, dir, name, 0o4755))),
    ("mkdir for somebody", |v| for_somebody(v, "plain/new", |u, who, dir, name| u.mkdir(who, dir, name, 0o755))),
    ("mknod for somebody", |v| for_somebody(v, "plain/new", |u, who, dir, name| u.mknod(who, dir, name, FIFO, 0))),
    ("symlink for somebody", |v| for_somebody(v, "plain/new", |u, who, dir, name| u.symlink(who, dir, name, b"to"))),
    ("create for somebody over a whiteout", |v| {
        for_somebody(v, "merged/deleted", |u, who, dir, name| u.create(who, dir, name, 0o755))
    }),
    ("link over a whiteout", |v| v.link("merged/in-upper", "merged/deleted").map(drop)),
];

/// What changes content and attributes.
pub const CHANGES: &[Operation] = &[
    ("write to a lower file", |v| write(v, "merged/file")),
    ("write to a lower file deep down", |v| write(v, "merged/below/deeper/file")),
    ("write to a sparse lower file", |v| write(v, "merged/sparse")),
    ("write to a lower file with names", |v| write(v, "merged/one")),
    ("write to an upper file", |v| write(v, "merged/in-upper")),
    ("write to a metadata copy", |v| write(v, "merged/meta")),
    ("empty a metadata copy", |v| v.truncate("merged/meta", 0).map(drop)),
    ("shorten a metadata copy", |v| v.truncate("merged/meta", 5).map(drop)),
    ("fallocate of a metadata copy", |v| fallocate(v, "merged/meta")),
    ("chmod of a metadata copy", |v| v.chmod("merged/meta", 0o600).map(drop)),
    ("truncate a lower file", |v| v.truncate("merged/file", 0).map(drop)),
    ("shorten a lower file", |v| v.truncate("merged/file", 5000).map(drop)),
    ("shorten an upper file", |v| v.truncate("merged/in-upper", 2).map(drop)),
    ("chmod of a lower file", |v| v.chmod("merged/file", 0o600).map(drop)),
    ("chmod of a lower directory", |v| v.chmod("merged/below", 0o700).map(drop)),
    ("chmod of the root", |v| v.chmod("", 0o700).map(drop)),
    ("chmod of an upper file", |v| v.chmod("pure/file", 0o600).map(drop)),
    ("chmod of a lower file with names", |v| v.chmod("merged/one", 0o600).map(drop)),
    ("chown of a lower file", |v| set(v, "merged/file", SetAttr { gid: Some(me().gid), ..SetAttr::default() })),
    ("utimens of a lower file", |v| v.touch("merged/file", 1_100_000_000, 7).map(drop)),
    ("utimens of a lower symlink", |v| v.touch("merged/symlink", 1_100_000_000, 7).map(drop)),
    ("setxattr of a lower file", |v| v.set_xattr("merged/file", "user.new", b"new")),
    ("setxattr of a lower directory", |v| v.set_xattr("merged/below", "user.new", b"new")),
    ("removexattr of a lower file", |v| remove_xattr(v, "merged/file")),
    ("fallocate of a lower file", |v| fallocate(v, "merged/file")),
    ("copy_file_range between lower files", |v| copy_range(v, "merged/top", "plain/file")),
];

/// What removes names.
pub const REMOVALS: &[Operation] = &[
    ("unlink of a lower file", |v| v.unlink("merged/file")),
    ("unlink of a lower file deep down", |v| v.unlink("merged/below/deeper/file")),
    ("unlink of an upper file", |v| v.unlink("merged/in-upper")),
    ("unlink of an upper file over a lower one", |v| v.unlink("merged/over-lower")),
    ("unlink of one of three names", |v| v.unlink("merged/two")),
    ("unlink of a metadata copy", |v| v.unlink("merged/meta")),
    ("unlink of a symlink", |v| v.unlink("merged/symlink")),
    ("rmdir of a lower directory", |v| v.rmdir("merged/empty")),
    ("rmdir of an upper directory", |v| v.rmdir("pure/empty")),
    ("rmdir of a merged directory that is empty", |v| v.rmdir("emptied")),
];

/// What moves names.
pub const RENAMES: &[Operation] = &[
    ("rename of a lower file", |v| v.rename("merged/file", "plain/new", PLAIN)),
    ("rename of a lower file with names", |v| v.rename("merged/one", "plain/new", PLAIN)),
    ("rename of a lower file over a lower one", |v| v.rename("merged/file", "plain/file", PLAIN)),
    ("rename of a lower file over an upper one", |v| v.rename("merged/file", "pure/file", PLAIN)),
    ("rename of a metadata copy", |v| v.rename("merged/meta", "plain/new", PLAIN)),
    ("rename of a metadata copy over a lower file", |v| v.rename("merged/meta", "plain/file", PLAIN)),
    ("exchange of metadata copies", |v| v.rename("merged/meta", "merged/meta-too", EXCHANGE)),
    ("rename of an upper file", |v| v.rename("merged/in-upper", "pure/new", PLAIN)),
    ("rename of an upper file over a lower one", |v| v.rename("merged/in-upper", "merged/top", PLAIN)),
    ("rename of an upper file over a whiteout", |v| v.rename("merged/in-upper", "merged/deleted", PLAIN)),
    ("rename of a symlink", |v| v.rename("merged/symlink", "plain/new", PLAIN)),
    ("rename that leaves a whiteout", |v| v.rename("merged/in-upper", "merged/new", WHITEOUT)),
    ("rename that replaces nothing", |v| v.rename("merged/top", "merged/new", NOREPLACE)),
    ("rename of a lower directory", |v| v.rename("merged/below", "plain/new", PLAIN)),
    ("rename of a lower directory over an empty one", |v| v.rename("plain", "merged/empty", PLAIN)),
    ("rename of a lower directory beside itself", |v| v.rename("merged/below", "merged/new", PLAIN)),
    ("rename of a merged directory", |v| v.rename("merged", "new", PLAIN)),
    ("rename of an upper directory", |v| v.rename("pure", "merged/new", PLAIN)),
    ("rename of an upper directory over an empty one", |v| v.rename("pure", "emptied", PLAIN)),
    ("exchange of files", |v| v.rename("merged/file", "pure/file", EXCHANGE)),
    ("exchange of a file and a directory", |v| v.rename("merged/file", "merged/below", EXCHANGE)),
    ("exchange of directories", |v| v.rename("merged", "plain", EXCHANGE)),
];
