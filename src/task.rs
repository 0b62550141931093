//! Tasks: futures that the queue resumes.
//!
//! A task's future stands in its queue and nowhere else; what leads to it is a number. A waker, which may
//! be on any thread, puts that number on the queue's list. So a waker that outlives its task, its queue or
//! its queue's thread keeps nothing of the future (pitfall 56), and a queue that is closed has them all at
//! hand. An operation that a task of its own queue waits for keeps the number instead of a waker: nothing
//! is counted, swapped or locked then.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, RawWakerVTable, Waker};

use crate::continuation::Parked;
use crate::notify::{Blocker, TaskId, TaskWaker};
use crate::queue::{Entered, Inner};

// ---------------------------------------------------------------------------------------------
// What becomes of it

/// How a task ended, for whoever awaits it.
struct Join<T>(Mutex<End<T>>);

enum End<T> {
    /// Not yet; and who waits for it.
    Waits(Option<Waker>),
    Done(T),
    /// Its output was taken; or there is none: it was cancelled, or panicked.
    Gone,
}

impl<T> Join<T> {
    fn lock(&self) -> MutexGuard<'_, End<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        !matches!(*self.lock(), End::Waits(_))
    }

    /// Tells whoever waits, if the end is new to them. Runs user code.
    fn end(&self, how: End<T>) {
        let mut end = self.lock();
        if !matches!(*end, End::Waits(_)) {
            return;
        }
        let End::Waits(waker) = mem::replace(&mut *end, how) else { unreachable!("looked at") };
        drop(end);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The output, or none where there is none any more.
    fn poll(&self, context: &Context<'_>) -> Poll<Option<T>> {
        // Cloned before the lock and dropped after it: both run code that is not ours.
        let waker = context.waker().clone();
        let mut end = self.lock();
        let (poll, unused) = match mem::replace(&mut *end, End::Gone) {
            End::Done(output) => (Poll::Ready(Some(output)), Some(waker)),
            End::Gone => (Poll::Ready(None), Some(waker)),
            End::Waits(replaced) => {
                *end = End::Waits(Some(waker));
                (Poll::Pending, replaced)
            }
        };
        drop(end);
        drop(unused);
        poll
    }
}

/// The task's own hold on its end: dropped without an output, it was cancelled or has panicked.
struct Ending<T>(Arc<Join<T>>);

impl<T> Drop for Ending<T> {
    fn drop(&mut self) {
        self.0.end(End::Gone);
    }
}

/// A spawned future.
///
/// Awaiting it gives the future's output. **Dropping it cancels the task**: its future is dropped
/// when the queue next runs, and with it whatever it waits for is cancelled. Use
/// [`detach`](Self::detach) to let it go on by itself. Forgetting it is the same as detaching.
///
/// Several are awaited one after the other; of a list of them `tasks.retain(|task| !task.is_finished())` keeps
/// those that go on. A task may drop its own `Task`: its future is dropped when it next waits.
///
/// Not `Send` unless the output is; awaiting it under another executor works as long as somebody
/// polls the queue.
///
/// # Panics
/// Awaiting a task whose future panicked, or whose queue was closed, panics.
#[must_use = "dropping a task cancels it: await it, or detach it"]
pub struct Task<T> {
    waker: Arc<TaskWaker>,
    join: Arc<Join<T>>,
    is_detached: bool,
}

impl<T> Task<T> {
    /// Lets the task go on without anybody waiting for its output.
    pub fn detach(mut self) {
        self.is_detached = true;
    }

    /// Whether the future is done, or was cancelled.
    pub fn is_finished(&self) -> bool {
        self.join.is_over()
    }

    /// Cancels the task and waits until its future was dropped: its output if it was done before.
    pub async fn cancel(self) -> Option<T> {
        if !self.join.is_over() {
            self.waker.cancel();
        }
        poll_fn(|context| self.join.poll(context)).await
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        self.join.poll(context).map(|output| {
            output.expect(
                "a task was awaited that was cancelled (as its queue's closing does), has panicked, or was awaited before",
            )
        })
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if !self.is_detached && !self.join.is_over() {
            self.waker.cancel();
        }
    }
}

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("finished", &self.is_finished()).finish()
    }
}

/// Lets all who are ready have their turn first, once.
///
/// A task goes on for as long as what it awaits is there, up to 128 results in a row. One that passes on much of what
/// it reads does well to let those who are to send it go first now and then. Where nobody else is ready it goes on
/// at once; the queue asks its kernel again after 256 turns at the latest.
///
/// Works under any executor that puts who wakes itself behind the others.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// let other = ioqueue::spawn(async { println!("first") })?;
/// ioqueue::block_on(async {
///     ioqueue::yield_now().await;
///     println!("second");
///     other.await;
/// })
/// # }
/// ```
pub async fn yield_now() {
    let mut has_yielded = false;
    poll_fn(|context| {
        if mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

// ---------------------------------------------------------------------------------------------
// The queue's tasks

/// A task's future.
type BoxedFuture = Pin<Box<dyn Future<Output = ()>>>;

/// An unfinished task.
struct Body {
    id: TaskId,
    /// None while it is being polled or dropped, further out.
    future: Cell<Option<BoxedFuture>>,
    /// It was to be polled while it was polled: it is once more, after that.
    again: Cell<bool>,
    /// An operation's end has put it on the queue's list, or it was handed out from there.
    is_ready: Cell<bool>,
    /// Made of `handle`, once.
    waker: Waker,
    handle: Arc<TaskWaker>,
}

/// Where a task stands.
struct Place {
    /// Its name, or that of the next one there.
    id: TaskId,
    body: Option<Rc<Body>>,
}

/// The task that is being polled, and by what its waker is known.
#[derive(Clone, Copy)]
struct Current {
    id: TaskId,
    data: *const (),
    vtable: &'static RawWakerVTable,
}

/// The queue's unfinished tasks.
#[derive(Default)]
pub(crate) struct Tasks {
    places: RefCell<Vec<Place>>,
    free: RefCell<Vec<usize>>,
    unfinished: Cell<usize>,
    /// How many of them are being polled just now, one inside the other.
    inside: Cell<usize>,
    current: Cell<Option<Current>>,
    /// The `block_on` at work, one inside the other.
    roots: RefCell<Vec<Arc<Blocker>>>,
}

impl Tasks {
    /// How many tasks are unfinished.
    pub(crate) fn len(&self) -> usize {
        self.unfinished.get()
    }

    /// Whether a task is being polled: it is unfinished until that returns, whoever resumed it.
    pub(crate) fn is_inside(&self) -> bool {
        self.inside.get() > 0
    }

    /// The task that is being polled, if `waker` is its.
    #[inline]
    pub(crate) fn waker_of(&self, waker: &Waker) -> Option<TaskId> {
        let current = self.current.get()?;
        let is_its = current.data == waker.data() && std::ptr::eq(current.vtable, waker.vtable());
        is_its.then_some(current.id)
    }

    /// A `block_on` begins: its future is known by a name, as a task's, until it ends.
    pub(crate) fn enter_root(&self, blocker: Arc<Blocker>) -> Root<'_> {
        let mut roots = self.roots.borrow_mut();
        roots.push(blocker);
        Root { tasks: self, id: TaskId::of_root(roots.len() - 1) }
    }

    /// What wakes a `block_on`, if the name is one's.
    pub(crate) fn root(&self, id: TaskId) -> Option<Arc<Blocker>> {
        self.roots.borrow().get(id.root_depth()?).map(Arc::clone)
    }

    /// Has a `block_on` poll its future, if the name is one's.
    pub(crate) fn wake_root(&self, id: TaskId) {
        let roots = self.roots.borrow();
        if let Some(blocker) = id.root_depth().and_then(|depth| roots.get(depth)) {
            blocker.wake_here();
        }
    }

    /// Says that what this waker wakes is being polled, until what it gives is dropped.
    #[inline(always)]
    fn polling(&self, id: TaskId, waker: &Waker) -> Polling<'_> {
        let current = Current { id, data: waker.data(), vtable: waker.vtable() };
        Polling(&self.current, self.current.replace(Some(current)))
    }

    /// A name for a new task.
    fn reserve(&self) -> TaskId {
        let mut places = self.places.borrow_mut();
        let place = self.free.borrow_mut().pop().unwrap_or_else(|| {
            let place = u32::try_from(places.len()).expect("fewer than 2^32 tasks");
            places.push(Place { id: TaskId::first_at(place), body: None });
            place as usize
        });
        self.unfinished.set(self.unfinished.get() + 1);
        places[place].id
    }

    fn insert(&self, body: Body) {
        let place = body.id.place();
        self.places.borrow_mut()[place].body = Some(Rc::new(body));
    }

    /// Does something with a task, unless it is finished.
    #[inline(always)]
    fn with<R>(&self, id: TaskId, act: impl FnOnce(&Rc<Body>) -> R) -> Option<R> {
        let places = self.places.borrow();
        let place = places.get(id.place())?;
        if place.id == id { place.body.as_ref().map(act) } else { None }
    }

    /// Its future is gone.
    #[inline(never)]
    fn finish(&self, body: &Body) {
        body.handle.retire();
        let mut places = self.places.borrow_mut();
        let place = &mut places[body.id.place()];
        place.id = body.id.successor();
        // Whoever calls has another hold on it.
        place.body = None;
        self.free.borrow_mut().push(body.id.place());
        self.unfinished.set(self.unfinished.get() - 1);
    }

    /// An operation's end wakes the task. False where it is on the list already, or finished.
    #[inline]
    pub(crate) fn becomes_ready(&self, id: TaskId) -> bool {
        let is_new = self.with(id, |body| !body.is_ready.replace(true));
        is_new.unwrap_or_else(|| id.root_depth().is_some())
    }

    /// Whether somebody may be given the task to resume it; one that is being polled is polled again.
    pub(crate) fn may_be_handed_out(&self, id: TaskId) -> bool {
        self.with(id, |body| {
            let future = body.future.take();
            let waits = future.is_some();
            body.future.set(future);
            if !waits {
                body.is_ready.set(false);
                body.again.set(true);
            }
            waits
        })
        .unwrap_or(false)
    }

    /// An unfinished one, from `index` on.
    fn next(&self, index: usize) -> Option<TaskId> {
        let places = self.places.borrow();
        places.iter().skip(index).find_map(|place| Some(place.body.as_ref()?.id))
    }
}

impl Tasks {
    /// A task that is to be polled or dropped, and its future, which is to be gone before the task is
    /// finished. None where it is finished; one that is being polled is polled again after that.
    #[inline]
    fn begin(&self, id: TaskId) -> Option<(Rc<Body>, BoxedFuture)> {
        let body = self.with(id, Rc::clone)?;
        body.is_ready.set(false);
        let Some(future) = body.future.take() else {
            body.again.set(true);
            return None;
        };
        Some((body, future))
    }
}

/// A task whose future was taken. Finishes it, unless the future is put back.
struct Turn<'a> {
    tasks: &'a Tasks,
    body: &'a Body,
    goes_on: bool,
}

impl<'a> Turn<'a> {
    #[inline(always)]
    fn of(tasks: &'a Tasks, body: &'a Body) -> Self {
        tasks.inside.set(tasks.inside.get() + 1);
        Self { tasks, body, goes_on: false }
    }
}

impl Drop for Turn<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.tasks.inside.set(self.tasks.inside.get() - 1);
        if !self.goes_on {
            self.tasks.finish(self.body);
        }
    }
}

/// A `block_on` at work.
pub(crate) struct Root<'a> {
    tasks: &'a Tasks,
    id: TaskId,
}

impl Root<'_> {
    /// Polls its future.
    pub(crate) fn poll<F: Future>(&self, future: Pin<&mut F>, waker: &Waker) -> Poll<F::Output> {
        let _polling = self.tasks.polling(self.id, waker);
        future.poll(&mut Context::from_waker(waker))
    }
}

impl Drop for Root<'_> {
    fn drop(&mut self) {
        let left = self.tasks.roots.borrow_mut().pop();
        drop(left);
    }
}

/// Says which task is being polled.
struct Polling<'a>(&'a Cell<Option<Current>>, Option<Current>);

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.0.set(self.1);
    }
}

impl Inner {
    /// Polls a task, or drops one that was cancelled. Does nothing for one that is finished.
    #[inline(always)]
    pub(crate) fn resume_task(&self, id: TaskId) {
        let Some((body, future)) = self.tasks.begin(id) else { return self.tasks.wake_root(id) };
        let mut turn = Turn::of(&self.tasks, &body);
        // Dropped before the task is finished, whatever happens.
        let mut future = future;
        body.handle.answer();
        let is_over = || self.is_closed() || body.handle.is_cancelled();
        // Closed after poll had handed it out: it must not be resumed any more.
        if is_over() {
            return drop(future);
        }
        let polling = self.tasks.polling(id, &body.waker);
        let polled = future.as_mut().poll(&mut Context::from_waker(&body.waker));
        drop(polling);
        if polled.is_ready() || is_over() {
            return drop(future);
        }
        // What was there before is here.
        mem::forget(body.future.replace(Some(future)));
        if body.again.replace(false) && !body.is_ready.replace(true) {
            self.hand_out(Parked::Task(id));
        }
        turn.goes_on = true;
    }

    /// Drops a task's future, unless it is finished or being polled. Runs user code.
    pub(crate) fn drop_task(&self, id: TaskId) {
        let Some((body, future)) = self.tasks.begin(id) else { return };
        let _turn = Turn::of(&self.tasks, &body);
        drop(future);
    }

    /// Drops the futures of all tasks but those that are being polled, which see by themselves that the
    /// queue is closed. Runs user code.
    pub(crate) fn drop_tasks(&self) {
        let mut index = 0;
        while let Some(id) = self.tasks.next(index) {
            index = id.place() + 1;
            self.drop_task(id);
        }
    }
}

/// Makes a task of `future`; it first runs when the queue resumes it.
pub(crate) fn spawn<F>(queue: &Rc<Inner>, future: F) -> Task<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let join = Arc::new(Join(Mutex::new(End::Waits(None))));
    let ending = Ending(Arc::clone(&join));
    let id = queue.tasks.reserve();
    let handle = Arc::new(TaskWaker::new(id, Arc::clone(&queue.shared)));
    queue.tasks.insert(Body {
        id,
        future: Cell::new(Some(Box::pin(async move {
            // Told of when the future is gone, whether that is done or dropped.
            let ending = ending;
            let output = future.await;
            ending.0.end(End::Done(output));
        }))),
        again: Cell::new(false),
        is_ready: Cell::new(false),
        waker: Waker::from(Arc::clone(&handle)),
        handle: Arc::clone(&handle),
    });
    if queue.is_closed() {
        queue.drop_task(id); // Whoever awaits the task learns that it was cancelled.
    } else {
        handle.schedule();
    }
    Task { waker: handle, join, is_detached: false }
}

/// A task of the queue's that is ready to run. Not `Send`: tasks run on their queue's thread.
pub struct Runnable {
    queue: Weak<Inner>,
    id: TaskId,
}

impl Runnable {
    pub(crate) fn new(queue: &Rc<Inner>, id: TaskId) -> Self {
        Self { queue: Rc::downgrade(queue), id }
    }

    pub(crate) fn run(mut self) {
        // What is left of it cancels nothing.
        let queue = mem::take(&mut self.queue);
        if let Some(queue) = queue.upgrade() {
            // What the task makes by the free functions is its own queue's.
            let _entered = Entered::new(&queue);
            queue.resume_task(self.id);
        }
    }
}

impl Drop for Runnable {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.upgrade() {
            queue.drop_task(self.id);
        }
    }
}

impl fmt::Debug for Runnable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runnable").finish_non_exhaustive()
    }
}
