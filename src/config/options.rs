//! The options by name, and what `layerfs mount --help` tells of them.

use std::ffi::OsStr;

use nix::mount::MsFlags;

/// What an option does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Lowers,
    Upper,
    Work,
    UserXattr,
    TrustedLowers,
    Volatile,
    Durability,
    Timeout,
    Io,
    RedirectDir,
    Metacopy,
    Whiteouts,
    Xino,
    NoAcl,
    UidMapping,
    GidMapping,
    SquashToRoot,
    SquashToUid,
    SquashToGid,
    StaticNlink,
    XattrPermissions,
    Threads,
    IoUring,
    CacheEntries,
    Fsync,
    Threaded,
    Writeback,
    NoXattrs,
    Ino32,
    Debug,
    Source,
    AllowOther,
    AllowRoot,
    Recover,
    /// Sets a flag of the mount.
    Set(MsFlags),
    /// Clears one.
    Clear(MsFlags),
    /// True anyway.
    Nothing,
    /// A note of mount(8) for itself, with or without a value: what follows from it comes as options of its own.
    Others,
    /// Changes the flags of a mount that is there.
    Remount,
}

/// An option.
#[derive(Debug)]
pub struct Known {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub action: Action,
    /// What follows its name and `=`, if anything does.
    pub value: &'static str,
    /// What it means, if that takes more than the title of its group.
    meaning: &'static str,
}

const fn option(name: &'static str, action: Action, value: &'static str, meaning: &'static str) -> Known {
    Known { name, action, value, meaning }
}

/// One whose name is known from mount(8).
const fn flag(name: &'static str, action: Action) -> Known {
    option(name, action, "", "")
}

/// All options, by what they are about.
const GROUPS: &[(&str, &[Known])] = &[
    ("Layers", LAYERS),
    ("What is written to upper", WRITTEN),
    ("When it is on the disk", DISK),
    ("What is shown of it", SHOWN),
    ("Caches and threads", CACHES),
    ("The mount", MOUNT),
    ("Flags of the mount, as in mount(8), and their opposites", FLAGS),
    ("Without a meaning here, as x-...: of fstab, or of other filesystems", OTHERS),
];

const LAYERS: &[Known] = &[
    option("lowerdir", Action::Lowers, "A:B", "the lower layers, the first is the top; \\: is a colon, \\, a comma"),
    option("upperdir", Action::Upper, "DIR", "the layer that takes all changes; without one the mount is read-only"),
    option("workdir", Action::Work, "DIR", "on upper's filesystem; default: .NAME.work beside upper NAME"),
    option("trusted_lowers", Action::TrustedLowers, "", "believe lower layers where the data of a file of theirs is"),
];

const WRITTEN: &[Known] = &[
    option("redirect_dir", Action::RedirectDir, "on|off", "rename directories of lower layers by a mark; default: on"),
    option(
        "metacopy",
        Action::Metacopy,
        "on|off",
        "copy no data up for a change of metadata alone; default: on, mostly",
    ),
    option(
        "whiteouts",
        Action::Whiteouts,
        "overlay|dot",
        "deletions as devices 0:0 (the default) or as files .wh.NAME",
    ),
    option("userxattr", Action::UserXattr, "", "keep marks in user.overlay.* even as root"),
    option("xattr_permissions", Action::XattrPermissions, "1|2", "keep owners and permissions in an attribute"),
];

const DISK: &[Known] = &[
    option("durability", Action::Durability, "WHEN", "of copies: batched (the default), strict or volatile"),
    option("volatile", Action::Volatile, "", "never wait for the disk: fast, and lost with a power cut"),
    option("fsync", Action::Fsync, "0|1", "0: fsync doesn't wait for the disk"),
];

const SHOWN: &[Known] = &[
    option("uidmapping", Action::UidMapping, "MAP", "other owners than stored; MAP is INSIDE:OUTSIDE:LENGTH[:...]"),
    option("gidmapping", Action::GidMapping, "MAP", "likewise groups"),
    option("squash_to_root", Action::SquashToRoot, "", "everything is owned by root"),
    option("squash_to_uid", Action::SquashToUid, "N", "everything is owned by that user"),
    option("squash_to_gid", Action::SquashToGid, "N", "everything is owned by that group"),
    option("noacl", Action::NoAcl, "", "leave POSIX ACLs out"),
    option("noxattrs", Action::NoXattrs, "1|0", "1: leave all extended attributes out"),
    option("xino", Action::Xino, "auto|on|off", "unique inode numbers over several filesystems; default: auto"),
    option("ino32_t", Action::Ino32, "", "inode numbers of 32 bits"),
    option("static_nlink", Action::StaticNlink, "", "every directory shows one link"),
];

const CACHES: &[Known] = &[
    option("timeout", Action::Timeout, "SECONDS", "how long the kernel may remember names; default: forever"),
    option("io", Action::Io, "MODE", "auto (the default), writethrough, cached or passthrough"),
    option("writeback", Action::Writeback, "1|0", "1 is io=cached, 0 is io=writethrough"),
    option("cache_entries", Action::CacheEntries, "N", "how many lookups the union remembers; 0 for none"),
    option("threads", Action::Threads, "N", "how many threads answer requests; default: one for each core, 2 to 8"),
    option("io_uring", Action::IoUring, "auto|on|off", "take requests from io_uring, on the core that they come from"),
    option("threaded", Action::Threaded, "0|1", "0 is threads=1"),
];

const MOUNT: &[Known] = &[
    option("allow_other", Action::AllowOther, "", "let other users in; root's mounts always do"),
    option("allow_root", Action::AllowRoot, "", "let root in; only where it is so anyway"),
    option("recover", Action::Recover, "", "first take a mount off whose daemon has died"),
    option("source", Action::Source, "NAME", "the source that /proc/mounts shows; default: layerfs"),
    option("fsname", Action::Source, "NAME", "likewise"),
    option("debug", Action::Debug, "", "stay in the foreground"),
];

const FLAGS: &[Known] = &[
    flag("ro", Action::Set(MsFlags::MS_RDONLY)),
    flag("rw", Action::Clear(MsFlags::MS_RDONLY)),
    flag("nosuid", Action::Set(MsFlags::MS_NOSUID)),
    flag("suid", Action::Clear(MsFlags::MS_NOSUID)),
    flag("nodev", Action::Set(MsFlags::MS_NODEV)),
    flag("dev", Action::Clear(MsFlags::MS_NODEV)),
    flag("noexec", Action::Set(MsFlags::MS_NOEXEC)),
    flag("exec", Action::Clear(MsFlags::MS_NOEXEC)),
    flag("noatime", Action::Set(MsFlags::MS_NOATIME)),
    flag("atime", Action::Clear(MsFlags::MS_NOATIME)),
    flag("nodiratime", Action::Set(MsFlags::MS_NODIRATIME)),
    flag("diratime", Action::Clear(MsFlags::MS_NODIRATIME)),
    flag("strictatime", Action::Set(MsFlags::MS_STRICTATIME)),
    flag("relatime", Action::Clear(MsFlags::MS_STRICTATIME)),
    flag("sync", Action::Set(MsFlags::MS_SYNCHRONOUS)),
    flag("async", Action::Clear(MsFlags::MS_SYNCHRONOUS)),
    flag("dirsync", Action::Set(MsFlags::MS_DIRSYNC)),
    flag("lazytime", Action::Set(MsFlags::MS_LAZYTIME)),
    flag("nolazytime", Action::Clear(MsFlags::MS_LAZYTIME)),
    flag("nostrictatime", Action::Clear(MsFlags::MS_STRICTATIME)),
];

const OTHERS: &[Known] = &[
    // The kernel always checks permissions: the union itself doesn't.
    flag("default_permissions", Action::Nothing),
    flag("defaults", Action::Nothing),
    flag("auto", Action::Nothing),
    flag("noauto", Action::Nothing),
    flag("nofail", Action::Nothing),
    flag("_netdev", Action::Nothing),
    flag("nouser", Action::Nothing),
    flag("user", Action::Others),
    flag("users", Action::Others),
    flag("owner", Action::Others),
    flag("group", Action::Others),
    flag("helper", Action::Others),
    flag("uhelper", Action::Others),
    flag("comment", Action::Others),
    flag("norelatime", Action::Nothing),
    flag("loud", Action::Nothing),
    flag("silent", Action::Nothing),
    flag("nomand", Action::Nothing),
    flag("noiversion", Action::Nothing),
    // Refused, with advice.
    flag("remount", Action::Remount),
];

/// Every option.
pub fn all() -> impl Iterator<Item = &'static Known> {
    GROUPS.iter().flat_map(|(_, options)| *options)
}

/// The option of a name.
pub fn known(name: &OsStr) -> Option<&'static Known> {
    all().find(|known| OsStr::new(known.name) == name)
}

/// How wide a line of the help may be.
const WIDTH: usize = 98;
/// Where the meanings begin in it.
const MEANING: usize = 25;

/// All options with what they mean, for a person to read.
pub fn help() -> String {
    let mut text = "Options of -o:".to_owned();
    for (title, options) in GROUPS {
        text.push_str("\n\n");
        text.push_str(title);
        text.push(':');
        // How much of the line is left for options without a meaning of their own.
        let mut left = None;
        for Known { name, value, meaning, .. } in options.iter().filter(|known| known.action != Action::Remount) {
            let form = if value.is_empty() { (*name).to_owned() } else { format!("{name}={value}") };
            if !meaning.is_empty() {
                text.push_str(&format!("\n  {form:MEANING$}{meaning}"));
                continue;
            }
            let place = form.len() + 2;
            let fits = left.and_then(|left: usize| left.checked_sub(place));
            text.push_str(match (left, fits) {
                (None, _) => "\n  ",
                (Some(_), None) => ",\n  ",
                (Some(_), Some(_)) => ", ",
            });
            text.push_str(&form);
            left = Some(fits.unwrap_or(WIDTH - place));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_name_is_one_options() {
        let mut names = HashSet::new();
        assert!(all().all(|known| names.insert(known.name)));
    }

    #[test]
    fn the_help_has_lines_of_a_terminal() {
        let help = help();
        assert!(help.lines().all(|line| line.len() <= WIDTH + 2 && line.trim_end() == line), "{help}");
        assert!(all().all(|known| known.action == Action::Remount || help.contains(known.name)), "{help}");
    }
}
