#![cfg(feature = "sim")]
//! Waiting on the simulated Windows: time-outs that come early or late, posting that fails, deadlines
//! past what one call can wait for. The clock moves only when a queue waits.

#[path = "sim/support.rs"]
mod support;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ioqueue::sim::{Faults, OnCancel, Plan, Sim};
use ioqueue::{Continuation, Queue, timeout};
use support::{MILLISECOND, SECOND, poll, quiet};

fn with(seed: u64, change: impl FnOnce(&mut Faults)) -> (Sim, Queue) {
    let mut faults = Faults::none();
    change(&mut faults);
    let sim = Sim::with_faults(seed, faults);
    let queue = sim.queue().unwrap();
    (sim, queue)
}

/// How long `poll` takes on the simulation's clock with something in flight that never ends.
fn wait_for(sim: &Sim, queue: &Queue, time: Duration) -> Duration {
    let before = sim.now();
    queue.poll(&mut Vec::new(), Some(time)).unwrap();
    sim.now() - before
}

// Q3, pitfalls 4, 25 and 39, scenarios 46 and 50.
#[test]
fn a_poll_is_never_early_though_every_wait_is() {
    for seed in 0..50 {
        let (sim, queue) = with(seed, |faults| faults.early = 0.9);
        let device = queue.register(sim.device()).unwrap();
        sim.plan(&device, Plan::pends());
        let waiting = sim.control(&queue, &device, vec![0; 8]);
        for nanoseconds in [1, 999, 1_000_000, 10_900_000, 3_100_000] {
            let time = Duration::from_nanos(nanoseconds);
            let waited = wait_for(&sim, &queue, time);
            assert!(waited >= time, "{waited:?} is not {time:?}");
            assert!(waited <= time + MILLISECOND, "{waited:?} is too long for {time:?}");
        }
        assert_eq!(wait_for(&sim, &queue, Duration::ZERO), Duration::ZERO);
        drop((waiting, device, queue));
        sim.check();
    }
}

// Q3, pitfall 39, scenario 47: 50 days in milliseconds do not fit 32 bits, and all ones means for ever.
#[test]
fn a_deadline_past_what_one_call_can_wait_for_is_waited_for_in_parts() {
    const DAY: Duration = Duration::from_secs(86_400);
    for seed in 0..5 {
        let (sim, queue) = with(seed, |faults| faults.early = 0.3);
        let device = queue.register(sim.device()).unwrap();
        sim.plan(&device, Plan::pends());
        let waiting = sim.control(&queue, &device, vec![0; 8]);
        for time in [49 * DAY, 50 * DAY, 400 * DAY, Duration::from_millis((1 << 32) - 1)] {
            let waited = wait_for(&sim, &queue, time);
            assert!(waited >= time && waited <= time + MILLISECOND, "{waited:?} for {time:?}");
        }
        drop((waiting, device, queue));
        sim.check();
    }
}

// Q12, Q15: what a host may wait is what is left of the first timer's time.
#[test]
fn a_host_may_wait_until_the_first_timer() {
    let (sim, queue) = with(1, |_| {});
    assert_eq!(queue.poll_delay(), None);
    let (later, first) = (queue.sleep(5 * SECOND), queue.sleep(3 * SECOND));
    assert_eq!(queue.poll_delay(), Some(3 * SECOND));
    let waited = wait_for(&sim, &queue, SECOND);
    assert_eq!(queue.poll_delay(), Some(3 * SECOND - waited));
    drop(first);
    assert_eq!(queue.poll_delay(), Some(5 * SECOND - waited));
    let waited = waited + wait_for(&sim, &queue, 4 * SECOND);
    assert!(waited >= 5 * SECOND);
    // Over, and nobody has asked for it yet: there is nothing more to poll for.
    assert_eq!(queue.poll_delay(), None);
    drop(later);
    // Never is no time.
    let never = queue.sleep(Duration::MAX);
    assert_eq!(queue.poll_delay(), None);
    drop(never);
    // Of one that nobody has polled when its time comes, too.
    let short = queue.sleep(Duration::ZERO);
    assert_eq!(queue.poll_delay(), Some(Duration::ZERO));
    drop((short, queue));
    sim.check();
}

// Q12, Q15: a timer hands out the task that waits for it, and no waker that would have to be resumed first.
#[test]
fn a_timer_hands_out_its_task() {
    let (sim, queue) = with(1, |_| {});
    let own = queue.clone();
    let task = queue.spawn(async move { own.sleep(SECOND).await });
    poll(&queue);
    let mut ready = Vec::new();
    queue.poll(&mut ready, None).unwrap();
    assert!(matches!(ready[..], [Continuation::Task(_)]), "{ready:?}");
    ready.pop().unwrap().resume();
    assert!(task.is_finished());
    // Also where the timer is behind what has its own wakers, and where it is the future of a block_on.
    let sleeps = async {
        let mut sleep = Box::pin(queue.sleep(SECOND));
        std::future::poll_fn(|context| {
            let waker = std::task::Waker::from(Arc::new(Passes(context.waker().clone())));
            sleep.as_mut().poll(&mut std::task::Context::from_waker(&waker))
        })
        .await
    };
    queue.block_on(sleeps).unwrap().unwrap();
    queue.block_on(queue.sleep(SECOND)).unwrap().unwrap();
    drop((task, queue));
    sim.check();
}

// Friendly: a `main` that returns an error shows it by `Debug`.
#[test]
fn an_error_that_main_returns_says_what_happened() {
    let (_sim, queue) = with(1, |_| {});
    let late =
        queue.block_on(queue.timeout(SECOND, std::future::pending::<()>())).unwrap().unwrap_err();
    queue.close(SECOND).unwrap();
    let closed = queue.block_on(std::future::pending::<()>()).unwrap_err();
    for error in [late, closed] {
        assert!(format!("{error:?}").contains(&error.to_string()), "{error:?}");
    }
}

/// Wakes another.
struct Passes(std::task::Waker);

impl std::task::Wake for Passes {
    fn wake(self: Arc<Self>) {
        self.0.wake_by_ref();
    }
}

// Q1, pitfall 4: closing waits as long as it was told, though every wait is early or late.
#[test]
fn closing_waits_as_long_as_it_was_told() {
    for seed in 0..50 {
        let (sim, queue) = with(seed, |faults| (faults.early, faults.late) = (0.5, 0.2));
        let device = queue.register(sim.device()).unwrap();
        sim.plan(&device, Plan::pends().on_cancel(OnCancel::AbortsAfter(990 * MILLISECOND)));
        let waiting = sim.control(&queue, &device, vec![0; 8]);
        queue.close(SECOND).unwrap();
        drop((waiting, device, queue));
        sim.check();
    }
}

// Q11, pitfall 15: posting fails for want of memory. The caller is told, and can try again.
#[test]
fn a_notice_that_can_not_be_posted_says_so_and_the_next_one_arrives() {
    let (sim, queue) = with(1, |faults| faults.post_fails = 1.0);
    let device = queue.register(sim.device()).unwrap();
    sim.plan(&device, Plan::pends());
    let waiting = sim.control(&queue, &device, vec![0; 8]);
    let notifier = queue.notifier();
    let errors = (0..4).filter(|_| notifier.notify().is_err()).count();
    assert_eq!(errors, 3, "the first three fail");
    // It waits for ever, and is woken: otherwise this would be a deadlock.
    queue.poll(&mut Vec::new(), None).unwrap();
    drop((waiting, device, queue));
    sim.check();
}

// Q11, pitfall 15: a waker cannot fail, so it tries again until there is memory.
#[test]
fn a_task_woken_by_another_thread_goes_on_though_posting_fails_at_first() {
    let (sim, queue) = with(1, |faults| faults.post_fails = 1.0);
    sim.expect_other_threads(10 * SECOND);
    let (send, receive) = std::sync::mpsc::channel::<std::task::Waker>();
    let mut polled = false;
    let thread = std::thread::spawn(move || receive.recv().unwrap().wake());
    queue
        .block_on(std::future::poll_fn(|context| {
            if std::mem::replace(&mut polled, true) {
                return std::task::Poll::Ready(());
            }
            send.send(context.waker().clone()).unwrap();
            std::task::Poll::Pending
        }))
        .unwrap();
    thread.join().unwrap();
    drop(queue);
    sim.check();
}

// Q11, scenario 52: wake-ups coalesce into one packet, and none is lost.
#[test]
fn many_notices_are_one_packet() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    sim.plan(&device, Plan::pends());
    let waiting = sim.control(&queue, &device, vec![0; 8]);
    let notifier = queue.notifier();
    for _ in 0..3 {
        (0..1_000).for_each(|_| notifier.notify().unwrap());
        queue.poll(&mut Vec::new(), None).unwrap();
        // Only one: a second poll would return at once.
        assert_eq!(wait_for(&sim, &queue, MILLISECOND), MILLISECOND);
    }
    drop((waiting, device, queue));
    sim.check();
}

// Q12, scenarios 46 and 48: timers on the same clock, beside operations, early and late waits.
#[test]
fn a_sleep_is_never_early_and_an_operation_that_takes_too_long_is_cancelled() {
    for seed in 0..50 {
        let (sim, queue) = with(seed, |faults| (faults.early, faults.late) = (0.5, 0.1));
        let device = queue.register(sim.device()).unwrap();
        let before = sim.now();
        queue.block_on(queue.sleep(Duration::from_micros(10_900))).unwrap().unwrap();
        assert!(sim.now() - before >= Duration::from_micros(10_900));
        sim.plan(&device, Plan::pends());
        let before = sim.now();
        let asked = sim.control(&queue, &device, vec![0; 8]);
        let elapsed = queue.block_on(timeout(SECOND, asked)).unwrap();
        assert!(elapsed.is_err() && sim.now() - before >= SECOND);
        queue.run().unwrap();
        assert_eq!((sim.owned(), poll(&queue)), (0, 0));
        drop((device, queue));
        sim.check();
    }
}
