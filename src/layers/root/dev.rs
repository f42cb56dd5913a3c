//! `/dev`: six devices of the host's, terminals and shared memory of the session's own, and nothing else.

use super::place::{self, Kind, Site};
use super::tmpfs::Tmpfs;
use super::{During, Fault};
use crate::sys::mount::{self, Extent, Flags, Setup};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, mkdirat};
use nix::unistd::symlinkat;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Name, major and minor number.
pub(super) const DEVICES: [(&str, u64, u64); 6] =
    [("full", 1, 7), ("null", 1, 3), ("random", 1, 8), ("tty", 5, 0), ("urandom", 1, 9), ("zero", 1, 5)];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("ptmx", "pts/ptmx"),
    ("stderr", "/proc/self/fd/2"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
];
/// Of the tmpfs itself, bytes: it holds nothing but names.
pub(super) const SIZE: u64 = 64 * 1024;
/// Of the tmpfs itself.
pub(super) const INODES: u64 = 64;
/// Of `/dev/shm`.
pub(super) const SHM_INODES: u64 = 4096;

pub(super) fn mount(site: &Site, target: &[u8], shm: u64) -> Result<(), Fault> {
    let place = place::make(site, target, Kind::Directory)?;
    // Not `nodev`, though no device can be made on it: the binds below carry their own flags.
    let flags = Flags::NO_SUID.and(Flags::NO_EXEC);
    let dev = Tmpfs { size: SIZE, inodes: INODES, mode: 0o755, owner: None }
        .mount(flags)
        .during("make the tmpfs of /dev")?;
    mount::attach(&dev, place).during("attach the tmpfs of /dev")?;
    let host = place::open_below(&site.host, OsStr::new("dev")).during("open the host's /dev")?;
    for (name, major, minor) in DEVICES {
        device(&host, &dev, name, nix::sys::stat::makedev(major, minor))?;
    }
    for (name, to) in LINKS {
        symlinkat(to, &dev, name).during(name)?;
    }
    let terminals = Setup::new(c"devpts").and_then(|setup| {
        setup.flag(c"newinstance")?.set(c"ptmxmode", "666")?.set(c"mode", "620")?.mount(flags)
    });
    put(&dev, "pts", terminals)?;
    let memory = Tmpfs { size: shm, inodes: SHM_INODES, mode: 0o1777, owner: None }.mount(Flags::DATA);
    put(&dev, "shm", memory)?;
    // A kernel without message queues, or an IPC namespace that is not the session's own: then there is no such
    // directory.
    if let Ok(queues) = Setup::new(c"mqueue").and_then(|setup| setup.mount(Flags::DATA)) {
        put(&dev, "mqueue", Ok(queues))?;
    }
    mount::restrict(&dev, Flags::READ_ONLY).during("make /dev read-only")
}

fn put(dev: &OwnedFd, name: &'static str, tree: io::Result<OwnedFd>) -> Result<(), Fault> {
    let tree = tree.during(name)?;
    mkdirat(dev, name, Mode::from_bits_truncate(0o755)).during(name)?;
    mount::attach(tree, place::open_below(dev.as_fd(), OsStr::new(name)).during(name)?).during(name)
}

/// Binds a device that is what its name says, and looks whether it is that which is there (CVE-2025-52565). Its mount
/// is read-only, which concerns the inode's mode and times; the device is written all the same.
fn device(host: &OwnedFd, dev: &OwnedFd, name: &'static str, number: u64) -> Result<(), Fault> {
    let is_it = |found: &OwnedFd| -> Result<(), Fault> {
        let found = place::status(found)?;
        if found.st_mode & libc::S_IFMT == SFlag::S_IFCHR.bits() && found.st_rdev == number {
            Ok(())
        } else {
            Err(Fault::new(name, libc::ENODEV))
        }
    };
    let source = place::open_below(host.as_fd(), OsStr::new(name)).during(name)?;
    is_it(&source)?;
    let create = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    drop(openat(dev, name, create, Mode::from_bits_truncate(0o444)).during(name)?);
    let place = place::open_below(dev.as_fd(), OsStr::new(name)).during(name)?;
    let flags = Flags::NO_SUID.and(Flags::NO_EXEC).and(Flags::READ_ONLY);
    mount::bind(&source, place, flags, Extent::One).during(name)?;
    is_it(&place::open_below(dev.as_fd(), OsStr::new(name)).during(name)?)
}
