//! An io_uring, and the calls that are made directly where the ring would be the longer way.
//!
//! **Sockets** are tried directly, told not to block; what would block waits for the edge
//! ([`source`](super::source)), which a poll in the ring tells that fires more than once. Measured, this is
//! faster than receives as submissions, for one connection and for many: a poll that stays costs nothing between
//! two messages, a receive has to be set up for each (docs/PERFORMANCE.md has the figures). Sends that answer
//! something, while others are about to do the same, are submissions ([`Uring::collects`]): one system call for
//! all.
//!
//! **Files** are tried directly as well (`RWF_NOWAIT`); what is not in memory is a submission. So is all
//! else: pipes and terminals where they can't be asked, accepts, connects, waits for readiness, syncs. The next look
//! at the kernel hands over all submissions in the system call that waits.
//!
//! The ring is used as the newest kernels like it, and older ones (5.11 and up) as they can: one issuer,
//! completions only when we ask (`DEFER_TASKRUN`), the ring's own descriptor registered. What there is is
//! tried, never assumed. See io_uring_setup(2) and io_uring_enter(2).
//!
//! **Memory.** A submission's user data is its slot's address; the slot stays the kernel's, by its status
//! word, from `submit` until its completion has been taken off the ring here. Closing the ring does not
//! wait for what it still writes to; that the slab leaks such slots does (rule 0, pitfall 43).
//!
//! **Order.** What follows a stream ([`Call::is_sequential`]) has its lane: the kernel has the first, the
//! others wait here.
//!
//! **Descriptors.** A submission names a descriptor by its number until the kernel has seen it, and a poll
//! holds its file open. So when a registration ends, all is handed over and its poll taken back, before the
//! descriptor can be closed. A close that is an operation comes after the completions of all others.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, cqueue, opcode, types};

use super::call::{Call, Direction};
use super::linux;
use super::source::{self, DOUBT_MS, IN, Medium, OUT, Source, Sources, entry_of};
use super::unix::{self, Bell, Errno, cut, ending};
use super::{BindError, Binding, Identity, Mark, Sink, tell};
use crate::handle::{EntryId, HandleKind, RawHandle};
use crate::iocp::Outcome;
use crate::op::{self, Accepted, Closing, Datagram, Events};
use crate::operation::{SlotRef, State};
use crate::time::FOR_EVER_MS;

/// Submissions between two system calls. More are handed over in between.
const ENTRIES: u32 = 256;

/// Completions that are taken off the ring at a time.
const BATCH: usize = 16;
/// How many of them a look sees to.
const MOST_SEEN: usize = 4 * ENTRIES as usize;

/// When that is due.
static DOUBTS_AFTER: types::Timespec = types::Timespec::new().nsec(DOUBT_MS * 1_000_000);

/// The user data of what nobody waits for, and of the bell. Slots' addresses are multiples of 64.
const NOBODY: u64 = 0;
const BELL: u64 = 2;
/// Of the timer for what waits in doubt.
const DOUBTS: u64 = 4;
/// Added to a slot's address: the ring waits until the handle is ready for the call.
const POLLS: u64 = 1;
/// The lowest bits of a source's polls; the others are its key.
const SOURCE_IN: u64 = 3;
const SOURCE_OUT: u64 = 7;
/// Added to a slot's address: a send.
const SENDS: u64 = 5;
/// Added to a slot's address: the cancel of what is in it.
const CANCELS: u64 = 6;
const TAG: u64 = 7;

/// How many others have to be ready, or sends be begun, for a send to be handed over with theirs.
const CROWD: usize = 2;

/// `IORING_ENTER_*`, see io_uring_enter(2).
const GET_EVENTS: u32 = 1;
const REGISTERED: u32 = 16;
/// Whoever waits is not said to wait for a disk, which takes two locked instructions (Linux 6.16).
const NO_IOWAIT: u32 = 128;

/// One io_uring.
pub(crate) struct Uring {
    ring: RefCell<IoUring>,
    /// The ring's descriptor, or its registered number, and the flag that says which.
    descriptor: RawFd,
    enter_flags: u32,
    /// Tells a host that waits for it that a look would find something: the ring's own descriptor does not,
    /// as what comes is taken in by looks only (`DEFER_TASKRUN`). Made when a host asks for it.
    host: OnceCell<Arc<Bell>>,
    bell: Arc<Bell>,
    bell_rings: Cell<bool>,
    /// The timer for what waits in doubt is set.
    doubts_are_timed: Cell<bool>,
    /// A poll may bring more than one completion (Linux 5.13).
    has_multishot: Cell<bool>,
    /// Sends that were not handed over yet.
    sends: Cell<usize>,
    /// Linux 6.0 or newer.
    is_recent: bool,
    sources: Sources,
    /// Handles to be closed when nothing on them is in flight any more.
    closings: RefCell<Vec<SlotRef>>,
    /// What found no room in the submission queue, in order.
    backlog: RefCell<VecDeque<Entry>>,
    /// What was taken off the ring to make room, and not gone through. Older than what is on the ring.
    early: RefCell<VecDeque<Completion>>,
    /// None of what is rare is there: the bell is watched, no host waits, nothing is in these three lists. Said here,
    /// as a look asks for each otherwise.
    is_plain: Cell<bool>,
}

impl Uring {
    /// # Errors
    /// Where the system has no io_uring, refuses it, or has one that is too old.
    pub(crate) fn new() -> io::Result<Self> {
        let (mut ring, is_recent) = setup()?;
        let parameters = ring.params();
        // With these came what is needed of Linux 5.11: waits with a time limit.
        if !parameters.is_feature_ext_arg() || !parameters.is_feature_nodrop() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "io_uring of before Linux 5.11",
            ));
        }
        // A sandbox may allow the ring and refuse its use: one look tells.
        let look = |flags| {
            // SAFETY: hands over nothing and waits for nothing.
            unsafe { ring.submitter().enter::<libc::sigset_t>(0, 0, GET_EVENTS | flags, None) }
        };
        let flags = if look(NO_IOWAIT).is_ok() { NO_IOWAIT } else { 0 };
        look(flags)?;
        debug_assert!(ring.submission().is_empty());
        let bell = Arc::new(Bell::new()?);
        // Last: what is registered stays so, and keeps the ring open, where this fails.
        let raw = ring.as_raw_fd();
        let registered = register(raw);
        Ok(Self {
            descriptor: registered.unwrap_or(raw),
            enter_flags: if registered.is_some() { flags | REGISTERED } else { flags },
            host: OnceCell::new(),
            bell,
            bell_rings: Cell::new(false),
            doubts_are_timed: Cell::new(false),
            has_multishot: Cell::new(true),
            sends: Cell::new(0),
            is_recent,
            sources: Sources::default(),
            closings: RefCell::default(),
            backlog: RefCell::default(),
            early: RefCell::default(),
            is_plain: Cell::new(false),
            ring: RefCell::new(ring),
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
        self.sources.bind(handle, kind, entry, owned)
    }

    /// The descriptor may be closed from now on.
    pub(crate) fn unbind(&self, _: RawHandle, entry: EntryId, left: bool) {
        let (key, watched) = self.sources.with(entry, |source| (source.key, source.watched));
        for what in [IN, OUT] {
            if watched & what != 0 {
                // Not PollRemove, which gives up on a poll that has just fired (EALREADY).
                let entry = opcode::AsyncCancel::new(poll_data(key, what)).build();
                self.push(entry.user_data(NOBODY));
            }
        }
        self.hand_over(left || watched != 0);
        self.sources.retire(entry);
    }

    pub(crate) fn identity(&self, handle: RawHandle, mark: Mark) -> Identity {
        unix::identity(handle, mark)
    }

    // -- starting --------------------------------------------------------------------------------

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
        if let Call::ReadAt { offset, .. } | Call::WriteAt { offset, .. } = call {
            // To the ring such a place means the current one.
            if i64::try_from(offset).is_err() {
                return Outcome::from_errno(libc::EINVAL);
            }
        }
        slot.set_call(call);
        if let Call::Close { .. } = call {
            if !self.push_close(slot) {
                self.closings.borrow_mut().push(slot);
                self.is_plain.set(false);
            }
            return Outcome::PENDING;
        }
        let waits = call.is_sequential()
            && self.sources.with(entry_of(slot), |source| {
                let lane = source.lane(call);
                let waits = !lane.is_empty();
                lane.push(slot);
                waits
            });
        if !waits {
            self.push_call(slot);
        }
        Outcome::PENDING
    }

    /// Whether a send is best handed over with others, `ready` of which may be about to begin.
    #[inline(always)]
    pub(crate) fn collects(&self, ready: usize) -> bool {
        self.is_recent && (cfg!(ioqueue_collect) || ready + self.sends.get() >= CROWD)
    }

    /// Makes the send of a socket a submission, if nothing speaks against it.
    ///
    /// # Safety
    /// What `call` points to stays valid, and nobody else's, until the operation's end.
    #[inline(always)]
    pub(crate) unsafe fn send(
        &self,
        source: &RefCell<Source>,
        slot: SlotRef,
        entry: EntryId,
        handle: RawHandle,
        call: Call,
    ) -> bool {
        let (Call::Send { at, length } | Call::Write { at, length }) = call else { return false };
        let Some(fd) = source::submit(source, slot, entry, handle, call) else { return false };
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        let entry = opcode::Send::new(types::Fd(fd), at, cut(length)).flags(flags).build();
        self.push(entry.user_data(slot.address() as u64 | SENDS));
        self.sends.set(self.sends.get() + 1);
        true
    }

    /// Has the ring tell of each edge of a source that brings something, or of the next that makes room.
    fn watch(&self, source: &Source, what: u8) -> Result<(), Errno> {
        // Not EPOLLPRI: with it TCP's acknowledgements come as edges too, each of which costs a receive.
        const COMES: i32 = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET;
        let fd = types::Fd(source.fd);
        if what & IN != 0 {
            let poll = opcode::PollAdd::new(fd, COMES as u32).multi(self.has_multishot.get());
            self.push(poll.build().user_data(poll_data(source.key, IN)));
        }
        if what & OUT != 0 {
            // The ring's polls end with half a hang-up, too, and with an error that stands, so that one for the next
            // event only would do so over and over (io_uring/poll.c, IO_POLL_UNMASK).
            let stays = source.ends_every_poll && self.has_multishot.get();
            let flags = libc::EPOLLOUT | if stays { libc::EPOLLET } else { 0 };
            let poll = opcode::PollAdd::new(fd, flags as u32).multi(stays);
            self.push(poll.build().user_data(poll_data(source.key, OUT)));
        }
        Ok(())
    }

    /// Hands the slot's call to the ring.
    fn push_call(&self, slot: SlotRef) {
        let (fd, medium) = self.sources.with(entry_of(slot), |source| {
            if source.medium == Medium::File && slot.call().writes_on() {
                source.writes_from = unix::position(source.fd);
            }
            (source.fd, source.medium)
        });
        let entry = prepare(slot.call(), fd, medium);
        self.push(entry.user_data(slot.address() as u64));
    }

    /// Hands a close to the ring, if nothing on the handle is in flight any more.
    fn push_close(&self, slot: SlotRef) -> bool {
        let Call::Close { closing } = slot.call() else { unreachable!("it is to be closed") };
        // SAFETY: the operation's memory is the kernel's, which is us, until its end.
        let Some(fd) = (unsafe { Closing::take_free(closing) }) else { return false };
        let entry = opcode::Close::new(types::Fd(fd.into_raw_fd())).build();
        self.push(entry.user_data(slot.address() as u64));
        true
    }

    /// Closes what has become free. A host that waits on the ring alone would not come to hand it over.
    fn close_what_is_free(&self) {
        let mut closings = self.closings.borrow_mut();
        let before = closings.len();
        closings.retain(|&slot| !self.push_close(slot));
        if closings.len() < before {
            self.flush(false);
        }
    }

    /// Waits until the slot's handle is ready for its call.
    fn push_poll(&self, slot: SlotRef) {
        let fd = self.sources.with(entry_of(slot), |source| source.fd);
        slot.set_polls(true);
        let flags = match slot.call().direction() {
            Direction::In => libc::POLLIN,
            Direction::Out => libc::POLLOUT,
        };
        let entry = opcode::PollAdd::new(types::Fd(fd), flags as u32).build();
        self.push(entry.user_data(slot.address() as u64 | POLLS));
    }

    fn push(&self, entry: Entry) {
        if self.backlog.borrow().is_empty() {
            if self.try_push(&entry) {
                return;
            }
            self.flush(false);
            if self.try_push(&entry) {
                return;
            }
        }
        self.backlog.borrow_mut().push_back(entry);
        self.is_plain.set(false);
    }

    /// False where the submission queue is full.
    fn try_push(&self, entry: &Entry) -> bool {
        // SAFETY: what the entry points to is the operation's, in its slot or owned by it, and stays
        // until the operation's completion has been taken off the ring (see `submit`).
        unsafe { self.ring.borrow_mut().submission().push(entry) }.is_ok()
    }

    /// Moves what found no room to where there is some now. False where there was not enough.
    fn unload_backlog(&self) -> bool {
        let mut backlog = self.backlog.borrow_mut();
        while let Some(entry) = backlog.front() {
            if !self.try_push(entry) {
                return false;
            }
            backlog.pop_front();
        }
        true
    }

    /// Hands over all submissions before a descriptor may be closed that they name. A system without memory
    /// just now is asked again: what it has not seen would be done to whatever has the number then.
    fn hand_over(&self, finish: bool) {
        loop {
            self.flush(finish);
            if self.is_handed_over() || !self.lacks_memory() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether the system has seen all submissions.
    fn is_handed_over(&self) -> bool {
        self.backlog.borrow().is_empty() && self.ring.borrow_mut().submission().is_empty()
    }

    /// Whether the system takes no submissions just now, but may later.
    fn lacks_memory(&self) -> bool {
        let count = self.ring.borrow_mut().submission().len() as u32;
        match self.enter(count, 0, 0, None) {
            Ok(_) => true,
            Err(errno) => {
                matches!(errno, libc::EAGAIN | libc::ENOMEM | libc::EINTR | libc::EBUSY)
            }
        }
    }

    /// Hands over all submissions, and waits for nothing. `finish` has the kernel finish what has ended,
    /// which lets go of its files.
    pub(crate) fn flush(&self, finish: bool) {
        loop {
            let is_all = self.unload_backlog();
            let count = self.ring.borrow_mut().submission().len() as u32;
            if count == 0 && !finish {
                return;
            }
            // What the kernel does not take now stays in the queue.
            let handed = self.enter(count, 0, if finish { GET_EVENTS } else { 0 }, None);
            let goes_on = match handed {
                Ok(taken) => taken > 0,
                // Completions have to be taken first.
                Err(libc::EBUSY) if self.take_completions() => true,
                Err(_) => return,
            };
            let mut ring = self.ring.borrow_mut();
            let submissions = ring.submission();
            // It finishes a few at a time only (io_uring/io_uring.c, IO_LOCAL_TW_DEFAULT_MAX).
            let has_work = finish && submissions.taskrun();
            if !has_work && (!goes_on || (is_all && submissions.is_empty())) {
                return;
            }
        }
    }

    /// Takes what there is off the ring, for the next look to go through. False where there was nothing.
    fn take_completions(&self) -> bool {
        let mut early = self.early.borrow_mut();
        let before = early.len();
        self.is_plain.set(false);
        early.extend(self.ring.borrow_mut().completion().map(|entry| facts(&entry)));
        early.len() > before
    }

    /// io_uring_enter(2).
    #[inline(always)]
    fn enter(
        &self,
        count: u32,
        wanted: u32,
        flags: u32,
        limit: Option<&types::Timespec>,
    ) -> Result<u32, Errno> {
        self.sends.set(0);
        // SAFETY: the ring is ours. What the submissions point to was promised when they were pushed.
        unsafe { linux::enter(self.descriptor, count, wanted, flags | self.enter_flags, limit) }
    }

    // -- ending ----------------------------------------------------------------------------------

    pub(crate) fn cancel(&self, slot: SlotRef) -> bool {
        if !slot.is_kernels() || slot.entry().is_none() {
            return false;
        }
        let call = slot.call();
        let (is_submitted, is_kernels) = self.sources.with(entry_of(slot), |source| {
            // What waits for the edge has not been seen by the kernel, nor what waits for its turn.
            let waits_here = source.medium == Medium::Socket && call.waits_for_the_edge();
            let is_first = source.lane(call).first() == Some(slot);
            let is_kernels = !waits_here && (is_first || !call.is_sequential());
            (source.has_submitted(slot), is_kernels)
        });
        if is_submitted {
            return true; // It ends by itself with the next look, as it does not block.
        }
        if !is_kernels {
            return self.sources.cancel(slot);
        }
        self.push_cancel(slot);
        true
    }

    fn push_cancel(&self, slot: SlotRef) {
        let polls = if slot.polls() { POLLS } else { 0 };
        let entry = opcode::AsyncCancel::new(slot.address() as u64 | polls).build();
        self.push(entry.user_data(slot.address() as u64 | CANCELS));
    }

    /// A cancel has found, or not found, what it was for. Between two tries of a call that its descriptor says is ready,
    /// and would block all the same, the system does not find it: of a connect to a listener of a path without room, which
    /// tries a hundred times, and a write that does not fit into an eventfd.
    #[cold]
    fn cancel_ended(&self, slot: SlotRef, result: i32) {
        // There may be another in the slot by now: nothing is done to that but what was asked for. A close, which is
        // of no registration, is never cancelled: the descriptor would stay open.
        let is_unwanted = matches!(slot.state(), State::Cancelling | State::Orphaned);
        let is_close = slot.entry().is_none();
        if result == -libc::ENOENT && is_unwanted && !is_close && slot.is_kernels() {
            self.push_cancel(slot);
        }
    }

    /// How long a look may be put off, in ms.
    pub(crate) fn look_within(&self) -> u32 {
        let is_timed = !self.sources.has_doubts() || self.doubts_are_timed.get();
        let is_all = is_timed && self.is_handed_over() && self.early.borrow().is_empty();
        self.sources.longest(if is_all { FOR_EVER_MS } else { 0 })
    }

    #[inline(always)]
    pub(crate) fn dequeue(&self, timeout_ms: u32, sink: &mut impl Sink) -> io::Result<()> {
        if !self.is_plain.get() && !self.bell_rings.get() {
            self.watch_bell();
        }
        if self.sources.has_doubts() && !self.doubts_are_timed.get() {
            self.set_timer();
        }
        let answer = self.look(self.sources.longest(timeout_ms));
        if let Some(host) = self.host.get() {
            self.renew(host);
        }
        let (mut batch, mut seen, mut rang) = ([const { MaybeUninit::uninit() }; BATCH], 0, false);
        // Those that come while these are looked at are for the next look, but for a few.
        while seen < MOST_SEEN {
            if !self.is_plain.get() {
                rang |= self.go_through_early(sink);
            }
            let taken = self.ring.borrow_mut().completion().fill(&mut batch);
            for completion in &*taken {
                let is_alone = seen == 0 && taken.len() == 1;
                rang |= self.completed(facts(completion), is_alone, sink);
            }
            if taken.len() < BATCH {
                break;
            }
            seen += BATCH;
        }
        self.sources.drain(sink);
        if !self.is_plain.get() {
            self.see_to_the_rare();
        }
        if rang {
            sink.rang();
        }
        answer
    }

    /// Waits for a while before the slot's call is made again: again and again its handle was said to be ready, and was
    /// not. An eventfd says that there is room for what does not fit.
    #[cold]
    fn push_pause(&self, slot: SlotRef) {
        slot.set_polls(true);
        let entry = opcode::Timeout::new(&raw const DOUBTS_AFTER).build();
        self.push(entry.user_data(slot.address() as u64 | POLLS));
    }

    /// What a look does at its end besides, where there is something rare.
    #[cold]
    fn see_to_the_rare(&self) {
        if !self.closings.borrow().is_empty() {
            self.close_what_is_free();
        }
        if let Some(host) = self.host.get() {
            self.leave_to(host);
        }
        self.is_plain.set(
            self.bell_rings.get()
                && self.host.get().is_none()
                && self.closings.borrow().is_empty()
                && self.backlog.borrow().is_empty()
                && self.early.borrow().is_empty(),
        );
    }

    /// Sees to a completion. True where it is the bell's.
    #[inline(always)]
    fn completed(
        &self,
        (user_data, result, flags): Completion,
        is_alone: bool,
        sink: &mut impl Sink,
    ) -> bool {
        match user_data & TAG {
            SOURCE_IN if self.something_came(user_data, result, flags, sink) => {}
            SOURCE_IN | SOURCE_OUT => self.edge(user_data, result, flags, sink),
            SENDS => {
                // SAFETY: with this tag, a slot's address; which is there as below.
                let slot = unsafe { SlotRef::from_address((user_data & !TAG) as usize) };
                let watch = |source: &Source, more| self.watch(source, more);
                self.sources.submission_ended(slot, result, watch, sink);
            }
            _ if user_data == BELL => return self.bell_rang(result, flags),
            _ if user_data == DOUBTS => {
                self.doubts_are_timed.set(false);
                self.sources.resolve_doubts(is_alone, sink);
            }
            _ if user_data == NOBODY => {}
            tag => {
                // SAFETY: all other user data is a slot's address, with a tag perhaps. The slot's slab is still there:
                // it is part of the queue that this ring is part of.
                let slot = unsafe { SlotRef::from_address((user_data & !TAG) as usize) };
                if tag == CANCELS {
                    self.cancel_ended(slot, result);
                } else {
                    self.answered(slot, tag == POLLS, result, sink);
                }
            }
        }
        false
    }

    /// Sees to what was taken off the ring before, which is older than what is on it. True where the bell rang.
    #[cold]
    fn go_through_early(&self, sink: &mut impl Sink) -> bool {
        let (mut rang, count) = (false, self.early.borrow().len());
        for _ in 0..count {
            let Some(completion) = self.early.borrow_mut().pop_front() else { break };
            rang |= self.completed(completion, false, sink);
        }
        rang
    }

    /// A host waits for the descriptor from now on, until something comes: nothing may be left for the next
    /// look, which would not come.
    fn leave_to(&self, host: &Bell) {
        if !self.bell_rings.get() {
            self.watch_bell();
        }
        if self.sources.has_doubts() && !self.doubts_are_timed.get() {
            self.set_timer();
        }
        self.flush(false);
        let has_work = {
            let mut ring = self.ring.borrow_mut();
            let submissions = ring.submission();
            submissions.taskrun() || submissions.cq_overflow()
        };
        if has_work || !self.early.borrow().is_empty() {
            // It cannot fail but for a descriptor that is closed, which this is not.
            let _ = host.ring();
        }
    }

    /// What a host was told of until now is in the batch that follows, or seen at its end to be left.
    ///
    /// Its descriptor is registered anew: of what comes from within a write to another eventfd newer kernels tell once a
    /// registration, and late (io_uring/eventfd.c, IO_EVENTFD_OP_SIGNAL_BIT is never cleared).
    #[cold]
    fn renew(&self, host: &Bell) {
        host.empty();
        let ring = self.ring.borrow();
        let submitter = ring.submitter();
        let _ = submitter.unregister_eventfd();
        if submitter.register_eventfd(host.as_fd().as_raw_fd()).is_err() {
            // No memory just now: it is to come again.
            let _ = host.ring();
        }
    }

    /// Has a descriptor say when a look would find something.
    fn make_host(&self) -> io::Result<Arc<Bell>> {
        let host = Arc::new(Bell::new()?);
        self.ring.borrow().submitter().register_eventfd(host.as_fd().as_raw_fd())?;
        // What has come before is told of as well.
        host.ring()?;
        self.bell.ring_too(&host);
        Ok(host)
    }

    /// True where all that a source's poll says is that something has come, and it was seen to.
    #[inline(always)]
    fn something_came(
        &self,
        user_data: u64,
        result: i32,
        flags: u32,
        sink: &mut impl Sink,
    ) -> bool {
        let is_its = |source: &Source| poll_data(source.key, IN) == user_data;
        let index = EntryId::index_of_key((user_data >> 3) as usize);
        let is_all = result == libc::POLLIN.into() && cqueue::more(flags);
        is_all && self.sources.something_came(index, is_its, sink)
    }

    /// A source's poll has fired.
    #[inline(never)]
    fn edge(&self, user_data: u64, result: i32, flags: u32, sink: &mut impl Sink) {
        let (events, may_watch) = match -result {
            ..=0 => (unix::events_of(result as i16), true),
            // No memory for it just now, say. Whoever waits is watched again.
            libc::ECANCELED | libc::ENOMEM => (Events::default(), true),
            libc::EINVAL => {
                self.has_multishot.set(false); // Linux 5.11 and 5.12.
                (Events::default(), true)
            }
            // A descriptor that was closed under its registration, say: the calls themselves tell.
            _ => (unix::events_of(libc::POLLERR), false),
        };
        let what = if user_data & TAG == SOURCE_IN { IN } else { OUT };
        self.sources.became_ready(
            EntryId::index_of_key((user_data >> 3) as usize),
            |source| poll_data(source.key, what) == user_data,
            events,
            if cqueue::more(flags) { 0 } else { what },
            |source, more| if may_watch { self.watch(source, more) } else { Err(libc::EBADF) },
            sink,
        );
    }

    /// Hands over what there is and waits for a completion, if none is there.
    #[inline(always)]
    fn look(&self, timeout_ms: u32) -> io::Result<()> {
        let is_plain = self.is_plain.get();
        let is_all = is_plain || self.unload_backlog();
        let mut ring = self.ring.borrow_mut();
        // What is still to be handed over may be what ends first.
        let waits = timeout_ms > 0
            && is_all
            && ring.completion().is_empty()
            && (is_plain || self.early.borrow().is_empty());
        let submissions = ring.submission();
        let count = submissions.len() as u32;
        if count == 0 && !waits {
            // Without the flag that says whether there is work, there may be.
            let has_work = !self.is_recent || submissions.taskrun() || submissions.cq_overflow();
            if !has_work {
                return Ok(());
            }
        }
        drop(submissions);
        drop(ring);
        let is_limited = waits && timeout_ms != u32::MAX;
        let entered = if is_limited {
            let limit = types::Timespec::from(Duration::from_millis(timeout_ms.into()));
            self.enter(count, 1, GET_EVENTS, Some(&limit))
        } else {
            self.enter(count, u32::from(waits), GET_EVENTS, None)
        };
        match entered {
            Ok(_) => Ok(()),
            // The time is up; a signal came (pitfall 42); completions have to be taken first; or
            // there is no memory just now. What was not handed over stays where it is.
            Err(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            Err(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    #[cold]
    fn set_timer(&self) {
        let entry = opcode::Timeout::new(&raw const DOUBTS_AFTER).build();
        self.doubts_are_timed.set(true);
        self.push(entry.user_data(DOUBTS));
    }

    fn watch_bell(&self) {
        let fd = types::Fd(self.bell.as_fd().as_raw_fd());
        let flags = libc::POLLIN as u32 | libc::EPOLLET as u32;
        let entry = opcode::PollAdd::new(fd, flags).multi(self.has_multishot.get()).build();
        self.bell_rings.set(true);
        self.push(entry.user_data(BELL));
    }

    /// True where somebody rang.
    fn bell_rang(&self, result: i32, flags: u32) -> bool {
        if !cqueue::more(flags) {
            self.bell_rings.set(false);
            self.is_plain.set(false);
        }
        if result < 0 {
            self.has_multishot.set(false);
            return false;
        }
        if !self.has_multishot.get() {
            self.bell.empty();
        }
        true
    }

    /// A completion for an operation.
    fn answered(&self, slot: SlotRef, polled: bool, result: i32, sink: &mut impl Sink) {
        let is_wanted = slot.state() == State::InFlight;
        // The end of a pause is as good as that of a poll.
        let result = if polled && result == -libc::ETIME { 0 } else { result };
        if (result == -libc::EAGAIN || result == -libc::EWOULDBLOCK) && can_be_polled(slot.call()) {
            // Its descriptor was told not to block, so the ring did not wait for it.
            if is_wanted && !polled {
                if slot.may_return() {
                    self.push_poll(slot);
                } else {
                    self.push_pause(slot);
                }
                return;
            }
        }
        if is_wanted && result > 0 && self.is_false_alarm(slot, result) {
            self.push_call(slot);
            return;
        }
        let is_close = matches!(slot.call(), Call::Close { .. });
        let interrupted = result == -libc::EINTR && !is_close;
        let returned = result == -libc::ECANCELED && is_wanted && self.lacked_a_thread(slot);
        if (polled && result >= 0 || interrupted || returned) && is_wanted {
            slot.set_polls(false);
            self.push_call(slot);
            return;
        }
        let result = match (slot.call(), result) {
            // A wait that is not wanted any more; or a cancel that came between the two.
            (_, 0..) if polled => Err(libc::ECANCELED),
            // Closed all the same, and its number perhaps another's by now (close(2), NOTES).
            (Call::Close { .. }, -4) => Ok(0),
            // io_uring's way of saying that a cancel got it while it slept.
            (_, -4) => Err(libc::ECANCELED),
            (_, ..0) => Err(-result),
            // SAFETY: the operation has ended, so what it points to is ours; and the descriptor is
            // nobody's yet.
            (Call::Accept { accepted }, fd) => unsafe {
                Accepted::take_in(accepted, fd);
                Ok(0)
            },
            (Call::ReceiveFrom { datagram }, count) => {
                // SAFETY: the call has ended, in the operation's memory.
                unsafe { Datagram::received(datagram) };
                Ok(count as u32)
            }
            (Call::Ready { .. }, revents) => Ok(u32::from(unix::events_of(revents as i16).bits())),
            (_, count) => Ok(count as u32),
        };
        // SAFETY: the operation's memory is there until it is told of its end.
        if let Some(count) = result.ok().filter(|&it| unsafe { slot.call().got_stuck(it) }) {
            self.mend_position(slot, count);
        }
        if slot.call().is_sequential() {
            let next = self.sources.with(entry_of(slot), |source| {
                let lane = source.lane(slot.call());
                debug_assert!(lane.first() == Some(slot));
                lane.pop();
                lane.first()
            });
            if let Some(next) = next {
                self.push_call(next);
            }
        }
        tell(sink, slot, ending(result));
    }

    /// A write to a file that got stuck half-way, as the disk was full, has moved the file's position to
    /// where it ended only if nothing was wrong with the rest (io_uring/rw.c, kiocb_done). The next would
    /// take place over it.
    fn mend_position(&self, slot: SlotRef, count: u32) {
        let entry = entry_of(slot);
        self.sources.with(entry, |source| {
            // Not where the descriptor may be another's by now.
            let is_ours = source.key == entry.key();
            if let (true, Some(from)) = (is_ours, source.writes_from.take()) {
                let end = from + u64::from(count);
                if unix::position(source.fd).is_some_and(|now| now < end) {
                    unix::set_position(source.fd, end);
                }
            }
        });
    }

    /// Whether a call that nobody has cancelled came back cancelled because the kernel could make no thread
    /// for it: it tries three times, and a signal ends each (io_uring/io-wq.c, io_should_retry_thread).
    fn lacked_a_thread(&self, slot: SlotRef) -> bool {
        let is_files = |entry| self.sources.with(entry, |source| source.medium == Medium::File);
        slot.entry().is_some_and(is_files) && slot.may_return()
    }

    /// Whether a wait for urgent data was woken by usual data: sockets wake for both alike, and say so (see
    /// `prepare`).
    fn is_false_alarm(&self, slot: SlotRef, revents: i32) -> bool {
        if !matches!(slot.call(), Call::Ready { event: op::Event::PriorityRead }) {
            return false;
        }
        let fd = self.sources.with(entry_of(slot), |source| source.fd);
        let is_over = unix::events_of(revents as i16).says(op::Event::Error);
        !is_over && unix::ready_now(fd, op::Event::PriorityRead) == Err(libc::EAGAIN)
    }

    pub(crate) fn now(&self) -> Duration {
        unix::now()
    }

    pub(crate) fn coarse_now(&self) -> Duration {
        unix::coarse_now()
    }
}

impl AsFd for Uring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        if self.host.get().is_none() {
            if let Ok(host) = self.make_host() {
                let _ = self.host.set(host);
                self.is_plain.set(false);
            }
        }
        if let Some(host) = self.host.get() {
            return host.as_fd();
        }
        // With no descriptor left. It says less.
        // SAFETY: the ring keeps its descriptor open for as long as it lives, which the borrow does not
        // outlive: `ring` is never replaced.
        unsafe { BorrowedFd::borrow_raw(self.ring.borrow().as_raw_fd()) }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if self.enter_flags & REGISTERED != 0 {
            // The registration would keep the ring open until the thread ends.
            unregister(self.ring.get_mut().as_raw_fd(), self.descriptor);
        }
    }
}

/// User data, result and flags.
type Completion = (u64, i32, u32);

#[inline]
fn facts(entry: &cqueue::Entry) -> Completion {
    (entry.user_data(), entry.result(), entry.flags())
}

/// The user data of a source's poll.
#[inline]
fn poll_data(key: usize, what: u8) -> u64 {
    (key as u64) << 3 | if what == IN { SOURCE_IN } else { SOURCE_OUT }
}

/// The newest kind of ring there is, and whether that is of Linux 6.0 or newer.
fn setup() -> io::Result<(IoUring, bool)> {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_clamp().setup_cqsize(4 * ENTRIES);
    let mut recent = builder.clone();
    recent
        .setup_submit_all()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_defer_taskrun();
    // DEFER_TASKRUN came with 6.1, the rest before; NO_SQARRAY with 6.6.
    let newest = recent.clone().setup_no_sqarray().build(ENTRIES);
    let is_unknown = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    match newest
        .or_else(|error| if is_unknown(&error) { recent.build(ENTRIES) } else { Err(error) })
    {
        Ok(ring) => Ok((ring, true)),
        Err(error) if is_unknown(&error) => Ok((builder.build(ENTRIES)?, false)),
        Err(error) => Err(error),
    }
}

/// As `struct io_uring_rsrc_update` has it.
#[repr(C)]
struct Registration {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// `IORING_REGISTER_RING_FDS` and its opposite (Linux 5.18).
const REGISTER_RING_FDS: u32 = 20;
const UNREGISTER_RING_FDS: u32 = 21;

/// Registers the ring's descriptor with itself, which saves a look-up a call; its number then.
fn register(ring: RawFd) -> Option<RawFd> {
    let mut update = Registration { offset: u32::MAX, reserved: 0, data: ring as u64 };
    let count =
        // SAFETY: one update, which is ours, and to which the kernel writes the number.
        unsafe { register_call(ring, REGISTER_RING_FDS, &raw mut update) };
    (count == 1).then_some(update.offset as RawFd)
}

fn unregister(ring: RawFd, registered: RawFd) {
    let mut update = Registration { offset: registered as u32, reserved: 0, data: 0 };
    // SAFETY: one update, which is ours.
    unsafe { register_call(ring, UNREGISTER_RING_FDS, &raw mut update) };
}

/// io_uring_register(2) with one update.
///
/// # Safety
/// `update` is valid for reads and writes.
unsafe fn register_call(ring: RawFd, what: u32, update: *mut Registration) -> i64 {
    // SAFETY: passed on.
    unsafe { libc::syscall(libc::SYS_io_uring_register, ring, what, update, 1) }
}

/// Whether a poll tells when a call that would have blocked is to be made again.
fn can_be_polled(call: Call) -> bool {
    match call {
        // A listener of a path that has no room is no business of the socket's: it is always "ready".
        // SAFETY: the address is the operation's, which has not ended; nobody writes to it.
        Call::Connect { peer } => unsafe { !(*peer).is_path() },
        Call::Close { .. } => false,
        _ => true,
    }
}

/// The submission for a call.
fn prepare(call: Call, fd: RawFd, medium: Medium) -> Entry {
    /// "At the current position."
    const ON: u64 = u64::MAX;
    let fd = types::Fd(fd);
    let is_socket = medium == Medium::Socket;
    match call {
        Call::Read { at, length } if is_socket => opcode::Recv::new(fd, at, cut(length)).build(),
        Call::Receive { at, length } => opcode::Recv::new(fd, at, cut(length)).build(),
        Call::Write { at, length } if is_socket => {
            opcode::Send::new(fd, at, cut(length)).flags(libc::MSG_NOSIGNAL).build()
        }
        Call::Send { at, length } => {
            opcode::Send::new(fd, at, cut(length)).flags(libc::MSG_NOSIGNAL).build()
        }
        Call::Read { at, length } => opcode::Read::new(fd, at, cut(length)).offset(ON).build(),
        Call::Write { at, length } => opcode::Write::new(fd, at, cut(length)).offset(ON).build(),
        Call::ReadAt { at, length, offset } => {
            opcode::Read::new(fd, at, cut(length)).offset(offset).build()
        }
        Call::WriteAt { at, length, offset } => {
            opcode::Write::new(fd, at, cut(length)).offset(offset).build()
        }
        Call::ReadVectored { parts, count, .. } => {
            opcode::Readv::new(fd, parts.cast(), count as u32).offset(ON).build()
        }
        Call::WriteVectored { parts, count, .. } => {
            opcode::Writev::new(fd, parts.cast(), count as u32).offset(ON).build()
        }
        Call::ReceiveFrom { datagram } => {
            // SAFETY: the call's promise.
            opcode::RecvMsg::new(fd, unsafe { Datagram::message(datagram) }).build()
        }
        Call::SendTo { datagram } => {
            // SAFETY: the call's promise.
            let message = unsafe { Datagram::message(datagram) };
            opcode::SendMsg::new(fd, message).flags(libc::MSG_NOSIGNAL as u32).build()
        }
        Call::Accept { accepted } => {
            // SAFETY: the call's promise.
            let (address, length) = unsafe { Accepted::address(accepted) };
            opcode::Accept::new(fd, address.cast(), length).flags(libc::SOCK_CLOEXEC).build()
        }
        Call::Connect { peer } => {
            // SAFETY: the call's promise: the address is there, and nobody writes to it.
            let length = unsafe { (*peer).length };
            opcode::Connect::new(fd, peer.cast(), length).build()
        }
        Call::Shutdown { how } => opcode::Shutdown::new(fd, unix::shutdown_flag(how)).build(),
        Call::Sync { data_only } => {
            let flags =
                if data_only { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
            opcode::Fsync::new(fd).flags(flags).build()
        }
        Call::Ready { event } => {
            // The ring hears no wake-up for POLLPRI alone, of which it has a use of its own (io_uring/poll.c,
            // IO_ASYNC_POLL_COMMON). Sockets wake for POLLRDBAND with it.
            let urgent = if event == op::Event::PriorityRead { libc::POLLRDBAND } else { 0 };
            opcode::PollAdd::new(fd, (unix::poll_flag(event) | urgent) as u32).build()
        }
        Call::Overlapped | Call::Close { .. } => opcode::Nop::new().build().flags(Flags::empty()),
    }
}
