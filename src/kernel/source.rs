//! What a Unix kernel's room knows of each registered descriptor: what it leads to, and the operations
//! that wait for it.
//!
//! Handles are watched by the edge: the poller, epoll or a poll of the ring's that fires more than once,
//! speaks up when there is something new, and only then. So every call is tried before it waits; and a
//! handle is watched from its first wait to the end of its registration.
//!
//! A receive on a stream that got less than it had room for has taken all there was (epoll(7), "Possible
//! pitfalls"), so the next one waits for the edge without trying. There are ways to be wrong about that: a
//! mark for urgent data, a descriptor that was sent along, end a receive early too. So a wait that trusts it
//! is looked at again [`DOUBT_MS`] after the first that did. That is told by a timer of the poller's: a time
//! limit of each wait of the queue's would cost the system more than the message that ends it. So it is with a
//! send that got less away than it was to: there is no room now. And where the end has been told of, a receive
//! takes what is before it, and it is told of only once.

use super::call::{Call, Direction};
use super::unix::{self, Tried, ending};
use super::{BindError, Binding, Mark, Sink, tell};
use crate::handle::{EntryId, HandleKind, RawHandle};
use crate::op;
use crate::op::Events;
use crate::operation::{Ending, SlotRef, State};
use std::cell::{Cell, RefCell};
use std::os::fd::{OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

/// When a queue looks after those that wait without having tried.
pub(crate) const DOUBT_MS: u32 = 50;

/// Whether pollers tell of the end of a stream. The crate `polling` does not: it knows no half-closed ones, and
/// on kqueue no end at all.
const ENDS_ARE_TOLD: bool = cfg!(all(target_os = "linux", not(ioqueue_polling)));

/// Watched for what may come, and its end.
pub(crate) const IN: u8 = 1;
/// Watched for room to write. Apart, as a stream that only reads would be told of every acknowledgement.
pub(crate) const OUT: u8 = 2;

/// The direction as one of these.
#[inline(always)]
const fn bit(direction: Direction) -> u8 {
    match direction {
        Direction::In => IN,
        Direction::Out => OUT,
    }
}

/// What a descriptor leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Medium {
    /// A socket: its calls can be told not to block.
    Socket,
    /// A file or a disk: always "ready", and blocks all the same.
    File,
    /// A pipe, a terminal, a device, an eventfd: a stream without places.
    Stream,
}

/// Operations in the order they were started. Each knows its neighbours, so that any is taken out at once.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lane {
    first: Option<SlotRef>,
    last: Option<SlotRef>,
}

impl Lane {
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(crate) fn first(&self) -> Option<SlotRef> {
        self.first
    }

    #[inline]
    pub(crate) fn push(&mut self, slot: SlotRef) {
        let before = self.last.replace(slot);
        slot.set_behind(None);
        slot.set_before(before);
        match before {
            Some(before) => before.set_behind(Some(slot)),
            None => self.first = Some(slot),
        }
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Option<SlotRef> {
        let first = self.first?;
        self.first = first.behind();
        match self.first {
            Some(next) => next.set_before(None),
            None => self.last = None,
        }
        Some(first)
    }

    /// Takes one out. False where it is not in it.
    pub(crate) fn remove(&mut self, slot: SlotRef) -> bool {
        let Some(before) = slot.before() else {
            // What has left a lane is behind nobody.
            return self.first == Some(slot) && self.pop().is_some();
        };
        before.set_behind(slot.behind());
        match slot.behind() {
            Some(behind) => behind.set_before(Some(before)),
            None => self.last = Some(before),
        }
        slot.set_before(None);
        true
    }

    /// All of them. The one that is given may be taken out meanwhile.
    fn iter(&self) -> impl Iterator<Item = SlotRef> + use<> {
        let mut next = self.first;
        std::iter::from_fn(move || {
            let slot = next?;
            next = slot.behind();
            Some(slot)
        })
    }
}

/// No registration has this key.
const RETIRED: usize = 0;

/// A registered descriptor.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) fd: RawFd,
    /// Its registration's key, which is never another's; [`RETIRED`] when that has ended.
    pub(crate) key: usize,
    pub(crate) medium: Medium,
    /// For what the poller watches it: [`IN`], [`OUT`].
    pub(crate) watched: u8,
    /// Where its calls can't be told one by one not to block, its mode may be changed.
    pub(crate) may_change_mode: bool,
    /// Its mode is that its calls never block.
    nonblocking: bool,
    /// That was our doing, and is to be undone.
    pub(crate) made_nonblocking: bool,
    /// Which file it is: asked when its mode is changed.
    file: Option<Mark>,
    /// Somebody else owns it, may close it unsaid when nothing waits, and what has its number then may have
    /// the same mark: eventfds have all one, and so has what a terminal's name, or a fifo's, was opened
    /// for.
    looks_alike: bool,
    /// The file under a descriptor of its own, for threads: theirs to use when this one is closed.
    for_threads: Option<Arc<OwnedFd>>,
    /// For what it never answers a direct call, [`IN`], [`OUT`]: no use in trying. Some file systems read
    /// at once and do not write so.
    never_direct: u8,
    /// The last receive took all there was, and no edge has come since.
    drained: bool,
    /// The last send got less away than it was to, and no edge has come since.
    full: bool,
    /// Whether a short receive or send means that. Asked when it matters.
    is_stream: Option<bool>,
    /// Where the write in flight began, for a file.
    #[cfg(target_os = "linux")]
    pub(crate) writes_from: Option<u64>,
    /// The other end will send no more, or there is an error that stays: no poll waits any more, whatever it is for.
    pub(crate) ends_every_poll: bool,
    input: Lane,
    output: Lane,
    /// Something was received since the last send.
    owes: bool,
    /// The first of those that wait to send is a submission of the ring's.
    #[cfg(target_os = "linux")]
    submitted: bool,
    /// Those that wait to be told that it is ready, and make no call.
    onlookers: Lane,
    /// What all of them share: somebody waits without having tried, or is told by nobody.
    doubtful: Rc<Cell<bool>>,
}

impl Source {
    fn is_retired(&self) -> bool {
        self.key == RETIRED
    }

    /// Where the call waits for its turn.
    #[inline(always)]
    pub(crate) fn lane(&mut self, call: Call) -> &mut Lane {
        match (call, call.direction()) {
            (Call::Ready { .. }, _) => &mut self.onlookers,
            (_, direction) => self.lane_of(direction),
        }
    }

    fn lane_of(&mut self, direction: Direction) -> &mut Lane {
        match direction {
            Direction::In => &mut self.input,
            Direction::Out => &mut self.output,
        }
    }

    /// What something waits for, of what is not watched.
    fn unwatched(&self) -> u8 {
        let mut needed = 0;
        if !self.input.is_empty() {
            needed |= IN;
        }
        if !self.output.is_empty() && !self.is_submitted() {
            needed |= OUT;
        }
        if !self.onlookers.is_empty() {
            needed |= IN | OUT;
        }
        needed & !self.watched
    }

    /// Whether an edge will say that there is something again, or room. Of a file's none does, nor of a pipe's on
    /// the ring.
    fn hears_edges(&self) -> bool {
        self.medium == Medium::Socket || self.watched != 0
    }

    /// Whether nothing waits but for what may come.
    #[inline]
    fn only_input_waits(&self) -> bool {
        (self.output.is_empty() || self.is_submitted()) && self.onlookers.is_empty()
    }

    /// Whether what waits to send waits for a submission of the ring's to end, and for no edge.
    #[inline]
    pub(crate) fn is_submitted(&self) -> bool {
        #[cfg(target_os = "linux")]
        return self.submitted;
        #[cfg(not(target_os = "linux"))]
        false
    }

    /// Whether this operation is that submission.
    #[cfg(target_os = "linux")]
    pub(crate) fn has_submitted(&self, slot: SlotRef) -> bool {
        self.submitted && self.output.first() == Some(slot)
    }

    fn is_idle(&self) -> bool {
        self.input.is_empty() && self.output.is_empty() && self.onlookers.is_empty()
    }

    /// Makes its calls never block, until the registration ends. The mode is one with that of duplicates: who
    /// has such a one, another queue say, may have taken it back.
    pub(crate) fn make_nonblocking(&mut self) {
        self.made_nonblocking |= unix::make_nonblocking(self.fd);
        if !self.nonblocking {
            self.nonblocking = true;
            if self.medium != Medium::Socket {
                self.file = unix::mark_of(self.fd);
            }
        }
    }

    /// The file for a thread's call, which may come to it after the descriptor was closed and its number
    /// given out again.
    pub(crate) fn for_threads(&mut self) -> Result<Arc<OwnedFd>, unix::Errno> {
        if self.for_threads.is_none() {
            self.for_threads = Some(Arc::new(unix::duplicate(self.fd)?));
        }
        self.for_threads.clone().ok_or(libc::EBADF)
    }

    /// # Safety
    /// What `call` points to is valid while this runs. The source is not retired: its descriptor is open then, as a
    /// `Registered` owns it (or a duplicate), whose drop ends the registration first.
    #[inline(always)]
    unsafe fn attempt(&mut self, call: Call) -> Result<u32, Tried> {
        let is_accept = matches!(call, Call::Accept { .. });
        // No flag makes a single accept not block, nor a single call of a terminal's.
        if is_accept || (self.nonblocking && self.medium != Medium::Socket) {
            self.make_nonblocking();
        }
        loop {
            // SAFETY: passed on; the medium was asked for when the descriptor was bound.
            match unsafe { unix::try_call(self.fd, self.medium, self.nonblocking, call) } {
                Ok(count) => {
                    if let Call::Receive { length, .. } | Call::Read { length, .. } = call {
                        self.drained = (count as usize) < length
                            && count > 0
                            && self.medium == Medium::Socket
                            && self.is_stream();
                        self.owes = true;
                    }
                    if let Call::Send { length, .. } | Call::Write { length, .. } = call {
                        self.full = (count as usize) < length
                            && self.medium == Medium::Socket
                            && self.is_stream();
                        self.owes = false;
                    }
                    return Ok(count);
                }
                Err(errno) => match self.failed(call.direction(), call.receives(), errno) {
                    Tried::Interrupted => {}
                    tried => return Err(tried),
                },
            }
        }
    }

    /// What is known after a call has failed. (Not handed over itself, which would keep it in memory.)
    #[cold]
    fn failed(&mut self, direction: Direction, receives: bool, errno: unix::Errno) -> Tried {
        let tried = unix::classify(errno, self.medium);
        match tried {
            Tried::WouldBlock if self.hears_edges() => self.drained |= receives,
            Tried::Unsupported if self.may_change_mode && !self.nonblocking => {
                self.make_nonblocking();
                return Tried::Interrupted; // And is tried again.
            }
            Tried::Unsupported => self.never_direct |= bit(direction),
            _ => {}
        }
        tried
    }

    #[inline(always)]
    fn is_stream(&mut self) -> bool {
        self.is_stream.unwrap_or_else(|| self.ask_whether_stream())
    }

    #[cold]
    fn ask_whether_stream(&mut self) -> bool {
        *self.is_stream.insert(unix::is_stream_socket(self.fd))
    }

    /// Whether the call would find what the last one has left: nothing.
    #[inline(always)]
    fn expects_nothing_of(&self, call: Call) -> bool {
        (self.drained && call.receives()) || (self.full && call.sends())
    }

    /// Tries what waits in a direction, in order, until something would block. What has ended is told of.
    #[inline(never)]
    fn retry(&mut self, direction: Direction, sink: &mut impl Sink) {
        if direction == Direction::Out && self.is_submitted() {
            return;
        }
        while let Some(slot) = self.lane_of(direction).first() {
            // SAFETY: the operation's memory is the kernel's, which is us, until its end. Something waits in the
            // lane, so the registration lasts: what does when it ends is taken out before.
            let tried = unsafe { self.attempt_any(slot.call()) };
            let how = match tried {
                Ok(count) => ending(Ok(count)),
                Err(Tried::Failed(errno)) => ending(Err(errno)),
                Err(Tried::Unsupported) => ending(Err(libc::EOPNOTSUPP)),
                Err(Tried::Moved(_) | Tried::WouldBlock | Tried::Interrupted) => return,
            };
            self.lane_of(direction).pop();
            tell(sink, slot, how);
        }
    }

    /// # Safety
    /// As [`attempt`](Self::attempt).
    #[inline(never)]
    unsafe fn attempt_any(&mut self, call: Call) -> Result<u32, Tried> {
        match call {
            Call::Connect { peer } => {
                // Who has a duplicate may have had its calls block again since.
                self.make_nonblocking();
                // SAFETY: passed on.
                match unsafe { unix::connect_ended(self.fd, peer) } {
                    Tried::Moved(count) => Ok(count),
                    tried => Err(tried),
                }
            }
            call if self.expects_nothing_of(call) => {
                self.doubtful.set(true);
                Err(Tried::WouldBlock)
            }
            // SAFETY: passed on.
            call => unsafe { self.attempt(call) },
        }
    }

    /// Has the operation wait until its handle is ready; `watch` has it watched for more than now. Says
    /// whether it waits without having tried.
    fn wait(
        &mut self,
        slot: SlotRef,
        watch: impl FnOnce(&Self, u8) -> Result<(), unix::Errno>,
    ) -> Result<bool, unix::Errno> {
        let call = slot.call();
        let needed = match (call, call.direction()) {
            (Call::Ready { .. }, _) => IN | OUT,
            (_, Direction::In) => IN,
            (_, Direction::Out) => OUT,
        };
        // What was closed since is watched no more, though another looks the same. (Closed while
        // something waits it would be misuse.)
        let is_unsure = self.looks_alike && self.is_idle();
        if needed & !self.watched != 0 || is_unsure {
            watch(self, needed & !self.watched)?;
            self.watched |= needed;
        }
        self.lane(call).push(slot);
        let is_doubtful = match call {
            Call::Connect { .. } => self.connects_unheard(),
            _ => self.expects_nothing_of(call),
        };
        Ok(is_doubtful)
    }

    /// Whether the call does not wait for what is before it, but ends that: a shutdown of a socket that connects.
    fn is_ended_by(&self, call: Call) -> bool {
        matches!(call, Call::Shutdown { .. })
            && self.output.first().is_some_and(|slot| matches!(slot.call(), Call::Connect { .. }))
    }

    /// Whether the first to write is a connect to a listener of this machine's: nothing tells when that has
    /// room.
    fn connects_unheard(&self) -> bool {
        match self.output.first().map(|slot| slot.call()) {
            // SAFETY: the address is the operation's, which waits.
            Some(Call::Connect { peer }) => unsafe { (*peer).is_path() },
            _ => false,
        }
    }

    /// Nothing waits but for what may come.
    #[inline(always)]
    fn something_came(&mut self, sink: &mut impl Sink) {
        self.drained = false;
        let Some(slot) = self.input.first() else { return };
        if let Some((at, length)) = slot.receive() {
            let call = Call::Receive { at, length };
            // SAFETY: the operation's memory is the kernel's, which is us, until its end. The descriptor is open, as
            // in `retry`; what is no socket refuses the call.
            let received = unsafe { unix::try_call(self.fd, Medium::Socket, false, call) };
            match received {
                Ok(count) => {
                    self.drained = (count as usize) < length && count > 0 && self.is_stream();
                    self.owes = true;
                    self.input.pop();
                    tell(sink, slot, ending(Ok(count)));
                }
                Err(errno) => self.did_not_come(slot, errno, sink),
            }
            if self.input.is_empty() {
                return;
            }
            if self.drained {
                // The next in line has not tried.
                self.doubtful.set(true);
                return;
            }
        }
        self.retry(Direction::In, sink);
    }

    /// A receive that was told that something has come has failed.
    #[cold]
    fn did_not_come(&mut self, slot: SlotRef, errno: unix::Errno, sink: &mut impl Sink) {
        if let Tried::Failed(errno) = self.failed(Direction::In, true, errno) {
            self.input.pop();
            tell(sink, slot, ending(Err(errno)));
        }
    }

    /// Whether a send may wait for others to be begun with it: it answers something, nothing is before it, and
    /// there is room as far as is known. Who sends on and on would be held up.
    #[inline(always)]
    pub(crate) fn may_be_collected(&self) -> bool {
        (self.owes || cfg!(ioqueue_collect))
            && self.medium == Medium::Socket
            && self.output.is_empty()
            && !self.full
    }

    /// See [`Sources::submission_ended`].
    #[cfg(target_os = "linux")]
    #[inline(always)]
    fn submission_ended(
        &mut self,
        slot: SlotRef,
        result: i32,
        watch: impl FnOnce(&Self, u8) -> Result<(), unix::Errno>,
        sink: &mut impl Sink,
    ) {
        debug_assert!(self.has_submitted(slot));
        self.submitted = false;
        match u32::try_from(result) {
            Ok(count) => {
                // By the number only while it is this handle's.
                self.full =
                    slot.call().is_short_send(count) && !self.is_retired() && self.is_stream();
                self.output.pop();
                tell(sink, slot, ending(Ok(count)));
            }
            Err(_) => self.submission_failed(slot, -result, sink),
        }
        if !self.output.is_empty() {
            self.retry(Direction::Out, sink);
            self.watch_for_more(watch);
        }
    }

    /// It ends with the error, or waits for room, if anybody still wants it.
    #[cold]
    fn submission_failed(&mut self, slot: SlotRef, errno: unix::Errno, sink: &mut impl Sink) {
        let errno = match self.failed(Direction::Out, false, errno) {
            Tried::Failed(errno) => errno,
            _ if slot.state() == State::InFlight && !self.is_retired() => return,
            _ => libc::ECANCELED,
        };
        self.output.pop();
        tell(sink, slot, ending(Err(errno)));
    }

    /// See [`Sources::became_ready`].
    fn became_ready(
        &mut self,
        events: Events,
        unwatched: u8,
        watch: impl FnOnce(&Self, u8) -> Result<(), unix::Errno>,
        sink: &mut impl Sink,
    ) {
        self.watched &= !unwatched;
        if events.says(op::Event::PriorityRead) {
            self.ends_every_poll |=
                events.contains(op::Event::Hangup) || events.contains(op::Event::Error);
            // Receives end at the mark; behind them is the end, of which no other edge will tell.
            self.is_stream = Some(false);
        }
        if events.says(op::Event::Read) || events.contains(op::Event::PriorityRead) {
            self.drained = false;
            self.retry(Direction::In, sink);
        }
        if events.says(op::Event::Write) {
            self.full = false;
            self.retry(Direction::Out, sink);
        }
        if !self.onlookers.is_empty() {
            self.show(if ENDS_ARE_TOLD { events } else { self.with_its_end(events) }, sink);
        }
        self.watch_for_more(watch);
    }

    /// Has all watched that something waits for.
    fn watch_for_more(&mut self, watch: impl FnOnce(&Self, u8) -> Result<(), unix::Errno>) {
        let needed = self.unwatched();
        if needed != 0 && watch(self, needed).is_ok() {
            self.watched |= needed;
        }
    }

    /// With what poll(2) says that the poller did not.
    fn with_its_end(&self, events: Events) -> Events {
        let more = unix::ready_now(self.fd, op::Event::Hangup).unwrap_or(0);
        Events::from_bits(events.bits() | more as u8)
    }

    /// Tells those who look on of what there is to see.
    #[cold]
    fn show(&mut self, events: Events, sink: &mut impl Sink) {
        for slot in self.onlookers.iter() {
            let Call::Ready { event } = slot.call() else { unreachable!("only those look on") };
            if events.says(event) {
                self.onlookers.remove(slot);
                tell(sink, slot, ending(Ok(events.bits().into())));
            }
        }
    }
}

/// How an operation ended, until the queue is told.
pub(crate) type Ended = (SlotRef, Ending);

/// A source, for its registration to have at hand.
pub(crate) type SharedSource = Rc<RefCell<Source>>;

/// The registered descriptors, and what has ended since the last look.
#[derive(Default)]
pub(crate) struct Sources {
    /// By the index of their registration; empty where none was bound yet.
    list: RefCell<Vec<Option<SharedSource>>>,
    /// Reused, so that it allocates nothing.
    pub(crate) ended: RefCell<Vec<Ended>>,
    /// Somebody waits without having tried, or is told by nobody.
    doubtful: Rc<Cell<bool>>,
}

impl Sources {
    /// A `Registered`'s handle cannot be closed under the queue, so nobody ever asks whether it was.
    pub(crate) fn bind(
        &self,
        handle: RawHandle,
        kind: HandleKind,
        entry: EntryId,
        owned: bool,
    ) -> Result<Binding, BindError> {
        let (fd, medium, mark) = match kind {
            HandleKind::Socket if owned => (descriptor(handle), Medium::Socket, Mark::Owned),
            _ => unix::examine(handle)?,
        };
        let source = Source {
            fd,
            key: entry.key(),
            medium,
            watched: 0,
            may_change_mode: false,
            nonblocking: false,
            made_nonblocking: false,
            file: None,
            looks_alike: !owned && medium == Medium::Stream,
            for_threads: None,
            never_direct: match medium {
                Medium::File if unix::is_past_the_cache(fd) => IN | OUT,
                _ => 0,
            },
            drained: false,
            full: false,
            // An end that came with the last bytes would be waited for in vain.
            is_stream: if ENDS_ARE_TOLD { None } else { Some(false) },
            #[cfg(target_os = "linux")]
            writes_from: None,
            ends_every_poll: false,
            input: Lane::default(),
            output: Lane::default(),
            owes: false,
            #[cfg(target_os = "linux")]
            submitted: false,
            onlookers: Lane::default(),
            doubtful: Rc::clone(&self.doubtful),
        };
        let mut list = self.list.borrow_mut();
        let index = entry.index();
        if index >= list.len() {
            list.resize_with(index + 1, || None);
        }
        match list[index].as_mut().and_then(Rc::get_mut) {
            Some(place) => *place.get_mut() = source,
            None => list[index] = Some(Rc::new(RefCell::new(source))),
        }
        Ok(Binding { skips: true, mark })
    }

    /// Does something with a source. `act` makes no call to this one.
    #[inline]
    pub(crate) fn with<R>(&self, entry: EntryId, act: impl FnOnce(&mut Source) -> R) -> R {
        let list = self.list.borrow();
        let source = list[entry.index()].as_ref().expect("an operation's handle was bound");
        act(&mut source.borrow_mut())
    }

    /// The source of a registration that has just been made, or is there.
    pub(crate) fn get(&self, entry: EntryId) -> Option<SharedSource> {
        self.list.borrow().get(entry.index())?.clone()
    }

    /// Undoes what was done to the mode of a source. A mode is shared by duplicates, as a terminal's input
    /// and output often are: one that is registered, and whose calls would block then, undoes it later. (A
    /// socket's few calls that need the mode look after it themselves.)
    pub(crate) fn restore_mode(&self, entry: EntryId) {
        let (was_made, medium, key, file) = self.with(entry, |source| {
            let was_made = std::mem::take(&mut source.made_nonblocking);
            if was_made {
                unix::make_blocking(source.fd);
            }
            (was_made, source.medium, source.key, source.file)
        });
        if !was_made || medium == Medium::Socket {
            return;
        }
        let list = self.list.borrow();
        let mut others = list.iter().flatten().map(|other| other.borrow_mut());
        let heir = others.find(|other| {
            let may_be = other.nonblocking && !other.is_retired() && other.key != key;
            may_be
                && other.file == file
                && unix::mark_of(other.fd) == file
                && !unix::is_nonblocking(other.fd)
        });
        if let Some(mut heir) = heir {
            heir.made_nonblocking = unix::make_nonblocking(heir.fd);
        }
    }

    /// Forgets the source: its registration has ended. What is in flight may still ask for it.
    pub(crate) fn retire(&self, entry: EntryId) {
        self.with(entry, |source| {
            source.key = RETIRED;
            source.for_threads = None;
        });
    }

    /// The submission has ended that was the first of those that wait to send. What could not be done without
    /// blocking waits for room as all else does.
    #[cfg(target_os = "linux")]
    pub(crate) fn submission_ended(
        &self,
        slot: SlotRef,
        result: i32,
        watch: impl FnOnce(&Source, u8) -> Result<(), unix::Errno>,
        sink: &mut impl Sink,
    ) {
        let list = self.list.borrow();
        let source =
            list[entry_of(slot).index()].as_ref().expect("an operation's handle was bound");
        source.borrow_mut().submission_ended(slot, result, watch, sink);
    }

    /// Has the source of what was launched watched for more. Where that fails the operation waits no more.
    pub(crate) fn watch(
        &self,
        slot: SlotRef,
        more: u8,
        watch: impl FnOnce(&Source, u8) -> Result<(), unix::Errno>,
    ) -> Result<(), unix::Errno> {
        self.with(entry_of(slot), |source| {
            let watched = watch(source, more);
            match watched {
                Ok(()) => source.watched |= more,
                Err(_) => {
                    source.lane(slot.call()).remove(slot);
                }
            }
            watched
        })
    }

    /// Gives `link` what waits under a registration that ends, and is in no list yet.
    pub(crate) fn adopt(&self, entry: EntryId, mut link: impl FnMut(SlotRef)) {
        let list = self.list.borrow();
        let Some(Some(source)) = list.get(entry.index()) else { return };
        let source = source.borrow();
        for lane in [source.input, source.output] {
            for slot in lane.iter() {
                if !slot.is_linked() && slot.entry() == Some(entry) {
                    link(slot);
                }
            }
        }
    }

    /// Has an operation wait until its handle is ready; `watch` has that watched for more than now.
    pub(crate) fn wait(
        &self,
        slot: SlotRef,
        watch: impl FnOnce(&Source, u8) -> Result<(), unix::Errno>,
    ) -> Result<(), unix::Errno> {
        if self.with(entry_of(slot), |source| source.wait(slot, watch))? {
            self.doubtful.set(true);
        }
        Ok(())
    }

    /// Takes an operation that waits out of its lane: it is cancelled. False where it does not wait.
    pub(crate) fn cancel(&self, slot: SlotRef) -> bool {
        let taken = self.with(entry_of(slot), |source| source.lane(slot.call()).remove(slot));
        if taken {
            self.ended.borrow_mut().push((slot, ending(Err(libc::ECANCELED))));
        }
        taken
    }

    /// The poller has something to say. What has ended is told of. What is `unwatched` the poller watches for no
    /// more; `watch` has it do so, if something waits.
    pub(crate) fn became_ready(
        &self,
        index: usize,
        is_it: impl FnOnce(&Source) -> bool,
        events: Events,
        unwatched: u8,
        watch: impl FnOnce(&Source, u8) -> Result<(), unix::Errno>,
        sink: &mut impl Sink,
    ) {
        let list = self.list.borrow();
        let Some(Some(source)) = list.get(index) else { return };
        let mut source = source.borrow_mut();
        // A descriptor that was closed while it was watched may live on in a duplicate.
        if !is_it(&source) {
            return;
        }
        source.became_ready(events, unwatched, watch, sink);
    }

    /// The commonest edge, apart: something has come for a source that is watched for that, and stays so. False,
    /// and nothing has happened, where that is not all there is to do.
    #[inline(always)]
    pub(crate) fn something_came(
        &self,
        index: usize,
        is_it: impl FnOnce(&Source) -> bool,
        sink: &mut impl Sink,
    ) -> bool {
        let list = self.list.borrow();
        let Some(Some(source)) = list.get(index) else { return false };
        let mut source = source.borrow_mut();
        let is_all = is_it(&source) && source.only_input_waits();
        if is_all {
            source.something_came(sink);
        }
        is_all
    }

    /// How long a look at the poller may take at most.
    #[inline]
    pub(crate) fn longest(&self, timeout_ms: u32) -> u32 {
        if self.ended.borrow().is_empty() { timeout_ms } else { 0 }
    }

    /// Whoever waits for the source next has not tried.
    pub(crate) fn doubt(&self, source: &RefCell<Source>) {
        let mut source = source.borrow_mut();
        // What is watched from now on is told of what is there already.
        if source.hears_edges() {
            (source.drained, source.full) = (true, true);
            self.doubtful.set(true);
        }
    }

    /// Whether somebody waits without having tried, or is told by nobody: [`resolve_doubts`] is to be called
    /// in a while.
    ///
    /// [`resolve_doubts`]: Self::resolve_doubts
    #[inline]
    pub(crate) fn has_doubts(&self) -> bool {
        self.doubtful.get()
    }

    /// Tries those who wait without having tried, or whom nobody tells anything. `idle` says that meanwhile
    /// nothing was told of.
    #[cold]
    pub(crate) fn resolve_doubts(&self, idle: bool, sink: &mut impl Sink) {
        self.doubtful.set(false);
        for source in self.list.borrow().iter().flatten() {
            let source = &mut *source.borrow_mut();
            // Where nobody watches, what is first in the lane is the kernel's.
            let waits = source.watched & IN != 0 && !source.input.is_empty();
            if waits && source.drained && unix::ready_now(source.fd, op::Event::Read).is_ok() {
                source.drained = false;
                if idle {
                    // It was wrong. In a busy queue the edge may just not have been told of yet.
                    source.is_stream = Some(false);
                }
                source.retry(Direction::In, sink);
            }
            let waits = source.watched & OUT != 0 && !source.output.is_empty();
            if waits && source.full && unix::ready_now(source.fd, op::Event::Write).is_ok() {
                source.full = false;
                source.retry(Direction::Out, sink);
            }
            if source.connects_unheard() {
                source.retry(Direction::Out, sink);
                if source.connects_unheard() {
                    self.doubtful.set(true);
                }
            }
        }
    }

    /// Tells of what was cancelled here.
    #[inline]
    pub(crate) fn drain(&self, sink: &mut impl Sink) {
        if self.ended.borrow().is_empty() {
            return;
        }
        let mut ended = self.ended.take();
        for (slot, ending) in ended.drain(..) {
            tell(sink, slot, ending);
        }
        // With what was cancelled while these were told of.
        let newer = self.ended.replace(ended);
        self.ended.borrow_mut().extend(newer);
    }
}

/// Makes the call if it neither blocks nor overtakes another, and the registration is there.
///
/// # Safety
/// What `call` points to is valid while this runs.
#[inline(always)]
pub(crate) unsafe fn attempt(source: &RefCell<Source>, call: Call) -> Option<Ending> {
    let mut source = source.borrow_mut();
    if source.is_retired()
        || source.never_direct & bit(call.direction()) != 0
        || source.expects_nothing_of(call)
        || (!call.has_a_place() && !source.lane(call).is_empty() && !source.is_ended_by(call))
    {
        return None;
    }
    // SAFETY: passed on; and it is not retired.
    match unsafe { source.attempt(call) } {
        // The rest of the file may be on the disk.
        Ok(count) if call.is_cut_short(count) => None,
        Ok(count) => Some(ending(Ok(count))),
        Err(Tried::Failed(errno)) => Some(ending(Err(errno))),
        Err(_) => None,
    }
}

/// Has a socket's call wait for its edge: for what its source is to be watched from now on. Nothing, and then
/// nothing has happened, where it is of another kind, or its registration is not there.
///
/// In its registration's list it is only from [`Sources::adopt`] on.
#[inline(always)]
pub(crate) fn launch(
    source: &RefCell<Source>,
    slot: SlotRef,
    entry: EntryId,
    handle: RawHandle,
    call: Call,
) -> Option<u8> {
    let source = &mut *source.borrow_mut();
    if source.is_retired() || source.medium != Medium::Socket || !call.waits_for_the_edge() {
        return None;
    }
    slot.launch(entry, handle);
    slot.set_call(call);
    let direction = call.direction();
    source.lane_of(direction).push(slot);
    if source.expects_nothing_of(call) {
        source.doubtful.set(true);
    }
    // Behind a submission it waits for that one's end.
    let is_behind = direction == Direction::Out && source.is_submitted();
    Some(if is_behind { 0 } else { bit(direction) & !source.watched })
}

/// Has a socket's send be a submission of the ring's, if it may be one: its descriptor then. Else nothing has
/// happened.
///
/// As what is launched, it is in its source's lane only.
#[cfg(target_os = "linux")]
#[inline(always)]
pub(crate) fn submit(
    source: &RefCell<Source>,
    slot: SlotRef,
    entry: EntryId,
    handle: RawHandle,
    call: Call,
) -> Option<RawFd> {
    let mut source = source.borrow_mut();
    if source.is_retired() || !source.may_be_collected() {
        return None;
    }
    slot.launch(entry, handle);
    slot.set_call(call);
    source.output.push(slot);
    source.owes = false;
    source.submitted = true;
    Some(source.fd)
}

pub(crate) fn entry_of(slot: SlotRef) -> EntryId {
    slot.entry().expect("an operation of Unix is started under a registration")
}

/// The descriptor that a handle's value is.
pub(crate) fn descriptor(handle: RawHandle) -> RawFd {
    // Descriptors are small; a value that is none is answered with EBADF.
    RawFd::try_from(handle.addr()).unwrap_or(-1)
}
