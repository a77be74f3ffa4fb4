//! The allocator's memory, the process's own size, and its standing with the OOM killer.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Gives memory that the allocator holds free back to the system.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Larger than the data of any request, and smaller than the buffer that each worker has for requests.
const LARGE: libc::c_int = 4 << 20;

/// Has the allocator hold little memory. Few arenas: each one that a thread leaves behind holds memory of its own. The workers'
/// buffers, of which requests touch little, come from the system and not out of an arena, where glibc would put them as soon as
/// one of that size has been freed, and write zeros all over them. The data of a request comes out of the arena.
pub fn be_sparing() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes plain numbers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
    }
}

/// The standing with the OOM killer that a daemon wants: whatever runs on its mount is to go before it (Kubernetes gives its
/// dearest containers -997), but not the whole machine.
const OOM_SCORE: i32 = -998;
const OOM_SCORE_FILE: &str = "/proc/self/oom_score_adj";

/// Lowers what the OOM killer adds to this process's score, as far as the kernel lets it: all the way with CAP_SYS_RESOURCE, and
/// without down to the lowest value that somebody with it has set. Never raises it.
pub fn spare_from_oom_killer() -> std::io::Result<()> {
    let file = File::options().read(true).write(true).open(OOM_SCORE_FILE)?;
    let mut text = [0; 16];
    let len = file.read_at(&mut text, 0)?;
    let inherited = text.get(..len).and_then(|text| std::str::from_utf8(text).ok()?.trim().parse().ok());
    let inherited: i32 = inherited.ok_or(std::io::ErrorKind::InvalidData)?;
    lower(inherited, OOM_SCORE, |score| file.write_all_at(format!("{score}\n").as_bytes(), 0).is_ok());
    Ok(())
}

/// Finds the lowest value from `wanted` up that `set` takes, and leaves that set.
fn lower(current: i32, wanted: i32, mut set: impl FnMut(i32) -> bool) {
    if current <= wanted || set(wanted) {
        return;
    }
    let (mut refused, mut taken) = (wanted, current);
    while taken - refused > 1 {
        let middle = refused + (taken - refused) / 2;
        if set(middle) {
            taken = middle;
        } else {
            refused = middle;
        }
    }
}

/// The process's resident memory in bytes, 0 where procfs can't be read.
pub fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|s| s.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()))
        .unwrap_or(0);
    pages * nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_goes_down_as_far_as_it_may_and_never_up() {
        for (inherited, lowest, expected) in
            [(0, -1000, -998), (0, 0, 0), (200, 100, 100), (500, -17, -17), (-999, -1000, -999), (1000, 999, 999)]
        {
            let mut score = inherited;
            lower(inherited, OOM_SCORE, |wanted| {
                let taken = wanted >= lowest;
                if taken {
                    assert!(wanted <= score, "raised from {score} to {wanted}");
                    score = wanted;
                }
                taken
            });
            assert_eq!(score, expected, "from {inherited}, where {lowest} is the lowest");
        }
    }
}
