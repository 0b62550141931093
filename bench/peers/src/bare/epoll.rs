//! epoll, by the edge.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::ptr;
use std::task::Poll;

use super::calls::call;
use super::{Kernel, POLLOUT, Source, Task};

pub(crate) struct Epoll;

const BATCH: usize = 128;

thread_local! {
    static EPOLL: Cell<RawFd> = const { Cell::new(-1) };
    /// Whom the bell is for. Its event is 0.
    static ROOT: Cell<Task> = const { Cell::new(Task::NOBODY) };
}

fn control(how: i32, fd: RawFd, edges: i32, data: u64) {
    let mut event = libc::epoll_event { events: (edges | libc::EPOLLET) as u32, u64: data };
    let at = (&raw mut event).expose_provenance();
    // SAFETY: an event of ours.
    let done = unsafe {
        call(libc::SYS_epoll_ctl, [EPOLL.get() as usize, how as usize, fd as usize, at, 0, 0])
    };
    assert_eq!(done, 0, "epoll_ctl");
}

impl Kernel for Epoll {
    fn open(bell: RawFd, task: Task) {
        // SAFETY: takes a number.
        EPOLL.set(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) });
        ROOT.set(task);
        control(libc::EPOLL_CTL_ADD, bell, libc::EPOLLIN, 0);
    }

    fn wait() {
        let mut events = [MaybeUninit::<libc::epoll_event>::uninit(); BATCH];
        let arguments = [
            EPOLL.get() as usize,
            events.as_mut_ptr().expose_provenance(),
            BATCH,
            usize::MAX,
            0,
            0,
        ];
        // SAFETY: so many events there is room for.
        let count = unsafe { call(libc::SYS_epoll_pwait, arguments) }.max(0) as usize;
        for (number, event) in events[..count].iter().enumerate() {
            // SAFETY: so many are filled in.
            let event = unsafe { event.assume_init_ref() };
            let (edges, data, others) = (event.events as i32, event.u64, number + 1 < count);
            if data == 0 {
                ROOT.get().run(others);
                continue;
            }
            // SAFETY: the address is that of a source, which stays.
            let source: &Source = unsafe { &*ptr::with_exposed_provenance(data as usize) };
            source.tell(edges, others);
        }
    }

    fn watch(source: &Source, edge: i32) {
        let watched = source.watched.get();
        let how = if watched == edge { libc::EPOLL_CTL_ADD } else { libc::EPOLL_CTL_MOD };
        let data = ptr::from_ref(source).expose_provenance() as u64;
        control(how, source.socket.get(), watched, data);
    }

    fn connecting(source: &Source, task: Task) -> Poll<io::Result<usize>> {
        match source.may.get() {
            0 => source.wait::<_, Self>(POLLOUT, &source.writer, task),
            edges => Poll::Ready(Ok(edges as usize)),
        }
    }
}
