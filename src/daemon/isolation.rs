//! Policies as the daemon uses them, and the isolation report of each, made once per policy and
//! working directory.
//!
//! Evidence comes from a probe: the launcher's own program, started in a session exactly as a command is, and
//! looked at from outside while it waits for its stdin to close.

use super::Daemon;
use super::config::KILL_BOUND;
use super::exec::Isolation;
use super::host_ids;
use super::link::Link;
use super::wire::{Code, WireError};
use crate::evidence::{Observed, Witnessed, judge_user, observe};
use crate::host;
use crate::launcher::protocol::{FromInit, PROBE_KEY, SpawnHeader, Stage, spawn_packets};
use crate::layers::landlock;
use crate::plan::{Ids, Namespaces, SessionPlan, Workspace};
use crate::policy::{Found, HostView, Overrides, Policy, Request, ResolveError, View};
use crate::report::{Demand, Enforcement, Report, Verdict, layer};
use crate::secret::Secret;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tokio::time::timeout;

/// What is known of one policy on this host.
#[derive(Clone)]
pub struct Judged {
    /// For outcomes.
    pub isolation: Rc<Isolation>,
    /// For `session.create` and `session.info`.
    pub report: Rc<Report>,
    /// The same as JSON.
    pub json: Value,
}

/// Most reports that are kept.
const MAX_CACHED: usize = 256;

/// What the evidence depends on: the digest of the policy with its limits, the working directory that was seen, and
/// the workspace. All else of a plan is the same for the daemon's life, but for what the host lacks, and which ids a
/// session has, which is looked at each time.
type Key = (String, PathBuf, Option<Workspace>);

/// Reports by their keys.
#[derive(Default)]
pub struct Cache(RefCell<HashMap<Key, Seen>>);

/// What a report was found of: the plan, since a sysctl may have changed, and the process.
#[derive(Clone)]
struct Seen {
    plan: crate::plan::Isolation,
    report: Rc<Report>,
    observed: Rc<Observed>,
}

/// The session's working directory without links, as far as the daemon can tell.
fn working_dir(plan: &SessionPlan) -> PathBuf {
    let planned = PathBuf::from(OsStr::from_bytes(&plan.working_dir));
    std::fs::canonicalize(&planned).unwrap_or(planned)
}

/// A policy and what it is called.
pub struct Named<'a> {
    /// Within the limits that the session asked for.
    pub limited: &'a Policy,
    /// The digest without them, by which clients know it.
    pub digest: &'a str,
    /// The digest with them.
    pub limited_digest: &'a str,
}

/// The policy of that name under the operator's limits.
///
/// # Errors
/// `POLICY_NOT_FOUND`.
pub fn resolve(daemon: &Daemon, name: &str) -> Result<Policy, WireError> {
    let known = daemon.config.policies.get(name);
    let policy = known.ok_or_else(|| WireError::new(Code::PolicyNotFound, "no such policy"))?;
    let child = &daemon.config.child;
    let overrides = Overrides { cpu_s: child.cpu_seconds, as_bytes: child.memory_bytes, nproc: child.nproc };
    policy.clone().with(overrides).map_err(|error| WireError::new(Code::InternalError, error.to_string()))
}

/// `policy.list`.
pub fn list(daemon: &Daemon) -> Value {
    let policies: Vec<_> = daemon
        .config
        .policies
        .names()
        .filter_map(|name| resolve(daemon, name).ok())
        .map(|policy| json!({"name": policy.name, "description": policy.description, "digest": policy.digest()}))
        .collect();
    json!({"policies": policies, "default": daemon.config.default_policy})
}

/// `policy.show`.
///
/// # Errors
/// `POLICY_NOT_FOUND`.
pub fn show(daemon: &Daemon, name: &str) -> Result<Value, WireError> {
    let policy = resolve(daemon, name)?;
    Ok(json!({"name": policy.name, "digest": policy.digest(), "policy": policy}))
}

/// The L2 part of a session's plan under `policy`, on this host.
///
/// # Errors
/// `ISOLATION_UNAVAILABLE`, `POLICY_DENIED`.
pub async fn plan(
    daemon: &Daemon,
    policy: &Policy,
    request: &Request,
) -> Result<crate::plan::Isolation, WireError> {
    let ids = host_ids::look(daemon, policy).await?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let submounts: Vec<String> =
        mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect();
    let mut missing = host::missing::layers();
    missing.extend(ids.as_ref().err().filter(|_| policy.user.ids > 0).map(|why| (layer::USER, why.clone())));
    let host = HostView {
        id_ranges: ids.is_ok(),
        missing: &missing,
        submounts: &submounts,
        look: &look,
        is_public: &is_public,
    };
    let mut short = match as_far_as_views_go(policy).isolation(request, &host) {
        Ok(plan) => match short_of_landlock(policy, &plan) {
            None => return Ok(plan),
            Some(why) => vec![lacking(layer::LANDLOCK, Enforcement::Partial, &why)],
        },
        Err(ResolveError::Unavailable(layers)) => {
            layers.iter().map(|(layer, why)| lacking(layer, Enforcement::None, why)).collect()
        }
        Err(other) => return Err(WireError::new(Code::PolicyDenied, other.to_string())),
    };
    // By itself it is tried, as only that tells for certain; in a refusal it is named with the others.
    let root = &policy.filesystem;
    if root.demand == Demand::Required
        && root.view == View::Overlay
        && !short.iter().any(|known| known["layer"] == layer::FILESYSTEM)
        && let Some(why) = host::missing::overlay()
    {
        short.push(lacking(layer::FILESYSTEM, Enforcement::None, &why));
    }
    Err(unavailable(json!(short)))
}

fn lacking(layer: &str, enforced: Enforcement, reason: &str) -> Value {
    json!({"layer": layer, "requested": Demand::Required, "enforced": enforced, "reason": reason})
}

/// Why a required Landlock would be less than it is asked to be.
fn short_of_landlock(policy: &Policy, plan: &crate::plan::Isolation) -> Option<String> {
    let planned = plan.landlock.as_ref().filter(|_| policy.landlock.demand == Demand::Required)?;
    landlock::shortfall(planned, landlock::abi())
}

/// Where the root is a best effort and overlays are not to be had, the system is shown by read-only binds.
fn as_far_as_views_go(policy: &Policy) -> Cow<'_, Policy> {
    if short_of_views(policy).is_none() {
        return Cow::Borrowed(policy);
    }
    let mut policy = policy.clone();
    policy.filesystem.view = View::Bind;
    Cow::Owned(policy)
}

/// Why the root of a policy is less than it says.
fn short_of_views(policy: &Policy) -> Option<String> {
    let root = &policy.filesystem;
    let best_effort = root.demand == Demand::BestEffort && root.view == View::Overlay;
    best_effort.then(host::missing::overlay).flatten()
}

fn look(path: &str) -> Found {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Found::Absent };
    if found.is_symlink() {
        let to = std::fs::read_link(path).ok().and_then(|to| to.into_os_string().into_string().ok());
        return to.map_or(Found::Absent, Found::Link);
    }
    if found.is_dir() { Found::Directory } else { Found::File }
}

/// Whether others than its owner and its group may read what is at a path, and come to it.
fn is_public(path: &str) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let Ok(path) = std::fs::canonicalize(path) else { return false };
    let mode =
        |path: &Path| std::fs::metadata(path).map(|found| (found.is_dir(), found.permissions().mode()));
    let is_read = |(directory, mode): (bool, u32)| mode & 0o4 != 0 && (!directory || mode & 0o1 != 0);
    mode(&path).is_ok_and(is_read)
        && path.ancestors().skip(1).all(|above| mode(above).is_ok_and(|(_, mode)| mode & 0o1 != 0))
}

/// The refusal of a session whose isolation the kernel did not give, with what an operator can do.
#[must_use]
pub fn unmade(stage: Stage, errno: i32, about: &str) -> WireError {
    let (name, remedy) = match stage {
        Stage::Namespaces => (layer::NAMESPACE_USER, host::NAMESPACES_REMEDY.to_owned()),
        Stage::Network => (layer::NAMESPACE_NET, OTHER.to_owned()),
        Stage::Root => (
            layer::FILESYSTEM,
            host::missing::overlay().map_or_else(
                || "the root needs tmpfs and a procfs that is not masked where the daemon runs".to_owned(),
                |why| format!("{why}; or have a policy of your own with filesystem.view = \"bind\""),
            ),
        ),
        Stage::Landlock => (layer::LANDLOCK, OTHER.to_owned()),
        Stage::HostIds => (layer::USER, OTHER.to_owned()),
        other => (other.name(), OTHER.to_owned()),
    };
    // Of namespaces ENOSPC is a limit that the remedy names.
    let remedy = exhausted(errno).map_or(remedy, str::to_owned);
    let tried = if about.is_empty() { String::new() } else { format!("{about}: ") };
    let reason = format!("{}: {tried}{:?}; {remedy}", stage.name(), nix::errno::Errno::from_raw(errno));
    unavailable(json!([{"layer": name, "requested": Demand::Required, "enforced": Enforcement::None,
        "errno": errno, "object": (!about.is_empty()).then_some(about), "reason": reason}]))
}

/// What to do about an errno that tells of something used up.
#[must_use]
pub fn exhausted(errno: i32) -> Option<&'static str> {
    match errno {
        libc::EAGAIN => Some(
            "raise the limit of processes of whoever starts the daemon (ulimit -u, LimitNPROC=, TasksMax=)",
        ),
        libc::EMFILE | libc::ENFILE => {
            Some("raise the limit of open files of whoever starts the daemon (ulimit -n, LimitNOFILE=)")
        }
        libc::ENOMEM => Some("the host has no memory left for it"),
        libc::EFBIG => Some(
            "a file of filesystem.copy is larger than 1 MiB, or whoever starts the daemon may write no such file (ulimit -f)",
        ),
        _ => None,
    }
}

/// What there is to say of a step that should not fail.
const OTHER: &str = "the kernel refused a step that every supported kernel allows";

/// The process id, as the daemon sees it, of a process that its session's init sees as `inside`.
fn outside(init: i32, inside: i32, plan: &SessionPlan) -> Option<i32> {
    if !plan.isolation.namespaces.has(Namespaces::PID) {
        return Some(inside);
    }
    crate::sys::tree::descendants(init, &|_| false).into_keys().find(|pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        ids.and_then(|ids| ids.split_ascii_whitespace().last()?.parse().ok()) == Some(inside)
    })
}

/// What `system.info` says of the host.
pub fn host_facts() -> Value {
    serde_json::to_value(host::facts()).unwrap_or(Value::Null)
}

/// The report of a session that is just ready and has no reader yet: from the cache, or by a probe.
///
/// # Errors
/// `ISOLATION_UNAVAILABLE` where a required layer is short, `INTERNAL_ERROR` where the probe did not come.
pub async fn judge(
    daemon: &Daemon,
    link: &Rc<Link>,
    exec: u64,
    init: i32,
    plan: &SessionPlan,
    policy: &Named<'_>,
) -> Result<Judged, WireError> {
    let workspace = plan.isolation.root.as_ref().and_then(|root| root.workspace.clone());
    let is_hosts = workspace.as_ref().is_some_and(|workspace| !workspace.source.is_empty());
    let key = (policy.limited_digest.to_owned(), working_dir(plan), workspace);
    let digest = policy.digest.to_owned();
    let policy = policy.limited;
    let ranged = plan.isolation.ids != Ids::Own;
    let failed = |message| WireError::new(Code::InternalError, format!("isolation probe: {message}"));
    let known = daemon.isolation.0.borrow().get(&key).cloned();
    let known = known.filter(|known| known.plan == plan.isolation);
    let report = match known {
        Some(known) if ranged => Rc::new(with_ids_of(init, &known, plan).map_err(failed)?),
        Some(known) => known.report,
        None => {
            let probed = timeout(KILL_BOUND, probe(daemon, link, exec, init, plan, &policy.demands())).await;
            let (mut report, observed) =
                probed.unwrap_or_else(|_| Err("the probe did not end in time".into())).map_err(failed)?;
            if let Some(why) = short_of_views(policy) {
                report.fall_short(layer::FILESYSTEM, &format!("read-only binds in place of overlays: {why}"));
            }
            if !ranged && !is_hosts {
                let paths = || "a path of the host's that it shows can be used by its owner alone".to_owned();
                let why = host_ids::look(daemon, policy).await?.err().unwrap_or_else(paths);
                host_ids::explain(&mut report, &why);
            }
            let report = Rc::new(report);
            // What falls short may hold the next time.
            if report.short().next().is_none() {
                let mut cache = daemon.isolation.0.borrow_mut();
                if cache.len() >= MAX_CACHED {
                    cache.clear();
                }
                // What is kept of the process is looked at for its ids alone.
                let observed = Rc::new(Observed { mountinfo: String::new(), ..observed });
                cache
                    .insert(key, Seen { plan: plan.isolation.clone(), report: Rc::clone(&report), observed });
            }
            report
        }
    };
    let short: Vec<_> = report.short().collect();
    if !short.is_empty() {
        return Err(unavailable(json!(short)));
    }
    let json = serde_json::to_value(&*report).unwrap_or_default();
    let verdict = if report.verdict == Verdict::Enforced { "enforced" } else { "degraded" };
    let isolation = Rc::new(Isolation { verdict, policy: policy.name.clone(), digest });
    Ok(Judged { isolation, report, json })
}

/// A report of another session under the same policy, with this one's ids in it: those of its init, of which no other
/// session's ids are to be had.
fn with_ids_of(init: i32, known: &Seen, plan: &SessionPlan) -> Result<Report, String> {
    let observed = known.observed.with_ids_of(init).map_err(|error| error.to_string())?;
    let mut layers = known.report.layers.clone();
    for found in layers.iter_mut().filter(|found| found.layer == layer::USER) {
        *found = judge_user(&observed, plan, found.requested);
    }
    Ok(Report::of(layers))
}

/// The refusal that lists `layers`.
pub fn unavailable(layers: Value) -> WireError {
    let each = layers.as_array().into_iter().flatten().map(|layer| {
        let text = |key: &str| layer[key].as_str().unwrap_or_default();
        format!("{}: {}", text("layer"), text("reason"))
    });
    let all = each.collect::<Vec<_>>().join("; ");
    let message = format!(
        "required and not fully enforced on this host: {all}. Else take a policy that wants less, of your own or l1"
    );
    WireError::new(Code::IsolationUnavailable, message).with(json!({"layers": layers}))
}

async fn probe(
    daemon: &Daemon,
    link: &Rc<Link>,
    exec: u64,
    init: i32,
    plan: &SessionPlan,
    demands: &[(&'static str, Demand)],
) -> Result<(Report, Observed), String> {
    let value = Secret::copy_from(b"1");
    let environment = BTreeMap::from([(PROBE_KEY, &value)]);
    let header = SpawnHeader { exec, want_started: true, probe: true, ..SpawnHeader::default() };
    let packets = spawn_packets(header, None, &[], &environment).map_err(|error| error.to_string())?;
    let (read, write) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|error| error.to_string())?;
    let flags = nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK;
    let (ready, says_ready) = nix::unistd::pipe2(flags).map_err(|error| error.to_string())?;
    let descriptors = vec![Rc::new(read), Rc::new(says_ready), Rc::clone(&daemon.null)];
    link.send(packets, descriptors).map_err(|error| error.to_string())?;
    let mut held = Some(write);
    let mut found = Err("it did not start".to_owned());
    let mut buffer = [0u8; 128];
    loop {
        let length = link.receive(&mut buffer).await.map_err(|error| error.to_string())?;
        match FromInit::decode(&buffer[..length]) {
            Ok(FromInit::Started { exec: number, pid }) if number == exec => {
                // Until it says so it is still being loaded, with descriptors of the loader's.
                let mut said = vec![0u8; 4096];
                let mut length = nix::unistd::read(&ready, &mut said);
                while length == Err(nix::errno::Errno::EAGAIN) {
                    tokio::time::sleep(std::time::Duration::from_micros(200)).await;
                    length = nix::unistd::read(&ready, &mut said);
                }
                let lines = String::from_utf8_lossy(&said[..length.unwrap_or(0)]).into_owned();
                let witnessed = Witnessed::parse(&lines);
                // A list of children that is read while another child ends may lack some (proc_pid_children(5)).
                let mut seen = outside(init, pid, plan);
                for _ in 0..100 {
                    if seen.is_some() {
                        break;
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                    seen = outside(init, pid, plan);
                }
                let pid = seen.unwrap_or(-1);
                found = observe(pid)
                    .map(|observed| {
                        let layers =
                            crate::evidence::judge(&observed, &witnessed, plan, &[PROBE_KEY], demands);
                        (Report::of(layers), observed)
                    })
                    .map_err(|error| error.to_string());
                held = None;
            }
            Ok(FromInit::SpawnFailed { exec: number, stage, errno }) if number == exec => {
                found = Err(format!("{}: errno {errno}", stage.name()));
            }
            Ok(
                FromInit::TreeGone { exec: number, .. }
                | FromInit::LeaderExited { exec: number, last: true, .. },
            ) if number == exec => {
                drop(held);
                return found;
            }
            Ok(_) => {}
            Err(_) => return Err("the init ended".into()),
        }
    }
}
