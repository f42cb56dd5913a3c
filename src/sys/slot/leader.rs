//! The leader: from the reaper's `clone(2)` to the command's `execve(2)`.

use super::{Control, Step};
use crate::sys::raw;
use std::ffi::c_void;
use std::sync::atomic::Ordering;

pub extern "C" fn leader(argument: *mut c_void) -> ! {
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
    let wanted = [if soft < hard { soft } else { hard }, hard];
    // SAFETY: a pointer to two words of ours, as struct rlimit64 has.
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
    let most = u64::from(facts.procs).saturating_add(control.command.nproc).min(control.command.nproc_hard);
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
