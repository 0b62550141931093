//! Handles of Unix, for the portable tests.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ioqueue::{Queue, Registered};

use super::{Blocking, Of, poll_once, unique};

pub fn on_wine() -> bool {
    false
}

impl<H: AsFd> AsFd for Of<H> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        (**self).as_fd()
    }
}

/// What any stream's end is.
pub type RawStream = OwnedFd;

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
pub fn raw_ways() -> Vec<(&'static str, RawStream, RawStream)> {
    let (client, server) = raw_tcp();
    let (one, other) = UnixStream::pair().unwrap();
    let (reader, writer) = raw_pipe();
    vec![
        ("TCP", client.into(), server.into()),
        ("Unix socket", one.into(), other.into()),
        ("pipe", writer, reader),
    ]
}

/// Whether a stream of this name has two directions.
pub fn goes_both_ways(name: &str) -> bool {
    name != "pipe"
}

/// A stream of each kind: the end that is written to, for the queue, and the other for blocking calls, or
/// the other way round.
pub fn raw_half_ways(writes: bool) -> Vec<(&'static str, RawStream, Box<dyn Blocking>)> {
    let half = |(name, from, to): (_, RawStream, RawStream)| {
        let (ours, theirs) = if writes { (from, to) } else { (to, from) };
        (name, ours, Box::new(File::from(theirs)) as Box<dyn Blocking>)
    };
    raw_ways().into_iter().map(half).collect()
}

/// A pipe with an end for the queue, which writes or reads, and the other for blocking calls.
pub fn raw_half_pipe(writes: bool) -> (RawStream, Box<dyn Blocking>) {
    let (reader, writer) = raw_pipe();
    let (ours, theirs) = if writes { (writer, reader) } else { (reader, writer) };
    (ours, Box::new(File::from(theirs)))
}

// ---------------------------------------------------------------------------------------------
// Sockets

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
pub fn raw_tcp_socket(to: SocketAddr) -> OwnedFd {
    raw_socket(if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }, libc::SOCK_STREAM)
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
        begin_connect(&socket, address);
        sockets.push(socket);
    }
    (address, sockets)
}

/// Begins to connect a socket that never blocks, as other code does; true where that goes on.
pub fn begin_connect(socket: &impl AsFd, to: SocketAddr) -> bool {
    let to = socket_address(to);
    // SAFETY: the address is ours, and so long.
    let begun = unsafe {
        let length = size_of_val(&to) as libc::socklen_t;
        libc::connect(socket.as_fd().as_raw_fd(), (&raw const to).cast(), length)
    };
    begun != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINPROGRESS)
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

/// Locks a file for as long as it is open; false where it is locked.
pub fn lock(file: &File) -> bool {
    // SAFETY: takes numbers.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0 }
}

/// A file with `contents`, which has no name any more.
pub fn raw_file(contents: &[u8]) -> File {
    TempFile::new(contents).open()
}

/// Throws what the system keeps of the file in memory away, as far as it does.
#[cfg(target_os = "linux")]
pub fn forget_contents(file: &File) {
    file.sync_all().unwrap();
    // SAFETY: takes numbers.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// A registered end of a Unix socket, and the other.
pub fn unix_pair(queue: &Queue) -> (Registered<UnixStream>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (queue.register(ours).unwrap(), theirs)
}

/// So many connections, of each of which an edge is still to be told that has brought nothing: what came was read
/// before.
pub fn taken_before_their_edges(
    queue: &Queue,
    count: usize,
) -> Vec<(Registered<UnixStream>, UnixStream)> {
    use std::io::Write;
    let look = || {
        let mut ready = Vec::new();
        queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
        for continuation in ready {
            continuation.resume();
        }
    };
    let crowd: Vec<_> = (0..count).map(|_| unix_pair(queue)).collect();
    for (ours, theirs) in &crowd {
        // Watched from now on. As much is read as there is room for, so that the next read tries.
        let mut reading = ours.read(vec![0; 1]);
        look();
        (&*theirs).write_all(b"x").unwrap();
        while poll_once(&mut reading).is_pending() {
            look();
        }
    }
    for (ours, theirs) in &crowd {
        (&*theirs).write_all(b"y").unwrap();
        (&*theirs).write_all(b"z").unwrap();
        for _ in 0..2 {
            let mut reading = ours.read(vec![0; 1]);
            assert!(poll_once(&mut reading).is_ready() || poll_once(&mut reading).is_ready());
        }
    }
    crowd
}
