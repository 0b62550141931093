//! The line between the queue and an operating system.
//!
//! A kernel is chosen when the queue is made and paid for once: one `match`, no `dyn`.

pub(crate) mod call;
pub(crate) mod iocp;
#[cfg(target_os = "linux")]
mod linux;
pub(crate) mod owner;
#[cfg(unix)]
pub(crate) mod readiness;
#[cfg(unix)]
pub(crate) mod source;
#[cfg(unix)]
pub(crate) mod unix;
#[cfg(target_os = "linux")]
pub(crate) mod uring;

#[cfg(unix)]
use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use self::call::Call;
use self::iocp::packet::Packet;
#[cfg(any(windows, feature = "sim"))]
use self::iocp::{CompletionPort, post_wake};
#[cfg(unix)]
use self::readiness::Readiness;
#[cfg(unix)]
use self::source::{SharedSource, Source, Sources};
#[cfg(target_os = "linux")]
use self::uring::Uring;
use crate::handle::{EntryId, HandleKind, Persist, RawHandle};
use crate::iocp::Outcome;
#[cfg(feature = "sim")]
use crate::nt::sim;
#[cfg(windows)]
use crate::nt::windows::{Port, Windows};
use crate::nt::{NtStatusCode, Win32Error};
use crate::operation::{Ending, SlotRef};

/// The kernel a queue works on.
// A ring is large, and one a queue.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Kernel {
    /// A completion port of the Windows this program runs on.
    #[cfg(windows)]
    Windows(CompletionPort<Windows>),
    /// One of a simulated Windows.
    #[cfg(feature = "sim")]
    Sim(CompletionPort<sim::Simulated>),
    /// An io_uring.
    #[cfg(target_os = "linux")]
    Uring(Uring),
    /// epoll, kqueue, or what else says that a descriptor is ready.
    #[cfg(unix)]
    Readiness(Readiness),
}

/// How a handle came to be bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Binding {
    /// What ends at once with success leaves no packet. False also where that is unknown.
    pub(crate) skips: bool,
    pub(crate) mark: Mark,
}

/// By what a handle is known again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Windows: whether its file object carries a mode that `persist` has set, or why it did not
    /// say.
    Mode(Result<bool, NtStatusCode>),
    /// Unix: which file it is.
    #[cfg(unix)]
    File { device: u64, inode: u64 },
    /// A [`Registered`](crate::Registered) owns it, so nobody will ask.
    #[cfg(unix)]
    Owned,
}

/// Why a handle could not be bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BindError {
    /// The value names no open handle.
    Invalid,
    /// The handle was opened for synchronous use.
    Synchronous,
    /// The handle is bound to a port already; whose, Windows does not say.
    AlreadyBound,
    /// Anything else the system says.
    Os(Win32Error),
}

/// What a handle value means now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The handle that was bound, as far as can be told.
    Same,
    /// Closed, or closed and given out again for something else.
    Gone,
}

/// Takes what a look at the kernel brings. Runs no user code, and comes back to the kernel only to end the
/// registration of a handle that turns out to be closed: which no `Registered` owns, and nothing waits in its
/// source's lanes.
pub(crate) trait Sink {
    /// A packet of a completion port, which is only a claim.
    fn packet(&mut self, packet: Packet);

    /// An operation of the queue's has ended, as its status word says too, and no packet tells of it.
    fn ended(&mut self, slot: SlotRef, ending: Ending);

    /// The queue's notifier rang.
    fn rang(&mut self);
}

/// Does the same with whichever kernel it is.
macro_rules! with {
    ($kernel:expr, $room:ident => $answer:expr) => {
        match *$kernel {
            #[cfg(windows)]
            Kernel::Windows(ref $room) => $answer,
            #[cfg(feature = "sim")]
            Kernel::Sim(ref $room) => $answer,
            #[cfg(target_os = "linux")]
            Kernel::Uring(ref $room) => $answer,
            #[cfg(unix)]
            Kernel::Readiness(ref $room) => $answer,
        }
    };
}

/// Ends an operation, and has the queue know. The last thing that a kernel of Unix does with it.
#[cfg(unix)]
#[inline(always)]
fn tell(sink: &mut impl Sink, slot: SlotRef, ending: Ending) {
    slot.end(ending);
    sink.ended(slot, ending);
}

/// Which kernel a queue works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KernelKind {
    /// Windows' completion ports.
    CompletionPort,
    /// Linux' io_uring, with calls made directly where they do not block.
    Uring,
    /// epoll, kqueue, event ports: waits until a call would not block, then makes it. Files are never waited for so:
    /// what is not in memory, and most that is written, up to eight threads of the process read and write.
    Readiness,
    /// A simulated Windows, from `ioqueue::sim`, in builds with the feature `sim`.
    Simulated,
}

impl KernelKind {
    /// What `IOQUEUE_KERNEL` asks for. A word that is none of ours is an error, not a default.
    fn from_environment() -> io::Result<Option<Self>> {
        let Some(word) = std::env::var_os("IOQUEUE_KERNEL") else { return Ok(None) };
        Ok(Some(match word.to_str() {
            Some("iocp") => Self::CompletionPort,
            Some("uring") => Self::Uring,
            Some("readiness") => Self::Readiness,
            Some("sim") => Self::Simulated,
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!(
                        "IOQUEUE_KERNEL is {word:?}: it names a kernel, one of iocp, uring, readiness, \
                         sim, or is not set"
                    ),
                ));
            }
        }))
    }
}

impl Kernel {
    /// The kernel that `IOQUEUE_KERNEL` names, or else the best this system has.
    pub(crate) fn new() -> io::Result<Self> {
        match KernelKind::from_environment()? {
            Some(kind) => Self::of(kind),
            None => Self::best(),
        }
    }

    #[cfg(windows)]
    fn best() -> io::Result<Self> {
        Self::of(KernelKind::CompletionPort)
    }

    #[cfg(target_os = "linux")]
    fn best() -> io::Result<Self> {
        // Too old, or refused by a sandbox: whatever the reason, epoll does the same.
        Uring::new().map(Self::Uring).or_else(|_| Self::of(KernelKind::Readiness))
    }

    #[cfg(all(unix, not(target_os = "linux")))]
    fn best() -> io::Result<Self> {
        Self::of(KernelKind::Readiness)
    }

    /// A kernel of this kind, or why there is none.
    pub(crate) fn of(kind: KernelKind) -> io::Result<Self> {
        match kind {
            #[cfg(windows)]
            KernelKind::CompletionPort => Ok(Self::Windows(CompletionPort::new(Windows)?)),
            #[cfg(target_os = "linux")]
            KernelKind::Uring => Uring::new().map(Self::Uring),
            #[cfg(unix)]
            KernelKind::Readiness => Readiness::new().map(Self::Readiness),
            #[cfg(feature = "sim")]
            KernelKind::Simulated => Ok(Self::Sim(CompletionPort::new(sim::Simulated::quiet())?)),
            #[allow(unreachable_patterns)]
            missing => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                match missing {
                    KernelKind::Simulated => {
                        "this build of ioqueue has no simulated kernel: that is its feature `sim`"
                            .into()
                    }
                    missing => format!("ioqueue has no {missing:?} kernel on this system"),
                },
            )),
        }
    }

    /// Which one it is.
    pub(crate) fn kind(&self) -> KernelKind {
        match *self {
            #[cfg(windows)]
            Self::Windows(_) => KernelKind::CompletionPort,
            #[cfg(feature = "sim")]
            Self::Sim(_) => KernelKind::Simulated,
            #[cfg(target_os = "linux")]
            Self::Uring(_) => KernelKind::Uring,
            #[cfg(unix)]
            Self::Readiness(_) => KernelKind::Readiness,
        }
    }

    /// Whether it has completion ports, so that overlapped calls can be made for it.
    pub(crate) fn has_overlapped(&self) -> bool {
        matches!(self.kind(), KernelKind::CompletionPort | KernelKind::Simulated)
    }

    /// What wakes this kernel's queue, from any thread.
    pub(crate) fn alarm(&self) -> Alarm {
        match *self {
            #[cfg(windows)]
            Self::Windows(ref port) => Alarm::Windows(Arc::clone(port.port())),
            #[cfg(feature = "sim")]
            Self::Sim(ref port) => Alarm::Sim(Arc::clone(port.port())),
            #[cfg(target_os = "linux")]
            Self::Uring(ref ring) => Alarm::Unix(Arc::clone(ring.bell())),
            #[cfg(unix)]
            Self::Readiness(ref readiness) => Alarm::Unix(Arc::clone(readiness.bell())),
        }
    }

    #[cfg_attr(windows, allow(unused_variables, reason = "a port asks nobody who owns a handle"))]
    pub(crate) fn bind(
        &self,
        handle: RawHandle,
        kind: HandleKind,
        entry: EntryId,
        options: Persist,
        owned: bool,
    ) -> Result<Binding, BindError> {
        match *self {
            #[cfg(windows)]
            Self::Windows(ref port) => port.bind(handle, kind, entry, options.keep_packets),
            #[cfg(feature = "sim")]
            Self::Sim(ref port) => port.bind(handle, kind, entry, options.keep_packets),
            #[cfg(target_os = "linux")]
            Self::Uring(ref ring) => ring.bind(handle, kind, entry, owned),
            #[cfg(unix)]
            Self::Readiness(ref readiness) => readiness.bind(handle, kind, entry, owned),
        }
    }

    /// The registration has ended; `left` says that something is still in flight under it.
    pub(crate) fn unbind(&self, handle: RawHandle, entry: EntryId, left: bool) {
        with!(self, room => room.unbind(handle, entry, left));
    }

    /// A registration ends: nothing that waits for its turn under it is started any more.
    pub(crate) fn forget(&self, entry: EntryId) {
        match *self {
            #[cfg(windows)]
            Self::Windows(ref port) => port.forget(entry),
            #[cfg(feature = "sim")]
            Self::Sim(ref port) => port.forget(entry),
            // Their rooms are told in `unbind`.
            #[cfg(unix)]
            _ => {}
        }
    }

    /// Has the system see what was begun: nobody may look at the kernel again for a while.
    pub(crate) fn hand_over(&self) {
        #[cfg(target_os = "linux")]
        if let Self::Uring(ring) = self {
            ring.flush(false);
        }
    }

    /// How long a look may be put off, in ms, also where no descriptor tells of anything.
    pub(crate) fn look_within(&self) -> u32 {
        with!(self, room => room.look_within())
    }

    pub(crate) fn identity(&self, handle: RawHandle, mark: Mark) -> Identity {
        with!(self, room => room.identity(handle, mark))
    }

    /// Asks for an operation to be cancelled; true where there was something to cancel.
    pub(crate) fn cancel(&self, slot: SlotRef) -> bool {
        with!(self, room => room.cancel(slot))
    }

    /// Whether the system has an operation that has not ended, or it only waits for its turn.
    pub(crate) fn has(&self, slot: SlotRef) -> bool {
        match *self {
            #[cfg(windows)]
            Self::Windows(ref port) => port.has(slot),
            #[cfg(feature = "sim")]
            Self::Sim(ref port) => port.has(slot),
            #[cfg(unix)]
            _ => true,
        }
    }

    /// Makes the call at once, where that neither blocks nor overtakes another: how it ended, or
    /// nothing, and then nothing has happened.
    ///
    /// # Safety
    /// What `call` points to is valid while this runs.
    #[cfg(unix)]
    #[inline(always)]
    pub(crate) unsafe fn attempt(&self, source: &RefCell<Source>, call: Call) -> Option<Ending> {
        let is_tried = match call {
            Call::Connect { .. } | Call::Sync { .. } => false,
            Call::Accept { .. } | Call::Ready { .. } => matches!(self, Self::Readiness(_)),
            _ => true,
        };
        // SAFETY: passed on.
        if is_tried { unsafe { source::attempt(source, call) } } else { None }
    }

    /// What a kernel of Unix knows of a registration's handle.
    #[cfg(unix)]
    pub(crate) fn source(&self, entry: EntryId) -> Option<SharedSource> {
        self.sources()?.get(entry)
    }

    /// What a kernel of Unix knows of its handles.
    #[cfg(unix)]
    #[inline(always)]
    fn sources(&self) -> Option<&Sources> {
        match *self {
            #[cfg(feature = "sim")]
            Self::Sim(_) => None,
            #[cfg(target_os = "linux")]
            Self::Uring(ref ring) => Some(ring.sources()),
            Self::Readiness(ref readiness) => Some(readiness.sources()),
        }
    }

    /// Has the operation in `slot` wait for its handle, where that is all there is to do: whether it does, or
    /// nothing, and then nothing has happened. It is not in its registration's list then.
    ///
    /// # Safety
    /// What `call` points to stays valid, and nobody else's, until the operation's end.
    #[cfg(unix)]
    #[inline(always)]
    pub(crate) unsafe fn launch(
        &self,
        source: &RefCell<Source>,
        slot: SlotRef,
        entry: EntryId,
        handle: RawHandle,
        call: Call,
    ) -> Option<Result<(), unix::Errno>> {
        match source::launch(source, slot, entry, handle, call)? {
            0 => Some(Ok(())),
            more => Some(self.watch_for(slot, more)),
        }
    }

    /// Whether a send is best handed over with others, `ready` of which may be about to begin.
    #[cfg(unix)]
    #[inline(always)]
    pub(crate) fn collects(&self, ready: usize) -> bool {
        match *self {
            #[cfg(target_os = "linux")]
            Self::Uring(ref ring) => ring.collects(ready),
            _ => false,
        }
    }

    /// Has the send in `slot` handed over with others, if nothing speaks against it. Else nothing has happened.
    ///
    /// # Safety
    /// What `call` points to stays valid, and nobody else's, until the operation's end.
    #[cfg(unix)]
    #[inline(always)]
    pub(crate) unsafe fn send(
        &self,
        source: &RefCell<Source>,
        slot: SlotRef,
        entry: EntryId,
        handle: RawHandle,
        call: Call,
    ) -> bool {
        match *self {
            #[cfg(target_os = "linux")]
            // SAFETY: passed on.
            Self::Uring(ref ring) => unsafe { ring.send(source, slot, entry, handle, call) },
            _ => false,
        }
    }

    /// The handle may have been told to be ready while nobody waited: whoever waits next has not tried.
    #[cfg(unix)]
    #[cold]
    pub(crate) fn doubt(&self, source: &RefCell<Source>) {
        if let Some(sources) = self.sources() {
            sources.doubt(source);
        }
    }

    #[cfg(unix)]
    #[inline(never)]
    fn watch_for(&self, slot: SlotRef, more: u8) -> Result<(), unix::Errno> {
        match *self {
            #[cfg(feature = "sim")]
            Self::Sim(_) => unreachable!("a port launches nothing"),
            #[cfg(target_os = "linux")]
            Self::Uring(ref ring) => ring.watch_for(slot, more),
            Self::Readiness(ref readiness) => readiness.watch_for(slot, more),
        }
    }

    /// A registration has ended as its handle was closed: nothing is done by its number any more.
    #[cfg(unix)]
    pub(crate) fn retire(&self, entry: EntryId) {
        if let Some(sources) = self.sources() {
            sources.retire(entry);
        }
    }

    /// Gives `link` the operations of a registration that ends which are not in its list yet.
    #[cfg(unix)]
    pub(crate) fn adopt(&self, entry: EntryId, link: impl FnMut(SlotRef)) {
        if let Some(sources) = self.sources() {
            sources.adopt(entry, link);
        }
    }

    /// Starts the call as the operation in `slot`, which was exposed under its registration.
    ///
    /// # Safety
    /// What `call` points to stays valid, and nobody else's, until the operation's end.
    pub(crate) unsafe fn submit(&self, slot: SlotRef, call: Call) -> Outcome {
        match *self {
            // SAFETY: passed on.
            #[cfg(target_os = "linux")]
            Self::Uring(ref ring) => unsafe { ring.submit(slot, call) },
            // SAFETY: passed on.
            #[cfg(unix)]
            Self::Readiness(ref readiness) => unsafe { readiness.submit(slot, call) },
            // SAFETY: passed on.
            #[cfg(windows)]
            Self::Windows(ref port) => unsafe { port.submit(slot, call) },
            // SAFETY: passed on.
            #[cfg(feature = "sim")]
            Self::Sim(ref port) => unsafe { port.submit(slot, call) },
        }
    }

    /// Takes what has come since, and gives it to `sink`.
    #[inline(always)]
    pub(crate) fn dequeue(&self, timeout_ms: u32, sink: &mut impl Sink) -> io::Result<()> {
        with!(self, room => room.dequeue(timeout_ms, sink))
    }

    pub(crate) fn now(&self) -> Duration {
        with!(self, room => room.now())
    }

    #[inline]
    pub(crate) fn coarse_now(&self) -> Duration {
        with!(self, room => room.coarse_now())
    }
}

#[cfg(unix)]
impl std::os::fd::AsFd for Kernel {
    /// # Panics
    /// On a simulated kernel.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            #[cfg(feature = "sim")]
            Self::Sim(_) => panic!("a simulated queue has no descriptor that the system knows"),
            #[cfg(target_os = "linux")]
            Self::Uring(ring) => ring.as_fd(),
            Self::Readiness(readiness) => readiness.as_fd(),
        }
    }
}

/// Wakes a queue that waits in its kernel. Keeps what it rings open for as long as it exists.
pub(crate) enum Alarm {
    /// Posts to a completion port.
    #[cfg(windows)]
    Windows(Arc<Port>),
    /// Posts to a simulated one.
    #[cfg(feature = "sim")]
    Sim(Arc<sim::Port>),
    /// Writes to a descriptor that the kernel watches.
    #[cfg(unix)]
    Unix(Arc<unix::Bell>),
}

impl Alarm {
    /// Fails where the kernel has no memory for a packet (pitfall 15).
    pub(crate) fn ring(&self) -> io::Result<()> {
        match *self {
            #[cfg(windows)]
            Self::Windows(ref port) => post_wake::<Windows>(port),
            #[cfg(feature = "sim")]
            Self::Sim(ref port) => post_wake::<sim::Simulated>(port),
            #[cfg(unix)]
            Self::Unix(ref bell) => bell.ring(),
        }
    }

    /// The completion port.
    #[cfg(windows)]
    pub(crate) fn port(&self) -> &Port {
        match self {
            Self::Windows(port) => port,
            #[cfg(feature = "sim")]
            Self::Sim(_) => panic!("a simulated queue has no port that Windows knows"),
        }
    }
}
