//! The launcher: one thread that makes and ends sessions, and the inits that it forks.
//!
//! It reads plans from the daemon, never a client's bytes, and no value of an environment ever passes it. It
//! re-checks every message: bounded before decoded, in phase, and no session as root. Started as root it keeps
//! three capabilities (see [`crate::layers::capabilities`]); started by anybody else it has none, or, with file
//! capabilities and an operator's word (see [`ceiling`]), those three too.
//!
//! Sessions have host ids of their own where the user has a range of them (see [`mod@outer`] and [`slots`]). Such
//! processes are foreign to the launcher, and it ends them all the same: with root's `CAP_KILL`, or because
//! the user namespace that theirs lies in is its own user's.
//!
//! It is a subreaper: what an init leaves behind when it is killed lands here and is ended here. It can end a
//! session without its init's help. End-of-file from the daemon ends everything.

pub mod attacks;
pub mod ceiling;
pub mod init;
mod nursery;
mod outer;
pub mod probe;
pub mod protocol;
mod slots;
mod zygote;

use crate::layers::capabilities;
use crate::plan::{Namespaces, SessionPlan};
use crate::sys::{clone, mark, process, socket, tree};
use ceiling::Ceiling;
use protocol::{FromLauncher, MAX_PACKET, Stage, ToLauncher, VERSION};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// How long ending a session may take here.
const KILL_BOUND: Duration = Duration::from_secs(3);
/// How long cleaning up after an earlier life may take.
const ORPHAN_BOUND: Duration = Duration::from_secs(5);
/// More sessions than this at once are refused, whatever the daemon says.
const MAX_SESSIONS: usize = 16 * 1024;

struct Session {
    number: u64,
    killed: u32,
    /// Its host ids, held until it is proven that no process has them.
    slot: Option<slots::Slot>,
}

struct Launcher {
    control: OwnedFd,
    program: OwnedFd,
    ceiling: Ceiling,
    mark: Option<u64>,
    sessions: BTreeMap<i32, Session>,
    zygote: Option<zygote::Zygote>,
    /// Sessions whose init was reaped (with its wait status), while it is not proven that nothing is left.
    unproven: Vec<(Session, i32)>,
}

/// The program: reads its socket from descriptor 3; with [`protocol::PROBE_KEY`], is the process that evidence is read
/// from, or the one that attacks.
#[must_use]
pub fn main() -> i32 {
    if let Some(what) = std::env::var_os(protocol::PROBE_KEY) {
        // Whoever executes a program with file capabilities sets this too; in a session there is nothing to give up.
        if capabilities::can_map_ids()
            && !nix::unistd::geteuid().is_root()
            && capabilities::drop_own().is_err()
        {
            return 1;
        }
        return if what == protocol::ATTACKS { attacks::run() } else { probe::run() };
    }
    match start() {
        Ok(mut launcher) => launcher.0.serve(&launcher.1),
        Err(error) => {
            eprintln!("trl-launcher: {error}; it is started by `trl`, not by hand");
            1
        }
    }
}

fn start() -> io::Result<(Launcher, OwnedFd)> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ceiling = Ceiling::parse(&arguments)
        .ok_or_else(|| io::Error::other("expected the arguments UID GID MARK [UIDS GIDS]"))?;
    let ceiling = lowered(ceiling)?;
    let control = process::inherited(3)?;
    process::close_from(4)?;
    process::set_name(c"trl-launcher");
    process::become_subreaper()?;
    process::set_not_dumpable()?;
    capabilities::keep_launchers()
        .map_err(|set| io::Error::other(format!("dropping capabilities of the {set} set failed")))?;
    if capabilities::can_map_ids() {
        // Whoever has something to lose gains nothing by executing: a plan without it is refused besides.
        process::set_no_new_privileges()?;
    }
    let program = std::fs::File::open("/proc/self/exe")?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    // Inits are forked from here, and 0 to 2 must be taken in them, by nothing of the daemon's.
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    let signals = process::signal_descriptor()?;
    Ok((
        Launcher {
            control,
            program: program.into(),
            ceiling,
            mark: None,
            sessions: BTreeMap::new(),
            zygote: None,
            unproven: Vec::new(),
        },
        signals,
    ))
}

/// Whoever has privilege asks for the operator's word. One with file capabilities and without that word has none.
fn lowered(ceiling: Ceiling) -> io::Result<Ceiling> {
    let root = nix::unistd::geteuid().is_root();
    if !root && !capabilities::can_map_ids() {
        return Ok(ceiling);
    }
    let Some(text) = ceiling::read()? else {
        if !root {
            capabilities::drop_own()?;
        }
        return Ok(ceiling);
    };
    if !root && nix::unistd::getuid().as_raw() != ceiling.uid() {
        return Err(io::Error::other(format!("started by another user than {}", ceiling.uid())));
    }
    ceiling.under(&text).map_err(|wrong| io::Error::other(format!("{}: {wrong}", ceiling::FILE)))
}

impl Launcher {
    fn say(&self, message: &FromLauncher) {
        // A daemon that is gone is seen as end-of-file in the loop.
        socket::send(self.control.as_fd(), &message.encode(), &[]).ok();
    }

    fn serve(&mut self, signals: &OwnedFd) -> i32 {
        let mut buffer = vec![0u8; MAX_PACKET];
        loop {
            let Ok((message, signal)) = socket::wait_readable(self.control.as_fd(), signals.as_fd()) else {
                return self.end();
            };
            if signal {
                // What the signal was is seen by waiting; SIGTERM from outside is not obeyed: end-of-file is.
                while process::take_signal(signals).is_some() {}
                self.reap();
            }
            if !message {
                continue;
            }
            let received = match socket::receive(self.control.as_fd(), &mut buffer) {
                Ok(None) => continue,
                Ok(Some(received)) if received.length > 0 => received,
                _ => return self.end(),
            };
            let in_order = match ToLauncher::decode(&buffer[..received.length]) {
                // Not its daemon's fault: the one session is refused.
                Ok(ToLauncher::Create { session, .. }) if received.cut && self.mark.is_some() => {
                    let (stage, errno) = (Stage::Descriptors, libc::EMFILE);
                    self.say(&FromLauncher::CreateFailed { session, stage, errno });
                    true
                }
                Ok(message) => self.handle(message, received.descriptors),
                Err(_) => false,
            };
            if !in_order {
                return self.end();
            }
        }
    }

    /// Carries out one message; false for one that is out of phase.
    fn handle(&mut self, message: ToLauncher, descriptors: Vec<OwnedFd>) -> bool {
        match (message, self.mark) {
            (ToLauncher::Hello { version, mark }, None)
                if version == VERSION && self.ceiling.is_mark(mark) =>
            {
                self.mark = Some(mark);
                let (orphans_found, orphans_left) =
                    tree::kill_marked(mark, &|uid| self.ceiling.owns(uid), ORPHAN_BOUND);
                self.say(&FromLauncher::Ready { orphans_found, orphans_left });
                true
            }
            (ToLauncher::Create { session, plan }, Some(_)) => {
                let Ok([control]) = <[OwnedFd; 1]>::try_from(descriptors) else {
                    return false;
                };
                self.create(session, *plan, control);
                true
            }
            (ToLauncher::Kill { session }, Some(_)) => {
                self.kill(session);
                true
            }
            (ToLauncher::Sweep, Some(mark)) => {
                self.sweep(mark);
                true
            }
            (ToLauncher::Prepare, Some(_)) => {
                let ids = self.zygote().map_or(protocol::HostIds::Refused, zygote::Zygote::ids);
                self.say(&FromLauncher::Prepared { ids });
                true
            }
            _ => false,
        }
    }

    fn create(&mut self, session: u64, plan: SessionPlan, control: OwnedFd) {
        let known = self.sessions.values().any(|other| other.number == session);
        if known || !self.ceiling.allows(&plan) || self.sessions.len() >= MAX_SESSIONS {
            let refused = FromLauncher::CreateFailed { session, stage: Stage::Plan, errno: libc::EPERM };
            return self.say(&refused);
        }
        if plan.isolation.namespaces.has(Namespaces::USER) {
            return self.create_isolated(session, plan, control);
        }
        match clone::fork_single_threaded() {
            Ok(0) => {
                let code = self.become_init(plan, control);
                crate::sys::raw::exit(code)
            }
            Ok(pid) => {
                self.sessions.insert(pid, Session { number: session, killed: 0, slot: None });
                self.say(&FromLauncher::Created { session, pid });
            }
            Err(errno) => self.say(&FromLauncher::CreateFailed { session, stage: Stage::Clone, errno }),
        }
    }

    fn create_isolated(&mut self, session: u64, plan: SessionPlan, control: OwnedFd) {
        let failed = |error: &io::Error| FromLauncher::CreateFailed {
            session,
            stage: Stage::Namespaces,
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        };
        let used = self.sessions.values().filter(|session| session.slot.is_some()).count();
        let used = u32::try_from(used).unwrap_or(0);
        let made = match self.zygote() {
            Ok(zygote) => zygote.make(session, plan, &control, used),
            Err(error) => return self.say(&failed(&error)),
        };
        match made {
            Ok(made) => match made.answer {
                FromLauncher::Created { session: of, pid } if of == session && self.is_new_init(pid) => {
                    self.sessions.insert(pid, Session { number: session, killed: 0, slot: made.slot });
                    self.say(&made.answer);
                }
                FromLauncher::CreateFailed { session: of, .. } if of == session => self.say(&made.answer),
                _ => {
                    // It is no zygote any more.
                    self.zygote = None;
                    self.say(&failed(&io::Error::from_raw_os_error(libc::EBADMSG)));
                }
            },
            Err(error) => {
                // The next session gets another one.
                self.zygote = None;
                self.say(&failed(&error));
            }
        }
    }

    /// Whether `pid` can be what a zygote made: the zygote is its user's, who can have it say anything, and what is taken
    /// for an init here is ended here, with this process's privilege.
    fn is_new_init(&self, pid: i32) -> bool {
        let is_known = self.sessions.contains_key(&pid)
            || self.zygote.as_ref().is_some_and(|zygote| zygote.pid() == pid);
        !is_known && process::is_child(pid)
    }

    fn zygote(&mut self) -> io::Result<&zygote::Zygote> {
        let zygote = match self.zygote.take() {
            Some(zygote) => zygote,
            None => zygote::Zygote::start(&self.ceiling, &self.program)?,
        };
        Ok(self.zygote.insert(zygote))
    }

    fn become_init(&mut self, plan: SessionPlan, control: OwnedFd) -> i32 {
        let Ok(program) = self.program.try_clone() else {
            return 1;
        };
        // Only the two that are wanted are kept: the rest of the launcher's descriptors is closed here.
        let kept = process::keep(vec![control, program]).ok();
        let Some([control, program]) = kept.and_then(|kept| <[OwnedFd; 2]>::try_from(kept).ok()) else {
            return 1;
        };
        init::run(plan, control, program, None)
    }

    fn kill(&mut self, session: u64) {
        let Some((pid, entry)) = self.sessions.iter_mut().find(|(_, entry)| entry.number == session) else {
            // Its init may be gone, and its end not proven.
            return self.prove();
        };
        let pid = *pid;
        let done = tree::kill_descendants(pid, KILL_BOUND, &|_| false, &mut || {});
        entry.killed = entry.killed.saturating_add(done.killed);
        process::kill(pid, libc::SIGKILL).ok();
    }

    /// Takes over what the kernel says of the launcher's children. `Ended` is said when nothing is left that an
    /// ended init may have left behind.
    /// Yields how many zombies were taken that were no session's init.
    fn reap(&mut self) -> u32 {
        let known = self.unproven.len();
        let mut zombies = 0u32;
        loop {
            match process::wait_any() {
                process::Waited::Stopped(pid) => {
                    process::kill(pid, libc::SIGCONT).ok();
                }
                process::Waited::Ended(pid, status) => {
                    if let Some(session) = self.sessions.remove(&pid) {
                        self.unproven.push((session, status));
                    } else {
                        // Its number may soon be another's.
                        self.zygote.take_if(|zygote| zygote.pid() == pid);
                        zombies += 1;
                    }
                }
                process::Waited::Nothing | process::Waited::NoChild => break,
            }
        }
        if self.unproven.len() > known {
            self.prove();
        }
        zombies
    }

    /// Ends what ended inits left behind, then says `Ended`. An end that is not proven is not told: whoever waits
    /// for it runs into its bound, says so, and asks again.
    fn prove(&mut self) {
        if self.unproven.is_empty() {
            return;
        }
        let done = self.kill_strays();
        for (session, _) in &mut self.unproven {
            session.killed = session.killed.saturating_add(done.killed);
        }
        if !done.complete {
            return;
        }
        for (session, status) in std::mem::take(&mut self.unproven) {
            if let Some(slot) = &session.slot {
                slot.is_free();
            }
            self.say(&FromLauncher::Ended { session: session.number, status, killed: session.killed });
        }
    }

    /// Ends what descends from the launcher but from no living init.
    fn kill_strays(&self) -> tree::Killed {
        let own = nix::unistd::getpid().as_raw();
        let inits = &self.sessions;
        let zygote = self.zygote.as_ref().map(zygote::Zygote::pid);
        let kept = |pid: i32| inits.contains_key(&pid) || Some(pid) == zygote;
        let mut reap = || {
            for (pid, parent) in tree::descendants(own, &kept) {
                if parent == own {
                    let flag = Some(nix::sys::wait::WaitPidFlag::WNOHANG);
                    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), flag).ok();
                }
            }
        };
        tree::kill_descendants(own, KILL_BOUND, &kept, &mut reap)
    }

    fn sweep(&mut self, mark: u64) {
        let zombies = self.reap();
        self.prove();
        let own = nix::unistd::getpid().as_raw();
        let mut strays = self.kill_strays().killed;
        let ours = tree::descendants(own, &|_| false);
        for pid in mark::all(mark).into_iter().filter(|pid| !ours.contains_key(pid)) {
            // Made since the walk, or truly lost: only what has no living init above it is ended.
            if let Ok(handle) = process::pidfd_open(pid)
                && !tree::descends_from(pid, own)
                && mark::of_process(pid) == Some(mark)
                && tree::owner(pid).is_some_and(|uid| self.ceiling.owns(uid))
                && process::pidfd_signal(&handle, libc::SIGKILL).is_ok()
            {
                strays += 1;
            }
        }
        self.say(&FromLauncher::Swept { zombies, strays });
    }

    /// The daemon is gone or out of its mind: ends everything.
    fn end(&mut self) -> i32 {
        let own = nix::unistd::getpid().as_raw();
        let zygote = self.zygote.take();
        let kept = zygote.as_ref().map(zygote::Zygote::pid);
        let done = tree::kill_descendants(own, KILL_BOUND, &|pid| Some(pid) == kept, &mut || {
            while matches!(process::wait_any(), process::Waited::Ended(..)) {}
        });
        for session in std::mem::take(&mut self.sessions).into_values().filter(|_| done.complete) {
            if let Some(slot) = session.slot {
                slot.is_free();
            }
        }
        if let Some(zygote) = zygote {
            zygote.retire();
        }
        let left = self
            .mark
            .map_or((0, 0), |mark| tree::kill_marked(mark, &|uid| self.ceiling.owns(uid), KILL_BOUND));
        i32::from(!done.complete || left.1 > 0)
    }
}
