//! Where making a session or starting an exec failed.

use super::DecodeError;

/// Where making a session or starting an exec failed. The numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// The message itself, or a bound of the plan.
    Plan = 1,
    /// `fork` or `clone3`.
    Clone = 2,
    /// `setresuid`, `setresgid`, `setgroups`.
    User = 3,
    /// `setrlimit`.
    Rlimit = 4,
    /// `chdir` to the working directory.
    WorkingDirectory = 5,
    /// The session's shell is not there or not executable.
    Shell = 6,
    /// `PR_SET_NO_NEW_PRIVS`.
    NoNewPrivileges = 7,
    /// `dup2` and `close_range`.
    Descriptors = 8,
    /// `setsid`.
    ProcessGroup = 9,
    /// `execve`.
    Exec = 10,
    /// Any other part of an init's start.
    Init = 11,
    /// The session has as many process trees as it may.
    TooManyTrees = 12,
    /// `clone(2)` with namespaces, or the id maps of its user namespace.
    Namespaces = 13,
    /// The session's root: mounts, `pivot_root(2)`.
    Root = 14,
    /// The loopback device.
    Network = 15,
    /// Dropping capabilities.
    Capabilities = 16,
    /// The Landlock ruleset.
    Landlock = 17,
    /// The system call filters.
    Seccomp = 18,
    /// Host ids of the session's own; `EAGAIN` where none is left.
    HostIds = 19,
}

impl Stage {
    /// The name that clients see.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Clone => "clone",
            Self::User => "user",
            Self::Rlimit => "rlimit",
            Self::WorkingDirectory => "working_dir",
            Self::Shell => "shell",
            Self::NoNewPrivileges => "no_new_privileges",
            Self::Descriptors => "descriptors",
            Self::ProcessGroup => "process_group",
            Self::Exec => "exec",
            Self::Init => "init",
            Self::TooManyTrees => "process_trees",
            Self::Namespaces => "namespaces",
            Self::Root => "root",
            Self::Network => "network",
            Self::Capabilities => "capabilities",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::HostIds => "host_ids",
        }
    }

    /// The stage with that number.
    ///
    /// # Errors
    /// [`DecodeError`] where there is none.
    pub fn from_number(number: u8) -> Result<Self, DecodeError> {
        Ok(match number {
            1 => Self::Plan,
            2 => Self::Clone,
            3 => Self::User,
            4 => Self::Rlimit,
            5 => Self::WorkingDirectory,
            6 => Self::Shell,
            7 => Self::NoNewPrivileges,
            8 => Self::Descriptors,
            9 => Self::ProcessGroup,
            10 => Self::Exec,
            11 => Self::Init,
            12 => Self::TooManyTrees,
            13 => Self::Namespaces,
            14 => Self::Root,
            15 => Self::Network,
            16 => Self::Capabilities,
            17 => Self::Landlock,
            18 => Self::Seccomp,
            19 => Self::HostIds,
            _ => return Err(DecodeError),
        })
    }
}
