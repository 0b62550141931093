#![cfg(windows)]
//! A handle value that comes back as something that does no I/O at all.

mod support;

use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::ptr::null;
use std::sync::{Mutex, PoisonError};

use ioqueue::{Misuse, Overlapped, Queue, RawHandle};
use support::{pipe_pair, read};
use windows_sys::Win32::System::Threading::CreateEventW;

/// Held by each test: the value that one of them freed must not go to the other.
static VALUES: Mutex<()> = Mutex::new(());

/// An event whose handle has the value `wanted`, which is free; with the events made on the way.
fn event_at(wanted: RawHandle) -> Vec<OwnedHandle> {
    let mut events = Vec::new();
    for _ in 0..1000 {
        // SAFETY: makes an event; the handle is nobody else's.
        let event = unsafe { OwnedHandle::from_raw_handle(CreateEventW(null(), 1, 0, null())) };
        let found = event.as_raw_handle() == wanted;
        events.push(event);
        if found {
            return events;
        }
    }
    panic!("the value {wanted:?} did not come back");
}

// Q9, pitfalls 29 and 34: an event where the pipe was is not the pipe.
#[test]
fn a_wait_learns_that_its_handle_was_closed_also_when_an_event_has_the_value_now() {
    let _values = VALUES.lock().unwrap_or_else(PoisonError::into_inner);
    let queue = Queue::current().unwrap();
    let (server, _client) = pipe_pair(false);
    queue.persist(&server).unwrap();
    let value = server.as_raw_handle();
    let waiting = read(&server, [0; 8]);
    drop(server);
    let events = event_at(value);
    let (result, bytes) = queue.block_on(waiting).unwrap();
    let misuse = Misuse::of(&result.unwrap_err());
    assert!(matches!(misuse, Some(Misuse::PrematureClose { .. })), "{misuse:?}");
    assert_eq!(bytes.len(), 8);
    drop(events);
}

// Q9, pitfall 34.
#[test]
fn an_event_with_a_closed_handles_value_is_not_registered() {
    let _values = VALUES.lock().unwrap_or_else(PoisonError::into_inner);
    let queue = Queue::current().unwrap();
    let (server, _client) = pipe_pair(false);
    queue.persist(&server).unwrap();
    let value = server.as_raw_handle();
    drop(server);
    let events = event_at(value);
    let event = events.last().unwrap();
    let operation = Overlapped::new(()).unwrap();
    let refused = operation.as_ptr(event).unwrap_err();
    assert!(matches!(refused, Misuse::UnregisteredHandle { .. }), "{refused:?}");
}
