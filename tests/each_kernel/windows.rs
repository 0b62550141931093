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

use ioqueue::{AnyHandle, AsAnyHandle, IntoOwnedHandle, OwnedAnyHandle, Queue, Registered};
use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::Networking::WinSock::{
    AF_INET, AF_INET6, FIONBIO, INVALID_SOCKET, LINGER, SO_LINGER, SO_RCVBUF, SO_SNDBUF,
    SOCK_STREAM, SOCKADDR_IN, SOCKET, SOL_SOCKET, WSA_FLAG_NO_HANDLE_INHERIT, WSA_FLAG_OVERLAPPED,
    WSASocketW, connect, ioctlsocket, listen, setsockopt,
};
use windows_sys::Win32::Storage::FileSystem::{FILE_FLAG_OVERLAPPED, PIPE_ACCESS_DUPLEX};
use windows_sys::Win32::System::Pipes::{CreateNamedPipeW, PIPE_READMODE_BYTE, PIPE_TYPE_BYTE};

use super::{Blocking, HalfWay, Way, unique};

/// What any stream's end is.
pub enum Stream {
    Socket(TcpStream),
    Pipe(File),
}

/// What an accept gives.
pub type Socket = OwnedSocket;

impl AsAnyHandle for Stream {
    fn as_any_handle(&self) -> AnyHandle<'_> {
        match self {
            Self::Socket(socket) => socket.as_any_handle(),
            Self::Pipe(pipe) => pipe.as_any_handle(),
        }
    }
}

impl IntoOwnedHandle for Stream {
    fn into_owned_handle(self) -> OwnedAnyHandle {
        match self {
            Self::Socket(socket) => socket.into_owned_handle(),
            Self::Pipe(pipe) => pipe.into_owned_handle(),
        }
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stream")
    }
}

impl Stream {
    fn into_blocking(self) -> Box<dyn Blocking> {
        match self {
            Self::Socket(socket) => Box::new(socket),
            Self::Pipe(pipe) => Box::new(pipe),
        }
    }
}

// ---------------------------------------------------------------------------------------------
// In what Windows is different

/// Whether what was cancelled is the kernel's until it is looked at: here it may have ended at once.
pub const CANCELS_LATER: bool = false;

/// Whether the system tells a socket that nobody is where it has sent to. Wine does not.
pub fn tells_of_absent_peers() -> bool {
    !on_wine()
}

/// Whether a shutdown of this side's reading ends a read that waits.
pub const SHUTDOWN_ENDS_READS: bool = false;

/// Whether a handle that was unregistered can be registered again: since Windows 8.1, and not on Wine.
pub fn handles_can_leave() -> bool {
    let Ok(queue) = Queue::new() else { return false };
    let (pipe, _client) = raw_pipe(0);
    queue.register(queue.register(pipe).unwrap().into_inner()).is_ok()
}

/// Whether a stream of this name can be waited for without reading or writing.
pub fn says_when_ready(name: &str) -> bool {
    name == "TCP"
}

/// Wine's ntdll exports `wine_get_version`.
fn on_wine() -> bool {
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
fn raw_pipe(flags: u32) -> (File, File) {
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
pub fn raw_ways() -> Vec<(&'static str, Stream, Stream)> {
    let (server, client) = raw_pipe(FILE_FLAG_OVERLAPPED);
    let mut ways = raw_ways_with(FILE_FLAG_OVERLAPPED);
    ways.push(("pipe, from the client", Stream::Pipe(client), Stream::Pipe(server)));
    ways
}

/// The same, the second end opened with these flags where it is a pipe's.
fn raw_ways_with(flags: u32) -> Vec<(&'static str, Stream, Stream)> {
    let (client, server) = raw_tcp();
    let (pipe_server, pipe_client) = raw_pipe(flags);
    vec![
        ("TCP", Stream::Socket(client), Stream::Socket(server)),
        ("pipe", Stream::Pipe(pipe_server), Stream::Pipe(pipe_client)),
    ]
}

/// A stream of each kind, both ends on `queue`.
pub fn ways(queue: &Queue) -> Vec<Way> {
    let on_queue = |(name, from, to)| {
        let (from, to) = (queue.register(from).unwrap(), queue.register(to).unwrap());
        Way { name, from, to }
    };
    raw_ways().into_iter().map(on_queue).collect()
}

/// A stream of each kind in which both ends are read and written.
pub fn two_ways(queue: &Queue) -> Vec<Way> {
    ways(queue)
}

/// A stream of each kind that is read by the queue.
pub fn ways_in(queue: &Queue) -> Vec<HalfWay> {
    let half = |(name, ours, theirs): (_, _, Stream)| HalfWay {
        name,
        ours: queue.register(ours).unwrap(),
        theirs: theirs.into_blocking(),
    };
    raw_ways_with(0).into_iter().map(half).collect()
}

/// A stream of each kind that is written by the queue.
pub fn ways_out(queue: &Queue) -> Vec<HalfWay> {
    ways_in(queue)
}

/// Both ends of a pipe: to read from, and to write to.
pub fn pipe(queue: &Queue) -> (Registered<Stream>, Registered<Stream>) {
    let (server, client) = raw_pipe(FILE_FLAG_OVERLAPPED);
    let register = |end| queue.register(Stream::Pipe(end)).unwrap();
    (register(server), register(client))
}

/// A pipe that the queue reads from.
pub fn pipe_in(queue: &Queue) -> (Registered<Stream>, File) {
    let (server, client) = raw_pipe(0);
    (queue.register(Stream::Pipe(server)).unwrap(), client)
}

/// A pipe that the queue writes to.
pub fn pipe_out(queue: &Queue) -> (Registered<Stream>, File) {
    pipe_in(queue)
}

// ---------------------------------------------------------------------------------------------
// Sockets

/// Both ends of a TCP connection.
pub fn tcp(queue: &Queue) -> (Registered<TcpStream>, Registered<TcpStream>) {
    let (client, server) = raw_tcp();
    (queue.register(client).unwrap(), queue.register(server).unwrap())
}

/// A TCP connection, and its end for blocking calls.
pub fn tcp_to_host(queue: &Queue) -> (Registered<TcpStream>, TcpStream) {
    let (client, server) = raw_tcp();
    (queue.register(client).unwrap(), server)
}

/// A listening socket, and where it listens.
pub fn listener(queue: &Queue) -> (Registered<TcpListener>, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (queue.register(listener).unwrap(), address)
}

/// A TCP socket that can be connected to such an address.
pub fn tcp_socket(queue: &Queue, to: SocketAddr) -> Registered<Socket> {
    queue.register(raw_tcp_socket(to)).unwrap()
}

fn raw_tcp_socket(to: SocketAddr) -> Socket {
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

/// An accepted or connected socket as the standard library's type.
pub fn stream_of(socket: Socket) -> TcpStream {
    TcpStream::from(socket)
}

/// A UDP socket, and its address.
pub fn udp(queue: &Queue) -> (Registered<UdpSocket>, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (queue.register(socket).unwrap(), address)
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
pub fn file(queue: &Queue, contents: &[u8]) -> Registered<File> {
    use windows_sys::Win32::Storage::FileSystem::FILE_FLAG_DELETE_ON_CLOSE;
    let temporary = TempFile::new(contents);
    let mut options = File::options();
    options.read(true).write(true);
    options.custom_flags(FILE_FLAG_OVERLAPPED | FILE_FLAG_DELETE_ON_CLOSE);
    let file = options.open(&temporary.path).unwrap();
    std::mem::forget(temporary);
    queue.register(file).unwrap()
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
