#![cfg(windows)]
//! What a queue tells of itself.

mod support;

use std::os::windows::io::AsRawHandle;
use std::time::Duration;

use ioqueue::iocp::Wait;
use ioqueue::{HandleId, Overlapped, PendingState, Queue};
use support::{pipe_pair, read, write};

// Q14: what it is, on which handle, who asked for it, and where it stands.
#[test]
fn everything_in_flight_is_listed_with_who_started_it() {
    let queue = Queue::new().unwrap();
    let (server, client) = pipe_pair(false);
    let id = HandleId::new(server.as_raw_handle());
    let (server, client) = (queue.register(server).unwrap(), queue.register(client).unwrap());
    assert!(queue.pending().is_empty());

    let line = line!() + 1;
    let reading = read(&server, [0; 4]);
    let [pending] = &queue.pending()[..] else { panic!("{:?}", queue.pending()) };
    assert_eq!((pending.handle, pending.state), (id, PendingState::InFlight));
    assert_eq!((pending.caller.file(), pending.caller.line()), (file!(), line));
    assert_eq!(pending.kind, "Vec<u8>");
    assert!(pending.age < Duration::from_secs(60), "{:?}", pending.age);

    queue.block_on(write(&client, *b"ping")).unwrap().0.unwrap();
    queue.block_on(reading).unwrap().0.unwrap();
    assert!(queue.pending().is_empty(), "{:?}", queue.pending());
}

// Q14
#[test]
fn an_operation_is_listed_in_each_state_in_which_the_kernel_may_have_it() {
    let queue = Queue::new().unwrap();
    let (server, _client) = pipe_pair(false);
    let server = queue.register(server).unwrap();
    let states = || queue.pending().iter().map(|pending| pending.state).collect::<Vec<_>>();

    let operation = Overlapped::on(&queue, [0_u8; 4]).unwrap();
    assert_eq!(states(), []);
    operation.as_ptr(&server).unwrap();
    assert_eq!(states(), [PendingState::Started]);
    // No call was made with the address.
    unsafe { operation.into_state() };

    let reading = read(&server, [0; 4]);
    assert_eq!(states(), [PendingState::InFlight]);
    let cancelling = reading.cancel();
    assert_eq!(states(), [PendingState::Cancelling]);
    drop(cancelling);
    assert!(matches!(states()[..], [] | [PendingState::Abandoned]), "{:?}", states());
    queue.run().unwrap();
    assert_eq!(states(), []);
}

// Q14
#[test]
fn a_queue_prints_its_counts() {
    let queue = Queue::new().unwrap();
    let (server, _client) = pipe_pair(false);
    let server = queue.register(server).unwrap();
    let _reading: [Wait<Vec<u8>>; 2] = [read(&server, [0; 4]), read(&server, [0; 4])];
    let task = queue.spawn(std::future::pending::<()>());
    let printed = format!("{queue:?}");
    for count in ["in_flight: 2", "handles: 1", "tasks: 1", "foreign_packets: 0", "closed: false"] {
        assert!(printed.contains(count), "{printed}");
    }
    drop(task);
    queue.close(Duration::from_secs(1)).unwrap();
    assert!(format!("{queue:?}").contains("closed: true"));
}
