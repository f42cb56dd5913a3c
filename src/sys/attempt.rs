//! Things that a confined process tries in order to learn what it is denied. Each is harmless where it is *not*
//! denied, or is tried in a child that ends at once. Each yields the error number, 0 for success.

use std::ffi::CStr;
use std::io;

fn errno(result: libc::c_long) -> i32 {
    if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) } else { 0 }
}

fn close_if_open(descriptor: libc::c_long) -> i32 {
    let failed = errno(descriptor);
    if failed == 0 {
        // SAFETY: a descriptor that the kernel just made and nobody else knows.
        unsafe { libc::close(descriptor as libc::c_int) };
    }
    failed
}

/// Runs `work` in a child of this single-threaded program; yields what it returned, at most 254, or the negated
/// error number where there was no child.
pub fn in_child(work: impl FnOnce() -> i32) -> i32 {
    match status_of(work) {
        Ok(status) if libc::WIFEXITED(status) => libc::WEXITSTATUS(status),
        Ok(_) => 255,
        Err(errno) => -errno,
    }
}

/// What [`in_child_within`] adds to the number of a signal that ended the child; no error number is as large.
pub const SIGNAL: i32 = 192;

/// The same, for at most `seconds`; a signal that ended the child is [`SIGNAL`] and its number.
pub fn in_child_within(seconds: u32, work: impl FnOnce() -> i32) -> i32 {
    let bounded = || {
        nix::unistd::alarm::set(seconds.max(1));
        work()
    };
    match status_of(bounded) {
        Ok(status) if libc::WIFEXITED(status) => libc::WEXITSTATUS(status),
        Ok(status) => SIGNAL + libc::WTERMSIG(status),
        Err(errno) => -errno,
    }
}

/// Runs `work` in a child; its wait status.
fn status_of(work: impl FnOnce() -> i32) -> Result<i32, i32> {
    // SAFETY: the caller has one thread, so no lock is held by another at the fork; the child ends by `_exit`.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        super::raw::exit(work().clamp(0, 254));
    }
    if pid < 0 {
        return Err(errno(-1));
    }
    let mut status = 0;
    // SAFETY: our own child and a pointer to an int of ours.
    while unsafe { libc::waitpid(pid, &raw mut status, 0) } < 0 {
        if errno(-1) != libc::EINTR {
            return Err(libc::ECHILD);
        }
    }
    Ok(status)
}

/// `open(2)` with `flags`.
#[must_use]
pub fn open(path: &CStr, flags: i32) -> i32 {
    // SAFETY: a NUL-terminated path; the mode is read with O_TMPFILE alone.
    close_if_open(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o600) }.into())
}

/// `TCGETS` on a device that is no terminal: `ENOTTY` where it is not denied.
#[must_use]
pub fn device_ioctl(path: &CStr) -> i32 {
    // SAFETY: a NUL-terminated path; TCGETS fills in at most a termios.
    unsafe {
        let descriptor = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if descriptor < 0 {
            return errno(-1);
        }
        let mut terminal: libc::termios = std::mem::zeroed();
        let failed = errno(libc::ioctl(descriptor, libc::TCGETS as _, &raw mut terminal).into());
        libc::close(descriptor);
        failed
    }
}

/// `socket(2)` of that family, a datagram one.
#[must_use]
pub fn socket(family: i32, kind: i32) -> i32 {
    // SAFETY: takes numbers.
    close_if_open(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) }.into())
}

/// `clone3(2)` with an argument of no size: `EINVAL` where it is not denied.
#[must_use]
pub fn clone3() -> i32 {
    // SAFETY: a size of 0 is refused before the pointer is looked at.
    errno(unsafe { libc::syscall(libc::SYS_clone3, 0usize, 0usize) })
}

/// `io_uring_setup(2)` without parameters: `EFAULT` where it is not denied.
#[must_use]
pub fn io_uring() -> i32 {
    // SAFETY: a null pointer, which the kernel cannot copy from.
    errno(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, 0usize) })
}

/// `KEYCTL_GET_KEYRING_ID` of the session keyring, without making one.
#[must_use]
pub fn keyctl() -> i32 {
    // SAFETY: takes numbers: GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, no creation.
    errno(unsafe { libc::syscall(libc::SYS_keyctl, 0, -3, 0) })
}

/// `unshare(CLONE_NEWUSER)`, in a child.
#[must_use]
pub fn user_namespace() -> i32 {
    in_child(|| {
        // SAFETY: takes a number.
        errno(unsafe { libc::unshare(libc::CLONE_NEWUSER) }.into())
    })
}

/// `mount(2)` that would change how the root propagates, in a child.
#[must_use]
pub fn mount() -> i32 {
    let nothing = std::ptr::null();
    in_child(|| {
        // SAFETY: a change of propagation takes the target alone.
        let result =
            unsafe { libc::mount(nothing, c"/".as_ptr(), nothing, libc::MS_PRIVATE, nothing.cast()) };
        errno(result.into())
    })
}

/// How many Landlock domains the kernel lets a child of this process stack: 16 less those that it is in already.
/// Negated error number where it cannot be told.
#[must_use]
pub fn landlock_room() -> i32 {
    // The first field of `struct landlock_ruleset_attr`: LANDLOCK_ACCESS_FS_MAKE_CHAR.
    let handled: u64 = 1 << 6;
    in_child(|| {
        let mut room = 0;
        // SAFETY: an attribute of the size that is told, then numbers; the child ends right after.
        unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            let ruleset = libc::syscall(libc::SYS_landlock_create_ruleset, &raw const handled, 8usize, 0);
            if ruleset < 0 {
                return 100 + errno(-1);
            }
            while room < 64 && libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) == 0 {
                room += 1;
            }
            if errno(-1) == libc::E2BIG { room } else { 100 + errno(-1) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_denied_answers_as_it_says() {
        assert_eq!(open(c"/dev/null", libc::O_RDWR), 0);
        assert_eq!(open(c"/none-such", libc::O_RDONLY), libc::ENOENT);
        assert_eq!(device_ioctl(c"/dev/null"), libc::ENOTTY);
        assert_eq!(socket(libc::AF_UNIX, libc::SOCK_DGRAM), 0);
        assert_eq!(clone3(), libc::EINVAL);
    }
}
