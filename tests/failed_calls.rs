#![cfg(windows)]
//! Calls that start nothing.

mod support;

use ioqueue::iocp::{Outcome, submit};
use ioqueue::{Overlapped, Queue};
use support::{call_read, pipe_pair, read};
use windows_sys::Win32::Foundation::{
    ERROR_INVALID_PARAMETER, ERROR_INVALID_USER_BUFFER, ERROR_IO_PENDING, ERROR_MORE_DATA,
    ERROR_PIPE_CONNECTED,
};

// W4: the state comes back with the error, and the other operations on the handle stay known.
#[test]
fn a_call_that_fails_at_once_takes_nothing_else_off_its_handle() {
    let queue = Queue::new().unwrap();
    let (server, _client) = pipe_pair(false);
    let server = queue.register(server).unwrap();
    let pending = [read(&server, [0; 8]), read(&server, [0; 8])];
    let failed = unsafe {
        submit(&server, vec![7_u8], |_, _, _| Outcome::from_error(ERROR_INVALID_PARAMETER))
    };
    let (result, state) = queue.block_on(failed).unwrap();
    assert_eq!(result.unwrap_err().raw_os_error(), Some(ERROR_INVALID_PARAMETER as i32));
    assert_eq!(state, [7]);
    // Both are still found by their handle, so both are cancelled with it.
    drop(server);
    let mut ready = Vec::new();
    queue.poll(&mut ready, Some(std::time::Duration::from_secs(5))).unwrap();
    assert!(!queue.running(), "{:?}", queue.pending());
    for wait in pending {
        let (result, _) = queue.block_on(wait).unwrap();
        assert!(ioqueue::error::is_cancelled(&result.unwrap_err()));
    }
}

// W1: an operation whose call failed can be started again.
#[test]
fn an_operation_that_was_not_started_can_be_started_again() {
    let queue = Queue::new().unwrap();
    let (server, client) = pipe_pair(false);
    let (server, client) = (queue.register(server).unwrap(), queue.register(client).unwrap());
    let mut operation = Overlapped::on(&queue, vec![0_u8; 4]).unwrap();
    let refused = unsafe {
        operation.start(&server, |_, _, _| Outcome::from_error(ERROR_INVALID_USER_BUFFER))
    };
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(ERROR_INVALID_USER_BUFFER as i32));
    assert_eq!(operation.state_mut().unwrap().len(), 4);
    unsafe { operation.start(&server, call_read).unwrap() };
    let waiting = server.wait(operation).unwrap();
    queue.block_on(support::write(&client, *b"ping")).unwrap().0.unwrap();
    let (count, bytes) = queue.block_on(waiting).unwrap();
    assert_eq!((count.unwrap(), &bytes[..]), (4, &b"ping"[..]));
}

// W1: what was exposed and then failed is taken back by hand.
#[test]
fn the_state_of_a_call_that_failed_by_hand_is_taken_back() {
    let queue = Queue::new().unwrap();
    let (server, _client) = pipe_pair(false);
    queue.persist(&server).unwrap();
    let operation = Overlapped::on(&queue, String::from("state")).unwrap();
    operation.as_ptr(&server).unwrap();
    // No call was made with the address.
    assert_eq!(unsafe { operation.into_state() }, "state");
    queue.unregister(&server).unwrap();
    assert!(queue.pending().is_empty());
}

// W1: what a call made by hand is asked before it is waited for.
#[test]
fn an_outcome_says_why_nothing_was_started() {
    let refused = Outcome::from_error(ERROR_INVALID_PARAMETER).failure().unwrap();
    assert_eq!(refused.raw_os_error(), Some(ERROR_INVALID_PARAMETER as i32));
    for code in [ERROR_IO_PENDING, ERROR_MORE_DATA, ERROR_PIPE_CONNECTED, 0] {
        assert!(Outcome::from_error(code).failure().is_none(), "{code}");
    }
}
