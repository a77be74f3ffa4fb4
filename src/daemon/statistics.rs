//! What the daemon tells the log of its work when it is asked by a signal.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::union::Stats;

/// The lines for the mount on `mountpoint`; far fewer than the log takes in a second.
pub fn lines(stats: &Stats, mountpoint: impl Display) -> Vec<String> {
    let cache = &stats.cache;
    vec![
        format!(
            "layerfs {} on {mountpoint}: {} inodes, {} descriptors, {} KiB of memory, {} copies not known to be on disk",
            stats.version,
            stats.inodes,
            stats.descriptors,
            stats.resident_bytes / 1024,
            stats.uncommitted,
        ),
        format!("options: {}", listed(&stats.options, "=")),
        format!("operations: {}", listed(&stats.operations, " ")),
        format!(
            "lookup cache: {} hits, {} misses, {} of {} entries",
            cache.hits, cache.misses, cache.entries, cache.capacity
        ),
        format!("copied up: {}", listed(&stats.copy_ups, " ")),
        format!("bytes copied up: {}", listed(&stats.copy_up_bytes, " ")),
    ]
}

fn listed<V: Display>(values: &BTreeMap<String, V>, between: &str) -> String {
    if values.is_empty() {
        return "none".to_owned();
    }
    values.iter().map(|(name, value)| format!("{name}{between}{value}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_listed_by_name() {
        let mut values = BTreeMap::new();
        assert_eq!(listed::<u64>(&values, " "), "none");
        values.extend([("write".to_owned(), 7), ("lookup".to_owned(), 1)]);
        assert_eq!(listed(&values, " "), "lookup 1, write 7");
    }
}
