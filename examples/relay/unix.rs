//! What only Unix has, and what it does in its own way: Unix sockets, locks on files, signals.
//!
//! Every `unsafe` of the program on Unix is here, each function small enough to check.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicI32, Ordering};

use ioqueue::op::stream_socket;
use ioqueue::{Registered, SocketAddress};

use crate::stream::{Ended, Got, Passed};

// ---------------------------------------------------------------------------------------------
// Unix sockets: what a named pipe is on Windows

/// The kinds of address that are opened, and listened at.
pub const KINDS: [&str; 2] = ["unix", "unix-listen"];

pub const KINDS_HELP: &str = "  unix:PATH             connect to a Unix socket
  unix-listen:PATH      make that socket, and accept connections; removed at the end";

/// The name of a socket is a path as it is written.
pub fn full_name(name: &str) -> String {
    name.into()
}

/// A connection over a Unix socket.
#[derive(Clone)]
pub struct Local(Rc<Registered<UnixStream>>);

impl Local {
    pub async fn open(name: &str) -> io::Result<Self> {
        let address = SocketAddress::unix(name)?;
        let socket = Registered::new(UnixStream::from(stream_socket(address)?))?;
        socket.connect(address).await?;
        Ok(Self(Rc::new(socket)))
    }

    pub async fn read(&self, buffer: Vec<u8>) -> io::Result<(Got, Vec<u8>)> {
        let (read, buffer) = self.0.read(buffer).await;
        let got = match read {
            Ok(0) => Got::End,
            Ok(_) => Got::Bytes,
            // It was closed before it had read everything, which is its business.
            Err(error) if is_gone(&error) => Got::Gone,
            Err(error) => return Err(error),
        };
        Ok((got, buffer))
    }

    pub async fn write_all(&self, buffer: Vec<u8>) -> Ended<()> {
        self.0.write_all(buffer).await
    }

    pub async fn finish(&self) -> io::Result<Passed> {
        self.0.shutdown(std::net::Shutdown::Write).await.map(|()| Passed::Alone)
    }
}

/// Whether an error says that nobody has the other end of a Unix socket or of a pipe any more.
pub fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}

/// A Unix socket that listens, and its file, which is removed with it.
pub struct LocalListener {
    listener: Registered<UnixListener>,
    path: PathBuf,
}

impl LocalListener {
    pub fn new(name: &str) -> io::Result<Self> {
        let listener = Registered::new(UnixListener::bind(name)?)?;
        Ok(Self { listener, path: name.into() })
    }

    pub async fn accept(&self) -> io::Result<Local> {
        let (socket, _) = self.listener.accept().await?;
        Ok(Local(Rc::new(Registered::new(UnixStream::from(socket))?)))
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        // Somebody else may have removed it, which is as good.
        let _ = fs::remove_file(&self.path);
    }
}

// ---------------------------------------------------------------------------------------------
// Files and the standard streams

/// Other relays may read it, too. Not write to it: it would be changed while it is read, and a relay
/// from a file to itself would empty it.
pub fn open_to_read(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    lock(&file, libc::LOCK_SH)?;
    Ok(file)
}

/// No other relay may use it meanwhile. It is emptied when that is known.
pub fn open_to_write(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    lock(&file, libc::LOCK_EX)?;
    // A device has no length.
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    Ok(file)
}

/// flock(2), which does not wait.
fn lock(file: &File, how: i32) -> io::Result<()> {
    // SAFETY: takes numbers.
    if unsafe { libc::flock(file.as_raw_fd(), how | libc::LOCK_NB) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EWOULDBLOCK) => {
            Err(io::Error::new(error.kind(), "another relay uses this file, or this one does"))
        }
        // Not every file can be locked.
        Some(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP) => Ok(()),
        _ => Err(error),
    }
}

/// Standard output, as a file of its own.
pub fn stdout() -> io::Result<File> {
    io::stdout().as_fd().try_clone_to_owned().map(File::from)
}

// ---------------------------------------------------------------------------------------------
// TCP

/// Closing the socket will reset the connection, so that nobody takes what arrived for all there is.
pub fn reset_on_close(socket: &TcpStream) -> io::Result<()> {
    let now = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the option's value is read during the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const now).cast(),
            size_of_val(&now) as libc::socklen_t,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

// ---------------------------------------------------------------------------------------------
// Ctrl-C

/// Where the signal's handler writes to.
static BELL: AtomicI32 = AtomicI32::new(-1);

/// Only what is allowed at any moment: a load, and write(2), which has room for both signals.
extern "C" fn on_signal(_: libc::c_int) {
    let byte = 0_u8;
    // SAFETY: one byte that is ours, to a descriptor that is never closed.
    unsafe { libc::write(BELL.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
}

/// Waits for Ctrl-C, or SIGTERM. The second time the system ends the program.
pub async fn ctrl_c() -> io::Result<()> {
    let (hear, ring) = UnixStream::pair()?;
    BELL.store(OwnedFd::from(ring).into_raw_fd(), Ordering::Relaxed);
    let hear = Registered::new(hear)?;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: a sigaction is numbers, for which zero is nothing; the handler may run at any time.
        let set = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESTART | libc::SA_RESETHAND;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut())
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    hear.read([0]).await.0.map(drop)
}
