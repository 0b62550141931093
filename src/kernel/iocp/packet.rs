//! A packet is a claim, not a pointer.
//!
//! Anybody may post to a port, and some of what is queued there is data (a job object's messages,
//! pitfall 19). So the address in a packet is only ever compared: with the memory the queue owns.
//! The operation's own status word decides then; and for an operation whose end is known already,
//! the key, whether this is the packet that was due (pitfalls 29 and 46).

use windows_sys::Win32::System::IO::OVERLAPPED_ENTRY;

use super::WAKE_KEY;
use crate::operation::{Slab, SlotRef, State};

/// What the port handed out, as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) key: usize,
    pub(crate) address: usize,
    pub(crate) bytes: u32,
}

impl From<&OVERLAPPED_ENTRY> for Packet {
    fn from(entry: &OVERLAPPED_ENTRY) -> Self {
        Self {
            key: entry.lpCompletionKey,
            address: entry.lpOverlapped.addr(),
            bytes: entry.dwNumberOfBytesTransferred,
        }
    }
}

/// What a packet turned out to be.
pub(crate) enum Claim {
    /// A wake-up that the queue's notifier posted.
    Wake,
    /// An operation of the queue's has ended.
    Ended(SlotRef),
    /// Not the queue's, or not any more.
    Foreign,
}

/// Decides what `packet` is. Constant time: the slab's chunks double in size.
pub(crate) fn examine(packet: Packet, slab: &Slab) -> Claim {
    if packet.address == 0 {
        return if packet.key == WAKE_KEY { Claim::Wake } else { Claim::Foreign };
    }
    let Some(slot) = slab.find(packet.address) else { return Claim::Foreign };
    let ours = slot.entry().is_some_and(|entry| entry.key() == packet.key);
    let expected = match slot.state() {
        // Under whatever key: the status word tells the truth, and a handle can be bound under
        // another registration's key (a duplicate that was given a closed handle's value). A packet
        // that was refused here might be the only one that ever comes.
        State::Exposed | State::InFlight | State::Cancelling | State::Orphaned => true,
        State::Done | State::Retired => ours && slot.packet_due(),
        State::Free | State::Idle => false,
    };
    if expected && !slot.is_kernels() { Claim::Ended(slot) } else { Claim::Foreign }
}
