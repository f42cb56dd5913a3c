//! procfs as this process reads it: `/proc`, or a descriptor of a procfs that nobody else sees.
//!
//! A session's init has the latter: the session's own `/proc` hides what is not dumpable, and processes are
//! what an init must always see.

use nix::dir::Dir;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

static ROOT: OnceLock<OwnedFd> = OnceLock::new();

/// From now on this process reads that procfs. Once only.
///
/// # Errors
/// `EBUSY` where it was done before.
pub fn set_root(directory: OwnedFd) -> io::Result<()> {
    ROOT.set(directory).map_err(|_| io::Error::from_raw_os_error(libc::EBUSY))
}

/// The descriptor, where there is one.
#[must_use]
pub fn root() -> Option<BorrowedFd<'static>> {
    ROOT.get().map(AsFd::as_fd)
}

fn opened(path: &str, flags: OFlag) -> io::Result<OwnedFd> {
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    Ok(match ROOT.get() {
        Some(root) => openat(root, path, flags, Mode::empty())?,
        None => open(&Path::new("/proc").join(path), flags, Mode::empty())?,
    })
}

/// Reads a file below procfs, `path` relative to it.
///
/// # Errors
/// The kernel's.
pub fn read(path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::from(opened(path, OFlag::O_RDONLY)?).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The entries of a directory below procfs that are numbers.
///
/// # Errors
/// The kernel's.
pub fn numbers(path: &str) -> io::Result<Vec<i32>> {
    let directory = Dir::from_fd(opened(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?)?;
    Ok(directory
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok())
        .collect())
}
