//! What bytes come from and go to: one type for sockets, pipes, files and the standard streams.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::windows::io::AsHandle;
use std::rc::Rc;
use std::sync::Arc;

use ioqueue::Registered;
use windows_sys::Win32::Foundation as win;

use crate::io::{self as sys, Chunk};
use crate::threads::{OnThread, blocking};

/// One side of a connection.
///
/// Dropped before its end (a failure, Ctrl-C), it resets a TCP connection, so that the peer does not
/// take a part for the whole. The others cannot be told: they just end.
pub struct Stream {
    /// For messages.
    pub name: String,
    /// Everything went both ways.
    pub complete: bool,
    /// None where nothing ever comes back.
    pub source: Option<Source>,
    pub sink: Sink,
}

/// How an operation ended, and its buffer.
type Ended<T> = (io::Result<T>, Vec<u8>);

pub enum Source {
    Tcp(Rc<Registered<TcpStream>>),
    Pipe(Rc<Pipe>),
    File { file: Registered<File>, at: u64 },
    Stdin(OnThread<Vec<u8>, Ended<usize>>),
}

pub enum Sink {
    Tcp(Rc<Registered<TcpStream>>),
    Pipe(Rc<Pipe>),
    File { file: Registered<File>, at: u64 },
    Stdout(OnThread<(Vec<u8>, usize), Ended<()>>),
    Nowhere,
}

/// Either end of a named pipe.
pub struct Pipe {
    /// Shared with the thread that flushes it.
    handle: Registered<Arc<File>>,
    /// An empty message ends a direction. A pipe of bytes has no such thing.
    messages: bool,
}

/// What a read brought.
pub enum Got {
    Bytes(usize),
    /// The end of this direction; the other may go on.
    End,
    /// The end, and nobody is left to read either.
    Gone,
}

/// What became of passing an end on.
pub enum Passed {
    Alone,
    /// There is no way to end only one direction.
    OnlyByClosing,
}

impl Stream {
    fn new(name: &str, source: Option<Source>, sink: Sink) -> Self {
        Self { name: name.into(), complete: false, source, sink }
    }

    pub fn tcp(socket: Registered<TcpStream>) -> io::Result<Self> {
        socket.get().set_nodelay(true)?;
        let name = socket.get().peer_addr().map_or_else(|_| "tcp".into(), |peer| peer.to_string());
        let socket = Rc::new(socket);
        Ok(Self::new(&name, Some(Source::Tcp(Rc::clone(&socket))), Sink::Tcp(socket)))
    }

    /// Either end; `messages` says whether the pipe carries them, and is read so.
    pub fn pipe(name: &str, handle: Registered<Arc<File>>, messages: bool) -> Self {
        let pipe = Rc::new(Pipe { handle, messages });
        let source = Some(Source::Pipe(Rc::clone(&pipe)));
        Self::new(name, source, Sink::Pipe(pipe))
    }

    pub fn file_to_read(name: &str, file: File) -> io::Result<Self> {
        let source = Some(Source::File { file: Registered::new(file)?, at: 0 });
        Ok(Self::new(name, source, Sink::Nowhere))
    }

    pub fn file_to_write(name: &str, file: File) -> io::Result<Self> {
        let sink = Sink::File { file: Registered::new(file)?, at: 0 };
        Ok(Self::new(name, None, sink))
    }

    pub fn standard() -> io::Result<Self> {
        let source = OnThread::new(|mut buffer: Vec<u8>| {
            let read = io::stdin().read(&mut buffer);
            (read, buffer)
        })?;
        // Not `Stdout`, which looks for line ends, and on a console refuses all but UTF-8.
        let mut stdout = File::from(io::stdout().as_handle().try_clone_to_owned()?);
        let sink = OnThread::new(move |(buffer, length): (Vec<u8>, usize)| {
            (stdout.write_all(&buffer[..length]), buffer)
        })?;
        let source = Some(Source::Stdin(source));
        Ok(Self::new("-", source, Sink::Stdout(sink)))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let (Some(Source::Tcp(socket)), false) = (&self.source, self.complete) {
            // If it does not work the connection is just closed.
            let _ = sys::reset_on_close(socket.get());
        }
    }
}

impl Source {
    /// Reads into all of `buffer`, and gives it back.
    pub async fn read(&mut self, buffer: Vec<u8>) -> io::Result<(Got, Vec<u8>)> {
        let (read, buffer) = match self {
            Self::Tcp(socket) => {
                let length = buffer.len();
                let (read, chunk) = sys::recv(socket, Chunk::new(buffer, length)).await;
                (read.map(|read| read as usize), chunk.bytes)
            }
            Self::Pipe(pipe) => return pipe.read(buffer).await,
            Self::File { file, at } => {
                let ended = sys::read(file, *at, buffer).exact().await;
                *at += u64::from(ended.bytes);
                (ended.read_result().map(|read| read as usize), ended.state)
            }
            Self::Stdin(thread) => thread.ask(buffer).await,
        };
        let got = match read? {
            0 => Got::End,
            read => Got::Bytes(read),
        };
        Ok((got, buffer))
    }
}

impl Sink {
    /// Writes the first `length` bytes of `buffer`, all of them, and gives it back.
    pub async fn write(&mut self, buffer: Vec<u8>, length: usize) -> Ended<()> {
        let mut chunk = Chunk::new(buffer, length);
        while chunk.start < chunk.end {
            let (written, back) = match self {
                Self::Tcp(socket) => sys::send(socket, chunk).await,
                Self::Pipe(pipe) => sys::write(&pipe.handle, 0, chunk).await,
                Self::File { file, at } => {
                    let (written, chunk) = sys::write(file, *at, chunk).await;
                    *at += u64::from(*written.as_ref().unwrap_or(&0));
                    (written, chunk)
                }
                Self::Stdout(thread) => return thread.ask((chunk.bytes, length)).await,
                Self::Nowhere => break,
            };
            chunk = back;
            match written {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), chunk.bytes),
                Ok(written) => chunk.start += written as usize,
                Err(error) => return (Err(error), chunk.bytes),
            }
        }
        (Ok(()), chunk.bytes)
    }

    /// Passes the end of this direction on.
    pub async fn finish(&mut self) -> io::Result<Passed> {
        match self {
            Self::Tcp(socket) => socket.get().shutdown(Shutdown::Write)?,
            Self::Pipe(pipe) if pipe.messages => pipe.write_end().await?,
            Self::Pipe(_) | Self::Stdout(_) => return Ok(Passed::OnlyByClosing),
            Self::File { .. } | Self::Nowhere => {}
        }
        Ok(Passed::Alone)
    }
}

impl Pipe {
    async fn read(&self, mut buffer: Vec<u8>) -> io::Result<(Got, Vec<u8>)> {
        loop {
            let ended = sys::read(&self.handle, 0, buffer).exact().await;
            let got = match ended.result() {
                // A message longer than the buffer: the rest comes with the next read.
                Err(_) if ended.has_more_data() => Got::Bytes(ended.bytes as usize),
                Err(_) if ended.status.is_end_of_file() => Got::Gone,
                Err(error) => return Err(error),
                Ok(0) if self.messages => Got::End,
                Ok(0) => {
                    // Somebody wrote nothing, which on a pipe of bytes means nothing.
                    buffer = ended.state;
                    continue;
                }
                Ok(read) => Got::Bytes(read as usize),
            };
            return Ok((got, ended.state));
        }
    }

    /// Writes the empty message that means the end. All else has to be read before, or a reader of
    /// bytes takes it as the last part of that.
    async fn write_end(&self) -> io::Result<()> {
        let file = Arc::clone(self.handle.get());
        blocking(move || file.sync_all()).await?;
        sys::write(&self.handle, 0, Chunk::new(Vec::new(), 0)).await.0.map(drop)
    }
}

/// Whether an error says that the reader of a pipe is gone.
pub fn is_gone(error: &io::Error) -> bool {
    let code = error.raw_os_error().unwrap_or(0) as u32;
    matches!(code, win::ERROR_BROKEN_PIPE | win::ERROR_NO_DATA | win::ERROR_PIPE_NOT_CONNECTED)
}
