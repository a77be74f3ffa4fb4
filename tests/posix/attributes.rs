//! chmod, chown, truncate, utimensat, statfs.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::stat::SFlag;
use nix::sys::statfs::statfs;
use nix::sys::statvfs::statvfs;
use nix::sys::time::TimeSpec;

use crate::common::Test;
use crate::common::files::*;
use crate::common::machine::{as_user, may_mount};
use crate::common::union::{Union, everywhere};
use crate::t;

pub fn tests() -> Vec<Test> {
    vec![
        t!(mode_bits),
        t!(objects_without_rights),
        t!(owners).root(),
        t!(chown_clears_suid).root(),
        t!(only_owners_change_attributes).root(),
        t!(sizes),
        t!(times),
        t!(times_now_and_omitted),
        t!(times_of_others).root(),
        t!(times_out_of_range),
        t!(times_last),
        t!(changes_show_in_ctime),
        t!(reading_and_writing_change_times),
        t!(filesystem_statistics),
    ]
}

fn mode_bits() {
    everywhere(
        |dir| {
            put(dir.join("file"), "x");
            make_dir(dir.join("dir"));
            symlink("file", dir.join("symlink")).expect("symlink");
        },
        |dir| {
            for name in ["file", "dir"] {
                for bits in [0o000, 0o755, 0o1777, 0o2711, 0o4755, 0o644] {
                    let before = mtime(dir.join(name));
                    chmod(dir.join(name), bits);
                    assert_eq!(mode(dir.join(name)), bits, "{name}");
                    assert_eq!(mtime(dir.join(name)), before, "{name}");
                }
                chmod(dir.join(name), 0o755);
            }
            chmod(dir.join("symlink"), 0o600);
            assert_eq!(mode(dir.join("file")), 0o600, "chmod follows a symlink");
            let missing = fs::set_permissions(dir.join("missing"), stat(dir).permissions());
            fails(missing, Errno::ENOENT);
        },
    );
}

/// Who owns an object can do everything with its name and attributes, whatever its mode.
fn objects_without_rights() {
    everywhere(
        |dir| {
            for name in ["closed", "readable", "secret"] {
                put(dir.join(name), "content");
                put(dir.join("dirs").join(name).join("inside"), "x");
            }
            // What its owner can't read, only a privileged daemon copies up.
            if may_mount() {
                chmod(dir.join("secret"), 0);
                chmod(dir.join("dirs/secret"), 0);
            }
        },
        |dir| {
            for name in ["closed", "secret"] {
                chmod(dir.join(name), 0);
                assert_eq!(stat(dir.join(name)).len(), 7);
                fs::rename(dir.join(name), dir.join("renamed")).expect("rename a file");
                fs::hard_link(dir.join("renamed"), dir.join("link")).expect("link");
                fs::remove_file(dir.join("link")).expect("remove");
                chmod(dir.join("renamed"), 0o600);
                assert_eq!(read(dir.join("renamed")), "content");
                let inside = dir.join("dirs").join(name);
                chmod(&inside, 0);
                assert_eq!(mode(&inside), 0);
                fs::rename(&inside, dir.join("dirs/renamed")).expect("rename a directory");
                chmod(dir.join("dirs/renamed"), 0o300);
                put(dir.join("dirs/renamed/new"), "x");
                chmod(dir.join("dirs/renamed"), 0o700);
                assert_eq!(names(dir.join("dirs/renamed")), ["inside", "new"]);
                fs::remove_dir_all(dir.join("dirs/renamed")).expect("remove");
            }
            chmod(dir.join("readable"), 0o444);
            fs::rename(dir.join("readable"), dir.join("renamed")).expect("rename over a file");
            set_times(dir.join("renamed"), (1, 2), (3, 4));
            assert_eq!(mtime(dir.join("renamed")), (3, 4));
            make_dir(dir.join("empty"));
            chmod(dir.join("empty"), 0);
            fs::remove_dir(dir.join("empty")).expect("rmdir");
        },
    );
}

fn owners() {
    everywhere(
        |dir| {
            put(dir.join("file"), "x");
            make_dir(dir.join("dir"));
            symlink("file", dir.join("symlink")).expect("symlink");
        },
        |dir| {
            let owner = |name: &str| (stat(dir.join(name)).uid(), stat(dir.join(name)).gid());
            for name in ["file", "dir", "symlink"] {
                chown(dir.join(name), 65_533, 4_000_000_000);
                assert_eq!(owner(name), (65_533, 4_000_000_000), "{name}");
                std::os::unix::fs::lchown(dir.join(name), Some(7), None).expect("uid alone");
                assert_eq!(owner(name), (7, 4_000_000_000), "{name}");
                std::os::unix::fs::lchown(dir.join(name), None, Some(8)).expect("gid alone");
                assert_eq!(owner(name), (7, 8), "{name}");
            }
        },
    );
}

fn chown_clears_suid() {
    everywhere(
        |dir| {
            for name in ["root", "user"] {
                put(dir.join(name), "x");
                chown(dir.join(name), 1000, 1000);
                chmod(dir.join(name), 0o6755);
            }
            put(dir.join("locking"), "x");
            chmod(dir.join("locking"), 0o2644);
            make_dir(dir.join("dir"));
            chmod(dir.join("dir"), 0o6755);
        },
        |dir| {
            chown(dir.join("root"), 0, 0);
            assert_eq!(mode(dir.join("root")), 0o755);
            as_user(1000, 1000, || chown(dir.join("user"), 1000, 1000));
            assert_eq!(mode(dir.join("user")), 0o755);
            chown(dir.join("dir"), 1, 1);
            assert_eq!(mode(dir.join("dir")), 0o6755, "a directory keeps them");
            chown(dir.join("locking"), 1, 1);
            assert_eq!(mode(dir.join("locking")), 0o2644, "not executable by the group");
        },
    );
}

fn only_owners_change_attributes() {
    everywhere(
        |dir| {
            put(dir.join("roots"), "x");
            chmod(dir.join("roots"), 0o666);
            put(dir.join("own"), "x");
            chown(dir.join("own"), 1000, 2000);
        },
        |dir| {
            as_user(1000, 1000, || {
                let permissions = stat(dir.join("own")).permissions();
                fails(fs::set_permissions(dir.join("roots"), permissions), Errno::EPERM);
                let change = |name: &str, uid, gid| std::os::unix::fs::chown(dir.join(name), uid, gid);
                fails(change("roots", Some(1000), None), Errno::EPERM);
                fails(change("own", Some(1001), None), Errno::EPERM);
                fails(change("own", None, Some(3000)), Errno::EPERM);
                change("own", None, Some(1000)).expect("to a group of the owner's");
                change("own", None, Some(1000)).expect("to the same again");
                chmod(dir.join("own"), 0o2755);
            });
            assert_eq!(mode(dir.join("own")), 0o2755);
            chown(dir.join("own"), 1000, 2000);
            as_user(1000, 1000, || chmod(dir.join("own"), 0o2755));
            assert_eq!(mode(dir.join("own")), 0o755, "sgid of a group that the owner is not in");
        },
    );
}

fn sizes() {
    everywhere(
        |dir| {
            put(dir.join("file"), "0123456789");
            make_dir(dir.join("dir"));
            node(dir.join("fifo"), SFlag::S_IFIFO, (0, 0));
        },
        |dir| {
            let path = dir.join("file");
            let resize = |size: i64| nix::unistd::truncate(&path, size);
            resize(4).expect("shrink");
            assert_eq!(read(&path), "0123");
            resize(8).expect("grow");
            assert_eq!(read(&path), "0123\0\0\0\0");
            resize(0).expect("empty");
            assert_eq!(read(&path), "");
            resize(1 << 40).expect("very large");
            assert_eq!(stat(&path).len(), 1 << 40);
            let mut last = [1];
            open(&path).read_exact_at(&mut last, (1 << 40) - 1).expect("read");
            assert_eq!(last, [0]);
            fails(resize(-1), Errno::EINVAL);
            fails(nix::unistd::truncate(&dir.join("dir"), 0), Errno::EISDIR);
            fails(nix::unistd::truncate(&dir.join("fifo"), 0), Errno::EINVAL);
            fails(nix::unistd::truncate(&dir.join("missing"), 0), Errno::ENOENT);
            fails(open(&path).set_len(1), Errno::EINVAL);
        },
    );
}

fn some_objects(dir: &Path) {
    put(dir.join("file"), "x");
    make_dir(dir.join("dir"));
    symlink("file", dir.join("symlink")).expect("symlink");
}

const ALL: [&str; 3] = ["file", "dir", "symlink"];

fn both_times(path: &Path) -> [(i64, i64); 2] {
    let found = stat(path);
    [(found.atime(), found.atime_nsec()), (found.mtime(), found.mtime_nsec())]
}

/// Times as the kernel counts them: -1.5 s is second -2 and half a second after it.
const TIMES: [(i64, i64); 7] =
    [(0, 0), (0, 1), (1_700_000_000, 999_999_999), (-1, 0), (-2, 500_000_000), (-1_000_000_000, 1), (4_294_967_296, 5)];

fn times() {
    everywhere(some_objects, |dir| {
        for name in ALL {
            let path = dir.join(name);
            for (i, mtime) in TIMES.into_iter().enumerate() {
                let atime = TIMES[(i + 3) % TIMES.len()];
                set_times(&path, atime, mtime);
                assert_eq!(both_times(&path), [atime, mtime], "{name}");
            }
        }
    });
}

fn now() -> (i64, i64) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    (since.as_secs().try_into().expect("seconds"), since.subsec_nanos().into())
}

fn times_now_and_omitted() {
    everywhere(some_objects, |dir| {
        for name in ALL {
            let path = dir.join(name);
            set_times(&path, (10, 20), (30, 40));
            let omit = TimeSpec::UTIME_OMIT;
            try_set_times(&path, omit, TimeSpec::new(50, 60)).expect("mtime alone");
            assert_eq!(both_times(&path), [(10, 20), (50, 60)], "{name}");
            try_set_times(&path, TimeSpec::new(70, 80), omit).expect("atime alone");
            assert_eq!(both_times(&path), [(70, 80), (50, 60)], "{name}");
            try_set_times(&path, omit, omit).expect("neither");
            assert_eq!(both_times(&path), [(70, 80), (50, 60)], "{name}");
            let before = now().0 - 1;
            try_set_times(&path, omit, TimeSpec::UTIME_NOW).expect("mtime is now");
            let [atime, mtime] = both_times(&path);
            assert_eq!(atime, (70, 80), "{name}");
            assert!(mtime.0 >= before && mtime.0 <= now().0, "{name}: {mtime:?}");
            try_set_times(&path, TimeSpec::UTIME_NOW, TimeSpec::new(1, 1)).expect("atime is now");
            let [atime, mtime] = both_times(&path);
            assert_eq!(mtime, (1, 1), "{name}");
            assert!(atime.0 >= before && atime.0 <= now().0, "{name}: {atime:?}");
            fails(try_set_times(&path, TimeSpec::new(0, 1_000_000_000), omit), Errno::EINVAL);
        }
    });
}

fn times_of_others() {
    everywhere(
        |dir| {
            put(dir.join("readable"), "x");
            put(dir.join("writable"), "x");
            chmod(dir.join("writable"), 0o666);
        },
        |dir| {
            as_user(1000, 1000, || {
                let now = TimeSpec::UTIME_NOW;
                let set = |name: &str, atime, mtime| try_set_times(&dir.join(name), atime, mtime);
                fails(set("readable", now, now), Errno::EACCES);
                set("writable", now, now).expect("whoever may write may say now");
                fails(set("writable", now, TimeSpec::new(1, 1)), Errno::EPERM);
                fails(set("writable", TimeSpec::new(1, 1), TimeSpec::new(1, 1)), Errno::EPERM);
            });
        },
    );
}

/// Whatever they become, they end nothing.
fn times_out_of_range() {
    let mut union = Union::new(1);
    some_objects(&union.lower(0, ""));
    union.mount();
    for name in ALL {
        for seconds in [i64::MIN, i64::MIN + 1, -(1 << 40), 1 << 40, i64::MAX] {
            let time = TimeSpec::new(seconds, 999_999_999);
            if let Err(error) = try_set_times(&union.at(name), time, time) {
                assert_eq!(error, Errno::EINVAL, "{seconds} is clamped or refused");
            }
            stat(union.at(name));
        }
        set_times(union.at(name), (1, 2), (3, 4));
        assert_eq!(both_times(&union.at(name)), [(1, 2), (3, 4)]);
    }
    union.umount();
}

fn times_last() {
    let mut union = Union::new(1);
    for i in 0..TIMES.len() {
        put(union.lower(0, &format!("low{i}")), "x");
        put(union.upper(&format!("up{i}")), "x");
    }
    union.mount();
    let all = || {
        TIMES.iter().enumerate().flat_map(|(i, time)| ["low", "up", "new"].map(|kind| (format!("{kind}{i}"), *time)))
    };
    for (name, time) in all() {
        let file = match name.starts_with("new") {
            true => create_new(union.at(&name), 0o644),
            false => edit(union.at(&name)),
        };
        // Written first: pages still to be written must not change the time again.
        file.write_all_at(b"content", 0).expect("write");
        set_times(union.at(&name), (5, 5), time);
        drop(file);
    }
    for (name, time) in all() {
        assert_eq!(mtime(union.at(&name)), time, "{name}");
    }
    union.remount();
    for (name, time) in all() {
        assert_eq!(mtime(union.at(&name)), time, "{name} after a remount");
        assert_eq!(read(union.at(&name)), "content");
    }
    union.umount();
}

fn ctime(path: &Path) -> (i64, i64) {
    (stat(path).ctime(), stat(path).ctime_nsec())
}

fn changes_show_in_ctime() {
    everywhere(
        |dir| {
            for name in ["chmod", "times", "size", "link", "rename", "write"] {
                put(dir.join(name), "content");
            }
        },
        |dir| {
            let later = |name: &str, after: &str, change: &dyn Fn(&Path)| {
                let before = ctime(&dir.join(name));
                // Coarse clocks tick every few milliseconds.
                std::thread::sleep(std::time::Duration::from_millis(20));
                change(&dir.join(name));
                let after = ctime(&dir.join(after));
                assert!(after > before, "{name}: {before:?} to {after:?}");
            };
            later("chmod", "chmod", &|path| chmod(path, 0o600));
            later("times", "times", &|path| set_times(path, (1, 1), (2, 2)));
            later("size", "size", &|path| edit(path).set_len(1).expect("truncate"));
            later("link", "link", &|path| fs::hard_link(path, dir.join("link2")).expect("link"));
            later("link", "link", &|_| fs::remove_file(dir.join("link2")).expect("unlink"));
            later("write", "write", &|path| append(path, "x"));
        },
    );
}

fn reading_and_writing_change_times() {
    everywhere(
        |dir| {
            put(dir.join("file"), "content");
            put(dir.join("dir/inside"), "x");
        },
        |dir| {
            let old = || {
                set_times(dir.join("file"), (1, 1), (1, 1));
                set_times(dir.join("dir"), (1, 1), (1, 1));
            };
            let recent = |name: &str| mtime(dir.join(name)).0 >= now().0 - 60;
            old();
            append(dir.join("file"), "x");
            assert!(recent("file"), "a write");
            old();
            edit(dir.join("file")).set_len(2).expect("truncate");
            assert!(recent("file"), "a truncation");
            let steps: [(&str, &dyn Fn() -> io::Result<()>); 6] = [
                ("create", &|| fs::write(dir.join("dir/new"), "x")),
                ("link", &|| fs::hard_link(dir.join("dir/new"), dir.join("dir/link"))),
                ("rename", &|| fs::rename(dir.join("dir/new"), dir.join("dir/renamed"))),
                ("unlink", &|| fs::remove_file(dir.join("dir/inside"))),
                ("mkdir", &|| fs::create_dir(dir.join("dir/sub"))),
                ("rmdir", &|| fs::remove_dir(dir.join("dir/sub"))),
            ];
            for (name, step) in steps {
                old();
                step().unwrap_or_else(|e| panic!("{name}: {e}"));
                assert!(recent("dir"), "the directory's mtime after {name}");
            }
            old();
            append(dir.join("dir/renamed"), "x");
            assert!(!recent("dir"), "writing to a file is no change of its directory");
        },
    );
}

fn filesystem_statistics() {
    let mut union = Union::new(2);
    put(union.lower(1, "d/file"), "x");
    union.mount();
    let real = statvfs(&union.upper("")).expect("statvfs");
    for path in ["", "d", "d/file"] {
        let shown = statvfs(&union.at(path)).expect("statvfs");
        assert_eq!(shown.blocks(), real.blocks(), "{path:?} tells of upper's filesystem");
        assert_eq!(shown.files(), real.files(), "{path:?}");
        assert_eq!(shown.name_max(), 255, "{path:?}");
        assert!(shown.block_size() > 0 && shown.fragment_size() > 0);
    }
    let kind = statfs(&union.at("")).expect("statfs").filesystem_type();
    assert_eq!(kind, nix::sys::statfs::FUSE_SUPER_MAGIC);
    union.umount();
    let mut union = union.read_only();
    union.mount();
    assert!(statvfs(&union.at("")).expect("statvfs").blocks() > 0);
    union.umount();
}
