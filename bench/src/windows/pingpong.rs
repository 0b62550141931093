//! Both ends of a stream in one thread: a message there and back.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::windows::io::{FromRawHandle, OwnedHandle};
use std::ptr::{null, null_mut};
use std::rc::Rc;

use ioqueue::iocp::{OVERLAPPED, Outcome, Wait};
use ioqueue::{AsAnyHandle, Queue, RawHandle, Registered};
use windows_sys::Win32::Foundation::{GENERIC_READ, GENERIC_WRITE, INVALID_HANDLE_VALUE};
use windows_sys::Win32::Networking::WinSock::{SOCKET, WSABUF, WSARecv, WSASend};
use windows_sys::Win32::Storage::FileSystem::{
    CreateFileW, FILE_FLAG_FIRST_PIPE_INSTANCE, FILE_FLAG_OVERLAPPED, OPEN_EXISTING,
    PIPE_ACCESS_DUPLEX, ReadFile, WriteFile,
};
use windows_sys::Win32::System::Pipes::{
    CreateNamedPipeW, PIPE_REJECT_REMOTE_CLIENTS, PIPE_TYPE_BYTE,
};

use super::{Measured, measure};

/// What an operation owns: it is moved into the queue's memory and comes back with the result.
struct Message {
    bytes: Vec<u8>,
    /// Where the next receive begins: a stream may hand a message over in pieces.
    have: usize,
    /// WSARecv writes it when the receive ends.
    flags: u32,
}

impl Message {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, have: 0, flags: 0 }
    }

    /// The part that is still to be received.
    fn rest(&mut self) -> (*mut u8, u32) {
        let rest = &mut self.bytes[self.have..];
        (rest.as_mut_ptr(), rest.len() as u32)
    }
}

/// The calls of a kind of stream. Each makes one call, with the message's bytes.
trait Stream: AsAnyHandle + Sized {
    /// # Safety
    /// As the call that [`ioqueue::submit`] takes.
    unsafe fn send(
        handle: RawHandle,
        message: *mut Message,
        overlapped: *mut OVERLAPPED,
    ) -> Outcome;

    /// # Safety
    /// As `send`.
    unsafe fn receive(
        handle: RawHandle,
        message: *mut Message,
        overlapped: *mut OVERLAPPED,
    ) -> Outcome;
}

impl Stream for TcpStream {
    unsafe fn send(
        handle: RawHandle,
        message: *mut Message,
        overlapped: *mut OVERLAPPED,
    ) -> Outcome {
        // SAFETY: the bytes are the message's and stay until the operation's end.
        unsafe {
            let bytes = &(*message).bytes;
            let buffer = WSABUF { len: bytes.len() as u32, buf: bytes.as_ptr().cast_mut() };
            let socket = handle.addr() as SOCKET;
            Outcome::from_socket(WSASend(socket, &buffer, 1, null_mut(), 0, overlapped, None))
        }
    }

    unsafe fn receive(
        handle: RawHandle,
        message: *mut Message,
        overlapped: *mut OVERLAPPED,
    ) -> Outcome {
        // SAFETY: the bytes and the flags are the message's and stay until the operation's end.
        unsafe {
            let (start, length) = (*message).rest();
            let buffer = WSABUF { len: length, buf: start };
            let flags = &raw mut (*message).flags;
            let socket = handle.addr() as SOCKET;
            Outcome::from_socket(WSARecv(socket, &buffer, 1, null_mut(), flags, overlapped, None))
        }
    }
}

/// A named pipe's end.
impl Stream for OwnedHandle {
    unsafe fn send(
        handle: RawHandle,
        message: *mut Message,
        overlapped: *mut OVERLAPPED,
    ) -> Outcome {
        // SAFETY: the bytes are the message's and stay until the operation's end.
        unsafe {
            let bytes = &(*message).bytes;
            let (start, length) = (bytes.as_ptr(), bytes.len() as u32);
            Outcome::from_bool(WriteFile(handle, start, length, null_mut(), overlapped))
        }
    }

    unsafe fn receive(
        handle: RawHandle,
        message: *mut Message,
        overlapped: *mut OVERLAPPED,
    ) -> Outcome {
        // SAFETY: the bytes are the message's and stay until the operation's end.
        unsafe {
            let (start, length) = (*message).rest();
            Outcome::from_bool(ReadFile(handle, start, length, null_mut(), overlapped))
        }
    }
}

async fn send<S: Stream>(stream: &Registered<S>, message: Message) -> Message {
    // SAFETY: one call, with what it is given; the message owns its bytes.
    let sending = unsafe { stream.submit(message, |handle, at, over| S::send(handle, at, over)) };
    let (sent, message) = sending.await;
    assert_eq!(sent.expect("send") as usize, message.bytes.len(), "short send");
    message
}

fn start_receive<S: Stream>(stream: &Registered<S>, message: Message) -> Wait<Message> {
    // SAFETY: one call, with what it is given; the message owns its bytes and the flags.
    unsafe { stream.submit(message, |handle, at, over| S::receive(handle, at, over)) }
}

async fn finish_receive<S: Stream>(
    stream: &Registered<S>,
    mut receiving: Wait<Message>,
) -> Message {
    loop {
        let (received, mut message) = receiving.await;
        let received = received.expect("receive") as usize;
        assert_ne!(received, 0, "end of stream");
        message.have += received;
        if message.have == message.bytes.len() {
            message.have = 0;
            return message;
        }
        receiving = start_receive(stream, message);
    }
}

/// The messages of a ping-pong, handed from run to run.
struct Messages {
    sent: Message,
    echoed: Message,
    received: Message,
}

/// One task for both ends: what it receives has been sent, so it never waits.
async fn take_turns<S: Stream>(
    client: &Registered<S>,
    server: &Registered<S>,
    messages: Messages,
    count: u32,
) -> Messages {
    let Messages { mut sent, mut echoed, mut received } = messages;
    for i in 0..count {
        sent.bytes[0] = i as u8; // So that the check at the end can't be met by an earlier message.
        sent = send(client, sent).await;
        echoed = finish_receive(server, start_receive(server, echoed)).await;
        echoed = send(server, echoed).await;
        received = finish_receive(client, start_receive(client, received)).await;
    }
    Messages { sent, echoed, received }
}

/// The server's task: receives before the other end sends.
async fn echo<S: Stream>(server: Rc<Registered<S>>, mut message: Message, count: u32) -> Message {
    for _ in 0..count {
        message = finish_receive(&server, start_receive(&server, message)).await;
        message = send(&server, message).await;
    }
    message
}

/// The client's: its receive waits when it sends.
async fn ask<S: Stream>(
    client: &Registered<S>,
    (mut sent, mut received): (Message, Message),
    count: u32,
) -> (Message, Message) {
    for i in 0..count {
        sent.bytes[0] = i as u8;
        let receiving = start_receive(client, received);
        sent = send(client, sent).await;
        received = finish_receive(client, receiving).await;
    }
    (sent, received)
}

fn pingpong<S: Stream + 'static>(
    queue: &Queue,
    client: S,
    server: S,
    size: usize,
    posted: bool,
    count: u32,
) -> io::Result<Measured> {
    let client = queue.register(client)?;
    let server = Rc::new(queue.register(server)?);
    let pattern: Vec<u8> = (0..size).map(|i| (i * 7 + 1) as u8).collect();
    let empty = || Message::new(vec![0; size]);
    let messages = Messages { sent: Message::new(pattern), echoed: empty(), received: empty() };
    let mut messages = Some(messages);
    let measured = measure(count, |count| {
        let before = messages.take().expect("the run before put them back");
        let after = if posted {
            let Messages { sent, echoed, received } = before;
            let echoing = queue.spawn(echo(Rc::clone(&server), echoed, count));
            let both = async { (ask(&client, (sent, received), count).await, echoing.await) };
            let ((sent, received), echoed) = queue.block_on(both)?;
            Messages { sent, echoed, received }
        } else {
            queue.block_on(take_turns(&client, &server, before, count))?
        };
        messages = Some(after);
        Ok(())
    })?;
    let Messages { sent, received, .. } = messages.expect("the last run put them back");
    assert_eq!(sent.bytes, received.bytes, "echo differs");
    Ok(measured)
}

pub(crate) fn tcp(queue: &Queue, size: usize, posted: bool, count: u32) -> io::Result<Measured> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let server = listener.accept()?.0;
    // Or Nagle's algorithm is what gets measured.
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    pingpong(queue, client, server, size, posted, count)
}

pub(crate) fn pipe(queue: &Queue, size: usize, posted: bool, count: u32) -> io::Result<Measured> {
    let (client, server) = pipe_pair()?;
    pingpong(queue, client, server, size, posted, count)
}

/// Both ends of a named pipe in byte mode. The client came first, so they are connected.
pub(crate) fn pipe_pair() -> io::Result<(OwnedHandle, OwnedHandle)> {
    let name = format!(r"\\.\pipe\ioqueue-bench-{}", std::process::id());
    let name: Vec<u16> = name.encode_utf16().chain([0]).collect();
    let owned = |handle| {
        if handle == INVALID_HANDLE_VALUE {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call just made it, and nobody else has it.
        Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
    };
    // SAFETY: the name ends with a zero and lives through the call.
    let server = owned(unsafe {
        CreateNamedPipeW(
            name.as_ptr(),
            PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED | FILE_FLAG_FIRST_PIPE_INSTANCE,
            PIPE_TYPE_BYTE | PIPE_REJECT_REMOTE_CLIENTS,
            1,
            4096,
            4096,
            0,
            null(),
        )
    })?;
    // SAFETY: as above.
    let client = owned(unsafe {
        CreateFileW(
            name.as_ptr(),
            GENERIC_READ | GENERIC_WRITE,
            0,
            null(),
            OPEN_EXISTING,
            FILE_FLAG_OVERLAPPED,
            null_mut(),
        )
    })?;
    Ok((client, server))
}
