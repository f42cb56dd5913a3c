//! The zygote: from which inits with namespaces of their own are cloned.
//!
//! ```text
//! launcher ──fork──► zygote ──clone(CLONE_PARENT | CLONE_NEWUSER | …)──► init (a child of the launcher)
//! ```
//!
//! A user namespace belongs to whoever makes it, and that must be the session's user without any privilege: so a
//! launcher that root started forks this process, which becomes that user for good. It does nothing but clone:
//! the init waits until the zygote has written its id maps, then confines itself. `CLONE_PARENT` makes the init
//! a child of the launcher, which alone waits for it and ends it.
//!
//! Where the user has a range of host ids, it enters an [`outer`] user namespace first, and gives each
//! session that is to have ids of its own a slot of them (see [`super::slots`]). It can do nothing to a session that
//! the user could not do; and whoever is the user on the host, as daemon and launcher are, can end and look at any
//! session of it, because the outer namespace is the user's.

use super::ceiling::Ceiling;
use super::protocol::{FromLauncher, HostIds, MAX_PACKET, Stage, ToLauncher};
use super::slots::{Slot, Slots};
use super::{init, outer};
use crate::layers::capabilities;
use crate::plan::{Ids, SessionPlan};
use crate::sys::{clone, process, raw, socket};
use nix::sched::CloneFlags;
use nix::unistd::{Gid, Uid};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// How long the zygote, or an init that waits for its maps, may take for one step.
const STEP_BOUND: Duration = Duration::from_secs(5);
/// `CLONE_PARENT`.
const CLONE_PARENT: u32 = 0x8000;
const BORN: u8 = 1;
const MAPPED: u8 = 2;
const NO_SLOTS: u8 = 3;

/// The launcher's view of it.
pub struct Zygote {
    control: OwnedFd,
    pid: i32,
    ids: HostIds,
}

/// What the launcher gets of a session that it asked for.
pub struct Made {
    /// What the daemon is to be told.
    pub answer: FromLauncher,
    /// The session's ids, to be held until nothing of it is left.
    pub slot: Option<Slot>,
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ECHILD)
}

impl Zygote {
    /// Forks it; it becomes the user of `ceiling`, with the user's range of ids as far as there is one.
    ///
    /// # Errors
    /// The kernel's; `ECHILD` where it did not get ready.
    pub fn start(ceiling: &Ceiling, program: &OwnedFd) -> io::Result<Self> {
        let ids = match Self::with_ranges(ceiling, program) {
            Ok(zygote) => return Ok(zygote),
            Err(why) => why,
        };
        let zygote = Self::fork(ceiling, program, false, ids)?;
        match zygote.word(STEP_BOUND) {
            Ok(BORN) => Ok(zygote),
            _ => Err(zygote.end()),
        }
    }

    fn with_ranges(ceiling: &Ceiling, program: &OwnedFd) -> Result<Self, HostIds> {
        if ceiling.ranges().is_none() {
            return Err(HostIds::NoRange);
        }
        // Evidence comes from the launcher's program, run by the session's user.
        let program_file = std::fs::File::from(program.try_clone().map_err(|_| HostIds::Refused)?);
        if program_file.metadata().map_or(0, |found| found.permissions().mode()) & 0o001 == 0 {
            return Err(HostIds::Unreachable);
        }
        let zygote = Self::fork(ceiling, program, true, HostIds::Available).map_err(|_| HostIds::Refused)?;
        let ready = match zygote.word(STEP_BOUND) {
            Ok(BORN) => outer::map(zygote.pid, ceiling).and_then(|()| {
                let told = socket::send(zygote.control.as_fd(), &[MAPPED], &[]);
                match told.and_then(|()| zygote.word(STEP_BOUND)) {
                    Ok(BORN) => Ok(()),
                    Ok(NO_SLOTS) => Err(HostIds::NoPlace),
                    _ => Err(HostIds::Refused),
                }
            }),
            _ => Err(HostIds::Refused),
        };
        match ready {
            Ok(()) => Ok(zygote),
            Err(why) => {
                zygote.end();
                Err(why)
            }
        }
    }

    fn fork(ceiling: &Ceiling, program: &OwnedFd, ranged: bool, ids: HostIds) -> io::Result<Self> {
        let (ours, theirs) = socket::seqpacket_pair()?;
        let program = program.try_clone()?;
        match clone::fork_single_threaded() {
            Ok(0) => {
                drop(ours);
                raw::exit(run(ceiling, ranged, theirs, program))
            }
            Ok(pid) => Ok(Self { control: ours, pid, ids }),
            Err(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Ends one that did not get ready.
    fn end(self) -> io::Error {
        process::kill(self.pid, libc::SIGKILL).ok();
        // What is not reaped here is where the launcher waits for whatever ends.
        let _status = process::ended_within(self.pid, STEP_BOUND);
        gone()
    }

    /// Has it end when nobody holds an id of its user any more, so that it leaves no file behind.
    pub fn retire(self) {
        let pid = self.pid;
        drop(self.control);
        if process::ended_within(pid, STEP_BOUND / 5).is_none() {
            process::kill(pid, libc::SIGKILL).ok();
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it has ids for sessions.
    #[must_use]
    pub fn ids(&self) -> HostIds {
        self.ids
    }

    fn word(&self, bound: Duration) -> io::Result<u8> {
        said(&self.control, bound)
    }

    /// Has an init made; `used` slots are held by the launcher.
    ///
    /// # Errors
    /// `ECHILD` where the zygote is gone.
    pub fn make(&self, session: u64, plan: SessionPlan, control: &OwnedFd, used: u32) -> io::Result<Made> {
        let count = match plan.isolation.ids {
            Ids::Own => 0,
            Ids::Range(count) => count,
        };
        let create = ToLauncher::Create { session, plan: Box::new(plan) }.encode();
        let packet = [used.to_le_bytes().as_slice(), &create].concat();
        socket::send(self.control.as_fd(), &packet, &[control.as_raw_fd()])?;
        let mut buffer = [0u8; 128];
        if !process::readable_within(&self.control, STEP_BOUND * 2) {
            return Err(gone());
        }
        let mut received = match socket::receive(self.control.as_fd(), &mut buffer)? {
            Some(received) if received.length > 0 => received,
            _ => return Err(gone()),
        };
        let bad = || io::Error::from_raw_os_error(libc::EBADMSG);
        let (ids, answer) = buffer[..received.length].split_at_checked(8).ok_or_else(bad)?;
        let answer = FromLauncher::decode(answer).map_err(|_| bad())?;
        let number = |at: usize| ids[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
        let lock = received.descriptors.pop();
        let slot = lock.map(|lock| Slot { uid: number(0), gid: number(4), count, lock });
        Ok(Made { answer, slot })
    }
}

/// The zygote's own state.
struct Nursery {
    program: OwnedFd,
    slots: Option<Slots>,
}

fn run(ceiling: &Ceiling, ranged: bool, control: OwnedFd, program: OwnedFd) -> i32 {
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
                Ok(Some(received)) if received.length > 0 => received,
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

fn said(peer: &OwnedFd, bound: Duration) -> io::Result<u8> {
    let mut byte = [0u8; 1];
    if !process::readable_within(peer, bound) {
        return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
    }
    match socket::receive(peer.as_fd(), &mut byte)? {
        Some(received) if received.length == 1 => Ok(byte[0]),
        _ => Err(gone()),
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
