#![cfg(feature = "sim")]
//! Tasks whose wakers are other threads', on a simulated port. `cargo xtask soak --sanitize` runs this
//! under ThreadSanitizer.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use ioqueue::Queue;
use ioqueue::sim::{Faults, Sim};

/// How long a wake-up may take to come before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(60);

fn sim_queue(post_fails: f64) -> (Sim, Queue) {
    let mut faults = Faults::none();
    faults.post_fails = post_fails;
    let sim = Sim::with_faults(1, faults);
    sim.expect_other_threads(PATIENCE);
    let queue = sim.queue().unwrap();
    (sim, queue)
}

/// Messages from threads to a task.
#[derive(Default)]
struct Channel {
    messages: Mutex<VecDeque<u32>>,
    waker: Mutex<Option<Waker>>,
}

impl Channel {
    fn send(&self, message: u32) {
        self.messages.lock().unwrap().push_back(message);
        if let Some(waker) = self.waker.lock().unwrap().take() {
            waker.wake();
        }
    }

    async fn receive(&self) -> u32 {
        poll_fn(|context| {
            *self.waker.lock().unwrap() = Some(context.waker().clone());
            match self.messages.lock().unwrap().pop_front() {
                Some(message) => Poll::Ready(message),
                None => Poll::Pending,
            }
        })
        .await
    }
}

/// The sum of what eight threads send, as a task adds it up.
fn sum_of_eight_threads(queue: &Queue, each: u32) -> u32 {
    let channel = Arc::<Channel>::default();
    let threads: Vec<_> = (0..8)
        .map(|number| {
            let channel = channel.clone();
            thread::spawn(move || {
                (0..each).for_each(|message| channel.send(number * each + message));
            })
        })
        .collect();
    let task = queue.spawn(async move {
        let mut sum = 0;
        for _ in 0..8 * each {
            sum += channel.receive().await;
        }
        sum
    });
    let sum = queue.block_on(task).unwrap();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    sum
}

// Q5, Q11, scenario 52: a wake-up that is lost is a wait without an end.
#[test]
fn of_a_tasks_wake_ups_from_eight_threads_none_is_lost() {
    let (sim, queue) = sim_queue(0.0);
    assert_eq!(sum_of_eight_threads(&queue, 200), (0..8 * 200).sum());
    drop(queue);
    sim.check();
}

// Q5, pitfall 15: a waker that finds no memory for a packet asks again.
#[test]
fn a_task_is_woken_though_posting_fails() {
    let (sim, queue) = sim_queue(0.5);
    assert_eq!(sum_of_eight_threads(&queue, 20), (0..8 * 20).sum());
    drop(queue);
    sim.check();
}

// Q4, Q5: what `block_on` itself waits for is woken elsewhere.
#[test]
fn block_on_is_woken_from_another_thread() {
    let (sim, queue) = sim_queue(0.0);
    for _ in 0..100 {
        let (sender, receiver) = channel::<Waker>();
        let done = Arc::new(AtomicBool::new(false));
        let finishing = done.clone();
        let thread = thread::spawn(move || {
            let waker = receiver.recv().unwrap();
            waker.wake_by_ref(); // It finds nothing.
            finishing.store(true, Ordering::SeqCst);
            waker.wake();
        });
        let mut told = false;
        let seen = poll_fn(|context| {
            if done.load(Ordering::SeqCst) {
                return Poll::Ready(());
            }
            if !told {
                told = true;
                sender.send(context.waker().clone()).unwrap();
            }
            Poll::Pending
        });
        queue.block_on(seen).unwrap();
        thread.join().unwrap();
    }
    drop(queue);
    sim.check();
}

/// A task that leaves its waker to `sender` and never ends; says when its future is dropped, which
/// only its own thread may do.
fn forever(queue: &Queue, sender: &Sender<Waker>) -> Rc<Cell<bool>> {
    struct Guard(Rc<Cell<bool>>, thread::ThreadId);
    impl Drop for Guard {
        fn drop(&mut self) {
            assert_eq!(self.1, thread::current().id(), "a future was dropped elsewhere");
            self.0.set(true);
        }
    }
    let dropped = Rc::new(Cell::new(false));
    let (guard, sender) = (Guard(dropped.clone(), thread::current().id()), sender.clone());
    let task = queue.spawn(async move {
        let _guard = guard;
        poll_fn(|context| {
            let _ = sender.send(context.waker().clone());
            Poll::<()>::Pending
        })
        .await;
    });
    task.detach();
    dropped
}

fn resume_all(queue: &Queue) {
    let mut ready = Vec::new();
    queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
    for continuation in ready {
        continuation.resume();
    }
}

/// Where a leak checker sees tasks that are leaked on purpose.
static FORGOTTEN: Mutex<Vec<Waker>> = Mutex::new(Vec::new());

// Q1, Q5, pitfall 56: the futures go with their queue, on its thread, whoever wakes them.
#[test]
fn a_queue_is_closed_while_others_wake_its_tasks() {
    for round in 0..50 {
        let (sim, queue) = sim_queue(0.0);
        let (sender, receiver) = channel();
        let dropped: Vec<_> = (0..8).map(|_| forever(&queue, &sender)).collect();
        resume_all(&queue);
        let wakers: Vec<Waker> = (0..8).map(|_| receiver.recv().unwrap()).collect();
        let gone = Arc::new(AtomicBool::new(false));
        let (started, starts) = channel();
        let threads: Vec<_> = wakers
            .chunks(4)
            .map(|wakers| {
                let (wakers, gone, started) = (wakers.to_vec(), gone.clone(), started.clone());
                thread::spawn(move || {
                    started.send(()).unwrap();
                    while !gone.load(Ordering::SeqCst) {
                        wakers.iter().for_each(Waker::wake_by_ref);
                    }
                    wakers.into_iter().for_each(Waker::wake);
                })
            })
            .collect();
        (0..2).for_each(|_| starts.recv().unwrap());
        let kept = wakers;
        if round % 2 == 0 {
            resume_all(&queue);
        }
        queue.close(Duration::from_secs(1)).unwrap();
        gone.store(true, Ordering::SeqCst);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        // A future whose task was just being woken is forgotten: it can't be dropped here any more,
        // and may not be dropped there.
        if dropped.iter().any(|dropped| !dropped.get()) {
            FORGOTTEN.lock().unwrap().extend(kept);
        }
        drop(queue);
        sim.check();
    }
}

// Pitfall 56: the task is over; only its memory is left, and that may go anywhere.
#[test]
fn the_last_waker_of_a_finished_task_is_dropped_elsewhere() {
    for _ in 0..50 {
        let (sim, queue) = sim_queue(0.0);
        let (sender, receiver) = channel();
        let task = queue.spawn(poll_fn(move |context| {
            sender.send(context.waker().clone()).unwrap();
            Poll::Ready(())
        }));
        queue.block_on(task).unwrap();
        let waker: Waker = receiver.recv().unwrap();
        let thread = thread::spawn(move || {
            waker.wake_by_ref();
            drop(waker);
        });
        drop(queue);
        thread.join().unwrap();
        sim.check();
    }
}

// Pitfall 56: the last waker of a task whose queue is gone, woken and dropped on another thread.
#[test]
fn the_last_waker_of_a_task_of_a_closed_queue_is_dropped_elsewhere() {
    for wake in [true, false] {
        let (sim, queue) = sim_queue(0.0);
        let (sender, receiver) = channel();
        let dropped = forever(&queue, &sender);
        resume_all(&queue);
        drop(queue);
        assert!(dropped.get(), "a future outlived its queue");
        let waker: Waker = receiver.recv().unwrap();
        drop(receiver);
        let thread = thread::spawn(move || if wake { waker.wake() } else { drop(waker) });
        thread.join().unwrap();
        sim.check();
    }
}
