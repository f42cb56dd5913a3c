//! A `SOCK_SEQPACKET` socket to the launcher or to one init: packets go out in order, with their descriptors.
//!
//! Nothing is accepted but bytes: descriptors that a session's init would send are dropped by the kernel,
//! since no room is offered for them.

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use tokio::io::unix::AsyncFd;
use zeroize::Zeroizing;

/// Most bytes that wait for a peer that does not read.
const MAX_QUEUED: usize = 8 * 1024 * 1024;

/// Why a packet was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The other end is gone.
    #[error("peer is gone")]
    Gone,
    /// It does not read, and too much waits already.
    #[error("peer does not read")]
    Full,
}

struct Queued {
    packet: Zeroizing<Vec<u8>>,
    descriptors: Vec<Rc<OwnedFd>>,
}

#[derive(Default)]
struct Queue {
    packets: VecDeque<Queued>,
    bytes: usize,
    gone: bool,
}

/// One end of the socket.
pub struct Link {
    socket: AsyncFd<OwnedFd>,
    queue: RefCell<Queue>,
}

impl Link {
    /// Takes a connected socket over. To be called within the runtime.
    ///
    /// # Errors
    /// Where it cannot be watched.
    pub fn new(socket: OwnedFd) -> io::Result<Rc<Self>> {
        // The constructor is deprecated because `AsRawFd` alone does not promise that a descriptor stays the
        // same; an `OwnedFd` does.
        #[allow(deprecated)]
        let socket = AsyncFd::new(socket)?;
        Ok(Rc::new(Self { socket, queue: RefCell::default() }))
    }

    /// Sends the packets of one message in order, the descriptors with the first. Never waits.
    ///
    /// # Errors
    /// [`LinkError`]; then nothing of the message was taken, or the link is gone.
    pub fn send(
        self: &Rc<Self>,
        packets: Vec<Zeroizing<Vec<u8>>>,
        mut descriptors: Vec<Rc<OwnedFd>>,
    ) -> Result<(), LinkError> {
        let mut queue = self.queue.borrow_mut();
        if queue.gone {
            return Err(LinkError::Gone);
        }
        let idle = queue.packets.is_empty();
        let size: usize = packets.iter().map(|packet| packet.len()).sum();
        if queue.bytes + size > MAX_QUEUED {
            return Err(LinkError::Full);
        }
        for packet in packets {
            let descriptors = std::mem::take(&mut descriptors);
            if queue.packets.is_empty() {
                match self.send_now(&packet, &descriptors) {
                    Ok(()) => continue,
                    Err(Errno::EAGAIN) => {}
                    Err(_) => {
                        queue.gone = true;
                        return Err(LinkError::Gone);
                    }
                }
            }
            queue.bytes += packet.len();
            queue.packets.push_back(Queued { packet, descriptors });
        }
        if idle && !queue.packets.is_empty() {
            tokio::task::spawn_local(Rc::clone(self).flush());
        }
        Ok(())
    }

    /// Sends one packet without descriptors; a peer that is gone is seen by the reader of this link.
    pub fn tell(self: &Rc<Self>, packet: Vec<u8>) {
        if let Err(error) = self.send(vec![Zeroizing::new(packet)], Vec::new()) {
            tracing::debug!(%error, "packet not sent");
        }
    }

    fn send_now(&self, packet: &[u8], descriptors: &[Rc<OwnedFd>]) -> Result<(), Errno> {
        let raw: Vec<RawFd> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        loop {
            match sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(packet)], control, flags, None) {
                Err(Errno::EINTR) => {}
                other => return other.map(drop),
            }
        }
    }

    async fn flush(self: Rc<Self>) {
        loop {
            let Ok(mut guard) = self.socket.writable().await else { return };
            let mut queue = self.queue.borrow_mut();
            while let Some(front) = queue.packets.front() {
                let sent = guard
                    .try_io(|_| self.send_now(&front.packet, &front.descriptors).map_err(io::Error::from));
                match sent {
                    Ok(Ok(())) => {
                        queue.bytes -= front.packet.len();
                        queue.packets.pop_front();
                    }
                    Err(_) => break,
                    Ok(Err(_)) => {
                        *queue = Queue { gone: true, ..Queue::default() };
                        return;
                    }
                }
            }
            if queue.packets.is_empty() {
                return;
            }
        }
    }

    /// The next packet's length in `buffer`; 0 is end-of-file.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut guard = self.socket.readable().await?;
            let received = guard.try_io(|socket| {
                Ok(recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC)?)
            });
            match received {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_) => {}
            }
        }
    }
}
