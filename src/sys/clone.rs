//! Children that share their parent's memory and run on a stack of their own.

use std::ffi::c_void;

/// What such a child runs. It never returns.
pub type Entry = extern "C" fn(*mut c_void) -> !;

/// `clone(2)` with `flags`, on the stack that ends at `stack_top`; yields the child's pid or a negated errno.
///
/// # Safety
/// `stack_top` is the 16-aligned end of memory that nobody else uses while the child lives; `argument` is what
/// `entry` expects and outlives the child; with `CLONE_VM`, `entry` touches nothing that the parent may touch
/// at the same time, takes no lock and uses no thread-local storage.
#[cfg(target_arch = "x86_64")]
pub unsafe fn clone(flags: i32, stack_top: *mut u8, entry: Entry, argument: *mut c_void) -> isize {
    let result: isize;
    // SAFETY: the child begins after `syscall` with rax 0 on the new stack and leaves only through `entry`;
    // r12 and r13 survive the call in both.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone as isize => result,
            in("rdi") flags as isize,
            in("rsi") stack_top,
            in("rdx") 0usize,
            in("r10") 0usize,
            in("r8") 0usize,
            in("r12") entry,
            in("r13") argument,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// `clone(2)` with `flags`, on the stack that ends at `stack_top`; yields the child's pid or a negated errno.
///
/// # Safety
/// As on other architectures: an unused 16-aligned stack, an argument that outlives the child, an `entry` that
/// touches nothing its parent may touch.
#[cfg(target_arch = "aarch64")]
pub unsafe fn clone(flags: i32, stack_top: *mut u8, entry: Entry, argument: *mut c_void) -> isize {
    let result: isize;
    // SAFETY: the child begins after `svc` with x0 0 on the new stack and leaves only through `entry`.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x21",
            "blr x20",
            "brk 1",
            "2:",
            in("x8") libc::SYS_clone,
            inlateout("x0") flags as isize => result,
            in("x1") stack_top,
            in("x2") 0usize,
            in("x3") 0usize,
            in("x4") 0usize,
            in("x20") entry,
            in("x21") argument,
        );
    }
    result
}

/// `fork(2)` of a process that has one thread. 0 in the child.
///
/// # Errors
/// The kernel's errno, or `EBUSY` where the caller has more than one thread.
pub fn fork_single_threaded() -> Result<i32, i32> {
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count).unwrap_or(0);
    if threads != 1 {
        return Err(libc::EBUSY);
    }
    // SAFETY: with one thread no lock of libc or the allocator can be held by another at the fork.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)),
        pid => Ok(pid),
    }
}

/// `clone(2)` as a fork into new namespaces, of a process that has one thread: `flags` are `CLONE_NEW*` and
/// `CLONE_PARENT`. 0 in the child.
///
/// libc's idea of the thread's id is stale in the child, so it must not use libc's threads; nothing here does.
///
/// # Errors
/// The kernel's errno, or `EBUSY` where the caller has more than one thread.
pub fn fork_into(flags: u32) -> Result<i32, i32> {
    if super::proc::numbers("self/task").map_or(0, |threads| threads.len()) != 1 {
        return Err(libc::EBUSY);
    }
    let flags = flags as usize | libc::SIGCHLD as usize;
    // SAFETY: without CLONE_VM the child has a copy of everything, its stack included, and no other thread can
    // hold a lock at this moment.
    let pid = unsafe { super::raw::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if pid < 0 { Err(-pid as i32) } else { Ok(pid as i32) }
}
