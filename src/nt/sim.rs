//! A simulated Windows: ports, handles, operations, faults and a clock, from one seed.
//!
//! It stands in for the real calls behind [`Nt`], so the completion-port logic that ships runs on
//! it unchanged, on any system. What it does is drawn from a seed, at given rates, or scripted; the
//! same seed and the same calls give the same run. It owns the memory of operations in flight as a
//! kernel does: it scribbles there, and fails the test when somebody else touches it.
//!
//! `world.rs` has the rules; `memory.rs` what the kernel may write to; `disk.rs` what is in a file;
//! `plan.rs` what can be chosen; `calls.rs` the calls that start operations, and the handles.

mod calls;
#[forbid(unsafe_code)]
mod disk;
mod memory;
#[forbid(unsafe_code)]
mod plan;
#[forbid(unsafe_code)]
mod random;
#[forbid(unsafe_code)]
mod world;

use std::io;
use std::ptr::without_provenance_mut;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use windows_sys::Win32::Foundation::{ERROR_ABANDONED_WAIT_0, WAIT_TIMEOUT};
use windows_sys::Win32::System::IO::{OVERLAPPED, OVERLAPPED_ENTRY};

pub(crate) use self::calls::EXPLORING;
pub use self::calls::{Sim, SimHandle};
pub use self::plan::{End, Faults, Kind, OnCancel, Plan, StatusWord, Traits};
use self::world::{Look, PortId, World};
use super::{Nt, NtStatusCode, SocketProtocol, Win32Error};
use crate::handle::RawHandle;
use crate::iocp::Outcome;
use crate::kernel::call::Call;

/// The simulated system, shared by everything in it.
pub(crate) struct Machine {
    world: Mutex<World>,
    /// Something happened on another thread.
    changed: Condvar,
}

impl Machine {
    fn new(world: World) -> Arc<Self> {
        Arc::new(Self { world: Mutex::new(world), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One call of the program: the kernel may do something of its own first.
    fn enter<R>(&self, act: impl FnOnce(&mut World) -> R) -> R {
        let mut world = self.lock();
        let failed_before = world.failure.is_some();
        if !failed_before {
            world.tick();
        }
        let answer = act(&mut world);
        self.raise(world, failed_before);
        self.changed.notify_all();
        answer
    }

    /// As [`enter`](Self::enter), for questions.
    fn ask<R>(&self, act: impl FnOnce(&mut World) -> R) -> R {
        let mut world = self.lock();
        let failed_before = world.failure.is_some();
        let answer = act(&mut world);
        self.raise(world, failed_before);
        self.changed.notify_all();
        answer
    }

    /// Panics when the simulation has just failed.
    fn raise(&self, world: MutexGuard<'_, World>, failed_before: bool) {
        if failed_before || thread::panicking() {
            return;
        }
        if let Some(failure) = world.failure.clone() {
            drop(world);
            panic!("{failure}");
        }
    }
}

/// The system, as a queue's completion port sees it.
pub(crate) struct Simulated(Arc<Machine>);

impl Simulated {
    /// A system of its own, without faults.
    pub(crate) fn quiet() -> Self {
        Self(Machine::new(World::new(0, Faults::none())))
    }
}

impl Drop for Simulated {
    /// The queue goes, and leaks now what the kernel has. Its port may stay: tasks and notifiers have
    /// that too.
    fn drop(&mut self) {
        self.0.lock().keep_leaks();
    }
}

/// A simulated completion port.
pub(crate) struct Port {
    machine: Arc<Machine>,
    id: PortId,
}

impl Port {
    pub(crate) fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.machine.lock().close_port(self.id);
    }
}

impl Nt for Simulated {
    type Port = Port;

    fn create_port(&self) -> io::Result<Port> {
        let id = self.0.enter(World::create_port);
        Ok(Port { machine: Arc::clone(&self.0), id })
    }

    fn associate(&self, port: &Port, handle: RawHandle, key: usize) -> Result<(), Win32Error> {
        self.0.enter(|world| world.associate(port.id, handle.addr(), key))
    }

    fn dissociate(&self, handle: RawHandle) -> bool {
        self.0.enter(|world| world.dissociate(handle.addr()))
    }

    fn set_notification_modes(&self, handle: RawHandle, modes: u8) -> bool {
        self.0.enter(|world| world.set_modes(handle.addr(), modes))
    }

    fn notification_modes(&self, handle: RawHandle) -> Result<u32, NtStatusCode> {
        self.0.enter(|world| world.modes(handle.addr()))
    }

    fn file_mode(&self, handle: RawHandle) -> Result<u32, NtStatusCode> {
        self.0.enter(|world| world.file_mode(handle.addr()))
    }

    fn file_type(&self, handle: RawHandle) -> u32 {
        self.0.enter(|world| world.file_type(handle.addr()))
    }

    fn socket_protocol(&self, socket: RawHandle) -> Option<SocketProtocol> {
        self.0.enter(|world| world.socket_protocol(socket.addr()))
    }

    fn listens(&self, socket: RawHandle) -> bool {
        self.0.enter(|world| world.listens(socket.addr()))
    }

    fn cancel(&self, handle: RawHandle, overlapped: *mut OVERLAPPED) -> Result<(), Win32Error> {
        self.0.enter(|world| {
            world.verify();
            world.cancel(handle.addr(), overlapped.addr())
        })
    }

    unsafe fn start(
        &self,
        handle: RawHandle,
        call: Call,
        overlapped: *mut OVERLAPPED,
        _: *mut u32,
    ) -> Outcome {
        // SAFETY: passed on.
        unsafe { calls::start_portable(&self.0, handle, call, overlapped) }
    }

    fn dequeue(
        &self,
        port: &Port,
        entries: &mut [OVERLAPPED_ENTRY],
        timeout_ms: u32,
    ) -> Result<usize, Win32Error> {
        let until =
            self.0.enter(|world| (timeout_ms != u32::MAX).then(|| world.end_of_wait(timeout_ms)));
        let mut world = self.0.lock();
        let failed_before = world.failure.is_some();
        let room = entries.len();
        let look = loop {
            let look = world.look(port.id, until, room, |index, packet| {
                entries[index] = OVERLAPPED_ENTRY {
                    lpCompletionKey: packet.key,
                    lpOverlapped: without_provenance_mut(packet.address),
                    Internal: packet.internal,
                    dwNumberOfBytesTransferred: packet.bytes,
                };
            });
            if !matches!(look, Look::Stuck) {
                break look;
            }
            // Only another thread can help.
            let patience = world.patience;
            let (back, waited) = self
                .0
                .changed
                .wait_timeout(world, patience)
                .unwrap_or_else(PoisonError::into_inner);
            world = back;
            if waited.timed_out() {
                let what = world.describe_waiting();
                world.fail(&what);
            }
        };
        self.0.raise(world, failed_before);
        // What has happened meanwhile may be what others wait for.
        self.0.changed.notify_all();
        match look {
            Look::Packets(count) => Ok(count),
            Look::TimedOut | Look::Stuck => Err(WAIT_TIMEOUT),
            Look::Over => Err(ERROR_ABANDONED_WAIT_0),
        }
    }

    fn post(port: &Port, key: usize) -> Result<(), Win32Error> {
        let posted = port.machine.lock().post(port.id, key);
        port.machine.changed.notify_all();
        posted
    }

    fn now(&self) -> Duration {
        self.0.enter(|world| world.clock)
    }
}
