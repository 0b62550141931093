//! Turns: asks the kernel, takes in what it brings, and resumes what became ready.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::panic::resume_unwind;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::closing::insist;
use super::{BUDGET, ForeignPacket, Hook, Inner};
use crate::continuation::{Continuation, Parked, ReadyList, Runnable};
use crate::error::Closed;
use crate::kernel::Sink;
use crate::kernel::iocp::packet::{Claim, Packet, examine};
use crate::notify::{Blocker, TaskId};
use crate::operation::{Ending, SlotRef, dispose};
use crate::time::{Deadline, FOR_EVER_MS};

/// How many continuations `run` resumes between two looks at the kernel.
const RESUMES: usize = 256;

/// What a loop does after a look at what it loops for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Done,
    /// It wants to be looked at again soon.
    Again,
    Wait,
}

/// Takes in what the kernel brings.
struct Intake<'a> {
    queue: &'a Inner,
    ready: &'a mut ReadyList,
    /// A notifier rang.
    notified: bool,
}

impl Sink for Intake<'_> {
    fn packet(&mut self, packet: Packet) {
        match examine(packet, &self.queue.slab) {
            Claim::Ended(slot) => {
                self.queue.note_packet(slot, packet.key);
                self.queue.complete(slot, self.ready);
            }
            Claim::Wake => self.rang(),
            Claim::Foreign => self.queue.note_foreign(packet),
        }
    }

    #[inline(always)]
    fn ended(&mut self, slot: SlotRef, ending: Ending) {
        self.queue.ended(slot, ending, self.ready);
    }

    fn rang(&mut self) {
        self.queue.shared.answered();
        self.notified = true;
    }
}

impl Inner {
    /// Hands what is ready to the next poll.
    pub(crate) fn hand_out(&self, ready: Parked) {
        self.over.borrow_mut().push(ready);
    }

    /// Whether a wait that is over may say so now, or has to let others go first.
    pub(crate) fn spend(&self) -> bool {
        match self.budget.get().checked_sub(1) {
            Some(rest) => {
                self.budget.set(rest);
                true
            }
            None => {
                self.budget.set(BUDGET);
                self.overdue.set(true);
                false
            }
        }
    }

    /// Appends to `runnable` what is ready: tasks last, because what the kernel brought is older.
    pub(super) fn hand_over(self: &Rc<Self>, runnable: &mut Vec<Continuation>) {
        while let Some(ready) = self.next_ready() {
            match ready {
                Parked::Other(continuation) => runnable.push(continuation),
                Parked::Task(task) if self.tasks.may_be_handed_out(task) => {
                    runnable.push(Continuation::Task(Runnable::new(self, task)));
                }
                Parked::Task(task) => {
                    let blocker = self.tasks.root(task).map(Waker::from);
                    runnable.extend(blocker.map(Continuation::Waker));
                }
            }
        }
    }

    /// Takes one batch off the kernel. Says whether a notifier rang. Runs no user code.
    #[inline(always)]
    fn dequeue(&self, timeout_ms: u32) -> io::Result<bool> {
        let mut ready = self.ready.borrow_mut();
        let mut intake = Intake { queue: self, ready: &mut ready, notified: false };
        self.looks.set(self.looks.get().wrapping_add(1));
        self.kernel.dequeue(timeout_ms, &mut intake)?;
        self.budget.set(BUDGET);
        self.overdue.set(false);
        Ok(intake.notified)
    }

    /// As `dequeue`, where a return more does not matter.
    #[inline(never)]
    pub(super) fn dequeue_apart(&self, timeout_ms: u32) -> io::Result<bool> {
        self.dequeue(timeout_ms)
    }

    fn note_foreign(&self, packet: Packet) {
        self.foreign_count.set(self.foreign_count.get() + 1);
        if self.hooked.get() && !self.closed.get() {
            let Packet { key, address, bytes } = packet;
            self.foreign.borrow_mut().push_back(ForeignPacket { key, overlapped: address, bytes });
        }
    }

    /// Whether there are foreign packets that the hook can be told of now.
    #[inline(always)]
    fn has_foreign(&self) -> bool {
        self.hooked.get() && self.may_tell_foreign()
    }

    #[cold]
    fn may_tell_foreign(&self) -> bool {
        if self.foreign.borrow().is_empty() {
            return false;
        }
        let hook = self.hook.take();
        let idle = hook.is_some();
        self.hook.set(hook);
        idle
    }

    /// Tells the hook of a foreign packet, if there are both. While it is told, it is not there: a
    /// packet that it comes by itself, by polling, is told after that.
    fn tell_foreign(&self) -> bool {
        struct PutBack<'a>(&'a Inner, Option<Hook>);
        impl Drop for PutBack<'_> {
            fn drop(&mut self) {
                // Unless it set another.
                let newer = self.0.hook.take();
                self.0.hook.set(newer.or(self.1.take()));
            }
        }
        let mut put_back = PutBack(self, self.hook.take());
        let Some(hook) = &mut put_back.1 else { return false };
        let first = self.foreign.borrow_mut().pop_front();
        let Some(packet) = first else { return false };
        hook(packet);
        true
    }

    /// Asks the kernel until something is ready, the time is up, or (unless `even_idle`) nothing is
    /// waited for. Runs no user code; `after_turn` does.
    ///
    /// Inlined, as all is from the loop to its system calls: after one the processor does not know any more where to a
    /// function returns, and each return costs as much as a hundred instructions (docs/PERFORMANCE.md).
    #[inline(always)]
    pub(super) fn turn(&self, timeout: Option<Duration>, even_idle: bool) -> io::Result<()> {
        if !self.over.borrow().is_empty() {
            self.take_what_is_over();
        }
        if self.closed.get() {
            return Ok(());
        }
        let idle = || !even_idle && self.counted.get() + self.tasks.len() + self.timers.len() == 0;
        // Also with nothing to wait for, what others posted is taken off the port.
        let timeout = if self.has_ready() || idle() { Some(Duration::ZERO) } else { timeout };
        // Reading the clock can be a call into the system, so only a deadline makes us do it. None
        // can be added before the end of this turn, and what ends at zero has ended at any time.
        let is_timed = timeout.is_some_and(|timeout| !timeout.is_zero()) || self.timers.len() > 0;
        if is_timed {
            return self.timed_turn(timeout, idle);
        }
        let rest_ms = if timeout.is_some() { 0 } else { FOR_EVER_MS };
        loop {
            let notified = self.dequeue(rest_ms)?;
            self.clock.set(None);
            if self.has_ready() || rest_ms == 0 || notified || self.has_unheard() || idle() {
                return Ok(());
            }
        }
    }

    /// How long the next turn may be put off.
    pub(super) fn poll_delay(&self) -> Option<Duration> {
        // Also a closed queue hands these out.
        if !self.over.borrow().is_empty() || self.has_ready() || self.has_unheard() {
            return Some(Duration::ZERO);
        }
        if self.closed.get() {
            return None;
        }
        let within_ms = self.kernel.look_within();
        let look = (within_ms != FOR_EVER_MS).then(|| Duration::from_millis(within_ms.into()));
        let timer = match self.timers.first() {
            Deadline::Never | Deadline::At(Duration::MAX) => None,
            Deadline::At(at) => Some(at.saturating_sub(self.kernel.now())),
        };
        look.into_iter().chain(timer).min()
    }

    #[cold]
    fn take_what_is_over(&self) {
        let mut ready = self.ready.borrow_mut();
        self.over.borrow_mut().drain(..).for_each(|it| ready.push(it));
    }

    /// A turn that may end by the clock. Apart, as all that follows is what lies together in memory.
    #[inline(never)]
    fn timed_turn(&self, timeout: Option<Duration>, idle: impl Fn() -> bool) -> io::Result<()> {
        let mut now = self.kernel.now();
        let deadline = Deadline::after(now, timeout);
        loop {
            let notified = self.dequeue_apart(deadline.or(self.timers.first()).rest_ms(now))?;
            // Read once a poll that did not have to wait again.
            now = self.kernel.now();
            self.clock.set(None);
            while let Some(waiter) = self.timers.expire(now) {
                if let Some(waiter) = waiter {
                    self.wake_parked(waiter, &mut self.ready.borrow_mut());
                }
            }
            let is_over = notified || self.has_unheard() || idle() || deadline.has_passed(now);
            if self.has_ready() || is_over {
                return Ok(());
            }
        }
    }

    /// Whether `after_turn` has something to do.
    #[inline(always)]
    fn has_unheard(&self) -> bool {
        !self.unwanted.borrow().is_empty() || self.has_foreign()
    }

    /// Drops what nobody wants and reports foreign packets: user code, with nothing borrowed.
    #[inline]
    pub(super) fn after_turn(&self) {
        if self.has_unheard() {
            self.hear();
        }
    }

    /// All of it, also where some of it panics: who polls next may wait for the drop of the rest.
    #[cold]
    fn hear(&self) {
        let mut panicked = None;
        insist(&mut panicked, || {
            loop {
                let Some(slot) = self.unwanted.borrow_mut().pop() else { break };
                dispose(self, slot);
            }
            while self.hooked.get() && self.tell_foreign() {}
        });
        if let Some(payload) = panicked {
            resume_unwind(payload);
        }
    }

    /// What became ready first.
    pub(super) fn next_ready(&self) -> Option<Parked> {
        let first = self.ready.borrow_mut().pop();
        first.or_else(|| self.shared.next(&self.owner).map(Parked::Task))
    }

    /// Whether there is something to resume. What was over before it began is with the rest by then.
    #[inline(always)]
    fn has_ready(&self) -> bool {
        !self.ready.borrow().is_empty() || !self.shared.is_empty(&self.owner)
    }

    /// Resumes what became ready first. False where nothing is. Most of it are tasks: the rest is apart.
    #[inline(always)]
    fn resume_next(&self) -> bool {
        let first = self.ready.borrow_mut().pop_name();
        match first.or_else(|| self.shared.next(&self.owner)) {
            Some(TaskId::OTHER) => self.resume_other(),
            Some(task) => self.resume_task(task),
            None => return false,
        }
        true
    }

    #[inline(never)]
    fn resume_other(&self) {
        let other = self.ready.borrow_mut().pop_other();
        if let Some(continuation) = other {
            continuation.resume();
        }
    }

    /// Resumes what is ready, then asks the kernel, until `step` says that it is done.
    #[inline(never)]
    fn resume_until(&self, even_idle: bool, step: &mut dyn FnMut() -> Step) -> io::Result<()> {
        let mut resumed = 0;
        loop {
            let step = step();
            if step == Step::Done {
                self.kernel.hand_over();
                return Ok(());
            }
            if self.closed.get() {
                return Err(Closed.into());
            }
            let mut left = 1;
            let others_first = self.overdue.get() || resumed >= RESUMES;
            if others_first || !self.has_ready() {
                let at_once = step == Step::Again;
                let turned = self.turn(at_once.then_some(Duration::ZERO), even_idle);
                self.after_turn();
                turned?;
                // What that brought has its turn before `step`, which may never be done being busy.
                left = self.ready.borrow().len() + self.shared.len(&self.owner);
                left = left.min(RESUMES);
                resumed = 0;
            }
            while left > 0 && !self.overdue.get() && !self.closed.get() {
                left -= 1;
                // Also if there is none to be had: the kernel is asked in time.
                resumed += 1;
                if !self.resume_next() {
                    break;
                }
            }
        }
    }

    pub(super) fn run(&self) -> io::Result<()> {
        struct Running<'a>(&'a Cell<bool>);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                self.0.set(false);
            }
        }
        if self.tasks.is_inside() || self.running.replace(true) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "run was called from what it would wait for: a task, or a continuation it resumed",
            ));
        }
        let _running = Running(&self.running);
        let was_closed = self.closed.get();
        let mut step = || if self.is_running() { Step::Wait } else { Step::Done };
        self.resume_until(false, &mut step)?;
        if self.closed.get() && !was_closed { Err(Closed.into()) } else { Ok(()) }
    }

    pub(super) fn block_on<F: Future>(&self, future: F) -> io::Result<F::Output> {
        let mut future = pin!(future);
        let blocker = Blocker::new(Arc::clone(&self.shared));
        let waker = Waker::from(Arc::clone(&blocker));
        let root = self.tasks.enter_root(Arc::clone(&blocker));
        let mut output = None;
        self.resume_until(true, &mut || {
            if blocker.take() {
                if let Poll::Ready(value) = root.poll(future.as_mut(), &waker) {
                    output = Some(value);
                    return Step::Done;
                }
            }
            if blocker.is_woken() { Step::Again } else { Step::Wait }
        })?;
        Ok(output.expect("the loop ends when there is an output"))
    }
}
