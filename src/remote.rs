//! A queue on a thread of its own, for programs whose threads belong to somebody else.

use std::any::Any;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;

use crate::error::Closed;
use crate::queue::{Builder, Queue};
use crate::task::Task;

/// What is to be done on the queue's thread.
type Job = Box<dyn FnOnce(&Queue) -> Task<()> + Send>;

/// A queue that runs on a thread of its own.
///
/// A program whose threads are tokio's, smol's or a GUI's runs asynchronous blocks there and awaits the
/// answers here. What a block makes (handles, operations) stays on the queue's thread; what goes in and
/// comes out is `Send`.
///
/// ```
/// use ioqueue::Remote;
///
/// # #[cfg(unix)]
/// # fn main() -> std::io::Result<()> {
/// let remote = Remote::new()?;
/// let program = std::env::current_exe()?;
/// let head = remote.run(|| async move {
///     let file = ioqueue::Registered::new(std::fs::File::open(program)?)?;
///     let (read, head) = file.read_at(Vec::with_capacity(4), 0).await;
///     read.map(|_| head)
/// });
/// // In an async block this would be `head.await?`.
/// assert_eq!(head.wait()??.len(), 4);
/// # Ok(())
/// # }
/// # #[cfg(not(unix))]
/// # fn main() {}
/// ```
///
/// `Send`, `Sync` and `Clone`; clones are the same queue. When the last is dropped, the thread drops what
/// is still running, closes its queue and ends, which nobody waits for: dropping never blocks. Use
/// [`join`](Self::join) to wait.
#[derive(Clone)]
pub struct Remote {
    inbox: Arc<Inbox>,
    thread: Arc<Mutex<Option<thread::JoinHandle<io::Result<()>>>>>,
    // Counts the handles.
    _alive: Arc<Alive>,
}

/// What other threads hand in.
#[derive(Default)]
struct Inbox(Mutex<Jobs>);

#[derive(Default)]
struct Jobs {
    waiting: Vec<Job>,
    closed: bool,
    server: Option<Waker>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False where nobody will ever look.
    fn hand_in(&self, job: Job) -> Result<(), Job> {
        let mut jobs = self.lock();
        if jobs.closed {
            return Err(job);
        }
        jobs.waiting.push(job);
        let server = jobs.server.take();
        drop(jobs);
        if let Some(server) = server {
            server.wake();
        }
        Ok(())
    }

    fn close(&self) {
        let mut jobs = self.lock();
        jobs.closed = true;
        let server = jobs.server.take();
        drop(jobs);
        if let Some(server) = server {
            server.wake();
        }
    }
}

/// Closes the inbox when the last handle is gone.
struct Alive(Arc<Inbox>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Remote {
    /// Starts a queue on a new thread.
    ///
    /// # Errors
    /// When there is no thread to be had, or as [`Queue::new`].
    pub fn new() -> io::Result<Self> {
        Self::with(Queue::builder())
    }

    /// As [`new`](Self::new), with a queue that is made as `builder` says.
    ///
    /// # Errors
    /// As `new`.
    pub fn with(builder: Builder) -> io::Result<Self> {
        let inbox = Arc::new(Inbox::default());
        let (made, is_made) = mpsc::channel();
        let for_thread = Arc::clone(&inbox);
        let thread = thread::Builder::new().name("ioqueue".into()).spawn(move || {
            let queue = match builder.build() {
                Ok(queue) => queue,
                Err(error) => {
                    for_thread.close();
                    let _ = made.send(Err(error));
                    return Ok(());
                }
            };
            let _ = made.send(Ok(()));
            serve(&queue, &for_thread)
        })?;
        is_made.recv().unwrap_or_else(|_| Err(Closed.into()))?;
        let alive = Arc::new(Alive(Arc::clone(&inbox)));
        Ok(Self { inbox, thread: Arc::new(Mutex::new(Some(thread))), _alive: alive })
    }

    /// Runs an asynchronous block on the queue's thread.
    ///
    /// `make` is called there, and the future it makes is polled there, so neither needs to be `Send` from
    /// then on. On that thread the queue is the current one ([`Queue::current`]).
    ///
    /// Dropping the [`Answer`] cancels the block. What it panics with, the answer panics with.
    pub fn run<M, F>(&self, make: M) -> Answer<F::Output>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send + 'static,
    {
        let shared = Arc::new(Shared::default());
        // Settles the answer also when the job is dropped: handed in too late, not begun, or unfinished.
        let ends = Ends(Arc::clone(&shared));
        let job = move |queue: &Queue| {
            queue.spawn(async move {
                let result = cancellable(&ends.0, make).await;
                ends.0.settle(result);
            })
        };
        let _ = self.inbox.hand_in(Box::new(job));
        Answer { shared, detached: false }
    }

    /// Ends the queue, when all other handles are gone, and waits for its thread.
    ///
    /// # Errors
    /// What the queue's `poll` failed with, if it did.
    ///
    /// # Panics
    /// When called on the queue's own thread.
    pub fn join(self) -> io::Result<()> {
        let Self { inbox: _, thread, _alive: alive } = self;
        drop(alive);
        let thread = thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return Ok(()) };
        assert!(
            thread.thread().id() != thread::current().id(),
            "a queue's thread cannot join itself"
        );
        match thread.join() {
            Ok(result) => result,
            Err(payload) => resume_unwind(payload),
        }
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").finish_non_exhaustive()
    }
}

/// Runs what is handed in until nobody can hand in any more.
fn serve(queue: &Queue, inbox: &Inbox) -> io::Result<()> {
    let served = queue.block_on(poll_fn(|context| {
        loop {
            let waiting = {
                let mut jobs = inbox.lock();
                if jobs.closed && jobs.waiting.is_empty() {
                    return Poll::Ready(());
                }
                jobs.server = Some(context.waker().clone());
                std::mem::take(&mut jobs.waiting)
            };
            if waiting.is_empty() {
                return Poll::Pending;
            }
            for job in waiting {
                job(queue).detach();
            }
        }
    }));
    inbox.close();
    // Where the queue has failed, some were not begun; dropping them settles their answers.
    let left = std::mem::take(&mut inbox.lock().waiting);
    drop(left);
    // The queue's drop drops the tasks, whose answers then say that it was closed.
    served
}

/// Polls what `make` makes until it is done, or nobody wants it: `None`.
async fn cancellable<M, F>(
    shared: &Shared<F::Output>,
    make: M,
) -> Option<Result<F::Output, Box<dyn Any + Send>>>
where
    M: FnOnce() -> F,
    F: Future,
{
    let future = match catch_unwind(AssertUnwindSafe(make)) {
        Ok(future) => future,
        Err(payload) => return Some(Err(payload)),
    };
    let mut future = pin!(future);
    poll_fn(|context| {
        if shared.is_unwanted(context.waker()) {
            return Poll::Ready(None);
        }
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Some(Ok(output))),
            Err(payload) => Poll::Ready(Some(Err(payload))),
        }
    })
    .await
}

/// What both sides of an answer share.
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

enum State<T> {
    /// With who waits for it, and the task that works on it.
    Running {
        waiter: Option<Waker>,
        task: Option<Waker>,
    },
    /// The block's end; `None` where the queue was closed first.
    Done(Option<Result<T, Box<dyn Any + Send>>>),
    Unwanted,
    Taken,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        let state = State::Running { waiter: None, task: None };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody waits any more; else `task` is woken when that comes.
    fn is_unwanted(&self, waker: &Waker) -> bool {
        match &mut *self.lock() {
            State::Running { task, .. } => {
                if !task.as_ref().is_some_and(|task| task.will_wake(waker)) {
                    *task = Some(waker.clone());
                }
                false
            }
            _ => true,
        }
    }

    fn settle(&self, result: Option<Result<T, Box<dyn Any + Send>>>) {
        let mut state = self.lock();
        let State::Running { waiter, task } = &mut *state else { return };
        let (waiter, task) = (waiter.take(), task.take());
        *state = State::Done(result);
        drop(state);
        self.changed.notify_all();
        drop(task);
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }
}

/// Says that the queue was closed, where the block was dropped before its end.
struct Ends<T>(Arc<Shared<T>>);

impl<T> Drop for Ends<T> {
    fn drop(&mut self) {
        self.0.settle(None);
    }
}

/// A future of what a block on a [`Remote`]'s queue gives: its output, or [`Closed`] when the queue was
/// closed first.
///
/// Works under any executor; [`wait`](Self::wait) blocks instead. **Dropping it cancels the block**: its
/// future is dropped on the queue's thread. `Send` when the output is.
///
/// # Panics
/// With what the block panicked, and when it is polled after its end.
#[must_use = "dropping it cancels the block: await it, or detach it"]
pub struct Answer<T> {
    shared: Arc<Shared<T>>,
    detached: bool,
}

impl<T> Answer<T> {
    /// Waits on this thread.
    ///
    /// # Errors
    /// [`Closed`] when the queue was closed first.
    ///
    /// # Panics
    /// With what the block panicked.
    pub fn wait(self) -> Result<T, Closed> {
        let mut state = self.shared.lock();
        while let State::Running { .. } = &*state {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let done = std::mem::replace(&mut *state, State::Taken);
        drop(state);
        outcome(done)
    }

    /// Lets the block go on without anybody waiting for it.
    pub fn detach(mut self) {
        self.detached = true;
    }
}

fn outcome<T>(done: State<T>) -> Result<T, Closed> {
    match done {
        State::Done(Some(Ok(output))) => Ok(output),
        State::Done(Some(Err(payload))) => resume_unwind(payload),
        State::Done(None) => Err(Closed),
        _ => panic!("an answer was polled after its end"),
    }
}

impl<T> Future for Answer<T> {
    type Output = Result<T, Closed>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // Cloning and dropping wakers runs code that may come back here.
        let waker = context.waker().clone();
        let mut state = self.shared.lock();
        if let State::Running { waiter, .. } = &mut *state {
            let replaced = waiter.replace(waker);
            drop(state);
            drop(replaced);
            return Poll::Pending;
        }
        let done = std::mem::replace(&mut *state, State::Taken);
        drop(state);
        Poll::Ready(outcome(done))
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        if self.detached {
            return;
        }
        let mut state = self.shared.lock();
        let State::Running { waiter, task } = &mut *state else { return };
        let (waiter, task) = (waiter.take(), task.take());
        *state = State::Unwanted;
        drop(state);
        drop(waiter);
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<T> fmt::Debug for Answer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over = !matches!(&*self.shared.lock(), State::Running { .. });
        f.debug_struct("Answer").field("over", &over).finish()
    }
}
