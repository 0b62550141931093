#![cfg(feature = "sim")]
//! Tasks: whose they are, what is left of them, and when they are resumed. On the simulated Windows.

#[path = "sim/support.rs"]
mod support;

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use ioqueue::iocp::Wait;
use ioqueue::sim::{End, Plan, Sim};
use ioqueue::{AsAnyHandle, Continuation, Queue};
use support::{MILLISECOND, poll, quiet};

/// An operation on a device that goes on until it is told to end.
fn asked(sim: &Sim, queue: &Queue, device: &impl AsAnyHandle) -> Wait<Vec<u8>> {
    sim.plan(device, Plan::pends());
    sim.control(queue, device, vec![0; 8])
}

/// Panics when it is dropped, and counts that.
struct Bomb(Rc<Cell<u32>>);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
        panic!("dropped");
    }
}

async fn holds<T>(held: T) {
    let _held = held;
    pending::<()>().await;
}

fn panics(body: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(body)).is_err()
}

/// Leaves its waker where it is polled; ends when it is told to.
#[derive(Clone, Default)]
struct Watched {
    waker: Rc<RefCell<Option<Waker>>>,
    polls: Rc<Cell<u32>>,
    done: Rc<Cell<bool>>,
}

impl Watched {
    fn waker(&self) -> Waker {
        self.waker.borrow().clone().expect("it was polled")
    }
}

impl Future for Watched {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.polls.set(self.polls.get() + 1);
        *self.waker.borrow_mut() = Some(context.waker().clone());
        if self.done.get() { Poll::Ready(()) } else { Poll::Pending }
    }
}

// Q4, Q5, scenario 44: a panic while a task's future is dropped goes to whoever runs the queue, and the
// queue goes on.
#[test]
fn a_future_that_panics_when_it_is_dropped_harms_no_other() {
    let (sim, queue) = quiet();
    let drops = Rc::new(Cell::new(0));
    let task = queue.spawn(holds(Bomb(drops.clone())));
    let other = queue.spawn(async { 7 });
    assert_eq!(poll(&queue), 2);
    drop(task);
    assert!(panics(|| queue.run().unwrap()));
    assert_eq!(drops.get(), 1);
    assert!(!queue.running());
    assert_eq!(queue.block_on(other).unwrap(), 7);
    // Whoever drops what was handed out is told, too.
    queue.spawn(holds(Bomb(drops.clone()))).detach();
    let mut ready = Vec::new();
    queue.poll(&mut ready, None).unwrap();
    assert!(panics(|| drop(ready)));
    assert_eq!(drops.get(), 2);
    assert!(!queue.running());
    drop(queue);
    sim.check();
}

// Q1, scenario 44: closing drops the futures of all tasks, though some of them panic.
#[test]
fn closing_drops_what_stands_behind_a_future_that_panics() {
    let (sim, queue) = quiet();
    let (drops, marker) = (Rc::new(Cell::new(0)), Rc::new(()));
    for _ in 0..3 {
        queue.spawn(holds(Bomb(drops.clone()))).detach();
        queue.spawn(holds(marker.clone())).detach();
    }
    assert_eq!(poll(&queue), 6);
    assert!(panics(|| queue.close(std::time::Duration::ZERO).unwrap()));
    assert_eq!((drops.get(), Rc::strong_count(&marker)), (3, 1));
    drop(queue);
    sim.check();
}

// Q2, Q5: what is left of a task that has ended wakes nobody, also once another stands in its place.
#[test]
fn a_waker_of_a_finished_task_wakes_nobody() {
    let (sim, queue) = quiet();
    let first = Watched::default();
    let task = queue.spawn(first.clone());
    assert_eq!(poll(&queue), 1);
    let waker = first.waker();
    first.done.set(true);
    waker.wake_by_ref();
    queue.block_on(task).unwrap();
    waker.wake_by_ref();
    assert!(!queue.running());
    let second = Watched::default();
    let task = queue.spawn(second.clone());
    assert_eq!(poll(&queue), 1);
    waker.wake_by_ref();
    let from_elsewhere = waker.clone();
    std::thread::spawn(move || from_elsewhere.wake()).join().unwrap();
    assert_eq!(poll(&queue), 0);
    assert_eq!((first.polls.get(), second.polls.get()), (2, 1));
    drop((task, queue));
    sim.check();
}

// Q5: an operation that a finished task has waited for, and that somebody else has now, wakes nobody by
// the task's old name.
#[test]
fn an_operation_that_outlives_its_task_wakes_nobody() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    let waiting = Rc::new(RefCell::new(asked(&sim, &queue, &device)));
    let polled = waiting.clone();
    let task = queue.spawn(poll_fn(move |context| {
        assert!(Pin::new(&mut *polled.borrow_mut()).poll(context).is_pending());
        Poll::Ready(())
    }));
    queue.block_on(task).unwrap();
    // It stands where the other has.
    let next = Watched::default();
    queue.spawn(next.clone()).detach();
    assert_eq!(poll(&queue), 1);
    sim.complete(&device, End::success());
    assert_eq!(poll(&queue), 0);
    assert_eq!(next.polls.get(), 1);
    let (result, _) = queue.block_on(Rc::into_inner(waiting).unwrap().into_inner()).unwrap();
    result.unwrap();
    drop((device, queue));
    sim.check();
}

// Q5: two operations of one task that end at once resume it once.
#[test]
fn a_task_that_two_operations_wake_is_resumed_once() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    let mut waiting: Vec<_> = (0..2).map(|_| asked(&sim, &queue, &device)).collect();
    let polls = Rc::new(Cell::new(0));
    let counted = polls.clone();
    let task = queue.spawn(poll_fn(move |context| {
        counted.set(counted.get() + 1);
        waiting.retain_mut(|wait| Pin::new(wait).poll(context).is_pending());
        if waiting.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }));
    assert_eq!(poll(&queue), 1);
    while sim.complete(&device, End::success()) {}
    let mut ready = Vec::new();
    queue.poll(&mut ready, None).unwrap();
    assert!(matches!(ready[..], [Continuation::Task(_)]), "{ready:?}");
    ready.into_iter().for_each(|continuation| assert_eq!(continuation.resume(), None));
    assert!(task.is_finished());
    assert_eq!(polls.get(), 2);
    drop((task, device, queue));
    sim.check();
}

// Q5: what a task waits for ends while that task itself polls its queue, or runs it: it is polled once more
// after that, and not inside.
#[test]
fn a_task_that_becomes_ready_while_it_is_polled_is_polled_again() {
    for (wakes_itself, runs) in [(false, false), (false, true), (true, false), (true, true)] {
        let (sim, queue) = quiet();
        let device = Rc::new(queue.register(sim.device()).unwrap());
        let mut waiting = asked(&sim, &queue, &*device);
        let (inner, simulation, same) = (queue.clone(), sim.clone(), device.clone());
        let mut polls = 0;
        let task = queue.spawn(poll_fn(move |context| {
            polls += 1;
            let polled = Pin::new(&mut waiting).poll(context);
            if polls == 1 {
                assert!(polled.is_pending());
                if wakes_itself {
                    context.waker().wake_by_ref();
                }
                assert!(simulation.complete(&*same, End::success()));
                if runs {
                    inner.block_on(inner.sleep(MILLISECOND)).unwrap().unwrap();
                } else {
                    assert_eq!(poll(&inner), 0, "it was given to somebody, being polled");
                }
            }
            polled.map(|(result, _)| result.unwrap())
        }));
        queue.block_on(task).unwrap();
        drop((device, queue));
        sim.check();
    }
}

// Q13, pitfall 45: a wait that is polled inside a task, but by a waker that is not the task's, wakes that.
#[test]
fn a_wait_that_is_polled_in_a_task_by_another_waker_wakes_that() {
    struct Count(AtomicU32);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    let mut waiting = asked(&sim, &queue, &device);
    let count = Arc::new(Count(AtomicU32::new(0)));
    let waker = Waker::from(count.clone());
    let mut polls = 0;
    let task = queue.spawn(poll_fn(move |context| {
        polls += 1;
        assert_eq!(polls, 1, "it was woken, though it waits for nothing");
        let _ = context;
        assert!(Pin::new(&mut waiting).poll(&mut Context::from_waker(&waker)).is_pending());
        Poll::<()>::Pending
    }));
    assert_eq!(poll(&queue), 1);
    sim.complete(&device, End::success());
    assert_eq!(poll(&queue), 1);
    assert_eq!(count.0.load(Ordering::SeqCst), 1);
    drop((task, device, queue));
    sim.check();
}

// Q13, pitfall 45: a wait that a task has polled, and then another future by its own waker, wakes that one.
#[test]
fn a_wait_that_goes_from_a_task_to_somebody_else_wakes_them() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    let waiting = Rc::new(RefCell::new(asked(&sim, &queue, &device)));
    let (polled, seen) = (waiting.clone(), Watched::default());
    let mut watched = seen.clone();
    queue
        .spawn(poll_fn(move |context| {
            assert!(Pin::new(&mut *polled.borrow_mut()).poll(context).is_pending());
            Pin::new(&mut watched).poll(context)
        }))
        .detach();
    assert_eq!(poll(&queue), 1);
    let simulation = sim.clone();
    let mut is_first = true;
    let ended = poll_fn(|context| {
        let polled = Pin::new(&mut *waiting.borrow_mut()).poll(context);
        if std::mem::take(&mut is_first) {
            simulation.complete(&device, End::success());
        }
        polled
    });
    queue.block_on(ended).unwrap().0.unwrap();
    assert_eq!(seen.polls.get(), 1);
    drop((device, queue));
    sim.check();
}

// Q5: what poll has handed out of a task that was dropped meanwhile is nothing to the next in its place.
#[test]
fn what_is_left_in_the_hosts_hands_leaves_the_next_task_alone() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    let waiting = asked(&sim, &queue, &device);
    let first = queue.spawn(async move { drop(waiting.await) });
    assert_eq!(poll(&queue), 1);
    sim.complete(&device, End::success());
    let mut left = Vec::new();
    queue.poll(&mut left, None).unwrap();
    assert!(matches!(left[..], [Continuation::Task(_)]), "{left:?}");
    drop(first);
    assert_eq!(poll(&queue), 1);
    let next = queue.spawn(async { 7 });
    drop(left);
    assert!(!next.is_finished());
    assert_eq!(queue.block_on(next).unwrap(), 7);
    drop((device, queue));
    sim.check();
}

// Q4: whoever awaits a task learns that it is over, also where it has no output.
#[test]
fn the_end_of_a_task_is_told_when_its_future_is_dropped() {
    let (sim, queue) = quiet();
    let mut context = Context::from_waker(Waker::noop());
    let mut cancelling = pin!(queue.spawn(pending::<()>()).cancel());
    assert!(cancelling.as_mut().poll(&mut context).is_pending());
    assert_eq!(poll(&queue), 1);
    assert_eq!(cancelling.as_mut().poll(&mut context), Poll::Ready(None));
    let task = queue.spawn(pending::<()>());
    queue.close(std::time::Duration::ZERO).unwrap();
    assert!(task.is_finished());
    drop((task, queue));
    sim.check();
}

// Q1: a task that poll has handed out is resumed while the queue is being closed, by the drop of another.
#[test]
fn a_task_that_is_resumed_while_its_queue_is_closed_is_not_polled() {
    struct Resumes(Rc<RefCell<Vec<Continuation>>>);
    impl Drop for Resumes {
        fn drop(&mut self) {
            let ready = self.0.take();
            assert_eq!(ready.len(), 1);
            ready.into_iter().for_each(|continuation| assert_eq!(continuation.resume(), None));
        }
    }
    let (sim, queue) = quiet();
    let ready = Rc::new(RefCell::new(Vec::new()));
    queue.spawn(holds(Resumes(ready.clone()))).detach();
    assert_eq!(poll(&queue), 1);
    let watched = Watched::default();
    let task = queue.spawn(watched.clone());
    queue.poll(&mut ready.borrow_mut(), None).unwrap();
    queue.close(std::time::Duration::ZERO).unwrap();
    assert!(task.is_finished() && ready.borrow().is_empty());
    assert_eq!(watched.polls.get(), 0);
    drop((task, queue));
    sim.check();
}

// Q5, Q15: what a task that a host resumes makes by the free functions is its own queue's, which the host polls.
#[test]
fn a_task_that_a_host_resumes_is_on_its_own_queue() {
    let (sim, queue) = quiet();
    let task = queue.spawn(async {
        let inner = ioqueue::spawn(async { ioqueue::sleep(MILLISECOND).unwrap().await }).unwrap();
        inner.await.unwrap();
    });
    while !task.is_finished() {
        assert!(queue.running());
        let mut ready = Vec::new();
        queue.poll(&mut ready, None).unwrap();
        ready.into_iter().for_each(|continuation| assert_eq!(continuation.resume(), None));
    }
    assert!(!ioqueue::running(), "it is the thread's own queue's");
    queue.close(std::time::Duration::ZERO).unwrap();
    drop((task, queue));
    sim.check();
}
