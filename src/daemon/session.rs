//! One session: its init's socket, its environment, its execs.

use super::Daemon;
use super::config::KILL_BOUND;
use super::ending::{Destroyed, Life, Slot};
use super::exec::{Exec, Isolation, LeaderEnd, Principal, Reason, rfc3339};
use super::link::Link;
use crate::ids::SessionId;
use crate::launcher::protocol::{FromInit, ToInit};
use crate::secret::Environment;
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

/// One session.
pub struct Session {
    /// Its name.
    pub id: SessionId,
    /// The launcher's number for it.
    pub number: u64,
    /// Whose it is.
    pub principal: Principal,
    /// The client's name for it.
    pub name: Option<String>,
    /// Its shell.
    pub shell: String,
    /// Its working directory.
    pub working_dir: String,
    /// Its variables.
    pub env: Environment,
    /// Its secrets.
    pub secrets: Environment,
    /// The client's labels.
    pub labels: BTreeMap<String, String>,
    /// Timeout of its commands.
    pub timeout: Duration,
    /// Grace of its commands.
    pub grace: Duration,
    /// Most execs at once.
    pub max_running: usize,
    /// `RLIMIT_CPU` of its commands, seconds.
    pub cpu_seconds: u64,
    /// What outcomes say of the sandbox.
    pub isolation: Rc<Isolation>,
    /// The report as JSON text: as a tree it is ten times that.
    pub report: Box<str>,
    /// Its workspace, as clients are told of it.
    pub workspace: serde_json::Value,
    /// When it was made.
    pub created_at: SystemTime,
    /// How long it may be idle.
    pub idle_timeout: Duration,
    /// How long it may live.
    pub ttl: Duration,
    /// Its init.
    pub link: Rc<Link>,
    /// The launcher's view.
    pub slot: Rc<Slot>,
    /// Where it is in its life.
    pub life: Cell<Life>,
    /// When it was made, or touched, monotonic.
    pub born: Cell<Instant>,
    /// Last activity, monotonic and as clients see it.
    pub active: Cell<(Instant, SystemTime)>,
    /// Whether `expiring` was said.
    pub warned: Cell<bool>,
    /// Execs that were started.
    pub commands: Cell<u64>,
    /// Numbers of execs and signals.
    pub next: Cell<u64>,
    /// Execs with a living process, by number.
    pub trees: RefCell<HashMap<u64, Rc<Exec>>>,
    /// Ended execs that are kept.
    pub kept: Rc<RefCell<std::collections::VecDeque<crate::ids::ExecId>>>,
    /// Execs that have not ended.
    pub running: Cell<usize>,
    /// Who waits for `Signaled`.
    pub signals: RefCell<HashMap<u64, oneshot::Sender<(u32, i32)>>>,
    /// Times used by ended execs, µs.
    pub cpu_us: Cell<(u64, u64)>,
    /// The init's last word.
    pub destroyed: Cell<Option<u32>>,
    /// What its end came to.
    pub result: Cell<Destroyed>,
    /// Said when trees, life or `destroyed` change.
    pub changed: Notify,
}

impl Session {
    /// The next number for an exec or a signal.
    pub fn number(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    /// Counts as activity.
    pub fn touch(&self) {
        self.active.set((Instant::now(), SystemTime::now()));
    }

    /// Its state's name.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self.life.get() {
            Life::Live if self.running.get() > 0 => "running",
            Life::Live => "idle",
            // Something of it may live.
            Life::Ending | Life::Unproven => "running",
            Life::Gone => "terminated",
        }
    }

    /// When it ends for idleness, if nothing happens.
    #[must_use]
    pub fn idle_at(&self) -> SystemTime {
        self.active.get().1 + self.idle_timeout
    }

    /// When it ends in any case.
    #[must_use]
    pub fn expires_at(&self) -> SystemTime {
        let left = (self.born.get() + self.ttl).saturating_duration_since(Instant::now());
        SystemTime::now() + left
    }

    /// What `session.info` and `session.list` show: keys, never values.
    #[must_use]
    pub fn info(&self, with_isolation: bool) -> serde_json::Value {
        let (user_us, system_us) = self.cpu_us.get();
        let mut info = json!({
            "session_id": self.id,
            "name": self.name,
            "shell": self.shell,
            "working_dir": self.working_dir,
            "state": self.state(),
            "env_keys": self.env.keys().collect::<Vec<_>>(),
            "secret_names": self.secrets.keys().collect::<Vec<_>>(),
            "created_at": rfc3339(self.created_at),
            "last_activity": rfc3339(self.active.get().1),
            "command_count": self.commands.get(),
            "timeout_s": self.timeout.as_secs_f64(),
            "expires_at": rfc3339(self.expires_at()),
            "idle_at": rfc3339(self.idle_at()),
            "labels": self.labels,
            "policy": self.isolation.policy,
            "policy_digest": self.isolation.digest,
            "workspace": self.workspace,
            "running_execs": self.running.get(),
            "usage": {"cpu_user_us": user_us, "cpu_system_us": system_us},
        });
        if with_isolation {
            info["isolation"] = serde_json::from_str(&self.report).unwrap_or_default();
        }
        info
    }

    /// Takes in what the init says, to its end.
    pub async fn listen(self: Rc<Self>, daemon: Rc<Daemon>) {
        let mut buffer = [0u8; 128];
        loop {
            match self.link.receive(&mut buffer).await {
                Ok(length) if length > 0 => match FromInit::decode(&buffer[..length]) {
                    Ok(message) => self.route(message),
                    Err(_) => {
                        tracing::warn!(session = %self.id, "init said what is not of its protocol");
                        break;
                    }
                },
                _ => break,
            }
        }
        if self.life.get() == Life::Live {
            tracing::warn!(session = %self.id, "init is gone, ending the session");
            // Nobody is answered before the launcher has said that nothing of the session is left; where it
            // does not, that is logged there, and tried again.
            self.destroy(&daemon, true, Reason::Unknown).await.ok();
        }
        self.changed.notify_waiters();
    }

    fn route(&self, message: FromInit) {
        let exec = |number: u64| self.trees.borrow().get(&number).cloned();
        match message {
            FromInit::Started { exec: number, pid } => {
                if let Some(exec) = exec(number) {
                    exec.inbox.borrow_mut().started = Some(pid);
                    exec.progressed.notify_waiters();
                }
            }
            FromInit::SpawnFailed { exec: number, stage, errno } => {
                if let Some(exec) = exec(number) {
                    exec.inbox.borrow_mut().failed = Some((stage, errno));
                    exec.wake.notify_one();
                }
            }
            FromInit::LeaderExited {
                exec: number,
                status,
                user_us,
                system_us,
                max_rss_kib,
                blocks_in,
                blocks_out,
                last,
            } => {
                // Where a reaper was killed, an end may be said twice.
                let new = exec(number).filter(|exec| exec.inbox.borrow().leader.is_none());
                if let Some(exec) = new {
                    exec.inbox.borrow_mut().leader = Some(LeaderEnd {
                        status,
                        user_us,
                        system_us,
                        max_rss_bytes: max_rss_kib.saturating_mul(1024),
                        read_bytes: blocks_in.saturating_mul(512),
                        written_bytes: blocks_out.saturating_mul(512),
                    });
                    let (user, system) = self.cpu_us.get();
                    self.cpu_us.set((user.saturating_add(user_us), system.saturating_add(system_us)));
                    exec.wake.notify_one();
                }
                if last {
                    self.tree_gone(number);
                }
            }
            FromInit::TreeGone { exec: number, .. } => self.tree_gone(number),
            FromInit::Signaled { request, delivered, errno } => {
                if let Some(waiter) = self.signals.borrow_mut().remove(&request) {
                    // A client that no longer waits is no error.
                    waiter.send((delivered, errno)).ok();
                }
            }
            FromInit::Destroyed { killed } => {
                self.destroyed.set(Some(killed));
                self.changed.notify_waiters();
            }
            FromInit::Ready { .. } | FromInit::Failed { .. } => {}
        }
    }

    fn tree_gone(&self, number: u64) {
        let gone = self.trees.borrow_mut().remove(&number);
        if let Some(exec) = gone {
            exec.inbox.borrow_mut().tree_gone = true;
            exec.wake.notify_one();
            exec.progressed.notify_waiters();
            self.changed.notify_waiters();
        }
    }

    /// Ends the books: every exec loses its session.
    pub fn vanish(&self, daemon: &Daemon, reason: Reason) {
        self.life.set(Life::Gone);
        let trees: Vec<_> = self.trees.borrow_mut().drain().collect();
        for (_, exec) in trees {
            exec.lose(reason);
        }
        self.signals.borrow_mut().clear();
        daemon.forget_session(self);
        self.changed.notify_waiters();
    }

    /// Sends a signal and waits for the init's answer.
    ///
    /// # Errors
    /// `None` where the init does not answer in time.
    pub async fn signal(
        &self,
        exec: u64,
        signal: i32,
        target: crate::launcher::protocol::Target,
    ) -> Option<(u32, i32)> {
        let request = self.number();
        let (sender, receiver) = oneshot::channel();
        self.signals.borrow_mut().insert(request, sender);
        self.link.tell(ToInit::Signal { request, exec, signal, target }.encode());
        let answer = timeout(KILL_BOUND, receiver).await;
        self.signals.borrow_mut().remove(&request);
        answer.ok()?.ok()
    }
}
