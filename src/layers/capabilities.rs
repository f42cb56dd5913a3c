//! What a privileged launcher keeps: enough to become a session's user and to end its processes.

use caps::{CapSet, Capability, CapsHashSet};

/// Empties the bounding, inheritable and ambient sets and keeps of the others only `CAP_SETUID`, `CAP_SETGID`
/// (to become a session's user) and `CAP_KILL` (to end what runs as that user).
///
/// # Errors
/// The set that could not be changed.
pub fn keep_launchers() -> Result<(), &'static str> {
    let kept: CapsHashSet =
        [Capability::CAP_SETUID, Capability::CAP_SETGID, Capability::CAP_KILL].into_iter().collect();
    let have = caps::read(None, CapSet::Permitted).map_err(|_| "permitted")?;
    if have.is_empty() {
        return Ok(());
    }
    if have.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding).map_err(|_| "bounding")? {
            caps::drop(None, CapSet::Bounding, capability).map_err(|_| "bounding")?;
        }
    }
    caps::clear(None, CapSet::Inheritable).map_err(|_| "inheritable")?;
    let wanted: CapsHashSet = have.intersection(&kept).copied().collect();
    caps::set(None, CapSet::Effective, &wanted).map_err(|_| "effective")?;
    caps::set(None, CapSet::Permitted, &wanted).map_err(|_| "permitted")
}
