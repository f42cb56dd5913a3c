//! One connection: lines in, lines out, both bounded.

use super::Daemon;
use super::config::{MAX_IN_FLIGHT, MAX_LINE, STALLED, WRITE_QUEUE};
use super::dispatch::{self, Call, invalid};
use super::exec::{Exec, Principal, Reason, Stop};
use super::shares::Shares;
use super::wire::types::OnDisconnect;
use super::wire::{self, Code, Id, WireError};
use std::cell::{Cell, RefCell};
use std::collections::{HashSet, VecDeque};
use std::os::fd::{AsFd, AsRawFd};
use std::rc::{Rc, Weak};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use zeroize::Zeroizing;

/// First size of the line buffer.
const FIRST_BUFFER: usize = 16 * 1024;
/// Most lines that are taken, and most bytes of them, before everybody else has a turn.
const TURN_LINES: usize = 16;
const TURN_BYTES: usize = 64 * 1024;
/// Most blank lines in a row; some clients send a few to keep a connection alive.
const MAX_BLANK: usize = 1024;
/// How often a half-closed connection is looked at.
const HALF_CLOSED: Duration = Duration::from_millis(100);
/// How long a client that is turned away is listened to.
const FAREWELL: Duration = Duration::from_secs(1);
/// Pause after an `accept` that failed, as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What goes out to one client.
pub struct Outbox {
    /// Names the connection within the daemon.
    pub number: u64,
    socket: UnixStream,
    principal: Principal,
    shares: Rc<Shares>,
    /// Lines, and what each is charged with.
    queue: RefCell<VecDeque<(Vec<u8>, usize)>>,
    charged: Cell<usize>,
    sent_of_first: Cell<usize>,
    bytes: Cell<usize>,
    filled: Notify,
    drained: Notify,
    closed: Cell<bool>,
    in_flight: RefCell<HashSet<Id>>,
    anonymous: Cell<usize>,
    owned: RefCell<Vec<Weak<Exec>>>,
}

impl Outbox {
    /// Whether the client is gone.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Waits until the queue has room, or the client is gone.
    pub async fn room(&self) {
        loop {
            let drained = self.drained.notified();
            if self.bytes.get() < WRITE_QUEUE || self.closed.get() {
                return;
            }
            drained.await;
        }
    }

    /// Likewise, and until an answer of about `size` bytes fits into what the principal and all may have queued.
    pub async fn room_for(&self, size: usize) {
        self.room().await;
        self.shares.room(&self.principal, size, &self.closed).await;
    }

    /// Sends a line: at once where nothing waits before it.
    pub fn send(&self, mut line: Vec<u8>) {
        self.send_from(&mut line);
    }

    /// Likewise; where all of it went at once, the emptied allocation stays with the caller.
    pub fn send_from(&self, line: &mut Vec<u8>) {
        if self.closed.get() {
            return line.clear();
        }
        let mut sent = 0;
        if self.bytes.get() == 0 {
            match self.socket.try_write(line) {
                Ok(length) => sent = length,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return self.close(),
            }
        }
        if sent < line.len() {
            if self.bytes.get() == 0 {
                self.sent_of_first.set(sent);
            }
            self.bytes.set(self.bytes.get() + line.len() - sent);
            let charge = self.shares.charge(&self.principal, line.len());
            if charge > 0 {
                line.shrink_to_fit();
            }
            self.charged.set(self.charged.get() + charge);
            self.queue.borrow_mut().push_back((std::mem::take(line), charge));
            self.filled.notify_one();
        }
        line.clear();
    }

    fn close(&self) {
        self.closed.set(true);
        self.queue.borrow_mut().clear();
        self.bytes.set(0);
        self.shares.release(&self.principal, self.charged.replace(0));
        self.drained.notify_waiters();
        self.filled.notify_one();
    }

    /// Writes what waits, until the connection closes.
    async fn write(&self) {
        while !self.closed.get() {
            if self.bytes.get() == 0 {
                self.filled.notified().await;
                continue;
            }
            match tokio::time::timeout(STALLED, self.socket.writable()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return self.close(),
                Err(_) if self.charged.get() > 0 && self.shares.is_short() => {
                    tracing::warn!(principal = %self.principal, "a client that reads nothing is cut off");
                    return self.close();
                }
                Err(_) => continue,
            }
            let result = {
                let queue = self.queue.borrow();
                let Some((first, _)) = queue.front() else { continue };
                self.socket.try_write(&first[self.sent_of_first.get()..])
            };
            match result {
                Ok(length) => {
                    self.bytes.set(self.bytes.get().saturating_sub(length));
                    let at = self.sent_of_first.get() + length;
                    let mut queue = self.queue.borrow_mut();
                    if let Some((_, charge)) = queue.pop_front_if(|(first, _)| at >= first.len()) {
                        self.charged.set(self.charged.get().saturating_sub(charge));
                        self.shares.release(&self.principal, charge);
                        self.sent_of_first.set(0);
                    } else {
                        self.sent_of_first.set(at);
                    }
                    self.drained.notify_waiters();
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return self.close(),
            }
        }
    }

    /// A request is answered.
    pub fn done(&self, id: Option<&Id>) {
        match id {
            Some(id) => {
                self.in_flight.borrow_mut().remove(id);
            }
            None => self.anonymous.set(self.anonymous.get().saturating_sub(1)),
        }
    }

    fn under_way(&self) -> usize {
        self.in_flight.borrow().len() + self.anonymous.get()
    }

    /// Whether a request is not answered, or an answer not taken.
    pub fn owes(&self) -> bool {
        self.under_way() > 0 || self.bytes.get() > 0
    }

    /// Remembers an exec whose fate hangs on this connection.
    pub fn own(&self, exec: &Rc<Exec>) {
        if exec.rules.on_disconnect == OnDisconnect::Keep {
            return;
        }
        let mut owned = self.owned.borrow_mut();
        owned.retain(|exec| exec.upgrade().is_some_and(|exec| !exec.has_ended()));
        owned.push(Rc::downgrade(exec));
    }

    fn disown(&self) {
        for exec in self.owned.borrow_mut().drain(..).filter_map(|exec| exec.upgrade()) {
            if exec.has_ended() {
                continue;
            }
            let stop = Stop { reason: Reason::ClientGone, signal: libc::SIGTERM, grace: exec.rules.grace };
            match exec.rules.on_disconnect {
                OnDisconnect::Keep => {}
                OnDisconnect::Kill => exec.stop(stop),
                OnDisconnect::Grace(seconds) => {
                    tokio::task::spawn_local(async move {
                        tokio::select! {
                            () = exec.finished() => {}
                            () = tokio::time::sleep(Duration::from_secs_f64(seconds)) => {
                                if exec.followers.get() == 0 {
                                    exec.stop(stop);
                                }
                            }
                        }
                    });
                }
            }
        }
    }
}

/// Takes connections for ever.
pub async fn accept(daemon: &Rc<Daemon>, listener: &UnixListener) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => admit(daemon, socket),
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn admit(daemon: &Rc<Daemon>, socket: UnixStream) {
    let credentials = match socket.peer_cred() {
        Ok(credentials) => credentials,
        Err(error) => {
            tracing::warn!(%error, "peer credentials not read");
            return;
        }
    };
    let principal: Principal = format!("uid:{}", credentials.uid()).into();
    let is_of_session = match (daemon.config.peer_check, credentials.pid()) {
        (Some(check), Some(pid)) => check.may_be_of_session(pid),
        (check, _) => check.is_some(),
    };
    let refusal = if is_of_session {
        Some(WireError::new(Code::AuthFailed, "peer descends from a session"))
    } else {
        daemon.shares.connect(&principal).err().map(|why| WireError::new(Code::TooManyRequests, why))
    };
    if let Some(error) = refusal {
        tracing::warn!(uid = credentials.uid(), code = error.code.name(), "connection refused");
        // What does not fit its empty queue at once is lost with the connection.
        socket.try_write(&wire::encode_error(&Id::Null, false, &error)).ok();
        return;
    }
    daemon.next_connection.set(daemon.next_connection.get() + 1);
    let outbox = Rc::new(Outbox {
        number: daemon.next_connection.get(),
        socket,
        principal: Rc::clone(&principal),
        shares: Rc::clone(&daemon.shares),
        queue: RefCell::default(),
        charged: Cell::new(0),
        sent_of_first: Cell::new(0),
        bytes: Cell::new(0),
        filled: Notify::new(),
        drained: Notify::new(),
        closed: Cell::new(false),
        in_flight: RefCell::default(),
        anonymous: Cell::new(0),
        owned: RefCell::default(),
    });
    daemon.connections.borrow_mut().insert(outbox.number, Rc::downgrade(&outbox));
    let daemon = Rc::clone(daemon);
    tokio::task::spawn_local(async move {
        tokio::select! {
            () = read(&daemon, &outbox, &principal) => {}
            () = outbox.write() => {}
        }
        // A last answer may still be on its way.
        tokio::time::timeout(HALF_CLOSED, async {
            if outbox.bytes.get() > 0 {
                tokio::select! {
                    () = outbox.write() => {}
                    () = async { while outbox.bytes.get() > 0 { outbox.drained.notified().await } } => {}
                }
            }
        })
        .await
        .ok();
        outbox.close();
        outbox.disown();
        daemon.connections.borrow_mut().remove(&outbox.number);
        daemon.shares.leave(&principal);
    });
}

/// A buffer of which every part is wiped when it is given up.
struct Lines {
    buffer: Zeroizing<Vec<u8>>,
    /// Where the first line that was not taken begins.
    start: usize,
    filled: usize,
    searched: usize,
}

impl Lines {
    fn new() -> Self {
        Self { buffer: Zeroizing::new(vec![0; FIRST_BUFFER]), start: 0, filled: 0, searched: 0 }
    }

    /// Bytes that were read and not taken.
    fn pending(&self) -> usize {
        self.filled - self.start
    }

    /// Room to read into, behind what is left; grows up to a line's bound.
    fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.filled, 0);
            let left = self.pending();
            crate::sys::memory::wipe(&mut self.buffer[left..self.filled]);
            self.searched -= self.start;
            (self.start, self.filled) = (0, left);
        }
        if self.filled == self.buffer.len() {
            let size = (self.buffer.len() * 2).min(MAX_LINE + 1);
            let mut larger = Zeroizing::new(vec![0; size]);
            larger[..self.filled].copy_from_slice(&self.buffer[..self.filled]);
            self.buffer = larger;
        } else if self.filled == 0 && self.buffer.len() > FIRST_BUFFER {
            *self = Self::new();
        }
        &mut self.buffer[self.filled..]
    }

    /// Length of the first line, if all of it is there.
    fn first(&mut self) -> Option<usize> {
        let found = self.buffer[self.searched..self.filled].iter().position(|byte| *byte == b'\n');
        self.searched += found.unwrap_or(self.filled - self.searched);
        found.map(|_| self.searched - self.start)
    }

    /// Gives up a line of that length and what ended it.
    fn take(&mut self, length: usize) {
        let end = self.start + length + 1;
        crate::sys::memory::wipe(&mut self.buffer[self.start..end]);
        self.start = end;
        self.searched = end;
    }
}

async fn read(daemon: &Rc<Daemon>, outbox: &Rc<Outbox>, principal: &Principal) {
    let mut lines = Lines::new();
    let mut blank = 0;
    loop {
        // Neither a queue with room nor a socket with data ever waits: without these turns a flood is all that runs.
        let mut turn = (0, 0);
        while let Some(length) = lines.first() {
            if length > MAX_LINE {
                break;
            }
            let line = &lines.buffer[lines.start..lines.start + length];
            if line.iter().all(u8::is_ascii_whitespace) {
                blank += 1;
            } else {
                blank = 0;
                take_line(daemon, outbox, principal, line);
            }
            lines.take(length);
            if blank > MAX_BLANK {
                let message = format!("more than {MAX_BLANK} blank lines in a row");
                return farewell(outbox, &mut lines, Code::InvalidParams, message).await;
            }
            outbox.room().await;
            turn = (turn.0 + 1, turn.1 + length);
            if turn.0 >= TURN_LINES || turn.1 >= TURN_BYTES {
                turn = (0, 0);
                tokio::task::yield_now().await;
            }
        }
        if lines.pending() > MAX_LINE {
            let message = format!("a request is at most {MAX_LINE} bytes");
            return farewell(outbox, &mut lines, Code::RequestTooLarge, message).await;
        }
        tokio::task::yield_now().await;
        if outbox.socket.readable().await.is_err() {
            return;
        }
        match outbox.socket.try_read(lines.room()) {
            Ok(0) => return half_closed(outbox).await,
            Ok(length) => lines.filled += length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Says why the connection ends, to no request in particular.
async fn farewell(outbox: &Outbox, lines: &mut Lines, code: Code, message: String) {
    outbox.send(wire::encode_error(&Id::Null, false, &WireError::new(code, message)));
    tokio::time::timeout(FAREWELL, dismiss(outbox, lines)).await.ok();
}

/// Says end-of-file, and reads away what still comes: a close with unread bytes would take the answer with it.
async fn dismiss(outbox: &Outbox, lines: &mut Lines) {
    loop {
        let drained = outbox.drained.notified();
        if outbox.bytes.get() == 0 {
            break;
        }
        drained.await;
    }
    // A client that is gone needs no end-of-file.
    nix::sys::socket::shutdown(outbox.socket.as_raw_fd(), nix::sys::socket::Shutdown::Write).ok();
    loop {
        if outbox.socket.readable().await.is_err() {
            return;
        }
        match outbox.socket.try_read(&mut lines.buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(1..) => tokio::task::yield_now().await,
            _ => return,
        }
    }
}

/// The client says no more; where it only closed its writing half, it still wants its answers.
async fn half_closed(outbox: &Outbox) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    while outbox.owes() {
        let mut polled = [PollFd::new(outbox.socket.as_fd(), PollFlags::empty())];
        let gone = match poll(&mut polled, PollTimeout::ZERO) {
            Ok(_) => polled[0]
                .revents()
                .is_some_and(|events| events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR)),
            Err(_) => true,
        };
        if gone {
            return;
        }
        tokio::time::sleep(HALF_CLOSED).await;
    }
}

fn take_line(daemon: &Rc<Daemon>, outbox: &Rc<Outbox>, principal: &Principal, line: &[u8]) {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let request = match wire::decode(line) {
        Ok(request) => request,
        Err(bad) => return outbox.send(wire::encode_error(&bad.id, bad.rpc, &bad.error)),
    };
    let refuse = |code, message: &str| {
        if let Some(id) = &request.id {
            outbox.send(wire::encode_error(id, request.rpc, &WireError::new(code, message)));
        }
    };
    if outbox.under_way() >= MAX_IN_FLIGHT {
        return refuse(Code::TooManyRequests, "too many requests in flight on this connection");
    }
    match &request.id {
        Some(id) => {
            if !outbox.in_flight.borrow_mut().insert(id.clone()) {
                let error = invalid("id", "already in flight");
                return outbox.send(wire::encode_error(id, request.rpc, &error));
            }
        }
        None => outbox.anonymous.set(outbox.anonymous.get() + 1),
    }
    let call = Call {
        daemon: Rc::clone(daemon),
        outbox: Rc::clone(outbox),
        principal: Rc::clone(principal),
        id: request.id,
        rpc: request.rpc,
    };
    tokio::task::spawn_local(dispatch::handle(call, request.method, request.params));
}
