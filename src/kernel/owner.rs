//! A value that only the thread that made it can reach.

use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    /// A number no other thread of this process ever has, unlike the system's own thread ids.
    static THREAD: u64 = {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    };
}

/// Makes the thread's number exist. What is made first goes last when a thread ends (on windows-gnu,
/// where even a number is torn down): so this comes before anything that is still used then.
pub(crate) fn touch() {
    let _ = THREAD.try_with(|_| ());
}

/// Shows that the thread it is on made an [`OwnedBy`]; also when the thread's locals are gone.
///
/// Not `Send`, so it stays there.
pub(crate) struct Owner {
    thread: u64,
    not_send: PhantomData<*mut ()>,
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

// SAFETY: `value` and `borrowed` are reached only in `enter`, on the thread that made the cell. `T`
// may be dropped on another thread with the last reference, hence `T: Send`.
unsafe impl<T: Send> Sync for OwnedBy<T> {}

// SAFETY: as for Sync: moving the cell moves a `T: Send`.
unsafe impl<T: Send> Send for OwnedBy<T> {}

impl<T> OwnedBy<T> {
    /// Owned by the calling thread, which gets the proof.
    pub(crate) fn new(value: T) -> (Self, Owner) {
        let thread = THREAD.with(|thread| *thread);
        let owned =
            Self { owner: thread, borrowed: Cell::new(false), value: UnsafeCell::new(value) };
        (owned, Owner { thread, not_send: PhantomData })
    }

    /// Whether the calling thread owns it. A thread whose locals are gone counts as a stranger.
    pub(crate) fn is_owner(&self) -> bool {
        THREAD.try_with(|thread| *thread == self.owner).unwrap_or(false)
    }

    /// The proof, where the calling thread owns it.
    #[inline]
    pub(crate) fn claim(&self) -> Option<Owner> {
        self.is_owner().then_some(Owner { thread: self.owner, not_send: PhantomData })
    }

    /// Gives `use_it` the value, which must not come back here.
    ///
    /// # Panics
    /// When `use_it` comes back here, or the proof is another thread's.
    #[inline]
    pub(crate) fn with_owner<R>(&self, owner: &Owner, use_it: impl FnOnce(&mut T) -> R) -> R {
        assert!(owner.thread == self.owner, "the proof of another thread");
        // SAFETY: a proof is made on the thread whose number it has and never leaves it.
        unsafe { self.enter(use_it) }
    }

    /// # Safety
    /// On the thread that made the cell.
    unsafe fn enter<R>(&self, use_it: impl FnOnce(&mut T) -> R) -> R {
        struct Return<'a>(&'a Cell<bool>);
        impl Drop for Return<'_> {
            fn drop(&mut self) {
                self.0.set(false);
            }
        }
        assert!(!self.borrowed.replace(true), "a value was borrowed twice");
        let _return = Return(&self.borrowed);
        // SAFETY: only the owning thread comes here, and `borrowed` lets it in once at a time.
        use_it(unsafe { &mut *self.value.get() })
    }
}
