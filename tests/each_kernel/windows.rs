//! Handles of Windows, for the portable tests.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::{
    AsRawHandle, AsRawSocket, FromRawHandle, FromRawSocket, OwnedHandle, OwnedSocket,
};
use std::path::{Path, PathBuf};
use std::ptr::null;

use ioqueue::{AnyHandle, AsAnyHandle, IntoOwnedHandle, OwnedAnyHandle};
use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::Networking::WinSock::{
    AF_INET, AF_INET6, FIONBIO, INVALID_SOCKET, LINGER, SO_LINGER, SO_RCVBUF, SO_SNDBUF,
    SOCK_STREAM, SOCKADDR_IN, SOCKET, SOL_SOCKET, WSA_FLAG_NO_HANDLE_INHERIT, WSA_FLAG_OVERLAPPED,
    WSASocketW, connect, ioctlsocket, listen, setsockopt,
};
use windows_sys::Win32::Storage::FileSystem::{FILE_FLAG_OVERLAPPED, PIPE_ACCESS_DUPLEX};
use windows_sys::Win32::System::Pipes::{CreateNamedPipeW, PIPE_READMODE_BYTE, PIPE_TYPE_BYTE};

use super::{Blocking, unique};

/// What any stream's end is.
pub enum RawStream {
    Socket(TcpStream),
    Pipe(File),
}

impl AsAnyHandle for RawStream {
    fn as_any_handle(&self) -> AnyHandle<'_> {
        match self {
            Self::Socket(socket) => socket.as_any_handle(),
            Self::Pipe(pipe) => pipe.as_any_handle(),
        }
    }
}

impl IntoOwnedHandle for RawStream {
    fn into_owned_handle(self) -> OwnedAnyHandle {
        match self {
            Self::Socket(socket) => socket.into_owned_handle(),
            Self::Pipe(pipe) => pipe.into_owned_handle(),
        }
    }
}

impl std::fmt::Debug for RawStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RawStream")
    }
}

impl RawStream {
    fn into_blocking(self) -> Box<dyn Blocking> {
        match self {
            Self::Socket(socket) => Box::new(socket),
            Self::Pipe(pipe) => Box::new(pipe),
        }
    }
}

/// Wine's ntdll exports `wine_get_version`.
pub fn on_wine() -> bool {
    use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleA, GetProcAddress};
    // SAFETY: the names are ended by zeros; the module is always there.
    unsafe {
        let ntdll = GetModuleHandleA(c"ntdll.dll".as_ptr().cast());
        GetProcAddress(ntdll, c"wine_get_version".as_ptr().cast()).is_some()
    }
}

// ---------------------------------------------------------------------------------------------
// Streams

/// Both ends of a named pipe of bytes: the first overlapped, the second as `flags` say.
fn raw_pipe_with(flags: u32) -> (File, File) {
    let name = format!(r"\\.\pipe\ioqueue-portable-{}-{}", std::process::id(), unique());
    let wide: Vec<u16> = name.encode_utf16().chain([0]).collect();
    let mode = PIPE_TYPE_BYTE | PIPE_READMODE_BYTE;
    // SAFETY: the name lives through the call; the handle that comes back is nobody's yet.
    let server = unsafe {
        let access = PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED;
        let handle = CreateNamedPipeW(wide.as_ptr(), access, mode, 1, 4096, 4096, 0, null());
        assert_ne!(handle, INVALID_HANDLE_VALUE, "{}", io::Error::last_os_error());
        File::from(OwnedHandle::from_raw_handle(handle))
    };
    let client = File::options().read(true).write(true).custom_flags(flags).open(name).unwrap();
    (server, client)
}

/// Both ends of a TCP connection.
pub fn raw_tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    (client, server)
}

/// A pair of each kind of stream that can be written to at one end and read from at the other.
pub fn raw_ways() -> Vec<(&'static str, RawStream, RawStream)> {
    let (server, client) = raw_pipe_with(FILE_FLAG_OVERLAPPED);
    let mut ways = raw_ways_with(FILE_FLAG_OVERLAPPED);
    ways.push(("pipe, from the client", RawStream::Pipe(client), RawStream::Pipe(server)));
    ways
}

/// The same, the second end opened with these flags where it is a pipe's.
fn raw_ways_with(flags: u32) -> Vec<(&'static str, RawStream, RawStream)> {
    let (client, server) = raw_tcp();
    let (pipe_server, pipe_client) = raw_pipe_with(flags);
    vec![
        ("TCP", RawStream::Socket(client), RawStream::Socket(server)),
        ("pipe", RawStream::Pipe(pipe_server), RawStream::Pipe(pipe_client)),
    ]
}

/// Whether a stream of this name has two directions.
pub fn goes_both_ways(_: &str) -> bool {
    true
}

/// A stream of each kind: an end for the queue, and the other for blocking calls.
pub fn raw_half_ways(_: bool) -> Vec<(&'static str, RawStream, Box<dyn Blocking>)> {
    let half =
        |(name, ours, theirs): (_, RawStream, RawStream)| (name, ours, theirs.into_blocking());
    raw_ways_with(0).into_iter().map(half).collect()
}

/// Both ends of a pipe.
pub fn raw_pipe() -> (RawStream, RawStream) {
    let (server, client) = raw_pipe_with(FILE_FLAG_OVERLAPPED);
    (RawStream::Pipe(server), RawStream::Pipe(client))
}

/// A pipe with an end for the queue, and the other for blocking calls.
pub fn raw_half_pipe(_: bool) -> (RawStream, Box<dyn Blocking>) {
    let (server, client) = raw_pipe_with(0);
    (RawStream::Pipe(server), Box::new(client))
}

// ---------------------------------------------------------------------------------------------
// Sockets

/// A TCP socket that can be connected to such an address.
pub fn raw_tcp_socket(to: SocketAddr) -> OwnedSocket {
    let family = if to.is_ipv4() { AF_INET } else { AF_INET6 };
    let flags = WSA_FLAG_OVERLAPPED | WSA_FLAG_NO_HANDLE_INHERIT;
    // SAFETY: takes numbers; the socket that comes back is nobody's yet. Whoever has an address has used
    // Winsock before.
    unsafe {
        let socket = WSASocketW(i32::from(family), SOCK_STREAM, 0, null(), 0, flags);
        assert_ne!(socket, INVALID_SOCKET, "{}", io::Error::last_os_error());
        OwnedSocket::from_raw_socket(socket as _)
    }
}

/// Somewhere to connect to that does not answer for a long time. Keep the sockets.
pub fn silent_address() -> (SocketAddr, Vec<OwnedSocket>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // SAFETY: takes numbers. A second call makes the queue of those who wait to be accepted shorter.
    assert_eq!(unsafe { listen(listener.as_raw_socket() as SOCKET, 1) }, 0);
    let mut sockets = vec![OwnedSocket::from(listener)];
    // Who finds the queue full is not answered, or (on Windows) refused after some tries.
    for _ in 0..16 {
        let socket = raw_tcp_socket(address);
        let connecting = socket_address(address);
        // SAFETY: the option's value and the address are ours, and as long as is said.
        unsafe {
            let value = socket.as_raw_socket() as SOCKET;
            assert_eq!(ioctlsocket(value, FIONBIO, &mut 1), 0);
            connect(value, (&raw const connecting).cast(), size_of_val(&connecting) as i32);
        }
        sockets.push(socket);
    }
    (address, sockets)
}

fn socket_address(address: SocketAddr) -> SOCKADDR_IN {
    let SocketAddr::V4(address) = address else { panic!("{address} is not IPv4") };
    let mut to = SOCKADDR_IN { sin_family: AF_INET, ..SOCKADDR_IN::default() };
    to.sin_port = address.port().to_be();
    to.sin_addr.S_un.S_addr = u32::from_ne_bytes(address.ip().octets());
    to
}

/// Sets an option of a socket's.
pub fn set_option<T>(socket: &impl AsRawSocket, level: i32, name: i32, value: T) {
    let socket = socket.as_raw_socket() as SOCKET;
    // SAFETY: the value is ours, and so long.
    let set = unsafe {
        setsockopt(socket, level, name, (&raw const value).cast(), size_of::<T>() as i32)
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

/// How much may wait to be sent. The system has a minimum of its own.
pub fn set_send_room(socket: &impl AsRawSocket, bytes: i32) {
    set_option(socket, SOL_SOCKET, SO_SNDBUF, bytes);
}

/// How much may wait to be received. The system has a minimum of its own.
pub fn set_receive_room(socket: &impl AsRawSocket, bytes: i32) {
    set_option(socket, SOL_SOCKET, SO_RCVBUF, bytes);
}

/// Makes closing the socket a reset instead of an end.
pub fn reset_when_closed(socket: &impl AsRawSocket) {
    set_option(socket, SOL_SOCKET, SO_LINGER, LINGER { l_onoff: 1, l_linger: 0 });
}

// ---------------------------------------------------------------------------------------------
// Files

/// A file that is deleted when this is dropped.
pub struct TempFile {
    pub path: PathBuf,
}

impl TempFile {
    /// With `contents`.
    pub fn new(contents: &[u8]) -> Self {
        Self::in_folder(&std::env::temp_dir(), contents)
    }

    pub fn in_folder(folder: &Path, contents: &[u8]) -> Self {
        let name = format!("ioqueue-test-{}-{}", std::process::id(), unique());
        let path = folder.join(name);
        std::fs::write(&path, contents).unwrap();
        Self { path }
    }

    /// For reading and writing.
    pub fn open(&self) -> File {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(FILE_FLAG_OVERLAPPED).open(&self.path).unwrap()
    }

    /// For reading only.
    pub fn open_to_read(&self) -> File {
        File::options().read(true).custom_flags(FILE_FLAG_OVERLAPPED).open(&self.path).unwrap()
    }

    /// For writing at the end only.
    pub fn open_to_append(&self) -> File {
        File::options().append(true).custom_flags(FILE_FLAG_OVERLAPPED).open(&self.path).unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A file with `contents`, which is gone when it is closed.
pub fn raw_file(contents: &[u8]) -> File {
    use windows_sys::Win32::Storage::FileSystem::FILE_FLAG_DELETE_ON_CLOSE;
    let temporary = TempFile::new(contents);
    let mut options = File::options();
    options.read(true).write(true);
    options.custom_flags(FILE_FLAG_OVERLAPPED | FILE_FLAG_DELETE_ON_CLOSE);
    let file = options.open(&temporary.path).unwrap();
    std::mem::forget(temporary);
    file
}

/// What takes everything and keeps nothing.
pub fn sink() -> File {
    File::options().write(true).custom_flags(FILE_FLAG_OVERLAPPED).open("NUL").unwrap()
}

/// How many handles this process has.
pub fn handle_count() -> usize {
    use windows_sys::Win32::System::Threading::{GetCurrentProcess, GetProcessHandleCount};
    let mut count = 0;
    // SAFETY: the place for the answer is ours.
    assert_ne!(unsafe { GetProcessHandleCount(GetCurrentProcess(), &raw mut count) }, 0);
    count as usize
}
