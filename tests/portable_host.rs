//! A host loop of one's own waits on the queue's descriptor, and looks at the queue when that is ready.
//!
//! On both kernels of this system.
#![cfg(unix)]

#[macro_use]
mod each_kernel;

use std::io::{Read, Write};
#[cfg(target_os = "linux")]
use std::os::fd::FromRawFd;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use each_kernel::{poll_once, unique};
use ioqueue::op::{Event, stream_socket};
use ioqueue::{KernelKind, Queue, SocketAddress};

/// A host's loop: it looks at the queue, then waits for its descriptor, until `done`. Fails where the wait takes
/// longer than anything here does.
fn host(queue: &Queue, mut done: impl FnMut() -> bool) {
    loop {
        look(queue);
        if done() {
            return;
        }
        wait(queue);
    }
}

/// As `host`, which waits no longer than the queue says.
fn host_that_asks(queue: &Queue, mut done: impl FnMut() -> bool) {
    loop {
        look(queue);
        if done() {
            return;
        }
        match queue.poll_delay() {
            None => wait(queue),
            Some(delay) => drop(is_ready_within(queue, delay)),
        }
    }
}

/// Whether the poller is one of those that are asked anew for each event, and then tell of the level.
#[cfg(target_os = "linux")]
fn tells_of_the_level(queue: &Queue) -> bool {
    cfg!(ioqueue_polling = "oneshot") && queue.kernel_kind() == KernelKind::Readiness
}

#[cfg(target_os = "linux")]
const LEVEL: &str = "told of one event at a time, and of the level, it is asked again and again";

/// How often a host that asks looks in that time.
#[cfg(target_os = "linux")]
fn looks_in_300_ms(queue: &Queue) -> u32 {
    let (start, all) = (Instant::now(), Duration::from_millis(300));
    let mut looks = 0;
    while start.elapsed() < all {
        let rest = all.saturating_sub(start.elapsed());
        is_ready_within(queue, queue.poll_delay().unwrap_or(rest).min(rest));
        look(queue);
        looks += 1;
    }
    looks
}

/// Whether a host may wait for the descriptor alone. Through the crate polling, which tells of nothing that is in
/// doubt, it may not.
fn may_wait_for_ever(queue: &Queue) -> bool {
    let tells_less = cfg!(ioqueue_polling) && queue.kernel_kind() == KernelKind::Readiness;
    match queue.poll_delay() {
        None => true,
        Some(delay) => tells_less && delay == Duration::from_millis(50),
    }
}

fn look(queue: &Queue) {
    let mut ready = Vec::new();
    queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
    for continuation in ready {
        continuation.resume();
    }
}

fn wait(queue: &Queue) {
    let limit = Duration::from_secs(20);
    assert!(is_ready_within(queue, limit), "nothing was told of in {limit:?}");
}

fn is_ready_within(queue: &Queue, limit: Duration) -> bool {
    let fd = queue.as_fd().as_raw_fd();
    let mut waits = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let limit = limit.as_nanos().div_ceil(1_000_000) as i32;
    // SAFETY: one entry, which is ours.
    unsafe { libc::poll(&raw mut waits, 1, limit) != 0 }
}

on_each_kernel! {
    not_simulated("it has no descriptor that the system knows"):

    // SPEC Q15: from what the kernel brings.
    fn a_host_is_told_of_what_comes(queue) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let ours = queue.register(ours).unwrap();
        for round in 0..20 {
            let mut reading = ours.read(vec![0; 8]);
            let mut read = None;
            host(queue, || {
                let waits = poll_once(&mut reading).is_pending();
                assert!(waits);
                true
            });
            // It sleeps in its own wait when this comes, most of the time.
            let writer = thread::spawn(move || {
                theirs.write_all(b"hello").unwrap();
                theirs
            });
            host(queue, || {
                if let Poll::Ready(done) = poll_once(&mut reading) {
                    read = Some(done.0.unwrap());
                }
                read.is_some()
            });
            assert_eq!(read, Some(5), "round {round}");
            theirs = writer.join().unwrap();
        }
    }

    // More than a kernel is asked for at a time: nothing is left to a look that would not come.
    fn a_host_is_told_of_all_that_comes_at_once(queue) {
        let pairs: Vec<_> = (0..100).map(|_| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            (queue.register(ours).unwrap(), theirs)
        }).collect();
        for _ in 0..3 {
            let mut reads: Vec<_> = pairs.iter().map(|(ours, _)| ours.read(vec![0; 8])).collect();
            // They wait, and nothing has come.
            (0..3).for_each(|_| look(queue));
            for (_, theirs) in &pairs {
                (&*theirs).write_all(b"x").unwrap();
            }
            host(queue, || {
                reads.retain_mut(|reading| poll_once(reading).is_pending());
                reads.is_empty()
            });
        }
    }

    // And from what another thread wakes.
    fn a_host_is_told_of_a_notifier(queue) {
        for _ in 0..10 {
            let notifier = queue.notifier();
            let (told, tells) = std::sync::mpsc::channel();
            // It sleeps in its own wait by then, most of the time.
            look(queue);
            let other = thread::spawn(move || {
                told.send(()).unwrap();
                notifier.notify().unwrap();
            });
            wait(queue);
            host(queue, || tells.try_recv().is_ok());
            other.join().unwrap();
        }
    }

    // What a write to an eventfd brings is told of each time (io_uring/eventfd.c, IO_EVENTFD_OP_SIGNAL_BIT).
    #[cfg(target_os = "linux")]
    fn a_host_is_told_of_an_eventfd_each_time(queue) {
        // SAFETY: takes numbers; the descriptor that comes back is nobody's yet.
        let event = unsafe { std::fs::File::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
        let mut rings = event.try_clone().unwrap();
        let event = queue.register(event).unwrap();
        for _ in 0..5 {
            let mut reading = event.read(vec![0; 8]);
            look(queue);
            assert!(poll_once(&mut reading).is_pending());
            let other = thread::spawn(move || {
                rings.write_all(&1_u64.to_ne_bytes()).unwrap();
                rings
            });
            host(queue, || poll_once(&mut reading).is_ready());
            rings = other.join().unwrap();
        }
    }

    // The ring asks such handles again and finds nothing, more of them than it does in one call.
    fn a_host_is_told_behind_edges_that_bring_nothing(queue) {
        let _ = queue.as_fd();
        let (ours, mut theirs) = each_kernel::unix_pair(queue);
        let mut reading = ours.read(vec![0; 8]);
        let crowd = each_kernel::taken_before_their_edges(queue, 200);
        assert!(poll_once(&mut reading).is_pending());
        theirs.write_all(b"hello").unwrap();
        host(queue, || poll_once(&mut reading).is_ready());
        drop(crowd);
    }

    // What a look leaves to be begun is begun by that look: the next would not come.
    fn a_host_is_told_after_a_look_that_found_nothing(queue) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut theirs = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ours = queue.register(listener.accept().unwrap().0).unwrap();
        let mut urgent = ours.ready(Event::PriorityRead);
        let _ = queue.as_fd();
        look(queue);
        // Usual data wakes the wait for urgent data on the ring, which has to begin it anew.
        theirs.write_all(b"usual").unwrap();
        look(queue);
        assert!(poll_once(&mut urgent).is_pending());
        // SAFETY: one byte that is there.
        let sent = unsafe { libc::send(theirs.as_raw_fd(), b"!".as_ptr().cast(), 1, libc::MSG_OOB) };
        assert_eq!(sent, 1);
        wait(queue);
        host(queue, || poll_once(&mut urgent).is_ready());
    }

    // Timers, tasks that yield, and what was begun by the host's own code: no descriptor tells of them.
    fn a_host_that_asks_how_long_it_may_wait_misses_nothing(queue) {
        let (ours, theirs) = each_kernel::unix_pair(queue);
        assert!(may_wait_for_ever(queue));
        let theirs = queue.register(theirs).unwrap();
        let start = Instant::now();
        let (mut said, own) = (0, queue.clone());
        let mut task = queue.spawn(async move {
            let mut answer = vec![0; 8];
            for round in 0..5 {
                own.sleep(Duration::from_millis(2)).await.unwrap();
                for _ in 0..3 {
                    ioqueue::yield_now().await;
                }
                theirs.write_all(vec![round; 1]).await.0.unwrap();
                let got;
                (got, answer) = theirs.read(answer).await;
                assert_eq!(got.unwrap(), 1);
            }
        });
        let mut reading = ours.read(vec![0; 8]);
        let mut answers = Vec::new();
        host_that_asks(queue, || {
            if let Poll::Ready((got, bytes)) = poll_once(&mut reading) {
                assert_eq!((got.unwrap(), bytes[0]), (1, said));
                said += 1;
                // Begun here, and by nobody's poll yet.
                answers.push(ours.write(bytes));
                reading = ours.read(vec![0; 8]);
            }
            answers.retain_mut(|answer| poll_once(answer).is_pending());
            poll_once(&mut task).is_ready()
        });
        assert!(start.elapsed() >= Duration::from_millis(10));
        drop(reading);
        host_that_asks(queue, || !queue.running());
        assert!(may_wait_for_ever(queue));
    }

    // It is for less than a timer's time, and none for what is there to do.
    fn a_host_may_wait_until_the_first_timer(queue) {
        let hour = Duration::from_secs(3600);
        let later = queue.sleep(2 * hour);
        let first = queue.sleep(hour);
        let delay = queue.poll_delay().unwrap();
        assert!(delay <= hour && delay > hour / 2, "{delay:?}");
        let task = queue.spawn(std::future::pending::<()>());
        assert_eq!(queue.poll_delay(), Some(Duration::ZERO));
        look(queue);
        assert!(queue.poll_delay() > Some(Duration::ZERO));
        drop(first);
        assert!(queue.poll_delay() > Some(hour));
        drop((later, task));
        look(queue);
        assert!(may_wait_for_ever(queue));
    }

    // Begun, given up, and in a queue that is closed.
    fn a_host_does_not_wait_with_what_a_poll_has_to_see_to(queue) {
        let (ours, _theirs) = each_kernel::unix_pair(queue);
        look(queue);
        let mut reading = ours.read(vec![0; 8]);
        assert!(poll_once(&mut reading).is_pending());
        look(queue);
        assert!(may_wait_for_ever(queue));
        drop(reading);
        assert_eq!(queue.poll_delay(), Some(Duration::ZERO));
        look(queue);
        assert!(may_wait_for_ever(queue));
        let other = each_kernel::queue_on(queue.kernel_kind()).unwrap();
        let (_ours, theirs) = each_kernel::unix_pair(&other);
        let mut waiting = other.ready(&theirs, Event::Read);
        look(&other);
        assert!(poll_once(&mut waiting).is_pending());
        assert!(may_wait_for_ever(&other));
        let _another = other.ready(&theirs, Event::Read);
        // What is merely begun the ring has not seen.
        assert_eq!(may_wait_for_ever(&other), other.kernel_kind() != KernelKind::Uring);
        other.close(Duration::from_secs(5)).unwrap();
        assert_eq!(other.poll_delay(), None);
    }

    // An error that stays, as that of a queue of time stamps, ends polls of the ring over and over.
    #[cfg(target_os = "linux")]
    fn an_error_that_stays_is_no_reason_to_look_again_and_again(queue) {
        if tells_of_the_level(queue) {
            return each_kernel::skip(LEVEL);
        }
        // SAFETY: the option's value is ours, and so long.
        let set = |socket: &dyn AsRawFd, option, value: libc::c_int| unsafe {
            let (value, length) = ((&raw const value).cast(), size_of_val(&value) as u32);
            let fd = socket.as_raw_fd();
            assert_eq!(libc::setsockopt(fd, libc::SOL_SOCKET, option, value, length), 0);
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        // Or the system finds more room, later.
        set(&listener, libc::SO_RCVBUF, 1 << 16);
        let ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _theirs = listener.accept().unwrap();
        set(&ours, libc::SO_SNDBUF, 1 << 16);
        // SOF_TIMESTAMPING_TX_SOFTWARE and SOF_TIMESTAMPING_SOFTWARE: what was sent comes back, and nobody takes it.
        set(&ours, libc::SO_TIMESTAMPING, 1 << 1 | 1 << 4);
        let ours = queue.register(ours).unwrap();
        let mut sending = ours.send(vec![1; 1 << 16]);
        // Until there is no room for long.
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(200) {
            look(queue);
            if poll_once(&mut sending).is_ready() {
                sending = ours.send(vec![1; 1 << 16]);
                last = Instant::now();
            }
        }
        let looks = looks_in_300_ms(queue);
        assert!(poll_once(&mut sending).is_pending());
        assert!(looks < 50, "{looks} looks");
    }

    // Nor is a descriptor that says that it is ready, and is not.
    #[cfg(target_os = "linux")]
    fn a_handle_that_lies_is_asked_now_and_then(queue) {
        if tells_of_the_level(queue) {
            return each_kernel::skip(LEVEL);
        }
        // SAFETY: takes numbers; the descriptor that comes back is nobody's yet.
        let event = unsafe {
            std::fs::File::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))
        };
        (&event).write_all(&(u64::MAX - 5).to_ne_bytes()).unwrap();
        let mut duplicate = event.try_clone().unwrap();
        let event = queue.register(event).unwrap();
        for gives_up in [true, false] {
            let mut writing = event.write(10_u64.to_ne_bytes());
            // It may try often at first. Each time the system itself tries a hundred times.
            looks_in_300_ms(queue);
            let looks = looks_in_300_ms(queue);
            assert!(poll_once(&mut writing).is_pending());
            assert!(looks < 3000, "{looks} looks");
            if gives_up {
                // Whatever it waits for by now has ended unseen.
                thread::sleep(Duration::from_millis(120));
                let error = queue.block_on(writing.cancel()).unwrap().0.unwrap_err();
                assert!(ioqueue::error::is_cancelled(&error), "{error}");
            } else {
                duplicate.read_exact(&mut [0; 8]).unwrap();
                host_that_asks(queue, || poll_once(&mut writing).is_ready());
            }
        }
    }

    // Nothing tells when a listener of a path has room but asking again, in a while.
    fn a_host_is_told_when_a_listener_has_room(queue) {
        let path = std::env::temp_dir().join(format!("ioqueue-{}-{}", std::process::id(), unique()));
        let listener = UnixListener::bind(&path).unwrap();
        // SAFETY: takes numbers.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
        let peer = SocketAddress::unix(&path).unwrap();
        let first = UnixStream::connect(&path).unwrap();
        let socket = queue.register(UnixStream::from(stream_socket(peer).unwrap())).unwrap();
        let mut connecting = socket.connect(peer);
        let room = thread::spawn(move || {
            // Long enough for the queue to have asked in vain, and more than once where it asks.
            thread::sleep(Duration::from_millis(200));
            (listener.accept().unwrap(), listener)
        });
        if cfg!(ioqueue_polling) && queue.kernel_kind() == KernelKind::Readiness {
            // There nothing tells a host, who has to ask.
            host_that_asks(queue, || poll_once(&mut connecting).is_ready());
        } else {
            host(queue, || poll_once(&mut connecting).is_ready());
        }
        drop((first, room.join().unwrap()));
        std::fs::remove_file(path).unwrap();
    }
}

// The descriptor is ready by the level: until the queue was looked at, and not after that.
#[test]
fn a_descriptor_is_ready_until_the_queue_was_looked_at() {
    for has_looked in [false, true] {
        let queue = Queue::new().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let ours = queue.register(ours).unwrap();
        let mut reading = ours.read(vec![0; 8]);
        let is_ready = || is_ready_within(&queue, Duration::ZERO);
        if has_looked {
            // A host may come late.
            look(&queue);
            look(&queue);
        }
        let mut ready = Vec::new();
        // The first time it may say so at once.
        is_ready();
        queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
        assert!(poll_once(&mut reading).is_pending());
        assert!(!is_ready());
        theirs.write_all(b"x").unwrap();
        assert!(is_ready() && is_ready());
        queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
        assert!(poll_once(&mut reading).is_ready());
        assert!(!is_ready());
    }
}
