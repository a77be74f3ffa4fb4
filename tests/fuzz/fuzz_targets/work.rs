//! The files of the work directory: the log of marks and the lock.
#![no_main]

use layerfs::layer::{busy, private};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    check_log(bytes);
    // By itself the fuzzer rarely makes a checksum right.
    check_log(&[private::framed(bytes), bytes.to_vec()].concat());
    if let Ok(text) = std::str::from_utf8(bytes) {
        busy::parse_holder(text);
    }
});

fn check_log(bytes: &[u8]) {
    let sound = private::sound_bytes(bytes);
    assert!(sound <= bytes.len());
    // What a crash tears off leaves the records before it.
    assert_eq!(private::sound_bytes(&bytes[..sound]), sound);
    if let Some(cut) = sound.checked_sub(1) {
        assert!(private::sound_bytes(&bytes[..cut]) < sound);
    }
}
