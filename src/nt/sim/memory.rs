//! The memory that the simulated kernel was given, which it alone may write to until it is done.
//!
//! It remembers what it wrote there. Whoever else writes, frees and reuses, or resets such memory
//! is found out the next time it looks; under AddressSanitizer, at once.

use std::net::SocketAddr;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use windows_sys::Win32::Foundation::STATUS_PENDING;
use windows_sys::Win32::System::IO::OVERLAPPED;

use super::random::Random;
use crate::address::SocketAddress;

/// The low 32 bits of `Internal` are the status. What is above them is rubbish on a real system.
const STATUS_BITS: usize = 0xFFFF_FFFF;

/// The buffers that an operation reads from or writes to, one after the other.
pub(super) struct Block {
    parts: Vec<Part>,
    /// What stands there.
    shadow: Vec<u8>,
    /// How many of the bytes, at the end, are an address and its length.
    address: usize,
    writable: bool,
}

/// Where a buffer is, and how long.
pub(super) type Part = (*mut u8, usize);

/// Where the bytes of an address are to be written, and their number.
pub(super) type AddressPlace = [Part; 2];

// SAFETY: the memory is the kernel's alone for as long as the block exists (see `Block::take`), so
// it does not matter on which thread it is touched.
unsafe impl Send for Block {}

impl Block {
    /// # Safety
    /// The parts, and those of `address`, may be read (and where `writable`, written) until the block is
    /// dropped, and nobody else writes there (where `writable`, nor reads) until then.
    pub(super) unsafe fn take(
        mut parts: Vec<Part>,
        address: Option<AddressPlace>,
        writable: bool,
    ) -> Self {
        let data: usize = parts.iter().map(|&(_, length)| length).sum();
        parts.extend(address.into_iter().flatten());
        // What is to be filled need not be initialised.
        let shadow = if writable {
            vec![0; parts.iter().map(|&(_, length)| length).sum()]
        } else {
            // SAFETY: readable, as the caller says.
            unsafe { read(&parts) }
        };
        let address = shadow.len() - data;
        Self { parts, shadow, address, writable }
    }

    /// How much data it holds.
    pub(super) fn length(&self) -> usize {
        self.shadow.len() - self.address
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.shadow
    }

    /// Writes rubbish, as a kernel may at any time.
    pub(super) fn scribble(&mut self, random: &mut Random) {
        if self.writable {
            for byte in &mut self.shadow {
                *byte = random.next() as u8;
            }
            self.store();
        }
    }

    /// Writes the outcome: `bytes` at the start. What is behind them stays rubbish.
    pub(super) fn fill(&mut self, bytes: &[u8]) {
        if self.writable {
            self.shadow[..bytes.len()].copy_from_slice(bytes);
            self.store();
        }
    }

    /// Writes an address where one is wanted.
    pub(super) fn fill_address(&mut self, address: Option<SocketAddr>) {
        if self.address == 0 {
            return;
        }
        let address = address.map_or(SocketAddress::NONE, SocketAddress::from);
        let at = self.length();
        let (bytes, length) = self.shadow[at..].split_at_mut(address.bytes.len());
        bytes.copy_from_slice(&address.bytes);
        length.copy_from_slice(&address.length.to_ne_bytes());
        self.store();
    }

    fn store(&self) {
        let mut rest = &self.shadow[..];
        for &(at, length) in self.parts.iter().filter(|part| part.1 > 0) {
            let (bytes, behind) = rest.split_at(length);
            // SAFETY: writable and the kernel's alone (see `take`).
            unsafe { bytes.as_ptr().copy_to_nonoverlapping(at, length) };
            rest = behind;
        }
    }

    /// Whether the memory holds what the kernel left there.
    pub(super) fn is_intact(&self) -> bool {
        // SAFETY: readable (see `take`).
        unsafe { read(&self.parts) == self.shadow }
    }

    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }

    pub(super) fn overlaps(&self, range: &Range) -> bool {
        self.parts.iter().any(|&part| Range::of(part).overlaps(range))
    }
}

/// # Safety
/// The memory may be read.
unsafe fn read(parts: &[Part]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &(at, length) in parts.iter().filter(|part| part.1 > 0) {
        // SAFETY: the caller's promise.
        bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(at, length) });
    }
    bytes
}

/// Addresses, to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: usize,
    pub(super) length: usize,
}

impl Range {
    pub(super) fn of((at, length): Part) -> Self {
        Self { start: at.addr(), length }
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.length > 0
            && other.length > 0
            && self.start < other.start + other.length
            && other.start < self.start + self.length
    }
}

/// The OVERLAPPED of an operation.
pub(super) struct Header {
    place: NonNull<OVERLAPPED>,
    internal: usize,
    internal_high: usize,
    offset: u64,
    event: usize,
}

// SAFETY: as for `Block`; the two words that others may read are accessed through atomics.
unsafe impl Send for Header {}

impl Header {
    /// Reads the parameters and marks the operation as pending, as `ReadFile` does first of all.
    ///
    /// # Safety
    /// `place` is a valid OVERLAPPED until the header is dropped, and nobody else writes there until
    /// then, nor reads anything but the status word (atomically).
    pub(super) unsafe fn take(place: *mut OVERLAPPED) -> Self {
        let place = NonNull::new(place).expect("an overlapped call needs an OVERLAPPED");
        let (offset, event) = parameters(place);
        let mut header = Self { place, internal: 0, internal_high: 0, offset, event };
        header.set(STATUS_PENDING as u32 as usize, 0);
        header
    }

    pub(super) fn address(&self) -> usize {
        self.place.addr().get()
    }

    pub(super) fn range(&self) -> Range {
        Range { start: self.address(), length: size_of::<OVERLAPPED>() }
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// `hEvent`.
    pub(super) fn event(&self) -> usize {
        self.event
    }

    fn words(&self) -> (&AtomicUsize, &AtomicUsize) {
        let place = self.place.as_ptr();
        // SAFETY: valid and aligned (see `take`); both words are only accessed through atomics while
        // the kernel has them, and the references live as long as `self`.
        unsafe {
            (
                AtomicUsize::from_ptr(&raw mut (*place).Internal),
                AtomicUsize::from_ptr(&raw mut (*place).InternalHigh),
            )
        }
    }

    fn set(&mut self, internal: usize, internal_high: usize) {
        (self.internal, self.internal_high) = (internal, internal_high);
        let (status, bytes) = self.words();
        bytes.store(internal_high, Ordering::Relaxed);
        status.store(internal, Ordering::Release);
    }

    /// Rubbish where a pending operation may have some: anything but the status itself.
    pub(super) fn scribble(&mut self, random: &mut Random) {
        let above = random.next() as usize & !STATUS_BITS;
        self.set(above | STATUS_PENDING as u32 as usize, random.next() as usize);
    }

    /// The last write: the memory is the caller's again.
    pub(super) fn finish(&mut self, status: i32, bytes: u32, random: &mut Random) {
        let above = random.next() as usize & !STATUS_BITS;
        self.set(above | status as u32 as usize, bytes as usize);
    }

    /// Whether the OVERLAPPED holds what the kernel left there.
    pub(super) fn is_intact(&self) -> bool {
        let (status, bytes) = self.words();
        status.load(Ordering::Relaxed) == self.internal
            && bytes.load(Ordering::Relaxed) == self.internal_high
            && parameters(self.place) == (self.offset, self.event)
    }

    /// Keeps the address where a leak checker sees it: the queue leaked this memory on purpose.
    pub(super) fn keep(&self) {
        KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(self.address());
    }
}

static KEPT: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// `Offset` and `OffsetHigh`, and `hEvent`. Only for a place that is valid (see `Header::take`).
fn parameters(place: NonNull<OVERLAPPED>) -> (u64, usize) {
    let place = place.as_ptr();
    // SAFETY: valid, and written by nobody while the header exists.
    unsafe {
        let offset = (*place).Anonymous.Anonymous;
        let offset = u64::from(offset.OffsetHigh) << 32 | u64::from(offset.Offset);
        (offset, (*place).hEvent.addr())
    }
}
