#![cfg(feature = "sim")]
//! The simulation finds what it is for: memory touched early, waits that can't end, loops that never
//! do; and a seed repeats a run.

#[path = "sim/support.rs"]
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::without_provenance_mut;
use std::time::Duration;

use ioqueue::iocp::{Cancelled, OVERLAPPED, Outcome};
use ioqueue::sim::{self, End, Faults, Kind, Plan, Sim, SimHandle, Traits};
use ioqueue::{AsAnyHandle, RawHandle};
use support::{MILLISECOND, SECOND, quiet};

/// What a test panics with.
fn panic_of(test: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(test)).expect_err("nobody found out");
    *panic.downcast::<String>().expect("a message")
}

/// A program's own operation, without a queue: the memory is the test's, to do wrong with.
struct Raw {
    sim: Sim,
    device: SimHandle,
    overlapped: Box<OVERLAPPED>,
    buffer: Vec<u8>,
}

impl Raw {
    fn new() -> Self {
        let sim = Sim::with_faults(4711, Faults::none());
        let device = sim.device();
        sim.plan(&device, Plan::pends());
        Self { sim, device, overlapped: Box::default(), buffer: vec![0; 16] }
    }

    fn handle(&self) -> RawHandle {
        self.device.as_any_handle().raw()
    }

    fn start(&mut self) -> Outcome {
        let (handle, buffer) = (self.handle(), self.buffer.as_mut_ptr());
        unsafe { self.sim.read_file(handle, buffer, 16, &mut *self.overlapped) }
    }
}

#[test]
fn a_write_to_a_buffer_that_the_kernel_has_is_found() {
    let mut raw = Raw::new();
    assert_eq!(raw.start(), Outcome::PENDING);
    raw.sim.check_memory();
    assert!(raw.buffer.iter().any(|&byte| byte != 0), "the kernel did not scribble");
    raw.buffer[7] = !raw.buffer[7];
    let message = panic_of(|| raw.sim.check_memory());
    assert!(message.contains("buffer of operation 0 was changed"), "{message}");
    assert!(message.contains("seed 4711"), "{message}");
    assert!(message.contains("Started"), "the journal is missing: {message}");
}

#[test]
fn an_overlapped_that_is_reset_while_the_kernel_has_it_is_found() {
    for part in 0..3 {
        let mut raw = Raw::new();
        raw.start();
        match part {
            0 => raw.overlapped.Internal = 0,
            1 => raw.overlapped.InternalHigh = raw.overlapped.InternalHigh.wrapping_add(1),
            _ => raw.overlapped.Anonymous.Anonymous.OffsetHigh = 1,
        }
        let message = panic_of(|| raw.sim.check_memory());
        assert!(message.contains("OVERLAPPED of operation 0 was changed"), "{message}");
    }
}

#[test]
fn memory_that_is_given_to_a_second_call_is_found() {
    let mut raw = Raw::new();
    raw.start();
    let message = panic_of(|| assert_eq!(raw.start(), Outcome::PENDING));
    assert!(message.contains("OVERLAPPED of operation 0"), "{message}");

    let mut raw = Raw::new();
    raw.start();
    let mut other = Box::<OVERLAPPED>::default();
    let (handle, buffer) = (raw.handle(), raw.buffer.as_mut_ptr());
    let message = panic_of(|| unsafe {
        raw.sim.write_file(handle, buffer.add(15), 1, &mut *other);
    });
    assert!(message.contains("buffer of operation 0"), "{message}");
}

// What several writes read from may be the same.
#[test]
fn one_buffer_may_be_written_from_twice() {
    let mut raw = Raw::new();
    raw.sim.plan(&raw.device, Plan::pends());
    let (handle, buffer) = (raw.handle(), raw.buffer.as_ptr());
    let mut other = Box::<OVERLAPPED>::default();
    unsafe {
        raw.sim.write_file(handle, buffer, 16, &mut *raw.overlapped);
        raw.sim.write_file(handle, buffer, 16, &mut *other);
    }
    raw.sim.check_memory();
    assert!(raw.sim.owns(buffer, 1));
    while raw.sim.complete(&raw.device, End::success()) {}
    assert!(!raw.sim.owns(buffer, 16));
    raw.sim.check();
}

#[test]
fn what_the_kernel_still_has_is_found_at_the_end() {
    let mut raw = Raw::new();
    raw.start();
    raw.sim.check_leaked(1);
    let message = panic_of(|| raw.sim.check());
    assert!(message.contains("has the memory of 1 operation(s), not of 0"), "{message}");
    // A simulation that failed stays failed.
    assert!(panic_of(|| raw.sim.check_leaked(1)).contains("not of 0"));
    raw.sim.complete(&raw.device, End::success());
}

// "A blocking dequeue with nothing that can ever happen must not hang."
#[test]
fn a_wait_for_ever_for_what_can_not_end_is_found() {
    let message = panic_of(|| {
        let (sim, queue) = quiet();
        let (ours, theirs) = sim.socket();
        let ours = queue.register(ours).unwrap();
        let _reading = sim.read(&queue, &ours, 0, vec![0; 8]);
        let (device, _theirs) = (queue.register(sim.device()).unwrap(), theirs);
        sim.plan(&device, Plan::never_ends());
        queue.block_on(sim.control(&queue, &device, vec![0; 8])).unwrap().0.unwrap();
    });
    assert!(message.contains("deadlock"), "{message}");
    assert!(message.contains("Read on a Socket waits for data"), "{message}");
    assert!(message.contains("Control on a Device never ends"), "{message}");
}

#[test]
fn a_program_that_asks_for_ever_is_found() {
    let message = panic_of(|| {
        let (sim, queue) = quiet();
        let device = queue.register(sim.device()).unwrap();
        sim.plan(&device, Plan::never_ends());
        let _asked = sim.control(&queue, &device, vec![0; 8]);
        while queue.running() {
            queue.poll(&mut Vec::new(), Some(Duration::ZERO)).unwrap();
        }
    });
    assert!(message.contains("livelock"), "{message}");
}

// Time passes, and operations end: each by its own cancel.
#[test]
fn a_program_that_tries_again_for_ever_is_found() {
    let message = panic_of(|| {
        let (sim, queue) = quiet();
        let (ours, _theirs) = sim.pipe();
        let ours = queue.register(ours).unwrap();
        let waiting = async {
            while let Cancelled::Cancelled(_) =
                sim.read(&queue, &ours, 0, vec![0; 8]).timeout(MILLISECOND).await
            {}
        };
        queue.block_on(waiting).unwrap();
    });
    assert!(message.contains("nothing has ended but by a cancel"), "{message}");
    assert!(message.contains("Read on a Pipe waits for data"), "{message}");
}

/// Some work under the usual faults, and all that can be seen of it.
fn run(seed: u64) -> String {
    let sim = Sim::new(seed);
    let queue = sim.queue().unwrap();
    let file = queue.register(sim.file("0123456789")).unwrap();
    let device = queue.register(sim.device()).unwrap();
    let mut seen = String::new();
    for round in 0..20 {
        let reading = sim.read(&queue, &file, round % 10, vec![0; 4]);
        let asking = sim.control(&queue, &device, vec![0; 4]).cancel();
        let read = queue.block_on(reading).unwrap();
        let asked = queue.block_on(asking).unwrap().into_completion();
        seen += &format!("{read:?} {asked:?} {:?}\n", sim.now());
    }
    drop((file, device, queue));
    sim.check();
    seen
}

#[test]
fn a_seed_repeats_a_run_and_another_seed_does_not() {
    for seed in 0..50 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
        assert_ne!(run(seed), run(seed + 50), "seed {seed}");
    }
}

#[test]
fn exploring_names_the_seed_that_fails_and_stops_there() {
    let mut tried = Vec::new();
    let message = panic_of(|| {
        sim::explore(0..100, |seed| {
            tried.push(seed);
            assert!(seed < 7, "seven or more");
        });
    });
    assert!(message.contains("seed 7 ") && message.contains("seven or more"), "{message}");
    assert_eq!(tried, (0..8).collect::<Vec<_>>());
}

#[test]
fn the_clock_moves_when_it_is_told_or_a_queue_waits_and_not_otherwise() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    let start = sim.now();
    sim.plan(&device, Plan::pends_for(SECOND));
    let asked = sim.control(&queue, &device, vec![0; 8]);
    queue.poll(&mut Vec::new(), Some(Duration::ZERO)).unwrap();
    assert_eq!(sim.now(), start);
    sim.advance(MILLISECOND);
    assert_eq!(sim.now(), start + MILLISECOND);
    queue.block_on(asked).unwrap().0.unwrap();
    assert_eq!(sim.now(), start + SECOND);
    drop((device, queue));
    sim.check();
}

#[test]
fn a_stream_gives_its_bytes_in_order_and_none_twice() {
    sim::explore(0..200, |seed| {
        let mut faults = Faults::default();
        (faults.fails_at_once, faults.fails_late, faults.short_writes) = (0.0, 0.0, 0.0);
        let sim = Sim::with_faults(seed, faults);
        let queue = sim.queue().unwrap();
        let (ours, theirs) = sim.pipe();
        let (ours, theirs) = (queue.register(ours).unwrap(), queue.register(theirs).unwrap());
        let sent: Vec<u8> = (0..=255).collect();
        let writes: Vec<_> =
            sent.chunks(40).map(|part| sim.write(&queue, &theirs, 0, part.to_vec())).collect();
        let mut received = Vec::<u8>::new();
        while received.len() < sent.len() {
            // Two reads at once; each takes what is next when its turn comes.
            let reads = [(); 2].map(|()| sim.read(&queue, &ours, 0, vec![0; 16]));
            for (index, read) in reads.into_iter().enumerate() {
                if index == 1 && received.len() == sent.len() {
                    drop(read);
                    continue;
                }
                let (read, bytes) = queue.block_on(read).unwrap();
                received.extend(&bytes[..read.unwrap() as usize]);
            }
        }
        for write in writes {
            queue.block_on(write).unwrap().0.unwrap();
        }
        let mut sorted = received.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, sent, "a byte is missing or there twice");
        drop((ours, theirs, queue));
        sim.check();
    });
}

// A short write has moved what it says, and only kinds whose writes may be short make them.
#[test]
fn a_write_may_be_short_and_says_so_where_windows_allows_it() {
    let mut faults = Faults::none();
    faults.short_writes = 1.0;
    let sim = Sim::with_faults(1, faults);
    let queue = sim.queue().unwrap();
    for (kind, may_be_short) in [
        (Kind::Pipe, true),
        (Kind::Socket, true),
        (Kind::MessagePipe, false),
        (Kind::Datagram, false),
    ] {
        let (ours, theirs) = sim.pair(kind);
        let (ours, theirs) = (queue.register(ours).unwrap(), queue.register(theirs).unwrap());
        let written = queue.block_on(sim.write(&queue, &ours, 0, b"0123456789".to_vec()));
        let written = written.unwrap().0.unwrap();
        assert_eq!(written < 10, may_be_short, "{kind:?}: {written}");
        let (read, bytes) = queue.block_on(sim.read(&queue, &theirs, 0, vec![0; 32])).unwrap();
        assert_eq!(bytes[..read.unwrap() as usize], b"0123456789"[..written as usize]);
    }
    let file = queue.register(sim.file("")).unwrap();
    let written = queue.block_on(sim.write(&queue, &file, 0, b"0123456789".to_vec())).unwrap();
    assert_eq!(written.0.unwrap(), 10);
    assert_eq!(sim.contents(&file), b"0123456789");
    drop((file, queue));
    sim.check();
}

#[test]
fn what_a_plan_says_was_moved_is_moved() {
    let (sim, queue) = quiet();
    let (ours, theirs) = sim.pipe();
    let (ours, theirs) = (queue.register(ours).unwrap(), queue.register(theirs).unwrap());
    sim.plan(&ours, Plan::pends().bytes(3));
    let writing = sim.write(&queue, &ours, 0, b"data".to_vec());
    sim.complete(&ours, End::bytes(3));
    assert_eq!(queue.block_on(writing).unwrap().0.unwrap(), 3);
    sim.plan(&theirs, Plan::at_once().bytes(2));
    let (read, bytes) = queue.block_on(sim.read(&queue, &theirs, 0, vec![0; 8])).unwrap();
    assert_eq!((read.unwrap(), &bytes[..2]), (2, &b"da"[..]));
    let (read, bytes) = queue.block_on(sim.read(&queue, &theirs, 0, vec![0; 8])).unwrap();
    assert_eq!((read.unwrap(), &bytes[..1]), (1, &b"t"[..]));
    drop((ours, theirs, queue));
    sim.check();
}

// Pitfall 15: what others posted fills a port; operations always have room.
#[test]
fn to_a_full_port_nothing_can_be_posted_until_something_was_taken_off() {
    let mut faults = Faults::none();
    faults.room_for_posts = 2;
    let sim = Sim::with_faults(1, faults);
    let queue = sim.queue().unwrap();
    let device = queue.register(sim.device()).unwrap();
    sim.plan(&device, Plan::pends());
    let asked = sim.control(&queue, &device, vec![0; 8]);
    sim.post(&queue, 7, 0, 0);
    sim.post(&queue, 7, 0, 0);
    assert!(queue.notifier().notify().is_err());
    sim.complete(&device, End::success());
    assert_eq!(sim.queued(&queue), 3);
    assert_eq!(queue.block_on(asked).unwrap().0.unwrap(), 8);
    assert_eq!((sim.queued(&queue), queue.foreign_packets()), (0, 2));
    queue.notifier().notify().unwrap();
    assert_eq!(sim.queued(&queue), 1);
    drop((device, queue));
    sim.check();
}

#[test]
fn handles_are_counted_and_their_values_come_back() {
    let sim = Sim::quiet();
    let first = sim.device();
    let value = first.id();
    let second = first.duplicate();
    assert_eq!(sim.open_handles(), 2);
    drop(first);
    assert_eq!(sim.open_handles(), 1);
    let third = sim.open(Kind::Pipe, Traits::default());
    assert_eq!(third.id(), value);
    drop((second, third));
    assert_eq!(sim.open_handles(), 0);
    let unknown: RawHandle = without_provenance_mut(4096);
    let mut overlapped = Box::<OVERLAPPED>::default();
    let outcome = unsafe { sim.read_file(unknown, [0; 1].as_mut_ptr(), 1, &mut *overlapped) };
    assert_eq!(outcome, Outcome::from_error(6), "ERROR_INVALID_HANDLE");
}
