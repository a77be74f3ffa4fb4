//! What this process is allowed to do.

const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Whether the process has CAP_SYS_ADMIN in the initial user namespace: then `trusted.*` attributes are its to use.
pub fn is_privileged() -> bool {
    initial_user_namespace() && has_sys_admin()
}

/// Whether the process has CAP_SYS_ADMIN in its own user namespace; no, where procfs can't be read.
pub fn has_sys_admin() -> bool {
    effective_capabilities() & CAP_SYS_ADMIN != 0
}

/// Whether a caller of the union has CAP_FSETID.
pub fn may_keep_setid(uid: u32, pid: u32) -> bool {
    const CAP_FSETID: u64 = 1 << 4;
    caller_has(uid, pid, CAP_FSETID)
}

/// Whether a caller of the union may know of `trusted.*` attributes.
pub fn may_see_trusted(uid: u32, pid: u32) -> bool {
    caller_has(uid, pid, CAP_SYS_ADMIN)
}

/// Whether a caller has a capability: nobody but user 0, of whose processes those that can't be looked at have all.
fn caller_has(uid: u32, pid: u32, capability: u64) -> bool {
    uid == 0
        && std::fs::read_to_string(format!("/proc/{pid}/status"))
            .map_or(true, |s| capabilities_in(&s) & capability != 0)
}

/// Whether a process is a member of a group; what can't be known counts as no.
pub fn in_group(pid: u32, gid: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or("");
    groups.split_whitespace().any(|g| g.parse() == Ok(gid))
}

/// The user and group that stat(2) shows for those without a number in this user namespace, if the same two numbers are also
/// somebody's here: who is meant can't be told from a status then.
pub fn ambiguous_ids() -> Option<(u32, u32)> {
    if initial_user_namespace() {
        return None;
    }
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u32>().ok();
    let uid = number("/proc/sys/kernel/overflowuid")?;
    let gid = number("/proc/sys/kernel/overflowgid")?;
    maps(&std::fs::read_to_string("/proc/self/uid_map").ok()?, uid).then_some((uid, gid))
}

/// Whether a namespace's map (lines of first number inside, outside, how many) has a number.
fn maps(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut fields = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(count))) = (fields.next(), fields.nth(1)) else { return false };
        (first..first + count).contains(&u64::from(id))
    })
}

fn initial_user_namespace() -> bool {
    let Ok(map) = std::fs::read_to_string("/proc/self/uid_map") else { return true };
    let mut fields = map.split_whitespace();
    (fields.next(), fields.next(), fields.next()) == (Some("0"), Some("0"), Some("4294967295"))
}

fn effective_capabilities() -> u64 {
    std::fs::read_to_string("/proc/self/status").map_or(0, |s| capabilities_in(&s))
}

fn capabilities_in(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read() {
        let full = "         0       1001          1\n         1     100000      65536\n";
        assert!(maps(full, 0) && maps(full, 65_534) && maps(full, 65_536));
        assert!(!maps(full, 65_537) && !maps("0 1001 1\n", 65_534) && !maps("", 0));
    }

    #[test]
    fn capabilities_are_read_from_status() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t0000000000200000\nCapBnd:\t0\n";
        assert_eq!(capabilities_in(status), 1 << 21);
        assert_eq!(capabilities_in("Name:\tx\n"), 0);
    }
}
