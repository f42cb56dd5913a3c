//! `SOCK_SEQPACKET` sockets with descriptors.

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A connected pair, close-on-exec, blocking.
///
/// # Errors
/// `EMFILE` and the like.
pub fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends one packet with descriptors; blocks while the peer's queue is full.
///
/// # Errors
/// `EPIPE` where the peer is gone.
pub fn send(socket: BorrowedFd<'_>, packet: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() { &rights[..0] } else { &rights[..] };
    loop {
        match sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(packet)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.map(drop).map_err(io::Error::from),
        }
    }
}

/// What came in.
pub struct Received {
    /// Bytes of the packet; 0 is end-of-file.
    pub length: usize,
    /// Descriptors that came with it, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
    /// Whether there was no room for all of them, as where this process may have no more (`RLIMIT_NOFILE`).
    pub cut: bool,
}

/// Receives one packet without blocking; `None` if there is none.
///
/// # Errors
/// `EMSGSIZE` for a packet that does not fit, and the kernel's.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(None),
        Err(errno) => Err(errno.into()),
        Ok(message) => {
            let mut descriptors = Vec::new();
            let cut = message.flags.contains(MsgFlags::MSG_CTRUNC);
            // Of one descriptor for which there was no room none is here. Of several, who is cut short ends.
            let controls = if cut { None } else { Some(message.cmsgs()?) };
            for control in controls.into_iter().flatten() {
                if let ControlMessageOwned::ScmRights(rights) = control {
                    for descriptor in rights {
                        // SAFETY: the kernel just installed it for us, and nobody else knows it.
                        descriptors.push(unsafe { OwnedFd::from_raw_fd(descriptor) });
                    }
                }
            }
            if message.flags.contains(MsgFlags::MSG_TRUNC) {
                return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
            }
            Ok(Some(Received { length: message.bytes, descriptors, cut }))
        }
    }
}

/// Waits until one of two descriptors can be read or has ended; which of them.
///
/// # Errors
/// The kernel's.
pub fn wait_readable(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> io::Result<(bool, bool)> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut polled = [PollFd::new(a, PollFlags::POLLIN), PollFd::new(b, PollFlags::POLLIN)];
    match poll(&mut polled, PollTimeout::NONE) {
        Err(nix::errno::Errno::EINTR) => return Ok((false, false)),
        Err(errno) => return Err(errno.into()),
        Ok(_) => {}
    }
    let ready = |index: usize| polled[index].revents().is_some_and(|events| !events.is_empty());
    Ok((ready(0), ready(1)))
}
