//! What a process shows against what its session was planned to be: the layers that every session has, and the order
//! of the report.

use super::isolation;
use super::{Observed, Witnessed};
use crate::plan::{Namespaces, SessionPlan};
use crate::report::{Demand, Enforcement, Evidence, L1, L2, LayerReport, Source, layer};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// The kernel's name of a limit in `/proc/<pid>/limits`.
pub(super) fn limit_name(resource: u32) -> Option<&'static str> {
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
pub(super) struct Finding {
    pub(super) observed: String,
    pub(super) short: Option<(Enforcement, String)>,
}

impl Finding {
    /// Full if it holds, else nothing of it counts.
    pub(super) fn of(holds: bool, observed: String, reason: impl FnOnce() -> String) -> Self {
        Self { observed, short: (!holds).then(|| (Enforcement::None, reason())) }
    }
}

/// Compares a process, and what it could not do itself, with the plan of its session and the keys of the environment
/// that it was given. What is not as planned counts as not enforced at all.
///
/// `demands` are the policy's, by layer. A layer of [`L1`] that is not among them is wanted as it says there;
/// another is required where the plan has it, and otherwise left out, as is what is off.
#[must_use]
pub fn judge(
    observed: &Observed,
    witnessed: &Witnessed,
    plan: &SessionPlan,
    environ_keys: &[&str],
    demands: &[(&str, Demand)],
) -> Vec<LayerReport> {
    let demanded = |name: &str| demands.iter().find(|(layer, _)| *layer == name).map(|(_, demand)| *demand);
    let always = L1.iter().map(|(name, demand)| {
        let off = *name == layer::NO_NEW_PRIVS && !plan.no_new_privileges;
        let demand = if off { Demand::Off } else { demanded(name).unwrap_or(*demand) };
        let mut finding = find(name, observed, plan, environ_keys);
        let wanted = demanded(layer::NAMESPACE_USER).is_some_and(|demand| demand != Demand::Off);
        if *name == layer::USER && wanted && !plan.isolation.namespaces.has(Namespaces::USER) {
            let reason = "without a user namespace it is the daemon's own, which other sessions have too";
            finding.short = finding.short.or(Some((Enforcement::Partial, reason.to_owned())));
        }
        report(name, demand, Source::Kernel, finding)
    });
    let planned = L2.iter().filter_map(|name| {
        let by_plan = isolation::is_planned(name, plan).then_some(Demand::Required);
        let demand = demanded(name).or(by_plan).filter(|demand| *demand != Demand::Off)?;
        let (source, finding) = isolation::find(name, observed, witnessed, plan);
        Some(report(name, demand, source, finding))
    });
    always.chain(planned).collect()
}

/// The layer `user` alone, of what [`Observed::with_ids_of`] yields.
#[must_use]
pub fn judge_user(observed: &Observed, plan: &SessionPlan, requested: Demand) -> LayerReport {
    report(layer::USER, requested, Source::Kernel, find(layer::USER, observed, plan, &[]))
}

fn report(layer: &'static str, requested: Demand, source: Source, finding: Finding) -> LayerReport {
    let (enforced, reason) = finding.short.map_or((Enforcement::Full, None), |(e, r)| (e, Some(r)));
    let evidence = Some(Evidence { source, observed: finding.observed });
    LayerReport { layer, requested, enforced, evidence, reason }
}

fn find(name: &str, observed: &Observed, plan: &SessionPlan, environ_keys: &[&str]) -> Finding {
    match name {
        layer::ENVIRONMENT => environment(observed, environ_keys),
        layer::WORKING_DIR => working_dir(observed, plan),
        layer::USER if plan.isolation.namespaces.has(Namespaces::USER) => isolation::user(observed, plan),
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
    // A path of the session's own root means nothing here.
    let resolved = match plan.isolation.root {
        Some(_) => planned,
        None => std::fs::canonicalize(&planned).unwrap_or(planned),
    };
    Finding::of(observed.cwd == resolved, observed.cwd.display().to_string(), || {
        "another directory than was asked for".to_owned()
    })
}

fn user(observed: &Observed, plan: &SessionPlan) -> Finding {
    let all =
        |seen: &[u32], planned: u32| planned != 0 && seen.len() == 4 && seen.iter().all(|id| *id == planned);
    let privileged = isolation::is_privileged(observed);
    let holds = all(&observed.uids, plan.uid) && all(&observed.gids, plan.gid) && !privileged;
    let capabilities = if privileged { "with" } else { "without" };
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
    // Since 5.14 a user's processes are counted in each user namespace, before over all of the host.
    let counted_inside = isolation::is_own(observed, "user") && !crate::host::kernel_before(5, 14);
    if counted_inside && hard == u64::from(plan.nproc) {
        return Finding::of(true, format!("Max processes {hard} in its own user namespace"), String::new);
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
    if isolation::is_own(observed, "pid") {
        return Finding::of(true, format!("{seen}, in its own PID namespace"), String::new);
    }
    let reason = "no PID namespace: the exec's reaper is a subreaper, and ends what descends from it; a process \
                  of the same user may kill the reaper, and then the launcher ends the session";
    Finding { observed: seen, short: Some((Enforcement::Partial, reason.to_owned())) }
}
