#![cfg(unix)]
//! Descriptors of every other kind that Unix has, through a registered handle's read and write.

#[macro_use]
mod each_kernel;

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::task::Poll;
use std::time::Duration;

use each_kernel::{
    finish_by_turns, is_nonblocking, look_around, poll_once, raw_pipe, raw_socket, read_full,
    set_nonblocking, skip, unique, write_full,
};
#[cfg(target_os = "linux")]
use ioqueue::IoBuf;
use ioqueue::{AsAnyHandle, KernelKind, Misuse, Queue, Registered, SocketAddress, error};

/// A name in the file system that is free again when this is dropped.
struct Name(PathBuf);

impl Name {
    fn new() -> Self {
        let name = format!("ioqueue-socket-{}-{}", std::process::id(), unique());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Sends bytes with a descriptor.
fn send_descriptor(socket: &UnixStream, bytes: &[u8], what: &impl AsFd) {
    #[repr(C, align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let part = IoSlice::new(bytes);
    // SAFETY: the message's parts are ours and live through the call; the control buffer is aligned, and
    // large enough for a header and one descriptor.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = (&raw const part).cast::<libc::iovec>().cast_mut();
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = libc::CMSG_SPACE(size_of::<i32>() as u32) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<i32>() as u32) as _;
        let fd = what.as_fd().as_raw_fd();
        libc::CMSG_DATA(header).cast::<i32>().write_unaligned(fd);
        let sent = libc::sendmsg(socket.as_raw_fd(), &raw const message, 0);
        assert_eq!(sent, bytes.len() as isize, "{}", io::Error::last_os_error());
    }
}

fn unix_pair(queue: &Queue) -> (Registered<UnixStream>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (queue.register(ours).unwrap(), theirs)
}

/// Writes until a write waits. Says which, and how much was written before.
fn fill<H: AsAnyHandle>(
    queue: &Queue,
    to: &Registered<H>,
) -> (impl Future<Output = (io::Result<usize>, Vec<u8>)> + Unpin + use<H>, usize) {
    let mut written = 0;
    loop {
        let mut writing = to.send(vec![3; 4 << 20]);
        queue.block_on(look_around()).unwrap();
        match poll_once(&mut writing) {
            Poll::Ready((count, _)) => written += count.unwrap(),
            Poll::Pending => return (writing, written),
        }
    }
}

/// Waits until the other end has acknowledged everything.
#[cfg(target_os = "linux")]
fn arrives(socket: &impl AsFd) {
    let start = std::time::Instant::now();
    loop {
        let mut left = 0;
        // SAFETY: room for the answer, a number.
        let told =
            unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut left) };
        assert_eq!(told, 0, "{}", io::Error::last_os_error());
        if left == 0 {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{left} bytes do not arrive");
        std::thread::yield_now();
    }
}

/// Bytes of which only the first half can be read, as those of a file in memory that became shorter.
#[cfg(target_os = "linux")]
struct HalfReadable(*mut libc::c_void);

#[cfg(target_os = "linux")]
impl HalfReadable {
    const LENGTH: usize = 128 << 10;

    fn new() -> Self {
        let half = Self::LENGTH / 2;
        // SAFETY: memory of its own, at a place of the system's choice, of which the second half is closed.
        unsafe {
            let (all, flags) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANON);
            let at = libc::mmap(std::ptr::null_mut(), Self::LENGTH, all, flags, -1, 0);
            assert!(at != libc::MAP_FAILED, "{}", io::Error::last_os_error());
            assert_eq!(libc::mprotect(at.byte_add(half), half, libc::PROT_NONE), 0);
            Self(at)
        }
    }
}

#[cfg(target_os = "linux")]
impl Drop for HalfReadable {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`.
        unsafe { libc::munmap(self.0, Self::LENGTH) };
    }
}

// SAFETY: the memory stays where it is, and is mapped as long as this is there. Only the system reads it, which
// answers for what it cannot read with a shorter count, or an error.
#[cfg(target_os = "linux")]
unsafe impl IoBuf for HalfReadable {
    fn io_ptr(&self) -> *const u8 {
        self.0.cast()
    }

    fn io_len(&self) -> usize {
        Self::LENGTH
    }
}

/// Both ends of a terminal: the program's and the screen's. It passes bytes on as they are.
fn terminal() -> (OwnedFd, OwnedFd) {
    // SAFETY: takes numbers; the descriptors that come back are nobody's yet; the name is copied before
    // anybody else asks for one.
    unsafe {
        let screen = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY);
        assert!(screen >= 0, "{}", io::Error::last_os_error());
        let screen = OwnedFd::from_raw_fd(screen);
        assert_eq!(libc::grantpt(screen.as_raw_fd()), 0);
        assert_eq!(libc::unlockpt(screen.as_raw_fd()), 0);
        static NAMES: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let name = {
            let _alone = NAMES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            CStr::from_ptr(libc::ptsname(screen.as_raw_fd())).to_owned()
        };
        let program = libc::open(name.as_ptr(), libc::O_RDWR | libc::O_NOCTTY);
        assert!(program >= 0, "{}", io::Error::last_os_error());
        let program = OwnedFd::from_raw_fd(program);
        let mut settings: libc::termios = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(program.as_raw_fd(), &raw mut settings), 0);
        libc::cfmakeraw(&raw mut settings);
        assert_eq!(libc::tcsetattr(program.as_raw_fd(), libc::TCSANOW, &raw const settings), 0);
        (program, screen)
    }
}

/// How long this thread has been at work.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the place for the answer is ours.
    let told = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(told, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A descriptor that a call of Linux' gave.
#[cfg(target_os = "linux")]
fn given(fd: i32) -> OwnedFd {
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: it was just made, and is nobody's yet.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

on_each_kernel! {
    not_simulated("these are handles of Unix"):

    /// H5: by a name in the file system.
    fn a_socket_with_a_name_is_connected_and_accepted(queue) {
        let name = Name::new();
        let listener = queue.register(UnixListener::bind(&name.0).unwrap()).unwrap();
        for is_early in [true, false] {
            let early = is_early.then(|| listener.accept());
            let socket = queue.register(raw_socket(libc::AF_UNIX, libc::SOCK_STREAM)).unwrap();
            let address = SocketAddress::unix(&name.0).unwrap();
            queue.block_on(socket.connect(address)).unwrap().unwrap();
            let accept = early.unwrap_or_else(|| listener.accept());
            let (peer, who) = queue.block_on(accept).unwrap().unwrap();
            assert_eq!(who.ip(), None);
            let peer = queue.register(UnixStream::from(peer)).unwrap();
            queue.block_on(write_full(&socket, "hello")).unwrap();
            assert_eq!(queue.block_on(read_full(&peer, 5)).unwrap(), b"hello");
        }
        let nobody = SocketAddress::unix(Name::new().0.clone()).unwrap();
        let socket = queue.register(raw_socket(libc::AF_UNIX, libc::SOCK_STREAM)).unwrap();
        let error = queue.block_on(socket.connect(nobody)).unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    /// U3: to a listener that nobody has taken the last connections off, a connect waits.
    fn a_connect_waits_for_a_listener_that_is_full(queue) {
        let name = Name::new();
        let listener = UnixListener::bind(&name.0).unwrap();
        // SAFETY: takes numbers. A second call makes the queue of those who wait shorter.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
        let listener = queue.register(listener).unwrap();
        let address = SocketAddress::unix(&name.0).unwrap();
        let sockets: Vec<_> = (0..8).map(|_| {
            queue.register(raw_socket(libc::AF_UNIX, libc::SOCK_STREAM)).unwrap()
        }).collect();
        let connects: Vec<_> = sockets.iter().map(|socket| socket.connect(address)).collect();
        queue.block_on(look_around()).unwrap();
        let accepts: Vec<_> = (0..8).map(|_| listener.accept()).collect();
        for connect in connects {
            queue.block_on(connect).unwrap().unwrap();
        }
        for accept in accepts {
            queue.block_on(accept).unwrap().unwrap();
        }
    }

    /// Q13, scenario 13: in each way in which it may be, at once or when it has waited for a while. The system does not find
    /// it all the time.
    fn a_connect_that_waits_for_room_may_be_given_up(queue) {
        let name = Name::new();
        let listener = UnixListener::bind(&name.0).unwrap();
        // SAFETY: takes numbers.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
        let first = UnixStream::connect(&name.0).unwrap();
        let address = SocketAddress::unix(&name.0).unwrap();
        for looks in [0, 1, 2, 200] {
            let connect = || {
                let socket = queue.register(raw_socket(libc::AF_UNIX, libc::SOCK_STREAM)).unwrap();
                let connecting = socket.connect(address);
                (0..looks).for_each(|_| each_kernel::turn(queue));
                (socket, connecting)
            };
            let (socket, connecting) = connect();
            let error = queue.block_on(connecting.cancel()).unwrap().unwrap_err();
            assert!(error::is_cancelled(&error), "{error}");
            drop(socket);
            let (_socket, connecting) = connect();
            let error = queue.block_on(connecting.timeout(Duration::ZERO)).unwrap().unwrap_err();
            assert!(ioqueue::Elapsed::is(&error), "{error}");
            let (socket, connecting) = connect();
            drop(connecting);
            queue.run().unwrap();
            drop(socket);
            let (socket, mut connecting) = connect();
            drop(socket);
            let error = queue.block_on(&mut connecting).unwrap().unwrap_err();
            assert!(error::is_cancelled(&error), "{error}");
            drop(connect());
            queue.run().unwrap();
            assert!(queue.pending().is_empty());
        }
        // None of them connects any more.
        drop((listener.accept().unwrap(), first));
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    /// The same of a write to an eventfd, which says that there is room.
    #[cfg(target_os = "linux")]
    fn a_write_that_does_not_fit_into_an_eventfd_may_be_given_up(queue) {
        // SAFETY: takes numbers; the descriptor that comes back is nobody's yet.
        let event = unsafe { File::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
        // What is left is less than what follows.
        (&event).write_all(&(u64::MAX - 5).to_ne_bytes()).unwrap();
        let event = queue.register(event).unwrap();
        for looks in [0, 1, 2, 200] {
            let writing = event.write(10_u64.to_ne_bytes());
            (0..looks).for_each(|_| each_kernel::turn(queue));
            let error = queue.block_on(writing.cancel()).unwrap().0.unwrap_err();
            assert!(error::is_cancelled(&error), "{error}");
        }
    }

    /// Somebody shuts the socket down meanwhile, and has it block again: no other connect is begun for that.
    fn a_connect_that_is_shut_down_has_ended(queue) {
        let (address, sockets) = each_kernel::silent_address(queue);
        let sockets: Vec<OwnedFd> = *sockets.downcast().unwrap();
        let socket = TcpStream::from(raw_socket(libc::AF_INET, libc::SOCK_STREAM));
        let duplicate = socket.try_clone().unwrap();
        let socket = queue.register(socket).unwrap();
        let mut connecting = socket.connect(address);
        assert!(poll_once(&mut connecting).is_pending(), "the address is not silent");
        queue.block_on(look_around()).unwrap();
        // There would be room for it now.
        let listener = TcpListener::from(sockets.into_iter().next().unwrap());
        listener.set_nonblocking(true).unwrap();
        while listener.accept().is_ok() {}
        duplicate.set_nonblocking(false).unwrap();
        duplicate.shutdown(std::net::Shutdown::Both).unwrap();
        let error = queue.block_on(connecting).unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
        assert!(duplicate.peer_addr().is_err());
        // And is over for the system as well: the next is not refused.
        let live = TcpListener::bind("127.0.0.1:0").unwrap();
        queue.block_on(socket.connect(live.local_addr().unwrap())).unwrap().unwrap();
    }

    /// And by the queue's own shutdown, which does not wait for it.
    fn a_shutdown_ends_a_connect_that_waits(queue) {
        let (address, _guard) = each_kernel::silent_address(queue);
        let socket = each_kernel::tcp_socket(queue, address);
        let mut connecting = socket.connect(address);
        assert!(poll_once(&mut connecting).is_pending(), "the address is not silent");
        queue.block_on(look_around()).unwrap();
        queue.block_on(socket.shutdown(std::net::Shutdown::Both)).unwrap().unwrap();
        let error = queue.block_on(connecting).unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    }

    /// Of two that wait the second learns of what came behind the mark that has ended the first early.
    fn a_second_receive_gets_what_came_behind_a_descriptor(queue) {
        let (ours, theirs) = unix_pair(queue);
        let (mut first, mut second) = (ours.recv(vec![0; 64]), ours.recv(vec![0; 64]));
        assert!(poll_once(&mut first).is_pending() && poll_once(&mut second).is_pending());
        // Longer than anything is in doubt.
        queue.block_on(queue.sleep(Duration::from_millis(150))).unwrap().unwrap();
        send_descriptor(&theirs, b"one", &io::stderr());
        send_descriptor(&theirs, b"other", &io::stderr());
        assert_eq!(queue.block_on(first).unwrap().1, b"one");
        assert_eq!(queue.block_on(second).unwrap().1, b"other");
        // The same where both wait behind a third, of another kind.
        let (ours, theirs) = unix_pair(queue);
        let third = ours.read_vectored([vec![0; 64]]);
        let (first, second) = (ours.recv(vec![0; 64]), ours.recv(vec![0; 64]));
        queue.block_on(queue.sleep(Duration::from_millis(150))).unwrap().unwrap();
        for bytes in [b"a", b"b", b"c"] {
            send_descriptor(&theirs, bytes, &io::stderr());
        }
        assert_eq!(queue.block_on(third).unwrap().1, [b"a"]);
        assert_eq!(queue.block_on(first).unwrap().1, b"b");
        assert_eq!(queue.block_on(second).unwrap().1, b"c");
    }

    /// Datagrams between sockets of the file system.
    fn messages_keep_their_bounds(queue) {
        let (one, other) = UnixDatagram::pair().unwrap();
        let (one, other) = (queue.register(one).unwrap(), queue.register(other).unwrap());
        let early = other.recv(vec![0; 16]);
        for message in ["one", "another", "third"] {
            assert_eq!(queue.block_on(one.send(message)).unwrap().0.unwrap(), message.len());
        }
        assert_eq!(queue.block_on(early).unwrap().1, b"one");
        assert_eq!(queue.block_on(other.recv(vec![0; 16])).unwrap().1, b"another");
        assert_eq!(queue.block_on(other.read(vec![0; 16])).unwrap().1, b"third");
    }

    /// A message that carries a descriptor ends a receive early: what comes after is received at once, also
    /// by a host that never waits, and beside a handle that is always busy.
    fn bytes_after_a_descriptor_are_received(queue) {
        for by_turns in [false, true] {
            let (ours, theirs) = unix_pair(queue);
            // The first receive has the handle watched from here on.
            let first = ours.recv(vec![0; 64]);
            queue.block_on(look_around()).unwrap();
            (&theirs).write_all(b"first").unwrap();
            assert_eq!(queue.block_on(first).unwrap().1, b"first");
            send_descriptor(&theirs, b"one", &io::stderr());
            (&theirs).write_all(b"other").unwrap();
            queue.block_on(look_around()).unwrap();
            let finish = |receive| {
                if by_turns { finish_by_turns(queue, receive) } else { queue.block_on(receive).unwrap() }
            };
            let (count, mut bytes) = finish(ours.recv(vec![0; 64]));
            count.unwrap();
            if bytes == b"one" {
                let (count, rest) = finish(ours.recv(vec![0; 64]));
                count.unwrap();
                bytes.extend(rest);
            }
            assert_eq!(bytes, b"oneother");
        }
    }

    /// As the last, beside a handle that is busy all the time.
    fn bytes_after_a_descriptor_are_received_beside_a_busy_handle(queue) {
        let (ours, theirs) = unix_pair(queue);
        let first = ours.recv(vec![0; 64]);
        queue.block_on(look_around()).unwrap();
        (&theirs).write_all(b"first").unwrap();
        assert_eq!(queue.block_on(first).unwrap().1, b"first");
        send_descriptor(&theirs, b"one", &io::stderr());
        (&theirs).write_all(b"other").unwrap();
        queue.block_on(look_around()).unwrap();
        let (count, _) = queue.block_on(ours.recv(vec![0; 64])).unwrap();
        if count.unwrap() == 8 {
            return skip("this system receives across a descriptor");
        }
        let mut rest = ours.recv(vec![0; 64]);
        let (here, there) = each_kernel::tcp(queue);
        let start = std::time::Instant::now();
        let bytes = queue.block_on(async {
            loop {
                let receiving = here.recv(vec![0; 1]);
                there.send("x").await.0.unwrap();
                receiving.await.0.unwrap();
                if let Poll::Ready((_, bytes)) = poll_once(&mut rest) {
                    return bytes;
                }
                assert!(start.elapsed() < Duration::from_secs(10), "it is never received");
            }
        }).unwrap();
        assert_eq!(bytes, b"other");
    }

    /// A mark for urgent data ends a receive early, too.
    fn bytes_after_urgent_data_are_received(queue) {
        for by_turns in [false, true] {
            let (ours, mut theirs) = each_kernel::tcp_to_host(queue);
            let first = ours.recv(vec![0; 64]);
            queue.block_on(look_around()).unwrap();
            theirs.write_all(b"first").unwrap();
            assert_eq!(queue.block_on(first).unwrap().1, b"first");
            theirs.write_all(b"before").unwrap();
            // SAFETY: a byte of ours.
            let sent = unsafe {
                libc::send(theirs.as_raw_fd(), c"!".as_ptr().cast(), 1, libc::MSG_OOB)
            };
            assert_eq!(sent, 1);
            theirs.write_all(b"after").unwrap();
            queue.block_on(look_around()).unwrap();
            let mut all = Vec::new();
            while all.len() < 11 {
                let receive = ours.recv(vec![0; 64]);
                let (count, bytes) =
                    if by_turns { finish_by_turns(queue, receive) } else { queue.block_on(receive).unwrap() };
                assert!(count.unwrap() > 0, "an early end");
                all.extend(bytes);
            }
            assert_eq!(all, b"beforeafter");
        }
    }

    /// A write that waits for room at a peer that will send no more, but may read on, sleeps.
    fn a_write_to_a_half_open_peer_waits_without_turning_round(queue) {
        for way in each_kernel::two_ways(queue) {
            let (name, from, to) = (way.name, way.from, way.to);
            queue.block_on(to.shutdown(std::net::Shutdown::Write)).unwrap().unwrap();
            let waiting = loop {
                let mut writing = from.write(vec![1; 1 << 20]);
                queue.block_on(look_around()).unwrap();
                match poll_once(&mut writing) {
                    Poll::Ready((count, _)) => assert!(count.unwrap() > 0),
                    Poll::Pending => break writing,
                }
            };
            let before = thread_time();
            queue.block_on(queue.sleep(Duration::from_millis(300))).unwrap().unwrap();
            let spent = thread_time() - before;
            assert!(spent < Duration::from_millis(100), "{name}: {spent:?} of 300 ms");
            drop(waiting);
            queue.run().unwrap();
        }
    }

    /// A receive that waits gets what comes at once, not when somebody looks after it.
    fn what_comes_is_told_of_at_once(queue) {
        for round in 0..5 {
            let (ours, mut theirs) = unix_pair(queue);
            for part in ["first", "next"] {
                let mut waiting = ours.recv(vec![0; 64]);
                queue.block_on(look_around()).unwrap();
                assert!(poll_once(&mut waiting).is_pending());
                theirs.write_all(part.as_bytes()).unwrap();
                queue.block_on(look_around()).unwrap();
                let Poll::Ready((_, bytes)) = poll_once(&mut waiting) else {
                    panic!("round {round}: {part} has come, and is waited for");
                };
                assert_eq!(bytes, part.as_bytes());
            }
        }
    }

    /// As the last, where more has come than one receive has room for; and for a read, whose handle gave all it
    /// had to the one before.
    fn all_that_comes_is_received_at_once(queue) {
        let (ours, mut theirs) = unix_pair(queue);
        let mut waiting = [ours.recv(vec![0; 4]), ours.recv(vec![0; 4])];
        queue.block_on(look_around()).unwrap();
        theirs.write_all(b"onetwo..more").unwrap();
        queue.block_on(look_around()).unwrap();
        for (waiting, bytes) in waiting.iter_mut().zip([b"onet", b"wo.."]) {
            let Poll::Ready((_, received)) = poll_once(waiting) else { panic!("{bytes:?} has come") };
            assert_eq!(received, bytes);
        }
        let Poll::Ready((_, rest)) = poll_once(&mut ours.recv(vec![0; 8])) else {
            panic!("the rest has come");
        };
        assert_eq!(rest, b"more");
        let mut reading = ours.read(vec![0; 8]);
        queue.block_on(look_around()).unwrap();
        assert!(poll_once(&mut reading).is_pending());
        theirs.write_all(b"read").unwrap();
        queue.block_on(look_around()).unwrap();
        let Poll::Ready((_, bytes)) = poll_once(&mut reading) else { panic!("it has come") };
        assert_eq!(bytes, b"read");
    }

    /// What an edge told of may be gone when it is received, and the connection with it: only one call is told
    /// of a reset.
    #[cfg(target_os = "linux")]
    fn a_reset_that_comes_behind_an_edge_is_told_of(queue) {
        let (ours, mut theirs) = each_kernel::raw_tcp();
        let mut other = ours.try_clone().unwrap();
        let ours = queue.register(ours).unwrap();
        let receiving = ours.recv(vec![0; 8]);
        let (leaves, _stays) = unix_pair(queue);
        let waiting = leaves.recv(vec![0; 8]);
        queue.block_on(look_around()).unwrap();
        theirs.write_all(b"x").unwrap();
        arrives(&theirs);
        // A ring takes in the edge here, as a registration ends, and looks at it later.
        drop((waiting, leaves));
        other.read_exact(&mut [0]).unwrap();
        each_kernel::reset_when_closed(&theirs);
        drop(theirs);
        let mut asked = libc::pollfd { fd: other.as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: one entry, which is ours.
        assert_eq!(unsafe { libc::poll(&raw mut asked, 1, 10_000) }, 1, "the reset does not arrive");
        let error = queue.block_on(receiving).unwrap().0.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    }

    /// A write that waits for room goes on as soon as there is some, not when somebody looks after it.
    fn room_is_told_of_at_once(queue) {
        let (ours, mut theirs) = unix_pair(queue);
        for round in 0..5 {
            let (mut waiting, written) = fill(queue, &ours);
            theirs.read_exact(&mut vec![0; written]).unwrap();
            queue.block_on(look_around()).unwrap();
            let Poll::Ready((count, _)) = poll_once(&mut waiting) else {
                panic!("round {round}: there is room, and it is waited for");
            };
            theirs.read_exact(&mut vec![0; count.unwrap()]).unwrap();
        }
    }

    /// A write can end early though there is room: where the system cannot read the rest of the buffer. No edge
    /// tells of room that there was all the time.
    #[cfg(target_os = "linux")]
    fn what_is_written_after_a_write_that_ended_early_goes_out(queue) {
        for is_half_open in [false, true] {
            let (ours, mut theirs) = each_kernel::raw_tcp();
            let ours = queue.register(ours).unwrap();
            if is_half_open {
                // The end has the handle watched in another way.
                let end = ours.recv(vec![0; 8]);
                queue.block_on(look_around()).unwrap();
                theirs.shutdown(std::net::Shutdown::Write).unwrap();
                assert_eq!(queue.block_on(end).unwrap().0.unwrap(), 0);
            }
            // From here on the handle is watched, and nothing is left to be told of it.
            let (waiting, written) = fill(queue, &ours);
            theirs.read_exact(&mut vec![0; written]).unwrap();
            let count = queue.block_on(waiting).unwrap().0.unwrap();
            theirs.read_exact(&mut vec![0; count]).unwrap();
            arrives(ours.get());
            queue.block_on(look_around()).unwrap();
            for round in 0..2 {
                let (count, buffer) = queue.block_on(ours.send(HalfReadable::new())).unwrap();
                let count = count.unwrap();
                assert!(count < HalfReadable::LENGTH, "it cannot be read whole");
                drop(buffer);
                let next = ours.send("next").timeout(Duration::from_secs(10));
                let (sent, _) = queue.block_on(next).unwrap();
                assert_eq!(sent.unwrap(), 4, "round {round}");
                let mut sink = vec![0; count + 4];
                theirs.read_exact(&mut sink).unwrap();
                assert_eq!(sink[count..], *b"next");
            }
        }
    }

    /// A pipe that was full is written to at once when it has room again, if it was before.
    fn a_pipe_that_was_full_is_written_to_at_once_again(queue) {
        let (reader, writer) = raw_pipe();
        let (mut reader, writer) = (File::from(reader), queue.register(writer).unwrap());
        if poll_once(&mut writer.write("first")).is_pending() {
            return skip("this system cannot be asked for a pipe's write that does not block");
        }
        let (count, _) = queue.block_on(writer.write(vec![1; 4 << 20])).unwrap();
        reader.read_exact(&mut vec![0; 5 + count.unwrap()]).unwrap();
        queue.block_on(look_around()).unwrap();
        assert!(poll_once(&mut writer.write("next")).is_ready(), "there is room");
    }

    /// What never blocks already behaves as the others, and stays as it was.
    fn handles_that_never_block_are_as_good_as_others(queue) {
        for (name, from, to) in each_kernel::raw_ways(queue) {
            set_nonblocking(&from, true);
            set_nonblocking(&to, true);
            let (from, to) = (queue.register(from).unwrap(), queue.register(to).unwrap());
            let early = to.read(vec![0; 8]);
            queue.block_on(look_around()).unwrap();
            queue.block_on(write_full(&from, "early")).unwrap();
            assert_eq!(queue.block_on(early).unwrap().1, b"early", "{name}");
            let mut written = 0;
            let waiting = loop {
                let mut writing = from.write(vec![3; 1 << 20]);
                queue.block_on(look_around()).unwrap();
                match poll_once(&mut writing) {
                    Poll::Ready((count, _)) => written += count.unwrap(),
                    Poll::Pending => break writing,
                }
            };
            assert_eq!(queue.block_on(read_full(&to, written)).unwrap().len(), written, "{name}");
            assert!(queue.block_on(waiting).unwrap().0.unwrap() > 0, "{name}");
            assert!(is_nonblocking(&from.into_inner()) && is_nonblocking(&to.into_inner()), "{name}");
        }
        let (address, _guard) = each_kernel::silent_address(queue);
        let socket = raw_socket(libc::AF_INET, libc::SOCK_STREAM);
        set_nonblocking(&socket, true);
        let socket = queue.register(socket).unwrap();
        let mut connecting = socket.connect(address);
        queue.block_on(look_around()).unwrap();
        assert!(poll_once(&mut connecting).is_pending());
        let error = queue.block_on(connecting.cancel()).unwrap().unwrap_err();
        assert!(error::is_cancelled(&error), "{error}");
    }

    fn sockets_that_never_block_connect_and_accept(queue) {
        let (listener, address) = each_kernel::listener(queue);
        let listener = listener.into_inner();
        set_nonblocking(&listener, true);
        let listener = queue.register(listener).unwrap();
        let accept = listener.accept();
        queue.block_on(look_around()).unwrap();
        let socket = raw_socket(libc::AF_INET, libc::SOCK_STREAM);
        set_nonblocking(&socket, true);
        let socket = queue.register(socket).unwrap();
        queue.block_on(socket.connect(address)).unwrap().unwrap();
        queue.block_on(accept).unwrap().unwrap();
        let early = listener.accept();
        let error = queue.block_on(early.cancel()).unwrap().unwrap_err();
        assert!(error::is_cancelled(&error), "{error}");
    }

    /// Told of by its edge, seconds later: of whom there is room for by then, and of whom the listener is gone.
    fn a_connect_that_waits_ends_as_it_went(queue) {
        let ways = [true, false].map(|is_taken| {
            let (address, sockets) = each_kernel::silent_address(queue);
            let mut sockets: Vec<OwnedFd> = *sockets.downcast().unwrap();
            let socket = each_kernel::tcp_socket(queue, address);
            let mut connecting = Box::pin(async move { (socket.connect(address).await, socket) });
            assert!(poll_once(&mut connecting).is_pending(), "the address is not silent");
            queue.block_on(look_around()).unwrap();
            let listener = TcpListener::from(sockets.remove(0));
            // Those who wait go, and are asked no more.
            drop(sockets);
            let kept = is_taken.then(|| {
                listener.set_nonblocking(true).unwrap();
                while listener.accept().is_ok() {}
                listener
            });
            (connecting, kept)
        });
        for (connecting, kept) in ways {
            let (ended, socket) = queue.block_on(connecting).unwrap();
            let refused = ended.err().map(|error| error.kind());
            let is_refused = refused == Some(io::ErrorKind::ConnectionRefused);
            assert_eq!(is_refused, kept.is_none(), "{refused:?}");
            if is_refused {
                // It can be connected elsewhere.
                let live = TcpListener::bind("127.0.0.1:0").unwrap();
                queue.block_on(socket.connect(live.local_addr().unwrap())).unwrap().unwrap();
            }
        }
    }

    /// On Linux the other end of such a connection has answered before the call that begins it is over.
    #[cfg(target_os = "linux")]
    fn a_connect_to_this_machine_waits_for_no_edge(queue) {
        if queue.kernel_kind() != KernelKind::Readiness {
            return skip("the ring's connects go out with the next look");
        }
        let (listener, address) = each_kernel::listener(queue);
        let refusing = each_kernel::refusing_address(queue);
        let socket = each_kernel::tcp_socket(queue, address);
        assert!(matches!(poll_once(&mut socket.connect(address)), Poll::Ready(Ok(()))));
        let socket = each_kernel::tcp_socket(queue, refusing);
        let Poll::Ready(Err(error)) = poll_once(&mut socket.connect(refusing)) else {
            panic!("not refused at once");
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        drop(listener);
    }

    /// Its owner gets a handle back that blocks, if it did before.
    fn handles_that_block_do_so_again_when_they_leave_the_queue(queue) {
        for (name, from, to) in each_kernel::raw_ways(queue) {
            let (from, to) = (queue.register(from).unwrap(), queue.register(to).unwrap());
            let early = to.read(vec![0; 8]);
            queue.block_on(write_full(&from, "data")).unwrap();
            queue.block_on(early).unwrap().0.unwrap();
            assert!(!is_nonblocking(&from.into_inner()) && !is_nonblocking(&to.into_inner()), "{name}");
        }
        let (listener, address) = each_kernel::listener(queue);
        let accept = listener.accept();
        let socket = each_kernel::tcp_socket(queue, address);
        queue.block_on(socket.connect(address)).unwrap().unwrap();
        queue.block_on(accept).unwrap().unwrap();
        assert!(!is_nonblocking(&socket.into_inner()) && !is_nonblocking(&listener.into_inner()));
        // Also one that is merely lent.
        let (reader, _writer) = raw_pipe();
        queue.persist(&reader).unwrap();
        queue.unregister(&reader).unwrap();
        assert!(!is_nonblocking(&reader));
        // And one whose queue ends first, of a kind whose mode has to be changed.
        let other = Queue::builder().kernel(queue.kernel_kind()).build().unwrap();
        let (ours, theirs) = terminal();
        let ours = other.register(ours).unwrap();
        File::from(theirs).write_all(b"x").unwrap();
        other.block_on(ours.read(vec![0; 8])).unwrap().0.unwrap();
        other.close(Duration::from_secs(1)).unwrap();
        drop(other);
        assert!(!is_nonblocking(&ours.into_inner()));
    }

    /// What is registered no more has no say about what came after it.
    fn an_accept_that_is_refused_changes_no_other_handle(queue) {
        let (listener, _) = each_kernel::listener(queue);
        queue.unregister(&listener).unwrap();
        // It gets the registration's place.
        let (reader, _writer) = raw_pipe();
        let reader = queue.register(reader).unwrap();
        let refused = queue.block_on(listener.accept()).unwrap().unwrap_err();
        assert!(matches!(Misuse::of(&refused), Some(Misuse::UnregisteredHandle { .. })), "{refused}");
        assert!(!is_nonblocking(reader.get()) && !is_nonblocking(&listener.into_inner()));
    }

    /// Two registered duplicates, as standard input and output are of one terminal: that one leaves must
    /// not make the other block its queue.
    fn one_of_two_duplicates_may_leave(queue) {
        let (reader, writer) = raw_pipe();
        for (ours, theirs) in [(reader, writer), terminal()] {
            let ours = queue.register(ours).unwrap();
            let mut theirs = File::from(theirs);
            let duplicate = queue.register(ours.get().try_clone().unwrap()).unwrap();
            let third = ours.get().try_clone().unwrap();
            for handle in [&ours, &duplicate] {
                theirs.write_all(b"x").unwrap();
                assert_eq!(queue.block_on(handle.read(vec![0; 8])).unwrap().1, b"x");
            }
            drop(ours);
            let mut reading = duplicate.read(vec![0; 8]);
            queue.block_on(look_around()).unwrap();
            assert!(poll_once(&mut reading).is_pending());
            theirs.write_all(b"data").unwrap();
            assert_eq!(queue.block_on(reading).unwrap().1, b"data");
            // With the last it is as it was.
            drop(duplicate);
            assert!(!is_nonblocking(&third));
        }
    }

    /// The same with a queue each: neither knows of the other.
    fn a_duplicate_may_leave_another_queue(queue) {
        let other = Queue::builder().kernel(queue.kernel_kind()).build().unwrap();
        let (ours, theirs) = terminal();
        let mut theirs = File::from(theirs);
        let duplicate = queue.register(ours.try_clone().unwrap()).unwrap();
        let ours = other.register(ours).unwrap();
        // The other is the first to change the mode, and takes it back.
        for (queue, handle) in [(&other, &ours), (queue, &duplicate)] {
            theirs.write_all(b"x").unwrap();
            assert_eq!(queue.block_on(handle.read(vec![0; 8])).unwrap().1, b"x");
        }
        drop(ours);
        let mut reading = duplicate.read(vec![0; 8]);
        queue.block_on(look_around()).unwrap();
        assert!(poll_once(&mut reading).is_pending());
        theirs.write_all(b"data").unwrap();
        assert_eq!(queue.block_on(reading).unwrap().1, b"data");

        let (listener, address) = each_kernel::listener(queue);
        let listener = listener.into_inner();
        let duplicate = queue.register(listener.try_clone().unwrap()).unwrap();
        let listener = other.register(listener).unwrap();
        other.block_on(listener.accept().cancel()).unwrap().unwrap_err();
        queue.block_on(duplicate.accept().cancel()).unwrap().unwrap_err();
        drop(listener);
        let mut accept = duplicate.accept();
        queue.block_on(look_around()).unwrap();
        assert!(poll_once(&mut accept).is_pending());
        let _client = TcpStream::connect(address).unwrap();
        queue.block_on(accept).unwrap().unwrap();
        assert!(!is_nonblocking(&duplicate.into_inner()));
    }

    /// Descriptors of one kind may look alike: each has its own mode.
    #[cfg(target_os = "linux")]
    fn handles_that_look_alike_have_a_mode_each(queue) {
        // SAFETY: takes numbers.
        let timers = [(); 3].map(|()| given(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, 0) }));
        let registered = timers.each_ref().map(|it| queue.register(it.try_clone().unwrap()).unwrap());
        for timer in &registered {
            queue.block_on(timer.read([0; 8]).cancel()).unwrap().0.unwrap_err();
        }
        for (timer, registered) in timers.iter().zip(registered) {
            drop(registered);
            assert!(!is_nonblocking(timer));
        }
    }

    /// H9: a terminal.
    fn a_terminal_is_read_and_written(queue) {
        let (program, screen) = terminal();
        let (program, mut screen) = (queue.register(program).unwrap(), File::from(screen));
        let early = program.read(vec![0; 16]);
        queue.block_on(look_around()).unwrap();
        screen.write_all(b"typed").unwrap();
        assert_eq!(queue.block_on(early).unwrap().1, b"typed");
        screen.write_all(b"again").unwrap();
        assert_eq!(queue.block_on(read_full(&program, 5)).unwrap(), b"again");
        queue.block_on(write_full(&program, "shown")).unwrap();
        let mut shown = [0; 5];
        screen.read_exact(&mut shown).unwrap();
        assert_eq!(&shown, b"shown");
        let error = queue.block_on(program.read(vec![0; 16]).cancel()).unwrap().0.unwrap_err();
        assert!(error::is_cancelled(&error), "{error}");
        drop(program.read(vec![0; 16]));
        queue.run().unwrap();
        // The line is cut.
        let waiting = program.read(vec![0; 16]);
        queue.block_on(look_around()).unwrap();
        drop(screen);
        let (end, _) = queue.block_on(waiting).unwrap();
        match end {
            Ok(count) => assert_eq!(count, 0),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}"),
        }
    }

    fn devices_that_are_always_ready_are_read_and_written(queue) {
        let open = |path| File::options().read(true).write(true).open(path).unwrap();
        let null = queue.register(open("/dev/null")).unwrap();
        let zero = queue.register(open("/dev/zero")).unwrap();
        queue.block_on(async {
            assert_eq!(null.write(vec![1; 1 << 20]).await.0.unwrap(), 1 << 20);
            assert_eq!(null.read(vec![1; 64]).await.0.unwrap(), 0);
            let reads: Vec<_> = (0..64).map(|_| zero.read(vec![1; 4096])).collect();
            for read in reads {
                let (count, bytes) = read.await;
                assert_eq!(count.unwrap(), 4096);
                assert_eq!(bytes, [0; 4096]);
            }
            assert_eq!(zero.write("data").await.0.unwrap(), 4);
            assert_eq!(zero.read_at(vec![1; 8], 1 << 40).await.1, [0; 8]);
        }).unwrap();
    }

    fn a_fifo_is_read_and_written(queue) {
        let name = Name::new();
        let path = std::ffi::CString::new(name.0.to_str().unwrap()).unwrap();
        // SAFETY: a name of ours.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
        let fifo = File::options().read(true).write(true).open(&name.0).unwrap();
        let fifo = queue.register(fifo).unwrap();
        let early = fifo.read(vec![0; 8]);
        queue.block_on(look_around()).unwrap();
        queue.block_on(write_full(&fifo, "data")).unwrap();
        assert_eq!(queue.block_on(early).unwrap().1, b"data");
    }
}

#[cfg(target_os = "linux")]
on_each_kernel! {
    not_simulated("these are handles of Unix"):

    fn an_eventfd_is_read_and_written(queue) {
        for flags in [0, libc::EFD_NONBLOCK] {
            // SAFETY: takes numbers.
            let event = queue.register(given(unsafe { libc::eventfd(0, flags) })).unwrap();
            let early = event.read([0; 8]);
            queue.block_on(look_around()).unwrap();
            queue.block_on(event.write(3_u64.to_ne_bytes())).unwrap().0.unwrap();
            assert_eq!(queue.block_on(early).unwrap().1, 3_u64.to_ne_bytes());
            // What it has no room for waits.
            let full = (u64::MAX - 1).to_ne_bytes();
            queue.block_on(event.write(full)).unwrap().0.unwrap();
            let waiting = event.write(1_u64.to_ne_bytes());
            queue.block_on(look_around()).unwrap();
            assert_eq!(queue.block_on(event.read([0; 8])).unwrap().1, full);
            queue.block_on(waiting).unwrap().0.unwrap();
            assert_eq!(queue.block_on(event.read([0; 8])).unwrap().1, 1_u64.to_ne_bytes());
            let error = queue.block_on(event.read([0; 8]).cancel()).unwrap().0.unwrap_err();
            assert!(error::is_cancelled(&error), "{error}");
        }
    }

    /// Scenario 54, on Linux: a timer's handle.
    fn a_timerfd_is_awaited_and_cancelled(queue) {
        for flags in [0, libc::TFD_NONBLOCK] {
            // SAFETY: takes numbers.
            let timer = given(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) });
            let set = |ms: i64| {
                let value = libc::timespec { tv_sec: 0, tv_nsec: ms * 1_000_000 };
                let once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
                let spec = libc::itimerspec { it_interval: once, it_value: value };
                // SAFETY: the settings are ours; the old ones are not asked for.
                let set = unsafe {
                    let none = std::ptr::null_mut();
                    libc::timerfd_settime(timer.as_raw_fd(), 0, &raw const spec, none)
                };
                assert_eq!(set, 0);
            };
            set(20);
            let registered = queue.register(timer.try_clone().unwrap()).unwrap();
            let (count, bytes) = queue.block_on(registered.read([0; 8])).unwrap();
            assert_eq!((count.unwrap(), bytes), (8, 1_u64.to_ne_bytes()));
            let waiting = registered.read([0; 8]);
            queue.block_on(look_around()).unwrap();
            let error = queue.block_on(waiting.cancel()).unwrap().0.unwrap_err();
            assert!(error::is_cancelled(&error), "{error}");
            set(1);
            assert_eq!(queue.block_on(registered.read([0; 8])).unwrap().0.unwrap(), 8);
        }
    }

    fn an_inotify_descriptor_is_read(queue) {
        let folder = Name::new();
        std::fs::create_dir(&folder.0).unwrap();
        let path = std::ffi::CString::new(folder.0.to_str().unwrap()).unwrap();
        for flags in [0, libc::IN_NONBLOCK] {
            // SAFETY: takes numbers, and a name of ours.
            let watcher = unsafe {
                let watcher = given(libc::inotify_init1(flags));
                assert!(libc::inotify_add_watch(watcher.as_raw_fd(), path.as_ptr(), libc::IN_CREATE) >= 0);
                watcher
            };
            let watcher = queue.register(watcher).unwrap();
            let early = watcher.read(vec![0; 512]);
            queue.block_on(look_around()).unwrap();
            std::fs::write(folder.0.join("one"), "").unwrap();
            let (count, bytes) = queue.block_on(early).unwrap();
            assert!(count.unwrap() > 16 && bytes.windows(3).any(|it| it == b"one"));
            std::fs::remove_file(folder.0.join("one")).unwrap();
            let error = queue.block_on(watcher.read(vec![0; 512]).cancel()).unwrap().0.unwrap_err();
            assert!(error::is_cancelled(&error), "{error}");
        }
        std::fs::remove_dir(&folder.0).unwrap();
    }

    /// H5: a name that is in no file system.
    fn a_socket_with_an_abstract_name_is_connected(queue) {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("ioqueue-{}-{}", std::process::id(), unique());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let listener = queue.register(UnixListener::bind_addr(&address).unwrap()).unwrap();
        let socket = queue.register(raw_socket(libc::AF_UNIX, libc::SOCK_STREAM)).unwrap();
        let address = SocketAddress::unix(format!("\0{name}")).unwrap();
        let accept = listener.accept();
        queue.block_on(socket.connect(address)).unwrap().unwrap();
        queue.block_on(accept).unwrap().unwrap();
    }
}
