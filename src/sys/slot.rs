//! Starting a command: a slot of memory, a reaper, a leader.
//!
//! ```text
//! init ──clone(CLONE_VM)──► reaper ──clone(CLONE_VM|CLONE_VFORK)──► leader ──execve──► the command
//! ```
//!
//! The reaper shares the init's memory (so it costs a clone, not a copy of page tables) and is the subreaper of
//! all that the command starts: whatever forks twice, changes its session or loses its parent becomes the
//! reaper's child. It waits until `waitid(2)` says `ECHILD`, the kernel's proof that nothing of the exec lives,
//! and exits. The reaper may be held up by its leader (a vfork parent waits even while its child is stopped);
//! the init is not.
//!
//! Both run on stacks of their own in the [`Slot`] and touch nothing else of the init's memory but their slot:
//! no allocation, no lock, no thread-local storage (hence [`super::raw`]), no formatting, no panic. The init
//! reuses a slot only when it has reaped the reaper.

use super::raw;
use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

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

/// One limit of the leader.
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
}

/// Memory for one exec at a time: two stacks, the shared state, the payload.
pub struct Slot {
    base: *mut u8,
    size: usize,
}

const CONTROL: usize = 2 * STACK;
const PAYLOAD: usize = CONTROL + 4096;
const MAX_LIMITS: usize = 16;

struct Control {
    command: Command,
    payload_len: usize,
    pointers: *mut *const u8,
    payload: *mut u8,
    leader_stack: *mut u8,
    descriptors: [i32; 3],
    socket: i32,
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
        Ok(Self { base: base.cast(), size })
    }

    fn control(&self) -> *mut Control {
        // SAFETY: within the mapping, which is page-aligned.
        unsafe { self.base.add(CONTROL).cast() }
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

    /// Clones the reaper, which starts the command. The payload must hold exactly the strings that `command`
    /// counts, each ended by a NUL, or nothing is started and `EINVAL` comes back.
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
            self.control().write(Control {
                command,
                payload_len,
                pointers,
                payload: start,
                leader_stack: self.base.add(STACK),
                descriptors: descriptors.map(|descriptor| descriptor.as_raw_fd()),
                socket: socket.as_raw_fd(),
                limits: kept,
                limit_count: limits.len(),
                report,
                init_pid: libc::getpid(),
                reaper_pid: AtomicI32::new(0),
                leader_pid: AtomicI32::new(0),
                leader_over: AtomicU32::new(0),
                reported: AtomicU32::new(0),
                reported_last: AtomicU32::new(0),
                being_killed: AtomicU32::new(0),
                failed_step: AtomicU32::new(0),
                failed_errno: AtomicI32::new(0),
            });
            let flags = libc::CLONE_VM | libc::SIGCHLD;
            let pid = super::clone::clone(flags, self.base.add(2 * STACK), reaper, self.control().cast());
            if pid < 0 { Err(-pid as i32) } else { Ok(pid as i32) }
        }
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

fn wipe(start: *mut u8, length: usize) {
    for offset in 0..length {
        // SAFETY: within the payload, whose only user is the reaper now that the leader has executed or ended.
        unsafe { start.add(offset).write_volatile(0) };
    }
}

extern "C" fn reaper(argument: *mut c_void) -> ! {
    // SAFETY: `start` hands over its control block, which lives until the reaper was reaped.
    let control = unsafe { &*argument.cast::<Control>() };
    let name = c"trl-reaper".as_ptr() as usize;
    // SAFETY: numbers and a static string.
    let own = unsafe {
        raw::syscall(libc::SYS_prctl, libc::PR_SET_NAME as usize, name, 0, 0, 0);
        raw::syscall(libc::SYS_prctl, libc::PR_SET_CHILD_SUBREAPER as usize, 1, 0, 0, 0);
        raw::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize, 0, 0, 0);
        if raw::syscall(libc::SYS_getppid, 0, 0, 0, 0, 0) as i32 != control.init_pid {
            raw::exit(1);
        }
        raw::syscall(libc::SYS_getpid, 0, 0, 0, 0, 0) as i32
    };
    control.reaper_pid.store(own, Ordering::Release);
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the leader's stack is the slot's other one; the leader touches only the control block.
    let leader = unsafe { super::clone::clone(flags, control.leader_stack, leader, argument) };
    for descriptor in control.descriptors {
        // SAFETY: this process's own copies; without this the readers would never see an end.
        unsafe { raw::syscall(libc::SYS_close, descriptor as usize, 0, 0, 0, 0) };
    }
    wipe(control.payload, control.payload_len);
    let exec = control.command.exec;
    if leader < 0 {
        control.leader_over.store(1, Ordering::Release);
        (control.report)(control.socket, exec, Event::Failed(Step::Clone, -leader as i32));
        control.reported.store(1, Ordering::Release);
        raw::exit(0);
    }
    let leader = leader as i32;
    control.leader_pid.store(leader, Ordering::Release);
    let failed = Step::from_number(control.failed_step.load(Ordering::Acquire));
    if let Some(step) = failed {
        let errno = control.failed_errno.load(Ordering::Acquire);
        (control.report)(control.socket, exec, Event::Failed(step, errno));
        control.reported.store(1, Ordering::Release);
    } else if control.command.want_started {
        (control.report)(control.socket, exec, Event::Started(leader));
    }
    reap_all(control, leader, failed.is_some())
}

fn reap_all(control: &Control, leader: i32, failed: bool) -> ! {
    loop {
        // SAFETY: all zeroes is a valid value of these plain structs.
        let (mut info, mut usage): (libc::siginfo_t, libc::rusage) = unsafe { std::mem::zeroed() };
        let options = (libc::WEXITED | libc::WNOWAIT | libc::__WALL) as usize;
        // SAFETY: pointers to locals on this process's own stack.
        let looked = unsafe {
            let info = (&raw mut info) as usize;
            raw::syscall(libc::SYS_waitid, libc::P_ALL as usize, 0, info, options, 0)
        };
        if looked == -(libc::EINTR as isize) {
            continue;
        }
        if looked < 0 {
            raw::exit(0);
        }
        // SAFETY: waitid filled it in.
        let pid = unsafe { info.si_pid() };
        if pid == leader {
            control.leader_over.store(1, Ordering::Release);
        }
        let mut status = 0;
        // SAFETY: pointers to locals on this process's own stack.
        unsafe {
            let (status, usage) = ((&raw mut status) as usize, (&raw mut usage) as usize);
            raw::syscall(libc::SYS_wait4, pid as usize, status, libc::__WALL as usize, usage, 0);
        }
        if pid == leader && !failed {
            let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
            // Said with the end itself, it spares the init and the daemon a message and a wake-up each.
            let last = control.being_killed.load(Ordering::Acquire) == 0 && has_no_child();
            let event = Event::Exited {
                status,
                user_us: micros(usage.ru_utime),
                system_us: micros(usage.ru_stime),
                max_rss_kib: usage.ru_maxrss as u64,
                blocks_in: usage.ru_inblock as u64,
                blocks_out: usage.ru_oublock as u64,
                last,
            };
            // Marked after: whoever kills the reaper in between has the init say it twice, never not at all.
            (control.report)(control.socket, control.command.exec, event);
            control.reported.store(1, Ordering::Release);
            if last {
                control.reported_last.store(1, Ordering::Release);
                raw::exit(0);
            }
        }
    }
}

/// Whether the calling process has no child, not even a zombie.
fn has_no_child() -> bool {
    let options = (libc::WEXITED | libc::WNOWAIT | libc::WNOHANG | libc::__WALL) as usize;
    // SAFETY: numbers only; no siginfo is asked for.
    let looked = unsafe { raw::syscall(libc::SYS_waitid, libc::P_ALL as usize, 0, 0, options, 0) };
    looked == -(libc::ECHILD as isize)
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

extern "C" fn leader(argument: *mut c_void) -> ! {
    // SAFETY: as in the reaper, which waits until this process has executed or ended.
    let control = unsafe { &*argument.cast::<Control>() };
    let (step, errno) = confine_and_execute(control);
    control.failed_errno.store(errno, Ordering::Release);
    control.failed_step.store(step as u32, Ordering::Release);
    raw::exit(127);
}

/// The order in which a command is made ready. Comes back only on a failure.
fn confine_and_execute(control: &Control) -> (Step, i32) {
    match process_group(control) {
        0 => {}
        errno => return (Step::ProcessGroup, errno),
    }
    match descriptors(control) {
        0 => {}
        errno => return (Step::Descriptors, errno),
    }
    match limits(control) {
        0 => {}
        errno => return (Step::Rlimit, errno),
    }
    match working_directory(control) {
        0 => {}
        errno => return (Step::WorkingDirectory, errno),
    }
    (Step::Exec, execute(control))
}

fn process_group(control: &Control) -> i32 {
    // SAFETY: numbers only.
    unsafe {
        let session = raw::syscall(libc::SYS_setsid, 0, 0, 0, 0, 0);
        if session < 0 {
            return -session as i32;
        }
        let death =
            raw::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize, 0, 0, 0);
        if death < 0 {
            return -death as i32;
        }
        let parent = raw::syscall(libc::SYS_getppid, 0, 0, 0, 0, 0) as i32;
        if parent != control.reaper_pid.load(Ordering::Acquire) {
            return libc::ESRCH;
        }
    }
    0
}

fn descriptors(control: &Control) -> i32 {
    for (target, descriptor) in control.descriptors.iter().enumerate() {
        // SAFETY: numbers only. All three are above 2: the init keeps 0 to 2 open.
        let result = unsafe { raw::syscall(libc::SYS_dup3, *descriptor as usize, target, 0, 0, 0) };
        if result < 0 {
            return -result as i32;
        }
    }
    let program = control.command.program;
    let close = |first: u32, last: u32| {
        // SAFETY: numbers only; this process's own copies.
        let result = unsafe { raw::syscall(libc::SYS_close_range, first as usize, last as usize, 0, 0, 0) };
        if result < 0 { -result as i32 } else { 0 }
    };
    if program < 3 {
        return close(3, u32::MAX);
    }
    let below = if program > 3 { close(3, program as u32 - 1) } else { 0 };
    if below != 0 { below } else { close(program as u32 + 1, u32::MAX) }
}

fn set_limit(resource: u32, soft: u64, hard: u64) -> i32 {
    let mut now = [0u64; 2];
    // SAFETY: a pointer to two words of ours, as struct rlimit64 has.
    let got =
        unsafe { raw::syscall(libc::SYS_prlimit64, 0, resource as usize, 0, (&raw mut now) as usize, 0) };
    if got < 0 {
        return -got as i32;
    }
    let [_, most] = now;
    let hard = if hard < most { hard } else { most };
    let wanted = [if soft < hard { soft } else { hard }, hard];
    // SAFETY: likewise.
    let set = unsafe {
        raw::syscall(libc::SYS_prlimit64, 0, resource as usize, (&raw const wanted) as usize, 0, 0)
    };
    if set < 0 { -set as i32 } else { 0 }
}

fn limits(control: &Control) -> i32 {
    let mut index = 0;
    while index < control.limit_count {
        let Some(limit) = control.limits.get(index) else {
            break;
        };
        let errno = set_limit(limit.resource, limit.soft, limit.hard);
        if errno != 0 {
            return errno;
        }
        index += 1;
    }
    if control.command.nproc == u64::MAX {
        return 0;
    }
    // SAFETY: all zeroes is a valid value of this plain struct.
    let mut facts: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: a pointer to a struct of ours.
    let got = unsafe { raw::syscall(libc::SYS_sysinfo, (&raw mut facts) as usize, 0, 0, 0, 0) };
    if got < 0 {
        return -got as i32;
    }
    let most = u64::from(facts.procs).saturating_add(control.command.nproc);
    set_limit(libc::RLIMIT_NPROC, most, most)
}

fn working_directory(control: &Control) -> i32 {
    if !control.command.has_cwd {
        return 0;
    }
    // SAFETY: the first pointer is the working directory, a NUL-terminated string in the payload.
    let result = unsafe { raw::syscall(libc::SYS_chdir, *control.pointers as usize, 0, 0, 0, 0) };
    if result < 0 { -result as i32 } else { 0 }
}

fn execute(control: &Control) -> i32 {
    let none = 0u64;
    // SAFETY: `pointers` holds [cwd] argv… null env… null; every string ends with a NUL within the payload.
    unsafe {
        let argv = control.pointers.add(usize::from(control.command.has_cwd));
        let environment = argv.add(control.command.argc + 1);
        raw::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK as usize,
            (&raw const none) as usize,
            0,
            8,
            0,
        );
        if control.command.program >= 0 {
            let path = c"".as_ptr() as usize;
            let flags = libc::AT_EMPTY_PATH as usize;
            let program = control.command.program as usize;
            return -raw::syscall(
                libc::SYS_execveat,
                program,
                path,
                argv as usize,
                environment as usize,
                flags,
            ) as i32;
        }
        let name = *argv;
        let mut has_slash = false;
        let mut length = 0;
        while *name.add(length) != 0 {
            has_slash |= *name.add(length) == b'/';
            length += 1;
        }
        if has_slash || length == 0 {
            return -raw::syscall(libc::SYS_execve, name as usize, argv as usize, environment as usize, 0, 0)
                as i32;
        }
        search(name, length, argv, environment)
    }
}

/// Tries the directories of the command's own `PATH`, as `execvp(3)` does; an empty part is left out.
///
/// # Safety
/// `name` is a string of `length` bytes; `argv` and `environment` are null-terminated lists of strings.
unsafe fn search(name: *const u8, length: usize, argv: *mut *const u8, environment: *mut *const u8) -> i32 {
    let mut candidate = [0u8; 4096];
    let room = candidate.as_mut_ptr();
    let mut errno = libc::ENOENT;
    // SAFETY: by contract; writes stay below 4096 by the checks.
    unsafe {
        let mut path = c"/usr/local/bin:/usr/bin:/bin".as_ptr().cast::<u8>();
        let mut entry = environment;
        while !(*entry).is_null() {
            let text = *entry;
            if *text == b'P'
                && *text.add(1) == b'A'
                && *text.add(2) == b'T'
                && *text.add(3) == b'H'
                && *text.add(4) == b'='
            {
                path = text.add(5);
            }
            entry = entry.add(1);
        }
        loop {
            let mut used = 0;
            while *path != 0 && *path != b':' {
                if used < 4094 {
                    room.add(used).write(*path);
                }
                used += 1;
                path = path.add(1);
            }
            if used > 0 && used + length + 2 <= 4096 {
                room.add(used).write(b'/');
                let mut index = 0;
                while index < length {
                    room.add(used + 1 + index).write(*name.add(index));
                    index += 1;
                }
                room.add(used + 1 + length).write(0);
                let result =
                    raw::syscall(libc::SYS_execve, room as usize, argv as usize, environment as usize, 0, 0);
                match -result as i32 {
                    libc::ENOENT | libc::ENOTDIR => {}
                    libc::EACCES => {
                        // A directory of `PATH` that may not be searched has no such program, as shells see it.
                        let at = libc::AT_FDCWD as usize;
                        if raw::syscall(libc::SYS_faccessat, at, room as usize, libc::F_OK as usize, 0, 0)
                            == 0
                        {
                            errno = libc::EACCES;
                        }
                    }
                    other => return other,
                }
            }
            if *path == 0 {
                return errno;
            }
            path = path.add(1);
        }
    }
}
