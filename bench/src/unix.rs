//! The benches of Linux on the queue.

mod benches;

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use benches::{Ended, Runtime, Stream};
use ioqueue::{AsAnyHandle, IoBuf, Registered};
use socket2::{Domain, Socket, Type};

pub(crate) fn run(bench: &str, count: u32) -> io::Result<()> {
    benches::run::<Ioqueue>("ioqueue", bench, count)
}

struct Ioqueue;

impl<S: AsAnyHandle + 'static> Stream for Registered<S> {
    #[inline(always)]
    fn receive(&mut self, buffer: Vec<u8>) -> impl Future<Output = Ended> {
        self.recv(buffer)
    }

    #[inline(always)]
    fn send(&mut self, buffer: Vec<u8>) -> impl Future<Output = Ended> {
        Self::send(self, buffer)
    }

    async fn send_all(&mut self, buffer: Vec<u8>) -> Ended {
        let length = buffer.len();
        let (sent, buffer) = Self::send(self, buffer).await;
        match sent {
            Ok(sent) if sent < length => send_rest(self, buffer, sent).await,
            _ => (sent, buffer),
        }
    }
}

/// Apart, as it is rare and what is held over a wait makes the task larger.
#[cold]
async fn send_rest<S>(stream: &Registered<S>, mut buffer: Vec<u8>, mut sent: usize) -> Ended {
    while sent < buffer.len() {
        let (more, rest) = stream.send(buffer.slice(sent..)).await;
        buffer = rest.into_inner();
        match more {
            Ok(more) => sent += more,
            Err(error) => return (Err(error), buffer),
        }
    }
    (Ok(sent), buffer)
}

impl Runtime for Ioqueue {
    type Tcp = Registered<TcpStream>;
    type Unix = Registered<UnixStream>;
    type Listener = Registered<TcpListener>;
    type File = Registered<File>;

    fn run<T>(future: impl Future<Output = T>) -> T {
        ioqueue::block_on(future).expect("a queue")
    }

    fn spawn(future: impl Future<Output = ()> + 'static) -> impl Future<Output = ()> + 'static {
        ioqueue::spawn(future).expect("a queue")
    }

    fn tcp(stream: TcpStream) -> io::Result<Self::Tcp> {
        Ok(Registered::new(stream)?)
    }

    fn unix(stream: UnixStream) -> io::Result<Self::Unix> {
        Ok(Registered::new(stream)?)
    }

    fn listener(listener: TcpListener) -> io::Result<Self::Listener> {
        Ok(Registered::new(listener)?)
    }

    async fn file(file: File) -> io::Result<Self::File> {
        Ok(Registered::new(file)?)
    }

    async fn accept(listener: &Self::Listener) -> io::Result<Self::Tcp> {
        let (socket, _) = listener.accept().await?;
        Ok(Registered::new(TcpStream::from(socket))?)
    }

    async fn connect(address: SocketAddr) -> io::Result<Self::Tcp> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        benches::no_linger(&socket)?;
        let socket = Registered::new(TcpStream::from(socket))?;
        socket.connect(address).await?;
        Ok(socket)
    }

    async fn read_at(file: &Rc<Self::File>, buffer: Vec<u8>, offset: u64) -> Ended {
        file.read_at(buffer, offset).await
    }
}
