//! Capability sets and securebits as the kernel has them, with bits that no library knows yet. See capabilities(7).

use std::io;

/// The securebits of a process that no execve and no change of ids may ever make privileged: `SECBIT_NOROOT`,
/// `SECBIT_NO_SETUID_FIXUP`, `SECBIT_NO_CAP_AMBIENT_RAISE`, each locked, and `SECBIT_KEEP_CAPS` locked unset.
pub const LOCKED_SECUREBITS: i32 = 0b1110_1111;
/// `_LINUX_CAPABILITY_VERSION_3` of `<linux/capability.h>`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// Bits of a capability set.
const MOST_CAPABILITIES: libc::c_ulong = 64;

/// The five sets of a thread, one bit a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sets {
    /// `CapInh`.
    pub inheritable: u64,
    /// `CapPrm`.
    pub permitted: u64,
    /// `CapEff`.
    pub effective: u64,
    /// `CapBnd`.
    pub bounding: u64,
    /// `CapAmb`.
    pub ambient: u64,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn prctl(option: i32, a: libc::c_ulong, b: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: the options used here take numbers.
    let result = unsafe { libc::prctl(option, a, b, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Reads the calling thread's sets, without procfs.
///
/// # Errors
/// The kernel's.
pub fn own_sets() -> io::Result<Sets> {
    let mut header = Header { version: CAPABILITY_VERSION, pid: 0 };
    let mut halves = [Half::default(); 2];
    // SAFETY: version 3 reads the header and fills in two halves.
    let result = unsafe {
        libc::syscall(libc::SYS_capget, &raw mut header, halves.as_mut_ptr().cast::<libc::c_void>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let whole = |half: fn(&Half) -> u32| u64::from(half(&halves[0])) | u64::from(half(&halves[1])) << 32;
    let mut sets = Sets {
        inheritable: whole(|half| half.inheritable),
        permitted: whole(|half| half.permitted),
        effective: whole(|half| half.effective),
        ..Sets::default()
    };
    for capability in 0..MOST_CAPABILITIES {
        // EINVAL is past the kernel's last one.
        let Ok(bounding) = prctl(libc::PR_CAPBSET_READ, capability, 0) else { break };
        let is_ambient = libc::PR_CAP_AMBIENT_IS_SET as libc::c_ulong;
        let ambient = prctl(libc::PR_CAP_AMBIENT, is_ambient, capability)?;
        sets.bounding |= u64::from(bounding > 0) << capability;
        sets.ambient |= u64::from(ambient > 0) << capability;
    }
    Ok(sets)
}

/// `PR_CAPBSET_DROP`: no execve of this thread gains that capability from a file any more.
///
/// # Errors
/// `EPERM` without `CAP_SETPCAP`.
pub fn drop_from_bounding(capability: u32) -> io::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, capability.into(), 0).map(drop)
}

/// `PR_SET_SECUREBITS`.
///
/// # Errors
/// `EPERM` without `CAP_SETPCAP`, or where a locked bit would change.
pub fn set_securebits(bits: i32) -> io::Result<()> {
    prctl(libc::PR_SET_SECUREBITS, bits as libc::c_ulong, 0).map(drop)
}

/// `PR_GET_SECUREBITS`.
///
/// # Errors
/// The kernel's.
pub fn securebits() -> io::Result<i32> {
    prctl(libc::PR_GET_SECUREBITS, 0, 0)
}

/// Whether the program at `path` has file capabilities.
#[must_use]
pub fn has_file_capabilities(path: &str) -> bool {
    let Ok(path) = std::ffi::CString::new(path) else { return false };
    // SAFETY: NUL-terminated strings; without a buffer the kernel tells the attribute's size alone.
    unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) > 0 }
}
