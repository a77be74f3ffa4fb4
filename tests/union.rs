//! Tests of the merged namespace in this process, without a mount.
//!
//! The layers are made in `LAYERFS_TEST_DIR`, else in memory. What needs the superuser's rights is left out, with a
//! word on standard error, when the tests run without them.

mod union {
    pub mod fixture;

    mod attributes;
    #[cfg(debug_assertions)]
    mod calls;
    mod closed_directories;
    mod commit;
    mod concurrency;
    mod copy_up;
    mod create;
    mod file;
    mod hard_links;
    mod identity;
    mod ids;
    mod log;
    mod lookup;
    mod marks;
    mod memory;
    mod metacopy;
    mod on_disk;
    mod permissions;
    mod reach;
    mod read_only;
    mod readdir;
    mod recovery;
    mod remove;
    mod rename;
    mod setup;
    mod sizes;
    mod unlinked;
    #[path = "../common/values.rs"]
    mod values;
    mod whiteouts;
    mod xattr;
}

#[test]
fn as_an_ordinary_user() {
    assert!(union::fixture::passes_as_ordinary_user("union::"));
}
