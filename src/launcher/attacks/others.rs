//! Attacks on processes, namespaces, sockets and credentials.

use super::{Bait, errno};
use crate::launcher::{probe, protocol};
use crate::sys::{attempt, clone, privilege, process, raw};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;

fn of_nix<T>(result: nix::Result<T>) -> i32 {
    result.err().map_or(0, |errno| errno as i32)
}

/// Answers with `found` where something was found, else 0: the attack has succeeded.
fn nothing(found: bool, answer: i32) -> i32 {
    if found { 0 } else { answer }
}

/// When a process that can be seen started, in clock ticks: field 22 of proc_pid_stat(5).
pub fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Whether the number that the supervisor has outside is the supervisor here too.
fn is_seen(bait: &Bait) -> bool {
    started(bait.supervisor) == Some(bait.started)
}

pub fn see_supervisor(bait: &Bait) -> i32 {
    nothing(is_seen(bait), libc::ESRCH)
}

pub fn signal_supervisor(bait: &Bait) -> i32 {
    if is_seen(bait) { errno(process::kill(bait.supervisor, 0)) } else { libc::ESRCH }
}

/// Reads a file below the supervisor's entry in `/proc`.
pub fn of_supervisor(bait: &Bait, name: &str) -> i32 {
    if is_seen(bait) { super::files::read(&format!("/proc/{}/{name}", bait.supervisor)) } else { libc::ESRCH }
}

/// Tries something on the process that started this command: the parent of the suite, whose child this is.
pub fn with_watcher(work: fn(i32) -> i32) -> i32 {
    match crate::sys::tree::parent_of(nix::unistd::getppid().as_raw()) {
        Some(watcher) if watcher > 0 => work(watcher),
        _ => libc::ESRCH,
    }
}

pub fn signal_child() -> i32 {
    let ended = attempt::in_child_within(2, || {
        process::kill(nix::unistd::getpid().as_raw(), libc::SIGKILL).ok();
        0
    });
    if ended == attempt::SIGNAL + libc::SIGKILL { 0 } else { libc::EIO }
}

pub fn core_files() -> i32 {
    of_nix(setrlimit(Resource::RLIMIT_CORE, 1, 1))
}

pub fn clone_user_namespace() -> i32 {
    match clone::fork_into(crate::plan::Namespaces::USER) {
        Ok(0) => raw::exit(0),
        Ok(_) => 0,
        Err(errno) => errno,
    }
}

pub fn chroot() -> i32 {
    of_nix(nix::unistd::chroot("/"))
}

/// Whether a mount is there that a session's root has no place for.
pub fn host_mounts() -> i32 {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let places =
        ["/boot", "/home", "/root", "/sys", "/sys/fs/cgroup", "/var", "/run/user", "/sys/kernel/security"];
    let found = mounts.lines().filter_map(|line| line.split(' ').nth(4)).any(|at| places.contains(&at));
    nothing(found || mounts.is_empty(), libc::ENODATA)
}

pub fn start_program() -> i32 {
    match std::process::Command::new("/bin/sh").args(["-c", "exit 0"]).status() {
        Ok(status) if status.success() => 0,
        Ok(_) => libc::EIO,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    }
}

fn echo(mut one: impl Write, mut other: impl Read) -> std::io::Result<()> {
    one.write_all(b"x")?;
    other.read_exact(&mut [0u8; 1])
}

pub fn socket_pair() -> i32 {
    errno(UnixStream::pair().and_then(|(one, other)| echo(one, other)))
}

pub fn own_loopback() -> i32 {
    let talked = TcpListener::bind("127.0.0.1:0").and_then(|listener| {
        let one = TcpStream::connect(listener.local_addr()?)?;
        let (other, _) = listener.accept()?;
        echo(one, other)
    });
    errno(talked)
}

pub fn connect(port: u16) -> i32 {
    errno(TcpStream::connect(("127.0.0.1", port)))
}

pub fn connect_abstract(name: &str) -> i32 {
    errno(SocketAddr::from_abstract_name(name).and_then(|at| UnixStream::connect_addr(&at)))
}

pub fn connect_unix(path: &Path) -> i32 {
    errno(UnixStream::connect(path))
}

/// Whether there is an interface beside the loopback: `ENODEV` where there is none, `ENOSYS` where no socket is to be
/// had that could be asked.
pub fn interface() -> i32 {
    let (all, _) = probe::interfaces();
    if all.is_empty() {
        return libc::ENOSYS;
    }
    nothing(all.split(',').any(|name| name != "lo"), libc::ENODEV)
}

pub fn ordinary_user() -> i32 {
    if nix::unistd::getuid().is_root() || nix::unistd::geteuid().is_root() { libc::EPERM } else { 0 }
}

pub fn become_root() -> i32 {
    let root = Uid::from_raw(0);
    of_nix(nix::unistd::setresuid(root, root, root))
}

pub fn become_wheel() -> i32 {
    let group = Gid::from_raw(0);
    of_nix(nix::unistd::setresgid(group, group, group))
}

/// Whether any set of capabilities has one; that they cannot be read is no proof either.
pub fn capability() -> i32 {
    let none = privilege::own_sets().is_ok_and(|sets| {
        sets.inheritable | sets.permitted | sets.effective | sets.bounding | sets.ambient == 0
    });
    nothing(!none, libc::ENODATA)
}

/// Whether a set-user-id program would be one: `EPERM` with `no_new_privs`.
pub fn new_privileges() -> i32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    nothing(!status.lines().any(|line| line == "NoNewPrivs:\t1"), libc::EPERM)
}

/// Whether the environment has anything beyond what `trl verify` passes.
pub fn variable() -> i32 {
    let is_passed = |key: &str| key == "PATH" || key == protocol::PROBE_KEY;
    nothing(std::env::vars_os().any(|(key, _)| key.to_str().is_none_or(|key| !is_passed(key))), libc::ENODATA)
}

/// Whether there is a descriptor beyond the usual three and the one that looks.
pub fn descriptor() -> i32 {
    let found = crate::sys::proc::numbers("self/fd").map(|all| all.iter().filter(|fd| **fd > 2).count());
    nothing(found.map_or(true, |count| count > 1), libc::ENODATA)
}
