//! Everything that can be wrong with the directories of a stack, found before anything on disk changes.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{AtFlags, OFlag, RenameFlags};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{AccessFlags, UnlinkatFlags, faccessat};

use crate::error::{Errno, Result as OpResult, SetupError};
use crate::layer::StackSpec;
use crate::layer::busy;
use crate::layer::marks::{Mark, Namespace};
use crate::layer::override_stat::Form;
use crate::layer::real::ObjKey;
use crate::layer::whiteout::Whiteouts;
use crate::sys;
use crate::sys::mount::mount_id;
use crate::sys::xattr::Target;

type Result<T> = std::result::Result<T, SetupError>;

/// How long a mount that is ending is waited for when the work directory is a new one.
const BUSY_WAIT: Duration = Duration::from_secs(10);

/// Checks the directories of a stack against each other and against what a union needs of them that writes such whiteouts.
///
/// # Errors
/// The first thing that is wrong; nothing on disk has changed then.
pub fn check(spec: &StackSpec, whiteouts: Whiteouts) -> Result<()> {
    if spec.lowers.is_empty() {
        let option = Path::new("--lower");
        return Err(SetupError::new("there is no lower directory", option, "name at least one"));
    }
    let lowers = open_lowers(&spec.lowers)?;
    if spec.xattr_permissions == Some(Form::Security) && !sys::privilege::is_privileged() {
        let what = format!("only root can keep permissions in {:?}", Form::Security.name());
        return Err(SetupError::new(what, Path::new("xattr_permissions=1"), "use xattr_permissions=2"));
    }
    let Some(upper_path) = &spec.upper else { return Ok(()) };
    let upper = Dir::open(upper_path, "upper")?;
    check_writable(&upper, "upper")?;
    let Some(work_path) = &spec.work else {
        let advice = "name one on the same filesystem with --work";
        return Err(SetupError::new("the upper directory has no work directory", upper_path, advice));
    };
    let work = Work::find(work_path)?;
    check_same_mount(&upper, &work)?;
    check_overlap(&upper, &work, &lowers)?;
    check_writable(&work.base, "work")?;
    let namespace = match sys::privilege::is_privileged() && !spec.userxattr {
        true => Namespace::Trusted,
        false => Namespace::User,
    };
    check_features(&work.base, namespace, whiteouts)?;
    if !work.exists {
        busy::wait_for_upper(upper_path, BUSY_WAIT)?;
    }
    Ok(())
}

/// An opened directory of the stack.
#[derive(Debug)]
struct Dir<'a> {
    path: &'a Path,
    fd: OwnedFd,
    key: ObjKey,
}

impl<'a> Dir<'a> {
    /// Opens a directory that has to exist already.
    fn open(path: &'a Path, role: &str) -> Result<Self> {
        let failed = |e: Errno| {
            let (what, advice) = match e {
                Errno::ENOENT => ("does not exist", "create it, or correct the path"),
                Errno::ENOTDIR => ("is not a directory", "name a directory"),
                Errno::ENOTCONN => ("is on a FUSE mount whose daemon has died", "unmount that and mount it again"),
                Errno::ENAMETOOLONG => {
                    ("has too long a path", "change to a directory nearer to it and name it from there")
                }
                Errno::EACCES => {
                    ("can't be reached (Permission denied)", "give this user access, or mount as its owner")
                }
                e => (e.desc(), "check the path"),
            };
            SetupError::new(format!("the {role} directory {what}"), path, advice)
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = sys::posix::open(path, flags, Mode::empty()).map_err(failed)?;
        let key = ObjKey::from(&sys::file::stat(&fd).map_err(failed)?);
        Ok(Self { path, fd, key })
    }
}

/// The work directory, or the directory that it will be made in.
#[derive(Debug)]
struct Work<'a> {
    path: &'a Path,
    exists: bool,
    base: Dir<'a>,
}

impl<'a> Work<'a> {
    fn find(path: &'a Path) -> Result<Self> {
        if std::fs::symlink_metadata(path).is_ok() {
            return Ok(Self { path, exists: true, base: Dir::open(path, "work")? });
        }
        let parent = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => path,
        };
        Ok(Self { path, exists: false, base: Dir::open(parent, "work directory's parent")? })
    }
}

/// Opens all lowers, each a directory of its own.
fn open_lowers(paths: &[PathBuf]) -> Result<Vec<Dir<'_>>> {
    let mut seen: HashMap<ObjKey, &Path> = HashMap::with_capacity(paths.len());
    let mut lowers = Vec::with_capacity(paths.len());
    for path in paths {
        let lower = Dir::open(path, "lower")?;
        if let Some(first) = seen.insert(lower.key, path) {
            let what = format!("the lower directory is the same as {}", first.display());
            return Err(SetupError::new(what, path, "name each layer once"));
        }
        lowers.push(lower);
    }
    Ok(lowers)
}

/// The filesystem and the directory take changes.
fn check_writable(dir: &Dir<'_>, role: &str) -> Result<()> {
    let failed = |e: Errno| {
        let what = format!("the {role} directory can't be written ({})", e.desc());
        SetupError::new(what, dir.path, "give this user the right to write there, or choose another directory")
    };
    if fstatvfs(&dir.fd).map_err(failed)?.flags().contains(FsFlags::ST_RDONLY) {
        return Err(SetupError::new(
            format!("the {role} directory is on a read-only filesystem"),
            dir.path,
            "choose one on a writable filesystem, or leave --upper out for a read-only mount",
        ));
    }
    let access = AccessFlags::W_OK | AccessFlags::X_OK;
    faccessat(&dir.fd, c".", access, AtFlags::AT_EACCESS).map_err(failed)
}

/// Objects are renamed between upper and work: both have to be on one filesystem, and on one mount of it.
fn check_same_mount(upper: &Dir<'_>, work: &Work<'_>) -> Result<()> {
    let advice = "choose with --work a directory beside the upper one, both below one mountpoint";
    if upper.key.dev != work.base.key.dev {
        let what = format!("the work directory is on another filesystem than {}", upper.path.display());
        return Err(SetupError::new(what, work.path, advice));
    }
    match (mount_id(upper.fd.as_fd()), mount_id(work.base.fd.as_fd())) {
        (Ok(Some(one)), Ok(Some(other))) if one != other => {
            let what = format!("the work directory is on another mount (bind mount) than {}", upper.path.display());
            Err(SetupError::new(what, work.path, advice))
        }
        // A kernel that can't tell leaves it to the first rename.
        _ => Ok(()),
    }
}

/// Upper and work lie apart, and no lower is or lies inside one of them. An upper inside a lower is fine: that is how a
/// union over the root directory is made.
fn check_overlap(upper: &Dir<'_>, work: &Work<'_>, lowers: &[Dir<'_>]) -> Result<()> {
    let overlap = |what: String, path: &Path| Err(SetupError::new(what, path, "choose directories that lie apart"));
    if work.exists {
        if work.base.key == upper.key {
            return overlap("the work directory is the upper directory itself".to_owned(), work.path);
        }
        if ancestors(&upper.fd).any(|key| key == work.base.key) {
            return overlap("the upper directory lies inside the work directory".to_owned(), upper.path);
        }
    }
    if work.base.key == upper.key || ancestors(&work.base.fd).any(|key| key == upper.key) {
        return overlap("the work directory lies inside the upper directory".to_owned(), work.path);
    }
    // Layers mostly share their ancestors: those are looked at once.
    let mut apart: HashSet<ObjKey> = HashSet::new();
    for lower in lowers {
        let mut chain = vec![lower.key];
        chain.extend(ancestors(&lower.fd).take_while(|key| !apart.contains(key)));
        for (depth, key) in chain.iter().enumerate() {
            let role = match () {
                () if *key == upper.key => "upper",
                () if work.exists && *key == work.base.key => "work",
                () => continue,
            };
            let how = if depth == 0 { "is also the" } else { "lies inside the" };
            return overlap(format!("the lower directory {how} {role} directory"), lower.path);
        }
        apart.extend(chain);
    }
    Ok(())
}

/// The directories above one, from its parent to the root directory; it ends early where this user can't look.
fn ancestors(dir: &OwnedFd) -> impl Iterator<Item = ObjKey> {
    let up = |fd: BorrowedFd<'_>| -> OpResult<(OwnedFd, ObjKey)> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let parent = sys::posix::openat(fd, c"..", flags, Mode::empty())?;
        let key = ObjKey::from(&sys::file::stat(&parent)?);
        Ok((parent, key))
    };
    let mut next = up(dir.as_fd()).ok();
    let mut last = sys::file::stat(dir).ok().map(|st| ObjKey::from(&st));
    std::iter::from_fn(move || {
        let (fd, key) = next.take()?;
        // The root directory is its own parent.
        if last.replace(key) == Some(key) {
            return None;
        }
        next = up(fd.as_fd()).ok();
        Some(key)
    })
}

/// Tries on the spot what a union does in its upper layer.
fn check_features(base: &Dir<'_>, namespace: Namespace, whiteouts: Whiteouts) -> Result<()> {
    let probe = Probe::make(base)?;
    let lacks = |what: &str, e: Errno| {
        let what = match e {
            Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS => format!("the upper's filesystem lacks {what}"),
            e => format!("the upper's filesystem refuses {what} ({})", e.desc()),
        };
        SetupError::new(what, base.path, "put the upper and the work directory on ext4, xfs, btrfs or tmpfs")
    };
    let attr = namespace.name(Mark::Impure);
    if let Err(e) = sys::xattr::set(Target::Fd(probe.fd.as_fd()), attr, b"y", 0) {
        let kind = if namespace == Namespace::Trusted { "trusted.*" } else { "user.*" };
        return Err(lacks(&format!("extended attributes of the kind {kind}"), e));
    }
    probe.make_file(c"a").and_then(|()| probe.make_file(c"b")).map_err(|e| lacks("files", e))?;
    sys::file::rename_at((probe.fd.as_fd(), c"a"), (probe.fd.as_fd(), c"b"), RenameFlags::RENAME_EXCHANGE)
        .map_err(|e| lacks("an exchange of two names in one step (RENAME_EXCHANGE)", e))?;
    if whiteouts == Whiteouts::Dot {
        return Ok(());
    }
    sys::file::mknod_at(probe.fd.as_fd(), c"c", libc::S_IFCHR, 0)
        .map_err(|e| lacks("whiteouts (a character device 0:0)", e))
}

/// A directory to try things in; it is removed again with all that may be in it.
#[derive(Debug)]
struct Probe<'a> {
    base: BorrowedFd<'a>,
    name: CString,
    fd: OwnedFd,
}

impl<'a> Probe<'a> {
    /// Every name that a probe makes.
    const NAMES: [&'static std::ffi::CStr; 3] = [c"a", c"b", c"c"];

    fn make(base: &'a Dir<'_>) -> Result<Self> {
        let failed = |e: Errno| {
            let what = format!("no directory can be made there ({})", e.desc());
            SetupError::new(what, base.path, "free some space, or choose other upper and work directories")
        };
        let pid = std::process::id();
        for attempt in 0..100_u32 {
            let name = CString::new(format!(".layerfs-probe.{pid}.{attempt}")).unwrap_or_default();
            match sys::posix::mkdirat(&base.fd, name.as_c_str(), Mode::S_IRWXU) {
                Err(Errno::EEXIST) => {}
                Err(e) => return Err(failed(e)),
                Ok(()) => {
                    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                    let fd = sys::posix::openat(&base.fd, name.as_c_str(), flags, Mode::empty()).map_err(failed)?;
                    return Ok(Self { base: base.fd.as_fd(), name, fd });
                }
            }
        }
        Err(failed(Errno::EEXIST))
    }

    fn make_file(&self, name: &std::ffi::CStr) -> OpResult<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        sys::posix::openat(&self.fd, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map(drop)
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        for name in Self::NAMES {
            match sys::posix::unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(e) => log::warn!("can't remove {:?} in {:?}: {e}", name, self.name),
            }
        }
        if let Err(e) = sys::posix::unlinkat(self.base, self.name.as_c_str(), UnlinkatFlags::RemoveDir) {
            log::warn!("can't remove {:?}: {e}", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A directory with `l1`, `l2`, `u` and `w` in it.
    fn place() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["l1", "l2", "u", "w"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        dir
    }

    fn spec(at: &tempfile::TempDir, lowers: &[&str], upper: &str, work: &str) -> StackSpec {
        StackSpec {
            lowers: lowers.iter().map(|name| at.path().join(name)).collect(),
            upper: Some(at.path().join(upper)),
            work: Some(at.path().join(work)),
            userxattr: true,
            trusted_lowers: false,
            xattr_permissions: None,
        }
    }

    fn check(spec: &StackSpec) -> Result<()> {
        super::check(spec, Whiteouts::default())
    }

    /// All paths below a directory.
    fn tree(at: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut todo = vec![at.to_owned()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    todo.push(entry.path());
                }
                found.push(entry.path());
            }
        }
        found.sort();
        found
    }

    fn refuses(at: &tempfile::TempDir, spec: &StackSpec, what: &str, name: &str) {
        let before = tree(at.path());
        let error = check(spec).unwrap_err();
        assert!(error.what.contains(what), "{error}");
        assert_eq!(error.path, at.path().join(name), "{error}");
        assert!(!error.advice.is_empty());
        assert_eq!(tree(at.path()), before);
    }

    #[test]
    fn a_good_stack_passes_and_leaves_no_trace() {
        let at = place();
        let before = tree(at.path());
        check(&spec(&at, &["l1", "l2"], "u", "w")).unwrap();
        check(&spec(&at, &["l1", "l2"], "u", "new")).unwrap();
        assert_eq!(tree(at.path()), before);
    }

    #[test]
    fn missing_directories_are_named() {
        let at = place();
        fs::write(at.path().join("file"), "").unwrap();
        refuses(&at, &spec(&at, &["l1", "no"], "u", "w"), "lower directory does not exist", "no");
        refuses(&at, &spec(&at, &["file"], "u", "w"), "lower directory is not a directory", "file");
        refuses(&at, &spec(&at, &["l1"], "no", "w"), "upper directory does not exist", "no");
        refuses(&at, &spec(&at, &["l1"], "file", "w"), "upper directory is not a directory", "file");
        refuses(&at, &spec(&at, &["l1"], "u", "file"), "work directory is not a directory", "file");
        refuses(&at, &spec(&at, &["l1"], "u", "no/w"), "parent directory does not exist", "no");
    }

    #[test]
    fn a_lower_counts_once_under_every_name() {
        let at = place();
        std::os::unix::fs::symlink("l1", at.path().join("alias")).unwrap();
        refuses(&at, &spec(&at, &["l1", "l2", "alias"], "u", "w"), "the same as", "alias");
    }

    #[test]
    fn overlaps_are_found() {
        let at = place();
        fs::create_dir_all(at.path().join("u/in/deep")).unwrap();
        fs::create_dir_all(at.path().join("w/in/deep")).unwrap();
        refuses(&at, &spec(&at, &["l1"], "u", "u"), "is the upper directory itself", "u");
        refuses(&at, &spec(&at, &["l1"], "u", "u/in"), "inside the upper", "u/in");
        refuses(&at, &spec(&at, &["l1"], "u", "u/new"), "inside the upper", "u/new");
        refuses(&at, &spec(&at, &["l1"], "u", "u/in/new"), "inside the upper", "u/in/new");
        refuses(&at, &spec(&at, &["l1"], "w/in", "w"), "inside the work", "w/in");
        refuses(&at, &spec(&at, &["l1", "u"], "u", "w"), "is also the upper", "u");
        refuses(&at, &spec(&at, &["l1", "u/in/deep"], "u", "w"), "lies inside the upper", "u/in/deep");
        refuses(&at, &spec(&at, &["l1", "w/in/deep"], "u", "w"), "lies inside the work", "w/in/deep");
        refuses(&at, &spec(&at, &["w"], "u", "w"), "is also the work", "w");
    }

    #[test]
    fn an_upper_inside_a_lower_is_allowed() {
        let at = place();
        fs::create_dir_all(at.path().join("l1/u")).unwrap();
        check(&spec(&at, &["l1"], "l1/u", "l1/w")).unwrap();
        let mut root = spec(&at, &["l2"], "u", "w");
        root.lowers.push("/".into());
        check(&root).unwrap();
    }

    #[test]
    fn a_union_has_layers() {
        let at = place();
        assert!(check(&StackSpec::default()).is_err());
        let mut no_work = spec(&at, &["l1"], "u", "w");
        no_work.work = None;
        refuses(&at, &no_work, "no work directory", "u");
    }

    #[test]
    fn work_stays_on_the_filesystem_of_upper() {
        let at = place();
        let mut elsewhere = spec(&at, &["l1"], "u", "w");
        elsewhere.work = Some("/proc".into());
        let error = check(&elsewhere).unwrap_err();
        assert!(error.what.contains("another filesystem"), "{error}");
    }

    #[test]
    fn a_filesystem_without_attributes_is_refused() {
        let mut spec = spec(&place(), &[], "", "");
        spec.lowers = vec!["/usr".into()];
        spec.upper = Some("/proc/self".into());
        spec.work = Some("/proc/self/fd".into());
        assert!(check(&spec).is_err());
    }
}
