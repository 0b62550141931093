//! The protocol by which other threads wake a queue, tried in every order.
//!
//! `src/notify.rs` is compiled here as it is shipped, over loom's atomics and mutexes: loom then runs a
//! model in each order, and with each outcome of every load, that the memory model allows. What is left
//! of the queue is its loop (`queue::Queue::poll`, as `turn` in `src/queue.rs`), and of the kernel a port
//! that holds wake-ups.
//!
//! A wake-up that is lost is a wait without an end, which loom reports as a deadlock.

// Of std's thread locals all of loom's threads would share one, being one thread to the system.
macro_rules! thread_local {
    ($($locals:tt)*) => { loom::thread_local! { $($locals)* } };
}

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use async_task::{Runnable, Task};
use loom::model::Builder;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use crate::notify::Blocker;
use crate::queue::Queue;

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

/// A task that is over when `done` is said, has been polled once, and waits.
fn task(queue: &Queue, done: impl Fn() -> bool + 'static) -> (Waker, Task<()>) {
    let made = thread::current().id();
    let here = move || assert_eq!(thread::current().id(), made, "a future is elsewhere");
    struct Guard<F: Fn()>(F);
    impl<F: Fn()> Drop for Guard<F> {
        fn drop(&mut self) {
            self.0();
        }
    }
    let guard = Guard(here);
    let waker = Rc::new(RefCell::new(None));
    let (waker_of_task, shared) = (Rc::clone(&waker), Arc::clone(&queue.shared));
    let future = async move {
        let _guard = guard;
        poll_fn(|context| {
            if done() {
                return Poll::Ready(());
            }
            *waker_of_task.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    };
    let (runnable, task) =
        async_task::spawn_local(future, move |runnable| shared.schedule(runnable));
    runnable.run();
    let waker = waker.borrow_mut().take().unwrap();
    (waker, task)
}

// Q5, Q11: a task that another thread wakes is resumed.
#[test]
fn of_two_tasks_woken_elsewhere_none_is_lost() {
    in_every_order(Some(3), || {
        let queue = Queue::new(0);
        let done = flags::<2>();
        let (threads, tasks): (Vec<_>, Vec<_>) = [0, 1]
            .map(|number| {
                let (seen, done) = (done.clone(), done.clone());
                let (waker, task) = task(&queue, move || is_said(&seen[number]));
                let thread = thread::spawn(move || {
                    say(&done[number]);
                    waker.wake();
                });
                (thread, task)
            })
            .into_iter()
            .unzip();
        while !tasks.iter().all(Task::is_finished) {
            queue.poll(false).into_iter().for_each(|runnable| {
                runnable.run();
            });
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
        let (waker, task) = task(&queue, move || is_said(&seen[0]));
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
        while !task.is_finished() || !is_said(&said[0]) {
            queue.poll(false).into_iter().for_each(|runnable| {
                runnable.run();
            });
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

// Q5, pitfall 56: what is woken while the queue closes, the queue gets, or it is forgotten; its future
// goes on the queue's thread or not at all. Nothing is left where nobody looks, unless the thread is
// going away, which waits for nobody.
#[test]
fn what_is_woken_while_the_queue_closes_is_not_left_behind() {
    for exiting in [false, true] {
        in_every_order(Some(3), move || {
            let queue = Queue::new(0);
            let (wakers, tasks): (Vec<_>, Vec<_>) =
                [(); 2].map(|()| task(&queue, || false)).into_iter().unzip();
            let threads: Vec<_> =
                wakers.into_iter().map(|waker| thread::spawn(move || waker.wake())).collect();
            queue.shared.close(&queue.owner, exiting);
            let taken: Vec<Runnable> = queue.collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            let late = queue.collect();
            assert!(late.is_empty() || exiting, "{} were left behind", late.len());
            drop((taken, late));
            tasks.into_iter().for_each(Task::detach);
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
