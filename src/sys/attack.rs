//! System calls that an attack suite makes to see whether they reach the kernel. Each is made with numbers and null
//! pointers only, such that it does no harm where it does; each is made in a child that ends right after.

use std::io;

/// A system call with all of its arguments. They are made here and nowhere else.
#[derive(Debug, Clone, Copy)]
pub struct Harmless(libc::c_long, [usize; 5]);

const NONE: usize = 0;
/// No descriptor.
const NO: usize = usize::MAX;

/// `bpf(BPF_MAP_CREATE)` without attributes.
pub const BPF: Harmless = Harmless(libc::SYS_bpf, [0, NONE, 0, 0, 0]);
/// `perf_event_open(2)` without attributes.
pub const PERF: Harmless = Harmless(libc::SYS_perf_event_open, [NONE, 0, NO, NO, 0]);
/// `userfaultfd(0)`.
pub const USERFAULTFD: Harmless = Harmless(libc::SYS_userfaultfd, [0; 5]);
/// `add_key(2)` without a type.
pub const ADD_KEY: Harmless = Harmless(libc::SYS_add_key, [NONE, NONE, NONE, 0, 0]);
/// `kexec_load(2)` of nothing.
pub const KEXEC: Harmless = Harmless(libc::SYS_kexec_load, [0; 5]);
/// `init_module(2)` of nothing.
pub const MODULE: Harmless = Harmless(libc::SYS_init_module, [NONE, 0, NONE, 0, 0]);
/// `personality(ADDR_NO_RANDOMIZE)`.
pub const PERSONALITY: Harmless = Harmless(libc::SYS_personality, [0x0004_0000, 0, 0, 0, 0]);
/// `seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER)` without a filter.
pub const LISTENER: Harmless = Harmless(libc::SYS_seccomp, [1, 8, NONE, 0, 0]);
/// `pidfd_getfd(2)` of no process.
pub const PIDFD_GETFD: Harmless = Harmless(libc::SYS_pidfd_getfd, [NO, 0, 0, 0, 0]);
/// `vmsplice(2)` to no pipe.
pub const VMSPLICE: Harmless = Harmless(libc::SYS_vmsplice, [NO, NONE, 0, 0, 0]);
/// `memfd_secret(0)`.
pub const MEMFD_SECRET: Harmless = Harmless(libc::SYS_memfd_secret, [0; 5]);
/// `process_madvise(2)` of no process.
pub const PROCESS_MADVISE: Harmless = Harmless(libc::SYS_process_madvise, [NO, NONE, 0, 0, 0]);
/// `name_to_handle_at(2)` without a path.
pub const NAME_TO_HANDLE: Harmless = Harmless(libc::SYS_name_to_handle_at, [NO, NONE, NONE, NONE, 0]);
/// `open_by_handle_at(2)` without a handle.
pub const OPEN_BY_HANDLE: Harmless = Harmless(libc::SYS_open_by_handle_at, [NO, NONE, 0, 0, 0]);
/// `fanotify_init(FAN_REPORT_FID)`, which anybody may.
pub const FANOTIFY: Harmless = Harmless(libc::SYS_fanotify_init, [0x200, 0, 0, 0, 0]);
/// `set_mempolicy(MPOL_DEFAULT)`.
pub const MEMPOLICY: Harmless = Harmless(libc::SYS_set_mempolicy, [0, NONE, 0, 0, 0]);
/// `swapon(2)` of nothing.
pub const SWAPON: Harmless = Harmless(libc::SYS_swapon, [NONE, 0, 0, 0, 0]);
/// `reboot(2)` without its magic numbers.
pub const REBOOT: Harmless = Harmless(libc::SYS_reboot, [0; 5]);
/// `syslog(SYSLOG_ACTION_SIZE_BUFFER)`.
pub const SYSLOG: Harmless = Harmless(libc::SYS_syslog, [10, NONE, 0, 0, 0]);
/// `settimeofday(2)` of nothing.
pub const SETTIMEOFDAY: Harmless = Harmless(libc::SYS_settimeofday, [NONE, NONE, 0, 0, 0]);
/// `setns(2)` of no descriptor.
pub const SETNS: Harmless = Harmless(libc::SYS_setns, [NO, 0, 0, 0, 0]);
/// `fsopen(2)` of no type.
pub const FSOPEN: Harmless = Harmless(libc::SYS_fsopen, [NONE, 0, 0, 0, 0]);
/// `move_mount(2)` of nothing.
pub const MOVE_MOUNT: Harmless = Harmless(libc::SYS_move_mount, [NO, NONE, NO, NONE, 0]);
/// `pivot_root(2)` without paths.
pub const PIVOT_ROOT: Harmless = Harmless(libc::SYS_pivot_root, [NONE, NONE, 0, 0, 0]);
/// `sethostname(2)` of no name.
pub const SETHOSTNAME: Harmless = Harmless(libc::SYS_sethostname, [NONE, 0, 0, 0, 0]);
/// `ioctl(0, TIOCSTI)` with a bit that the kernel drops (CVE-2019-7303).
pub const TIOCSTI: Harmless = Harmless(libc::SYS_ioctl, [0, 0x1_0000_5412, NONE, 0, 0]);
/// `socket(AF_ALG, SOCK_SEQPACKET)`.
pub const ALG: Harmless = Harmless(libc::SYS_socket, [38, 5, 0, 0, 0]);
/// `socket(AF_PACKET, SOCK_RAW)`.
pub const PACKET: Harmless = Harmless(libc::SYS_socket, [17, 3, 0, 0, 0]);
/// `socket(AF_VSOCK, SOCK_STREAM)`.
pub const VSOCK: Harmless = Harmless(libc::SYS_socket, [40, 1, 0, 0, 0]);
/// `socket(AF_INET, SOCK_RAW, IPPROTO_ICMP)`.
pub const RAW_INET: Harmless = Harmless(libc::SYS_socket, [2, 3, 1, 0, 0]);
/// `socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP)`, which gets round Landlock's rules on TCP.
pub const MPTCP: Harmless = Harmless(libc::SYS_socket, [2, 1, 262, 0, 0]);
/// `socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER)`.
pub const NETFILTER: Harmless = Harmless(libc::SYS_socket, [16, 3, 12, 0, 0]);
/// `getpid(2)` by x32's number; another architecture has none such.
pub const X32: Harmless = Harmless(0x4000_0000 + libc::SYS_getpid, [0; 5]);
/// `modify_ldt(2)` that reads nothing.
#[cfg(target_arch = "x86_64")]
pub const LDT: Harmless = Harmless(libc::SYS_modify_ldt, [0, NONE, 0, 0, 0]);
/// `iopl(3)`.
#[cfg(target_arch = "x86_64")]
pub const IOPL: Harmless = Harmless(libc::SYS_iopl, [3, 0, 0, 0, 0]);

impl Harmless {
    /// Makes the call; its error number, 0 for success.
    #[must_use]
    pub fn call(self) -> i32 {
        let Self(number, [a, b, c, d, e]) = self;
        // SAFETY: only the constants above are made; they hold numbers and null pointers, which the kernel refuses or
        // reads as nothing.
        errno(unsafe { libc::syscall(number, a, b, c, d, e) })
    }
}

fn errno(result: libc::c_long) -> i32 {
    if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) } else { 0 }
}

/// `getpid(2)` by the i386 entry; `ENOSYS` where the processor has none.
#[must_use]
pub fn i386() -> i32 {
    #[cfg(target_arch = "x86_64")]
    {
        let result: i32;
        // SAFETY: number 20 takes no argument; the entry clobbers r8 to r11 on old kernels.
        unsafe {
            std::arch::asm!("int 0x80", inlateout("eax") 20 => result, lateout("r8") _, lateout("r9") _,
                lateout("r10") _, lateout("r11") _);
        }
        if result < 0 { -result } else { 0 }
    }
    #[cfg(not(target_arch = "x86_64"))]
    libc::ENOSYS
}

/// `ptrace(PTRACE_SEIZE)`; what is traced is let go when the caller ends.
#[must_use]
pub fn trace(pid: i32) -> i32 {
    // SAFETY: takes numbers.
    errno(unsafe { libc::syscall(libc::SYS_ptrace, 0x4206, pid, 0usize, 0usize) })
}

/// `process_vm_readv(2)` of a page that hardly anybody has: `EFAULT` where it is not denied.
#[must_use]
pub fn read_memory_of(pid: i32) -> i32 {
    let mut byte = 0u8;
    let own = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let theirs = libc::iovec { iov_base: std::ptr::without_provenance_mut(0x1000), iov_len: 1 };
    // SAFETY: one vector of a byte of ours that is written; the other's address is of the other process alone.
    errno(unsafe { libc::process_vm_readv(pid, &raw const own, 1, &raw const theirs, 1, 0) } as libc::c_long)
}

/// A segment of System V shared memory that its user alone may use; gone when dropped.
#[derive(Debug)]
pub struct SharedMemory {
    key: i32,
    id: i32,
}

impl SharedMemory {
    /// Makes one of a page, under a key that nobody has: `key` or one of those that follow it.
    ///
    /// # Errors
    /// The kernel's; `EEXIST` where all that were tried are taken.
    pub fn new(key: i32) -> io::Result<Self> {
        for key in (0..16).map(|more| (key.wrapping_add(more) & i32::MAX).max(1)) {
            // SAFETY: takes numbers.
            let id = unsafe { libc::shmget(key, 4096, libc::IPC_CREAT | libc::IPC_EXCL | 0o600) };
            match errno(id.into()) {
                0 => return Ok(Self { key, id }),
                libc::EEXIST => {}
                other => return Err(io::Error::from_raw_os_error(other)),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EEXIST))
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> i32 {
        self.key
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: a segment that this value made; removing takes no buffer.
        unsafe { libc::shmctl(self.id, libc::IPC_RMID, std::ptr::null_mut()) };
    }
}

/// `shmget(2)` of a segment that somebody has made.
#[must_use]
pub fn shared_memory(key: i32) -> i32 {
    // SAFETY: takes numbers.
    errno(unsafe { libc::shmget(key, 0, 0o600) }.into())
}

/// `setpriority(2)` of the caller.
#[must_use]
pub fn priority(nice: i32) -> i32 {
    // SAFETY: takes numbers.
    errno(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_there_for_as_long_as_it_is_held() {
        let segment = SharedMemory::new(std::process::id() as i32).unwrap();
        let key = segment.key();
        assert_eq!(shared_memory(key), 0);
        drop(segment);
        assert_eq!(shared_memory(key), libc::ENOENT);
    }

    #[test]
    fn a_call_that_reaches_the_kernel_says_so() {
        assert_eq!((VMSPLICE.call(), SETNS.call()), (libc::EBADF, libc::EBADF));
        assert_eq!(trace(i32::MAX), libc::ESRCH);
        assert_eq!(read_memory_of(std::process::id() as i32), libc::EFAULT);
    }
}
