//! What io_uring and readiness have in common: descriptors, calls that do not block, the bell.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
#[cfg(target_os = "linux")]
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::call::Call;
#[cfg(target_os = "linux")]
use super::linux::{self, connect as connect_call, receive, send};
use super::source::{Medium, descriptor};
use super::{BindError, Identity, Mark};
use crate::error::NtStatus;
use crate::handle::RawHandle;
use crate::op::{Accepted, Datagram, Event, Events, IoPart, PeerAddress, Shutdown};
use crate::operation::Ending;

/// An error number of Unix.
pub(crate) type Errno = i32;

/// How an operation ended that moved `Ok` bytes (or whose result is that number).
#[inline]
pub(crate) fn ending(result: Result<u32, Errno>) -> Ending {
    match result {
        Ok(bytes) => Ending { status: NtStatus(0), bytes },
        Err(errno) => Ending { status: NtStatus::from_errno(errno), bytes: 0 },
    }
}

/// The thread's last error.
#[cold]
fn last_error() -> Errno {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// What a call returned that answers with a count, or -1 and `errno`.
#[inline(always)]
fn count(returned: isize) -> Result<u32, Errno> {
    if returned < 0 {
        return Err(last_error());
    }
    // No call is asked to move more (`cut`).
    Ok(returned as u32)
}

/// How much one call is asked to move: lengths over 4 GiB are cut, never wrapped.
#[inline(always)]
pub(crate) fn cut(length: usize) -> u32 {
    // MAX_RW_COUNT, what Linux cuts to itself (read(2), NOTES).
    length.min(0x7fff_f000) as u32
}

/// What a descriptor leads to, and by what it is known again.
pub(crate) fn examine(handle: RawHandle) -> Result<(RawFd, Medium, Mark), BindError> {
    let fd = descriptor(handle);
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: takes a number and the place for an answer, which is ours.
    if unsafe { libc::fstat(fd, status.as_mut_ptr()) } != 0 {
        return Err(match last_error() {
            libc::EBADF => BindError::Invalid,
            errno => BindError::Os(errno as u32),
        });
    }
    // SAFETY: fstat succeeded, so it filled the answer in.
    let status = unsafe { status.assume_init() };
    let medium = match status.st_mode & libc::S_IFMT {
        libc::S_IFSOCK => Medium::Socket,
        libc::S_IFREG | libc::S_IFBLK | libc::S_IFDIR => Medium::File,
        _ => Medium::Stream,
    };
    Ok((fd, medium, mark(&status)))
}

fn mark(status: &libc::stat) -> Mark {
    // What dev_t and ino_t are differs from system to system.
    #[allow(clippy::unnecessary_cast)]
    Mark::File { device: status.st_dev as u64, inode: status.st_ino as u64 }
}

/// By what a descriptor's file is known again.
pub(crate) fn mark_of(fd: RawFd) -> Option<Mark> {
    let handle = std::ptr::without_provenance_mut(usize::try_from(fd).ok()?);
    examine(handle).ok().map(|(.., mark)| mark)
}

/// Whether the descriptor still leads to the file that was registered (pitfalls 29 and 34).
pub(crate) fn identity(handle: RawHandle, mark: Mark) -> Identity {
    if mark == Mark::Owned {
        return Identity::Same;
    }
    match examine(handle) {
        Ok((.., now)) if now == mark => Identity::Same,
        _ => Identity::Gone,
    }
}

// ---------------------------------------------------------------------------------------------
// Calls that do not block

/// What became of a call that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tried {
    /// It moved so many bytes.
    Moved(u32),
    Failed(Errno),
    /// It would have blocked, and has done nothing.
    WouldBlock,
    /// A signal came, and it has done nothing.
    Interrupted,
    /// This descriptor cannot be asked in this way.
    Unsupported,
}

/// What an error of a call that was tried means.
#[cold]
pub(crate) fn classify(errno: Errno, medium: Medium) -> Tried {
    match errno {
        libc::EINTR => Tried::Interrupted, // Pitfall 42.
        #[allow(unreachable_patterns)] // On most systems they are the same.
        libc::EAGAIN | libc::EWOULDBLOCK => Tried::WouldBlock,
        libc::EOPNOTSUPP | libc::ENOSYS if medium != Medium::Socket => Tried::Unsupported,
        errno => Tried::Failed(errno),
    }
}

/// Makes the call, told not to block.
///
/// Inlined, so that whoever knows which call it is pays for that one only.
///
/// # Safety
/// What `call` points to is valid while this runs, the descriptor is open, and the medium is its own.
#[inline(always)]
pub(crate) unsafe fn try_call(
    fd: RawFd,
    medium: Medium,
    nonblocking: bool,
    call: Call,
) -> Result<u32, Errno> {
    const FLAGS: i32 = libc::MSG_DONTWAIT | NO_SIGNAL;
    // SAFETY: of each call: the pointers and lengths are the call's, which are valid, and the descriptor is open (see
    // above); one of the wrong kind is answered with an error.
    unsafe {
        match call {
            Call::Receive { at, length } => receive(fd, at, length),
            Call::Send { at, length } => send(fd, at, length),
            Call::Read { at, length } if medium == Medium::Socket => receive(fd, at, length),
            Call::Write { at, length } if medium == Medium::Socket => send(fd, at, length),
            Call::Read { at, length } if nonblocking => {
                count(libc::read(fd, at.cast(), cut(length) as usize))
            }
            Call::Write { at, length } if nonblocking => {
                count(libc::write(fd, at.cast(), cut(length) as usize))
            }
            Call::Read { at, length } => move_now(fd, true, at, length, None),
            Call::Write { at, length } => move_now(fd, false, at.cast_mut(), length, None),
            Call::ReadAt { at, length, offset } => move_now(fd, true, at, length, Some(offset)),
            Call::WriteAt { at, length, offset } => {
                move_now(fd, false, at.cast_mut(), length, Some(offset))
            }
            Call::ReadVectored { parts, count: parts_count, .. } => {
                vectored(fd, medium, nonblocking, true, parts, parts_count)
            }
            Call::WriteVectored { parts, count: parts_count, .. } => {
                vectored(fd, medium, nonblocking, false, parts, parts_count)
            }
            Call::ReceiveFrom { datagram } => {
                let message = Datagram::message(datagram);
                let received = count(libc::recvmsg(fd, message, libc::MSG_DONTWAIT));
                if received.is_ok() {
                    Datagram::received(datagram);
                }
                received
            }
            Call::SendTo { datagram } => {
                count(libc::sendmsg(fd, Datagram::message(datagram), FLAGS))
            }
            Call::Accept { accepted } => accept(fd, nonblocking, accepted),
            Call::Connect { .. } => Err(libc::EAGAIN), // The rooms know whether it was begun.
            Call::Shutdown { how } => count(libc::shutdown(fd, shutdown_flag(how)) as isize),
            Call::Sync { .. } => Err(libc::EAGAIN),
            Call::Ready { event } => ready_now(fd, event),
            Call::Overlapped | Call::Close { .. } => Err(libc::EINVAL),
        }
    }
}

/// # Safety
/// `at` is `length` bytes, to be written to.
#[cfg(not(target_os = "linux"))]
unsafe fn receive(fd: RawFd, at: *mut u8, length: usize) -> Result<u32, Errno> {
    // SAFETY: passed on.
    count(unsafe { libc::recv(fd, at.cast(), cut(length) as usize, libc::MSG_DONTWAIT) })
}

/// # Safety
/// `at` is `length` bytes.
#[cfg(not(target_os = "linux"))]
unsafe fn send(fd: RawFd, at: *const u8, length: usize) -> Result<u32, Errno> {
    let flags = libc::MSG_DONTWAIT | NO_SIGNAL;
    // SAFETY: passed on.
    count(unsafe { libc::send(fd, at.cast(), cut(length) as usize, flags) })
}

/// Where the flag exists, no SIGPIPE is raised; elsewhere Rust's runtime has it ignored.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
const NO_SIGNAL: i32 = libc::MSG_NOSIGNAL;
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
const NO_SIGNAL: i32 = 0;

pub(crate) fn shutdown_flag(how: Shutdown) -> i32 {
    match how {
        Shutdown::Read => libc::SHUT_RD,
        Shutdown::Write => libc::SHUT_WR,
        Shutdown::Both => libc::SHUT_RDWR,
    }
}

/// Reads or writes if what it takes is at hand (`RWF_NOWAIT`, preadv2(2), Linux 4.14).
///
/// # Safety
/// `at` is `length` bytes, to be written to if it reads.
#[cfg(target_os = "linux")]
#[inline]
unsafe fn move_now(
    fd: RawFd,
    reads: bool,
    at: *mut u8,
    length: usize,
    offset: Option<u64>,
) -> Result<u32, Errno> {
    let mut part = libc::iovec { iov_base: at.cast(), iov_len: cut(length) as usize };
    // SAFETY: one part that is valid for the call.
    unsafe { move_parts(fd, reads, &raw mut part, 1, offset) }
}

/// # Safety
/// As the calls: `parts` are `parts_count` of them, each valid.
#[cfg(target_os = "linux")]
#[inline]
unsafe fn move_parts(
    fd: RawFd,
    reads: bool,
    parts: *mut libc::iovec,
    parts_count: i32,
    offset: Option<u64>,
) -> Result<u32, Errno> {
    // What rustix would cut is refused, as the call itself does.
    if parts_count > libc::UIO_MAXIOV {
        return Err(libc::EINVAL);
    }
    // -1 is the current position.
    let offset = match offset {
        None => u64::MAX,
        Some(offset) if i64::try_from(offset).is_ok() => offset,
        Some(_) => return Err(libc::EINVAL),
    };
    let parts_count = parts_count as usize;
    // SAFETY: passed on.
    unsafe {
        if reads {
            linux::read_now(fd, parts, parts_count, offset)
        } else {
            linux::write_now(fd, parts, parts_count, offset)
        }
    }
}

/// Other systems have no such flag.
///
/// # Safety
/// None: it makes no call.
#[cfg(not(target_os = "linux"))]
unsafe fn move_now(_: RawFd, _: bool, _: *mut u8, _: usize, _: Option<u64>) -> Result<u32, Errno> {
    Err(libc::EOPNOTSUPP)
}

/// # Safety
/// `parts` are `parts_count` of them, each valid.
unsafe fn vectored(
    fd: RawFd,
    medium: Medium,
    nonblocking: bool,
    reads: bool,
    parts: *const IoPart,
    parts_count: usize,
) -> Result<u32, Errno> {
    let parts = parts.cast::<libc::iovec>();
    // SAFETY: passed on; a socket's message is made here and lives through the call.
    unsafe {
        if medium == Medium::Socket {
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = parts.cast_mut();
            message.msg_iovlen = parts_count as _;
            return count(if reads {
                libc::recvmsg(fd, &raw mut message, libc::MSG_DONTWAIT)
            } else {
                libc::sendmsg(fd, &raw const message, libc::MSG_DONTWAIT | NO_SIGNAL)
            });
        }
        let parts_count = i32::try_from(parts_count).map_err(|_| libc::EINVAL)?;
        if nonblocking {
            return count(if reads {
                libc::readv(fd, parts, parts_count)
            } else {
                libc::writev(fd, parts, parts_count)
            });
        }
        #[cfg(target_os = "linux")]
        return move_parts(fd, reads, parts.cast_mut(), parts_count, None);
        #[cfg(not(target_os = "linux"))]
        Err(libc::EOPNOTSUPP)
    }
}

/// Reads or writes, which may block.
///
/// # Safety
/// `at` is `length` bytes, to be written to if it reads.
pub(crate) unsafe fn move_blocking(
    fd: RawFd,
    reads: bool,
    at: *mut u8,
    length: usize,
    offset: Option<u64>,
) -> Result<u32, Errno> {
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    use libc::{off_t as Place, pread as read_at, pwrite as write_at};
    #[cfg(any(target_os = "linux", target_os = "android"))]
    use libc::{off64_t as Place, pread64 as read_at, pwrite64 as write_at};

    let (at, length) = (at.cast::<libc::c_void>(), cut(length) as usize);
    let place = offset.map(Place::try_from).transpose().map_err(|_| libc::EINVAL)?;
    // SAFETY: passed on.
    count(unsafe {
        match (reads, place) {
            (true, None) => libc::read(fd, at, length),
            (false, None) => libc::write(fd, at, length),
            (true, Some(place)) => read_at(fd, at, length, place),
            (false, Some(place)) => write_at(fd, at, length, place),
        }
    })
}

/// As `readv` and `writev`, which may block.
///
/// # Safety
/// `parts` are `parts_count` of them, each valid.
pub(crate) unsafe fn vectored_blocking(
    fd: RawFd,
    reads: bool,
    parts: *const IoPart,
    parts_count: usize,
) -> Result<u32, Errno> {
    // SAFETY: passed on.
    unsafe { vectored(fd, Medium::File, true, reads, parts, parts_count) }
}

/// connect(2).
///
/// # Safety
/// `peer` is valid.
#[cfg(not(target_os = "linux"))]
unsafe fn connect_call(fd: RawFd, peer: *const PeerAddress) -> Result<u32, Errno> {
    // SAFETY: passed on; the address is as long as it says.
    count(unsafe { libc::connect(fd, peer.cast(), (*peer).length) } as isize)
}

/// Begins to connect a socket whose calls do not block.
///
/// # Safety
/// `peer` is valid.
pub(crate) unsafe fn connect(fd: RawFd, peer: *const PeerAddress) -> Tried {
    // SAFETY: passed on.
    match unsafe { connect_call(fd, peer) } {
        Ok(count) => Tried::Moved(count),
        Err(libc::EINPROGRESS | libc::EINTR) => Tried::WouldBlock,
        // A listener of a path has no room for another just now.
        // SAFETY: as above.
        Err(libc::EAGAIN) if unsafe { (*peer).is_path() } => Tried::WouldBlock,
        Err(errno) => Tried::Failed(errno),
    }
}

/// How a connect that was begun has ended, or that it has not.
///
/// # Safety
/// `peer` is valid.
pub(crate) unsafe fn connect_ended(fd: RawFd, peer: *const PeerAddress) -> Tried {
    // First, as there is no such connect any more if somebody has shut the socket down: asked again, the call would begin
    // another. That was an error, too (net/ipv4/tcp.c, tcp_disconnect).
    if let Err(errno) = socket_error(fd) {
        #[cfg(target_os = "linux")]
        // SAFETY: passed on.
        if unsafe { (*peer).ip() }.is_some() {
            disconnect(fd);
        }
        return Tried::Failed(errno);
    }
    // SAFETY: passed on.
    unsafe { connect_again(fd, peer) }
}

/// The same of one that is still there. That a socket has no error says nothing of one that still connects. Asked again,
/// the call does; and it has the system take note that it has ended: the next connect is refused as it should be.
///
/// # Safety
/// `peer` is valid.
pub(crate) unsafe fn connect_again(fd: RawFd, peer: *const PeerAddress) -> Tried {
    // SAFETY: passed on.
    match unsafe { connect(fd, peer) } {
        Tried::Failed(libc::EISCONN) => Tried::Moved(0),
        Tried::Failed(libc::EALREADY) => Tried::WouldBlock,
        tried => tried,
    }
}

/// Has the system take note that a connect has failed, whose error was taken: else it would refuse the next as one that
/// goes on (net/ipv4/af_inet.c, inet_stream_connect).
#[cfg(target_os = "linux")]
fn disconnect(fd: RawFd) {
    // SAFETY: zeros are a valid address.
    let mut nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    nobody.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    // SAFETY: the address is ours, and so long.
    unsafe { libc::connect(fd, &raw const nobody, size_of_val(&nobody) as libc::socklen_t) };
}

/// # Safety
/// `accepted` is valid, and nobody else's.
unsafe fn accept(fd: RawFd, nonblocking: bool, accepted: *mut Accepted) -> Result<u32, Errno> {
    // There is no flag to make one accept not block; a socket that may block is asked first.
    if !nonblocking && ready_now(fd, Event::Read)? & u32::from(Event::Read.bit()) == 0 {
        return Err(libc::EAGAIN);
    }
    // SAFETY: the address and its length are ours; the descriptor that comes back is nobody's yet.
    unsafe {
        let (address, length) = Accepted::address(accepted);
        *length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
        let socket = libc::accept4(fd, address.cast(), length, libc::SOCK_CLOEXEC);
        #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
        let socket = {
            let socket = libc::accept(fd, address.cast(), length);
            if socket >= 0 {
                libc::fcntl(socket, libc::F_SETFD, libc::FD_CLOEXEC);
            }
            socket
        };
        if socket < 0 {
            return Err(last_error());
        }
        Accepted::take_in(accepted, socket);
    }
    Ok(0)
}

/// The other end will send no more: told of where the system can.
#[cfg(target_os = "linux")]
const HANGUP: i16 = libc::POLLRDHUP;
#[cfg(not(target_os = "linux"))]
const HANGUP: i16 = 0;

/// What poll(2) is asked, and answers, for an event. Hang-ups end every wait.
pub(crate) fn poll_flag(event: Event) -> i16 {
    let asked = match event {
        Event::Read => libc::POLLIN,
        Event::Write => libc::POLLOUT,
        Event::PriorityRead => libc::POLLPRI,
        // These are always told of, whatever was asked.
        Event::Error | Event::Hangup => 0,
    };
    asked | HANGUP
}

/// The events that poll(2)'s flags say.
#[inline]
pub(crate) fn events_of(flags: i16) -> Events {
    const fn one(flags: i16, flag: i16, event: Event) -> u8 {
        if flags & flag != 0 { event.bit() } else { 0 }
    }
    if flags == libc::POLLIN {
        return Events::READ; // The commonest by far.
    }
    Events::from_bits(
        one(flags, libc::POLLIN, Event::Read)
            | one(flags, libc::POLLOUT, Event::Write)
            | one(flags, libc::POLLPRI, Event::PriorityRead)
            | one(flags, libc::POLLERR | libc::POLLNVAL, Event::Error)
            | one(flags, libc::POLLHUP | HANGUP, Event::Hangup),
    )
}

/// What the descriptor is ready for just now, of what `event` waits for; EAGAIN for nothing.
pub(crate) fn ready_now(fd: RawFd, event: Event) -> Result<u32, Errno> {
    let mut asked = libc::pollfd { fd, events: poll_flag(event), revents: 0 };
    // SAFETY: one entry, which is ours.
    let answered = unsafe { libc::poll(&raw mut asked, 1, 0) };
    match answered {
        ..0 => Err(last_error()),
        0 => Err(libc::EAGAIN),
        _ if asked.revents & libc::POLLNVAL != 0 => Err(libc::EBADF),
        _ => Ok(u32::from(events_of(asked.revents).bits())),
    }
}

/// Makes a descriptor's calls never block; true where that changed something.
pub(crate) fn make_nonblocking(fd: RawFd) -> bool {
    // SAFETY: fcntl with these two takes and gives numbers.
    unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        if flags < 0 || flags & libc::O_NONBLOCK != 0 {
            return false;
        }
        libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) == 0
    }
}

/// Makes its calls block again. Leaves its other flags as they are by now.
pub(crate) fn make_blocking(fd: RawFd) {
    let mut nonblocking: libc::c_int = 0;
    // SAFETY: the number is ours.
    unsafe { libc::ioctl(fd, libc::FIONBIO, &raw mut nonblocking) };
}

/// Closes a descriptor.
pub(crate) fn close(fd: OwnedFd) -> Result<u32, Errno> {
    // SAFETY: it is ours, and nobody else's.
    match count(unsafe { libc::close(fd.into_raw_fd()) } as isize) {
        // Closed all the same, and its number perhaps another's by now (close(2), NOTES).
        Err(libc::EINTR) => Ok(0),
        answer => answer,
    }
}

/// Another descriptor of the same open file.
pub(crate) fn duplicate(fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers; the descriptor that comes back is nobody's yet.
    unsafe {
        let duplicate = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3);
        if duplicate < 0 {
            return Err(last_error());
        }
        Ok(OwnedFd::from_raw_fd(duplicate))
    }
}

/// A new socket for streams, which children do not inherit.
pub(crate) fn stream_socket(family: i32) -> Result<OwnedFd, Errno> {
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
    const KIND: i32 = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    const KIND: i32 = libc::SOCK_STREAM;
    // SAFETY: takes numbers; the descriptor that comes back is nobody's yet.
    unsafe {
        let socket = libc::socket(family, KIND, 0);
        if socket < 0 {
            return Err(last_error());
        }
        if KIND == libc::SOCK_STREAM {
            libc::fcntl(socket, libc::F_SETFD, libc::FD_CLOEXEC);
        }
        Ok(OwnedFd::from_raw_fd(socket))
    }
}

/// Whether the descriptor's calls never block.
pub(crate) fn is_nonblocking(fd: RawFd) -> bool {
    // SAFETY: as above.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    flags >= 0 && flags & libc::O_NONBLOCK != 0
}

/// Whether the file's calls go past the system's cache. They wait for the disk then, also where they are
/// told not to block: that is for what has to be waited for before the disk is asked.
pub(crate) fn is_past_the_cache(fd: RawFd) -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: takes and gives numbers.
    return unsafe { libc::fcntl(fd, libc::F_GETFL) & libc::O_DIRECT != 0 };
    #[cfg(not(target_os = "linux"))]
    {
        let _ = fd; // There no call of a file's is told so.
        false
    }
}

/// A file's position.
#[cfg(target_os = "linux")]
pub(crate) fn position(fd: RawFd) -> Option<u64> {
    // SAFETY: takes and gives numbers.
    u64::try_from(unsafe { libc::lseek64(fd, 0, libc::SEEK_CUR) }).ok()
}

#[cfg(target_os = "linux")]
pub(crate) fn set_position(fd: RawFd, to: u64) {
    if let Ok(to) = libc::off64_t::try_from(to) {
        // SAFETY: as above.
        unsafe { libc::lseek64(fd, to, libc::SEEK_SET) };
    }
}

/// Whether a socket carries a stream of bytes, not messages.
pub(crate) fn is_stream_socket(fd: RawFd) -> bool {
    socket_option(fd, libc::SO_TYPE) == Ok(libc::SOCK_STREAM)
}

/// The error a socket has kept for whoever asks: how a connect ended.
pub(crate) fn socket_error(fd: RawFd) -> Result<u32, Errno> {
    match socket_option(fd, libc::SO_ERROR)? {
        0 => Ok(0),
        error => Err(error),
    }
}

fn socket_option(fd: RawFd, name: libc::c_int) -> Result<libc::c_int, Errno> {
    let mut answer: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the answer's place is ours, and `length` its size.
    let asked = unsafe {
        let place = (&raw mut answer).cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, name, place, &raw mut length)
    };
    if asked == 0 { Ok(answer) } else { Err(last_error()) }
}

// ---------------------------------------------------------------------------------------------
// Time

/// A clock of the system's.
#[inline]
pub(crate) fn clock(id: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the place for the answer is ours. The clocks that are asked exist.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    // Both are positive: the clocks start at zero, and the second part is below a second.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A clock that never goes back.
pub(crate) fn now() -> Duration {
    clock(libc::CLOCK_MONOTONIC)
}

/// The same, as of the last tick where there is such a thing: cheaper to read.
#[inline]
pub(crate) fn coarse_now() -> Duration {
    #[cfg(target_os = "linux")]
    return clock(libc::CLOCK_MONOTONIC_COARSE);
    #[cfg(not(target_os = "linux"))]
    now()
}

// ---------------------------------------------------------------------------------------------
// The bell

/// What wakes a queue from any thread: a descriptor the kernel watches. The notifiers keep it open,
/// so that a value that came back is never written to.
#[derive(Debug)]
pub(crate) struct Bell {
    #[cfg(target_os = "linux")]
    event: OwnedFd,
    /// Another, which rings with it.
    #[cfg(target_os = "linux")]
    other: OnceLock<Arc<Self>>,
    #[cfg(not(target_os = "linux"))]
    ends: (OwnedFd, OwnedFd),
}

#[cfg(target_os = "linux")]
impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes numbers; the descriptor that comes back is nobody's yet.
        unsafe {
            let event = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if event < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self { event: OwnedFd::from_raw_fd(event), other: OnceLock::new() })
        }
    }

    /// Has `other` ring with this one from now on, if none does.
    pub(crate) fn ring_too(&self, other: &Arc<Self>) {
        let _ = self.other.set(Arc::clone(other));
    }

    pub(crate) fn ring(&self) -> io::Result<()> {
        match linux::add_one(&self.event) {
            // A full counter wakes as well.
            Ok(()) | Err(libc::EAGAIN) => {}
            Err(errno) => return Err(io::Error::from_raw_os_error(errno)),
        }
        self.other.get().map_or(Ok(()), |other| other.ring())
    }

    /// Takes out what rang. What watches it by the edge need not: 2^64 rings are for ever.
    pub(crate) fn empty(&self) {
        let mut rings = 0_u64;
        // SAFETY: eight bytes that are ours.
        unsafe { libc::read(self.event.as_raw_fd(), (&raw mut rings).cast(), size_of::<u64>()) };
    }
}

#[cfg(target_os = "linux")]
impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(not(target_os = "linux"))]
impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        let (hear, pull) = std::os::unix::net::UnixStream::pair()?;
        hear.set_nonblocking(true)?;
        pull.set_nonblocking(true)?;
        Ok(Self { ends: (hear.into(), pull.into()) })
    }

    pub(crate) fn ring(&self) -> io::Result<()> {
        let one = 1_u8;
        // SAFETY: one byte that is ours.
        let written = unsafe { libc::write(self.ends.1.as_raw_fd(), (&raw const one).cast(), 1) };
        // A full pair wakes as well.
        if written >= 0 || last_error() == libc::EAGAIN {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Takes out what rang.
    pub(crate) fn empty(&self) {
        let mut taken = [0_u8; 64];
        // SAFETY: the buffer is ours.
        while unsafe { libc::read(self.ends.0.as_raw_fd(), taken.as_mut_ptr().cast(), 64) } == 64 {}
    }
}

#[cfg(not(target_os = "linux"))]
impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ends.0.as_fd()
    }
}
