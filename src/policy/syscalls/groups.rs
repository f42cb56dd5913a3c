//! Named groups of system calls.

macro_rules! names {
    ($($name:ident)*) => { &[$(stringify!($name),)*] };
}

/// Names of the groups and their members.
const GROUPS: [(&str, &[&str]); 7] = [
    ("strict-base", STRICT_BASE),
    ("base", BASE),
    ("network", NETWORK),
    ("threads", THREADS),
    ("sysv-ipc", SYSV_IPC),
    ("debug", DEBUG),
    ("nested", NESTED),
];

/// A group's members, those that only other architectures have among them.
#[must_use]
pub fn group(name: &str) -> Option<&'static [&'static str]> {
    GROUPS.iter().find(|(known, _)| *known == name).map(|(_, members)| *members)
}

/// The groups' names.
pub fn groups() -> impl Iterator<Item = &'static str> {
    GROUPS.iter().map(|(name, _)| *name)
}

/// What is answered `EPERM` unless a policy means to allow it. Left out on purpose, hence `ENOSYS`, are `clone3`, whose
/// flags no filter can see, `io_uring`, which gets round every filter, and `statmount` and `listmount`.
#[must_use]
pub fn refused(strict: bool) -> Vec<u32> {
    let more = if strict { REFUSED_IN_STRICT } else { &[] };
    REFUSED.iter().chain(more).filter_map(|name| super::number(name)).collect()
}

/// To the bone, yet enough for an init, `sh`, coreutils and Python. No socket of any family but by pair.
const STRICT_BASE: &[&str] = names! {
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 open openat creat close
    close_range lseek stat lstat fstat newfstatat statx statfs fstatfs access faccessat faccessat2
    readlink readlinkat getdents getdents64 getcwd chdir fchdir mkdir mkdirat mknod mknodat rmdir unlink
    unlinkat rename renameat renameat2 link linkat symlink symlinkat chmod fchmod fchmodat fchmodat2
    chown fchown lchown fchownat utime utimes futimesat utimensat umask truncate ftruncate fallocate
    fsync fdatasync fadvise64 copy_file_range sendfile getxattr lgetxattr fgetxattr listxattr llistxattr
    flistxattr dup dup2 dup3 pipe pipe2 fcntl flock ioctl poll ppoll select pselect6 epoll_create
    epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd signalfd4
    timerfd_create timerfd_settime timerfd_gettime socketpair sendto recvfrom sendmsg recvmsg getsockopt
    setsockopt getsockname getpeername shutdown brk mmap munmap mprotect mremap madvise msync getrandom
    execve execveat exit exit_group fork vfork clone wait4 waitid kill tkill tgkill pidfd_open
    pidfd_send_signal getpid getppid gettid getpgid getpgrp setpgid getsid setsid getuid geteuid getgid
    getegid getresuid getresgid getgroups setuid setgid setreuid setregid setresuid setresgid setfsuid
    setfsgid setgroups capget capset prctl arch_prctl personality prlimit64 getrlimit setrlimit
    getrusage times getpriority setpriority sysinfo uname getcpu set_tid_address set_robust_list
    get_robust_list rseq futex sched_yield sched_getaffinity sched_getparam sched_getscheduler
    rt_sigaction rt_sigprocmask rt_sigpending rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_tgsigqueueinfo sigaltstack pause restart_syscall time gettimeofday clock_gettime clock_getres
    clock_nanosleep nanosleep alarm getitimer setitimer timer_create timer_settime timer_gettime
    timer_getoverrun timer_delete
};

/// What shells, compilers, version control and interpreters use: all of `strict-base` and more.
const BASE: &[&str] = names! {
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 open openat creat close
    close_range lseek stat lstat fstat newfstatat statx statfs fstatfs access faccessat faccessat2
    readlink readlinkat getdents getdents64 getcwd chdir fchdir mkdir mkdirat mknod mknodat rmdir unlink
    unlinkat rename renameat renameat2 link linkat symlink symlinkat chmod fchmod fchmodat fchmodat2
    chown fchown lchown fchownat utime utimes futimesat utimensat umask truncate ftruncate fallocate
    fsync fdatasync fadvise64 copy_file_range sendfile getxattr lgetxattr fgetxattr listxattr llistxattr
    flistxattr dup dup2 dup3 pipe pipe2 fcntl flock ioctl poll ppoll select pselect6 epoll_create
    epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd signalfd4
    timerfd_create timerfd_settime timerfd_gettime socketpair sendto recvfrom sendmsg recvmsg getsockopt
    setsockopt getsockname getpeername shutdown brk mmap munmap mprotect mremap madvise msync getrandom
    execve execveat exit exit_group fork vfork clone wait4 waitid kill tkill tgkill pidfd_open
    pidfd_send_signal getpid getppid gettid getpgid getpgrp setpgid getsid setsid getuid geteuid getgid
    getegid getresuid getresgid getgroups setuid setgid setreuid setregid setresuid setresgid setfsuid
    setfsgid setgroups capget capset prctl arch_prctl personality prlimit64 getrlimit setrlimit
    getrusage times getpriority setpriority sysinfo uname getcpu set_tid_address set_robust_list
    get_robust_list rseq futex sched_yield sched_getaffinity sched_getparam sched_getscheduler
    rt_sigaction rt_sigprocmask rt_sigpending rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_tgsigqueueinfo sigaltstack pause restart_syscall time gettimeofday clock_gettime clock_getres
    clock_nanosleep nanosleep alarm getitimer setitimer timer_create timer_settime timer_gettime
    timer_getoverrun timer_delete openat2 sync syncfs sync_file_range readahead splice tee setxattr
    lsetxattr fsetxattr removexattr lremovexattr fremovexattr setxattrat getxattrat listxattrat
    removexattrat file_getattr file_setattr inotify_init inotify_init1 inotify_add_watch
    inotify_rm_watch sendmmsg recvmmsg memfd_create mincore cachestat mlock mlock2 mlockall munlock
    munlockall remap_file_pages pkey_alloc pkey_free pkey_mprotect mseal map_shadow_stack membarrier
    get_mempolicy process_mrelease futex_waitv futex_wait futex_wake futex_requeue sched_setaffinity
    sched_setparam sched_setscheduler sched_setattr sched_getattr sched_get_priority_max
    sched_get_priority_min sched_rr_get_interval ioprio_get ioprio_set seccomp landlock_create_ruleset
    landlock_add_rule landlock_restrict_self
};

/// Sockets. Which families is the plan's to say.
const NETWORK: &[&str] = names! {
    socket connect bind listen accept accept4 socketpair sendto recvfrom sendmsg recvmsg sendmmsg
    recvmmsg getsockopt setsockopt getsockname getpeername shutdown
};

/// Threads, for a policy that is put together from less than a base.
const THREADS: &[&str] = names! {
    clone futex futex_waitv futex_wait futex_wake futex_requeue set_robust_list get_robust_list
    set_tid_address rseq membarrier gettid tgkill sched_yield sched_getaffinity sched_setaffinity
};

/// System V IPC, and the message queues of POSIX. Both belong to the IPC namespace.
const SYSV_IPC: &[&str] = names! {
    shmget shmat shmdt shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl mq_open
    mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
};

/// Looking into processes of one's own: debuggers, tracers, leak checkers.
const DEBUG: &[&str] = names! {
    ptrace process_vm_readv process_vm_writev
};

/// Sandboxes within the session. With `unshare` allowed, `clone` may make namespaces too.
const NESTED: &[&str] = names! {
    unshare setns mount umount2 pivot_root chroot open_tree open_tree_attr move_mount fsopen fsconfig
    fsmount fspick mount_setattr sethostname setdomainname
};

/// Beyond the session, or needless to it and rich in holes.
const REFUSED: &[&str] = names! {
    mount umount2 pivot_root chroot open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick
    mount_setattr unshare setns ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd
    kcmp keyctl add_key request_key bpf perf_event_open userfaultfd memfd_secret vmsplice modify_ldt
    fanotify_init fanotify_mark name_to_handle_at open_by_handle_at mbind set_mempolicy
    set_mempolicy_home_node move_pages migrate_pages init_module finit_module delete_module kexec_load
    kexec_file_load reboot swapon swapoff acct quotactl quotactl_fd syslog iopl ioperm settimeofday
    clock_settime clock_adjtime adjtimex sethostname setdomainname vhangup lookup_dcookie nfsservctl
};

/// What the page cache tells of others, and attributes that outlive the session.
const REFUSED_IN_STRICT: &[&str] = names! { mincore cachestat file_setattr };
