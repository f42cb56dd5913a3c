//! What a session *may be*: TOML of fixed shape, parsed strictly. Nothing here touches the system.
//!
//! A text goes through [`read`] (each key of [`keys`] with its place), [`set`] (what it extends), [`check`] (what
//! contradicts itself) and becomes a [`Policy`], in which nothing is left open. [`resolve`] makes of it, of a
//! request and of what the host has the part of a plan that is L2. The policies that TRL brings are compiled in.
#![forbid(unsafe_code)]

mod check;
mod demands;
mod files;
pub mod keys;
pub mod limits;
mod places;
mod read;
pub mod resolve;
pub mod schema;
pub mod set;
pub mod syscalls;
mod text;
mod value;

pub use check::{is_beneath, placeable};
pub use demands::layer;
pub use limits::{Amount, LimitError};
pub use read::{FileError, MAX_TEXT, Place};
pub use resolve::{Found, HostView, Request, ResolveError, WorkspaceChoice};
pub use set::{Policies, Text};
pub use text::toml;

use crate::plan::Rlimit;
use crate::report::Demand;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use std::sync::OnceLock;
use std::time::Duration;

/// Limits of each exec. What is `None` is the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimits {
    /// `RLIMIT_CPU`, seconds.
    pub cpu_s: u64,
    /// `RLIMIT_NOFILE`.
    pub nofile: u64,
    /// `RLIMIT_CORE`, bytes.
    pub core: u64,
    /// `RLIMIT_AS`, bytes.
    pub as_bytes: Option<u64>,
    /// `RLIMIT_FSIZE`, bytes.
    pub fsize_bytes: Option<u64>,
    /// How many processes an exec may add (`RLIMIT_NPROC`, which counts a uid).
    pub nproc: u32,
}

/// A policy, complete and within its bounds. What each field decides is said in [`keys::KEYS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: Demand,
    /// Commands of one session that may run side by side.
    pub max_running_execs: u32,
    /// Seconds between SIGTERM and SIGKILL.
    pub grace_s: u32,
    /// File mode creation mask.
    #[serde(serialize_with = "octal", deserialize_with = "from_octal")]
    pub umask: u32,
    /// Limits of each exec.
    pub rlimits: Rlimits,
    /// Namespaces of the session's own.
    pub namespaces: NamespacesPolicy,
    /// Whom it is outside and inside.
    pub user: UserPolicy,
    /// Its root.
    pub filesystem: FilesystemPolicy,
    /// The directory that it works in.
    pub workspace: WorkspacePolicy,
    /// Its network.
    pub network: NetworkPolicy,
    /// Landlock.
    pub landlock: LandlockPolicy,
    /// System calls.
    pub seccomp: SeccompPolicy,
}

macro_rules! section {
    ($name:ident, $section:literal, { $($field:ident: $type:ty),* $(,)? }) => {
        #[doc = concat!("`[", $section, "]` of a policy; see [`keys::KEYS`].")]
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $(#[doc = concat!("`", $section, ".", stringify!($field), "`.")] pub $field: $type,)*
        }
    };
}

section!(NamespacesPolicy, "namespaces", {
    user: Demand, mount: Demand, pid: Demand, ipc: Demand, uts: Demand, cgroup: Demand, net: Demand,
    nested: bool, hostname: String,
});
section!(UserPolicy, "user", { demand: Demand, ids: u32, uid: u32, gid: u32, allow_root_inside: bool });
section!(FilesystemPolicy, "filesystem", {
    demand: Demand, view: View, rootfs: Option<String>, system: Vec<String>, copy: Vec<String>,
    read_only: Vec<String>, writable: Vec<String>, offer_read_only: Vec<String>, offer_writable: Vec<String>,
    tmp_size: u64, run_size: u64, shm_size: u64, inodes: u64, exec_tmp: bool, processes_only: bool,
});
section!(WorkspacePolicy, "workspace", {
    mode: WorkspaceMode, path: String, size: u64, inodes: u64, writable: bool, exec: bool, protect: Vec<String>,
    protect_absent: ProtectAbsent,
});
section!(NetworkPolicy, "network", {
    mode: NetworkMode, bind_ports: Option<Vec<u16>>, connect_ports: Option<Vec<u16>>,
});
section!(LandlockPolicy, "landlock", { demand: Demand, execute: Vec<String>, scoped: bool });
section!(SeccompPolicy, "seccomp", {
    demand: Demand, groups: Vec<String>, allow: Vec<String>, refuse: Vec<String>, families: Vec<String>,
    strict: bool,
});

/// How system directories are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// By an overlay of the session's own.
    Overlay,
    /// By a read-only bind mount.
    Bind,
}

/// The most that a workspace may be, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkspaceMode {
    /// There is none.
    None,
    /// A fresh directory, gone with the session.
    Private,
    /// Also a host's directory of which only a layer above it is written, or nothing.
    Overlay,
    /// Also a host's directory itself.
    Host,
}

/// What becomes of a protected entry that a host's directory does not have: there nothing can stand in for it
/// that would not stay behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProtectAbsent {
    /// No session.
    Refuse,
    /// The session can make it.
    Leave,
}

/// The network of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// A loopback of its own.
    None,
    /// The host's.
    Host,
}

/// What the daemon's own configuration says of the limits of all children.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Overrides {
    /// Instead of `rlimits.cpu_s`.
    pub cpu_s: Option<u64>,
    /// Instead of `rlimits.as_bytes`.
    pub as_bytes: Option<u64>,
    /// Instead of `rlimits.nproc`.
    pub nproc: Option<u32>,
}

/// A limit that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A text that is no policy.
    #[error(transparent)]
    File(#[from] FileError),
    /// A value beyond its bounds.
    #[error("{field} must be {expected}")]
    Bounds {
        /// The key.
        field: &'static str,
        /// What it may be.
        expected: &'static str,
    },
}

impl Policy {
    /// The shipped policy of that name, if there is one.
    #[must_use]
    pub fn load(name: &str) -> Option<Self> {
        static SHIPPED: OnceLock<Option<Policies>> = OnceLock::new();
        SHIPPED.get_or_init(|| Policies::shipped().ok()).as_ref()?.get(name).cloned()
    }

    /// The names that [`Policy::load`] knows.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        set::SHIPPED.iter().map(|(name, _)| *name).collect()
    }

    /// Parses a policy's text, which may extend what is shipped.
    ///
    /// # Errors
    /// [`FileError`], which names line and column.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        Policies::shipped()?.parse("policy", text)
    }

    /// With the daemon's limits in place of the policy's; the digest is then another.
    ///
    /// # Errors
    /// A limit beyond its bounds.
    pub fn with(mut self, overrides: Overrides) -> Result<Self, PolicyError> {
        self.rlimits.cpu_s = overrides.cpu_s.unwrap_or(self.rlimits.cpu_s);
        self.rlimits.as_bytes = overrides.as_bytes.or(self.rlimits.as_bytes);
        self.rlimits.nproc = overrides.nproc.unwrap_or(self.rlimits.nproc);
        let bounds = [
            (self.rlimits.cpu_s > 0, "rlimits.cpu_s"),
            (self.rlimits.as_bytes != Some(0), "rlimits.as_bytes"),
            (self.rlimits.nproc > 0, "rlimits.nproc"),
        ];
        match bounds.into_iter().find(|(within, _)| !within) {
            Some((_, field)) => Err(PolicyError::Bounds { field, expected: "at least 1" }),
            None => Ok(self),
        }
    }

    /// Time between SIGTERM and SIGKILL.
    #[must_use]
    pub fn grace(&self) -> Duration {
        Duration::from_secs(u64::from(self.grace_s))
    }

    /// The limits as they go into a plan: all but `RLIMIT_NPROC`, which a plan has apart.
    #[must_use]
    pub fn rlimits(&self) -> Vec<Rlimit> {
        let of = |resource: u32, value: Option<u64>| {
            value.map(|value| Rlimit { resource, soft: value, hard: value })
        };
        [
            of(libc::RLIMIT_CPU, Some(self.rlimits.cpu_s)),
            of(libc::RLIMIT_NOFILE, Some(self.rlimits.nofile)),
            of(libc::RLIMIT_CORE, Some(self.rlimits.core)),
            of(libc::RLIMIT_AS, self.rlimits.as_bytes),
            of(libc::RLIMIT_FSIZE, self.rlimits.fsize_bytes),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// `sha256:` and the hash, in hexadecimal, of all that the policy decides, in one fixed spelling: not of its
    /// text, of what it extends, or of its description.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut decided = serde_json::to_value(self).unwrap_or_default();
        if let Some(map) = decided.as_object_mut() {
            map.remove("description");
        }
        let canonical = format!("trl-policy-2\n{}\n", set::canonical(&decided));
        Sha256::digest(canonical).iter().fold("sha256:".to_owned(), |hex, byte| format!("{hex}{byte:02x}"))
    }
}

fn octal<S: Serializer>(mask: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("0o{mask:03o}"))
}

fn from_octal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let text = String::deserialize(deserializer)?;
    value::mask(&text).ok_or_else(|| serde::de::Error::custom("no mask"))
}

#[cfg(test)]
mod tests;
