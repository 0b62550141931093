#![cfg(feature = "sim")]
//! The portable operations on the simulated Windows: what a completion port makes of them, in every order
//! of ends (SPEC U3).

#[path = "sim/support.rs"]
mod support;

use std::cell::RefCell;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::time::Duration;

use ioqueue::error::{NtStatus, is_cancelled};
use ioqueue::sim::{End, Faults, Kind, OnCancel, Plan, Sim, SimHandle, explore};
use ioqueue::{AnyHandle, AsAnyHandle, Elapsed, Event, Queue, Registered};
use support::{MILLISECOND, poll, quiet};
use windows_sys::Win32::Foundation::{
    ERROR_SEEK_ON_DEVICE, ERROR_SEM_TIMEOUT, STATUS_CONNECTION_RESET, STATUS_DEVICE_DATA_ERROR,
};
use windows_sys::Win32::Networking::WinSock::{
    WSAEAFNOSUPPORT, WSAECONNREFUSED, WSAECONNRESET, WSAEINVAL, WSAEISCONN, WSAEMSGSIZE,
    WSAENOTCONN, WSAENOTSOCK,
};

/// Both ends of a stream, registered.
fn pair(sim: &Sim, queue: &Queue, kind: Kind) -> (Registered<SimHandle>, Registered<SimHandle>) {
    let (one, other) = sim.pair(kind);
    (queue.register(one).unwrap(), queue.register(other).unwrap())
}

/// Operations that take up to 5 ms, some of which end at once: in any order, and nothing else goes wrong.
fn any_order(seed: u64) -> Sim {
    let mut faults = Faults::none();
    (faults.at_once, faults.longest) = (0.3, 5 * MILLISECOND);
    (faults.status_first, faults.status_last) = (0.3, 0.3);
    Sim::with_faults(seed, faults)
}

// ---------------------------------------------------------------------------------------------
// Files

/// H1, pitfall 41: reads follow each other, whenever they end, as does what is written.
#[test]
fn a_file_is_read_and_written_from_its_start_to_its_end() {
    explore(0..200, |seed| {
        let sim = any_order(seed);
        let queue = sim.queue().unwrap();
        let text: Vec<u8> = (0..250).collect();
        let (from, to) = (queue.register(sim.file(text.clone())).unwrap(), sim.file(""));
        let to = queue.register(to).unwrap();
        let reads: Vec<_> = (0..40).map(|_| from.read(vec![0; 7])).collect();
        let mut writes = Vec::new();
        for (number, read) in reads.into_iter().enumerate() {
            let (count, bytes) = queue.block_on(read).unwrap();
            let start = (number * 7).min(text.len());
            assert_eq!((count.unwrap(), &bytes[..]), (bytes.len(), &text[start..][..bytes.len()]));
            writes.push(to.write(bytes));
        }
        // What has a place of its own changes nothing.
        let aside = to.write_at("", 1 << 20);
        for write in writes.into_iter().rev() {
            queue.block_on(write).unwrap().0.unwrap();
        }
        queue.block_on(aside).unwrap().0.unwrap();
        assert_eq!(sim.contents(&to), text);
        assert_eq!((queue.running(), queue.foreign_packets()), (false, 0));
        drop((from, to, queue));
        sim.check();
    });
}

/// Pitfall 41: one that fails moves nothing, whether it fails at once, late, or when its turn comes.
#[test]
fn what_fails_leaves_the_position_where_it_was() {
    let broken = NtStatus(STATUS_DEVICE_DATA_ERROR);
    for plan in [Plan::fails(1450), Plan::pends_for(MILLISECOND).status(broken).bytes(3)] {
        for waits in [false, true] {
            let (sim, queue) = quiet();
            let file = queue.register(sim.file("0123456789")).unwrap();
            let first = waits.then(|| {
                sim.plan(&file, Plan::pends_for(MILLISECOND));
                file.read(vec![0; 2])
            });
            sim.plan(&file, plan.clone());
            let failing = file.read(vec![0; 4]);
            let next = file.read(vec![0; 3]);
            if let Some(first) = first {
                assert_eq!(queue.block_on(first).unwrap().1, b"01");
            }
            assert!(queue.block_on(failing).unwrap().0.is_err());
            let expected: &[u8] = if waits { b"234" } else { b"012" };
            assert_eq!(queue.block_on(next).unwrap().1, expected);
            assert!(!queue.running());
            drop((file, queue));
            sim.check();
        }
    }
}

/// Q13: those that wait for their turn can be given up, and the others keep theirs.
#[test]
fn reads_that_wait_for_their_turn_can_be_given_up() {
    explore(0..200, |seed| {
        let sim = any_order(seed);
        let queue = sim.queue().unwrap();
        let file = queue.register(sim.file((0..100).collect::<Vec<u8>>())).unwrap();
        let mut place = 0;
        let reads: Vec<_> = (0..30).map(|_| file.read(vec![0; 3])).collect();
        for (number, read) in reads.into_iter().enumerate() {
            let (count, bytes) = match (number + seed as usize) % 4 {
                0 => {
                    drop(read);
                    // Whether it was still to be given up, the next one knows.
                    let (count, bytes) = queue.block_on(file.read_at(vec![0; 0], 0)).unwrap();
                    assert_eq!((count.unwrap(), bytes.len()), (0, 0));
                    continue;
                }
                1 => queue.block_on(read.cancel()).unwrap(),
                _ => queue.block_on(read).unwrap(),
            };
            match count {
                Ok(0) => assert!(place >= 97),
                Ok(count) => {
                    // Any number of those that were dropped may have been faster.
                    let start = usize::from(bytes[0]);
                    assert!(start >= place && (start - place) % 3 == 0, "{start} after {place}");
                    place = start + count;
                }
                Err(error) => assert!(is_cancelled(&error), "{error}"),
            }
        }
        queue.run().unwrap();
        drop((file, queue));
        sim.check();
    });
}

/// Q8: what waits for its turn learns that its handle was unregistered, and nothing is started any more.
#[test]
fn unregistering_ends_what_waits_for_its_turn() {
    for into_inner in [false, true] {
        let (sim, queue) = quiet();
        let file = queue.register(sim.file("contents")).unwrap();
        sim.plan(&file, Plan::pends());
        let reads: Vec<_> = (0..5).map(|_| file.read(vec![0; 2])).collect();
        assert_eq!((sim.in_flight(&file), queue.pending().len()), (1, 5));
        let again = into_inner.then(|| file.into_inner());
        for read in reads {
            let error = queue.block_on(read).unwrap().0.unwrap_err();
            assert!(is_cancelled(&error), "{error}");
        }
        assert_eq!(sim.started(), 1);
        if let Some(file) = again {
            // It starts over.
            let file = queue.register(file).unwrap();
            assert_eq!(queue.block_on(file.read(vec![0; 3])).unwrap().1, b"con");
        }
        drop(queue);
        sim.check();
    }
}

/// Q15: no packet tells a host of what was given up before Windows had it.
#[test]
fn a_host_does_not_wait_with_what_was_given_up_before_its_turn() {
    let (sim, queue) = quiet();
    let file = queue.register(sim.file("contents")).unwrap();
    sim.plan(&file, Plan::pends());
    let mut reads: Vec<_> = (0..3).map(|_| file.read(vec![0; 2])).collect();
    assert_eq!((sim.in_flight(&file), queue.poll_delay()), (1, None));
    drop(reads.pop());
    assert_eq!(queue.poll_delay(), Some(Duration::ZERO));
    poll(&queue);
    assert_eq!(queue.poll_delay(), None);
    drop((reads, file));
    queue.run().unwrap();
    drop(queue);
    sim.check();
}

/// A handle that somebody closes under its owner.
struct Closable(RefCell<SimHandle>);

impl AsAnyHandle for Closable {
    fn as_any_handle(&self) -> AnyHandle<'_> {
        let handle = self.0.borrow();
        // The value is all that is kept of it.
        let any = handle.as_any_handle();
        unsafe { std::mem::transmute::<AnyHandle<'_>, AnyHandle<'_>>(any) }
    }
}

/// Pitfalls 29 and 34: the handle was closed, its value is another file's, and is registered. What waited
/// for its turn is not started on that one, and learns why.
#[test]
fn what_waits_for_its_turn_is_not_started_on_the_next_file_of_that_value() {
    for dropped in [false, true] {
        let (sim, queue) = quiet();
        let old = queue.register(Closable(RefCell::new(sim.file("old")))).unwrap();
        let value = old.id();
        sim.plan(&old, Plan::pends_for(5 * MILLISECOND).packet_after(5 * MILLISECOND));
        let writes: Vec<_> = (0..3).map(|_| old.write("written")).collect();
        let mut kept = Vec::new();
        for (number, write) in writes.into_iter().enumerate() {
            if dropped && number != 1 { drop(write) } else { kept.push(write) }
        }
        old.get().0.borrow_mut().close();
        let new = queue.register(sim.file("new")).unwrap();
        assert_eq!(new.id(), value);
        // Memory of the old ones is used again as soon as it may be.
        let reads: Vec<_> = (0..8).map(|_| new.read(vec![0; 1])).collect();
        for (read, expected) in
            reads.into_iter().zip([&b"n"[..], b"e", b"w", b"", b"", b"", b"", b""])
        {
            let (count, bytes) = queue.block_on(read).unwrap();
            assert_eq!(&bytes[..count.unwrap()], expected);
        }
        for (number, write) in kept.into_iter().enumerate() {
            let (result, _) = queue.block_on(write).unwrap();
            assert!(result.is_err() || number == 0);
        }
        queue.run().unwrap();
        assert_eq!(sim.contents(&new), b"new");
        drop((old, new, queue));
        sim.check();
    }
}

/// Q1: closing takes back what Windows has, and what it never had.
#[test]
fn closing_ends_what_waits_for_its_turn() {
    let (sim, queue) = quiet();
    let file = queue.register(sim.file("contents")).unwrap();
    sim.plan(&file, Plan::pends().on_cancel(OnCancel::AbortsAfter(MILLISECOND)));
    let reads: Vec<_> = (0..5).map(|_| file.read(vec![0; 2])).collect();
    queue.close(Duration::from_secs(1)).unwrap();
    for mut read in reads {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let ended = std::pin::Pin::new(&mut read).poll(&mut context);
        let std::task::Poll::Ready((result, _)) = ended else { panic!("closed, and waits") };
        assert!(is_cancelled(&result.unwrap_err()));
    }
    drop((file, queue));
    sim.check();
}

/// Scenario 41, rule 7: whatever is started, given up, awaited and closed, in whatever order, everything
/// ends and is given back.
#[test]
fn any_order_of_starts_and_ends_gives_everything_back() {
    explore(0..400, |seed| {
        let mut faults = if seed % 2 == 0 { Faults::default() } else { Faults::wild() };
        faults.never_ends = 0.0;
        let sim = Sim::with_faults(seed, faults);
        let queue = sim.queue().unwrap();
        let mut state = seed | 1;
        let mut choose = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let open = || queue.register(sim.file(vec![1; 64]));
        let Ok(mut file) = open() else { return };
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        for _ in 0..80 {
            match choose(12) {
                0..3 => reads.push(file.read(vec![0; choose(9) as usize])),
                3..6 => writes.push(file.write(vec![2; choose(9) as usize])),
                6 if !reads.is_empty() => {
                    drop(reads.swap_remove(choose(reads.len() as u64) as usize))
                }
                7 if !writes.is_empty() => {
                    let write = writes.swap_remove(choose(writes.len() as u64) as usize);
                    let _ = queue.block_on(write.cancel()).unwrap();
                }
                8 if !reads.is_empty() => {
                    let read = reads.swap_remove(choose(reads.len() as u64) as usize);
                    let _ = queue.block_on(read).unwrap();
                }
                9 if !writes.is_empty() => {
                    let write = writes.swap_remove(choose(writes.len() as u64) as usize);
                    let _ = queue.block_on(write.timeout(MILLISECOND)).unwrap();
                }
                10 => drop(poll(&queue)),
                11 if choose(4) == 0 => match open() {
                    Ok(another) => file = another,
                    Err(_) => break,
                },
                _ => {}
            }
        }
        if choose(2) == 0 {
            drop(file);
            for read in reads {
                let _ = queue.block_on(read).unwrap();
            }
            queue.run().unwrap();
        }
        queue.close(Duration::from_secs(60)).unwrap();
        drop(writes);
        drop(queue);
        sim.check();
    });
}

/// The end of a file is a count of 0, also beyond it; and what is written there makes it longer.
#[test]
fn a_read_at_the_end_of_a_file_is_the_end() {
    let (sim, queue) = quiet();
    let file = queue.register(sim.file("0123")).unwrap();
    queue
        .block_on(async {
            assert_eq!(file.read_at(Vec::with_capacity(8), 2).await.1, b"23");
            for place in [4, 1 << 40] {
                assert_eq!(file.read_at(vec![0; 8], place).await.0.unwrap(), 0);
            }
            assert_eq!(file.read(vec![0; 8]).await.0.unwrap(), 4);
            assert_eq!(file.read(vec![0; 8]).await.0.unwrap(), 0);
            assert_eq!(file.write("45").await.0.unwrap(), 2);
            file.sync_all().await.unwrap();
            file.sync_data().await.unwrap();
        })
        .unwrap();
    assert_eq!(sim.contents(&file), b"012345");
}

// ---------------------------------------------------------------------------------------------
// Streams

/// Several buffers are one call on a socket, and go through one buffer on what takes one.
#[test]
fn several_buffers_are_filled_and_emptied_in_their_order() {
    for kind in [Kind::Socket, Kind::Pipe, Kind::MessagePipe, Kind::Datagram] {
        let (sim, queue) = quiet();
        let (from, to) = pair(&sim, &queue, kind);
        for waits in [true, false] {
            let room = || [Vec::with_capacity(2), Vec::new(), Vec::with_capacity(4), vec![7; 8]];
            let early = waits.then(|| to.read_vectored(room()));
            let before = sim.started();
            let sending = from.write_vectored([&b"ab"[..], b"", b"cdefg"]);
            assert_eq!(sim.started(), before + 1);
            assert_eq!(queue.block_on(sending).unwrap().0.unwrap(), 7, "{kind:?}");
            let reading = early.unwrap_or_else(|| to.read_vectored(room()));
            let (count, parts) = queue.block_on(reading).unwrap();
            assert_eq!(count.unwrap(), 7, "{kind:?}");
            assert_eq!(parts, [&b"ab"[..], b"", b"cdef", b"g"], "{kind:?}");
        }
        // One that is given up gives back what it was given.
        let (result, parts) = queue.block_on(to.read_vectored([[1; 4], [2; 4]]).cancel()).unwrap();
        assert!(is_cancelled(&result.unwrap_err()) && parts.len() == 2);
        drop((from, to, queue));
        sim.check();
    }
    let (sim, queue) = quiet();
    let file = queue.register(sim.file("")).unwrap();
    queue.block_on(file.write_vectored(["ab", "", "cde"])).unwrap().0.unwrap();
    queue.block_on(file.write_vectored(["", "f"])).unwrap().0.unwrap();
    assert_eq!(sim.contents(&file), b"abcdef");
    let again = queue.register(file.get().duplicate()).ok();
    assert!(again.is_none(), "a duplicate is bound already");
}

/// Scenarios 22 and 23: what was sent before comes before the end, whenever it is sent.
#[test]
fn a_shutdown_comes_after_the_writes_before_it() {
    explore(0..100, |seed| {
        let sim = any_order(seed);
        let queue = sim.queue().unwrap();
        let (one, other) = pair(&sim, &queue, Kind::Socket);
        let writes: Vec<_> = (0..5).map(|number| one.write(vec![number; 3])).collect();
        queue.block_on(one.shutdown(Shutdown::Write)).unwrap().unwrap();
        let mut all = Vec::new();
        loop {
            let (count, bytes) = queue.block_on(other.read(vec![0; 4])).unwrap();
            if count.unwrap() == 0 {
                break;
            }
            all.extend(bytes);
        }
        for write in writes {
            assert_eq!(queue.block_on(write).unwrap().0.unwrap(), 3);
        }
        all.sort_unstable();
        assert_eq!(all, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]);
        let error = queue.block_on(one.write("x")).unwrap().0.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        // The other way is open.
        queue.block_on(other.write("back")).unwrap().0.unwrap();
        assert_eq!(queue.block_on(one.read(vec![0; 8])).unwrap().1, b"back");
        queue.block_on(one.shutdown(Shutdown::Read)).unwrap().unwrap();
        assert_eq!(queue.block_on(one.read(vec![0; 8])).unwrap().0.unwrap(), 0);
        drop((one, other, queue));
        sim.check();
    });
}

/// Pitfall 47: a message that is longer than the buffer gives what fits; of a pipe's the rest comes next.
#[test]
fn a_message_longer_than_the_buffer_gives_what_fits() {
    for (kind, next) in [(Kind::MessagePipe, &b"er"[..]), (Kind::Datagram, b"next")] {
        let (sim, queue) = quiet();
        let (from, to) = pair(&sim, &queue, kind);
        for message in ["longer", "next"] {
            queue.block_on(from.write(message)).unwrap().0.unwrap();
        }
        let (count, bytes) = queue.block_on(to.read(Vec::with_capacity(4))).unwrap();
        assert_eq!((count.unwrap(), &bytes[..]), (4, &b"long"[..]), "{kind:?}");
        assert_eq!(queue.block_on(to.read(vec![0; 4])).unwrap().1, next, "{kind:?}");
        drop((from, to, queue));
        sim.check();
    }
}

/// Pitfalls 10, 27 and 47: a reset is an error, an end is none.
#[test]
fn a_reset_is_an_error_and_a_hang_up_is_the_end() {
    for kind in [Kind::Socket, Kind::Pipe] {
        let (sim, queue) = quiet();
        let (one, other) = pair(&sim, &queue, kind);
        drop(other);
        assert_eq!(queue.block_on(one.read(vec![0; 4])).unwrap().0.unwrap(), 0, "{kind:?}");
    }
    let (sim, queue) = quiet();
    let socket = queue.register(sim.open(Kind::Socket, Default::default())).unwrap();
    sim.plan(&socket, Plan::pends());
    let reading = socket.recv(vec![0; 4]);
    sim.complete(&socket, End::status(NtStatus(STATUS_CONNECTION_RESET), 0));
    assert!(queue.block_on(reading).unwrap().0.is_err());
}

/// Pitfall 10: what a write had sent when it was given up is known, also to a time limit.
#[test]
fn a_write_that_was_given_up_halfway_says_how_much_was_sent() {
    for by_time in [false, true] {
        let (sim, queue) = quiet();
        let (one, other) = pair(&sim, &queue, Kind::Socket);
        let mut halves = 0;
        for _ in 0..20 {
            sim.plan(&one, Plan::pends().on_cancel(OnCancel::AbortsHalfway));
            let writing = one.write(vec![7; 1000]);
            let (result, bytes) = if by_time {
                queue.block_on(writing.timeout(MILLISECOND)).unwrap()
            } else {
                queue.block_on(writing.cancel()).unwrap()
            };
            assert_eq!(bytes.len(), 1000);
            match result {
                Ok(sent) => {
                    halves += 1;
                    let (received, _) = queue.block_on(other.read(vec![0; 2000])).unwrap();
                    assert_eq!(received.unwrap(), sent);
                }
                Err(error) => assert!(is_cancelled(&error) || Elapsed::is(&error), "{error}"),
            }
        }
        assert!(halves > 10);
        assert_eq!(poll(&queue), 0);
        drop((one, other, queue));
        sim.check();
    }
}

// ---------------------------------------------------------------------------------------------
// Readiness

/// W10: any number of waits for something to read, which take nothing.
#[test]
fn a_connection_is_ready_when_there_is_something_to_read() {
    let (sim, queue) = quiet();
    let (one, other) = pair(&sim, &queue, Kind::Socket);
    let waits: Vec<_> = (0..10).map(|_| one.ready(Event::Read)).collect();
    drop(one.ready(Event::Read));
    assert!(queue.running());
    queue.block_on(other.write("data")).unwrap().0.unwrap();
    for wait in waits {
        let events = queue.block_on(wait).unwrap().unwrap();
        assert!(events.contains(Event::Read) && !events.contains(Event::Error), "{events:?}");
    }
    assert_eq!(queue.block_on(one.read(vec![0; 8])).unwrap().1, b"data");
    drop(other);
    assert!(queue.block_on(one.ready(Event::Read)).unwrap().unwrap().contains(Event::Read));
    // What a receive fails with is an event of a wait.
    sim.plan(&one, Plan::pends_for(MILLISECOND).status(NtStatus(STATUS_CONNECTION_RESET)));
    let events = queue.block_on(one.ready(Event::Read)).unwrap().unwrap();
    assert!(events.contains(Event::Error) && events.contains(Event::Hangup), "{events:?}");
    drop((one, queue));
    sim.check();
}

// ---------------------------------------------------------------------------------------------
// What is refused

/// Each says why, starts nothing, and gives back what it was given.
#[test]
fn what_a_handle_does_not_take_is_refused() {
    let (sim, queue) = quiet();
    let file = queue.register(sim.file("contents")).unwrap();
    let (pipe, _other) = pair(&sim, &queue, Kind::Pipe);
    let (socket, _peer) = pair(&sim, &queue, Kind::Socket);
    let before = sim.started();
    let no_socket = Some(WSAENOTSOCK);
    let no_places = Some(ERROR_SEEK_ON_DEVICE as i32);
    queue
        .block_on(async {
            for handle in [&file, &pipe] {
                let (result, bytes) = handle.recv(vec![1; 4]).await;
                assert_eq!((result.unwrap_err().raw_os_error(), bytes), (no_socket, vec![1; 4]));
                assert_eq!(handle.send("x").await.0.unwrap_err().raw_os_error(), no_socket);
                assert_eq!(handle.accept().await.unwrap_err().raw_os_error(), no_socket);
                let error = handle.shutdown(Shutdown::Both).await.unwrap_err();
                assert_eq!(error.raw_os_error(), no_socket);
                let error = handle.ready(Event::Read).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unsupported);
            }
            for handle in [&pipe, &socket] {
                let (result, _) = handle.read_at(vec![1; 4], 0).await;
                assert_eq!(result.unwrap_err().raw_os_error(), no_places);
                let (result, _) = handle.write_at("x", 0).await;
                assert_eq!(result.unwrap_err().raw_os_error(), no_places);
                let error = handle.sync_all().await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
            }
        })
        .unwrap();
    assert!(sim.started() == before && queue.pending().is_empty() && !queue.running());
}

/// Each call of Winsock's fails at once on a socket that is not in the state for it, with its own code.
#[test]
fn a_socket_takes_the_calls_of_its_state() {
    let (sim, queue) = quiet();
    let unconnected = queue.register(sim.unconnected()).unwrap();
    let (listener, address) = sim.listener();
    let listener = queue.register(listener).unwrap();
    let (datagrams, elsewhere) = sim.datagrams();
    let datagrams = queue.register(datagrams).unwrap();
    queue
        .block_on(async {
            let code = |result: std::io::Error| result.raw_os_error();
            for socket in [&unconnected, &listener] {
                let (result, bytes) = socket.recv(vec![1; 4]).await;
                assert_eq!((code(result.unwrap_err()), bytes), (Some(WSAENOTCONN), vec![1; 4]));
                assert_eq!(code(socket.send("x").await.0.unwrap_err()), Some(WSAENOTCONN));
            }
            assert_eq!(code(unconnected.accept().await.unwrap_err()), Some(WSAEINVAL));
            assert_eq!(code(listener.connect(address).await.unwrap_err()), Some(WSAEINVAL));
            assert_eq!(code(datagrams.send("x").await.0.unwrap_err()), Some(WSAENOTCONN));
            let error = datagrams.send_to(vec![0; 65_508], elsewhere).await.0.unwrap_err();
            assert_eq!(code(error), Some(WSAEMSGSIZE));
            let path = ioqueue::SocketAddress::unix("path").unwrap();
            assert_eq!(code(unconnected.connect(path).await.unwrap_err()), Some(WSAEAFNOSUPPORT));
            unconnected.connect(address).await.unwrap();
            assert_eq!(code(unconnected.connect(address).await.unwrap_err()), Some(WSAEISCONN));
        })
        .unwrap();
}

/// A listener keeps connections that nobody has accepted, and takes them along when it is closed.
#[test]
fn connections_that_nobody_accepts_are_reset_with_their_listener() {
    let (sim, queue) = quiet();
    let (listener, address) = sim.listener();
    let client = queue.register(sim.unconnected()).unwrap();
    queue.block_on(client.connect(address)).unwrap().unwrap();
    queue.block_on(client.send("early")).unwrap().0.unwrap();
    let reading = client.recv(vec![0; 8]);
    drop(listener);
    let error = queue.block_on(reading).unwrap().0.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(WSAECONNRESET));
    let error = queue.block_on(client.connect(address)).unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(WSAEISCONN));
    let other = queue.register(sim.unconnected()).unwrap();
    let error = queue.block_on(other.connect(address)).unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(WSAECONNREFUSED));
}

/// What was sent before the accept is received after it, from who it was.
#[test]
fn what_came_before_the_accept_is_the_accepted_sockets() {
    explore(0..100, |seed| {
        let sim = any_order(seed);
        let queue = sim.queue().unwrap();
        let (listener, address) = sim.listener();
        let listener = queue.register(listener).unwrap();
        queue
            .block_on(async {
                let mut clients = Vec::new();
                for number in 0..4_u8 {
                    let client = queue.register(sim.unconnected()).unwrap();
                    client.connect(address).await.unwrap();
                    client.write_all(vec![number; 3]).await.0.unwrap();
                    clients.push(client);
                }
                for (number, client) in clients.iter().enumerate() {
                    let (socket, peer) = listener.accept().await.unwrap();
                    assert_eq!(peer.ip(), client.get().local_addr());
                    let socket = queue.register(socket).unwrap();
                    let (read, bytes) = socket.read_exact([9; 3]).await;
                    read.unwrap();
                    assert_eq!(bytes, [number as u8; 3]);
                    socket.write_all("back").await.0.unwrap();
                    assert_eq!(&client.read_exact([0; 4]).await.1, b"back");
                }
            })
            .unwrap();
        drop((listener, queue));
        sim.check();
    });
}

/// A connect that nobody answers ends after 21 seconds, of which none really passes.
#[test]
fn a_connect_that_nobody_answers_ends_by_itself() {
    let (sim, queue) = quiet();
    let socket = queue.register(sim.unconnected()).unwrap();
    let before = sim.now();
    let nobody = std::net::SocketAddr::from(([192, 0, 2, 1], 80));
    let error = queue.block_on(socket.connect(nobody)).unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(ERROR_SEM_TIMEOUT as i32));
    assert_eq!(sim.now() - before, Duration::from_secs(21));
}

/// With a limit writes wait for their reader, in their order; what has gone out of one that is given up is
/// said, and nothing of it comes twice.
#[test]
fn what_is_full_waits_and_keeps_its_order_in_any_order_of_ends() {
    explore(0..100, |seed| {
        let mut faults = Faults::orders();
        (faults.short, faults.short_writes, faults.room_for_bytes) = (0.0, 0.0, 100);
        let sim = Sim::with_faults(seed, faults);
        let queue = sim.queue().unwrap();
        for kind in [Kind::Socket, Kind::Pipe] {
            let (from, to) = pair(&sim, &queue, kind);
            let mut writes: Vec<_> = (1..=5).map(|number| from.write(vec![number; 70])).collect();
            assert!(queue.pending().len() >= 4);
            let given_up = writes.remove(seed as usize % 5);
            let (result, bytes) = queue.block_on(given_up.cancel()).unwrap();
            let sent = result.unwrap_or(0);
            let mut expected = Vec::new();
            for number in 1..=5 {
                let count = if number == bytes[0] { sent } else { 70 };
                expected.extend(vec![number; count]);
            }
            let (read, all) = queue.block_on(to.read_exact(vec![0; expected.len()])).unwrap();
            read.unwrap();
            assert_eq!(all, expected, "{kind:?}");
            for write in writes {
                assert_eq!(queue.block_on(write).unwrap().0.unwrap(), 70);
            }
        }
        drop(queue);
        sim.check();
    });
}

/// A socket is ready for writing while there is room, and everything is when it is reset (W10).
#[test]
fn a_socket_is_ready_when_there_is_room_and_when_it_is_reset() {
    let mut faults = Faults::none();
    faults.room_for_bytes = 100;
    let sim = Sim::with_faults(0, faults);
    let queue = sim.queue().unwrap();
    let (here, there) = pair(&sim, &queue, Kind::Socket);
    let events = queue.block_on(here.ready(Event::Write)).unwrap().unwrap();
    assert!(events.contains(Event::Write) && !events.contains(Event::Read));
    queue.block_on(here.write_all(vec![1; 100])).unwrap().0.unwrap();
    let waiting = here.ready(Event::Write);
    let error = queue.block_on(here.ready(Event::Hangup)).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceBusy);
    assert_eq!(queue.pending().len(), 1);
    queue.block_on(there.read_exact([0; 10])).unwrap().0.unwrap();
    assert!(queue.block_on(waiting).unwrap().unwrap().contains(Event::Write));
    let waiting = here.ready(Event::Hangup);
    sim.reset_when_closed(&there);
    drop(there);
    let events = queue.block_on(waiting).unwrap().unwrap();
    assert!(events.contains(Event::Hangup) && events.contains(Event::Error));
}

/// A listener is ready when somebody waits to be accepted, and a datagram socket when something has come.
#[test]
fn a_listener_and_a_datagram_socket_are_ready_when_there_is_something() {
    let (sim, queue) = quiet();
    let (listener, address) = sim.listener();
    let listener = queue.register(listener).unwrap();
    let waiting = listener.ready(Event::Read);
    poll(&queue);
    assert_eq!(queue.pending().len(), 1);
    let client = queue.register(sim.unconnected()).unwrap();
    queue.block_on(client.connect(address)).unwrap().unwrap();
    assert!(queue.block_on(waiting).unwrap().unwrap().contains(Event::Read));
    queue.block_on(listener.accept()).unwrap().unwrap();
    let ((one, _), (other, to)) = (sim.datagrams(), sim.datagrams());
    let (one, other) = (queue.register(one).unwrap(), queue.register(other).unwrap());
    let waiting = other.ready(Event::Read);
    poll(&queue);
    assert_eq!(queue.pending().len(), 1);
    queue.block_on(one.send_to("data", to)).unwrap().0.unwrap();
    assert!(queue.block_on(waiting).unwrap().unwrap().contains(Event::Read));
    assert_eq!(queue.block_on(other.recv(vec![0; 8])).unwrap().1, b"data");
}

/// Two file objects of one file: what one writes the other reads, and each has a position of its own.
#[test]
fn a_file_may_be_opened_twice() {
    let (sim, queue) = quiet();
    let file = sim.file("0123456789");
    let again = queue.register(sim.reopen(&file)).unwrap();
    let file = queue.register(file).unwrap();
    assert_eq!(queue.block_on(file.read(vec![0; 4])).unwrap().1, b"0123");
    queue.block_on(again.write("ABCDEF")).unwrap().0.unwrap();
    assert_eq!(queue.block_on(file.read(vec![0; 4])).unwrap().1, b"EF67");
    assert_eq!(sim.contents(&again), b"ABCDEF6789");
}
