//! io_uring, set up as `raw/uring.c` does: edges by multishot polls, and what goes to the kernel together with others
//! handed over.

use std::cell::Cell;
use std::io;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;

use super::calls::call;
use super::{Kernel, OTHERS, Operation, Source, Task};

pub(crate) struct Uring;

const ENTRIES: u32 = 256;
const COMPLETIONS: u32 = 4 * ENTRIES;
/// Descriptors below can be kept: they stand in the ring's table under their own number.
const KEPT: u32 = 1024;

// ---- the kernel's numbers ----

const SETUP_CQSIZE: u32 = 1 << 3;
const SETUP_SINGLE_ISSUER: u32 = 1 << 12;
const SETUP_DEFER_TASKRUN: u32 = 1 << 13;
const SETUP_NO_SQARRAY: u32 = 1 << 16;
const OFFSET_OF_ENTRIES: i64 = 0x1000_0000;
const REGISTER_FILES_UPDATE: usize = 6;
const REGISTER_FILES2: usize = 13;
const REGISTER_RING_FDS: usize = 20;
const REGISTER_SPARSE: u32 = 1;
const ENTER_GETEVENTS: usize = 1;
const ENTER_REGISTERED_RING: usize = 1 << 4;
const OP_POLL_ADD: u8 = 6;
const OP_ACCEPT: u8 = 13;
const OP_SEND: u8 = 26;
const POLL_ADD_MULTI: u32 = 1;
const FIXED_FILE: u8 = 1;
const CQE_MORE: u32 = 1 << 1;

#[repr(C)]
#[derive(Default)]
struct Parameters {
    entries: [u32; 2],
    flags: u32,
    rest: [u32; 7],
    /// Of submissions: where their head, their tail and, the seventh, their array are.
    sq: [u32; 10],
    /// Of completions: where their head, their tail and, the sixth, they themselves are.
    cq: [u32; 10],
}

#[repr(C)]
#[derive(Default)]
struct Submission {
    opcode: u8,
    flags: u8,
    priority: u16,
    fd: i32,
    offset: u64,
    address: u64,
    length: u32,
    /// Flags of a send, events of a poll.
    how: u32,
    data: u64,
    rest: [u64; 3],
}

#[repr(C)]
struct Completion {
    data: u64,
    result: i32,
    flags: u32,
}

// ---- the ring ----

struct Ring {
    sq_tail: Cell<*const AtomicU32>,
    cq_head: Cell<*const AtomicU32>,
    cq_tail: Cell<*const AtomicU32>,
    submissions: Cell<*mut Submission>,
    completions: Cell<*const Completion>,
    /// Where the next submission goes.
    tail: Cell<u32>,
    /// What the kernel has.
    submitted: Cell<u32>,
    /// The registered one, where that is possible.
    descriptor: Cell<usize>,
    flags: Cell<usize>,
}

thread_local! {
    static RING: Ring = const {
        Ring {
            sq_tail: Cell::new(ptr::null()),
            cq_head: Cell::new(ptr::null()),
            cq_tail: Cell::new(ptr::null()),
            submissions: Cell::new(ptr::null_mut()),
            completions: Cell::new(ptr::null()),
            tail: Cell::new(0),
            submitted: Cell::new(0),
            descriptor: Cell::new(0),
            flags: Cell::new(0),
        }
    };
    /// The ring's own descriptor.
    static DESCRIPTOR: Cell<usize> = const { Cell::new(0) };
    static BELL: Operation = const { Operation::new() };
}

/// With the best flags that the kernel knows.
fn set_up() -> (RawFd, Parameters) {
    let deferred = SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN;
    for flags in [deferred | SETUP_NO_SQARRAY, deferred, 0] {
        let mut parameters = Parameters {
            entries: [0, COMPLETIONS],
            flags: flags | SETUP_CQSIZE,
            ..Default::default()
        };
        let at = (&raw mut parameters).expose_provenance();
        // SAFETY: so large they are.
        let ring = unsafe { call(libc::SYS_io_uring_setup, [ENTRIES as usize, at, 0, 0, 0, 0]) };
        if ring >= 0 {
            assert_eq!(parameters.entries, [ENTRIES, COMPLETIONS]);
            return (ring as RawFd, parameters);
        }
    }
    panic!("io_uring_setup");
}

fn map(ring: RawFd, length: usize, offset: i64) -> *mut u8 {
    let (access, how) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
    // SAFETY: it goes where there is nothing.
    let at = unsafe { libc::mmap(ptr::null_mut(), length, access, how, ring, offset) };
    assert_ne!(at, libc::MAP_FAILED, "mmap");
    at.cast()
}

fn register(what: usize, argument: &mut impl Sized, count: usize) -> isize {
    let (ring, at) = (DESCRIPTOR.get(), ptr::from_mut(argument).expose_provenance());
    // SAFETY: callers know what is asked for.
    unsafe { call(libc::SYS_io_uring_register, [ring, what, at, count, 0, 0]) }
}

/// This thread's. (Without a closure around its use, which the compiler would not always take in line.)
#[inline(always)]
fn ring() -> &'static Ring {
    // SAFETY: what a thread has of this is never dropped, and used within the thread.
    RING.with(|ring| unsafe { &*ptr::from_ref(ring) })
}

impl Ring {
    fn open(&self) {
        let (descriptor, parameters) = set_up();
        let Parameters { sq, cq, .. } = &parameters;
        let array = sq[6] as usize + ENTRIES as usize * 4;
        let completions = cq[5] as usize + COMPLETIONS as usize * size_of::<Completion>();
        let rings = map(descriptor, array.max(completions), 0);
        let length = ENTRIES as usize * size_of::<Submission>();
        self.submissions.set(map(descriptor, length, OFFSET_OF_ENTRIES).cast());
        // SAFETY: the kernel has told where in it things are.
        let at = |offset: u32| unsafe { rings.add(offset as usize) };
        self.sq_tail.set(at(sq[1]).cast());
        self.cq_head.set(at(cq[0]).cast());
        self.cq_tail.set(at(cq[1]).cast());
        self.completions.set(at(cq[5]).cast());
        if parameters.flags & SETUP_NO_SQARRAY == 0 {
            // SAFETY: so many there are, and nobody reads them yet.
            (0..ENTRIES).for_each(|i| unsafe { *at(sq[6] + i * 4).cast() = i });
        }
        DESCRIPTOR.set(descriptor as usize);
        let mut own = Update { offset: u32::MAX, rest: 0, data: descriptor as u64 };
        self.descriptor.set(descriptor as usize);
        if register(REGISTER_RING_FDS, &mut own, 1) == 1 {
            self.descriptor.set(own.offset as usize);
            self.flags.set(ENTER_REGISTERED_RING);
        }
    }

    /// Submits what was begun, and waits until there are `want` completions.
    #[inline(always)]
    fn enter(&self, want: usize) {
        let (tail, submitted) = (self.tail.get(), self.submitted.get());
        // SAFETY: it is mapped.
        unsafe { (*self.sq_tail.get()).store(tail, Ordering::Release) };
        let count = tail.wrapping_sub(submitted) as usize;
        let flags = self.flags.get() | ENTER_GETEVENTS;
        let arguments = [self.descriptor.get(), count, want, flags, 0, 0];
        // SAFETY: what submissions are about stays until they have ended.
        let done = unsafe { call(libc::SYS_io_uring_enter, arguments) };
        assert!(done >= 0, "io_uring_enter");
        self.submitted.set(submitted.wrapping_add(done as u32));
    }

    /// Submits what was begun.
    #[cold]
    fn flush(&self) {
        self.enter(0);
    }

    #[inline(always)]
    fn begin(&self, submission: Submission) {
        if self.tail.get().wrapping_sub(self.submitted.get()) == ENTRIES {
            self.flush();
        }
        let tail = self.tail.get();
        // SAFETY: the kernel has taken what was there before.
        unsafe { *self.submissions.get().add((tail % ENTRIES) as usize) = submission };
        self.tail.set(tail.wrapping_add(1));
    }

    /// There is something else to enter the ring for: what goes there, too, costs no call.
    #[inline(always)]
    fn is_busy(&self) -> bool {
        self.tail.get() != self.submitted.get() || OTHERS.get()
    }
}

#[repr(C)]
struct Update {
    offset: u32,
    rest: u32,
    data: u64,
}

// ---- whom completions are for: a source, for its edges, or an operation, by an odd number ----

fn data_of(operation: &Operation) -> u64 {
    ptr::from_ref(operation).expose_provenance() as u64 | 1
}

/// Tells every edge until it says otherwise.
fn poll_edges(source: &Source, edge: i32) {
    let data = ptr::from_ref(source).expose_provenance() as u64;
    poll(
        source.socket.get(),
        edge,
        POLL_ADD_MULTI,
        if source.is_kept.get() { FIXED_FILE } else { 0 },
        data,
    );
}

fn poll(fd: RawFd, edge: i32, length: u32, flags: u8, data: u64) {
    let (opcode, how) = (OP_POLL_ADD, edge as u32);
    ring().begin(Submission { opcode, flags, fd, length, how, data, ..Default::default() });
}

#[inline(always)]
fn completed(completion: &Completion, others: bool) {
    let &Completion { data, result, flags } = completion;
    if data & 1 != 0 {
        // SAFETY: the address is that of an operation, and they stay.
        let operation =
            unsafe { &*ptr::with_exposed_provenance::<Operation>((data & !1) as usize) };
        operation.result.set(result);
        return operation.task.get().run(others);
    }
    // SAFETY: the address is that of a source, and sources stay.
    let source = unsafe { &*ptr::with_exposed_provenance::<Source>(data as usize) };
    assert!(result >= 0, "poll");
    if flags & CQE_MORE == 0 {
        poll_edges(source, result);
    }
    source.tell(result, others);
}

impl Operation {
    /// Asks for the result, having begun it if that was not done.
    #[inline(always)]
    fn ask(&self, task: Task, begin: impl FnOnce(u64)) -> Poll<io::Result<usize>> {
        let result = self.result.get();
        if result > Self::NOT_YET {
            self.result.set(Self::NONE);
            return Poll::Ready(super::result(result as isize));
        }
        self.task.set(task);
        if result == Self::NONE {
            self.result.set(Self::NOT_YET);
            begin(data_of(self));
        }
        Poll::Pending
    }

    fn is_begun(&self) -> bool {
        self.result.get() != Self::NONE
    }
}

impl Kernel for Uring {
    fn open(bell: RawFd, task: Task) {
        ring().open();
        // Without it nothing is kept.
        let _ = register(REGISTER_FILES2, &mut [KEPT, REGISTER_SPARSE, 0, 0, 0, 0, 0, 0], 32);
        BELL.with(|operation| {
            operation.task.set(task);
            poll(bell, super::POLLIN, POLL_ADD_MULTI, 0, data_of(operation));
        });
        ring().flush();
    }

    fn wait() {
        let ring = ring();
        ring.enter(1);
        // SAFETY: they are mapped.
        let (its_head, its_tail) = unsafe { (&*ring.cq_head.get(), &*ring.cq_tail.get()) };
        let (mut head, tail) = (its_head.load(Ordering::Relaxed), its_tail.load(Ordering::Acquire));
        while head != tail {
            // SAFETY: so many there are.
            let completion = unsafe { &*ring.completions.get().add((head % COMPLETIONS) as usize) };
            head = head.wrapping_add(1);
            completed(completion, head != tail);
        }
        its_head.store(head, Ordering::Release);
    }

    fn watch(source: &Source, edge: i32) {
        poll_edges(source, edge);
    }

    fn connecting(source: &Source, task: Task) -> Poll<io::Result<usize>> {
        source.operation.ask(task, |data| poll(source.socket.get(), super::POLLOUT, 0, 0, data))
    }

    /// Of a connection that is there already this makes no call of its own, and without one it waits.
    fn accept(listener: &Source, task: Task) -> Poll<io::Result<usize>> {
        listener.operation.ask(task, |data| {
            let how = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u32;
            let (opcode, fd) = (OP_ACCEPT, listener.socket.get());
            ring().begin(Submission { opcode, fd, how, data, ..Default::default() });
        })
    }

    fn keep(fd: RawFd) -> bool {
        let mut update =
            Update { offset: fd as u32, rest: 0, data: (&raw const fd).expose_provenance() as u64 };
        register(REGISTER_FILES_UPDATE, &mut update, 1) == 1
    }

    /// Together with what others have to submit.
    #[inline(always)]
    fn send(source: &Source, bytes: &[u8], task: Task) -> Poll<io::Result<usize>> {
        if !source.operation.is_begun() && !ring().is_busy() {
            return source.send::<Self>(bytes, task);
        }
        source.operation.ask(task, |data| {
            ring().begin(Submission {
                opcode: OP_SEND,
                flags: if source.is_kept.get() { FIXED_FILE } else { 0 },
                fd: source.socket.get(),
                address: bytes.as_ptr().expose_provenance() as u64,
                length: bytes.len() as u32,
                how: (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32,
                data,
                ..Default::default()
            });
        })
    }
}
