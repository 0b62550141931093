//! The commonest calls on Linux, made where they are needed and not in the C library.
//!
//! Its functions return, which after a system call costs some processors as much as the call itself
//! (docs/PERFORMANCE.md, "Returns"). They are points where a thread may be cancelled (pthreads(7)), too, which none of
//! ours ever is: two locked instructions a call once a program has a second thread.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::slice;

use rustix::io::ReadWriteFlags;
use rustix::io_uring::{IoringEnterFlags, io_uring_enter, io_uring_enter_arg};
use rustix::io_uring::{io_uring_getevents_arg, io_uring_ptr};
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{RecvFlags, SendFlags};

use super::unix::{Errno, cut};
use crate::op::PeerAddress;

/// What a call returned: a count, of which none is asked for more than fits (`cut`).
#[inline(always)]
fn count(returned: rustix::io::Result<usize>) -> Result<u32, Errno> {
    match returned {
        Ok(count) => Ok(count as u32),
        Err(errno) => Err(number(errno)),
    }
}

/// Apart, so that what succeeds is not made to look like what may fail.
#[cold]
fn number(errno: rustix::io::Errno) -> Errno {
    errno.raw_os_error()
}

/// recv(2), told not to block.
///
/// # Safety
/// `at` is `length` bytes, to be written to. The descriptor is open.
#[inline(always)]
pub(super) unsafe fn receive(fd: RawFd, at: *mut u8, length: usize) -> Result<u32, Errno> {
    // SAFETY: the descriptor is open, the bytes are there and nobody else's (a promise of the caller's), and may
    // be in any state.
    let (fd, room) = unsafe {
        let at = at.cast::<MaybeUninit<u8>>();
        (BorrowedFd::borrow_raw(fd), slice::from_raw_parts_mut(at, cut(length) as usize))
    };
    count(rustix::net::recv(fd, room, RecvFlags::DONTWAIT).map(|(_, count)| count))
}

/// send(2), told not to block, and to raise no signal.
///
/// # Safety
/// `at` is `length` bytes. The descriptor is open.
#[inline(always)]
pub(super) unsafe fn send(fd: RawFd, at: *const u8, length: usize) -> Result<u32, Errno> {
    // SAFETY: the descriptor is open and the bytes are there (a promise of the caller's).
    let (fd, bytes) =
        unsafe { (BorrowedFd::borrow_raw(fd), slice::from_raw_parts(at, cut(length) as usize)) };
    count(rustix::net::send(fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL))
}

/// connect(2).
///
/// # Safety
/// `peer` is valid. The descriptor is open.
#[inline(always)]
pub(super) unsafe fn connect(fd: RawFd, peer: *const PeerAddress) -> Result<u32, Errno> {
    /// A valid one: the only one there is is made below.
    struct Peer(*const PeerAddress);
    // SAFETY: the address is at its beginning, and as long as it says.
    unsafe impl SocketAddrArg for Peer {
        unsafe fn with_sockaddr<R>(
            &self,
            connect: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
        ) -> R {
            // SAFETY: it is valid (a promise of the caller's).
            let length = unsafe { (*self.0).length };
            connect(self.0.cast(), length)
        }
    }
    // SAFETY: the descriptor is open (a promise of the caller's).
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    count(rustix::net::connect(fd, &Peer(peer)).map(|()| 0))
}

/// preadv2(2), told not to wait for a disk. The place `u64::MAX` is the current one.
///
/// # Safety
/// `parts` are so many, to be written to. The descriptor is open.
#[inline(always)]
pub(super) unsafe fn read_now(
    fd: RawFd,
    parts: *mut libc::iovec,
    parts_count: usize,
    offset: u64,
) -> Result<u32, Errno> {
    // SAFETY: the descriptor is open, and the parts are there and nobody else's (a promise of the caller's). To the
    // system they are the same (see IoSliceMut), and no reference to what they hold is formed.
    let (fd, parts) = unsafe {
        let parts = slice::from_raw_parts_mut(parts.cast::<IoSliceMut<'_>>(), parts_count);
        (BorrowedFd::borrow_raw(fd), parts)
    };
    count(rustix::io::preadv2(fd, parts, offset, ReadWriteFlags::NOWAIT))
}

/// pwritev2(2), told not to wait for a disk. The place `u64::MAX` is the current one.
///
/// # Safety
/// `parts` are so many. The descriptor is open.
#[inline(always)]
pub(super) unsafe fn write_now(
    fd: RawFd,
    parts: *const libc::iovec,
    parts_count: usize,
    offset: u64,
) -> Result<u32, Errno> {
    // SAFETY: as in `read_now`.
    let (fd, parts) = unsafe {
        let parts = slice::from_raw_parts(parts.cast::<IoSlice<'_>>(), parts_count);
        (BorrowedFd::borrow_raw(fd), parts)
    };
    count(rustix::io::pwritev2(fd, parts, offset, ReadWriteFlags::NOWAIT))
}

/// write(2) to an eventfd.
pub(super) fn add_one(event: impl AsFd) -> Result<(), Errno> {
    count(rustix::io::write(event, &1_u64.to_ne_bytes())).map(|_| ())
}

/// io_uring_enter(2).
///
/// # Safety
/// The descriptor is an open ring's, or, as the flags say, the number of a registered one. What the submissions
/// point to stays until their completions.
#[inline(always)]
pub(super) unsafe fn enter(
    ring: RawFd,
    submissions: u32,
    wanted: u32,
    flags: u32,
    limit: Option<&io_uring::types::Timespec>,
) -> Result<u32, Errno> {
    let flags = IoringEnterFlags::from_bits_retain(flags);
    // SAFETY: passed on. The time is read in the call only. A registered ring's number is no descriptor, but is
    // borrowed as one for the call alone, which does with it what the flags say.
    let entered = unsafe {
        let ring = BorrowedFd::borrow_raw(ring);
        match limit {
            None => io_uring_enter(ring, submissions, wanted, flags),
            Some(limit) => {
                let ts = io_uring_ptr::new(std::ptr::from_ref(limit).cast_mut().cast());
                let limits = io_uring_getevents_arg { ts, ..Default::default() };
                let flags = flags | IoringEnterFlags::EXT_ARG;
                io_uring_enter_arg(ring, submissions, wanted, flags, Some(&limits))
            }
        }
    };
    entered.map_err(number)
}
