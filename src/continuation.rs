//! What `poll` hands back and `run` resumes.

use std::collections::VecDeque;
use std::fmt;
use std::task::Waker;

use crate::notify::TaskId;
pub use crate::task::Runnable;

/// A suspended computation whose wait is over.
///
/// [`Queue::poll`](crate::Queue::poll) appends them to the caller's list and runs none;
/// [`Queue::run`](crate::Queue::run) resumes them, first ready first. Another event loop parks its
/// own through [`wait_with`](crate::iocp::wait_with).
///
/// Not `Send`: a continuation is resumed on its queue's thread. Dropping one instead of resuming it
/// cancels the task ([`Task`](Self::Task)), or forgets the wake-up (the others). A task whose continuation
/// is forgotten (`mem::forget`) is not resumed for what it waits for any more.
#[non_exhaustive]
pub enum Continuation {
    /// A task made with [`spawn`](crate::spawn) that can go on.
    Task(Runnable),
    /// The waker of a future, whatever executor polls it.
    Waker(Waker),
    /// A number that means something to the loop that parked it. Costs no allocation.
    Key(usize),
    /// A closure to call.
    Call(Box<dyn FnOnce()>),
}

impl Continuation {
    /// A closure as a continuation.
    pub fn call(closure: impl FnOnce() + 'static) -> Self {
        Self::Call(Box::new(closure))
    }

    /// Resumes it: runs the task once, wakes the waker, or calls the closure. A
    /// [`Key`](Self::Key) means nothing to the queue and is handed back.
    ///
    /// # Panics
    /// With whatever the task, the waker or the closure panics.
    pub fn resume(self) -> Option<usize> {
        match self {
            Self::Task(runnable) => {
                runnable.run();
                None
            }
            Self::Waker(waker) => {
                waker.wake();
                None
            }
            Self::Key(key) => Some(key),
            Self::Call(closure) => {
                closure();
                None
            }
        }
    }
}

impl fmt::Debug for Continuation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task(_) => f.write_str("Task"),
            Self::Waker(_) => f.write_str("Waker"),
            Self::Key(key) => f.debug_tuple("Key").field(key).finish(),
            Self::Call(_) => f.write_str("Call"),
        }
    }
}

impl From<Waker> for Continuation {
    fn from(waker: Waker) -> Self {
        Self::Waker(waker)
    }
}

impl From<usize> for Continuation {
    fn from(key: usize) -> Self {
        Self::Key(key)
    }
}

/// What waits in the queue: a continuation of somebody's, or a task of its own.
pub(crate) enum Parked {
    Task(TaskId),
    Other(Continuation),
}

impl From<Continuation> for Parked {
    fn from(continuation: Continuation) -> Self {
        Self::Other(continuation)
    }
}

/// What is ready, first ready first. Most of it are tasks, whose names are small.
pub(crate) struct ReadyList {
    /// With [`TaskId::OTHER`] for the next of the others. As a vector, what was taken left in front: that is
    /// less work than a ring.
    order: Vec<TaskId>,
    /// How many were taken.
    taken: usize,
    others: VecDeque<Continuation>,
}

impl Default for ReadyList {
    /// With room for some, so that the first of the others does not allocate in the midst of a program.
    fn default() -> Self {
        Self { order: Vec::with_capacity(64), taken: 0, others: VecDeque::with_capacity(16) }
    }
}

impl ReadyList {
    #[inline(always)]
    pub(crate) fn push_task(&mut self, task: TaskId) {
        if self.order.len() == self.order.capacity() {
            self.make_room();
        }
        self.order.push(task);
    }

    /// Drops what was taken, if that is half of it at least. Else the vector grows.
    #[cold]
    fn make_room(&mut self) {
        if self.taken >= self.order.len() / 2 {
            self.order.drain(..self.taken);
            self.taken = 0;
        }
    }

    pub(crate) fn push(&mut self, ready: Parked) {
        match ready {
            Parked::Task(task) => self.push_task(task),
            Parked::Other(other) => {
                self.others.push_back(other);
                self.push_task(TaskId::OTHER);
            }
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Parked> {
        match self.pop_name()? {
            TaskId::OTHER => self.pop_other().map(Parked::Other),
            task => Some(Parked::Task(task)),
        }
    }

    /// The name of what is first. For [`TaskId::OTHER`] there is [`pop_other`](Self::pop_other).
    #[inline(always)]
    pub(crate) fn pop_name(&mut self) -> Option<TaskId> {
        let first = *self.order.get(self.taken)?;
        self.taken += 1;
        if self.taken == self.order.len() {
            self.order.clear();
            self.taken = 0;
        }
        Some(first)
    }

    pub(crate) fn pop_other(&mut self) -> Option<Continuation> {
        self.others.pop_front()
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.order.len() - self.taken
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}
