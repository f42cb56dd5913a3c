//! Host ids that one session has and no other: a slot is some ids next to one another, of users and of groups alike.
//!
//! Who has a slot is known by locks in one file of the user's, byte N for host uid N and, far above, for host gid N
//! (see [`lock`]): all launchers of a user share it, whoever started them. The launcher and the session's init
//! hold a slot's lock together. So it is free when neither lives, which the kernel sees to, and not before: an init
//! that outlives its launcher ends its session first, and a launcher lets go only when it has proven that nothing
//! of the session is left.
//!
//! What lies between the death of the last holder and that of the session's last process is covered by the
//! file's content: a byte is 1 where it is known that no process has that id. A slot whose bytes are anything else
//! (it was not let go in order, or the file is new) is given out only after a look at all processes.
//!
//! Launchers of one user that do not see the same directories (`PrivateTmp=`, a `/run/user` that came or went)
//! have two files. So the kernel is asked for processes of a slot's users each time; only two such launchers that
//! take one slot within the same moment are not told apart by it.

use super::ceiling::Ranges;
use crate::sys::{lock, proc, process};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat, lstat, stat};
use nix::sys::uio::{pread, pwrite};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the locks of groups begin.
const GROUPS: u64 = 1 << 33;
/// How many slots one look at all processes answers for.
const AHEAD: u32 = 64;
/// How often all slots are tried: one that another launcher only looks at is not taken.
const ROUNDS: u32 = 3;
const FREE: u8 = 1;

/// The slots of one user.
pub struct Slots {
    path: PathBuf,
    user: u32,
    ranges: Ranges,
}

/// A slot that is held, and is given back when every copy of its lock is closed.
pub struct Slot {
    /// The first host uid.
    pub uid: u32,
    /// The first host gid.
    pub gid: u32,
    /// How many of each.
    pub count: u32,
    /// The lock.
    pub lock: OwnedFd,
}

impl Slot {
    /// Says that no process has an id of it any more.
    pub fn is_free(&self) {
        // Where it cannot be said, the next one looks.
        pwrite(&self.lock, &vec![FREE; self.count as usize], i64::from(self.uid)).ok();
    }
}

impl Slots {
    /// The slots of `user`, which the caller is.
    ///
    /// # Errors
    /// There is no place for the file, or it is somebody else's.
    pub fn of(user: u32, ranges: Ranges) -> io::Result<Self> {
        let own = PathBuf::from(format!("/run/user/{user}"));
        let is_own = lstat(&own).is_ok_and(|found| {
            found.st_mode & libc::S_IFMT == libc::S_IFDIR
                && found.st_uid == user
                && found.st_mode & 0o022 == 0
                && nix::unistd::access(&own, nix::unistd::AccessFlags::W_OK).is_ok()
        });
        let path = if is_own { own.join("trl-ids") } else { format!("/tmp/trl-ids-{user}").into() };
        let slots = Self { path, user, ranges };
        slots.open().map(|_| slots)
    }

    fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file = open(&self.path, flags, Mode::from_bits_truncate(0o600))?;
        let found = fstat(&file)?;
        let is_own = found.st_mode & libc::S_IFMT == libc::S_IFREG
            && found.st_mode & 0o077 == 0
            && found.st_uid == self.user
            && found.st_nlink <= 1;
        if is_own { Ok(file) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
    }

    /// Whether the path still leads to that file: one that is removed locks nobody out.
    fn is_there(&self, file: &OwnedFd) -> bool {
        match (fstat(file), stat(&self.path)) {
            (Ok(own), Ok(there)) => (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino),
            _ => false,
        }
    }

    /// Takes a slot of `count` ids; `used` is about how many the caller has taken.
    ///
    /// # Errors
    /// `EAGAIN` where none is left.
    pub fn take(&self, count: u32, used: u32) -> io::Result<Slot> {
        let slots = self.ranges.uids.count.min(self.ranges.gids.count).checked_div(count).unwrap_or(0);
        for round in 0..ROUNDS {
            if round > 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
            let mut slot = Slot { uid: 0, gid: 0, count, lock: self.open()? };
            for at in 0..slots {
                let index = (used % slots + at) % slots;
                slot.uid = self.ranges.uids.first + index * count;
                slot.gid = self.ranges.gids.first + index * count;
                if !self.lock(&slot)? {
                    continue;
                }
                if !self.is_there(&slot.lock) {
                    break;
                }
                if (is_known_free(&slot) || self.look(&slot)?) && !is_in_use(&slot) {
                    pwrite(&slot.lock, &vec![0; count as usize], i64::from(slot.uid))?;
                    return Ok(slot);
                }
                lock::give_back(&slot.lock, 0, 0)?;
            }
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }

    fn lock(&self, slot: &Slot) -> io::Result<bool> {
        let (uid, gid, count) = (u64::from(slot.uid), GROUPS + u64::from(slot.gid), u64::from(slot.count));
        if !lock::take(&slot.lock, uid, count)? {
            return Ok(false);
        }
        if lock::take(&slot.lock, gid, count)? {
            return Ok(true);
        }
        lock::give_back(&slot.lock, uid, count).map(|()| false)
    }

    /// Looks whether a process has an id of `slot`; what it sees is noted for those after it too, as far as they are
    /// nobody's.
    fn look(&self, slot: &Slot) -> io::Result<bool> {
        let next = slot.uid + slot.count;
        let end = self.ranges.uids.first + self.ranges.uids.count;
        let count = end.saturating_sub(next).min(AHEAD * slot.count);
        let ahead = self.open()?;
        let held = count > 0 && lock::take(&ahead, u64::from(next), u64::from(count))?;
        // Locked first: whoever takes one of them later finds what is seen now.
        let busy = ids_of_processes()?;
        if held {
            let known: Vec<u8> = (next..next + count).map(|id| u8::from(!busy.contains(&id))).collect();
            pwrite(&ahead, &known, i64::from(next))?;
        }
        Ok(busy.range(slot.uid..next).next().is_none())
    }

    /// Removes the file where nobody holds a slot.
    pub fn remove_unused(&self) {
        let Ok(file) = self.open() else { return };
        if lock::take(&file, 0, 0).unwrap_or(false) && self.is_there(&file) {
            remove(&self.path);
        }
    }
}

fn remove(path: &Path) {
    // What stays is a file without meaning, which the next one takes over.
    std::fs::remove_file(path).ok();
}

fn is_known_free(slot: &Slot) -> bool {
    let mut known = vec![0; slot.count as usize];
    let read = pread(slot.lock.as_fd(), &mut known, i64::from(slot.uid));
    read == Ok(known.len()) && known.iter().all(|byte| *byte == FREE)
}

/// Whether a process has a user id of it, whatever the file says: a launcher that sees another `/run/user` or `/tmp`
/// has another file.
fn is_in_use(slot: &Slot) -> bool {
    (slot.uid..slot.uid + slot.count).any(process::is_anybodys)
}

/// Every user and group of every process.
fn ids_of_processes() -> io::Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    for pid in proc::numbers("")? {
        // One that is gone has none.
        let status = proc::read(&format!("{pid}/status")).unwrap_or_default();
        let status = String::from_utf8_lossy(&status);
        let of = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let all = of("Uid:").split_ascii_whitespace().chain(of("Gid:").split_ascii_whitespace());
        ids.extend(all.filter_map(|id| id.parse::<u32>().ok()));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::super::ceiling::Range;
    use super::*;

    fn slots(directory: &Path, count: u32) -> Slots {
        let range = Range { first: 2_000_000_000, count };
        let ranges = Ranges { uids: range, gids: Range { first: 2_000_100_000, ..range } };
        Slots { path: directory.join("ids"), user: nix::unistd::geteuid().as_raw(), ranges }
    }

    #[test]
    fn slots_do_not_meet_and_come_back_when_every_holder_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (slots(directory.path(), 24), slots(directory.path(), 24));
        let held: Vec<Slot> =
            [one.take(8, 0), two.take(8, 0), one.take(8, 7)].into_iter().map(Result::unwrap).collect();
        let uids: BTreeSet<u32> = held.iter().map(|slot| slot.uid).collect();
        assert_eq!(uids.len(), 3);
        assert!(held.iter().all(|slot| slot.gid - slot.uid == 100_000));
        let none = |slots: &Slots, count| slots.take(count, 0).err().and_then(|error| error.raw_os_error());
        assert_eq!(none(&two, 8), Some(libc::EAGAIN));
        assert_eq!(none(&two, 1), Some(libc::EAGAIN));
        assert_eq!(none(&two, 25), Some(libc::EAGAIN));
        // An init's copy.
        let copy = held[1].lock.try_clone().unwrap();
        let uid = held[1].uid;
        drop(held);
        assert!(two.take(24, 0).is_err(), "while a copy is there");
        assert!(two.take(8, 0).unwrap().uid != uid);
        drop(copy);
        assert_eq!(two.take(24, 0).unwrap().uid, 2_000_000_000);
        one.remove_unused();
        assert!(!one.path.exists());
    }

    #[test]
    fn a_file_that_is_removed_or_anothers_gives_nothing_out() {
        let directory = tempfile::tempdir().unwrap();
        let one = slots(directory.path(), 16);
        let held = one.take(8, 0).unwrap();
        one.remove_unused();
        assert!(one.path.exists(), "removed while a slot is held");
        held.is_free();
        assert!(one.is_there(&held.lock));
        std::fs::remove_file(&one.path).unwrap();
        assert!(!one.is_there(&held.lock));
        std::os::unix::fs::symlink("/dev/null", &one.path).unwrap();
        assert!(one.take(8, 0).is_err());
    }

    #[test]
    fn what_a_process_has_is_not_given_out_though_the_file_says_that_it_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let own = nix::unistd::getuid().as_raw();
        let range = Range { first: own, count: 1 };
        let used = Slots { ranges: Ranges { uids: range, gids: range }, ..slots(directory.path(), 1) };
        let told = Slot { uid: own, gid: own, count: 1, lock: used.open().unwrap() };
        told.is_free();
        assert!(is_known_free(&told) && is_in_use(&told));
        assert!(used.take(1, 0).is_err());
        let free = slots(directory.path(), 8).take(8, 0).unwrap();
        assert!(!is_in_use(&free));
    }

    #[test]
    fn what_was_not_let_go_in_order_is_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let own = nix::unistd::geteuid().as_raw();
        // Ids that this very process has.
        let range = Range { first: own.max(1), count: 1 };
        let busy = Slots { ranges: Ranges { uids: range, gids: range }, ..slots(directory.path(), 1) };
        let taken = busy.take(1, 0);
        // Root's own id is in no range; somebody runs as the next one or nobody does.
        assert!(taken.is_err() || !is_in_use(&taken.unwrap()));
        let free = slots(directory.path(), 8);
        let slot = free.take(8, 0).unwrap();
        assert!(!is_known_free(&slot));
        slot.is_free();
        assert!(is_known_free(&slot));
    }
}
