//! Values of attributes that owners are in, as the kernel stores them.

/// The id of an ACL's entries that are for no user or group by number.
pub const NO_ID: u32 = u32::MAX;

/// A POSIX ACL: version 2, then tag, permissions and id of each entry.
pub fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// One by which these users and groups may read, and nobody else but the owner.
pub fn acl_of_readers(users: &[u32], groups: &[u32]) -> Vec<u8> {
    let mut entries = vec![(1, 6, NO_ID)];
    entries.extend(users.iter().map(|uid| (2, 4, *uid)));
    entries.push((4, 0, NO_ID));
    entries.extend(groups.iter().map(|gid| (8, 4, *gid)));
    entries.extend([(16, 4, NO_ID), (32, 0, NO_ID)]);
    acl(&entries)
}

/// An effective file capability, as setcap writes it: version 2, which counts for everybody.
pub const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The same, or if `root` is named, where that is the root: version 3.
pub fn capability(root: Option<u32>) -> Vec<u8> {
    let mut value = CAPABILITY.to_vec();
    if let Some(root) = root {
        value[3] = 3;
        value.extend(root.to_le_bytes());
    }
    value
}
