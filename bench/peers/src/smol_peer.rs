//! smol: async-io and async-executor. Files are read by its threads for blocking calls.

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;

use async_executor::LocalExecutor;
use async_io::{Async, IoSafe};
use futures_lite::{AsyncReadExt, AsyncWriteExt};

use crate::benches::{Ended, Runtime, Stream};

pub(crate) struct Smol;

thread_local! {
    static EXECUTOR: &'static LocalExecutor<'static> = Box::leak(Box::default());
}

impl<T: IoSafe + io::Read + io::Write + 'static> Stream for Async<T> {
    async fn receive(&mut self, mut buffer: Vec<u8>) -> Ended {
        (self.read(&mut buffer).await, buffer)
    }

    async fn send(&mut self, buffer: Vec<u8>) -> Ended {
        (self.write(&buffer).await, buffer)
    }

    async fn send_all(&mut self, buffer: Vec<u8>) -> Ended {
        (self.write_all(&buffer).await.map(|()| buffer.len()), buffer)
    }
}

impl Runtime for Smol {
    type Tcp = Async<TcpStream>;
    type Unix = Async<UnixStream>;
    type Listener = Async<TcpListener>;
    type File = Arc<File>;

    fn run<T>(future: impl Future<Output = T>) -> T {
        async_io::block_on(EXECUTOR.with(|executor| executor.run(future)))
    }

    fn spawn(future: impl Future<Output = ()> + 'static) -> impl Future<Output = ()> + 'static {
        EXECUTOR.with(|executor| executor.spawn(future))
    }

    fn tcp(stream: TcpStream) -> io::Result<Self::Tcp> {
        Async::new(stream)
    }

    fn unix(stream: UnixStream) -> io::Result<Self::Unix> {
        Async::new(stream)
    }

    fn listener(listener: TcpListener) -> io::Result<Self::Listener> {
        Async::new(listener)
    }

    async fn file(file: File) -> io::Result<Self::File> {
        Ok(Arc::new(file))
    }

    async fn accept(listener: &Self::Listener) -> io::Result<Self::Tcp> {
        Ok(listener.accept().await?.0)
    }

    async fn connect(address: SocketAddr) -> io::Result<Self::Tcp> {
        let stream = Async::<TcpStream>::connect(address).await?;
        crate::benches::no_linger(&stream)?;
        Ok(stream)
    }

    async fn read_at(file: &Rc<Self::File>, mut buffer: Vec<u8>, offset: u64) -> Ended {
        let file = Arc::clone(file);
        blocking::unblock(move || (file.read_at(&mut buffer, offset), buffer)).await
    }
}
