//! What the portable tests share: the kernels, and handles to read and write on.
//!
//! The bodies of the tests name no system. What does is in the file of the system's name, which has the
//! same functions for each. The simulated Windows has a file, too, and handles and peers of its own.

#![allow(dead_code, unused_macros, unused_imports)]
#![cfg_attr(
    not(feature = "sim"),
    allow(irrefutable_let_patterns, reason = "there is one kind then")
)]
// Where there is no simulation, some functions need not look at the queue.
#![cfg_attr(not(feature = "sim"), allow(unused_variables))]

#[cfg(feature = "sim")]
mod simulated;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(feature = "sim")]
use ioqueue::sim::SimHandle;
use ioqueue::{
    AnyHandle, AsAnyHandle, IntoOwnedHandle, IoBuf, IoBufMut, KernelKind, OwnedAnyHandle, Queue,
    Registered, Socket, error,
};
#[cfg(unix)]
pub use unix::*;
#[cfg(windows)]
pub use windows::*;

#[cfg(unix)]
use unix as system;
#[cfg(windows)]
use windows as system;

pub const LONG: Duration = Duration::from_secs(3600);

/// Makes of each test one a kernel. Each is given a queue, which must be drained when it ends.
///
/// What the simulation cannot do is said: `not_simulated("why")` before a test, or before all of them.
macro_rules! on_each_kernel {
    (not_simulated($why:literal): $($(#[$about:meta])* fn $name:ident($queue:ident) $body:block)*) => {
        on_each_kernel! { $($(#[$about])* not_simulated($why) fn $name($queue) $body)* }
    };
    ($($(#[$about:meta])* $(not_simulated($why:literal))? fn $name:ident($queue:ident) $body:block)*) => {$(
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

            #[cfg(feature = "sim")]
            #[test]
            fn sim() {
                on_the_simulation!(test $($why)?);
            }
        }
    )*};
}

macro_rules! on_the_simulation {
    ($test:ident) => {
        crate::each_kernel::run_simulated($test)
    };
    ($test:ident $why:literal) => {
        crate::each_kernel::skip(concat!("not on the simulated Windows: ", $why))
    };
}

/// Says on standard error why something is not tested here; use as `return skip("...")`.
pub fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
}

/// A queue on a kernel; none, said on standard error, where this system does not give it.
pub fn queue_on(kind: KernelKind) -> Option<Queue> {
    #[cfg(feature = "sim")]
    if kind == KernelKind::Simulated {
        return Some(simulated::sim().queue().unwrap());
    }
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

/// The same on simulated systems: one without faults, and some where all comes in other orders.
#[cfg(feature = "sim")]
pub fn run_simulated(test: fn(&Queue)) {
    for seed in 0..4 {
        ends(move || simulated::run(seed, test));
    }
}

/// Runs `body` on a thread of its own and fails when it has not ended after a minute, so that a wait
/// that never ends is a failure of its test and not of the whole program.
pub fn ends<R: Send + 'static>(body: impl FnOnce() -> R + Send + 'static) -> R {
    let (sender, receiver) = channel();
    let thread = thread::spawn(move || {
        let _ = sender.send(body());
    });
    match receiver.recv_timeout(Duration::from_secs(60)) {
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

// ---------------------------------------------------------------------------------------------
// In what kernels are different

pub fn is_simulated(queue: &Queue) -> bool {
    queue.kernel_kind() == KernelKind::Simulated
}

/// Whether it is Windows, real or simulated.
pub fn is_windows(queue: &Queue) -> bool {
    cfg!(windows) || is_simulated(queue)
}

/// Whether what was cancelled is the kernel's until it is looked at. On Windows it may have ended at once.
pub fn cancels_later(queue: &Queue) -> bool {
    !is_windows(queue)
}

/// Whether the system tells a socket that nobody is where it has sent to. Wine does not.
pub fn tells_of_absent_peers(queue: &Queue) -> bool {
    is_simulated(queue) || !on_wine()
}

/// Whether a shutdown of a socket's own reading ends a read that waits: not on Wine, and nothing says so of
/// Windows.
pub fn shutdown_ends_reads(queue: &Queue) -> bool {
    cfg!(unix) || is_simulated(queue)
}

/// Whether a handle that was unregistered can be registered again: on Windows since 8.1, and not on Wine.
pub fn handles_can_leave(queue: &Queue) -> bool {
    let Some(other) = queue_on(queue.kernel_kind()) else { return false };
    let (_, one, _other) = raw_ways(queue).remove(0);
    other.register(other.register(one).unwrap().into_inner()).is_ok()
}

/// Whether a stream of this name can be waited for without reading or writing: on Windows only sockets.
pub fn says_when_ready(queue: &Queue, name: &str) -> bool {
    !is_windows(queue) || name == "TCP"
}

/// Whether answers that are sent while others are ready are begun together.
pub fn collects(queue: &Queue) -> bool {
    // With completions that come only when they are asked for, so since Linux 6.1.
    let is_recent = || {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split(['.', '-']).map(|it| it.parse().unwrap_or(0));
        (numbers.next(), numbers.next()) >= (Some(6), Some(1))
    };
    queue.kernel_kind() == KernelKind::Uring && is_recent()
}

/// Asserts that a buffer of which nothing was used came back as it was. A kernel that has it may write to
/// it, though, and the simulated one does.
#[track_caller]
pub fn assert_came_back(queue: &Queue, buffer: &[u8], before: &[u8]) {
    assert_eq!(buffer.len(), before.len());
    assert!(is_simulated(queue) || buffer == before, "{buffer:?}");
}

/// How often something big is done: less often where the kernel looks at each byte many times.
pub fn rounds(queue: &Queue, usual: usize) -> usize {
    if is_simulated(queue) { usual.div_ceil(20) } else { usual }
}

/// What kind of error it is. A simulated Windows gives Windows' codes on every system.
pub fn kind_of(queue: &Queue, error: &io::Error) -> io::ErrorKind {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, InvalidInput, TimedOut,
    };
    match error.raw_os_error().filter(|_| is_simulated(queue)) {
        Some(87) => InvalidInput,
        Some(109 | 232 | 233 | 10058) => BrokenPipe,
        Some(121 | 10060) => TimedOut,
        Some(10053) => ConnectionAborted,
        Some(10054) => ConnectionReset,
        Some(10061) => ConnectionRefused,
        _ => error.kind(),
    }
}

// ---------------------------------------------------------------------------------------------
// Handles of the system, or of the simulation

/// A handle of the system, or of the simulation.
#[derive(Debug)]
pub enum Of<H> {
    System(H),
    #[cfg(feature = "sim")]
    Simulation(SimHandle),
}

/// What any stream's end is.
pub type Stream = Of<RawStream>;
pub type Tcp = Of<TcpStream>;
pub type Listener = Of<TcpListener>;
pub type Udp = Of<UdpSocket>;
/// A file.
pub type OnDisk = Of<File>;

impl<H: AsAnyHandle> AsAnyHandle for Of<H> {
    fn as_any_handle(&self) -> AnyHandle<'_> {
        match self {
            Self::System(handle) => handle.as_any_handle(),
            #[cfg(feature = "sim")]
            Self::Simulation(handle) => handle.as_any_handle(),
        }
    }
}

impl<H: IntoOwnedHandle> IntoOwnedHandle for Of<H> {
    fn into_owned_handle(self) -> OwnedAnyHandle {
        match self {
            Self::System(handle) => handle.into_owned_handle(),
            #[cfg(feature = "sim")]
            Self::Simulation(_) => panic!("the simulation has no such call"),
        }
    }
}

/// For what only the system's handles can do, in tests that say so.
impl<H> Deref for Of<H> {
    type Target = H;

    fn deref(&self) -> &H {
        match self {
            Self::System(handle) => handle,
            #[cfg(feature = "sim")]
            Self::Simulation(_) => panic!("the simulation has no such call"),
        }
    }
}

impl Tcp {
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::System(socket) => socket.local_addr(),
            #[cfg(feature = "sim")]
            Self::Simulation(socket) => Ok(socket.local_addr().unwrap()),
        }
    }

    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::System(socket) => socket.peer_addr(),
            #[cfg(feature = "sim")]
            Self::Simulation(socket) => Ok(socket.peer_addr().unwrap()),
        }
    }
}

/// An accepted or connected socket.
pub fn stream_of(socket: Socket) -> Tcp {
    #[cfg(feature = "sim")]
    return match SimHandle::try_from(socket) {
        Ok(socket) => Of::Simulation(socket),
        Err(socket) => Of::System(socket.into()),
    };
    #[cfg(not(feature = "sim"))]
    Of::System(socket.into())
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

/// A pair of each kind of stream that can be written to at one end and read from at the other.
pub fn raw_ways(queue: &Queue) -> Vec<(&'static str, Stream, Stream)> {
    #[cfg(feature = "sim")]
    if is_simulated(queue) {
        return simulated::raw_ways();
    }
    let of = |(name, one, other)| (name, Of::System(one), Of::System(other));
    system::raw_ways().into_iter().map(of).collect()
}

/// A stream of each kind, both ends on `queue`.
pub fn ways(queue: &Queue) -> Vec<Way> {
    let on_queue = |(name, from, to)| {
        let (from, to) = (queue.register(from).unwrap(), queue.register(to).unwrap());
        Way { name, from, to }
    };
    raw_ways(queue).into_iter().map(on_queue).collect()
}

/// A stream of each kind in which both ends are read and written.
pub fn two_ways(queue: &Queue) -> Vec<Way> {
    let both_ways = |way: &Way| is_simulated(queue) || goes_both_ways(way.name);
    ways(queue).into_iter().filter(both_ways).collect()
}

fn half_ways(queue: &Queue, writes: bool) -> Vec<HalfWay> {
    #[cfg(feature = "sim")]
    if is_simulated(queue) {
        let half = |(name, ours, theirs)| HalfWay {
            name,
            ours: queue.register(ours).unwrap(),
            theirs: Box::new(simulated::Peer::new(theirs)),
        };
        return simulated::raw_ways().into_iter().map(half).collect();
    }
    let half = |(name, ours, theirs)| HalfWay {
        name,
        ours: queue.register(Of::System(ours)).unwrap(),
        theirs,
    };
    raw_half_ways(writes).into_iter().map(half).collect()
}

/// A stream of each kind that is read by the queue.
pub fn ways_in(queue: &Queue) -> Vec<HalfWay> {
    half_ways(queue, false)
}

/// A stream of each kind that is written by the queue.
pub fn ways_out(queue: &Queue) -> Vec<HalfWay> {
    half_ways(queue, true)
}

/// Both ends of a pipe: to read from, and to write to.
pub fn pipe(queue: &Queue) -> (Registered<Stream>, Registered<Stream>) {
    #[cfg(feature = "sim")]
    if is_simulated(queue) {
        let (one, other) = simulated::sim().pipe();
        let register = |end| queue.register(Of::Simulation(end)).unwrap();
        return (register(one), register(other));
    }
    let (reader, writer) = raw_pipe();
    let register = |end| queue.register(Of::System(end)).unwrap();
    (register(reader), register(writer))
}

fn half_pipe(queue: &Queue, writes: bool) -> (Registered<Stream>, Box<dyn Blocking>) {
    #[cfg(feature = "sim")]
    if is_simulated(queue) {
        let (one, other) = simulated::sim().pipe();
        let peer = simulated::Peer::new(Stream::Simulation(other));
        return (queue.register(Of::Simulation(one)).unwrap(), Box::new(peer));
    }
    let (ours, theirs) = raw_half_pipe(writes);
    (queue.register(Of::System(ours)).unwrap(), theirs)
}

/// A pipe that the queue reads from.
pub fn pipe_in(queue: &Queue) -> (Registered<Stream>, Box<dyn Blocking>) {
    half_pipe(queue, false)
}

/// A pipe that the queue writes to.
pub fn pipe_out(queue: &Queue) -> (Registered<Stream>, Box<dyn Blocking>) {
    half_pipe(queue, true)
}

// ---------------------------------------------------------------------------------------------
// Sockets

/// Both ends of a TCP connection.
pub fn tcp(queue: &Queue) -> (Registered<Tcp>, Registered<Tcp>) {
    let (one, other) = tcp_pair(queue);
    (queue.register(one).unwrap(), queue.register(other).unwrap())
}

fn tcp_pair(queue: &Queue) -> (Tcp, Tcp) {
    #[cfg(feature = "sim")]
    if is_simulated(queue) {
        let (one, other) = simulated::sim().socket();
        return (Of::Simulation(one), Of::Simulation(other));
    }
    let (one, other) = raw_tcp();
    (Of::System(one), Of::System(other))
}

/// The end of a TCP connection for blocking calls.
#[derive(Debug)]
pub enum Host {
    System(TcpStream),
    #[cfg(feature = "sim")]
    Simulation(simulated::Peer),
}

impl From<TcpStream> for Host {
    fn from(socket: TcpStream) -> Self {
        Self::System(socket)
    }
}

impl Host {
    fn new(socket: Tcp) -> Self {
        match socket {
            Of::System(socket) => Self::System(socket),
            #[cfg(feature = "sim")]
            Of::Simulation(socket) => {
                Self::Simulation(simulated::Peer::new(Tcp::Simulation(socket)))
            }
        }
    }

    /// Makes closing it a reset instead of an end.
    pub fn reset_when_closed(&self) {
        match self {
            Self::System(socket) => reset_when_closed(socket),
            #[cfg(feature = "sim")]
            Self::Simulation(peer) => peer.reset_when_closed(),
        }
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::System(socket) => socket.local_addr(),
            #[cfg(feature = "sim")]
            Self::Simulation(peer) => Ok(peer.local_addr()),
        }
    }
}

/// For what only the system's handles can do, in tests that say so.
impl Deref for Host {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        match self {
            Self::System(socket) => socket,
            #[cfg(feature = "sim")]
            Self::Simulation(_) => panic!("the simulation has no such call"),
        }
    }
}

impl io::Read for Host {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::System(socket) => socket.read(bytes),
            #[cfg(feature = "sim")]
            Self::Simulation(peer) => peer.read(bytes),
        }
    }
}

impl io::Write for Host {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::System(socket) => socket.write(bytes),
            #[cfg(feature = "sim")]
            Self::Simulation(peer) => peer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A TCP connection, and its end for blocking calls.
pub fn tcp_to_host(queue: &Queue) -> (Registered<Tcp>, Host) {
    let (one, other) = tcp_pair(queue);
    (queue.register(one).unwrap(), Host::new(other))
}

/// The same with as little room for what is to be sent as there can be.
pub fn narrow_tcp_to_host(queue: &Queue) -> (Registered<Tcp>, Host) {
    let (ours, theirs) = tcp_to_host(queue);
    if !is_simulated(queue) {
        set_send_room(&**ours.get(), 1);
    }
    (ours, theirs)
}

/// A listening socket, and where it listens.
pub fn listener(queue: &Queue) -> (Registered<Listener>, SocketAddr) {
    #[cfg(feature = "sim")]
    if is_simulated(queue) {
        let (listener, address) = simulated::sim().listener();
        return (queue.register(Of::Simulation(listener)).unwrap(), address);
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (queue.register(Of::System(listener)).unwrap(), address)
}

/// One of each family that there is.
pub fn listeners(queue: &Queue) -> Vec<(Registered<Listener>, SocketAddr)> {
    let mut all = vec![listener(queue)];
    match TcpListener::bind("[::1]:0") {
        _ if is_simulated(queue) => {}
        Ok(listener) => {
            let address = listener.local_addr().unwrap();
            all.push((queue.register(Of::System(listener)).unwrap(), address));
        }
        Err(error) => skip(&format!("this system has no [::1]: {error}")),
    }
    all
}

/// Somebody who connects to a listener, by a call that blocks.
pub fn host_that_connects(queue: &Queue, to: SocketAddr) -> Host {
    #[cfg(feature = "sim")]
    if is_simulated(queue) {
        return Host::Simulation(simulated::connected(to));
    }
    Host::System(TcpStream::connect(to).unwrap())
}

/// A TCP socket that can be connected to such an address.
pub fn tcp_socket(queue: &Queue, to: SocketAddr) -> Registered<Socket> {
    #[cfg(feature = "sim")]
    if is_simulated(queue) {
        return queue.register(simulated::sim().unconnected().into()).unwrap();
    }
    queue.register(raw_tcp_socket(to).into()).unwrap()
}

/// Where nobody listens.
pub fn refusing_address(queue: &Queue) -> SocketAddr {
    #[cfg(feature = "sim")]
    if is_simulated(queue) {
        return simulated::sim().listener().1;
    }
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Somewhere to connect to that does not answer for a long time. Keep what comes with it.
pub fn silent_address(queue: &Queue) -> (SocketAddr, Box<dyn std::any::Any>) {
    if is_simulated(queue) {
        // Of the first of the networks for documentation (RFC 5737).
        return (([192, 0, 2, 1], 80).into(), Box::new(()));
    }
    let (address, sockets) = system::silent_address();
    (address, Box::new(sockets))
}

/// A UDP socket, and its address.
pub fn udp(queue: &Queue) -> (Registered<Udp>, SocketAddr) {
    #[cfg(feature = "sim")]
    if is_simulated(queue) {
        let (socket, address) = simulated::sim().datagrams();
        return (queue.register(Of::Simulation(socket)).unwrap(), address);
    }
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (queue.register(Of::System(socket)).unwrap(), address)
}

/// A UDP socket at an address that was left.
pub fn udp_at(queue: &Queue, address: SocketAddr) -> Registered<Udp> {
    #[cfg(feature = "sim")]
    if is_simulated(queue) {
        return queue.register(Of::Simulation(simulated::sim().datagrams_at(address))).unwrap();
    }
    queue.register(Of::System(UdpSocket::bind(address).unwrap())).unwrap()
}

// ---------------------------------------------------------------------------------------------
// Files

/// A file with `contents`, which has no name any more, or is gone when it is closed.
pub fn file(queue: &Queue, contents: &[u8]) -> Registered<OnDisk> {
    #[cfg(feature = "sim")]
    if is_simulated(queue) {
        return queue.register(Of::Simulation(simulated::sim().file(contents))).unwrap();
    }
    queue.register(Of::System(raw_file(contents))).unwrap()
}

/// A file that can be opened more than once, and is deleted when this is dropped.
pub enum Disk {
    System(TempFile),
    #[cfg(feature = "sim")]
    Simulation(SimHandle),
}

impl Disk {
    pub fn new(queue: &Queue, contents: &[u8]) -> Self {
        #[cfg(feature = "sim")]
        if is_simulated(queue) {
            return Self::Simulation(simulated::sim().file(contents));
        }
        Self::System(TempFile::new(contents))
    }

    /// For reading and writing.
    pub fn open(&self, queue: &Queue) -> Registered<OnDisk> {
        let file = match self {
            Self::System(file) => Of::System(file.open()),
            #[cfg(feature = "sim")]
            Self::Simulation(file) => Of::Simulation(simulated::sim().reopen(file)),
        };
        queue.register(file).unwrap()
    }

    /// For calls that go past the system's cache, where there is such a thing.
    pub fn open_uncached(&self, queue: &Queue) -> Option<Registered<OnDisk>> {
        #[cfg(target_os = "linux")]
        if let Self::System(file) = self {
            return match file.open_uncached() {
                Ok(file) => Some(queue.register(Of::System(file)).unwrap()),
                Err(error) => {
                    skip(&format!("no calls past the cache here: {error}"));
                    None
                }
            };
        }
        None
    }

    /// Has the next reads wait for the disk, where the system can be made to.
    pub fn forget_contents(&self) {
        #[cfg(target_os = "linux")]
        if let Self::System(file) = self {
            forget_contents(&file.open());
        }
    }

    /// What is in it now.
    pub fn contents(&self) -> Vec<u8> {
        match self {
            Self::System(file) => std::fs::read(&file.path).unwrap(),
            #[cfg(feature = "sim")]
            Self::Simulation(file) => simulated::sim().contents(file),
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Moving bytes

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
    pub fn new() -> (Arc<Self>, Waker) {
        let wakes = Arc::<Self>::default();
        (wakes.clone(), wakes.into())
    }

    pub fn count(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

impl std::task::Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
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
        fn wake(self: Arc<Self>) {
            self.wake_by_ref();
        }
        fn wake_by_ref(self: &Arc<Self>) {
            assert_eq!(thread::current().id(), self.1, "woken on another thread");
            (self.0)();
        }
    }
    Arc::new(OneThread(woken, thread::current().id())).into()
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
pub struct Drops(Arc<AtomicU32>);

impl Drops {
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
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
        self.drops.0.fetch_add(1, Ordering::Relaxed);
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
