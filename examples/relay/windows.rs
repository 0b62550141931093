//! Windows' calls: every `unsafe` of the program on Windows is here, each function small enough to check.
//!
//! The overlapped ones go through [`Registered::submit`]. What that asks for holds in each: the
//! closure makes one call with the handle and the OVERLAPPED it was given and reports what that
//! returned, and all that the kernel reads or writes is in the state, or in the heap block of a `Vec`
//! that the state owns.

use std::fs::{File, OpenOptions};
use std::future::poll_fn;
use std::io;
use std::net::TcpStream;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::{AsHandle, AsRawHandle, AsRawSocket, FromRawHandle};
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::{Mutex, PoisonError};
use std::task::{Poll, Waker};

use ioqueue::Registered;
use ioqueue::iocp::{Completion, Outcome, Wait};
use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::Networking::WinSock as sock;
use windows_sys::Win32::Storage::FileSystem as fs;
use windows_sys::Win32::System::{Console, Pipes};
use windows_sys::core::BOOL;

pub use crate::pipe::{KINDS, KINDS_HELP, Local, LocalListener, full_name, is_gone};

// ---------------------------------------------------------------------------------------------
// TCP

/// Closing the socket will reset the connection, so that nobody takes what arrived for all there is.
pub fn reset_on_close(socket: &TcpStream) -> io::Result<()> {
    let now = sock::LINGER { l_onoff: 1, l_linger: 0 };
    let socket = socket.as_raw_socket() as sock::SOCKET;
    let (at, length) = ((&raw const now).cast(), size_of_val(&now) as i32);
    // SAFETY: the option's value is read during the call.
    let answer = unsafe { sock::setsockopt(socket, sock::SOL_SOCKET, sock::SO_LINGER, at, length) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

// ---------------------------------------------------------------------------------------------
// Files and the standard streams

/// Nobody may write to it meanwhile: it would be changed while it is read, and a relay from a file to
/// itself would empty it.
pub fn open_to_read(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().read(true))
}

pub fn open_to_write(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().write(true).create(true).truncate(true))
}

fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.share_mode(fs::FILE_SHARE_READ).custom_flags(fs::FILE_FLAG_OVERLAPPED).open(path)
}

/// Standard output, as a file of its own.
pub fn stdout() -> io::Result<File> {
    io::stdout().as_handle().try_clone_to_owned().map(File::from)
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

/// ReadFile into what `buffer` has room for.
pub async fn read(handle: &Registered<impl Sized>, buffer: Vec<u8>) -> Completion<Vec<u8>> {
    // SAFETY: as the module says.
    let reading = unsafe {
        handle.submit(buffer, |handle, buffer, overlapped| {
            let (start, room) = ((*buffer).as_mut_ptr(), (*buffer).capacity());
            let room = room.try_into().unwrap_or(u32::MAX);
            Outcome::from_bool(fs::ReadFile(handle, start, room, null_mut(), overlapped))
        })
    };
    let mut ended = reading.exact().await;
    // SAFETY: so many bytes were read, at most as many as there is room for.
    unsafe { ended.state.set_len(ended.bytes as usize) };
    ended
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
