//! Whether sessions can have host ids of their own, as the launcher found when it tried.

use super::Daemon;
use super::config::KILL_BOUND;
use super::wire::{Code, WireError};
use crate::host;
use crate::launcher::protocol::{HostIds, ToLauncher};
use crate::policy::Policy;
use crate::report::{Demand, Enforcement, Report, layer};
use std::cell::Cell;
use tokio::sync::Notify;
use tokio::time::timeout;

/// What the launcher said, once it was asked.
#[derive(Default)]
pub struct Known {
    ids: Cell<Option<HostIds>>,
    changed: Notify,
}

impl Known {
    /// Takes the launcher's word over.
    pub fn set(&self, ids: HostIds) {
        self.ids.set(Some(ids));
        self.changed.notify_waiters();
    }
}

/// Whether sessions under `policy` can have ids of their own, and if it wants that and they cannot, why. The launcher
/// is asked when a policy wants it for the first time: the answer costs it some milliseconds.
///
/// # Errors
/// `RESOURCE_PRESSURE` where the launcher does not answer.
pub async fn look(daemon: &Daemon, policy: &Policy) -> Result<Result<(), String>, WireError> {
    if policy.user.ids == 0 || policy.namespaces.user == Demand::Off {
        return Ok(Err("the policy asks for none".into()));
    }
    if let Some(why) = lacking() {
        return Ok(Err(why));
    }
    let known = &daemon.host_ids;
    let said = async {
        loop {
            let changed = known.changed.notified();
            if let Some(ids) = known.ids.get() {
                return ids;
            }
            daemon.tell_launcher(&ToLauncher::Prepare);
            changed.await;
        }
    };
    let ids = timeout(KILL_BOUND, said)
        .await
        .map_err(|_| WireError::new(Code::ResourcePressure, "the launcher did not answer in time"))?;
    Ok(match ids {
        HostIds::Available => Ok(()),
        why => Err(remedy(why, daemon.config.uid)),
    })
}

/// What the kernel lacks for it, which is not asked of the launcher: it tries once, and a sysctl may change.
fn lacking() -> Option<String> {
    if host::kernel_before(5, 14) {
        return Some(format!(
            "evidence of a session with other ids needs Linux 5.14 (/proc/PID/fdinfo), this is {}",
            host::release()
        ));
    }
    let missing = host::missing::layers().into_iter().find(|(name, _)| *name == layer::NAMESPACE_USER);
    missing.map(|(_, why)| why)
}

/// Why there are none, and what an operator can do about it.
fn remedy(why: HostIds, uid: u32) -> String {
    let name = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
    let name = name.map_or_else(|| uid.to_string(), |user| user.name);
    match why {
        HostIds::Available => String::new(),
        HostIds::NoRange => format!(
            "user {name} has no range of ids: give it one that nobody else has by a line like \
             `{name}:100000:65536` in /etc/subuid and one in /etc/subgid"
        ),
        HostIds::NoProgram => {
            "newuidmap and newgidmap are not there: install the package uidmap (elsewhere shadow-utils)"
                .into()
        }
        HostIds::Refused => format!(
            "the range of user {name} could not be mapped: newuidmap and newgidmap must be set-user-ID or have their \
             file capabilities, the user must be in passwd(5), its ranges in /etc/subuid and /etc/subgid, TRL must \
             not be started under no_new_privs, and whatever contains TRL must have these ids"
        ),
        HostIds::Unreachable => {
            "trl-launcher can be executed by its owner alone, and evidence comes from it: chmod o+x".into()
        }
        HostIds::NoPlace => format!(
            "the file that says which ids are given out is neither in /run/user/{uid} nor, as trl-ids-{uid} of mode \
             0600 and this user's, in /tmp"
        ),
    }
}

/// Adds to a session's report why it has no ids of its own.
pub fn explain(report: &mut Report, why: &str) {
    let user = report.layers.iter_mut().find(|found| found.layer == layer::USER);
    if let Some(user) = user.filter(|user| user.enforced == Enforcement::Partial)
        && let Some(reason) = &mut user.reason
    {
        reason.push_str(": ");
        reason.push_str(why);
    }
}
