//! Reads a process of a session back from `/proc` and compares it with the plan.
//!
//! The daemon does this to a probe process, started as every command of the session is: who looks is not who
//! applied. Of the environment only the keys leave this file.

use crate::plan::SessionPlan;
use crate::report::{Demand, Enforcement, Evidence, L1, LayerReport, Source, layer};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::PathBuf;
use zeroize::Zeroizing;

/// Longest part of a `/proc` text that is read, bytes.
const MAX_TEXT: u64 = 64 * 1024;
/// Most environment bytes that are read; the kernel allows a process less with an 8 MiB stack.
const MAX_ENVIRON: u64 = 8 * 1024 * 1024;
/// Width of the name column of `/proc/<pid>/limits`.
const LIMIT_NAME: usize = 25;

/// A process as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Its process id.
    pub pid: i32,
    /// Its parent.
    pub parent: i32,
    /// Its process group.
    pub pgid: i32,
    /// Its kernel session.
    pub sid: i32,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
    /// Real, effective, saved and file system user.
    pub uids: Vec<u32>,
    /// Group likewise.
    pub gids: Vec<u32>,
    /// Whether its permitted, effective or ambient set holds any capability.
    pub capabilities: bool,
    /// Working directory.
    pub cwd: PathBuf,
    /// Soft and hard limits by the kernel's names; `u64::MAX` is no limit.
    pub limits: BTreeMap<String, (u64, u64)>,
    /// Open descriptors.
    pub fds: BTreeSet<i32>,
    /// Keys of its environment.
    pub environ_keys: BTreeSet<String>,
}

/// Reads process `pid` back.
///
/// # Errors
/// The kernel's; `InvalidData` where a text of `/proc` has not the form of proc(5).
pub fn observe(pid: i32) -> io::Result<Observed> {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let text = |name: &str| -> io::Result<String> {
        let mut text = String::new();
        std::fs::File::open(directory.join(name))?.take(MAX_TEXT).read_to_string(&mut text)?;
        Ok(text)
    };
    let (status, stat) = (text("status")?, text("stat")?);
    // The name in parentheses may hold anything, so count from its end: state, parent, group, session.
    let after_name = stat.rsplit_once(')').ok_or_else(malformed)?.1;
    let mut ids =
        after_name.split_ascii_whitespace().skip(1).map(|field| field.parse().map_err(|_| malformed()));
    let mut id = || ids.next().ok_or_else(malformed)?;
    let (parent, pgid, sid) = (id()?, id()?, id()?);
    let mut capabilities = false;
    for set in ["CapPrm", "CapEff", "CapAmb"] {
        let bits = u64::from_str_radix(field(&status, set)?.trim(), 16).map_err(|_| malformed())?;
        capabilities |= bits != 0;
    }
    let mut fds = BTreeSet::new();
    for entry in std::fs::read_dir(directory.join("fd"))? {
        let name = entry?.file_name();
        fds.insert(name.to_str().and_then(|name| name.parse().ok()).ok_or_else(malformed)?);
    }
    Ok(Observed {
        pid,
        parent,
        pgid,
        sid,
        no_new_privs: field(&status, "NoNewPrivs")?.trim() == "1",
        uids: numbers(field(&status, "Uid")?)?,
        gids: numbers(field(&status, "Gid")?)?,
        capabilities,
        cwd: std::fs::read_link(directory.join("cwd"))?,
        limits: parse_limits(&text("limits")?)?,
        fds,
        environ_keys: keys(std::fs::File::open(directory.join("environ"))?.take(MAX_ENVIRON))?,
    })
}

fn malformed() -> io::Error {
    io::Error::from(io::ErrorKind::InvalidData)
}

fn field<'a>(status: &'a str, name: &str) -> io::Result<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':');
    status.lines().find_map(value).ok_or_else(malformed)
}

fn numbers(text: &str) -> io::Result<Vec<u32>> {
    text.split_ascii_whitespace().map(|number| number.parse().map_err(|_| malformed())).collect()
}

fn parse_limits(text: &str) -> io::Result<BTreeMap<String, (u64, u64)>> {
    let value = |text: Option<&str>| match text {
        Some("unlimited") => Ok(u64::MAX),
        Some(text) => text.parse().map_err(|_| malformed()),
        None => Err(malformed()),
    };
    text.lines()
        .skip(1)
        .map(|line| {
            let (name, values) = line.split_at_checked(LIMIT_NAME).ok_or_else(malformed)?;
            let mut values = values.split_ascii_whitespace();
            Ok((name.trim().to_owned(), (value(values.next())?, value(values.next())?)))
        })
        .collect()
}

/// The keys of an environment; its values pass through one wiped buffer and are not gathered.
fn keys(mut environ: impl Read) -> io::Result<BTreeSet<String>> {
    let mut buffer = Zeroizing::new(vec![0u8; 4096]);
    let (mut keys, mut key, mut in_key) = (BTreeSet::new(), Vec::new(), true);
    loop {
        let count = environ.read(&mut buffer)?;
        if count == 0 {
            return Ok(keys);
        }
        for byte in &buffer[..count] {
            match byte {
                b'=' if in_key => {
                    keys.insert(String::from_utf8_lossy(&key).into_owned());
                    in_key = false;
                }
                0 => {
                    key.clear();
                    in_key = true;
                }
                byte if in_key => key.push(*byte),
                _ => {}
            }
        }
    }
}

/// The kernel's name of a limit in `/proc/<pid>/limits`.
fn limit_name(resource: u32) -> Option<&'static str> {
    Some(match resource {
        libc::RLIMIT_CPU => "Max cpu time",
        libc::RLIMIT_FSIZE => "Max file size",
        libc::RLIMIT_DATA => "Max data size",
        libc::RLIMIT_STACK => "Max stack size",
        libc::RLIMIT_CORE => "Max core file size",
        libc::RLIMIT_NPROC => "Max processes",
        libc::RLIMIT_NOFILE => "Max open files",
        libc::RLIMIT_MEMLOCK => "Max locked memory",
        libc::RLIMIT_AS => "Max address space",
        libc::RLIMIT_SIGPENDING => "Max pending signals",
        libc::RLIMIT_MSGQUEUE => "Max msgqueue size",
        libc::RLIMIT_NICE => "Max nice priority",
        libc::RLIMIT_RTPRIO => "Max realtime priority",
        libc::RLIMIT_RTTIME => "Max realtime timeout",
        _ => return None,
    })
}

/// What was seen of a layer, and what is short of it.
struct Finding {
    observed: String,
    short: Option<(Enforcement, String)>,
}

impl Finding {
    /// Full if it holds, else nothing of it counts.
    fn of(holds: bool, observed: String, reason: impl FnOnce() -> String) -> Self {
        Self { observed, short: (!holds).then(|| (Enforcement::None, reason())) }
    }
}

/// Compares a process with the plan of its session and the keys of the environment that it was given. What is
/// not as planned counts as not enforced at all.
#[must_use]
pub fn judge(observed: &Observed, plan: &SessionPlan, environ_keys: &[&str]) -> Vec<LayerReport> {
    L1.iter()
        .map(|(name, demand)| {
            let off = *name == layer::NO_NEW_PRIVS && !plan.no_new_privileges;
            let finding = find(name, observed, plan, environ_keys);
            let (enforced, reason) = finding.short.map_or((Enforcement::Full, None), |(e, r)| (e, Some(r)));
            LayerReport {
                layer: name,
                requested: if off { Demand::Off } else { *demand },
                enforced,
                evidence: Some(Evidence { source: Source::Kernel, observed: finding.observed }),
                reason,
            }
        })
        .collect()
}

fn find(name: &str, observed: &Observed, plan: &SessionPlan, environ_keys: &[&str]) -> Finding {
    match name {
        layer::ENVIRONMENT => environment(observed, environ_keys),
        layer::WORKING_DIR => working_dir(observed, plan),
        layer::USER => user(observed, plan),
        layer::PROCESS_GROUP => Finding::of(
            observed.pgid == observed.pid && observed.sid == observed.pid,
            "leader of its process group and session".to_owned(),
            || {
                format!(
                    "process group {} and session {} of process {}",
                    observed.pgid, observed.sid, observed.pid
                )
            },
        )
        .or_observed(|| "not a leader".to_owned()),
        layer::RLIMITS => rlimits(observed, plan),
        layer::RLIMIT_NPROC => nproc(observed, plan),
        layer::DESCRIPTORS => Finding::of(
            observed.fds.iter().copied().eq(0..3),
            format!("open descriptors {:?}", observed.fds),
            || "other descriptors than 0, 1 and 2".to_owned(),
        ),
        layer::NO_NEW_PRIVS => Finding::of(
            observed.no_new_privs,
            format!("NoNewPrivs {}", u8::from(observed.no_new_privs)),
            || "the process may gain privileges by execve".to_owned(),
        ),
        layer::PROCESS_TREE => process_tree(observed, plan),
        _ => Finding::of(false, String::new(), || "no evidence is known for it".to_owned()),
    }
}

impl Finding {
    /// Says something else of what was seen where the layer does not hold.
    fn or_observed(mut self, observed: impl FnOnce() -> String) -> Self {
        if self.short.is_some() {
            self.observed = observed();
        }
        self
    }
}

fn environment(observed: &Observed, expected: &[&str]) -> Finding {
    let expected: BTreeSet<&str> = expected.iter().copied().collect();
    let seen: BTreeSet<&str> = observed.environ_keys.iter().map(String::as_str).collect();
    let (more, fewer) = (seen.difference(&expected).count(), expected.difference(&seen).count());
    Finding::of(more == 0 && fewer == 0, format!("{} variables", seen.len()), || {
        format!("{more} variables that nobody gave, {fewer} missing")
    })
}

fn working_dir(observed: &Observed, plan: &SessionPlan) -> Finding {
    use std::os::unix::ffi::OsStrExt;
    let planned = PathBuf::from(std::ffi::OsStr::from_bytes(&plan.working_dir));
    let resolved = std::fs::canonicalize(&planned).unwrap_or(planned);
    Finding::of(observed.cwd == resolved, observed.cwd.display().to_string(), || {
        "another directory than was asked for".to_owned()
    })
}

fn user(observed: &Observed, plan: &SessionPlan) -> Finding {
    let all =
        |seen: &[u32], planned: u32| planned != 0 && seen.len() == 4 && seen.iter().all(|id| *id == planned);
    let holds = all(&observed.uids, plan.uid) && all(&observed.gids, plan.gid) && !observed.capabilities;
    let capabilities = if observed.capabilities { "with" } else { "without" };
    Finding::of(
        holds,
        format!("uids {:?}, gids {:?}, {capabilities} capabilities", observed.uids, observed.gids),
        || format!("not user {} and group {} without capabilities", plan.uid, plan.gid),
    )
}

fn rlimits(observed: &Observed, plan: &SessionPlan) -> Finding {
    let mut seen = Vec::new();
    let mut differing = Vec::new();
    for limit in &plan.rlimits {
        let name = limit_name(limit.resource).unwrap_or("unknown limit");
        let found = observed.limits.get(name);
        let shown = |value: u64| if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() };
        seen.push(
            found.map_or_else(|| format!("{name} unknown"), |(soft, _)| format!("{name} {}", shown(*soft))),
        );
        if found != Some(&(limit.soft, limit.hard)) {
            differing.push(name);
        }
    }
    Finding::of(differing.is_empty(), seen.join(", "), || format!("not as planned: {}", differing.join(", ")))
}

fn nproc(observed: &Observed, plan: &SessionPlan) -> Finding {
    let hard = observed.limits.get("Max processes").map_or(u64::MAX, |(_, hard)| *hard);
    if hard == u64::MAX || hard < u64::from(plan.nproc) {
        return Finding::of(false, format!("Max processes {hard}"), || "not as planned".to_owned());
    }
    let reason = format!(
        "RLIMIT_NPROC counts all processes of the user: {} more than the host had when the exec began, which \
         other sessions of the user can use up",
        plan.nproc
    );
    Finding { observed: format!("Max processes {hard}"), short: Some((Enforcement::Partial, reason)) }
}

fn process_tree(observed: &Observed, plan: &SessionPlan) -> Finding {
    let seen = format!("child of process {}", observed.parent);
    let marked = observed.limits.get("Max realtime timeout").is_some_and(|(_, hard)| *hard == plan.mark);
    if !marked || observed.parent <= 1 {
        return Finding::of(false, seen, || "not a marked process below a reaper".to_owned());
    }
    let reason = "no PID namespace: the exec's reaper is a subreaper, and ends what descends from it; a process \
                  of the same user may kill the reaper, and then the launcher ends the session";
    Finding { observed: seen, short: Some((Enforcement::Partial, reason.to_owned())) }
}

#[cfg(test)]
#[path = "evidence_tests.rs"]
mod tests;
