//! The options of a mount, as typed, and the one validated [`Config`] that they make.
//!
//! Every way to give an option ends in [`Settings::set`]: the flags of the command line and the `-o` lists of mount(8)
//! alike, so that both mean the same and complain alike.

mod foreign;
mod options;
mod words;

use std::ffi::{OsStr, OsString};
use std::ops::RangeInclusive;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::MsFlags;

use crate::fuse::Ring;
use crate::layer::StackSpec;
use crate::layer::override_stat::Form;
use crate::layer::whiteout::Whiteouts;
use crate::sys::mount::MountOptions;
use crate::union::{Durability, IdMap, Io, Options, Xino};

pub use options::help;
use options::{Action, Known};
use words::{nearest, split_list, split_unescaped, unescape};

/// The source that /proc/mounts shows when none is given.
const DEFAULT_SOURCE: &str = "layerfs";
/// The kernel takes no longer one.
const SOURCE_MAX: usize = 255;
/// The bounds of the number of worker threads that is chosen by the number of cores.
const THREADS: RangeInclusive<usize> = 2..=8;
/// More workers than this are a mistake.
const THREADS_MAX: usize = 256;
/// The last id; the next number stands for none.
const ID_MAX: usize = u32::MAX as usize - 1;
/// A larger lookup cache than this is a mistake.
const CACHE_MAX: usize = 1 << 30;

/// An option that can't be used, in one sentence.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

fn wrong<T>(message: String) -> Result<T, ConfigError> {
    Err(ConfigError(message))
}

/// Everything that a mount needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The directories to stack.
    pub stack: StackSpec,
    /// How the union behaves.
    pub union: Options,
    /// How the mount looks.
    pub mount: MountOptions,
    /// Where to mount.
    pub mountpoint: PathBuf,
    /// How many threads answer requests.
    pub threads: usize,
    /// Whether requests are taken from io_uring.
    pub ring: Ring,
    /// Whether the process stays in the foreground.
    pub foreground: bool,
    /// Whether a dead mount on the mountpoint is taken off first.
    pub recover: bool,
}

/// Options as they come in, before it is known whether they go together.
#[derive(Clone, Debug)]
pub struct Settings {
    lowers: Vec<PathBuf>,
    upper: Option<PathBuf>,
    work: Option<PathBuf>,
    userxattr: bool,
    trusted_lowers: bool,
    xattr_permissions: Option<Form>,
    union: Options,
    durability: Option<Durability>,
    metacopy: Option<bool>,
    source: OsString,
    flags: MsFlags,
    allow_other: bool,
    allow_root: bool,
    threads: Option<usize>,
    ring: Ring,
    foreground: bool,
    recover: bool,
    ignore_unknown: bool,
    compatible: bool,
    warnings: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lowers: Vec::new(),
            upper: None,
            work: None,
            userxattr: false,
            trusted_lowers: false,
            xattr_permissions: None,
            union: Options::default(),
            durability: None,
            metacopy: None,
            source: DEFAULT_SOURCE.into(),
            flags: MsFlags::empty(),
            allow_other: false,
            allow_root: false,
            threads: None,
            ring: Ring::Auto,
            foreground: false,
            recover: false,
            ignore_unknown: false,
            compatible: false,
            warnings: Vec::new(),
        }
    }
}

impl Settings {
    /// For callers of fuse-overlayfs: what is unknown costs a warning, what is given again counts the last time, and metacopy
    /// is off unless it is asked for.
    pub fn compatible() -> Self {
        Self { compatible: true, ..Self::default() }
    }

    /// What was ignored but should be known.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Puts a lower layer below those given before.
    pub fn add_lower(&mut self, path: &Path) {
        self.lowers.push(path.to_owned());
    }

    /// Names the upper layer.
    pub fn set_upper(&mut self, path: &Path) -> Result<(), ConfigError> {
        put_once(&mut self.upper, path, "upper directory", self.compatible)
    }

    /// Names the work directory.
    pub fn set_work(&mut self, path: &Path) -> Result<(), ConfigError> {
        put_once(&mut self.work, path, "work directory", self.compatible)
    }

    /// Says when copies reach the disk; `volatile` alone says it too.
    fn set_durability(&mut self, durability: Durability) -> Result<(), ConfigError> {
        if self.durability.is_some_and(|before| before != durability) {
            return wrong("volatile and durability=... say different things: leave one out".to_owned());
        }
        self.durability = Some(durability);
        self.union.durability = durability;
        Ok(())
    }

    /// From now on, options that are unknown mean nothing.
    pub fn ignore_unknown(&mut self) {
        self.ignore_unknown = true;
    }

    /// Takes a list as it follows `-o`: `NAME` or `NAME=VALUE`, between commas. A backslash takes the meaning from the
    /// character after it, and commas in a quoted value belong to that; empty options mean nothing.
    pub fn set_list(&mut self, list: &OsStr) -> Result<(), ConfigError> {
        for option in split_list(list.as_bytes()).into_iter().filter(|option| !option.is_empty()) {
            match option.iter().position(|b| *b == b'=') {
                Some(at) => {
                    let (name, value) = option.split_at(at);
                    self.set(OsStr::from_bytes(name), Some(OsStr::from_bytes(value.get(1..).unwrap_or_default())))?;
                }
                None => self.set(OsStr::from_bytes(option), None)?,
            }
        }
        Ok(())
    }

    /// Takes one option, in the form that it has in a list.
    ///
    /// # Errors
    /// It is unknown, its value is missing, superfluous or of another form.
    pub fn set(&mut self, name: &OsStr, value: Option<&OsStr>) -> Result<(), ConfigError> {
        if is_for_others(name) {
            return Ok(());
        }
        let Some(Known { name, action, value: expected, .. }) = options::known(name) else {
            return self.unknown(name);
        };
        match value {
            _ if *action == Action::Others => Ok(()),
            None if !expected.is_empty() => wrong(format!("the option {name} needs a value: {name}=...")),
            Some(_) if expected.is_empty() => wrong(format!("the option {name} takes no value")),
            _ => self.apply(name, *action, value.unwrap_or_default()),
        }
    }

    fn unknown(&mut self, name: &OsStr) -> Result<(), ConfigError> {
        if self.ignore_unknown || self.compatible && foreign::is_known(name) {
            return Ok(());
        }
        let ours = options::all().filter(|known| !matches!(known.action, Action::Others | Action::Remount));
        let nearest = nearest(name, ours.map(|known| known.name));
        if self.compatible {
            let warning = format!("unknown mount option \"{}\" ignored: did you mean \"{nearest}\"?", name.display());
            self.warnings.push(warning);
            return Ok(());
        }
        wrong(format!("unknown mount option \"{}\": did you mean \"{nearest}\"?", name.display()))
    }

    fn apply(&mut self, name: &str, action: Action, value: &OsStr) -> Result<(), ConfigError> {
        match action {
            Action::Lowers => return self.set_lowers(value),
            Action::Upper => return self.set_upper(&unescape(value.as_bytes())),
            Action::Work => return self.set_work(&unescape(value.as_bytes())),
            Action::UserXattr => self.userxattr = true,
            Action::TrustedLowers => self.trusted_lowers = true,
            Action::Volatile => self.set_durability(Durability::Volatile)?,
            Action::Durability => {
                let values = [
                    ("batched", Durability::Batched),
                    ("strict", Durability::Strict),
                    ("volatile", Durability::Volatile),
                ];
                self.set_durability(one_of(name, value, &values)?)?;
            }
            Action::Timeout => self.union.timeout = Some(seconds(name, value)?),
            // What `auto` stands for: see docs/PERFORMANCE.md.
            Action::Io => {
                let values = [
                    ("auto", Io::default()),
                    ("writethrough", Io::WriteThrough),
                    ("cached", Io::Cached),
                    ("passthrough", Io::Passthrough),
                ];
                self.union.io = one_of(name, value, &values)?;
            }
            Action::RedirectDir => {
                // As the kernel has it: what is there is followed, and nothing added.
                let values = [("on", true), ("off", false), ("follow", false)];
                self.union.redirect_dir = one_of(name, value, &values)?;
            }
            Action::Metacopy => self.metacopy = Some(one_of(name, value, &[("on", true), ("off", false)])?),
            Action::Whiteouts => {
                let values = [("overlay", Whiteouts::Overlay), ("dot", Whiteouts::Dot)];
                self.union.whiteouts = one_of(name, value, &values)?;
            }
            Action::Xino => {
                let values = [("auto", Xino::Auto), ("on", Xino::On), ("off", Xino::Off)];
                self.union.xino = one_of(name, value, &values)?;
            }
            Action::NoAcl => self.union.acl = false,
            Action::UidMapping => self.union.ids.uids = id_map(name, value)?,
            Action::GidMapping => self.union.ids.gids = id_map(name, value)?,
            Action::SquashToRoot => self.union.ids.squash_to_root = true,
            Action::SquashToUid => self.union.ids.squash_to_uid = Some(id(name, value)?),
            Action::SquashToGid => self.union.ids.squash_to_gid = Some(id(name, value)?),
            Action::StaticNlink => self.union.static_nlink = true,
            Action::XattrPermissions => {
                let values = [("0", None), ("1", Some(Form::Security)), ("2", Some(Form::User))];
                self.xattr_permissions = one_of(name, value, &values)?;
            }
            Action::Threads => self.threads = Some(count(name, value, 1..=THREADS_MAX)?),
            Action::IoUring => {
                self.ring = one_of(name, value, &[("auto", Ring::Auto), ("on", Ring::On), ("off", Ring::Off)])?;
            }
            Action::CacheEntries => self.union.cache_entries = count(name, value, 0..=CACHE_MAX)?,
            Action::Fsync => self.union.fsync = is_on(name, value)?,
            Action::Writeback => self.union.io = if is_on(name, value)? { Io::Cached } else { Io::WriteThrough },
            Action::Threaded => self.threads = if is_on(name, value)? { None } else { Some(1) },
            Action::NoXattrs if is_on(name, value)? => (self.union.xattrs, self.union.acl) = (false, false),
            Action::NoXattrs => self.union.xattrs = true,
            Action::Ino32 => self.union.ino32 = true,
            Action::Debug => self.foreground = true,
            Action::Source => self.source = source(value)?,
            Action::AllowOther => self.allow_other = true,
            Action::AllowRoot => self.allow_root = true,
            Action::Recover => self.recover = true,
            Action::Set(flag) => self.flags.insert(flag),
            Action::Clear(flag) => self.flags.remove(flag),
            Action::Remount => {
                return wrong("a mount's flags are changed without its helper: mount -i -o remount,... DIR".to_owned());
            }
            Action::Nothing | Action::Others => {}
        }
        Ok(())
    }

    fn set_lowers(&mut self, value: &OsStr) -> Result<(), ConfigError> {
        if self.compatible {
            self.lowers.clear();
        }
        if !self.lowers.is_empty() {
            return wrong("the lower directories are given twice: use either --lower or one lowerdir=".to_owned());
        }
        for path in split_unescaped(value.as_bytes(), b':') {
            if path.is_empty() && self.compatible {
                continue;
            }
            if path.is_empty() {
                return wrong(format!("lowerdir={}: there is an empty path between the colons", value.display()));
            }
            self.lowers.push(unescape(path));
        }
        Ok(())
    }

    /// Checks the options against each other and makes the configuration of a mount.
    pub fn into_config(self, mountpoint: &Path, foreground: bool) -> Result<Config, ConfigError> {
        if self.lowers.is_empty() {
            return wrong("no lower directory: name at least one with --lower DIR or -o lowerdir=DIR".to_owned());
        }
        let mut paths = self.lowers.iter().chain(&self.upper).chain(&self.work);
        if mountpoint.as_os_str().is_empty() || paths.any(|path| path.as_os_str().is_empty()) {
            return wrong("an empty path names no directory".to_owned());
        }
        if self.upper.is_none()
            && let Some(work) = &self.work
            && !self.compatible
        {
            return wrong(format!("the work directory {} needs an upper directory: add --upper", work.display()));
        }
        let mut union = self.union;
        // A layer that changes would change under its metadata copies; without redirects they could not be renamed as such.
        let by_default = !self.compatible && union.timeout != Some(Duration::ZERO) && union.redirect_dir;
        union.metacopy = self.metacopy.unwrap_or(by_default);
        let mut flags = self.flags;
        let work = match &self.upper {
            None => {
                flags.insert(MsFlags::MS_RDONLY);
                None
            }
            Some(upper) => Some(self.work.map_or_else(|| default_work(upper), Ok)?),
        };
        Ok(Config {
            stack: StackSpec {
                lowers: self.lowers,
                upper: self.upper,
                work,
                userxattr: self.userxattr,
                trusted_lowers: self.trusted_lowers,
                xattr_permissions: self.xattr_permissions,
            },
            union,
            mount: MountOptions {
                source: self.source,
                flags,
                allow_other: self.allow_other,
                allow_root: self.allow_root,
            },
            mountpoint: mountpoint.to_owned(),
            threads: self.threads.unwrap_or_else(default_threads),
            ring: self.ring,
            foreground: foreground || self.foreground,
            recover: self.recover,
        })
    }
}

/// Options of fstab that systemd and others keep notes in.
fn is_for_others(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b"x-") || name.starts_with(b"X-")
}

fn put_once(place: &mut Option<PathBuf>, path: &Path, what: &str, again: bool) -> Result<(), ConfigError> {
    match place.replace(path.to_owned()).filter(|_| !again) {
        None => Ok(()),
        Some(first) => wrong(format!("the {what} is given twice: {} and {}", first.display(), path.display())),
    }
}

/// `.NAME.work` beside the upper directory NAME.
fn default_work(upper: &Path) -> Result<PathBuf, ConfigError> {
    // A directory that is missing is told later, with the others.
    let real = std::fs::canonicalize(upper).unwrap_or_else(|_| upper.to_owned());
    let Some(name) = real.file_name() else {
        return wrong(format!("no work directory can be made beside {}: name one with --work", upper.display()));
    };
    Ok(real.with_file_name(OsString::from_vec([b".", name.as_bytes(), b".work"].concat())))
}

fn default_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.clamp(*THREADS.start(), *THREADS.end())
}

fn one_of<T: Copy>(name: &str, value: &OsStr, values: &[(&str, T)]) -> Result<T, ConfigError> {
    match values.iter().find(|(known, _)| OsStr::new(known) == value) {
        Some((_, meaning)) => Ok(*meaning),
        None => {
            let known: Vec<&str> = values.iter().map(|(known, _)| *known).collect();
            wrong(format!("{name}={}: the value is one of {}", value.display(), known.join(", ")))
        }
    }
}

fn count(name: &str, value: &OsStr, range: RangeInclusive<usize>) -> Result<usize, ConfigError> {
    match value.to_str().and_then(|text| text.parse().ok()) {
        Some(n) if range.contains(&n) => Ok(n),
        _ => {
            let (first, last) = range.into_inner();
            wrong(format!("{name}={}: the value is a number from {first} to {last}", value.display()))
        }
    }
}

fn id(name: &str, value: &OsStr) -> Result<u32, ConfigError> {
    count(name, value, 0..=ID_MAX).map(|id| id as u32)
}

fn id_map(name: &str, value: &OsStr) -> Result<IdMap, ConfigError> {
    IdMap::parse(&value.to_string_lossy()).or_else(|why| wrong(format!("{name}: {why}")))
}

/// For options that are 1 or 0.
fn is_on(name: &str, value: &OsStr) -> Result<bool, ConfigError> {
    one_of(name, value, &[("1", true), ("0", false)])
}

fn seconds(name: &str, value: &OsStr) -> Result<Duration, ConfigError> {
    let parsed = value.to_str().and_then(|text| text.parse::<f64>().ok());
    match parsed.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        Some(duration) => Ok(duration),
        None => wrong(format!("{name}={}: the value is a number of seconds", value.display())),
    }
}

fn source(value: &OsStr) -> Result<OsString, ConfigError> {
    match value.len() {
        1..=SOURCE_MAX => Ok(value.to_owned()),
        _ => wrong(format!("the source is 1 to {SOURCE_MAX} bytes long: \"{}\"", value.display())),
    }
}

#[cfg(test)]
mod tests;
