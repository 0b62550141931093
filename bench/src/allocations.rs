//! Counts what the program allocates, and aligns what is large as the programs by hand do.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

/// A block of the benches that read files, or more.
const LARGE: usize = 4096;
/// To copy to and from what is not aligned so takes the system up to half as much again.
const ALIGN: usize = 64;

/// How the system's allocator is asked for it. Most others align what is large anyway.
fn placed(layout: Layout) -> Layout {
    if !cfg!(unix) || layout.size() < LARGE {
        return layout;
    }
    layout.align_to(ALIGN).unwrap_or(layout)
}

// SAFETY: everything is passed on to the system's allocator, with a layout that allows for all that the caller's does,
// and the same for the same block.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(placed(layout)) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, placed(layout)) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(placed(layout)) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the size is one that the caller may ask for.
        let larger = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        let (before, after) = (placed(layout), placed(larger));
        // SAFETY: as above; and where it moves, both have room for what is copied.
        unsafe {
            if before.align() == after.align() {
                return System.realloc(pointer, before, size);
            }
            let moved = System.alloc(after);
            if !moved.is_null() {
                ptr::copy_nonoverlapping(pointer, moved, size.min(layout.size()));
                System.dealloc(pointer, before);
            }
            moved
        }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How many allocations were made so far, by any thread.
pub(crate) fn count() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}
