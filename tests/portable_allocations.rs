#![cfg(unix)]
//! An operation on a handle that is used over and over costs no heap allocation (rule 3 of the design).
//!
//! Buffers go in, come back and go in again; the first rounds may allocate what the later ones reuse.

#[macro_use]
mod each_kernel;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use each_kernel::{
    TempFile, collects, listener, look_around, noise, pipe, poll_once, raw_pipe, skip, tcp,
    tcp_socket, udp,
};
use ioqueue::{Event, IoBuf};

/// Counts what one thread asks of the heap.
struct Counting;

/// The thread that is counted. None has the number 0.
static COUNTED: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicU64 = AtomicU64::new(0);

fn this_thread() -> usize {
    // SAFETY: takes nothing and gives a number.
    unsafe { libc::pthread_self() as usize }
}

fn count() {
    if COUNTED.load(Ordering::Relaxed) == this_thread() {
        CALLS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: all is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Rounds until everything has its size, and rounds that count.
const WARM: u32 = 100;
const ROUNDS: u32 = 300;

/// Has the calls of the allocator counted that this thread makes; one thread at a time.
struct Steady {
    round: u32,
    before: u64,
    /// How many there may be: for what does not come with the operations.
    allowed: u64,
    _alone: MutexGuard<'static, ()>,
}

impl Steady {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        COUNTED.store(this_thread(), Ordering::Relaxed);
        Self { round: 0, before: 0, allowed: 0, _alone: alone }
    }

    /// For files, which have threads on some kernels, made when there are too few: not one call a round.
    fn with_threads() -> Self {
        Self { allowed: u64::from(ROUNDS - WARM) - 1, ..Self::new() }
    }

    /// Whether there is to be another round. Fails after the last, if the later ones allocated.
    #[track_caller]
    fn goes_on(&mut self) -> bool {
        let calls = CALLS.load(Ordering::Relaxed);
        if self.round == WARM {
            self.before = calls;
        }
        if self.round == ROUNDS {
            let counted = calls - self.before;
            let rounds = ROUNDS - WARM;
            assert!(counted <= self.allowed, "{counted} calls of the allocator in {rounds} rounds");
        }
        self.round += 1;
        self.round <= ROUNDS
    }
}

#[test]
fn the_counter_counts() {
    let mut steady = Steady::new();
    let before = CALLS.load(Ordering::Relaxed);
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(CALLS.load(Ordering::Relaxed) - before, 2);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        while steady.goes_on() {
            drop(std::hint::black_box(Box::new(1)));
        }
    }));
    assert!(caught.is_err());
}

on_each_kernel! {
    not_simulated("the simulation allocates what it remembers"):

    /// Messages to and fro: each receive waits for its message.
    fn sockets_cost_no_allocation(queue) {
        let (client, server) = tcp(queue);
        let (mut there, mut back) = (vec![1; 64], vec![0; 64]);
        let mut steady = Steady::new();
        queue.block_on(async {
            while steady.goes_on() {
                let receiving = server.recv(back);
                let (count, sent) = client.send(there).await;
                assert_eq!(count.unwrap(), 64);
                let (count, received) = receiving.await;
                assert_eq!(count.unwrap(), 64);
                let reading = client.read(sent);
                let (count, written) = server.write(received).await;
                assert_eq!(count.unwrap(), 64);
                (there, back) = (reading.await.1, written);
            }
        }).unwrap();
    }

    /// Answers that are begun together with those of others.
    fn answers_of_a_crowd_cost_no_allocation(queue) {
        const MEMBERS: u32 = 8;
        let (answered, together) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (tasks, mut peers): (Vec<_>, Vec<_>) = (0..MEMBERS).map(|_| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let ours = queue.register(ours).unwrap();
            let (answered, together) = (answered.clone(), together.clone());
            let task = queue.spawn(async move {
                let mut buffer = vec![0; 64];
                loop {
                    buffer = ours.recv(buffer).await.1;
                    let mut sending = ours.send(buffer);
                    let (count, back) = match poll_once(&mut sending) {
                        Poll::Ready(output) => output,
                        Poll::Pending => {
                            together.set(together.get() + 1);
                            sending.await
                        }
                    };
                    assert_eq!(count.unwrap(), 64);
                    buffer = back;
                    answered.set(answered.get() + 1);
                }
            });
            (task, theirs)
        }).unzip();
        let mut room = [0; 64];
        let mut steady = Steady::new();
        queue.block_on(async {
            while steady.goes_on() {
                for theirs in &mut peers {
                    theirs.write_all(&[1; 64]).unwrap();
                }
                answered.set(0);
                while answered.get() < MEMBERS {
                    look_around().await;
                }
                for theirs in &mut peers {
                    theirs.read_exact(&mut room).unwrap();
                }
            }
        }).unwrap();
        drop(tasks);
        queue.run().unwrap();
        // In the first round they have not waited yet.
        assert!(!collects(queue) || together.get() >= (ROUNDS - 1) * MEMBERS);
    }

    /// More than there is room for: each write waits.
    fn writes_that_wait_cost_no_allocation(queue) {
        for way in each_kernel::ways(queue) {
            let (from, to) = (way.from, way.to);
            let (mut there, mut back) = (vec![1; 256 << 10], vec![0; 256 << 10]);
            let mut steady = Steady::new();
            queue.block_on(async {
                while steady.goes_on() {
                    let (mut written, mut read) = (0, 0);
                    let waiting = loop {
                        let mut writing = from.write(there);
                        match poll_once(&mut writing) {
                            Poll::Ready((count, bytes)) => {
                                written += count.unwrap();
                                there = bytes;
                            }
                            Poll::Pending => break writing,
                        }
                    };
                    while read < written {
                        let (count, bytes) = to.read(back).await;
                        read += count.unwrap();
                        back = bytes;
                    }
                    let (count, bytes) = waiting.await;
                    written += count.unwrap();
                    there = bytes;
                    while read < written {
                        let (count, bytes) = to.read(back).await;
                        read += count.unwrap();
                        back = bytes;
                    }
                }
            }).unwrap();
        }
    }

    fn pipes_cost_no_allocation(queue) {
        let (reader, writer) = pipe(queue);
        let (mut there, mut back) = (vec![1; 64], vec![0; 64]);
        let mut steady = Steady::new();
        queue.block_on(async {
            while steady.goes_on() {
                let reading = reader.read(back);
                look_around().await;
                let (count, written) = writer.write(there).await;
                assert_eq!(count.unwrap(), 64);
                (there, back) = (written, reading.await.1);
            }
        }).unwrap();
    }

    /// Also those of several buffers.
    fn datagrams_cost_no_allocation(queue) {
        let ((here, _), (there, address)) = (udp(queue), udp(queue));
        let (mut out, mut back) = (vec![1; 64], vec![0; 64]);
        let mut steady = Steady::new();
        queue.block_on(async {
            while steady.goes_on() {
                let receiving = there.recv_from(back);
                look_around().await;
                let (count, sent) = here.send_to(out, address).await;
                assert_eq!(count.unwrap(), 64);
                (out, back) = (sent, receiving.await.1);
            }
        }).unwrap();
    }

    fn vectored_calls_cost_no_allocation(queue) {
        let (client, server) = tcp(queue);
        let (mut out, mut back) = ([vec![1; 64], vec![2; 64]], [vec![0; 64], vec![0; 64]]);
        let mut steady = Steady::new();
        queue.block_on(async {
            while steady.goes_on() {
                let reading = server.read_vectored(back);
                look_around().await;
                let (count, written) = client.write_vectored(out).await;
                assert_eq!(count.unwrap(), 128);
                (out, back) = (written, reading.await.1);
            }
        }).unwrap();
    }

    /// In memory: one at a place, one after the other, and several at once.
    fn files_cost_no_allocation(queue) {
        let temporary = TempFile::new(&noise(1 << 16));
        let file = queue.register(temporary.open()).unwrap();
        let following = queue.register(temporary.open()).unwrap();
        let (mut first, mut second) = (vec![0; 64], vec![0; 64]);
        let mut steady = Steady::with_threads();
        queue.block_on(async {
            while steady.goes_on() {
                let one = file.read_at(first, 100);
                let other = file.write_at(second, 200);
                let (count, bytes) = one.await;
                assert_eq!(count.unwrap(), 64);
                first = bytes;
                let (count, bytes) = other.await;
                assert_eq!(count.unwrap(), 64);
                second = bytes;
                let (count, bytes) = following.read(first).await;
                assert_eq!(count.unwrap(), 64);
                first = bytes;
            }
        }).unwrap();
    }

    /// Past the cache, so that each has to be waited for.
    #[cfg(target_os = "linux")]
    fn files_that_are_not_in_memory_cost_no_allocation(queue) {
        const BLOCK: usize = 4096;
        let temporary = TempFile::new(&noise(16 * BLOCK));
        let file = match temporary.open_uncached() {
            Ok(file) => queue.register(file).unwrap(),
            Err(error) => return skip(&format!("no calls past the cache here: {error}")),
        };
        let room = vec![0_u8; 2 * BLOCK];
        let start = room.as_ptr().align_offset(BLOCK);
        let mut part = room.slice(start..start + BLOCK);
        let mut steady = Steady::with_threads();
        queue.block_on(async {
            while steady.goes_on() {
                let (count, again) = file.read_at(part, 4 * BLOCK as u64).await;
                assert_eq!(count.unwrap(), BLOCK);
                part = again;
            }
        }).unwrap();
    }

    /// Whether they wait or not, and whoever owns the handle.
    fn waits_for_readiness_cost_no_allocation(queue) {
        let (reader, writer) = raw_pipe();
        let mut writer = std::fs::File::from(writer);
        let mut reading = std::fs::File::from(reader.try_clone().unwrap());
        let (ours, mut theirs) = each_kernel::tcp_to_host(queue);
        let mut room = vec![0; 8];
        let mut steady = Steady::new();
        queue.block_on(async {
            while steady.goes_on() {
                let waiting = queue.ready(&reader, Event::Read);
                look_around().await;
                writer.write_all(b"x").unwrap();
                assert!(waiting.await.unwrap().contains(Event::Read));
                assert!(queue.ready(&reader, Event::Read).await.unwrap().contains(Event::Read));
                reading.read_exact(&mut [0]).unwrap();
                let waiting = (ours.ready(Event::Read), ours.ready(Event::Read));
                theirs.write_all(b"x").unwrap();
                waiting.0.await.unwrap();
                waiting.1.await.unwrap();
                room = ours.read(room).await.1;
            }
        }).unwrap();
        queue.unregister(&reader).unwrap();
    }

    fn accepts_and_connects_cost_no_allocation(queue) {
        let (listener, address) = listener(queue);
        // The numbers that come depend on what else this program has open; what is kept by number has room
        // for more from now on.
        let (spare, _) = raw_pipe();
        // SAFETY: takes numbers; the descriptor that comes back is nobody's yet.
        let high = unsafe {
            let number = libc::fcntl(spare.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 900);
            OwnedFd::from_raw_fd(number)
        };
        drop(queue.register(high).unwrap());
        let mut steady = Steady::new();
        queue.block_on(async {
            while steady.goes_on() {
                let accepting = listener.accept();
                look_around().await;
                let client = tcp_socket(queue, address);
                client.connect(address).await.unwrap();
                let (server, _) = accepting.await.unwrap();
                each_kernel::reset_when_closed(&server);
                let server = queue.register(TcpStream::from(server)).unwrap();
                drop((server, client));
            }
        }).unwrap();
    }

    /// Given up by a drop, and by a cancel that is awaited.
    fn cancels_cost_no_allocation(queue) {
        let (ours, _theirs) = each_kernel::tcp_to_host(queue);
        let (reader, _writer) = pipe(queue);
        let (mut one, mut other) = (vec![0; 8], vec![0; 8]);
        let mut steady = Steady::new();
        queue.block_on(async {
            while steady.goes_on() {
                drop(ours.read([0; 8]));
                drop(reader.read([0; 8]));
                let (result, room) = ours.read(one).cancel().await;
                assert!(ioqueue::error::is_cancelled(&result.unwrap_err()));
                one = room;
                let (result, room) = reader.read(other).cancel().await;
                assert!(ioqueue::error::is_cancelled(&result.unwrap_err()));
                other = room;
            }
        }).unwrap();
    }
}
