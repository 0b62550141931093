//! Every misuse of the queue, one enum.

use std::error::Error;
use std::fmt;
use std::io;
use std::panic::Location;

use crate::handle::HandleId;

/// A mistake in the order of calls, told apart instead of hanging.
///
/// Each variant names the handle and the source line of the call that it is about. Misuse is
/// returned, never a panic. It converts into [`io::Error`] (kind `InvalidInput`), from which
/// [`Misuse::of`] gets it back.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misuse {
    /// An operation was started or awaited on a handle before `persist`.
    #[doc(alias = "UnregisteredHandleDefect")]
    UnregisteredHandle {
        /// The handle.
        handle: HandleId,
        /// The call that came too early.
        caller: &'static Location<'static>,
    },
    /// A handle was closed while something waited for it.
    #[doc(alias = "PrematureCloseDefect")]
    PrematureClose {
        /// The value the handle had.
        handle: HandleId,
        /// The wait that it was closed under, or the call that found out.
        caller: &'static Location<'static>,
    },
    /// The same OVERLAPPED is in use for another operation.
    AlreadyWaiting {
        /// The handle.
        handle: HandleId,
        /// The second use.
        caller: &'static Location<'static>,
    },
    /// The handle, or the operation, belongs to another queue of this thread.
    WrongQueue {
        /// The handle.
        handle: HandleId,
        /// The call on the wrong queue.
        caller: &'static Location<'static>,
    },
    /// A wait for an operation that was never started on this handle.
    NotStarted {
        /// The handle.
        handle: HandleId,
        /// The wait.
        caller: &'static Location<'static>,
    },
}

impl Misuse {
    /// An [`UnregisteredHandle`](Self::UnregisteredHandle) for the calling line.
    #[doc(alias = "newUnregisteredHandleDefect")]
    #[track_caller]
    pub fn unregistered_handle(handle: HandleId) -> Self {
        Self::UnregisteredHandle { handle, caller: Location::caller() }
    }

    /// A [`PrematureClose`](Self::PrematureClose) for the calling line.
    #[track_caller]
    pub fn premature_close(handle: HandleId) -> Self {
        Self::PrematureClose { handle, caller: Location::caller() }
    }

    /// An [`AlreadyWaiting`](Self::AlreadyWaiting) for the calling line.
    #[track_caller]
    pub fn already_waiting(handle: HandleId) -> Self {
        Self::AlreadyWaiting { handle, caller: Location::caller() }
    }

    /// A [`WrongQueue`](Self::WrongQueue) for the calling line.
    #[track_caller]
    pub fn wrong_queue(handle: HandleId) -> Self {
        Self::WrongQueue { handle, caller: Location::caller() }
    }

    /// A [`NotStarted`](Self::NotStarted) for the calling line.
    #[track_caller]
    pub fn not_started(handle: HandleId) -> Self {
        Self::NotStarted { handle, caller: Location::caller() }
    }

    /// The misuse behind an [`io::Error`], if that is what it is.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }

    /// The handle it is about.
    pub fn handle(&self) -> HandleId {
        self.parts().0
    }

    /// The source line of the call it is about.
    pub fn caller(&self) -> &'static Location<'static> {
        self.parts().1
    }

    fn parts(&self) -> (HandleId, &'static Location<'static>) {
        match *self {
            Self::UnregisteredHandle { handle, caller }
            | Self::PrematureClose { handle, caller }
            | Self::AlreadyWaiting { handle, caller }
            | Self::WrongQueue { handle, caller }
            | Self::NotStarted { handle, caller } => (handle, caller),
        }
    }
}

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (handle, caller) = self.parts();
        match self {
            Self::UnregisteredHandle { .. } => write!(
                f,
                "handle {handle} is not registered with this queue: call persist(&handle) before \
                 an operation is started on it ({caller})"
            ),
            Self::PrematureClose { .. } => write!(
                f,
                "handle {handle} was closed while something waited for it: call \
                 unregister(&handle) before closing it, or let a Registered own it ({caller})"
            ),
            Self::AlreadyWaiting { .. } => write!(
                f,
                "the OVERLAPPED for handle {handle} is in use: give each operation an Overlapped \
                 of its own ({caller})"
            ),
            Self::WrongQueue { .. } => write!(
                f,
                "handle {handle}, or the operation, belongs to another queue of this thread: make the \
                 operation with the handle's queue, or unregister the handle there first ({caller})"
            ),
            Self::NotStarted { .. } => write!(
                f,
                "no operation was started on handle {handle} with this Overlapped: start it there \
                 with start(&handle, ..), or pass as_ptr(&handle) to the call, then wait ({caller})"
            ),
        }
    }
}

/// The name and the sentence: this is what a `main` that returns the error prints.
impl fmt::Debug for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::UnregisteredHandle { .. } => "UnregisteredHandle",
            Self::PrematureClose { .. } => "PrematureClose",
            Self::AlreadyWaiting { .. } => "AlreadyWaiting",
            Self::WrongQueue { .. } => "WrongQueue",
            Self::NotStarted { .. } => "NotStarted",
        };
        f.debug_tuple(name).field(&format_args!("{self}")).finish()
    }
}

impl Error for Misuse {}

impl From<Misuse> for io::Error {
    fn from(misuse: Misuse) -> Self {
        Self::new(io::ErrorKind::InvalidInput, misuse)
    }
}
