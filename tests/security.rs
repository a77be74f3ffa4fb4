//! What an untrusted layer, or a user without rights, must not be able to do.

mod common;

#[path = "security/privileges.rs"]
mod privileges;

fn main() {
    common::main(privileges::tests());
}
