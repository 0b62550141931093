#![cfg(feature = "sim")]
//! What other threads may do to a queue, on a simulated port. `cargo xtask soak --sanitize` runs this
//! under ThreadSanitizer.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use ioqueue::sim::{Faults, Sim};
use ioqueue::{Queue, Task};

/// How long a wake-up may take to come before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// A simulated queue that other threads wake, with something to wait for.
fn queue(post_fails: f64) -> (Sim, Queue, Task<()>) {
    let mut faults = Faults::none();
    faults.post_fails = post_fails;
    let sim = Sim::with_faults(1, faults);
    sim.expect_other_threads(PATIENCE);
    let queue = sim.queue().unwrap();
    let guard = queue.spawn(pending());
    let mut ready = Vec::new();
    queue.poll(&mut ready, None).unwrap();
    ready.pop().unwrap().resume();
    (sim, queue, guard)
}

/// Eight threads that each wait until the queue has seen their last number, so that a wake-up which
/// is lost is a wait without an end. Says how often the queue was polled.
fn notify_from_eight_threads(queue: &Queue, rounds: u64) -> u64 {
    let said: Arc<[AtomicU64; 8]> = Arc::default();
    let heard: Arc<[AtomicU64; 8]> = Arc::default();
    let threads: Vec<_> = (0..8)
        .map(|number| {
            let (notifier, said, heard) = (queue.notifier(), said.clone(), heard.clone());
            thread::spawn(move || {
                for round in 1..=rounds {
                    said[number].store(round, Ordering::SeqCst);
                    // With no memory for a packet it may fail; who asks again is heard.
                    while notifier.clone().notify().is_err() {
                        thread::yield_now();
                    }
                    while heard[number].load(Ordering::SeqCst) < round {
                        thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let (mut polls, mut ready) = (0, Vec::new());
    while heard.iter().any(|number| number.load(Ordering::SeqCst) < rounds) {
        queue.poll(&mut ready, None).unwrap();
        polls += 1;
        assert!(ready.is_empty());
        for (said, heard) in said.iter().zip(&*heard) {
            heard.store(said.load(Ordering::SeqCst), Ordering::SeqCst);
        }
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    polls
}

// Q11, scenario 52
#[test]
fn of_wake_ups_from_eight_threads_none_is_lost() {
    let (sim, queue, guard) = queue(0.0);
    let polls = notify_from_eight_threads(&queue, 200);
    assert!(polls <= 8 * 200 + 1, "more wake-ups than notices: {polls}");
    drop(guard);
    queue.run().unwrap();
    drop(queue);
    sim.check();
}

// Q11, scenario 52, pitfall 15: whoever was told that the queue will wake is heard, though another's
// packet could not be posted.
#[test]
fn of_wake_ups_that_cannot_always_be_posted_none_is_lost() {
    let (sim, queue, guard) = queue(0.5);
    notify_from_eight_threads(&queue, 50);
    drop(guard);
    queue.run().unwrap();
    drop(queue);
    sim.check();
}

// Q11, pitfall 15: any number between two polls costs one packet.
#[test]
fn wake_ups_between_two_polls_end_one_poll() {
    let (sim, queue, guard) = queue(0.0);
    let mut ready = Vec::new();
    for _ in 0..20 {
        thread::scope(|scope| {
            for _ in 0..8 {
                let notifier = queue.notifier();
                scope.spawn(move || (0..50).for_each(|_| notifier.notify().unwrap()));
            }
        });
        queue.poll(&mut ready, None).unwrap();
        // The next would come at once if there were a second packet. Time passes for this poll only
        // when it waits to its end.
        let before = sim.now();
        queue.poll(&mut ready, Some(Duration::from_secs(5))).unwrap();
        assert_eq!(sim.now() - before, Duration::from_secs(5));
    }
    assert!(ready.is_empty());
    drop(guard);
    queue.run().unwrap();
    drop(queue);
    sim.check();
}

// Q11, scenario 56
#[test]
fn a_queue_is_dropped_while_others_notify() {
    for round in 0..50 {
        let (sim, queue, guard) = queue(0.0);
        let gone = Arc::new(AtomicBool::new(false));
        let (started, starts) = channel();
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (notifier, gone) = (queue.notifier(), gone.clone());
                let started = started.clone();
                thread::spawn(move || {
                    started.send(()).unwrap();
                    while !gone.load(Ordering::SeqCst) {
                        notifier.notify().unwrap();
                    }
                    notifier.notify().unwrap();
                    notifier
                })
            })
            .collect();
        starts.recv().unwrap();
        if round % 2 == 0 {
            queue.poll(&mut Vec::new(), Some(Duration::ZERO)).unwrap();
        }
        drop((guard, queue));
        gone.store(true, Ordering::SeqCst);
        for thread in threads {
            // It outlives its queue, and what it posts to.
            thread.join().unwrap().notify().unwrap();
        }
        sim.check();
    }
}

// Q11: the last reference to a queue's port may be another thread's.
#[test]
fn the_last_of_a_queue_goes_with_a_notifier_on_another_thread() {
    for _ in 0..50 {
        let (sim, queue, guard) = queue(0.0);
        let notifier = queue.notifier();
        let (gone, is_gone) = channel();
        let thread = thread::spawn(move || {
            notifier.notify().unwrap();
            is_gone.recv().unwrap();
            notifier.notify().unwrap();
        });
        drop((guard, queue));
        gone.send(()).unwrap();
        thread.join().unwrap();
        sim.check();
    }
}
