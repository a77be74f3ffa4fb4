//! Tests of the form of fuse-overlayfs and of mount(8)'s helpers: golden command lines and what they come to.

use std::time::Duration;

use nix::mount::MsFlags;

use crate::layer::whiteout::Whiteouts;
use crate::union::{Durability, Io};

use super::*;

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

fn parsed(line: &str) -> Words {
    match parse(&words(line)) {
        Ok(Request::Mount(words)) => words,
        other => panic!("{line}: {other:?}"),
    }
}

fn complete(line: &str) -> (Config, Vec<String>) {
    parsed(line).config().unwrap_or_else(|e| panic!("{line}: {e}"))
}

/// The configuration of a line that must not cost a warning.
fn config(line: &str) -> Config {
    let (config, warnings) = complete(line);
    assert_eq!(warnings, [""; 0], "{line}");
    config
}

fn complaint(line: &str) -> String {
    parsed(line).config().unwrap_err().to_string()
}

#[test]
fn the_form_is_known_by_its_name_or_its_words() {
    let meant = |line: &str| is_meant(&words(line), |word| word == "mount" || word == "umount");
    for yes in [
        "fuse-overlayfs",
        "/usr/local/bin/fuse-overlayfs mount -o ro /mnt",
        "/sbin/mount.fuse.layerfs",
        "mount.layerfs mount /mnt",
        "layerfs any /mnt -o ro",
        "layerfs -o lowerdir=/a /mnt",
        "layerfs -olowerdir=/a /mnt",
        "layerfs -f -d -o lowerdir=/a /mnt",
        "layerfs /mnt -o lowerdir=/a",
        "/opt/layerfs-1.0 /mnt -o lowerdir=/a",
    ] {
        assert!(meant(yes), "{yes}");
    }
    for no in ["", "layerfs", "layerfs mount -o ro /mnt", "layerfs mount /mnt -o ro", "layerfs a b", "layerfs -V"] {
        assert!(!meant(no), "{no}");
    }
}

#[test]
fn podman() {
    let config = config(
        "/usr/bin/fuse-overlayfs -o lowerdir=l/AAAA:l/BBBB,upperdir=/s/overlay/x/diff,workdir=/s/overlay/x/work,,volatile \
         /s/overlay/x/merged",
    );
    assert_eq!(config.stack.lowers, [Path::new("l/AAAA"), Path::new("l/BBBB")]);
    assert_eq!(config.stack.upper.as_deref(), Some(Path::new("/s/overlay/x/diff")));
    assert_eq!(config.stack.work.as_deref(), Some(Path::new("/s/overlay/x/work")));
    assert_eq!(config.mountpoint, Path::new("/s/overlay/x/merged"));
    assert_eq!(config.mount.source, "layerfs");
    assert_eq!(config.union.durability, Durability::Volatile);
    assert!(!config.foreground && !config.union.metacopy && config.union.redirect_dir);
}

#[test]
fn buildah() {
    let config = config(r"fuse-overlayfs -o lowerdir=/vol\:1,upperdir=/c/up\:1,workdir=/c/w\\1,private /c/merge");
    assert_eq!(config.stack.lowers, [Path::new("/vol:1")]);
    assert_eq!(config.stack.upper.as_deref(), Some(Path::new("/c/up:1")));
    assert_eq!(config.stack.work.as_deref(), Some(Path::new(r"/c/w\1")));
}

#[test]
fn containerd() {
    let config = config("fuse-overlayfs overlay /t/target -o workdir=/t/w,upperdir=/t/u,lowerdir=/t/1:/t/2,dev,suid");
    assert_eq!(config.mount.source, "overlay");
    assert_eq!(config.mountpoint, Path::new("/t/target"));
    assert_eq!(config.mount.flags, MsFlags::empty());
    let probe = self::config("fuse-overlayfs overlay /t/target -o lowerdir=/t/1:/t/2,dev,suid");
    assert_eq!(probe.mount.flags, MsFlags::MS_RDONLY);
}

#[test]
fn apptainer() {
    let config = config("fuse-overlayfs -f -o allow_other,ro,lowerdir=/s:/i,upperdir=/u,workdir=/w,noacl /dev/fd/3");
    assert!(config.foreground && config.mount.allow_other && !config.union.acl);
    assert_eq!(config.mount.flags, MsFlags::MS_RDONLY);
    assert_eq!(config.mountpoint, Path::new("/dev/fd/3"));
}

#[test]
fn the_words_of_mount() {
    let line = "mount.fuse.layerfs any /mnt -sfnv -o rw,nosuid,lowerdir=/a:/b,upperdir=/u -o user=me,exec,x-y,odd \
                -N 3 -t fuse.layerfs";
    let config = config(line);
    assert_eq!(config.mount.source, "any");
    assert_eq!(config.mountpoint, Path::new("/mnt"));
    assert_eq!(config.mount.flags, MsFlags::MS_NOSUID);
    assert_eq!(config.stack.lowers, [Path::new("/a"), Path::new("/b")]);
    assert!(!config.foreground && parsed(line).fake);
    assert_eq!(self::config("h any /mnt -o lowerdir=/a,fsname=other").mount.source, "other");
    assert!(complaint("mount.layerfs any /mnt -o remount,ro,lowerdir=/a").contains("mount -i -o remount"));
}

#[test]
fn everything_that_fuse_overlayfs_takes_is_taken() {
    let all = "-o,,allow_root,default_permissions,suid,nosuid,dev,nodev,exec,noexec,atime,noatime,diratime,nodiratime,\
               rw,lazytime,nolazytime,splice_write,splice_read,splice_move,kernel_cache,max_write,max_write=4096,nonempty,\
               fsname=x,subtype=y,private,redirect_dir=off,xino=off,timeout=1.5,threaded=0,writeback=1,fsync=0,volatile,noacl,noxattrs=1,ino32_t \
               -o context=\"system_u:object_r:container_file_t:s0:c1,c2\",fast_ino=1,debug";
    let config = config(&format!("fuse-overlayfs {all} -olowerdir=/a,upperdir=/u /mnt"));
    assert_eq!(config.union.timeout, Some(Duration::from_millis(1500)));
    assert_eq!((config.threads, config.union.io), (1, Io::Cached));
    assert!(config.foreground && !config.union.redirect_dir && !config.union.acl && !config.union.fsync);
    assert_eq!(config.union.durability, Durability::Volatile);
}

#[test]
fn what_is_unknown_costs_a_warning() {
    let (config, warnings) = complete("fuse-overlayfs -x --why -o lowrdir=/b,lowerdir=/a,plugins=p, /mnt");
    assert_eq!(config.stack.lowers, [Path::new("/a")]);
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    assert!(warnings[0].contains("-x") && warnings[1].contains("--why"), "{warnings:?}");
    assert!(warnings[2].contains("\"lowrdir\"") && warnings[2].contains("\"lowerdir\""), "{warnings:?}");
    assert!(warnings[3].contains("\"plugins\""), "{warnings:?}");
    assert_eq!(complaint("fuse-overlayfs -o lowerdir=/a,timeout=soon /mnt").matches("number of seconds").count(), 1);
}

#[test]
fn what_is_said_again_counts() {
    let config =
        config("fuse-overlayfs -o lowerdir=/a,upperdir=/u,workdir=/w -o lowerdir=/b:/c:,upperdir=/v,workdir=/x /m");
    assert_eq!(config.stack.lowers, [Path::new("/b"), Path::new("/c")]);
    assert_eq!(config.stack.upper.as_deref(), Some(Path::new("/v")));
    assert_eq!(config.stack.work.as_deref(), Some(Path::new("/x")));
}

#[test]
fn metacopy_is_asked_for() {
    let metacopy =
        |list: &str| config(&format!("fuse-overlayfs -o lowerdir=/a,upperdir=/u,{list} /mnt")).union.metacopy;
    assert!(!metacopy("rw") && metacopy("metacopy=on") && !metacopy("metacopy=off"));
}

#[test]
fn the_form_of_whiteouts_is_that_of_the_variable_unless_an_option_says_another() {
    let whiteouts = |list: &str, dot_whiteouts: bool| {
        let words = parsed(&format!("fuse-overlayfs -o lowerdir=/a,upperdir=/u,{list} /mnt"));
        Words { dot_whiteouts, ..words }.config().unwrap().0.union.whiteouts
    };
    assert_eq!((whiteouts("rw", false), whiteouts("rw", true)), (Whiteouts::Overlay, Whiteouts::Dot));
    assert_eq!(whiteouts("whiteouts=dot", false), Whiteouts::Dot);
    assert_eq!(whiteouts("whiteouts=overlay", true), Whiteouts::Overlay);
}

#[test]
fn a_work_directory_without_upper_is_not_needed() {
    let config = config("fuse-overlayfs -o lowerdir=/a,workdir=/w /mnt");
    assert_eq!((config.stack.work, config.mount.flags), (None, MsFlags::MS_RDONLY));
}

#[test]
fn the_last_words() {
    let f = |line: &str| parsed(line).foreground;
    assert!(f("layerfs -f -o ro /m") && f("fuse-overlayfs -d /m") && f("fuse-overlayfs --debug /m"));
    assert!(!f("mount.layerfs -f any /m") && !f("fuse-overlayfs /m"));
    assert_eq!(parsed("fuse-overlayfs -o ro -- -m").mountpoint, Path::new("-m"));
    for line in ["fuse-overlayfs -h", "fuse-overlayfs --help /m", "mount.layerfs a b -h"] {
        assert_eq!(parse(&words(line)).unwrap(), Request::Help, "{line}");
    }
    for line in ["fuse-overlayfs -V", "fuse-overlayfs --version"] {
        assert_eq!(parse(&words(line)).unwrap(), Request::Version, "{line}");
    }
    for line in ["fuse-overlayfs", "fuse-overlayfs -o", "fuse-overlayfs a b c -o ro"] {
        assert!(parse(&words(line)).is_err(), "{line}");
    }
}
