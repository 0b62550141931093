#![cfg(windows)]
//! Registering handles, and every misuse of the order of calls.

mod support;

use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::windows::io::{AsHandle, AsRawHandle, BorrowedHandle, FromRawHandle, OwnedHandle};
use std::ptr::{null, null_mut};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ioqueue::error::is_cancelled;
use ioqueue::{
    AsAnyHandle, Continuation, HandleId, Misuse, Overlapped, Persist, PersistError, PersistFailure,
    Queue, RawHandle, iocp, wait, wait_with,
};
use support::{
    Buffer, TempFile, call_read, call_recv, connect_pipe, ends, on_wine, pipe_client, pipe_name,
    pipe_pair, pipe_server, poll_until, read_at, recv, recv_beside, tcp_pair, tracked,
};
use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::Storage::FileSystem::SetFileCompletionNotificationModes;
use windows_sys::Win32::System::IO::CreateIoCompletionPort;
use windows_sys::Win32::System::Pipes::{ConnectNamedPipe, CreatePipe};
use windows_sys::Win32::System::Threading::CreateEventW;

/// One test at a time: some need a handle value to come back to them.
fn alone(body: impl FnOnce() + Send + 'static) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    ends(body);
}

fn raw(handle: &impl AsAnyHandle) -> RawHandle {
    handle.as_any_handle().raw()
}

/// A value whose handle may be closed.
fn borrow(value: RawHandle) -> BorrowedHandle<'static> {
    // SAFETY: these tests are about what the queue does with values that name nothing.
    unsafe { BorrowedHandle::borrow_raw(value) }
}

fn new_port() -> OwnedHandle {
    unsafe {
        let port = CreateIoCompletionPort(INVALID_HANDLE_VALUE, null_mut(), 0, 0);
        OwnedHandle::from_raw_handle(port)
    }
}

fn new_event() -> OwnedHandle {
    unsafe { OwnedHandle::from_raw_handle(CreateEventW(null(), 1, 0, null())) }
}

fn anonymous_pipe() -> (OwnedHandle, OwnedHandle) {
    let (mut reader, mut writer) = (null_mut(), null_mut());
    unsafe {
        assert_ne!(CreatePipe(&mut reader, &mut writer, null(), 0), 0);
        (OwnedHandle::from_raw_handle(reader), OwnedHandle::from_raw_handle(writer))
    }
}

fn bind(handle: &impl AsAnyHandle, port: &impl AsHandle) {
    let port = port.as_handle().as_raw_handle();
    let bound = unsafe { CreateIoCompletionPort(raw(handle), port, 77, 0) };
    assert!(!bound.is_null());
}

/// The result of closing what `first` makes and having its value come back for what `second` makes:
/// what `first` left beside its handle, and the second handle.
fn reused<H: AsAnyHandle, L, K: AsAnyHandle>(
    mut first: impl FnMut() -> (H, L),
    mut second: impl FnMut() -> K,
) -> (L, K) {
    for _ in 0..1000 {
        let (old, left) = first();
        let value = raw(&old);
        drop(old);
        let new = second();
        if raw(&new) == value {
            return (left, new);
        }
    }
    panic!("no handle value comes back");
}

/// That a misuse names this handle, and a line of this file within three of `line`.
#[track_caller]
fn names(misuse: Misuse, handle: RawHandle, line: u32) {
    assert_eq!(misuse.handle(), HandleId::new(handle), "{misuse}");
    assert_eq!(misuse.caller().file(), file!(), "{misuse}");
    assert!(misuse.caller().line().abs_diff(line) <= 3, "{misuse}, not near line {line}");
    let text = misuse.to_string();
    let place = format!("{}", misuse.caller());
    assert!(text.contains(&misuse.handle().to_string()) && text.contains(&place), "{text}");
    assert_eq!(Misuse::of(&io::Error::from(misuse)), Some(misuse));
}

/// An operation that waits on `socket` for data, started by hand and not awaited.
fn started(queue: &Queue, socket: &TcpStream) -> Overlapped<Buffer> {
    let overlapped = Overlapped::on(queue, Buffer::new([0; 8])).unwrap();
    let pointer = overlapped.as_ptr(socket).unwrap();
    call_recv(raw(socket), overlapped.state_ptr(), pointer);
    overlapped
}

// ---------------------------------------------------------------------------------------------
// What persist says

// Q6, pitfalls 5 and 35
#[test]
fn what_cannot_be_registered_says_why_and_leaves_nothing_behind() {
    alone(|| {
        let (queue, other) = (Queue::new().unwrap(), Queue::new().unwrap());
        let file = TempFile::new(b"data");
        let refused = |handle: &dyn AsAnyHandle| {
            let error = queue.persist(handle).unwrap_err();
            let any = handle.as_any_handle();
            assert_eq!(error.handle(), any.id());
            assert!(error.to_string().contains(&any.id().to_string()));
            // Nothing is half-registered.
            let overlapped = Overlapped::on(&queue, ()).unwrap();
            let misuse = overlapped.as_ptr(handle).unwrap_err();
            let wrong = error.reason() == WrongQueue;
            assert_eq!(matches!(misuse, Misuse::WrongQueue { .. }), wrong, "{misuse}");
            assert!(wrong || matches!(misuse, Misuse::UnregisteredHandle { .. }), "{misuse}");
            queue.unregister(handle).unwrap();
            let as_io: io::Error = error.into();
            assert_eq!(PersistError::of(&as_io), Some(error));
            error.reason()
        };
        use PersistFailure::{AlreadyBound, InvalidHandle, NotOverlapped, WrongQueue};

        let synchronous = std::fs::File::open(&file.path).unwrap();
        assert_eq!(refused(&synchronous), NotOverlapped);
        let (reader, writer) = anonymous_pipe();
        assert_eq!(refused(&reader), NotOverlapped);
        assert_eq!(refused(&writer), NotOverlapped);

        let elsewhere = file.open();
        let port = new_port();
        bind(&elsewhere, &port);
        assert_eq!(refused(&elsewhere), AlreadyBound);

        let others = file.open();
        other.persist(&others).unwrap();
        assert_eq!(refused(&others), WrongQueue);
        let owned = other.register(file.open()).unwrap();
        assert_eq!(refused(owned.get()), WrongQueue);

        let threads = std::thread::scope(|scope| {
            let file = &file;
            scope
                .spawn(move || {
                    let queue = Queue::new().unwrap();
                    let handle = file.open();
                    queue.persist(&handle).unwrap();
                    std::mem::forget(queue);
                    handle
                })
                .join()
                .unwrap()
        });
        assert_eq!(refused(&threads), AlreadyBound);

        assert_eq!(refused(&new_event()), InvalidHandle);
        assert_eq!(refused(&new_port()), InvalidHandle);
        let value = raw(&new_event());
        assert_eq!(refused(&borrow(value)), InvalidHandle);
        assert_eq!(refused(&borrow(null_mut())), InvalidHandle);
        assert_eq!(refused(&borrow(INVALID_HANDLE_VALUE)), InvalidHandle);

        assert!(format!("{queue:?}").contains("handles: 0"), "{queue:?}");
    });
}

// Q6
#[test]
fn registering_again_on_the_same_queue_changes_nothing() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        for _ in 0..3 {
            queue.persist(&server).unwrap();
        }
        let receive = unsafe { queue.submit_at(&server, 0, Buffer::new([0; 8]), call_recv) };
        queue.persist(&server).unwrap();
        queue.persist_with(&server, Persist::keep_packets()).unwrap();
        assert!(format!("{queue:?}").contains("handles: 1"), "{queue:?}");
        client.write_all(b"same").unwrap();
        assert_eq!(queue.block_on(receive).unwrap().0.unwrap(), 4);
        queue.unregister(&server).unwrap();
        assert!(format!("{queue:?}").contains("handles: 0"), "{queue:?}");
    });
}

// Q7
#[test]
fn what_could_not_be_registered_comes_back() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let file = TempFile::new(b"data");
        let synchronous = std::fs::File::open(&file.path).unwrap();
        let value = raw(&synchronous);
        let refused = queue.register(synchronous).unwrap_err();
        let reason = PersistError::of(refused.error()).unwrap().reason();
        assert_eq!(reason, PersistFailure::NotOverlapped);
        let mut synchronous = refused.into_value();
        assert_eq!(raw(&synchronous), value);
        let mut contents = String::new();
        io::Read::read_to_string(&mut synchronous, &mut contents).unwrap();
        assert_eq!(contents, "data");
    });
}

// Q6, Q7: as in the standard library, a clone of a socket is the same socket for the system.
#[test]
fn a_duplicate_of_a_registered_handle_is_bound_already() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let (_client, server) = tcp_pair();
        queue.persist(&server).unwrap();
        let duplicate = server.try_clone().unwrap();
        if raw(&duplicate) == raw(&server) {
            return support::skip("a duplicated socket has the same value here");
        }
        let refused = queue.persist(&duplicate).unwrap_err();
        assert_eq!(refused.reason(), PersistFailure::AlreadyBound);
        let overlapped = Overlapped::on(&queue, ()).unwrap();
        let misuse = overlapped.as_ptr(&duplicate).unwrap_err();
        assert!(matches!(misuse, Misuse::UnregisteredHandle { .. }));
        queue.unregister(&duplicate).unwrap();
        queue.unregister(&server).unwrap();
    });
}

// Q6, W6
#[test]
fn what_ends_at_once_leaves_a_packet_only_where_that_was_asked_for() {
    alone(|| {
        for keep_packets in [false, true] {
            let queue = Queue::new().unwrap();
            let mut options = Persist::default();
            options.keep_packets = keep_packets;
            let (mut client, server) = tcp_pair();
            let server = queue.register_with(server, options).unwrap();
            let name = pipe_name();
            let pipe = queue.register_with(pipe_server(&name, false), options).unwrap();
            let mut peer = support::blocking_pipe_client(&name).unwrap();
            for _ in 0..50 {
                client.write_all(b"x").unwrap();
                peer.write_all(b"x").unwrap();
                let (received, _) = over(recv(&server, [0; 1]));
                let (read, _) = over(support::read(&pipe, [0; 1]));
                assert_eq!((received.unwrap(), read.unwrap()), (1, 1));
                let expected = if keep_packets { 2 } else { 0 };
                assert_eq!(support::depth_of_port(&queue), expected);
                let mut ready = Vec::new();
                queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
                assert!(ready.is_empty() && queue.foreign_packets() == 0);
            }
        }
    });
}

/// The output of a future that has nothing to wait for.
fn over<F: Future + Unpin>(mut future: F) -> F::Output {
    match support::poll_once(&mut future) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => panic!("it did not end at once"),
    }
}

// Q6, W6, pitfall 54: what is on already counts, not what was asked for.
#[test]
fn packets_on_success_are_kept_where_asked_and_known_where_off_before() {
    alone(|| {
        for skipped_before in [false, true] {
            let queue = Queue::new().unwrap();
            let (mut client, server) = tcp_pair();
            if skipped_before {
                assert_ne!(unsafe { SetFileCompletionNotificationModes(raw(&server), 1) }, 0);
            }
            queue.persist_with(&server, Persist::keep_packets()).unwrap();
            for _ in 0..300 {
                client.write_all(b"x").unwrap();
                let receive =
                    unsafe { queue.submit_at(&server, 0, Buffer::new([0; 1]), call_recv) };
                assert_eq!(queue.block_on(receive).unwrap().0.unwrap(), 1);
            }
            let mut ready = Vec::new();
            while queue.poll(&mut ready, Some(Duration::ZERO)).is_ok() && !ready.is_empty() {
                ready.clear();
            }
            // Neither taken for somebody else's nor missed.
            assert_eq!(queue.foreign_packets(), 0);
            assert!(!queue.running() && queue.pending().is_empty());
            queue.unregister(&server).unwrap();
        }
    });
}

// ---------------------------------------------------------------------------------------------
// Unregistering

// Q8, Q10, pitfalls 36 and 38
#[test]
fn unregistering_cancels_everything_and_everybody_learns_of_it() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (server, client) = pipe_pair(false);
        queue.persist(&listener).unwrap();
        queue.persist(&server).unwrap();
        let (beside, drops) = tracked();
        let waits: Vec<_> = (0..16)
            .map(|_| unsafe { queue.submit_at(&server, 0, vec![0; 16], call_read) })
            .collect();
        let dropped = unsafe {
            queue.submit_at(&server, 0, (vec![0; 16], beside), |handle, state, overlapped| {
                call_read(handle, &raw mut (*state).0, overlapped)
            })
        };
        drop(dropped);
        queue.unregister(&server).unwrap();
        queue.unregister(&server).unwrap();
        queue.unregister(&listener).unwrap();
        for waiting in waits {
            let (result, buffer) = queue.block_on(waiting).unwrap();
            let error = result.unwrap_err();
            assert!(is_cancelled(&error), "{error}");
            assert_eq!(buffer.len(), 16);
        }
        queue.run().unwrap();
        assert_eq!(drops.count(), 1);
        assert!(queue.pending().is_empty());
        let overlapped = Overlapped::on(&queue, ()).unwrap();
        let misuse = overlapped.as_ptr(&server).unwrap_err();
        assert!(matches!(misuse, Misuse::UnregisteredHandle { .. }));
        drop(client);
    });
}

// Q8: also what was parked by another loop.
#[test]
fn unregistering_hands_parked_continuations_back() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let (_client, server) = tcp_pair();
        queue.persist(&server).unwrap();
        let parked = wait_with(3, &server, started(&queue, &server)).unwrap();
        queue.unregister(&server).unwrap();
        let mut ready = Vec::new();
        while ready.is_empty() {
            queue.poll(&mut ready, None).unwrap();
        }
        assert!(matches!(ready[..], [Continuation::Key(3)]));
        assert!(is_cancelled(&parked.take().unwrap().0.unwrap_err()));
    });
}

// Q8
#[test]
fn unregistering_what_is_not_registered_does_nothing() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        queue.unregister(&server).unwrap();
        queue.persist(&server).unwrap();
        let receive = unsafe { queue.submit_at(&server, 0, Buffer::new([0; 8]), call_recv) };
        queue.unregister(&client).unwrap();
        queue.unregister(&new_event()).unwrap();
        queue.unregister(&borrow(null_mut())).unwrap();
        client.write_all(b"still").unwrap();
        assert_eq!(queue.block_on(receive).unwrap().0.unwrap(), 5);
        queue.unregister(&server).unwrap();
    });
}

// Q8, scenario 64, pitfalls 23 and 54
#[test]
fn an_unregistered_handle_can_be_registered_elsewhere_where_the_system_can() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        queue.persist(&server).unwrap();
        let receive = unsafe { queue.submit_at(&server, 0, Buffer::new([0; 8]), call_recv) };
        client.write_all(b"here").unwrap();
        assert_eq!(queue.block_on(receive).unwrap().0.unwrap(), 4);
        queue.unregister(&server).unwrap();
        if on_wine() {
            // Bound for good, and nobody may believe that it is theirs.
            let refused = queue.persist(&server).unwrap_err();
            assert_eq!(refused.reason(), PersistFailure::AlreadyBound);
            return support::skip("FileReplaceCompletionInformation is refused");
        }
        let server = std::thread::spawn(move || {
            client.write_all(b"there").unwrap();
            let server = ioqueue::Registered::new(server).unwrap();
            let received = ioqueue::block_on(recv(&server, [0; 8])).unwrap().0.unwrap();
            assert_eq!(received, 5);
            server.into_inner()
        })
        .join()
        .unwrap();
        queue.persist(&server).unwrap();
        queue.unregister(&server).unwrap();
    });
}

// Q7
#[test]
fn dropping_a_registration_cancels_and_closes_and_into_inner_leaves_open() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let receive = recv(&server, [0; 8]);
        let server = server.into_inner();
        assert!(is_cancelled(&queue.block_on(receive).unwrap().0.unwrap_err()));
        client.write_all(b"open").unwrap();
        assert_eq!(io::Read::read(&mut &server, &mut [0; 8]).unwrap(), 4);

        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        let receive = recv(&server, [0; 8]);
        drop(server);
        let error = queue.block_on(receive).unwrap().0.unwrap_err();
        // Cancelled in time, so never a misuse.
        assert!(is_cancelled(&error), "{error}");
        assert_eq!(io::Read::read(&mut client, &mut [0; 8]).unwrap_or(0), 0);
    });
}

// ---------------------------------------------------------------------------------------------
// Misuse

// Q9, scenario 37
#[test]
fn an_operation_on_an_unregistered_handle_is_refused_before_the_call() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let (_client, server) = tcp_pair();
        let overlapped = Overlapped::on(&queue, Buffer::new([0; 8])).unwrap();
        let misuse = overlapped.as_ptr(&server).unwrap_err();
        assert!(matches!(misuse, Misuse::UnregisteredHandle { .. }));
        names(misuse, raw(&server), line!() - 2);

        let never = |_, _: *mut Buffer, _| -> iocp::Outcome { panic!("the call was made") };
        let mut overlapped = overlapped;
        let error = unsafe { overlapped.start(&server, never) }.unwrap_err();
        names(Misuse::of(&error).unwrap(), raw(&server), line!() - 1);

        let refused = unsafe { queue.submit_at(&server, 0, Buffer::new([5; 8]), never) };
        let (result, state) = queue.block_on(refused).unwrap();
        names(Misuse::of(&result.unwrap_err()).unwrap(), raw(&server), line!() - 2);
        assert_eq!(state.bytes, [5; 8]);
        // SAFETY: it was never given to a call.
        assert_eq!(unsafe { overlapped.into_state() }.bytes.len(), 8);
    });
}

// Q9, pitfall 32: the kernel writes to it all the time.
#[test]
fn a_refused_wait_gives_the_overlapped_back_and_it_goes_on() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let overlapped = Overlapped::on(&queue, Buffer::new([0; 8])).unwrap();
        let pointer = overlapped.as_ptr_unregistered(&server).unwrap();
        call_recv(raw(&server), overlapped.state_ptr(), pointer);
        let refused = wait(&server, overlapped).unwrap_err();
        let line = line!() - 1;
        let misuse = refused.misuse().unwrap();
        assert!(matches!(misuse, Misuse::UnregisteredHandle { .. }));
        names(misuse, raw(&server), line);

        let refused = wait_with(8, &server, refused.into_value()).unwrap_err();
        names(refused.misuse().unwrap(), raw(&server), line!() - 1);
        let (continuation, overlapped) = refused.into_value();
        assert!(matches!(continuation, Continuation::Key(8)));

        client.write_all(b"survived").unwrap();
        queue.persist(&server).unwrap();
        let waiting = wait(&server, overlapped).unwrap();
        let (result, state) = queue.block_on(waiting).unwrap();
        assert_eq!((result.unwrap(), &state.bytes[..]), (8, &b"survived"[..]));
        queue.unregister(&server).unwrap();
    });
}

// W2: start, then persist, then wait.
#[test]
fn an_operation_may_be_started_before_its_handle_is_registered() {
    alone(|| {
        for (data_first, poll_first) in [(false, false), (true, false), (true, true), (false, true)]
        {
            let queue = Queue::new().unwrap();
            let (mut client, server) = tcp_pair();
            if data_first {
                client.write_all(b"early").unwrap();
            }
            let overlapped = Overlapped::on(&queue, Buffer::new([0; 8])).unwrap();
            let pointer = overlapped.as_ptr_unregistered(&server).unwrap();
            call_recv(raw(&server), overlapped.state_ptr(), pointer);
            queue.persist(&server).unwrap();
            if !data_first {
                client.write_all(b"early").unwrap();
            }
            if poll_first {
                queue.poll(&mut Vec::new(), Some(Duration::ZERO)).unwrap();
            }
            let waiting = wait(&server, overlapped).unwrap();
            assert_eq!(queue.block_on(waiting).unwrap().0.unwrap(), 5);
            assert!(!queue.running());
            // And the handle's later operations are not confused.
            for text in [b"1", b"2"] {
                let receive =
                    unsafe { queue.submit_at(&server, 0, Buffer::new([0; 1]), call_recv) };
                client.write_all(text).unwrap();
                assert_eq!(queue.block_on(receive).unwrap().1.bytes, text);
            }
            queue.unregister(&server).unwrap();
        }
    });
}

// Q9, pitfall 24
#[test]
fn an_overlapped_is_for_one_operation() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let ((_a, one), (_b, other)) = (tcp_pair(), tcp_pair());
        queue.persist(&one).unwrap();
        queue.persist(&other).unwrap();
        let mut overlapped = Overlapped::on(&queue, Buffer::new([0; 8])).unwrap();
        let pointer = overlapped.as_ptr(&one).unwrap();
        assert_eq!(overlapped.as_ptr(&one).unwrap(), pointer, "asking again is fine");
        let line = line!();
        let twice = [
            overlapped.as_ptr(&other).unwrap_err(),
            overlapped.as_ptr_unregistered(&other).unwrap_err(),
        ];
        for misuse in twice {
            assert!(matches!(misuse, Misuse::AlreadyWaiting { .. }));
            names(misuse, raw(&other), line + 2);
        }
        let error = unsafe { overlapped.start(&one, call_recv) }.unwrap_err();
        let misuse = Misuse::of(&error).unwrap();
        assert!(matches!(misuse, Misuse::AlreadyWaiting { .. }));
        names(misuse, raw(&one), line!() - 3);
        // SAFETY: the address was given to no call.
        let state = unsafe { overlapped.into_state() };
        let mut overlapped = Overlapped::on(&queue, state).unwrap();
        unsafe { overlapped.start(&one, call_recv) }.unwrap();
        unsafe { overlapped.start(&one, call_recv) }.unwrap_err();
        assert!(overlapped.state_mut().is_none());
        drop(overlapped);
        queue.run().unwrap();
    });
}

// Q9
#[test]
fn waiting_for_what_was_never_started_is_refused() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let ((_a, one), (_b, other)) = (tcp_pair(), tcp_pair());
        queue.persist(&one).unwrap();
        queue.persist(&other).unwrap();
        let overlapped = Overlapped::on(&queue, Buffer::new([0; 8])).unwrap();
        let refused = wait(&one, overlapped).unwrap_err();
        let misuse = refused.misuse().unwrap();
        assert!(matches!(misuse, Misuse::NotStarted { .. }));
        names(misuse, raw(&one), line!() - 3);
        // Started on one handle, awaited on another.
        let refused = wait(&other, started(&queue, &one)).unwrap_err();
        let misuse = refused.misuse().unwrap();
        assert!(matches!(misuse, Misuse::NotStarted { .. }));
        names(misuse, raw(&other), line!() - 3);
        let waiting = wait(&one, refused.into_value()).unwrap();
        drop(waiting);
        queue.run().unwrap();
    });
}

// Q9, scenario 37
#[test]
fn waiting_after_unregistering_is_refused() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let (_client, server) = tcp_pair();
        queue.persist(&server).unwrap();
        let overlapped = started(&queue, &server);
        queue.unregister(&server).unwrap();
        // Cancelled with the registration. Either answer is right: what the kernel has not given
        // back cannot be awaited, what it has is over.
        match wait(&server, overlapped) {
            Ok(waiting) => {
                assert!(is_cancelled(&queue.block_on(waiting).unwrap().0.unwrap_err()));
            }
            Err(refused) => {
                let misuse = refused.misuse().unwrap();
                assert!(matches!(misuse, Misuse::UnregisteredHandle { .. }));
                names(misuse, raw(&server), line!() - 6);
                drop(refused.into_value());
            }
        }
        queue.run().unwrap();
    });
}

// Q9
#[test]
fn a_handle_of_another_queue_is_refused() {
    alone(|| {
        let (queue, other) = (Queue::new().unwrap(), Queue::new().unwrap());
        let ((_a, borrowed), (_b, owned)) = (tcp_pair(), tcp_pair());
        other.persist(&borrowed).unwrap();
        let owned = other.register(owned).unwrap();
        let overlapped = Overlapped::on(&queue, Buffer::new([0; 8])).unwrap();
        let never = |_, _: *mut Buffer, _| -> iocp::Outcome { panic!("the call was made") };
        let line = line!();
        let wrong = [
            overlapped.as_ptr(&borrowed).unwrap_err(),
            overlapped.as_ptr(&owned).unwrap_err(),
            overlapped.as_ptr(owned.get()).unwrap_err(),
        ];
        for (misuse, handle) in wrong.into_iter().zip([raw(&borrowed), raw(&owned), raw(&owned)]) {
            assert!(matches!(misuse, Misuse::WrongQueue { .. }));
            names(misuse, handle, line + 3);
        }
        let misuse = queue.unregister(&owned).unwrap_err();
        assert!(matches!(misuse, Misuse::WrongQueue { .. }));
        names(misuse, raw(&owned), line!() - 2);
        let refused = unsafe { queue.submit_at(&owned, 0, Buffer::new([6; 8]), never) };
        let (result, state) = queue.block_on(refused).unwrap();
        let misuse = Misuse::of(&result.unwrap_err()).unwrap();
        assert!(matches!(misuse, Misuse::WrongQueue { .. }));
        assert_eq!(state.bytes, [6; 8]);
        // An operation of one queue awaited on a handle of the other.
        let refused = wait(&owned, overlapped).unwrap_err();
        assert!(matches!(refused.misuse().unwrap(), Misuse::WrongQueue { .. }));
        // The other queue is not harmed.
        let receive = recv(&owned, [0; 8]);
        drop(receive);
        other.run().unwrap();
        other.unregister(&borrowed).unwrap();
    });
}

// ---------------------------------------------------------------------------------------------
// Handles closed too early, and values that come back

/// A pipe server on which `ConnectNamedPipe` is in flight, waited for.
#[track_caller]
fn connecting(queue: &Queue) -> (OwnedHandle, iocp::Wait<()>) {
    let server = pipe_server(&pipe_name(), false);
    queue.persist(&server).unwrap();
    let call = |handle, _, overlapped| {
        iocp::Outcome::from_bool(unsafe { ConnectNamedPipe(handle, overlapped) })
    };
    let connecting = unsafe { queue.submit_at(&server, 0, (), call) };
    (server, connecting)
}

fn premature(result: io::Result<u32>) -> Misuse {
    let error = result.unwrap_err();
    match Misuse::of(&error) {
        Some(misuse @ Misuse::PrematureClose { .. }) => misuse,
        _ => panic!("{error}"),
    }
}

// Q9: found by the closed handle's packet.
#[test]
fn a_wait_whose_handle_was_closed_under_it_ends_and_says_so() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let (server, waiting) = connecting(&queue);
        let line = line!() - 1;
        let value = raw(&server);
        drop(server);
        let (result, ()) = queue.block_on(waiting).unwrap();
        names(premature(result), value, line);
        assert!(!queue.running());

        let (client, server) = tcp_pair();
        queue.persist(&server).unwrap();
        let value = raw(&server);
        let (beside, drops) = tracked();
        let receive = unsafe {
            queue.submit_at(&server, 0, (Buffer::new([0; 8]), beside), |socket, state, at| {
                call_recv(socket, &raw mut (*state).0, at)
            })
        };
        let line = line!() - 4;
        drop(server);
        assert_eq!(drops.count(), 0);
        let (result, state) = queue.block_on(receive).unwrap();
        names(premature(result), value, line);
        drop(state);
        assert_eq!(drops.count(), 1);
        drop(client);
    });
}

// Q9: found by the next call with the value, in whichever way.
#[test]
fn the_next_use_of_a_value_that_was_closed_under_a_wait_says_so() {
    alone(|| {
        for way in 0..3 {
            let queue = Queue::new().unwrap();
            let (server, waiting) = connecting(&queue);
            let value = raw(&server);
            drop(server);
            let closed = borrow(value);
            let overlapped = Overlapped::on(&queue, ()).unwrap();
            let misuse = match way {
                0 => overlapped.as_ptr(&closed).unwrap_err(),
                1 => queue.unregister(&closed).unwrap_err(),
                _ => {
                    let submitted = unsafe { queue.submit_at(&closed, 0, (), |_, _, _| panic!()) };
                    Misuse::of(&queue.block_on(submitted).unwrap().0.unwrap_err()).unwrap()
                }
            };
            assert!(matches!(misuse, Misuse::PrematureClose { .. }), "way {way}: {misuse}");
            names(misuse, value, line!() - 5 - [3, 2, 0][way]);
            // The wait says so too.
            premature(queue.block_on(waiting).unwrap().0);
            // Said once: now it is a value that nobody knows.
            let misuse = overlapped.as_ptr(&closed).unwrap_err();
            assert!(matches!(misuse, Misuse::UnregisteredHandle { .. }));
            queue.unregister(&closed).unwrap();
            assert!(!queue.running());
        }
    });
}

// Q9: started, closed, then awaited.
#[test]
fn waiting_on_a_handle_that_was_closed_says_so() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let (client, server) = tcp_pair();
        queue.persist(&server).unwrap();
        let value = raw(&server);
        let overlapped = started(&queue, &server);
        drop(server);
        let misuse = match wait(&borrow(value), overlapped) {
            Ok(waiting) => premature(queue.block_on(waiting).unwrap().0),
            Err(refused) => refused.misuse().unwrap(),
        };
        assert!(matches!(misuse, Misuse::PrematureClose { .. }));
        names(misuse, value, line!() - 5);
        queue.run().unwrap();
        drop(client);
    });
}

// Q9, pitfalls 29 and 34: the value came back, for a handle that was never bound.
#[test]
fn a_value_that_came_back_is_not_taken_as_registered() {
    alone(|| {
        let file = TempFile::new(b"new!");
        let queue = Queue::new().unwrap();
        // Nothing waited: an unknown handle like any other.
        let ((), new) = reused(
            || {
                let old = file.open();
                queue.persist(&old).unwrap();
                (old, ())
            },
            || file.open(),
        );
        let overlapped = Overlapped::on(&queue, ()).unwrap();
        let misuse = overlapped.as_ptr(&new).unwrap_err();
        assert!(matches!(misuse, Misuse::UnregisteredHandle { .. }), "{misuse}");
        works(&queue, &new);
        queue.unregister(&new).unwrap();

        // Something waited.
        let (waiting, new) = reused(|| connecting(&queue), || file.open());
        let misuse = overlapped.as_ptr(&new).unwrap_err();
        assert!(matches!(misuse, Misuse::PrematureClose { .. }), "{misuse}");
        premature(queue.block_on(waiting).unwrap().0);
        works(&queue, &new);
        queue.unregister(&new).unwrap();

        // Found by unregistering, which must not touch the new handle's own operations.
        let (waiting, new) = reused(|| connecting(&queue), || file.open());
        let misuse = queue.unregister(&new).unwrap_err();
        assert!(matches!(misuse, Misuse::PrematureClose { .. }), "{misuse}");
        premature(queue.block_on(waiting).unwrap().0);
        works(&queue, &new);
        queue.unregister(&new).unwrap();

        // Found by registering the new handle.
        let (waiting, new) = reused(|| connecting(&queue), || file.open());
        works(&queue, &new);
        premature(queue.block_on(waiting).unwrap().0);
        works(&queue, &new);
    });
}

/// Registers `file` and reads its four bytes.
fn works(queue: &Queue, file: &std::fs::File) {
    queue.persist(file).unwrap();
    let reading = unsafe { queue.submit_at(file, 0, vec![0; 8], call_read) };
    let (result, bytes) = queue.block_on(reading).unwrap();
    assert_eq!((result.unwrap(), &bytes[..4]), (4, &b"new!"[..]));
}

// Q9, pitfall 35: the value came back, bound to somebody else's port.
#[test]
fn a_value_that_came_back_bound_elsewhere_is_not_believed_to_be_ours() {
    alone(|| {
        let file = TempFile::new(b"new!");
        let (queue, other, port) = (Queue::new().unwrap(), Queue::new().unwrap(), new_port());
        let old = || {
            let old = file.open();
            queue.persist(&old).unwrap();
            (old, ())
        };
        let overlapped = Overlapped::on(&queue, ()).unwrap();

        let ((), new) = reused(old, || file.open());
        bind(&new, &port);
        assert_eq!(queue.persist(&new).unwrap_err().reason(), PersistFailure::AlreadyBound);
        let misuse = overlapped.as_ptr(&new).unwrap_err();
        assert!(matches!(misuse, Misuse::UnregisteredHandle { .. }), "{misuse}");

        // By another queue of this thread, which marks its handles just as this one does.
        for persist_first in [true, false] {
            let ((), new) = reused(old, || file.open());
            works(&other, &new);
            if persist_first {
                let refused = queue.persist(&new).unwrap_err();
                assert_eq!(refused.reason(), PersistFailure::WrongQueue);
            }
            let misuse = overlapped.as_ptr(&new).unwrap_err();
            assert!(matches!(misuse, Misuse::WrongQueue { .. }), "{misuse}");
            queue.unregister(&new).unwrap();
            works(&other, &new);
        }
    });
}

// Q7, Q9: a registration of a borrow that was forgotten does not vouch for the value.
#[test]
fn a_forgotten_registration_does_not_vouch_for_a_value_that_came_back() {
    alone(|| {
        let file = TempFile::new(b"new!");
        let queue = Queue::new().unwrap();
        let ((), new) = reused(
            || {
                let old = file.open();
                std::mem::forget(queue.register(&old).unwrap());
                (old, ())
            },
            || file.open(),
        );
        let overlapped = Overlapped::on(&queue, ()).unwrap();
        let misuse = overlapped.as_ptr(&new).unwrap_err();
        assert!(matches!(misuse, Misuse::UnregisteredHandle { .. }), "{misuse}");
        works(&queue, &new);
    });
}

// Q7: one handle, registered twice as a borrow: the first drop ends it for both.
#[test]
fn two_registrations_of_one_borrowed_handle_do_not_fight() {
    alone(|| {
        let file = TempFile::new(b"new!");
        let queue = Queue::new().unwrap();
        let handle = file.open();
        let (one, two) = (queue.register(&handle).unwrap(), queue.register(&handle).unwrap());
        let (result, _) = queue.block_on(read_at(&two, 0, [0; 8])).unwrap();
        assert_eq!(result.unwrap(), 4);
        drop(one);
        let (result, _) = queue.block_on(read_at(&two, 0, [0; 8])).unwrap();
        let misuse = Misuse::of(&result.unwrap_err()).unwrap();
        assert!(matches!(misuse, Misuse::UnregisteredHandle { .. }));
        drop(two);
        assert_eq!(handle.metadata().unwrap().len(), 4, "still open");
    });
}

// Q7, pitfall 29: dropping an old registration does not end a newer one of the same value.
#[test]
fn an_old_registration_does_not_end_the_new_one_of_its_value() {
    alone(|| {
        let file = TempFile::new(b"new!");
        let queue = Queue::new().unwrap();
        let old = queue.register(pipe_server(&pipe_name(), false)).unwrap();
        let waiting = connect_pipe(&old);
        // Closed behind the registration's back, then the value comes back.
        let mut spare = Vec::new();
        let value = old.as_any_handle().raw();
        // SAFETY: the registration is forgotten below instead of closing the value again.
        drop(unsafe { OwnedHandle::from_raw_handle(value) });
        let new = loop {
            let new = file.open();
            if raw(&new) == value {
                break new;
            }
            spare.push(new);
            assert!(spare.len() < 1000);
        };
        works(&queue, &new);
        // The old registration is not the new one.
        let (result, _) = queue.block_on(recv_beside(&old, [0; 8], ())).unwrap();
        let misuse = Misuse::of(&result.unwrap_err()).unwrap();
        assert!(matches!(misuse, Misuse::UnregisteredHandle { .. }), "{misuse}");
        std::mem::forget(old.into_inner());
        works(&queue, &new);
        premature(queue.block_on(waiting).unwrap().0);
    });
}

// Q9: constructors and the handle's id, for code that reports misuse of its own.
#[test]
fn misuse_can_be_made_and_names_its_line() {
    let handle = HandleId::new(0x44 as RawHandle);
    let all = [
        Misuse::unregistered_handle(handle),
        Misuse::premature_close(handle),
        Misuse::already_waiting(handle),
        Misuse::wrong_queue(handle),
        Misuse::not_started(handle),
    ];
    for misuse in all {
        names(misuse, 0x44 as RawHandle, line!() - 5);
        assert_eq!(io::Error::from(misuse).kind(), io::ErrorKind::InvalidInput);
    }
}

// Q6: a client's end, too, and both ends at once.
#[test]
fn both_ends_of_a_pipe_may_be_registered() {
    alone(|| {
        let queue = Queue::new().unwrap();
        let name = pipe_name();
        let server = queue.register(pipe_server(&name, false)).unwrap();
        let connecting = connect_pipe(&server);
        let client = queue.register(pipe_client(&name).unwrap()).unwrap();
        queue.block_on(connecting).unwrap().0.unwrap();
        let reading = support::read(&client, [0; 4]);
        assert_eq!(queue.block_on(support::write(&server, *b"pipe")).unwrap().0.unwrap(), 4);
        assert_eq!(queue.block_on(reading).unwrap().1, b"pipe");
        poll_until(&queue, || !queue.running());
    });
}
