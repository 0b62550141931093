//! kqueue, event ports, poll: through the crate `polling`. On Linux it is epoll, for the tests.

use std::cell::RefCell;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use polling::{Event, PollMode};

use super::super::source::{IN, OUT};
use super::Listener;
use crate::op;
use crate::op::Events;

/// How many events one call may bring.
const BATCH: usize = 256;

/// What the system has.
pub(super) struct Poller {
    poller: polling::Poller,
    /// By the edge where the system can; else for one event at a time.
    mode: PollMode,
    bell: (RawFd, usize),
    events: RefCell<polling::Events>,
}

impl Poller {
    /// Watches `bell`, too, under a key of its own.
    pub(super) fn new(bell: BorrowedFd<'_>, key: usize) -> io::Result<Self> {
        let poller = polling::Poller::new()?;
        let by_edge = poller.supports_edge() && !cfg!(ioqueue_polling = "oneshot");
        let mode = if by_edge { PollMode::Edge } else { PollMode::Oneshot };
        let events = polling::Events::with_capacity(NonZeroUsize::new(BATCH).expect("not zero"));
        // `polling` keeps the highest key for itself.
        let this =
            Self { poller, mode, bell: (bell.as_raw_fd(), key), events: RefCell::new(events) };
        this.watch(bell.as_raw_fd(), key - 1, IN, true)?;
        Ok(this)
    }

    /// Whether a handle is watched for one event only.
    pub(super) fn forgets(&self) -> bool {
        self.mode == PollMode::Oneshot
    }

    /// It has no timer.
    pub(super) fn set_timer(&self, _: usize, _: u32) -> bool {
        false
    }

    /// For `what`, from now on, and if the handle is ready already.
    pub(super) fn watch(&self, fd: RawFd, key: usize, what: u8, is_new: bool) -> io::Result<()> {
        let event = Event::new(key, what & IN != 0, what & OUT != 0);
        // SAFETY: it was open a moment ago, and is only named.
        let named = unsafe { BorrowedFd::borrow_raw(fd) };
        // SAFETY: the descriptor is taken off the poller when its registration ends, before it is closed;
        // where its owner closes it before that, the poller merely says nothing of it, or an error.
        let add = || unsafe { self.poller.add_with_mode(fd, event, self.mode) };
        let modify = || self.poller.modify_with_mode(named, event, self.mode);
        match if is_new { add() } else { modify() } {
            // A duplicate of what was watched under this number before, say.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => modify(),
            // What was watched under this number was closed, unsaid.
            Err(error) if error.kind() == io::ErrorKind::NotFound => add(),
            answer => answer,
        }
    }

    pub(super) fn forget(&self, fd: RawFd) {
        // SAFETY: as above; a closed one is answered with an error.
        let _ = self.poller.delete(unsafe { BorrowedFd::borrow_raw(fd) });
    }

    /// Gives each event's key and what it says to `listener`.
    pub(super) fn wait(&self, timeout_ms: u32, listener: &mut impl Listener) -> io::Result<()> {
        let timeout = (timeout_ms != u32::MAX).then(|| Duration::from_millis(timeout_ms.into()));
        let mut events = self.events.borrow_mut();
        events.clear();
        match self.poller.wait(&mut events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let mut rang = false;
        for event in events.iter() {
            if event.key == self.bell.1 - 1 {
                rang = true;
                continue;
            }
            let mut seen = Events::default();
            for (is, what) in [
                (event.readable, op::Event::Read),
                (event.writable, op::Event::Write),
                (event.is_priority(), op::Event::PriorityRead),
                (event.is_err().unwrap_or(false), op::Event::Error),
                (event.is_interrupt(), op::Event::Hangup),
            ] {
                if is {
                    seen.insert(what);
                }
            }
            listener.event(event.key, seen);
        }
        if rang {
            if self.forgets() {
                self.watch(self.bell.0, self.bell.1 - 1, IN, false)?;
            }
            listener.event(self.bell.1, Events::default());
        }
        Ok(())
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }
}
