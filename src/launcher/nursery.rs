//! The zygote's own half: see [`super::zygote`], which is the launcher's.

use super::ceiling::Ceiling;
use super::protocol::{FromLauncher, MAX_PACKET, Stage, ToLauncher};
use super::slots::{Slot, Slots};
use super::zygote::{BORN, MAPPED, NO_SLOTS, STEP_BOUND};
use super::{init, outer};
use crate::layers::capabilities;
use crate::plan::{Ids, SessionPlan};
use crate::sys::{clone, process, raw, socket};
use nix::sched::CloneFlags;
use nix::unistd::{Gid, Uid};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// `CLONE_PARENT`.
const CLONE_PARENT: u32 = 0x8000;

/// The zygote's own state.
struct Nursery {
    program: OwnedFd,
    slots: Option<Slots>,
}

/// The process; yields its exit code.
pub fn run(ceiling: &Ceiling, ranged: bool, control: OwnedFd, program: OwnedFd) -> i32 {
    let kept =
        process::keep(vec![control, program]).ok().and_then(|kept| <[OwnedFd; 2]>::try_from(kept).ok());
    let Some([control, program]) = kept else { return 1 };
    process::set_name(c"trl-zygote");
    let ready = become_user(ceiling.uid(), ceiling.gid())
        .and_then(|()| if ranged { enter_outer(&control, ceiling) } else { Ok(()) });
    if ready.is_err() {
        return 1;
    }
    let ranges = ceiling.ranges().filter(|_| ranged);
    let slots = ranges.map(|ranges| Slots::of(ceiling.uid(), ranges)).transpose();
    let word = if slots.is_ok() { BORN } else { NO_SLOTS };
    if socket::send(control.as_fd(), &[word], &[]).is_err() {
        return 1;
    }
    let Ok(slots) = slots else { return 1 };
    let nursery = Nursery { program, slots };
    let code = nursery.serve(&control);
    if let Some(slots) = &nursery.slots {
        slots.remove_unused();
    }
    code
}

impl Nursery {
    fn serve(&self, control: &OwnedFd) -> i32 {
        let mut buffer = vec![0u8; MAX_PACKET + 4];
        loop {
            // Whoever holds the other end is the launcher: its end is this one's.
            if !process::readable_within(control, Duration::from_secs(3600)) {
                continue;
            }
            let received = match socket::receive(control.as_fd(), &mut buffer) {
                Ok(None) => continue,
                Ok(Some(received)) if received.length > 0 && !received.cut => received,
                _ => return 0,
            };
            let Some((used, packet)) = buffer[..received.length].split_first_chunk::<4>() else { return 1 };
            let (Ok(ToLauncher::Create { session, plan }), Ok([socket])) =
                (ToLauncher::decode(packet), <[OwnedFd; 1]>::try_from(received.descriptors))
            else {
                return 1;
            };
            let made = self.make(*plan, socket, u32::from_le_bytes(*used));
            let (answer, slot) = match made {
                Ok((pid, slot)) => (FromLauncher::Created { session, pid }, slot),
                Err((stage, errno)) => (FromLauncher::CreateFailed { session, stage, errno }, None),
            };
            let ids = slot.as_ref().map_or([0; 2], |slot| [slot.uid, slot.gid]).map(u32::to_le_bytes);
            let lock: Vec<i32> = slot.iter().map(|slot| slot.lock.as_raw_fd()).collect();
            let packet = [ids.as_flattened(), &answer.encode()].concat();
            if socket::send(control.as_fd(), &packet, &lock).is_err() {
                return 0;
            }
        }
    }

    fn make(
        &self,
        plan: SessionPlan,
        control: OwnedFd,
        used: u32,
    ) -> Result<(i32, Option<Slot>), (Stage, i32)> {
        let failed = |error: io::Error| (Stage::Namespaces, errno_of(&error));
        let slot = match (plan.isolation.ids, &self.slots) {
            (Ids::Own, _) => None,
            (Ids::Range(_), None) => return Err((Stage::HostIds, libc::EPERM)),
            (Ids::Range(count), Some(slots)) => {
                Some(slots.take(count, used).map_err(|error| (Stage::HostIds, errno_of(&error)))?)
            }
        };
        let own = (plan.uid, plan.gid, 1);
        let outside = slot.as_ref().map_or(own, |slot| (slot.uid, slot.gid, slot.count));
        let inside = (plan.isolation.inside_uid, plan.isolation.inside_gid);
        let (ours, theirs) = socket::seqpacket_pair().map_err(failed)?;
        let program = self.program.try_clone().map_err(failed)?;
        let lock = slot.as_ref().map(|slot| slot.lock.try_clone()).transpose().map_err(failed)?;
        let flags = plan.isolation.namespaces.0 | CLONE_PARENT;
        match clone::fork_into(flags) {
            Ok(0) => {
                drop(ours);
                let code = match wait_for_maps(&theirs) {
                    Ok(()) => become_init(plan, control, program, lock),
                    Err(_) => 1,
                };
                raw::exit(code)
            }
            Ok(pid) => {
                drop(theirs);
                match map(pid, &ours, inside, outside) {
                    Ok(()) => Ok((pid, slot)),
                    Err(error) => {
                        // It waits for its maps with nothing done yet; the launcher reaps it.
                        process::kill(pid, libc::SIGKILL).ok();
                        Err(failed(error))
                    }
                }
            }
            Err(errno) => Err((Stage::Namespaces, errno)),
        }
    }
}

fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    if nix::unistd::geteuid().is_root() {
        nix::unistd::setgroups(&[])?;
        nix::unistd::setresgid(group, group, group)?;
        nix::unistd::setresuid(user, user, user)?;
    } else {
        // Of a launcher with file capabilities.
        capabilities::drop_own()?;
    }
    if nix::unistd::getuid() != user || nix::unistd::getgid() != group {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    process::set_not_dumpable()?;
    process::set_parent_death_signal(libc::SIGKILL)
}

/// Makes the outer user namespace, has the launcher map it, and keeps of its privilege what writing maps takes.
fn enter_outer(control: &OwnedFd, ceiling: &Ceiling) -> io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWUSER)?;
    // The maps of a process that is not dumpable are root's to write.
    process::set_dumpable(true)?;
    socket::send(control.as_fd(), &[BORN], &[])?;
    let mapped = said(control, outer::MAP_BOUND * 3);
    process::set_dumpable(false)?;
    if mapped? != MAPPED {
        return Err(io::Error::from_raw_os_error(libc::EPROTO));
    }
    nix::unistd::setgroups(&[])?;
    capabilities::keep_mappers()?;
    process::set_no_new_privileges()?;
    // Cleared by the change of namespace.
    process::set_parent_death_signal(libc::SIGKILL)?;
    let is_user =
        nix::unistd::getuid().as_raw() == ceiling.uid() && nix::unistd::getgid().as_raw() == ceiling.gid();
    if is_user && nix::unistd::getgroups()?.is_empty() {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

fn become_init(plan: SessionPlan, control: OwnedFd, program: OwnedFd, lock: Option<OwnedFd>) -> i32 {
    let kept = process::keep([control, program].into_iter().chain(lock).collect()).unwrap_or_default();
    let mut kept = kept.into_iter();
    match (kept.next(), kept.next(), kept.next()) {
        (Some(control), Some(program), lock) => init::run(plan, control, program, lock),
        _ => 1,
    }
}

/// In the init: dumpable until its maps are written, because they could not be otherwise.
fn wait_for_maps(zygote: &OwnedFd) -> io::Result<()> {
    process::set_dumpable(true)?;
    socket::send(zygote.as_fd(), &[BORN], &[])?;
    let mapped = said(zygote, STEP_BOUND);
    process::set_dumpable(false)?;
    if mapped? == MAPPED { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPROTO)) }
}

/// The one byte that a peer says within `bound`.
///
/// # Errors
/// `ETIMEDOUT`; `ECHILD` where it is gone.
pub fn said(peer: &OwnedFd, bound: Duration) -> io::Result<u8> {
    let mut byte = [0u8; 1];
    if !process::readable_within(peer, bound) {
        return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
    }
    match socket::receive(peer.as_fd(), &mut byte)? {
        Some(received) if received.length == 1 => Ok(byte[0]),
        _ => Err(io::Error::from_raw_os_error(libc::ECHILD)),
    }
}

/// So many ids of each kind. One that is the caller's own is what `user_namespaces(7)` lets anybody map, with
/// `setgroups(2)` off (CVE-2014-8989); a slot takes the outer namespace, in which there are no supplementary groups.
fn map(pid: i32, init: &OwnedFd, inside: (u32, u32), outside: (u32, u32, u32)) -> io::Result<()> {
    said(init, STEP_BOUND)?;
    let write = |name: &str, text: String| std::fs::write(format!("/proc/{pid}/{name}"), text);
    let (uid, gid, count) = outside;
    if count == 1 {
        write("setgroups", "deny".to_owned())?;
    }
    write("uid_map", format!("{} {uid} {count}", inside.0))?;
    write("gid_map", format!("{} {gid} {count}", inside.1))?;
    socket::send(init.as_fd(), &[MAPPED], &[])
}
