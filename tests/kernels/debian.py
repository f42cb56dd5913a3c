"""Debian's kernels, unpacked and not installed, and what a machine needs of them."""
import lzma
import pathlib
import re
import shutil
import subprocess
import tempfile

# How long any one step may take, in seconds.
BOUND = 180


class Unavailable(Exception):
    """A kernel that cannot be had."""


def call(command, bound=BOUND, **more):
    return subprocess.run(command, check=True, timeout=bound, stdout=subprocess.PIPE, text=True, **more).stdout


def mirror():
    """Where this machine has its packages from."""
    for path in sorted(pathlib.Path("/etc/apt").glob("sources.list*/**/*.sources")) + [pathlib.Path("/etc/apt/sources.list")]:
        if path.exists():
            found = re.search(r"(?:^URIs:\s*|^deb\s+(?:\[[^]]*\]\s+)?)(http\S+/debian/?)(?=\s)", path.read_text(), re.M)
            if found:
                return found.group(1).rstrip("/")
    return "http://deb.debian.org/debian"


def fetch(kernel, cache):
    """Unpacks the packages of a kernel into cache/SUITE, once."""
    place = cache / kernel.suite
    if place.exists():
        return place
    state = pathlib.Path(tempfile.mkdtemp(prefix="apt-", dir=cache))
    try:
        for part in ("lists/partial", "archives/partial", "packages", "unpacked"):
            (state / part).mkdir(parents=True)
        signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
        (state / "sources.list").write_text(f"deb {signed} {mirror()} {kernel.suite} main\n")
        options = {
            "Dir::Etc::sourcelist": state / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": state / "lists",
            "Dir::Cache::archives": state / "archives",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        options = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]

        def depends(package, pattern):
            text = call(["apt-cache", *options, "depends", "--important", package])
            return [name for name in re.findall(r"Depends: (\S+)", text) if re.match(pattern, name)]

        call(["apt-get", *options, "-qq", "update"])
        images = depends("linux-image-cloud-amd64", "linux-image-")
        if not images:
            raise Unavailable(f"{kernel.suite} has no linux-image-cloud-amd64")
        # A kernel may be in packages of its own, by what it consists of.
        parts = depends(images[0], "linux-(binary|modules|base)-")
        call(["apt-get", *options, "-qq", "download", images[0], *parts], cwd=state / "packages")
        for package in (state / "packages").glob("*.deb"):
            call(["dpkg-deb", "-x", package, state / "unpacked"])
        (state / "unpacked").rename(place)
    except (subprocess.SubprocessError, OSError) as error:
        raise Unavailable(f"{kernel.suite} of {mirror()}: {error}") from error
    finally:
        shutil.rmtree(state, ignore_errors=True)
    return place


def image_of(place):
    for pattern in ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz", "lib/modules/*/vmlinuz"):
        for found in sorted(place.glob(pattern)):
            return found
    raise Unavailable(f"no vmlinuz below {place}")


def module(place, name):
    """A module and what it needs, in the order in which they are loaded: names and contents."""
    found = next((f for f in place.rglob(f"{name}.ko*") if f.name.split(".ko")[0] == name), None)
    if found is None:
        raise Unavailable(f"no module {name} below {place}")
    content = found.read_bytes()
    if found.suffix == ".xz":
        content = lzma.decompress(content)
    elif found.suffix == ".zst":
        content = subprocess.run(["zstd", "-qdc", found], check=True, stdout=subprocess.PIPE).stdout
    needs = re.search(rb"\0depends=([^\0]*)\0", content).group(1).decode()
    modules = {}
    for needed in filter(None, needs.split(",")):
        modules |= module(place, needed)
    modules[f"{name}.ko"] = content
    return modules
