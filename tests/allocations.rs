#![cfg(windows)]
//! An operation on a handle that is used over and over costs no heap allocation.
//!
//! Rule 3 of the design. Buffers go in, come back and go in again; the first rounds may allocate
//! what the later ones reuse.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::windows::io::OwnedHandle;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ioqueue::iocp::{Wait, submit, submit_at};
use ioqueue::{AsAnyHandle, Persist, Queue, Registered, wait, wait_with};
use support::{
    Buffer, TempFile, blocking_pipe_client, call_read, call_recv, call_send, call_write, ends,
    pipe_name, pipe_pair, pipe_server, poll_once, poll_until, tcp_pair,
};
use windows_sys::Win32::Storage::FileSystem::SetFileCompletionNotificationModes;
use windows_sys::Win32::System::Threading::GetCurrentThreadId;

/// Counts what one thread asks of the heap.
struct Counting;

/// The thread that is counted. No thread has the number 0.
static COUNTED: AtomicU32 = AtomicU32::new(0);
static CALLS: AtomicU64 = AtomicU64::new(0);

impl Counting {
    fn count() {
        // No thread local: on windows-gnu making one allocates.
        if COUNTED.load(Ordering::Relaxed) == unsafe { GetCurrentThreadId() } {
            CALLS.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// SAFETY: all is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count();
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Self::count();
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count();
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How many calls of the allocator `body` makes.
fn calls(body: impl FnOnce()) -> u64 {
    let before = CALLS.load(Ordering::Relaxed);
    COUNTED.store(unsafe { GetCurrentThreadId() }, Ordering::Relaxed);
    body();
    COUNTED.store(0, Ordering::Relaxed);
    CALLS.load(Ordering::Relaxed) - before
}

/// One test at a time: one thread is counted.
fn alone(body: impl FnOnce() + Send + 'static) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    ends(body);
}

/// Rounds until everything has its size, and rounds that count.
const WARM: usize = 200;
const COUNTED_ROUNDS: usize = 500;

/// Does `round` often, and fails if the later ones allocate.
#[track_caller]
fn steady(mut round: impl FnMut()) {
    (0..WARM).for_each(|_| round());
    assert_eq!(calls(|| (0..COUNTED_ROUNDS).for_each(|_| round())), 0);
}

#[test]
fn the_counter_counts() {
    alone(|| {
        assert_eq!(calls(|| drop(Box::new(1))), 2);
        assert_eq!(calls(|| ()), 0);
        let other = calls(|| {
            std::thread::scope(|scope| {
                scope.spawn(|| drop(Box::new(1))).join().unwrap();
            });
        });
        assert!(other > 0, "starting a thread allocates on the thread that starts it");
    });
}

/// A buffer that is on its way or here.
struct Held<T>(Cell<Option<T>>);

impl<T> Held<T> {
    fn new(value: T) -> Self {
        Self(Cell::new(Some(value)))
    }
    fn take(&self) -> T {
        self.0.take().unwrap()
    }
    fn put(&self, value: T) {
        self.0.set(Some(value));
    }
}

fn receive(server: &Registered<TcpStream>, buffer: Buffer) -> Wait<Buffer> {
    unsafe { submit(server, buffer, call_recv) }
}

/// Waits by polling, as a host would, and gives the outcome. Allocates nothing itself.
fn finish<T: 'static>(
    queue: &Queue,
    ready: &mut Vec<ioqueue::Continuation>,
    mut waiting: Wait<T>,
) -> (u32, T) {
    loop {
        if let std::task::Poll::Ready((result, state)) = poll_once(&mut waiting) {
            return (result.unwrap(), state);
        }
        queue.poll(ready, None).unwrap();
        for continuation in ready.drain(..) {
            continuation.resume();
        }
    }
}

// Rule 3: what ends at once, and what has to be waited for.
#[test]
fn a_tcp_receive_costs_no_allocation() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let mut ready = Vec::new();
        let buffer = Held::new(Buffer::new(vec![0; 64]));
        for at_once in [true, false] {
            steady(|| {
                if at_once {
                    client.write_all(b"data").unwrap();
                }
                let mut waiting = receive(&server, buffer.take());
                if !at_once {
                    assert!(poll_once(&mut waiting).is_pending());
                    client.write_all(b"data").unwrap();
                }
                let (count, state) = finish(&queue, &mut ready, waiting);
                assert_eq!((count, &state.bytes[..4]), (4, &b"data"[..]));
                buffer.put(state);
            });
        }
    });
}

#[test]
fn a_tcp_send_costs_no_allocation() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let (mut ready, mut sink) = (Vec::new(), vec![0; 32]);
        let buffer = Held::new(Buffer::new(vec![7; 32]));
        steady(|| {
            let waiting = unsafe { submit(&server, buffer.take(), call_send) };
            let (count, state) = finish(&queue, &mut ready, waiting);
            assert_eq!(count, 32);
            client.read_exact(&mut sink).unwrap();
            buffer.put(state);
        });
    });
}

// Datagrams keep their packets, so what ends at once leaves one that is taken later.
#[test]
fn a_datagram_costs_no_allocation() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let (here, there) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let address = here.local_addr().unwrap();
        let here = queue.register(here).unwrap();
        let mut ready = Vec::new();
        let buffer = Held::new(Buffer::new(vec![0; 64]));
        for at_once in [true, false] {
            steady(|| {
                if at_once {
                    there.send_to(b"data", address).unwrap();
                }
                let mut waiting = unsafe { submit(&here, buffer.take(), call_recv) };
                if !at_once {
                    assert!(poll_once(&mut waiting).is_pending());
                    there.send_to(b"data", address).unwrap();
                }
                let (count, state) = finish(&queue, &mut ready, waiting);
                assert_eq!(count, 4);
                buffer.put(state);
                queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
            });
        }
    });
}

#[test]
fn a_pipes_read_and_write_cost_no_allocation() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let name = pipe_name();
        let pipe = queue.register(pipe_server(&name, false)).unwrap();
        let mut peer = blocking_pipe_client(&name).unwrap();
        let mut ready = Vec::new();
        let buffer = Held::new(vec![0; 64]);
        let mut sink = [0; 64];
        for at_once in [true, false] {
            steady(|| {
                if at_once {
                    peer.write_all(b"data").unwrap();
                }
                let waiting = unsafe { submit(&pipe, buffer.take(), call_read) };
                if !at_once {
                    peer.write_all(b"data").unwrap();
                }
                let (count, state) = finish(&queue, &mut ready, waiting);
                assert_eq!(count, 4);
                let waiting = unsafe { submit(&pipe, state, call_write) };
                let (count, state) = finish(&queue, &mut ready, waiting);
                assert_eq!(count, 64);
                peer.read_exact(&mut sink).unwrap();
                buffer.put(state);
            });
        }
    });
}

#[test]
fn a_files_read_costs_no_allocation() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let file = TempFile::new(&[5; 4096]);
        let file: Registered<File> = queue.register(file.open()).unwrap();
        let mut ready = Vec::new();
        let buffer = Held::new(vec![0; 512]);
        steady(|| {
            let waiting = unsafe { submit_at(&file, 1024, buffer.take(), call_read) };
            let (count, state) = finish(&queue, &mut ready, waiting);
            assert_eq!(count, 512);
            buffer.put(state);
        });
    });
}

// W3: the explicit form with a number.
#[test]
fn parking_a_number_costs_no_allocation() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let raw = server.as_any_handle().raw();
        let mut ready = Vec::new();
        let buffer = Held::new(Buffer::new(vec![0; 64]));
        for at_once in [true, false] {
            steady(|| {
                if at_once {
                    client.write_all(b"data").unwrap();
                }
                let mut overlapped = server.overlapped(buffer.take()).unwrap();
                if at_once {
                    unsafe { overlapped.start(&server, call_recv) }.unwrap();
                } else {
                    let pointer = overlapped.as_ptr(&server).unwrap();
                    call_recv(raw, overlapped.state_ptr(), pointer);
                }
                let ticket = wait_with(3, &server, overlapped).unwrap();
                if !at_once {
                    client.write_all(b"data").unwrap();
                }
                while ready.is_empty() {
                    queue.poll(&mut ready, None).unwrap();
                }
                assert_eq!(ready.pop().unwrap().resume(), Some(3));
                let (result, state) = ticket.take().unwrap();
                assert_eq!(result.unwrap(), 4);
                buffer.put(state);
            });
        }
    });
}

// A borrowed handle is looked up and checked at each operation.
#[test]
fn an_operation_on_a_borrowed_handle_costs_no_allocation() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        queue.persist(&server).unwrap();
        let raw = server.as_any_handle().raw();
        let mut ready = Vec::new();
        let buffer = Held::new(Buffer::new(vec![0; 64]));
        steady(|| {
            let overlapped = ioqueue::Overlapped::on(&queue, buffer.take()).unwrap();
            call_recv(raw, overlapped.state_ptr(), overlapped.as_ptr(&server).unwrap());
            let waiting = wait(&server, overlapped).unwrap();
            client.write_all(b"data").unwrap();
            let (count, state) = finish(&queue, &mut ready, waiting);
            assert_eq!(count, 4);
            let waiting = unsafe { queue.submit_at(&server, 0, state, call_recv) };
            client.write_all(b"data").unwrap();
            let (count, state) = finish(&queue, &mut ready, waiting);
            assert_eq!(count, 4);
            buffer.put(state);
        });
        queue.unregister(&server).unwrap();
    });
}

/// Echoes `rounds` times, then says how often the allocator was called after the first ones.
async fn ping(here: Registered<OwnedHandle>, there: Rc<Registered<File>>, rounds: Rc<Cell<usize>>) {
    let (mut out, mut back) = (vec![1; 16], vec![0; 16]);
    loop {
        if rounds.get() == WARM {
            COUNTED.store(unsafe { GetCurrentThreadId() }, Ordering::Relaxed);
        }
        if rounds.get() == WARM + COUNTED_ROUNDS {
            COUNTED.store(0, Ordering::Relaxed);
            break;
        }
        rounds.set(rounds.get() + 1);
        let (result, state) = unsafe { submit(&here, out, call_write) }.await;
        assert_eq!(result.unwrap(), 16);
        out = state;
        let (result, state) = unsafe { submit(&here, back, call_read) }.await;
        assert_eq!(result.unwrap(), 16);
        back = state;
    }
    drop(there);
}

async fn pong(there: Rc<Registered<File>>) {
    let mut buffer = vec![0; 16];
    loop {
        let (result, state) = unsafe { submit(&*there, buffer, call_read) }.await;
        if result.is_err() {
            return;
        }
        let (result, state) = unsafe { submit(&*there, state, call_write) }.await;
        if result.is_err() {
            return;
        }
        buffer = state;
    }
}

// Rule 3, Q4, Q5: tasks that wait for each other, under `run`.
#[test]
fn tasks_that_await_operations_cost_no_allocation() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let (server, client) = pipe_pair(false);
        let here = queue.register(server).unwrap();
        let there = Rc::new(queue.register(client).unwrap());
        let rounds = Rc::new(Cell::new(0));
        let answering = queue.spawn(pong(there.clone()));
        queue.spawn(ping(here, there, rounds.clone())).detach();
        let before = CALLS.load(Ordering::Relaxed);
        queue.run().unwrap();
        assert_eq!(rounds.get(), WARM + COUNTED_ROUNDS);
        assert_eq!(CALLS.load(Ordering::Relaxed), before);
        drop(answering);
    });
}

// Q5: and the future that `block_on` drives.
#[test]
fn block_on_costs_no_allocation_an_operation() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let before = CALLS.load(Ordering::Relaxed);
        let driven = queue.block_on(async {
            let mut buffer = Buffer::new(vec![0; 64]);
            for round in 0..WARM + COUNTED_ROUNDS {
                if round == WARM {
                    COUNTED.store(unsafe { GetCurrentThreadId() }, Ordering::Relaxed);
                }
                let waiting = receive(&server, buffer);
                client.write_all(b"data").unwrap();
                let (result, state) = waiting.await;
                assert_eq!(result.unwrap(), 4);
                buffer = state;
            }
            COUNTED.store(0, Ordering::Relaxed);
        });
        driven.unwrap();
        assert_eq!(CALLS.load(Ordering::Relaxed), before);
    });
}

// W2, pitfalls 54 and 55: slots that wait for packets do not pile up, whatever the handle's modes.
#[test]
fn retired_operations_do_not_pile_up() {
    alone(|| {
        for skipped_before in [false, true] {
            let queue = Queue::new().unwrap();
            let (mut client, server) = tcp_pair();
            if skipped_before {
                let raw = server.as_any_handle().raw();
                assert_ne!(unsafe { SetFileCompletionNotificationModes(raw, 1) }, 0);
            }
            let server = queue.register_with(server, Persist::keep_packets()).unwrap();
            let mut ready = Vec::new();
            let buffer = Held::new(Buffer::new(vec![0; 64]));
            steady(|| {
                client.write_all(b"data").unwrap();
                let waiting = receive(&server, buffer.take());
                let (count, state) = finish(&queue, &mut ready, waiting);
                assert_eq!(count, 4);
                buffer.put(state);
                queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
            });
        }
    });
}

// Q13: cancelling, awaited and by drop, with a state that holds no heap memory of its own.
#[test]
fn cancelling_costs_no_allocation() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let (_client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let mut ready = Vec::new();
        let buffer = Held::new(Buffer::new(vec![0; 64]));
        steady(|| {
            let mut cancel = receive(&server, buffer.take()).cancel();
            let completion = loop {
                if let std::task::Poll::Ready(cancelled) = poll_once(&mut cancel) {
                    break cancelled.into_completion();
                }
                queue.poll(&mut ready, None).unwrap();
                for continuation in ready.drain(..) {
                    continuation.resume();
                }
            };
            assert!(completion.status.is_cancelled());
            buffer.put(completion.state);
            // An empty buffer owns no memory.
            drop(receive(&server, Buffer::new(Vec::new())));
            queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
        });
        poll_until(&queue, || !queue.running());
    });
}

// Q11
#[test]
fn a_wake_up_costs_no_allocation() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let notifier = queue.notifier();
        let mut ready = Vec::new();
        steady(|| {
            notifier.clone().notify().unwrap();
            queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
        });
    });
}

// W7
#[test]
fn a_foreign_packet_costs_no_allocation() {
    alone(|| {
        use std::os::windows::io::{AsHandle, AsRawHandle};
        use windows_sys::Win32::System::IO::PostQueuedCompletionStatus;
        let queue = Queue::new().unwrap();
        let seen = Rc::new(Cell::new(0));
        let count = seen.clone();
        queue.on_foreign_packet(move |_| count.set(count.get() + 1));
        let mut ready = Vec::new();
        steady(|| {
            let port = queue.as_handle().as_raw_handle();
            let odd = std::ptr::without_provenance_mut(0x1001);
            assert_ne!(unsafe { PostQueuedCompletionStatus(port, 0, 1, odd) }, 0);
            queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
        });
        assert_eq!(seen.get(), WARM + COUNTED_ROUNDS);
    });
}
