#![cfg(windows)]
//! A handle that is always ready does not keep the others from their turn.
//!
//! Counted in operations of the busy one, not in time.

mod support;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::Write;
use std::os::windows::io::OwnedHandle;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use ioqueue::iocp::submit;
use ioqueue::{Queue, Registered};
use support::{
    Buffer, blocking_pipe_client, call_recv, ends, pipe_name, pipe_server, read, tcp_pair,
};

/// How many operations the busy handle may do before the quiet one's continuation runs. Generous:
/// without a limit it is all of them.
const BOUND: u32 = 1000;
const ROUNDS: usize = 20;
const EVERY: u32 = 1500;

/// A busy connection and a quiet pipe.
struct Pair {
    queue: Queue,
    done: Cell<u32>,
    /// What the busy one had done when the quiet one became ready, and was resumed.
    told: Cell<u32>,
    waits: RefCell<Vec<u32>>,
}

/// Receives one byte after the other of what is there already, and now and then writes to the quiet
/// one's peer.
async fn busy(pair: Rc<Pair>, mut peer: impl Write) {
    let (mut client, server) = tcp_pair();
    let server = pair.queue.register(server).unwrap();
    let mut buffer = Buffer::new([0; 1]);
    while pair.waits.borrow().len() < ROUNDS {
        let done = pair.done.get();
        if done % 4096 == 0 {
            client.write_all(&[1; 4096]).unwrap();
        }
        if done % EVERY == EVERY - 1 {
            pair.told.set(done);
            peer.write_all(b"x").unwrap();
        }
        // SAFETY: one call, into the state.
        let receive = unsafe { submit(&server, buffer, call_recv) };
        let (result, state) = receive.await;
        assert_eq!(result.unwrap(), 1);
        buffer = state;
        pair.done.set(done + 1);
        assert!(done < EVERY * (ROUNDS as u32 + 10), "the quiet one starves");
    }
}

async fn quiet(pair: Rc<Pair>, pipe: Registered<OwnedHandle>) {
    while pair.waits.borrow().len() < ROUNDS {
        let (result, _) = read(&pipe, [0; 1]).await;
        assert_eq!(result.unwrap(), 1);
        pair.waits.borrow_mut().push(pair.done.get() - pair.told.get());
    }
}

fn pair() -> (Rc<Pair>, Registered<OwnedHandle>, std::fs::File) {
    let queue = Queue::new().unwrap();
    let name = pipe_name();
    let pipe = queue.register(pipe_server(&name, false)).unwrap();
    let peer = blocking_pipe_client(&name).unwrap();
    let (done, told, waits) = Default::default();
    (Rc::new(Pair { queue, done, told, waits }), pipe, peer)
}

fn judge(pair: &Pair) {
    let mut waits = pair.waits.take();
    waits.sort_unstable();
    assert_eq!(waits.len(), ROUNDS);
    assert!(waits[ROUNDS - 1] <= BOUND, "operations of the busy handle meanwhile: {waits:?}");
}

// W6, scenario 58, pitfall 12
#[test]
fn an_always_ready_handle_lets_the_others_have_their_turn() {
    ends(|| {
        let (shared, pipe, peer) = pair();
        shared.queue.spawn(quiet(shared.clone(), pipe)).detach();
        shared.queue.spawn(busy(shared.clone(), peer)).detach();
        let queue = shared.queue.clone();
        queue.run().unwrap();
        judge(&shared);
    });
}

// W6: also where it is what block_on drives.
#[test]
fn a_busy_main_future_lets_the_tasks_have_their_turn() {
    ends(|| {
        let (shared, pipe, peer) = pair();
        let task = shared.queue.spawn(quiet(shared.clone(), pipe));
        shared.queue.block_on(busy(shared.clone(), peer)).unwrap();
        shared.queue.block_on(task).unwrap();
        judge(&shared);
    });
}

// W6: and where the host resumes.
#[test]
fn a_busy_task_lets_the_others_have_their_turn_in_a_host_loop() {
    ends(|| {
        let (shared, pipe, peer) = pair();
        shared.queue.spawn(quiet(shared.clone(), pipe)).detach();
        shared.queue.spawn(busy(shared.clone(), peer)).detach();
        let mut ready = Vec::new();
        while shared.queue.running() {
            shared.queue.poll(&mut ready, None).unwrap();
            for continuation in ready.drain(..) {
                continuation.resume();
            }
        }
        judge(&shared);
    });
}

// W6, pitfall 12: a crowd of tasks that only ever yield.
#[test]
fn tasks_that_always_yield_let_operations_have_their_turn() {
    ends(|| {
        let (shared, pipe, mut peer) = pair();
        let over = Rc::new(Cell::new(false));
        for _ in 0..50 {
            let (over, counted) = (over.clone(), shared.clone());
            let yielding = poll_fn(move |context| {
                if over.get() {
                    return Poll::Ready(());
                }
                counted.done.set(counted.done.get() + 1);
                assert!(counted.done.get() < 10_000_000, "the quiet one starves");
                context.waker().wake_by_ref();
                Poll::Pending
            });
            shared.queue.spawn(yielding).detach();
        }
        let inner = shared.clone();
        shared
            .queue
            .spawn(async move {
                for _ in 0..ROUNDS {
                    let reading = read(&pipe, [0; 1]);
                    inner.told.set(inner.done.get());
                    peer.write_all(b"x").unwrap();
                    reading.await.0.unwrap();
                    inner.waits.borrow_mut().push(inner.done.get() - inner.told.get());
                }
                over.set(true);
            })
            .detach();
        shared.queue.run().unwrap();
        judge(&shared);
    });
}

// W6: the budget is for what ends at once only, and costs it no result.
#[test]
fn every_operation_that_ends_at_once_still_gives_its_result() {
    ends(|| {
        let queue = Queue::new().unwrap();
        let (mut client, server) = tcp_pair();
        let server = queue.register(server).unwrap();
        client.write_all(&[3; 2000]).unwrap();
        let receives: Vec<_> = (0..2000).map(|_| support::recv(&server, [0; 1])).collect();
        let sum = queue.block_on(async {
            let mut sum = 0;
            for receive in receives {
                let (result, state) = receive.await;
                assert_eq!(result.unwrap(), 1);
                sum += u32::from(state.bytes[0]);
            }
            sum
        });
        assert_eq!(sum.unwrap(), 6000);
        assert!(!queue.running());
        queue.close(Duration::from_secs(1)).unwrap();
    });
}
