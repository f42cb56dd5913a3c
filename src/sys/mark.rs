//! The mark: a number that every process of an instance's sessions carries, with no means of its own to put it
//! there (no variable, no file, no group).
//!
//! It is the hard `RLIMIT_RTTIME`: a limit for real-time scheduling in µs, here so large that it limits
//! nothing. The kernel hands it on over fork and exec, lets nobody without `CAP_SYS_RESOURCE` raise it
//! (`setrlimit(2)`), and shows it in `/proc/<pid>/limits` to everybody. So the leftovers of a life that was
//! killed are found by the next one, wherever they were re-parented. A process may lower its own, which under
//! L1 is one of the things that a workload can do to its host's bookkeeping.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const PREFIX: u64 = 0x5452_4c00_0000_0000;

/// The mark of the instance that listens on `socket`: `TRL`, then 40 bits of the path's FNV-1a hash.
#[must_use]
pub fn of_instance(socket: &Path) -> u64 {
    let hash = socket.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    PREFIX | (hash & 0xff_ffff_ffff)
}

/// Whether `mark` has the form of a mark.
#[must_use]
pub fn is_mark(mark: u64) -> bool {
    mark & !0xff_ffff_ffff == PREFIX
}

/// Marks the calling process and all that will descend from it.
///
/// # Errors
/// `EPERM` where its hard limit is lower already.
pub fn set_own(mark: u64) -> std::io::Result<()> {
    let limit = libc::rlimit { rlim_cur: mark, rlim_max: mark };
    // SAFETY: a pointer to an initialised struct.
    if unsafe { libc::setrlimit(libc::RLIMIT_RTTIME, &raw const limit) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// The mark of a process, if it has one.
#[must_use]
pub fn of_process(pid: i32) -> Option<u64> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max realtime timeout"))?;
    let hard = line.split_ascii_whitespace().nth(4)?.parse().ok()?;
    is_mark(hard).then_some(hard)
}

/// Every live process with `mark`.
#[must_use]
pub fn all(mark: u64) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| of_process(*pid) == Some(mark) && super::tree::is_alive(*pid))
        .collect()
}

/// Whether a peer carries any instance's mark, that is, descends from a session as far as one can tell.
#[must_use]
pub fn is_marked(pid: i32) -> bool {
    of_process(pid).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_differ_and_are_marks() {
        let (a, b) = (of_instance(Path::new("/run/a")), of_instance(Path::new("/run/b")));
        assert_ne!(a, b);
        assert!(is_mark(a) && is_mark(b) && !is_mark(u64::MAX));
    }
}
