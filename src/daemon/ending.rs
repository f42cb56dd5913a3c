//! The end of a session: it is over when the launcher has said that nothing of it lives, and not before.
//!
//! ```text
//! live ─(destroy, idle, lifetime, init gone)─► ending ─(launcher: ended)──► gone
//!                                                └─(bounds over)─► unproven ─(launcher: ended)─► gone
//! ```
//!
//! An unproven session keeps its name and its place among the sessions. It takes no command; the launcher is
//! asked again and again, and `session.destroy` may be called again.

use super::Daemon;
use super::config::{GRACE, KILL_BOUND};
use super::exec::{Principal, Reason, Stop};
use super::session::Session;
use super::wire::{Code, WireError};
use crate::ids::SessionId;
use crate::launcher::protocol::{Stage, ToInit, ToLauncher};
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::timeout;

/// How long the init's last word may take when the launcher has said that it has ended.
const LAST_WORD: Duration = Duration::from_millis(100);
/// Most sessions whose late end is remembered for who was told that it is not proven.
const MAX_LATE: usize = 256;

/// What the launcher says of a session.
#[derive(Default)]
pub struct Slot {
    /// Process id of the init.
    pub pid: Cell<i32>,
    /// Why none was made.
    pub failed: Cell<Option<(Stage, i32)>>,
    /// The init and all of its are reaped; how many the launcher killed.
    pub ended: Cell<Option<u32>>,
    /// Said at each change.
    pub changed: Notify,
}

impl Slot {
    /// Waits until `ended` or the bound; whether it is.
    pub async fn wait_ended(&self, bound: Duration) -> bool {
        let ended = async {
            loop {
                let changed = self.changed.notified();
                if self.ended.get().is_some() {
                    return;
                }
                changed.await;
            }
        };
        timeout(bound, ended).await.is_ok()
    }
}

/// Where a session is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Takes execs.
    Live,
    /// Is being destroyed.
    Ending,
    /// Should be gone, but the launcher has not confirmed it within its bounds.
    Unproven,
    /// Nothing of it is left.
    Gone,
}

/// What `session.destroy` found.
#[derive(Debug, Clone, Copy, Default)]
pub struct Destroyed {
    /// Processes that were sent SIGKILL.
    pub killed: u32,
    /// Whether SIGTERM, or the init, was not enough.
    pub escalated: bool,
}

/// Sessions that ended after their client was told that their end is not proven: what came of them, until it
/// asks again.
#[derive(Default)]
pub struct Late(RefCell<VecDeque<(SessionId, Principal, Destroyed)>>);

impl Late {
    fn keep(&self, session: &Session) {
        let mut late = self.0.borrow_mut();
        if late.len() >= MAX_LATE {
            late.pop_front();
        }
        late.push_back((session.id, Rc::clone(&session.principal), session.result.get()));
    }

    /// What came of that principal's session of that name. It is told once.
    pub fn take(&self, principal: &Principal, id: SessionId) -> Option<Destroyed> {
        let mut late = self.0.borrow_mut();
        let index = late.iter().position(|(session, owner, _)| *session == id && owner == principal)?;
        late.remove(index).map(|(_, _, destroyed)| destroyed)
    }
}

impl Session {
    async fn until(&self, bound: Duration, condition: impl Fn(&Self) -> bool) -> bool {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if condition(self) {
                    return;
                }
                changed.await;
            }
        };
        timeout(bound, wait).await.is_ok()
    }

    /// Ends the session; returns when nothing of it lives. A second call waits for the first.
    ///
    /// # Errors
    /// `INTERNAL_ERROR` where the launcher has not confirmed the end within its bounds: something of the
    /// session may live. It is tried again from then on, and at the next call.
    pub async fn destroy(
        self: &Rc<Self>,
        daemon: &Rc<Daemon>,
        force: bool,
        reason: Reason,
    ) -> Result<Destroyed, WireError> {
        match self.life.get() {
            Life::Live => self.end(daemon, force, reason).await,
            Life::Ending => {
                self.until(GRACE + 3 * KILL_BOUND, |session| session.life.get() != Life::Ending).await;
            }
            Life::Unproven => {
                daemon.tell_launcher(&ToLauncher::Kill { session: self.number });
                self.until(KILL_BOUND, |session| session.life.get() == Life::Gone).await;
                // Where it is over, this caller is told now.
                daemon.late.take(&self.principal, self.id);
            }
            Life::Gone => {}
        }
        // Without a launcher the books are closed too, and nobody has proven anything.
        let is_proven = self.life.get() == Life::Gone && !daemon.launcher_gone.get();
        if is_proven { Ok(self.result.get()) } else { Err(self.unproven()) }
    }

    fn unproven(&self) -> WireError {
        let message = "the launcher has not confirmed the end of the session, so some of its processes may \
                       live; the session takes no more commands and its end is tried again: call \
                       session.destroy again, and if that goes on failing restart the daemon";
        WireError::new(Code::InternalError, message).with(json!({"session_id": self.id, "proven": false}))
    }

    async fn end(self: &Rc<Self>, daemon: &Rc<Daemon>, force: bool, reason: Reason) {
        self.life.set(Life::Ending);
        let execs: Vec<_> = self.trees.borrow().values().cloned().collect();
        for exec in &execs {
            exec.stop(Stop { reason, signal: 0, grace: 4 * KILL_BOUND });
        }
        if !force && !execs.is_empty() {
            self.link.tell(ToInit::Terminate.encode());
            self.until(GRACE, |session| session.trees.borrow().is_empty()).await;
        }
        self.link.tell(ToInit::Destroy.encode());
        if self.slot.wait_ended(KILL_BOUND).await {
            return self.over(daemon, reason, force, false).await;
        }
        tracing::warn!(session = %self.id, "init did not end in time, the launcher ends it");
        daemon.tell_launcher(&ToLauncher::Kill { session: self.number });
        if self.slot.wait_ended(KILL_BOUND).await {
            return self.over(daemon, reason, force, true).await;
        }
        tracing::error!(session = %self.id, "launcher did not confirm the end of the session, trying on");
        self.life.set(Life::Unproven);
        self.changed.notify_waiters();
        let (session, daemon) = (Rc::clone(self), Rc::clone(daemon));
        tokio::task::spawn_local(async move {
            while !session.slot.wait_ended(KILL_BOUND).await {
                daemon.tell_launcher(&ToLauncher::Kill { session: session.number });
            }
            session.over(&daemon, reason, force, true).await;
        });
    }

    /// The launcher has said that nothing is left: closes the books.
    async fn over(&self, daemon: &Daemon, reason: Reason, force: bool, escalated: bool) {
        // The init's last word was sent before it ended, but may not have been read.
        self.until(LAST_WORD, |session| session.destroyed.get().is_some()).await;
        let killed = self.destroyed.get().unwrap_or(0).saturating_add(self.slot.ended.get().unwrap_or(0));
        self.result.set(Destroyed { killed, escalated: escalated || (!force && killed > 0) });
        if self.life.get() == Life::Unproven {
            daemon.late.keep(self);
        }
        let execs: Vec<_> = self.trees.borrow().values().cloned().collect();
        self.vanish(daemon, reason);
        for exec in &execs {
            exec.finished().await;
        }
        tracing::info!(session = %self.id, killed, "session destroyed");
    }
}
