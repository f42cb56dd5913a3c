//! What one principal may take of what all share: connections, and memory for large answers that wait for a
//! reader.
//!
//! Small answers are bounded by the number of connections and the queue of each. A large one, as the outcome of
//! a command with much output, is made only once there is room for it here; a principal with none of them
//! waiting always has room for one, so nobody can starve the others.

use super::config::{
    LARGE_ANSWER, LARGE_QUEUE, LARGE_QUEUE_PER_PRINCIPAL, MAX_CONNECTIONS, MAX_CONNECTIONS_PER_PRINCIPAL,
};
use super::exec::Principal;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use tokio::sync::Notify;

#[derive(Default)]
struct Share {
    connections: usize,
    bytes: usize,
}

/// All shares. A principal without a connection has none.
#[derive(Default)]
pub struct Shares {
    connections: Cell<usize>,
    bytes: Cell<usize>,
    waiting: Cell<usize>,
    by: RefCell<HashMap<Principal, Share>>,
    freed: Notify,
}

/// Counts one that waits for room.
struct Waiting<'a>(&'a Cell<usize>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Shares {
    /// Takes a connection's place.
    ///
    /// # Errors
    /// Why there is none.
    pub fn connect(&self, principal: &Principal) -> Result<(), &'static str> {
        if self.connections.get() >= MAX_CONNECTIONS {
            return Err("too many connections");
        }
        let mut by = self.by.borrow_mut();
        let own = by.get(principal).map_or(0, |share| share.connections);
        if own >= MAX_CONNECTIONS_PER_PRINCIPAL {
            return Err("too many connections of one principal");
        }
        by.entry(principal.clone()).or_default().connections = own + 1;
        self.connections.set(self.connections.get() + 1);
        Ok(())
    }

    /// Gives it back; what was charged is released before.
    pub fn leave(&self, principal: &Principal) {
        self.connections.set(self.connections.get().saturating_sub(1));
        let mut by = self.by.borrow_mut();
        if let Some(share) = by.get_mut(principal) {
            share.connections = share.connections.saturating_sub(1);
            if share.connections == 0 {
                by.remove(principal);
            }
        }
    }

    fn fits(&self, principal: &Principal, size: usize) -> bool {
        let own = self.by.borrow().get(principal).map_or(0, |share| share.bytes);
        own == 0 || (own + size <= LARGE_QUEUE_PER_PRINCIPAL && self.bytes.get() + size <= LARGE_QUEUE)
    }

    /// Waits until an answer of about `size` bytes may be made, or `closed`.
    pub async fn room(&self, principal: &Principal, size: usize, closed: &Cell<bool>) {
        loop {
            let freed = self.freed.notified();
            if size <= LARGE_ANSWER || closed.get() || self.fits(principal, size) {
                return;
            }
            self.waiting.set(self.waiting.get() + 1);
            let _waiting = Waiting(&self.waiting);
            freed.await;
        }
    }

    /// Whether anybody waits for room.
    pub fn is_short(&self) -> bool {
        self.waiting.get() > 0
    }

    /// Counts an answer that waits for its reader; yields what is to be released.
    pub fn charge(&self, principal: &Principal, size: usize) -> usize {
        if size <= LARGE_ANSWER {
            return 0;
        }
        self.bytes.set(self.bytes.get() + size);
        self.by.borrow_mut().entry(principal.clone()).or_default().bytes += size;
        size
    }

    /// The answer was read, or its reader is gone.
    pub fn release(&self, principal: &Principal, charged: usize) {
        if charged > 0 {
            self.bytes.set(self.bytes.get().saturating_sub(charged));
            if let Some(share) = self.by.borrow_mut().get_mut(principal) {
                share.bytes = share.bytes.saturating_sub(charged);
            }
        }
        self.wake();
    }

    /// Has all that wait look again.
    pub fn wake(&self) {
        self.freed.notify_waiters();
    }
}
