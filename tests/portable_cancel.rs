#![allow(clippy::type_complexity, clippy::replace_box)]
//! What is given up: dropped, cancelled, limited, by unregistering (Q8, Q9, Q13).

#[macro_use]
mod each_kernel;

use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, RawWaker, RawWakerVTable, Wake, Waker};
use std::time::Duration;

use each_kernel::{
    LONG, Marked, Way, assert_came_back, cancels_later, file, handles_can_leave, listener,
    look_around, pipe, pipe_in, poll_once, poll_with, queue_on, skip, ways, write_full,
};
use ioqueue::error::is_cancelled;
use ioqueue::op::Read;
use ioqueue::{Elapsed, Misuse, Operation, PendingState, Queue};

/// A waker that cannot be dropped in peace.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        std::mem::forget(self);
    }
}

impl Drop for Panics {
    fn drop(&mut self) {
        panic!("a waker's drop");
    }
}

/// A waker that has its queue polled before there is another of it.
struct Late {
    queue: Queue,
    clones: Cell<u32>,
}

static LATE: RawWakerVTable = RawWakerVTable::new(
    |it| {
        // SAFETY: these are called with what `late` points to only.
        let late = unsafe { &*it.cast::<Late>() };
        let before = late.queue.pending().len();
        while late.queue.pending().len() == before && before > 0 {
            each_kernel::turn(&late.queue);
        }
        late.clones.set(late.clones.get() + 1);
        RawWaker::new(it, &LATE)
    },
    forget_late,
    |_| {},
    forget_late,
);

fn forget_late(it: *const ()) {
    // SAFETY: as above.
    let late = unsafe { &*it.cast::<Late>() };
    late.clones.set(late.clones.get() - 1);
}

on_each_kernel! {
    /// Q13, Q2: it is waited for until the kernel has given it back.
    fn dropping_a_read_cancels_it(queue) {
        for Way { name, from, to } in ways(queue) {
            let (buffer, drops) = Marked::new(64);
            let reading = to.read(buffer);
            queue.block_on(look_around()).unwrap();
            assert_eq!(queue.pending().len(), 1, "{name}");
            drop(reading);
            queue.run().unwrap();
            assert_eq!((queue.pending().len(), drops.count()), (0, 1), "{name}");
            // What comes now is the next one's.
            queue.block_on(write_full(&from, "next")).unwrap();
            assert_eq!(queue.block_on(to.read(vec![0; 8])).unwrap().1, b"next", "{name}");
        }
    }

    /// The same before the queue has looked at its kernel.
    fn an_operation_may_be_dropped_as_soon_as_it_is_started(queue) {
        for Way { name, from, to } in ways(queue) {
            let (buffer, drops) = Marked::new(64);
            drop(to.read(buffer));
            let (other, more) = Marked::new(64);
            drop(from.write(other));
            queue.run().unwrap();
            assert_eq!((drops.count(), more.count()), (1, 1), "{name}");
            // Of so many that may end at once some are to let others go first.
            let all: Vec<_> = (0..200).map(|_| {
                let (buffer, drops) = Marked::new(1);
                drop(from.write(buffer));
                drops
            }).collect();
            queue.run().unwrap();
            assert!(all.iter().all(|drops| drops.count() == 1), "{name}");
        }
    }

    /// Q13.
    fn an_awaited_cancel_gives_the_buffer_back(queue) {
        for Way { name, from, to } in ways(queue) {
            for is_seen in [true, false] {
                let reading = to.read(vec![5; 64]);
                if is_seen {
                    queue.block_on(look_around()).unwrap();
                }
                let (result, buffer) = queue.block_on(reading.cancel()).unwrap();
                assert!(is_cancelled(&result.unwrap_err()), "{name}");
                assert_came_back(queue, &buffer, &[5; 64]);
            }
            queue.block_on(write_full(&from, "next")).unwrap();
            assert_eq!(queue.block_on(to.read(vec![0; 8])).unwrap().1, b"next", "{name}");
        }
    }

    /// Scenario 42, pitfall 10: what the queue has seen by then is given; what it has not stays where it is.
    fn a_cancelled_read_loses_nothing(queue) {
        for Way { name, from, to } in ways(queue) {
            for is_seen in [true, false] {
                let reading = to.read(vec![0; 64]);
                queue.block_on(look_around()).unwrap();
                queue.block_on(async {
                    write_full(&from, "data").await;
                    if is_seen {
                        look_around().await;
                    }
                }).unwrap();
                let (result, mut bytes) = queue.block_on(reading.cancel()).unwrap();
                match result {
                    Ok(count) => assert_eq!(count, 4, "{name}"),
                    Err(error) => {
                        assert!(is_cancelled(&error) && !is_seen, "{name}: {error}");
                        bytes = queue.block_on(to.read(vec![0; 64])).unwrap().1;
                    }
                }
                assert_eq!(bytes, b"data", "{name}");
            }
        }
    }

    /// Scenario 36.
    fn cancelling_what_is_over_gives_its_result(queue) {
        for Way { name, from, to } in ways(queue) {
            let writing = from.write("data");
            queue.block_on(look_around()).unwrap();
            assert_eq!(queue.block_on(writing.cancel()).unwrap().0.unwrap(), 4, "{name}");
            let reading = to.read(vec![0; 8]);
            queue.block_on(look_around()).unwrap();
            let (count, bytes) = queue.block_on(reading.cancel()).unwrap();
            assert_eq!((count.unwrap(), &bytes[..]), (4, &b"data"[..]), "{name}");
        }
        let file = file(queue, b"contents");
        let (count, bytes) = queue.block_on(file.read_at(vec![0; 8], 0).cancel()).unwrap();
        match count {
            Ok(count) => assert_eq!((count, &bytes[..]), (8, &b"contents"[..])),
            Err(error) => assert!(is_cancelled(&error), "{error}"),
        }
    }

    /// A cancel is for its own operation, also where the others look the same.
    fn a_cancel_hits_its_own_operation_only(queue) {
        let (listener, address) = listener(queue);
        let mut accepts: Vec<_> = (0..10).map(|_| Some(listener.accept())).collect();
        queue.block_on(look_around()).unwrap();
        for number in [9, 0, 4] {
            let cancel = accepts[number].take().unwrap().cancel();
            assert!(is_cancelled(&queue.block_on(cancel).unwrap().unwrap_err()));
        }
        queue.block_on(look_around()).unwrap();
        assert_eq!(queue.pending().len(), 7);
        for accept in accepts.into_iter().flatten() {
            let _client = each_kernel::host_that_connects(queue, address);
            // Which of them it goes to is the system's business.
            let mut accept = accept;
            if poll_once(&mut accept).is_pending() {
                queue.block_on(look_around()).unwrap();
            }
            drop(accept);
        }
        queue.run().unwrap();
    }

    /// Q12, Q13: a time limit loses nothing either.
    fn an_operation_that_takes_too_long_gives_its_buffer_back(queue) {
        for Way { name, from, to } in ways(queue) {
            let limited = to.read(vec![7; 8]).timeout(Duration::from_millis(5));
            let (result, buffer) = queue.block_on(limited).unwrap();
            assert!(Elapsed::is(&result.unwrap_err()), "{name}");
            assert_came_back(queue, &buffer, &[7; 8]);
            queue.block_on(write_full(&from, "data")).unwrap();
            let (count, _) = queue.block_on(to.read(vec![7; 8]).timeout(LONG)).unwrap();
            assert_eq!(count.unwrap(), 4, "{name}");
            assert!(!queue.running(), "{name}");
        }
    }

    /// Q8: unregistering ends everything, and everybody learns of it.
    fn unregistering_cancels_everything_and_everybody_learns_of_it(queue) {
        for Way { name, from, to } in ways(queue) {
            let reads: Vec<_> = (0..20).map(|_| to.read(vec![7; 8])).collect();
            let waits = if each_kernel::says_when_ready(queue, name) { 3 } else { 0 };
            let ready: Vec<_> = (0..waits).map(|_| to.ready(ioqueue::Event::Read)).collect();
            let mut writes = Vec::new();
            loop {
                let mut writing = from.write(vec![1; 1 << 20]);
                if poll_once(&mut writing).is_pending() {
                    writes.push(writing);
                    if writes.len() == 5 {
                        break;
                    }
                }
            }
            queue.block_on(look_around()).unwrap();
            queue.unregister(&from).unwrap();
            queue.unregister(&to).unwrap();
            for read in reads {
                let (result, buffer) = queue.block_on(read).unwrap();
                match result {
                    Ok(count) => assert_eq!(count, buffer.len(), "{name}"),
                    Err(error) => {
                        assert!(is_cancelled(&error), "{name}: {error}");
                        assert_came_back(queue, &buffer, &[7; 8]);
                    }
                }
            }
            for wait in ready {
                match queue.block_on(wait).unwrap() {
                    Ok(events) => assert!(!events.is_empty(), "{name}"),
                    Err(error) => assert!(is_cancelled(&error), "{name}: {error}"),
                }
            }
            for write in writes {
                match queue.block_on(write).unwrap().0 {
                    Ok(count) => assert!(count > 0, "{name}"),
                    Err(error) => assert!(is_cancelled(&error), "{name}: {error}"),
                }
            }
            assert!(!queue.running() && queue.pending().is_empty(), "{name}");
            // Scenario 37, Q9: nothing is started any more, and the buffer comes back.
            let (result, buffer) = queue.block_on(to.read(vec![7; 8])).unwrap();
            let misuse = Misuse::of(&result.unwrap_err());
            assert!(matches!(misuse, Some(Misuse::UnregisteredHandle { .. })), "{name}: {misuse:?}");
            assert_eq!(buffer, [7; 8], "{name}");
            // Again, and what was never registered: nothing.
            queue.unregister(&from).unwrap();
            queue.unregister(&std::io::stdin()).unwrap();
        }
    }

    /// Scenario 39.
    fn dropping_a_handle_ends_sixty_four_operations(queue) {
        let (listener, _) = listener(queue);
        let accepts: Vec<_> = (0..64).map(|_| listener.accept()).collect();
        let (reader, _writer) = pipe(queue);
        let (reads, drops): (Vec<_>, Vec<_>) = (0..64).map(|_| {
            let (buffer, drops) = Marked::new(64);
            (reader.read(buffer), drops)
        }).unzip();
        queue.block_on(look_around()).unwrap();
        assert_eq!(queue.pending().len(), 128);
        drop(listener);
        drop(reader);
        for accept in accepts {
            assert!(is_cancelled(&queue.block_on(accept).unwrap().unwrap_err()));
        }
        for (read, drops) in reads.into_iter().zip(drops) {
            let (result, buffer) = queue.block_on(read).unwrap();
            assert!(is_cancelled(&result.unwrap_err()));
            assert_eq!(drops.count(), 0);
            drop(buffer);
            assert_eq!(drops.count(), 1);
        }
        assert!(!queue.running() && queue.pending().is_empty());
    }

    /// Q7: the handle is whole when it leaves with operations in flight.
    fn a_handle_that_leaves_takes_nothing_with_it(queue) {
        if !handles_can_leave(queue) {
            return skip("this system does not let a handle go to another registration");
        }
        for Way { name, from, to } in ways(queue) {
            let reading = to.read(vec![7; 8]);
            queue.block_on(look_around()).unwrap();
            let to = to.into_inner();
            queue.block_on(write_full(&from, "data")).unwrap();
            let (result, _) = queue.block_on(reading).unwrap();
            assert!(is_cancelled(&result.unwrap_err()), "{name}");
            match queue.register(to) {
                Ok(to) => {
                    let (_, bytes) = queue.block_on(to.read(vec![0; 8])).unwrap();
                    assert_eq!(bytes, b"data", "{name}");
                }
                // What was not yet over when it left keeps it bound.
                Err(error) => assert!(each_kernel::is_windows(queue), "{name}: {error}"),
            }
        }
    }

    /// Scenario 64, Q8: to another queue, and back.
    fn a_handle_may_go_to_another_queue(queue) {
        if !handles_can_leave(queue) {
            return skip("this system does not let a handle go to another registration");
        }
        for (name, from, to) in each_kernel::raw_ways(queue) {
            let other = queue_on(queue.kernel_kind()).unwrap();
            let from = queue.register(from).unwrap();
            let mut to = Some(to);
            for round in 0..3 {
                let here = if round % 2 == 0 { queue } else { &other };
                let registered = here.register(to.take().unwrap()).unwrap();
                let reading = registered.read(vec![0; 8]);
                here.block_on(look_around()).unwrap();
                queue.block_on(write_full(&from, "data")).unwrap();
                assert_eq!(here.block_on(reading).unwrap().1, b"data", "{name}");
                to = Some(registered.into_inner());
            }
            other.close(LONG).unwrap();
        }
    }

    /// Q14: a cancelled operation that is still the kernel's is listed as what it is.
    fn what_is_in_flight_is_listed(queue) {
        let (reader, _writer) = pipe(queue);
        let reading = reader.read(vec![0; 8]);
        let line = line!() - 1;
        let pending = queue.pending();
        assert_eq!(pending.len(), 1);
        assert_eq!((pending[0].state, pending[0].handle), (PendingState::InFlight, reader.id()));
        assert_eq!((pending[0].caller.line(), pending[0].caller.file()), (line, file!()));
        assert_eq!(pending[0].kind, "Read");
        let text = format!("{queue:?}");
        assert!(text.contains("in_flight: 1"), "{text}");
        let mut cancel = reading.cancel();
        assert!(poll_once(&mut cancel).is_pending());
        assert_eq!(queue.pending()[0].state, PendingState::Cancelling);
        drop(cancel);
        if cancels_later(queue) {
            assert_eq!(queue.pending()[0].state, PendingState::Abandoned);
        }
        queue.run().unwrap();
        assert!(queue.pending().is_empty());
    }

    /// Pitfall 45: the wakers that polled change no outcome.
    fn cancelling_does_not_care_which_waker_polled(queue) {
        let (reader, _writer) = pipe(queue);
        let mut reading = reader.read(vec![0; 8]);
        let ((first, one), (second, other)) = (each_kernel::Wakes::new(), each_kernel::Wakes::new());
        assert!(poll_with(&mut reading, &one).is_pending());
        let mut cancel = reading.cancel();
        assert!(poll_with(&mut cancel, &other).is_pending());
        let result = loop {
            each_kernel::turn(queue);
            if let Poll::Ready((result, _)) = poll_with(&mut cancel, &other) {
                break result;
            }
        };
        assert!(is_cancelled(&result.unwrap_err()));
        assert_eq!((first.count(), second.count()), (0, 1), "whoever polled last is woken");
    }

    /// A waker whose clone polls the queue comes late, and the drop of the one it replaces panics: it is not left with
    /// what has ended.
    not_simulated("it brings what was written before anybody looks")
    fn a_waker_that_came_late_is_not_left_behind(queue) {
        let (reader, mut writer) = pipe_in(queue);
        let mut reading = reader.read(vec![0; 8]);
        let first = Waker::from(Arc::new(Panics));
        assert!(poll_with(&mut reading, &first).is_pending());
        drop(first);
        writer.write_all(b"x").unwrap();
        let late = Late { queue: queue.clone(), clones: Cell::new(0) };
        let raw = RawWaker::new((&raw const late).cast(), &LATE);
        // SAFETY: what it points to lives longer, and the functions do as a waker's have to on one thread.
        let waker = ManuallyDrop::new(unsafe { Waker::from_raw(raw) });
        let polled = catch_unwind(AssertUnwindSafe(|| poll_with(&mut reading, &waker).is_ready()));
        assert!(polled.is_err(), "the first was dropped");
        assert!(matches!(poll_once(&mut reading), Poll::Ready((Ok(1), _))));
        assert_eq!(late.clones.get(), 0);
    }

    /// Scenario 43, pitfalls 21 and 48: a waker that drops other waits, starts some, and polls the queue.
    fn a_waker_may_do_anything(queue) {
        let (reader, writer) = pipe(queue);
        let reader = Rc::new(reader);
        let others: Rc<RefCell<Vec<Operation<Read<Vec<u8>>>>>> = Rc::default();
        let woken = Rc::new(Cell::new(0));
        let waker = {
            let (queue, reader, others, woken) =
                (queue.clone(), reader.clone(), others.clone(), woken.clone());
            each_kernel::waker(move || {
                woken.set(woken.get() + 1);
                let dropped = others.take();
                drop(dropped);
                let started: Vec<_> = (0..3).map(|_| reader.read(vec![0; 1])).collect();
                others.replace(started);
                let mut ready = Vec::new();
                queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
                ready.into_iter().for_each(|it| assert!(it.resume().is_none()));
                assert!(queue.pending().len() >= 3);
            })
        };
        let mut first = reader.read(vec![0; 1]);
        assert!(poll_with(&mut first, &waker).is_pending());
        others.borrow_mut().extend((0..3).map(|_| reader.read(vec![0; 1])));
        queue.block_on(write_full(&writer, "x")).unwrap();
        each_kernel::poll_until(queue, || woken.get() == 1);
        assert!(matches!(poll_once(&mut first), Poll::Ready((Ok(1), _))));
        queue.block_on(write_full(&writer, "abc")).unwrap();
        let reads = others.take();
        for (read, expected) in reads.into_iter().zip([b"a", b"b", b"c"]) {
            assert_eq!(queue.block_on(read).unwrap().1, expected);
        }
    }

    /// Pitfall 48: a buffer whose drop uses the queue.
    fn the_drop_of_a_buffer_may_use_the_queue(queue) {
        struct Meddling(Vec<u8>, Box<dyn FnMut()>);
        impl Drop for Meddling {
            fn drop(&mut self) {
                (self.1)();
            }
        }
        // SAFETY: the vector's bytes stay where they are.
        unsafe impl ioqueue::IoBuf for Meddling {
            fn io_ptr(&self) -> *const u8 {
                self.0.as_ptr()
            }
            fn io_len(&self) -> usize {
                self.0.len()
            }
        }
        // SAFETY: as above.
        unsafe impl ioqueue::IoBufMut for Meddling {
            fn io_mut_ptr(&mut self) -> *mut u8 {
                self.0.as_mut_ptr()
            }
            unsafe fn set_io_len(&mut self, _: usize) {}
        }
        let (reader, writer) = pipe(queue);
        let reader = Rc::new(reader);
        let dropped = Rc::new(Cell::new(0));
        let meddling = || {
            let (queue, reader, dropped) = (queue.clone(), reader.clone(), dropped.clone());
            let drops = move || {
                dropped.set(dropped.get() + 1);
                drop(reader.read(vec![0; 1]));
                let mut ready = Vec::new();
                queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
                ready.into_iter().for_each(|it| assert!(it.resume().is_none()));
            };
            Meddling(vec![0; 4], Box::new(drops))
        };
        let reads: Vec<_> = (0..4).map(|_| reader.read(meddling())).collect();
        queue.block_on(look_around()).unwrap();
        drop(reads);
        queue.run().unwrap();
        assert_eq!(dropped.get(), 4);
        queue.block_on(write_full(&writer, "left")).unwrap();
        assert_eq!(queue.block_on(reader.read(vec![0; 8])).unwrap().1, b"left");
    }

    #[cfg(unix)]
    /// Q4: what drops when a poll finds it is dropped by that poll, whatever else panics there: the next may wait
    /// for ever.
    not_simulated("there a cancel may end them at once, in the drop of each")
    fn buffers_whose_drops_panic_are_all_dropped_by_one_poll(queue) {
        struct Panics(Vec<u8>, Rc<Cell<u32>>);
        impl Drop for Panics {
            fn drop(&mut self) {
                self.1.set(self.1.get() + 1);
                panic!("dropped");
            }
        }
        // SAFETY: the vector's bytes stay where they are.
        unsafe impl ioqueue::IoBuf for Panics {
            fn io_ptr(&self) -> *const u8 {
                self.0.as_ptr()
            }
            fn io_len(&self) -> usize {
                self.0.len()
            }
        }
        // SAFETY: as above.
        unsafe impl ioqueue::IoBufMut for Panics {
            fn io_mut_ptr(&mut self) -> *mut u8 {
                self.0.as_mut_ptr()
            }
            unsafe fn set_io_len(&mut self, _: usize) {}
        }
        let (client, _server) = each_kernel::tcp(queue);
        let drops = Rc::new(Cell::new(0));
        let reads: Vec<_> = (0..3).map(|_| client.recv(Panics(vec![0; 1], drops.clone()))).collect();
        // All of them end in one look.
        drop(reads);
        let mut panics = 0;
        while queue.running() {
            let poll = || queue.poll(&mut Vec::new(), None).unwrap();
            panics += u32::from(catch_unwind(AssertUnwindSafe(poll)).is_err());
        }
        assert_eq!((drops.get(), panics), (3, 1));
    }

    /// Q13: it goes on though nobody polls it, and is pinned nowhere.
    fn an_operation_goes_on_whoever_holds_it(queue) {
        let (reader, writer) = pipe(queue);
        let mut reading = Box::new(reader.read(vec![0; 8]));
        queue.block_on(write_full(&writer, "data")).unwrap();
        queue.block_on(look_around()).unwrap();
        assert!(queue.pending().is_empty());
        let moved = *reading;
        reading = Box::new(moved);
        let Poll::Ready((count, bytes)) = poll_once(&mut Pin::new(&mut *reading)) else {
            panic!("it is over")
        };
        assert_eq!((count.unwrap(), &bytes[..]), (4, &b"data"[..]));
    }

    /// Pitfall 37: `run` ends when the kernel has given everything back, and not before.
    fn run_goes_on_until_the_kernel_has_given_everything_back(queue) {
        let mut all = Vec::new();
        for Way { from, to, .. } in ways(queue) {
            let (buffer, drops) = Marked::new(8);
            let reading = to.read(buffer);
            queue.block_on(look_around()).unwrap();
            drop(reading);
            all.push((drops, from, to));
        }
        assert!(queue.running() || !cancels_later(queue));
        queue.run().unwrap();
        for (drops, ..) in &all {
            assert_eq!(drops.count(), 1);
        }
        assert!(!queue.running());
    }

    /// Q13: thousands that wait for their turn are given up, oldest first.
    fn many_that_wait_for_their_turn_are_given_up(queue) {
        let (reader, _writer) = pipe(queue);
        let (client, _server) = each_kernel::tcp(queue);
        let many = each_kernel::rounds(queue, 2_000);
        let start = std::time::Instant::now();
        let reads: Vec<_> = (0..many).map(|_| reader.read([0; 1])).collect();
        let receives: Vec<_> = (0..many).map(|_| client.recv([0; 1])).collect();
        queue.block_on(look_around()).unwrap();
        drop((reads, receives));
        queue.run().unwrap();
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
}
