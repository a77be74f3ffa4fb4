//! Each operation with the answers and errors that the man pages give. Most tests run four times:
//! in a plain directory, on lower objects, on upper objects and on ones made through the mount.

#[path = "posix/access.rs"]
mod access;
#[path = "posix/acl.rs"]
mod acl;
#[path = "posix/attributes.rs"]
mod attributes;
mod common;
#[path = "posix/data.rs"]
mod data;
#[path = "posix/listing.rs"]
mod listing;
#[path = "posix/namespace.rs"]
mod namespace;
#[path = "posix/opening.rs"]
mod opening;
#[path = "posix/special.rs"]
mod special;
#[path = "posix/xattrs.rs"]
mod xattrs;

fn main() {
    let lists = [
        attributes::tests(),
        opening::tests(),
        data::tests(),
        namespace::tests(),
        listing::tests(),
        xattrs::tests(),
        acl::tests(),
        access::tests(),
        special::tests(),
    ];
    common::main(lists.into_iter().flatten().collect());
}
