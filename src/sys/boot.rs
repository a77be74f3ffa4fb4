//! Which run of the machine this is.

/// The kernel's boot id, another one after each start of the machine; empty where procfs can't be read.
pub fn id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}
