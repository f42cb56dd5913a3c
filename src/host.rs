//! What this kernel and this user can have, read from the kernel itself.

use serde::Serialize;
use std::fs;

/// Facts of the host that decide what a policy can demand.
#[derive(Debug, Clone, Serialize)]
pub struct Facts {
    /// Kernel release, as `uname -r`.
    pub kernel: String,
    /// User that the daemon runs as.
    pub uid: u32,
    /// Whether the daemon has `PR_SET_NO_NEW_PRIVS` set on itself.
    pub daemon_no_new_privileges: bool,
    /// `v1`, `v2`, `hybrid` or `none`: cgroup hierarchies that are mounted at the usual place.
    pub cgroups: &'static str,
    /// Most user namespaces that this user may make; 0 is none, absent is unknown.
    pub max_user_namespaces: Option<u64>,
    /// Linux security modules that are active, if the kernel says.
    pub security_modules: Option<String>,
    /// Whether descendants can be listed by the kernel (`CONFIG_PROC_CHILDREN`), which ending them needs.
    pub process_children: bool,
}

/// Reads the facts.
#[must_use]
pub fn facts() -> Facts {
    let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let status = read("/proc/self/status").unwrap_or_default();
    let own = std::process::id();
    Facts {
        kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
        uid: nix::unistd::geteuid().as_raw(),
        daemon_no_new_privileges: status.lines().any(|line| line == "NoNewPrivs:\t1"),
        cgroups: cgroups(&read("/proc/self/mountinfo").unwrap_or_default()),
        max_user_namespaces: read("/proc/sys/user/max_user_namespaces").and_then(|text| text.parse().ok()),
        security_modules: read("/sys/kernel/security/lsm"),
        process_children: fs::File::open(format!("/proc/{own}/task/{own}/children")).is_ok(),
    }
}

fn cgroups(mountinfo: &str) -> &'static str {
    let has = |kind: &str| mountinfo.lines().any(|line| line.contains(&format!(" - {kind} ")));
    match (has("cgroup"), has("cgroup2")) {
        (true, true) => "hybrid",
        (true, false) => "v1",
        (false, true) => "v2",
        (false, false) => "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_told_apart() {
        let v1 = "30 29 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        let v2 = "31 29 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        assert_eq!(cgroups(v1), "v1");
        assert_eq!(cgroups(v2), "v2");
        assert_eq!(cgroups(&format!("{v1}\n{v2}")), "hybrid");
        assert_eq!(cgroups(""), "none");
    }

    #[test]
    fn this_kernel_has_a_release_and_lists_children() {
        let facts = facts();
        assert!(!facts.kernel.is_empty() && facts.process_children, "{facts:?}");
    }
}
