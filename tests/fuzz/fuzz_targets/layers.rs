//! Layers and work directories that nobody in his right mind made, opened, walked and changed: no panic, no lower is
//! written, nothing beside the layers shows, and what is forgotten is gone from memory.
#![no_main]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use arbitrary::Arbitrary;
use fixture::{EXCHANGE, Layers, PLAIN, View, WHITEOUT, me, name, set_xattr, snapshot, xattr_names, xname};
use layerfs::layer::StackSpec;
use layerfs::layer::origin::Origin;
use layerfs::name::Name;
use layerfs::sys::handle;
use layerfs::union::{Options, SetAttr, Union};
use libfuzzer_sys::fuzz_target;

#[path = "../../union/fixture.rs"]
mod fixture;

/// What no layer has in it.
const SECRET: &[u8] = b"the secret beside the layers";
/// How much of a tree is looked at.
const WALK_LIMIT: usize = 300;

#[derive(Arbitrary, Debug)]
struct Disk {
    upper: Vec<Entry>,
    lowers: Vec<Vec<Entry>>,
    root: Vec<Mark>,
    trusted_lowers: bool,
    userxattr: bool,
    work: Vec<(WorkFile, Vec<u8>)>,
    changes: Vec<Change>,
}

#[derive(Arbitrary, Debug)]
struct Entry {
    /// In which of the layer's directories.
    dir: u8,
    name: EntryName,
    what: What,
    marks: Vec<Mark>,
}

#[derive(Arbitrary, Debug)]
enum EntryName {
    Plain(u8),
    DotWhiteout(u8),
    DotOpaque,
    Other(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum What {
    File(Vec<u8>),
    Sparse(u16),
    Dir,
    Symlink(Vec<u8>),
    Fifo,
    Whiteout,
    /// Another name of one of the layer's entries.
    Link(u8),
}

#[derive(Arbitrary, Debug)]
struct Mark {
    namespace: Namespace,
    name: MarkName,
    value: Value,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Namespace {
    Trusted,
    User,
    FuseOverlayfs,
}

#[derive(Arbitrary, Debug)]
enum MarkName {
    Opaque,
    Whiteout,
    Redirect,
    Origin,
    Impure,
    Metacopy,
    Nlink,
    Device,
    DefaultAcl,
    AccessAcl,
    Other(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Value {
    Yes,
    Xattrs,
    Empty,
    Path(Vec<EntryName>),
    Up,
    /// The handle of an object that was made before.
    Handle(u8),
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum WorkFile {
    Marks,
    Lock,
    Dirty,
    Staged,
    Parked,
    /// A file in the index, by the handle of an object.
    Index(u8),
    IndexOther,
}

#[derive(Arbitrary, Debug)]
enum Change {
    Create(u8, u8),
    Mkdir(u8, u8),
    Device(u8, u8),
    Unlink(u8, u8),
    Rmdir(u8, u8),
    Rename(u8, u8, u8, u8),
    RenameWhiteout(u8, u8, u8, u8),
    Exchange(u8, u8, u8, u8),
    Link(u8, u8, u8),
    Write(u8, u16),
    Truncate(u8, u16),
    Chmod(u8),
    SetXattr(u8, u8),
    Remount,
}

fuzz_target!(|disk: Disk| {
    if disk.lowers.len() > 4 || disk.changes.len() > 20 {
        return;
    }
    let layers = Layers::new(disk.lowers.len().max(1));
    std::fs::write(layers.beside("secret"), SECRET).unwrap();
    let mut made = Vec::new();
    for (root, entries) in layers.lowers.iter().zip(&disk.lowers).rev() {
        make_layer(root, entries, &mut made);
    }
    make_layer(&layers.upper(""), &disk.upper, &mut made);
    set_marks(&layers.upper(""), &disk.root, &made);
    for (file, content) in &disk.work {
        make_work_file(&layers, file, content, &made);
    }
    let before: Vec<_> = layers.lowers.iter().map(|lower| snapshot(lower)).collect();
    use_union(&layers, &disk);
    for (lower, before) in layers.lowers.iter().zip(before) {
        assert_eq!(snapshot(lower), before, "{} has changed", lower.display());
    }
    assert_eq!(std::fs::read(layers.beside("secret")).unwrap(), SECRET);
});

fn use_union(layers: &Layers, disk: &Disk) {
    let mut changes = disk.changes.as_slice();
    loop {
        let spec = StackSpec { trusted_lowers: disk.trusted_lowers, userxattr: disk.userxattr, ..layers.spec() };
        let Ok(union) = Union::open(&spec, Options::default()) else { return };
        let view = View { union };
        let inodes = view.stats().inodes;
        let mut known = walk(&view.union);
        let mut remount = false;
        while let Some((change, rest)) = changes.split_first() {
            changes = rest;
            if matches!(change, Change::Remount) {
                remount = true;
                break;
            }
            apply(&view.union, &known, change);
            forget(&view.union, known);
            known = walk(&view.union);
        }
        forget(&view.union, known);
        // Copies are known until they are committed; and for good where something else stands at their place in the index.
        tried(view.union.commit());
        let stats = view.stats();
        let kept = stats.uncommitted > 0 || disk.work.iter().any(|(file, _)| matches!(file, WorkFile::Index(_)));
        assert!(stats.inodes == inodes || kept, "inodes that nobody knows are kept");
        tried(view.union.close());
        if !remount {
            return;
        }
    }
}

/// Whether it works is not the question.
fn tried<T, E>(_: Result<T, E>) {}

/// Looks at everything, and returns how often each inode was looked up.
fn walk(union: &Union) -> BTreeMap<u64, u64> {
    let mut known = BTreeMap::from([(Union::ROOT, 0)]);
    let mut pending = vec![(Union::ROOT, 0)];
    while let Some((ino, depth)) = pending.pop() {
        look(union, ino);
        let mut names = Vec::new();
        tried(union.readdir(ino, 0, &mut |entry| {
            names.push(entry.name.to_vec());
            true
        }));
        tried(union.readdirplus(ino, 0, &mut |entry, attr| {
            if entry.resolved && entry.name != b"." && entry.name != b".." {
                *known.entry(attr.ino).or_insert(0) += 1;
            }
            true
        }));
        for entry in names.iter().filter(|entry| *entry != b"." && *entry != b"..") {
            let Ok(attr) = union.lookup(ino, &Name::new(entry).unwrap()) else { continue };
            let count = known.entry(attr.ino).or_insert(0);
            *count += 1;
            if *count <= 2 && known.len() < WALK_LIMIT && depth < 8 {
                pending.push((attr.ino, depth + 1));
            }
        }
    }
    known
}

/// Everything that there is to know of one object.
fn look(union: &Union, ino: u64) {
    tried(union.getattr(ino));
    tried(union.readlink(ino));
    let mut buffer = vec![0; 4096];
    if let Ok(read) = union.read(ino, 0, &mut buffer) {
        assert!(!buffer[..read].starts_with(SECRET), "what lies beside the layers shows");
    }
    for attribute in xattr_names(&union.listxattr(ino).unwrap_or_default()) {
        tried(union.getxattr(ino, &xname(&attribute)));
    }
}

fn forget(union: &Union, known: BTreeMap<u64, u64>) {
    for (ino, count) in known.into_iter().filter(|(_, count)| *count > 0) {
        union.forget(ino, count);
    }
}

fn apply(union: &Union, known: &BTreeMap<u64, u64>, change: &Change) {
    let pick = |n: &u8| known.keys().nth(usize::from(*n) % known.len()).copied().unwrap_or(Union::ROOT);
    let plain = |n: &u8| name(plain_name(*n));
    let rename = |from: &u8, old: &u8, to: &u8, new: &u8, flags| {
        tried(union.rename(pick(from), &plain(old), pick(to), &plain(new), flags));
    };
    let made = match change {
        Change::Create(dir, name) => union.create(&me(), pick(dir), &plain(name), 0o644),
        Change::Mkdir(dir, name) => union.mkdir(&me(), pick(dir), &plain(name), 0o755),
        Change::Device(dir, name) => union.mknod(&me(), pick(dir), &plain(name), nix::libc::S_IFCHR | 0o600, 0),
        Change::Link(of, dir, name) => union.link(pick(of), pick(dir), &plain(name)),
        Change::Unlink(dir, name) => return tried(union.unlink(pick(dir), &plain(name))),
        Change::Rmdir(dir, name) => return tried(union.rmdir(pick(dir), &plain(name))),
        Change::Rename(from, old, to, new) => return rename(from, old, to, new, PLAIN),
        Change::RenameWhiteout(from, old, to, new) => return rename(from, old, to, new, WHITEOUT),
        Change::Exchange(from, old, to, new) => return rename(from, old, to, new, EXCHANGE),
        Change::Write(of, at) => return tried(union.write(pick(of), u64::from(*at), b"written")),
        Change::Truncate(of, size) => {
            let change = SetAttr { size: Some(u64::from(*size)), ..SetAttr::default() };
            return tried(union.setattr(&me(), pick(of), &change));
        }
        Change::Chmod(of) => {
            let change = SetAttr { mode: Some(0o640), ..SetAttr::default() };
            return tried(union.setattr(&me(), pick(of), &change));
        }
        Change::SetXattr(of, value) => {
            return tried(union.setxattr(&me(), pick(of), &xname("user.a"), &[*value], 0));
        }
        Change::Remount => return,
    };
    if let Ok(attr) = made {
        union.forget(attr.ino, 1);
    }
}

fn plain_name(n: u8) -> &'static str {
    ["a", "b", "c", "d"][usize::from(n % 4)]
}

impl EntryName {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Plain(n) => plain_name(*n).into(),
            Self::DotWhiteout(n) => format!(".wh.{}", plain_name(*n)).into(),
            Self::DotOpaque => b".wh..wh..opq".into(),
            Self::Other(bytes) => bytes.clone(),
        }
    }
}

/// Makes what can be made of a layer.
fn make_layer(root: &Path, entries: &[Entry], made: &mut Vec<PathBuf>) {
    let (mut dirs, first) = (vec![root.to_owned()], made.len());
    for entry in entries.iter().take(24) {
        let bytes = entry.name.bytes();
        if Name::new(&bytes).is_err() {
            continue;
        }
        let path = dirs[usize::from(entry.dir) % dirs.len()].join(OsStr::from_bytes(&bytes));
        if path.symlink_metadata().is_ok() || !make(&path, &entry.what, &made[first..]) {
            continue;
        }
        set_marks(&path, &entry.marks, made);
        if matches!(entry.what, What::Dir) {
            dirs.push(path.clone());
        }
        made.push(path);
    }
}

fn make(path: &Path, what: &What, layer: &[PathBuf]) -> bool {
    match what {
        What::File(content) if content.starts_with(SECRET) => false,
        What::File(content) => std::fs::write(path, content).is_ok(),
        What::Sparse(size) => std::fs::File::create(path).is_ok_and(|file| file.set_len(u64::from(*size)).is_ok()),
        What::Dir => std::fs::create_dir(path).is_ok(),
        What::Symlink(target) => std::os::unix::fs::symlink(OsStr::from_bytes(target), path).is_ok(),
        What::Fifo => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).is_ok(),
        What::Whiteout => {
            fixture::make_whiteout(path);
            true
        }
        What::Link(of) if layer.is_empty() => *of == 0 && std::fs::write(path, "").is_ok(),
        What::Link(of) => std::fs::hard_link(&layer[usize::from(*of) % layer.len()], path).is_ok(),
    }
}

fn set_marks(path: &Path, marks: &[Mark], made: &[PathBuf]) {
    for mark in marks.iter().take(6) {
        let prefix = match mark.namespace {
            Namespace::Trusted => "trusted.overlay.",
            Namespace::User => "user.overlay.",
            Namespace::FuseOverlayfs => "user.fuseoverlayfs.",
        };
        let attribute = match &mark.name {
            MarkName::Opaque => format!("{prefix}opaque"),
            MarkName::Whiteout => format!("{prefix}whiteout"),
            MarkName::Redirect => format!("{prefix}redirect"),
            MarkName::Origin => format!("{prefix}origin"),
            MarkName::Impure => format!("{prefix}impure"),
            MarkName::Metacopy => format!("{prefix}metacopy"),
            MarkName::Nlink => format!("{prefix}nlink"),
            MarkName::Device => format!("{prefix}layerfs.device"),
            MarkName::DefaultAcl => "system.posix_acl_default".to_owned(),
            MarkName::AccessAcl => "system.posix_acl_access".to_owned(),
            MarkName::Other(name) => format!("{prefix}{}", String::from_utf8_lossy(name).replace('\0', "")),
        };
        // What the filesystem refuses no layer can have.
        tried(set_xattr(path, &attribute, &value(&mark.value, made)));
    }
}

fn value(value: &Value, made: &[PathBuf]) -> Vec<u8> {
    match value {
        Value::Yes => b"y".into(),
        Value::Xattrs => b"x".into(),
        Value::Empty => Vec::new(),
        Value::Path(names) => names.iter().flat_map(|name| [b"/", name.bytes().as_slice()].concat()).collect(),
        Value::Up => b"/../secret".into(),
        Value::Handle(of) => origin(*of, made).and_then(|origin| origin.encode()).unwrap_or_default(),
        Value::Bytes(bytes) => bytes.clone(),
    }
}

fn origin(of: u8, made: &[PathBuf]) -> Option<Origin> {
    let path = made.get(usize::from(of) % made.len().max(1))?;
    let dir = std::fs::File::open(path.parent()?).ok()?;
    let name = std::ffi::CString::new(path.file_name()?.as_bytes()).ok()?;
    let handle = handle::of(dir.as_fd(), &name).ok()?;
    Some(Origin { uuid: handle::fs_uuid(dir.as_fd()), handle })
}

fn make_work_file(layers: &Layers, file: &WorkFile, content: &[u8], made: &[PathBuf]) {
    let path = match file {
        WorkFile::Marks => "layerfs/marks".to_owned(),
        WorkFile::Lock => "layerfs/lock".to_owned(),
        // Nearly all contents refuse the mount.
        WorkFile::Dirty if content.len() == 7 => "work/incompat/volatile/dirty".to_owned(),
        WorkFile::Dirty => return,
        WorkFile::Staged => "layerfs/stage/1".to_owned(),
        WorkFile::Parked => "layerfs/parked/1".to_owned(),
        WorkFile::Index(of) => {
            let name = origin(*of, made).and_then(|origin| layerfs::layer::index::name_of(&origin));
            let Some(name) = name else { return };
            let index = layers.work("index");
            tried(std::fs::create_dir_all(&index));
            let entry = index.join(OsStr::from_bytes(name.as_bytes()));
            // A second name of something in upper, as it should be, or a file that is nowhere else.
            let upper = made.iter().filter(|path| path.starts_with(layers.upper(""))).nth(content.len());
            let linked = upper.is_some_and(|path| std::fs::hard_link(path, &entry).is_ok());
            if !linked {
                tried(write_new(&entry, content));
            }
            return;
        }
        WorkFile::IndexOther => format!("index/{}", content.len()),
    };
    let path = layers.work(&path);
    tried(std::fs::create_dir_all(path.parent().unwrap()));
    tried(write_new(&path, content));
}

/// Writes a file that is not there yet: what is there may be a fifo, and its opening would wait for a reader.
fn write_new(path: &Path, content: &[u8]) -> std::io::Result<()> {
    std::fs::File::create_new(path)?.write_all(content)
}
