//! epoll(7), by the edge.

use std::cell::{OnceCell, RefCell};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;

use super::super::source::{IN, OUT};
use super::Listener;
use super::unix;

/// How many events one call may bring.
const BATCH: usize = 256;

/// An epoll instance.
pub(super) struct Poller {
    epoll: OwnedFd,
    /// Made when it is first set.
    timer: OnceCell<OwnedFd>,
    /// Reused for every call, so that waiting allocates nothing.
    events: RefCell<Box<[MaybeUninit<Event>; BATCH]>>,
}

impl Poller {
    /// Watches `bell`, too, under a key of its own.
    pub(super) fn new(bell: BorrowedFd<'_>, key: usize) -> io::Result<Self> {
        // SAFETY: takes a number; the descriptor that comes back is nobody's yet.
        let epoll = unsafe {
            let epoll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if epoll < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(epoll)
        };
        let events = Box::new([const { MaybeUninit::uninit() }; BATCH]);
        let poller = Self { epoll, timer: OnceCell::new(), events: RefCell::new(events) };
        poller.control(libc::EPOLL_CTL_ADD, bell.as_raw_fd(), libc::EPOLLIN, key)?;
        Ok(poller)
    }

    /// Whether a handle is watched for one event only.
    pub(super) fn forgets(&self) -> bool {
        false
    }

    /// Has `key` be told after a while. False where the system gives no timer (timerfd_create(2)).
    pub(super) fn set_timer(&self, key: usize, after_ms: u32) -> bool {
        let Some(timer) = self.timer(key) else { return false };
        // SAFETY: zero is a time.
        let mut after: libc::itimerspec = unsafe { std::mem::zeroed() };
        after.it_value.tv_sec = (after_ms / 1000) as libc::time_t;
        after.it_value.tv_nsec = (after_ms % 1000 * 1_000_000) as libc::c_long;
        // SAFETY: a descriptor and a time that are ours, and no place for an answer. What expired before is
        // forgotten with that, so nobody has to read it.
        unsafe {
            libc::timerfd_settime(timer.as_raw_fd(), 0, &raw const after, std::ptr::null_mut()) == 0
        }
    }

    fn timer(&self, key: usize) -> Option<&OwnedFd> {
        if self.timer.get().is_none() {
            // SAFETY: takes numbers; the descriptor that comes back is nobody's yet.
            let timer = unsafe {
                let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
                let timer = libc::timerfd_create(libc::CLOCK_MONOTONIC, flags);
                (timer >= 0).then(|| OwnedFd::from_raw_fd(timer))?
            };
            self.control(libc::EPOLL_CTL_ADD, timer.as_raw_fd(), libc::EPOLLIN, key).ok()?;
            return Some(self.timer.get_or_init(|| timer));
        }
        self.timer.get()
    }

    /// For `what`, from now on, and if the handle is ready already.
    #[inline(always)]
    pub(super) fn watch(&self, fd: RawFd, key: usize, what: u8, is_new: bool) -> io::Result<()> {
        let mut events = 0;
        if what & IN != 0 {
            events |= libc::EPOLLIN | libc::EPOLLPRI | libc::EPOLLRDHUP;
        }
        if what & OUT != 0 {
            events |= libc::EPOLLOUT;
        }
        let how = if is_new { libc::EPOLL_CTL_ADD } else { libc::EPOLL_CTL_MOD };
        match self.control(how, fd, events, key) {
            // A duplicate of what was watched under this number before, say.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                self.control(libc::EPOLL_CTL_MOD, fd, events, key)
            }
            // What was watched under this number was closed, unsaid.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                self.control(libc::EPOLL_CTL_ADD, fd, events, key)
            }
            answer => answer,
        }
    }

    pub(super) fn forget(&self, fd: RawFd) {
        // It may be closed already, and is forgotten then.
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, 0, 0);
    }

    #[inline(always)]
    fn control(&self, what: i32, fd: RawFd, events: i32, key: usize) -> io::Result<()> {
        let events = EventFlags::from_bits_retain((events | libc::EPOLLET) as u32);
        let key = EventData::new_u64(key as u64);
        // SAFETY: for this call alone, which answers a number that is no descriptor with an error.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let answer = match what {
            libc::EPOLL_CTL_ADD => epoll::add(&self.epoll, fd, key, events),
            libc::EPOLL_CTL_MOD => epoll::modify(&self.epoll, fd, key, events),
            _ => epoll::delete(&self.epoll, fd),
        };
        answer.map_err(io::Error::from)
    }

    /// Gives each event's key and what it says to `listener`.
    #[inline(always)]
    pub(super) fn wait(&self, timeout_ms: u32, listener: &mut impl Listener) -> io::Result<()> {
        let mut events = self.events.borrow_mut();
        // A wait that is longer than fits is cut, and waited again.
        let limit = (timeout_ms != u32::MAX).then(|| {
            let limit = Duration::from_millis(timeout_ms.min(i32::MAX as u32).into());
            Timespec { tv_sec: limit.as_secs() as _, tv_nsec: limit.subsec_nanos().into() }
        });
        let events = match epoll::wait(&self.epoll, &mut events[..], limit.as_ref()) {
            Ok((events, _)) => events,
            // A signal (pitfall 42): whoever waits looks at the time, and waits again.
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        for &mut Event { flags, data, .. } in events {
            // The flags are those of poll(2), but for the edge.
            listener.event(data.u64() as usize, unix::events_of(flags.bits() as u16 as i16));
        }
        Ok(())
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
