//! What the scripted tests on the simulated Windows share.

#![allow(dead_code)]

use std::rc::Rc;
use std::time::Duration;

use ioqueue::iocp::{OVERLAPPED, Outcome};
use ioqueue::sim::{Kind, Sim, SimHandle, Traits};
use ioqueue::{Queue, RawHandle};

pub const SECOND: Duration = Duration::from_secs(1);
pub const MILLISECOND: Duration = Duration::from_millis(1);

/// A simulation without faults, and a queue on it.
pub fn quiet() -> (Sim, Queue) {
    let sim = Sim::quiet();
    let queue = sim.queue().unwrap();
    (sim, queue)
}

/// A handle of a kind, special in some way.
pub fn open(sim: &Sim, kind: Kind, change: impl FnOnce(&mut Traits)) -> SimHandle {
    let mut traits = Traits::default();
    change(&mut traits);
    sim.open(kind, traits)
}

/// Calls `device_control` with the state as its buffer.
pub fn control(sim: &Sim) -> impl Fn(RawHandle, *mut Vec<u8>, *mut OVERLAPPED) -> Outcome + use<> {
    let sim = sim.clone();
    move |handle, buffer, overlapped| unsafe {
        let buffer = &mut *buffer;
        sim.device_control(handle, buffer.as_mut_ptr(), buffer.len(), overlapped)
    }
}

/// A state that tells when it is dropped.
#[derive(Clone)]
pub struct Marker(Rc<()>);

impl Marker {
    pub fn new() -> Self {
        Self(Rc::new(()))
    }

    /// How many copies there are beside this one.
    pub fn copies(&self) -> usize {
        Rc::strong_count(&self.0) - 1
    }
}

/// Polls without waiting and says how many continuations came.
pub fn poll(queue: &Queue) -> usize {
    let mut ready = Vec::new();
    queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
    let count = ready.len();
    ready.into_iter().for_each(|continuation| drop(continuation.resume().map(Box::new)));
    count
}
