//! System calls without libc: no errno, no thread-local storage, no lock. For processes that share their
//! memory with another one (`CLONE_VM`), where libc's errno would be the other's too.
//!
//! Each returns the kernel's value: a result, or the negated error number.

#[cfg(target_arch = "x86_64")]
/// One system call with up to five arguments.
///
/// # Safety
/// The arguments must be what the call numbered `number` takes; pointers must hold for as long as it needs.
#[inline]
pub unsafe fn syscall(number: i64, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result: isize;
    // SAFETY: the x86_64 convention clobbers rax, rcx and r11 only; the caller answers for the arguments.
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b,
            in("rdx") c, in("r10") d, in("r8") e, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

#[cfg(target_arch = "aarch64")]
/// One system call with up to five arguments.
///
/// # Safety
/// The arguments must be what the call numbered `number` takes; pointers must hold for as long as it needs.
#[inline]
pub unsafe fn syscall(number: i64, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result: isize;
    // SAFETY: the aarch64 convention returns in x0 and keeps the rest; the caller answers for the arguments.
    unsafe {
        std::arch::asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c,
            in("x3") d, in("x4") e, options(nostack));
    }
    result
}

/// `exit_group(2)`.
pub fn exit(code: i32) -> ! {
    loop {
        // SAFETY: takes a number; does not return.
        unsafe { syscall(libc::SYS_exit_group, code as usize, 0, 0, 0, 0) };
    }
}
