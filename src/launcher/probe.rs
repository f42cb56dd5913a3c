//! The process that evidence is read from. Started as a command of a session, it tries what it should not be able to
//! do, says what came of it in one write (`key=value` lines, then `.`), and stays to be looked at until its standard
//! input ends. Nothing that it tries changes it: what could is tried in a child.

use crate::sys::{attempt, landlock, net};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::UdpSocket;

/// The program; yields its exit code.
#[must_use]
pub fn run() -> i32 {
    let mut out = io::stdout();
    let written = out.write_all(say().as_bytes()).and_then(|()| out.flush());
    i32::from(written.is_err() || io::copy(&mut io::stdin(), &mut io::sink()).is_err())
}

/// Tries everything and yields what there is to say of it, for `evidence::Witnessed::parse`.
#[must_use]
pub fn say() -> String {
    let mut said = String::new();
    for (key, value) in attempts() {
        // Writing to a string does not fail.
        writeln!(said, "{key}={value}").ok();
    }
    let (all, up) = interfaces();
    writeln!(said, "interfaces={all}\nup={up}\n.").ok();
    said
}

fn attempts() -> [(&'static str, i32); 16] {
    let directory = libc::O_RDONLY | libc::O_DIRECTORY;
    [
        ("landlock_abi", landlock::abi()),
        ("landlock_room", attempt::landlock_room()),
        ("read_root", attempt::open(c"/", directory)),
        ("read_proc", attempt::open(c"/proc", directory)),
        ("write_comm", attempt::open(c"/proc/self/comm", libc::O_WRONLY)),
        ("write_null", attempt::open(c"/dev/null", libc::O_WRONLY)),
        ("ioctl_null", attempt::device_ioctl(c"/dev/null")),
        ("write_tmp", attempt::open(c"/tmp", libc::O_RDWR | libc::O_TMPFILE)),
        ("root_of_1", attempt::open(c"/proc/1/root", directory)),
        ("clone3", attempt::clone3()),
        ("io_uring", attempt::io_uring()),
        ("keyctl", attempt::keyctl()),
        ("unshare", attempt::user_namespace()),
        ("mount", attempt::mount()),
        ("af_alg", attempt::socket(libc::AF_ALG, libc::SOCK_SEQPACKET)),
        ("route", route()),
    ]
}

/// Asks for a route to an address that is nobody's (RFC 5737), by a datagram socket, which sends nothing.
pub(super) fn route() -> i32 {
    match UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect("192.0.2.1:9")) {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    }
}

/// The interfaces, and those of them that are up.
pub(super) fn interfaces() -> (String, String) {
    let Ok(socket) = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None) else {
        return (String::new(), String::new());
    };
    let all = net::interfaces(&socket);
    let is_up = |name: &&String| net::flags(&socket, name).is_ok_and(|flags| flags & libc::IFF_UP != 0);
    let up: Vec<&str> = all.iter().filter(is_up).map(String::as_str).collect();
    (all.join(","), up.join(","))
}
