//! NTSTATUS to `io::Error`, and the errors that are the queue's own.

use std::error::Error;
use std::fmt;
use std::io;

use windows_sys::Win32::Foundation as win;
use windows_sys::Win32::Networking::WinSock as sock;

/// What a cancelled operation ends with on Unix (`ECANCELED`).
#[cfg(unix)]
const CANCELLED: i32 = libc::ECANCELED;
#[cfg(not(unix))]
const CANCELLED: i32 = -1;

/// How the kernel says an operation ended: an NTSTATUS ([MS-ERREF] 2.3).
///
/// The two high bits are the severity: success, information, warning (the operation took place,
/// with a remark), error.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct NtStatus(pub i32);

/// The facility that carries Win32 codes inside an NTSTATUS (`FACILITY_NTWIN32`, [MS-ERREF] 2.3).
const FROM_WIN32: u32 = 0xC007_0000;

/// An `errno` in NTSTATUS clothes: severity error, the bit for codes that are not Microsoft's, and a
/// facility of ours.
#[cfg(unix)]
const FROM_ERRNO: u32 = 0xE0F1_0000;

impl NtStatus {
    /// An error number of Unix, as a status.
    #[cfg(unix)]
    pub(crate) const fn from_errno(errno: i32) -> Self {
        Self((FROM_ERRNO | errno as u32 & 0xFFFF) as i32)
    }

    /// The error number of Unix that it was made from.
    #[cfg(unix)]
    const fn errno(self) -> Option<i32> {
        let status = self.0 as u32;
        if status & 0xFFFF_0000 == FROM_ERRNO { Some((status & 0xFFFF) as i32) } else { None }
    }

    /// Off Unix there is none.
    #[cfg(not(unix))]
    const fn errno(self) -> Option<i32> {
        None
    }

    /// A Win32 error code in NTSTATUS clothes, for a call that failed at once and left only that.
    pub const fn from_win32(code: u32) -> Self {
        Self((FROM_WIN32 | code & 0xFFFF) as i32)
    }

    /// Success or information: the operation did what was asked.
    ///
    /// One code of that severity says something else: that a directory's watch has ended because its
    /// handle was closed (STATUS_NOTIFY_CLEANUP, [MS-ERREF] 2.3.1). It is an error here.
    pub const fn is_success(self) -> bool {
        self.0 >= 0 && self.0 != win::STATUS_NOTIFY_CLEANUP
    }

    /// A warning: the operation took place, and its byte count is valid.
    pub const fn is_warning(self) -> bool {
        (self.0 as u32) >> 30 == 2
    }

    /// Whether the operation ended because it was cancelled.
    pub const fn is_cancelled(self) -> bool {
        self.0 == win::STATUS_CANCELLED
            || self.0 == Self::from_win32(win::ERROR_OPERATION_ABORTED).0
            || matches!(self.errno(), Some(CANCELLED))
    }

    /// Whether there is nothing more to read: the end of a file, or of a pipe whose other end is
    /// closed. For a read that is an end; for a write it is an error.
    pub const fn is_end_of_file(self) -> bool {
        matches!(
            self.0,
            win::STATUS_END_OF_FILE
                | win::STATUS_PIPE_BROKEN
                | win::STATUS_PIPE_EMPTY
                | win::STATUS_PIPE_DISCONNECTED
        ) || self.0 == Self::from_win32(win::ERROR_HANDLE_EOF).0
            || self.0 == Self::from_win32(win::ERROR_BROKEN_PIPE).0
            || self.0 == Self::from_win32(win::ERROR_PIPE_NOT_CONNECTED).0
    }

    /// The Win32 or Winsock code for it.
    ///
    /// Sockets first: `RtlNtStatusToDosError` answers file-sharing codes for them, which is how a
    /// reset connection becomes `ERROR_NETNAME_DELETED` (pitfall 27); Winsock's own mapping is
    /// followed instead.
    pub fn to_win32(self) -> u32 {
        let status = self.0 as u32;
        if status & 0xFFFF_0000 == FROM_WIN32 {
            return match status & 0xFFFF {
                win::ERROR_NETNAME_DELETED => sock::WSAECONNRESET as u32,
                code => code,
            };
        }
        table(self.0).unwrap_or_else(|| fallback(self.0))
    }

    /// The error this status is, `None` for success. `raw_os_error` is [`to_win32`](Self::to_win32);
    /// on the kernels of Unix it is their `errno`.
    pub fn to_error(self) -> Option<io::Error> {
        if self.is_success() {
            return None;
        }
        let code = self.errno().unwrap_or_else(|| self.to_win32() as i32);
        Some(io::Error::from_raw_os_error(code))
    }
}

impl fmt::Debug for NtStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NtStatus({:#010x})", self.0)
    }
}

impl fmt::Display for NtStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

/// The statuses that overlapped operations end with. Winsock's side is from "Windows Sockets Error
/// Codes" and the mapping that AFD's users (libuv's `uv_ntstatus_to_winsock_error`, mio, Wine's
/// `NtStatusToWSAError`) agree on; the rest is from [MS-ERREF] and "Converting NTSTATUS to Win32".
fn table(status: i32) -> Option<u32> {
    let winsock = match status {
        win::STATUS_CONNECTION_RESET
        | win::STATUS_REMOTE_DISCONNECT
        | win::STATUS_CONNECTION_DISCONNECTED
        | win::STATUS_LINK_FAILED
        | win::STATUS_PORT_UNREACHABLE => sock::WSAECONNRESET,
        win::STATUS_CONNECTION_ABORTED
        | win::STATUS_LOCAL_DISCONNECT
        | win::STATUS_TRANSACTION_ABORTED => sock::WSAECONNABORTED,
        win::STATUS_CONNECTION_REFUSED | win::STATUS_REMOTE_NOT_LISTENING => sock::WSAECONNREFUSED,
        win::STATUS_LINK_TIMEOUT => sock::WSAETIMEDOUT,
        win::STATUS_INVALID_CONNECTION => sock::WSAENOTCONN,
        win::STATUS_NETWORK_UNREACHABLE | win::STATUS_PROTOCOL_UNREACHABLE => sock::WSAENETUNREACH,
        win::STATUS_HOST_UNREACHABLE | win::STATUS_BAD_NETWORK_PATH => sock::WSAEHOSTUNREACH,
        win::STATUS_GRACEFUL_DISCONNECT => sock::WSAEDISCON,
        win::STATUS_ADDRESS_ALREADY_EXISTS => sock::WSAEADDRINUSE,
        win::STATUS_INVALID_ADDRESS_COMPONENT => sock::WSAEADDRNOTAVAIL,
        _ => 0,
    };
    if winsock != 0 {
        return Some(winsock as u32);
    }
    Some(match status {
        win::STATUS_SUCCESS => win::ERROR_SUCCESS,
        win::STATUS_PENDING => win::ERROR_IO_PENDING,
        win::STATUS_BUFFER_OVERFLOW => win::ERROR_MORE_DATA,
        win::STATUS_CANCELLED => win::ERROR_OPERATION_ABORTED,
        win::STATUS_HANDLES_CLOSED => win::ERROR_HANDLES_CLOSED,
        win::STATUS_END_OF_FILE => win::ERROR_HANDLE_EOF,
        win::STATUS_PIPE_BROKEN => win::ERROR_BROKEN_PIPE,
        win::STATUS_PIPE_CLOSING | win::STATUS_PIPE_EMPTY => win::ERROR_NO_DATA,
        win::STATUS_PIPE_DISCONNECTED => win::ERROR_PIPE_NOT_CONNECTED,
        win::STATUS_PIPE_CONNECTED => win::ERROR_PIPE_CONNECTED,
        win::STATUS_NOTIFY_ENUM_DIR => win::ERROR_NOTIFY_ENUM_DIR,
        win::STATUS_NOTIFY_CLEANUP => win::ERROR_NOTIFY_CLEANUP,
        win::STATUS_DISK_FULL => win::ERROR_DISK_FULL,
        win::STATUS_ACCESS_DENIED => win::ERROR_ACCESS_DENIED,
        win::STATUS_INVALID_HANDLE => win::ERROR_INVALID_HANDLE,
        win::STATUS_INVALID_PARAMETER => win::ERROR_INVALID_PARAMETER,
        win::STATUS_IO_TIMEOUT => win::ERROR_SEM_TIMEOUT,
        win::STATUS_DEVICE_NOT_CONNECTED => win::ERROR_DEVICE_NOT_CONNECTED,
        win::STATUS_NOT_SUPPORTED => win::ERROR_NOT_SUPPORTED,
        win::STATUS_INSUFFICIENT_RESOURCES => win::ERROR_NO_SYSTEM_RESOURCES,
        win::STATUS_DELETE_PENDING => win::ERROR_DELETE_PENDING,
        _ => return None,
    })
}

/// What the system itself answers for the many statuses the table does not name.
#[cfg(windows)]
fn fallback(status: i32) -> u32 {
    crate::nt::windows::status_to_win32(status)
}

/// Off Windows there is nobody to ask: `ERROR_MR_MID_NOT_FOUND`, as Windows answers for a status it
/// does not know.
#[cfg(not(windows))]
fn fallback(_: i32) -> u32 {
    win::ERROR_MR_MID_NOT_FOUND
}

/// Whether an error says that the operation was cancelled (`ERROR_OPERATION_ABORTED`, `ECANCELED`).
///
/// `io::ErrorKind` has no name for it: on Windows the standard library calls it `TimedOut`.
pub fn is_cancelled(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code == Some(win::ERROR_OPERATION_ABORTED as i32)
        || code == Some(CANCELLED)
        || Closed::is(error)
}

/// The queue was closed: what waited for it was cancelled, and it takes nothing new.
///
/// As an `io::Error` it has the kind `BrokenPipe`, as some errors of connections have: [`Closed::is`] tells.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Closed;

impl Closed {
    /// Whether an [`io::Error`] is this.
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the queue is closed: what it waited for was cancelled")
    }
}

/// With what it says, as a `main` shows it that returns one.
impl fmt::Debug for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Closed({self})")
    }
}

impl Error for Closed {}

impl From<Closed> for io::Error {
    fn from(closed: Closed) -> Self {
        Self::new(io::ErrorKind::BrokenPipe, closed)
    }
}

/// The queue was closed, but the kernel did not give everything back in time.
///
/// What it still has is leaked, never freed: the kernel may write there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undrained {
    /// How many operations the kernel still has.
    pub operations: usize,
}

impl fmt::Display for Undrained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the queue is closed, but the kernel still has {} operation(s); their memory is leaked",
            self.operations
        )
    }
}

impl Error for Undrained {}

impl From<Undrained> for io::Error {
    fn from(undrained: Undrained) -> Self {
        Self::new(io::ErrorKind::TimedOut, undrained)
    }
}

/// A call that was refused before it did anything, with what the caller had handed over.
///
/// Converts into the [`io::Error`] alone, so that `?` works where the value is not wanted back.
pub struct Refused<V> {
    error: io::Error,
    value: V,
}

impl<V> Refused<V> {
    pub(crate) fn new(error: impl Into<io::Error>, value: V) -> Self {
        Self { error: error.into(), value }
    }

    /// Why.
    pub fn error(&self) -> &io::Error {
        &self.error
    }

    /// The misuse, if that is why.
    pub fn misuse(&self) -> Option<crate::Misuse> {
        crate::Misuse::of(&self.error)
    }

    /// What was handed over.
    pub fn into_value(self) -> V {
        self.value
    }

    /// Both.
    pub fn into_parts(self) -> (io::Error, V) {
        (self.error, self.value)
    }
}

impl<V> fmt::Debug for Refused<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Refused").field(&self.error).finish()
    }
}

impl<V> fmt::Display for Refused<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<V> Error for Refused<V> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

impl<V> From<Refused<V>> for io::Error {
    fn from(refused: Refused<V>) -> Self {
        refused.error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Pitfalls 27 and 47: a reset is a reset, not a share that went away.
    #[test]
    fn a_reset_connection_has_winsocks_code() {
        let reset = NtStatus(win::STATUS_CONNECTION_RESET);
        assert_eq!(reset.to_error().unwrap().raw_os_error(), Some(sock::WSAECONNRESET));
        let gone = NtStatus::from_win32(win::ERROR_NETNAME_DELETED);
        assert_eq!(gone.to_win32(), sock::WSAECONNRESET as u32);
    }

    // W8: a warning is an error with a code, and not a success.
    #[test]
    fn more_data_is_a_warning_and_says_so() {
        let more = NtStatus(win::STATUS_BUFFER_OVERFLOW);
        assert!(more.is_warning() && !more.is_success() && !more.is_end_of_file());
        assert_eq!(more.to_win32(), win::ERROR_MORE_DATA);
    }

    #[test]
    fn a_code_that_a_call_left_behind_comes_back_as_it_was() {
        for code in [win::ERROR_ACCESS_DENIED, win::ERROR_OPERATION_ABORTED, 10_038] {
            let status = NtStatus::from_win32(code);
            assert_eq!(status.to_win32(), code);
            assert!(!status.is_success() && !status.is_warning());
        }
        assert!(NtStatus::from_win32(win::ERROR_OPERATION_ABORTED).is_cancelled());
        assert!(NtStatus::from_win32(win::ERROR_BROKEN_PIPE).is_end_of_file());
    }
}
