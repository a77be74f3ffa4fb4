//! Safe functions over the system calls that nix lacks. All `unsafe` of the crate lives here.
#![allow(unsafe_code)] // the one place where the crate talks to the C library

pub mod backing;
pub mod boot;
pub mod copy;
pub mod dir;
pub mod fault;
pub mod file;
pub mod handle;
pub mod memory;
pub mod mount;
pub mod posix;
pub mod priority;
pub mod privilege;
pub mod process;
pub mod trace;
pub mod tree;
pub mod uring;
pub mod xattr;

use nix::errno::Errno;

/// Turns the C convention (-1 and errno) into a result.
fn check(ret: libc::c_long) -> Result<libc::c_long, Errno> {
    if ret < 0 { Err(Errno::last()) } else { Ok(ret) }
}
