//! The host: what its kernel gives the daemon's user.

use super::{Line, State};
use crate::cli::user::Account;
use crate::host::trials::{self, Trial};
use crate::host::{Facts, NAMESPACES_REMEDY, facts, missing};
use crate::policy::Policy;
use crate::report::{Demand, layer};
use crate::sys::attempt;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};

const AREA: &str = "host";
/// The oldest kernel on which commands start: `close_range(2)`.
const OLDEST: (u32, u32) = (5, 9);
/// The Landlock ABI that has everything that policies ask for: scopes.
const LANDLOCK_ABI: i32 = 6;
/// Processes below which a handful of sessions is in want of them.
const FEW_PROCESSES: u64 = 1024;

/// Tries and reads everything. `account` is whom root tries it as.
pub(super) fn look(policy: Option<&Policy>, account: Option<Account>, sessions: u32) -> Vec<Line> {
    let facts = facts();
    let mut lines = vec![kernel(&facts)];
    let demands = policy.map(Policy::demands).unwrap_or_default();
    for trial in trials::all(account.map(|account| (account.uid, account.gid))) {
        lines.push(tried(trial, &demands, &facts));
    }
    lines.extend([
        landlock(&facts),
        children(&facts),
        cgroups(&facts),
        processes(),
        namespaces(&facts, sessions),
    ]);
    lines
}

fn kernel(facts: &Facts) -> Line {
    let mut numbers = facts.kernel.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= OLDEST => Line::ok(AREA, "kernel", &facts.kernel),
        _ => Line::bad(AREA, "kernel", State::Fail, &facts.kernel, "Linux 5.9 or later; 6.12 has everything"),
    }
}

/// The layer that cannot be without what was tried.
fn layer_of(name: &str) -> &str {
    match name {
        trials::ID_MAPS => layer::NAMESPACE_USER,
        trials::OVERLAY | trials::PROCFS => layer::FILESYSTEM,
        trials::ID_RANGES => layer::USER,
        other => other,
    }
}

fn tried(trial: Trial, demands: &[(&'static str, Demand)], facts: &Facts) -> Line {
    if trial.errno == 0 {
        return Line::ok(AREA, trial.name, "tried, works");
    }
    let needed = layer_of(trial.name);
    let demand = demands.iter().find(|(name, _)| *name == needed).map_or(Demand::Off, |(_, demand)| *demand);
    // What one id range or cgroup gives can be had otherwise, or not at all yet.
    let is_extra = matches!(trial.name, trials::ID_RANGES | trials::CGROUP_DELEGATION);
    let state = if demand == Demand::Required && !is_extra { State::Fail } else { State::Warn };
    let errno = match trial.errno {
        errno if errno > attempt::SIGNAL => "it did not come to an end".to_owned(),
        errno => format!("{:?} ({})", Errno::from_raw(errno), Errno::from_raw(errno).desc()),
    };
    Line::bad(AREA, trial.name, state, format!("tried, {errno}"), remedy(trial, facts))
}

fn remedy(trial: Trial, facts: &Facts) -> String {
    // What holds for every session is known for certain; the rest is what it can be.
    let known = match trial.name {
        trials::OVERLAY => missing::overlay(),
        name => missing::layers().into_iter().find(|(layer, _)| *layer == layer_of(name)).map(|(_, why)| why),
    };
    if let Some(why) = known {
        return why;
    }
    let text = match (trial.name, trial.errno) {
        (layer::NAMESPACE_USER | trials::ID_MAPS, _)
            if facts.apparmor_restrict_unprivileged_userns == Some(1) =>
        {
            "set kernel.apparmor_restrict_unprivileged_userns to 0, or give trl-launcher an AppArmor profile with `userns`"
        }
        (layer::NAMESPACE_USER | trials::ID_MAPS, _) => NAMESPACES_REMEDY,
        (_, libc::ENOSPC) => "raise the sysctls user.max_*_namespaces above 0",
        (trials::OVERLAY, _) => {
            "overlayfs in user namespaces: Linux 5.11, `modprobe overlay`, and /usr on no overlay above an overlay; \
             or a policy with filesystem.view = \"bind\""
        }
        (trials::PROCFS, _) => {
            "a procfs that is not masked where TRL runs: in a container, systempaths=unconfined (Docker) or procMount: \
             Unmasked (Kubernetes)"
        }
        (layer::FILESYSTEM, _) => "see overlay and procfs; devices of /dev must be there to be bound",
        (layer::LANDLOCK, _) => {
            "Landlock: Linux 5.13 with CONFIG_SECURITY_LANDLOCK, and `landlock` among lsm= of the kernel's command line"
        }
        (layer::SECCOMP, _) => {
            "a kernel with CONFIG_SECCOMP_FILTER, and a container profile that allows seccomp(2)"
        }
        (trials::ID_RANGES, libc::ENOENT) => {
            "install newuidmap: package uidmap (Debian) or shadow-utils (Fedora)"
        }
        (trials::ID_RANGES, libc::ENODATA) => {
            "give the daemon's user ranges: usermod --add-subuids 200000-265535 --add-subgids 200000-265535 USER"
        }
        (trials::ID_RANGES, _) if facts.newuidmap == "unprivileged" => {
            "make newuidmap set-user-id root again: reinstall package uidmap"
        }
        (trials::ID_RANGES, _) => {
            "see newuidmap(1); the ranges in /etc/subuid must be the daemon's user's own"
        }
        (trials::CGROUP_DELEGATION, _) => {
            "have systemd delegate: Delegate=yes in the unit, or systemd-run --user --scope -p Delegate=yes trl serve"
        }
        ("keyring", _) => "a kernel with CONFIG_KEYS, and a container profile that allows keyctl(2)",
        _ => {
            "the kernel's namespaces (CONFIG_NAMESPACES and below), and a container profile that allows them"
        }
    };
    text.to_owned()
}

fn landlock(facts: &Facts) -> Line {
    let abi = facts.landlock_abi;
    let found = format!("ABI {abi}");
    if abi >= LANDLOCK_ABI {
        return Line::ok(AREA, "landlock abi", found);
    }
    let remedy = "Linux 6.12 for scopes of signals and abstract sockets (ABI 6), 5.19 for renames (ABI 2)";
    Line::bad(AREA, "landlock abi", State::Warn, found, remedy)
}

fn children(facts: &Facts) -> Line {
    let name = "list of children";
    if facts.process_children {
        return Line::ok(AREA, name, "the kernel has it");
    }
    let remedy = "a kernel with CONFIG_PROC_CHILDREN: ending a command needs it";
    Line::bad(AREA, name, State::Fail, "not there", remedy)
}

fn cgroups(facts: &Facts) -> Line {
    match facts.cgroups {
        "v2" | "hybrid" | "v1" => Line::ok(AREA, "cgroups", facts.cgroups),
        other => Line::bad(AREA, "cgroups", State::Warn, other, "mount cgroup2 on /sys/fs/cgroup"),
    }
}

/// The least of the limits on how many processes there can be.
fn processes() -> Line {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let own = getrlimit(Resource::RLIMIT_NPROC).ok().map(|(_, hard)| hard);
    let known = [
        ("kernel.pid_max", number("/proc/sys/kernel/pid_max")),
        ("kernel.threads-max", number("/proc/sys/kernel/threads-max")),
        ("RLIMIT_NPROC", own),
    ];
    let least = known.into_iter().filter_map(|(name, most)| Some((most?, name))).min();
    match least {
        Some((most, name)) if most < FEW_PROCESSES => {
            let remedy = format!("raise {name} (LimitNPROC= in the unit), or allow fewer sessions");
            Line::bad(AREA, "process limits", State::Warn, format!("{name} is {most}"), remedy)
        }
        Some((most, name)) => Line::ok(AREA, "process limits", format!("the least is {name}, {most}")),
        None => Line::bad(AREA, "process limits", State::Warn, "unknown", "mount /proc"),
    }
}

fn namespaces(facts: &Facts, sessions: u32) -> Line {
    let name = "number of namespaces";
    match facts.max_user_namespaces {
        Some(most) if most < u64::from(sessions) => {
            let found = format!("user.max_user_namespaces is {most}, for up to {sessions} sessions");
            let remedy = format!("set the sysctl user.max_user_namespaces to {sessions} or more");
            Line::bad(AREA, name, State::Warn, found, remedy)
        }
        Some(most) => Line::ok(AREA, name, format!("user.max_user_namespaces is {most}")),
        None => Line::ok(AREA, name, "no limit known"),
    }
}
