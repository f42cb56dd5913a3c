//! Network interfaces: `ioctl(2)` on a socket, see netdevice(7).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Interface indexes that are asked for; a fresh network namespace has a handful of them.
const MOST_INDEXES: i32 = 64;

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all zeroes is a valid value of this plain struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte is left for the NUL.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// `SIOCGIFFLAGS`: the `IFF_*` flags of an interface.
///
/// # Errors
/// `ENODEV` where there is no such interface.
pub fn flags(socket: &OwnedFd, name: &str) -> io::Result<i32> {
    let mut request = request(name);
    // SAFETY: a live socket and a pointer to an initialised request, whose flags the kernel fills in.
    unsafe {
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request))?;
        Ok(i32::from(request.ifr_ifru.ifru_flags))
    }
}

/// `SIOCSIFFLAGS`.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` over the network namespace.
pub fn set_flags(socket: &OwnedFd, name: &str, flags: i32) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: a live socket and a pointer to an initialised request that the kernel only reads.
    unsafe { check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request)) }
}

/// The interfaces of the network namespace, by `SIOCGIFNAME`, which needs neither procfs nor netlink.
#[must_use]
pub fn interfaces(socket: &OwnedFd) -> Vec<String> {
    let name = |index: i32| {
        let mut request = request("");
        request.ifr_ifru.ifru_ifindex = index;
        // SAFETY: a live socket and a pointer to an initialised request, whose name the kernel fills in.
        let found = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFNAME as _, &raw mut request) };
        (found == 0).then(|| {
            let bytes = request.ifr_name.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0);
            String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()
        })
    };
    (1..=MOST_INDEXES).filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

    #[test]
    fn loopback_is_found_over_a_unix_socket_too() {
        for family in [AddressFamily::Unix, AddressFamily::Inet] {
            let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
            assert!(interfaces(&socket).contains(&"lo".to_owned()));
            assert_ne!(flags(&socket, "lo").unwrap() & libc::IFF_LOOPBACK, 0);
            assert_eq!(flags(&socket, "none-such").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        }
    }
}
