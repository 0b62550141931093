//! What a Unix kernel's room knows of each registered descriptor: what it leads to, and the operations
//! that wait for it.
//!
//! Handles are watched by the edge: the poller, epoll or a poll of the ring's that fires more than once,
//! speaks up when there is something new, and only then. So every call is tried before it waits; and a
//! handle is watched for everything from its first wait to the end of its registration.
//!
//! A receive on a stream that got less than it had room for has taken all there was (epoll(7), "Possible
//! pitfalls"), so the next one waits for the edge without trying. There are ways to be wrong about that: a
//! mark for urgent data, a descriptor that was sent along, end a receive early too. So a wait that trusts it
//! is looked at again when nothing has happened for [`DOUBT_MS`].

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;

use super::call::{Call, Direction};
use super::unix::{self, NotYet, ending};
use super::{BindError, Binding, Mark};
use crate::handle::{EntryId, HandleKind, RawHandle};
use crate::op;
use crate::op::Events;
use crate::operation::{Ending, SlotRef};

/// How long a queue sleeps at most before it looks after those that wait without having tried.
pub(crate) const DOUBT_MS: u32 = 50;

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

/// Operations in the order they were started.
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

    pub(crate) fn push(&mut self, slot: SlotRef) {
        slot.set_behind(None);
        match self.last.replace(slot) {
            Some(last) => last.set_behind(Some(slot)),
            None => self.first = Some(slot),
        }
    }

    pub(crate) fn pop(&mut self) -> Option<SlotRef> {
        let first = self.first?;
        self.first = first.behind();
        if self.first.is_none() {
            self.last = None;
        }
        Some(first)
    }

    /// Takes out what `keep` does not want to keep, in order; true where there was any.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(SlotRef) -> bool) -> bool {
        let mut rest = std::mem::take(self);
        let mut taken = false;
        while let Some(slot) = rest.pop() {
            if keep(slot) {
                self.push(slot);
            } else {
                taken = true;
            }
        }
        taken
    }
}

/// A registered descriptor.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) fd: RawFd,
    /// Its registration's key, which is never another's.
    pub(crate) key: usize,
    pub(crate) medium: Medium,
    /// The poller watches it.
    pub(crate) watched: bool,
    /// Its calls never block.
    pub(crate) nonblocking: bool,
    /// That was our doing, and is to be undone.
    made_nonblocking: bool,
    /// It never answers a direct call: no use in trying.
    never_direct: bool,
    /// The last receive took all there was, and no edge has come since.
    drained: bool,
    /// Whether a short receive means that. Asked when it matters.
    is_stream: Option<bool>,
    pub(crate) input: Lane,
    pub(crate) output: Lane,
}

impl Source {
    pub(crate) fn lane(&mut self, direction: Direction) -> &mut Lane {
        match direction {
            Direction::In => &mut self.input,
            Direction::Out => &mut self.output,
        }
    }

    /// Makes its calls never block, until the registration ends.
    pub(crate) fn make_nonblocking(&mut self) {
        if !self.nonblocking {
            self.made_nonblocking = unix::set_nonblocking(self.fd, true);
            self.nonblocking = true;
        }
    }

    /// Undoes that.
    pub(crate) fn make_blocking_again(&mut self) {
        if self.made_nonblocking {
            self.made_nonblocking = false;
            unix::set_nonblocking(self.fd, false);
        }
    }

    /// # Safety
    /// What `call` points to is valid while this runs.
    #[inline]
    unsafe fn attempt(&mut self, call: Call) -> Result<Result<u32, unix::Errno>, NotYet> {
        // SAFETY: passed on; the medium was asked for when the descriptor was bound.
        let result = unsafe { unix::attempt(self.fd, self.medium, self.nonblocking, call) };
        match (call, result) {
            (Call::Receive { length, .. } | Call::Read { length, .. }, Ok(Ok(count)))
                if self.medium == Medium::Socket =>
            {
                self.drained = count > 0 && (count as usize) < length && self.is_stream();
            }
            (_, Err(NotYet::WouldBlock)) if call.direction() == Direction::In => {
                self.drained = true;
            }
            (_, Err(NotYet::Unsupported)) => self.never_direct = true,
            _ => {}
        }
        result
    }

    fn is_stream(&mut self) -> bool {
        *self.is_stream.get_or_insert_with(|| unix::is_stream_socket(self.fd))
    }

    /// Tries what waits in a lane, in order, until something would block.
    fn retry(&mut self, direction: Direction, events: Events, ended: &mut Vec<Ended>) {
        let mut lane = std::mem::take(self.lane(direction));
        let mut blocked = false;
        lane.retain(|slot| {
            let result = match slot.call() {
                Call::Ready { event } => events.says(event).then(|| Ok(u32::from(events.bits()))),
                _ if blocked => None,
                Call::Connect { .. } => Some(unix::socket_error(self.fd)),
                // SAFETY: the operation's memory is the kernel's, which is us, until its end.
                call => match unsafe { self.attempt(call) } {
                    Ok(result) => Some(result),
                    Err(NotYet::WouldBlock) => None,
                    Err(NotYet::Unsupported) => Some(Err(libc::EOPNOTSUPP)),
                },
            };
            let Some(result) = result else {
                blocked |= !matches!(slot.call(), Call::Ready { .. });
                return true;
            };
            ended.push((slot, ending(result)));
            // What is known to be drained need not be asked again.
            blocked |= direction == Direction::In && self.drained;
            false
        });
        *self.lane(direction) = lane;
    }
}

/// How an operation ended, until the queue is told.
pub(crate) type Ended = (SlotRef, Ending);

/// The registered descriptors, and what has ended since the last look.
#[derive(Default)]
pub(crate) struct Sources {
    /// By the index of their registration.
    list: RefCell<Vec<Option<Source>>>,
    /// Reused, so that it allocates nothing.
    pub(crate) ended: RefCell<Vec<Ended>>,
    /// Somebody waits without having tried.
    doubtful: Cell<bool>,
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
            watched: false,
            nonblocking: false,
            made_nonblocking: false,
            never_direct: false,
            drained: false,
            is_stream: None,
            input: Lane::default(),
            output: Lane::default(),
        };
        let mut list = self.list.borrow_mut();
        let index = entry.index();
        if index >= list.len() {
            list.resize_with(index + 1, || None);
        }
        list[index] = Some(source);
        Ok(Binding { skips: true, mark })
    }

    /// Does something with a source. `act` makes no call to this one.
    #[inline]
    pub(crate) fn with<R>(&self, entry: EntryId, act: impl FnOnce(&mut Source) -> R) -> R {
        let mut list = self.list.borrow_mut();
        act(list[entry.index()].as_mut().expect("an operation's handle was bound"))
    }

    /// Makes the call if it neither blocks nor overtakes another.
    ///
    /// # Safety
    /// What `call` points to is valid while this runs.
    #[inline]
    pub(crate) unsafe fn attempt(&self, entry: EntryId, call: Call) -> Option<Ending> {
        self.with(entry, |source| {
            if source.never_direct
                || (source.drained && call.receives())
                || !source.lane(call.direction()).is_empty()
            {
                return None;
            }
            // SAFETY: passed on.
            match unsafe { source.attempt(call) } {
                // The rest of the file may be on the disk.
                Ok(Ok(count)) if call.is_cut_short(count) => None,
                Ok(result) => Some(ending(result)),
                Err(_) => None,
            }
        })
    }

    /// Has the operation wait until its handle is ready; `watch` has it watched.
    pub(crate) fn wait(
        &self,
        slot: SlotRef,
        watch: impl FnOnce(&mut Source) -> Result<(), unix::Errno>,
    ) -> Result<(), unix::Errno> {
        self.with(entry_of(slot), |source| {
            if !source.watched {
                watch(source)?;
                source.watched = true;
            }
            let call = slot.call();
            if call.receives() && source.drained {
                self.doubtful.set(true);
            }
            source.lane(call.direction()).push(slot);
            Ok(())
        })
    }

    /// Takes an operation that waits out of its lane: it is cancelled. False where it does not wait.
    pub(crate) fn cancel(&self, slot: SlotRef) -> bool {
        let taken = self.with(entry_of(slot), |source| {
            source.lane(slot.call().direction()).retain(|waiting| waiting != slot)
        });
        if taken {
            self.ended.borrow_mut().push((slot, ending(Err(libc::ECANCELED))));
        }
        taken
    }

    /// The poller has something to say. `watch` has the source watched again, if it is not any more and
    /// something waits.
    pub(crate) fn became_ready(
        &self,
        is_it: impl FnOnce(&Source) -> bool,
        index: usize,
        events: Events,
        still_watched: bool,
        watch: impl FnOnce(&mut Source) -> Result<(), unix::Errno>,
    ) {
        let mut list = self.list.borrow_mut();
        // A descriptor that was closed while it was watched may live on in a duplicate.
        let Some(source) = list.get_mut(index).and_then(Option::as_mut).filter(|it| is_it(it))
        else {
            return;
        };
        source.watched = still_watched;
        let mut ended = self.ended.borrow_mut();
        let over = events.contains(op::Event::Error) || events.contains(op::Event::Hangup);
        if events.contains(op::Event::PriorityRead) {
            source.is_stream = Some(false); // Receives end at the mark.
        }
        if over || events.contains(op::Event::Read) || events.contains(op::Event::PriorityRead) {
            source.drained = false;
            if !source.input.is_empty() {
                source.retry(Direction::In, events, &mut ended);
            }
        }
        if (over || events.contains(op::Event::Write)) && !source.output.is_empty() {
            source.retry(Direction::Out, events, &mut ended);
        }
        let waits = !source.input.is_empty() || !source.output.is_empty();
        if waits && !source.watched {
            source.watched = watch(source).is_ok();
        }
    }

    /// How long a look at the poller may take at most.
    pub(crate) fn longest(&self, timeout_ms: u32) -> u32 {
        if !self.ended.borrow().is_empty() {
            0
        } else if self.doubtful.get() {
            timeout_ms.min(DOUBT_MS)
        } else {
            timeout_ms
        }
    }

    /// A look that could take [`DOUBT_MS`] has brought nothing: tries those who wait without having tried.
    pub(crate) fn resolve_doubts(&self) {
        if !self.doubtful.replace(false) {
            return;
        }
        let mut ended = self.ended.borrow_mut();
        for source in self.list.borrow_mut().iter_mut().flatten() {
            if source.drained && source.medium != Medium::File && !source.input.is_empty() {
                let events = unix::ready_now(source.fd, op::Event::Read).unwrap_or(0);
                if events != 0 {
                    source.drained = false;
                    source.is_stream = Some(false); // It was wrong once.
                    source.retry(Direction::In, Events::from_bits(events as u8), &mut ended);
                }
            }
        }
    }

    /// Gives what has ended to `tell`.
    pub(crate) fn drain(&self, mut tell: impl FnMut(SlotRef)) {
        if self.ended.borrow().is_empty() {
            return;
        }
        let mut ended = self.ended.take();
        for (slot, ending) in ended.drain(..) {
            slot.end(ending);
            tell(slot);
        }
        self.ended.replace(ended);
    }
}

pub(crate) fn entry_of(slot: SlotRef) -> EntryId {
    slot.entry().expect("an operation of Unix is started under a registration")
}

/// The descriptor that a handle's value is.
pub(crate) fn descriptor(handle: RawHandle) -> RawFd {
    // Descriptors are small; a value that is none is answered with EBADF.
    RawFd::try_from(handle.addr()).unwrap_or(-1)
}
