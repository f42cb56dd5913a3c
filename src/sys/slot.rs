//! Starting a command: a slot of memory, a reaper, a leader.
//!
//! ```text
//! init ──clone(CLONE_VM)──► reaper ──clone(CLONE_VM|CLONE_VFORK)──► leader ──execve──► the command
//! ```
//!
//! The reaper shares the init's memory (so it costs a clone, not a copy of page tables) and is the subreaper of
//! all that the command starts: whatever forks twice, changes its session or loses its parent becomes the
//! reaper's child. It waits until `waitid(2)` says `ECHILD`, the kernel's proof that nothing of the exec lives,
//! tells it, and waits for another command, some seconds long: with a reaper at hand an exec costs the init neither a
//! clone nor a wait. Where the leader left something behind, the reaper exits when that has ended, and the init
//! tells it instead. The reaper may be held up by its leader (a vfork parent waits even while its child is stopped);
//! the init is not.
//!
//! Both run on stacks of their own in the [`Slot`] and touch nothing else of the init's memory but their slot:
//! no allocation, no lock, no thread-local storage (hence [`super::raw`]), no formatting, no panic. The init
//! writes to a slot only when its reaper is idle and was claimed, or was reaped.

mod leader;
mod reaper;

use super::{raw, socket};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

/// How long a reaper waits for another command before it exits, seconds.
const IDLE_SECONDS: i64 = 10;

const STACK: usize = 32 * 1024;

/// Which step of a leader failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Step {
    /// `clone(2)` of the leader.
    Clone = 1,
    /// `setsid(2)`, parent-death signal.
    ProcessGroup = 2,
    /// `dup3(2)`, `close_range(2)`.
    Descriptors = 3,
    /// `prlimit(2)`.
    Rlimit = 4,
    /// `chdir(2)`.
    WorkingDirectory = 5,
    /// `execve(2)`.
    Exec = 6,
}

impl Step {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Clone,
            2 => Self::ProcessGroup,
            3 => Self::Descriptors,
            4 => Self::Rlimit,
            5 => Self::WorkingDirectory,
            6 => Self::Exec,
            _ => return None,
        })
    }
}

/// What a reaper has to say.
#[derive(Debug, Clone, Copy)]
pub enum Event {
    /// The command was executed by this process.
    Started(i32),
    /// It was not.
    Failed(Step, i32),
    /// The leader has ended.
    Exited {
        /// Wait status.
        status: i32,
        /// User time, µs.
        user_us: u64,
        /// System time, µs.
        system_us: u64,
        /// KiB.
        max_rss_kib: u64,
        /// 512-byte blocks.
        blocks_in: u64,
        /// 512-byte blocks.
        blocks_out: u64,
        /// Whether nothing else of the exec lives: the reaper has no child left.
        last: bool,
    },
}

/// One limit of the leader. The hard one is no higher than the caller's own.
#[derive(Clone, Copy)]
pub struct Limit {
    /// `RLIMIT_*`.
    pub resource: u32,
    /// Soft.
    pub soft: u64,
    /// Hard.
    pub hard: u64,
}

/// What to start. Offsets are into the slot's payload.
#[derive(Clone, Copy)]
pub struct Command {
    /// The exec's number, handed to `report`.
    pub exec: u64,
    /// Strings of argv.
    pub argc: usize,
    /// Strings of the environment.
    pub envc: usize,
    /// Whether the payload begins with a working directory.
    pub has_cwd: bool,
    /// Whether to report a start.
    pub want_started: bool,
    /// Execute this descriptor instead of `argv[0]`, or -1.
    pub program: i32,
    /// Processes that may be added to those of the host (`RLIMIT_NPROC`), or `u64::MAX`.
    pub nproc: u64,
    /// The hard limit that the caller has itself.
    pub nproc_hard: u64,
}

/// Memory for one exec at a time (two stacks, the shared state, the payload), and the reaper that lives in it.
pub struct Slot {
    base: *mut u8,
    size: usize,
    reaper: Option<Reaper>,
}

struct Reaper {
    pid: i32,
    /// Where its next command's descriptors go; `None` where it takes one command only.
    commands: Option<OwnedFd>,
}

/// A command runs, or is about to: the control block is the reaper's.
const BUSY: u32 = 0;
/// The reaper waits for a command: whoever makes it `BUSY` may write the block.
const IDLE: u32 = 1;
/// The reaper waited long enough and exits.
const GONE: u32 = 2;

const CONTROL: usize = 2 * STACK;
const STATE: usize = CONTROL + 4096 - 64;
const PAYLOAD: usize = CONTROL + 4096;
const _: () = assert!(size_of::<Control>() <= STATE - CONTROL);
const MAX_LIMITS: usize = 16;

struct Control {
    command: Command,
    payload_len: usize,
    pointers: *mut *const u8,
    payload: *mut u8,
    leader_stack: *mut u8,
    descriptors: [i32; 3],
    socket: i32,
    inbox: i32,
    limits: [Limit; MAX_LIMITS],
    limit_count: usize,
    report: fn(i32, u64, Event),
    init_pid: i32,
    reaper_pid: AtomicI32,
    leader_pid: AtomicI32,
    /// 1 from the moment before the leader is reaped.
    leader_over: AtomicU32,
    /// 1 once `Failed` or `Exited` was reported.
    reported: AtomicU32,
    /// 1 once `Exited` was reported with `last`.
    reported_last: AtomicU32,
    /// 1 from the moment before the init kills the exec: how many it killed is then the init's to say.
    being_killed: AtomicU32,
    failed_step: AtomicU32,
    failed_errno: AtomicI32,
}

fn state_beside(control: *mut Control) -> *const AtomicU32 {
    // SAFETY: the block and the state lie in one mapping, so far apart; both are aligned.
    unsafe { control.cast::<u8>().add(STATE - CONTROL).cast() }
}

impl Slot {
    /// Maps a slot for payloads up to `max_payload` bytes and `max_strings` strings; pages come with their use.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn map(max_payload: usize, max_strings: usize) -> std::io::Result<Self> {
        let size = (PAYLOAD + max_payload + (max_strings + 4) * 8 + 16).next_multiple_of(4096);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping, owned by this value.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Self { base: base.cast(), size, reaper: None })
    }

    fn control(&self) -> *mut Control {
        // SAFETY: within the mapping, which is page-aligned.
        unsafe { self.base.add(CONTROL).cast() }
    }

    fn state(&self) -> &AtomicU32 {
        // SAFETY: within the mapping, only ever used as an atomic; zero from the start.
        unsafe { &*state_beside(self.control()) }
    }

    /// Takes an idle slot for a command; `false` where its reaper is just leaving.
    pub fn claim(&mut self) -> bool {
        self.reaper.is_none()
            || self.state().compare_exchange(IDLE, BUSY, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Gives a claimed slot back.
    pub fn release(&mut self) {
        if self.reaper.is_some() {
            self.state().store(IDLE, Ordering::Release);
        }
    }

    /// Whether the reaper has told the end of its command and waits for another.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.reaper.is_some() && self.state().load(Ordering::Acquire) != BUSY && self.reported_last()
    }

    /// The reaper's process id, if there is one.
    #[must_use]
    pub fn reaper(&self) -> Option<i32> {
        self.reaper.as_ref().map(|reaper| reaper.pid)
    }

    /// The reaper was reaped: the slot's memory is the owner's alone.
    pub fn reaper_ended(&mut self) {
        self.reaper = None;
        self.state().store(BUSY, Ordering::Release);
    }

    /// Has an idle reaper exit. The slot is dropped when it was reaped.
    pub fn dismiss(&mut self) {
        if self.claim()
            && let Some(commands) = self.reaper.as_ref().and_then(|reaper| reaper.commands.as_ref())
        {
            // Where that fails, it leaves of its own accord when it has waited long enough.
            if socket::send(commands.as_fd(), &[0], &[]).is_err() {
                self.release();
            }
        }
    }

    /// Room for the payload, to be filled before [`Slot::start`].
    ///
    /// The caller holds the slot alone: no reaper runs on it.
    pub fn payload(&mut self, length: usize) -> Option<&mut [u8]> {
        let room = self.size.checked_sub(PAYLOAD)?;
        // SAFETY: within the mapping; exclusive by `&mut` and by the rule that the slot is idle.
        (length <= room).then(|| unsafe { std::slice::from_raw_parts_mut(self.base.add(PAYLOAD), length) })
    }

    /// Overwrites the payload.
    pub fn wipe(&mut self, length: usize) {
        if let Some(payload) = self.payload(length) {
            super::memory::wipe(payload);
        }
    }

    /// Has the slot's reaper start the command, a new one where there is none. The slot was claimed. The payload must
    /// hold exactly the strings that `command` counts, each ended by a NUL, or nothing is started and `EINVAL` comes
    /// back.
    ///
    /// # Errors
    /// A positive errno.
    pub fn start(
        &mut self,
        command: Command,
        payload_len: usize,
        descriptors: [BorrowedFd<'_>; 3],
        socket: BorrowedFd<'_>,
        limits: &[Limit],
        report: fn(i32, u64, Event),
    ) -> Result<i32, i32> {
        let strings = usize::from(command.has_cwd) + command.argc + command.envc;
        let Some(payload) = self.payload(payload_len) else {
            return Err(libc::EINVAL);
        };
        if payload.iter().filter(|byte| **byte == 0).count() != strings
            || payload.last().is_some_and(|byte| *byte != 0)
            || limits.len() > MAX_LIMITS
            || (command.argc == 0 && command.program < 0)
        {
            return Err(libc::EINVAL);
        }
        let start = payload.as_mut_ptr();
        let table = (PAYLOAD + payload_len).next_multiple_of(8);
        if table + (strings + 4) * 8 > self.size {
            return Err(libc::EINVAL);
        }
        // SAFETY: `table` and what is written to it lie within the mapping (checked above) behind the payload;
        // the slot is idle, so nobody else looks.
        unsafe {
            let pointers: *mut *const u8 = self.base.add(table).cast();
            let mut at = start.cast_const();
            let mut next = pointers;
            for index in 0..strings {
                if index == usize::from(command.has_cwd) + command.argc {
                    next.write(std::ptr::null());
                    next = next.add(1);
                }
                next.write(at);
                next = next.add(1);
                at = at.add(libc::strlen(at.cast()) + 1);
            }
            if command.envc == 0 {
                next.write(std::ptr::null());
                next = next.add(1);
            }
            next.write(std::ptr::null());
            let mut kept = [Limit { resource: 0, soft: 0, hard: 0 }; MAX_LIMITS];
            kept[..limits.len()].copy_from_slice(limits);
            // Where the session's filters leave the init no socket, each reaper serves one command.
            let pair = if self.reaper.is_none() { inbox().ok() } else { None };
            let (commands, theirs) = pair.unzip();
            self.control().write(Control {
                command,
                payload_len,
                pointers,
                payload: start,
                leader_stack: self.base.add(STACK),
                descriptors: descriptors.map(|descriptor| descriptor.as_raw_fd()),
                socket: socket.as_raw_fd(),
                inbox: theirs.as_ref().map_or(-1, AsRawFd::as_raw_fd),
                limits: kept,
                limit_count: limits.len(),
                report,
                init_pid: libc::getpid(),
                reaper_pid: AtomicI32::new(self.reaper().unwrap_or(0)),
                leader_pid: AtomicI32::new(0),
                leader_over: AtomicU32::new(0),
                reported: AtomicU32::new(0),
                reported_last: AtomicU32::new(0),
                being_killed: AtomicU32::new(0),
                failed_step: AtomicU32::new(0),
                failed_errno: AtomicI32::new(0),
            });
            if self.reaper.is_some() {
                return self.hand_over(descriptors);
            }
            let flags = libc::CLONE_VM | libc::SIGCHLD;
            let stack = self.base.add(2 * STACK);
            let pid = super::clone::clone(flags, stack, reaper::reaper, self.control().cast());
            if pid < 0 {
                return Err(-pid as i32);
            }
            let pid = pid as i32;
            self.reaper = Some(Reaper { pid, commands });
            Ok(pid)
        }
    }

    /// Gives the command, which stands in the control block, to the reaper that waits.
    fn hand_over(&self, descriptors: [BorrowedFd<'_>; 3]) -> Result<i32, i32> {
        let reaper = self.reaper.as_ref().ok_or(libc::ESRCH)?;
        let commands = reaper.commands.as_ref().ok_or(libc::ESRCH)?;
        let descriptors = descriptors.map(|descriptor| descriptor.as_raw_fd());
        let sent = socket::send(commands.as_fd(), &[1], &descriptors);
        sent.map(|()| reaper.pid).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
    }

    fn shared(&self) -> &Control {
        // SAFETY: written by `start` before anybody calls this; the parts that change are atomics.
        unsafe { &*self.control() }
    }

    /// The leader's pid while it has not been reaped: where a pidfd opened after this is still valid by
    /// [`Slot::leader_lives`], it is the leader's.
    #[must_use]
    pub fn leader(&self) -> Option<i32> {
        let pid = self.shared().leader_pid.load(Ordering::Acquire);
        (pid > 0 && self.leader_lives()).then_some(pid)
    }

    /// Whether the leader has not been reaped.
    #[must_use]
    pub fn leader_lives(&self) -> bool {
        self.shared().leader_over.load(Ordering::Acquire) == 0
    }

    /// Whether the reaper reported an end of the leader.
    #[must_use]
    pub fn reported(&self) -> bool {
        self.shared().reported.load(Ordering::Acquire) != 0
    }

    /// Whether that report said that nothing else of the exec lives.
    #[must_use]
    pub fn reported_last(&self) -> bool {
        self.shared().reported_last.load(Ordering::Acquire) != 0
    }

    /// From now on the reaper leaves it to the init to say that the exec is gone.
    pub fn set_being_killed(&self) {
        self.shared().being_killed.store(1, Ordering::Release);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own; the owner drops a slot only when it is idle.
        unsafe { libc::munmap(self.base.cast(), self.size) };
    }
}

/// The init's and the reaper's end of the way that commands go.
fn inbox() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socket::seqpacket_pair()?;
    setsockopt(&theirs, ReceiveTimeout, &TimeVal::seconds(IDLE_SECONDS))?;
    Ok((ours, theirs))
}

/// `sendto(2)` for a `report` function.
pub fn send_packet(socket: i32, packet: &[u8]) {
    loop {
        let (start, length) = (packet.as_ptr() as usize, packet.len());
        // SAFETY: a live slice; no address.
        let sent = unsafe {
            raw::syscall(libc::SYS_sendto, socket as usize, start, length, libc::MSG_NOSIGNAL as usize, 0)
        };
        if sent != -(libc::EINTR as isize) {
            return;
        }
    }
}
