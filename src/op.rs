//! The portable operations: the same calls, with the same answers, on every kernel.
//!
//! A [`Registered`] handle has a method for each. It takes an owned buffer ([`IoBuf`]), starts the
//! operation when it is called, and returns an [`Operation`], a future of the result and the buffer. (On io_uring
//! what was started may reach the system with the queue's next look at it only, so await it before the task blocks
//! or uses the handle by way of a clone.)
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

mod future;
mod request;

use std::fmt;
use std::future::Future;
use std::io;
use std::panic::Location;

pub use self::future::{Cancel, Operation, Timeout};
#[cfg(windows)]
use self::request::Later;
use self::request::Parts;
#[cfg(windows)]
pub(crate) use self::request::cut;
pub use self::request::{
    Accept, At, Close, Connect, OnSocket, Onwards, Place, Read, ReadVectored, Ready, ReceiveFrom,
    Received, Request, SendTo, ShutDown, Sync, Write, WriteVectored,
};
pub(crate) use self::request::{Accepted, Closing, Datagram, IoPart, part_of};
use crate::address::SocketAddress;
use crate::buffer::{IoBuf, IoBufMut};
use crate::handle::{AsAnyHandle, IntoOwnedHandle, Registered};
use crate::iocp;
#[cfg(windows)]
use crate::nt::windows::sockets;
use crate::queue::Queue;
use crate::socket::Owned;

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
    /// Something has come, and no more than that.
    #[cfg(unix)]
    pub(crate) const READ: Self = Self(Event::Read.bit());

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
// The methods

impl<H> Registered<H> {
    #[inline(always)]
    fn begin<R: Request>(&self, request: R, caller: &'static Location<'static>) -> Operation<R> {
        Operation::new(iocp::begin_call(self, request, caller))
    }

    /// Reads on from where the last read ended, or what comes next on a stream: as much as there is,
    /// up to the buffer's capacity. 0 is the end. A buffer
    /// without room gets 0 as well: at once, but of a socket only when something has come.
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
    #[inline(always)]
    pub fn recv<B: IoBufMut>(&self, buffer: B) -> Operation<Read<B, OnSocket>> {
        self.begin(Read { buffer, place: OnSocket }, Location::caller())
    }

    /// Sends on a connected socket.
    #[track_caller]
    #[inline(always)]
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

    /// Ends one or both directions of a connection, after what was written before. On Unix it ends
    /// a connect over TCP that waits.
    #[track_caller]
    pub fn shutdown(&self, how: Shutdown) -> Operation<ShutDown> {
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
    /// ([`IoBuf::slice`]). When the end comes before that, the error is `UnexpectedEof`, and the buffer holds
    /// what came.
    ///
    /// It is as many operations as it takes. The first begins at once, each other when this is polled; a
    /// read that is started meanwhile gets what comes in between. **Dropping it** cancels the one in flight, and what was read until then is
    /// lost with the buffer. So it is when [`timeout`](crate::timeout) drops it, as it has none of its own. Where that matters, use
    /// [`read`](Self::read) with its `cancel` and `timeout`.
    #[track_caller]
    #[must_use = "the first of its operations has begun, and is cancelled when this is dropped"]
    pub fn read_exact<B: IoBufMut>(&self, buffer: B) -> impl Future<Output = (io::Result<()>, B)> {
        self.fill(buffer, |_| Onwards, Location::caller())
    }

    /// As [`read_exact`](Self::read_exact), at a place in a file. Any number at a time, each of which has to be
    /// polled: in a task of its own, say.
    ///
    /// ```
    /// use std::fs::File;
    /// use std::rc::Rc;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # #[cfg(unix)] {
    /// let file = Rc::new(ioqueue::Registered::new(File::open("Cargo.toml")?)?);
    /// let reads: Vec<_> = (0..4)
    ///     .map(|block| {
    ///         // The future borrows the handle.
    ///         let file = Rc::clone(&file);
    ///         let room = Vec::with_capacity(16);
    ///         ioqueue::spawn(async move { file.read_exact_at(room, block * 16).await })
    ///     })
    ///     .collect::<Result<_, _>>()?;
    /// ioqueue::block_on(async {
    ///     for read in reads {
    ///         let (result, bytes) = read.await;
    ///         result?;
    ///         print!("{}", String::from_utf8_lossy(&bytes[..16]));
    ///     }
    ///     Ok::<_, std::io::Error>(())
    /// })??;
    /// # }
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    #[must_use = "the first of its operations has begun, and is cancelled when this is dropped"]
    pub fn read_exact_at<B: IoBufMut>(
        &self,
        buffer: B,
        offset: u64,
    ) -> impl Future<Output = (io::Result<()>, B)> {
        self.fill(buffer, move |done| At(offset.saturating_add(done as u64)), Location::caller())
    }

    /// Reads until `buffer` is full, each time at the place that follows from how much it has.
    fn fill<B: IoBufMut, P: Place>(
        &self,
        buffer: B,
        place: impl Fn(usize) -> P,
        caller: &'static Location<'static>,
    ) -> impl Future<Output = (io::Result<()>, B)> {
        let read = move |buffer: B, done: usize| {
            self.begin(Read { buffer: buffer.slice(done..), place: place(done) }, caller)
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
    /// So it is when [`timeout`](crate::timeout) drops it, as it has none of its own. Where that matters, use
    /// [`write`](Self::write) with its `cancel` and `timeout`.
    #[track_caller]
    #[must_use = "the first of its operations has begun, and is cancelled when this is dropped"]
    pub fn write_all<B: IoBuf>(&self, buffer: B) -> impl Future<Output = (io::Result<()>, B)> {
        self.write_out(buffer, |_| Onwards, Location::caller())
    }

    /// As [`write_all`](Self::write_all), at a place in a file. Any number at a time, each of which has to be
    /// polled: in a task of its own, say.
    #[track_caller]
    #[must_use = "the first of its operations has begun, and is cancelled when this is dropped"]
    pub fn write_all_at<B: IoBuf>(
        &self,
        buffer: B,
        offset: u64,
    ) -> impl Future<Output = (io::Result<()>, B)> {
        let place = move |done| At(offset.saturating_add(done as u64));
        self.write_out(buffer, place, Location::caller())
    }

    /// Writes all of `buffer`, each time at the place that follows from how much is written.
    fn write_out<B: IoBuf, P: Place>(
        &self,
        buffer: B,
        place: impl Fn(usize) -> P,
        caller: &'static Location<'static>,
    ) -> impl Future<Output = (io::Result<()>, B)> {
        let write = move |buffer: B, done: usize| {
            self.begin(Write { buffer: buffer.slice(done..), place: place(done) }, caller)
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
        Operation::new(iocp::begin_close(registration, close, caller))
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
    /// epoll and kqueue forget it), and the wait lasts until it is dropped, or until the queue comes upon
    /// another handle of that number, which
    /// does not look the same (all eventfds do): then it is
    /// [`Misuse::PrematureClose`](crate::Misuse::PrematureClose).
    #[doc(alias = "wait")]
    #[track_caller]
    pub fn ready(&self, handle: &(impl AsAnyHandle + ?Sized), event: Event) -> Operation<Ready> {
        let caller = Location::caller();
        let request = Ready::new(event);
        Operation::new(iocp::begin_ready(self.inner(), handle.as_any_handle(), request, caller))
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
