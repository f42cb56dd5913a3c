//! The layers that a plan may add: namespaces, root, capabilities, Landlock, system calls, and whose ids they are.

use super::judge::Finding;
use super::{Observed, Witnessed};
use crate::host;
use crate::layers::{landlock, root};
use crate::plan::{self, Access, Ids, Namespaces, SessionPlan};
use crate::report::{Enforcement, Source, layer};

/// `LANDLOCK_MAX_NUM_LAYERS` of the kernel: domains that can be stacked.
const MOST_DOMAINS: i32 = 16;
/// What a probe tries on paths: the attempt, the path, the access that it takes.
const TRIES: [(&str, &str, u32); 6] = [
    ("read_root", "/", Access::READ),
    ("read_proc", "/proc", Access::READ),
    ("write_comm", "/proc/self/comm", Access::WRITE),
    ("write_null", "/dev/null", Access::WRITE),
    ("ioctl_null", "/dev/null", Access::DEVICE),
    ("write_tmp", "/tmp", Access::WRITE),
];
/// System calls that a probe tries and a filter answers by their number alone.
const CALLS: [(&str, libc::c_long); 3] =
    [("clone3", libc::SYS_clone3), ("io_uring", libc::SYS_io_uring_setup), ("keyctl", libc::SYS_keyctl)];

/// A namespace's layer: its kind in `/proc`, its flag.
fn namespace(name: &str) -> Option<(&'static str, u32)> {
    Some(match name {
        layer::NAMESPACE_USER => ("user", Namespaces::USER),
        layer::NAMESPACE_MOUNT => ("mnt", Namespaces::MOUNT),
        layer::NAMESPACE_PID => ("pid", Namespaces::PID),
        layer::NAMESPACE_IPC => ("ipc", Namespaces::IPC),
        layer::NAMESPACE_UTS => ("uts", Namespaces::UTS),
        layer::NAMESPACE_CGROUP => ("cgroup", Namespaces::CGROUP),
        layer::NAMESPACE_NET => ("net", Namespaces::NET),
        _ => return None,
    })
}

/// Whether the plan has that layer.
pub(super) fn is_planned(name: &str, plan: &SessionPlan) -> bool {
    let isolation = &plan.isolation;
    match name {
        layer::FILESYSTEM => isolation.root.is_some(),
        layer::CAPABILITIES => isolation.namespaces.has(Namespaces::USER),
        layer::LANDLOCK => isolation.landlock.is_some(),
        layer::SECCOMP => isolation.seccomp.is_some(),
        name => namespace(name).is_some_and(|(_, flag)| isolation.namespaces.has(flag)),
    }
}

/// Whether the process's namespace of that kind is another one than the observer's.
pub(super) fn is_own(observed: &Observed, kind: &str) -> bool {
    observed.namespaces.get(kind).is_some_and(|(own, observers)| own != observers)
}

/// Whether it holds a capability now.
pub(super) fn is_privileged(observed: &Observed) -> bool {
    let sets = &observed.capabilities;
    sets.permitted | sets.effective | sets.ambient != 0
}

pub(super) fn find(
    name: &str,
    observed: &Observed,
    witnessed: &Witnessed,
    plan: &SessionPlan,
) -> (Source, Finding) {
    let finding = match name {
        layer::FILESYSTEM => filesystem(observed, plan),
        layer::CAPABILITIES => capabilities(observed),
        layer::LANDLOCK => return (Source::Witness, of_landlock(witnessed, plan)),
        layer::SECCOMP => return (Source::Witness, seccomp(observed, witnessed, plan)),
        layer::NAMESPACE_NET if is_own(observed, "net") => network(witnessed),
        name => of_namespace(name, observed, plan),
    };
    (Source::Kernel, finding)
}

fn none(observed: impl Into<String>, reason: impl Into<String>) -> Finding {
    Finding { observed: observed.into(), short: Some((Enforcement::None, reason.into())) }
}

fn of_namespace(name: &str, observed: &Observed, plan: &SessionPlan) -> Finding {
    let Some((kind, _)) = namespace(name) else {
        return none("", "no evidence is known for it");
    };
    if is_own(observed, kind) {
        return Finding::of(true, format!("{kind} namespace of its own"), String::new);
    }
    let reason = if is_planned(name, plan) {
        "it was asked for, and the process is in the observer's".to_owned()
    } else {
        format!("this host gives none: {}", lacking(name))
    };
    none(format!("the observer's {kind} namespace"), reason)
}

/// Why the host cannot have a layer, and what could be done.
fn lacking(name: &str) -> String {
    let why = host::missing::layers().into_iter().find(|(layer, _)| *layer == name);
    why.map_or_else(|| host::NAMESPACES_REMEDY.to_owned(), |(_, why)| why)
}

fn network(witnessed: &Witnessed) -> Finding {
    let up = witnessed.0.get("up").map_or("", String::as_str);
    let route = witnessed.number("route");
    let seen = format!("own network namespace, interfaces up: {up}, outside: {}", shown(route));
    if !matches!(up, "" | "lo") {
        return none(seen, "an interface besides loopback is up");
    }
    // A filter that allows no internet socket answers before the route is looked for.
    let unreachable = [libc::ENETUNREACH, libc::ENOSYS, libc::EAFNOSUPPORT, libc::EPERM, libc::EACCES];
    match route {
        Some(errno) if unreachable.contains(&errno) => Finding::of(true, seen, String::new),
        Some(_) => none(seen, "an address outside is not unreachable"),
        None => none(seen, "the probe said nothing of it"),
    }
}

fn shown(errno: Option<i32>) -> String {
    match errno {
        None => "not tried".to_owned(),
        Some(0) => "allowed".to_owned(),
        Some(errno) => format!("{:?}", nix::errno::Errno::from_raw(errno)),
    }
}

fn filesystem(observed: &Observed, plan: &SessionPlan) -> Finding {
    let Some(planned) = &plan.isolation.root else {
        let reason = format!("no root of its own: {}", lacking(layer::FILESYSTEM));
        return none("the host's root", reason);
    };
    if observed.root.as_os_str() != "/" {
        return none(observed.root.display().to_string(), "the root is not that of the mount namespace");
    }
    match root::verify(&observed.mountinfo, planned) {
        Ok(seen) => Finding::of(true, seen, String::new),
        Err(short) => none(format!("{} mounts", observed.mountinfo.lines().count()), short),
    }
}

fn capabilities(observed: &Observed) -> Finding {
    let sets = &observed.capabilities;
    let all = [sets.inheritable, sets.permitted, sets.effective, sets.bounding, sets.ambient];
    let [inheritable, permitted, effective, bounding, ambient] = all;
    Finding::of(
        all.iter().all(|set| *set == 0),
        format!(
            "inheritable {inheritable:#x}, permitted {permitted:#x}, effective {effective:#x}, bounding \
             {bounding:#x}, ambient {ambient:#x}"
        ),
        || "a set is not empty: only a session in its own user namespace can give all of them up".to_owned(),
    )
}

/// The user as it is inside and outside of the session's user namespace.
pub(super) fn user(observed: &Observed, plan: &SessionPlan) -> Finding {
    let outside = |map: &[[u32; 3]], id: u32| {
        let part =
            map.iter().find(|[inside, _, count]| id.checked_sub(*inside).is_some_and(|at| at < *count));
        part.map(|[inside, outside, _]| outside.saturating_add(id - inside))
    };
    let covers = |map: &[[u32; 3]], id: u32| {
        map.iter().any(|[_, outside, count]| id.checked_sub(*outside).is_some_and(|at| at < *count))
    };
    let isolation = &plan.isolation;
    let is = |seen: &[u32], map: &[[u32; 3]], inside: u32| {
        let id = outside(map, inside).filter(|id| *id != 0);
        seen.len() == 4 && id.is_some_and(|id| seen.iter().all(|seen| *seen == id))
    };
    let count = |map: &[[u32; 3]]| map.iter().fold(0u32, |sum, [_, _, count]| sum.saturating_add(*count));
    let first = |seen: &[u32]| seen.first().map_or_else(|| "none".to_owned(), u32::to_string);
    let seen = format!(
        "user {} and group {} inside, {} and {} outside, of {} ids, {} supplementary groups",
        isolation.inside_uid,
        isolation.inside_gid,
        first(&observed.uids),
        first(&observed.gids),
        count(&observed.uid_map),
        observed.groups.len()
    );
    let as_mapped = is(&observed.uids, &observed.uid_map, isolation.inside_uid)
        && is(&observed.gids, &observed.gid_map, isolation.inside_gid);
    if !as_mapped || is_privileged(observed) || covers(&observed.uid_map, 0) || covers(&observed.gid_map, 0) {
        return none(seen, "not the planned user, or one with capabilities or with root's id in its map");
    }
    let shared = covers(&observed.uid_map, plan.uid) || covers(&observed.gid_map, plan.gid);
    let reason = match isolation.ids {
        Ids::Range(size)
            if shared || count(&observed.uid_map) != size || count(&observed.gid_map) != size =>
        {
            "its ids are not a range of its own, as planned".to_owned()
        }
        Ids::Range(_) if !observed.groups.is_empty() => "supplementary groups are left".to_owned(),
        Ids::Range(_) => return Finding::of(true, seen, String::new),
        Ids::Own if isolation.root.iter().flat_map(|root| &root.workspace).any(|own| !own.source.is_empty()) => {
            "its id outside is the caller's, to whom the workspace's files belong; a workspace of the session's \
             own needs no such id"
                .to_owned()
        }
        Ids::Own => format!(
            "its id outside is {}, the daemon's own, which other sessions have too: it has no host ids of its own",
            plan.uid
        ),
    };
    Finding { observed: seen, short: Some((Enforcement::Partial, reason)) }
}

fn covered(landlock: &plan::Landlock, path: &str, access: u32) -> bool {
    landlock.rules.iter().any(|rule| {
        let below = path.as_bytes().strip_prefix(rule.path.as_slice());
        let beneath = below.is_some_and(|rest| rest.is_empty() || rest[0] == b'/' || rule.path == b"/");
        beneath && rule.access.0 & access != 0
    })
}

/// Landlock does not show in `/proc`: what is known is how many more domains can be stacked, and what was denied.
fn of_landlock(witnessed: &Witnessed, plan: &SessionPlan) -> Finding {
    let abi = witnessed.number("landlock_abi").filter(|abi| *abi > 0).unwrap_or_else(landlock::abi);
    let Some(planned) = &plan.isolation.landlock else {
        return none(format!("ABI {abi}"), lacking(layer::LANDLOCK));
    };
    let mut denied = 0;
    let mut allowed = 0;
    let mut leaks = Vec::new();
    for (key, path, access) in TRIES {
        let passed = match witnessed.number(key) {
            // No terminal is there for it; Landlock would have answered before.
            Some(0 | libc::ENOTTY) => true,
            Some(libc::EACCES) => false,
            _ => continue,
        };
        match (passed, covered(planned, path, access)) {
            (true, true) => allowed += 1,
            (true, false) => leaks.push(format!("{key} {path}")),
            (false, false) => denied += 1,
            (false, true) => {}
        }
    }
    // A filter may leave the probe without the calls to count with; then a denial must do.
    let room = witnessed.number("landlock_room").filter(|room| (0..=MOST_DOMAINS).contains(room));
    let domains = room.map_or_else(|| "not countable".to_owned(), |room| (MOST_DOMAINS - room).to_string());
    let seen = format!("ABI {abi}, domains {domains}, of what was tried denied {denied}, allowed {allowed}");
    if abi == 0 {
        return none(seen, lacking(layer::LANDLOCK));
    }
    if !leaks.is_empty() {
        return none(seen, format!("allowed though no rule does: {}", leaks.join(", ")));
    }
    if room == Some(MOST_DOMAINS) || (room.is_none() && denied == 0) {
        return none(seen, "the probe is in no Landlock domain");
    }
    match landlock::shortfall(planned, abi) {
        None => Finding::of(true, seen, String::new),
        Some(reason) => Finding { observed: seen, short: Some((Enforcement::Partial, reason)) },
    }
}

fn seccomp(observed: &Observed, witnessed: &Witnessed, plan: &SessionPlan) -> Finding {
    let (mode, filters) = (observed.seccomp_mode, observed.seccomp_filters);
    let state = format!("mode {mode}, filters {filters}");
    let Some(planned) = &plan.isolation.seccomp else {
        return none(state, "this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)");
    };
    let (mut seen, mut wrong) = (vec![state], Vec::new());
    let mut check = |key: &str, expected: &[i32]| {
        let found = witnessed.number(key);
        seen.push(format!("{key} {}", shown(found)));
        if !found.is_some_and(|errno| expected.contains(&errno)) {
            wrong.push(key.to_owned());
        }
    };
    for (key, number) in CALLS {
        let is_in = |list: &[u32]| list.iter().any(|known| libc::c_long::from(*known) == number);
        if is_in(&planned.refuse) {
            check(key, &[libc::EPERM]);
        } else if !is_in(&planned.allow) {
            check(key, &[libc::ENOSYS]);
        }
    }
    check("mount", &[libc::EPERM, libc::ENOSYS]);
    if !plan.isolation.nested_namespaces {
        check("unshare", &[libc::EPERM, libc::ENOSYS]);
    }
    if !planned.families.iter().any(|family| i32::from(*family) == libc::AF_ALG) {
        check("af_alg", &[libc::EAFNOSUPPORT, libc::EPERM, libc::ENOSYS]);
    }
    let seen = seen.join(", ");
    if mode != 2 || filters < 1 {
        return none(seen, "not under the filter that the plan has");
    }
    Finding::of(wrong.is_empty(), seen, || format!("not answered as planned: {}", wrong.join(", ")))
}
