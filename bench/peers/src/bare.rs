//! No peer: the least that tasks which await can cost, on epoll and on io_uring. One thread; a call is made where it
//! is awaited, and an event or a completion goes on at once with the task that waits for it.
//!
//! It keeps none of the promises of a library: what is dropped while it waits is not cancelled, a waker on another
//! thread wakes but one future, a task that was spawned runs until it ends, one whose calls go on succeeding keeps all
//! others waiting, and the first program to have a handle closed under it reads from whatever has the number then. So
//! what this loses against the programs by hand no library wins back in these benchmarks.

mod calls;
mod epoll;
mod uring;

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::VecDeque;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::marker::PhantomData;
use std::mem::{self, ManuallyDrop};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::ptr;
use std::rc::Rc;
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use calls::call;
pub(crate) use epoll::Epoll;
pub(crate) use uring::Uring;

use crate::benches::{Ended, Runtime, Stream};

pub(crate) struct Bare<K>(PhantomData<K>);

/// Where the two differ. All of it is for the thread that calls it, once that has opened it.
pub(crate) trait Kernel: 'static {
    /// Each write to the bell goes on with the task.
    fn open(bell: RawFd, task: Task);
    /// Waits, and goes on with the tasks whose turn it is.
    fn wait();

    /// Has the source told of an edge, and of each that follows.
    fn watch(source: &Source, edge: i32);
    /// Waits until the socket is connected, or can't be: the edges of that.
    fn connecting(source: &Source, task: Task) -> Poll<io::Result<usize>>;

    #[inline(always)]
    fn accept(listener: &Source, task: Task) -> Poll<io::Result<usize>> {
        listener.accept::<Self>(task)
    }

    /// Has the kernel keep a descriptor that will be used often, if it does such things.
    fn keep(_: RawFd) -> bool {
        false
    }

    #[inline(always)]
    fn send(source: &Source, bytes: &[u8], task: Task) -> Poll<io::Result<usize>> {
        source.send::<Self>(bytes, task)
    }
}

// ---- tasks ----

/// A future, with the bell of its thread. It stays when the future has ended: there may be wakers.
struct Record {
    future: UnsafeCell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
    /// Who waits for its end.
    waiter: Cell<Task>,
    bell: RawFd,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Task(*const Record);

thread_local! {
    static READY: RefCell<VecDeque<Task>> = const { RefCell::new(VecDeque::new()) };
    /// Others are ready, besides the task that runs.
    static OTHERS: Cell<bool> = const { Cell::new(false) };
    /// What this thread is woken by.
    static BELL: Cell<RawFd> = const { Cell::new(-1) };
}

impl Task {
    const NOBODY: Self = Self(ptr::null());

    fn new(future: Pin<Box<dyn Future<Output = ()>>>) -> Self {
        let (future, waiter) = (UnsafeCell::new(Some(future)), Cell::new(Self::NOBODY));
        Self(Box::leak(Box::new(Record { future, waiter, bell: BELL.get() })))
    }

    /// The one that runs. Its waker is its address.
    #[inline(always)]
    fn current(context: &Context) -> Self {
        Self(context.waker().data().cast())
    }

    /// Gives it a turn later.
    fn resume(self) {
        if self != Self::NOBODY {
            READY.with_borrow_mut(|ready| ready.push_back(self));
        }
    }

    /// Goes on with it. `others`: there are others whose turn it is.
    #[inline(always)]
    fn run(self, others: bool) {
        // SAFETY: the address is null or that of a record, which stays.
        let Some(record) = (unsafe { self.0.as_ref() }) else { return };
        // SAFETY: tasks don't run within each other, and nothing else uses the future.
        let future = unsafe { &mut *record.future.get() };
        let Some(running) = future else { return };
        OTHERS.set(others);
        // SAFETY: the functions take the address of a record.
        let waker = unsafe { Waker::from_raw(RawWaker::new(self.0.cast(), &TABLE)) };
        if running.as_mut().poll(&mut Context::from_waker(&ManuallyDrop::new(waker))).is_ready() {
            *future = None;
            record.waiter.replace(Self::NOBODY).resume();
        }
    }

    fn has_ended(self) -> bool {
        // SAFETY: as above, and it does not run.
        unsafe { (*(*self.0).future.get()).is_none() }
    }
}

static TABLE: RawWakerVTable =
    RawWakerVTable::new(|it| RawWaker::new(it, &TABLE), wake, wake, |_| {});

fn wake(it: *const ()) {
    let task = Task(it.cast());
    // SAFETY: records stay, and nobody writes to this part.
    let (bell, one) = (unsafe { (*task.0).bell }, 1_u64);
    if bell == BELL.get() {
        return task.resume();
    }
    // SAFETY: eight bytes of ours. Nobody reads them: each write is an edge.
    unsafe {
        call(libc::SYS_write, [bell as usize, (&raw const one).expose_provenance(), 8, 0, 0, 0])
    };
}

// ---- sources ----

/// A socket. It stays when that is closed, for the next one: the kernel may have more to say of it.
pub(crate) struct Source {
    socket: Cell<RawFd>,
    /// What may succeed, as far as anybody knows: `POLLIN`, `POLLOUT`.
    may: Cell<i32>,
    /// Edges that are told of.
    watched: Cell<i32>,
    reader: Cell<Task>,
    writer: Cell<Task>,
    /// The kernel keeps the descriptor.
    is_kept: Cell<bool>,
    operation: Operation,
    next_free: Cell<Option<&'static Source>>,
}

/// What was handed over to the kernel, one after the other.
struct Operation {
    task: Cell<Task>,
    result: Cell<i32>,
}

impl Operation {
    /// Results that no call has.
    const NONE: i32 = i32::MIN;
    const NOT_YET: i32 = i32::MIN + 1;

    const fn new() -> Self {
        Self { task: Cell::new(Task::NOBODY), result: Cell::new(Self::NONE) }
    }
}

thread_local! {
    static FREE: Cell<Option<&'static Source>> = const { Cell::new(None) };
}

/// A source whose socket is open.
pub(crate) struct Open(&'static Source);

impl Open {
    fn new(socket: RawFd, may: i32, is_kept: bool) -> Self {
        let source = FREE.take().unwrap_or_else(|| {
            Box::leak(Box::new(Source {
                socket: Cell::new(-1),
                may: Cell::new(0),
                watched: Cell::new(0),
                reader: Cell::new(Task::NOBODY),
                writer: Cell::new(Task::NOBODY),
                is_kept: Cell::new(false),
                operation: Operation::new(),
                next_free: Cell::new(None),
            }))
        });
        FREE.set(source.next_free.take());
        source.socket.set(socket);
        source.may.set(may);
        source.watched.set(0);
        source.is_kept.set(is_kept);
        source.operation.result.set(Operation::NONE);
        Self(source)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // SAFETY: it is its own.
        unsafe { call(libc::SYS_close, [self.0.socket(), 0, 0, 0, 0, 0]) };
        self.0.reader.set(Task::NOBODY);
        self.0.writer.set(Task::NOBODY);
        self.0.next_free.set(FREE.replace(Some(self.0)));
    }
}

impl Source {
    /// As calls take it.
    #[inline(always)]
    fn socket(&self) -> usize {
        self.socket.get() as usize
    }

    /// An edge has come.
    #[inline(always)]
    fn tell(&self, edges: i32, others: bool) {
        self.may.set(self.may.get() | edges);
        if edges & POLLIN != 0 {
            self.reader.replace(Task::NOBODY).run(others);
        }
        if edges & POLLOUT != 0 {
            self.writer.replace(Task::NOBODY).run(others);
        }
    }

    #[inline(always)]
    fn may(&self, what: i32) -> bool {
        self.may.get() & what != 0
    }

    /// Waits for an edge.
    #[inline(always)]
    fn wait<T, K: Kernel + ?Sized>(&self, edge: i32, waiter: &Cell<Task>, task: Task) -> Poll<T> {
        waiter.set(task);
        if self.watched.get() & edge == 0 {
            self.watched.set(self.watched.get() | edge);
            K::watch(self, edge);
        }
        Poll::Pending
    }

    #[inline(always)]
    fn receive<K: Kernel>(&self, buffer: &mut Vec<u8>, task: Task) -> Poll<io::Result<usize>> {
        if self.may(POLLIN) {
            let (to, room) = (buffer.as_mut_ptr().expose_provenance(), buffer.capacity());
            let arguments = [self.socket(), to, room, libc::MSG_DONTWAIT as usize, 0, 0];
            // SAFETY: so much room the buffer has.
            let got = unsafe { call(libc::SYS_recvfrom, arguments) };
            if got < room as isize && got != 0 {
                self.may.set(self.may.get() & !POLLIN);
            }
            if got != WOULD_BLOCK {
                // SAFETY: so much of it is filled.
                unsafe { buffer.set_len(got.max(0) as usize) };
                return Poll::Ready(result(got));
            }
        }
        self.wait::<_, K>(POLLIN, &self.reader, task)
    }

    #[inline(always)]
    fn send<K: Kernel + ?Sized>(&self, bytes: &[u8], task: Task) -> Poll<io::Result<usize>> {
        if self.may(POLLOUT) {
            let flags = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as usize;
            let arguments =
                [self.socket(), bytes.as_ptr().expose_provenance(), bytes.len(), flags, 0, 0];
            // SAFETY: the bytes are there.
            let sent = unsafe { call(libc::SYS_sendto, arguments) };
            if sent < bytes.len() as isize {
                self.may.set(self.may.get() & !POLLOUT);
            }
            if sent != WOULD_BLOCK {
                return Poll::Ready(result(sent));
            }
        }
        self.wait::<_, K>(POLLOUT, &self.writer, task)
    }

    fn accept<K: Kernel + ?Sized>(&self, task: Task) -> Poll<io::Result<usize>> {
        if self.may(POLLIN) {
            let flags = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as usize;
            // SAFETY: takes numbers.
            let accepted = unsafe { call(libc::SYS_accept4, [self.socket(), 0, 0, flags, 0, 0]) };
            if accepted != WOULD_BLOCK {
                return Poll::Ready(result(accepted));
            }
            self.may.set(self.may.get() & !POLLIN);
        }
        self.wait::<_, K>(POLLIN, &self.reader, task)
    }
}

const POLLIN: i32 = libc::POLLIN as i32;
const POLLOUT: i32 = libc::POLLOUT as i32;
const WOULD_BLOCK: isize = -(libc::EAGAIN as isize);

#[inline(always)]
fn result(returned: isize) -> io::Result<usize> {
    if returned < 0 {
        return Err(io::Error::from_raw_os_error(-returned as i32));
    }
    Ok(returned as usize)
}

// ---- connections ----

pub(crate) struct Connection<K>(Open, PhantomData<fn(K)>);

impl<K: Kernel> Connection<K> {
    fn new(socket: impl IntoRawFd) -> Self {
        let socket = socket.into_raw_fd();
        Self(Open::new(socket, POLLIN | POLLOUT, K::keep(socket)), PhantomData)
    }
}

/// A receive. Here and in a send nothing is dropped with one that is not over, which would have to be looked for.
struct Receive<'a, K> {
    source: &'a Source,
    buffer: ManuallyDrop<Vec<u8>>,
    kernel: PhantomData<fn(K)>,
}

impl<K: Kernel> Future for Receive<'_, K> {
    type Output = Ended;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Ended> {
        let Self { source, buffer, .. } = &mut *self;
        let received = source.receive::<K>(buffer, Task::current(context));
        // SAFETY: nobody asks again.
        received.map(|received| (received, unsafe { ManuallyDrop::take(buffer) }))
    }
}

/// A send, of what there is room for or of all.
struct Send<'a, K, const ALL: bool> {
    source: &'a Source,
    buffer: ManuallyDrop<Vec<u8>>,
    sent: usize,
    kernel: PhantomData<fn(K)>,
}

impl<K: Kernel, const ALL: bool> Future for Send<'_, K, ALL> {
    type Output = Ended;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Ended> {
        let Self { source, buffer, sent, .. } = &mut *self;
        let ended = loop {
            match K::send(source, &buffer[*sent..], Task::current(context)) {
                Poll::Ready(Ok(more)) => {
                    *sent += more;
                    if !ALL || *sent == buffer.len() {
                        break Ok(*sent);
                    }
                }
                Poll::Ready(error) => break error,
                Poll::Pending => return Poll::Pending,
            }
        };
        // SAFETY: nobody asks again.
        Poll::Ready((ended, unsafe { ManuallyDrop::take(buffer) }))
    }
}

impl<K: Kernel> Stream for Connection<K> {
    #[inline(always)]
    fn receive(&mut self, buffer: Vec<u8>) -> impl Future<Output = Ended> {
        let buffer = ManuallyDrop::new(buffer);
        Receive { source: self.0.0, buffer, kernel: self.1 }
    }

    #[inline(always)]
    fn send(&mut self, buffer: Vec<u8>) -> impl Future<Output = Ended> {
        let buffer = ManuallyDrop::new(buffer);
        Send::<_, false> { source: self.0.0, buffer, sent: 0, kernel: self.1 }
    }

    #[inline(always)]
    fn send_all(&mut self, buffer: Vec<u8>) -> impl Future<Output = Ended> {
        let buffer = ManuallyDrop::new(buffer);
        Send::<_, true> { source: self.0.0, buffer, sent: 0, kernel: self.1 }
    }
}

/// A socket that is being connected, with linger time 0.
fn begin_connecting(address: SocketAddrV4) -> io::Result<Open> {
    let kind = (libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as usize;
    // SAFETY: takes numbers.
    let socket =
        result(unsafe { call(libc::SYS_socket, [libc::AF_INET as usize, kind, 0, 0, 0, 0]) })?;
    let source = Open::new(socket as RawFd, 0, false);
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let (level, name) = (libc::SOL_SOCKET as usize, libc::SO_LINGER as usize);
    let at = (&raw const linger).expose_provenance();
    // SAFETY: so large it is.
    let done =
        unsafe { call(libc::SYS_setsockopt, [socket, level, name, at, size_of_val(&linger), 0]) };
    result(done)?;
    let name = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    };
    let (at, size) = ((&raw const name).expose_provenance(), size_of_val(&name));
    // SAFETY: so large it is.
    match unsafe { call(libc::SYS_connect, [socket, at, size, 0, 0, 0]) } {
        IN_PROGRESS => Ok(source),
        done => result(done).map(|_| source),
    }
}

const IN_PROGRESS: isize = -(libc::EINPROGRESS as isize);

// ---- the runtime ----

impl<K: Kernel> Runtime for Bare<K> {
    type Tcp = Connection<K>;
    type Unix = Connection<K>;
    type Listener = Open;
    type File = File;

    fn run<T>(future: impl Future<Output = T>) -> T {
        // SAFETY: takes numbers.
        BELL.set(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) });
        let output = Cell::new(None);
        let root: Pin<Box<dyn Future<Output = ()> + '_>> =
            Box::pin(async { output.set(Some(future.await)) });
        // SAFETY: it has ended when what it borrows does.
        let root = Task::new(unsafe {
            mem::transmute::<
                Pin<Box<dyn Future<Output = ()> + '_>>,
                Pin<Box<dyn Future<Output = ()>>>,
            >(root)
        });
        K::open(BELL.get(), root);
        root.resume();
        loop {
            while let Some((task, others)) =
                READY.with_borrow_mut(|ready| Some((ready.pop_front()?, !ready.is_empty())))
            {
                task.run(others);
            }
            if let Some(output) = output.take() {
                return output;
            }
            K::wait();
        }
    }

    fn spawn(future: impl Future<Output = ()> + 'static) -> impl Future<Output = ()> + 'static {
        let task = Task::new(Box::pin(future));
        task.resume();
        poll_fn(move |context| {
            if task.has_ended() {
                return Poll::Ready(());
            }
            // SAFETY: records stay.
            unsafe { (*task.0).waiter.set(Task::current(context)) };
            Poll::Pending
        })
    }

    fn tcp(stream: TcpStream) -> io::Result<Self::Tcp> {
        Ok(Connection::new(stream))
    }

    fn unix(stream: UnixStream) -> io::Result<Self::Unix> {
        Ok(Connection::new(stream))
    }

    fn listener(listener: TcpListener) -> io::Result<Self::Listener> {
        listener.set_nonblocking(true)?;
        Ok(Open::new(listener.into_raw_fd(), POLLIN, false))
    }

    async fn file(file: File) -> io::Result<Self::File> {
        Ok(file)
    }

    async fn accept(listener: &Self::Listener) -> io::Result<Self::Tcp> {
        let socket = poll_fn(|context| K::accept(listener.0, Task::current(context))).await?;
        Ok(Connection(Open::new(socket as RawFd, POLLIN | POLLOUT, false), PhantomData))
    }

    async fn connect(address: SocketAddr) -> io::Result<Self::Tcp> {
        let SocketAddr::V4(address) = address else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let source = begin_connecting(address)?;
        let told = poll_fn(|context| K::connecting(source.0, Task::current(context))).await?;
        if told as i32 != POLLOUT {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        source.0.may.set(POLLIN | POLLOUT);
        Ok(Connection(source, PhantomData))
    }

    /// Waits here for what is not in memory, which is next to nothing.
    async fn read_at(file: &Rc<Self::File>, mut buffer: Vec<u8>, offset: u64) -> Ended {
        let to = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.capacity() };
        let read = |flags: i32| {
            let (file, to) = (file.as_raw_fd() as usize, (&raw const to).expose_provenance());
            let arguments = [file, to, 1, offset as usize, 0, flags as usize];
            // SAFETY: so much room the buffer has.
            unsafe { call(libc::SYS_preadv2, arguments) }
        };
        let mut got = read(libc::RWF_NOWAIT);
        if got == WOULD_BLOCK {
            got = read(0);
        }
        // SAFETY: so much of it is filled.
        unsafe { buffer.set_len(got.max(0) as usize) };
        (result(got), buffer)
    }
}
