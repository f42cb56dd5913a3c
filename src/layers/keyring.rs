//! A session keyring of the session's own: keys that whoever started the launcher holds are not possessed by the
//! workload any more.

use crate::sys;
use std::io;

/// Joins a fresh keyring without a name. A kernel without keyrings has nothing to leave.
///
/// # Errors
/// The kernel's, `EDQUOT` among them.
pub fn join_new() -> io::Result<()> {
    match sys::keyring::join_anonymous_session() {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        result => result,
    }
}
