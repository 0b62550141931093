#![cfg(unix)]
//! Many at once: operations, handles, connections; and none left.

#[macro_use]
mod each_kernel;

use std::fs::File;
use std::io::{self, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use each_kernel::{
    TempFile, ends, listener, look_around, noise, pipe, poll_once, queue_on, skip, tcp, write_full,
};
use ioqueue::{Event, KernelKind, Queue, Registered};

/// How many operations are started before the queue looks at its kernel for the first time: more than fit
/// into any of its arrays.
const MANY: usize = 5_000;

/// One test at a time has thousands of descriptors: how many there may be is the process's limit.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A child has all descriptors of this process until it runs its program: none is made meanwhile.
fn no_child() -> MutexGuard<'static, ()> {
    static NO_CHILD: Mutex<()> = Mutex::new(());
    NO_CHILD.lock().unwrap_or_else(PoisonError::into_inner)
}

on_each_kernel! {
    not_simulated("thousands of operations take it minutes, and these are handles of Unix"):

    /// Each ends, with its own result, though nobody looked at the kernel before all were started.
    fn thousands_of_waits_started_at_once_all_end(queue) {
        let (here, mut there) = UnixStream::pair().unwrap();
        let waits: Vec<_> = (0..MANY).map(|_| queue.ready(&here, Event::Read)).collect();
        assert_eq!(queue.pending().len(), MANY);
        there.write_all(b"x").unwrap();
        for wait in waits {
            assert!(queue.block_on(wait).unwrap().unwrap().contains(Event::Read));
        }
        assert!(!queue.running());
        queue.unregister(&here).unwrap();
    }

    /// A ring ends what is watched for more than once where it has no room to say so, and the bell is watched again.
    fn a_notifier_is_heard_after_thousands_of_completions(queue) {
        let (here, mut there) = UnixStream::pair().unwrap();
        there.write_all(b"x").unwrap();
        queue.block_on(look_around()).unwrap();
        let waits: Vec<_> = (0..MANY).map(|_| queue.ready(&here, Event::Read)).collect();
        let notifier = queue.notifier();
        notifier.notify().unwrap();
        for wait in waits {
            assert!(queue.block_on(wait).unwrap().unwrap().contains(Event::Read));
        }
        // That was heard by now. The poll of a queue that waits for something is ended by another.
        queue.block_on(look_around()).unwrap();
        let (quiet, _never) = UnixStream::pair().unwrap();
        let waiting = queue.ready(&quiet, Event::Read);
        let (told, tells) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            tells.recv().unwrap();
            notifier.notify().unwrap();
        });
        let mut ready = Vec::new();
        queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
        told.send(()).unwrap();
        queue.poll(&mut ready, None).unwrap();
        other.join().unwrap();
        drop(waiting);
        for handle in [&here, &quiet] {
            queue.unregister(handle).unwrap();
        }
    }

    /// Reads of a file, of which some are in memory and some are not.
    fn thousands_of_reads_started_at_once_get_their_own_bytes(queue) {
        const SIZE: usize = 512;
        let contents = noise(MANY * SIZE);
        let temporary = TempFile::new(&contents);
        #[cfg(target_os = "linux")]
        each_kernel::forget_contents(&temporary.open());
        let file = queue.register(temporary.open()).unwrap();
        let reads: Vec<_> = (0..MANY).map(|block| {
            // Not one after the other.
            let place = block * 7919 % MANY * SIZE;
            (place, file.read_at(vec![0; SIZE], place as u64))
        }).collect();
        for (place, read) in reads {
            let (count, bytes) = queue.block_on(read).unwrap();
            assert_eq!(count.unwrap(), SIZE);
            assert!(bytes == contents[place..place + SIZE], "at {place}");
        }
        let writes: Vec<_> = (0..MANY).map(|block| {
            file.write_at(vec![block as u8; SIZE], (block * SIZE) as u64)
        }).collect();
        for write in writes {
            assert_eq!(queue.block_on(write).unwrap().0.unwrap(), SIZE);
        }
        let now = std::fs::read(&temporary.path).unwrap();
        assert!(now.chunks(SIZE).enumerate().all(|(block, bytes)| bytes == vec![block as u8; SIZE]));
    }

    /// One after the other on one stream.
    fn thousands_of_reads_and_writes_of_one_stream_are_served(queue) {
        for stream in [true, false] {
            let (reads, writes): (Vec<_>, Vec<_>);
            let (pipe, tcp) = (pipe(queue), tcp(queue));
            if stream {
                reads = (0..MANY).map(|_| tcp.0.read([0; 4])).collect();
                writes = (0..MANY as u32).map(|it| tcp.1.write(it.to_ne_bytes())).collect();
            } else {
                reads = (0..MANY).map(|_| pipe.0.read([0; 4])).collect();
                writes = (0..MANY as u32).map(|it| pipe.1.write(it.to_ne_bytes())).collect();
            }
            for (number, read) in reads.into_iter().enumerate() {
                let (count, bytes) = queue.block_on(read).unwrap();
                assert_eq!((count.unwrap(), bytes), (4, (number as u32).to_ne_bytes()));
            }
            for write in writes {
                assert_eq!(queue.block_on(write).unwrap().0.unwrap(), 4);
            }
        }
    }

    /// Given up all at once, and before the kernel has seen them.
    fn thousands_of_operations_are_cancelled_at_once(queue) {
        for is_seen in [true, false] {
            let (listener, address) = listener(queue);
            let accepts: Vec<_> = (0..MANY).map(|_| listener.accept()).collect();
            if is_seen {
                queue.block_on(look_around()).unwrap();
            }
            drop(accepts);
            queue.run().unwrap();
            assert!(queue.pending().is_empty());
            // None of them takes this one.
            let client = TcpStream::connect(address).unwrap();
            let (_, peer) = queue.block_on(listener.accept()).unwrap().unwrap();
            assert_eq!(peer.ip(), Some(client.local_addr().unwrap()));
        }
    }

    /// A handle is let go of at once, whatever else the kernel has to see to.
    fn a_handle_is_closed_behind_edges_that_bring_nothing(queue) {
        for count in [45, 200] {
            let (ours, mut theirs) = each_kernel::unix_pair(queue);
            let mut reading = ours.read(vec![0; 8]);
            let crowd = each_kernel::taken_before_their_edges(queue, count);
            assert!(poll_once(&mut reading).is_pending());
            drop((reading, ours));
            theirs.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            assert_eq!(io::Read::read(&mut theirs, &mut [0; 4]).unwrap(), 0);
            drop(crowd);
        }
    }

    /// A handle with thousands of operations in flight leaves, at once and for good.
    fn a_handle_with_thousands_in_flight_is_closed_at_once(queue) {
        for is_seen in [true, false] {
            let (listener, address) = listener(queue);
            let accepts: Vec<_> = (0..MANY).map(|_| listener.accept()).collect();
            if is_seen {
                queue.block_on(look_around()).unwrap();
            }
            let no_child = no_child();
            drop(listener);
            // Nobody listens any more.
            let error = TcpStream::connect(address).unwrap_err();
            drop(no_child);
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            for accept in accepts {
                let error = queue.block_on(accept).unwrap().unwrap_err();
                assert!(ioqueue::error::is_cancelled(&error), "{error}");
            }
        }
    }

    /// Scenario 57.
    fn ten_thousand_handles_are_registered_and_used(queue) {
        const COUNT: usize = 10_000;
        let _alone = alone();
        if !each_kernel::allow_handles(COUNT + 1000) {
            return skip("this process may not have so many descriptors (ulimit -n)");
        }
        let file = TempFile::new(b"data");
        let (mut owned, mut lent) = (Vec::new(), Vec::new());
        for number in 0..COUNT {
            if number % 2 == 0 {
                owned.push(queue.register(file.open()).unwrap());
            } else {
                let handle = file.open();
                queue.persist(&handle).unwrap();
                lent.push(handle);
            }
        }
        let text = format!("{queue:?}");
        assert!(text.contains(&format!("handles: {COUNT}")), "{text}");
        let reads: Vec<_> = owned.iter().map(|file| file.read_at([0; 8], 1)).collect();
        for read in reads {
            let (count, bytes) = queue.block_on(read).unwrap();
            assert_eq!(&bytes[..count.unwrap()], b"ata");
        }
        for handle in &lent {
            queue.unregister(handle).unwrap();
        }
        assert!(format!("{queue:?}").contains(&format!("handles: {}", COUNT / 2)));
        drop(owned);
        assert!(format!("{queue:?}").contains("handles: 0"));
    }

    /// Streams, and each of them with a read that waits.
    fn thousands_of_streams_are_waited_for_together(queue) {
        const COUNT: usize = 2_000;
        let _alone = alone();
        if !each_kernel::allow_handles(2 * COUNT + 1000) {
            return skip("this process may not have so many descriptors (ulimit -n)");
        }
        let pairs: Vec<_> = (0..COUNT).map(|_| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            (queue.register(ours).unwrap(), theirs)
        }).collect();
        for round in 0..3 {
            let reads: Vec<_> = pairs.iter().map(|(ours, _)| ours.read(vec![0; 8])).collect();
            if round > 0 {
                queue.block_on(look_around()).unwrap();
            }
            if round == 2 {
                // By then it is not looked after any more, and waits to be told.
                queue.block_on(queue.sleep(Duration::from_millis(100))).unwrap().unwrap();
            }
            for (_, theirs) in pairs.iter().rev() {
                let mut theirs = theirs;
                theirs.write_all(&[round]).unwrap();
            }
            if round == 1 {
                // As a registration ends a ring takes in all at once, for which it has no room: what has come for
                // the last of them ends its poll.
                let (leaves, _stays) = UnixStream::pair().unwrap();
                let leaves = queue.register(leaves).unwrap();
                drop((leaves.read(vec![0; 8]), leaves));
            }
            for read in reads {
                assert_eq!(queue.block_on(read).unwrap().1, [round]);
            }
        }
    }
}

/// Runs one test of this program again, in a process of its own that is told so.
fn in_a_child(test: &str) {
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new(program);
    child.args(["--exact", test, "--nocapture", "--test-threads=1"]).env("IOQUEUE_TEST_CHILD", "1");
    child.stdout(Stdio::piped()).stderr(Stdio::piped());
    let no_other = no_child();
    let child = child.spawn().unwrap();
    drop(no_other);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    said.lines().filter(|line| line.starts_with("SKIPPED")).for_each(|line| eprintln!("{line}"));
    assert!(output.status.success(), "{}\n{said}", String::from_utf8_lossy(&output.stdout));
}

fn is_child() -> bool {
    std::env::var_os("IOQUEUE_TEST_CHILD").is_some()
}

/// Waits for the queue's descriptor as a host does. Whether it was told of something.
fn wait_for_host(queue: &Queue, limit: Duration) -> io::Result<bool> {
    let fd = queue.as_fd().as_raw_fd();
    let mut waits = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, which is ours.
    let answer = unsafe { libc::poll(&raw mut waits, 1, limit.as_millis() as i32) };
    match waits.revents {
        _ if answer < 0 => Err(io::Error::last_os_error()),
        revents if revents & libc::POLLNVAL != 0 => Err(io::ErrorKind::InvalidInput.into()),
        _ => Ok(answer > 0),
    }
}

/// Scenario 55: what is there goes on, what is new is refused, and all comes back.
fn no_handle_left(kind: KernelKind) {
    let Some(queue) = queue_on(kind) else { return };
    let file = TempFile::new(b"data");
    let (mut client, server) = each_kernel::raw_tcp();
    let server = queue.register(server).unwrap();
    let (listener, address) = listener(&queue);
    let unregistered = file.open();
    let registered = queue.register(file.open()).unwrap();
    // Whatever is made on first use is there.
    client.write_all(b"warm").unwrap();
    assert_eq!(queue.block_on(server.recv(vec![0; 8])).unwrap().0.unwrap(), 4);
    assert_eq!(queue.block_on(registered.read_at(vec![0; 8], 0)).unwrap().0.unwrap(), 4);
    queue.block_on(registered.sync_all()).unwrap().unwrap();
    let before = server.recv(vec![0; 8]);
    queue.block_on(look_around()).unwrap();

    each_kernel::limit_handles(each_kernel::handle_count() + 20);
    let mut files = Vec::new();
    let refused = loop {
        match File::open(&file.path) {
            Ok(file) => files.push(file),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.raw_os_error(), Some(libc::EMFILE));

    // What was in flight ends, what is started on an open handle works.
    client.write_all(b"before").unwrap();
    assert_eq!(queue.block_on(before).unwrap().0.unwrap(), 6);
    for _ in 0..100 {
        let receive = server.recv(vec![0; 8]);
        client.write_all(b"meantime").unwrap();
        assert_eq!(queue.block_on(receive).unwrap().0.unwrap(), 8);
        assert_eq!(queue.block_on(registered.read_at(vec![0; 8], 0)).unwrap().0.unwrap(), 4);
    }
    queue.block_on(registered.sync_all()).unwrap().unwrap();
    queue.persist(&unregistered).unwrap();
    assert!(queue.block_on(queue.ready(&unregistered, Event::Read)).unwrap().is_ok());
    queue.unregister(&unregistered).unwrap();
    let error = Queue::new().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}");
    // A ring would have made one for its host. What there is instead is one as well.
    let told = wait_for_host(&queue, Duration::ZERO);
    assert!(told.is_ok(), "{told:?}");
    // What does not own its handle is registered by a duplicate.
    let refused = queue.register(&unregistered).unwrap_err();
    assert_eq!(refused.error().raw_os_error(), Some(libc::EMFILE), "{refused}");
    // A connection comes for which there is no handle: that is an error of the accept, and no more.
    files.truncate(files.len() - 1);
    let peer = TcpStream::connect(address).unwrap();
    let error = queue.block_on(listener.accept()).unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}");
    drop(files);

    // Recovered: the connection is still there.
    let (_, who) = queue.block_on(listener.accept()).unwrap().unwrap();
    assert_eq!(who.ip(), Some(peer.local_addr().unwrap()));
    let receive = server.recv(vec![0; 8]);
    queue.poll(&mut Vec::new(), Some(Duration::ZERO)).unwrap();
    // The first time it only says that there may be something.
    let _ = wait_for_host(&queue, Duration::ZERO);
    queue.poll(&mut Vec::new(), Some(Duration::ZERO)).unwrap();
    assert!(!wait_for_host(&queue, Duration::ZERO).unwrap());
    client.write_all(b"to host").unwrap();
    assert!(wait_for_host(&queue, Duration::from_secs(20)).unwrap());
    assert_eq!(queue.block_on(receive).unwrap().0.unwrap(), 7);
    let again: Registered<File> = queue.register(file.open()).unwrap();
    assert_eq!(queue.block_on(again.read_at(vec![0; 8], 0)).unwrap().0.unwrap(), 4);
    queue_on(kind).unwrap().close(Duration::from_secs(1)).unwrap();
    queue.close(Duration::from_secs(5)).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn with_no_handle_left_a_ring_goes_on_and_recovers() {
    if is_child() {
        ends(|| no_handle_left(KernelKind::Uring));
    } else {
        in_a_child("with_no_handle_left_a_ring_goes_on_and_recovers");
    }
}

#[test]
fn with_no_handle_left_readiness_goes_on_and_recovers() {
    if is_child() {
        ends(|| no_handle_left(KernelKind::Readiness));
    } else {
        in_a_child("with_no_handle_left_readiness_goes_on_and_recovers");
    }
}

/// Scenario 25: ten thousand connections one after another, and what they leave behind: nothing.
fn connections(kind: KernelKind) {
    let Some(queue) = queue_on(kind) else { return };
    let (listener, address) = listener(&queue);
    let mut before = 0;
    for round in 0..10_000 {
        if round == 10 {
            before = each_kernel::handle_count();
        }
        let client = each_kernel::tcp_socket(&queue, address);
        let accept = listener.accept();
        let server = queue.block_on(async {
            client.connect(address).await.unwrap();
            accept.await.unwrap().0
        });
        let server = queue.register(server.unwrap()).unwrap();
        // With something in flight on both, of which one never ends.
        let mut never = client.recv(vec![0; 8]);
        let reading = server.recv(vec![0; 8]);
        assert!(poll_once(&mut never).is_pending());
        queue.block_on(write_full(&client, "data")).unwrap();
        assert_eq!(queue.block_on(reading).unwrap().1, b"data");
        drop(server);
        if round % 2 == 0 {
            // The end has come, before or after the handle goes.
            let end = queue.block_on(never).unwrap().0.unwrap();
            assert_eq!(end, 0);
        }
        // No time to wait for: ten thousand would be more than there are ports.
        each_kernel::reset_when_closed(client.get());
    }
    queue.block_on(look_around()).unwrap();
    let left = each_kernel::handle_count() - before;
    assert_eq!(left, 0, "descriptors are left");
    let text = format!("{queue:?}");
    assert!(text.contains("handles: 1,"), "{text}");
    drop(listener);
    queue.close(Duration::from_secs(5)).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn ten_thousand_connections_leave_nothing_on_a_ring() {
    if is_child() {
        ends(|| connections(KernelKind::Uring));
    } else {
        in_a_child("ten_thousand_connections_leave_nothing_on_a_ring");
    }
}

#[test]
fn ten_thousand_connections_leave_nothing_on_readiness() {
    if is_child() {
        ends(|| connections(KernelKind::Readiness));
    } else {
        in_a_child("ten_thousand_connections_leave_nothing_on_readiness");
    }
}

/// Every queue gives its own descriptors back.
#[test]
fn a_thousand_queues_leave_no_descriptor() {
    if !is_child() {
        return in_a_child("a_thousand_queues_leave_no_descriptor");
    }
    for kind in [KernelKind::Uring, KernelKind::Readiness] {
        let before = each_kernel::handle_count();
        for round in 0..1000 {
            let Some(queue) = queue_on(kind) else { break };
            let (reader, writer) = pipe(&queue);
            let mut reading = reader.read(vec![0; 8]);
            if round % 2 == 0 {
                queue.block_on(write_full(&writer, "data")).unwrap();
                assert!(matches!(queue.block_on(&mut reading), Ok((Ok(4), _))));
            } else {
                assert!(matches!(poll_once(&mut reading), Poll::Pending));
                drop(reading);
            }
        }
        assert_eq!(each_kernel::handle_count(), before, "{kind:?}");
    }
}
