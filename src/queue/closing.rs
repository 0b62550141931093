//! Closing: drops the tasks, cancels what is in flight, and waits for the kernel to give it back.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use super::Inner;
use crate::continuation::{Continuation, Parked};
use crate::error::Undrained;
use crate::operation::State;
use crate::time::Deadline;
use crate::trace::event;

/// How often closing looks for ends that no packet tells of.
const SWEEP_MS: u32 = 10;

/// Does `step`, and after a panic of user code in it does it again, for what is left. Keeps the first
/// panic.
pub(super) fn insist(panicked: &mut Option<Box<dyn Any + Send>>, mut step: impl FnMut()) {
    while let Err(payload) = catch_unwind(AssertUnwindSafe(&mut step)) {
        match panicked {
            None => *panicked = Some(payload),
            // Dropping it may panic too.
            Some(_) => std::mem::forget(payload),
        }
    }
}

impl Inner {
    pub(super) fn close(&self, within: Duration) -> Result<(), Undrained> {
        if !self.closed.replace(true) {
            // User code that panics keeps nobody else from learning that the queue is closed.
            let mut panicked = None;
            insist(&mut panicked, || {
                self.drop_tasks();
                self.resume_rest();
            });
            self.cancel_all();
            let within = if self.exiting.get() { Duration::ZERO } else { within };
            let start = self.kernel.now();
            let deadline = Deadline::after(start, Some(within));
            insist(&mut panicked, || self.drain(deadline));
            // What the kernel has given back is not undrained, though its packet never came.
            self.sweep(true);
            insist(&mut panicked, || self.after_turn());
            self.shared.close(&self.owner, self.exiting.get());
            insist(&mut panicked, || self.resume_rest());
            self.ended.set(true);
            insist(&mut panicked, || self.tell_waiters());
            event!(debug, undrained = self.counted.get(), "closed");
            if let Some(payload) = panicked {
                // Where nobody can catch it, it would end the process.
                if self.exiting.get() || std::thread::panicking() {
                    std::mem::forget(payload);
                } else {
                    resume_unwind(payload);
                }
            }
        } else if self.ended.get() {
            // What the kernel kept then, it may have given back since. A port has left word; others are
            // asked, for as long.
            if self.counted.get() > 0 && !self.kernel.has_overlapped() {
                let within = if self.exiting.get() { Duration::ZERO } else { within };
                self.drain(Deadline::after(self.kernel.now(), Some(within)));
            }
            self.sweep(true);
            self.after_turn();
        }
        match self.counted.get() {
            0 => Ok(()),
            operations => Err(Undrained { operations }),
        }
    }

    /// Resumes what is ready and no task, whose futures are gone; keys are left for whoever polls.
    fn resume_rest(&self) {
        while let Some(ready) = self.next_ready() {
            match ready {
                Parked::Task(task) => self.tasks.wake_root(task),
                Parked::Other(Continuation::Key(_)) => self.hand_out(ready),
                Parked::Other(other) => drop(other.resume()),
            }
        }
    }

    fn cancel_all(&self) {
        self.slab.for_each(|slot| match slot.state() {
            State::InFlight => self.cancel(slot),
            State::Exposed | State::Cancelling | State::Orphaned => {
                if self.request_cancel(slot) {
                    self.count(slot, slot.entry().is_some() || slot.is_kernels());
                } else if slot.is_started() && slot.is_kernels() {
                    self.count(slot, true);
                }
            }
            State::Idle | State::Done | State::Retired | State::Free => {}
        });
    }

    /// Takes packets off the port until none is owed or the time is up.
    fn drain(&self, deadline: Deadline) {
        let mut now = self.kernel.now();
        let mut unheard = self.sweep(false);
        loop {
            // Looked at once even where nothing is owed; waited only for what is.
            let rest = if self.counted.get() > 0 { deadline.rest_ms(now) } else { 0 };
            let rest = if unheard { rest.min(SWEEP_MS) } else { rest };
            let result = self.dequeue_apart(rest);
            unheard = self.sweep(false);
            self.after_turn();
            self.resume_rest();
            now = self.kernel.now();
            let owed = self.counted.get() > 0 && !deadline.has_passed(now);
            if !owed || result.is_err() {
                return;
            }
        }
    }

    /// Looks for the end of what no packet will tell of: operations whose handle was not registered
    /// when they were started, or `all`. True while there are any.
    fn sweep(&self, all: bool) -> bool {
        let mut unheard = false;
        self.slab.for_each(|slot| {
            if slot.is_counted() && (all || slot.entry().is_none()) {
                if slot.is_kernels() {
                    unheard = true;
                    return;
                }
                self.count(slot, false);
                if slot.state() == State::Orphaned {
                    slot.finish();
                    self.unwanted.borrow_mut().push(slot);
                }
            }
        });
        unheard
    }

    /// Wakes everybody who waits, also for what the kernel kept.
    fn tell_waiters(&self) {
        let mut waiters = Vec::new();
        self.slab.for_each(|slot| waiters.extend(slot.take_waiter()));
        waiters.extend(self.timers.end());
        waiters.extend(self.over.take());
        let mut ready = self.ready.borrow_mut();
        waiters.into_iter().for_each(|it| ready.push(it));
        drop(ready);
        self.resume_rest();
    }
}
