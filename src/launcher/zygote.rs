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
use super::nursery::{run, said};
use super::outer;
use super::protocol::{FromLauncher, HostIds, ToLauncher};
use super::slots::Slot;
use crate::plan::{Ids, SessionPlan};
use crate::sys::{clone, process, raw, socket};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// How long the zygote, or an init that waits for its maps, may take for one step.
pub const STEP_BOUND: Duration = Duration::from_secs(5);
/// Said by a process that is there, and waits for its maps or for work.
pub const BORN: u8 = 1;
/// Said to one whose maps are written.
pub const MAPPED: u8 = 2;
/// Said by a zygote that cannot write down which ids it gives out.
pub const NO_SLOTS: u8 = 3;

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
            Some(received) if received.length > 0 && !received.cut => received,
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
