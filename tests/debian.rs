//! Real input: a Debian root tree, split over layers, in which apt, dpkg, gcc and python work.
//!
//! It needs debootstrap and a package source, so it runs only where `LAYERFS_TEST_DEBIAN` is set;
//! `tools/test-all` does that. The unpacked tree is kept in the target directory between runs.

mod common;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::files::*;
use common::machine::find_program;
use common::mount::{Ended, run, try_run};
use common::others::OtherMount;
use common::tree::Tree;
use common::union::Union;

const GATE: &str = "LAYERFS_TEST_DEBIAN";
const LIMIT: Duration = Duration::from_secs(900);
const PACKAGES: [&str; 5] = ["gcc", "libc6-dev", "python3-minimal", "git", "less"];

fn main() {
    common::main(vec![t!(a_system_lives_in_a_union).root().needs(not_asked_for).needs(no_debootstrap).seconds(3000)]);
}

fn not_asked_for() -> Option<String> {
    std::env::var_os(GATE).is_none().then(|| format!("needs packages and a package source; tools/test-all sets {GATE}"))
}

fn no_debootstrap() -> Option<String> {
    find_program("debootstrap").is_none().then(|| "there is no debootstrap".to_owned())
}

/// Runs a command that may take long, and fails the test with its output if it fails.
#[track_caller]
fn must(command: &mut Command) -> Ended {
    let shown = format!("{command:?}");
    let ended = try_run(command, LIMIT).unwrap_or_else(|fault| panic!("{fault}"));
    assert!(ended.status.success(), "{shown}\n{}\n{}", ended.stdout, ended.stderr);
    ended
}

/// The package source that most of the machine's own indexes come from.
fn mirror() -> String {
    must(Command::new("apt-get").arg("update"));
    let sites = must(Command::new("apt-get").args(["indextargets", "--format", "$(SITE)"])).stdout;
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for site in sites.lines() {
        *counts.entry(site).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(_, count)| *count);
    most.expect("a package source").0.to_owned()
}

fn codename() -> String {
    let text = read("/etc/os-release");
    let line = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    line.expect("VERSION_CODENAME in /etc/os-release").trim_matches('"').to_owned()
}

/// A minimal Debian tree, made once.
fn tree() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target directory");
    let place = target.join("debian");
    let (tree, complete) = (place.join("tree"), place.join("complete"));
    if complete.exists() {
        return tree;
    }
    if place.exists() {
        fs::remove_dir_all(&place).expect("remove half a tree");
    }
    make_dir(&place);
    must(Command::new("debootstrap").args(["--variant=minbase", &codename()]).arg(&tree).arg(mirror()));
    put(&complete, "");
    tree
}

/// Gives the tree the package sources of this machine.
fn configure(tree: &Path) {
    let sources = tree.join("etc/apt/sources.list");
    if sources.exists() {
        fs::remove_file(sources).expect("remove the tree's own sources");
    }
    for path in ["/etc/apt/sources.list", "/etc/resolv.conf", "/etc/hosts"] {
        if Path::new(path).exists() {
            must(Command::new("cp").arg("-L").arg(path).arg(tree.join(&path[1..])));
        }
    }
    for path in [
        "/etc/apt/sources.list.d",
        "/etc/apt/apt.conf.d",
        "/etc/apt/auth.conf.d",
        "/etc/apt/trusted.gpg.d",
        "/usr/share/keyrings",
    ] {
        if Path::new(path).is_dir() {
            let to = tree.join(&path[1..]);
            make_dir(&to);
            must(Command::new("cp").arg("-RL").arg(format!("{path}/.")).arg(to));
        }
    }
}

/// Spreads a tree over five lowers, so that `usr` and `var` are merged from several, and lets
/// upper layers replace, delete and hide things that lower ones have.
fn split(from: &Path, union: &Union) {
    let whole = union.lower(4, "");
    must(Command::new("cp").arg("-a").arg(from.join(".")).arg(&whole));
    configure(&whole);
    let children = |path: &str, but: &[&str]| -> Vec<PathBuf> {
        let names = names(whole.join(path)).into_iter();
        names.filter(|name| !but.contains(&name.as_str())).map(|name| Path::new(path).join(name)).collect()
    };
    let parts = [
        (1, children("", &["usr", "var"])),
        (2, children("usr", &["lib", "share"])),
        (2, children("var", &["lib"])),
        (3, vec!["usr/share".into(), "var/lib/dpkg".into()]),
    ];
    for (layer, paths) in parts {
        for path in paths {
            let parent = path.parent().expect("a path below the root");
            make_like(&whole, &union.lower(layer, ""), parent);
            let to = union.lower(layer, "").join(parent);
            must(Command::new("mv").arg(whole.join(&path)).arg(to));
        }
    }
    // What an image's later layers do to its earlier ones.
    put(union.lower(4, "opt/replaced"), "old");
    put(union.lower(0, "opt/replaced"), "new");
    put(union.lower(4, "opt/deleted/file"), "old");
    whiteout(union.lower(2, "opt/deleted"));
    put(union.lower(3, "opt/hidden/old"), "old");
    put(union.lower(1, "opt/hidden/new"), "new");
    mark(union.lower(1, "opt/hidden"), "trusted.overlay.opaque", "y");
    put(union.lower(3, "opt/both/lower"), "x");
    put(union.lower(1, "opt/both/upper"), "x");
}

/// Makes the directories down to `path` with the owners and modes of the whole tree's.
fn make_like(whole: &Path, layer: &Path, path: &Path) {
    for ancestor in path.ancestors().collect::<Vec<_>>().into_iter().rev() {
        let to = layer.join(ancestor);
        make_dir(&to);
        for program in ["chmod", "chown"] {
            let reference = format!("--reference={}", whole.join(ancestor).display());
            must(Command::new(program).arg(reference).arg(&to));
        }
    }
}

/// The union as a system: /proc and /dev in place, programs run by chroot.
struct System {
    root: PathBuf,
    mounts: Vec<OtherMount>,
}

impl System {
    fn start(root: PathBuf) -> System {
        let mounts = ["proc", "dev"].map(|name| OtherMount::bind(&Path::new("/").join(name), &root.join(name))).into();
        System { root, mounts }
    }

    fn command<S: AsRef<OsStr>>(&self, words: &[S]) -> Command {
        let mut command = Command::new("chroot");
        command
            .arg(&self.root)
            .args(words)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive");
        for name in ["http_proxy", "https_proxy", "no_proxy"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }

    #[track_caller]
    fn must(&self, line: &str) -> String {
        let start = Instant::now();
        let ended = must(&mut self.command(&["sh", "-c", line]));
        println!("{:6.1} s  {line}", start.elapsed().as_secs_f32());
        ended.stdout
    }

    fn end(self) {
        drop(self.mounts);
    }
}

fn a_system_lives_in_a_union() {
    let tree = tree();
    let mut union = Union::new(5);
    split(&tree, &union);
    let before = union.lower_trees();
    println!("lowers of {:?} objects", before.iter().map(Tree::len).collect::<Vec<_>>());

    union.mount();
    assert_layers(&union);
    let system = System::start(union.point());
    // What a plain copy of the tree says too: nothing, unless the machine leaves out documentation.
    let verified = system.must("dpkg --verify || true");
    install_and_use(&system, &verified);
    system.end();

    let start = Instant::now();
    union.assert_lasting();
    println!("{:6.1} s  mounted again, and by the kernel: the same tree", start.elapsed().as_secs_f32());
    union.assert_lowers(&before);

    let kernel = union.kernel("redirect_dir=on,metacopy=on,index=on");
    let system = System::start(union.point());
    assert_eq!(system.must("dpkg --verify || true"), verified, "through the kernel's overlay");
    system.end();
    kernel.umount();
    union.mount();
    let system = System::start(union.point());
    system.must("apt-get install -y --no-install-recommends less && less --version");
    assert_eq!(system.must("dpkg --verify || true"), verified, "after the kernel's turn");
    system.end();
    union.umount();
    union.assert_lowers(&before);
}

fn assert_layers(union: &Union) {
    assert_eq!(read(union.at("opt/replaced")), "new");
    assert_eq!(names(union.at("opt")), ["both", "hidden", "replaced"]);
    assert_eq!(names(union.at("opt/hidden")), ["new"]);
    assert_eq!(names(union.at("opt/both")), ["lower", "upper"]);
}

fn install_and_use(system: &System, verified: &str) {
    system.must("apt-get update");
    let packages = PACKAGES.join(" ");
    system.must(&format!("apt-get install -y --no-install-recommends {packages}"));
    assert_eq!(system.must("dpkg --verify || true"), verified, "what dpkg unpacked is what it meant to");
    assert_eq!(system.must("dpkg --audit"), "");

    put(
        system.root.join("root/hello.c"),
        "#include <stdio.h>\nint main(void) { puts(\"compiled in the union\"); return 0; }\n",
    );
    system.must("cd /root && gcc -O2 -Wall -o hello hello.c");
    assert_eq!(system.must("/root/hello"), "compiled in the union\n");

    put(
        system.root.join("root/words.py"),
        "import os, pathlib, hashlib\n\
         here = pathlib.Path('/root/words')\n\
         here.mkdir()\n\
         for i in range(500):\n    (here / str(i)).write_text(str(i) * i)\n\
         for i in range(0, 500, 2):\n    os.rename(here / str(i), here / ('even%d' % i))\n\
         print(len(os.listdir(here)), hashlib.sha256(b'x').hexdigest()[:8])\n",
    );
    assert_eq!(system.must("python3 /root/words.py"), "500 2d711642\n");

    system.must(
        "cd /root && git init -q repo && cd repo && cp -r /usr/share/perl* . && git add . \
         && git -c user.name=a -c user.email=a@b commit -qm all && git checkout -q -b other \
         && mkdir moved && git mv perl* moved && git -c user.name=a -c user.email=a@b commit -qm moved \
         && git checkout -q - && git status --porcelain && git fsck",
    );
    assert_eq!(system.must("cd /root/repo && git status --porcelain"), "");

    system.must("mv /usr/share/doc /usr/share/doc.moved && mv /usr/share/doc.moved /usr/share/doc");
    system.must("ln /usr/bin/dpkg /root/dpkg && cmp /root/dpkg /usr/bin/dpkg && rm /root/dpkg");
    system.must("cp -a /etc /root/etc && diff -r --no-dereference /etc /root/etc && rm -r /root/etc");
    system.must("tar -C / -cf - usr/bin | tar -C /root -xf - && diff -r --no-dereference /usr/bin /root/usr/bin");

    system.must("apt-get remove -y --purge git gcc less && apt-get autoremove -y --purge");
    assert!(!system.root.join("usr/bin/git").exists());
    assert_eq!(system.must("dpkg --verify || true"), verified, "after packages are gone");
    system.must("apt-get install -y --no-install-recommends git && git --version");
    let alive = run(&mut system.command(&["/root/hello"]));
    assert_eq!(alive.stdout, "compiled in the union\n");
}
