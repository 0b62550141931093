//! Handles of Unix, for the portable tests.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use ioqueue::{Queue, Registered};

use super::{HalfWay, Way, unique};

/// What any stream's end is.
pub type Stream = OwnedFd;
/// What an accept gives.
pub type Socket = OwnedFd;

// ---------------------------------------------------------------------------------------------
// In what systems are different

/// Whether what was cancelled is the kernel's until it is looked at.
pub const CANCELS_LATER: bool = true;

/// Whether a shutdown of this side's reading ends a read that waits.
pub const SHUTDOWN_ENDS_READS: bool = true;

/// Whether the system tells a socket that nobody is where it has sent to.
pub fn tells_of_absent_peers() -> bool {
    true
}

/// Whether a handle that was unregistered can be registered again.
pub fn handles_can_leave() -> bool {
    true
}

/// Whether a stream of this name can be waited for without reading or writing.
pub fn says_when_ready(_: &str) -> bool {
    true
}

// ---------------------------------------------------------------------------------------------
// Streams

/// Both ends of a pipe: to read from, and to write to.
pub fn raw_pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors, which are nobody's yet.
    unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0, "{}", io::Error::last_os_error());
        for end in ends {
            libc::fcntl(end, libc::F_SETFD, libc::FD_CLOEXEC);
        }
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    }
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
    let (client, server) = raw_tcp();
    let (one, other) = UnixStream::pair().unwrap();
    let (reader, writer) = raw_pipe();
    vec![
        ("TCP", client.into(), server.into()),
        ("Unix socket", one.into(), other.into()),
        ("pipe", writer, reader),
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
    ways(queue).into_iter().filter(|way| way.name != "pipe").collect()
}

/// A stream of each kind that is read by the queue.
pub fn ways_in(queue: &Queue) -> Vec<HalfWay> {
    let half = |(name, from, to)| HalfWay {
        name,
        ours: queue.register(to).unwrap(),
        theirs: Box::new(File::from(from)),
    };
    raw_ways().into_iter().map(half).collect()
}

/// A stream of each kind that is written by the queue.
pub fn ways_out(queue: &Queue) -> Vec<HalfWay> {
    let half = |(name, from, to)| HalfWay {
        name,
        ours: queue.register(from).unwrap(),
        theirs: Box::new(File::from(to)),
    };
    raw_ways().into_iter().map(half).collect()
}

/// Both ends of a pipe: to read from, and to write to.
pub fn pipe(queue: &Queue) -> (Registered<Stream>, Registered<Stream>) {
    let (reader, writer) = raw_pipe();
    (queue.register(reader).unwrap(), queue.register(writer).unwrap())
}

/// A pipe that the queue reads from.
pub fn pipe_in(queue: &Queue) -> (Registered<Stream>, File) {
    let (reader, writer) = raw_pipe();
    (queue.register(reader).unwrap(), File::from(writer))
}

/// A pipe that the queue writes to.
pub fn pipe_out(queue: &Queue) -> (Registered<Stream>, File) {
    let (reader, writer) = raw_pipe();
    (queue.register(writer).unwrap(), File::from(reader))
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

/// A socket, not connected.
pub fn raw_socket(family: i32, of_type: i32) -> OwnedFd {
    // SAFETY: takes numbers; the descriptor that comes back is nobody's yet.
    unsafe {
        let socket = libc::socket(family, of_type, 0);
        assert!(socket >= 0, "{}", io::Error::last_os_error());
        libc::fcntl(socket, libc::F_SETFD, libc::FD_CLOEXEC);
        OwnedFd::from_raw_fd(socket)
    }
}

/// A TCP socket that can be connected to such an address.
pub fn tcp_socket(queue: &Queue, to: SocketAddr) -> Registered<Socket> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    queue.register(raw_socket(family, libc::SOCK_STREAM)).unwrap()
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
pub fn silent_address() -> (SocketAddr, Vec<OwnedFd>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // SAFETY: takes numbers. A second call makes the queue of those who wait to be accepted shorter.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let mut sockets = vec![OwnedFd::from(listener)];
    // Who finds the queue full is not answered.
    for _ in 0..16 {
        let socket = raw_socket(libc::AF_INET, libc::SOCK_STREAM);
        set_nonblocking(&socket, true);
        let connecting = socket_address(address);
        // SAFETY: the address is ours, and so long.
        unsafe {
            let length = size_of_val(&connecting) as libc::socklen_t;
            libc::connect(socket.as_raw_fd(), (&raw const connecting).cast(), length);
        }
        sockets.push(socket);
    }
    (address, sockets)
}

fn socket_address(address: SocketAddr) -> libc::sockaddr_in {
    let SocketAddr::V4(address) = address else { panic!("{address} is not IPv4") };
    // SAFETY: zeros are a valid sockaddr_in.
    let mut to: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    to.sin_family = libc::AF_INET as libc::sa_family_t;
    to.sin_port = address.port().to_be();
    to.sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
    to
}

/// Sets an option of a socket's.
pub fn set_option<T>(socket: &impl AsFd, level: i32, name: i32, value: T) {
    let length = size_of::<T>() as libc::socklen_t;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the value is ours, and so long.
    let set = unsafe { libc::setsockopt(socket, level, name, (&raw const value).cast(), length) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

/// How much may wait to be sent. The system has a minimum of its own.
pub fn set_send_room(socket: &impl AsFd, bytes: i32) {
    set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes);
}

/// How much may wait to be received. The system has a minimum of its own.
pub fn set_receive_room(socket: &impl AsFd, bytes: i32) {
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes);
}

/// Makes closing the socket a reset instead of an end.
pub fn reset_when_closed(socket: &impl AsFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(socket, libc::SOL_SOCKET, libc::SO_LINGER, linger);
}

// ---------------------------------------------------------------------------------------------
// Descriptors

/// Whether the descriptor's calls never block.
pub fn is_nonblocking(of: &impl AsFd) -> bool {
    // SAFETY: takes and gives numbers.
    let flags = unsafe { libc::fcntl(of.as_fd().as_raw_fd(), libc::F_GETFL) };
    assert!(flags >= 0, "{}", io::Error::last_os_error());
    flags & libc::O_NONBLOCK != 0
}

pub fn set_nonblocking(of: &impl AsFd, nonblocking: bool) {
    let fd = of.as_fd().as_raw_fd();
    // SAFETY: takes and gives numbers.
    unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        let flags = if nonblocking { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
        assert_eq!(libc::fcntl(fd, libc::F_SETFL, flags), 0, "{}", io::Error::last_os_error());
    }
}

/// Raises the limit of descriptors this process may have, if need be; false where it may not.
pub fn allow_handles(count: usize) -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limits are ours.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        if limit.rlim_cur >= count as u64 {
            return true;
        }
        limit.rlim_cur = count as libc::rlim_t;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
    }
}

/// Lowers that limit, for the whole process.
pub fn limit_handles(count: usize) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limits are ours.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = count as libc::rlim_t;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
}

/// How many descriptors this process has.
pub fn handle_count() -> usize {
    // SAFETY: takes and gives numbers.
    (0..65536).filter(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0).count()
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
        File::options().read(true).write(true).open(&self.path).unwrap()
    }

    /// For writing at the end only.
    pub fn open_to_append(&self) -> File {
        File::options().append(true).open(&self.path).unwrap()
    }

    /// For calls that go past the system's cache; none where the file system has no such thing.
    #[cfg(target_os = "linux")]
    pub fn open_uncached(&self) -> io::Result<File> {
        use std::os::unix::fs::OpenOptionsExt;
        File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(&self.path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A file with `contents`, which has no name any more.
pub fn file(queue: &Queue, contents: &[u8]) -> Registered<File> {
    queue.register(TempFile::new(contents).open()).unwrap()
}

/// Throws what the system keeps of the file in memory away, as far as it does.
#[cfg(target_os = "linux")]
pub fn forget_contents(file: &File) {
    file.sync_all().unwrap();
    // SAFETY: takes numbers.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}
