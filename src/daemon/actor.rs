//! The task that runs one exec: reads its pipes, feeds its stdin, watches its deadlines, and writes its end.
//!
//! ```text
//! running ─(leader ended)────────────────────────────► draining ─(quiet)─► ended [─► lingering]
//!    └─(timeout, cancel, …)─► terminating ─(grace)─► killing ─(tree gone)─┘
//! ```
//!
//! A short command costs one wake-up: its pipes are not watched, they are read when its end is said. One that
//! lives longer is looked at once, and watched as soon as it has written anything, or after a while anyhow.

use super::Daemon;
use super::config::KILL_BOUND;
use super::exec::{End, Exec, LeaderEnd, Reason, Stop, failure_code};
use super::wire::types::{OnExit, Overflow};
use crate::launcher::protocol::{Target, ToInit};
use nix::errno::Errno;
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Output is drained until it was quiet for so long,
const QUIET: Duration = Duration::from_millis(50);
/// and so long at most.
const DRAIN: Duration = Duration::from_millis(250);
/// When the pipes of what nobody follows are looked at first; if it has written, they are watched from then on.
const FIRST_LOOK: Duration = Duration::from_millis(1);
/// When they are watched anyhow. Watching costs four system calls and more wake-ups than a short command is worth.
const UNWATCHED: Duration = Duration::from_millis(8);
/// RLIMIT_CPU counts whole ticks, stolen ones too, and `getrusage(2)` what really ran: by so much, a quarter, the
/// latter may be short of the limit that was met (a sixth was seen on a host with four times the work it can do).
const CPU_SLACK: u64 = 4;
/// Most bytes read of one stream before others have their turn.
const BATCH: usize = 256 * 1024;
/// A pipe that gave so much at once was full (its default size, `pipe(7)`),
const FULL_PIPE: usize = 64 * 1024;
/// and is made so large: fewer wake-ups for what writes much.
const WIDE_PIPE: i32 = 256 * 1024;

/// A pipe's end in the daemon, non-blocking.
pub enum Tap {
    /// At its end.
    Closed,
    /// Not watched yet.
    Idle(OwnedFd),
    /// Watched.
    Watched(AsyncFd<OwnedFd>),
}

impl Tap {
    fn is_closed(&self) -> bool {
        matches!(self, Self::Closed)
    }

    fn watch(&mut self, interest: Interest) {
        if let Self::Idle(_) = self
            && let Self::Idle(descriptor) = std::mem::replace(self, Self::Closed)
        {
            // Deprecated because `AsRawFd` alone does not promise that a descriptor stays the same; an
            // `OwnedFd` does.
            #[allow(deprecated)]
            let watched = AsyncFd::with_interest(descriptor, interest);
            match watched {
                Ok(watched) => *self = Self::Watched(watched),
                Err(error) => tracing::warn!(%error, "pipe not watched"),
            }
        }
    }

    /// Enlarges the pipe. Where the user's share of pipe memory is used up it stays as it is, only slower.
    fn widen(&self) {
        let descriptor = match self {
            Self::Closed => return,
            Self::Idle(descriptor) => descriptor,
            Self::Watched(watched) => watched.get_ref(),
        };
        nix::fcntl::fcntl(descriptor, nix::fcntl::FcntlArg::F_SETPIPE_SZ(WIDE_PIPE)).ok();
    }

    /// Runs `operation` on the descriptor; `None` where it would block or the tap is closed.
    fn attempt(
        &self,
        mut operation: impl FnMut(&OwnedFd) -> Result<usize, Errno>,
    ) -> Option<Result<usize, Errno>> {
        let descriptor = match self {
            Self::Closed => return None,
            Self::Idle(descriptor) => descriptor,
            Self::Watched(watched) => watched.get_ref(),
        };
        loop {
            match operation(descriptor) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return None,
                other => return Some(other),
            }
        }
    }

    async fn readable(&self) {
        match self {
            Self::Watched(watched) => {
                // An error shows at the read.
                if let Ok(mut guard) = watched.readable().await {
                    guard.retain_ready();
                }
            }
            _ => pending().await,
        }
    }

    async fn writable(&self) {
        match self {
            Self::Watched(watched) => {
                if let Ok(mut guard) = watched.writable().await {
                    guard.retain_ready();
                }
            }
            _ => pending().await,
        }
    }

    fn blocked(&self, interest: Interest) {
        if let Self::Watched(watched) = self {
            // Clears the cached readiness after an EAGAIN.
            let waker = std::task::Waker::noop();
            let mut context = std::task::Context::from_waker(waker);
            let ready = if interest.is_readable() {
                watched.poll_read_ready(&mut context)
            } else {
                watched.poll_write_ready(&mut context)
            };
            if let std::task::Poll::Ready(Ok(mut guard)) = ready {
                guard.clear_ready();
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Running,
    Terminating { until: Instant },
    Killing { until: Instant },
    Draining { since: Instant },
}

struct Actor {
    daemon: Rc<Daemon>,
    exec: Rc<Exec>,
    stdin: Tap,
    output: [Tap; 2],
    phase: Phase,
    stopped_for: Option<Reason>,
    deadline: Instant,
    active: Instant,
    paused: [bool; 2],
    widened: [bool; 2],
    watch: bool,
    looked: bool,
}

/// Runs the exec to its end.
pub async fn run(daemon: Rc<Daemon>, exec: Rc<Exec>, stdin: Tap, output: [Tap; 2], watch: bool) {
    let now = Instant::now();
    let deadline = now + exec.rules.timeout;
    let mut actor = Actor {
        daemon,
        exec,
        stdin,
        output,
        phase: Phase::Running,
        stopped_for: None,
        deadline,
        active: now,
        paused: [false; 2],
        widened: [false; 2],
        watch,
        looked: false,
    };
    actor.feed();
    actor.serve().await;
    actor.linger().await;
}

impl Actor {
    async fn serve(&mut self) {
        loop {
            if self.advance(Instant::now()) {
                return;
            }
            if self.watch {
                for tap in &mut self.output {
                    tap.watch(Interest::READABLE);
                }
            }
            let next = self.next_deadline();
            let wants_write = self.exec.stdin.borrow().as_ref().is_some_and(|stdin| !stdin.peek().is_empty());
            let [out, err] = &self.output;
            let [out_paused, err_paused] = self.paused;
            tokio::select! {
                biased;
                () = self.exec.wake.notified() => {}
                () = out.readable(), if !out_paused => {}
                () = err.readable(), if !err_paused => {}
                () = self.stdin.writable(), if wants_write => {}
                () = tokio::time::sleep_until(next.into()) => self.look(),
            }
            self.feed();
            if self.watch && self.read() {
                // Followers have their turn before the next part comes.
                tokio::task::yield_now().await;
            }
        }
    }

    /// A deadline has passed.
    fn look(&mut self) {
        if !self.watch && !self.looked {
            self.looked = true;
            let closed = self.output.iter().filter(|tap| tap.is_closed()).count();
            self.watch = self.read() || self.output.iter().filter(|tap| tap.is_closed()).count() > closed;
        } else {
            self.watch = true;
        }
    }

    fn next_deadline(&self) -> Instant {
        let next = match self.phase {
            Phase::Running => {
                let idle = self.exec.rules.idle_timeout.map_or(self.deadline, |idle| self.active + idle);
                self.deadline.min(idle)
            }
            Phase::Terminating { until } | Phase::Killing { until } => until,
            Phase::Draining { since } => (self.active.max(since) + QUIET).min(since + DRAIN),
        };
        match (self.watch, self.looked) {
            (true, _) => next,
            (false, false) => next.min(self.exec.started + FIRST_LOOK),
            (false, true) => next.min(self.exec.started + UNWATCHED),
        }
    }

    /// Takes in what has happened; whether the exec has ended.
    fn advance(&mut self, now: Instant) -> bool {
        let (failed, leader, tree_gone, lost, stop) = {
            let inbox = self.exec.inbox.borrow();
            (inbox.failed, inbox.leader, inbox.tree_gone, inbox.lost, inbox.stop)
        };
        if let Some(reason) = lost {
            self.read();
            self.finish(reason);
            return true;
        }
        if failed.is_some() {
            self.finish(Reason::SpawnFailed);
            return true;
        }
        if self.phase == Phase::Running {
            self.run_on(now, leader, tree_gone, stop);
        }
        match self.phase {
            Phase::Terminating { .. } | Phase::Killing { .. } if tree_gone => self.drain(now),
            Phase::Terminating { until } if now >= until => self.kill(now),
            Phase::Killing { until } if now >= until => {
                tracing::warn!(exec = %self.exec.id, session = %self.exec.session, "kill not confirmed, ending the session");
                self.daemon.kill_session(self.exec.session);
                self.read();
                self.finish(Reason::Unknown);
                return true;
            }
            _ => {}
        }
        let Phase::Draining { since } = self.phase else { return false };
        let closed = self.output.iter().all(Tap::is_closed);
        let paused = self.paused.contains(&true) && now < self.deadline;
        let over = now >= since + DRAIN || now >= self.active.max(since) + QUIET;
        if closed || (over && !paused) {
            self.finish(self.stopped_for.unwrap_or(Reason::Exited));
            return true;
        }
        if over {
            // A reader is waited for, at most as long as the command might have run.
            self.phase = Phase::Draining { since: now };
        }
        false
    }

    fn run_on(&mut self, now: Instant, leader: Option<LeaderEnd>, tree_gone: bool, stop: Option<Stop>) {
        if tree_gone || (leader.is_some() && self.exec.rules.on_exit == OnExit::Keep) {
            self.drain(now);
        } else if let Some(stop) = stop {
            self.begin_stop(now, stop);
        } else if now >= self.deadline {
            self.begin_stop(now, self.sigterm(Reason::Timeout));
        } else if leader.is_some() && self.exec.rules.on_exit == OnExit::Kill {
            self.kill(now);
        } else if self.exec.rules.idle_timeout.is_some_and(|idle| now >= self.active + idle) {
            self.begin_stop(now, self.sigterm(Reason::IdleTimeout));
        }
    }

    fn sigterm(&self, reason: Reason) -> Stop {
        Stop { reason, signal: libc::SIGTERM, grace: self.exec.rules.grace }
    }

    fn begin_stop(&mut self, now: Instant, stop: Stop) {
        self.stopped_for = Some(stop.reason);
        self.watch = true;
        if stop.grace.is_zero() {
            self.kill(now);
            return;
        }
        if stop.signal == 0 {
            // A session that ends has told all of it already.
            self.phase = Phase::Terminating { until: now + stop.grace };
            return;
        }
        let message =
            ToInit::Signal { request: 0, exec: self.exec.number, signal: stop.signal, target: Target::Tree };
        self.exec.tell(message.encode());
        self.phase = Phase::Terminating { until: now + stop.grace };
    }

    fn kill(&mut self, now: Instant) {
        self.watch = true;
        self.exec.tell(ToInit::Kill { exec: self.exec.number }.encode());
        self.phase = Phase::Killing { until: now + KILL_BOUND };
    }

    fn drain(&mut self, now: Instant) {
        self.phase = Phase::Draining { since: now };
        self.read();
        if !self.output.iter().all(Tap::is_closed) {
            self.watch = true;
        }
    }

    /// Reads what there is of both streams.
    fn read(&mut self) -> bool {
        let mut grown = false;
        for index in 0..2 {
            grown |= self.read_stream(index);
        }
        if grown {
            self.active = Instant::now();
            self.daemon.account(&self.exec);
            self.exec.changed.notify_waiters();
        }
        grown
    }

    fn read_stream(&mut self, index: usize) -> bool {
        let mut buffer = self.daemon.buffer.borrow_mut();
        let mut total = 0;
        while total < BATCH {
            let mut room = buffer.len();
            if self.exec.rules.overflow == Overflow::Block {
                let end = self.exec.output.borrow()[index].end();
                let unread = usize::try_from(end - self.exec.consumed.get()[index]).unwrap_or(usize::MAX);
                room = room.min(self.exec.rules.max_output.saturating_sub(unread));
                self.paused[index] = room == 0;
                if room == 0 {
                    break;
                }
            }
            let tap = &self.output[index];
            match tap.attempt(|descriptor| nix::unistd::read(descriptor.as_fd(), &mut buffer[..room])) {
                None => {
                    tap.blocked(Interest::READABLE);
                    break;
                }
                Some(Ok(0) | Err(_)) => {
                    self.output[index] = Tap::Closed;
                    break;
                }
                Some(Ok(length)) => {
                    total += length;
                    if length >= FULL_PIPE && !self.widened[index] {
                        self.widened[index] = true;
                        self.output[index].widen();
                    }
                    let mut rings = self.exec.output.borrow_mut();
                    rings[index].push(&buffer[..length]);
                    let over = rings[index].total() > self.exec.rules.max_output as u64;
                    if over && self.exec.rules.overflow == Overflow::Kill {
                        let stop = Stop { grace: Duration::ZERO, ..self.sigterm(Reason::OutputLimit) };
                        self.exec.inbox.borrow_mut().stop.get_or_insert(stop);
                        self.exec.wake.notify_one();
                    }
                }
            }
        }
        total > 0
    }

    /// Writes what waits for stdin.
    fn feed(&mut self) {
        let mut slot = self.exec.stdin.borrow_mut();
        let Some(stdin) = slot.as_mut() else {
            self.stdin = Tap::Closed;
            return;
        };
        while !stdin.peek().is_empty() {
            let written = self.stdin.attempt(|descriptor| nix::unistd::write(descriptor, stdin.peek()));
            match written {
                Some(Ok(length)) => {
                    stdin.consume(length);
                    self.active = Instant::now();
                    self.exec.changed.notify_waiters();
                }
                Some(Err(_)) => {
                    stdin.close();
                    self.stdin = Tap::Closed;
                    return;
                }
                None if self.stdin.is_closed() => {
                    stdin.close();
                    return;
                }
                None => {
                    self.stdin.watch(Interest::WRITABLE);
                    self.stdin.blocked(Interest::WRITABLE);
                    return;
                }
            }
        }
        if stdin.eof() {
            self.stdin = Tap::Closed;
        }
    }

    fn finish(&mut self, reason: Reason) {
        let exec = &self.exec;
        let inbox = exec.inbox.borrow();
        let usage = inbox.leader.unwrap_or_default();
        let (mut reason, mut exit_code, mut signal) = (reason, -1, None);
        if inbox.leader.is_some() {
            if libc::WIFSIGNALED(usage.status) {
                signal = Some(libc::WTERMSIG(usage.status));
                exit_code = 128 + libc::WTERMSIG(usage.status);
                if reason == Reason::Exited {
                    let cpu_us = usage.user_us + usage.system_us;
                    let limit_us = exec.rules.cpu_seconds.saturating_mul(1_000_000);
                    let limited = matches!(signal, Some(libc::SIGXCPU | libc::SIGKILL))
                        && cpu_us >= limit_us - limit_us / CPU_SLACK;
                    reason = if limited { Reason::CpuLimit } else { Reason::Signaled };
                }
            } else {
                exit_code = libc::WEXITSTATUS(usage.status);
            }
        }
        if let Some((stage, errno)) = inbox.failed {
            exit_code = failure_code(stage, errno);
        }
        let end = End {
            reason,
            exit_code,
            signal,
            failed: inbox.failed,
            usage,
            duration: exec.started.elapsed(),
            at: Instant::now(),
        };
        drop(inbox);
        for ring in exec.output.borrow_mut().iter_mut() {
            ring.close();
        }
        if let Some(stdin) = exec.stdin.borrow_mut().as_mut() {
            stdin.close();
        }
        tracing::debug!(exec = %exec.id, session = %exec.session, reason = reason.name(), "exec ended");
        *exec.end.borrow_mut() = Some(end);
        self.daemon.exec_ended(exec);
        exec.progressed.notify_waiters();
        exec.changed.notify_waiters();
    }

    /// What outlives its leader may go on writing: its pipes stay open, and what comes is dropped.
    async fn linger(&mut self) {
        self.stdin = Tap::Closed;
        for tap in &mut self.output {
            tap.watch(Interest::READABLE);
        }
        loop {
            let over = {
                let inbox = self.exec.inbox.borrow();
                inbox.tree_gone || inbox.lost.is_some() || inbox.failed.is_some()
            };
            if over || self.output.iter().all(Tap::is_closed) {
                return;
            }
            {
                let [out, err] = &self.output;
                tokio::select! {
                    () = self.exec.wake.notified() => {}
                    () = out.readable() => {}
                    () = err.readable() => {}
                }
            }
            let mut buffer = self.daemon.buffer.borrow_mut();
            for tap in &mut self.output {
                match tap.attempt(|descriptor| nix::unistd::read(descriptor.as_fd(), &mut buffer[..])) {
                    Some(Ok(1..)) => {}
                    None => tap.blocked(Interest::READABLE),
                    _ => *tap = Tap::Closed,
                }
            }
        }
    }
}

/// The daemon's end of a pipe, made non-blocking.
///
/// # Errors
/// The kernel's.
pub fn tap(descriptor: OwnedFd) -> io::Result<Tap> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(descriptor.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    debug_assert!(descriptor.as_raw_fd() > 2);
    Ok(Tap::Idle(descriptor))
}
