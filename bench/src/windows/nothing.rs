//! A call that ends at once and never enters the system: what the queue itself takes.

use std::io;

use ioqueue::Queue;
use ioqueue::iocp::Outcome;
use windows_sys::Win32::Foundation::ERROR_PIPE_CONNECTED;

use super::pingpong::pipe_pair;
use super::{Measured, measure};

pub(crate) fn nothing(queue: &Queue, count: u32) -> io::Result<Measured> {
    let (client, _server) = pipe_pair()?;
    let client = queue.register(client)?;
    let submitting = async |count| {
        let mut state = vec![0_u8; 64];
        for _ in 0..count {
            // SAFETY: nothing is started, and this code says so: it has ended and no packet comes.
            let ended = unsafe {
                client.submit(state, |_, _, _| Outcome::from_error(ERROR_PIPE_CONNECTED))
            };
            state = ended.await.1;
        }
    };
    measure(count, |count| queue.block_on(submitting(count)))
}
