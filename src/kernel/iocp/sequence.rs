//! Reads and writes of a file that go on where the last one ended.
//!
//! A file that is opened for overlapped use has no position, so its registration keeps one. Windows has
//! one such call of a file at a time; the others wait here, in the order they were started. The position
//! moves when a call has ended, by what it moved, and not for an error (pitfall 41).

use std::collections::VecDeque;

use crate::kernel::call::Call;
use crate::operation::{Ending, SlotRef};

/// Where a file is read and written next, and by whom.
#[derive(Default)]
pub(super) struct Sequence {
    position: u64,
    /// The operation that Windows has, or has ended without having been looked at; and which use of its slot
    /// that is.
    current: Option<(SlotRef, u32)>,
    waiting: VecDeque<(SlotRef, Call)>,
}

impl Sequence {
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Windows has an operation from now on.
    pub(super) fn begin(&mut self, slot: SlotRef) {
        debug_assert!(self.current.is_none());
        self.current = Some((slot, slot.generation()));
    }

    /// Moves on if the operation that Windows had has ended. Whether it has none now.
    pub(super) fn settle(&mut self) -> bool {
        let Some((slot, generation)) = self.current else { return true };
        // Nobody is told of an end before the position has moved; but what is gone has ended.
        if slot.generation() == generation {
            if slot.is_kernels() {
                return false;
            }
            let Ending { status, bytes } = slot.read_ending();
            if status.is_success() || status.is_warning() {
                self.position = self.position.saturating_add(bytes.into());
            }
        }
        self.current = None;
        true
    }

    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Lines an operation up.
    pub(super) fn wait(&mut self, slot: SlotRef, call: Call) {
        self.waiting.push_back((slot, call));
    }

    /// Whose turn it is.
    pub(super) fn next(&mut self) -> Option<(SlotRef, Call)> {
        self.waiting.pop_front()
    }

    /// Takes an operation out of the line. False where it is not in it.
    pub(super) fn give_up(&mut self, slot: SlotRef) -> bool {
        let place = self.waiting.iter().position(|&(waiting, _)| waiting == slot);
        place.and_then(|place| self.waiting.remove(place)).is_some()
    }
}
