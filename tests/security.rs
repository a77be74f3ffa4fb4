//! What an untrusted layer, or a user without rights, must not be able to do.

mod common;

#[path = "security/access.rs"]
mod access;
#[path = "security/devices.rs"]
mod devices;
#[path = "security/marks.rs"]
mod marks;
#[path = "security/privileges.rs"]
mod privileges;
#[path = "security/reach.rs"]
mod reach;

fn main() {
    let lists = [reach::tests(), privileges::tests(), marks::tests(), access::tests(), devices::tests()];
    common::main(lists.into_iter().flatten().collect());
}
