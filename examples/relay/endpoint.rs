//! The two sides of the relay: what is opened for a connection, and what accepts connections.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::windows::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use ioqueue::{Registered, Task};
use windows_sys::Win32::Foundation as win;
use windows_sys::Win32::Storage::FileSystem as fs;

use crate::args::Address;
use crate::io as sys;
use crate::report::Report;
use crate::stream::Stream;
use crate::threads::blocking;

/// How many connections a listener waits for at once.
const ACCEPTS: u64 = 4;

/// How long to wait for a pipe whose instances are all taken.
const BUSY: Duration = Duration::from_secs(30);

/// How long to wait after an accept that failed for a reason which may still be there.
const PAUSE: Duration = Duration::from_millis(250);

/// One side, ready to be used.
pub enum Side {
    Opener(Rc<Opener>),
    Listener(Listener),
}

/// What is opened anew for each connection.
pub enum Opener {
    Tcp { name: String, addresses: Vec<SocketAddr> },
    Pipe(String),
    FileToRead(PathBuf),
    FileToWrite(PathBuf),
    Standard,
}

impl Side {
    /// Looks names up and starts to listen. Blocks.
    pub fn new(
        address: Address,
        is_from: bool,
        once: u64,
        report: &Rc<Report>,
    ) -> io::Result<Self> {
        let opener = match address {
            Address::TcpListen(name) => {
                let acceptor = Acceptor::tcp(&name, report)?;
                return Listener::new(acceptor, once, report).map(Self::Listener);
            }
            Address::PipeListen(name) => {
                let acceptor = Acceptor::pipe(name, report)?;
                return Listener::new(acceptor, once, report).map(Self::Listener);
            }
            Address::Tcp(name) => {
                let addresses = name.to_socket_addrs().map_err(|error| about(&name, &error))?;
                Opener::Tcp { addresses: addresses.collect(), name }
            }
            Address::Pipe(name) => Opener::Pipe(name),
            Address::File(path) if is_from => Opener::FileToRead(path),
            Address::File(path) => Opener::FileToWrite(path),
            Address::Standard => Opener::Standard,
        };
        Ok(Self::Opener(Rc::new(opener)))
    }
}

/// An error that says what it is about.
fn about(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

// ---------------------------------------------------------------------------------------------
// Opening

impl Opener {
    pub async fn open(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp { name, addresses } => {
                connect(addresses).await.map_err(|error| about(name, &error))
            }
            Self::Pipe(name) => open_pipe(name).await.map_err(|error| about(name, &error)),
            Self::FileToRead(path) => open_file(path, OpenOptions::new().read(true))
                .and_then(|(name, file)| Stream::file_to_read(&name, file)),
            Self::FileToWrite(path) => {
                open_file(path, OpenOptions::new().write(true).create(true).truncate(true))
                    .and_then(|(name, file)| Stream::file_to_write(&name, file))
            }
            Self::Standard => Stream::standard(),
        }
    }
}

/// Tries each address; the error is the last one's.
async fn connect(addresses: &[SocketAddr]) -> io::Result<Stream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match sys::connect(address).await.and_then(Stream::tcp) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Opens the client's end. All instances may be taken: then a thread waits for one to be free, and
/// may find that another client was faster.
async fn open_pipe(name: &str) -> io::Result<Stream> {
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
                return Ok(Stream::pipe(name, Registered::new(Arc::new(file))?, messages));
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

/// Nobody else may write to it meanwhile: it would be changed while it is read, and a relay from a
/// file to itself would empty it.
fn open_file(path: &Path, options: &mut OpenOptions) -> io::Result<(String, File)> {
    let name = path.display().to_string();
    let options = options.share_mode(fs::FILE_SHARE_READ).custom_flags(fs::FILE_FLAG_OVERLAPPED);
    let file = options.open(path).map_err(|error| about(&name, &error))?;
    Ok((name, file))
}

// ---------------------------------------------------------------------------------------------
// Accepting

/// Accepts connections, several at once.
pub struct Listener {
    acceptor: Rc<Acceptor>,
    accepting: Vec<Task<Stream>>,
    /// How many connections are still to be waited for.
    left: u64,
    report: Rc<Report>,
}

enum Acceptor {
    Tcp(Registered<TcpListener>),
    Pipe {
        name: String,
        /// Made at the start, to see that the name is free.
        first: Cell<Option<File>>,
    },
}

impl Listener {
    fn new(acceptor: Acceptor, once: u64, report: &Rc<Report>) -> io::Result<Self> {
        let (acceptor, report) = (Rc::new(acceptor), Rc::clone(report));
        let mut listener = Self { acceptor, accepting: Vec::new(), left: once, report };
        for _ in 0..ACCEPTS.min(once) {
            let next = listener.start()?;
            listener.accepting.extend(next);
        }
        Ok(listener)
    }

    /// Starts to wait for one more connection, unless these were all.
    fn start(&mut self) -> io::Result<Option<Task<Stream>>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let (acceptor, report) = (Rc::clone(&self.acceptor), Rc::clone(&self.report));
        ioqueue::spawn(async move { acceptor.accept(&report).await }).map(Some)
    }

    /// The next connection. Others go on being accepted when this is not awaited.
    pub async fn accept(&mut self) -> io::Result<Stream> {
        let (index, stream) = poll_fn(|context| {
            for (index, task) in self.accepting.iter_mut().enumerate() {
                if let Poll::Ready(stream) = Pin::new(task).poll(context) {
                    return Poll::Ready((index, stream));
                }
            }
            Poll::Pending
        })
        .await;
        match self.start()? {
            Some(next) => self.accepting[index] = next,
            None => drop(self.accepting.swap_remove(index)),
        }
        Ok(stream)
    }
}

impl Acceptor {
    fn tcp(name: &str, report: &Report) -> io::Result<Self> {
        let listener = TcpListener::bind(name).map_err(|error| about(name, &error))?;
        report.say(&format!("listening on {}", listener.local_addr()?));
        Ok(Self::Tcp(Registered::new(listener)?))
    }

    fn pipe(name: String, report: &Report) -> io::Result<Self> {
        let first = sys::pipe_instance(&name, true).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => about(&name, &error_in_use(&error)),
            _ => about(&name, &error),
        })?;
        report.say(&format!("listening on {name}"));
        Ok(Self::Pipe { name, first: Cell::new(Some(first)) })
    }

    /// Accepts one connection. What fails is said, and does not end the listener.
    async fn accept(&self, report: &Report) -> Stream {
        loop {
            let error = match self.try_accept().await {
                Ok(stream) => return stream,
                Err(error) => error,
            };
            let aborted = matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::NotConnected
                    | io::ErrorKind::BrokenPipe
            );
            if aborted {
                // The peer went away before it was accepted.
                continue;
            }
            report.say(&format!("cannot accept: {error}"));
            if let Ok(pause) = ioqueue::sleep(PAUSE) {
                let _ = pause.await;
            }
        }
    }

    async fn try_accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let socket = sys::accept(listener).await?;
                Stream::tcp(Registered::new(socket)?)
            }
            Self::Pipe { name, first } => {
                let instance = match first.take() {
                    Some(first) => first,
                    None => sys::pipe_instance(name, false)?,
                };
                let instance = Registered::new(Arc::new(instance))?;
                match sys::connect_pipe(&instance).await.0 {
                    // The client came and went before; what it wrote is still there.
                    Err(error) if error.raw_os_error() == Some(win::ERROR_NO_DATA as i32) => {}
                    connected => drop(connected?),
                }
                Ok(Stream::pipe(name, instance, true))
            }
        }
    }
}

/// What Windows calls "access denied" when an instance that has to be the first is not.
fn error_in_use(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("another program has made this pipe ({error})"))
}
