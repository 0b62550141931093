//! What is left of a queue and its kernel.

use std::cell::Cell;
use std::io;
use std::sync::Arc;

use loom::sync::{Condvar, Mutex};

use crate::kernel::Alarm;
use crate::kernel::owner::Owner;
use crate::notify::{Blocker, Notifier, Shared, TaskId, TaskWaker};

/// A port, which holds wake-ups.
pub(crate) struct Port {
    state: Mutex<State>,
    posted: Condvar,
}

struct State {
    packets: u32,
    /// How many posts are still to fail.
    failures: u32,
}

impl Port {
    pub(crate) fn post(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.failures > 0 {
            state.failures -= 1;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        // Q11, pitfall 15
        assert_eq!(state.packets, 0, "a wake-up is posted where one is queued");
        state.packets += 1;
        self.posted.notify_one();
        Ok(())
    }

    /// Takes a wake-up off. Waits for one unless `at_once`.
    fn dequeue(&self, at_once: bool) -> bool {
        let mut state = self.state.lock().unwrap();
        while state.packets == 0 {
            if at_once {
                return false;
            }
            state = self.posted.wait(state).unwrap();
        }
        state.packets -= 1;
        true
    }
}

/// A queue with something in flight that never ends.
pub(crate) struct Queue {
    pub(crate) shared: Arc<Shared>,
    pub(crate) owner: Owner,
    port: Arc<Port>,
}

impl Queue {
    /// One whose first `failures` wake-ups cannot be posted.
    pub(crate) fn new(failures: u32) -> Queue {
        let state = Mutex::new(State { packets: 0, failures });
        let port = Arc::new(Port { state, posted: Condvar::new() });
        let (shared, owner) = Shared::new(Alarm(Arc::clone(&port)));
        Queue { shared: Arc::new(shared), owner, port }
    }

    pub(crate) fn notifier(&self) -> Notifier {
        Notifier::new(Arc::clone(&self.shared))
    }

    /// As `turn`: says what became ready. Waits only where nothing is, and a wake-up ends it.
    pub(crate) fn poll(&self, at_once: bool) -> Vec<TaskId> {
        let mut ready = self.collect();
        if self.port.dequeue(at_once || !ready.is_empty()) {
            self.shared.answered();
        }
        ready.extend(self.collect());
        ready
    }

    pub(crate) fn collect(&self) -> Vec<TaskId> {
        std::iter::from_fn(|| self.shared.next(&self.owner)).collect()
    }

    /// As `block_on`: polls what `is_done` says whenever it was woken.
    pub(crate) fn block_on(&self, blocker: &Blocker, mut is_done: impl FnMut() -> bool) {
        loop {
            if blocker.take() && is_done() {
                return;
            }
            assert!(self.poll(blocker.is_woken()).is_empty());
        }
    }

    /// Whether a wake-up is left on the port.
    pub(crate) fn is_rung(&self) -> bool {
        self.port.dequeue(true)
    }
}

/// A task, which is over when `is_done` says so.
pub(crate) struct Task {
    pub(crate) waker: Arc<TaskWaker>,
    is_done: Box<dyn Fn() -> bool>,
    is_over: Cell<bool>,
}

impl Task {
    /// One that waits.
    pub(crate) fn new(queue: &Queue, index: u32, is_done: impl Fn() -> bool + 'static) -> Self {
        let id = TaskId::first_at(index);
        let waker = Arc::new(TaskWaker::new(id, Arc::clone(&queue.shared)));
        Self { waker, is_done: Box::new(is_done), is_over: Cell::new(false) }
    }

    /// As `resume_task`.
    pub(crate) fn resume(&self) {
        if self.is_over() {
            return;
        }
        self.waker.answer();
        if self.waker.is_cancelled() || (self.is_done)() {
            self.is_over.set(true);
            self.waker.retire();
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.get()
    }
}

/// Resumes those that a poll has brought.
pub(crate) fn resume(tasks: &[Task], ready: Vec<TaskId>) {
    ready.into_iter().for_each(|id| tasks[id.place()].resume());
}
