//! The two sides of the relay: what is opened for a connection, and what accepts connections.

use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use ioqueue::op::stream_socket;
use ioqueue::{Registered, Task};

use crate::args::Address;
use crate::report::Report;
use crate::stream::Stream;
use crate::system::{self, Local, LocalListener};

/// How many connections a listener waits for at once.
const ACCEPTS: u64 = 4;

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
    Local(String),
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
            Address::LocalListen(name) => {
                let acceptor = Acceptor::local(name, report)?;
                return Listener::new(acceptor, once, report).map(Self::Listener);
            }
            Address::Tcp(name) => {
                let addresses = name.to_socket_addrs().map_err(|error| about(&name, &error))?;
                Opener::Tcp { addresses: addresses.collect(), name }
            }
            Address::Local(name) => Opener::Local(name),
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
            Self::Local(name) => match Local::open(name).await {
                Ok(local) => Ok(Stream::local(name, local)),
                Err(error) => Err(about(name, &error)),
            },
            Self::FileToRead(path) => {
                let (name, file) = named(path, system::open_to_read(path))?;
                Stream::file_to_read(&name, file).map_err(|error| about(&name, &error))
            }
            Self::FileToWrite(path) => {
                let (name, file) = named(path, system::open_to_write(path))?;
                Stream::file_to_write(&name, file).map_err(|error| about(&name, &error))
            }
            Self::Standard => Stream::standard(),
        }
    }
}

fn named(path: &Path, file: io::Result<File>) -> io::Result<(String, File)> {
    let name = path.display().to_string();
    match file {
        Ok(file) => Ok((name, file)),
        Err(error) => Err(about(&name, &error)),
    }
}

/// Tries each address; the error is the last one's.
async fn connect(addresses: &[SocketAddr]) -> io::Result<Stream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for &address in addresses {
        match connect_to(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn connect_to(address: SocketAddr) -> io::Result<Stream> {
    let socket = Registered::new(TcpStream::from(stream_socket(address)?))?;
    socket.connect(address).await?;
    Stream::tcp(socket)
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
    Local(String, LocalListener),
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

    fn local(name: String, report: &Report) -> io::Result<Self> {
        let listener = LocalListener::new(&name).map_err(|error| about(&name, &error))?;
        report.say(&format!("listening on {name}"));
        Ok(Self::Local(name, listener))
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
                let (socket, _) = listener.accept().await?;
                Stream::tcp(Registered::new(TcpStream::from(socket))?)
            }
            Self::Local(name, listener) => Ok(Stream::local(name, listener.accept().await?)),
        }
    }
}
