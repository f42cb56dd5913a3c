//! What contradicts itself in a policy. A restriction that nothing would enforce is refused: it would only look
//! like one.

use super::read::{Entries, FileError};
use super::{NetworkMode, Policy, files};
use crate::report::Demand;

/// Places that a session has of its own or never sees; nothing of the host's is put at or beneath them.
const RESERVED: [&str; 4] = ["/proc", "/sys", "/dev", "/run"];
/// Never in a session, under whatever name they are asked for.
const NEVER: [&str; 4] = ["/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-"];

fn rank(demand: Demand) -> u8 {
    match demand {
        Demand::Off => 0,
        Demand::BestEffort => 1,
        Demand::Required => 2,
    }
}

/// Whether `path` is `parent` or beneath it.
#[must_use]
pub fn is_beneath(path: &str, parent: &str) -> bool {
    parent == "/" || path.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether something of the host's may be put at that path of a session.
///
/// # Errors
/// Why not.
pub fn placeable(path: &str) -> Result<(), String> {
    if path == "/" || path == "/tmp" {
        return Err(format!("{path:?} as a whole is the session's own"));
    }
    if let Some(place) = RESERVED.iter().find(|place| is_beneath(path, place)) {
        return Err(format!("{place} is the session's own, nothing of the host's is shown there"));
    }
    if NEVER.contains(&path) {
        return Err("is never shown to a session".into());
    }
    match files::MADE.iter().find(|made| is_beneath(made, path)) {
        Some(made) => Err(format!("{made} is made for each session")),
        None => Ok(()),
    }
}

/// Refuses a policy that contradicts itself.
///
/// # Errors
/// The first contradiction, at the key that is to blame.
pub fn check(policy: &Policy, entries: &Entries) -> Result<(), FileError> {
    depends(policy, entries)?;
    restricts(policy, entries)?;
    paths(policy, entries)?;
    calls(entries)
}

fn fault(entries: &Entries, key: (&'static str, &'static str), message: String) -> FileError {
    let place = entries.get(&key).map(|entry| entry.place.clone());
    let place = place.unwrap_or_else(|| super::Place { file: "policy".into(), line: 1, column: 1 });
    FileError { place, message }
}

fn depends(policy: &Policy, entries: &Entries) -> Result<(), FileError> {
    let own = &policy.namespaces;
    let rules = [
        (own.mount, ("namespaces", "mount"), own.user, "namespaces.user"),
        (own.pid, ("namespaces", "pid"), own.user, "namespaces.user"),
        (own.ipc, ("namespaces", "ipc"), own.user, "namespaces.user"),
        (own.uts, ("namespaces", "uts"), own.user, "namespaces.user"),
        (own.cgroup, ("namespaces", "cgroup"), own.user, "namespaces.user"),
        (own.net, ("namespaces", "net"), own.user, "namespaces.user"),
        (policy.filesystem.demand, ("filesystem", "demand"), own.mount, "namespaces.mount"),
        (policy.filesystem.demand, ("filesystem", "demand"), own.pid, "namespaces.pid"),
        (policy.landlock.demand, ("landlock", "demand"), policy.no_new_privileges, "no_new_privileges"),
        (policy.seccomp.demand, ("seccomp", "demand"), policy.no_new_privileges, "no_new_privileges"),
    ];
    for (demand, key, other, needed) in rules {
        if rank(demand) > rank(other) {
            let message = format!("{:?} needs {needed}, which is {:?}", demand.name(), other.name());
            return Err(fault(entries, key, message));
        }
    }
    Ok(())
}

fn restricts(policy: &Policy, entries: &Entries) -> Result<(), FileError> {
    let off = |demand: Demand| demand == Demand::Off;
    let no_root = off(policy.filesystem.demand);
    let no_landlock = off(policy.landlock.demand);
    let no_user = off(policy.namespaces.user);
    let network = &policy.network;
    let user = &policy.user;
    let is_root = !user.allow_root_inside;
    let rules = [
        (no_user && policy.namespaces.nested, "namespaces", "nested", "needs namespaces.user"),
        (
            off(policy.namespaces.uts) && !policy.namespaces.hostname.is_empty(),
            "namespaces",
            "hostname",
            "needs namespaces.uts",
        ),
        (no_user && user.ids > 0, "user", "ids", "needs namespaces.user"),
        (is_root && user.uid == 0, "user", "uid", "0 needs user.allow_root_inside = true"),
        (is_root && user.gid == 0, "user", "gid", "0 needs user.allow_root_inside = true"),
        (
            network.mode == NetworkMode::None && off(policy.namespaces.net),
            "network",
            "mode",
            "\"none\" needs namespaces.net",
        ),
        (
            network.mode == NetworkMode::Host && !off(policy.namespaces.net),
            "network",
            "mode",
            "\"host\" contradicts namespaces.net, which must be \"off\"",
        ),
        (no_landlock && network.bind_ports.is_some(), "network", "bind_ports", "needs Landlock"),
        (no_landlock && network.connect_ports.is_some(), "network", "connect_ports", "needs Landlock"),
        (no_landlock && !policy.workspace.exec, "workspace", "exec", "false needs Landlock"),
        (no_landlock && policy.landlock.scoped, "landlock", "scoped", "needs landlock.demand"),
        (
            no_root && no_landlock && !policy.workspace.writable,
            "workspace",
            "writable",
            "false needs a file system of the session's own, or Landlock",
        ),
        (
            no_root && !policy.workspace.protect.is_empty(),
            "workspace",
            "protect",
            "needs a file system of the session's own",
        ),
        (
            no_root && policy.filesystem.processes_only,
            "filesystem",
            "processes_only",
            "needs a file system of the session's own",
        ),
        (
            !off(policy.seccomp.demand)
                && policy.seccomp.groups.is_empty()
                && policy.seccomp.allow.is_empty(),
            "seccomp",
            "groups",
            "nothing is allowed",
        ),
        (
            off(policy.seccomp.demand) && (!policy.seccomp.refuse.is_empty() || policy.seccomp.strict),
            "seccomp",
            "demand",
            "\"off\" contradicts seccomp.refuse or seccomp.strict",
        ),
    ];
    match rules.into_iter().find(|(broken, ..)| *broken) {
        Some((_, section, name, message)) => Err(fault(entries, (section, name), message.into())),
        None => Ok(()),
    }
}

fn paths(policy: &Policy, entries: &Entries) -> Result<(), FileError> {
    const SHOWN: [&str; 4] = ["system", "copy", "read_only", "writable"];
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for name in SHOWN.into_iter().chain(["offer_read_only", "offer_writable"]) {
        let Some(entry) = entries.get(&("filesystem", name)) else { continue };
        for (value, place) in &entry.elements {
            let path = value.as_str().unwrap_or_default();
            let fault = |message: String| Err(FileError { place: place.clone(), message });
            if let Err(why) = placeable(path) {
                return fault(format!("{path}: {why}"));
            }
            if !SHOWN.contains(&name) {
                continue;
            }
            if let Some((other, _)) = seen.iter().find(|(_, known)| *known == path) {
                return fault(format!("{path} is in filesystem.{name} and in filesystem.{other}"));
            }
            let own = policy.workspace.path.as_str();
            if is_beneath(own, path) || is_beneath(path, own) {
                return fault(format!("{path} and workspace.path ({own}) lie in one another"));
            }
            seen.push((name, path));
        }
    }
    placeable(&policy.workspace.path)
        .map_err(|why| fault(entries, ("workspace", "path"), format!("{}: {why}", policy.workspace.path)))
}

fn calls(entries: &Entries) -> Result<(), FileError> {
    let list =
        |name| entries.get(&("seccomp", name)).map(|entry| entry.elements.as_slice()).unwrap_or_default();
    // By name: a file says the same on an architecture that has no such call.
    let allowed: Vec<_> = list("allow").iter().filter_map(|(name, _)| name.as_str()).collect();
    for (name, place) in list("refuse") {
        if name.as_str().is_some_and(|name| allowed.contains(&name)) {
            let message = format!("{name} is in seccomp.refuse and in seccomp.allow");
            return Err(FileError { place: place.clone(), message });
        }
    }
    Ok(())
}
