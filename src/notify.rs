//! Waking a queue from another thread.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, TryLockError};
use std::task::Wake;
use std::time::Duration;

use crate::kernel::Alarm;
use crate::kernel::owner::{OwnedBy, Owner};
use crate::sync::{AtomicBool, AtomicU32, AtomicUsize, Mutex, MutexGuard, Ordering, sleep};

/// Names one of a queue's tasks for ever: its place, and how often that was used. Or one of the queue's
/// `block_on`. In one number, as names are what is moved and compared most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TaskId(u64);

impl TaskId {
    /// Stand for no task where a name does: for nothing, and for something else than a task.
    pub(crate) const NONE: Self = Self(u64::MAX);
    pub(crate) const OTHER: Self = Self(u64::MAX - 1);

    /// What the names of `block_on` begin at, and those of tasks stay below.
    const ROOTS: u64 = 1 << 63;

    /// The first that has this place.
    pub(crate) fn first_at(place: u32) -> Self {
        Self(place.into())
    }

    /// The next that has the same place.
    pub(crate) fn successor(self) -> Self {
        Self(self.0.wrapping_add(1 << 32) & !Self::ROOTS)
    }

    /// The place, if it is a task's name.
    #[inline]
    pub(crate) fn place(self) -> usize {
        self.0 as u32 as usize
    }

    /// Names what a `block_on` waits for, inside so many others.
    pub(crate) fn of_root(depth: usize) -> Self {
        Self(Self::ROOTS | depth as u64)
    }

    /// How many others a `block_on` of this name is inside of.
    pub(crate) fn root_depth(self) -> Option<usize> {
        let is_root = self.is_name() && self.0 >= Self::ROOTS;
        is_root.then_some((self.0 & !Self::ROOTS) as usize)
    }

    /// Whether it is the name of a task or of a `block_on`.
    #[inline]
    pub(crate) fn is_name(self) -> bool {
        self.0 < Self::OTHER.0
    }
}

/// The part of a queue that other threads reach.
pub(crate) struct Shared {
    alarm: Alarm,
    /// How many wanted the queue woken since it last took a wake-up off its port. The first of them
    /// posts one; it would tell nothing new to post another.
    wanted: AtomicU32,
    closed: AtomicBool,
    /// Tasks woken on the queue's own thread: no lock.
    local: OwnedBy<VecDeque<TaskId>>,
    /// How many those are. Changed by that thread only, which asks far more often than one is woken.
    local_count: AtomicUsize,
    /// Tasks woken on others.
    remote: Mutex<Vec<TaskId>>,
    has_remote: AtomicBool,
}

impl Shared {
    /// With the proof of who owns it.
    pub(crate) fn new(alarm: Alarm) -> (Self, Owner) {
        let (local, owner) = OwnedBy::new(VecDeque::new());
        let shared = Self {
            alarm,
            wanted: AtomicU32::new(0),
            closed: AtomicBool::new(false),
            local,
            local_count: AtomicUsize::new(0),
            remote: Mutex::new(Vec::new()),
            has_remote: AtomicBool::new(false),
        };
        (shared, owner)
    }

    #[cfg(windows)]
    pub(crate) fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Queues a wake-up unless one is queued already.
    fn ring(&self) -> io::Result<()> {
        // Sequentially consistent with `answered`: either the queue sees what was stored before
        // this, or this sees that the last wake-up was taken off, and posts another.
        if self.wanted.fetch_add(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        let Err(error) = self.alarm.ring() else { return Ok(()) };
        // Whoever came meanwhile was told that the queue will wake.
        if self.wanted.swap(0, Ordering::SeqCst) <= 1 {
            return Err(error);
        }
        self.ring_until_heard();
        Ok(())
    }

    /// As [`ring`](Self::ring), for those that cannot fail: a system without memory for a packet is
    /// asked again (pitfall 15). Blocks this thread meanwhile, never the queue's.
    fn ring_until_heard(&self) {
        while !self.is_closed() && self.ring().is_err() {
            sleep(Duration::from_millis(1));
        }
    }

    /// The wake-up was taken off the port.
    pub(crate) fn answered(&self) {
        self.wanted.swap(0, Ordering::SeqCst);
    }

    /// A task can go on.
    fn schedule(&self, task: TaskId) {
        if self.is_closed() {
            return;
        }
        match self.local.claim() {
            Some(owner) => self.with_local(&owner, |local| local.push_back(task)),
            None => self.schedule_from_afar(task),
        }
    }

    /// A task can go on, as another thread says.
    fn schedule_from_afar(&self, task: TaskId) {
        let mut remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_closed() {
            return;
        }
        remote.push(task);
        self.has_remote.store(true, Ordering::Release);
        drop(remote);
        self.ring_until_heard();
    }

    /// The task that became ready first.
    #[inline]
    pub(crate) fn next(&self, owner: &Owner) -> Option<TaskId> {
        if self.has_remote.load(Ordering::Acquire) {
            self.fetch(owner);
        }
        if self.len(owner) == 0 { None } else { self.pop_local(owner) }
    }

    #[inline(never)]
    fn pop_local(&self, owner: &Owner) -> Option<TaskId> {
        self.with_local(owner, VecDeque::pop_front)
    }

    /// Changes the list of those that were woken here.
    fn with_local<R>(&self, owner: &Owner, change: impl FnOnce(&mut VecDeque<TaskId>) -> R) -> R {
        self.local.with_owner(owner, |local| {
            let changed = change(local);
            self.local_count.store(local.len(), Ordering::Relaxed);
            changed
        })
    }

    /// Takes over what other threads have woken, if none of them is just at it.
    #[cold]
    fn fetch(&self, owner: &Owner) {
        // Whoever holds the lock is about to ring; or was ended with the process, while holding it.
        match self.remote.try_lock() {
            Ok(remote) => self.take_over(owner, remote),
            Err(TryLockError::Poisoned(remote)) => self.take_over(owner, remote.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
    }

    /// How many tasks are ready, but for those that other threads have just woken.
    #[inline]
    pub(crate) fn len(&self, _owner: &Owner) -> usize {
        self.local_count.load(Ordering::Relaxed)
    }

    fn take_over(&self, owner: &Owner, mut remote: MutexGuard<'_, Vec<TaskId>>) {
        self.has_remote.store(false, Ordering::Relaxed);
        self.with_local(owner, |local| local.extend(remote.drain(..)));
    }

    #[inline]
    pub(crate) fn is_empty(&self, owner: &Owner) -> bool {
        !self.has_remote.load(Ordering::Acquire) && self.len(owner) == 0
    }

    /// From now on no task is woken. Those that were before are still there.
    ///
    /// Does not wait for the lock where the thread is going away.
    pub(crate) fn close(&self, owner: &Owner, exiting: bool) {
        let remote = if exiting { self.remote.try_lock().ok() } else { self.remote.lock().ok() };
        self.closed.store(true, Ordering::Release);
        if let Some(remote) = remote {
            self.take_over(owner, remote);
        }
    }
}

/// Wakes its queue from any thread.
///
/// A queue that waits in [`poll`](crate::Queue::poll) returns from it; one that does not wait
/// returns from its next `poll` at once. Wake-ups coalesce: any number between two polls costs one
/// packet. None is lost.
///
/// A notifier by itself is nothing that a queue waits for: with nothing else in flight `poll` and
/// `run` return at once. A loop that is woken by nothing else keeps a [`sleep`](crate::sleep) alive,
/// or awaits something in [`block_on`](crate::block_on), whose future any `Waker` wakes.
///
/// It resumes nobody: [`run`](crate::run) and `block_on` wait on, and poll no future again for it. It is for
/// a loop of your own round `poll`, which then looks at what the other thread has left it. To tell a task
/// something from another thread, wake its `Waker` there, as any channel does, or use
/// [`Remote::run`](crate::Remote::run).
///
/// `Send`, `Sync` and `Clone`. Dropping it does nothing. It keeps the completion port open, so it
/// may outlive its queue and the queue's thread; notifying is then harmless.
#[derive(Clone)]
pub struct Notifier {
    shared: Arc<Shared>,
}

impl Notifier {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Wakes the queue.
    ///
    /// # Errors
    /// When the system has no memory for a packet (`PostQueuedCompletionStatus` uses non-paged
    /// pool). The queue was not woken; try again.
    pub fn notify(&self) -> io::Result<()> {
        if self.shared.is_closed() { Ok(()) } else { self.shared.ring() }
    }
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifier").finish_non_exhaustive()
    }
}

/// What the wakers of a task share. It leads to the task and keeps nothing of it (pitfall 56).
pub(crate) struct TaskWaker {
    task: TaskId,
    shared: Arc<Shared>,
    /// It is on the queue's list.
    scheduled: AtomicBool,
    /// Nobody wants its output: it is to be dropped, not polled.
    cancelled: AtomicBool,
}

impl TaskWaker {
    pub(crate) fn new(task: TaskId, shared: Arc<Shared>) -> Self {
        let (scheduled, cancelled) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { task, shared, scheduled, cancelled }
    }

    /// Has the queue resume the task, unless it is about to.
    pub(crate) fn schedule(&self) {
        if !self.scheduled.swap(true, Ordering::AcqRel) {
            self.shared.schedule(self.task);
        }
    }

    /// Has the queue drop the task.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.schedule();
    }

    #[inline]
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// The task is about to be resumed: whoever wakes it from now on puts it on the list again.
    #[inline]
    pub(crate) fn answer(&self) {
        // Looked at first, as a swap costs as much as all else. One that is missed has put it on the list,
        // where it is found later.
        if self.scheduled.load(Ordering::Relaxed) {
            // What whoever woke it did before is to be seen: not a mere store.
            self.scheduled.swap(false, Ordering::AcqRel);
        }
    }

    /// The task is over, so that waking it does nothing.
    pub(crate) fn retire(&self) {
        self.scheduled.store(true, Ordering::Relaxed);
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.schedule();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.schedule();
    }
}

/// The waker of a `block_on`.
pub(crate) struct Blocker {
    woken: AtomicBool,
    shared: Arc<Shared>,
}

impl Blocker {
    /// Woken to begin with, so that the future is polled once.
    pub(crate) fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { woken: AtomicBool::new(true), shared })
    }

    /// Whether it was woken since the last time.
    #[inline]
    pub(crate) fn take(&self) -> bool {
        // Looked at first: a swap costs as much as all else of a turn.
        self.is_woken() && self.woken.swap(false, Ordering::AcqRel)
    }

    /// Wakes it on the queue's own thread.
    pub(crate) fn wake_here(&self) {
        self.woken.store(true, Ordering::Release);
    }

    #[inline]
    pub(crate) fn is_woken(&self) -> bool {
        self.woken.load(Ordering::Acquire)
    }
}

impl Wake for Blocker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // On the queue's own thread nobody is asleep: the loop looks before it waits.
        if !self.woken.swap(true, Ordering::AcqRel) && !self.shared.local.is_owner() {
            self.shared.ring_until_heard();
        }
    }
}
