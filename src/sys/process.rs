//! Processes: handles, waiting, and what a supervisor sets on itself.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `pidfd_open(2)`; close-on-exec.
///
/// # Errors
/// `ESRCH` where there is no such process.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers.
    let descriptor = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: a descriptor that the kernel just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) })
}

/// `pidfd_send_signal(2)`.
///
/// # Errors
/// `ESRCH` where the process has ended, `EPERM`.
pub fn pidfd_signal(handle: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: a live descriptor, numbers, and a null siginfo, which is allowed.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, handle.as_raw_fd(), signal, 0usize, 0) })
        .map(drop)
}

/// `kill(2)`.
///
/// # Errors
/// The kernel's.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes two numbers.
    check(libc::c_long::from(unsafe { libc::kill(pid, signal) })).map(drop)
}

/// What `wait` saw of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// Nothing has changed.
    Nothing,
    /// There is no child at all: the kernel's word that nothing descends from the caller.
    NoChild,
    /// One was stopped.
    Stopped(i32),
    /// One has ended and was reaped: pid and wait status.
    Ended(i32, i32),
}

/// `waitpid(-1, WNOHANG | WUNTRACED)`.
#[must_use]
pub fn wait_any() -> Waited {
    let mut status = 0;
    // SAFETY: a pointer to an int of ours.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::WUNTRACED | libc::__WALL) };
    match pid {
        0 => Waited::Nothing,
        -1 if io::Error::last_os_error().raw_os_error() == Some(libc::ECHILD) => Waited::NoChild,
        -1 => Waited::Nothing,
        pid if libc::WIFSTOPPED(status) => Waited::Stopped(pid),
        pid => Waited::Ended(pid, status),
    }
}

fn prctl(option: i32, argument: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the options used here take one number.
    check(libc::c_long::from(unsafe { libc::prctl(option, argument, 0, 0, 0) })).map(drop)
}

/// Makes orphans of this process's descendants its children.
///
/// # Errors
/// The kernel's.
pub fn become_subreaper() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1)
}

/// No core dump, no ptrace, `/proc/<pid>` closed to the own uid.
///
/// # Errors
/// The kernel's.
pub fn set_not_dumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0)?;
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a pointer to an initialised struct.
    check(libc::c_long::from(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) })).map(drop)
}

/// `PR_SET_NO_NEW_PRIVS`.
///
/// # Errors
/// The kernel's.
pub fn set_no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// The signal that this process gets when the thread that made it ends; to be set again after a change of
/// credentials, which clears it.
///
/// # Errors
/// The kernel's.
pub fn set_parent_death_signal(signal: i32) -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong)
}

/// The calling process's hard limit of a resource (`RLIMIT_*`).
///
/// # Errors
/// `EINVAL` for an unknown resource.
pub fn hard_limit(resource: u32) -> io::Result<u64> {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a pointer to a struct of ours; an unknown resource is an error.
    check(libc::c_long::from(unsafe { libc::getrlimit(resource, &raw mut now) }))?;
    Ok(now.rlim_max)
}

/// Whether any process that can be seen has that real user id. The kernel looks among its users first, so it costs
/// nothing where there is none (`getpriority(2)`, `PRIO_USER`).
#[must_use]
pub fn is_anybodys(uid: u32) -> bool {
    // SAFETY: numbers only. 0 would be the caller itself.
    let found = unsafe {
        super::raw::syscall(libc::SYS_getpriority, libc::PRIO_USER as usize, uid as usize, 0, 0, 0)
    };
    found != -(libc::ESRCH as isize)
}

/// The name in `ps`, 15 bytes at most.
pub fn set_name(name: &std::ffi::CStr) {
    // SAFETY: a NUL-terminated string that outlives the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// Blocks every signal and yields a descriptor that reports SIGCHLD and SIGTERM. Every signal gets its default
/// back: commands would inherit an ignored one, as SIGINT and SIGQUIT are where a shell started the daemon in the
/// background.
///
/// # Errors
/// The kernel's.
pub fn signal_descriptor() -> io::Result<OwnedFd> {
    // SAFETY: the sets are initialised by sigfillset and sigemptyset before use; the kernel's sigaction has three or four
    // words, by the architecture, and is only read.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut wanted: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigemptyset(&raw mut wanted);
        libc::sigaddset(&raw mut wanted, libc::SIGCHLD);
        libc::sigaddset(&raw mut wanted, libc::SIGTERM);
        // By the kernel's own call, since the C library hides two of them. All zeroes is SIG_DFL; SIGKILL and SIGSTOP
        // are refused, and have it anyway.
        let default = [0u64; 4];
        for number in 1..=64 {
            let none = std::ptr::null::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), none, size_of::<u64>());
        }
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        let descriptor = libc::signalfd(-1, &raw const wanted, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        check(libc::c_long::from(descriptor))?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// Takes one pending signal from the descriptor: its number, and its sender's process id, which is 0 where the sender
/// is outside of the caller's PID namespace (pid_namespaces(7)), and `u32::MAX` where the sender could name anybody
/// (rt_sigqueueinfo(2), which the kernel keeps to negative codes).
#[must_use]
pub fn take_signal(descriptor: &OwnedFd) -> Option<(i32, u32)> {
    // SAFETY: all zeroes is a valid value of this plain struct, and the kernel fills in at most its size.
    unsafe {
        let mut info: libc::signalfd_siginfo = std::mem::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        let got = libc::read(descriptor.as_raw_fd(), (&raw mut info).cast(), size);
        let sender = if info.ssi_code < 0 { u32::MAX } else { info.ssi_pid };
        (got == size as isize).then_some((info.ssi_signo as i32, sender))
    }
}

/// Closes every descriptor from `first` on. For the first lines of a program.
///
/// # Errors
/// `ENOSYS` before Linux 5.9.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: called before anything owns a descriptor in that range.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// Takes over a descriptor that this process was started with.
///
/// # Errors
/// `EBADF` where it is not open.
pub fn inherited(descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes numbers; after it succeeded the descriptor is open, and its one owner is made here.
    unsafe {
        check(libc::c_long::from(libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC)))?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// Sets a soft and hard limit of the calling process, never above the hard limit it has.
///
/// # Errors
/// The kernel's.
pub fn limit_own(resource: u32, value: u64) -> io::Result<()> {
    // SAFETY: pointers to structs of ours.
    unsafe {
        let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        check(libc::c_long::from(libc::getrlimit(resource, &raw mut now)))?;
        let value = value.min(now.rlim_max);
        let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
        check(libc::c_long::from(libc::setrlimit(resource, &raw const limit))).map(drop)
    }
}

/// Keeps these descriptors, close-on-exec and in this order, and closes every other from 3 on.
///
/// # Errors
/// The kernel's.
pub fn keep(kept: Vec<OwnedFd>) -> io::Result<Vec<OwnedFd>> {
    let duplicate = |descriptor: &OwnedFd| -> io::Result<RawFd> {
        // SAFETY: numbers only; 64 and up are free of the launcher's own, or the kernel picks the next.
        check(libc::c_long::from(unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 64) }))
            .map(|descriptor| descriptor as RawFd)
    };
    let copies = kept.iter().map(duplicate).collect::<io::Result<Vec<RawFd>>>()?;
    let mut ascending = copies.clone();
    ascending.sort_unstable();
    // SAFETY: the caller is a fresh fork that goes on with these alone: whatever else it inherited is never used
    // again, and `_exit` runs no destructor.
    unsafe {
        for descriptor in kept {
            // Given up here and closed below with everything else.
            let _raw = descriptor.into_raw_fd();
        }
        let mut first = 3;
        for copy in ascending {
            if copy > first {
                check(libc::syscall(libc::SYS_close_range, first, copy - 1, 0))?;
            }
            first = copy + 1;
        }
        check(libc::syscall(libc::SYS_close_range, first, u32::MAX, 0))?;
        Ok(copies.into_iter().map(|copy| OwnedFd::from_raw_fd(copy)).collect())
    }
}

/// Waits until the child `pid` has ended and reaps it; its wait status, or `None` where it lives on after `bound`.
#[must_use]
pub fn ended_within(pid: i32, bound: std::time::Duration) -> Option<i32> {
    let deadline = std::time::Instant::now() + bound;
    loop {
        let mut status = 0;
        // SAFETY: a pointer to an int of ours.
        match unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } {
            0 if std::time::Instant::now() < deadline => {
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
            0 => return None,
            ended if ended == pid => return Some(status),
            // No child of that number: as if it had ended badly.
            _ => return Some(libc::SIGKILL),
        }
    }
}

/// Whether `pid` is a child of this process that it has not reaped: no other process has that number then.
#[must_use]
pub fn is_child(pid: i32) -> bool {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: all zeroes is a valid value of this plain struct, and the kernel fills in at most its size.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        pid > 0 && libc::waitid(libc::P_PID, pid.unsigned_abs(), &raw mut info, options) == 0
    }
}

/// Whether this process may be traced and its `/proc` entries read by its own user. A process whose id maps
/// another one writes must be so until they are written.
///
/// # Errors
/// The kernel's.
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(dumpable))
}

/// `setfsuid(2)`: whose rights count for opening files, without touching capabilities beyond those for files.
pub fn set_file_user(uid: u32) {
    // SAFETY: takes a number and cannot fail in a way that matters: the open that follows does.
    unsafe { libc::setfsuid(uid) };
}

/// Waits until `descriptor` can be read; whether it can within `bound`.
#[must_use]
pub fn readable_within(descriptor: &OwnedFd, bound: std::time::Duration) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let deadline = std::time::Instant::now() + bound;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now()).as_millis();
        let timeout =
            PollTimeout::try_from(u32::try_from(left).unwrap_or(u32::MAX / 4)).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(nix::errno::Errno::EINTR) if left > 0 => {}
            Ok(count) => return count > 0,
            Err(_) => return false,
        }
    }
}
