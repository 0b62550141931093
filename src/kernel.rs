//! The line between the queue and an operating system.
//!
//! A kernel is chosen when the queue is made and paid for once: one `match`, no `dyn`.

pub(crate) mod iocp;
pub(crate) mod owner;

use std::io;
#[cfg(any(windows, feature = "sim"))]
use std::sync::Arc;
use std::time::Duration;

use windows_sys::Win32::System::IO::OVERLAPPED;

use self::iocp::packet::Packet;
use self::iocp::{BindError, Binding, Identity, Mark};
#[cfg(any(windows, feature = "sim"))]
use self::iocp::{CompletionPort, post_wake};
use crate::handle::{HandleKind, RawHandle};
#[cfg(feature = "sim")]
use crate::nt::sim;
#[cfg(windows)]
use crate::nt::windows::{Port, Windows};

/// The kernel a queue works on.
pub(crate) enum Kernel {
    /// A completion port of the Windows this program runs on.
    #[cfg(windows)]
    Windows(CompletionPort<Windows>),
    /// One of a simulated Windows.
    #[cfg(feature = "sim")]
    Sim(CompletionPort<sim::Simulated>),
}

/// Does the same with whichever kernel it is.
macro_rules! with {
    ($kernel:expr, $port:ident => $answer:expr) => {
        match *$kernel {
            #[cfg(windows)]
            Kernel::Windows(ref $port) => $answer,
            #[cfg(feature = "sim")]
            Kernel::Sim(ref $port) => $answer,
        }
    };
}

impl Kernel {
    /// The kernel of this system.
    pub(crate) fn new() -> io::Result<Self> {
        #[cfg(windows)]
        return Ok(Self::Windows(CompletionPort::new(Windows)?));
        #[cfg(not(windows))]
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "ioqueue has no kernel for this system yet: it runs on Windows' completion ports",
        ));
    }

    /// What wakes this kernel's queue, from any thread.
    pub(crate) fn alarm(&self) -> Alarm {
        match *self {
            #[cfg(windows)]
            Self::Windows(ref port) => Alarm::Windows(Arc::clone(port.port())),
            #[cfg(feature = "sim")]
            Self::Sim(ref port) => Alarm::Sim(Arc::clone(port.port())),
        }
    }

    pub(crate) fn bind(
        &self,
        handle: RawHandle,
        kind: HandleKind,
        key: usize,
        keep_packets: bool,
    ) -> Result<Binding, BindError> {
        with!(self, port => port.bind(handle, kind, key, keep_packets))
    }

    pub(crate) fn unbind(&self, handle: RawHandle) -> bool {
        with!(self, port => port.unbind(handle))
    }

    pub(crate) fn identity(&self, handle: RawHandle, mark: Mark) -> Identity {
        with!(self, port => port.identity(handle, mark))
    }

    pub(crate) fn cancel(&self, handle: RawHandle, overlapped: *mut OVERLAPPED) -> bool {
        with!(self, port => port.cancel(handle, overlapped))
    }

    pub(crate) fn dequeue(&self, timeout_ms: u32, sink: impl FnMut(Packet)) -> io::Result<()> {
        with!(self, port => port.dequeue(timeout_ms, sink))
    }

    pub(crate) fn now(&self) -> Duration {
        with!(self, port => port.now())
    }

    pub(crate) fn coarse_now(&self) -> Duration {
        with!(self, port => port.coarse_now())
    }
}

/// Wakes a queue that waits in its kernel. Keeps the port open for as long as it exists.
pub(crate) enum Alarm {
    /// Posts to a completion port.
    #[cfg(windows)]
    Windows(Arc<Port>),
    /// Posts to a simulated one.
    #[cfg(feature = "sim")]
    Sim(Arc<sim::Port>),
}

impl Alarm {
    /// Fails where the kernel has no memory for a packet (pitfall 15).
    pub(crate) fn ring(&self) -> io::Result<()> {
        match *self {
            #[cfg(windows)]
            Self::Windows(ref port) => post_wake::<Windows>(port),
            #[cfg(feature = "sim")]
            Self::Sim(ref port) => post_wake::<sim::Simulated>(port),
        }
    }

    /// The completion port.
    #[cfg(windows)]
    pub(crate) fn port(&self) -> &Port {
        match self {
            Self::Windows(port) => port,
            #[cfg(feature = "sim")]
            Self::Sim(_) => panic!("a simulated queue has no port that Windows knows"),
        }
    }
}
