#![cfg(windows)]
//! Cancelling, by asking for it and by dropping: nothing is lost, and nothing is freed early.

mod support;

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::windows::fs::OpenOptionsExt;
use std::ptr::{null, null_mut};
use std::rc::Rc;
use std::task::{Poll, RawWaker, RawWakerVTable, Waker};
use std::time::{Duration, Instant};

use ioqueue::error::is_cancelled;
use ioqueue::iocp::{Cancelled, OVERLAPPED, Outcome, Wait};
use ioqueue::{AsAnyHandle, Continuation, Overlapped, Queue, Registered, wait, wait_with};
use support::{
    Buffer, OnDrop, TempFile, accept, call_recv, connect_pipe, ends, pipe_name, pipe_pair,
    pipe_server, poll_once, poll_until, poll_with, read, read_at, recv, recv_beside, send,
    tcp_pair, tcp_socket, tracked, waker,
};
use windows_sys::Win32::Foundation::STATUS_PENDING;
use windows_sys::Win32::Storage::FileSystem::{
    FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_OVERLAPPED, FILE_LIST_DIRECTORY,
    FILE_NOTIFY_CHANGE_FILE_NAME, ReadDirectoryChangesW,
};

const SECOND: Duration = Duration::from_secs(1);

/// A receive on `server` that is in flight and awaited, and where its status word is.
fn receiving(server: &Registered<TcpStream>) -> (Wait<Buffer>, *const OVERLAPPED) {
    let overlapped = server.overlapped(Buffer::new([0; 8])).unwrap();
    let pointer = overlapped.as_ptr(server).unwrap();
    let raw = server.as_any_handle().raw();
    assert_eq!(call_recv(raw, overlapped.state_ptr(), pointer), Outcome::PENDING);
    let mut waiting = wait(server, overlapped).unwrap();
    assert!(poll_once(&mut waiting).is_pending());
    (waiting, pointer)
}

/// Waits for the kernel to be done with an operation, without asking the queue.
fn until_ended(operation: *const OVERLAPPED) {
    let start = Instant::now();
    // SAFETY: the operation's slot lives as long as the tests that use this hold its wait.
    while unsafe { (&raw const (*operation).Internal).read_volatile() } as i32 == STATUS_PENDING {
        assert!(start.elapsed() < 10 * SECOND);
        std::thread::yield_now();
    }
}

fn over<F: Future + Unpin>(mut future: F) -> F::Output {
    match poll_once(&mut future) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("not over"),
    }
}

// ---------------------------------------------------------------------------------------------
// An awaited cancel

// Q13
#[test]
fn an_awaited_cancel_gives_the_buffer_back() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (_client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let cancelled = queue.block_on(recv(&server, [9; 8]).cancel()).unwrap();
        let Cancelled::Cancelled(completion) = cancelled else { panic!("{cancelled:?}") };
        assert!(is_cancelled(&completion.result().unwrap_err()));
        assert_eq!((completion.bytes, completion.state.bytes), (0, vec![9; 8]));
        assert!(!queue.running());
    });
}

// Q13, scenario 42, pitfall 10
#[test]
fn a_cancelled_operation_that_finished_after_all_gives_its_data() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let (waiting, operation) = receiving(&server);
        client.write_all(b"data").unwrap();
        until_ended(operation);
        let cancelled = queue.block_on(waiting.cancel()).unwrap();
        let Cancelled::Finished(completion) = cancelled else { panic!("{cancelled:?}") };
        assert_eq!((completion.result().unwrap(), &completion.state.bytes[..4]), (4, &b"data"[..]));

        // The same through the ticket of another loop.
        let overlapped = server.overlapped(Buffer::new([0; 8])).unwrap();
        let pointer = overlapped.as_ptr(&server).unwrap();
        call_recv(server.as_any_handle().raw(), overlapped.state_ptr(), pointer);
        let parked = wait_with(1, &server, overlapped).unwrap();
        client.write_all(b"more").unwrap();
        until_ended(pointer);
        parked.cancel();
        parked.cancel();
        let mut ready = Vec::new();
        queue.poll(&mut ready, None).unwrap();
        assert!(matches!(ready[..], [Continuation::Key(1)]));
        assert_eq!(&parked.take().unwrap().1.bytes[..4], b"more");
    });
}

// Q13, scenario 36
#[test]
fn cancelling_what_is_over_gives_its_result() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        // Ended at once or nearly.
        client.write_all(b"one").unwrap();
        let mut receive = recv(&server, [0; 8]);
        poll_until(&queue, || !queue.running());
        let Cancelled::Finished(completion) = over(receive.cancel()) else { panic!() };
        assert_eq!(completion.result().unwrap(), 3);
        // Ended, and said so by the queue, before the cancel.
        receive = recv(&server, [0; 8]);
        client.write_all(b"four").unwrap();
        poll_until(&queue, || !queue.running());
        let Cancelled::Finished(completion) = over(receive.cancel()) else { panic!() };
        assert_eq!(completion.result().unwrap(), 4);
        // Refused before it began.
        let (_other, stranger) = tcp_pair();
        let refused = unsafe { queue.submit_at(&stranger, 0, Buffer::new([0; 8]), call_recv) };
        let Cancelled::Finished(completion) = over(refused.cancel()) else { panic!() };
        assert!(ioqueue::Misuse::of(&completion.result().unwrap_err()).is_some());
        // A file's read, which ends at once on some systems.
        let file = TempFile::new(b"file");
        let file = queue.register(file.open()).unwrap();
        let completion = queue.block_on(read_at(&file, 0, [0; 8]).cancel()).unwrap();
        let completion = completion.into_completion();
        if completion.status.is_success() {
            assert_eq!(&completion.state[..4], b"file");
        }
    });
}

// Q13, pitfall 17
#[test]
fn a_cancel_hits_its_own_operation_only() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let mut receives: Vec<_> = (0..8).map(|_| recv(&server, [0; 1])).collect();
        for index in [6, 3, 0] {
            let cancelled = queue.block_on(receives.remove(index).cancel()).unwrap();
            assert!(matches!(cancelled, Cancelled::Cancelled(_)));
        }
        client.write_all(b"12345").unwrap();
        let mut bytes = Vec::new();
        for receive in receives {
            let (result, state) = queue.block_on(receive).unwrap();
            assert_eq!(result.unwrap(), 1);
            bytes.extend(state.bytes);
        }
        assert_eq!(bytes, b"12345");
    });
}

// Q13: whoever waited before the cancel need not be who waits after.
#[test]
fn an_awaited_cancel_wakes_whoever_polled_last() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (_client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let (first, second) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let count = |counter: &Rc<Cell<u32>>| {
            let counter = counter.clone();
            waker(move || counter.set(counter.get() + 1))
        };
        let mut receive = recv(&server, [0; 8]);
        assert!(poll_with(&mut receive, &count(&first)).is_pending());
        let mut cancel = receive.cancel();
        // On some systems it has ended by now, and only its packet is missing.
        if poll_with(&mut cancel, &count(&second)).is_pending() {
            poll_until(&queue, || !queue.running());
            assert_eq!((first.get(), second.get()), (0, 1));
            assert!(matches!(over(cancel), Cancelled::Cancelled(_)));
        }
        assert!(!queue.running());
    });
}

// ---------------------------------------------------------------------------------------------
// Cancelled by dropping

// Q13, scenario 38, pitfalls 18 and 37: what the kernel writes to lives until it is done, and only
// then is dropped, once.
#[test]
fn a_future_dropped_while_the_kernel_writes_is_freed_once_and_after() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let writer = std::thread::spawn(move || {
            let data = vec![7; 32 << 10];
            while client.write_all(&data).is_ok() {}
        });
        let mut drops = Vec::new();
        for round in 0..300 {
            let overlapped = server.overlapped((Buffer::new(vec![1; 16 << 10]), Guard::new()));
            let overlapped = overlapped.unwrap();
            let (pointer, state) = (overlapped.as_ptr(&server).unwrap(), overlapped.state_ptr());
            let (guard, count) = Guard::tracked(pointer);
            // SAFETY: the operation is not started yet.
            unsafe { (*state).1 = guard };
            drops.push(count);
            // SAFETY: the address of a field.
            let buffer = unsafe { &raw mut (*state).0 };
            call_recv(server.as_any_handle().raw(), buffer, pointer);
            let receive = wait(&server, overlapped).unwrap();
            match round % 3 {
                0 => drop(receive),
                1 => drop(receive.cancel()),
                _ => {
                    let mut receive = receive;
                    let _ = poll_once(&mut receive);
                    drop(receive);
                }
            }
            if round % 7 == 0 {
                queue.poll(&mut Vec::new(), Some(Duration::ZERO)).unwrap();
            }
        }
        queue.run().unwrap();
        assert!(queue.pending().is_empty());
        assert_eq!(drops.iter().map(support::Drops::count).collect::<Vec<_>>(), [1; 300]);
        assert_eq!(queue.foreign_packets(), 0);
        drop(server);
        writer.join().unwrap();
    });
}

/// Stands beside a buffer in a state, and checks when it is dropped that the kernel was done.
struct Guard {
    marker: [u64; 4],
    operation: *const OVERLAPPED,
    _tracked: Option<Box<dyn std::any::Any>>,
}

impl Guard {
    const MARKER: [u64; 4] = [0x0123_4567_89AB_CDEF; 4];

    fn new() -> Self {
        Self { marker: Self::MARKER, operation: null(), _tracked: None }
    }

    fn tracked(operation: *const OVERLAPPED) -> (Self, support::Drops) {
        let (beside, drops) = tracked();
        (Self { operation, _tracked: Some(Box::new(beside)), ..Self::new() }, drops)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        assert_eq!(self.marker, Self::MARKER);
        if !self.operation.is_null() {
            // SAFETY: the state stands behind its OVERLAPPED in one slot.
            let status = unsafe { (&raw const (*self.operation).Internal).read_volatile() };
            assert_ne!(status as i32, STATUS_PENDING, "dropped while the kernel had it");
        }
    }
}

// Q2, Q13, pitfall 37: cancelled operations count for as long as they are the kernel's.
#[test]
fn run_goes_on_until_the_kernel_has_given_everything_back() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (_client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let states: Vec<_> = (0..100)
            .map(|_| {
                let (beside, drops) = tracked();
                drop(recv_beside(&server, [0; 64], beside));
                drops
            })
            .collect();
        queue.run().unwrap();
        assert!(states.iter().all(|drops| drops.count() == 1));
        assert!(queue.pending().is_empty() && !queue.running());
    });
}

// W1, W2: an operation that nobody waits for yet.
#[test]
fn dropping_a_started_operation_cancels_it() {
    ends(|| {
        for registered in [true, false] {
            let queue = Queue::new().unwrap();
            let (mut client, server) = tcp_pair();
            if registered {
                queue.persist(&server).unwrap();
            }
            let overlapped = Overlapped::on(&queue, Buffer::new([0; 8])).unwrap();
            let pointer = if registered {
                overlapped.as_ptr(&server).unwrap()
            } else {
                overlapped.as_ptr_unregistered(&server).unwrap()
            };
            let raw = server.as_any_handle().raw();
            assert_eq!(call_recv(raw, overlapped.state_ptr(), pointer), Outcome::PENDING);
            drop(overlapped);
            queue.run().unwrap();
            client.write_all(b"next").unwrap();
            let mut bytes = [0; 4];
            (&server).read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"next", "the dropped operation did not take it");
            queue.unregister(&server).unwrap();
        }
    });
}

// Q7, Q8, Q10, Q13, scenarios 20 and 39
#[test]
fn dropping_a_handle_ends_sixty_four_operations() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (pipe, _end) = pipe_pair(false);
        let pipe = queue.register(pipe).unwrap();
        let listener = queue.register(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let mut reads: Vec<_> = (0..64).map(|_| read(&pipe, [0; 16])).collect();
        let mut accepts: Vec<_> = (0..64).map(|_| accept(&listener, tcp_socket())).collect();
        // Waited for, not yet polled, dropped and forgotten ones.
        for (index, receive) in reads.iter_mut().enumerate().take(32) {
            assert!(poll_once(receive).is_pending(), "{index}");
        }
        drop(reads.split_off(48));
        std::mem::forget(accepts.split_off(48));
        drop(pipe);
        drop(listener);
        for reading in reads {
            let error = queue.block_on(reading).unwrap().0.unwrap_err();
            assert!(is_cancelled(&error), "{error}");
        }
        for accepting in accepts {
            let (result, (socket, _)) = queue.block_on(accepting).unwrap();
            let error = result.unwrap_err();
            assert!(is_cancelled(&error), "{error}");
            drop(socket);
        }
        queue.close(SECOND).unwrap();
    });
}

/// ReadDirectoryChangesW.
fn watch(directory: &Registered<File>) -> Wait<[u64; 128]> {
    unsafe {
        directory.submit([0; 128], |directory, room: *mut [u64; 128], overlapped| {
            Outcome::from_bool(ReadDirectoryChangesW(
                directory,
                room.cast(),
                1024,
                0,
                FILE_NOTIFY_CHANGE_FILE_NAME,
                null_mut(),
                overlapped,
                None,
            ))
        })
    }
}

// Q1, scenario 40
#[test]
fn dropping_a_queue_takes_everything_back_from_the_kernel() {
    ends(|| {
        for waited in [true, false] {
            let queue = Queue::new().unwrap();
            let (_client, stream) = tcp_pair();
            let stream = queue.register(stream).unwrap();
            let listener = queue.register(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
            let datagrams = queue.register(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
            let (pipe, _end) = pipe_pair(false);
            let pipe = queue.register(pipe).unwrap();
            let server = queue.register(pipe_server(&pipe_name(), false)).unwrap();
            let folder = std::env::temp_dir().join(pipe_name().replace('\\', ""));
            std::fs::create_dir(&folder).unwrap();
            let directory = File::options()
                .access_mode(FILE_LIST_DIRECTORY)
                .custom_flags(FILE_FLAG_BACKUP_SEMANTICS | FILE_FLAG_OVERLAPPED)
                .open(&folder)
                .unwrap();
            let directory = queue.register(directory).unwrap();
            let (beside, drops) = tracked();
            let mut waits: Vec<Box<dyn std::any::Any>> = vec![
                Box::new(recv_beside(&stream, [0; 64], beside)),
                Box::new(send(&stream, vec![5; 32 << 20])),
                Box::new(accept(&listener, tcp_socket())),
                Box::new(recv(&datagrams, [0; 64])),
                Box::new(read(&pipe, [0; 64])),
                Box::new(connect_pipe(&server)),
                Box::new(watch(&directory)),
            ];
            assert_eq!(queue.pending().len(), waits.len());
            if !waited {
                waits.clear();
            }
            let kept = queue.clone();
            drop(queue);
            assert_eq!(kept.close(SECOND), Ok(()), "drained");
            assert!(kept.pending().is_empty());
            drop(waits);
            assert_eq!(drops.count(), 1);
            drop((stream, listener, datagrams, pipe, server, directory));
            std::fs::remove_dir(folder).unwrap();
        }
    });
}

// Q13, pitfall 45: nothing here depends on what wakers look like.
#[test]
fn cancelling_does_not_care_which_waker_polled() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        for _ in 0..50 {
            let mut receive = recv(&server, [0; 8]);
            for _ in 0..4 {
                let other: Waker = waker(|| panic!("replaced by a later waker"));
                assert!(poll_with(&mut receive, &other).is_pending());
            }
            assert!(poll_once(&mut receive).is_pending());
            drop(receive);
        }
        queue.run().unwrap();
        client.write_all(b"all gone").unwrap();
        assert_eq!(queue.block_on(recv(&server, [0; 8])).unwrap().1.bytes, b"all gone");
    });
}

// ---------------------------------------------------------------------------------------------
// User code in the middle

// Scenario 43, pitfalls 21 and 48
#[test]
fn a_waker_may_drop_other_futures_and_start_operations() {
    ends(|| {
        for how in ["run", "poll"] {
            let queue = Queue::new().unwrap();
            let ((mut client, one), (peer, two)) = (tcp_pair(), tcp_pair());
            let (one, two) = (queue.register(one).unwrap(), Rc::new(queue.register(two).unwrap()));
            let neighbours: Rc<RefCell<Vec<_>>> = Rc::default();
            let mut first = recv(&one, [0; 8]);
            for _ in 0..3 {
                let mut receive = recv(&*two, [0; 8]);
                assert!(poll_once(&mut receive).is_pending());
                neighbours.borrow_mut().push(receive);
            }
            let started = Rc::new(RefCell::new(None));
            let woken = {
                let (neighbours, two) = (neighbours.clone(), two.clone());
                let (started, queue) = (started.clone(), queue.clone());
                let peer = RefCell::new(peer);
                waker(move || {
                    neighbours.take();
                    started.replace(Some(recv(&*two, [0; 8])));
                    queue.poll(&mut Vec::new(), Some(Duration::ZERO)).unwrap();
                    queue.spawn(async {}).detach();
                    peer.borrow_mut().write_all(b"new one").unwrap();
                })
            };
            assert!(poll_with(&mut first, &woken).is_pending());
            client.write_all(b"go").unwrap();
            if how == "poll" {
                poll_until(&queue, || started.borrow().is_some());
            } else {
                queue.run().unwrap();
            }
            assert_eq!(over(first).0.unwrap(), 2);
            let receive = started.take().unwrap();
            assert_eq!(queue.block_on(receive).unwrap().0.unwrap(), 7);
            queue.run().unwrap();
            drop(woken);
            assert!(queue.pending().is_empty());
        }
    });
}

/// A waker whose clone and drop call closures.
struct Meddling {
    clone: Box<dyn Fn()>,
    drop: Box<dyn Fn()>,
    wakes: Cell<u32>,
}

impl Meddling {
    fn waker(self: &Rc<Self>) -> Waker {
        // SAFETY: used on one thread; the functions keep the count of references.
        unsafe { Waker::from_raw(Self::raw(self.clone())) }
    }

    fn raw(this: Rc<Self>) -> RawWaker {
        fn of(data: *const ()) -> Rc<Meddling> {
            // SAFETY: made from such an Rc below.
            unsafe { Rc::from_raw(data.cast()) }
        }
        fn clone(data: *const ()) -> RawWaker {
            let this = std::mem::ManuallyDrop::new(of(data));
            (this.clone)();
            Meddling::raw(Rc::clone(&this))
        }
        fn wake(data: *const ()) {
            let this = of(data);
            this.wakes.set(this.wakes.get() + 1);
        }
        fn wake_by_ref(data: *const ()) {
            let this = std::mem::ManuallyDrop::new(of(data));
            this.wakes.set(this.wakes.get() + 1);
        }
        fn drop(data: *const ()) {
            let this = of(data);
            (this.drop)();
        }
        static TABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake_by_ref, drop);
        RawWaker::new(Rc::into_raw(this).cast(), &TABLE)
    }
}

// Pitfalls 21 and 48: cloning and dropping a waker is user code as well.
#[test]
fn cloning_or_dropping_a_waker_may_poll_the_queue() {
    ends(|| {
        for clones in [true, false] {
            let queue = Queue::new().unwrap();
            let (mut client, server) = tcp_pair();
            let server = queue.register(server).unwrap();
            let (mut waiting, operation) = receiving(&server);
            let armed = Rc::new(Cell::new(false));
            let poll = |when: bool| -> Box<dyn Fn()> {
                let (queue, armed) = (queue.clone(), armed.clone());
                Box::new(move || {
                    if when && armed.get() {
                        let mut ready = Vec::new();
                        queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
                        ready.drain(..).for_each(|continuation| {
                            continuation.resume();
                        });
                    }
                })
            };
            let meddling =
                Rc::new(Meddling { clone: poll(clones), drop: poll(!clones), wakes: Cell::new(0) });
            if !clones {
                assert!(poll_with(&mut waiting, &meddling.waker()).is_pending());
            }
            client.write_all(b"mid").unwrap();
            until_ended(operation);
            armed.set(true);
            let next = meddling.waker();
            let other = Waker::noop();
            let polled = poll_with(&mut waiting, if clones { &next } else { other });
            armed.set(false);
            let (result, _) = match polled {
                Poll::Ready(output) => output,
                Poll::Pending => queue.block_on(waiting).unwrap(),
            };
            assert_eq!(result.unwrap(), 3);
            drop(next);
            assert_eq!(Rc::strong_count(&meddling), 1, "a waker of a finished wait is kept");

            // And none comes out for the next operation in the same memory.
            let (second, operation) = receiving(&server);
            client.write_all(b"two").unwrap();
            until_ended(operation);
            let wakes = meddling.wakes.get();
            assert_eq!(queue.block_on(second).unwrap().0.unwrap(), 3);
            assert_eq!(meddling.wakes.get(), wakes);
        }
    });
}

// Pitfall 48: a wait that owns another, and a task that owns its waiter.
#[test]
fn states_may_own_waits() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let ((mut client, one), (_b, two)) = (tcp_pair(), tcp_pair());
        let (one, two) = (queue.register(one).unwrap(), queue.register(two).unwrap());
        let (beside, drops) = tracked();
        let inner = recv_beside(&two, [0; 8], beside);
        let outer = recv_beside(&one, [0; 8], inner);
        assert_eq!(queue.pending().len(), 2);
        drop(outer);
        queue.run().unwrap();
        assert_eq!(drops.count(), 1);
        let (beside, drops) = tracked();
        let inner = recv_beside(&two, [0; 8], beside);
        let outer = recv_beside(&one, [0; 8], inner);
        client.write_all(b"x").unwrap();
        let (result, (_, inner)) = queue.block_on(outer).unwrap();
        assert_eq!((result.unwrap(), drops.count()), (1, 0));
        queue.close(SECOND).unwrap();
        drop(inner);
        assert_eq!(drops.count(), 1);
    });
}

// Pitfalls 18 and 21: what the kernel gave back late is dropped by the poll that hears of it, with
// nothing of the queue borrowed.
#[test]
fn what_poll_drops_may_use_the_queue() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let mut clients = Vec::new();
        let mut all = Vec::new();
        for _ in 0..3 {
            let (client, server) = tcp_pair();
            queue.persist(&server).unwrap();
            let (beside, drops) = tracked();
            let inner = queue.clone();
            let uses = OnDrop(move || {
                let _beside = &beside;
                inner.poll(&mut Vec::new(), Some(Duration::ZERO)).unwrap();
                inner.block_on(inner.spawn(async {})).unwrap();
                inner.on_foreign_packet(|_| ());
                let _ = (inner.pending(), format!("{inner:?}"));
            });
            // Too large for the buffers between the two, so it stays in flight.
            let state = (Buffer::new(vec![7; 16 << 20]), uses);
            let sending = unsafe {
                queue.submit_at(&server, 0, state, |socket, state, overlapped| {
                    support::call_send(socket, &raw mut (*state).0, overlapped)
                })
            };
            // Closed under it, so that it cannot be cancelled, and then given up.
            drop(server);
            drop(sending);
            clients.push(client);
            all.push(drops);
        }
        // The last one first: Wine forgets the first one's send otherwise.
        while let Some(client) = clients.pop() {
            drop(client);
        }
        poll_until(&queue, || all.iter().all(|drops| drops.count() == 1));
        queue.run().unwrap();
        assert!(queue.pending().is_empty());
    });
}

// Scenario 44, rule 5: a state whose drop panics is dropped once, and its operation is not lost.
#[test]
fn a_state_whose_drop_panics_is_dropped_once() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let count = Rc::new(Cell::new(0));
        for _ in 0..20 {
            let counted = count.clone();
            let bomb = OnDrop(move || {
                counted.set(counted.get() + 1);
                panic!("in the drop");
            });
            let receive = recv_beside(&server, [0; 8], bomb);
            let dropping = std::panic::AssertUnwindSafe(|| {
                drop(receive);
                while queue.running() {
                    queue.poll(&mut Vec::new(), None).unwrap();
                }
            });
            assert!(std::panic::catch_unwind(dropping).is_err());
        }
        assert_eq!(count.get(), 20);
        assert!(!queue.running() && queue.pending().is_empty());
        client.write_all(b"still on").unwrap();
        assert_eq!(queue.block_on(recv(&server, [0; 8])).unwrap().1.bytes, b"still on");
    });
}
