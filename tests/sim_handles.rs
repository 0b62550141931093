#![cfg(feature = "sim")]
//! Registering on the simulated Windows, where Wine refuses or cannot show it: taking handles off
//! their port and moving them, packets that come late to a value that has a new owner, handles that
//! refuse their modes or do not tell them.

#[path = "sim/support.rs"]
mod support;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use ioqueue::iocp::Wait;
use ioqueue::sim::{End, Faults, Kind, OnCancel, Plan, Sim, StatusWord};
use ioqueue::{Misuse, Persist, PersistFailure, Queue};
use support::{MILLISECOND, SECOND, open, poll, quiet};

fn works(sim: &Sim, queue: &Queue, handle: &ioqueue::sim::SimHandle) {
    for plan in [Plan::at_once(), Plan::pends_for(MILLISECOND)] {
        sim.plan(handle, plan);
        let asked = sim.control(queue, handle, vec![0; 8]);
        assert_eq!(queue.block_on(asked).unwrap().0.unwrap(), 8);
    }
    assert_eq!(queue.foreign_packets(), 0);
}

// Q8, pitfalls 23 and 54, scenario 64: unregistered here, persisted there, and back. Skip stays on.
#[test]
fn an_unregistered_handle_can_be_persisted_on_another_queue_and_back() {
    let (sim, here) = quiet();
    let there = sim.queue().unwrap();
    let device = sim.device();
    for keep_packets in [false, true] {
        for queue in [&here, &there] {
            let options = if keep_packets { Persist::keep_packets() } else { Persist::default() };
            queue.persist_with(&device, options).unwrap();
            works(&sim, queue, &device);
            queue.unregister(&device).unwrap();
        }
    }
    drop((device, here, there));
    sim.check();
}

// Q8, scenario 64: to a queue of another thread.
#[test]
fn an_unregistered_handle_can_be_persisted_on_another_threads_queue() {
    let (sim, here) = quiet();
    let device = sim.device();
    here.persist(&device).unwrap();
    works(&sim, &here, &device);
    here.unregister(&device).unwrap();
    let (device, sim) = std::thread::spawn(move || {
        let there = sim.queue().unwrap();
        there.persist(&device).unwrap();
        works(&sim, &there, &device);
        there.unregister(&device).unwrap();
        (device, sim)
    })
    .join()
    .unwrap();
    here.persist(&device).unwrap();
    works(&sim, &here, &device);
    here.unregister(&device).unwrap();
    drop((device, here));
    sim.check();
}

// Q8, pitfall 23: with something in flight the handle stays bound, and persisting it says so.
#[test]
fn a_handle_with_something_in_flight_stays_bound() {
    let (sim, here) = quiet();
    let there = sim.queue().unwrap();
    let device = sim.device();
    here.persist(&device).unwrap();
    sim.plan(&device, Plan::pends().on_cancel(OnCancel::AbortsAfter(SECOND)));
    let waiting = sim.control(&here, &device, vec![0; 8]);
    here.unregister(&device).unwrap();
    for queue in [&here, &there] {
        let refused = queue.persist(&device).unwrap_err();
        assert_eq!(refused.reason(), PersistFailure::AlreadyBound);
    }
    assert!(here.block_on(waiting).unwrap().0.is_err());
    drop((device, here, there));
    sim.check();
}

// Q6, pitfall 5: before Windows 8.1 a handle stays bound, whatever one does.
#[test]
fn where_handles_stay_bound_persisting_elsewhere_says_so() {
    let (sim, here) = quiet();
    let there = sim.queue().unwrap();
    let device = open(&sim, Kind::Device, |traits| traits.stays_bound = Some(true));
    here.persist(&device).unwrap();
    assert_eq!(there.persist(&device).unwrap_err().reason(), PersistFailure::WrongQueue);
    works(&sim, &here, &device);
    here.unregister(&device).unwrap();
    assert_eq!(there.persist(&device).unwrap_err().reason(), PersistFailure::AlreadyBound);
    assert_eq!(here.persist(&device).unwrap_err().reason(), PersistFailure::AlreadyBound);
    // Its packets still come to the port, and are nobody's.
    drop((device, here, there));
    sim.check();
}

// Q6, pitfalls 5 and 30: each mistake by its name, and nothing half-registered.
#[test]
fn what_can_not_be_bound_says_why() {
    let (sim, queue) = quiet();
    let synchronous = open(&sim, Kind::File, |traits| traits.synchronous = true);
    let elsewhere = sim.device();
    sim.bind_elsewhere(&elsewhere);
    let event = open(&sim, Kind::Event, |_| ());
    let console = open(&sim, Kind::Console, |_| ());
    let mut closed = sim.device();
    closed.close();
    let reasons = [
        (&synchronous, PersistFailure::NotOverlapped),
        (&elsewhere, PersistFailure::AlreadyBound),
        (&event, PersistFailure::InvalidHandle),
        (&console, PersistFailure::InvalidHandle),
        (&closed, PersistFailure::InvalidHandle),
    ];
    for (handle, reason) in reasons {
        assert_eq!(queue.persist(handle).unwrap_err().reason(), reason);
        let (result, _) = queue.block_on(sim.control(&queue, handle, vec![0; 8])).unwrap();
        let misuse = Misuse::of(&result.unwrap_err());
        assert!(matches!(misuse, Some(Misuse::UnregisteredHandle { .. })), "{misuse:?}");
    }
    assert_eq!(sim.started(), 0, "a call was made");
    drop((synchronous, elsewhere, event, console, queue));
    sim.check();
}

// Pitfall 30, W6: modes that can't be set mean packets for everything, and nothing is lost.
#[test]
fn a_handle_whose_modes_can_not_be_set_works_with_packets() {
    for denies_queries in [false, true] {
        let mut faults = Faults::none();
        faults.modes_fail = 1.0;
        let sim = Sim::with_faults(1, faults);
        let queue = sim.queue().unwrap();
        let device =
            open(&sim, Kind::Device, |traits| traits.denies_queries = Some(denies_queries));
        queue.persist(&device).unwrap();
        works(&sim, &queue, &device);
        poll(&queue);
        assert_eq!(queue.foreign_packets(), 0);
        queue.unregister(&device).unwrap();
        drop((device, queue));
        sim.check();
    }
}

// W7, pitfall 29: the value is somebody else's, and the old owner's packet is still queued.
#[test]
fn a_packet_that_comes_after_its_handles_value_has_a_new_owner_is_not_the_new_owners() {
    for word in [StatusWord::BeforePacket, StatusWord::WithPacket, StatusWord::OnDequeue] {
        let (sim, queue) = quiet();
        let plan = || Plan::pends().status_word(word);
        let early = word == StatusWord::BeforePacket;
        let plan = || if early { plan().packet_after(MILLISECOND) } else { plan() };
        let device = queue.register(sim.device()).unwrap();
        sim.plan(&device, plan());
        let old = sim.control(&queue, &device, vec![0; 8]);
        sim.complete(&device, End::data("old"));
        let value = device.id();
        drop(device);
        let newer = queue.register(sim.device()).unwrap();
        assert_eq!(newer.id(), value);
        sim.plan(&newer, Plan::pends());
        let new = sim.control(&queue, &newer, vec![0; 8]);
        let (count, buffer) = queue.block_on(old).unwrap();
        assert_eq!(&buffer[..count.unwrap() as usize], b"old");
        sim.advance(SECOND);
        poll(&queue);
        assert_eq!(sim.in_flight(&newer), 1);
        assert!(queue.running());
        sim.complete(&newer, End::data("newer"));
        let (count, buffer) = queue.block_on(new).unwrap();
        assert_eq!(&buffer[..count.unwrap() as usize], b"newer");
        drop((newer, queue));
        sim.check();
    }
}

// W7, pitfalls 19, 29 and 46, scenario 59: null, random, stale, forged, a job's. An operation in
// flight is not touched by any, and each is counted and told.
#[test]
fn foreign_packets_are_counted_and_told_and_touch_nothing() {
    let (sim, queue) = quiet();
    let told = Rc::new(RefCell::new(0));
    let count = Rc::clone(&told);
    queue.on_foreign_packet(move |_| *count.borrow_mut() += 1);
    let device = queue.register(sim.device()).unwrap();
    let address = Rc::new(RefCell::new(0));
    let found = Rc::clone(&address);
    sim.plan(&device, Plan::pends());
    let call = support::control(&sim);
    let waiting = unsafe {
        device.submit(vec![0; 8], move |handle, buffer, overlapped| {
            *found.borrow_mut() = overlapped.addr();
            call(handle, buffer, overlapped)
        })
    };
    let address = *address.borrow();
    for key in [0, 1, 2, usize::MAX, 1 << 32 | 1] {
        for overlapped in [address, address + 1, address.wrapping_sub(64), 4711, usize::MAX] {
            sim.post(&queue, key, overlapped, 8);
        }
    }
    sim.post(&queue, 7, 0, 0);
    (0..10_000).for_each(|_| sim.post_foreign(&queue));
    let mut ready = Vec::new();
    while queue.foreign_packets() < sim.foreign_packets() {
        queue.poll(&mut ready, Some(MILLISECOND)).unwrap();
    }
    assert!(ready.is_empty() && sim.in_flight(&device) == 1);
    assert_eq!(*told.borrow(), sim.foreign_packets());
    sim.complete(&device, End::bytes(8));
    assert_eq!(queue.block_on(waiting).unwrap().0.unwrap(), 8);
    drop((device, queue));
    sim.check();
}

// Q8: unregistering what is not registered, twice, and on the wrong queue.
#[test]
fn unregistering_again_does_nothing() {
    let (sim, queue) = quiet();
    let other = sim.queue().unwrap();
    let device = sim.device();
    queue.unregister(&device).unwrap();
    queue.persist(&device).unwrap();
    other.unregister(&device).unwrap();
    works(&sim, &queue, &device);
    queue.unregister(&device).unwrap();
    queue.unregister(&device).unwrap();
    drop((device, queue, other));
    sim.check();
}

/// Starts an operation and tells the address of its OVERLAPPED.
fn start_at(sim: &Sim, queue: &Queue, device: &ioqueue::sim::SimHandle) -> (Wait<Vec<u8>>, usize) {
    let address = Rc::new(Cell::new(0));
    let (found, call) = (Rc::clone(&address), support::control(sim));
    let wait = unsafe {
        queue.submit_at(device, 0, vec![0; 8], move |handle, buffer, overlapped| {
            found.set(overlapped.addr());
            call(handle, buffer, overlapped)
        })
    };
    (wait, address.get())
}

// W3, pitfall 29: an address that owes a packet is not given out again for a forged one.
#[test]
fn a_packet_under_another_key_does_not_give_an_address_back() {
    let (sim, queue) = quiet();
    let device = sim.device();
    queue.persist_with(&device, Persist::keep_packets()).unwrap();
    sim.plan(&device, Plan::at_once().packet_after(SECOND));
    let (over, address) = start_at(&sim, &queue, &device);
    queue.block_on(over).unwrap().0.unwrap();
    sim.post(&queue, 99, address, 8);
    poll(&queue);
    assert_eq!(queue.foreign_packets(), 1);
    let (next, other) = start_at(&sim, &queue, &device);
    assert_ne!(other, address, "it still owes a packet");
    assert_eq!(queue.block_on(next).unwrap().0.unwrap(), 8);
    sim.advance(SECOND);
    poll(&queue);
    assert_eq!(queue.foreign_packets(), 1);
    queue.unregister(&device).unwrap();
    drop((device, queue));
    sim.check();
}

// W3: what owes a packet is given back when the handle's registration ends.
#[test]
fn addresses_that_owe_a_packet_come_back_when_their_handle_is_unregistered() {
    let (sim, queue) = quiet();
    let device = sim.device();
    let mut addresses = BTreeSet::new();
    for _ in 0..1_000 {
        queue.persist_with(&device, Persist::keep_packets()).unwrap();
        sim.plan(&device, Plan::at_once());
        let (over, address) = start_at(&sim, &queue, &device);
        queue.block_on(over).unwrap().0.unwrap();
        addresses.insert(address);
        queue.unregister(&device).unwrap();
    }
    assert!(addresses.len() <= 2, "{} addresses", addresses.len());
    drop((device, queue));
    sim.check();
}
