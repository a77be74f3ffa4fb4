//! Layers in a temporary directory, and a view of their union by path.
#![allow(dead_code, reason = "every test program and bench uses its own part of it")]

use std::ffi::CString;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use layerfs::error::{Errno, Result};
use layerfs::layer::StackSpec;
use layerfs::name::Name;
use layerfs::union::{Attr, Caller, Options, RenameFlags, SetAttr, SetTime, Stats, Time, Union};
use tempfile::TempDir;

#[path = "disk.rs"]
mod disk;
pub use disk::*;

/// `rename` as `rename(2)` has it.
pub const PLAIN: RenameFlags = RenameFlags { noreplace: false, exchange: false, whiteout: false };
/// `RENAME_NOREPLACE`.
pub const NOREPLACE: RenameFlags = RenameFlags { noreplace: true, exchange: false, whiteout: false };
/// `RENAME_EXCHANGE`.
pub const EXCHANGE: RenameFlags = RenameFlags { noreplace: false, exchange: true, whiteout: false };
/// `RENAME_WHITEOUT`.
pub const WHITEOUT: RenameFlags = RenameFlags { noreplace: false, exchange: false, whiteout: true };

/// Where tests make their layers: `LAYERFS_TEST_DIR`, for benches `LAYERFS_BENCH_DIR`, else memory, else the system's temporary directory.
pub fn base_dir() -> PathBuf {
    if let Some(dir) = ["LAYERFS_BENCH_DIR", "LAYERFS_TEST_DIR"].iter().find_map(std::env::var_os) {
        return dir.into();
    }
    let memory = PathBuf::from("/dev/shm");
    if takes_xattr(&memory, "user.layerfs-test") { memory } else { std::env::temp_dir() }
}

/// Whether the tests run with the rights to set `trusted.*` marks.
pub fn privileged() -> bool {
    static PRIVILEGED: OnceLock<bool> = OnceLock::new();
    *PRIVILEGED.get_or_init(|| nix::unistd::geteuid().is_root() && takes_xattr(&base_dir(), "trusted.layerfs-test"))
}

fn takes_xattr(dir: &Path, name: &str) -> bool {
    tempfile::tempdir_in(dir).is_ok_and(|probe| set_xattr(probe.path(), name, b"y").is_ok())
}

/// Runs tests of this program once more, as a user without any rights.
pub fn passes_as_ordinary_user(filter: &str) -> bool {
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65534;
    if !nix::unistd::geteuid().is_root() || std::env::var_os("LAYERFS_TEST_DIR").is_some() {
        eprintln!("left out: it needs the superuser's rights to drop, and a directory that everybody can write to");
        return true;
    }
    // The program's own directories may be closed to that user.
    let mut command = std::process::Command::new("/proc/self/exe");
    let output = command.uid(NOBODY).gid(NOBODY).arg(filter).output().unwrap();
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    output.status.success()
}

/// The namespace that the marks of these tests are in.
pub fn mark(name: &str) -> String {
    let namespace = if privileged() { "trusted" } else { "user" };
    format!("{namespace}.overlay.{name}")
}

/// Layer directories that vanish with this value.
pub struct Layers {
    dir: TempDir,
    /// The lowers, the top one first.
    pub lowers: Vec<PathBuf>,
}

impl Layers {
    /// `count` empty lowers, an empty upper and work directory.
    pub fn new(count: usize) -> Self {
        let dir = tempfile::Builder::new().prefix("layerfs-").tempdir_in(base_dir()).unwrap();
        set_mode(dir.path(), 0o755);
        let lowers: Vec<_> = (0..count).map(|i| dir.path().join(format!("lower{i}"))).collect();
        for layer in lowers.iter().cloned().chain(["upper", "work"].map(|name| dir.path().join(name))) {
            std::fs::create_dir(&layer).unwrap();
            set_mode(&layer, 0o755);
        }
        Self { dir, lowers }
    }

    /// A path in the `index`-th lower, counted from the top; the directories above it are made.
    pub fn lower(&self, index: usize, path: &str) -> PathBuf {
        with_parents(&self.lowers[index], path)
    }

    /// A path in the upper directory; the directories above it are made.
    pub fn upper(&self, path: &str) -> PathBuf {
        with_parents(&self.dir.path().join("upper"), path)
    }

    /// A path in the work directory.
    pub fn work(&self, path: &str) -> PathBuf {
        self.dir.path().join("work").join(path)
    }

    /// A path beside the layers.
    pub fn beside(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Writes a file into the `index`-th lower.
    pub fn file(&self, index: usize, path: &str, content: &str) -> PathBuf {
        let file = self.lower(index, path);
        std::fs::write(&file, content).unwrap();
        set_mode(&file, 0o644);
        file
    }

    /// Makes a directory in the `index`-th lower.
    pub fn directory(&self, index: usize, path: &str) -> PathBuf {
        let dir = self.lower(index, path);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// What a mount of these layers is asked for.
    pub fn spec(&self) -> StackSpec {
        StackSpec {
            lowers: self.lowers.clone(),
            upper: Some(self.upper("")),
            work: Some(self.work("")),
            userxattr: !privileged(),
            trusted_lowers: false,
            xattr_permissions: None,
        }
    }

    /// The writable union of the layers.
    pub fn open(&self) -> View {
        self.open_with(Options::default())
    }

    /// The writable union of the layers, with options.
    pub fn open_with(&self, options: Options) -> View {
        View::open(&self.spec(), options)
    }

    /// Makes upper the top lower; there is a new upper and work directory on it.
    pub fn add_layer(&mut self) {
        let lower = self.dir.path().join(format!("lower{}", self.lowers.len()));
        let [upper, work] = ["upper", "work"].map(|name| self.dir.path().join(name));
        std::fs::rename(&upper, &lower).unwrap();
        std::fs::remove_dir_all(&work).unwrap();
        self.lowers.insert(0, lower);
        for layer in [upper, work] {
            std::fs::create_dir(&layer).unwrap();
            set_mode(&layer, 0o755);
        }
    }

    /// The union of the lowers alone.
    pub fn open_read_only(&self) -> View {
        let spec = StackSpec { upper: None, work: None, ..self.spec() };
        View { union: Union::open(&spec, Options::default()).unwrap() }
    }

    /// What is left of staged changes: everything that is being made, in our place for it or the kernel's.
    pub fn staged(&self) -> Vec<String> {
        let places = ["layerfs/stage", "work"].map(|place| self.work(place));
        let entries = places.iter().filter_map(|place| place.read_dir().ok()).flatten();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "incompat").collect()
    }
}

fn with_parents(layer: &Path, path: &str) -> PathBuf {
    let full = layer.join(path);
    if let Some(parent) = full.parent() {
        std::fs::create_dir_all(parent).unwrap();
    }
    full
}

/// Who makes the calls of these tests.
pub fn me() -> Caller {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    Caller { uid, gid, pid: std::process::id(), umask: 0o022 }
}

/// A valid name.
pub fn name(name: &str) -> Name {
    Name::new(name.as_bytes()).unwrap()
}

/// An extended attribute's name.
pub fn xname(name: &str) -> CString {
    CString::new(name).unwrap()
}

/// A union, with its operations by path.
pub struct View {
    /// The union itself.
    pub union: Union,
}

impl View {
    /// Opens a union.
    pub fn open(spec: &StackSpec, options: Options) -> Self {
        // As the daemon does: the callers' masks count, not the process's.
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        Self { union: Union::open(spec, options).unwrap() }
    }

    /// Looks `path` up, component by component, and keeps all of them looked up.
    pub fn hold(&self, path: &str) -> Result<Held<'_>> {
        let mut held = Held { union: &self.union, counted: Vec::new(), attr: self.union.getattr(Union::ROOT)? };
        for component in path.split('/').filter(|component| !component.is_empty()) {
            held.attr = self.union.lookup(held.attr.ino, &name(component))?;
            held.counted.push(held.attr.ino);
        }
        Ok(held)
    }

    /// Holds the directory of `path` and splits its last name off.
    pub fn parent(&self, path: &str) -> Result<(Held<'_>, Name)> {
        let (dir, last) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.hold(dir)?, name(last)))
    }

    /// The attributes of `path`.
    pub fn stat(&self, path: &str) -> Result<Attr> {
        Ok(self.hold(path)?.attr)
    }

    /// Whether `path` is there; panics on any error but `ENOENT`.
    pub fn exists(&self, path: &str) -> bool {
        match self.hold(path) {
            Ok(_) => true,
            Err(Errno::ENOENT) => false,
            Err(other) => panic!("{path}: {other}"),
        }
    }

    /// The whole content of a file.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        read_all(&self.union, self.hold(path)?.ino)
    }

    /// The content of a file, as text.
    pub fn text(&self, path: &str) -> String {
        String::from_utf8(self.read(path).unwrap()).unwrap()
    }

    /// Writes all of `data` at `offset`.
    pub fn write(&self, path: &str, offset: u64, data: &[u8]) -> Result<()> {
        write_all(&self.union, self.hold(path)?.ino, offset, data)
    }

    fn made(&self, attr: Result<Attr>) -> Result<Attr> {
        let attr = attr?;
        self.union.forget(attr.ino, 1);
        Ok(attr)
    }

    /// Creates an empty file.
    pub fn create(&self, path: &str, mode: u32) -> Result<Attr> {
        let (dir, name) = self.parent(path)?;
        self.made(self.union.create(&me(), dir.ino, &name, mode))
    }

    /// Creates a file with a content.
    pub fn put(&self, path: &str, content: &str) {
        self.create(path, 0o644).unwrap();
        self.write(path, 0, content.as_bytes()).unwrap();
    }

    /// Makes a directory.
    pub fn mkdir(&self, path: &str, mode: u32) -> Result<Attr> {
        let (dir, name) = self.parent(path)?;
        self.made(self.union.mkdir(&me(), dir.ino, &name, mode))
    }

    /// Makes a fifo, socket or device.
    pub fn mknod(&self, path: &str, mode: u32, rdev: u64) -> Result<Attr> {
        let (dir, name) = self.parent(path)?;
        self.made(self.union.mknod(&me(), dir.ino, &name, mode, rdev))
    }

    /// Makes a symlink.
    pub fn symlink(&self, path: &str, target: &str) -> Result<Attr> {
        let (dir, name) = self.parent(path)?;
        self.made(self.union.symlink(&me(), dir.ino, &name, target.as_bytes()))
    }

    /// Makes `new` another name of `old`.
    pub fn link(&self, old: &str, new: &str) -> Result<Attr> {
        let object = self.hold(old)?;
        let (dir, name) = self.parent(new)?;
        self.made(self.union.link(object.ino, dir.ino, &name))
    }

    /// Removes a file.
    pub fn unlink(&self, path: &str) -> Result<()> {
        let (dir, name) = self.parent(path)?;
        self.union.unlink(dir.ino, &name)
    }

    /// Removes a directory.
    pub fn rmdir(&self, path: &str) -> Result<()> {
        let (dir, name) = self.parent(path)?;
        self.union.rmdir(dir.ino, &name)
    }

    /// Renames.
    pub fn rename(&self, old: &str, new: &str, flags: RenameFlags) -> Result<()> {
        let (old_dir, old_name) = self.parent(old)?;
        let (new_dir, new_name) = self.parent(new)?;
        self.union.rename(old_dir.ino, &old_name, new_dir.ino, &new_name, flags)
    }

    /// Changes attributes.
    pub fn set(&self, path: &str, change: SetAttr) -> Result<Attr> {
        self.union.setattr(&me(), self.hold(path)?.ino, &change)
    }

    /// Changes permission bits.
    pub fn chmod(&self, path: &str, mode: u32) -> Result<Attr> {
        self.set(path, SetAttr { mode: Some(mode), ..SetAttr::default() })
    }

    /// Changes a file's size.
    pub fn truncate(&self, path: &str, size: u64) -> Result<Attr> {
        self.set(path, SetAttr { size: Some(size), ..SetAttr::default() })
    }

    /// Changes both times.
    pub fn touch(&self, path: &str, sec: i64, nsec: u32) -> Result<Attr> {
        let at = || Some(SetTime::At(Time { sec, nsec }));
        self.set(path, SetAttr { atime: at(), mtime: at(), ..SetAttr::default() })
    }

    /// An extended attribute.
    pub fn get_xattr(&self, path: &str, attribute: &str) -> Result<Vec<u8>> {
        self.union.getxattr(self.hold(path)?.ino, &xname(attribute))
    }

    /// Sets an extended attribute.
    pub fn set_xattr(&self, path: &str, attribute: &str, value: &[u8]) -> Result<()> {
        self.union.setxattr(&me(), self.hold(path)?.ino, &xname(attribute), value, 0)
    }

    /// The names of all extended attributes, sorted.
    pub fn xattrs(&self, path: &str) -> Result<Vec<String>> {
        Ok(xattr_names(&self.union.listxattr(self.hold(path)?.ino)?))
    }

    /// The names in a directory without `.` and `..`, sorted.
    pub fn names(&self, path: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        self.union.readdir(self.hold(path)?.ino, 0, &mut |entry| {
            if entry.name != b"." && entry.name != b".." {
                names.push(String::from_utf8_lossy(entry.name).into_owned());
            }
            true
        })?;
        names.sort();
        Ok(names)
    }

    /// The union's counters.
    pub fn stats(&self) -> Stats {
        self.union.stats()
    }

    /// Ends the union cleanly.
    pub fn close(self) {
        self.union.close().unwrap();
    }
}

/// Splits a list of extended attributes' names.
pub fn xattr_names(list: &[u8]) -> Vec<String> {
    let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<_> = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    names.sort();
    names
}

/// The whole content of a file, read in steps that the kernel could take.
pub fn read_all(union: &Union, ino: u64) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match union.read(ino, content.len() as u64, &mut buffer)? {
            0 => return Ok(content),
            n => content.extend_from_slice(&buffer[..n]),
        }
    }
}

/// Writes all of `data` at `offset`.
pub fn write_all(union: &Union, ino: u64, offset: u64, data: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < data.len() {
        done += union.write(ino, offset + done as u64, &data[done..])?;
    }
    Ok(())
}

/// An object that stays looked up, with the directories above it, until this is dropped.
pub struct Held<'u> {
    union: &'u Union,
    counted: Vec<u64>,
    /// What the lookup said.
    pub attr: Attr,
}

impl Held<'_> {
    /// Leaves the object itself looked up once, without the directories above it.
    pub fn keep(mut self) -> u64 {
        self.counted.pop();
        self.attr.ino
    }
}

impl Deref for Held<'_> {
    type Target = Attr;
    fn deref(&self) -> &Attr {
        &self.attr
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        for ino in self.counted.iter().rev() {
            self.union.forget(*ino, 1);
        }
    }
}
