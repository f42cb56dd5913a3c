# What the attack programs have in common. An attempt runs in a child of its own with a bound, and comes to one word:
# `ok`, `nothing` where it succeeded and found nothing, the name of an errno, or that of a signal.
import ctypes, errno, fcntl, json, mmap, os, platform, resource, shutil, signal, socket, stat, struct, subprocess, sys
import tempfile, time



def is_open(number):
    try:
        return bool(os.fstat(number))
    except OSError:
        return False


# Without the one that the list was read by.
OPEN_AT_START = [int(name) for name in os.listdir("/proc/self/fd") if is_open(int(name))]
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
TESTS = []
TOLD = []
CLONE_NEW = {"NEWUSER": 0x10000000, "NEWNS": 0x20000, "NEWPID": 0x20000000, "NEWNET": 0x40000000,
             "NEWIPC": 0x8000000, "NEWUTS": 0x4000000, "NEWCGROUP": 0x2000000}
IS_X86 = platform.machine() == "x86_64"
BOUND = 8


def call(name, *arguments):
    """A system call by name or number; the buffers of a test are bytes or ctypes objects."""
    number = name if isinstance(name, int) else GIVEN["calls"][name]
    ctypes.set_errno(0)
    words = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = LIBC.syscall(ctypes.c_long(number), *words)
    if result == -1:
        raise OSError(ctypes.get_errno(), str(name))
    return result


def test(function):
    TESTS.append(function)
    return function


def word_of(action):
    try:
        said = action()
        # A number is what a system call answered, a status is that of a file that was found.
        if said is None or said is True or type(said) in (int, os.stat_result):
            return "ok"
        return f"found {said}" if said else "nothing"
    except OSError as error:
        name = errno.errorcode.get(error.errno, type(error).__name__)
        return "EOPNOTSUPP" if name == "ENOTSUP" else name
    except BaseException as error:
        return repr(error)


def outcome(action):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(BOUND)
        os.write(writer, word_of(action).encode()[:300])
        os._exit(0)
    os.close(writer)
    status = os.waitpid(child, 0)[1]
    os.set_blocking(reader, False)
    try:
        said = os.read(reader, 400).decode()
    except BlockingIOError:
        said = ""
    os.close(reader)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    # Whoever became another program has said nothing.
    return said or ("ok" if status == 0 else f"exit code {os.WEXITSTATUS(status)}")


def tell(name, action, want, control):
    TOLD.append({"test": CURRENT, "tried": name, "want": list(want), "got": outcome(action), "control": control})


def denied(name, action, *want, l1=False, same=()):
    """An attack. `l1`: it succeeds where nothing stops it; `same`: and, under these policies, within one session."""
    if ROLE == "same" or POLICY == "l1":
        if (POLICY in same) if ROLE == "same" else l1:
            tell(name, action, ["ok"], True)
    else:
        tell(name, action, want, False)


def apart(name, action):
    """What succeeds unless those who have nothing to do with one another share something."""
    shared = ROLE == "same" or POLICY == "l1"
    tell(name, action, ["EAGAIN"] if shared else ["ok"], shared)


def allowed(name, action, only=()):
    if not only or POLICY in only:
        tell(name, action, ["ok"], True)


def is_stopped(*command):
    """Runs a program; its failure counts as EPERM."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode != 0:
        raise PermissionError(errno.EPERM, "failed")


def read(path, count=-1):
    with open(path, "rb") as file:
        return file.read(count)


def write(path, text):
    with open(path, "wb", buffering=0) as file:
        file.write(text.encode())


def opened(path, flags=os.O_RDONLY):
    os.close(os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC))


def connected(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as made:
        made.settimeout(3)
        made.connect(address)


def own(name, content="own\n", mode=0o644):
    """A file of the session's own, where it may write."""
    path = f"{SCRATCH}/{name}"
    write(path, content)
    os.chmod(path, mode)
    return path


def main(given):
    global GIVEN, OTHER, ROLE, POLICY, SCRATCH, CURRENT
    GIVEN = json.loads(given)
    OTHER = GIVEN.get("other", {})
    ROLE, POLICY = GIVEN["context"].split(":")
    SCRATCH = tempfile.mkdtemp(dir="/tmp" if POLICY == "l1" else "/workspace")
    for function in TESTS:
        CURRENT = function.__name__
        try:
            function()
        except BaseException as error:
            TOLD.append({"test": CURRENT, "tried": "", "want": [], "got": repr(error), "control": False})
    shutil.rmtree(SCRATCH, ignore_errors=True)
    for line in TOLD:
        print(json.dumps(line))
    print(json.dumps({"end": len(TOLD)}))
