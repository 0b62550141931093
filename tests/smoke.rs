#![cfg(windows)]
//! One operation, from registering to the result, in each of its forms.

mod support;

use std::cell::Cell;
use std::io::Write;
use std::rc::Rc;
use std::time::Duration;

use ioqueue::{Continuation, Overlapped, Queue, Registered, iocp, wait, wait_with};
use support::{Buffer, call_recv, read, recv, tcp_pair, write};

#[test]
fn a_receive_is_submitted_and_awaited() {
    let (mut client, server) = tcp_pair();
    let server = Registered::new(server).unwrap();
    let receive = recv(&server, [0; 16]);
    assert!(ioqueue::running());
    client.write_all(b"hello").unwrap();
    let (received, state) = ioqueue::block_on(receive).unwrap();
    assert_eq!(received.unwrap(), 5);
    assert_eq!(&state.bytes[..5], b"hello");
    assert!(!ioqueue::running());
}

/// The call made by hand with the address that `as_ptr` gives.
fn start_by_hand(queue: &Queue, socket: &std::net::TcpStream) -> Overlapped<Buffer> {
    use std::os::windows::io::AsRawSocket;
    let overlapped = Overlapped::on(queue, Buffer::new([0; 16])).unwrap();
    let pointer = overlapped.as_ptr(socket).unwrap();
    call_recv(socket.as_raw_socket() as _, overlapped.state_ptr(), pointer);
    overlapped
}

#[test]
fn a_call_made_by_hand_is_awaited() {
    let queue = Queue::new().unwrap();
    let (mut client, server) = tcp_pair();
    queue.persist(&server).unwrap();
    let overlapped = start_by_hand(&queue, &server);
    let waiting = wait(&server, overlapped).unwrap();
    client.write_all(b"hello").unwrap();
    let (received, state) = queue.block_on(waiting).unwrap();
    assert_eq!(received.unwrap(), 5);
    assert_eq!(&state.bytes[..5], b"hello");
    queue.unregister(&server).unwrap();
}

#[test]
fn a_parked_key_comes_back_from_poll() {
    let queue = Queue::new().unwrap();
    let (mut client, server) = tcp_pair();
    queue.persist(&server).unwrap();
    let overlapped = start_by_hand(&queue, &server);
    let ticket = wait_with(7, &server, overlapped).unwrap();
    let ticket = ticket.take().unwrap_err();
    client.write_all(b"hello").unwrap();
    let mut ready = Vec::new();
    queue.poll(&mut ready, None).unwrap();
    assert!(matches!(ready[..], [Continuation::Key(7)]), "{ready:?}");
    let (received, state) = ticket.take().unwrap();
    assert_eq!(received.unwrap(), 5);
    assert_eq!(&state.bytes[..5], b"hello");
    queue.unregister(&server).unwrap();
}

#[test]
fn a_named_pipe_carries_bytes_both_ways() {
    let queue = Queue::new().unwrap();
    let (server, client) = support::pipe_pair(false);
    let (server, client) = (queue.register(server).unwrap(), queue.register(client).unwrap());
    let (connected, ()) = queue.block_on(support::connect_pipe(&server)).unwrap();
    connected.unwrap();
    for (from, to) in [(server.as_dyn(), client.as_dyn()), (client.as_dyn(), server.as_dyn())] {
        let reading = read(to, [0; 8]);
        assert_eq!(queue.block_on(write(from, *b"ping")).unwrap().0.unwrap(), 4);
        let (count, bytes) = queue.block_on(reading).unwrap();
        assert_eq!((count.unwrap(), &bytes[..4]), (4, &b"ping"[..]));
    }
}

/// Two types of handle in one array.
trait AsDyn {
    fn as_dyn(&self) -> &dyn ioqueue::AsAnyHandle;
}

impl<H> AsDyn for Registered<H> {
    fn as_dyn(&self) -> &dyn ioqueue::AsAnyHandle {
        self
    }
}

#[test]
fn tasks_run_until_nothing_is_waited_for() {
    let queue = Queue::new().unwrap();
    let done = Rc::new(Cell::new(0));
    for _ in 0..3 {
        let done = done.clone();
        queue.spawn(async move { done.set(done.get() + 1) }).detach();
    }
    queue.run().unwrap();
    assert_eq!(done.get(), 3);
}

#[test]
fn dropping_a_wait_cancels_and_the_state_is_dropped_once_after() {
    let (_client, server) = tcp_pair();
    let queue = Queue::new().unwrap();
    let server = queue.register(server).unwrap();
    let marker = Rc::new(());
    let state = (Buffer::new([0; 16]), marker.clone());
    let receive = unsafe {
        iocp::submit(&server, state, |socket, state, overlapped| {
            call_recv(socket, &raw mut (*state).0, overlapped)
        })
    };
    assert!(queue.running());
    drop(receive);
    assert_eq!(queue.running(), Rc::strong_count(&marker) == 2);
    queue.run().unwrap();
    assert_eq!(Rc::strong_count(&marker), 1);
    queue.close(Duration::ZERO).unwrap();
}
