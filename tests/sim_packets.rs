#![cfg(feature = "sim")]
//! A million packets that are not the queue's, on a simulated port, where they cost little.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use ioqueue::Queue;
use ioqueue::sim::{End, Plan, Sim};

/// A generator of numbers that look like nothing (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 as usize
    }
}

fn take_off(queue: &Queue, until: u64) {
    let mut ready = Vec::new();
    while queue.foreign_packets() < until {
        queue.poll(&mut ready, Some(Duration::ZERO)).unwrap();
        for continuation in ready.drain(..) {
            continuation.resume();
        }
    }
}

// W7, scenario 59, pitfalls 19 and 46: null, random, near the slab and in it, with likely keys.
#[test]
fn a_million_foreign_packets_are_counted_and_harm_nothing() {
    let sim = Sim::quiet();
    let queue = sim.queue().unwrap();
    let device = queue.register(sim.device()).unwrap();
    sim.plan(&device, Plan::pends());
    let mut operation = sim.control(&queue, &device, vec![0; 16]);
    let idle = device.overlapped(0_u64).unwrap();
    let near = idle.as_ptr(&device).unwrap().addr();
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut seen = 0_u64;
    let told = Rc::new(Cell::new(0_u64));
    let count = told.clone();
    queue.on_foreign_packet(move |_| count.set(count.get() + 1));
    for batch in 1..=100 {
        for _ in 0..10_000 {
            let number = random.next();
            let (key, overlapped) = match number % 8 {
                0 => (0, 0),
                // A wake-up's key, but with an address.
                1 => (usize::MAX, near),
                2 => (1, near + number % 64 + 1),
                // A job's packet: the address is a number.
                3 => (number, 4711),
                4 => (1 << 32 | 1, random.next()),
                // Aligned like a slot, around the slab's memory.
                5 => (1, near.wrapping_add((number % 4096) * 64).wrapping_sub(131_072)),
                6 => (1, near),
                _ => (number, random.next()),
            };
            sim.post(&queue, key, overlapped, number as u32);
        }
        seen += 10_000;
        take_off(&queue, seen);
        assert_eq!(queue.foreign_packets(), seen);
        // An operation of the queue's own goes on in their midst.
        assert!(queue.running());
        sim.complete(&device, End::data("own"));
        let (length, answer) = queue.block_on(operation).unwrap();
        assert_eq!((length.unwrap(), &answer[..3]), (3, &b"own"[..]));
        sim.plan(&device, Plan::pends());
        operation = sim.control(&queue, &device, vec![0; 16]);
        assert_eq!(told.get(), 10_000 * batch);
    }
    assert_eq!(queue.foreign_packets(), 1_000_000);
    drop(operation);
    // SAFETY: it was given to no call.
    unsafe { idle.into_state() };
    drop(device);
    queue.run().unwrap();
    drop(queue);
    sim.check();
}
