//! Windows' named pipes: what a Unix socket is elsewhere.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::windows::fs::OpenOptionsExt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ioqueue::Registered;
use windows_sys::Win32::Foundation as win;
use windows_sys::Win32::Storage::FileSystem as fs;

use crate::stream::{Ended, Got, Passed};
use crate::threads::blocking;
use crate::windows as sys;

/// The kinds of address that are opened, and listened at.
pub const KINDS: [&str; 2] = ["pipe", "pipe-listen"];

pub const KINDS_HELP: &str =
    "  pipe:NAME             open the named pipe \\\\.\\pipe\\NAME (or NAME, if it begins with \\\\)
  pipe-listen:NAME      make that pipe and accept clients of this machine";

/// How long to wait for a pipe whose instances are all taken.
const BUSY: Duration = Duration::from_secs(30);

pub fn full_name(name: &str) -> String {
    if name.starts_with(r"\\") { name.into() } else { format!(r"\\.\pipe\{name}") }
}

/// Either end of a named pipe.
#[derive(Clone)]
pub struct Local(Rc<Pipe>);

struct Pipe {
    /// Shared with the thread that flushes it.
    handle: Registered<Arc<File>>,
    /// An empty message ends a direction. A pipe of bytes has no such thing.
    messages: bool,
}

impl Local {
    fn new(handle: Registered<Arc<File>>, messages: bool) -> Self {
        Self(Rc::new(Pipe { handle, messages }))
    }

    /// Opens the client's end. All instances may be taken: then a thread waits for one to be free, and
    /// may find that another client was faster.
    pub async fn open(name: &str) -> io::Result<Self> {
        let since = Instant::now();
        loop {
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(fs::FILE_FLAG_OVERLAPPED)
                // Whoever has the other end may learn who we are, and not act as us.
                .security_qos_flags(fs::SECURITY_IDENTIFICATION)
                .open(name);
            match opened {
                Ok(file) => {
                    let messages = sys::read_as_messages(&file)?;
                    return Ok(Self::new(Registered::new(Arc::new(file))?, messages));
                }
                Err(error) if error.raw_os_error() != Some(win::ERROR_PIPE_BUSY as i32) => {
                    return Err(error);
                }
                Err(error) if since.elapsed() > BUSY => return Err(error),
                Err(_) => {}
            }
            let waiting = name.to_owned();
            let free = blocking(move || sys::wait_for_instance(&waiting, 1000)).await;
            match free {
                Err(error) if error.raw_os_error() != Some(win::ERROR_SEM_TIMEOUT as i32) => {
                    return Err(error);
                }
                _ => {}
            }
        }
    }

    /// Not the portable read, which does not tell an empty message from a pipe that is closed.
    pub async fn read(&self, mut buffer: Vec<u8>) -> io::Result<(Got, Vec<u8>)> {
        loop {
            let ended = sys::read(&self.0.handle, buffer).await;
            let got = match ended.result() {
                // A message longer than the buffer: the rest comes with the next read.
                Err(_) if ended.has_more_data() => Got::Bytes,
                Err(_) if ended.status.is_end_of_file() => Got::Gone,
                Err(error) => return Err(error),
                Ok(0) if self.0.messages => Got::End,
                Ok(0) => {
                    // Somebody wrote nothing, which on a pipe of bytes means nothing.
                    buffer = ended.state;
                    continue;
                }
                Ok(_) => Got::Bytes,
            };
            return Ok((got, ended.state));
        }
    }

    pub async fn write_all(&self, buffer: Vec<u8>) -> Ended<()> {
        self.0.handle.write_all(buffer).await
    }

    /// Writes the empty message that means the end. All else has to be read before, or a reader of
    /// bytes takes it as the last part of that.
    pub async fn finish(&self) -> io::Result<Passed> {
        if !self.0.messages {
            return Ok(Passed::OnlyByClosing);
        }
        let file = Arc::clone(self.0.handle.get());
        blocking(move || file.sync_all()).await?;
        self.0.handle.write("").await.0.map(|_| Passed::Alone)
    }
}

/// Whether an error says that nobody has the other end of a pipe any more.
pub fn is_gone(error: &io::Error) -> bool {
    // A write says so by its kind.
    let code = error.raw_os_error().unwrap_or(0) as u32;
    error.kind() == io::ErrorKind::BrokenPipe
        || matches!(code, win::ERROR_NO_DATA | win::ERROR_PIPE_NOT_CONNECTED)
}

/// A name of which instances are made.
pub struct LocalListener {
    name: String,
    /// Made at the start, to see that the name is free.
    first: Cell<Option<File>>,
}

impl LocalListener {
    pub fn new(name: &str) -> io::Result<Self> {
        let first = sys::pipe_instance(name, true).map_err(|error| match error.kind() {
            // What Windows calls "access denied" when an instance that has to be the first is not.
            io::ErrorKind::PermissionDenied => io::Error::new(
                error.kind(),
                format!("another program has made this pipe ({error})"),
            ),
            _ => error,
        })?;
        Ok(Self { name: name.into(), first: Cell::new(Some(first)) })
    }

    pub async fn accept(&self) -> io::Result<Local> {
        let instance = match self.first.take() {
            Some(first) => first,
            None => sys::pipe_instance(&self.name, false)?,
        };
        let instance = Registered::new(Arc::new(instance))?;
        match sys::connect_pipe(&instance).await.0 {
            // The client came and went before; what it wrote is still there.
            Err(error) if error.raw_os_error() == Some(win::ERROR_NO_DATA as i32) => {}
            connected => drop(connected?),
        }
        Ok(Local::new(instance, true))
    }
}
