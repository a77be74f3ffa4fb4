//! The layers of one test in a fresh directory, and the union of them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use tempfile::TempDir;

use super::files::make_dir;
use super::machine::{not_root, scratch};
use super::mount::{COMMAND_LIMIT, Ended, Mount, eventually, layerfs, mounts, processes_of, try_run};
use super::others::KernelOverlay;
use super::tree::Tree;

/// Layers, work directory and mountpoint in one fresh directory, and the mount over them.
pub struct Union {
    /// The mount is dropped before the directory that it lies in.
    mount: Option<Mount>,
    directory: Option<TempDir>,
    root: PathBuf,
    /// First = top.
    lowers: Vec<PathBuf>,
    upper: PathBuf,
    work: PathBuf,
    writable: bool,
    more: Vec<OsString>,
}

impl Union {
    /// `count` empty lowers under an empty upper; nothing is mounted yet.
    pub fn new(count: usize) -> Union {
        let directory = scratch();
        let root = directory.path().to_owned();
        let lowers: Vec<PathBuf> = (0..count).map(|i| root.join(format!("lower{i}"))).collect();
        for path in lowers.iter().chain(&["upper", "work", "mnt"].map(|name| root.join(name))) {
            make_dir(path);
        }
        Union {
            mount: None,
            directory: Some(directory),
            upper: root.join("upper"),
            work: root.join("work"),
            root,
            lowers,
            writable: true,
            more: Vec::new(),
        }
    }

    /// Without an upper.
    pub fn read_only(mut self) -> Union {
        self.writable = false;
        self
    }

    /// Upper and work in another directory, on a filesystem of their own for example.
    pub fn upper_in(mut self, directory: &Path) -> Union {
        self.upper = directory.join("upper");
        self.work = directory.join("work");
        make_dir(&self.upper);
        make_dir(&self.work);
        self
    }

    /// One more lower, below all others.
    pub fn lower_in(mut self, directory: &Path) -> Union {
        self.lowers.push(directory.to_owned());
        self
    }

    /// With more arguments.
    pub fn arguments(mut self, more: &[&str]) -> Union {
        self.more.extend(more.iter().map(OsString::from));
        self
    }

    /// The directory that everything lies in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path in the mount.
    pub fn at(&self, path: &str) -> PathBuf {
        join(&self.point(), path)
    }

    /// A path in lower `i`, where 0 is the top.
    pub fn lower(&self, i: usize, path: &str) -> PathBuf {
        join(&self.lowers[i], path)
    }

    /// All lowers, first = top.
    pub fn lowers(&self) -> &[PathBuf] {
        &self.lowers
    }

    /// A path in upper.
    pub fn upper(&self, path: &str) -> PathBuf {
        join(&self.upper, path)
    }

    /// A path in the work directory.
    pub fn work(&self, path: &str) -> PathBuf {
        join(&self.work, path)
    }

    /// The mountpoint.
    pub fn point(&self) -> PathBuf {
        self.root.join("mnt")
    }

    /// What `layerfs mount` is told, without the mountpoint.
    pub fn command_line(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        for lower in &self.lowers {
            arguments.extend(["--lower".into(), lower.into()]);
        }
        if self.writable {
            arguments.extend(["--upper".into(), self.upper("").into()]);
            arguments.extend(["--work".into(), self.work("").into()]);
        }
        arguments.extend(self.more.iter().cloned());
        arguments
    }

    /// Mounts the union in the background.
    #[track_caller]
    pub fn mount(&mut self) {
        self.mount = Some(Mount::start(&self.command_line(), &self.point()));
    }

    /// Mounts with `-f`.
    #[track_caller]
    pub fn mount_foreground(&mut self) {
        self.mount = Some(Mount::start_foreground(&self.command_line(), &self.point()));
    }

    /// Tries to mount; a refusal is an answer.
    #[track_caller]
    pub fn try_mount(&mut self) -> Result<(), Ended> {
        self.mount = Some(Mount::attempt(&self.command_line(), &self.point())?);
        Ok(())
    }

    /// The mount itself.
    #[track_caller]
    pub fn mounted(&mut self) -> &mut Mount {
        self.mount.as_mut().expect("the union is mounted")
    }

    /// Unmounts.
    #[track_caller]
    pub fn umount(&mut self) {
        self.mount.take().expect("the union is mounted").umount();
    }

    /// Clears away the mount of a daemon that was killed.
    #[track_caller]
    pub fn umount_dead(&mut self) {
        let point = self.point();
        let ended = eventually(10, || processes_of(point.as_os_str()).is_empty());
        assert!(ended, "a killed daemon is gone");
        self.mounted().clear_dead();
        self.umount();
    }

    /// Kills the daemon and waits until it is gone; its dead mount stays.
    #[track_caller]
    pub fn kill_daemon(&mut self) {
        self.mounted().signal(Signal::SIGKILL);
        let point = self.point();
        assert!(eventually(10, || processes_of(point.as_os_str()).is_empty()), "a killed daemon is gone");
    }

    /// Mounts again in place of the dead mount of a daemon that was killed.
    #[track_caller]
    pub fn recover(&mut self) {
        self.mount.take().expect("the union was mounted").leave_dead();
        let mut arguments = self.command_line();
        arguments.push("--recover".into());
        self.mount = Some(Mount::start(&arguments, &self.point()));
    }

    /// Unmounts and mounts again.
    #[track_caller]
    pub fn remount(&mut self) {
        self.umount();
        self.mount();
    }

    /// What all lowers hold now, for [`Union::assert_lowers`].
    pub fn lower_trees(&self) -> Vec<Tree> {
        self.lowers.iter().map(|lower| Tree::of(lower)).collect()
    }

    /// Asserts that no lower has changed in any way.
    #[track_caller]
    pub fn assert_lowers(&self, before: &[Tree]) {
        for (i, (before, lower)) in before.iter().zip(&self.lowers).enumerate() {
            before.assert_same(&Tree::of(lower), &format!("lower {i}"));
        }
    }

    /// Asserts that a later mount shows the same tree with the same inode numbers, unmounts, and
    /// asserts, as root, that the kernel's overlay shows it too. It stays unmounted.
    #[track_caller]
    pub fn assert_lasting(&mut self) {
        let now = Tree::of(&self.point());
        self.remount();
        let later = Tree::of(&self.point()).across_mounts();
        now.clone().across_mounts().assert_same(&later, "mounted again");
        self.umount();
        if not_root().is_some() {
            return;
        }
        let kernel = self.kernel("redirect_dir=on,metacopy=on,index=on");
        let shown = Tree::of(&self.point()).portable();
        kernel.umount();
        now.portable().assert_same(&shown, "the kernel's overlay");
    }

    /// Mounts the same layers with the kernel's overlay.
    #[track_caller]
    pub fn kernel(&self, options: &str) -> KernelOverlay {
        KernelOverlay::start(&self.lowers, &self.upper(""), &self.work(""), options, &self.point())
            .unwrap_or_else(|error| panic!("the kernel's overlay refuses: {error}"))
    }

    /// What `layerfs stats --json` tells of the mount.
    #[track_caller]
    pub fn stats(&self) -> serde_json::Value {
        let words = ["stats".into(), self.point().into_os_string(), "--json".into()];
        let text = layerfs(words).success().stdout;
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }
}

impl Drop for Union {
    fn drop(&mut self) {
        self.mount = None;
        if mounts().iter().any(|mount| mount.point.starts_with(&self.root)) {
            // Removing the directory would reach through the mount.
            let kept = self.directory.take().map(TempDir::keep);
            eprintln!("a mount is left, and so is {kept:?}");
        } else if !geteuid().is_root() {
            // An ordinary user can't empty directories that a test has closed.
            let opened = try_run(Command::new("chmod").args(["-R", "u+rwx"]).arg(&self.root), COMMAND_LIMIT);
            if let Err(fault) = opened {
                eprintln!("{fault}");
            }
        }
    }
}

/// The ways to read and write in which this user can mount: by the kernel's caches, through them or late, where a write copies
/// up; by the daemon, where the opening does; and by the kernel alone, where that does, too.
pub fn io_modes() -> &'static [&'static [&'static str]] {
    const MODES: [&[&str]; 4] = [&[], &["-o", "io=cached"], &["-o", "timeout=0"], &["-o", "io=passthrough"]];
    if not_root().is_none() { &MODES } else { &MODES[..3] }
}

fn join(base: &Path, path: &str) -> PathBuf {
    match path {
        "" => base.to_owned(),
        path => base.join(path),
    }
}

/// Runs `act` on objects that `prepare` made: in a plain directory, which shows that the test
/// expects what Linux does; in a lower, where each change copies up; in upper; and through the
/// mount.
pub fn everywhere(prepare: impl Fn(&Path), act: impl Fn(&Path)) {
    let mut union = Union::new(2);
    let plain = union.root().join("plain");
    let places = [
        ("a plain directory", plain.clone(), plain),
        ("lower objects", union.lower(1, "low"), union.at("low")),
        ("upper objects", union.upper("up"), union.at("up")),
    ];
    for (_, made, _) in &places {
        make_dir(made);
        prepare(made);
    }
    let before = union.lower_trees();
    union.mount();
    for (place, _, seen) in places {
        here(place, || act(&seen));
    }
    let fresh = union.at("fresh");
    make_dir(&fresh);
    here("objects made through the mount", || {
        prepare(&fresh);
        act(&fresh);
    });
    union.assert_lowers(&before);
    union.umount();
}

/// Says where a failure happened.
fn here(place: &str, action: impl FnOnce()) {
    struct Say<'a>(&'a str);
    impl Drop for Say<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("    the panic above was with {}", self.0);
            }
        }
    }
    let _say = Say(place);
    action();
}
