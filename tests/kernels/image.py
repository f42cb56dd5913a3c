"""What is in a machine: the programs that are tested, busybox, and an initramfs of it all."""
import json
import os
import pathlib
import re
import shutil

from debian import call

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = "x86_64-unknown-linux-gnu"
# How long building may take, in seconds.
BUILD_BOUND = 900


def build(directory):
    """The programs, static: the tests, and what they drive, each with the path that the tests know it by."""
    # Emulated, code that is not optimised takes most of the time.
    environment = dict(os.environ, RUSTFLAGS="-C target-feature=+crt-static", CARGO_PROFILE_DEV_OPT_LEVEL="1")
    environment["CARGO_TARGET_DIR"] = os.environ.get("TRL_STATIC_TARGET_DIR", str(directory / "target"))
    command = ["cargo", "test", "--locked", "--no-run", "--target", TARGET, "--test", "kernels",
               "--message-format=json-render-diagnostics"]
    lines = call(command, BUILD_BOUND, cwd=ROOT, env=environment).splitlines()
    programs = {}
    for line in lines:
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message.get("executable"):
            programs[message["target"]["name"]] = pathlib.Path(message["executable"])
    files = {}
    for name, path in programs.items():
        stripped = directory / f"{name}.stripped"
        call(["strip", "-o", stripped, path], BUILD_BOUND)
        files["/tests" if name == "kernels" else str(path)] = (0o755, stripped.read_bytes())
    names = call([programs["kernels"], "--list", "--ignored", "--format=terse"], BUILD_BOUND)
    return files, [line.removesuffix(": test") for line in names.splitlines() if line.endswith(": test")]


def tools():
    """What else is in the machine: busybox, newuidmap with its libraries, accounts."""
    busybox = pathlib.Path(shutil.which("busybox") or "/bin/busybox")
    files = {
        "/bin/busybox": (0o755, busybox.read_bytes()),
        "/init": (0o755, (HERE / "init").read_bytes()),
        "/etc/passwd": (0o644, b"root:x:0:0::/:/bin/sh\ncaller:x:1900000501:1900000501::/:/bin/sh\n"),
        "/etc/group": (0o644, b"root:x:0:\n"),
        "/etc/shadow": (0o600, b"root:*:::::::\n"),
        "/etc/subuid": (0o644, b"caller:100000:65536\n"),
        "/etc/subgid": (0o644, b"caller:100000:65536\n"),
        "/usr/share/only-here": (0o644, b""),
        "/srv/host-file": (0o644, b"of the host\n"),
    }
    for name in ("newuidmap", "newgidmap"):
        path = pathlib.Path(f"/usr/bin/{name}")
        files[str(path)] = (0o4755, path.read_bytes())
        for library in re.findall(r"(/\S+) \(0x", call(["ldd", path])):
            files[library] = (0o755, pathlib.Path(library).read_bytes())
    return files


def archive(files):
    """An initramfs: a cpio archive of the form `newc`, see initramfs-buffer-format of the kernel's documentation."""
    entries = {"/dev/console": (0o020600, b""), "/new": (0o040755, b"")}
    for directory in ("/proc", "/sys", "/dev", "/tmp", "/run"):
        entries[directory] = (0o040755, b"")
    for path, (mode, content) in files.items():
        entries[path] = (0o100000 | mode, content)
    for path in list(entries):
        for parent in pathlib.PurePosixPath(path).parents:
            if str(parent) != "/":
                entries.setdefault(str(parent), (0o040755, b""))
    out = bytearray()

    def add(number, name, mode, content, device=(0, 0)):
        fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name) + 1, 0]
        out.extend(b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0")
        out.extend(b"\0" * (-len(out) % 4))
        out.extend(content)
        out.extend(b"\0" * (-len(out) % 4))

    for number, (path, (mode, content)) in enumerate(sorted(entries.items()), 1):
        add(number, path[1:], mode, content, (5, 1) if path == "/dev/console" else (0, 0))
    add(0, "TRAILER!!!", 0, b"")
    return bytes(out)
