//! What bytes come from and go to: one type for sockets, pipes, files and the standard streams.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::rc::Rc;

use ioqueue::Registered;

use crate::system::{self, Local};
use crate::threads::OnThread;

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
pub type Ended<T> = (io::Result<T>, Vec<u8>);

pub enum Source {
    Tcp(Rc<Registered<TcpStream>>),
    Local(Local),
    File(Registered<File>),
    Stdin(OnThread<Vec<u8>, Ended<usize>>),
}

pub enum Sink {
    Tcp(Rc<Registered<TcpStream>>),
    Local(Local),
    File(Registered<File>),
    Stdout(OnThread<Vec<u8>, Ended<()>>),
    Nowhere,
}

/// What a read brought.
pub enum Got {
    Bytes,
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

    /// Either end of a Unix socket or a named pipe.
    pub fn local(name: &str, local: Local) -> Self {
        Self::new(name, Some(Source::Local(local.clone())), Sink::Local(local))
    }

    pub fn file_to_read(name: &str, file: File) -> io::Result<Self> {
        Ok(Self::new(name, Some(Source::File(Registered::new(file)?)), Sink::Nowhere))
    }

    pub fn file_to_write(name: &str, file: File) -> io::Result<Self> {
        Ok(Self::new(name, None, Sink::File(Registered::new(file)?)))
    }

    /// On threads that block: other programs have these streams too, and would notice if they were
    /// told not to.
    pub fn standard() -> io::Result<Self> {
        let source = OnThread::new(|mut buffer: Vec<u8>| {
            buffer.resize(buffer.capacity(), 0);
            let read = io::stdin().read(&mut buffer);
            buffer.truncate(*read.as_ref().unwrap_or(&0));
            (read, buffer)
        })?;
        // Not `Stdout`, which looks for line ends, and on a console of Windows refuses all but UTF-8.
        let mut stdout = system::stdout()?;
        let sink = OnThread::new(move |buffer: Vec<u8>| (stdout.write_all(&buffer), buffer))?;
        Ok(Self::new("-", Some(Source::Stdin(source)), Sink::Stdout(sink)))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let (Some(Source::Tcp(socket)), false) = (&self.source, self.complete) {
            // If it does not work the connection is just closed.
            let _ = system::reset_on_close(socket.get());
        }
    }
}

impl Source {
    /// Reads what there is, up to `buffer`'s capacity, and gives it back with that.
    pub async fn read(&mut self, buffer: Vec<u8>) -> io::Result<(Got, Vec<u8>)> {
        let (read, buffer) = match self {
            Self::Tcp(socket) => socket.read(buffer).await,
            Self::Local(local) => return local.read(buffer).await,
            Self::File(file) => file.read(buffer).await,
            Self::Stdin(thread) => thread.ask(buffer).await,
        };
        let got = match read? {
            0 => Got::End,
            _ => Got::Bytes,
        };
        Ok((got, buffer))
    }
}

impl Sink {
    /// Writes all of `buffer`, and gives it back.
    pub async fn write_all(&mut self, buffer: Vec<u8>) -> Ended<()> {
        match self {
            Self::Tcp(socket) => socket.write_all(buffer).await,
            Self::Local(local) => local.write_all(buffer).await,
            Self::File(file) => file.write_all(buffer).await,
            Self::Stdout(thread) => thread.ask(buffer).await,
            Self::Nowhere => (Ok(()), buffer),
        }
    }

    /// Passes the end of this direction on.
    pub async fn finish(&mut self) -> io::Result<Passed> {
        match self {
            Self::Tcp(socket) => socket.shutdown(Shutdown::Write).await?,
            Self::Local(local) => return local.finish().await,
            Self::Stdout(_) => return Ok(Passed::OnlyByClosing),
            Self::File(_) | Self::Nowhere => {}
        }
        Ok(Passed::Alone)
    }

    /// Whether an error of its says that nobody is left to read. On TCP that is a failure.
    pub fn is_gone(&self, error: &io::Error) -> bool {
        !matches!(self, Self::Tcp(_)) && system::is_gone(error)
    }
}
