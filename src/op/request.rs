//! The requests: what each portable operation is, and the memory it needs.

use std::io;
use std::net::Shutdown;
#[cfg(windows)]
use std::rc::{Rc, Weak};

use windows_sys::Win32::Networking::WinSock::{WSAECONNABORTED, WSAECONNRESET};

use super::{Event, Events};
use crate::address::SocketAddress;
use crate::buffer::{IoBuf, IoBufMut};
#[cfg(windows)]
use crate::handle::{EntryId, RawHandle};
use crate::handle::{OwnedAnyHandle, Registration};
use crate::kernel::call::Call;
#[cfg(windows)]
use crate::nt::windows::readiness::Poll as ReadinessPoll;
#[cfg(windows)]
use crate::nt::windows::sockets::{self, AcceptRoom};
use crate::operation::{Ending, SlotRef};
#[cfg(windows)]
use crate::queue::Inner;
use crate::socket::{Owned, Socket};

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

    /// It sends from one buffer, and may be begun together with others.
    #[doc(hidden)]
    const COLLECTS: bool = false;

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
pub(super) struct Parts<const N: usize> {
    list: [IoPart; N],
    /// What they hold in one, for handles that take one buffer a call. Else empty.
    gathered: Vec<u8>,
}

impl<const N: usize> Parts<N> {
    pub(super) fn new() -> Self {
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
        for (part, buffer) in self.list.iter().zip(buffers) {
            let filled = (count - from).min(part_of(part).1);
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
pub(super) struct Later {
    queue: Weak<Inner>,
    entry: EntryId,
    handle: RawHandle,
}

#[cfg(windows)]
impl Later {
    pub(super) fn of(registration: &Registration) -> Self {
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
    pub(super) fn new(_listener: &Registration) -> Self {
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
    pub(super) fn new(peer: SocketAddress) -> Self {
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
    pub(super) fn new(peer: SocketAddress) -> Self {
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

/// What [`Registered::read`](crate::Registered::read), [`recv`](crate::Registered::recv) and [`read_at`](crate::Registered::read_at) do.
pub struct Read<B, P = Onwards> {
    pub(super) buffer: B,
    pub(super) place: P,
}

/// What [`Registered::write`](crate::Registered::write), [`send`](crate::Registered::send) and [`write_at`](crate::Registered::write_at) do.
pub struct Write<B, P = Onwards> {
    pub(super) buffer: B,
    pub(super) place: P,
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
pub struct At(pub(super) u64);

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
    const COLLECTS: bool = true;

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

/// What [`Registered::read_vectored`](crate::Registered::read_vectored) does.
pub struct ReadVectored<B, const N: usize> {
    pub(super) buffers: [B; N],
    pub(super) parts: Parts<N>,
}

/// What [`Registered::write_vectored`](crate::Registered::write_vectored) does.
pub struct WriteVectored<B, const N: usize> {
    pub(super) buffers: [B; N],
    pub(super) parts: Parts<N>,
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
        Call::ReadVectored { parts: list.as_mut_ptr().cast_const(), count: N, gathered }
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

/// What [`Registered::recv_from`](crate::Registered::recv_from) does.
pub struct ReceiveFrom<B> {
    pub(super) buffer: B,
    pub(super) datagram: Datagram,
}

/// What [`Registered::send_to`](crate::Registered::send_to) does.
pub struct SendTo<B> {
    pub(super) buffer: B,
    pub(super) datagram: Datagram,
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

/// What [`Registered::accept`](crate::Registered::accept) does.
pub struct Accept(pub(super) Accepted);

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

/// What [`Registered::connect`](crate::Registered::connect) does.
pub struct Connect {
    pub(super) peer: SocketAddress,
    #[cfg(windows)]
    pub(super) socket: Later,
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

/// What [`Registered::shutdown`](crate::Registered::shutdown) does.
pub struct ShutDown(pub(super) Shutdown);

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

/// What [`Registered::sync_all`](crate::Registered::sync_all) and [`Registered::sync_data`](crate::Registered::sync_data) do.
pub struct Sync {
    pub(super) data_only: bool,
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

/// What [`Registered::close`](crate::Registered::close) does.
pub struct Close(pub(super) Closing);

/// A handle that is to be closed.
pub(crate) struct Closing {
    pub(super) handle: Option<OwnedAnyHandle>,
    /// The operations on it that have not ended, and which use of their slots each is.
    #[cfg_attr(
        not(target_os = "linux"),
        allow(dead_code, reason = "only the ring waits for them")
    )]
    pub(super) after: Vec<(SlotRef, u32)>,
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

/// What [`Queue::ready`](crate::Queue::ready) does.
pub struct Ready {
    event: Event,
    #[cfg(windows)]
    poll: Option<ReadinessPoll>,
}

impl Ready {
    pub(super) fn new(event: Event) -> Self {
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
