#![cfg(any(windows, feature = "sim"))]
//! One script, two systems: each test runs on the simulated Windows and, where there is one, on the
//! real one (or on Wine), and asks both for the same statuses and byte counts. This holds the model
//! against something that is not ours.
//!
//! What Wine does otherwise than Windows is left out here; `docs/TESTED.md` says where it is tested.

#[cfg(windows)]
#[path = "both/real.rs"]
mod real;
#[cfg(feature = "sim")]
#[path = "both/simulated.rs"]
mod simulated;
#[cfg(windows)]
mod support;
#[path = "both/system.rs"]
mod system;

use std::cell::{Cell, RefCell};
use std::ptr::{null_mut, without_provenance_mut};
use std::rc::Rc;
use std::time::Duration;

use ioqueue::error::{NtStatus, is_cancelled};
use ioqueue::iocp::{Cancelled, Completion, OVERLAPPED, Outcome, Wait, wait, wait_with};
use ioqueue::{
    AsAnyHandle, Continuation, Misuse, Overlapped, Persist, PersistFailure, Queue, RawHandle,
};
use system::System;
use windows_sys::Win32::Foundation as win;
use windows_sys::Win32::Networking::WinSock::WSAECONNRESET;

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

// ---------------------------------------------------------------------------------------------
// What the scripts are made of

fn raw(handle: &(impl AsAnyHandle + ?Sized)) -> RawHandle {
    handle.as_any_handle().raw()
}

/// Starts a read, and tells what the call said.
#[track_caller]
fn read_told<S: System>(
    system: &S,
    queue: &Queue,
    handle: &impl AsAnyHandle,
    (offset, length): (u64, usize),
) -> (Wait<Vec<u8>>, Outcome) {
    let told = Cell::new(None);
    // SAFETY: one call, with what was given, and what it returned; the bytes are the state's.
    let wait = unsafe {
        queue.submit_at(handle, offset, vec![0; length], |handle, buffer, overlapped| {
            let buffer = &mut *buffer;
            let outcome = system.read_file(handle, buffer.as_mut_ptr(), buffer.len(), overlapped);
            told.set(Some(outcome));
            outcome
        })
    };
    (wait, told.get().expect("the call was made"))
}

/// Starts a read of so many bytes.
#[track_caller]
fn read<S: System>(
    system: &S,
    queue: &Queue,
    handle: &impl AsAnyHandle,
    length: usize,
) -> Wait<Vec<u8>> {
    read_at(system, queue, handle, 0, length)
}

/// Starts a read at a place in a file.
#[track_caller]
fn read_at<S: System>(
    system: &S,
    queue: &Queue,
    handle: &impl AsAnyHandle,
    offset: u64,
    length: usize,
) -> Wait<Vec<u8>> {
    // SAFETY: as in `read_told`.
    unsafe {
        queue.submit_at(handle, offset, vec![0; length], |handle, buffer, overlapped| {
            let buffer = &mut *buffer;
            system.read_file(handle, buffer.as_mut_ptr(), buffer.len(), overlapped)
        })
    }
}

/// Starts a write.
#[track_caller]
fn write<S: System>(
    system: &S,
    queue: &Queue,
    handle: &impl AsAnyHandle,
    bytes: &[u8],
) -> Wait<Vec<u8>> {
    write_at(system, queue, handle, 0, bytes)
}

/// Starts a write at a place in a file.
#[track_caller]
fn write_at<S: System>(
    system: &S,
    queue: &Queue,
    handle: &impl AsAnyHandle,
    offset: u64,
    bytes: &[u8],
) -> Wait<Vec<u8>> {
    // SAFETY: as in `read_told`.
    unsafe {
        queue.submit_at(handle, offset, bytes.to_vec(), |handle, bytes, overlapped| {
            let bytes = &*bytes;
            system.write_file(handle, bytes.as_ptr(), bytes.len(), overlapped)
        })
    }
}

/// Starts a read by hand; what it returns is to be waited for. With its address.
fn start_read<S: System>(
    system: &S,
    queue: &Queue,
    handle: &impl AsAnyHandle,
    length: usize,
) -> (Overlapped<Vec<u8>>, *mut OVERLAPPED) {
    let mut operation = Overlapped::on(queue, vec![0; length]).unwrap();
    let mut address = null_mut();
    // SAFETY: as in `read_told`.
    let started = unsafe {
        operation.start(handle, |handle, buffer, overlapped| {
            address = overlapped;
            let buffer = &mut *buffer;
            system.read_file(handle, buffer.as_mut_ptr(), buffer.len(), overlapped)
        })
    };
    started.unwrap();
    (operation, address)
}

/// How an operation ended.
#[track_caller]
fn ended(queue: &Queue, wait: Wait<Vec<u8>>) -> Completion<Vec<u8>> {
    queue.block_on(wait.exact()).unwrap()
}

/// That an operation ended with this status and these bytes.
#[track_caller]
fn ends_with(queue: &Queue, wait: Wait<Vec<u8>>, status: i32, bytes: &[u8]) {
    let end = ended(queue, wait);
    let seen = (end.status, &end.state[..end.bytes as usize]);
    assert_eq!(seen, (NtStatus(status), bytes));
}

/// That an operation ended with this error code and no bytes. A call that fails at once leaves only the
/// code.
#[track_caller]
fn fails_with(queue: &Queue, wait: Wait<Vec<u8>>, code: u32) {
    let end = ended(queue, wait);
    assert_eq!((end.status.to_win32(), end.bytes), (code, 0), "{end:?}");
    let error = end.result().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(code as i32));
}

/// Writes all of `bytes`, which has to work.
#[track_caller]
fn put<S: System>(system: &S, queue: &Queue, handle: &impl AsAnyHandle, bytes: &[u8]) {
    ends_with(queue, write(system, queue, handle, bytes), win::STATUS_SUCCESS, bytes);
}

/// Takes off the port what comes without waiting for anything: how many continuations that were.
fn look(queue: &Queue) -> usize {
    let mut ready = Vec::new();
    for _ in 0..3 {
        queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
    }
    ready.len()
}

/// Nothing is left: no packet, no operation, nothing that was not the queue's.
#[track_caller]
fn is_quiet<S: System>(system: &S, queue: &Queue) {
    assert_eq!(look(queue), 0, "continuations are left");
    assert_eq!(system.packets(queue), 0, "packets are left");
    assert_eq!(queue.foreign_packets(), 0, "packets came that were nobody's");
    assert!(queue.pending().is_empty() && !queue.running(), "{:?}", queue.pending());
}

/// Closes the queue, which has to get everything back.
#[track_caller]
fn close<S: System>(system: &S, queue: Queue) {
    queue.close(SECOND).unwrap();
    drop(queue);
    system.check();
}

// ---------------------------------------------------------------------------------------------
// Registering

// Q6
fn registering_again_changes_nothing<S: System>(system: S) {
    let queue = system.queue();
    let (ours, theirs) = system.pipe();
    for handle in [&ours, &ours, &theirs, &ours] {
        queue.persist(handle).unwrap();
    }
    let reading = read(&system, &queue, &ours, 8);
    queue.persist(&ours).unwrap();
    put(&system, &queue, &theirs, b"data");
    ends_with(&queue, reading, win::STATUS_SUCCESS, b"data");
    is_quiet(&system, &queue);
    close(&system, queue);
}

// Q6, pitfalls 5 and 35: three mistakes that CreateIoCompletionPort tells alike, and two it does not.
fn what_cannot_be_registered_says_why<S: System>(system: S) {
    let (queue, other) = (system.queue(), system.queue());
    let (taken, owned) = (system.file(b""), other.register(system.file(b"")).unwrap());
    other.persist(&taken).unwrap();
    let (elsewhere, duplicated) = (system.file(b""), system.pipe().0);
    system.bind_elsewhere(&elsewhere);
    let duplicate = system.duplicate(&duplicated);
    queue.persist(&duplicated).unwrap();
    let (synchronous, event) = (system.synchronous_file(), system.event());
    let mut closed = system.file(b"");
    // The last, so that nobody else gets its value.
    system.close(&mut closed);
    let reasons = [
        (&taken as &dyn AsAnyHandle, PersistFailure::WrongQueue),
        (&owned, PersistFailure::WrongQueue),
        (&elsewhere, PersistFailure::AlreadyBound),
        // A duplicate is the same file object.
        (&duplicate, PersistFailure::AlreadyBound),
        (&synchronous, PersistFailure::NotOverlapped),
        (&event, PersistFailure::InvalidHandle),
        (&closed, PersistFailure::InvalidHandle),
    ];
    for (handle, reason) in reasons {
        assert_eq!(queue.persist(handle).unwrap_err().reason(), reason);
        // Nothing is half-registered.
        let refused = Overlapped::on(&queue, ()).unwrap().as_ptr(handle).unwrap_err();
        let wrong = reason == PersistFailure::WrongQueue;
        assert_eq!(matches!(refused, Misuse::WrongQueue { .. }), wrong, "{reason:?}: {refused}");
        assert!(wrong || matches!(refused, Misuse::UnregisteredHandle { .. }), "{refused}");
    }
    is_quiet(&system, &queue);
    drop((owned, other));
    close(&system, queue);
}

// W2: an operation that is in flight when its handle is bound ends on the port, one that has ended does
// not.
fn an_operation_may_be_older_than_its_registration<S: System>(system: S) {
    let queue = system.queue();
    for ends_first in [false, true] {
        let (ours, theirs) = system.pipe();
        queue.persist(&theirs).unwrap();
        let operation = Overlapped::on(&queue, vec![0_u8; 8]).unwrap();
        let address = operation.as_ptr_unregistered(&ours).unwrap();
        // SAFETY: one call, with the operation's own memory.
        let outcome = unsafe {
            let buffer = &mut *operation.state_ptr();
            system.read_file(raw(&ours), buffer.as_mut_ptr(), buffer.len(), address)
        };
        assert_eq!(outcome, Outcome::PENDING);
        if ends_first {
            put(&system, &queue, &theirs, b"data");
        }
        queue.persist(&ours).unwrap();
        let waiting = wait(&ours, operation).unwrap();
        assert_eq!(queue.running(), !ends_first);
        if !ends_first {
            put(&system, &queue, &theirs, b"data");
        }
        ends_with(&queue, waiting, win::STATUS_SUCCESS, b"data");
        is_quiet(&system, &queue);
    }
    close(&system, queue);
}

// ---------------------------------------------------------------------------------------------
// How operations end

fn a_read_pends_until_something_comes<S: System>(system: S) {
    let queue = system.queue();
    for (ours, theirs) in [system.pipe(), system.message_pipe(), system.connection()] {
        let (ours, theirs) = (queue.register(ours).unwrap(), queue.register(theirs).unwrap());
        let (reading, outcome) = read_told(&system, &queue, &ours, (0, 8));
        assert_eq!(outcome, Outcome::PENDING);
        assert_eq!((look(&queue), queue.pending().len(), queue.running()), (0, 1, true));
        put(&system, &queue, &theirs, b"data");
        ends_with(&queue, reading, win::STATUS_SUCCESS, b"data");
        is_quiet(&system, &queue);
    }
    close(&system, queue);
}

// W6, pitfalls 54 and 55: what ends at once leaves a packet only if asked to.
fn what_ends_at_once_leaves_a_packet_only_where_packets_are_kept<S: System>(system: S) {
    let queue = system.queue();
    for (keep, packets) in [(Persist::default(), 0), (Persist::keep_packets(), 1)] {
        for (ours, theirs) in [system.pipe(), system.message_pipe(), system.connection()] {
            let ours = queue.register_with(ours, keep).unwrap();
            let theirs = queue.register(theirs).unwrap();
            put(&system, &queue, &theirs, b"data");
            assert_eq!(look(&queue), 0);
            let (reading, outcome) = read_told(&system, &queue, &ours, (0, 8));
            assert_eq!(outcome, Outcome::FINISHED);
            assert!(queue.pending().is_empty() && !queue.running());
            assert_eq!(system.packets(&queue), packets);
            ends_with(&queue, reading, win::STATUS_SUCCESS, b"data");
            is_quiet(&system, &queue);
        }
    }
    close(&system, queue);
}

// Pitfall 54: skip mode is the file object's. A queue that keeps packets on a handle that skips them
// already knows.
fn a_mode_that_was_on_before_is_known<S: System>(system: S) {
    let queue = system.queue();
    let (ours, theirs) = system.pipe();
    queue.persist(&theirs).unwrap();
    let again = system.duplicate(&ours);
    queue.persist(&ours).unwrap();
    system.close(&mut { ours });
    // Whether it can be taken off the port differs; what it says when asked does not.
    let refused = queue.persist_with(&again, Persist::keep_packets()).unwrap_err();
    assert_eq!(refused.reason(), PersistFailure::AlreadyBound);
    is_quiet(&system, &queue);
    close(&system, queue);
}

// Pitfalls 3 and 47, W8, scenario 11.
fn a_message_longer_than_the_buffer_keeps_its_bytes<S: System>(system: S) {
    let queue = system.queue();
    for keep in [Persist::default(), Persist::keep_packets()] {
        for is_late in [true, false] {
            let (ours, theirs) = system.message_pipe();
            let ours = queue.register_with(ours, keep).unwrap();
            let theirs = queue.register(theirs).unwrap();
            let late = is_late.then(|| read(&system, &queue, &ours, 8));
            put(&system, &queue, &theirs, b"longer than eight");
            let part = late.unwrap_or_else(|| read(&system, &queue, &ours, 8));
            let part = ended(&queue, part);
            assert_eq!((part.status.to_win32(), part.bytes), (win::ERROR_MORE_DATA, 8));
            assert!(part.status.is_warning() == is_late || !part.status.is_success());
            assert_eq!(part.state, b"longer t");
            assert!(!is_late || part.status == NtStatus(win::STATUS_BUFFER_OVERFLOW));
            let rest = read(&system, &queue, &ours, 32);
            ends_with(&queue, rest, win::STATUS_SUCCESS, b"han eight");
            is_quiet(&system, &queue);
        }
    }
    close(&system, queue);
}

// Messages stay apart, the pieces of a stream do not.
fn messages_stay_apart_and_the_pieces_of_a_stream_do_not<S: System>(system: S) {
    let queue = system.queue();
    let written: [&[u8]; 3] = [b"one", b"two", b"three"];
    for ((ours, theirs), has_messages) in
        [(system.message_pipe(), true), (system.pipe(), false), (system.connection(), false)]
    {
        let (ours, theirs) = (queue.register(ours).unwrap(), queue.register(theirs).unwrap());
        for part in written {
            put(&system, &queue, &theirs, part);
        }
        let expected: &[&[u8]] = if has_messages { &written } else { &[b"onetwot", b"hree"] };
        for part in expected {
            let length = if has_messages { 32 } else { 7 };
            let reading = read(&system, &queue, &ours, length);
            ends_with(&queue, reading, win::STATUS_SUCCESS, part);
        }
        let waiting = read(&system, &queue, &ours, 32);
        assert_eq!((look(&queue), queue.pending().len()), (0, 1));
        drop(waiting);
    }
    close(&system, queue);
}

// Scenario 4
fn reads_and_writes_of_nothing<S: System>(system: S) {
    let queue = system.queue();
    let (ours, theirs) = system.message_pipe();
    let (ours, theirs) = (queue.register(ours).unwrap(), queue.register(theirs).unwrap());
    // A message of no bytes is a message.
    put(&system, &queue, &theirs, b"");
    ends_with(&queue, read(&system, &queue, &ours, 4), win::STATUS_SUCCESS, b"");
    // A read of nothing waits for a message, and takes nothing of it.
    let nothing = read(&system, &queue, &ours, 0);
    assert_eq!((look(&queue), queue.pending().len()), (0, 1));
    put(&system, &queue, &theirs, b"data");
    ends_with(&queue, nothing, win::STATUS_BUFFER_OVERFLOW, b"");
    ends_with(&queue, read(&system, &queue, &ours, 4), win::STATUS_SUCCESS, b"data");
    // Of a stream neither does anything.
    let (ours, theirs) = system.pipe();
    let (ours, theirs) = (queue.register(ours).unwrap(), queue.register(theirs).unwrap());
    put(&system, &queue, &theirs, b"data");
    put(&system, &queue, &theirs, b"");
    ends_with(&queue, read(&system, &queue, &ours, 0), win::STATUS_SUCCESS, b"");
    ends_with(&queue, read(&system, &queue, &ours, 8), win::STATUS_SUCCESS, b"data");
    let reading = read(&system, &queue, &ours, 4);
    put(&system, &queue, &theirs, b"");
    assert_eq!((look(&queue), queue.pending().len()), (0, 1));
    put(&system, &queue, &theirs, b"more");
    ends_with(&queue, reading, win::STATUS_SUCCESS, b"more");
    is_quiet(&system, &queue);
    close(&system, queue);
}

// W8, scenarios 1 and 2: the end comes after what was written before it.
fn a_pipe_that_broke_is_an_end_for_a_read_and_an_error_for_a_write<S: System>(system: S) {
    let queue = system.queue();
    let (ours, theirs) = system.pipe();
    let ours = queue.register(ours).unwrap();
    let theirs = queue.register(theirs).unwrap();
    put(&system, &queue, &theirs, b"last words");
    drop(theirs);
    ends_with(&queue, read(&system, &queue, &ours, 4), win::STATUS_SUCCESS, b"last");
    ends_with(&queue, read(&system, &queue, &ours, 32), win::STATUS_SUCCESS, b" words");
    for _ in 0..2 {
        let end = ended(&queue, read(&system, &queue, &ours, 32));
        assert_eq!((end.status.to_win32(), end.bytes), (win::ERROR_BROKEN_PIPE, 0));
        assert_eq!(end.read_result().unwrap(), 0);
        fails_with(&queue, write(&system, &queue, &ours, b"hello?"), win::ERROR_NO_DATA);
    }
    is_quiet(&system, &queue);
    // A read that waits learns of it, in the kernel's own words.
    let (ours, theirs) = system.pipe();
    let ours = queue.register(ours).unwrap();
    let reading = read(&system, &queue, &ours, 8);
    assert_eq!((look(&queue), queue.pending().len()), (0, 1));
    drop(theirs);
    let end = ended(&queue, reading);
    assert_eq!((end.status, end.bytes), (NtStatus(win::STATUS_PIPE_BROKEN), 0));
    assert_eq!(end.read_result().unwrap(), 0);
    is_quiet(&system, &queue);
    close(&system, queue);
}

// Pitfalls 27 and 47, scenario 15: a connection's end is a success of no bytes, a reset is an error.
fn a_reset_is_an_error_and_an_end_is_not<S: System>(system: S) {
    let queue = system.queue();
    for is_reset in [false, true] {
        let (ours, theirs) = system.connection();
        let ours = queue.register(ours).unwrap();
        let receiving = read(&system, &queue, &ours, 8);
        assert_eq!((look(&queue), queue.pending().len()), (0, 1));
        if is_reset {
            system.reset(theirs, &ours);
            ends_with(&queue, receiving, win::STATUS_CONNECTION_RESET, b"");
        } else {
            drop(theirs);
            ends_with(&queue, receiving, win::STATUS_SUCCESS, b"");
            ends_with(&queue, read(&system, &queue, &ours, 8), win::STATUS_SUCCESS, b"");
            // Nobody is there, which the other side has yet to say.
            put(&system, &queue, &ours, b"hello?");
        }
        is_quiet(&system, &queue);
    }
    assert_eq!(NtStatus(win::STATUS_CONNECTION_RESET).to_win32(), WSAECONNRESET as u32);
    close(&system, queue);
}

// Q10: reads end in the order in which they were started, whatever comes how.
fn reads_in_flight_end_in_their_order<S: System>(system: S) {
    let queue = system.queue();
    for (ours, theirs) in [system.pipe(), system.connection()] {
        let (ours, theirs) = (queue.register(ours).unwrap(), queue.register(theirs).unwrap());
        let order = Rc::new(RefCell::new(Vec::new()));
        for number in 0..6_usize {
            let reading = read(&system, &queue, &ours, 2);
            let order = Rc::clone(&order);
            let noted = async move {
                let (count, bytes) = reading.await;
                order.borrow_mut().push((number, bytes[..count.unwrap() as usize].to_vec()));
            };
            queue.spawn(noted).detach();
        }
        assert_eq!(queue.pending().len(), 6);
        // The first two with one write, the last with one byte.
        for part in [&b"aabb"[..], b"cc", b"ddee", b"f"] {
            put(&system, &queue, &theirs, part);
        }
        queue.run().unwrap();
        let expected: Vec<_> = ["aa", "bb", "cc", "dd", "ee", "f"].map(Vec::from).into();
        assert_eq!(*order.borrow(), expected.into_iter().enumerate().collect::<Vec<_>>());
        is_quiet(&system, &queue);
    }
    close(&system, queue);
}

// Q3: packets come in the order in which operations ended, more of them than one call takes.
fn packets_come_in_the_order_of_the_ends<S: System>(system: S) {
    const MANY: usize = 300;
    let queue = system.queue();
    let pipes: Vec<_> = (0..MANY).map(|_| system.pipe()).collect();
    let mut parked = Vec::new();
    for (key, (ours, theirs)) in pipes.iter().enumerate() {
        queue.persist(ours).unwrap();
        queue.persist(theirs).unwrap();
        let (operation, _) = start_read(&system, &queue, ours, 1);
        parked.push(wait_with(key, ours, operation).unwrap());
    }
    // 7 and 300 share no factor.
    let order: Vec<_> = (0..MANY).map(|step| step * 7 % MANY).collect();
    for &index in &order {
        // Ended at once, so that nothing looks at the port meanwhile.
        let writing = write(&system, &queue, &pipes[index].1, b"x");
        assert!(!queue.pending().iter().any(|pending| pending.handle == id(&pipes[index].1)));
        drop(writing);
    }
    let (mut ready, mut seen) = (Vec::new(), Vec::new());
    while seen.len() < MANY {
        queue.poll(&mut ready, Some(SECOND)).unwrap();
        assert!(!ready.is_empty(), "{} of {MANY} came", seen.len());
        seen.extend(ready.drain(..).filter_map(Continuation::resume));
    }
    assert_eq!(seen, order);
    for ticket in parked {
        assert_eq!(ticket.take().unwrap().0.unwrap(), 1);
    }
    is_quiet(&system, &queue);
    for (ours, theirs) in &pipes {
        queue.unregister(ours).unwrap();
        queue.unregister(theirs).unwrap();
    }
    drop(pipes);
    close(&system, queue);
}

fn id(handle: &impl AsAnyHandle) -> ioqueue::HandleId {
    handle.as_any_handle().id()
}

// `GetQueuedCompletionStatus`, "Remarks": the low bit of hEvent keeps an operation's packet off the
// port (pitfall 5). And what the queue did not start is not the queue's (W7).
fn an_operation_of_others_is_foreign_and_the_low_bit_of_its_event_silences_it<S: System>(
    system: S,
) {
    let queue = system.queue();
    let (ours, theirs) = system.pipe();
    queue.persist(&ours).unwrap();
    queue.persist(&theirs).unwrap();
    let event = system.event();
    for (is_silent, foreign) in [(true, 0), (false, 1)] {
        let mut overlapped = Box::<OVERLAPPED>::default();
        let mut buffer = Box::new([0_u8; 8]);
        if is_silent {
            overlapped.hEvent = without_provenance_mut(raw(&event).addr() | 1);
        }
        let (address, start) = (&raw mut *overlapped, buffer.as_mut_ptr());
        // SAFETY: both live until the data has come.
        let outcome = unsafe { system.read_file(raw(&ours), start, 8, address) };
        assert_eq!(outcome, Outcome::PENDING);
        put(&system, &queue, &theirs, b"data");
        assert_eq!(look(&queue), 0);
        // SAFETY: the kernel is done with it, or this would be STATUS_PENDING.
        let ended = unsafe { ((&raw const (*address).Internal).read_volatile(), &buffer[..4]) };
        assert_eq!((ended.0 as u32 as i32, ended.1), (win::STATUS_SUCCESS, &b"data"[..]));
        assert_eq!(queue.foreign_packets(), foreign);
    }
    close(&system, queue);
}

// ---------------------------------------------------------------------------------------------
// Files

// Pitfall 22, scenario 30
fn a_place_in_a_file_has_64_bits<S: System>(system: S) {
    const FAR: u64 = (5 << 30) + 7;
    let queue = system.queue();
    let file = queue.register(system.file(b"start")).unwrap();
    let far: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    for place in [FAR, (1 << 32) - 3] {
        let writing = write_at(&system, &queue, &file, place, &far);
        ends_with(&queue, writing, win::STATUS_SUCCESS, &far);
    }
    let at = |place, length| read_at(&system, &queue, &file, place, length);
    ends_with(&queue, at((1 << 32) - 4, 5), win::STATUS_SUCCESS, &[0, 0, 1, 2, 3]);
    ends_with(&queue, at(1 << 32, 4), win::STATUS_SUCCESS, &[3, 4, 5, 6]);
    ends_with(&queue, at(FAR, 20_000), win::STATUS_SUCCESS, &far);
    ends_with(&queue, at(FAR + 9_998, 5), win::STATUS_SUCCESS, &far[9_998..]);
    ends_with(&queue, at(3, 5), win::STATUS_SUCCESS, b"rt\0\0\0");
    ends_with(&queue, at(5 << 30, 7), win::STATUS_SUCCESS, &[0; 7]);
    fails_with(&queue, at(FAR + 10_000, 8), win::ERROR_HANDLE_EOF);
    is_quiet(&system, &queue);
    drop(file);
    close(&system, queue);
}

// Scenario 34, and writes at the end (`WriteFile`, "Remarks").
fn a_file_has_an_end_that_writes_can_move<S: System>(system: S) {
    let queue = system.queue();
    let file = queue.register(system.file(b"start")).unwrap();
    let at = |place, length| read_at(&system, &queue, &file, place, length);
    ends_with(&queue, at(1, 32), win::STATUS_SUCCESS, b"tart");
    ends_with(&queue, at(5, 0), win::STATUS_SUCCESS, b"");
    let end = ended(&queue, at(5, 32));
    assert_eq!((end.status.to_win32(), end.bytes), (win::ERROR_HANDLE_EOF, 0));
    assert_eq!(end.read_result().unwrap(), 0);
    for more in [b" and", b" end"] {
        let writing = write_at(&system, &queue, &file, u64::MAX, more);
        ends_with(&queue, writing, win::STATUS_SUCCESS, more);
    }
    ends_with(&queue, at(0, 32), win::STATUS_SUCCESS, b"start and end");
    // Otherwise a place below zero is none.
    fails_with(&queue, at(1 << 63, 8), win::ERROR_INVALID_PARAMETER);
    let writing = write_at(&system, &queue, &file, 1 << 63, b"lost");
    fails_with(&queue, writing, win::ERROR_INVALID_PARAMETER);
    is_quiet(&system, &queue);
    drop(file);
    close(&system, queue);
}

// Q10, scenario 33
fn each_of_many_reads_of_a_file_gets_its_own_bytes<S: System>(system: S) {
    let queue = system.queue();
    let contents: Vec<u8> = (0..64_u8).flat_map(|block| [block; 16]).collect();
    let file = queue.register(system.file(&contents)).unwrap();
    let reads: Vec<_> =
        (0..64).map(|block| read_at(&system, &queue, &file, block * 16, 16)).collect();
    for (block, reading) in reads.into_iter().enumerate().rev() {
        ends_with(&queue, reading, win::STATUS_SUCCESS, &[block as u8; 16]);
    }
    is_quiet(&system, &queue);
    drop(file);
    close(&system, queue);
}

// ---------------------------------------------------------------------------------------------
// Cancelling

// Pitfall 17
fn a_cancelled_read_ends_once_and_cannot_be_cancelled_again<S: System>(system: S) {
    let queue = system.queue();
    for (ours, theirs) in [system.pipe(), system.message_pipe(), system.connection()] {
        queue.persist(&ours).unwrap();
        queue.persist(&theirs).unwrap();
        let (operation, address) = start_read(&system, &queue, &ours, 8);
        let parked = wait_with(4711_usize, &ours, operation).unwrap();
        assert_eq!(system.cancel(raw(&theirs), address), Some(win::ERROR_NOT_FOUND as i32));
        assert_eq!(system.cancel(raw(&ours), address), None);
        let mut ready = Vec::new();
        queue.poll(&mut ready, Some(SECOND)).unwrap();
        let keys: Vec<_> = ready.into_iter().filter_map(Continuation::resume).collect();
        assert_eq!(keys, [4711]);
        assert_eq!(system.cancel(raw(&ours), address), Some(win::ERROR_NOT_FOUND as i32));
        let end = parked.take_exact().unwrap();
        assert_eq!((end.status, end.bytes), (NtStatus(win::STATUS_CANCELLED), 0));
        assert!(is_cancelled(&end.result().unwrap_err()));
        is_quiet(&system, &queue);
        // Nothing was lost.
        put(&system, &queue, &theirs, b"data");
        ends_with(&queue, read(&system, &queue, &ours, 8), win::STATUS_SUCCESS, b"data");
    }
    let mut closed = system.pipe().0;
    system.close(&mut closed);
    assert_eq!(system.cancel(raw(&closed), null_mut()), Some(win::ERROR_INVALID_HANDLE as i32));
    close(&system, queue);
}

fn a_cancel_hits_one_operation_and_a_cancel_of_none_hits_all<S: System>(system: S) {
    let queue = system.queue();
    let (ours, theirs) = system.pipe();
    queue.persist(&ours).unwrap();
    queue.persist(&theirs).unwrap();
    let mut reads: Vec<_> =
        (0..4).map(|_| start_read(&system, &queue, &ours, 4)).map(Some).collect();
    let (second, address) = reads[1].take().unwrap();
    assert_eq!(system.cancel(raw(&ours), address), None);
    let second = wait(&ours, second).unwrap();
    ends_with(&queue, second, win::STATUS_CANCELLED, b"");
    put(&system, &queue, &theirs, b"data");
    let first = wait(&ours, reads[0].take().unwrap().0).unwrap();
    ends_with(&queue, first, win::STATUS_SUCCESS, b"data");
    assert_eq!(system.cancel(raw(&ours), null_mut()), None);
    for (operation, _) in reads.into_iter().flatten() {
        let cancelled = wait(&ours, operation).unwrap();
        ends_with(&queue, cancelled, win::STATUS_CANCELLED, b"");
    }
    assert_eq!(system.cancel(raw(&ours), null_mut()), Some(win::ERROR_NOT_FOUND as i32));
    is_quiet(&system, &queue);
    close(&system, queue);
}

// Pitfall 10, scenario 42
fn a_cancel_that_comes_too_late_gives_the_data<S: System>(system: S) {
    let queue = system.queue();
    let (ours, theirs) = system.pipe();
    let (ours, theirs) = (queue.register(ours).unwrap(), queue.register(theirs).unwrap());
    let reading = read(&system, &queue, &ours, 8);
    let writing = write(&system, &queue, &theirs, b"data");
    assert_eq!(queue.pending().len(), 1, "the write ended at once, and nobody looked since");
    let Cancelled::Finished(end) = queue.block_on(reading.cancel()).unwrap() else {
        panic!("the data was lost");
    };
    assert_eq!((end.status, &end.state[..end.bytes as usize]), (NtStatus(0), &b"data"[..]));
    ends_with(&queue, writing, win::STATUS_SUCCESS, b"data");
    // In time.
    let reading = read(&system, &queue, &ours, 8);
    let Cancelled::Cancelled(end) = queue.block_on(reading.cancel()).unwrap() else {
        panic!("there was no data");
    };
    assert_eq!((end.status, end.bytes), (NtStatus(win::STATUS_CANCELLED), 0));
    is_quiet(&system, &queue);
    close(&system, queue);
}

// Q1, Q13, scenario 38: an operation that nobody waits for any more is cancelled, and counts until the
// kernel is done.
fn a_dropped_wait_is_cancelled_and_loses_nothing<S: System>(system: S) {
    let queue = system.queue();
    let (ours, theirs) = system.pipe();
    let (ours, theirs) = (queue.register(ours).unwrap(), queue.register(theirs).unwrap());
    let reading = read(&system, &queue, &ours, 8);
    let other = read(&system, &queue, &ours, 8);
    drop(reading);
    assert!(queue.running());
    put(&system, &queue, &theirs, b"data");
    ends_with(&queue, other, win::STATUS_SUCCESS, b"data");
    is_quiet(&system, &queue);
    close(&system, queue);
}

// Q8
fn unregistering_cancels_what_is_in_flight<S: System>(system: S) {
    let queue = system.queue();
    let (ours, theirs) = system.pipe();
    queue.persist(&ours).unwrap();
    let reads: Vec<_> = (0..3).map(|_| read(&system, &queue, &ours, 8)).collect();
    queue.unregister(&ours).unwrap();
    for reading in reads {
        ends_with(&queue, reading, win::STATUS_CANCELLED, b"");
    }
    queue.unregister(&ours).unwrap();
    is_quiet(&system, &queue);
    // The handle is open, and none of the queue's.
    assert!(Overlapped::on(&queue, ()).unwrap().as_ptr(&ours).is_err());
    queue.persist(&theirs).unwrap();
    put(&system, &queue, &theirs, b"x");
    close(&system, queue);
}

// Q1, scenario 40
fn a_queue_that_goes_takes_everything_back<S: System>(system: S) {
    let queue = system.queue();
    let mut waits = Vec::new();
    let pairs = [system.pipe(), system.message_pipe(), system.connection()];
    for (ours, _) in &pairs {
        queue.persist(ours).unwrap();
        waits.extend((0..3).map(|_| read(&system, &queue, ours, 8)));
    }
    assert_eq!(queue.pending().len(), 9);
    drop(waits.pop());
    queue.close(SECOND).unwrap();
    system.check();
    for waiting in waits {
        let end = poll_once(waiting);
        assert_eq!((end.status, end.bytes), (NtStatus(win::STATUS_CANCELLED), 0));
        assert!(ioqueue::error::Closed::is(&end.result().unwrap_err()));
    }
}

/// The end of a wait that is over.
fn poll_once(wait: Wait<Vec<u8>>) -> Completion<Vec<u8>> {
    use std::task::{Context, Poll, Waker};
    let polled = std::pin::pin!(wait.exact()).poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(end) = polled else { panic!("it is not over") };
    end
}

// ---------------------------------------------------------------------------------------------
// Handles that go

// Q9: what waits on a handle that is closed ends, once, and learns why.
fn a_wait_whose_handle_is_closed_says_so<S: System>(system: S) {
    let queue = system.queue();
    for (mut ours, theirs) in [system.pipe(), system.message_pipe(), system.connection()] {
        queue.persist(&ours).unwrap();
        let reading = read(&system, &queue, &ours, 8);
        system.close(&mut ours);
        let end = ended(&queue, reading);
        assert!(!end.status.is_success() && end.bytes == 0, "{end:?}");
        let misuse = Misuse::of(&end.result().unwrap_err());
        assert!(matches!(misuse, Some(Misuse::PrematureClose { .. })), "{misuse:?}");
        is_quiet(&system, &queue);
        drop(theirs);
    }
    close(&system, queue);
}

fn the_next_use_of_a_closed_handle_says_so<S: System>(system: S) {
    let queue = system.queue();
    let premature = |misuse: Misuse| matches!(misuse, Misuse::PrematureClose { .. });
    for waits in [true, false] {
        for use_it in 0..2 {
            let (mut ours, _theirs) = system.pipe();
            queue.persist(&ours).unwrap();
            let waiting = waits.then(|| read(&system, &queue, &ours, 8));
            system.close(&mut ours);
            match use_it {
                0 => {
                    let used = Overlapped::on(&queue, ()).unwrap().as_ptr(&ours).unwrap_err();
                    assert_eq!(premature(used), waits, "{used}");
                }
                _ => assert_eq!(queue.unregister(&ours).is_err_and(premature), waits),
            }
            if let Some(waiting) = waiting {
                let error = ended(&queue, waiting).result().unwrap_err();
                assert!(Misuse::of(&error).is_some_and(premature), "{error}");
            }
            is_quiet(&system, &queue);
        }
    }
    close(&system, queue);
}

// A file object lives as long as one of its handles, and what is in flight on it goes on.
fn closing_one_of_two_handles_ends_nothing<S: System>(system: S) {
    let queue = system.queue();
    let (mut ours, theirs) = system.pipe();
    let again = system.duplicate(&ours);
    queue.persist(&ours).unwrap();
    queue.persist(&theirs).unwrap();
    let reading = read(&system, &queue, &ours, 8);
    system.close(&mut ours);
    assert_eq!((look(&queue), queue.pending().len()), (0, 1));
    put(&system, &queue, &theirs, b"data");
    ends_with(&queue, reading, win::STATUS_SUCCESS, b"data");
    drop(again);
    fails_with(&queue, write(&system, &queue, &theirs, b"more"), win::ERROR_NO_DATA);
    is_quiet(&system, &queue);
    close(&system, queue);
}

// Pitfalls 29 and 34: the value came back for something else.
fn a_value_that_came_back_is_not_what_was_registered<S: System>(system: S) {
    let queue = system.queue();
    for attempt in 0.. {
        assert!(attempt < 1000, "no handle value comes back");
        let mut file = system.file(b"old");
        queue.persist(&file).unwrap();
        let old = read(&system, &queue, &file, 3);
        ends_with(&queue, old, win::STATUS_SUCCESS, b"old");
        // Its packet, where there is one, comes while it is known.
        is_quiet(&system, &queue);
        system.close(&mut file);
        let (ours, theirs) = system.pipe();
        if raw(&ours) != raw(&file) {
            continue;
        }
        let refused = Overlapped::on(&queue, ()).unwrap().as_ptr(&ours).unwrap_err();
        assert!(matches!(refused, Misuse::UnregisteredHandle { .. }), "{refused}");
        queue.persist(&ours).unwrap();
        queue.persist(&theirs).unwrap();
        let reading = read(&system, &queue, &ours, 8);
        put(&system, &queue, &theirs, b"new");
        ends_with(&queue, reading, win::STATUS_SUCCESS, b"new");
        break;
    }
    is_quiet(&system, &queue);
    close(&system, queue);
}

// Pitfall 29: under a wait, and persisted anew before anybody looked.
fn a_value_that_came_back_under_a_wait_ends_the_wait<S: System>(system: S) {
    let queue = system.queue();
    for attempt in 0.. {
        assert!(attempt < 1000, "no handle value comes back");
        let (mut old, _other) = system.pipe();
        queue.persist(&old).unwrap();
        let reading = read(&system, &queue, &old, 8);
        system.close(&mut old);
        let file = system.file(b"new");
        let came_back = raw(&file) == raw(&old);
        queue.persist(&file).unwrap();
        let error = ended(&queue, reading).result().unwrap_err();
        let misuse = Misuse::of(&error);
        assert!(matches!(misuse, Some(Misuse::PrematureClose { .. })), "{error}");
        let new = read(&system, &queue, &file, 8);
        ends_with(&queue, new, win::STATUS_SUCCESS, b"new");
        is_quiet(&system, &queue);
        queue.unregister(&file).unwrap();
        if came_back {
            break;
        }
    }
    is_quiet(&system, &queue);
    close(&system, queue);
}

// ---------------------------------------------------------------------------------------------
// Packets and time

// Q11, pitfall 15
fn notices_are_one_packet_and_end_a_poll<S: System>(system: S) {
    let queue = system.queue();
    let notifier = queue.notifier();
    let mut ready = Vec::new();
    for count in [1, 3, 100] {
        (0..count).for_each(|_| notifier.notify().unwrap());
        assert_eq!(system.packets(&queue), 1);
        // Something to wait for, so that the poll would wait.
        let sleeping = queue.sleep(60 * SECOND);
        queue.poll(&mut ready, None).unwrap();
        assert!(ready.is_empty() && queue.running());
        drop(sleeping);
        is_quiet(&system, &queue);
    }
    close(&system, queue);
    notifier.notify().unwrap();
}

// W7, pitfalls 19 and 46: null, unknown, inside of the queue's memory, under any key.
fn packets_of_others_are_counted_and_told_and_touch_nothing<S: System>(system: S) {
    let queue = system.queue();
    let told = Rc::new(RefCell::new(Vec::new()));
    queue.on_foreign_packet({
        let told = Rc::clone(&told);
        move |packet| told.borrow_mut().push((packet.key, packet.overlapped, packet.bytes))
    });
    let (ours, theirs) = system.pipe();
    queue.persist(&ours).unwrap();
    queue.persist(&theirs).unwrap();
    let (operation, address) = start_read(&system, &queue, &ours, 8);
    let waiting = wait(&ours, operation).unwrap();
    let address = address.addr();
    let mut posted = Vec::new();
    for (bytes, overlapped) in
        [0, 4, 4711, address, address + 8, address - 16].into_iter().enumerate()
    {
        for key in [0, 1, 7, usize::MAX >> 1] {
            posted.push((key, overlapped, bytes as u32));
            system.post(&queue, key, overlapped, bytes as u32);
        }
    }
    assert_eq!(system.packets(&queue), posted.len());
    assert_eq!(look(&queue), 0);
    assert_eq!(queue.foreign_packets() as usize, posted.len());
    assert_eq!(*told.borrow(), posted);
    assert_eq!(queue.pending().len(), 1);
    put(&system, &queue, &theirs, b"data");
    ends_with(&queue, waiting, win::STATUS_SUCCESS, b"data");
    assert_eq!((look(&queue), system.packets(&queue)), (0, 0));
    close(&system, queue);
}

// Q3, Q12, pitfall 25: late, never early.
fn time_is_never_cut_short<S: System>(system: S) {
    let queue = system.queue();
    let (ours, theirs) = system.pipe();
    let (ours, theirs) = (queue.register(ours).unwrap(), queue.register(theirs).unwrap());
    let order = Rc::new(RefCell::new(Vec::new()));
    let start = system.now();
    for milliseconds in [30, 10, 20] {
        let (sleeping, order) = (queue.sleep(milliseconds * MILLISECOND), Rc::clone(&order));
        let noted = async move {
            sleeping.await.unwrap();
            order.borrow_mut().push(milliseconds);
        };
        queue.spawn(noted).detach();
    }
    queue.run().unwrap();
    assert_eq!(*order.borrow(), [10, 20, 30]);
    assert!(system.now() - start >= 30 * MILLISECOND);
    // A poll that nothing ends.
    let (waiting, start) = (read(&system, &queue, &ours, 8), system.now());
    queue.poll(&mut Vec::new(), Some(10 * MILLISECOND)).unwrap();
    assert!(system.now() - start >= 10 * MILLISECOND);
    drop(waiting);
    // A read that takes too long, and one that does not.
    let limited = read(&system, &queue, &ours, 8).timeout(20 * MILLISECOND);
    let Cancelled::Cancelled(end) = queue.block_on(limited).unwrap() else {
        panic!("nothing can have come");
    };
    assert_eq!((end.status, end.bytes), (NtStatus(win::STATUS_CANCELLED), 0));
    let limited = read(&system, &queue, &ours, 8).timeout(60 * SECOND);
    put(&system, &queue, &theirs, b"data");
    let Cancelled::Finished(end) = queue.block_on(limited).unwrap() else {
        panic!("the data was lost");
    };
    assert_eq!((end.status, &end.state[..end.bytes as usize]), (NtStatus(0), &b"data"[..]));
    is_quiet(&system, &queue);
    close(&system, queue);
}

// ---------------------------------------------------------------------------------------------

macro_rules! on_both {
    ($($test:ident),* $(,)?) => {
        #[cfg(feature = "sim")]
        mod on_the_simulation {
            use crate::system::System;
            $(
                #[test]
                fn $test() {
                    super::$test(crate::simulated::Simulated::start());
                }
            )*
        }

        #[cfg(windows)]
        mod on_windows {
            use std::sync::{Mutex, PoisonError};

            use crate::system::System;

            /// One test at a time: some need a handle value to come back to them.
            static ALONE: Mutex<()> = Mutex::new(());
            $(
                #[test]
                fn $test() {
                    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
                    crate::support::ends(|| super::$test(crate::real::Real::start()));
                }
            )*
        }
    };
}

on_both! {
    registering_again_changes_nothing,
    what_cannot_be_registered_says_why,
    an_operation_may_be_older_than_its_registration,
    a_read_pends_until_something_comes,
    what_ends_at_once_leaves_a_packet_only_where_packets_are_kept,
    a_mode_that_was_on_before_is_known,
    a_message_longer_than_the_buffer_keeps_its_bytes,
    messages_stay_apart_and_the_pieces_of_a_stream_do_not,
    reads_and_writes_of_nothing,
    a_pipe_that_broke_is_an_end_for_a_read_and_an_error_for_a_write,
    a_reset_is_an_error_and_an_end_is_not,
    reads_in_flight_end_in_their_order,
    packets_come_in_the_order_of_the_ends,
    an_operation_of_others_is_foreign_and_the_low_bit_of_its_event_silences_it,
    a_place_in_a_file_has_64_bits,
    a_file_has_an_end_that_writes_can_move,
    each_of_many_reads_of_a_file_gets_its_own_bytes,
    a_cancelled_read_ends_once_and_cannot_be_cancelled_again,
    a_cancel_hits_one_operation_and_a_cancel_of_none_hits_all,
    a_cancel_that_comes_too_late_gives_the_data,
    a_dropped_wait_is_cancelled_and_loses_nothing,
    unregistering_cancels_what_is_in_flight,
    a_queue_that_goes_takes_everything_back,
    a_wait_whose_handle_is_closed_says_so,
    the_next_use_of_a_closed_handle_says_so,
    closing_one_of_two_handles_ends_nothing,
    a_value_that_came_back_is_not_what_was_registered,
    a_value_that_came_back_under_a_wait_ends_the_wait,
    notices_are_one_packet_and_end_a_poll,
    packets_of_others_are_counted_and_told_and_touch_nothing,
    time_is_never_cut_short,
}
