//! Every key that a policy file may have, once: the parser, the JSON Schema, the printed form and the
//! documentation's table are made from this list, so that none of them can know a key that another does not.

/// What a key's value may be. Numbers are bounds, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 1 to 64 letters, digits, `-` or `_`.
    Name,
    /// One line for people, at most 256 bytes.
    Line,
    /// 1 to 64 letters, digits or `-`, or nothing.
    Hostname,
    /// `"required"`, `"best_effort"` or `"off"`.
    Demand,
    /// `true` or `false`.
    Switch,
    /// A whole number.
    Integer(u64, u64),
    /// Bytes: a whole number, or text like `"256M"`.
    Size(u64, u64),
    /// Bytes, or `"unlimited"`.
    Limit(u64, u64),
    /// Text like `"0o077"`.
    Mask,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// An absolute path without `.` and `..`.
    Path,
    /// An absolute path, or `"host"` for none.
    Rootfs,
    /// A list of absolute paths.
    Paths,
    /// A list of relative paths without `.` and `..`.
    Entries,
    /// A list of TCP ports, or `"any"`.
    Ports,
    /// A list of names of groups of system calls.
    Groups,
    /// A list of names of system calls.
    Calls,
    /// A list of names of [`FAMILIES`].
    Families,
}

impl Kind {
    /// Whether it is a list, which `add_` may add to.
    #[must_use]
    pub fn is_list(self) -> bool {
        matches!(
            self,
            Self::Paths | Self::Entries | Self::Ports | Self::Groups | Self::Calls | Self::Families
        )
    }

    /// The word that stands for "nothing is set".
    #[must_use]
    pub fn nothing(self) -> Option<&'static str> {
        match self {
            Self::Limit(..) => Some("unlimited"),
            Self::Rootfs => Some("host"),
            Self::Ports => Some("any"),
            _ => None,
        }
    }
}

/// Socket families by their names in a policy, with `AF_*` of `socket(2)`.
pub const FAMILIES: [(&str, u16); 4] = [("unix", 1), ("inet", 2), ("inet6", 10), ("netlink", 16)];

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The table it stands in; empty for the top of the file.
    pub section: &'static str,
    /// Its name there.
    pub name: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// What it decides, in one sentence.
    pub meaning: &'static str,
}

impl Key {
    /// `section.name`.
    #[must_use]
    pub fn path(&self) -> String {
        if self.section.is_empty() { self.name.into() } else { format!("{}.{}", self.section, self.name) }
    }

    /// The key of that name in that section.
    #[must_use]
    pub fn find(section: &str, name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.section == section && key.name == name)
    }
}

/// The key that names another policy; it decides nothing itself.
pub const EXTENDS: &str = "extends";
/// Before a list's name: adds to what is inherited.
pub const ADD: &str = "add_";

const MIB: u64 = 1 << 20;
/// More than any machine's memory: a slip of the keyboard.
const TIB: u64 = 1 << 40;
const MOST_INODES: u64 = 100_000_000;

const fn key(section: &'static str, name: &'static str, kind: Kind, meaning: &'static str) -> Key {
    Key { section, name, kind, meaning }
}

/// All of them, in the order in which they are printed.
pub const KEYS: &[Key] = &[
    key("", "name", Kind::Name, "Name of the policy; a file NAME.toml holds the policy NAME."),
    key("", "description", Kind::Line, "One line for people; no part of the digest."),
    key("", "no_new_privileges", Kind::Demand, "PR_SET_NO_NEW_PRIVS: no set-user-id program gains anything."),
    key("", "max_running_execs", Kind::Integer(1, 256), "Commands of one session that may run side by side."),
    key("", "grace_s", Kind::Integer(0, 3600), "Seconds between SIGTERM and SIGKILL."),
    key("", "umask", Kind::Mask, "File mode creation mask."),
    key("rlimits", "cpu_s", Kind::Integer(1, u64::MAX >> 1), "RLIMIT_CPU of each process, seconds."),
    key("rlimits", "nofile", Kind::Integer(16, 1 << 30), "RLIMIT_NOFILE, descriptors."),
    key("rlimits", "core", Kind::Size(0, TIB), "RLIMIT_CORE, bytes: a core file holds secrets."),
    key("rlimits", "as_bytes", Kind::Limit(1, u64::MAX >> 1), "RLIMIT_AS of each process, bytes."),
    key("rlimits", "fsize_bytes", Kind::Limit(0, u64::MAX >> 1), "RLIMIT_FSIZE, bytes of one file."),
    key(
        "rlimits",
        "nproc",
        Kind::Integer(1, 1_000_000),
        "Processes that an exec may add (RLIMIT_NPROC counts a user).",
    ),
    key("namespaces", "user", Kind::Demand, "A user namespace; every other namespace needs it."),
    key("namespaces", "mount", Kind::Demand, "A mount namespace; a file system of its own needs it."),
    key(
        "namespaces",
        "pid",
        Kind::Demand,
        "A PID namespace: no process outside is seen, all end with the session.",
    ),
    key("namespaces", "ipc", Kind::Demand, "System V IPC and POSIX message queues of its own."),
    key("namespaces", "uts", Kind::Demand, "A host name of its own."),
    key("namespaces", "cgroup", Kind::Demand, "A view of cgroups that begins at the session's own."),
    key("namespaces", "net", Kind::Demand, "A network of its own, with nothing but a loopback."),
    key("namespaces", "nested", Kind::Switch, "Whether the session may make user namespaces of its own."),
    key("namespaces", "hostname", Kind::Hostname, "Host name in the session; empty keeps the host's."),
    key("user", "demand", Kind::Demand, "A host user of the session's own, not root, without capabilities."),
    key(
        "user",
        "ids",
        Kind::Integer(0, 65_536),
        "Host ids that the session has for itself; 0 maps its user to the caller.",
    ),
    key("user", "uid", Kind::Integer(0, 65_533), "The user as the session sees itself."),
    key("user", "gid", Kind::Integer(0, 65_533), "The group as the session sees itself."),
    key("user", "allow_root_inside", Kind::Switch, "Whether uid and gid may be 0 (inside; never outside)."),
    key(
        "filesystem",
        "demand",
        Kind::Demand,
        "A root of the session's own, of what is named here and nothing else.",
    ),
    key(
        "filesystem",
        "view",
        Kind::OneOf(&["overlay", "bind"]),
        "How system directories are shown: overlay keeps locks and file events apart.",
    ),
    key(
        "filesystem",
        "rootfs",
        Kind::Rootfs,
        "Directory that system and copy are taken from; \"host\" is the host's root.",
    ),
    key(
        "filesystem",
        "system",
        Kind::Paths,
        "Directories shown read-only; what the host does not have is left out.",
    ),
    key("filesystem", "copy", Kind::Paths, "Small files copied in; what the host does not have is left out."),
    key(
        "filesystem",
        "read_only",
        Kind::Paths,
        "Paths of the host shown read-only at the same place; they must be there.",
    ),
    key(
        "filesystem",
        "writable",
        Kind::Paths,
        "Paths of the host shown writable at the same place; they must be there.",
    ),
    key("filesystem", "offer_read_only", Kind::Paths, "Beneath these a request may ask for read-only paths."),
    key(
        "filesystem",
        "offer_writable",
        Kind::Paths,
        "Beneath these a request may ask for writable or read-only paths.",
    ),
    key("filesystem", "tmp_size", Kind::Size(MIB / 16, TIB), "Bytes of /tmp, in memory."),
    key("filesystem", "run_size", Kind::Size(MIB / 16, TIB), "Bytes of /run, in memory."),
    key("filesystem", "shm_size", Kind::Size(MIB / 16, TIB), "Bytes of /dev/shm, in memory."),
    key(
        "filesystem",
        "inodes",
        Kind::Integer(16, MOST_INODES),
        "Files and directories in /tmp, and in /run.",
    ),
    key("filesystem", "exec_tmp", Kind::Switch, "Whether programs may be executed from /tmp."),
    key(
        "filesystem",
        "processes_only",
        Kind::Switch,
        "/proc shows processes and nothing of the kernel (subset=pid).",
    ),
    key(
        "workspace",
        "mode",
        Kind::OneOf(&["none", "private", "overlay", "host"]),
        "The most that a workspace may be; a request that names no directory gets a private one.",
    ),
    key("workspace", "path", Kind::Path, "Where a private workspace is."),
    key(
        "workspace",
        "size",
        Kind::Size(MIB / 16, TIB),
        "Bytes of a private workspace, or of the changes above a host's directory.",
    ),
    key("workspace", "inodes", Kind::Integer(16, MOST_INODES), "Files and directories likewise."),
    key("workspace", "writable", Kind::Switch, "Whether the session may write there."),
    key("workspace", "exec", Kind::Switch, "Whether programs may be executed from there (needs Landlock)."),
    key(
        "workspace",
        "protect",
        Kind::Entries,
        "Entries of a host's directory that cannot be written, removed or replaced.",
    ),
    key(
        "workspace",
        "protect_absent",
        Kind::OneOf(&["refuse", "leave"]),
        "A protected entry that the host's directory does not have: no session, or the session can make it.",
    ),
    key(
        "network",
        "mode",
        Kind::OneOf(&["none", "host"]),
        "none: a loopback of its own; host: the host's network.",
    ),
    key("network", "bind_ports", Kind::Ports, "TCP ports that may be bound (needs Landlock)."),
    key("network", "connect_ports", Kind::Ports, "TCP ports that may be connected to (needs Landlock)."),
    key(
        "landlock",
        "demand",
        Kind::Demand,
        "Landlock: file rights bound to inodes, whatever the mounts are.",
    ),
    key(
        "landlock",
        "execute",
        Kind::Paths,
        "Programs may be executed beneath these, besides workspace.exec and filesystem.exec_tmp.",
    ),
    key("landlock", "scoped", Kind::Switch, "No signal and no abstract socket beyond the session."),
    key("seccomp", "demand", Kind::Demand, "A system call filter; what it does not name is answered ENOSYS."),
    key("seccomp", "groups", Kind::Groups, "Groups of system calls that are allowed."),
    key("seccomp", "allow", Kind::Calls, "System calls that are allowed besides."),
    key("seccomp", "refuse", Kind::Calls, "System calls that are answered EPERM, whatever the groups say."),
    key("seccomp", "families", Kind::Families, "Socket families that may be made."),
    key("seccomp", "strict", Kind::Switch, "The stricter argument rules."),
];
