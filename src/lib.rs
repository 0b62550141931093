//! An event queue, one per thread: register a handle, start its operation, await it. On Windows the
//! handle may be one that no runtime has heard of, and the operation any call that takes an OVERLAPPED.
//! On Linux the queue is an io_uring, or epoll where there is none.
//!
//! # On Windows: any overlapped call
//!
//! ```
//! # #[cfg(windows)]
//! # fn main() -> std::io::Result<()> {
//! use std::fs::File;
//! use std::os::windows::fs::OpenOptionsExt;
//! use std::ptr::null_mut;
//!
//! use ioqueue::Registered;
//! use ioqueue::iocp::Outcome;
//! use windows_sys::Win32::Storage::FileSystem::{FILE_FLAG_OVERLAPPED, ReadFile};
//!
//! let program = std::env::current_exe()?;
//! let file = File::options().read(true).custom_flags(FILE_FLAG_OVERLAPPED).open(program)?;
//! let file = Registered::new(file)?; // owns it, and unregisters it before closing it
//!
//! // The buffer belongs to the operation until it comes back with the result.
//! // SAFETY: one call, with what was given, and what that call returned.
//! let reading = unsafe {
//!     file.submit_at(0, vec![0_u8; 2], |handle, buffer, overlapped| {
//!         let buffer = &mut *buffer;
//!         let (start, length) = (buffer.as_mut_ptr(), buffer.len() as u32);
//!         Outcome::from_bool(ReadFile(handle, start, length, null_mut(), overlapped))
//!     })
//! };
//! let (count, buffer) = ioqueue::block_on(reading)?;
//! assert_eq!((count?, &buffer[..]), (2, &b"MZ"[..]));
//! # Ok(())
//! # }
//! # #[cfg(not(windows))]
//! # fn main() {}
//! ```
//!
//! # On every system: the portable operations
//!
//! On Linux the operations are methods of [`Registered`], and on Windows these are there too: reads, writes, accepts, connects, datagrams
//! ([`mod@op`] lists them). Each takes its buffer, starts at once, and gives the buffer back with the
//! result. An echo server:
//!
//! ```no_run
//! use std::io;
//! use std::net::{TcpListener, TcpStream};
//!
//! use ioqueue::Registered;
//!
//! async fn echo(peer: Registered<TcpStream>) -> io::Result<()> {
//!     let mut buffer = Vec::with_capacity(4096);
//!     loop {
//!         let (read, filled) = peer.read(buffer).await; // the buffer comes back with the result
//!         if read? == 0 {
//!             return Ok(()); // the end
//!         }
//!         let (written, echoed) = peer.write_all(filled).await; // as many bytes as were read
//!         written?;
//!         buffer = echoed;
//!     }
//! }
//!
//! fn main() -> io::Result<()> {
//!     let listener = Registered::new(TcpListener::bind("127.0.0.1:7000")?)?;
//!     ioqueue::block_on(async {
//!         loop {
//!             let (peer, _from) = listener.accept().await?;
//!             let echo = echo(Registered::new(TcpStream::from(peer))?);
//!             ioqueue::spawn(async { echo.await.unwrap_or_else(|error| eprintln!("{error}")) })?.detach();
//!         }
//!     })?
//! }
//! ```
//!
//! # What it does not do
//!
//! - It brings no files, pipes or sockets of its own yet: you make the handle, it does the waiting.
//! - It is no runtime. Its futures work under any executor, as long as somebody polls the queue;
//!   [`run`] and [`block_on`] do that, [`poll`] serves a loop of your own.
//! - It does not make Linux a Windows: [`submit`], [`wait`] and the rest of [`mod@iocp`] work on a
//!   completion port, real or simulated. Elsewhere they say `Unsupported`.
//! - It was never run on a real Windows, only under Wine 10; on Linux only on x86-64 with one new kernel;
//!   on macOS and the BSDs not at all, for which it is type-checked (their way to wait was tried on Linux). `docs/TESTED.md` says what that
//!   leaves open.
//! - It moves nothing between threads: queues, futures and registrations are not `Send`. A
//!   [`Notifier`] wakes a queue from anywhere.
//!
//! # Where each thing is
//!
//! | you want to | look at |
//! |---|---|
//! | register a handle and own it | [`Registered`], [`Queue::register`] |
//! | register a handle that somebody else owns | [`persist`], [`unregister`], [`AsAnyHandle`] |
//! | read, write, accept, connect, close, on every system | [`mod@op`], [`IoBuf`], [`op::stream_socket`] |
//! | start any overlapped call and wait, in one | [`submit`], [`Registered::submit`], [`Outcome`](iocp::Outcome) |
//! | make the call yourself, then wait | [`Overlapped`], [`wait`] |
//! | park a continuation of another loop | [`wait_with`], [`Continuation`] |
//! | cancel, and learn how it ended | [`Operation::cancel`], [`Operation::timeout`]; [`Wait::cancel`](iocp::Wait::cancel), [`Wait::timeout`](iocp::Wait::timeout) |
//! | wait until a call of your own would not block | [`ready`], [`Event`] |
//! | the raw status, an end of file, more data | [`Wait::exact`](iocp::Wait::exact), [`Completion`](iocp::Completion) |
//! | run, spawn tasks | [`Queue`], [`Task`], [`yield_now`] |
//! | serve it from a loop of your own | [`Queue::poll`], [`Queue::poll_delay`], the queue's `AsFd` or `AsHandle` |
//! | wake the queue from another thread | [`Notifier`] |
//! | use it from a program whose threads are not its own | [`Remote`] |
//! | choose the kernel | [`Queue::builder`], [`KernelKind`] |
//! | sleep, tick | [`sleep`], [`interval`], [`timeout`] |
//! | tell a mistake from an I/O error | [`Misuse`], [`PersistError`], [`mod@error`] |
//! | see what is in flight | [`Queue::pending`] |
//! | test against every order of events | `sim`, a simulated Windows, with the feature of that name |
//!
//! The README has more: the other forms, a recipe for a device of your own, and what callers have to
//! know. `docs/ARCHITECTURE.md` is the tour of the inside.

#![warn(missing_docs, clippy::undocumented_unsafe_blocks)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(windows), allow(dead_code, unused_variables, unreachable_code))]

#[forbid(unsafe_code)]
mod address;
pub mod buffer;
#[forbid(unsafe_code)]
mod continuation;
#[forbid(unsafe_code)]
pub mod error;
#[forbid(unsafe_code)]
mod handle;
pub mod iocp;
mod kernel;
#[forbid(unsafe_code)]
mod misuse;
#[forbid(unsafe_code)]
mod notify;
mod nt;
pub mod op;
mod operation;
#[forbid(unsafe_code)]
mod queue;
#[forbid(unsafe_code)]
mod remote;
#[cfg(feature = "sim")]
#[cfg_attr(docsrs, doc(cfg(feature = "sim")))]
#[forbid(unsafe_code)]
pub mod sim;
#[forbid(unsafe_code)]
mod socket;
#[forbid(unsafe_code)]
mod sync;
#[forbid(unsafe_code)]
mod task;
#[forbid(unsafe_code)]
mod time;
#[forbid(unsafe_code)]
mod trace;

pub use address::SocketAddress;
pub use buffer::{IoBuf, IoBufMut, Slice};
pub use continuation::{Continuation, Runnable};
pub use handle::{
    AnyHandle, AsAnyHandle, HandleId, HandleKind, IntoOwnedHandle, OwnedAnyHandle, Persist,
    PersistError, PersistFailure, RawHandle, Registered,
};
pub use kernel::KernelKind;
pub use misuse::Misuse;
pub use notify::Notifier;
pub use op::{Event, Events, Operation, ready};
pub use queue::{
    Builder, ForeignPacket, Pending, PendingState, Queue, block_on, notifier, persist, poll, run,
    running, spawn, unregister,
};
pub use remote::{Answer, Remote};
pub use socket::Socket;
pub use task::{Task, yield_now};
pub use time::{Elapsed, Interval, Sleep, interval, sleep, timeout};

pub use iocp::{Overlapped, submit, wait, wait_with};

/// The README's examples, as tests.
#[cfg(all(doctest, windows))]
#[doc = include_str!("../README.md")]
struct Readme;
