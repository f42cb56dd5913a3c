//! The mark: a number that every process of an instance's sessions carries, with no means of its own to put it
//! there (no variable, no file, no group).
//!
//! It is the hard `RLIMIT_RTTIME`: a limit for real-time scheduling in µs, here so large that it limits
//! nothing. The kernel hands it on over fork and exec, lets nobody without `CAP_SYS_RESOURCE` raise it
//! (`setrlimit(2)`), and shows it in `/proc/<pid>/limits` to everybody. So the leftovers of a life that was
//! killed are found by the next one, wherever they were re-parented. A process may lower its own, which under
//! L1 is one of the things that a workload can do to its host's bookkeeping.

use super::tree;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::os::fd::AsFd;

const PREFIX: u64 = 0x5452_4c00_0000_0000;

/// The mark of the instance that holds `file`, its lock or the socket that it was handed: `TRL`, then 40 bits of
/// the FNV-1a hash of device and inode. A path would not do: it is relative to a directory, a root, a namespace.
///
/// # Errors
/// The kernel's.
pub fn of_instance(file: impl AsFd) -> std::io::Result<u64> {
    let found = nix::sys::stat::fstat(file)?;
    Ok(of_inode(found.st_dev, found.st_ino))
}

/// Likewise, of a file that has these.
#[must_use]
pub fn of_inode(device: u64, inode: u64) -> u64 {
    let bytes = [device, inode].map(u64::to_ne_bytes);
    let hash = bytes.as_flattened().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
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
    mark_in(&std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

fn mark_in(limits: &str) -> Option<u64> {
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

/// How often a peer's ancestors are looked at, where one ends meanwhile.
const LOOKS: usize = 16;

/// How a peer from within a session is known: it descends from the launcher, which is the subreaper of all that
/// lose their parent, or carries a mark. What cannot be told is taken for one.
#[derive(Debug, Clone, Copy)]
pub struct PeerCheck {
    launcher: i32,
    by_mark: bool,
}

impl PeerCheck {
    /// The check of the daemon that has that launcher. Where this process is in a session of another instance
    /// itself, so are all its clients, and marks say nothing.
    #[must_use]
    pub fn new(launcher: i32) -> Self {
        Self { launcher, by_mark: of_process(std::process::id().cast_signed()).is_none() }
    }

    /// Whether `pid` is of a session, or cannot be told not to be.
    #[must_use]
    pub fn may_be_of_session(self, pid: i32) -> bool {
        // The kernel's word for a process of a PID namespace above; sessions are in this one or below.
        if pid == 0 {
            return false;
        }
        for _ in 0..LOOKS {
            match self.look(pid) {
                Ok(is_of_session) => return is_of_session,
                // Hidden by `hidepid`: another user's, which no process of a session is.
                Err(pid) if kill(Pid::from_raw(pid), None) == Err(Errno::EPERM) => return false,
                Err(gone) if gone == pid => return true,
                Err(_) => {}
            }
        }
        true
    }

    /// The answer, or which process could not be seen.
    fn look(self, pid: i32) -> Result<bool, i32> {
        let mut above = pid;
        loop {
            above = match tree::parent_of(above).ok_or(above)? {
                parent if parent == self.launcher => return Ok(true),
                ..=1 => break,
                parent => parent,
            };
        }
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).map_err(|_| pid)?;
        Ok(self.by_mark && mark_in(&limits).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_differ_and_are_marks() {
        let (a, b) = (of_inode(1, 2), of_inode(2, 1));
        assert_ne!(a, b);
        assert!(is_mark(a) && is_mark(b) && !is_mark(u64::MAX));
    }

    #[test]
    fn a_peer_that_is_gone_is_taken_for_one_of_a_session() -> std::io::Result<()> {
        let mut child = std::process::Command::new("sleep").arg("60").spawn()?;
        let pid = child.id().cast_signed();
        let own = std::process::id().cast_signed();
        let (stranger, launcher) = (PeerCheck::new(i32::MAX), PeerCheck::new(own));
        assert!(!stranger.may_be_of_session(pid) && launcher.may_be_of_session(pid));
        child.kill()?;
        child.wait()?;
        assert!(stranger.may_be_of_session(pid));
        Ok(())
    }
}
