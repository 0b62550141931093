//! One operation in flight, and the slab they live in.
//!
//! An operation owns what the kernel writes to: the OVERLAPPED and the caller's state (buffers)
//! stand in one [`Slot`] that never moves. Futures hold a [`Ticket`], not the memory. Rule 0: **a
//! slot whose status word is still the kernel's is never freed, reused or referenced**; when its
//! queue ends first, the slot's chunk is leaked.
//!
//! ```text
//!            expose              watch                packet
//!   Free ─> Idle ──> Exposed ──────────> InFlight ──────────────> Done ──> Free
//!             ^         │                   │ cancel               ^  └──> Retired ─> Free
//!             └─ reset ─┤ drop              v          packet      │ (a packet may still come)
//!                       └──> Orphaned <── Cancelling ──────────────┘
//!                               └─ packet: the state is dropped, then Free
//! ```
//!
//! On Unix a portable operation goes from Idle to InFlight at once (`launch`).
//!
//! User code runs where a state is dropped ([`dispose`], a ticket, the slab) or a waker cloned, and nowhere else.

use std::alloc::{self, Layout};
use std::any::type_name;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::io;
use std::marker::PhantomData;
use std::mem::{align_of, size_of};
use std::ops::Deref;
use std::panic::Location;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use windows_sys::Win32::Foundation::{STATUS_PENDING, STATUS_SUCCESS};
use windows_sys::Win32::System::IO::OVERLAPPED;

use crate::continuation::{Continuation, Parked};
use crate::error::NtStatus;
use crate::handle::{EntryId, RawHandle};
#[cfg(unix)]
use crate::kernel::call::Call;
use crate::notify::TaskId;
use crate::queue::Inner;

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// On the free list.
    Free,
    /// The caller's alone: the kernel has not seen it.
    Idle,
    /// The OVERLAPPED's address was given out, so it may be in flight; nobody waits yet.
    Exposed,
    /// In flight and waited for.
    InFlight,
    /// As `InFlight`, and a cancel was asked for.
    Cancelling,
    /// Nobody wants the result; the memory stays until the kernel is done.
    Orphaned,
    /// Ended; the caller's state has not been taken yet.
    Done,
    /// Ended and taken; kept because a packet may still come (pitfall 55).
    Retired,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) status: NtStatus,
    pub(crate) bytes: u32,
}

impl Ending {
    /// Bytes moved, or the error.
    #[inline]
    pub(crate) fn result(self) -> io::Result<u32> {
        if self.status.0 == STATUS_SUCCESS {
            return Ok(self.bytes);
        }
        self.status.to_error().map_or(Ok(self.bytes), Err)
    }
}

/// What is to be known of a type of which a slot holds a state.
struct Kind {
    drop_state: unsafe fn(SlotRef),
    name: fn() -> &'static str,
}

impl Kind {
    const fn of<T: 'static>() -> &'static Self {
        const { &Self { drop_state: drop_state::<T>, name: type_name::<T> } }
    }
}

/// What stands before the caller's state in a slot's memory.
#[repr(C, align(16))]
pub(crate) struct Slot {
    /// First, so that the OVERLAPPED's address is the slot's. The kernel writes here.
    overlapped: UnsafeCell<OVERLAPPED>,
    state: Cell<State>,
    /// A packet for this operation may still be queued.
    packet_due: Cell<bool>,
    /// The call said that the operation is in flight, so its end will come.
    started: Cell<bool>,
    /// The slot is one of those that `running` counts.
    counted: Cell<bool>,
    /// The handle was closed under the operation.
    closed_under: Cell<bool>,
    /// It is in its registration's list.
    linked: Cell<bool>,
    /// On Unix: the ring waits until the handle is ready, to make the call again.
    #[cfg(unix)]
    polls: Cell<bool>,
    /// How often the ring gave the call back undone, or it would have blocked.
    #[cfg(unix)]
    returns: Cell<u8>,
    class: u8,
    /// Counts how often the slot was freed, so that a stale ticket is told apart.
    generation: Cell<u32>,
    entry: Cell<EntryId>,
    handle: Cell<RawHandle>,
    /// Neighbours in the registration's list, or (`next`) on the free list.
    previous: Cell<Option<SlotRef>>,
    next: Cell<Option<SlotRef>>,
    /// Who waits: a task of the queue's, or [`TaskId::OTHER`] with what does in `waiter`.
    task: Cell<TaskId>,
    waiter: Cell<Option<Continuation>>,
    /// The type of the caller's state, which is there but in Free and Retired.
    kind: Cell<&'static Kind>,
    /// How it ended, when it has.
    ending: Cell<Ending>,
    caller: Cell<&'static Location<'static>>,
    since: Cell<Duration>,
    /// Where Winsock writes a receive's flags.
    #[cfg(windows)]
    flags: UnsafeCell<u32>,
    /// On Unix: what the operation is, for the kernel's room, and its neighbours where it waits for its turn.
    #[cfg(unix)]
    call: Cell<Call>,
    #[cfg(unix)]
    before: Cell<Option<SlotRef>>,
    #[cfg(unix)]
    behind: Cell<Option<SlotRef>>,
}

/// The address of a slot of the queue's slab.
///
/// Only [`Slab`] makes one, and a chunk is freed only with the slab, which lives in the queue that
/// every holder of a `SlotRef` keeps alive or is part of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotRef(NonNull<Slot>);

impl std::fmt::Debug for SlotRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SlotRef({:p}, {:?})", self.0, self.state())
    }
}

impl Deref for SlotRef {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        // SAFETY: the slot's header was initialised when its chunk was made, and the chunk lives as
        // long as the slab (see the type). Everything in the header that changes is in a cell, and
        // what the kernel writes to is in UnsafeCells nobody forms a reference into.
        unsafe { self.0.as_ref() }
    }
}

impl Slot {
    pub(crate) fn state(&self) -> State {
        self.state.get()
    }

    pub(crate) fn packet_due(&self) -> bool {
        self.packet_due.get()
    }

    pub(crate) fn is_started(&self) -> bool {
        self.started.get()
    }

    pub(crate) fn is_counted(&self) -> bool {
        self.counted.get()
    }

    pub(crate) fn entry(&self) -> Option<EntryId> {
        self.entry.get().exists()
    }

    pub(crate) fn is_linked(&self) -> bool {
        self.linked.get()
    }

    pub(crate) fn handle(&self) -> RawHandle {
        self.handle.get()
    }

    pub(crate) fn closed_under(&self) -> bool {
        self.closed_under.get()
    }

    pub(crate) fn set_closed_under(&self) {
        self.closed_under.set(true);
    }

    pub(crate) fn kind(&self) -> &'static str {
        (self.kind.get().name)()
    }

    pub(crate) fn caller(&self) -> &'static Location<'static> {
        self.caller.get()
    }

    pub(crate) fn since(&self) -> Duration {
        self.since.get()
    }

    pub(crate) fn next(&self) -> Option<SlotRef> {
        self.next.get()
    }

    /// The one that waited until now comes back.
    pub(crate) fn set_waiter(&self, waiter: Continuation) -> Option<Parked> {
        let before = self.take_waiter();
        self.waiter.set(Some(waiter));
        self.task.set(TaskId::OTHER);
        before
    }

    /// True where something else than a task waited until now, which is to be taken then.
    #[inline]
    pub(crate) fn set_task(&self, task: TaskId) -> bool {
        self.task.replace(task) == TaskId::OTHER
    }

    /// What waited until a task did.
    pub(crate) fn take_replaced(&self) -> Option<Continuation> {
        self.waiter.take()
    }

    /// The task that waits, if it is one.
    #[inline]
    pub(crate) fn take_task(&self) -> Option<TaskId> {
        let task = self.task.get();
        if !task.is_name() {
            return None;
        }
        self.task.set(TaskId::NONE);
        Some(task)
    }

    pub(crate) fn take_waiter(&self) -> Option<Parked> {
        match self.task.replace(TaskId::NONE) {
            TaskId::NONE => None,
            TaskId::OTHER => self.waiter.take().map(Parked::Other),
            task => Some(Parked::Task(task)),
        }
    }

    /// The address the kernel is given.
    pub(crate) fn overlapped(&self) -> *mut OVERLAPPED {
        self.overlapped.get()
    }

    /// Which use of the slot this is.
    pub(crate) fn generation(&self) -> u32 {
        self.generation.get()
    }

    /// Where Winsock reads and writes a call's flags. Null on other systems.
    pub(crate) fn flags(&self) -> *mut u32 {
        #[cfg(windows)]
        return self.flags.get();
        #[cfg(not(windows))]
        std::ptr::null_mut()
    }

    /// The status word, which the kernel writes last.
    fn status(&self) -> NtStatus {
        // SAFETY: the word is in our slot, aligned, and accessed by nobody but the kernel and
        // through atomics. Acquire pairs with the kernel's writes of the buffers before it.
        let word = unsafe {
            AtomicUsize::from_ptr(&raw mut (*self.overlapped.get()).Internal)
                .load(Ordering::Acquire)
        };
        // The status is the low 32 bits of a pointer-sized union.
        NtStatus(word as u32 as i32)
    }

    /// Whether the status word says that the kernel may still write here.
    pub(crate) fn is_kernels(&self) -> bool {
        self.status().0 == STATUS_PENDING
    }

    /// How the operation ended, once the status word has left the kernel's hands.
    pub(crate) fn read_ending(&self) -> Ending {
        let status = self.status();
        debug_assert!(status.0 != STATUS_PENDING);
        // SAFETY: the status word is final, so the kernel writes here no more; the word is aligned
        // and read through an atomic.
        let bytes = unsafe {
            AtomicUsize::from_ptr(&raw mut (*self.overlapped.get()).InternalHigh)
                .load(Ordering::Relaxed)
        };
        // No portable call moves more than 4 GiB; a driver that says so is cut, not wrapped.
        Ending { status, bytes: u32::try_from(bytes).unwrap_or(u32::MAX) }
    }

    /// How a finished operation ended.
    pub(crate) fn ending(&self) -> Option<Ending> {
        matches!(self.state(), State::Done | State::Retired).then(|| self.ending.get())
    }

    /// What an operation that has ended without an error answered with.
    #[inline]
    pub(crate) fn success(&self) -> Option<u32> {
        if self.state() != State::Done {
            return None;
        }
        let Ending { status, bytes } = self.ending.get();
        if status.0 == STATUS_SUCCESS { Some(bytes) } else { None }
    }

    fn reset_overlapped(&self) {
        // SAFETY: called only on a new slot, which the kernel does not have.
        unsafe {
            self.overlapped
                .get()
                .write(OVERLAPPED { Internal: STATUS_PENDING as usize, ..OVERLAPPED::default() });
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Changes of state, one function each. What they need of the registration's list is the caller's.

impl SlotRef {
    /// Idle -> Exposed: the address leaves our hands.
    pub(crate) fn expose(self, entry: Option<EntryId>, handle: RawHandle) {
        debug_assert!(matches!(self.state(), State::Idle));
        self.entry.set(entry.unwrap_or(EntryId::NONE));
        self.handle.set(handle);
        self.started.set(false);
        self.packet_due.set(true);
        self.state.set(State::Exposed);
    }

    /// The registration of an operation that was started before its handle was registered.
    pub(crate) fn adopt(self, entry: EntryId) {
        debug_assert!(self.entry().is_none());
        self.entry.set(entry);
    }

    /// Exposed -> Idle: the call is known not to have started anything, or never to have been made.
    /// The slot is in no registration's list any more.
    pub(crate) fn reset(self) {
        debug_assert!(matches!(self.state(), State::Exposed));
        self.entry.set(EntryId::NONE);
        self.packet_due.set(false);
        self.closed_under.set(false);
        // The place in the file stays, so that the operation can be started again (pitfall 41).
        // SAFETY: the kernel does not have the slot (see above).
        unsafe {
            (*self.overlapped.get()).Internal = STATUS_PENDING as usize;
            (*self.overlapped.get()).InternalHigh = 0;
        }
        self.state.set(State::Idle);
    }

    /// The call said that the operation is in flight.
    pub(crate) fn set_started(self) {
        self.started.set(true);
    }

    /// Exposed -> InFlight: somebody waits.
    pub(crate) fn watch(self, caller: &'static Location<'static>) {
        debug_assert!(matches!(self.state(), State::Exposed));
        self.caller.set(caller);
        self.state.set(State::InFlight);
    }

    /// Who makes the operation, and when.
    #[inline(always)]
    pub(crate) fn mark(self, caller: &'static Location<'static>, since: Duration) {
        self.caller.set(caller);
        self.since.set(since);
    }

    /// Idle -> InFlight: a portable call, which its kernel is about to be given. Somebody waits.
    #[cfg(unix)]
    #[inline(always)]
    pub(crate) fn launch(self, entry: EntryId, handle: RawHandle) {
        debug_assert!(matches!(self.state(), State::Idle));
        self.entry.set(entry);
        self.handle.set(handle);
        self.started.set(true);
        self.state.set(State::InFlight);
        // SAFETY: the kernel does not have the slot.
        unsafe { (*self.overlapped.get()).Internal = STATUS_PENDING as usize };
    }

    /// Idle -> InFlight: a handle is to be closed, which is registered no more. Somebody waits.
    pub(crate) fn launch_alone(self, handle: RawHandle) {
        debug_assert!(matches!(self.state(), State::Idle));
        self.entry.set(EntryId::NONE);
        self.handle.set(handle);
        self.started.set(true);
        self.state.set(State::InFlight);
    }

    /// Leaves `waker` to be woken at the end, unless it is there already. Cloning one runs user code.
    #[inline(never)]
    pub(crate) fn park_waker(self, waker: &Waker) {
        let parked = self.take_waiter();
        match parked {
            Some(Parked::Other(Continuation::Waker(parked))) if parked.will_wake(waker) => {
                drop(self.set_waiter(parked.into()));
            }
            parked => {
                let late = Continuation::from(waker.clone());
                // That may have polled the queue. Of what has ended nobody takes a waker any more.
                let unused = match self.state() {
                    State::Done => Some(late.into()),
                    _ => self.set_waiter(late),
                };
                drop((parked, unused));
            }
        }
    }

    /// InFlight -> Cancelling.
    pub(crate) fn cancelling(self) {
        if self.state() == State::InFlight {
            self.state.set(State::Cancelling);
        }
    }

    /// Exposed, InFlight, Cancelling -> Orphaned: the ticket is gone, the kernel is not.
    pub(crate) fn orphan(self) {
        self.state.set(State::Orphaned);
    }

    /// Exposed, InFlight, Cancelling, Orphaned -> Done. The status word is final.
    pub(crate) fn finish(self) {
        self.finish_with(self.read_ending());
    }

    /// As [`finish`](Self::finish), for a call that ended at once without touching the status word.
    pub(crate) fn finish_with(self, ending: Ending) {
        self.ending.set(ending);
        self.state.set(State::Done);
    }

    /// The packet that was due has come, or is known never to come.
    pub(crate) fn no_packet_due(self) {
        self.packet_due.set(false);
    }

    /// Done, Idle -> Retired: the state was taken, a packet may still come.
    pub(crate) fn retire(self) {
        self.state.set(State::Retired);
    }

    pub(crate) fn set_counted(self, counted: bool) {
        self.counted.set(counted);
    }

    pub(crate) fn link(self, head: &mut Option<SlotRef>) {
        debug_assert!(!self.is_linked());
        self.linked.set(true);
        self.previous.set(None);
        self.next.set(*head);
        if let Some(next) = *head {
            next.previous.set(Some(self));
        }
        *head = Some(self);
    }

    pub(crate) fn unlink(self, head: &mut Option<SlotRef>) {
        debug_assert!(self.is_linked());
        self.linked.set(false);
        let (previous, next) = (self.previous.take(), self.next.take());
        match previous {
            Some(previous) => previous.next.set(next),
            None => *head = next,
        }
        if let Some(next) = next {
            next.previous.set(previous);
        }
    }

    /// Ends an operation that the kernel does not have, or, on Unix, does not have any more. The last thing
    /// a room does with it.
    pub(crate) fn end(self, ending: Ending) {
        debug_assert!(self.is_kernels());
        // SAFETY: the words are in our slot, aligned, and nobody else's (see above).
        unsafe {
            (*self.overlapped.get()).InternalHigh = ending.bytes as usize;
            (*self.overlapped.get()).Internal = ending.status.0 as u32 as usize;
        }
    }

    /// Marks where in a file the operation takes place, before it is exposed.
    pub(crate) fn set_offset(self, offset: u64) {
        debug_assert!(matches!(self.state(), State::Idle));
        self.set_place(offset);
    }

    /// As `set_offset`, also when it is about to be started: over the full 64 bits (pitfall 22).
    pub(crate) fn set_place(self, offset: u64) {
        debug_assert!(self.is_kernels());
        // SAFETY: the operation was not started yet, so only we write here.
        unsafe {
            let place = &raw mut (*self.overlapped.get()).Anonymous.Anonymous;
            (*place).Offset = offset as u32;
            (*place).OffsetHigh = (offset >> 32) as u32;
        }
    }
}

// ---------------------------------------------------------------------------------------------
// What the rooms of Unix keep here: there the status word is written by us, when the kernel says so.

#[cfg(unix)]
impl SlotRef {
    /// A number that names the slot to the kernel. Its lowest bits are zero.
    pub(crate) fn address(self) -> usize {
        self.0.as_ptr().expose_provenance()
    }

    /// The slot that was named by [`address`](Self::address).
    ///
    /// # Safety
    /// The number is that of a slot whose queue is still there.
    pub(crate) unsafe fn from_address(address: usize) -> Self {
        // SAFETY: the address of a slot is not null, and the slot is still there (see above).
        Self(unsafe { NonNull::new_unchecked(std::ptr::with_exposed_provenance_mut(address)) })
    }

    #[inline]
    pub(crate) fn call(self) -> Call {
        self.call.get()
    }

    /// Where a receive puts what comes, and how much there is room for.
    #[inline]
    pub(crate) fn receive(self) -> Option<(*mut u8, usize)> {
        match self.call.get() {
            Call::Receive { at, length } => Some((at, length)),
            _ => None,
        }
    }

    pub(crate) fn set_call(self, call: Call) {
        self.call.set(call);
    }

    pub(crate) fn polls(self) -> bool {
        self.polls.get()
    }

    /// Counts that the ring gave the call back undone, or that it would have blocked. False where that was too often to
    /// go on like this.
    pub(crate) fn may_return(self) -> bool {
        const OFTEN: u8 = 100;
        self.returns.set(self.returns.get().saturating_add(1));
        self.returns.get() < OFTEN
    }

    pub(crate) fn set_polls(self, polls: bool) {
        self.polls.set(polls);
    }

    pub(crate) fn before(self) -> Option<SlotRef> {
        self.before.get()
    }

    pub(crate) fn set_before(self, slot: Option<SlotRef>) {
        self.before.set(slot);
    }

    pub(crate) fn behind(self) -> Option<SlotRef> {
        self.behind.get()
    }

    pub(crate) fn set_behind(self, slot: Option<SlotRef>) {
        self.behind.set(slot);
    }
}

// ---------------------------------------------------------------------------------------------
// The caller's state.

/// States up to this alignment stand in the slot itself.
const INLINE_ALIGN: usize = align_of::<Slot>();

/// How much state a slot of each class holds. Larger or over-aligned state is boxed, which is the
/// one allocation an operation can cost; buffers behind a pointer (`Vec`, `Box`) never are.
const CLASSES: [usize; 4] = [64, 256, 1024, 4096];

const fn is_boxed<T>() -> bool {
    size_of::<T>() > CLASSES[CLASSES.len() - 1] || align_of::<T>() > INLINE_ALIGN
}

const fn class_of<T>() -> usize {
    let mut class = 0;
    if !is_boxed::<T>() {
        while CLASSES[class] < size_of::<T>() {
            class += 1;
        }
    }
    class
}

impl SlotRef {
    fn payload(self) -> *mut u8 {
        // SAFETY: every slot's memory is a header followed by at least CLASSES[0] bytes, and the
        // pointer was derived from the whole chunk.
        unsafe { self.0.as_ptr().cast::<u8>().add(size_of::<Slot>()) }
    }

    /// Where the caller's state is.
    ///
    /// # Safety
    /// The slot holds a `T` (put there by [`Slab::allocate`]).
    unsafe fn state_ptr<T>(self) -> *mut T {
        if is_boxed::<T>() {
            // SAFETY: for such a T, `allocate` stored the box's pointer.
            unsafe { self.payload().cast::<*mut T>().read() }
        } else {
            self.payload().cast()
        }
    }

    /// Moves the caller's state out.
    ///
    /// # Safety
    /// The slot holds a `T`, and the kernel is done with it. It is released before anybody looks for its state
    /// again.
    #[inline(always)]
    unsafe fn take_state<T>(self) -> T {
        // SAFETY: the caller says there is a T, and gives the slot up.
        unsafe {
            let place = self.state_ptr::<T>();
            if is_boxed::<T>() { *Box::from_raw(place) } else { place.read() }
        }
    }
}

/// # Safety
/// As [`SlotRef::take_state`].
unsafe fn drop_state<T>(slot: SlotRef) {
    // SAFETY: passed on.
    drop(unsafe { slot.take_state::<T>() });
}

// ---------------------------------------------------------------------------------------------
// The slab.

struct Chunk {
    start: NonNull<u8>,
    layout: Layout,
    stride: usize,
}

/// The memory of a queue's operations: slots in a few sizes, in chunks that double.
#[derive(Default)]
pub(crate) struct Slab {
    chunks: [RefCell<Vec<Chunk>>; CLASSES.len()],
    free: [Cell<Option<SlotRef>>; CLASSES.len()],
}

/// There is no memory for another operation.
#[derive(Debug)]
pub(crate) struct OutOfMemory;

impl Slab {
    /// Free -> Idle: a slot that holds `state`. What is said of an operation in flight is whatever it was.
    #[inline(always)]
    fn allocate<T: 'static>(&self, state: T) -> Result<SlotRef, (OutOfMemory, T)> {
        let class = class_of::<T>();
        let slot = match self.free[class].get() {
            Some(slot) => slot,
            None => match self.grow(class) {
                Ok(slot) => slot,
                Err(error) => return Err((error, state)),
            },
        };
        self.free[class].set(slot.next.get());
        debug_assert!(slot.state() == State::Free);
        // SAFETY: a free slot is nobody's, and its class has room for a T (or for a pointer to one).
        unsafe {
            if is_boxed::<T>() {
                slot.payload().cast::<*mut T>().write(Box::into_raw(Box::new(state)));
            } else {
                slot.payload().cast::<T>().write(state);
            }
        }
        slot.kind.set(Kind::of::<T>());
        // One store for all of them.
        slot.state.set(State::Idle);
        slot.packet_due.set(false);
        slot.started.set(false);
        slot.counted.set(false);
        slot.closed_under.set(false);
        slot.linked.set(false);
        #[cfg(unix)]
        {
            slot.polls.set(false);
            slot.returns.set(0);
        }
        Ok(slot)
    }

    /// Back on the free list. The slot is in no registration's list and holds no state.
    #[inline]
    pub(crate) fn free(&self, slot: SlotRef) {
        debug_assert!(!slot.is_linked() && !slot.is_counted());
        debug_assert!(slot.state() != State::Free);
        let list = &self.free[usize::from(slot.class) % CLASSES.len()];
        slot.generation.set(slot.generation.get().wrapping_add(1));
        slot.state.set(State::Free);
        slot.next.set(list.get());
        list.set(Some(slot));
    }

    /// The slot whose OVERLAPPED is at `address`, if any slot's is.
    pub(crate) fn find(&self, address: usize) -> Option<SlotRef> {
        self.chunks.iter().find_map(|chunks| {
            // The newest chunk is as large as all before it, so it is the likeliest.
            chunks.borrow().iter().rev().find_map(|chunk| chunk.slot_at(address))
        })
    }

    /// Every slot that is not free.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(SlotRef)) {
        for chunks in &self.chunks {
            for chunk in chunks.borrow().iter() {
                chunk.slots().filter(|slot| slot.state() != State::Free).for_each(&mut visit);
            }
        }
    }

    fn grow(&self, class: usize) -> Result<SlotRef, OutOfMemory> {
        const FIRST: usize = 16;
        let mut chunks = self.chunks[class].borrow_mut();
        let count = FIRST.checked_shl(chunks.len() as u32).ok_or(OutOfMemory)?;
        chunks.try_reserve(1).map_err(|_| OutOfMemory)?;
        let chunk = Chunk::new(class, count)?;
        for slot in chunk.slots() {
            slot.next.set(self.free[class].get());
            self.free[class].set(Some(slot));
        }
        chunks.push(chunk);
        self.free[class].get().ok_or(OutOfMemory)
    }
}

impl Chunk {
    fn new(class: usize, count: usize) -> Result<Self, OutOfMemory> {
        let stride = (size_of::<Slot>() + CLASSES[class]).next_multiple_of(64);
        let size = stride.checked_mul(count).ok_or(OutOfMemory)?;
        let layout = Layout::from_size_align(size, 64).map_err(|_| OutOfMemory)?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc::alloc(layout) }).ok_or(OutOfMemory)?;
        let chunk = Self { start, layout, stride };
        for index in 0..count {
            let slot = Slot {
                overlapped: UnsafeCell::new(OVERLAPPED::default()),
                state: Cell::new(State::Free),
                packet_due: Cell::new(false),
                started: Cell::new(false),
                counted: Cell::new(false),
                closed_under: Cell::new(false),
                linked: Cell::new(false),
                class: class as u8,
                generation: Cell::new(0),
                entry: Cell::new(EntryId::NONE),
                handle: Cell::new(std::ptr::null_mut()),
                previous: Cell::new(None),
                next: Cell::new(None),
                task: Cell::new(TaskId::NONE),
                waiter: Cell::new(None),
                kind: Cell::new(Kind::of::<()>()),
                ending: Cell::new(ENDED_AT_ONCE),
                caller: Cell::new(Location::caller()),
                since: Cell::new(Duration::ZERO),
                #[cfg(windows)]
                flags: UnsafeCell::new(0),
                #[cfg(unix)]
                call: Cell::new(Call::Overlapped),
                #[cfg(unix)]
                before: Cell::new(None),
                #[cfg(unix)]
                behind: Cell::new(None),
                #[cfg(unix)]
                polls: Cell::new(false),
                #[cfg(unix)]
                returns: Cell::new(0),
            };
            // SAFETY: `index` is below `count`, so the slot lies in the new chunk, aligned because
            // start and stride are multiples of 64.
            unsafe { chunk.start.add(index * stride).cast::<Slot>().write(slot) };
        }
        Ok(chunk)
    }

    fn slots(&self) -> impl Iterator<Item = SlotRef> {
        (0..self.layout.size() / self.stride).map(|index| {
            // SAFETY: within the chunk, and initialised by `new`.
            SlotRef(unsafe { self.start.add(index * self.stride).cast() })
        })
    }

    fn slot_at(&self, address: usize) -> Option<SlotRef> {
        let offset = address.checked_sub(self.start.addr().get())?;
        if offset >= self.layout.size() || offset % self.stride != 0 {
            return None;
        }
        // SAFETY: within the chunk and at a slot's start, which `new` initialised.
        Some(SlotRef(unsafe { self.start.add(offset).cast() }))
    }
}

impl Drop for Slab {
    /// Runs user code (the drop of states whose operation has ended and nobody took).
    fn drop(&mut self) {
        for chunks in &self.chunks {
            for chunk in chunks.take() {
                let kernels = |slot: SlotRef| {
                    let state = slot.state();
                    !matches!(state, State::Free | State::Idle | State::Done | State::Retired)
                        && slot.is_kernels()
                };
                if chunk.slots().any(kernels) {
                    continue; // Leaked: rule 0.
                }
                for slot in chunk.slots() {
                    drop(slot.take_waiter());
                    if !matches!(slot.state(), State::Free | State::Retired) {
                        // SAFETY: the slot holds a state of this kind, and no slot of this chunk is the
                        // kernel's.
                        unsafe { (slot.kind.get().drop_state)(slot) };
                    }
                }
                // SAFETY: allocated in `Chunk::new` with this layout; nobody can have a SlotRef any
                // more, since the queue that owns the slab is being dropped.
                unsafe { alloc::dealloc(chunk.start.as_ptr(), chunk.layout) };
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Tickets.

/// The right to an operation's outcome: which slot, and which use of it.
///
/// The slot holds a `T` until the ticket takes it. Dropping a ticket gives the operation up:
/// whoever holds one decides what happens then (`Inner::abandon`).
pub(crate) struct Ticket<T: 'static> {
    /// None once the state was taken.
    queue: Option<Rc<Inner>>,
    slot: SlotRef,
    /// That the slot is still this ticket's follows from its states; where it costs nothing it is looked at.
    #[cfg(debug_assertions)]
    generation: u32,
    state: PhantomData<*mut T>,
}

impl<T: 'static> Ticket<T> {
    /// A new, idle operation that holds `state`.
    pub(crate) fn new(
        queue: &Rc<Inner>,
        state: T,
        caller: &'static Location<'static>,
    ) -> Result<Self, (OutOfMemory, T)> {
        let ticket = Self::for_launch(queue, state)?;
        ticket.slot.mark(caller, queue.clock());
        ticket.slot.reset_overlapped();
        Ok(ticket)
    }

    /// As `new`, for a portable call on Unix: the kernel never sees its OVERLAPPED, and what is to be known of it
    /// while it is in flight is said when it is launched.
    #[inline(always)]
    pub(crate) fn for_launch(queue: &Rc<Inner>, state: T) -> Result<Self, (OutOfMemory, T)> {
        let slot = queue.slab.allocate(state)?;
        Ok(Self {
            queue: Some(Rc::clone(queue)),
            slot,
            #[cfg(debug_assertions)]
            generation: slot.generation.get(),
            state: PhantomData,
        })
    }

    #[inline]
    pub(crate) fn queue(&self) -> &Rc<Inner> {
        self.queue.as_ref().expect("a ticket is used once")
    }

    /// The slot, which is this ticket's until the state is taken.
    #[inline]
    pub(crate) fn slot(&self) -> SlotRef {
        #[cfg(debug_assertions)]
        assert!(self.slot.generation.get() == self.generation, "a ticket outlived its operation");
        self.slot
    }

    /// What an operation that has ended without an error answered with.
    #[inline]
    pub(crate) fn success(&self) -> Option<u32> {
        self.slot().success()
    }

    /// Whether the operation has ended, or its queue has.
    #[inline]
    pub(crate) fn may_be_over(&self) -> bool {
        self.slot.state() == State::Done || self.queue().has_ended()
    }

    /// Where the state is. Forms no reference.
    pub(crate) fn state_ptr(&self) -> *mut T {
        // SAFETY: this ticket was made with a T, and the slot is still this ticket's.
        unsafe { self.slot().state_ptr::<T>() }
    }

    /// Takes the state and gives the slot back, or retires it while a packet may come.
    ///
    /// Only in Idle and Done; otherwise the ticket comes back.
    pub(crate) fn take(mut self) -> Result<T, Self> {
        let is_ours = matches!(self.slot().state(), State::Idle | State::Done);
        if is_ours { Ok(self.take_state().0) } else { Err(self) }
    }

    /// As `take`, for an operation that has ended. The ticket is used up, and is not to be asked again: the slot may
    /// be gone with the queue, which may end when what is given of it is dropped (and runs user code then).
    ///
    /// # Panics
    /// When it has not.
    #[inline(always)]
    pub(crate) fn take_done(&mut self) -> (T, Rc<Inner>) {
        assert!(self.slot.state() == State::Done, "an operation's state was taken before its end");
        self.take_state()
    }

    /// In Idle and Done.
    #[inline(always)]
    fn take_state(&mut self) -> (T, Rc<Inner>) {
        let slot = self.slot();
        let queue = self.queue.take().expect("a ticket is used once");
        // SAFETY: this ticket was made with a T that is still there, as it was not used before and the slot
        // is still its own; in these two states the kernel does not have the slot, or is done with it.
        let state = unsafe { slot.take_state::<T>() };
        queue.release(slot);
        (state, queue)
    }
}

impl<T: 'static> Drop for Ticket<T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(queue) = &self.queue {
            queue.abandon(self.slot());
        }
    }
}

/// Drops the state of a finished operation that nobody wants, then frees or retires its slot.
///
/// Runs user code: nothing of the queue may be borrowed. A panic in it passes through; the slot is
/// given back all the same.
pub(crate) fn dispose(queue: &Inner, slot: SlotRef) {
    struct Release<'a>(&'a Inner, SlotRef);
    impl Drop for Release<'_> {
        fn drop(&mut self) {
            self.0.release(self.1);
        }
    }
    assert!(matches!(slot.state(), State::Idle | State::Done), "the kernel may have this slot");
    // It has ended for whoever looks from inside the drop.
    queue.count(slot, false);
    let _release = Release(queue, slot);
    // SAFETY: the slot holds a state of this kind, and in these states the kernel does not have it, or is
    // done with it. It is released whatever the drop does, and until then nobody takes a state out of it: the
    // ticket is gone, and the slab stays.
    unsafe { (slot.kind.get().drop_state)(slot) };
}

/// The ending of a call that succeeded at once but leaves no status word (pitfall 8).
pub(crate) const ENDED_AT_ONCE: Ending = Ending { status: NtStatus(STATUS_SUCCESS), bytes: 0 };
