@test
def leaked_descriptors():
    def extra():
        return [number for number in OPEN_AT_START if number > 2]

    def odd():
        kinds = {number: os.fstat(number).st_mode for number in range(3)}
        return [number for number, mode in kinds.items() if not stat.S_ISFIFO(mode)]

    denied("find a descriptor that nobody gave", extra, "nothing")
    denied("have files or terminals as standard streams", odd, "nothing")
    denied("open beneath the supervisor's descriptor", lambda: os.open("..", os.O_RDONLY, dir_fd=7), "EBADF")
    allowed("open beneath an own descriptor", lambda: os.open("tmp", os.O_RDONLY, dir_fd=os.open("/", os.O_RDONLY)) and None)


@test
def working_directory_outside():
    up = "../" * 20
    denied("work where no path leads", lambda: "unreachable" in os.getcwd(), "nothing")
    denied("climb out of the working directory", lambda: opened(f"/proc/self/cwd/{up}{OTHER['file']}"), "ENOENT", l1=True)
    denied("change to a directory of the host's", lambda: os.chdir(GIVEN["home"]), "ENOENT", l1=True)
    allowed("look at the working directory", lambda: os.listdir("/proc/self/cwd") and None or os.chdir("/tmp"))


@test
def magic_links():
    for link in ["self/root", "thread-self/root", "self/cwd/../..", f"{os.getpid()}/task/{os.getpid()}/root"]:
        denied(f"go by {link}", lambda: opened(f"/proc/{link}{OTHER['file']}"), "ENOENT", l1=link != "self/cwd/../..")
    for link in ["root", "cwd", "fd/0", "exe"]:
        denied(f"go by the first process's {link}", lambda: os.stat(f"/proc/1/{link}"), "EACCES", "EPERM", "ENOENT")
    allowed("go by the own root", lambda: opened("/proc/self/root/etc/passwd"))


@test
def set_user_id_files():
    path = own("plain")
    descriptor = os.open(path, os.O_RDWR)
    wide = [("user", 0o4755)] + ([("group", 0o2755)] if POLICY == "strict" else [])
    for whose, mode in wide:
        denied(f"chmod to set-{whose}-id", lambda: call("fchmodat", -100, path.encode(), mode), "EPERM", l1=True)
        denied(f"fchmod to set-{whose}-id", lambda: os.fchmod(descriptor, mode), "EPERM", l1=True)
        denied(f"fchmodat2 to set-{whose}-id", lambda: call("fchmodat2", -100, path.encode(), mode, 0), "EPERM")
        denied(f"make a set-{whose}-id file", lambda: os.open(f"{SCRATCH}/made", os.O_CREAT | os.O_WRONLY, mode), "EPERM")
        denied(f"make one without a name", lambda: os.open(SCRATCH, os.O_TMPFILE | os.O_WRONLY, mode), "EPERM")
        denied(f"make a set-{whose}-id node", lambda: os.mknod(f"{SCRATCH}/node", stat.S_IFREG | mode), "EPERM")
        denied(f"make a set-{whose}-id directory", lambda: os.mkdir(f"{SCRATCH}/directory", mode), "EPERM")

    def by_memory():
        how = struct.pack("QQQ", os.O_CREAT | os.O_WRONLY, 0o4755, 0)
        call("openat2", -100, f"{SCRATCH}/openat2".encode(), how, len(how))
        return os.geteuid() == 0 or subprocess.run(["find", SCRATCH, "-perm", "/6000", "-newermt", "2100-01-01"]).returncode != 0

    denied("gain by an openat2 that no filter sees through", by_memory, "nothing", "ENOSYS")
    allowed("chmod", lambda: os.chmod(path, 0o755))
    allowed("make a directory", lambda: os.mkdir(f"{SCRATCH}/ordinary", 0o755))


@test
def set_user_id_programs():
    found = [f"/usr/bin/{name}" for name in ("su", "mount", "passwd", "chsh", "newgrp")]
    found = [path for path in found if os.path.exists(path) and os.stat(path).st_mode & stat.S_ISUID]

    def gained(path):
        # Its output has nowhere to go, so that it is still there to be looked at.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        try:
            while True:
                os.write(writer, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(writer, True)
        started = subprocess.Popen([path, "--help"], stdin=subprocess.DEVNULL, stdout=writer, stderr=writer)
        try:
            def waits():
                # The name changes late in an exec, the ids later.
                state = read(f"/proc/{started.pid}/status").decode()
                return f"Name:\t{os.path.basename(path)}\n" in state and "State:\tS" in state

            deadline = time.monotonic() + 5
            while not waits():
                if time.monotonic() > deadline:
                    raise ValueError(f"{path} does not run")
                time.sleep(0.01)
            ids = [line.split()[1:] for line in read(f"/proc/{started.pid}/status").decode().splitlines()
                   if line.startswith(("Uid:", "Gid:"))]
            return ids != [[str(os.getuid())] * 4, [str(os.getgid())] * 4] and ids
        finally:
            started.kill()
            started.wait()

    for path in found:
        denied(f"gain by {path}", lambda: gained(path), "nothing")
    allowed("find programs that would give root", lambda: len(found) > 0)


@test
def overwritten_launcher():
    for name in ["1", str(os.getppid())]:
        for flags in [os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_APPEND]:
            denied(f"open the program of process {'1' if name == '1' else 'above'}, flags {flags}",
                   lambda: opened(f"/proc/{name}/exe", flags), "EACCES", "EPERM", "ENOENT")
    denied("find the launcher's program", lambda: [path for path in ("/usr/bin", "/usr/local/bin", "/", "/workspace")
           if os.path.isdir(path) and any(name.startswith("trl") for name in os.listdir(path))], "nothing")
    allowed("open the own program", lambda: opened("/proc/self/exe"))


@test
def fileless_execution():
    def copy(where):
        path = f"{where}/true-{os.getpid()}"
        shutil.copyfile("/bin/true", path)
        os.chmod(path, 0o755)
        return path

    def runs(path):
        os.execv(path, ["true"])

    def loads(path):
        loader = next(name for name in ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1") if os.path.exists(name))
        is_stopped(loader, path)

    def maps(path):
        with open(path, "rb") as file:
            mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)

    def in_memory():
        made = call("memfd_create", b"x", 0)
        os.write(made, read("/bin/true"))
        call("execveat", made, b"", (ctypes.c_char_p * 2)(b"true", None), (ctypes.c_char_p * 1)(None), 0x1000)

    for where in ["/tmp", "/dev/shm"] + ([SCRATCH] if POLICY == "strict" else []):
        denied(f"run what was written to {where[:8]}", lambda: runs(copy(where)), "EACCES", l1=where == "/tmp")
        denied(f"have the loader run it from {where[:8]}", lambda: loads(copy(where)), "EPERM", l1=where == "/tmp")
        denied(f"map it from {where[:8]} for execution", lambda: maps(copy(where)), "EPERM", "EACCES", l1=where == "/tmp")
    if POLICY == "strict":
        denied("run from memory alone", in_memory, "ENOSYS", "EACCES", "EPERM")
    else:
        allowed("run from memory alone", in_memory, ["default"])
        allowed("run what was written to the workspace", lambda: runs(copy(SCRATCH)), ["default"])
    allowed("run a program of the system", lambda: os.execv("/bin/true", ["true"]))


@test
def changes_beyond_the_root():
    def moved():
        os.rename(OTHER["file"], OTHER["file"] + ".moved")
        os.rename(OTHER["file"] + ".moved", OTHER["file"])

    def changes(path):
        yield "stat", lambda: os.stat(path)
        yield "chmod", lambda: os.chmod(path, 0o644)
        yield "chown", lambda: os.chown(path, os.getuid(), os.getgid())
        yield "utime", lambda: os.utime(path)
        yield "truncate", lambda: os.truncate(path, os.stat(path).st_size)
        yield "write", lambda: opened(path, os.O_WRONLY)
        yield "link", lambda: (os.link(path, path + ".link"), os.unlink(path + ".link")) and None

    for name, action in changes(OTHER["file"]):
        denied(f"{name} of a file of the host's", lambda: word(action), "ENOENT", l1=name not in ("chown",))
    denied("rename of a file of the host's", moved, "ENOENT", l1=True)
    denied("setxattr of a file of the host's", lambda: os.setxattr(OTHER["file"], "user.x", b"x"), "ENOENT", "ENOSYS")
    for name, action in changes("/usr/bin/env"):
        if name != "stat":
            denied(f"{name} of a program of the system", lambda: word(action), "EROFS", "EACCES", "EPERM")
    for path in ["/usr/new", "/etc/new", "/new", "/dev/new", "/proc/new", "/opt/new"]:
        denied(f"make {path}", lambda: opened(path, os.O_CREAT | os.O_WRONLY), "EROFS", "EACCES", "ENOENT", "EPERM")
    for path in ["/home", "/root", "/sys", "/boot", "/srv", "/mnt", "/media", "/var/lib", "/var/run/docker.sock",
                 "/etc/shadow", "/etc/sudoers", "/etc/ssh", "/run/systemd", "/lost+found"]:
        denied(f"see {path}", lambda: os.stat(path), "ENOENT")
    path = own("mine")
    for name, action in changes(path):
        allowed(f"{name} of an own file", lambda: word(action))


def word(action):
    action()


@test
def group_readable_files():
    denied("read what the supervisor's group may", lambda: opened(GIVEN["group_file"]), "ENOENT", l1=True)
    denied("have groups besides the own", lambda: set(os.getgroups()) - {os.getgid()}, "nothing")
    denied("take another group", lambda: os.setgid(0), "EPERM", "EINVAL")
    denied("take other groups", lambda: os.setgroups([0]), "EPERM")
    allowed("read an own file by its group", lambda: opened(own("by-group", mode=0o440)))


@test
def page_cache():
    def vector(flags):
        with open("/usr/bin/env", "rb") as file:
            os.preadv(file.fileno(), [bytearray(1)], 0, flags)

    def resident():
        with open("/usr/bin/env", "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
            at = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
            call("mincore", at, 4096, ctypes.create_string_buffer(1))

    if POLICY == "strict":
        denied("ask whether a file is in memory, by a read", lambda: vector(8), "EOPNOTSUPP")
        denied("ask whether a file is in memory, by mincore", resident, "EPERM")
        denied("ask what of a file is in memory", lambda: call("cachestat", 0, ctypes.create_string_buffer(16), ctypes.create_string_buffer(64), 0), "EPERM", "ENOSYS")
    allowed("read a file by vector", lambda: vector(0))
