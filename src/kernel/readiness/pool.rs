//! Threads for what has no form that does not block: files that are not in memory, and disks.
//!
//! A few threads a process, made when there is work and gone when there was none for a while. (The crate
//! `blocking` does as much; with it the library would have more crates on Linux than it allows itself.)

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::super::call::Call;
use super::super::source::Ended;
use super::super::unix::{self, Bell, Errno, ending};
use crate::operation::SlotRef;

/// Disks are served best by several requests at once; more threads than this help nobody.
const THREADS: usize = 8;

/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(10);

/// A call that may block, with what it needs of an operation.
struct Job {
    /// The operation, as a number: its slot is not looked at on a thread of the pool.
    slot: usize,
    /// Not the operation's own descriptor: its owner may close that while a thread is on its way here.
    file: Arc<OwnedFd>,
    call: Call,
    jobs: Arc<Jobs>,
}

// SAFETY: the call's pointers lead to memory that is the kernel's until the job's result has been taken by
// the queue's thread, and a thread of the pool is the kernel here. Nothing else of the job is tied to a
// thread.
unsafe impl Send for Job {}

/// The threads, and what they are to do.
struct Pool {
    state: Mutex<State>,
    work: Condvar,
}

struct State {
    waiting: VecDeque<Job>,
    idle: usize,
    threads: usize,
}

static POOL: Pool = Pool {
    state: Mutex::new(State { waiting: VecDeque::new(), idle: 0, threads: 0 }),
    work: Condvar::new(),
};

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&'static self, job: Job) {
        let mut state = self.lock();
        state.waiting.push_back(job);
        if state.idle >= state.waiting.len() || state.threads >= THREADS {
            self.work.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        let made = thread::Builder::new().name("ioqueue-files".into()).spawn(|| self.serve());
        if made.is_err() {
            let mut state = self.lock();
            state.threads -= 1;
            // With no thread at all nobody would ever do it: it blocks its queue then.
            let alone = (state.threads == 0).then(|| state.waiting.pop_back()).flatten();
            drop(state);
            if let Some(job) = alone {
                job.run();
            }
        }
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.waiting.pop_front() {
                drop(state);
                job.run();
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let (woken, wait) =
                self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if wait.timed_out() && state.waiting.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

impl Job {
    fn run(self) {
        let Self { slot, file, call, jobs } = self;
        // SAFETY: the operation's memory stays until its result was taken (see `Send`).
        let result = unsafe { make(file.as_raw_fd(), call) };
        drop(file);
        jobs.done(slot, result);
    }
}

/// What the pool has done for one queue, and its bell.
pub(super) struct Jobs {
    done: Mutex<Vec<(usize, Result<u32, Errno>)>>,
    /// There is something in it: most bells ring for other things.
    has_done: AtomicBool,
    bell: Arc<Bell>,
}

impl Jobs {
    pub(super) fn new(bell: Arc<Bell>) -> Arc<Self> {
        Arc::new(Self { done: Mutex::default(), has_done: AtomicBool::new(false), bell })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(usize, Result<u32, Errno>)>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn done(&self, slot: usize, result: Result<u32, Errno>) {
        self.lock().push((slot, result));
        self.has_done.store(true, Ordering::Release);
        // The bell cannot fail but for a descriptor that is closed, which ours is not.
        let _ = self.bell.ring();
    }

    /// Makes the operation's call here and now, by the handle's own descriptor.
    pub(super) fn make_here(&self, slot: SlotRef, fd: RawFd) {
        // SAFETY: the operation's memory stays until its result was taken (see `Send`).
        let result = unsafe { make(fd, slot.call()) };
        self.done(slot.address(), result);
    }

    /// Has a thread make the operation's call.
    pub(super) fn start(self: &Arc<Self>, slot: SlotRef, file: Arc<OwnedFd>) {
        let jobs = Arc::clone(self);
        POOL.start(Job { slot: slot.address(), file, call: slot.call(), jobs });
    }

    /// Takes the operation's job back, if no thread has begun it; it has ended then.
    pub(super) fn cancel(&self, slot: SlotRef) -> bool {
        let mut state = POOL.lock();
        let Some(index) = state.waiting.iter().position(|job| job.slot == slot.address()) else {
            return false;
        };
        state.waiting.remove(index);
        drop(state);
        self.done(slot.address(), Err(libc::ECANCELED));
        true
    }

    /// The jobs that are done.
    pub(super) fn take(&self, ended: &mut Vec<Ended>) {
        // What is done after this rings again.
        if !self.has_done.load(Ordering::Acquire) {
            return;
        }
        self.has_done.store(false, Ordering::Relaxed);
        for (slot, result) in self.lock().drain(..) {
            // SAFETY: the slot has been the kernel's from `start` until now, so its queue is still there:
            // it is the one that asks.
            let slot = unsafe { SlotRef::from_address(slot) };
            ended.push((slot, ending(result)));
        }
    }
}

/// Makes a call that may block.
///
/// # Safety
/// What `call` points to is valid while this runs, and nobody else's.
unsafe fn make(fd: RawFd, call: Call) -> Result<u32, Errno> {
    use std::fs;
    use std::mem::ManuallyDrop;
    use std::os::fd::FromRawFd;

    // SAFETY: the file is open until the job is done, and is not closed here.
    let file = ManuallyDrop::new(unsafe { fs::File::from_raw_fd(fd) });
    // SAFETY: passed on: the call's bytes are this thread's for now. (Not as slices for the standard library's
    // reads: what is read into is not initialised.)
    let result = unsafe {
        match call {
            Call::Read { at, length } => return unix::move_blocking(fd, true, at, length, None),
            Call::Write { at, length } => {
                return unix::move_blocking(fd, false, at.cast_mut(), length, None);
            }
            Call::ReadAt { at, length, offset } => {
                return unix::move_blocking(fd, true, at, length, Some(offset));
            }
            Call::WriteAt { at, length, offset } => {
                return unix::move_blocking(fd, false, at.cast_mut(), length, Some(offset));
            }
            Call::ReadVectored { parts, count, .. } => {
                return unix::vectored_blocking(fd, true, parts, count);
            }
            Call::WriteVectored { parts, count, .. } => {
                return unix::vectored_blocking(fd, false, parts, count);
            }
            Call::Sync { data_only: false } => file.sync_all(),
            Call::Sync { data_only: true } => file.sync_data(),
            Call::Receive { .. }
            | Call::Send { .. }
            | Call::ReceiveFrom { .. }
            | Call::SendTo { .. }
            | Call::Accept { .. }
            | Call::Connect { .. }
            | Call::Shutdown { .. } => return Err(libc::ENOTSOCK),
            Call::Ready { .. } | Call::Close { .. } | Call::Overlapped => return Err(libc::EINVAL),
        }
    };
    result.map(|()| 0).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::IntoRawFd;

    use super::*;

    // The registration may end, and the descriptor be closed and its number given out again, between the
    // moment when a thread takes a job and its call. (Pitfall 34.)
    #[test]
    fn a_job_writes_to_its_own_file_whatever_became_of_the_descriptor() {
        let directory = std::env::temp_dir();
        let path = |name| directory.join(format!("ioqueue-pool-{}-{name}", std::process::id()));
        let (mine, theirs) = (path("mine"), path("theirs"));
        let (file, other) = (File::create(&mine).unwrap(), File::create(&theirs).unwrap());
        let fd = file.into_raw_fd();
        let duplicate = Arc::new(unix::duplicate(fd).unwrap());
        let jobs = Jobs::new(Arc::new(Bell::new().unwrap()));
        let bytes = b"mine";
        let call = Call::WriteAt { at: bytes.as_ptr(), length: bytes.len(), offset: 0 };
        let job = Job { slot: 64, file: duplicate, call, jobs: Arc::clone(&jobs) };
        // SAFETY: the number is ours, and becomes that of the other file.
        assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), fd) }, fd);
        job.run();
        assert_eq!(*jobs.lock(), [(64, Ok(4))]);
        let written = (std::fs::read(&mine).unwrap(), std::fs::read(&theirs).unwrap());
        // SAFETY: as above.
        unsafe { libc::close(fd) };
        std::fs::remove_file(mine).unwrap();
        std::fs::remove_file(theirs).unwrap();
        assert_eq!(written, (b"mine".to_vec(), Vec::new()));
    }
}
