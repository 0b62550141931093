#![cfg(windows)]
//! Waking a queue from other threads.

mod support;

use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use ioqueue::{Notifier, Queue};
use support::{depth_of_port, ends};

const LONG: Option<Duration> = Some(Duration::from_secs(3600));

// Q11
#[test]
fn a_notifier_ends_a_poll_that_waits() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let guard = queue.spawn(pending::<()>());
        let mut ready = Vec::new();
        queue.poll(&mut ready, None).unwrap();
        ready.pop().unwrap().resume();
        let notifier = queue.notifier();
        let told = Arc::new(AtomicBool::new(false));
        let telling = told.clone();
        let thread = thread::spawn(move || {
            telling.store(true, Ordering::SeqCst);
            notifier.notify().unwrap();
        });
        queue.poll(&mut ready, None).unwrap();
        assert!(told.load(Ordering::SeqCst) && ready.is_empty());
        thread.join().unwrap();
        drop(guard);
        queue.run().unwrap();
    });
}

// Q11: also one that begins to wait later.
#[test]
fn a_notice_given_before_the_poll_ends_it_at_once() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let notifier = queue.notifier();
        notifier.notify().unwrap();
        let guard = queue.spawn(pending::<()>());
        let mut ready = Vec::new();
        queue.poll(&mut ready, LONG).unwrap();
        ready.pop().unwrap().resume();
        for _ in 0..100 {
            thread::scope(|scope| {
                scope.spawn(|| notifier.notify().unwrap());
            });
            queue.poll(&mut ready, LONG).unwrap();
        }
        drop(guard);
        queue.run().unwrap();
    });
}

// Q11, pitfall 15
#[test]
fn wake_ups_coalesce_into_one_packet() {
    ends(|| {
        let queue = Queue::new().unwrap();
        thread::scope(|scope| {
            for _ in 0..8 {
                let notifier = queue.notifier();
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        notifier.clone().notify().unwrap();
                    }
                });
            }
        });
        assert_eq!(depth_of_port(&queue), 1);
        queue.poll(&mut Vec::new(), Some(Duration::ZERO)).unwrap();
        assert_eq!(depth_of_port(&queue), 0);
        queue.notifier().notify().unwrap();
        assert_eq!(depth_of_port(&queue), 1);
        assert_eq!(queue.foreign_packets(), 0);
        assert!(!queue.running());
    });
}

// Q11, scenario 52: each thread waits until the queue has seen its last number, so one lost wake-up
// is a hang.
#[test]
fn of_wake_ups_from_eight_threads_none_is_lost() {
    ends(|| {
        const ROUNDS: u64 = 500;
        let queue = Queue::new().unwrap();
        let guard = queue.spawn(pending::<()>());
        let mut ready = Vec::new();
        queue.poll(&mut ready, None).unwrap();
        ready.pop().unwrap().resume();
        let said: Arc<[AtomicU64; 8]> = Arc::default();
        let heard: Arc<[AtomicU64; 8]> = Arc::default();
        let threads: Vec<_> = (0..8)
            .map(|number| {
                let (notifier, said, heard) = (queue.notifier(), said.clone(), heard.clone());
                thread::spawn(move || {
                    for round in 1..=ROUNDS {
                        said[number].store(round, Ordering::SeqCst);
                        notifier.notify().unwrap();
                        while heard[number].load(Ordering::SeqCst) < round {
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut polls = 0;
        while heard.iter().any(|number| number.load(Ordering::SeqCst) < ROUNDS) {
            queue.poll(&mut ready, None).unwrap();
            polls += 1;
            for (said, heard) in said.iter().zip(&*heard) {
                heard.store(said.load(Ordering::SeqCst), Ordering::SeqCst);
            }
        }
        assert!(polls <= 8 * ROUNDS + 1, "more wake-ups than notices: {polls}");
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        drop(guard);
        queue.run().unwrap();
    });
}

// Q11, Q5, scenario 52: the same through the wakers of tasks.
#[test]
fn of_a_tasks_wake_ups_from_eight_threads_none_is_lost() {
    ends(|| {
        #[derive(Default)]
        struct Channel {
            messages: Mutex<VecDeque<u32>>,
            waker: Mutex<Option<Waker>>,
        }
        let queue = Queue::new().unwrap();
        let channel = Arc::<Channel>::default();
        let threads: Vec<_> = (0..8)
            .map(|number| {
                let channel = channel.clone();
                thread::spawn(move || {
                    for message in 0..500 {
                        channel.messages.lock().unwrap().push_back(number * 500 + message);
                        if let Some(waker) = channel.waker.lock().unwrap().take() {
                            waker.wake();
                        }
                    }
                })
            })
            .collect();
        let receiving = channel.clone();
        let task = queue.spawn(async move {
            let mut sum = 0;
            for _ in 0..4000 {
                sum += poll_fn(|context| {
                    *receiving.waker.lock().unwrap() = Some(context.waker().clone());
                    match receiving.messages.lock().unwrap().pop_front() {
                        Some(message) => Poll::Ready(message),
                        None => Poll::Pending,
                    }
                })
                .await;
            }
            sum
        });
        assert_eq!(queue.block_on(task).unwrap(), (0..4000).sum::<u32>());
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

// Q11, scenario 56
#[test]
fn a_queue_may_be_dropped_while_other_threads_notify() {
    ends(|| {
        for round in 0..100 {
            let queue = Queue::new().unwrap();
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
            drop(queue);
            gone.store(true, Ordering::SeqCst);
            for thread in threads {
                thread.join().unwrap().notify().unwrap();
            }
        }
    });
}

// Q11: the notifier keeps the port, so that what it posts never goes to somebody else's.
#[test]
fn a_notifier_that_outlives_its_queue_reaches_no_other_port() {
    let notifiers: Vec<Notifier> =
        (0..4).map(|_| ends(|| Queue::current().unwrap().notifier())).collect();
    ends(move || {
        // Whatever handle values are free by now are these queues'.
        let queues: Vec<_> = (0..32).map(|_| Queue::new().unwrap()).collect();
        for notifier in &notifiers {
            notifier.notify().unwrap();
            notifier.clone().notify().unwrap();
        }
        drop(notifiers);
        assert!(queues.iter().all(|queue| depth_of_port(queue) == 0));
    });
}

// Q11: it is no wake-up of what block_on waits for.
#[test]
fn block_on_waits_on_after_a_notice() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let notifier = queue.notifier();
        let (sender, receiver) = channel();
        let done = Arc::new(AtomicBool::new(false));
        let finishing = done.clone();
        let thread = thread::spawn(move || {
            let waker: Waker = receiver.recv().unwrap();
            for _ in 0..50 {
                notifier.notify().unwrap();
            }
            finishing.store(true, Ordering::SeqCst);
            waker.wake();
        });
        queue
            .block_on(poll_fn(|context| {
                if done.load(Ordering::SeqCst) {
                    return Poll::Ready(());
                }
                let _ = sender.send(context.waker().clone());
                Poll::Pending
            }))
            .unwrap();
        assert!(done.load(Ordering::SeqCst));
        thread.join().unwrap();
    });
}
