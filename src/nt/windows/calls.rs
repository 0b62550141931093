//! The calls that start the portable operations.
//!
//! Each makes one call, with the operation's OVERLAPPED and memory, and reads the thread's last error
//! right after it (pitfall 9). Byte counts are asked for nowhere: the OVERLAPPED has them.

use std::ptr::{null, null_mut};

use windows_sys::Win32::Networking::WinSock::{
    SD_BOTH, SD_RECEIVE, SD_SEND, SOCKET, WSAEINVAL, WSARecv, WSARecvFrom, WSASend, WSASendTo,
    bind, connect, shutdown,
};
use windows_sys::Win32::Storage::FileSystem::{FlushFileBuffers, ReadFile, WriteFile};
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::Win32::System::Pipes::{GetNamedPipeInfo, PIPE_TYPE_MESSAGE};

use super::{last_error, readiness, sockets};
use crate::handle::RawHandle;
use crate::iocp::Outcome;
use crate::kernel::call::Call;
use crate::op::{Accepted, Datagram, IoPart, PeerAddress, Shutdown, cut};

/// Makes the call that `call` describes, as its handle takes it.
///
/// # Safety
/// What `call` points to, the OVERLAPPED and the flags stay valid, and nobody else's, until the
/// operation's end.
pub(super) unsafe fn start(
    handle: RawHandle,
    call: Call,
    overlapped: *mut OVERLAPPED,
    flags: *mut u32,
) -> Outcome {
    let socket = handle.addr();
    // SAFETY: passed on, to each.
    unsafe {
        match call {
            Call::Read { at, length } | Call::ReadAt { at, length, .. } => {
                Outcome::from_bool(ReadFile(handle, at, cut(length), null_mut(), overlapped))
            }
            // Whoever reads at the other end of a pipe would take it for the end.
            Call::Write { length: 0, .. } if is_pipe_of_bytes(handle) => Outcome::FINISHED_SILENTLY,
            Call::Write { at, length } | Call::WriteAt { at, length, .. } => {
                Outcome::from_bool(WriteFile(handle, at, cut(length), null_mut(), overlapped))
            }
            Call::Receive { at, length } => {
                let part = IoPart { len: cut(length), buf: at };
                receive(socket, &raw const part, 1, overlapped, flags)
            }
            Call::Send { at, length } => {
                let part = IoPart { len: cut(length), buf: at.cast_mut() };
                send(socket, &raw const part, 1, overlapped)
            }
            Call::ReadVectored { parts, count, .. } => {
                receive(socket, parts, count, overlapped, flags)
            }
            Call::WriteVectored { parts, count, .. } => send(socket, parts, count, overlapped),
            Call::ReceiveFrom { datagram } => receive_from(socket, datagram, overlapped, flags),
            Call::SendTo { datagram } => send_to(socket, datagram, overlapped),
            Call::Accept { accepted } => accept(socket, accepted, overlapped),
            Call::Connect { peer } => start_connect(socket, peer, overlapped),
            Call::Shutdown { how } => shut_down(socket, how),
            Call::Close { .. } => unreachable!("a close is no call on a registered handle"),
            Call::Sync { .. } => at_once(FlushFileBuffers(handle) != 0),
            Call::Ready { event, poll } => readiness::start(handle, event, poll, overlapped),
        }
    }
}

/// A call that knows no OVERLAPPED, and is over.
fn at_once(succeeded: bool) -> Outcome {
    if succeeded { Outcome::FINISHED_SILENTLY } else { Outcome::from_error(last_error()) }
}

/// Whether it is a pipe that knows no messages.
fn is_pipe_of_bytes(handle: RawHandle) -> bool {
    let mut flags = 0;
    // SAFETY: the place for the answer is ours; the others are not wanted. What is no pipe is answered
    // with an error.
    let known = unsafe {
        GetNamedPipeInfo(handle, &raw mut flags, null_mut(), null_mut(), null_mut()) != 0
    };
    known && flags & PIPE_TYPE_MESSAGE == 0
}

/// WSARecv. It copies the list of parts; the flags it may write when the operation ends.
///
/// # Safety
/// As [`start`], for the parts and what they lead to.
unsafe fn receive(
    socket: SOCKET,
    parts: *const IoPart,
    count: usize,
    overlapped: *mut OVERLAPPED,
    flags: *mut u32,
) -> Outcome {
    // SAFETY: passed on.
    unsafe {
        flags.write(0);
        let count = count as u32;
        Outcome::from_socket(WSARecv(socket, parts, count, null_mut(), flags, overlapped, None))
    }
}

/// WSASend.
///
/// # Safety
/// As [`start`], for the parts and what they lead to.
unsafe fn send(
    socket: SOCKET,
    parts: *const IoPart,
    count: usize,
    overlapped: *mut OVERLAPPED,
) -> Outcome {
    let count = count as u32;
    // SAFETY: passed on.
    Outcome::from_socket(unsafe { WSASend(socket, parts, count, null_mut(), 0, overlapped, None) })
}

/// WSARecvFrom. The address and its length are written when the operation ends.
///
/// # Safety
/// As [`start`].
unsafe fn receive_from(
    socket: SOCKET,
    datagram: *mut Datagram,
    overlapped: *mut OVERLAPPED,
    flags: *mut u32,
) -> Outcome {
    // SAFETY: passed on.
    unsafe {
        let (part, peer, length) = Datagram::message(datagram);
        let (peer, length) = (peer.cast(), length.cast());
        flags.write(0);
        let moved = null_mut();
        Outcome::from_socket(WSARecvFrom(
            socket, part, 1, moved, flags, peer, length, overlapped, None,
        ))
    }
}

/// WSASendTo.
///
/// # Safety
/// As [`start`].
unsafe fn send_to(socket: SOCKET, datagram: *mut Datagram, overlapped: *mut OVERLAPPED) -> Outcome {
    // SAFETY: passed on; the length is at most that of the address's place.
    unsafe {
        let (part, peer, length) = Datagram::message(datagram);
        let (peer, length) = (peer.cast(), length.read() as i32);
        let moved = null_mut();
        Outcome::from_socket(WSASendTo(socket, part, 1, moved, 0, peer, length, overlapped, None))
    }
}

/// AcceptEx, into a new socket of the listener's kind. It waits for no data.
///
/// # Safety
/// As [`start`].
unsafe fn accept(
    listener: SOCKET,
    accepted: *mut Accepted,
    overlapped: *mut OVERLAPPED,
) -> Outcome {
    const EACH: u32 = sockets::ADDRESS_ROOM as u32;
    let prepared = sockets::accept_ex(listener)
        .and_then(|accept_ex| Ok((accept_ex, sockets::like(listener)?)));
    let (accept_ex, socket) = match prepared {
        Ok(prepared) => prepared,
        Err(code) => return Outcome::from_error(code),
    };
    let value = sockets::value(&socket);
    let mut received = 0;
    // SAFETY: the room is the request's, as is the socket. The count is written before the call
    // returns, if at all (AcceptEx, "lpdwBytesReceived").
    unsafe {
        let room = Accepted::prepare(accepted, socket).cast();
        let count = &raw mut received;
        Outcome::from_bool(accept_ex(listener, value, room, 0, EACH, EACH, count, overlapped))
    }
}

/// ConnectEx, which wants a bound socket (pitfall 26); or connect, which ends at once for datagrams.
///
/// # Safety
/// As [`start`].
unsafe fn start_connect(
    socket: SOCKET,
    peer: *const PeerAddress,
    overlapped: *mut OVERLAPPED,
) -> Outcome {
    // SAFETY: passed on; both addresses are as long as they say.
    unsafe {
        let length = (*peer).length as i32;
        if sockets::carries_datagrams(socket) {
            return at_once(connect(socket, peer.cast(), length) == 0);
        }
        let any = (*peer).any_of_its_family();
        if bind(socket, (&raw const any).cast(), any.length as i32) != 0 {
            let code = last_error();
            // It is bound already.
            if code != WSAEINVAL as u32 {
                return Outcome::from_error(code);
            }
        }
        match sockets::connect_ex(socket) {
            Ok(connect_ex) => Outcome::from_bool(connect_ex(
                socket,
                peer.cast(),
                length,
                null(),
                0,
                null_mut(),
                overlapped,
            )),
            Err(code) => Outcome::from_error(code),
        }
    }
}

fn shut_down(socket: SOCKET, how: Shutdown) -> Outcome {
    let how = match how {
        Shutdown::Read => SD_RECEIVE,
        Shutdown::Write => SD_SEND,
        Shutdown::Both => SD_BOTH,
    };
    // SAFETY: takes a socket and a number; a bad socket is answered with an error.
    at_once(unsafe { shutdown(socket, how) } == 0)
}
