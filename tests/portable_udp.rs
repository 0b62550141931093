//! UDP: sizes, truncation, peers that are not there, and many receives at once.

#[macro_use]
mod each_kernel;

use std::io::ErrorKind::{ConnectionRefused, ConnectionReset};

use each_kernel::{kind_of, look_around, udp, udp_at};

on_each_kernel! {
    fn a_datagram_arrives_with_its_senders_address(queue) {
        let ((one, from), (other, to)) = (udp(queue), udp(queue));
        for is_early in [true, false] {
            let early = is_early.then(|| other.recv_from(vec![0; 16]));
            queue.block_on(look_around()).unwrap();
            let (sent, bytes) = queue.block_on(one.send_to(vec![1, 2, 3], to)).unwrap();
            assert_eq!((sent.unwrap(), &bytes[..]), (3, &[1, 2, 3][..]));
            let receive = early.unwrap_or_else(|| other.recv_from(vec![0; 16]));
            let (received, bytes) = queue.block_on(receive).unwrap();
            let received = received.unwrap();
            assert_eq!((received.bytes, received.peer.ip()), (3, Some(from)));
            assert!(!received.truncated);
            assert_eq!(bytes, [1, 2, 3]);
        }
    }

    /// Scenario 26: refused, the buffer comes back, and the socket goes on.
    fn a_datagram_that_is_too_big_is_refused(queue) {
        let ((one, _), (other, to)) = (udp(queue), udp(queue));
        let (sent, bytes) = queue.block_on(one.send_to(vec![1; 70_000], to)).unwrap();
        assert!(sent.is_err() && bytes.len() == 70_000);
        assert!(queue.pending().is_empty() && !queue.running());
        assert_eq!(queue.block_on(one.send_to([2], to)).unwrap().0.unwrap(), 1);
        let (received, bytes) = queue.block_on(other.recv_from(vec![0; 16])).unwrap();
        assert_eq!((received.unwrap().bytes, &bytes[..]), (1, &[2][..]));
    }

    /// Scenario 27: one end, which says so; and the next datagram is the next receive's.
    fn a_datagram_longer_than_the_buffer_ends_one_receive_which_says_so(queue) {
        let ((one, _), (other, to)) = (udp(queue), udp(queue));
        for is_early in [true, false] {
            let early = is_early.then(|| other.recv_from(vec![0; 4]));
            queue.block_on(look_around()).unwrap();
            for datagram in [&b"longer"[..], b"next", b"even longer"] {
                assert!(queue.block_on(one.send_to(datagram, to)).unwrap().0.is_ok());
            }
            let receive = early.unwrap_or_else(|| other.recv_from(vec![0; 4]));
            let (received, bytes) = queue.block_on(receive).unwrap();
            let received = received.unwrap();
            assert_eq!((received.bytes, received.truncated, &bytes[..]), (4, true, &b"long"[..]));
            let (received, bytes) = queue.block_on(other.recv_from(bytes)).unwrap();
            let received = received.unwrap();
            assert_eq!((received.bytes, received.truncated, &bytes[..]), (4, false, &b"next"[..]));
            let (received, bytes) = queue.block_on(other.recv_from(vec![0; 11])).unwrap();
            assert!(!received.unwrap().truncated && bytes == b"even longer");
        }
        assert!(!queue.running());
    }

    /// Scenario 28, pitfall 13: whoever is not there is told of at most, and the next receive goes on.
    fn a_receive_survives_a_peer_that_is_not_there(queue) {
        let nobody = udp(queue).1;
        let (one, address) = udp(queue);
        let (other, _) = udp(queue);
        let mut receive = one.recv_from(vec![0; 16]);
        assert!(queue.block_on(one.send_to("x", nobody)).unwrap().0.is_ok());
        queue.block_on(look_around()).unwrap();
        assert!(queue.block_on(other.send_to("hello", address)).unwrap().0.is_ok());
        let mut refused = 0;
        let bytes = loop {
            let (received, bytes) = queue.block_on(receive).unwrap();
            match received {
                Ok(_) => break bytes,
                Err(error) => {
                    let kind = kind_of(queue, &error);
                    assert!(matches!(kind, ConnectionRefused | ConnectionReset), "{kind:?}");
                }
            }
            refused += 1;
            assert!(refused <= 1, "told of again and again");
            receive = one.recv_from(vec![0; 16]);
        };
        assert_eq!(bytes, b"hello");
    }

    /// Scenario 28: a connected socket, which is told, once.
    fn a_connected_socket_goes_on_after_its_peer_was_not_there(queue) {
        if !each_kernel::tells_of_absent_peers(queue) {
            return each_kernel::skip("this system does not tell a socket that its peer is not there");
        }
        let address = udp(queue).1;
        let (socket, ours) = udp(queue);
        queue.block_on(socket.connect(address)).unwrap().unwrap();
        let receive = socket.recv(vec![0; 16]);
        assert!(queue.block_on(socket.send("x")).unwrap().0.is_ok());
        let error = queue.block_on(receive).unwrap().0.unwrap_err();
        let kind = kind_of(queue, &error);
        assert!(matches!(kind, ConnectionRefused | ConnectionReset), "{kind:?}");
        let there = udp_at(queue, address);
        for is_early in [true, false] {
            let early = is_early.then(|| socket.recv(vec![0; 16]));
            queue.block_on(look_around()).unwrap();
            queue.block_on(there.send_to("now", ours)).unwrap().0.unwrap();
            let receive = early.unwrap_or_else(|| socket.recv(vec![0; 16]));
            let (count, bytes) = queue.block_on(receive).unwrap();
            assert_eq!((count.unwrap(), &bytes[..]), (3, &b"now"[..]));
        }
    }

    /// Scenario 29, Q10.
    fn many_receives_in_flight_get_a_datagram_each(queue) {
        let ((one, _), (other, to)) = (udp(queue), udp(queue));
        let receives: Vec<_> = (0..64).map(|_| other.recv_from(vec![0; 8])).collect();
        assert_eq!(queue.pending().len(), 64);
        queue.block_on(look_around()).unwrap();
        for number in 0..64_u8 {
            assert!(queue.block_on(one.send_to([number], to)).unwrap().0.is_ok());
        }
        let mut numbers = Vec::new();
        for receive in receives {
            let (received, bytes) = queue.block_on(receive).unwrap();
            assert_eq!(received.unwrap().bytes, 1);
            numbers.push(bytes[0]);
        }
        // Datagrams on the loopback come in order, and so do they go to the receives.
        assert_eq!(numbers, (0..64).collect::<Vec<_>>());
    }

    /// An empty datagram is one, and not an end.
    fn an_empty_datagram_is_received(queue) {
        let ((one, _), (other, to)) = (udp(queue), udp(queue));
        for is_early in [true, false] {
            let early = is_early.then(|| other.recv_from(vec![0; 8]));
            queue.block_on(look_around()).unwrap();
            assert_eq!(queue.block_on(one.send_to("", to)).unwrap().0.unwrap(), 0);
            let receive = early.unwrap_or_else(|| other.recv_from(vec![0; 8]));
            let (received, bytes) = queue.block_on(receive).unwrap();
            assert_eq!((received.unwrap().bytes, bytes.len()), (0, 0));
        }
    }

    /// Receives that get less than they have room for say nothing about what comes next.
    fn short_datagrams_follow_each_other_at_once(queue) {
        let ((there, one), (socket, other)) = (udp(queue), udp(queue));
        queue.block_on(socket.connect(one)).unwrap().unwrap();
        queue.block_on(there.connect(other)).unwrap().unwrap();
        let first = socket.recv(vec![0; 64]);
        queue.block_on(look_around()).unwrap();
        for number in 0..20 {
            queue.block_on(there.send([number])).unwrap().0.unwrap();
        }
        assert_eq!(queue.block_on(first).unwrap().1, [0]);
        for number in 1..20 {
            let mut receive = socket.recv(vec![0; 64]);
            // They are there: no other edge tells of them.
            queue.block_on(look_around()).unwrap();
            let std::task::Poll::Ready((_, bytes)) = each_kernel::poll_once(&mut receive) else {
                panic!("datagram {number} is waited for");
            };
            assert_eq!(bytes, [number]);
        }
    }
}
