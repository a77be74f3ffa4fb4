//! What a disk shows after a power cut: upper is recovered, as the next mount does, and compared with what may be seen.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use layerfs::layer::StackSpec;
use layerfs::union::{Options, Union};

use super::fixture::View;
use super::history::Seen;
use crate::common::files::{exists, names};
use crate::common::others::KernelOverlay;
use crate::common::sys;
use crate::common::tree::Tree;

const UNCOMMITTED: &str = "trusted.overlay.layerfs.uncommitted";
const KIND: u32 = libc::S_IFMT;

/// The layers on a disk.
pub struct Layers<'a> {
    root: &'a Path,
}

impl Layers<'_> {
    /// The layers below `root`.
    pub fn new(root: &Path) -> Layers<'_> {
        Layers { root }
    }

    /// The lowers, first = top.
    pub fn lowers(&self) -> Vec<PathBuf> {
        ["lower0", "lower1"].map(|name| self.root.join(name)).into()
    }

    fn upper(&self) -> PathBuf {
        self.root.join("upper")
    }

    fn work(&self, path: &str) -> PathBuf {
        self.root.join("work").join(path)
    }

    /// What the lowers hold.
    pub fn lower_trees(&self) -> Vec<Tree> {
        self.lowers().iter().map(|lower| Tree::of(lower)).collect()
    }

    /// The files of upper and of the index that have the mark of an uncommitted copy, with what they hold.
    pub fn uncommitted(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut todo = vec![self.upper(), self.work("index")];
        todo.retain(|directory| exists(directory));
        while let Some(directory) = todo.pop() {
            for name in names(&directory) {
                let path = directory.join(name);
                let status = fs::symlink_metadata(&path).expect("lstat");
                if status.is_dir() {
                    todo.push(path);
                } else if status.is_file() && sys::get_xattr(&path, UNCOMMITTED).is_ok() {
                    found.insert(path.clone(), fs::read(&path).expect("read"));
                }
            }
        }
        found
    }

    /// Opens the union, as the next mount after the machine has started again.
    pub fn open(&self) -> View {
        let spec = StackSpec {
            lowers: self.lowers(),
            upper: Some(self.upper()),
            work: Some(self.work("")),
            userxattr: false,
            trusted_lowers: false,
            xattr_permissions: None,
        };
        let options = Options { boot_id: Some("another run of the machine".to_owned()), ..Options::default() };
        // The process's mask stays what it is: it is the workers' of other runs, too, and nothing is made here.
        View { union: Union::open(&spec, options).expect("a union") }
    }

    /// After recovery: no mark is left, and what uncommitted copies held is theirs still or kept aside.
    pub fn check_recovered(&self, uncommitted: &BTreeMap<PathBuf, Vec<u8>>) -> Result<(), String> {
        if let Some((left, _)) = self.uncommitted().first_key_value() {
            return Err(format!("{left:?} is not committed"));
        }
        let directory = self.work("layerfs/recovered");
        let kept = if exists(&directory) { names(&directory) } else { Vec::new() };
        let kept: Vec<Vec<u8>> = kept.iter().map(|name| fs::read(directory.join(name)).expect("read")).collect();
        let lost = uncommitted.iter().find(|(path, held)| {
            let now = fs::read(path).expect("read");
            !held.is_empty() && now != **held && !kept.contains(held)
        });
        lost.map_or(Ok(()), |(path, held)| Err(format!("{} bytes that {path:?} held are lost", held.len())))
    }

    /// What the kernel's overlay shows of a union that has ended, below `point`.
    pub fn seen_by_the_kernel(&self, point: &Path) -> BTreeMap<String, Seen> {
        let options = "redirect_dir=on,metacopy=on,index=on";
        let kernel = KernelOverlay::start(&self.lowers(), &self.upper(), &self.work(""), options, point);
        let kernel = kernel.unwrap_or_else(|error| panic!("the kernel's overlay refuses: {error}"));
        let seen = seen_below(point, "");
        kernel.umount();
        seen
    }
}

/// What a union shows below a directory.
pub fn seen_in(view: &View, directory: &str) -> BTreeMap<String, Seen> {
    let mut seen = BTreeMap::new();
    let mut todo = vec![String::new()];
    while let Some(inside) = todo.pop() {
        for name in view.names(&join(directory, &inside)).expect("readdir") {
            let path = join(&inside, &name);
            let full = join(directory, &path);
            let mode = view.stat(&full).unwrap_or_else(|error| panic!("{full}: {error}")).mode;
            let content = (mode & KIND != libc::S_IFDIR).then(|| view.read(&full).expect("read"));
            if content.is_none() {
                todo.push(path.clone());
            }
            seen.insert(path, Seen { content, mode: mode & 0o7777 });
        }
    }
    seen
}

/// What a mounted tree shows.
fn seen_below(root: &Path, directory: &str) -> BTreeMap<String, Seen> {
    use std::os::unix::fs::MetadataExt;
    let mut seen = BTreeMap::new();
    for name in names(root.join(directory)) {
        let path = join(directory, &name);
        let status = fs::symlink_metadata(root.join(&path)).expect("lstat");
        let content = status.is_file().then(|| fs::read(root.join(&path)).expect("read"));
        if content.is_none() {
            seen.extend(seen_below(root, &path));
        }
        seen.insert(path, Seen { content, mode: status.mode() & 0o7777 });
    }
    seen
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}").trim_end_matches('/').to_owned() }
}
