#![cfg(windows)]
//! A serial port: bytes there and back, and a read that is cancelled.
//!
//! `IOQUEUE_TEST_SERIAL` names the port (`COM9`); whatever is at its other end sends back what it
//! gets. Under Wine that is a pseudo-terminal in raw mode that `dosdevices/com9` links to.

mod support;

use std::fs::File;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::AsRawHandle;
use std::sync::Mutex;

use ioqueue::error::is_cancelled;
use ioqueue::iocp::{Cancelled, Completion, Wait};
use ioqueue::{Persist, Queue, Registered};
use support::{look_around, read, skip, write};
use windows_sys::Win32::Devices::Communication::{COMMTIMEOUTS, SetCommTimeouts};
use windows_sys::Win32::Storage::FileSystem::FILE_FLAG_OVERLAPPED;

/// A port has one user at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The port, which waits without a limit for all the bytes that a read asks for.
fn open(queue: &Queue, options: Persist) -> Option<Registered<File>> {
    let Ok(name) = std::env::var("IOQUEUE_TEST_SERIAL") else {
        skip("IOQUEUE_TEST_SERIAL names no serial port whose other end sends back what it gets");
        return None;
    };
    let path = format!(r"\\.\{name}");
    let port = File::options()
        .read(true)
        .write(true)
        .custom_flags(FILE_FLAG_OVERLAPPED)
        .open(path)
        .unwrap();
    let never = COMMTIMEOUTS::default();
    assert_ne!(unsafe { SetCommTimeouts(port.as_raw_handle(), &never) }, 0);
    Some(queue.register_with(port, options).unwrap())
}

fn ended<T: 'static>(queue: &Queue, wait: Wait<T>) -> Completion<T> {
    queue.block_on(wait.exact()).unwrap()
}

/// H9, Q10: a read and a write in flight at once, with and without packets on success.
#[test]
fn a_serial_port_gives_back_what_it_was_sent() {
    let _guard = ONE_AT_A_TIME.lock();
    for options in [Persist::default(), Persist::keep_packets()] {
        let queue = Queue::new().unwrap();
        let Some(port) = open(&queue, options) else { return };
        for round in 0..20_u8 {
            let reading = read(&port, [0; 64]);
            assert_eq!(ended(&queue, write(&port, [round; 64])).result().unwrap(), 64);
            let end = ended(&queue, reading);
            assert_eq!((end.result().unwrap(), end.state), (64, vec![round; 64]));
        }
        queue.block_on(look_around()).unwrap();
        assert_eq!(queue.foreign_packets(), 0);
        assert!(queue.pending().is_empty());
    }
}

/// H9, Q13, scenario 42.
#[test]
fn a_cancelled_read_of_a_serial_port_ends_and_the_next_one_gets_the_bytes() {
    let _guard = ONE_AT_A_TIME.lock();
    let queue = Queue::new().unwrap();
    let Some(port) = open(&queue, Persist::default()) else { return };
    let reading = read(&port, [0; 4]);
    assert_eq!(queue.pending().len(), 1);
    let Cancelled::Cancelled(end) = queue.block_on(reading.cancel()).unwrap() else {
        panic!("nothing was sent");
    };
    assert!(is_cancelled(&end.result().unwrap_err()));
    assert_eq!((end.bytes, end.state.len()), (0, 4));
    let reading = read(&port, [0; 4]);
    assert_eq!(ended(&queue, write(&port, *b"data")).result().unwrap(), 4);
    assert_eq!(ended(&queue, reading).state, b"data");
    assert_eq!(queue.foreign_packets(), 0);
}
