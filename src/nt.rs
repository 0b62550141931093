//! The raw calls the completion-port logic makes of Windows, and nothing else.
//!
//! `kernel/iocp` knows Windows only through [`Nt`]. `windows.rs` makes the real calls. Whatever
//! else implements the trait stands in for the whole operating system, so that the logic that ships
//! can be driven through orders of events that a real system shows once a year.
//!
//! Errors are the numbers the call left behind (a Win32 code or an NTSTATUS), read before any other
//! call could change them (pitfall 9).

use std::io;
use std::time::Duration;

use windows_sys::Win32::System::IO::{OVERLAPPED, OVERLAPPED_ENTRY};

use crate::handle::RawHandle;
use crate::iocp::Outcome;
use crate::kernel::call::Call;

#[cfg(feature = "sim")]
pub(crate) mod sim;
#[cfg(windows)]
pub(crate) mod windows;

/// A Win32 error code, as `GetLastError` gives it.
pub(crate) type Win32Error = u32;

/// What Winsock says of the provider behind a socket (`SO_PROTOCOL_INFOW`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SocketProtocol {
    /// The provider hands out real file handles (`XP1_IFS_HANDLES`, pitfall 2).
    pub(crate) ifs_handles: bool,
    /// The socket carries datagrams (pitfall 1).
    pub(crate) datagrams: bool,
}

/// One Windows: the real one, or a model of it.
pub(crate) trait Nt {
    /// A completion port; dropping the last reference to it closes it. Packets may be posted to it
    /// from any thread.
    type Port: Send + Sync;

    /// Creates a completion port with a concurrency value of 1 (`CreateIoCompletionPort`).
    fn create_port(&self) -> io::Result<Self::Port>;

    /// Binds `handle` to `port` (`CreateIoCompletionPort`).
    fn associate(&self, port: &Self::Port, handle: RawHandle, key: usize)
    -> Result<(), Win32Error>;

    /// Takes `handle` off whatever port it is bound to (`FileReplaceCompletionInformation`,
    /// Windows 8.1 and later). True where it worked.
    fn dissociate(&self, handle: RawHandle) -> bool;

    /// Adds to the handle's notification modes (`SetFileCompletionNotificationModes`). True where
    /// it worked.
    fn set_notification_modes(&self, handle: RawHandle, modes: u8) -> bool;

    /// The handle's notification modes (`FileIoCompletionNotificationInformation`).
    fn notification_modes(&self, handle: RawHandle) -> Result<u32, NtStatusCode>;

    /// The mode the file was opened in (`FileModeInformation`): says whether it is synchronous.
    fn file_mode(&self, handle: RawHandle) -> Result<u32, NtStatusCode>;

    /// What kind of file the handle leads to (`GetFileType`).
    fn file_type(&self, handle: RawHandle) -> u32;

    /// The provider behind a socket, `None` where Winsock does not say.
    fn socket_protocol(&self, socket: RawHandle) -> Option<SocketProtocol>;

    /// Whether a socket listens for connections (`SO_ACCEPTCONN`).
    fn listens(&self, socket: RawHandle) -> bool;

    /// Asks for one operation to be cancelled (`CancelIoEx`). The address is only compared.
    fn cancel(&self, handle: RawHandle, overlapped: *mut OVERLAPPED) -> Result<(), Win32Error>;

    /// Makes the call that `call` describes, with this OVERLAPPED, and says what it returned. `call`
    /// is as its handle takes it ([`Medium::fit`]), and where in a file it takes place stands in the
    /// OVERLAPPED. `flags` is for the flags that Winsock takes and gives.
    ///
    /// # Safety
    /// What `call` points to, the OVERLAPPED and, on Windows, the flags stay valid, and nobody else's,
    /// until the operation's end.
    ///
    /// [`Medium::fit`]: crate::kernel::iocp::medium::Medium::fit
    unsafe fn start(
        &self,
        handle: RawHandle,
        call: Call,
        overlapped: *mut OVERLAPPED,
        flags: *mut u32,
    ) -> Outcome;

    /// Takes packets off the port (`GetQueuedCompletionStatusEx`): how many of `entries` were
    /// filled. `Err(WAIT_TIMEOUT)` when the time is up; may come early (pitfall 4).
    fn dequeue(
        &self,
        port: &Self::Port,
        entries: &mut [OVERLAPPED_ENTRY],
        timeout_ms: u32,
    ) -> Result<usize, Win32Error>;

    /// Queues a packet with this key and no OVERLAPPED (`PostQueuedCompletionStatus`).
    fn post(port: &Self::Port, key: usize) -> Result<(), Win32Error>;

    /// A clock that never goes back.
    fn now(&self) -> Duration;

    /// A clock that costs next to nothing to read, coarse and with a zero of its own: for ages.
    fn coarse_now(&self) -> Duration {
        self.now()
    }
}

/// An NTSTATUS, as the kernel's own calls give it.
pub(crate) type NtStatusCode = i32;
