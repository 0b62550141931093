//! monoio, on io_uring.

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt};
use monoio::{IoUringDriver, RuntimeBuilder, fs, net};

use crate::benches::{Ended, Runtime, Stream};

pub(crate) struct Monoio;

/// A type of monoio's, as every type may implement the traits that a blanket `impl` asks for.
pub(crate) struct Rented<S>(S);

impl<S: AsyncReadRent + AsyncWriteRent + 'static> Stream for Rented<S> {
    async fn receive(&mut self, buffer: Vec<u8>) -> Ended {
        self.0.read(buffer).await
    }

    async fn send(&mut self, buffer: Vec<u8>) -> Ended {
        self.0.write(buffer).await
    }

    async fn send_all(&mut self, buffer: Vec<u8>) -> Ended {
        self.0.write_all(buffer).await
    }
}

impl Runtime for Monoio {
    type Tcp = Rented<net::TcpStream>;
    type Unix = Rented<net::UnixStream>;
    type Listener = net::TcpListener;
    type File = fs::File;

    fn run<T>(future: impl Future<Output = T>) -> T {
        RuntimeBuilder::<IoUringDriver>::new().build().expect("a runtime").block_on(future)
    }

    fn spawn(future: impl Future<Output = ()> + 'static) -> impl Future<Output = ()> + 'static {
        monoio::spawn(future)
    }

    fn tcp(stream: TcpStream) -> io::Result<Self::Tcp> {
        Ok(Rented(net::TcpStream::from_std(stream)?))
    }

    fn unix(stream: UnixStream) -> io::Result<Self::Unix> {
        Ok(Rented(net::UnixStream::from_std(stream)?))
    }

    fn listener(listener: TcpListener) -> io::Result<Self::Listener> {
        net::TcpListener::from_std(listener)
    }

    async fn file(file: File) -> io::Result<Self::File> {
        fs::File::from_std(file)
    }

    async fn accept(listener: &Self::Listener) -> io::Result<Self::Tcp> {
        Ok(Rented(listener.accept().await?.0))
    }

    async fn connect(address: SocketAddr) -> io::Result<Self::Tcp> {
        let stream = net::TcpStream::connect_addr(address).await?;
        // SAFETY: the stream is there for longer than this line.
        crate::benches::no_linger(&unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) })?;
        Ok(Rented(stream))
    }

    async fn read_at(file: &Rc<Self::File>, buffer: Vec<u8>, offset: u64) -> Ended {
        file.read_at(buffer, offset).await
    }
}
