#![cfg(feature = "sim")]
//! What `cargo xtask mutants` broke and no other test noticed.

#[path = "sim/support.rs"]
mod support;

use std::cell::Cell;
use std::rc::Rc;

use ioqueue::sim::{End, Plan};
use ioqueue::wait_with;
use support::{SECOND, control, poll, quiet};

// W7, pitfall 46: an address inside of an operation's memory is not the operation's, also when that has
// ended and its packet is still to come.
#[test]
fn a_packet_for_an_address_inside_of_an_ended_operation_is_foreign() {
    let (sim, queue) = quiet();
    let device = queue.register(sim.device()).unwrap();
    sim.plan(&device, Plan::pends().packet_after(SECOND));
    let address = Rc::new(Cell::new(0));
    let (found, call) = (Rc::clone(&address), control(&sim));
    let mut asked = device.overlapped(vec![0; 8]).unwrap();
    // SAFETY: one call, with what was given, and what it returned.
    unsafe {
        asked.start(&device, |handle, buffer, overlapped| {
            found.set(overlapped.addr());
            call(handle, buffer, overlapped)
        })
    }
    .unwrap();
    let parked = wait_with(7_usize, &device, asked).ok().unwrap();
    sim.complete(&device, End::success());
    for offset in [8, 16, 64, 256] {
        for key in [0, 1, 99] {
            sim.post(&queue, key, address.get() + offset, 8);
        }
    }
    assert_eq!(poll(&queue), 0);
    assert_eq!(queue.foreign_packets(), 12);
    assert!(!parked.is_over());
    sim.advance(SECOND);
    assert_eq!(poll(&queue), 1);
    assert_eq!(parked.take().unwrap().0.unwrap(), 8);
    drop((device, queue));
    sim.check();
}
