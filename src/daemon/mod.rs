//! The daemon: sessions, execs and their output, for clients on a Unix socket.
//!
//! One thread, one current-thread runtime: everything is `Rc` and `RefCell`, no borrow is held over an await.
//! It parses what clients say and holds secrets, so it has no privilege; what needs any is asked of the
//! launcher, and only for whole sessions.

mod actor;
pub mod config;
mod connection;
mod create;
mod dispatch;
mod ending;
mod exec;
mod exec_methods;
mod follow;
mod host_ids;
mod idempotency;
mod isolation;
mod journal;
mod limits;
mod link;
pub mod output;
mod rate;
mod session;
mod sessions;
mod shares;
mod start;
pub mod wire;
pub mod workspace;

pub use config::{ChildLimits, Config};

use crate::ids::{ExecId, Incarnation, SessionId};
use crate::launcher::protocol::{FromLauncher, ToLauncher, VERSION};
use crate::secret::Environment;
use config::LIFETIME_BOUND;
use ending::{Late, Slot};
use exec::{Exec, Principal, Reason};
use link::Link;
use session::Session;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::time::timeout;

/// How long a daemon that stops waits for clients to take their last answers.
const ANSWERS_BOUND: Duration = Duration::from_millis(250);

/// Why the daemon stopped, or did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The runtime or a socket could not be set up.
    #[error("{0}: {1}")]
    Setup(&'static str, std::io::Error),
    /// The launcher did not answer in time, or said something else.
    #[error("launcher did not get ready within {} s", LIFETIME_BOUND.as_secs())]
    LauncherNotReady,
    /// The launcher ended; every session ended with it.
    #[error("launcher is gone; every session was ended")]
    LauncherGone,
}

/// What the daemon holds.
pub struct Daemon {
    config: Config,
    runtime_env: Environment,
    mark: u64,
    incarnation: Incarnation,
    started: Instant,
    launcher: Rc<Link>,
    launcher_gone: Cell<bool>,
    stopping: Cell<bool>,
    wake: Notify,
    null: Rc<OwnedFd>,
    /// Pipes for the output of the next exec.
    pipes: RefCell<Vec<(actor::Tap, OwnedFd)>>,
    buffer: RefCell<Vec<u8>>,
    next_session: Cell<u64>,
    slots: RefCell<HashMap<u64, Rc<Slot>>>,
    sessions: RefCell<HashMap<SessionId, Rc<Session>>>,
    late: Late,
    creating: RefCell<HashMap<Principal, usize>>,
    execs: RefCell<HashMap<ExecId, Rc<Exec>>>,
    ended: RefCell<VecDeque<Rc<Exec>>>,
    expired: RefCell<(VecDeque<ExecId>, HashMap<ExecId, Principal>)>,
    retained: RefCell<HashMap<Principal, usize>>,
    retained_total: Cell<usize>,
    commands: Cell<u64>,
    shares: Rc<shares::Shares>,
    next_connection: Cell<u64>,
    connections: RefCell<HashMap<u64, Weak<connection::Outbox>>>,
    rates: rate::Rates,
    isolation: isolation::Cache,
    host_ids: host_ids::Known,
    idempotency: idempotency::Keys,
}

impl Daemon {
    fn tell_launcher(&self, message: &ToLauncher) {
        self.launcher.tell(message.encode());
    }

    /// Waits until every request was answered and every answer was taken.
    async fn last_answers(&self) {
        loop {
            let waits =
                self.connections.borrow().values().filter_map(Weak::upgrade).any(|outbox| outbox.owes());
            if !waits {
                return;
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    }

    fn kill_session(self: &Rc<Self>, id: SessionId) {
        let session = self.sessions.borrow().get(&id).cloned();
        if let Some(session) = session {
            self.tell_launcher(&ToLauncher::Kill { session: session.number });
            let daemon = Rc::clone(self);
            // An end that is not proven is logged and tried again there.
            tokio::task::spawn_local(async move {
                session.destroy(&daemon, true, Reason::Unknown).await.ok();
            });
        }
    }
}

/// Serves `listener` until SIGTERM, SIGINT or [`Config::stop`]; then ends every session.
///
/// `launcher` is the daemon's end of the launcher's socket, `mark` the mark of this instance. `on_ready` is
/// called once clients can connect.
///
/// # Errors
/// [`ServeError`]; also where the launcher ended while serving.
pub fn serve(
    config: Config,
    listener: UnixListener,
    launcher: OwnedFd,
    mark: u64,
    runtime_env: Environment,
    on_ready: impl FnOnce(),
) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ServeError::Setup("runtime", error))?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, run(config, listener, launcher, mark, runtime_env, on_ready))
}

async fn run(
    mut config: Config,
    listener: UnixListener,
    launcher: OwnedFd,
    mark: u64,
    runtime_env: Environment,
    on_ready: impl FnOnce(),
) -> Result<(), ServeError> {
    let setup = |what| move |error| ServeError::Setup(what, error);
    let link = Link::new(launcher).map_err(setup("launcher socket"))?;
    link.tell(ToLauncher::Hello { version: VERSION, mark }.encode());
    let mut buffer = [0u8; 128];
    match timeout(LIFETIME_BOUND, link.receive(&mut buffer)).await {
        Ok(Ok(length)) => match FromLauncher::decode(&buffer[..length]) {
            Ok(FromLauncher::Ready { orphans_found: 0, .. }) => {}
            Ok(FromLauncher::Ready { orphans_found, orphans_left }) => {
                tracing::warn!(orphans_found, orphans_left, "processes of an earlier life were ended");
            }
            _ => return Err(ServeError::LauncherNotReady),
        },
        _ => return Err(ServeError::LauncherNotReady),
    }
    listener.set_nonblocking(true).map_err(setup("listener"))?;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(setup("listener"))?;
    let null = std::fs::File::open("/dev/null").map_err(setup("open /dev/null"))?;
    let stop = config.stop.take();
    let incarnation = Incarnation::random();
    let idempotency = idempotency::Keys::open(config.state_dir.take());
    let rates = rate::Rates::new(config.max_requests_per_s);
    let daemon = Rc::new(Daemon {
        config,
        runtime_env,
        mark,
        incarnation,
        started: Instant::now(),
        launcher: link,
        launcher_gone: Cell::new(false),
        stopping: Cell::new(false),
        wake: Notify::new(),
        null: Rc::new(null.into()),
        pipes: RefCell::default(),
        buffer: RefCell::new(vec![0; 256 * 1024]),
        next_session: Cell::new(0),
        slots: RefCell::default(),
        sessions: RefCell::default(),
        late: Late::default(),
        creating: RefCell::default(),
        execs: RefCell::default(),
        ended: RefCell::default(),
        expired: RefCell::default(),
        retained: RefCell::default(),
        retained_total: Cell::new(0),
        commands: Cell::new(0),
        shares: Rc::default(),
        next_connection: Cell::new(0),
        connections: RefCell::default(),
        rates,
        isolation: isolation::Cache::default(),
        host_ids: host_ids::Known::default(),
        idempotency,
    });
    tokio::task::spawn_local(listen_to_launcher(Rc::clone(&daemon)));
    tokio::task::spawn_local(sessions::keep_house(Rc::clone(&daemon)));
    let signals = wait_for_signal(stop).map_err(setup("signal handlers"))?;
    on_ready();
    tracing::info!(incarnation = %daemon.incarnation, "serving");
    tokio::select! {
        () = connection::accept(&daemon, &listener) => {}
        () = signals => {}
        () = launcher_gone(&daemon) => {}
    }
    drop(listener);
    daemon.stopping.set(true);
    tracing::info!(sessions = daemon.sessions.borrow().len(), "stopping");
    if timeout(LIFETIME_BOUND, daemon.end_all()).await.is_err() {
        tracing::error!("sessions did not end in time");
    }
    if timeout(ANSWERS_BOUND, daemon.last_answers()).await.is_err() {
        tracing::warn!("a client did not take its last answers");
    }
    if daemon.launcher_gone.get() { Err(ServeError::LauncherGone) } else { Ok(()) }
}

async fn launcher_gone(daemon: &Daemon) {
    while !daemon.launcher_gone.get() {
        daemon.wake.notified().await;
    }
}

fn wait_for_signal(
    stop: Option<tokio::sync::oneshot::Receiver<()>>,
) -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let stopped = async {
            match stop {
                // A sender that is dropped stops the daemon too.
                Some(stop) => stop.await.unwrap_or_default(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = stopped => {}
        }
    })
}

async fn listen_to_launcher(daemon: Rc<Daemon>) {
    let mut buffer = [0u8; 128];
    while let Ok(length @ 1..) = daemon.launcher.receive(&mut buffer).await {
        let Ok(message) = FromLauncher::decode(&buffer[..length]) else {
            tracing::error!("launcher said what is not of its protocol");
            break;
        };
        let (number, ended) = match message {
            FromLauncher::Created { session, .. } | FromLauncher::CreateFailed { session, .. } => {
                (session, false)
            }
            FromLauncher::Ended { session, .. } => (session, true),
            FromLauncher::Ready { .. } => continue,
            FromLauncher::Prepared { ids } => {
                daemon.host_ids.set(ids);
                continue;
            }
            FromLauncher::Swept { zombies: 0, strays: 0 } => continue,
            FromLauncher::Swept { zombies, strays } => {
                tracing::warn!(zombies, strays, "the sweep found processes that had slipped through");
                continue;
            }
        };
        let slot = daemon.slots.borrow().get(&number).cloned();
        let Some(slot) = slot else { continue };
        match message {
            FromLauncher::Created { pid, .. } => slot.pid.set(pid),
            FromLauncher::CreateFailed { stage, errno, .. } => slot.failed.set(Some((stage, errno))),
            FromLauncher::Ended { killed, .. } => slot.ended.set(Some(killed)),
            _ => {}
        }
        if ended || slot.failed.get().is_some() {
            daemon.slots.borrow_mut().remove(&number);
        }
        slot.changed.notify_waiters();
    }
    tracing::error!("launcher is gone, ending every session");
    daemon.launcher_gone.set(true);
    let sessions: Vec<_> = daemon.sessions.borrow().values().cloned().collect();
    for slot in daemon.slots.borrow_mut().drain().map(|(_, slot)| slot) {
        slot.ended.set(Some(0));
        slot.changed.notify_waiters();
    }
    for session in sessions {
        session.vanish(&daemon, Reason::Unknown);
    }
    daemon.wake.notify_one();
}

/// Asks the launcher, at times, to look for what slipped through.
async fn sweep(daemon: &Daemon) {
    loop {
        tokio::time::sleep(daemon.config.sweep_every).await;
        daemon.tell_launcher(&ToLauncher::Sweep);
    }
}
