//! A per-thread event queue that makes any operating-system operation awaitable.

#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(windows), allow(dead_code, unused_variables, unreachable_code))]

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
mod operation;
#[forbid(unsafe_code)]
mod queue;
#[forbid(unsafe_code)]
mod task;
#[forbid(unsafe_code)]
mod time;
#[forbid(unsafe_code)]
mod trace;

pub use continuation::{Continuation, Runnable};
pub use handle::{
    AnyHandle, AsAnyHandle, HandleId, HandleKind, Persist, PersistError, PersistFailure, RawHandle,
    Registered,
};
pub use misuse::Misuse;
pub use notify::Notifier;
pub use queue::{
    ForeignPacket, Pending, PendingState, Queue, block_on, notifier, persist, poll, run, running,
    spawn, unregister,
};
pub use task::Task;
pub use time::{Elapsed, Interval, Sleep, interval, sleep, timeout};

pub use iocp::{Overlapped, submit, wait, wait_with};
