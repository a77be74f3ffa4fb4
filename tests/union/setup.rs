//! Layers that make no union: one sentence with the path, and nothing changed on disk.

use std::path::{Path, PathBuf};

use layerfs::layer::StackSpec;
use layerfs::union::{Options, Union};

use super::fixture::{Layers, View, snapshot};

/// The message of a failed set-up; it names `path`, is one line, and nothing on disk has changed.
fn refused(layers: &Layers, spec: &StackSpec, path: &Path) {
    let before = snapshot(&layers.beside(""));
    let Err(error) = Union::open(spec, Options::default()) else { panic!("{spec:?} was accepted") };
    let message = error.to_string();
    assert!(message.contains(&*path.to_string_lossy()), "{message}");
    assert!(!message.contains('\n'), "{message}");
    assert!(!error.advice.is_empty(), "{message}");
    assert_eq!(snapshot(&layers.beside("")), before, "{message}");
}

#[test]
fn a_missing_or_wrong_layer_is_named() {
    let layers = Layers::new(2);
    let file = layers.file(0, "file", "");
    let missing = layers.beside("missing");
    for path in [&file, &missing] {
        let lowers = vec![layers.lowers[0].clone(), path.clone()];
        refused(&layers, &StackSpec { lowers, ..layers.spec() }, path);
        refused(&layers, &StackSpec { upper: Some(path.clone()), ..layers.spec() }, path);
    }
    refused(&layers, &StackSpec { work: Some(file.clone()), ..layers.spec() }, &file);
}

#[test]
fn overlapping_layers_are_refused() {
    let layers = Layers::new(1);
    let (upper, work, lower) = (trimmed(&layers.upper("")), trimmed(&layers.work("")), layers.lowers[0].clone());
    let inside = |dir: &Path| {
        let path = dir.join("inside");
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    let spec = || StackSpec { upper: Some(upper.clone()), work: Some(work.clone()), ..layers.spec() };
    refused(&layers, &StackSpec { work: Some(upper.clone()), ..spec() }, &upper);
    refused(&layers, &StackSpec { work: Some(inside(&upper)), ..spec() }, &upper);
    refused(&layers, &StackSpec { upper: Some(inside(&work)), ..spec() }, &work);
    refused(&layers, &StackSpec { lowers: vec![upper.clone()], ..spec() }, &upper);
    refused(&layers, &StackSpec { lowers: vec![inside(&upper)], ..spec() }, &upper);
    refused(&layers, &StackSpec { lowers: vec![lower.clone(), lower.clone()], ..spec() }, &lower);
}

/// The root directory can be a layer: upper is below it then.
#[test]
fn an_upper_inside_a_lower_is_fine() {
    let layers = Layers::new(1);
    layers.file(0, "f", "lower");
    let upper = layers.directory(0, "var/upper");
    let work = layers.directory(0, "var/work");
    let spec = StackSpec { upper: Some(upper.clone()), work: Some(work), ..layers.spec() };
    let view = View { union: Union::open(&spec, Options::default()).unwrap() };
    view.write("f", 0, b"UPPER").unwrap();
    assert_eq!(view.text("f"), "UPPER");
    assert_eq!(std::fs::read(upper.join("f")).unwrap(), b"UPPER");
    assert_eq!(std::fs::read(layers.lower(0, "f")).unwrap(), b"lower");
    view.close();
}

fn trimmed(path: &Path) -> PathBuf {
    path.components().collect()
}

#[test]
fn no_lower_at_all_is_refused() {
    let layers = Layers::new(1);
    let spec = StackSpec { lowers: Vec::new(), upper: None, work: None, ..layers.spec() };
    assert!(Union::open(&spec, Options::default()).is_err());
}

#[test]
fn names_with_every_character_that_options_use_are_fine() {
    let layers = Layers::new(1);
    let odd = layers.beside("odd:name,with\\all=of it\u{e9}");
    std::fs::create_dir(&odd).unwrap();
    std::fs::write(odd.join("f"), "odd").unwrap();
    let lowers = vec![odd, layers.lowers[0].clone()];
    let union = Union::open(&StackSpec { lowers, ..layers.spec() }, Options::default()).unwrap();
    let attr = union.lookup(Union::ROOT, &super::fixture::name("f")).unwrap();
    assert_eq!(attr.size, 3);
    union.forget(attr.ino, 1);
    union.close().unwrap();
}

#[test]
fn a_union_that_is_never_mounted_leaves_nothing_behind() {
    let layers = Layers::new(1);
    let before = snapshot(&layers.work(""));
    let union = Union::open(&layers.spec(), Options::default()).unwrap();
    assert!(layers.work("layerfs/lock").exists());
    union.abandon().unwrap();
    drop(union);
    assert!(!layers.work("layerfs").exists());
    let spec = StackSpec { work: Some(layers.beside("made")), ..layers.spec() };
    let union = Union::open(&spec, Options::default()).unwrap();
    union.abandon().unwrap();
    assert!(!layers.beside("made").exists());
    assert_eq!(snapshot(&layers.work("")).len(), before.len());
}

/// What such a mount wrote may be on disk or not: nobody knows after the machine stopped.
#[test]
fn a_volatile_upper_of_another_boot_is_refused() {
    let layers = Layers::new(1);
    layers.file(0, "f", "lower");
    let view = layers.open_with(Options { durability: layerfs::union::Durability::Volatile, ..Options::default() });
    view.write("f", 0, b"UPPER").unwrap();
    view.close();
    let view = layers.open();
    assert_eq!(view.text("f"), "UPPER", "under the same boot nothing is lost");
    view.close();
    let dirty = layers.work("work/incompat/volatile/dirty");
    std::fs::write(&dirty, "an earlier boot").unwrap();
    let before = snapshot(&layers.upper(""));
    let refused = Union::open(&layers.spec(), Options::default()).err().unwrap().to_string();
    assert!(refused.contains(&*dirty.to_string_lossy()) && !refused.contains('\n'), "{refused}");
    assert_eq!(snapshot(&layers.upper("")), before);
    std::fs::remove_file(&dirty).unwrap();
    assert_eq!(layers.open().text("f"), "UPPER");
}
