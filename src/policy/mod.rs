//! What a session *may be*: TOML of fixed shape, parsed strictly. Nothing here touches the system.
//!
//! The policies that TRL brings are compiled in. An unknown key, a key given twice, and a value beyond its
//! bounds are refused.
#![forbid(unsafe_code)]

pub mod syscalls;

use crate::plan::Rlimit;
use crate::report::Demand;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// Name and text of each policy that is compiled in.
const EMBEDDED: [(&str, &str); 1] = [("l1", include_str!("../../policies/l1.toml"))];
/// Most commands of a session side by side that a policy may allow.
const MOST_RUNNING_EXECS: u32 = 256;
/// Longest grace, seconds: destroying a session must end within a time that a client waits for.
const LONGEST_GRACE_S: u32 = 3600;
/// Fewest descriptors: 0 to 2, and what a dynamic loader opens.
const FEWEST_DESCRIPTORS: u64 = 16;

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

/// A policy, complete and within its bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: Demand,
    /// Limits of each exec.
    pub rlimits: Rlimits,
    /// Commands of one session that may run side by side.
    pub max_running_execs: u32,
    /// Seconds between SIGTERM and SIGKILL.
    pub grace_s: u32,
    /// File mode creation mask.
    #[serde(serialize_with = "octal")]
    pub umask: u32,
}

/// The file's shape.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    name: String,
    description: String,
    no_new_privileges: Demand,
    rlimits: Rlimits,
    max_running_execs: u32,
    grace_s: u32,
    umask: String,
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

/// A text that is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Not of the shape, or not TOML.
    #[error("policy file: {0}")]
    Shape(String),
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
    /// The policy of that name, if there is one.
    #[must_use]
    pub fn load(name: &str) -> Option<Self> {
        let (_, text) = EMBEDDED.iter().find(|(known, _)| *known == name)?;
        Self::parse(text).ok()
    }

    /// The names that [`Policy::load`] knows.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        EMBEDDED.iter().map(|(name, _)| *name).collect()
    }

    /// Parses a policy's text.
    ///
    /// # Errors
    /// [`PolicyError`], which names the key.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let file: PolicyFile =
            toml::from_str(text).map_err(|error| PolicyError::Shape(error.message().to_owned()))?;
        let umask = file
            .umask
            .strip_prefix("0o")
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))
            .and_then(|digits| u32::from_str_radix(digits, 8).ok())
            .ok_or(PolicyError::Bounds { field: "umask", expected: "text like \"0o077\"" })?;
        let policy = Self {
            name: file.name,
            description: file.description,
            no_new_privileges: file.no_new_privileges,
            rlimits: file.rlimits,
            max_running_execs: file.max_running_execs,
            grace_s: file.grace_s,
            umask,
        };
        policy.check().map(|()| policy)
    }

    /// With the daemon's limits in place of the policy's; the digest is then another.
    ///
    /// # Errors
    /// A limit beyond its bounds.
    pub fn with(mut self, overrides: Overrides) -> Result<Self, PolicyError> {
        self.rlimits.cpu_s = overrides.cpu_s.unwrap_or(self.rlimits.cpu_s);
        self.rlimits.as_bytes = overrides.as_bytes.or(self.rlimits.as_bytes);
        self.rlimits.nproc = overrides.nproc.unwrap_or(self.rlimits.nproc);
        self.check().map(|()| self)
    }

    fn check(&self) -> Result<(), PolicyError> {
        let name_fits = (1..=64).contains(&self.name.len())
            && self.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        let rlimits = &self.rlimits;
        let bounds = [
            (name_fits, "name", "1 to 64 letters, digits, '-' or '_'"),
            (self.umask <= 0o777, "umask", "at most 0o777"),
            ((1..=MOST_RUNNING_EXECS).contains(&self.max_running_execs), "max_running_execs", "1 to 256"),
            (self.grace_s <= LONGEST_GRACE_S, "grace_s", "at most 3600"),
            (rlimits.cpu_s > 0, "rlimits.cpu_s", "at least 1"),
            (rlimits.nofile >= FEWEST_DESCRIPTORS, "rlimits.nofile", "at least 16"),
            (rlimits.as_bytes != Some(0), "rlimits.as_bytes", "at least 1"),
            (rlimits.nproc > 0, "rlimits.nproc", "at least 1"),
        ];
        match bounds.into_iter().find(|(within, _, _)| !within) {
            Some((_, field, expected)) => Err(PolicyError::Bounds { field, expected }),
            None => Ok(()),
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

    /// `sha256:` and the hash, in hexadecimal, of all that the policy decides: not of its text, and not of its
    /// description.
    #[must_use]
    pub fn digest(&self) -> String {
        let optional =
            |value: Option<u64>| value.map_or_else(|| "none".to_owned(), |value| value.to_string());
        let canonical = format!(
            "trl-policy-1\nname={}\nno_new_privileges={}\nmax_running_execs={}\ngrace_s={}\numask={:o}\n\
             rlimits.cpu_s={}\nrlimits.nofile={}\nrlimits.core={}\nrlimits.as_bytes={}\n\
             rlimits.fsize_bytes={}\nrlimits.nproc={}\n",
            self.name,
            self.no_new_privileges.name(),
            self.max_running_execs,
            self.grace_s,
            self.umask,
            self.rlimits.cpu_s,
            self.rlimits.nofile,
            self.rlimits.core,
            optional(self.rlimits.as_bytes),
            optional(self.rlimits.fsize_bytes),
            self.rlimits.nproc,
        );
        Sha256::digest(canonical).iter().fold("sha256:".to_owned(), |hex, byte| format!("{hex}{byte:02x}"))
    }
}

fn octal<S: serde::Serializer>(mask: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("0o{mask:03o}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const L1: &str = EMBEDDED[0].1;

    #[test]
    fn every_embedded_policy_loads_under_its_name() {
        for name in Policy::names() {
            assert_eq!(Policy::load(name).map(|policy| policy.name).as_deref(), Some(name));
        }
        assert!(Policy::load("nothing").is_none());
    }

    #[test]
    fn l1_is_what_the_protocol_says() {
        let policy = Policy::parse(L1).unwrap();
        assert_eq!((policy.rlimits.cpu_s, policy.rlimits.nofile, policy.rlimits.core), (300, 1024, 0));
        assert_eq!((policy.rlimits.nproc, policy.max_running_execs, policy.grace_s), (64, 16, 5));
        assert_eq!((policy.umask, policy.no_new_privileges), (0o077, Demand::Required));
        assert_eq!(policy.rlimits().len(), 3);
    }

    #[test]
    fn unknown_and_duplicate_keys_are_refused() {
        for extra in ["surprise = 1", "core = 1"] {
            let text = format!("{L1}\n{extra}\n");
            assert!(matches!(Policy::parse(&text), Err(PolicyError::Shape(_))), "{extra}");
        }
        assert!(Policy::parse(&format!("surprise = 1\n{L1}")).is_err());
        assert!(Policy::parse(&L1.replace("\"required\"", "\"maybe\"")).is_err());
        assert!(Policy::parse(&L1.replace("grace_s = 5", "")).is_err());
    }

    #[test]
    fn values_beyond_their_bounds_are_refused() {
        for (from, to) in [
            ("\"0o077\"", "\"077\""),
            ("\"0o077\"", "\"0o1000\""),
            ("\"0o077\"", "\"0o+7\""),
            ("max_running_execs = 16", "max_running_execs = 0"),
            ("grace_s = 5", "grace_s = 100000"),
            ("cpu_s = 300", "cpu_s = 0"),
            ("nofile = 1024", "nofile = 3"),
            ("nproc = 64", "nproc = 0"),
            ("name = \"l1\"", "name = \"../l1\""),
        ] {
            assert!(L1.contains(from));
            assert!(matches!(Policy::parse(&L1.replace(from, to)), Err(PolicyError::Bounds { .. })), "{to}");
        }
    }

    #[test]
    fn the_digest_is_of_what_is_decided() {
        let policy = Policy::parse(L1).unwrap();
        let digest = policy.digest();
        assert!(digest.starts_with("sha256:") && digest.len() == 71);
        assert_eq!(Policy::parse(&format!("# comment\n{L1}")).unwrap().digest(), digest);
        let other = policy.clone().with(Overrides { nproc: Some(65), ..Overrides::default() }).unwrap();
        assert_ne!(other.digest(), digest);
        assert_eq!(policy.with(Overrides::default()).unwrap().digest(), digest);
    }

    #[test]
    fn an_override_has_the_same_bounds() {
        let policy = Policy::parse(L1).unwrap();
        let with = Overrides { cpu_s: Some(7), as_bytes: Some(1 << 30), nproc: Some(9) };
        assert_eq!(policy.clone().with(with).unwrap().rlimits().len(), 4);
        assert!(policy.with(Overrides { cpu_s: Some(0), ..with }).is_err());
    }
}
