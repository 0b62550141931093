//! The socket that an accept gives.

#[cfg(unix)]
pub(crate) use std::os::fd::OwnedFd as Owned;
#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
#[cfg(windows)]
pub(crate) use std::os::windows::io::OwnedSocket as Owned;
#[cfg(windows)]
use std::os::windows::io::{AsSocket, BorrowedSocket};

use crate::handle::{AnyHandle, AsAnyHandle, IntoOwnedHandle, OwnedAnyHandle, ownership};
#[cfg(feature = "sim")]
use crate::sim::SimHandle;

/// The socket of a connection that was accepted.
///
/// It converts into the standard library's types (`TcpStream::from(socket)`), and can be registered as it
/// is. Dropping it closes the connection. On `ioqueue::sim` it is a handle of the simulation, and can only be
/// registered.
#[derive(Debug)]
pub struct Socket(Of);

#[derive(Debug)]
enum Of {
    System(Owned),
    #[cfg(feature = "sim")]
    Simulation(SimHandle),
}

impl Socket {
    #[cfg(all(windows, feature = "sim"))]
    pub(crate) fn is_simulated(&self) -> bool {
        matches!(self.0, Of::Simulation(_))
    }

    /// The system's socket.
    pub(crate) fn owned(&self) -> &Owned {
        match &self.0 {
            Of::System(socket) => socket,
            #[cfg(feature = "sim")]
            Of::Simulation(_) => panic!("{SIMULATED}"),
        }
    }
}

#[cfg(feature = "sim")]
const SIMULATED: &str = "a simulated socket is none of the system's";

impl From<Owned> for Socket {
    fn from(socket: Owned) -> Self {
        Self(Of::System(socket))
    }
}

#[cfg(feature = "sim")]
impl From<SimHandle> for Socket {
    fn from(socket: SimHandle) -> Self {
        Self(Of::Simulation(socket))
    }
}

#[cfg(feature = "sim")]
impl TryFrom<Socket> for SimHandle {
    type Error = Socket;

    /// The simulation's handle; a socket of the system comes back.
    fn try_from(socket: Socket) -> Result<Self, Socket> {
        match socket.0 {
            Of::Simulation(socket) => Ok(socket),
            Of::System(_) => Err(socket),
        }
    }
}

impl From<Socket> for Owned {
    /// # Panics
    /// When the socket is a simulated one.
    fn from(socket: Socket) -> Self {
        match socket.0 {
            Of::System(socket) => socket,
            #[cfg(feature = "sim")]
            Of::Simulation(_) => panic!("{SIMULATED}"),
        }
    }
}

macro_rules! converts_into {
    ($($of:ty),*) => {$(
        impl From<Socket> for $of {
            /// # Panics
            /// When the socket is a simulated one.
            fn from(socket: Socket) -> Self {
                Owned::from(socket).into()
            }
        }
    )*};
}
converts_into!(std::net::TcpStream);
#[cfg(unix)]
converts_into!(std::os::unix::net::UnixStream);

/// # Panics
/// Its method does, when the socket is a simulated one.
#[cfg(unix)]
impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.owned().as_fd()
    }
}

/// # Panics
/// Its method does, when the socket is a simulated one.
#[cfg(windows)]
impl AsSocket for Socket {
    fn as_socket(&self) -> BorrowedSocket<'_> {
        self.owned().as_socket()
    }
}

impl AsAnyHandle for Socket {
    fn as_any_handle(&self) -> AnyHandle<'_> {
        match &self.0 {
            Of::System(socket) => socket.as_any_handle(),
            #[cfg(feature = "sim")]
            Of::Simulation(socket) => socket.as_any_handle(),
        }
    }

    fn owns_handle(&self, asked: ownership::Asked) -> bool {
        match &self.0 {
            Of::System(socket) => socket.owns_handle(asked),
            #[cfg(feature = "sim")]
            Of::Simulation(socket) => socket.owns_handle(asked),
        }
    }
}

impl IntoOwnedHandle for Socket {
    /// # Panics
    /// When the socket is a simulated one.
    fn into_owned_handle(self) -> OwnedAnyHandle {
        Owned::from(self).into()
    }
}
