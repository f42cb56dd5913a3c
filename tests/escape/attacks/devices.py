HARMLESS = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "fd", "stdin", "stdout", "stderr"}


@test
def device_nodes():
    for kind, name in [(stat.S_IFBLK, "block"), (stat.S_IFCHR, "character")]:
        for where in [SCRATCH, "/tmp", "/dev/shm"]:
            denied(f"make a {name} device in {where[:8]}", lambda: os.mknod(f"{where}/device", kind | 0o600, os.makedev(8 if kind == stat.S_IFBLK else 1, 0)), "EPERM")
    for name in ["mem", "kmem", "port", "kmsg", "kvm", "fuse", "net/tun", "vsock", "vhost-net", "autofs", "loop-control",
                 "loop0", "sda", "vda", "nvme0", "console", "tty0", "ttyS0", "input", "snd", "dri", "userfaultfd",
                 "cpu_dma_latency", "hwrng", "rtc", "uinput", "mapper/control", "btrfs-control", "cuse", "ppp"]:
        denied(f"open /dev/{name}", lambda: opened(f"/dev/{name}"), "ENOENT")
    denied("find anything else in /dev", lambda: set(os.listdir("/dev")) - HARMLESS, "nothing")
    denied("find a device elsewhere", lambda: [path for top in ("/workspace", "/tmp", "/run", "/etc", "/opt") for path, _, names in os.walk(top)
           for name in names if stat.S_IFMT(os.lstat(f"{path}/{name}").st_mode) in (stat.S_IFBLK, stat.S_IFCHR)], "nothing")
    denied("change the mode of /dev/null", lambda: os.chmod("/dev/null", 0o600), "EROFS", "EPERM")
    denied("put something into /dev", lambda: opened("/dev/x", os.O_CREAT | os.O_WRONLY), "EROFS", "EACCES")
    denied("take something out of /dev", lambda: os.unlink("/dev/null"), "EROFS", "EACCES")
    allowed("write to /dev/null", lambda: write("/dev/null", "x"))
    allowed("read /dev/urandom", lambda: len(read("/dev/urandom", 16)) == 16)
    allowed("make a pipe with a name", lambda: os.mkfifo(f"{SCRATCH}/pipe"))


@test
def kernel_knobs():
    for name in ["sys/kernel/core_pattern", "sys/kernel/modprobe", "sys/kernel/hostname", "sys/kernel/ns_last_pid", "sys/kernel/sysrq",
                 "sys/kernel/randomize_va_space", "sys/kernel/yama/ptrace_scope", "sys/kernel/shmmax", "sys/kernel/domainname",
                 "sys/kernel/unprivileged_bpf_disabled", "sys/kernel/keys/maxkeys", "sys/fs/binfmt_misc/register", "sys/fs/suid_dumpable",
                 "sys/fs/protected_symlinks", "sys/fs/mqueue/queues_max", "sys/vm/drop_caches", "sys/vm/overcommit_memory",
                 "sys/user/max_user_namespaces", "sys/net/ipv4/ip_forward", "sys/net/ipv4/ip_unprivileged_port_start",
                 "sysrq-trigger", "mtrr", "acpi/wakeup", "irq/default_smp_affinity", "fs/nfsd", "driver/rtc", "scsi/scsi",
                 "self/uid_map", "self/gid_map", "self/setgroups", "self/loginuid", "1/oom_score_adj", "1/comm"]:
        denied(f"write /proc/{name}", lambda: write(f"/proc/{name}", "0\n"), "EROFS", "EACCES", "ENOENT", "EPERM", "EISDIR")
    allowed("read a knob", lambda: len(read("/proc/sys/kernel/ostype")) > 0, ["default"])
    allowed("read the own name", lambda: len(read("/proc/self/comm")) > 0)


@test
def kernel_information():
    for name in ["kallsyms", "keys", "key-users", "kcore", "kmsg", "config.gz", "cmdline", "iomem", "ioports", "interrupts", "timer_list",
                 "sched_debug", "latency_stats", "kpagecount", "kpageflags", "kpagecgroup", "modules", "slabinfo", "vmallocinfo",
                 "1/environ", "1/maps", "1/mem", "1/auxv", "1/syscall", "1/stack", "1/io", "self/stack"]:
        denied(f"read /proc/{name}", lambda: read(f"/proc/{name}", 1), "nothing", "EACCES", "ENOENT", "EPERM")
    for name in ["acpi", "asound", "bus", "driver", "fs", "irq", "scsi"]:
        denied(f"look into /proc/{name}", lambda: os.listdir(f"/proc/{name}"), "nothing", "ENOENT")
    denied("read the kernel's log", lambda: call("syslog", 3, ctypes.create_string_buffer(64), 64), "EPERM")
    allowed("read the own maps", lambda: len(read("/proc/self/maps")) > 0)
    allowed("read /proc/meminfo", lambda: len(read("/proc/meminfo")) > 0, ["default"])
    if POLICY == "strict":
        denied("find anything of the kernel's in /proc", lambda: [name for name in os.listdir("/proc") if not name.isdigit()
               and name not in ("self", "thread-self")], "nothing")


@test
def control_groups():
    for path in ["memory.max", "cgroup.procs", "memory/memory.limit_in_bytes", "memory/release_agent"]:
        denied(f"write {path}", lambda: write(f"/sys/fs/cgroup/{path}", "0\n"), "ENOENT")
    denied("make a control group", lambda: os.mkdir("/sys/fs/cgroup/x"), "ENOENT")
    for kind in [b"cgroup", b"cgroup2"]:
        denied(f"mount a {kind.decode()}", lambda: call("mount", b"x", b"/tmp", kind, 0, None), "EPERM")
    denied("find one mounted", lambda: [line for line in read("/proc/self/mountinfo").decode().splitlines() if " - cgroup" in line], "nothing")
    denied("learn the names of the host's", lambda: {line.split(":", 2)[2] for line in read("/proc/self/cgroup").decode().splitlines()} - {"/"}, "nothing")
    denied("raise an own limit", lambda: call("prlimit64", 0, resource.RLIMIT_NOFILE, struct.pack("QQ", 1 << 20, 1 << 20), None), "EPERM")
    allowed("lower an own limit", lambda: call("prlimit64", 0, resource.RLIMIT_NOFILE, struct.pack("QQ", 64, 64), None) and None)
