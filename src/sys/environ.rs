//! The process's own environment block, which `/proc/<pid>/environ` shows for as long as it lives.

unsafe extern "C" {
    static mut environ: *mut *mut libc::c_char;
}

/// Overwrites every value of the block that `execve` made and empties the environment.
/// To be called once, while the process has one thread, after what is wanted was copied out.
pub fn wipe() {
    // SAFETY: single-threaded by contract, so nobody reads or changes the list; each entry is a NUL-terminated
    // string in writable memory (the initial block, or libc's own copies).
    unsafe {
        let list = environ;
        if list.is_null() {
            return;
        }
        let mut entry = list;
        while !(*entry).is_null() {
            let length = libc::strlen(*entry);
            let text = std::slice::from_raw_parts_mut((*entry).cast::<u8>(), length);
            zeroize::Zeroize::zeroize(text);
            entry = entry.add(1);
        }
        libc::clearenv();
    }
}
