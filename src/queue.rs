//! The queue: persist, poll, run, running, spawn, block_on; and the thread's own queue.

mod closing;
mod registering;
mod turning;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
#[cfg(unix)]
use std::os::fd::AsFd;
use std::panic::Location;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use crate::continuation::{Continuation, Parked, ReadyList};
use crate::error::{Closed, Refused, Undrained};
#[cfg(unix)]
use crate::handle::RawHandle;
use crate::handle::{
    AsAnyHandle, EntryId, HandleId, Persist, PersistError, Registered, Registry, ownership,
};
use crate::kernel::owner::{self, Owner};
use crate::kernel::{Identity, Kernel, KernelKind};
use crate::misuse::Misuse;
use crate::notify::{Notifier, Shared};
use crate::operation::{Ending, Slab, SlotRef, State, dispose};
use crate::task::{self, Task, Tasks};
use crate::time::Timers;

/// How many operations that end at once a task may do before the others get their turn (pitfall
/// 12).
const BUDGET: u32 = 128;

/// How long dropping a queue waits for the kernel to give back what was in flight.
const DRAIN: Duration = Duration::from_secs(1);

/// A packet that is not the queue's: for no OVERLAPPED of its own, or not any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForeignPacket {
    /// `lpCompletionKey`.
    pub key: usize,
    /// `lpOverlapped`, as a number: it may be data, or dangle.
    pub overlapped: usize,
    /// `dwNumberOfBytesTransferred`.
    pub bytes: u32,
}

type Hook = Box<dyn FnMut(ForeignPacket)>;

/// A queue, as its handles, futures and registrations share it.
pub(crate) struct Inner {
    pub(crate) kernel: Kernel,
    pub(crate) shared: Arc<Shared>,
    owner: Owner,
    pub(crate) slab: Slab,
    pub(crate) registry: RefCell<Registry>,
    pub(crate) tasks: Tasks,
    pub(crate) timers: Timers,
    /// What came off the kernel and was neither handed out nor resumed yet.
    ready: RefCell<ReadyList>,
    /// Waits that were over before they began, for the next poll to hand out.
    over: RefCell<Vec<Parked>>,
    /// Operations that ended and that nobody wants: their states are still to be dropped.
    unwanted: RefCell<Vec<SlotRef>>,
    foreign: RefCell<VecDeque<ForeignPacket>>,
    hook: Cell<Option<Hook>>,
    /// There is a hook, if perhaps a busy one.
    hooked: Cell<bool>,
    foreign_count: Cell<u64>,
    /// Operations that `running` counts.
    counted: Cell<usize>,
    /// `Queue` handles.
    handles: Cell<usize>,
    budget: Cell<u32>,
    /// A task used up its budget: ask the kernel before any other is resumed.
    overdue: Cell<bool>,
    /// The coarse time of the first start of something since the last look at the kernel.
    clock: Cell<Option<Duration>>,
    /// How often the kernel was asked.
    looks: Cell<u32>,
    /// `run` is at work.
    running: Cell<bool>,
    /// Takes nothing new.
    closed: Cell<bool>,
    /// Asks the kernel nothing any more.
    ended: Cell<bool>,
    /// The thread is going away: nothing may block.
    exiting: Cell<bool>,
}

thread_local! {
    /// The queues of this thread, to tell a handle of another queue from one of none.
    static QUEUES: RefCell<Vec<Weak<Inner>>> = const { RefCell::new(Vec::new()) };
    /// The thread's own queue.
    static OWN: OwnQueue = const { OwnQueue(RefCell::new(None)) };
    /// The queue whose `run` or `block_on` is at work.
    static ENTERED: RefCell<Vec<Rc<Inner>>> = const { RefCell::new(Vec::new()) };
}

/// The thread's own queue; dropped at thread exit, on Windows under the loader's lock (pitfall 57).
struct OwnQueue(RefCell<Option<Queue>>);

impl Drop for OwnQueue {
    fn drop(&mut self) {
        if let Some(queue) = self.0.take() {
            queue.inner.exiting.set(true);
            // What the kernel keeps is leaked and nobody is left to tell.
            let _ = queue.inner.close(Duration::ZERO);
        }
    }
}

/// Marks a queue as the current one while it resumes continuations.
pub(crate) struct Entered;

impl Entered {
    pub(crate) fn new(queue: &Rc<Inner>) -> Self {
        let _ = ENTERED.try_with(|entered| entered.borrow_mut().push(Rc::clone(queue)));
        Self
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let popped = ENTERED.try_with(|entered| entered.borrow_mut().pop());
        drop(popped);
    }
}

impl Inner {
    fn new(kernel: Kernel) -> Rc<Self> {
        let (shared, owner) = Shared::new(kernel.alarm());
        let shared = Arc::new(shared);
        let inner = Rc::new(Self {
            kernel,
            shared,
            owner,
            slab: Slab::default(),
            registry: RefCell::default(),
            tasks: Tasks::default(),
            timers: Timers::default(),
            ready: RefCell::default(),
            over: RefCell::default(),
            unwanted: RefCell::default(),
            foreign: RefCell::default(),
            hook: Cell::new(None),
            hooked: Cell::new(false),
            foreign_count: Cell::new(0),
            counted: Cell::new(0),
            handles: Cell::new(0),
            budget: Cell::new(BUDGET),
            overdue: Cell::new(false),
            clock: Cell::new(None),
            looks: Cell::new(0),
            running: Cell::new(false),
            closed: Cell::new(false),
            ended: Cell::new(false),
            exiting: Cell::new(false),
        });
        let _ = QUEUES.try_with(|queues| {
            let mut queues = queues.borrow_mut();
            queues.retain(|queue| queue.strong_count() > 0);
            queues.push(Rc::downgrade(&inner));
        });
        inner
    }

    /// The coarse time of now, or of a moment since the last look at the kernel.
    #[inline(always)]
    pub(crate) fn clock(&self) -> Duration {
        match self.clock.get() {
            Some(clock) => clock,
            None => self.read_clock(),
        }
    }

    #[inline(never)]
    fn read_clock(&self) -> Duration {
        let clock = self.kernel.coarse_now();
        self.clock.set(Some(clock));
        clock
    }

    /// Changes with each look at the kernel.
    #[cfg(unix)]
    #[inline(always)]
    pub(crate) fn looks(&self) -> u32 {
        self.looks.get()
    }

    /// Whether a send is best handed over with those of others that are ready.
    #[cfg(unix)]
    #[inline(always)]
    pub(crate) fn collects(&self) -> bool {
        self.kernel.collects(self.ready.borrow().len())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Whether the kernel is asked nothing any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    fn is_running(&self) -> bool {
        self.counted.get() > 0
            || self.tasks.len() > 0
            || self.timers.len() > 0
            || !self.shared.is_empty(&self.owner)
            || !self.over.borrow().is_empty()
            || !self.ready.borrow().is_empty()
    }

    // -- operations --------------------------------------------------------------------------

    /// Idle -> InFlight, if the registration is there.
    #[cfg(unix)]
    pub(crate) fn launch(&self, slot: SlotRef, entry: EntryId, handle: RawHandle) -> bool {
        let mut registry = self.registry.borrow_mut();
        if self.closed.get() || !registry.is_attached(entry) {
            return false;
        }
        slot.launch(entry, handle);
        registry.link(entry, slot);
        true
    }

    /// The operations of a registration that ends, newest first. Whoever looks at them may release them.
    fn operations(&self, entry: EntryId) -> impl Iterator<Item = SlotRef> + use<> {
        #[cfg(unix)]
        self.kernel.adopt(entry, |slot| self.registry.borrow_mut().link(entry, slot));
        self.registry.borrow().operations(entry)
    }

    /// The operations of a registration that the kernel still has, and which use of their slots each is.
    pub(crate) fn left_behind(&self, entry: EntryId) -> Vec<(SlotRef, u32)> {
        let operations = self.operations(entry);
        let left = operations.filter(|slot| slot.is_started() && slot.is_kernels());
        left.map(|slot| (slot, slot.generation())).collect()
    }

    /// Takes back a launch: the kernel would not have it.
    #[cfg(unix)]
    pub(crate) fn launch_failed(&self, slot: SlotRef, ending: Ending) {
        slot.end(ending);
        slot.finish();
        self.count(slot, false);
    }

    /// Counts an operation as waited for, or no longer.
    #[inline]
    pub(crate) fn count(&self, slot: SlotRef, counted: bool) {
        if slot.is_counted() != counted {
            slot.set_counted(counted);
            let count = self.counted.get();
            self.counted.set(if counted { count + 1 } else { count - 1 });
        }
    }

    /// The end of a slot's use. Its state was taken or dropped.
    #[inline(always)]
    pub(crate) fn release(&self, slot: SlotRef) {
        self.count(slot, false);
        if slot.is_linked() {
            self.release_linked(slot);
        } else {
            self.slab.free(slot);
        }
    }

    fn release_linked(&self, slot: SlotRef) {
        let Some(entry) = slot.entry() else { unreachable!("it is in a registration's list") };
        let mut registry = self.registry.borrow_mut();
        // Past the registration's end a packet's key matches nothing, so the slot need not wait
        // for it.
        if slot.packet_due() && registry.is_attached(entry) {
            slot.retire();
        } else {
            registry.unlink(entry, slot);
            self.slab.free(slot);
        }
    }

    /// Asks the kernel to cancel; true where there was something to cancel.
    fn request_cancel(&self, slot: SlotRef) -> bool {
        self.kernel.cancel(slot)
    }

    /// Cancels what a wait is for. The wait goes on until the kernel has said how it ended.
    pub(crate) fn cancel(&self, slot: SlotRef) {
        if slot.state() == State::InFlight {
            slot.cancelling();
            self.request_cancel(slot);
        }
    }

    /// The ticket is gone: nobody will take the outcome. Runs user code (drops).
    pub(crate) fn abandon(&self, slot: SlotRef) {
        if slot.state() == State::Exposed && slot.entry().is_none() {
            // Started before its handle was registered. If that is so now, a packet may come.
            if let Some((entry, _)) = self.known(slot.handle()) {
                slot.adopt(entry);
                self.registry.borrow_mut().link(entry, slot);
            }
        }
        let waiter = slot.take_waiter();
        match slot.state() {
            State::Idle | State::Done => dispose(self, slot),
            State::Exposed | State::InFlight | State::Cancelling => {
                let cancelled = self.request_cancel(slot);
                if slot.is_kernels() {
                    // With nothing to cancel, a call nobody saw was probably never made, or failed:
                    // the operation is kept, but nothing waits for its end.
                    // Nor where no packet will tell of it.
                    if slot.entry().is_some() && (cancelled || slot.is_started()) {
                        self.count(slot, true);
                    }
                    slot.orphan();
                } else {
                    slot.finish();
                    dispose(self, slot);
                }
            }
            State::Orphaned | State::Retired | State::Free => {
                unreachable!("a ticket's slot is the ticket's")
            }
        }
        drop(waiter);
    }

    /// A packet for an operation that has ended: is it the one that is due?
    fn note_packet(&self, slot: SlotRef, key: usize) {
        // One from before the address was used again, under a registration that is gone, tells that
        // the operation has ended, if it has; but it is not the one that is due (pitfall 55).
        let is_its_own = slot.entry().is_some_and(|entry| entry.key() == key);
        if is_its_own || self.registry.borrow().has_key(key) {
            slot.no_packet_due();
        }
    }

    /// An operation has ended, and no packet tells of it. Runs no user code.
    #[inline(always)]
    fn ended(&self, slot: SlotRef, ending: Ending, out: &mut ReadyList) {
        // This was what stands for the packet.
        slot.no_packet_due();
        if slot.state() == State::InFlight && ending.status.0 == 0 {
            slot.finish_with(ending);
            self.count(slot, false);
            self.wake(slot, out);
        } else {
            self.complete(slot, out);
        }
    }

    /// Whoever waits for the operation is ready.
    #[inline(always)]
    fn wake(&self, slot: SlotRef, out: &mut ReadyList) {
        if let Some(task) = slot.take_task() {
            // Else it is there, for another operation that has ended.
            if self.tasks.becomes_ready(task) {
                out.push_task(task);
            }
        } else if let Some(other) = slot.take_waiter() {
            out.push(other);
        }
    }

    /// Whoever waited for something else is ready.
    fn wake_parked(&self, waiter: Parked, out: &mut ReadyList) {
        match waiter {
            Parked::Task(task) if !self.tasks.becomes_ready(task) => {}
            waiter => out.push(waiter),
        }
    }

    /// Whom `waker` wakes. Cloning one runs user code.
    pub(crate) fn parked(&self, waker: &Waker) -> Parked {
        match self.tasks.waker_of(waker) {
            Some(task) => Parked::Task(task),
            None => Parked::Other(waker.clone().into()),
        }
    }

    /// Leaves `waker` to be woken at the operation's end. True where code ran that is not ours.
    #[inline(always)]
    pub(crate) fn park(&self, slot: SlotRef, waker: &Waker) -> bool {
        if let Some(task) = self.tasks.waker_of(waker) {
            if !slot.set_task(task) {
                return false;
            }
            drop(slot.take_replaced());
        } else {
            slot.park_waker(waker);
        }
        true
    }

    /// An operation's end has come. Runs no user code.
    #[inline(never)]
    fn complete(&self, slot: SlotRef, out: &mut ReadyList) {
        match slot.state() {
            State::InFlight | State::Cancelling => {
                let unexpected = slot.state() == State::InFlight;
                slot.finish();
                self.count(slot, false);
                if unexpected {
                    self.look_for_close(slot);
                }
                self.wake(slot, out);
            }
            State::Orphaned => {
                slot.finish();
                self.count(slot, false);
                self.unwanted.borrow_mut().push(slot);
            }
            State::Retired => self.release(slot),
            // Nobody waits yet, or the outcome was taken from the status word. Closing counts what
            // nobody waits for, too.
            State::Exposed | State::Done => self.count(slot, false),
            State::Idle | State::Free => unreachable!("no packet is due"),
        }
    }

    /// An operation that nobody cancelled has ended: if it failed, was its handle closed under it?
    pub(crate) fn look_for_close(&self, slot: SlotRef) {
        if slot.ending().is_none_or(|ending| ending.status.is_success()) {
            return;
        }
        let Some(entry) = slot.entry() else { return };
        let Some(facts) = self.registry.borrow().facts(entry) else { return };
        if facts.owners == 0 && self.kernel.identity(facts.raw, facts.mark) == Identity::Gone {
            slot.set_closed_under();
            self.closed_early(entry);
        }
    }
}

// ---------------------------------------------------------------------------------------------
// The public queue

/// A thread's event queue.
///
/// A cheap handle, like an `Rc`: clones are the same queue. A thread may have several queues;
/// [`current`](Self::current) is its own, made on first use, and the free functions of this crate
/// use that one. While [`run`](Self::run) or [`block_on`](Self::block_on) of a queue is at work,
/// that queue is the current one; so it is for a task that your own loop round [`poll`](Self::poll)
/// resumes. The loop itself, and futures that it polls by itself, name their queue (`queue.register`,
/// `queue.sleep`), unless that is the thread's own.
///
/// Not `Send`: what a thread starts, the thread owns (its exit cancels I/O on some handles). Other
/// threads wake it through a [`Notifier`].
///
/// # Closing
///
/// When the last handle is dropped the queue is [closed](Self::close), which waits up to a second
/// for the kernel to give back what was in flight. At thread exit the thread's own queue cancels,
/// looks once, and leaks the rest: it never blocks there. A queue from [`new`](Self::new) cannot know
/// that its thread is going away: [close](Self::close) it, rather than keep it in a `thread_local!`.
/// A task that holds a `Queue` keeps its own queue from being dropped; let it use
/// [`current`](Self::current) instead.
///
/// Once a queue is closed, new operations and registrations are refused with
/// [`Closed`](crate::error::Closed), tasks were dropped, notifying is harmless, and futures that
/// waited get `Closed`. A thread whose own queue was closed gets no other. Forgetting a queue leaks it and is harmless.
pub struct Queue {
    inner: Rc<Inner>,
}

impl Clone for Queue {
    fn clone(&self) -> Self {
        Self::from_inner(Rc::clone(&self.inner))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let handles = self.inner.handles.get() - 1;
        self.inner.handles.set(handles);
        if handles == 0 {
            // Dropping cannot say that something was leaked; `close` can, and has waited as it was told.
            let within = if self.inner.closed.get() { Duration::ZERO } else { DRAIN };
            let _ = self.inner.close(within);
        }
    }
}

impl Queue {
    /// A new queue, beside the thread's own.
    ///
    /// Its kernel is a completion port on Windows, io_uring on Linux, or readiness (epoll, kqueue) where
    /// io_uring is missing or refused, and elsewhere. The environment variable `IOQUEUE_KERNEL` (`iocp`,
    /// `uring`, `readiness`; `sim` with that feature) forces one, for tests; [`builder`](Self::builder) does in a program.
    ///
    /// # Errors
    /// When the system gives no completion port, ring or descriptor; `Unsupported` for a kernel that was
    /// asked for by name and is not there.
    pub fn new() -> io::Result<Self> {
        Ok(Self::from_inner(Inner::new(Kernel::new()?)))
    }

    /// Says how a new queue is to be.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Which kernel the queue works on.
    pub fn kernel_kind(&self) -> KernelKind {
        self.inner.kernel.kind()
    }

    /// The queue whose `run` or `block_on` is at work on this thread, or else the thread's own,
    /// made on first use.
    ///
    /// # Errors
    /// As [`new`](Self::new); and [`Closed`](crate::error::Closed) while the thread exits.
    pub fn current() -> io::Result<Self> {
        owner::touch();
        let entered = ENTERED.try_with(|entered| entered.borrow().last().map(Rc::clone));
        if let Ok(Some(inner)) = entered {
            return Ok(Self::from_inner(inner));
        }
        let own = OWN.try_with(|own| own.0.borrow().as_ref().map(Clone::clone));
        match own {
            Ok(Some(queue)) => Ok(queue),
            Ok(None) => {
                let queue = Self::new()?;
                let _ = OWN.try_with(|own| own.0.replace(Some(queue.clone())));
                Ok(queue)
            }
            Err(_) => Err(Closed.into()),
        }
    }

    /// A queue on a kernel that is not this system's.
    #[cfg(feature = "sim")]
    pub(crate) fn on_kernel(kernel: Kernel) -> Self {
        Self::from_inner(Inner::new(kernel))
    }

    #[cfg(feature = "sim")]
    pub(crate) fn kernel(&self) -> &Kernel {
        &self.inner.kernel
    }

    fn from_inner(inner: Rc<Inner>) -> Self {
        inner.handles.set(inner.handles.get() + 1);
        Self { inner }
    }

    pub(crate) fn inner(&self) -> &Rc<Inner> {
        &self.inner
    }

    /// Registers a handle with the queue, for the handle's lifetime.
    ///
    /// On Windows this binds it to the completion port (`CreateIoCompletionPort`), for good before
    /// Windows 8.1. The handle is borrowed only for the call; it must be
    /// [unregistered](Self::unregister) before it is closed, or owned by a [`Registered`], which
    /// does that by itself. Registering a handle again is fine. On Unix all that is done with a borrowed handle is to wait until
    /// it is [`ready`](Self::ready), which registers it by itself.
    ///
    /// # Errors
    /// [`PersistError`] says which: closed or not a file, not opened overlapped, bound to a port
    /// already, registered with another queue of this thread. Nothing is half-registered. Windows
    /// does not say to which port a handle is bound, so a handle that this queue registered,
    /// unregistered, and could not take off the port is "already bound" too.
    pub fn persist(&self, handle: &(impl AsAnyHandle + ?Sized)) -> Result<(), PersistError> {
        self.persist_with(handle, Persist::default())
    }

    /// As [`persist`](Self::persist), with options.
    ///
    /// # Errors
    /// As `persist`.
    pub fn persist_with(
        &self,
        handle: &(impl AsAnyHandle + ?Sized),
        options: Persist,
    ) -> Result<(), PersistError> {
        self.inner.persist(handle.as_any_handle(), options, false).map(|_| ())
    }

    /// Registers a handle and owns it from now on.
    ///
    /// On Unix what does not own its handle, a borrow say, is registered by a duplicate
    /// ([`Registered`] says why), beside what may be registered by the handle's own value: what is
    /// [persisted](Self::persist) so stays it, and [`unregister`](Self::unregister) by that value leaves
    /// the duplicate's registration alone.
    ///
    /// # Errors
    /// As [`persist`](Self::persist), and that there is no descriptor for a duplicate; the handle comes
    /// back in the error.
    pub fn register<H: AsAnyHandle>(&self, handle: H) -> Result<Registered<H>, Refused<H>> {
        self.register_with(handle, Persist::default())
    }

    /// As [`register`](Self::register), with options.
    ///
    /// # Errors
    /// As `register`.
    pub fn register_with<H: AsAnyHandle>(
        &self,
        handle: H,
        options: Persist,
    ) -> Result<Registered<H>, Refused<H>> {
        // Asked once: what is registered is what operations are started on.
        let any = handle.as_any_handle();
        match self.inner.register(any, options, handle.owns_handle(ownership::Asked)) {
            Ok(registration) => Ok(Registered::from_parts(handle, registration)),
            Err(error) => Err(Refused::new(error, handle)),
        }
    }

    /// Ends a handle's registration. Does nothing for a handle that is not registered.
    ///
    /// Every operation in flight on it that the queue started is cancelled, and its memory kept
    /// until the kernel is done. What waits for one learns that it was cancelled
    /// ([`is_cancelled`](crate::error::is_cancelled)), or how it ended if it was faster. Never
    /// blocks. Where the system can (Windows 8.1 and later, and only with nothing left in flight)
    /// the handle is taken off the completion port, so that another queue can take it. That it
    /// skips packets on success stays.
    ///
    /// # Errors
    /// [`Misuse::PrematureClose`] when the handle turns out to have been closed while something
    /// waited for it; [`Misuse::WrongQueue`] for a [`Registered`] of another queue.
    #[track_caller]
    pub fn unregister(&self, handle: &(impl AsAnyHandle + ?Sized)) -> Result<(), Misuse> {
        self.inner.unregister_handle(handle.as_any_handle(), Location::caller())
    }

    /// Whether anything is waited for: operations (also cancelled ones that are still the
    /// kernel's), unfinished tasks, continuations that were not resumed yet.
    ///
    /// A closed queue answers for what the kernel kept ([`Undrained`]), and nothing can be polled for
    /// there any more: a loop that polls while this is true has to end when it closes its queue.
    pub fn running(&self) -> bool {
        self.inner.is_running()
    }

    /// Asks the system once and appends the continuations that became ready to `runnable`, in the
    /// order their packets came. Resumes none: the caller [resumes](Continuation::resume) each, also
    /// those it did not park itself (tasks, and the wakers of futures).
    ///
    /// `None` waits for ever, zero never blocks, and with nothing to wait for it returns at once,
    /// whatever `timeout` says (a [`Notifier`] is nothing to wait for; a [`sleep`](Self::sleep) is).
    /// A finite wait ends late rather than early: it is rounded up to the system's unit (a
    /// millisecond, and its clock's tick). It also ends when a [`Notifier`] rang, or an operation whose
    /// future nobody has polled yet, so it may append nothing. On a queue that is closed it returns at once. What nobody waits for any more is dropped here.
    ///
    /// # Errors
    /// What `GetQueuedCompletionStatusEx` says. What was appended until then is valid.
    ///
    /// # Panics
    /// With whatever the drop of an abandoned operation's state panics; no continuation is lost, and all
    /// other states are dropped all the same.
    pub fn poll(
        &self,
        runnable: &mut Vec<Continuation>,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        let before = runnable.len();
        // What a panic left behind in `run` comes first, and what became ready since.
        self.inner.hand_over(runnable);
        let timeout = if runnable.len() > before { Some(Duration::ZERO) } else { timeout };
        let result = self.inner.turn(timeout, false);
        self.inner.hand_over(runnable);
        self.inner.after_turn();
        result
    }

    /// How long a host that waits for the queue itself (`AsFd`, `AsHandle`) may wait before it polls again: until the
    /// first timer is due, or the queue has to ask for something that nobody tells it of; and not at all where there is
    /// something to resume or to begin. `None`: until the descriptor is ready, however long that takes.
    ///
    /// Asked for just before the wait. What the wait's unit cuts off is to be rounded up, or the host goes round without
    /// a pause until the timer is due. Makes no call into the system but to read the clock.
    ///
    /// ```no_run
    /// # #[cfg(unix)]
    /// # mod unix {
    /// use std::io;
    /// use std::os::fd::{AsFd, AsRawFd};
    /// use std::time::Duration;
    ///
    /// use ioqueue::Queue;
    ///
    /// /// Serves the queue until nothing is waited for, beside whatever else the program waits for.
    /// fn serve(queue: &Queue, also: &impl AsFd) -> io::Result<()> {
    ///     let mut ready = Vec::new();
    ///     loop {
    ///         queue.poll(&mut ready, Some(Duration::ZERO))?;
    ///         for continuation in ready.drain(..) {
    ///             continuation.resume();
    ///         }
    ///         if !queue.running() {
    ///             return Ok(());
    ///         }
    ///         // In milliseconds, rounded up; -1 is for ever.
    ///         let in_ms = |delay: Duration| delay.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32;
    ///         let longest = queue.poll_delay().map_or(-1, in_ms);
    ///         let mut waits = [queue.as_fd(), also.as_fd()]
    ///             .map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    ///         // SAFETY: two entries, which are ours.
    ///         unsafe { libc::poll(waits.as_mut_ptr(), 2, longest) };
    ///         if waits[1].revents != 0 {
    ///             // What the program itself has to do.
    ///         }
    ///     }
    /// }
    /// # }
    /// ```
    pub fn poll_delay(&self) -> Option<Duration> {
        self.inner.poll_delay()
    }

    /// Polls and resumes, first ready first, until nothing is [running](Self::running).
    ///
    /// A [`Continuation::Key`] that becomes ready here means nothing to `run` and is dropped.
    ///
    /// # Errors
    /// What the system says when polled; [`Closed`](crate::error::Closed) if the queue is closed
    /// meanwhile; `InvalidInput` when called from a task of the queue, or from a continuation that
    /// `run` itself resumed: it would wait for itself.
    ///
    /// # Panics
    /// With what a continuation panics; the others stay in the queue, and `run` may be called
    /// again. A panic in a task is its own: it goes to whoever awaits the task, and to `run`.
    pub fn run(&self) -> io::Result<()> {
        let _entered = Entered::new(&self.inner);
        self.inner.run()
    }

    /// Makes a task of a future. It first runs when the queue is run or polled. On a closed queue it is
    /// cancelled at once. **Dropping the [`Task`] cancels it**: keep it, or [`detach`](Task::detach) it.
    pub fn spawn<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        task::spawn(&self.inner, future)
    }

    /// Polls and resumes until `future` is done, whatever [`running`](Self::running) says.
    ///
    /// # Errors
    /// As [`run`](Self::run), while the future is not done; but it may be called from a task, and inside another
    /// `block_on`.
    ///
    /// # Panics
    /// With what a continuation or the future panics.
    pub fn block_on<F: Future>(&self, future: F) -> io::Result<F::Output> {
        let _entered = Entered::new(&self.inner);
        self.inner.block_on(future)
    }

    /// What wakes this queue from another thread.
    pub fn notifier(&self) -> Notifier {
        Notifier::new(Arc::clone(&self.inner.shared))
    }

    /// What is in flight, for diagnostics. Walks all operations. What was dropped is among them until the next
    /// poll has found that it ended.
    pub fn pending(&self) -> Vec<Pending> {
        let now = self.inner.kernel.coarse_now();
        let mut pending = Vec::new();
        self.inner.slab.for_each(|slot| {
            let state = match slot.state() {
                State::Exposed => PendingState::Started,
                State::InFlight => PendingState::InFlight,
                State::Cancelling => PendingState::Cancelling,
                State::Orphaned => PendingState::Abandoned,
                State::Free | State::Idle | State::Done | State::Retired => return,
            };
            pending.push(Pending {
                kind: kind_of(slot.kind()),
                handle: HandleId::new(slot.handle()),
                age: now.saturating_sub(slot.since()),
                caller: slot.caller(),
                state,
            });
        });
        pending
    }

    /// How many packets came that were not the queue's. See [`on_foreign_packet`].
    ///
    /// [`on_foreign_packet`]: Self::on_foreign_packet
    pub fn foreign_packets(&self) -> u64 {
        self.inner.foreign_count.get()
    }

    /// Calls `hook` with each packet that is not for an operation of the queue: posted by other
    /// code, a job object's, or stale. Replaces an earlier hook. Called from `poll` and `run` after
    /// the port was read, with nothing of the queue borrowed: it may use the queue.
    pub fn on_foreign_packet(&self, hook: impl FnMut(ForeignPacket) + 'static) {
        self.inner.hooked.set(true);
        self.inner.hook.set(Some(Box::new(hook)));
    }

    /// Closes the queue: drops its tasks, cancels everything in flight, and waits up to `within`
    /// for the kernel to give it back.
    ///
    /// Other handles of the queue see it closed. Closing twice is fine, and says what the kernel still has
    /// by then; it waits for that again, but for a completion port.
    ///
    /// # Errors
    /// [`Undrained`] with the number of operations the kernel still has. Their memory is leaked.
    pub fn close(&self, within: Duration) -> Result<(), Undrained> {
        self.inner.close(within)
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not inside: the formatter is somebody's code.
        let handles = self.inner.registry.borrow().len();
        f.debug_struct("Queue")
            .field("in_flight", &self.inner.counted.get())
            .field("handles", &handles)
            .field("tasks", &self.inner.tasks.len())
            .field("foreign_packets", &self.inner.foreign_count.get())
            .field("closed", &self.inner.closed.get())
            .finish()
    }
}

#[cfg(unix)]
impl AsFd for Queue {
    /// Ready to read when a [`poll`](Queue::poll) would find something that the
    /// kernel or another thread brought. For a host loop to wait on, by the level.
    ///
    /// It says nothing of what this thread does by itself, nor of time. What was started since the last poll is begun
    /// by the next, what was woken here (a task's waker, by the host's own code, or a task that yields) waits for it, and
    /// so do timers: wait no longer than [`poll_delay`](Queue::poll_delay) says, which has such a loop as code. At first, and now
    /// and then, it says that there is something where there is nothing. From the first call of this on, each poll of an
    /// io_uring makes three system calls more.
    ///
    /// # Panics
    /// For a queue on a simulated kernel.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.inner.kernel.as_fd()
    }
}

#[cfg(windows)]
impl std::os::windows::io::AsHandle for Queue {
    /// The completion port, for other code to post to, or for a host loop to wait on: no longer than
    /// [`poll_delay`](Queue::poll_delay) says.
    fn as_handle(&self) -> std::os::windows::io::BorrowedHandle<'_> {
        self.inner.shared.alarm().port().as_handle()
    }
}

/// How a new queue is to be. Made by [`Queue::builder`].
#[derive(Debug, Clone, Default)]
#[must_use = "a builder makes no queue before `build`"]
pub struct Builder {
    kernel: Option<KernelKind>,
}

impl Builder {
    /// The queue works on this kernel, and no other will do.
    pub fn kernel(mut self, kind: KernelKind) -> Self {
        self.kernel = Some(kind);
        self
    }

    /// Makes the queue.
    ///
    /// # Errors
    /// As [`Queue::new`].
    pub fn build(self) -> io::Result<Queue> {
        let kernel = self.kernel.map_or_else(Kernel::new, Kernel::of)?;
        Ok(Queue::from_inner(Inner::new(kernel)))
    }
}

/// One operation in flight, as [`Queue::pending`] lists it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Pending {
    /// The name of a portable operation (`Read`), or else the type of the state it owns (`Vec<u8>`), as
    /// the compiler writes it.
    pub kind: &'static str,
    /// The handle it was started on.
    pub handle: HandleId,
    /// How long ago it was made, as of the last poll before that, within a tick of the system's
    /// clock (16 ms).
    pub age: Duration,
    /// Who waits for it, or made it.
    pub caller: &'static Location<'static>,
    /// Where it stands.
    pub state: PendingState,
}

/// What an operation is called, by the type that its slot holds.
fn kind_of(of_type: &'static str) -> &'static str {
    let name = of_type.split('<').next().unwrap_or(of_type);
    match name.strip_prefix("ioqueue::op::request::") {
        Some(operation) => operation,
        // Without the path before it.
        None => &of_type[name.rfind("::").map_or(0, |at| at + 2)..],
    }
}

/// Where a [`Pending`] operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PendingState {
    /// Its address was given out; nobody waits for it.
    Started,
    /// In flight and waited for.
    InFlight,
    /// A cancel was asked for; the kernel has not said how it ended.
    Cancelling,
    /// Nobody waits for it any more; the kernel may still have it.
    Abandoned,
}

// ---------------------------------------------------------------------------------------------
// The calling thread's queue

/// [`Queue::persist`] on the current queue.
///
/// # Errors
/// As there; also when the thread has no queue and none can be made.
pub fn persist(handle: &(impl AsAnyHandle + ?Sized)) -> io::Result<()> {
    Ok(Queue::current()?.persist(handle)?)
}

/// [`Queue::unregister`] on the current queue.
///
/// # Errors
/// As there; also when the thread has no queue and none can be made.
#[track_caller]
pub fn unregister(handle: &(impl AsAnyHandle + ?Sized)) -> io::Result<()> {
    Ok(Queue::current()?.unregister(handle)?)
}

/// [`Queue::poll`] on the current queue.
///
/// # Errors
/// As there; also when the thread has no queue and none can be made.
pub fn poll(runnable: &mut Vec<Continuation>, timeout: Option<Duration>) -> io::Result<()> {
    Queue::current()?.poll(runnable, timeout)
}

/// [`Queue::run`] on the current queue.
///
/// # Errors
/// As there; also when the thread has no queue and none can be made.
pub fn run() -> io::Result<()> {
    Queue::current()?.run()
}

/// [`Queue::running`] on the current queue. A thread without a queue is not running.
pub fn running() -> bool {
    Queue::current().is_ok_and(|queue| queue.running())
}

/// [`Queue::spawn`] on the current queue.
///
/// # Errors
/// When the thread has no queue and none can be made; [`Closed`](crate::error::Closed) when it was closed.
pub fn spawn<F>(future: F) -> io::Result<Task<F::Output>>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let queue = Queue::current()?;
    if queue.inner.is_closed() {
        return Err(Closed.into());
    }
    Ok(queue.spawn(future))
}

/// [`Queue::block_on`] on the current queue.
///
/// # Errors
/// As there; also when the thread has no queue and none can be made.
pub fn block_on<F: Future>(future: F) -> io::Result<F::Output> {
    Queue::current()?.block_on(future)
}

/// [`Queue::notifier`] of the current queue.
///
/// # Errors
/// When the thread has no queue and none can be made.
pub fn notifier() -> io::Result<Notifier> {
    Ok(Queue::current()?.notifier())
}
