#![cfg(feature = "sim")]
//! What random orders on the simulated Windows have found, each as the shortest script that shows
//! it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use ioqueue::error::NtStatus;
use ioqueue::iocp::OVERLAPPED;
use ioqueue::sim::{End, Kind, OnCancel, Plan, Sim, Traits};
use ioqueue::{AsAnyHandle, Misuse, Overlapped, Queue, RawHandle};
use windows_sys::Win32::Foundation::{ERROR_DEVICE_NOT_CONNECTED, STATUS_DEVICE_NOT_CONNECTED};

const SECOND: Duration = Duration::from_secs(1);

/// Calls `device_control` with a buffer as the state.
fn call(sim: &Sim) -> impl Fn(RawHandle, *mut Vec<u8>, *mut OVERLAPPED) -> ioqueue::iocp::Outcome {
    let sim = sim.clone();
    move |handle, buffer, overlapped| unsafe {
        let buffer = &mut *buffer;
        sim.device_control(handle, buffer.as_mut_ptr(), buffer.len(), overlapped)
    }
}

// Q1: what the kernel keeps is counted, also where nobody waits for it yet.
#[test]
fn closing_counts_what_was_started_and_what_a_cancel_did_not_find() {
    let sim = Sim::quiet();
    let queue = sim.queue().unwrap();
    let device = queue.register(sim.device()).unwrap();
    sim.plan(&device, Plan::pends().on_cancel(OnCancel::NotFound));
    let mut overlapped = Overlapped::on(&queue, vec![0; 8]).unwrap();
    unsafe { overlapped.start(&device, call(&sim)) }.unwrap();
    let undrained = queue.close(SECOND).unwrap_err();
    assert_eq!((undrained.operations, sim.owned()), (1, 1));
    // Closing the handle ends it, into memory that was leaked.
    drop((overlapped, device, queue));
    sim.check();
}

// Rule 7, pitfall 29: a duplicate gets the value of a handle that was closed while it was registered.
// It looks like that handle (it has the same modes), but its packets come under its original's key.
#[test]
fn a_wait_ends_though_its_packet_comes_under_another_registrations_key() {
    let sim = Sim::quiet();
    let queue = sim.queue().unwrap();
    let device = queue.register(sim.device()).unwrap();
    let mut closed = sim.device();
    queue.persist(&closed).unwrap();
    closed.close();
    let duplicate = device.get().duplicate();
    assert_eq!(duplicate.id(), closed.id());
    sim.plan(&duplicate, Plan::pends());
    let asked = sim.control(&queue, &duplicate, vec![0; 8]);
    sim.complete(&device, End::bytes(3));
    assert_eq!(queue.block_on(asked).unwrap().0.unwrap(), 3);
    drop((device, queue));
    sim.check();
}

// W3: an address is not used again before its packet has come.
#[test]
fn an_address_given_out_as_unregistered_waits_for_its_packet_if_the_handle_is_registered() {
    let sim = Sim::quiet();
    let queue = sim.queue().unwrap();
    let device = queue.register(sim.device()).unwrap();
    sim.plan(&device, Plan::pends().on_cancel(OnCancel::Aborts));
    let overlapped = Overlapped::on(&queue, vec![0; 8]).unwrap();
    let address = overlapped.as_ptr_unregistered(&device).unwrap();
    call(&sim)(std::ptr::without_provenance_mut(4), overlapped.state_ptr(), address);
    drop(overlapped);
    assert_eq!(sim.owned(), 0);
    let start = call(&sim);
    let asked = unsafe {
        device.submit(vec![0; 8], |handle, buffer, overlapped| {
            assert!(!sim.owes_packet(handle, overlapped), "used again before its packet came");
            start(handle, buffer, overlapped)
        })
    };
    assert_eq!(queue.block_on(asked).unwrap().0.unwrap(), 8);
    drop((device, queue));
    sim.check();
}

// Q1: what the kernel has given back is not undrained, whether its packet came or not.
#[test]
fn closing_does_not_count_what_has_ended_and_only_owes_a_packet() {
    let sim = Sim::quiet();
    let queue = sim.queue().unwrap();
    let device = queue.register(sim.device()).unwrap();
    sim.plan(&device, Plan::pends().on_cancel(OnCancel::Aborts).packet_after(10 * SECOND));
    let asked = sim.control(&queue, &device, vec![0; 8]);
    assert!(queue.close(SECOND).is_ok());
    assert_eq!(sim.owned(), 0);
    drop((asked, device, queue));
    sim.check();
}

// Q6: a handle that was opened without the right to read its attributes does not say why it can't be
// bound. Persisting it twice must not end its registration.
#[test]
fn persisting_a_handle_again_that_tells_nothing_leaves_it_registered() {
    let sim = Sim::quiet();
    let queue = sim.queue().unwrap();
    let mut traits = Traits::default();
    traits.denies_queries = Some(true);
    let device = sim.open(Kind::Device, traits);
    queue.persist(&device).unwrap();
    sim.plan(&device, Plan::pends());
    let first = sim.control(&queue, &device, vec![0; 8]);
    // Whether it is ours can't be told, so this is refused.
    assert!(queue.persist(&device).is_err());
    let second = sim.control(&queue, &device, vec![0; 8]);
    sim.complete(&device, End::status(NtStatus(STATUS_DEVICE_NOT_CONNECTED), 0));
    let error = queue.block_on(first).unwrap().0.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(ERROR_DEVICE_NOT_CONNECTED as i32));
    assert_eq!(queue.block_on(second).unwrap().0.unwrap(), 8);
    queue.unregister(&device).unwrap();
    drop((device, queue));
    sim.check();
}

// Pitfalls 29 and 34: the right to read attributes is the handle's, for ever. One that answers, where
// the registered one did not, is another, and so is one that does not any more.
#[test]
fn a_value_that_came_back_is_found_out_by_whether_the_handle_tells_its_modes() {
    for secretive in [true, false] {
        let sim = Sim::quiet();
        let queue = sim.queue().unwrap();
        let open = |secretive| {
            let mut traits = Traits::default();
            traits.denies_queries = Some(secretive);
            sim.open(Kind::Device, traits)
        };
        let mut closed = open(secretive);
        queue.persist(&closed).unwrap();
        closed.close();
        let newer = open(!secretive);
        assert_eq!(newer.id(), closed.id());
        // It is bound nowhere: a wait would never end.
        let error = queue.block_on(sim.control(&queue, &newer, vec![0; 8])).unwrap().0.unwrap_err();
        assert!(matches!(Misuse::of(&error), Some(Misuse::UnregisteredHandle { .. })), "{error}");
        queue.persist(&newer).unwrap();
        let asked = sim.control(&queue, &newer, vec![0; 8]);
        assert_eq!(queue.block_on(asked).unwrap().0.unwrap(), 8);
        queue.unregister(&newer).unwrap();
        drop((newer, queue));
        sim.check();
    }
}

// W2, W3: what was started before its handle was registered owes a packet once it is, also when it is
// dropped without having been waited for.
#[test]
fn an_operation_that_was_started_before_registering_is_dropped_until_its_packet_comes() {
    for cancel in [OnCancel::Aborts, OnCancel::AbortsAfter(SECOND)] {
        let sim = Sim::quiet();
        let queue = sim.queue().unwrap();
        let device = sim.device();
        let raw = device.as_any_handle().raw();
        sim.plan(&device, Plan::pends().on_cancel(cancel));
        let overlapped = Overlapped::on(&queue, vec![0; 8]).unwrap();
        let address = overlapped.as_ptr_unregistered(&device).unwrap();
        call(&sim)(raw, overlapped.state_ptr(), address);
        queue.persist(&device).unwrap();
        drop(overlapped);
        let start = call(&sim);
        let asked = unsafe {
            queue.submit_at(&device, 0, vec![0; 8], |handle, buffer, overlapped| {
                assert!(!sim.owes_packet(handle, overlapped), "used again before its packet came");
                start(handle, buffer, overlapped)
            })
        };
        assert_eq!(queue.block_on(asked).unwrap().0.unwrap(), 8);
        queue.run().unwrap();
        assert_eq!((sim.owned(), queue.pending().len()), (0, 0));
        queue.unregister(&device).unwrap();
        drop((device, queue));
        sim.check();
    }
}

/// Closes a queue when it is dropped.
struct Closes(Queue);

impl Drop for Closes {
    fn drop(&mut self) {
        let _ = self.0.close(Duration::ZERO);
    }
}

// Q1, pitfall 21: poll has handed a task out, and user code closes the queue before it is resumed.
#[test]
fn a_task_that_is_resumed_after_its_queue_was_closed_is_dropped() {
    let sim = Sim::quiet();
    let queue = sim.queue().unwrap();
    let device = queue.register(sim.device()).unwrap();
    sim.plan(&device, Plan::never_ends());
    let asked = sim.control(&queue, &device, vec![0; 8]);
    let resumed = Rc::new(Cell::new(false));
    let told = Rc::clone(&resumed);
    queue
        .spawn(async move {
            told.set(true);
            let _ = asked.await;
        })
        .detach();
    let late = Duration::from_millis(1);
    sim.plan(&device, Plan::pends().on_cancel(OnCancel::AbortsAfter(late)));
    let start = call(&sim);
    let closing = unsafe {
        device.submit((vec![0; 8], Closes(queue.clone())), |handle, state, overlapped| {
            start(handle, &raw mut (*state).0, overlapped)
        })
    };
    drop(closing);
    sim.advance(late);
    let mut ready = Vec::new();
    queue.poll(&mut ready, None).unwrap();
    assert_eq!(ready.len(), 1);
    ready.into_iter().for_each(|task| assert_eq!(task.resume(), None));
    assert!(!resumed.get());
    assert_eq!(Rc::strong_count(&resumed), 1, "the future was not dropped");
    assert_eq!(queue.close(Duration::ZERO).unwrap_err().operations, 1);
    drop((device, queue));
    sim.check_leaked(1);
}

// Q9: what the other queue's port would be told of is refused before the call. Its packet would name an
// address that may be another operation's by then.
#[test]
fn an_address_is_refused_for_a_handle_that_another_queue_of_the_thread_has() {
    let sim = Sim::quiet();
    let (queue, other) = (sim.queue().unwrap(), sim.queue().unwrap());
    let (owned, device) = (other.register(sim.device()).unwrap(), sim.device());
    other.persist(&device).unwrap();
    let overlapped = Overlapped::on(&queue, vec![0_u8; 8]).unwrap();
    for misuse in [
        overlapped.as_ptr_unregistered(&owned).unwrap_err(),
        overlapped.as_ptr_unregistered(&device).unwrap_err(),
    ] {
        assert!(matches!(misuse, Misuse::WrongQueue { .. }), "{misuse}");
    }
    other.unregister(&device).unwrap();
    overlapped.as_ptr_unregistered(&device).unwrap();
    // SAFETY: the address was given to no call.
    drop(unsafe { overlapped.into_state() });
    drop((owned, device, queue, other));
    sim.check();
}

// W2, pitfalls 29 and 55: a packet from before its handle was unregistered tells that the operation
// which has its address now has ended, if that is so. It is not the packet that this one waits for.
#[test]
fn an_address_waits_for_its_own_packet_whatever_other_packet_tells_its_end_first() {
    for more in [false, true] {
        let sim = Sim::quiet();
        let queue = sim.queue().unwrap();
        let first = queue.register(sim.device()).unwrap();
        sim.plan(&first, Plan::pends_for(Duration::ZERO));
        let asked = sim.control(&queue, &first, vec![0; 8]);
        // It has ended, so nobody looks at the port for it.
        assert_eq!(queue.block_on(asked).unwrap().0.unwrap(), 8);
        // With or without something that keeps the registration from being forgotten.
        let started = first.overlapped(vec![0; 8]).unwrap();
        if more {
            started.as_ptr(&first).unwrap();
        }
        drop(first);
        let second = queue.register(sim.device()).unwrap();
        sim.plan(&second, Plan::pends().packet_after(SECOND));
        let asked = sim.control(&queue, &second, vec![0; 8]);
        sim.complete(&second, End::success());
        let mut ready = Vec::new();
        queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
        assert_eq!(queue.block_on(asked).unwrap().0.unwrap(), 8);
        let start = call(&sim);
        // SAFETY: one call, with what was given, and what it returned.
        let asked = unsafe {
            second.submit(vec![0; 8], |handle, buffer, overlapped| {
                assert!(!sim.owes_packet(handle, overlapped), "used again before its packet came");
                start(handle, buffer, overlapped)
            })
        };
        assert_eq!(queue.block_on(asked).unwrap().0.unwrap(), 8);
        // SAFETY: the address was given to no call.
        drop(unsafe { started.into_state() });
        drop((second, queue));
        sim.check();
    }
}
