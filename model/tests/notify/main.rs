//! The protocol by which other threads wake a queue, tried in every order.
//!
//! `src/notify.rs` is compiled here as it is shipped, over loom's atomics and mutexes: loom then runs a
//! model in each order, and with each outcome of every load, that the memory model allows. What is left
//! of the queue is its loop (`queue::Queue::poll`, as `turn` in `src/queue/turning.rs`), and of the kernel a port
//! that holds wake-ups.
//!
//! A wake-up that is lost is a wait without an end, which loom reports as a deadlock.

// Of std's thread locals all of loom's threads would share one, being one thread to the system.
macro_rules! thread_local {
    ($($locals:tt)*) => { loom::thread_local! { $($locals)* } };
}

use std::sync::Arc;
use std::task::Waker;

use loom::model::Builder;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use crate::notify::Blocker;
use crate::queue::{Queue, Task, resume};

mod kernel {
    use std::io;
    use std::sync::Arc;

    pub(crate) use crate::owner;

    pub(crate) struct Alarm(pub(crate) Arc<crate::queue::Port>);

    impl Alarm {
        pub(crate) fn ring(&self) -> io::Result<()> {
            self.0.post()
        }
    }
}

#[path = "../../../src/notify.rs"]
#[allow(dead_code)]
mod notify;

#[path = "../../../src/kernel/owner.rs"]
#[allow(dead_code)]
mod owner;

mod queue;

mod sync;

/// Runs `model` in all orders; in those alone that take a thread's turn away from it at most `often`
/// times, where that is said.
fn in_every_order(often: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = often;
    builder.max_branches = 10_000;
    builder.check(model);
}

/// Things said by one thread and heard by another. Nothing but the queue's own order makes the other
/// see them.
fn flags<const N: usize>() -> Arc<[AtomicBool; N]> {
    Arc::new(std::array::from_fn(|_| AtomicBool::new(false)))
}

fn say(flag: &AtomicBool) {
    flag.store(true, Ordering::Relaxed);
}

fn is_said(flag: &AtomicBool) -> bool {
    flag.load(Ordering::Relaxed)
}

// Q11, scenario 52: whoever notifies is heard, though others notify at the same time, and the wake-ups
// between two polls are one.
#[test]
fn of_two_notifiers_none_is_lost() {
    in_every_order(None, || {
        let queue = Queue::new(0);
        let said = flags::<2>();
        let threads = [0, 1].map(|number| {
            let (notifier, said) = (queue.notifier(), said.clone());
            thread::spawn(move || {
                say(&said[number]);
                notifier.notify().unwrap();
            })
        });
        while !said.iter().all(is_said) {
            assert!(queue.poll(false).is_empty());
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        // Whatever is left, the next notice is heard.
        queue.poll(true);
        queue.notifier().notify().unwrap();
        assert!(queue.is_rung());
    });
}

// Q11: the second notice of a thread is heard as well, whatever became of the first.
#[test]
fn of_a_notifiers_notices_none_is_lost() {
    in_every_order(None, || {
        let queue = Queue::new(0);
        let said = flags::<3>();
        let (notifier, saying) = (queue.notifier(), said.clone());
        let thread = thread::spawn(move || {
            for said in &*saying {
                say(said);
                notifier.notify().unwrap();
            }
        });
        for said in &*said {
            while !is_said(said) {
                assert!(queue.poll(false).is_empty());
            }
        }
        thread.join().unwrap();
    });
}

// Pitfall 15: whoever was told that the queue will wake is heard, though the wake-up that it relied on,
// which was another's, could not be posted.
#[test]
fn a_notice_that_said_nothing_of_an_error_is_heard() {
    for failures in [1, 2] {
        in_every_order(Some(3), move || {
            let queue = Queue::new(failures);
            let said = flags::<1>();
            let (notifier, saying) = (queue.notifier(), said.clone());
            let insists = thread::spawn(move || {
                say(&saying[0]);
                while notifier.notify().is_err() {
                    thread::yield_now();
                }
            });
            let notifier = queue.notifier();
            let gives_up = thread::spawn(move || drop(notifier.notify()));
            while !is_said(&said[0]) {
                assert!(queue.poll(false).is_empty());
            }
            insists.join().unwrap();
            gives_up.join().unwrap();
        });
    }
}

// Q5, Q11: a task that another thread wakes is resumed, and sees what was said before.
#[test]
fn of_two_tasks_woken_elsewhere_none_is_lost() {
    in_every_order(Some(3), || {
        let queue = Queue::new(0);
        let done = flags::<2>();
        let (threads, tasks): (Vec<_>, Vec<_>) = [0, 1]
            .map(|number| {
                let (seen, done) = (done.clone(), done.clone());
                let task = Task::new(&queue, number as u32, move || is_said(&seen[number]));
                let waker = Waker::from(Arc::clone(&task.waker));
                let thread = thread::spawn(move || {
                    say(&done[number]);
                    waker.wake();
                });
                (thread, task)
            })
            .into_iter()
            .unzip();
        while !tasks.iter().all(Task::is_over) {
            resume(&tasks, queue.poll(false));
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

// Q5: a task that two threads wake, the second while it may be on the list or being polled: it is polled
// after the last of them.
#[test]
fn a_task_that_is_woken_twice_sees_both() {
    in_every_order(Some(3), || {
        let queue = Queue::new(0);
        let done = flags::<2>();
        let seen = done.clone();
        let tasks = [Task::new(&queue, 0, move || seen.iter().all(is_said))];
        let threads = [0, 1].map(|number| {
            let (waker, done) = (Waker::from(Arc::clone(&tasks[0].waker)), done.clone());
            thread::spawn(move || {
                say(&done[number]);
                waker.wake();
            })
        });
        while !tasks[0].is_over() {
            resume(&tasks, queue.poll(false));
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

// Q5: a task that another thread cancels is dropped, though it is woken at the same time.
#[test]
fn a_task_that_is_cancelled_elsewhere_is_dropped() {
    in_every_order(Some(3), || {
        let queue = Queue::new(0);
        let tasks = [Task::new(&queue, 0, || false)];
        let (cancels, wakes) =
            (Arc::clone(&tasks[0].waker), Waker::from(Arc::clone(&tasks[0].waker)));
        let threads =
            [thread::spawn(move || cancels.cancel()), thread::spawn(move || wakes.wake())];
        while !tasks[0].is_over() {
            resume(&tasks, queue.poll(false));
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

// Pitfall 15: a waker cannot fail, so it asks until it is heard.
#[test]
fn a_task_is_resumed_though_wake_ups_cannot_be_posted() {
    in_every_order(Some(3), || {
        let queue = Queue::new(2);
        let done = flags::<1>();
        let (seen, said) = (done.clone(), flags::<1>());
        let tasks = [Task::new(&queue, 0, move || is_said(&seen[0]))];
        let waker = Waker::from(Arc::clone(&tasks[0].waker));
        let (notifier, saying) = (queue.notifier(), said.clone());
        let threads = [
            thread::spawn(move || {
                say(&done[0]);
                waker.wake();
            }),
            thread::spawn(move || {
                say(&saying[0]);
                while notifier.notify().is_err() {
                    thread::yield_now();
                }
            }),
        ];
        while !tasks[0].is_over() || !is_said(&said[0]) {
            resume(&tasks, queue.poll(false));
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

// Q5: what `block_on` waits for is polled after its last wake-up, whoever else wakes it.
#[test]
fn block_on_is_woken_by_either_of_two_threads() {
    in_every_order(Some(3), || {
        let queue = Queue::new(0);
        let done = flags::<2>();
        let blocker = Blocker::new(Arc::clone(&queue.shared));
        let threads = [0, 1].map(|number| {
            let (waker, done) = (Waker::from(Arc::clone(&blocker)), done.clone());
            thread::spawn(move || {
                say(&done[number]);
                waker.wake();
            })
        });
        queue.block_on(&blocker, || done.iter().all(is_said));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

// Q2, Q5, pitfall 56: what is woken while the queue closes is on its list or nowhere, unless the thread is
// going away, which waits for nobody: a closed queue is not running.
#[test]
fn what_is_woken_while_the_queue_closes_is_not_left_behind() {
    for exiting in [false, true] {
        in_every_order(Some(3), move || {
            let queue = Queue::new(0);
            let tasks = [0, 1].map(|index| Task::new(&queue, index, || false));
            let threads = tasks.map(|task| {
                let waker = Waker::from(task.waker);
                thread::spawn(move || waker.wake())
            });
            queue.shared.close(&queue.owner, exiting);
            queue.collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            let late = queue.collect();
            assert!(late.is_empty() || exiting, "{} were left behind", late.len());
        });
    }
}

// Scenario 56: a notice to a queue that closes, or is closed, harms nothing.
#[test]
fn a_queue_closes_while_others_notify() {
    in_every_order(None, || {
        let queue = Queue::new(1);
        let notifier = queue.notifier();
        let thread = thread::spawn(move || {
            let _ = notifier.notify();
            notifier
        });
        queue.poll(true);
        queue.shared.close(&queue.owner, false);
        drop(queue);
        thread.join().unwrap().notify().unwrap();
    });
}
