//! Where layerfs and the kernel's overlay differ, and may: each with its reason, and where practical a test that it is so.
//!
//! What the sequences leave out or make the same by hand, because it is different by design:
//! - times of access, of status change, of birth; st_dev; the size and st_nlink of directories;
//! - times of change after fallocate(2), and after truncate(2) to the size that a file has: FUSE decides (`perform.rs`);
//! - names of lower files with several, without the kernel's index (`generators.rs`): the kernel parts them;
//! - opaque marks that users set in the other namespace (`generators.rs`): layerfs reads both, so it escapes both;
//! - whiteouts in xattr form below a layer's root (`layers.rs`): the kernel doesn't remove directories that have them, and
//!   doesn't see those with nothing to delete;
//! - names that begin with `.wh.`, which layerfs reads as whiteouts, and redirects of more than 256 bytes.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, mknod};

use super::generators::{Features, Op, Open};
use super::perform::Answer;
use super::shown::{Object, PRESENT, Shown, Times};
use crate::common::Test;
use crate::common::files::{append, chmod, edit, mtime, open, put, read, set_times, stat};
use crate::common::sys::{SharedMap, WHITEOUT, rename2};
use crate::common::union::Union;
use crate::t;

/// One thing about an object that the two show differently.
pub struct Sight<'a> {
    pub kernel: &'a Shown,
    pub path: &'a str,
    pub what: &'a str,
    /// What layerfs shows, and what the kernel shows.
    pub values: (&'a str, &'a str),
    pub times: Times,
}

/// Two answers to one operation.
pub struct Answers<'a> {
    pub op: &'a Op,
    pub layerfs: &'a Answer,
    pub kernel: &'a Answer,
}

/// The list, for one pair of mounts.
pub struct Listed {
    features: Features,
    /// Inodes of which the kernel counts names that layerfs knows to be gone.
    miscounted: HashSet<u64>,
}

impl Listed {
    pub fn new(features: Features) -> Listed {
        Listed { features, miscounted: HashSet::new() }
    }

    /// Whether what they show of an object may differ so.
    pub fn has(&mut self, sight: &Sight) -> bool {
        self.is_of_another_upper(sight)
            || self.is_miscounted(sight)
            || self.is_dated_by_completion(sight)
            || self.has_several_numbers(sight)
    }

    /// A new upper brings a root of its own, and what hides names of a file in the layers below is in no layer any more.
    fn is_of_another_upper(&self, sight: &Sight) -> bool {
        sight.times == Times::Sealed && (sight.path.is_empty() || sight.what == "links")
    }

    /// layerfs doesn't copy a lower file up when one of its names goes. It remembers how many are gone where the kernel
    /// doesn't look.
    fn is_miscounted(&mut self, sight: &Sight) -> bool {
        let Some(number) = sight.kernel.number(sight.path).filter(|_| sight.what == "links") else { return false };
        let more = sight.values.0.parse::<u32>().ok() < sight.values.1.parse().ok();
        if sight.times == Times::Exact && more && sight.kernel.is_lower_only(sight.path) {
            self.miscounted.insert(number);
        }
        self.miscounted.contains(&number)
    }

    /// To open a metadata copy for writing completes it, and the kernel's overlay sets the time at which it did; whoever
    /// mounts that upper shows it.
    fn is_dated_by_completion(&self, sight: &Sight) -> bool {
        self.features.metacopy && sight.what == "mtime" && [sight.values.0, sight.values.1].contains(&PRESENT)
    }

    /// Without an index the kernel's overlay may show names of one file with different inode numbers.
    fn has_several_numbers(&self, sight: &Sight) -> bool {
        !self.features.index && sight.what == "first name"
    }

    /// Whether an object may be shown by one of the two only.
    pub fn has_extra(&self, by_layerfs: bool, object: &Object) -> bool {
        // Whiteouts in a directory of one layer only: the kernel lists that directory as it is.
        !by_layerfs && object.get("error").is_some_and(|error| error.starts_with("No such file"))
    }

    /// Whether the answers to an operation may differ so.
    pub fn has_answers(&self, answers: &Answers) -> bool {
        let (layerfs, kernel) = (answers.layerfs, answers.kernel);
        match answers.op {
            // Where symlinks can't have marks, it takes the names of one that was copied up for strangers.
            Op::Rename { .. } if self.features.userxattr && *kernel == Err(Errno::ESTALE) => layerfs.is_ok(),
            // Which of two obstacles a rename meets first.
            Op::Rename { .. } => *kernel == Err(Errno::EXDEV) && *layerfs == Err(Errno::ENOTEMPTY),
            // The kernel's overlay tells the number of links that the lower file has where it is.
            Op::Held { action: Open::Stat, .. } if layerfs != kernel => {
                let size = |answer: &Answer, end: &str| answer.as_ref().ok()?.strip_suffix(end).map(str::to_owned);
                size(layerfs, "removed").is_some_and(|same| size(kernel, "named") == Some(same))
            }
            // As `has_extra`.
            Op::Held { action: Open::List, .. } if layerfs != kernel => match (layerfs, kernel) {
                (Ok(layerfs), Ok(kernel)) => names(layerfs).is_subset(&names(kernel)),
                _ => false,
            },
            // It can't copy up what has no name any more: a file, or a directory.
            Op::Held { .. } => matches!(kernel, Err(Errno::EEXIST | Errno::ENOTDIR)) && layerfs.is_ok(),
            _ => false,
        }
    }
}

/// The names in a listing, as an answer has it.
fn names(answer: &str) -> HashSet<&str> {
    answer.trim_matches(['[', ']']).split(", ").collect()
}

pub fn tests() -> Vec<Test> {
    vec![
        t!(a_stale_mapping).root(),
        t!(directories_without_redirects).root(),
        t!(links_without_an_index).root(),
        t!(names_of_a_lower_file_that_are_gone).root(),
        t!(null_devices_and_whiteouts_of_users).root(),
        t!(whiteouts_in_a_directory_of_one_layer).root(),
        t!(names_of_one_symlink_without_marks).root(),
        t!(unnamed_files).root(),
        t!(a_copy_up_of_what_has_no_name).root(),
        t!(a_copy_up_of_a_directory_without_a_name).root(),
        t!(the_links_of_what_has_no_name).root(),
        t!(the_time_of_a_completed_metadata_copy).root(),
    ]
}

/// Does the same on both, on the same layers.
fn on_both(prepare: impl Fn(&Union), options: &str, act: impl Fn(&Union, bool)) {
    for is_layerfs in [true, false] {
        let mut union = Union::new(1);
        prepare(&union);
        match is_layerfs {
            true => {
                union.mount();
                act(&union, true);
                union.umount();
            }
            false => {
                let kernel = union.kernel(options);
                act(&union, false);
                kernel.umount();
            }
        }
    }
}

const ON: &str = "redirect_dir=on,metacopy=on,index=on";

/// The kernel maps the lower file itself; layerfs's mapping is the union's file.
fn a_stale_mapping() {
    let file = |union: &Union| put(union.lower(0, "file"), "lower");
    on_both(file, ON, |union, is_layerfs| {
        let early = open(union.at("file"));
        let map = SharedMap::new(&early, 5, false).expect("mmap");
        assert_eq!(map.read(), b"lower");
        edit(union.at("file")).write_all_at(b"UPPER", 0).expect("write");
        assert_eq!(map.read(), if is_layerfs { b"UPPER" } else { b"lower" });
    });
}

/// `redirect_dir=on` is layerfs's default; the kernel's is off, and then a program has to copy.
fn directories_without_redirects() {
    let dir = |union: &Union| put(union.lower(0, "d/file"), "lower");
    on_both(dir, "redirect_dir=off,metacopy=off,index=on", |union, is_layerfs| {
        let renamed = rename2(&union.at("d"), &union.at("e"), 0);
        assert_eq!(renamed, if is_layerfs { Ok(()) } else { Err(Errno::EXDEV) });
    });
}

/// layerfs always has an index; without one the names of a lower file are parted by a copy-up.
fn links_without_an_index() {
    let linked = |union: &Union| {
        put(union.lower(0, "one"), "lower");
        fs::hard_link(union.lower(0, "one"), union.lower(0, "two")).expect("link");
    };
    on_both(linked, "redirect_dir=on,metacopy=on,index=off", |union, is_layerfs| {
        append(union.at("one"), " changed");
        assert_eq!(read(union.at("two")), if is_layerfs { "lower changed" } else { "lower" });
    });
}

/// layerfs copies nothing up to delete a name, and the kernel then counts the lower's names.
fn names_of_a_lower_file_that_are_gone() {
    let mut union = Union::new(1);
    put(union.lower(0, "one"), "lower");
    fs::hard_link(union.lower(0, "one"), union.lower(0, "two")).expect("link");
    union.mount();
    fs::remove_file(union.at("two")).expect("remove");
    assert_eq!(stat(union.at("one")).nlink(), 1);
    union.remount();
    assert_eq!(stat(union.at("one")).nlink(), 1);
    union.umount();
    let kernel = union.kernel(ON);
    assert_eq!(stat(union.at("one")).nlink(), 2);
    kernel.umount();
}

/// The kernel keeps users from making what would be a whiteout in upper; layerfs stores it otherwise.
fn null_devices_and_whiteouts_of_users() {
    on_both(
        |_| {},
        ON,
        |union, is_layerfs| {
            let made = mknod(&union.at("device"), SFlag::S_IFCHR, Mode::S_IRUSR, 0);
            assert_eq!(made, if is_layerfs { Ok(()) } else { Err(Errno::EPERM) });
            put(union.at("file"), "x");
            let renamed = rename2(&union.at("file"), &union.at("other"), WHITEOUT);
            assert_eq!(renamed, if is_layerfs { Ok(()) } else { Err(Errno::EINVAL) });
        },
    );
}

/// The kernel shows a directory that only one layer has as it is, with whiteouts that hide nothing, and whose names it then
/// doesn't find.
fn whiteouts_in_a_directory_of_one_layer() {
    let whiteout = |union: &Union| {
        put(union.lower(0, "d/file"), "lower");
        mknod(&union.lower(0, "d/whiteout"), SFlag::S_IFCHR, Mode::empty(), 0).expect("mknod");
    };
    on_both(whiteout, ON, |union, is_layerfs| {
        let shown = crate::common::files::names(union.at("d"));
        assert_eq!(shown, if is_layerfs { vec!["file"] } else { vec!["file", "whiteout"] });
        assert_eq!(fs::symlink_metadata(union.at("d/whiteout")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    });
}

/// A rename of one name of an object over another does nothing. Symlinks have no attributes of users, so that the kernel does not
/// know a copied one again; layerfs keeps its marks elsewhere.
fn names_of_one_symlink_without_marks() {
    let link = |union: &Union| symlink("target", union.lower(0, "one")).expect("symlink");
    on_both(link, "userxattr", |union, is_layerfs| {
        fs::hard_link(union.at("one"), union.at("two")).expect("link");
        let renamed = rename2(&union.at("one"), &union.at("two"), 0);
        assert_eq!(renamed, if is_layerfs { Ok(()) } else { Err(Errno::ESTALE) });
        assert_eq!(crate::common::files::names(union.at("")), ["one", "two"]);
    });
}

/// The FUSE library can't carry O_TMPFILE yet.
fn unnamed_files() {
    on_both(
        |_| {},
        ON,
        |union, is_layerfs| {
            let unnamed = crate::common::sys::open(&union.at(""), libc::O_TMPFILE | libc::O_RDWR, 0o600);
            assert_eq!(unnamed.err(), is_layerfs.then_some(Errno::EOPNOTSUPP));
        },
    );
}

/// The kernel can't bring up a lower file that was unlinked; to layerfs it is as good as any that is open.
fn a_copy_up_of_what_has_no_name() {
    let file = |union: &Union| put(union.lower(0, "file"), "lower");
    on_both(file, ON, |union, is_layerfs| {
        let held = open(union.at("file"));
        fs::remove_file(union.at("file")).expect("remove");
        let changed = held.set_permissions(fs::Permissions::from_mode(0o600));
        assert_eq!(changed.is_ok(), is_layerfs, "{changed:?}");
    });
}

/// As files.
fn a_copy_up_of_a_directory_without_a_name() {
    let dir = |union: &Union| fs::create_dir(union.lower(0, "d")).expect("mkdir");
    on_both(dir, ON, |union, is_layerfs| {
        let held = open(union.at("d"));
        fs::remove_dir(union.at("d")).expect("rmdir");
        let changed = held.set_permissions(fs::Permissions::from_mode(0o700));
        assert_eq!(changed.is_ok(), is_layerfs, "{changed:?}");
    });
}

/// To the kernel a lower file that was unlinked has the links that it has in its layer; layerfs says that it has none.
fn the_links_of_what_has_no_name() {
    let file = |union: &Union| put(union.lower(0, "file"), "lower");
    on_both(file, ON, |union, is_layerfs| {
        let held = open(union.at("file"));
        fs::remove_file(union.at("file")).expect("remove");
        assert_eq!(held.metadata().expect("fstat").nlink(), u64::from(!is_layerfs));
    });
}

/// The kernel sets the time at which it brought the data, layerfs keeps the file's.
fn the_time_of_a_completed_metadata_copy() {
    let mut union = Union::new(1);
    for name in ["one", "two"] {
        put(union.lower(0, name), "lower");
        set_times(union.lower(0, name), (5, 0), (5, 0));
    }
    let kernel = union.kernel(ON);
    chmod(union.at("one"), 0o600);
    chmod(union.at("two"), 0o600);
    drop(edit(union.at("one")));
    assert_ne!(mtime(union.at("one")), (5, 0));
    kernel.umount();
    union.mount();
    drop(edit(union.at("two")));
    append(union.at("one"), "");
    fs::rename(union.at("two"), union.at("three")).expect("rename");
    assert_eq!(mtime(union.at("three")), (5, 0));
    union.assert_lasting();
}
