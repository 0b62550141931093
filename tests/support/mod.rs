//! What the tests of Windows' port share: real handles, and one function for each real call.
//!
//! Each operation function makes exactly one call with what it was given and reports what that
//! returned, and everything the kernel writes to is in the state: that is `submit`'s promise, and
//! the argument for every `unsafe` here and in the tests that does not bring one of its own.

#![allow(dead_code)]

use std::ffi::c_void;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::{AsRawSocket, FromRawHandle, OwnedHandle};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};

use ioqueue::iocp::{OVERLAPPED, Outcome, Wait, submit, submit_at};
use ioqueue::{AsAnyHandle, RawHandle};
use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::Networking::WinSock::{
    AcceptEx, SO_UPDATE_ACCEPT_CONTEXT, SOCKET, SOL_SOCKET, WSABUF, WSARecv, WSASend, setsockopt,
};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_FLAG_OVERLAPPED, PIPE_ACCESS_DUPLEX, ReadFile, WriteFile,
};
use windows_sys::Win32::System::Pipes::{
    ConnectNamedPipe, CreateNamedPipeW, PIPE_READMODE_BYTE, PIPE_READMODE_MESSAGE, PIPE_TYPE_BYTE,
    PIPE_TYPE_MESSAGE, PIPE_UNLIMITED_INSTANCES,
};

/// Whether this is Wine (its ntdll exports `wine_get_version`).
pub fn on_wine() -> bool {
    use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleA, GetProcAddress};
    unsafe {
        let ntdll = GetModuleHandleA(c"ntdll.dll".as_ptr().cast());
        GetProcAddress(ntdll, c"wine_get_version".as_ptr().cast()).is_some()
    }
}

/// Says on standard error why a test does not run here; use as `return skip("...")`.
pub fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
}

/// Both ends of a TCP connection, overlapped as the standard library makes them.
pub fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    (client, server)
}

/// A socket operation's state: the buffer, and the flags that Winsock writes.
#[derive(Debug)]
pub struct Buffer {
    pub bytes: Vec<u8>,
    flags: u32,
}

impl Buffer {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), flags: 0 }
    }
}

pub fn call_recv(socket: RawHandle, state: *mut Buffer, overlapped: *mut OVERLAPPED) -> Outcome {
    unsafe {
        let bytes = &mut (*state).bytes;
        let buffer = WSABUF { len: bytes.len() as u32, buf: bytes.as_mut_ptr() };
        let flags = &raw mut (*state).flags;
        let socket = socket as SOCKET;
        Outcome::from_socket(WSARecv(socket, &buffer, 1, null_mut(), flags, overlapped, None))
    }
}

pub fn call_send(socket: RawHandle, state: *mut Buffer, overlapped: *mut OVERLAPPED) -> Outcome {
    unsafe {
        let bytes = &mut (*state).bytes;
        let buffer = WSABUF { len: bytes.len() as u32, buf: bytes.as_mut_ptr() };
        let socket = socket as SOCKET;
        Outcome::from_socket(WSASend(socket, &buffer, 1, null_mut(), 0, overlapped, None))
    }
}

/// WSARecv into `bytes.len()` bytes.
#[track_caller]
pub fn recv(socket: &(impl AsAnyHandle + ?Sized), bytes: impl Into<Vec<u8>>) -> Wait<Buffer> {
    unsafe { submit(socket, Buffer::new(bytes), call_recv) }
}

/// WSASend of all of `bytes`.
#[track_caller]
pub fn send(socket: &(impl AsAnyHandle + ?Sized), bytes: impl Into<Vec<u8>>) -> Wait<Buffer> {
    unsafe { submit(socket, Buffer::new(bytes), call_send) }
}

pub fn call_read(handle: RawHandle, state: *mut Vec<u8>, overlapped: *mut OVERLAPPED) -> Outcome {
    unsafe {
        let bytes = &mut *state;
        let (start, length) = (bytes.as_mut_ptr(), bytes.len() as u32);
        Outcome::from_bool(ReadFile(handle, start, length, null_mut(), overlapped))
    }
}

pub fn call_write(handle: RawHandle, state: *mut Vec<u8>, overlapped: *mut OVERLAPPED) -> Outcome {
    unsafe {
        let bytes = &*state;
        let (start, length) = (bytes.as_ptr(), bytes.len() as u32);
        Outcome::from_bool(WriteFile(handle, start, length, null_mut(), overlapped))
    }
}

/// ReadFile into `bytes.len()` bytes.
#[track_caller]
pub fn read(handle: &(impl AsAnyHandle + ?Sized), bytes: impl Into<Vec<u8>>) -> Wait<Vec<u8>> {
    unsafe { submit(handle, bytes.into(), call_read) }
}

/// ReadFile at an offset.
#[track_caller]
pub fn read_at(
    handle: &(impl AsAnyHandle + ?Sized),
    offset: u64,
    bytes: impl Into<Vec<u8>>,
) -> Wait<Vec<u8>> {
    unsafe { submit_at(handle, offset, bytes.into(), call_read) }
}

/// WriteFile of all of `bytes`.
#[track_caller]
pub fn write(handle: &(impl AsAnyHandle + ?Sized), bytes: impl Into<Vec<u8>>) -> Wait<Vec<u8>> {
    unsafe { submit(handle, bytes.into(), call_write) }
}

/// WriteFile at an offset.
#[track_caller]
pub fn write_at(
    handle: &(impl AsAnyHandle + ?Sized),
    offset: u64,
    bytes: impl Into<Vec<u8>>,
) -> Wait<Vec<u8>> {
    unsafe { submit_at(handle, offset, bytes.into(), call_write) }
}

/// Room for the two addresses that AcceptEx writes, each 16 bytes longer than the largest one.
pub type Addresses = [u8; 2 * 144];

/// AcceptEx of `socket` (unconnected, overlapped) on `listener`; the state holds both the addresses
/// and the socket, so the socket is closed before the memory is freed (pitfall 7).
#[track_caller]
pub fn accept(
    listener: &(impl AsAnyHandle + ?Sized),
    socket: std::os::windows::io::OwnedSocket,
) -> Wait<(std::os::windows::io::OwnedSocket, Addresses)> {
    unsafe {
        submit(listener, (socket, [0; 288]), |listener, state, overlapped| {
            let socket = (*state).0.as_raw_socket() as SOCKET;
            let room: *mut c_void = (&raw mut (*state).1).cast();
            let listener = listener as SOCKET;
            let mut received = 0;
            Outcome::from_bool(AcceptEx(
                listener,
                socket,
                room,
                0,
                144,
                144,
                &mut received,
                overlapped,
            ))
        })
    }
}

/// After AcceptEx succeeded (pitfall 26).
pub fn update_accept_context(socket: &impl AsRawSocket, listener: &impl AsRawSocket) {
    let listener = listener.as_raw_socket() as SOCKET;
    let answer = unsafe {
        setsockopt(
            socket.as_raw_socket() as SOCKET,
            SOL_SOCKET,
            SO_UPDATE_ACCEPT_CONTEXT,
            (&raw const listener).cast(),
            size_of::<SOCKET>() as i32,
        )
    };
    assert_eq!(answer, 0);
}

/// A pipe name that no other test has.
pub fn pipe_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    format!(r"\\.\pipe\ioqueue-test-{process}-{number}")
}

pub fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}

/// One server instance of a named pipe, overlapped; message mode if asked.
pub fn pipe_server(name: &str, messages: bool) -> OwnedHandle {
    let mode = if messages {
        PIPE_TYPE_MESSAGE | PIPE_READMODE_MESSAGE
    } else {
        PIPE_TYPE_BYTE | PIPE_READMODE_BYTE
    };
    unsafe {
        let handle = CreateNamedPipeW(
            wide(name).as_ptr(),
            PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED,
            mode,
            PIPE_UNLIMITED_INSTANCES,
            4096,
            4096,
            0,
            null(),
        );
        assert_ne!(handle, INVALID_HANDLE_VALUE, "{}", std::io::Error::last_os_error());
        OwnedHandle::from_raw_handle(handle)
    }
}

/// The client's end of a named pipe, overlapped.
pub fn pipe_client(name: &str) -> std::io::Result<File> {
    File::options().read(true).write(true).custom_flags(FILE_FLAG_OVERLAPPED).open(name)
}

/// ConnectNamedPipe.
#[track_caller]
pub fn connect_pipe(server: &(impl AsAnyHandle + ?Sized)) -> Wait<()> {
    unsafe {
        submit(server, (), |handle, _, overlapped| {
            Outcome::from_bool(ConnectNamedPipe(handle, overlapped))
        })
    }
}

/// Both ends of a connected named pipe, overlapped.
pub fn pipe_pair(messages: bool) -> (OwnedHandle, File) {
    let name = pipe_name();
    let server = pipe_server(&name, messages);
    let client = pipe_client(&name).unwrap();
    (server, client)
}

/// A file that is deleted when this is dropped, opened overlapped.
pub struct TempFile {
    pub path: PathBuf,
}

impl TempFile {
    /// With `contents`.
    pub fn new(contents: &[u8]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("ioqueue-test-{process}-{number}"));
        std::fs::write(&path, contents).unwrap();
        Self { path }
    }

    pub fn open(&self) -> File {
        open_overlapped(&self.path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A file for overlapped reading and writing.
pub fn open_overlapped(path: &Path) -> File {
    File::options().read(true).write(true).custom_flags(FILE_FLAG_OVERLAPPED).open(path).unwrap()
}

// ---------------------------------------------------------------------------------------------
// More of each kind of handle.

/// A future that lets the queue look at its port three times: what was queued there has then come.
pub async fn look_around() {
    let mut left = 3;
    std::future::poll_fn(|context| {
        if left == 0 {
            return std::task::Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

/// Takes what is queued on the port off it, past the queue, and says how many packets that were.
pub fn packets_on_port(queue: &ioqueue::Queue) -> usize {
    use std::os::windows::io::{AsHandle, AsRawHandle};
    use windows_sys::Win32::System::IO::{GetQueuedCompletionStatusEx, OVERLAPPED_ENTRY};
    let port = queue.as_handle().as_raw_handle();
    let mut entries = [OVERLAPPED_ENTRY::default(); 16];
    let mut count = 0;
    let ok =
        unsafe { GetQueuedCompletionStatusEx(port, entries.as_mut_ptr(), 16, &mut count, 0, 0) };
    if ok == 0 { 0 } else { count as usize }
}

/// How many handles this process has.
pub fn handle_count() -> u32 {
    use windows_sys::Win32::System::Threading::{GetCurrentProcess, GetProcessHandleCount};
    let mut count = 0;
    assert_ne!(unsafe { GetProcessHandleCount(GetCurrentProcess(), &mut count) }, 0);
    count
}

/// The client's end of a named pipe, for blocking calls.
pub fn blocking_pipe_client(name: &str) -> std::io::Result<File> {
    File::options().read(true).write(true).open(name)
}

/// A server's end on `queue`, connected, and a blocking client's.
pub fn pipe_to_blocking_client(
    queue: &ioqueue::Queue,
    messages: bool,
    options: ioqueue::Persist,
) -> (ioqueue::Registered<OwnedHandle>, File) {
    let name = pipe_name();
    let server = queue.register_with(pipe_server(&name, messages), options).unwrap();
    let client = blocking_pipe_client(&name).unwrap();
    queue.block_on(connect_pipe(&server)).unwrap().0.unwrap();
    (server, client)
}

/// A new socket for overlapped use: `SOCK_STREAM` or `SOCK_DGRAM`.
pub fn socket(of_type: i32) -> std::os::windows::io::OwnedSocket {
    use std::os::windows::io::{FromRawSocket, OwnedSocket};
    use windows_sys::Win32::Networking::WinSock::{
        AF_INET, INVALID_SOCKET, WSA_FLAG_NO_HANDLE_INHERIT, WSA_FLAG_OVERLAPPED, WSADATA,
        WSASocketW, WSAStartup,
    };
    unsafe {
        static START: std::sync::Once = std::sync::Once::new();
        START.call_once(|| assert_eq!(WSAStartup(0x202, &mut WSADATA::default()), 0));
        let flags = WSA_FLAG_OVERLAPPED | WSA_FLAG_NO_HANDLE_INHERIT;
        let socket = WSASocketW(i32::from(AF_INET), of_type, 0, null(), 0, flags);
        assert_ne!(socket, INVALID_SOCKET, "{}", std::io::Error::last_os_error());
        OwnedSocket::from_raw_socket(socket as _)
    }
}

/// A new TCP socket for overlapped use.
pub fn tcp_socket() -> std::os::windows::io::OwnedSocket {
    socket(windows_sys::Win32::Networking::WinSock::SOCK_STREAM)
}

/// An IPv4 address as Winsock takes it.
pub fn socket_address(
    address: std::net::SocketAddr,
) -> windows_sys::Win32::Networking::WinSock::SOCKADDR_IN {
    use windows_sys::Win32::Networking::WinSock::{AF_INET, SOCKADDR_IN};
    let std::net::SocketAddr::V4(address) = address else { panic!("{address} is not IPv4") };
    let mut to = SOCKADDR_IN { sin_family: AF_INET, ..SOCKADDR_IN::default() };
    to.sin_port = address.port().to_be();
    to.sin_addr.S_un.S_addr = u32::from_ne_bytes(address.ip().octets());
    to
}

/// Binds a socket to a free port of the loopback interface.
pub fn bind_anywhere(socket: &impl AsRawSocket) {
    let address = socket_address("127.0.0.1:0".parse().unwrap());
    let length = size_of_val(&address) as i32;
    let socket = socket.as_raw_socket() as SOCKET;
    let bound = unsafe {
        use windows_sys::Win32::Networking::WinSock::bind;
        bind(socket, (&raw const address).cast(), length)
    };
    assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
}

/// AcceptEx with room for nothing but the two addresses.
///
/// # Safety
/// As `AcceptEx`: `room` lives until the operation has ended.
pub unsafe fn call_accept(
    listener: RawHandle,
    socket: &impl AsRawSocket,
    room: *mut Addresses,
    overlapped: *mut OVERLAPPED,
) -> Outcome {
    let (listener, socket) = (listener as SOCKET, socket.as_raw_socket() as SOCKET);
    let (room, mut now) = (room.cast(), 0);
    Outcome::from_bool(unsafe {
        AcceptEx(listener, socket, room, 0, 144, 144, &mut now, overlapped)
    })
}

/// ConnectEx of a bound socket (pitfall 26).
#[track_caller]
pub fn connect(
    socket: &(impl AsAnyHandle + ?Sized),
    to: std::net::SocketAddr,
) -> Wait<windows_sys::Win32::Networking::WinSock::SOCKADDR_IN> {
    use windows_sys::Win32::Networking::WinSock::{
        LPFN_CONNECTEX, SIO_GET_EXTENSION_FUNCTION_POINTER, WSAID_CONNECTEX, WSAIoctl,
    };
    let (mut connect_ex, name): (LPFN_CONNECTEX, _) = (None, WSAID_CONNECTEX);
    let mut length = 0;
    let found = unsafe {
        WSAIoctl(
            socket.as_any_handle().raw() as SOCKET,
            SIO_GET_EXTENSION_FUNCTION_POINTER,
            (&raw const name).cast(),
            size_of_val(&name) as u32,
            (&raw mut connect_ex).cast(),
            size_of_val(&connect_ex) as u32,
            &mut length,
            null_mut(),
            None,
        )
    };
    assert_eq!(found, 0, "{}", std::io::Error::last_os_error());
    let connect_ex = connect_ex.unwrap();
    unsafe {
        submit(socket, socket_address(to), move |socket, to, overlapped| {
            let (socket, length) = (socket as SOCKET, size_of_val(&*to) as i32);
            let to = to.cast();
            Outcome::from_bool(connect_ex(socket, to, length, null(), 0, null_mut(), overlapped))
        })
    }
}

/// After ConnectEx succeeded (pitfall 26).
pub fn update_connect_context(socket: &impl AsRawSocket) {
    use windows_sys::Win32::Networking::WinSock::SO_UPDATE_CONNECT_CONTEXT;
    let socket = socket.as_raw_socket() as SOCKET;
    let answer = unsafe { setsockopt(socket, SOL_SOCKET, SO_UPDATE_CONNECT_CONTEXT, null(), 0) };
    assert_eq!(answer, 0);
}

/// Makes closing the socket a reset instead of an end.
pub fn reset_when_closed(socket: &impl AsRawSocket) {
    use windows_sys::Win32::Networking::WinSock::{LINGER, SO_LINGER};
    let linger = LINGER { l_onoff: 1, l_linger: 0 };
    let (socket, length) = (socket.as_raw_socket() as SOCKET, size_of_val(&linger) as i32);
    let linger = (&raw const linger).cast();
    assert_eq!(unsafe { setsockopt(socket, SOL_SOCKET, SO_LINGER, linger, length) }, 0);
}

/// Reads or receives with `once` until `length` bytes came or the end.
pub async fn read_full(
    length: usize,
    mut once: impl AsyncFnMut(usize) -> (std::io::Result<u32>, Vec<u8>),
) -> Vec<u8> {
    let mut all = Vec::with_capacity(length);
    while all.len() < length {
        let (count, bytes) = once(length - all.len()).await;
        match count.unwrap() {
            0 => break,
            count => all.extend_from_slice(&bytes[..count as usize]),
        }
    }
    all
}

/// Receives `length` bytes, or what comes until the end.
pub async fn recv_full(socket: &impl AsAnyHandle, length: usize) -> Vec<u8> {
    read_full(length, async |rest| {
        let (count, buffer) = recv(socket, vec![0; rest.min(1 << 20)]).await;
        (count, buffer.bytes)
    })
    .await
}

/// Runs `body` on a thread of its own and fails when it has not ended after half a minute, so that
/// a wait that never ends is a failure of its test and not of the whole program.
pub fn ends<R: Send + 'static>(body: impl FnOnce() -> R + Send + 'static) -> R {
    use std::sync::mpsc::{RecvTimeoutError, channel};
    let (sender, receiver) = channel();
    let thread = std::thread::spawn(move || {
        let _ = sender.send(body());
    });
    match receiver.recv_timeout(std::time::Duration::from_secs(30)) {
        Ok(answer) => {
            thread.join().unwrap();
            answer
        }
        Err(RecvTimeoutError::Timeout) => panic!("it does not end"),
        Err(RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().unwrap_err())
        }
    }
}

/// What a panic said.
pub fn panic_message(payload: &(dyn std::any::Any + Send)) -> &str {
    let owned = payload.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("")
}

/// A waker that calls a closure each time it is woken. For one thread only.
pub fn waker(woken: impl Fn() + 'static) -> std::task::Waker {
    struct OneThread<F>(F, std::thread::ThreadId);
    // Checked at each wake; dropping on another thread is up to the test.
    unsafe impl<F> Send for OneThread<F> {}
    unsafe impl<F> Sync for OneThread<F> {}
    impl<F: Fn()> std::task::Wake for OneThread<F> {
        fn wake(self: std::sync::Arc<Self>) {
            self.wake_by_ref();
        }
        fn wake_by_ref(self: &std::sync::Arc<Self>) {
            assert_eq!(std::thread::current().id(), self.1, "woken on another thread");
            (self.0)();
        }
    }
    std::sync::Arc::new(OneThread(woken, std::thread::current().id())).into()
}

/// Polls a future once with a waker that does nothing.
pub fn poll_once<F: Future + Unpin>(future: &mut F) -> std::task::Poll<F::Output> {
    poll_with(future, std::task::Waker::noop())
}

/// Polls a future once with this waker.
pub fn poll_with<F: Future + Unpin>(
    future: &mut F,
    waker: &std::task::Waker,
) -> std::task::Poll<F::Output> {
    std::pin::Pin::new(future).poll(&mut std::task::Context::from_waker(waker))
}

/// Calls a closure when it is dropped.
pub struct OnDrop<F: FnMut()>(pub F);

impl<F: FnMut()> std::fmt::Debug for OnDrop<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnDrop")
    }
}

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Something to put into a state, and a count of how often it was dropped.
pub fn tracked() -> (OnDrop<impl FnMut() + Send + 'static>, Drops) {
    let drops = Drops::default();
    let count = drops.clone();
    let dropped = move || {
        count.0.fetch_add(1, Ordering::SeqCst);
    };
    (OnDrop(dropped), drops)
}

/// How often the other half of [`tracked`] was dropped.
#[derive(Clone, Default)]
pub struct Drops(std::sync::Arc<AtomicU32>);

impl Drops {
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

/// WSARecv into `bytes.len()` bytes, with something beside the buffer in the operation's state.
#[track_caller]
pub fn recv_beside<T: 'static>(
    socket: &(impl AsAnyHandle + ?Sized),
    bytes: impl Into<Vec<u8>>,
    beside: T,
) -> Wait<(Buffer, T)> {
    unsafe {
        submit(socket, (Buffer::new(bytes), beside), |socket, state, overlapped| {
            call_recv(socket, &raw mut (*state).0, overlapped)
        })
    }
}

/// Polls `queue` without blocking for long, and resumes what is ready, until `done` says so.
pub fn poll_until(queue: &ioqueue::Queue, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    let mut ready = Vec::new();
    while !done() {
        assert!(start.elapsed() < std::time::Duration::from_secs(30), "it does not end");
        queue.poll(&mut ready, Some(std::time::Duration::from_millis(10))).unwrap();
        for continuation in ready.drain(..) {
            continuation.resume();
        }
    }
}

/// As [`ends`], for a body that takes longer.
pub fn ends_within<R: Send + 'static>(
    limit: std::time::Duration,
    body: impl FnOnce() -> R + Send + 'static,
) -> R {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let _ = sender.send(body());
    });
    match receiver.recv_timeout(limit) {
        Ok(answer) => {
            thread.join().unwrap();
            answer
        }
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("it does not end"),
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().unwrap_err())
        }
    }
}

/// How many packets are queued on the port now.
pub fn depth_of_port(port: &impl std::os::windows::io::AsHandle) -> usize {
    use std::os::windows::io::AsRawHandle;
    #[link(name = "ntdll")]
    unsafe extern "system" {
        fn NtQueryIoCompletion(
            port: RawHandle,
            class: i32,
            depth: *mut i32,
            length: u32,
            returned: *mut u32,
        ) -> i32;
    }
    let mut depth = 0;
    let port = port.as_handle().as_raw_handle();
    assert_eq!(unsafe { NtQueryIoCompletion(port, 0, &mut depth, 4, null_mut()) }, 0);
    depth as usize
}
