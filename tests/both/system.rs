//! What the scripts need of a system.

use std::time::Duration;

use ioqueue::iocp::{OVERLAPPED, Outcome};
use ioqueue::{AsAnyHandle, Queue, RawHandle};

/// One Windows: this one, or the model.
pub trait System: Sized {
    /// Closed when it is dropped.
    type Handle: AsAnyHandle + 'static;

    fn start() -> Self;
    fn queue(&self) -> Queue;

    /// Both ends of a pipe of bytes.
    fn pipe(&self) -> (Self::Handle, Self::Handle);
    /// Both ends of a pipe of messages.
    fn message_pipe(&self) -> (Self::Handle, Self::Handle);
    /// Both ends of a connection.
    fn connection(&self) -> (Self::Handle, Self::Handle);
    /// A file with these contents, which may become sparse.
    fn file(&self, contents: &[u8]) -> Self::Handle;
    /// A file that was opened for synchronous use.
    fn synchronous_file(&self) -> Self::Handle;
    fn event(&self) -> Self::Handle;
    fn duplicate(&self, handle: &Self::Handle) -> Self::Handle;

    /// Closes the handle before its time. Its value stays.
    fn close(&self, handle: &mut Self::Handle);
    /// Closes one end of a connection so that the other end is reset.
    fn reset(&self, end: Self::Handle, other: &impl AsAnyHandle);
    /// Binds the handle to a port that is not a queue's.
    fn bind_elsewhere(&self, handle: &Self::Handle);

    /// `ReadFile`.
    ///
    /// # Safety
    /// The memory is the kernel's until the operation has ended.
    unsafe fn read_file(
        &self,
        handle: RawHandle,
        buffer: *mut u8,
        length: usize,
        overlapped: *mut OVERLAPPED,
    ) -> Outcome;

    /// `WriteFile`.
    ///
    /// # Safety
    /// As `read_file`.
    unsafe fn write_file(
        &self,
        handle: RawHandle,
        buffer: *const u8,
        length: usize,
        overlapped: *mut OVERLAPPED,
    ) -> Outcome;

    /// `CancelIoEx`: what it fails with.
    fn cancel(&self, handle: RawHandle, overlapped: *mut OVERLAPPED) -> Option<i32>;
    /// `PostQueuedCompletionStatus`.
    fn post(&self, queue: &Queue, key: usize, overlapped: usize, bytes: u32);
    /// How many packets are queued on the queue's port.
    fn packets(&self, queue: &Queue) -> usize;

    /// A clock that the queue's waits move.
    fn now(&self) -> Duration;
    /// The kernel has given everything back.
    fn check(&self);
}
