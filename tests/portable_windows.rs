#![cfg(windows)]
//! What is Windows' own about the portable operations: messages, readiness for sockets (W10), and what the
//! calls beneath them want.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::windows::io::{AsRawSocket, OwnedSocket};
use std::time::Duration;

use ioqueue::error::is_cancelled;
use ioqueue::{Event, Events, Persist, Queue, Registered};
use support::{
    TempFile, look_around, pipe_pair, poll_once, poll_until, reset_when_closed, tcp_pair,
    tcp_socket,
};

/// Both ends of a TCP connection, one on the queue.
fn tcp(queue: &Queue) -> (Registered<TcpStream>, TcpStream) {
    let (ours, theirs) = tcp_pair();
    (queue.register(ours).unwrap(), theirs)
}

/// What a handle that is ready has come to.
#[track_caller]
fn seen<H>(queue: &Queue, handle: &Registered<H>, event: Event) -> Events {
    queue.block_on(handle.ready(event)).unwrap().unwrap()
}

/// Sends until there is no room.
fn fill(socket: &TcpStream) -> usize {
    socket.set_nonblocking(true).unwrap();
    let mut total = 0;
    loop {
        match (&*socket).write(&[1; 1 << 16]) {
            Ok(count) => total += count,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                return total;
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Readiness (W10)

/// Any number of waits, which take nothing, beside one for room.
#[test]
fn a_connection_is_ready_when_there_is_something_to_read() {
    let queue = Queue::new().unwrap();
    let (ours, mut theirs) = tcp(&queue);
    let waits: Vec<_> = (0..10).map(|_| ours.ready(Event::Read)).collect();
    assert!(seen(&queue, &ours, Event::Write).contains(Event::Write));
    drop(ours.ready(Event::Read));
    queue.block_on(look_around()).unwrap();
    assert_eq!(queue.pending().len(), 10);
    theirs.write_all(b"data").unwrap();
    for wait in waits {
        let events = queue.block_on(wait).unwrap().unwrap();
        assert!(events.contains(Event::Read) && !events.contains(Event::Error), "{events:?}");
    }
    // By the level, until somebody reads.
    assert!(seen(&queue, &ours, Event::Read).contains(Event::Read));
    assert_eq!(queue.block_on(ours.read(vec![0; 8])).unwrap().1, b"data");
    let mut waiting = ours.ready(Event::Read);
    queue.block_on(look_around()).unwrap();
    assert!(poll_once(&mut waiting).is_pending());
    drop(theirs);
    assert!(queue.block_on(waiting).unwrap().unwrap().contains(Event::Read));
    assert!(seen(&queue, &ours, Event::Hangup).contains(Event::Hangup));
}

#[test]
fn a_connection_is_ready_when_there_is_room() {
    let queue = Queue::new().unwrap();
    let (ours, mut theirs) = tcp(&queue);
    let filled = fill(ours.get());
    let mut waiting = ours.ready(Event::Write);
    queue.block_on(look_around()).unwrap();
    assert!(poll_once(&mut waiting).is_pending());
    // What has come is not what it waits for.
    theirs.write_all(b"x").unwrap();
    queue.block_on(look_around()).unwrap();
    assert!(poll_once(&mut waiting).is_pending());
    theirs.read_exact(&mut vec![0; filled]).unwrap();
    let events = queue.block_on(waiting).unwrap().unwrap();
    assert!(events.contains(Event::Write), "{events:?}");
}

/// Pitfall 20: Windows confuses two of them, so the second is refused; when the first is over, or was given
/// up, the next is not.
#[test]
fn a_second_wait_for_room_is_refused() {
    let queue = Queue::new().unwrap();
    let (ours, _theirs) = tcp(&queue);
    fill(ours.get());
    for _ in 0..20 {
        let waiting = ours.ready(Event::Write);
        let error = queue.block_on(ours.ready(Event::Write)).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceBusy);
        let error = queue.block_on(ours.ready(Event::Hangup)).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceBusy);
        drop(waiting);
        let error = queue.block_on(ours.ready(Event::Write).cancel()).unwrap().unwrap_err();
        assert!(is_cancelled(&error), "{error}");
    }
    queue.run().unwrap();
    assert!(queue.pending().is_empty());
}

#[test]
fn a_listener_and_a_datagram_socket_are_ready_when_there_is_something() {
    let queue = Queue::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let listener = queue.register(listener).unwrap();
    let mut waiting = listener.ready(Event::Read);
    queue.block_on(look_around()).unwrap();
    assert!(poll_once(&mut waiting).is_pending());
    let client = TcpStream::connect(address).unwrap();
    assert!(queue.block_on(waiting).unwrap().unwrap().contains(Event::Read));
    listener.get().accept().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    // Registered by itself.
    let mut waiting = queue.ready(&socket, Event::Read);
    queue.block_on(look_around()).unwrap();
    assert!(poll_once(&mut waiting).is_pending());
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"data", address).unwrap();
    assert!(queue.block_on(waiting).unwrap().unwrap().contains(Event::Read));
    assert_eq!(socket.recv(&mut [0; 8]).unwrap(), 4);
    queue.unregister(&socket).unwrap();
    drop(client);
}

/// A reset is an event, also for those that wait with a receive.
#[test]
fn a_reset_ends_every_wait() {
    let queue = Queue::new().unwrap();
    for event in [Event::Read, Event::Write, Event::PriorityRead, Event::Error, Event::Hangup] {
        let (ours, theirs) = tcp(&queue);
        if event == Event::Write {
            fill(ours.get());
        }
        reset_when_closed(&theirs);
        let waiting = ours.ready(event);
        queue.block_on(look_around()).unwrap();
        drop(theirs);
        let events = queue.block_on(waiting).unwrap().unwrap();
        assert!(events.contains(Event::Hangup), "{event:?}: {events:?}");
    }
}

/// A connect that failed, and one that was made.
#[test]
fn a_socket_is_ready_when_its_connect_has_ended() {
    let queue = Queue::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = queue.register(tcp_socket()).unwrap();
    queue.block_on(socket.connect(listener.local_addr().unwrap())).unwrap().unwrap();
    assert!(seen(&queue, &socket, Event::Write).contains(Event::Write));
}

#[test]
fn what_is_no_socket_can_not_be_waited_for() {
    let queue = Queue::new().unwrap();
    let (server, _client) = pipe_pair(false);
    let error = queue.block_on(queue.ready(&server, Event::Read)).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    queue.unregister(&server).unwrap();
}

// ---------------------------------------------------------------------------------------------
// Pipes

/// Pitfall 47: a message that is longer than the buffer gives what fits, and the rest comes next.
#[test]
fn a_message_longer_than_the_buffer_gives_what_fits() {
    let queue = Queue::new().unwrap();
    let (server, client) = pipe_pair(true);
    let server = queue.register(server).unwrap();
    for is_early in [true, false] {
        let early = is_early.then(|| server.read(Vec::with_capacity(4)));
        (&client_end(&client)).write_all(b"longer").unwrap();
        let reading = early.unwrap_or_else(|| server.read(Vec::with_capacity(4)));
        let (count, bytes) = queue.block_on(reading).unwrap();
        assert_eq!((count.unwrap(), &bytes[..]), (4, &b"long"[..]));
        assert_eq!(queue.block_on(server.read(vec![0; 8])).unwrap().1, b"er");
    }
}

/// Several buffers are one message; and a message may be empty.
#[test]
fn several_buffers_are_one_message() {
    let queue = Queue::new().unwrap();
    let (server, client) = pipe_pair(true);
    let (server, client) = (queue.register(server).unwrap(), queue.register(client).unwrap());
    // The server's end is the one that reads by messages.
    queue.block_on(client.write_vectored(["one", "", " message"])).unwrap().0.unwrap();
    queue.block_on(client.write("another")).unwrap().0.unwrap();
    let room = [Vec::with_capacity(4), Vec::with_capacity(64)];
    let (count, parts) = queue.block_on(server.read_vectored(room)).unwrap();
    assert_eq!((count.unwrap(), &parts), (11, &[b"one ".to_vec(), b"message".to_vec()]));
    assert_eq!(queue.block_on(server.read(vec![0; 64])).unwrap().1, b"another");
    let reading = server.read(vec![0; 64]);
    assert_eq!(queue.block_on(client.write("")).unwrap().0.unwrap(), 0);
    assert_eq!(queue.block_on(reading).unwrap().0.unwrap(), 0);
}

/// On a pipe without messages a write of nothing would be read as an end.
#[test]
fn a_write_of_nothing_is_no_end() {
    let queue = Queue::new().unwrap();
    let (server, client) = pipe_pair(false);
    let (server, client) = (queue.register(server).unwrap(), queue.register(client).unwrap());
    let mut reading = client.read(vec![0; 8]);
    assert_eq!(queue.block_on(server.write("")).unwrap().0.unwrap(), 0);
    queue.block_on(look_around()).unwrap();
    assert!(poll_once(&mut reading).is_pending());
    queue.block_on(server.write("data")).unwrap().0.unwrap();
    assert_eq!(queue.block_on(reading).unwrap().1, b"data");
}

// ---------------------------------------------------------------------------------------------
// Sockets

/// Pitfall 10: what a send had sent when it was given up is known, and arrives.
#[test]
fn a_send_that_was_given_up_says_how_much_was_sent() {
    let queue = Queue::new().unwrap();
    for by_time in [true, false] {
        let (ours, mut theirs) = tcp(&queue);
        let sending = ours.send(vec![7; 64 << 20]);
        let (result, bytes) = if by_time {
            queue.block_on(sending.timeout(Duration::from_millis(20))).unwrap()
        } else {
            queue.block_on(sending.cancel()).unwrap()
        };
        assert_eq!(bytes.len(), 64 << 20);
        let sent = result.unwrap_or(0);
        assert!(sent < 64 << 20);
        ours.get().shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), sent);
    }
}

/// Pitfall 26: sockets that were accepted and connected are as the standard library's.
#[test]
fn a_socket_that_the_queue_connected_knows_that_it_is() {
    let queue = Queue::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let listener = queue.register(listener).unwrap();
    let accepting = listener.accept();
    let client = queue.register(tcp_socket()).unwrap();
    queue.block_on(client.connect(address)).unwrap().unwrap();
    let (server, peer) = queue.block_on(accepting).unwrap().unwrap();
    let (client, server) = (TcpStream::from(client.into_inner()), TcpStream::from(server));
    assert_eq!(client.peer_addr().unwrap(), address);
    assert_eq!(Some(client.local_addr().unwrap()), peer.ip());
    assert_eq!(server.peer_addr().unwrap(), client.local_addr().unwrap());
    for (one, mut other) in [(&client, &server), (&server, &client)] {
        one.shutdown(Shutdown::Write).unwrap();
        assert_eq!(other.read(&mut [0; 8]).unwrap(), 0);
    }
}

/// A socket may be bound before it is connected, and then is connected from there.
#[test]
fn a_bound_socket_is_connected_from_where_it_is_bound() {
    let queue = Queue::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = tcp_socket();
    support::bind_anywhere(&socket);
    let socket = TcpStream::from(socket);
    let bound = socket.local_addr().unwrap();
    let socket = queue.register(OwnedSocket::from(socket)).unwrap();
    queue.block_on(socket.connect(listener.local_addr().unwrap())).unwrap().unwrap();
    assert_eq!(listener.accept().unwrap().1, bound);
}

/// A datagram socket is connected at once.
#[test]
fn a_datagram_socket_is_connected() {
    let queue = Queue::new().unwrap();
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    let socket = queue.register(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    queue.block_on(socket.connect(other.local_addr().unwrap())).unwrap().unwrap();
    queue.block_on(socket.send("data")).unwrap().0.unwrap();
    assert_eq!(other.recv(&mut [0; 8]).unwrap(), 4);
    // What is longer than the buffer gives what fits.
    other.send_to(b"longer", socket.get().local_addr().unwrap()).unwrap();
    let (count, bytes) = queue.block_on(socket.recv(Vec::with_capacity(4))).unwrap();
    assert_eq!((count.unwrap(), &bytes[..]), (4, &b"long"[..]));
}

/// The connection of a listener that was closed before anybody fetched it is closed with it.
#[test]
fn a_connection_whose_listener_is_gone_was_aborted() {
    let queue = Queue::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let listener = queue.register(listener).unwrap();
    let accepting = listener.accept();
    let mut client = TcpStream::connect(address).unwrap();
    poll_until(&queue, || {
        queue.pending().is_empty() || queue.pending()[0].state != ioqueue::PendingState::InFlight
    });
    drop(listener);
    let error = queue.block_on(accepting).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    // Nobody has the other end any more.
    assert!(!matches!(client.read(&mut [0; 8]), Ok(1..)));
}

/// Pitfall 7, scenario 25: accepts that are given up leave no socket behind.
#[test]
fn accepts_that_are_given_up_leave_no_socket() {
    let queue = Queue::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = queue.register(listener).unwrap();
    let accept_some = || {
        let accepts: Vec<_> = (0..32).map(|_| listener.accept()).collect();
        drop(accepts);
        queue.run().unwrap();
    };
    accept_some();
    let before = support::handle_count();
    for _ in 0..10 {
        accept_some();
    }
    assert!(support::handle_count() <= before + 4, "{before}, then {}", support::handle_count());
}

// ---------------------------------------------------------------------------------------------
// Files

/// Pitfall 41: positions move alike whether packets are skipped or not.
#[test]
fn a_file_that_keeps_its_packets_is_read_from_its_start_to_its_end() {
    let queue = Queue::new().unwrap();
    let contents: Vec<u8> = (0..=255).cycle().take(10_007).collect();
    let temporary = TempFile::new(&contents);
    for options in [Persist::default(), Persist::keep_packets()] {
        let file = queue.register_with(temporary.open(), options).unwrap();
        let mut reads: Vec<_> = (0..120).map(|_| file.read(vec![0; 97])).collect();
        // One that is given up in the midst leaves no gap.
        let given_up = queue.block_on(reads.remove(50).cancel()).unwrap();
        let mut all = Vec::new();
        for (number, read) in reads.into_iter().enumerate() {
            if number == 50 && given_up.0.is_ok() {
                all.extend_from_slice(&given_up.1);
            }
            let (count, bytes) = queue.block_on(read).unwrap();
            assert_eq!(count.unwrap(), bytes.len());
            all.extend(bytes);
        }
        assert!(all == contents, "{} bytes", all.len());
        // Packets that come after their handle has gone are nobody's.
        queue.block_on(look_around()).unwrap();
        assert_eq!(queue.foreign_packets(), 0);
    }
    assert!(queue.pending().is_empty() && !queue.running());
}

fn client_end(client: &std::fs::File) -> std::fs::File {
    // A message is written by a blocking call of a handle of its own mode: this one waits for its end.
    client.try_clone().unwrap()
}

#[allow(dead_code)]
fn raw(socket: &impl AsRawSocket) -> usize {
    socket.as_raw_socket() as usize
}
