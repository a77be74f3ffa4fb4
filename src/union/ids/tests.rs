//! Tests of the mapping of ids.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn map(text: &str) -> IdMap {
    IdMap::parse(text).unwrap()
}

#[test]
fn the_first_of_a_triple_is_stored_and_the_second_shown() {
    for text in ["0:1000:1:1:100000:65535", ":0:1000:1:1:100000:65535", "1:100000:65535:0:1000:1"] {
        let map = map(text);
        for (stored, shown) in [(0, 1000), (1, 100_000), (2, 100_001), (65_535, 165_534)] {
            assert_eq!((map.shown(stored), map.stored(shown)), (Some(shown), Some(stored)), "{text}");
        }
        assert_eq!([65_536, NOBODY].map(|id| map.shown(id)), [None, None]);
        assert_eq!([0, 999, 1001, 99_999, 165_535, NOBODY].map(|id| map.stored(id)), [None; 6]);
    }
    assert_eq!((map("0:0:4294967295").shown(4_294_967_294), map("0:0:4294967295").shown(NOBODY)), (Some(!1), None));
    assert_eq!((IdMap::default().shown(NOBODY), IdMap::default().stored(7)), (Some(NOBODY), Some(7)));
}

#[test]
fn what_is_no_mapping_is_told() {
    let cases = [
        ("", "\"\" is no id"),
        ("0", "1 numbers are none"),
        ("0:1", "2 numbers are none"),
        ("0:1:2:3", "4 numbers are none"),
        ("0:1:2:", "\"\" is no id"),
        ("::0:1:2", "\"\" is no id"),
        ("0:-1:2", "\"-1\" is no id"),
        ("0:+1:2", "\"+1\" is no id"),
        ("0:1:x", "\"x\" is no id"),
        ("0:4294967296:1", "\"4294967296\" is no id"),
        ("0:1:0", "0:1:0 is no range"),
        ("0:4294967295:1", "0:4294967295:1 is no range"),
        ("4294967290:0:6", "4294967290:0:6 is no range"),
        ("0:100:10:9:200:5", "the id 9 is in it twice, inside"),
        ("0:100:10:10:109:5", "the id 109 is in it twice, outside"),
    ];
    for (text, expected) in cases {
        let told = IdMap::parse(text).unwrap_err();
        assert!(told.starts_with(expected) || told.contains(expected), "{text}: {told}");
    }
    assert!(IdMap::parse("0:100:10:10:110:5").is_ok());
}

#[test]
fn squashing_shows_one_owner_and_stores_what_is_given() {
    let root = Ids { squash_to_root: true, ..Ids::default() };
    assert_eq!((root.shown_uid(7), root.shown_gid(8), root.new_uid(7)), (0, 0, Ok(7)));
    let mixed = Ids { squash_to_uid: Some(5), ..root };
    assert_eq!((mixed.shown_uid(7), mixed.shown_gid(8)), (5, 0));
    let group = Ids { squash_to_gid: Some(6), uids: map("0:100:10"), ..Ids::default() };
    assert_eq!((group.shown_uid(7), group.shown_uid(10), group.shown_gid(8)), (107, NOBODY, 6));
}

#[test]
fn the_superuser_from_outside_makes_what_is_the_roots() {
    let ids = Ids { uids: map("0:100000:65536"), gids: map("5:5:1"), ..Ids::default() };
    assert_eq!(
        [100_000, 100_007, 0, 1000].map(|uid| ids.creator_uid(uid)),
        [Ok(0), Ok(7), Ok(0), Err(Errno::EOVERFLOW)]
    );
    assert_eq!([5, 0, 6].map(|gid| ids.creator_gid(gid)), [Ok(5), Ok(0), Err(Errno::EOVERFLOW)]);
    assert_eq!([0, 1000].map(|uid| ids.new_uid(uid)), [Err(Errno::EINVAL); 2]);
}

/// One search through all ranges for each would take half a minute.
#[test]
fn five_thousand_ranges_are_searched() {
    // Each block of ten ids is another one, last first.
    let text: Vec<String> = (0..5_000_u32).map(|i| format!("{}:{}:10", i * 10, (4_999 - i) * 10 + 1_000_000)).collect();
    let map = map(&text.join(":"));
    for round in 0..40 {
        for stored in (0..50_000).step_by(1 + round) {
            let shown = map.shown(stored).unwrap();
            assert_eq!(shown, (4_999 - stored / 10) * 10 + stored % 10 + 1_000_000);
            assert_eq!(map.stored(shown), Some(stored));
        }
    }
    assert_eq!((map.shown(50_000), map.stored(999_999), map.stored(1_050_000)), (None, None, None));
}

proptest! {
    /// Gaps and lengths make ranges that never overlap; the order of those outside is any.
    #[test]
    fn the_directions_are_inverses(
        ranges in vec((0_u32..50, 1_u32..50, 0_u32..50, any::<u32>()), 1..60),
        ids in vec(0_u32..6_000, 100),
    ) {
        let mut inside = 0;
        let mut rows: Vec<_> = ranges.iter().map(|(gap, len, out_gap, key)| {
            let first = inside + gap;
            inside = first + len;
            (*key, first, *len, *out_gap)
        }).collect();
        rows.sort_unstable();
        let mut outside = 0;
        let triples: Vec<(u32, u32, u32)> = rows.iter().map(|(_, first, len, gap)| {
            let to = outside + gap;
            outside = to + len;
            (*first, to, *len)
        }).collect();
        let text: Vec<String> = triples.iter().map(|(first, to, len)| format!("{first}:{to}:{len}")).collect();
        let map = map(&text.join(":"));
        for id in ids {
            let expected = triples.iter().find(|(first, _, len)| (*first..first + len).contains(&id));
            prop_assert_eq!(map.shown(id), expected.map(|(first, to, _)| to + (id - first)));
            if let Some(shown) = map.shown(id) {
                prop_assert_eq!(map.stored(shown), Some(id));
            }
            if let Some(stored) = map.stored(id) {
                prop_assert_eq!(map.shown(stored), Some(id));
            }
        }
    }
}
