//! The values of marks and ACLs, and the names of extended attributes: what is read is written back as the same.
#![no_main]

use layerfs::layer::index;
use layerfs::layer::marks::{Namespace, Redirect};
use layerfs::layer::origin::Origin;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(redirect) = Redirect::parse(bytes) {
        assert_eq!(redirect.encode(), bytes);
        let names: Vec<_> = bytes.strip_prefix(b"/").unwrap_or(bytes).split(|byte| *byte == b'/').collect();
        assert!(names.iter().all(|name| !matches!(name, [] | [b'.'] | [b'.', b'.']) && !name.contains(&0)));
    }
    if let Some(origin) = Origin::parse(bytes) {
        assert_eq!(Origin::parse(&origin.encode().unwrap()), Some(origin.clone()));
        assert!(index::name_of(&origin).is_none_or(|name| name.as_bytes().len() == 2 * bytes.len()));
    }
    for (upper, lower) in [(0, 0), (1, 2), (u32::MAX, u32::MAX)] {
        index::parse_links(bytes, upper, lower);
    }
    for namespace in [Namespace::Trusted, Namespace::User] {
        let stored = namespace.to_stored(bytes);
        assert_eq!(namespace.to_shown(&stored).as_deref(), Some(bytes), "set, it is shown as it was set");
        if let Some(shown) = namespace.to_shown(bytes) {
            assert_eq!(namespace.to_stored(&shown).as_ref(), bytes, "shown, it is found as it is stored");
        }
    }
    for mode in [0, 0o644, 0o7777] {
        if let Some(inherited) = layerfs::union::inherit_acl(bytes, mode) {
            assert_eq!(inherited.mode & !mode, 0, "nothing is permitted that was not asked for");
            assert!(inherited.access.is_none_or(|acl| acl.len() == bytes.len()));
        }
    }
});
