//! What `block_on` waits for: known by a name to the operations, and a waker to everybody else.
//!
//! On every kernel of this system.

#[macro_use]
mod each_kernel;

use std::cell::Cell;
use std::future::poll_fn;
use std::io::Write;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use each_kernel::{listener, look_around, pipe_in, poll_with};
use ioqueue::error::Closed;
use ioqueue::op::Read;
use ioqueue::{Continuation, Operation, yield_now};

/// Polls an operation once as what polls this: it waits from then on.
async fn begin(operation: &mut Operation<Read<Vec<u8>>>) {
    poll_fn(|context| {
        assert!(poll_with(operation, context.waker()).is_pending());
        Poll::Ready(())
    })
    .await;
}

on_each_kernel! {
    // One inside the other: each wait ends for the one that waits, though the inner has taken in both.
    fn a_block_on_inside_of_another_keeps_its_waits_apart(queue) {
        let (outer, mut to_outer) = pipe_in(queue);
        let (inner, mut to_inner) = pipe_in(queue);
        queue.block_on(async {
            let mut waiting = outer.read(vec![0; 8]);
            begin(&mut waiting).await;
            to_outer.write_all(b"outer").unwrap();
            to_inner.write_all(b"inner").unwrap();
            let (read, _) = queue.block_on(inner.read(vec![0; 8])).unwrap();
            assert_eq!(read.unwrap(), 5);
            let (read, _) = waiting.await;
            assert_eq!(read.unwrap(), 5);
        }).unwrap();
    }

    // As the last, where the outer future has to be woken: by what only the inner has seen.
    fn what_ends_inside_of_an_inner_block_on_wakes_the_outer(queue) {
        let (ours, mut theirs) = pipe_in(queue);
        let mut waiting = ours.read(vec![0; 8]);
        let mut is_first = true;
        let (read, _) = queue.block_on(poll_fn(|context| {
            let polled = Pin::new(&mut waiting).poll(context);
            if std::mem::take(&mut is_first) {
                assert!(polled.is_pending());
                theirs.write_all(b"hello").unwrap();
                while !queue.pending().is_empty() {
                    queue.block_on(look_around()).unwrap();
                }
                queue.block_on(look_around()).unwrap();
            }
            polled
        })).unwrap();
        assert_eq!(read.unwrap(), 5);
    }

    // The kernel is asked by each, also where it has just answered something that nobody waits for.
    fn one_block_on_after_the_other_asks_the_kernel(queue) {
        let (listener, _) = listener(queue);
        let (ours, mut theirs) = pipe_in(queue);
        let read = Rc::new(Cell::new(false));
        let has_read = Rc::clone(&read);
        let task = queue.spawn(async move {
            assert_eq!(ours.read(vec![0; 8]).await.0.unwrap(), 5);
            has_read.set(true);
        });
        queue.block_on(look_around()).unwrap();
        for round in 0..1000 {
            if round == 100 {
                theirs.write_all(b"hello").unwrap();
            }
            queue.block_on(async {
                yield_now().await;
                drop(listener.accept());
            }).unwrap();
        }
        assert!(read.get());
        drop(task);
    }

    // A wait that goes on after its block_on, in another: the name is used again, and nothing hangs.
    fn a_wait_outlives_its_block_on(queue) {
        let (ours, mut theirs) = pipe_in(queue);
        let mut reading = ours.read(vec![0; 8]);
        queue.block_on(begin(&mut reading)).unwrap();
        theirs.write_all(b"hello").unwrap();
        let (read, _) = queue.block_on(reading).unwrap();
        assert_eq!(read.unwrap(), 5);
    }

    // SPEC Q2: what became ready is handed out by a poll, whoever waits.
    fn a_poll_inside_of_a_block_on_hands_out_its_waker(queue) {
        let (ours, mut theirs) = pipe_in(queue);
        queue.block_on(async {
            let mut reading = ours.read(vec![0; 8]);
            begin(&mut reading).await;
            theirs.write_all(b"hello").unwrap();
            let mut ready = Vec::new();
            queue.poll(&mut ready, None).unwrap();
            assert!(matches!(ready[..], [Continuation::Waker(_)]), "{ready:?}");
            ready.pop().unwrap().resume();
            let (read, _) = reading.await;
            assert_eq!(read.unwrap(), 5);
        }).unwrap();
    }

    // Two operations of one future: it is polled for each, and no end is lost.
    fn a_block_on_waits_for_two_at_once(queue) {
        let (first, mut to_first) = pipe_in(queue);
        let (second, mut to_second) = pipe_in(queue);
        let (mut a, mut b) = (first.read(vec![0; 8]), second.read(vec![0; 8]));
        let mut ended = (false, false);
        let polls = Rc::new(Cell::new(0));
        let counts = Rc::clone(&polls);
        queue.spawn(async move {
            to_first.write_all(b"1").unwrap();
            to_second.write_all(b"2").unwrap();
            // The pipes are open until both have been read.
            std::future::pending::<()>().await;
        }).detach();
        queue.block_on(poll_fn(|context| {
            counts.set(counts.get() + 1);
            ended.0 |= !ended.0 && Pin::new(&mut a).poll(context).is_ready();
            ended.1 |= !ended.1 && Pin::new(&mut b).poll(context).is_ready();
            if ended == (true, true) { Poll::Ready(()) } else { Poll::Pending }
        })).unwrap();
        assert!(polls.get() <= 3, "{} polls", polls.get());
    }

    // SPEC Q13: the future learns that its queue is closed, rather than be given up.
    fn a_queue_closed_inside_of_a_block_on_tells_its_future(queue) {
        let (ours, _theirs) = pipe_in(queue);
        let closes = queue.clone();
        queue.spawn(async move {
            let _ = closes.close(Duration::from_secs(5));
        }).detach();
        let (read, _) = queue.block_on(ours.read(vec![0; 8])).unwrap();
        assert!(Closed::is(&read.unwrap_err()));
    }
}
