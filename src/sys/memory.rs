//! Memory that is overwritten.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// The system's allocator; while [`wiping`] runs, with every block overwritten before it is given back.
struct Wiping;

#[global_allocator]
static ALLOCATOR: Wiping = Wiping;
static WIPES: AtomicBool = AtomicBool::new(false);

// SAFETY: every block comes from `System` and goes back to it with its layout; before that it is the caller's own.
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller gives up a live block of that layout.
        unsafe {
            if WIPES.load(Ordering::Relaxed) {
                libc::explicit_bzero(block.cast(), layout.size());
            }
            System.dealloc(block, layout);
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise; the new layout has the old one's alignment and a size that the caller
        // promises to be valid with it, and both blocks hold what is copied.
        unsafe {
            if !WIPES.load(Ordering::Relaxed) {
                return System.realloc(block, layout, size);
            }
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                block.copy_to_nonoverlapping(new, size.min(layout.size()));
                self.dealloc(block, layout);
            }
            new
        }
    }
}

/// Runs `work`, and has every block of memory overwritten that is given back meanwhile: for parsers of values
/// that must not be left behind, whose buffers are not ours to wipe.
pub fn wiping<T>(work: impl FnOnce() -> T) -> T {
    struct Until;
    impl Drop for Until {
        fn drop(&mut self) {
            WIPES.store(false, Ordering::Relaxed);
        }
    }
    WIPES.store(true, Ordering::Relaxed);
    let _until = Until;
    work()
}

/// Overwrites `bytes`, at the speed of `memset`, in a way that the compiler may not leave out
/// (`explicit_bzero(3)`).
pub fn wipe(bytes: &mut [u8]) {
    // SAFETY: a live, exclusive slice.
    unsafe { libc::explicit_bzero(bytes.as_mut_ptr().cast(), bytes.len()) };
}

/// Reads another process's memory (`process_vm_readv(2)`): what `/proc/<pid>/mem` is to whoever may ptrace a process but
/// has another user id, for whom the files of `/proc` are closed.
pub struct OfProcess {
    pid: i32,
    next: u64,
    end: u64,
}

impl OfProcess {
    /// The bytes of process `pid` from address `start` to `end`.
    #[must_use]
    pub fn new(pid: i32, start: u64, end: u64) -> Self {
        Self { pid, next: start, end }
    }
}

impl io::Read for OfProcess {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.next)).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        if length == 0 {
            return Ok(0);
        }
        let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: length };
        let remote = libc::iovec { iov_base: self.next as *mut libc::c_void, iov_len: length };
        // SAFETY: the local range is a live, exclusive slice; the remote one is checked by the kernel.
        let count = unsafe { libc::process_vm_readv(self.pid, &raw const local, 1, &raw const remote, 1, 0) };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        self.next += count as u64;
        Ok(count as usize)
    }
}
