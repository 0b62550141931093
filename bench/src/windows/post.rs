//! One wake-up posted, one packet taken off the port.

use std::io;
use std::ptr::null_mut;

use ioqueue::Queue;
use ioqueue::iocp::Outcome;
use windows_sys::Win32::Storage::FileSystem::ReadFile;

use super::pingpong::pipe_pair;
use super::{Measured, measure};

pub(crate) fn post(queue: &Queue, count: u32) -> io::Result<Measured> {
    // A read that never ends: with nothing to wait for, `poll` would not ask the port.
    let (client, _server) = pipe_pair()?;
    let client = queue.register(client)?;
    // SAFETY: one call; the byte is the state's and stays until the operation's end.
    let reading = unsafe {
        client.submit([0_u8], |handle, byte, overlapped| {
            Outcome::from_bool(ReadFile(handle, byte.cast(), 1, null_mut(), overlapped))
        })
    };
    let notifier = queue.notifier();
    let mut ready = Vec::new();
    let measured = measure(count, |count| {
        for _ in 0..count {
            notifier.notify()?;
            queue.poll(&mut ready, None)?;
        }
        Ok(())
    })?;
    assert!(ready.is_empty(), "the read has ended");
    drop(reading);
    Ok(measured)
}
