//! `/proc`: a fresh procfs of the session's PID namespace, without what tells of the kernel and the host.

use super::place::{self, Kind, Site};
use super::{During, Fault};
use crate::sys::mount::{self, Extent, Flags, Setup};
use nix::errno::Errno;
use nix::sys::stat::FileStat;
use std::ffi::{CString, OsStr};
use std::os::fd::OwnedFd;

/// Files that read as empty: addresses and layout of the kernel, its memory, keys of all users, the host's
/// hardware, and triggers.
pub(super) const FILES: [&str; 21] = [
    "cmdline",
    "config.gz",
    "interrupts",
    "iomem",
    "ioports",
    "kallsyms",
    "kcore",
    "key-users",
    "keys",
    "kmsg",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "modules",
    "mtrr",
    "sched_debug",
    "slabinfo",
    "sysrq-trigger",
    "timer_list",
    "vmallocinfo",
];
/// Directories that are empty: drivers, buses, file systems of the host.
pub(super) const DIRECTORIES: [&str; 7] = ["acpi", "asound", "bus", "driver", "fs", "irq", "scsi"];
/// The tree of kernel knobs, read-only.
pub(super) const KNOBS: &str = "sys";

pub(super) fn mount(site: &Site, target: &[u8], processes_only: bool) -> Result<(), Fault> {
    let place = place::make(site, target, Kind::Directory)?;
    let procfs = fresh(processes_only).during("make a procfs")?;
    // What the masks are for must be what they are mounted on, whatever is at the path (CVE-2025-52881).
    let kind = nix::sys::statfs::fstatfs(&procfs).during("look at the procfs")?.filesystem_type();
    if kind != nix::sys::statfs::PROC_SUPER_MAGIC {
        return Err(Fault::new("look at the procfs", libc::EXDEV));
    }
    mount::attach(&procfs, place).during("attach the procfs")?;
    let wanted = place::status(&site.blank.file)?;
    for name in FILES {
        mask(&procfs, name, &site.blank.file, &wanted)?;
    }
    let wanted = place::status(&site.blank.directory)?;
    for name in DIRECTORIES {
        mask(&procfs, name, &site.blank.directory, &wanted)?;
    }
    match place::open_below(&procfs, OsStr::new(KNOBS)) {
        Err(Errno::ENOENT) => Ok(()),
        found => {
            let found = found.during("open sys")?;
            let flags = Flags::DATA.and(Flags::READ_ONLY);
            mount::bind(&found, &found, flags, Extent::One).during("make sys read-only").map(drop)
        }
    }
}

fn fresh(processes_only: bool) -> std::io::Result<OwnedFd> {
    // By number: names are of Linux 5.8.
    let mut setup = Setup::new(c"proc")?.set(c"hidepid", "2")?;
    if processes_only {
        setup = setup.set(c"subset", "pid")?;
    }
    setup.mount(Flags::DATA)
}

/// Mounts `blank` over an entry, if there is one, and looks whether it is there (CVE-2025-31133).
fn mask(procfs: &OwnedFd, name: &'static str, blank: &OwnedFd, wanted: &FileStat) -> Result<(), Fault> {
    let entry = CString::new(name).map_err(|_| Fault::new(name, libc::EINVAL))?;
    // Looked for first: a copy that is not used is unmounted, which takes its time.
    match place::is_same(procfs, name, wanted) {
        Err(fault) if fault.is_absence() => return Ok(()),
        Err(fault) => return Err(fault),
        Ok(_) => {}
    }
    mount::copy(blank).and_then(|copy| mount::attach_at(copy, procfs, &entry)).during(name)?;
    if place::is_same(procfs, name, wanted)? { Ok(()) } else { Err(Fault::new(name, libc::EXDEV)) }
}
