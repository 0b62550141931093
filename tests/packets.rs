#![cfg(windows)]
//! The port hands out what anybody posted to it: nothing of that is believed unchecked.

mod support;

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::os::windows::io::{AsHandle, AsRawHandle, FromRawHandle, OwnedHandle};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::ptr::{null, null_mut, without_provenance_mut};
use std::rc::Rc;
use std::time::Duration;

use ioqueue::{
    AsAnyHandle, Continuation, ForeignPacket, Overlapped, Queue, RawHandle, wait, wait_with,
};
use support::{Buffer, call_recv, depth_of_port, ends, poll_once, poll_until, recv, tcp_pair};
use windows_sys::Win32::Foundation::ERROR_IO_PENDING;
use windows_sys::Win32::Networking::WinSock::{WSABUF, WSAGetLastError, WSARecv};
use windows_sys::Win32::System::IO::{OVERLAPPED, PostQueuedCompletionStatus};
use windows_sys::Win32::System::JobObjects::{
    AssignProcessToJobObject, CreateJobObjectW, JOBOBJECT_ASSOCIATE_COMPLETION_PORT,
    JobObjectAssociateCompletionPortInformation, SetInformationJobObject,
};

/// What any code of the process can do that has the port.
fn post(queue: &Queue, key: usize, overlapped: usize, bytes: u32) {
    let port = queue.as_handle().as_raw_handle();
    let posted =
        unsafe { PostQueuedCompletionStatus(port, bytes, key, without_provenance_mut(overlapped)) };
    assert_ne!(posted, 0);
}

/// Everything that is on the port by now is taken off.
fn drain(queue: &Queue) {
    let mut ready = Vec::new();
    while depth_of_port(queue) > 0 {
        queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
    }
    assert!(ready.is_empty(), "{ready:?}");
}

/// A hook that collects.
fn collect(queue: &Queue) -> Rc<RefCell<Vec<ForeignPacket>>> {
    let packets = Rc::<RefCell<Vec<_>>>::default();
    let seen = packets.clone();
    queue.on_foreign_packet(move |packet| seen.borrow_mut().push(packet));
    packets
}

fn raw(handle: &impl AsAnyHandle) -> RawHandle {
    handle.as_any_handle().raw()
}

/// A generator of numbers that look like nothing (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 as usize
    }
}

// W7, scenario 59, pitfall 46: null, random, near and far, while the queue's own packets go on.
// tests/sim_packets.rs does the million where a packet costs less than on Wine (25 us).
#[test]
fn many_foreign_packets_are_counted_and_harm_nothing() {
    let total = if support::on_wine() { 50_000 } else { 1_000_000 };
    support::ends_within(Duration::from_secs(120), move || {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let mut receive = recv(&server, [0; 1]);
        assert!(poll_once(&mut receive).is_pending());
        let own = Overlapped::on(&queue, 0_u64).unwrap();
        let own = own.as_ptr(&server).unwrap().addr();
        let mut random = Random(0x9E37_79B9_7F4A_7C15);
        let mut posted = 0;
        let mut received = 0;
        let mut ready = Vec::new();
        while posted < total {
            for _ in 0..2_500 {
                let number = random.next();
                let (key, overlapped) = match number % 8 {
                    0 => (0, 0),
                    // A wake-up's key, but with an address.
                    1 => (usize::MAX, own),
                    2 => (1, own + number % 64 + 1),
                    3 => (number, own),
                    4 => (1 << 32 | 1, random.next()),
                    5 => (1, std::process::id() as usize),
                    // Aligned like a slot, around the slab's memory.
                    6 => (1, own.wrapping_add((number % 4096) * 64).wrapping_sub(131_072)),
                    _ => (number, random.next()),
                };
                post(&queue, key, overlapped, number as u32);
            }
            posted += 2_500;
            // Now and then an operation of the queue's own ends in their midst.
            if posted % 5_000 == 0 {
                client.write_all(b"x").unwrap();
            }
            while queue.foreign_packets() < posted {
                queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
                ready.drain(..).for_each(|continuation| {
                    continuation.resume();
                });
            }
            if posted % 5_000 == 0 {
                let (result, _) = queue.block_on(receive).unwrap();
                assert_eq!(result.unwrap(), 1);
                received += 1;
                receive = recv(&server, [0; 1]);
                assert!(poll_once(&mut receive).is_pending());
            }
        }
        assert_eq!((queue.foreign_packets(), received), (total, total / 5_000));
        drop(receive);
        queue.run().unwrap();
    });
}

// W7: the hook sees what was posted, as it was posted and in that order.
#[test]
fn a_hook_takes_foreign_packets() {
    ends(|| {
        let queue = Queue::new().unwrap();
        post(&queue, 1, 2, 3);
        drain(&queue);
        let packets = collect(&queue);
        let expected: Vec<_> = (1..=300).map(|n| (n, 0x1000 + n, n as u32)).collect();
        for &(key, overlapped, bytes) in &expected {
            post(&queue, key, overlapped, bytes);
        }
        drain(&queue);
        let seen: Vec<_> =
            packets.borrow().iter().map(|p| (p.key, p.overlapped, p.bytes)).collect();
        assert_eq!(seen, expected);
        assert_eq!(queue.foreign_packets(), 301);
    });
}

// W7: a hook may use the queue, and what comes meanwhile is told too, once.
#[test]
fn a_hook_may_use_the_queue() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let seen = Rc::<RefCell<Vec<usize>>>::default();
        let (log, inner) = (seen.clone(), queue.clone());
        queue.on_foreign_packet(move |packet| {
            log.borrow_mut().push(packet.key);
            if packet.key == 1 {
                post(&inner, 5, 0x1000, 0);
                let mut ready = Vec::new();
                while depth_of_port(&inner) > 0 {
                    inner.poll(&mut ready, Some(Duration::ZERO)).unwrap();
                }
                let task = inner.spawn(async { 1 });
                assert_eq!(inner.block_on(task).unwrap(), 1);
            }
        });
        for key in 1..=4 {
            post(&queue, key, 0x1000, 0);
        }
        drain(&queue);
        queue.poll(&mut Vec::new(), Some(Duration::ZERO)).unwrap();
        assert_eq!(seen.take(), [1, 2, 3, 4, 5]);
        assert_eq!(queue.foreign_packets(), 5);
        // Its closure holds the queue.
        queue.on_foreign_packet(|_| ());
    });
}

// W7: a hook may put another in its place, or panic; no packet is lost by that but its own.
#[test]
fn a_hook_may_be_replaced_from_inside_and_may_panic() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let seen = Rc::<RefCell<Vec<(char, usize)>>>::default();
        let (log, inner) = (seen.clone(), queue.clone());
        queue.on_foreign_packet(move |packet| {
            log.borrow_mut().push(('a', packet.key));
            let log = log.clone();
            inner.on_foreign_packet(move |packet| {
                log.borrow_mut().push(('b', packet.key));
                assert_ne!(packet.key, 3, "three");
            });
        });
        for key in 1..=5 {
            post(&queue, key, 0x1000, 0);
        }
        let polling = AssertUnwindSafe(|| queue.poll(&mut Vec::new(), Some(Duration::ZERO)));
        let unwound = catch_unwind(polling).unwrap_err();
        assert!(support::panic_message(&*unwound).contains("three"));
        drain(&queue);
        queue.poll(&mut Vec::new(), Some(Duration::ZERO)).unwrap();
        assert_eq!(seen.take(), [('a', 1), ('b', 2), ('b', 3), ('b', 4), ('b', 5)]);
        queue.on_foreign_packet(|_| ());
    });
}

/// A receive by hand with an OVERLAPPED that is not the queue's.
fn strangers_receive(socket: RawHandle) -> (Box<OVERLAPPED>, Box<[u8; 8]>) {
    let (mut overlapped, mut bytes) = (Box::new(OVERLAPPED::default()), Box::new([0; 8]));
    let buffer = WSABUF { len: 8, buf: bytes.as_mut_ptr() };
    let mut flags = 0;
    unsafe {
        let answer =
            WSARecv(socket as _, &buffer, 1, null_mut(), &mut flags, &mut *overlapped, None);
        assert!(answer == 0 || WSAGetLastError() == ERROR_IO_PENDING as i32);
    }
    (overlapped, bytes)
}

// W7: another library's operation on a handle of the queue.
#[test]
fn another_librarys_operation_on_the_same_handle_is_foreign() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let packets = collect(&queue);
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let (overlapped, bytes) = strangers_receive(raw(&server));
        let receive = recv(&server, [0; 8]);
        client.write_all(b"stranger").unwrap();
        poll_until(&queue, || !packets.borrow().is_empty());
        client.write_all(b"ours").unwrap();
        assert_eq!(&queue.block_on(receive).unwrap().1.bytes[..4], b"ours");
        let packet = packets.borrow()[0];
        assert_eq!((packet.overlapped, packet.bytes), ((&raw const *overlapped).addr(), 8));
        assert_eq!((*bytes, queue.foreign_packets()), (*b"stranger", 1));
    });
}

/// The key under which the queue bound the handle, as any code can find it out.
fn key_of(queue: &Queue, socket: &impl AsAnyHandle, client: &mut impl Write) -> usize {
    let packets = collect(queue);
    let operation = strangers_receive(raw(socket));
    client.write_all(b"12345678").unwrap();
    poll_until(queue, || !packets.borrow().is_empty());
    drop(operation);
    queue.on_foreign_packet(|_| ());
    packets.take()[0].key
}

// W7, pitfall 46: the address of an operation in flight, with every key and also the right one.
#[test]
fn a_forged_packet_does_not_end_an_operation_in_flight() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let key = key_of(&queue, &server, &mut client);
        let before = queue.foreign_packets();
        let overlapped = server.overlapped(Buffer::new([0; 8])).unwrap();
        let pointer = overlapped.as_ptr(&server).unwrap();
        call_recv(raw(&server), overlapped.state_ptr(), pointer);
        let parked = wait_with(1, &server, overlapped).unwrap();
        for key in [key, 0, key + 1, key + (1 << 32), usize::MAX] {
            post(&queue, key, pointer.addr(), 8);
        }
        drain(&queue);
        assert_eq!(queue.foreign_packets(), before + 5);
        assert!(!parked.is_over() && queue.running());
        client.write_all(b"genuine").unwrap();
        let mut ready = Vec::new();
        while ready.is_empty() {
            queue.poll(&mut ready, None).unwrap();
        }
        assert!(matches!(ready[..], [Continuation::Key(1)]));
        let (result, state) = parked.take().unwrap();
        assert_eq!((result.unwrap(), &state.bytes[..7]), (7, &b"genuine"[..]));
    });
}

// W7, pitfall 29: the same for a slot in every other state, with the right key.
#[test]
fn a_stale_or_forged_packet_changes_nothing_in_any_state() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let key = key_of(&queue, &server, &mut client);
        let forge = |address: usize| {
            let before = queue.foreign_packets();
            for _ in 0..3 {
                post(&queue, key, address, 8);
            }
            drain(&queue);
            assert_eq!(queue.foreign_packets(), before + 3);
        };
        // Idle: not in any packet's sense started.
        let overlapped = server.overlapped(Buffer::new([0; 8])).unwrap();
        let address = overlapped.as_ptr(&server).unwrap().addr();
        // Exposed, and given to no call.
        forge(address);
        // SAFETY: it was given to no call.
        drop(unsafe { overlapped.into_state() });
        // Free.
        forge(address);
        // The same memory again, in flight.
        let overlapped = server.overlapped(Buffer::new([0; 8])).unwrap();
        assert_eq!(overlapped.as_ptr(&server).unwrap().addr(), address, "memory is reused");
        let pointer = overlapped.as_ptr(&server).unwrap();
        call_recv(raw(&server), overlapped.state_ptr(), pointer);
        forge(address);
        let waiting = wait(&server, overlapped).unwrap();
        forge(address);
        client.write_all(b"real").unwrap();
        poll_until(&queue, || !queue.running());
        // Done and not taken: its packet has come.
        forge(address);
        assert_eq!(&queue.block_on(waiting).unwrap().1.bytes[..4], b"real");
        // Cancelled and abandoned.
        let receive = recv(&server, [0; 8]);
        drop(receive);
        queue.run().unwrap();
        drain(&queue);
        forge(address);
        // The registration's end, and the next one's beginning.
        let server = server.into_inner();
        forge(address);
        drop(server);
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let receive = recv(&server, [0; 8]);
        forge(address);
        client.write_all(b"other").unwrap();
        assert_eq!(&queue.block_on(receive).unwrap().1.bytes[..5], b"other");
    });
}

// W7, Q11: a forged wake-up is a wake-up that nobody needed; the real ones still come.
#[test]
fn a_forged_wake_up_loses_no_wake_up() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let notifier = queue.notifier();
        let guard = queue.spawn(std::future::pending::<()>());
        poll_until(&queue, || depth_of_port(&queue) == 0);
        for _ in 0..100 {
            post(&queue, usize::MAX, 0, 0);
            notifier.notify().unwrap();
            let mut ready = Vec::new();
            queue.poll(&mut ready, Some(Duration::from_secs(10))).unwrap();
            notifier.notify().unwrap();
            queue.poll(&mut ready, Some(Duration::from_secs(10))).unwrap();
        }
        drop(guard);
        queue.run().unwrap();
    });
}

// W7, pitfall 19: `lpOverlapped` is a process id.
#[test]
fn a_job_objects_packets_are_foreign() {
    ends(|| {
        const KEY: usize = 0x10B;
        let queue = Queue::new().unwrap();
        let packets = collect(&queue);
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let job = unsafe {
            let job = CreateJobObjectW(null(), null());
            assert!(!job.is_null());
            OwnedHandle::from_raw_handle(job)
        };
        let port = JOBOBJECT_ASSOCIATE_COMPLETION_PORT {
            CompletionKey: without_provenance_mut(KEY),
            CompletionPort: queue.as_handle().as_raw_handle(),
        };
        let told = unsafe {
            SetInformationJobObject(
                job.as_raw_handle(),
                JobObjectAssociateCompletionPortInformation,
                (&raw const port).cast(),
                size_of_val(&port) as u32,
            )
        };
        assert_ne!(told, 0);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "no such test"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let assigned =
            unsafe { AssignProcessToJobObject(job.as_raw_handle(), child.as_raw_handle()) };
        let ended_before = assigned == 0;
        let process = child.id() as usize;
        let receive = recv(&server, [0; 8]);
        client.write_all(b"ours").unwrap();
        child.wait().unwrap();
        assert_eq!(queue.block_on(receive).unwrap().0.unwrap(), 4);
        if ended_before {
            return support::skip("the child ended before it was in the job");
        }
        poll_until(&queue, || !packets.borrow().is_empty());
        poll_until(&queue, || depth_of_port(&queue) == 0);
        let packets = packets.borrow();
        assert!(packets.iter().all(|packet| packet.key == KEY), "{packets:?}");
        assert!(packets.iter().any(|packet| packet.overlapped == process), "{packets:?}");
        assert_eq!(queue.foreign_packets(), packets.len() as u64);
    });
}

// Pitfall 24: the kernel writes to one OVERLAPPED an operation; the queue's are all distinct.
#[test]
fn operations_in_flight_never_share_memory() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let mut operations: Vec<_> = (0..1000_usize)
            .map(|number| {
                let state = (Buffer::new([0; 1]), [number; 16]);
                server.overlapped(state).unwrap()
            })
            .collect();
        let mut ranges: Vec<_> = operations
            .iter()
            .map(|operation| {
                let start = operation.as_ptr(&server).unwrap().addr();
                let state = operation.state_ptr();
                assert!(state.addr() >= start + size_of::<OVERLAPPED>());
                // SAFETY: the operation is not started.
                (start, unsafe { state.add(1) }.addr())
            })
            .collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        for (number, operation) in operations.iter_mut().enumerate() {
            // SAFETY: not started, and a field's address.
            let buffer = unsafe {
                assert_eq!((*operation.state_ptr()).1, [number; 16]);
                &raw mut (*operation.state_ptr()).0
            };
            call_recv(raw(&server), buffer, operation.as_ptr(&server).unwrap());
        }
        let data: Vec<u8> = (0..1000).map(|number| number as u8).collect();
        client.write_all(&data).unwrap();
        for (number, operation) in operations.into_iter().enumerate() {
            let waiting = wait(&server, operation).unwrap();
            let (result, (buffer, marker)) = queue.block_on(waiting).unwrap();
            assert_eq!((result.unwrap(), buffer.bytes[0]), (1, number as u8));
            assert_eq!(marker, [number; 16]);
        }
    });
}

// W5, Q3, scenario 60
#[test]
fn continuations_come_in_the_order_of_their_packets() {
    ends(|| {
        let queue = Queue::new().unwrap();
        const COUNT: usize = 200;
        let mut pairs: Vec<_> = (0..COUNT)
            .map(|_| {
                let (client, server) = tcp_pair();
                (client, queue.register(server).unwrap())
            })
            .collect();
        let mut tickets: Vec<_> = pairs
            .iter()
            .enumerate()
            .map(|(number, (_, server))| {
                let overlapped = server.overlapped(Buffer::new([0; 1])).unwrap();
                let pointer = overlapped.as_ptr(server).unwrap();
                call_recv(raw(server), overlapped.state_ptr(), pointer);
                (Some(wait_with(number, server, overlapped).unwrap()), pointer)
            })
            .collect();
        // Each ends before the next begins to, in an order that is not that of the waits, and more
        // than one batch of them before the queue is asked.
        let order: Vec<_> = (0..COUNT).map(|number| number * 7 % COUNT).collect();
        for (sent, &number) in order.iter().enumerate() {
            pairs[number].0.write_all(b"x").unwrap();
            while depth_of_port(&queue) <= sent {
                std::thread::yield_now();
            }
        }
        let mut ready = Vec::new();
        let mut polls = 0;
        while ready.len() < COUNT {
            queue.poll(&mut ready, None).unwrap();
            polls += 1;
        }
        // Batches, not one packet a call.
        assert!(polls <= COUNT / 16, "{polls} polls");
        let came: Vec<_> = ready
            .into_iter()
            .map(|continuation| continuation.resume().expect("a key was parked"))
            .collect();
        assert_eq!(came, order);
        for (ticket, _) in &mut tickets {
            assert_eq!(ticket.take().unwrap().take().unwrap().0.unwrap(), 1);
        }
    });
}

// W5, scenario 60: `run` resumes in that order as well.
#[test]
fn run_resumes_in_the_order_of_the_packets() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let log = Rc::new(RefCell::new(Vec::new()));
        let mut clients = Vec::new();
        let started = Rc::new(Cell::new(0));
        for number in 0..50 {
            let (client, server) = tcp_pair();
            let server = queue.register(server).unwrap();
            clients.push(client);
            let (log, started) = (log.clone(), started.clone());
            let task = queue.spawn(async move {
                let receive = recv(&server, [0; 1]);
                started.set(started.get() + 1);
                receive.await.0.unwrap();
                log.borrow_mut().push(number);
            });
            task.detach();
        }
        poll_until(&queue, || started.get() == 50);
        let order: Vec<_> = (0..50).map(|number| number * 3 % 50).collect();
        for (sent, &number) in order.iter().enumerate() {
            clients[number].write_all(b"x").unwrap();
            while depth_of_port(&queue) <= sent {
                std::thread::yield_now();
            }
        }
        queue.run().unwrap();
        assert_eq!(log.take(), order);
    });
}

// W7: what is on the port when the queue goes is nobody's.
#[test]
fn packets_left_on_the_port_are_harmless() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let receive = recv(&server, [0; 8]);
        client.write_all(b"x").unwrap();
        for _ in 0..300 {
            post(&queue, 1, 0x1000, 0);
        }
        drop(queue);
        drop(receive);
        drop(server);
    });
}
