//! An operation as data: what every kernel can be asked to do.
//!
//! Each kernel has one function that is a `match` over this. What the pointers lead to belongs to the
//! operation (or, for a call that is made at once, to whoever makes it).

use std::io;

#[cfg(windows)]
use crate::nt::windows::readiness::Poll;
use crate::op::{Accepted, Closing, Datagram, Event, IoPart, PeerAddress, Shutdown};

/// One call.
#[derive(Clone, Copy)]
pub(crate) enum Call {
    /// None that this enum describes.
    #[cfg(unix)]
    Overlapped,
    /// Reads on from where the last one ended, or what comes next on a stream.
    Read { at: *mut u8, length: usize },
    /// Writes on from where the last one ended, or next on a stream.
    Write { at: *const u8, length: usize },
    /// Reads at a place in a file.
    ReadAt { at: *mut u8, length: usize, offset: u64 },
    /// Writes at a place in a file.
    WriteAt { at: *const u8, length: usize, offset: u64 },
    /// As `Read`, into several buffers; or one in their place, where only one will do.
    ReadVectored { parts: *const IoPart, count: usize, gathered: *mut Vec<u8> },
    /// As `Write`, from several buffers; or one in their place, where only one will do.
    WriteVectored { parts: *const IoPart, count: usize, gathered: *mut Vec<u8> },
    /// Receives on a socket.
    Receive { at: *mut u8, length: usize },
    /// Sends on a connected socket.
    Send { at: *const u8, length: usize },
    /// Receives one datagram, and who sent it.
    ReceiveFrom { datagram: *mut Datagram },
    /// Sends one datagram to somebody.
    SendTo { datagram: *mut Datagram },
    /// Takes a connection off a listening socket.
    Accept { accepted: *mut Accepted },
    /// Connects a socket.
    Connect { peer: *const PeerAddress },
    /// Ends one or both directions of a connection.
    Shutdown { how: Shutdown },
    /// Puts what was written on the disk.
    Sync {
        #[cfg_attr(not(unix), allow(dead_code, reason = "Windows knows no difference"))]
        data_only: bool,
    },
    /// Closes a handle that is registered no more.
    Close { closing: *mut Closing },
    /// Waits until the handle is ready for something.
    Ready {
        event: Event,
        /// Where Windows says what for.
        #[cfg(windows)]
        poll: *mut Option<Poll>,
    },
}

/// One of a handle's two directions, within which calls keep their order.
#[cfg(unix)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    In,
    Out,
}

#[cfg(unix)]
impl Call {
    /// The direction in which the call moves something.
    pub(crate) fn direction(self) -> Direction {
        match self {
            Self::Overlapped
            | Self::Read { .. }
            | Self::ReadAt { .. }
            | Self::ReadVectored { .. }
            | Self::Receive { .. }
            | Self::ReceiveFrom { .. }
            | Self::Accept { .. }
            | Self::Ready {
                event: Event::Read | Event::PriorityRead | Event::Hangup | Event::Error,
            } => Direction::In,
            Self::Write { .. }
            | Self::WriteAt { .. }
            | Self::WriteVectored { .. }
            | Self::Send { .. }
            | Self::SendTo { .. }
            | Self::Connect { .. }
            | Self::Shutdown { .. }
            | Self::Sync { .. }
            | Self::Close { .. }
            | Self::Ready { event: Event::Write } => Direction::Out,
        }
    }

    /// Whether a call at a place of a file has moved less than it might, where the rest may have to be
    /// waited for.
    #[inline(always)]
    pub(crate) fn is_cut_short(self, count: u32) -> bool {
        match self {
            Self::ReadAt { length, .. } | Self::WriteAt { length, .. } => {
                count > 0 && count < super::unix::cut(length)
            }
            _ => false,
        }
    }

    /// Whether it says where in a file it takes place, so that it overtakes nothing.
    #[inline(always)]
    pub(crate) fn has_a_place(self) -> bool {
        matches!(self, Self::ReadAt { .. } | Self::WriteAt { .. })
    }

    /// Whether a socket's call waits for the edge, and is made then. The others are begun first, or make
    /// none.
    #[inline]
    pub(crate) fn waits_for_the_edge(self) -> bool {
        self.is_sequential() || matches!(self, Self::ReceiveFrom { .. } | Self::SendTo { .. })
    }

    /// Whether it takes what has come on a stream.
    #[inline]
    pub(crate) fn receives(self) -> bool {
        matches!(self, Self::Read { .. } | Self::Receive { .. } | Self::ReadVectored { .. })
    }

    /// Whether it puts something on a stream.
    #[inline]
    pub(crate) fn sends(self) -> bool {
        matches!(self, Self::Write { .. } | Self::Send { .. } | Self::WriteVectored { .. })
    }

    /// Whether it sends from one buffer, and `count` is less than there is.
    #[cfg(target_os = "linux")]
    #[inline(always)]
    pub(crate) fn is_short_send(self, count: u32) -> bool {
        match self {
            Self::Send { length, .. } | Self::Write { length, .. } => (count as usize) < length,
            _ => false,
        }
    }

    /// Whether it writes where the last call ended.
    #[cfg(target_os = "linux")]
    pub(crate) fn writes_on(self) -> bool {
        matches!(self, Self::Write { .. } | Self::WriteVectored { .. })
    }

    /// Whether it is such a write, and `count` is less than it was to write.
    ///
    /// # Safety
    /// What it points to is valid.
    #[cfg(target_os = "linux")]
    pub(crate) unsafe fn got_stuck(self, count: u32) -> bool {
        let length = match self {
            Self::Write { length, .. } => length,
            // SAFETY: passed on.
            Self::WriteVectored { parts, count, .. } => unsafe {
                let parts = std::slice::from_raw_parts(parts, count);
                parts.iter().map(|part| part.iov_len).sum()
            },
            _ => return false,
        };
        count > 0 && count < super::unix::cut(length)
    }

    /// Whether it goes on where the last call ended, so that two at once would mix their bytes.
    #[inline]
    pub(crate) fn is_sequential(self) -> bool {
        matches!(
            self,
            Self::Read { .. }
                | Self::Write { .. }
                | Self::ReadVectored { .. }
                | Self::WriteVectored { .. }
                | Self::Receive { .. }
                | Self::Send { .. }
                | Self::Shutdown { .. }
        )
    }
}

/// Why a kernel does not even try a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The kernel has no completion port, for which the call is.
    NoOverlapped,
    /// Only what was written to a file can be put on a disk.
    NoFile,
    /// A completion port tells only of sockets whether they are ready.
    NoReadiness,
    /// Windows confuses two such waits on one socket.
    OneWait,
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        use io::ErrorKind::{InvalidInput, ResourceBusy, Unsupported};
        let (kind, why) = match refusal {
            Refusal::NoOverlapped => (
                Unsupported,
                "this queue's kernel knows no OVERLAPPED: use the operations of Registered",
            ),
            Refusal::NoFile => (InvalidInput, "only files can be synced"),
            Refusal::NoReadiness => {
                (Unsupported, "on Windows only sockets say whether they are ready")
            }
            Refusal::OneWait => (
                ResourceBusy,
                "on Windows a socket takes one wait for readiness at a time, besides those of a \
                 connection for Read",
            ),
        };
        Self::new(kind, why)
    }
}
