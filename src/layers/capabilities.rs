//! Capabilities: what a privileged launcher keeps (enough to become a session's user and to end its processes), and
//! how an init in its own user namespace gives up all of them.

use crate::sys::privilege;
use caps::{CapSet, Capability, CapsHashSet};
use std::io;

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

/// Whether the calling process may write id maps of ids that are not its own.
#[must_use]
pub fn can_map_ids() -> bool {
    let have = caps::read(None, CapSet::Permitted).unwrap_or_default();
    [Capability::CAP_SETUID, Capability::CAP_SETGID].iter().all(|needed| have.contains(needed))
}

fn refused(_: caps::errors::CapsError) -> io::Error {
    // The crate's error has no number.
    io::Error::from_raw_os_error(libc::EPERM)
}

/// Makes effective what [`can_map_ids`] asks for and nothing else.
///
/// # Errors
/// `EPERM`.
pub fn raise_mappers() -> io::Result<()> {
    let wanted: CapsHashSet = [Capability::CAP_SETUID, Capability::CAP_SETGID].into_iter().collect();
    caps::set(None, CapSet::Effective, &wanted).map_err(refused)
}

/// Keeps that and nothing else, and reads it back.
///
/// # Errors
/// `EPERM` where anything else is left.
pub fn keep_mappers() -> io::Result<()> {
    let bounding = privilege::own_sets()?.bounding;
    for capability in (0..u64::BITS).filter(|bit| bounding & 1 << bit != 0) {
        privilege::drop_from_bounding(capability)?;
    }
    caps::clear(None, CapSet::Ambient).map_err(refused)?;
    caps::clear(None, CapSet::Inheritable).map_err(refused)?;
    raise_mappers()?;
    let wanted: CapsHashSet = [Capability::CAP_SETUID, Capability::CAP_SETGID].into_iter().collect();
    caps::set(None, CapSet::Permitted, &wanted).map_err(refused)?;
    let kept = 1 << Capability::CAP_SETUID.index() | 1 << Capability::CAP_SETGID.index();
    let wanted = privilege::Sets { permitted: kept, effective: kept, ..privilege::Sets::default() };
    if privilege::own_sets()? == wanted { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}

/// Gives up what the calling process can use or hand on. The bounding set, which only bounds what an execve gains,
/// stays.
///
/// # Errors
/// `EPERM`.
pub fn drop_own() -> io::Result<()> {
    [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted]
        .into_iter()
        .try_for_each(|set| caps::clear(None, set).map_err(refused))
}

/// Gives up every capability, for good: the bounding set is emptied of all that the kernel knows, the securebits
/// are locked so that neither root's id nor a change of ids brings any back, and the other four sets are cleared.
/// All of it is read back.
///
/// # Errors
/// The kernel's; `EPERM` without `CAP_SETPCAP` where anything is left that only it could take away, or where what
/// was read back is not empty.
pub fn drop_all() -> io::Result<()> {
    let bounding = privilege::own_sets()?.bounding;
    for capability in (0..u64::BITS).filter(|bit| bounding & 1 << bit != 0) {
        privilege::drop_from_bounding(capability)?;
    }
    if privilege::securebits()? & privilege::LOCKED_SECUREBITS != privilege::LOCKED_SECUREBITS {
        privilege::set_securebits(privilege::LOCKED_SECUREBITS)?;
    }
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        // The crate's error has no number; what matters is read back below.
        caps::clear(None, set).map_err(|_| io::Error::from_raw_os_error(libc::EPERM))?;
    }
    let locked = privilege::securebits()? & privilege::LOCKED_SECUREBITS == privilege::LOCKED_SECUREBITS;
    if !locked || privilege::own_sets()? != privilege::Sets::default() {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    Ok(())
}
