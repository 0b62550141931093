//! Overlapped operations: start one with the OVERLAPPED the queue gives, and await its end.
//!
//! Three ways, from the shortest to the one with the most control:
//!
//! - [`submit`] makes the OVERLAPPED, calls a closure that starts the operation, and waits. It sees
//!   the call's outcome, so nothing is guessed.
//! - [`Overlapped::start`] only starts it, and [`wait`] awaits it later; [`Overlapped::as_ptr`] gives
//!   the pointer for a call you make yourself.
//! - [`wait_with`] parks a continuation of another event loop instead of a future.
//!
//! The module knows Windows' types everywhere and Windows' calls nowhere, so it compiles, and can be
//! tested, on every system.

#[cfg(unix)]
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::io;
use std::mem::ManuallyDrop;
use std::panic::Location;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use windows_sys::Win32::Foundation as win;
use windows_sys::Win32::Networking::WinSock::{WSAEMSGSIZE, WSAESHUTDOWN};
pub use windows_sys::Win32::System::IO::OVERLAPPED;

use crate::Queue;
use crate::continuation::Continuation;
use crate::error::{Closed, NtStatus, Refused};
use crate::handle::{
    AnyHandle, AsAnyHandle, HandleId, Persist, PersistError, RawHandle, Registered, Registration,
};
#[cfg(unix)]
use crate::kernel::call::Call;
use crate::kernel::call::Refusal;
#[cfg(unix)]
use crate::kernel::{source::Source, unix};
use crate::misuse::Misuse;
use crate::op::{Close, Request};
use crate::operation::{ENDED_AT_ONCE, Ending, OutOfMemory, SlotRef, State, Ticket};
use crate::queue::Inner;
use crate::time::Sleep;
use crate::trace::event;

/// What a call that starts an operation returned.
///
/// Made right after the call, before anything else can change the thread's last error (pitfall 9):
///
/// ```no_run
/// # #[cfg(windows)]
/// # fn start(handle: ioqueue::RawHandle, buffer: *mut u8, overlapped: *mut ioqueue::iocp::OVERLAPPED) {
/// # use {ioqueue::iocp::Outcome, windows_sys::Win32::Storage::FileSystem::ReadFile};
/// let outcome = Outcome::from_bool(unsafe {
///     ReadFile(handle, buffer, 512, std::ptr::null_mut(), overlapped)
/// });
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome(Told);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// In flight: a packet will come.
    Pending,
    /// Ended at once, unless the status word says otherwise. Whether a packet comes depends on the
    /// handle's modes.
    Finished,
    /// Ended at once, and no packet comes whatever the modes.
    FinishedForGood,
    /// Took place, with a remark; whether a packet comes cannot be known (pitfalls 3 and 55). Unless
    /// the status word was not touched: then it was refused.
    Warned(NtStatus),
    /// Nothing was started.
    Failed(u32),
    /// Nothing was even tried.
    Refused(Refusal),
}

impl Outcome {
    /// The call said that the operation is in flight (`ERROR_IO_PENDING`).
    pub const PENDING: Self = Self(Told::Pending);

    /// The call said that the operation has ended with success, and the OVERLAPPED says how.
    ///
    /// If the OVERLAPPED says that the kernel still has it, that is believed: some calls
    /// (`ReadDirectoryChangesW`) answer with success when the operation is merely in flight.
    pub const FINISHED: Self = Self(Told::Finished);

    /// The call said that the operation has ended with success; the OVERLAPPED does not say so, and
    /// no packet comes. This is for calls that are known to behave like that: if it is not true, the
    /// kernel writes to memory that was freed.
    pub const FINISHED_SILENTLY: Self = Self(Told::FinishedForGood);

    /// From a Win32 or Winsock error code that the call left behind.
    ///
    /// - `ERROR_IO_PENDING`: in flight.
    /// - `ERROR_PIPE_CONNECTED` (`ConnectNamedPipe`): finished, and no packet comes (pitfall 8).
    /// - `ERROR_MORE_DATA`, `WSAEMSGSIZE` and the other warnings: the operation took place
    ///   (pitfall 3), or was refused if the OVERLAPPED says nothing of it: a datagram that is too
    ///   big to send is `WSAEMSGSIZE` too.
    /// - Anything else: nothing was started.
    pub const fn from_error(code: u32) -> Self {
        const MESSAGE_SIZE: u32 = WSAEMSGSIZE as u32;
        Self(match code {
            win::ERROR_SUCCESS => Told::Finished,
            win::ERROR_IO_PENDING => Told::Pending,
            win::ERROR_PIPE_CONNECTED => Told::FinishedForGood,
            win::ERROR_MORE_DATA
            | win::ERROR_PARTIAL_COPY
            | win::ERROR_NO_MORE_FILES
            | MESSAGE_SIZE => Told::Warned(NtStatus::from_win32(code)),
            code => Told::Failed(code),
        })
    }

    /// From what a call returned that answers with a `BOOL`: `ReadFile`, `DeviceIoControl`,
    /// `AcceptEx` ... Reads the thread's last error when it is `FALSE`.
    #[cfg(windows)]
    pub fn from_bool(returned: i32) -> Self {
        if returned != 0 { Self::FINISHED } else { Self::from_last_error() }
    }

    /// From what a Winsock call returned that answers with 0 or `SOCKET_ERROR`: `WSARecv`,
    /// `WSASendTo`, `WSAIoctl` ... Reads the thread's last error when it is not 0.
    #[cfg(windows)]
    pub fn from_socket(returned: i32) -> Self {
        if returned == 0 { Self::FINISHED } else { Self::from_last_error() }
    }

    /// The last error of this thread. Winsock's is the same.
    #[cfg(windows)]
    fn from_last_error() -> Self {
        Self::from_error(io::Error::last_os_error().raw_os_error().unwrap_or(0) as u32)
    }

    /// Why nothing was started, if nothing was: then there is nothing to wait for, and
    /// [`into_state`](Overlapped::into_state) takes the state of a call made by hand back.
    ///
    /// `None` for a warning too, which tells of an operation that took place.
    pub fn failure(self) -> Option<io::Error> {
        match self.0 {
            Told::Failed(code) => status_of(code).to_error(),
            Told::Refused(refusal) => Some(refusal.into()),
            Told::Pending | Told::Finished | Told::FinishedForGood | Told::Warned(_) => None,
        }
    }

    /// Whether nothing was started for this reason.
    pub(crate) fn is_error(self, code: u32) -> bool {
        self.0 == Told::Failed(code)
    }

    /// Why nothing was started, or what was remarked on: the status word says which.
    pub(crate) fn failed_status(self) -> Option<NtStatus> {
        match self.0 {
            Told::Failed(code) => Some(status_of(code)),
            Told::Warned(status) => Some(status),
            _ => None,
        }
    }

    /// Nothing was even tried.
    pub(crate) const fn refused(refusal: Refusal) -> Self {
        Self(Told::Refused(refusal))
    }

    /// From an error number of Unix: nothing was started.
    #[cfg(unix)]
    pub(crate) const fn from_errno(errno: i32) -> Self {
        Self(Told::Failed(NtStatus::from_errno(errno).0 as u32))
    }

    /// From an NTSTATUS, as a driver's own API or a native call answers.
    pub const fn from_status(status: i32) -> Self {
        let status = NtStatus(status);
        Self(match status.0 {
            win::STATUS_PENDING => Told::Pending,
            win::STATUS_PIPE_CONNECTED => Told::FinishedForGood,
            _ if status.is_success() => Told::Finished,
            _ if status.is_warning() => Told::Warned(status),
            // The code is mapped when somebody asks.
            other => Told::Failed(other as u32),
        })
    }
}

/// How an operation ended, exactly.
///
/// [`Wait`] gives `(io::Result<u32>, T)`, which is enough for most; [`Wait::exact`] gives this.
#[derive(Debug)]
#[non_exhaustive]
pub struct Completion<T> {
    /// The raw status.
    pub status: NtStatus,
    /// Bytes moved. Valid for success, for warnings (`ERROR_MORE_DATA` keeps its bytes), and for what was
    /// cancelled halfway.
    pub bytes: u32,
    /// What the operation owned.
    pub state: T,
    verdict: Verdict,
}

/// What Winsock says of a socket that its own side has shut down.
const SHUT_DOWN: NtStatus = NtStatus::from_win32(WSAESHUTDOWN as u32);

/// Whether an error is the kernel's word or the queue knows better.
#[derive(Debug, Clone, Copy)]
enum Verdict {
    Kernel,
    Closed,
    Misuse(Misuse),
    /// The handle could not be registered.
    Persist(PersistError),
    Refused(Refusal),
}

impl<T> Completion<T> {
    /// Bytes moved, or the error. A warning is an error here: `ERROR_MORE_DATA` says that the
    /// message was longer than the buffer, with [`bytes`](Self::bytes) in it.
    ///
    /// # Errors
    /// With the code as `raw_os_error`; with a [`Misuse`] when the handle was closed under the
    /// operation; with [`Closed`] when the queue was.
    pub fn result(&self) -> io::Result<u32> {
        match (self.status.to_error(), self.verdict) {
            (None, _) => Ok(self.bytes),
            (Some(_), Verdict::Misuse(misuse)) => Err(misuse.into()),
            (Some(_), Verdict::Closed) => Err(Closed.into()),
            (Some(_), Verdict::Persist(error)) => Err(error.into()),
            (Some(_), Verdict::Refused(refusal)) => Err(refusal.into()),
            (Some(error), Verdict::Kernel) => Err(error),
        }
    }

    /// As [`result`](Self::result) for a read: the end of a file, and a pipe whose other end is
    /// closed, are `Ok(0)`. A reset connection stays an error.
    ///
    /// # Errors
    /// As `result`, otherwise.
    pub fn read_result(&self) -> io::Result<u32> {
        if self.status.is_end_of_file() && matches!(self.verdict, Verdict::Kernel) {
            Ok(0)
        } else {
            self.result()
        }
    }

    /// As `read_result` for a read whose caller wants what came: what is in the buffer counts, also
    /// where the message was longer (pitfall 47). After a shutdown of its own there is nothing more.
    pub(crate) fn received(&self) -> io::Result<u32> {
        match self.verdict {
            Verdict::Kernel if self.has_more_data() => Ok(self.bytes),
            Verdict::Kernel if self.status == SHUT_DOWN => Ok(0),
            _ => self.read_result(),
        }
    }

    /// As `result` for a write: what went out before it was cancelled counts (pitfall 10), and what
    /// nobody will ever read is a broken pipe, on whatever it was written.
    pub(crate) fn sent(&self) -> io::Result<u32> {
        match self.verdict {
            Verdict::Kernel if self.status.is_cancelled() && self.bytes > 0 => Ok(self.bytes),
            Verdict::Kernel if self.status == SHUT_DOWN || self.status.is_end_of_file() => {
                self.result().map_err(|error| match error.kind() {
                    // With the code, where its kind says so already.
                    io::ErrorKind::BrokenPipe => error,
                    _ => io::Error::new(io::ErrorKind::BrokenPipe, error),
                })
            }
            _ => self.result(),
        }
    }

    /// Whether the message was longer than the buffer: the buffer is full, the rest comes next.
    pub fn has_more_data(&self) -> bool {
        self.status.0 == win::STATUS_BUFFER_OVERFLOW
    }

    fn failed(status: NtStatus, verdict: Verdict, state: T) -> Self {
        Self { status, bytes: 0, state, verdict }
    }
}

// ---------------------------------------------------------------------------------------------
// Overlapped

/// An OVERLAPPED and the state it points into, at an address that never changes.
///
/// The state (`T: 'static`: buffers, address storage) is moved into the queue's memory and comes
/// back with the result. While the kernel may have the operation, no reference to the state is
/// formed.
///
/// Small states stand beside the OVERLAPPED and cost no allocation; states over 4 KiB, or aligned to
/// more than 16 bytes, are boxed. Give large buffers as a `Vec` or a `Box`.
///
/// **Dropped while in flight**: the operation is cancelled on its handle, and the memory kept until
/// the kernel is done. Also when forgotten. Not `Send`.
///
/// Whether a call you made yourself started anything, the queue cannot know. If it failed at once
/// (an error other than `ERROR_IO_PENDING` and the warnings), take the state back with
/// [`into_state`](Self::into_state); merely dropping the `Overlapped` then keeps its memory, and that
/// of the operations allocated with it, for good. [`start`](Self::start) and [`submit`] look for
/// themselves.
///
/// If the queue is closed, dropping is still right; [`as_ptr`](Self::as_ptr) is refused.
pub struct Overlapped<T: 'static>(Ticket<T>);

impl<T: 'static> Overlapped<T> {
    /// An operation of the current queue that owns `state`, not started.
    ///
    /// # Errors
    /// When there is no queue, it is closed, or there is no memory; `state` comes back.
    #[track_caller]
    pub fn new(state: T) -> Result<Self, Refused<T>> {
        match Queue::current() {
            Ok(queue) => Self::on(&queue, state),
            Err(error) => Err(Refused::new(error, state)),
        }
    }

    /// An operation of `queue`.
    ///
    /// # Errors
    /// When the queue is closed or there is no memory; `state` comes back.
    #[track_caller]
    pub fn on(queue: &Queue, state: T) -> Result<Self, Refused<T>> {
        Self::create(queue.inner(), state, Location::caller())
    }

    fn create(
        queue: &Rc<Inner>,
        state: T,
        caller: &'static Location<'static>,
    ) -> Result<Self, Refused<T>> {
        if queue.is_closed() {
            return Err(Refused::new(Closed, state));
        }
        if !queue.kernel.has_overlapped() {
            return Err(Refused::new(Refusal::NoOverlapped, state));
        }
        Ticket::new(queue, state, caller).map(Self).map_err(|(OutOfMemory, state)| {
            Refused::new(io::Error::from(io::ErrorKind::OutOfMemory), state)
        })
    }

    /// Sets where in the file the operation takes place, over the full 64 bits.
    ///
    /// # Panics
    /// When the address was given out already.
    #[must_use]
    #[track_caller]
    pub fn at(self, offset: u64) -> Self {
        assert!(
            self.0.slot().state() == State::Idle,
            "the offset is set before as_ptr and start: the operation may be in flight"
        );
        self.0.slot().set_offset(offset);
        self
    }

    /// Where the state is, for the buffer pointers a call takes. Forms no reference.
    ///
    /// Valid until the operation's end takes the state out. While the operation may be in flight
    /// only the kernel may use what it was given of it.
    pub fn state_ptr(&self) -> *mut T {
        self.0.state_ptr()
    }

    /// The state, while the address was not given out.
    pub fn state_mut(&mut self) -> Option<&mut T> {
        if self.0.slot().state() != State::Idle {
            return None;
        }
        // SAFETY: an idle operation's state is the ticket's alone, and `&mut self` is the only way
        // to it. The kernel has not seen it.
        Some(unsafe { &mut *self.0.state_ptr() })
    }

    /// The address for an `lpOverlapped` parameter of **one** call on `handle`.
    ///
    /// From here on the operation counts as possibly in flight. Asking again for the same handle
    /// gives the same address. Cast it (`.cast()`) if your bindings have a type of their own.
    /// `hEvent` is null; set it to an event with its low bit set and no packet comes, so `wait`
    /// would not end.
    ///
    /// Uses of the address are unsafe, and it must not be used after the operation's end. What
    /// [`submit`] asks of its closure goes for the call: but for the offset, nothing is written there
    /// by hand, and no completion routine is passed.
    ///
    /// # Errors
    /// [`Misuse::UnregisteredHandle`] before `persist`, [`Misuse::PrematureClose`] when the handle
    /// was closed under a wait, [`Misuse::WrongQueue`], and [`Misuse::AlreadyWaiting`] when the
    /// operation was started already or the address given out for another handle.
    #[track_caller]
    pub fn as_ptr(&self, handle: &(impl AsAnyHandle + ?Sized)) -> Result<*mut OVERLAPPED, Misuse> {
        let handle = handle.as_any_handle();
        let slot = self.0.slot();
        match slot.state() {
            State::Idle => self.expose(handle, Location::caller())?,
            State::Exposed if slot.handle() == handle.raw() => {
                // The value may have come back for another handle, registered since.
                let entry = self.0.queue().registration(handle, Location::caller())?;
                if slot.entry().is_some_and(|started| started != entry) {
                    return Err(Misuse::already_waiting(handle.id()));
                }
            }
            _ => return Err(Misuse::already_waiting(handle.id())),
        }
        Ok(slot.overlapped())
    }

    /// As [`as_ptr`](Self::as_ptr), for an operation that is started before its handle is
    /// registered. Register the handle, then wait.
    ///
    /// What ends before the handle is registered leaves no packet; `wait` sees it all the same.
    ///
    /// # Errors
    /// [`Misuse::AlreadyWaiting`] when the address was given out for another handle;
    /// [`Misuse::WrongQueue`] when the handle is registered with another queue of this thread.
    #[track_caller]
    pub fn as_ptr_unregistered(
        &self,
        handle: &(impl AsAnyHandle + ?Sized),
    ) -> Result<*mut OVERLAPPED, Misuse> {
        let handle = handle.as_any_handle();
        let slot = self.0.slot();
        match slot.state() {
            // What is registered after all owes a packet.
            State::Idle => match self.expose(handle, Location::caller()) {
                Ok(()) => {}
                // The packet would come where nobody knows the operation.
                Err(misuse @ Misuse::WrongQueue { .. }) => return Err(misuse),
                Err(_) => slot.expose(None, handle.raw()),
            },
            State::Exposed if slot.handle() == handle.raw() => {}
            _ => return Err(Misuse::already_waiting(handle.id())),
        }
        Ok(slot.overlapped())
    }

    /// Idle -> Exposed, under the handle's registration.
    fn expose(
        &self,
        handle: AnyHandle<'_>,
        caller: &'static Location<'static>,
    ) -> Result<(), Misuse> {
        let (queue, slot) = (self.0.queue(), self.0.slot());
        let entry = queue.registration(handle, caller)?;
        slot.expose(Some(entry), handle.raw());
        queue.registry.borrow_mut().link(entry, slot);
        Ok(())
    }

    /// Takes the state back from an operation that was never started.
    ///
    /// # Safety
    /// The kernel does not have it: the address was given to no call, or the one call it was given
    /// to failed at once with an error other than `ERROR_IO_PENDING` (and not a warning such as
    /// `ERROR_MORE_DATA`).
    pub unsafe fn into_state(self) -> T {
        self.unexpose();
        self.0.take().ok().expect("an idle operation has its state")
    }

    /// Exposed -> Idle, or Done stays: the kernel does not have it.
    fn unexpose(&self) {
        let (queue, slot) = (self.0.queue(), self.0.slot());
        if slot.state() == State::Exposed {
            if let Some(entry) = slot.entry() {
                queue.registry.borrow_mut().unlink(entry, slot);
            }
            slot.reset();
        }
    }

    /// Starts the operation: calls `call` once with the handle, the state, and the OVERLAPPED, and
    /// looks at what it returned. Then [`wait`] for it.
    ///
    /// # Errors
    /// What the call failed with, if it started nothing; or a [`Misuse`], and `call` was not called.
    /// The operation is as before then, and can be started again.
    ///
    /// # Panics
    /// With what `call` panics; the operation then counts as possibly in flight.
    ///
    /// # Safety
    /// As [`submit`].
    #[track_caller]
    pub unsafe fn start<C>(
        &mut self,
        handle: &(impl AsAnyHandle + ?Sized),
        call: C,
    ) -> io::Result<()>
    where
        C: FnOnce(RawHandle, *mut T, *mut OVERLAPPED) -> Outcome,
    {
        let handle = handle.as_any_handle();
        let failed = self.begin(handle, overlapped_call(call), Location::caller()).err();
        failed.map_or(Ok(()), |failure| Err(failure.into()))
    }

    fn begin<C>(
        &self,
        handle: AnyHandle<'_>,
        call: C,
        caller: &'static Location<'static>,
    ) -> Result<(), NotStarted>
    where
        C: FnOnce(SlotRef, *mut T) -> Outcome,
    {
        let (queue, slot) = (self.0.queue(), self.0.slot());
        if slot.state() != State::Idle {
            let handle = handle.id();
            return Err(NotStarted::Misuse(Misuse::AlreadyWaiting { handle, caller }));
        }
        if queue.is_closed() {
            return Err(NotStarted::Closed);
        }
        event!(trace, handle = %handle.id(), kind = slot.kind(), "starting");
        self.expose(handle, caller).map_err(NotStarted::Misuse)?;
        match call(slot, self.0.state_ptr()).0 {
            Told::Pending => slot.set_started(),
            // What took place has left its status before the call returned.
            Told::Warned(status) => {
                let is_refused =
                    slot.is_kernels() && !queue.kernel.cancel(slot) && slot.is_kernels();
                if is_refused {
                    self.unexpose();
                    return Err(NotStarted::Call(status));
                }
            }
            // Freeing what the kernel may write to is the worse mistake.
            Told::Finished if slot.is_kernels() => slot.set_started(),
            Told::Finished => {
                let skips = slot.entry().is_some_and(|entry| {
                    queue.registry.borrow().facts(entry).is_some_and(|facts| facts.skips)
                });
                if skips {
                    slot.no_packet_due();
                }
                slot.finish();
            }
            Told::FinishedForGood => {
                slot.no_packet_due();
                slot.finish_with(ENDED_AT_ONCE);
            }
            Told::Failed(code) => {
                self.unexpose();
                return Err(NotStarted::Call(status_of(code)));
            }
            Told::Refused(refusal) => {
                self.unexpose();
                return Err(NotStarted::Refused(refusal));
            }
        }
        Ok(())
    }
}

/// A call of the user's, as the queue makes it.
fn overlapped_call<T, C>(call: C) -> impl FnOnce(SlotRef, *mut T) -> Outcome
where
    C: FnOnce(RawHandle, *mut T, *mut OVERLAPPED) -> Outcome,
{
    |slot, state| call(slot.handle(), state, slot.overlapped())
}

impl<T: 'static> fmt::Debug for Overlapped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlapped").field("state", &self.0.slot().state()).finish_non_exhaustive()
    }
}

/// Why an operation was not started.
enum NotStarted {
    Misuse(Misuse),
    Closed,
    Call(NtStatus),
    Refused(Refusal),
}

impl NotStarted {
    fn verdict(self) -> (NtStatus, Verdict) {
        let refused = NtStatus::from_win32(win::ERROR_INVALID_PARAMETER);
        match self {
            Self::Misuse(misuse) => (refused, Verdict::Misuse(misuse)),
            Self::Closed => (refused, Verdict::Closed),
            Self::Call(status) => (status, Verdict::Kernel),
            Self::Refused(refusal) => (refused, Verdict::Refused(refusal)),
        }
    }
}

impl From<NotStarted> for io::Error {
    fn from(failure: NotStarted) -> Self {
        let (status, verdict) = failure.verdict();
        Completion::failed(status, verdict, ()).result().expect_err("a failure is an error")
    }
}

/// A Win32 code, or an NTSTATUS of error severity as it is.
fn status_of(code: u32) -> NtStatus {
    if code >> 30 == 3 { NtStatus(code as i32) } else { NtStatus::from_win32(code) }
}

// ---------------------------------------------------------------------------------------------
// Waiting

/// A future of an operation's end: `(io::Result<u32>, T)`, the bytes moved and what it owned.
///
/// The end of a file, and a pipe whose other end is closed, are errors here; through
/// [`exact`](Self::exact) and [`Completion::read_result`] they are `Ok(0)`. An error may be
/// [cancelled](crate::error::is_cancelled) or a [`Misuse`] ([`Misuse::of`]).
///
/// The operation was started when this was made and goes on whether it is polled or not. Works under
/// any executor, as long as somebody polls the queue.
///
/// **Dropping it cancels the operation**; its memory stays until the kernel is done.
/// [`cancel`](Self::cancel) can be awaited and loses nothing. Forgetting it leaks what it owns, and
/// the memory and the port of its queue. Not `Send`.
///
/// If the queue is closed meanwhile the result is [`Closed`], or how the operation ended if it was
/// faster.
///
/// # Panics
/// When it is polled after the queue was closed and the kernel did not give the operation back
/// ([`Undrained`](crate::error::Undrained)): its state cannot be given back, ever.
#[must_use = "dropping it cancels the operation"]
pub struct Wait<T: 'static>(Phase<T>);

enum Phase<T: 'static> {
    /// With the queue whose tasks it must not starve.
    Over(Completion<T>, Option<Rc<Inner>>),
    InFlight(Ticket<T>),
    Taken,
}

// Nothing in it is pinned: the memory that must not move is the queue's.
impl<T: 'static> Unpin for Wait<T> {}

impl<T: 'static> Wait<T> {
    /// A wait for what was never started.
    fn failed(queue: &Rc<Inner>, status: NtStatus, verdict: Verdict, state: T) -> Self {
        Self(Phase::Over(Completion::failed(status, verdict, state), Some(Rc::clone(queue))))
    }

    /// Waits for an operation that is Exposed or Done.
    fn watch(ticket: Ticket<T>, caller: &'static Location<'static>) -> Self {
        let (queue, slot) = (Rc::clone(ticket.queue()), ticket.slot());
        if slot.state() == State::Exposed {
            if slot.is_kernels() {
                slot.watch(caller);
                queue.count(slot, true);
                return Self(Phase::InFlight(ticket));
            }
            // The status word is the truth, a packet only a hint (pitfalls 33 and 55).
            slot.watch(caller);
            slot.finish();
            queue.look_for_close(slot);
        }
        let Ok(completion) = conclude(ticket) else { unreachable!("a finished operation is over") };
        Self(Phase::Over(completion, Some(queue)))
    }

    /// Asks for the operation to be cancelled, and waits for how it ended: cancelled, or finished
    /// after all (pitfall 10).
    pub fn cancel(self) -> Cancel<T> {
        if let Phase::InFlight(ticket) = &self.0 {
            ticket.queue().cancel(ticket.slot());
        }
        Cancel(self)
    }

    /// Gives the operation so much time from now; then it is cancelled, and this waits for how that
    /// ended. Nothing is lost: an operation that was faster than its cancel says what it did.
    ///
    /// Where the system does not let an operation be cancelled, this takes as long as the operation.
    pub fn timeout(self, duration: Duration) -> Timeout<T> {
        let sleep = match &self.0 {
            Phase::InFlight(ticket) => Some(Sleep::after(ticket.queue(), duration)),
            Phase::Over(..) | Phase::Taken => None,
        };
        Timeout { wait: self, sleep }
    }

    /// A wait for a portable operation that was launched.
    pub(crate) fn for_ticket(ticket: Ticket<T>) -> Self {
        Self(Phase::InFlight(ticket))
    }

    /// The same wait with the raw status and the bytes that a warning came with.
    pub fn exact(self) -> Exact<T> {
        Exact(self)
    }

    pub(crate) fn poll_completion(&mut self, context: &mut Context<'_>) -> Poll<Completion<T>> {
        match std::mem::replace(&mut self.0, Phase::Taken) {
            Phase::Over(completion, queue) => {
                // A handle that is always ready must not starve the others (pitfall 12).
                if queue.as_ref().is_none_or(|queue| queue.spend()) {
                    return Poll::Ready(completion);
                }
                self.0 = Phase::Over(completion, queue);
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Phase::InFlight(ticket) => {
                let ticket = match conclude(ticket) {
                    Ok(completion) => return Poll::Ready(completion),
                    Err(ticket) => ticket,
                };
                let slot = ticket.slot();
                // Cloning and dropping wakers runs code that may have polled the queue.
                ticket.queue().park(slot, context.waker());
                if slot.state() == State::Done || ticket.queue().has_ended() {
                    drop(slot.take_waiter());
                }
                match conclude(ticket) {
                    Ok(completion) => Poll::Ready(completion),
                    Err(ticket) => {
                        self.0 = Phase::InFlight(ticket);
                        Poll::Pending
                    }
                }
            }
            Phase::Taken => panic!("a wait was polled after its end"),
        }
    }

    /// The outcome, if it is there, without asking anybody.
    fn take(mut self) -> Result<Completion<T>, Self> {
        match std::mem::replace(&mut self.0, Phase::Taken) {
            Phase::Over(completion, _) => Ok(completion),
            Phase::InFlight(ticket) => {
                conclude(ticket).map_err(|ticket| Self(Phase::InFlight(ticket)))
            }
            Phase::Taken => unreachable!("taking a wait's outcome consumes it"),
        }
    }
}

/// The completion of an operation that has ended; otherwise the ticket comes back.
///
/// # Panics
/// When it will never end for us: the queue is gone and the kernel kept the operation.
fn conclude<T: 'static>(ticket: Ticket<T>) -> Result<Completion<T>, Ticket<T>> {
    let (queue, slot) = (Rc::clone(ticket.queue()), ticket.slot());
    match slot.state() {
        State::Done => {}
        State::InFlight | State::Cancelling if queue.has_ended() => {
            assert!(!slot.is_kernels(), "the queue is closed and the kernel kept an operation");
            slot.finish();
            queue.count(slot, false);
        }
        _ => return Err(ticket),
    }
    let Ending { status, bytes } = slot.ending().expect("a finished operation has an ending");
    let verdict = if slot.closed_under() {
        let handle = HandleId::new(slot.handle());
        Verdict::Misuse(Misuse::PrematureClose { handle, caller: slot.caller() })
    } else if queue.is_closed() && status.is_cancelled() {
        Verdict::Closed
    } else {
        Verdict::Kernel
    };
    event!(trace, handle = %HandleId::new(slot.handle()), kind = slot.kind(), %status, bytes, "ended");
    if let Verdict::Misuse(_misuse) = verdict {
        event!(warn, "{_misuse}");
    }
    let Ok(state) = ticket.take() else { unreachable!("a finished operation has its state") };
    Ok(Completion { status, bytes, state, verdict })
}

impl<T: 'static> Future for Wait<T> {
    type Output = (io::Result<u32>, T);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_completion(context).map(|completion| (completion.result(), completion.state))
    }
}

impl<T: 'static> fmt::Debug for Wait<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Phase::Over(..) => "Wait(over)",
            Phase::InFlight(_) => "Wait(in flight)",
            Phase::Taken => "Wait(taken)",
        })
    }
}

/// A [`Wait`] that gives the whole [`Completion`].
#[must_use = "dropping it cancels the operation"]
pub struct Exact<T: 'static>(Wait<T>);

impl<T: 'static> Future for Exact<T> {
    type Output = Completion<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_completion(context)
    }
}

/// An operation with a time limit, made by [`Wait::timeout`]. Its output is
/// [`Cancelled::Cancelled`] when the time was up and the operation was cancelled, and
/// [`Cancelled::Finished`] otherwise. Dropping it is dropping the [`Wait`].
#[must_use = "dropping it cancels the operation"]
pub struct Timeout<T: 'static> {
    wait: Wait<T>,
    /// `None` once the operation was cancelled, or when it was over before it began.
    sleep: Option<Sleep>,
}

impl<T: 'static> Timeout<T> {
    /// Whether the operation was told to end because the time was up.
    pub(crate) fn is_up(&self) -> bool {
        self.sleep.is_none()
    }
}

impl<T: 'static> Future for Timeout<T> {
    type Output = Cancelled<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(completion) = self.wait.poll_completion(context) {
            return Poll::Ready(completion.into());
        }
        let Some(sleep) = &mut self.sleep else { return Poll::Pending };
        if Pin::new(sleep).poll(context).is_pending() {
            return Poll::Pending;
        }
        self.sleep = None;
        if let Phase::InFlight(ticket) = &self.wait.0 {
            ticket.queue().cancel(ticket.slot());
        }
        self.wait.poll_completion(context).map(Cancelled::from)
    }
}

impl<T: 'static> fmt::Debug for Timeout<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeout").field("wait", &self.wait).field("sleep", &self.sleep).finish()
    }
}

macro_rules! debug_as_wait {
    ($($of:ident),*) => {$(
        impl<T: 'static> fmt::Debug for $of<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($of)).field(&self.0).finish()
            }
        }
    )*};
}
debug_as_wait!(Exact, Cancel, Parked);

/// The end of a cancelled operation. Dropping it is dropping the [`Wait`].
#[must_use = "the operation may finish after all: await how it ended"]
pub struct Cancel<T: 'static>(Wait<T>);

/// How an operation ended that was asked to be cancelled.
#[derive(Debug)]
pub enum Cancelled<T> {
    /// It was cancelled. What it had moved until then, if anything, is in the completion.
    Cancelled(Completion<T>),
    /// It finished after all, with success or an error of its own.
    Finished(Completion<T>),
}

impl<T> Cancelled<T> {
    /// The completion, either way.
    pub fn into_completion(self) -> Completion<T> {
        match self {
            Self::Cancelled(completion) | Self::Finished(completion) => completion,
        }
    }
}

impl<T> From<Completion<T>> for Cancelled<T> {
    fn from(completion: Completion<T>) -> Self {
        if completion.status.is_cancelled() {
            Self::Cancelled(completion)
        } else {
            Self::Finished(completion)
        }
    }
}

impl<T: 'static> Future for Cancel<T> {
    type Output = Cancelled<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_completion(context).map(Cancelled::from)
    }
}

/// Waits for an operation that was started with [`Overlapped::as_ptr`] or [`Overlapped::start`].
///
/// The operation may have ended already; the wait is then over at once. If the call that should have
/// started it failed (with an error other than `ERROR_IO_PENDING` and the warnings), do not wait:
/// the queue cannot see that, and the wait would only end with the handle's registration.
///
/// # Errors
/// A [`Misuse`], or [`Closed`]; the [`Overlapped`] comes back in the error, and whatever it is
/// doing goes on.
#[track_caller]
pub fn wait<T: 'static>(
    handle: &(impl AsAnyHandle + ?Sized),
    overlapped: Overlapped<T>,
) -> Result<Wait<T>, Refused<Overlapped<T>>> {
    let caller = Location::caller();
    match may_wait(handle.as_any_handle(), &overlapped.0, caller) {
        Ok(()) => Ok(Wait::watch(overlapped.0, caller)),
        Err(error) => Err(Refused::new(error, overlapped)),
    }
}

/// Parks a continuation until an operation ends: the form for other event loops.
///
/// When the operation has ended, [`poll`](crate::Queue::poll) hands the continuation back, also when
/// it had ended before. The ticket then gives the outcome. A [`Continuation::Key`] costs no
/// allocation.
///
/// # Errors
/// As [`wait`]; the continuation comes back too.
#[track_caller]
pub fn wait_with<T: 'static>(
    continuation: impl Into<Continuation>,
    handle: &(impl AsAnyHandle + ?Sized),
    overlapped: Overlapped<T>,
) -> Result<Parked<T>, Refused<(Continuation, Overlapped<T>)>> {
    let (caller, continuation) = (Location::caller(), continuation.into());
    if let Err(error) = may_wait(handle.as_any_handle(), &overlapped.0, caller) {
        return Err(Refused::new(error, (continuation, overlapped)));
    }
    let queue = Rc::clone(overlapped.0.queue());
    let wait = Wait::watch(overlapped.0, caller);
    match &wait.0 {
        Phase::InFlight(ticket) => drop(ticket.slot().set_waiter(continuation)),
        _ => queue.hand_out(continuation.into()),
    }
    Ok(Parked(wait))
}

/// Whether an operation may be waited for on `handle`; adopts one that was started before its
/// handle was registered.
fn may_wait<T: 'static>(
    handle: AnyHandle<'_>,
    ticket: &Ticket<T>,
    caller: &'static Location<'static>,
) -> io::Result<()> {
    let (queue, slot, id) = (ticket.queue(), ticket.slot(), handle.id());
    if queue.is_closed() {
        return Err(Closed.into());
    }
    if handle.registration().is_some_and(|registration| !Rc::ptr_eq(&registration.queue, queue)) {
        return Err(Misuse::WrongQueue { handle: id, caller }.into());
    }
    if slot.state() == State::Idle || slot.handle() != handle.raw() {
        return Err(Misuse::NotStarted { handle: id, caller }.into());
    }
    match slot.entry() {
        Some(entry) => {
            let over = slot.state() == State::Done;
            if !over && !queue.registry.borrow().is_attached(entry) {
                return Err(Misuse::UnregisteredHandle { handle: id, caller }.into());
            }
        }
        None => {
            let entry = queue.registration(handle, caller)?;
            slot.adopt(entry);
            queue.registry.borrow_mut().link(entry, slot);
        }
    }
    Ok(())
}

/// The ticket for an operation whose continuation is parked in the queue.
///
/// **Dropping it cancels the operation** and drops the continuation, unless the operation has ended:
/// then the continuation is on its way. The memory stays until the kernel is done. Not `Send`. What
/// thread exit and closing the queue do is as for [`Wait`]; keys come back from `poll` then, too.
#[must_use = "dropping it cancels the operation"]
pub struct Parked<T: 'static>(Wait<T>);

impl<T: 'static> Parked<T> {
    /// Whether the outcome is there to be taken.
    pub fn is_over(&self) -> bool {
        match &self.0.0 {
            Phase::InFlight(ticket) => {
                let slot = ticket.slot();
                let is_kernels = slot.is_kernels();
                slot.state() == State::Done || (ticket.queue().has_ended() && !is_kernels)
            }
            Phase::Over(..) | Phase::Taken => true,
        }
    }

    /// The outcome.
    ///
    /// # Errors
    /// The ticket comes back when the operation has not ended.
    pub fn take(self) -> Result<(io::Result<u32>, T), Self> {
        self.take_exact().map(|completion| (completion.result(), completion.state))
    }

    /// The outcome with its raw status.
    ///
    /// # Errors
    /// The ticket comes back when the operation has not ended.
    pub fn take_exact(self) -> Result<Completion<T>, Self> {
        // Also when the queue is closed and the kernel kept the operation.
        if self.is_over() { self.0.take().map_err(Self) } else { Err(self) }
    }

    /// Asks for the operation to be cancelled. The continuation is handed back when it has ended,
    /// one way or the other.
    pub fn cancel(&self) {
        if let Phase::InFlight(ticket) = &self.0.0 {
            ticket.queue().cancel(ticket.slot());
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Submitting

/// Starts an operation on a registered handle and waits for it, in one line.
///
/// `call` gets the handle's value, the address of `state` in the memory where it stays, and the
/// OVERLAPPED; it makes the call and says what that returned:
///
/// ```no_run
/// # #[cfg(windows)]
/// # async fn read(file: &ioqueue::Registered<std::fs::File>) -> std::io::Result<()> {
/// use ioqueue::iocp::{Outcome, submit};
/// use windows_sys::Win32::Storage::FileSystem::ReadFile;
///
/// // SAFETY: one call, with what was given, and what it returned.
/// let (read, buffer) = unsafe {
///     submit(file, vec![0_u8; 4096], |handle, buffer, overlapped| {
///         let buffer = &mut *buffer;
///         let (start, length) = (buffer.as_mut_ptr(), buffer.len() as u32);
///         Outcome::from_bool(ReadFile(handle, start, length, std::ptr::null_mut(), overlapped))
///     })
/// }
/// .await;
/// println!("{:?}", &buffer[..read? as usize]);
/// # Ok(())
/// # }
/// ```
///
/// Everything is started before this returns. What was refused before the call was made (a
/// [`Misuse`], [`Closed`], no memory) is the wait's result, and `state` comes back with it. A
/// handle's operations are started in the order of these calls.
///
/// Any call that takes an `lpOverlapped` will do: `ReadFile`, `DeviceIoControl`, `WSARecv`,
/// `LockFileEx`, `ConnectNamedPipe`, `ReadDirectoryChangesW`, a driver's own. Let what it writes to
/// be part of `state`: buffers, and the address and flag variables that Winsock's calls write when
/// they end. Pass null for "bytes transferred".
///
/// # Panics
/// With what `call` panics; the operation then counts as possibly in flight.
///
/// # Safety
/// - `call` makes exactly one call, with this OVERLAPPED on this handle, and reports what that
///   returned. It passes no completion routine.
/// - It writes nothing in the OVERLAPPED but `Offset` and `OffsetHigh`, and those before the call.
///   The status word in particular is the kernel's: it reads STATUS_PENDING when `call` gets it, and
///   what it says afterwards is believed.
/// - Whatever the kernel is given to write to, or to read, is part of `state` or owned by it (and
///   does not move when `state` is moved), or outlives the operation.
/// - A reference that `call` forms to `state` ends before the kernel may write to what it covers.
#[track_caller]
pub unsafe fn submit<T: 'static, C>(
    handle: &(impl AsAnyHandle + ?Sized),
    state: T,
    call: C,
) -> Wait<T>
where
    C: FnOnce(RawHandle, *mut T, *mut OVERLAPPED) -> Outcome,
{
    // SAFETY: passed on.
    unsafe { submit_at(handle, 0, state, call) }
}

/// As [`submit`], at an offset in the file.
///
/// # Panics
/// As `submit`.
///
/// # Safety
/// As `submit`.
#[track_caller]
pub unsafe fn submit_at<T: 'static, C>(
    handle: &(impl AsAnyHandle + ?Sized),
    offset: u64,
    state: T,
    call: C,
) -> Wait<T>
where
    C: FnOnce(RawHandle, *mut T, *mut OVERLAPPED) -> Outcome,
{
    let caller = Location::caller();
    let handle = handle.as_any_handle();
    if let Some(registration) = handle.registration() {
        return submit_on(&registration.queue, handle, offset, state, call, caller);
    }
    match Queue::current() {
        Ok(queue) => submit_on(queue.inner(), handle, offset, state, call, caller),
        Err(error) => {
            let verdict = if Closed::is(&error) { Verdict::Closed } else { Verdict::Kernel };
            let code = error.raw_os_error().map_or(win::ERROR_NOT_SUPPORTED, |code| code as u32);
            let status = NtStatus::from_win32(code);
            Wait(Phase::Over(Completion::failed(status, verdict, state), None))
        }
    }
}

impl Queue {
    /// As [`iocp::submit`](submit), for a borrowed handle of this queue.
    ///
    /// # Panics
    /// As there.
    ///
    /// # Safety
    /// As there.
    #[track_caller]
    pub unsafe fn submit<T: 'static, C>(
        &self,
        handle: &(impl AsAnyHandle + ?Sized),
        state: T,
        call: C,
    ) -> Wait<T>
    where
        C: FnOnce(RawHandle, *mut T, *mut OVERLAPPED) -> Outcome,
    {
        // SAFETY: passed on.
        unsafe { self.submit_at(handle, 0, state, call) }
    }

    /// As [`iocp::submit_at`](submit_at), for a borrowed handle of this queue.
    ///
    /// # Panics
    /// As [`submit`].
    ///
    /// # Safety
    /// As [`submit`].
    #[track_caller]
    pub unsafe fn submit_at<T: 'static, C>(
        &self,
        handle: &(impl AsAnyHandle + ?Sized),
        offset: u64,
        state: T,
        call: C,
    ) -> Wait<T>
    where
        C: FnOnce(RawHandle, *mut T, *mut OVERLAPPED) -> Outcome,
    {
        let caller = Location::caller();
        submit_on(self.inner(), handle.as_any_handle(), offset, state, call, caller)
    }
}

/// The promise of [`submit`] is its callers'.
fn submit_on<T: 'static, C>(
    queue: &Rc<Inner>,
    handle: AnyHandle<'_>,
    offset: u64,
    state: T,
    call: C,
    caller: &'static Location<'static>,
) -> Wait<T>
where
    C: FnOnce(RawHandle, *mut T, *mut OVERLAPPED) -> Outcome,
{
    if !queue.kernel.has_overlapped() {
        let status = NtStatus::from_win32(win::ERROR_NOT_SUPPORTED);
        let verdict = Verdict::Refused(Refusal::NoOverlapped);
        return Wait::failed(queue, status, verdict, state);
    }
    begin_on(queue, handle, offset, state, |_| overlapped_call(call), caller)
}

/// Makes the operation, starts it, and waits. `prepare` says with which call, before the operation counts
/// as the kernel's: a buffer's code may panic, or close the handle.
fn begin_on<T: 'static, P, C>(
    queue: &Rc<Inner>,
    handle: AnyHandle<'_>,
    offset: u64,
    state: T,
    prepare: P,
    caller: &'static Location<'static>,
) -> Wait<T>
where
    P: FnOnce(*mut T) -> C,
    C: FnOnce(SlotRef, *mut T) -> Outcome,
{
    let overlapped = match Ticket::new(queue, state, caller) {
        Ok(ticket) => Overlapped(ticket),
        Err((OutOfMemory, state)) => {
            let status = NtStatus::from_win32(win::ERROR_NOT_ENOUGH_MEMORY);
            return Wait::failed(queue, status, Verdict::Kernel, state);
        }
    };
    overlapped.0.slot().set_offset(offset);
    let call = prepare(overlapped.0.state_ptr());
    match overlapped.begin(handle, call, caller) {
        Ok(()) => Wait::watch(overlapped.0, caller),
        Err(failure) => {
            let (status, verdict) = failure.verdict();
            let Ok(state) = overlapped.0.take() else { unreachable!("it was not started") };
            Wait::failed(queue, status, verdict, state)
        }
    }
}

/// A portable operation that was started. What is in it is dropped by hand (`op::Operation`), which costs nothing
/// where it was taken.
pub(crate) enum Begun<R: Request> {
    /// It took no waiting, or was refused. None when that was taken.
    Over(ManuallyDrop<Option<R::Output>>),
    /// So it is, but the other tasks come first.
    Yields(ManuallyDrop<R::Output>),
    Waits(ManuallyDrop<Ticket<R>>),
    /// Nothing is left of one that had to wait.
    Taken,
}

impl<R: Request> Begun<R> {
    /// One that is over. What ends at once must not starve the queue's other tasks (pitfall 12).
    #[inline(always)]
    fn over(output: R::Output, queue: &Inner) -> Self {
        if queue.spend() {
            Self::Over(ManuallyDrop::new(Some(output)))
        } else {
            Self::Yields(ManuallyDrop::new(output))
        }
    }

    #[inline(always)]
    pub(crate) fn waits(ticket: Ticket<R>) -> Self {
        Self::Waits(ManuallyDrop::new(ticket))
    }

    fn from_wait(wait: Wait<R>, queue: &Inner) -> Self {
        match wait.0 {
            Phase::Over(completion, _) => Self::over(finish(completion), queue),
            Phase::InFlight(ticket) => Self::waits(ticket),
            Phase::Taken => unreachable!("nobody has polled it"),
        }
    }
}

/// Starts a portable operation on a registered handle, or finishes it, where that takes no waiting.
#[inline(always)]
pub(crate) fn begin_call<H, R: Request>(
    registered: &Registered<H>,
    request: R,
    caller: &'static Location<'static>,
) -> Begun<R> {
    #[cfg(unix)]
    if let Some(source) = &registered.registration().source {
        return begin_at(registered, source, request, caller);
    }
    let queue = &registered.registration().queue;
    submit_call(queue, registered.as_any_handle(), request, caller)
}

/// Starts it on a kernel of Unix.
#[cfg(unix)]
#[inline(always)]
fn begin_at<H, R: Request>(
    registered: &Registered<H>,
    source: &RefCell<Source>,
    mut request: R,
    caller: &'static Location<'static>,
) -> Begun<R> {
    let queue = &registered.registration().queue;
    if R::COLLECTS && queue.collects() && source.borrow().may_be_collected() {
        return launch(registered, source, request, caller, true);
    }
    if !queue.is_closed() {
        // SAFETY: what the call points to is the request's (a promise of Request), which stays where it is
        // until the call has been made.
        if let Some(ending) = unsafe { queue.kernel.attempt(source, request.call()) } {
            return Begun::over(request.finish(ending.result()), queue);
        }
    }
    // What is received is waited for as a rule, what is sent is not.
    if R::READS {
        launch(registered, source, request, caller, false)
    } else {
        launch_late(registered, source, request, caller)
    }
}

/// As `launch`, apart.
#[cfg(unix)]
#[inline(never)]
fn launch_late<H, R: Request>(
    registered: &Registered<H>,
    source: &RefCell<Source>,
    request: R,
    caller: &'static Location<'static>,
) -> Begun<R> {
    launch(registered, source, request, caller, false)
}

/// Starts what takes waiting; what `is_collected` with others of its kind, if nothing speaks against it.
#[cfg(unix)]
#[inline(always)]
fn launch<H, R: Request>(
    registered: &Registered<H>,
    source: &RefCell<Source>,
    request: R,
    caller: &'static Location<'static>,
    is_collected: bool,
) -> Begun<R> {
    let Registration { queue, entry, raw, .. } = registered.registration();
    let ticket = match Ticket::for_launch(queue, request) {
        Ok(ticket) => ticket,
        Err((OutOfMemory, request)) => {
            let no_memory = io::Error::from(io::ErrorKind::OutOfMemory);
            return Begun::over(request.finish(Err(no_memory)), queue);
        }
    };
    let slot = ticket.slot();
    slot.mark(caller, queue.clock());
    let call = call_of(queue, source, &ticket);
    if !queue.is_closed() {
        if is_collected {
            // SAFETY: as below.
            if unsafe { queue.kernel.send(source, slot, *entry, *raw, call) } {
                queue.count(slot, true);
                return Begun::waits(ticket);
            }
            // The buffer's own code has sent something meanwhile. This was not tried, and no edge may come.
            queue.kernel.doubt(source);
        }
        // SAFETY: the request stays where it is until the operation's end, and what the call points to is its
        // own (a promise of Request).
        if let Some(waits) = unsafe { queue.kernel.launch(source, slot, *entry, *raw, call) } {
            queue.count(slot, true);
            if let Err(errno) = waits {
                queue.launch_failed(slot, unix::ending(Err(errno)));
            }
            return Begun::waits(ticket);
        }
    }
    launch_listed(registered, source, ticket, caller)
}

/// What is to be launched. Asked before it counts as the kernel's: a buffer's code may panic, or close the
/// handle. Or poll the queue, which is told then of what came since the call was tried, and once only.
#[cfg(unix)]
#[inline(always)]
fn call_of<R: Request>(queue: &Inner, source: &RefCell<Source>, ticket: &Ticket<R>) -> Call {
    let looks = queue.looks();
    // SAFETY: the request is in the operation's memory now, and nobody else looks at it.
    let call = unsafe { (*ticket.state_ptr()).call() };
    if queue.looks() != looks {
        queue.kernel.doubt(source);
    }
    call
}

/// Starts it, in the list of its registration.
#[cfg(unix)]
#[inline(never)]
fn launch_listed<H, R: Request>(
    registered: &Registered<H>,
    source: &RefCell<Source>,
    ticket: Ticket<R>,
    caller: &'static Location<'static>,
) -> Begun<R> {
    let Registration { queue, entry, raw, .. } = registered.registration();
    let slot = ticket.slot();
    // Asked again, not handed over: a call that is known when this is compiled stays in registers.
    let call = call_of(queue, source, &ticket);
    if !queue.launch(slot, *entry, *raw) {
        let Ok(request) = ticket.take() else { unreachable!("it was not launched") };
        return submit_call(queue, registered.as_any_handle(), request, caller);
    }
    queue.count(slot, true);
    // SAFETY: as in `launch`.
    let outcome = unsafe { queue.kernel.submit(slot, call) };
    match outcome.0 {
        Told::Pending => {}
        Told::Failed(code) => {
            queue.launch_failed(slot, Ending { status: status_of(code), bytes: 0 });
        }
        // The status word says how.
        _ => {
            slot.finish();
            queue.count(slot, false);
        }
    }
    Begun::waits(ticket)
}

/// Closes a handle whose registration has ended.
pub(crate) fn begin_close(
    registration: &Registration,
    close: Close,
    caller: &'static Location<'static>,
) -> Begun<Close> {
    let Registration { queue, raw, .. } = registration;
    // Nobody polls a queue that is closed.
    let ticket = match queue.is_closed() {
        true => Err(close),
        false => Ticket::new(queue, close, caller).map_err(|(OutOfMemory, close)| close),
    };
    let ticket = match ticket {
        Ok(ticket) => ticket,
        Err(close) => return Begun::over(close.now(), queue),
    };
    let slot = ticket.slot();
    // SAFETY: the request is in the operation's memory now, and nobody else looks at it.
    let call = unsafe { (*ticket.state_ptr()).call() };
    slot.launch_alone(*raw);
    queue.count(slot, true);
    // SAFETY: the request stays where it is until the operation's end, and what the call points to is its
    // own (a promise of Request).
    if unsafe { queue.kernel.submit(slot, call) } != Outcome::PENDING {
        slot.finish();
        queue.count(slot, false);
    }
    Begun::waits(ticket)
}

/// The output of a portable operation that has ended; the ticket comes back from one that has not.
pub(crate) fn conclude_call<R: Request>(ticket: Ticket<R>) -> Result<R::Output, Ticket<R>> {
    conclude(ticket).map(finish)
}

/// What a completion is to whoever asked for a portable operation.
pub(crate) fn finish<R: Request>(mut completion: Completion<R>) -> R::Output {
    let result = match (R::READS, R::WRITES) {
        (true, _) => completion.received(),
        (_, true) => completion.sent(),
        _ => completion.result(),
    };
    if completion.has_more_data() {
        completion.state.was_cut();
    }
    completion.state.finish(result)
}

/// Starts a portable operation on a port, or says why not.
#[cold]
fn submit_call<R: Request>(
    queue: &Rc<Inner>,
    handle: AnyHandle<'_>,
    request: R,
    caller: &'static Location<'static>,
) -> Begun<R> {
    let offset = request.offset();
    let prepare = |request: *mut R| {
        // SAFETY: the request is in the operation's memory now, and nobody else looks at it.
        let call = unsafe { (*request).call() };
        // SAFETY: as in `launch`.
        move |slot, _| unsafe { queue.kernel.submit(slot, call) }
    };
    Begun::from_wait(begin_on(queue, handle, offset, request, prepare, caller), queue)
}

/// Waits until any handle is ready, which is registered if it is not.
pub(crate) fn begin_ready<R: Request>(
    queue: &Rc<Inner>,
    handle: AnyHandle<'_>,
    request: R,
    caller: &'static Location<'static>,
) -> Begun<R> {
    if !queue.is_closed() && handle.registration().is_none() {
        if let Err(error) = queue.persist(handle, Persist::default(), false) {
            let status = NtStatus::from_win32(win::ERROR_INVALID_HANDLE);
            let refused = Wait::failed(queue, status, Verdict::Persist(error), request);
            return Begun::from_wait(refused, queue);
        }
    }
    submit_call(queue, handle, request, caller)
}

impl<H> Registered<H> {
    /// An operation of this handle's queue that owns `state`, not started.
    ///
    /// # Errors
    /// As [`Overlapped::on`].
    #[track_caller]
    pub fn overlapped<T: 'static>(&self, state: T) -> Result<Overlapped<T>, Refused<T>> {
        Overlapped::create(&self.registration().queue, state, Location::caller())
    }

    /// As [`iocp::wait`](wait).
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn wait<T: 'static>(
        &self,
        overlapped: Overlapped<T>,
    ) -> Result<Wait<T>, Refused<Overlapped<T>>> {
        wait(self, overlapped)
    }

    /// As [`iocp::submit`](submit).
    ///
    /// # Panics
    /// As there.
    ///
    /// # Safety
    /// As there.
    #[track_caller]
    pub unsafe fn submit<T: 'static, C>(&self, state: T, call: C) -> Wait<T>
    where
        C: FnOnce(RawHandle, *mut T, *mut OVERLAPPED) -> Outcome,
    {
        // SAFETY: passed on.
        unsafe { submit(self, state, call) }
    }

    /// As [`iocp::submit_at`](submit_at).
    ///
    /// # Panics
    /// As there.
    ///
    /// # Safety
    /// As there.
    #[track_caller]
    pub unsafe fn submit_at<T: 'static, C>(&self, offset: u64, state: T, call: C) -> Wait<T>
    where
        C: FnOnce(RawHandle, *mut T, *mut OVERLAPPED) -> Outcome,
    {
        // SAFETY: passed on.
        unsafe { submit_at(self, offset, state, call) }
    }
}
