//! No namespaces within a session: the kernel counts those that are made below the session's user namespace, and
//! is told that there may be none. See namespaces(7), "The /proc/sys/user directory".

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// The kinds that are counted; time namespaces are younger (5.6) than what a session needs otherwise.
const KINDS: [&str; 8] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"];

/// Allows no namespace below the caller's user namespace, through `proc`, a procfs. To be called while the
/// capabilities over that user namespace are there.
///
/// The files of `sys/user` are those of the user namespace of whoever *opens* them, whichever procfs it is; it
/// must not be one with `subset=pid`, which has none.
///
/// # Errors
/// The kernel's: `ENOENT` where a file is not there, `EACCES` without `CAP_SYS_RESOURCE` over the user namespace.
pub fn limits_on_namespaces(proc: BorrowedFd<'_>) -> io::Result<()> {
    for kind in KINDS {
        let name = format!("sys/user/max_{kind}_namespaces");
        let file = match openat(proc, name.as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()) {
            Err(nix::errno::Errno::ENOENT) if kind == "time" => continue,
            opened => opened?,
        };
        if nix::unistd::write(&file, b"0\n")? != 2 {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
    }
    Ok(())
}

/// The same where the session has no procfs of its own.
///
/// # Errors
/// Likewise.
pub fn limits_by_the_hosts_procfs() -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let procfs = nix::fcntl::open("/proc", flags, Mode::empty())?;
    limits_on_namespaces(procfs.as_fd())
}
