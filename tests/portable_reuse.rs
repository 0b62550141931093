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
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use each_kernel::{
    TempFile, ends, look_around, noise, poll_once, queue_on, raw_pipe, raw_tcp, write_full,
};
use ioqueue::error::is_cancelled;
use ioqueue::op::{Operation, Read as Reading};
use ioqueue::{
    AnyHandle, AsAnyHandle, Event, KernelKind, Misuse, PersistError, PersistFailure, Queue,
};

/// Runs `test` on each kernel, alone.
fn alone(test: fn(&Queue)) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for kind in [KernelKind::Uring, KernelKind::Readiness] {
        ends(move || {
            let Some(queue) = queue_on(kind) else { return };
            eprintln!("{kind:?}");
            test(&queue);
            queue.close(Duration::from_secs(5)).unwrap();
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

/// As the last, where the kernel has a read of the new one: made beside that, it would end twice.
#[test]
fn what_had_come_for_the_old_is_not_looked_for_in_the_new() {
    alone(|queue| {
        let [(ours, mut theirs), (leaves, _stays)] = [(); 2].map(|()| {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let ours = queue.register(ours).unwrap();
            let first = ours.recv(vec![0; 8]);
            theirs.write_all(b"first").unwrap();
            assert_eq!(queue.block_on(first).unwrap().1, b"first");
            (ours, theirs)
        });
        theirs.write_all(b"old").unwrap();
        // A ring takes in what has come as another registration ends.
        drop(leaves);
        drop(ours);
        let new = [raw_pipe(), raw_pipe()].map(|(reader, writer)| {
            let reader = queue.register(reader).unwrap();
            (reader.read(vec![0; 8]), reader, File::from(writer))
        });
        for (_, _, writer) in &new {
            let mut writer = writer;
            writer.write_all(b"the first and more").unwrap();
        }
        for (fresh, reader, _) in new {
            assert_eq!(queue.block_on(fresh).unwrap().1, b"the firs");
            assert_eq!(queue.block_on(reader.read(vec![0; 8])).unwrap().1, b"t and mo");
        }
    });
}

/// Q8: what is kept of a registration that has ended leads to no other handle's.
#[test]
fn what_is_registered_no_more_takes_nothing_of_the_next() {
    alone(|queue| {
        let (one, _peer) = UnixStream::pair().unwrap();
        let (other, mut peer) = UnixStream::pair().unwrap();
        let one = queue.register(one).unwrap();
        queue.unregister(&one).unwrap();
        let other = queue.register(other).unwrap();
        peer.write_all(b"the other's").unwrap();
        let (refused, bytes) = queue.block_on(one.recv(vec![0; 16])).unwrap();
        assert!(refused.is_err(), "{bytes:?}");
        assert_eq!(queue.block_on(other.recv(vec![0; 16])).unwrap().1, b"the other's");
    });
}

/// A job on a thread, or a submission that the kernel has not seen: neither may meet the next file of that
/// number. A write that did would be in the wrong file.
#[test]
fn a_write_never_goes_to_the_next_file_of_that_number() {
    alone(|queue| {
        let (old, new) = (TempFile::new(&[0; 4096]), TempFile::new(&[0; 4096]));
        let mut came_back = 0;
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
            // Unless a thread that begins looks up something just now.
            came_back += u32::from(next.as_raw_fd() == number);
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
        assert!(came_back > 1_900, "{came_back} times");
    });
}

/// The same for a read: the bytes of the next file are nobody's business.
#[test]
fn a_read_never_comes_from_the_next_file_of_that_number() {
    alone(|queue| {
        let (old, new) = (TempFile::new(&[1; 65_536]), TempFile::new(&[2; 65_536]));
        let mut came_back = 0;
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
            // Unless a thread that begins looks up something just now.
            came_back += u32::from(next.as_raw_fd() == number);
            for read in reads {
                match queue.block_on(read).unwrap() {
                    (Ok(_), bytes) => assert!(bytes == [1; 4096], "round {round}"),
                    (Err(error), _) => assert!(is_cancelled(&error), "{error}"),
                }
            }
        }
        assert!(came_back > 950, "{came_back} times");
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
        queue.block_on(look_around()).unwrap();
        assert!(poll_once(&mut waiting).is_pending(), "nothing tells of it yet");
        // The new one is registered by itself, and told of what is its own.
        let fresh = queue.ready(&new, Event::Read);
        there.write_all(b"x").unwrap();
        assert!(queue.block_on(fresh).unwrap().unwrap().contains(Event::Read));
        let error = queue.block_on(waiting).unwrap().unwrap_err();
        let misuse = Misuse::of(&error);
        assert!(matches!(misuse, Some(Misuse::PrematureClose { .. })), "{error:?}");
        // The file that a ring may have held on to is closed with that.
        queue.block_on(look_around()).unwrap();
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
            let limited = waiting.timeout(Duration::from_secs(5));
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
        let limited = waiting.timeout(Duration::from_secs(5));
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

/// As the last, for a write that would wait for room: where the system cannot watch what has the number now, it
/// ends, and nothing of it is left to those after it.
#[test]
fn what_cannot_be_watched_any_more_ends_its_write() {
    alone(|queue| {
        let (one, _other) = UnixStream::pair().unwrap();
        let number = one.as_raw_fd();
        let one = queue.register(one).unwrap();
        let (count, _) = queue.block_on(one.send(vec![1; 4 << 20])).unwrap();
        assert!(count.unwrap() < 4 << 20, "there is room for everything");
        std::mem::forget(take_the_place(number, File::open("/dev/null").unwrap()));
        for _ in 0..3 {
            queue.block_on(one.send("next")).unwrap().0.unwrap_err();
        }
        drop(one);
        assert!(queue.pending().is_empty());
    });
}

/// A registration that was forgotten, and its descriptor closed: a ring, which looks the number up later, ends
/// the wait with the call's error. A poller forgets it, and the wait lasts until it is given up.
#[test]
fn a_descriptor_that_was_closed_before_the_poll_ends_the_wait() {
    alone(|queue| {
        let (here, _there) = UnixStream::pair().unwrap();
        let value = here.as_raw_fd();
        let registered = queue.register(here).unwrap();
        let reading = registered.read(vec![0; 8]);
        std::mem::forget(registered);
        // SAFETY: it is ours, and nobody closes it again.
        unsafe { libc::close(value) };
        if queue.kernel_kind() == KernelKind::Uring {
            let (result, _) = queue.block_on(reading).unwrap();
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EBADF));
            return;
        }
        queue.block_on(look_around()).unwrap();
        assert_eq!(queue.pending().len(), 1);
        let (result, _) = queue.block_on(reading.cancel()).unwrap();
        assert!(is_cancelled(&result.unwrap_err()));
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

// ---------------------------------------------------------------------------------------------
// Registrations of a borrow

/// A wrapper that passes on a borrow as if it were its own.
struct Lends<'a, H>(&'a H);

impl<H: AsAnyHandle> AsAnyHandle for Lends<'_, H> {
    fn as_any_handle(&self) -> AnyHandle<'_> {
        (*self.0).as_any_handle()
    }
}

/// A wrapper that owns a handle.
struct Keeps<H>(H);

impl<H: AsAnyHandle> AsAnyHandle for Keeps<H> {
    fn as_any_handle(&self) -> AnyHandle<'_> {
        self.0.as_any_handle()
    }
}

/// Opens until one has the number, which is free.
fn open_as<T: AsRawFd>(number: RawFd, mut open: impl FnMut() -> T) -> T {
    let mut others = Vec::new();
    loop {
        let opened = open();
        if opened.as_raw_fd() == number {
            return opened;
        }
        assert!(others.len() < 64, "the number was to come back");
        others.push(opened);
    }
}

/// How many ways there are to lend a handle without owning it.
const WAYS: usize = 6;

fn lend<H: AsAnyHandle + AsFd>(owner: &H, way: usize) -> Box<dyn AsAnyHandle + '_> {
    match way {
        0 => Box::new(owner),
        1 => Box::new(owner.as_fd()),
        2 => Box::new(AnyHandle::from(owner.as_fd())),
        3 => Box::new(Lends(owner)),
        4 => Box::new(Keeps(Box::new(Lends(owner)))),
        _ => Box::new(Arc::new(owner)),
    }
}

/// Starts reads of three bytes on a borrow, and forgets its registration.
fn read_and_forget<H: AsAnyHandle + AsFd>(
    queue: &Queue,
    owner: &H,
    way: usize,
) -> [Operation<Reading<Vec<u8>>>; 2] {
    let registered = queue.register(lend(owner, way)).unwrap();
    let reads = [(); 2].map(|()| registered.read(vec![0; 3]));
    std::mem::forget(registered);
    reads
}

/// Has the queue open what it opens on first use, before somebody counts descriptors.
fn warm_up(queue: &Queue) {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let ours = queue.register(ours).unwrap();
    let _reading = ours.read(vec![0; 8]);
    queue.block_on(look_around()).unwrap();
}

/// What a read has got, when it ends.
fn got(queue: &Queue, read: Operation<Reading<Vec<u8>>>) -> Vec<u8> {
    let limited = read.timeout(Duration::from_secs(5));
    let (count, mut bytes) = queue.block_on(limited).unwrap();
    bytes.truncate(count.unwrap());
    bytes
}

/// Q7, pitfall 34: to forget a registration is safe, and so is closing a handle then that was only lent to it:
/// what waits goes on with its own file, and takes nothing of the next one of that number.
#[test]
fn what_a_forgotten_registration_of_a_borrow_waits_for_is_not_the_next_handles() {
    alone(|queue| {
        for (way, is_seen) in (0..WAYS).flat_map(|way| [(way, true), (way, false)]) {
            let (ours, mut theirs) = raw_tcp();
            let number = ours.as_raw_fd();
            // A receive that takes all there was: the next waits without a look, and is in doubt later.
            theirs.write_all(b"1").unwrap();
            let [first, second] = read_and_forget(queue, &ours, way);
            assert_eq!(got(queue, first), b"1");
            if is_seen {
                queue.block_on(look_around()).unwrap();
            }
            let (new, mut there) = raw_tcp();
            drop(ours);
            let mut new = open_as(number, || new.try_clone().unwrap());
            there.write_all(b"new").unwrap();
            let _ = theirs.write_all(b"old");
            assert_eq!(got(queue, second), b"old", "way {way}, {is_seen}");
            // It is all there.
            new.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut bytes = [0; 3];
            new.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"new");
        }
    });
}

/// The same for a read that waits for its turn behind another, which the kernel has already.
#[test]
fn what_waits_for_its_turn_under_a_forgotten_registration_is_not_the_next_pipes() {
    alone(|queue| {
        for (way, is_seen) in (0..WAYS).flat_map(|way| [(way, true), (way, false)]) {
            let (ours, theirs) = raw_pipe();
            let (mut theirs, number) = (File::from(theirs), ours.as_raw_fd());
            let [first, second] = read_and_forget(queue, &ours, way);
            if is_seen {
                queue.block_on(look_around()).unwrap();
            }
            let (new, there) = raw_pipe();
            drop(ours);
            let new = open_as(number, || new.try_clone().unwrap());
            File::from(there).write_all(b"new").unwrap();
            let _ = theirs.write_all(b"old");
            assert_eq!(got(queue, first), b"old", "way {way}, {is_seen}");
            queue.block_on(look_around()).unwrap();
            let _ = theirs.write_all(b"too");
            assert_eq!(got(queue, second), b"too", "way {way}, {is_seen}");
            let mut rest = Vec::new();
            File::from(new).read_to_end(&mut rest).unwrap();
            assert_eq!(rest, b"new");
        }
    });
}

/// Nor is anything written there.
#[test]
fn what_is_to_be_written_under_a_forgotten_registration_is_not_for_the_next_pipe() {
    alone(|queue| {
        for way in 0..WAYS {
            let (theirs, ours) = raw_pipe();
            let number = ours.as_raw_fd();
            let registered = queue.register(lend(&ours, way)).unwrap();
            // All there is room for, one that waits for some, and one that waits for its turn.
            let full = queue.block_on(registered.write(noise(1 << 20))).unwrap().0.unwrap();
            let writes = [(); 2].map(|()| registered.write(noise(100)));
            queue.block_on(look_around()).unwrap();
            std::mem::forget(registered);
            let (there, writer) = raw_pipe();
            drop(ours);
            let new = open_as(number, || writer.try_clone().unwrap());
            let mut theirs = File::from(theirs);
            theirs.read_exact(&mut vec![0; full]).unwrap();
            for write in writes {
                let limited = write.timeout(Duration::from_secs(5));
                assert_eq!(queue.block_on(limited).unwrap().0.unwrap(), 100, "way {way}");
                let mut bytes = [0; 100];
                theirs.read_exact(&mut bytes).unwrap();
                assert_eq!(bytes[..], noise(100));
            }
            drop((new, writer));
            let mut taken = Vec::new();
            File::from(there).read_to_end(&mut taken).unwrap();
            assert_eq!(taken, b"");
        }
    });
}

/// A registration of a borrow ends with all that it had: the file is closed as soon as its owner closes it.
#[test]
fn the_end_of_a_registration_of_a_borrow_leaves_the_file_to_its_owner() {
    alone(|queue| {
        warm_up(queue);
        for (way, how) in (0..WAYS).flat_map(|way| (0..4).map(move |how| (way, how))) {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let before = each_kernel::handle_count();
            let registered = queue.register(lend(&ours, way)).unwrap();
            assert_eq!(registered.id().to_string(), ours.as_raw_fd().to_string());
            assert_eq!(each_kernel::handle_count(), before + 1);
            let reading = registered.read(vec![0; 8]);
            let ready = registered.ready(Event::PriorityRead);
            if how % 2 == 0 {
                queue.block_on(look_around()).unwrap();
            }
            match how {
                0 | 1 => drop(registered),
                2 => drop(registered.into_inner()),
                _ => {
                    queue.unregister(&registered).unwrap();
                    drop(registered);
                }
            }
            assert_eq!(each_kernel::handle_count(), before);
            drop(ours);
            theirs.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            assert_eq!(theirs.read(&mut [0; 8]).unwrap(), 0, "way {way}, {how}");
            assert!(is_cancelled(&queue.block_on(reading).unwrap().0.unwrap_err()));
            assert!(is_cancelled(&queue.block_on(ready).unwrap().unwrap_err()));
        }
    });
}

/// The same after the queue's end.
#[test]
fn a_registration_of_a_borrow_that_outlives_its_queue_leaves_the_file_to_its_owner() {
    alone(|queue| {
        for is_seen in [true, false] {
            let other = queue_on(queue.kernel_kind()).unwrap();
            warm_up(&other);
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let before = each_kernel::handle_count();
            let registered = other.register(&ours).unwrap();
            let reading = registered.read(vec![0; 8]);
            if is_seen {
                other.block_on(look_around()).unwrap();
            }
            other.close(Duration::from_secs(5)).unwrap();
            drop(registered);
            assert_eq!(each_kernel::handle_count(), before);
            drop((ours, reading));
            theirs.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            assert_eq!(theirs.read(&mut [0; 8]).unwrap(), 0, "{is_seen}");
        }
    });
}

/// Who owns a handle cannot close it under its registration, and who is asked to watch one makes no calls on
/// it: neither needs a descriptor more.
#[test]
fn owned_and_watched_handles_take_no_second_descriptor() {
    alone(|queue| {
        warm_up(queue);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let before = each_kernel::handle_count();
        let waiting = queue.ready(&ours, Event::Read);
        queue.persist(&ours).unwrap();
        queue.block_on(look_around()).unwrap();
        assert_eq!(each_kernel::handle_count(), before);
        theirs.write_all(b"x").unwrap();
        assert!(queue.block_on(waiting).unwrap().unwrap().contains(Event::Read));
        queue.unregister(&ours).unwrap();
        let ours = queue.register(ours).unwrap().into_inner();
        let ours = queue.register(Box::new(ours)).unwrap();
        assert_eq!(each_kernel::handle_count(), before);
        let ours = queue.register(Rc::new(*ours.into_inner())).unwrap();
        let again = Arc::new(OwnedFd::from(Rc::into_inner(ours.into_inner()).unwrap()));
        let again: Box<dyn AsAnyHandle> = Box::new(again);
        let again = queue.register(again).unwrap();
        assert_eq!(each_kernel::handle_count(), before);
        // What lends a registration lends that.
        let same = queue.register(&again).unwrap();
        assert_eq!(each_kernel::handle_count(), before);
        drop(same);
        drop(again);
        // The bytes that were not read make it a reset.
        assert!(theirs.read(&mut [0; 8]).is_err());
        assert_eq!(each_kernel::handle_count(), before - 1);
        // Nobody can tell whether a type of the program's own does.
        let file = TempFile::new(b"");
        let before = each_kernel::handle_count();
        let kept = queue.register(Keeps(file.open())).unwrap();
        assert_eq!(each_kernel::handle_count(), before + 2);
        drop(kept);
        assert_eq!(each_kernel::handle_count(), before);
    });
}

/// A handle that is watched by its number, and registered as a borrow after that: each is its own, and the
/// waits of the one do not end with the other.
#[test]
fn a_handle_that_was_persisted_is_registered_as_a_borrow_beside_that() {
    alone(|queue| {
        for forgets in [false, true] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let number = ours.as_raw_fd();
            queue.persist(&ours).unwrap();
            let waiting = queue.ready(&ours, Event::Read);
            queue.block_on(look_around()).unwrap();
            let registered = queue.register(&ours).unwrap();
            let reading = registered.read(vec![0; 8]);
            queue.block_on(look_around()).unwrap();
            if forgets {
                std::mem::forget(registered);
                queue.unregister(&ours).unwrap();
                assert!(is_cancelled(&queue.block_on(waiting).unwrap().unwrap_err()));
                let (new, mut there) = UnixStream::pair().unwrap();
                drop(ours);
                let new = open_as(number, || new.try_clone().unwrap());
                // Nor is the new one taken for the old.
                let new = queue.register(new).unwrap();
                let fresh = new.read(vec![0; 8]);
                there.write_all(b"new").unwrap();
                theirs.write_all(b"old").unwrap();
                assert_eq!(got(queue, reading), b"old");
                assert_eq!(got(queue, fresh), b"new");
            } else {
                drop(registered);
                assert!(is_cancelled(&queue.block_on(reading).unwrap().0.unwrap_err()));
                theirs.write_all(b"x").unwrap();
                assert!(queue.block_on(waiting).unwrap().unwrap().contains(Event::Read));
                queue.unregister(&ours).unwrap();
            }
        }
    });
}

/// What looks alike to the system, too: an eventfd's file is every eventfd's.
#[cfg(target_os = "linux")]
#[test]
fn what_has_the_number_of_a_forgotten_borrow_is_its_own_though_it_looks_the_same() {
    alone(|queue| {
        let eventfd = || {
            // SAFETY: takes numbers; the descriptor that comes back is nobody's yet.
            unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) }
        };
        let ring = |event: &OwnedFd, count: u64| {
            File::from(event.try_clone().unwrap()).write_all(&count.to_ne_bytes()).unwrap();
        };
        let old = eventfd();
        let also_old = old.try_clone().unwrap();
        let number = old.as_raw_fd();
        let registered = queue.register(&old).unwrap();
        let reading = registered.read(vec![0; 8]);
        queue.block_on(look_around()).unwrap();
        std::mem::forget(registered);
        drop(old);
        let new = open_as(number, eventfd);
        let waiting = queue.ready(&new, Event::Read);
        queue.block_on(look_around()).unwrap();
        ring(&new, 2);
        let limited = waiting.timeout(Duration::from_secs(5));
        assert!(queue.block_on(limited).unwrap().unwrap().contains(Event::Read));
        let new = queue.register(new).unwrap();
        assert_eq!(got(queue, new.read(vec![0; 8])), 2_u64.to_ne_bytes());
        ring(&also_old, 1);
        assert_eq!(got(queue, reading), 1_u64.to_ne_bytes());
    });
}

/// Q9: a borrow of what is another queue's of this thread is refused, as the handle is.
#[test]
fn a_borrow_of_another_queues_handle_is_refused() {
    alone(|queue| {
        let other = queue_on(queue.kernel_kind()).unwrap();
        let (one, _peer) = UnixStream::pair().unwrap();
        let (owned, third) = UnixStream::pair().unwrap();
        other.persist(&one).unwrap();
        let owned = other.register(owned).unwrap();
        let lent = other.register(&third).unwrap();
        let refused: [&dyn AsAnyHandle; 4] = [&one, owned.get(), &owned, &lent];
        for (number, handle) in refused.into_iter().enumerate() {
            let refused = queue.register(handle).err().unwrap();
            let error = PersistError::of(refused.error()).unwrap();
            assert_eq!(error.reason(), PersistFailure::WrongQueue, "{number}");
            assert_eq!(error.handle(), handle.as_any_handle().id());
        }
        assert_eq!(queue.persist(&lent).unwrap_err().reason(), PersistFailure::WrongQueue);
        other.persist(&lent).unwrap();
        other.unregister(&one).unwrap();
        drop(queue.register(&one).unwrap());
    });
}

/// Two own it, and others are lent it by one of them: whoever goes ends nothing of the other's, and who is
/// forgotten keeps nothing.
#[test]
fn a_handle_that_two_own_is_registered_until_both_are_gone() {
    alone(|queue| {
        let (here, mut there) = UnixStream::pair().unwrap();
        let here = Rc::new(here);
        let one = queue.register(Rc::clone(&here)).unwrap();
        let other = queue.register(Rc::clone(&here)).unwrap();
        let reading = other.read(vec![0; 8]);
        drop(one);
        drop(queue.register(&other).unwrap());
        std::mem::forget(queue.register(&other).unwrap());
        there.write_all(b"hello").unwrap();
        assert_eq!(queue.block_on(reading).unwrap().0.unwrap(), 5);
        let waiting = other.read(vec![0; 8]);
        drop(other);
        assert!(is_cancelled(&queue.block_on(waiting).unwrap().0.unwrap_err()));
    });
}
