//! What this kernel and this user can have, read from the kernel itself.

pub mod missing;
pub mod trials;

use nix::unistd::Uid;
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
    /// `kernel.unprivileged_userns_clone`, where the distribution's kernel has it: 0 forbids user namespaces.
    pub unprivileged_userns_clone: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns`: 1 leaves them to programs with a profile.
    pub apparmor_restrict_unprivileged_userns: Option<u64>,
    /// Ranges of ids that `newuidmap` may give the user, of `/etc/subuid`: first and how many.
    pub subuid: Vec<(u32, u32)>,
    /// The same of `newgidmap` and `/etc/subgid`.
    pub subgid: Vec<(u32, u32)>,
    /// How `newuidmap` may do it: `setuid`, `capabilities`, `unprivileged` (it may not), `none` (it is not there).
    pub newuidmap: &'static str,
    /// The kernel's Landlock ABI, 0 for none.
    pub landlock_abi: i32,
    /// What seccomp filters can answer, as the kernel names it.
    pub seccomp_actions: Vec<String>,
    /// Whether overlayfs is there now; as a module it comes when it is first mounted.
    pub overlayfs: bool,
    /// Yama's `ptrace_scope`, where there is Yama.
    pub yama_ptrace_scope: Option<u64>,
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
    let number = |name: &str| read(&format!("/proc/sys/{name}")).and_then(|text| text.parse().ok());
    Facts {
        kernel: release(),
        uid: nix::unistd::geteuid().as_raw(),
        daemon_no_new_privileges: status.lines().any(|line| line == "NoNewPrivs:\t1"),
        cgroups: cgroups(&read("/proc/self/mountinfo").unwrap_or_default()),
        max_user_namespaces: number("user/max_user_namespaces"),
        unprivileged_userns_clone: number("kernel/unprivileged_userns_clone"),
        apparmor_restrict_unprivileged_userns: number("kernel/apparmor_restrict_unprivileged_userns"),
        subuid: ranges(&read("/etc/subuid").unwrap_or_default(), nix::unistd::geteuid()),
        subgid: ranges(&read("/etc/subgid").unwrap_or_default(), nix::unistd::geteuid()),
        newuidmap: newuidmap(),
        landlock_abi: crate::sys::landlock::abi(),
        seccomp_actions: read("/proc/sys/kernel/seccomp/actions_avail")
            .map(|text| text.split_ascii_whitespace().map(str::to_owned).collect())
            .unwrap_or_default(),
        overlayfs: read("/proc/filesystems")
            .is_some_and(|text| text.lines().any(|line| line.ends_with("\toverlay"))),
        yama_ptrace_scope: number("kernel/yama/ptrace_scope"),
        security_modules: read("/sys/kernel/security/lsm"),
        process_children: fs::File::open(format!("/proc/{own}/task/{own}/children")).is_ok(),
    }
}

/// Kernel release, as `uname -r`.
#[must_use]
pub fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Whether this kernel is older than that version; one whose release is not understood is not.
#[must_use]
pub fn kernel_before(major: u32, minor: u32) -> bool {
    version(&release()).is_some_and(|version| version < (major, minor))
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The ranges of a user, by name or number; see subuid(5). Lines of another form are nobody's.
fn ranges(text: &str, uid: Uid) -> Vec<(u32, u32)> {
    let name = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
    let number = uid.to_string();
    text.lines()
        .filter_map(|line| {
            let (owner, range) = line.split_once(':')?;
            let (first, count) = range.split_once(':')?;
            let is_own = owner == number || name.as_deref() == Some(owner);
            is_own.then_some((first.parse().ok()?, count.trim().parse().ok()?))
        })
        .collect()
}

/// The largest range of uids and of gids that subuid(5) and subgid(5) give user `uid`: first and how many.
#[must_use]
pub fn id_ranges(uid: u32) -> Option<[(u32, u32); 2]> {
    let largest = |path: &str| {
        let text = fs::read_to_string(path).ok()?;
        ranges(&text, Uid::from_raw(uid)).into_iter().max_by_key(|(_, count)| *count)
    };
    Some([largest("/etc/subuid")?, largest("/etc/subgid")?])
}

/// The programs of the package uidmap (elsewhere shadow-utils), first that for users.
pub const ID_MAPPERS: [&str; 2] = ["newuidmap", "newgidmap"];

/// Where one of [`ID_MAPPERS`] is. A fixed list: they are run with privilege to gain.
#[must_use]
pub fn id_mapper(name: &str) -> Option<&'static str> {
    const PLACES: [&str; 6] = [
        "/usr/bin/newuidmap",
        "/bin/newuidmap",
        "/usr/local/bin/newuidmap",
        "/usr/bin/newgidmap",
        "/bin/newgidmap",
        "/usr/local/bin/newgidmap",
    ];
    PLACES.into_iter().find(|path| path.rsplit('/').next() == Some(name) && fs::metadata(path).is_ok())
}

fn newuidmap() -> &'static str {
    use std::os::unix::fs::PermissionsExt;
    let found = id_mapper(ID_MAPPERS[0]).and_then(|path| Some((path, fs::metadata(path).ok()?)));
    match found {
        None => "none",
        Some((_, file)) if file.permissions().mode() & 0o4000 != 0 => "setuid",
        Some((path, _)) if crate::sys::privilege::has_file_capabilities(path) => "capabilities",
        Some(_) => "unprivileged",
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

/// What an operator can do where a namespace was not given though nothing that holds for every session forbids it.
pub const NAMESPACES_REMEDY: &str = "whatever contains TRL must allow user namespaces: an AppArmor profile with \
     `userns` where kernel.apparmor_restrict_unprivileged_userns is 1, a container's filter that allows unshare(2) and \
     clone(2), a free place below user.max_*_namespaces";

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
    fn releases_are_ordered_by_number() {
        for (release, expected) in [
            ("5.10.0-46-cloud-amd64", Some((5, 10))),
            ("6.12.117+deb12-amd64", Some((6, 12))),
            ("7.3-rc1", Some((7, 3))),
            ("", None),
            ("next", None),
        ] {
            assert_eq!(version(release), expected);
        }
        assert!((5, 9) < (5, 10) && !kernel_before(2, 6));
    }

    #[test]
    fn ranges_are_the_users_own() {
        let uid = nix::unistd::geteuid();
        let text = format!("{uid}:100000:65536\nnobody-such:1:2\n{uid}:x:1\nbroken\n{uid}:7:8");
        assert_eq!(ranges(&text, uid), [(100_000, 65_536), (7, 8)]);
    }

    #[test]
    fn this_kernel_has_a_release_and_lists_children() {
        let facts = facts();
        assert!(!facts.kernel.is_empty() && facts.process_children, "{facts:?}");
    }
}
