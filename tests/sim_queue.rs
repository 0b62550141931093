#![cfg(feature = "sim")]
//! What a queue promises, on the simulated Windows: most of it is tested on the real one too, in more
//! orders of calls. Here it is told wherever the tests run, and time costs nothing.

#[path = "sim/support.rs"]
mod support;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use ioqueue::error::{Closed, is_cancelled};
use ioqueue::iocp::{Cancelled, Outcome, Overlapped, Wait, wait, wait_with};
use ioqueue::sim::{End, Faults, OnCancel, Plan, Sim};
use ioqueue::{AsAnyHandle, Continuation, Elapsed, Misuse, PendingState, PersistFailure, Queue};
use support::{MILLISECOND, SECOND, control, poll, quiet};
use windows_sys::Win32::Foundation::{ERROR_DISK_FULL, STATUS_DISK_FULL, STATUS_PIPE_BROKEN};

/// Counts how often it is woken.
#[derive(Default)]
struct Count(AtomicU32);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Count {
    fn new() -> (Arc<Self>, Waker) {
        let count = Arc::<Self>::default();
        (Arc::clone(&count), count.into())
    }

    fn get(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

fn poll_with<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

/// Polls without waiting and resumes what came.
fn resume_all(queue: &Queue) {
    let mut ready = Vec::new();
    queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
    for continuation in ready {
        assert_eq!(continuation.resume(), None);
    }
}

/// An operation on a device that goes on until it is told to end.
fn asked(sim: &Sim, queue: &Queue, device: &impl AsAnyHandle) -> Wait<Vec<u8>> {
    sim.plan(device, Plan::pends());
    sim.control(queue, device, vec![0; 8])
}

// -- waiting --------------------------------------------------------------------------------------

// Q13, pitfall 45: who polled last is woken, and nobody else.
#[test]
fn a_wait_wakes_who_polled_last() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    let mut waiting = asked(&sim, &queue, &device);
    let ((first, first_waker), (last, last_waker)) = (Count::new(), Count::new());
    assert!(poll_with(&mut waiting, &first_waker).is_pending());
    assert!(poll_with(&mut waiting, &last_waker).is_pending());
    sim.complete(&device, End::success());
    resume_all(&queue);
    assert_eq!((first.get(), last.get()), (0, 1));
    assert!(poll_with(&mut waiting, &last_waker).is_ready());
    drop((device, queue));
    sim.check();
}

#[test]
fn a_sleep_wakes_who_polled_last() {
    let (sim, queue) = quiet();
    let mut sleeping = queue.sleep(SECOND);
    let ((first, first_waker), (last, last_waker)) = (Count::new(), Count::new());
    assert!(poll_with(&mut sleeping, &first_waker).is_pending());
    assert!(poll_with(&mut sleeping, &last_waker).is_pending());
    sim.advance(SECOND);
    resume_all(&queue);
    assert_eq!((first.get(), last.get()), (0, 1));
    assert!(poll_with(&mut sleeping, &last_waker).is_ready());
}

// Q5, Q11: a future that another thread wakes.
#[test]
fn block_on_goes_on_when_another_thread_wakes_its_future() {
    let (sim, queue) = quiet();
    sim.expect_other_threads(10 * SECOND);
    let (send, receive) = std::sync::mpsc::channel::<Waker>();
    let thread = std::thread::spawn(move || {
        let waker = receive.recv().unwrap();
        // The queue waits by then, or will find out.
        std::thread::yield_now();
        waker.wake();
    });
    let mut polled = false;
    let woken = poll_fn(|context| {
        if std::mem::replace(&mut polled, true) {
            return Poll::Ready(());
        }
        send.send(context.waker().clone()).unwrap();
        Poll::Pending
    });
    queue.block_on(woken).unwrap();
    thread.join().unwrap();
    drop(queue);
    sim.check();
}

// Q12
#[test]
fn an_interval_keeps_its_rate_however_late_it_is_noticed() {
    let (sim, queue) = quiet();
    let start = sim.now();
    let mut ticks = queue.interval(10 * MILLISECOND);
    let mut tick = || {
        queue.block_on(ticks.tick()).unwrap().unwrap();
        sim.now() - start
    };
    assert_eq!(tick(), 10 * MILLISECOND);
    sim.advance(14 * MILLISECOND);
    assert_eq!(tick(), 24 * MILLISECOND);
    assert_eq!(tick(), 30 * MILLISECOND);
    // Ticks that were missed altogether are skipped.
    sim.advance(35 * MILLISECOND);
    assert_eq!(tick(), 65 * MILLISECOND);
    assert_eq!(tick(), 70 * MILLISECOND);
}

// Q12: a future that is done as the time is up has won.
#[test]
fn a_future_that_is_done_in_time_wins_the_tie() {
    let (_sim, queue) = quiet();
    let both = queue.timeout(SECOND, queue.sleep(SECOND));
    assert_eq!(queue.block_on(both).unwrap().unwrap(), Ok(()));
    let late = queue.timeout(SECOND, queue.sleep(SECOND + MILLISECOND));
    assert!(Elapsed::is(&queue.block_on(late).unwrap().unwrap_err()));
}

// Q12, pitfall 10: the time is up, and the operation is the kernel's until it says so.
#[test]
fn a_time_limit_cancels_and_waits_for_how_that_ended() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    let start = sim.now();
    sim.plan(&device, Plan::pends().on_cancel(OnCancel::AbortsAfter(SECOND)));
    let limited = sim.control(&queue, &device, vec![0; 8]).timeout(MILLISECOND);
    let Cancelled::Cancelled(end) = queue.block_on(limited).unwrap() else {
        panic!("it did not end by itself")
    };
    assert!(is_cancelled(&end.result().unwrap_err()));
    assert_eq!(sim.now() - start, SECOND + MILLISECOND);
    drop((device, queue));
    sim.check();
}

// -- polling --------------------------------------------------------------------------------------

// Q3: with a task in hand, poll does not wait for anything else.
#[test]
fn a_poll_with_a_task_in_hand_does_not_wait() {
    let (sim, queue) = quiet();
    let _sleeping = queue.sleep(3_600 * SECOND);
    let start = sim.now();
    queue.spawn(async {}).detach();
    let mut ready = Vec::new();
    queue.poll(&mut ready, None).unwrap();
    assert!(matches!(&ready[..], [Continuation::Task(_)]), "{ready:?}");
    assert_eq!(sim.now(), start);
}

// Q3: with nothing to wait for, poll and run return at once.
#[test]
fn an_idle_queue_waits_for_nothing() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    let start = sim.now();
    for timeout in [None, Some(3_600 * SECOND), Some(Duration::ZERO)] {
        queue.poll(&mut Vec::new(), timeout).unwrap();
    }
    queue.run().unwrap();
    assert_eq!(sim.now(), start);
    drop((device, queue));
    sim.check();
}

// W7: the hook is told when a packet comes, not when the wait is over.
#[test]
fn the_hook_is_told_of_a_foreign_packet_as_it_comes() {
    let (sim, queue) = quiet();
    let told = Rc::new(Cell::new(0));
    let count = Rc::clone(&told);
    queue.on_foreign_packet(move |packet| count.set(packet.key));
    let _sleeping = queue.sleep(3_600 * SECOND);
    let start = sim.now();
    sim.post(&queue, 4711, 0, 0);
    queue.poll(&mut Vec::new(), None).unwrap();
    assert_eq!((told.get(), sim.now()), (4711, start));
}

// W7: a hook may set another, which is told of the rest.
#[test]
fn a_hook_may_set_another() {
    let (sim, queue) = quiet();
    let told = Rc::new(RefCell::new(Vec::new()));
    let (first, weak) = (Rc::clone(&told), queue.clone());
    queue.on_foreign_packet(move |packet| {
        first.borrow_mut().push(("first", packet.key));
        let second = Rc::clone(&first);
        weak.on_foreign_packet(move |packet| second.borrow_mut().push(("second", packet.key)));
    });
    (1..=3).for_each(|key| sim.post(&queue, key, 0, 0));
    poll(&queue);
    assert_eq!(*told.borrow(), [("first", 1), ("second", 2), ("second", 3)]);
}

// W1: what has ended and is not taken is dropped with its Overlapped, once.
#[test]
fn the_state_of_what_ended_at_once_is_dropped_with_it() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    let marker = support::Marker::new();
    sim.plan(&device, Plan::at_once());
    let (call, beside) = (control(&sim), marker.clone());
    let mut operation = device.overlapped((vec![0_u8; 8], beside)).unwrap();
    // SAFETY: one call, with what was given, and what it returned.
    let started = unsafe {
        operation.start(&device, |handle, state, overlapped| {
            call(handle, &raw mut (*state).0, overlapped)
        })
    };
    started.unwrap();
    assert_eq!(marker.copies(), 1);
    drop(operation);
    assert_eq!(marker.copies(), 0);
    drop((device, queue));
    sim.check();
}

// Q13: what nobody wants is dropped as it ends, not when the wait is over.
#[test]
fn the_state_of_a_dropped_wait_is_dropped_as_the_operation_ends() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    let marker = support::Marker::new();
    sim.plan(&device, Plan::pends().on_cancel(OnCancel::AbortsAfter(MILLISECOND)));
    let (call, beside) = (control(&sim), marker.clone());
    // SAFETY: one call, with what was given, and what it returned.
    let dropped = unsafe {
        device.submit((vec![0_u8; 8], beside), |handle, state, overlapped| {
            call(handle, &raw mut (*state).0, overlapped)
        })
    };
    let _sleeping = queue.sleep(3_600 * SECOND);
    let start = sim.now();
    drop(dropped);
    assert_eq!(marker.copies(), 1);
    queue.poll(&mut Vec::new(), None).unwrap();
    assert_eq!((marker.copies(), sim.now() - start), (0, MILLISECOND));
    drop((device, queue));
    sim.check();
}

// Q4, pitfall 12: a task that is always ready does not keep the kernel waiting.
#[test]
fn a_task_that_is_always_ready_lets_operations_end() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    let waiting = asked(&sim, &queue, &device);
    let is_over = Rc::new(Cell::new(false));
    let busy = Rc::clone(&is_over);
    let mut turns = 0;
    queue
        .spawn(poll_fn(move |context| {
            turns += 1;
            assert!(turns < 10_000, "nobody looks at the port");
            context.waker().wake_by_ref();
            if busy.get() { Poll::Ready(()) } else { Poll::Pending }
        }))
        .detach();
    let other = Rc::clone(&is_over);
    queue
        .spawn(async move {
            waiting.await.0.unwrap();
            other.set(true);
        })
        .detach();
    sim.complete(&device, End::success());
    queue.run().unwrap();
    assert!(is_over.get());
    drop((device, queue));
    sim.check();
}

// Q4, pitfall 40: what a panic left is resumed by whoever asks next.
#[test]
fn what_a_panic_left_is_resumed_by_the_next_poll() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    let done = Rc::new(Cell::new(0));
    let parked: Vec<_> = (0..3)
        .map(|number| {
            sim.plan(&device, Plan::pends());
            let mut operation = device.overlapped(vec![0; 8]).unwrap();
            // SAFETY: one call, with what was given, and what it returned.
            unsafe { operation.start(&device, control(&sim)) }.unwrap();
            let done = Rc::clone(&done);
            let call = Continuation::call(move || {
                assert!(number != 1, "the second");
                done.set(done.get() + 1);
            });
            wait_with(call, &device, operation).unwrap()
        })
        .collect();
    while sim.complete(&device, End::success()) {}
    let panicked = catch_unwind(AssertUnwindSafe(|| queue.run()));
    assert!(panicked.is_err() && queue.running());
    assert_eq!(done.get(), 1);
    resume_all(&queue);
    assert_eq!((done.get(), queue.running()), (2, false));
    drop((parked, device, queue));
    sim.check();
}

// Q4: run would wait for the task that calls it, and for the continuation that does.
#[test]
fn run_is_refused_inside_of_what_it_would_wait_for() {
    let (sim, queue) = quiet();
    let refused = Rc::new(Cell::new(0));
    let (inner, count) = (queue.clone(), Rc::clone(&refused));
    let call_run = move || {
        let error = inner.run().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        count.set(count.get() + 1);
    };
    let in_a_task = call_run.clone();
    let task = queue.spawn(async move { in_a_task() });
    // Also where it is not run that resumes the task.
    resume_all(&queue);
    assert!(task.is_finished() && refused.get() == 1);
    let device = queue.register(sim.device()).unwrap();
    sim.plan(&device, Plan::pends_for(MILLISECOND));
    let mut operation = device.overlapped(vec![0; 8]).unwrap();
    // SAFETY: one call, with what was given, and what it returned.
    unsafe { operation.start(&device, control(&sim)) }.unwrap();
    let parked = wait_with(Continuation::call(call_run), &device, operation).unwrap();
    queue.run().unwrap();
    assert_eq!(refused.get(), 2);
    assert!(parked.is_over());
    drop((parked, device, queue));
    sim.check();
}

// Q1: a queue is the thread's current one while it runs, and no longer.
#[test]
fn a_queue_is_the_current_one_while_it_runs_and_no_longer() {
    let (sim, queue) = quiet();
    let _sleeping = queue.sleep(3_600 * SECOND);
    assert!(queue.running() && !ioqueue::running());
    let inside = queue.block_on(async { ioqueue::running() }).unwrap();
    assert!(inside && !ioqueue::running());
    let other = sim.queue().unwrap();
    let nested = queue.block_on(async {
        let nested = other.block_on(async { ioqueue::running() }).unwrap();
        (nested, ioqueue::running())
    });
    assert_eq!(nested.unwrap(), (false, true));
    assert!(!ioqueue::running());
}

// Q1
#[test]
fn a_queue_is_closed_with_its_last_handle_and_not_before() {
    let (sim, queue) = quiet();
    let again = queue.clone();
    drop(queue);
    let device = again.register(sim.device()).unwrap();
    let third = again.clone();
    drop(again);
    let waiting = asked(&sim, &third, &device);
    sim.complete(&device, End::success());
    assert_eq!(third.block_on(waiting).unwrap().0.unwrap(), 8);
    let mut waiting = asked(&sim, &third, &device);
    drop(third);
    let Poll::Ready((result, _)) = poll_with(&mut waiting, Waker::noop()) else {
        panic!("the queue is not closed")
    };
    let error = result.unwrap_err();
    assert!(Closed::is(&error) && is_cancelled(&error));
    sim.check();
}

// Q14
#[test]
fn pending_says_what_became_of_each_operation() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    let slow = || Plan::pends().on_cancel(OnCancel::AbortsAfter(SECOND));
    let start = || {
        sim.plan(&device, slow());
        let mut operation = device.overlapped(vec![0; 8]).unwrap();
        // SAFETY: one call, with what was given, and what it returned.
        unsafe { operation.start(&device, control(&sim)) }.unwrap();
        operation
    };
    let started = start();
    let waiting = wait(&device, start()).unwrap();
    let cancelling = wait(&device, start()).unwrap().cancel();
    drop(wait(&device, start()).unwrap());
    let line = |state| {
        let all = queue.pending();
        let mut found = all.iter().filter(|pending| pending.state == state);
        let line = found.next().unwrap().caller.line();
        assert!(found.next().is_none() && all.len() == 4, "{all:?}");
        line
    };
    let states = [PendingState::Started, PendingState::InFlight, PendingState::Cancelling];
    let lines = states.map(line);
    assert!(lines[0] < lines[1] && lines[1] < lines[2] && lines[2] < line(PendingState::Abandoned));
    sim.advance(3 * MILLISECOND);
    poll(&queue);
    assert!(queue.pending().iter().all(|pending| pending.handle == device.id()));
    sim.advance(7 * MILLISECOND);
    assert!(queue.pending().iter().all(|pending| pending.age == 10 * MILLISECOND));
    drop((started, waiting, cancelling, device, queue));
    sim.check();
}

// Pitfalls 3 and 8: calls whose answer is not what it seems.
#[test]
fn a_call_may_be_refused_with_a_warning_or_succeed_with_an_error() {
    const CONNECTED: u32 = 535;
    const MESSAGE_SIZE: u32 = 10_040;
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    // The simulation leaves the status word alone in some of these calls.
    for _ in 0..10 {
        sim.plan(&device, Plan::fails(CONNECTED));
        let connected = sim.control(&queue, &device, vec![0; 8]);
        assert!(queue.pending().is_empty() && !queue.running());
        assert_eq!(queue.block_on(connected).unwrap().0.unwrap(), 0);
        sim.plan(&device, Plan::fails(MESSAGE_SIZE));
        let refused = sim.control(&queue, &device, vec![0; 8]);
        let (result, buffer) = queue.block_on(refused).unwrap();
        assert_eq!(result.unwrap_err().raw_os_error(), Some(MESSAGE_SIZE as i32));
        assert_eq!(buffer, [0; 8]);
        assert!(queue.pending().is_empty() && !queue.running());
    }
    drop((device, queue));
    sim.check();
}

// W3, pitfall 33: what had ended when it was parked is handed out by the next poll.
#[test]
fn what_had_ended_when_it_was_parked_is_handed_out() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    sim.plan(&device, Plan::at_once());
    let mut operation = device.overlapped(vec![0; 8]).unwrap();
    // SAFETY: one call, with what was given, and what it returned.
    unsafe { operation.start(&device, control(&sim)) }.unwrap();
    let parked = wait_with(4711_usize, &device, operation).unwrap();
    assert!(parked.is_over() && queue.running());
    let mut ready = Vec::new();
    queue.poll(&mut ready, None).unwrap();
    assert!(matches!(ready[..], [Continuation::Key(4711)]), "{ready:?}");
    assert_eq!(parked.take().unwrap().0.unwrap(), 8);
    assert!(!queue.running());
    drop((device, queue));
    sim.check();
}

// W8: a broken pipe is the end for a read, and an error for a write.
#[test]
fn a_pipe_that_breaks_under_a_write_is_no_end_of_file() {
    let (sim, queue) = quiet();
    let (ours, theirs) = sim.pipe();
    let ours = queue.register(ours).unwrap();
    drop(theirs);
    let end = queue.block_on(sim.write(&queue, &ours, 0, vec![0; 8]).exact()).unwrap();
    assert!(!end.status.is_end_of_file() && end.read_result().is_err(), "{end:?}");
    let end = queue.block_on(sim.read(&queue, &ours, 0, vec![0; 8]).exact()).unwrap();
    assert!(end.status.is_end_of_file(), "{end:?}");
    assert_eq!(end.read_result().unwrap(), 0);
    drop((ours, queue));
    sim.check();
}

// -- closing --------------------------------------------------------------------------------------

// W3: a parked key is for whoever polls, also after the close.
#[test]
fn keys_come_back_from_a_closed_queue() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    let mut parked = Vec::new();
    for key in [7_usize, 8, 9] {
        sim.plan(&device, if key == 9 { Plan::never_ends() } else { Plan::pends() });
        let mut operation = device.overlapped(vec![0; 8]).unwrap();
        // SAFETY: one call, with what was given, and what it returned.
        unsafe { operation.start(&device, control(&sim)) }.unwrap();
        parked.push(wait_with(key, &device, operation).unwrap());
    }
    let start = sim.now();
    assert_eq!(queue.close(SECOND).unwrap_err().operations, 1);
    assert_eq!(sim.now() - start, SECOND);
    // A host is told that there is something to hand out (Q15).
    assert_eq!(queue.poll_delay(), Some(Duration::ZERO));
    let mut ready = Vec::new();
    queue.poll(&mut ready, None).unwrap();
    assert_eq!(queue.poll_delay(), None);
    let mut keys: Vec<_> = ready.into_iter().filter_map(Continuation::resume).collect();
    keys.sort_unstable();
    assert_eq!(keys, [7, 8, 9]);
    // Closing again says the same.
    assert_eq!(queue.close(SECOND).unwrap_err().operations, 1);
    drop((parked, device, queue));
    sim.check_leaked(1);
}

// Q1: who sleeps learns that the queue is closed.
#[test]
fn a_sleeper_is_woken_when_its_queue_is_closed() {
    let (_sim, queue) = quiet();
    let (woken, waker) = Count::new();
    let mut sleeping = queue.sleep(3_600 * SECOND);
    assert!(poll_with(&mut sleeping, &waker).is_pending());
    queue.close(SECOND).unwrap();
    assert_eq!(woken.get(), 1);
    assert_eq!(poll_with(&mut sleeping, &waker), Poll::Ready(Err(Closed)));
}

// Q1: what ended without a packet is found when the queue is closed, and given back then.
#[test]
fn closing_drops_the_state_of_what_had_ended_unheard() {
    let (sim, queue) = quiet();
    let device = sim.device();
    let marker = support::Marker::new();
    let operation = Overlapped::on(&queue, (vec![0_u8; 8], marker.clone())).unwrap();
    let address = operation.as_ptr_unregistered(&device).unwrap();
    sim.plan(&device, Plan::pends().on_cancel(OnCancel::AbortsAfter(MILLISECOND)));
    // SAFETY: one call, with what was given.
    let outcome = unsafe {
        control(&sim)(device.as_any_handle().raw(), &raw mut (*operation.state_ptr()).0, address)
    };
    assert_eq!(outcome, Outcome::PENDING);
    drop(operation);
    assert_eq!((marker.copies(), sim.owned()), (1, 1));
    queue.close(SECOND).unwrap();
    assert_eq!((marker.copies(), sim.owned()), (0, 0));
    drop((device, queue));
    sim.check();
}

// Q6
#[test]
fn a_closed_queue_takes_nothing_new() {
    let (sim, queue) = quiet();
    let device = sim.device();
    queue.close(SECOND).unwrap();
    let refused = queue.persist(&device).unwrap_err();
    assert_eq!(refused.reason(), PersistFailure::Closed);
    assert!(Closed::is(&refused.into()));
    let refused = Overlapped::on(&queue, 7).unwrap_err();
    assert!(Closed::is(refused.error()) && refused.into_value() == 7);
    let (result, buffer) =
        sim.queue().unwrap().block_on(sim.control(&queue, &device, vec![0; 8])).unwrap();
    assert!(result.is_err() && buffer == [0; 8] && sim.started() == 0);
    assert!(!queue.running());
}

// Q1: how an operation ended by itself while its queue was being closed is told as it was.
#[test]
fn an_operation_that_fails_during_the_close_says_how() {
    let (sim, queue) = quiet();
    let file = queue.register(sim.file("")).unwrap();
    let status = ioqueue::error::NtStatus(STATUS_DISK_FULL);
    let plan = Plan::pends_for(MILLISECOND).status(status).on_cancel(OnCancel::Finishes);
    sim.plan(&file, plan);
    let mut writing = sim.write(&queue, &file, 0, vec![1; 8]);
    queue.close(SECOND).unwrap();
    let Poll::Ready((result, _)) = poll_with(&mut writing, Waker::noop()) else {
        panic!("it did not end")
    };
    assert_eq!(result.unwrap_err().raw_os_error(), Some(ERROR_DISK_FULL as i32));
    drop((file, queue));
    sim.check();
}

// -- handles --------------------------------------------------------------------------------------

// Q9: only what was not being cancelled learns that its handle was closed.
#[test]
fn a_wait_that_was_being_cancelled_is_not_blamed_for_the_close() {
    let (sim, queue) = quiet();
    let (mut ours, _theirs) = sim.pipe();
    queue.persist(&ours).unwrap();
    let waiting = sim.read(&queue, &ours, 0, vec![0; 8]);
    sim.plan(&ours, Plan::pends().on_cancel(OnCancel::AbortsAfter(SECOND)));
    let cancelling = sim.read(&queue, &ours, 0, vec![0; 8]).cancel();
    ours.close();
    let error = queue.block_on(waiting).unwrap().0.unwrap_err();
    assert!(matches!(Misuse::of(&error), Some(Misuse::PrematureClose { .. })), "{error}");
    let error = queue.block_on(cancelling).unwrap().into_completion().result().unwrap_err();
    assert_eq!(Misuse::of(&error), None);
    drop(queue);
    sim.check();
}

// Q9: a read whose pipe was closed under it is no end of file, whatever the kernel calls it.
#[test]
fn a_read_of_a_closed_handle_is_never_an_end_of_file() {
    let (sim, queue) = quiet();
    let mut statuses = BTreeSet::new();
    for _ in 0..20 {
        let (mut ours, _theirs) = sim.pipe();
        queue.persist(&ours).unwrap();
        let waiting = sim.read(&queue, &ours, 0, vec![0; 8]);
        ours.close();
        let end = queue.block_on(waiting.exact()).unwrap();
        statuses.insert(end.status.0);
        let error = end.read_result().unwrap_err();
        assert!(matches!(Misuse::of(&error), Some(Misuse::PrematureClose { .. })), "{error}");
    }
    assert!(statuses.contains(&STATUS_PIPE_BROKEN), "{statuses:x?}");
    drop(queue);
    sim.check();
}

// Q9, pitfall 29: the value came back, and another queue of the thread has it now.
#[test]
fn a_wait_learns_of_the_close_though_another_queue_has_the_value() {
    let (sim, queue) = quiet();
    let other = sim.queue().unwrap();
    let (mut ours, _theirs) = sim.pipe();
    queue.persist(&ours).unwrap();
    let waiting = sim.read(&queue, &ours, 0, vec![0; 8]);
    ours.close();
    let newer = sim.device();
    assert_eq!(newer.id(), ours.id());
    other.persist(&newer).unwrap();
    let error = queue.block_on(waiting).unwrap().0.unwrap_err();
    assert!(matches!(Misuse::of(&error), Some(Misuse::PrematureClose { .. })), "{error}");
    other.unregister(&newer).unwrap();
    drop((newer, queue, other));
    sim.check();
}

// Q8, pitfall 23: whichever of a handle's operations is left, the handle stays bound for its packet.
#[test]
fn a_handle_stays_bound_whichever_operation_is_left() {
    let mut faults = Faults::none();
    faults.unbind_loses = 1.0;
    for slow in [0, 1, 2] {
        let sim = Sim::with_faults(1, faults.clone());
        let queue = sim.queue().unwrap();
        let device = sim.device();
        queue.persist(&device).unwrap();
        let waits: Vec<_> = (0..3)
            .map(|index| {
                let later = OnCancel::AbortsAfter(SECOND);
                let cancel = if index == slow { later } else { OnCancel::Aborts };
                sim.plan(&device, Plan::pends().on_cancel(cancel));
                sim.control(&queue, &device, vec![0; 8])
            })
            .collect();
        queue.unregister(&device).unwrap();
        assert_eq!(sim.in_flight(&device), 1);
        for wait in waits {
            assert!(is_cancelled(&queue.block_on(wait).unwrap().0.unwrap_err()));
        }
        drop((device, queue));
        sim.check();
    }
}

// W2, Q8: what is older than its handle's registration ends with it all the same.
#[test]
fn an_operation_older_than_its_registration_is_cancelled_with_it() {
    let (sim, queue) = quiet();
    let device = sim.device();
    let operation = Overlapped::on(&queue, vec![0_u8; 8]).unwrap();
    let address = operation.as_ptr_unregistered(&device).unwrap();
    sim.plan(&device, Plan::pends());
    let outcome = control(&sim)(device.as_any_handle().raw(), operation.state_ptr(), address);
    assert_eq!(outcome, Outcome::PENDING);
    queue.persist(&device).unwrap();
    let waiting = wait(&device, operation).unwrap();
    queue.unregister(&device).unwrap();
    assert_eq!(sim.in_flight(&device), 0);
    assert!(is_cancelled(&queue.block_on(waiting).unwrap().0.unwrap_err()));
    drop((device, queue));
    sim.check();
}

// Q9: nor does the next operation that gets the memory of one that learned it.
#[test]
fn the_next_operation_in_a_place_is_not_blamed_for_an_earlier_close() {
    let (sim, queue) = quiet();
    let (mut ours, _theirs) = sim.pipe();
    let file = queue.register(sim.file("")).unwrap();
    queue.persist(&ours).unwrap();
    let waiting = sim.read(&queue, &ours, 0, vec![0; 8]);
    ours.close();
    let error = queue.block_on(waiting).unwrap().0.unwrap_err();
    assert!(matches!(Misuse::of(&error), Some(Misuse::PrematureClose { .. })), "{error}");
    for _ in 0..20 {
        let (result, _) = queue.block_on(sim.read(&queue, &file, 0, vec![0; 8])).unwrap();
        assert_eq!(Misuse::of(&result.unwrap_err()), None, "it is the end of the file");
    }
    drop((file, queue));
    sim.check();
}

// Q9: one OVERLAPPED is for one operation on one handle.
#[test]
fn an_overlapped_is_for_one_handle() {
    let (sim, queue) = quiet();
    let (one, other) = (sim.device(), sim.device());
    queue.persist(&one).unwrap();
    queue.persist(&other).unwrap();
    let operation = Overlapped::on(&queue, vec![0; 8]).unwrap();
    let address = operation.as_ptr(&one).unwrap();
    assert_eq!(operation.as_ptr(&one).unwrap(), address);
    let refused = operation.as_ptr(&other).unwrap_err();
    assert!(matches!(refused, Misuse::AlreadyWaiting { .. }), "{refused}");
    // Nor where neither was known when the address was given out.
    let (early, third) = (Overlapped::on(&queue, ()).unwrap(), sim.device());
    early.as_ptr_unregistered(&third).unwrap();
    let refused = early.as_ptr(&other).unwrap_err();
    assert!(matches!(refused, Misuse::AlreadyWaiting { .. }), "{refused}");
    // SAFETY: the address was given to no call.
    unsafe { early.into_state() };
    let refused = wait(&other, operation).unwrap_err();
    let misuse = refused.misuse();
    assert!(matches!(misuse, Some(Misuse::NotStarted { .. })), "{misuse:?}");
    let refused = wait_with(7_usize, &other, refused.into_value()).unwrap_err();
    let misuse = refused.misuse();
    assert!(matches!(misuse, Some(Misuse::NotStarted { .. })), "{misuse:?}");
    let (_, operation) = refused.into_value();
    // SAFETY: the address was given to no call.
    assert_eq!(unsafe { operation.into_state() }, [0; 8]);
    queue.unregister(&one).unwrap();
    queue.unregister(&other).unwrap();
    drop(queue);
    sim.check();
}

// Q8, Q9: the registration of another queue is not looked for among one's own.
#[test]
fn a_registration_is_ended_by_its_own_queue_only() {
    let (sim, queue) = quiet();
    let other = sim.queue().unwrap();
    // The first of each queue.
    let (ours, theirs) =
        (queue.register(sim.device()).unwrap(), other.register(sim.device()).unwrap());
    let refused = queue.unregister(&theirs).unwrap_err();
    assert!(matches!(refused, Misuse::WrongQueue { .. }), "{refused}");
    for (queue, device) in [(&queue, &ours), (&other, &theirs)] {
        let waiting = asked(&sim, queue, device);
        sim.complete(device, End::success());
        assert_eq!(queue.block_on(waiting).unwrap().0.unwrap(), 8);
    }
    drop((ours, theirs, queue, other));
    sim.check();
}

// Q10: operations on one handle may end in any order, and those that are left are still known.
#[test]
fn whichever_operations_have_ended_the_others_are_still_known() {
    const COUNT: usize = 5;
    for mask in 0..1 << COUNT {
        let (sim, queue) = quiet();
        let device = queue.register(sim.device()).unwrap();
        let mut waits: Vec<_> = (0..COUNT).map(|_| Some(asked(&sim, &queue, &device))).collect();
        // Those that are dropped leave the list of the handle's operations, from its middle too.
        for round in [0, 1] {
            for (index, wait) in waits.iter_mut().enumerate() {
                if mask >> index & 1 == 1 && index % 2 == round {
                    drop(wait.take());
                    poll(&queue);
                }
            }
        }
        let left = waits.iter().flatten().count();
        assert_eq!((sim.in_flight(&device), queue.pending().len()), (left, left));
        let handle = device.into_inner();
        assert_eq!(sim.in_flight(&handle), 0, "one was not cancelled");
        for wait in waits.into_iter().flatten() {
            assert!(is_cancelled(&queue.block_on(wait).unwrap().0.unwrap_err()));
        }
        drop((handle, queue));
        sim.check();
    }
}

// -- memory ---------------------------------------------------------------------------------------

// W1, pitfall 22: an operation that says nothing of a place is at the start of the file.
#[test]
fn an_operation_has_no_place_of_an_earlier_one() {
    let (sim, queue) = quiet();
    let file = queue.register(sim.file("0123456789")).unwrap();
    let read = |place: Option<u64>| {
        let operation = file.overlapped(vec![0; 1]).unwrap();
        let mut operation = match place {
            Some(place) => operation.at(place),
            None => operation,
        };
        let sim = sim.clone();
        // SAFETY: one call, with what was given, and what it returned.
        let started = unsafe {
            operation.start(&file, move |handle, buffer, overlapped| {
                let buffer = &mut *buffer;
                sim.read_file(handle, buffer.as_mut_ptr(), buffer.len(), overlapped)
            })
        };
        started.unwrap();
        let (count, byte) = queue.block_on(wait(&file, operation).unwrap()).unwrap();
        assert_eq!(count.unwrap(), 1);
        // Its packet, so that its memory is the next one's.
        poll(&queue);
        byte[0]
    };
    for place in [5, 7, 9] {
        assert_eq!(read(Some(place)), b'0' + place as u8);
        assert_eq!(read(None), b'0');
    }
    drop((file, queue));
    sim.check();
}

/// States of one size, side by side, keep their contents; and the queue's own memory is not touched.
fn keeps_states<const SIZE: usize>() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    let mut waits = Vec::new();
    for number in 0..40_u8 {
        sim.plan(&device, Plan::pends());
        let call = control(&sim);
        // SAFETY: one call, with what was given, and what it returned.
        waits.push(unsafe {
            device.submit((vec![0_u8; 8], [number; SIZE]), |handle, state, overlapped| {
                call(handle, &raw mut (*state).0, overlapped)
            })
        });
    }
    assert_eq!((queue.pending().len(), sim.owned()), (40, 40));
    sim.check_memory();
    while sim.complete(&device, End::data("in turn")) {}
    for (number, wait) in waits.into_iter().enumerate() {
        let (count, (buffer, beside)) = queue.block_on(wait).unwrap();
        assert_eq!((count.unwrap(), &buffer[..7]), (7, &b"in turn"[..]), "{SIZE}");
        assert!(beside == [number as u8; SIZE], "{SIZE}");
    }
    drop((device, queue));
    sim.check();
}

// W1: states of all sizes around those of the slots.
#[test]
fn states_of_any_size_stand_apart() {
    keeps_states::<0>();
    // With the vector, which is three words.
    keeps_states::<{ 64 - 24 }>();
    keeps_states::<{ 72 - 24 }>();
    keeps_states::<{ 104 - 24 }>();
    keeps_states::<{ 128 - 24 }>();
    keeps_states::<{ 256 - 24 }>();
    keeps_states::<{ 264 - 24 }>();
    keeps_states::<{ 1024 - 24 }>();
    keeps_states::<{ 1032 - 24 }>();
    keeps_states::<{ 4096 - 24 }>();
    keeps_states::<{ 4104 - 24 }>();
    keeps_states::<20_000>();
}

// W1: a state stands where its type may stand.
#[test]
fn states_are_aligned() {
    fn check<T: Default + 'static>(queue: &Queue) {
        let all: Vec<_> =
            (0..40).map(|_| Overlapped::on(queue, T::default()).ok().unwrap()).collect();
        for operation in &all {
            assert_eq!(operation.state_ptr().addr() % align_of::<T>(), 0, "{}", align_of::<T>());
        }
    }
    #[derive(Default)]
    #[repr(align(16))]
    struct Sixteen([u8; 3]);
    #[derive(Default)]
    #[repr(align(32))]
    struct ThirtyTwo([u8; 3]);
    #[derive(Default)]
    #[repr(align(128))]
    struct Cacheline([u8; 3]);
    #[derive(Default)]
    #[repr(align(4096))]
    struct Page([u8; 3]);
    let (_sim, queue) = quiet();
    check::<u8>(&queue);
    check::<u64>(&queue);
    check::<Sixteen>(&queue);
    check::<ThirtyTwo>(&queue);
    check::<Cacheline>(&queue);
    check::<Page>(&queue);
    let _ = (Sixteen([0; 3]).0, ThirtyTwo([0; 3]).0, Cacheline([0; 3]).0, Page([0; 3]).0);
}
