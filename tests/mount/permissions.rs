//! Owners and permissions that are kept in an attribute, as programs and the kernel's checks see them.

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag};
use nix::unistd::mkfifo;

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::without_rights;
use crate::common::sys::{get_xattr, list_xattr, set_xattr};
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(owners_in_an_attribute).root(),
        t!(devices_in_files).root(),
        t!(permissions_of_ones_own),
        t!(the_form_of_root_is_for_root),
    ]
}

const KEPT: &str = "user.containers.override_stat";

fn kept(path: impl AsRef<Path>) -> String {
    String::from_utf8(get_xattr(path.as_ref(), KEPT).expect("the attribute")).expect("text")
}

fn shown(path: impl AsRef<Path>) -> (u32, u32, u32) {
    let stat = path.as_ref().symlink_metadata().expect("stat");
    (stat.uid(), stat.gid(), stat.mode() & 0o7777)
}

fn with_attributes() -> Union {
    Union::new(1).arguments(&["-o", "xattr_permissions=2"])
}

fn owners_in_an_attribute() {
    let mut union = with_attributes();
    make_dir(union.lower(0, "open"));
    set_xattr(&union.lower(0, "open"), KEPT, b"5:6:1777", 0).expect("set");
    put(union.lower(0, "program"), "content");
    set_xattr(&union.lower(0, "program"), KEPT, b"0:0:4766", 0).expect("set");
    let before = union.lower_trees();
    union.mount();
    assert_eq!(shown(union.at("open")), (5, 6, 0o1777));
    without_rights(1000, 2000, || {
        put(union.at("open/mine"), "secret");
        chmod(union.at("open/mine"), 0o600);
        make_dir(union.at("open/dir"));
        // The kernel's way of a write by somebody else.
        append(union.at("program"), "+");
    });
    assert_eq!((shown(union.at("program")), read(union.at("program"))), ((0, 0, 0o766), "content+".to_owned()));
    without_rights(1001, 2000, || {
        fails(fs::read(union.at("open/mine")), Errno::EACCES);
        fails(fs::set_permissions(union.at("open/mine"), Permissions::from_mode(0o777)), Errno::EPERM);
        fails(fs::remove_file(union.at("open/mine")), Errno::EPERM);
        fails(fs::read(union.upper("open/mine")), Errno::EACCES);
    });
    chown(union.at("open/dir"), 7, 8);
    union.remount();
    assert_eq!((shown(union.at("open/mine")), shown(union.at("open/dir")).0), ((1000, 2000, 0o600), 7));
    assert_eq!(
        (kept(union.upper("open/mine")), shown(union.upper("open/mine"))),
        ("1000:2000:600".to_owned(), (0, 0, 0o600))
    );
    assert_eq!(
        (kept(union.upper("program")), kept(union.upper("open"))),
        ("0:0:766".to_owned(), "5:6:1777".to_owned())
    );
    assert_eq!(list_xattr(&union.at("program")), Ok(Vec::new()));
    assert_eq!(get_xattr(&union.at("program"), KEPT), Err(Errno::ENODATA));
    assert_eq!(set_xattr(&union.at("program"), KEPT, b"0:0:4777", 0), Err(Errno::EPERM));
    union.umount();
    union.assert_lowers(&before);
}

fn devices_in_files() {
    let mut union = with_attributes();
    node(union.lower(0, "low"), SFlag::S_IFCHR, (1, 3));
    union.mount();
    node(union.at("zero"), SFlag::S_IFCHR, (1, 5));
    for name in ["low", "zero"] {
        chown(union.at(name), 1000, 1000);
        chmod(union.at(name), 0o600);
    }
    union.remount();
    without_rights(1000, 1000, || {
        let mut byte = [1];
        File::open(union.at("zero")).expect("open").read_exact(&mut byte).expect("read");
        assert_eq!(byte, [0]);
    });
    assert_eq!(
        (kept(union.upper("zero")), kept(union.upper("low"))),
        ("1000:1000:600:char-1-5".to_owned(), "1000:1000:600:char-1-3".to_owned())
    );
    assert!(stat(union.upper("zero")).is_file() && stat(union.at("zero")).file_type().is_char_device());
    let listed =
        fs::read_dir(union.at("")).expect("list").map(|entry| entry.expect("entry").file_type().expect("type"));
    assert!(listed.into_iter().all(|kind| kind.is_char_device()));
    union.umount();
}

/// What anybody may do.
fn permissions_of_ones_own() {
    let mut union = with_attributes();
    put(union.lower(0, "file"), "content");
    union.mount();
    let own = (stat(union.at("file")).uid(), stat(union.at("file")).gid());
    chmod(union.at("file"), 0o4711);
    make_dir(union.at("dir"));
    chmod(union.at("dir"), 0o1733);
    mkfifo(&union.at("dir/fifo"), Mode::S_IRUSR).expect("mkfifo");
    fs::hard_link(union.at("dir/fifo"), union.at("fifo")).expect("link");
    union.remount();
    assert_eq!(shown(union.at("file")), (own.0, own.1, 0o4711));
    assert_eq!(shown(union.at("dir")), (own.0, own.1, 0o1733));
    for name in ["fifo", "dir/fifo"] {
        assert!(stat(union.at(name)).file_type().is_fifo() && stat(union.upper(name)).is_file(), "{name}");
        assert_eq!(shown(union.at(name)).2, 0o400);
    }
    assert_eq!((shown(union.upper("file")).2, shown(union.upper("dir")).2), (0o600, 0o700));
    assert!(kept(union.upper("dir/fifo")).ends_with(":400:pipe"));
    append(union.at("file"), "+");
    assert_eq!(read(union.at("file")), "content+");
    fs::remove_dir_all(union.at("dir")).expect("remove");
    union.umount();
}

fn the_form_of_root_is_for_root() {
    let mut union = Union::new(1).arguments(&["-o", "xattr_permissions=1"]);
    put(union.lower(0, "file"), "content");
    match union.try_mount() {
        Ok(()) => {
            chown(union.at("file"), 5, 6);
            let kept = get_xattr(&union.upper("file"), "security.fuseoverlayfs.override_stat").expect("the attribute");
            assert_eq!((kept.as_slice(), shown(union.at("file"))), (&b"5:6:644"[..], (5, 6, 0o644)));
            union.umount();
        }
        Err(refused) => assert!(refused.stderr.contains("use xattr_permissions=2"), "{}", refused.stderr),
    }
}
