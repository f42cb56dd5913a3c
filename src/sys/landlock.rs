//! What Landlock the kernel has; the rest of it is the `landlock` crate's.

/// `LANDLOCK_CREATE_RULESET_VERSION` of `<linux/landlock.h>`.
const VERSION: u32 = 1;

/// The kernel's Landlock ABI; 0 where it has none, or it was not enabled at boot.
#[must_use]
pub fn abi() -> i32 {
    // SAFETY: asked for the version, the kernel takes a null attribute and no size.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0usize, 0usize, VERSION) };
    i32::try_from(abi).unwrap_or(0).max(0)
}
