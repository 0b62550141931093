//! What the portable tests share: the kernels, and handles to read and write on.
//!
//! The bodies of the tests name no system. What does is in the file of the system's name, which has the
//! same functions for each.

#![allow(dead_code, unused_macros, unused_imports)]

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use ioqueue::{IoBuf, IoBufMut, KernelKind, Queue, Registered};
#[cfg(unix)]
pub use unix::*;
#[cfg(windows)]
pub use windows::*;

pub const LONG: Duration = Duration::from_secs(3600);

/// Makes of each test one a kernel. Each is given a queue, which must be drained when it ends.
macro_rules! on_each_kernel {
    ($($(#[$about:meta])* fn $name:ident($queue:ident) $body:block)*) => {$(
        $(#[$about])*
        mod $name {
            use super::*;

            fn test($queue: &ioqueue::Queue) $body

            #[cfg(target_os = "linux")]
            #[test]
            fn uring() {
                crate::each_kernel::run(ioqueue::KernelKind::Uring, test);
            }

            #[cfg(unix)]
            #[test]
            fn readiness() {
                crate::each_kernel::run(ioqueue::KernelKind::Readiness, test);
            }

            #[cfg(windows)]
            #[test]
            fn iocp() {
                crate::each_kernel::run(ioqueue::KernelKind::CompletionPort, test);
            }
        }
    )*};
}

/// Says on standard error why something is not tested here; use as `return skip("...")`.
pub fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
}

/// A queue on a kernel; none, said on standard error, where this system does not give it.
pub fn queue_on(kind: KernelKind) -> Option<Queue> {
    match Queue::builder().kernel(kind).build() {
        Ok(queue) => Some(queue),
        Err(error) if kind == KernelKind::Uring => {
            skip(&format!("this system gives no io_uring: {error}"));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Runs `test` with a queue on a kernel, on a thread of its own, and fails when it does not end.
pub fn run(kind: KernelKind, test: fn(&Queue)) {
    ends(move || {
        let Some(queue) = queue_on(kind) else { return };
        test(&queue);
        // Everything was given back.
        queue.close(Duration::from_secs(5)).unwrap();
    });
}

/// Runs `body` on a thread of its own and fails when it has not ended after a minute, so that a wait
/// that never ends is a failure of its test and not of the whole program.
pub fn ends<R: Send + 'static>(body: impl FnOnce() -> R + Send + 'static) -> R {
    let (sender, receiver) = channel();
    let thread = thread::spawn(move || {
        let _ = sender.send(body());
    });
    match receiver.recv_timeout(Duration::from_secs(20)) {
        Ok(answer) => {
            thread.join().unwrap();
            answer
        }
        Err(RecvTimeoutError::Timeout) => panic!("it does not end"),
        Err(RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().unwrap_err())
        }
    }
}

/// A number that no other call in this process gives.
pub fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

// ---------------------------------------------------------------------------------------------
// Streams

/// A stream whose one end is written to and whose other end is read.
pub struct Way {
    pub name: &'static str,
    pub from: Registered<Stream>,
    pub to: Registered<Stream>,
}

/// A stream with an end on the queue and an end for blocking calls.
pub struct HalfWay {
    pub name: &'static str,
    pub ours: Registered<Stream>,
    pub theirs: Box<dyn Blocking>,
}

/// The end of a stream that somebody else has, who waits in their calls.
pub trait Blocking: io::Read + io::Write + Send {}

impl<T: io::Read + io::Write + Send> Blocking for T {}

/// Reads until `length` bytes came, or the end.
pub async fn read_full<H>(stream: &Registered<H>, length: usize) -> Vec<u8> {
    let mut all = Vec::with_capacity(length);
    while all.len() < length {
        let start = all.len();
        let (count, part) = stream.read(all.slice(start..length)).await;
        all = part.into_inner();
        if count.unwrap() == 0 {
            break;
        }
    }
    all
}

/// Writes all of `bytes`, which come back.
pub async fn write_full<H, B: IoBuf>(stream: &Registered<H>, mut bytes: B) -> B {
    let (length, mut done) = (bytes.io_len(), 0);
    while done < length {
        let (count, part) = stream.write(bytes.slice(done..length)).await;
        bytes = part.into_inner();
        done += count.unwrap();
    }
    bytes
}

/// Bytes of which none repeats soon.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

// ---------------------------------------------------------------------------------------------
// Polling

/// Polls a future once with a waker that does nothing.
pub fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_with(future, Waker::noop())
}

/// Polls a future once with this waker.
pub fn poll_with<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

/// Polls `queue` without waiting, and resumes what is ready.
pub fn turn(queue: &Queue) {
    let mut ready = Vec::new();
    queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
    for continuation in ready {
        continuation.resume();
    }
}

/// As a host does that never waits in the queue: polls it over and over, until the future is done.
pub fn finish_by_turns<F: Future + Unpin>(queue: &Queue, mut future: F) -> F::Output {
    let start = Instant::now();
    loop {
        if let Poll::Ready(output) = poll_once(&mut future) {
            return output;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "it does not end");
        turn(queue);
    }
}

/// Polls `queue` and resumes what is ready, until `done` says so.
pub fn poll_until(queue: &Queue, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    let mut ready = Vec::new();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "it does not end");
        queue.poll(&mut ready, Some(Duration::from_millis(1))).unwrap();
        for continuation in ready.drain(..) {
            continuation.resume();
        }
    }
}

/// A future that lets the queue look at its kernel a few times: what had come by then has been seen.
pub async fn look_around() {
    let mut left = 3;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A waker that counts how often it was woken.
#[derive(Default)]
pub struct Wakes(AtomicU32);

impl Wakes {
    pub fn new() -> (std::sync::Arc<Self>, Waker) {
        let wakes = std::sync::Arc::<Self>::default();
        (wakes.clone(), wakes.into())
    }

    pub fn count(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

impl std::task::Wake for Wakes {
    fn wake(self: std::sync::Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &std::sync::Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A waker that calls a closure each time it is woken. For one thread only.
pub fn waker(woken: impl Fn() + 'static) -> Waker {
    struct OneThread<F>(F, thread::ThreadId);
    // SAFETY: checked at each wake; it is dropped where it was made, by the tests.
    unsafe impl<F> Send for OneThread<F> {}
    // SAFETY: as above.
    unsafe impl<F> Sync for OneThread<F> {}
    impl<F: Fn()> std::task::Wake for OneThread<F> {
        fn wake(self: std::sync::Arc<Self>) {
            self.wake_by_ref();
        }
        fn wake_by_ref(self: &std::sync::Arc<Self>) {
            assert_eq!(thread::current().id(), self.1, "woken on another thread");
            (self.0)();
        }
    }
    std::sync::Arc::new(OneThread(woken, thread::current().id())).into()
}

// ---------------------------------------------------------------------------------------------
// Buffers

/// A buffer that tells when it is dropped, and is marked at both ends.
pub struct Marked {
    bytes: Box<[u8]>,
    drops: Drops,
}

/// How often a [`Marked`] was dropped.
#[derive(Clone, Default)]
pub struct Drops(Rc<Cell<u32>>);

impl Drops {
    pub fn count(&self) -> u32 {
        self.0.get()
    }
}

const MARK: u8 = 0xA5;

impl Marked {
    pub fn new(length: usize) -> (Self, Drops) {
        let drops = Drops::default();
        let bytes = vec![MARK; length + 2].into();
        (Self { bytes, drops: drops.clone() }, drops)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[1..self.bytes.len() - 1]
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        self.drops.0.set(self.drops.0.get() + 1);
        let last = self.bytes.len() - 1;
        let marks = (self.bytes[0], self.bytes[last]);
        if !thread::panicking() {
            assert_eq!(marks, (MARK, MARK), "written beside the buffer");
        }
    }
}

// SAFETY: the box's bytes stay where they are; the two marks are not the buffer's.
unsafe impl IoBuf for Marked {
    fn io_ptr(&self) -> *const u8 {
        self.bytes().as_ptr()
    }

    fn io_len(&self) -> usize {
        self.bytes().len()
    }
}

// SAFETY: as above.
unsafe impl IoBufMut for Marked {
    fn io_mut_ptr(&mut self) -> *mut u8 {
        self.bytes[1..].as_mut_ptr()
    }

    unsafe fn set_io_len(&mut self, _: usize) {}
}
