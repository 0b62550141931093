//! What `raw/epoll.c` and `raw/uring.c` do by hand, written once for every runtime: tasks that await.
//!
//! The programs of `peers` take this file too, so that the queue and its peers run the same code but for the
//! few lines of [`Runtime`].

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::future::poll_fn;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use atomic_waker::AtomicWaker;
use futures_lite::future::zip;
use socket2::SockRef;

use crate::allocations;

const MESSAGE: usize = 64;
/// Room for more than a message: a receive that leaves some has emptied the socket.
const ROOM: usize = 2 * MESSAGE;
/// Of the stream.
const PIECE: usize = 64 << 10;
const BLOCK: usize = 4096;
const FILE_SIZE: u64 = 64 << 20;
/// Bytes written at once when the file is made.
const FILL: usize = 1 << 20;

/// What an operation says, and its buffer.
pub(crate) type Ended = (io::Result<usize>, Vec<u8>);

/// A connection's end.
pub(crate) trait Stream: 'static {
    /// Receives once, into all that the buffer has room for. What came is at the buffer's beginning; what
    /// its length is then is left to the runtime.
    fn receive(&mut self, buffer: Vec<u8>) -> impl Future<Output = Ended>;

    /// Sends once.
    fn send(&mut self, buffer: Vec<u8>) -> impl Future<Output = Ended>;

    /// Sends all of the buffer.
    fn send_all(&mut self, buffer: Vec<u8>) -> impl Future<Output = Ended>;
}

pub(crate) trait Runtime: 'static {
    type Tcp: Stream;
    type Unix: Stream;
    type Listener: 'static;
    type File: 'static;

    /// Runs a future and what it spawns on a runtime of this thread's own.
    fn run<T>(future: impl Future<Output = T>) -> T;
    /// Starts a task on this thread, which may end when what is returned is dropped.
    fn spawn(future: impl Future<Output = ()> + 'static) -> impl Future<Output = ()> + 'static;

    fn tcp(stream: TcpStream) -> io::Result<Self::Tcp>;
    fn unix(stream: UnixStream) -> io::Result<Self::Unix>;
    fn listener(listener: TcpListener) -> io::Result<Self::Listener>;
    async fn file(file: File) -> io::Result<Self::File>;

    async fn accept(listener: &Self::Listener) -> io::Result<Self::Tcp>;
    /// Connects, and sets the linger time to 0 before or after.
    async fn connect(address: SocketAddr) -> io::Result<Self::Tcp>;
    /// Reads into all that the buffer has room for, as [`Stream::receive`] does.
    async fn read_at(file: &Rc<Self::File>, buffer: Vec<u8>, offset: u64) -> Ended;
}

/// What one run took.
struct Measured {
    seconds: f64,
    allocations: u64,
}

/// Runs a bench and prints its line of JSON.
pub(crate) fn run<R: Runtime>(implementation: &str, bench: &str, count: u32) -> io::Result<()> {
    let (unit, measured) = R::run(async {
        Ok::<_, io::Error>(match bench {
            "tcp-pingpong-1" => ("round trips/s", tcp::<R>(1, count).await?),
            "tcp-pingpong-64" => ("round trips/s", tcp::<R>(64, count).await?),
            "unix-pingpong-1" => ("round trips/s", unix::<R>(count).await?),
            "wake" => ("round trips/s", wake::<R>(count).await),
            "stream-64k" => ("pieces/s", stream::<R>(count).await?),
            "file-read-4k-1" => ("reads/s", reads::<R>(1, count).await?),
            "file-read-4k-32" => ("reads/s", reads::<R>(32, count).await?),
            "churn" => ("connections/s", churn::<R>(count).await?),
            other => panic!("there is no bench {other}"),
        })
    })?;
    let Measured { seconds, allocations } = measured;
    let rate = f64::from(count) / seconds;
    let ns = 1e9 / rate;
    println!(
        "{{\"bench\":\"{bench}\",\"impl\":\"{implementation}\",\"count\":{count},\"seconds\":{seconds:.6},\
         \"rate\":{rate:.0},\"unit\":\"{unit}\",\"ns\":{ns:.1},\"allocations\":{allocations}}}"
    );
    Ok(())
}

/// Runs a tenth of `count` to warm up, then measures `count`.
async fn measure(count: u32, mut run: impl AsyncFnMut(u32)) -> Measured {
    run(count / 10).await;
    let before = allocations::count();
    let start = Instant::now();
    run(count).await;
    let seconds = start.elapsed().as_secs_f64();
    Measured { seconds, allocations: allocations::count() - before }
}

async fn all(tasks: Vec<impl Future<Output = ()>>) {
    for task in tasks {
        task.await;
    }
}

/// How much is left to begin, for several tasks.
#[derive(Default)]
struct Left(Cell<u32>);

impl Left {
    fn take(&self) -> Option<u32> {
        let left = self.0.get().checked_sub(1)?;
        self.0.set(left);
        Some(left)
    }
}

// ---- ping-pong: a task an end ----

/// An end of a connection. A client's is handed from run to run.
struct End<S> {
    stream: S,
    is_server: bool,
    /// What is sent, and then received from the other end.
    out: Vec<u8>,
    message: [u8; MESSAGE],
    /// A stream may hand a message over in pieces.
    have: usize,
}

impl<S: Stream> End<S> {
    fn new(stream: S, number: usize, is_server: bool) -> Self {
        let message = std::array::from_fn(|at| (at * 7 + number) as u8);
        Self { stream, is_server, out: message.into(), message, have: 0 }
    }

    /// The next message of a client, if one is left to send.
    fn next(&mut self, left: &Left) -> bool {
        let Some(number) = left.take() else { return false };
        // So that the check at the end can't be met by an earlier message.
        self.out[0] = number as u8;
        true
    }

    /// What came. Whether all of the message has.
    fn received(&mut self, got: &[u8]) -> bool {
        assert!(!got.is_empty(), "end of stream");
        if let Ok(message) = <[u8; MESSAGE]>::try_from(got) {
            assert_eq!(self.have, 0, "more than was sent");
            self.message = message;
            return true;
        }
        self.message[self.have..self.have + got.len()].copy_from_slice(got);
        self.have = (self.have + got.len()) % MESSAGE;
        self.have == 0
    }

    /// A client asks until nothing is left to ask, a server answers for ever.
    async fn run(mut self, left: Rc<Left>, done: Rc<RefCell<Vec<Self>>>) {
        let mut room = vec![0; ROOM];
        let mut sends = !self.is_server;
        loop {
            if sends {
                if self.is_server {
                    self.out.copy_from_slice(&self.message);
                } else if !self.next(&left) {
                    return done.borrow_mut().push(self);
                }
                let sent;
                (sent, self.out) = self.stream.send(self.out).await;
                // It always fits: each connection has one.
                assert_eq!(sent.expect("send"), MESSAGE, "a message was cut");
            }
            let got;
            (got, room) = self.stream.receive(room).await;
            sends = self.received(&room[..got.expect("receive")]);
        }
    }
}

async fn pingpong<R: Runtime, S: Stream>(pairs: Vec<(S, S)>, count: u32) -> Measured {
    let mut servers = Vec::new();
    let clients = Rc::new(RefCell::new(Vec::new()));
    for (number, (client, server)) in pairs.into_iter().enumerate() {
        let server = End::new(server, number, true);
        // Of these there is nothing to ask, and they never end.
        servers.push(R::spawn(server.run(Rc::default(), Rc::default())));
        clients.borrow_mut().push(End::new(client, number, false));
    }
    let measured = measure(count, async |count| {
        let left = Rc::new(Left(Cell::new(count)));
        let waiting: Vec<End<S>> = clients.take();
        let ask = |client: End<S>| R::spawn(client.run(Rc::clone(&left), Rc::clone(&clients)));
        all(waiting.into_iter().map(ask).collect()).await;
    })
    .await;
    for client in clients.borrow().iter() {
        assert!(client.out == client.message, "echo differs");
    }
    measured
}

fn tcp_pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let server = listener.accept()?.0;
    // Or Nagle's algorithm is what gets measured.
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    Ok((client, server))
}

async fn tcp<R: Runtime>(connections: usize, count: u32) -> io::Result<Measured> {
    let pair = || -> io::Result<_> {
        let (client, server) = tcp_pair()?;
        Ok((R::tcp(client)?, R::tcp(server)?))
    };
    let pairs = (0..connections).map(|_| pair()).collect::<io::Result<_>>()?;
    Ok(pingpong::<R, _>(pairs, count).await)
}

async fn unix<R: Runtime>(count: u32) -> io::Result<Measured> {
    let (client, server) = UnixStream::pair()?;
    Ok(pingpong::<R, _>(vec![(R::unix(client)?, R::unix(server)?)], count).await)
}

// ---- wake: two threads on one processor ----

/// Tells a task of another thread that it is its turn.
#[derive(Default)]
struct Turn {
    told: AtomicBool,
    waker: AtomicWaker,
}

impl Turn {
    fn tell(&self) {
        self.told.store(true, Ordering::Release);
        self.waker.wake();
    }

    async fn wait(&self) {
        poll_fn(|context| {
            // Looked at after the waker is there, or a turn could be missed.
            self.waker.register(context.waker());
            if self.told.swap(false, Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

async fn wake<R: Runtime>(count: u32) -> Measured {
    let (here, there) = (Arc::new(Turn::default()), Arc::new(Turn::default()));
    let (other_here, other_there) = (Arc::clone(&here), Arc::clone(&there));
    // It goes with the process.
    thread::spawn(move || {
        R::run(async {
            loop {
                other_there.wait().await;
                other_here.tell();
            }
        })
    });
    measure(count, async |count| {
        for _ in 0..count {
            there.tell();
            here.wait().await;
        }
    })
    .await
}

// ---- stream: a task writes, a task reads ----

/// Every 4 bytes say where in the piece they are.
fn piece() -> Vec<u8> {
    (0..PIECE as u32 / 4).flat_map(u32::to_le_bytes).collect()
}

/// The writing end, handed from run to run.
struct Writer<S> {
    stream: S,
    piece: Vec<u8>,
}

async fn write_pieces<S: Stream>(place: Rc<Cell<Option<Writer<S>>>>, count: u32) {
    let Writer { mut stream, mut piece } = place.take().expect("the run before put it back");
    for _ in 0..count {
        let (sent, back) = stream.send_all(piece).await;
        sent.expect("send");
        piece = back;
    }
    place.set(Some(Writer { stream, piece }));
}

async fn stream<R: Runtime>(count: u32) -> io::Result<Measured> {
    let (writer, reader) = tcp_pair()?;
    // The kernel would let megabytes pile up between the ends in some runs and not in others, which then go at
    // half the speed: whether the data stays in the cache is what decides.
    SockRef::from(&writer).set_send_buffer_size(2 * PIECE)?;
    let mut reader = R::tcp(reader)?;
    let writer = Writer { stream: R::tcp(writer)?, piece: piece() };
    let writer = Rc::new(Cell::new(Some(writer)));
    let (mut room, mut last) = (vec![0; PIECE], 0);
    let measured = measure(count, async |count| {
        let writing = R::spawn(write_pieces(Rc::clone(&writer), count));
        let mut left = count as usize * PIECE;
        while left > 0 {
            let got;
            (got, room) = reader.receive(std::mem::take(&mut room)).await;
            last = got.expect("receive");
            assert_ne!(last, 0, "end of stream");
            left -= last;
        }
        writing.await;
    })
    .await;
    // The pieces are all the same, so what came last must be the end of one.
    assert!(count == 0 || room[..last] == piece()[PIECE - last..], "stream differs");
    Ok(measured)
}

// ---- random reads of a file, a task for each in flight ----

/// A block, and where it was read from, if it was.
struct Block {
    bytes: Vec<u8>,
    offset: Option<u64>,
}

/// Every 8 bytes of the file say where they are.
fn words_at(offset: u64, length: usize) -> Vec<u8> {
    let places = (offset..offset + length as u64).step_by(8);
    places.flat_map(|place| (place + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect()
}

/// xorshift64, fixed seed: every run reads the same blocks. The top 14 bits pick one of 16384.
struct Offsets(Cell<u64>);

impl Offsets {
    fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        (x >> 50) * BLOCK as u64
    }
}

/// Unlinked at once, so that nothing is left behind, also after an error.
fn temporary_file() -> io::Result<File> {
    let name = format!("ioqueue-bench-{}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let mut file =
        File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(path)?;
    for offset in (0..FILE_SIZE).step_by(FILL) {
        file.write_all(&words_at(offset, FILL))?;
    }
    // Nothing is to be written back to disk while the reads are measured.
    file.sync_data()?;
    Ok(file)
}

struct Reads<R: Runtime> {
    file: Rc<R::File>,
    offsets: Offsets,
    left: Left,
    blocks: RefCell<Vec<Block>>,
}

/// Reads one block after the other until enough were started.
async fn keep_reading<R: Runtime>(reads: Rc<Reads<R>>, mut block: Block) {
    while reads.left.take().is_some() {
        let offset = reads.offsets.next();
        let (read, bytes) = R::read_at(&reads.file, block.bytes, offset).await;
        assert_eq!(read.expect("read"), BLOCK, "short read");
        block = Block { bytes, offset: Some(offset) };
    }
    reads.blocks.borrow_mut().push(block);
}

async fn reads<R: Runtime>(depth: usize, count: u32) -> io::Result<Measured> {
    let block = || Block { bytes: vec![0; BLOCK], offset: None };
    let reads = Rc::new(Reads::<R> {
        file: Rc::new(R::file(temporary_file()?).await?),
        offsets: Offsets(Cell::new(0x2545_F491_4F6C_DD1D)),
        left: Left(Cell::new(0)),
        blocks: RefCell::new((0..depth).map(|_| block()).collect()),
    });
    let measured = measure(count, async |count| {
        reads.left.0.set(count);
        let blocks = reads.blocks.take();
        let read = |block| R::spawn(keep_reading(Rc::clone(&reads), block));
        all(blocks.into_iter().map(read).collect()).await;
    })
    .await;
    for Block { bytes, offset } in reads.blocks.borrow().iter() {
        // Where reads end at once, some of the tasks find nothing left to do.
        let Some(offset) = *offset else { continue };
        assert!(*bytes == words_at(offset, BLOCK), "not the block that was asked for");
    }
    Ok(measured)
}

// ---- churn ----

/// Without it the ports would be used up. Who closes first resets, so that the other end needs none.
pub(crate) fn no_linger(stream: &impl std::os::fd::AsFd) -> io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

async fn churn<R: Runtime>(count: u32) -> io::Result<Measured> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let listener = R::listener(listener)?;
    Ok(measure(count, async |count| {
        for _ in 0..count {
            let (client, server) = zip(R::connect(address), R::accept(&listener)).await;
            drop(client.expect("connect"));
            drop(server.expect("accept"));
        }
    })
    .await)
}
