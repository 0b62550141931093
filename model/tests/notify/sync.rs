//! What `src/sync.rs` takes from std, from loom.

use std::ops::{Deref, DerefMut};
use std::sync::{LockResult, TryLockError, TryLockResult};
use std::time::Duration;

pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

/// Others go on meanwhile.
pub(crate) fn sleep(_: Duration) {
    loom::thread::yield_now();
}

/// loom's, but one whose unlocking is an event of its own: to loom it matters only to who waits for it,
/// so that a `try_lock` would find it locked too seldom.
pub(crate) struct Mutex<T> {
    mutex: loom::sync::Mutex<T>,
    locked: AtomicBool,
}

pub(crate) struct MutexGuard<'a, T> {
    guard: loom::sync::MutexGuard<'a, T>,
    locked: &'a AtomicBool,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { mutex: loom::sync::Mutex::new(value), locked: AtomicBool::new(false) }
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        let guard = self.mutex.lock().unwrap();
        Ok(self.locked(guard))
    }

    /// Who finds it locked has synchronised with nobody.
    pub(crate) fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        if self.locked.load(Ordering::Relaxed) {
            return Err(TryLockError::WouldBlock);
        }
        match self.mutex.try_lock() {
            Ok(guard) => Ok(self.locked(guard)),
            Err(_) => Err(TryLockError::WouldBlock),
        }
    }

    fn locked<'a>(&'a self, guard: loom::sync::MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.locked.store(true, Ordering::Relaxed);
        MutexGuard { guard, locked: &self.locked }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.locked.store(false, Ordering::Relaxed);
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}
