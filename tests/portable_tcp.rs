//! TCP: connecting, accepting, and every way in which a connection ends.

#[macro_use]
mod each_kernel;

use std::io;
use std::net::Shutdown;
use std::task::Poll;

use each_kernel::{
    finish_by_turns, host_that_connects, kind_of, listener, listeners, look_around, poll_once,
    read_full, refusing_address, shutdown_ends_reads, silent_address, skip, stream_of, tcp,
    tcp_socket, tcp_to_host, write_full,
};
use ioqueue::{Queue, Registered, Socket, error};

/// Connects and accepts.
fn connected(queue: &Queue) -> (Registered<Socket>, Registered<Socket>) {
    let (listener, address) = listener(queue);
    let client = tcp_socket(queue, address);
    let accepting = listener.accept();
    queue.block_on(client.connect(address)).unwrap().unwrap();
    let server = queue.block_on(accepting).unwrap().unwrap().0;
    (client, queue.register(server).unwrap())
}

on_each_kernel! {
    /// Scenario 12: over a connection that the queue made and took.
    fn a_message_goes_to_and_fro(queue) {
        let (client, server) = connected(queue);
        let echo = queue.spawn(async move {
            let mut buffer = vec![0; 64];
            for _ in 0..1000 {
                let (count, back) = server.read(buffer).await;
                assert_eq!(count.unwrap(), 64);
                let (count, back) = server.write(back).await;
                assert_eq!(count.unwrap(), 64);
                buffer = back;
            }
        });
        queue.block_on(async move {
            let mut buffer = vec![7; 64];
            for _ in 0..1000 {
                let (count, back) = client.send(buffer).await;
                assert_eq!(count.unwrap(), 64);
                let (count, back) = client.recv(back).await;
                assert_eq!(count.unwrap(), 64);
                buffer = back;
            }
            assert_eq!(buffer, [7; 64]);
            echo.await;
        }).unwrap();
    }

    /// H3: who it is from.
    fn an_accept_says_who_it_is(queue) {
        for (listener, address) in listeners(queue) {
            let client = tcp_socket(queue, address);
            // Made before the accept is started, and after.
            for _ in 0..2 {
                let early = listener.accept();
                let client = tcp_socket(queue, address);
                queue.block_on(client.connect(address)).unwrap().unwrap();
                let (socket, peer) = queue.block_on(early).unwrap().unwrap();
                let client = stream_of(client.into_inner());
                assert_eq!(peer.ip(), Some(client.local_addr().unwrap()));
                assert_eq!(peer.ip(), Some(stream_of(socket).peer_addr().unwrap()));
            }
            queue.block_on(client.connect(address)).unwrap().unwrap();
            let (_, peer) = queue.block_on(listener.accept()).unwrap().unwrap();
            let client = stream_of(client.into_inner());
            assert_eq!(peer.ip(), Some(client.local_addr().unwrap()));
        }
    }

    /// Scenario 13: its end is told, and the socket is gone.
    fn a_socket_may_be_closed_while_it_connects(queue) {
        let (address, _guard) = silent_address(queue);
        let socket = tcp_socket(queue, address);
        let mut connecting = socket.connect(address);
        queue.block_on(look_around()).unwrap();
        assert!(poll_once(&mut connecting).is_pending(), "the address is not silent");
        drop(socket);
        let error = queue.block_on(connecting).unwrap().unwrap_err();
        assert!(error::is_cancelled(&error), "{error}");
        assert!(!queue.running());
    }

    /// Scenario 13, Q13: dropped, cancelled, and given a time limit.
    fn a_connect_may_be_given_up(queue) {
        let (address, _guard) = silent_address(queue);
        let socket = tcp_socket(queue, address);
        drop(socket.connect(address));
        queue.run().unwrap();
        let socket = tcp_socket(queue, address);
        let error = queue.block_on(socket.connect(address).cancel()).unwrap().unwrap_err();
        assert!(error::is_cancelled(&error), "{error}");
        let socket = tcp_socket(queue, address);
        let limit = std::time::Duration::from_millis(20);
        let error = queue.block_on(socket.connect(address).timeout(limit)).unwrap().unwrap_err();
        assert!(ioqueue::Elapsed::is(&error), "{error}");
    }

    /// Scenario 14: and the socket can be connected elsewhere.
    fn a_refused_connection_says_so(queue) {
        let refusing = refusing_address(queue);
        let socket = tcp_socket(queue, refusing);
        let error = queue.block_on(socket.connect(refusing)).unwrap().unwrap_err();
        assert_eq!(kind_of(queue, &error), io::ErrorKind::ConnectionRefused);
        let (listener, address) = listener(queue);
        let socket = tcp_socket(queue, address);
        queue.block_on(socket.connect(address)).unwrap().unwrap();
        queue.block_on(listener.accept()).unwrap().unwrap();
    }

    fn a_socket_that_is_connected_is_not_connected_again(queue) {
        let (listener, address) = listener(queue);
        let socket = tcp_socket(queue, address);
        queue.block_on(socket.connect(address)).unwrap().unwrap();
        let error = queue.block_on(socket.connect(address)).unwrap().unwrap_err();
        assert!(!error::is_cancelled(&error) && error.raw_os_error().is_some(), "{error}");
        drop(listener);
    }

    /// Scenario 15, pitfalls 27 and 47: whether the receive waits already or comes after, after bytes or
    /// none, and for a host that never waits.
    fn a_reset_is_an_error_and_never_the_end(queue) {
        for is_early in [true, false] {
            for by_turns in [true, false] {
                let (ours, theirs) = tcp_to_host(queue);
                theirs.reset_when_closed();
                let early = is_early.then(|| ours.recv(vec![0; 8]));
                queue.block_on(look_around()).unwrap();
                drop(theirs);
                let receive = early.unwrap_or_else(|| ours.recv(vec![0; 8]));
                let (result, _) = if by_turns {
                    finish_by_turns(queue, receive)
                } else {
                    queue.block_on(receive).unwrap()
                };
                assert_eq!(kind_of(queue, &result.unwrap_err()), io::ErrorKind::ConnectionReset);
            }
        }
    }

    /// Scenario 15: a send that waits.
    fn a_send_that_waits_learns_of_a_reset(queue) {
        let (ours, theirs) = tcp_to_host(queue);
        let waiting = loop {
            let mut sending = ours.send(vec![1; 1 << 20]);
            queue.block_on(look_around()).unwrap();
            match poll_once(&mut sending) {
                Poll::Ready((count, _)) => assert!(count.unwrap() > 0),
                Poll::Pending => break sending,
            }
        };
        drop(theirs); // With bytes unread, which is a reset.
        let error = queue.block_on(waiting).unwrap().0.unwrap_err();
        assert_eq!(kind_of(queue, &error), io::ErrorKind::ConnectionReset);
    }

    /// Scenario 18.
    fn a_connection_made_before_the_accept_is_accepted(queue) {
        let (listener, address) = listener(queue);
        let clients: Vec<_> = (0..3).map(|_| host_that_connects(queue, address)).collect();
        queue.block_on(look_around()).unwrap();
        for client in clients {
            let (_, peer) = queue.block_on(listener.accept()).unwrap().unwrap();
            assert_eq!(peer.ip(), Some(client.local_addr().unwrap()));
        }
    }

    /// Scenario 19, Q10.
    fn each_of_64_accepts_in_flight_gets_a_client_of_its_own(queue) {
        let (listener, address) = listener(queue);
        let accepts: Vec<_> = (0..64).map(|_| listener.accept()).collect();
        assert_eq!(queue.pending().len(), 64);
        let clients: Vec<_> = (0..64).map(|_| host_that_connects(queue, address)).collect();
        let mut ports: Vec<_> = clients.iter().map(|it| it.local_addr().unwrap().port()).collect();
        let mut accepted = Vec::new();
        for accept in accepts {
            let (_, peer) = queue.block_on(accept).unwrap().unwrap();
            accepted.push(peer.ip().unwrap().port());
        }
        ports.sort_unstable();
        accepted.sort_unstable();
        assert_eq!(accepted, ports);
        assert!(!queue.running());
    }

    /// Scenario 20: no connection goes to one that was given up.
    fn a_cancelled_accept_takes_no_connection(queue) {
        let (listener, address) = listener(queue);
        let error = queue.block_on(listener.accept().cancel()).unwrap().unwrap_err();
        assert!(error::is_cancelled(&error), "{error}");
        let accepts: Vec<_> = (0..8).map(|_| listener.accept()).collect();
        let mut kept = Vec::new();
        for (number, accept) in accepts.into_iter().enumerate() {
            if number % 2 == 0 { drop(accept) } else { kept.push(accept) }
        }
        queue.block_on(look_around()).unwrap();
        let clients: Vec<_> = (0..4).map(|_| host_that_connects(queue, address)).collect();
        for accept in kept {
            queue.block_on(accept).unwrap().unwrap();
        }
        drop(clients);
        assert!(!queue.running());
    }

    /// Scenario 20, Q13: given up when a connection is there, the accept has it, or leaves it to the next.
    fn a_connection_is_not_lost_with_an_accept_that_is_cancelled_too_late(queue) {
        let (listener, address) = listener(queue);
        for is_seen in [true, false] {
            let accept = listener.accept();
            if is_seen {
                queue.block_on(look_around()).unwrap();
            }
            let client = host_that_connects(queue, address);
            let peer = match queue.block_on(accept.cancel()).unwrap() {
                Ok((_, peer)) => peer,
                Err(error) => {
                    assert!(error::is_cancelled(&error), "{error}");
                    queue.block_on(listener.accept()).unwrap().unwrap().1
                }
            };
            assert_eq!(peer.ip(), Some(client.local_addr().unwrap()));
        }
    }

    /// Scenarios 22 and 23: the peer reads the end and can still write.
    fn a_shutdown_is_the_end_for_the_peer_which_can_still_write(queue) {
        let (one, other) = tcp(queue);
        queue.block_on(async {
            let early = other.read(vec![0; 8]);
            one.shutdown(Shutdown::Write).await.unwrap();
            assert_eq!(early.await.0.unwrap(), 0);
            assert_eq!(other.read(vec![0; 8]).await.0.unwrap(), 0);
            for _ in 0..100 {
                write_full(&other, "more").await;
                assert_eq!(read_full(&one, 4).await, b"more");
            }
            let error = one.write("x").await.0.unwrap_err();
            assert_eq!(kind_of(queue, &error), io::ErrorKind::BrokenPipe);
            other.shutdown(Shutdown::Both).await.unwrap();
            assert_eq!(one.read(vec![0; 8]).await.0.unwrap(), 0);
        }).unwrap();
    }

    /// Scenario 21: a reader that stops and starts between the writes of a half-open connection.
    fn a_half_open_connection_is_read_in_stops_and_starts(queue) {
        let (one, other) = tcp(queue);
        queue.block_on(async {
            other.shutdown(Shutdown::Write).await.unwrap();
            assert_eq!(one.read(vec![0; 8]).await.0.unwrap(), 0);
            for round in 0..50_u8 {
                let early = (round % 2 == 0).then(|| other.read(vec![0; 1]));
                if round % 3 == 0 {
                    // One that is given up takes nothing with it.
                    if let Some(early) = early {
                        drop(early);
                    }
                    look_around().await;
                    write_full(&one, vec![round]).await;
                    assert_eq!(read_full(&other, 1).await, [round]);
                } else {
                    write_full(&one, vec![round]).await;
                    let early = early.unwrap_or_else(|| other.read(vec![0; 1]));
                    assert_eq!(early.await.1, [round]);
                }
            }
        }).unwrap();
    }

    /// A shutdown of this side's reading ends a read that waits.
    fn a_read_that_waits_ends_with_the_shutdown_of_its_side(queue) {
        if !shutdown_ends_reads(queue) {
            return skip("a shutdown ends no read that waits, on this system");
        }
        let (one, other) = tcp(queue);
        let reading = one.read(vec![0; 8]);
        queue.block_on(look_around()).unwrap();
        queue.block_on(one.shutdown(Shutdown::Both)).unwrap().unwrap();
        assert_eq!(queue.block_on(reading).unwrap().0.unwrap(), 0);
        assert_eq!(queue.block_on(other.read(vec![0; 8])).unwrap().0.unwrap(), 0);
    }

    /// Scenario 24: a client that is gone, by a reset, before anybody served it.
    fn an_aborted_connection_does_not_end_the_listener(queue) {
        let (listener, address) = listener(queue);
        for is_early in [true, false] {
            let early = is_early.then(|| listener.accept());
            let client = host_that_connects(queue, address);
            client.reset_when_closed();
            drop(client);
            queue.block_on(look_around()).unwrap();
            // Systems differ in whether it is accepted, is an error, or was never there.
            let again = host_that_connects(queue, address);
            let mut next = early.unwrap_or_else(|| listener.accept());
            let mut tries = 0;
            loop {
                match queue.block_on(next).unwrap() {
                    Ok((_, peer)) if peer.ip() == Some(again.local_addr().unwrap()) => break,
                    Ok(_) => {}
                    Err(error) => assert_eq!(kind_of(queue, &error), io::ErrorKind::ConnectionAborted),
                }
                tries += 1;
                assert!(tries <= 1, "more ends than clients");
                next = listener.accept();
            }
        }
    }
}
