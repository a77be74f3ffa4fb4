//! POSIX ACLs as the kernel stores them (linux/posix_acl_xattr.h), as far as creating an object needs them.

const VERSION: u32 = 2;
const HEADER: usize = 4;
/// tag (16 bits), permissions (16), id (32).
const ENTRY: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// What a new object gets from its directory's default ACL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inherited {
    /// Its permission bits.
    pub mode: u32,
    /// Its access ACL; `None` if the bits say it all.
    pub access: Option<Vec<u8>>,
}

/// An ACL whose entries for single users and groups are for other ones; those that become nobody's are left out. `None` if it is
/// no ACL.
pub(super) fn with_ids<E>(
    acl: &[u8],
    user: impl Fn(u32) -> Result<Option<u32>, E>,
    group: impl Fn(u32) -> Result<Option<u32>, E>,
) -> Result<Option<Vec<u8>>, E> {
    let Some((header, entries)) = acl.split_at_checked(HEADER) else { return Ok(None) };
    let (entries, []) = entries.as_chunks::<ENTRY>() else { return Ok(None) };
    let mut mapped = header.to_vec();
    for entry in entries {
        let mut entry = *entry;
        let [tag @ .., _, _, _, _, _, _] = entry;
        let [.., a, b, c, d] = entry;
        let id = u32::from_le_bytes([a, b, c, d]);
        let id = match u16::from_le_bytes(tag) {
            USER => user(id)?,
            GROUP => group(id)?,
            _ => Some(id),
        };
        if let Some(id) = id {
            entry[4..].copy_from_slice(&id.to_le_bytes());
            mapped.extend_from_slice(&entry);
        }
    }
    Ok(Some(mapped))
}

/// Applies a default ACL to the mode that the creator asked for (posix_acl_create_masq of the kernel).
pub fn inherit(default: &[u8], mode: u32) -> Option<Inherited> {
    let (header, entries) = default.split_at_checked(HEADER)?;
    let (entries, []) = entries.as_chunks::<ENTRY>() else { return None };
    if u32::from_le_bytes(header.try_into().ok()?) != VERSION {
        return None;
    }
    let mut access = default.to_vec();
    let tags: Vec<u16> = entries.iter().map(|e| u16::from_le_bytes([e[0], e[1]])).collect();
    let has_mask = tags.contains(&MASK);
    let mut bits = 0;
    for (entry, tag) in access.get_mut(HEADER..)?.as_chunks_mut::<ENTRY>().0.iter_mut().zip(&tags) {
        let shift = match *tag {
            USER_OBJ => 6,
            GROUP_OBJ if !has_mask => 3,
            MASK => 3,
            OTHER => 0,
            _ => continue,
        };
        let permitted = u16::from_le_bytes([entry[2], entry[3]]) & (mode >> shift & 7) as u16;
        entry[2..4].copy_from_slice(&permitted.to_le_bytes());
        bits |= u32::from(permitted) << shift;
    }
    Some(Inherited { mode: mode & !0o777 | bits, access: (tags.len() > 3).then_some(access) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut acl = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            acl.extend_from_slice(&tag.to_le_bytes());
            acl.extend_from_slice(&perm.to_le_bytes());
            acl.extend_from_slice(&id.to_le_bytes());
        }
        acl
    }

    #[test]
    fn a_minimal_acl_only_limits_the_mode() {
        let default = acl(&[(USER_OBJ, 7, u32::MAX), (GROUP_OBJ, 5, u32::MAX), (OTHER, 0, u32::MAX)]);
        assert_eq!(inherit(&default, 0o666), Some(Inherited { mode: 0o640, access: None }));
    }

    #[test]
    fn the_mask_takes_the_group_bits() {
        let default = acl(&[(USER_OBJ, 7, !0), (0x02, 6, 1000), (GROUP_OBJ, 7, !0), (MASK, 7, !0), (OTHER, 5, !0)]);
        let inherited = inherit(&default, 0o1644).unwrap();
        assert_eq!(inherited.mode, 0o1644);
        let access = acl(&[(USER_OBJ, 6, !0), (0x02, 6, 1000), (GROUP_OBJ, 7, !0), (MASK, 4, !0), (OTHER, 4, !0)]);
        assert_eq!(inherited.access, Some(access));
    }

    #[test]
    fn nonsense_is_no_acl() {
        for bad in [&b""[..], b"\x02\0\0", b"\x03\0\0\0", b"\x02\0\0\0abc"] {
            assert_eq!(inherit(bad, 0o644), None);
        }
    }
}
