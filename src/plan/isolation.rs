//! The part of a plan that is L2: namespaces, root, Landlock, seccomp.

/// Everything beyond L1. The default is nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Isolation {
    /// Namespaces of the session's own; none of the others is made without a user namespace.
    pub namespaces: Namespaces,
    /// Whom the workload's user is outside.
    pub ids: Ids,
    /// The workload's user as it sees itself, never 0 unless the policy says so.
    pub inside_uid: u32,
    /// Its group likewise.
    pub inside_gid: u32,
    /// Whether the session may make user namespaces of its own.
    pub nested_namespaces: bool,
    /// `sethostname(2)`, at most 64 bytes; empty leaves it.
    pub hostname: Vec<u8>,
    /// The session's root; `None` leaves the host's.
    pub root: Option<Root>,
    /// Landlock.
    pub landlock: Option<Landlock>,
    /// System calls.
    pub seccomp: Option<Seccomp>,
}

/// `clone(2)`'s `CLONE_NEW*` flags that a plan may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Namespaces(pub u32);

impl Namespaces {
    /// `CLONE_NEWUSER`.
    pub const USER: u32 = 0x1000_0000;
    /// `CLONE_NEWNS`.
    pub const MOUNT: u32 = 0x0002_0000;
    /// `CLONE_NEWPID`.
    pub const PID: u32 = 0x2000_0000;
    /// `CLONE_NEWIPC`.
    pub const IPC: u32 = 0x0800_0000;
    /// `CLONE_NEWUTS`.
    pub const UTS: u32 = 0x0400_0000;
    /// `CLONE_NEWCGROUP`.
    pub const CGROUP: u32 = 0x0200_0000;
    /// `CLONE_NEWNET`.
    pub const NET: u32 = 0x4000_0000;
    /// All of them.
    pub const ALL: u32 =
        Self::USER | Self::MOUNT | Self::PID | Self::IPC | Self::UTS | Self::CGROUP | Self::NET;

    /// Whether that flag is among them.
    #[must_use]
    pub fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }
}

/// Whom the workload's user is outside of its user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ids {
    /// The plan's own `uid` and `gid`.
    #[default]
    Own,
    /// A slot of so many host ids that nobody else has while the session lives.
    Range(u32),
}

/// A root that is built on a fresh tmpfs and entered by `pivot_root(2)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// In order; each target is absolute, without `.` and `..`, and its parent came before or is made.
    pub mounts: Vec<Mount>,
    /// The workspace, if there is one.
    pub workspace: Option<Workspace>,
    /// `/proc` shows processes and nothing of the kernel (`subset=pid`).
    pub processes_only: bool,
}

/// One place of a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where, as the session sees it.
    pub target: Vec<u8>,
    /// What.
    pub fill: Fill,
    /// Whether a source that is not there is left out instead of refused.
    pub optional: bool,
}

/// What is at a place of a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fill {
    /// A host's directory (or file), read-only by bind mount.
    ReadOnly(Vec<u8>),
    /// A host's directory, read-only by an overlay of the session's own: locks and file events stay apart.
    View(Vec<u8>),
    /// A host's directory or file, writable by bind mount.
    ReadWrite(Vec<u8>),
    /// A small file of the host, copied (1 MiB at most).
    Copy(Vec<u8>),
    /// A file with this content.
    File(Vec<u8>),
    /// A symbolic link.
    Link(Vec<u8>),
    /// A tmpfs of so many bytes and inodes; whether programs may be executed from it.
    Tmpfs {
        /// `size=`, bytes.
        size: u64,
        /// `nr_inodes=`.
        inodes: u64,
        /// Without `noexec`.
        exec: bool,
    },
    /// A fresh procfs of the session's PID namespace.
    Proc,
    /// The minimal `/dev`, with its own devpts and `/dev/shm` of `size` bytes.
    Dev {
        /// Of `/dev/shm`, bytes.
        size: u64,
    },
}

/// The directory that the session works in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Workspace {
    /// Where, as the session sees it.
    pub target: Vec<u8>,
    /// The host's directory; empty for one of the session's own (a tmpfs).
    pub source: Vec<u8>,
    /// Whether the host's directory is below and the session's changes are above it, gone with the session.
    pub overlay: bool,
    /// Whether the session may write.
    pub writable: bool,
    /// Without `noexec`. Landlock alone is not enough: it does not see what a loader maps.
    pub exec: bool,
    /// Bytes of what is the session's own.
    pub size: u64,
    /// Inodes likewise.
    pub inodes: u64,
    /// Entries, relative to it, that can be neither written nor created.
    pub protect: Vec<Vec<u8>>,
}

/// Kinds of access to a path, combined by `|`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Access(pub u32);

impl Access {
    /// Read files and directories.
    pub const READ: u32 = 1;
    /// Execute files.
    pub const EXECUTE: u32 = 2;
    /// Write, create, remove, rename and link files and directories, FIFOs and sockets included.
    pub const WRITE: u32 = 4;
    /// `ioctl(2)` on devices.
    pub const DEVICE: u32 = 8;
    /// All of them.
    pub const ALL: u32 = 15;
}

/// A Landlock ruleset: everything is handled, these are allowed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Landlock {
    /// Allowed beneath each path, as the session sees it. A path that is not there is left out.
    pub rules: Vec<PathRule>,
    /// Ports that may be bound; `None` leaves TCP to the network namespace.
    pub bind_ports: Option<Vec<u16>>,
    /// Ports that may be connected to, likewise.
    pub connect_ports: Option<Vec<u16>>,
    /// No signal and no abstract socket beyond the session (ABI 6).
    pub scoped: bool,
}

/// One path of a ruleset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRule {
    /// Absolute, as the session sees it.
    pub path: Vec<u8>,
    /// What is allowed beneath it.
    pub access: Access,
}

/// System call filters: what is not named is answered `ENOSYS`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seccomp {
    /// Numbers that are allowed, as far as the argument rules below let them.
    pub allow: Vec<u32>,
    /// Numbers that are answered `EPERM`.
    pub refuse: Vec<u32>,
    /// Socket families that `socket(2)` and `socketpair(2)` may name; others are `EAFNOSUPPORT`.
    pub families: Vec<u16>,
    /// The stricter argument rules (no setgid bit, no `RWF_NOWAIT`, …) besides the ordinary ones.
    pub strict: bool,
}
