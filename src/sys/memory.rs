//! Memory that is overwritten.

use std::alloc::{GlobalAlloc, Layout, System};
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
