//! Handles: what can be registered, who owns it, and the registry.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::c_void;
use std::fmt;
use std::io;
use std::marker::PhantomData;
#[cfg(unix)]
use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::Queue;
use crate::error::{Closed, Refused};
use crate::kernel::Mark;
#[cfg(unix)]
use crate::kernel::source::SharedSource;
use crate::operation::SlotRef;
use crate::queue::Inner;

/// A `HANDLE` or a `SOCKET` as an untyped value, as in `std::os::windows::io::RawHandle`.
pub type RawHandle = *mut c_void;

/// The value of a handle, for messages and comparisons. Says nothing about whether it is open.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandleId(usize);

impl HandleId {
    /// The id of a raw handle value.
    pub fn new(raw: RawHandle) -> Self {
        Self(raw.addr())
    }
}

impl fmt::Debug for HandleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandleId({self})")
    }
}

/// As the system's own tools write it.
impl fmt::Display for HandleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if cfg!(unix) { write!(f, "{}", self.0) } else { write!(f, "{:#x}", self.0) }
    }
}

/// Whose calls a handle takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandleKind {
    /// A file, pipe, device, serial port, directory: the `HANDLE` calls.
    Handle,
    /// A socket: Winsock's calls.
    Socket,
}

/// A borrowed handle of any kind.
///
/// Made from a `BorrowedHandle` or a `BorrowedSocket`, so whoever holds one holds a borrow of an
/// open handle. That is all the queue asks: that the handle stays open afterwards is checked, not
/// trusted.
#[derive(Clone, Copy)]
pub struct AnyHandle<'a> {
    raw: RawHandle,
    kind: HandleKind,
    registration: Option<&'a Registration>,
    borrow: PhantomData<&'a ()>,
}

impl<'a> AnyHandle<'a> {
    pub(crate) fn new(raw: RawHandle, kind: HandleKind) -> Self {
        Self { raw, kind, registration: None, borrow: PhantomData }
    }

    /// The handle's value.
    pub fn id(&self) -> HandleId {
        HandleId::new(self.raw)
    }

    /// The handle as the calls take it; a `SOCKET` is its address (`as usize`).
    pub fn raw(&self) -> RawHandle {
        self.raw
    }

    /// Whose calls it takes.
    pub fn kind(&self) -> HandleKind {
        self.kind
    }

    pub(crate) fn registration(&self) -> Option<&'a Registration> {
        self.registration
    }
}

impl fmt::Debug for AnyHandle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({})", self.kind, self.id())
    }
}

/// Anything that has a handle: the standard library's files, pipes and sockets, borrowed and owned
/// handles, [`Registered`], and references to them.
///
/// For a type of another library, pass what its `as_handle()` or `as_socket()` gives. For a raw
/// `HANDLE`, `BorrowedHandle::borrow_raw` is the (unsafe) way in. To let a [`Registered`] own such a
/// type, wrap it (on Unix that takes a second descriptor, as it does for all that is not known to own its
/// handle; see there):
///
/// ```no_run
/// # #[cfg(windows)]
/// # mod windows {
/// # use std::fs::File as Theirs;
/// use std::os::windows::io::AsHandle;
///
/// use ioqueue::{AnyHandle, AsAnyHandle};
///
/// struct Device(Theirs);
///
/// impl AsAnyHandle for Device {
///     fn as_any_handle(&self) -> AnyHandle<'_> {
///         self.0.as_handle().into() // for a socket: as_socket()
///     }
/// }
/// # }
/// ```
///
/// What the standard library got after Rust 1.85, its `PipeReader` and `PipeWriter`, goes in as the `OwnedFd` or `OwnedHandle`
/// that it becomes.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not known to have a handle",
    note = "turn it into an `OwnedFd` (on Windows an `OwnedHandle` or `OwnedSocket`), pass what its `as_fd()`, `as_handle()` \
            or `as_socket()` gives, or implement `AsAnyHandle` for a type of your own"
)]
pub trait AsAnyHandle {
    /// Borrows the handle.
    fn as_any_handle(&self) -> AnyHandle<'_>;

    /// Whether this closes the handle when it is dropped, and nobody else does: as long as it is there, or
    /// was forgotten, the handle is open.
    ///
    /// Calls are made on the strength of that, so it is not for others to say: nobody outside of this
    /// crate can name the argument's type, which an implementation would have to.
    ///
    /// ```compile_fail,E0603
    /// struct Lends<'a>(&'a std::fs::File);
    ///
    /// impl ioqueue::AsAnyHandle for Lends<'_> {
    ///     fn as_any_handle(&self) -> ioqueue::AnyHandle<'_> {
    ///         (*self.0).as_any_handle()
    ///     }
    ///
    ///     fn owns_handle(&self, _: ioqueue::handle::ownership::Asked) -> bool {
    ///         true
    ///     }
    /// }
    /// ```
    #[doc(hidden)]
    fn owns_handle(&self, _: ownership::Asked) -> bool {
        false
    }
}

pub(crate) mod ownership {
    /// Asks an [`AsAnyHandle`](super::AsAnyHandle) whether it owns its handle. A public type that others
    /// have no path to.
    #[derive(Debug, Clone, Copy)]
    pub struct Asked;
}

impl AsAnyHandle for AnyHandle<'_> {
    fn as_any_handle(&self) -> AnyHandle<'_> {
        *self
    }
}

macro_rules! through_reference {
    ($($pointer:ty),*) => {$(
        impl<H: AsAnyHandle + ?Sized> AsAnyHandle for $pointer {
            fn as_any_handle(&self) -> AnyHandle<'_> {
                (**self).as_any_handle()
            }
        }
    )*};
}
through_reference!(&H, &mut H);

macro_rules! through_pointer {
    ($($pointer:ty),*) => {$(
        impl<H: AsAnyHandle + ?Sized> AsAnyHandle for $pointer {
            fn as_any_handle(&self) -> AnyHandle<'_> {
                (**self).as_any_handle()
            }

            fn owns_handle(&self, asked: ownership::Asked) -> bool {
                (**self).owns_handle(asked)
            }
        }
    )*};
}
through_pointer!(Box<H>, Rc<H>, std::sync::Arc<H>);

#[cfg(windows)]
mod std_types {
    use std::os::windows::io::{
        AsHandle, AsRawHandle, AsRawSocket, AsSocket, BorrowedHandle, BorrowedSocket, OwnedHandle,
        OwnedSocket,
    };
    use std::{fs, io, net, process};

    use super::{AnyHandle, AsAnyHandle, HandleKind};

    macro_rules! handles {
        ($($of:ty),*) => {$(
            impl AsAnyHandle for $of {
                fn as_any_handle(&self) -> AnyHandle<'_> {
                    AnyHandle::new(self.as_handle().as_raw_handle(), HandleKind::Handle)
                }
            }
        )*};
    }
    handles!(BorrowedHandle<'_>, OwnedHandle, fs::File, io::Stdin, io::Stdout, io::Stderr);
    handles!(process::ChildStdin, process::ChildStdout, process::ChildStderr);

    macro_rules! sockets {
        ($($of:ty),*) => {$(
            impl AsAnyHandle for $of {
                fn as_any_handle(&self) -> AnyHandle<'_> {
                    let socket = self.as_socket().as_raw_socket();
                    AnyHandle::new(socket as usize as super::RawHandle, HandleKind::Socket)
                }
            }
        )*};
    }
    sockets!(BorrowedSocket<'_>, OwnedSocket, net::TcpStream, net::TcpListener, net::UdpSocket);

    impl<'a> From<BorrowedHandle<'a>> for AnyHandle<'a> {
        fn from(handle: BorrowedHandle<'a>) -> Self {
            Self::new(handle.as_raw_handle(), HandleKind::Handle)
        }
    }

    impl<'a> From<BorrowedSocket<'a>> for AnyHandle<'a> {
        fn from(socket: BorrowedSocket<'a>) -> Self {
            Self::new(socket.as_raw_socket() as usize as super::RawHandle, HandleKind::Socket)
        }
    }
}

#[cfg(unix)]
mod std_types {
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
    use std::os::unix::net as unix;
    use std::ptr::without_provenance_mut;
    use std::{fs, io, net, process};

    use super::{AnyHandle, AsAnyHandle, HandleKind, ownership};

    macro_rules! owners {
        ($kind:ident: $($of:ty),*) => {$(
            impl AsAnyHandle for $of {
                fn as_any_handle(&self) -> AnyHandle<'_> {
                    of_descriptor(self.as_fd(), HandleKind::$kind)
                }

                fn owns_handle(&self, _: ownership::Asked) -> bool {
                    true
                }
            }
        )*};
    }
    owners!(Handle: OwnedFd, fs::File);
    owners!(Handle: process::ChildStdin, process::ChildStdout, process::ChildStderr);
    owners!(Socket: net::TcpStream, net::TcpListener, net::UdpSocket);
    owners!(Socket: unix::UnixStream, unix::UnixListener, unix::UnixDatagram);

    macro_rules! borrowers {
        ($($of:ty),*) => {$(
            impl AsAnyHandle for $of {
                fn as_any_handle(&self) -> AnyHandle<'_> {
                    of_descriptor(self.as_fd(), HandleKind::Handle)
                }
            }
        )*};
    }
    borrowers!(BorrowedFd<'_>, io::Stdin, io::Stdout, io::Stderr);

    fn of_descriptor(fd: BorrowedFd<'_>, kind: HandleKind) -> AnyHandle<'_> {
        let value = usize::try_from(fd.as_raw_fd()).expect("an open descriptor is not negative");
        AnyHandle::new(without_provenance_mut(value), kind)
    }

    impl<'a> From<BorrowedFd<'a>> for AnyHandle<'a> {
        fn from(fd: BorrowedFd<'a>) -> Self {
            of_descriptor(fd, HandleKind::Handle)
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Owned handles

/// What owns a handle and can give it up, so that [`Registered::close`] closes it: the standard library's
/// types that own one. For a type of your own, pass on what it owns.
///
/// ```
/// # use std::fs::File;
/// use ioqueue::{AnyHandle, AsAnyHandle, IntoOwnedHandle, OwnedAnyHandle};
///
/// struct Device(File);
///
/// impl AsAnyHandle for Device {
///     fn as_any_handle(&self) -> AnyHandle<'_> {
///         self.0.as_any_handle()
///     }
/// }
///
/// impl IntoOwnedHandle for Device {
///     fn into_owned_handle(self) -> OwnedAnyHandle {
///         self.0.into_owned_handle()
///     }
/// }
/// ```
pub trait IntoOwnedHandle: AsAnyHandle {
    /// The handle, to be closed by whoever has it.
    fn into_owned_handle(self) -> OwnedAnyHandle;
}

/// An owned handle of any kind. Dropping it closes it.
#[derive(Debug)]
pub struct OwnedAnyHandle(owned::Any);

impl OwnedAnyHandle {
    /// The system's own type.
    pub(crate) fn into_any(self) -> owned::Any {
        self.0
    }
}

#[cfg(unix)]
pub(crate) mod owned {
    use std::os::fd::OwnedFd;
    use std::os::unix::net as unix;
    use std::{fs, net, process};

    use super::{IntoOwnedHandle, OwnedAnyHandle};

    pub(crate) type Any = OwnedFd;

    macro_rules! owners {
        ($($of:ty),*) => {$(
            impl IntoOwnedHandle for $of {
                fn into_owned_handle(self) -> OwnedAnyHandle {
                    OwnedAnyHandle(self.into())
                }
            }
        )*};
    }
    owners!(OwnedFd, fs::File, net::TcpStream, net::TcpListener, net::UdpSocket);
    owners!(unix::UnixStream, unix::UnixListener, unix::UnixDatagram);
    owners!(process::ChildStdin, process::ChildStdout, process::ChildStderr);

    impl From<OwnedFd> for OwnedAnyHandle {
        fn from(fd: OwnedFd) -> Self {
            Self(fd)
        }
    }
}

#[cfg(windows)]
pub(crate) mod owned {
    use std::os::windows::io::{OwnedHandle, OwnedSocket};
    use std::{fs, net, process};

    use super::{IntoOwnedHandle, OwnedAnyHandle};

    /// The two kinds are closed by different calls.
    #[derive(Debug)]
    pub(crate) enum Any {
        Handle(OwnedHandle),
        Socket(OwnedSocket),
    }

    macro_rules! owners {
        ($kind:ident: $($of:ty),*) => {$(
            impl IntoOwnedHandle for $of {
                fn into_owned_handle(self) -> OwnedAnyHandle {
                    OwnedAnyHandle(Any::$kind(self.into()))
                }
            }
        )*};
    }
    owners!(Handle: OwnedHandle, fs::File);
    owners!(Handle: process::ChildStdin, process::ChildStdout, process::ChildStderr);
    owners!(Socket: OwnedSocket, net::TcpStream, net::TcpListener, net::UdpSocket);

    impl From<OwnedHandle> for OwnedAnyHandle {
        fn from(handle: OwnedHandle) -> Self {
            Self(Any::Handle(handle))
        }
    }

    impl From<OwnedSocket> for OwnedAnyHandle {
        fn from(socket: OwnedSocket) -> Self {
            Self(Any::Socket(socket))
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Registered

/// A registration: which queue, which entry of its registry.
pub(crate) struct Registration {
    pub(crate) queue: Rc<Inner>,
    pub(crate) entry: EntryId,
    pub(crate) raw: RawHandle,
    pub(crate) kind: HandleKind,
    /// What a kernel of Unix knows of the handle.
    #[cfg(unix)]
    pub(crate) source: Option<SharedSource>,
    /// It is that of another `Registered`, which lends it, and ends with that.
    is_lent: bool,
    /// What is registered, where who registered it does not own the handle: it is open until the
    /// registration has ended, whatever becomes of the other.
    #[cfg(unix)]
    _duplicate: Option<OwnedFd>,
}

impl Registration {
    pub(crate) fn new(queue: &Rc<Inner>, entry: EntryId, handle: AnyHandle<'_>) -> Self {
        Self {
            queue: Rc::clone(queue),
            entry,
            raw: handle.raw(),
            kind: handle.kind(),
            #[cfg(unix)]
            source: queue.kernel.source(entry),
            is_lent: false,
            #[cfg(unix)]
            _duplicate: None,
        }
    }

    /// Has the system see a send that was begun on the handle and was to wait for others.
    #[cfg(unix)]
    fn hand_over(&self) {
        if self.source.as_ref().is_some_and(|source| source.borrow().is_submitted()) {
            self.queue.kernel.hand_over();
        }
    }

    /// The registration is another's, too, who ends it.
    pub(crate) fn lent(self) -> Self {
        Self { is_lent: true, ..self }
    }

    /// The registration is that of a duplicate.
    #[cfg(unix)]
    pub(crate) fn of_duplicate(self, duplicate: OwnedFd) -> Self {
        Self { _duplicate: Some(duplicate), ..self }
    }
}

/// Owns a handle that is registered with a queue.
///
/// The two misuses that a borrowed handle allows do not compile with it. Waiting before registering
/// needs a `Registered`, which only registering makes:
///
/// ```compile_fail,E0599
/// use std::fs::File;
/// use ioqueue::iocp::{Outcome, Overlapped};
///
/// fn wait_first(file: File, operation: Overlapped<Vec<u8>>) {
///     let _ = file.wait(operation); // A handle by itself has nothing that waits.
/// }
/// ```
///
/// Closing before unregistering needs the handle, which it keeps until it is unregistered:
///
/// ```compile_fail,E0507
/// use std::fs::File;
/// use ioqueue::Registered;
///
/// fn close_first(file: Registered<File>) {
///     drop(*file.get()); // It only lends the handle.
/// }
/// ```
///
/// The same two, the right way round:
///
/// ```no_run
/// use std::fs::File;
/// use ioqueue::{Registered, iocp::Overlapped};
///
/// fn wait_then_close(file: Registered<File>, operation: Overlapped<Vec<u8>>) {
///     let _ = file.wait(operation);
///     drop(file.into_inner());
/// }
/// ```
///
/// Dropping it unregisters the handle (which cancels what is in flight; see
/// [`unregister`](crate::unregister)), then closes it. It never blocks. After its queue is closed,
/// dropping it just closes the handle. Forgetting it leaks the handle, and the memory
/// and the port of its queue. Not `Send`:
/// move the handle with [`into_inner`](Self::into_inner), then register it over there.
///
/// One of a *borrow* (`Registered<&File>`), or of a type of the program's own, which may hold one, can be
/// forgotten, and the handle be closed all the same. On Unix it is a registration of its own, of a
/// duplicate of the descriptor, which it closes when it ends: what waits goes on with the file that was
/// registered. So such a one takes a descriptor more, and where there is none, registering fails with
/// `EMFILE`. (As the close of any descriptor of a file, that ends the record locks of fcntl(2) that the
/// process has on it.)
///
/// On Windows drop such a one before the handle is closed. If it is forgotten instead, a read or a write of
/// a file that waits for its turn may go on with whatever has the handle's value then. Its memory is safe,
/// but what it reads may be somebody else's.
///
/// A handle that two own (in an `Rc`, say) is registered until both are dropped; one that is made of another
/// `Registered`, or of a borrow of that, ends with that one at the latest.
///
/// It keeps the value it registered and never asks the handle for it again, so a type whose
/// `as_handle` changes its answer cannot confuse the queue. Operations on it make no call to check
/// that the handle is still the one that was registered, as those on a borrowed handle do.
pub struct Registered<H> {
    /// Always there, but in `into_inner`.
    handle: Option<H>,
    registration: Registration,
}

impl<H: AsAnyHandle> Registered<H> {
    /// Registers `handle` with the [current](Queue::current) queue.
    ///
    /// # Errors
    /// As [`persist`](crate::persist); the handle comes back in the error.
    pub fn new(handle: H) -> Result<Self, Refused<H>> {
        match Queue::current() {
            Ok(queue) => queue.register(handle),
            Err(error) => Err(Refused::new(error, handle)),
        }
    }
}

impl<H> Registered<H> {
    pub(crate) fn from_parts(handle: H, registration: Registration) -> Self {
        Self { handle: Some(handle), registration }
    }

    pub(crate) fn registration(&self) -> &Registration {
        &self.registration
    }

    /// Lends the handle, for calls of your own.
    ///
    /// A send that was begun on it, and is to share a system call with others (on io_uring), is handed to the system
    /// first, so that what you do comes after it. It is not for what you do with a clone of the handle: await the send
    /// before.
    pub fn get(&self) -> &H {
        #[cfg(unix)]
        self.registration.hand_over();
        self.lend()
    }

    fn lend(&self) -> &H {
        self.handle.as_ref().expect("the handle is there until into_inner")
    }

    /// The handle's value.
    pub fn id(&self) -> HandleId {
        HandleId::new(self.registration.raw)
    }

    /// Unregisters the handle and gives it back, open.
    ///
    /// What is in flight on it is cancelled, as [`unregister`](crate::unregister) says. Whether it
    /// can be registered with another queue afterwards depends on the system (Windows 8.1 and
    /// later, nothing left in flight).
    pub fn into_inner(mut self) -> H {
        self.handle.take().expect("the handle is there until into_inner")
    }

    /// Ends the registration now, and gives the handle back before the rest is dropped.
    pub(crate) fn take_apart(&mut self) -> H {
        self.registration.queue.unregister(self.registration.entry);
        self.handle.take().expect("the handle is there until into_inner")
    }
}

impl<H> Drop for Registered<H> {
    fn drop(&mut self) {
        let Registration { queue, entry, is_lent, .. } = &self.registration;
        let is_last = !is_lent && queue.registry.borrow_mut().disown(*entry);
        if is_last {
            queue.unregister(*entry);
        }
    }
}

impl<H> AsAnyHandle for Registered<H> {
    fn as_any_handle(&self) -> AnyHandle<'_> {
        AnyHandle {
            raw: self.registration.raw,
            kind: self.registration.kind,
            registration: Some(&self.registration),
            borrow: PhantomData,
        }
    }
}

impl<H: fmt::Debug> fmt::Debug for Registered<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered")
            .field("handle", self.lend())
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}

// ---------------------------------------------------------------------------------------------
// What persist says

/// How a handle is registered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Persist {
    /// Leave packets on for operations that succeed at once.
    ///
    /// By default they are skipped where that is safe (`FILE_SKIP_COMPLETION_PORT_ON_SUCCESS`): the
    /// result is at hand, so the trip through the port is saved. The mode is for ever, per file
    /// object, and shared by duplicates: leave it on for a handle that other code also uses with a
    /// completion port of its own.
    pub keep_packets: bool,
}

impl Persist {
    /// Keeps packets on success.
    pub fn keep_packets() -> Self {
        Self { keep_packets: true }
    }
}

/// Why a handle was not registered. Nothing is half-registered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PersistError {
    handle: HandleId,
    reason: PersistFailure,
}

/// The reason in a [`PersistError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PersistFailure {
    /// The value names no open handle, or something that does no I/O (an event, a process).
    InvalidHandle,
    /// The handle was opened for synchronous use.
    NotOverlapped,
    /// The handle is bound to a completion port already, and not known to be bound to this queue's.
    AlreadyBound,
    /// Registered with another queue of this thread.
    WrongQueue,
    /// The queue is closed.
    Closed,
    /// Anything else the system says, as its error code.
    Os(i32),
}

impl PersistError {
    pub(crate) fn new(handle: HandleId, reason: PersistFailure) -> Self {
        Self { handle, reason }
    }

    /// The error behind an [`io::Error`], if that is what it is.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }

    /// The handle.
    pub fn handle(&self) -> HandleId {
        self.handle
    }

    /// Why.
    pub fn reason(&self) -> PersistFailure {
        self.reason
    }
}

impl fmt::Display for PersistError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { handle, reason } = self;
        write!(f, "cannot persist handle {handle}: ")?;
        match reason {
            PersistFailure::InvalidHandle => {
                f.write_str("it is closed, or not a file, pipe, device or socket")
            }
            PersistFailure::NotOverlapped => f.write_str(
                "it was opened for synchronous use: open it with FILE_FLAG_OVERLAPPED (a socket: \
                 WSA_FLAG_OVERLAPPED)",
            ),
            PersistFailure::AlreadyBound => f.write_str(
                "it is bound to a completion port already, or could not be taken off this queue's: \
                 unregister it there first (before Windows 8.1 a handle stays bound until it is \
                 closed)",
            ),
            PersistFailure::WrongQueue => f.write_str(
                "it is registered with another queue of this thread: unregister it there first",
            ),
            PersistFailure::Closed => Closed.fmt(f),
            PersistFailure::Os(code) => io::Error::from_raw_os_error(*code).fmt(f),
        }
    }
}

/// The reason and the sentence: this is what a `main` that returns the error prints.
impl fmt::Debug for PersistError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.reason)
    }
}

impl Error for PersistError {}

impl From<PersistError> for io::Error {
    fn from(error: PersistError) -> Self {
        let kind = match error.reason {
            PersistFailure::InvalidHandle | PersistFailure::NotOverlapped => {
                io::ErrorKind::InvalidInput
            }
            PersistFailure::AlreadyBound | PersistFailure::WrongQueue => {
                io::ErrorKind::AlreadyExists
            }
            PersistFailure::Closed => return Closed.into(),
            PersistFailure::Os(code) => return Self::from_raw_os_error(code),
        };
        Self::new(kind, error)
    }
}

// ---------------------------------------------------------------------------------------------
// The registry

/// Names one registration for ever: an index, and how often the index was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntryId {
    index: u32,
    generation: u32,
}

/// How many bits of a completion key are the index; the rest are the generation.
const INDEX_BITS: u32 = if usize::BITS == 64 { 32 } else { 20 };
const GENERATION_MASK: usize = usize::MAX >> INDEX_BITS;

impl EntryId {
    /// Stands for no registration.
    pub(crate) const NONE: Self = Self { index: u32::MAX, generation: 0 };

    /// Unless it is [`NONE`](Self::NONE).
    #[inline]
    pub(crate) fn exists(self) -> Option<Self> {
        (self.index != Self::NONE.index).then_some(self)
    }

    /// The registration's place in the registry. No other has it while this one, or an operation
    /// that was started under it, is there.
    pub(crate) fn index(self) -> usize {
        self.index as usize
    }

    /// The place that a registration's key speaks of.
    #[cfg(unix)]
    pub(crate) fn index_of_key(key: usize) -> usize {
        (key & (usize::MAX >> (usize::BITS - INDEX_BITS))).wrapping_sub(1)
    }

    /// The completion key: never 0, never all ones.
    pub(crate) fn key(self) -> usize {
        (self.generation as usize & GENERATION_MASK) << INDEX_BITS | (self.index as usize + 1)
    }
}

/// What the registry knows of a handle.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    pub(crate) raw: RawHandle,
    pub(crate) skips: bool,
    pub(crate) mark: Mark,
    /// How many [`Registered`] own it; with any it cannot have been closed.
    pub(crate) owners: u32,
}

struct Entry {
    generation: u32,
    /// The handle's value leads here.
    attached: bool,
    /// `None` on the free list.
    facts: Option<Facts>,
    /// The operations that were started under this registration.
    operations: Option<SlotRef>,
}

/// Which handle values are registered, and what was started on each.
///
/// Looking a handle up is an index into an array: handle values are small.
#[derive(Default)]
pub(crate) struct Registry {
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// Entry index plus one by the handle's place; 0 is none.
    near: Vec<u32>,
    /// The same for values too large for an array.
    far: BTreeMap<usize, u32>,
    attached: usize,
}

/// How many handle values the array covers, in 4 MiB at the most: for handles up to 0x400000, or a
/// million descriptors.
const NEAR: usize = 1 << 20;

/// Where a handle's value stands in the array. Windows' are multiples of four.
fn place_of(raw: RawHandle) -> usize {
    if cfg!(windows) { raw.addr() >> 2 } else { raw.addr() }
}

impl Registry {
    /// The registration a handle value leads to.
    pub(crate) fn lookup(&self, raw: RawHandle) -> Option<EntryId> {
        let place = place_of(raw);
        let index = match self.near.get(place) {
            Some(&index) => index,
            None => self.far.get(&place).copied().unwrap_or(0),
        };
        let index = index.checked_sub(1)?;
        Some(EntryId { index, generation: self.entries[index as usize].generation })
    }

    fn set(&mut self, raw: RawHandle, index: Option<u32>) {
        let place = place_of(raw);
        let value = index.map_or(0, |index| index + 1);
        if place < NEAR {
            if place >= self.near.len() {
                self.near.resize((place + 1).next_power_of_two(), 0);
            }
            self.near[place] = value;
        } else if value == 0 {
            self.far.remove(&place);
        } else {
            self.far.insert(place, value);
        }
    }

    /// An entry for a handle that is about to be bound: its key is needed first.
    pub(crate) fn reserve(&mut self) -> EntryId {
        let index = self.free.pop().unwrap_or_else(|| {
            let index = u32::try_from(self.entries.len()).expect("fewer than 2^32 handles");
            assert!((index as usize) < (1 << (INDEX_BITS - 1)), "too many handles");
            self.entries.push(Entry {
                generation: 0,
                attached: false,
                facts: None,
                operations: None,
            });
            index
        });
        EntryId { index, generation: self.entries[index as usize].generation }
    }

    /// The handle was not bound after all.
    pub(crate) fn give_back(&mut self, id: EntryId) {
        // Even a key that was offered and refused is not used again.
        self.entries[id.index as usize].generation =
            self.entries[id.index as usize].generation.wrapping_add(1);
        self.free.push(id.index);
    }

    /// The handle is bound: its value leads to the entry from now on.
    pub(crate) fn attach(&mut self, id: EntryId, facts: Facts) {
        let entry = &mut self.entries[id.index as usize];
        entry.attached = true;
        entry.facts = Some(facts);
        self.set(facts.raw, Some(id.index));
        self.attached += 1;
    }

    /// The handle is no longer registered. The entry lives on until its operations have ended.
    pub(crate) fn detach(&mut self, id: EntryId) {
        if !self.is_attached(id) {
            return;
        }
        let entry = &mut self.entries[id.index as usize];
        entry.attached = false;
        let facts = entry.facts.expect("an attached entry has facts");
        self.attached -= 1;
        // The value may lead to a newer registration by now.
        if self.lookup(facts.raw) == Some(id) {
            self.set(facts.raw, None);
        }
        self.retire_if_done(id);
    }

    #[inline]
    fn get(&self, id: EntryId) -> Option<&Entry> {
        self.entries.get(id.index as usize).filter(|entry| entry.generation == id.generation)
    }

    #[inline]
    pub(crate) fn is_attached(&self, id: EntryId) -> bool {
        self.get(id).is_some_and(|entry| entry.attached)
    }

    /// Whether a completion key is that of a registration.
    pub(crate) fn has_key(&self, key: usize) -> bool {
        let index = (key & (usize::MAX >> (usize::BITS - INDEX_BITS))).wrapping_sub(1);
        self.entries.get(index).is_some_and(|entry| {
            let id = EntryId { index: index as u32, generation: entry.generation };
            entry.attached && id.key() == key
        })
    }

    pub(crate) fn facts(&self, id: EntryId) -> Option<Facts> {
        self.get(id)?.facts
    }

    /// The registration is a [`Registered`]'s from now on, as well as others'.
    pub(crate) fn own(&mut self, id: EntryId) {
        if let Some(facts) = &mut self.entries[id.index as usize].facts {
            facts.owners += 1;
        }
    }

    /// One of them is gone. True for the last: the registration ends with it.
    pub(crate) fn disown(&mut self, id: EntryId) -> bool {
        if !self.is_attached(id) {
            return false;
        }
        let facts = self.entries[id.index as usize].facts.as_mut();
        let facts = facts.expect("an attached entry has facts");
        facts.owners -= 1;
        facts.owners == 0
    }

    /// How many handles are registered.
    pub(crate) fn len(&self) -> usize {
        self.attached
    }

    #[inline]
    pub(crate) fn link(&mut self, id: EntryId, slot: SlotRef) {
        slot.link(&mut self.entries[id.index as usize].operations);
    }

    /// An operation of the registration has come to its end.
    #[inline]
    pub(crate) fn unlink(&mut self, id: EntryId, slot: SlotRef) {
        slot.unlink(&mut self.entries[id.index as usize].operations);
        self.retire_if_done(id);
    }

    /// The operations of a registration, newest first. `visit` may unlink the one it is given.
    pub(crate) fn operations(&self, id: EntryId) -> impl Iterator<Item = SlotRef> + use<> {
        let mut next = self.get(id).and_then(|entry| entry.operations);
        std::iter::from_fn(move || {
            let slot = next?;
            next = slot.next();
            Some(slot)
        })
    }

    /// Frees an entry that no value and no operation leads to. Its key is never used again, so a
    /// packet that is still queued under it changes nothing.
    #[inline]
    fn retire_if_done(&mut self, id: EntryId) {
        let entry = &mut self.entries[id.index as usize];
        if !entry.attached && entry.operations.is_none() {
            entry.facts = None;
            entry.generation = entry.generation.wrapping_add(1);
            self.free.push(id.index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Q6: values too large for the array are found all the same, and each is one handle's.
    #[test]
    fn a_handle_is_found_by_its_value_however_large() {
        let mut registry = Registry::default();
        let values = [4, 8, NEAR - 4, 4 * (NEAR - 1), 4 * NEAR, usize::MAX >> 2 << 2];
        let values = values.map(std::ptr::without_provenance_mut);
        let ids = values.map(|raw| {
            let id = registry.reserve();
            registry.attach(id, Facts { raw, skips: false, mark: Mark::Mode(Ok(true)), owners: 0 });
            id
        });
        assert_eq!(values.map(|raw| registry.lookup(raw)), ids.map(Some));
        let absent = [12, NEAR - 8, NEAR, 4 * (NEAR - 2), 4 * NEAR + 8]
            .map(std::ptr::without_provenance_mut);
        assert_eq!(absent.map(|raw| registry.lookup(raw)), [None; 5]);
        // The two low bits are the program's (`ntdef.h`, OBJ_HANDLE_TAGBITS); every descriptor counts.
        let tagged = values[3].wrapping_byte_add(1);
        assert_eq!(registry.lookup(tagged), cfg!(windows).then_some(ids[3]));
        for (raw, id) in values.into_iter().zip(ids) {
            registry.detach(id);
            assert_eq!(registry.lookup(raw), None);
            assert!(!registry.is_attached(id));
        }
        assert_eq!(registry.len(), 0);
    }
}
