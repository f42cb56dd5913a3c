def buffer(size=256):
    return ctypes.create_string_buffer(size)


def path(text):
    return ctypes.c_char_p(text.encode())


def cloned(flags):
    if call("clone", flags | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        os._exit(0)


@test
def mounts():
    for name, arguments in [
        ("mount", (path("x"), path("/tmp"), path("tmpfs"), 0, None)),
        ("mount", (None, path("/usr"), None, 0x1020, None)),
        ("mount", (path("/etc"), path("/tmp"), None, 0x1000, None)),
        ("mount", (None, path("/"), None, 0x44000, None)),
        ("umount2", (path("/proc"), 2)), ("umount2", (path("/usr"), 2)),
        ("pivot_root", (path("/tmp"), path("/tmp"))), ("chroot", (path("/tmp"),)),
        ("open_tree", (-100, path("/"), 0x8001)), ("move_mount", (-100, path("/tmp"), -100, path("/run"), 0)),
        ("fsopen", (path("tmpfs"), 0)), ("fsconfig", (0, 6, None, None, 0)), ("fsmount", (0, 0, 0)),
        ("fspick", (-100, path("/"), 0)), ("mount_setattr", (-100, path("/"), 0x8000, buffer(), 32)),
        ("open_tree_attr", (-100, path("/"), 0x8001, buffer(), 32)),
    ]:
        denied(f"{name} {[a.value.decode() for a in arguments if isinstance(a, ctypes.c_char_p)]}", lambda: call(name, *arguments), "EPERM")
    for name in ["statmount", "listmount"]:
        denied(name, lambda: call(name, buffer(), buffer(), 64, 0), "ENOSYS")
    for command in [("mount", "-t", "tmpfs", "x", "/tmp"), ("mount", "-o", "remount,rw", "/usr"), ("umount", "/proc")]:
        denied(" ".join(command), lambda: is_stopped(*command), "EPERM")
    allowed("look at a file system", lambda: os.statvfs("/") and None)


@test
def nested_user_namespaces():
    for name, flag in list(CLONE_NEW.items()) + [("NEWTIME", 0x80)]:
        denied(f"unshare with {name}", lambda: call("unshare", flag), "EPERM", l1=name == "NEWUSER")
        if name != "NEWTIME":
            denied(f"clone with {name}", lambda: cloned(flag), "EPERM", l1=name == "NEWUSER")
            denied(f"clone with {name} and bits above", lambda: cloned(flag | 1 << 40), "EPERM")
    denied("clone3 with NEWUSER", lambda: call("clone3", struct.pack("Q10Q", CLONE_NEW["NEWUSER"], *[0] * 10), 88), "ENOSYS")
    denied("setns to the own user namespace", lambda: call("setns", os.open("/proc/self/ns/user", os.O_RDONLY), 0), "EPERM")
    denied("unshare -Ur", lambda: is_stopped("unshare", "-Ur", "true"), "EPERM", l1=True)
    denied("write the own map", lambda: write("/proc/self/uid_map", "0 0 1"), "EPERM", "EACCES", "EROFS")
    allowed("clone", lambda: cloned(0))


@test
def file_handles():
    handle = struct.pack("II", 128, 0) + bytes(128)
    denied("name a handle", lambda: call("name_to_handle_at", -100, path("/"), handle, buffer(), 0), "EPERM")
    denied("open the root of a file system by its handle", lambda: call("open_by_handle_at", os.open("/", os.O_RDONLY), struct.pack("IIQ", 8, 1, 2), 0), "EPERM")
    allowed("open by name", lambda: opened("/etc/passwd"))


def machine_code(code):
    memory = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    return ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()


@test
def foreign_architecture():
    if not IS_X86:
        return
    gate = lambda number: b"\x53\xb8" + struct.pack("<I", number) + b"\x31\xdb\x31\xc9\x31\xd2\xcd\x80\x5b\xc3"
    for name, number in [("getpid", 20), ("socketcall", 102), ("socket", 359), ("mount", 21)]:
        denied(f"{name} by the gate of i386", lambda: machine_code(gate(number)) and None, "SIGSYS", l1=name == "getpid")
    # By the gate of this architecture: mov eax, 39; syscall; ret
    allowed("getpid by the own gate", lambda: machine_code(b"\xb8\x27\0\0\0\x0f\x05\xc3") == os.getpid())


@test
def x32_calls():
    if not IS_X86:
        return
    for number in [39, 41, 56, 272, 512, 520, 547]:
        denied(f"call {number} of x32", lambda: call(0x40000000 | number, 2, 1, 0), "SIGSYS")
    allowed("call 39", lambda: call(39) == os.getpid())


@test
def io_uring():
    denied("set one up", lambda: call("io_uring_setup", 4, buffer()), "ENOSYS")
    denied("enter one", lambda: call("io_uring_enter", 0, 1, 0, 0, None, 0), "ENOSYS")
    denied("register with one", lambda: call("io_uring_register", 0, 0, None, 0), "ENOSYS")
    allowed("wait for a pipe", lambda: os.close(os.dup(os.pipe()[0])))


@test
def hidden_flags_of_clone3():
    denied("clone3 of nothing", lambda: call("clone3", 0, 0), "ENOSYS")
    for name, flag in CLONE_NEW.items():
        denied(f"clone3 with {name}", lambda: call("clone3", struct.pack("Q10Q", flag, *[0] * 10), 88), "ENOSYS")
    allowed("start a thread", lambda: __import__("threading").Thread(target=lambda: None).start())


@test
def kernel_features():
    for name, arguments in [("bpf", (0, buffer(), 72)), ("perf_event_open", (buffer(), 0, -1, -1, 0)), ("userfaultfd", (1,)),
                            ("kexec_load", (0, 0, None, 0)), ("kexec_file_load", (-1, -1, 0, None, 0)), ("fanotify_init", (0, 0)),
                            ("memfd_secret", (0,)), ("kcmp", (os.getpid(), os.getpid(), 0, 0, 0)), ("move_pages", (0, 0, None, None, None, 0)),
                            ("mbind", (0, 0, 0, None, 0, 0)), ("lookup_dcookie", (0, buffer(), 64)), ("init_module", (buffer(), 0, buffer())),
                            ("finit_module", (0, buffer(), 0)), ("delete_module", (buffer(), 0)), ("vmsplice", (0, buffer(), 0, 0)),
                            ("process_madvise", (0, buffer(), 0, 0, 0)), ("quotactl", (0, None, 0, None))]:
        denied(name, lambda: call(name, *arguments), "EPERM")
    allowed("eventfd2", lambda: call("eventfd2", 0, 0) and None)


@test
def key_calls():
    denied("add a key", lambda: call("add_key", path("user"), path("k"), path("v"), 1, -4), "EPERM", l1=True)
    denied("ask for a key", lambda: call("request_key", path("user"), path("k"), None, 0), "EPERM")
    for name, ring in [("thread", -1), ("process", -2), ("session", -3), ("user", -4), ("user session", -5)]:
        denied(f"find the {name} keyring", lambda: call("keyctl", 0, ring, 1), "EPERM", l1=name == "user")
    denied("join another keyring", lambda: call("keyctl", 1, None), "EPERM")
    denied("have a key described", lambda: call("keyctl", 6, 1, buffer(), 256), "EPERM")
    allowed("keep a secret in memory", lambda: buffer() and None)


@test
def personalities():
    for name, value in [("no random layout", 0x0040000), ("reading is executing", 0x0400000), ("both", 0x0440000), ("page zero", 0x0100000), ("32 bits", 8)]:
        denied(name, lambda: call("personality", value) and None, "EPERM", l1=True)
    allowed("ask for the own", lambda: call("personality", 0xffffffff) and None)


@test
def descriptor_tables():
    if not IS_X86:
        return
    for function in [0, 1, 2, 0x11]:
        denied(f"modify_ldt {function}", lambda: call("modify_ldt", function, buffer(), 16) and None, "EPERM", l1=function == 0)
    allowed("ask for the own thread's base", lambda: call("arch_prctl", 0x1003, buffer()) and None)


@test
def own_listener():
    program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7fff0000))
    filter = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 1, ctypes.addressof(program)))
    denied("answer the calls of children", lambda: call("seccomp", 1, 8, filter) and None, "EPERM", "ENOSYS", l1=True)
    denied("and let them wait", lambda: call("seccomp", 1, 8 | 0x20, filter) and None, "EPERM", "ENOSYS")
    denied("and with bits above", lambda: call("seccomp", 1, 8 | 1 << 40, filter) and None, "EPERM", "ENOSYS")
    allowed("stack a filter that only allows", lambda: call("seccomp", 1, 0, filter) and None, ["default"])
    allowed("stack one by prctl", lambda: call("prctl", 22, 2, filter) and None)


@test
def unknown_calls():
    def answered(numbers):
        found = []
        for number in numbers:
            try:
                call(number, -1, -1, -1, -1, -1, -1)
                found.append(number)
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    found.append((number, error.errno))
        return found

    known = set(GIVEN["calls"].values())
    denied("find one that no list knows", lambda: answered([number for number in range(424, 600) if number not in known]), "nothing")
    denied("find one far beyond", lambda: answered([600, 900, 1023, 1024, 4096, 1 << 20, (1 << 30) - 1]), "nothing")
    allowed("a call that is known", lambda: call("getpid") == os.getpid())


@test
def privileged_calls():
    for name, arguments in [
        ("syslog", (10, None, 0)), ("settimeofday", (buffer(), None)), ("clock_settime", (0, buffer())), ("adjtimex", (struct.pack("I", 1) + bytes(255),)),
        ("sethostname", (path("x"), 1)), ("setdomainname", (path("x"), 1)), ("chroot", (path("/tmp"),)), ("reboot", (0, 0, 0, None)),
        ("swapon", (path("/tmp/x"), 0)), ("swapoff", (path("/tmp/x"),)), ("acct", (path("/tmp/x"),)), ("vhangup", ()),
    ] + ([("iopl", (3,)), ("ioperm", (0, 1, 1))] if IS_X86 else []):
        denied(name, lambda: call(name, *arguments), "EPERM")
    denied("bind a privileged port", lambda: socket.socket().bind(("127.0.0.1", 80)), "EACCES", "EPERM", "ENOSYS")
    denied("own a file of root's", lambda: os.chown(own("not-roots"), 0, 0), "EPERM", "EINVAL")
    denied("lock memory without end", lambda: call("mlockall", 3) and False, "EPERM", "ENOMEM", "ENOSYS", "nothing")
    allowed("ask for the time", lambda: time.time() > 0)
    allowed("own an own file", lambda: os.chown(own("mine"), os.getuid(), os.getgid()))


@test
def page_cache_writes():
    denied("sockets of the kernel's ciphers", lambda: socket.socket(38, 5, 0), "EAFNOSUPPORT", "ENOSYS")
    denied("give pages away", lambda: call("vmsplice", os.pipe()[1], struct.pack("QQ", ctypes.addressof(buffer(4096)), 16), 1, 8), "EPERM")
    denied("write a program of the system", lambda: opened("/usr/bin/env", os.O_WRONLY), "EROFS", "EACCES")
    denied("map one for sharing", lambda: mmap.mmap(os.open("/usr/bin/env", os.O_RDONLY), 0, mmap.MAP_SHARED, mmap.PROT_WRITE), "EACCES", "EPERM")

    def overwritten():
        # The bug of pipes whose buffers stayed mergeable: what was spliced in was written over in the cache.
        before, (reader, writer) = read("/usr/bin/env", 64), os.pipe()
        for _ in range(16):
            os.write(writer, bytes(4096))
        for _ in range(16):
            os.read(reader, 4096)
        with open("/usr/bin/env", "rb") as file:
            call("splice", file.fileno(), struct.pack("Q", 0), writer, None, 1, 0)
        os.write(writer, b"overwritten")
        return read("/usr/bin/env", 64) != before

    denied("write over what a pipe borrowed", overwritten, "nothing", "ENOSYS")
    allowed("copy from pipe to pipe", lambda: os.write(os.pipe()[1], b"x") == 1)


@test
def state_of_a_command():
    state = dict(line.split(":\t", 1) for line in read("/proc/self/status").decode().splitlines() if ":\t" in line)
    sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
    denied("have a capability", lambda: [name for name in sets if int(state[name], 16)], "nothing")
    denied("run without a filter", lambda: state["Seccomp"] != "2" or int(state.get("Seccomp_filters", "1")) < 1, "nothing")
    denied("be able to gain privileges", lambda: state["NoNewPrivs"] != "1", "nothing")
    denied("be traced", lambda: state["TracerPid"] != "0", "nothing")
    denied("become root", lambda: os.setuid(0), "EPERM", "EINVAL")
    denied("become root for files", lambda: os.setresuid(-1, 0, -1), "EPERM", "EINVAL")
    header = struct.pack("II", 0x20080522, 0)
    denied("take capabilities", lambda: call("capset", header, struct.pack("6I", *[0xffffffff] * 6)), "EPERM")
    denied("have ambient ones", lambda: call("prctl", 47, 2, 21, 0, 0), "EPERM")
    denied("unlock the secure bits", lambda: call("prctl", 28, 0, 0, 0, 0), "EPERM")
    denied("gain privileges again", lambda: call("prctl", 38, 0, 0, 0, 0), "EINVAL")
    denied("be without filters", lambda: call("prctl", 22, 0, 0, 0, 0), "EINVAL", "EPERM")
    allowed("give up what is not there", lambda: call("capset", header, bytes(24)) and None)
    allowed("be told so", lambda: call("prctl", 39, 0, 0, 0, 0) == 1)
