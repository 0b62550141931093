//! An operation as data: what every kernel can be asked to do.
//!
//! Each kernel has one function that is a `match` over this. What the pointers lead to belongs to the
//! operation (or, for a call that is made at once, to whoever makes it).

use crate::op::{Accepted, Datagram, Event, IoPart, PeerAddress, Shutdown};

/// One call.
#[derive(Clone, Copy)]
pub(crate) enum Call {
    /// None that this enum describes: an overlapped call that somebody made.
    Overlapped,
    /// Reads on from where the last one ended, or what comes next on a stream.
    Read { at: *mut u8, length: usize },
    /// Writes on from where the last one ended, or next on a stream.
    Write { at: *const u8, length: usize },
    /// Reads at a place in a file.
    ReadAt { at: *mut u8, length: usize, offset: u64 },
    /// Writes at a place in a file.
    WriteAt { at: *const u8, length: usize, offset: u64 },
    /// As `Read`, into several buffers.
    ReadVectored { parts: *const IoPart, count: usize },
    /// As `Write`, from several buffers.
    WriteVectored { parts: *const IoPart, count: usize },
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
    Sync { data_only: bool },
    /// Waits until the handle is ready for something.
    Ready { event: Event },
}

/// One of a handle's two directions, within which calls keep their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    In,
    Out,
}

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
            | Self::Ready { event: Event::Write } => Direction::Out,
        }
    }

    /// Whether a call at a place of a file has moved less than it might, where the rest may have to be
    /// waited for.
    #[cfg(unix)]
    pub(crate) fn is_cut_short(self, count: u32) -> bool {
        match self {
            Self::ReadAt { length, .. } | Self::WriteAt { length, .. } => {
                count > 0 && count < super::unix::cut(length)
            }
            _ => false,
        }
    }

    /// Whether it takes what has come on a stream.
    #[cfg(unix)]
    pub(crate) fn receives(self) -> bool {
        matches!(self, Self::Read { .. } | Self::Receive { .. } | Self::ReadVectored { .. })
    }

    /// Whether it goes on where the last call ended, so that two at once would mix their bytes.
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
