#![cfg(unix)]
//! Waits until a handle is ready (U2).

#[macro_use]
mod each_kernel;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::task::Poll;
use std::thread;

use each_kernel::{
    TempFile, Wakes, begin_connect, listener, look_around, pipe_in, poll_once, poll_with, queue_on,
    raw_pipe, raw_socket, raw_tcp, read_full, set_nonblocking, silent_address, skip, write_full,
};
use ioqueue::{Event, Events, Misuse, Queue, error};

/// What the handle has come to.
#[track_caller]
fn seen(queue: &Queue, handle: &impl AsFd, event: Event) -> Events {
    queue.block_on(queue.ready(&handle.as_fd(), event)).unwrap().unwrap()
}

/// The events one by one.
fn these(events: Events) -> Vec<Event> {
    let all = [Event::Read, Event::Write, Event::PriorityRead, Event::Error, Event::Hangup];
    all.into_iter().filter(|&event| events.contains(event)).collect()
}

/// Fills what can be written to without waiting.
fn fill(stream: &mut UnixStream) -> usize {
    stream.set_nonblocking(true).unwrap();
    let mut written = 0;
    while let Ok(count) = stream.write(&[1; 4096]) {
        written += count;
    }
    stream.set_nonblocking(false).unwrap();
    written
}

on_each_kernel! {
    not_simulated("these are handles of Unix"):

    fn a_handle_is_ready_when_something_has_come(queue) {
        let (here, mut there) = UnixStream::pair().unwrap();
        let mut waiting = queue.ready(&here, Event::Read);
        queue.block_on(look_around()).unwrap();
        assert!(poll_once(&mut waiting).is_pending());
        there.write_all(b"x").unwrap();
        // There is room, too, which nobody asked for: no kernel tells of it.
        assert_eq!(these(queue.block_on(waiting).unwrap().unwrap()), [Event::Read]);
        // By the level: it is ready for as long as nobody has read, however often it was said.
        for _ in 0..3 {
            assert_eq!(these(seen(queue, &here, Event::Read)), [Event::Read]);
        }
        (&here).read_exact(&mut [0]).unwrap();
        let mut waiting = queue.ready(&here, Event::Read);
        queue.block_on(look_around()).unwrap();
        assert!(poll_once(&mut waiting).is_pending());
        drop(waiting);
        queue.unregister(&here).unwrap();
    }

    fn a_handle_is_ready_when_there_is_room(queue) {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        there.write_all(b"x").unwrap();
        assert_eq!(these(seen(queue, &here, Event::Write)), [Event::Write]);
        let filled = fill(&mut here);
        let mut waiting = queue.ready(&here, Event::Write);
        queue.block_on(look_around()).unwrap();
        assert!(poll_once(&mut waiting).is_pending());
        // What has come is not what it waits for.
        there.write_all(b"x").unwrap();
        queue.block_on(look_around()).unwrap();
        assert!(poll_once(&mut waiting).is_pending());
        there.read_exact(&mut vec![0; filled]).unwrap();
        assert!(queue.block_on(waiting).unwrap().unwrap().contains(Event::Write));
        queue.unregister(&here).unwrap();
    }

    /// Any number of waits on one handle, for the same and for others.
    fn several_waits_on_one_handle_all_end(queue) {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let filled = fill(&mut here);
        let reads: Vec<_> = (0..10).map(|_| queue.ready(&here, Event::Read)).collect();
        let writes: Vec<_> = (0..10).map(|_| queue.ready(&here, Event::Write)).collect();
        let urgent: Vec<_> = (0..10).map(|_| queue.ready(&here, Event::PriorityRead)).collect();
        queue.block_on(look_around()).unwrap();
        assert_eq!(queue.pending().len(), 30);
        there.write_all(b"x").unwrap();
        for read in reads {
            assert!(queue.block_on(read).unwrap().unwrap().contains(Event::Read));
        }
        queue.block_on(look_around()).unwrap();
        assert_eq!(queue.pending().len(), 20);
        there.read_exact(&mut vec![0; filled]).unwrap();
        for write in writes {
            assert!(queue.block_on(write).unwrap().unwrap().contains(Event::Write));
        }
        queue.block_on(look_around()).unwrap();
        assert_eq!(queue.pending().len(), 10);
        drop(there);
        for wait in urgent {
            assert!(queue.block_on(wait).unwrap().unwrap().contains(Event::Hangup));
        }
        queue.unregister(&here).unwrap();
    }

    /// An error or a hang-up ends every wait, whatever it is for, and comes with what else there is.
    fn a_hang_up_or_an_error_ends_every_wait(queue) {
        const ALL: [Event; 5] =
            [Event::Read, Event::Write, Event::PriorityRead, Event::Error, Event::Hangup];
        for is_early in [true, false] {
            let (mut here, there) = UnixStream::pair().unwrap();
            fill(&mut here);
            let wait = |event| (event, queue.ready(&here, event));
            let early: Vec<_> = ALL.into_iter().filter(|_| is_early).map(wait).collect();
            queue.block_on(look_around()).unwrap();
            drop(there);
            let late = ALL.into_iter().filter(|_| !is_early).map(wait);
            for (event, wait) in early.into_iter().chain(late) {
                let events = queue.block_on(wait).unwrap().unwrap();
                assert!(events.contains(Event::Hangup), "{event:?}: {events:?}");
            }
            queue.unregister(&here).unwrap();
        }
        for is_early in [true, false] {
            let (here, there) = raw_tcp();
            each_kernel::reset_when_closed(&there);
            let wait = |event| (event, queue.ready(&here, event));
            let waiting = [Event::Read, Event::PriorityRead, Event::Error];
            let early: Vec<_> = waiting.into_iter().filter(|_| is_early).map(wait).collect();
            queue.block_on(look_around()).unwrap();
            drop(there);
            let late = waiting.into_iter().filter(|_| !is_early).map(wait);
            for (event, wait) in early.into_iter().chain(late) {
                let events = queue.block_on(wait).unwrap().unwrap();
                assert!(events.contains(Event::Error), "{event:?}: {events:?}");
            }
            queue.unregister(&here).unwrap();
        }
    }

    /// A peer that will send no more, though it reads on, is a hang-up too: whether the waits were there
    /// before or come after, and whatever they are for.
    fn half_an_end_ends_every_wait(queue) {
        for is_early in [true, false] {
            let (mut here, mut there) = UnixStream::pair().unwrap();
            let filled = fill(&mut here);
            let wait = |event| (event, queue.ready(&here, event));
            let events = [Event::Read, Event::Write, Event::PriorityRead, Event::Hangup];
            let early: Vec<_> = events.into_iter().filter(|_| is_early).map(wait).collect();
            // One that has the handle watched all along.
            let watching = queue.ready(&here, Event::Read);
            queue.block_on(look_around()).unwrap();
            there.shutdown(Shutdown::Write).unwrap();
            queue.block_on(look_around()).unwrap();
            let late = events.into_iter().filter(|_| !is_early).map(wait);
            for (event, wait) in early.into_iter().chain(late) {
                let seen = queue.block_on(wait).unwrap().unwrap();
                assert!(seen.contains(Event::Hangup), "{event:?}: {seen:?}");
                assert!(!seen.contains(Event::Write), "{event:?}: {seen:?}");
            }
            drop(watching);
            there.read_exact(&mut vec![0; filled]).unwrap();
            let events = seen(queue, &here, Event::Write);
            assert!(events.contains(Event::Write), "{events:?}");
            queue.unregister(&here).unwrap();
        }
    }

    /// `PriorityRead` is for what is urgent.
    fn urgent_data_is_told_of(queue) {
        let (here, there) = raw_tcp();
        for is_early in [true, false] {
            let early = is_early.then(|| queue.ready(&here, Event::PriorityRead));
            queue.block_on(look_around()).unwrap();
            (&there).write_all(b"usual").unwrap();
            queue.block_on(look_around()).unwrap();
            let mut early = early;
            if let Some(wait) = &mut early {
                assert!(poll_once(wait).is_pending());
            }
            // SAFETY: a byte of ours.
            let sent =
                unsafe { libc::send(there.as_raw_fd(), c"!".as_ptr().cast(), 1, libc::MSG_OOB) };
            assert_eq!(sent, 1);
            let wait = early.unwrap_or_else(|| queue.ready(&here, Event::PriorityRead));
            let events = queue.block_on(wait).unwrap().unwrap();
            assert!(events.contains(Event::PriorityRead), "{events:?}");
            let (mut usual, mut urgent) = ([0; 5], 0_u8);
            (&here).read_exact(&mut usual).unwrap();
            // SAFETY: room for a byte.
            let received = unsafe {
                libc::recv(here.as_raw_fd(), (&raw mut urgent).cast(), 1, libc::MSG_OOB)
            };
            assert_eq!((received, urgent), (1, b'!'));
        }
        queue.unregister(&here).unwrap();
    }

    fn a_listener_is_ready_when_somebody_connects(queue) {
        let (listener, address) = listener(queue);
        let mut waiting = listener.ready(Event::Read);
        queue.block_on(look_around()).unwrap();
        assert!(poll_once(&mut waiting).is_pending());
        let client = TcpStream::connect(address).unwrap();
        assert!(queue.block_on(waiting).unwrap().unwrap().contains(Event::Read));
        listener.get().accept().unwrap();
        drop(client);
    }

    /// A connect that was begun by other code: it has ended, well or not, when the socket is ready to be
    /// written to.
    fn a_socket_that_connects_is_ready_when_it_has(queue) {
        for is_taken in [true, false] {
            let (address, guard) = silent_address(queue);
            let mut sockets = *guard.downcast::<Vec<OwnedFd>>().unwrap();
            let listener = TcpListener::from(sockets.remove(0));
            let socket = TcpStream::from(raw_socket(libc::AF_INET, libc::SOCK_STREAM));
            set_nonblocking(&socket, true);
            assert!(begin_connect(&socket, address), "the address is not silent");
            let mut waiting = queue.ready(&socket, Event::Write);
            queue.block_on(look_around()).unwrap();
            assert!(poll_once(&mut waiting).is_pending());
            // Whoever kept it waiting goes; it is tried again within a second or two.
            drop(sockets);
            let taking = is_taken.then(|| {
                let from = socket.local_addr().unwrap();
                thread::spawn(move || loop {
                    let (stream, peer) = listener.accept().unwrap();
                    if peer == from {
                        return stream;
                    }
                })
            });
            let seen = these(queue.block_on(waiting).unwrap().unwrap());
            match &taking {
                Some(_) => assert_eq!(seen, [Event::Write]),
                None => assert!(seen.contains(&Event::Error), "{seen:?}"),
            }
            let error = socket.take_error().unwrap().map(|error| error.kind());
            assert_eq!(error, (!is_taken).then_some(std::io::ErrorKind::ConnectionRefused));
            queue.unregister(&socket).unwrap();
            drop(taking.map(|taking| taking.join().unwrap()));
        }
    }

    /// What cannot be waited for is always ready.
    fn a_file_is_always_ready(queue) {
        let temporary = TempFile::new(b"");
        let file = temporary.open();
        assert!(seen(queue, &file, Event::Read).contains(Event::Read));
        assert!(seen(queue, &file, Event::Write).contains(Event::Write));
        queue.unregister(&file).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(seen(queue, &null, Event::Read).contains(Event::Read));
        queue.unregister(&null).unwrap();
    }

    /// Beside operations of the queue on the same handle.
    fn a_wait_and_the_queues_own_reads_share_a_handle(queue) {
        let (ours, mut theirs) = pipe_in(queue);
        let waiting = ours.ready(Event::Read);
        let reading = ours.read(vec![0; 8]);
        let other = ours.ready(Event::Read);
        queue.block_on(look_around()).unwrap();
        theirs.write_all(b"data").unwrap();
        assert_eq!(queue.block_on(reading).unwrap().1, b"data");
        // Who looked before the read has seen it; the rest waits, or was told as well.
        drop((waiting, other));
        queue.run().unwrap();
        let waiting = ours.ready(Event::Read);
        drop(theirs);
        assert!(queue.block_on(waiting).unwrap().unwrap().contains(Event::Hangup));
        assert_eq!(queue.block_on(ours.read(vec![0; 8])).unwrap().0.unwrap(), 0);
    }

    /// Q13, Q8.
    fn a_wait_is_dropped_cancelled_and_ended_with_the_registration(queue) {
        let (here, there) = UnixStream::pair().unwrap();
        drop(queue.ready(&here, Event::Read));
        queue.run().unwrap();
        let error = queue.block_on(queue.ready(&here, Event::Read).cancel()).unwrap().unwrap_err();
        assert!(error::is_cancelled(&error), "{error}");
        let waits: Vec<_> = (0..5).map(|_| queue.ready(&here, Event::Read)).collect();
        queue.block_on(look_around()).unwrap();
        queue.unregister(&here).unwrap();
        for wait in waits {
            let error = queue.block_on(wait).unwrap().unwrap_err();
            assert!(error::is_cancelled(&error), "{error}");
        }
        assert!(!queue.running());
        // It registers itself again.
        drop(there);
        assert!(seen(queue, &here, Event::Read).contains(Event::Hangup));
        queue.unregister(&here).unwrap();
    }

    /// One that is given up in the midst of others.
    fn waits_are_given_up_one_by_one(queue) {
        let (here, mut there) = UnixStream::pair().unwrap();
        let mut waits: Vec<_> = (0..30).map(|_| Some(queue.ready(&here, Event::Read))).collect();
        queue.block_on(look_around()).unwrap();
        for number in (0..30).step_by(3) {
            waits[number] = None;
        }
        queue.block_on(look_around()).unwrap();
        assert_eq!(queue.pending().len(), 20);
        there.write_all(b"x").unwrap();
        for wait in waits.into_iter().flatten() {
            assert!(queue.block_on(wait).unwrap().unwrap().contains(Event::Read));
        }
        queue.unregister(&here).unwrap();
        assert!(!queue.running());
    }

    /// Q9: what is no handle, and another queue's.
    fn what_cannot_be_waited_for_says_why(queue) {
        let (reader, _writer) = raw_pipe();
        let Some(other) = queue_on(queue.kernel_kind()) else { return skip("one queue only") };
        let registered = other.register(reader).unwrap();
        let error = queue.block_on(queue.ready(&registered, Event::Read)).unwrap().unwrap_err();
        assert!(matches!(Misuse::of(&error), Some(Misuse::WrongQueue { .. })), "{error}");
        let borrowed = registered.get().as_fd();
        let error = queue.block_on(queue.ready(&borrowed, Event::Read)).unwrap().unwrap_err();
        assert!(error.to_string().contains("another queue"), "{error}");
        drop(registered);
        let (reader, _writer) = raw_pipe();
        other.close(each_kernel::LONG).unwrap();
        let error = queue.block_on(other.ready(&reader, Event::Read)).unwrap().unwrap_err();
        assert!(error::Closed::is(&error) || Misuse::of(&error).is_some(), "{error}");
    }

    /// A wait is over once for whoever polls it, and wakes once.
    fn a_wait_wakes_once(queue) {
        let (here, mut there) = UnixStream::pair().unwrap();
        let mut waiting = queue.ready(&here, Event::Read);
        let (wakes, waker) = Wakes::new();
        assert!(poll_with(&mut waiting, &waker).is_pending());
        for _ in 0..3 {
            there.write_all(b"x").unwrap();
            each_kernel::turn(queue);
        }
        assert_eq!(wakes.count(), 1);
        assert!(matches!(poll_with(&mut waiting, &waker), Poll::Ready(Ok(_))));
        queue.unregister(&here).unwrap();
    }

    /// Made of waits alone: what a library with socket code of its own does.
    fn a_stream_is_copied_by_waits_and_calls_of_ones_own(queue) {
        let (mut here, there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        let there = queue.register(there).unwrap();
        let sending = queue.spawn(async move {
            write_full(&there, each_kernel::noise(3_000_003)).await;
        });
        let mut all = Vec::new();
        queue.block_on(async {
            loop {
                queue.ready(&here, Event::Read).await.unwrap();
                let mut part = [0; 10_000];
                match here.read(&mut part) {
                    Ok(0) => break,
                    Ok(count) => all.extend_from_slice(&part[..count]),
                    Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
                }
            }
            sending.await;
        }).unwrap();
        assert!(all == each_kernel::noise(3_000_003));
        queue.unregister(&here).unwrap();
    }

    /// Registered by whoever waits, it can be given to a `Registered` later.
    fn a_handle_that_was_waited_for_can_be_owned(queue) {
        let (here, there) = UnixStream::pair().unwrap();
        assert!(seen(queue, &here, Event::Write).contains(Event::Write));
        let here = queue.register(here).unwrap();
        let there = queue.register(there).unwrap();
        let reading = queue.spawn(async move { read_full(&here, 4).await });
        queue.block_on(write_full(&there, "data")).unwrap();
        assert_eq!(queue.block_on(reading).unwrap(), b"data");
    }
}
