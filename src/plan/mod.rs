//! What a session *will be*: final, with nothing left to look up. The launcher and the init carry it out.

pub mod codec;
mod isolation;

pub use isolation::{
    Access, Fill, Ids, Isolation, Landlock, Mount, Namespaces, PathRule, Root, Seccomp, Workspace,
};

/// One `setrlimit`, as it is applied between fork and exec of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// `RLIMIT_*` of `setrlimit(2)`.
    pub resource: u32,
    /// Soft limit in the resource's own unit; `u64::MAX` is no limit.
    pub soft: u64,
    /// Hard limit likewise.
    pub hard: u64,
}

/// A session as the launcher makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionPlan {
    /// User of init and workload; never 0. With [`Ids::Range`] the launcher gives another, of its range.
    pub uid: u32,
    /// Group likewise; never 0. There are no supplementary groups where the launcher may drop them.
    pub gid: u32,
    /// The mark of this instance, carried as `RLIMIT_RTTIME` (see `sys::mark`).
    pub mark: u64,
    /// File mode creation mask.
    pub umask: u32,
    /// How many processes an exec may add to those there are (`RLIMIT_NPROC` counts a uid, so at each exec the
    /// limit is the host's task count, an upper bound of the uid's, plus this).
    pub nproc: u32,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// Working directory, absolute, as the session sees it.
    pub working_dir: Vec<u8>,
    /// The shell that `command` goes through, absolute, as the session sees it; must be there and executable.
    pub shell: Vec<u8>,
    /// Limits of each exec, besides `RLIMIT_NPROC` and the mark.
    pub rlimits: Vec<Rlimit>,
    /// What stands between the session and the host, beyond L1; empty under `l1`.
    pub isolation: Isolation,
}
