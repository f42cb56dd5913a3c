//! The list. Names say what an attacker wants; what is denied stands beside its control.

use super::Kind::{Attack, Control, InternetControl};
use super::{Entry, files, others};
use crate::launcher::probe;
use crate::sys::{attack, attempt};

/// Denied by rights, or by a filter.
const DENIED: &[i32] = &[libc::EPERM, libc::EACCES, libc::ENOSYS];
/// Not there, or denied.
const ABSENT: &[i32] = &[libc::ENOENT, libc::ENOTDIR, libc::ENXIO, libc::EACCES, libc::EPERM];
/// Not there, or no such call.
const ABSENT_CALL: &[i32] = &[libc::ENOENT, libc::ENOSYS, libc::EACCES, libc::EPERM];
/// Read-only, not there, or denied.
const UNWRITABLE: &[i32] = &[libc::EROFS, libc::ENOENT, libc::EACCES, libc::EPERM];
/// There, and empty.
const EMPTY: &[i32] = &[libc::ENODATA, libc::ENOENT, libc::EACCES, libc::EPERM];
/// Not seen, or denied.
const NOBODY: &[i32] = &[libc::ESRCH, libc::ENOENT, libc::EPERM, libc::EACCES, libc::ENOSYS];
/// Nobody listens there, there is no way there, or no such socket.
const UNREACHED: &[i32] = &[
    libc::ECONNREFUSED,
    libc::ENETUNREACH,
    libc::ENOENT,
    libc::EACCES,
    libc::EPERM,
    libc::ENOSYS,
    libc::EAFNOSUPPORT,
];
/// No such socket.
const NO_SOCKET: &[i32] =
    &[libc::EAFNOSUPPORT, libc::EPROTONOSUPPORT, libc::EPERM, libc::EACCES, libc::ENOSYS];
/// Killed by a filter, or no such entry to the kernel.
const KILLED: &[i32] = &[attempt::SIGNAL + libc::SIGSYS, attempt::SIGNAL + libc::SIGSEGV, libc::ENOSYS];

const fn entry(
    group: &'static str,
    name: &'static str,
    kind: super::Kind,
    run: fn(&super::Bait) -> i32,
) -> Entry {
    Entry { group, name, kind, run }
}

/// Everything that is tried, in this order.
pub const ALL: &[Entry] = &[
    entry("files", "write and read back in the working directory", Control, |_| files::round_trip()),
    entry("files", "list the system's programs", Control, |_| files::list(c"/usr")),
    entry("files", "read /etc/shadow", Attack(EMPTY), |_| files::read("/etc/shadow")),
    entry("files", "read a file that the daemon's user alone can read", Attack(EMPTY), |bait| {
        files::read_at(&bait.file)
    }),
    entry("files", "read the host's shared memory", Attack(EMPTY), |bait| files::read_at(&bait.shared)),
    entry("files", "find the host's System V shared memory", Attack(ABSENT_CALL), |bait| {
        attack::shared_memory(bait.key)
    }),
    entry("files", "list the host's homes", Attack(ABSENT), |_| files::list(c"/home")),
    entry("files", "list the host's devices in /sys", Attack(ABSENT), |_| files::list(c"/sys/devices")),
    entry("files", "list the host's /var", Attack(ABSENT), |_| files::list(c"/var/lib")),
    entry("files", "make a file in /usr", Attack(UNWRITABLE), |_| files::make("/usr")),
    entry("files", "make a file in /etc", Attack(UNWRITABLE), |_| files::make("/etc")),
    entry("files", "make a file in /", Attack(UNWRITABLE), |_| files::make("/")),
    entry(
        "files",
        "open the system's shell for writing",
        Attack(&[libc::EROFS, libc::EACCES, libc::EPERM]),
        |_| attempt::open(c"/bin/sh", libc::O_WRONLY),
    ),
    entry("files", "make a set-user-id file", Attack(DENIED), |_| files::set_user_id()),
    entry("files", "name a file by handle", Attack(DENIED), |_| attack::NAME_TO_HANDLE.call()),
    entry("files", "open a file by handle", Attack(DENIED), |_| attack::OPEN_BY_HANDLE.call()),
    entry("files", "watch a whole file system", Attack(DENIED), |_| attack::FANOTIFY.call()),
    entry("processes", "make and wait for a child", Control, |_| attempt::in_child(|| 0)),
    entry("processes", "signal a child", Control, |_| others::signal_child()),
    entry("processes", "see the supervisor in /proc", Attack(NOBODY), others::see_supervisor),
    entry("processes", "signal the supervisor", Attack(NOBODY), others::signal_supervisor),
    entry("processes", "read the supervisor's environment", Attack(NOBODY), |bait| {
        others::of_supervisor(bait, "environ")
    }),
    entry("processes", "enter the supervisor's root", Attack(NOBODY), |bait| {
        others::of_supervisor(bait, "root/etc/passwd")
    }),
    entry("processes", "trace the first process", Attack(NOBODY), |_| attack::trace(1)),
    entry("processes", "read the first process's memory", Attack(NOBODY), |_| attack::read_memory_of(1)),
    entry("processes", "open the first process's memory", Attack(ABSENT), |_| {
        attempt::open(c"/proc/1/mem", libc::O_RDWR)
    }),
    entry("processes", "trace the watcher of this command", Attack(NOBODY), |_| {
        others::with_watcher(attack::trace)
    }),
    entry("processes", "take descriptors of another process", Attack(DENIED), |_| attack::PIDFD_GETFD.call()),
    entry("processes", "advise another process's memory", Attack(DENIED), |_| attack::PROCESS_MADVISE.call()),
    entry("processes", "take a higher priority", Attack(DENIED), |_| attack::priority(-5)),
    entry("processes", "be spared when memory is short", Attack(UNWRITABLE), |_| {
        files::write("/proc/self/oom_score_adj", b"-1000")
    }),
    entry("processes", "allow core files again", Attack(&[libc::EPERM]), |_| others::core_files()),
    entry("namespaces", "make a child as any program does", Control, |_| attempt::in_child(|| 0)),
    entry(
        "namespaces",
        "unshare a user namespace",
        Attack(&[libc::EPERM, libc::ENOSYS, libc::ENOSPC]),
        |_| attempt::user_namespace(),
    ),
    entry(
        "namespaces",
        "clone into a user namespace",
        Attack(&[libc::EPERM, libc::ENOSYS, libc::ENOSPC]),
        |_| others::clone_user_namespace(),
    ),
    entry("namespaces", "reach clone3, whose flags no filter sees", Attack(DENIED), |_| attempt::clone3()),
    entry("namespaces", "reach setns", Attack(DENIED), |_| attack::SETNS.call()),
    entry("namespaces", "mount", Attack(DENIED), |_| attempt::mount()),
    entry("namespaces", "mount by descriptor", Attack(DENIED), |_| attack::FSOPEN.call()),
    entry("namespaces", "move a mount", Attack(DENIED), |_| attack::MOVE_MOUNT.call()),
    entry("namespaces", "pivot_root", Attack(DENIED), |_| attack::PIVOT_ROOT.call()),
    entry("namespaces", "chroot", Attack(DENIED), |_| others::chroot()),
    entry("namespaces", "rename the host", Attack(DENIED), |_| attack::SETHOSTNAME.call()),
    entry("namespaces", "find the host's mounts", Attack(&[libc::ENODATA]), |_| others::host_mounts()),
    entry("system calls", "start a program", Control, |_| others::start_program()),
    entry("system calls", "bpf", Attack(DENIED), |_| attack::BPF.call()),
    entry("system calls", "perf_event_open", Attack(DENIED), |_| attack::PERF.call()),
    entry("system calls", "userfaultfd", Attack(DENIED), |_| attack::USERFAULTFD.call()),
    entry("system calls", "io_uring_setup, which gets round filters", Attack(DENIED), |_| {
        attempt::io_uring()
    }),
    entry("system calls", "kexec_load", Attack(DENIED), |_| attack::KEXEC.call()),
    entry("system calls", "init_module", Attack(DENIED), |_| attack::MODULE.call()),
    entry("system calls", "reboot", Attack(DENIED), |_| attack::REBOOT.call()),
    entry("system calls", "swapon", Attack(DENIED), |_| attack::SWAPON.call()),
    entry("system calls", "syslog", Attack(DENIED), |_| attack::SYSLOG.call()),
    entry("system calls", "set the clock", Attack(DENIED), |_| attack::SETTIMEOFDAY.call()),
    entry("system calls", "switch address randomisation off", Attack(DENIED), |_| attack::PERSONALITY.call()),
    entry("system calls", "answer system calls of children", Attack(DENIED), |_| attack::LISTENER.call()),
    entry("system calls", "vmsplice", Attack(DENIED), |_| attack::VMSPLICE.call()),
    entry("system calls", "memfd_secret", Attack(DENIED), |_| attack::MEMFD_SECRET.call()),
    entry("system calls", "set_mempolicy", Attack(DENIED), |_| attack::MEMPOLICY.call()),
    #[cfg(target_arch = "x86_64")]
    entry("system calls", "modify_ldt", Attack(DENIED), |_| attack::LDT.call()),
    #[cfg(target_arch = "x86_64")]
    entry("system calls", "iopl", Attack(DENIED), |_| attack::IOPL.call()),
    entry("system calls", "the numbers of x32", Attack(KILLED), |_| attack::X32.call()),
    entry("system calls", "the entry of i386", Attack(KILLED), |_| attack::i386()),
    entry("network", "talk over a pair of sockets", Control, |_| others::socket_pair()),
    entry("network", "talk over the session's own loopback", InternetControl, |_| others::own_loopback()),
    entry("network", "connect to the host's loopback", Attack(UNREACHED), |bait| others::connect(bait.port)),
    entry("network", "find a route out", Attack(UNREACHED), |_| probe::route()),
    entry("network", "find an interface beside the loopback", Attack(&[libc::ENODEV, libc::ENOSYS]), |_| {
        others::interface()
    }),
    entry("network", "connect to an abstract socket of the host", Attack(UNREACHED), |bait| {
        others::connect_abstract(&bait.abstract_name)
    }),
    entry("network", "connect to the supervisor's socket", Attack(UNREACHED), |bait| {
        others::connect_unix(&bait.socket)
    }),
    entry("network", "connect to a container engine's socket", Attack(UNREACHED), |_| {
        others::connect_unix(std::path::Path::new("/run/docker.sock"))
    }),
    entry("network", "a socket of the kernel's cryptography", Attack(NO_SOCKET), |_| attack::ALG.call()),
    entry("network", "a socket for raw packets", Attack(NO_SOCKET), |_| attack::PACKET.call()),
    entry("network", "a socket to the hypervisor", Attack(NO_SOCKET), |_| attack::VSOCK.call()),
    entry("network", "a raw internet socket", Attack(NO_SOCKET), |_| attack::RAW_INET.call()),
    entry("network", "a multipath TCP socket", Attack(NO_SOCKET), |_| attack::MPTCP.call()),
    entry("network", "a socket to the packet filter", Attack(NO_SOCKET), |_| attack::NETFILTER.call()),
    entry("devices", "read random bytes and write to null", Control, |_| files::usual_devices()),
    entry("devices", "read the machine's memory", Attack(ABSENT), |_| files::device(c"/dev/mem")),
    entry("devices", "read the kernel's log", Attack(ABSENT), |_| files::device(c"/dev/kmsg")),
    entry("devices", "make a virtual machine", Attack(ABSENT), |_| files::device(c"/dev/kvm")),
    entry("devices", "make a file system in user space", Attack(ABSENT), |_| files::device(c"/dev/fuse")),
    entry("devices", "make a network interface", Attack(ABSENT), |_| files::device(c"/dev/net/tun")),
    entry("devices", "find any other device", Attack(&[libc::ENODEV]), |_| files::other_devices()),
    entry("devices", "make a block device", Attack(DENIED), |_| files::block_device()),
    entry("devices", "type into a terminal", Attack(DENIED), |_| attack::TIOCSTI.call()),
    entry("credentials", "have an ordinary user", Control, |_| others::ordinary_user()),
    entry("credentials", "become root", Attack(&[libc::EPERM, libc::EINVAL]), |_| others::become_root()),
    entry("credentials", "become group 0", Attack(&[libc::EPERM, libc::EINVAL]), |_| others::become_wheel()),
    entry("credentials", "find a capability in any set", Attack(&[libc::ENODATA]), |_| others::capability()),
    entry("credentials", "gain by a set-user-id program", Attack(&[libc::EPERM]), |_| {
        others::new_privileges()
    }),
    entry("credentials", "read the session keyring", Attack(DENIED), |_| attempt::keyctl()),
    entry("credentials", "add a key", Attack(DENIED), |_| attack::ADD_KEY.call()),
    entry("credentials", "find a variable that nobody gave", Attack(&[libc::ENODATA]), |_| {
        others::variable()
    }),
    entry("credentials", "find a descriptor that nobody gave", Attack(&[libc::ENODATA]), |_| {
        others::descriptor()
    }),
    entry("procfs", "read one's own entries", Control, |_| files::read("/proc/self/status")),
    entry("procfs", "read the kernel's symbols", Attack(EMPTY), |_| files::read("/proc/kallsyms")),
    entry("procfs", "read the kernel's memory", Attack(EMPTY), |_| files::read("/proc/kcore")),
    entry("procfs", "read the kernel's configuration", Attack(EMPTY), |_| files::read("/proc/config.gz")),
    entry("procfs", "read the kernel's timers", Attack(EMPTY), |_| files::read("/proc/timer_list")),
    entry("procfs", "read the keys of the host", Attack(EMPTY), |_| files::read("/proc/keys")),
    entry("procfs", "read the first process's environment", Attack(EMPTY), |_| {
        files::read("/proc/1/environ")
    }),
    entry("procfs", "enter the first process's root", Attack(ABSENT), |_| {
        attempt::open(c"/proc/1/root", libc::O_RDONLY | libc::O_DIRECTORY)
    }),
    entry("procfs", "press a system request key", Attack(UNWRITABLE), |_| {
        attempt::open(c"/proc/sysrq-trigger", libc::O_WRONLY)
    }),
    entry("procfs", "choose what handles core files", Attack(UNWRITABLE), |_| {
        attempt::open(c"/proc/sys/kernel/core_pattern", libc::O_WRONLY)
    }),
    entry("procfs", "choose what loads modules", Attack(UNWRITABLE), |_| {
        attempt::open(c"/proc/sys/kernel/modprobe", libc::O_WRONLY)
    }),
];
