//! One exec: what is known of it, from its start to the end of its retention.
//!
//! Its actor (`super::actor`) alone changes its course; everybody else asks by [`Exec::stop`] and by the
//! notifications, and reads.

use super::config::MAX_STDIN;
use super::link::Link;
use super::output::{Ring, StdinBuffer};
use super::wire::text::encode_bytes;
use super::wire::types::{OnDisconnect, OnExit, Overflow};
use crate::ids::{ExecId, SessionId};
use crate::launcher::protocol::Stage;
use serde::Serialize;
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Notify;

/// Somebody who owns sessions: `uid:1000`.
pub type Principal = Rc<str>;

/// Why an exec ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// By itself, with a code.
    Exited,
    /// By a signal that the daemon did not send.
    Signaled,
    /// Its timeout.
    Timeout,
    /// Neither output nor input for too long.
    IdleTimeout,
    /// `RLIMIT_CPU`.
    CpuLimit,
    /// Too much output under `overflow: kill`.
    OutputLimit,
    /// `exec.cancel`.
    Canceled,
    /// Its client went away.
    ClientGone,
    /// Its session was destroyed.
    SessionDestroyed,
    /// The daemon stops.
    DaemonShutdown,
    /// It never started.
    SpawnFailed,
    /// Its end was not seen.
    Unknown,
}

impl Reason {
    /// The wire's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Signaled => "signaled",
            Self::Timeout => "timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::CpuLimit => "cpu_limit",
            Self::OutputLimit => "output_limit",
            Self::Canceled => "canceled",
            Self::ClientGone => "client_gone",
            Self::SessionDestroyed => "session_destroyed",
            Self::DaemonShutdown => "daemon_shutdown",
            Self::SpawnFailed => "spawn_failed",
            Self::Unknown => "unknown",
        }
    }
}

/// How its leader ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct LeaderEnd {
    /// Wait status.
    pub status: i32,
    /// User time, µs.
    pub user_us: u64,
    /// System time, µs.
    pub system_us: u64,
    /// Peak resident set, bytes.
    pub max_rss_bytes: u64,
    /// Bytes read from block devices.
    pub read_bytes: u64,
    /// Bytes written to them.
    pub written_bytes: u64,
}

/// A wish that an exec ends.
#[derive(Debug, Clone, Copy)]
pub struct Stop {
    /// What the outcome will say.
    pub reason: Reason,
    /// First signal, to the whole tree; 0 where it was sent already.
    pub signal: i32,
    /// Time until SIGKILL.
    pub grace: Duration,
}

/// What came in for the actor.
#[derive(Debug, Default)]
pub struct Inbox {
    /// Process id of the leader.
    pub started: Option<i32>,
    /// Why it did not start.
    pub failed: Option<(Stage, i32)>,
    /// How the leader ended.
    pub leader: Option<LeaderEnd>,
    /// Nothing of it lives.
    pub tree_gone: bool,
    /// The session is no more.
    pub lost: Option<Reason>,
    /// Somebody wants it to end. The first wish counts.
    pub stop: Option<Stop>,
}

/// How an exec is to be run, beyond argv and environment.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Time until it is stopped.
    pub timeout: Duration,
    /// Time without output or input until it is stopped.
    pub idle_timeout: Option<Duration>,
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// What to do when a stream's ring is full.
    pub overflow: Overflow,
    /// What to do when its connection is gone.
    pub on_disconnect: OnDisconnect,
    /// What to do with what outlives its leader.
    pub on_exit: OnExit,
    /// Bytes kept of each stream.
    pub max_output: usize,
    /// `RLIMIT_CPU` that applies, seconds.
    pub cpu_seconds: u64,
}

/// What an outcome says of the sandbox.
#[derive(Debug, Clone)]
pub struct Isolation {
    /// `enforced` or `degraded`.
    pub verdict: &'static str,
    /// The policy's name.
    pub policy: String,
    /// Its digest, `sha256:…`.
    pub digest: String,
}

/// The end of an exec.
#[derive(Debug, Clone)]
pub struct End {
    /// Why.
    pub reason: Reason,
    /// Exit code, 128+n after signal n.
    pub exit_code: i32,
    /// Signal that ended its leader.
    pub signal: Option<i32>,
    /// Where and with what its start failed.
    pub failed: Option<(Stage, i32)>,
    /// What it used.
    pub usage: LeaderEnd,
    /// From start to end.
    pub duration: Duration,
    /// When.
    pub at: Instant,
}

/// stdout and stderr.
pub const STREAMS: [&str; 2] = ["stdout", "stderr"];

/// One exec.
pub struct Exec {
    /// Its name.
    pub id: ExecId,
    /// The init's number for it.
    pub number: u64,
    /// Its session.
    pub session: SessionId,
    /// Whose it is.
    pub principal: Principal,
    /// When it was asked for.
    pub started_at: SystemTime,
    /// Likewise, monotonic.
    pub started: Instant,
    /// The client's labels.
    pub labels: BTreeMap<String, String>,
    /// How it runs.
    pub rules: Rules,
    /// What the outcome says of the sandbox.
    pub isolation: Rc<Isolation>,
    /// The session's init, as long as there is a session.
    pub link: Weak<Link>,
    /// For the actor.
    pub inbox: RefCell<Inbox>,
    /// Wakes the actor.
    pub wake: Notify,
    /// Said when there is output, or a follower has to look.
    pub changed: Notify,
    /// Said when it has started or has ended.
    pub progressed: Notify,
    /// Output.
    pub output: RefCell<[Ring; 2]>,
    /// How far somebody has read, for `overflow: block`.
    pub consumed: Cell<[u64; 2]>,
    /// Input, where it has any.
    pub stdin: RefCell<Option<StdinBuffer>>,
    /// How many connections follow it.
    pub followers: Cell<usize>,
    /// Whether one of them may write.
    pub writer: Cell<Option<u64>>,
    /// When an `expiring` event was last due.
    pub expiring: Cell<Option<SystemTime>>,
    /// Bytes of it that the daemon's totals count.
    pub accounted: Cell<usize>,
    /// The session's ended execs that are kept, oldest first.
    pub kept: Rc<RefCell<std::collections::VecDeque<ExecId>>>,
    /// Its end.
    pub end: RefCell<Option<End>>,
}

/// The answer of `exec.run` and `exec.wait`, borrowed from the exec.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Outcome<'a> {
    /// Not yet.
    Running {
        /// Which.
        exec_id: ExecId,
        /// `running`.
        state: &'static str,
    },
    /// The end.
    Ended(Box<OutcomeView<'a>>),
}

/// The outcome of an ended exec.
#[derive(Serialize)]
pub struct OutcomeView<'a> {
    exec_id: ExecId,
    state: &'static str,
    stdout: &'a str,
    stderr: &'a str,
    exit_code: i32,
    duration_ms: u64,
    timed_out: bool,
    end: serde_json::Value,
    output: OutputView,
    usage: UsageView,
    denials: [(); 0],
    isolation: IsolationView<'a>,
}

#[derive(Serialize)]
struct OutputView {
    stdout: StreamView,
    stderr: StreamView,
}

#[derive(Serialize)]
struct StreamView {
    total_bytes: u64,
    dropped_bytes: u64,
    encoding: &'static str,
}

#[derive(Serialize)]
struct UsageView {
    cpu_user_us: u64,
    cpu_system_us: u64,
    max_rss_bytes: u64,
    memory_peak_bytes: Option<u64>,
    io_read_bytes: u64,
    io_write_bytes: u64,
}

#[derive(Serialize)]
struct IsolationView<'a> {
    verdict: &'static str,
    policy: &'a str,
    policy_digest: &'a str,
}

impl Exec {
    /// Tells the session's init; where the session has ended, there is none to be told.
    pub fn tell(&self, packet: Vec<u8>) {
        if let Some(link) = self.link.upgrade() {
            link.tell(packet);
        }
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.end.borrow().is_some()
    }

    /// Asks the actor to end it.
    pub fn stop(&self, stop: Stop) {
        self.inbox.borrow_mut().stop.get_or_insert(stop);
        self.wake.notify_one();
    }

    /// Tells the actor that the session is gone.
    pub fn lose(&self, reason: Reason) {
        self.inbox.borrow_mut().lost.get_or_insert(reason);
        self.wake.notify_one();
    }

    /// Waits until it has ended.
    pub async fn finished(&self) {
        loop {
            let progressed = self.progressed.notified();
            if self.has_ended() {
                return;
            }
            progressed.await;
        }
    }

    /// Waits until it has started, could not, or has ended.
    pub async fn started(&self) {
        loop {
            let progressed = self.progressed.notified();
            if self.has_ended() || self.inbox.borrow().started.is_some() {
                return;
            }
            progressed.await;
        }
    }

    /// The outcome, or `{exec_id, state: "running"}`, given to `encode`.
    pub fn outcome<T>(&self, encode: impl FnOnce(&Outcome<'_>) -> T) -> T {
        let end = self.end.borrow();
        let Some(end) = end.as_ref() else {
            return encode(&Outcome::Running { exec_id: self.id, state: "running" });
        };
        let rings = self.output.borrow();
        let [stdout, stderr] = [&rings[0], &rings[1]].map(|ring| ring.copy(ring.start()));
        let (stdout, stdout_encoding) = encode_bytes(&stdout);
        let (stderr, stderr_encoding) = encode_bytes(&stderr);
        let stream = |ring: &Ring, encoding| StreamView {
            total_bytes: ring.total(),
            dropped_bytes: ring.dropped(),
            encoding,
        };
        encode(&Outcome::Ended(Box::new(OutcomeView {
            exec_id: self.id,
            state: "ended",
            stdout: &stdout,
            stderr: &stderr,
            exit_code: end.exit_code,
            duration_ms: u64::try_from(end.duration.as_millis()).unwrap_or(u64::MAX),
            timed_out: matches!(end.reason, Reason::Timeout | Reason::IdleTimeout),
            end: end.view(),
            output: OutputView {
                stdout: stream(&rings[0], stdout_encoding),
                stderr: stream(&rings[1], stderr_encoding),
            },
            usage: UsageView {
                cpu_user_us: end.usage.user_us,
                cpu_system_us: end.usage.system_us,
                max_rss_bytes: end.usage.max_rss_bytes,
                memory_peak_bytes: None,
                io_read_bytes: end.usage.read_bytes,
                io_write_bytes: end.usage.written_bytes,
            },
            denials: [],
            isolation: IsolationView {
                verdict: self.isolation.verdict,
                policy: &self.isolation.policy,
                policy_digest: &self.isolation.digest,
            },
        })))
    }

    /// What `exec.list` and `exec.info` show: keys only.
    #[must_use]
    pub fn info(&self) -> serde_json::Value {
        let end = self.end.borrow();
        let rings = self.output.borrow();
        json!({
            "exec_id": self.id,
            "session_id": self.session,
            "state": if end.is_some() { "ended" } else { "running" },
            "started_at": rfc3339(self.started_at),
            "labels": self.labels,
            "policy_digest": self.isolation.digest,
            "followers": self.followers.get(),
            "exit_code": end.as_ref().map(|end| end.exit_code),
            "end": end.as_ref().map(End::view),
            "duration_ms": end.as_ref().map(|end| u64::try_from(end.duration.as_millis()).unwrap_or(u64::MAX)),
            "output": {
                "stdout": {"start": rings[0].start(), "end": rings[0].end(), "dropped_bytes": rings[0].dropped()},
                "stderr": {"start": rings[1].start(), "end": rings[1].end(), "dropped_bytes": rings[1].dropped()},
            },
        })
    }

    /// Output that is kept of it, bytes.
    #[must_use]
    pub fn retained(&self) -> usize {
        self.output.borrow().iter().map(Ring::retained).sum()
    }

    /// A buffer for stdin.
    #[must_use]
    pub fn stdin_buffer() -> StdinBuffer {
        StdinBuffer::new(MAX_STDIN)
    }
}

impl End {
    /// The `end` member of an outcome.
    #[must_use]
    pub fn view(&self) -> serde_json::Value {
        json!({
            "reason": self.reason.name(),
            "signal": self.signal.map(signal_name),
            "detail": match self.failed {
                Some((stage, errno)) => failure(stage, errno),
                None => json!({}),
            },
        })
    }
}

/// `{stage, errno, object, exit_code}` of a failed start. The object is what, never which: argv is the client's.
#[must_use]
pub fn failure(stage: Stage, errno: i32) -> serde_json::Value {
    let object = match stage {
        Stage::Exec => "program",
        Stage::WorkingDirectory => "cwd",
        _ => "process",
    };
    json!({
        "stage": stage.name(),
        "errno": errno,
        "errno_name": format!("{:?}", nix::errno::Errno::from_raw(errno)),
        "object": object,
        "exit_code": failure_code(stage, errno),
    })
}

/// 127, 126 or 125, as shells have it.
#[must_use]
pub fn failure_code(stage: Stage, errno: i32) -> i32 {
    match (stage, errno) {
        (Stage::Exec, libc::ENOENT | libc::ENOTDIR) => 127,
        (Stage::Exec, _) => 126,
        _ => 125,
    }
}

fn signal_name(signal: i32) -> String {
    nix::sys::signal::Signal::try_from(signal)
        .map_or_else(|_| signal.to_string(), |signal| signal.to_string())
}

/// A time as clients see it.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
