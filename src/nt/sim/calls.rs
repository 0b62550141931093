//! The simulation as a test holds it: handles, the calls that start operations, scripts, the clock.

use std::cell::Cell;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{io, thread};

use windows_sys::Win32::Foundation::ERROR_INVALID_PARAMETER;
use windows_sys::Win32::Networking::WinSock::WSAEAFNOSUPPORT;
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::Win32::System::WindowsProgramming::FILE_SKIP_COMPLETION_PORT_ON_SUCCESS;

use super::memory::{AddressPlace, Block, Header, Part, Range};
use super::plan::{End, Faults, Kind, Plan, Traits};
use super::world::{Answer, Call, World};
use super::{Machine, Simulated};
use crate::Queue;
use crate::error::NtStatus;
use crate::handle::{AnyHandle, AsAnyHandle, HandleId, HandleKind, RawHandle};
use crate::iocp::{Outcome, Wait};
#[cfg(unix)]
use crate::kernel::call::Refusal;
use crate::kernel::iocp::CompletionPort;
use crate::kernel::{self, Kernel};
use crate::op::{Accepted, Datagram, IoPart, part_of};

thread_local! {
    /// Somebody tries one seed after the other, and says which failed.
    pub(crate) static EXPLORING: Cell<bool> = const { Cell::new(false) };
}

/// A simulated Windows: handles, completion ports, operations in flight, a clock.
///
/// Clones are the same simulation. `Send` and `Sync`, but only a simulation that is used by one
/// thread repeats itself exactly. Dropping it while the thread panics prints the seed. A queue of
/// it, and its handles, keep it alive. See [`ioqueue::sim`](crate::sim) for what it is for.
#[derive(Clone)]
pub struct Sim {
    machine: Arc<Machine>,
    told: Arc<AtomicBool>,
}

impl Sim {
    /// A simulation that draws everything from `seed`, with the usual faults
    /// ([`Faults::default`]).
    pub fn new(seed: u64) -> Self {
        Self::with_faults(seed, Faults::default())
    }

    /// A simulation without faults, for scripts: each operation pends, and ends in full the next
    /// time the kernel is asked, unless a [`plan`](Self::plan) says otherwise.
    pub fn quiet() -> Self {
        Self::with_faults(0, Faults::none())
    }

    /// A simulation with faults at these rates.
    pub fn with_faults(seed: u64, faults: Faults) -> Self {
        Self {
            machine: Machine::new(World::new(seed, faults)),
            told: Arc::new(AtomicBool::new(false)),
        }
    }

    /// The seed, to repeat this run.
    pub fn seed(&self) -> u64 {
        self.machine.ask(|world| world.seed())
    }

    /// Changes the rates from here on.
    pub fn set_faults(&self, faults: Faults) {
        self.machine.ask(|world| world.faults = faults);
    }

    /// A queue on this simulation, of the calling thread.
    ///
    /// # Errors
    /// As [`Queue::new`]; a simulated system always has another port.
    pub fn queue(&self) -> io::Result<Queue> {
        let port = CompletionPort::new(Simulated(Arc::clone(&self.machine)))?;
        Ok(Queue::on_kernel(Kernel::Sim(port)))
    }

    // -- handles -----------------------------------------------------------------------------

    /// Opens a handle.
    pub fn open(&self, kind: Kind, traits: Traits) -> SimHandle {
        self.open_with(kind, traits, Vec::new())
    }

    fn open_with(&self, kind: Kind, traits: Traits, contents: Vec<u8>) -> SimHandle {
        let value = self.machine.ask(|world| world.open(kind, traits, contents));
        SimHandle::new(&self.machine, value, kind)
    }

    /// A file on disk with these contents.
    pub fn file(&self, contents: impl Into<Vec<u8>>) -> SimHandle {
        self.open_with(Kind::File, Traits::default(), contents.into())
    }

    /// Both ends of a connection: what is written to one is read from the other.
    pub fn pair(&self, kind: Kind) -> (SimHandle, SimHandle) {
        let (one, other) = (self.open(kind, Traits::default()), self.open(kind, Traits::default()));
        self.machine.ask(|world| world.connect(one.value, other.value));
        (one, other)
    }

    /// Both ends of a pipe of bytes.
    pub fn pipe(&self) -> (SimHandle, SimHandle) {
        self.pair(Kind::Pipe)
    }

    /// Both ends of a connected stream socket.
    pub fn socket(&self) -> (SimHandle, SimHandle) {
        self.pair(Kind::Socket)
    }

    /// A stream socket that is not connected, for [`connect`](crate::Registered::connect).
    pub fn unconnected(&self) -> SimHandle {
        let value = self.machine.ask(World::open_unconnected);
        SimHandle::new(&self.machine, value, Kind::Socket)
    }

    /// A stream socket that listens in the simulated network, and where.
    pub fn listener(&self) -> (SimHandle, SocketAddr) {
        let (value, address) = self.machine.ask(World::open_listener);
        (SimHandle::new(&self.machine, value, Kind::Socket), address)
    }

    /// A socket for datagrams in the simulated network, and where it is.
    pub fn datagrams(&self) -> (SimHandle, SocketAddr) {
        let (value, address) = self.machine.ask(World::open_datagrams);
        (SimHandle::new(&self.machine, value, Kind::Datagram), address)
    }

    /// As [`datagrams`](Self::datagrams), at an address that was left.
    ///
    /// # Panics
    /// When somebody has it.
    pub fn datagrams_at(&self, address: SocketAddr) -> SimHandle {
        let value = self.machine.ask(|world| world.open_datagrams_at(address));
        SimHandle::new(&self.machine, value.expect("an address that nobody has"), Kind::Datagram)
    }

    /// Makes closing a connection's socket a reset instead of an end (`SO_LINGER` of no time).
    pub fn reset_when_closed(&self, socket: &(impl AsAnyHandle + ?Sized)) {
        let value = value(socket);
        self.machine.ask(|world| world.reset_when_closed(value));
    }

    /// Opens a file once more: another file object, with modes, a port and a position of its own.
    ///
    /// # Panics
    /// When `file` is not open.
    pub fn reopen(&self, file: &SimHandle) -> SimHandle {
        let value = self.machine.ask(|world| world.reopen(file.value)).expect("an open file");
        SimHandle::new(&self.machine, value, file.kind)
    }

    /// A device, for operations of any kind.
    pub fn device(&self) -> SimHandle {
        self.open(Kind::Device, Traits::default())
    }

    // -- operations --------------------------------------------------------------------------

    /// Starts to read as `ReadFile` does.
    ///
    /// # Safety
    /// `buffer` is `length` bytes, `overlapped` an OVERLAPPED, and both are the kernel's until the
    /// operation has ended, as [`submit`](crate::submit) makes sure of for what it is given. What
    /// the outcome says is told to the queue that gave the OVERLAPPED.
    pub unsafe fn read_file(
        &self,
        handle: RawHandle,
        buffer: *mut u8,
        length: usize,
        overlapped: *mut OVERLAPPED,
    ) -> Outcome {
        // SAFETY: passed on.
        unsafe { start(&self.machine, Call::Read, handle, buffer, length, overlapped) }
    }

    /// Starts to write as `WriteFile` does.
    ///
    /// # Safety
    /// As [`read_file`](Self::read_file); the buffer is only read.
    pub unsafe fn write_file(
        &self,
        handle: RawHandle,
        buffer: *const u8,
        length: usize,
        overlapped: *mut OVERLAPPED,
    ) -> Outcome {
        // SAFETY: passed on; a write's buffer is never written to.
        unsafe { start(&self.machine, Call::Write, handle, buffer.cast_mut(), length, overlapped) }
    }

    /// Starts anything else, as `DeviceIoControl` does, with a buffer for its answer.
    ///
    /// # Safety
    /// As [`read_file`](Self::read_file).
    pub unsafe fn device_control(
        &self,
        handle: RawHandle,
        buffer: *mut u8,
        length: usize,
        overlapped: *mut OVERLAPPED,
    ) -> Outcome {
        // SAFETY: passed on.
        unsafe { start(&self.machine, Call::Control, handle, buffer, length, overlapped) }
    }

    /// Asks for an operation to be cancelled, as `CancelIoEx` does; without an OVERLAPPED, all that are
    /// in flight on `handle`. For programs that make that call themselves. The address is only compared.
    ///
    /// # Errors
    /// `ERROR_NOT_FOUND` where nothing is in flight there, `ERROR_INVALID_HANDLE` for a closed handle.
    pub fn cancel_io(&self, handle: RawHandle, overlapped: *const OVERLAPPED) -> io::Result<()> {
        let cancelled = self.machine.enter(|world| world.cancel(handle.addr(), overlapped.addr()));
        cancelled.map_err(|code| io::Error::from_raw_os_error(code as i32))
    }

    /// Reads at an offset of a handle that is registered with `queue`: a `ReadFile` submitted.
    #[track_caller]
    pub fn read(
        &self,
        queue: &Queue,
        handle: &(impl AsAnyHandle + ?Sized),
        offset: u64,
        buffer: Vec<u8>,
    ) -> Wait<Vec<u8>> {
        // SAFETY: one call, with what was given, and what it returned; the bytes are the state's.
        unsafe {
            queue.submit_at(handle, offset, buffer, |handle, buffer, overlapped| {
                let buffer = &mut *buffer;
                self.read_file(handle, buffer.as_mut_ptr(), buffer.len(), overlapped)
            })
        }
    }

    /// Writes at an offset of a handle that is registered with `queue`: a `WriteFile` submitted.
    #[track_caller]
    pub fn write(
        &self,
        queue: &Queue,
        handle: &(impl AsAnyHandle + ?Sized),
        offset: u64,
        bytes: Vec<u8>,
    ) -> Wait<Vec<u8>> {
        // SAFETY: as in `read`.
        unsafe {
            queue.submit_at(handle, offset, bytes, |handle, bytes, overlapped| {
                let bytes = &*bytes;
                self.write_file(handle, bytes.as_ptr(), bytes.len(), overlapped)
            })
        }
    }

    /// Asks a device that is registered with `queue` for something: a `DeviceIoControl` submitted.
    #[track_caller]
    pub fn control(
        &self,
        queue: &Queue,
        handle: &(impl AsAnyHandle + ?Sized),
        answer: Vec<u8>,
    ) -> Wait<Vec<u8>> {
        // SAFETY: as in `read`.
        unsafe {
            queue.submit_at(handle, 0, answer, |handle, answer, overlapped| {
                let answer = &mut *answer;
                self.device_control(handle, answer.as_mut_ptr(), answer.len(), overlapped)
            })
        }
    }

    // -- scripts -----------------------------------------------------------------------------

    /// Says how the next operation on `handle` goes; several are taken one after the other.
    pub fn plan(&self, handle: &(impl AsAnyHandle + ?Sized), plan: Plan) {
        let value = value(handle);
        self.machine.ask(|world| world.plan(value, plan));
    }

    /// Ends the oldest operation in flight on `handle`. False where there is none.
    pub fn complete(&self, handle: &(impl AsAnyHandle + ?Sized), end: End) -> bool {
        let value = value(handle);
        self.machine.ask(|world| world.complete(value, end))
    }

    /// Gives a stream something to read, as if its other side had sent it: one message.
    pub fn feed(&self, handle: &(impl AsAnyHandle + ?Sized), data: impl Into<Vec<u8>>) {
        let value = value(handle);
        self.machine.ask(|world| world.feed(value, data.into()));
    }

    /// The other side of a stream goes away: an end of file, or a reset.
    pub fn hang_up(&self, handle: &(impl AsAnyHandle + ?Sized), reset: bool) {
        let value = value(handle);
        self.machine.ask(|world| world.hang_up(value, reset));
    }

    /// What is in a file now.
    ///
    /// # Panics
    /// When that is more than a GiB.
    pub fn contents(&self, handle: &(impl AsAnyHandle + ?Sized)) -> Vec<u8> {
        let value = value(handle);
        self.machine.ask(|world| world.contents(value))
    }

    /// Takes what was written to a stream that has no simulated other side.
    pub fn written(&self, handle: &(impl AsAnyHandle + ?Sized)) -> Vec<u8> {
        let value = value(handle);
        self.machine.ask(|world| world.outgoing(value))
    }

    /// Binds a handle to a completion port that is not a queue's.
    pub fn bind_elsewhere(&self, handle: &(impl AsAnyHandle + ?Sized)) {
        let value = value(handle);
        self.machine.ask(|world| world.bind_elsewhere(value));
    }

    /// Makes a handle skip packets on success, as other code of the program could.
    pub fn skip_elsewhere(&self, handle: &(impl AsAnyHandle + ?Sized)) {
        let value = value(handle);
        let modes = FILE_SKIP_COMPLETION_PORT_ON_SUCCESS;
        self.machine.ask(|world| world.set_modes_elsewhere(value, modes));
    }

    /// Queues a packet on the port of `queue`, as `PostQueuedCompletionStatus` does, also on a full
    /// one.
    ///
    /// # Panics
    /// When the queue is not this simulation's.
    pub fn post(&self, queue: &Queue, key: usize, overlapped: usize, bytes: u32) {
        let port = self.port_of(queue);
        self.machine.ask(|world| {
            world.foreign += 1;
            world.post_packet(port, key, overlapped, bytes);
        });
    }

    /// Queues a packet on the port of `queue` that is not the queue's: a null OVERLAPPED, a job's
    /// message, a random, stale or forged address, as the seed says.
    ///
    /// # Panics
    /// When the queue is not this simulation's.
    pub fn post_foreign(&self, queue: &Queue) {
        let port = self.port_of(queue);
        self.machine.ask(|world| world.post_foreign(port));
    }

    fn port_of(&self, queue: &Queue) -> usize {
        match queue.kernel() {
            Kernel::Sim(port) if Arc::ptr_eq(port.port().machine(), &self.machine) => {
                port.port().id
            }
            _ => panic!("the queue is not one of this simulation"),
        }
    }

    // -- time --------------------------------------------------------------------------------

    /// What the clock says.
    pub fn now(&self) -> Duration {
        self.machine.ask(|world| world.clock)
    }

    /// Lets time pass. Otherwise the clock moves only when a queue waits.
    pub fn advance(&self, time: Duration) {
        self.machine.ask(|world| {
            world.intervene();
            let to = world.clock.saturating_add(time);
            world.advance(to);
        });
    }

    /// How long a queue that waits for ever, with nothing in flight that could end, waits in real
    /// time for another thread to wake it, before that counts as a deadlock. Not at all by default.
    pub fn expect_other_threads(&self, patience: Duration) {
        self.machine.ask(|world| world.patience = patience);
    }

    // -- looking -----------------------------------------------------------------------------

    /// How many operations' memory is the kernel's.
    pub fn owned(&self) -> usize {
        self.machine.ask(|world| world.owned())
    }

    /// Whether the kernel may write to any byte of this memory.
    pub fn owns(&self, start: *const u8, length: usize) -> bool {
        self.machine.ask(|world| world.owns(start.addr(), length))
    }

    /// How many operations are in flight on `handle`.
    pub fn in_flight(&self, handle: &(impl AsAnyHandle + ?Sized)) -> usize {
        let value = value(handle);
        self.machine.ask(|world| world.in_flight_on(value))
    }

    /// How many calls have tried to start an operation. Each such call has a number, from 0.
    pub fn started(&self) -> u64 {
        self.machine.ask(|world| world.started())
    }

    /// How the operation with this number ended: its status and bytes. `None` for one that has not,
    /// or that was never started.
    pub fn ending(&self, operation: u64) -> Option<(NtStatus, u32)> {
        let ending = self.machine.ask(|world| world.ending(operation))?;
        Some((NtStatus(ending.status), ending.bytes))
    }

    /// Whether the memory of the operation with this number is the kernel's.
    pub fn has(&self, operation: u64) -> bool {
        self.machine.ask(|world| world.has(operation))
    }

    /// How many packets are queued on the port of `queue`.
    ///
    /// # Panics
    /// When the queue is not this simulation's.
    pub fn queued(&self, queue: &Queue) -> usize {
        let port = self.port_of(queue);
        self.machine.ask(|world| world.queued(port))
    }

    /// How many foreign packets were posted.
    pub fn foreign_packets(&self) -> u64 {
        self.machine.ask(|world| world.foreign)
    }

    /// Whether the packet of an earlier operation at this address is still to come, under the key
    /// that `handle` is bound with now: it could be taken for a new operation's.
    pub fn owes_packet(&self, handle: RawHandle, overlapped: *const OVERLAPPED) -> bool {
        self.machine.ask(|world| world.owes_packet(handle.addr(), overlapped.addr()))
    }

    /// How many handles are open.
    pub fn open_handles(&self) -> usize {
        self.machine.ask(|world| world.open_handles())
    }

    /// Looks whether the memory that the kernel has is as the kernel left it, which it also does
    /// at many other times.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn check_memory(&self) {
        self.machine.ask(World::verify);
    }

    /// The kernel has given everything back.
    ///
    /// # Panics
    /// When it has not, when memory that it has was touched, or when the simulation has failed
    /// before.
    #[track_caller]
    pub fn check(&self) {
        self.check_leaked(0);
    }

    /// The kernel has given everything back but the memory of that many operations: what
    /// [`Undrained`](crate::error::Undrained) said.
    ///
    /// # Panics
    /// As [`check`](Self::check).
    #[track_caller]
    pub fn check_leaked(&self, operations: usize) {
        let failure = {
            let mut world = self.machine.lock();
            world.verify();
            let owned = world.owned();
            if owned != operations {
                let what = world.describe_owned();
                world.fail(&format!(
                    "the kernel has the memory of {owned} operation(s), not of {operations}:{what}"
                ));
            }
            world.failure.clone()
        };
        if let Some(failure) = failure {
            self.told.store(true, Ordering::Relaxed);
            panic!("{failure}");
        }
    }
}

fn value(handle: &(impl AsAnyHandle + ?Sized)) -> usize {
    handle.as_any_handle().raw().addr()
}

impl Drop for Sim {
    fn drop(&mut self) {
        if thread::panicking()
            && !EXPLORING.try_with(Cell::get).unwrap_or(true)
            && !self.told.swap(true, Ordering::Relaxed)
        {
            let seed = self.machine.lock().seed();
            eprintln!("the simulation's seed was {seed}");
        }
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let world = self.machine.lock();
        f.debug_struct("Sim")
            .field("seed", &world.seed())
            .field("now", &world.clock)
            .field("owned", &world.owned())
            .finish_non_exhaustive()
    }
}

/// A handle of a simulation. Dropping it closes it, as `CloseHandle` does.
pub struct SimHandle {
    machine: Arc<Machine>,
    value: usize,
    kind: Kind,
    open: bool,
}

impl SimHandle {
    fn new(machine: &Arc<Machine>, value: usize, kind: Kind) -> Self {
        Self { machine: Arc::clone(machine), value, kind, open: true }
    }

    /// Another handle of the same file object, as `DuplicateHandle` makes it.
    ///
    /// # Panics
    /// When the handle was closed by its value.
    pub fn duplicate(&self) -> Self {
        let value = self.machine.ask(|world| world.duplicate(self.value)).expect("an open handle");
        Self::new(&self.machine, value, self.kind)
    }

    /// The handle's value.
    pub fn id(&self) -> HandleId {
        HandleId::new(self.raw())
    }

    /// Where a socket is in the simulated network, if it is bound.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.machine.ask(|world| world.addresses(self.value)).0
    }

    /// Who is at the other side of a socket that is connected in the simulated network.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.machine.ask(|world| world.addresses(self.value)).1
    }

    fn raw(&self) -> RawHandle {
        std::ptr::without_provenance_mut(self.value)
    }

    /// Closes the handle now. What is left is its value, which somebody else gets as soon as it is
    /// given out again: for tests of programs that close too early.
    pub fn close(&mut self) {
        self.close_value();
    }

    fn close_value(&mut self) {
        if std::mem::take(&mut self.open) {
            self.machine.ask(|world| world.close(self.value));
        }
    }
}

impl Drop for SimHandle {
    fn drop(&mut self) {
        self.close_value();
    }
}

impl fmt::Debug for SimHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimHandle")
            .field("id", &self.id())
            .field("kind", &self.kind)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl AsAnyHandle for SimHandle {
    fn as_any_handle(&self) -> AnyHandle<'_> {
        let kind = if self.kind.is_socket() { HandleKind::Socket } else { HandleKind::Handle };
        AnyHandle::new(self.raw(), kind)
    }
}

/// Starts an operation with one buffer.
///
/// # Safety
/// As [`Sim::read_file`].
unsafe fn start(
    machine: &Machine,
    call: Call,
    handle: RawHandle,
    buffer: *mut u8,
    length: usize,
    overlapped: *mut OVERLAPPED,
) -> Outcome {
    // SAFETY: passed on.
    unsafe { start_with(machine, call, handle, vec![(buffer, length)], None, overlapped) }
}

/// Starts an operation.
///
/// # Safety
/// As [`Sim::read_file`], for each part, and for those of the address.
unsafe fn start_with(
    machine: &Machine,
    call: Call,
    handle: RawHandle,
    parts: Vec<Part>,
    address: Option<AddressPlace>,
    overlapped: *mut OVERLAPPED,
) -> Outcome {
    if overlapped.is_null() {
        // `ReadFile`: with FILE_FLAG_OVERLAPPED, lpOverlapped must point to an OVERLAPPED.
        return Outcome::from_error(ERROR_INVALID_PARAMETER);
    }
    let writes = !call.writes();
    machine.enter(|world| {
        let all = parts.iter().chain(address.iter().flatten());
        let ranges: Vec<Range> = all.map(|&part| Range::of(part)).collect();
        world.look_for_reuse(overlapped.addr(), &ranges, writes);
    });
    // SAFETY: the caller's promise, which holds until the operation has ended; that is when both are
    // dropped, or (where it never ends) the memory is never given back.
    let (header, block) =
        unsafe { (Header::take(overlapped), Block::take(parts, address, writes)) };
    match machine.enter(|world| world.start(call, handle.addr(), header, block)) {
        Answer::Finished => Outcome::FINISHED,
        Answer::Pending => Outcome::PENDING,
        Answer::Failed(code) => Outcome::from_error(code),
    }
}

/// Starts a portable operation, as its handle takes it.
///
/// # Safety
/// As [`Sim::read_file`], for what `call` points to.
pub(super) unsafe fn start_portable(
    machine: &Arc<Machine>,
    handle: RawHandle,
    call: kernel::call::Call,
    overlapped: *mut OVERLAPPED,
) -> Outcome {
    use kernel::call::Call as Portable;
    let mut address = None;
    let (call, parts) = match call {
        Portable::Read { at, length }
        | Portable::ReadAt { at, length, .. }
        | Portable::Receive { at, length } => (Call::Read, vec![(at, length)]),
        Portable::Write { at, length }
        | Portable::WriteAt { at, length, .. }
        | Portable::Send { at, length } => (Call::Write, vec![(at.cast_mut(), length)]),
        // SAFETY: so many of them are valid.
        Portable::ReadVectored { parts, count, .. } => unsafe { (Call::Read, list(parts, count)) },
        // SAFETY: as above.
        Portable::WriteVectored { parts, count, .. } => unsafe {
            (Call::Write, list(parts, count))
        },
        Portable::Shutdown { how } => {
            return match machine.enter(|world| world.shut_down(handle.addr(), how)) {
                Ok(()) => Outcome::FINISHED_SILENTLY,
                Err(code) => Outcome::from_error(code),
            };
        }
        // What was written is on the disk.
        Portable::Sync { .. } => return Outcome::FINISHED_SILENTLY,
        Portable::ReceiveFrom { datagram } => {
            // SAFETY: valid, and the operation's until its end.
            let (part, place) = unsafe { Datagram::places(datagram) };
            address = Some(place);
            (Call::Read, vec![part])
        }
        Portable::SendTo { datagram } => {
            // SAFETY: as above; it is not written to.
            let (part, to) = unsafe { (Datagram::places(datagram).0, Datagram::to(datagram)) };
            match to {
                Some(to) => (Call::SendTo(to), vec![part]),
                None => return Outcome::from_error(WSAEAFNOSUPPORT as u32),
            }
        }
        Portable::Accept { accepted } => {
            let socket =
                SimHandle::new(machine, machine.ask(World::open_unconnected), Kind::Socket);
            let call = Call::Accept { socket: socket.value };
            // SAFETY: as above.
            address = Some(unsafe { Accepted::places(accepted, socket.into()) });
            (call, Vec::new())
        }
        Portable::Connect { peer } => {
            // SAFETY: valid, and nobody writes to it.
            let Some(to) = (unsafe { (*peer).ip() }) else {
                return Outcome::from_error(WSAEAFNOSUPPORT as u32);
            };
            let protocol = machine.ask(|world| world.socket_protocol(handle.addr()));
            if protocol.is_some_and(|protocol| protocol.datagrams) {
                return match machine.enter(|world| world.connect_datagrams(handle.addr(), to)) {
                    Ok(()) => Outcome::FINISHED_SILENTLY,
                    Err(code) => Outcome::from_error(code),
                };
            }
            (Call::Connect(to), Vec::new())
        }
        Portable::Ready { event, .. } => (Call::Poll(event), Vec::new()),
        Portable::Close { .. } => unreachable!("a close is no call on a registered handle"),
        #[cfg(unix)]
        Portable::Overlapped => return Outcome::refused(Refusal::NoOverlapped),
    };
    // SAFETY: passed on.
    unsafe { start_with(machine, call, handle, parts, address, overlapped) }
}

/// # Safety
/// `parts` are `count` of them, valid.
unsafe fn list(parts: *const IoPart, count: usize) -> Vec<Part> {
    // SAFETY: passed on.
    (0..count).map(|index| part_of(unsafe { &*parts.add(index) })).collect()
}
