//! Windows' calls: every `unsafe` of the program is here, each function small enough to check.
//!
//! The overlapped ones go through [`Registered::submit`]. What that asks for holds in each: the
//! closure makes one call with the handle and the OVERLAPPED it was given and reports what that
//! returned, and all that the kernel reads or writes is in the state, or in the heap block of a `Vec`
//! that the state owns.

use std::ffi::c_void;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::windows::io::{AsRawHandle, AsRawSocket, FromRawHandle, FromRawSocket, OwnedSocket};
use std::ptr::{null, null_mut};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::task::{Poll, Waker};

use ioqueue::Registered;
use ioqueue::iocp::{Outcome, Wait};
use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::Networking::WinSock as sock;
use windows_sys::Win32::Storage::FileSystem as fs;
use windows_sys::Win32::System::{Console, Pipes};
use windows_sys::core::BOOL;

// ---------------------------------------------------------------------------------------------
// Reading and writing

/// A buffer, the part of it to be written, and the flags that WSARecv writes.
pub struct Chunk {
    pub bytes: Vec<u8>,
    pub start: usize,
    pub end: usize,
    flags: u32,
}

impl Chunk {
    pub fn new(bytes: Vec<u8>, length: usize) -> Self {
        Self { end: length.min(bytes.len()), bytes, start: 0, flags: 0 }
    }

    /// The part as Winsock and `WriteFile` take it.
    fn part(&mut self) -> sock::WSABUF {
        let part = &mut self.bytes[self.start..self.end];
        sock::WSABUF { len: length(part), buf: part.as_mut_ptr() }
    }
}

/// A buffer's length for a call that takes 32 bits: longer ones are used in part.
fn length(bytes: &[u8]) -> u32 {
    bytes.len().try_into().unwrap_or(u32::MAX)
}

/// ReadFile into all of `buffer`.
pub fn read(handle: &Registered<impl Sized>, offset: u64, buffer: Vec<u8>) -> Wait<Vec<u8>> {
    // SAFETY: as the module says.
    unsafe {
        handle.submit_at(offset, buffer, |handle, buffer, overlapped| {
            let (start, length) = ((*buffer).as_mut_ptr(), length(&*buffer));
            Outcome::from_bool(fs::ReadFile(handle, start, length, null_mut(), overlapped))
        })
    }
}

/// WriteFile of the chunk's part. An empty one is an empty message on a pipe of messages.
pub fn write(handle: &Registered<impl Sized>, offset: u64, chunk: Chunk) -> Wait<Chunk> {
    // SAFETY: as the module says.
    unsafe {
        handle.submit_at(offset, chunk, |handle, chunk, overlapped| {
            let part = (*chunk).part();
            Outcome::from_bool(fs::WriteFile(handle, part.buf, part.len, null_mut(), overlapped))
        })
    }
}

/// WSARecv into the chunk's part.
pub fn recv(socket: &Registered<TcpStream>, chunk: Chunk) -> Wait<Chunk> {
    // SAFETY: as the module says; Winsock copies the WSABUF before it returns.
    unsafe {
        socket.submit(chunk, |socket, chunk, overlapped| {
            let (part, flags) = ((*chunk).part(), &raw mut (*chunk).flags);
            *flags = 0;
            let socket = socket as sock::SOCKET;
            let answer = sock::WSARecv(socket, &part, 1, null_mut(), flags, overlapped, None);
            Outcome::from_socket(answer)
        })
    }
}

/// WSASend of the chunk's part.
pub fn send(socket: &Registered<TcpStream>, chunk: Chunk) -> Wait<Chunk> {
    // SAFETY: as the module says; Winsock copies the WSABUF before it returns.
    unsafe {
        socket.submit(chunk, |socket, chunk, overlapped| {
            let part = (*chunk).part();
            let socket = socket as sock::SOCKET;
            let answer = sock::WSASend(socket, &part, 1, null_mut(), 0, overlapped, None);
            Outcome::from_socket(answer)
        })
    }
}

// ---------------------------------------------------------------------------------------------
// TCP

/// An overlapped TCP socket that is not connected, of `address`' family.
fn tcp_socket(address: &SocketAddr) -> io::Result<OwnedSocket> {
    static STARTED: OnceLock<i32> = OnceLock::new();
    let started = *STARTED.get_or_init(|| {
        let mut data = sock::WSADATA::default();
        // SAFETY: `data` is writable for the call. Version 2.2.
        unsafe { sock::WSAStartup(0x0202, &mut data) }
    });
    if started != 0 {
        return Err(io::Error::from_raw_os_error(started));
    }
    let family = if address.is_ipv4() { sock::AF_INET } else { sock::AF_INET6 };
    let flags = sock::WSA_FLAG_OVERLAPPED | sock::WSA_FLAG_NO_HANDLE_INHERIT;
    // SAFETY: plain values; a valid socket is ours alone to own.
    unsafe {
        let socket =
            sock::WSASocketW(family.into(), sock::SOCK_STREAM, sock::IPPROTO_TCP, null(), 0, flags);
        if socket == sock::INVALID_SOCKET {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedSocket::from_raw_socket(socket as u64))
    }
}

/// setsockopt at the socket level.
fn set_option<T>(socket: &impl AsRawSocket, option: i32, value: Option<&T>) -> io::Result<()> {
    let socket = socket.as_raw_socket() as sock::SOCKET;
    let pointer = value.map_or(null(), |value| (&raw const *value).cast());
    let length = value.map_or(0, |_| size_of::<T>() as i32);
    // SAFETY: `pointer` has `length` readable bytes, or is null with none.
    let answer = unsafe { sock::setsockopt(socket, sock::SOL_SOCKET, option, pointer, length) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// AcceptEx: the next connection.
pub async fn accept(listener: &Registered<TcpListener>) -> io::Result<TcpStream> {
    /// Each of the two addresses that AcceptEx writes, 16 bytes longer than the largest there is.
    const ADDRESS: usize = size_of::<sock::SOCKADDR_STORAGE>() + 16;
    // The socket comes first, so it is closed before the addresses' memory is freed.
    let state = (tcp_socket(&listener.get().local_addr()?)?, [0_u8; 2 * ADDRESS]);
    // SAFETY: as the module says. `received` is written before the call returns, if at all.
    let (accepted, (socket, _)) = unsafe {
        listener.submit(state, |listener, state, overlapped| {
            let (listener, size) = (listener as sock::SOCKET, ADDRESS as u32);
            let socket = (*state).0.as_raw_socket() as sock::SOCKET;
            let addresses: *mut c_void = (&raw mut (*state).1).cast();
            let mut received = 0;
            Outcome::from_bool(sock::AcceptEx(
                listener,
                socket,
                addresses,
                0,
                size,
                size,
                &mut received,
                overlapped,
            ))
        })
    }
    .await;
    accepted?;
    // Without it the socket knows neither its peer nor how to shut down.
    let listener = listener.get().as_raw_socket() as sock::SOCKET;
    set_option(&socket, sock::SO_UPDATE_ACCEPT_CONTEXT, Some(&listener))?;
    Ok(TcpStream::from(socket))
}

/// An address as Winsock takes it, and its length.
fn address_of(address: &SocketAddr) -> (sock::SOCKADDR_STORAGE, i32) {
    let mut storage = sock::SOCKADDR_STORAGE::default();
    let place = &raw mut storage;
    let port = address.port().to_be();
    // SAFETY: SOCKADDR_STORAGE has room for, and the alignment of, every socket address.
    let length = unsafe {
        match address {
            SocketAddr::V4(v4) => {
                let place: *mut sock::SOCKADDR_IN = place.cast();
                (*place).sin_family = sock::AF_INET;
                (*place).sin_port = port;
                (*place).sin_addr.S_un.S_addr = u32::from_ne_bytes(v4.ip().octets());
                size_of::<sock::SOCKADDR_IN>()
            }
            SocketAddr::V6(v6) => {
                let place: *mut sock::SOCKADDR_IN6 = place.cast();
                (*place).sin6_family = sock::AF_INET6;
                (*place).sin6_port = port;
                (*place).sin6_flowinfo = v6.flowinfo();
                (*place).sin6_addr.u.Byte = v6.ip().octets();
                (*place).Anonymous.sin6_scope_id = v6.scope_id();
                size_of::<sock::SOCKADDR_IN6>()
            }
        }
    };
    (storage, length as i32)
}

type ConnectEx = unsafe extern "system" fn(
    sock::SOCKET,
    *const sock::SOCKADDR,
    i32,
    *const c_void,
    u32,
    *mut u32,
    *mut ioqueue::iocp::OVERLAPPED,
) -> BOOL;

/// ConnectEx is not exported: a socket's provider says where it is.
fn connect_ex(socket: &impl AsRawSocket) -> io::Result<ConnectEx> {
    let id = sock::WSAID_CONNECTEX;
    let mut function: Option<ConnectEx> = None;
    let mut written = 0;
    // SAFETY: a function pointer goes into `function`, which is one, or null. No OVERLAPPED, so it
    // is over when the call returns.
    let answer = unsafe {
        sock::WSAIoctl(
            socket.as_raw_socket() as sock::SOCKET,
            sock::SIO_GET_EXTENSION_FUNCTION_POINTER,
            (&raw const id).cast(),
            size_of_val(&id) as u32,
            (&raw mut function).cast(),
            size_of_val(&function) as u32,
            &mut written,
            null_mut(),
            None,
        )
    };
    match function {
        Some(function) if answer == 0 => Ok(function),
        _ => Err(io::Error::last_os_error()),
    }
}

/// ConnectEx to one address.
pub async fn connect(address: &SocketAddr) -> io::Result<Registered<TcpStream>> {
    let socket = tcp_socket(address)?;
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let (any, length) = address_of(&any.parse().expect("an address"));
    // SAFETY: `any` has `length` readable bytes. ConnectEx wants a bound socket.
    let bound = unsafe {
        sock::bind(socket.as_raw_socket() as sock::SOCKET, (&raw const any).cast(), length)
    };
    if bound != 0 {
        return Err(io::Error::last_os_error());
    }
    let function = connect_ex(&socket)?;
    let socket = Registered::new(TcpStream::from(socket))?;
    // SAFETY: as the module says; nothing is sent along.
    let (connected, _) = unsafe {
        socket.submit(address_of(address), |socket, state, overlapped| {
            let (address, length) = ((&raw const (*state).0).cast(), (*state).1);
            let socket = socket as sock::SOCKET;
            let answer = function(socket, address, length, null(), 0, null_mut(), overlapped);
            Outcome::from_bool(answer)
        })
    }
    .await;
    connected?;
    set_option::<()>(socket.get(), sock::SO_UPDATE_CONNECT_CONTEXT, None)?;
    Ok(socket)
}

/// Closing the socket will reset the connection, so that nobody takes what arrived for all there is.
pub fn reset_on_close(socket: &TcpStream) -> io::Result<()> {
    let now = sock::LINGER { l_onoff: 1, l_linger: 0 };
    set_option(socket, sock::SO_LINGER, Some(&now))
}

// ---------------------------------------------------------------------------------------------
// Named pipes

fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}

/// A new instance of a named pipe, for clients of this machine. `first`: nobody else has the name.
///
/// A pipe of messages, since these have an end that can be written: an empty message. Read as
/// messages too, since a read of bytes runs over the end where more follows or went before. Who may
/// open it is Windows' default: its owner, administrators and the system; others may only read.
pub fn pipe_instance(name: &str, first: bool) -> io::Result<File> {
    // How far a writer can be ahead of its reader, each way, in the system's memory.
    let quota = crate::link::BUFFER as u32;
    let first = if first { fs::FILE_FLAG_FIRST_PIPE_INSTANCE } else { 0 };
    // SAFETY: the name ends with 0; a valid handle is ours alone to own.
    unsafe {
        let handle = Pipes::CreateNamedPipeW(
            wide(name).as_ptr(),
            fs::PIPE_ACCESS_DUPLEX | fs::FILE_FLAG_OVERLAPPED | first,
            Pipes::PIPE_TYPE_MESSAGE
                | Pipes::PIPE_READMODE_MESSAGE
                | Pipes::PIPE_REJECT_REMOTE_CLIENTS,
            Pipes::PIPE_UNLIMITED_INSTANCES,
            quota,
            quota,
            0,
            null(),
        );
        if handle == INVALID_HANDLE_VALUE {
            return Err(io::Error::last_os_error());
        }
        Ok(File::from_raw_handle(handle))
    }
}

/// ConnectNamedPipe: until a client has opened the instance.
pub fn connect_pipe(instance: &Registered<impl Sized>) -> Wait<()> {
    // SAFETY: as the module says.
    unsafe {
        instance.submit((), |handle, _, overlapped| {
            Outcome::from_bool(Pipes::ConnectNamedPipe(handle, overlapped))
        })
    }
}

/// Whether the pipe carries messages; if it does, it will be read as such.
pub fn read_as_messages(pipe: &File) -> io::Result<bool> {
    let (handle, mut flags) = (pipe.as_raw_handle(), 0);
    // SAFETY: `flags` is writable for the call; null for what is not asked.
    let known =
        unsafe { Pipes::GetNamedPipeInfo(handle, &mut flags, null_mut(), null_mut(), null_mut()) };
    if known == 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & Pipes::PIPE_TYPE_MESSAGE == 0 {
        return Ok(false);
    }
    let mode = Pipes::PIPE_READMODE_MESSAGE;
    // SAFETY: `mode` is readable for the call; null for what stays as it is.
    let set = unsafe { Pipes::SetNamedPipeHandleState(handle, &mode, null(), null()) };
    if set == 0 { Err(io::Error::last_os_error()) } else { Ok(true) }
}

/// WaitNamedPipe: blocks until an instance is free. It may be taken again when this returns.
pub fn wait_for_instance(name: &str, milliseconds: u32) -> io::Result<()> {
    // SAFETY: the name ends with 0.
    let free = unsafe { Pipes::WaitNamedPipeW(wide(name).as_ptr(), milliseconds) };
    if free == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

// ---------------------------------------------------------------------------------------------
// Ctrl-C

/// Whether it was pressed, and whom to tell.
static CTRL_C: Mutex<(bool, Option<Waker>)> = Mutex::new((false, None));

/// Windows calls it on a thread of its own.
unsafe extern "system" fn on_console_event(event: u32) -> BOOL {
    if !matches!(event, Console::CTRL_C_EVENT | Console::CTRL_BREAK_EVENT) {
        return 0;
    }
    let mut state = CTRL_C.lock().unwrap_or_else(PoisonError::into_inner);
    let (again, waker) = (std::mem::replace(&mut state.0, true), state.1.take());
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
    // Pressed again, it is left to Windows, which ends the program.
    (!again).into()
}

/// Waits for Ctrl-C or Ctrl-Break.
pub async fn ctrl_c() -> io::Result<()> {
    // SAFETY: a function stays where it is; this one may run on any thread at any time.
    if unsafe { Console::SetConsoleCtrlHandler(Some(on_console_event), 1) } == 0 {
        return Err(io::Error::last_os_error());
    }
    poll_fn(|context| {
        let mut state = CTRL_C.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 {
            return Poll::Ready(Ok(()));
        }
        state.1 = Some(context.waker().clone());
        Poll::Pending
    })
    .await
}
