//! Makes generated layers on disk.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use layerfs::layer::origin::Origin;
use layerfs::sys::handle;

use super::layers::{Attrs, Below, Entry, Layer, N, NSEC, Opaque, Way, What, Whiteout};
use super::merge::Merged;
use crate::fixture::{make_whiteout, mark, privileged, set_mode, set_times, set_xattr};

/// Makes the layers in empty directories, each where `roots` says, upper first.
pub fn write(layers: &[Layer], roots: &[PathBuf], merged: &Merged) {
    let mut claimed = HashSet::new();
    let mut claims = merged.origins.clone();
    // Two objects that claim one number, or one that is there itself: that makes no promise.
    claims.retain(|_, origin| !merged.leaves.contains_key(origin) && claimed.insert(*origin));
    let mut writer = Writer { layers, data: &merged.origins, claims, paths: HashMap::new() };
    for (index, root) in roots.iter().enumerate().rev() {
        writer.entries(index, root, &layers[index].entries, &Below::Shows);
    }
}

struct Writer<'l> {
    layers: &'l [Layer],
    /// Where the data of metadata copies is.
    data: &'l HashMap<(usize, usize), (usize, usize)>,
    /// What is marked as the origin of a copy.
    claims: HashMap<(usize, usize), (usize, usize)>,
    /// The first name of each leaf, by layer and number.
    paths: HashMap<(usize, usize), PathBuf>,
}

impl Writer<'_> {
    fn entries(&mut self, layer: usize, dir: &Path, entries: &BTreeMap<N, Entry>, below: &Below) {
        for (name, entry) in entries {
            let path = dir.join(name.text());
            match entry {
                Entry::Leaf(leaf) => self.leaf((layer, *leaf), &path),
                Entry::Dir(inner) => {
                    std::fs::create_dir(&path).unwrap();
                    self.entries(layer, &path, &inner.entries, &inner.below);
                    write_below(&path, &inner.below);
                    if let Below::Moved(_) = inner.below {
                        set_xattr(dir, &mark("impure"), b"y").unwrap();
                    }
                    write_attrs(&path, &inner.attrs);
                }
                Entry::Whiteout(form) => write_whiteout(dir, name.text(), *form, below),
            }
        }
    }

    fn leaf(&mut self, key: (usize, usize), path: &Path) {
        if let Some(first) = self.paths.get(&key) {
            return std::fs::hard_link(first, path).unwrap();
        }
        self.paths.insert(key, path.to_owned());
        let leaf = &self.layers[key.0].leaves[key.1];
        match &leaf.what {
            What::File(content) | What::Copy(content) => std::fs::write(path, content).unwrap(),
            What::Metacopy(way, size) => {
                let size = self.data.get(&key).map_or(*size, |origin| self.size(*origin));
                std::fs::File::create(path).unwrap().set_len(size as u64).unwrap();
                set_xattr(path, &mark("metacopy"), b"").unwrap();
                if let Some(way) = way {
                    set_xattr(path, &mark("redirect"), &encode(way)).unwrap();
                }
            }
            What::NullDevice => {
                std::fs::write(path, "").unwrap();
                set_xattr(path, &mark("layerfs.device"), b"0:0").unwrap();
            }
            What::Symlink(target) => return std::os::unix::fs::symlink(target, path).unwrap(),
            What::Fifo => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        }
        if let Some(origin) = self.claims.get(&key).and_then(|key| self.paths.get(key)) {
            set_xattr(path, &mark("origin"), &origin_of(origin)).unwrap();
        }
        if !matches!(leaf.what, What::File(_)) {
            set_xattr(path.parent().unwrap(), &mark("impure"), b"y").unwrap();
        }
        write_attrs(path, &leaf.attrs);
    }

    fn size(&self, key: (usize, usize)) -> usize {
        match &self.layers[key.0].leaves[key.1].what {
            What::File(content) | What::Copy(content) => content.len(),
            What::Metacopy(_, size) => *size,
            What::NullDevice | What::Symlink(_) | What::Fifo => 0,
        }
    }
}

fn origin_of(path: &Path) -> Vec<u8> {
    let dir = std::fs::File::open(path.parent().unwrap()).unwrap();
    let name = crate::fixture::xname(path.file_name().unwrap().to_str().unwrap());
    let handle = handle::of(dir.as_fd(), &name).unwrap();
    Origin { uuid: handle::fs_uuid(dir.as_fd()), handle }.encode().unwrap()
}

fn write_attrs(path: &Path, attrs: &Attrs) {
    if privileged() {
        std::os::unix::fs::chown(path, Some(attrs.owner.0), Some(attrs.owner.1)).unwrap();
    }
    set_mode(path, attrs.mode);
    for (name, value) in &attrs.xattrs {
        set_xattr(path, name, value).unwrap();
    }
    if let Some(mtime) = attrs.mtime {
        set_times(path, mtime, NSEC.into());
    }
}

fn write_below(dir: &Path, below: &Below) {
    let name = match below {
        Below::Shows => return,
        Below::Moved(way) => return set_xattr(dir, &mark("redirect"), &encode(way)).unwrap(),
        Below::Hidden(Opaque::Trusted) if privileged() => "trusted.overlay.opaque",
        Below::Hidden(Opaque::Trusted | Opaque::User) => "user.overlay.opaque",
        Below::Hidden(Opaque::FuseOverlayfs) => "user.fuseoverlayfs.opaque",
        Below::Hidden(Opaque::DotFile) => return std::fs::write(dir.join(".wh..wh..opq"), "").unwrap(),
        Below::Hidden(Opaque::Beside) => {
            let name = dir.file_name().unwrap().to_str().unwrap();
            return std::fs::write(dir.with_file_name(format!(".wh.{name}")), "").unwrap();
        }
    };
    set_xattr(dir, name, b"y").unwrap();
}

fn encode(way: &Way) -> Vec<u8> {
    match way {
        Way::Sibling(name) => name.text().into(),
        Way::Path(path) => path.iter().flat_map(|name| ["/", name.text()]).collect::<String>().into(),
    }
}

fn write_whiteout(dir: &Path, name: &str, form: Whiteout, below: &Below) {
    let opaque = matches!(below, Below::Hidden(Opaque::Trusted | Opaque::User));
    let namespace = match form {
        Whiteout::Device => return make_whiteout(&dir.join(name)),
        Whiteout::DotFile => return std::fs::write(dir.join(format!(".wh.{name}")), "").unwrap(),
        // The attribute that announces them can't also say that the directory is opaque.
        _ if opaque => return make_whiteout(&dir.join(name)),
        Whiteout::Trusted if privileged() => "trusted",
        Whiteout::Trusted | Whiteout::User => "user",
    };
    std::fs::write(dir.join(name), "").unwrap();
    set_xattr(&dir.join(name), &format!("{namespace}.overlay.whiteout"), b"y").unwrap();
    set_xattr(dir, &format!("{namespace}.overlay.opaque"), b"x").unwrap();
}
