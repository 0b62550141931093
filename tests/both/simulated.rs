//! The model, without faults: what can end at once does so.

use std::time::Duration;

use ioqueue::iocp::{OVERLAPPED, Outcome};
use ioqueue::sim::{Faults, Kind, Sim, SimHandle, Traits};
use ioqueue::{AsAnyHandle, Queue, RawHandle};

use crate::system::System;

pub struct Simulated(Sim);

impl System for Simulated {
    type Handle = SimHandle;

    fn start() -> Self {
        let mut faults = Faults::none();
        faults.at_once = 1.0;
        Self(Sim::with_faults(0, faults))
    }

    fn queue(&self) -> Queue {
        self.0.queue().unwrap()
    }

    fn pipe(&self) -> (SimHandle, SimHandle) {
        self.0.pipe()
    }

    fn message_pipe(&self) -> (SimHandle, SimHandle) {
        self.0.pair(Kind::MessagePipe)
    }

    fn connection(&self) -> (SimHandle, SimHandle) {
        self.0.socket()
    }

    fn file(&self, contents: &[u8]) -> SimHandle {
        self.0.file(contents)
    }

    fn synchronous_file(&self) -> SimHandle {
        let mut traits = Traits::default();
        traits.synchronous = true;
        self.0.open(Kind::File, traits)
    }

    fn event(&self) -> SimHandle {
        self.0.open(Kind::Event, Traits::default())
    }

    fn duplicate(&self, handle: &SimHandle) -> SimHandle {
        handle.duplicate()
    }

    fn close(&self, handle: &mut SimHandle) {
        handle.close();
    }

    fn reset(&self, end: SimHandle, other: &impl AsAnyHandle) {
        self.0.hang_up(other, true);
        drop(end);
    }

    fn bind_elsewhere(&self, handle: &SimHandle) {
        self.0.bind_elsewhere(handle);
    }

    unsafe fn read_file(
        &self,
        handle: RawHandle,
        buffer: *mut u8,
        length: usize,
        overlapped: *mut OVERLAPPED,
    ) -> Outcome {
        unsafe { self.0.read_file(handle, buffer, length, overlapped) }
    }

    unsafe fn write_file(
        &self,
        handle: RawHandle,
        buffer: *const u8,
        length: usize,
        overlapped: *mut OVERLAPPED,
    ) -> Outcome {
        unsafe { self.0.write_file(handle, buffer, length, overlapped) }
    }

    fn cancel(&self, handle: RawHandle, overlapped: *mut OVERLAPPED) -> Option<i32> {
        let cancelled = self.0.cancel_io(handle, overlapped);
        cancelled.err().map(|error| error.raw_os_error().unwrap())
    }

    fn post(&self, queue: &Queue, key: usize, overlapped: usize, bytes: u32) {
        self.0.post(queue, key, overlapped, bytes);
    }

    fn packets(&self, queue: &Queue) -> usize {
        self.0.queued(queue)
    }

    fn now(&self) -> Duration {
        self.0.now()
    }

    fn check(&self) {
        self.0.check();
    }
}
