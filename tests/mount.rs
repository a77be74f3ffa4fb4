//! The union through a real mount: what it shows, what changes do to it, and what lasts.

#[path = "mount/callers.rs"]
mod callers;
#[path = "mount/coherence.rs"]
mod coherence;
mod common;
#[path = "mount/copy_up.rs"]
mod copy_up;
#[path = "mount/copy_ways.rs"]
mod copy_ways;
#[path = "mount/copying.rs"]
mod copying;
#[path = "mount/cycles.rs"]
mod cycles;
#[path = "mount/deep.rs"]
mod deep;
#[path = "mount/durability.rs"]
mod durability;
#[path = "mount/helper.rs"]
mod helper;
#[path = "mount/identity.rs"]
mod identity;
#[path = "mount/ids.rs"]
mod ids;
#[path = "mount/interop.rs"]
mod interop;
#[path = "mount/layers.rs"]
mod layers;
#[path = "mount/life.rs"]
mod life;
#[path = "mount/limits.rs"]
mod limits;
#[path = "mount/marks.rs"]
mod marks;
#[path = "mount/metacopy.rs"]
mod metacopy;
#[path = "mount/open_files.rs"]
mod open_files;
#[path = "mount/passthrough.rs"]
mod passthrough;
#[path = "mount/permissions.rs"]
mod permissions;
#[path = "mount/recover.rs"]
mod recover;
#[path = "mount/rename.rs"]
mod rename;
#[path = "mount/ring.rs"]
mod ring;
#[path = "mount/trust.rs"]
mod trust;
#[path = "mount/view.rs"]
mod view;

fn main() {
    trust::be_a_client_if_asked();
    let lists = [
        view::tests(),
        marks::tests(),
        copy_up::tests(),
        copy_ways::tests(),
        copying::tests(),
        passthrough::tests(),
        ring::tests(),
        permissions::tests(),
        rename::tests(),
        identity::tests(),
        ids::tests(),
        open_files::tests(),
        coherence::tests(),
        deep::tests(),
        interop::tests(),
        metacopy::tests(),
        layers::tests(),
        limits::tests(),
        durability::tests(),
        life::tests(),
        recover::tests(),
        cycles::tests(),
        trust::tests(),
        helper::tests(),
        callers::tests(),
    ];
    common::main(lists.into_iter().flatten().collect());
}
