//! Readiness: a call is made when it would not block.
//!
//! Each call is tried first. What would block waits in its handle's lane until the poller says that the
//! handle is ready, and is tried again ([`source`](super::source)).
//!
//! Files are always "ready" and block all the same; what is not in memory already (`RWF_NOWAIT`) is read
//! and written by threads ([`pool`]).
//!
//! On Linux the poller is epoll, called directly: the crate `polling` makes three more system calls a
//! wait (it sets a timer descriptor and arms two descriptors anew), which a message to and fro cannot
//! afford. Everywhere else it is `polling`, and on Linux with `--cfg ioqueue_polling`, for the tests.

#[cfg(all(target_os = "linux", not(ioqueue_polling)))]
#[path = "readiness/epoll.rs"]
mod poller;
#[cfg(any(not(target_os = "linux"), ioqueue_polling))]
#[path = "readiness/polling.rs"]
mod poller;
mod pool;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use self::poller::Poller;
use self::pool::Jobs;
use super::call::Call;
use super::source::{DOUBT_MS, IN, Medium, OUT, Source, Sources, entry_of};
use super::unix::{self, Bell, Errno, Tried};
use super::{BindError, Binding, Identity, Mark, Sink};
use crate::handle::{EntryId, HandleKind, RawHandle};
use crate::iocp::Outcome;
use crate::op::{Closing, Events};
use crate::operation::SlotRef;
use crate::time::FOR_EVER_MS;

/// The poller's keys for the bell, and for its timer. No registration has them.
const BELL: usize = usize::MAX;
const TIMER: usize = usize::MAX - 2;

/// A poller and what waits for it.
pub(crate) struct Readiness {
    poller: Poller,
    bell: Arc<Bell>,
    sources: Sources,
    jobs: Arc<Jobs>,
    /// The poller's timer is set for what waits in doubt.
    doubts_are_timed: Cell<bool>,
    /// Where it has none, since when somebody does.
    doubts_since: Cell<Option<Duration>>,
}

impl Readiness {
    /// # Errors
    /// When the system gives no descriptors.
    pub(crate) fn new() -> io::Result<Self> {
        let bell = Arc::new(Bell::new()?);
        let poller = Poller::new(bell.as_fd(), BELL)?;
        let jobs = Jobs::new(Arc::clone(&bell));
        Ok(Self {
            poller,
            bell,
            sources: Sources::default(),
            jobs,
            doubts_are_timed: Cell::new(false),
            doubts_since: Cell::new(None),
        })
    }

    pub(crate) fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    pub(crate) fn bind(
        &self,
        handle: RawHandle,
        kind: HandleKind,
        entry: EntryId,
        owned: bool,
    ) -> Result<Binding, BindError> {
        let binding = self.sources.bind(handle, kind, entry, owned)?;
        self.sources.with(entry, |source| {
            // A socket's calls can be told one by one not to block; a file's block in any case.
            source.may_change_mode = source.medium == Medium::Stream;
        });
        Ok(binding)
    }

    /// The descriptor may be closed, or go to another queue, from now on.
    pub(crate) fn unbind(&self, _: RawHandle, entry: EntryId, _: bool) {
        self.sources.with(entry, |source| {
            if source.watched != 0 {
                source.watched = 0;
                self.poller.forget(source.fd);
            }
        });
        self.sources.restore_mode(entry);
        self.sources.retire(entry);
    }

    pub(crate) fn identity(&self, handle: RawHandle, mark: Mark) -> Identity {
        unix::identity(handle, mark)
    }

    /// Has what was launched watched for more.
    pub(crate) fn watch_for(&self, slot: SlotRef, more: u8) -> Result<(), Errno> {
        self.sources.watch(slot, more, |source, more| self.watch(source, more))
    }

    pub(crate) fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Comes after `attempt` and `launch` have found nothing.
    ///
    /// # Safety
    /// What `call` points to stays valid, and nobody else's, until the operation's end.
    pub(crate) unsafe fn submit(&self, slot: SlotRef, call: Call) -> Outcome {
        if let Call::Close { closing } = call {
            // SAFETY: passed on.
            slot.end(unsafe { Closing::close(closing) });
            return Outcome::FINISHED;
        }
        slot.set_call(call);
        let (fd, medium) = self.sources.with(entry_of(slot), |source| (source.fd, source.medium));
        // No event tells of a sync, whatever it is for; of most the answer is an error.
        if medium == Medium::File || matches!(call, Call::Sync { .. }) {
            return self.queue_job(slot);
        }
        if let Call::Connect { peer } = call {
            let was_to_block = self.sources.with(entry_of(slot), |source| {
                source.make_nonblocking();
                source.made_nonblocking
            });
            // SAFETY: passed on.
            let (mut tried, is_path) = unsafe { (unix::connect(fd, peer), (*peer).is_path()) };
            // SAFETY: passed on.
            if tried == Tried::WouldBlock && unsafe { (*peer).is_loopback() } {
                // On this machine the other end's system has mostly answered by now.
                // SAFETY: passed on.
                tried = unsafe { unix::connect_again(fd, peer) };
            }
            match tried {
                Tried::Moved(count) => return at_once(slot, Ok(count)),
                Tried::Failed(errno) => return at_once(slot, Err(errno)),
                // As the call itself does: it waits for such a listener unless it was told never to wait.
                _ if is_path && !was_to_block => return at_once(slot, Err(libc::EAGAIN)),
                _ => {}
            }
        }
        match self.sources.wait(slot, |source, more| self.watch(source, more)) {
            Ok(()) => {}
            // /dev/null and its like cannot be watched, and do not block.
            Err(libc::EPERM) => {
                self.sources.with(entry_of(slot), |source| source.medium = Medium::File);
                return self.queue_job(slot);
            }
            Err(errno) => return Outcome::from_errno(errno),
        }
        if let Call::Ready { event } = call {
            // Its edge may have come and gone before anybody waited.
            if let Ok(bits) = unix::ready_now(fd, event) {
                self.sources.with(entry_of(slot), |source| source.lane(call).remove(slot));
                return at_once(slot, Ok(bits));
            }
        }
        Outcome::PENDING
    }

    #[inline(always)]
    fn watch(&self, source: &Source, more: u8) -> Result<(), Errno> {
        let is_new = source.watched == 0;
        let watched = self.poller.watch(source.fd, source.key, source.watched | more, is_new);
        watched.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
    }

    pub(crate) fn cancel(&self, slot: SlotRef) -> bool {
        if !slot.is_kernels() || slot.entry().is_none() {
            return false;
        }
        // The first of a file's lane is a thread's; the others only wait.
        let first = self.sources.with(entry_of(slot), |source| {
            let first = source.lane(slot.call()).first();
            first.filter(|_| source.medium == Medium::File)
        });
        if first == Some(slot) {
            return self.jobs.cancel(slot);
        }
        self.sources.cancel(slot) || self.jobs.cancel(slot)
    }

    /// How long a look may be put off, in ms.
    pub(crate) fn look_within(&self) -> u32 {
        let is_told = !self.sources.has_doubts() || self.doubts_are_timed.get();
        let longest = match self.doubts_since.get() {
            _ if is_told => FOR_EVER_MS,
            None => 0, // The look is to set the timer.
            Some(_) => DOUBT_MS,
        };
        self.sources.longest(longest)
    }

    #[inline(always)]
    pub(crate) fn dequeue(&self, timeout_ms: u32, sink: &mut impl Sink) -> io::Result<()> {
        let mut longest = self.sources.longest(timeout_ms);
        if self.sources.has_doubts() && !self.doubts_are_timed.get() && !self.set_timer() {
            longest = longest.min(DOUBT_MS);
        }
        let mut round =
            Round { readiness: self, sink: &mut *sink, heard: false, rang: false, timer: false };
        let answer = self.poller.wait(longest, &mut round);
        let Round { heard, rang, timer, .. } = round;
        if timer {
            self.doubts_are_timed.set(false);
            self.sources.resolve_doubts(!heard, sink);
            // A host that waits for the poller would not come to set it.
            if self.sources.has_doubts() {
                self.set_timer();
            }
        } else if let Some(since) = self.doubts_since.get() {
            let is_due = (unix::coarse_now().saturating_sub(since)).as_millis() >= DOUBT_MS.into();
            if is_due || (!heard && longest > 0) {
                self.doubts_since.set(None);
                self.sources.resolve_doubts(!heard, sink);
            }
        }
        if rang {
            if self.poller.forgets() {
                self.bell.empty();
            }
            self.take_jobs();
        }
        self.sources.drain(sink);
        if rang {
            sink.rang();
        }
        answer
    }

    /// Has the poller tell when those are to be looked after who wait in doubt. False where it has no timer: then
    /// looks at it are to be short.
    #[cold]
    fn set_timer(&self) -> bool {
        let is_set = self.poller.set_timer(TIMER, DOUBT_MS);
        self.doubts_are_timed.set(is_set);
        if !is_set && self.doubts_since.get().is_none() {
            self.doubts_since.set(Some(unix::coarse_now()));
        }
        is_set
    }

    // -- files -----------------------------------------------------------------------------------

    /// What follows a file's position keeps its order by having one at a time; what has a place of its
    /// own goes on side by side.
    fn queue_job(&self, slot: SlotRef) -> Outcome {
        if let Call::Ready { event } = slot.call() {
            return at_once(slot, Ok(event.bit().into())); // A file always is.
        }
        self.sources.with(entry_of(slot), |source| {
            if slot.call().is_sequential() {
                let lane = source.lane(slot.call());
                let is_first = lane.is_empty();
                lane.push(slot);
                if !is_first {
                    return;
                }
            }
            self.start_job(slot, source);
        });
        Outcome::PENDING
    }

    fn start_job(&self, slot: SlotRef, source: &mut Source) {
        match source.for_threads() {
            Ok(file) => self.jobs.start(slot, file),
            // With no descriptor left it blocks its queue.
            Err(_) => self.jobs.make_here(slot, source.fd),
        }
    }

    /// What the threads have done since.
    fn take_jobs(&self) {
        let mut ended = self.sources.ended.borrow_mut();
        let first = ended.len();
        self.jobs.take(&mut ended);
        for &(slot, _) in &ended[first..] {
            if slot.call().is_sequential() {
                self.sources.with(entry_of(slot), |source| {
                    let lane = source.lane(slot.call());
                    lane.pop();
                    // When the registration ended, what waited was taken out of the lane.
                    if let Some(next) = lane.first() {
                        self.start_job(next, source);
                    }
                });
            }
        }
    }

    pub(crate) fn now(&self) -> Duration {
        unix::now()
    }

    pub(crate) fn coarse_now(&self) -> Duration {
        unix::coarse_now()
    }
}

/// What a look at the poller brings.
struct Round<'a, S> {
    readiness: &'a Readiness,
    sink: &'a mut S,
    /// Something else than the timer.
    heard: bool,
    rang: bool,
    timer: bool,
}

/// Takes what the poller says. A trait, as a closure cannot be told to be inlined.
trait Listener {
    fn event(&mut self, key: usize, events: Events);
}

impl<S: Sink> Listener for Round<'_, S> {
    #[inline(always)]
    fn event(&mut self, key: usize, events: Events) {
        if key == TIMER {
            self.timer = true;
            return;
        }
        self.heard = true;
        if key == BELL {
            self.rang = true;
            return;
        }
        let Readiness { poller, sources, .. } = self.readiness;
        let index = EntryId::index_of_key(key);
        let is_its = |source: &Source| source.key == key;
        let is_all = events == Events::READ && !poller.forgets();
        if is_all && sources.something_came(index, is_its, self.sink) {
            return;
        }
        sources.became_ready(
            index,
            is_its,
            events,
            if poller.forgets() { IN | OUT } else { 0 },
            |source, more| self.readiness.watch(source, more),
            self.sink,
        );
    }
}

impl AsFd for Readiness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }
}

/// An operation that was over before it waited.
fn at_once(slot: SlotRef, result: Result<u32, Errno>) -> Outcome {
    slot.end(unix::ending(result));
    Outcome::FINISHED
}
