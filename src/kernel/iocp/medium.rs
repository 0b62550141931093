//! What a registered handle leads to, and what that makes of a portable call.
//!
//! Files, pipes and devices are read and written through one buffer a call: what several hold goes through
//! one. Sockets have calls of their own.

use std::ptr::NonNull;

use windows_sys::Win32::Foundation::{
    ERROR_INVALID_PARAMETER, ERROR_NOT_ENOUGH_MEMORY, ERROR_SEEK_ON_DEVICE,
};
use windows_sys::Win32::Networking::WinSock::WSAENOTSOCK;
use windows_sys::Win32::Storage::FileSystem::{FILE_TYPE_DISK, FILE_TYPE_PIPE};

use crate::iocp::Outcome;
use crate::kernel::call::{Call, Refusal};
use crate::nt::SocketProtocol;
use crate::op::{Event, IoPart, part_of};

/// What a handle leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Medium {
    /// A file on a disk, or a disk.
    File,
    Pipe,
    /// A serial port, a console, a driver's device: what a place means there is its business.
    Device,
    /// A socket that carries a stream.
    Stream,
    /// A socket that carries datagrams.
    Datagram,
}

impl Medium {
    /// By `GetFileType`'s answer.
    pub(crate) fn of_file_type(file_type: u32) -> Self {
        match file_type {
            FILE_TYPE_DISK => Self::File,
            FILE_TYPE_PIPE => Self::Pipe,
            _ => Self::Device,
        }
    }

    /// By what Winsock says of a socket, if it does.
    pub(crate) fn of_socket(protocol: Option<SocketProtocol>) -> Self {
        match protocol {
            Some(SocketProtocol { datagrams: true, .. }) => Self::Datagram,
            _ => Self::Stream,
        }
    }

    fn is_socket(self) -> bool {
        matches!(self, Self::Stream | Self::Datagram)
    }

    /// The call as such a handle takes it: afterwards `Receive`, `Send` and the vectored calls are a
    /// socket's, `Read` and `Write` are not. Or what is said instead of making it.
    ///
    /// # Safety
    /// What `call` points to is valid.
    pub(crate) unsafe fn fit(self, call: Call) -> Result<Call, Outcome> {
        match call {
            Call::Read { at, length } if self.is_socket() => Ok(Call::Receive { at, length }),
            Call::Write { at, length } if self.is_socket() => Ok(Call::Send { at, length }),
            Call::ReadVectored { parts, count, gathered } if !self.is_socket() => {
                // SAFETY: passed on.
                let (at, length) = unsafe { in_one(parts, count, gathered, false)? };
                Ok(Call::Read { at, length })
            }
            Call::WriteVectored { parts, count, gathered } if !self.is_socket() => {
                // SAFETY: passed on.
                let (at, length) = unsafe { in_one(parts, count, gathered, true)? };
                Ok(Call::Write { at, length })
            }
            // As on Unix, where such a handle is not seekable.
            Call::ReadAt { .. } | Call::WriteAt { .. }
                if !matches!(self, Self::File | Self::Device) =>
            {
                Err(Outcome::from_error(ERROR_SEEK_ON_DEVICE))
            }
            // Windows has offsets with a sign, and takes the last of those below zero for the end of the file.
            Call::ReadAt { offset, .. } | Call::WriteAt { offset, .. }
                if offset > i64::MAX as u64 =>
            {
                Err(Outcome::from_error(ERROR_INVALID_PARAMETER))
            }
            Call::Receive { .. }
            | Call::Send { .. }
            | Call::ReceiveFrom { .. }
            | Call::SendTo { .. }
            | Call::Accept { .. }
            | Call::Connect { .. }
            | Call::Shutdown { .. }
                if !self.is_socket() =>
            {
                Err(Outcome::from_error(WSAENOTSOCK as u32))
            }
            // Of a pipe it would block until the other side has read everything.
            Call::Sync { .. } if self != Self::File => Err(Outcome::refused(Refusal::NoFile)),
            Call::Ready { .. } if !self.is_socket() => Err(Outcome::refused(Refusal::NoReadiness)),
            // A receive of nothing ends when there is something, or the end. Any number may wait so,
            // which of the other way only one can (pitfall 20).
            Call::Ready { event: Event::Read, .. } if self == Self::Stream => {
                Ok(Call::Receive { at: NonNull::dangling().as_ptr(), length: 0 })
            }
            call => Ok(call),
        }
    }
}

/// One buffer for the parts of a call that takes one: the only part that is not empty, or `gathered`,
/// which is made as long as all of them. With what they hold, if they are to be written.
///
/// # Safety
/// `parts` are `count` of them, valid, and so is `gathered`, which is nobody else's.
unsafe fn in_one(
    parts: *const IoPart,
    count: usize,
    gathered: *mut Vec<u8>,
    writes: bool,
) -> Result<(*mut u8, usize), Outcome> {
    // SAFETY: below the count. The parts' bytes are not looked at.
    let all = (0..count).map(|index| part_of(unsafe { &*parts.add(index) }));
    let parts = all.filter(|&(_, length)| length > 0);
    let mut few = parts.clone();
    let only = few.next().unwrap_or((NonNull::dangling().as_ptr(), 0));
    if few.next().is_none() {
        return Ok(only);
    }
    let length = parts.clone().map(|(_, length)| length).sum();
    // SAFETY: ours for now.
    let gathered = unsafe { &mut *gathered };
    if gathered.try_reserve_exact(length).is_err() {
        return Err(Outcome::from_error(ERROR_NOT_ENOUGH_MEMORY));
    }
    if writes {
        for (at, length) in parts {
            // SAFETY: a part that is written from may be read.
            gathered.extend_from_slice(unsafe { std::slice::from_raw_parts(at, length) });
        }
    } else {
        gathered.resize(length, 0);
    }
    Ok((gathered.as_mut_ptr(), length))
}
