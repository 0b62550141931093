//! A value that only the thread that made it can reach.

use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    /// A number no other thread of this process ever has, unlike the system's own thread ids.
    static THREAD: u64 = {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    };
}

/// Shared between threads as an address, read and written by one.
///
/// This is what lets a waker, which must be `Send`, put a task on its queue's list without a lock
/// when it is woken on the queue's own thread.
pub(crate) struct OwnedBy<T> {
    owner: u64,
    borrowed: Cell<bool>,
    value: UnsafeCell<T>,
}

// SAFETY: `value` and `borrowed` are reached only in `with`, which checks the thread first. `T` may
// be dropped on another thread with the last reference, hence `T: Send`.
unsafe impl<T: Send> Sync for OwnedBy<T> {}

// SAFETY: as for Sync: moving the cell moves a `T: Send`.
unsafe impl<T: Send> Send for OwnedBy<T> {}

impl<T> OwnedBy<T> {
    /// Owned by the calling thread.
    pub(crate) fn new(value: T) -> Self {
        let owner = THREAD.with(|thread| *thread);
        Self { owner, borrowed: Cell::new(false), value: UnsafeCell::new(value) }
    }

    /// Whether the calling thread owns it.
    pub(crate) fn is_owner(&self) -> bool {
        // A thread whose locals are gone is treated as a stranger.
        THREAD.try_with(|thread| *thread == self.owner).unwrap_or(false)
    }

    /// Gives `use_it` the value, or nothing on another thread. `use_it` must not come back here.
    ///
    /// # Panics
    /// When it does.
    pub(crate) fn with<R>(&self, use_it: impl FnOnce(&mut T) -> R) -> Option<R> {
        if !self.is_owner() {
            return None;
        }
        struct Return<'a>(&'a Cell<bool>);
        impl Drop for Return<'_> {
            fn drop(&mut self) {
                self.0.set(false);
            }
        }
        assert!(!self.borrowed.replace(true), "a value was borrowed twice");
        let _return = Return(&self.borrowed);
        // SAFETY: only the owning thread comes here, and `borrowed` lets it in once at a time.
        Some(use_it(unsafe { &mut *self.value.get() }))
    }
}
