//! The index: a second name, by its origin, of each copy whose lower object has several names. A name of the lower object
//! that was not copied finds the copy by it, also after a remount.
//!
//! As the kernel's overlay keeps it with `index=on`: `W/index/HEX` is a hard link of the copy, HEX the origin mark's value.
//! Without privilege it is `W/layerfs/index`, since the kernel has none with `userxattr`.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;

use crate::error::{Errno, Result};
use crate::layer::ObjKey;
use crate::layer::marks::{Mark, Namespace};
use crate::layer::origin::Origin;
use crate::layer::stage::Staged;
use crate::layer::upper::{Upper, UpperObject};
use crate::name::Name;
use crate::sys;
use crate::sys::file::Stat;
use crate::sys::xattr::Target;

/// A copy's name in the index; `None` for a handle that is too long for one.
pub fn name_of(origin: &Origin) -> Option<Name> {
    let hex: String = origin.encode()?.iter().map(|byte| format!("{byte:02x}")).collect();
    Name::new(hex.as_bytes()).ok()
}

/// The origin that a name in the index stands for.
pub fn origin_of(name: &Name) -> Option<Origin> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let digits: Vec<u8> = name.as_bytes().iter().map(digit).collect::<Option<_>>()?;
    let (pairs, []) = digits.as_chunks() else { return None };
    Origin::parse(&pairs.iter().map(|[high, low]| high << 4 | low).collect::<Vec<u8>>())
}

/// Reads the mark that keeps account of a copy's names: `U+n` is relative to upper's own count, `L+n` to the lower's.
pub fn parse_links(value: &[u8], upper: u32, lower: u32) -> Option<u32> {
    let (base, diff) = value.split_first()?;
    let diff: i64 = std::str::from_utf8(diff).ok()?.parse().ok()?;
    let base = match base {
        b'U' => upper,
        b'L' => lower,
        _ => return None,
    };
    u32::try_from(i64::from(base).checked_add(diff)?).ok()
}

impl Upper {
    /// The directory of the index; `None` while there is none and none is to be made.
    fn index_dir(&self, make: bool) -> Result<Option<BorrowedFd<'_>>> {
        if !make && self.no_index.load(Ordering::Acquire) {
            return Ok(None);
        }
        if self.index.get().is_none() {
            let parent = match self.namespace {
                Namespace::Trusted => self.work.root(),
                Namespace::User => self.work.private.as_fd(),
            };
            if make {
                match sys::posix::mkdirat(parent, c"index", Mode::S_IRWXU) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(e) => return Err(e),
                }
            }
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            match sys::posix::openat(parent, c"index", flags, Mode::empty()) {
                // Whoever was first, both are the same.
                Ok(fd) => {
                    drop(self.index.set(fd));
                    self.no_index.store(false, Ordering::Release);
                }
                Err(Errno::ENOENT) if !make => {
                    self.no_index.store(true, Ordering::Release);
                    return Ok(None);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(self.index.get().map(AsFd::as_fd))
    }

    /// The copy that the index has of an object.
    pub fn indexed(&self, name: &Name) -> Result<Option<Stat>> {
        let Some(dir) = self.index_dir(false)? else { return Ok(None) };
        match sys::file::stat_at(dir, name.as_cstr()) {
            Ok(stat) if stat.is_dir() || super::whiteout::is_device_form(&stat) => Ok(None),
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether anything is known of lower objects with several names.
    pub fn knows_hard_links(&self) -> Result<bool> {
        Ok(self.index_dir(false)?.is_some() || self.private.has(Mark::Covered))
    }

    /// The names of all copies in the index.
    pub(super) fn indexed_names(&self) -> Result<Vec<Name>> {
        let Some(dir) = self.index_dir(false)? else { return Ok(Vec::new()) };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let readable = sys::posix::openat(dir, c".", flags, Mode::empty())?;
        let mut names = Vec::new();
        sys::dir::for_each(readable.as_fd(), |entry| {
            names.extend(
                Name::new(entry.name).ok().filter(|_| entry.kind != libc::DT_DIR && entry.kind != libc::DT_CHR),
            );
            true
        })?;
        Ok(names)
    }

    /// A mark of a copy in the index.
    pub fn indexed_mark(&self, name: &Name, mark: Mark) -> Result<Option<Vec<u8>>> {
        let Some(dir) = self.index_dir(false)? else { return Ok(None) };
        match sys::xattr::get(Target::At(dir, name.as_cstr()), self.namespace.name(mark)) {
            Ok(value) => Ok(Some(value)),
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(self.private_mark(dir, name, mark)),
            Err(e) => Err(e),
        }
    }

    /// Puts a copy into the index.
    pub fn add_to_index(&self, copy: &Staged<'_>, name: &Name) -> Result<()> {
        let dir = self.index_dir(true)?.ok_or(Errno::EIO)?;
        sys::file::link_fd(copy.fd(), dir, name.as_cstr())
    }

    /// Opens a copy by the index.
    pub fn open_indexed(&self, name: &Name, key: ObjKey, flags: OFlag) -> Result<UpperObject> {
        let dir = self.index_dir(false)?.ok_or(Errno::ESTALE)?;
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = sys::posix::openat(dir, name.as_cstr(), flags, Mode::empty())?;
        if ObjKey::from(&sys::file::stat(&fd)?) != key {
            return Err(Errno::ESTALE);
        }
        Ok(UpperObject(Arc::new(fd)))
    }

    /// Takes a copy out of the index: it has no names any more.
    pub fn remove_from_index(&self, name: &Name) -> Result<()> {
        let Some(dir) = self.index_dir(false)? else { return Ok(()) };
        match sys::posix::unlinkat(dir, name.as_cstr(), UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            done => done,
        }
    }

    /// Remembers how many names of a lower object without a copy are gone, once they are.
    pub fn set_covered(&self, lower: &Origin, covered: u32) {
        self.private.set_by_and_by(self.work.private.as_fd(), &lower.handle, Mark::Covered, &covered.to_le_bytes());
    }

    /// How many names of a lower object without a copy are gone.
    pub fn covered(&self, lower: &Origin) -> Option<u32> {
        let value = self.private.get_handle(&lower.handle, Mark::Covered)?;
        Some(u32::from_le_bytes(value.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::handle::FileHandle;

    #[test]
    fn a_name_leads_back_to_its_origin() {
        let handle = FileHandle { kind: 1, bytes: vec![0, 0x7f, 0xff] };
        let origin = Origin { uuid: [0xa5; 16], handle };
        assert_eq!(origin_of(&name_of(&origin).unwrap()), Some(origin));
        for other in ["00fb", "00f", "name", "\u{e9}"] {
            assert_eq!(origin_of(&Name::new(other.as_bytes()).unwrap()), None, "{other}");
        }
    }

    #[test]
    fn link_counts_are_relative() {
        assert_eq!(parse_links(b"U+1", 2, 9), Some(3));
        assert_eq!(parse_links(b"L-2", 2, 9), Some(7));
        for bad in [&b""[..], b"X+1", b"U", b"U+", b"U-3", b"L+99999999999999999999", b"U+9223372036854775807"] {
            assert_eq!(parse_links(bad, 2, 9), None, "{}", bad.escape_ascii());
        }
    }
}
