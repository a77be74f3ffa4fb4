//! Copies whose data may not be on disk yet: the mark that travels with the inode, and the lists of where such copies are.
//!
//! The mark is the proof: it is set before a copy has a name, and taken off only when its data is durable. It tells which run of
//! the machine made it, and which lower file has the content that is certain. After a power loss the lists may lack what
//! the disk has, so recovery goes by the marks of all files; after a crash of the daemon alone they save that search.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::error::{Errno, Result};
use crate::layer::marks::Mark;
use crate::layer::real::LayerId;
use crate::layer::records;
use crate::layer::upper::{AsUpper, Upper};
use crate::name::Name;
use crate::sys;
use crate::sys::file::Stat;

/// Changes whenever a record or its encoding does.
const VERSION: u8 = 1;

/// The lists' names in `W/layerfs`. One takes new copies while those of the other are committed.
const LISTS: [&str; 2] = ["uncommitted.0", "uncommitted.1"];

/// The value of the mark.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Uncommitted {
    version: u8,
    /// The boot id of the machine when the copy was made.
    pub boot: String,
    /// Which lower it was copied from, when it was.
    pub layer: u16,
    /// Where the lower file with the data is, from its layer's root.
    path: Vec<Vec<u8>>,
    size: u64,
    mtime: (i64, u32),
}

impl Uncommitted {
    /// The mark of a copy of the file `path` with status `st`.
    pub fn new(boot: &str, layer: LayerId, path: &[Name], st: &Stat) -> Self {
        let path = path.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self { version: VERSION, boot: boot.to_owned(), layer: layer.0, path, size: st.size, mtime: st.mtime }
    }

    /// The mark's value.
    ///
    /// # Errors
    /// `E2BIG` for a path that no attribute has room for.
    pub fn encode(&self) -> Result<Vec<u8>> {
        records::encode(self)
    }

    /// Reads a mark; `None` for one that makes no sense.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (mark, len): (Self, usize) = records::decode(value)?;
        (mark.version == VERSION && len == value.len()).then_some(mark)
    }

    /// The names that lead to the lower file.
    ///
    /// # Errors
    /// `EIO` for what can't be the path of a file in a layer.
    pub fn path(&self) -> Result<Vec<Name>> {
        self.path.iter().map(|name| Name::new(name).map_err(|_| Errno::EIO)).collect()
    }

    /// Whether a file is the one that was copied: lowers don't change, so these tell.
    pub fn is_of(&self, st: &Stat) -> bool {
        st.is_file() && st.size == self.size && st.mtime == self.mtime
    }
}

impl fmt::Display for Uncommitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path: Vec<String> = self.path.iter().map(|name| name.escape_ascii().to_string()).collect();
        write!(f, "{} (lower {}, {} bytes)", path.join("/"), self.layer, self.size)
    }
}

/// The first record of a list.
#[derive(Serialize, Deserialize)]
struct Header {
    version: u8,
    boot: String,
}

/// Another record of a list: the path, in upper, that a copy was about to get.
#[derive(Serialize, Deserialize)]
struct Entry {
    path: Vec<Vec<u8>>,
}

/// The lists of a mount.
#[derive(Debug, Default)]
pub(super) struct Lists {
    inner: Mutex<Inner>,
    /// How many entries of each are of copies that a batch would not find yet.
    under_way: [Arc<AtomicUsize>; 2],
}

/// An entry of a list whose copy is not known to those who commit yet; dropped when it is, or will never be.
#[derive(Debug)]
pub struct Noted(Arc<AtomicUsize>);

impl Drop for Noted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[derive(Debug, Default)]
struct Inner {
    lists: [Option<List>; 2],
    /// The one that takes new entries.
    current: usize,
}

#[derive(Debug)]
struct List {
    file: OwnedFd,
    /// The length of its header.
    empty: usize,
    /// Its length.
    end: usize,
}

impl List {
    fn make(dir: BorrowedFd<'_>, name: &str, boot: &str) -> Result<Self> {
        let flags = OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = sys::posix::openat(dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let header = records::encode(&Header { version: VERSION, boot: boot.to_owned() })?;
        let end = records::write(file.as_fd(), &header, 0)?;
        Ok(Self { file, empty: end, end })
    }
}

impl Lists {
    /// Notes where a copy is about to be published, in the lists in `dir`.
    pub(super) fn note(&self, dir: BorrowedFd<'_>, boot: &str, path: &[Name]) -> Result<Noted> {
        let entry = records::encode(&Entry { path: path.iter().map(|name| name.as_bytes().to_vec()).collect() })?;
        let mut inner = self.inner.lock();
        let current = inner.current;
        let (Some(list), Some(name), Some(under_way)) =
            (inner.lists.get_mut(current), LISTS.get(current), self.under_way.get(current))
        else {
            return Err(Errno::EIO);
        };
        if list.is_none() {
            *list = Some(List::make(dir, name, boot)?);
        }
        let list = list.as_mut().ok_or(Errno::EIO)?;
        list.end = records::write(list.file.as_fd(), &entry, list.end)?;
        under_way.fetch_add(1, Ordering::AcqRel);
        Ok(Noted(under_way.clone()))
    }

    /// From now on new entries go to the other list, if that one is empty. True if all copies of the list that takes no new
    /// entries are known to those who commit.
    pub(super) fn turn(&self) -> bool {
        let mut inner = self.inner.lock();
        let other = 1 - inner.current;
        let empty = inner.lists.get(other).is_some_and(|list| list.as_ref().is_none_or(|list| list.end == list.empty));
        if empty {
            inner.current = other;
        }
        self.under_way.get(1 - inner.current).is_some_and(|under_way| under_way.load(Ordering::Acquire) == 0)
    }

    /// Empties the list that takes no new entries: its copies are committed.
    pub(super) fn settle(&self) -> Result<()> {
        let mut inner = self.inner.lock();
        let other = 1 - inner.current;
        if let Some(list) = inner.lists.get_mut(other).and_then(Option::as_mut)
            && list.end > list.empty
        {
            sys::posix::ftruncate(&list.file, list.empty as i64)?;
            list.end = list.empty;
        }
        Ok(())
    }
}

/// Removes the lists: nothing is uncommitted any more.
pub(super) fn remove_lists(dir: BorrowedFd<'_>) -> Result<()> {
    for name in LISTS {
        match sys::posix::unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The paths of all copies that this run of the machine made; `None` if the lists can't tell.
pub(super) fn read_lists(dir: BorrowedFd<'_>, boot: &str) -> Result<Option<Vec<Vec<Name>>>> {
    let mut paths = Vec::new();
    for (i, name) in LISTS.into_iter().enumerate() {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let bytes = match sys::posix::openat(dir, name, flags, Mode::empty()) {
            Ok(list) => records::read(list.as_fd())?,
            // The second one is made when it is needed first.
            Err(Errno::ENOENT) if i > 0 => continue,
            Err(Errno::ENOENT) => return Ok(None),
            Err(e) => return Err(e),
        };
        match parse_list(&bytes, boot) {
            Some(more) => paths.extend(more),
            None => return Ok(None),
        }
    }
    Ok(Some(paths))
}

fn parse_list(bytes: &[u8], boot: &str) -> Option<Vec<Vec<Name>>> {
    let (header, mut at): (Header, usize) = records::decode(bytes)?;
    if header.version != VERSION || header.boot != boot {
        return None;
    }
    let mut paths = Vec::new();
    while let Some((entry, len)) = records::decode::<Entry>(bytes.get(at..)?) {
        paths.push(entry.path.iter().map(|name| Name::new(name)).collect::<std::result::Result<_, _>>().ok()?);
        at += len;
    }
    // What doesn't make sense may have been the path of a copy.
    (at == bytes.len()).then_some(paths)
}

impl Upper {
    /// Marks a staged copy as uncommitted, and notes the path in upper that it is about to get.
    ///
    /// The path comes first: a mark that no list has would outlast a crash of the daemon.
    pub fn mark_uncommitted(&self, copy: &impl AsUpper, mark: &Uncommitted, path: &[Name]) -> Result<Noted> {
        let noted = self.lists.note(self.work.private.as_fd(), &mark.boot, path)?;
        self.set_xattr(copy, self.namespace.name(Mark::Uncommitted), &mark.encode()?, 0)?;
        Ok(noted)
    }

    /// A batch begins: copies that are noted from now on are of the next one. False if some were noted before that whoever
    /// commits does not know yet: then [`Upper::end_batch`] has to wait for the next one.
    pub fn begin_batch(&self) -> bool {
        self.lists.turn()
    }

    /// All copies from before [`Upper::begin_batch`] are committed.
    pub fn end_batch(&self) -> Result<()> {
        self.lists.settle()
    }

    /// Makes everything on upper's filesystem durable.
    pub fn sync_all(&self) -> Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        sys::posix::syncfs(sys::posix::openat(self.work.root(), c".", flags, Mode::empty())?)
    }
}

/// How many entries of a list are sound, for `tests/fuzz`.
#[cfg(fuzzing)]
pub fn sound_entries(list: &[u8], boot: &str) -> Option<usize> {
    parse_list(list, boot).map(|paths| paths.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &str) -> Vec<Name> {
        path.split('/').map(|name| Name::new(name.as_bytes()).unwrap()).collect()
    }

    fn status(size: u64) -> Stat {
        let dir = tempfile::tempfile().unwrap();
        Stat { size, mtime: (5, 7), ..sys::file::stat(dir).unwrap() }
    }

    #[test]
    fn a_mark_read_back_is_the_mark_written() {
        let mark = Uncommitted::new("boot", LayerId(3), &names("a/b"), &status(9));
        let value = mark.encode().unwrap();
        assert_eq!(Uncommitted::parse(&value), Some(mark.clone()));
        assert!(mark.is_of(&status(9)) && !mark.is_of(&status(8)));
        for cut in 0..value.len() {
            assert_eq!(Uncommitted::parse(&value[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn lists_count_only_for_the_run_that_made_them() {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        let read = |boot| read_lists(fd.as_fd(), boot).unwrap();
        assert_eq!(read("boot"), None);
        let lists = Lists::default();
        let noted = lists.note(fd.as_fd(), "boot", &names("a/b")).unwrap();
        assert!(!lists.turn(), "its copy is under way");
        drop(noted);
        assert!(lists.turn());
        drop(lists.note(fd.as_fd(), "boot", &names("c")).unwrap());
        assert_eq!(read("boot"), Some(vec![names("a/b"), names("c")]));
        assert_eq!(read("another boot"), None);
        lists.settle().unwrap();
        assert_eq!(read("boot"), Some(vec![names("c")]));
        remove_lists(fd.as_fd()).unwrap();
        assert_eq!(read("boot"), None);
    }

    #[test]
    fn a_torn_list_can_not_tell() {
        let mut list = records::encode(&Header { version: VERSION, boot: "boot".to_owned() }).unwrap();
        let header = list.len();
        list.extend(records::encode(&Entry { path: vec![b"a".to_vec()] }).unwrap());
        for cut in 0..list.len() {
            let expected = (cut == header).then(Vec::new);
            assert_eq!(parse_list(&list[..cut], "boot"), expected, "cut at {cut}");
        }
        assert_eq!(parse_list(&list, "boot"), Some(vec![names("a")]));
    }
}
