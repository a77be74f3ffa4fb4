//! Directories that their owner may not write: an ordinary user's daemon moves them between upper and the work directory all
//! the same, which the kernel refuses of such a directory to who has no privilege.

use std::os::unix::fs::PermissionsExt;

use super::fixture::{Layers, PLAIN, View, set_mode};

const CLOSED: u32 = 0o555;

fn layers() -> Layers {
    let layers = Layers::new(1);
    for path in ["d/f", "gone", "emptied/x", "target/x", "whole/sub/x"] {
        layers.file(0, path, path);
    }
    layers.directory(0, "empty");
    for path in ["d", "empty", "whole/sub", "whole"] {
        set_mode(&layers.lower(0, path), CLOSED);
    }
    layers
}

/// So that the layers can be removed by an ordinary user too.
fn clear_away(layers: &Layers) {
    for layer in [layers.lowers[0].clone(), layers.upper("")] {
        for path in ["d", "whole", "whole/sub"].map(|path| layer.join(path)).iter().filter(|path| path.exists()) {
            set_mode(path, 0o755);
        }
    }
}

fn mode(view: &View, path: &str) -> u32 {
    view.stat(path).unwrap().mode & 0o7777
}

#[test]
fn they_come_up() {
    let layers = layers();
    let view = layers.open();
    view.write("d/f", 0, b"upper").unwrap();
    view.write("whole/sub/x", 0, b"upper").unwrap();
    for path in ["d", "whole", "whole/sub"] {
        assert_eq!(mode(&view, path), CLOSED, "{path}");
        assert_eq!(layers.upper("").join(path).metadata().unwrap().permissions().mode() & 0o7777, CLOSED, "{path}");
    }
    view.close();
    clear_away(&layers);
}

#[test]
fn they_are_made_over_whiteouts_replaced_and_removed() {
    let layers = layers();
    let view = layers.open();
    view.unlink("gone").unwrap();
    view.mkdir("gone", CLOSED).unwrap();
    assert_eq!(mode(&view, "gone"), CLOSED);
    view.rmdir("gone").unwrap();
    view.rmdir("empty").unwrap();
    for path in ["emptied", "target"] {
        view.unlink(&format!("{path}/x")).unwrap();
        view.chmod(path, CLOSED).unwrap();
    }
    view.rmdir("emptied").unwrap();
    view.mkdir("new", 0o755).unwrap();
    view.put("new/f", "new");
    view.rename("new", "target", PLAIN).unwrap();
    assert_eq!(view.names("").unwrap(), ["d", "target", "whole"]);
    view.close();
    assert_eq!(layers.staged(), [""; 0]);
    let view = layers.open();
    assert_eq!(view.names("").unwrap(), ["d", "target", "whole"]);
    assert_eq!(view.names("target").unwrap(), ["f"]);
    clear_away(&layers);
}
