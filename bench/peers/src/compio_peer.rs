//! compio, on io_uring.

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use compio::buf::BufResult;
use compio::io::{AsyncRead, AsyncReadAt, AsyncWrite, AsyncWriteExt};
use compio::{fs, net, runtime};

use crate::benches::{Ended, Runtime, Stream};

pub(crate) struct Compio;

/// A type of compio's, as every type may implement the traits that a blanket `impl` asks for.
pub(crate) struct Owned<S>(S);

impl<S: AsyncRead + AsyncWrite + 'static> Stream for Owned<S> {
    async fn receive(&mut self, buffer: Vec<u8>) -> Ended {
        let BufResult(result, buffer) = self.0.read(buffer).await;
        (result, buffer)
    }

    async fn send(&mut self, buffer: Vec<u8>) -> Ended {
        let BufResult(result, buffer) = self.0.write(buffer).await;
        (result, buffer)
    }

    async fn send_all(&mut self, buffer: Vec<u8>) -> Ended {
        let BufResult(result, buffer) = self.0.write_all(buffer).await;
        (result.map(|()| buffer.len()), buffer)
    }
}

impl Runtime for Compio {
    type Tcp = Owned<net::TcpStream>;
    type Unix = Owned<net::UnixStream>;
    type Listener = net::TcpListener;
    type File = fs::File;

    fn run<T>(future: impl Future<Output = T>) -> T {
        runtime::Runtime::new().expect("a runtime").block_on(future)
    }

    fn spawn(future: impl Future<Output = ()> + 'static) -> impl Future<Output = ()> + 'static {
        let task = runtime::spawn(future);
        async { task.await.expect("a task") }
    }

    fn tcp(stream: TcpStream) -> io::Result<Self::Tcp> {
        Ok(Owned(net::TcpStream::from_std(stream)?))
    }

    fn unix(stream: UnixStream) -> io::Result<Self::Unix> {
        Ok(Owned(net::UnixStream::from_std(stream)?))
    }

    fn listener(listener: TcpListener) -> io::Result<Self::Listener> {
        net::TcpListener::from_std(listener)
    }

    /// It takes no file of std's, but the unlinked one can be opened once more.
    async fn file(file: File) -> io::Result<Self::File> {
        fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).await
    }

    async fn accept(listener: &Self::Listener) -> io::Result<Self::Tcp> {
        Ok(Owned(listener.accept().await?.0))
    }

    async fn connect(address: SocketAddr) -> io::Result<Self::Tcp> {
        let socket = net::TcpSocket::new_v4().await?;
        socket.set_zero_linger()?;
        Ok(Owned(socket.connect(address).await?))
    }

    async fn read_at(file: &Rc<Self::File>, buffer: Vec<u8>, offset: u64) -> Ended {
        let BufResult(result, buffer) = file.read_at(buffer, offset).await;
        (result, buffer)
    }
}
