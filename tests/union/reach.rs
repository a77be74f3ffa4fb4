//! Layers in which somebody moves things about: nothing outside is reached, also when descriptors were given back meanwhile.

use layerfs::error::Errno;

use super::fixture::{Layers, View, name};

/// More directories than descriptors are kept of: the next use of another one has to find it again by its place.
const MANY: usize = 400;

fn crowd(layers: &Layers) {
    for index in 0..MANY {
        layers.file(0, &format!("crowd/{index}/f"), "");
    }
}

/// Drives every other directory's descriptor out; a directory that is forgotten has none.
fn give_descriptors_back(view: &View) {
    let mut known = Vec::new();
    for index in 0..MANY {
        known.push(view.hold(&format!("crowd/{index}")).unwrap());
        assert_eq!(view.names(&format!("crowd/{index}")).unwrap(), ["f"]);
    }
    assert!(view.stats().descriptors < MANY as u64);
}

#[test]
fn a_directory_found_again_is_the_one_that_was_known() {
    // What takes the place: a symlink, another directory, a file, nothing.
    for (kind, index) in [("lower", 0), ("upper", 1)] {
        for replacement in ["symlink", "parent symlink", "directory", "file", "nothing"] {
            let layers = Layers::new(1);
            crowd(&layers);
            let place = |path: &str| if index == 0 { layers.lower(0, path) } else { layers.upper(path) };
            std::fs::create_dir_all(place("p/d")).unwrap();
            std::fs::write(place("p/d/file"), "inside").unwrap();
            std::fs::create_dir_all(layers.beside("outside/d")).unwrap();
            for secret in ["outside/file", "outside/d/file"] {
                std::fs::write(layers.beside(secret), "secret").unwrap();
            }
            let view = layers.open();
            let dir = view.hold("p/d").unwrap();
            let file = view.hold("p/d/file").unwrap();
            give_descriptors_back(&view);
            match replacement {
                "parent symlink" => {
                    std::fs::rename(place("p"), layers.beside("moved")).unwrap();
                    std::os::unix::fs::symlink(layers.beside("outside"), place("p")).unwrap();
                }
                _ => std::fs::rename(place("p/d"), layers.beside("moved")).unwrap(),
            }
            match replacement {
                "symlink" => std::os::unix::fs::symlink(layers.beside("outside"), place("p/d")).unwrap(),
                "directory" => {
                    std::fs::create_dir(place("p/d")).unwrap();
                    std::fs::write(place("p/d/file"), "secret").unwrap();
                }
                "file" => std::fs::write(place("p/d"), "secret").unwrap(),
                _ => {}
            }
            let what = format!("{replacement} in {kind}");
            let mut bytes = [0; 16];
            let refused = [Errno::ESTALE, Errno::ENOENT, Errno::ELOOP, Errno::ENOTDIR, Errno::EIO];
            let is_refused = |error: Errno| assert!(refused.contains(&error), "{what}: {error}");
            is_refused(view.union.read(file.ino, 0, &mut bytes).unwrap_err());
            is_refused(view.union.write(file.ino, 0, b"x").unwrap_err());
            is_refused(view.union.lookup(dir.ino, &name("file")).unwrap_err());
            is_refused(view.union.readdir(dir.ino, 0, &mut |_| true).unwrap_err());
            is_refused(view.union.unlink(dir.ino, &name("file")).unwrap_err());
            for secret in ["outside/file", "outside/d/file"] {
                assert_eq!(std::fs::read(layers.beside(secret)).unwrap(), b"secret", "{what}");
            }
            assert_eq!(view.names("crowd/7").unwrap(), ["f"], "{what}: the rest works on");
        }
    }
}
