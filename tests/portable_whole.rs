//! The operations that go on until all is moved, and the sockets to connect.
//!
//! On every kernel of this system.

#[macro_use]
mod each_kernel;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use each_kernel::{noise, pipe_in, rounds, tcp, tcp_to_host, turn};
use ioqueue::op::stream_socket;
use ioqueue::{IoBuf, error};

on_each_kernel! {
    // More than the sockets on the way take in: neither is one operation.
    fn all_is_written_and_read_however_many_operations_it_takes(queue) {
        let length = rounds(queue, 8 << 20);
        let (from, to) = tcp(queue);
        let writing = queue.spawn(async move { from.write_all(noise(length)).await });
        queue.block_on(async {
            let (read, received) = to.read_exact(vec![0; length].into_boxed_slice()).await;
            read.unwrap();
            let (written, sent) = writing.await;
            written.unwrap();
            assert!(received[..] == sent[..]);
        }).unwrap();
    }

    // Before anybody polls them, and in the order of the calls.
    fn they_begin_when_they_are_called(queue) {
        let (from, mut to) = tcp_to_host(queue);
        let first = from.write_all("first, ");
        let second = from.write_all("second");
        turn(queue);
        let mut bytes = [0; 13];
        to.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"first, second");
        queue.block_on(async {
            first.await.0.unwrap();
            second.await.0.unwrap();
        }).unwrap();
    }

    fn a_part_of_a_buffer_is_filled_behind_what_it_holds(queue) {
        let (ours, mut theirs) = pipe_in(queue);
        theirs.write_all(b"one").unwrap();
        let mut buffer = Vec::with_capacity(64);
        buffer.extend(*b"zero");
        queue.block_on(async {
            let reading = ours.read_exact(buffer.slice(4..10));
            let writer = thread::spawn(move || theirs.write_all(b"twothree"));
            let (read, part) = reading.await;
            read.unwrap();
            assert_eq!(part.into_inner(), b"zeroonetwo");
            writer.join().unwrap().unwrap();
            // The rest is the next reader's.
            let (read, rest) = ours.read_exact([0; 5]).await;
            read.unwrap();
            assert_eq!(&rest, b"three");
        }).unwrap();
    }

    fn an_end_that_comes_early_is_an_error_with_what_came(queue) {
        let (ours, mut theirs) = pipe_in(queue);
        theirs.write_all(b"too few").unwrap();
        drop(theirs);
        queue.block_on(async {
            let (read, buffer) = ours.read_exact(Vec::with_capacity(100)).await;
            assert_eq!(read.unwrap_err().kind(), ErrorKind::UnexpectedEof);
            assert_eq!(buffer, b"too few");
        }).unwrap();
    }

    fn a_write_to_nobody_is_an_error(queue) {
        let (ours, theirs) = each_kernel::pipe_out(queue);
        drop(theirs);
        let (written, buffer) = queue.block_on(ours.write_all("nobody")).unwrap();
        let kind = each_kernel::kind_of(queue, &written.unwrap_err());
        assert_eq!((kind, buffer), (ErrorKind::BrokenPipe, "nobody"));
    }

    // Not even an operation: there would be an end to be told of.
    fn nothing_is_moved_where_there_is_nothing_to_move(queue) {
        let (ours, theirs) = pipe_in(queue);
        drop(theirs);
        queue.block_on(async {
            ours.read_exact([0; 0]).await.0.unwrap();
            ours.write_all("").await.0.unwrap();
        }).unwrap();
    }

    // Q13: the operation in flight is cancelled; what it was read for is somebody else's.
    fn dropped_they_leave_the_rest_to_the_next(queue) {
        let (ours, mut theirs) = pipe_in(queue);
        drop(ours.read_exact([0; 10]));
        turn(queue);
        theirs.write_all(b"next").unwrap();
        let (read, bytes) = queue.block_on(ours.read_exact([0; 4])).unwrap();
        read.unwrap();
        assert_eq!(&bytes, b"next");
    }

    // SPEC Q8
    fn a_cancel_by_unregistering_is_their_error(queue) {
        let (ours, _theirs) = pipe_in(queue);
        let reading = ours.read_exact([0; 10]);
        queue.unregister(&ours).unwrap();
        let (read, _) = queue.block_on(reading).unwrap();
        assert!(error::is_cancelled(&read.unwrap_err()));
    }

    not_simulated("its sockets are made by itself")
    fn a_socket_is_made_for_each_family(queue) {
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let listener = match TcpListener::bind(at) {
                Ok(listener) => listener,
                Err(error) => {
                    each_kernel::skip(&format!("{at}: {error}"));
                    continue;
                }
            };
            let peer = listener.local_addr().unwrap();
            let socket = TcpStream::from(stream_socket(peer).unwrap());
            let socket = queue.register(socket).unwrap();
            queue.block_on(socket.connect(peer)).unwrap().unwrap();
            assert_eq!(socket.get().peer_addr().unwrap(), peer);
            assert_eq!(listener.accept().unwrap().1, socket.get().local_addr().unwrap());
        }
    }

    #[cfg(unix)]
    not_simulated("its sockets are made by itself")
    fn a_socket_is_made_for_a_path(queue) {
        use std::os::unix::net::{UnixListener, UnixStream};

        use ioqueue::{Registered, SocketAddress};

        let path = std::env::temp_dir()
            .join(format!("ioqueue-{}-{}", std::process::id(), each_kernel::unique()));
        let listener = UnixListener::bind(&path).unwrap();
        let peer = SocketAddress::unix(&path).unwrap();
        let socket: Registered<UnixStream> =
            queue.register(stream_socket(peer).unwrap().into()).unwrap();
        queue.block_on(socket.connect(peer)).unwrap().unwrap();
        queue.block_on(socket.write_all("hello")).unwrap().0.unwrap();
        let mut bytes = [0; 5];
        listener.accept().unwrap().0.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
        std::fs::remove_file(path).unwrap();
    }
}

// What a child has, too, nobody sees the end of.
#[cfg(unix)]
#[test]
fn a_socket_is_not_inherited() {
    use std::os::fd::AsRawFd;
    let socket = stream_socket(std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    // SAFETY: takes numbers.
    let flags = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_GETFD) };
    assert_ne!(flags & libc::FD_CLOEXEC, 0);
}
