//! The portable operations: the same calls, with the same answers, on every kernel.
//!
//! A [`Registered`] handle has a method for each. It takes an owned buffer ([`IoBuf`]), starts the
//! operation when it is called, and returns an [`Operation`], a future of the result and the buffer:
//!
//! ```
//! use std::net::{TcpListener, TcpStream};
//!
//! use ioqueue::Registered;
//!
//! # #[cfg(unix)]
//! # fn main() -> std::io::Result<()> {
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let client = Registered::new(TcpStream::connect(listener.local_addr()?)?)?;
//! let server = Registered::new(listener.accept()?.0)?;
//!
//! ioqueue::block_on(async {
//!     let (sent, _) = server.write("hello").await;
//!     assert_eq!(sent?, 5);
//!     let (received, buffer) = client.read(Vec::with_capacity(64)).await;
//!     assert_eq!(received?, 5);
//!     assert_eq!(buffer, b"hello");
//!     Ok(())
//! })?
//! # }
//! # #[cfg(not(unix))]
//! # fn main() {}
//! ```
//!
//! # What is the same everywhere
//!
//! - A read at the end of a file, or of a stream whose other end is closed, is `Ok(0)`. A connection that
//!   was reset is an error.
//! - A handle's reads follow each other in the order they were started, and so do its writes. What has a
//!   place of its own ([`read_at`](Registered::read_at), [`write_at`](Registered::write_at)), accepts and
//!   datagrams go on side by side, any number at a time.
//! - A read or a write may move fewer bytes than there is room for, and never more than 2 GiB. A read into
//!   a buffer without room (`Vec::new()`) is `Ok(0)`, as the end is: from a file at once, from a socket
//!   only when something has come.
//! - A read fills its buffer from the start, whatever was in it: nothing has to be cleared, and a part
//!   ([`IoBuf::slice`]) keeps what stands before it.
//! - What was refused before the call ([`Misuse`](crate::Misuse), [`Closed`](crate::error::Closed)) is the result, and the
//!   buffer comes back with it.
//!
//! # What is not
//!
//! - On Windows a file that is opened for overlapped use has no position of its own. There `read`, `write`
//!   and their vectored forms keep one for each registration.
//! - Only sockets say on Windows whether they are [`ready`](Registered::ready), and one at a time waits for
//!   anything but `Read`: else it is `Unsupported`, or `ResourceBusy`.
//! - Nothing says that a shutdown of a socket's own reading ends a read that waits. On Linux it does.
//! - Who has sent a datagram to nobody may be told by the next receive: `ConnectionRefused` on Unix,
//!   `ConnectionReset` on Windows.
//!
//! The test suite runs these operations on both kernels of Linux, on the simulated Windows (`ioqueue::sim`)
//! and under Wine; `docs/TESTED.md` says which.
//!
//! A handle that several tasks use is shared in an `Rc`; the methods take `&self`, but for
//! [`close`](Registered::close): take it out with `Rc::into_inner` when the others are done.

use std::fmt;
use std::future::Future;
use std::io;
use std::mem::ManuallyDrop;
use std::net::Shutdown as How;
use std::panic::Location;
use std::pin::Pin;
#[cfg(windows)]
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use windows_sys::Win32::Networking::WinSock::{WSAECONNABORTED, WSAECONNRESET};

use crate::address::SocketAddress;
use crate::buffer::{IoBuf, IoBufMut};
use crate::handle::{AsAnyHandle, IntoOwnedHandle, OwnedAnyHandle, Registered, Registration};
#[cfg(windows)]
use crate::handle::{EntryId, RawHandle};
use crate::iocp::{self, Begun, Cancelled, Wait};
use crate::kernel::call::Call;
#[cfg(windows)]
use crate::nt::windows::readiness::Poll as ReadinessPoll;
#[cfg(windows)]
use crate::nt::windows::sockets::{self, AcceptRoom};
use crate::operation::{Ending, SlotRef, Ticket};
use crate::queue::{Inner, Queue};
use crate::socket::{Owned, Socket};
use crate::time::Elapsed;

pub(crate) use std::net::Shutdown;

/// The address of a peer, as a connect takes it.
pub(crate) type PeerAddress = SocketAddress;

// ---------------------------------------------------------------------------------------------
// Events

/// What a handle can be ready for, or has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[doc(alias = "ReadyEvent")]
pub enum Event {
    /// A read, or an accept, would not block: there is something, or the end.
    Read,
    /// A write would not block. A connect has ended.
    Write,
    /// There is urgent data, or what else the device calls a priority (`POLLPRI`).
    PriorityRead,
    /// There is an error to be fetched. Wakes every wait.
    Error,
    /// The other end is closed, or will send no more. Wakes every wait.
    Hangup,
}

impl Event {
    pub(crate) const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// The events that a wait has seen.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Events(u8);

impl Events {
    #[cfg(unix)]
    pub(crate) fn bits(self) -> u8 {
        self.0
    }

    #[cfg(unix)]
    pub(crate) fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    #[cfg(any(windows, not(target_os = "linux"), ioqueue_polling))]
    pub(crate) fn insert(&mut self, event: Event) {
        self.0 |= event.bit();
    }

    /// Whether they end a wait for `event`: errors and hang-ups always do.
    #[cfg(unix)]
    pub(crate) fn says(self, event: Event) -> bool {
        let over = Event::Error.bit() | Event::Hangup.bit();
        self.0 & (event.bit() | over) != 0
    }

    /// Whether `event` is among them.
    pub fn contains(self, event: Event) -> bool {
        self.0 & event.bit() != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [Event::Read, Event::Write, Event::PriorityRead, Event::Error, Event::Hangup];
        f.debug_set().entries(all.into_iter().filter(|&event| self.contains(event))).finish()
    }
}

// ---------------------------------------------------------------------------------------------
// What requests are made of

/// A portable operation: its own memory, and what its result is for the caller. Its implementations are
/// this module's.
///
/// # Safety
/// What `call` points to is the request's, or owned by it; it stays valid for as long as the request is
/// neither moved, changed nor dropped.
pub unsafe trait Request: Sized + 'static {
    /// What the operation gives when it has ended.
    type Output;

    /// The end of what there is to read is a count of 0, and no error.
    #[doc(hidden)]
    const READS: bool = false;

    /// What was moved before a cancel is a count, and no error.
    #[doc(hidden)]
    const WRITES: bool = false;

    /// The call, which points into the request.
    #[doc(hidden)]
    #[allow(private_interfaces)]
    fn call(&mut self) -> Call;

    /// Where in a file it takes place.
    #[doc(hidden)]
    fn offset(&self) -> u64 {
        0
    }

    /// The message was longer than the buffer. On kernels of Unix a message says so itself.
    #[doc(hidden)]
    fn was_cut(&mut self) {}

    /// What the operation gives: `result` is the number its call answered with.
    #[doc(hidden)]
    fn finish(self, result: io::Result<u32>) -> Self::Output;
}

/// A buffer, or a part of one, as vectored calls take it.
#[cfg(unix)]
pub(crate) type IoPart = libc::iovec;
#[cfg(not(unix))]
pub(crate) type IoPart = windows_sys::Win32::Networking::WinSock::WSABUF;

#[cfg(unix)]
fn part(at: *mut u8, length: usize) -> IoPart {
    IoPart { iov_base: at.cast(), iov_len: length }
}

#[cfg(not(unix))]
fn part(at: *mut u8, length: usize) -> IoPart {
    IoPart { len: cut(length), buf: at }
}

/// What one call moves at most, as on Linux (read(2), "NOTES").
pub(crate) fn cut(length: usize) -> u32 {
    length.min(0x7fff_f000) as u32
}

/// Where a part is, and how long.
pub(crate) fn part_of(part: &IoPart) -> (*mut u8, usize) {
    #[cfg(unix)]
    return (part.iov_base.cast(), part.iov_len);
    #[cfg(not(unix))]
    (part.buf, part.len as usize)
}

/// The parts of a vectored call.
struct Parts<const N: usize> {
    list: [IoPart; N],
    /// What they hold in one, for handles that take one buffer a call. Else empty.
    gathered: Vec<u8>,
}

impl<const N: usize> Parts<N> {
    fn new() -> Self {
        let list = std::array::from_fn(|_| part(std::ptr::null_mut(), 0));
        Self { list, gathered: Vec::new() }
    }

    /// Fills them in, together no longer than what one call moves.
    fn fill(&mut self, buffers: impl Iterator<Item = (*mut u8, usize)>) {
        let mut room = cut(usize::MAX) as usize;
        for (into, (at, length)) in self.list.iter_mut().zip(buffers) {
            *into = part(at, length.min(room));
            room -= length.min(room);
        }
    }

    /// Says of each buffer how much of it was filled by a call that filled one after the other, and does
    /// that for a call that filled one in their place.
    fn spread<B: IoBufMut>(&self, count: usize, buffers: &mut [B; N]) {
        let mut from = 0;
        for buffer in buffers {
            let filled = (count - from).min(buffer.io_capacity());
            if let Some(bytes) = self.gathered.get(from..from + filled) {
                // SAFETY: the buffer has room for so many, and is not the one they are in.
                unsafe { bytes.as_ptr().copy_to_nonoverlapping(buffer.io_mut_ptr(), filled) };
            }
            // SAFETY: so many were filled, by the call or just now.
            unsafe { buffer.set_io_len(filled) };
            from += filled;
        }
    }
}

/// The handle of a registration, for as long as that lasts.
#[cfg(windows)]
struct Later {
    queue: Weak<Inner>,
    entry: EntryId,
    handle: RawHandle,
}

#[cfg(windows)]
impl Later {
    fn of(registration: &Registration) -> Self {
        let Registration { ref queue, entry, raw: handle, .. } = *registration;
        Self { queue: Rc::downgrade(queue), entry, handle }
    }

    /// None once it is unregistered: then it may be closed, and its value somebody else's.
    fn handle(&self) -> Option<RawHandle> {
        let queue = self.queue.upgrade()?;
        let is_attached = queue.registry.borrow().is_attached(self.entry);
        is_attached.then_some(self.handle)
    }
}

/// What an accept fills in.
pub(crate) struct Accepted {
    #[cfg(any(unix, feature = "sim"))]
    peer: SocketAddress,
    socket: Option<Socket>,
    #[cfg(windows)]
    listener: Later,
    #[cfg(windows)]
    room: AcceptRoom,
}

impl Accepted {
    fn new(_listener: &Registration) -> Self {
        Self {
            #[cfg(any(unix, feature = "sim"))]
            peer: SocketAddress::ANY,
            socket: None,
            #[cfg(windows)]
            listener: Later::of(_listener),
            #[cfg(windows)]
            room: AcceptRoom::new(),
        }
    }

    #[cfg(unix)]
    fn finish(self) -> io::Result<(Socket, SocketAddress)> {
        Ok((self.socket.expect("an accept that succeeded has a socket"), self.peer))
    }

    /// Makes of the socket what an accept gives elsewhere (pitfall 26). What goes wrong is this
    /// connection's trouble, and not the listener's (pitfall 14).
    #[cfg(windows)]
    fn finish(self) -> io::Result<(Socket, SocketAddress)> {
        let socket = self.socket.expect("an accept that succeeded has a socket");
        #[cfg(feature = "sim")]
        if socket.is_simulated() {
            return Ok((socket, self.peer));
        }
        // A listener that is closed takes the connections along that nobody has fetched.
        let listener = self.listener.handle().ok_or(io::ErrorKind::ConnectionAborted)?;
        let peer = sockets::accepted(listener, socket.owned(), &self.room)?;
        Ok((socket, peer))
    }

    #[cfg(unix)]
    fn error(error: io::Error) -> io::Error {
        error
    }

    /// What a client that is gone again is called elsewhere.
    #[cfg(windows)]
    fn error(error: io::Error) -> io::Error {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, NotConnected};
        match error.kind() {
            ConnectionReset | NotConnected => io::Error::new(ConnectionAborted, error),
            _ => error,
        }
    }
}

#[cfg(windows)]
impl Accepted {
    /// Owns the socket that the connection will be from now on, and says where the call may write the
    /// addresses. The socket is closed before that memory is freed (pitfall 7).
    ///
    /// # Safety
    /// `this` is valid and nobody else's.
    pub(crate) unsafe fn prepare(this: *mut Self, socket: Owned) -> *mut AcceptRoom {
        // SAFETY: passed on.
        unsafe {
            (*this).socket = Some(socket.into());
            &raw mut (*this).room
        }
    }
}

#[cfg(unix)]
impl Accepted {
    /// Where the call writes who it was, and how long that is.
    ///
    /// # Safety
    /// `this` is valid.
    pub(crate) unsafe fn address(this: *mut Self) -> (*mut u8, *mut u32) {
        // SAFETY: passed on; no reference is formed.
        unsafe { ((&raw mut (*this).peer.bytes).cast(), &raw mut (*this).peer.length) }
    }

    /// Owns the socket from now on.
    ///
    /// # Safety
    /// `this` is valid and nobody else's, and so is the descriptor.
    pub(crate) unsafe fn take_in(this: *mut Self, socket: std::os::fd::RawFd) {
        use std::os::fd::FromRawFd;
        // SAFETY: passed on.
        unsafe { (*this).socket = Some(Owned::from_raw_fd(socket).into()) };
    }
}

/// Where a simulated kernel writes an address, and its length.
#[cfg(feature = "sim")]
type AddressPlaces = [(*mut u8, usize); 2];

/// # Safety
/// `address` is valid.
#[cfg(feature = "sim")]
unsafe fn address_places(address: *mut SocketAddress) -> AddressPlaces {
    // SAFETY: passed on; no reference is formed.
    unsafe {
        let (bytes, length) = (&raw mut (*address).bytes, &raw mut (*address).length);
        [(bytes.cast(), size_of_val(&*bytes)), (length.cast(), size_of::<u32>())]
    }
}

#[cfg(feature = "sim")]
impl Accepted {
    /// Owns the simulated socket that the connection will be from now on, and says where the address goes.
    ///
    /// # Safety
    /// `this` is valid and nobody else's.
    pub(crate) unsafe fn places(this: *mut Self, socket: Socket) -> AddressPlaces {
        // SAFETY: passed on.
        unsafe {
            (*this).socket = Some(socket);
            address_places(&raw mut (*this).peer)
        }
    }
}

#[cfg(feature = "sim")]
impl Datagram {
    /// Where a simulated kernel finds the data, and where it writes the other side's address.
    ///
    /// # Safety
    /// `this` is valid.
    pub(crate) unsafe fn places(this: *mut Self) -> ((*mut u8, usize), AddressPlaces) {
        // SAFETY: passed on; no reference stays.
        unsafe { (part_of(&(*this).part), address_places(&raw mut (*this).peer)) }
    }

    /// Where on the Internet it goes.
    ///
    /// # Safety
    /// `this` is valid, and nobody writes to it.
    pub(crate) unsafe fn to(this: *const Self) -> Option<std::net::SocketAddr> {
        // SAFETY: passed on.
        unsafe { (*this).peer.ip() }
    }
}

/// A message with the address of the other side, as recvmsg and sendmsg take it.
pub(crate) struct Datagram {
    peer: SocketAddress,
    part: IoPart,
    #[cfg(unix)]
    message: libc::msghdr,
    #[cfg(not(unix))]
    truncated: bool,
}

#[cfg(unix)]
impl Datagram {
    fn new(peer: SocketAddress) -> Self {
        // SAFETY: a msghdr is numbers and pointers, for which zero is nothing.
        Self { peer, part: part(std::ptr::null_mut(), 0), message: unsafe { std::mem::zeroed() } }
    }

    /// Makes the parts point to one another, where they are now.
    fn prepare(&mut self, at: *mut u8, length: usize) {
        self.part = part(at, length);
        self.message.msg_name = (&raw mut self.peer.bytes).cast();
        self.message.msg_namelen = self.peer.length;
        self.message.msg_iov = &raw mut self.part;
        self.message.msg_iovlen = 1;
        self.message.msg_flags = 0;
    }

    /// # Safety
    /// `this` is valid and was prepared where it is.
    pub(crate) unsafe fn message(this: *mut Self) -> *mut libc::msghdr {
        // SAFETY: passed on; no reference is formed.
        unsafe { &raw mut (*this).message }
    }

    /// Takes over what the call wrote into the message.
    ///
    /// # Safety
    /// `this` is valid, and the call has ended.
    pub(crate) unsafe fn received(this: *mut Self) {
        // SAFETY: passed on.
        unsafe { (*this).peer.length = (*this).message.msg_namelen };
    }

    fn truncate(&mut self) {
        self.message.msg_flags |= libc::MSG_TRUNC;
    }

    fn was_truncated(&self) -> bool {
        self.message.msg_flags & libc::MSG_TRUNC != 0
    }
}

#[cfg(not(unix))]
impl Datagram {
    fn new(peer: SocketAddress) -> Self {
        Self { peer, part: part(std::ptr::null_mut(), 0), truncated: false }
    }

    fn prepare(&mut self, at: *mut u8, length: usize) {
        self.part = part(at, length);
    }

    /// The buffer, the other side's address, and how long that is.
    ///
    /// # Safety
    /// `this` is valid.
    #[cfg(windows)]
    pub(crate) unsafe fn message(this: *mut Self) -> (*const IoPart, *mut u8, *mut u32) {
        // SAFETY: passed on; no reference is formed.
        unsafe {
            let peer = &raw mut (*this).peer;
            (&raw const (*this).part, (&raw mut (*peer).bytes).cast(), &raw mut (*peer).length)
        }
    }

    fn truncate(&mut self) {
        self.truncated = true;
    }

    fn was_truncated(&self) -> bool {
        self.truncated
    }
}

// ---------------------------------------------------------------------------------------------
// The requests

/// What [`Registered::read`], [`recv`](Registered::recv) and [`read_at`](Registered::read_at) do.
pub struct Read<B, P = Onwards> {
    buffer: B,
    place: P,
}

/// What [`Registered::write`], [`send`](Registered::send) and [`write_at`](Registered::write_at) do.
pub struct Write<B, P = Onwards> {
    buffer: B,
    place: P,
}

/// Where a [`Read`] or a [`Write`] takes place. Its implementations are this module's.
// A type, so that a call is known when it is compiled.
pub trait Place: place::Sealed + Copy + 'static {}

/// Where the last one ended, or what comes next on a stream.
#[derive(Debug, Clone, Copy)]
pub struct Onwards;

/// On a connected socket.
#[derive(Debug, Clone, Copy)]
pub struct OnSocket;

/// At an offset in a file.
#[derive(Debug, Clone, Copy)]
pub struct At(u64);

impl Place for Onwards {}
impl Place for OnSocket {}
impl Place for At {}

mod place {
    use super::{At, Call, OnSocket, Onwards};

    pub trait Sealed {
        #[allow(private_interfaces)]
        fn read(self, at: *mut u8, length: usize) -> Call;
        #[allow(private_interfaces)]
        fn write(self, at: *const u8, length: usize) -> Call;

        fn offset(self) -> u64
        where
            Self: Sized,
        {
            0
        }
    }

    #[allow(private_interfaces)]
    impl Sealed for Onwards {
        fn read(self, at: *mut u8, length: usize) -> Call {
            Call::Read { at, length }
        }

        fn write(self, at: *const u8, length: usize) -> Call {
            Call::Write { at, length }
        }
    }

    #[allow(private_interfaces)]
    impl Sealed for OnSocket {
        fn read(self, at: *mut u8, length: usize) -> Call {
            Call::Receive { at, length }
        }

        fn write(self, at: *const u8, length: usize) -> Call {
            Call::Send { at, length }
        }
    }

    #[allow(private_interfaces)]
    impl Sealed for At {
        fn read(self, at: *mut u8, length: usize) -> Call {
            Call::ReadAt { at, length, offset: self.0 }
        }

        fn write(self, at: *const u8, length: usize) -> Call {
            Call::WriteAt { at, length, offset: self.0 }
        }

        fn offset(self) -> u64 {
            self.0
        }
    }
}

// SAFETY: the buffer is the request's, and keeps its bytes where they are (IoBuf's promise).
unsafe impl<B: IoBufMut, P: Place> Request for Read<B, P> {
    type Output = (io::Result<usize>, B);
    const READS: bool = true;

    #[allow(private_interfaces)]
    #[inline]
    fn call(&mut self) -> Call {
        self.place.read(self.buffer.io_mut_ptr(), self.buffer.io_capacity())
    }

    fn offset(&self) -> u64 {
        self.place.offset()
    }

    #[inline]
    fn finish(mut self, result: io::Result<u32>) -> Self::Output {
        if let Ok(count) = result {
            // SAFETY: the call has filled so many bytes of the capacity it was given.
            unsafe { self.buffer.set_io_len(count as usize) };
        }
        (result.map(|count| count as usize), self.buffer)
    }
}

// SAFETY: as for Read.
unsafe impl<B: IoBuf, P: Place> Request for Write<B, P> {
    type Output = (io::Result<usize>, B);
    const WRITES: bool = true;

    #[allow(private_interfaces)]
    #[inline]
    fn call(&mut self) -> Call {
        self.place.write(self.buffer.io_ptr(), self.buffer.io_len())
    }

    fn offset(&self) -> u64 {
        self.place.offset()
    }

    #[inline]
    fn finish(self, result: io::Result<u32>) -> Self::Output {
        (result.map(|count| count as usize), self.buffer)
    }
}

/// What [`Registered::read_vectored`] does.
pub struct ReadVectored<B, const N: usize> {
    buffers: [B; N],
    parts: Parts<N>,
}

/// What [`Registered::write_vectored`] does.
pub struct WriteVectored<B, const N: usize> {
    buffers: [B; N],
    parts: Parts<N>,
}

// SAFETY: the parts are the request's and point to the buffers' bytes, which are its too.
unsafe impl<B: IoBufMut, const N: usize> Request for ReadVectored<B, N> {
    type Output = (io::Result<usize>, [B; N]);
    const READS: bool = true;

    #[allow(private_interfaces)]
    fn call(&mut self) -> Call {
        let buffers = self.buffers.iter_mut();
        self.parts.fill(buffers.map(|it| (it.io_mut_ptr(), it.io_capacity())));
        let Parts { list, gathered } = &mut self.parts;
        Call::ReadVectored { parts: list.as_ptr(), count: N, gathered }
    }

    fn finish(mut self, result: io::Result<u32>) -> Self::Output {
        if let Ok(count) = result {
            self.parts.spread(count as usize, &mut self.buffers);
        }
        (result.map(|count| count as usize), self.buffers)
    }
}

// SAFETY: as for ReadVectored.
unsafe impl<B: IoBuf, const N: usize> Request for WriteVectored<B, N> {
    type Output = (io::Result<usize>, [B; N]);
    const WRITES: bool = true;

    #[allow(private_interfaces)]
    fn call(&mut self) -> Call {
        let buffers = self.buffers.iter();
        self.parts.fill(buffers.map(|it| (it.io_ptr().cast_mut(), it.io_len())));
        let Parts { list, gathered } = &mut self.parts;
        Call::WriteVectored { parts: list.as_ptr(), count: N, gathered }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        (result.map(|count| count as usize), self.buffers)
    }
}

/// What [`Registered::recv_from`] does.
pub struct ReceiveFrom<B> {
    buffer: B,
    datagram: Datagram,
}

/// What [`Registered::send_to`] does.
pub struct SendTo<B> {
    buffer: B,
    datagram: Datagram,
}

/// A datagram that came.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Received {
    /// How many of its bytes are in the buffer.
    pub bytes: usize,
    /// Who sent it.
    pub peer: SocketAddress,
    /// It was longer than the buffer, and the rest is lost.
    pub truncated: bool,
}

// SAFETY: all that the message points to is the request's.
unsafe impl<B: IoBufMut> Request for ReceiveFrom<B> {
    type Output = (io::Result<Received>, B);
    const READS: bool = true;

    #[allow(private_interfaces)]
    fn call(&mut self) -> Call {
        self.datagram.peer.length = SocketAddress::ANY.length;
        self.datagram.prepare(self.buffer.io_mut_ptr(), self.buffer.io_capacity());
        Call::ReceiveFrom { datagram: &raw mut self.datagram }
    }

    fn was_cut(&mut self) {
        self.datagram.truncate();
    }

    fn finish(mut self, result: io::Result<u32>) -> Self::Output {
        let received = result.map(|count| Received {
            bytes: count as usize,
            peer: self.datagram.peer,
            truncated: self.datagram.was_truncated(),
        });
        if let Ok(received) = &received {
            // SAFETY: the call has filled so many bytes of the capacity it was given.
            unsafe { self.buffer.set_io_len(received.bytes) };
        }
        (received, self.buffer)
    }
}

// SAFETY: as for ReceiveFrom.
unsafe impl<B: IoBuf> Request for SendTo<B> {
    type Output = (io::Result<usize>, B);

    #[allow(private_interfaces)]
    fn call(&mut self) -> Call {
        self.datagram.prepare(self.buffer.io_ptr().cast_mut(), self.buffer.io_len());
        Call::SendTo { datagram: &raw mut self.datagram }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        (result.map(|count| count as usize), self.buffer)
    }
}

/// What [`Registered::accept`] does.
pub struct Accept(Accepted);

// SAFETY: what is filled in is the request's.
unsafe impl Request for Accept {
    type Output = io::Result<(Socket, SocketAddress)>;

    #[allow(private_interfaces)]
    fn call(&mut self) -> Call {
        Call::Accept { accepted: &raw mut self.0 }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        result.and_then(|_| self.0.finish()).map_err(Accepted::error)
    }
}

/// What [`Registered::connect`] does.
pub struct Connect {
    peer: SocketAddress,
    #[cfg(windows)]
    socket: Later,
}

// SAFETY: the address is the request's.
unsafe impl Request for Connect {
    type Output = io::Result<()>;

    #[allow(private_interfaces)]
    fn call(&mut self) -> Call {
        Call::Connect { peer: &raw const self.peer }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        result?;
        // Makes of the socket what a connect makes of it elsewhere (pitfall 26).
        #[cfg(windows)]
        if let Some(socket) = self.socket.handle() {
            sockets::connected(socket)?;
        }
        Ok(())
    }
}

/// What [`Registered::shutdown`] does.
pub struct ShutDown(How);

// SAFETY: it points to nothing.
unsafe impl Request for ShutDown {
    type Output = io::Result<()>;

    #[allow(private_interfaces)]
    fn call(&mut self) -> Call {
        Call::Shutdown { how: self.0 }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        result.map(|_| ())
    }
}

/// What [`Registered::sync_all`] and [`Registered::sync_data`] do.
pub struct Sync {
    data_only: bool,
}

// SAFETY: it points to nothing.
unsafe impl Request for Sync {
    type Output = io::Result<()>;

    #[allow(private_interfaces)]
    fn call(&mut self) -> Call {
        Call::Sync { data_only: self.data_only }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        result.map(|_| ())
    }
}

/// What [`Registered::close`] does.
pub struct Close(Closing);

/// A handle that is to be closed.
pub(crate) struct Closing {
    handle: Option<OwnedAnyHandle>,
    /// The operations on it that have not ended, and which use of their slots each is.
    #[cfg_attr(
        not(target_os = "linux"),
        allow(dead_code, reason = "only the ring waits for them")
    )]
    after: Vec<(SlotRef, u32)>,
}

impl Closing {
    /// The handle, once nothing of it is in flight any more. Afterwards it is the caller's to close.
    ///
    /// # Safety
    /// `this` is valid, and nobody else looks at it.
    #[cfg(target_os = "linux")]
    pub(crate) unsafe fn take_free(this: *mut Self) -> Option<std::os::fd::OwnedFd> {
        // SAFETY: passed on.
        let this = unsafe { &mut *this };
        let goes_on = |&(slot, use_of_it): &(SlotRef, u32)| {
            slot.generation() == use_of_it && slot.is_kernels()
        };
        if this.after.iter().any(goes_on) {
            return None;
        }
        this.handle.take().map(OwnedAnyHandle::into_any)
    }

    /// Closes it now.
    ///
    /// # Safety
    /// As above.
    pub(crate) unsafe fn close(this: *mut Self) -> Ending {
        // SAFETY: passed on.
        let handle = unsafe { (*this).handle.take() }.expect("a handle is closed once");
        #[cfg(unix)]
        return crate::kernel::unix::ending(crate::kernel::unix::close(handle.into_any()));
        #[cfg(windows)]
        crate::nt::windows::close(handle.into_any())
    }
}

impl Close {
    /// Closes it, where no queue can.
    pub(crate) fn now(mut self) -> io::Result<()> {
        // SAFETY: nobody else has it.
        let ending = unsafe { Closing::close(&raw mut self.0) };
        ending.result().map(|_| ())
    }
}

// SAFETY: what it points to is the request's.
unsafe impl Request for Close {
    type Output = io::Result<()>;

    #[allow(private_interfaces)]
    fn call(&mut self) -> Call {
        Call::Close { closing: &raw mut self.0 }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        result.map(|_| ())
    }
}

/// What [`Queue::ready`] does.
pub struct Ready {
    event: Event,
    #[cfg(windows)]
    poll: Option<ReadinessPoll>,
}

impl Ready {
    fn new(event: Event) -> Self {
        Self {
            event,
            #[cfg(windows)]
            poll: None,
        }
    }

    /// What the handle has come to, by the number that the call answered with.
    fn events(&self, number: u32) -> Events {
        // Some systems tell of more than they were asked for, at times.
        let asked = self.event.bit() | Event::Error.bit() | Event::Hangup.bit();
        #[cfg(windows)]
        if let Some(poll) = &self.poll {
            return Events(poll.events().0 & asked);
        }
        // A receive of nothing, which stands in for a wait where there is none, answers with 0.
        let bits = number as u8;
        Events(if bits == 0 { self.event.bit() } else { bits & asked })
    }
}

// SAFETY: what is filled in is the request's.
unsafe impl Request for Ready {
    type Output = io::Result<Events>;

    #[allow(private_interfaces)]
    fn call(&mut self) -> Call {
        Call::Ready {
            event: self.event,
            #[cfg(windows)]
            poll: &raw mut self.poll,
        }
    }

    fn finish(self, result: io::Result<u32>) -> Self::Output {
        match result {
            Ok(number) => Ok(self.events(number)),
            // A receive finds what a wait would have told of.
            Err(error) if is_reset(&error) => {
                let all = [self.event, Event::Error, Event::Hangup];
                Ok(Events(all.into_iter().fold(0, |bits, event| bits | event.bit())))
            }
            Err(error) => Err(error),
        }
    }
}

fn is_reset(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset};
    // By the code, too: those of a simulated Windows have a kind on Windows only.
    matches!(error.kind(), ConnectionReset | ConnectionAborted)
        || matches!(error.raw_os_error(), Some(WSAECONNRESET | WSAECONNABORTED))
}

// ---------------------------------------------------------------------------------------------
// The future

/// A portable operation that was started: a future of its result.
///
/// It goes on whether it is polled or not, and works under any executor, as long as somebody polls the
/// queue. **Dropping it cancels the operation**; its buffer stays until the kernel is done, and is
/// dropped then. [`cancel`](Self::cancel) can be awaited and loses nothing. Not `Send`.
///
/// If the queue is closed meanwhile the result is [`Closed`](crate::error::Closed), or how the operation
/// ended if it was faster.
///
/// # Panics
/// When it is polled after its end, or after the queue was closed and the kernel did not give the
/// operation back ([`Undrained`](crate::error::Undrained)).
#[must_use = "dropping it cancels the operation"]
pub struct Operation<R: Request> {
    /// Dropped by hand, which costs nothing where it was taken.
    stage: ManuallyDrop<Stage<R>>,
}

enum Stage<R: Request> {
    Over(R::Output),
    /// Over, but the other tasks come first.
    Yields(R::Output),
    Waits(Ticket<R>),
    Taken,
}

// Nothing in it is pinned: the memory that must not move is the queue's.
impl<R: Request> Unpin for Operation<R> {}

impl<R: Request> Operation<R> {
    #[inline(always)]
    fn new(begun: Begun<R>, queue: &Inner) -> Self {
        let stage = match begun {
            // What ends at once must not starve the queue's other tasks (pitfall 12).
            Begun::Over(output) if queue.spend() => Stage::Over(output),
            Begun::Over(output) => Stage::Yields(output),
            Begun::Waits(ticket) => Stage::Waits(ticket),
        };
        Self { stage: ManuallyDrop::new(stage) }
    }

    #[inline(always)]
    fn take_stage(&mut self) -> Stage<R> {
        std::mem::replace(&mut *self.stage, Stage::Taken)
    }

    fn into_wait(mut self) -> Result<Wait<R>, R::Output> {
        match self.take_stage() {
            Stage::Over(output) | Stage::Yields(output) => Err(output),
            Stage::Waits(ticket) => Ok(Wait::for_ticket(ticket)),
            Stage::Taken => panic!("{OVER}"),
        }
    }

    /// Asks for the operation to be cancelled, and waits for how it ended: with an error that
    /// [`is_cancelled`](crate::error::is_cancelled), or after all with a result. The buffer comes back
    /// either way.
    pub fn cancel(self) -> Cancel<R> {
        Cancel(match self.into_wait() {
            Ok(wait) => Late::Wait(wait.cancel()),
            Err(output) => Late::Over(Some(output)),
        })
    }

    /// Gives the operation so much time from now; then it is cancelled, and this waits for how that
    /// ended. Nothing is lost: what was faster than its cancel says what it did, and the buffer comes back
    /// either way. [`Elapsed::is`](crate::Elapsed::is) knows the error.
    ///
    /// A `Timeout` has no cancel of its own, and dropping it drops the operation. For an operation that ends
    /// by a clock or by something else, keep the operation, poll it beside a [`sleep`](crate::sleep) and the
    /// other, then `cancel` it.
    pub fn timeout(self, duration: Duration) -> Timeout<R> {
        Timeout(match self.into_wait() {
            Ok(wait) => Late::Wait(wait.timeout(duration)),
            Err(output) => Late::Over(Some(output)),
        })
    }
}

const OVER: &str = "an operation was polled after its end";

impl<R: Request> Future for Operation<R> {
    type Output = R::Output;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<R::Output> {
        match &mut *self.stage {
            Stage::Waits(ticket) => match ticket.success() {
                Some(count) => {
                    let request = ticket.take_done();
                    // Nothing is left to be dropped.
                    std::mem::forget(self.take_stage());
                    Poll::Ready(request.finish(Ok(count)))
                }
                None => self.wait(context),
            },
            Stage::Over(_) => {
                let Stage::Over(output) = self.take_stage() else { unreachable!("looked at") };
                Poll::Ready(output)
            }
            Stage::Yields(_) | Stage::Taken => self.yields(context),
        }
    }
}

impl<R: Request> Operation<R> {
    #[inline(always)]
    fn wait(&mut self, context: &Context<'_>) -> Poll<R::Output> {
        let Stage::Waits(ticket) = &*self.stage else { unreachable!("looked at") };
        if !ticket.may_be_over() && !ticket.queue().park(ticket.slot(), context.waker()) {
            return Poll::Pending;
        }
        self.conclude()
    }

    /// It has ended, or its queue, or code ran that may have polled the queue.
    #[cold]
    fn conclude(&mut self) -> Poll<R::Output> {
        let Stage::Waits(ticket) = self.take_stage() else { unreachable!("looked at") };
        if !ticket.may_be_over() {
            self.stage = ManuallyDrop::new(Stage::Waits(ticket));
            return Poll::Pending;
        }
        drop(ticket.slot().take_waiter());
        match iocp::conclude_call(ticket) {
            Ok(output) => Poll::Ready(output),
            Err(ticket) => {
                self.stage = ManuallyDrop::new(Stage::Waits(ticket));
                Poll::Pending
            }
        }
    }

    /// Lets the others go first.
    #[cold]
    fn yields(&mut self, context: &Context<'_>) -> Poll<R::Output> {
        let Stage::Yields(output) = self.take_stage() else { panic!("{OVER}") };
        self.stage = ManuallyDrop::new(Stage::Over(output));
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<R: Request> Drop for Operation<R> {
    #[inline]
    fn drop(&mut self) {
        if !matches!(*self.stage, Stage::Taken) {
            drop_stage(self.take_stage());
        }
    }
}

#[cold]
fn drop_stage<R: Request>(stage: Stage<R>) {
    drop(stage);
}

/// An operation that is to end, or has ended before it was told to.
enum Late<R: Request, F> {
    Over(Option<R::Output>),
    Wait(F),
}

/// The end of a cancelled [`Operation`].
#[must_use = "the operation may finish after all: await how it ended"]
pub struct Cancel<R: Request>(Late<R, iocp::Cancel<R>>);

impl<R: Request> Unpin for Cancel<R> {}

impl<R: Request> Future for Cancel<R> {
    type Output = R::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<R::Output> {
        match &mut self.0 {
            Late::Over(output) => Poll::Ready(output.take().expect(OVER)),
            Late::Wait(cancel) => {
                Pin::new(cancel).poll(context).map(|ended| iocp::finish(ended.into_completion()))
            }
        }
    }
}

/// An [`Operation`] with a time limit. When the time is up its result is an error made from
/// [`Elapsed`], unless the operation was faster than its cancel.
#[must_use = "dropping it cancels the operation"]
pub struct Timeout<R: Request>(Late<R, iocp::Timeout<R>>);

impl<R: Request> Unpin for Timeout<R> {}

impl<R: Request> Future for Timeout<R> {
    type Output = R::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<R::Output> {
        match &mut self.0 {
            Late::Over(output) => Poll::Ready(output.take().expect(OVER)),
            Late::Wait(timeout) => {
                let ended = std::task::ready!(Pin::new(&mut *timeout).poll(context));
                Poll::Ready(match ended {
                    Cancelled::Cancelled(completion)
                        if timeout.is_up() && !(R::WRITES && completion.sent().is_ok()) =>
                    {
                        completion.state.finish(Err(Elapsed.into()))
                    }
                    ended => iocp::finish(ended.into_completion()),
                })
            }
        }
    }
}

macro_rules! debug {
    ($($of:ident),*) => {$(
        impl<R: Request> fmt::Debug for $of<R> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($of)).finish_non_exhaustive()
            }
        }
    )*};
}
debug!(Operation, Cancel, Timeout);

// ---------------------------------------------------------------------------------------------
// The methods

impl<H> Registered<H> {
    #[inline(always)]
    fn begin<R: Request>(&self, request: R, caller: &'static Location<'static>) -> Operation<R> {
        Operation::new(iocp::begin_call(self, request, caller), &self.registration().queue)
    }

    /// Reads on from where the last read ended, or what comes next on a stream: as much as there is,
    /// up to the buffer's capacity. 0 is the end, or a buffer without room
    /// (which waits all the same, on a socket where nothing has come).
    #[track_caller]
    #[inline]
    pub fn read<B: IoBufMut>(&self, buffer: B) -> Operation<Read<B>> {
        self.begin(Read { buffer, place: Onwards }, Location::caller())
    }

    /// Writes on from where the last write ended, or next on a stream. May write less than there is.
    #[track_caller]
    #[inline]
    pub fn write<B: IoBuf>(&self, buffer: B) -> Operation<Write<B>> {
        self.begin(Write { buffer, place: Onwards }, Location::caller())
    }

    /// Reads at a place in a file, over the full 64 bits. Any number at a time.
    #[track_caller]
    #[inline]
    pub fn read_at<B: IoBufMut>(&self, buffer: B, offset: u64) -> Operation<Read<B, At>> {
        self.begin(Read { buffer, place: At(offset) }, Location::caller())
    }

    /// Writes at a place in a file, over the full 64 bits. Any number at a time.
    #[track_caller]
    #[inline]
    pub fn write_at<B: IoBuf>(&self, buffer: B, offset: u64) -> Operation<Write<B, At>> {
        self.begin(Write { buffer, place: At(offset) }, Location::caller())
    }

    /// As [`read`](Self::read), into one buffer after the other.
    #[track_caller]
    pub fn read_vectored<B: IoBufMut, const N: usize>(
        &self,
        buffers: [B; N],
    ) -> Operation<ReadVectored<B, N>> {
        self.begin(ReadVectored { buffers, parts: Parts::new() }, Location::caller())
    }

    /// As [`write`](Self::write), from one buffer after the other.
    #[track_caller]
    pub fn write_vectored<B: IoBuf, const N: usize>(
        &self,
        buffers: [B; N],
    ) -> Operation<WriteVectored<B, N>> {
        self.begin(WriteVectored { buffers, parts: Parts::new() }, Location::caller())
    }

    /// Receives on a connected socket. 0 is the end of a stream, or an empty datagram.
    #[track_caller]
    #[inline]
    pub fn recv<B: IoBufMut>(&self, buffer: B) -> Operation<Read<B, OnSocket>> {
        self.begin(Read { buffer, place: OnSocket }, Location::caller())
    }

    /// Sends on a connected socket.
    #[track_caller]
    #[inline]
    pub fn send<B: IoBuf>(&self, buffer: B) -> Operation<Write<B, OnSocket>> {
        self.begin(Write { buffer, place: OnSocket }, Location::caller())
    }

    /// Receives one datagram, and who sent it.
    #[track_caller]
    pub fn recv_from<B: IoBufMut>(&self, buffer: B) -> Operation<ReceiveFrom<B>> {
        let datagram = Datagram::new(SocketAddress::NONE);
        self.begin(ReceiveFrom { buffer, datagram }, Location::caller())
    }

    /// Sends one datagram to `peer`.
    #[track_caller]
    pub fn send_to<B: IoBuf>(
        &self,
        buffer: B,
        peer: impl Into<SocketAddress>,
    ) -> Operation<SendTo<B>> {
        let datagram = Datagram::new(peer.into());
        self.begin(SendTo { buffer, datagram }, Location::caller())
    }

    /// Takes a connection off a listening socket, and says who it is from. Any number at a time.
    ///
    /// The socket converts into the standard library's types (`TcpStream::from`).
    ///
    /// A connection that was taken when this is dropped is closed. [`cancel`](Operation::cancel) hands it
    /// over.
    #[track_caller]
    pub fn accept(&self) -> Operation<Accept> {
        self.begin(Accept(Accepted::new(self.registration())), Location::caller())
    }

    /// Connects a socket, such as [`stream_socket`] makes. (The standard library makes none that is not
    /// connected yet. Those of the crate `socket2` will do as well, with options set before.)
    ///
    /// ```
    /// use std::net::{TcpListener, TcpStream};
    ///
    /// use ioqueue::Registered;
    /// use ioqueue::op::stream_socket;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let peer = listener.local_addr()?;
    ///
    /// let socket = Registered::new(TcpStream::from(stream_socket(peer)?))?;
    /// ioqueue::block_on(socket.connect(peer))??;
    /// assert_eq!(socket.get().peer_addr()?, peer);
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn connect(&self, peer: impl Into<SocketAddress>) -> Operation<Connect> {
        let connect = Connect {
            peer: peer.into(),
            #[cfg(windows)]
            socket: Later::of(self.registration()),
        };
        self.begin(connect, Location::caller())
    }

    /// Ends one or both directions of a connection, after what was written before.
    #[track_caller]
    pub fn shutdown(&self, how: How) -> Operation<ShutDown> {
        self.begin(ShutDown(how), Location::caller())
    }

    /// Puts on the disk what was written to a file, with all that is known about it.
    #[track_caller]
    pub fn sync_all(&self) -> Operation<Sync> {
        self.begin(Sync { data_only: false }, Location::caller())
    }

    /// Puts on the disk what was written to a file, and no more than it takes to read it back.
    #[track_caller]
    pub fn sync_data(&self) -> Operation<Sync> {
        self.begin(Sync { data_only: true }, Location::caller())
    }

    /// Waits until the handle is ready for `event`, or has come to an error or a hang-up. Any number at a
    /// time. See [`Queue::ready`].
    #[track_caller]
    pub fn ready(&self, event: Event) -> Operation<Ready> {
        self.begin(Ready::new(event), Location::caller())
    }
}

impl<H> Registered<H> {
    /// Reads until `buffer` is full, up to its capacity; for fewer bytes, a part of it
    /// ([`IoBuf::slice`]). When the end comes before that, the error is `UnexpectedEof`.
    ///
    /// It is as many operations as it takes. The first begins at once, each other when this is polled; a
    /// read that is started meanwhile gets what comes in between. **Dropping it** cancels the one in flight, and what was read until then is
    /// lost with the buffer. Where that matters, use [`read`](Self::read) and its `cancel`.
    #[track_caller]
    pub fn read_exact<B: IoBufMut>(&self, buffer: B) -> impl Future<Output = (io::Result<()>, B)> {
        let caller = Location::caller();
        let read = move |buffer: B, done: usize| {
            self.begin(Read { buffer: buffer.slice(done..), place: Onwards }, caller)
        };
        let room = buffer.io_capacity();
        let first = if room > 0 { Ok(read(buffer, 0)) } else { Err(buffer) };
        async move {
            let (mut reading, mut done) = match first {
                Ok(reading) => (reading, 0),
                Err(buffer) => return (Ok(()), buffer),
            };
            loop {
                let (result, part) = reading.await;
                let buffer = part.into_inner();
                match result {
                    Ok(0) => return (Err(io::ErrorKind::UnexpectedEof.into()), buffer),
                    Ok(count) => done += count,
                    Err(error) => return (Err(error), buffer),
                }
                if done >= room {
                    return (Ok(()), buffer);
                }
                reading = read(buffer, done);
            }
        }
    }

    /// Writes all of `buffer`; nothing, if it is empty.
    ///
    /// It is as many operations as it takes. The first begins at once, each other when this is polled; a
    /// write that is started meanwhile may come in between. **Dropping it** cancels the one in flight, and nobody knows how much was written.
    /// Where that matters, use [`write`](Self::write) and its `cancel`.
    #[track_caller]
    pub fn write_all<B: IoBuf>(&self, buffer: B) -> impl Future<Output = (io::Result<()>, B)> {
        let caller = Location::caller();
        let write = move |buffer: B, done: usize| {
            self.begin(Write { buffer: buffer.slice(done..), place: Onwards }, caller)
        };
        let length = buffer.io_len();
        // To a pipe of messages, nothing is a message.
        let first = if length > 0 { Ok(write(buffer, 0)) } else { Err(buffer) };
        async move {
            let (mut writing, mut done) = match first {
                Ok(writing) => (writing, 0),
                Err(buffer) => return (Ok(()), buffer),
            };
            loop {
                let (result, part) = writing.await;
                let buffer = part.into_inner();
                match result {
                    Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buffer),
                    Ok(count) => done += count,
                    Err(error) => return (Err(error), buffer),
                }
                if done >= length {
                    return (Ok(()), buffer);
                }
                writing = write(buffer, done);
            }
        }
    }
}

impl<H: IntoOwnedHandle> Registered<H> {
    /// Closes the handle, and says what the system says of that: that what was written could not be
    /// stored after all, for example, where a disk is elsewhere. (Dropping a `Registered` closes the handle as
    /// well, but the answer is lost.)
    ///
    /// What is in flight on it is cancelled, as [`unregister`](crate::unregister) says. On io_uring the
    /// handle is closed by the ring, when all of that has ended; elsewhere it is closed before this
    /// returns, which may block where closing does.
    ///
    /// **Nothing stops it**: it goes on when the operation is dropped, or told to
    /// [`cancel`](Operation::cancel), as long as the queue is polled. If the queue is closed first and
    /// does not come to it, the handle is left open.
    #[track_caller]
    pub fn close(mut self) -> Operation<Close> {
        let caller = Location::caller();
        let handle = self.take_apart().into_owned_handle();
        let registration = self.registration();
        let after = registration.queue.left_behind(registration.entry);
        let close = Close(Closing { handle: Some(handle), after });
        Operation::new(iocp::begin_close(registration, close, caller), &registration.queue)
    }
}

/// Makes a socket for [`connect`](Registered::connect): of the family of `peer`'s address, for a stream of
/// bytes, not connected, and not inherited by children. It converts into the standard library's types
/// (`TcpStream::from`, `UnixStream::from`).
///
/// # Errors
/// What the system says: that it does not know the family, or has no room for another descriptor.
pub fn stream_socket(peer: impl Into<SocketAddress>) -> io::Result<Owned> {
    let family = peer.into().family();
    #[cfg(unix)]
    return crate::kernel::unix::stream_socket(family).map_err(io::Error::from_raw_os_error);
    #[cfg(windows)]
    sockets::stream_socket(family).map_err(|code| io::Error::from_raw_os_error(code as i32))
}

impl Queue {
    /// Waits until `handle` is ready for `event`, or has come to an error or a hang-up, which always end
    /// the wait. Any number of waits at a time.
    ///
    /// Says which of these it has come to: `event`, [`Event::Error`], [`Event::Hangup`]; nothing of what
    /// was not asked for. A peer that will send no more is a hang-up, though it may read on: a wait for
    /// [`Event::Write`] ends at once then, with or without room. (To write to such a peer, use the
    /// operations of [`Registered`], which wait for room.)
    ///
    /// It is by the level: what is ready and stays so is told to each wait.
    ///
    /// The handle is registered by itself. [`unregister`](Self::unregister) it before it is closed: a
    /// descriptor that is closed under a wait is told of by nobody (io_uring holds on to the open file,
    /// epoll and kqueue forget it), and the wait lasts until it is dropped.
    #[doc(alias = "wait")]
    #[track_caller]
    pub fn ready(&self, handle: &(impl AsAnyHandle + ?Sized), event: Event) -> Operation<Ready> {
        let caller = Location::caller();
        let request = Ready::new(event);
        let begun = iocp::begin_ready(self.inner(), handle.as_any_handle(), request, caller);
        Operation::new(begun, self.inner())
    }
}

/// [`Queue::ready`] on the current queue.
///
/// # Errors
/// When the thread has no queue and none can be made.
#[track_caller]
pub fn ready(handle: &(impl AsAnyHandle + ?Sized), event: Event) -> io::Result<Operation<Ready>> {
    Ok(Queue::current()?.ready(handle, event))
}

#[cfg(all(test, unix))]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::kernel::KernelKind;

    // SPEC U3: no packet follows on these kernels, so nothing is kept for one.
    #[test]
    fn a_wait_for_readiness_that_has_ended_keeps_no_memory() {
        for kind in [KernelKind::Uring, KernelKind::Readiness] {
            let queue = match Queue::builder().kernel(kind).build() {
                Ok(queue) => queue,
                Err(error) => {
                    println!("skipped: this system gives no {kind:?}: {error}");
                    continue;
                }
            };
            let (mut here, mut there) = UnixStream::pair().unwrap();
            for _ in 0..3 {
                let waiting = queue.ready(&here, Event::Read);
                there.write_all(b"x").unwrap();
                let events = queue.block_on(waiting).unwrap().unwrap();
                assert!(events.contains(Event::Read));
                here.read_exact(&mut [0]).unwrap();
                let mut kept = 0;
                queue.inner().slab.for_each(|_| kept += 1);
                assert_eq!(kept, 0, "{kind:?}");
            }
            queue.unregister(&here).unwrap();
        }
    }
}
