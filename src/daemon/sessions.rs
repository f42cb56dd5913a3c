//! The books of all sessions and execs: who may see which, what is kept for how long, what is due.

use super::config::{RETAINED_EXECS, RETENTION};
use super::ending::Life;
use super::exec::{Exec, Principal, Reason};
use super::session::Session;
use super::wire::{Code, WireError};
use super::{Daemon, sweep};
use crate::ids::{ExecId, SessionId};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How often deadlines of sessions and retention are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Most ended execs of which is known that they were there.
const MAX_EXPIRED: usize = 16 * 1024;
/// Most ended execs that are kept in all.
const MAX_ENDED: usize = 16 * 1024;
/// How long before its end `expiring` is said.
const WARNING: Duration = Duration::from_secs(60);

impl Daemon {
    /// A session of that principal that takes requests.
    ///
    /// # Errors
    /// `SESSION_NOT_FOUND`, the same for another's as for none.
    pub fn session(&self, principal: &Principal, id: &str) -> Result<Rc<Session>, WireError> {
        SessionId::parse(id)
            .and_then(|id| self.sessions.borrow().get(&id).cloned())
            .filter(|session| session.principal == *principal && session.life.get() != Life::Gone)
            .ok_or_else(|| WireError::new(Code::SessionNotFound, "no such session"))
    }

    /// An exec of that principal.
    ///
    /// # Errors
    /// `EXEC_NOT_FOUND`, or `EXEC_EXPIRED` for one that is no longer kept.
    pub fn exec(&self, principal: &Principal, id: &str) -> Result<Rc<Exec>, WireError> {
        let id = ExecId::parse(id);
        let found = id.and_then(|id| self.execs.borrow().get(&id).cloned());
        if let Some(exec) = found.filter(|exec| exec.principal == *principal) {
            return Ok(exec);
        }
        if id.is_some_and(|id| self.expired.borrow().1.get(&id) == Some(principal)) {
            return Err(WireError::new(Code::ExecExpired, "the exec's record is no longer kept"));
        }
        Err(WireError::new(Code::ExecNotFound, "no such exec"))
    }

    /// Takes a session off the books.
    pub fn forget_session(&self, session: &Session) {
        self.sessions.borrow_mut().remove(&session.id);
    }

    /// Puts an exec that has ended among those that are kept for a while.
    pub fn exec_ended(&self, exec: &Rc<Exec>) {
        self.account(exec);
        let session = self.sessions.borrow().get(&exec.session).cloned();
        if let Some(session) = session {
            session.running.set(session.running.get().saturating_sub(1));
            session.touch();
        }
        self.ended.borrow_mut().push_back(Rc::clone(exec));
        let kept = exec.kept.clone();
        kept.borrow_mut().push_back(exec.id);
        if kept.borrow().len() > RETAINED_EXECS {
            let oldest = kept.borrow_mut().pop_front();
            if let Some(oldest) = oldest {
                self.expire(oldest);
            }
        }
        if self.ended.borrow().len() > MAX_ENDED {
            let oldest = self.ended.borrow().front().map(|exec| exec.id);
            if let Some(oldest) = oldest {
                self.expire(oldest);
            }
        }
    }

    fn expire(&self, id: ExecId) {
        let Some(exec) = self.execs.borrow_mut().remove(&id) else { return };
        self.release(&exec);
        let mut ended = self.ended.borrow_mut();
        if let Some(index) = ended.iter().position(|exec| exec.id == id) {
            ended.remove(index);
        }
        let (order, known) = &mut *self.expired.borrow_mut();
        order.push_back(id);
        known.insert(id, Rc::clone(&exec.principal));
        if order.len() > MAX_EXPIRED
            && let Some(oldest) = order.pop_front()
        {
            known.remove(&oldest);
        }
    }

    /// Gives up the oldest ended exec that keeps output; whether there was one.
    fn expire_oldest(&self, principal: Option<&Principal>) -> bool {
        let oldest = self
            .ended
            .borrow()
            .iter()
            .find(|exec| {
                principal.is_none_or(|principal| exec.principal == *principal) && exec.accounted.get() > 0
            })
            .map(|exec| exec.id);
        oldest.map(|id| self.expire(id)).is_some()
    }

    fn release(&self, exec: &Exec) {
        let was = exec.accounted.replace(0);
        self.retained_total.set(self.retained_total.get().saturating_sub(was));
        let mut retained = self.retained.borrow_mut();
        if let Some(own) = retained.get_mut(&exec.principal) {
            *own = own.saturating_sub(was);
            if *own == 0 {
                retained.remove(&exec.principal);
            }
        }
    }

    /// Counts what an exec keeps, and makes room where it is too much: ended execs go first, then its own past.
    pub fn account(&self, exec: &Exec) {
        self.release(exec);
        let now = exec.retained();
        exec.accounted.set(now);
        self.retained_total.set(self.retained_total.get() + now);
        *self.retained.borrow_mut().entry(Rc::clone(&exec.principal)).or_insert(0) += now;
        let own = || self.retained.borrow().get(&exec.principal).copied().unwrap_or(0);
        while own() > self.config.retained_per_principal {
            if !self.expire_oldest(Some(&exec.principal)) {
                self.shrink(exec);
                break;
            }
        }
        while self.retained_total.get() > self.config.retained_total {
            if !self.expire_oldest(None) {
                self.shrink(exec);
                break;
            }
        }
    }

    fn shrink(&self, exec: &Exec) {
        for ring in exec.output.borrow_mut().iter_mut() {
            let half = ring.retained() / 2;
            ring.evict_to(half);
        }
        let (was, now) = (exec.accounted.get(), exec.retained());
        let freed = was.saturating_sub(now);
        exec.accounted.set(now);
        self.retained_total.set(self.retained_total.get().saturating_sub(freed));
        if let Some(own) = self.retained.borrow_mut().get_mut(&exec.principal) {
            *own = own.saturating_sub(freed);
        }
    }

    /// Ends every session at once.
    pub async fn end_all(self: &Rc<Self>) {
        let sessions: Vec<_> = self.sessions.borrow().values().cloned().collect();
        let mut ends = tokio::task::JoinSet::new();
        for session in sessions {
            let daemon = Rc::clone(self);
            ends.spawn_local(async move {
                // Logged there; the launcher ends what is left when this process is gone.
                session.destroy(&daemon, false, Reason::DaemonShutdown).await.ok();
            });
        }
        while ends.join_next().await.is_some() {}
    }

    fn tick(self: &Rc<Self>) {
        let now = Instant::now();
        self.rates.tidy(now);
        let sessions: Vec<_> = self.sessions.borrow().values().cloned().collect();
        for session in sessions {
            if session.life.get() != Life::Live {
                continue;
            }
            if session.running.get() > 0 {
                session.touch();
            }
            let dies_at = session.born.get() + session.ttl;
            let idle_at = session.active.get().0 + session.idle_timeout;
            if now >= dies_at || now >= idle_at {
                tracing::info!(session = %session.id, idle = now < dies_at, "session is at its end");
                let daemon = Rc::clone(self);
                tokio::task::spawn_local(async move {
                    // Logged there, and tried again.
                    session.destroy(&daemon, false, Reason::SessionDestroyed).await.ok();
                });
            } else if dies_at - now < WARNING.min(session.ttl / 10) && !session.warned.replace(true) {
                for exec in session.trees.borrow().values() {
                    exec.expiring.set(Some(session.expires_at()));
                    exec.changed.notify_waiters();
                }
            }
        }
        loop {
            let due = self.ended.borrow().front().and_then(|exec| {
                let old = exec.end.borrow().as_ref().is_none_or(|end| now >= end.at + RETENTION);
                old.then_some(exec.id)
            });
            match due {
                Some(id) => self.expire(id),
                None => return,
            }
        }
    }
}

/// Looks after deadlines for as long as the daemon lives.
pub async fn keep_house(daemon: Rc<Daemon>) {
    let ticks = async {
        loop {
            tokio::time::sleep(TICK).await;
            daemon.tick();
        }
    };
    tokio::join!(ticks, sweep(&daemon));
}
