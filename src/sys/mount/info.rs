//! What is mounted where, from procfs. No filesystem is asked: this never waits for a FUSE daemon.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// The mount's number.
    pub id: u64,
    /// The number of the mount that it lies on.
    pub parent: u64,
    /// Device number of the filesystem, as st_dev tells it.
    pub dev: u64,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The filesystem's type.
    pub kind: OsString,
}

/// The mounts that this process sees.
pub fn mounts() -> std::io::Result<Vec<MountEntry>> {
    std::fs::read("/proc/self/mountinfo").map(|text| parse(&text))
}

/// The mounts that another process sees.
pub fn mounts_of(pid: u32) -> std::io::Result<Vec<MountEntry>> {
    std::fs::read(format!("/proc/{pid}/mountinfo")).map(|text| parse(&text))
}

/// The mount that a path leads to if it is a mountpoint: of several on one directory the topmost.
pub fn top_at<'a>(mounts: &'a [MountEntry], mountpoint: &Path) -> Option<&'a MountEntry> {
    let here = || mounts.iter().filter(|m| m.mountpoint == mountpoint);
    here().find(|m| !here().any(|above| above.parent == m.id && above.id != m.id))
}

/// Parses mountinfo; a line of another form is left out.
fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    // id parent major:minor root mountpoint options [tag...] - type source super-options
    let mut fields = line.split(|b| *b == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = fields.next()?;
    let colon = device.iter().position(|b| *b == b':')?;
    let dev = libc::makedev(
        u32::try_from(number(device.get(..colon)?)?).ok()?,
        u32::try_from(number(device.get(colon + 1..)?)?).ok()?,
    );
    let mountpoint = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    fields.find(|field| *field == b"-")?;
    let kind = OsString::from_vec(unescape(fields.next()?));
    Some(MountEntry { id, parent, dev, mountpoint, kind })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Undoes procfs's octal escapes (`\040` for a blank).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.first_chunk::<3>().filter(|_| *first == b'\\').and_then(|digits| {
            digits.iter().try_fold(0_u32, |n, d| matches!(d, b'0'..=b'7').then(|| n * 8 + u32::from(d - b'0')))
        });
        match octal.and_then(|n| u8::try_from(n).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = br"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:35 / /a\040b rw,nosuid shared:7 master:2 - fuse.layerfs layer\054fs rw,user_id=0
41 40 0:36 / /a\040b ro - fuse.layerfs layerfs ro
nonsense
42 22 0:x / /c rw - ext4 d rw
43 22 0:37 /sub /back\134slash rw - tmpfs tmpfs rw
";

    #[test]
    fn lines_are_parsed_and_others_left_out() {
        let mounts = parse(TEXT);
        assert_eq!(mounts.iter().map(|m| m.id).collect::<Vec<_>>(), [22, 40, 41, 43]);
        assert_eq!(mounts[1].mountpoint, Path::new("/a b"));
        assert_eq!(mounts[1].kind, "fuse.layerfs");
        assert_eq!(mounts[1].dev, libc::makedev(0, 35));
        assert_eq!(mounts[3].mountpoint, Path::new("/back\\slash"));
    }

    #[test]
    fn the_topmost_mount_is_found_in_any_order() {
        let mut mounts = parse(TEXT);
        assert_eq!(top_at(&mounts, Path::new("/a b")).map(|m| m.id), Some(41));
        mounts.reverse();
        assert_eq!(top_at(&mounts, Path::new("/a b")).map(|m| m.id), Some(41));
        assert_eq!(top_at(&mounts, Path::new("/")).map(|m| m.id), Some(22));
        assert_eq!(top_at(&mounts, Path::new("/a")), None);
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescape(br"a\04"), br"a\04");
        assert_eq!(unescape(br"\777"), br"\777");
        assert_eq!(unescape(br"\\"), br"\\");
        assert_eq!(unescape(br"\011x"), b"\tx");
    }

    #[test]
    fn this_machine_has_a_root_mount() {
        assert!(top_at(&mounts().unwrap(), Path::new("/")).is_some());
        assert!(mounts_of(std::process::id()).unwrap().iter().any(|m| m.mountpoint == Path::new("/")));
    }
}
