//! Option lists as text: how they are cut and unescaped, and which name was meant.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// The options of a list, their escapes still in them. The commas of a value in double quotes, `NAME="VALUE"`, don't end it.
pub fn split_list(list: &[u8]) -> Vec<&[u8]> {
    let mut options = Vec::new();
    let mut rest = list;
    loop {
        let end = quoted_length(rest).unwrap_or_else(|| split_unescaped(rest, b',').next().map_or(0, <[u8]>::len));
        let (option, left) = rest.split_at(end);
        options.push(option);
        match left {
            [_, left @ ..] => rest = left,
            [] => return options,
        }
    }
}

/// The length of the option that a text begins with, if its value is in quotes that close at the end of an option.
fn quoted_length(text: &[u8]) -> Option<usize> {
    let name = text.iter().position(|b| matches!(b, b'=' | b','))?;
    let value = text.get(name..)?.strip_prefix(b"=\"")?;
    let is_end = |at: &usize| value.get(*at) == Some(&b'"') && value.get(at + 1).is_none_or(|after| *after == b',');
    let closing = (0..value.len()).find(is_end)?;
    Some(name + 2 + closing + 1)
}

/// The parts between unescaped separators, their escapes still in them.
pub fn split_unescaped(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut escaped = false;
    text.split(move |b| {
        let cut = !escaped && *b == separator;
        escaped = !escaped && *b == b'\\';
        cut
    })
}

/// A path without its escapes: a backslash gives way to the character after it.
pub fn unescape(text: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => out.push(*bytes.next().unwrap_or(byte)),
            _ => out.push(*byte),
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

/// The known name that takes the fewest changes to get to.
pub fn nearest<'a>(name: &OsStr, known: impl Iterator<Item = &'a str>) -> &'a str {
    known.min_by_key(|known| edit_distance(name.as_bytes(), known.as_bytes())).unwrap_or_default()
}

/// How many bytes have to be inserted, removed or replaced to turn one name into the other.
fn edit_distance(from: &[u8], to: &[u8]) -> usize {
    // `row` holds the distances of what is read of `from` to every beginning of `to`.
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (read, a) in from.iter().enumerate() {
        let (mut diagonal, mut left) = (read, read + 1);
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, b) in row.iter_mut().skip(1).zip(to) {
            let replaced = diagonal + usize::from(a != b);
            diagonal = *cell;
            left = replaced.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_counted() {
        for (a, b, expected) in [("", "", 0), ("a", "", 1), ("", "ab", 2), ("kitten", "sitting", 3), ("ro", "rw", 1)] {
            assert_eq!(edit_distance(a.as_bytes(), b.as_bytes()), expected);
            assert_eq!(edit_distance(b.as_bytes(), a.as_bytes()), expected);
        }
        assert_eq!(nearest(OsStr::new("volatil"), ["ro", "volatile", "atime"].into_iter()), "volatile");
    }

    #[test]
    fn quotes_hold_commas() {
        for (list, options) in [
            ("", &[""] as &[&str]),
            (",a,,b,", &["", "a", "", "b", ""]),
            (r#"context="u:r:t:s0:c1,c2",ro"#, &[r#"context="u:r:t:s0:c1,c2""#, "ro"]),
            (r#"ro,context="a,b""#, &["ro", r#"context="a,b""#]),
            (r#"x="",y"#, &[r#"x="""#, "y"]),
            // Not quotes, but characters of a path.
            (r#"upperdir=/a"b,c="d,e"#, &[r#"upperdir=/a"b"#, r#"c="d"#, "e"]),
        ] {
            let split: Vec<&[u8]> = options.iter().map(|option| option.as_bytes()).collect();
            assert_eq!(split_list(list.as_bytes()), split, "{list}");
        }
    }
}
