//! Closing as an operation.
//!
//! On every kernel of this system.

#[macro_use]
mod each_kernel;

use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use each_kernel::{
    Host, TempFile, file, listener, noise, raw_tcp, tcp_to_host, turn, ways_in, ways_out,
};
use ioqueue::{IntoOwnedHandle, OwnedAnyHandle, Queue, error};

/// Reads to the end, which comes.
fn end_of(stream: impl Into<Host>) {
    let mut stream = stream.into();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

on_each_kernel! {
    not_simulated("its handles are not closed by the system"):

    fn a_close_says_that_it_is_done_and_the_other_side_sees_the_end(queue) {
        for way in ways_out(queue) {
            let mut theirs = way.theirs;
            queue.block_on(async {
                way.ours.write_all("all").await.0.unwrap();
                way.ours.close().await.unwrap();
            }).unwrap();
            let mut bytes = [0; 3];
            theirs.read_exact(&mut bytes).unwrap();
            assert_eq!((&bytes, theirs.read(&mut [0]).unwrap_or(0)), (b"all", 0), "{}", way.name);
        }
    }

    fn a_file_is_closed_with_all_that_was_written(queue) {
        let contents = noise(100_000);
        let place = TempFile::new(b"");
        let file = place.open();
        #[cfg(unix)]
        assert!(each_kernel::lock(&file));
        let file = queue.register(file).unwrap();
        queue.block_on(async {
            file.write_at(contents.clone(), 0).await.0.unwrap();
            // Which a thread may have to do, by a descriptor of its own.
            file.sync_all().await.unwrap();
            file.close().await.unwrap();
        }).unwrap();
        assert!(std::fs::read(&place.path).unwrap() == contents);
        // The lock goes with the last descriptor.
        #[cfg(unix)]
        assert!(each_kernel::lock(&place.open()), "it is still open");
    }

    // SPEC Q8
    fn what_was_in_flight_learns_that_it_was_cancelled(queue) {
        for way in ways_in(queue) {
            let reads: Vec<_> = (0..3).map(|_| way.ours.read(vec![0; 16])).collect();
            turn(queue);
            let closing = way.ours.close();
            queue.block_on(async {
                closing.await.unwrap();
                for read in reads {
                    assert!(error::is_cancelled(&read.await.0.unwrap_err()), "{}", way.name);
                }
            }).unwrap();
        }
    }

    // Scenario 17. The address is free when the close is done, not some time after.
    fn a_listener_with_accepts_in_flight_is_gone_when_it_is_closed(queue) {
        let (listener, address) = listener(queue);
        let accepts: Vec<_> = (0..8).map(|_| listener.accept()).collect();
        turn(queue);
        queue.block_on(listener.close()).unwrap().unwrap();
        drop(TcpListener::bind(address).unwrap());
        let refused = TcpStream::connect(address).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        queue.block_on(async {
            for accept in accepts {
                assert!(error::is_cancelled(&accept.await.unwrap_err()));
            }
        }).unwrap();
    }

    // Nothing stops it: neither a drop, nor a cancel, nor that nobody looks.
    fn a_close_that_was_dropped_or_forgotten_goes_on(queue) {
        let (one, its_peer) = tcp_to_host(queue);
        let _reading = one.read(vec![0; 16]);
        drop(one.close());
        let (other, other_peer) = tcp_to_host(queue);
        let _other_reading = other.read(vec![0; 16]);
        std::mem::forget(other.close());
        // What is in flight is no more than a few looks at the kernel away.
        (0..10).for_each(|_| turn(queue));
        end_of(its_peer);
        end_of(other_peer);
    }

    fn a_cancelled_close_says_that_it_closed_after_all(queue) {
        let (ours, peer) = tcp_to_host(queue);
        let reading = ours.read(vec![0; 16]);
        let closing = ours.close();
        queue.block_on(closing.cancel()).unwrap().unwrap();
        end_of(peer);
        assert!(error::is_cancelled(&queue.block_on(reading).unwrap().0.unwrap_err()));
    }

    // SPEC Q2
    fn a_close_is_something_to_wait_for(queue) {
        let (ours, peer) = tcp_to_host(queue);
        drop(ours.read(vec![0; 16]));
        drop(ours.close());
        queue.run().unwrap();
        assert!(!queue.running());
        end_of(peer);
    }

    // SPEC Q9, pitfall 34: the value may come back before anybody looks, and is nobody's business then.
    fn a_value_that_comes_back_is_not_closed_again(queue) {
        for _ in 0..50 {
            let (ours, _peer) = tcp_to_host(queue);
            let reading = ours.read(vec![0; 16]);
            let closing = ours.close();
            drop(reading);
            queue.block_on(closing).unwrap().unwrap();
            // One of these has the value.
            let (again, mut peer) = tcp_to_host(queue);
            let file = file(queue, b"still here");
            (0..3).for_each(|_| turn(queue));
            queue.block_on(async {
                again.write_all("x").await.0.unwrap();
                assert_eq!(file.read_at(vec![0; 10], 0).await.1, b"still here");
            }).unwrap();
            peer.read_exact(&mut [0]).unwrap();
        }
    }

    fn a_handle_of_a_closed_queue_is_closed_at_once(queue) {
        let other = Queue::builder().kernel(queue.kernel_kind()).build().unwrap();
        let (ours, peer) = tcp_to_host(&other);
        other.close(Duration::from_secs(5)).unwrap();
        let closed = queue.block_on(ours.close()).unwrap();
        closed.unwrap();
        end_of(peer);
    }

    // Scenario 40
    fn closing_the_queue_waits_for_it(kind) {
        let queue = Queue::builder().kernel(kind.kernel_kind()).build().unwrap();
        let (ours, peer) = tcp_to_host(&queue);
        let _reading = ours.read(vec![0; 16]);
        drop(ours.close());
        queue.close(Duration::from_secs(5)).unwrap();
        end_of(peer);
    }

    fn a_type_of_ones_own_is_closed_as_well(queue) {
        let (ours, peer) = raw_tcp();
        let mine = queue.register(Mine(ours)).unwrap();
        queue.block_on(mine.close()).unwrap().unwrap();
        end_of(peer);
    }

    // The system's answer is passed on.
    #[cfg(unix)]
    fn a_descriptor_that_somebody_closed_is_an_error(queue) {
        use std::os::fd::{FromRawFd, OwnedFd};
        let value = 900 + each_kernel::unique() as i32;
        // SAFETY: takes numbers; nobody else has such a descriptor.
        let nothing = unsafe { OwnedFd::from_raw_fd(libc::dup2(0, value)) };
        let nothing = queue.register(nothing).unwrap();
        // SAFETY: it is ours.
        unsafe { libc::close(value) };
        let error = queue.block_on(nothing.close()).unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}

struct Mine(TcpStream);

impl ioqueue::AsAnyHandle for Mine {
    fn as_any_handle(&self) -> ioqueue::AnyHandle<'_> {
        self.0.as_any_handle()
    }
}

impl IntoOwnedHandle for Mine {
    fn into_owned_handle(self) -> OwnedAnyHandle {
        self.0.into_owned_handle()
    }
}

// What the ring still has of a handle may look its number up. So it is closed last: also after a sync that
// was given up, which a thread of the ring's goes on with.
#[cfg(target_os = "linux")]
#[test]
fn the_ring_closes_what_it_has_nothing_of_any_more() {
    each_kernel::run(ioqueue::KernelKind::Uring, |queue| {
        let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
        for _ in 0..5 {
            let place = TempFile::in_folder(folder, &noise(4 << 20));
            let file = queue.register(place.open()).unwrap();
            let syncing = file.sync_all();
            turn(queue);
            drop(syncing);
            let mut closing = file.close();
            each_kernel::poll_until(queue, || each_kernel::poll_once(&mut closing).is_ready());
            assert_eq!(queue.pending().len(), 0);
        }
    });
}
