//! An event queue for Windows' overlapped I/O, one per thread: register a handle, start its operation,
//! await it. The handle may be one that no runtime has heard of, and the operation any call that takes
//! an OVERLAPPED.
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
//! # What it does not do
//!
//! - It brings no files, pipes or sockets of its own yet: you make the handle and the call, it waits.
//! - It is no runtime. Its futures work under any executor, as long as somebody polls the queue;
//!   [`run`] and [`block_on`] do that, [`poll`] serves a loop of your own.
//! - It has one kernel so far, Windows' completion ports. Elsewhere [`Queue::new`] says
//!   `Unsupported`, and only a simulated Windows will do.
//! - It was never run on a real Windows, only under Wine 10. `docs/TESTED.md` says what that leaves
//!   open.
//! - It moves nothing between threads: queues, futures and registrations are not `Send`. A
//!   [`Notifier`] wakes a queue from anywhere.
//!
//! # Where each thing is
//!
//! | you want to | look at |
//! |---|---|
//! | register a handle and own it | [`Registered`], [`Queue::register`] |
//! | register a handle that somebody else owns | [`persist`], [`unregister`], [`AsAnyHandle`] |
//! | start an operation and wait, in one | [`submit`], [`Registered::submit`], [`Outcome`](iocp::Outcome) |
//! | make the call yourself, then wait | [`Overlapped`], [`wait`] |
//! | park a continuation of another loop | [`wait_with`], [`Continuation`] |
//! | cancel, and learn how it ended | [`Wait::cancel`](iocp::Wait::cancel), [`Wait::timeout`](iocp::Wait::timeout) |
//! | the raw status, an end of file, more data | [`Wait::exact`](iocp::Wait::exact), [`Completion`](iocp::Completion) |
//! | poll, run, spawn tasks | [`Queue`], [`Task`] |
//! | wake the queue from another thread | [`Notifier`] |
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
    AnyHandle, AsAnyHandle, HandleId, HandleKind, Persist, PersistError, PersistFailure, RawHandle,
    Registered,
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
pub use task::Task;
pub use time::{Elapsed, Interval, Sleep, interval, sleep, timeout};

pub use iocp::{Overlapped, submit, wait, wait_with};

/// The README's examples, as tests.
#[cfg(all(doctest, windows))]
#[doc = include_str!("../README.md")]
struct Readme;
