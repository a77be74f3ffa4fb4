//! The origin mark's value: `struct ovl_fb` of the kernel's fs/overlayfs/overlayfs.h, a file handle with its filesystem.

use crate::sys::handle::FileHandle;

/// `OVL_FH_VERSION`.
const VERSION: u8 = 0;
/// `OVL_FH_MAGIC`.
const MAGIC: u8 = 0xfb;
/// version, magic, len, flags, type, uuid.
const HEADER: usize = 21;
/// `OVL_FH_FLAG_BIG_ENDIAN`: the byte order of the machine that wrote it.
const FLAG_BIG_ENDIAN: u8 = 1;
/// `OVL_FH_FLAG_ANY_ENDIAN`: readable in either byte order.
const FLAG_ANY_ENDIAN: u8 = 2;

/// The lower object that an upper one was copied from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The uuid of the filesystem that it is on.
    pub uuid: [u8; 16],
    /// Its file handle there.
    pub handle: FileHandle,
}

impl Origin {
    /// The mark's value; `None` for a handle that the format can't hold.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let len = u8::try_from(HEADER + self.handle.bytes.len()).ok()?;
        let kind = u8::try_from(self.handle.kind).ok()?;
        let flags = if cfg!(target_endian = "big") { FLAG_BIG_ENDIAN } else { 0 };
        let mut value = vec![VERSION, MAGIC, len, flags, kind];
        value.extend_from_slice(&self.uuid);
        value.extend_from_slice(&self.handle.bytes);
        Some(value)
    }

    /// Reads a mark; `None` for one that tells nothing: of another version, byte order or cut short.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (header, fid) = value.split_at_checked(HEADER)?;
        let [version, magic, len, flags, kind, uuid @ ..] = header else { return None };
        let foreign = (flags & FLAG_BIG_ENDIAN != 0) != cfg!(target_endian = "big");
        if *version != VERSION || *magic != MAGIC || usize::from(*len) != value.len() || fid.is_empty() {
            return None;
        }
        if foreign && flags & FLAG_ANY_ENDIAN == 0 {
            return None;
        }
        let handle = FileHandle { kind: i32::from(*kind), bytes: fid.to_vec() };
        Some(Self { uuid: uuid.try_into().ok()?, handle })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_read_back_is_the_mark_written() {
        let origin =
            Origin { uuid: *b"0123456789abcdef", handle: FileHandle { kind: 1, bytes: vec![1, 2, 3, 4, 5, 6, 7, 8] } };
        let value = origin.encode().unwrap();
        assert_eq!(Origin::parse(&value), Some(origin));
        for cut in 0..value.len() {
            assert_eq!(Origin::parse(&value[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn what_the_format_cannot_hold_is_not_written() {
        let handle = FileHandle { kind: 1, bytes: vec![0; 250] };
        assert_eq!(Origin { uuid: [0; 16], handle }.encode(), None);
    }
}
