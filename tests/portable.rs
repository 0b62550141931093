//! The portable operations, with the same answers on every kernel (SPEC U3).

#[macro_use]
mod each_kernel;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::Write;
#[cfg(unix)]
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use each_kernel::{
    HalfWay, Wakes, assert_came_back, cancels_later, file, kind_of, listener, look_around,
    poll_until, poll_with, stream_of, tcp, tcp_socket, tcp_to_host, ways_in,
};
#[cfg(unix)]
use ioqueue::Event;
use ioqueue::{AsAnyHandle, IoBuf, IoBufMut, Queue, Registered, error};

/// A poll that does not wait, and what it brought.
fn poll(queue: &Queue) {
    let mut runnable = Vec::new();
    queue.poll(&mut runnable, Some(Duration::ZERO)).unwrap();
    for continuation in runnable {
        continuation.resume();
    }
}

/// The outcomes of two operations, by polls that never wait; within five seconds.
fn polled_until_both<T: 'static>(
    queue: &Queue,
    first: impl Future<Output = T> + 'static,
    second: impl Future<Output = T> + 'static,
) -> (T, T) {
    let both = Rc::new(Cell::new(None));
    let told = Rc::clone(&both);
    let task = queue.spawn(async move { told.set(Some((first.await, second.await))) });
    let start = Instant::now();
    while !task.is_finished() {
        assert!(start.elapsed() < Duration::from_secs(5), "polled for 5 s");
        poll(queue);
    }
    both.take().unwrap()
}

/// A buffer that does something when it is asked where it is for the last of so many times.
struct Odd<F> {
    buffer: Vec<u8>,
    asks_left: u32,
    answer: F,
}

impl<F> Odd<F> {
    fn new(asks_left: u32, answer: F) -> Self {
        Self { buffer: vec![0; 8], asks_left, answer }
    }
}

// SAFETY: the bytes are a Vec's, which does not change.
unsafe impl<F: 'static> IoBuf for Odd<F> {
    fn io_ptr(&self) -> *const u8 {
        self.buffer.as_ptr()
    }

    fn io_len(&self) -> usize {
        self.buffer.len()
    }
}

// SAFETY: as above.
unsafe impl<F: FnMut() + 'static> IoBufMut for Odd<F> {
    fn io_mut_ptr(&mut self) -> *mut u8 {
        self.asks_left = self.asks_left.wrapping_sub(1);
        if self.asks_left == 0 {
            (self.answer)();
        }
        self.buffer.as_mut_ptr()
    }

    unsafe fn set_io_len(&mut self, _: usize) {}
}

/// Reads into buffers whose own code panics, or ends the registration, each time that they are asked something.
/// How often that is.
fn read_oddly<H: AsAnyHandle + 'static, O>(
    queue: &Queue,
    make: impl Fn() -> (Registered<H>, O),
) -> u32 {
    for nth in 1.. {
        let (reader, _other) = make();
        let asked = Odd::new(nth, || panic!("odd"));
        let reading = catch_unwind(AssertUnwindSafe(|| drop(reader.read(asked))));
        let Err(payload) = reading else {
            queue.run().unwrap();
            return nth - 1;
        };
        assert_eq!(*payload.downcast::<&str>().unwrap(), "odd");
        assert!(!queue.running(), "{nth}");
        let (other, here) = (queue.clone(), Rc::new(reader));
        let closed = Rc::clone(&here);
        let asked = Odd::new(nth, move || other.unregister(&*closed).unwrap());
        let (result, _) = queue.block_on(here.read(asked)).unwrap();
        assert!(result.is_err(), "{nth}");
        assert!(!queue.running(), "{nth}");
    }
    unreachable!("each read asks so often at most")
}

on_each_kernel! {
    fn dropping_a_read_cancels_it(queue) {
        let (client, server) = tcp(queue);
        let reading = client.read(vec![0; 64]);
        assert_eq!(queue.pending().len(), 1);
        drop(reading);
        assert!(queue.running() || !cancels_later(queue));
        queue.run().unwrap();
        assert_eq!(queue.pending().len(), 0);
        drop(server);
    }

    fn an_awaited_cancel_gives_the_buffer_back(queue) {
        let (client, _server) = tcp(queue);
        let (result, buffer) = queue.block_on(client.read(vec![5; 64]).cancel()).unwrap();
        assert!(error::is_cancelled(&result.unwrap_err()));
        assert_came_back(queue, &buffer, &[5; 64]);
    }

    #[cfg(unix)]
    /// Scenarios 1 and 2: found out by the call itself, without waiting.
    not_simulated("it is a socket of Unix")
    fn after_the_peer_closed_a_write_is_an_error_and_a_read_is_the_end(queue) {
        let (here, there) = UnixStream::pair().unwrap();
        let here = queue.register(here).unwrap();
        drop(there);
        let (written, buffer) = queue.block_on(here.write(vec![7; 64])).unwrap();
        assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EPIPE));
        assert_eq!(buffer, [7; 64]);
        assert_eq!(queue.block_on(here.read(buffer)).unwrap().0.unwrap(), 0);
    }

    fn files_are_read_and_written_at_places(queue) {
        let file = file(queue, b"");
        queue.block_on(async {
            let place = 5 << 30;
            let (written, _) = file.write_at("hello", place).await;
            assert_eq!(written.unwrap(), 5);
            file.sync_all().await.unwrap();
            let (read, buffer) = file.read_at(Vec::with_capacity(16), place).await;
            assert_eq!((read.unwrap(), &buffer[..]), (5, &b"hello"[..]));
            let (read, _) = file.read_at(buffer, place + 5).await;
            assert_eq!(read.unwrap(), 0);
        }).unwrap();
    }

    fn a_connection_is_made_and_accepted(queue) {
        let (listener, address) = listener(queue);
        let accepting = listener.accept();
        let socket = tcp_socket(queue, address);
        queue.block_on(async {
            socket.connect(address).await.unwrap();
            let (peer, who) = accepting.await.unwrap();
            let peer = stream_of(peer);
            assert_eq!(who.ip(), Some(peer.peer_addr().unwrap()));
        }).unwrap();
    }

    #[cfg(unix)]
    not_simulated("it is a socket of Unix")
    fn readiness_is_waited_for(queue) {
        let (here, mut there) = UnixStream::pair().unwrap();
        let waiting = queue.ready(&here, Event::Read);
        let other = queue.ready(&here, Event::Read);
        let writable = queue.block_on(queue.ready(&here, Event::Write)).unwrap().unwrap();
        assert!(writable.contains(Event::Write));
        assert_eq!(queue.pending().len(), 2);
        there.write_all(b"x").unwrap();
        assert!(queue.block_on(waiting).unwrap().unwrap().contains(Event::Read));
        assert!(queue.block_on(other).unwrap().unwrap().contains(Event::Read));
        drop(there);
        let events = queue.block_on(queue.ready(&here, Event::PriorityRead)).unwrap().unwrap();
        assert!(events.contains(Event::Hangup));
        queue.unregister(&here).unwrap();
    }

    #[cfg(unix)]
    /// More than the ring has room for, between two looks at it. (Scenario 12.)
    not_simulated("it is a socket of Unix")
    fn many_are_started_before_one_poll(queue) {
        const MANY: usize = 1000;
        let (here, mut there) = UnixStream::pair().unwrap();
        let here = queue.register(here).unwrap();
        let waiting: Vec<_> = (0..MANY).map(|_| here.ready(Event::Read)).collect();
        assert_eq!(queue.pending().len(), MANY);
        there.write_all(b"x").unwrap();
        queue.block_on(async {
            for wait in waiting {
                assert!(wait.await.unwrap().contains(Event::Read));
            }
        }).unwrap();
        // And what is left when the handle goes.
        let waiting: Vec<_> = (0..MANY).map(|_| here.ready(Event::PriorityRead)).collect();
        drop(here);
        queue.block_on(async {
            for wait in waiting {
                assert!(error::is_cancelled(&wait.await.unwrap_err()));
            }
        }).unwrap();
    }

    /// What came together with the end of a stream is not waited for twice: a host's loop, which never
    /// waits in `poll`, is told of the end as well.
    fn the_end_that_came_with_the_last_bytes_is_told(queue) {
        let (server, mut client) = tcp_to_host(queue);
        let (first, second) = (server.read(vec![0; 64]), server.read(vec![0; 64]));
        poll(queue);
        client.write_all(b"hello").unwrap();
        drop(client);
        let (first, second) = polled_until_both(queue, first, second);
        assert_eq!((first.0.unwrap(), second.0.unwrap()), (5, 0));
    }

    #[cfg(unix)]
    /// A receive that ends at the mark of urgent data has not taken all there was, and no edge tells of the
    /// rest.
    not_simulated("it has no urgent data")
    fn what_is_behind_urgent_data_is_found_by_polls_that_never_wait(queue) {
        let (client, server) = tcp(queue);
        let (first, second) = (server.read(vec![0; 64]), server.read(vec![0; 64]));
        poll(queue);
        (&**client.get()).write_all(b"ab").unwrap();
        let urgent = unsafe {
            libc::send(client.get().as_raw_fd(), b"!".as_ptr().cast(), 1, libc::MSG_OOB)
        };
        assert_eq!(urgent, 1);
        (&**client.get()).write_all(b"cd").unwrap();
        let (first, second) = polled_until_both(queue, first, second);
        assert_eq!((first.0.unwrap(), second.0.unwrap()), (2, 2));
        assert_eq!(&second.1[..2], b"cd");
    }

    /// A buffer's own code that panics, or ends the registration, leaves nothing in flight.
    fn a_buffer_that_panics_or_closes_leaves_nothing_in_flight(queue) {
        let times = read_oddly(queue, || tcp(queue));
        assert!(times >= if each_kernel::is_simulated(queue) || cfg!(windows) { 1 } else { 2 });
        #[cfg(unix)]
        if !each_kernel::is_simulated(queue) {
            // In the list of its registration from the start, unlike a socket's.
            let pipe = || {
                let (reader, writer) = each_kernel::raw_pipe();
                (queue.register(reader).unwrap(), writer)
            };
            assert!(read_oddly(queue, pipe) >= 3);
        }
    }

    /// Nothing else would end the wait.
    fn a_time_is_up_where_nothing_else_happens(queue) {
        let time = Duration::from_millis(20);
        queue.block_on(queue.sleep(time)).unwrap().unwrap();
        let HalfWay { ours, .. } = &ways_in(queue)[0];
        let reading = ours.read(vec![0; 1]);
        for _ in 0..10 {
            let mut ready = Vec::new();
            queue.poll(&mut ready, Some(time)).unwrap();
            assert!(ready.is_empty());
        }
        drop(reading);
    }

    /// Q13: a buffer whose code polls the queue, when the call was tried already: what the queue is told of
    /// then, it is not told of again.
    not_simulated("its peers come with the queue's turns")
    fn a_buffer_that_polls_the_queue_misses_nothing(queue) {
        for nth in 1..=3 {
            for HalfWay { name, ours, mut theirs } in ways_in(queue) {
                // From here on it is watched.
                let first = ours.read(vec![0; 1]);
                queue.block_on(look_around()).unwrap();
                theirs.write_all(b"a").unwrap();
                assert_eq!(queue.block_on(first).unwrap().1, b"a", "{name}");
                let (other, asked) = (queue.clone(), Rc::new(Cell::new(false)));
                let told = Rc::clone(&asked);
                let meddling = move || {
                    told.set(true);
                    theirs.write_all(b"b").unwrap();
                    other.block_on(look_around()).unwrap();
                };
                let reading = ours.read(Odd::new(nth, meddling));
                if asked.get() {
                    let limited = queue.timeout(Duration::from_secs(5), reading);
                    let (count, odd) = queue.block_on(limited).unwrap().expect(name);
                    assert_eq!((count.unwrap(), odd.buffer[0]), (1, b'b'), "{name} {nth}");
                }
            }
        }
    }

    #[cfg(target_os = "linux")] // Abstract names are its own.
    /// A listener of a path that has no room refuses, and nothing goes round and round for it.
    not_simulated("it is a socket of Unix")
    fn a_full_listener_refuses_a_connection_that_is_not_to_wait(queue) {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net as unix;

        use ioqueue::SocketAddress;

        let name = format!("\0ioqueue-{}-{:?}", std::process::id(), queue.kernel_kind());
        let address = SocketAddress::unix(&name).unwrap();
        let name = unix::SocketAddr::from_abstract_name(&name[1..]).unwrap();
        let listener = unix::UnixListener::bind_addr(&name).unwrap();
        unsafe { libc::listen(listener.as_raw_fd(), 0) };
        let connect = || {
            let socket = unsafe {
                let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
                OwnedFd::from_raw_fd(libc::socket(libc::AF_UNIX, kind, 0))
            };
            let socket = queue.register(socket).unwrap();
            let connecting = socket.connect(address).timeout(Duration::from_secs(5));
            (queue.block_on(connecting).unwrap(), socket)
        };
        let (first, _connected) = connect();
        first.unwrap();
        assert_eq!(connect().0.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }

    /// Bad input: an offset over 2^63 is refused, whichever way the call would have gone.
    fn a_place_beyond_any_file_is_refused(queue) {
        let file = file(queue, b"");
        queue.block_on(async {
            // Where buffered writes can't be tried, everything after them goes the longer way.
            assert_eq!(file.write("0123456789").await.0.unwrap(), 10);
            for offset in [u64::MAX, 1 << 63] {
                let (read, _) = file.read_at(vec![0; 2], offset).await;
                assert_eq!(kind_of(queue, &read.unwrap_err()), std::io::ErrorKind::InvalidInput);
                let (written, _) = file.write_at("ZZ", offset).await;
                assert_eq!(kind_of(queue, &written.unwrap_err()), std::io::ErrorKind::InvalidInput);
            }
            let (read, bytes) = file.read_at(vec![0; 12], 0).await;
            assert_eq!((read.unwrap(), &bytes[..]), (10, &b"0123456789"[..]));
        }).unwrap();
    }

    /// Pitfall 12: what always ends at once lets the others have their turn.
    fn what_ends_at_once_does_not_starve_the_others(queue) {
        let (here, there) = tcp(queue);
        drop(there);
        let had_its_turn = Rc::new(Cell::new(false));
        let other = Rc::clone(&had_its_turn);
        queue.spawn(async move { other.set(true) }).detach();
        queue.block_on(async {
            let mut ends = 0;
            while !had_its_turn.get() {
                assert_eq!(here.recv(vec![0; 8]).await.0.unwrap(), 0);
                ends += 1;
                assert!(ends < 10_000, "the other task is starved");
            }
        }).unwrap();
    }

    /// Q4: who yields goes behind those that are ready, in turn.
    fn who_yields_lets_the_others_go_first(queue) {
        let turns: Rc<RefCell<Vec<u32>>> = Rc::default();
        let tasks = [0, 1, 2].map(|number| {
            let turns = Rc::clone(&turns);
            queue.spawn(async move {
                for _ in 0..3 {
                    turns.borrow_mut().push(number);
                    ioqueue::yield_now().await;
                }
            })
        });
        queue.run().unwrap();
        assert!(tasks.iter().all(|task| task.is_finished()));
        assert_eq!(*turns.borrow(), [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    }

    /// Q5: an operation that nobody waits for wakes no task, though one has waited for the last in its place.
    fn an_operation_does_not_wake_who_waited_for_the_last(queue) {
        let (here, there) = tcp(queue);
        let here = Rc::new(here);
        let receiving = here.recv(vec![0; 8]);
        let polls = Rc::new(Cell::new(0));
        let counted = Rc::clone(&polls);
        let task = queue.spawn(async move {
            receiving.await.0.unwrap();
            poll_fn(|_| {
                counted.set(counted.get() + 1);
                Poll::<()>::Pending
            })
            .await;
        });
        queue.block_on(look_around()).unwrap();
        queue.block_on(there.send("x")).unwrap().0.unwrap();
        while polls.get() == 0 {
            queue.block_on(look_around()).unwrap();
        }
        // It has the place of the first, and nobody polls it until it has ended.
        let next = here.recv(vec![0; 8]);
        queue.block_on(look_around()).unwrap();
        queue.block_on(there.send("y")).unwrap().0.unwrap();
        poll_until(queue, || queue.pending().is_empty());
        queue.block_on(look_around()).unwrap();
        assert_eq!(polls.get(), 1);
        assert_eq!(queue.block_on(next).unwrap().1, b"y");
        drop(task);
    }

    /// Q13, pitfall 45: an operation that goes from somebody to a task keeps nothing of who waited before.
    fn an_operation_that_goes_to_a_task_lets_go_of_who_waited(queue) {
        let (here, there) = tcp(queue);
        let mut receiving = here.recv(vec![0; 8]);
        let (wakes, waker) = Wakes::new();
        assert!(poll_with(&mut receiving, &waker).is_pending());
        drop(waker);
        assert_eq!(Arc::strong_count(&wakes), 2);
        let task = queue.spawn(receiving);
        queue.block_on(look_around()).unwrap();
        assert_eq!(Arc::strong_count(&wakes), 1, "it is still there");
        queue.block_on(there.send("x")).unwrap().0.unwrap();
        assert_eq!(queue.block_on(task).unwrap().1, b"x");
        assert_eq!(wakes.count(), 0);
    }
}
