#![cfg(windows)]
//! Handles behind types that this crate has never heard of.

mod support;

use std::fs::File;
use std::net::TcpStream;
use std::os::windows::io::{AsHandle, AsSocket, BorrowedHandle, BorrowedSocket};

use ioqueue::{AnyHandle, AsAnyHandle, HandleKind, Queue};
use support::{pipe_pair, read, recv, send, tcp_pair, write};

/// Types of other libraries: all they give is the standard library's traits.
mod other {
    use super::*;

    pub struct Device(pub File);

    impl AsHandle for Device {
        fn as_handle(&self) -> BorrowedHandle<'_> {
            self.0.as_handle()
        }
    }

    pub struct Connection(pub TcpStream);

    impl AsSocket for Connection {
        fn as_socket(&self) -> BorrowedSocket<'_> {
            self.0.as_socket()
        }
    }
}

struct Device(other::Device);

impl AsAnyHandle for Device {
    fn as_any_handle(&self) -> AnyHandle<'_> {
        self.0.as_handle().into()
    }
}

struct Connection(other::Connection);

impl AsAnyHandle for Connection {
    fn as_any_handle(&self) -> AnyHandle<'_> {
        self.0.as_socket().into()
    }
}

// Q7, H9: the wrapper is what its owner writes, the rest is the queue's.
#[test]
fn a_type_of_another_library_is_registered_through_a_wrapper() {
    let queue = Queue::new().unwrap();
    let (server, client) = pipe_pair(false);
    let server = queue.register(server).unwrap();
    let device = queue.register(Device(other::Device(client))).unwrap();
    let reading = read(&server, [0; 4]);
    assert_eq!(queue.block_on(write(&device, *b"ping")).unwrap().0.unwrap(), 4);
    let (count, bytes) = queue.block_on(reading).unwrap();
    assert_eq!((count.unwrap(), &bytes[..]), (4, &b"ping"[..]));

    let (client, server) = tcp_pair();
    let client = queue.register(Connection(other::Connection(client))).unwrap();
    let server = queue.register(server).unwrap();
    assert_eq!(client.as_any_handle().kind(), HandleKind::Socket);
    let receiving = recv(&server, [0; 4]);
    assert_eq!(queue.block_on(send(&client, *b"ping")).unwrap().0.unwrap(), 4);
    assert_eq!(queue.block_on(receiving).unwrap().0.unwrap(), 4);
}

// Q6: also without one, as long as somebody else owns it.
#[test]
fn a_type_of_another_library_is_borrowed_as_it_is() {
    let queue = Queue::current().unwrap();
    let (server, client) = pipe_pair(false);
    let (server, device) = (queue.register(server).unwrap(), other::Device(client));
    queue.persist(&device.as_handle()).unwrap();
    let reading = read(&server, [0; 4]);
    assert_eq!(queue.block_on(write(&device.as_handle(), *b"ping")).unwrap().0.unwrap(), 4);
    assert_eq!(queue.block_on(reading).unwrap().0.unwrap(), 4);
    queue.unregister(&device.as_handle()).unwrap();
}
