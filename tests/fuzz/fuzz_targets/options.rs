//! Option lists, as they follow `-o`.
#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use layerfs::config::Settings;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for settings in [Settings::default(), Settings::compatible()] {
        check(settings, OsStr::from_bytes(bytes));
    }
});

fn check(mut settings: Settings, list: &OsStr) {
    let complaint = match settings.set_list(list).and_then(|()| settings.into_config(Path::new("/mnt"), false)) {
        Err(complaint) => complaint.to_string(),
        Ok(config) => {
            let paths = config.stack.lowers.iter().chain(&config.stack.upper).chain(&config.stack.work);
            assert!(paths.into_iter().all(|path| !path.as_os_str().is_empty()));
            assert!(!config.stack.lowers.is_empty());
            assert_eq!(config.stack.upper.is_some(), config.stack.work.is_some());
            assert!((1..=256).contains(&config.threads));
            return;
        }
    };
    assert!(!complaint.is_empty());
}
