//! The end of a queue, of a thread and of a handle, with everything in flight (Q1, Q7).

#[macro_use]
mod each_kernel;

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::io::{Read, Write};
use std::mem::forget;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::mpsc;
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use each_kernel::{
    HalfWay, LONG, Marked, Way, assert_came_back, ends, is_windows, listener, look_around, pipe,
    poll_once, poll_with, queue_on, tcp_to_host, ways, ways_in, write_full,
};
use ioqueue::error::{Closed, is_cancelled};
use ioqueue::{Event, KernelKind, Queue};

/// A queue of its own beside the one that a test is given.
fn another(queue: &Queue) -> Queue {
    queue_on(queue.kernel_kind()).unwrap()
}

/// Something of everything in flight on `queue`, and what to keep of it.
fn everything(queue: &Queue) -> Vec<(Box<dyn std::any::Any>, Option<each_kernel::Drops>)> {
    let mut all: Vec<(Box<dyn std::any::Any>, _)> = Vec::new();
    for Way { from, to, .. } in ways(queue) {
        for _ in 0..3 {
            let (buffer, drops) = Marked::new(64);
            all.push((Box::new(to.read(buffer)), Some(drops)));
        }
        loop {
            let (buffer, drops) = Marked::new(1 << 20);
            let mut writing = from.write(buffer);
            if poll_once(&mut writing).is_pending() {
                all.push((Box::new(writing), Some(drops)));
                break;
            }
        }
        all.push((Box::new(to.ready(Event::PriorityRead)), None));
        all.push((Box::new((from, to)), None));
    }
    let (listener, _) = listener(queue);
    all.extend((0..5).map(|_| {
        let accept: Box<dyn std::any::Any> = Box::new(listener.accept());
        (accept, None)
    }));
    all.push((Box::new(listener), None));
    let file = each_kernel::file(queue, &each_kernel::noise(1 << 20));
    #[cfg(target_os = "linux")]
    if !each_kernel::is_simulated(queue) {
        each_kernel::forget_contents(file.get());
    }
    for place in 0..8 {
        let (buffer, drops) = Marked::new(65_536);
        all.push((Box::new(file.read_at(buffer, place << 16)), Some(drops)));
    }
    all.push((Box::new(file.sync_all()), None));
    all.push((Box::new(file), None));
    all.push((Box::new(queue.sleep(LONG)), None));
    let task = queue.spawn(async { pending::<()>().await });
    all.push((Box::new(task), None));
    all
}

on_each_kernel! {
    /// Scenario 40: it drains, whether the kernel has seen the operations or not, and however it is closed.
    fn a_queue_takes_everything_back_from_the_kernel(queue) {
        for is_seen in [true, false] {
            for closes in [true, false] {
                let other = another(queue);
                let all = everything(&other);
                if is_seen {
                    other.block_on(look_around()).unwrap();
                }
                let start = Instant::now();
                if closes {
                    other.close(Duration::from_secs(5)).unwrap();
                    assert!(other.pending().is_empty());
                }
                drop(other);
                assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
                for (thing, drops) in all {
                    drop(thing);
                    assert!(drops.is_none_or(|drops| drops.count() == 1));
                }
            }
        }
        assert!(!queue.running());
    }

    /// An operation that has ended may be all that is left of its queue, which goes when it is taken. That this panics
    /// takes nothing twice.
    fn an_operation_is_over_though_its_queues_end_panics(queue) {
        struct Panics;
        impl Drop for Panics {
            fn drop(&mut self) {
                panic!("what a hook held");
            }
        }
        let (other, held) = (another(queue), Panics);
        other.on_foreign_packet(move |_| {
            let _ = &held;
        });
        let (reader, writer) = pipe(&other);
        let mut reading = reader.read(vec![0; 8]);
        other.block_on(write_full(&writer, "x")).unwrap();
        each_kernel::poll_until(&other, || other.pending().is_empty());
        drop((reader, writer, other));
        let mut poll = || catch_unwind(AssertUnwindSafe(|| poll_once(&mut reading).map(drop)));
        assert_eq!(poll().unwrap_err().downcast_ref(), Some(&"what a hook held"));
        let again = poll().unwrap_err();
        let why = again.downcast_ref::<String>().map(String::as_str);
        let why = why.or(again.downcast_ref::<&str>().copied());
        assert_eq!(why, Some("an operation was polled after its end"));
    }

    /// Q1, scenario 40: closed without waiting, it drains or says how much it left; what is left is not freed.
    not_simulated("what is left is never given back, which is what the simulation looks for")
    fn a_close_that_does_not_wait_says_what_is_left(queue) {
        for is_seen in [true, false] {
            let other = another(queue);
            let all = everything(&other);
            if is_seen {
                other.block_on(look_around()).unwrap();
            }
            let start = Instant::now();
            let left = other.close(Duration::ZERO);
            assert!(start.elapsed() < Duration::from_secs(1));
            let pending = other.pending().len();
            match left {
                Ok(()) => assert_eq!(pending, 0),
                Err(undrained) => assert!(undrained.operations > 0 && pending > 0, "{undrained}"),
            }
            drop(other);
            for (thing, drops) in all {
                drop(thing);
                assert!(drops.is_none_or(|drops| drops.count() <= 1));
            }
        }
    }

    /// Q1: closed again, it asks the kernel again.
    not_simulated("its disk leaves nothing")
    fn what_was_left_is_taken_back_by_a_second_close(queue) {
        const PART: usize = 1 << 20;
        let disk = each_kernel::Disk::new(queue, &each_kernel::noise(16 * PART));
        for _ in 0..20 {
            let other = another(queue);
            let file = disk.open(&other);
            disk.forget_contents();
            let (buffers, drops): (Vec<_>, Vec<_>) = (0..16).map(|_| Marked::new(PART)).unzip();
            let reads: Vec<_> = buffers.into_iter().enumerate()
                .map(|(part, buffer)| file.read_at(buffer, (part * PART) as u64))
                .collect();
            each_kernel::turn(&other);
            drop(reads);
            let left = other.close(Duration::ZERO);
            other.close(Duration::from_secs(10)).unwrap();
            assert!(other.pending().is_empty());
            assert!(drops.iter().all(|drops| drops.count() == 1));
            if left.is_err() {
                return;
            }
        }
        each_kernel::skip("the disk was faster than the end of any queue");
    }

    /// Q1: whoever waits learns of it, and what is new is refused and comes back.
    fn closing_tells_everybody_who_waits(queue) {
        let other = another(queue);
        let (reader, writer) = pipe(&other);
        let mut reading = reader.read(vec![7; 8]);
        let mut limited = reader.read(vec![7; 8]).timeout(LONG);
        let mut sleeping = other.sleep(LONG);
        let (wakes, waker) = each_kernel::Wakes::new();
        assert!(poll_with(&mut reading, &waker).is_pending());
        assert!(poll_with(&mut limited, &waker).is_pending());
        assert!(poll_with(&mut sleeping, &waker).is_pending());
        other.block_on(look_around()).unwrap();
        other.close(LONG).unwrap();
        assert!(wakes.count() >= 3);
        let Poll::Ready((result, buffer)) = poll_once(&mut reading) else { panic!("it waits on") };
        let error = result.unwrap_err();
        assert!(Closed::is(&error) || is_cancelled(&error), "{error}");
        assert_came_back(queue, &buffer, &[7; 8]);
        assert!(poll_once(&mut limited).is_ready() && poll_once(&mut sleeping).is_ready());
        let (result, buffer) = queue.block_on(reader.read(vec![7; 8])).unwrap();
        assert!(result.is_err() && buffer == [7; 8]);
        let refused = other.register(writer.into_inner()).unwrap_err();
        assert!(Closed::is(refused.error()), "{}", refused.error());
        // The handle that came back goes to another queue.
        let (Ok(writer), Ok(reader)) =
            (queue.register(refused.into_value()), queue.register(reader.into_inner()))
        else {
            // What was in flight when the queue was closed keeps it bound.
            assert!(is_windows(queue));
            return;
        };
        queue.block_on(write_full(&writer, "data")).unwrap();
        assert_eq!(queue.block_on(reader.read(vec![0; 8])).unwrap().1, b"data");
    }

    /// Q1: what had ended before keeps its result.
    fn what_ended_before_the_queue_was_closed_keeps_its_result(queue) {
        let other = another(queue);
        let (reader, writer) = pipe(&other);
        let mut reading = reader.read(vec![0; 8]);
        other.block_on(write_full(&writer, "data")).unwrap();
        other.block_on(look_around()).unwrap();
        other.close(LONG).unwrap();
        let Poll::Ready((count, bytes)) = poll_once(&mut reading) else { panic!("it waits on") };
        assert_eq!((count.unwrap(), &bytes[..]), (4, &b"data"[..]));
    }

    /// Scenario 45: all that can be forgotten is leaked, and harms nobody.
    not_simulated("what is forgotten is never given back, which is what the simulation looks for")
    fn everything_may_be_forgotten(queue) {
        for is_seen in [true, false] {
            let other = another(queue);
            for (thing, _) in everything(&other) {
                forget(thing);
            }
            if is_seen {
                other.block_on(look_around()).unwrap();
            }
            drop(other);
            let other = another(queue);
            let all = everything(&other);
            other.block_on(look_around()).unwrap();
            forget(other);
            drop(all);
        }
        // A task that is forgotten goes on.
        let (reader, writer) = pipe(queue);
        let seen = Rc::new(Cell::new(0));
        let counted = seen.clone();
        forget(queue.spawn(async move {
            counted.set(reader.read(vec![0; 8]).await.0.unwrap());
        }));
        queue.block_on(write_full(&writer, "data")).unwrap();
        queue.run().unwrap();
        assert_eq!(seen.get(), 4);
    }

    /// Operations are forgotten in whatever state they are, and the queue ends all the same.
    fn an_operation_may_be_forgotten_in_every_state(queue) {
        let other = another(queue);
        let (reader, writer) = pipe(&other);
        forget(reader.read(vec![0; 8]));
        other.block_on(look_around()).unwrap();
        forget(reader.read(vec![0; 8]));
        forget(reader.read(vec![0; 8]).cancel());
        forget(reader.read(vec![0; 8]).timeout(LONG));
        let ended = reader.read(vec![0; 8]);
        other.block_on(async {
            for _ in 0..3 {
                write_full(&writer, "data").await;
                look_around().await;
            }
        }).unwrap();
        forget(ended);
        drop((reader, writer));
        other.close(Duration::from_secs(5)).unwrap();
    }

    /// Pitfall 40, scenario 44: a task that panics takes nobody with it, and its operation is cancelled.
    fn a_task_that_panics_leaves_the_others_alone(queue) {
        let (reader, writer) = pipe(queue);
        let (buffer, drops) = Marked::new(8);
        let other_pipe = pipe(queue);
        let panicking = queue.spawn(async move {
            let (client, _server) = other_pipe;
            let _reading = client.read(buffer);
            look_around().await;
            panic!("as the test wants");
        });
        let other = queue.spawn(async move { reader.read(vec![0; 8]).await.1 });
        let caught = catch_unwind(AssertUnwindSafe(|| queue.block_on(look_around())));
        let _ = caught;
        for _ in 0..10 {
            let run = AssertUnwindSafe(|| queue.block_on(look_around()));
            let _ = catch_unwind(run);
        }
        queue.block_on(write_full(&writer, "data")).unwrap();
        assert_eq!(queue.block_on(other).unwrap(), b"data");
        let awaited = AssertUnwindSafe(|| queue.block_on(panicking));
        assert!(catch_unwind(awaited).is_err());
        queue.run().unwrap();
        assert_eq!(drops.count(), 1);
    }

    /// Scenario 43: a waker that drops the last handle of its queue, which ends all that still waits.
    fn a_waker_may_drop_the_last_handle_of_its_queue(queue) {
        let other = another(queue);
        let (reader, mut writer) = tcp_to_host(&other);
        let last = Rc::new(Cell::new(None));
        let waker = {
            let last = last.clone();
            each_kernel::waker(move || drop::<Option<Queue>>(last.take()))
        };
        let mut first = reader.read(vec![0; 8]);
        let mut second = reader.read(vec![0; 8]);
        let third = reader.read(vec![0; 8]);
        assert!(poll_with(&mut first, &waker).is_pending());
        assert!(poll_with(&mut second, &waker).is_pending());
        let task = other.spawn(async move { third.cancel().await.0.map(|_| ()) });
        writer.write_all(b"data").unwrap();
        let mut ready = Vec::new();
        while ready.len() < 2 {
            other.poll(&mut ready, Some(LONG)).unwrap();
        }
        last.set(Some(other));
        for continuation in ready {
            continuation.resume();
        }
        assert!(last.take().is_none(), "nobody was woken");
        let Poll::Ready((count, bytes)) = poll_once(&mut first) else { panic!("it waits on") };
        assert_eq!((count.unwrap(), &bytes[..]), (4, &b"data"[..]));
        let Poll::Ready((result, _)) = poll_once(&mut second) else { panic!("it waits on") };
        let error = result.unwrap_err();
        assert!(Closed::is(&error) || is_cancelled(&error), "{error}");
        drop((task, reader));
    }

    /// The peer sees the end at once when a handle is dropped, though its queue never looks again; whatever
    /// waited on it, and whatever its kernel had still to say of it.
    fn a_dropped_handle_is_closed_for_its_peer_at_once(queue) {
        for rounds in [0, 1, 50] {
            for looks in [true, false] {
                for HalfWay { name, ours, mut theirs } in ways_in(queue) {
                    let reads: Vec<_> = (0..3).map(|_| ours.read(vec![0; 4])).collect();
                    let ready = ours.ready(Event::PriorityRead);
                    queue.block_on(look_around()).unwrap();
                    for _ in 0..rounds {
                        theirs.write_all(b"some bytes").unwrap();
                        if looks {
                            queue.block_on(look_around()).unwrap();
                        }
                    }
                    drop(reads);
                    drop(ours);
                    // To write to what is closed is an error, at the latest when the peer's answer is there.
                    let start = Instant::now();
                    while theirs.write_all(b"more").is_ok() {
                        assert!(start.elapsed() < Duration::from_secs(5), "{name}: it is open");
                        thread::yield_now();
                    }
                    drop(ready);
                }
                for HalfWay { name, ours, mut theirs } in each_kernel::ways_out(queue) {
                    let mut written = 0;
                    let mut waiting = Vec::new();
                    for _ in 0..rounds {
                        let mut writing = ours.write(vec![1; 10_000]);
                        match poll_once(&mut writing) {
                            Poll::Ready((count, _)) => written += count.unwrap(),
                            Poll::Pending => waiting.push(writing),
                        }
                        if looks {
                            queue.block_on(look_around()).unwrap();
                        }
                    }
                    drop(ours);
                    let (told, tells) = mpsc::channel();
                    thread::spawn(move || told.send(theirs.read_to_end(&mut Vec::new()).unwrap()));
                    let read = tells.recv_timeout(Duration::from_secs(5));
                    assert!(read.is_ok_and(|read| read >= written), "{name}: it is open, or bytes are lost");
                    drop(waiting);
                }
            }
        }
        queue.run().unwrap();
    }

    /// Scenario 56, for the tasks' wakers, which outlive their queue on other threads.
    fn a_tasks_waker_may_outlive_its_queue(queue) {
        for _ in 0..50 {
            let other = another(queue);
            let (sender, receiver) = mpsc::channel::<Waker>();
            let waking = thread::spawn(move || {
                for waker in receiver {
                    waker.wake_by_ref();
                    drop(waker);
                }
            });
            let (reader, _writer) = pipe(&other);
            let task = other.spawn(async move {
                poll_fn(|context| {
                    sender.send(context.waker().clone()).unwrap();
                    Poll::<()>::Pending
                }).await;
                drop(reader);
            });
            other.block_on(look_around()).unwrap();
            other.close(Duration::from_secs(5)).unwrap();
            drop(task);
            waking.join().unwrap();
        }
    }
}

/// Q1: a thread's own queue, on the kernel that is the system's best, ends with the thread, before a local that has
/// all that is in flight or after it: nothing blocks, and nothing is dropped twice. (Nothing is freed that is the
/// kernel's: `portable_quarantine.rs`.)
#[test]
fn a_thread_may_end_with_everything_in_flight() {
    thread_local! {
        static ALL: Cell<Vec<Box<dyn std::any::Any>>> = const { Cell::new(Vec::new()) };
    }
    for is_local_first in [true, false] {
        for is_forgotten in [true, false] {
            let drops = ends(move || {
                let thread = thread::spawn(move || {
                    if is_local_first {
                        ALL.set(Vec::new());
                    }
                    let queue = Queue::current().unwrap();
                    let (all, drops): (Vec<_>, Vec<_>) = everything(&queue).into_iter().unzip();
                    if is_forgotten {
                        queue.block_on(look_around()).unwrap();
                        forget(all);
                    } else {
                        ALL.set(all);
                    }
                    drops
                });
                thread.join().unwrap()
            });
            assert!(drops.iter().flatten().all(|drops| drops.count() <= 1));
        }
    }
}

/// Q1: the kernel is the builder's, and the queue says which.
#[test]
fn a_queue_says_which_kernel_it_has() {
    use KernelKind::{CompletionPort, Readiness, Uring};
    let (there, not_there) = if cfg!(windows) {
        (vec![CompletionPort], Readiness)
    } else {
        (vec![Uring, Readiness], CompletionPort)
    };
    for kind in there {
        if let Some(queue) = queue_on(kind) {
            assert_eq!(queue.kernel_kind(), kind);
        }
    }
    let error = Queue::builder().kernel(not_there).build().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
}
