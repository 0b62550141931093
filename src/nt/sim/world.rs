//! The rules: what the simulated Windows does, call by call.
//!
//! Each rule that is not plain from the call's own documentation names its source. "Measured" means
//! under Wine, where Wine is known to do as Windows does.

mod network;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use windows_sys::Wdk::Storage::FileSystem::FILE_SYNCHRONOUS_IO_NONALERT;
use windows_sys::Win32::Foundation as win;
use windows_sys::Win32::Networking::WinSock::{
    WSAEMSGSIZE, WSAENOTCONN, WSAENOTSOCK, WSAESHUTDOWN,
};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_TYPE_CHAR, FILE_TYPE_DISK, FILE_TYPE_PIPE, FILE_TYPE_UNKNOWN,
};
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::Win32::System::WindowsProgramming::FILE_SKIP_COMPLETION_PORT_ON_SUCCESS;

use self::network::Network;
use super::super::{NtStatusCode, SocketProtocol, Win32Error};
use super::disk::{Contents, Full};
use super::memory::{Block, Header, Range};
use super::plan::{End, Faults, Kind, OnCancel, Plan, Start, StatusWord, Traits};
use super::random::Random;
use crate::error::NtStatus;
use crate::op::{self, Shutdown};

/// A number that names one operation of a simulation, in the order they were started.
pub(super) type OperationId = u64;
type ObjectId = usize;
type FileId = usize;
pub(super) type PortId = usize;

/// A wait that ends a clock tick late.
const TICK: Duration = Duration::from_micros(15_625);

/// Where a write takes place that is to make the file longer (`WriteFile`, "Remarks").
const AT_THE_END: u64 = u64::MAX;

/// So many calls in a row to which nothing happened are a loop that will never end.
const STUCK: u32 = 200_000;

/// So are so many in which time passed, but no operation ended unless it was cancelled.
const FRUITLESS: u32 = 1_000_000;

/// A file object: what handles lead to. Duplicates share one.
struct Object {
    kind: Kind,
    traits: Traits,
    ignores_skip: bool,
    denies_queries: bool,
    modes: u32,
    port: Option<(PortId, usize)>,
    handles: usize,
    plans: VecDeque<Plan>,
    /// A file's bytes, which other file objects may share.
    contents: FileId,
    /// What a stream's reads will find: messages, or pieces of no meaning.
    incoming: VecDeque<Piece>,
    /// What was written where no simulated other side reads.
    outgoing: Vec<u8>,
    peer: Option<ObjectId>,
    hung_up: bool,
    reset: bool,
    /// The other side has sent its last, and still reads.
    ended: bool,
    /// This side has said that it reads no more, and that it writes no more.
    shut: (bool, bool),
    /// What a socket is in the network.
    place: network::Place,
}

/// What came on a stream at once.
struct Piece {
    bytes: Vec<u8>,
    /// Who sent it: of datagrams from the network.
    from: Option<SocketAddr>,
}

impl Object {
    /// Takes up to `most` bytes of what has come: of one message, or of a stream whose pieces mean
    /// nothing ("Named Pipe Type, Read, and Wait Modes"; `recv`).
    fn receive(&mut self, most: usize) -> Piece {
        let mut found = Piece { bytes: Vec::new(), from: None };
        while let Some(mut piece) = self.incoming.pop_front() {
            let rest = piece.bytes.split_off(piece.bytes.len().min(most - found.bytes.len()));
            found.bytes.append(&mut piece.bytes);
            found.from = piece.from;
            // The rest of a datagram is lost (`recvfrom`), of a pipe's message read next (`ReadFile`).
            if !rest.is_empty() && self.kind != Kind::Datagram {
                self.incoming.push_front(Piece { bytes: rest, ..piece });
            }
            if self.kind.has_messages() || found.bytes.len() == most {
                break;
            }
        }
        found
    }

    /// How many bytes have come that nobody has read.
    fn unread(&self) -> usize {
        self.incoming.iter().map(|piece| piece.bytes.len()).sum()
    }
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Read,
    Write,
    /// Anything else: what it does is the device's business.
    Control,
    /// `WSASendTo`.
    SendTo(SocketAddr),
    /// `AcceptEx`, into the socket with this handle value.
    Accept {
        socket: usize,
    },
    /// `ConnectEx`.
    Connect(SocketAddr),
    /// `IOCTL_AFD_POLL`, with one event that is wanted besides those that always are.
    Poll(op::Event),
}

impl Call {
    pub(super) fn writes(self) -> bool {
        matches!(self, Self::Write | Self::SendTo(_))
    }
}

/// What an operation may have to wait for. Within each of them but events the oldest operation of a file
/// object is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    Data,
    Room,
    Connection,
    Event,
}

struct Operation {
    object: ObjectId,
    call: Call,
    header: Header,
    block: Block,
    plan: Plan,
    /// It is planned to happen later; `false` while it waits for data, for `complete`, for ever.
    scheduled: bool,
    /// How much of a write has found room so far.
    moved: usize,
    cancelled: bool,
    ending: Option<Ending>,
    /// The status word is final: the memory is not the kernel's any more.
    released: bool,
    /// Where the packet is queued, or will be.
    packet: Option<(PortId, usize)>,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ending {
    pub(super) status: i32,
    pub(super) bytes: u32,
}

/// What happens later.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// The driver ends the operation.
    End,
    /// A cancel takes hold.
    Abort {
        halfway: bool,
    },
    Close(i32),
    Packet {
        port: PortId,
        key: usize,
    },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Packet {
    pub(super) key: usize,
    pub(super) address: usize,
    pub(super) internal: usize,
    pub(super) bytes: u32,
    operation: Option<OperationId>,
}

#[derive(Default)]
struct PortState {
    open: bool,
    packets: VecDeque<Packet>,
}

/// What a call that starts an operation says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Finished,
    Pending,
    Failed(Win32Error),
}

/// What one look at a port comes to.
pub(super) enum Look {
    Packets(usize),
    TimedOut,
    /// Nothing can ever happen.
    Stuck,
    /// The simulation has failed: nobody may wait for ever any more.
    Over,
}

/// An OVERLAPPED's address by a number of its own, so that a seed's message is the same each time.
#[derive(Clone, Copy)]
enum Place {
    Null,
    /// The place of this many-th operation that was nobody's before.
    Of(usize),
    Elsewhere,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Of(number) => write!(f, "#{number}"),
            Self::Elsewhere => f.write_str("elsewhere"),
        }
    }
}

/// One entry of the journal that a failure shows.
#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "read by Debug only")]
enum Note {
    Opened { handle: usize, kind: Kind },
    Closed { handle: usize },
    Bound { handle: usize, port: PortId, key: usize, error: Win32Error },
    Unbound { handle: usize, done: bool },
    Started { operation: OperationId, call: Call, handle: usize, place: Place, answer: Answer },
    Cancel { handle: usize, place: Place, found: Option<OperationId>, error: Win32Error },
    Ended { operation: OperationId, status: NtStatus, bytes: u32 },
    Released { operation: OperationId },
    Queued { operation: OperationId, port: PortId },
    Taken { port: PortId, packets: usize },
    Posted { port: PortId, key: usize, place: Place },
    TimedOut { port: PortId },
}

pub(super) struct World {
    seed: u64,
    pub(super) random: Random,
    pub(super) faults: Faults,
    pub(super) clock: Duration,
    /// How long a wait for another thread may take, in real time.
    pub(super) patience: Duration,
    /// By handle value / 4.
    handles: Vec<Option<ObjectId>>,
    /// Values to be given out again, the last closed last.
    closed: Vec<usize>,
    objects: Vec<Object>,
    files: Vec<Contents>,
    network: Network,
    ports: Vec<PortState>,
    operations: BTreeMap<OperationId, Operation>,
    endings: Vec<Option<Ending>>,
    agenda: BTreeMap<(Duration, u64), (OperationId, Event)>,
    next_event: u64,
    /// Addresses and keys of operations, for stale packets.
    recent: VecDeque<(usize, usize)>,
    pub(super) foreign: u64,
    posts_failed: u32,
    /// Calls since something happened.
    quiet_calls: u32,
    /// Calls since an operation ended that nobody cancelled, or the test did something.
    fruitless_calls: u32,
    journal: VecDeque<(Duration, Note)>,
    /// The journal of when fruitless calls began.
    fruitful: VecDeque<(Duration, Note)>,
    places: BTreeMap<usize, usize>,
    /// Once set, the simulation has failed and does nothing but let everybody go.
    pub(super) failure: Option<String>,
}

impl World {
    pub(super) fn new(seed: u64, faults: Faults) -> Self {
        Self {
            seed,
            random: Random::new(seed),
            faults,
            clock: Duration::from_secs(1),
            patience: Duration::ZERO,
            // Value 0 is never a handle.
            handles: vec![None],
            closed: Vec::new(),
            objects: Vec::new(),
            files: Vec::new(),
            network: Network::default(),
            ports: Vec::new(),
            operations: BTreeMap::new(),
            endings: Vec::new(),
            agenda: BTreeMap::new(),
            next_event: 0,
            recent: VecDeque::new(),
            foreign: 0,
            posts_failed: 0,
            quiet_calls: 0,
            fruitless_calls: 0,
            journal: VecDeque::new(),
            fruitful: VecDeque::new(),
            places: BTreeMap::new(),
            failure: None,
        }
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    // -- failing -----------------------------------------------------------------------------

    fn note(&mut self, note: Note) {
        if self.journal.len() == 64 {
            self.journal.pop_front();
        }
        self.journal.push_back((self.clock, note));
    }

    fn place(&self, address: usize) -> Place {
        match self.places.get(&address) {
            Some(&number) => Place::Of(number),
            None if address == 0 => Place::Null,
            None => Place::Elsewhere,
        }
    }

    /// Ends the test, once.
    pub(super) fn fail(&mut self, what: &str) {
        if self.failure.is_some() {
            return;
        }
        let mut message = format!("simulation with seed {}: {what}\nwhat came before:", self.seed);
        for (at, note) in &self.journal {
            let _ = write!(message, "\n  {at:>12?} {note:?}");
        }
        self.failure = Some(message);
    }

    /// Looks at the memory of all operations that the kernel has.
    pub(super) fn verify(&mut self) {
        let spoiled = self.operations.iter().find_map(|(&id, operation)| {
            if operation.released {
                None
            } else if !operation.header.is_intact() {
                Some((id, "OVERLAPPED"))
            } else if !operation.block.is_intact() {
                Some((id, "buffer"))
            } else {
                None
            }
        });
        if let Some((id, what)) = spoiled {
            self.fail(&format!(
                "the {what} of operation {id} was changed while the kernel had it: it was freed, \
                 reused or written to early"
            ));
        }
    }

    // -- time --------------------------------------------------------------------------------

    /// Between any two calls of the program the kernel may do something.
    pub(super) fn tick(&mut self) {
        self.quiet_calls += 1;
        if self.quiet_calls == STUCK {
            self.fail("livelock: the program asks and asks, and nothing happens any more");
        }
        self.fruitless_calls += 1;
        if self.fruitless_calls == 40 {
            self.fruitful.clone_from(&self.journal);
        }
        if self.fruitless_calls == FRUITLESS {
            let what = self.describe_pending(
                "livelock: the program goes on and on, and for long nothing has ended but by a cancel",
            );
            // What led there is long gone from the journal.
            self.journal = std::mem::take(&mut self.fruitful);
            self.fail(&what);
        }
        self.happen();
        if self.random.chance(self.faults.haste) && !self.agenda.is_empty() {
            let index = self.random.below(self.agenda.len());
            let when = *self.agenda.keys().nth(index).expect("below the length");
            self.run_event(when);
        }
        if !self.operations.is_empty() {
            let last = *self.operations.last_key_value().expect("not empty").0;
            let first = *self.operations.first_key_value().expect("not empty").0;
            let from = first + self.random.below((last - first + 1) as usize) as u64;
            if let Some((_, operation)) = self.operations.range_mut(from..).next() {
                if operation.ending.is_none()
                    && operation.header.is_intact()
                    && operation.block.is_intact()
                {
                    operation.header.scribble(&mut self.random);
                    operation.block.scribble(&mut self.random);
                }
            }
        }
    }

    /// Does everything whose time has come.
    pub(super) fn happen(&mut self) {
        while let Some((&when, _)) = self.agenda.first_key_value() {
            if when.0 > self.clock {
                return;
            }
            self.run_event(when);
        }
    }

    /// Lets time pass, one event after the other.
    pub(super) fn advance(&mut self, to: Duration) {
        while let Some((&when, _)) = self.agenda.first_key_value() {
            if when.0 > to {
                break;
            }
            self.clock = self.clock.max(when.0);
            self.run_event(when);
        }
        if to > self.clock {
            self.quiet_calls = 0;
            self.clock = to;
        }
    }

    fn schedule(&mut self, after: Duration, id: OperationId, event: Event) {
        let at = self.clock.saturating_add(after);
        self.agenda.insert((at, self.next_event), (id, event));
        self.next_event += 1;
    }

    fn run_event(&mut self, when: (Duration, u64)) {
        let Some((id, event)) = self.agenda.remove(&when) else { return };
        self.quiet_calls = 0;
        let Some(operation) = self.operations.get(&id) else { return };
        match event {
            Event::Packet { port, key } => self.queue(id, port, key),
            _ if operation.ending.is_some() => {}
            Event::End => match self.conclude(id) {
                Some(ending) => self.end(id, ending),
                // What it waits for is gone again, or was not enough.
                None if self.operations[&id].cancelled => {
                    self.abort(id, win::STATUS_CANCELLED, false);
                }
                None => self.operations.get_mut(&id).expect("found").scheduled = false,
            },
            Event::Abort { halfway } => self.abort(id, win::STATUS_CANCELLED, halfway),
            Event::Close(status) => self.abort(id, status, false),
        }
    }

    // -- handles -----------------------------------------------------------------------------

    pub(super) fn open(&mut self, kind: Kind, traits: Traits, contents: Vec<u8>) -> usize {
        self.files.push(Contents::new(&contents));
        self.open_object(kind, traits, self.files.len() - 1)
    }

    /// Opens a file once more (`CreateFile`): another file object.
    pub(super) fn reopen(&mut self, handle: usize) -> Option<usize> {
        let Object { kind, contents, .. } = self.objects[self.object(handle)?];
        Some(self.open_object(kind, Traits::default(), contents))
    }

    fn open_object(&mut self, kind: Kind, traits: Traits, contents: FileId) -> usize {
        self.intervene();
        let object = self.new_object(kind, traits, contents);
        self.give_handle(object)
    }

    fn new_object(&mut self, kind: Kind, traits: Traits, contents: FileId) -> ObjectId {
        let ignores_skip = self.random.chance(self.faults.ignores_skip);
        let denies_queries = self.random.chance(self.faults.denies_queries);
        self.objects.push(Object {
            kind,
            ignores_skip: traits.ignores_skip.unwrap_or(ignores_skip || traits.layered),
            denies_queries: traits.denies_queries.unwrap_or(denies_queries),
            traits,
            modes: 0,
            port: None,
            handles: 0,
            plans: VecDeque::new(),
            contents,
            incoming: VecDeque::new(),
            outgoing: Vec::new(),
            peer: None,
            hung_up: false,
            reset: false,
            ended: false,
            shut: (false, false),
            place: network::Place::default(),
        });
        self.objects.len() - 1
    }

    pub(super) fn connect(&mut self, one: usize, other: usize) {
        let (Some(one), Some(other)) = (self.object(one), self.object(other)) else { return };
        self.objects[one].peer = Some(other);
        self.objects[other].peer = Some(one);
    }

    fn give_handle(&mut self, object: ObjectId) -> usize {
        self.objects[object].handles += 1;
        // Values of closed handles come back (pitfall 29); which first is not documented.
        let place = if !self.closed.is_empty() && self.random.chance(self.faults.reuses_values) {
            self.closed.pop().expect("not empty")
        } else {
            self.handles.push(None);
            self.handles.len() - 1
        };
        self.handles[place] = Some(object);
        let handle = place * 4;
        self.note(Note::Opened { handle, kind: self.objects[object].kind });
        handle
    }

    fn object(&self, handle: usize) -> Option<ObjectId> {
        // The two low bits of a handle are the program's (`ntdef.h`, OBJ_HANDLE_TAGBITS).
        *self.handles.get(handle / 4)?
    }

    /// The file object, or the NTSTATUS that a closed value, an event or a console is answered with
    /// (measured).
    fn file(&self, handle: usize) -> Result<ObjectId, NtStatusCode> {
        let object = self.object(handle).ok_or(win::STATUS_INVALID_HANDLE)?;
        if matches!(self.objects[object].kind, Kind::Event | Kind::Console) {
            return Err(win::STATUS_OBJECT_TYPE_MISMATCH);
        }
        Ok(object)
    }

    pub(super) fn duplicate(&mut self, handle: usize) -> Option<usize> {
        let object = self.object(handle)?;
        Some(self.give_handle(object))
    }

    /// `CloseHandle`. The last handle of a file object ends what is pending on it
    /// (IRP_MJ_CLEANUP); its packets come all the same.
    pub(super) fn close(&mut self, handle: usize) -> bool {
        let Some(object) = self.object(handle) else { return false };
        self.note(Note::Closed { handle });
        self.handles[handle / 4] = None;
        self.closed.push(handle / 4);
        self.objects[object].handles -= 1;
        if self.objects[object].handles > 0 {
            return true;
        }
        let kind = self.objects[object].kind;
        for id in self.pending_on(object) {
            let operation = &self.operations[&id];
            if operation.plan.start == Start::Never {
                continue;
            }
            // What nothing else would end, the close does.
            let stays = operation.scheduled;
            match *self.random.pick(kind.ends_on_close()) {
                None if stays => {}
                None => self.schedule(Duration::ZERO, id, Event::Close(win::STATUS_CANCELLED)),
                Some(status) => {
                    let delay = self.random.delay(self.faults.longest);
                    self.schedule(delay, id, Event::Close(status));
                }
            }
        }
        self.happen();
        self.leave_network(object);
        if let Some(peer) = self.objects[object].peer {
            self.objects[peer].hung_up = true;
            self.wake(peer);
        }
        true
    }

    fn pending_on(&self, object: ObjectId) -> Vec<OperationId> {
        let pending = self
            .operations
            .iter()
            .filter(|(_, operation)| operation.object == object && operation.ending.is_none());
        pending.map(|(&id, _)| id).collect()
    }

    // -- what the completion port logic asks -------------------------------------------------

    pub(super) fn create_port(&mut self) -> PortId {
        self.ports.push(PortState { open: true, packets: VecDeque::new() });
        self.ports.len() - 1
    }

    /// What is queued on a port that nobody has open any more is gone.
    pub(super) fn close_port(&mut self, port: PortId) {
        self.ports[port].open = false;
        self.ports[port].packets.clear();
    }

    /// What is still the kernel's when its queue goes is leaked on purpose.
    pub(super) fn keep_leaks(&self) {
        for operation in self.operations.values().filter(|operation| !operation.released) {
            operation.header.keep();
        }
    }

    /// `CreateIoCompletionPort`: ERROR_INVALID_HANDLE for what is closed or no file; "must be opened
    /// for overlapped I/O" and "can be associated with only one port" are both
    /// ERROR_INVALID_PARAMETER, the second also for the same port; so is a console (measured).
    pub(super) fn associate(
        &mut self,
        port: PortId,
        handle: usize,
        key: usize,
    ) -> Result<(), Win32Error> {
        let is_console =
            self.object(handle).is_some_and(|object| self.objects[object].kind == Kind::Console);
        let answer = match self.file(handle) {
            Err(_) if is_console => Err(win::ERROR_INVALID_PARAMETER),
            Err(_) => Err(win::ERROR_INVALID_HANDLE),
            Ok(object) => {
                let object = &mut self.objects[object];
                if object.traits.synchronous || object.port.is_some() {
                    Err(win::ERROR_INVALID_PARAMETER)
                } else {
                    object.port = Some((port, key));
                    Ok(())
                }
            }
        };
        self.note(Note::Bound { handle, port, key, error: answer.err().unwrap_or(0) });
        answer
    }

    /// `FileReplaceCompletionInformation` with no port: Windows 8.1 and later
    /// (`FILE_COMPLETION_INFORMATION`, "Remarks"). With something in flight it has been seen to fail
    /// (pitfall 23); what it would do to those packets is not documented. The modes stay (pitfall
    /// 54).
    pub(super) fn dissociate(&mut self, handle: usize) -> bool {
        let done = match self.file(handle) {
            Err(_) => false,
            Ok(object) => {
                let refused = match self.objects[object].traits.stays_bound {
                    Some(stays) => stays,
                    None => self.random.chance(self.faults.unbind_fails),
                };
                let busy = !self.pending_on(object).is_empty();
                if refused || busy && !self.random.chance(self.faults.unbind_loses) {
                    false
                } else {
                    self.objects[object].port = None;
                    true
                }
            }
        };
        self.note(Note::Unbound { handle, done });
        done
    }

    /// `SetFileCompletionNotificationModes`: what is on stays on; not for synchronous handles
    /// (measured).
    pub(super) fn set_modes(&mut self, handle: usize, modes: u8) -> bool {
        let Ok(object) = self.file(handle) else { return false };
        if self.objects[object].traits.synchronous || self.random.chance(self.faults.modes_fail) {
            return false;
        }
        self.objects[object].modes |= u32::from(modes);
        true
    }

    pub(super) fn modes(&self, handle: usize) -> Result<u32, NtStatusCode> {
        let object = &self.objects[self.file(handle)?];
        if object.denies_queries { Err(win::STATUS_ACCESS_DENIED) } else { Ok(object.modes) }
    }

    pub(super) fn file_mode(&self, handle: usize) -> Result<u32, NtStatusCode> {
        let object = &self.objects[self.file(handle)?];
        if object.denies_queries {
            return Err(win::STATUS_ACCESS_DENIED);
        }
        Ok(if object.traits.synchronous { FILE_SYNCHRONOUS_IO_NONALERT } else { 0 })
    }

    pub(super) fn file_type(&self, handle: usize) -> u32 {
        match self.object(handle).map(|object| self.objects[object].kind) {
            Some(Kind::File | Kind::Directory) => FILE_TYPE_DISK,
            // Sockets are pipes to `GetFileType`.
            Some(Kind::Pipe | Kind::MessagePipe | Kind::Socket | Kind::Datagram) => FILE_TYPE_PIPE,
            Some(Kind::Device | Kind::Console) => FILE_TYPE_CHAR,
            Some(Kind::Event) | None => FILE_TYPE_UNKNOWN,
        }
    }

    pub(super) fn socket_protocol(&self, socket: usize) -> Option<SocketProtocol> {
        let object = &self.objects[self.object(socket)?];
        object.kind.is_socket().then_some(SocketProtocol {
            ifs_handles: !object.traits.layered,
            datagrams: object.kind == Kind::Datagram,
        })
    }

    /// `CancelIoEx`: ERROR_NOT_FOUND when there is nothing of that OVERLAPPED to cancel, also on
    /// what is no file (measured); a success only marks the operation (pitfalls 17 and 18). It finds
    /// the operations of the file object, whichever of its handles is used; without an OVERLAPPED all.
    pub(super) fn cancel(&mut self, handle: usize, address: usize) -> Result<(), Win32Error> {
        let Some(object) = self.object(handle) else {
            self.note(Note::Cancel {
                handle,
                place: self.place(address),
                found: None,
                error: win::ERROR_INVALID_HANDLE,
            });
            return Err(win::ERROR_INVALID_HANDLE);
        };
        let mut answer = Err(win::ERROR_NOT_FOUND);
        let mut last = None;
        for id in self.pending_on(object) {
            if address == 0 || self.operations[&id].header.address() == address {
                answer = self.cancel_found(id).or(answer);
                last = Some(id);
            }
        }
        let (place, error) = (self.place(address), answer.err().unwrap_or(0));
        self.note(Note::Cancel { handle, place, found: last, error });
        answer
    }

    fn cancel_found(&mut self, id: OperationId) -> Result<(), Win32Error> {
        let operation = self.operations.get_mut(&id).expect("found");
        if operation.plan.start == Start::Never {
            operation.cancelled = true;
            return Ok(());
        }
        if operation.cancelled {
            return Ok(());
        }
        let ends_by_itself = operation.scheduled;
        let plan = operation.plan.cancel;
        match plan.unwrap_or_else(|| self.draw_cancel(ends_by_itself)) {
            OnCancel::NotFound => return Err(win::ERROR_NOT_FOUND),
            OnCancel::Aborts => self.abort(id, win::STATUS_CANCELLED, false),
            OnCancel::AbortsHalfway => self.abort(id, win::STATUS_CANCELLED, true),
            OnCancel::AbortsAfter(time) => {
                self.mark_cancelled(id);
                self.schedule(time, id, Event::Abort { halfway: false });
            }
            OnCancel::Finishes => {
                self.mark_cancelled(id);
                if !ends_by_itself {
                    self.schedule(Duration::ZERO, id, Event::End);
                }
            }
        }
        Ok(())
    }

    fn mark_cancelled(&mut self, id: OperationId) {
        self.operations.get_mut(&id).expect("found").cancelled = true;
    }

    fn draw_cancel(&mut self, ends_by_itself: bool) -> OnCancel {
        let (random, faults) = (&mut self.random, &self.faults);
        if ends_by_itself && random.chance(faults.cancel_finds_nothing) {
            OnCancel::NotFound
        } else if ends_by_itself && random.chance(faults.cancel_loses) {
            OnCancel::Finishes
        } else if random.chance(faults.cancel_halfway) {
            OnCancel::AbortsHalfway
        } else if random.chance(faults.cancel_is_slow) {
            OnCancel::AbortsAfter(random.delay(faults.longest))
        } else {
            OnCancel::Aborts
        }
    }

    /// `PostQueuedCompletionStatus`: fails where there is no memory (pitfall 15). A packet of an
    /// operation needs none: it is made of the request's own.
    pub(super) fn post(&mut self, port: PortId, key: usize) -> Result<(), Win32Error> {
        if self.is_full(port) {
            return Err(win::ERROR_NO_SYSTEM_RESOURCES);
        }
        if self.posts_failed < 3 && self.random.chance(self.faults.post_fails) {
            self.posts_failed += 1;
            return Err(win::ERROR_NO_SYSTEM_RESOURCES);
        }
        self.posts_failed = 0;
        self.post_packet(port, key, 0, 0);
        Ok(())
    }

    fn is_full(&self, port: PortId) -> bool {
        let posted = self.ports[port].packets.iter().filter(|packet| packet.operation.is_none());
        posted.count() >= self.faults.room_for_posts
    }

    /// How many packets are queued on a port now.
    pub(super) fn queued(&mut self, port: PortId) -> usize {
        self.happen();
        self.ports[port].packets.len()
    }

    pub(super) fn post_packet(&mut self, port: PortId, key: usize, address: usize, bytes: u32) {
        self.note(Note::Posted { port, key, place: self.place(address) });
        let packet = Packet { key, address, internal: 0, bytes, operation: None };
        if self.ports[port].open {
            self.ports[port].packets.push_back(packet);
        }
    }

    /// A packet that is not the queue's (pitfalls 19, 29 and 46).
    pub(super) fn post_foreign(&mut self, port: PortId) {
        let random = &mut self.random;
        let old = match self.recent.len() {
            0 => (0, 0),
            length => self.recent[random.below(length)],
        };
        let (key, address) = match random.below(7) {
            // A null OVERLAPPED, under a key of nobody's.
            0 => (random.next() as usize >> 1, 0),
            // A job object's message: the key is the user's, the OVERLAPPED a process id.
            1 => (random.below(64), 4 * random.below(1 << 20)),
            2 => (random.next() as usize >> 1, random.next() as usize),
            // Stale: an operation of the past, or forged: one that is in flight.
            3 => (old.1, old.0),
            4 => (old.1.wrapping_add(1), old.0),
            5 => (old.1, old.0.wrapping_add(random.below(64))),
            _ => (random.below(64), old.0),
        };
        let bytes = random.next() as u32;
        self.foreign += 1;
        self.post_packet(port, key, address, bytes);
    }

    /// Takes packets off a port, lets time pass until there are some or `until` has come.
    pub(super) fn look(
        &mut self,
        port: PortId,
        until: Option<Duration>,
        room: usize,
        mut take: impl FnMut(usize, Packet),
    ) -> Look {
        if self.failure.is_some() {
            // Everybody may go: the operations that are left are reported as undrained.
            let Some(until) = until else { return Look::Over };
            self.clock = self.clock.max(until);
            return Look::TimedOut;
        }
        if !self.is_full(port) && self.random.chance(self.faults.foreign) {
            self.post_foreign(port);
        }
        loop {
            self.happen();
            self.verify();
            let queued = self.ports[port].packets.len().min(room);
            if queued > 0 {
                let small = queued > 1 && self.random.chance(self.faults.small_batches);
                let count = if small { 1 + self.random.below(queued - 1) } else { queued };
                self.note(Note::Taken { port, packets: count });
                for index in 0..count {
                    let mut packet = self.ports[port].packets.pop_front().expect("queued");
                    if let Some(id) = packet.operation {
                        packet = self.taken(id, packet);
                    }
                    take(index, packet);
                }
                self.quiet_calls = 0;
                return Look::Packets(count);
            }
            if until.is_some_and(|until| until <= self.clock) {
                self.note(Note::TimedOut { port });
                return Look::TimedOut;
            }
            let next = self.agenda.first_key_value().map(|(&(at, _), _)| at);
            match (next, until) {
                (Some(at), None) => self.advance(at),
                (Some(at), Some(until)) => self.advance(at.min(until)),
                (None, Some(until)) => self.advance(until),
                (None, None) => return Look::Stuck,
            }
        }
    }

    /// When a wait of so many milliseconds ends: early now and then (pitfall 4), or a tick late.
    pub(super) fn end_of_wait(&mut self, milliseconds: u32) -> Duration {
        let time = Duration::from_millis(u64::from(milliseconds));
        if milliseconds > 0 && self.random.chance(self.faults.early) {
            // Also not at all: an alerted or interrupted wait.
            return self.clock + self.random.delay(time);
        }
        if milliseconds > 0 && self.random.chance(self.faults.late) {
            return self.clock + time + TICK;
        }
        self.clock + time
    }

    /// A packet leaves the port.
    fn taken(&mut self, id: OperationId, packet: Packet) -> Packet {
        let rubbish = self.random.next() as usize & !0xFFFF_FFFF;
        self.release(id);
        self.operations.remove(&id);
        Packet { internal: rubbish | packet.internal, ..packet }
    }

    /// The test did something that a program may have waited for.
    pub(super) fn intervene(&mut self) {
        self.fruitless_calls = 0;
    }

    pub(super) fn describe_waiting(&self) -> String {
        self.describe_pending(
            "deadlock: the queue waits for ever, and nothing that is in flight can end",
        )
    }

    fn describe_pending(&self, what: &str) -> String {
        let mut text = String::from(what);
        for (id, operation) in self.operations.iter().filter(|(_, it)| it.ending.is_none()) {
            let kind = self.objects[operation.object].kind;
            let why = match operation.plan.start {
                Start::Never => "never ends",
                _ => match self.waits(operation) {
                    Some(Waits::Data) => "waits for data",
                    Some(Waits::Room) => "waits for room",
                    Some(Waits::Connection) => "waits for a connection",
                    Some(Waits::Event) => "waits for an event",
                    None => "waits for `complete`",
                },
            };
            let _ = write!(text, "\n  operation {id}: {:?} on a {kind:?} {why}", operation.call);
        }
        text
    }

    // -- operations --------------------------------------------------------------------------

    /// `shutdown`: what was sent before goes first ("SD_SEND"), and what waits to be received learns of
    /// it.
    pub(super) fn shut_down(&mut self, socket: usize, how: Shutdown) -> Result<(), Win32Error> {
        let Ok(object) = self.file(socket) else { return Err(WSAENOTSOCK as u32) };
        if self.objects[object].peer.is_none() {
            return Err(WSAENOTCONN as u32);
        }
        let (reads, writes) = match how {
            Shutdown::Read => (true, false),
            Shutdown::Write => (false, true),
            Shutdown::Both => (true, true),
        };
        let shut = &mut self.objects[object].shut;
        *shut = (shut.0 | reads, shut.1 | writes);
        if reads {
            self.objects[object].ended = true;
            self.wake(object);
        }
        self.end_stream(object);
        Ok(())
    }

    /// Tells the other side that this one has sent its last, once it has.
    fn end_stream(&mut self, object: ObjectId) {
        let sends = |id: &OperationId| self.operations[id].call.writes();
        if !self.objects[object].shut.1 || self.pending_on(object).iter().any(sends) {
            return;
        }
        if let Some(peer) = self.objects[object].peer {
            self.objects[peer].ended = true;
            self.wake(peer);
        }
    }

    /// The call that starts an operation.
    pub(super) fn start(
        &mut self,
        call: Call,
        handle: usize,
        header: Header,
        block: Block,
    ) -> Answer {
        let id = self.endings.len() as OperationId;
        let next = self.places.len();
        let place = Place::Of(*self.places.entry(header.address()).or_insert(next));
        self.endings.push(None);
        let answer = self.start_on(id, call, handle, header, block);
        self.quiet_calls = 0;
        self.note(Note::Started { operation: id, call, handle, place, answer });
        answer
    }

    fn start_on(
        &mut self,
        id: OperationId,
        call: Call,
        handle: usize,
        mut header: Header,
        mut block: Block,
    ) -> Answer {
        let Ok(object) = self.file(handle) else {
            return Answer::Failed(win::ERROR_INVALID_HANDLE);
        };
        // `NtReadFile`, `NtWriteFile`, "ByteOffset": signed, and of what is below zero only the mark
        // for the end of the file means anything.
        let place = header.offset();
        let is_transfer = self.objects[object].kind == Kind::File && call != Call::Control;
        if is_transfer && place > i64::MAX as u64 && !(call == Call::Write && place == AT_THE_END) {
            return Answer::Failed(win::ERROR_INVALID_PARAMETER);
        }
        let (reads_no_more, writes_no_more) = self.objects[object].shut;
        if call == Call::Read && reads_no_more || call.writes() && writes_no_more {
            return Answer::Failed(WSAESHUTDOWN as u32);
        }
        if let Err(code) = self.may_start(object, call, block.length()) {
            return Answer::Failed(code as u32);
        }
        // On a stream the address says nothing (`WSASendTo`).
        let is_stream = self.objects[object].kind == Kind::Socket;
        let call = if is_stream && call.writes() { Call::Write } else { call };
        let plan = match self.objects[object].plans.pop_front() {
            Some(plan) => plan,
            None => Self::plan_unanswered(call).unwrap_or_else(|| self.draw_plan(object, call)),
        };
        if let Start::Fails(code) = plan.start {
            // An error at once leaves the status block as it was, or as the driver left it: nothing
            // documented says which.
            if self.random.chance(0.5) {
                header.finish(NtStatus::from_win32(code).0, 0, &mut self.random);
            }
            return Answer::Failed(code);
        }
        let key = self.objects[object].port.map_or(0, |(_, key)| key);
        if self.recent.len() == 32 {
            self.recent.pop_front();
        }
        self.recent.push_back((header.address(), key));
        header.scribble(&mut self.random);
        block.scribble(&mut self.random);
        let start = plan.start;
        let operation = Operation {
            object,
            call,
            header,
            block,
            plan,
            scheduled: false,
            moved: 0,
            cancelled: false,
            ending: None,
            released: false,
            packet: None,
        };
        self.operations.insert(id, operation);
        if start == Start::AtOnce || self.objects[object].traits.synchronous {
            if let Some(answer) = self.end_at_once(id) {
                return answer;
            }
        }
        if self.waits(&self.operations[&id]).is_some() {
            self.wake(object);
        } else if let Start::Pends(Some(time)) = start {
            self.schedule_end(id, time);
        } else if start == Start::AtOnce {
            self.schedule_end(id, Duration::ZERO);
        }
        // It may have ended by the time the call returns (pitfall 11).
        self.happen();
        Answer::Pending
    }

    fn schedule_end(&mut self, id: OperationId, time: Duration) {
        self.operations.get_mut(&id).expect("a live operation").scheduled = true;
        self.schedule(time, id, Event::End);
    }

    /// Memory that the kernel has may be given to no other call.
    pub(super) fn look_for_reuse(&mut self, overlapped: usize, block: &[Range], writes: bool) {
        let header = Range { start: overlapped, length: size_of::<OVERLAPPED>() };
        let mut what = None;
        for (id, other) in self.operations.iter().filter(|(_, other)| !other.released) {
            let its_header = other.header.range();
            if its_header.overlaps(&header)
                || block.iter().any(|part| its_header.overlaps(part))
                || other.block.overlaps(&header)
            {
                what = Some(format!("the OVERLAPPED of operation {id}"));
            } else if block.iter().any(|part| other.block.overlaps(part))
                && (writes || other.block.is_writable())
            {
                what = Some(format!("the buffer of operation {id}"));
            }
        }
        if let Some(what) = what {
            self.fail(&format!("memory was used again while the kernel had it: {what}"));
        }
    }

    /// Whether a packet of an earlier operation at this address is still to come, under the port and
    /// key that the handle is bound with.
    pub(super) fn owes_packet(&self, handle: usize, address: usize) -> bool {
        let Some(bound) = self.object(handle).and_then(|object| self.objects[object].port) else {
            return false;
        };
        self.operations.values().any(|operation| {
            operation.header.address() == address
                && operation.ending.is_some()
                && operation.packet == Some(bound)
        })
    }

    /// What an operation has to wait for: something that others do.
    fn waits(&self, operation: &Operation) -> Option<Waits> {
        let (plan, object) = (&operation.plan, &self.objects[operation.object]);
        if plan.is_ending() || matches!(plan.start, Start::Never | Start::Pends(None)) {
            return None;
        }
        match operation.call {
            Call::Read if object.kind.is_stream() => Some(Waits::Data),
            Call::Write if self.has_limit(object) => Some(Waits::Room),
            Call::Accept { .. } => Some(Waits::Connection),
            Call::Poll(_) => Some(Waits::Event),
            _ => None,
        }
    }

    /// Whether what an operation waits for is there.
    fn is_there(&self, operation: &Operation) -> bool {
        let object = &self.objects[operation.object];
        match (self.waits(operation), operation.call) {
            (Some(Waits::Data), _) => self.has_news(operation.object),
            (Some(Waits::Room), _) => {
                self.room(object) > 0 || operation.block.length() == 0 || self.is_deaf(object)
            }
            (Some(Waits::Connection), _) => object.place.has_connections(),
            (_, Call::Poll(event)) => self.seen(operation.object, event) != 0,
            _ => true,
        }
    }

    fn has_news(&self, object: ObjectId) -> bool {
        let object = &self.objects[object];
        let found = !object.incoming.is_empty() || object.place.told_unreachable();
        found || object.hung_up || object.reset || object.ended
    }

    /// Whether what is written to a stream waits until there is room for it.
    fn has_limit(&self, object: &Object) -> bool {
        let keeps = object.kind.may_write_less() && object.peer.is_some();
        keeps && self.faults.room_for_bytes != usize::MAX
    }

    /// How many bytes the other side of a stream would take.
    fn room(&self, object: &Object) -> usize {
        let Some(peer) = object.peer.filter(|_| self.has_limit(object)) else { return usize::MAX };
        self.faults.room_for_bytes.saturating_sub(self.objects[peer].unread())
    }

    /// Nobody reads any more what is written to a stream.
    fn is_deaf(&self, object: &Object) -> bool {
        object.hung_up || object.reset
    }

    /// The oldest operation of each kind gets what is there: reads end in the order they were started
    /// ("Overlapped I/O and Event Objects" for sockets; measured for both).
    fn wake(&mut self, object: ObjectId) {
        let (mut served, mut woken) = (Vec::new(), Vec::new());
        for (&id, operation) in &self.operations {
            if operation.object != object || operation.ending.is_some() {
                continue;
            }
            let Some(waits) = self.waits(operation) else { continue };
            if served.contains(&waits) {
                continue;
            }
            if waits != Waits::Event {
                served.push(waits);
            }
            if !operation.scheduled && self.is_there(operation) {
                woken.push((id, operation.plan.start));
            }
        }
        for (id, start) in woken {
            self.schedule_end(
                id,
                if let Start::Pends(Some(time)) = start { time } else { Duration::ZERO },
            );
        }
    }

    fn draw_plan(&mut self, object: ObjectId, call: Call) -> Plan {
        let kind = self.objects[object].kind;
        let (random, faults) = (&mut self.random, &self.faults);
        if random.chance(faults.fails_at_once) {
            return Plan::fails(*random.pick(kind.errors_at_once()));
        }
        if random.chance(faults.never_ends) {
            return Plan::never_ends();
        }
        let mut plan = if random.chance(faults.at_once) {
            Plan::at_once()
        } else {
            let plan = Plan::pends_for(random.delay(faults.longest));
            if random.chance(faults.fails_late) {
                plan.status(NtStatus(*random.pick(kind.errors_late())))
            } else {
                plan
            }
        };
        let warns = kind == Kind::Device && call != Call::Write && plan.status.is_none();
        if warns && random.chance(faults.more_data) {
            plan = plan.status(NtStatus(win::STATUS_BUFFER_OVERFLOW));
        }
        plan
    }

    /// Ends the operation in the call that starts it. `None` where it has to pend after all.
    fn end_at_once(&mut self, id: OperationId) -> Option<Answer> {
        let object = self.operations[&id].object;
        if let Some(waits) = self.waits(&self.operations[&id]) {
            let same = |other: &OperationId| self.waits(&self.operations[other]) == Some(waits);
            let first = self.pending_on(object).into_iter().find(same);
            let has_turn = waits == Waits::Event || first == Some(id);
            if !has_turn || !self.is_there(&self.operations[&id]) {
                return None;
            }
        }
        let ending = self.conclude(id)?;
        let status = NtStatus(ending.status);
        if !status.is_success() && !status.is_warning() {
            // Nothing was started, and no packet comes.
            self.operations.remove(&id);
            return Some(Answer::Failed(status.to_win32()));
        }
        self.fruitless_calls = 0;
        self.endings[id as usize] = Some(ending);
        let operation = self.operations.get_mut(&id).expect("a live operation");
        operation.ending = Some(ending);
        let skip = {
            let object = &self.objects[object];
            object.modes & FILE_SKIP_COMPLETION_PORT_ON_SUCCESS != 0 && !object.ignores_skip
        };
        // With skip on, an immediate warning queues a packet or not, by version ("Facts it rests on" in
        // docs/ARCHITECTURE.md); with skip off it does.
        let wanted = if !skip { true } else { status.is_warning() && self.random.chance(0.5) };
        let gap = operation.plan.gap;
        let packet = self.packet_for(id, wanted);
        self.release(id);
        match packet {
            None => {
                self.operations.remove(&id);
            }
            Some((port, key)) if gap.is_zero() => self.queue(id, port, key),
            Some((port, key)) => self.schedule(gap, id, Event::Packet { port, key }),
        }
        self.note(Note::Ended { operation: id, status, bytes: ending.bytes });
        Some(if status.is_warning() {
            let socket = self.objects[object].kind.is_socket();
            Answer::Failed(if socket { WSAEMSGSIZE as u32 } else { win::ERROR_MORE_DATA })
        } else {
            Answer::Finished
        })
    }

    /// Where the packet goes, if one comes: to the port the file object is bound to as the operation
    /// ends; none with the low bit of `hEvent` set (`GetQueuedCompletionStatus`, "Remarks").
    fn packet_for(&mut self, id: OperationId, wanted: bool) -> Option<(PortId, usize)> {
        let operation = self.operations.get_mut(&id).expect("a live operation");
        let wanted = operation.plan.packet.unwrap_or(wanted) && operation.header.event() & 1 == 0;
        let bound = self.objects[operation.object].port.filter(|_| wanted);
        operation.packet = bound;
        bound
    }

    /// Works out how an operation ends, and moves the bytes.
    fn conclude(&mut self, id: OperationId) -> Option<Ending> {
        let operation = self.operations.get(&id)?;
        if !operation.header.is_intact() || !operation.block.is_intact() {
            self.verify();
            return None;
        }
        if operation.plan.is_ending() {
            return Some(self.conclude_planned(id));
        }
        match operation.call {
            Call::Read => Some(self.conclude_read(id)),
            Call::Write => self.conclude_write(id),
            Call::Control => Some(self.conclude_any(id)),
            Call::SendTo(to) => Some(self.conclude_send_to(id, to)),
            Call::Accept { socket } => self.conclude_accept(id, socket),
            Call::Connect(to) => Some(self.conclude_connect(id, to)),
            Call::Poll(event) => self.conclude_poll(id, event),
        }
    }

    /// As the plan says. What it says was moved is moved, as far as there is something to move.
    fn conclude_planned(&mut self, id: OperationId) -> Ending {
        let operation = self.operations.get_mut(&id).expect("a live operation");
        let (length, plan) = (operation.block.length(), &mut operation.plan);
        let status = plan.status.unwrap_or(NtStatus(win::STATUS_SUCCESS));
        let (said, data) = (plan.bytes, plan.data.take());
        let moves = status.is_success() || status.is_warning();
        let all = data.as_ref().map_or(length, Vec::len);
        let bytes =
            said.map_or(if moves || data.is_some() { all } else { 0 }, |said| said as usize);
        let mut bytes = bytes.min(length);
        match (operation.call, data) {
            (_, Some(data)) => operation.block.fill(&data[..data.len().min(length)]),
            (Call::Read, None) => {
                let found = self.take_in(id, bytes);
                if said.is_none() && found > 0 {
                    bytes = found;
                }
            }
            (Call::Write, None) => {
                if let Err(Full) = self.put_out(id, bytes) {
                    return Ending { status: win::STATUS_DISK_FULL, bytes: 0 };
                }
            }
            (_, None) => {}
        }
        Ending { status: status.0, bytes: bytes as u32 }
    }

    fn conclude_any(&mut self, id: OperationId) -> Ending {
        let operation = &self.operations[&id];
        let (call, length) = (operation.call, operation.block.length());
        let rate = if call.writes() { self.faults.short_writes } else { self.faults.short };
        let bytes = self.draw_length(length, rate);
        Ending { status: win::STATUS_SUCCESS, bytes: bytes as u32 }
    }

    /// All of `length`, or (at this rate) less, but something.
    fn draw_length(&mut self, length: usize, rate: f64) -> usize {
        let is_short = length > 1 && self.random.chance(rate);
        if is_short { 1 + self.random.below(length - 1) } else { length }
    }

    fn conclude_read(&mut self, id: OperationId) -> Ending {
        let operation = &self.operations[&id];
        let (length, index) = (operation.block.length(), operation.object);
        let object = &self.objects[index];
        let kind = object.kind;
        let ended = |status, bytes: usize| Ending { status, bytes: bytes as u32 };
        if kind == Kind::File {
            let bytes = self.take_in(id, length);
            // `ReadFile`: the end of the file is an error of its own, and only at the end.
            let at_end = bytes == 0 && length > 0;
            return ended(
                if at_end { win::STATUS_END_OF_FILE } else { win::STATUS_SUCCESS },
                bytes,
            );
        }
        if !kind.is_stream() {
            return self.conclude_any(id);
        }
        let Some(first) = object.incoming.front().map(|piece| piece.bytes.len()) else {
            let is_reset = object.reset;
            return ended(
                if self.objects[index].place.take_unreachable() {
                    win::STATUS_PORT_UNREACHABLE
                } else if is_reset {
                    win::STATUS_CONNECTION_RESET
                } else if kind.is_socket() {
                    // The other side has sent its last byte.
                    win::STATUS_SUCCESS
                } else {
                    win::STATUS_PIPE_BROKEN
                },
                0,
            );
        };
        if kind.has_messages() {
            let bytes = self.take_in(id, length);
            let status =
                if bytes < first { win::STATUS_BUFFER_OVERFLOW } else { win::STATUS_SUCCESS };
            return ended(status, bytes);
        }
        let there = object.unread().min(length);
        let most = self.draw_length(there, self.faults.short);
        ended(win::STATUS_SUCCESS, self.take_in(id, most))
    }

    /// Moves up to `most` bytes into a read's buffer, and says how many there were.
    fn take_in(&mut self, id: OperationId, most: usize) -> usize {
        let operation = self.operations.get_mut(&id).expect("a live operation");
        let object = &mut self.objects[operation.object];
        if object.kind == Kind::File {
            let found = self.files[object.contents].read(operation.header.offset(), most);
            operation.block.fill(&found);
            return found.len();
        }
        let found = object.receive(most);
        operation.block.fill(&found.bytes);
        operation.block.fill_address(found.from);
        if let Some(peer) = object.peer.filter(|_| self.faults.room_for_bytes != usize::MAX) {
            self.wake(peer);
        }
        found.bytes.len()
    }

    /// `None` while there is no room for all of it.
    fn conclude_write(&mut self, id: OperationId) -> Option<Ending> {
        let operation = &self.operations[&id];
        let (index, moved) = (operation.object, operation.moved);
        let (length, object) = (operation.block.length(), &self.objects[index]);
        let kind = object.kind;
        let ended = |status, bytes: usize| Some(Ending { status, bytes: bytes as u32 });
        if kind != Kind::File && !kind.is_stream() {
            return Some(self.conclude_any(id));
        }
        if kind.is_socket() && (object.reset || object.hung_up && moved > 0) {
            self.objects[index].reset = true;
            return ended(win::STATUS_CONNECTION_RESET, 0);
        }
        if kind.is_stream() && !kind.is_socket() && self.is_deaf(object) {
            // `WriteFile`: ERROR_NO_DATA, the pipe is being closed.
            return ended(win::STATUS_PIPE_CLOSING, 0);
        }
        if self.has_limit(object) && !object.hung_up {
            let end = length.min(moved.saturating_add(self.room(object)));
            let Ok(()) = self.put_out(id, end) else { unreachable!("a stream is no disk") };
            return if end == length { ended(win::STATUS_SUCCESS, length) } else { None };
        }
        let rate = if kind.may_write_less() { self.faults.short_writes } else { 0.0 };
        let bytes = self.draw_length(length, rate);
        match self.put_out(id, bytes) {
            Ok(()) => ended(win::STATUS_SUCCESS, bytes),
            Err(Full) => ended(win::STATUS_DISK_FULL, 0),
        }
    }

    /// Moves what is left of the first `count` bytes of a write to where they go.
    fn put_out(&mut self, id: OperationId, count: usize) -> Result<(), Full> {
        let operation = self.operations.get_mut(&id).expect("a live operation");
        let count = count.max(operation.moved);
        let data = operation.block.bytes()[operation.moved..count].to_vec();
        operation.moved = count;
        let (index, place) = (operation.object, operation.header.offset());
        let object = &mut self.objects[index];
        if object.kind == Kind::File {
            let contents = &mut self.files[object.contents];
            let place = if place == AT_THE_END { contents.length() } else { place };
            return contents.write(place, &data);
        }
        if object.kind.is_stream() {
            self.deliver(index, &data);
        }
        Ok(())
    }

    /// Hands what was written to the other side.
    fn deliver(&mut self, from: ObjectId, data: &[u8]) {
        if self.objects[from].hung_up {
            // A connection whose other side has closed takes what is sent, and resets (RFC 1122,
            // 4.2.2.13).
            self.objects[from].reset = true;
        } else if let Some(peer) = self.objects[from].peer {
            self.come(peer, Piece { bytes: data.to_vec(), from: None });
        } else if let Some(to) = self.objects[from].place.remote() {
            self.send_datagram(from, to, data);
        } else {
            self.objects[from].outgoing.extend_from_slice(data);
        }
    }

    /// A stream has something to read. Nothing is something only where it is a message.
    fn come(&mut self, object: ObjectId, piece: Piece) {
        if !piece.bytes.is_empty() || self.objects[object].kind.has_messages() {
            self.objects[object].incoming.push_back(piece);
        }
        self.wake(object);
    }

    /// Ends an operation that nobody wants any more. `halfway`: it had moved some bytes.
    fn abort(&mut self, id: OperationId, status: i32, halfway: bool) {
        let Some(operation) = self.operations.get(&id) else { return };
        let (object, call) = (operation.object, operation.call);
        let kind = self.objects[object].kind;
        let length = operation.block.length();
        // Of a write that found room for a part, that part has gone out (pitfall 10).
        let mut bytes = operation.moved;
        if self.has_limit(&self.objects[object]) {
            return self.end(id, Ending { status, bytes: bytes as u32 });
        }
        if halfway && length > 0 && kind != Kind::File {
            if call == Call::Write && kind.may_write_less() && self.objects[object].peer.is_some() {
                bytes = self.random.below(length);
                let Ok(()) = self.put_out(id, bytes) else { unreachable!("a stream is no disk") };
            } else if !kind.is_stream() {
                bytes = self.random.below(length);
            }
        }
        self.end(id, Ending { status, bytes: bytes as u32 });
    }

    /// The driver is done: the status word and the packet follow, in one order or another.
    fn end(&mut self, id: OperationId, ending: Ending) {
        let (status, bytes) = (NtStatus(ending.status), ending.bytes);
        self.note(Note::Ended { operation: id, status, bytes });
        self.endings[id as usize] = Some(ending);
        let operation = self.operations.get_mut(&id).expect("a live operation");
        operation.ending = Some(ending);
        let object = operation.object;
        if !status.is_cancelled() {
            self.fruitless_calls = 0;
        }
        let operation = &self.operations[&id];
        let (planned, gap) = (operation.plan.word, operation.plan.gap);
        match self.packet_for(id, true) {
            None => {
                self.release(id);
                self.operations.remove(&id);
            }
            Some((port, key)) => match planned.unwrap_or_else(|| self.draw_word()) {
                StatusWord::BeforePacket => {
                    self.release(id);
                    let gap = if planned.is_some() {
                        gap
                    } else {
                        self.random.delay(self.faults.longest)
                    };
                    self.schedule(gap, id, Event::Packet { port, key });
                }
                StatusWord::WithPacket => {
                    self.release(id);
                    self.queue(id, port, key);
                }
                StatusWord::OnDequeue => self.queue(id, port, key),
            },
        }
        self.wake(object);
        self.end_stream(object);
    }

    fn draw_word(&mut self) -> StatusWord {
        if self.random.chance(self.faults.status_first) {
            StatusWord::BeforePacket
        } else if self.random.chance(self.faults.status_last) {
            StatusWord::OnDequeue
        } else {
            StatusWord::WithPacket
        }
    }

    /// Packets are taken off a port in the order in which they were queued ("I/O Completion Ports").
    fn queue(&mut self, id: OperationId, port: PortId, key: usize) {
        let Some(operation) = self.operations.get(&id) else { return };
        let Some(Ending { status, bytes }) = operation.ending else { return };
        let address = operation.header.address();
        if !self.ports[port].open {
            // Nobody will take it. A status word that is written on dequeue never is.
            if operation.released {
                self.operations.remove(&id);
            }
            return;
        }
        self.note(Note::Queued { operation: id, port });
        let internal = status as u32 as usize;
        self.ports[port].packets.push_back(Packet {
            key,
            address,
            internal,
            bytes,
            operation: Some(id),
        });
    }

    /// The status word becomes final: the memory is the program's again.
    fn release(&mut self, id: OperationId) {
        let Some(operation) = self.operations.get_mut(&id) else { return };
        let Some(ending) = operation.ending.filter(|_| !operation.released) else { return };
        if !operation.header.is_intact() || !operation.block.is_intact() {
            self.verify();
            return;
        }
        operation.released = true;
        operation.header.finish(ending.status, ending.bytes, &mut self.random);
        self.note(Note::Released { operation: id });
    }

    // -- what a test does --------------------------------------------------------------------

    pub(super) fn plan(&mut self, handle: usize, plan: Plan) {
        match self.object(handle) {
            Some(object) => self.objects[object].plans.push_back(plan),
            None => self.fail(&format!("a plan for handle {handle:#x}, which is not open")),
        }
    }

    /// Ends the oldest operation on a handle.
    pub(super) fn complete(&mut self, handle: usize, end: End) -> bool {
        let Some(object) = self.object(handle) else { return false };
        let Some(&id) = self.pending_on(object).first() else { return false };
        let plan = &mut self.operations.get_mut(&id).expect("a live operation").plan;
        plan.status = Some(end.status.unwrap_or(NtStatus(win::STATUS_SUCCESS)));
        plan.bytes = end.bytes;
        plan.data = end.data;
        if let Some(ending) = self.conclude(id) {
            self.end(id, ending);
        }
        true
    }

    pub(super) fn feed(&mut self, handle: usize, data: Vec<u8>) {
        self.intervene();
        if let Some(object) = self.object(handle) {
            self.come(object, Piece { bytes: data, from: None });
        }
    }

    pub(super) fn hang_up(&mut self, handle: usize, reset: bool) {
        self.intervene();
        if let Some(object) = self.object(handle) {
            self.objects[object].hung_up = true;
            self.objects[object].reset |= reset;
            self.wake(object);
        }
    }

    pub(super) fn bind_elsewhere(&mut self, handle: usize) {
        let port = self.create_port();
        if self.associate(port, handle, 0).is_err() {
            self.fail(&format!("handle {handle:#x} can't be bound elsewhere"));
        }
    }

    pub(super) fn set_modes_elsewhere(&mut self, handle: usize, modes: u32) {
        if let Some(object) = self.object(handle) {
            self.objects[object].modes |= modes;
        }
    }

    pub(super) fn contents(&self, handle: usize) -> Vec<u8> {
        let Some(object) = self.object(handle) else { return Vec::new() };
        let contents = &self.files[self.objects[object].contents];
        assert!(contents.length() <= 1 << 30, "too much to be shown: read a part of it");
        contents.read(0, contents.length() as usize)
    }

    pub(super) fn outgoing(&mut self, handle: usize) -> Vec<u8> {
        self.object(handle)
            .map_or_else(Vec::new, |object| std::mem::take(&mut self.objects[object].outgoing))
    }

    /// Operations whose memory is the kernel's.
    pub(super) fn owned(&self) -> usize {
        self.operations.values().filter(|operation| !operation.released).count()
    }

    pub(super) fn in_flight_on(&self, handle: usize) -> usize {
        self.object(handle).map_or(0, |object| self.pending_on(object).len())
    }

    /// Whether any of the bytes is the kernel's to write to.
    pub(super) fn owns(&self, start: usize, length: usize) -> bool {
        let range = Range { start, length };
        self.operations.values().filter(|operation| !operation.released).any(|operation| {
            operation.header.range().overlaps(&range) || operation.block.overlaps(&range)
        })
    }

    /// Whether the memory of an operation is the kernel's.
    pub(super) fn has(&self, id: OperationId) -> bool {
        self.operations.get(&id).is_some_and(|operation| !operation.released)
    }

    pub(super) fn open_handles(&self) -> usize {
        self.handles.iter().flatten().count()
    }

    /// How many operations were started, or tried to.
    pub(super) fn started(&self) -> u64 {
        self.endings.len() as u64
    }

    pub(super) fn ending(&self, id: OperationId) -> Option<Ending> {
        *self.endings.get(usize::try_from(id).ok()?)?
    }

    pub(super) fn describe_owned(&self) -> String {
        let mut text = String::new();
        for (id, operation) in self.operations.iter().filter(|(_, it)| !it.released) {
            let kind = self.objects[operation.object].kind;
            let _ = write!(text, "\n  operation {id}: {:?} on a {kind:?}", operation.call);
        }
        text
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.keep_leaks();
    }
}
