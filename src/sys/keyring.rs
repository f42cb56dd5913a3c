//! Keyrings: `keyctl(2)`.

use std::io;

/// `KEYCTL_JOIN_SESSION_KEYRING` of `<linux/keyctl.h>`.
const JOIN_SESSION_KEYRING: libc::c_int = 1;

/// Replaces the session keyring by a fresh one without a name.
///
/// # Errors
/// `ENOSYS` where the kernel has no keyrings, `EDQUOT` where the user has too many.
pub fn join_anonymous_session() -> io::Result<()> {
    // SAFETY: a number, and a null name, which asks for a keyring without one.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0usize) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
