#![cfg(windows)]
//! Ten thousand handles, and none left. Runs in a Windows of its own.

mod support;

use std::fs::File;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};

use ioqueue::{Overlapped, Queue, Registered};
use support::{TempFile, accept, recv, tcp_pair};
use windows_sys::Win32::Networking::WinSock::{
    AF_INET, INVALID_SOCKET, SOCK_STREAM, WSA_FLAG_OVERLAPPED, WSAEMFILE, WSASocketW,
};

// Scenario 57, section 6 of the contract
#[test]
fn ten_thousand_handles_are_registered_and_used() {
    const COUNT: usize = 10_000;
    let queue = Queue::new().unwrap();
    let file = TempFile::new(b"data");
    let mut owned = Vec::new();
    let mut borrowed = Vec::new();
    for number in 0..COUNT {
        let handle = file.open();
        if number % 2 == 0 {
            owned.push(queue.register(handle).unwrap());
        } else {
            queue.persist(&handle).unwrap();
            borrowed.push(handle);
        }
    }
    let text = format!("{queue:?}");
    assert!(text.contains(&format!("handles: {COUNT}")), "{text}");
    // All at once on some of them, each its own bytes.
    let reads: Vec<_> =
        owned.iter().step_by(7).map(|file| support::read_at(file, 1, [0; 8])).collect();
    let more: Vec<_> = borrowed
        .iter()
        .step_by(7)
        .map(|file| unsafe { queue.submit_at(file, 2, vec![0; 8], support::call_read) })
        .collect();
    for (reads, expected) in [(reads, &b"ata"[..]), (more, b"ta")] {
        for read in reads {
            let (result, bytes) = queue.block_on(read).unwrap();
            assert_eq!(&bytes[..result.unwrap() as usize], expected);
        }
    }
    for handle in &borrowed {
        queue.unregister(handle).unwrap();
    }
    drop(borrowed);
    assert!(format!("{queue:?}").contains(&format!("handles: {}", COUNT / 2)));
    drop(owned);
    assert!(format!("{queue:?}").contains("handles: 0"));
    // And again, with the values that came back.
    let again: Vec<_> = (0..1000).map(|_| queue.register(file.open()).unwrap()).collect();
    let (result, bytes) = queue.block_on(support::read_at(&again[999], 0, [0; 8])).unwrap();
    assert_eq!((result.unwrap(), &bytes[..4]), (4, &b"data"[..]));
    assert_eq!(queue.foreign_packets(), 0);
}

/// Opens files until no more can be had; an error instead of none where there is no end to them.
fn use_up(file: &TempFile) -> (Vec<File>, Option<io::Error>) {
    let mut files = Vec::new();
    while files.len() < 100_000 {
        match File::open(&file.path) {
            Ok(opened) => files.push(opened),
            Err(error) => return (files, Some(error)),
        }
    }
    (files, None)
}

fn new_socket() -> io::Result<()> {
    use std::os::windows::io::{FromRawSocket, OwnedSocket};
    unsafe {
        let socket = WSASocketW(
            i32::from(AF_INET),
            SOCK_STREAM,
            0,
            std::ptr::null(),
            0,
            WSA_FLAG_OVERLAPPED,
        );
        if socket == INVALID_SOCKET {
            return Err(io::Error::last_os_error());
        }
        drop(OwnedSocket::from_raw_socket(socket as _));
    }
    Ok(())
}

// Scenario 55: what is there goes on, what is new is refused, and all comes back.
#[test]
fn with_no_handle_left_the_queue_goes_on_and_recovers() {
    let queue = Queue::new().unwrap();
    let file = TempFile::new(b"data");
    let unregistered = file.open();
    let (mut client, server) = tcp_pair();
    let server = queue.register(server).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let listener = queue.register(listener).unwrap();
    let accepting = accept(&listener, support::tcp_socket());
    // Whatever is loaded or made on first use is there.
    client.write_all(b"warm").unwrap();
    assert_eq!(queue.block_on(recv(&server, [0; 8])).unwrap().0.unwrap(), 4);

    let before = recv(&server, [0; 8]);
    let (files, refused) = use_up(&file);
    let Some(refused) = refused else {
        return support::skip(
            "this system has handles for 100,000 files (ulimit -n sets how many)",
        );
    };
    eprintln!("{} handles, then: {refused}", files.len());
    assert!(refused.raw_os_error().is_some());
    assert!(File::open(&file.path).is_err());
    if let Err(error) = new_socket() {
        assert_eq!(error.raw_os_error(), Some(WSAEMFILE), "{error}");
    }
    // What was in flight ends, what is started on an open handle works, none needs a handle.
    client.write_all(b"before").unwrap();
    assert_eq!(queue.block_on(before).unwrap().0.unwrap(), 6);
    for _ in 0..100 {
        let receive = recv(&server, [0; 8]);
        client.write_all(b"meantime").unwrap();
        assert_eq!(queue.block_on(receive).unwrap().0.unwrap(), 8);
    }
    let wait = recv(&server, [0; 8]);
    drop(wait);
    support::poll_until(&queue, || queue.pending().len() == 1);
    queue.persist(&unregistered).unwrap();
    queue.unregister(&unregistered).unwrap();
    let overlapped = Overlapped::on(&queue, ()).unwrap();
    drop(overlapped);
    // A second queue is either there or refused with an error.
    match Queue::new() {
        Ok(second) => assert_eq!(second.block_on(async { 1 }).unwrap(), 1),
        Err(error) => assert!(error.raw_os_error().is_some(), "{error}"),
    }
    drop(files);

    // Recovered.
    let _peer = TcpStream::connect(address).unwrap();
    let (result, (socket, _)) = queue.block_on(accepting).unwrap();
    result.unwrap();
    support::update_accept_context(&socket, listener.get());
    drop(socket);
    let again: Registered<File> = queue.register(file.open()).unwrap();
    let (result, _) = queue.block_on(support::read_at(&again, 0, [0; 8])).unwrap();
    assert_eq!(result.unwrap(), 4);
    new_socket().unwrap();
}
