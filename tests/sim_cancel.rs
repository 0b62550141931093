#![cfg(feature = "sim")]
//! Cancelling and closing on the simulated Windows, in every order the kernel could choose: a cancel
//! that finds nothing, is slow, comes too late, or comes in the middle; operations that never end.

#[path = "sim/support.rs"]
mod support;

use std::time::Duration;

use ioqueue::error::{Closed, is_cancelled};
use ioqueue::iocp::{Cancelled, submit};
use ioqueue::sim::{End, Kind, OnCancel, Plan, Sim, StatusWord};
use ioqueue::{Misuse, Overlapped, Queue, wait, wait_with};
use support::{MILLISECOND, Marker, SECOND, control, open, poll, quiet};

const WORDS: [StatusWord; 3] =
    [StatusWord::BeforePacket, StatusWord::WithPacket, StatusWord::OnDequeue];

const CANCELS: [OnCancel; 5] = [
    OnCancel::Aborts,
    OnCancel::AbortsAfter(MILLISECOND),
    OnCancel::AbortsHalfway,
    OnCancel::Finishes,
    OnCancel::NotFound,
];

/// Each order, with an operation that ends by itself after a while if nothing else ends it.
fn orders(mut test: impl FnMut(Sim, Queue, OnCancel, StatusWord)) {
    for cancel in CANCELS {
        for word in WORDS {
            let (sim, queue) = quiet();
            test(sim, queue, cancel, word);
        }
    }
}

fn plan(cancel: OnCancel, word: StatusWord) -> Plan {
    Plan::pends_for(10 * MILLISECOND).on_cancel(cancel).status_word(word)
}

// Q13, pitfalls 10, 17 and 18, scenario 42.
#[test]
fn an_awaited_cancel_says_how_it_ended_and_gives_the_buffer_back() {
    orders(|sim, queue, cancel, word| {
        let device = queue.register(sim.device()).unwrap();
        sim.plan(&device, plan(cancel, word).data("finished"));
        let cancelling = sim.control(&queue, &device, vec![0; 8]).cancel();
        let lost = matches!(cancel, OnCancel::Finishes | OnCancel::NotFound);
        match queue.block_on(cancelling).unwrap() {
            Cancelled::Finished(completion) => {
                assert!(lost, "{cancel:?} {word:?}");
                assert_eq!(completion.result().unwrap(), 8);
                assert_eq!(completion.state, b"finished");
            }
            Cancelled::Cancelled(completion) => {
                assert!(!lost, "{cancel:?} {word:?}");
                assert!(is_cancelled(&completion.result().unwrap_err()));
                assert_eq!(completion.state.len(), 8);
            }
        }
        assert!(!queue.running());
        drop((device, queue));
        sim.check();
    });
}

// Q13, pitfall 10: what a cancelled write had moved is told.
#[test]
fn a_write_that_was_cancelled_halfway_says_how_much_it_moved() {
    let (sim, queue) = quiet();
    let (ours, theirs) = sim.socket();
    let (ours, theirs) = (queue.register(ours).unwrap(), queue.register(theirs).unwrap());
    sim.plan(&ours, plan(OnCancel::AbortsHalfway, StatusWord::WithPacket));
    let cancelling = sim.write(&queue, &ours, 0, vec![7; 1_000]).cancel();
    let completion = queue.block_on(cancelling).unwrap().into_completion();
    assert!(completion.status.is_cancelled());
    let moved = completion.bytes as usize;
    assert!((1..1_000).contains(&moved), "{moved}");
    let (read, _) = queue.block_on(sim.read(&queue, &theirs, 0, vec![0; 2_000])).unwrap();
    assert_eq!(read.unwrap() as usize, moved);
    drop((ours, theirs, queue));
    sim.check();
}

// Pitfalls 18, 32 and 37, scenario 38: the state lives until the kernel is done, and not longer.
#[test]
fn a_dropped_wait_frees_its_state_once_the_kernel_is_done_and_not_before() {
    orders(|sim, queue, cancel, word| {
        let device = queue.register(sim.device()).unwrap();
        sim.plan(&device, plan(cancel, word));
        let marker = Marker::new();
        let call = control(&sim);
        let asked = unsafe {
            submit(&device, (vec![0; 8], marker.clone()), |handle, state, overlapped| {
                call(handle, &raw mut (*state).0, overlapped)
            })
        };
        drop(asked);
        assert!(sim.owned() == 0 || marker.copies() == 1, "{cancel:?} {word:?}");
        assert_eq!(queue.running(), marker.copies() == 1, "{cancel:?} {word:?}");
        queue.run().unwrap();
        assert_eq!((sim.owned(), marker.copies()), (0, 0), "{cancel:?} {word:?}");
        drop((device, queue));
        sim.check();
    });
}

// Q8, pitfall 38: unregistering tells everybody, however the cancel goes.
#[test]
fn unregistering_tells_everybody_who_waits_however_the_cancel_goes() {
    orders(|sim, queue, cancel, word| {
        let device = sim.device();
        queue.persist(&device).unwrap();
        sim.plan(&device, plan(cancel, word));
        let waiting = sim.control(&queue, &device, vec![0; 8]);
        sim.plan(&device, plan(cancel, word));
        let mut overlapped = Overlapped::on(&queue, vec![0; 8]).unwrap();
        unsafe { overlapped.start(&device, control(&sim)) }.unwrap();
        let ticket = wait_with(7, &device, overlapped).unwrap();
        queue.unregister(&device).unwrap();
        let lost = matches!(cancel, OnCancel::Finishes | OnCancel::NotFound);
        let (result, _) = queue.block_on(waiting).unwrap();
        assert_eq!(result.is_ok(), lost, "{cancel:?} {word:?}");
        let mut ready = Vec::new();
        while queue.running() {
            queue.poll(&mut ready, None).unwrap();
        }
        let (result, _) = ticket.take().unwrap();
        assert_eq!(result.is_ok(), lost, "{cancel:?} {word:?}");
        drop((device, queue));
        sim.check();
    });
}

// Q1, pitfall 43, scenario 40: closing takes everything back, whatever the orders.
#[test]
fn closing_takes_everything_back_however_the_cancels_go() {
    orders(|sim, queue, cancel, word| {
        let device = queue.register(sim.device()).unwrap();
        (0..3).for_each(|_| sim.plan(&device, plan(cancel, word)));
        let waiting = sim.control(&queue, &device, vec![0; 8]);
        drop(sim.control(&queue, &device, vec![0; 8]));
        let mut started = Overlapped::on(&queue, vec![0; 8]).unwrap();
        unsafe { started.start(&device, control(&sim)) }.unwrap();
        queue.close(SECOND).unwrap();
        assert_eq!(sim.owned(), 0, "{cancel:?} {word:?}");
        drop((waiting, started, device, queue));
        sim.check();
    });
}

// Q1, rule 6: what never ends is counted and leaked, and the kernel may go on writing there.
#[test]
fn what_never_ends_is_undrained_and_leaked_and_counted() {
    for within in [Duration::ZERO, MILLISECOND, SECOND] {
        let (sim, queue) = quiet();
        let device = queue.register(sim.device()).unwrap();
        let markers = [Marker::new(), Marker::new(), Marker::new()];
        let call = control(&sim);
        let mut waits = Vec::new();
        for (index, marker) in markers.iter().enumerate() {
            sim.plan(&device, if index == 1 { Plan::pends() } else { Plan::never_ends() });
            waits.push(unsafe {
                submit(&device, (vec![0; 8], marker.clone()), |handle, state, overlapped| {
                    call(handle, &raw mut (*state).0, overlapped)
                })
            });
        }
        // One is waited for, one was dropped.
        let waited = waits.remove(0);
        drop(waits.pop());
        let before = sim.now();
        let undrained = queue.close(within).unwrap_err();
        assert_eq!((undrained.operations, sim.owned()), (2, 2));
        assert!(sim.now() - before >= within && sim.now() - before <= within + SECOND);
        let (result, state) = futures(waits.remove(0));
        assert!(Closed::is(&result.unwrap_err()));
        drop(state);
        drop((waited, device, queue));
        let copies: Vec<_> = markers.iter().map(Marker::copies).collect();
        assert_eq!(copies, [1, 0, 1], "leaked, or freed once");
        sim.check_leaked(2);
    }
}

/// Polls a future that is ready.
fn futures<F: Future + Unpin>(mut future: F) -> F::Output {
    use std::task::{Context, Poll, Waker};
    let mut context = Context::from_waker(Waker::noop());
    match std::pin::Pin::new(&mut future).poll(&mut context) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the future is not ready"),
    }
}

// Q9, pitfalls 27 and 34: a handle that is closed under its operations, by kind of handle.
#[test]
fn a_wait_whose_handle_was_closed_says_so_whatever_the_kind() {
    for kind in [Kind::Pipe, Kind::MessagePipe, Kind::Socket, Kind::Datagram, Kind::Device] {
        for reuse in [false, true] {
            let (sim, queue) = quiet();
            let mut handle = open(&sim, kind, |_| ());
            queue.persist(&handle).unwrap();
            let waiting: Vec<_> = (0..3)
                .map(|_| {
                    sim.plan(&handle, Plan::pends());
                    sim.control(&queue, &handle, vec![0; 8])
                })
                .collect();
            let id = handle.id();
            handle.close();
            let newer = reuse.then(|| open(&sim, kind, |_| ()));
            for wait in waiting {
                let error = queue.block_on(wait).unwrap().0.unwrap_err();
                match Misuse::of(&error) {
                    Some(Misuse::PrematureClose { handle, .. }) => assert_eq!(handle, id),
                    _ => panic!("{kind:?} {reuse}: {error:?}"),
                }
            }
            assert!(!queue.running());
            drop((newer, queue));
            sim.check();
        }
    }
}

// Q9: a watch on a directory ends with a status that counts as a success when its handle is closed.
#[test]
fn a_watch_whose_directory_was_closed_says_so() {
    let (sim, queue) = quiet();
    let mut directory = open(&sim, Kind::Directory, |_| ());
    queue.persist(&directory).unwrap();
    sim.plan(&directory, Plan::pends());
    let watching = sim.control(&queue, &directory, vec![0; 64]);
    directory.close();
    let error = queue.block_on(watching).unwrap().0.expect_err("the watch is over");
    assert!(matches!(Misuse::of(&error), Some(Misuse::PrematureClose { .. })), "{error:?}");
    drop(queue);
    sim.check();
}

// Pitfall 54: a duplicate keeps the file object open, and its operations in flight.
#[test]
fn closing_one_of_two_handles_of_a_file_object_ends_nothing() {
    let (sim, queue) = quiet();
    let mut device = sim.device();
    queue.persist(&device).unwrap();
    sim.plan(&device, Plan::pends());
    let waiting = sim.control(&queue, &device, vec![0; 8]);
    let duplicate = device.duplicate();
    device.close();
    assert_eq!((poll(&queue), sim.owned()), (0, 1));
    assert!(sim.complete(&duplicate, End::bytes(3)));
    assert_eq!(queue.block_on(waiting).unwrap().0.unwrap(), 3);
    drop((duplicate, queue));
    sim.check();
}

// Pitfall 36: unregistering where every cancel fails still unregisters.
#[test]
fn unregistering_what_can_not_be_cancelled_leaves_the_tables_right() {
    let (sim, queue) = quiet();
    let device = sim.device();
    queue.persist(&device).unwrap();
    sim.plan(&device, Plan::pends().on_cancel(OnCancel::NotFound));
    let waiting = sim.control(&queue, &device, vec![0; 8]);
    queue.unregister(&device).unwrap();
    assert!(queue.running());
    let overlapped = Overlapped::on(&queue, vec![0; 8]).unwrap();
    let misuse = overlapped.as_ptr(&device).unwrap_err();
    assert!(matches!(misuse, Misuse::UnregisteredHandle { .. }), "{misuse}");
    assert!(wait(&device, overlapped).is_err());
    sim.complete(&device, End::bytes(3));
    assert_eq!(queue.block_on(waiting).unwrap().0.unwrap(), 3);
    drop((device, queue));
    sim.check();
}
