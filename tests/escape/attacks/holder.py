# Somebody who has something of every kind that could be shared: named after the argument, told in a file of that name.
import ctypes, fcntl, json, os, select, signal, socket, struct, sys, threading

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
NAME = sys.argv[1]
CALLS = json.loads(sys.argv[2])


def call(name, *arguments):
    words = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return LIBC.syscall(ctypes.c_long(CALLS[name]), *words)


def attempt(action):
    """None where the policy leaves it out."""
    try:
        return action()
    except OSError:
        return None


def listening(family, address):
    made = socket.socket(family)
    made.bind(address)
    made.listen(16)
    return made


def served(server):
    while True:
        server.accept()[0].close()


def main():
    path = f"/tmp/{NAME}"
    held = {"name": NAME, "pid": os.getpid(), "group": os.getpgrp(), "file": path, "socket": f"{path}.sock", "shared": f"/dev/shm/{NAME}"}
    held["terces"] = os.environ["HELD_SECRET"][::-1]
    memory = ctypes.create_string_buffer(b"held in memory")
    held["address"] = ctypes.addressof(memory)
    held["key"] = key = int.from_bytes(NAME.encode()[-12:-4], "little") % (1 << 30) | 1
    files = [path, held["shared"]]
    if os.path.isdir("/workspace"):
        held["work"] = f"/workspace/{NAME}"
        files.append(held["work"])
    for file in files:
        with open(file, "w") as made:
            made.write(NAME)
    servers = [attempt(lambda: listening(socket.AF_INET, ("127.0.0.1", 0))), attempt(lambda: listening(socket.AF_UNIX, "\0" + NAME)),
               attempt(lambda: listening(socket.AF_UNIX, held["socket"]))]
    files.append(held["socket"])
    held["port"] = servers[0].getsockname()[1] if servers[0] else 47111
    for server in filter(None, servers):
        threading.Thread(target=served, args=(server,), daemon=True).start()
    held["segment"] = call("shmget", key, 4096, 0o1600)
    sets, queue = call("semget", key, 1, 0o1600), call("msgget", key, 0o1600)
    call("mq_open", NAME.encode(), 0o102, 0o600, None)
    held["serial"] = serial = call("add_key", b"user", NAME.encode(), b"secret", 6, -4)
    call("keyctl", 5, serial, 0x3f3f0000)
    env = open("/usr/bin/env", "rb")
    fcntl.flock(env, fcntl.LOCK_EX)
    held["inode"] = os.fstat(env.fileno()).st_ino
    LIBC.prctl(0x59616d61, ctypes.c_long(-1), 0, 0, 0)
    events = LIBC.inotify_init1(0o2000000)
    LIBC.inotify_add_watch(events, b"/usr/bin", 0x20)
    with open(f"{path}.events", "w") as log, open(f"{path}.held.new", "w") as told:
        json.dump(held, told)
        told.flush()
        os.rename(f"{path}.held.new", f"{path}.held")
        files += [f"{path}.events", f"{path}.held"]
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        signal.alarm(400)
        try:
            while True:
                if not select.select([events] if events >= 0 else [], [], [], 60)[0]:
                    continue
                read, at = os.read(events, 65536), 0
                while at < len(read):
                    length = struct.unpack_from("I", read, at + 12)[0]
                    log.write(read[at + 16:at + 16 + length].rstrip(b"\0").decode() + "\n")
                    at += 16 + length
                log.flush()
        finally:
            call("shmctl", held["segment"], 0, None)
            call("semctl", sets, 0, 0)
            call("msgctl", queue, 0, None)
            call("mq_unlink", NAME.encode())
            call("keyctl", 9, serial, -4)
            for file in files:
                attempt(lambda: os.unlink(file))


main()
