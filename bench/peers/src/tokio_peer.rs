//! tokio on one thread. Files are read by its threads for blocking calls, as its own `fs` does.

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net;

use crate::benches::{Ended, Runtime, Stream};

pub(crate) struct Tokio;

/// A future that `tokio::spawn` takes although it is not `Send`: a `LocalSet` would take longer.
struct StaysHere<F>(F);

// SAFETY: the runtime has one thread, on which its tasks are spawned, polled and dropped: `Tokio::run` makes
// it, uses it and drops it on the thread that calls it.
unsafe impl<F> Send for StaysHere<F> {}

impl<F: Future> Future for StaysHere<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: the field is as pinned as what it is in.
        unsafe { self.map_unchecked_mut(|this| &mut this.0) }.poll(context)
    }
}

/// A type of tokio's, as every type may implement the traits that a blanket `impl` asks for.
pub(crate) struct Lent<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin + 'static> Stream for Lent<S> {
    async fn receive(&mut self, mut buffer: Vec<u8>) -> Ended {
        (self.0.read(&mut buffer).await, buffer)
    }

    async fn send(&mut self, buffer: Vec<u8>) -> Ended {
        (self.0.write(&buffer).await, buffer)
    }

    async fn send_all(&mut self, buffer: Vec<u8>) -> Ended {
        (self.0.write_all(&buffer).await.map(|()| buffer.len()), buffer)
    }
}

impl Runtime for Tokio {
    type Tcp = Lent<net::TcpStream>;
    type Unix = Lent<net::UnixStream>;
    type Listener = net::TcpListener;
    type File = Arc<File>;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        runtime.expect("a runtime").block_on(future)
    }

    fn spawn(future: impl Future<Output = ()> + 'static) -> impl Future<Output = ()> + 'static {
        let task = tokio::spawn(StaysHere(future));
        async { task.await.expect("a task") }
    }

    fn tcp(stream: TcpStream) -> io::Result<Self::Tcp> {
        stream.set_nonblocking(true)?;
        Ok(Lent(net::TcpStream::from_std(stream)?))
    }

    fn unix(stream: UnixStream) -> io::Result<Self::Unix> {
        stream.set_nonblocking(true)?;
        Ok(Lent(net::UnixStream::from_std(stream)?))
    }

    fn listener(listener: TcpListener) -> io::Result<Self::Listener> {
        listener.set_nonblocking(true)?;
        net::TcpListener::from_std(listener)
    }

    async fn file(file: File) -> io::Result<Self::File> {
        Ok(Arc::new(file))
    }

    async fn accept(listener: &Self::Listener) -> io::Result<Self::Tcp> {
        Ok(Lent(listener.accept().await?.0))
    }

    async fn connect(address: SocketAddr) -> io::Result<Self::Tcp> {
        let socket = net::TcpSocket::new_v4()?;
        crate::benches::no_linger(&socket)?;
        Ok(Lent(socket.connect(address).await?))
    }

    async fn read_at(file: &Rc<Self::File>, mut buffer: Vec<u8>, offset: u64) -> Ended {
        let file = Arc::clone(file);
        let reading =
            tokio::task::spawn_blocking(move || (file.read_at(&mut buffer, offset), buffer));
        reading.await.expect("a thread")
    }
}
