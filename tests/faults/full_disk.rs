//! A disk that is really full: nothing half-done is left, and with room again everything works.

use std::path::Path;

use layerfs::error::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::fixture::*;

/// The size of the disk, in bytes.
const SIZE: usize = 2 << 20;

/// A filesystem of [`SIZE`] bytes, in memory.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={SIZE},mode=755");
        match mount(Some("layerfs-test"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str())) {
            Ok(()) => Some(Self(dir)),
            Err(e) => {
                eprintln!("left out: a small disk can't be mounted: {e}");
                None
            }
        }
    }

    fn layers(&self, lowers: &Layers) -> layerfs::layer::StackSpec {
        for name in ["upper", "work"] {
            std::fs::create_dir(self.0.path().join(name)).unwrap();
        }
        let (upper, work) = (self.0.path().join("upper"), self.0.path().join("work"));
        layerfs::layer::StackSpec { upper: Some(upper), work: Some(work), ..lowers.spec() }
    }

    fn fill(&self) {
        let mut block = 1 << 16;
        let path = self.0.path().join("ballast");
        let mut ballast = std::fs::File::create(path).unwrap();
        while block > 0 {
            if std::io::Write::write_all(&mut ballast, &vec![1; block]).is_err() {
                block /= 2;
            }
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.path().join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

fn open(spec: &layerfs::layer::StackSpec) -> View {
    View { union: layerfs::union::Union::open(spec, layerfs::union::Options::default()).unwrap() }
}

fn staged(work: &Path) -> usize {
    work.join("layerfs/stage").read_dir().unwrap().count()
}

#[test]
fn copy_up_on_a_full_disk_leaves_the_lower_file() {
    let Some(disk) = SmallDisk::new() else { return };
    let lowers = Layers::new(1);
    let content = "content ".repeat(SIZE / 32);
    lowers.file(0, "dir/file", &content);
    let was = snapshot(&lowers.lowers[0]);
    let spec = disk.layers(&lowers);
    let all = layerfs::union::Options { metacopy: false, ..Default::default() };
    let view = View { union: layerfs::union::Union::open(&spec, all).unwrap() };
    disk.fill();
    assert_eq!(view.write("dir/file", 0, b"changed"), Err(Errno::ENOSPC));
    assert_eq!(view.chmod("dir/file", 0o600).err(), Some(Errno::ENOSPC));
    assert_eq!(view.rename("dir/file", "dir/new", PLAIN), Err(Errno::ENOSPC));
    assert_eq!(view.text("dir/file"), content);
    assert_eq!(staged(spec.work.as_ref().unwrap()), 0, "what is left of the attempts takes no room");

    disk.make_room();
    view.write("dir/file", 0, b"changed").unwrap();
    assert_eq!(view.text("dir/file"), content.replacen("content", "changed", 1));
    view.close();
    assert_eq!(open(&spec).text("dir/file"), content.replacen("content", "changed", 1));
    assert_eq!(snapshot(&lowers.lowers[0]), was);
}

#[test]
fn a_metadata_copy_fits_and_stays_one_while_its_data_does_not() {
    use std::os::unix::fs::MetadataExt;
    let Some(disk) = SmallDisk::new() else { return };
    let lowers = Layers::new(1);
    let content = "large ".repeat(SIZE / 4);
    lowers.file(0, "file", &content);
    let spec = disk.layers(&lowers);
    let view = open(&spec);
    view.chmod("file", 0o600).unwrap();
    view.touch("file", 5, 6).unwrap();
    view.rename("file", "moved", PLAIN).unwrap();
    assert_eq!(view.write("moved", 0, b"x"), Err(Errno::ENOSPC));
    let check = |view: &View| {
        assert_eq!(view.text("moved"), content);
        let attr = view.stat("moved").unwrap();
        assert_eq!((attr.mode & 0o7777, attr.mtime.sec, attr.mtime.nsec), (0o600, 5, 6));
    };
    check(&view);
    let copy = spec.upper.as_ref().unwrap().join("moved").metadata().unwrap();
    assert_eq!((copy.blocks(), copy.len()), (0, content.len() as u64), "the attempt takes no room");
    view.close();
    let view = open(&spec);
    check(&view);
    view.truncate("moved", 0).unwrap();
    view.write("moved", 0, b"small").unwrap();
    assert_eq!(view.text("moved"), "small");
}

#[test]
fn a_file_larger_than_the_disk_is_never_half_there() {
    let Some(disk) = SmallDisk::new() else { return };
    let lowers = Layers::new(1);
    let content = "large ".repeat(SIZE / 4);
    lowers.file(0, "file", &content);
    let spec = disk.layers(&lowers);
    let view = open(&spec);
    assert_eq!(view.write("file", 0, b"x"), Err(Errno::ENOSPC));
    assert_eq!(view.read("file").unwrap().len(), content.len());
    assert_eq!(staged(spec.work.as_ref().unwrap()), 0);
    // Nothing but its metadata has to fit then.
    view.truncate("file", 0).unwrap();
    view.write("file", 0, b"small").unwrap();
    assert_eq!(view.text("file"), "small");
}

#[test]
fn everything_that_a_full_disk_refused_works_later() {
    let Some(disk) = SmallDisk::new() else { return };
    let lowers = Layers::new(1);
    for i in 0..20 {
        lowers.file(0, &format!("dir{i}/file"), &"text ".repeat(2000));
    }
    let spec = disk.layers(&lowers);
    let view = open(&spec);
    view.put("here", "made before");
    disk.fill();
    let mut refused = 0;
    for i in 0..20 {
        let path = format!("dir{i}/file");
        match view.write(&path, 0, b"TEXT") {
            Ok(()) => assert!(view.text(&path).starts_with("TEXT text ")),
            Err(e) => {
                assert_eq!(e, Errno::ENOSPC);
                assert!(view.text(&path).starts_with("text text "), "{path}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
    // A removal is what makes room.
    view.unlink("here").unwrap();
    disk.make_room();
    for i in 0..20 {
        view.write(&format!("dir{i}/file"), 0, b"TEXT").unwrap();
        assert_eq!(view.text(&format!("dir{i}/file")), format!("TEXT {}", "text ".repeat(1999)));
    }
    view.close();
}
