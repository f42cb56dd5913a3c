//! What the operator sets. Every bound of the daemon has its name and default here.

use super::workspace::Workspaces;
use crate::policy::Policies;
use std::path::PathBuf;
use std::time::Duration;

/// Most requests a second of one principal, and most at once after a pause. Above what one thread answers with
/// commands behind it (some 14,000 a second), below what would keep it from everybody else.
pub const MAX_REQUESTS_PER_S: u32 = 20_000;
/// Most requests of one connection that are under way at once.
pub const MAX_IN_FLIGHT: usize = 128;
/// Longest request line, bytes.
pub const MAX_LINE: usize = 4 * 1024 * 1024;
/// Most bytes that wait for a reader before a stream waits for it.
pub const WRITE_QUEUE: usize = 256 * 1024;
/// Most connections at once.
pub const MAX_CONNECTIONS: usize = 1024;
/// Most connections of one principal.
pub const MAX_CONNECTIONS_PER_PRINCIPAL: usize = 256;
/// Longest answer that is bounded by the number of connections only, bytes.
pub const LARGE_ANSWER: usize = 64 * 1024;
/// Most bytes of larger answers that wait for readers of one principal, and in total, before another is made.
pub const LARGE_QUEUE_PER_PRINCIPAL: usize = 64 * 1024 * 1024;
/// See [`LARGE_QUEUE_PER_PRINCIPAL`].
pub const LARGE_QUEUE: usize = 256 * 1024 * 1024;
/// How long a reader of a large answer may read nothing while others wait for its room.
pub const STALLED: Duration = Duration::from_secs(5);
/// Most bytes of stdin that wait for a program, and most in one request.
pub const MAX_STDIN: usize = 1024 * 1024;
/// How long an ended exec's record stays.
pub const RETENTION: Duration = Duration::from_secs(600);
/// Most ended execs of a session that are kept.
pub const RETAINED_EXECS: usize = 256;
/// Default of `max_running_execs`.
pub const MAX_RUNNING_EXECS: usize = 16;
/// Grace between SIGTERM and SIGKILL where nobody says another.
pub const GRACE: Duration = Duration::from_secs(5);
/// How long a kill, a start or an end may take before a stronger means is taken.
pub const KILL_BOUND: Duration = Duration::from_secs(5);
/// How long the start of the launcher, and the end of all sessions, may take.
pub const LIFETIME_BOUND: Duration = Duration::from_secs(10);
/// How often the launcher looks for what slipped through.
pub const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Policy of a session that names none, where the operator names none.
pub const DEFAULT_POLICY: &str = "default";

/// Limits of each command, in place of the policy's; `None` leaves the policy's.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChildLimits {
    /// `RLIMIT_CPU`, seconds.
    pub cpu_seconds: Option<u64>,
    /// `RLIMIT_AS`, bytes.
    pub memory_bytes: Option<u64>,
    /// Processes that an exec may add.
    pub nproc: Option<u32>,
}

/// The daemon's settings.
#[derive(Debug)]
pub struct Config {
    /// Most sessions at once.
    pub max_sessions: usize,
    /// Most sessions of one principal.
    pub max_sessions_per_principal: usize,
    /// Most requests a second of one principal.
    pub max_requests_per_s: u32,
    /// Timeout of a command whose session says none.
    pub default_timeout: Duration,
    /// Output kept of one stream, bytes; also the most that a client may ask for.
    pub max_output_bytes: usize,
    /// Output kept of one principal, bytes.
    pub retained_per_principal: usize,
    /// Output kept of all, bytes.
    pub retained_total: usize,
    /// The policies that there are.
    pub policies: Policies,
    /// Policy of a session that names none.
    pub default_policy: String,
    /// Where sessions may work in a host's directory.
    pub workspaces: Workspaces,
    /// Paths of the host that every session sees read-only.
    pub extra_read_only: Vec<String>,
    /// Paths of the host that every session may write.
    pub extra_writable: Vec<String>,
    /// Whether whoever may connect is the operator, whose limits may be wider than the policy's.
    pub clients_operate: bool,
    /// How long a session may be idle.
    pub idle_timeout: Duration,
    /// How long a session may live.
    pub ttl: Duration,
    /// How often the launcher looks for what slipped through.
    pub sweep_every: Duration,
    /// Limits of commands.
    pub child: ChildLimits,
    /// Working directory of a session that names none.
    pub working_dir: PathBuf,
    /// User that sessions run as.
    pub uid: u32,
    /// Group that sessions run as.
    pub gid: u32,
    /// Says of a process id whether it may be of a session; such a peer is refused.
    pub peer_check: Option<crate::sys::mark::PeerCheck>,
    /// The directory in which idempotency keys outlive a restart.
    pub state_dir: Option<std::fs::File>,
    /// Whether a command of the name `launcher::protocol::ATTACKS` is TRL's own suite of attacks; of no daemon that
    /// serves others.
    pub attacks: bool,
    /// Ends `serve` when it resolves, for use within a process.
    pub stop: Option<tokio::sync::oneshot::Receiver<()>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_sessions: 64,
            max_sessions_per_principal: 64,
            max_requests_per_s: MAX_REQUESTS_PER_S,
            default_timeout: Duration::from_secs(60),
            max_output_bytes: 4 * 1024 * 1024,
            retained_per_principal: 64 * 1024 * 1024,
            retained_total: 256 * 1024 * 1024,
            // Those that are compiled in parse; without them no session is made.
            policies: Policies::shipped().unwrap_or_default(),
            default_policy: DEFAULT_POLICY.into(),
            workspaces: Workspaces::default(),
            extra_read_only: Vec::new(),
            extra_writable: Vec::new(),
            clients_operate: false,
            idle_timeout: Duration::from_secs(3600),
            ttl: Duration::from_secs(86_400),
            sweep_every: SWEEP_EVERY,
            child: ChildLimits::default(),
            working_dir: PathBuf::from("/"),
            uid: nix::unistd::getuid().as_raw(),
            gid: nix::unistd::getgid().as_raw(),
            peer_check: None,
            state_dir: None,
            attacks: false,
            stop: None,
        }
    }
}
