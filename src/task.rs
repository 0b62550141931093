//! Tasks: futures that the queue resumes.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::queue::Inner;

/// A spawned future.
///
/// Awaiting it gives the future's output. **Dropping it cancels the task**: its future is dropped
/// when the queue next runs, and with it whatever it waits for is cancelled. Use
/// [`detach`](Self::detach) to let it go on by itself. Forgetting it is the same as detaching.
///
/// Not `Send` unless the output is; awaiting it under another executor works as long as somebody
/// polls the queue.
///
/// A panic while a task's future is *dropped* (by cancelling, or by closing the queue) ends the
/// process: it could be told to nobody.
///
/// # Panics
/// Awaiting a task whose future panicked, or whose queue was closed, panics.
#[must_use = "dropping a task cancels it: await it, or detach it"]
pub struct Task<T>(async_task::Task<T>);

impl<T> Task<T> {
    /// Lets the task go on without anybody waiting for its output.
    pub fn detach(self) {
        self.0.detach();
    }

    /// Whether the future is done, or was cancelled.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Cancels the task and waits until its future was dropped: its output if it was done before.
    pub async fn cancel(self) -> Option<T> {
        self.0.cancel().await
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("finished", &self.is_finished()).finish()
    }
}

/// The queue's unfinished tasks, each by its waker: closing a queue wakes them all once more, to
/// drop their futures.
#[derive(Default)]
pub(crate) struct Tasks {
    wakers: RefCell<Vec<Option<Waker>>>,
    free: RefCell<Vec<usize>>,
    unfinished: Cell<usize>,
    /// How many of them are being polled just now, one inside the other.
    inside: Cell<usize>,
}

impl Tasks {
    fn reserve(&self) -> usize {
        self.unfinished.set(self.unfinished.get() + 1);
        if let Some(index) = self.free.borrow_mut().pop() {
            return index;
        }
        let mut wakers = self.wakers.borrow_mut();
        wakers.push(None);
        wakers.len() - 1
    }

    fn remove(&self, index: usize) {
        self.unfinished.set(self.unfinished.get() - 1);
        let waker = self.wakers.borrow_mut()[index].take();
        self.free.borrow_mut().push(index);
        drop(waker);
    }

    /// How many tasks are unfinished.
    pub(crate) fn len(&self) -> usize {
        self.unfinished.get()
    }

    /// How many tasks are being polled, one inside the other.
    pub(crate) fn inside(&self) -> usize {
        self.inside.get()
    }

    /// Whether a task is being polled: it is unfinished until that returns, whoever resumed it.
    pub(crate) fn is_inside(&self) -> bool {
        self.inside.get() > 0
    }

    /// A waker of each unfinished task.
    pub(crate) fn wakers(&self) -> Vec<Waker> {
        self.wakers.borrow().iter().flatten().cloned().collect()
    }
}

/// Takes a task off the list when its future is dropped, done or not.
struct Entry {
    queue: Weak<Inner>,
    index: usize,
}

/// Says that a task of the queue is being polled.
struct Inside<'a>(&'a Cell<usize>);

impl<'a> Inside<'a> {
    fn new(inside: &'a Cell<usize>) -> Self {
        inside.set(inside.get() + 1);
        Self(inside)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.upgrade() {
            queue.tasks.remove(self.index);
        }
    }
}

/// Makes a task of `future`; it first runs when the queue resumes it.
pub(crate) fn spawn<F>(queue: &Rc<Inner>, future: F) -> Task<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let index = queue.tasks.reserve();
    let entry = Entry { queue: Rc::downgrade(queue), index };
    let shared = Arc::clone(&queue.shared);
    let (runnable, task) = async_task::spawn_local(
        async move {
            let entry = entry;
            let mut future = pin!(future);
            poll_fn(|context| {
                let queue = entry.queue.upgrade();
                let _inside = queue.as_ref().map(|queue| Inside::new(&queue.tasks.inside));
                let is_closed = || queue.as_ref().is_none_or(|queue| queue.is_closed());
                // Closed after poll had handed it out: it must not be resumed any more.
                let polled =
                    if is_closed() { Poll::Pending } else { future.as_mut().poll(context) };
                if polled.is_pending() && is_closed() {
                    // Scheduled once more, its future is dropped instead of polled.
                    context.waker().wake_by_ref();
                }
                polled
            })
            .await
        },
        move |runnable| shared.schedule(runnable),
    );
    queue.tasks.wakers.borrow_mut()[index] = Some(runnable.waker());
    if queue.is_closed() {
        drop(runnable); // Whoever awaits the task learns that it was cancelled.
    } else {
        runnable.schedule();
    }
    Task(task)
}
