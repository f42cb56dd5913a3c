//! Starting the launcher: `posix_spawn`, from a process that has one thread, with an empty environment.

use super::socket;
use crate::error::SysError;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Starts `trl-launcher`, which stands beside this program; yields the socket to it and its process id.
///
/// `bounds` become its arguments: what it may do whatever the daemon says later.
///
/// # Errors
/// Which step failed, on what, and why.
pub fn launcher(bounds: &[String]) -> Result<(OwnedFd, i32), SysError> {
    let own = std::env::current_exe().map_err(|error| SysError::new("readlink", "/proc/self/exe", &error))?;
    let path = own.with_file_name("trl-launcher");
    let shown = path.display().to_string();
    let bytes = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| SysError::from_errno("posix_spawn", shown.clone(), libc::EINVAL))?;
    let (ours, theirs) =
        socket::seqpacket_pair().map_err(|error| SysError::new("socketpair", "seqpacket", &error))?;
    let argument = c"trl-launcher";
    let bounds: Vec<CString> = bounds.iter().filter_map(|bound| CString::new(bound.as_str()).ok()).collect();
    let argv: Vec<*mut libc::c_char> = std::iter::once(argument.as_ptr())
        .chain(bounds.iter().map(|bound| bound.as_ptr()))
        .map(<*const _>::cast_mut)
        .chain([std::ptr::null_mut()])
        .collect();
    let environment: [*mut libc::c_char; 1] = [std::ptr::null_mut()];
    let mut pid = 0;
    // SAFETY: the file actions are initialised before use and destroyed after; all strings and arrays outlive
    // the call and are NUL- or null-terminated.
    let errno = unsafe {
        let mut actions: libc::posix_spawn_file_actions_t = std::mem::zeroed();
        libc::posix_spawn_file_actions_init(&raw mut actions);
        // dup2 onto 3; where it is 3 already, posix_spawn clears close-on-exec (glibc 2.29).
        libc::posix_spawn_file_actions_adddup2(&raw mut actions, theirs.as_raw_fd(), 3);
        let errno = libc::posix_spawn(
            &raw mut pid,
            bytes.as_ptr(),
            &raw const actions,
            std::ptr::null(),
            argv.as_ptr(),
            environment.as_ptr(),
        );
        libc::posix_spawn_file_actions_destroy(&raw mut actions);
        errno
    };
    if errno != 0 {
        return Err(SysError::from_errno("posix_spawn", shown, errno));
    }
    Ok((ours, pid))
}
