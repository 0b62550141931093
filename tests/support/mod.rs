//! What the tests of Windows' port share: real handles, and one function for each real call.
//!
//! Each operation function makes exactly one call with what it was given and reports what that
//! returned, and everything the kernel writes to is in the state: that is `submit`'s promise.

#![allow(dead_code)]

use std::ffi::c_void;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::{AsRawSocket, FromRawHandle, OwnedHandle};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};

use ioqueue::iocp::{OVERLAPPED, Outcome, Wait, submit, submit_at};
use ioqueue::{AsAnyHandle, RawHandle};
use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::Networking::WinSock::{
    AcceptEx, SO_UPDATE_ACCEPT_CONTEXT, SOCKET, SOL_SOCKET, WSABUF, WSARecv, WSASend, setsockopt,
};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_FLAG_OVERLAPPED, PIPE_ACCESS_DUPLEX, ReadFile, WriteFile,
};
use windows_sys::Win32::System::Pipes::{
    ConnectNamedPipe, CreateNamedPipeW, PIPE_READMODE_BYTE, PIPE_READMODE_MESSAGE, PIPE_TYPE_BYTE,
    PIPE_TYPE_MESSAGE, PIPE_UNLIMITED_INSTANCES,
};

/// Whether this is Wine (its ntdll exports `wine_get_version`).
pub fn on_wine() -> bool {
    use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleA, GetProcAddress};
    unsafe {
        let ntdll = GetModuleHandleA(c"ntdll.dll".as_ptr().cast());
        GetProcAddress(ntdll, c"wine_get_version".as_ptr().cast()).is_some()
    }
}

/// Says on standard error why a test does not run here; use as `return skip("...")`.
pub fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
}

/// Both ends of a TCP connection, overlapped as the standard library makes them.
pub fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    (client, server)
}

/// A socket operation's state: the buffer, and the flags that Winsock writes.
#[derive(Debug)]
pub struct Buffer {
    pub bytes: Vec<u8>,
    flags: u32,
}

impl Buffer {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), flags: 0 }
    }
}

pub fn call_recv(socket: RawHandle, state: *mut Buffer, overlapped: *mut OVERLAPPED) -> Outcome {
    unsafe {
        let bytes = &mut (*state).bytes;
        let buffer = WSABUF { len: bytes.len() as u32, buf: bytes.as_mut_ptr() };
        let flags = &raw mut (*state).flags;
        let socket = socket as SOCKET;
        Outcome::from_socket(WSARecv(socket, &buffer, 1, null_mut(), flags, overlapped, None))
    }
}

pub fn call_send(socket: RawHandle, state: *mut Buffer, overlapped: *mut OVERLAPPED) -> Outcome {
    unsafe {
        let bytes = &mut (*state).bytes;
        let buffer = WSABUF { len: bytes.len() as u32, buf: bytes.as_mut_ptr() };
        let socket = socket as SOCKET;
        Outcome::from_socket(WSASend(socket, &buffer, 1, null_mut(), 0, overlapped, None))
    }
}

/// WSARecv into `bytes.len()` bytes.
#[track_caller]
pub fn recv(socket: &(impl AsAnyHandle + ?Sized), bytes: impl Into<Vec<u8>>) -> Wait<Buffer> {
    unsafe { submit(socket, Buffer::new(bytes), call_recv) }
}

/// WSASend of all of `bytes`.
#[track_caller]
pub fn send(socket: &(impl AsAnyHandle + ?Sized), bytes: impl Into<Vec<u8>>) -> Wait<Buffer> {
    unsafe { submit(socket, Buffer::new(bytes), call_send) }
}

pub fn call_read(handle: RawHandle, state: *mut Vec<u8>, overlapped: *mut OVERLAPPED) -> Outcome {
    unsafe {
        let bytes = &mut *state;
        let (start, length) = (bytes.as_mut_ptr(), bytes.len() as u32);
        Outcome::from_bool(ReadFile(handle, start, length, null_mut(), overlapped))
    }
}

pub fn call_write(handle: RawHandle, state: *mut Vec<u8>, overlapped: *mut OVERLAPPED) -> Outcome {
    unsafe {
        let bytes = &*state;
        let (start, length) = (bytes.as_ptr(), bytes.len() as u32);
        Outcome::from_bool(WriteFile(handle, start, length, null_mut(), overlapped))
    }
}

/// ReadFile into `bytes.len()` bytes.
#[track_caller]
pub fn read(handle: &(impl AsAnyHandle + ?Sized), bytes: impl Into<Vec<u8>>) -> Wait<Vec<u8>> {
    unsafe { submit(handle, bytes.into(), call_read) }
}

/// ReadFile at an offset.
#[track_caller]
pub fn read_at(
    handle: &(impl AsAnyHandle + ?Sized),
    offset: u64,
    bytes: impl Into<Vec<u8>>,
) -> Wait<Vec<u8>> {
    unsafe { submit_at(handle, offset, bytes.into(), call_read) }
}

/// WriteFile of all of `bytes`.
#[track_caller]
pub fn write(handle: &(impl AsAnyHandle + ?Sized), bytes: impl Into<Vec<u8>>) -> Wait<Vec<u8>> {
    unsafe { submit(handle, bytes.into(), call_write) }
}

/// WriteFile at an offset.
#[track_caller]
pub fn write_at(
    handle: &(impl AsAnyHandle + ?Sized),
    offset: u64,
    bytes: impl Into<Vec<u8>>,
) -> Wait<Vec<u8>> {
    unsafe { submit_at(handle, offset, bytes.into(), call_write) }
}

/// Room for the two addresses that AcceptEx writes, each 16 bytes longer than the largest one.
pub type Addresses = [u8; 2 * 144];

/// AcceptEx of `socket` (unconnected, overlapped) on `listener`; the state holds both the addresses
/// and the socket, so the socket is closed before the memory is freed (pitfall 7).
#[track_caller]
pub fn accept(
    listener: &(impl AsAnyHandle + ?Sized),
    socket: std::os::windows::io::OwnedSocket,
) -> Wait<(std::os::windows::io::OwnedSocket, Addresses)> {
    unsafe {
        submit(listener, (socket, [0; 288]), |listener, state, overlapped| {
            let socket = (*state).0.as_raw_socket() as SOCKET;
            let room: *mut c_void = (&raw mut (*state).1).cast();
            let listener = listener as SOCKET;
            let mut received = 0;
            Outcome::from_bool(AcceptEx(
                listener,
                socket,
                room,
                0,
                144,
                144,
                &mut received,
                overlapped,
            ))
        })
    }
}

/// After AcceptEx succeeded (pitfall 26).
pub fn update_accept_context(socket: &impl AsRawSocket, listener: &impl AsRawSocket) {
    let listener = listener.as_raw_socket() as SOCKET;
    let answer = unsafe {
        setsockopt(
            socket.as_raw_socket() as SOCKET,
            SOL_SOCKET,
            SO_UPDATE_ACCEPT_CONTEXT,
            (&raw const listener).cast(),
            size_of::<SOCKET>() as i32,
        )
    };
    assert_eq!(answer, 0);
}

/// A pipe name that no other test has.
pub fn pipe_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    format!(r"\\.\pipe\ioqueue-test-{process}-{number}")
}

pub fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}

/// One server instance of a named pipe, overlapped; message mode if asked.
pub fn pipe_server(name: &str, messages: bool) -> OwnedHandle {
    let mode = if messages {
        PIPE_TYPE_MESSAGE | PIPE_READMODE_MESSAGE
    } else {
        PIPE_TYPE_BYTE | PIPE_READMODE_BYTE
    };
    unsafe {
        let handle = CreateNamedPipeW(
            wide(name).as_ptr(),
            PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED,
            mode,
            PIPE_UNLIMITED_INSTANCES,
            4096,
            4096,
            0,
            null(),
        );
        assert_ne!(handle, INVALID_HANDLE_VALUE, "{}", std::io::Error::last_os_error());
        OwnedHandle::from_raw_handle(handle)
    }
}

/// The client's end of a named pipe, overlapped.
pub fn pipe_client(name: &str) -> std::io::Result<File> {
    File::options().read(true).write(true).custom_flags(FILE_FLAG_OVERLAPPED).open(name)
}

/// ConnectNamedPipe.
#[track_caller]
pub fn connect_pipe(server: &(impl AsAnyHandle + ?Sized)) -> Wait<()> {
    unsafe {
        submit(server, (), |handle, _, overlapped| {
            Outcome::from_bool(ConnectNamedPipe(handle, overlapped))
        })
    }
}

/// Both ends of a connected named pipe, overlapped.
pub fn pipe_pair(messages: bool) -> (OwnedHandle, File) {
    let name = pipe_name();
    let server = pipe_server(&name, messages);
    let client = pipe_client(&name).unwrap();
    (server, client)
}

/// A file that is deleted when this is dropped, opened overlapped.
pub struct TempFile {
    pub path: PathBuf,
}

impl TempFile {
    /// With `contents`.
    pub fn new(contents: &[u8]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("ioqueue-test-{process}-{number}"));
        std::fs::write(&path, contents).unwrap();
        Self { path }
    }

    pub fn open(&self) -> File {
        open_overlapped(&self.path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A file for overlapped reading and writing.
pub fn open_overlapped(path: &Path) -> File {
    File::options().read(true).write(true).custom_flags(FILE_FLAG_OVERLAPPED).open(path).unwrap()
}
