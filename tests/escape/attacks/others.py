# Against somebody else: a process of the host, or of another session. The same within one session succeeds.
EVERY = ("default", "strict", "ci")
SOCKETS = SYSV = ("default", "ci")
TRACES = ("ci",)
UNHEARD = ("ENOSYS",)


@test
def signals():
    pid = OTHER["pid"]
    denied("signal it", lambda: os.kill(pid, 0), "ESRCH", l1=True, same=EVERY)
    denied("signal its thread", lambda: call("tgkill", pid, pid, 0), "ESRCH", l1=True, same=EVERY)
    denied("hold it", lambda: os.close(os.pidfd_open(pid)), "ESRCH", "ENOENT", l1=True, same=EVERY)
    denied("queue a signal for it", lambda: call("rt_sigqueueinfo", pid, 0, struct.pack("iii", 0, 0, -1) + bytes(116)), "ESRCH", l1=True, same=EVERY)
    denied("signal its group", lambda: os.killpg(OTHER["group"], 0), "ESRCH", l1=True, same=EVERY)
    denied("ask for its priority", lambda: call("getpriority", 0, pid) and None, "ESRCH", l1=True, same=EVERY)
    denied("ask for its session", lambda: os.getsid(pid) and None, "ESRCH", l1=True, same=EVERY)
    denied("read its limits", lambda: call("prlimit64", pid, 7, None, ctypes.create_string_buffer(16)), "ESRCH", l1=True, same=EVERY)
    denied("read its list of locks", lambda: call("get_robust_list", pid, ctypes.create_string_buffer(8), ctypes.create_string_buffer(8)), "ESRCH", l1=True, same=EVERY)
    allowed("signal oneself", lambda: os.kill(os.getpid(), 0))


@test
def tracing():
    pid, there = OTHER["pid"], ctypes.create_string_buffer(b"held in memory")
    vector = struct.pack("QQ", ctypes.addressof(there), 8)
    remote = struct.pack("QQ", OTHER["address"], 8)
    denied("trace it", lambda: call("ptrace", 0x4206, pid, 0, 0), "EPERM", "ESRCH", l1=True, same=TRACES)
    denied("read its memory", lambda: call("process_vm_readv", pid, vector, 1, remote, 1, 0) == 8, "EPERM", "ESRCH", l1=True, same=TRACES)
    denied("write its memory", lambda: call("process_vm_writev", pid, vector, 1, remote, 1, 0) == 8, "EPERM", "ESRCH", l1=True, same=TRACES)
    denied("take a descriptor of it", lambda: call("pidfd_getfd", os.pidfd_open(pid), 0, 0) and None, "EPERM", "ESRCH", l1=True)
    denied("compare with it", lambda: call("kcmp", os.getpid(), pid, 2, 0, 0) and None, "EPERM", l1=True)
    denied("open its memory", lambda: opened(f"/proc/{pid}/mem"), "ENOENT", l1=True, same=EVERY)
    allowed("open the own memory", lambda: opened("/proc/self/mem"))


@test
def process_list():
    pid = OTHER["pid"]
    denied("find it", lambda: str(pid) in os.listdir("/proc"), "nothing", l1=True, same=EVERY)
    for name in ["status", "cmdline", "environ", "maps", "root/etc", "cwd", "exe", "fd", "ns/net", "task", "cgroup", "mountinfo"]:
        denied(f"see its {name}", lambda: os.stat(f"/proc/{pid}/{name}"), "ENOENT", l1=True, same=EVERY)
    denied("read its files by its root", lambda: opened(f"/proc/{pid}/root{OTHER['file']}"), "ENOENT", l1=True, same=EVERY)
    denied("find it by its arguments", lambda: any(OTHER["name"].encode() in readable(f"/proc/{entry}/cmdline") for entry in os.listdir("/proc")),
           "nothing", l1=True, same=EVERY)
    allowed("find oneself", lambda: str(os.getpid()) in os.listdir("/proc"))


def readable(path):
    try:
        return read(path)
    except OSError:
        return b""


@test
def environments():
    def held(secret):
        places = [f"/proc/{entry}" for entry in os.listdir("/proc")]
        places += [f"/proc/{entry}/task/{task}" for entry in os.listdir("/proc") if entry.isdigit()
                   for task in (os.listdir(f"/proc/{entry}/task") if os.access(f"/proc/{entry}/task", os.R_OK) else [])]
        return any(secret in readable(f"{place}/{name}") for place in places for name in ("environ", "cmdline", "auxv"))

    # Not as one word here: the script is not what is to be found.
    denied("find its secret", lambda: held(bytes(reversed(OTHER["terces"].encode()))), "nothing", l1=True, same=EVERY)
    denied("find the supervisor's", lambda: held(b"inherited-" + b"canary"), "nothing")
    allowed("find what this session was given", lambda: held(b"GIVEN_BY_" + b"SESSION"))


@test
def abstract_sockets():
    denied("connect to its abstract socket", lambda: connected(socket.AF_UNIX, "\0" + OTHER["name"]), "ECONNREFUSED", "EPERM", *UNHEARD, l1=True, same=SOCKETS)
    denied("find its name", lambda: OTHER["name"].encode() in readable("/proc/self/net/unix"), "nothing", l1=True, same=SOCKETS)
    denied("take its name", lambda: socket.socket(socket.AF_UNIX).bind("\0" + OTHER["name"]) and None, *UNHEARD, "EADDRINUSE") if POLICY == "strict" else \
        allowed("take the same name", lambda: socket.socket(socket.AF_UNIX).bind("\0" + OTHER["name"]), ["default"] if ROLE != "same" else ["none"])
    allowed("connect a pair", lambda: socket.socketpair() and None)


@test
def sockets_in_files():
    denied("connect to its socket", lambda: connected(socket.AF_UNIX, OTHER["socket"]), "ENOENT", *UNHEARD, l1=True, same=SOCKETS)
    denied("see its socket", lambda: os.stat(OTHER["socket"]), "ENOENT", l1=True, same=SOCKETS)
    allowed("connect a pair", lambda: socket.socketpair() and None)


@test
def sysv_ipc():
    for name, arguments in [("shmget", (OTHER["key"], 0, 0)), ("semget", (OTHER["key"], 0, 0)), ("msgget", (OTHER["key"], 0))]:
        denied(f"{name} by its key", lambda: call(name, *arguments) and None, "ENOENT", *UNHEARD, l1=True, same=SYSV)
    denied("attach its memory by number", lambda: call("shmat", OTHER["segment"], 0, 0o10000) and None, "EINVAL", "EIDRM", *UNHEARD, l1=True, same=SYSV)
    denied("list what there is", lambda: str(OTHER["key"]).encode() in readable("/proc/sysvipc/shm"), "nothing", l1=True, same=SYSV)
    allowed("have memory of one's own", lambda: call("shmctl", call("shmget", 0, 4096, 0o1600), 0, None) and None, SYSV)
    allowed("map memory of one's own", lambda: mmap.mmap(-1, 4096).close())


@test
def posix_ipc():
    denied("open its shared memory", lambda: opened(OTHER["shared"]), "ENOENT", l1=True, same=EVERY)
    denied("list shared memory", lambda: OTHER["name"] in os.listdir("/dev/shm"), "nothing", l1=True, same=EVERY)
    denied("open its queue", lambda: call("mq_open", OTHER["name"].encode(), 0, 0, None) and None, "ENOENT", *UNHEARD, l1=True, same=SYSV)
    denied("list queues", lambda: OTHER["name"] in os.listdir("/dev/mqueue"), "nothing", "ENOENT", same=SYSV)

    def shared():
        path = f"/dev/shm/own-{os.getpid()}"
        write(path, "x")
        os.unlink(path)

    allowed("share memory of one's own", shared)


@test
def keys():
    description = OTHER["name"].encode()
    for name, ring in [("user's", -4), ("user session's", -5), ("session's", -3)]:
        denied(f"find its key in the {name} ring", lambda: call("keyctl", 10, ring, b"user", description, 0) and None, "EPERM", l1=name == "user's")
    denied("ask for its key", lambda: call("request_key", b"user", description, None, 0) and None, "EPERM")
    denied("read its key by number", lambda: call("keyctl", 11, OTHER["serial"], ctypes.create_string_buffer(64), 64) and None, "EPERM", l1=True)
    denied("find it in a list", lambda: description in readable("/proc/keys"), "nothing", l1=True)
    allowed("keep something in memory", lambda: ctypes.create_string_buffer(b"x") and None)


@test
def loopback():
    for family, host in [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::ffff:127.0.0.1"), (socket.AF_INET, "0.0.0.0")]:
        denied(f"connect to its port by {host}", lambda: connected(family, (host, OTHER["port"])), "ECONNREFUSED", "EAFNOSUPPORT", *UNHEARD, l1=True, same=SOCKETS)
    if ROLE != "same":
        allowed("listen on the same port", lambda: socket.socket().bind(("127.0.0.1", OTHER["port"])), ["default", "ci"])
    allowed("connect a pair", lambda: socket.socketpair() and None)


@test
def temporary_files():
    for name, path in [("/tmp", OTHER["file"]), ("/var/tmp", OTHER["file"].replace("/tmp", "/var/tmp", 1)), ("its workspace", OTHER.get("work") or "/none")]:
        denied(f"read its file in {name}", lambda: opened(path), "ENOENT", l1=name == "/tmp", same=EVERY if name in ("/tmp", "its workspace") else ())
    denied("list its files", lambda: [name for top in ("/tmp", "/workspace", "/run") if os.path.isdir(top) for name in os.listdir(top) if OTHER["name"] in name] != [],
           "nothing", l1=True, same=EVERY)

    def both():
        path = f"/tmp/own-{os.getpid()}"
        write(path, "x")
        os.unlink(path)

    allowed("write a file of one's own", both)


@test
def locks():
    def locked(kind):
        with open("/usr/bin/env", "rb") as file:
            fcntl.flock(file, kind | fcntl.LOCK_NB)

    apart("lock what it has locked", lambda: locked(fcntl.LOCK_EX))
    apart("lock it for sharing", lambda: locked(fcntl.LOCK_SH))
    denied("see its lock", lambda: str(OTHER["inode"]).encode() in readable("/proc/locks"), "nothing")
    allowed("lock a file of one's own", lambda: fcntl.flock(open(own("to-lock"), "rb"), fcntl.LOCK_EX))


@test
def file_events():
    # What it is told of is asked afterwards, by whoever runs this.
    allowed("open a program", lambda: opened(f"/usr/bin/{GIVEN['opens']}"))
