#![cfg(windows)]
//! The queue itself: polling, running, tasks, closing, and the end of its thread.

mod support;

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn, ready};
use std::io::{self, Write};
use std::os::windows::io::{AsHandle, AsRawHandle, BorrowedHandle};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::task::{Poll, Waker};
use std::time::Duration;

use ioqueue::error::Closed;
use ioqueue::{
    Continuation, Misuse, Overlapped, PersistFailure, Queue, Registered, Task, wait, wait_with,
};
use support::{
    Buffer, OnDrop, call_recv, depth_of_port, ends, on_wine, panic_message, poll_once, poll_until,
    poll_with, recv, recv_beside, tcp_pair, tracked, waker,
};

const SECOND: Duration = Duration::from_secs(1);
/// For what should not have to wait: a wait this long is a hang, and `ends` says so.
const LONG: Duration = Duration::from_secs(3600);

fn same(one: &Queue, other: &Queue) -> bool {
    one.as_handle().as_raw_handle() == other.as_handle().as_raw_handle()
}

/// A list of what happened, shared with continuations.
#[derive(Clone, Default)]
struct Log(Rc<RefCell<Vec<u32>>>);

impl Log {
    fn push(&self, what: u32) {
        self.0.borrow_mut().push(what);
    }
    fn take(&self) -> Vec<u32> {
        self.0.take()
    }
}

// ---------------------------------------------------------------------------------------------
// Q1: which queue

// Q1
#[test]
fn the_threads_own_queue_is_made_once_and_the_free_functions_use_it() {
    ends(|| {
        assert!(!ioqueue::running());
        let own = Queue::current().unwrap();
        assert!(same(&own, &Queue::current().unwrap()));
        let (mut client, server) = tcp_pair();
        ioqueue::persist(&server).unwrap();
        assert!(matches!(
            Queue::new().unwrap().persist(&server).unwrap_err().reason(),
            PersistFailure::WrongQueue
        ));
        let receive = recv(&server, [0; 4]);
        assert!(own.running() && ioqueue::running());
        client.write_all(b"own").unwrap();
        assert_eq!(ioqueue::block_on(receive).unwrap().0.unwrap(), 3);
        let log = Log::default();
        let spawned = log.clone();
        ioqueue::spawn(async move { spawned.push(1) }).unwrap().detach();
        let mut list = Vec::new();
        ioqueue::poll(&mut list, None).unwrap();
        assert!(matches!(list[..], [Continuation::Task(_)]));
        list.pop().unwrap().resume();
        assert_eq!(log.take(), [1]);
        ioqueue::notifier().unwrap().notify().unwrap();
        ioqueue::run().unwrap();
        ioqueue::unregister(&server).unwrap();
        assert!(!ioqueue::running());
    });
}

// Q1
#[test]
fn each_thread_has_a_queue_of_its_own() {
    let own = Queue::current().unwrap().as_handle().as_raw_handle().addr();
    assert_ne!(own, ends(|| Queue::current().unwrap().as_handle().as_raw_handle().addr()));
}

// Q1
#[test]
fn several_queues_of_a_thread_do_not_mix() {
    ends(|| {
        let (one, other) = (Queue::new().unwrap(), Queue::new().unwrap());
        let (mut client, server) = tcp_pair();
        let server = one.register(server).unwrap();
        let receive = recv(&server, [0; 4]);
        assert!(one.running() && !other.running() && !ioqueue::running());
        other.run().unwrap();
        client.write_all(b"one").unwrap();
        assert_eq!(one.block_on(receive).unwrap().0.unwrap(), 3);
    });
}

// Q1
#[test]
fn the_queue_that_runs_is_the_current_one_and_stops_being_it_also_by_a_panic() {
    ends(|| {
        let (outer, inner) = (Queue::new().unwrap(), Queue::new().unwrap());
        let current = || Queue::current().unwrap();
        outer
            .block_on(async {
                assert!(same(&current(), &outer));
                inner.block_on(async { assert!(same(&current(), &inner)) }).unwrap();
                assert!(same(&current(), &outer));
                let unwound = catch_unwind(AssertUnwindSafe(|| {
                    inner.block_on(async { panic!("inside") }).unwrap();
                }));
                assert_eq!(panic_message(&*unwound.unwrap_err()), "inside");
                assert!(same(&current(), &outer));
            })
            .unwrap();
        assert!(!same(&current(), &outer));
    });
}

// Q1
#[test]
fn a_queue_is_closed_with_its_last_handle_and_not_before() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (_client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let receive = recv(&server, [0; 4]);
        drop(queue.clone());
        let clone = queue.clone();
        drop(queue);
        assert!(clone.running());
        let mut receive = receive;
        assert!(poll_once(&mut receive).is_pending());
        drop(clone);
        let Poll::Ready((result, _)) = poll_once(&mut receive) else { panic!("never ends") };
        assert!(Closed::is(&result.unwrap_err()));
    });
}

// ---------------------------------------------------------------------------------------------
// Q2: running

// Q2, pitfall 37
#[test]
fn running_counts_operations_tasks_and_continuations_not_yet_resumed() {
    ends(|| {
        let queue = Queue::new().unwrap();
        assert!(!queue.running());
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let receive = recv(&server, [0; 4]);
        assert!(queue.running(), "an operation in flight");
        client.write_all(b"x").unwrap();
        let _ = queue.block_on(receive).unwrap();
        assert!(!queue.running());
        let task = queue.spawn(pending::<()>());
        assert!(queue.running(), "a task");
        drop(task);
        queue.run().unwrap();
        assert!(!queue.running());
        client.write_all(b"x").unwrap();
        let overlapped = server.overlapped(Buffer::new([0; 4])).unwrap();
        call_recv(server.id_raw(), overlapped.state_ptr(), overlapped.as_ptr(&server).unwrap());
        let parked = wait_with(1, &server, overlapped).unwrap();
        assert!(queue.running(), "a continuation that poll has not handed out");
        let mut list = Vec::new();
        queue.poll(&mut list, None).unwrap();
        assert!(matches!(list[..], [Continuation::Key(1)]));
        assert!(!queue.running());
        assert_eq!(parked.take().unwrap().0.unwrap(), 1);
    });
}

/// The value that the calls take.
trait IdRaw {
    fn id_raw(&self) -> ioqueue::RawHandle;
}

impl<H: ioqueue::AsAnyHandle> IdRaw for H {
    fn id_raw(&self) -> ioqueue::RawHandle {
        self.as_any_handle().raw()
    }
}

// ---------------------------------------------------------------------------------------------
// Q3: poll

// Q3
#[test]
fn an_empty_queue_returns_at_once() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let mut list = Vec::new();
        queue.poll(&mut list, None).unwrap();
        queue.poll(&mut list, Some(Duration::MAX)).unwrap();
        assert!(list.is_empty());
        queue.run().unwrap();
    });
}

// Q3
#[test]
fn poll_appends_to_what_is_there_and_resumes_nothing() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let log = Log::default();
        for number in 1..=3 {
            let log = log.clone();
            queue.spawn(async move { log.push(number) }).detach();
        }
        use Continuation::{Key, Task};
        let mut list = vec![Key(9)];
        queue.poll(&mut list, None).unwrap();
        assert!(matches!(list[..], [Key(9), Task(_), Task(_), Task(_)]), "{list:?}");
        assert_eq!(log.take(), []);
        assert!(queue.running());
        for continuation in list.drain(..) {
            continuation.resume();
        }
        assert_eq!(log.take(), [1, 2, 3]);
        assert!(!queue.running());
    });
}

// Q3, pitfall 21
#[test]
fn a_panic_in_a_dropped_state_loses_no_continuation_of_poll() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let ((_a, one), (mut client, other)) = (tcp_pair(), tcp_pair());
        let (one, other) = (queue.register(one).unwrap(), queue.register(other).unwrap());
        let log = Log::default();
        let dropped = log.clone();
        let bomb = OnDrop(move || {
            dropped.push(1);
            panic!("in the drop")
        });
        let doomed = recv_beside(&one, [0; 4], bomb);
        let overlapped = other.overlapped(Buffer::new([0; 4])).unwrap();
        let pointer = overlapped.as_ptr(&other).unwrap();
        call_recv(other.id_raw(), overlapped.state_ptr(), pointer);
        let parked = wait_with(7, &other, overlapped).unwrap();
        client.write_all(b"data").unwrap();
        // Where the cancel ends the operation at once, its state goes with the wait.
        let unwound = catch_unwind(AssertUnwindSafe(|| drop(doomed)));
        let mut list = Vec::new();
        let start = std::time::Instant::now();
        while log.0.borrow().is_empty() || !parked.is_over() {
            assert!(start.elapsed() < 10 * SECOND);
            let _ = catch_unwind(AssertUnwindSafe(|| queue.poll(&mut list, Some(SECOND))));
        }
        drop(unwound);
        assert!(matches!(list[..], [Continuation::Key(7)]), "{list:?}");
        assert_eq!(parked.take().unwrap().0.unwrap(), 4);
        assert!(!queue.running());
    });
}

// Q3: the host's list may be polled into again by a continuation it resumes.
#[test]
fn a_continuation_may_poll_its_own_queue() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let log = Log::default();
        for number in 1..=3 {
            let (queue, log) = (queue.clone(), log.clone());
            let task = queue.clone().spawn(async move {
                let mut inner = Vec::new();
                queue.poll(&mut inner, Some(Duration::ZERO)).unwrap();
                log.push(number);
                for continuation in inner {
                    continuation.resume();
                }
            });
            task.detach();
        }
        queue.run().unwrap();
        let mut order = log.take();
        order.sort_unstable();
        assert_eq!(order, [1, 2, 3]);
    });
}

// ---------------------------------------------------------------------------------------------
// Q4: run

// Q4, pitfall 40
#[test]
fn what_became_ready_first_is_resumed_first() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let log = Log::default();
        for number in 0..1000 {
            let log = log.clone();
            queue
                .spawn(async move {
                    log.push(number);
                    yield_now().await;
                    log.push(1000 + number);
                })
                .detach();
        }
        queue.run().unwrap();
        assert_eq!(log.take(), (0..2000).collect::<Vec<_>>());
    });
}

async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

// Q4, pitfall 40, scenario 44
#[test]
fn a_panic_in_a_continuation_leaves_the_others_in_the_queue() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let log = Log::default();
        for number in 0..5 {
            let log = log.clone();
            queue
                .spawn(async move {
                    assert!(number % 2 == 0, "number {number}");
                    log.push(number);
                })
                .detach();
        }
        for panicked in [1, 3] {
            let unwound = catch_unwind(AssertUnwindSafe(|| queue.run())).unwrap_err();
            assert_eq!(panic_message(&*unwound), format!("number {panicked}"));
            assert!(queue.running());
        }
        queue.run().unwrap();
        assert_eq!(log.take(), [0, 2, 4]);
        assert!(!queue.running());
    });
}

/// What is kept for a parked operation.
type Kept = (std::net::TcpStream, ioqueue::iocp::Parked<Buffer>, Registered<std::net::TcpStream>);

/// Parks a continuation for an operation, whose packet is on the port then.
fn park(queue: &Queue, continuation: Continuation) -> Kept {
    let (mut client, server) = tcp_pair();
    let server = queue.register(server).unwrap();
    let overlapped = server.overlapped(Buffer::new([0; 4])).unwrap();
    let pointer = overlapped.as_ptr(&server).unwrap();
    call_recv(server.id_raw(), overlapped.state_ptr(), pointer);
    let parked = wait_with(continuation, &server, overlapped).unwrap();
    let before = depth_of_port(queue);
    client.write_all(b"x").unwrap();
    while depth_of_port(queue) == before {
        std::thread::yield_now();
    }
    (client, parked, server)
}

// Q4, Q3: what a panic left in `run` also comes out of `poll`, and before anything newer.
#[test]
fn poll_hands_out_what_a_panic_left_in_run() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let log = Log::default();
        let mut kept = Vec::new();
        for number in 0..4 {
            let log = log.clone();
            let closure = move || {
                log.push(number);
                assert_ne!(number, 0, "first");
            };
            kept.push(park(&queue, Continuation::call(closure)));
        }
        catch_unwind(AssertUnwindSafe(|| queue.run())).unwrap_err();
        assert_eq!(depth_of_port(&queue), 0, "one batch");
        let last = log.clone();
        queue.spawn(async move { last.push(4) }).detach();
        assert!(queue.running());
        let mut list = Vec::new();
        queue.poll(&mut list, Some(LONG)).unwrap();
        for continuation in list.drain(..) {
            continuation.resume();
        }
        assert_eq!(log.take(), [0, 1, 2, 3, 4]);
    });
}

// Q4: also a waker and a closure that panic.
#[test]
fn a_panic_in_a_waker_or_a_closure_leaves_the_others_in_the_queue() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let log = Log::default();
        let mut kept = Vec::new();
        for number in 0..4 {
            let log = log.clone();
            let resume = move || {
                log.push(number);
                assert!(number % 2 != 0, "number {number}");
            };
            let continuation =
                if number < 2 { waker(resume).into() } else { Continuation::call(resume) };
            kept.push(park(&queue, continuation));
        }
        for panicked in [0, 2] {
            let unwound = catch_unwind(AssertUnwindSafe(|| queue.run())).unwrap_err();
            assert_eq!(panic_message(&*unwound), format!("number {panicked}"));
        }
        queue.run().unwrap();
        assert_eq!(log.take(), [0, 1, 2, 3]);
        for (_, ticket, _) in kept {
            assert_eq!(ticket.take().unwrap().0.unwrap(), 1);
        }
    });
}

// Q4: it would wait for itself.
#[test]
fn run_is_refused_inside_what_it_resumes() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let refused = Rc::new(Cell::new(None));
        let (told, inner) = (refused.clone(), queue.clone());
        queue.spawn(async move { told.set(Some(inner.run().unwrap_err().kind())) }).detach();
        queue.run().unwrap();
        assert_eq!(refused.get(), Some(io::ErrorKind::InvalidInput));
    });
}

// Q4: a task is unfinished while it runs, whoever resumed it.
#[test]
fn run_is_refused_inside_a_task_that_block_on_or_the_host_resumed() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let spawn = || {
            let queue = queue.clone();
            let inner = queue.clone();
            queue.spawn(async move { inner.run().unwrap_err().kind() })
        };
        let task = spawn();
        assert_eq!(queue.block_on(task).unwrap(), io::ErrorKind::InvalidInput);
        let mut task = spawn();
        poll_until(&queue, || task.is_finished());
        assert_eq!(poll_once(&mut task), Poll::Ready(io::ErrorKind::InvalidInput));
    });
}

// Q4: another queue's run, and one from the future that block_on drives, wait for nobody above.
#[test]
fn run_may_be_called_where_it_does_not_wait_for_its_caller() {
    ends(|| {
        let (queue, other) = (Queue::new().unwrap(), Queue::new().unwrap());
        let log = Log::default();
        let one = log.clone();
        other.spawn(async move { one.push(1) }).detach();
        let inside = other.clone();
        queue.spawn(async move { inside.run().unwrap() }).detach();
        queue.run().unwrap();
        assert_eq!(log.take(), [1]);
        let two = log.clone();
        queue.spawn(async move { two.push(2) }).detach();
        queue.block_on(async { queue.run().unwrap() }).unwrap();
        assert_eq!(log.take(), [2]);
    });
}

// ---------------------------------------------------------------------------------------------
// Q5: spawn, block_on

// Q5, Q13
#[test]
fn dropping_a_task_cancels_what_it_waits_for() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (_client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let (beside, drops) = tracked();
        let task = queue.spawn(async move {
            let receive = recv_beside(&server, [0; 4], beside);
            let _ = receive.await;
        });
        poll_until(&queue, || !queue.pending().is_empty());
        assert_eq!(drops.count(), 0);
        drop(task);
        queue.run().unwrap();
        assert_eq!(drops.count(), 1);
        assert!(queue.pending().is_empty());
    });
}

// Q5
#[test]
fn a_detached_or_forgotten_task_goes_on() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let log = Log::default();
        for number in 0..2 {
            let log = log.clone();
            let task = queue.spawn(async move {
                yield_now().await;
                log.push(number);
            });
            if number == 0 { task.detach() } else { std::mem::forget(task) }
        }
        queue.run().unwrap();
        assert_eq!(log.take(), [0, 1]);
    });
}

// Q5
#[test]
fn a_cancelled_task_gives_its_output_if_it_was_done() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (done, never) = (queue.spawn(ready(5)), queue.spawn(pending::<i32>()));
        poll_until(&queue, || done.is_finished());
        assert!(!never.is_finished());
        assert_eq!(queue.block_on(done.cancel()).unwrap(), Some(5));
        assert_eq!(queue.block_on(never.cancel()).unwrap(), None);
        assert!(!queue.running());
    });
}

// Q5, scenario 44
#[test]
fn who_awaits_a_task_that_panicked_panics_too() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let task = queue.spawn(async { panic!("in the task") });
        let unwound = catch_unwind(AssertUnwindSafe(|| queue.run())).unwrap_err();
        assert_eq!(panic_message(&*unwound), "in the task");
        catch_unwind(AssertUnwindSafe(|| queue.block_on(task))).unwrap_err();
        // Nothing else is harmed.
        assert_eq!(queue.block_on(queue.spawn(ready(1))).unwrap(), 1);
    });
}

// Q5: nothing of the queue's is waited for, so `running` is false all the time.
#[test]
fn block_on_waits_for_what_another_thread_wakes() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (sender, receiver) = channel();
        let mut answer = None;
        let mut asked = false;
        let thread = std::thread::spawn(move || {
            let waker: Waker = receiver.recv().unwrap();
            waker.wake();
        });
        queue
            .block_on(poll_fn(|context| {
                if std::mem::replace(&mut asked, true) {
                    answer = Some(1);
                    return Poll::Ready(());
                }
                sender.send(context.waker().clone()).unwrap();
                Poll::Pending
            }))
            .unwrap();
        assert_eq!(answer, Some(1));
        thread.join().unwrap();
    });
}

// Q5
#[test]
fn a_task_woken_by_another_thread_goes_on() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (sender, receiver) = channel();
        let thread = std::thread::spawn(move || {
            for waker in receiver {
                let waker: Waker = waker;
                waker.wake();
            }
        });
        let mut left = 100;
        let task = queue.spawn(poll_fn(move |context| {
            if left == 0 {
                return Poll::Ready("done");
            }
            left -= 1;
            sender.send(context.waker().clone()).unwrap();
            Poll::Pending
        }));
        assert_eq!(queue.block_on(task).unwrap(), "done");
        thread.join().unwrap();
    });
}

// Q5
#[test]
fn block_on_inside_a_task_drives_the_others() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let inner = queue.clone();
        let task = queue.spawn(async move {
            let other = inner.spawn(async move {
                client.write_all(b"hi").unwrap();
                client
            });
            let received = inner.block_on(recv(&server, [0; 4])).unwrap().0.unwrap();
            drop(inner.block_on(other).unwrap());
            received
        });
        assert_eq!(queue.block_on(task).unwrap(), 2);
    });
}

// ---------------------------------------------------------------------------------------------
// Closing

// Q1
#[test]
fn a_closed_queue_refuses_what_is_new_and_gives_it_back() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let (idle, exposed) = (
            server.overlapped(Buffer::new([1; 4])).unwrap(),
            server.overlapped(Buffer::new([2; 4])).unwrap(),
        );
        exposed.as_ptr(&server).unwrap();
        let notifier = queue.notifier();
        queue.close(SECOND).unwrap();
        queue.close(SECOND).unwrap();
        assert!(!queue.running());

        let other = tcp_pair().0;
        assert_eq!(queue.persist(&other).unwrap_err().reason(), PersistFailure::Closed);
        let refused = queue.register(other).unwrap_err();
        assert!(Closed::is(refused.error()));
        drop(refused.into_value());
        let refused = Overlapped::on(&queue, Buffer::new([3; 4])).unwrap_err();
        assert!(Closed::is(refused.error()));
        assert_eq!(refused.into_value().bytes, [3; 4]);
        assert!(server.overlapped(()).is_err());
        assert!(idle.as_ptr(&server).is_err());
        let refused = wait(&server, exposed).unwrap_err();
        assert!(Closed::is(refused.error()));
        let exposed = refused.into_value();
        // SAFETY: the address was given to no call.
        assert_eq!(unsafe { exposed.into_state() }.bytes, [2; 4]);
        let (result, state) = poll_now(recv(&server, [4; 4]));
        assert!(Closed::is(&result.unwrap_err()));
        assert_eq!(state.bytes, [4; 4]);
        drop(idle);

        let (beside, drops) = tracked();
        let task = queue.spawn(async move { drop(beside) });
        assert_eq!(drops.count(), 1, "its future was dropped");
        catch_unwind(AssertUnwindSafe(|| poll_once(&mut { task }))).unwrap_err();

        notifier.notify().unwrap();
        let mut list = Vec::new();
        queue.poll(&mut list, None).unwrap();
        assert!(list.is_empty());
        queue.run().unwrap();
        assert_eq!(queue.block_on(ready(1)).unwrap(), 1);
        assert!(Closed::is(&queue.block_on(pending::<()>()).unwrap_err()));

        // A registration only closes its handle now.
        drop(server);
        assert_eq!(io::Read::read(&mut client, &mut [0; 1]).unwrap_or(0), 0);
    });
}

fn poll_now<F: Future + Unpin>(mut future: F) -> F::Output {
    match poll_once(&mut future) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("not over"),
    }
}

// Q1, pitfall 38: tasks are dropped, what others await says that it is closed.
#[test]
fn closing_drops_the_tasks_and_tells_everybody_who_waits() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let ((_a, one), (_b, two), (_c, three)) = (tcp_pair(), tcp_pair(), tcp_pair());
        let one = queue.register(one).unwrap();
        let two = queue.register(two).unwrap();
        let three = queue.register(three).unwrap();
        let (beside, drops) = tracked();
        let task = queue.spawn(async move {
            let _ = recv_beside(&one, [0; 4], beside).await;
        });
        let log = Log::default();
        let mut receive = recv(&two, [0; 4]);
        let (woken, called) = (log.clone(), log.clone());
        let woken = waker(move || woken.push(1));
        assert!(poll_with(&mut receive, &woken).is_pending());
        let overlapped = three.overlapped(Buffer::new([0; 4])).unwrap();
        let pointer = overlapped.as_ptr(&three).unwrap();
        call_recv(three.id_raw(), overlapped.state_ptr(), pointer);
        let continuation = Continuation::call(move || called.push(2));
        let parked = wait_with(continuation, &three, overlapped).unwrap();
        poll_until(&queue, || queue.pending().len() == 3);

        queue.close(SECOND).unwrap();
        assert_eq!(drops.count(), 1);
        assert!(task.is_finished());
        let mut told = log.take();
        told.sort_unstable();
        assert_eq!(told, [1, 2]);
        assert!(Closed::is(&poll_now(receive).0.unwrap_err()));
        assert!(Closed::is(&parked.take().unwrap().0.unwrap_err()));
    });
}

// Q1
#[test]
fn what_ended_before_the_queue_was_closed_keeps_its_result() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let mut receive = recv(&server, [0; 4]);
        assert!(poll_once(&mut receive).is_pending());
        client.write_all(b"data").unwrap();
        poll_until(&queue, || !queue.running());
        queue.close(SECOND).unwrap();
        let (result, state) = poll_now(receive);
        assert_eq!((result.unwrap(), &state.bytes[..]), (4, &b"data"[..]));
    });
}

// Q1, Q4, pitfall 21
#[test]
fn a_continuation_may_close_the_queue_that_runs_it() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (_client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let log = Log::default();
        let (inner, told) = (queue.clone(), log.clone());
        let (beside, drops) = tracked();
        let other = queue.spawn(async move {
            let _beside = beside;
            pending::<()>().await;
        });
        queue
            .spawn(async move {
                let mut receive = recv(&server, [0; 4]);
                assert!(poll_once(&mut receive).is_pending());
                yield_now().await;
                inner.close(SECOND).unwrap();
                assert!(Closed::is(&receive.await.0.unwrap_err()));
                told.push(1);
                // Nobody resumes it again; its future is dropped.
                yield_now().await;
                told.push(2);
            })
            .detach();
        assert!(Closed::is(&queue.run().unwrap_err()));
        assert_eq!((log.take(), drops.count()), (vec![1], 1));
        assert!(other.is_finished() && !queue.running());
    });
}

// Q1, pitfall 21: the last handle goes in a continuation that the host resumes.
#[test]
fn a_waker_may_drop_the_last_handle_of_its_queue() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let ((mut client, one), (_b, two)) = (tcp_pair(), tcp_pair());
        let (one, two) = (queue.register(one).unwrap(), queue.register(two).unwrap());
        let (mut first, mut second) = (recv(&one, [0; 4]), recv(&two, [0; 4]));
        let holder = Rc::new(RefCell::new(None));
        let held = holder.clone();
        let dropping = waker(move || drop(held.take()));
        assert!(poll_with(&mut first, &dropping).is_pending());
        assert!(poll_once(&mut second).is_pending());
        client.write_all(b"x").unwrap();
        let mut list = Vec::new();
        while list.is_empty() {
            queue.poll(&mut list, None).unwrap();
        }
        holder.replace(Some(queue));
        list.pop().unwrap().resume();
        assert!(holder.borrow().is_none());
        assert_eq!(poll_now(first).0.unwrap(), 1);
        assert!(Closed::is(&poll_now(second).0.unwrap_err()));
    });
}

// Q1, pitfall 21: a panic in user code must not leave waiters that nobody ever tells.
#[test]
fn a_panic_while_closing_still_ends_every_wait() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let log = Log::default();
        let mut waits = Vec::new();
        for number in 0..10 {
            let (client, server) = tcp_pair();
            let server = queue.register(server).unwrap();
            let mut receive = recv(&server, [0; 4]);
            let told = log.clone();
            let woken = waker(move || {
                told.push(number);
                assert!(number > 8, "number {number}");
            });
            assert!(poll_with(&mut receive, &woken).is_pending());
            waits.push((client, server, receive));
        }
        let unwound = catch_unwind(AssertUnwindSafe(|| queue.close(SECOND))).unwrap_err();
        assert!(panic_message(&*unwound).starts_with("number "));
        let mut told = log.take();
        told.sort_unstable();
        assert_eq!(told, (0..10).collect::<Vec<_>>());
        for (_, _, receive) in waits {
            assert!(Closed::is(&poll_now(receive).0.unwrap_err()));
        }
        queue.close(SECOND).unwrap();
    });
}

// Q1: the same for a state whose drop panics.
#[test]
fn a_state_whose_drop_panics_while_closing_still_ends_every_wait() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let ((_a, one), (_b, two)) = (tcp_pair(), tcp_pair());
        let (one, two) = (queue.register(one).unwrap(), queue.register(two).unwrap());
        let task = queue.spawn(async move {
            let mut doomed = recv_beside(&one, [0; 4], OnDrop(|| panic!("in the drop")));
            assert!(poll_once(&mut doomed).is_pending());
            // Forgotten, so that the panic comes from the queue's own memory and not from the drop
            // of a future, where it would end the process.
            std::mem::forget(doomed);
            pending::<()>().await;
        });
        let receive = recv(&two, [0; 4]);
        poll_until(&queue, || queue.pending().len() == 2);
        let _ = catch_unwind(AssertUnwindSafe(|| queue.close(SECOND)));
        assert!(Closed::is(&poll_now(receive).0.unwrap_err()));
        drop(task);
        queue.close(SECOND).unwrap();
        std::mem::forget(queue);
    });
}

// Q1: what the kernel does not give back in time is leaked and counted, never freed.
#[test]
fn what_the_kernel_keeps_is_leaked_and_counted() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (client, server) = tcp_pair();
        queue.persist(&server).unwrap();
        let (beside, drops) = tracked();
        // Too large for the buffers between the two, so it stays in flight.
        let state = (Buffer::new(vec![7; 64 << 20]), beside);
        let mut sending = unsafe {
            queue.submit_at(&server, 0, state, |socket, state, overlapped| {
                support::call_send(socket, &raw mut (*state).0, overlapped)
            })
        };
        let log = Log::default();
        let told = log.clone();
        assert!(poll_with(&mut sending, &waker(move || told.push(1))).is_pending());
        // Closed under it, so that it cannot be cancelled. Wine then waits for the peer.
        drop(server);
        let closed = queue.close(Duration::from_millis(20));
        match closed {
            Err(undrained) => {
                assert_eq!((undrained.operations, drops.count()), (1, 0));
                assert_eq!(log.take(), [1], "who waits is told");
                assert_eq!(queue.close(Duration::ZERO), Err(undrained));
                // Its memory cannot be given back, ever; the wait does not hang either.
                catch_unwind(AssertUnwindSafe(|| poll_once(&mut sending))).unwrap_err();
                drop(sending);
                drop(queue);
                assert_eq!(drops.count(), 0);
            }
            Ok(()) => {
                assert!(!on_wine());
                poll_now(sending).0.unwrap_err();
                assert_eq!(drops.count(), 1);
            }
        }
        drop(client);
    });
}

// Q1: an operation the queue never gets a packet for has ended all the same.
#[test]
fn closing_does_not_wait_for_a_packet_that_cannot_come() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (_client, server) = tcp_pair();
        let overlapped = Overlapped::on(&queue, Buffer::new([0; 4])).unwrap();
        let pointer = overlapped.as_ptr_unregistered(&server).unwrap();
        call_recv(server.id_raw(), overlapped.state_ptr(), pointer);
        std::mem::forget(overlapped);
        queue.close(LONG).unwrap();
    });
}

// ---------------------------------------------------------------------------------------------
// The end of the thread

// Q1, pitfall 57: it neither blocks nor frees what the kernel has.
#[test]
fn a_thread_may_end_with_operations_in_flight() {
    let (waited, forgotten) = (tracked(), tracked());
    let counts = (waited.1, forgotten.1);
    let (client, server) = tcp_pair();
    let (waited, forgotten) = (waited.0, forgotten.0);
    ends(move || {
        let server = Registered::new(server).unwrap();
        std::mem::forget(recv_beside(&server, [0; 4], forgotten));
        let task = ioqueue::spawn(async move {
            let _ = recv_beside(&server, [0; 4], waited).await;
        });
        task.unwrap().detach();
        let mut list = Vec::new();
        ioqueue::poll(&mut list, None).unwrap();
        list.pop().unwrap().resume();
        assert_eq!(Queue::current().unwrap().pending().len(), 2);
    });
    // Freed at most once. Whether the task's was is up to how fast the kernel gave it back.
    assert!(counts.0.count() <= 1 && counts.1.count() <= 1);
    drop(client);
}

// Q1: a local of the thread that is dropped after its queue.
#[test]
fn a_wait_may_be_dropped_after_the_threads_queue() {
    thread_local! {
        static EARLY: RefCell<Option<ioqueue::iocp::Wait<Buffer>>> = const { RefCell::new(None) };
        static LATE: RefCell<Option<ioqueue::iocp::Wait<Buffer>>> = const { RefCell::new(None) };
    }
    for early in [true, false] {
        let (_client, server) = tcp_pair();
        ends(move || {
            // Locals are dropped in the order of their making, or the other way round.
            if early {
                EARLY.with(|_| ());
            }
            let server = Registered::new(server).unwrap();
            let receive = recv(&server, [0; 4]);
            let place = if early { &EARLY } else { &LATE };
            place.set(Some(receive));
            std::mem::forget(server);
        });
    }
}

// Q1: what runs while a thread ends finds no queue, rather than a panic.
#[test]
fn a_thread_that_ends_has_no_queue_any_more() {
    struct Asks(std::sync::mpsc::Sender<bool>);
    impl Drop for Asks {
        fn drop(&mut self) {
            let refused = Queue::current().is_err_and(|error| Closed::is(&error));
            let spawned = ioqueue::spawn(ready(())).is_err();
            let (_client, server) = tcp_pair();
            let (result, state) = poll_now(recv(&server, [1; 4]));
            let told = result.is_err_and(|error| Closed::is(&error)) && state.bytes == [1; 4];
            let gone = refused && spawned && told && !ioqueue::running();
            // Until the queue's turn to be dropped has come, it is an ordinary queue.
            let _ = self.0.send(gone);
        }
    }
    let (sender, receiver) = channel();
    ends(move || {
        // A task's future is dropped by the queue while it goes.
        let asks = Asks(sender);
        let task = ioqueue::spawn(async move {
            let _asks = asks;
            pending::<()>().await;
        });
        task.unwrap().detach();
    });
    assert_eq!(receiver.recv(), Ok(true));
}

// Pitfall 56: the last waker of a task, dropped or woken elsewhere when the queue is gone.
#[test]
fn a_tasks_waker_may_outlive_its_queue_on_another_thread() {
    for wake in [true, false] {
        for own in [true, false] {
            let (sender, receiver) = channel();
            let (beside, drops) = tracked();
            ends(move || {
                let queue = if own { Queue::current() } else { Queue::new() }.unwrap();
                let future = async move {
                    let _beside = beside;
                    poll_fn(|context| {
                        sender.send(context.waker().clone()).unwrap();
                        Poll::<()>::Pending
                    })
                    .await;
                };
                queue.spawn(future).detach();
                let mut list = Vec::new();
                queue.poll(&mut list, None).unwrap();
                list.pop().unwrap().resume();
            });
            assert_eq!(drops.count(), 1, "its future went with the queue");
            let waker: Waker = receiver.recv().unwrap();
            if wake {
                waker.wake();
            } else {
                drop(waker);
            }
        }
    }
}

// Pitfall 56, with the queue forgotten: its task is nobody's any more.
#[test]
fn a_tasks_waker_may_outlive_the_thread_of_a_forgotten_queue() {
    for wake in [true, false] {
        let (sender, receiver) = channel();
        let (beside, drops) = tracked();
        ends(move || {
            let queue = Queue::new().unwrap();
            let future = async move {
                let _beside = beside;
                poll_fn(|context| {
                    sender.send(context.waker().clone()).unwrap();
                    Poll::<()>::Pending
                })
                .await;
            };
            queue.spawn(future).detach();
            let mut list = Vec::new();
            queue.poll(&mut list, None).unwrap();
            list.pop().unwrap().resume();
            std::mem::forget(queue);
        });
        let waker: Waker = receiver.recv().unwrap();
        if wake {
            waker.wake();
        } else {
            drop(waker);
        }
        assert_eq!(drops.count(), 0, "leaked, not dropped on the wrong thread");
    }
}

// Q1, pitfall 56: a task that was in the host's hands when its queue was closed.
#[test]
fn a_task_resumed_after_its_queue_was_closed_is_dropped() {
    ends(|| {
        for resumed in [true, false] {
            let queue = Queue::new().unwrap();
            let (beside, drops) = tracked();
            let future = async move {
                let _beside = beside;
                panic!("resumed");
            };
            queue.spawn(future).detach();
            let mut list = Vec::new();
            queue.poll(&mut list, None).unwrap();
            queue.close(SECOND).unwrap();
            let continuation = list.pop().unwrap();
            if resumed {
                continuation.resume();
            } else {
                drop(continuation);
            }
            assert_eq!(drops.count(), 1);
            assert!(!queue.running());
        }
    });
}

// Q5: a task whose output may be sent can be dropped or awaited by another thread.
#[test]
fn a_task_may_be_dropped_on_another_thread() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (beside, drops) = tracked();
        let here = std::thread::current().id();
        let task = queue.spawn(async move {
            let _where = OnDrop(move || assert_eq!(std::thread::current().id(), here));
            let _beside = beside;
            pending::<()>().await;
        });
        poll_until(&queue, || true);
        std::thread::spawn(move || drop(task)).join().unwrap();
        queue.run().unwrap();
        assert_eq!(drops.count(), 1);
        let task: Task<i32> = queue.spawn(ready(3));
        let thread = std::thread::spawn(move || support_block_on(task));
        while !thread.is_finished() {
            queue.run().unwrap();
        }
        assert_eq!(thread.join().unwrap(), 3);
    });
}

/// A hand-written executor on a thread without a queue.
fn support_block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(std::sync::Arc::new(Unpark(std::thread::current())));
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}

// ---------------------------------------------------------------------------------------------
// Every state of an operation, by every way out

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Idle,
    /// The address was given out and used for nothing.
    Exposed,
    /// In flight, and nobody waits.
    Started,
    InFlight,
    Parked,
    Cancelling,
    /// Ended, and the queue was not asked yet.
    Ended,
    /// Ended and handed out, and the outcome was not taken.
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Drop,
    Forget,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum When {
    QueueLives,
    QueueClosed,
    QueueGone,
    HandleGone,
}

// Q1, Q13, rule 0, scenarios 40, 45: dropped exactly once by every way, forgotten at most once, and
// the process lives.
#[test]
fn an_operation_may_be_dropped_or_forgotten_in_every_state() {
    ends(|| {
        use Stage::*;
        for stage in [Idle, Exposed, Started, InFlight, Parked, Cancelling, Ended, Over] {
            for end in [End::Drop, End::Forget] {
                for when in [When::QueueLives, When::QueueClosed, When::QueueGone, When::HandleGone]
                {
                    let case = format!("{stage:?} {end:?} {when:?}");
                    let dropped = let_go(stage, end, when, &case);
                    let expected = match end {
                        // Never started as far as the queue can know: kept while it lives.
                        End::Drop if stage == Exposed => 0..=1,
                        End::Drop => 1..=1,
                        End::Forget => 0..=1,
                    };
                    assert!(expected.contains(&dropped), "{case}: dropped {dropped} times");
                }
            }
        }
    });
}

fn let_go(stage: Stage, end: End, when: When, case: &str) -> u32 {
    let queue = Queue::new().unwrap();
    let (mut client, server) = tcp_pair();
    let server = queue.register(server).unwrap();
    let (beside, drops) = tracked();
    let overlapped = server.overlapped((Buffer::new([0; 16]), beside)).unwrap();
    let start = || {
        let pointer = overlapped.as_ptr(&server).unwrap();
        // SAFETY: the address of a field, not of a value.
        let field = unsafe { &raw mut (*overlapped.state_ptr()).0 };
        call_recv(server.id_raw(), field, pointer);
    };
    let mut list = Vec::new();
    let held: Box<dyn std::any::Any> = match stage {
        Stage::Idle => Box::new(overlapped),
        Stage::Exposed => {
            overlapped.as_ptr(&server).unwrap();
            Box::new(overlapped)
        }
        Stage::Started => {
            start();
            Box::new(overlapped)
        }
        Stage::Parked => {
            start();
            Box::new(wait_with(5, &server, overlapped).unwrap())
        }
        Stage::InFlight | Stage::Cancelling | Stage::Ended | Stage::Over => {
            start();
            let mut waiting = wait(&server, overlapped).unwrap();
            assert!(poll_once(&mut waiting).is_pending());
            match stage {
                Stage::Cancelling => Box::new(waiting.cancel()),
                Stage::Ended | Stage::Over => {
                    client.write_all(b"data").unwrap();
                    if stage == Stage::Over {
                        queue.poll(&mut list, None).unwrap();
                        assert_eq!(list.len(), 1);
                    }
                    Box::new(waiting)
                }
                _ => Box::new(waiting),
            }
        }
    };
    let mut server = Some(server);
    let mut queue = Some(queue);
    match when {
        When::QueueLives => {}
        When::QueueClosed => queue.as_ref().unwrap().close(LONG).unwrap(),
        When::QueueGone => queue = None,
        When::HandleGone => server = None,
    }
    match end {
        End::Drop => drop(held),
        End::Forget => std::mem::forget(held),
    }
    for continuation in list.drain(..) {
        continuation.resume();
    }
    if let Some(queue) = queue {
        poll_until(&queue, || !queue.running() || end == End::Forget);
        drop(server);
        queue.close(LONG).unwrap_or_else(|undrained| panic!("{case}: {undrained}"));
        drop(queue);
    }
    drops.count()
}

// Q1, scenario 45
#[test]
fn a_queue_a_registration_and_a_task_may_be_forgotten() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (_client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let receive = recv(&server, [0; 4]);
        std::mem::forget(queue.spawn(pending::<()>()));
        std::mem::forget(server);
        std::mem::forget(queue);
        drop(receive);
    });
}

// Pitfall 21: the drop of a state may use its queue, whoever drops it.
#[test]
fn the_drop_of_a_state_may_use_the_queue() {
    ends(|| {
        for way in 0..5 {
            let queue = Queue::new().unwrap();
            let ((mut client, one), (_b, two)) = (tcp_pair(), tcp_pair());
            let (one, two) = (queue.register(one).unwrap(), queue.register(two).unwrap());
            let log = Log::default();
            let neighbour = Cell::new(Some(recv(&two, [0; 4])));
            let weak = Rc::new(RefCell::new(Some(queue.clone())));
            let (inner, told) = (weak.clone(), log.clone());
            let uses = OnDrop(move || {
                told.push(1);
                drop(neighbour.take());
                if let Some(queue) = inner.take() {
                    let mut list = Vec::new();
                    queue.poll(&mut list, Some(Duration::ZERO)).unwrap();
                    queue.spawn(ready(())).detach();
                    let _ = format!("{queue:?}");
                    if way == 4 {
                        queue.close(LONG).unwrap();
                    }
                }
            });
            let mut receive = recv_beside(&one, [0; 4], uses);
            assert!(poll_once(&mut receive).is_pending());
            match way {
                0 => drop(receive),
                1 => {
                    client.write_all(b"x").unwrap();
                    poll_until(&queue, || poll_once(&mut receive).is_ready());
                }
                2 => {
                    client.write_all(b"x").unwrap();
                    let mut list = Vec::new();
                    queue.poll(&mut list, None).unwrap();
                    drop(receive);
                }
                3 => {
                    std::mem::forget(receive);
                    queue.close(SECOND).unwrap();
                    drop(weak.take());
                }
                _ => drop(receive),
            }
            let _ = queue.run();
            assert!(way == 3 || log.take() == [1], "way {way}");
        }
    });
}

// Q1: a handle made of nothing, to see that it is refused and not followed.
#[test]
fn handles_that_are_none_are_refused() {
    ends(|| {
        let queue = Queue::new().unwrap();
        for value in [std::ptr::null_mut(), (-1_isize) as *mut _, 0x7FFF_FFF0 as *mut _] {
            // SAFETY: nothing is done with the value but passing it to calls that check it.
            let handle = unsafe { BorrowedHandle::borrow_raw(value) };
            let refused = queue.persist(&handle).unwrap_err();
            assert_eq!(refused.reason(), PersistFailure::InvalidHandle, "{value:?}");
            let overlapped = Overlapped::on(&queue, ()).unwrap();
            let misuse = overlapped.as_ptr(&handle).unwrap_err();
            assert!(matches!(misuse, Misuse::UnregisteredHandle { .. }));
            queue.unregister(&handle).unwrap();
        }
    });
}
