//! Renames within one directory of what is in upper and of what is in the lowest of the lowers. `LAYERFS_BENCH_DIR` names the
//! directory to work in, by default one in memory.

#[path = "../tests/union/fixture.rs"]
mod fixture;
#[path = "common/settings.rs"]
mod settings;
#[path = "common/supply.rs"]
mod supply;

use fixture::{EXCHANGE, Layers, PLAIN, View, name};
use supply::Supply;

/// How many objects are renamed before upper is a fresh one.
const OBJECTS: usize = 64;

/// What is renamed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    UpperFile,
    UpperDirectory,
    /// It is copied up without its data, which it finds by a redirect then.
    LowerFile,
    /// With a file in it; it comes up and gets a redirect.
    LowerDirectory,
    /// Two files of upper change places.
    Exchange,
}

const CASES: [(&str, Case); 5] = [
    ("upper file", Case::UpperFile),
    ("upper directory", Case::UpperDirectory),
    ("lower file", Case::LowerFile),
    ("lower directory", Case::LowerDirectory),
    ("exchange of upper files", Case::Exchange),
];

fn old(index: usize) -> String {
    format!("old-{index}")
}

fn new(index: usize) -> String {
    format!("new-{index}")
}

/// The objects of a case, in the directory `d` that upper and all lowers have.
fn objects(case: Case, lowers: usize) -> Supply<impl Fn(&View) -> Vec<u64>> {
    let layers = Layers::new(lowers);
    for lower in 0..lowers {
        layers.directory(lower, "d");
    }
    for index in 0..OBJECTS {
        match case {
            Case::LowerFile => drop(layers.file(lowers - 1, &format!("d/{}", old(index)), "content")),
            Case::LowerDirectory => drop(layers.file(lowers - 1, &format!("d/{}/in", old(index)), "")),
            _ => {}
        }
    }
    Supply::new(layers, 1, move |view| {
        view.chmod("d", 0o755).unwrap();
        (0..OBJECTS).for_each(|index| make(view, case, index));
        vec![view.hold("d").unwrap().keep(); OBJECTS]
    })
}

/// Makes what a case has in upper. The kernel looks both names up before it renames.
fn make(view: &View, case: Case, index: usize) {
    let [old, new] = [old(index), new(index)].map(|name| format!("d/{name}"));
    match case {
        Case::UpperFile => view.put(&old, "content"),
        Case::UpperDirectory => drop(view.mkdir(&old, 0o755).unwrap()),
        Case::Exchange => [&old, &new].into_iter().for_each(|path| view.put(path, "content")),
        Case::LowerFile | Case::LowerDirectory => {}
    }
    assert_eq!(view.exists(&new), case == Case::Exchange);
    view.hold(&old).unwrap().keep();
}

fn main() {
    let mut criterion = settings::few_samples();
    for lowers in [1, 10] {
        let mut group = criterion.benchmark_group(format!("rename, {lowers} lower"));
        for (label, case) in CASES {
            let flags = if case == Case::Exchange { EXCHANGE } else { PLAIN };
            objects(case, lowers).bench(&mut group, label, |objects, index| {
                let (dir, old, new) = (objects.number(index), name(&old(index)), name(&new(index)));
                objects.view().union.rename(dir, &old, dir, &new, flags).unwrap();
            });
        }
        group.finish();
    }
    criterion.final_summary();
}
