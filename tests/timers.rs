#![cfg(windows)]
//! Sleeps, intervals and time limits (Q12).

mod support;

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use ioqueue::iocp::Cancelled;
use ioqueue::{Elapsed, Queue};
use support::{pipe_pair, read, write};

// Scenario 46, pitfall 39.
#[test]
fn a_sleep_is_never_early() {
    let queue = Queue::new().unwrap();
    for micros in [0, 1, 100, 3_100, 10_900, 20_000] {
        let duration = Duration::from_micros(micros);
        let start = Instant::now();
        queue.block_on(queue.sleep(duration)).unwrap().unwrap();
        assert!(start.elapsed() >= duration, "{:?} of {duration:?}", start.elapsed());
    }
}

#[test]
fn run_waits_for_sleeping_tasks_and_resumes_the_first_due_first() {
    let queue = Queue::new().unwrap();
    let woken = Rc::new(RefCell::new(Vec::new()));
    for ms in [30, 10, 20] {
        let (sleep, woken) = (queue.sleep(Duration::from_millis(ms)), woken.clone());
        let task = async move {
            sleep.await.unwrap();
            woken.borrow_mut().push(ms);
        };
        queue.spawn(task).detach();
    }
    queue.run().unwrap();
    assert_eq!(*woken.borrow(), [10, 20, 30]);
}

#[test]
fn a_dropped_sleep_is_not_waited_for() {
    let queue = Queue::new().unwrap();
    let sleep = queue.sleep(Duration::from_secs(3600));
    assert!(queue.running());
    drop(sleep);
    assert!(!queue.running());
    queue.run().unwrap();
}

// Scenario 49, as far as memory and time go in a test.
#[test]
fn a_hundred_thousand_sleeps_can_be_dropped_in_any_order() {
    let queue = Queue::new().unwrap();
    let hour = Duration::from_secs(3600);
    let mut sleeps: Vec<_> = (0..100_000).map(|n| Some(queue.sleep(hour * (n % 7)))).collect();
    for start in 0..3 {
        for sleep in sleeps.iter_mut().skip(start).step_by(3) {
            drop(sleep.take());
        }
    }
    assert!(!queue.running());
}

// Q12: built on the awaited cancel.
#[test]
fn an_operation_that_takes_too_long_is_cancelled_and_gives_its_buffer_back() {
    let queue = Queue::new().unwrap();
    let (server, client) = pipe_pair(false);
    let (server, client) = (queue.register(server).unwrap(), queue.register(client).unwrap());
    let late = queue.block_on(read(&server, [7; 8]).timeout(Duration::from_millis(5))).unwrap();
    let Cancelled::Cancelled(completion) = late else { panic!("{late:?}") };
    assert_eq!(completion.state, [7; 8]);
    queue.block_on(write(&client, *b"data")).unwrap().0.unwrap();
    let in_time = queue.block_on(read(&server, [0; 8]).timeout(Duration::from_secs(60))).unwrap();
    let Cancelled::Finished(completion) = in_time else { panic!("{in_time:?}") };
    assert_eq!((completion.result().unwrap(), &completion.state[..4]), (4, &b"data"[..]));
    assert!(!queue.running());
}

#[test]
fn a_future_that_takes_too_long_is_dropped() {
    let queue = Queue::new().unwrap();
    let never = std::future::pending::<()>();
    let limited = queue.timeout(Duration::from_millis(1), never);
    assert!(Elapsed::is(&queue.block_on(limited).unwrap().unwrap_err()));
    let limited = queue.timeout(Duration::from_secs(3600), async { 7 });
    assert_eq!(queue.block_on(limited).unwrap().unwrap(), 7);
    assert!(!queue.running());
}

#[test]
fn an_interval_does_not_drift() {
    let queue = Queue::new().unwrap();
    let period = Duration::from_millis(4);
    let start = Instant::now();
    let mut interval = queue.interval(period);
    for tick in 1..=5 {
        queue.block_on(interval.tick()).unwrap().unwrap();
        assert!(start.elapsed() >= period * tick);
    }
}

#[test]
fn closing_the_queue_ends_a_sleep() {
    let queue = Queue::new().unwrap();
    let sleep = queue.sleep(Duration::from_secs(3600));
    queue.close(Duration::ZERO).unwrap();
    let other = Queue::new().unwrap();
    assert!(other.block_on(sleep).unwrap().is_err());
}

// Q1: a task that holds its own queue would keep it open for ever.
#[test]
fn a_task_with_a_time_limit_does_not_keep_its_queue() {
    let queue = Queue::new().unwrap();
    let task = queue.spawn(async {
        ioqueue::timeout(Duration::from_secs(3600), std::future::pending::<()>()).await
    });
    // One turn, in which the queue is the current one.
    let mut turned = false;
    let turn = std::future::poll_fn(|context| {
        context.waker().wake_by_ref();
        if std::mem::replace(&mut turned, true) { Poll::Ready(()) } else { Poll::Pending }
    });
    queue.block_on(turn).unwrap();
    assert!(queue.running());
    drop(queue);
    assert!(task.is_finished(), "the queue is still there, and with it the task");
}

// Rule 7: what waits for a closed queue ends, whatever else it waits for.
#[test]
fn closing_the_queue_ends_a_time_limit() {
    let (queue, other) = (Queue::new().unwrap(), Queue::new().unwrap());
    let limited = queue.timeout(Duration::from_secs(3600), std::future::pending::<()>());
    let mut limited = std::pin::pin!(limited);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(limited.as_mut().poll(&mut context).is_pending());
    queue.close(Duration::ZERO).unwrap();
    let error = other.block_on(limited).unwrap().unwrap_err();
    assert!(ioqueue::error::Closed::is(&error), "{error}");
}
