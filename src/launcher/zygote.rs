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

use super::init;
use super::protocol::{FromLauncher, MAX_PACKET, Stage, ToLauncher};
use crate::plan::{Ids, SessionPlan};
use crate::sys::{clone, process, raw, socket};
use nix::unistd::{Gid, Uid};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// How long the zygote, or an init that waits for its maps, may take for one step.
const STEP_BOUND: Duration = Duration::from_secs(5);
/// `CLONE_PARENT`.
const CLONE_PARENT: u32 = 0x8000;
const BORN: u8 = 1;
const MAPPED: u8 = 2;

/// The launcher's view of it.
pub struct Zygote {
    control: OwnedFd,
    pid: i32,
}

impl Zygote {
    /// Forks it; it becomes `uid` and `gid`.
    ///
    /// # Errors
    /// The kernel's; `ECHILD` where it did not get ready.
    pub fn start(uid: u32, gid: u32, program: &OwnedFd) -> io::Result<Self> {
        let (ours, theirs) = socket::seqpacket_pair()?;
        let program = program.try_clone()?;
        match clone::fork_single_threaded() {
            Ok(0) => {
                drop(ours);
                raw::exit(run(uid, gid, theirs, program))
            }
            Ok(pid) => {
                drop(theirs);
                let zygote = Self { control: ours, pid };
                zygote.answer(&mut [0; 1]).map(|_| zygote)
            }
            Err(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    fn answer(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let gone = || io::Error::from_raw_os_error(libc::ECHILD);
        if !process::readable_within(&self.control, STEP_BOUND * 2) {
            return Err(gone());
        }
        match socket::receive(self.control.as_fd(), buffer)? {
            Some(received) if received.length > 0 => Ok(received.length),
            _ => Err(gone()),
        }
    }

    /// Has an init made; what the daemon is to be told.
    ///
    /// # Errors
    /// `ECHILD` where the zygote is gone.
    pub fn make(&self, session: u64, plan: SessionPlan, control: &OwnedFd) -> io::Result<FromLauncher> {
        let packet = ToLauncher::Create { session, plan: Box::new(plan) }.encode();
        socket::send(self.control.as_fd(), &packet, &[control.as_raw_fd()])?;
        let mut buffer = [0u8; 128];
        let length = self.answer(&mut buffer)?;
        FromLauncher::decode(&buffer[..length]).map_err(|_| io::Error::from_raw_os_error(libc::EBADMSG))
    }
}

fn run(uid: u32, gid: u32, control: OwnedFd, program: OwnedFd) -> i32 {
    let Ok((control, program)) = process::keep_two(control, program) else {
        return 1;
    };
    process::set_name(c"trl-zygote");
    if become_user(uid, gid).is_err() || socket::send(control.as_fd(), &[BORN], &[]).is_err() {
        return 1;
    }
    let mut buffer = vec![0u8; MAX_PACKET];
    loop {
        // Whoever holds the other end is the launcher: its end is this one's.
        if !process::readable_within(&control, Duration::from_secs(3600)) {
            continue;
        }
        let received = match socket::receive(control.as_fd(), &mut buffer) {
            Ok(None) => continue,
            Ok(Some(received)) if received.length > 0 => received,
            _ => return 0,
        };
        let message = ToLauncher::decode(&buffer[..received.length]);
        let (Ok(ToLauncher::Create { session, plan }), Ok([socket])) =
            (message, <[OwnedFd; 1]>::try_from(received.descriptors))
        else {
            return 1;
        };
        let answer = match make(*plan, socket, &program) {
            Ok(pid) => FromLauncher::Created { session, pid },
            Err((stage, errno)) => FromLauncher::CreateFailed { session, stage, errno },
        };
        if socket::send(control.as_fd(), &answer.encode(), &[]).is_err() {
            return 0;
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

fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

fn make(plan: SessionPlan, control: OwnedFd, program: &OwnedFd) -> Result<i32, (Stage, i32)> {
    let failed = |error: io::Error| (Stage::Namespaces, errno_of(&error));
    if plan.isolation.ids != Ids::Own || plan.isolation.inside_uid == 0 || plan.isolation.inside_gid == 0 {
        return Err((Stage::Plan, libc::EPERM));
    }
    let (ours, theirs) = socket::seqpacket_pair().map_err(failed)?;
    let program = program.try_clone().map_err(failed)?;
    let flags = plan.isolation.namespaces.0 | CLONE_PARENT;
    let (inside, outside) = ((plan.isolation.inside_uid, plan.isolation.inside_gid), (plan.uid, plan.gid));
    match clone::fork_into(flags) {
        Ok(0) => {
            drop(ours);
            let code = match wait_for_maps(&theirs) {
                Ok(()) => become_init(plan, control, program),
                Err(_) => 1,
            };
            raw::exit(code)
        }
        Ok(pid) => {
            drop(theirs);
            match map(pid, &ours, inside, outside) {
                Ok(()) => Ok(pid),
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

fn become_init(plan: SessionPlan, control: OwnedFd, program: OwnedFd) -> i32 {
    match process::keep_two(control, program) {
        Ok((control, program)) => init::run(plan, control, program),
        Err(_) => 1,
    }
}

/// In the init: dumpable until its maps are written, because they could not be otherwise.
fn wait_for_maps(zygote: &OwnedFd) -> io::Result<()> {
    process::set_dumpable(true)?;
    socket::send(zygote.as_fd(), &[BORN], &[])?;
    let mapped = said(zygote);
    process::set_dumpable(false)?;
    if mapped? == MAPPED { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPROTO)) }
}

fn said(peer: &OwnedFd) -> io::Result<u8> {
    let mut byte = [0u8; 1];
    if !process::readable_within(peer, STEP_BOUND) {
        return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
    }
    match socket::receive(peer.as_fd(), &mut byte)? {
        Some(received) if received.length == 1 => Ok(byte[0]),
        _ => Err(io::Error::from_raw_os_error(libc::ECHILD)),
    }
}

/// One id of each kind, the caller's own: what `user_namespaces(7)` lets anybody map. `setgroups(2)` must be off
/// for it (CVE-2014-8989).
fn map(pid: i32, init: &OwnedFd, inside: (u32, u32), outside: (u32, u32)) -> io::Result<()> {
    said(init)?;
    let write = |name: &str, text: String| std::fs::write(format!("/proc/{pid}/{name}"), text);
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("{} {} 1", inside.0, outside.0))?;
    write("gid_map", format!("{} {} 1", inside.1, outside.1))?;
    socket::send(init.as_fd(), &[MAPPED], &[])
}
