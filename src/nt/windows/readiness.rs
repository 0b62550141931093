//! Waits until a socket is ready: IOCTL_AFD_POLL, the call beneath Winsock's `select` and `WSAPoll`, made
//! with an OVERLAPPED on the socket itself.
//!
//! AFD's structures and numbers are not documented by Microsoft; wepoll, libuv and mio use them as they
//! stand here, and `select` itself would break with them. Two such waits at once on one socket confuse
//! Windows, which wakes one with the other's events (pitfall 20): the caller makes one at a time.

use std::mem::size_of;
use std::ptr::null_mut;

use windows_sys::Win32::System::IO::{DeviceIoControl, OVERLAPPED};

use crate::handle::RawHandle;
use crate::iocp::Outcome;
use crate::op::{Event, Events};

const IOCTL_AFD_POLL: u32 = 0x0001_2024;

const RECEIVE: u32 = 1 << 0;
const RECEIVE_EXPEDITED: u32 = 1 << 1;
const SEND: u32 = 1 << 2;
const DISCONNECT: u32 = 1 << 3;
const ABORT: u32 = 1 << 4;
const LOCAL_CLOSE: u32 = 1 << 5;
const ACCEPT: u32 = 1 << 7;
const CONNECT_FAIL: u32 = 1 << 8;

/// What ends every wait: the other side has sent its last, a reset, a close, a connect that failed.
const OVER: u32 = DISCONNECT | ABORT | LOCAL_CLOSE | CONNECT_FAIL;

/// AFD_POLL_INFO with one AFD_POLL_HANDLE_INFO: what is asked, and then what is answered.
#[repr(C)]
pub(crate) struct Poll {
    timeout: i64,
    handles: u32,
    exclusive: u32,
    handle: RawHandle,
    events: u32,
    status: i32,
}

impl Poll {
    fn new(handle: RawHandle, event: Event) -> Self {
        let asked = match event {
            Event::Read => RECEIVE | ACCEPT,
            Event::Write => SEND,
            Event::PriorityRead => RECEIVE_EXPEDITED,
            Event::Error | Event::Hangup => 0,
        };
        Self {
            timeout: i64::MAX,
            handles: 1,
            exclusive: 0,
            handle,
            events: asked | OVER,
            status: 0,
        }
    }

    /// What the socket has come to, once the wait is over.
    pub(crate) fn events(&self) -> Events {
        let over = [Event::Read, Event::Write, Event::Error, Event::Hangup];
        let mut events = Events::default();
        for (afd, of_ours) in [
            (RECEIVE | ACCEPT, &[Event::Read][..]),
            (RECEIVE_EXPEDITED, &[Event::PriorityRead]),
            (SEND, &[Event::Write]),
            (DISCONNECT, &[Event::Read, Event::Hangup]),
            (ABORT | LOCAL_CLOSE | CONNECT_FAIL, &over),
        ] {
            if self.events & afd != 0 {
                of_ours.iter().for_each(|&event| events.insert(event));
            }
        }
        events
    }
}

/// Starts a wait for `event`, with the question and the answer in `poll`.
///
/// # Safety
/// `poll` and the OVERLAPPED stay valid, and nobody else's, until the operation's end.
pub(super) unsafe fn start(
    socket: RawHandle,
    event: Event,
    poll: *mut Option<Poll>,
    overlapped: *mut OVERLAPPED,
) -> Outcome {
    let length = size_of::<Poll>() as u32;
    // SAFETY: passed on. The reference ends before the call, from which on the place is the kernel's.
    unsafe {
        let place: *mut Poll = (*poll).insert(Poll::new(socket, event));
        let (asked, answer) = (place.cast_const().cast(), place.cast());
        let answered = null_mut();
        Outcome::from_bool(DeviceIoControl(
            socket,
            IOCTL_AFD_POLL,
            asked,
            length,
            answer,
            length,
            answered,
            overlapped,
        ))
    }
}
