//! No peer: the least that tasks which await can cost. epoll by the edge, on one thread; a call is made where it is
//! awaited, and the event resumes the task whose number stands in the connection.
//!
//! It keeps none of the promises of a library: what is dropped while it waits is not cancelled, a waker on another
//! thread wakes but one future, a task that was spawned runs until it ends, and the first program to have a handle
//! closed under it reads from whatever has the number then. So what this loses against the programs by hand no library wins back
//! in these benchmarks.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::mem::ManuallyDrop;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use crate::benches::{Ended, Runtime, Stream};

pub(crate) struct Bare;

/// The number of the future that `run` was given; those of tasks are above.
const ROOT: usize = 0;
/// Nobody waits.
const NOBODY: usize = usize::MAX;
const BATCH: usize = 256;
/// The event of a thread's bell. Sources' addresses are even.
const BELL: u64 = 1;

type Task = Pin<Box<dyn Future<Output = ()>>>;

thread_local! {
    static TASKS: RefCell<Vec<Option<Task>>> = const { RefCell::new(Vec::new()) };
    static READY: RefCell<VecDeque<usize>> = const { RefCell::new(VecDeque::new()) };
    /// The task that is being polled.
    static CURRENT: Cell<usize> = const { Cell::new(NOBODY) };
    static EPOLL: OwnedFd = {
        // SAFETY: takes a number and gives a descriptor, which is nobody's yet.
        unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) }
    };
}

fn resume(task: usize) {
    if task != NOBODY {
        READY.with_borrow_mut(|ready| ready.push_back(task));
    }
}

// ---- wakers: the number of a task, and of its thread ----

const THREADS: usize = 8;
/// Bits of a waker that number its task.
const TASK_BITS: u32 = 32;

/// What each thread is woken by.
static BELLS: [AtomicI32; THREADS] = [const { AtomicI32::new(-1) }; THREADS];
static THREADS_BEGUN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static THREAD: usize = THREADS_BEGUN.fetch_add(1, Ordering::Relaxed);
}

static TABLE: RawWakerVTable =
    RawWakerVTable::new(|it| RawWaker::new(it, &TABLE), wake, wake, |_| {});

fn wake(it: *const ()) {
    let (thread, task) = (it.addr() >> TASK_BITS, it.addr() & ((1 << TASK_BITS) - 1));
    if THREAD.with(|&here| here == thread) {
        return resume(task);
    }
    let (bell, one) = (BELLS[thread].load(Ordering::Relaxed), 1_u64);
    // SAFETY: eight bytes of ours. Nobody reads them: each write is an edge.
    unsafe { libc::write(bell, (&raw const one).cast(), 8) };
}

/// Has this thread's `run` resumed by others.
fn watch_bell() {
    // SAFETY: takes numbers, and an event of ours.
    unsafe {
        let bell = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
        THREAD.with(|&thread| BELLS[thread].store(bell, Ordering::Relaxed));
        let mut event =
            libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: BELL };
        let epoll = EPOLL.with(AsRawFd::as_raw_fd);
        assert_eq!(libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, bell, &raw mut event), 0);
    }
}

fn poll<T>(task: usize, future: Pin<&mut (impl Future<Output = T> + ?Sized)>) -> Poll<T> {
    CURRENT.set(task);
    let name = THREAD.with(|&thread| thread << TASK_BITS | task);
    // SAFETY: the functions take a number, and nothing is behind it.
    let waker = unsafe { Waker::from_raw(RawWaker::new(ptr::without_provenance(name), &TABLE)) };
    future.poll(&mut Context::from_waker(&ManuallyDrop::new(waker)))
}

fn poll_task(number: usize) {
    let Some(mut task) = TASKS.with_borrow_mut(|tasks| tasks[number - 1].take()) else { return };
    if poll(number, task.as_mut()).is_pending() {
        TASKS.with_borrow_mut(|tasks| tasks[number - 1] = Some(task));
    }
}

// ---- connections ----

pub(crate) struct Connection(Box<Source>);

struct Source {
    socket: OwnedFd,
    /// The last receive took all there was, and no edge has come since.
    drained: Cell<bool>,
    reader: Cell<usize>,
    writer: Cell<usize>,
    /// Watched for room, too.
    is_watched_for_room: Cell<bool>,
}

impl Source {
    fn watch(&self, how: i32, events: i32) {
        let events = (events | libc::EPOLLIN | libc::EPOLLET) as u32;
        let mut event =
            libc::epoll_event { events, u64: ptr::from_ref(self).expose_provenance() as u64 };
        let epoll = EPOLL.with(AsRawFd::as_raw_fd);
        // SAFETY: the descriptors are open, the event is ours.
        let done = unsafe { libc::epoll_ctl(epoll, how, self.socket.as_raw_fd(), &raw mut event) };
        assert_eq!(done, 0, "epoll_ctl: {}", io::Error::last_os_error());
    }

    fn tell(&self, events: i32) {
        if events & libc::EPOLLIN != 0 {
            self.drained.set(false);
            resume(self.reader.replace(NOBODY));
        }
        if events & libc::EPOLLOUT != 0 {
            resume(self.writer.replace(NOBODY));
        }
    }

    #[inline(always)]
    fn receive(&self, buffer: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        if !self.drained.get() {
            let (room, flags) = (buffer.capacity(), libc::MSG_DONTWAIT);
            // SAFETY: so much room the buffer has, and so much of it is filled.
            let got = unsafe {
                let got =
                    libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), room, flags);
                buffer.set_len(got.max(0) as usize);
                got as usize
            };
            match answer(got as isize) {
                Poll::Pending => self.drained.set(true),
                ready => {
                    self.drained.set(got < room && got > 0);
                    return ready;
                }
            }
        }
        self.reader.set(CURRENT.get());
        Poll::Pending
    }

    #[inline(always)]
    fn send(&self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the bytes are there.
        let sent = unsafe {
            libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags)
        };
        let sent = answer(sent);
        if sent.is_pending() {
            self.writer.set(CURRENT.get());
            if !self.is_watched_for_room.replace(true) {
                self.watch(libc::EPOLL_CTL_MOD, libc::EPOLLOUT);
            }
        }
        sent
    }
}

/// What a call returned that was told not to block.
#[inline(always)]
fn answer(returned: isize) -> Poll<io::Result<usize>> {
    match usize::try_from(returned) {
        Ok(count) => Poll::Ready(Ok(count)),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            error => Poll::Ready(Err(error)),
        },
    }
}

impl Stream for Connection {
    async fn receive(&mut self, mut buffer: Vec<u8>) -> Ended {
        (poll_fn(|_| self.0.receive(&mut buffer)).await, buffer)
    }

    async fn send(&mut self, buffer: Vec<u8>) -> Ended {
        (poll_fn(|_| self.0.send(&buffer)).await, buffer)
    }

    async fn send_all(&mut self, buffer: Vec<u8>) -> Ended {
        let mut sent = 0;
        while sent < buffer.len() {
            match poll_fn(|_| self.0.send(&buffer[sent..])).await {
                Ok(more) => sent += more,
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(sent), buffer)
    }
}

fn connection(socket: OwnedFd) -> io::Result<Connection> {
    let source = Box::new(Source {
        socket,
        drained: Cell::new(false),
        reader: Cell::new(NOBODY),
        writer: Cell::new(NOBODY),
        is_watched_for_room: Cell::new(false),
    });
    source.watch(libc::EPOLL_CTL_ADD, 0);
    Ok(Connection(source))
}

// ---- the runtime ----

/// How a task ended, and who waits for that.
#[derive(Default)]
struct End {
    has_come: Cell<bool>,
    waiter: Cell<Option<usize>>,
}

/// Waits for events, and has those resumed whom they are for.
fn wait(events: &mut Vec<libc::epoll_event>) {
    let epoll = EPOLL.with(AsRawFd::as_raw_fd);
    // SAFETY: so many events there is room for, and so many are filled in.
    unsafe {
        let count = libc::epoll_wait(epoll, events.as_mut_ptr(), BATCH as i32, -1);
        events.set_len(count.max(0) as usize);
    }
    for event in &*events {
        let (flags, source) = (event.events, event.u64);
        if source == BELL {
            resume(ROOT);
            continue;
        }
        // SAFETY: the address is that of a source, which is in its box for as long as its socket is open.
        let source: &Source = unsafe { &*ptr::with_exposed_provenance(source as usize) };
        source.tell(flags as i32);
    }
}

impl Runtime for Bare {
    type Tcp = Connection;
    type Unix = Connection;
    type Listener = ();
    type File = File;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut events = Vec::with_capacity(BATCH);
        watch_bell();
        resume(ROOT);
        loop {
            while let Some(next) = READY.with_borrow_mut(VecDeque::pop_front) {
                if next != ROOT {
                    poll_task(next);
                } else if let Poll::Ready(output) = poll(ROOT, future.as_mut()) {
                    return output;
                }
            }
            wait(&mut events);
        }
    }

    fn spawn(future: impl Future<Output = ()> + 'static) -> impl Future<Output = ()> + 'static {
        let end = Rc::new(End::default());
        let its = Rc::clone(&end);
        let task = Box::pin(async move {
            future.await;
            its.has_come.set(true);
            its.waiter.take().into_iter().for_each(resume);
        });
        let number = TASKS.with_borrow_mut(|tasks| {
            tasks.push(Some(task));
            tasks.len()
        });
        resume(number);
        poll_fn(move |_| {
            if end.has_come.get() {
                return Poll::Ready(());
            }
            end.waiter.set(Some(CURRENT.get()));
            Poll::Pending
        })
    }

    fn tcp(stream: TcpStream) -> io::Result<Self::Tcp> {
        connection(stream.into())
    }

    fn unix(stream: UnixStream) -> io::Result<Self::Unix> {
        connection(stream.into())
    }

    fn listener(_: TcpListener) -> io::Result<Self::Listener> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn file(file: File) -> io::Result<Self::File> {
        Ok(file)
    }

    async fn accept((): &Self::Listener) -> io::Result<Self::Tcp> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn connect(_: SocketAddr) -> io::Result<Self::Tcp> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Waits here for what is not in memory, which is next to nothing.
    async fn read_at(file: &Rc<Self::File>, mut buffer: Vec<u8>, offset: u64) -> Ended {
        let part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.capacity() };
        let mut read = |flags| {
            // SAFETY: so much room the buffer has, and so much of it is filled.
            unsafe {
                let (fd, offset) = (file.as_raw_fd(), offset as i64);
                let got = libc::preadv2(fd, &raw const part, 1, offset, flags);
                buffer.set_len(got.max(0) as usize);
                answer(got)
            }
        };
        let Poll::Ready(got) = read(libc::RWF_NOWAIT) else {
            let Poll::Ready(got) = read(0) else { unreachable!("it was told to wait") };
            return (got, buffer);
        };
        (got, buffer)
    }
}
