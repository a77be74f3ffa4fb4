//! One operation as real system calls on one side, and all that a program can see of its answer.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::sys::time::TimeSpec;

use super::generators::{How, Moved, Op, Open, Place, Space, Special, Subject, Who, X};
use super::layers::{DEVICE, NSEC};
use super::sides::Side;
use crate::common::files::try_set_times;
use crate::common::machine::as_user;
use crate::common::sys;
use crate::common::values::{self, NO_ID};

/// Where symlinks lead.
pub const TARGETS: [&str; 8] = ["a", "b", "c/a", "a/b", "d", "./b/c", "/nonexistent", "b/"];
/// The id of the ordinary user and its group.
const USER: u32 = 1000;
/// `cap_net_raw=ep`, as setcap(8) stores it.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// No file here is longer.
const LONGEST: usize = 1 << 16;

/// What a program is told.
pub type Answer = Result<String, Errno>;

/// What there is to operate on, the same for both sides.
pub struct There {
    /// Each path below the root, with its type; the root first, as "".
    objects: Vec<(String, u32)>,
    /// How many objects are kept open.
    held: usize,
}

/// A way to an object or a name.
#[derive(Clone, Debug)]
pub struct Way {
    /// The object that is kept open to start from; else the root.
    held: Option<usize>,
    pub path: String,
}

impl There {
    /// What a side shows now.
    pub fn of(side: &Side) -> Result<There, String> {
        let mut objects = vec![(String::new(), libc::S_IFDIR)];
        let mut next = 0;
        while next < objects.len() {
            let (path, kind) = objects[next].clone();
            next += 1;
            if kind != libc::S_IFDIR {
                continue;
            }
            let full = side.point().join(&path);
            let failed = |error: io::Error| format!("{}: {path:?} can't be listed: {error}", side.name);
            let mut inside = Vec::new();
            for entry in fs::read_dir(&full).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name().into_string().expect("a name in ASCII");
                // What is listed only is not there.
                if let Ok(found) = fs::symlink_metadata(entry.path()) {
                    let path = if path.is_empty() { name } else { format!("{path}/{name}") };
                    inside.push((path, found.mode() & libc::S_IFMT));
                }
            }
            inside.sort();
            objects.extend(inside);
        }
        Ok(There { objects, held: side.held.len() })
    }

    /// The paths of all that is no directory.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.objects.iter().filter(|(_, kind)| *kind != libc::S_IFDIR).map(|(path, _)| path.as_str())
    }

    fn nth(&self, n: usize, wanted: impl Fn(u32) -> bool) -> String {
        let found: Vec<&String> = self.objects.iter().filter(|(_, kind)| wanted(*kind)).map(|(path, _)| path).collect();
        match found.len() {
            0 => String::new(),
            count => found[n % count].clone(),
        }
    }

    /// The path of an object that is there; the root's if there is none of the kind.
    pub fn subject(&self, subject: Subject) -> String {
        match subject {
            Subject::Dir(n) => self.nth(n, |kind| kind == libc::S_IFDIR),
            Subject::File(n) => self.nth(n, |kind| kind == libc::S_IFREG),
            Subject::Any(n) => self.nth(n, |_| true),
        }
    }

    /// The way to a name.
    pub fn place(&self, place: Place) -> Way {
        let (held, dir, name) = match place {
            Place::In(n, name) => (None, self.subject(Subject::Dir(n)), name),
            Place::Under(n, name) => (None, self.subject(Subject::Any(n)), name),
            Place::InHeld(n, name) if self.held > 0 => (Some(n % self.held), String::new(), name),
            Place::InHeld(n, name) => (None, self.subject(Subject::Dir(n)), name),
            Place::Existing(n) if self.objects.len() > 1 => {
                let below = &self.objects[1..];
                return Way { held: None, path: below[n % below.len()].0.clone() };
            }
            Place::Existing(_) => return Way { held: None, path: "a".to_owned() },
        };
        let path = if dir.is_empty() { name.text().to_owned() } else { format!("{dir}/{}", name.text()) };
        Way { held, path }
    }
}

/// One operation, with its targets found, to be done on each side.
pub struct Step<'s> {
    pub there: &'s There,
    pub op: Op,
    /// Makes what is written tell which step wrote it.
    pub number: usize,
}

impl Step<'_> {
    /// Does it.
    pub fn perform(&self, side: &mut Side) -> Answer {
        self.call(side).map_err(|error| error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw))
    }

    fn call(&self, side: &mut Side) -> io::Result<String> {
        match self.op {
            Op::Open { at, how, mode, who } => by(who, || open(&self.way(side, at), how, mode)),
            Op::Mkdir { at, mode, who } => {
                let path = self.way(side, at);
                by(who, || done(nix::unistd::mkdir(&path, Mode::from_bits_truncate(mode))))
            }
            Op::Special { at, kind, mode } => special(&self.way(side, at), kind, mode),
            Op::Symlink { at, target } => done(symlink(TARGETS[target % TARGETS.len()], self.way(side, at))),
            Op::Link { of, at, who } => {
                let (of, at) = (self.path(side, of), self.way(side, at));
                by(who, || done(fs::hard_link(of, at)))
            }
            Op::Unlink { at, who } => by(who, || done(nix::unistd::unlink(&self.way(side, at)))),
            Op::Rmdir { at, who } => by(who, || done(fs::remove_dir(self.way(side, at)))),
            Op::Rename { from, to, kind, who } => {
                let (from, to) = (self.way(side, from), self.way(side, to));
                let flags = match kind {
                    Moved::Plain => 0,
                    Moved::NoReplace => sys::NOREPLACE,
                    Moved::Exchange => sys::EXCHANGE,
                };
                by(who, || done(sys::rename2(&from, &to, flags)))
            }
            Op::Write { .. } | Op::Append { .. } | Op::MapWrite { .. } | Op::Resize { .. } | Op::Allocate { .. } => {
                self.change_content(side)
            }
            Op::CopyRange { from, to, offset, length } => {
                copy_range(&self.path(side, from), &self.path(side, to), offset, length)
            }
            Op::Chmod { .. } | Op::Chown { .. } | Op::Times { .. } => self.change_attributes(side),
            Op::SetXattr { .. } | Op::RemoveXattr { .. } | Op::Acl { .. } => self.change_xattrs(side),
            Op::Hold { of, writable } => {
                let access = if writable { libc::O_RDWR } else { libc::O_RDONLY };
                let held = sys::open(&self.path(side, of), access | libc::O_NOFOLLOW | libc::O_NONBLOCK, 0)?;
                side.held.push(held);
                Ok(String::new())
            }
            Op::Held { which, action } => match self.there.held {
                0 => Ok(String::new()),
                count => self.held(&mut side.held[which % count], action),
            },
            Op::Release { which } => {
                if self.there.held > 0 {
                    drop(side.held.swap_remove(which % self.there.held));
                }
                Ok(String::new())
            }
            Op::Remount => Ok(String::new()),
        }
    }

    fn path(&self, side: &Side, subject: Subject) -> PathBuf {
        side.point().join(self.there.subject(subject))
    }

    fn way(&self, side: &Side, place: Place) -> PathBuf {
        let way = self.there.place(place);
        match way.held {
            Some(n) => PathBuf::from(format!("/proc/self/fd/{}/{}", side.held[n].as_raw_fd(), way.path)),
            None => side.point().join(way.path),
        }
    }

    fn data(&self, length: usize) -> Vec<u8> {
        vec![b'a' + (self.number % 26) as u8; length]
    }

    fn change_content(&self, side: &Side) -> io::Result<String> {
        match self.op {
            Op::Write { to, offset, length, who } => {
                let path = self.path(side, to);
                by(who, || {
                    let file = sys::open(&path, libc::O_WRONLY | libc::O_NONBLOCK, 0)?;
                    done(file.write_all_at(&self.data(length), offset as u64))
                })
            }
            Op::Append { to, length } => {
                let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_NONBLOCK;
                let mut file = sys::open(&self.path(side, to), flags, 0)?;
                done(file.write_all(&self.data(length)))
            }
            Op::MapWrite { to, offset } => map_write(&self.path(side, to), offset, &self.data(1)),
            Op::Resize { of, size, who } => {
                let path = self.path(side, of);
                let same = fs::metadata(&path).is_ok_and(|found| found.len() == size as u64);
                let resized = by(who, || done(nix::unistd::truncate(&path, size as i64)));
                if same && resized.is_ok() {
                    // FUSE leaves the time of change as it was, which POSIX allows.
                    File::open(&path)?.set_modified(SystemTime::UNIX_EPOCH)?;
                }
                resized
            }
            Op::Allocate { of, space, offset, length } => {
                let file = sys::open(&self.path(side, of), libc::O_WRONLY | libc::O_NONBLOCK, 0)?;
                let mode = match space {
                    Space::Punch => FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
                    Space::Zero => FallocateFlags::FALLOC_FL_ZERO_RANGE,
                    Space::Extend => FallocateFlags::empty(),
                };
                let allocated = done(fallocate(file.as_fd(), mode, offset as i64, length as i64));
                // FUSE sets the time of change whatever comes of it, and not every filesystem does.
                drop(file.set_modified(SystemTime::UNIX_EPOCH));
                allocated
            }
            _ => unreachable!("no change of content"),
        }
    }

    fn change_attributes(&self, side: &Side) -> io::Result<String> {
        match self.op {
            Op::Chmod { of, mode, who } => {
                let path = self.path(side, of);
                by(who, || done(fs::set_permissions(&path, fs::Permissions::from_mode(mode))))
            }
            Op::Chown { of, uid, gid } => done(lchown(self.path(side, of), Some(uid), Some(gid))),
            Op::Times { of, sec } => {
                let time = TimeSpec::new(sec, NSEC);
                done(try_set_times(&self.path(side, of), time, time))
            }
            _ => unreachable!("no change of attributes"),
        }
    }

    fn change_xattrs(&self, side: &Side) -> io::Result<String> {
        match self.op {
            Op::SetXattr { of, name, value, flags, who } => {
                let path = self.path(side, of);
                let bytes = match name {
                    X::Capability => CAPABILITY.to_vec(),
                    _ => vec![b'a' + value % 26; 3],
                };
                by(who, || done(sys::set_xattr(&path, text(name), &bytes, flags)))
            }
            Op::RemoveXattr { of, name } => done(sys::remove_xattr(&self.path(side, of), text(name))),
            Op::Acl { of, default, bits } => {
                let name = if default { "system.posix_acl_default" } else { "system.posix_acl_access" };
                done(sys::set_xattr(&self.path(side, of), name, &acl(bits), 0))
            }
            _ => unreachable!("no change of extended attributes"),
        }
    }

    fn held(&self, file: &mut File, action: Open) -> io::Result<String> {
        match action {
            Open::Stat => {
                let found = file.metadata()?;
                let mut text = format!("{:o} {}:{}", found.mode(), found.uid(), found.gid());
                if !found.is_dir() {
                    let removed = if found.nlink() == 0 { "removed" } else { "named" };
                    text += &format!(" {} {removed}", found.size());
                }
                Ok(text)
            }
            Open::Read => {
                let mut content = vec![0; LONGEST];
                let length = file.read_at(&mut content, 0)?;
                Ok(content[..length].escape_ascii().to_string())
            }
            Open::Write(offset, length) => done(file.write_all_at(&self.data(length), offset as u64)),
            Open::Resize(size) => done(file.set_len(size as u64)),
            Open::Chmod(mode) => done(file.set_permissions(fs::Permissions::from_mode(mode))),
            Open::SetXattr(value) => done(sys::fset_xattr(file, "user.b", &[b'a' + value % 26])),
            Open::List => {
                file.seek(SeekFrom::Start(0))?;
                let mut names: Vec<OsString> = Vec::new();
                loop {
                    let entries = sys::getdents(file, 1 << 12)?;
                    if entries.is_empty() {
                        break;
                    }
                    names.extend(entries.into_iter().map(|entry| entry.name));
                }
                names.sort();
                Ok(format!("{names:?}"))
            }
            Open::Sync => done(file.sync_all()),
        }
    }
}

/// Does something as that user.
fn by(who: Who, action: impl FnOnce() -> io::Result<String>) -> io::Result<String> {
    match who {
        Who::Root => action(),
        Who::User => as_user(USER, USER, action),
    }
}

fn done<E: Into<io::Error>>(result: Result<(), E>) -> io::Result<String> {
    result.map(|()| String::new()).map_err(Into::into)
}

fn open(path: &Path, how: How, mode: u32) -> io::Result<String> {
    let flags = match how {
        How::Exclusive => libc::O_RDWR | libc::O_CREAT | libc::O_EXCL,
        How::Create => libc::O_RDWR | libc::O_CREAT,
        How::CreateTruncate => libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC,
        How::Truncate => libc::O_WRONLY | libc::O_TRUNC,
        How::Read => libc::O_RDONLY,
        How::Write => libc::O_WRONLY,
    };
    let mut file = sys::open(path, flags | libc::O_NONBLOCK, mode)?;
    let mut content = Vec::new();
    if matches!(how, How::Read) {
        (&mut file).take(LONGEST as u64).read_to_end(&mut content)?;
    }
    Ok(content.escape_ascii().to_string())
}

fn special(path: &Path, kind: Special, mode: u32) -> io::Result<String> {
    let (kind, device) = match kind {
        Special::Fifo => (SFlag::S_IFIFO, 0),
        Special::Socket => (SFlag::S_IFSOCK, 0),
        Special::Device => (SFlag::S_IFCHR, nix::sys::stat::makedev(DEVICE.0, DEVICE.1)),
    };
    done(mknod(path, kind, Mode::from_bits_truncate(mode), device))
}

/// Changes one byte through a mapping of the whole file.
fn map_write(path: &Path, offset: usize, data: &[u8]) -> io::Result<String> {
    let file = sys::open(path, libc::O_RDWR | libc::O_NONBLOCK, 0)?;
    let length = file.metadata()?.len() as usize;
    if length == 0 {
        return Ok("nothing to map".to_owned());
    }
    let map = sys::SharedMap::new(&file, length, true)?;
    map.write(offset % length, data);
    done(map.sync())
}

/// From the middle of one file to `offset` of another.
fn copy_range(from: &Path, to: &Path, offset: usize, length: usize) -> io::Result<String> {
    let source = sys::open(from, libc::O_RDONLY | libc::O_NONBLOCK, 0)?;
    let sink = sys::open(to, libc::O_WRONLY | libc::O_NONBLOCK, 0)?;
    let at = source.metadata()?.len() / 2;
    let copied = sys::copy_range(&source, at as i64, &sink, offset as i64, length)?;
    Ok(copied.to_string())
}

fn text(name: X) -> &'static str {
    match name {
        X::A => "user.a",
        X::B => "user.b",
        X::Trusted => "trusted.x",
        X::TrustedMark => "trusted.overlay.opaque",
        X::UserMark => "user.overlay.redirect",
        X::UserOpaque => "user.overlay.opaque",
        X::Capability => "security.capability",
    }
}

/// An ACL in the kernel's format: the owner, user 1000 with `bits`, the group, a mask, the others.
fn acl(bits: u16) -> Vec<u8> {
    values::acl(&[(1, 7, NO_ID), (2, bits, USER), (4, 5, NO_ID), (16, bits | 4, NO_ID), (32, 1, NO_ID)])
}
