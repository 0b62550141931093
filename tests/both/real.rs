//! The Windows that the tests run on.

use std::fs::File;
use std::io;
use std::os::windows::io::{
    AsHandle, AsRawHandle, AsRawSocket, BorrowedHandle, BorrowedSocket, FromRawHandle, OwnedHandle,
    OwnedSocket,
};
use std::ptr::{null, null_mut, without_provenance_mut};
use std::time::{Duration, Instant};

use ioqueue::iocp::{OVERLAPPED, Outcome};
use ioqueue::{AnyHandle, AsAnyHandle, Queue, RawHandle};
use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::Storage::FileSystem::{ReadFile, WriteFile};
use windows_sys::Win32::System::IO::{
    CancelIoEx, CreateIoCompletionPort, DeviceIoControl, PostQueuedCompletionStatus,
};
use windows_sys::Win32::System::Threading::CreateEventW;

use crate::support::{TempFile, depth_of_port, pipe_pair, reset_when_closed, tcp_pair};
use crate::system::System;

pub struct Real(Instant);

/// A handle that can be closed before its time.
pub struct Handle {
    value: RawHandle,
    owner: Option<Owner>,
    is_socket: bool,
    /// Deleted with the handle.
    _file: Option<TempFile>,
}

enum Owner {
    Handle(OwnedHandle),
    Socket(OwnedSocket),
}

impl Handle {
    /// With the file that is deleted after it.
    fn with(self, file: TempFile) -> Self {
        Self { _file: Some(file), ..self }
    }
}

impl From<OwnedHandle> for Handle {
    fn from(handle: OwnedHandle) -> Self {
        let value = handle.as_raw_handle();
        Self { value, owner: Some(Owner::Handle(handle)), is_socket: false, _file: None }
    }
}

impl From<OwnedSocket> for Handle {
    fn from(socket: OwnedSocket) -> Self {
        let value = without_provenance_mut(socket.as_raw_socket() as usize);
        Self { value, owner: Some(Owner::Socket(socket)), is_socket: true, _file: None }
    }
}

impl AsAnyHandle for Handle {
    fn as_any_handle(&self) -> AnyHandle<'_> {
        // Also of one that was closed: what the queue makes of those is what is tested.
        if self.is_socket {
            unsafe { BorrowedSocket::borrow_raw(self.value.addr() as _) }.into()
        } else {
            unsafe { BorrowedHandle::borrow_raw(self.value) }.into()
        }
    }
}

fn call(ok: i32) {
    assert_ne!(ok, 0, "{}", io::Error::last_os_error());
}

/// Lets the file have holes (`FSCTL_SET_SPARSE`).
fn make_sparse(file: &File) {
    const FSCTL_SET_SPARSE: u32 = 0x900c4;
    let (mut length, file) = (0, file.as_raw_handle());
    // A handle for synchronous use, so no OVERLAPPED. A file system without holes fills them.
    unsafe {
        DeviceIoControl(file, FSCTL_SET_SPARSE, null(), 0, null_mut(), 0, &mut length, null_mut());
    }
}

impl System for Real {
    type Handle = Handle;

    fn start() -> Self {
        Self(Instant::now())
    }

    fn queue(&self) -> Queue {
        Queue::new().unwrap()
    }

    fn pipe(&self) -> (Handle, Handle) {
        let (server, client) = pipe_pair(false);
        (server.into(), OwnedHandle::from(client).into())
    }

    fn message_pipe(&self) -> (Handle, Handle) {
        let (server, client) = pipe_pair(true);
        (server.into(), OwnedHandle::from(client).into())
    }

    fn connection(&self) -> (Handle, Handle) {
        let (one, other) = tcp_pair();
        (OwnedSocket::from(one).into(), OwnedSocket::from(other).into())
    }

    fn file(&self, contents: &[u8]) -> Handle {
        let file = TempFile::new(contents);
        make_sparse(&File::options().write(true).open(&file.path).unwrap());
        Handle::from(OwnedHandle::from(file.open())).with(file)
    }

    fn synchronous_file(&self) -> Handle {
        let file = TempFile::new(b"");
        Handle::from(OwnedHandle::from(File::open(&file.path).unwrap())).with(file)
    }

    fn event(&self) -> Handle {
        unsafe { OwnedHandle::from_raw_handle(CreateEventW(null(), 1, 0, null())) }.into()
    }

    fn duplicate(&self, handle: &Handle) -> Handle {
        match handle.owner.as_ref().expect("an open handle") {
            Owner::Handle(handle) => handle.try_clone().unwrap().into(),
            Owner::Socket(socket) => socket.try_clone().unwrap().into(),
        }
    }

    fn close(&self, handle: &mut Handle) {
        handle.owner = None;
    }

    fn reset(&self, end: Handle, _: &impl AsAnyHandle) {
        let Some(Owner::Socket(socket)) = &end.owner else { panic!("only a connection is reset") };
        reset_when_closed(socket);
    }

    fn bind_elsewhere(&self, handle: &Handle) {
        unsafe {
            let port = CreateIoCompletionPort(INVALID_HANDLE_VALUE, null_mut(), 0, 1);
            let port = OwnedHandle::from_raw_handle(port);
            let bound = CreateIoCompletionPort(handle.value, port.as_raw_handle(), 0, 0);
            assert!(!bound.is_null(), "{}", io::Error::last_os_error());
        }
    }

    unsafe fn read_file(
        &self,
        handle: RawHandle,
        buffer: *mut u8,
        length: usize,
        overlapped: *mut OVERLAPPED,
    ) -> Outcome {
        let length = length as u32;
        Outcome::from_bool(unsafe { ReadFile(handle, buffer, length, null_mut(), overlapped) })
    }

    unsafe fn write_file(
        &self,
        handle: RawHandle,
        buffer: *const u8,
        length: usize,
        overlapped: *mut OVERLAPPED,
    ) -> Outcome {
        let length = length as u32;
        Outcome::from_bool(unsafe { WriteFile(handle, buffer, length, null_mut(), overlapped) })
    }

    fn cancel(&self, handle: RawHandle, overlapped: *mut OVERLAPPED) -> Option<i32> {
        match unsafe { CancelIoEx(handle, overlapped) } {
            0 => io::Error::last_os_error().raw_os_error(),
            _ => None,
        }
    }

    fn post(&self, queue: &Queue, key: usize, overlapped: usize, bytes: u32) {
        let port = queue.as_handle().as_raw_handle();
        call(unsafe {
            PostQueuedCompletionStatus(port, bytes, key, without_provenance_mut(overlapped))
        });
    }

    fn packets(&self, queue: &Queue) -> usize {
        depth_of_port(queue)
    }

    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn check(&self) {}
}
