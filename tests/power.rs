//! The power goes at random moments under load, and what the disk holds then is mounted, recovered and compared with what the
//! programs were told.
//!
//! `LAYERFS_POWER_CUTS` sets how often it goes for each filesystem, `LAYERFS_POWER_SEED` repeats the choices of a run.

#[path = "power/check.rs"]
mod check;
mod common;
#[path = "power/disk.rs"]
mod disk;
#[path = "union/fixture.rs"]
mod fixture;
#[path = "power/history.rs"]
mod history;
#[path = "power/machine.rs"]
mod machine;
#[path = "power/worker.rs"]
mod worker;

use std::fs;
use std::io::Write;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use common::dice::{Dice, fresh_seed};
use common::files::append;
use common::mount::{eventually, mounted_on};
use common::union::Union;
use disk::{Kind, no_disks};
use machine::Machine;

/// How many cuts there are in one life of a daemon.
const CUTS: usize = 7;

fn main() {
    common::main(vec![
        t!(power_cuts_on_ext4).root().needs(no_disks).seconds(3000),
        t!(power_cuts_on_xfs).root().needs(no_disks).seconds(3000),
        t!(power_cuts_on_btrfs).root().needs(no_disks).seconds(3000),
        t!(power_cuts_with_strict_durability).root().needs(no_disks).seconds(3000),
        t!(an_orderly_end_loses_nothing).root().needs(no_disks).seconds(600),
        t!(what_was_just_synced_has_its_name).root().needs(no_disks).seconds(600),
        t!(a_copy_is_committed_in_time).root().needs(no_disks).seconds(600),
    ]);
}

fn power_cuts_on_ext4() {
    power_cuts(Kind::Ext4, &[]);
}

fn power_cuts_on_xfs() {
    power_cuts(Kind::Xfs, &[]);
}

fn power_cuts_on_btrfs() {
    power_cuts(Kind::Btrfs, &[]);
}

fn power_cuts_with_strict_durability() {
    power_cuts(Kind::Ext4, &["-o", "durability=strict"]);
}

fn power_cuts(kind: Kind, arguments: &[&str]) {
    let mut left = std::env::var("LAYERFS_POWER_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(CUTS);
    let mut dice = seeded(kind);
    let machine = Machine::new(kind);
    while left > 0 {
        let cuts = left.min(CUTS);
        let mut run = machine.start(arguments, &mut dice);
        for number in 0..cuts {
            run.wait(&mut dice);
            run.cut(&format!("cut{number}"));
        }
        run.end(Union::umount);
        run.check_all();
        left -= cuts;
    }
}

/// The daemon is told to end, and then the disk's filesystem is unmounted, as when a machine is turned off.
fn an_orderly_end_loses_nothing() {
    for kind in [Kind::Ext4, Kind::Xfs, Kind::Btrfs] {
        let mut dice = seeded(kind);
        let machine = Machine::new(kind);
        let mut run = machine.start(&[], &mut dice);
        run.wait(&mut dice);
        run.end(|union| {
            union.mounted().signal(Signal::SIGTERM);
            assert!(eventually(30, || mounted_on(&union.point()).is_none()), "it is unmounted after SIGTERM");
            union.umount();
        });
        run.cut_after_the_end("off");
        run.check_all();
    }
}

/// Its name is there after the cut, in a directory that came up for it, too. Each is alone on its disk: others would bring it
/// there with them.
fn what_was_just_synced_has_its_name() {
    type Act = fn(&Union);
    let cases: [(&str, Act, &str); 5] = [
        ("a copy", |union| sync(union, "w0/sub/c", "synced"), "w0/sub/c"),
        ("a copy with several names", |union| sync(union, "w0/a", "synced"), "w0/sub/linked"),
        (
            "a link of a copy",
            |union| {
                append(union.at("w0/c"), "synced");
                fs::create_dir(union.at("w0/new")).expect("mkdir");
                fs::hard_link(union.at("w0/c"), union.at("w0/new/c")).expect("link");
                sync(union, "w0/c", "");
            },
            "w0/new/c",
        ),
        (
            "a file over a whiteout",
            |union| {
                fs::remove_file(union.at("w0/sub/c")).expect("unlink");
                sync(union, "w0/sub/c", "synced");
            },
            "w0/sub/c",
        ),
        (
            "a new file in a new directory",
            |union| {
                fs::create_dir(union.at("w0/sub/new")).expect("mkdir");
                sync(union, "w0/sub/new/file", "synced");
            },
            "w0/sub/new/file",
        ),
    ];
    for kind in [Kind::Ext4, Kind::Xfs, Kind::Btrfs] {
        let machine = Machine::new(kind);
        for (what, act, path) in cases {
            let mut run = machine.prepare(&[]);
            // The first change of a mount syncs a sign in the work directory.
            append(run.union.at("w1/c"), "first");
            run.write_out();
            act(&run.union);
            run.cut("now-synced");
            run.end(Union::umount);
            machine.recovered("now-synced", |view| {
                let read = view.read(path).unwrap_or_default();
                assert!(read.ends_with(b"synced"), "{kind:?}, {what}: {}", String::from_utf8_lossy(&read));
            });
            machine.forget("now-synced");
        }
    }
}

/// Appends to a file, which is made if there is none, and syncs it.
fn sync(union: &Union, path: &str, content: &str) {
    let file = fs::OpenOptions::new().append(true).create(true).open(union.at(path)).expect(path);
    (&file).write_all(content.as_bytes()).expect(path);
    file.sync_all().expect(path);
}

/// Nobody syncs anything: a while after a copy-up the copy is what the disk has.
fn a_copy_is_committed_in_time() {
    for kind in [Kind::Ext4, Kind::Xfs, Kind::Btrfs] {
        let machine = Machine::new(kind);
        let mut run = machine.prepare(&[]);
        append(run.union.at("w0/c"), "appended");
        thread::sleep(Duration::from_secs(8));
        run.cut("later");
        run.end(Union::umount);
        machine.recovered("later", |view| {
            assert!(view.read("w0/c").expect("read").ends_with(b"appended"), "{kind:?}");
        });
    }
}

fn seeded(kind: Kind) -> Dice {
    let seed = std::env::var("LAYERFS_POWER_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or_else(fresh_seed);
    eprintln!("{}, {kind:?}: LAYERFS_POWER_SEED={seed}", common::current());
    Dice::new(seed)
}
