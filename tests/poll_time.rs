#![cfg(windows)]
//! How long a poll waits: never less than it was told to, and never by accident for ever.

mod support;

use std::future::pending;
use std::io::Write;
use std::os::windows::io::{AsHandle, AsRawHandle};
use std::ptr::without_provenance_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use ioqueue::{Continuation, Queue, Task, wait_with};
use support::{Buffer, call_recv, depth_of_port, ends, poll_once, recv, tcp_pair};
use windows_sys::Win32::System::IO::PostQueuedCompletionStatus;

/// A queue for which something is waited for that never comes.
fn waiting_queue() -> (Queue, Task<()>) {
    let queue = Queue::new().unwrap();
    let task = queue.spawn(pending::<()>());
    let mut ready = Vec::new();
    queue.poll(&mut ready, None).unwrap();
    ready.pop().unwrap().resume();
    (queue, task)
}

/// Posts a packet that is not the queue's.
fn post(port: &impl AsHandle) {
    let port = port.as_handle().as_raw_handle();
    let posted = unsafe { PostQueuedCompletionStatus(port, 0, 1, without_provenance_mut(0x1000)) };
    assert_ne!(posted, 0);
}

// Q3, scenario 46, pitfalls 25 and 39: also where it is not a whole number of the system's units.
#[test]
fn a_poll_never_ends_early() {
    ends(|| {
        let (queue, _guard) = waiting_queue();
        for micros in [1, 100, 100, 100, 999, 1000, 1001, 3100, 10_900, 50_000] {
            let timeout = Duration::from_micros(micros);
            let start = Instant::now();
            queue.poll(&mut Vec::new(), Some(timeout)).unwrap();
            assert!(start.elapsed() >= timeout, "{timeout:?}: {:?}", start.elapsed());
        }
    });
}

// Q3, pitfall 4: what ends the system's wait early does not end the poll.
#[test]
fn a_poll_waits_again_after_what_is_not_its_own() {
    ends(|| {
        let (queue, _guard) = waiting_queue();
        let timeout = Duration::from_millis(30);
        let start = Instant::now();
        post(&queue);
        queue.poll(&mut Vec::new(), Some(timeout)).unwrap();
        assert!(start.elapsed() >= timeout);
        assert_eq!(queue.foreign_packets(), 1);
        // And no longer because of it: a wait that began from the start again would never end.
        let done = Arc::new(AtomicBool::new(false));
        let stop = done.clone();
        let port = queue.as_handle().try_clone_to_owned().unwrap();
        let thread = thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                post(&port);
            }
        });
        queue.poll(&mut Vec::new(), Some(timeout)).unwrap();
        done.store(true, Ordering::SeqCst);
        thread.join().unwrap();
    });
}

// Q3, scenario 47, pitfall 39: none is zero, none has wrapped around to something short, and all can
// be woken from.
#[test]
fn a_huge_timeout_waits() {
    ends(|| {
        let (queue, _guard) = waiting_queue();
        let millis = |count: u64| Some(Duration::from_millis(count));
        let huge = [
            None,
            Some(Duration::MAX),
            Some(Duration::from_secs(u64::MAX)),
            Some(Duration::from_nanos(u64::MAX)),
            millis(u64::MAX),
            millis(u64::from(u32::MAX) - 1),
            millis(u64::from(u32::MAX)),
            millis(u64::from(u32::MAX) + 1),
            millis(1 << 32 | 1),
            millis(i32::MAX as u64 + 1),
        ];
        for timeout in huge {
            let notified = Arc::new(AtomicBool::new(false));
            let (notifier, notifies) = (queue.notifier(), notified.clone());
            let port = queue.as_handle().try_clone_to_owned().unwrap();
            let thread = thread::spawn(move || {
                // The poll takes this one off. A wait that is none is over by then.
                post(&port);
                let start = Instant::now();
                while depth_of_port(&port) > 0 && start.elapsed() < Duration::from_secs(10) {
                    thread::yield_now();
                }
                notifies.store(true, Ordering::SeqCst);
                notifier.notify().unwrap();
            });
            queue.poll(&mut Vec::new(), timeout).unwrap();
            assert!(notified.load(Ordering::SeqCst), "{timeout:?} did not wait");
            thread.join().unwrap();
        }
    });
}

// Q3, scenario 51
#[test]
fn a_zero_timeout_asks_once_and_does_not_block() {
    ends(|| {
        let (queue, _guard) = waiting_queue();
        for _ in 0..1000 {
            queue.poll(&mut Vec::new(), Some(Duration::ZERO)).unwrap();
        }
        const POSTED: usize = 3000;
        for _ in 0..POSTED {
            post(&queue);
        }
        queue.poll(&mut Vec::new(), Some(Duration::ZERO)).unwrap();
        let left = depth_of_port(&queue);
        assert!((1..POSTED).contains(&left), "one call takes one batch: {left} left");
    });
}

// Q3: what is ready ends the wait, and what is ready already is not waited for.
#[test]
fn what_becomes_ready_ends_the_poll() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let long = Some(Duration::from_secs(3600));
        let overlapped = server.overlapped(Buffer::new([0; 4])).unwrap();
        let pointer = overlapped.as_ptr(&server).unwrap();
        let raw = ioqueue::AsAnyHandle::as_any_handle(&server).raw();
        call_recv(raw, overlapped.state_ptr(), pointer);
        let parked = wait_with(1, &server, overlapped).unwrap();
        let thread = thread::spawn(move || {
            client.write_all(b"x").unwrap();
            client
        });
        let mut ready = Vec::new();
        while ready.is_empty() {
            queue.poll(&mut ready, long).unwrap();
        }
        assert!(matches!(ready[..], [Continuation::Key(1)]));
        drop(parked);
        ready.clear();
        let _guard = queue.spawn(pending::<()>());
        queue.poll(&mut ready, long).unwrap();
        assert!(matches!(ready[..], [Continuation::Task(_)]));
        drop(thread.join().unwrap());
    });
}

// Q3, scenario 48: with the time up and packets queued, both come.
#[test]
fn what_is_queued_when_the_time_is_up_comes_with_it() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        for timeout in [Duration::ZERO, Duration::from_nanos(1)] {
            let mut receive = recv(&server, [0; 1]);
            assert!(poll_once(&mut receive).is_pending());
            let mut sleep = queue.sleep(Duration::from_millis(1));
            assert!(poll_once(&mut sleep).is_pending());
            client.write_all(b"x").unwrap();
            let start = Instant::now();
            while depth_of_port(&queue) == 0 || start.elapsed() < Duration::from_millis(2) {
                thread::yield_now();
            }
            let mut ready = Vec::new();
            queue.poll(&mut ready, Some(timeout)).unwrap();
            assert_eq!(ready.len(), 2, "{ready:?}");
            assert!(matches!(poll_once(&mut receive), Poll::Ready((Ok(1), _))));
            assert!(poll_once(&mut sleep).is_ready());
        }
    });
}

// Q12, scenario 50, pitfall 25
#[test]
fn a_sleep_of_ten_point_nine_milliseconds_is_at_most_two_polls() {
    ends(|| {
        let queue = Queue::new().unwrap();
        for _ in 0..10 {
            let mut sleep = queue.sleep(Duration::from_micros(10_900));
            let mut ready = Vec::new();
            let mut polls = 0;
            while poll_once(&mut sleep).is_pending() {
                queue.poll(&mut ready, None).unwrap();
                polls += 1;
            }
            assert!(polls <= 2, "{polls} polls");
        }
    });
}
