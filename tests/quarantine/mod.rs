//! An allocator that keeps what is freed for a while, and looks whether somebody writes there: so a write
//! after a free shows without a sanitizer too.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What stands in memory that was just handed out, and in memory that was freed.
pub const FRESH: u8 = 0xCD;
const FREED: u8 = 0xDD;

/// How many blocks are kept, and of what size at most.
const BLOCKS: usize = 8192;
const LARGEST: usize = 1 << 20;

/// Blocks that were freed, oldest first from `next` on.
pub struct Quarantine(Mutex<Ring>);

struct Ring {
    blocks: [Option<(usize, Layout)>; BLOCKS],
    next: usize,
    /// How many turned out to have been written to.
    damaged: usize,
}

#[global_allocator]
pub static ALLOCATOR: Quarantine =
    Quarantine(Mutex::new(Ring { blocks: [None; BLOCKS], next: 0, damaged: 0 }));

impl Quarantine {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives everything back to the system: how many blocks were written to after their free.
    pub fn flush(&self) -> usize {
        let mut ring = self.ring();
        for index in 0..BLOCKS {
            if let Some((address, layout)) = ring.blocks[index].take() {
                ring.damaged += usize::from(!is_untouched(address, layout));
                // SAFETY: it came from `System` with this layout, and left the ring.
                unsafe { System.dealloc(std::ptr::with_exposed_provenance_mut(address), layout) };
            }
        }
        std::mem::take(&mut ring.damaged)
    }
}

/// Whether a block in quarantine is as it was left.
fn is_untouched(address: usize, layout: Layout) -> bool {
    let start = std::ptr::with_exposed_provenance::<u8>(address);
    // SAFETY: the block is the quarantine's and was filled to its end.
    let bytes = unsafe { std::slice::from_raw_parts(start, layout.size()) };
    bytes.iter().all(|&byte| byte == FREED)
}

// SAFETY: memory comes from `System` and goes back there, later. Nothing here allocates or panics.
unsafe impl GlobalAlloc for Quarantine {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on; the new block is `size` bytes.
        unsafe {
            let start = System.alloc(layout);
            if !start.is_null() {
                start.write_bytes(FRESH, layout.size());
            }
            start
        }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller gives the block up.
        unsafe { start.write_bytes(FREED, layout.size()) };
        let mut oldest = Some((start.expose_provenance(), layout));
        if layout.size() <= LARGEST {
            let mut ring = self.ring();
            let next = ring.next;
            ring.next = (next + 1) % BLOCKS;
            oldest = std::mem::replace(&mut ring.blocks[next], oldest);
            if oldest.is_some_and(|(address, layout)| !is_untouched(address, layout)) {
                ring.damaged += 1;
            }
        }
        if let Some((address, layout)) = oldest {
            // SAFETY: it came from `System` with this layout, and is in no ring.
            unsafe { System.dealloc(std::ptr::with_exposed_provenance_mut(address), layout) };
        }
    }
}

/// One test at a time: what is damaged is counted for all.
pub static ALONE: Mutex<()> = Mutex::new(());

// The allocator itself, by its own functions: what the compiler knows to be freed is never written.
#[test]
fn a_write_after_a_free_is_found() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let layout = Layout::from_size_align(64, 16).unwrap();
    // SAFETY: a block of our own; the quarantine still has the memory when it is written to.
    unsafe {
        let start = ALLOCATOR.alloc(layout);
        assert_eq!(start.read(), FRESH);
        ALLOCATOR.dealloc(start, layout);
        start.add(63).write(1);
    }
    assert_eq!(ALLOCATOR.flush(), 1);
    assert_eq!(ALLOCATOR.flush(), 0);
}
