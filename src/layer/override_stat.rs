//! Owner and permissions that an attribute says, instead of the object itself (`xattr_permissions`): for a mounter who can't
//! give files away. The attributes and their values are those of fuse-overlayfs and containers/storage.

use std::ffi::CStr;

use crate::error::{Errno, Result};
use crate::layer::Upper;
use crate::layer::stack::Stack;
use crate::layer::stage::Staged;
use crate::layer::upper::AsUpper;
use crate::sys;
use crate::sys::file::Stat;
use crate::sys::xattr::Target;

/// Which attribute owner and permissions are kept in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// `security.fuseoverlayfs.override_stat`, for root.
    Security,
    /// `user.containers.override_stat`.
    User,
}

const SECURITY: &CStr = c"security.fuseoverlayfs.override_stat";
const CONTAINERS: &CStr = c"user.containers.override_stat";
/// The older name, which is read.
const FUSE_OVERLAYFS: &CStr = c"user.fuseoverlayfs.override_stat";
/// All of them: none is a user's own attribute.
const ALL: [&CStr; 3] = [SECURITY, CONTAINERS, FUSE_OVERLAYFS];

/// The types that a value may end with; of the devices with their numbers.
const TYPES: [(&str, u32); 6] = [
    ("file", libc::S_IFREG),
    ("dir", libc::S_IFDIR),
    ("pipe", libc::S_IFIFO),
    ("socket", libc::S_IFSOCK),
    ("block", libc::S_IFBLK),
    ("char", libc::S_IFCHR),
];

impl Form {
    /// Where it is written.
    pub fn name(self) -> &'static CStr {
        match self {
            Self::Security => SECURITY,
            Self::User => CONTAINERS,
        }
    }

    /// Where it is read, the first that is there.
    fn read_from(self) -> &'static [&'static CStr] {
        match self {
            Self::Security => &[SECURITY],
            Self::User => &[CONTAINERS, FUSE_OVERLAYFS],
        }
    }

    /// Whether an attribute is one of these, and not the user's.
    pub fn hides(name: &[u8]) -> bool {
        ALL.iter().any(|own| own.to_bytes() == name)
    }

    /// Whether an object of that status takes the attribute, and shows what it says.
    pub fn is_for(stat: &Stat) -> bool {
        stat.is_file() || stat.is_dir()
    }
}

/// What the attribute says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OverrideStat {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// The type, and for a device its number, of what is stored as a regular file but is none.
    pub special: Option<(u32, u64)>,
}

impl OverrideStat {
    /// What has to be kept to show that status.
    pub fn of(stat: &Stat) -> Self {
        let special = (!Form::is_for(stat)).then(|| (stat.format(), stat.rdev));
        Self { uid: stat.uid, gid: stat.gid, mode: stat.mode & 0o7777, special }
    }

    /// Reads `uid:gid:mode[:type[-major-minor]]` on an object of that status.
    ///
    /// # Errors
    /// `EIO` for a value that makes no sense there.
    pub fn parse(value: &[u8], on: &Stat) -> Result<Self> {
        Self::read(value, on).ok_or(Errno::EIO)
    }

    fn read(value: &[u8], on: &Stat) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let mut fields = text.trim_end_matches('\0').splitn(4, ':');
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        // The type that may be in it, too, is the one that the object has.
        let mode = u32::from_str_radix(fields.next()?, 8).ok()? & 0o7777;
        let (format, rdev) = fields.next().map_or(Some((on.format(), 0)), parse_type)?;
        let special = match (on.is_dir(), format) {
            _ if format == on.format() => None,
            (false, libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFBLK | libc::S_IFCHR) => Some((format, rdev)),
            _ => return None,
        };
        Some(Self { uid, gid, mode, special })
    }

    /// The attribute's value.
    pub fn encode(&self) -> Vec<u8> {
        let kind = self.special.map(|(format, rdev)| {
            let name = TYPES.iter().find(|(_, known)| *known == format).map_or("file", |(name, _)| name);
            match format {
                libc::S_IFBLK | libc::S_IFCHR => format!(":{name}-{}-{}", libc::major(rdev), libc::minor(rdev)),
                _ => format!(":{name}"),
            }
        });
        format!("{}:{}:{:o}{}", self.uid, self.gid, self.mode, kind.unwrap_or_default()).into_bytes()
    }

    /// A real status as the attribute has it show.
    pub fn apply(&self, stat: &Stat) -> Stat {
        let (format, rdev) = self.special.unwrap_or((stat.format(), stat.rdev));
        Stat { uid: self.uid, gid: self.gid, mode: format | self.mode, rdev, ..*stat }
    }
}

fn parse_type(text: &str) -> Option<(u32, u64)> {
    let (name, format) = TYPES.iter().find(|(name, _)| text.starts_with(name))?;
    if !matches!(*format, libc::S_IFBLK | libc::S_IFCHR) {
        return Some((*format, 0));
    }
    let (major, minor) = text.get(name.len()..)?.trim_start_matches('-').split_once('-')?;
    Some((*format, libc::makedev(major.parse().ok()?, minor.parse().ok()?)))
}

impl Stack {
    /// What the attribute says of an object, if such attributes count in this union and it has one.
    ///
    /// # Errors
    /// `EIO`, and a line in the log, for a value that makes no sense.
    pub fn override_stat(&self, target: Target<'_>, stat: &Stat) -> Result<Option<OverrideStat>> {
        let Some(form) = self.xattr_permissions().filter(|_| Form::is_for(stat)) else { return Ok(None) };
        for name in form.read_from() {
            let value = match sys::xattr::get(target, name) {
                // Who may not read it is shown what the filesystem says.
                Err(Errno::ENODATA | Errno::EOPNOTSUPP | Errno::EACCES) => continue,
                value => value?,
            };
            return OverrideStat::parse(&value, stat).map(Some).inspect_err(|_| {
                log::error!("bad {name:?} \"{}\" on inode {}", value.escape_ascii(), stat.ino);
            });
        }
        Ok(None)
    }

    /// The status of an object with owner, permissions and type as its attribute has them.
    ///
    /// # Errors
    /// As [`Stack::override_stat`].
    pub fn overridden(&self, target: Target<'_>, stat: Stat) -> Result<Stat> {
        Ok(self.override_stat(target, &stat)?.map_or(stat, |said| said.apply(&stat)))
    }
}

impl Upper {
    /// Has the attribute say that of an object of upper.
    ///
    /// # Errors
    /// As setxattr(2); `EINVAL` in a union that keeps no such attributes.
    pub fn set_override(&self, object: &impl AsUpper, said: &OverrideStat) -> Result<()> {
        let form = self.xattr_permissions.ok_or(Errno::EINVAL)?;
        self.set_xattr(object, form.name(), &said.encode(), 0)
    }

    /// A fifo, socket or device in the making; a regular file where it can't be made, or its owner not be kept.
    ///
    /// # Errors
    /// As mknod(2).
    pub fn stage_special(&self, mode: u32, rdev: u64) -> Result<Staged<'_>> {
        match self.xattr_permissions {
            None => self.stage_node(mode, rdev),
            Some(Form::User) => self.stage_file(),
            Some(Form::Security) => match self.stage_node(mode, rdev) {
                Err(Errno::EPERM) => self.stage_file(),
                made => made,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::ObjKey;
    use crate::layer::real::void_stat;
    use crate::name::Name;

    fn stat(mode: u32) -> Stat {
        Stat { mode, uid: 1, gid: 2, ..void_stat(ObjKey { dev: 1, ino: 2 }, &Name::new(b"x").unwrap()) }
    }

    #[test]
    fn values_are_read_as_others_write_them() {
        let (file, dir) = (stat(libc::S_IFREG | 0o600), stat(libc::S_IFDIR | 0o700));
        let cases = [
            ("0:0:755", &file, (0, 0, 0o755, None)),
            ("0:0:0755", &dir, (0, 0, 0o755, None)),
            ("5:6:100644", &file, (5, 6, 0o644, None)),
            ("5:6:04755:file", &file, (5, 6, 0o4755, None)),
            ("5:6:1777:dir", &dir, (5, 6, 0o1777, None)),
            ("5:6:600:pipe", &file, (5, 6, 0o600, Some((libc::S_IFIFO, 0)))),
            ("5:6:600:socket", &file, (5, 6, 0o600, Some((libc::S_IFSOCK, 0)))),
            ("0:6:660:block-8-1", &file, (0, 6, 0o660, Some((libc::S_IFBLK, libc::makedev(8, 1))))),
            ("0:0:666:char-1-3", &file, (0, 0, 0o666, Some((libc::S_IFCHR, libc::makedev(1, 3))))),
        ];
        for (value, on, (uid, gid, mode, special)) in cases {
            let said = OverrideStat::parse(value.as_bytes(), on).unwrap();
            assert_eq!(said, OverrideStat { uid, gid, mode, special }, "{value}");
            let shown = said.apply(on);
            assert_eq!(OverrideStat::of(&shown), said, "{value}");
            assert_eq!(OverrideStat::parse(&said.encode(), on), Ok(said), "{value}");
        }
        assert_eq!(OverrideStat::parse(b"0:0:660:block-8-1", &file).unwrap().encode(), b"0:0:660:block-8-1");
    }

    #[test]
    fn nonsense_is_an_error() {
        let file = stat(libc::S_IFREG | 0o600);
        let bad = ["", "0", "0:0", "a:0:644", "0:0:9", "0:0:644:", "0:0:644:odd", "0:0:644:char", "0:0:644:char-1"];
        for value in bad.into_iter().chain(["0:0:644:dir", "0:0:777:symlink", "-1:0:644", "0:0:644:char-x-1"]) {
            assert_eq!(OverrideStat::parse(value.as_bytes(), &file), Err(Errno::EIO), "{value}");
        }
        assert_eq!(OverrideStat::parse(b"0:0:644:file", &stat(libc::S_IFDIR)), Err(Errno::EIO));
        assert_eq!(OverrideStat::parse(b"0:0:644:char-1-3", &stat(libc::S_IFDIR)), Err(Errno::EIO));
    }
}
