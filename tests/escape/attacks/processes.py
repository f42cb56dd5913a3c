@test
def inherited_environment():
    suspect = ("KEY", "TOKEN", "SOCK", "LD_", "DBUS", "INHERITED", "TRL_", "SECRET", "NOTIFY", "LISTEN")
    denied("find a variable that nobody gave", lambda: [name for name in os.environ if any(part in name for part in suspect)], "nothing")
    denied("find the supervisor's in memory", lambda: b"inherited-" + b"canary" in read("/proc/self/environ"), "nothing")
    allowed("find a variable that was given", lambda: os.environ.get("GIVEN_BY_SESSION") == "yes")


@test
def first_process():
    local = struct.pack("QQ", ctypes.addressof(ctypes.create_string_buffer(64)), 16)
    remote = struct.pack("QQ", 0x400000, 16)
    for pid, name in [(1, "the first process"), (os.getppid(), "the process above")]:
        denied(f"trace {name}", lambda: call("ptrace", 0x4206, pid, 0, 0), "EPERM", "ESRCH")
        denied(f"attach to {name}", lambda: call("ptrace", 16, pid, 0, 0), "EPERM", "ESRCH")
        denied(f"read the memory of {name}", lambda: call("process_vm_readv", pid, local, 1, remote, 1, 0), "EPERM")
        denied(f"write the memory of {name}", lambda: call("process_vm_writev", pid, local, 1, remote, 1, 0), "EPERM")
        denied(f"take a descriptor of {name}", lambda: call("pidfd_getfd", os.pidfd_open(pid), 0, 0), "EPERM")
    for name in ["mem", "environ", "maps", "exe", "pagemap", "auxv", "syscall"]:
        denied(f"open the first process's {name}", lambda: opened(f"/proc/1/{name}", os.O_RDWR if name == "mem" else os.O_RDONLY), "EACCES", "EPERM", "ENOENT")
    for name in ["fd", "task/1/fd", "map_files", "ns"]:
        denied(f"list the first process's {name}", lambda: [os.readlink(f"/proc/1/{name}/{entry}") for entry in os.listdir(f"/proc/1/{name}")], "EACCES", "EPERM", "ENOENT", "nothing")
    denied("limit the first process", lambda: call("prlimit64", 1, resource.RLIMIT_NOFILE, struct.pack("QQ", 3, 3), None), "EPERM")
    denied("compare with the first process", lambda: call("kcmp", os.getpid(), 1, 2, 0, 0), "EPERM")
    allowed("open the own memory", lambda: opened("/proc/self/mem"))
    allowed("hold the own process", lambda: os.pidfd_open(os.getpid()) > 0)


@test
def suspended_filters():
    denied("be traced by the process above", lambda: call("ptrace", 0, 0, 0, 0) and None, "EPERM", l1=True)
    denied("have filters suspended", lambda: call("ptrace", 0x4200, os.getppid(), 0, 1 << 21), "EPERM", "ESRCH")
    denied("seize with that option", lambda: call("ptrace", 0x4206, os.getppid(), 0, 1 << 21), "EPERM", "ESRCH")
    denied("dump the filters", lambda: call("ptrace", 0x420c, os.getppid(), 0, 0), "EPERM", "ESRCH")
    allowed("be filtered", lambda: call("prctl", 21, 0, 0, 0, 0) == 2, ["default", "strict"])


@test
def joined_namespaces():
    for name in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time", "pid_for_children"]:
        denied(f"join the own {name} again", lambda: call("setns", os.open(f"/proc/self/ns/{name}", os.O_RDONLY), 0), "EPERM")
        denied(f"hold the first process's {name}", lambda: os.close(os.open(f"/proc/1/ns/{name}", os.O_RDONLY)), "EACCES", "EPERM", "ENOENT")
    denied("join by a process", lambda: call("setns", os.pidfd_open(1), CLONE_NEW["NEWNET"]), "EPERM")
    denied("join by a process of the host's number", lambda: call("setns", os.pidfd_open(OTHER["pid"]), CLONE_NEW["NEWNET"]), "EPERM", "ESRCH", "EINVAL")
    denied("ask for the owner", lambda: fcntl.ioctl(os.open("/proc/self/ns/user", os.O_RDONLY), 0xb702), "EPERM")
    denied("nsenter -t 1 -m", lambda: is_stopped("nsenter", "-t", "1", "-m", "-n", "true"), "EPERM")
    allowed("look at the own", lambda: len(os.readlink("/proc/self/ns/net")) > 0)


@test
def core_dumps():
    def dumped(number):
        os.chdir(SCRATCH)
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), number)
        status = os.waitpid(child, 0)[1]
        if os.WTERMSIG(status) != number:
            raise ValueError(status)
        return os.WCOREDUMP(status) or [name for name in os.listdir(".") if "core" in name]

    for number in [signal.SIGABRT, signal.SIGSEGV, signal.SIGQUIT]:
        denied(f"leave a core file by {number.name}", lambda: dumped(number), "nothing")
    denied("allow core files again", lambda: call("prlimit64", 0, resource.RLIMIT_CORE, struct.pack("QQ", 1 << 20, 1 << 20), None), "EPERM")
    denied("have a limit above none", lambda: any(resource.getrlimit(resource.RLIMIT_CORE)), "nothing")
    allowed("end by a signal", lambda: dumped(signal.SIGTERM) == [] or None)


@test
def priorities():
    denied("be the last to be ended without memory", lambda: write("/proc/self/oom_score_adj", "-1000"), "EACCES", "EPERM")
    denied("be nicer to oneself", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5), "EACCES", "EPERM")
    for name, policy in [("FIFO", 1), ("RR", 2), ("DEADLINE", 6)]:
        denied(f"run by {name}", lambda: call("sched_setscheduler", 0, policy, struct.pack("I", 1)), "EPERM", "ENOSYS", "EINVAL")
    denied("run by a deadline", lambda: call("sched_setattr", 0, struct.pack("IIQiIQQQ", 48, 6, 0, 0, 0, 10**7, 10**8, 10**8), 0), "EPERM", "ENOSYS")
    denied("read and write in real time", lambda: call("ioprio_set", 1, 0, 1 << 13), "EPERM", "ENOSYS")
    for name in ["RTPRIO", "NICE", "RTTIME"][:2]:
        denied(f"raise the limit {name}", lambda: call("prlimit64", 0, getattr(resource, f"RLIMIT_{name}", 13), struct.pack("QQ", 40, 40), None), "EPERM")
    denied("be nicer to all of the user", lambda: os.setpriority(os.PRIO_USER, 0, -1), "EACCES", "EPERM")
    allowed("be nicer to others", lambda: os.setpriority(os.PRIO_PROCESS, 0, 5))
    allowed("know when one would be ended", lambda: len(read("/proc/self/oom_score_adj")) > 0)
