//! The reaper: starts one command after another, and waits for all that each of them started.

use super::leader::leader;
use super::{Control, Event, GONE, IDLE, Step};
use crate::sys::{clone, raw};
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};

fn wipe(start: *mut u8, length: usize) {
    for offset in 0..length {
        // SAFETY: within the payload, whose only user is the reaper now that the leader has executed or ended.
        unsafe { start.add(offset).write_volatile(0) };
    }
}

/// Runs on the slot's first stack until it has nothing to do for a while, or has lost count of its command.
pub extern "C" fn reaper(argument: *mut c_void) -> ! {
    let control = argument.cast::<Control>();
    let name = c"trl-reaper".as_ptr() as usize;
    // SAFETY: numbers and a static string; the control block was written before this process was made.
    let (own, inbox) = unsafe {
        raw::syscall(libc::SYS_prctl, libc::PR_SET_NAME as usize, name, 0, 0, 0);
        raw::syscall(libc::SYS_prctl, libc::PR_SET_CHILD_SUBREAPER as usize, 1, 0, 0, 0);
        raw::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize, 0, 0, 0);
        if raw::syscall(libc::SYS_getppid, 0, 0, 0, 0, 0) as i32 != (*control).init_pid {
            raw::exit(1);
        }
        (raw::syscall(libc::SYS_getpid, 0, 0, 0, 0, 0) as i32, (*control).inbox)
    };
    // SAFETY: an atomic of the slot, which no `start` overwrites.
    let state = unsafe { &*super::state_beside(control) };
    loop {
        {
            // SAFETY: the state is `BUSY`: until this process says otherwise, nobody writes to the block but
            // through its atomics.
            let control = unsafe { &*control };
            control.reaper_pid.store(own, Ordering::Release);
            serve(control);
        }
        if inbox < 0 {
            raw::exit(0);
        }
        state.store(IDLE, Ordering::Release);
        let descriptors = next(inbox, state);
        // SAFETY: the init has claimed the slot for this command (`BUSY`) and looks at this part no more.
        unsafe { (*control).descriptors = descriptors };
    }
}

/// The descriptors of the next command; does not come back where none comes.
fn next(inbox: i32, state: &AtomicU32) -> [i32; 3] {
    loop {
        let mut byte = 0u8;
        // A header of 16 bytes and three descriptors, in words for their alignment.
        let mut rights = [0u64; 4];
        let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        // SAFETY: all zeroes is a valid value of this plain struct.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut rights).cast();
        header.msg_controllen = std::mem::size_of_val(&rights) as _;
        let flags = libc::MSG_CMSG_CLOEXEC as usize;
        // SAFETY: all pointers are to locals of this frame with their sizes.
        let got = unsafe {
            raw::syscall(libc::SYS_recvmsg, inbox as usize, (&raw mut header) as usize, flags, 0, 0)
        };
        if got == -(libc::EINTR as isize) {
            continue;
        }
        if got == -(libc::EAGAIN as isize) {
            // Nothing for a while. A command that was just given is waited for.
            if state.compare_exchange(IDLE, GONE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                raw::exit(0);
            }
            continue;
        }
        let [length, kind, first, third] = rights;
        if got != 1 || length != 28 || kind != (libc::SOL_SOCKET as u64 | (libc::SCM_RIGHTS as u64) << 32) {
            raw::exit(0);
        }
        return [first as u32 as i32, (first >> 32) as i32, third as u32 as i32];
    }
}

/// Starts the command and waits; comes back when nothing of it lives and its end was told.
fn serve(control: &Control) {
    let argument = std::ptr::from_ref(control).cast_mut().cast();
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the leader's stack is the slot's other one; the leader touches only the control block.
    let leader = unsafe { clone::clone(flags, control.leader_stack, leader, argument) };
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
    reap_all(control, leader, failed.is_some());
}

/// Comes back where nothing was left when the leader's end was told, else exits when nothing is.
fn reap_all(control: &Control, leader: i32, failed: bool) {
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
                return;
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
