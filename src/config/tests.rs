//! Tests of the options.

use super::*;

fn settings(list: &str) -> Result<Settings, ConfigError> {
    let mut settings = Settings::default();
    settings.set_list(OsStr::new(list)).map(|()| settings)
}

fn config(list: &str) -> Result<Config, ConfigError> {
    settings(list)?.into_config(Path::new("/mnt"), false)
}

fn complaint(list: &str) -> String {
    config(list).unwrap_err().to_string()
}

fn paths(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

#[test]
fn a_list_names_the_layers() {
    let config = config("lowerdir=/a:/b:c,upperdir=/u,workdir=/w").unwrap();
    assert_eq!(config.stack.lowers, paths(&["/a", "/b", "c"]));
    assert_eq!(config.stack.upper, Some("/u".into()));
    assert_eq!(config.stack.work, Some("/w".into()));
    assert_eq!(config.mount.flags, MsFlags::empty());
    assert_eq!(config.mount.source, "layerfs");
}

#[test]
fn escapes_keep_colons_commas_and_backslashes_in_paths() {
    let config = config(r"lowerdir=/a\:b:/c\\:/d\,e,upperdir=/u\:\\x,workdir=/w\,,ro").unwrap();
    assert_eq!(config.stack.lowers, paths(&["/a:b", r"/c\", "/d,e"]));
    assert_eq!(config.stack.upper, Some(r"/u:\x".into()));
    assert_eq!(config.stack.work, Some("/w,".into()));
    assert!(config.mount.flags.contains(MsFlags::MS_RDONLY));
    assert_eq!(settings(r"lowerdir=/a\").unwrap().lowers, paths(&[r"/a\"]));
}

#[test]
fn names_are_bytes() {
    let list = OsStr::from_bytes(b"lowerdir=/\xff:/\xfe\xfe");
    let mut settings = Settings::default();
    settings.set_list(list).unwrap();
    assert_eq!(settings.lowers[1].as_os_str().as_bytes(), b"/\xfe\xfe");
    assert!(settings.set_list(OsStr::from_bytes(b"\xff\xff=1")).is_err());
}

#[test]
fn without_upper_a_mount_is_read_only() {
    assert!(config("lowerdir=/a,rw").unwrap().mount.flags.contains(MsFlags::MS_RDONLY));
    assert!(!config("lowerdir=/a,upperdir=/u").unwrap().mount.flags.contains(MsFlags::MS_RDONLY));
}

#[test]
fn the_work_directory_lies_beside_upper() {
    let work = |upper: &str| config(&format!("lowerdir=/a,upperdir={upper}")).unwrap().stack.work;
    assert_eq!(work("/no/such/u"), Some("/no/such/.u.work".into()));
    assert_eq!(work("no-such-u"), Some(".no-such-u.work".into()));
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap();
    std::fs::create_dir(real.join("u")).unwrap();
    std::os::unix::fs::symlink("u", real.join("alias")).unwrap();
    assert_eq!(work(&format!("{}/alias/.", dir.path().display())), Some(real.join(".u.work")));
    assert!(complaint("lowerdir=/a,upperdir=/").contains("--work"));
}

#[test]
fn values_are_read() {
    let config = config(
        "lowerdir=/a,timeout=1.5,io=passthrough,redirect_dir=off,xino=on,noacl,volatile,threads=3,cache_entries=10,\
         userxattr,trusted_lowers,allow_other,source=x=y",
    )
    .unwrap();
    assert_eq!(config.union.timeout, Some(Duration::from_millis(1500)));
    assert_eq!(config.union.xino, Xino::On);
    assert_eq!(config.union.io, Io::Passthrough);
    assert!(config.union.durability == Durability::Volatile && !config.union.redirect_dir && !config.union.acl);
    assert_eq!((config.threads, config.union.cache_entries), (3, 10));
    assert!(config.stack.userxattr && config.stack.trusted_lowers && config.mount.allow_other);
    assert_eq!(config.mount.source, "x=y");
}

#[test]
fn names_of_fuse_overlayfs() {
    let union = |list: &str| config(&format!("lowerdir=/a,{list}")).unwrap().union;
    assert!(!union("fsync=0").fsync && union("fsync=0,fsync=1").fsync);
    let without = union("noxattrs=1");
    assert!(!without.xattrs && !without.acl && union("noxattrs=0").acl);
    assert!(union("ino32_t").ino32 && !union("ro").ino32);
    assert!(config("lowerdir=/a,debug").unwrap().foreground);
    assert_eq!((union("writeback=1").io, union("io=cached,writeback=0").io), (Io::Cached, Io::WriteThrough));
    assert_eq!(config("lowerdir=/a,threaded=0").unwrap().threads, 1);
    assert!(complaint("lowerdir=/a,kernel_cache").contains("unknown"));
}

#[test]
fn durability_is_said_once() {
    let durability = |list: &str| config(&format!("lowerdir=/a,upperdir=/u,{list}")).unwrap().union.durability;
    assert_eq!(durability("noatime"), Durability::Batched);
    assert_eq!(durability("durability=strict,durability=strict"), Durability::Strict);
    assert_eq!(durability("volatile,durability=volatile"), Durability::Volatile);
    assert!(complaint("lowerdir=/a,upperdir=/u,volatile,durability=strict").contains("leave one out"));
    assert!(complaint("lowerdir=/a,upperdir=/u,durability=soon").contains("batched"));
}

#[test]
fn data_stays_in_lower_where_the_lower_stays() {
    for (list, metacopy) in [
        ("", true),
        ("timeout=1", true),
        ("metacopy=off", false),
        ("timeout=0", false),
        ("redirect_dir=off", false),
        ("metacopy=on,timeout=0", true),
        ("redirect_dir=off,metacopy=on", true),
        ("metacopy=on,metacopy=off", false),
    ] {
        assert_eq!(config(&format!("lowerdir=/a,upperdir=/u,{list}")).unwrap().union.metacopy, metacopy, "{list}");
    }
}

#[test]
fn the_last_of_two_opposites_wins() {
    let flags = |list: &str| config(&format!("lowerdir=/a,upperdir=/u,{list}")).unwrap().mount.flags;
    assert_eq!(flags("nosuid,suid,nodev,noexec"), MsFlags::MS_NODEV | MsFlags::MS_NOEXEC);
    assert_eq!(flags(",,defaults,x-systemd.automount,comment=z,,noatime,"), MsFlags::MS_NOATIME);
}

#[test]
fn notes_of_mount_change_nothing() {
    let notes = "user,user=me,users,owner,group,uhelper=x,helper=y,comment=z,x-a=b,X-c,_netdev,nofail,noauto,loud";
    let config = config(&format!("lowerdir=/a,upperdir=/u,nosuid,{notes}")).unwrap();
    assert_eq!(config.mount.flags, MsFlags::MS_NOSUID);
    assert!(complaint("lowerdir=/a,remount,ro").contains("mount -i"));
}

#[test]
fn ids_are_mapped_and_squashed() {
    let list =
        "lowerdir=/a,uidmapping=:0:1000:1:1:100000:65535,gidmapping=0:5:1,squash_to_gid=7,squash_to_root,static_nlink";
    let union = config(list).unwrap().union;
    assert_eq!(union.ids.uids, IdMap::parse("0:1000:1:1:100000:65535").unwrap());
    assert_eq!((union.ids.shown_uid(1), union.ids.shown_gid(1), union.static_nlink), (0, 7, true));
    assert_eq!(union.ids.new_gid(5), Ok(0));
    let kept =
        ["0", "1", "2"].map(|n| config(&format!("lowerdir=/a,xattr_permissions={n}")).unwrap().stack.xattr_permissions);
    assert_eq!(kept, [None, Some(Form::Security), Some(Form::User)]);
}

#[test]
fn what_is_unknown_can_be_ignored() {
    let mut settings = Settings::default();
    settings.ignore_unknown();
    assert!(settings.set_list(OsStr::new("strange,odd=1,lowerdir=/a")).is_ok());
    assert!(settings.set_list(OsStr::new("timeout=soon")).is_err());
}

#[test]
fn an_unknown_option_is_told_with_the_nearest() {
    for (typed, nearest) in [("lowrdir=/a", "lowerdir"), ("upper=/u", "upperdir"), ("readirect_dir=on", "redirect_dir")]
    {
        let said = complaint(typed);
        assert!(said.contains("unknown") && said.contains(&format!("\"{nearest}\"")), "{said}");
    }
    assert!(complaint("noatme").contains("\"noatime\""));
}

#[test]
fn values_of_another_form_are_told() {
    for (list, part) in [
        ("timeout=x", "number of seconds"),
        ("timeout=-1", "number of seconds"),
        ("timeout=nan", "number of seconds"),
        ("timeout=1e300", "number of seconds"),
        ("io=direct", "auto, writethrough, cached, passthrough"),
        ("io", "needs a value"),
        ("threads=0", "from 1 to"),
        ("threads=99999999999999999999", "from 1 to"),
        ("cache_entries=-1", "from 0 to"),
        ("xino=maybe", "auto, on, off"),
        ("redirect_dir=", "on, off, follow"),
        ("redirect_dir=nofollow", "on, off, follow"),
        ("fsync=yes", "1, 0"),
        ("threaded", "needs a value"),
        ("metacopy=yes", "on, off"),
        ("uidmapping", "needs a value"),
        ("uidmapping=0:0:1:2", "uidmapping: it is made of triples"),
        ("gidmapping=0:0:10:5:20:1", "gidmapping: the id 5 is in it twice"),
        ("squash_to_uid=4294967295", "from 0 to 4294967294"),
        ("squash_to_root=1", "takes no value"),
        ("xattr_permissions=3", "0, 1, 2"),
        ("lowerdir", "needs a value"),
        ("ro=1", "takes no value"),
        ("source=", "1 to 255 bytes"),
        ("lowerdir=/a::/b", "empty path"),
        ("lowerdir=/a,lowerdir=/b", "twice"),
        ("lowerdir=/a,upperdir=/u,upperdir=/v", "twice"),
        ("lowerdir=/a,workdir=/w", "needs an upper"),
        ("lowerdir=/a,upperdir=", "empty path"),
        ("ro", "no lower directory"),
    ] {
        let said = complaint(list);
        assert!(said.contains(part), "{list}: {said}");
    }
}

#[test]
fn workers_follow_the_cores() {
    let threads = config("lowerdir=/a").unwrap().threads;
    assert!(THREADS.contains(&threads));
}
