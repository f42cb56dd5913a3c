//! Memory that is overwritten.

/// Overwrites `bytes`, at the speed of `memset`, in a way that the compiler may not leave out
/// (`explicit_bzero(3)`).
pub fn wipe(bytes: &mut [u8]) {
    // SAFETY: a live, exclusive slice.
    unsafe { libc::explicit_bzero(bytes.as_mut_ptr().cast(), bytes.len()) };
}
