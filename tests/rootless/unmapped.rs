//! An ordinary user's mount over layers with files of others, which the user can't give a copy to.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::PoisonError;

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::layerfs_binary;
use crate::common::mount::{Ended, run};
use crate::common::sys::{get_xattr, set_xattr};
use crate::common::union::Union;
use crate::common::values::CAPABILITY;
use crate::{no_fusermount, no_namespace, no_user, t};

pub fn tests() -> Vec<Test> {
    vec![
        t!(copies_of_files_of_others_have_no_privileges).root().needs(no_user).needs(no_fusermount),
        t!(copies_in_a_user_namespace_have_what_counts_there).root().needs(no_user).needs(no_namespace),
        t!(files_of_others_are_read_only_in_a_user_namespace).root().needs(no_user).needs(no_namespace),
        t!(who_has_the_number_of_nobody_owns_nothing_of_others).root().needs(no_user).needs(no_full_map),
        t!(squashed_files_of_others_can_be_changed).root().needs(no_user).needs(no_namespace),
        t!(a_user_keeps_the_id_in_a_namespace).root().needs(no_user).needs(no_full_map),
        t!(owners_in_an_attribute_in_a_namespace).root().needs(no_user).needs(no_full_map),
    ]
}

fn user() -> (u32, u32) {
    crate::user().expect("the user")
}

/// Runs a script as the user, perhaps `through` something, where the union is mounted on `mnt`.
#[track_caller]
fn inside(union: &Union, through: &[&str], script: &str) -> Ended {
    inside_with(union, through, "rw", script)
}

/// The same, mounted with options.
#[track_caller]
fn inside_with(union: &Union, through: &[&str], options: &str, script: &str) -> Ended {
    let _alone = crate::ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (uid, gid) = user();
    for path in ["upper", "work", "mnt"] {
        chown(union.root().join(path), uid, gid);
    }
    // The user may not reach the build's directories.
    let binary = union.root().join("layerfs");
    fs::copy(layerfs_binary(), &binary).expect("copy the program");
    let whole = format!(
        "./layerfs mount --lower lower0 --upper upper --work work -o {options} mnt || exit 9; (cd mnt && {script}); ended=$?; \
         ./layerfs umount mnt || exit 8; exit $ended"
    );
    let mut words = [through, &["sh", "-c", &whole]].concat().into_iter();
    let mut command = Command::new(words.next().expect("a program"));
    command.args(words).current_dir(union.root()).env("HOME", "/").uid(uid).gid(gid);
    run(&mut command)
}

const NAMESPACE: [&str; 2] = ["unshare", "-Urm"];

/// With a number for everybody in the user's range, as container engines make it.
const FULL_MAP: [&str; 4] = ["unshare", "-Um", "--map-auto", "--map-root-user"];

fn no_full_map() -> Option<String> {
    let (uid, gid) = crate::user()?;
    let mut command = Command::new(FULL_MAP[0]);
    let made = command.args(&FULL_MAP[1..]).arg("true").uid(uid).gid(gid).status();
    (!made.is_ok_and(|status| status.success())).then(|| "needs newuidmap, and a range in /etc/subuid".to_owned())
}

/// A file of each kind for an owner, in a directory of the user's.
fn privileged_files(union: &Union, owner: &str, id: u32) {
    for (kind, bits) in [("suid", 0o4755), ("sgid", 0o2755), ("capable", 0o755)] {
        let path = union.lower(0, &format!("d/{kind}-{owner}"));
        put(&path, "content");
        chown(&path, id, id);
        chmod(&path, bits);
        if kind == "capable" {
            set_xattr(&path, "security.capability", &CAPABILITY, 0).expect("capability");
        }
    }
    let (uid, gid) = user();
    chown(union.lower(0, "d"), uid, gid);
    chown(union.lower(0, ""), uid, gid);
}

/// Moves each of them, which copies it up.
const MOVE_ALL: &str = "for f in d/*; do mv $f $f-moved || exit 1; done";

/// What is left on the copy, which is the user's.
#[track_caller]
fn assert_copy(union: &Union, name: &str, bits: u32) {
    let path = union.upper(&format!("d/{name}-moved"));
    let found = stat(&path);
    assert_eq!((found.uid(), found.gid()), user(), "{name}");
    assert_eq!(format!("{:o}", mode(&path)), format!("{bits:o}"), "{name}");
    match marked(&path, "user.overlay.metacopy") {
        None => assert_eq!(read(&path), "content"),
        Some(_) => assert_eq!(found.len(), "content".len() as u64, "the data stays where it is"),
    }
}

/// A copy's file capability.
fn capability(union: &Union, name: &str) -> Option<Vec<u8>> {
    get_xattr(&union.upper(&format!("d/{name}-moved")), "security.capability").ok()
}

/// The copy belongs to the user, and must not be a set-user-id program then.
fn copies_of_files_of_others_have_no_privileges() {
    let union = Union::new(1);
    let (uid, _) = user();
    for (owner, id) in [("root", 0), ("other", 4321), ("own", uid)] {
        privileged_files(&union, owner, id);
    }
    let before = union.lower_trees();
    inside(&union, &[], MOVE_ALL).success();
    for owner in ["root", "other"] {
        for kind in ["suid", "sgid", "capable"] {
            assert_copy(&union, &format!("{kind}-{owner}"), 0o755);
        }
        assert_eq!(capability(&union, &format!("capable-{owner}")), None, "{owner}");
    }
    assert_copy(&union, "suid-own", 0o4755);
    assert_copy(&union, "sgid-own", 0o2755);
    assert_copy(&union, "capable-own", 0o755);
    assert_eq!(capability(&union, "capable-own"), None, "not the user's to give");
    union.assert_lowers(&before);
}

/// A file capability comes up as one that counts in that namespace only, where the user has them all.
fn copies_in_a_user_namespace_have_what_counts_there() {
    let union = Union::new(1);
    privileged_files(&union, "own", user().0);
    let before = union.lower_trees();
    inside(&union, &NAMESPACE, MOVE_ALL).success();
    assert_copy(&union, "suid-own", 0o4755);
    assert_copy(&union, "sgid-own", 0o2755);
    assert_copy(&union, "capable-own", 0o755);
    // Version 3 ends with the id of the root whose namespace it counts in.
    let kept = capability(&union, "capable-own").expect("a capability");
    let (uid, _) = user();
    assert_eq!((kept.len(), &kept[20..]), (24, &uid.to_le_bytes()[..]), "{kept:?}");
    union.assert_lowers(&before);
}

/// The namespace's root owns what is the user's, and nothing of other people's: the kernel lets nobody there change, rename
/// or remove what belongs to an id without a number.
fn files_of_others_are_read_only_in_a_user_namespace() {
    let union = Union::new(1);
    let (uid, _) = user();
    for (name, bits, owner) in [("root", 0o666, 0), ("other", 0o644, 4321), ("own", 0o644, uid), ("secret", 0o600, 0)] {
        put(union.lower(0, name), "content");
        chown(union.lower(0, name), owner, owner);
        chmod(union.lower(0, name), bits);
    }
    chown(union.lower(0, ""), uid, uid);
    let script = "for f in root other; do for c in 'chmod 600' 'chown 0' 'touch -d@1' 'truncate -s1' 'rm -f' 'mv -t d'; do \
                  $c $f 2>/dev/null && echo $c $f; done; done; cat secret 2>/dev/null; chmod 600 own; cat root other";
    let ended = inside(&union, &NAMESPACE, &format!("mkdir d; {script}")).success();
    assert_eq!(ended.stdout, "contentcontent", "nothing of it worked, reading did");
    assert_eq!(names(union.upper("")), ["d", "own"]);
    assert_eq!(mode(union.upper("own")), 0o600);
}

/// There stat shows those without a number as 65534, and so it shows the local user who has that number.
fn who_has_the_number_of_nobody_owns_nothing_of_others() {
    let union = Union::new(1);
    let (uid, _) = user();
    for (name, bits) in [("file", 0o644), ("secret", 0o600), ("dir", 0o755)] {
        if name == "dir" {
            put(union.lower(0, "dir/inside"), "content");
        } else {
            put(union.lower(0, name), "content");
        }
        chown(union.lower(0, name), 0, 0);
        chmod(union.lower(0, name), bits);
    }
    make_dir(union.lower(0, "open"));
    chmod(union.lower(0, "open"), 0o777);
    chown(union.lower(0, "open"), uid, uid);
    chown(union.lower(0, ""), uid, uid);
    let attempts = "for f in file dir; do for c in 'chmod 777' 'touch -d@1' 'rm -rf' 'mv -t open' 'ls -i'; do \
                    $c $f >/dev/null 2>&1 && echo $c $f; done; done; true > file; true > dir/new; cat secret; cat file";
    // What is its own is, in upper and in every way.
    let own = "cd open; echo mine > mine && chmod 600 mine && touch -d@1 mine && mkdir own && mv mine own/mine && cat own/mine \
               && ln -s x link && mkfifo fifo && rm link fifo && stat -c %u own/mine own";
    put(union.root().join("attempts"), format!("exec 2>/dev/null; {attempts}; {own}"));
    let script = "setpriv --reuid=65534 --regid=65534 --clear-groups sh ../attempts";
    let ended = inside(&union, &FULL_MAP, script).success();
    assert_eq!(ended.stdout, "ls -i file\nls -i dir\ncontentmine\n65534\n65534\n");
    assert_eq!(names(union.upper("")), ["open"], "nothing of others was copied up");
}

/// To the kernel they are the namespace root's then. The copies are the user's, who can't give them to anybody else.
fn squashed_files_of_others_can_be_changed() {
    let union = Union::new(1);
    let (uid, gid) = user();
    for (name, owner) in [("root", 0), ("other", 4321)] {
        put(union.lower(0, name), "content");
        chown(union.lower(0, name), owner, owner);
    }
    chown(union.lower(0, ""), uid, gid);
    let script = "stat -c %u:%g . root other && chmod 600 root other && chown 0:0 other && rm root && touch new && stat -c %u:%g new";
    let ended = inside_with(&union, &NAMESPACE, "squash_to_root", script).success();
    assert_eq!(ended.stdout, "0:0\n".repeat(4));
    for name in ["other", "new"] {
        assert_eq!((stat(union.upper(name)).uid(), stat(union.upper(name)).gid()), (uid, gid), "{name}");
    }
}

/// As podman has it with `--userns=keep-id`: the image is as it was pulled, its root the namespace's root, and in the container
/// the user has the id that it has outside.
fn a_user_keeps_the_id_in_a_namespace() {
    let union = Union::new(1);
    let (uid, gid) = user();
    put(union.lower(0, "roots"), "content");
    for path in ["roots", ""] {
        chown(union.lower(0, path), uid, gid);
    }
    let ids = "0:1:1000:1000:0:1";
    let options = format!("uidmapping=:{ids},gidmapping={ids}");
    // Who is 1 in the namespace is the container's root, and who is 0 its user 1000.
    put(union.root().join("as-root"), "umask 022; echo x > by-root && chown 0:0 roots && mkdir dir && chown 0:0 dir");
    let script = "stat -c %u:%g roots . && setpriv --reuid=1 --regid=1 --clear-groups --inh-caps=+chown --ambient-caps=+chown \
                  sh ../as-root && echo x > dir/by-user && stat -c %u:%g roots by-root dir/by-user";
    let ended = inside_with(&union, &FULL_MAP, &options, script).success();
    assert_eq!(ended.stdout, "1:1\n1:1\n0:0\n1:1\n0:0\n");
    let owner = |name: &str| (stat(union.upper(name)).uid(), stat(union.upper(name)).gid());
    assert_eq!(owner("by-root"), (uid, gid), "the image's root");
    let kept = owner("dir/by-user");
    assert_eq!(kept, owner("roots"), "the image's user 1000");
    assert!(kept.0 > 1000 && kept != (uid, gid), "in the range of the user's: {kept:?}");
}

/// Everything is the user's for the filesystem, as it has to be in a home on the network, and anybody's in the namespace.
fn owners_in_an_attribute_in_a_namespace() {
    let union = Union::new(1);
    let (uid, gid) = user();
    put(union.lower(0, "file"), "content");
    for path in ["file", ""] {
        chown(union.lower(0, path), uid, gid);
    }
    let script = "chown 5:6 file && chmod 4755 file && mkdir dir && chown 7:8 dir && setpriv --reuid=7 --regid=8 --clear-groups \
                  touch dir/new && stat -c %u:%g:%a file dir dir/new";
    let ended = inside_with(&union, &FULL_MAP, "xattr_permissions=2", script).success();
    assert_eq!(ended.stdout, "5:6:4755\n7:8:755\n7:8:644\n");
    for (path, said) in [("file", "5:6:4755"), ("dir", "7:8:755"), ("dir/new", "7:8:644")] {
        assert_eq!((stat(union.upper(path)).uid(), stat(union.upper(path)).gid()), (uid, gid), "{path}");
        assert_eq!(marked(union.upper(path), "user.containers.override_stat").as_deref(), Some(said), "{path}");
    }
}
