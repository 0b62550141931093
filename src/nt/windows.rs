//! The real calls.
//!
//! `calls.rs` starts the portable operations, `sockets.rs` has what Winsock wants done around them, and
//! `readiness.rs` the wait until a socket is ready.

mod calls;
pub(crate) mod readiness;
pub(crate) mod sockets;

use std::io;
use std::mem::size_of;
use std::os::windows::io::{
    AsHandle, AsRawHandle, BorrowedHandle, FromRawHandle, IntoRawHandle, OwnedHandle,
};
use std::ptr::{null_mut, without_provenance_mut};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use windows_sys::Wdk::Storage::FileSystem::{
    FILE_COMPLETION_INFORMATION, FileIoCompletionNotificationInformation, FileModeInformation,
    FileReplaceCompletionInformation, NtQueryInformationFile, NtSetInformationFile,
};
use windows_sys::Win32::Foundation::{
    CloseHandle, GetLastError, INVALID_HANDLE_VALUE, STATUS_SUCCESS,
};
use windows_sys::Win32::Networking::WinSock::{SOCK_DGRAM, XP1_IFS_HANDLES};
use windows_sys::Win32::Storage::FileSystem::{GetFileType, SetFileCompletionNotificationModes};
use windows_sys::Win32::System::IO::{
    CancelIoEx, CreateIoCompletionPort, GetQueuedCompletionStatusEx, IO_STATUS_BLOCK, OVERLAPPED,
    OVERLAPPED_ENTRY, PostQueuedCompletionStatus,
};
use windows_sys::Win32::System::SystemInformation::GetTickCount64;

use super::{Nt, NtStatusCode, SocketProtocol, Win32Error};
use crate::error::NtStatus;
use crate::handle::{RawHandle, owned};
use crate::iocp::Outcome;
use crate::kernel::call::Call;
use crate::operation::Ending;

/// The Windows this program runs on.
pub(crate) struct Windows;

/// A completion port of this process. A `HANDLE` to a port may be used from any thread.
pub(crate) struct Port(OwnedHandle);

impl Port {
    pub(crate) fn as_handle(&self) -> BorrowedHandle<'_> {
        self.0.as_handle()
    }
}

fn last_error() -> Win32Error {
    // SAFETY: reads the calling thread's own error slot.
    unsafe { GetLastError() }
}

fn checked(ok: i32) -> Result<(), Win32Error> {
    if ok == 0 { Err(last_error()) } else { Ok(()) }
}

/// Closes a handle.
pub(crate) fn close(handle: owned::Any) -> Ending {
    let closed = match handle {
        // SAFETY: the handle is ours, and nobody else's.
        owned::Any::Handle(handle) => checked(unsafe { CloseHandle(handle.into_raw_handle()) }),
        owned::Any::Socket(socket) => sockets::close(socket),
    };
    let status = closed.map_or_else(NtStatus::from_win32, |()| NtStatus(STATUS_SUCCESS));
    Ending { status, bytes: 0 }
}

/// Asks the kernel for one fixed-size answer about a file object.
fn query<A: Copy + Default>(handle: RawHandle, class: i32) -> Result<A, NtStatusCode> {
    let mut answer = A::default();
    let mut block = IO_STATUS_BLOCK::default();
    let length = u32::try_from(size_of::<A>()).expect("answers are a few bytes");
    // SAFETY: both blocks are ours, live through the call, and `length` is the answer's size. The
    // call is synchronous for these classes. A handle that is closed or of the wrong kind is
    // answered with an error. `A` is one of the plain integers below.
    let status = unsafe {
        NtQueryInformationFile(handle, &raw mut block, (&raw mut answer).cast(), length, class)
    };
    if status == STATUS_SUCCESS { Ok(answer) } else { Err(status) }
}

impl Nt for Windows {
    type Port = Port;

    fn create_port(&self) -> io::Result<Port> {
        // SAFETY: INVALID_HANDLE_VALUE with no existing port asks for a new port.
        let port = unsafe { CreateIoCompletionPort(INVALID_HANDLE_VALUE, null_mut(), 0, 1) };
        if port.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the handle was just made for us and nobody else has it.
        Ok(Port(unsafe { OwnedHandle::from_raw_handle(port) }))
    }

    fn associate(&self, port: &Port, handle: RawHandle, key: usize) -> Result<(), Win32Error> {
        // SAFETY: takes two handle values and a number; a bad handle is answered with an error.
        let bound = unsafe { CreateIoCompletionPort(handle, port.0.as_raw_handle(), key, 0) };
        if bound.is_null() { Err(last_error()) } else { Ok(()) }
    }

    fn dissociate(&self, handle: RawHandle) -> bool {
        let nothing = FILE_COMPLETION_INFORMATION { Port: null_mut(), Key: null_mut() };
        let length = u32::try_from(size_of::<FILE_COMPLETION_INFORMATION>()).expect("16 bytes");
        let mut block = IO_STATUS_BLOCK::default();
        // SAFETY: both blocks are ours and live through the call, which is synchronous for this
        // class; `length` is the size of the block passed.
        let status = unsafe {
            NtSetInformationFile(
                handle,
                &raw mut block,
                (&raw const nothing).cast(),
                length,
                FileReplaceCompletionInformation,
            )
        };
        status == STATUS_SUCCESS
    }

    fn set_notification_modes(&self, handle: RawHandle, modes: u8) -> bool {
        // SAFETY: takes a handle value and flags; a bad handle is answered with an error.
        unsafe { SetFileCompletionNotificationModes(handle, modes) != 0 }
    }

    fn notification_modes(&self, handle: RawHandle) -> Result<u32, NtStatusCode> {
        query(handle, FileIoCompletionNotificationInformation)
    }

    fn file_mode(&self, handle: RawHandle) -> Result<u32, NtStatusCode> {
        query(handle, FileModeInformation)
    }

    fn file_type(&self, handle: RawHandle) -> u32 {
        // SAFETY: takes a handle value; a bad handle is answered with FILE_TYPE_UNKNOWN.
        unsafe { GetFileType(handle) }
    }

    fn socket_protocol(&self, socket: RawHandle) -> Option<SocketProtocol> {
        let info = sockets::protocol(socket.addr()).ok()?;
        Some(SocketProtocol {
            ifs_handles: info.dwServiceFlags1 & XP1_IFS_HANDLES != 0,
            datagrams: info.iSocketType == SOCK_DGRAM,
        })
    }

    fn listens(&self, socket: RawHandle) -> bool {
        sockets::listens(socket.addr())
    }

    fn cancel(&self, handle: RawHandle, overlapped: *mut OVERLAPPED) -> Result<(), Win32Error> {
        // SAFETY: the kernel compares the address with those of the handle's pending operations
        // and does not look behind it.
        checked(unsafe { CancelIoEx(handle, overlapped) })
    }

    unsafe fn start(
        &self,
        handle: RawHandle,
        call: Call,
        overlapped: *mut OVERLAPPED,
        flags: *mut u32,
    ) -> Outcome {
        // SAFETY: passed on.
        unsafe { calls::start(handle, call, overlapped, flags) }
    }

    fn dequeue(
        &self,
        port: &Port,
        entries: &mut [OVERLAPPED_ENTRY],
        timeout_ms: u32,
    ) -> Result<usize, Win32Error> {
        let room = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let mut filled = 0;
        // SAFETY: `entries` is ours for the call and `room` is at most its length.
        checked(unsafe {
            GetQueuedCompletionStatusEx(
                port.0.as_raw_handle(),
                entries.as_mut_ptr(),
                room,
                &raw mut filled,
                timeout_ms,
                0,
            )
        })?;
        Ok(filled as usize)
    }

    fn post(port: &Port, key: usize) -> Result<(), Win32Error> {
        // SAFETY: takes a port of ours and numbers; a null OVERLAPPED is never followed.
        checked(unsafe {
            PostQueuedCompletionStatus(port.0.as_raw_handle(), 0, key, without_provenance_mut(0))
        })
    }

    fn now(&self) -> Duration {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed()
    }

    fn coarse_now(&self) -> Duration {
        // SAFETY: reads a number from memory that Windows shares with every process.
        Duration::from_millis(unsafe { GetTickCount64() })
    }
}

/// What the system says an NTSTATUS is in Win32 codes.
pub(crate) fn status_to_win32(status: NtStatusCode) -> Win32Error {
    // SAFETY: maps a number to a number.
    unsafe { windows_sys::Win32::Foundation::RtlNtStatusToDosError(status) }
}
