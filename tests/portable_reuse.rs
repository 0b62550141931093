#![cfg(unix)]
//! A descriptor's number comes back for something new while something of the old is still under way
//! (scenario 17, pitfalls 29, 34 and 35). One test at a time: the numbers are the process's.

#[macro_use]
mod each_kernel;

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use each_kernel::{TempFile, ends, look_around, noise, poll_once, queue_on, raw_pipe, write_full};
use ioqueue::error::is_cancelled;
use ioqueue::{Event, KernelKind, Misuse, Queue};

/// Runs `test` on each kernel, alone.
fn alone(test: fn(&Queue)) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for kind in [KernelKind::Uring, KernelKind::Readiness] {
        ends(move || {
            let Some(queue) = queue_on(kind) else { return };
            eprintln!("{kind:?}");
            test(&queue);
            queue.close(std::time::Duration::from_secs(5)).unwrap();
        });
    }
}

/// Has the new descriptor take the number of the old, which is closed with that.
fn take_the_place(of: RawFd, new: impl Into<OwnedFd>) -> OwnedFd {
    let new = new.into();
    // SAFETY: takes numbers. What had the number before is nobody's any more: its owner let go of it.
    unsafe {
        assert_eq!(libc::dup2(new.as_raw_fd(), of), of, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(of)
    }
}

fn borrowed(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: the tests know that it is open, or are about what happens if it is not.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

#[test]
fn a_closed_listeners_accepts_take_nothing_of_the_next() {
    alone(|queue| {
        for is_seen in [true, false] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let number = listener.as_raw_fd();
            let listener = queue.register(listener).unwrap();
            let accepts: Vec<_> = (0..16).map(|_| listener.accept()).collect();
            if is_seen {
                queue.block_on(look_around()).unwrap();
            }
            drop(listener);
            let again = TcpListener::bind("127.0.0.1:0").unwrap();
            assert_eq!(again.as_raw_fd(), number, "the number was to come back");
            let address = again.local_addr().unwrap();
            let again = queue.register(again).unwrap();
            let client = TcpStream::connect(address).unwrap();
            queue.block_on(look_around()).unwrap();
            for accept in accepts {
                assert!(is_cancelled(&queue.block_on(accept).unwrap().unwrap_err()));
            }
            let (_, peer) = queue.block_on(again.accept()).unwrap().unwrap();
            assert_eq!(peer.ip(), Some(client.local_addr().unwrap()));
        }
    });
}

#[test]
fn what_had_come_for_the_old_is_not_told_of_the_new() {
    alone(|queue| {
        for looks in [true, false] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let number = ours.as_raw_fd();
            let ours = queue.register(ours).unwrap();
            let reading = ours.read(vec![0; 8]);
            queue.block_on(look_around()).unwrap();
            // The kernel has something to say when the handle goes.
            theirs.write_all(b"old").unwrap();
            if looks {
                queue.block_on(look_around()).unwrap();
            }
            drop(ours);
            let (new, mut peer) = UnixStream::pair().unwrap();
            assert_eq!(new.as_raw_fd(), number, "the number was to come back");
            let new = queue.register(new).unwrap();
            let mut fresh = new.read(vec![0; 8]);
            let mut ready = new.ready(Event::Read);
            queue.block_on(look_around()).unwrap();
            assert!(poll_once(&mut fresh).is_pending() && poll_once(&mut ready).is_pending());
            let (result, bytes) = queue.block_on(reading).unwrap();
            match result {
                Ok(count) => assert_eq!((count, &bytes[..]), (3, &b"old"[..])),
                Err(error) => assert!(is_cancelled(&error), "{error}"),
            }
            peer.write_all(b"new").unwrap();
            assert_eq!(queue.block_on(fresh).unwrap().1, b"new");
            drop(ready);
        }
    });
}

/// A job on a thread, or a submission that the kernel has not seen: neither may meet the next file of that
/// number. A write that did would be in the wrong file.
#[test]
fn a_write_never_goes_to_the_next_file_of_that_number() {
    alone(|queue| {
        let (old, new) = (TempFile::new(&[0; 4096]), TempFile::new(&[0; 4096]));
        for round in 0..2_000 {
            let file = old.open();
            let number = file.as_raw_fd();
            let file = queue.register(file).unwrap();
            let writes: Vec<_> =
                (0..4).map(|part| file.write_at(vec![7; 1024], part * 1024)).collect();
            let mut on = file.write(vec![7; 1024]);
            let _ = poll_once(&mut on);
            drop(file);
            let next = new.open();
            assert_eq!(next.as_raw_fd(), number, "the number was to come back");
            for write in writes {
                match queue.block_on(write).unwrap().0 {
                    Ok(count) => assert_eq!(count, 1024),
                    Err(error) => assert!(is_cancelled(&error), "{error}"),
                }
            }
            let _ = queue.block_on(on.cancel()).unwrap();
            let mut now = [1; 4096];
            next.read_exact_at(&mut now, 0).unwrap();
            assert!(now == [0; 4096], "round {round}: the wrong file was written to");
        }
    });
}

/// The same for a read: the bytes of the next file are nobody's business.
#[test]
fn a_read_never_comes_from_the_next_file_of_that_number() {
    alone(|queue| {
        let (old, new) = (TempFile::new(&[1; 65_536]), TempFile::new(&[2; 65_536]));
        for round in 0..1_000 {
            let file = old.open();
            let number = file.as_raw_fd();
            #[cfg(target_os = "linux")]
            each_kernel::forget_contents(&file);
            let file = queue.register(file).unwrap();
            let reads: Vec<_> =
                (0..4).map(|part| file.read_at(vec![0; 4096], part * 16_384)).collect();
            drop(file);
            let next = new.open();
            assert_eq!(next.as_raw_fd(), number, "the number was to come back");
            for read in reads {
                match queue.block_on(read).unwrap() {
                    (Ok(_), bytes) => assert!(bytes == [1; 4096], "round {round}"),
                    (Err(error), _) => assert!(is_cancelled(&error), "{error}"),
                }
            }
        }
    });
}

/// Q9, pitfall 34: a number that came back is not taken as registered, and what waited says what happened.
#[test]
fn a_handle_closed_under_a_wait_is_misuse_when_its_number_comes_back() {
    alone(|queue| {
        let (old, peer) = UnixStream::pair().unwrap();
        let number = old.into_raw_fd();
        let mut waiting = queue.ready(&borrowed(number), Event::Read);
        queue.block_on(look_around()).unwrap();
        let (new, mut there) = UnixStream::pair().unwrap();
        let new = take_the_place(number, new);
        // The new one is registered by itself, and told of what is its own.
        let fresh = queue.ready(&new, Event::Read);
        queue.block_on(look_around()).unwrap();
        assert!(poll_once(&mut waiting).is_pending());
        there.write_all(b"x").unwrap();
        assert!(queue.block_on(fresh).unwrap().unwrap().contains(Event::Read));
        queue.block_on(look_around()).unwrap();
        assert!(poll_once(&mut waiting).is_pending(), "a stale event, or the new one's");
        // The wait ends when it is dropped; and so does the file that a ring may have held on to.
        drop(waiting);
        queue.run().unwrap();
        let error = (&peer).write_all(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        queue.unregister(&new).unwrap();
    });
}

#[test]
fn a_handle_closed_under_a_wait_is_misuse_when_it_is_unregistered() {
    alone(|queue| {
        let (old, _peer) = UnixStream::pair().unwrap();
        let number = old.into_raw_fd();
        let waiting = queue.ready(&borrowed(number), Event::Read);
        queue.block_on(look_around()).unwrap();
        let (new, _there) = UnixStream::pair().unwrap();
        let new = take_the_place(number, new);
        let misuse = queue.unregister(&new).unwrap_err();
        assert!(matches!(misuse, Misuse::PrematureClose { .. }), "{misuse:?}");
        drop(waiting);
        queue.run().unwrap();
        queue.unregister(&new).unwrap();
    });
}

/// Pitfall 34, for what all looks alike to the system: no two of these can be told apart by their file.
#[cfg(target_os = "linux")]
#[test]
fn a_number_that_comes_back_for_something_that_looks_the_same_is_waited_for() {
    alone(|queue| {
        let eventfd = || {
            // SAFETY: takes numbers; the descriptor that comes back is nobody's yet.
            unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) }
        };
        for round in 0..3 {
            let old = eventfd();
            let number = old.as_raw_fd();
            if round > 0 {
                // One wait that ends, or is given up; then it is closed, and nobody was told.
                let waiting = queue.ready(&old, Event::Read);
                queue.block_on(look_around()).unwrap();
                if round == 1 {
                    File::from(old.try_clone().unwrap()).write_all(&1_u64.to_ne_bytes()).unwrap();
                    queue.block_on(waiting).unwrap().unwrap();
                }
            }
            drop(old);
            queue.run().unwrap();
            let new = eventfd();
            assert_eq!(new.as_raw_fd(), number, "the number was to come back");
            let waiting = queue.ready(&new, Event::Read);
            queue.block_on(look_around()).unwrap();
            File::from(new.try_clone().unwrap()).write_all(&1_u64.to_ne_bytes()).unwrap();
            let limited = waiting.timeout(std::time::Duration::from_secs(5));
            let events = queue.block_on(limited).unwrap();
            assert!(events.unwrap().contains(Event::Read), "round {round}");
            queue.unregister(&new).unwrap();
        }
    });
}

/// The same for a pipe that has a name, which is opened again.
#[test]
fn a_number_that_comes_back_for_the_same_fifo_is_waited_for() {
    alone(|queue| {
        let name = format!("ioqueue-fifo-{}-{}", std::process::id(), each_kernel::unique());
        let path = std::env::temp_dir().join(name);
        let ends_with_zero = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: the path ends with a zero.
        assert_eq!(unsafe { libc::mkfifo(ends_with_zero.as_ptr(), 0o600) }, 0);
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let mut old = open();
        let number = old.as_raw_fd();
        let waiting = queue.ready(&old, Event::Read);
        old.write_all(b"x").unwrap();
        queue.block_on(waiting).unwrap().unwrap();
        // With it goes what was in the pipe.
        drop(old);
        let mut new = open();
        assert_eq!(new.as_raw_fd(), number, "the number was to come back");
        std::fs::remove_file(&path).unwrap();
        let waiting = queue.ready(&new, Event::Read);
        queue.block_on(look_around()).unwrap();
        new.write_all(b"x").unwrap();
        let limited = waiting.timeout(std::time::Duration::from_secs(5));
        assert!(queue.block_on(limited).unwrap().unwrap().contains(Event::Read));
        queue.unregister(&new).unwrap();
    });
}

/// A duplicate keeps the old file open: what comes to it is nobody's business any more.
#[test]
fn a_duplicate_of_what_was_closed_tells_nobody() {
    alone(|queue| {
        let (old, mut peer) = UnixStream::pair().unwrap();
        let duplicate = old.try_clone().unwrap();
        let number = old.into_raw_fd();
        let waiting = queue.ready(&borrowed(number), Event::Read);
        queue.block_on(look_around()).unwrap();
        drop(waiting);
        queue.run().unwrap();
        let (new, mut there) = UnixStream::pair().unwrap();
        let new = take_the_place(number, new);
        let mut fresh = queue.ready(&new, Event::Read);
        queue.block_on(look_around()).unwrap();
        peer.write_all(b"for the duplicate").unwrap();
        queue.block_on(look_around()).unwrap();
        assert!(poll_once(&mut fresh).is_pending());
        there.write_all(b"x").unwrap();
        assert!(queue.block_on(fresh).unwrap().unwrap().contains(Event::Read));
        // Nor who has the old one's place with the queue now.
        let (next, _peer) = UnixStream::pair().unwrap();
        let mut fresh = queue.ready(&next, Event::Read);
        queue.block_on(look_around()).unwrap();
        peer.write_all(b"for the duplicate").unwrap();
        queue.block_on(look_around()).unwrap();
        assert!(poll_once(&mut fresh).is_pending());
        drop(fresh);
        assert_eq!((&duplicate).read(&mut [0; 64]).unwrap(), 34);
        queue.unregister(&new).unwrap();
        queue.unregister(&next).unwrap();
    });
}

/// A registered handle whose descriptor other code closes, against all rules: its waits end, or can be
/// given up, and nobody spins.
#[test]
fn a_descriptor_closed_behind_its_owners_back_harms_nobody_else() {
    alone(|queue| {
        for is_seen in [true, false] {
            let (reader, writer) = raw_pipe();
            let (one, other) = UnixStream::pair().unwrap();
            let numbers = [reader.as_raw_fd(), one.as_raw_fd()];
            let (reader, one) = (queue.register(reader).unwrap(), queue.register(one).unwrap());
            let reads = (reader.read(vec![0; 8]), one.read(vec![0; 8]));
            if is_seen {
                queue.block_on(look_around()).unwrap();
            }
            // The numbers are kept busy, so that no other's is closed with the handles.
            let null = File::open("/dev/null").unwrap();
            for number in numbers {
                std::mem::forget(take_the_place(number, null.try_clone().unwrap()));
            }
            let (here, there) = each_kernel::pipe(queue);
            queue.block_on(write_full(&there, noise(100))).unwrap();
            assert_eq!(queue.block_on(each_kernel::read_full(&here, 100)).unwrap(), noise(100));
            drop(reads);
            queue.run().unwrap();
            drop((reader, one, writer, other));
        }
        assert!(queue.pending().is_empty());
    });
}

/// Scenario 64, Q9: while it is another queue's of this thread it says so, also by its number.
#[test]
fn a_handle_of_another_queue_is_known_by_its_number() {
    alone(|queue| {
        let other = queue_on(queue.kernel_kind()).unwrap();
        let (reader, _writer) = raw_pipe();
        other.persist(&reader).unwrap();
        let error = queue.persist(&reader).unwrap_err();
        assert!(error.to_string().contains("another queue"), "{error}");
        // It goes, its number comes back: that is not the other queue's.
        let number = reader.as_raw_fd();
        let (again, mut there) = raw_pipe();
        std::mem::forget(reader);
        let again = take_the_place(number, again);
        queue.persist(&again).unwrap();
        let waiting = queue.ready(&again.as_fd(), Event::Read);
        File::from(there.try_clone().unwrap()).write_all(b"x").unwrap();
        assert!(queue.block_on(waiting).unwrap().unwrap().contains(Event::Read));
        queue.unregister(&again).unwrap();
        there = again;
        drop(there);
        other.close(each_kernel::LONG).unwrap();
    });
}
