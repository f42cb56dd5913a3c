//! A session's init: from `session.create` to `session.destroy`.
//!
//! Forked from the launcher, it confines itself (see [`crate::layers`]), then serves one socket, straight to
//! the daemon. It trusts what the daemon says within the bounds of the protocol and nothing of what its
//! children do. Its own children are the reapers of its execs (see `sys::slot`); any other child is a process
//! whose reaper was killed by the workload, and is killed. End-of-file from the daemon, or the launcher's
//! death, ends the session.

use super::protocol::{
    About, FromInit, MAX_PACKET, MAX_SPAWN_PAYLOAD, MAX_SPAWN_STRINGS, SpawnHeader, Stage, Target, ToInit,
};
use crate::plan::{Namespaces, SessionPlan};
use crate::sys::slot::{Command, Event, Limit, Slot, Step};
use crate::sys::{process, socket, tree};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// How long a kill may take before its caller is told that it is not complete.
const KILL_BOUND: Duration = Duration::from_secs(3);
/// Most execs with a living process in one session; beyond it a start is refused.
const MAX_TREES: usize = 256;
/// Idle slots that are kept, with their reapers.
const SPARE_SLOTS: usize = 2;

struct Tree {
    reaper: i32,
    slot: Slot,
    payload_len: usize,
    killed: u32,
}

struct Pending {
    header: SpawnHeader,
    descriptors: [OwnedFd; 3],
    slot: Slot,
    filled: usize,
}

struct Init {
    control: OwnedFd,
    program: OwnedFd,
    plan: SessionPlan,
    limits: Vec<Limit>,
    nproc_hard: u64,
    trees: BTreeMap<u64, Tree>,
    spare: Vec<Slot>,
    /// Slots whose reapers were sent away and not reaped yet.
    leaving: Vec<Slot>,
    pending: Option<Pending>,
    /// The session's host ids, which are nobody else's while this process lives.
    _ids: Option<OwnedFd>,
}

/// Runs the init; yields its exit code. `ids` is the lock on the session's host ids.
pub fn run(plan: SessionPlan, control: OwnedFd, program: OwnedFd, ids: Option<OwnedFd>) -> i32 {
    let failed_at = |stage, errno, about: &str| {
        let message = FromInit::Failed { stage, errno, about: About::new(about) };
        // The daemon may be gone: then there is nobody to tell.
        socket::send(control.as_fd(), message.encode().as_bytes(), &[]).ok();
        1
    };
    let failed = |stage, errno| failed_at(stage, errno, "");
    process::set_name(c"trl-init");
    if let Err(step) = crate::layers::confine_init(&plan, program.as_fd()) {
        return failed_at(step.stage, step.errno, &step.about);
    }
    // A change of credentials clears the parent-death signal, so it is set after.
    let parent = nix::unistd::getppid();
    let signals =
        match process::set_parent_death_signal(libc::SIGTERM).and_then(|()| process::signal_descriptor()) {
            Ok(signals) if nix::unistd::getppid() == parent && parent.as_raw() != 1 => signals,
            Ok(_) => return failed(Stage::Init, libc::ESRCH),
            Err(error) => return failed(Stage::Init, error.raw_os_error().unwrap_or(libc::EIO)),
        };
    // Nobody without privilege has more than its parent, so what it may have is known here, once.
    let bounded = |resource, soft: u64, hard: u64| {
        let hard = hard.min(process::hard_limit(resource)?);
        Ok::<_, std::io::Error>(Limit { resource, soft: soft.min(hard), hard })
    };
    let limits = plan.rlimits.iter().map(|limit| bounded(limit.resource, limit.soft, limit.hard)).collect();
    let (limits, nproc_hard) = match (limits, process::hard_limit(libc::RLIMIT_NPROC)) {
        (Ok(limits), Ok(most)) => (limits, most),
        (Err(error), _) | (_, Err(error)) => {
            return failed(Stage::Rlimit, error.raw_os_error().unwrap_or(libc::EIO));
        }
    };
    let mut init = Init {
        control,
        program,
        plan,
        limits,
        nproc_hard,
        trees: BTreeMap::new(),
        spare: Vec::new(),
        leaving: Vec::new(),
        pending: None,
        _ids: ids,
    };
    init.say(FromInit::Ready { pid: nix::unistd::getpid().as_raw() });
    init.serve(&signals)
}

impl Init {
    fn say(&self, message: FromInit) {
        // A daemon that is gone is seen as end-of-file in the loop.
        socket::send(self.control.as_fd(), message.encode().as_bytes(), &[]).ok();
    }

    fn serve(&mut self, signals: &OwnedFd) -> i32 {
        let mut buffer = zeroize::Zeroizing::new(vec![0u8; MAX_PACKET]);
        loop {
            let Ok((message, signal)) = socket::wait_readable(self.control.as_fd(), signals.as_fd()) else {
                return self.destroy();
            };
            if signal {
                while let Some((number, sender)) = process::take_signal(signals) {
                    // In a PID namespace of its own an init obeys nobody within it.
                    let obeyed = !self.plan.isolation.namespaces.has(Namespaces::PID) || sender == 0;
                    if number == libc::SIGTERM && obeyed {
                        return self.destroy();
                    }
                }
                self.reap();
            }
            if !message {
                continue;
            }
            let received = match socket::receive(self.control.as_fd(), &mut buffer) {
                Ok(None) => continue,
                Ok(Some(received)) if received.length > 0 && !received.cut => received,
                _ => return self.destroy(),
            };
            let end = received.length;
            let over = self.handle(&buffer[..end], received.descriptors);
            crate::sys::memory::wipe(&mut buffer[..end]);
            if over {
                return self.destroy();
            }
        }
    }

    /// Carries out one packet; whether the session ends.
    fn handle(&mut self, packet: &[u8], descriptors: Vec<OwnedFd>) -> bool {
        let Ok(message) = ToInit::decode(packet) else {
            return true;
        };
        if self.pending.is_some() != matches!(message, ToInit::More(_))
            || descriptors.is_empty() == matches!(message, ToInit::Spawn(..))
        {
            return true;
        }
        match message {
            ToInit::Spawn(header, payload) => {
                let Ok(descriptors) = <[OwnedFd; 3]>::try_from(descriptors) else {
                    return true;
                };
                self.collect();
                let slot = match self.claim() {
                    Ok(slot) if self.trees.len() < MAX_TREES && !self.trees.contains_key(&header.exec) => {
                        slot
                    }
                    Ok(slot) => {
                        self.put_back(slot);
                        return self.refuse(header, Stage::TooManyTrees, libc::EAGAIN, payload.len());
                    }
                    Err(error) => {
                        let errno = error.raw_os_error().unwrap_or(libc::ENOMEM);
                        return self.refuse(header, Stage::Clone, errno, payload.len());
                    }
                };
                self.pending = Some(Pending { header, descriptors, slot, filled: 0 });
                self.fill(payload)
            }
            ToInit::More(payload) => self.fill(payload),
            ToInit::Signal { request, exec, signal, target } => {
                let (delivered, errno) = self.signal(exec, signal, target);
                self.say(FromInit::Signaled { request, delivered, errno });
                false
            }
            ToInit::Kill { exec } => {
                self.kill(exec);
                false
            }
            ToInit::Terminate => {
                for tree in self.trees.values() {
                    tree::signal_descendants(tree.reaper, libc::SIGTERM);
                }
                false
            }
            ToInit::Destroy => true,
        }
    }

    /// A slot for a command: one with a reaper that waits, if there is one.
    fn claim(&mut self) -> std::io::Result<Slot> {
        self.spare.sort_by_key(|slot| slot.reaper().is_some());
        let found = self.spare.iter_mut().rposition(Slot::claim);
        match found {
            Some(index) => Ok(self.spare.swap_remove(index)),
            None => Slot::map(MAX_SPAWN_PAYLOAD, MAX_SPAWN_STRINGS),
        }
    }

    /// Keeps a claimed slot, or one without a reaper, for another command.
    fn put_back(&mut self, mut slot: Slot) {
        slot.release();
        self.keep(slot);
    }

    /// Keeps a slot whose reaper is idle or gone; where there are enough, the reaper is sent away.
    fn keep(&mut self, mut slot: Slot) {
        if self.spare.len() < SPARE_SLOTS {
            self.spare.push(slot);
        } else if slot.reaper().is_some() {
            slot.dismiss();
            self.leaving.push(slot);
        }
    }

    /// Takes back the slots of execs whose end their reapers have told.
    fn collect(&mut self) {
        let over: Vec<u64> =
            self.trees.iter().filter(|(_, tree)| tree.slot.is_idle()).map(|(exec, _)| *exec).collect();
        for exec in over {
            if let Some(tree) = self.trees.remove(&exec) {
                self.keep(tree.slot);
            }
        }
    }

    /// Every reaper there is.
    fn reapers(&self) -> Vec<i32> {
        let spare = self.spare.iter().chain(&self.leaving).chain(self.pending.iter().map(|p| &p.slot));
        self.trees.values().map(|tree| tree.reaper).chain(spare.filter_map(Slot::reaper)).collect()
    }

    /// A start that is refused before it has a slot. Only one whose payload came whole can be: the rest of a
    /// longer one would be taken for something else, so the session ends instead.
    fn refuse(&mut self, header: SpawnHeader, stage: Stage, errno: i32, came: usize) -> bool {
        self.say(FromInit::SpawnFailed { exec: header.exec, stage, errno });
        self.say(FromInit::TreeGone { exec: header.exec, killed: 0 });
        came != header.payload_len as usize
    }

    fn fill(&mut self, part: &[u8]) -> bool {
        let Some(mut pending) = self.pending.take() else {
            return true;
        };
        let whole = pending.header.payload_len as usize;
        let end = pending.filled + part.len();
        match pending.slot.payload(whole).and_then(|payload| payload.get_mut(pending.filled..end)) {
            Some(room) => room.copy_from_slice(part),
            None => return true,
        }
        pending.filled = end;
        if end < whole {
            self.pending = Some(pending);
        } else {
            self.start(pending);
        }
        false
    }

    fn start(&mut self, mut pending: Pending) {
        let header = pending.header;
        let payload_len = header.payload_len as usize;
        let command = Command {
            exec: header.exec,
            argc: header.argc as usize,
            envc: header.envc as usize,
            has_cwd: header.has_cwd,
            want_started: header.want_started,
            program: if header.probe { self.program.as_raw_fd() } else { -1 },
            nproc_hard: self.nproc_hard,
            nproc: if self.plan.nproc == 0 { u64::MAX } else { u64::from(self.plan.nproc) },
        };
        let [input, output, error] = &pending.descriptors;
        let descriptors = [input.as_fd(), output.as_fd(), error.as_fd()];
        match pending.slot.start(
            command,
            payload_len,
            descriptors,
            self.control.as_fd(),
            &self.limits,
            report,
        ) {
            Ok(reaper) => {
                let tree = Tree { reaper, slot: pending.slot, payload_len, killed: 0 };
                self.trees.insert(header.exec, tree);
            }
            Err(errno) => {
                pending.slot.wipe(payload_len);
                self.put_back(pending.slot);
                self.say(FromInit::SpawnFailed { exec: header.exec, stage: Stage::Clone, errno });
                self.say(FromInit::TreeGone { exec: header.exec, killed: 0 });
            }
        }
    }

    fn signal(&self, exec: u64, signal: i32, target: Target) -> (u32, i32) {
        let Some(tree) = self.trees.get(&exec) else {
            return (0, libc::ESRCH);
        };
        if target == Target::Tree {
            let delivered = tree::signal_descendants(tree.reaper, signal);
            return (delivered, if delivered == 0 { libc::ESRCH } else { 0 });
        }
        let Some(leader) = tree.slot.leader() else {
            return (0, libc::ESRCH);
        };
        let Ok(handle) = process::pidfd_open(leader) else {
            return (0, libc::ESRCH);
        };
        // Not reaped even now: so the handle is the leader's, and its number is its group's.
        if !tree.slot.leader_lives() {
            return (0, libc::ESRCH);
        }
        let sent = match target {
            Target::Group => process::kill(-leader, signal),
            Target::Leader | Target::Tree => process::pidfd_signal(&handle, signal),
        };
        match sent {
            Ok(()) => (1, 0),
            Err(error) => (0, error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }

    /// Ends an exec. Its reaper sees that nothing is left and exits; `TreeGone` is said when it was reaped.
    fn kill(&mut self, exec: u64) {
        self.collect();
        let Some(tree) = self.trees.get_mut(&exec) else {
            self.say(FromInit::TreeGone { exec, killed: 0 });
            return;
        };
        tree.slot.set_being_killed();
        // A workload of the same user can stop its reaper.
        process::kill(tree.reaper, libc::SIGCONT).ok();
        let done = tree::kill_descendants(tree.reaper, KILL_BOUND, &|_| false, &mut || {});
        tree.killed = tree.killed.saturating_add(done.killed);
    }

    /// Takes over what the kernel says of the init's own children.
    fn reap(&mut self) {
        let mut lost_a_reaper = false;
        loop {
            match process::wait_any() {
                process::Waited::Stopped(pid) => {
                    process::kill(pid, libc::SIGCONT).ok();
                }
                process::Waited::Ended(pid, status) => {
                    let Some(exec) =
                        self.trees.iter().find(|(_, tree)| tree.reaper == pid).map(|(exec, _)| *exec)
                    else {
                        self.idle_reaper_ended(pid);
                        continue;
                    };
                    lost_a_reaper |= status != 0;
                    self.tree_gone(exec);
                }
                process::Waited::Nothing | process::Waited::NoChild => break,
            }
        }
        if lost_a_reaper {
            // Its processes are this init's children now, and nobody can tell whose: all such are ended.
            self.kill_strays();
        }
    }

    /// One that had no command any more.
    fn idle_reaper_ended(&mut self, pid: i32) {
        self.leaving.retain(|slot| slot.reaper() != Some(pid));
        let pending = self.pending.iter_mut().map(|pending| &mut pending.slot);
        if let Some(slot) = self.spare.iter_mut().chain(pending).find(|slot| slot.reaper() == Some(pid)) {
            slot.reaper_ended();
        }
    }

    fn tree_gone(&mut self, exec: u64) {
        let Some(mut tree) = self.trees.remove(&exec) else {
            return;
        };
        tree.slot.reaper_ended();
        if !tree.slot.reported() {
            self.kill_strays();
            let (user_us, system_us, max_rss_kib, blocks_in, blocks_out) = (0, 0, 0, 0, 0);
            let status = libc::SIGKILL;
            self.say(FromInit::LeaderExited {
                exec,
                status,
                user_us,
                system_us,
                max_rss_kib,
                blocks_in,
                blocks_out,
                last: false,
            });
        }
        if !tree.slot.reported_last() {
            self.say(FromInit::TreeGone { exec, killed: tree.killed });
        }
        tree.slot.wipe(tree.payload_len);
        self.keep(tree.slot);
    }

    fn kill_strays(&self) {
        let reapers = self.reapers();
        let own = nix::unistd::getpid().as_raw();
        tree::kill_descendants(own, KILL_BOUND, &|pid| reapers.contains(&pid), &mut || {
            reap_all_but(&reapers);
        });
    }

    /// Ends everything, says so, and yields the exit code.
    fn destroy(&mut self) -> i32 {
        let own = nix::unistd::getpid().as_raw();
        let mut killed = 0u32;
        let reapers: Vec<i32> = self.trees.values().map(|tree| tree.reaper).collect();
        // First below the reapers, so that those are not counted as the session's; then all that is left.
        for reaper in &reapers {
            process::kill(*reaper, libc::SIGCONT).ok();
            let done = tree::kill_descendants(*reaper, KILL_BOUND, &|_| false, &mut || {});
            killed = killed.saturating_add(done.killed);
        }
        let done = tree::kill_descendants(own, KILL_BOUND, &|_| false, &mut || {
            while matches!(process::wait_any(), process::Waited::Ended(..)) {}
        });
        for _ in 0..1000 {
            match process::wait_any() {
                process::Waited::NoChild => break,
                process::Waited::Ended(..) => {}
                _ => std::thread::sleep(Duration::from_micros(500)),
            }
        }
        self.say(FromInit::Destroyed { killed });
        i32::from(!done.complete)
    }
}

/// Reaps children that are no reapers: the strays.
fn reap_all_but(reapers: &[i32]) {
    let own = nix::unistd::getpid().as_raw();
    for (pid, parent) in tree::descendants(own, &|pid| reapers.contains(&pid)) {
        if parent == own {
            // Only a zombie is taken; anything else is left to the kill.
            nix::sys::wait::waitpid(
                nix::unistd::Pid::from_raw(pid),
                Some(nix::sys::wait::WaitPidFlag::WNOHANG),
            )
            .ok();
        }
    }
}

/// Sends what a reaper has to say. Runs in the reaper: no allocation, no lock.
fn report(socket: i32, exec: u64, event: Event) {
    let message = match event {
        Event::Started(pid) => FromInit::Started { exec, pid },
        Event::Failed(step, errno) => {
            let stage = match step {
                Step::Clone => Stage::Clone,
                Step::ProcessGroup => Stage::ProcessGroup,
                Step::Descriptors => Stage::Descriptors,
                Step::Rlimit => Stage::Rlimit,
                Step::WorkingDirectory => Stage::WorkingDirectory,
                Step::Exec => Stage::Exec,
            };
            FromInit::SpawnFailed { exec, stage, errno }
        }
        Event::Exited { status, user_us, system_us, max_rss_kib, blocks_in, blocks_out, last } => {
            FromInit::LeaderExited {
                exec,
                status,
                user_us,
                system_us,
                max_rss_kib,
                blocks_in,
                blocks_out,
                last,
            }
        }
    };
    crate::sys::slot::send_packet(socket, message.encode().as_bytes());
}
