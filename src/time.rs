//! How long a poll may wait, and timers.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::Queue;
use crate::continuation::Parked;
use crate::error::Closed;
use crate::queue::Inner;

/// The longest finite wait one call can ask for: all ones means for ever.
const LONGEST_MS: u32 = u32::MAX - 1;
pub(crate) const FOR_EVER_MS: u32 = u32::MAX;

/// When a poll has to be back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deadline {
    Never,
    At(Duration),
}

impl Deadline {
    /// `timeout` from `now`; a sum past the clock's end is as good as never.
    pub(crate) fn after(now: Duration, timeout: Option<Duration>) -> Self {
        timeout.and_then(|timeout| now.checked_add(timeout)).map_or(Self::Never, Self::At)
    }

    pub(crate) fn has_passed(self, now: Duration) -> bool {
        matches!(self, Self::At(at) if at <= now)
    }

    /// The rest of the time in the OS's unit, rounded up (pitfalls 25 and 39): never early, zero
    /// only when the time is up, never "infinite" by accident. A rest too long for one call is cut;
    /// the caller waits again.
    pub(crate) fn rest_ms(self, now: Duration) -> u32 {
        match self {
            Self::Never => FOR_EVER_MS,
            Self::At(at) => {
                let rest = at.saturating_sub(now).as_nanos().div_ceil(1_000_000);
                u32::try_from(rest).map_or(LONGEST_MS, |rest| rest.min(LONGEST_MS))
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Timers

/// Names one timer for ever: an index, and how often the index was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TimerId {
    index: usize,
    generation: u64,
}

struct Timer {
    /// When it is due, and which was made first among those due at once.
    due: (Duration, u64),
    generation: u64,
    /// Where it stands in the heap; `None` once it has expired.
    place: Option<usize>,
    waiter: Option<Parked>,
}

/// A queue's timers: a heap that knows where each timer stands, so that dropping one takes it out.
///
/// Its arrays are reused, so that a timer allocates nothing in steady state.
#[derive(Default)]
pub(crate) struct Timers(RefCell<Heap>);

#[derive(Default)]
struct Heap {
    timers: Vec<Timer>,
    free: Vec<usize>,
    /// Indices into `timers`; each is due no later than its two children.
    heap: Vec<usize>,
    made: u64,
}

impl Heap {
    fn due(&self, place: usize) -> (Duration, u64) {
        self.timers[self.heap[place]].due
    }

    fn put(&mut self, place: usize, index: usize) {
        self.heap[place] = index;
        self.timers[index].place = Some(place);
    }

    /// Moves the timer at `place` up or down to where it belongs.
    fn settle(&mut self, mut place: usize) {
        while place > 0 && self.due(place) < self.due((place - 1) / 2) {
            let parent = (place - 1) / 2;
            self.swap(place, parent);
            place = parent;
        }
        loop {
            let children = [2 * place + 1, 2 * place + 2];
            let earliest = children
                .into_iter()
                .filter(|&child| child < self.heap.len())
                .min_by_key(|&child| self.due(child));
            match earliest {
                Some(child) if self.due(child) < self.due(place) => {
                    self.swap(place, child);
                    place = child;
                }
                _ => return,
            }
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        let (left, right) = (self.heap[a], self.heap[b]);
        self.put(a, right);
        self.put(b, left);
    }

    fn insert(&mut self, at: Duration) -> TimerId {
        self.made += 1;
        let due = (at, self.made);
        let index = self.free.pop().unwrap_or_else(|| {
            self.timers.push(Timer { due, generation: 0, place: None, waiter: None });
            self.timers.len() - 1
        });
        self.timers[index].due = due;
        self.heap.push(index);
        let place = self.heap.len() - 1;
        self.put(place, index);
        self.settle(place);
        TimerId { index, generation: self.timers[index].generation }
    }

    /// Takes the timer at `place` out of the heap.
    fn take_out(&mut self, place: usize) -> usize {
        let index = self.heap.swap_remove(place);
        self.timers[index].place = None;
        if place < self.heap.len() {
            self.put(place, self.heap[place]);
            self.settle(place);
        }
        index
    }

    fn get(&mut self, id: TimerId) -> Option<&mut Timer> {
        self.timers.get_mut(id.index).filter(|timer| timer.generation == id.generation)
    }
}

impl Timers {
    fn insert(&self, at: Duration) -> TimerId {
        self.0.borrow_mut().insert(at)
    }

    /// Forgets a timer; who waited for it comes back, to be dropped with nothing borrowed.
    fn remove(&self, id: TimerId) -> Option<Parked> {
        let mut heap = self.0.borrow_mut();
        let timer = heap.get(id)?;
        timer.generation += 1;
        let (place, waiter) = (timer.place, timer.waiter.take());
        if let Some(place) = place {
            heap.take_out(place);
        }
        heap.free.push(id.index);
        waiter
    }

    fn has_expired(&self, id: TimerId) -> bool {
        self.0.borrow_mut().get(id).is_none_or(|timer| timer.place.is_none())
    }

    /// Leaves whoever waits to be woken; whom it replaces comes back.
    fn watch(&self, id: TimerId, waiter: Parked) -> Option<Parked> {
        match self.0.borrow_mut().get(id) {
            Some(timer) => timer.waiter.replace(waiter),
            None => Some(waiter),
        }
    }

    /// How many have not expired.
    pub(crate) fn len(&self) -> usize {
        self.0.borrow().heap.len()
    }

    /// When the first is due.
    pub(crate) fn first(&self) -> Deadline {
        let heap = self.0.borrow();
        if heap.heap.is_empty() { Deadline::Never } else { Deadline::At(heap.due(0).0) }
    }

    /// The queue is closed: whoever waits for a timer.
    pub(crate) fn end(&self) -> Vec<Parked> {
        self.0.borrow_mut().timers.iter_mut().filter_map(|timer| timer.waiter.take()).collect()
    }

    /// Takes out one timer that is due: who waits for it, if anybody polled it.
    pub(crate) fn expire(&self, now: Duration) -> Option<Option<Parked>> {
        if !self.first().has_passed(now) {
            return None;
        }
        let mut heap = self.0.borrow_mut();
        let index = heap.take_out(0);
        Some(heap.timers[index].waiter.take())
    }
}

impl Deadline {
    /// Whichever comes first.
    pub(crate) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::At(a), Self::At(b)) => Self::At(a.min(b)),
            (Self::Never, at) | (at, Self::Never) => at,
        }
    }
}

/// A future that is done after a time, never before.
///
/// The time runs from the call that made it. How late it is depends on the system's clock tick and on
/// when the queue is polled. Works under any executor, as long as somebody polls the queue. Dropping
/// it takes the timer off the queue. Not `Send`.
///
/// # Errors
/// Its output is [`Closed`] when the queue is closed before the time is up.
#[must_use = "a future does nothing unless it is awaited"]
pub struct Sleep {
    queue: Rc<Inner>,
    timer: TimerId,
}

impl Sleep {
    fn until(queue: &Rc<Inner>, at: Duration) -> Self {
        Self { queue: Rc::clone(queue), timer: queue.timers.insert(at) }
    }

    pub(crate) fn after(queue: &Rc<Inner>, duration: Duration) -> Self {
        // Past the clock's end is never.
        let at = queue.kernel.now().checked_add(duration).unwrap_or(Duration::MAX);
        Self::until(queue, at)
    }
}

impl Future for Sleep {
    type Output = Result<(), Closed>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let timers = &self.queue.timers;
        if timers.has_expired(self.timer) {
            return Poll::Ready(Ok(()));
        }
        if self.queue.has_ended() {
            return Poll::Ready(Err(Closed));
        }
        // Cloning and dropping wakers runs code that may have polled the queue.
        let waiter = self.queue.parked(context.waker());
        let replaced = timers.watch(self.timer, waiter);
        drop(replaced);
        if timers.has_expired(self.timer) {
            return Poll::Ready(Ok(()));
        }
        if self.queue.has_ended() { Poll::Ready(Err(Closed)) } else { Poll::Pending }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let waiter = self.queue.timers.remove(self.timer);
        drop(waiter);
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expired = self.queue.timers.has_expired(self.timer);
        f.debug_struct("Sleep").field("expired", &expired).finish()
    }
}

/// Ticks at a fixed rate, from when it was made.
///
/// A tick that comes late does not move the later ones; ticks that were missed altogether are
/// skipped. Dropping it takes its timer off the queue.
#[derive(Debug)]
pub struct Interval {
    sleep: Sleep,
    next: Duration,
    period: Duration,
}

impl Interval {
    #[track_caller]
    fn new(queue: &Rc<Inner>, period: Duration) -> Self {
        assert!(!period.is_zero(), "an interval needs a period");
        let next = queue.kernel.now().checked_add(period).unwrap_or(Duration::MAX);
        Self { sleep: Sleep::until(queue, next), next, period }
    }

    /// Waits for the next tick. Dropping this future loses no tick.
    ///
    /// # Errors
    /// [`Closed`] when the queue is closed.
    pub async fn tick(&mut self) -> Result<(), Closed> {
        (&mut self.sleep).await?;
        let queue = Rc::clone(&self.sleep.queue);
        let late = queue.kernel.now().saturating_sub(self.next);
        let missed = u32::try_from(late.as_nanos() / self.period.as_nanos()).unwrap_or(u32::MAX);
        let step = self.period.saturating_mul(missed.saturating_add(1));
        self.next = self.next.saturating_add(step);
        self.sleep = Sleep::until(&queue, self.next);
        Ok(())
    }
}

/// The time was up first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the time was up before it was done")
    }
}

/// With what it says, as a `main` shows it that returns one.
impl fmt::Debug for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Elapsed({self})")
    }
}

impl std::error::Error for Elapsed {}

impl Elapsed {
    /// Whether an [`io::Error`] is this.
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

impl From<Elapsed> for io::Error {
    fn from(elapsed: Elapsed) -> Self {
        Self::new(io::ErrorKind::TimedOut, elapsed)
    }
}

impl Queue {
    /// A future that is done after `duration`. The time runs from now. It gives a `Result`, as the queue may be closed first.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        Sleep::after(self.inner(), duration)
    }

    /// Ticks every `period`, first after one.
    ///
    /// # Panics
    /// When `period` is zero.
    #[track_caller]
    pub fn interval(&self, period: Duration) -> Interval {
        Interval::new(self.inner(), period)
    }

    /// Gives `future` so much time, from when this is first polled. When that is up, the future is
    /// dropped.
    ///
    /// For an operation use its own, [`Operation::timeout`](crate::Operation::timeout) or
    /// [`Wait::timeout`](crate::iocp::Wait::timeout), which wait for how the cancelled operation ended,
    /// and so lose nothing.
    ///
    /// # Errors
    /// An error of kind `TimedOut` made from [`Elapsed`] when the time was up; a future that is done
    /// then wins. [`Closed`] when the queue is closed before either.
    pub async fn timeout<F: Future>(&self, duration: Duration, future: F) -> io::Result<F::Output> {
        limit(self.sleep(duration), future).await
    }
}

async fn limit<F: Future>(mut sleep: Sleep, future: F) -> io::Result<F::Output> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(&mut sleep).poll(context).map(|slept| match slept {
            Ok(()) => Err(Elapsed.into()),
            Err(closed) => Err(closed.into()),
        })
    })
    .await
}

/// [`Queue::sleep`] on the current queue.
///
/// # Errors
/// When the thread has no queue and none can be made.
pub fn sleep(duration: Duration) -> io::Result<Sleep> {
    Ok(Queue::current()?.sleep(duration))
}

/// [`Queue::interval`] on the current queue.
///
/// # Errors
/// When the thread has no queue and none can be made.
///
/// # Panics
/// When `period` is zero.
#[track_caller]
pub fn interval(period: Duration) -> io::Result<Interval> {
    Ok(Queue::current()?.interval(period))
}

/// [`Queue::timeout`] on the current queue.
///
/// # Errors
/// As there; also when the thread has no queue and none can be made.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> io::Result<F::Output> {
    // Not the queue's own: a task that holds its queue keeps it from being dropped.
    let sleep = sleep(duration)?;
    limit(sleep, future).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_round_up_and_never_become_zero_or_infinite() {
        let now = Duration::from_secs(5);
        let rest = |timeout| Deadline::after(now, Some(timeout)).rest_ms(now);
        assert_eq!(rest(Duration::ZERO), 0);
        assert_eq!(rest(Duration::from_nanos(1)), 1);
        assert_eq!(rest(Duration::from_micros(10_900)), 11);
        assert_eq!(rest(Duration::from_millis(10)), 10);
        assert_eq!(rest(Duration::from_millis(u64::from(u32::MAX))), u32::MAX - 1);
        assert_eq!(rest(Duration::from_secs(u64::MAX / 2)), u32::MAX - 1);
        assert_eq!(Deadline::after(now, Some(Duration::MAX)), Deadline::Never);
        assert_eq!(Deadline::Never.rest_ms(now), u32::MAX);
    }

    #[test]
    fn a_deadline_passes_when_its_time_comes_not_before() {
        let deadline = Deadline::after(Duration::ZERO, Some(Duration::from_nanos(2)));
        assert!(!deadline.has_passed(Duration::from_nanos(1)));
        assert!(deadline.has_passed(Duration::from_nanos(2)));
        assert!(!Deadline::Never.has_passed(Duration::MAX));
    }

    #[test]
    fn timers_expire_in_order_and_removed_ones_never() {
        let timers = Timers::default();
        // A fixed shuffle: 0, 37, 74, 11, ... (37 and 100 share no factor).
        let order: Vec<u64> = (0..100).map(|step| step * 37 % 100).collect();
        let ids: Vec<_> =
            order.iter().map(|&ms| timers.insert(Duration::from_millis(ms))).collect();
        for (id, ms) in ids.iter().zip(&order) {
            if ms % 3 == 0 {
                timers.remove(*id);
            }
        }
        let mut expired = Vec::new();
        for now in (0..100).map(Duration::from_millis) {
            while timers.expire(now).is_some() {
                expired.push(now.as_millis() as u64);
            }
        }
        let expected: Vec<u64> = (0..100).filter(|ms| ms % 3 != 0).collect();
        assert_eq!(expired, expected);
        assert_eq!(timers.len(), 0);
        assert_eq!(timers.first(), Deadline::Never);
    }

    // Millions of timers, one after the other, take the room of one.
    #[test]
    fn a_removed_timers_place_is_used_again() {
        let timers = Timers::default();
        for step in 0..1_000 {
            let id = timers.insert(Duration::from_secs(step));
            if step % 2 == 0 {
                timers.expire(Duration::from_secs(step)).unwrap();
            }
            timers.remove(id);
        }
        let heap = timers.0.borrow();
        assert_eq!((heap.timers.len(), heap.free.len(), heap.heap.len()), (1, 1, 0));
    }

    #[test]
    fn a_removed_timers_name_means_nothing_to_its_successor() {
        let timers = Timers::default();
        let old = timers.insert(Duration::from_secs(1));
        timers.remove(old);
        let new = timers.insert(Duration::from_secs(2));
        timers.remove(old);
        assert_eq!(timers.len(), 1);
        assert!(!timers.has_expired(new));
    }
}
