//! A completion port and the rules by which it is used.
//!
//! Everything here is said in terms of [`Nt`], so it compiles, and can be tested, on every system.

pub(crate) mod medium;
pub(crate) mod packet;
mod sequence;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use windows_sys::Wdk::Storage::FileSystem::{
    FILE_SYNCHRONOUS_IO_ALERT, FILE_SYNCHRONOUS_IO_NONALERT,
};
use windows_sys::Win32::Foundation::{
    ERROR_INVALID_HANDLE, ERROR_INVALID_PARAMETER, STATUS_ACCESS_DENIED, STATUS_CANCELLED,
    STATUS_INVALID_HANDLE, STATUS_OBJECT_TYPE_MISMATCH, WAIT_TIMEOUT,
};
use windows_sys::Win32::Networking::WinSock::WSAENOTCONN;
use windows_sys::Win32::System::IO::OVERLAPPED_ENTRY;
use windows_sys::Win32::System::WindowsProgramming::{
    FILE_SKIP_COMPLETION_PORT_ON_SUCCESS, FILE_SKIP_SET_EVENT_ON_HANDLE,
};

use self::medium::Medium;
use self::packet::Packet;
use self::sequence::Sequence;
use super::call::{Call, Refusal};
use super::{BindError, Binding, Identity, Mark, Sink};
use crate::error::NtStatus;
use crate::handle::{EntryId, HandleKind, RawHandle};
use crate::iocp::Outcome;
use crate::nt::{Nt, Win32Error};
use crate::op::Closing;
use crate::operation::{Ending, SlotRef, State};
use crate::time::FOR_EVER_MS;

/// How many packets one call may take off the port.
const BATCH: usize = 128;

/// The key of a wake-up. No registration has it: those are never all ones.
const WAKE_KEY: usize = usize::MAX;

/// One completion port (SPEC W5).
pub(crate) struct CompletionPort<N: Nt> {
    nt: N,
    port: Arc<N::Port>,
    /// Reused for every call, so that dequeuing allocates nothing.
    entries: RefCell<Box<[OVERLAPPED_ENTRY; BATCH]>>,
    /// By the index of their registration.
    bound: RefCell<Vec<Bound>>,
    /// The indices of the files of which Windows has an operation that moves their position.
    busy: RefCell<Vec<usize>>,
    /// Operations that have ended without a packet, and how, where their status word does not say so.
    ended: RefCell<VecDeque<(SlotRef, Option<Ending>)>>,
}

/// A handle that was bound to the port.
struct Bound {
    medium: Medium,
    /// What ends at once leaves no packet.
    skips: bool,
    sequence: Sequence,
    /// The last wait for readiness that Windows was asked for, and which use of its slot that was.
    poll: Option<(SlotRef, u32)>,
}

impl Bound {
    /// Windows is at such a wait, which nobody has cancelled.
    fn polls(&self) -> bool {
        self.poll.is_some_and(|(slot, generation)| {
            slot.generation() == generation
                && matches!(slot.state(), State::Exposed | State::InFlight)
                && slot.is_kernels()
        })
    }
}

impl<N: Nt> CompletionPort<N> {
    pub(crate) fn new(nt: N) -> io::Result<Self> {
        let port = Arc::new(nt.create_port()?);
        let entries = RefCell::new(Box::new([OVERLAPPED_ENTRY::default(); BATCH]));
        Ok(Self {
            nt,
            port,
            entries,
            bound: RefCell::default(),
            busy: RefCell::default(),
            ended: RefCell::default(),
        })
    }

    /// The port itself, for what may outlive the queue: a notifier keeps it open, so that a wake-up
    /// is never posted to a handle value that has come back as something else.
    pub(crate) fn port(&self) -> &Arc<N::Port> {
        &self.port
    }

    /// Binds `handle` to the port under the registration's key. Where it fails, nothing is bound.
    pub(crate) fn bind(
        &self,
        handle: RawHandle,
        kind: HandleKind,
        entry: EntryId,
        keep_packets: bool,
    ) -> Result<Binding, BindError> {
        match self.nt.associate(&self.port, handle, entry.key()) {
            Ok(()) => {
                let (medium, may_skip) = self.look_at(handle, kind);
                let binding = self.set_modes(handle, may_skip && !keep_packets);
                self.remember(entry, medium, binding.skips);
                Ok(binding)
            }
            Err(code) => Err(self.explain(handle, code)),
        }
    }

    /// Windows answers ERROR_INVALID_PARAMETER to three different mistakes (pitfall 5).
    fn explain(&self, handle: RawHandle, code: Win32Error) -> BindError {
        match code {
            ERROR_INVALID_HANDLE => BindError::Invalid,
            ERROR_INVALID_PARAMETER => match self.nt.file_mode(handle) {
                Err(STATUS_INVALID_HANDLE | STATUS_OBJECT_TYPE_MISMATCH) => BindError::Invalid,
                Ok(mode)
                    if mode & (FILE_SYNCHRONOUS_IO_ALERT | FILE_SYNCHRONOUS_IO_NONALERT) != 0 =>
                {
                    BindError::Synchronous
                }
                Ok(_) => BindError::AlreadyBound,
                Err(_) => BindError::Os(code),
            },
            code => BindError::Os(code),
        }
    }

    /// Turns on the notification modes that are safe for the handle (SPEC W6).
    ///
    /// Failing is no reason to undo the binding (pitfall 30): packets then come for everything, and
    /// the registration says so.
    fn set_modes(&self, handle: RawHandle, skip: bool) -> Binding {
        // The first mode is wanted for every handle and doubles as the mark: a new file object
        // starts with none.
        let wanted = if skip {
            FILE_SKIP_SET_EVENT_ON_HANDLE | FILE_SKIP_COMPLETION_PORT_ON_SUCCESS
        } else {
            FILE_SKIP_SET_EVENT_ON_HANDLE
        };
        let set = self.nt.set_notification_modes(handle, wanted as u8);
        // Modes are for ever, per file object, and shared by its duplicates (pitfall 54): what is
        // on now may have been turned on before we came, so it is asked for, not assumed.
        match self.nt.notification_modes(handle) {
            Ok(modes) => Binding {
                skips: modes & FILE_SKIP_COMPLETION_PORT_ON_SUCCESS != 0,
                mark: Mark::Mode(Ok(modes & FILE_SKIP_SET_EVENT_ON_HANDLE != 0)),
            },
            Err(status) => Binding {
                skips: set && wanted & FILE_SKIP_COMPLETION_PORT_ON_SUCCESS != 0,
                mark: Mark::Mode(Err(status)),
            },
        }
    }

    /// What the handle leads to, and whether packets may be skipped: which is wrong for sockets of
    /// layered providers (pitfall 2) and in doubt for datagrams (pitfall 1).
    fn look_at(&self, handle: RawHandle, kind: HandleKind) -> (Medium, bool) {
        match kind {
            HandleKind::Handle => (Medium::of_file_type(self.nt.file_type(handle)), true),
            HandleKind::Socket => {
                let protocol = self.nt.socket_protocol(handle);
                let may_skip =
                    protocol.is_some_and(|protocol| protocol.ifs_handles && !protocol.datagrams);
                (Medium::of_socket(protocol), may_skip)
            }
        }
    }

    fn remember(&self, entry: EntryId, medium: Medium, skips: bool) {
        let (mut bound, index) = (self.bound.borrow_mut(), entry.index());
        let new = || Bound { medium, skips, sequence: Sequence::default(), poll: None };
        if index >= bound.len() {
            bound.resize_with(index + 1, new);
        }
        bound[index] = new();
    }

    /// Takes `handle` off the port. Only with nothing in flight (pitfall 23): what is in flight keeps
    /// it bound.
    pub(crate) fn unbind(&self, handle: RawHandle, _: EntryId, left: bool) {
        if !left {
            self.nt.dissociate(handle);
        }
    }

    /// Gives up what waits for its turn under a registration that ends: also one whose handle turned out
    /// to be closed, whose value may be another file's now. What is with Windows ends by itself, and moves
    /// nothing; its memory may be another operation's by then.
    pub(crate) fn forget(&self, entry: EntryId) {
        let mut bound = self.bound.borrow_mut();
        let Some(bound) = bound.get_mut(entry.index()) else { return };
        let mut sequence = std::mem::take(&mut bound.sequence);
        self.busy.borrow_mut().retain(|&index| index != entry.index());
        while let Some((slot, _)) = sequence.next() {
            self.end_unstarted(slot);
        }
    }

    fn end_unstarted(&self, slot: SlotRef) {
        let cancelled = Ending { status: NtStatus(STATUS_CANCELLED), bytes: 0 };
        self.ended.borrow_mut().push_back((slot, Some(cancelled)));
    }

    /// Whether `handle` still names the file object that was bound (pitfalls 29 and 34).
    pub(crate) fn identity(&self, handle: RawHandle, mark: Mark) -> Identity {
        #[cfg_attr(not(unix), allow(irrefutable_let_patterns))]
        let Mark::Mode(mark) = mark else { return Identity::Gone };
        match (mark, self.nt.notification_modes(handle)) {
            (Ok(true), Ok(modes)) if modes & FILE_SKIP_SET_EVENT_ON_HANDLE == 0 => Identity::Gone,
            // The second: an event, say. What was bound is a file.
            (_, Err(STATUS_INVALID_HANDLE | STATUS_OBJECT_TYPE_MISMATCH)) => Identity::Gone,
            // A handle has the right to ask or not, and it never changes.
            (Ok(_), Err(STATUS_ACCESS_DENIED)) | (Err(STATUS_ACCESS_DENIED), Ok(_)) => {
                Identity::Gone
            }
            _ => Identity::Same,
        }
    }

    /// Asks for an operation to be cancelled. False where there was nothing to cancel: it has
    /// ended, or was never started (pitfall 17).
    pub(crate) fn cancel(&self, slot: SlotRef) -> bool {
        if let Some(entry) = slot.entry() {
            let mut bound = self.bound.borrow_mut();
            if bound[entry.index()].sequence.give_up(slot) {
                self.end_unstarted(slot);
                return true;
            }
        }
        self.nt.cancel(slot.handle(), slot.overlapped()).is_ok()
    }

    /// Whether Windows has an operation, or never had it: it was given up while it waited for its turn.
    pub(crate) fn has(&self, slot: SlotRef) -> bool {
        !self.ended.borrow().iter().any(|&(ended, _)| ended == slot)
    }

    /// Starts a portable call as the operation in `slot`.
    ///
    /// # Safety
    /// What `call` points to stays valid, and nobody else's, until the operation's end.
    pub(crate) unsafe fn submit(&self, slot: SlotRef, call: Call) -> Outcome {
        if let Call::Close { closing } = call {
            // SAFETY: passed on.
            slot.end(unsafe { Closing::close(closing) });
            return Outcome::FINISHED;
        }
        let entry = slot.entry().expect("a portable call is made under a registration");
        let index = entry.index();
        let medium = self.bound.borrow()[index].medium;
        let is_ready = matches!(call, Call::Ready { .. });
        // A listener has nothing to receive, which stands in for this wait elsewhere: Windows says so, Wine
        // waits for ever.
        if is_ready && medium == Medium::Stream && self.nt.listens(slot.handle()) {
            // SAFETY: passed on.
            return unsafe { self.wait_until_ready(index, slot, call) };
        }
        // SAFETY: passed on.
        unsafe {
            let fitted = match medium.fit(call) {
                Ok(Call::Ready { .. }) => return self.wait_until_ready(index, slot, call),
                Ok(fitted) => fitted,
                Err(outcome) => return outcome,
            };
            if medium == Medium::File && matches!(fitted, Call::Read { .. } | Call::Write { .. }) {
                return self.submit_in_turn(index, slot, fitted);
            }
            let outcome = self.start(slot, fitted);
            // Nothing to receive from yet.
            if is_ready && outcome.is_error(WSAENOTCONN as u32) {
                return self.wait_until_ready(index, slot, call);
            }
            outcome
        }
    }

    /// Has Windows wait until a socket is ready, unless it does already.
    ///
    /// # Safety
    /// As `submit`.
    unsafe fn wait_until_ready(&self, index: usize, slot: SlotRef, call: Call) -> Outcome {
        if self.bound.borrow()[index].polls() {
            return Outcome::refused(Refusal::OneWait);
        }
        self.bound.borrow_mut()[index].poll = Some((slot, slot.generation()));
        // SAFETY: passed on.
        unsafe { self.start(slot, call) }
    }

    /// Has a file read or written where the last such operation ended, once that is known.
    ///
    /// # Safety
    /// As `submit`.
    unsafe fn submit_in_turn(&self, index: usize, slot: SlotRef, call: Call) -> Outcome {
        let mut bound = self.bound.borrow_mut();
        let sequence = &mut bound[index].sequence;
        if !sequence.settle() || sequence.is_waited_for() {
            sequence.wait(slot, call);
            return Outcome::PENDING;
        }
        // SAFETY: passed on.
        let outcome = unsafe { self.start_here(sequence, slot, call) };
        let mut busy = self.busy.borrow_mut();
        if !sequence.settle() && !busy.contains(&index) {
            busy.push(index);
        }
        outcome
    }

    /// Starts an operation at the file's position, which moves at once if the operation has ended.
    ///
    /// # Safety
    /// As `submit`.
    unsafe fn start_here(&self, sequence: &mut Sequence, slot: SlotRef, call: Call) -> Outcome {
        slot.set_place(sequence.position());
        // SAFETY: passed on.
        let outcome = unsafe { self.start(slot, call) };
        if outcome.failed_status().is_none() || !slot.is_kernels() {
            sequence.begin(slot);
            sequence.settle();
        }
        outcome
    }

    /// Moves on the positions of the files whose operations have ended, and starts the next ones. Comes
    /// before anybody is told of those ends, because what has been told of may be gone.
    fn take_turns(&self) {
        let mut bound = self.bound.borrow_mut();
        self.busy.borrow_mut().retain(|&index| {
            let Bound { sequence, skips, .. } = &mut bound[index];
            while sequence.settle() {
                let Some((slot, call)) = sequence.next() else { return false };
                // SAFETY: the operation has waited, so what it points to is what it was when it was
                // submitted.
                let outcome = unsafe { self.start_here(sequence, slot, call) };
                let how = match (slot.is_kernels(), outcome.failed_status()) {
                    (true, Some(status)) => Some(Ending { status, bytes: 0 }),
                    (false, Some(_)) => None,
                    (false, None) if *skips && outcome == Outcome::FINISHED => None,
                    // A packet will tell.
                    _ => continue,
                };
                self.ended.borrow_mut().push_back((slot, how));
            }
            true
        });
    }

    /// # Safety
    /// As `submit`.
    unsafe fn start(&self, slot: SlotRef, call: Call) -> Outcome {
        // SAFETY: passed on; the OVERLAPPED and the flags are as good as what the call points to.
        unsafe { self.nt.start(slot.handle(), call, slot.overlapped(), slot.flags()) }
    }

    fn next_end(&self) -> Option<(SlotRef, Option<Ending>)> {
        self.ended.borrow_mut().pop_front()
    }

    /// How long a look may be put off, in ms.
    pub(crate) fn look_within(&self) -> u32 {
        if self.ended.borrow().is_empty() { FOR_EVER_MS } else { 0 }
    }

    /// Takes one batch off the port and gives each packet to `sink`.
    pub(crate) fn dequeue(&self, timeout_ms: u32, sink: &mut impl Sink) -> io::Result<()> {
        let mut entries = self.entries.borrow_mut();
        let timeout_ms = timeout_ms.min(self.look_within());
        let filled = match self.nt.dequeue(&self.port, &mut entries[..], timeout_ms) {
            Ok(filled) => filled,
            Err(WAIT_TIMEOUT) => 0,
            Err(code) => return Err(io::Error::from_raw_os_error(code as i32)),
        };
        if !self.busy.borrow().is_empty() {
            self.take_turns();
        }
        for entry in &entries[..filled] {
            sink.packet(Packet::from(entry));
        }
        while let Some((slot, how)) = self.next_end() {
            if let Some(ending) = how {
                slot.end(ending);
            }
            sink.ended(slot, slot.read_ending());
        }
        Ok(())
    }

    pub(crate) fn now(&self) -> std::time::Duration {
        self.nt.now()
    }

    pub(crate) fn coarse_now(&self) -> std::time::Duration {
        self.nt.coarse_now()
    }
}

/// Queues a wake-up on `port`.
pub(crate) fn post_wake<N: Nt>(port: &N::Port) -> io::Result<()> {
    N::post(port, WAKE_KEY).map_err(|code| io::Error::from_raw_os_error(code as i32))
}
