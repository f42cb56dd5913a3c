//! Locks on ranges of a file that belong to an open file description (`F_OFD_SETLK`, fcntl(2)): whoever holds a copy of
//! the descriptor holds the lock, over fork and `SCM_RIGHTS`, and the kernel gives it back with the last copy.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

fn set(file: &OwnedFd, kind: libc::c_int, start: u64, count: u64) -> io::Result<bool> {
    let too_large = |_| io::Error::from_raw_os_error(libc::EOVERFLOW);
    // SAFETY: all zeroes is a valid value of this plain struct; F_OFD_SETLK wants its `l_pid` 0.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = kind as libc::c_short;
    range.l_whence = libc::SEEK_SET as libc::c_short;
    range.l_start = libc::off_t::try_from(start).map_err(too_large)?;
    range.l_len = libc::off_t::try_from(count).map_err(too_large)?;
    // SAFETY: a live descriptor and a pointer to a struct of ours.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// Locks `count` bytes from `start` on for this description alone; 0 bytes are all to the end, however far. Whether it
/// got them; it does not wait.
///
/// # Errors
/// The kernel's.
pub fn take(file: &OwnedFd, start: u64, count: u64) -> io::Result<bool> {
    set(file, libc::F_WRLCK, start, count)
}

/// Gives a range back.
///
/// # Errors
/// The kernel's.
pub fn give_back(file: &OwnedFd, start: u64, count: u64) -> io::Result<()> {
    set(file, libc::F_UNLCK, start, count).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_goes_with_the_last_copy_of_its_description() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let open = || std::fs::File::options().write(true).open(file.path()).map(OwnedFd::from);
        let (one, two) = (open()?, open()?);
        assert!(take(&one, 1 << 32, 8)?);
        assert!(!take(&two, (1 << 32) + 7, 8)? && take(&two, (1 << 32) + 8, 8)? && !take(&two, 0, 0)?);
        let copy = one.try_clone()?;
        drop(one);
        assert!(!take(&two, 1 << 32, 8)?);
        drop(copy);
        assert!(take(&two, 1 << 32, 8)?);
        give_back(&two, 1 << 32, 8)?;
        assert!(take(&open()?, 1 << 32, 8)?);
        Ok(())
    }
}
