//! What the log says of a layer's faults.

use std::sync::Mutex;

use layerfs::error::Errno;
use layerfs::union::Union;

use super::fixture::{Layers, mark, name, set_xattr};

/// Everything that is logged in this process.
struct Lines(Mutex<Vec<String>>);

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(format!("{}: {}", record.level(), record.args()));
    }

    fn flush(&self) {}
}

static LINES: Lines = Lines(Mutex::new(Vec::new()));

fn lines_about(what: &str) -> Vec<String> {
    LINES.0.lock().unwrap().iter().filter(|line| line.contains(what)).cloned().collect()
}

#[test]
fn a_bad_mark_is_one_line_that_names_the_object() {
    log::set_logger(&LINES).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let layers = Layers::new(1);
    layers.file(0, "good", "lower");
    std::fs::create_dir(layers.upper("dir-with-a-bad-redirect")).unwrap();
    std::fs::write(layers.upper("file-with-a-bad-redirect"), "x").unwrap();
    for object in ["dir-with-a-bad-redirect", "file-with-a-bad-redirect"] {
        set_xattr(&layers.upper(object), &mark("redirect"), b"../\n\xff").unwrap();
    }
    std::fs::write(layers.upper("file-without-its-data"), "x").unwrap();
    set_xattr(&layers.upper("file-without-its-data"), &mark("metacopy"), b"").unwrap();
    let view = layers.open();
    for object in ["dir-with-a-bad-redirect", "file-with-a-bad-redirect", "file-without-its-data"] {
        assert_eq!(lines_about(object), [""; 0]);
        assert_eq!(view.union.lookup(Union::ROOT, &name(object)).unwrap_err(), Errno::EIO);
        let lines = lines_about(object);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("ERROR: ") && !lines[0].contains('\n'), "{lines:?}");
    }
    assert_eq!(view.text("good"), "lower");
}
