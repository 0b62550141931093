#![cfg(windows)]
//! The end of a queue, seen by what still hangs on it (Q1, pitfalls 56 and 57).

mod support;

use std::fmt::Write;
use std::future::{Future, pending, poll_fn};
use std::net::TcpStream;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};
use std::thread;
use std::time::Duration;

use ioqueue::{Continuation, Overlapped, Queue, wait_with};
use support::{Buffer, call_recv, tcp_pair};

/// Counts its drops.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

// What keeps the queue's thread number is made before the queue, so it outlives it.
#[test]
fn the_end_of_a_thread_drops_its_tasks_futures() {
    let drops = Arc::new(AtomicUsize::new(0));
    let counted = [Counted(drops.clone()), Counted(drops.clone())];
    let thread = thread::spawn(move || {
        for counted in counted {
            let task = async move {
                pending::<()>().await;
                drop(counted);
            };
            ioqueue::spawn(task).unwrap().detach();
        }
    });
    thread.join().unwrap();
    assert_eq!(drops.load(Ordering::SeqCst), 2);
}

#[test]
fn a_task_that_another_thread_wakes_during_the_close_is_dropped() {
    let drops = Arc::new(AtomicUsize::new(0));
    let (send, receive) = mpsc::channel::<Waker>();
    let waking = thread::spawn(move || receive.into_iter().for_each(Waker::wake));
    for round in 1..=300 {
        let queue = Queue::new().unwrap();
        let (counted, send) = (Counted(drops.clone()), send.clone());
        let task = async move {
            poll_fn(|context| {
                send.send(context.waker().clone()).unwrap();
                Poll::<()>::Pending
            })
            .await;
            drop(counted);
        };
        queue.spawn(task).detach();
        let mut ready = Vec::new();
        queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
        for task in ready.drain(..) {
            task.resume();
        }
        queue.close(Duration::from_secs(5)).unwrap();
        assert_eq!(drops.load(Ordering::SeqCst), round);
        assert!(!queue.running());
    }
    drop(send);
    waking.join().unwrap();
}

// W3: the loop that parked it is told.
#[test]
fn a_parked_key_comes_back_after_the_close() {
    let queue = Queue::new().unwrap();
    let (_client, server): (TcpStream, TcpStream) = tcp_pair();
    let server = queue.register(server).unwrap();
    let mut operation = Overlapped::on(&queue, Buffer::new([0; 8])).unwrap();
    unsafe { operation.start(&server, call_recv).unwrap() };
    let ticket = wait_with(7, &server, operation).unwrap();
    queue.close(Duration::from_secs(5)).unwrap();
    let mut ready = Vec::new();
    queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
    assert!(matches!(ready[..], [Continuation::Key(7)]), "{ready:?}");
    let (result, _) = ticket.take().unwrap();
    assert!(ioqueue::error::is_cancelled(&result.unwrap_err()));
}

#[test]
fn a_task_in_the_hosts_hands_is_dropped_by_the_close() {
    let queue = Queue::new().unwrap();
    let drops = Arc::new(AtomicUsize::new(0));
    let (counted, sleep) = (Counted(drops.clone()), queue.sleep(Duration::from_secs(3600)));
    let task = async move {
        pending::<()>().await;
        drop((counted, sleep));
    };
    queue.spawn(task).detach();
    let mut ready = Vec::new();
    queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
    queue.close(Duration::ZERO).unwrap();
    assert_eq!(drops.load(Ordering::SeqCst), 1);
    for task in ready.drain(..) {
        task.resume();
    }
    assert_eq!(drops.load(Ordering::SeqCst), 1);
    assert!(!queue.running());
}

/// A sink that uses the queue whose counts are printed into it.
struct Sink<'a>(&'a Queue, &'a TcpStream);

impl Write for Sink<'_> {
    fn write_str(&mut self, _: &str) -> std::fmt::Result {
        self.0.persist(self.1).map_err(|_| std::fmt::Error)
    }
}

// Pitfall 21: printing is user code too.
#[test]
fn a_queue_may_be_used_while_it_is_printed() {
    let queue = Queue::new().unwrap();
    let (_client, server) = tcp_pair();
    write!(Sink(&queue, &server), "{queue:?}").unwrap();
    queue.unregister(&server).unwrap();
}

/// A waker whose clone closes the queue. The queue is thread-bound, the waker must not be: so it
/// goes by way of a closure that only this thread calls.
fn waker_whose_clone_calls(call: fn()) -> Waker {
    static CALL: Mutex<Option<fn()>> = Mutex::new(None);
    static TABLE: RawWakerVTable = RawWakerVTable::new(
        |data| {
            let call = CALL.lock().unwrap().take();
            if let Some(call) = call {
                call();
            }
            RawWaker::new(data, &TABLE)
        },
        |_| {},
        |_| {},
        |_| {},
    );
    *CALL.lock().unwrap() = Some(call);
    // SAFETY: the table's functions do nothing with the data.
    unsafe { Waker::from_raw(RawWaker::new(std::ptr::null(), &TABLE)) }
}

#[test]
fn a_sleep_ends_also_when_cloning_its_waker_closes_the_queue() {
    let mut sleep = pin!(ioqueue::sleep(Duration::from_secs(3600)).unwrap());
    let waker =
        waker_whose_clone_calls(|| Queue::current().unwrap().close(Duration::ZERO).unwrap());
    let mut context = Context::from_waker(&waker);
    assert!(matches!(sleep.as_mut().poll(&mut context), Poll::Ready(Err(_))));
}

// What a queue does on its way out of a panic must not be a second one, which ends the process.
#[test]
fn a_queue_that_goes_down_with_a_panic_keeps_further_panics_to_itself() {
    let outcome = std::panic::catch_unwind(|| {
        let queue = Queue::new().unwrap();
        let (_client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let mut tickets = Vec::new();
        for _ in 0..2 {
            let mut operation = Overlapped::on(&queue, Buffer::new([0; 8])).unwrap();
            unsafe { operation.start(&server, call_recv).unwrap() };
            let parked = Continuation::call(|| panic!("a parked closure"));
            tickets.push(wait_with(parked, &server, operation).unwrap());
        }
        drop(server);
        queue.run().unwrap();
    });
    assert_eq!(support::panic_message(&*outcome.unwrap_err()), "a parked closure");
}
