//! What Winsock wants done before and after an accept and a connect.

use std::io;
use std::mem::size_of;
use std::os::windows::io::{AsRawSocket, FromRawSocket, IntoRawSocket, OwnedSocket};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use windows_sys::Win32::Networking::WinSock::{
    FROM_PROTOCOL_INFO, INVALID_SOCKET, LPFN_ACCEPTEX, LPFN_CONNECTEX, LPFN_GETACCEPTEXSOCKADDRS,
    SIO_GET_EXTENSION_FUNCTION_POINTER, SO_ACCEPTCONN, SO_PROTOCOL_INFOW, SO_TYPE,
    SO_UPDATE_ACCEPT_CONTEXT, SO_UPDATE_CONNECT_CONTEXT, SOCK_DGRAM, SOCK_STREAM, SOCKET,
    SOL_SOCKET, WSA_FLAG_NO_HANDLE_INHERIT, WSA_FLAG_OVERLAPPED, WSADATA, WSAID_ACCEPTEX,
    WSAID_CONNECTEX, WSAID_GETACCEPTEXSOCKADDRS, WSAIoctl, WSAPROTOCOL_INFOW, WSASocketW,
    WSAStartup, closesocket, getsockopt, setsockopt,
};
use windows_sys::core::GUID;

use super::last_error;
use crate::address::SocketAddress;
use crate::handle::RawHandle;
use crate::nt::Win32Error;

fn error(code: Win32Error) -> io::Error {
    io::Error::from_raw_os_error(code as i32)
}

pub(super) fn value(socket: &OwnedSocket) -> SOCKET {
    socket.as_raw_socket() as SOCKET
}

// ---------------------------------------------------------------------------------------------
// Extension functions

/// Finds a function of Mswsock once a process; layered providers that bring their own are not asked.
macro_rules! extension {
    ($name:ident: $of:ident = $id:ident) => {
        pub(super) fn $name(socket: SOCKET) -> Result<Function<$of>, Win32Error> {
            static FOUND: OnceLock<Function<$of>> = OnceLock::new();
            if let Some(&found) = FOUND.get() {
                return Ok(found);
            }
            let mut found: $of = None;
            // SAFETY: the function that this id names is of this type.
            unsafe { find(socket, &$id, (&raw mut found).cast())? };
            Ok(*FOUND.get_or_init(|| found.expect("a function that was found")))
        }
    };
}

/// The function behind a pointer that may be null.
type Function<O> = <O as Behind>::Function;

pub(super) trait Behind {
    type Function;
}

impl<F> Behind for Option<F> {
    type Function = F;
}

extension!(accept_ex: LPFN_ACCEPTEX = WSAID_ACCEPTEX);
extension!(connect_ex: LPFN_CONNECTEX = WSAID_CONNECTEX);
extension!(get_accept_ex_sockaddrs: LPFN_GETACCEPTEXSOCKADDRS = WSAID_GETACCEPTEXSOCKADDRS);

/// Asks the socket's provider for a function.
///
/// # Safety
/// `found` may be written, and is of the type of the function that `name` names.
unsafe fn find(socket: SOCKET, name: &GUID, found: *mut *mut u8) -> Result<(), Win32Error> {
    let mut length = 0;
    // SAFETY: the name, the place for the answer and the length live through the call, which makes no
    // use of an OVERLAPPED.
    let answer = unsafe {
        WSAIoctl(
            socket,
            SIO_GET_EXTENSION_FUNCTION_POINTER,
            std::ptr::from_ref(name).cast(),
            size_of::<GUID>() as u32,
            found.cast(),
            size_of::<*mut u8>() as u32,
            &raw mut length,
            null_mut(),
            None,
        )
    };
    if answer == 0 { Ok(()) } else { Err(last_error()) }
}

// ---------------------------------------------------------------------------------------------
// Asking

/// An option of a socket whose value is one fixed-size answer.
///
/// # Safety
/// The option's value is an `A`, which is made of plain numbers.
unsafe fn option<A: Default>(socket: SOCKET, name: i32) -> Result<A, Win32Error> {
    let mut answer = A::default();
    let mut length = size_of::<A>() as i32;
    let place = (&raw mut answer).cast();
    // SAFETY: the place is ours, lives through the call, and `length` is its size. What is no socket is
    // answered with WSAENOTSOCK.
    let asked = unsafe { getsockopt(socket, SOL_SOCKET, name, place, &raw mut length) };
    if asked == 0 { Ok(answer) } else { Err(last_error()) }
}

/// The provider behind a socket, and of which kind the socket is.
pub(super) fn protocol(socket: SOCKET) -> Result<WSAPROTOCOL_INFOW, Win32Error> {
    // SAFETY: as Winsock says of this option.
    unsafe { option(socket, SO_PROTOCOL_INFOW) }
}

pub(super) fn listens(socket: SOCKET) -> bool {
    // SAFETY: this option's value is a BOOL.
    let listens: Result<i32, Win32Error> = unsafe { option(socket, SO_ACCEPTCONN) };
    listens.is_ok_and(|listens| listens != 0)
}

pub(super) fn carries_datagrams(socket: SOCKET) -> bool {
    // SAFETY: this option's value is an int.
    let of_type = unsafe { option(socket, SO_TYPE) };
    of_type == Ok(SOCK_DGRAM)
}

// ---------------------------------------------------------------------------------------------
// Accepts

/// What AcceptEx wants for an address: 16 bytes more than the longest has.
pub(super) const ADDRESS_ROOM: usize = size_of::<SocketAddress>().next_multiple_of(8) + 16;

/// Where AcceptEx writes both addresses, in a form of its own.
#[repr(C, align(8))]
pub(crate) struct AcceptRoom([u8; 2 * ADDRESS_ROOM]);

impl AcceptRoom {
    pub(crate) fn new() -> Self {
        Self([0; 2 * ADDRESS_ROOM])
    }
}

/// A new socket of the same kind as another, for overlapped use, that children don't inherit.
pub(super) fn like(other: SOCKET) -> Result<OwnedSocket, Win32Error> {
    const SAME: i32 = FROM_PROTOCOL_INFO;
    let protocol = protocol(other)?;
    let flags = WSA_FLAG_OVERLAPPED | WSA_FLAG_NO_HANDLE_INHERIT;
    // SAFETY: the description lives through the call. The socket that comes back is nobody's yet.
    unsafe {
        let socket = WSASocketW(SAME, SAME, SAME, &raw const protocol, 0, flags);
        if socket == INVALID_SOCKET {
            return Err(last_error());
        }
        Ok(OwnedSocket::from_raw_socket(socket as _))
    }
}

/// A new socket for streams, for overlapped use, that children don't inherit.
pub(crate) fn stream_socket(family: i32) -> Result<OwnedSocket, Win32Error> {
    start_winsock()?;
    let flags = WSA_FLAG_OVERLAPPED | WSA_FLAG_NO_HANDLE_INHERIT;
    // SAFETY: takes numbers, and no description. The socket that comes back is nobody's yet.
    unsafe {
        let socket = WSASocketW(family, SOCK_STREAM, 0, null(), 0, flags);
        if socket == INVALID_SOCKET {
            return Err(last_error());
        }
        Ok(OwnedSocket::from_raw_socket(socket as _))
    }
}

/// Closes a socket.
pub(super) fn close(socket: OwnedSocket) -> Result<(), Win32Error> {
    // SAFETY: it is ours, and nobody else's.
    let closed = unsafe { closesocket(socket.into_raw_socket() as SOCKET) };
    if closed == 0 { Ok(()) } else { Err(last_error()) }
}

/// The standard library does so only for sockets of its own.
fn start_winsock() -> Result<(), Win32Error> {
    const VERSION: u16 = 0x0202; // 2.2
    static STARTED: OnceLock<i32> = OnceLock::new();
    let code = *STARTED.get_or_init(|| {
        let mut data = WSADATA::default();
        // SAFETY: the place for the answer is ours.
        unsafe { WSAStartup(VERSION, &raw mut data) }
    });
    if code == 0 { Ok(()) } else { Err(code as Win32Error) }
}

/// Completes an accept that succeeded: the socket gets its listener's properties, and knows that it is
/// connected, from this call on (pitfall 26). Says who the connection is from.
pub(crate) fn accepted(
    listener: RawHandle,
    socket: &OwnedSocket,
    room: &AcceptRoom,
) -> io::Result<SocketAddress> {
    let listener = listener.addr();
    // SAFETY: the option's value is the listener's, which lives through the call.
    let updated = unsafe {
        setsockopt(
            value(socket),
            SOL_SOCKET,
            SO_UPDATE_ACCEPT_CONTEXT,
            (&raw const listener).cast(),
            size_of::<SOCKET>() as i32,
        )
    };
    if updated != 0 {
        return Err(error(last_error()));
    }
    let get_addresses = get_accept_ex_sockaddrs(listener).map_err(error)?;
    Ok(peer(get_addresses, room))
}

/// The second of the addresses that an accept has left in its room.
fn peer(get_addresses: Function<LPFN_GETACCEPTEXSOCKADDRS>, room: &AcceptRoom) -> SocketAddress {
    const EACH: u32 = ADDRESS_ROOM as u32;
    let (mut local, mut local_length) = (null_mut(), 0);
    let (mut remote, mut remote_length) = (null_mut(), 0);
    // SAFETY: the room is what AcceptEx was given, with the same lengths; it answers with places in the
    // room, or null.
    unsafe {
        get_addresses(
            room.0.as_ptr().cast(),
            0,
            EACH,
            EACH,
            &raw mut local,
            &raw mut local_length,
            &raw mut remote,
            &raw mut remote_length,
        );
        if remote.is_null() {
            return SocketAddress::NONE;
        }
        SocketAddress::copied_from(std::slice::from_raw_parts(
            remote.cast(),
            (remote_length as usize).min(ADDRESS_ROOM - 16),
        ))
    }
}

// ---------------------------------------------------------------------------------------------
// Connects

/// Completes a connect that succeeded: the socket knows that it is connected from this call on
/// (pitfall 26).
pub(crate) fn connected(socket: RawHandle) -> io::Result<()> {
    let socket = socket.addr();
    // SAFETY: this option has no value.
    let updated = unsafe { setsockopt(socket, SOL_SOCKET, SO_UPDATE_CONNECT_CONTEXT, null(), 0) };
    if updated == 0 {
        return Ok(());
    }
    let code = last_error();
    // Those were connected otherwise, and know it.
    if carries_datagrams(socket) { Ok(()) } else { Err(error(code)) }
}
