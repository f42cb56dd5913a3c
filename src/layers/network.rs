//! The loopback interface: the one thing that a network namespace of a session's own has.

use crate::sys;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::io;

/// Brings `lo` up and reads back that it is.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` over the network namespace, `ENETDOWN` where it did not come up.
pub fn loopback_up() -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let flags = sys::net::flags(&socket, "lo")?;
    sys::net::set_flags(&socket, "lo", flags | libc::IFF_UP)?;
    if sys::net::flags(&socket, "lo")? & libc::IFF_UP == 0 {
        return Err(io::Error::from_raw_os_error(libc::ENETDOWN));
    }
    Ok(())
}
